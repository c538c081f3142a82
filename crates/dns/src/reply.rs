//! Writing an answer: what fits, and what is said if something does not.

use crate::table::{RecordSet, data_at};
use crate::turns::Turns;
use crate::wire::{Edns, HEADER_BYTES, Head, PLAIN_UDP_BYTES, Query, Rcode, UDP_BYTES_MAX, flag, rtype};

/// Bytes of OPT without options (RFC 6891, 6.1.2).
const OPT_BYTES: usize = 11;
/// Bytes of an extended error without a text (RFC 8914, 2).
const EXTENDED_ERROR_BYTES: usize = 6;
/// The option's number.
const EXTENDED_ERROR: u16 = 15;

/// The longest message over TCP, whose length has two bytes (RFC 1035, 4.2.2).
const TCP_BYTES_MAX: usize = 65_535;

/// Why an answer is less than it could be (RFC 8914, 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExtendedError {
    /// What is said was true some time ago.
    StaleAnswer,
    /// There is no zone yet.
    NotReady,
    /// Nobody has said for some time that the zone is the newest.
    NoReachableAuthority,
}

impl ExtendedError {
    const fn number(self) -> u16 {
        match self {
            ExtendedError::StaleAnswer => 3,
            ExtendedError::NotReady => 14,
            ExtendedError::NoReachableAuthority => 22,
        }
    }
}

/// How a message travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// An answer that is being written.
pub(crate) struct Reply<'a> {
    bytes: &'a mut Vec<u8>,
    head: Head,
    edns: Option<Edns>,
    /// Records end before this: the rest is OPT's.
    limit: usize,
    body_at: usize,
    answers: u16,
    authorities: u16,
    is_truncated: bool,
    flags: u16,
    extended_error: Option<ExtendedError>,
}

impl<'a> Reply<'a> {
    /// Begins an answer with the question as it came.
    pub(crate) fn new(bytes: &'a mut Vec<u8>, query: &Query<'_>, transport: Transport) -> Reply<'a> {
        let limit = match transport {
            Transport::Udp => udp_bytes_max(query.edns),
            Transport::Tcp => TCP_BYTES_MAX,
        };
        let opt = if query.edns.is_some() { OPT_BYTES + EXTENDED_ERROR_BYTES } else { 0 };
        bytes.clear();
        bytes.resize(HEADER_BYTES, 0);
        bytes.extend_from_slice(query.question);
        Reply {
            body_at: bytes.len(),
            bytes,
            head: query.head,
            edns: query.edns,
            limit: limit - opt,
            answers: 0,
            authorities: 0,
            is_truncated: false,
            flags: 0,
            extended_error: None,
        }
    }

    /// Adds flags of the header.
    pub(crate) const fn add_flags(&mut self, flags: u16) {
        self.flags |= flags;
    }

    pub(crate) const fn set_extended_error(&mut self, error: ExtendedError) {
        self.extended_error = Some(error);
    }

    /// Adds the records of a set, as many as fit, beginning with the one whose turn it is. Gives where the first one's data stands.
    pub(crate) fn add_answers(&mut self, set: &RecordSet, owner: u16, turns: &Turns) -> usize {
        let data_at = data_at(self.bytes.len());
        let count = set.len();
        let first = if count > 1 { turns.next(set.slot) % count } else { 0 };
        for index in (first..count).chain(0..first) {
            let record = set.record(index);
            if !self.fits(record.len()) {
                break;
            }
            self.bytes.extend_from_slice(&owner.to_be_bytes());
            self.bytes.extend_from_slice(&record[2..]);
            self.answers += 1;
        }
        data_at
    }

    /// Adds a record as it is, if it fits. Those that come after one that did not are left out.
    pub(crate) fn add_answer(&mut self, record: &[u8]) {
        if self.fits(record.len()) {
            self.bytes.extend_from_slice(record);
            self.answers += 1;
        }
    }

    /// Adds SOA, which says whose word it is that there is nothing.
    pub(crate) fn add_authority(&mut self, soa: &[u8], owner: u16) {
        if self.fits(soa.len() + 2) {
            self.bytes.extend_from_slice(&owner.to_be_bytes());
            self.bytes.extend_from_slice(soa);
            self.authorities += 1;
        }
    }

    /// Takes all records back.
    pub(crate) fn forget_records(&mut self) {
        self.bytes.truncate(self.body_at);
        (self.answers, self.authorities, self.is_truncated) = (0, 0, false);
    }

    fn fits(&mut self, more: usize) -> bool {
        self.is_truncated |= self.bytes.len() + more > self.limit;
        !self.is_truncated
    }

    /// Ends the answer. Says whether it was cut.
    pub(crate) fn finish(self, rcode: Rcode) -> bool {
        if let Some(edns) = self.edns {
            push_opt(self.bytes, edns, rcode, self.extended_error);
        }
        let truncated = if self.is_truncated { flag::TRUNCATED } else { 0 };
        write_header(self.bytes, self.head, self.flags | truncated, rcode);
        let additional = u16::from(self.edns.is_some());
        for (at, count) in [(4, 1), (6, self.answers), (8, self.authorities), (10, additional)] {
            self.bytes[at..at + 2].copy_from_slice(&u16::to_be_bytes(count));
        }
        self.is_truncated
    }
}

/// Writes a whole answer to a message whose question cannot be given back.
pub(crate) fn refuse(bytes: &mut Vec<u8>, head: Head, rcode: Rcode) {
    bytes.clear();
    bytes.resize(HEADER_BYTES, 0);
    write_header(bytes, head, 0, rcode);
}

/// How long an answer over UDP may be. A client that says less than every host can take means that (RFC 6891, 6.2.3).
pub(crate) fn udp_bytes_max(edns: Option<Edns>) -> usize {
    edns.map_or(PLAIN_UDP_BYTES, |edns| usize::from(edns.payload_bytes).clamp(PLAIN_UDP_BYTES, UDP_BYTES_MAX))
}

fn write_header(bytes: &mut [u8], head: Head, flags: u16, rcode: Rcode) {
    let kept = head.flags & (flag::OPCODE | flag::RECURSION_DESIRED);
    let flags = flag::RESPONSE | kept | flags | (rcode.number() & 0x000f);
    bytes[..2].copy_from_slice(&head.id.to_be_bytes());
    bytes[2..4].copy_from_slice(&flags.to_be_bytes());
}

fn push_opt(bytes: &mut Vec<u8>, edns: Edns, rcode: Rcode, error: Option<ExtendedError>) {
    let [high, low] = rtype::OPT.to_be_bytes();
    let [payload_high, payload_low] = u16::try_from(UDP_BYTES_MAX).unwrap_or(u16::MAX).to_be_bytes();
    let extended_rcode = u8::try_from(rcode.number() >> 4).unwrap_or_default();
    let flags = if edns.is_dnssec_ok { 0x80 } else { 0 };
    bytes.extend_from_slice(&[0, high, low, payload_high, payload_low, extended_rcode, 0, flags, 0]);
    match error {
        None => bytes.extend_from_slice(&[0, 0]),
        Some(error) => {
            // The length of all options, then the option: its number, its length, and the error.
            for number in [6, EXTENDED_ERROR, 2, error.number()] {
                bytes.extend_from_slice(&u16::to_be_bytes(number));
            }
        }
    }
}
