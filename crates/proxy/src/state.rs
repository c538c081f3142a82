//! The proxy as a whole: which topology holds, and how another one comes to hold.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use lightbyte_api::topology::Topology;
use tokio::sync::Notify;

use crate::access::AccessLog;
use crate::checks::Checks;
use crate::clock;
use crate::disk::{self, Disk, Unsealed};
use crate::listeners::{Listeners, Unbound};
use crate::lock::lock;
use crate::registry::Registry;
use crate::rehearsal;
use crate::say::say;
use crate::table::Table;

/// The proxy.
pub(crate) struct State {
    pub(crate) table: Arc<ArcSwap<Table>>,
    pub(crate) listeners: Listeners,
    pub(crate) registry: Arc<Mutex<Registry>>,
    pub(crate) access: AccessLog,
    disk: Disk,
    /// A topology holds that somebody has sent.
    fresh: Notify,
    /// Held while a topology is applied: one after the other.
    applied: tokio::sync::Mutex<Applied>,
    /// Listeners that could not be opened, by name.
    pub(crate) not_listening: Mutex<BTreeMap<String, String>>,
}

#[derive(Default)]
struct Applied {
    checksum: Option<String>,
    /// What of the topology that holds was rehearsed.
    script: Option<Topology>,
    /// Of the disk, and not served yet.
    held_back: Option<Unsealed>,
    checks: Checks,
    /// Ports that the topology has and that could not be listened on.
    unopened: HashSet<u16>,
}

/// Why a topology was not applied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotApplied {
    /// It is bad, and will be the next time too.
    #[error("{0}")]
    Bad(String),
    /// It is older than what holds.
    #[error("revision {asked} is older than {applied}, which holds")]
    Older { asked: u64, applied: u64 },
    /// The same revision holds with another content.
    #[error("revision {0} holds already, and is another topology")]
    Another(u64),
    /// This machine cannot carry it out, or not now.
    #[error("{0}")]
    NotHere(String),
}

impl State {
    pub(crate) fn new(
        table: Arc<ArcSwap<Table>>,
        listeners: Listeners,
        disk: Disk,
        access: AccessLog,
    ) -> State {
        State {
            table,
            listeners,
            registry: Arc::default(),
            access,
            disk,
            fresh: Notify::new(),
            applied: tokio::sync::Mutex::default(),
            not_listening: Mutex::default(),
        }
    }

    /// Reads what lies on disk, and does not serve it yet; but what is older is refused from now on. With a damaged or
    /// unusable file the proxy starts with nothing.
    ///
    /// # Errors
    /// If the disk cannot be read.
    pub(crate) async fn hold_back(&self) -> anyhow::Result<()> {
        let (unsealed, refusal) = self.disk.load().context("read the last topology")?;
        if let Some(refusal) = refusal {
            let fate =
                if refusal.is_damage() { "damaged and was put aside" } else { "of no use to this version" };
            say(format_args!("the topology on disk is {fate}: {refusal}"));
        }
        // What cannot be carried out must not refuse others for being older.
        let compiles =
            |unsealed: &Unsealed| match Table::compile(&unsealed.topology, &mut Registry::default()) {
                Ok(_) => true,
                Err(problem) => {
                    // It was good for whoever wrote it, so it stays: that version may come back.
                    say(format_args!("the topology on disk is of no use to this version: {problem}"));
                    false
                }
            };
        self.applied.lock().await.held_back = unsealed.filter(compiles);
        Ok(())
    }

    /// Serves what was held back, unless another topology has come meanwhile.
    pub(crate) async fn serve_held_back(&self) {
        let mut applied = self.applied.lock().await;
        let Some(unsealed) = applied.held_back.take() else { return };
        let compiled = Table::compile(&unsealed.topology, &mut lock(&self.registry));
        // That it compiles is known.
        let Ok(table) = compiled else { return };
        let (bound, failed) = self.listeners.bind(&table);
        // Better the other ports than none: whoever asks for the status hears of it.
        self.tell_of(&mut applied, failed);
        self.switch(&mut applied, table, bound, unsealed.checksum);
        // It has held before.
        applied.script = Some(rehearsal::script(&unsealed.topology));
    }

