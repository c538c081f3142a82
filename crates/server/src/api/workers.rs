//! What workers ask: to be known, to be kept alive, to report, and to be told what to do.
//!
//! Servers keep nothing of a worker between two requests: its life is a leased key, and the store says which lease
//! keeps it. So a worker may ask another server at any time, and a server that is restarted has forgotten nothing.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use bytes::Bytes;
use lightbyte_api::observed::{Observed, ObservedWorker};
use lightbyte_api::records::{Alive, Record};
use lightbyte_api::wire::{Heartbeat, HeartbeatAnswer};
use lightbyte_api::{Key, Name, WorkerId};
use lightbyte_plan::agent::{Reply, Report, Stamped};
use lightbyte_plan::request::{self, Refusal};
use lightbyte_plan::{View, delivery};
use lightbyte_store::feed::met;
use lightbyte_store::{LeaseId, Outcome, StoreError, Versioned};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};

use crate::api::answer::{Answer, Answered, Lines, lines, push_line};
use crate::api::caller::Caller;
use crate::api::input::{self, Input, Parameters};
use crate::news::News;
use crate::problem::Failure;
use crate::writer::{CONFLICTS_MAX, REACH_WITHIN, WRITE_WITHIN};
use crate::{Server, clock};

/// How long a worker lives without a heartbeat.
pub(crate) const WORKER_TTL: Duration = Duration::from_secs(5);
/// How long a worker's stream is silent at most: its cursor moves on, and a broken connection is noticed.
pub(crate) const STREAM_SILENCE_MAX: Duration = Duration::from_secs(2);
/// How long the answer to a report waits for this server's own view, so that the worker's stream, which is fed from
/// that view, is not behind what the worker has just written. Past it the answer goes out all the same.
const REPORT_SHOWN_WITHIN: Duration = Duration::from_millis(100);

/// `POST /v1/workers/UID/register`
pub(crate) async fn register(
    State(server): State<Arc<Server>>,
    caller: Caller,
    path: Path<String>,
    parameters: Parameters,
    Input(said): Input<ObservedWorker>,
) -> Answered<()> {
    parameters.only(&[])?;
    let worker = input::worker(path)?;
    let now = clock::now();
    let written = server.write(&caller, |view| request::register(view, worker, &said, now)).await?;
    Ok(Answer::at(written.revision, ()))
}

// ------------------------------------------------------------------------------------------------------ heartbeats

/// A worker's life as the store has it.
struct Life {
    alive: Alive,
    mod_revision: u64,
    lease: Option<LeaseId>,
}

/// `POST /v1/workers/UID/heartbeat`
pub(crate) async fn heartbeat(
    State(server): State<Arc<Server>>,
    caller: Caller,
    path: Path<String>,
    parameters: Parameters,
    Input(heartbeat): Input<Heartbeat>,
) -> Answered<HeartbeatAnswer> {
    parameters.only(&[])?;
    let worker = input::worker(path)?;
    let kept = timeout(WRITE_WITHIN, keep_alive(&server, &caller, worker, &heartbeat.boot_id));
    kept.await.unwrap_or_else(|_| Err(Failure::outcome_unknown()))
}

async fn keep_alive(
    server: &Server,
    caller: &Caller,
    worker: WorkerId,
    boot_id: &str,
) -> Answered<HeartbeatAnswer> {
    for _ in 0..CONFLICTS_MAX {
        let (revision, life) = read_life(server, worker).await?;
        let (lease, began_at) = match life {
            Some(Life { alive, .. }) if alive.boot_id != boot_id => {
                let view = server.follower.reach(revision, REACH_WITHIN).await?;
                let name = view.object_of(worker.uid()).map(|object| object.name.clone());
                let name = name.ok_or(Refusal::UnknownWorker { worker })?;
                return Err(Refusal::SecondInstance { name }.into());
            }
            Some(Life { lease: Some(lease), mod_revision, .. }) => (lease, mod_revision),
            Some(Life { lease: None, .. }) => {
                let title = format!("the life of worker {worker} is kept by no lease");
                return Err(Failure::new(StatusCode::CONFLICT, title).hint("report this as a bug"));
            }
            None => match begin_life(server, caller, worker, boot_id, revision).await? {
                Some(begun) => begun,
                None => continue,
            },
        };
        let ttl = match server.store.lease_keep_alive(lease).await {
            Ok(ttl) => ttl,
            // It ended just now; the next look shows that, and a new life begins.
            Err(StoreError::LeaseGone { .. }) => continue,
            Err(error) => return Err(error.into()),
        };
        // Only a read after the renewal shows that the life was not over before it.
        let (revision, life) = read_life(server, worker).await?;
        if life.is_some_and(|life| life.mod_revision == began_at) {
            let ttl_millis = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
            return Ok(Answer::at(revision, HeartbeatAnswer { ttl_millis }));
        }
    }
    let title = format!("the life of worker {worker} changed {CONFLICTS_MAX} times meanwhile");
    Err(Failure::unavailable(title, "send the next heartbeat"))
}

