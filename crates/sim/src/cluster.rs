//! The simulated cluster: one store, three servers with views of their own age, workers with hosts that outlive their
//! agents, and people. It owns the clock, the network and chance; everything that decides is the shipped code.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use lightbyte_api::assigned::HostObject;
use lightbyte_api::envelope::Envelope;
use lightbyte_api::records::{Epoch, Record};
use lightbyte_api::{Key, Kind, MacAddress, Timestamp, Uid};
use lightbyte_plan::transaction::Transaction as Decision;
use lightbyte_plan::view::View;
use lightbyte_plan::{Transaction, Write};
use lightbyte_store::feed::{encode, met};
use lightbyte_store::{CommitFault, LeaseId, MemoryCore, Outcome, StoreError};

use crate::addresses::Absences;
use crate::counts::Counts;
use crate::load::Demands;
use crate::moves::Roads;
use crate::oracle::{self, Oracle, Writer, violated};
use crate::rng::Rng;
use crate::server::Server;
use crate::worker::Worker;

/// How many servers there are: a control plane of three.
pub(crate) const SERVERS: usize = 3;
/// How many workers there are.
pub(crate) const WORKERS: usize = 3;
/// How long a lease lives that nobody renews.
pub(crate) const LEASE_MILLIS: u64 = 5_000;
/// One in so many seeds has groups: they take room and addresses from what the others look at.
const GROUPS_IN_EVERY: u64 = 3;
/// One in so many seeds has load balancers, and some of these groups as well.
const BALANCERS_IN_EVERY: u64 = 4;
/// How many calm rounds come before the faults.
const WARM_ROUNDS: usize = 8;
/// How many calm rounds unreadable values last after all other faults have ended.
const DAMAGED_ROUNDS: usize = 12;
/// How many steps with faults one seed has.
pub(crate) const FAULTY_STEPS: usize = 300;
/// How many rounds without a write mean that nothing more comes: pauses between retries are at most a minute, a group that scales
/// itself waits for a window of 45 s that begins two looks of 15 s after its last change, and a round takes a second.
const QUIET_ROUNDS: usize = 81;
/// The same where there are proxies: an update of their group has as long to come true as groups have when nothing is said.
const QUIET_ROUNDS_OF_PROXIES: usize = 311;
/// How many calm rounds the cluster may take to converge.
pub(crate) const CALM_ROUNDS_MAX: usize = 400;

/// A violated invariant, in words.
#[derive(Debug)]
pub(crate) struct Violation(pub(crate) String);

/// What a step of the simulation returns.
pub(crate) type Checked = Result<(), Violation>;

/// How a transaction ended, as far as its sender can learn.
#[derive(Debug)]
pub(crate) enum Sent {
    /// It was committed at this revision.
    Committed(u64),
    /// It was refused at this revision, where the guarded keys were at these.
    Conflict(u64, BTreeMap<Key, u64>),
    /// Ours may lie under a newer write, or not.
    Unknown,
}

/// Everything there is.
pub(crate) struct Cluster {
    /// Chance.
    pub(crate) rng: Rng,
    /// The clock of the store and the servers, in milliseconds.
    pub(crate) now_millis: u64,
    /// The store.
    pub(crate) core: MemoryCore,
    /// The servers.
    pub(crate) servers: Vec<Server>,
    /// The workers.
    pub(crate) workers: Vec<Worker>,
    /// The network between the hosts.
    pub(crate) roads: Arc<Roads>,
    /// What is known independently of the deciders.
    pub(crate) oracle: Oracle,
    /// What happened.
    pub(crate) counts: Counts,
    /// Values made unreadable, to be restored when it becomes calm.
    pub(crate) damaged: BTreeMap<Key, Record>,
    /// Who else is on the LAN that all hosts are on.
    pub(crate) squatters: BTreeMap<Ipv4Addr, MacAddress>,
    /// What guests do.
    pub(crate) demands: Demands,
    /// Whether every step is told.
    pub(crate) trace: bool,
    /// Whether faults happen.
    pub(crate) faults: bool,
    /// Whether people ask for groups.
    pub(crate) has_groups: bool,
    /// Whether people ask for load balancers.
    pub(crate) has_balancers: bool,
    pub(crate) absences: Absences,
}

