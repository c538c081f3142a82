//! `placement`: how many VMs a second the leader's loop places, by the number of workers and of VMs that are there.
//!
//! The shipped `Reconciler` on a view in memory; each of its transactions is committed at once and fed back, as a store
//! without any delay would. What counts is the processor time of the loop alone: `next`, `committed` and `feed`. It has
//! one thread and never waits, so that is what it takes on a machine that does nothing else. The store's part of a
//! placement is in `dispatch`.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use lightbyte_api::assigned::HostObject;
use lightbyte_api::kinds::network::{Ipv4, Pool};
use lightbyte_api::kinds::{image, network, vm, worker};
use lightbyte_api::object::{Asked, Meta};
use lightbyte_api::observed::{Observed, ObservedWorker};
use lightbyte_api::records::{Alive, Epoch, WorkerLedger};
use lightbyte_api::{ByteSize, Key, Kind, Name, ObjectRef, Spec, Subnet, Timestamp, Uid, WorkerId};
use lightbyte_plan::planner::vm::placement;
use lightbyte_plan::scheduler::{Need, schedule};
use lightbyte_plan::{Reconciler, Transaction, View, Write};
use rustix::time::{ClockId, clock_gettime};

use crate::Outcome;
use crate::figures::{Row, Samples};

/// How often each world is measured.
pub(crate) const RUNS: usize = 3;

/// Workers, and VMs that are placed before those that are timed. The first is the baseline.
const WORLDS: &[(usize, usize)] = &[(100, 0), (1_000, 0), (10_000, 0), (1_000, 10_000)];

/// Workers that the scheduler alone is asked about. The first is the baseline.
const WORKERS: &[usize] = &[100, 1_000, 5_000, 10_000];

/// VMs that are asked for at once, and timed.
const VMS: usize = 2_000;

/// What each worker offers: at 100 workers there is room for three times the VMs.
const WORKER_CPUS: u64 = 256;

/// Turns of the loop in which a world must come to rest: each turn plans hundreds of objects.
const TURNS_MAX: usize = 100_000;

/// When everything happens.
pub(crate) const NOW: Timestamp = Timestamp::constant(1_800_000_000, 0);

/// How often the scheduler alone is asked.
const QUESTIONS: usize = 20_000;

/// Measures every world, in turns; then the scheduler alone.
///
/// # Errors
/// When a VM is not placed, or the loop does not come to rest.
pub(crate) async fn measure(runs: usize) -> Result<Outcome> {
    let mut spent = vec![Samples::default(); WORLDS.len()];
    for _ in 0..runs {
        for ((workers, before), samples) in WORLDS.iter().zip(&mut spent) {
            samples.push(place(*workers, *before, VMS)?.as_secs_f64() * 1e6 / VMS as f64);
            // Ctrl-C is seen here.
            tokio::task::yield_now().await;
        }
    }
    let rows = WORLDS.iter().zip(&spent).enumerate().map(|(index, ((workers, before), samples))| {
        let what = match before {
            0 => format!("{workers} workers, first {VMS} VMs"),
            before => format!("{workers} workers, {VMS} VMs after {before}"),
        };
        let row = Row::new("placement", what, "us", samples.clone());
        let row = if index == 0 { row } else { row.against(&spent[0]) };
        let remark = format!("{:.0} placements/s", 1e6 / samples.median());
        Row { cpu_ms: Some(samples.median() / 1e3), remark, ..row }
    });
    let mut rows: Vec<Row> = rows.collect();
    let mut asked = vec![Samples::default(); WORKERS.len()];
    for _ in 0..runs {
        for (workers, samples) in WORKERS.iter().zip(&mut asked) {
            samples.push(ask(*workers)?.as_secs_f64() * 1e6 / QUESTIONS as f64);
            tokio::task::yield_now().await;
        }
    }
    for (index, (workers, samples)) in WORKERS.iter().zip(&asked).enumerate() {
        let row =
            Row::new("placement", format!("the scheduler alone, {workers} workers"), "us", samples.clone());
        let row = if index == 0 { row } else { row.against(&asked[0]) };
        rows.push(Row { remark: format!("{:.0} a second", 1e6 / samples.median()), ..row });
    }
    Ok(Outcome::Measured(rows))
}

