//! The generators, on a processor of their own: `h2load` of nghttp2 as fast as answers come, ours by the clock.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::process::Command;

use super::origin;
use crate::figures::Samples;
use crate::processes::{GENERATOR_CORE, TASKSET};

/// How long one load may take.
const LOAD_MAX: Duration = Duration::from_secs(60);

/// What clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Workload {
    /// HTTP/1.1 on connections that are kept.
    Kept { is_long: bool },
    /// HTTP/1.1, each request on a connection of its own.
    New,
    /// HTTP/2 without TLS, from the first byte on.
    H2 { is_long: bool },
}

impl Workload {
    pub(crate) const ALL: [Workload; 5] = [
        Workload::Kept { is_long: false },
        Workload::Kept { is_long: true },
        Workload::New,
        Workload::H2 { is_long: false },
        Workload::H2 { is_long: true },
    ];

    /// In which place of [`Workload::ALL`] it is: how it is called on command lines.
    fn place(self) -> usize {
        Workload::ALL.iter().position(|workload| *workload == self).unwrap_or_default()
    }

    pub(super) const fn words(self) -> &'static str {
        match self {
            Workload::Kept { is_long: false } => "HTTP/1.1, kept, 1 KiB",
            Workload::Kept { is_long: true } => "HTTP/1.1, kept, 64 KiB",
            Workload::New => "HTTP/1.1, new connections, 1 KiB",
            Workload::H2 { is_long: false } => "HTTP/2, 1 KiB",
            Workload::H2 { is_long: true } => "HTTP/2, 64 KiB",
        }
    }

    pub(super) const fn is_h2(self) -> bool {
        matches!(self, Workload::H2 { .. })
    }

    pub(super) const fn path(self) -> &'static str {
        match self {
            Workload::Kept { is_long: true } | Workload::H2 { is_long: true } => origin::LONG,
            _ => origin::SHORT,
        }
    }

    pub(super) const fn answer_bytes(self) -> usize {
        match self {
            Workload::Kept { is_long: true } | Workload::H2 { is_long: true } => origin::LONG_BYTES,
            _ => origin::SHORT_BYTES,
        }
    }

    /// Connections that are kept, and requests at once on each: always 64 at once.
    pub(super) const fn clients(self) -> (u32, u32) {
        match self {
            Workload::Kept { .. } | Workload::New => (64, 1),
            Workload::H2 { .. } => (8, 8),
        }
    }
}

/// What came of a load.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Load {
    pub(super) per_second: f64,
    pub(super) latencies_us: Samples,
}

/// Asks so many times: as fast as answers come, or at a rate.
///
/// # Errors
/// When a single request fails.
pub(super) async fn run(
    (h2load, log): (&Path, &Path),
    to: SocketAddr,
    workload: Workload,
    requests: u64,
    per_second: Option<f64>,
) -> Result<Load> {
    if workload == Workload::New || per_second.is_some() {
        return by_the_clock(to, workload, requests, per_second).await;
    }
    let (clients, streams) = workload.clients();
    let mut command = Command::new(TASKSET);
    command.args(["-c", GENERATOR_CORE]).arg(h2load).arg("--log-file").arg(log);
    // By number and not by time: it counts what the end of the time would cut off in different ways.
    command.args(["-t", "1", "-n", &requests.to_string(), "-c", &clients.to_string()]);
    command.args(["-m", &streams.to_string()]);
    if !workload.is_h2() {
        command.arg("--h1");
    }
    command.arg(format!("http://{to}{}", workload.path()));
    // It adds to a log that is there.
    let _not_there = std::fs::remove_file(log);
    let text = said(command).await?;
    let (done, per_second) = read(&text).with_context(|| format!("read what h2load said: {text}"))?;
    if done != requests {
        bail!("h2load made {done} requests instead of {requests}");
    }
    let log = std::fs::read_to_string(log).context("read the log of h2load")?;
    Ok(Load { per_second, latencies_us: latencies_us(&log)? })
}

