//! Parts of images: fetched from whoever has them, served to whoever asks, and tidied up.
//!
//! Which parts are wanted and which are kept is decided in `lightbyte_plan::agent::parts`; here is what carries it out. Each
//! fetch is a task of its own, so that nothing waits for it but the objects that need it, and it ends when nothing does.

mod fetch;
mod progress;
mod serve;
mod tidy;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lightbyte_api::kinds::image::Part;
use lightbyte_api::observed::{ObservedWorker, PARTS_REPORTED_MAX, part_name};
use lightbyte_api::{Name, WorkerId};
use lightbyte_link::Client;
use lightbyte_vmm::{DriverError, Parts};
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};

pub(crate) use serve::router;
pub(crate) use tidy::{PERIOD as TIDY_PERIOD, tidy};

/// How many parts are fetched at once: more would only share the same line.
const FETCHES_AT_ONCE_MAX: usize = 2;
/// How many words of fetches may wait for the agent; a full queue makes fetches wait.
const NEWS_MAX: usize = 64;
/// How long a peer that has sent wrong bytes is not asked again.
const LIAR_PAUSE: Duration = Duration::from_secs(600);
/// How often this host's parts are looked at without being told of a change: a server that shares the directory may bring some.
const LOOK_PERIOD: Duration = Duration::from_secs(30);
/// How long changes are gathered before they are reported: a version has three parts.
const GATHER: Duration = Duration::from_secs(2);

/// What became of a fetch.
pub(crate) enum News {
    /// The part is here.
    Came(Part),
    /// It does not come; it is tried again.
    Hindered(Part, String),
}

/// What all that has to do with parts shares.
pub(crate) struct Store {
    parts: Arc<Parts>,
    client: Client,
    worker: WorkerId,
    name: Name,
    progress: Mutex<BTreeMap<Part, progress::Progress>>,
    /// Peers that have sent wrong bytes, and until when they are left alone.
    avoided: Mutex<BTreeMap<String, Instant>>,
    turns: Semaphore,
    changed: Notify,
}

impl Store {
    pub(crate) fn new(parts: Arc<Parts>, client: Client, worker: WorkerId, name: Name) -> Arc<Store> {
        Arc::new(Store {
            parts,
            client,
            worker,
            name,
            progress: Mutex::default(),
            avoided: Mutex::default(),
            turns: Semaphore::new(FETCHES_AT_ONCE_MAX),
            changed: Notify::new(),
        })
    }

    /// Asks the store on a thread where it may block.
    async fn ask<T: Send + 'static, E: From<DriverError> + Send + 'static>(
        &self,
        question: impl FnOnce(&Parts) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E> {
        let parts = Arc::clone(&self.parts);
        let answer = tokio::task::spawn_blocking(move || question(&parts)).await;
        answer.unwrap_or_else(|panic| Err(DriverError::Refused(format!("the store failed: {panic}")).into()))
    }

    /// The parts that this host has, as its report names them.
    async fn names(&self) -> Result<Vec<String>, DriverError> {
        let names = self.ask(Parts::names).await?;
        let short = |name: &String| part_name(name).to_owned();
        Ok(names.iter().take(PARTS_REPORTED_MAX).map(short).collect())
    }

    /// Keeps what the worker says of its parts true.
    pub(crate) async fn report(self: Arc<Store>, said: watch::Sender<ObservedWorker>) {
        loop {
            match self.names().await {
                Ok(names) => {
                    said.send_if_modified(|said| {
                        let is_new = said.parts != names;
                        said.parts = names;
                        is_new
                    });
                }
                Err(error) => tracing::warn!("cannot list the parts of images here: {}", error.chain()),
            }
            // Told or not, the next look comes.
            let _ = timeout(LOOK_PERIOD, self.changed.notified()).await;
            tokio::time::sleep(GATHER).await;
        }
    }
}

/// The fetches that are under way.
pub(crate) struct Fetches {
    store: Arc<Store>,
    running: BTreeMap<Part, AbortHandle>,
    sender: mpsc::Sender<News>,
    news: mpsc::Receiver<News>,
}

impl Fetches {
    pub(crate) fn new(store: Arc<Store>) -> Fetches {
        let (sender, news) = mpsc::channel(NEWS_MAX);
        Fetches { store, running: BTreeMap::new(), sender, news }
    }

    pub(crate) const fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Fetches these parts, and calls off all other fetches. What has come of one that is called off stays for a while.
    pub(crate) fn want(&mut self, wanted: &BTreeSet<Part>) {
        self.running.retain(|part, task| {
            let is_wanted = wanted.contains(part);
            if !is_wanted {
                task.abort();
                forget(&self.store, part);
            }
            is_wanted
        });
        for part in wanted.iter().filter(|part| !self.running.contains_key(part)).cloned().collect::<Vec<_>>()
        {
            tracing::info!("fetching image part {} ({})", short(&part), part.size);
            let (store, sender, fetched) = (Arc::clone(&self.store), self.sender.clone(), part.clone());
            let task = tokio::spawn(async move { fetch::fetch(&store, &fetched, &sender).await });
            self.running.insert(part, task.abort_handle());
        }
    }

    /// What became of a fetch. Cancelling it loses nothing.
    pub(crate) async fn next(&mut self) -> Option<News> {
        let news = self.news.recv().await;
        if let Some(News::Came(part)) = &news {
            // If it vanishes again it is fetched again.
            self.running.remove(part);
            forget(&self.store, part);
            self.store.changed.notify_one();
        }
        news
    }
}

impl Drop for Fetches {
    fn drop(&mut self) {
        self.running.values().for_each(AbortHandle::abort);
    }
}

fn forget(store: &Store, part: &Part) {
    lock(&store.progress).remove(part);
}

/// What these maps hold is whole at every moment, whoever panicked.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn short(part: &Part) -> &str {
    part.sha256.get(..12).unwrap_or(&part.sha256)
}

#[cfg(test)]
mod tests;
