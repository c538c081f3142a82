//! `lightbyte dev`: starts a lab, says what to do next, and stays until it is told to end.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use lightbyte_api::object::Object;
use lightbyte_api::wire::{Applied, Apply, List};
use lightbyte_link::{Client, Endpoint, Listener};
use serde_json::{Value, json};
use tokio::io::BufReader;

use crate::control::{self, Answer, LabStatus, Request};
use crate::namespaces;
use crate::rack::{Lan, PORTS_PER_HOST, Places, Rack, VmmChoice, Wish};
use crate::state::{State, sweep_unnamed, unnamed_root};
use crate::supervisor::Supervisor;

/// How long the workers may take to be ready: etcd's first election on a busy machine is most of it.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How often a lab that begins is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Where the ports of labs begin, below those that the kernel gives away by itself (`ip_local_port_range`).
const PORTS_FIRST: u16 = 20_000;
/// How many places for a lab there are.
const PORT_PLACES: u16 = 200;
/// Ports of one place: enough for the most hosts.
const PORTS_PER_PLACE: u16 = 50;

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
    let root = unnamed_root()?;
    sweep_unnamed(&root).await;
    let directory = match &options.state {
        Some(directory) => std::path::absolute(directory).context("find the state directory")?,
        None => root.join(format!("lab-{}", std::process::id())),
    };
    if options.detach {
        return detach(&options, &directory, on_ready).await;
    }
    let state = State::take(&directory, options.state.is_none())?;
    state.clear_away().await?;
    let rack = rack_of(&state, &options.wish).await?;
    let places = Places {
        state: directory.clone(),
        lightbyte: std::env::current_exe().context("find this program")?,
        etcd: find_etcd(options.etcd)?,
        images: find_images(options.images, options.wish.vmm)?,
    };
    if let Some(lan) = &rack.lan
        && let Err(error) = namespaces::up(&rack, lan)
    {
        state.clear_away().await?;
        return Err(error);
    }
    let listener = control::listen(&directory).await?;
    let supervisor = Supervisor::start(rack.processes(&places), &state, true)?;
    let outcome = supervise(&rack, &places, &state, &supervisor, listener, begun, on_ready).await;
    eprintln!("lightbyte dev: stopping");
    supervisor.stop().await;
    state.clear_away().await?;
    state.end()?;
    outcome
}

async fn supervise(
    rack: &Rack,
    places: &Places,
    state: &State,
    supervisor: &Supervisor,
    mut listener: Listener,
    begun: Instant,
    on_ready: impl FnOnce(&[String]) -> Result<()>,
) -> Result<()> {
    let servers = rack.servers();
    let preparing = prepare(rack, places);
    let mut ready = false;
    let mut on_ready = Some(on_ready);
    tokio::pin!(preparing);
    let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    loop {
        tokio::select! {
            prepared = &mut preparing, if !ready => {
                prepared?;
                ready = true;
                if let Some(tell) = on_ready.take() {
                    tell(&servers)?;
                }
                say_ready(rack, state, begun);
            }
            accepted = listener.accept() => {
                let (stream, _) = accepted.context("accept at the control socket")?;
                let mut stream = BufReader::new(stream);
                let status = || LabStatus {
                    state: state.directory.clone(),
                    ready,
                    servers: servers.clone(),
                    hosts: supervisor.hosts().map(|(name, on)| (name.to_owned(), on)).collect(),
                };
                // A caller that goes away in the middle of its question concerns nobody else.
                let Ok(request) = control::read_request(&mut stream).await else { continue };
                let (reply, stop) = take_request(rack, supervisor, request, status).await;
                let _ = control::answer(&mut stream, &reply).await;
                if stop {
                    return Ok(());
                }
            }
            _ = tokio::signal::ctrl_c() => return Ok(()),
            _ = terminated.recv() => return Ok(()),
        }
    }
}

async fn take_request(
    rack: &Rack,
    supervisor: &Supervisor,
    request: Request,
    status: impl FnOnce() -> LabStatus,
) -> (Answer, bool) {
    let answer =
        |done: Result<()>| done.map_or_else(|error| Answer::Refused(error.to_string()), |()| Answer::Done);
    match request {
        Request::Status => (Answer::Status(status()), false),
        Request::Stop => (Answer::Done, true),
        Request::Kill(host) => (answer(cut_power(rack, supervisor, &host).await), false),
        Request::Start(host) => (answer(supervisor.set_power(&host, true)), false),
    }
}

