//! The whole cluster in one thread, under faults.
//!
//! `lightbyte-sim --seeds N [--from S]` runs N seeds on all cores and prints what they met; `--seed S` replays one and
//! tells every step. A seed and a commit replay everything.

mod addresses;
mod authority;
mod balancers;
mod cluster;
mod counts;
mod foresee;
mod groups;
mod health;
mod leases;
mod load;
#[cfg(test)]
mod matrix;
mod moves;
mod oracle;
mod parts;
mod placing;
mod preemption;
mod rng;
mod secrets;
mod server;
mod slots;
mod specs;
mod squatters;
mod user;
mod volumes;
mod walls;
mod worker;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use lightbyte_api::Kind;

use crate::cluster::{Checked, Cluster, FAULTY_STEPS, Violation};
use crate::counts::Counts;

/// One in so many seeds ends with a forecast, besides those with groups.
const FORECAST_IN_EVERY: u64 = 4;
/// One in so many seeds ends with right and wrong specifications, in a cluster of its own.
const SPECS_IN_EVERY: u64 = 16;
/// One in so many seeds ends with groups that follow their requests, in a cluster of its own.
const REQUESTS_IN_EVERY: u64 = 16;
/// From this many seeds on, everything that can happen must have happened.
const SEEDS_FOR_COVERAGE: u64 = 2_000;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match parse(&words) {
        Some(Asked::One(seed)) => replay(seed),
        Some(Asked::Many { seeds, from }) => run_many(seeds, from),
        None => {
            eprintln!("usage: lightbyte-sim --seeds N [--from SEED] | --seed SEED");
            ExitCode::from(64)
        }
    }
}

enum Asked {
    One(u64),
    Many { seeds: u64, from: u64 },
}

fn parse(words: &[String]) -> Option<Asked> {
    let number = |flag: &str| {
        let at = words.iter().position(|word| word == flag)?;
        words.get(at + 1)?.parse::<u64>().ok()
    };
    match (number("--seed"), number("--seeds")) {
        (Some(seed), None) => Some(Asked::One(seed)),
        (None, Some(seeds)) => Some(Asked::Many { seeds, from: number("--from").unwrap_or(0) }),
        _ => None,
    }
}

/// One seed from its beginning to its calm end.
fn run_one(seed: u64, trace: bool) -> Result<Counts, Violation> {
    let mut cluster = Cluster::new(seed, trace);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        cluster.warm_up()?;
        for _ in 0..FAULTY_STEPS {
            cluster.faulty_step()?;
            count_waits(&mut cluster);
        }
        cluster.become_calm()?;
        if cluster.has_groups || seed.is_multiple_of(FORECAST_IN_EVERY) {
            cluster.foresee()?;
        }
        let mut elsewhere = |run: fn(&mut Cluster) -> Checked| {
            let mut other = Cluster::new(seed, trace);
            let outcome = run(&mut other);
            cluster.counts.merge(&other.counts);
            outcome
        };
        if seed % SPECS_IN_EVERY == 1 {
            elsewhere(Cluster::take_wrong_turns)?;
        }
        if seed % REQUESTS_IN_EVERY == 2 {
            elsewhere(Cluster::follow_requests)?;
        }
        Ok(())
    }));
    match outcome {
        Ok(Ok(())) => Ok(cluster.counts),
        Ok(Err(violation)) => Err(violation),
        Err(_) => Err(Violation("something panicked; its text is above".to_owned())),
    }
}

