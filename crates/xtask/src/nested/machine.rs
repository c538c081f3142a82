//! The emulated host as a QEMU process: started cold or from a saved state, heard on its serial port, and ended with this
//! process however that ends.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

/// The emulator. It comes with `cargo xtask setup`.
pub(super) const QEMU: &str = "qemu-system-x86_64";

/// A CPU that can do what AMD calls SVM, which QEMU emulates and KVM uses; and memory for a host with two small VMs.
const MACHINE: &[&str] = &[
    "-M",
    "q35",
    "-accel",
    "tcg,tb-size=512",
    "-cpu",
    "EPYC,+svm,+npt",
    "-m",
    "1024",
    "-smp",
    "1",
    "-nodefaults",
    "-no-user-config",
    "-display",
    "none",
    "-no-reboot",
];

/// Kernel arguments: quickly up, and slow defences left out that are worth nothing in an emulator.
const ARGUMENTS: &str =
    "console=ttyS0 panic=-1 quiet mitigations=off cryptomgr.notests=1 tsc=reliable random.trust_cpu=on";

/// How long QEMU may take until its sockets are there.
const SOCKETS_MAX: Duration = Duration::from_secs(20);
/// How long a saved state may take to be read.
const RESTORE_MAX: Duration = Duration::from_secs(60);
/// How long a state may take to be written.
const SAVE_MAX: Duration = Duration::from_secs(120);
/// The pause between two questions.
const PAUSE: Duration = Duration::from_millis(10);
/// How long QEMU may take for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(20);
/// Events that may come before an answer.
const EVENTS_MAX: usize = 64;

/// What every start of the host is made from.
pub(super) struct Plan<'a> {
    pub(super) kernel: &'a Path,
    pub(super) initrd: &'a Path,
    /// A raw disk. It belongs to the run.
    pub(super) disk: &'a Path,
    /// The saved state to go on from.
    pub(super) state: Option<&'a Path>,
    /// Where its sockets are.
    pub(super) work: &'a Path,
}

/// The arguments that a saved state depends on.
pub(super) fn fixed_words() -> String {
    format!("{} {ARGUMENTS}", MACHINE.join(" "))
}

/// The host. It ends when this is dropped.
pub(super) struct Machine {
    qemu: Child,
    lines: Receiver<String>,
    work: PathBuf,
    /// Kept open: what was not read yet goes with the connection.
    control: Option<UnixStream>,
}

