//! `lightbyte dev`: starts a lab, says what to do next, and stays until it is told to end.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use lightbyte_link::{Endpoint, Listener, Stream};
use tokio::io::BufReader;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::control::{self, Answer, LabStatus, Request};
use crate::forward::{self, Forwards};
use crate::ground::{find_etcd, find_images, prepare, seed};
use crate::namespaces;
use crate::outside;
use crate::rack::{Host, PORTS_PER_HOST, Places, Rack, VmmChoice, Wish, hash_of, port_places, run_directory};
use crate::rootless::{self, Handed};
use crate::state::{State, is_root, make_sealing_key, sweep_unnamed, unnamed_root};
use crate::supervisor::Supervisor;

/// How long the workers may take to be ready: etcd's first election on a busy machine is most of it.
pub(crate) const READY_WITHIN: Duration = Duration::from_secs(60);
/// How often a lab that begins is looked at.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long a caller at the control socket may take to say what it wants.
const ASK_WITHIN: Duration = Duration::from_secs(2);
/// The pause when the control socket cannot be accepted on, as when there are too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a person asks for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the state is kept; without it the lab ends with its command.
    pub state: Option<PathBuf>,
    /// What the lab is.
    pub wish: Wish,
    /// Return when the workers are ready.
    pub detach: bool,
    /// The etcd program; looked for when it is not named.
    pub etcd: Option<PathBuf>,
    /// The images of real VMs; those of the set-up when it is not named.
    pub images: Option<PathBuf>,
}

/// Runs a lab until it is stopped. `on_ready` is called with its servers once all workers are ready.
///
/// # Errors
/// When it cannot be started; everything that was started is ended then.
pub async fn run(options: Options, on_ready: impl FnOnce(&[String]) -> Result<()>) -> Result<()> {
    let begun = Instant::now();
    let wish = &options.wish;
    wish.check()?;
    ensure!(
        !wish.nat || wish.vmm == VmmChoice::Qemu,
        "--nat is for real VMs: with --vmm fake there is nobody who could leave"
    );
    ensure!(
        !wish.nat || is_root(),
        "--nat needs root: only root may make this machine forward for VMs; run it with sudo"
    );
    let root = unnamed_root();
    let directory = match &options.state {
        Some(directory) => std::path::absolute(directory).context("find the state directory")?,
        None => root.as_ref().map_err(|error| anyhow::anyhow!("{error}"))?.join(unnamed()),
    };
    if options.detach {
        return detach(&options, &directory, on_ready).await;
    }
    let places = Places {
        state: directory.clone(),
        lightbyte: std::env::current_exe().context("find this program")?,
        etcd: find_etcd(options.etcd.clone())?,
        images: find_images(options.images.clone(), wish.vmm)?,
        resolvers: if wish.nat { outside::resolvers() } else { Vec::new() },
    };
    let is_unnamed = options.state.is_none();
    let handed = rootless::arrive()?;
    let state = match &handed {
        Some(handed) => State::handed(&directory, is_unnamed, handed.lock.try_clone()?)?,
        None => take(&directory, root, is_unnamed).await?,
    };
    let outcome = hold(&options, &places, &state, handed, begun, on_ready).await;
    // A state whose processes do not end stays, for the next start to find them.
    let ended = state.clear_away().await.and_then(|()| state.end());
    outcome.and(ended)
}

/// The name of an unnamed lab's directory. A lab keeps its process, so the name is its own, and the same inside
/// namespaces.
fn unnamed() -> String {
    format!("lab-{}", std::process::id())
}

/// Takes the state directory, and clears away what earlier runs have left there, and those that had no name.
async fn take(directory: &Path, root: Result<PathBuf>, is_unnamed: bool) -> Result<State> {
    let _turn = match root {
        Ok(root) if is_unnamed || root.is_dir() => Some(sweep_unnamed(&root).await?),
        _ => None,
    };
    let state = State::take(directory, is_unnamed)?;
    state.clear_away().await?;
    Ok(state)
}

