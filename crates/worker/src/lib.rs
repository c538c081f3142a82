//! The agent of a VM host. Behaviour must not live here: `lightbyte_plan::agent` decides, the drivers of
//! `lightbyte_vmm` act, and this crate carries messages between them and a server.
//!
//! VMs outlive the agent. It may be killed at any moment: what it was doing is found on the host by the next one.

pub mod clock;
pub mod disks;
pub mod doctor;
mod guests;
pub mod identity;
mod life;
pub mod offer;
mod parts;
mod proxies;
mod shell;
mod systemd;
mod usage;

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use lightbyte_api::Name;
use lightbyte_api::observed::ObservedWorker;
use lightbyte_link::{Client, Endpoint, Listener};
use lightbyte_vmm::{Drivers, Parts};

use crate::offer::Offer;

/// What an agent must be told.
pub struct Config {
    /// The worker's name.
    pub name: Name,
    /// Where it keeps its identity.
    pub state: PathBuf,
    /// The servers; one of them is enough.
    pub servers: Vec<Endpoint>,
    /// What the host offers to VMs.
    pub offer: Offer,
    /// What the driver is called, for people: such as `qemu (kvm)`, or `fake`.
    pub vmm: String,
    /// Where it serves the way into its guests, if anywhere.
    pub listen: Option<Endpoint>,
    /// The parts of images on this host, if its VMs are made of any.
    pub parts: Option<Arc<Parts>>,
}

/// Runs the agent until `shutdown`. The VMs go on after it.
///
/// # Errors
/// When its identity cannot be read or made, or the host cannot be listed whole.
pub async fn run(config: Config, drivers: Drivers, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let worker = identity::load_or_make(&config.state).context("load the worker's identity")?;
    let said = ObservedWorker {
        name: config.name.clone(),
        boot_id: identity::boot_id().context("read the boot id")?,
        architecture: std::env::consts::ARCH.to_owned(),
        cpus: config.offer.cpus,
        host_cpus: config.offer.host_cpus,
        vms_max: Some(config.offer.vms_max),
        orphans: Vec::new(),
        memory: config.offer.memory,
        vmm: config.vmm.clone(),
        address: config.listen.as_ref().map(address).unwrap_or_default(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        parts: Vec::new(),
    };
    let listener = match &config.listen {
        Some(endpoint) => {
            Some(Listener::bind(endpoint).await.with_context(|| format!("listen at {endpoint}"))?)
        }
        None => None,
    };
    let client = Client::new(config.servers);
    let store =
        config.parts.map(|parts| parts::Store::new(parts, client.clone(), worker, config.name.clone()));
    let (saying, said) = tokio::sync::watch::channel(said);
    let mut tasks = tokio::task::JoinSet::new();
    if let Some(store) = &store {
        tasks.spawn(Arc::clone(store).report(saying.clone()));
    }
    if let Some(listener) = listener {
        tasks.spawn(guests::serve(drivers.clone(), parts::router(store.clone()), listener));
    }
    let (caught_up, is_caught_up) = tokio::sync::watch::channel(false);
    let (acknowledges, acknowledged) = tokio::sync::watch::channel(None);
    tasks.spawn(life::keep_alive(worker, said, client.clone(), is_caught_up, acknowledges));
    // Dropping the tasks ends them.
    let shell = shell::Shell::begin(worker, client, drivers, store, caught_up, acknowledged, saying)?;
    let outcome = shell.run(shutdown).await;
    drop(tasks);
    outcome
}

/// `host:port`, as the worker's object shows it.
fn address(endpoint: &Endpoint) -> String {
    match endpoint {
        Endpoint::Tcp(host, port) => format!("{host}:{port}"),
        Endpoint::Unix(path) => path.display().to_string(),
    }
}
