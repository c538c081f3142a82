//! Where a client's requests of HTTP/1 begin and end (RFC 9112), and what may not stand in them although the HTTP library takes it.
//!
//! ```text
//!   start ─▶ method ─▶ target ─▶ version ─▶ header lines ─┬─▶ body ─────────────────────────▶ start
//!                                                         └─▶ chunk size ⇄ data ─▶ trailers ─▶ start
//! ```
//!
//! The library writes anew what may not stand in a target before anybody else sees it, and reads a chunk without a size as the last
//! one. So bytes are looked at before it gets them. What it refuses by itself, or `gateway::strict` refuses with a reason, is let pass
//! if that refusal ends the connection; whatever else is not understood here is refused here.

/// Longest names and values that are looked at: those of lengths and codings.
const WORD_BYTES_MAX: usize = 32;

/// Hexadecimal digits of a chunk's size (RFC 9112, 7.1, warns of those that overflow).
const SIZE_DIGITS_MAX: u8 = 15;

/// Before the digit of a version that may differ.
const VERSION: &[u8] = b"HTTP/1.";

/// What is being read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    /// Before a request, where empty lines may stand (RFC 9112, 2.2).
    #[default]
    Start,
    EmptyLineEnd,
    Method,
    Target {
        is_empty: bool,
    },
    Version {
        matched: usize,
    },
    VersionEnd,
    VersionLineEnd,
    Line,
    Name,
    Value(About),
    HeadEnd,
    Body(u64),
    ChunkSize {
        digits: u8,
        bytes: u64,
    },
    ChunkSpace(u64),
    ChunkExtension(u64),
    ChunkSizeEnd(u64),
    Chunk(u64),
    ChunkEnd,
    ChunkLineEnd,
    TrailerLine,
    Trailer,
    TrailerEnd,
    TrailersEnd,
    /// Whatever comes: the head is refused, and nothing follows it.
    Anything,
    /// Nothing more: a byte has broken the rules.
    Broken,
}

impl At {
    const fn is_in_body(self) -> bool {
        use At::{Chunk, ChunkEnd, ChunkExtension, ChunkLineEnd, ChunkSize, ChunkSizeEnd, ChunkSpace};
        let is_chunk = matches!(
            self,
            ChunkSize { .. }
                | ChunkSpace(_)
                | ChunkExtension(_)
                | ChunkSizeEnd(_)
                | Chunk(_)
                | ChunkEnd
                | ChunkLineEnd
        );
        is_chunk || matches!(self, At::TrailerLine | At::Trailer | At::TrailerEnd | At::TrailersEnd)
    }
}

/// A byte that breaks the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flaw {
    /// How many bytes before it may pass.
    pub(crate) passes: usize,
    /// Whether the head of its request was good, so that the request has begun.
    pub(crate) is_in_body: bool,
}

/// What a header's value says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum About {
    Length,
    Coding,
    Other,
}

/// How a request's body is framed, as far as its headers were read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Body {
    length: Option<u64>,
    codings: u32,
    is_chunked: bool,
}

/// Reads along with one connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Framing {
    at: At,
    body: Body,
    /// The beginning of a name in small letters, or of a value.
    word: Vec<u8>,
}

impl Framing {
    /// Looks at what came next.
    ///
    /// # Errors
    /// When a byte breaks the rules. From then on each does.
    pub(crate) fn read(&mut self, bytes: &[u8]) -> Result<(), Flaw> {
        let mut position = 0;
        while let Some(rest) = bytes.get(position..).filter(|rest| !rest.is_empty()) {
            let Some(taken) = self.skip(rest).or_else(|| self.step(rest[0])) else {
                let is_in_body = self.at.is_in_body();
                self.at = At::Broken;
                return Err(Flaw { passes: position, is_in_body });
            };
            position += taken;
        }
        Ok(())
    }

    /// Whether all requests that have begun have ended.
    #[cfg(test)]
    pub(crate) fn is_between(&self) -> bool {
        matches!(self.at, At::Start | At::EmptyLineEnd)
    }