impl Cluster {
    /// A cluster at its beginning: an epoch, and nothing else.
    pub(crate) fn new(seed: u64, trace: bool) -> Cluster {
        let mut rng = Rng::new(seed);
        let epoch = Epoch { cluster: Uid::from_bits(rng.bits()), epoch: 1 };
        let mut cluster = Cluster {
            now_millis: 1_000_000,
            core: MemoryCore::new(),
            servers: Vec::new(),
            workers: (0..WORKERS).map(|index| Worker::new(index, &mut rng)).collect(),
            roads: Arc::default(),
            oracle: Oracle::default(),
            counts: Counts::default(),
            damaged: BTreeMap::new(),
            squatters: BTreeMap::new(),
            demands: Demands::default(),
            trace,
            faults: true,
            has_groups: seed.is_multiple_of(GROUPS_IN_EVERY),
            has_balancers: seed % BALANCERS_IN_EVERY == 3,
            absences: Absences::default(),
            rng,
        };
        for worker in &cluster.workers {
            cluster.roads.lead_to(worker.id, &worker.host);
            worker.host.set_peers(Arc::clone(&cluster.roads).peers());
        }
        let begin = Decision::on(&View::default(), [], [Write::put(Key::Epoch, epoch)]);
        let _ = cluster.core.commit(&encode(&begin, &View::default(), &cluster.envelope("init"), |_| None));
        cluster.oracle.follow(&cluster.core);
        cluster.servers =
            (0..SERVERS).map(|index| Server::new(index, &mut cluster.rng, &cluster.core)).collect();
        cluster
    }

    /// Most seeds begin with a cluster at work: faults that meet an empty one say little.
    pub(crate) fn warm_up(&mut self) -> Checked {
        // Some strangers are there before anybody else.
        for _ in 0..self.rng.below(3) {
            self.somebody_squats();
        }
        if self.rng.once_in(5) {
            return Ok(());
        }
        self.faults = false;
        for round in 0..WARM_ROUNDS {
            for _ in 0..2 {
                self.user_acts()?;
            }
            self.user_prepares(round)?;
            if self.has_groups {
                self.load_changes();
            }
            self.calm_round()?;
        }
        self.faults = true;
        Ok(())
    }

    /// The time on the servers' clocks.
    pub(crate) fn now(&self) -> Timestamp {
        Timestamp::from_millisecond(i64::try_from(self.now_millis).unwrap_or(i64::MAX))
            .unwrap_or(Timestamp::MAX)
    }

    /// The store's clock.
    pub(crate) fn store_now(&self) -> std::time::Duration {
        std::time::Duration::from_millis(self.now_millis)
    }

