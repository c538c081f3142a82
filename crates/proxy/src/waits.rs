//! Tries that wait for an answer and could be made elsewhere, and the taking away of those that wait in vain.
//!
//! What may be taken away is decided in [`patience`]; here it is carried out: the connection is shut down, and the
//! library finds it closed and asks for another try.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use rustix::net::Shutdown;
use tokio::time::{Instant, MissedTickBehavior};

use crate::clock;
use crate::lock::lock;
use crate::patience::{self, Look, Pace};
use crate::registry::Member;
use crate::table::{Pool, Table};

/// A second handle of a connection to a backend: the library owns the first and lends it to nobody.
#[derive(Debug)]
pub(crate) struct Leash(OwnedFd);

impl Leash {
    pub(crate) const fn new(socket: OwnedFd) -> Leash {
        Leash(socket)
    }

    /// Ends the connection, unless an answer has come and was not read yet. True if it did.
    fn cut(&self) -> bool {
        let is_unread = rustix::io::ioctl_fionread(&self.0).is_ok_and(|bytes| bytes > 0);
        !is_unread && rustix::net::shutdown(&self.0, Shutdown::Both).is_ok()
    }
}

/// One try that waits.
#[derive(Debug)]
struct Waiting {
    since_ms: u64,
    leash: Arc<Leash>,
    is_cut: Arc<AtomicBool>,
}

/// The tries that wait at one member, and when it was last heard.
#[derive(Debug, Default)]
pub(crate) struct Waits {
    pub(crate) pace: Pace,
    heard_ms: AtomicU64,
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, Waiting>>,
}

impl Waits {
    /// The head of an answer came.
    pub(crate) fn heard(&self, took_ms: u64, now_ms: u64) {
        self.heard_ms.store(now_ms, Ordering::Relaxed);
        self.pace.answered(took_ms, now_ms);
    }

    /// Whatever has waited so far has not waited for this member.
    fn excuse(&self, now_ms: u64) {
        self.heard_ms.store(now_ms, Ordering::Relaxed);
    }

    /// For how long the oldest try has waited without a word from the member.
    fn silent_ms(&self, now_ms: u64) -> Option<u64> {
        let oldest_ms = lock(&self.waiting).values().map(|waiting| waiting.since_ms).min()?;
        Some(now_ms.saturating_sub(oldest_ms.max(self.heard_ms.load(Ordering::Relaxed))))
    }

    /// Takes away what has waited for longer than the patience, as far as the pool bears it.
    fn take_away(&self, patience_ms: u64, pool: &Pool, now_ms: u64) {
        lock(&self.waiting).retain(|_, waiting| {
            if now_ms.saturating_sub(waiting.since_ms) <= patience_ms {
                return true;
            }
            // Paid for before it is done: who could not be tried elsewhere is better left waiting.
            if !pool.budget.spend(clock::now()) {
                return true;
            }
            waiting.is_cut.store(true, Ordering::SeqCst);
            let is_cut = waiting.leash.cut();
            if !is_cut {
                waiting.is_cut.store(false, Ordering::SeqCst);
            }
            !is_cut
        });
    }
}

/// A try that waits; it does no more when this is dropped.
#[derive(Debug)]
pub(crate) struct Wait {
    member: Arc<Member>,
    number: u64,
    is_cut: Arc<AtomicBool>,
}

impl Wait {
    pub(crate) fn new(member: Arc<Member>, leash: Arc<Leash>) -> Wait {
        let number = member.waits.next.fetch_add(1, Ordering::Relaxed);
        let is_cut = Arc::new(AtomicBool::new(false));
        let waiting = Waiting { since_ms: clock::now_ms(), leash, is_cut: is_cut.clone() };
        lock(&member.waits.waiting).insert(number, waiting);
        Wait { member, number, is_cut }
    }

    /// Whether its connection was shut down by us.
    pub(crate) fn is_cut(&self) -> bool {
        self.is_cut.load(Ordering::SeqCst)
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        lock(&self.member.waits.waiting).remove(&self.number);
    }
}

/// Looks for tries that wait in vain, for ever.
pub(crate) async fn watch(table: Arc<ArcSwap<Table>>) {
    let mut ticks = tokio::time::interval(patience::LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut looked = Instant::now();
    loop {
        ticks.tick().await;
        let is_late = looked.elapsed() > patience::LATE;
        looked = Instant::now();
        let table = table.load_full();
        for pool in table.pools.iter().filter(|pool| pool.members.len() > 1) {
            if is_late {
                let now_ms = clock::now_ms();
                pool.members.iter().for_each(|member| member.waits.excuse(now_ms));
            } else {
                look(pool);
            }
        }
    }
}

fn look(pool: &Pool) {
    if pool.members.iter().all(|member| member.in_flight() == 0) {
        return;
    }
    let now_ms = clock::now_ms();
    let slowest_ms = pool.members.iter().map(|member| member.waits.pace.slowest_ms()).max();
    let patience_ms = patience::patience_ms(slowest_ms.unwrap_or_default());
    let look = |member: &Arc<Member>| Look {
        is_healthy: member.is_healthy(now_ms),
        silent_ms: member.waits.silent_ms(now_ms),
    };
    let looks: Vec<Look> = pool.members.iter().map(look).collect();
    for (index, member) in pool.members.iter().enumerate() {
        if patience::may_take_away(&looks, index, patience_ms) {
            member.waits.take_away(patience_ms, pool, now_ms);
        }
    }
}
