//! `fleet`: a real etcd and the shipped server, with 1,000 shipped agents whose hosts are in memory, and 10,000 VMs in groups.
//!
//! What counts is the control plane: how long it takes until all run, what it has in memory, what it does while nothing
//! happens, and how long it takes after a restart. Agents and hosts are in this program, on the same processors.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lightbyte_api::object::Object;
use lightbyte_api::wire::{Applied, Apply, ClusterStatus, List};
use lightbyte_api::{ByteSize, Name, Timestamp};
use lightbyte_link::{Client, Endpoint};
use lightbyte_vmm::FakeHost;
use lightbyte_worker::offer::Offer;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::Outcome;
use crate::bed::{self, Bed};
use crate::dispatch::{Plane, begin_cluster};
use crate::figures::Row;

/// How many agents.
const WORKERS: usize = 1_000;
/// How many VMs.
const VMS: usize = 10_000;
/// How many members a group has.
const GROUP: usize = 50;
/// Where ports are looked for.
const PORTS_FIRST: u16 = 32_000;
/// How long each part may take: minutes, on two processors with a thousand agents.
const WITHIN: Duration = Duration::from_secs(600);
/// The pause between two looks.
const LOOK_PAUSE: Duration = Duration::from_millis(500);
/// For how long the cluster is watched at rest, once nothing was written for as long.
const REST: Duration = Duration::from_secs(20);
/// How long a guest takes to be ready.
const BOOT: Duration = Duration::from_millis(50);

/// Measures it once.
///
/// # Errors
/// When something does not start, or the cluster does not come to rest.
pub(crate) async fn measure(bed: &Bed) -> Result<Outcome> {
    let Some(etcd) = bed::etcd() else {
        return Ok(Outcome::Skipped("there is no etcd; `cargo xtask setup` fetches one".to_owned()));
    };
    measure_of(bed, &etcd, (WORKERS, VMS), REST).await.map(Outcome::Measured)
}

async fn measure_of(
    bed: &Bed,
    etcd: &Path,
    (workers, vms): (usize, usize),
    rest: Duration,
) -> Result<Vec<Row>> {
    let mut plane = Plane::start(bed, etcd, 1, &["etcd", "server"], PORTS_FIRST).await?;
    let client = begin_cluster(&plane).await?;
    let began = Instant::now();
    let agents = Agents::start(bed, &plane, workers, vms)?;
    until(|| ready_workers(&client), workers, "workers are ready").await?;
    let came = began.elapsed();

    let (began, spent) = (Instant::now(), plane.spent("server"));
    ask_for(&client, vms).await?;
    until(|| ready_groups(&client), vms.div_ceil(GROUP), "groups are ready").await?;
    let (ran, spent) = (began.elapsed(), plane.spent("server") - spent);
    let resident = plane.resident("server");

    let watched = at_rest(&client, &plane, rest).await?;

    let began = Instant::now();
    plane.start_again("server").await?;
    until(|| ready_workers(&client), workers, "workers are ready again").await?;
    until(|| ready_groups(&client), vms.div_ceil(GROUP), "groups are ready again").await?;
    let back = began.elapsed();
    let after = at_rest(&client, &plane, rest).await?;
    drop(agents);

    let row = |what: String, unit, value: f64| Row::new("fleet", what, unit, [value].into_iter().collect());
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let placed = format!("{:.0} a second, the agents on the same processors", vms as f64 / ran.as_secs_f64());
    Ok(vec![
        row(format!("{workers} workers register"), "s", came.as_secs_f64()),
        Row { cpu_ms: Some(spent), remark: placed, ..row(format!("{vms} VMs run"), "s", ran.as_secs_f64()) },
        row("  memory of the server".to_owned(), "MiB", mib(resident)),
        Row {
            remark: format!("{} writes; etcd {:.0} ms", watched.writes, watched.etcd_ms),
            ..row("  the server at rest, each second".to_owned(), "ms", watched.server_ms)
        },
        row("  the server killed and started, until all is ready".to_owned(), "s", back.as_secs_f64()),
        Row {
            remark: format!("{} writes", after.writes),
            ..row("  the server at rest after that, each second".to_owned(), "ms", after.server_ms)
        },
    ])
}

/// What the control plane does while nothing happens.
struct Rest {
    /// Processor time each second.
    server_ms: f64,
    etcd_ms: f64,
    /// How many revisions were made.
    writes: u64,
}