/// Starts the lab of a state that was taken, and keeps it until it is told to end.
async fn hold(
    options: &Options,
    places: &Places,
    state: &State,
    handed: Option<Handed>,
    begun: Instant,
    on_ready: impl FnOnce(&[String]) -> Result<()>,
) -> Result<()> {
    let wish = &options.wish;
    if wish.vmm == VmmChoice::Qemu && !is_root() {
        match rootless::enter(state, wish.control_plane()).await? {}
    }
    // From here on a signal ends the lab in order, also while it is being made.
    let ends = Ends::new()?;
    let rack = make(state, wish).await?;
    let forwards = match (handed, rack.lan) {
        (Some(handed), Some(lan)) => {
            let (forwards, ports) = handed.forwards(&rack, lan);
            for group in ports {
                forward::serve(group).context("forward ports into the lab")?;
            }
            Some(forwards)
        }
        _ => None,
    };
    seed(&rack, places).context("give the first host the images")?;
    let listener = control::listen(&state.directory).await?;
    make_sealing_key(&places.sealing_key())?;
    let supervisor = Supervisor::start(rack.processes(places), state, true)?;
    let lab = Lab { rack: &rack, places, state, forwards, supervisor: &supervisor };
    let outcome = lab.supervise(listener, ends, begun, on_ready).await;
    eprintln!("lightbyte dev: stopping");
    supervisor.stop().await;
    outcome
}

/// Works out the rack, and makes its hosts where they are namespaces.
async fn make(state: &State, wish: &Wish) -> Result<Rack> {
    let _turn = (wish.vmm == VmmChoice::Qemu).then(namespaces::lans).transpose()?;
    let rack = rack_of(state, wish).await?;
    if let Some(lan) = &rack.lan {
        namespaces::up(&rack, lan)?;
    }
    Ok(rack)
}

/// The signals that end a lab.
struct Ends {
    interrupted: Signal,
    terminated: Signal,
    hung_up: Option<Signal>,
}

impl Ends {
    fn new() -> Result<Ends> {
        // A terminal that closes ends the lab, unless somebody asked for the opposite (nohup(1)).
        let hung_up = (!ignores(SignalKind::hangup())).then(|| signal(SignalKind::hangup())).transpose()?;
        let interrupted = signal(SignalKind::interrupt())?;
        Ok(Ends { interrupted, terminated: signal(SignalKind::terminate())?, hung_up })
    }

    async fn come(&mut self) {
        let hung_up = async {
            match &mut self.hung_up {
                Some(hung_up) => hung_up.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupted.recv() => {}
            _ = self.terminated.recv() => {}
            _ = hung_up => {}
        }
    }
}

/// Whether this process was started with a signal ignored (proc(5), `SigIgn` of `status`).
fn ignores(kind: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(0);
    mask & (1 << (kind.as_raw_value() - 1)) != 0
}

/// A lab that runs.
struct Lab<'a> {
    rack: &'a Rack,
    places: &'a Places,
    state: &'a State,
    forwards: Option<Forwards>,
    supervisor: &'a Supervisor,
}

