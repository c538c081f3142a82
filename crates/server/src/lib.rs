//! The server: the HTTP API, and the shell around the leader's loop. **It wires and decides nothing**: every decision
//! is a function of `lightbyte_plan`, and behaviour must not live here.
//!
//! ```text
//!   store ──> follower ──> newest view ──> api: reads
//!     ^           └──────> news ──┬──────> api: watches of people, streams of workers
//!     │                           ├──────> events
//!     │                           └──────> leader: feed, next ──┐
//!     └──────────── commit <── api: request::*  <───────────────┘
//! ```
//!
//! | module | concern |
//! |---|---|
//! | `follower` | the newest view |
//! | `news` | its changes, and who hears of them |
//! | `leader` | election, lease, and the turning of the reconciler |
//! | `writer` | a request, committed; decided again after a conflict |
//! | `api` | HTTP: routes, bodies, problem documents, streams |
//! | `last_words` | what the member said for which an update failed |
//! | `names` | the zone of all names, for resolvers that follow it |
//! | `usage` | what guests use, asked of their workers |
//! | `events` | what happened, kept for a week |
//! | `sealing` | private keys, sealed before they are stored |
//! | `clock` | the wall clock and fresh identities |

mod acme;
mod affected;
mod api;
mod care;
mod clock;
mod events;
mod follower;
mod history;
mod last_words;
mod leader;
mod names;
mod news;
mod openapi;
mod problem;
mod sealing;
mod usage;
mod writer;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use lightbyte_api::envelope::Envelope;
use lightbyte_api::records::{Epoch, Record};
use lightbyte_api::zone::Zone;
use lightbyte_api::{Key, Name, Uid};
use lightbyte_link::{Endpoint, Listener};
use lightbyte_store::{EtcdOptions, EtcdStore, Guard, Operation, Store, StoreError, Transaction};
use lightbyte_vmm::Parts;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::api::STREAMS_MAX;
use crate::api::parts::UPLOADS_AT_ONCE_MAX;
use crate::api::plan::FORECASTS_MAX;
use crate::events::Events;
use crate::follower::Follower;
use crate::names::Names;

pub use crate::sealing::{SealingKeyError, SealingKeys};

/// How long running requests may take to end when the server stops.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// How a server is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its name, which people see as the leader's.
    pub name: Name,
    /// Where it listens.
    pub listen: Vec<Endpoint>,
    /// Where others reach its API; stored with the leadership.
    pub url: String,
    /// The client URLs of etcd's members.
    pub etcd: Vec<String>,
    /// What stands before every key in etcd, such as [`lightbyte_api::key::ROOT`].
    pub root: String,
    /// The parts of images on this host, if it keeps any.
    pub parts: Option<Arc<Parts>>,
    /// What private keys are sealed with; without it no secrets are taken.
    pub sealing_keys: Option<Arc<SealingKeys>>,
    /// The name of the zone in which everything has its name, such as [`lightbyte_api::zone::NAME_DEFAULT`].
    pub zone: String,
    /// Whether it refuses what would leave members of groups without a place if any one worker were lost.
    pub keeps_room_for_a_loss: bool,
}

/// What all parts of a server share.
pub(crate) struct Server {
    name: Name,
    url: String,
    store: Arc<dyn Store>,
    etcd: Option<Arc<EtcdStore>>,
    follower: Follower,
    names: Names,
    events: Events,
    streams: Arc<Semaphore>,
    parts: Option<Arc<Parts>>,
    sealing_keys: Option<Arc<SealingKeys>>,
    uploads: Semaphore,
    forecasts: Arc<Semaphore>,
    keeps_room_for_a_loss: bool,
    /// Who measures for people.
    measuring: Semaphore,
    /// Consoles that are read for events.
    consoles: Arc<Semaphore>,
    /// Which revision was the newest when.
    times: history::Times,
    looks_back: Semaphore,
    /// What the loss of workers would do, at a revision.
    losses: std::sync::Mutex<(u64, lightbyte_plan::room::Losses)>,
    losses_permit: Semaphore,
    stop: watch::Receiver<bool>,
}

#[cfg(test)]
impl Server {
    /// A server that nobody runs.
    pub(crate) fn unserved(store: Arc<dyn Store>) -> Server {
        Server {
            name: Name::new("s1").expect("a name"),
            url: String::new(),
            follower: Follower::new(Arc::clone(&store)),
            store,
            names: Names::new(lightbyte_api::zone::NAME_DEFAULT),
            etcd: None,
            events: Events::default(),
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
            parts: None,
            sealing_keys: None,
            uploads: Semaphore::new(UPLOADS_AT_ONCE_MAX),
            forecasts: Arc::new(Semaphore::new(FORECASTS_MAX)),
            keeps_room_for_a_loss: false,
            measuring: Semaphore::new(1),
            consoles: Arc::new(Semaphore::new(last_words::CONSOLES_MAX)),
            times: history::Times::default(),
            looks_back: Semaphore::new(history::LOOKS_BACK_MAX),
            losses: std::sync::Mutex::default(),
            losses_permit: Semaphore::new(1),
            stop: watch::channel(false).1,
        }
    }
}

