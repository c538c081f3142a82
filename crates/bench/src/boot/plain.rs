//! QEMU without lightbyte: the command line of a VM that lightbyte has started, with other paths and a tap by name.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixListener;
use tokio::process::{Child, Command as Program};
use tokio::time::timeout;

use crate::bed::{self, Bed, run};
use crate::processes::cpu_ms;

/// How long a boot may take: a loaded machine is slow, a hang is an error.
const BOOT_WITHIN: Duration = Duration::from_secs(120);

/// How long a program may take to say that it is ready.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// The network namespace of the plain VM, with nothing but its tap in it.
const NAMESPACE: &str = "lb-bench";

/// The tap in it.
const TAP: &str = "tap0";

/// The guest's address on its vsock: as lightbyte's.
const GUEST_CID: &str = "3";

/// The port on which the guest's agent calls the host (`READY_PORT` of lightbyte-guest's protocol).
const READY_PORT: u32 = 1025;

/// Waits in the namespace until it is told to go, and then becomes QEMU without a fork: what stands before QEMU (`ip`,
/// a shell) is over before the clock runs. QEMU leads a session of its own as under lightbyte, because the kernel shares
/// processors out by session (`autogroup` of sched(7)).
const LAUNCHER: &str = "echo ready; read -r _; exec setsid \"$@\" </dev/null >/dev/null 2>&1";

/// What QEMU is started with, where `DIRECTORY` stands for the directory of the run.
pub(super) struct CommandLine(Vec<String>);

/// Stands for the directory of the run.
const DIRECTORY: &str = "{directory}";

impl CommandLine {
    /// Copies the words of a running machine. What only its starter can give (descriptors) and what is the VM's own
    /// (paths) is replaced.
    ///
    /// # Errors
    /// When there is a descriptor that is not known.
    pub(super) fn copy(words: &[String]) -> Result<Self> {
        let mut copied = Vec::with_capacity(words.len());
        let mut option = "";
        for word in words {
            copied.push(replaced(option, word));
            option = word;
        }
        match copied.iter().find(|word| word.contains("fd=")) {
            Some(word) => bail!("`{word}` names a descriptor that is not known"),
            None => Ok(Self(copied)),
        }
    }

    fn words(&self, directory: &Path) -> Vec<String> {
        let directory = directory.display().to_string();
        self.0.iter().map(|word| word.replace(DIRECTORY, &directory)).collect()
    }
}

/// The word in place of `word`, which follows `option`.
fn replaced(option: &str, word: &str) -> String {
    let begins = |beginning: &str| word.starts_with(beginning);
    match option {
        "-pidfile" => format!("{DIRECTORY}/pid"),
        "-drive" => with_path(word, "file=", &format!("{DIRECTORY}/disk")),
        "-netdev" if begins("tap,") => {
            let id = word.split(',').find(|part| part.starts_with("id=")).unwrap_or_default();
            format!("tap,{id},ifname={TAP},script=no,downscript=no")
        }
        "-chardev" if begins("socket,id=console,") => format!(
            "socket,id=console,server=on,wait=off,path={DIRECTORY}/serial,logfile={DIRECTORY}/console,logappend=on"
        ),
        "-chardev" if begins("socket,id=qmp,") => {
            format!("socket,id=qmp,path={DIRECTORY}/qmp,server=on,wait=off")
        }
        "-chardev" if begins("socket,id=vsock,") => with_path(word, "path=", &format!("{DIRECTORY}/vhost")),
        _ => word.to_owned(),
    }
}

/// `word` with another path after `key`, which is its last part: lightbyte doubles commas in paths.
fn with_path(word: &str, key: &str, path: &str) -> String {
    match word.split_once(key) {
        Some((before, _)) => format!("{before}{key}{path}"),
        None => word.to_owned(),
    }
}

/// The socket on which the machine with this command line reaches its vsock backend.
pub(super) fn vsock_socket(words: &[String]) -> Option<&str> {
    words.iter().find_map(|word| word.strip_prefix("socket,id=vsock,path="))
}

/// What a plain VM stands on. It ends with this.
pub(super) struct Ground {
    directory: PathBuf,
    root: PathBuf,
}

/// One boot.
pub(super) struct Boot {
    /// From the execution of QEMU to the agent's call.
    pub(super) wall: Duration,
    /// QEMU's and its vsock backend's.
    pub(super) cpu_ms: f64,
}

impl Ground {
    /// Makes a network namespace with a tap. `root` is what disks are copied from.
    ///
    /// # Errors
    /// When the namespace cannot be made.
    pub(super) fn make(bed: &Bed, root: PathBuf) -> Result<Self> {
        let ground = Self { directory: bed.make("plain")?, root };
        run(Command::new("ip").args(["netns", "add", NAMESPACE]))?;
        let tap = ["-n", NAMESPACE, "tuntap", "add", "dev", TAP, "mode", "tap", "vnet_hdr"];
        run(Command::new("ip").args(tap))?;
        run(Command::new("ip").args(["-n", NAMESPACE, "link", "set", TAP, "up"]))?;
        Ok(ground)
    }