async fn read_life(server: &Server, worker: WorkerId) -> Result<(u64, Option<Life>), Failure> {
    let key = Key::Alive(worker);
    let read = server.store.get(&key.to_string()).await?;
    let Some(Versioned { value, mod_revision, lease }) = read.value else { return Ok((read.revision, None)) };
    match Record::decode(&key, &value) {
        Ok((Record::Alive(alive), _)) => Ok((read.revision, Some(Life { alive, mod_revision, lease }))),
        _ => Err(Refusal::Unreadable { key: key.to_string() }.into()),
    }
}

/// Begins a life; `None` when somebody else was quicker.
async fn begin_life(
    server: &Server,
    caller: &Caller,
    worker: WorkerId,
    boot_id: &str,
    revision: u64,
) -> Result<Option<(LeaseId, u64)>, Failure> {
    let view = server.follower.reach(revision, REACH_WITHIN).await?;
    let Some(decision) = request::begin_life(&view, worker, boot_id, clock::now())?.transaction() else {
        return Ok(None);
    };
    let lease = server.store.lease_grant(WORKER_TTL).await?;
    let key = Key::Alive(worker);
    match server.commit(&decision, &view, caller, Some((&key, lease.id))).await {
        Ok(Outcome::Committed { revision }) => {
            tracing::info!(%worker, boot_id, "a worker is alive");
            Ok(Some((lease.id, revision)))
        }
        other => {
            // Without its key the lease keeps nothing; if it cannot be given up it ends by itself.
            let _ = server.store.lease_revoke(lease.id).await;
            other?;
            Ok(None)
        }
    }
}

// --------------------------------------------------------------------------------------------------------- reports

/// `POST /v1/workers/UID/report`
pub(crate) async fn report(
    State(server): State<Arc<Server>>,
    caller: Caller,
    path: Path<String>,
    parameters: Parameters,
    Input(report): Input<Report>,
) -> Answered<Reply> {
    parameters.only(&[])?;
    let worker = input::worker(path)?;
    let carried = timeout(WRITE_WITHIN, carry(&server, &caller, worker, &report)).await;
    let answer = carried.unwrap_or_else(|_| Err(Failure::outcome_unknown()))?;
    let _ = server.follower.reach(answer.revision, REPORT_SHOWN_WITHIN).await;
    Ok(answer)
}

async fn carry(server: &Server, caller: &Caller, worker: WorkerId, report: &Report) -> Answered<Reply> {
    let mut view = server.initialised_view()?;
    for _ in 0..CONFLICTS_MAX {
        let Some(decision) = request::report(&view, worker, report)?.transaction() else { break };
        match server.commit(&decision, &view, caller, None).await? {
            Outcome::Committed { revision } => return Ok(Answer::at(revision, Reply::Accepted { revision })),
            Outcome::Conflict { revision, current } => {
                let epoch = met(&current).get(&Key::Epoch).copied();
                if epoch == Some(view.mod_revision(&Key::Epoch)) {
                    return Ok(Answer::at(revision, refused(worker, report, &current)?));
                }
                // The worker named its own guards; this one is the server's, whose view was of an older epoch.
                view = server.follower.reach(revision, REACH_WITHIN).await?;
            }
        }
    }
    Err(Failure::new(StatusCode::CONFLICT, "the epoch changed all the time").hint("report again"))
}

