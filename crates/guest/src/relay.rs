//! Carries a command's input, outputs, signals and exit code in frames.
//!
//! Nothing that is slow holds up anything else: what the host sends is read whatever the program does with its input
//! (the host keeps to [`INPUT_BYTES_MAX`]), so signals and the host's hanging up are heard at any time; and the program
//! waits when the host does not take its outputs.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fs::File;
use std::rc::Rc;
use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use lightbyte_guest::frame::{FRAME_BYTES_MAX, Frame, HEAD_BYTES, INPUT_BYTES_MAX};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc, watch};
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

use crate::exec::{MakeFrame, Process};
use crate::terminal;

/// One of the connections that the agent serves at once; it lasts as long as its command.
pub(crate) type Place = Rc<OwnedSemaphorePermit>;

/// Frames on the way to the host: the command waits when the host does not read.
const FRAMES_MAX: usize = 8;

/// What is carried at once.
const CHUNK_BYTES: usize = FRAME_BYTES_MAX / 4;

/// How long an output may be silent after its command has ended: what that started in the background may hold it open.
const LAST_OUTPUT_MAX: Duration = Duration::from_millis(500);

/// How long the HTTP side may take to hand over the connection.
const UPGRADE_MAX: Duration = Duration::from_secs(10);

/// Carries frames until the command has ended and all that it said is sent, or the host hung up; then the command dies
/// with its group.
pub(crate) async fn relay(mut process: Process, upgrade: OnUpgrade, _place: Place) {
    let Ok(Ok(connection)) = timeout(UPGRADE_MAX, upgrade).await else { return };
    let (from_host, to_host) = tokio::io::split(TokioIo::new(connection));
    let (sender, frames) = mpsc::channel::<Frame>(FRAMES_MAX);
    let writing = spawn_local(write_frames(frames, to_host));
    let (ended, has_ended) = watch::channel(false);
    let mut outputs = tokio::task::JoinSet::new();
    for (output, frame) in std::mem::take(&mut process.outputs) {
        outputs.spawn_local(read_output(output, frame, sender.clone(), has_ended.clone()));
    }
    let input = Rc::new(Input::default());
    let taking = spawn_local(take_input(process.input.take(), input.clone(), sender.clone()));
    let orders = Orders { input, terminal: process.terminal.take(), group: process.group };
    tokio::select! {
        code = &mut process.exit => {
            process.ended = true;
            ended.send_replace(true);
            while outputs.join_next().await.is_some() {}
            let _ = sender.send(Frame::Exit(code.unwrap_or(255))).await;
        }
        () = read_frames(from_host, &orders) => {}
    }
    drop(process);
    drop(outputs);
    drop(sender);
    // What the program started may hold its input, full, for as long as it likes.
    taking.abort();
    let _ = writing.await;
}

async fn write_frames(mut frames: mpsc::Receiver<Frame>, mut to_host: impl AsyncWrite + Unpin) {
    while let Some(frame) = frames.recv().await {
        if to_host.write_all(&frame.encode()).await.is_err() {
            return;
        }
    }
    let _ = to_host.shutdown().await;
}

async fn read_output(
    mut output: Receiver,
    frame: MakeFrame,
    frames: mpsc::Sender<Frame>,
    mut has_ended: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let read = tokio::select! {
            biased;
            read = output.read(&mut buffer) => read,
            () = silent_after(&mut has_ended) => return,
        };
        // A terminal whose last user has gone gives an error instead of an end.
        let Ok(bytes @ 1..) = read else {
            // The program may close its output and go on, as one that joins a connection does.
            let end = frame(Vec::new());
            if matches!(end, Frame::Stdout(_)) {
                let _ = frames.send(end).await;
            }
            return;
        };
        if frames.send(frame(buffer[..bytes].to_vec())).await.is_err() {
            return;
        }
    }
}

/// Ends [`LAST_OUTPUT_MAX`] after its call, or after the command's end if that comes later.
async fn silent_after(has_ended: &mut watch::Receiver<bool>) {
    // The sender lives as long as the relay, which waits for this.
    let _ = has_ended.wait_for(|ended| *ended).await;
    sleep(LAST_OUTPUT_MAX).await;
}

/// Input on its way to the program.
#[derive(Default)]
struct Input {
    bytes: RefCell<VecDeque<u8>>,
    has_ended: Cell<bool>,
    changed: Notify,
}

impl Input {
    /// Adds bytes; false if there would be more than the host may have on its way.
    fn add(&self, bytes: &[u8]) -> bool {
        let mut kept = self.bytes.borrow_mut();
        let fits = kept.len() + bytes.len() <= INPUT_BYTES_MAX;
        if fits {
            kept.extend(bytes);
            self.changed.notify_one();
        }
        fits
    }

    fn end(&self) {
        self.has_ended.set(true);
        self.changed.notify_one();
    }

    /// The next bytes; `None` at the end.
    async fn next(&self) -> Option<Vec<u8>> {
        loop {
            let chunk: Vec<u8> = {
                let mut kept = self.bytes.borrow_mut();
                let count = kept.len().min(CHUNK_BYTES);
                kept.drain(..count).collect()
            };
            if !chunk.is_empty() {
                return Some(chunk);
            }
            if self.has_ended.get() {
                return None;
            }
            self.changed.notified().await;
        }
    }
}

/// Hands input to the program, and tells the host how much. What a program does not want any more is thrown away.
async fn take_input(mut program: Option<Sender>, input: Rc<Input>, frames: mpsc::Sender<Frame>) {
    while let Some(bytes) = input.next().await {
        let refused = match &mut program {
            Some(writer) => writer.write_all(&bytes).await.is_err(),
            None => false,
        };
        if refused {
            program = None;
        }
        let taken = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        if frames.send(Frame::Taken(taken)).await.is_err() {
            return;
        }
    }
}

/// What frames of the host act on.
struct Orders {
    input: Rc<Input>,
    terminal: Option<File>,
    group: Pid,
}

/// Obeys frames of the host until it hangs up or says nonsense.
async fn read_frames(mut from_host: impl AsyncRead + Unpin, orders: &Orders) {
    let mut buffer: Vec<u8> = Vec::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        loop {
            match Frame::decode(&buffer) {
                Ok(Some((frame, length))) => {
                    buffer.drain(..length);
                    if !orders.obey(&frame) {
                        return;
                    }
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

impl Orders {
    /// Does what a frame says; false if it may not be said.
    fn obey(&self, frame: &Frame) -> bool {
        match frame {
            Frame::Stdin(bytes) if bytes.is_empty() => match &self.terminal {
                // End of input on a terminal is a character: Ctrl-D.
                Some(_) => return self.input.add(&[4]),
                None => self.input.end(),
            },
            Frame::Stdin(bytes) => return self.input.add(bytes),
            Frame::Resize { rows, columns } => {
                if let Some(terminal) = &self.terminal {
                    let _ = terminal::resize(terminal, *rows, *columns);
                }
            }
            Frame::Signal(number) => {
                if let Some(signal) = Signal::from_named_raw(i32::from(*number)) {
                    let _ = kill_process_group(self.group, signal);
                }
            }
            // These go to the host only.
            Frame::Stdout(_) | Frame::Stderr(_) | Frame::Exit(_) | Frame::Taken(_) => {}
        }
        true
    }
}
