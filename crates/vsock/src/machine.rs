//! What a vsock device decides: packets and socket events in, packets and socket actions out. No I/O, no clock.
//!
//! The guest is hostile: whatever it sends costs at most its own connections. The bounds are [`HOST_CONNECTIONS_MAX`],
//! [`HOST_LINGERING_MAX`], [`GUEST_CONNECTIONS_MAX`], [`REFUSALS_MAX`] and [`crate::connection::BUFFER_BYTES_MAX`]; together they bound memory to
//! about 33 MiB under attack and to a few hundred KiB in peace.
//!
//! Bytes from the host to the guest are never kept here: a socket is read only when the guest's ring has a buffer and the
//! guest has given credit ([`Machine::next`] asks for it). Bytes from the guest wait in their connection's buffer until
//! the host program reads them.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::connection::{Connection, ConnectionId, Origin, Phase, Ports};
use crate::packet::{
    HOST_CID, Header, Operation, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM,
};

/// Connections that host programs may have at once. The worker needs a handful; people's consoles come on top.
pub const HOST_CONNECTIONS_MAX: usize = 128;

/// Connections of the host's side whose program has gone and whose guest has not yet said goodbye. They hold nothing but
/// their names, so that programs which come and go quickly do not meet [`HOST_CONNECTIONS_MAX`].
pub const HOST_LINGERING_MAX: usize = 1024;

/// Connections that the guest may have at once to listeners of the host.
pub const GUEST_CONNECTIONS_MAX: usize = 128;

/// RSTs for packets without a connection that wait for a ring buffer. Past that they are dropped, and the guest's
/// connect runs into its own time-out: only a flooding guest gets there.
pub const REFUSALS_MAX: usize = 256;

/// How long a guest may take to answer our SHUTDOWN before it gets a RST. Linux gives its peer 8 s for the same.
pub const CLOSE_MAX: Duration = Duration::from_secs(8);

/// How long a host program may take to read what a guest wrote before it went away.
pub const DRAIN_MAX: Duration = Duration::from_secs(60);

/// Host ports begin here, far from those that guests and people choose (as Firecracker does).
const HOST_PORT_FIRST: u32 = 1 << 30;

/// Something to do on a host socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Connect to the host's listener for `port`, then call [`Machine::dialled`].
    Dial {
        /// The connection that the guest wants.
        connection: ConnectionId,
        /// The port that it named.
        port: u32,
    },
    /// [`Machine::to_host`] has bytes: write them, then call [`Machine::host_wrote`].
    Flush(ConnectionId),
    /// The guest will receive no more.
    ShutRead(ConnectionId),
    /// The guest will send no more, and all it had sent is written.
    ShutWrite(ConnectionId),
    /// Close the socket; the machine has forgotten it or needs it no more.
    Close(ConnectionId),
}

/// What fills the guest's next ring buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outgoing {
    /// A packet without payload.
    Control(Header),
    /// Read at most `bytes_max` from the host's socket, then call [`Machine::data_read`], [`Machine::data_blocked`],
    /// [`Machine::host_ended`] or [`Machine::host_hung_up`].
    Data {
        /// Whose socket.
        connection: ConnectionId,
        /// What the guest has room for.
        bytes_max: u32,
    },
}

/// The device. `now` is any monotonic clock's time; it only moves [`CLOSE_MAX`] and [`DRAIN_MAX`].
#[derive(Debug)]
pub struct Machine {
    guest_cid: u64,
    connections: HashMap<ConnectionId, Connection>,
    by_ports: HashMap<Ports, ConnectionId>,
    turns: VecDeque<ConnectionId>,
    refusals: VecDeque<Header>,
    effects: VecDeque<Effect>,
    next_id: u64,
    next_host_port: u32,
}

impl Machine {
    /// A device without connections, for the guest with this address.
    pub fn new(guest_cid: u64) -> Self {
        Self {
            guest_cid,
            connections: HashMap::new(),
            by_ports: HashMap::new(),
            turns: VecDeque::new(),
            refusals: VecDeque::new(),
            effects: VecDeque::new(),
            next_id: 0,
            next_host_port: HOST_PORT_FIRST,
        }
    }

    /// A name that was never given before.
    pub fn mint(&mut self) -> ConnectionId {
        self.next_id += 1;
        ConnectionId(self.next_id)
    }

