//! The processes of a cluster: server, worker, and the lab that runs them all on one machine. Each is a crate of its
//! own; here stand only the words of the command line, the runtime, the log, and the signals that end them.

use std::fs::{self, TryLockError};
use std::io::{self, IsTerminal as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use lightbyte_api::Uid;
use lightbyte_lab::control::{self, Answer, LabStatus, Request};
use lightbyte_lab::rack::Wish;
use lightbyte_lab::{VmmChoice, dev as lab};
use lightbyte_server::SealingKeys;
use lightbyte_store::{EtcdOptions, EtcdStore};
use lightbyte_vmm::Parts;
use lightbyte_worker::offer::Offer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::arguments::{Dev, DevCommand, DevStart, Dns, Server, VmmWord, Worker};
use crate::context;
use crate::drivers::{self, Hands};
use crate::failure::{Code, Failure};
use crate::resolver;
use crate::table;
use crate::terminal::{print, say};

/// What is logged, such as `info,lightbyte_store=debug`.
const LOG_VARIABLE: &str = "LIGHTBYTE_LOG";
/// Threads of a server: it waits for etcd and its callers, and two let one slow answer not hold up the others.
const SERVER_THREADS: usize = 2;
/// Threads of a resolver besides those that answer over UDP: one takes names in while the other carries what is forwarded.
const RESOLVER_THREADS: usize = 2;
/// The pause after etcd did not answer while the cluster is set up.
const SET_UP_PAUSE: Duration = Duration::from_millis(250);
/// How long a lab may take to stop: all its processes, one after the other, on a machine that does other things.
const LAB_STOPS_WITHIN: Duration = Duration::from_secs(60);
/// The pause between two looks at a lab that stops.
const LOOK_PAUSE: Duration = Duration::from_millis(50);
/// The context that a lab writes.
const DEV_CONTEXT: &str = "dev";

/// `lightbyte server`: until a signal ends it.
pub(crate) fn server(words: &Server) -> Result<Code> {
    begin_log()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(SERVER_THREADS)
        .enable_all()
        .build()
        .context("start the runtime")?;
    let parts = words.parts.as_deref().map(Parts::new).transpose().context("set up the parts of images")?;
    let sealing_keys = words.sealing_key.as_deref().map(SealingKeys::read);
    let config = lightbyte_server::Config {
        name: words.name.clone(),
        listen: words.listen.clone(),
        url: words.advertise.to_string(),
        etcd: words.etcd.clone(),
        root: words.root.clone(),
        parts: parts.map(Arc::new),
        sealing_keys: sealing_keys.transpose()?.map(Arc::new),
        zone: lightbyte_api::zone::canonical(&words.zone),
        keeps_room_for_a_loss: words.keep_room_for_a_loss,
    };
    runtime.block_on(async {
        let options = EtcdOptions::new(&config.etcd, &config.root);
        let store = EtcdStore::connect(options).await.context("set up the connection to etcd")?;
        let store = Arc::new(store);
        tokio::spawn(set_up(Arc::clone(&store)));
        lightbyte_server::serve(store.clone(), Some(store), config, ended()).await
    })?;
    Ok(Code::Done)
}

/// Gives a new cluster its identity. An etcd that holds a cluster already is left as it is.
async fn set_up(store: Arc<EtcdStore>) {
    loop {
        match lightbyte_server::init(&*store, Uid::from(uuid::Uuid::now_v7())).await {
            Ok(()) => return,
            Err(error) => tracing::debug!(%error, "etcd does not answer yet"),
        }
        tokio::time::sleep(SET_UP_PAUSE).await;
    }
}

/// `lightbyte worker`: until a signal ends it. Its VMs go on.
pub(crate) fn worker(words: &Worker) -> Result<Code> {
    begin_log()?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    // Before anything of the host is looked at, let alone swept.
    let _taken = lightbyte_worker::identity::take(&words.state)?;
    let Hands { drivers, parts, vmm } = drivers::of(words, runtime.handle())?;
    let config = lightbyte_worker::Config {
        name: words.name.clone(),
        state: words.state.clone(),
        servers: words.server.clone(),
        offer: Offer::of_host(words.cpus, words.cpu_overcommit, words.memory, words.vms_max)?,
        vmm: vmm.to_owned(),
        listen: words.listen.clone(),
        parts,
    };
    runtime.block_on(lightbyte_worker::run(config, drivers, ended()))?;
    Ok(Code::Done)
}

/// `lightbyte dns`: until a signal ends it. What it was told last stays on disk.
pub(crate) fn dns(words: &Dns) -> Result<Code> {
    begin_log()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(RESOLVER_THREADS)
        .enable_all()
        .build()
        .context("start the runtime")?;
    let options = lightbyte_dns::Options {
        listen: words.listen.clone(),
        forward_to: words.forward_to.clone(),
        udp_threads: usize::try_from(words.threads).unwrap_or(1),
        ..lightbyte_dns::Options::new(&words.zone, &words.state)
    };
    runtime.block_on(async {
        let dns = Arc::new(lightbyte_dns::Dns::start(options).await.map_err(|error| not_started(&error))?);
        tracing::info!(zone = words.zone, addresses = ?dns.addresses(), "names are answered");
        tokio::select! {
            () = resolver::feed(Arc::clone(&dns), &words.server) => {}
            () = ended() => {}
        }
        // Names that are just being taken in are not waited for: what is on disk is whole at any moment.
        if let Some(dns) = Arc::into_inner(dns) {
            dns.stop().await;
        }
        Ok(Code::Done)
    })
}

fn not_started(error: &lightbyte_dns::StartError) -> anyhow::Error {
    let hint = match error {
        lightbyte_dns::StartError::Bind(error) => error.hint(),
        _ => None,
    };
    let message = match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    };
    let failure = Failure::new(Code::Error, message);
    match hint {
        Some(hint) => failure.hint(hint).into(),
        None => failure.into(),
    }
}