    fn envelope<'a>(&self, writer: &'a str) -> Envelope<'a> {
        Envelope { written_at: self.now(), writer }
    }

    /// Tells what happens, when a person replays a seed.
    pub(crate) fn tell(&self, what: impl FnOnce() -> String) {
        if self.trace {
            println!("{:>9} ms  r{:<5} {}", self.now_millis - 1_000_000, self.core.revision(), what());
        }
    }

    /// Sends a decision to the store, over a network that may lose the request or the answer. The store client
    /// settles what is not known, as the real one does; sometimes it must give up.
    pub(crate) fn commit(
        &mut self,
        decision: &Transaction,
        view: &View,
        writer: Writer,
        lease: impl Fn(&Key) -> Option<LeaseId>,
    ) -> Result<Sent, Violation> {
        let name = format!("{writer:?}");
        let transaction = encode(decision, view, &self.envelope(&name), lease);
        if self.faults && self.rng.once_in(25) {
            let fault = if self.rng.once_in(2) { CommitFault::Before } else { CommitFault::After };
            self.counts.add(if fault == CommitFault::Before {
                "fault: request lost"
            } else {
                "fault: answer lost"
            });
            self.core.plan_fault(fault);
        }
        let before = self.core.revision();
        let outcome = self.core.commit_settled(&transaction);
        if self.core.revision() > before {
            oracle::check_roles(decision, self.oracle.truth(), &writer)?;
            self.oracle.members_let_go(decision)?;
        }
        self.oracle.follow(&self.core);
        match outcome {
            Ok(Outcome::Committed { revision }) => Ok(Sent::Committed(revision)),
            Ok(Outcome::Conflict { revision, current }) => Ok(Sent::Conflict(revision, met(&current))),
            Err(StoreError::Unknown(_)) => {
                self.counts.add("outcome never learned");
                Ok(Sent::Unknown)
            }
            Err(error) => Err(Violation(format!("the store refused a transaction of {writer:?}: {error:?}"))),
        }
    }

    /// One step, chosen by chance, with its checks.
    pub(crate) fn faulty_step(&mut self) -> Checked {
        self.now_millis += 1 + self.rng.below(120) as u64;
        self.expire();
        match self.rng.below(100) {
            0..=11 => self.user_acts()?,
            12..=37 => self.server_acts()?,
            38..=40 => self.server_fault()?,
            41..=90 => self.worker_acts()?,
            91..=95 => self.worker_fault()?,
            96 => self.compact(),
            97 => self.stretch_a_lease(),
            98 if self.has_groups && self.rng.once_in(2) => self.load_changes(),
            98 => self.damage_a_value()?,
            _ => self.now_millis += self.rng.below(4_000) as u64,
        }
        self.check()
    }

    /// Safety, after every step.
    pub(crate) fn check(&mut self) -> Checked {
        self.oracle.follow(&self.core);
        self.oracle.check_store(&self.core)?;
        self.oracle.check_hosts(&self.workers)?;
        self.check_virtual_addresses()
    }

    /// Ends the leases whose time has come.
    pub(crate) fn expire(&mut self) {
        let now = self.store_now();
        self.core.expire(now);
        self.oracle.follow(&self.core);
    }

    fn compact(&mut self) {
        let revision = self.core.revision().saturating_sub(self.rng.below(20) as u64);
        if revision > self.core.compacted() && self.core.compact(revision).is_ok() {
            self.counts.add("fault: compaction");
            self.tell(|| format!("compaction at {revision}"));
        }
    }

    fn stretch_a_lease(&mut self) {
        let leases: Vec<LeaseId> = self.workers.iter().filter_map(|worker| worker.lease).collect();
        if let Some(lease) = self.rng.pick(&leases).copied() {
            self.counts.add("fault: lease stretched");
            self.core.lease_stretch(lease, std::time::Duration::from_millis(LEASE_MILLIS));
        }
    }

    /// A newer version writes a value that this one cannot read.
    fn damage_a_value(&mut self) -> Checked {
        let keys: Vec<Key> =
            self.oracle.truth().keys().map(|(key, _)| key.clone()).filter(is_damageable).collect();
        let Some(key) = self.rng.pick(&keys).cloned() else { return Ok(()) };
        let Some(record) = self.oracle.truth().record(&key).cloned() else { return Ok(()) };
        if matches!(key, Key::Assigned(..)) && self.rng.once_in(3) {
            self.counts.add("fault: assignment vanished");
            self.tell(|| format!("{key} vanishes"));
            self.damaged.insert(key.clone(), record);
            return self.delete_raw(&key);
        }
        self.counts.add("fault: unreadable value");
        self.tell(|| format!("{key} becomes unreadable"));
        self.damaged.insert(key.clone(), record);
        self.write_raw(&key, br#"{"format":99,"anything":true}"#)
    }

    /// The cluster is upgraded: what was unreadable is as it was.
    fn repair_values(&mut self) -> Checked {
        for (key, record) in std::mem::take(&mut self.damaged) {
            let truth = self.oracle.truth();
            let is_orphan = |object: &HostObject| truth.object_of(object.uid).is_none();
            if !truth.contains(&key) && matches!(&key, Key::Assigned(_, object) if is_orphan(object)) {
                continue;
            }
            let bytes = record.encode(&self.envelope("repair"), &None);
            self.write_raw(&key, &bytes)?;
        }
        Ok(())
    }

    fn delete_raw(&mut self, key: &Key) -> Checked {
        let text = key.to_string();
        let found = self.core.get(&text).value.map_or(0, |value| value.mod_revision);
        let transaction = lightbyte_store::Transaction {
            guards: vec![lightbyte_store::Guard::at(text.clone(), found)],
            operations: vec![lightbyte_store::Operation::delete(text)],
        };
        self.core.commit(&transaction).map_err(|error| Violation(error.to_string()))?;
        self.oracle.follow(&self.core);
        Ok(())
    }

    fn write_raw(&mut self, key: &Key, bytes: &[u8]) -> Checked {
        let text = key.to_string();
        let found = self.core.get(&text).value.map_or(0, |value| value.mod_revision);
        let transaction = lightbyte_store::Transaction {
            guards: vec![lightbyte_store::Guard::at(text.clone(), found)],
            operations: vec![lightbyte_store::Operation::put(text, bytes.to_vec())],
        };
        self.core.commit(&transaction).map_err(|error| Violation(error.to_string()))?;
        self.oracle.follow(&self.core);
        Ok(())
    }

    /// Faults stop; the cluster must reach what is asked, and then write nothing more.
    pub(crate) fn become_calm(&mut self) -> Checked {
        self.faults = false;
        self.heal();
        self.work_around_damage()?;
        self.repair_values()?;
        if self.has_groups && self.rng.once_in(2) {
            self.lose_a_worker()?;
            self.heal();
        }
        if self.has_groups && self.rng.once_in(2) {
            self.update_badly()?;
        }
        self.rest_copies()?;
        self.rest_schedules()?;
        self.tell(|| "------ calm ------".to_owned());
        self.rest()?;
        self.rest_orders()?;
        self.count_protected();
        self.oracle.check_goal(&self.workers)?;
        self.check_orders()?;
        self.check_sizes()?;
        self.stay_quiet()
    }

    /// All works except what cannot be read: whatever is asked now must leave that alone, however far it comes.
    fn work_around_damage(&mut self) -> Checked {
        self.tell(|| "------ only damage ------".to_owned());
        for round in 0..DAMAGED_ROUNDS {
            if round < 2 {
                self.damage_a_value()?;
            }
            self.user_acts()?;
            self.calm_round()?;
        }
        Ok(())
    }

    /// Nothing more is written, not even when everything is looked at again.
    fn stay_quiet(&mut self) -> Checked {
        let before = self.core.revision();
        let resync = lightbyte_plan::reconciler::RESYNC_PERIOD.millis();
        for _ in 0..4 {
            self.renew_all();
            for _ in 0..resync / 2 / (LEASE_MILLIS / 2) {
                self.now_millis += LEASE_MILLIS / 2;
                self.renew_all();
            }
            self.calm_round()?;
        }
        if self.core.revision() != before {
            return Err(Violation("rule 10: something was written although nothing was asked".to_owned()));
        }
        let finds: u64 = self.servers.iter().map(Server::resync_finds).sum();
        if finds > 0 {
            return Err(Violation(format!("a resync found {finds} plans that no change had woken")));
        }
        Ok(())
    }

    /// Lets everything come to rest.
    pub(crate) fn rest(&mut self) -> Checked {
        self.rest_and(|_| {})
    }

    /// The same; somebody looks at it after each round.
    pub(crate) fn rest_and(&mut self, look: impl FnMut(&Cluster)) -> Checked {
        let has_proxies = self.oracle.truth().objects_of(Kind::LoadBalancer).next().is_some();
        let quiet = if has_proxies { QUIET_ROUNDS_OF_PROXIES } else { QUIET_ROUNDS };
        // One of them may fail after another, each after its own time.
        let most = if has_proxies { CALM_ROUNDS_MAX + 4 * quiet } else { CALM_ROUNDS_MAX };
        if self.settles(quiet, most, look)? {
            return Ok(());
        }
        violated("rule 10", format!("after {most} calm rounds something is still written"))
    }

    /// Calm rounds until nothing was written for so many of them; whether it came to that.
    pub(crate) fn settles(
        &mut self,
        quiet_rounds: usize,
        rounds_max: usize,
        mut look: impl FnMut(&Cluster),
    ) -> Result<bool, Violation> {
        let mut quiet = 0;
        for _ in 0..rounds_max {
            let before = self.core.revision();
            self.calm_round()?;
            look(self);
            quiet = if self.core.revision() == before { quiet + 1 } else { 0 };
            if quiet == quiet_rounds {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub(crate) fn calm_round(&mut self) -> Checked {
        self.now_millis += 1_000;
        self.renew_all();
        self.expire();
        for index in 0..self.servers.len() {
            self.catch_up(index);
            self.campaign(index)?;
            for _ in 0..4 {
                self.lead(index)?;
                self.catch_up(index);
            }
        }
        for index in 0..self.workers.len() {
            if !self.workers[index].cut_off {
                self.settle_worker(index)?;
            }
        }
        self.check()
    }
}

/// Values whose loss of readability must freeze, and not free, what belongs to them.
fn is_damageable(key: &Key) -> bool {
    matches!(
        key,
        Key::Asked(_) | Key::Decided(_) | Key::Assigned(..) | Key::WorkerLedger(_) | Key::Address(..)
    )
}
