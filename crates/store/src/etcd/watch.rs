//! A watch that goes on: resumed where it stopped, replaced when it is mute, ended only by what the caller must know.
//!
//! ```text
//!   Opening --- created ---> Running --- first batch from the past ---> Verifying --- readable ---> Running
//!      ^  \                   |   |                                        |
//!      |   failed             |   canceled: compacted ------+              compacted
//!      |     v           broken or mute                     v              v
//!      +-- Pausing <----------+                           ended         ended
//!            \
//!             30 s without a stream ---> ended: unavailable
//! ```
//!
//! Three things of etcd shape this file:
//!
//! - A watch from a compacted revision is *canceled* with a message and then stays open and mute. And one that starts
//!   exactly **at** the compacted revision is accepted, yet may lack that revision's deletions (etcd#19179). So a
//!   watch that begins in the past is believed only after the revision before its start could still be read.
//! - Progress that was *asked for* may overtake events on members before 3.4.25 and 3.5.8 (etcd#15220): there it only
//!   proves that the member lives. Automatic progress runs in the order of events everywhere.
//! - A stopped member's stream is silent; keepalive ends it after 8 s, and silence after a question ends it
//!   sooner when the store has met trouble with that member too.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::proto::{PbEvent, PbStatusResponse, PbWatchResponse};
use etcd_client::{Error, WatchOptions, WatchStream};
use tokio::time::Instant;

use super::call::{About, Failure};
use super::channel::{Members, Turn};
use super::join::Joiner;
use super::keys::{Root, revision, to_etcd, versioned};
use super::{DECODE_BYTES_MAX, Inner};
use crate::error::{Cause, StoreError, cause};
use crate::store::{Batch, Event, Revision, WatchSource};

/// How often progress is asked for: a leader's view must be known to be fresh well within its time to live.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// How long a stream may be silent although it was asked. A member under load may be slow, so this is generous;
/// keepalive finds dead connections sooner.
const MUTE_AFTER: Duration = Duration::from_secs(10);

/// How long it may be silent when the store has left its member meanwhile: likely it is the member that is bad.
const MUTE_AFTER_LEAVING: Duration = Duration::from_millis(1500);

/// How long a member may take to tell its version.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);

/// The pause before a stream is opened again.
const RESUME_PAUSE: Duration = Duration::from_millis(200);

/// How long opening is tried until the caller is told.
const RESUME_WITHIN: Duration = Duration::from_secs(30);

type Pending<T> = Pin<Box<dyn Future<Output = Result<T, Failure>> + Send>>;

/// An open stream.
struct Running {
    stream: WatchStream,
    root: Root,
    members: Arc<Members>,
    turn: Turn,
    /// Whether progress that was asked for may be believed.
    ordered_progress: bool,
    /// The stream reads the past, which may be compacted under it: not believed yet.
    unverified: bool,
    joiner: Joiner,
    ask_at: Instant,
    /// Since when a question has no answer. Silence without a question proves nothing.
    asked_at: Option<Instant>,
}

enum Phase {
    Pausing(Instant),
    Opening(Pending<Running>),
    Running(Box<Running>),
    Verifying(Pending<()>, Box<Running>, Batch),
    Ended(StoreError),
}

/// The watch behind [`crate::Watch`].
pub(super) struct EtcdWatch {
    inner: Arc<Inner>,
    prefix: String,
    /// The first revision that has not been delivered.
    from: Revision,
    /// Since when there is no stream, and why.
    failing: Option<(Instant, Cause)>,
    /// Held here and not in `next`, so that a dropped `next` loses nothing.
    phase: Phase,
}

/// What a message of the stream means.
enum Heard {
    Nothing,
    Batch(Batch),
    Compacted(Revision),
    Broken(Cause),
}

impl EtcdWatch {
    pub(super) fn new(inner: Arc<Inner>, prefix: &str, from: Revision) -> Self {
        let phase = Phase::Pausing(Instant::now());
        Self { inner, prefix: prefix.to_owned(), from: from.max(1), failing: None, phase }
    }

    /// Waits until something happens in the present phase; cancel safe, since it changes nothing before that.
    async fn advance(&mut self) -> Option<Batch> {
        match &mut self.phase {
            Phase::Pausing(until) => {
                tokio::time::sleep_until(*until).await;
                self.phase = Phase::Opening(open(Arc::clone(&self.inner), self.prefix.clone(), self.from));
                None
            }
            Phase::Opening(opening) => {
                let opened = opening.await;
                self.opened(opened);
                None
            }
            Phase::Running(running) => {
                let heard = running.hear(self.from).await;
                self.heard(heard)
            }
            Phase::Verifying(verifying, ..) => {
                let verified = verifying.await;
                self.verified(verified)
            }
            Phase::Ended(_) => None,
        }
    }

