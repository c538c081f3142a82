//! `requests`: what a request costs through our proxy, bare pingora, haproxy and nginx, and with none between.
//!
//! ```text
//!   processor 1            processor 0               processor 1
//!   h2load ─────── one of the proxies, alone ─────── origin
//! ```
//!
//! All on one machine's loopback, each proxy with one thread, on a processor that it has for itself. Each gets every
//! [`Workload`] twice: as fast as it can, and at half the rate of the slowest (of the clients, if those are). There they are
//! compared, since a proxy that is slower than its clients wakes them for each answer, which costs it more than the answer,
//! and a faster one does not. They take turns. A request that is not answered with 200 ends the bench: it counts the cost
//! of working.

mod clocked;
mod load;
mod origin;
mod peers;

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::Outcome;
use crate::bed::Bed;
use crate::figures::{Row, Samples};
use crate::processes::{cpu_ms, lacks_cores, settled};
use crate::proxies::program;
use load::Load;
use peers::{Peer, Peers};

pub(crate) use clocked::ask;
pub(crate) use load::Workload;
pub(crate) use origin::serve;

/// Turns of each proxy at each workload, where the command line says nothing.
pub(crate) const RUNS: usize = 3;

/// How long each load takes, about.
const SECONDS: f64 = 3.0;

/// Requests of the first load, which shows how many the others take and counts for nothing else.
const WARM_UP: u64 = 6_000;

/// Requests of each load that is no measurement.
const TRAINING: u64 = 20_000;

/// Part of the slowest one's rate at which all are compared.
const PART: f64 = 0.5;

/// One proxy at one workload, all turns.
#[derive(Debug, Default)]
struct Sums {
    requests_each: u64,
    requests: u64,
    /// At the most, and at half the rate of the slowest.
    cpu_ms: f64,
    cpu_at_half_ms: f64,
    rates: Samples,
    latencies_us: Samples,
}

/// So many requests take [`SECONDS`].
fn enough(per_second: f64) -> u64 {
    (per_second * SECONDS).ceil() as u64
}

/// Measures all proxies that are there at all workloads.
///
/// # Errors
/// When one does not start, or does not answer a request with 200.
pub(crate) async fn measure(bed: &Bed, runs: usize) -> Result<Outcome> {
    let Some(h2load) = program("h2load") else {
        return Ok(Outcome::Skipped(
            "there is no `h2load`; `apt-get install nghttp2-client` installs it".into(),
        ));
    };
    if let Some(why) = lacks_cores() {
        return Ok(Outcome::Skipped(why));
    }
    let peers = match Peers::start(bed).await? {
        Ok(peers) => peers,
        Err(lacking) => return Ok(Outcome::Skipped(lacking)),
    };
    let generator = Generator { h2load, log: bed.path("h2load.log") };
    let mut rows = Vec::new();
    for workload in Workload::ALL {
        rows.extend(generator.compare(&peers.all, workload, runs).await?);
    }
    Ok(Outcome::Measured(rows))
}

/// Gives our proxy every load, unhurried and in a hurry, and ends it as a host does, so that it can say what it has done.
///
/// # Errors
/// As [`measure`], and when there is no generator.
pub(crate) async fn train(bed: &Bed) -> Result<()> {
    let h2load = program("h2load").context("find h2load; `apt-get install nghttp2-client` installs it")?;
    let generator = Generator { h2load, log: bed.path("h2load.log") };
    let mut peers = Peers::ours(bed).await?.map_err(anyhow::Error::msg)?;
    let ours = peers.all.pop().context("find our proxy")?;
    for workload in Workload::ALL {
        eprintln!("training: {}", workload.words());
        let load = generator.load(&ours, workload, TRAINING, None).await?;
        generator.load(&ours, workload, TRAINING, Some(load.per_second * PART)).await?;
    }
    ours.end().await
}

struct Generator {
    h2load: PathBuf,
    log: PathBuf,
}

impl Generator {
    async fn compare(&self, peers: &[Peer], workload: Workload, runs: usize) -> Result<Vec<Row>> {
        let peers: Vec<&Peer> = peers.iter().filter(|peer| peer.address(workload).is_some()).collect();
        let (mut sums, mut generator_most) = (Vec::new(), f64::INFINITY);
        for peer in &peers {
            let load = self.load(peer, workload, WARM_UP, None).await?;
            sums.push(Sums { requests_each: enough(load.per_second), ..Sums::default() });
            // More than the clients themselves can do would only pile up before them.
            let to = peer.address(workload).context("find the address")?;
            let unpaced = load::by_the_clock(to, workload, WARM_UP, None).await;
            let unpaced = unpaced.with_context(|| format!("{} at {}", peer.name, workload.words()))?;
            generator_most = generator_most.min(unpaced.per_second);
        }
        for _ in 0..runs {
            for (peer, sums) in peers.iter().zip(&mut sums) {
                let before = cpu_ms(peer.pid()?);
                let load = self.load(peer, workload, sums.requests_each, None).await?;
                settled(peer.pid()?).await;
                sums.cpu_ms += cpu_ms(peer.pid()?) - before;
                sums.requests += sums.requests_each;
                sums.rates.push(load.per_second);
            }
        }
        let slowest = sums.iter().map(|sums| sums.rates.median()).fold(f64::INFINITY, f64::min);
        let half = slowest.min(generator_most) * PART;
        for _ in 0..runs {
            for (peer, sums) in peers.iter().zip(&mut sums) {
                let before = cpu_ms(peer.pid()?);
                let load = self.load(peer, workload, enough(half), Some(half)).await?;
                settled(peer.pid()?).await;
                sums.cpu_at_half_ms += cpu_ms(peer.pid()?) - before;
                sums.latencies_us.extend(load.latencies_us);
            }
        }
        let haproxy = peers.iter().position(|peer| peer.name == peers::HAPROXY);
        let baseline = haproxy.map(|at| sums[at].cpu_at_half_ms);
        let row = |(peer, sums): (&&Peer, Sums)| row(peer.name, workload, sums, baseline, half);
        Ok(peers.iter().zip(sums).map(row).collect())
    }

    async fn load(&self, peer: &Peer, workload: Workload, requests: u64, rate: Option<f64>) -> Result<Load> {
        let to = peer.address(workload).context("find the address")?;
        let done = load::run((&self.h2load, &self.log), to, workload, requests, rate).await;
        done.with_context(|| format!("{} at {}", peer.name, workload.words()))
    }
}

fn row(name: &str, workload: Workload, sums: Sums, baseline: Option<f64>, half: f64) -> Row {
    let at_most_us = 1_000.0 * sums.cpu_ms / sums.requests as f64;
    let remark = format!("at {half:.0}/s; at most {:.0}/s with {at_most_us:.1} us each", sums.rates.median());
    Row {
        cpu_ms: Some(sums.cpu_at_half_ms / sums.latencies_us.count() as f64),
        ratio: baseline.map(|baseline| sums.cpu_at_half_ms / baseline),
        remark,
        ..Row::new("requests", format!("{}: {name}", workload.words()), "us", sums.latencies_us)
    }
}