/// Serves over etcd until `shutdown`. The API answers at once, with 503 until etcd does.
///
/// # Errors
/// When an address cannot be listened on, etcd's URLs make no sense, or a part of the server fails.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let options = EtcdOptions::new(&config.etcd, &config.root);
    let etcd = Arc::new(EtcdStore::connect(options).await.context("set up the connection to etcd")?);
    serve(Arc::clone(&etcd) as Arc<dyn Store>, Some(etcd), config, shutdown).await
}

/// Serves over any store until `shutdown`. Dropping the future ends everything at once, as a kill does, except that
/// requests under way may go on for a moment.
///
/// # Errors
/// When an address cannot be listened on, the zone has no good name, or a part of the server fails.
pub async fn serve(
    store: Arc<dyn Store>,
    etcd: Option<Arc<EtcdStore>>,
    config: Config,
    shutdown: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    if let Some(problem) = Zone::new(&config.zone, 0).check().first() {
        anyhow::bail!("the zone's {problem}");
    }
    let mut listeners = Vec::new();
    for endpoint in &config.listen {
        listeners.push(Listener::bind(endpoint).await.with_context(|| format!("listen on {endpoint}"))?);
    }
    let (stopping, stop) = watch::channel(false);
    let server = Arc::new(Server {
        name: config.name,
        url: config.url,
        follower: Follower::new(Arc::clone(&store)),
        store,
        names: Names::new(&config.zone),
        etcd,
        events: Events::default(),
        streams: Arc::new(Semaphore::new(STREAMS_MAX)),
        parts: config.parts,
        sealing_keys: config.sealing_keys,
        uploads: Semaphore::new(UPLOADS_AT_ONCE_MAX),
        forecasts: Arc::new(Semaphore::new(FORECASTS_MAX)),
        keeps_room_for_a_loss: config.keeps_room_for_a_loss,
        measuring: Semaphore::new(1),
        consoles: Arc::new(Semaphore::new(last_words::CONSOLES_MAX)),
        times: history::Times::default(),
        looks_back: Semaphore::new(history::LOOKS_BACK_MAX),
        losses: std::sync::Mutex::default(),
        losses_permit: Semaphore::new(1),
        stop: stop.clone(),
    });

    let mut background = JoinSet::new();
    let follower = Arc::clone(&server);
    background.spawn(async move { follower.follower.follow().await });
    let follower = Arc::clone(&server);
    background.spawn(async move { follower.follower.confirm().await });
    background.spawn(events::record(Arc::clone(&server)));
    background.spawn(names::keep(Arc::clone(&server)));
    if let Some(etcd) = server.etcd.clone() {
        background.spawn(care::keep(Arc::clone(&server), etcd));
    }

    let mut ending = JoinSet::new();
    ending.spawn(leader::lead(Arc::clone(&server), stop));
    for listener in listeners {
        ending.spawn(api::listen(Arc::clone(&server), listener));
    }
    tokio::select! {
        () = shutdown => {}
        ended = background.join_next() => anyhow::bail!("a part of the server ended: {ended:?}"),
        ended = ending.join_next() => anyhow::bail!("a part of the server ended: {ended:?}"),
    }
    stopping.send_replace(true);
    let all_end = async { while ending.join_next().await.is_some() {} };
    if tokio::time::timeout(STOP_WITHIN, all_end).await.is_err() {
        tracing::warn!("some requests did not end within {STOP_WITHIN:?} and are cut off");
    }
    Ok(())
}

/// Sets up a cluster: writes its identity and its first epoch, unless they are there.
///
/// # Errors
/// What the store says. Asking again does no harm.
pub async fn init(store: &dyn Store, cluster: Uid) -> Result<(), StoreError> {
    let key = Key::Epoch.to_string();
    if store.get(&key).await?.value.is_some() {
        return Ok(());
    }
    let record = Record::from(Epoch { cluster, epoch: 1 });
    let value = record.encode(&Envelope { written_at: clock::precise(), writer: "init" }, &None);
    let transaction =
        Transaction { guards: vec![Guard::absent(&key)], operations: vec![Operation::put(&key, value)] };
    // A conflict means that somebody else has set it up meanwhile.
    store.commit(transaction).await.map(|_| ())
}

/// An error with all its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
