//! What resolvers follow: every name, whenever one changes, and again and again that there is nothing newer.
//!
//! A resolver denies a name only as long as it knows that it has not missed one. So it is told when what it has was
//! everything, on the clock that began with its own request: a word that was long on its way is then no newer than it was
//! when it was said.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use lightbyte_api::wire::ZoneLine;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::Server;
use crate::api::answer::{Lines, lines, push_line};
use crate::api::caller::Caller;
use crate::api::input::Parameters;
use crate::names::Told;
use crate::problem::Failure;

/// How long a stream lasts: clocks of two machines differ by half a thousandth at most (adjtimex(2)), so at its end by less
/// than a second of the ten that a confirmation is good for.
const STREAM_LASTS: Duration = Duration::from_secs(1_800);
/// How long the names may take to be seen at a revision that they have to have: two pauses between looks at most, and less
/// than resolvers wait for an answer.
const BEGIN_WITHIN: Duration = Duration::from_secs(4);
/// How old a confirmation may be with which a stream begins for somebody who has names already.
const CONFIRMED_AGE_MAX: Duration = Duration::from_secs(2);

/// `GET /v1/zone`
pub(crate) async fn stream(
    State(server): State<Arc<Server>>,
    caller: Caller,
    parameters: Parameters,
) -> Result<Response, Failure> {
    let begun = Instant::now();
    parameters.only(&["after"])?;
    let permit = server.stream_permit()?;
    let after = parameters.number("after")?;
    let view = server.initialised_view()?;
    let needed = after.unwrap_or(0).max(view.revision());
    let mut told = server.names.follow();
    // Who has names already is not sent them again by a server that cannot say whether there are newer ones.
    let may_begin = |told: &Option<Told>| {
        told.as_ref().is_some_and(|told| {
            let is_confirmed = told.confirmed_at.is_some_and(|at| at.elapsed() < CONFIRMED_AGE_MAX);
            told.current_at >= needed && (after.is_none() || is_confirmed)
        })
    };
    let first = match timeout_at(begun + BEGIN_WITHIN, told.wait_for(may_begin)).await {
        Ok(Ok(told)) => told.clone(),
        _ => None,
    };
    let first = first.ok_or_else(|| {
        let title =
            format!("this server cannot tell the names of revision {needed} and whether they are the newest");
        Failure::unavailable(title, "ask another server")
    })?;
    tracing::info!(%caller, revision = first.current_at, "a resolver follows the names");
    let mut source = ZoneStream {
        told,
        begun,
        names: first.revision,
        // Of two servers each may have seen the same names first at another revision; nobody is to go back.
        revision: first.current_at,
        confirmed_at: None,
        queue: first.line(first.current_at).into(),
        stop: server.stop.clone(),
    };
    source.confirm(&first);
    Ok(lines(source.revision, source, permit))
}

struct ZoneStream {
    told: watch::Receiver<Option<Told>>,
    begun: Instant,
    /// Which names were sent, by the revision that the server has for them.
    names: u64,
    /// Which revision they were sent with.
    revision: u64,
    /// The last confirmation that was sent.
    confirmed_at: Option<Instant>,
    /// What is to be sent, in pieces: a zone and a confirmation at most.
    queue: VecDeque<Bytes>,
    stop: watch::Receiver<bool>,
}

impl ZoneStream {
    /// Queues what is new; `None` if nothing follows from what was sent.
    fn take(&mut self, told: &Told) -> Option<()> {
        if told.current_at < self.revision {
            return None;
        }
        if told.revision != self.names {
            (self.names, self.revision) = (told.revision, told.revision);
            self.queue.extend(told.line(self.revision));
        }
        self.confirm(told);
        Some(())
    }

    fn confirm(&mut self, told: &Told) {
        // A read that was made before the request has no time on the resolver's clock; the next one comes soon.
        let confirmed_at = told.confirmed_at.filter(|at| *at >= self.begun);
        let Some(at) = confirmed_at.filter(|at| self.confirmed_at.is_none_or(|last| last < *at)) else {
            return;
        };
        self.confirmed_at = Some(at);
        let at_ms = u64::try_from(at.duration_since(self.begun).as_millis()).unwrap_or(u64::MAX);
        let confirmed = ZoneLine::Confirmed { revision: self.revision, at_ms };
        let mut bytes = Vec::new();
        push_line(&mut bytes, if told.is_whole { &confirmed } else { &ZoneLine::Unconfirmed });
        self.queue.push_back(bytes.into());
    }
}

impl Lines for ZoneStream {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(bytes) = self.queue.pop_front() {
                return Some(bytes);
            }
            tokio::select! {
                _ = self.stop.wait_for(|stop| *stop) => return None,
                () = sleep_until(self.begun + STREAM_LASTS) => return None,
                changed = self.told.changed() => changed.ok()?,
            }
            let told = self.told.borrow_and_update().clone()?;
            self.take(&told)?;
        }
    }
}
