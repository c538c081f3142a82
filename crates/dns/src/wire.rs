//! The form of messages (RFC 1035, 4; RFC 6891): reading queries, and the numbers that both sides use.
//!
//! Of a message only what a query has is read: a header, one question, and among the additional records OPT. Every length
//! is looked at before it is believed, and no compressed name is followed, so there is nothing to loop in.

use serde::Serialize;

/// Bytes of a header.
pub(crate) const HEADER_BYTES: usize = 12;
/// The longest name, its lengths and its end included (RFC 1035, 2.3.4).
pub(crate) const NAME_BYTES_MAX: usize = 255;
/// The longest answer over UDP without EDNS (RFC 1035, 4.2.1).
pub(crate) const PLAIN_UDP_BYTES: usize = 512;
/// The longest answer over UDP with EDNS: what passes every path without fragments (RFC 9715).
pub(crate) const UDP_BYTES_MAX: usize = 1_232;
/// The longest query that is read. Names have 255 bytes and options few: what is longer is no honest query.
pub(crate) const QUERY_BYTES_MAX: usize = 4_096;
/// Additional records of a query that are looked at, to find OPT: it stands alone, or beside a signature.
const ADDITIONAL_MAX: u16 = 4;

/// A pointer to the name of the question, which always stands after the header (RFC 1035, 4.1.4).
pub(crate) const QUESTION_NAME: u16 = 0xc00c;

/// Types of records.
pub(crate) mod rtype {
    pub(crate) const A: u16 = 1;
    pub(crate) const NS: u16 = 2;
    pub(crate) const CNAME: u16 = 5;
    pub(crate) const SOA: u16 = 6;
    pub(crate) const PTR: u16 = 12;
    pub(crate) const MX: u16 = 15;
    pub(crate) const TXT: u16 = 16;
    pub(crate) const AAAA: u16 = 28;
    pub(crate) const SRV: u16 = 33;
    pub(crate) const OPT: u16 = 41;
    pub(crate) const ANY: u16 = 255;
    /// From TKEY to MAILA: transfers, signatures and other questions that are not for a record.
    pub(crate) const NO_RECORDS: std::ops::RangeInclusive<u16> = 249..=254;
}

/// The class of the Internet, the only one that is answered.
pub(crate) const CLASS_IN: u16 = 1;

/// How an answer ended (RFC 1035, 4.1.1; RFC 6891, 6.1.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Rcode {
    /// The name is there; it may have no record of that type.
    NoError,
    /// The query could not be read.
    FormErr,
    /// It is not known what is true.
    ServFail,
    /// There is no such name.
    NxDomain,
    /// Another operation than a query.
    NotImp,
    /// Nothing that is answered here.
    Refused,
    /// A version of EDNS that nobody has yet.
    BadVers,
}

impl Rcode {
    /// All of them.
    pub const ALL: [Rcode; 7] = [
        Rcode::NoError,
        Rcode::FormErr,
        Rcode::ServFail,
        Rcode::NxDomain,
        Rcode::NotImp,
        Rcode::Refused,
        Rcode::BadVers,
    ];

    /// Its number on the wire, of 12 bits.
    #[must_use]
    pub const fn number(self) -> u16 {
        match self {
            Rcode::NoError => 0,
            Rcode::FormErr => 1,
            Rcode::ServFail => 2,
            Rcode::NxDomain => 3,
            Rcode::NotImp => 4,
            Rcode::Refused => 5,
            Rcode::BadVers => 16,
        }
    }

    /// Its name, as tools print it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Rcode::NoError => "NOERROR",
            Rcode::FormErr => "FORMERR",
            Rcode::ServFail => "SERVFAIL",
            Rcode::NxDomain => "NXDOMAIN",
            Rcode::NotImp => "NOTIMP",
            Rcode::Refused => "REFUSED",
            Rcode::BadVers => "BADVERS",
        }
    }
}

/// Bits of the header's second word.
pub(crate) mod flag {
    pub(crate) const RESPONSE: u16 = 0x8000;
    pub(crate) const OPCODE: u16 = 0x7800;
    pub(crate) const AUTHORITATIVE: u16 = 0x0400;
    pub(crate) const TRUNCATED: u16 = 0x0200;
    pub(crate) const RECURSION_DESIRED: u16 = 0x0100;
    pub(crate) const RECURSION_AVAILABLE: u16 = 0x0080;
}

/// A name in lower case, as it stands on the wire: labels with their lengths, and the root's at the end.
#[derive(Clone)]
pub(crate) struct LowerName {
    bytes: [u8; NAME_BYTES_MAX],
    length: usize,
}