    fn opened(&mut self, opened: Result<Running, Failure>) {
        match opened {
            Ok(running) => {
                self.failing = None;
                self.phase = Phase::Running(Box::new(running));
            }
            Err(Failure::Transient(cause) | Failure::Oversized(cause)) => self.pause(cause),
            Err(Failure::Known(error)) => self.phase = Phase::Ended(error),
        }
    }

    fn heard(&mut self, heard: Heard) -> Option<Batch> {
        match heard {
            Heard::Nothing => None,
            Heard::Compacted(revision) => {
                self.phase = Phase::Ended(StoreError::Compacted { revision });
                None
            }
            Heard::Broken(cause) => {
                if let Phase::Running(running) = &self.phase {
                    self.inner.members.leave(running.turn);
                }
                tracing::debug!(
                    error = &*cause as &dyn std::error::Error,
                    from = self.from,
                    "resume the watch"
                );
                self.pause(cause);
                None
            }
            Heard::Batch(batch) => self.believe(batch),
        }
    }

    /// Delivers a batch, or first makes sure that nothing before it was compacted away.
    fn believe(&mut self, batch: Batch) -> Option<Batch> {
        match std::mem::replace(&mut self.phase, Phase::Pausing(Instant::now())) {
            Phase::Running(running) if running.unverified && self.from > 1 => {
                let (inner, before) = (Arc::clone(&self.inner), self.from - 1);
                let verifying = Box::pin(async move { inner.readable_at(before).await });
                self.phase = Phase::Verifying(verifying, running, batch);
                None
            }
            phase => {
                self.phase = phase;
                self.from = batch.revision + 1;
                Some(batch)
            }
        }
    }

    fn verified(&mut self, verified: Result<(), Failure>) -> Option<Batch> {
        let Phase::Verifying(_, mut running, batch) =
            std::mem::replace(&mut self.phase, Phase::Pausing(Instant::now()))
        else {
            return None;
        };
        match verified {
            Ok(()) => {
                running.unverified = false;
                self.phase = Phase::Running(running);
                self.from = batch.revision + 1;
                Some(batch)
            }
            Err(Failure::Known(error)) => {
                self.phase = Phase::Ended(error);
                None
            }
            // The batch is dropped with its stream; the next stream brings it again.
            Err(Failure::Transient(cause) | Failure::Oversized(cause)) => {
                self.pause(cause);
                None
            }
        }
    }

    fn pause(&mut self, cause: Cause) {
        let since = self.failing.as_ref().map_or_else(Instant::now, |(since, _)| *since);
        self.phase = if since.elapsed() > RESUME_WITHIN {
            Phase::Ended(StoreError::Unavailable(Arc::clone(&cause)))
        } else {
            Phase::Pausing(Instant::now() + RESUME_PAUSE)
        };
        self.failing = Some((since, cause));
    }
}

#[async_trait]
impl WatchSource for EtcdWatch {
    async fn next(&mut self) -> Result<Batch, StoreError> {
        loop {
            if let Phase::Ended(error) = &self.phase {
                return Err(error.clone());
            }
            if let Some(batch) = self.advance().await {
                return Ok(batch);
            }
        }
    }
}

impl Running {
    /// Waits for a message, asking for progress meanwhile.
    async fn hear(&mut self, from: Revision) -> Heard {
        let asked_at = self.asked_at;
        // Looked at anew at least every time that progress is asked for.
        let patience = if self.members.turn() == self.turn { MUTE_AFTER } else { MUTE_AFTER_LEAVING };
        let mute = async {
            match asked_at {
                Some(asked_at) => tokio::time::sleep_until(asked_at + patience).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            message = self.stream.message() => match message {
                Ok(Some(message)) => self.understand(message.0, from),
                Ok(None) => Heard::Broken(cause("the stream has ended")),
                Err(error) => Heard::Broken(Arc::new(error)),
            },
            () = mute => Heard::Broken(cause("the stream is mute")),
            () = tokio::time::sleep_until(self.ask_at) => {
                self.ask_at = Instant::now() + PROGRESS_EVERY;
                self.asked_at.get_or_insert_with(Instant::now);
                // The queue of requests has room for 100; should it be full, nobody reads it.
                match tokio::time::timeout(PROGRESS_EVERY, self.stream.request_progress()).await {
                    Ok(Ok(())) => Heard::Nothing,
                    Ok(Err(error)) => Heard::Broken(Arc::new(error)),
                    Err(_) => Heard::Broken(cause("the stream takes no request")),
                }
            }
        }
    }

    fn understand(&mut self, message: PbWatchResponse, from: Revision) -> Heard {
        self.asked_at = None;
        if message.compact_revision > 0 {
            return Heard::Compacted(revision(message.compact_revision));
        }
        if message.canceled {
            return Heard::Broken(cause(format!("canceled: {}", message.cancel_reason)));
        }
        if message.created {
            return Heard::Nothing;
        }
        if !message.events.is_empty() {
            let events = message.events.into_iter().filter_map(|event| event_of(&self.root, event));
            let batch = self.joiner.take(events, message.fragment);
            return batch.map_or(Heard::Nothing, Heard::Batch);
        }
        // A question's answer carries the watch id -1.
        let believed = message.watch_id >= 0 || self.ordered_progress;
        let reached = message.header.map_or(0, |header| revision(header.revision));
        // A member behind the others may tell of less than we have: that is no progress, and none may go back.
        if believed && !self.joiner.is_open() && reached + 1 >= from {
            return Heard::Batch(Batch { revision: reached, events: Vec::new() });
        }
        Heard::Nothing
    }
}

fn event_of(root: &Root, event: PbEvent) -> Option<Event> {
    const DELETE: i32 = etcd_client::EventType::Delete as i32;
    let found = event.kv?;
    let key = root.strip(&found.key)?;
    Some(match event.r#type {
        DELETE => Event::Delete { key, mod_revision: revision(found.mod_revision) },
        _ => Event::Put { key, value: versioned(found) },
    })
}

