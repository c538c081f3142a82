//! Runs a command for the host and carries its input, outputs, signals and exit code in frames.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, bail};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use lightbyte_guest::frame::{FRAME_BYTES_MAX, Frame, HEAD_BYTES};
use lightbyte_guest::protocol::Exec;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_local;
use tokio::time::timeout;

use crate::agent::Agent;
use crate::terminal;

/// Words and settings that one command may have; the body's limit bounds their length.
const WORDS_MAX: usize = 1024;

/// Where programs are looked for.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Frames on the way to the host: the command waits when the host does not read.
const FRAMES_MAX: usize = 8;

/// How long to wait for the last output after a command ended: what it started in the background may hold its pipes open.
const LAST_OUTPUT_MAX: Duration = Duration::from_millis(500);

/// How long the HTTP side may take to hand over the connection.
const UPGRADE_MAX: Duration = Duration::from_secs(10);

/// Makes the frame that an output's bytes travel in.
type MakeFrame = fn(Vec<u8>) -> Frame;

/// A running command. Dropping it before it has ended kills it with its group.
pub(crate) struct Process {
    group: Pid,
    input: Option<Sender>,
    outputs: Vec<(Receiver, MakeFrame)>,
    terminal: Option<File>,
    exit: oneshot::Receiver<u32>,
    ended: bool,
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.ended {
            let _ = kill_process_group(self.group, Signal::KILL);
        }
    }
}

/// Starts a command.
///
/// # Errors
/// If it is empty or too long, or cannot be started.
pub(crate) fn start(agent: &Rc<Agent>, wanted: &Exec) -> anyhow::Result<Process> {
    let Some((program, arguments)) = wanted.argv.split_first() else { bail!("argv is empty") };
    if wanted.argv.len() > WORDS_MAX || wanted.env.len() > WORDS_MAX {
        bail!("more than {WORDS_MAX} words or settings");
    }
    let mut command = Command::new(program);
    command.args(arguments).env_clear().current_dir(if wanted.cwd.is_empty() { "/" } else { &wanted.cwd });
    command.env("PATH", PATH).env("HOME", "/root");
    for setting in &wanted.env {
        let (name, value) = setting.split_once('=').with_context(|| format!("`{setting}` is no setting"))?;
        command.env(name, value);
    }
    let terminal = if wanted.terminal {
        command.env("TERM", "xterm-256color");
        Some(terminal::attach(&mut command, wanted.rows, wanted.columns)?)
    } else {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        None
    };
    let mut child = command.spawn().with_context(|| format!("start {program}"))?;
    let exit = agent.children.register(child.id());
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("read its process id")?;
    let mut process = Process { group, input: None, outputs: Vec::new(), terminal, exit, ended: false };
    if let Some(terminal) = &process.terminal {
        let copy = || terminal.as_fd().try_clone_to_owned().context("duplicate the terminal");
        process.input = Some(writer(copy()?)?);
        process.outputs.push((reader(copy()?)?, Frame::Stdout));
    } else {
        process.input = child.stdin.take().map(|pipe| writer(pipe.into())).transpose()?;
        let stdout = child.stdout.take().map(|pipe| reader(pipe.into())).transpose()?;
        let stderr = child.stderr.take().map(|pipe| reader(pipe.into())).transpose()?;
        process.outputs.extend(stdout.map(|stdout| (stdout, Frame::Stdout as MakeFrame)));
        process.outputs.extend(stderr.map(|stderr| (stderr, Frame::Stderr as MakeFrame)));
    }
    Ok(process)
}

/// A terminal is no pipe, but waits and reads like one.
fn reader(fd: OwnedFd) -> anyhow::Result<Receiver> {
    Receiver::from_file_unchecked(non_blocking(fd)?).context("watch an output")
}

fn writer(fd: OwnedFd) -> anyhow::Result<Sender> {
    Sender::from_file_unchecked(non_blocking(fd)?).context("watch the input")
}