    /// Takes what is not looked at byte by byte.
    fn skip(&mut self, rest: &[u8]) -> Option<usize> {
        let (left, then): (u64, fn(u64) -> At) = match self.at {
            At::Anything => return Some(rest.len()),
            At::Value(About::Other) => {
                let until = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
                return Some(until).filter(|until| *until > 0);
            }
            At::Body(left) => (left, |left| if left == 0 { At::Start } else { At::Body(left) }),
            At::Chunk(left) => (left, |left| if left == 0 { At::ChunkEnd } else { At::Chunk(left) }),
            _ => return None,
        };
        let taken = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
        self.at = then(left - taken as u64);
        Some(taken)
    }

    /// Takes one byte, or `None` if it may not stand here.
    fn step(&mut self, byte: u8) -> Option<usize> {
        self.at = match self.at {
            At::Start | At::EmptyLineEnd | At::Method | At::Target { .. } => self.step_line(byte)?,
            At::Version { .. } | At::VersionEnd | At::VersionLineEnd => self.step_version(byte)?,
            At::Line | At::Name | At::Value(_) | At::HeadEnd => self.step_header(byte)?,
            At::Body(_) | At::Chunk(_) | At::Anything | At::Broken => return None,
            _ => self.step_chunk(byte)?,
        };
        Some(1)
    }

    fn step_line(&mut self, byte: u8) -> Option<At> {
        Some(match (self.at, byte) {
            (At::Start, b'\r') => At::EmptyLineEnd,
            (At::EmptyLineEnd, b'\n') => At::Start,
            (At::Start, b'!'..=b'~') => {
                self.body = Body::default();
                At::Method
            }
            (At::Method, b' ') => At::Target { is_empty: true },
            (At::Method, b'!'..=b'~') => At::Method,
            (At::Target { is_empty: false }, b' ') => At::Version { matched: 0 },
            (At::Target { .. }, byte) if byte > b' ' && byte != 0x7f => At::Target { is_empty: false },
            _ => return None,
        })
    }

    fn step_version(&self, byte: u8) -> Option<At> {
        Some(match (self.at, byte) {
            (At::Version { matched }, byte) if VERSION.get(matched) == Some(&byte) => {
                At::Version { matched: matched + 1 }
            }
            (At::Version { matched }, b'0' | b'1') if matched == VERSION.len() => At::VersionEnd,
            (At::VersionEnd, b'\r') => At::VersionLineEnd,
            // Of a line feed alone `strict` tells its client.
            (At::VersionEnd | At::VersionLineEnd, b'\n') => At::Line,
            _ => return None,
        })
    }

    fn step_header(&mut self, byte: u8) -> Option<At> {
        Some(match (self.at, byte) {
            (At::Line, b'\r') => At::HeadEnd,
            (At::Line | At::HeadEnd, b'\n') => self.after_head(),
            // A folded line, and a name that is none.
            (At::Line, b':' | b' ' | b'\t') | (At::HeadEnd, _) | (At::Name, b'\r' | b'\n') => return None,
            (At::Name, b':') => {
                let about = match self.word.as_slice() {
                    b"content-length" => About::Length,
                    b"transfer-encoding" => About::Coding,
                    _ => About::Other,
                };
                self.word.clear();
                At::Value(about)
            }
            (At::Line | At::Name, byte) => {
                if self.at == At::Line {
                    self.word.clear();
                }
                self.keep(byte.to_ascii_lowercase());
                At::Name
            }
            (At::Value(about), b'\n') => {
                self.end_value(about)?;
                At::Line
            }
            (At::Value(about), byte) => {
                let is_before = self.word.is_empty() && matches!(byte, b' ' | b'\t');
                if !is_before {
                    self.keep(byte);
                }
                At::Value(about)
            }
            _ => return None,
        })
    }

    /// One more than the most is kept too, so that what is too long equals nothing that is looked for.
    fn keep(&mut self, byte: u8) {
        if self.word.len() <= WORD_BYTES_MAX {
            self.word.push(byte);
        }
    }

    fn end_value(&mut self, about: About) -> Option<()> {
        let value = self.word.trim_ascii();
        match about {
            About::Length => {
                let is_number = self.word.len() <= WORD_BYTES_MAX && value.iter().all(u8::is_ascii_digit);
                let length = std::str::from_utf8(value).ok().filter(|_| is_number)?.parse().ok()?;
                let before = self.body.length.replace(length);
                before.is_none_or(|before| before == length).then_some(())?;
            }
            About::Coding => {
                self.body.codings = self.body.codings.saturating_add(1);
                self.body.is_chunked = value.eq_ignore_ascii_case(b"chunked");
            }
            About::Other => {}
        }
        Some(())
    }