/// Asks the scheduler for a worker, again and again on the same view.
fn ask(workers: usize) -> Result<Duration> {
    let view = World::new(workers)?.into_view();
    let need = Need::of(1, ByteSize::from_mib(512), "x86_64");
    let (found, spent) = timed(|| (0..QUESTIONS).filter(|_| schedule(&view, &need).worker.is_some()).count());
    ensure!(found == QUESTIONS, "only {found} of {QUESTIONS} have a place");
    Ok(spent)
}

/// Places `before` VMs and then `vms` more on `workers` workers; what the latter took of a processor.
fn place(workers: usize, before: usize, vms: usize) -> Result<Duration> {
    let mut world = World::new(workers)?;
    world.ask_and_settle(0..before)?;
    let spent = world.ask_and_settle(before..before + vms)?;
    let placed = world.store.objects_of(Kind::Vm).filter(|vm| placement(&world.store, vm).is_some()).count();
    ensure!(placed == before + vms, "{placed} of {} VMs were placed", before + vms);
    let counters = world.reconciler.counters();
    ensure!(counters.conflicts == 0 && counters.panics == 0, "the loop met trouble: {counters:?}");
    Ok(spent)
}

/// A cluster in memory: what the store holds, and the loop that leads.
pub(crate) struct World {
    store: View,
    reconciler: Reconciler,
    fresh: u128,
}

impl World {
    /// A cluster of so many workers, an image and a network, at rest.
    pub(crate) fn new(workers: usize) -> Result<Self> {
        let mut store = View::default();
        store.write(ground(workers)?, 1);
        store.apply(1, []);
        let mut world = Self::of(store);
        world.settle()?;
        Ok(world)
    }

    /// A loop that begins on `store`.
    pub(crate) fn of(store: View) -> Self {
        let session: BTreeMap<Key, u64> = [(Key::Epoch, store.mod_revision(&Key::Epoch))].into();
        let reconciler = Reconciler::new(session, store.clone());
        Self { store, reconciler, fresh: 1 << 100 }
    }

    /// What the store holds.
    pub(crate) fn into_view(self) -> View {
        self.store
    }

    /// Asks for the VMs of these numbers at once, and turns the loop until it rests.
    fn ask_and_settle(&mut self, numbers: std::ops::Range<usize>) -> Result<Duration> {
        let writes = vms(numbers)?;
        let changed: Vec<Key> = writes.iter().map(|write| write.key().clone()).collect();
        self.commit(writes);
        let fed = timed(|| self.reconciler.feed(self.store.clone(), Some(&changed))).1;
        Ok(fed + self.settle()?)
    }

    /// Turns the loop until it rests.
    pub(crate) fn settle(&mut self) -> Result<Duration> {
        let mut spent = Duration::ZERO;
        for _ in 0..TURNS_MAX {
            let (found, planning) = timed(|| {
                self.reconciler.next(NOW, || {
                    self.fresh += 1 << 32;
                    self.fresh
                })
            });
            spent += planning;
            match found {
                Some(transaction) => spent += self.echo(&transaction)?,
                None if self.reconciler.is_idle() => return Ok(spent),
                None => {}
            }
        }
        bail!("the loop has not come to rest after {TURNS_MAX} turns")
    }

    /// Commits a transaction as a store would, and tells the loop.
    fn echo(&mut self, transaction: &Transaction) -> Result<Duration> {
        for (key, revision) in &transaction.guards {
            let found = self.store.mod_revision(key);
            ensure!(found == *revision, "a guard of `{key}` does not hold: {found}, not {revision}");
        }
        let changed: Vec<Key> = transaction.writes.keys().cloned().collect();
        let revision = self.commit(transaction.writes.values().cloned());
        let told = timed(|| {
            self.reconciler.committed(revision);
            self.reconciler.feed(self.store.clone(), Some(&changed));
        });
        Ok(told.1)
    }

    fn commit(&mut self, writes: impl IntoIterator<Item = Write>) -> u64 {
        let revision = self.store.revision() + 1;
        self.store.write(writes, revision);
        self.store.apply(revision, []);
        revision
    }
}

