//! Servers: each with a view of its own age; one of them leads, and may not know yet that it does no more.

use std::collections::{BTreeMap, VecDeque};

use lightbyte_api::kinds::scalegroup::RetiredFor;
use lightbyte_api::records::{Leader, Record};
use lightbyte_api::{Key, Name, Timestamp, Uid};
use lightbyte_plan::load::{Gauge, LOOK_PERIOD};
use lightbyte_plan::view::View;
use lightbyte_plan::{Reconciler, Transaction, Write, delivery, planner};
use lightbyte_store::feed::Feed;
use lightbyte_store::{LeaseId, MemoryCore};

use crate::cluster::{Checked, Cluster, LEASE_MILLIS, Sent, Violation};
use crate::groups;
use crate::oracle::Writer;
use crate::rng::Rng;
use crate::{placing, preemption, slots};

/// How many events a server reads of the store at once.
const BATCHES_MAX: usize = 64;

/// One server.
pub(crate) struct Server {
    /// Its name.
    pub(crate) name: Name,
    /// The identity of this run of it.
    pub(crate) run: Uid,
    /// Its view.
    pub(crate) feed: Feed,
    /// Whether it does nothing, as a stopped process does. It keeps what it believes.
    pub(crate) paused: bool,
    /// Its term of leadership, as far as it knows.
    pub(crate) term: Option<Term>,
    /// When its view was as new as the store.
    read_at: Option<Timestamp>,
    finds_before: u64,
}

/// A term of leadership.
pub(crate) struct Term {
    pub(crate) reconciler: Reconciler,
    lease: LeaseId,
    /// The batch under way: sent or not yet, and what the store said.
    batch: Option<InFlight>,
    gauge: Gauge,
    next_look: Timestamp,
}

struct InFlight {
    decision: Transaction,
    /// The view that the decision was made on, whose unknown fields are kept.
    view: View,
    /// The same before the batch.
    before: View,
    /// The members of groups that it lets go and that serve by that view: all others must not, when it is stored.
    served: Vec<Uid>,
    answer: Option<Answer>,
}

enum Answer {
    Committed(u64),
    Conflict(u64, BTreeMap<Key, u64>),
    Unknown(u64),
}

impl Server {
    /// A server that has just read the store.
    pub(crate) fn new(index: usize, rng: &mut Rng, core: &MemoryCore) -> Server {
        let name = Name::new(&format!("s{index}")).unwrap_or_else(|_| unreachable!("a short name"));
        Server {
            name,
            run: Uid::from_bits(rng.bits()),
            feed: begin(core, None),
            paused: false,
            term: None,
            read_at: None,
            finds_before: 0,
        }
    }

    /// Plans that a resync alone had woken, in all terms of this server.
    pub(crate) fn resync_finds(&self) -> u64 {
        self.finds_before + self.term.as_ref().map_or(0, |term| term.reconciler.counters().resync_finds)
    }

    fn end_term(&mut self) {
        self.finds_before = self.resync_finds();
        self.term = None;
    }
}

/// A view of the store as it is, or was at a revision.
pub(crate) fn begin(core: &MemoryCore, at: Option<u64>) -> Feed {
    core.list("", at).map(|listing| Feed::begin(&listing)).unwrap_or_default()
}

impl Cluster {
    /// One server does one thing.
    pub(crate) fn server_acts(&mut self) -> Checked {
        let index = self.rng.below(self.servers.len());
        if self.servers[index].paused {
            return Ok(());
        }
        match self.rng.below(10) {
            0..=3 => {
                // Half of the time a server falls behind: what it decides on is old.
                let most = if self.rng.once_in(2) { 3 } else { BATCHES_MAX };
                let batches = 1 + self.rng.below(most);
                self.follow(index, batches);
                Ok(())
            }
            4 => self.campaign(index),
            5 => {
                self.renew(index);
                Ok(())
            }
            _ => self.lead(index),
        }
    }

    /// Something happens to one server.
    pub(crate) fn server_fault(&mut self) -> Checked {
        let index = self.rng.below(self.servers.len());
        match self.rng.below(6) {
            0 => {
                self.counts.add("fault: server killed");
                self.tell(|| format!("server s{index} is killed"));
                self.restart_server(index);
            }
            1 => {
                self.counts.add("fault: server paused");
                self.tell(|| format!("server s{index} is stopped"));
                self.servers[index].paused = true;
            }
            _ => self.servers[index].paused = false,
        }
        Ok(())
    }

    /// A killed server comes back with what the store shows, or with an older snapshot of it.
    fn restart_server(&mut self, index: usize) {
        self.drop_streams(index);
        let oldest = self.core.compacted().max(2);
        let span = self.core.revision().saturating_sub(oldest);
        let older = (span > 0 && self.rng.once_in(2)).then(|| oldest + self.rng.below(span as usize) as u64);
        if older.is_some() {
            self.counts.add("fault: older snapshot");
        }
        let run = Uid::from_bits(self.rng.bits());
        let server = &mut self.servers[index];
        server.end_term();
        server.run = run;
        server.paused = false;
        server.read_at = None;
        server.feed = begin(&self.core, older);
    }

