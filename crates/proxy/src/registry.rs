//! What outlives a topology: requests in flight, health, budgets and counters.
//!
//! A topology is replaced whole; whoever is in both keeps what is known of them. Requests in flight are counted by uid
//! for as long as there are any, also when no topology names the uid any more.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lightbyte_api::topology::{Backend, Check, Ejection, RateLimit};

use crate::chance;
use crate::clock;
use crate::counts::Counts;
use crate::health::{Health, Standing};
use crate::lock::lock;
use crate::rate::Limiter;
use crate::retry::Budget;
use crate::table::Table;
use crate::waits::Waits;

/// A backend in a pool. Its health is the pool's own, for pools may check and count differently.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) pool: String,
    pub(crate) uid: String,
    pub(crate) address: SocketAddr,
    pub(crate) counts: Counts,
    pub(crate) waits: Waits,
    /// Kept connections are its own: who comes to stand at the same address gets none of them.
    pub(crate) connections_key: u64,
    in_flight: Arc<AtomicUsize>,
    health: Mutex<Health>,
    // What of the health a choice needs, so that it needs no lock.
    is_failing: AtomicBool,
    ejected_until_ms: AtomicU64,
    has_failures: AtomicBool,
    is_on_probation: AtomicBool,
}

impl Member {
    /// Requests in flight to this uid, whichever pool they came by.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Whether it is to get requests.
    pub(crate) fn is_healthy(&self, now_ms: u64) -> bool {
        !self.is_failing.load(Ordering::Relaxed) && !self.is_ejected(now_ms) && !self.is_being_tried_out()
    }

    /// Whether one request is finding out whether it is well again after an ejection. The others need not wait for that.
    fn is_being_tried_out(&self) -> bool {
        self.is_on_probation.load(Ordering::Relaxed) && self.in_flight() > 0
    }

    /// Whether it has failed too many requests lately.
    pub(crate) fn is_ejected(&self, now_ms: u64) -> bool {
        now_ms < self.ejected_until_ms.load(Ordering::Relaxed)
    }

    /// How it stands, since when and why.
    pub(crate) fn story(&self, now: Duration) -> (Standing, Duration, String) {
        let health = lock(&self.health);
        let (since, reason) = health.story(now);
        (health.standing(now), since, reason.to_owned())
    }

    /// A check ended. True if the standing changed.
    pub(crate) fn checked(&self, result: Result<(), String>, check: &Check) -> bool {
        self.change(|health| health.checked(result, check, clock::now()))
    }

    /// It is not checked any more.
    pub(crate) fn unchecked(&self) {
        self.change(|health| health.unchecked(clock::now()));
    }

    /// It gave a good answer.
    pub(crate) fn answered(&self) {
        if self.has_failures.load(Ordering::Relaxed) {
            self.change(Health::answered);
        }
    }

    /// It failed a request. True if it was ejected for it.
    pub(crate) fn failed(&self, ejection: &Ejection, may_eject: bool) -> bool {
        self.change(|health| health.failed(ejection, may_eject, clock::now()))
    }

    fn change<T>(&self, change: impl FnOnce(&mut Health) -> T) -> T {
        let mut health = lock(&self.health);
        let result = change(&mut health);
        self.is_failing.store(health.is_failing(), Ordering::Relaxed);
        let until_ms = u64::try_from(health.ejected_until().as_millis()).unwrap_or(u64::MAX);
        self.ejected_until_ms.store(until_ms, Ordering::Relaxed);
        self.has_failures.store(health.has_failures(), Ordering::Relaxed);
        self.is_on_probation.store(health.is_on_probation(), Ordering::Relaxed);
        result
    }
}

/// A request in flight to a backend; it ends when this is dropped, whatever became of the request.
#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) member: Arc<Member>,
}

impl Flight {
    pub(crate) fn new(member: Arc<Member>) -> Flight {
        // Sequentially consistent: see `Gateway::choose`, which looks at the table again after this.
        member.in_flight.fetch_add(1, Ordering::SeqCst);
        Flight { member }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.member.in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    in_flight: HashMap<String, Arc<AtomicUsize>>,
    members: HashMap<(String, String, SocketAddr), Arc<Member>>,
    budgets: HashMap<String, Arc<Budget>>,
    limiters: HashMap<String, Arc<Limiter>>,
    routes: HashMap<String, Arc<Counts>>,
}

impl Registry {
    /// The member for a backend, the one that is known or a new one.
    pub(crate) fn member(&mut self, pool: &str, backend: &Backend) -> Arc<Member> {
        let address = SocketAddr::new(backend.address, backend.port);
        let in_flight = self.in_flight.entry(backend.uid.clone()).or_default().clone();
        let key = (pool.to_owned(), backend.uid.clone(), address);
        let new = || {
            Arc::new(Member {
                pool: pool.to_owned(),
                uid: backend.uid.clone(),
                address,
                counts: Counts::default(),
                waits: Waits::default(),
                connections_key: chance::stable_hash(format!("{pool}\0{}", backend.uid).as_bytes()),
                in_flight,
                health: Mutex::new(Health::new(clock::now())),
                is_failing: AtomicBool::new(false),
                ejected_until_ms: AtomicU64::new(0),
                has_failures: AtomicBool::new(false),
                is_on_probation: AtomicBool::new(false),
            })
        };
        self.members.entry(key).or_insert_with(new).clone()
    }