    /// The next thing to do on a host socket. To be asked until nothing comes, after each of the calls below.
    pub fn effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Whether the guest's ring could be filled with something.
    pub fn has_outgoing(&self) -> bool {
        !self.refusals.is_empty() || !self.turns.is_empty()
    }

    /// A host program wrote `CONNECT port`; `id` comes from [`Machine::mint`].
    pub fn host_connects(&mut self, id: ConnectionId, port: u32) {
        let lingering = |connection: &Connection| matches!(connection.phase, Phase::Closing | Phase::Ending);
        let live = self.count(|connection| connection.origin == Origin::Host && !lingering(connection));
        let gone = self.count(|connection| connection.origin == Origin::Host && lingering(connection));
        if live >= HOST_CONNECTIONS_MAX || gone >= HOST_LINGERING_MAX {
            self.effects.push_back(Effect::Close(id));
            return;
        }
        let ports = Ports { guest: port, host: self.free_host_port(port) };
        let mut connection = Connection::new(ports, Origin::Host, Phase::Requested { sent: false });
        connection.owed.request = true;
        self.by_ports.insert(ports, id);
        self.connections.insert(id, connection);
        self.take_turn(id);
    }

    /// The answer to [`Effect::Dial`].
    pub fn dialled(&mut self, id: ConnectionId, listening: bool) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if listening {
            connection.owed.response = true;
        } else {
            connection.phase = Phase::Ending;
            connection.owed.reset = true;
        }
        self.take_turn(id);
    }

    /// The host's socket may have bytes, or the end of them.
    pub fn host_readable(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.host_readable = true;
        self.take_turn(id);
    }

    /// [`Outgoing::Data`] gave bytes: the header that goes before them, or nothing if the connection has gone.
    pub fn data_read(&mut self, id: ConnectionId, bytes: u32) -> Option<Header> {
        let connection = self.connections.get_mut(&id)?;
        let header = connection.header(self.guest_cid, Operation::ReadWrite, bytes);
        connection.owed.credit = false;
        connection.sent(bytes);
        Some(header)
    }

    /// [`Outgoing::Data`] found nothing to read for now.
    pub fn data_blocked(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.host_readable = false;
        }
    }

    /// [`Outgoing::Data`] found the end: the host program sends no more.
    pub fn host_ended(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.host_ended = true;
        self.settle(id);
    }

    /// The host program closed its socket or died: it takes no more, but what it had sent may still be readable.
    pub fn host_hung_up(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        match connection.phase {
            Phase::Requested { sent: false } | Phase::Draining => {
                self.effects.push_back(Effect::Close(id));
                self.forget(id);
            }
            Phase::Requested { sent: true } => self.end(id),
            Phase::Open => {
                connection.host_refuses = true;
                connection.host_readable = true;
                connection.discard();
                self.settle(id);
            }
            Phase::Closing | Phase::Ending => {}
        }
    }

    /// Reading from the host's socket failed: nothing more will come from it either.
    pub fn host_failed(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.host_ended = true;
        }
        self.host_hung_up(id);
    }

    /// The next bytes for a host program; empty when there are none.
    pub fn to_host(&self, id: ConnectionId) -> &[u8] {
        self.connections.get(&id).map_or(&[], Connection::to_host)
    }

    /// A host program took some of [`Machine::to_host`].
    pub fn host_wrote(&mut self, id: ConnectionId, bytes: usize) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.host_took(bytes);
        if connection.phase == Phase::Draining {
            if connection.drained() {
                self.effects.push_back(Effect::Close(id));
                self.forget(id);
            }
            return;
        }
        self.settle(id);
    }

    /// The guest sent a packet. `payload` has the header's `length` bytes, or is empty where that length was a lie.
    pub fn packet(&mut self, header: &Header, payload: &[u8], now: Duration) {
        if header.source_cid != self.guest_cid {
            return;
        }
        let ports = Ports { guest: header.source_port, host: header.destination_port };
        let known = self.by_ports.get(&ports).copied();
        let operation = Operation::from_code(header.operation)
            .filter(|_| header.kind == TYPE_STREAM && header.destination_cid == HOST_CID)
            .filter(|_| usize::try_from(header.length).is_ok_and(|length| length == payload.len()));
        match (operation, known) {
            (Some(Operation::Reset), None) => {}
            (Some(Operation::Request), None) => self.guest_connects(header, ports),
            (_, None) => self.refuse(header),
            (None, Some(id)) => self.end(id),
            (Some(operation), Some(id)) => self.packet_on(id, operation, header, payload, now),
        }
    }

    /// The guest's driver began anew: it knows no connection any more.
    pub fn guest_restarted(&mut self, now: Duration) {
        self.refusals.clear();
        let ids: Vec<ConnectionId> = self.connections.keys().copied().collect();
        for id in ids {
            self.guest_left(id, now);
        }
    }

    /// The next content for one buffer of the guest's ring.
    pub fn next(&mut self, now: Duration) -> Option<Outgoing> {
        if let Some(refusal) = self.refusals.pop_front() {
            return Some(Outgoing::Control(refusal));
        }
        while let Some(id) = self.turns.pop_front() {
            let Some(connection) = self.connections.get_mut(&id) else { continue };
            connection.in_turns = false;
            let outgoing = match connection.owed.take() {
                Some(operation) => self.control(id, operation, now),
                None if connection.wants_data() => {
                    Some(Outgoing::Data { connection: id, bytes_max: connection.credit() })
                }
                None => None,
            };
            if outgoing.is_some() {
                self.take_turn(id);
                return outgoing;
            }
        }
        None
    }

    /// When [`Machine::tick`] has to be called next.
    pub fn deadline(&self) -> Option<Duration> {
        self.connections.values().filter_map(|connection| connection.deadline).min()
    }

    /// Ends what has lasted too long.
    pub fn tick(&mut self, now: Duration) {
        let late = |connection: &Connection| connection.deadline.is_some_and(|deadline| deadline <= now);
        let ids: Vec<ConnectionId> =
            self.connections.iter().filter(|(_, connection)| late(connection)).map(|(id, _)| *id).collect();
        for id in ids {
            let draining =
                self.connections.get(&id).is_some_and(|connection| connection.phase == Phase::Draining);
            if draining {
                self.effects.push_back(Effect::Close(id));
                self.forget(id);
            } else {
                self.end(id);
            }
        }
    }

    fn control(&mut self, id: ConnectionId, operation: Operation, now: Duration) -> Option<Outgoing> {
        let connection = self.connections.get_mut(&id)?;
        match operation {
            Operation::Request => connection.phase = Phase::Requested { sent: true },
            Operation::Shutdown => connection.told_shut = connection.host_shut(),
            _ => {}
        }
        let header = connection.header(self.guest_cid, operation, 0);
        if operation == Operation::Reset {
            self.forget(id);
        } else if operation == Operation::Shutdown && header.flags == SHUTDOWN_BOTH {
            connection.phase = Phase::Closing;
            connection.deadline = Some(now + CLOSE_MAX);
            self.effects.push_back(Effect::Close(id));
        }
        Some(Outgoing::Control(header))
    }

    fn guest_connects(&mut self, header: &Header, ports: Ports) {
        if self.count(|connection| connection.origin == Origin::Guest) >= GUEST_CONNECTIONS_MAX {
            self.refuse(header);
            return;
        }
        let id = self.mint();
        let mut connection = Connection::new(ports, Origin::Guest, Phase::Open);
        connection.note_credit(header);
        self.by_ports.insert(ports, id);
        self.connections.insert(id, connection);
        self.effects.push_back(Effect::Dial { connection: id, port: ports.host });
    }

    fn packet_on(
        &mut self,
        id: ConnectionId,
        operation: Operation,
        header: &Header,
        payload: &[u8],
        now: Duration,
    ) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.note_credit(header);
        match (connection.phase, operation) {
            (_, Operation::Reset) => self.guest_left(id, now),
            (Phase::Requested { sent: true }, Operation::Response) => {
                connection.phase = Phase::Open;
                connection.greet();
                self.effects.push_back(Effect::Flush(id));
                self.take_turn(id);
            }
            (Phase::Open, Operation::ReadWrite) => {
                if connection.guest_shut & SHUTDOWN_SEND != 0 || !connection.receive(payload) {
                    self.end(id);
                    return;
                }
                if !connection.drained() {
                    self.effects.push_back(Effect::Flush(id));
                }
                self.take_turn(id);
            }
            (Phase::Open, Operation::Shutdown) => self.guest_shuts(id, header.flags),
            (Phase::Open, Operation::CreditUpdate) => self.take_turn(id),
            (Phase::Open, Operation::CreditRequest) => {
                connection.owed.credit = true;
                self.take_turn(id);
            }
            // Packets that crossed ours: what the host will not read any more, and the guest's own goodbye.
            (Phase::Closing, Operation::Shutdown) if header.flags & SHUTDOWN_BOTH == SHUTDOWN_BOTH => {
                self.end(id);
            }
            (Phase::Closing, Operation::ReadWrite | Operation::Shutdown) => {}
            (Phase::Closing, Operation::CreditUpdate | Operation::CreditRequest) | (Phase::Ending, _) => {}
            _ => self.end(id),
        }
    }

    fn guest_shuts(&mut self, id: ConnectionId, flags: u32) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let news = flags & SHUTDOWN_BOTH & !connection.guest_shut;
        connection.guest_shut |= news;
        if news & SHUTDOWN_RECEIVE != 0 && !connection.guest_closed() {
            self.effects.push_back(Effect::ShutRead(id));
        }
        self.settle(id);
    }

    /// Does what follows from the directions that are finished.
    fn settle(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if connection.phase != Phase::Open {
            return;
        }
        if connection.drained() && connection.guest_closed() {
            self.end(id);
            return;
        }
        let guest_silent = connection.guest_shut & SHUTDOWN_SEND != 0;
        if connection.drained() && guest_silent && !connection.host_write_shut {
            connection.host_write_shut = true;
            self.effects.push_back(Effect::ShutWrite(id));
        }
        if connection.host_shut() != connection.told_shut {
            connection.owed.shutdown = true;
        }
        self.take_turn(id);
    }

    /// Closes the host's socket and owes the guest a RST.
    fn end(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if matches!(connection.phase, Phase::Requested { .. } | Phase::Open) {
            self.effects.push_back(Effect::Close(id));
        }
        connection.phase = Phase::Ending;
        connection.deadline = None;
        connection.discard();
        connection.owed.reset = true;
        self.take_turn(id);
    }

    /// The guest knows the connection no more: nothing is owed to it, but the host may still read what it sent.
    fn guest_left(&mut self, id: ConnectionId, now: Duration) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        match connection.phase {
            Phase::Open if !connection.drained() => {
                connection.phase = Phase::Draining;
                connection.deadline = Some(now + DRAIN_MAX);
                connection.owed = crate::connection::Owed::default();
                self.by_ports.remove(&connection.ports);
            }
            Phase::Draining => {}
            Phase::Open | Phase::Requested { .. } => {
                self.effects.push_back(Effect::Close(id));
                self.forget(id);
            }
            Phase::Closing | Phase::Ending => self.forget(id),
        }
    }

    fn refuse(&mut self, header: &Header) {
        if self.refusals.len() >= REFUSALS_MAX || header.operation == Operation::Reset.code() {
            return;
        }
        self.refusals.push_back(Header {
            source_cid: header.destination_cid,
            destination_cid: self.guest_cid,
            source_port: header.destination_port,
            destination_port: header.source_port,
            kind: header.kind,
            operation: Operation::Reset.code(),
            ..Header::default()
        });
    }

    fn forget(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.remove(&id) else { return };
        if connection.phase != Phase::Draining {
            self.by_ports.remove(&connection.ports);
        }
        if connection.in_turns {
            // Otherwise a guest that opens and resets without giving ring buffers would make the queue grow.
            self.turns.retain(|other| *other != id);
        }
    }

    fn take_turn(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(&id)
            && !connection.in_turns
            && (connection.owed.any() || connection.wants_data())
        {
            connection.in_turns = true;
            self.turns.push_back(id);
        }
    }

    fn count(&self, which: impl Fn(&Connection) -> bool) -> usize {
        self.connections.values().filter(|connection| which(connection)).count()
    }

    /// A host port that no living connection to this guest port has; there are more ports than connections.
    fn free_host_port(&mut self, guest: u32) -> u32 {
        loop {
            let host = self.next_host_port;
            self.next_host_port = if host >= u32::MAX - 1 { HOST_PORT_FIRST } else { host + 1 };
            if !self.by_ports.contains_key(&Ports { guest, host }) {
                return host;
            }
        }
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