/// Everything on the host ends at once, its VMs included.
async fn cut_power(rack: &Rack, supervisor: &Supervisor, host: &str) -> Result<()> {
    supervisor.set_power(host, false)?;
    match rack.hosts.iter().find(|found| found.name == host).filter(|_| rack.lan.is_some()) {
        Some(found) => namespaces::kill_all(&rack.namespace(found)).await,
        None => Ok(()),
    }
}

fn say_ready(rack: &Rack, state: &State, begun: Instant) {
    let seconds = begun.elapsed().as_secs_f64();
    eprintln!(
        "lightbyte dev: {} hosts are ready after {seconds:.1} s (logs in {}/log)",
        rack.hosts.len(),
        state.directory.display()
    );
    eprintln!("  next, in a second terminal:");
    eprintln!("    lightbyte run demo --name hello");
    eprintln!("    lightbyte status");
    if state.unnamed {
        eprintln!("  Ctrl-C ends the lab and removes everything; name a state with --state DIR to keep it");
    } else {
        eprintln!("  Ctrl-C stops the lab; the same command starts it again with everything in it");
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
        return Ok(Rack { wish: wish.clone(), ..rack });
    }
    let hash = crate::rack::hash_of(&state.directory);
    if wish.vmm == VmmChoice::Qemu {
        let lan = namespaces::free_lan(u8::from_str_radix(&hash[..2], 16).unwrap_or(0))?;
        let rack = Rack::in_namespaces(wish.clone(), &state.directory, lan)?;
        state.keep_rack(&rack)?;
        return Ok(rack);
    }
    let first_place = u16::from_str_radix(&hash[..4], 16).unwrap_or(0) % PORT_PLACES;
    for place in (0..PORT_PLACES).map(|offset| (first_place + offset) % PORT_PLACES) {
        let rack = Rack::on_loopback(wish.clone(), &state.directory, PORTS_FIRST + place * PORTS_PER_PLACE)?;
        if all_free(&rack).await {
            state.keep_rack(&rack)?;
            return Ok(rack);
        }
    }
    bail!("no free ports for a lab on this machine; `lightbyte dev status` shows what runs")
}

async fn all_free(rack: &Rack) -> bool {
    for host in &rack.hosts {
        for port in host.port..host.port + PORTS_PER_HOST {
            if Listener::bind(&Endpoint::Tcp(host.address.clone(), port)).await.is_err() {
                return false;
            }
        }
    }
    true
}