    pub(crate) fn budget(&mut self, pool: &str) -> Arc<Budget> {
        self.budgets.entry(pool.to_owned()).or_insert_with(|| Arc::new(Budget::new(clock::now()))).clone()
    }

    /// The buckets of a route; new ones if its limit changed. They are known from [`Registry::keep_limiters`] on, so that a
    /// topology that is refused in the end changes no bucket.
    pub(crate) fn limiter(&self, route: &str, limit: RateLimit) -> Arc<Limiter> {
        let known = self.limiters.get(route).filter(|limiter| limiter.is_for(&limit)).cloned();
        known.unwrap_or_else(|| Arc::new(Limiter::new(limit, clock::now())))
    }

    /// The table holds: its buckets are the ones to take over next time.
    pub(crate) fn keep_limiters(&mut self, table: &Table) {
        for route in &table.routes {
            if let Some(limiter) = &route.limiter {
                self.limiters.insert(route.name.clone(), limiter.clone());
            }
        }
    }

    pub(crate) fn route(&mut self, route: &str) -> Arc<Counts> {
        self.routes.entry(route.to_owned()).or_default().clone()
    }

    /// Forgets what nobody holds any more, so that memory follows the topology and not its history.
    pub(crate) fn forget_the_gone(&mut self) {
        self.members.retain(|_, member| Arc::strong_count(member) > 1);
        self.budgets.retain(|_, budget| Arc::strong_count(budget) > 1);
        self.limiters.retain(|_, limiter| Arc::strong_count(limiter) > 1);
        self.routes.retain(|_, counts| Arc::strong_count(counts) > 1);
        self.in_flight.retain(|_, count| Arc::strong_count(count) > 1 || count.load(Ordering::SeqCst) > 0);
    }

    /// Requests in flight by uid: of all that a topology names, and of the gone that still have some.
    pub(crate) fn in_flight(&self) -> BTreeMap<String, usize> {
        self.in_flight.iter().map(|(uid, count)| (uid.clone(), count.load(Ordering::SeqCst))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(uid: &str, port: u16) -> Backend {
        let address = [127, 0, 0, 1].into();
        Backend { uid: uid.to_owned(), address, port, weight: 1, retiring: false }
    }

    #[test]
    fn requests_in_flight_are_counted_by_uid_until_the_last_has_ended() {
        let mut registry = Registry::default();
        let one = Flight::new(registry.member("a", &backend("u", 1)));
        let other = Flight::new(registry.member("b", &backend("u", 2)));
        registry.forget_the_gone();
        assert_eq!(registry.in_flight(), [("u".to_owned(), 2)].into());
        drop(one);
        registry.forget_the_gone();
        assert_eq!(registry.in_flight(), [("u".to_owned(), 1)].into());
        drop(other);
        registry.forget_the_gone();
        registry.forget_the_gone();
        assert_eq!(registry.in_flight(), BTreeMap::new());
    }

    #[test]
    fn buckets_are_known_once_their_table_holds() {
        let topology = |per_second: u32| {
            let text = format!(
                r#"{{"format":1,"revision":1,"routes":[{{"name":"r","rate_limit":{{"per_second":{per_second},"burst":1}}}}]}}"#
            );
            serde_json::from_str(&text).expect("is a topology")
        };
        let mut registry = Registry::default();
        let mut compile = |per_second, is_kept| {
            let table = Table::compile(&topology(per_second), &mut registry).expect("is good");
            if is_kept {
                registry.keep_limiters(&table);
            }
            table.routes[0].limiter.clone().expect("has one")
        };
        let first = compile(1, true);
        assert!(!Arc::ptr_eq(&first, &compile(2, false)), "another limit, other buckets");
        assert!(Arc::ptr_eq(&first, &compile(1, true)), "what was refused has changed nothing");
    }

    #[test]
    fn who_is_in_both_topologies_keeps_its_health_and_another_address_is_another() {
        let mut registry = Registry::default();
        let member = registry.member("a", &backend("u", 1));
        let ejection =
            Ejection { failures: 1, first_ms: 60_000, longest_ms: 60_000, ejected_percent_max: 100 };
        assert!(member.failed(&ejection, true));
        assert!(!registry.member("a", &backend("u", 1)).is_healthy(clock::now_ms()));
        assert!(registry.member("a", &backend("u", 2)).is_healthy(clock::now_ms()));
    }
}
