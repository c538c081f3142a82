//! A zone compiled for answers: what a name has is found by one look-up, and lies there as it goes on the wire.

mod reverse;

use std::collections::HashMap;

use lightbyte_api::zone::{APEX, Records, Set, TTL_DEFAULT_S, Zone};

use crate::wire::{self, CLASS_IN, QUESTION_NAME, rtype};
use reverse::Reverse;

/// Counters of turns. Sets share them by number, so that a table may have any number of sets.
pub(crate) const SLOTS: u16 = 1_024;

/// Where a record's time to live begins, after owner, type and class.
const DATA_AT: usize = 12;

/// A zone for answers. It never changes: the next zone makes the next table.
#[derive(Debug)]
pub(crate) struct Table {
    /// The zone's name on the wire.
    zone: Box<[u8]>,
    names: HashMap<Box<[u8]>, Box<[RecordSet]>>,
    reverse: Reverse,
    /// SOA without its owner.
    soa: Box<[u8]>,
}

/// Records of one name and type.
#[derive(Debug)]
pub(crate) struct RecordSet {
    pub(crate) rtype: u16,
    /// Which counter turns it, below [`SLOTS`].
    pub(crate) slot: u16,
    /// Where records begin; empty if there is only one. `SET_BYTES` of a zone keeps them within 16 bits.
    starts: Box<[u16]>,
    /// Records as they go on the wire, with a pointer to the question's name as their owner.
    bytes: Box<[u8]>,
}

/// Where a name stands.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place<'a> {
    /// In the zone, or among the reverse names that belong to it.
    Zone {
        /// How many bytes of the name stand before that of the zone.
        apex_at: usize,
        /// What the name has, which may be nothing; `None` if there is no such name.
        sets: Option<&'a [RecordSet]>,
    },
    /// Elsewhere.
    Outside,
}

impl Table {
    /// Compiles a zone that passes its check (`Zone::check`).
    pub(crate) fn new(zone: &Zone) -> Table {
        let mut slots = Slots(0);
        let apex = wire::encode(&zone.name);
        let serial = u32::try_from(zone.revision & u64::from(u32::MAX)).unwrap_or_default();
        let soa = start_of_authority(&apex, serial);
        let mut names: HashMap<Box<[u8]>, Box<[RecordSet]>> = HashMap::with_capacity(zone.names.len() + 16);
        for (owner, records) in &zone.names {
            if owner != APEX {
                let name = [&wire::encode(owner)[..=owner.len()], &apex].concat();
                names.insert(name.into(), sets(records, &mut slots).into());
            }
        }
        // The name of the server that SOA and NS tell of is there, whether it has an address or not.
        names.entry(child(b"ns", &apex).into()).or_default();
        // What is between a name and the zone is there too, and has nothing (RFC 8020).
        let between: Vec<Box<[u8]>> =
            names.keys().flat_map(|name| parents(name, &apex)).map(Box::from).collect();
        for name in between {
            names.entry(name).or_default();
        }
        let mut apex_sets = zone.names.get(APEX).map(|records| sets(records, &mut slots)).unwrap_or_default();
        apex_sets.extend(authority(&soa, &apex, &mut slots));
        names.insert(apex.clone().into(), apex_sets.into());
        let reverse = Reverse::new(zone, authority(&soa, &apex, &mut slots).into(), &mut slots);
        Table { zone: apex.into(), names, reverse, soa: soa.into() }
    }

    /// The table of a zone of which nothing is known but its name. All reverse names count as its own: which are, is not
    /// known, and the word of others that there is none would be a lie.
    pub(crate) fn unknown(zone: &str) -> Table {
        let apex = wire::encode(zone);
        let soa = start_of_authority(&apex, 0);
        Table { zone: apex.into(), names: HashMap::new(), reverse: Reverse::all(), soa: soa.into() }
    }

    /// Where a name in lower case stands, and what it has.
    pub(crate) fn look_up(&self, name: &[u8]) -> Place<'_> {
        if let Some(sets) = self.names.get(name) {
            return Place::Zone { apex_at: name.len() - self.zone.len(), sets: Some(sets) };
        }
        if name.ends_with(&self.zone) && is_label_start(name, name.len() - self.zone.len()) {
            return Place::Zone { apex_at: name.len() - self.zone.len(), sets: None };
        }
        self.reverse.look_up(name)
    }

    /// SOA without its owner, for answers that there is nothing. Its last number and its time to live are how long that
    /// may be believed (RFC 2308, 5).
    pub(crate) fn soa(&self) -> &[u8] {
        &self.soa
    }
}

impl RecordSet {
    fn new(rtype: u16, ttl_s: u32, slots: &mut Slots, data: impl Iterator<Item = Vec<u8>>) -> RecordSet {
        let mut bytes = Vec::new();
        let mut starts = Vec::new();
        for data in data {
            starts.push(u16::try_from(bytes.len()).unwrap_or(u16::MAX));
            bytes.extend_from_slice(&QUESTION_NAME.to_be_bytes());
            push_after_owner(&mut bytes, rtype, ttl_s, &data);
        }
        if starts.len() == 1 {
            starts.clear();
        }
        RecordSet { rtype, slot: slots.next(), starts: starts.into(), bytes: bytes.into() }
    }

