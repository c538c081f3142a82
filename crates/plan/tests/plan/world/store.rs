//! A store of bytes: what is written goes through the stored form, as it would in a cluster.

use std::collections::BTreeMap;

use lightbyte_api::Key;
use lightbyte_api::envelope::Envelope;
use lightbyte_api::records::{Epoch, Record};
use lightbyte_plan::view::Change;
use lightbyte_plan::{Transaction, View, Write};

use super::at;

/// Keys with their values and the revisions of their last changes.
#[derive(Clone)]
pub(crate) struct Store {
    revision: u64,
    values: BTreeMap<String, (u64, Vec<u8>)>,
    history: Vec<(u64, String)>,
}

/// A refused transaction: the store's revision, and what the guarded keys really have.
pub(crate) type Conflict = (u64, BTreeMap<Key, u64>);

impl Default for Store {
    fn default() -> Store {
        let mut store = Store { revision: 0, values: BTreeMap::new(), history: Vec::new() };
        store.put(&Key::Epoch, Epoch { cluster: lightbyte_api::Uid::from_bits(1), epoch: 1 });
        store
    }
}

impl Store {
    pub(crate) const fn revision(&self) -> u64 {
        self.revision
    }

    /// Everything at the newest revision.
    pub(crate) fn view(&self) -> View {
        View::of_listing(
            self.revision,
            self.values.iter().map(|(key, (revision, value))| change(key, *revision, value)),
        )
    }

    /// Brings `view` to the newest revision, and tells which keys changed.
    pub(crate) fn follow(&self, view: &mut View) -> Vec<Key> {
        let from = view.revision();
        let changed: Vec<&String> =
            self.history.iter().filter(|(revision, _)| *revision > from).map(|(_, key)| key).collect();
        let changes = changed.into_iter().map(|key| match self.values.get(key) {
            Some((revision, value)) => change(key, *revision, value),
            None => Change { key, mod_revision: self.revision, value: None },
        });
        view.apply(self.revision, changes)
    }

    pub(crate) fn put(&mut self, key: &Key, record: impl Into<Record>) -> u64 {
        self.put_bytes(&key.to_string(), encode(&record.into()))
    }

    pub(crate) fn put_bytes(&mut self, key: &str, bytes: Vec<u8>) -> u64 {
        self.revision += 1;
        self.set(key, Some(bytes));
        self.revision
    }

    pub(crate) fn delete(&mut self, key: &str) {
        self.revision += 1;
        self.set(key, None);
    }

    fn set(&mut self, key: &str, value: Option<Vec<u8>>) {
        match value {
            Some(value) => self.values.insert(key.to_owned(), (self.revision, value)),
            None => self.values.remove(key),
        };
        self.history.push((self.revision, key.to_owned()));
    }

    /// Commits all of `transaction`, or nothing when a guard fails; returns the revision of the commit.
    pub(crate) fn commit(&mut self, transaction: &Transaction) -> Result<u64, Conflict> {
        let found = |key: &Key| self.values.get(&key.to_string()).map_or(0, |(revision, _)| *revision);
        let current: BTreeMap<Key, u64> =
            transaction.guards.keys().map(|key| (key.clone(), found(key))).collect();
        if current != transaction.guards {
            return Err((self.revision, current));
        }
        self.revision += 1;
        for write in transaction.writes.values() {
            match write {
                Write::Put(key, record) => self.set(&key.to_string(), Some(encode(record))),
                Write::Delete(key) => self.set(&key.to_string(), None),
            }
        }
        Ok(self.revision)
    }
}

fn change<'a>(key: &'a str, mod_revision: u64, value: &'a [u8]) -> Change<'a> {
    Change { key, mod_revision, value: Some(value) }
}

fn encode(record: &Record) -> Vec<u8> {
    record.encode(&Envelope { written_at: at(0), writer: "test" }, &None)
}