impl Machine {
    /// Starts QEMU. `setpriv` has the kernel end it with this process, by Ctrl-C or by `kill -9`.
    pub(super) fn start(plan: &Plan<'_>) -> Result<Machine> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", QEMU]).args(MACHINE);
        command.arg("-kernel").arg(plan.kernel).arg("-initrd").arg(plan.initrd).args(["-append", ARGUMENTS]);
        command.args(["-chardev", "stdio,id=serial,signal=off", "-serial", "chardev:serial"]);
        command.args(["-serial", "unix:control,server=on,wait=off", "-qmp", "unix:qmp,server=on,wait=off"]);
        let disk = plan.disk.display().to_string().replace(',', ",,");
        command.arg("-drive").arg(format!("id=disk,format=raw,if=none,cache=unsafe,file={disk}"));
        command.args(["-device", "virtio-blk-pci,drive=disk"]);
        if let Some(state) = plan.state {
            // The shell's word for the file, whatever is in it.
            let state = state.display().to_string().replace('\'', "'\\''");
            command.arg("-incoming").arg(format!("exec:cat '{state}'"));
        }
        command.current_dir(plan.work).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut qemu = command.spawn().context("start `setpriv` with QEMU")?;
        let output = qemu.stdout.take().context("hear QEMU")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                // Nobody listens any more when a run has failed.
                let _ = sender.send(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
        });
        Ok(Machine { qemu, lines, work: plan.work.to_owned(), control: None })
    }

    /// A socket of QEMU's, by a path that is short whatever the directory's is.
    fn connect(&mut self, name: &str) -> Result<UnixStream> {
        let until = Instant::now() + SOCKETS_MAX;
        let path = format!("/proc/{}/cwd/{name}", self.qemu.id());
        loop {
            match UnixStream::connect(&path) {
                Ok(stream) => return Ok(stream),
                Err(error) => {
                    if let Some(status) = self.qemu.try_wait().context("look at QEMU")? {
                        bail!("QEMU ended ({status})");
                    }
                    if Instant::now() > until {
                        return Err(error).with_context(|| format!("connect to QEMU's {name}"));
                    }
                }
            }
            thread::sleep(PAUSE);
        }
    }

    fn qmp(&mut self) -> Result<Qmp> {
        let stream = self.connect("qmp")?;
        stream.set_read_timeout(Some(ANSWER_MAX)).context("set a time-out")?;
        let mut qmp = Qmp { reader: BufReader::new(stream) };
        qmp.line()?;
        qmp.ask("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Waits until the saved state is read, lets the host go on, and says what time it is.
    pub(super) fn go_on(&mut self, seconds: u64) -> Result<()> {
        let mut qmp = self.qmp()?;
        let until = Instant::now() + RESTORE_MAX;
        while qmp.ask("query-status", json!({}))?["status"] == "inmigrate" {
            if Instant::now() > until {
                bail!("the saved state is not read after {} s", RESTORE_MAX.as_secs());
            }
            thread::sleep(PAUSE);
        }
        qmp.ask("cont", json!({}))?;
        let mut control = self.connect("control")?;
        writeln!(control, "{seconds}").context("tell the host to go on")?;
        self.control = Some(control);
        // Nobody needs the names any more, and no run leaves them behind.
        for name in ["qmp", "control"] {
            let _ = fs::remove_file(self.work.join(name));
        }
        Ok(())
    }

    /// Saves the host's state to a file, and ends it.
    pub(super) fn save(mut self, state: &Path) -> Result<()> {
        let mut qmp = self.qmp()?;
        qmp.ask("stop", json!({}))?;
        let text = state.display().to_string().replace('\'', "'\\''");
        qmp.ask("migrate", json!({ "uri": format!("exec:cat > '{text}'") }))?;
        let until = Instant::now() + SAVE_MAX;
        loop {
            let status = qmp.ask("query-migrate", json!({}))?["status"].as_str().unwrap_or("none").to_owned();
            match status.as_str() {
                "completed" => return Ok(()),
                "failed" | "cancelled" => bail!("QEMU could not save the host's state"),
                _ if Instant::now() > until => bail!("the state is not saved after {} s", SAVE_MAX.as_secs()),
                _ => thread::sleep(PAUSE),
            }
        }
    }

    /// Shows lines of the host to `read` until it says that it has what it wants, or the host ends. Fails after `limit`.
    pub(super) fn hear(&self, limit: Duration, mut read: impl FnMut(&str) -> bool) -> Result<()> {
        let until = Instant::now() + limit;
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) if read(&line) => return Ok(()),
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => bail!("the host ended too early"),
                Err(RecvTimeoutError::Timeout) => {
                    bail!("the host is not through after {} s", limit.as_secs())
                }
            }
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

struct Qmp {
    reader: BufReader<UnixStream>,
}

impl Qmp {
    fn ask(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let text = json!({ "execute": command, "arguments": arguments });
        writeln!(self.reader.get_mut(), "{text}").with_context(|| format!("ask QEMU to {command}"))?;
        for _ in 0..EVENTS_MAX {
            let mut answer = self.line()?;
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get("error") {
                bail!("QEMU refuses `{command}`: {}", error["desc"].as_str().unwrap_or("no reason"));
            }
        }
        bail!("QEMU does not answer `{command}`")
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.reader.read_line(&mut line).context("read from QEMU")?;
        serde_json::from_str(&line).context("read what QEMU says")
    }
}
