//! Tells systemd that the network is as the host wants it (sd_notify(3)): what needs the network starts after that.

use std::env;
use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// How long the boot waits for the host: its worker may be away, and the guest should come up all the same.
pub(crate) const HOST_MAX: Duration = Duration::from_secs(15);

/// Names the socket.
const SOCKET_VARIABLE: &str = "NOTIFY_SOCKET";

/// Says it; again is harmless. Where nobody waits for it nothing is said.
pub(crate) fn ready() {
    let Some(name) = env::var_os(SOCKET_VARIABLE) else { return };
    if let Err(error) = say(&name) {
        println!("lightbyte-guest: tell systemd: {error}");
    }
}

fn say(name: &OsStr) -> std::io::Result<()> {
    let address = match name.as_bytes().split_first() {
        Some((b'@', rest)) => SocketAddr::from_abstract_name(rest)?,
        _ => SocketAddr::from_pathname(name)?,
    };
    UnixDatagram::unbound()?.send_to_addr(b"READY=1", &address).map(|_| ())
}
