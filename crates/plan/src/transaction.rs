//! One guarded change of the store: all of it or nothing.

use std::collections::BTreeMap;

use lightbyte_api::assigned::Assigned;
use lightbyte_api::kinds::loadbalancer::SERVING_BYTES_MAX;
use lightbyte_api::kinds::secret::{Order, Pair};
use lightbyte_api::records::Record;
use lightbyte_api::{Choice, Key, Spec};

use crate::view::View;

/// The most comparisons in one transaction: etcd's `--max-txn-ops` applies to them too.
pub const GUARDS_MAX: usize = 128;
/// The most writes in one transaction: etcd's default `--max-txn-ops`. The reads of the else branch count against
/// their own limit.
pub const WRITES_MAX: usize = 128;

/// The most text of first boots and of load balancers in one transaction, in bytes: with all else it stays below etcd's
/// default of 1.5 MiB for a request.
pub const LARGE_BYTES_MAX: usize = 1 << 20;

/// What a member of a load balancer takes, with its uid in a pool of two configurations.
const MEMBER_BYTES: usize = 256;

/// A write of one key.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// Store this value.
    Put(Key, Record),
    /// Remove the key.
    Delete(Key),
}

impl Write {
    /// Stores `record` under `key`.
    pub fn put(key: Key, record: impl Into<Record>) -> Write {
        Write::Put(key, record.into())
    }

    /// How much text of first boots, of load balancers and of certificates it stores. Nothing else that is stored is large.
    #[must_use]
    pub fn large_bytes(&self) -> usize {
        match self {
            Write::Put(_, Record::Asked(asked)) => match &asked.spec {
                Spec::Vm(spec) => spec.first_boot.bytes(),
                Spec::ScaleGroup(spec) => spec.template.vm.first_boot.bytes(),
                Spec::LoadBalancer(_) => SERVING_BYTES_MAX,
                Spec::Secret(spec) => spec.given().map_or(0, Pair::bytes),
                _ => 0,
            },
            Write::Put(_, Record::Assigned(assigned)) => match assigned.as_ref() {
                Assigned::Vm(assigned) => assigned.first_boot.bytes(),
                Assigned::Volume(_) => 0,
            },
            Write::Put(_, Record::Decided(decided)) => match &decided.choice {
                Choice::ScaleGroup(choice) => {
                    choice.versions.iter().map(|version| version.template.vm.first_boot.bytes()).sum()
                }
                Choice::LoadBalancer(choice) => {
                    let told = choice.configurations.len() + usize::from(choice.rejected.is_some());
                    let challenges: usize =
                        choice.challenges.iter().map(|one| one.token.len() + one.answer.len()).sum();
                    told * SERVING_BYTES_MAX + choice.members.len() * MEMBER_BYTES + challenges
                }
                Choice::Secret(choice) => {
                    let versions: usize = choice.versions.iter().map(|version| version.pair.bytes()).sum();
                    versions + choice.order.as_ref().map_or(0, Order::bytes)
                }
                _ => 0,
            },
            _ => 0,
        }
    }

    /// The key that is written.
    #[must_use]
    pub const fn key(&self) -> &Key {
        match self {
            Write::Put(key, _) | Write::Delete(key) => key,
        }
    }
}

/// What must still be true, and what is written then. Every written key is guarded too, so that a transaction whose
/// answer was lost can be sent again without harm: it cannot commit twice.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Transaction {
    /// The revision that each key must still have; 0 means that it must be absent.
    pub guards: BTreeMap<Key, u64>,
    /// What is written, each key once.
    pub writes: BTreeMap<Key, Write>,
}

impl Transaction {
    /// A transaction that rests on `keys` as `view` shows them, and writes `writes`.
    pub fn on(
        view: &View,
        keys: impl IntoIterator<Item = Key>,
        writes: impl IntoIterator<Item = Write>,
    ) -> Transaction {
        let mut transaction = Transaction::default();
        for key in keys {
            transaction.rest_on(view, key);
        }
        for write in writes {
            transaction.rest_on(view, write.key().clone());
            transaction.writes.insert(write.key().clone(), write);
        }
        transaction
    }

    /// Adds a guard: `key` as `view` shows it.
    pub fn rest_on(&mut self, view: &View, key: Key) {
        let mod_revision = view.mod_revision(&key);
        self.guards.entry(key).or_insert(mod_revision);
    }
}