    /// Of what is not framed in one way `strict` tells its client.
    const fn after_head(&self) -> At {
        match self.body {
            Body { codings: 0, length: None | Some(0), .. } => At::Start,
            Body { codings: 0, length: Some(length), .. } => At::Body(length),
            Body { codings: 1, is_chunked: true, length: None } => At::ChunkSize { digits: 0, bytes: 0 },
            Body { .. } => At::Anything,
        }
    }

    fn step_chunk(&self, byte: u8) -> Option<At> {
        Some(match (self.at, byte) {
            (At::ChunkSize { digits, bytes }, byte) if byte.is_ascii_hexdigit() => {
                let digit = (byte as char).to_digit(16)?;
                (digits < SIZE_DIGITS_MAX).then_some(())?;
                At::ChunkSize { digits: digits + 1, bytes: bytes * 16 + u64::from(digit) }
            }
            (At::ChunkSize { digits: 1.., bytes }, byte) => after_size(byte, bytes)?,
            (At::ChunkSpace(bytes), byte) => after_size(byte, bytes)?,
            (At::ChunkExtension(bytes), b'\r') => At::ChunkSizeEnd(bytes),
            (At::ChunkExtension(bytes), byte) if byte != b'\n' => At::ChunkExtension(bytes),
            (At::ChunkSizeEnd(0), b'\n') => At::TrailerLine,
            (At::ChunkSizeEnd(bytes), b'\n') => At::Chunk(bytes),
            (At::ChunkEnd, b'\r') => At::ChunkLineEnd,
            (At::ChunkLineEnd, b'\n') => At::ChunkSize { digits: 0, bytes: 0 },
            (At::TrailerLine, b'\r') => At::TrailersEnd,
            (At::TrailersEnd, b'\n') => At::Start,
            (At::Trailer, b'\r') => At::TrailerEnd,
            (At::TrailerLine | At::Trailer, byte) if byte != b'\n' => At::Trailer,
            (At::TrailerEnd, b'\n') => At::TrailerLine,
            _ => return None,
        })
    }
}

