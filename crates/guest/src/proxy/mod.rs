//! Starts and supervises the proxy of a load balancer's VM, which is a VM of an image that has the program.
//!
//! ```text
//! identity and network ──> starting ──first answer──> up ──ended──────────────────────────────┐
//!                             │                        └──silent for 10 s──> killed ──ended───┤
//!                             └──silent for a minute──> killed ──ended────────────────────────┤
//!                  starting <──at once, then after 1 s, 2 s, … 30 s; anew after a minute up───┘
//! ```
//!
//! Never are there two: they could listen on one port and share its connections. So one that was killed is waited for,
//! however long the kernel takes. A proxy that starts again takes its last good topology from the disk and needs nobody.

mod console;
mod control;
mod log;

use std::cell::Cell;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use http_body_util::{Either, Empty};
use hyper::Method;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process_group, setrlimit};
use tokio::net::unix::pipe::Receiver;
use tokio::sync::{oneshot, watch};
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::agent::Agent;

pub(crate) use control::{Line, Question};

/// The program; an image that has it is one of a proxy.
const PROGRAM: &str = "/bin/lightbyte-proxy";

/// Where it is told and asked: in memory, since it makes the socket anew.
const CONTROL: &str = "/run/lightbyte-proxy/control";

/// Its last good topology: on the root disk, so that it outlives a reboot.
const STATE: &str = "/var/lib/lightbyte/proxy";

/// Its access log.
const LOG: &str = "/var/log/lightbyte-proxy";

/// The pause before the second start in a row; it doubles up to the last.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// One that has run for so long was well, and is started at once again.
const WELL_AFTER: Duration = Duration::from_secs(60);

/// How long the first proxy after a boot waits for a fresh topology before it serves the one on its disk, which may be of
/// long ago: its backends may have become somebody else's. One that is started again waits for nobody.
const WAIT_FOR_FRESH: Duration = Duration::from_secs(5);

/// Files that the proxy may have open at least, each a connection or a port. The kernel gives process 1 only 4,096.
const DESCRIPTORS_MAX: u64 = 65_536;

/// Where things of the proxy are.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    program: PathBuf,
    control: PathBuf,
    state: PathBuf,
    log: PathBuf,
}

impl Default for Places {
    fn default() -> Self {
        Self { program: PROGRAM.into(), control: CONTROL.into(), state: STATE.into(), log: LOG.into() }
    }
}

/// How it is watched.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Watchdog {
    /// How often a proxy that is up is asked, and how long it may take.
    every: Duration,
    /// So many times in a row it may fail to answer. Counted, not timed: a machine that stood still for a minute, its
    /// clock going on, has missed one answer and not thirty.
    failures_max: u32,
    /// How often one is asked that is starting.
    start_every: Duration,
    /// How long it may take until its first answer: it reads its topology before.
    start_max: Duration,
}

impl Default for Watchdog {
    fn default() -> Self {
        Self {
            every: Duration::from_secs(2),
            failures_max: 5,
            start_every: Duration::from_millis(100),
            start_max: Duration::from_secs(60),
        }
    }
}

/// How the process is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Process {
    /// Its id, which is that of its group; none while there is none.
    pub(crate) pid: Option<Pid>,
    /// Whether it has answered.
    pub(crate) is_up: bool,
}

/// What the agent knows of its proxy.
#[derive(Default)]
pub(crate) struct Proxy {
    places: Places,
    watchdog: Watchdog,
    process: watch::Sender<Process>,
}

impl Proxy {
    /// Whether this image has one.
    pub(crate) fn exists(&self) -> bool {
        self.places.program.exists()
    }

    pub(crate) fn control(&self) -> &Path {
        &self.places.control
    }

    pub(crate) fn process(&self) -> Process {
        *self.process.borrow()
    }
}

/// Runs the proxy for ever, where there is one, once this guest is what the host says.
pub(crate) async fn supervise(agent: Rc<Agent>) {
    if !agent.proxy.exists() {
        return;
    }
    // The sender lives in the agent.
    let _ = agent.set_up.subscribe().wait_for(|set_up| *set_up).await;
    raise_descriptors();
    let mut starts = 0;
    let mut wait_for_fresh = WAIT_FOR_FRESH;
    loop {
        let started = Instant::now();
        let why = match start(&agent.proxy.places, &agent, wait_for_fresh) {
            Ok(running) => running.until_end(&agent).await,
            Err(error) => format!("does not start: {error:#}"),
        };
        if started.elapsed() >= WELL_AFTER {
            starts = 0;
        }
        // From now on what is on the disk is of a moment ago.
        wait_for_fresh = Duration::ZERO;
        let pause = pause(starts);
        starts = starts.saturating_add(1);
        if agent.shutting_down.get() {
            println!("lightbyte-guest: the proxy {why}");
        } else {
            println!("lightbyte-guest: the proxy {why}; starting it again in {} s", pause.as_secs());
        }
        sleep(pause).await;
        while agent.shutting_down.get() {
            // The end of a machine may fail, and then it goes on.
            sleep(PAUSE_FIRST).await;
        }
    }
}

