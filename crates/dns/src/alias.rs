//! Going on where an alias of the zone leaves it: what others answer for its target is put behind it.
//!
//! Clients such as glibc's `getaddrinfo` take what one answer holds and ask no further. Others' records move to another place
//! in another message, so their names are written out: a pointer means a place (RFC 1035, 4.1.4).

use crate::answer;
use crate::reply::{Reply, Transport};
use crate::wire::{self, CLASS_IN, HEADER_BYTES, NAME_BYTES_MAX, Query, Rcode, flag, rtype, u16_at};

/// Bytes of a record between its owner and its data.
const FIXED_BYTES: usize = 10;

/// One record of an answer: where its parts are.
struct Record {
    owner_at: usize,
    rtype: u16,
    /// After the owner.
    fixed_at: usize,
    data_at: usize,
    end: usize,
}

/// The query for the target of the alias with which an answer of ours ends. What the client says by EDNS goes with it.
pub(crate) fn query_for_target(message: &[u8], begun: &[u8]) -> Option<Vec<u8>> {
    let asked = wire::read(message).ok()?;
    let last = answers(begun)?.pop().filter(|record| record.rtype == rtype::CNAME)?;
    let mut query = message[..HEADER_BYTES].to_owned();
    query.extend_from_slice(begun.get(last.data_at..last.end)?);
    query.extend_from_slice(&asked.rtype.to_be_bytes());
    query.extend_from_slice(&CLASS_IN.to_be_bytes());
    query.extend_from_slice(&message[HEADER_BYTES + asked.question.len()..]);
    Some(query)
}

/// Writes the answer: what was begun, and behind it what others answered for the target.
pub(crate) fn join(message: &[u8], begun: &[u8], others: &[u8], transport: Transport, reply: &mut Vec<u8>) {
    let is_written =
        wire::read(message).is_ok_and(|query| write(&query, begun, others, transport, reply).is_some());
    if !is_written {
        answer::fail(message, transport, reply);
    }
}

/// `None` if a message cannot be read; then `reply` holds half an answer.
fn write(
    query: &Query<'_>,
    begun: &[u8],
    others: &[u8],
    transport: Transport,
    reply: &mut Vec<u8>,
) -> Option<()> {
    let rcode = rcode(others)?;
    let own = answers(begun)?;
    let mut reply = Reply::new(reply, query, transport);
    reply.add_flags(flag::AUTHORITATIVE | flag::RECURSION_AVAILABLE);
    for record in &own {
        // Ours stand where they stood, so their pointers hold.
        reply.add_answer(begun.get(record.owner_at..record.end)?);
    }
    let mut bytes = Vec::new();
    for record in answers(others)? {
        bytes.clear();
        expand_name(others, record.owner_at, &mut bytes)?;
        bytes.extend_from_slice(others.get(record.fixed_at..record.data_at)?);
        let data_at = bytes.len();
        expand_data(others, &record, &mut bytes)?;
        let length = u16::try_from(bytes.len() - data_at).ok()?;
        bytes[data_at - 2..data_at].copy_from_slice(&length.to_be_bytes());
        reply.add_answer(&bytes);
    }
    reply.finish(rcode);
    Some(())
}

/// How the others' answer ended. What they refuse or did not understand is no fault of the client.
fn rcode(others: &[u8]) -> Option<Rcode> {
    let number = u16_at(others, 2)? & 0x000f;
    let passed = [Rcode::NoError, Rcode::NxDomain].into_iter().find(|rcode| rcode.number() == number);
    Some(passed.unwrap_or(Rcode::ServFail))
}

/// The records of a message's answer.
fn answers(message: &[u8]) -> Option<Vec<Record>> {
    let mut at = HEADER_BYTES;
    for _ in 0..u16_at(message, 4)? {
        at = wire::skip_name(message, at)? + 4;
    }
    let mut records = Vec::new();
    for _ in 0..u16_at(message, 6)? {
        let owner_at = at;
        let fixed_at = wire::skip_name(message, at)?;
        let data_at = fixed_at + FIXED_BYTES;
        let end = data_at + usize::from(u16_at(message, data_at - 2)?);
        message.get(data_at..end)?;
        records.push(Record { owner_at, rtype: u16_at(message, fixed_at)?, fixed_at, data_at, end });
        at = end;
    }
    Some(records)
}

/// Writes a record's data with its names written out. Only types of RFC 1035 may have pointers in their data
/// (RFC 3597, 4), and some write them for SRV.
fn expand_data(message: &[u8], record: &Record, into: &mut Vec<u8>) -> Option<()> {
    let (before, names) = match record.rtype {
        rtype::CNAME | rtype::NS | rtype::PTR => (0, 1),
        rtype::MX => (2, 1),
        rtype::SRV => (6, 1),
        rtype::SOA => (0, 2),
        _ => (record.end - record.data_at, 0),
    };
    let mut at = record.data_at + before;
    into.extend_from_slice(message.get(record.data_at..at)?);
    for _ in 0..names {
        expand_name(message, at, into)?;
        at = wire::skip_name(message, at)?;
    }
    into.extend_from_slice(message.get(at..record.end)?);
    Some(())
}

/// Writes a name out. A pointer leads to before where its name began, so following them ends.
fn expand_name(message: &[u8], mut at: usize, into: &mut Vec<u8>) -> Option<()> {
    let begin = into.len();
    let mut before = at;
    loop {
        let label = *message.get(at)?;
        match label {
            0..=63 => {
                let end = at + 1 + usize::from(label);
                into.extend_from_slice(message.get(at..end)?);
                if into.len() - begin > NAME_BYTES_MAX {
                    return None;
                }
                if label == 0 {
                    return Some(());
                }
                at = end;
            }
            0xc0.. => {
                at = usize::from(u16_at(message, at)? & 0x3fff);
                if at >= before {
                    return None;
                }
                before = at;
            }
            _ => return None,
        }
    }
}
