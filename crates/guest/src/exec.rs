//! Starts a command for the host; [`crate::relay`] carries what goes to it and comes from it.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::rc::Rc;

use anyhow::{Context, bail};
use lightbyte_guest::frame::Frame;
use lightbyte_guest::protocol::Exec;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::sync::oneshot;

use crate::agent::Agent;
use crate::{login, terminal, words};

/// Words and settings that one command may have; the body's limit bounds their length.
const WORDS_MAX: usize = 1024;

/// Makes the frame that an output's bytes travel in.
pub(crate) type MakeFrame = fn(Vec<u8>) -> Frame;

/// A running command. Dropping it before it has ended kills it with its group.
pub(crate) struct Process {
    pub(crate) group: Pid,
    pub(crate) input: Option<Sender>,
    pub(crate) outputs: Vec<(Receiver, MakeFrame)>,
    pub(crate) terminal: Option<File>,
    pub(crate) exit: oneshot::Receiver<u32>,
    pub(crate) ended: bool,
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
    // The name of the agent's own program means that program, wherever it lies.
    let mut command = Command::new(if program == words::OWN_NAME { words::OWN_PROGRAM } else { program });
    command.args(arguments).env_clear().current_dir(if wanted.cwd.is_empty() { "/" } else { &wanted.cwd });
    command.envs(login::environment());
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
