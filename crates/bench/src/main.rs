//! `lightbyte-bench [NAME…] [--runs N] [--nodes N] [--json FILE]`: what lightbyte adds, beside a raw baseline.
//!
//! | bench | ours | baseline |
//! |---|---|---|
//! | `boot` | `lightbyte run` on a lab with real VMs, from request to ready | the same command line of QEMU, by hand |
//! | `dispatch` | from asking for a VM until its worker's stream has the assignment | etcd: a put until its watch has it |
//! | `host` | cloning and fetching a disk; what an agent finds when it begins | `cp`; reading the same records |
//! | `placement` | the leader's loop at 1,000 and 10,000 workers | the same at 100 |
//! | `fleet` | 1,000 workers with 10,000 VMs in memory: placed, at rest, and after a restart of the server | |
//! | `committed` | the same at 1,000 workers, in a real etcd | |
//! | `packing` | VMs that the scheduler places in small worlds | the most that fit |
//! | `deaths` | a backend killed, vanished and hung behind our proxy | haproxy and nginx beside it |
//! | `requests` | a request through our proxy | bare pingora, haproxy, nginx, and none between |
//! | `names` | an answer by DNS | knot, dnsmasq, unbound |
//! | `foresee` | plans, N-1 and `why` with 1,000 VMs | the leader's loop looks at them once |
//!
//! Ours and the baseline take turns within one run, because a machine that does other things changes from minute to
//! minute: trust the ratio and the processor time, not the milliseconds. Nothing here fails because it is slow; it fails
//! when something does not work.
//!
//! `cargo xtask bench` builds everything and starts this.

mod bed;
mod boot;
mod committed;
mod deaths;
mod dispatch;
mod figures;
mod fleet;
mod foresee;
mod host;
mod names;
mod packing;
mod placement;
mod processes;
mod proxies;
mod requests;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::{Context as _, Result, bail};
use tokio::signal::unix::{SignalKind, signal};

use crate::bed::Bed;
use crate::figures::Row;

/// Exit code for words that are not understood (`EX_USAGE` of sysexits.h).
const EXIT_USAGE: u8 = 64;

/// Exit code after Ctrl-C, as shells have it: 128 and the number of the signal.
const EXIT_INTERRUPTED: u8 = 130;

/// Every bench, in the order in which they run.
const BENCHES: &[&str] = &[
    "placement",
    "committed",
    "packing",
    "foresee",
    "deaths",
    "requests",
    "names",
    "dispatch",
    "fleet",
    "host",
    "boot",
];

/// The word under which this program is a backend of `deaths`, with an address.
const BACKEND_WORD: &str = "backend-of-deaths";

/// The word under which it is the backend of `requests`.
const ORIGIN_WORD: &str = "origin-of-requests";

/// The word under which it gives a proxy the loads of `requests` and measures nothing.
const TRAINING_WORD: &str = "training-of-requests";

/// The word under which it is the resolver of `names`, with an address and a directory.
const RESOLVER_WORD: &str = "resolver-of-names";

/// The word under which it is clients of `requests`, with an address, a workload, a number and a rate.
const CLIENTS_WORD: &str = "clients-of-requests";

/// What the command line says.
#[derive(Debug, PartialEq, Eq)]
struct Words {
    names: Vec<String>,
    /// How often each side of `boot`, of `host` and of `placement` runs.
    runs: Option<usize>,
    /// Hosts of the lab and members of etcd: 1 or 3.
    nodes: usize,
    /// Where the figures are written for programs.
    json: Option<PathBuf>,
}

/// How a bench ended.
enum Outcome {
    Measured(Vec<Row>),
    /// It cannot run here; the text says what would run it.
    Skipped(String),
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let Some(outcome) = part(&words) {
        return outcome.map_or_else(
            |error| {
                eprintln!("error: {error:#}");
                ExitCode::FAILURE
            },
            |()| ExitCode::SUCCESS,
        );
    }
    let words = match read(words.into_iter()) {
        Ok(words) => words,
        Err(error) => {
            eprintln!(
                "error: {error:#}\nusage: [{}]… [--runs N] [--nodes N] [--json FILE]",
                BENCHES.join("|")
            );
            return ExitCode::from(EXIT_USAGE);
        }
    };
    run(&words).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

/// What this program does as a process of a bench, if the words are those of one.
fn part(words: &[String]) -> Option<Result<()>> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        [BACKEND_WORD, address] => Some(on_one_thread(async { deaths::serve(parsed(address)?).await })),
        [ORIGIN_WORD, address] => Some(on_one_thread(async { requests::serve(parsed(address)?).await })),
        [CLIENTS_WORD, address, workload, number, rate] => Some(on_one_thread(async {
            let workload =
                requests::Workload::ALL.get(parsed::<usize>(workload)?).context("find the workload")?;
            let said = requests::ask(parsed(address)?, *workload, parsed(number)?, parsed(rate)?).await?;
            std::io::stdout().write_all(said.as_bytes()).context("say what was seen")
        })),
        [TRAINING_WORD] => Some(on_one_thread(async { requests::train(&Bed::take()?).await })),
        [RESOLVER_WORD, address, state] => {
            Some(on_one_thread(async { names::resolve(parsed(address)?, Path::new(state)).await }))
        }
        _ => None,
    }
}

