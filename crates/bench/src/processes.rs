//! Processor time of processes, and processes that end with us.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::process::{Child, Command};

/// Processor time of a process so far, user and system, in milliseconds; 0 once it has gone.
///
/// It is the sum over its threads of the scheduler's own count (`schedstat`), in nanoseconds: `stat` counts in ticks of
/// 10 ms, which is more than most of what is measured here takes. A thread that ends takes its count with it.
pub(crate) fn cpu_ms(pid: u32) -> f64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let spent = threads.filter_map(|thread| fs::read_to_string(thread.path().join("schedstat")).ok());
    spent.filter_map(|text| nanoseconds(&text)).sum::<f64>() / 1e6
}

/// Waits until a process does nothing more: what it does after the last answer belongs to the load as well.
pub(crate) async fn settled(pid: u32) {
    const LOOK: Duration = Duration::from_millis(100);
    const LOOKS_MAX: u32 = 20;
    /// What checks and timers take meanwhile.
    const REST_MS: f64 = 1.0;
    let mut before = cpu_ms(pid);
    for _ in 0..LOOKS_MAX {
        tokio::time::sleep(LOOK).await;
        let now = cpu_ms(pid);
        if now - before < REST_MS {
            return;
        }
        before = now;
    }
}

/// The memory that a process has in use, in bytes; 0 once it has gone.
pub(crate) fn resident_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// The first number of `schedstat` is the time spent on a processor (sched-stats.rst of the kernel).
fn nanoseconds(schedstat: &str) -> Option<f64> {
    schedstat.split_whitespace().next()?.parse().ok()
}

/// Processor time of our children that have ended and were waited for, in milliseconds; exact to a tick of 10 ms.
pub(crate) fn children_cpu_ms() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    ticks_of_children(&stat).unwrap_or_default() * 10.0
}

/// Fields 16 and 17 of `stat` (proc(5)), counted after the name, which may hold anything.
fn ticks_of_children(stat: &str) -> Option<f64> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
    Some(field(16)? + field(17)?)
}

/// The living processes whose command line `is_wanted` recognises: number and words.
pub(crate) fn find(is_wanted: impl Fn(&[String]) -> bool) -> Vec<(u32, Vec<String>)> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let words_of = |pid: u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let line = String::from_utf8(line).ok()?;
        let words: Vec<String> = line.trim_end_matches('\0').split('\0').map(str::to_owned).collect();
        is_wanted(&words).then_some((pid, words))
    };
    pids.filter_map(words_of).collect()
}

/// Starts a program that is killed when the result is dropped. What it says goes to `log`.
pub(crate) fn start(program: &Path, arguments: &[OsString], log: &Path) -> Result<Child> {
    start_with(program, arguments, log, Stdio::null())
}

/// The same, with an input of ours.
pub(crate) fn start_told(program: &Path, arguments: &[OsString], log: &Path) -> Result<Child> {
    start_with(program, arguments, log, Stdio::piped())
}

/// The processor of what is measured alone, and that of everything else.
pub(crate) const MEASURED_CORE: &str = "0";
pub(crate) const GENERATOR_CORE: &str = "1";

/// Why nothing can be measured on a processor of its own, if it cannot.
pub(crate) fn lacks_cores() -> Option<String> {
    let is_alone = std::thread::available_parallelism().is_ok_and(|cores| cores.get() < 2);
    is_alone.then(|| "what is measured and its clients need a processor each".to_owned())
}

/// The words by which `taskset` becomes the program on that processor, so that it keeps its id and ends with its `Child`.
pub(crate) fn on_core(core: &str, program: &Path, arguments: &[OsString]) -> Vec<OsString> {
    let mut words: Vec<OsString> = vec!["-c".into(), core.into(), program.as_os_str().to_owned()];
    words.extend_from_slice(arguments);
    words
}

/// What [`on_core`] gives words for.
pub(crate) const TASKSET: &str = "taskset";

fn start_with(program: &Path, arguments: &[OsString], log: &Path, input: Stdio) -> Result<Child> {
    let log = fs::File::options()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("open {}", log.display()))?;
    let errors = log.try_clone().context("open a log twice")?;
    Command::new(program)
        .args(arguments)
        .stdin(input)
        .stdout(log)
        .stderr(errors)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("start {}", program.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_the_kernel_writes_them() {
        assert_eq!(nanoseconds("45902 101311 2\n"), Some(45_902.0));
        assert_eq!(nanoseconds(""), None);
        let stat = "7 (a) b) S 1 1 1 0 -1 4194560 100 200 0 0 11 12 13 14 20 0 1 0 4711";
        assert_eq!(ticks_of_children(stat), Some(27.0));
    }

    #[test]
    fn our_own_process_is_found_and_has_spent_time() {
        let own = std::process::id();
        let program = std::env::args().next().expect("a program");
        let found = find(|words| words.first() == Some(&program));
        assert!(found.iter().any(|(pid, _)| *pid == own), "{found:?}");
        assert!(cpu_ms(own) > 0.0);
    }
}
