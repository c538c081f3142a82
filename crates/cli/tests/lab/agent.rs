//! An agent by itself: what it tells systemd, and that a host has one.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How long a word of an agent may take to come, on a machine that does other things.
const WORD_WITHIN: Duration = Duration::from_secs(60);

/// A directory, and the agent that works with it.
struct Agent {
    place: PathBuf,
    process: Child,
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.place);
    }
}

fn worker(place: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lightbyte"));
    // Nobody is there who would take it up: what it knows of its host it knows without a server.
    command.args(["worker", "--name", "n1", "--vmm", "fake", "--cpus", "1", "--memory", "64MiB"]);
    command.args(["--server", "http://127.0.0.1:9", "--state"]).arg(place.join("state"));
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

#[test]
fn systemd_is_told_that_an_agent_is_ready_turns_and_ends_and_a_second_one_is_refused() {
    let place = std::env::temp_dir().join(format!("lightbyte-agent-{}", std::process::id()));
    fs::create_dir_all(&place).expect("a directory");
    let path = place.join("notify");
    let socket = UnixDatagram::bind(&path).expect("a socket, as systemd has it");
    socket.set_read_timeout(Some(WORD_WITHIN)).expect("a time-out");
    let started = worker(&place).env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "600000").spawn();
    let mut agent = Agent { place, process: started.expect("start the agent") };
    let next = || {
        let mut word = [0; 256];
        let length = socket.recv(&mut word).expect("a word in time");
        String::from_utf8_lossy(&word[..length]).trim().to_owned()
    };
    assert_eq!(next(), "READY=1");
    assert_eq!([next(), next()], ["WATCHDOG=1"; 2]);

    let second = worker(&agent.place).stderr(Stdio::piped()).output().expect("start another agent");
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    let named = format!("another agent (process {})", agent.process.id());
    assert!(!second.status.success() && said.contains(&named), "{said}");

    let process = rustix::process::Pid::from_child(&agent.process);
    rustix::process::kill_process(process, rustix::process::Signal::TERM).expect("ask it to end");
    let last = std::iter::repeat_with(next).find(|word| word != "WATCHDOG=1");
    assert_eq!(last.as_deref(), Some("STOPPING=1"));
    assert!(agent.process.wait().expect("its end").success());
}