impl Lab<'_> {
    async fn supervise(
        &self,
        mut listener: Listener,
        mut ends: Ends,
        begun: Instant,
        on_ready: impl FnOnce(&[String]) -> Result<()>,
    ) -> Result<()> {
        let preparing = prepare(self.rack, self.places);
        let mut ready = false;
        let mut on_ready = Some(on_ready);
        tokio::pin!(preparing);
        loop {
            tokio::select! {
                prepared = &mut preparing, if !ready => {
                    prepared?;
                    ready = true;
                    if let Some(tell) = on_ready.take() {
                        tell(&self.servers())?;
                    }
                    self.say_ready(begun);
                }
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        if self.serve(BufReader::new(stream), ready).await {
                            return Ok(());
                        }
                    }
                    Err(error) => {
                        tracing::warn!(%error, "accept at the control socket");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                () = ends.come() => return Ok(()),
            }
        }
    }

    /// The servers, as people and their commands reach them.
    fn servers(&self) -> Vec<String> {
        self.forwards.as_ref().map_or_else(|| self.rack.servers(), |forwards| forwards.servers.clone())
    }

    /// Answers one caller, and says whether the lab ends with that.
    async fn serve(&self, mut stream: BufReader<Stream>, ready: bool) -> bool {
        // A caller that says nothing, or goes away in the middle of it, concerns nobody else.
        let asked = tokio::time::timeout(ASK_WITHIN, control::read_request(&mut stream)).await;
        let Ok(Ok(request)) = asked else { return false };
        let answer = |done: Result<()>| match done {
            Ok(()) => Answer::Done,
            Err(error) => Answer::Refused(format!("{error:#}")),
        };
        let reply = match &request {
            Request::Status => Answer::Status(self.status(ready)),
            Request::Stop => Answer::Done,
            Request::Kill(host) => answer(self.cut_power(host).await),
            Request::Start(host) => answer(self.supervisor.set_power(host, true).await),
        };
        let _ = tokio::time::timeout(ASK_WITHIN, control::answer(&mut stream, &reply)).await;
        request == Request::Stop
    }

    fn status(&self, ready: bool) -> LabStatus {
        LabStatus {
            state: self.state.directory.clone(),
            ready,
            servers: self.servers(),
            resolver: self
                .rack
                .hosts
                .first()
                .filter(|_| self.forwards.is_none())
                .map(|host| self.rack.dns_address(host)),
            hosts: self.supervisor.hosts().map(|(name, on)| (name.to_owned(), on)).collect(),
            forwards: self.forwards.clone(),
        }
    }

    /// Everything on the host ends at once, its VMs included.
    async fn cut_power(&self, host: &str) -> Result<()> {
        self.supervisor.set_power(host, false).await?;
        let in_namespace = |found: &&Host| found.name == host && self.rack.lan.is_some();
        let Some(found) = self.rack.hosts.iter().find(in_namespace) else { return Ok(()) };
        namespaces::kill_all(&self.rack.namespace(found)).await?;
        // It is in the host's memory, and so it goes too.
        match std::fs::remove_dir_all(run_directory(&self.rack.hash).join(host)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).context("empty the host's run directory")
            }
            _ => Ok(()),
        }
    }

    fn say_ready(&self, begun: Instant) {
        let seconds = begun.elapsed().as_secs_f64();
        let (hosts, are) = match self.rack.hosts.len() {
            1 => ("1 host".to_owned(), "is"),
            count => (format!("{count} hosts"), "are"),
        };
        let logs = self.state.directory.join("log");
        eprintln!("lightbyte dev: {hosts} {are} ready after {seconds:.1} s (logs in {})", logs.display());
        if let Some(forwards) = &self.forwards {
            eprintln!("  {forwards}");
        }
        eprintln!("  next, in a second terminal:");
        eprintln!("    lightbyte run demo --name hello");
        eprintln!("    lightbyte status");
        if self.state.unnamed {
            eprintln!(
                "  Ctrl-C ends the lab and removes everything; name a state with --state DIR to keep it"
            );
        } else {
            eprintln!("  Ctrl-C stops the lab; the same command starts it again with everything in it");
        }
    }
}

/// The rack of the last start, or a new one at a place where all ports are free.
async fn rack_of(state: &State, wish: &Wish) -> Result<Rack> {
    if let Some(rack) = state.rack()? {
        if rack.wish.hosts != wish.hosts || rack.wish.vmm != wish.vmm {
            bail!(
                "this state is of a lab with {} hosts and --vmm {}; start it so, or `lightbyte dev delete --state {}`",
                rack.wish.hosts,
                rack.wish.vmm.word(),
                state.directory.display()
            );
        }
        // The hash is of this path, also when the directory was moved here.
        let rack = Rack { wish: wish.clone(), hash: hash_of(&state.directory), ..rack };
        let is_free = match rack.lan {
            Some(lan) => namespaces::is_free(lan)?,
            None => all_free(&rack).await,
        };
        if !is_free {
            let taken = match rack.lan {
                Some(lan) => format!("the network {} of this lab", lan.subnet()),
                None => "a port of this lab".to_owned(),
            };
            bail!(
                "{taken} is in use on this machine now; stop what uses it, or start one with another --state"
            );
        }
        return Ok(rack);
    }
    if wish.vmm == VmmChoice::Qemu {
        let hash = hash_of(&state.directory);
        let lan = namespaces::free_lan(u8::from_str_radix(&hash[..2], 16).unwrap_or(0))?;
        let rack = Rack::in_namespaces(wish.clone(), &state.directory, lan)?;
        state.keep_rack(&rack)?;
        return Ok(rack);
    }
    for first_port in port_places(&state.directory) {
        let rack = Rack::on_loopback(wish.clone(), &state.directory, first_port)?;
        if all_free(&rack).await {
            state.keep_rack(&rack)?;
            return Ok(rack);
        }
    }
    bail!("no free ports for a lab on this machine; `lightbyte dev status` shows what runs")
}