fn parsed<T: FromStr<Err: std::error::Error + Send + Sync + 'static>>(word: &str) -> Result<T> {
    word.parse().with_context(|| format!("read `{word}`"))
}

fn on_one_thread(work: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("start the runtime")?.block_on(work)
}

fn read(words: impl Iterator<Item = String>) -> Result<Words> {
    let mut read = Words { names: Vec::new(), runs: None, nodes: 1, json: None };
    let mut words = words;
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("`{word}` needs a value"));
        match word.as_str() {
            "--runs" => read.runs = Some(number(&value()?, |runs| runs > 0)?),
            "--nodes" => read.nodes = number(&value()?, |nodes| [1, 3].contains(&nodes))?,
            "--json" => read.json = Some(value()?.into()),
            name if BENCHES.contains(&name) => read.names.push(word),
            _ => bail!("unknown word `{word}`"),
        }
    }
    Ok(read)
}

fn number(word: &str, is_good: impl Fn(usize) -> bool) -> Result<usize> {
    let number = word.parse().ok().filter(|number| is_good(*number));
    number.with_context(|| format!("`{word}` cannot be asked for"))
}

fn run(words: &Words) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start the runtime")?;
    runtime.block_on(async {
        tokio::select! {
            // What runs is dropped then, and what it has started ends with it.
            () = interrupted() => Ok(ExitCode::from(EXIT_INTERRUPTED)),
            outcome = measure(words) => outcome,
        }
    })
}

/// Resolves when a signal asks the process to end.
async fn interrupted() {
    let terminated = async {
        match signal(SignalKind::terminate()) {
            Ok(mut signals) => {
                signals.recv().await;
            }
            // Without a handler the signal ends the process at once; the next run clears away.
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = terminated => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}

async fn measure(words: &Words) -> Result<ExitCode> {
    let bed = Bed::take()?;
    boot::clear_away()?;
    let mut rows = Vec::new();
    let mut all_work = true;
    for name in
        BENCHES.iter().filter(|name| words.names.is_empty() || words.names.iter().any(|word| word == *name))
    {
        eprintln!("{name}: measuring");
        let outcome = match *name {
            "placement" => placement::measure(words.runs.unwrap_or(placement::RUNS)).await,
            "committed" => committed::measure(&bed, words.runs.unwrap_or(placement::RUNS)).await,
            "packing" => packing::measure(),
            "foresee" => foresee::measure(words.runs.unwrap_or(foresee::RUNS)).await,
            "deaths" => deaths::measure(&bed).await,
            "requests" => requests::measure(&bed, words.runs.unwrap_or(requests::RUNS)).await,
            "names" => names::measure(&bed, words.runs.unwrap_or(names::RUNS)).await,
            "host" => host::measure(words.runs.unwrap_or(host::RUNS)).await,
            "fleet" => fleet::measure(&bed).await,
            "dispatch" => dispatch::measure(&bed, words.nodes).await,
            _ => boot::measure(&bed, words.nodes, words.runs.unwrap_or(boot::RUNS)).await,
        };
        match outcome {
            Ok(Outcome::Measured(measured)) => rows.extend(measured),
            Ok(Outcome::Skipped(why)) => eprintln!("{name}: skipped: {why}"),
            Err(error) => {
                eprintln!("{name}: error: {error:#}");
                all_work = false;
            }
        }
    }
    print!("{}", figures::table(&rows));
    if let Some(path) = &words.json {
        std::fs::write(path, figures::json(&rows)).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(if all_work { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_names_and_options() {
        let table = [
            ("", Some((vec![], None, 1))),
            ("boot placement --runs 3", Some((vec!["boot", "placement"], Some(3), 1))),
            ("dispatch --nodes 3", Some((vec!["dispatch"], None, 3))),
            ("--nodes 2", None),
            ("--runs 0", None),
            ("--runs", None),
            ("speed", None),
        ];
        for (line, expected) in table {
            let expected = expected.map(|(names, runs, nodes)| Words {
                names: names.into_iter().map(str::to_owned).collect(),
                runs,
                nodes,
                json: None,
            });
            assert_eq!(read(line.split_whitespace().map(str::to_owned)).ok(), expected, "{line}");
        }
    }
}