/// Notes which reasons to wait are in the store now.
fn count_waits(cluster: &mut Cluster) {
    use lightbyte_api::WaitingOn;
    if !cluster.rng.once_in(8) {
        return;
    }
    let mut met = Vec::new();
    let view = cluster.oracle.truth();
    for object in Kind::ALL.iter().flat_map(|kind| view.objects_of(*kind)) {
        for waiting in view.decided(object).iter().flat_map(|decided| &decided.waiting_on) {
            met.push(match waiting.on {
                WaitingOn::Capacity { .. } => "wait: capacity",
                WaitingOn::WorkersFull => "wait: workers full",
                WaitingOn::Workers { .. } => "wait: workers",
                WaitingOn::WorkerLabels { .. } => "wait: worker labels",
                WaitingOn::Preempting { .. } => "wait: preempting",
                WaitingOn::WorkersReserved => "wait: workers reserved",
                WaitingOn::KeptNear { .. } => "wait: kept near",
                WaitingOn::KeptApart => "wait: kept apart",
                WaitingOn::Missing { .. } => "wait: missing",
                WaitingOn::Address { .. } => "wait: address",
                WaitingOn::NeedsPool { .. } => "wait: pool needed",
                WaitingOn::Squatted { .. } => "wait: squatted",
                WaitingOn::Worker { .. } => "wait: worker",
                WaitingOn::WorkerAway { .. } => "wait: worker away",
                WaitingOn::CrashLoop { .. } => "wait: crash loop",
                WaitingOn::WorkerProblem { .. } => "wait: worker problem",
                WaitingOn::Off => "wait: off",
                WaitingOn::Health { .. } => "wait: health",
                WaitingOn::InUse { .. } => "wait: in use",
                WaitingOn::Child { .. } => "wait: child",
                WaitingOn::Unreadable { .. } => "wait: unreadable",
                WaitingOn::VolumeHeld { .. } => "wait: volume held",
                WaitingOn::VolumeElsewhere { .. } => "wait: volume elsewhere",
                WaitingOn::WorkerRoom { .. } => "wait: worker room",
                WaitingOn::WorkerPorts { .. } => "wait: worker ports",
                WaitingOn::WorkerClosed { .. } => "wait: worker closed",
                WaitingOn::Source { .. } => "wait: source",
                WaitingOn::Member { .. } => "wait: member",
                WaitingOn::HealingPause => "wait: healing pause",
                WaitingOn::Rejected { .. } => "wait: rejected version",
                WaitingOn::Promotion { .. } => "wait: promotion",
                WaitingOn::Paused { .. } => "wait: paused",
                WaitingOn::Protected { .. } => "wait: protected",
                WaitingOn::LossBrake => "wait: loss brake",
                WaitingOn::Leaving { .. } => "wait: leaving",
                WaitingOn::Staying { .. } => "wait: staying",
                WaitingOn::Quarantined { .. } => "wait: quarantined",
                WaitingOn::InRotation { .. } => "wait: in rotation",
                WaitingOn::VirtualAddress { .. } => "wait: virtual address",
                WaitingOn::AddressLeft { .. } => "wait: address left",
                WaitingOn::Names => "wait: names",
                WaitingOn::Proxies { .. } => "wait: proxies",
                WaitingOn::Acknowledgement { .. } => "wait: acknowledgement",
                WaitingOn::Trial { .. } => "wait: trial",
                WaitingOn::TrialFailed { .. } => "wait: trial failed",
                WaitingOn::NoBackends { .. } => "wait: no backends",
                WaitingOn::Ordered { .. } => "wait: certificate ordered",
                WaitingOn::OrderFailed { .. } => "wait: order failed",
                WaitingOn::CertificateExpires { .. } => "wait: certificate expires",
                WaitingOn::CertificateExpired { .. } => "wait: certificate expired",
                _ => "wait: other",
            });
        }
    }
    met.into_iter().for_each(|name| cluster.counts.add(name));
}

fn replay(seed: u64) -> ExitCode {
    match run_one(seed, true) {
        Ok(_) => {
            println!("seed {seed}: all rules held");
            ExitCode::SUCCESS
        }
        Err(Violation(what)) => {
            println!("seed {seed}: {what}");
            ExitCode::FAILURE
        }
    }
}

fn run_many(seeds: u64, from: u64) -> ExitCode {
    let begun = Instant::now();
    let next = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let run = || {
        let mut counts = Counts::default();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= seeds {
                return (counts, None);
            }
            let seed = from.wrapping_add(index);
            match run_one(seed, false) {
                Ok(found) => counts.merge(&found),
                Err(violation) => {
                    // The others stop too: one counterexample is enough, and the least is likely found first.
                    next.store(seeds, Ordering::Relaxed);
                    return (counts, Some((seed, violation)));
                }
            }
        }
    };
    let results: Vec<_> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        handles.into_iter().filter_map(|handle| handle.join().ok()).collect()
    });
    let mut counts = Counts::default();
    results.iter().for_each(|(found, _)| counts.merge(found));
    let worst = results.into_iter().filter_map(|(_, violation)| violation).min_by_key(|(seed, _)| *seed);
    if let Some((seed, Violation(what))) = worst {
        println!("seed {seed}: {what}");
        println!("replay it with: cargo xtask sim --seed {seed}");
        return ExitCode::FAILURE;
    }
    for (name, count) in counts.table() {
        println!("{count:>12}  {name}");
    }
    println!("{seeds} seeds from {from}: all rules held, {:.1} s", begun.elapsed().as_secs_f64());
    let missing = counts.missing();
    if seeds >= SEEDS_FOR_COVERAGE && !missing.is_empty() {
        println!("but this never happened, so nothing is known about it: {}", missing.join(", "));
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