/// Opens a stream and waits until etcd says that the watch exists.
fn open(inner: Arc<Inner>, prefix: String, from: Revision) -> Pending<Running> {
    Box::pin(async move {
        let turn = inner.members.turn();
        let (mut maintenance, mut client) = (
            inner.client.maintenance_client(),
            inner.client.watch_client().max_decoding_message_size(DECODE_BYTES_MAX),
        );
        let about = About { revision: Some(from), ..About::default() };
        let status = inner.once(STATUS_TIMEOUT, about, async { Ok(maintenance.status().await?.0) }).await?;
        let (key, end) = inner.root.watched(&prefix);
        let options = WatchOptions::new()
            .with_range(end)
            .with_start_revision(to_etcd(from))
            .with_progress_notify()
            .with_fragment();
        let begin = async move {
            let mut stream = client.watch(key, Some(options)).await?;
            let first = stream.message().await?;
            let first = first.ok_or_else(|| Error::WatchError("the stream ended at once".to_owned()))?;
            Ok((stream, first.0))
        };
        let (stream, first) = inner.once(inner.request_timeout, about, begin).await?;
        if first.compact_revision > 0 {
            return Err(Failure::Known(StoreError::Compacted { revision: revision(first.compact_revision) }));
        }
        if first.canceled || !first.created {
            inner.members.leave(turn);
            return Err(Failure::Transient(cause(format!("not created: {}", first.cancel_reason))));
        }
        let header = first.header.unwrap_or_default();
        if revision(header.revision) + 1 < from {
            reachable(&inner, from).await?;
        }
        let same_member = status.header.as_ref().is_some_and(|status| status.member_id == header.member_id);
        Ok(Running {
            stream,
            root: inner.root.clone(),
            members: Arc::clone(&inner.members),
            turn,
            ordered_progress: same_member && orders_progress(&status),
            unverified: from <= revision(header.revision),
            joiner: Joiner::default(),
            ask_at: Instant::now() + PROGRESS_EVERY,
            asked_at: None,
        })
    })
}

/// The member is behind `from`: is it alone in that, or has the store gone back, as a restore does? A watch would then
/// be silent until the new history reaches `from`, and leave out all of it.
async fn reachable(inner: &Inner, from: Revision) -> Result<(), Failure> {
    match inner.get("").await {
        Ok(read) if read.revision + 1 < from => {
            Err(Failure::Known(StoreError::FutureRevision { revision: from }))
        }
        Ok(_) => Ok(()),
        Err(StoreError::Unavailable(cause)) => Err(Failure::Transient(cause)),
        Err(error) => Err(Failure::Known(error)),
    }
}

/// Whether this member answers a question for progress in the order of events (etcd#15220 is mended).
fn orders_progress(status: &PbStatusResponse) -> bool {
    version_orders_progress(&status.version)
}

fn version_orders_progress(version: &str) -> bool {
    let mut parts = version.split(['.', '-', '+']).map_while(|part| part.parse::<u32>().ok());
    match (parts.next(), parts.next(), parts.next()) {
        (Some(3), Some(4), Some(patch)) => patch >= 25,
        (Some(3), Some(5), Some(patch)) => patch >= 8,
        (Some(major), Some(minor), _) => (major, minor) > (3, 5),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_members_are_not_believed() {
        let check = |version, ordered| assert_eq!(version_orders_progress(version), ordered, "{version}");
        for version in ["3.4.23", "3.4.24", "3.5.0", "3.5.7", "3.3.27", "2.3.8", "", "etcd", "3.4", "3.5.x"] {
            check(version, false);
        }
        for version in ["3.4.25", "3.4.25+git", "3.5.8", "3.5.16", "3.6.0", "3.6.0-rc.1", "3.10.1", "4.0.0"] {
            check(version, true);
        }
    }
}
