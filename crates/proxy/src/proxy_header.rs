//! The PROXY header, versions 1 and 2: what a balancer in front of us says of its client.
//!
//! Only read where the topology says that it stands there; then it must.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::{AsyncRead, AsyncReadExt as _};

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Longest header of version 1, by its specification.
const V1_BYTES_MAX: usize = 107;

/// Longest header of version 2 that is taken: addresses and some extensions. The format allows 64 KiB.
const V2_BYTES_MAX: usize = 1_024;

/// What the bytes so far are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Parsed {
    /// A header of that length; of a connection that the balancer made for itself it names nobody.
    Header(usize, Option<SocketAddr>),
    /// The beginning of one.
    Partial,
    /// None, or one that is too long.
    Invalid,
}

/// Reads the header off the stream, byte for byte no more.
///
/// # Errors
/// If there is none, or the peer goes.
pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<SocketAddr>> {
    let mut bytes = Vec::with_capacity(V1_BYTES_MAX);
    loop {
        match parse(&bytes) {
            Parsed::Header(_, source) => return Ok(source),
            Parsed::Invalid => return Err(io::Error::new(io::ErrorKind::InvalidData, "no PROXY header")),
            Parsed::Partial => {}
        }
        // One byte is cheap beside a connection, and nothing of what follows may be taken.
        let wanted = if bytes.len() >= 16 { rest_of_v2(&bytes) } else { 1 };
        let before = bytes.len();
        bytes.resize(before + wanted, 0);
        stream.read_exact(&mut bytes[before..]).await?;
    }
}

fn rest_of_v2(bytes: &[u8]) -> usize {
    match bytes {
        [head @ .., _, _] if head.len() == 14 && bytes.starts_with(SIGNATURE) => {
            usize::from(u16::from_be_bytes([bytes[14], bytes[15]])).max(1)
        }
        _ => 1,
    }
}

/// What the bytes are.
pub(crate) fn parse(bytes: &[u8]) -> Parsed {
    let is_begun = |whole: &[u8]| bytes.starts_with(whole) || whole.starts_with(bytes);
    if is_begun(SIGNATURE) {
        parse_v2(bytes)
    } else if is_begun(b"PROXY ") {
        parse_v1(bytes)
    } else {
        Parsed::Invalid
    }
}

fn parse_v1(bytes: &[u8]) -> Parsed {
    let Some(end) = bytes.windows(2).take(V1_BYTES_MAX - 1).position(|pair| pair == b"\r\n") else {
        return if bytes.len() < V1_BYTES_MAX { Parsed::Partial } else { Parsed::Invalid };
    };
    let line = std::str::from_utf8(&bytes[..end]).unwrap_or_default();
    let words: Vec<&str> = line.split(' ').collect();
    match words.as_slice() {
        ["PROXY", "UNKNOWN", ..] => Parsed::Header(end + 2, None),
        ["PROXY", family @ ("TCP4" | "TCP6"), source, _, source_port, _] => {
            let source: Option<IpAddr> = source.parse().ok();
            match (source, source_port.parse()) {
                (Some(source), Ok(port)) if source.is_ipv4() == (*family == "TCP4") => {
                    Parsed::Header(end + 2, Some(SocketAddr::new(source, port)))
                }
                _ => Parsed::Invalid,
            }
        }
        _ => Parsed::Invalid,
    }
}

fn parse_v2(bytes: &[u8]) -> Parsed {
    let Some((head, rest)) = bytes.split_at_checked(16) else {
        return Parsed::Partial;
    };
    let length = usize::from(u16::from_be_bytes([head[14], head[15]]));
    if length > V2_BYTES_MAX || head[12] >> 4 != 2 {
        return Parsed::Invalid;
    }
    let Some(rest) = rest.get(..length) else {
        return Parsed::Partial;
    };
    let end = 16 + length;
    match (head[12] & 0xF, head[13], rest) {
        (0, _, _) | (1, 0, _) => Parsed::Header(end, None),
        (1, 0x11, [a, b, c, d, _, _, _, _, high, low, ..]) => {
            let source = Ipv4Addr::new(*a, *b, *c, *d);
            Parsed::Header(end, Some((source, u16::from_be_bytes([*high, *low])).into()))
        }
        (1, 0x21, rest) if rest.len() >= 36 => {
            let source: [u8; 16] = rest[..16].try_into().unwrap_or_default();
            Parsed::Header(
                end,
                Some((Ipv6Addr::from(source), u16::from_be_bytes([rest[32], rest[33]])).into()),
            )
        }
        _ => Parsed::Invalid,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).expect("short").to_be_bytes();
        [SIGNATURE, [0x20 | command, family].as_slice(), &length, rest].concat()
    }

    #[test]
    fn headers_of_both_versions_are_read_and_nothing_else() {
        let v4 = [1, 2, 3, 4, 5, 6, 7, 8, 0x12, 0x34, 0, 80];
        let v6: Vec<u8> =
            [[0xFD; 16], [0; 16]].concat().into_iter().chain([0x12, 0x34, 0, 80, 9, 9]).collect();
        let v6_source = "[fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd]:4660";
        let long = format!("PROXY TCP4 {}\r\n", "1".repeat(200));
        let table: Vec<(Vec<u8>, Option<Option<&str>>)> = vec![
            (b"PROXY TCP4 1.2.3.4 5.6.7.8 4660 80\r\n".to_vec(), Some(Some("1.2.3.4:4660"))),
            (b"PROXY TCP6 ::1 ::2 1 2\r\n".to_vec(), Some(Some("[::1]:1"))),
            (b"PROXY UNKNOWN\r\n".to_vec(), Some(None)),
            (b"PROXY UNKNOWN what ever\r\n".to_vec(), Some(None)),
            (b"PROXY TCP4 ::1 ::2 1 2\r\n".to_vec(), None),
            (b"PROXY TCP4 1.2.3.4 5.6.7.8 99999 80\r\n".to_vec(), None),
            (b"PROXY TCP4 1.2.3.4\r\n".to_vec(), None),
            (b"GET / HTTP/1.1\r\n\r\n".to_vec(), None),
            (long.into_bytes(), None),
            (v2(1, 0x11, &v4), Some(Some("1.2.3.4:4660"))),
            (v2(1, 0x21, &v6), Some(Some(v6_source))),
            (v2(0, 0, &[]), Some(None)),
            (v2(1, 0x11, &v4[..8]), None),
            (v2(2, 0x11, &v4), None),
            (v2(1, 0x31, &[0; 216]), None),
        ];
        for (bytes, expected) in table {
            let expected = match expected {
                Some(source) => {
                    Parsed::Header(bytes.len(), source.map(|text| text.parse().expect("an address")))
                }
                None => Parsed::Invalid,
            };
            let text = String::from_utf8_lossy(&bytes).into_owned();
            assert_eq!(parse(&[&bytes[..], b"GET /"].concat()), expected, "{text}");
            if expected != Parsed::Invalid {
                let is_partial = |length: usize| parse(&bytes[..length]) == Parsed::Partial;
                assert!((0..bytes.len()).all(is_partial), "{text}");
            }
        }
    }
}
