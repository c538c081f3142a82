//! Keeps the processes of a lab running.
//!
//! ```text
//!            wanted                       exits: pause, start again
//!   stopped ────────> running ─────────────────────────┐
//!      ^                 │  ^                           │
//!      └──── killed <────┘  └───────────────────────────┘
//!          (not wanted)
//! ```

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::log::{SharedLog, follow};
use crate::process::{MARK_VARIABLE, ProcessId, ends_within};
use crate::rack::Process;
use crate::state::{State, note_process};

/// The pause before a process that ended by itself is started again.
const RESTART_PAUSE: Duration = Duration::from_millis(500);
/// The role of etcd's members.
const ETCD: &str = "etcd";
/// How long a process may take to end in good order before it is killed.
const STOP_WITHIN: Duration = Duration::from_secs(3);

/// The processes of a lab.
pub struct Supervisor {
    hosts: BTreeMap<String, Host>,
    tasks: Vec<JoinHandle<()>>,
    /// Those of etcd, which ends last.
    last: Vec<JoinHandle<()>>,
}

/// One host.
#[derive(Clone)]
struct Host {
    /// What is wanted of it.
    power: watch::Sender<Power>,
    /// How many of its processes run.
    running: watch::Sender<usize>,
}

/// A process that runs on a host, for as long as this is not dropped.
struct Running(watch::Sender<usize>);