    /// How many records they are.
    pub(crate) fn len(&self) -> usize {
        self.starts.len().max(1)
    }

    /// One of them, owner included.
    pub(crate) fn record(&self, index: usize) -> &[u8] {
        let at = |index: usize| self.starts.get(index).map_or(self.bytes.len(), |start| usize::from(*start));
        if self.starts.is_empty() { &self.bytes } else { &self.bytes[at(index)..at(index + 1)] }
    }

    /// The data of the first: the target, of an alias.
    pub(crate) fn data(&self) -> &[u8] {
        &self.record(0)[DATA_AT..]
    }
}

/// Where the data stands in a record that begins at `record_at`, if its owner is a pointer.
pub(crate) const fn data_at(record_at: usize) -> usize {
    record_at + DATA_AT
}

/// Hands out counters in turn.
struct Slots(u16);

impl Slots {
    const fn next(&mut self) -> u16 {
        self.0 = (self.0 + 1) % SLOTS;
        self.0
    }
}

fn push_after_owner(bytes: &mut Vec<u8>, rtype: u16, ttl_s: u32, data: &[u8]) {
    bytes.extend_from_slice(&rtype.to_be_bytes());
    bytes.extend_from_slice(&CLASS_IN.to_be_bytes());
    bytes.extend_from_slice(&ttl_s.to_be_bytes());
    bytes.extend_from_slice(&u16::try_from(data.len()).unwrap_or(u16::MAX).to_be_bytes());
    bytes.extend_from_slice(data);
}

fn sets(records: &Records, slots: &mut Slots) -> Vec<RecordSet> {
    fn add<T>(
        sets: &mut Vec<RecordSet>,
        slots: &mut Slots,
        rtype: u16,
        set: &Set<T>,
        data: impl Fn(&T) -> Vec<u8>,
    ) {
        if !set.is_empty() {
            sets.push(RecordSet::new(rtype, set.ttl_s, slots, set.values.iter().map(data)));
        }
    }
    let mut sets = Vec::new();
    add(&mut sets, slots, rtype::A, &records.a, |address| address.octets().to_vec());
    add(&mut sets, slots, rtype::AAAA, &records.aaaa, |address| address.octets().to_vec());
    add(&mut sets, slots, rtype::CNAME, &records.cname, |target| wire::encode(target));
    add(&mut sets, slots, rtype::SRV, &records.srv, |service| {
        let mut data = Vec::new();
        for number in [service.priority, service.weight, service.port] {
            data.extend_from_slice(&number.to_be_bytes());
        }
        data.extend_from_slice(&wire::encode(&service.target));
        data
    });
    add(&mut sets, slots, rtype::TXT, &records.txt, |text| {
        let length = u8::try_from(text.len()).unwrap_or(u8::MAX);
        [&[length], text.as_bytes()].concat()
    });
    sets
}

/// What every apex has: SOA and NS.
fn authority(soa: &[u8], apex: &[u8], slots: &mut Slots) -> [RecordSet; 2] {
    let soa = [&QUESTION_NAME.to_be_bytes(), soa].concat();
    let server = child(b"ns", apex);
    [
        RecordSet { rtype: rtype::SOA, slot: slots.next(), starts: Box::default(), bytes: soa.into() },
        RecordSet::new(rtype::NS, TTL_DEFAULT_S, slots, std::iter::once(server)),
    ]
}

/// SOA (RFC 1035, 3.3.13) without its owner. Nobody transfers the zone, so only its serial and its last number, how long
/// it may be believed that there is nothing, mean something.
fn start_of_authority(apex: &[u8], serial: u32) -> Vec<u8> {
    let mut data = [child(b"ns", apex), child(b"hostmaster", apex)].concat();
    for number in [serial, TTL_DEFAULT_S, TTL_DEFAULT_S, TTL_DEFAULT_S, TTL_DEFAULT_S] {
        data.extend_from_slice(&number.to_be_bytes());
    }
    let mut record = Vec::new();
    push_after_owner(&mut record, rtype::SOA, TTL_DEFAULT_S, &data);
    record
}

fn child(label: &[u8], name: &[u8]) -> Vec<u8> {
    let length = u8::try_from(label.len()).unwrap_or(u8::MAX);
    [&[length], label, name].concat()
}

/// The names between `name` and `apex`, both left out.
fn parents<'a>(name: &'a [u8], apex: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    std::iter::successors(wire::parent(name), |name| wire::parent(name))
        .take_while(|name| name.len() > apex.len())
}

/// Whether a label of the name begins at `position`.
fn is_label_start(name: &[u8], position: usize) -> bool {
    let mut at = 0;
    while at < position {
        at += 1 + usize::from(name[at]);
    }
    at == position
}
