//! `lightbyte exec`: a command in a guest, with its input, outputs, signals, terminal and exit code.

use std::io;

use anyhow::{Context as _, Result};
use bytes::BytesMut;
use lightbyte_guest::frame::{Frame, INPUT_BYTES_MAX};
use lightbyte_link::web_socket::{Receiver, Sender};
use tokio::signal::unix::SignalKind;
use tokio::sync::{Semaphore, mpsc};

use crate::arguments::Exec;
use crate::cluster::Cluster;
use crate::failure::{Code, Exit, Failure};
use crate::session::{self, Raw};
use crate::{remote, target};

/// What runs when no command is named.
const SHELL: &str = "sh";
/// How long the words of a command may be together, as they are written in an address: addresses have at most 64 KiB.
const QUERY_BYTES_MAX: usize = 60_000;
/// Signals that are passed on to a command without a terminal, by their numbers on Linux (signal(7)).
const INTERRUPT: u8 = 2;
const TERMINATE: u8 = 15;

pub(crate) async fn run(cluster: &Cluster, words: &Exec) -> Result<Exit> {
    let object = target::read_vm(std::slice::from_ref(&words.target))?;
    let terminal = session::is_interactive() && !words.no_terminal && !words.no_stdin;
    let size = session::size().filter(|_| terminal);
    let mut query = vec![("terminal", terminal.to_string())];
    query.extend(
        size.iter()
            .flat_map(|(rows, columns)| [("rows", rows.to_string()), ("columns", columns.to_string())]),
    );
    query.extend(words.directory.iter().map(|directory| ("directory", directory.clone())));
    query.extend(words.env.iter().map(|setting| ("env", setting.clone())));
    match words.command.as_slice() {
        [] => query.push(("command", SHELL.to_owned())),
        command => query.extend(command.iter().map(|word| ("command", word.clone()))),
    }
    let length: usize = query.iter().map(|(name, value)| name.len() + value.len() * 3 + 2).sum();
    if length > QUERY_BYTES_MAX {
        return Err(Failure::usage("the command is too long").hint("pipe a script into `sh` instead").into());
    }
    let socket = cluster.web_socket(&object, "exec", &query).await;
    let (sender, receiver) = socket.with_context(|| format!("run a command in `{object}`"))?.split();
    let raw = if terminal { Some(Raw::begin()?) } else { None };
    let input = if words.no_stdin { None } else { Some(session::input()?) };
    let room = Semaphore::new(INPUT_BYTES_MAX);
    let outcome = tokio::select! {
        outcome = outputs(receiver, &room) => outcome,
        error = inputs(sender, input, &room, terminal) => Err(error),
    };
    drop(raw);
    match outcome? {
        Some(code) => Ok(Exit::of_command(code)),
        None => Err(Failure::new(
            Code::Error,
            format!("the connection to `{object}` ended before the command did"),
        )
        .hint("the command was ended with it; `lightbyte why` says how the VM is")
        .into()),
    }
}

/// Writes what the command says, until it ends: then its exit code.
/// `room` grows by what it takes of its input.
async fn outputs(mut receiver: Receiver, room: &Semaphore) -> Result<Option<u32>> {
    let mut buffer = BytesMut::new();
    while let Some(bytes) = receiver.next().await? {
        buffer.extend_from_slice(&bytes);
        while let Some((frame, length)) = Frame::decode(&buffer).context("read what the guest sends")? {
            drop(buffer.split_to(length));
            match frame {
                Frame::Stdout(bytes) => write(&mut io::stdout(), &bytes)?,
                Frame::Stderr(bytes) => write(&mut io::stderr(), &bytes)?,
                Frame::Exit(code) => return Ok(Some(code)),
                Frame::Taken(bytes) => room.add_permits((bytes as usize).min(INPUT_BYTES_MAX)),
                // These go to the guest only.
                Frame::Stdin(_) | Frame::Resize { .. } | Frame::Signal(_) => {}
            }
        }
    }
    Ok(None)
}

fn write(output: &mut impl io::Write, bytes: &[u8]) -> Result<()> {
    output.write_all(bytes).and_then(|()| output.flush()).context("write what the command says")
}

/// Sends what is typed, the terminal's size when it changes, and signals. It ends with an error only.
async fn inputs(
    mut sender: Sender,
    input: Option<mpsc::Receiver<Vec<u8>>>,
    room: &Semaphore,
    terminal: bool,
) -> anyhow::Error {
    match send_inputs(&mut sender, input, room, terminal).await {
        Ok(()) => std::future::pending().await,
        Err(error) => error,
    }
}

async fn send_inputs(
    sender: &mut Sender,
    mut input: Option<mpsc::Receiver<Vec<u8>>>,
    room: &Semaphore,
    terminal: bool,
) -> Result<()> {
    let mut resized = session::listen(SignalKind::window_change())?;
    let mut interrupted = session::listen(SignalKind::interrupt())?;
    let mut terminated = session::listen(SignalKind::terminate())?;
    let mut hung_up = session::listen(SignalKind::hangup())?;
    if input.is_none() {
        sender.send(Frame::Stdin(Vec::new()).encode()).await?;
    }
    loop {
        let frame = tokio::select! {
            bytes = typed(&mut input, room) => match bytes {
                Some(bytes) => Frame::Stdin(bytes),
                None => {
                    input = None;
                    Frame::Stdin(Vec::new())
                }
            },
            _ = resized.recv(), if terminal => match session::size() {
                Some((rows, columns)) => Frame::Resize { rows, columns },
                None => continue,
            },
            // Keys are the terminal's way to the command; a signal means this program, which sets the terminal right.
            _ = interrupted.recv() => if terminal { return Err(ended()) } else { Frame::Signal(INTERRUPT) },
            _ = terminated.recv() => if terminal { return Err(ended()) } else { Frame::Signal(TERMINATE) },
            _ = hung_up.recv() => return Err(ended()),
        };
        if sender.send(frame.encode()).await.is_err() {
            // The command's last words and its exit code may still be on their way; the receiver tells.
            return Ok(());
        }
    }
}

fn ended() -> anyhow::Error {
    Failure::new(Code::Interrupted, "a signal ended this command, and what it ran with it").into()
}

/// What is typed next, when there is room for it on its way; never, once the input has ended.
async fn typed(input: &mut Option<mpsc::Receiver<Vec<u8>>>, room: &Semaphore) -> Option<Vec<u8>> {
    let Some(input) = input else { return std::future::pending().await };
    remote::next(input, room).await
}
