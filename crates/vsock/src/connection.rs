//! One connection between a guest's port and a host's port: its phase, its credit and its buffer.
//!
//! ```text
//!   host connects -> Requested --RESPONSE--> Open <--host listener answers-- (guest's REQUEST)
//!                        |                    |
//!           host hung up |                    | both directions finished by the host: SHUTDOWN(both)
//!                        v                    v
//!                     Ending <--deadline-- Closing --RST--> gone
//!                        |
//!               RST sent |     Open --guest's RST, bytes left for the host--> Draining --written, or deadline--> gone
//!                        v
//!                       gone
//! ```

use std::collections::VecDeque;
use std::time::Duration;

use crate::packet::{
    HOST_CID, Header, Operation, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM,
};

/// Bytes that a guest may have on the way to one host program; they wait here while that program does not read.
/// It bounds this process: connections times this. 128 KiB hold two of the largest packets, so a guest never stalls on us.
pub const BUFFER_BYTES_MAX: u32 = 128 * 1024;

/// A guest is told of new space once this much of it has been freed since it was last told: often enough that it never
/// stalls with an empty buffer here, seldom enough that small writes do not double the packets.
const CREDIT_STEP_BYTES: u32 = BUFFER_BYTES_MAX / 4;

/// A drained buffer with more capacity than this gives its memory back.
const BUFFER_BYTES_KEPT: usize = 16 * 1024;

/// Names a connection for as long as this process lives; never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// The pair of ports, which is a connection's name on the wire (both addresses are fixed).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ports {
    pub(crate) guest: u32,
    pub(crate) host: u32,
}

/// Which side asked for the connection: each side has a limit of its own, so that a guest cannot use up the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Host,
    Guest,
}

/// See the picture at the head of the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The host asked; `sent` tells whether the guest has seen it.
    Requested { sent: bool },
    /// Bytes flow.
    Open,
    /// The host has finished and its socket is closed; the guest was told so and owes a RST.
    Closing,
    /// Only our RST is missing.
    Ending,
    /// The guest has gone; the host still has to read what the guest had sent.
    Draining,
}

/// Packets without payload that a connection owes to the guest: a set, so they cannot pile up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Owed {
    pub(crate) request: bool,
    pub(crate) response: bool,
    pub(crate) credit: bool,
    pub(crate) shutdown: bool,
    pub(crate) reset: bool,
}

impl Owed {
    /// Takes the next one; a RST replaces all others.
    pub(crate) fn take(&mut self) -> Option<Operation> {
        if self.reset {
            *self = Self::default();
            return Some(Operation::Reset);
        }
        let order = [
            (&mut self.request, Operation::Request),
            (&mut self.response, Operation::Response),
            (&mut self.credit, Operation::CreditUpdate),
            (&mut self.shutdown, Operation::Shutdown),
        ];
        order.into_iter().find_map(|(owed, operation)| std::mem::take(owed).then_some(operation))
    }

    pub(crate) fn any(self) -> bool {
        self != Self::default()
    }
}

/// State of one connection. Fields are plain, because [`crate::machine::Machine`] alone changes them.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) ports: Ports,
    pub(crate) origin: Origin,
    pub(crate) phase: Phase,
    pub(crate) owed: Owed,
    /// Stands in the machine's queue of turns (at most once).
    pub(crate) in_turns: bool,
    /// When the phase ends by itself, on the machine's clock.
    pub(crate) deadline: Option<Duration>,

    /// Bytes for the host program, oldest first; the first `greeting_bytes` are ours (`OK …`), not the guest's.
    to_host: VecDeque<u8>,
    greeting_bytes: usize,
    /// Guest's bytes taken in and given to the host, modulo 2^32, and what the guest was told of the latter.
    received_bytes: u32,
    forwarded_bytes: u32,
    told_bytes: u32,

    /// Bytes given to the guest, and the guest's own account of them.
    sent_bytes: u32,
    guest_buffer_bytes: u32,
    guest_forwarded_bytes: u32,

    /// The host's socket may have bytes to read.
    pub(crate) host_readable: bool,
    /// The host program has finished sending.
    pub(crate) host_ended: bool,
    /// The host program can take no more.
    pub(crate) host_refuses: bool,
    /// We have shut down the writing side of the host's socket.
    pub(crate) host_write_shut: bool,
    /// Directions that the guest has finished with (SHUTDOWN flags).
    pub(crate) guest_shut: u32,
    /// Directions that the guest was told of (SHUTDOWN flags).
    pub(crate) told_shut: u32,
}

impl Connection {
    pub(crate) fn new(ports: Ports, origin: Origin, phase: Phase) -> Self {
        Self {
            ports,
            origin,
            phase,
            owed: Owed::default(),
            in_turns: false,
            deadline: None,
            to_host: VecDeque::new(),
            greeting_bytes: 0,
            received_bytes: 0,
            forwarded_bytes: 0,
            told_bytes: 0,
            sent_bytes: 0,
            guest_buffer_bytes: 0,
            guest_forwarded_bytes: 0,
            host_readable: true,
            host_ended: false,
            host_refuses: false,
            host_write_shut: false,
            guest_shut: 0,
            told_shut: 0,
        }
    }

