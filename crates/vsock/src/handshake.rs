//! The first line that a host program writes: `CONNECT <port>\n`, answered by `OK <host port>\n`.
//!
//! Source: Firecracker's `docs/vsock.md`, "Host-Initiated Connections". A refusal is a closed socket, as there.

/// Longest accepted line with its newline: `CONNECT 4294967294\n` has 19 bytes, the rest is courtesy.
pub const LINE_BYTES_MAX: usize = 32;

/// What the bytes that have come so far say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// The line is not finished and may still become one.
    Incomplete,
    /// A whole line.
    Connect {
        /// The guest's port.
        port: u32,
        /// Bytes of the line with its newline; what follows belongs to the stream.
        line_bytes: usize,
    },
    /// This will never be a line.
    Malformed,
}

/// Judges the first bytes of a host connection. `VMADDR_PORT_ANY` (2^32-1) is no port and malformed.
pub fn parse(bytes: &[u8]) -> Handshake {
    let head = &bytes[..bytes.len().min(LINE_BYTES_MAX)];
    let Some(end) = head.iter().position(|byte| *byte == b'\n') else {
        let hopeless = bytes.len() >= LINE_BYTES_MAX || !is_prefix(head);
        return if hopeless { Handshake::Malformed } else { Handshake::Incomplete };
    };
    let port = std::str::from_utf8(&head[..end])
        .ok()
        .and_then(|line| line.strip_prefix("CONNECT "))
        .filter(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|digits| digits.parse::<u32>().ok())
        .filter(|port| *port != u32::MAX);
    match port {
        Some(port) => Handshake::Connect { port, line_bytes: end + 1 },
        None => Handshake::Malformed,
    }
}

fn is_prefix(head: &[u8]) -> bool {
    let word = b"CONNECT ";
    let common = head.len().min(word.len());
    head[..common] == word[..common]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_what_they_mean() {
        let connect = |port, line_bytes| Handshake::Connect { port, line_bytes };
        let cases: &[(&[u8], Handshake)] = &[
            (b"", Handshake::Incomplete),
            (b"CONN", Handshake::Incomplete),
            (b"CONNECT 10", Handshake::Incomplete),
            (b"CONNECT 1024\n", connect(1024, 13)),
            (b"CONNECT 1024\nGET / HTTP/1.1\r\n", connect(1024, 13)),
            (b"CONNECT 4294967294\n", connect(4_294_967_294, 19)),
            (b"CONNECT 4294967295\n", Handshake::Malformed),
            (b"CONNECT 99999999999\n", Handshake::Malformed),
            (b"CONNECT \n", Handshake::Malformed),
            (b"CONNECT -1\n", Handshake::Malformed),
            (b"CONNECT +1\n", Handshake::Malformed),
            (b"CONNECT 1 \n", Handshake::Malformed),
            (b"connect 1\n", Handshake::Malformed),
            (b"GET / HTTP/1.1\r\n", Handshake::Malformed),
            (b"\n", Handshake::Malformed),
            (b"\xff\xfe\n", Handshake::Malformed),
            (&[b'C'; 2], Handshake::Malformed),
            (b"CONNECT 000000000000000000000001024\n", Handshake::Malformed),
        ];
        for (bytes, expected) in cases {
            assert_eq!(parse(bytes), *expected, "{}", bytes.escape_ascii());
        }
    }
}