const fn after_size(byte: u8, bytes: u64) -> Option<At> {
    match byte {
        b' ' | b'\t' => Some(At::ChunkSpace(bytes)),
        b';' => Some(At::ChunkExtension(bytes)),
        b'\r' => Some(At::ChunkSizeEnd(bytes)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What follows a request that has ended.
    const NEXT: &str = "GET / HTTP/1.1\r\n";

    /// A number that is longer than what is kept of it.
    const LONG: &str = "00000000000000000000000000000000000000000000";

    /// A request, and how much of it with the next may pass: all, if nothing is said. Whole and byte by byte are one.
    fn check(request: &str, passes: Option<usize>) {
        let text = format!("{request}{NEXT}");
        let mut whole = Framing::default();
        let flaw = whole.read(text.as_bytes()).err();
        assert_eq!(flaw.map(|flaw| flaw.passes), passes, "{text:?}");
        let is_in_body = request.find("\r\n\r\n").zip(passes).is_some_and(|(end, passes)| passes > end + 3);
        assert_eq!(
            flaw.is_some_and(|flaw| flaw.is_in_body),
            is_in_body && request.contains("chunked"),
            "{text:?}"
        );
        let mut parts = Framing::default();
        let broken = text.bytes().position(|byte| parts.read(&[byte]).is_err());
        assert_eq!(broken, passes, "{text:?}");
        let at = if passes.is_some() { At::Broken } else { At::Line };
        assert_eq!((whole.at, parts.at), (at, at), "{text:?}");
    }

    /// A request's line is refused at its first byte of `bad`.
    fn check_line(line: &str, bad: Option<&str>) {
        check(&format!("{line}\r\n\r\n"), bad.map(|bad| line.len() - bad.len()));
    }

    fn check_body(headers: &str, body: &str, bad: Option<&str>) {
        let request = format!("POST / HTTP/1.1\r\n{headers}\r\n{body}");
        check(&request, bad.map(|bad| request.len() - bad.len()));
    }

    #[test]
    fn a_line_has_a_method_a_target_and_a_version() {
        check_line("GET / HTTP/1.1", None);
        check_line("OPTIONS * HTTP/1.0", None);
        check_line("\r\n\r\nGET http://a/?b#c HTTP/1.1", None);
        check_line("GET /\u{e9} HTTP/1.1", None);
        check_line("GET /a b HTTP/1.1", Some("b HTTP/1.1"));
        check_line("GET  / HTTP/1.1", Some(" / HTTP/1.1"));
        check_line("GET /  HTTP/1.1", Some(" HTTP/1.1"));
        check_line("GET /\0 HTTP/1.1", Some("\0 HTTP/1.1"));
        check_line("GET /\r HTTP/1.1", Some("\r HTTP/1.1"));
        check_line("GET /\x7f HTTP/1.1", Some("\x7f HTTP/1.1"));
        check_line("GET / HTTP/1.2", Some("2"));
        check_line("GET / HTTP/1.1 HTTP/1.1", Some(" HTTP/1.1"));
        check_line("GE\tT / HTTP/1.1", Some("\tT / HTTP/1.1"));
        check_line(" GET / HTTP/1.1", Some(" GET / HTTP/1.1"));
        check_line("\nGET / HTTP/1.1", Some("\nGET / HTTP/1.1"));
    }

    #[test]
    fn a_body_ends_where_its_headers_say() {
        check_body("", "", None);
        check_body("Content-Length: 5\r\n", "a\r\n b", None);
        check_body("content-length:\t5 \r\nX: y\r\nContent-Length: 05\r\n", "abcde", None);
        check_body("X-Content-Length: 5\r\nContent-Length-X: 5\r\n", "", None);
        check_body("Content-Length: 5\n", "abcde", None);
        check_body("Transfer-Encoding: Chunked\r\n", "5\r\na\r\n b\r\n0\r\n\r\n", None);
        check_body("Transfer-Encoding: chunked \r\n", "a ;b=c\r\n0123456789\r\n000\r\nX: y\r\n\r\n", None);
    }

    #[test]
    fn a_length_is_a_number_and_one() {
        for bad in ["", "-1", "+1", "1, 1", "1a", "0x1", "18446744073709551616", LONG] {
            let request = format!("POST / HTTP/1.1\r\nContent-Length: {bad}\r\n");
            check(&request, Some(request.len() - 1));
        }
        let request = "POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n";
        check(request, Some(request.len() - 1));
    }

    #[test]
    fn chunks_have_sizes_and_ends() {
        let check = |body: &str, bad: &str| check_body("Transfer-Encoding: chunked\r\n", body, Some(bad));
        check("\r\n0\r\n\r\n", "\r\n0\r\n\r\n");
        check(";a\r\n0\r\n\r\n", ";a\r\n0\r\n\r\n");
        check(" 1\r\na\r\n0\r\n\r\n", " 1\r\na\r\n0\r\n\r\n");
        check("1 1\r\na\r\n0\r\n\r\n", "1\r\na\r\n0\r\n\r\n");
        check("0x1\r\n", "x1\r\n");
        check("1\na\r\n0\r\n\r\n", "\na\r\n0\r\n\r\n");
        check("1\r\rna", "\rna");
        check("1;\na", "\na");
        check("1\r\nab\r\n", "b\r\n");
        check("1\r\na\n", "\n");
        check("1\r\na\rb", "b");
        check("1000000000000000\r\n", "0\r\n");
        check("0\r\nX: y\n", "\n");
        check("0\r\nX\rY", "Y");
        check("0\r\n\rX", "X");
    }

    #[test]
    fn lines_of_a_head_are_not_folded() {
        for (line, bad) in
            [(" X: y\r\n", 7), ("\tX: y\r\n", 7), (":\r\n", 3), ("X\r\n", 2), ("X\n", 1), ("\rX", 1)]
        {
            let request = format!("GET / HTTP/1.1\r\n{line}");
            check(&request, Some(request.len() - bad));
        }
    }

    #[test]
    fn what_is_refused_with_a_reason_passes_to_its_end() {
        let both = "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n";
        for headers in [
            both,
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n",
        ] {
            let mut framing = Framing::default();
            assert_eq!(framing.read(format!("POST / HTTP/1.1\r\n{headers}\r\n\0\0").as_bytes()), Ok(()));
            assert_eq!(framing.at, At::Anything);
        }
    }
}