impl Running {
    fn on(host: &Host) -> Running {
        host.running.send_modify(|count| *count += 1);
        Running(host.running.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// What is wanted of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Power {
    On,
    /// Its processes are killed, as when a cable is pulled.
    Cut,
    /// Its processes are asked to end, but for etcd, where servers say that they go.
    Down,
    /// Nothing runs any more.
    Off,
}

impl Supervisor {
    /// Starts `processes`, and keeps them running.
    ///
    /// # Errors
    /// When a log cannot be opened.
    pub fn start(processes: Vec<Process>, state: &State, show: bool) -> Result<Supervisor> {
        let mut hosts: BTreeMap<String, Host> = BTreeMap::new();
        let (mut tasks, mut last) = (Vec::new(), Vec::new());
        for process in processes {
            let new = || Host { power: watch::channel(Power::On).0, running: watch::channel(0).0 };
            let host = hosts.entry(process.host.clone()).or_insert_with(new).clone();
            let name = format!("{}-{}", process.host, process.role);
            let log = state.directory.join("log").join(format!("{name}.log"));
            // Opened here once, so that an unwritable directory is an error now and not a silence later.
            drop(SharedLog::open(&log).with_context(|| format!("open {}", log.display()))?);
            let slot = Slot {
                state: state.directory.clone(),
                mark: state.mark().to_owned(),
                name,
                log,
                // etcd's own words are of use when something is wrong with it, and they are in its log.
                show: show && process.role != ETCD,
                process,
                power: host.power.subscribe(),
                host,
            };
            let tasks = if slot.process.role == ETCD { &mut last } else { &mut tasks };
            tasks.push(tokio::spawn(slot.keep()));
        }
        Ok(Supervisor { hosts, tasks, last })
    }

    /// The hosts, and whether each has power.
    pub fn hosts(&self) -> impl Iterator<Item = (&str, bool)> {
        self.hosts.iter().map(|(name, host)| (name.as_str(), *host.power.borrow() == Power::On))
    }

    /// Cuts or restores the power of a host. When it is cut, nothing of it runs any more: nobody is connected to what is about
    /// to end.
    ///
    /// # Errors
    /// When there is no such host.
    pub async fn set_power(&self, host: &str, on: bool) -> Result<()> {
        let Some(Host { power, running }) = self.hosts.get(host) else {
            let known: Vec<&str> = self.hosts.keys().map(String::as_str).collect();
            bail!("there is no host `{host}` in this lab; there are {}", known.join(", "));
        };
        let wanted = if on { Power::On } else { Power::Cut };
        // Only a change wakes the host's processes: one that has power is not started again by getting it.
        power.send_if_modified(|power| std::mem::replace(power, wanted) != wanted);
        if !on {
            // The sender is ours, so this ends with the last process.
            let _ = running.subscribe().wait_for(|count| *count == 0).await;
        }
        Ok(())
    }

    /// Ends everything in good order.
    pub async fn stop(self) {
        for (wanted, tasks) in [(Power::Down, self.tasks), (Power::Off, self.last)] {
            for host in self.hosts.values() {
                host.power.send_replace(wanted);
            }
            for task in tasks {
                // A task that failed has no process left that could be waited for.
                let _ = task.await;
            }
        }
    }
}

/// One process that is kept running.
struct Slot {
    state: std::path::PathBuf,
    mark: String,
    name: String,
    log: std::path::PathBuf,
    show: bool,
    process: Process,
    host: Host,
    power: watch::Receiver<Power>,
}

impl Slot {
    async fn keep(mut self) {
        loop {
            let wanted = *self.power.borrow_and_update();
            match wanted {
                _ if self.runs_at(wanted) => {
                    if let Err(error) = self.run_once().await {
                        tracing::error!("{}: {error:#}", self.name);
                        tokio::time::sleep(RESTART_PAUSE).await;
                    }
                }
                Power::Cut => {
                    if self.power.changed().await.is_err() {
                        return;
                    }
                }
                Power::On | Power::Down | Power::Off => return,
            }
        }
    }

    fn runs_at(&self, power: Power) -> bool {
        power == Power::On || (power == Power::Down && self.process.role == ETCD)
    }

    /// Waits until the process has to end, and says what is wanted then: `On` when power was cut and is back already.
    async fn unwanted(&mut self) -> Power {
        while self.power.changed().await.is_ok() {
            let wanted = *self.power.borrow_and_update();
            if wanted == Power::On || !self.runs_at(wanted) {
                return wanted;
            }
        }
        Power::Off
    }

    /// Runs the process until it ends, or until it is not wanted.
    async fn run_once(&mut self) -> Result<()> {
        let running = Running::on(&self.host);
        let mut child = self.spawn()?;
        let id = child.id().and_then(|pid| ProcessId::of(i32::try_from(pid).ok()?));
        // On a full disk there is no note, and the process runs all the same.
        if let Some(Err(error)) = id.map(|id| note_process(&self.state, &self.name, id)) {
            tracing::warn!("{}: {error:#}", self.name);
        }
        tokio::select! {
            status = child.wait() => {
                drop(running);
                tracing::warn!("{} ended ({}); it is started again", self.name, status.context("wait for it")?);
                tokio::time::sleep(RESTART_PAUSE).await;
            }
            wanted = self.unwanted() => {
                // Members of etcd that are asked to end together wait for others to lead in their place, for seconds
                // and in vain. What they have acknowledged is on disk.
                let in_order = wanted == Power::Down;
                end(&mut child, id, in_order).await.context("end it")?;
            }
        }
        Ok(())
    }

    fn spawn(&self) -> Result<Child> {
        let mut command = match &self.process.namespace {
            None => Command::new(&self.process.program),
            Some(namespace) => {
                // It replaces itself by the program, so the process that is waited for and killed is the program.
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace]).arg(&self.process.program);
                command
            }
        };
        let log = SharedLog::open(&self.log).with_context(|| format!("open {}", self.log.display()))?;
        let mut child = command
            .args(&self.process.arguments)
            .env(MARK_VARIABLE, &self.mark)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A person's Ctrl-C is for the supervisor, which ends the others in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start {}", self.process.program.display()))?;
        let prefix = format!("{} {:6}", self.process.host, self.process.role);
        if let Some(output) = child.stdout.take() {
            tokio::spawn(follow(output, log.clone(), prefix.clone(), self.show));
        }
        if let Some(output) = child.stderr.take() {
            tokio::spawn(follow(output, log, prefix, self.show));
        }
        Ok(child)
    }
}

async fn end(child: &mut Child, id: Option<ProcessId>, in_order: bool) -> std::io::Result<()> {
    if let (true, Some(id)) = (in_order, id) {
        id.signal(Signal::TERM);
        if tokio::time::timeout(STOP_WITHIN, child.wait()).await.is_ok() {
            return Ok(());
        }
    }
    child.kill().await?;
    if let Some(id) = id {
        ends_within(id, STOP_WITHIN).await;
    }
    Ok(())
}