/// The same by our own generator, which keeps to a rate.
///
/// # Errors
/// When a single request fails.
pub(super) async fn by_the_clock(
    to: SocketAddr,
    workload: Workload,
    requests: u64,
    per_second: Option<f64>,
) -> Result<Load> {
    let mut command = Command::new(TASKSET);
    command.args(["-c", GENERATOR_CORE]).arg(std::env::current_exe().context("find this program")?);
    command.args([
        crate::CLIENTS_WORD,
        &to.to_string(),
        &workload.place().to_string(),
        &requests.to_string(),
    ]);
    command.arg(per_second.unwrap_or_default().to_string());
    let text = said(command).await?;
    let mut numbers = text.lines().map(str::parse::<f64>);
    let seconds = numbers.next().context("find the seconds")?.context("read the seconds")?;
    let latencies_us = numbers.collect::<Result<Samples, _>>().context("read the latencies")?;
    Ok(Load { per_second: requests as f64 / seconds, latencies_us })
}

async fn said(mut command: Command) -> Result<String> {
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(LOAD_MAX, command.output()).await;
    let output = output.context("it does not come to an end")?.context("start the generator")?;
    if !output.status.success() {
        bail!("the generator failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    String::from_utf8(output.stdout).context("read what it printed")
}

/// Requests, and how many of them in a second.
fn read(text: &str) -> Result<(u64, f64)> {
    let line = |begin: &str| text.lines().find_map(|line| line.strip_prefix(begin));
    let finished = line("finished in ").context("find `finished in`")?;
    let rate = finished.split(", ").nth(1).and_then(|rate| rate.strip_suffix(" req/s"));
    let rate = rate.and_then(|rate| rate.parse().ok()).context("read the rate")?;
    let requests = line("requests: ").context("find `requests:`")?;
    let count = |name: &str| {
        let count = requests.split(", ").find_map(|part| part.strip_suffix(name)?.trim().parse::<u64>().ok());
        count.with_context(|| format!("read the count of{name}"))
    };
    let (done, failed) = (count(" done")?, count(" failed")? + count(" errored")? + count(" timeout")?);
    let succeeded = count(" succeeded")?;
    let is_good = line("status codes: ").is_some_and(|codes| codes.ends_with(" 2xx, 0 3xx, 0 4xx, 0 5xx"));
    if failed > 0 || !is_good || done == 0 || succeeded < done {
        bail!("not all requests were answered with 200");
    }
    Ok((done, rate))
}

/// Lines of microseconds since 1970, status and microseconds.
fn latencies_us(log: &str) -> Result<Samples> {
    let latency = |line: &str| line.split('\t').nth(2)?.parse::<f64>().ok();
    log.lines().map(|line| latency(line).with_context(|| format!("read `{line}`"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "\nfinished in 2.01s, 3200.00 req/s, 475.00KB/s\n\
        requests: 6400 total, 6400 started, 6400 done, 6400 succeeded, 0 failed, 0 errored, 0 timeout\n\
        status codes: 6400 2xx, 0 3xx, 0 4xx, 0 5xx\n";

    #[test]
    fn what_the_generator_says_is_read_and_a_failure_is_one() {
        let table = [
            (SAID.to_owned(), Some((6_400, 3_200.0))),
            (SAID.replace("0 errored", "1 errored"), None),
            (SAID.replace("0 timeout", "1 timeout"), None),
            (SAID.replace("6400 2xx, 0 3xx", "6399 2xx, 1 3xx"), None),
            (SAID.replace("6400", "0"), None),
            (String::new(), None),
        ];
        for (text, expected) in table {
            assert_eq!(read(&text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn latencies_are_the_third_column() {
        let log = "1795902666842483\t200\t4644\n1795902666842481\t200\t12\n";
        assert_eq!(latencies_us(log).ok(), Some([4_644.0, 12.0].into_iter().collect()));
        assert!(latencies_us("1795902666842483\t200").is_err());
    }
}