async fn all_free(rack: &Rack) -> bool {
    for host in &rack.hosts {
        let endpoints = (host.port..host.port + PORTS_PER_HOST).chain([rack.dns_port(host)]);
        for port in endpoints {
            if Listener::bind(&Endpoint::Tcp(host.address.clone(), port)).await.is_err() {
                return false;
            }
        }
    }
    true
}

/// Starts the same lab in the background, and waits until its workers are ready.
async fn detach(
    options: &Options,
    directory: &Path,
    on_ready: impl FnOnce(&[String]) -> Result<()>,
) -> Result<()> {
    if options.state.is_none() {
        bail!("--detach needs --state DIR: a lab without a named state ends with its command");
    }
    if control::ask(directory, &Request::Status).await.is_ok() {
        bail!("a lab runs already with the state {}; `lightbyte dev stop` stops it", directory.display());
    }
    std::fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    let log =
        std::fs::File::create(directory.join("supervisor.log")).context("create the supervisor's log")?;
    let wish = &options.wish;
    let mut command = std::process::Command::new(std::env::current_exe().context("find this program")?);
    command
        .arg("dev")
        .arg(format!("--state={}", directory.display()))
        .arg(format!("--nodes={}", wish.hosts))
        .arg(format!("--host-cpus={}", wish.host_cpus))
        .arg(format!("--host-memory={}", wish.host_memory))
        .arg(format!("--vmm={}", wish.vmm.word()))
        .args(wish.nat.then_some("--nat"))
        .args(options.etcd.as_ref().map(|etcd| format!("--etcd={}", etcd.display())))
        .args(options.images.as_ref().map(|images| format!("--images={}", images.display())))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let mut child = command.spawn().context("start the supervisor")?;
    let deadline = tokio::time::Instant::now() + READY_WITHIN;
    loop {
        if let Some(status) = child.try_wait().context("look at the supervisor")? {
            let log = std::fs::read_to_string(directory.join("supervisor.log")).unwrap_or_default();
            let reason = log.lines().rev().find_map(|line| line.strip_prefix("error: "));
            let reason = reason
                .or_else(|| log.lines().last())
                .unwrap_or("it could not even say why in its log; is the disk full?");
            bail!("the lab did not start ({status}): {reason}");
        }
        if let Ok(Answer::Status(status)) = control::ask(directory, &Request::Status).await
            && status.ready
        {
            return on_ready(&status.servers);
        }
        if tokio::time::Instant::now() >= deadline {
            bail!(
                "the lab is not ready after {} s; see {}",
                READY_WITHIN.as_secs(),
                directory.join("supervisor.log").display()
            );
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The state that a command means: the one it names, or that of the only lab that runs without a named one.
///
/// # Errors
/// When none runs, or more than one.
pub async fn meant(state: Option<PathBuf>) -> Result<PathBuf> {
    if let Some(state) = state {
        return std::path::absolute(state).context("find the state directory");
    }
    let entries = std::fs::read_dir(unnamed_root()?).into_iter().flatten();
    let mut running = Vec::new();
    for directory in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        // One that was killed has left its socket, and the next start clears it away.
        if control::is_answered(&directory).await {
            running.push(directory);
        }
    }
    match running.as_slice() {
        [only] => Ok(only.clone()),
        [] => bail!("no lab runs without a named state; name one with --state DIR"),
        _ => {
            let names: Vec<String> = running.iter().map(|path| path.display().to_string()).collect();
            bail!("several labs run; name one with --state DIR: {}", names.join(", "))
        }
    }
}

/// Stops a lab, and removes its state.
///
/// # Errors
/// When it does not stop, or something cannot be removed.
pub async fn delete(directory: &Path) -> Result<()> {
    // A start that failed early has left no rack.
    let is_begun = ["lock", "processes", "log"].iter().all(|name| directory.join(name).exists());
    if !directory.join("rack.json").exists() && !is_begun {
        bail!("{} is not the state of a lab", directory.display());
    }
    // One that does not run, or was killed, has nobody to ask.
    let _ = control::ask(directory, &Request::Stop).await;
    let deadline = tokio::time::Instant::now() + READY_WITHIN;
    let state = loop {
        match State::take(directory, true) {
            Ok(state) => break state,
            Err(error) if tokio::time::Instant::now() >= deadline => return Err(error),
            Err(_) => tokio::time::sleep(LOOK_EVERY).await,
        }
    };
    state.clear_away().await?;
    state.end()
}