/// What the store had in place of what the worker thought.
fn refused(
    worker: WorkerId,
    report: &Report,
    current: &[(String, Option<Versioned>)],
) -> Result<Reply, Failure> {
    let key = Key::Observed(worker, report.object);
    let text = key.to_string();
    let found = current.iter().find(|(found, _)| *found == text).and_then(|(_, value)| value.as_ref());
    let observed = match found.map(|found| (found.mod_revision, Record::decode(&key, &found.value))) {
        None => None,
        Some((mod_revision, Ok((Record::Observed(observed), _)))) => {
            Some(Stamped { mod_revision, value: Observed::clone(&observed) })
        }
        // It must not be taken for nothing: the worker would claim again what it has.
        Some(_) => return Err(Refusal::Unreadable { key: text }.into()),
    };
    let assigned_revision = met(current).get(&Key::Assigned(worker, report.object)).copied().unwrap_or(0);
    Ok(Reply::Refused { observed, assigned_revision })
}

// ---------------------------------------------------------------------------------------------------------- streams

/// `GET /v1/workers/UID/stream`
pub(crate) async fn stream(
    State(server): State<Arc<Server>>,
    caller: Caller,
    path: Path<String>,
    parameters: Parameters,
) -> Result<Response, Failure> {
    parameters.only(&["cursor"])?;
    let worker = input::worker(path)?;
    let permit = server.stream_permit()?;
    let cursor = parameters.number("cursor")?;
    let confirmed = match cursor {
        Some(_) => None,
        None => Some(server.store.get(&Key::Epoch.to_string()).await?.revision),
    };
    let needed = cursor.or(confirmed).unwrap_or(u64::MAX);
    let too_old = || {
        let title = format!("this server's view has not reached revision {needed}");
        Failure::unavailable(title, "ask another server")
    };
    server.follower.reach(needed, REACH_WITHIN).await.map_err(|_| too_old())?;
    let subscription = server.follower.subscribe_of(worker).ok_or_else(Failure::no_view)?;
    if !delivery::may_begin(&subscription.view, cursor, confirmed) {
        return Err(too_old());
    }
    let Some(inventory) =
        delivery::inventory(&subscription.view, worker, &|name, sealed| server.open(name, sealed))
    else {
        let title = "something that is stored for this worker cannot be read by this version";
        return Err(Failure::unavailable(title, "upgrade this server"));
    };
    tracing::info!(%worker, %caller, revision = subscription.view.revision(), "a worker's stream begins");
    let mut first = Vec::new();
    push_line(&mut first, &inventory);
    let source = WorkerStream {
        server: Arc::clone(&server),
        worker,
        view: subscription.view,
        news: subscription.news,
        first: Some(first.into()),
        progress_at: Instant::now() + STREAM_SILENCE_MAX,
        stop: server.stop.clone(),
    };
    Ok(lines(source.view.revision(), source, permit))
}

struct WorkerStream {
    server: Arc<Server>,
    worker: WorkerId,
    view: View,
    news: mpsc::Receiver<News>,
    first: Option<Bytes>,
    progress_at: Instant,
    stop: watch::Receiver<bool>,
}

impl WorkerStream {
    /// Takes the news and whatever is queued behind it, and tells of all from the newest view: each changed assignment
    /// once, as it is now. A worker that has reported meanwhile refuses what is older than its own report.
    fn take(&mut self, news: News, lines: &mut Vec<u8>) {
        let mut changed: BTreeSet<Key> = news.changed.iter().cloned().collect();
        self.view = news.view;
        while let Ok(news) = self.news.try_recv() {
            changed.extend(news.changed.iter().cloned());
            self.view = news.view;
        }
        let open = |name: &Name, sealed: &str| self.server.open(name, sealed);
        let changes = delivery::changes(&self.view, self.worker, &changed, &open);
        changes.for_each(|change| push_line(lines, &change));
    }
}

impl Lines for WorkerStream {
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        let mut found = Vec::new();
        while found.is_empty() {
            let news = tokio::select! {
                _ = self.stop.wait_for(|stop| *stop) => return None,
                news = self.news.recv() => Some(news?),
                () = sleep_until(self.progress_at) => None,
            };
            match news {
                Some(news) => self.take(news, &mut found),
                None => {
                    // Only what concerns this worker has come; of the rest nothing was missed.
                    let Some(view) = self.server.follower.settled(&self.news) else { continue };
                    self.view = view;
                    push_line(&mut found, &delivery::progress(&self.view)?);
                }
            }
        }
        self.progress_at = Instant::now() + STREAM_SILENCE_MAX;
        Some(found.into())
    }
}