/// The pause before the next start, after so many starts in a row that did not last.
fn pause(starts: u32) -> Duration {
    match starts.checked_sub(1) {
        None => Duration::ZERO,
        Some(doublings) => PAUSE_FIRST.saturating_mul(2_u32.saturating_pow(doublings)).min(PAUSE_MAX),
    }
}

/// What the agent starts takes over its limits. Its own soft limit stays: that is for the proxy to raise.
fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    if limit.maximum.is_none_or(|maximum| maximum >= DESCRIPTORS_MAX) {
        return;
    }
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { maximum: Some(DESCRIPTORS_MAX), ..limit }) {
        println!("lightbyte-guest: let the proxy have {DESCRIPTORS_MAX} files: {error}");
    }
}

/// A proxy that was started. Dropping it before it has ended kills it: whoever supervises next starts another.
struct Running<'a> {
    proxy: &'a Proxy,
    group: Pid,
    exit: oneshot::Receiver<u32>,
    has_ended: Cell<bool>,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if !self.has_ended.get() {
            self.kill();
        }
        self.proxy.process.send_replace(Process::default());
    }
}

fn start<'a>(places: &Places, agent: &'a Agent, wait_for_fresh: Duration) -> Result<Running<'a>> {
    let mut child = Command::new(&places.program)
        .arg("--control")
        .arg(&places.control)
        .arg("--state")
        .arg(&places.state)
        .args(["--wait-for-fresh", &wait_for_fresh.as_secs().to_string()])
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .context("start the program")?;
    let exit = agent.children.register(child.id());
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("read its process id")?;
    let running = Running { proxy: &agent.proxy, group, exit, has_ended: Cell::new(false) };
    agent.proxy.process.send_replace(Process { pid: Some(group), is_up: false });
    // Without readers it would get a signal for its first word (SIGPIPE), or wait for ever.
    take_outputs(&mut child, places).context("take what it says")?;
    Ok(running)
}

/// Its requests go to files, its words to the console.
fn take_outputs(child: &mut Child, places: &Places) -> Result<()> {
    if let Some(requests) = child.stdout.take() {
        log::keep(requests, places.log.clone()).context("start a thread")?;
    }
    if let Some(words) = child.stderr.take() {
        let words = std::fs::File::from(std::os::fd::OwnedFd::from(words));
        let flags = rustix::fs::fcntl_getfl(&words)? | rustix::fs::OFlags::NONBLOCK;
        rustix::fs::fcntl_setfl(&words, flags)?;
        spawn_local(console::show(Receiver::from_file_unchecked(words)?));
    }
    Ok(())
}

impl Running<'_> {
    fn kill(&self) {
        let _ = kill_process_group(self.group, Signal::KILL);
    }

    /// Waits for its end, which it brings about if the proxy falls silent. Says how it ended.
    async fn until_end(mut self, agent: &Agent) -> String {
        let code = tokio::select! {
            code = &mut self.exit => Some(code),
            () = until_silent(agent) => None,
        };
        let why = match code {
            Some(code) => format!("ended with {}", code.unwrap_or(255)),
            None => {
                self.kill();
                // However long it takes: see the module.
                let _ = (&mut self.exit).await;
                "was killed because it did not answer any more".to_owned()
            }
        };
        self.has_ended.set(true);
        why
    }
}

/// Asks the proxy again and again, and returns when it has not answered for too long.
async fn until_silent(agent: &Agent) {
    let watchdog = agent.proxy.watchdog;
    let begun = Instant::now();
    while !answers(agent, watchdog.every).await {
        if begun.elapsed() > watchdog.start_max {
            return;
        }
        sleep(watchdog.start_every).await;
    }
    agent.reached(|milestones| &mut milestones.proxy);
    agent.proxy.process.send_modify(|process| process.is_up = true);
    let mut failures = 0;
    while failures < watchdog.failures_max {
        let asked = Instant::now();
        failures = if answers(agent, watchdog.every).await { 0 } else { failures + 1 };
        sleep_until(asked + watchdog.every).await;
    }
}

async fn answers(agent: &Agent, within: Duration) -> bool {
    let asking = async {
        let line = Line::open(agent.proxy.control()).await?;
        line.ask(Method::GET, "/status", Either::Right(Empty::new())).await
    };
    matches!(timeout(within, asking).await, Ok(Ok(said)) if said.status.is_success())
}

#[cfg(test)]
mod tests;