const fn choice(vmm: VmmWord) -> VmmChoice {
    match vmm {
        VmmWord::Fake => VmmChoice::Fake,
        VmmWord::Qemu => VmmChoice::Qemu,
    }
}

/// `lightbyte dev` and what belongs to it.
pub(crate) fn dev(words: &Dev) -> Result<Code> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(async {
        match &words.command {
            None => start(&words.start).await,
            Some(command) => on_lab(command).await,
        }
    })?;
    Ok(Code::Done)
}

async fn start(words: &DevStart) -> Result<()> {
    begin_log()?;
    let wish = Wish {
        hosts: words.nodes,
        host_cpus: words.host_cpus,
        host_memory: words.host_memory,
        vmm: choice(words.vmm),
        nat: words.nat,
    };
    let options = lab::Options {
        state: words.state.clone(),
        wish,
        detach: words.detach,
        etcd: words.etcd.clone(),
        images: words.images.clone(),
    };
    lab::run(options, |servers| {
        let path = context::write_context(DEV_CONTEXT, servers)?;
        say(&format!("lightbyte dev: the context `{DEV_CONTEXT}` in {} is this cluster", path.display()));
        Ok(())
    })
    .await
}

async fn on_lab(command: &DevCommand) -> Result<()> {
    let (state, request) = match command {
        DevCommand::Status(state) => (state, Request::Status),
        DevCommand::Stop(state) => (state, Request::Stop),
        DevCommand::Kill(host) => (&host.state, Request::Kill(host.host.clone())),
        DevCommand::Start(host) => (&host.state, Request::Start(host.host.clone())),
        DevCommand::Delete(state) => return lab::delete(&lab::meant(state.state.clone()).await?).await,
    };
    let directory = lab::meant(state.state.clone()).await?;
    match control::ask(&directory, &request).await? {
        Answer::Status(status) => print(&render(&status)),
        Answer::Done if request == Request::Stop => until_stopped(&directory).await,
        Answer::Done => Ok(()),
        Answer::Refused(reason) => Err(Failure::new(Code::Error, reason).into()),
    }
}

/// Waits until nobody holds the state any more, so that the next command finds it free.
async fn until_stopped(directory: &Path) -> Result<()> {
    let deadline = tokio::time::Instant::now() + LAB_STOPS_WITHIN;
    loop {
        match fs::File::open(directory.join("lock")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error).with_context(|| format!("look at `{}`", directory.display())),
            Ok(lock) => match lock.try_lock() {
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error).context("look at the lock"),
                Ok(()) => return Ok(()),
            },
        }
        if tokio::time::Instant::now() >= deadline {
            let message = format!("the lab has not stopped after {} s", LAB_STOPS_WITHIN.as_secs());
            return Err(Failure::new(Code::TimedOut, message).into());
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

fn render(status: &LabStatus) -> String {
    let head = ["HOST", "POWER"].map(str::to_owned).to_vec();
    let row = |(name, on): &(String, bool)| vec![name.clone(), if *on { "on" } else { "off" }.to_owned()];
    let hosts =
        table::lay_out(&std::iter::once(head).chain(status.hosts.iter().map(row)).collect::<Vec<_>>());
    let ready = if status.ready { "ready" } else { "starting" };
    let names =
        status.resolver.as_ref().map(|at| format!("names are answered at {at}\n")).unwrap_or_default();
    let forwards = status.forwards.as_ref().map(|forwards| format!("{forwards}\n")).unwrap_or_default();
    format!(
        "{hosts}\nthe lab in {} is {ready}; its servers are {}\n{names}{forwards}",
        status.state.display(),
        status.servers.join(",")
    )
}

/// Resolves when a signal asks the process to end.
async fn ended() {
    use tokio::signal::unix::{SignalKind, signal};
    let terminated = async {
        match signal(SignalKind::terminate()) {
            Ok(mut signals) => {
                signals.recv().await;
            }
            // Without a handler the signal ends the process at once, which every process here survives.
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = terminated => {}
        () = interrupted() => {}
    }
}

async fn interrupted() {
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Sends the log to stderr, a line for each event.
fn begin_log() -> Result<()> {
    let text = std::env::var(LOG_VARIABLE).ok().filter(|text| !text.is_empty());
    let filter: Targets = text
        .as_deref()
        .unwrap_or("info")
        .parse()
        .with_context(|| format!("read {LOG_VARIABLE}, such as `info,lightbyte_store=debug`"))?;
    let layer = tracing_subscriber::fmt::layer()
        .compact()
        .with_ansi(false)
        .with_target(io::stderr().is_terminal())
        .with_writer(io::stderr);
    tracing_subscriber::registry().with(layer).with(filter).try_init().context("begin the log")
}
