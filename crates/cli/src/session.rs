//! A person's terminal while it speaks with a guest: its keys go there as they are typed, and its size is known there.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read as _};

use anyhow::{Context as _, Result};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

/// How much is read from standard input at once; less than a frame of the guest's protocol holds.
pub(crate) const CHUNK_BYTES: usize = 16 << 10;
/// How many chunks of standard input may wait for the network: then reading waits.
const CHUNKS_MAX: usize = 4;

/// Whether standard input and output are both a person's terminal.
pub(crate) fn is_interactive() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// Lines and characters of the terminal; nothing where there is none.
pub(crate) fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(io::stdout()).ok()?;
    Some((size.ws_row, size.ws_col))
}

/// A terminal whose keys are not interpreted here, until it is dropped.
pub(crate) struct Raw {
    before: Termios,
}

impl Raw {
    pub(crate) fn begin() -> Result<Raw> {
        let before = tcgetattr(io::stdin()).context("read the settings of the terminal")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw).context("set the terminal")?;
        Ok(Raw { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone needs no settings.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

/// What comes from standard input; the end of the channel is its end. The thread that reads blocks for as long as nothing
/// is typed, and ends with the process.
pub(crate) fn input() -> Result<mpsc::Receiver<Vec<u8>>> {
    let (sender, receiver) = mpsc::channel(CHUNKS_MAX);
    let read = move || {
        let mut chunk = vec![0; CHUNK_BYTES];
        // An input that cannot be read has ended.
        while let Ok(bytes @ 1..) = io::stdin().lock().read(&mut chunk) {
            if sender.blocking_send(chunk[..bytes].to_vec()).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().name("stdin".to_owned()).spawn(read).context("read standard input")?;
    Ok(receiver)
}

/// Ends standard output, though this program goes on: something else is put in its place.
pub(crate) fn close_output() -> Result<()> {
    let nowhere = File::options().write(true).open("/dev/null").context("open /dev/null")?;
    rustix::stdio::dup2_stdout(&nowhere).context("end standard output")
}

/// Signals that end a program which has the terminal for itself, so that it sets the terminal right before it goes.
pub(crate) struct Ended {
    signals: [Signal; 3],
}

impl Ended {
    pub(crate) fn listen() -> Result<Ended> {
        let [terminate, hangup, interrupt] =
            [SignalKind::terminate(), SignalKind::hangup(), SignalKind::interrupt()].map(listen);
        let signals = [terminate?, hangup?, interrupt?];
        Ok(Ended { signals })
    }

    /// Waits for one of them.
    pub(crate) async fn wait(&mut self) {
        let [terminate, hangup, interrupt] = &mut self.signals;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
}

/// Listens to a signal, which then ends nothing by itself.
pub(crate) fn listen(kind: SignalKind) -> Result<Signal> {
    signal(kind).context("listen to signals")
}