    /// Boots until the agent calls, and ends the machine.
    ///
    /// # Errors
    /// When it does not start or the agent does not call.
    pub(super) async fn boot(&self, line: &CommandLine) -> Result<Boot> {
        self.prepare()?;
        let calls =
            UnixListener::bind(self.path(&format!("vsock_{READY_PORT}"))).context("listen for the agent")?;
        let backend = self.backend().await?;
        let (mut qemu, before) = self.launcher(line).await?;
        let begun = Instant::now();
        let mut go = qemu.stdin.take().context("tell QEMU to start")?;
        go.write_all(b"\n").await.context("tell QEMU to start")?;
        let called = tokio::select! {
            called = timeout(BOOT_WITHIN, calls.accept()) => called.context("the agent does not call")?,
            ended = qemu.wait() => bail!("QEMU ended ({ended:?}); its console is {}", self.path("console").display()),
        };
        let mut said = String::new();
        let stream = called.context("take the agent's call")?.0;
        BufReader::new(stream).read_line(&mut said).await.context("hear the agent")?;
        // The worker's clock stops here too: when the line was read, not when the call came.
        let wall = begun.elapsed();
        let spent: f64 = [&qemu, &backend].into_iter().filter_map(Child::id).map(cpu_ms).sum();
        ensure!(said.contains("\"ready\":true"), "the agent says `{}`", said.trim());
        end(qemu).await?;
        end(backend).await?;
        Ok(Boot { wall, cpu_ms: spent - before })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// An empty directory but for a fresh copy of the disk.
    fn prepare(&self) -> Result<()> {
        fs::remove_dir_all(&self.directory).context("empty the plain VM's directory")?;
        fs::create_dir(&self.directory).context("make the plain VM's directory")?;
        run(Command::new("cp")
            .args(["--reflink=auto", "--sparse=always"])
            .arg(&self.root)
            .arg(self.path("disk")))?;
        Ok(())
    }

    /// The vsock backend, listening.
    async fn backend(&self) -> Result<Child> {
        let mut command = Program::new(bed::lightbyte()?);
        command.arg("vsock").arg("--vhost-socket").arg(self.path("vhost"));
        command.arg("--uds").arg(self.path("vsock")).args(["--guest-cid", GUEST_CID]);
        started(&mut command, Stdio::null()).await.context("start the vsock backend")
    }

    /// A process that becomes QEMU when it is told to, with the processor time that it has spent so far.
    async fn launcher(&self, line: &CommandLine) -> Result<(Child, f64)> {
        let mut command = Program::new("ip");
        command
            .args(["netns", "exec", NAMESPACE, "sh", "-c", LAUNCHER, "launcher"])
            .args(line.words(&self.directory));
        let child = started(&mut command, Stdio::piped()).await.context("enter the namespace")?;
        let spent = child.id().map(cpu_ms).unwrap_or_default();
        Ok((child, spent))
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        if let Err(error) = clear_away() {
            eprintln!("warning: the namespace {NAMESPACE} is left behind: {error:#}");
        }
    }
}

/// Starts a program that says `ready`, and waits for that. It is killed when the result is dropped.
async fn started(command: &mut Program, stdin: Stdio) -> Result<Child> {
    let mut child = command.stdin(stdin).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
    let mut line = String::new();
    let mut stdout = BufReader::new(child.stdout.take().context("read what it says")?);
    timeout(READY_WITHIN, stdout.read_line(&mut line)).await.context("it says nothing")??;
    ensure!(line.trim() == "ready", "it says `{}`", line.trim());
    Ok(child)
}

/// Ends a process, and waits until it has gone.
async fn end(mut child: Child) -> Result<()> {
    child.kill().await.context("end a process of the plain VM")
}

/// Removes the namespace, with the processes that a killed run has left in it.
///
/// # Errors
/// When it cannot be removed.
pub(super) fn clear_away() -> Result<()> {
    if !Path::new("/run/netns").join(NAMESPACE).exists() {
        return Ok(());
    }
    let pids = run(Command::new("ip").args(["netns", "pids", NAMESPACE]))?;
    for pid in pids.split_whitespace() {
        let pid =
            pid.parse().ok().and_then(rustix::process::Pid::from_raw).context("read a process number")?;
        // One that ends by itself meanwhile is no error.
        let _gone = rustix::process::kill_process(pid, rustix::process::Signal::KILL).is_err();
    }
    run(Command::new("ip").args(["netns", "del", NAMESPACE])).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(line: &str) -> Result<Vec<String>> {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        CommandLine::copy(&words).map(|line| line.words(Path::new("/b")))
    }

    #[test]
    fn only_paths_and_descriptors_are_replaced() {
        let table = [
            ("qemu -M microvm,acpi=on -kernel /i/k", "qemu -M microvm,acpi=on -kernel /i/k"),
            ("q -pidfile /r/qemu.pid -m 128M", "q -pidfile /b/pid -m 128M"),
            (
                "q -drive id=disk0,format=raw,if=none,file=/s/d",
                "q -drive id=disk0,format=raw,if=none,file=/b/disk",
            ),
            (
                "q -netdev tap,id=nic0,fd=101 -device x,mac=02:00",
                "q -netdev tap,id=nic0,ifname=tap0,script=no,downscript=no -device x,mac=02:00",
            ),
            (
                "q -chardev socket,id=console,server=on,wait=off,path=/r/console,logfile=/s/c,logappend=on",
                "q -chardev socket,id=console,server=on,wait=off,path=/b/serial,logfile=/b/console,logappend=on",
            ),
            (
                "q -chardev socket,id=qmp,fd=100,server=on,wait=off",
                "q -chardev socket,id=qmp,path=/b/qmp,server=on,wait=off",
            ),
            ("q -chardev socket,id=vsock,path=/r/vhost", "q -chardev socket,id=vsock,path=/b/vhost"),
        ];
        for (line, expected) in table {
            assert_eq!(copy(line).expect("copied").join(" "), expected, "{line}");
        }
        copy("q -chardev socket,id=new,fd=102").expect_err("an unknown descriptor");
    }

    #[test]
    fn the_vsock_of_a_machine_is_found() {
        let words = ["q", "-chardev", "socket,id=vsock,path=/r/vhost"].map(str::to_owned);
        assert_eq!(vsock_socket(&words), Some("/r/vhost"));
        assert_eq!(vsock_socket(&words[..2]), None);
    }
}
