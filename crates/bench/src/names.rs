//! `names`: what an answer by DNS costs from our resolver, knot, dnsmasq and unbound, each with the same 10,000 names.
//!
//! Each has one thread on a processor of its own, and `dnsperf` on the other asks for names of the zone over UDP with 100
//! queries in flight. They take turns. How long a new zone takes until it is answered from is measured of ours alone: the
//! others are told in ways that they have for people.

mod peers;
mod resolver;

use anyhow::{Context as _, Result, bail};
use tokio::process::Command;

use crate::Outcome;
use crate::bed::Bed;
use crate::figures::{Row, Samples};
use crate::processes::{GENERATOR_CORE, TASKSET, cpu_ms, lacks_cores, settled};
use crate::proxies::program;
use peers::{Peer, Peers};

pub(crate) use resolver::resolve;

/// Turns of each, where the command line says nothing.
pub(crate) const RUNS: usize = 3;

/// Names of the zone, each with one address.
const NAMES: u32 = 10_000;

/// How long each is asked in one turn.
const SECONDS: u32 = 3;

/// Zones that are handed over, one after the other.
const UPDATES: u64 = 100;

/// One resolver, all turns.
#[derive(Debug, Default)]
struct Sums {
    queries: f64,
    cpu_ms: f64,
    rates: Samples,
    latencies_us: Samples,
}

/// Measures all that are there.
///
/// # Errors
/// When one does not start or leaves a query without a good answer.
pub(crate) async fn measure(bed: &Bed, runs: usize) -> Result<Outcome> {
    let Some(dnsperf) = program("dnsperf") else {
        return Ok(Outcome::Skipped("there is no `dnsperf`; `apt-get install dnsperf` installs it".into()));
    };
    if let Some(why) = lacks_cores() {
        return Ok(Outcome::Skipped(why));
    }
    let mut peers = Peers::start(bed).await?;
    let queries = bed.path("queries");
    let text: String = (0..NAMES).map(|number| format!("{} A\n", peers::name(number))).collect();
    std::fs::write(&queries, text).context("write the queries")?;
    let mut sums: Vec<Sums> = peers.all.iter().map(|_| Sums::default()).collect();
    for turn in 0..=runs {
        for (peer, sums) in peers.all.iter().zip(&mut sums) {
            let before = cpu_ms(peer.pid()?);
            let said = ask(&dnsperf, &queries, peer).await.with_context(|| format!("ask {}", peer.name))?;
            settled(peer.pid()?).await;
            // The first turn warms up.
            if turn > 0 {
                sums.cpu_ms += cpu_ms(peer.pid()?) - before;
                sums.queries += said.queries;
                sums.rates.push(said.per_second);
                sums.latencies_us.push(said.latency_us);
            }
        }
    }
    let knot = peers.all.iter().position(|peer| peer.name == peers::KNOT);
    let baseline = knot.map(|at| sums[at].cpu_ms / sums[at].queries);
    let row = |(peer, sums): (&Peer, Sums)| row(peer.name, sums, baseline);
    let mut rows: Vec<Row> = peers.all.iter().zip(sums).map(row).collect();
    let updates = peers.update(UPDATES).await.context("hand over zones")?;
    rows.push(Row {
        remark: format!("of {NAMES} names, from its handing over as text on"),
        ..Row::new("names", "a new zone until it is answered from: ours", "ms", updates)
    });
    Ok(Outcome::Measured(rows))
}

/// What one turn came to.
#[derive(Debug, PartialEq)]
struct Said {
    queries: f64,
    per_second: f64,
    latency_us: f64,
}

async fn ask(dnsperf: &std::path::Path, queries: &std::path::Path, peer: &Peer) -> Result<Said> {
    let mut command = Command::new(TASKSET);
    command.args(["-c", GENERATOR_CORE]).arg(dnsperf).arg("-d").arg(queries);
    command.args(["-s", &peer.address.ip().to_string(), "-p", &peer.address.port().to_string()]);
    command.args(["-l", &SECONDS.to_string(), "-c", "4", "-q", "100", "-T", "1"]);
    let output = command.kill_on_drop(true).output().await.context("start dnsperf")?;
    let text = String::from_utf8_lossy(&output.stdout);
    read(&text).with_context(|| format!("read what dnsperf said ({}): {text}", output.status))
}

/// Lines of a name, a colon and a value.
fn read(text: &str) -> Result<Said> {
    let value = |name: &str| {
        let value = text.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':'));
        value.map(str::trim).with_context(|| format!("find `{name}`"))
    };
    let number = |name: &str| {
        let first = value(name)?.split_whitespace().next().unwrap_or_default();
        first.parse::<f64>().with_context(|| format!("read `{name}`"))
    };
    let codes = value("Response codes")?;
    // A query that was lost on this machine would count as free.
    if !codes.starts_with("NOERROR") || !codes.contains("(100.00%)") || number("Queries lost")? > 0.0 {
        bail!("not all queries were answered");
    }
    Ok(Said {
        queries: number("Queries completed")?,
        per_second: number("Queries per second")?,
        latency_us: number("Average Latency (s)")? * 1e6,
    })
}

fn row(name: &str, sums: Sums, baseline: Option<f64>) -> Row {
    let cpu_ms = sums.cpu_ms / sums.queries;
    let remark = format!("{:.2} us of CPU for a query, {:.0}/s", 1_000.0 * cpu_ms, sums.rates.median());
    Row {
        cpu_ms: Some(cpu_ms),
        ratio: baseline.map(|baseline| cpu_ms / baseline),
        remark,
        ..Row::new("names", format!("a query, 100 in flight: {name}"), "us", sums.latencies_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "Statistics:\n\n  Queries sent:         317\n  Queries completed:    317 (100.00%)\n  \
        Queries lost:         0 (0.00%)\n\n  Response codes:       NOERROR 317 (100.00%)\n  \
        Queries per second:   105.5\n\n  Average Latency (s):  0.0005 (min 0.000100, max 0.01)\n";

    #[test]
    fn what_the_generator_says_is_read_and_a_lost_query_is_a_failure() {
        let expected = Said { queries: 317.0, per_second: 105.5, latency_us: 500.0 };
        let table = [
            (SAID.to_owned(), Some(expected)),
            (SAID.replace("lost:         0", "lost:         1"), None),
            (SAID.replace("NOERROR 317 (100.00%)", "NOERROR 310 (97.79%), SERVFAIL 7 (2.21%)"), None),
            (SAID.replace("NOERROR", "NXDOMAIN"), None),
            (String::new(), None),
        ];
        for (text, expected) in table {
            assert_eq!(read(&text).ok(), expected, "{text}");
        }
    }
}
