//! Runs a command in a guest for a verb of ours: bytes go in and come out, and its errors and exit code are told.

use anyhow::{Context as _, Result};
use bytes::BytesMut;
use lightbyte_api::object::ObjectRef;
use lightbyte_guest::frame::{Frame, INPUT_BYTES_MAX};
use lightbyte_link::web_socket::{Receiver, Sender};
use tokio::sync::{Semaphore, mpsc};

use crate::cluster::Cluster;
use crate::failure::{Code, Failure};
use crate::harmless::Harmless;
use crate::session;

/// The guest agent's own program, as `exec` knows it.
pub(crate) const AGENT: &str = "lightbyte-guest";

/// What an agent answers that does not know a word, or a system that has no such program: it is older than this.
const EXIT_USAGE: u32 = 64;

/// How much of a command's errors is kept: what is told to people.
const ERRORS_BYTES_MAX: usize = 8 << 10;

/// How many chunks may wait between the network and whoever reads or writes here.
pub(crate) const CHUNKS_MAX: usize = 4;

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    /// Its exit code, or 128 and the number of the signal that ended it.
    pub(crate) code: u32,
    /// The beginning of what it wrote to its standard error, fit for a terminal.
    pub(crate) errors: String,
}

impl Ended {
    /// Nothing if it ended well; otherwise a failure that says what the guest said.
    pub(crate) fn check(self, deed: impl FnOnce() -> String) -> Result<(), Failure> {
        if self.code == 0 {
            return Ok(());
        }
        let deed = deed();
        if self.code == EXIT_USAGE {
            return Err(Failure::new(
                Code::Error,
                format!("{deed}: the agent in the guest is too old for that"),
            ));
        }
        let said = match self.errors.trim().lines().last() {
            Some(said) => said.to_owned(),
            None => format!("it ended with code {} and said nothing", self.code),
        };
        Err(Failure::new(Code::Error, format!("{deed}: {said}")))
    }
}

/// Runs `command` until it ends. `input` is what it hears (the channel's end is its end), `output` what it says; the
/// channel is closed when the command closes its output, maybe long before its end. If nobody listens to what it says it
/// is ended, and counts as done.
pub(crate) async fn run(
    cluster: &Cluster,
    object: &ObjectRef,
    command: &[&str],
    input: Option<mpsc::Receiver<Vec<u8>>>,
    output: mpsc::Sender<Vec<u8>>,
) -> Result<Ended> {
    let mut query = vec![("terminal", "false".to_owned())];
    query.extend(command.iter().map(|word| ("command", (*word).to_owned())));
    let socket = cluster.web_socket(object, "exec", &query).await;
    let (sender, receiver) = socket.with_context(|| format!("reach into `{object}`"))?.split();
    let room = Semaphore::new(INPUT_BYTES_MAX);
    tokio::select! {
        ended = take_frames(receiver, &room, output) => ended?.ok_or_else(|| broken_off(object).into()),
        error = send_frames(sender, input, &room) => Err(error),
    }
}

fn broken_off(object: &ObjectRef) -> Failure {
    Failure::new(Code::Error, format!("the connection to `{object}` ended too early"))
        .hint(format!("`lightbyte why {object}` says how it is"))
}

async fn take_frames(
    mut receiver: Receiver,
    room: &Semaphore,
    output: mpsc::Sender<Vec<u8>>,
) -> Result<Option<Ended>> {
    let mut output = Some(output);
    let mut errors = Vec::new();
    let mut buffer = BytesMut::new();
    while let Some(bytes) = receiver.next().await? {
        buffer.extend_from_slice(&bytes);
        while let Some((frame, length)) = Frame::decode(&buffer).context("read what the guest sends")? {
            drop(buffer.split_to(length));
            match frame {
                Frame::Stdout(bytes) => {
                    let Some(listener) = output.take().filter(|_| !bytes.is_empty()) else { continue };
                    if listener.send(bytes).await.is_err() {
                        // Nobody wants the rest. Whoever stopped listening knows why.
                        return Ok(Some(Ended { code: 0, errors: String::new() }));
                    }
                    output = Some(listener);
                }
                Frame::Stderr(bytes) => {
                    let room = ERRORS_BYTES_MAX.saturating_sub(errors.len()).min(bytes.len());
                    errors.extend_from_slice(&bytes[..room]);
                }
                Frame::Exit(code) => {
                    let errors = Harmless::default().show(&errors);
                    return Ok(Some(Ended { code, errors }));
                }
                Frame::Taken(bytes) => room.add_permits((bytes as usize).min(INPUT_BYTES_MAX)),
                // These go to the guest only.
                Frame::Stdin(_) | Frame::Resize { .. } | Frame::Signal(_) => {}
            }
        }
    }
    Ok(None)
}

/// Sends input until it ends, and then waits for ever: the command's end is heard elsewhere.
async fn send_frames(
    mut sender: Sender,
    mut input: Option<mpsc::Receiver<Vec<u8>>>,
    room: &Semaphore,
) -> anyhow::Error {
    loop {
        let bytes = match &mut input {
            Some(channel) => next(channel, room).await,
            None => None,
        };
        let is_end = bytes.is_none();
        // A command that has ended takes no more; its last words may still be on their way.
        if sender.send(Frame::Stdin(bytes.unwrap_or_default()).encode()).await.is_err() || is_end {
            return std::future::pending().await;
        }
    }
}

/// What comes next from `input`, when there is room for it on its way; nothing at its end.
pub(crate) async fn next(input: &mut mpsc::Receiver<Vec<u8>>, room: &Semaphore) -> Option<Vec<u8>> {
    let chunk = u32::try_from(session::CHUNK_BYTES).unwrap_or(u32::MAX);
    // The semaphore is never closed; without room nothing is sent.
    let Ok(place) = room.acquire_many(chunk).await else { return std::future::pending().await };
    let bytes = input.recv().await.filter(|bytes| !bytes.is_empty())?;
    drop(place);
    room.forget_permits(bytes.len());
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_guest_says_is_told_in_one_line() {
        let check = |code: u32, errors: &str, expect: &str| {
            let ended = Ended { code, errors: errors.to_owned() };
            let said = ended.check(|| "copy".to_owned()).map_err(|failure| failure.to_string());
            assert_eq!(said.err().as_deref().unwrap_or("done"), expect);
        };
        check(0, "left out /dev: a device\n", "done");
        check(1, "left out /x: a socket\n/y: No such file\n", "copy: /y: No such file");
        check(137, "", "copy: it ended with code 137 and said nothing");
        check(64, "usage: …\n", "copy: the agent in the guest is too old for that");
    }
}