/// Waits until nothing was written for a while, and then watches.
async fn at_rest(client: &Client, plane: &Plane, rest: Duration) -> Result<Rest> {
    let settling = async {
        loop {
            let before = revision(client).await?;
            sleep(rest / 2).await;
            if revision(client).await? == before {
                return anyhow::Ok(());
            }
        }
    };
    timeout(WITHIN, settling).await.context("something is written all the time")??;
    let (before, server, etcd) = (revision(client).await?, plane.spent("server"), plane.spent("etcd"));
    sleep(rest).await;
    let each = |spent: f64| spent / rest.as_secs_f64();
    Ok(Rest {
        server_ms: each(plane.spent("server") - server),
        etcd_ms: each(plane.spent("etcd") - etcd),
        writes: revision(client).await? - before,
    })
}

async fn revision(client: &Client) -> Result<u64> {
    let networks = client.get::<List<Object>>("/v1/objects/network").await.context("read the revision")?;
    networks.revision.context("an answer without a revision")
}

async fn ask_for(client: &Client, vms: usize) -> Result<()> {
    let groups = (0..vms.div_ceil(GROUP)).map(|group| {
        json!({
            "kind": "scalegroup", "name": format!("g{group}"),
            "spec": { "replicas": GROUP, "template": { "image": "demo" } },
        })
    });
    let apply = Apply { documents: groups.collect(), create_only: true, dry_run: false };
    client.post::<_, Applied>("/v1/apply", &apply).await.context("ask for the groups")?;
    Ok(())
}

async fn ready_workers(client: &Client) -> Option<usize> {
    let status = client.get::<ClusterStatus>("/v1/status").await.ok()?.value;
    Some(status.workers.iter().filter(|worker| worker.status.ready).count())
}

async fn ready_groups(client: &Client) -> Option<usize> {
    let groups = client.get::<List<Object>>("/v1/objects/scalegroup").await.ok()?.value;
    Some(groups.items.iter().filter(|group| group.status.ready).count())
}

/// Looks until so many are counted.
async fn until(count: impl AsyncFn() -> Option<usize>, wanted: usize, what: &str) -> Result<()> {
    let mut found = 0;
    let looking = async {
        while found != wanted {
            sleep(LOOK_PAUSE).await;
            found = count().await.unwrap_or(found);
        }
    };
    let in_time = timeout(WITHIN, looking).await.is_ok();
    ensure!(in_time, "only {found} of {wanted} {what} after {} s", WITHIN.as_secs());
    Ok(())
}

/// Agents with hosts in memory; they end with this.
struct Agents {
    _running: JoinSet<()>,
}

impl Agents {
    fn start(bed: &Bed, plane: &Plane, workers: usize, vms: usize) -> Result<Agents> {
        let mut running = JoinSet::new();
        // Twice the room that is needed.
        let each = (2 * vms).div_ceil(workers) as u64;
        let memory = ByteSize::from_mib(each * 512);
        for worker in 0..workers {
            let host = FakeHost::new(memory, ["br0".to_owned()]);
            host.on_start(|host, vm| {
                let host = host.clone();
                tokio::spawn(async move {
                    sleep(BOOT).await;
                    host.guest_ready(vm, Timestamp::now());
                });
            });
            let config = lightbyte_worker::Config {
                name: Name::new(&format!("w{worker}")).context("make a name")?,
                state: bed.make(&format!("fleet/w{worker}"))?,
                servers: plane.endpoints()?,
                offer: Offer { host_cpus: each, cpus: each, memory, vms_max: each },
                vmm: "fake".to_owned(),
                listen: None::<Endpoint>,
                parts: None,
            };
            let drivers = host.drivers();
            running.spawn(async move {
                if let Err(error) = lightbyte_worker::run(config, drivers, std::future::pending()).await {
                    eprintln!("fleet: an agent ended: {error:#}");
                }
            });
        }
        Ok(Agents { _running: running })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_small_fleet_runs_rests_and_comes_back() {
        let Some(etcd) = bed::etcd() else {
            return bed::skip("fleet", "there is no etcd; `cargo xtask setup` fetches one");
        };
        if let Err(error) = bed::lightbyte() {
            return bed::skip("fleet", &error.to_string());
        }
        let directory = std::env::temp_dir().join(format!("lightbyte-fleet-{}", std::process::id()));
        let bed = Bed::at(directory.clone()).expect("a directory");
        let rows = measure_of(&bed, &etcd, (3, 100), Duration::from_secs(2)).await.expect("figures");
        assert_eq!(rows.len(), 6);
        drop(bed);
        let _ = std::fs::remove_dir_all(directory);
    }
}
