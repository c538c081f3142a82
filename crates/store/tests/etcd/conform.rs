//! The etcd store passes the suite against real etcd, with one member and with three.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::cluster::Cluster;
use crate::proxy::Mode;
use async_trait::async_trait;
use lightbyte_store::conformance::{Faults, Subject, conformance};
use lightbyte_store::{CommitFault, EtcdStore, Guard, Operation, Revision, Store, Transaction};

struct EtcdSubject {
    cluster: Arc<Cluster>,
    roots: AtomicU32,
}

impl EtcdSubject {
    fn root(&self) -> String {
        format!("/test/{}/", self.roots.fetch_add(1, Ordering::Relaxed))
    }
}

#[async_trait]
impl Subject for EtcdSubject {
    async fn store(&self) -> Arc<dyn Store> {
        Arc::new(self.cluster.store(&self.root()).await)
    }

    async fn compact(&self, revision: Revision) {
        self.cluster.store("/").await.compact(revision).await.expect("compact");
    }

    async fn faulty(&self) -> (Arc<dyn Store>, Arc<dyn Faults>) {
        let root = self.root();
        let store = self.cluster.proxied_store(&root, 0).await;
        let direct = self.cluster.store(&root).await;
        (Arc::new(store), Arc::new(ProxyFaults { cluster: Arc::clone(&self.cluster), direct }))
    }
}

/// Loses messages in the proxies, and looks past them to know when a commit has happened.
struct ProxyFaults {
    cluster: Arc<Cluster>,
    direct: EtcdStore,
}

#[async_trait]
impl Faults for ProxyFaults {
    async fn lose_next(&self, fault: CommitFault, key: &str) {
        match fault {
            CommitFault::Before => self.set(Mode::CutNextRequest),
            CommitFault::After => {
                self.set(Mode::DropAnswers);
                let before = self.direct.get(key).await.expect("get").value;
                let (direct, cluster, key) = (self.direct.clone(), Arc::clone(&self.cluster), key.to_owned());
                tokio::spawn(async move {
                    while direct.get(&key).await.expect("get").value == before {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                    for member in &cluster.members {
                        member.clients.cut();
                        member.clients.set(Mode::Pass);
                    }
                });
            }
        }
    }
}

impl ProxyFaults {
    fn set(&self, mode: Mode) {
        self.cluster.members.iter().for_each(|member| member.clients.set(mode));
    }
}

async fn check(test: &str, members: usize) {
    let Some(binary) = crate::etcd_or_skip(test) else { return };
    let cluster = Arc::new(Cluster::start(&binary, members).await);
    conformance(Arc::new(EtcdSubject { cluster, roots: AtomicU32::new(0) })).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_member_conforms() {
    check("one_member_conforms", 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_conform() {
    check("three_members_conform", 3).await;
}

/// The first page asks for more than one message may hold; it is halved until it fits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_larger_than_a_message_is_halved() {
    const VALUE_BYTES: usize = 1400 * 1024;
    const KEYS: usize = 52;
    let Some(binary) = crate::etcd_or_skip("a_page_larger_than_a_message_is_halved") else { return };
    let cluster = Cluster::start(&binary, 1).await;
    let store = cluster.store("/large/").await;
    for index in 0..KEYS {
        let key = format!("key-{index:02}");
        let operations = vec![Operation::put(&key, vec![1; VALUE_BYTES])];
        let outcome = store.commit(Transaction { guards: vec![Guard::absent(&key)], operations }).await;
        assert!(matches!(outcome, Ok(lightbyte_store::Outcome::Committed { .. })), "{outcome:?}");
    }
    let listing = store.list("", None).await.expect("list");
    let bytes: usize = listing.entries.iter().map(|(_, found)| found.value.len()).sum();
    assert_eq!(
        (listing.entries.len(), bytes),
        (KEYS, KEYS * VALUE_BYTES),
        "more than the 64 MiB of one message"
    );
}
