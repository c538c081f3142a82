//! A store of its own: a view that is written to without anybody else.

use lightbyte_api::{Key, Timestamp};

use crate::transaction::{Transaction, Write};
use crate::view::View;

/// How many plans are made and steps of hosts are taken at most in one forecast.
const BUDGET: u64 = 2_000_000;

/// See the module. Its time is that of the forecast.
pub(super) struct Fork {
    view: View,
    now: Timestamp,
    /// What has changed since it was last asked.
    changed: Vec<Key>,
    budget: u64,
}

impl Fork {
    /// A fork of `view` as of `now`.
    pub(super) fn of(view: &View, now: Timestamp) -> Fork {
        Fork { view: view.clone(), now, changed: Vec::new(), budget: BUDGET }
    }

    pub(super) const fn view(&self) -> &View {
        &self.view
    }

    pub(super) const fn now(&self) -> Timestamp {
        self.now
    }

    /// Lets time pass.
    pub(super) fn pass_to(&mut self, at: Timestamp) {
        self.now = self.now.max(at);
    }

    /// Stores what `transaction` writes, and returns the revision. Nobody else writes here, so its guards hold.
    pub(super) fn commit(&mut self, transaction: Transaction) -> u64 {
        let revision = self.view.revision() + 1;
        self.changed.extend(transaction.writes.keys().cloned());
        self.view.write(transaction.writes.into_values(), revision);
        self.view.apply(revision, []);
        revision
    }

    /// Removes a key that nobody removes in a transaction.
    pub(super) fn drop_key(&mut self, key: Key) {
        let transaction = Transaction::on(&self.view, [], [Write::Delete(key)]);
        self.commit(transaction);
    }

    /// What has changed since this was called last.
    pub(super) fn take_changed(&mut self) -> Vec<Key> {
        std::mem::take(&mut self.changed)
    }

    /// Takes `count` of what the forecast may still do; false when nothing is left.
    pub(super) fn spend(&mut self, count: u64) -> bool {
        let left = self.budget.checked_sub(count);
        self.budget = left.unwrap_or(0);
        left.is_some()
    }

    /// Whether nothing is left of what the forecast may do.
    pub(super) const fn is_spent(&self) -> bool {
        self.budget == 0
    }
}