    /// The same, after a time in which a fresh topology may come.
    pub(crate) async fn serve_held_back_after(&self, wait: Duration) {
        // Who came in time has taken the place, and then nothing is held back any more.
        let _ = tokio::time::timeout(wait, self.fresh.notified()).await;
        self.serve_held_back().await;
    }

    /// Makes a topology hold: first durably on disk, then in one step for requests. Returns its revision.
    ///
    /// When this returns, no request begins to a backend that the topology does not have.
    ///
    /// # Errors
    /// Then what held before still holds, on disk too.
    pub(crate) async fn apply(&self, sealed: bytes::Bytes) -> Result<u64, NotApplied> {
        let unsealed = disk::unseal(&sealed).map_err(|refusal| NotApplied::Bad(refusal.to_string()))?;
        let mut applied = self.applied.lock().await;
        let held_back = applied.held_back.as_ref();
        let held_back = held_back.map(|held| (held.topology.revision, Some(held.checksum.clone())));
        let (before, checksum) =
            held_back.unwrap_or_else(|| (self.table.load().revision, applied.checksum.clone()));
        let revision = unsealed.topology.revision;
        if revision < before {
            return Err(NotApplied::Older { asked: revision, applied: before });
        }
        let is_same = checksum.as_ref() == Some(&unsealed.checksum);
        if revision == before && checksum.is_some() && !is_same {
            return Err(NotApplied::Another(revision));
        }
        let result = self.carry_out(&mut applied, sealed, unsealed, is_same).await;
        if result.is_err() {
            // Whom only the refused topology names, nobody holds any more.
            lock(&self.registry).forget_the_gone();
        }
        result.map(|()| revision)
    }

    async fn carry_out(
        &self,
        applied: &mut Applied,
        sealed: bytes::Bytes,
        unsealed: Unsealed,
        is_same: bool,
    ) -> Result<(), NotApplied> {
        let compiled = Table::compile(&unsealed.topology, &mut lock(&self.registry));
        let table = compiled.map_err(|problem| NotApplied::Bad(problem.to_string()))?;
        let mut script = rehearsal::script(&unsealed.topology);
        if applied.script.as_ref() != Some(&script) {
            script = rehearsal::rehearse(&script, applied.script.as_ref()).await?;
        }
        let (bound, failed) = self.listeners.bind(&table);
        // One that was not open before is no reason to keep the rest from a newer topology.
        if let Some(new) = failed.iter().find(|unbound| !applied.unopened.contains(&unbound.port)) {
            return Err(NotApplied::NotHere(new.reason.clone()));
        }
        if !is_same {
            let disk = self.disk.clone();
            let saved = tokio::task::spawn_blocking(move || disk.save(&sealed)).await;
            let saved = saved.map_err(std::io::Error::other).and_then(|saved| saved);
            saved.map_err(|error| NotApplied::NotHere(format!("save the topology: {error}")))?;
        }
        self.tell_of(applied, failed);
        self.switch(applied, table, bound, unsealed.checksum);
        applied.script = Some(script);
        Ok(())
    }

    /// Says which listeners are not open, and remembers them.
    fn tell_of(&self, applied: &mut Applied, failed: Vec<Unbound>) {
        for unbound in &failed {
            say(format_args!("{}", unbound.reason));
        }
        applied.unopened = failed.iter().map(|unbound| unbound.port).collect();
        *lock(&self.not_listening) =
            failed.into_iter().map(|unbound| (unbound.name, unbound.reason)).collect();
    }

    fn switch(&self, applied: &mut Applied, table: Table, bound: crate::listeners::Bound, checksum: String) {
        let table = Arc::new(table);
        applied.held_back = None;
        applied.checksum = Some(checksum);
        applied.checks.follow(&table);
        self.table.store(table.clone());
        self.listeners.switch(&table, bound);
        let mut registry = lock(&self.registry);
        registry.keep_limiters(&table);
        registry.forget_the_gone();
        self.fresh.notify_one();
    }

    /// How long the process has run.
    pub(crate) fn uptime_ms() -> u64 {
        clock::now_ms()
    }
}
