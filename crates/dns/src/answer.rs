//! What is answered: a pure function of a table, of what is known of its age, and of a query.
//!
//! ```text
//! no message, or an answer            -> silence
//! unreadable, not a query, not ours   -> FORMERR, NOTIMP, BADVERS, REFUSED
//! another's name                      -> for others to answer, or REFUSED
//! a name of the zone                  -> its records, or SOA and that there is none of that type
//! no name of the zone                 -> NXDOMAIN; SERVFAIL if the zone may have changed meanwhile
//! ```

#[cfg(test)]
mod tests;

use crate::reply::{self, ExtendedError, Reply, Transport};
use crate::table::{Place, RecordSet, Table};
use crate::turns::Turns;
use crate::wire::{self, CLASS_IN, HEADER_BYTES, QUESTION_NAME, Query, Rcode, Unread, flag, rtype};

/// How many aliases are followed from one name. Their owners check no chain: a longer one, or a ring, is answered as far
/// as this.
const ALIASES_MAX: usize = 8;

/// What is known of a table's age.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Freshness {
    /// There is no zone: the table is that of an unknown one.
    Missing,
    /// The zone may have changed since.
    Stale,
    /// The zone was this one a moment ago.
    Fresh,
}

/// What an answer depends on beside the table and the query.
pub(crate) struct Context<'a> {
    pub(crate) freshness: Freshness,
    pub(crate) transport: Transport,
    /// Whether others are asked for names that are not the zone's.
    pub(crate) does_forward: bool,
    pub(crate) turns: &'a Turns,
}

/// What is to be done with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing.
    Silence,
    /// The reply is to be sent.
    Send {
        rcode: Rcode,
        /// Something did not fit.
        is_truncated: bool,
    },
    /// Others are to be asked.
    Forward,
    /// The reply ends with an alias that leaves the zone, and others are to be asked for its target.
    Follow,
}

/// Whether an answer has all that was asked for.
enum Told {
    /// It has, and ends so.
    Whole(Rcode),
    /// It ends with an alias that leaves the zone.
    Alias,
}

/// Answers a message. `reply` is overwritten; it holds the answer if the verdict says so.
pub(crate) fn answer(table: &Table, context: &Context<'_>, message: &[u8], reply: &mut Vec<u8>) -> Verdict {
    let query = match wire::read(message) {
        Ok(query) => query,
        Err(Unread::Silence) => return Verdict::Silence,
        Err(Unread::Refusal(head, rcode)) => {
            reply::refuse(reply, head, rcode);
            return Verdict::Send { rcode, is_truncated: false };
        }
    };
    let refusal = refusal(&query);
    let place = table.look_up(query.name.as_bytes());
    let may_forward = context.does_forward && query.head.flags & flag::RECURSION_DESIRED != 0;
    if may_forward && matches!(place, Place::Outside) && refusal.is_none() {
        return Verdict::Forward;
    }
    let mut reply = Reply::new(reply, &query, context.transport);
    if context.does_forward {
        reply.add_flags(flag::RECURSION_AVAILABLE);
    }
    let told = refusal.map_or_else(|| records(table, context, &query, place, &mut reply), Told::Whole);
    let (rcode, leaves) = match told {
        Told::Whole(rcode) => (rcode, false),
        Told::Alias => (Rcode::NoError, true),
    };
    if matches!(rcode, Rcode::NoError | Rcode::NxDomain) {
        reply.add_flags(flag::AUTHORITATIVE);
        if context.freshness == Freshness::Stale {
            reply.set_extended_error(ExtendedError::StaleAnswer);
        }
    }
    let is_truncated = reply.finish(rcode);
    // What was cut is asked for again over TCP, and then gone on with.
    if leaves && may_forward && !is_truncated {
        return Verdict::Follow;
    }
    Verdict::Send { rcode, is_truncated }
}

