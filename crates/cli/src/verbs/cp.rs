//! `lightbyte cp`: files and directories into a guest and out of it, in the way of `docker cp`.
//!
//! What a guest sends is unpacked as what a stranger sends: nothing lands outside of the target, and nobody becomes owner
//! of anything but who runs this. Files appear whole or not at all.

use std::io::{self, Read, Write};
use std::path::Path;

use anyhow::{Context as _, Result};
use lightbyte_api::object::ObjectRef;
use lightbyte_guest::archive::{Keep, Owners, Unpacked, pack, unpack};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use crate::arguments::Cp;
use crate::cluster::Cluster;
use crate::failure::{Code, Failure};
use crate::remote::{self, AGENT, CHUNKS_MAX};
use crate::session::{self, CHUNK_BYTES};
use crate::target;
use crate::terminal::say;

/// Standard input or output, as a tar stream.
const STREAM: &str = "-";

/// One end of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    /// A path on this machine.
    Here(String),
    /// A tar stream that somebody else makes or takes.
    Stream,
    /// A path in a guest.
    Guest { vm: String, path: String },
}

pub(crate) async fn run(cluster: &Cluster, words: &Cp) -> Result<Code> {
    match (read(&words.from), read(&words.to)) {
        (End::Guest { vm, path }, to @ (End::Here(_) | End::Stream)) => {
            out_of(cluster, &target::read_vm(&[vm])?, &path, to).await?;
        }
        (from @ (End::Here(_) | End::Stream), End::Guest { vm, path }) => {
            into(cluster, from, &target::read_vm(&[vm])?, &path).await?;
        }
        (End::Guest { .. }, End::Guest { .. }) => {
            return Err(Failure::usage("both are in VMs")
                .hint("copy it here first, and then from here")
                .into());
        }
        _ => {
            return Err(Failure::usage("neither is in a VM")
                .hint("write `VM:PATH` for a path in a VM, such as `hello:/etc/hosts`")
                .into());
        }
    }
    Ok(Code::Done)
}

/// `VM:PATH` is in a guest. A path here that has a colon begins with `/` or `./`.
fn read(word: &str) -> End {
    if word == STREAM {
        return End::Stream;
    }
    match word.split_once(':') {
        Some((vm, path)) if !vm.is_empty() && !word.starts_with(['/', '.', '~']) => {
            // As for commands: the root is where one stands.
            let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
            End::Guest { vm: vm.to_owned(), path }
        }
        _ => End::Here(word.to_owned()),
    }
}

async fn out_of(cluster: &Cluster, object: &ObjectRef, path: &str, to: End) -> Result<()> {
    let (output, chunks) = mpsc::channel(CHUNKS_MAX);
    let command = [AGENT, "pack", path];
    let taking = spawn_blocking(move || take(chunks, to));
    let ended = remote::run(cluster, object, &command, None, output).await?;
    let taken = taking.await.context("unpack what comes")?;
    warn_of(&ended.errors);
    // The guest's reason explains ours, which is then that the stream ended too early.
    ended.check(|| format!("copy `{path}` out of `{object}`"))?;
    taken
}

/// What was left out is no error, and is not kept back either.
fn warn_of(errors: &str) {
    errors.lines().filter(|line| line.starts_with("left out ")).for_each(say);
}

fn take(chunks: mpsc::Receiver<Vec<u8>>, to: End) -> Result<()> {
    let mut chunks = Chunks { chunks, current: Vec::new(), taken: 0 };
    let End::Here(path) = to else {
        let mut stdout = io::stdout();
        return io::copy(&mut chunks, &mut stdout).and_then(|_| stdout.flush()).context("write the stream");
    };
    let mut done = Unpacked::default();
    unpack(&mut chunks, Path::new(&path), Keep::Permissions, &mut done)
        .with_context(|| incomplete(&path, done))?;
    // Behind the end there is nothing of interest; but the guest's last words come after it.
    io::copy(&mut chunks, &mut io::sink()).map(|_| ()).context("read on")
}

