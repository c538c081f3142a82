//! Taking the ports, and saying what to do if one is not to be had.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

/// How often a free port is looked for that both protocols have, where the caller lets the kernel choose.
const TRIES_MAX: usize = 16;

/// What a port is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Single messages.
    Udp,
    /// Connections.
    Tcp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Protocol::Udp => "UDP",
            Protocol::Tcp => "TCP",
        })
    }
}

/// A port could not be taken.
#[derive(Debug, thiserror::Error)]
#[error("listen on {protocol} {address}")]
pub struct BindError {
    /// Where.
    pub address: SocketAddr,
    /// For what.
    pub protocol: Protocol,
    /// Why.
    pub source: io::Error,
}

impl BindError {
    /// What a person may do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let (port, ip) = (self.address.port(), self.address.ip());
        let option = match self.protocol {
            Protocol::Udp => 'u',
            Protocol::Tcp => 't',
        };
        Some(match self.source.kind() {
            io::ErrorKind::AddrInUse => format!(
                "`ss -ln{option}p sport = {port}` names who holds the port; often it is systemd-resolved or dnsmasq"
            ),
            io::ErrorKind::AddrNotAvailable => {
                format!("no interface of this host has the address {ip}; `ip address` shows which there are")
            }
            io::ErrorKind::PermissionDenied => {
                format!("port {port} needs root or the capability CAP_NET_BIND_SERVICE")
            }
            _ => return None,
        })
    }
}

/// Takes a port for both protocols. If it is 0 the kernel chooses one, the same for both.
///
/// # Errors
/// [`BindError`] with the protocol that failed.
pub(crate) fn bind(address: SocketAddr) -> Result<(UdpSocket, TcpListener), BindError> {
    let mut tries = if address.port() == 0 { TRIES_MAX } else { 1 };
    loop {
        let result = bind_once(address);
        tries -= 1;
        match result {
            Err(error) if tries > 0 && error.source.kind() == io::ErrorKind::AddrInUse => {}
            result => return result,
        }
    }
}

fn bind_once(address: SocketAddr) -> Result<(UdpSocket, TcpListener), BindError> {
    let failed = |protocol| move |source| BindError { address, protocol, source };
    let udp = UdpSocket::bind(address).map_err(failed(Protocol::Udp))?;
    let address = udp.local_addr().map_err(failed(Protocol::Udp))?;
    let tcp = TcpListener::bind(address).map_err(failed(Protocol::Tcp))?;
    tcp.set_nonblocking(true).map_err(failed(Protocol::Tcp))?;
    Ok((udp, tcp))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_says_what_to_do() {
        let check = |kind: io::ErrorKind, protocol, expect: Option<&str>| {
            let address = "10.77.0.1:53".parse().expect("an address");
            let error = BindError { address, protocol, source: kind.into() };
            assert_eq!(error.hint().as_deref(), expect);
            assert_eq!(error.to_string(), format!("listen on {protocol} 10.77.0.1:53"));
        };
        let used = "`ss -lnup sport = 53` names who holds the port; often it is systemd-resolved or dnsmasq";
        check(io::ErrorKind::AddrInUse, Protocol::Udp, Some(used));
        check(io::ErrorKind::AddrInUse, Protocol::Tcp, Some(&used.replace("lnup", "lntp")));
        let gone = "no interface of this host has the address 10.77.0.1; `ip address` shows which there are";
        check(io::ErrorKind::AddrNotAvailable, Protocol::Udp, Some(gone));
        let low = "port 53 needs root or the capability CAP_NET_BIND_SERVICE";
        check(io::ErrorKind::PermissionDenied, Protocol::Udp, Some(low));
        check(io::ErrorKind::OutOfMemory, Protocol::Udp, None);
    }

    #[test]
    fn a_port_that_is_held_is_not_taken() {
        let address = "127.0.0.1:0".parse().expect("an address");
        let (udp, tcp) = bind(address).expect("there are ports");
        let held = udp.local_addr().expect("it is bound");
        assert_eq!(Some(held), tcp.local_addr().ok());
        let error = bind(held).expect_err("it is held");
        assert_eq!((error.address, error.protocol), (held, Protocol::Udp));
        assert_eq!(error.source.kind(), io::ErrorKind::AddrInUse);
    }
}
