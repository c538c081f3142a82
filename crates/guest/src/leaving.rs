//! The last words of a machine that its own init ends: whether it wants to come back, which the host cannot see, since
//! the process of its VMM ends both times.
//!
//! systemd starts what lies in `/usr/lib/systemd/system-shutdown` when nothing runs any more and all is written
//! (systemd-shutdown(8)); process 1 of a tiny image says it by itself.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use lightbyte_guest::protocol::{Leaving, Way};
use rustix::system::{RebootCommand, reboot};
use tokio::time::timeout;

use crate::ready;

/// How long the host may take to hear it: a machine must not stay because nobody listens.
const HOST_MAX: Duration = Duration::from_secs(2);

/// Tells the host, and then ends the machine in the one way that ends the process of every VMM: a reset. A power-off may
/// leave that alive.
///
/// # Errors
/// If `how` is no way to end a machine, or the kernel does not reset it.
pub(crate) fn leave(how: &str) -> Result<()> {
    let way = match how {
        "poweroff" | "halt" => Way::Poweroff,
        "reboot" => Way::Reboot,
        // Into another kernel: the machine goes on.
        "kexec" => return Ok(()),
        other => bail!("`{other}` is no way to end a machine"),
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("make the runtime")?;
    runtime.block_on(tell(way));
    rustix::fs::sync();
    reboot(RebootCommand::Restart).context("reset")
}

/// Tells the host, if it listens.
pub(crate) async fn tell(way: Way) {
    match timeout(HOST_MAX, ready::say(&Leaving { leaving: way })).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => println!("lightbyte-guest: tell the host: {error}"),
        Err(_) => println!("lightbyte-guest: the host did not hear that this machine ends"),
    }
}