    /// The server's view moves on by at most so many revisions; after a compaction it lists anew.
    pub(crate) fn follow(&mut self, index: usize, batches_max: usize) {
        let from = self.servers[index].feed.next_revision();
        let Ok(batches) = self.core.events("", from, batches_max) else {
            let listing = self.core.list("", None);
            if let Ok(listing) = listing {
                let changed = self.servers[index].feed.relist(&listing);
                self.after_feed(index, &changed, true);
            }
            return;
        };
        for batch in batches {
            let changed = self.servers[index].feed.apply(&batch);
            self.after_feed(index, &changed, false);
        }
        self.confirm(index);
    }

    /// A linearizable read finds that the server's view is as new as the store, or not.
    fn confirm(&mut self, index: usize) {
        let (now, revision) = (self.now(), self.core.revision());
        let server = &mut self.servers[index];
        if server.feed.view().revision() >= revision {
            server.read_at = Some(now);
        }
        if let Some(term) = &mut server.term {
            term.reconciler.confirm(revision, now);
        }
    }

    /// Brings the server's view to the newest revision.
    pub(crate) fn catch_up(&mut self, index: usize) {
        while self.servers[index].feed.view().revision() < self.core.revision() {
            self.follow(index, usize::MAX);
        }
        self.confirm(index);
    }

    fn after_feed(&mut self, index: usize, changed: &[Key], relisted: bool) {
        let server = &mut self.servers[index];
        let view = server.feed.view().clone();
        if let Some(term) = &mut server.term {
            term.reconciler.feed(view.clone(), if relisted { None } else { Some(changed) });
        }
        for worker in self.workers.iter_mut().filter(|worker| worker.stream_from() == Some(index)) {
            let id = worker.id;
            for delivery in delivery::changes(&view, id, changed, &delivery::unopened) {
                worker.push_delivery(delivery);
            }
        }
    }

    /// A server that sees no leader asks to become it.
    pub(crate) fn campaign(&mut self, index: usize) -> Checked {
        let server = &self.servers[index];
        if server.term.is_some() || server.paused || server.feed.view().contains(&Key::Leader) {
            return Ok(());
        }
        let view = server.feed.view().clone();
        let leader = Leader { server: server.name.clone(), run: server.run, url: String::new() };
        let lease =
            self.core.lease_grant(std::time::Duration::from_millis(LEASE_MILLIS), self.store_now()).id;
        let decision = Transaction::on(&view, [Key::Epoch], [Write::put(Key::Leader, leader)]);
        if let Sent::Committed(revision) =
            self.commit(&decision, &view, Writer::Candidate, |_| Some(lease))?
        {
            self.counts.add("leader: elected");
            self.tell(|| format!("server s{index} leads"));
            let session =
                [(Key::Epoch, view.mod_revision(&Key::Epoch)), (Key::Leader, revision)].into_iter().collect();
            let mut reconciler = Reconciler::new(session, view);
            // Whatever the last leader wrote is in the view before this one decides.
            reconciler.hold_until(revision);
            self.servers[index].term = Some(Term {
                reconciler,
                lease,
                batch: None,
                gauge: Gauge::default(),
                next_look: Timestamp::MIN,
            });
        }
        Ok(())
    }

    /// The leader renews its lease; one that is gone ends its term.
    pub(crate) fn renew(&mut self, index: usize) {
        let now = self.store_now();
        let Some(term) = &self.servers[index].term else { return };
        if self.core.lease_keep_alive(term.lease, now).is_err() {
            self.counts.add("leader: deposed");
            self.tell(|| format!("server s{index} leads no more"));
            self.servers[index].end_term();
        }
    }

