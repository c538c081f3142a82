//! `committed`: as `placement`, with each transaction committed to a real etcd before the loop goes on.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use lightbyte_api::envelope::Envelope;
use lightbyte_api::{Key, Kind};
use lightbyte_plan::planner::vm::placement;
use lightbyte_plan::{Reconciler, Transaction, View, Write};
use lightbyte_store::feed::encode;
use lightbyte_store::{EtcdOptions, EtcdStore, LeaseId, Outcome as Committed, Store as _};

use crate::Outcome;
use crate::bed::{self, Bed};
use crate::dispatch::{Plane, until_some};
use crate::figures::{Row, Samples};
use crate::placement::{NOW, ground, vms};

/// Workers of the world.
const WORKERS: usize = 1_000;
/// VMs that are asked for at once, and timed.
const VMS: usize = 2_000;
/// How many values one transaction of what is there before has: etcd takes 128.
const WRITES_AT_ONCE: usize = 100;
/// Where ports are looked for.
const PORTS_FIRST: u16 = 32_400;
/// Turns of the loop in which the world must come to rest.
const TURNS_MAX: usize = 100_000;

/// Measures it `runs` times, each on an etcd of its own.
///
/// # Errors
/// When etcd does not start, or refuses a transaction.
pub(crate) async fn measure(bed: &Bed, runs: usize) -> Result<Outcome> {
    let Some(etcd) = bed::etcd() else {
        return Ok(Outcome::Skipped("there is no etcd; `cargo xtask setup` fetches one".to_owned()));
    };
    measure_of(bed, &etcd, (WORKERS, VMS), runs).await.map(Outcome::Measured)
}

async fn measure_of(bed: &Bed, etcd: &Path, (workers, vms): (usize, usize), runs: usize) -> Result<Vec<Row>> {
    let (mut wall, mut spent) = (Samples::default(), 0.0);
    for run in 0..runs {
        let first_port = PORTS_FIRST + 100 * u16::try_from(run % 4)?;
        let plane = Plane::start(bed, etcd, 1, &["etcd"], first_port).await?;
        let mut world = World::new(&plane, workers).await?;
        let before = plane.spent("etcd");
        wall.push(world.place(vms).await? * 1e6 / vms as f64);
        spent += (plane.spent("etcd") - before) / vms as f64 / runs as f64;
    }
    let remark = format!("{:.0} a second; etcd {spent:.2} ms each", 1e6 / wall.median());
    let what = format!("{workers} workers, {vms} VMs placed in a real etcd");
    Ok(vec![Row { remark, ..Row::new("committed", what, "us", wall) }])
}

struct World {
    store: EtcdStore,
    /// What etcd holds: nobody else writes.
    view: View,
}

impl World {
    async fn new(plane: &Plane, workers: usize) -> Result<World> {
        let options = EtcdOptions::new(plane.etcd(), "/committed/");
        let store = EtcdStore::connect(options).await.context("set up the connection to etcd")?;
        until_some("etcd answers", async || store.get("/").await.ok()).await?;
        let mut world = World { store, view: View::default() };
        world.write(ground(workers)?).await?;
        let mut reconciler = world.reconciler();
        world.settle(&mut reconciler).await?;
        Ok(world)
    }

    fn reconciler(&self) -> Reconciler {
        let session: BTreeMap<Key, u64> = [(Key::Epoch, self.view.mod_revision(&Key::Epoch))].into();
        Reconciler::new(session, self.view.clone())
    }

    /// Asks for so many VMs, and places them; the seconds that it took from then on.
    async fn place(&mut self, count: usize) -> Result<f64> {
        let mut reconciler = self.reconciler();
        self.settle(&mut reconciler).await?;
        let writes = vms(0..count)?;
        let changed: Vec<Key> = writes.iter().map(|write| write.key().clone()).collect();
        self.write(writes).await?;
        let began = Instant::now();
        reconciler.feed(self.view.clone(), Some(&changed));
        self.settle(&mut reconciler).await?;
        let took = began.elapsed().as_secs_f64();
        let placed = self.view.objects_of(Kind::Vm).filter(|vm| placement(&self.view, vm).is_some()).count();
        ensure!(placed == count, "{placed} of {count} VMs were placed");
        Ok(took)
    }

    async fn write(&mut self, mut writes: Vec<Write>) -> Result<()> {
        while !writes.is_empty() {
            let rest = writes.split_off(writes.len().min(WRITES_AT_ONCE));
            let transaction = Transaction::on(&self.view, [], std::mem::replace(&mut writes, rest));
            self.commit(&transaction).await?;
        }
        Ok(())
    }

    async fn commit(&mut self, transaction: &Transaction) -> Result<u64> {
        let envelope = Envelope { written_at: NOW, writer: "bench" };
        let encoded = encode(transaction, &self.view, &envelope, |_| None::<LeaseId>);
        match self.store.commit(encoded).await.context("commit a transaction")? {
            Committed::Committed { revision } => {
                self.view.write(transaction.writes.values().cloned(), revision);
                self.view.apply(revision, []);
                Ok(revision)
            }
            Committed::Conflict { .. } => bail!("etcd holds something else than this bench wrote"),
        }
    }

    async fn settle(&mut self, reconciler: &mut Reconciler) -> Result<()> {
        let mut fresh = 1_u128 << 100;
        for _ in 0..TURNS_MAX {
            let found = reconciler.next(NOW, || {
                fresh += 1 << 32;
                fresh
            });
            match found {
                Some(transaction) => {
                    let changed: Vec<Key> = transaction.writes.keys().cloned().collect();
                    let revision = self.commit(&transaction).await?;
                    reconciler.committed(revision);
                    reconciler.feed(self.view.clone(), Some(&changed));
                }
                None if reconciler.is_idle() => return Ok(()),
                None => {}
            }
        }
        bail!("the loop has not come to rest after {TURNS_MAX} turns")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_few_vms_are_committed() {
        let Some(etcd) = bed::etcd() else {
            return bed::skip("committed", "there is no etcd; `cargo xtask setup` fetches one");
        };
        if let Err(error) = bed::lightbyte() {
            return bed::skip("committed", &error.to_string());
        }
        let directory = std::env::temp_dir().join(format!("lb-committed-{}", std::process::id()));
        let bed = Bed::at(directory.clone()).expect("a directory for the test");
        let rows = measure_of(&bed, &etcd, (3, 20), 1).await.expect("all are placed");
        assert!(rows.iter().all(|row| row.samples.count() == 1 && row.samples.min() > 0.0), "{rows:?}");
        drop(bed);
        std::fs::remove_dir_all(directory).expect("remove the directory");
    }
}
