//! The emulated host as a QEMU process: started cold or from a saved state, heard on its serial port, and ended with this
//! process however that ends.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

/// The emulator. It comes with `cargo xtask setup`.
pub(super) const QEMU: &str = "qemu-system-x86_64";

/// A CPU that can do what AMD calls SVM, which QEMU emulates and KVM uses. What QEMU does not emulate of it is left out, or
/// it complains of each.
const CPU: &str =
    "EPYC,+svm,+npt,-rdseed,-sha-ni,-fxsr-opt,-misalignsse,-3dnowprefetch,-osvw,-topoext,-nrip-save,-xsavec";

/// Memory for a host with two small VMs, and one CPU: with more of them an emulator is not quicker.
const MACHINE: &[&str] = &[
    "-M",
    "q35",
    "-accel",
    "tcg,tb-size=512",
    "-cpu",
    CPU,
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

/// How long QEMU may take until it connects to our sockets.
const CONNECT_MAX: Duration = Duration::from_secs(20);
/// How long a state may take to be read or written.
const MIGRATION_MAX: Duration = Duration::from_secs(120);
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
    /// Whether a saved state is to be read; else it boots.
    pub(super) is_saved: bool,
    /// Where its sockets are.
    pub(super) work: &'a Path,
}

/// The arguments that a saved state depends on.
pub(super) fn fixed_words() -> String {
    format!("{} {ARGUMENTS}", MACHINE.join(" "))
}

/// The host. It ends when this is dropped.
pub(super) struct Machine {
    _qemu: Ended,
    lines: Receiver<String>,
    qmp: Qmp,
    control: UnixStream,
}

impl Machine {
    /// Starts QEMU, which connects to us. `setpriv` has the kernel end it with this process, by Ctrl-C or by `kill -9`.
    pub(super) fn start(plan: &Plan<'_>) -> Result<Machine> {
        let sockets = Sockets::listen(plan.work)?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", QEMU]).args(MACHINE);
        command.arg("-kernel").arg(plan.kernel).arg("-initrd").arg(plan.initrd).args(["-append", ARGUMENTS]);
        command.args(["-chardev", "stdio,id=serial,signal=off", "-serial", "chardev:serial"]);
        command.args(["-chardev", "socket,id=control,path=control", "-serial", "chardev:control"]);
        command.args(["-chardev", "socket,id=qmp,path=qmp", "-mon", "chardev=qmp,mode=control"]);
        let disk = plan.disk.display().to_string().replace(',', ",,");
        command.arg("-drive").arg(format!("id=disk,format=raw,if=none,cache=unsafe,file={disk}"));
        command.args(["-device", "virtio-blk-pci,drive=disk"]);
        if plan.is_saved {
            command.args(["-incoming", "defer"]);
        }
        command.current_dir(plan.work).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut qemu = Ended(command.spawn().context("start `setpriv` with QEMU")?);
        let output = qemu.0.stdout.take().context("hear QEMU")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                // Nobody listens any more when a run has failed.
                let _ = sender.send(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
        });
        let (control, qmp) = sockets.accept()?;
        Ok(Machine { _qemu: qemu, lines, qmp: Qmp::begin(qmp)?, control })
    }

    /// Reads a saved state, lets the host go on, and says what time it is.
    pub(super) fn go_on(&mut self, state: &Path, seconds: &str) -> Result<()> {
        let uri = format!("exec:cat {}", in_shell(state));
        self.qmp.migrate("migrate-incoming", &uri).context("read the host's state")?;
        self.qmp.ask("cont", &json!({}))?;
        // Empty lines first: the first bytes on a port that was just restored may be lost.
        write!(self.control, "\n\n\n\n\n\n\n\ngo {seconds}\n").context("tell the host to go on")
    }

    /// Saves the host's state to a file, and ends it.
    pub(super) fn save(mut self, state: &Path) -> Result<()> {
        self.qmp.ask("stop", &json!({}))?;
        let uri = format!("exec:cat > {}", in_shell(state));
        self.qmp.migrate("migrate", &uri).context("save the host's state")
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

/// A process that is ended when this is dropped.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A path as the shell reads it, whatever is in it.
fn in_shell(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', "'\\''"))
}

/// Where QEMU connects to. The names are gone as soon as it has.
struct Sockets {
    control: UnixListener,
    qmp: UnixListener,
    work: PathBuf,
}

impl Sockets {
    fn listen(work: &Path) -> Result<Sockets> {
        let directory = File::open(work).with_context(|| format!("open {}", work.display()))?;
        // A path that is short enough for a socket, whatever the directory's is.
        let listen = |name: &str| {
            let path = format!("/proc/self/fd/{}/{name}", directory.as_raw_fd());
            UnixListener::bind(path).with_context(|| format!("listen for QEMU's {name}"))
        };
        Ok(Sockets { control: listen("control")?, qmp: listen("qmp")?, work: work.to_owned() })
    }

    fn accept(self) -> Result<(UnixStream, UnixStream)> {
        let (sender, accepted) = mpsc::channel();
        let Sockets { control, qmp, work } = self;
        thread::spawn(move || {
            let both = control.accept().and_then(|(control, _)| Ok((control, qmp.accept()?.0)));
            // Too late when nobody waits any more.
            let _ = sender.send(both);
        });
        let both = accepted.recv_timeout(CONNECT_MAX).context("wait for QEMU")?;
        for name in ["qmp", "control"] {
            fs::remove_file(work.join(name)).context("remove a socket")?;
        }
        both.context("hear QEMU")
    }
}

struct Qmp {
    reader: BufReader<UnixStream>,
}

impl Qmp {
    fn begin(stream: UnixStream) -> Result<Qmp> {
        stream.set_read_timeout(Some(ANSWER_MAX)).context("set a time-out")?;
        let mut qmp = Qmp { reader: BufReader::new(stream) };
        qmp.line()?;
        qmp.ask("qmp_capabilities", &json!({}))?;
        let events = json!({ "capabilities": [{ "capability": "events", "state": true }] });
        qmp.ask("migrate-set-capabilities", &events)?;
        Ok(qmp)
    }

    fn ask(&mut self, command: &str, arguments: &Value) -> Result<Value> {
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

    /// Moves the host's state out or in, and waits until that is done.
    fn migrate(&mut self, command: &str, uri: &str) -> Result<()> {
        self.reader.get_ref().set_read_timeout(Some(MIGRATION_MAX)).context("set a time-out")?;
        self.ask(command, &json!({ "uri": uri }))?;
        for _ in 0..EVENTS_MAX {
            let event = self.line()?;
            match (event["event"].as_str(), event["data"]["status"].as_str()) {
                (Some("MIGRATION"), Some("completed")) => return Ok(()),
                (Some("MIGRATION"), Some("failed" | "cancelled")) => bail!("QEMU could not do it"),
                _ => {}
            }
        }
        bail!("QEMU does not say whether it is done")
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.reader.read_line(&mut line).context("read from QEMU")?;
        serde_json::from_str(&line).context("read what QEMU says")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_one_word_to_the_shell() {
        assert_eq!(in_shell(Path::new("/a b/it's")), r"'/a b/it'\''s'");
    }
}
