//! `lightbyte vsock --vhost-socket S --uds U --guest-cid N [--inherited]`, which a driver starts and people do not. With
//! `--inherited` the sockets are bound already and come as standard input (S) and output (U); otherwise it binds them
//! and then says `ready`.

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, bail};

use crate::{Listeners, Options};

/// Serves one VM's vsock until the VM ends. `words` are those after the subcommand.
pub fn main_with(words: impl IntoIterator<Item = OsString>) -> ExitCode {
    match start(words.into_iter()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(words: impl Iterator<Item = OsString>) -> anyhow::Result<()> {
    let (options, inherited) = options(words)?;
    // A session of its own: the VM's channel outlives the agent that started it, and its terminal. It fails only for a
    // process that leads a group already, which has what it needs.
    let _ = rustix::process::setsid();
    let listeners = if inherited { Listeners::inherited()? } else { Listeners::bind(&options)? };
    if !inherited {
        // Whoever started us may wait for this line; it may also have gone already.
        let _ = writeln!(std::io::stdout(), "ready");
    }
    crate::run(&options, listeners)
}

fn options(mut words: impl Iterator<Item = OsString>) -> anyhow::Result<(Options, bool)> {
    let (mut vhost_socket, mut uds, mut guest_cid, mut inherited) = (None, None, None, false);
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{} needs a value", word.display()));
        match word.to_str() {
            Some("--vhost-socket") => vhost_socket = Some(value()?.into()),
            Some("--uds") => uds = Some(value()?.into()),
            Some("--guest-cid") => {
                let value = value()?;
                let number = value.to_str().and_then(|text| text.parse().ok());
                guest_cid = Some(number.with_context(|| format!("{} is no address", value.display()))?);
            }
            Some("--inherited") => inherited = true,
            _ => bail!("unknown argument {}", word.display()),
        }
    }
    let options = Options {
        vhost_socket: vhost_socket.context("--vhost-socket is missing")?,
        uds: uds.context("--uds is missing")?,
        guest_cid: guest_cid.context("--guest-cid is missing")?,
    };
    Ok((options, inherited))
}
