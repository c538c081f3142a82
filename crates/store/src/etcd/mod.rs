//! The store over real etcd.
//!
//! etcd-client gives the encoding; what it leaves to its user is done here, one concern a file:
//!
//! | file | concern |
//! |---|---|
//! | `channel` | fail-over: one member at a time, the next when it fails (the client's own balancing is not fail-over) |
//! | `call` | one request: time limit, leaving a bad member, sorting its errors by what the caller does |
//! | `keys` | the root prefix, and values as this crate shows them |
//! | `read` | linearizable reads, lists paged at one revision |
//! | `commit` | transactions; the else branch reads what was guarded |
//! | `lease` | grant, renewal on kept streams, revoke |
//! | `join` | fragments of one revision joined |
//! | `members` | the members' state for people, compaction, room |
//! | `watch` | a watch that goes on: resumed, checked for muteness, never past a compaction |

mod call;
mod channel;
mod commit;
mod join;
mod keys;
mod lease;
mod members;
mod read;
mod watch;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{Channel as EtcdChannel, Client, ConnectOptions};
use tower::util::BoxCloneSyncService;

pub use self::members::{Alarm, MemberStatus};

use self::channel::{Failover, Members};
use self::keys::Root;
use self::lease::Keepers;
use crate::error::{StoreError, cause};
use crate::rules;
use crate::settle::settle;
use crate::store::{Lease, LeaseId, Listing, Outcome, Read, Revision, Store, Transaction, Watch};

/// The largest message taken from etcd. A list page aims at 4 MiB and may miss by the largest value times the page;
/// the client's default of 4 MiB is less than one page of large objects.
const DECODE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// How to reach etcd.
#[derive(Debug, Clone)]
pub struct EtcdOptions {
    /// The members' client URLs, such as `http://10.0.0.1:2379`.
    pub endpoints: Vec<String>,
    /// What stands before every key, such as `/lightbyte/v1/`; at most [`rules::ROOT_BYTES_MAX`] bytes, not empty.
    pub root: String,
    /// How long a TCP connection may take.
    pub connect_timeout: Duration,
    /// How long one try of a transaction or of a page of a list may take.
    pub request_timeout: Duration,
    /// How long a connection is silent until it is probed.
    pub keep_alive_interval: Duration,
    /// How long the answer to a probe may take.
    pub keep_alive_timeout: Duration,
}

impl EtcdOptions {
    /// The measured defaults: connect 2 s, request 5 s, probe after 5 s, answer within 3 s.
    pub fn new(endpoints: impl IntoIterator<Item = impl Into<String>>, root: impl Into<String>) -> Self {
        Self {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            root: root.into(),
            connect_timeout: Duration::from_secs(2),
            request_timeout: Duration::from_secs(5),
            keep_alive_interval: Duration::from_secs(5),
            keep_alive_timeout: Duration::from_secs(3),
        }
    }
}

/// What all parts share.
struct Inner {
    client: Client,
    members: Arc<Members>,
    root: Root,
    request_timeout: Duration,
    keepers: Keepers,
}

/// A [`Store`] over etcd 3.4 or newer. Clones share their connections.
///
/// Reads go round the members until one answers, for up to 10 s; commits are settled; watches resume. On etcd before
/// 3.4.25 and 3.5.8 a progress answer that was asked for may overtake events (etcd#15220): there only the automatic
/// ones count, so start such members with `--experimental-watch-progress-notify-interval=1s`.
#[derive(Clone)]
pub struct EtcdStore(Arc<Inner>);

impl EtcdStore {
    /// Makes a store. No connection is made until the first request.
    ///
    /// # Errors
    /// [`StoreError::Misconfigured`].
    pub async fn connect(options: EtcdOptions) -> Result<Self, StoreError> {
        let root = Root::new(options.root.clone())?;
        let members = Arc::new(Members::new(&options)?);
        let service = BoxCloneSyncService::new(Failover::new(Arc::clone(&members)));
        // A member that has lost its leader must say so instead of staying silent.
        let require_leader = ConnectOptions::new().with_require_leader(true);
        let client = Client::from_channel(EtcdChannel::Custom(service), Some(require_leader))
            .await
            .map_err(|error| StoreError::Misconfigured(Arc::new(error)))?;
        let request_timeout = options.request_timeout;
        Ok(Self(Arc::new(Inner { client, members, root, request_timeout, keepers: Keepers::default() })))
    }
}

impl fmt::Debug for EtcdStore {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("EtcdStore").field("root", &self.0.root).finish_non_exhaustive()
    }
}

#[async_trait]
impl Store for EtcdStore {
    async fn get(&self, key: &str) -> Result<Read, StoreError> {
        self.0.get(key).await
    }

    async fn list(&self, prefix: &str, at: Option<Revision>) -> Result<Listing, StoreError> {
        self.0.list(prefix, at).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        Ok(Watch::new(Box::new(watch::EtcdWatch::new(Arc::clone(&self.0), prefix, from))))
    }

    async fn commit(&self, transaction: Transaction) -> Result<Outcome, StoreError> {
        rules::check(&transaction)?;
        let mut tries = 0..;
        settle(&transaction, || self.0.attempt(&transaction, tries.next().unwrap_or(u32::MAX))).await
    }

    async fn lease_grant(&self, ttl: Duration) -> Result<Lease, StoreError> {
        self.0.lease_grant(ttl).await
    }

    async fn lease_ensure(&self, lease: LeaseId, ttl: Duration) -> Result<(), StoreError> {
        self.0.lease_ensure(lease, ttl).await
    }

    async fn lease_keep_alive(&self, lease: LeaseId) -> Result<Duration, StoreError> {
        self.0.lease_keep_alive(lease).await
    }

    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.0.lease_revoke(lease).await
    }
}

/// An answer that lacks what etcd always sends.
fn incomplete(what: &str) -> StoreError {
    StoreError::Rejected(cause(format!("the answer has no {what}")))
}
