//! The binary: arguments, signals, and the runtime.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use lightbyte_proxy::{Options, Proxy};
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

/// Small objects that live for a request are what a proxy allocates, on one thread, and frees on another.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const USAGE: &str =
    "usage: lightbyte-proxy --control SOCKET --state DIRECTORY [--no-access-log] [--wait-for-fresh SECONDS]";

fn main() -> ExitCode {
    match options(std::env::args().skip(1)) {
        Ok(options) => match run(options) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                say(format_args!("{error:#}"));
                ExitCode::FAILURE
            }
        },
        Err(what) => {
            say(format_args!("{what}\n{USAGE}"));
            ExitCode::from(2)
        }
    }
}

/// A stderr that is gone is no reason to panic.
fn say(line: std::fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "error: {line}");
}

fn run(options: Options) -> anyhow::Result<()> {
    raise_descriptors();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let proxy = Proxy::start(options).await?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        proxy.leave().await;
        Ok(())
    })
}

/// Each connection is a descriptor, and the usual soft limit of 1024 is for programs that use `select`.
fn raise_descriptors() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Where that is forbidden, fewer connections are carried: accepting pauses and goes on.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// Longest that a fresh topology may be waited for: more is a slip of whoever wrote it, and nothing would be served.
const WAIT_FOR_FRESH_MAX_S: u64 = 60;

/// Four words need no library.
fn options(arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let (mut control, mut state, mut access_log) = (None, None, true);
    let mut wait_for_fresh = Duration::ZERO;
    let mut arguments = arguments;
    while let Some(word) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("`{word}` needs a value"));
        match word.as_str() {
            "--control" => control = Some(PathBuf::from(value()?)),
            "--state" => state = Some(PathBuf::from(value()?)),
            "--no-access-log" => access_log = false,
            "--wait-for-fresh" => wait_for_fresh = seconds(&value()?)?,
            _ => return Err(format!("`{word}` is not known")),
        }
    }
    Ok(Options {
        control: control.ok_or("`--control` is missing")?,
        state: state.ok_or("`--state` is missing")?,
        access_log,
        wait_for_fresh,
    })
}

fn seconds(word: &str) -> Result<Duration, String> {
    let seconds = word.parse().ok().filter(|seconds| *seconds <= WAIT_FOR_FRESH_MAX_S);
    seconds.map(Duration::from_secs).ok_or_else(|| format!("`{word}` is not 0 to {WAIT_FOR_FRESH_MAX_S}"))
}