/// Writes the answer to a query that others were to be asked for, and could not be.
pub(crate) fn fail(message: &[u8], transport: Transport, reply: &mut Vec<u8>) {
    refer(message, transport, Rcode::ServFail, 0, reply);
}

/// Writes the answer that the client is to ask again over TCP.
pub(crate) fn truncate(message: &[u8], reply: &mut Vec<u8>) {
    refer(message, Transport::Udp, Rcode::NoError, flag::TRUNCATED, reply);
}

fn refer(message: &[u8], transport: Transport, rcode: Rcode, flags: u16, reply: &mut Vec<u8>) {
    reply.clear();
    if let Ok(query) = wire::read(message) {
        let mut reply = Reply::new(reply, &query, transport);
        reply.add_flags(flag::RECURSION_AVAILABLE | flags);
        reply.finish(rcode);
    }
}

/// Why a query is answered without a look at its name, if it is.
fn refusal(query: &Query<'_>) -> Option<Rcode> {
    if query.edns.is_some_and(|edns| edns.version > 0) {
        Some(Rcode::BadVers)
    } else if query.rtype == rtype::OPT {
        Some(Rcode::FormErr)
    } else if query.class != CLASS_IN || rtype::NO_RECORDS.contains(&query.rtype) {
        Some(Rcode::Refused)
    } else {
        None
    }
}

/// Adds what the name has, following aliases within the zone (RFC 1034, 4.3.2).
fn records<'a>(
    table: &'a Table,
    context: &Context<'_>,
    query: &Query<'_>,
    place: Place<'a>,
    reply: &mut Reply<'_>,
) -> Told {
    let Place::Zone { mut apex_at, mut sets } = place else {
        return Told::Whole(Rcode::Refused);
    };
    let mut name_at = HEADER_BYTES;
    for _ in 0..=ALIASES_MAX {
        let Some(known) = sets.filter(|_| context.freshness != Freshness::Missing) else {
            return Told::Whole(nothing(table, context, name_at + apex_at, reply));
        };
        let Some(set) = found(known, query.rtype) else {
            reply.add_authority(table.soa(), pointer(name_at + apex_at));
            return Told::Whole(Rcode::NoError);
        };
        let data_at = reply.add_answers(set, pointer(name_at), context.turns);
        if set.rtype != rtype::CNAME || matches!(query.rtype, rtype::CNAME | rtype::ANY) {
            return Told::Whole(Rcode::NoError);
        }
        let Place::Zone { apex_at: target_apex_at, sets: target } = table.look_up(set.data()) else {
            return Told::Alias;
        };
        (name_at, apex_at, sets) = (data_at, target_apex_at, target);
    }
    Told::Whole(Rcode::NoError)
}

/// The set that answers a question for this type. A question for anything gets one set, whichever (RFC 8482, 4.1).
fn found(sets: &[RecordSet], asked: u16) -> Option<&RecordSet> {
    if asked == rtype::ANY {
        return sets.first();
    }
    sets.iter().find(|set| set.rtype == asked || set.rtype == rtype::CNAME)
}

/// Says that there is no such name, or that it is not known.
fn nothing(table: &Table, context: &Context<'_>, apex_at: usize, reply: &mut Reply<'_>) -> Rcode {
    let error = match context.freshness {
        Freshness::Fresh => {
            reply.add_authority(table.soa(), pointer(apex_at));
            return Rcode::NxDomain;
        }
        Freshness::Stale => ExtendedError::NoReachableAuthority,
        Freshness::Missing => ExtendedError::NotReady,
    };
    reply.forget_records();
    reply.set_extended_error(error);
    Rcode::ServFail
}

/// A pointer to what stands at `position`. An alias is followed before much stands in the message, so 14 bits suffice
/// (RFC 1035, 4.1.4): a header, a question and eight records of one name each.
fn pointer(position: usize) -> u16 {
    QUESTION_NAME & 0xc000 | u16::try_from(position & 0x3fff).unwrap_or_default()
}
