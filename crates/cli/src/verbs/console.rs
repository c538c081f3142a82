//! `lightbyte console`: a guest's serial line, as if one sat at the machine.

use std::io::{self, Write as _};

use anyhow::{Context as _, Result};
use lightbyte_link::web_socket::{Receiver, Sender};
use tokio::sync::mpsc;

use crate::arguments::One;
use crate::cluster::Cluster;
use crate::failure::{Code, Failure};
use crate::session::{self, Raw};
use crate::target;
use crate::terminal::say;

/// What leaves a console: Ctrl-], as in telnet and virsh.
const LEAVE: u8 = 0x1d;

pub(crate) async fn run(cluster: &Cluster, words: &One) -> Result<Code> {
    let object = target::read_vm(&words.target)?;
    let socket = cluster.web_socket(&object, "console", &[]).await;
    let (sender, receiver) = socket.with_context(|| format!("open the console of `{object}`"))?.split();
    let is_interactive = session::is_interactive();
    if is_interactive {
        say(&format!("the console of {object}; Ctrl-] leaves it"));
    }
    let raw = if is_interactive { Some(Raw::begin()?) } else { None };
    let mut ended = session::Ended::listen()?;
    let is_left = tokio::select! {
        shown = show(receiver) => shown.map(|()| false),
        typed = keys(sender, session::input()?) => typed.map(|()| true),
        () = ended.wait() => Ok(true),
    };
    drop(raw);
    say("");
    if is_left? {
        return Ok(Code::Done);
    }
    // The machine's end and that of its worker's agent look the same from here.
    Err(Failure::new(Code::Error, format!("the connection to the console of `{object}` ended"))
        .hint(format!("`lightbyte why {object}` says how it is"))
        .into())
}

async fn show(mut receiver: Receiver) -> Result<()> {
    let mut stdout = io::stdout();
    while let Some(bytes) = receiver.next().await? {
        stdout.write_all(&bytes).and_then(|()| stdout.flush()).context("write what the console shows")?;
    }
    Ok(())
}

/// Sends what is typed until the key that leaves, or the end of what there is to type.
async fn keys(mut sender: Sender, mut input: mpsc::Receiver<Vec<u8>>) -> Result<()> {
    while let Some(mut bytes) = input.recv().await {
        let end = bytes.iter().position(|byte| *byte == LEAVE);
        bytes.truncate(end.unwrap_or(bytes.len()));
        if !bytes.is_empty() {
            sender.send(bytes).await?;
        }
        if end.is_some() {
            break;
        }
    }
    sender.close().await;
    Ok(())
}