    /// Takes the guest's account of its buffer from a packet.
    pub(crate) fn note_credit(&mut self, header: &Header) {
        self.guest_buffer_bytes = header.buffer_bytes;
        self.guest_forwarded_bytes = header.forwarded_bytes;
    }

    /// Bytes that the guest has room for. A guest that claims to have taken more than it was sent gets nothing:
    /// the subtraction wraps, and what it calls in flight exceeds any buffer.
    pub(crate) fn credit(&self) -> u32 {
        self.guest_buffer_bytes.saturating_sub(self.sent_bytes.wrapping_sub(self.guest_forwarded_bytes))
    }

    /// Whether the host's socket should be read for the guest now.
    pub(crate) fn wants_data(&self) -> bool {
        self.phase == Phase::Open
            && self.host_readable
            && !self.host_ended
            && self.guest_shut & SHUTDOWN_RECEIVE == 0
            && self.credit() > 0
    }

    pub(crate) fn sent(&mut self, bytes: u32) {
        self.sent_bytes = self.sent_bytes.wrapping_add(bytes);
    }

    /// Takes bytes from the guest; false if it sent more than it was allowed to, and then nothing was taken.
    #[must_use]
    pub(crate) fn receive(&mut self, payload: &[u8]) -> bool {
        let held = self.received_bytes.wrapping_sub(self.forwarded_bytes);
        let Ok(length) = u32::try_from(payload.len()) else { return false };
        if length > BUFFER_BYTES_MAX - held.min(BUFFER_BYTES_MAX) {
            return false;
        }
        self.received_bytes = self.received_bytes.wrapping_add(length);
        if self.host_refuses {
            self.forwarded_bytes = self.received_bytes;
            self.note_space();
        } else {
            self.to_host.extend(payload);
        }
        true
    }

    /// Puts the answer to the host's CONNECT in front of all that the guest will send.
    pub(crate) fn greet(&mut self) {
        let line = format!("OK {}\n", self.ports.host);
        self.greeting_bytes = line.len();
        self.to_host.extend(line.as_bytes());
    }

    /// The next bytes for the host program; empty if there are none.
    pub(crate) fn to_host(&self) -> &[u8] {
        self.to_host.as_slices().0
    }

    pub(crate) fn drained(&self) -> bool {
        self.to_host.is_empty()
    }

    /// The host program took `bytes` of [`Self::to_host`].
    pub(crate) fn host_took(&mut self, bytes: usize) {
        let bytes = bytes.min(self.to_host.len());
        self.to_host.drain(..bytes);
        let greeting = bytes.min(self.greeting_bytes);
        self.greeting_bytes -= greeting;
        // `to_host` holds at most a greeting and BUFFER_BYTES_MAX, so this always fits.
        let guests = u32::try_from(bytes - greeting).unwrap_or(BUFFER_BYTES_MAX);
        self.forwarded_bytes = self.forwarded_bytes.wrapping_add(guests);
        if self.to_host.is_empty() && self.to_host.capacity() > BUFFER_BYTES_KEPT {
            self.to_host = VecDeque::new();
        }
        self.note_space();
    }

    /// Throws away what the host will never read.
    pub(crate) fn discard(&mut self) {
        self.to_host = VecDeque::new();
        self.greeting_bytes = 0;
        self.forwarded_bytes = self.received_bytes;
    }

    fn note_space(&mut self) {
        let news = self.forwarded_bytes.wrapping_sub(self.told_bytes) >= CREDIT_STEP_BYTES;
        if news && self.phase == Phase::Open && self.guest_shut & SHUTDOWN_SEND == 0 {
            self.owed.credit = true;
        }
    }

    /// SHUTDOWN flags that describe the host's side now.
    pub(crate) fn host_shut(&self) -> u32 {
        let send = if self.host_ended { SHUTDOWN_SEND } else { 0 };
        let receive = if self.host_refuses { SHUTDOWN_RECEIVE } else { 0 };
        send | receive
    }

    pub(crate) fn guest_closed(&self) -> bool {
        self.guest_shut & SHUTDOWN_BOTH == SHUTDOWN_BOTH
    }

    /// A header for the guest. Every packet tells our free space, so this also notes what was told.
    pub(crate) fn header(&mut self, guest_cid: u64, operation: Operation, length: u32) -> Header {
        self.told_bytes = self.forwarded_bytes;
        Header {
            source_cid: HOST_CID,
            destination_cid: guest_cid,
            source_port: self.ports.host,
            destination_port: self.ports.guest,
            length,
            kind: TYPE_STREAM,
            operation: operation.code(),
            flags: if operation == Operation::Shutdown { self.told_shut } else { 0 },
            buffer_bytes: BUFFER_BYTES_MAX,
            forwarded_bytes: self.forwarded_bytes,
        }
    }
}