fn incomplete(path: &str, done: Unpacked) -> String {
    match done.entries {
        0 => "nothing was written".to_owned(),
        count => format!("`{path}` is incomplete ({count} entries were written)"),
    }
}

async fn into(cluster: &Cluster, from: End, object: &ObjectRef, path: &str) -> Result<()> {
    let (output, mut said) = mpsc::channel(CHUNKS_MAX);
    let silence = tokio::spawn(async move { while said.recv().await.is_some() {} });
    let (input, packing, target) = match from {
        End::Here(from) => {
            // Looked at before anything is asked of the guest.
            std::fs::symlink_metadata(&from).with_context(|| format!("read `{from}`"))?;
            let (sender, input) = mpsc::channel(CHUNKS_MAX);
            let packing = spawn_blocking(move || send(&from, sender));
            (input, Some(packing), path.to_owned())
        }
        // It may hold several things, so its target is a directory.
        End::Stream | End::Guest { .. } => {
            (session::input()?, None, format!("{}/.", path.trim_end_matches("/.").trim_end_matches('/')))
        }
    };
    let ended = remote::run(cluster, object, &[AGENT, "unpack", &target], Some(input), output).await?;
    silence.abort();
    let packed = match packing {
        Some(packing) => packing.await.context("pack")?,
        None => Ok(()),
    };
    match packed {
        // Nobody takes it any more: the guest has the reason.
        Err(error) if !is_closed(&error) => return Err(error),
        _ => {}
    }
    Ok(ended.check(|| format!("copy into `{object}`"))?)
}

fn is_closed(error: &anyhow::Error) -> bool {
    let is_broken = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
    error.root_cause().downcast_ref().is_some_and(is_broken)
}

fn send(from: &str, sender: mpsc::Sender<Vec<u8>>) -> Result<()> {
    let output = io::BufWriter::with_capacity(CHUNK_BYTES, Sending(sender));
    let mut left_out = |what: String| say(&format!("left out {what}"));
    let packed = pack(Path::new(from), Owners::Root, output, &mut left_out);
    packed.and_then(|mut output| Ok(output.flush()?)).with_context(|| format!("read `{from}`"))
}

/// What comes in chunks, as one reads a file.
struct Chunks {
    chunks: mpsc::Receiver<Vec<u8>>,
    current: Vec<u8>,
    taken: usize,
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.current.len() {
            let Some(chunk) = self.chunks.blocking_recv() else { return Ok(0) };
            (self.current, self.taken) = (chunk, 0);
        }
        let rest = &self.current[self.taken..];
        let bytes = rest.len().min(buffer.len());
        buffer[..bytes].copy_from_slice(&rest[..bytes]);
        self.taken += bytes;
        Ok(bytes)
    }
}

/// What is written, in chunks.
struct Sending(mpsc::Sender<Vec<u8>>);

impl Write for Sending {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // An empty chunk would be the end.
        let bytes = &bytes[..bytes.len().min(CHUNK_BYTES)];
        if !bytes.is_empty() && self.0.blocking_send(bytes.to_vec()).is_err() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_means_a_vm_unless_the_word_is_a_path() {
        let guest = |vm: &str, path: &str| End::Guest { vm: vm.to_owned(), path: path.to_owned() };
        let here = |path: &str| End::Here(path.to_owned());
        let table = [
            ("-", End::Stream),
            ("a:/etc", guest("a", "/etc")),
            ("vm/a:/etc/.", guest("vm/a", "/etc/.")),
            ("a:etc", guest("a", "/etc")),
            ("a:", guest("a", "/")),
            ("a:/x:y", guest("a", "/x:y")),
            ("./a:b", here("./a:b")),
            ("/a:b", here("/a:b")),
            (":b", here(":b")),
            ("file", here("file")),
        ];
        for (word, expected) in table {
            assert_eq!(read(word), expected, "{word}");
        }
    }
}
