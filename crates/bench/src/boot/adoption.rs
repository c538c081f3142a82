//! An agent that begins while real VMs run: how long it takes to find them, and what each costs it in memory.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::Lab;
use crate::bed::{Bed, run};
use crate::figures::{Row, Samples};

/// The VMs that it finds.
const VMS: usize = 10;
/// How long a lab may take to start an agent again, and that to find all.
const BEGIN_MAX: Duration = Duration::from_secs(30);
/// The pause between two looks at its log.
const PAUSE: Duration = Duration::from_millis(20);
/// The first worker's process, and its log, as a lab calls them.
const WORKER: &str = "n1-worker";

/// Kills the agent of a lab with one host so often.
///
/// # Errors
/// When a VM does not start, or an agent does not find all.
pub(super) async fn measure(lab: &Lab<'_>, runs: usize) -> Result<Vec<Row>> {
    let bed = lab.bed;
    let (mut found_ms, mut resident) = (Samples::default(), Samples::default());
    let names: Vec<String> = (0..VMS).map(|number| format!("found-{number}")).collect();
    for _ in 0..runs {
        let (_, without) = begins_anew(bed, 0).await?;
        for name in &names {
            run(bed.lightbyte()?.args(["run", "demo", "--name", name]))?;
        }
        // Each VM and its root disk.
        let (took_ms, with) = begins_anew(bed, 2 * VMS).await?;
        took_ms.into_iter().for_each(|took_ms| found_ms.push(took_ms));
        resident.push((with - without) / VMS as f64);
        for name in &names {
            run(bed.lightbyte()?.args(["delete", &format!("vm/{name}"), "--yes"]))?;
        }
    }
    Ok(vec![
        Row::new("boot", format!("{VMS} real VMs and disks found by an agent"), "ms", found_ms),
        Row::new("boot", "  memory of that agent for each VM", "KiB", resident),
    ])
}

/// Kills the agent. Gives what the next one says that it took to find so many objects, if there are any, and its memory
/// after that.
async fn begins_anew(bed: &Bed, objects: usize) -> Result<(Option<f64>, f64)> {
    let log = bed.lab().join("log").join(format!("{WORKER}.log"));
    let said = || fs::read_to_string(&log).context("read the agent's log");
    let (pid, before) = (process(bed)?, said()?.len());
    kill_process(Pid::from_raw(pid).context("its process")?, Signal::KILL).context("kill the agent")?;
    let begun = Instant::now();
    let word = format!("found {objects} objects of an earlier run in ");
    while begun.elapsed() < BEGIN_MAX {
        tokio::time::sleep(PAUSE).await;
        let text = said()?;
        let news = text.get(before..).unwrap_or_default();
        let took = news.split(&word).nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok());
        let is_there = took.is_some() || objects == 0;
        // It is at rest when a server knows it again.
        if let Some(pid) =
            process(bed).ok().filter(|now| *now != pid && is_there && news.contains("registered"))
        {
            return Ok((took, resident_kib(pid)?));
        }
    }
    anyhow::bail!("no agent has found {objects} objects within {} s", BEGIN_MAX.as_secs())
}

fn process(bed: &Bed) -> Result<i32> {
    let noted = fs::read(bed.lab().join("processes").join(WORKER)).context("read the agent's process")?;
    let noted: Value = serde_json::from_slice(&noted).context("read the agent's process")?;
    noted["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).context("it has no number")
}

/// What of a process is in memory (`VmRSS`, proc_pid_status(5)).
fn resident_kib(pid: i32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("read the agent's memory")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    line.trim().trim_end_matches(" kB").trim().parse().context("read VmRSS")
}