impl LowerName {
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// Reads an uncompressed name at the beginning of `bytes`. A pointer is no name here: nothing stands before a
    /// question that one could point to.
    pub(crate) fn read(bytes: &[u8]) -> Option<LowerName> {
        let mut name = LowerName { bytes: [0; NAME_BYTES_MAX], length: 0 };
        loop {
            let label = usize::from(*bytes.get(name.length)?);
            let end = name.length + 1 + label;
            if label > 63 || end > NAME_BYTES_MAX {
                return None;
            }
            let from = bytes.get(name.length..end)?;
            let into = &mut name.bytes[name.length..end];
            into.copy_from_slice(from);
            // A length is at most 63, which is no letter.
            into.make_ascii_lowercase();
            name.length = end;
            if label == 0 {
                return Some(name);
            }
        }
    }
}

/// The wire form of a name that stands as text in a zone. The caller has checked it (`Zone::check`).
pub(crate) fn encode(name: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(name.len() + 2);
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).unwrap_or(u8::MAX));
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    bytes
}

/// The wire form without its first label; none of the root's.
pub(crate) fn parent(name: &[u8]) -> Option<&[u8]> {
    match *name.first()? {
        0 => None,
        length => name.get(1 + usize::from(length)..),
    }
}

/// What a client said of EDNS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Edns {
    pub(crate) payload_bytes: u16,
    pub(crate) version: u8,
    /// The bit DO, which goes back as it came (RFC 3225, 3).
    pub(crate) is_dnssec_ok: bool,
    /// Where the payload size stands in the message.
    pub(crate) payload_at: usize,
}

/// A query with one question.
pub(crate) struct Query<'a> {
    pub(crate) head: Head,
    /// Name, type and class as they came: what goes back has the same letters, upper and lower.
    pub(crate) question: &'a [u8],
    pub(crate) name: LowerName,
    pub(crate) rtype: u16,
    pub(crate) class: u16,
    pub(crate) edns: Option<Edns>,
}

/// The part of a message that can be read of every one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) id: u16,
    pub(crate) flags: u16,
}

/// Why there is no query to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unread {
    /// No message, or an answer: an answer to that could go on for ever.
    Silence,
    /// It gets this, without its question.
    Refusal(Head, Rcode),
}

/// Reads a message.
pub(crate) fn read(message: &[u8]) -> Result<Query<'_>, Unread> {
    if message.len() < HEADER_BYTES {
        return Err(Unread::Silence);
    }
    let word = |at: usize| u16_at(message, at).unwrap_or_default();
    let head = Head { id: word(0), flags: word(2) };
    if head.flags & flag::RESPONSE != 0 {
        return Err(Unread::Silence);
    }
    if head.flags & flag::OPCODE != 0 {
        return Err(Unread::Refusal(head, Rcode::NotImp));
    }
    // More than one question has no meaning (RFC 9619), and a query neither answers nor speaks for a zone.
    let is_query = word(4) == 1 && word(6) == 0 && word(8) == 0;
    let body = message.get(HEADER_BYTES..).filter(|_| is_query);
    body.and_then(|body| question(head, message, body, word(10))).ok_or(Unread::Refusal(head, Rcode::FormErr))
}

fn question<'a>(head: Head, message: &[u8], body: &'a [u8], additional: u16) -> Option<Query<'a>> {
    let name = LowerName::read(body)?;
    let end = name.length + 4;
    let question = body.get(..end)?;
    let (rtype, class) = (u16_at(question, name.length)?, u16_at(question, name.length + 2)?);
    let edns = edns(message, HEADER_BYTES + end, additional)?;
    Some(Query { head, question, name, rtype, class, edns })
}

/// OPT among the additional records, which end where the message does. The outer `None` says that they cannot be read.
#[expect(clippy::option_option, reason = "no OPT is not the same as no message")]
fn edns(message: &[u8], mut at: usize, additional: u16) -> Option<Option<Edns>> {
    let mut edns = None;
    if additional > ADDITIONAL_MAX {
        return None;
    }
    for _ in 0..additional {
        let owner = at;
        at = skip_name(message, at)?;
        let (rtype, class) = (u16_at(message, at)?, u16_at(message, at + 2)?);
        if rtype == rtype::OPT {
            let is_at_root = message.get(owner) == Some(&0);
            if edns.is_some() || !is_at_root {
                return None;
            }
            edns = Some(Edns {
                payload_bytes: class,
                version: *message.get(at + 5)?,
                is_dnssec_ok: message.get(at + 6)? & 0x80 != 0,
                payload_at: at + 2,
            });
        }
        at += 10 + usize::from(u16_at(message, at + 8)?);
    }
    (at == message.len()).then_some(edns)
}

/// Where the name that begins at `at` ends. A pointer ends it, and is not followed.
pub(crate) fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            label @ 1..=63 => at += 1 + usize::from(label),
            0xc0.. => return message.get(at + 1).map(|_| at + 2),
            _ => return None,
        }
    }
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes)
}