/// Waits until every worker is ready, and gives the cluster what VMs stand on.
async fn prepare(rack: &Rack, places: &Places) -> Result<()> {
    let endpoints: Vec<Endpoint> = rack.servers().iter().map(|url| url.parse()).collect::<Result<_, _>>()?;
    let client = Client::new(endpoints);
    let deadline = tokio::time::Instant::now() + READY_WITHIN;
    loop {
        let workers = client.get::<List<Object>>("/v1/objects/worker").await;
        let ready = match &workers {
            Ok(list) => list.value.items.iter().filter(|worker| worker.status.ready).count(),
            Err(_) => 0,
        };
        if ready >= rack.hosts.len() {
            break;
        }
        if tokio::time::Instant::now() >= deadline {
            let hint = "look into the logs for the reason";
            bail!(
                "{ready} of {} workers are ready after {} s; {hint}",
                rack.hosts.len(),
                READY_WITHIN.as_secs()
            );
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let apply = Apply { documents: ground(rack, places)?, create_only: false, dry_run: false };
    client.post::<_, Applied>("/v1/apply", &apply).await.context("make the default network and images")?;
    Ok(())
}

/// The manifests of what every lab has.
fn ground(rack: &Rack, places: &Places) -> Result<Vec<Value>> {
    let lan = rack.lan.unwrap_or(Lan { octet: 77 });
    let spec = json!({ "subnet": lan.subnet(), "gateway": lan.gateway(), "pool_first": lan.first_vm() });
    let network = json!({ "kind": "network", "name": "default", "spec": spec });
    let version = match rack.wish.vmm {
        VmmChoice::Qemu => packed_image(&places.images.join("demo"))?,
        VmmChoice::Fake => {
            // No bytes are ever read of it.
            let part = json!({ "sha256": "0".repeat(64), "size": "64MiB" });
            json!({ "version": "fake", "architecture": std::env::consts::ARCH, "kernel": part, "root": part })
        }
    };
    let spec = json!({ "current": version["version"], "versions": [version] });
    Ok(vec![network, json!({ "kind": "image", "name": "demo", "spec": spec })])
}

/// The version that a packed image's `manifest.json` describes, as an image object lists it.
fn packed_image(directory: &Path) -> Result<Value> {
    let path = directory.join("manifest.json");
    let bytes = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let manifest: Value =
        serde_json::from_slice(&bytes).with_context(|| format!("read {}", path.display()))?;
    let part = |name: &str| {
        let part = &manifest[name];
        (!part.is_null()).then(|| json!({ "sha256": part["sha256"], "size": part["bytes"] }))
    };
    Ok(json!({
        "version": manifest["version"],
        "architecture": manifest["architecture"],
        "kernel": part("kernel"),
        "initrd": part("initrd"),
        "command_line": manifest["command_line"],
        "root": part("root"),
    }))
}

/// Where the set-up keeps what it has fetched and made.
fn cache() -> Option<PathBuf> {
    from_environment("LIGHTBYTE_CACHE")
        .or_else(|| Some(from_environment("XDG_CACHE_HOME")?.join("lightbyte")))
        .or_else(|| Some(from_environment("HOME")?.join(".cache/lightbyte")))
}

fn from_environment(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// The images of real VMs: named, or from the environment or the set-up's cache.
fn find_images(named: Option<PathBuf>, vmm: VmmChoice) -> Result<PathBuf> {
    let cached = || Some(cache()?.join("images"));
    let images = named.or_else(|| from_environment("LIGHTBYTE_IMAGES")).or_else(cached).unwrap_or_default();
    if vmm == VmmChoice::Fake {
        return Ok(images);
    }
    if !images.join("demo/manifest.json").is_file() {
        bail!("there is no demo image in {}: `cargo xtask images` makes it", images.display());
    }
    std::path::absolute(images).context("find the images")
}

/// The etcd program: named, or from the environment, the set-up's cache, or the path.
fn find_etcd(named: Option<PathBuf>) -> Result<PathBuf> {
    let from_environment =
        |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(etcd) = named.or_else(|| from_environment("LIGHTBYTE_ETCD")) {
        return if etcd.is_file() { Ok(etcd) } else { bail!("{} is not there", etcd.display()) };
    }
    let cached = cache().map(|cache| cache.join("etcd/usr/bin/etcd"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|directory| directory.join("etcd"));
    match cached.into_iter().chain(on_path).find(|path| path.is_file()) {
        Some(etcd) => Ok(etcd),
        None => bail!(
            "there is no etcd on this machine: `cargo xtask setup` fetches one, or name yours with --etcd"
        ),
    }
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
            bail!("the lab did not start ({status}): {}", log.lines().last().unwrap_or("it said nothing"));
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
pub fn meant(state: Option<PathBuf>) -> Result<PathBuf> {
    if let Some(state) = state {
        return std::path::absolute(state).context("find the state directory");
    }
    let root = unnamed_root()?;
    let entries = std::fs::read_dir(&root)
        .map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path())).collect());
    let mut running: Vec<PathBuf> = entries.unwrap_or_default();
    running.retain(|directory| directory.join("control").exists());
    match running.as_slice() {
        [only] => Ok(only.clone()),
        [] => bail!("no lab runs without a named state; name one with --state DIR"),
        _ => bail!("several labs run; name one with --state DIR: {running:?}"),
    }
}

/// Stops a lab, and removes its state.
///
/// # Errors
/// When it does not stop, or something cannot be removed.
pub async fn delete(directory: &Path) -> Result<()> {
    if !directory.join("rack.json").exists() {
        bail!("{} is not the state of a lab", directory.display());
    }
    if directory.join("control").exists() {
        // A lab that was killed leaves its socket, and there is nobody to ask.
        let _ = control::ask(directory, &Request::Stop).await;
    }
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