    /// The leader's loop turns once: plan, send, or take the answer. A kill may come between any two.
    pub(crate) fn lead(&mut self, index: usize) -> Checked {
        self.look(index);
        self.issue(index)?;
        let (now, fresh_base) = (self.now(), self.rng.bits());
        let Some(term) = &mut self.servers[index].term else { return Ok(()) };
        let Some(mut batch) = term.batch.take() else {
            let before = term.reconciler.view().clone();
            let mut fresh = fresh_base;
            let decision = term.reconciler.next(now, || {
                fresh = fresh.wrapping_add(1 << 32);
                fresh
            });
            let view = term.reconciler.view().clone();
            let server = &self.servers[index];
            let age = server.read_at.map(|at| planner::since(at, now).millis());
            if let Some(decision) = &decision {
                groups::check_batch(decision, server.feed.view(), (&before, &view), (now, age))?;
                placing::check_batch(decision, &before, &view)?;
                preemption::check_batch(decision, &before, &view)?;
            }
            let fed = server.feed.view();
            let served =
                decision.iter().flat_map(|decision| groups::serving_ones_let_go(decision, &before, fed));
            let served = served.collect();
            let Some(term) = &mut self.servers[index].term else { return Ok(()) };
            term.batch = decision.map(|decision| InFlight { decision, view, before, served, answer: None });
            if term.batch.as_ref().is_some_and(|batch| batch.decision.writes.len() > 4) {
                self.counts.add("leader: chained batch");
            }
            return Ok(());
        };
        match batch.answer.take() {
            None => {
                batch.answer = Some(self.send_batch(index, &batch)?);
                if let Some(term) = &mut self.servers[index].term {
                    term.batch = Some(batch);
                }
                Ok(())
            }
            Some(answer) => {
                self.take_answer(index, answer);
                Ok(())
            }
        }
    }

    /// The leader asks what guests use, if it is time.
    fn look(&mut self, index: usize) {
        let now = self.now();
        let term = self.servers[index].term.as_ref().filter(|term| term.next_look <= now);
        let Some(view) = term.map(|term| term.reconciler.view().clone()) else { return };
        let counted = self.count(&view);
        let Some(term) = &mut self.servers[index].term else { return };
        term.next_look = planner::later(now, LOOK_PERIOD);
        let groups = term.gauge.take(&view, now, &counted);
        term.reconciler.measured(term.gauge.loads(), groups);
    }

    fn send_batch(&mut self, index: usize, batch: &InFlight) -> Result<Answer, Violation> {
        let run = self.servers[index].run;
        let mut serving = groups::serving_ones_let_go(&batch.decision, &batch.before, self.oracle.truth());
        serving.retain(|uid| !batch.served.contains(uid));
        let let_go = groups::let_go(&batch.decision, self.oracle.truth());
        let protected = slots::check_protected(&let_go, self.oracle.truth());
        let revision = self.core.revision();
        let outcome = self.commit(&batch.decision, &batch.view, Writer::Leader(run), |_| None)?;
        if self.core.revision() > revision && !serving.is_empty() {
            return Err(Violation(format!("rule 13: {serving:?} were let go for not serving, and serve")));
        }
        if self.core.revision() > revision {
            protected?;
            for (_, because) in let_go {
                match because {
                    RetiredFor::Request => self.counts.add("let go: request"),
                    RetiredFor::Move => self.counts.add("let go: move"),
                    _ => {}
                }
            }
        }
        self.tell(|| format!("s{index} sends {} writes: {outcome:?}", batch.decision.writes.len()));
        if self.trace {
            for write in batch.decision.writes.values() {
                self.tell(|| match write {
                    Write::Put(key, Record::Decided(decided)) => {
                        format!("    {key} waits {:?}", decided.waiting_on)
                    }
                    Write::Put(key, _) => format!("    {key}"),
                    Write::Delete(key) => format!("    {key} deleted"),
                });
            }
        }
        Ok(match outcome {
            Sent::Committed(_) if self.faults && self.rng.once_in(40) => {
                Answer::Unknown(self.core.revision())
            }
            Sent::Committed(revision) => Answer::Committed(revision),
            Sent::Conflict(revision, current) => {
                self.counts.add("conflict: leader");
                Answer::Conflict(revision, current)
            }
            Sent::Unknown => Answer::Unknown(self.core.revision()),
        })
    }

    fn take_answer(&mut self, index: usize, answer: Answer) {
        let now = self.now();
        let server = &mut self.servers[index];
        let Some(term) = &mut server.term else { return };
        match answer {
            Answer::Committed(revision) => term.reconciler.committed(revision),
            Answer::Unknown(revision) => term.reconciler.unknown(revision, now),
            Answer::Conflict(_, current) if term.reconciler.is_deposed(&current) => {
                server.end_term();
                self.counts.add("leader: deposed");
                self.tell(|| format!("server s{index} is told that it leads no more"));
            }
            Answer::Conflict(revision, current) => term.reconciler.conflicted(revision, &current, now),
        }
    }

    /// Every lease is renewed by who should.
    pub(crate) fn renew_all(&mut self) {
        for index in 0..self.servers.len() {
            self.renew(index);
        }
        let now = self.store_now();
        for worker in self.workers.iter().filter(|worker| !worker.cut_off) {
            if let Some(lease) = worker.lease {
                // A lease that is gone is noticed by its worker at its next heartbeat.
                let _ = self.core.lease_keep_alive(lease, now);
            }
        }
    }

    /// The servers that answer.
    pub(crate) fn up_servers(&self) -> VecDeque<usize> {
        (0..self.servers.len()).filter(|index| !self.servers[*index].paused).collect()
    }
}