fn non_blocking(fd: OwnedFd) -> anyhow::Result<File> {
    let flags = fcntl_getfl(&fd).context("read a descriptor's flags")?;
    fcntl_setfl(&fd, flags | OFlags::NONBLOCK).context("set a descriptor's flags")?;
    Ok(File::from(fd))
}

/// Carries frames until the command has ended or the host hung up; then the command dies with its group.
pub(crate) async fn relay(mut process: Process, upgrade: OnUpgrade) {
    let Ok(Ok(connection)) = timeout(UPGRADE_MAX, upgrade).await else { return };
    let (from_host, mut to_host) = tokio::io::split(TokioIo::new(connection));
    let (sender, mut frames) = mpsc::channel::<Frame>(FRAMES_MAX);
    let writing = spawn_local(async move {
        while let Some(frame) = frames.recv().await {
            if to_host.write_all(&frame.encode()).await.is_err() {
                return;
            }
        }
        let _ = to_host.shutdown().await;
    });
    let mut outputs = tokio::task::JoinSet::new();
    for (output, frame) in std::mem::take(&mut process.outputs) {
        outputs.spawn_local(read_output(output, frame, sender.clone()));
    }
    let input = process.input.take();
    let terminal = process.terminal.take();
    let group = process.group;
    tokio::select! {
        code = &mut process.exit => {
            process.ended = true;
            let _ = timeout(LAST_OUTPUT_MAX, async { while outputs.join_next().await.is_some() {} }).await;
            let _ = sender.send(Frame::Exit(code.unwrap_or(255))).await;
        }
        () = read_frames(from_host, input, terminal, group) => {}
    }
    drop(process);
    drop(outputs);
    drop(sender);
    let _ = writing.await;
}

async fn read_output(mut output: Receiver, frame: MakeFrame, frames: mpsc::Sender<Frame>) {
    let mut buffer = vec![0; FRAME_BYTES_MAX / 4];
    loop {
        // A terminal whose last user has gone gives an error instead of an end.
        let Ok(bytes @ 1..) = output.read(&mut buffer).await else { return };
        if frames.send(frame(buffer[..bytes].to_vec())).await.is_err() {
            return;
        }
    }
}

/// Obeys frames of the host until it hangs up or says nonsense.
async fn read_frames(
    mut from_host: impl AsyncRead + Unpin,
    mut input: Option<impl AsyncWrite + Unpin>,
    terminal: Option<File>,
    group: Pid,
) {
    let mut buffer: Vec<u8> = Vec::new();
    let mut chunk = vec![0; FRAME_BYTES_MAX / 4];
    loop {
        loop {
            match Frame::decode(&buffer) {
                Ok(Some((frame, length))) => {
                    buffer.drain(..length);
                    obey(frame, &mut input, terminal.as_ref(), group).await;
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
        debug_assert!(buffer.len() < HEAD_BYTES + FRAME_BYTES_MAX);
        match from_host.read(&mut chunk).await {
            Ok(bytes @ 1..) => buffer.extend_from_slice(&chunk[..bytes]),
            _ => return,
        }
    }
}

async fn obey(
    frame: Frame,
    input: &mut Option<impl AsyncWrite + Unpin>,
    terminal: Option<&File>,
    group: Pid,
) {
    match frame {
        Frame::Stdin(bytes) if bytes.is_empty() => match (terminal, input.as_mut()) {
            // End of input on a terminal is a character: Ctrl-D.
            (Some(_), Some(writer)) => drop(writer.write_all(&[4]).await),
            _ => *input = None,
        },
        Frame::Stdin(bytes) => {
            let failed = match input.as_mut() {
                Some(writer) => writer.write_all(&bytes).await.is_err(),
                None => false,
            };
            if failed {
                *input = None;
            }
        }
        Frame::Resize { rows, columns } => {
            if let Some(terminal) = terminal {
                let _ = terminal::resize(terminal, rows, columns);
            }
        }
        Frame::Signal(number) => {
            if let Some(signal) = Signal::from_named_raw(i32::from(number)) {
                let _ = kill_process_group(group, signal);
            }
        }
        // These go to the host only.
        Frame::Stdout(_) | Frame::Stderr(_) | Frame::Exit(_) => {}
    }
}