/// What is done, and the processor time that it took.
pub(crate) fn timed<T>(deed: impl FnOnce() -> T) -> (T, Duration) {
    let before = cpu();
    let done = deed();
    (done, cpu().saturating_sub(before))
}

/// Processor time of this thread.
fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

// ---------------------------------------------------------------------------------------------------------- the world

pub(crate) fn name(text: &str) -> Result<Name> {
    Name::new(text).with_context(|| format!("make the name `{text}`"))
}

fn asked(object: ObjectRef, uid: Uid, spec: Spec) -> Write {
    let meta = Meta::new(uid, None, BTreeMap::new(), NOW);
    Write::put(Key::Asked(object), Asked { meta, spec })
}

/// VMs of these numbers, as they are asked for.
pub(crate) fn vms(numbers: std::ops::Range<usize>) -> Result<Vec<Write>> {
    let vm = |number: usize| {
        let object = ObjectRef::new(Kind::Vm, name(&format!("vm-{number}"))?);
        let spec = Spec::Vm(vm::Spec::of_image(name("demo")?));
        Ok(asked(object, Uid::from_bits((1 << 90) + number as u128), spec))
    };
    numbers.map(vm).collect()
}

/// Everything that VMs stand on.
pub(crate) fn ground(workers: usize) -> Result<Vec<Write>> {
    let mut writes = vec![Write::put(Key::Epoch, Epoch { cluster: Uid::from_bits(1), epoch: 1 })];
    let part = |digit: &str| image::Part { sha256: digit.repeat(64), size: ByteSize::from_mib(64) };
    let version = image::Version {
        version: "v1".to_owned(),
        architecture: "x86_64".to_owned(),
        kernel: part("a"),
        initrd: None,
        command_line: String::new(),
        root: part("b"),
    };
    let spec = image::Spec { current: "v1".to_owned(), versions: vec![version] };
    writes.push(asked(ObjectRef::new(Kind::Image, name("demo")?), Uid::from_bits(2), Spec::Image(spec)));
    let pool = Pool {
        subnet: Subnet::of(Ipv4Addr::new(10, 77, 0, 0), 16),
        gateway: None,
        first: Ipv4Addr::new(10, 77, 0, 2),
        last: Ipv4Addr::new(10, 77, 255, 254),
    };
    let spec = network::Spec {
        ipv4: Ipv4::Pool(pool),
        dns: Vec::new(),
        bridge: "br0".to_owned(),
        mtu: None,
        subnet6: None,
        gateway6: None,
    };
    writes.push(asked(
        ObjectRef::new(Kind::Network, name("default")?),
        Uid::from_bits(3),
        Spec::Network(spec),
    ));
    for number in 0..workers {
        writes.extend(of_worker(number, WORKER_CPUS, ByteSize::from_mib(WORKER_CPUS << 10))?);
    }
    Ok(writes)
}

/// A worker that is alive and empty.
pub(crate) fn of_worker(number: usize, cpus: u64, memory: ByteSize) -> Result<[Write; 4]> {
    let object = ObjectRef::new(Kind::Worker, name(&format!("n-{number}"))?);
    let uid = Uid::from_bits((1 << 80) + number as u128);
    let id = WorkerId::new(uid);
    let said = ObservedWorker {
        name: object.name.clone(),
        boot_id: "boot".to_owned(),
        architecture: "x86_64".to_owned(),
        cpus,
        host_cpus: 0,
        vms_max: None,
        orphans: Vec::new(),
        memory,
        vmm: "fake".to_owned(),
        address: String::new(),
        version: "bench".to_owned(),
        parts: Vec::new(),
    };
    let itself = HostObject { kind: Kind::Worker, uid };
    Ok([
        asked(object, uid, Spec::Worker(worker::Spec::default())),
        Write::put(Key::Observed(id, itself), Observed::Worker(said)),
        Write::put(Key::WorkerLedger(id), WorkerLedger::default()),
        Write::put(Key::Alive(id), Alive { worker: id, boot_id: "boot".to_owned(), since: NOW }),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_world_is_placed_whole() {
        let spent = place(10, 20, 30).expect("all are placed");
        assert!(spent > Duration::ZERO);
    }
}
