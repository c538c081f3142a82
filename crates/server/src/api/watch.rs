//! People's watches: objects as lines of JSON, from now or from a revision on.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use bytes::Bytes;
use lightbyte_api::wire::WatchLine;
use lightbyte_api::{Kind, Name, ObjectRef};
use lightbyte_plan::{View, status};
use tokio::sync::{mpsc, watch as stopping};
use tokio::time::{Instant, sleep_until};

use crate::api::answer::{Lines, lines, push_line};
use crate::api::caller::Caller;
use crate::api::input::{self, Parameters};
use crate::news::News;
use crate::problem::Failure;
use crate::writer::REACH_WITHIN;
use crate::{Server, affected};

/// How long a watch is silent at most.
pub(crate) const WATCH_SILENCE_MAX: Duration = Duration::from_secs(5);

/// `GET /v1/watch`
pub(crate) async fn watch(
    State(server): State<Arc<Server>>,
    caller: Caller,
    parameters: Parameters,
) -> Result<Response, Failure> {
    parameters.only(&["kind", "name", "from"])?;
    let permit = server.stream_permit()?;
    let bad_name = |error| Failure::bad(format!("`name` must be a name: {error}"));
    let wanted = Wanted {
        kind: parameters.one("kind").map(input::kind).transpose()?,
        name: parameters.one("name").map(str::parse).transpose().map_err(bad_name)?,
    };
    let from = parameters.number("from")?;
    if let Some(from) = from {
        server.follower.reach(from, REACH_WITHIN).await?;
    }
    let begun = match from {
        Some(from) => server.follower.resume(from),
        None => server.follower.subscribe().map(|subscription| (subscription, Some(Vec::new()))),
    };
    let (subscription, missed) = begun.ok_or_else(Failure::no_view)?;
    let Some(missed) = missed else {
        let title = format!("this server does not remember the changes since revision {}", from.unwrap_or(0));
        return Err(
            Failure::new(StatusCode::GONE, title).hint("watch without `from`: it begins with everything")
        );
    };
    let view = subscription.view;
    let objects = match from {
        Some(_) => {
            affected::objects(&View::default(), &view, &missed).into_iter().chain(gone(&view, &missed))
        }
        None => view.objects().cloned().collect::<BTreeSet<_>>().into_iter().chain(Vec::new()),
    };
    let mut first = Vec::new();
    for object in objects.filter(|object| wanted.is(object)) {
        push_line(&mut first, &line(&view, &object));
    }
    push_line(&mut first, &WatchLine::Progress { revision: view.revision() });
    tracing::debug!(%caller, revision = view.revision(), "a watch begins");
    let source = ObjectWatch {
        wanted,
        news: subscription.news,
        first: Some(first.into()),
        progress_at: Instant::now() + WATCH_SILENCE_MAX,
        stop: server.stop.clone(),
        view,
    };
    Ok(lines(source.view.revision(), source, permit))
}

/// The objects whose end is among `missed`. What was made and ended meanwhile is told as gone, too.
fn gone(view: &View, missed: &[lightbyte_api::Key]) -> Vec<ObjectRef> {
    let ended = missed.iter().filter(|key| !view.contains(key)).filter_map(|key| match key {
        lightbyte_api::Key::Asked(object) => Some(object.clone()),
        _ => None,
    });
    ended.collect::<BTreeSet<_>>().into_iter().collect()
}

fn line(view: &View, object: &ObjectRef) -> WatchLine {
    let revision = view.revision();
    match status::object(view, object) {
        Some(object) => WatchLine::Object { revision, object: Box::new(object) },
        None => WatchLine::Gone { revision, object: object.clone() },
    }
}

/// Which objects are watched.
struct Wanted {
    kind: Option<Kind>,
    name: Option<Name>,
}

impl Wanted {
    fn is(&self, object: &ObjectRef) -> bool {
        self.kind.is_none_or(|kind| kind == object.kind)
            && self.name.as_ref().is_none_or(|name| *name == object.name)
    }
}

struct ObjectWatch {
    wanted: Wanted,
    view: View,
    news: mpsc::Receiver<News>,
    first: Option<Bytes>,
    progress_at: Instant,
    stop: stopping::Receiver<bool>,
}

impl Lines for ObjectWatch {
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        let mut found = Vec::new();
        while found.is_empty() {
            tokio::select! {
                _ = self.stop.wait_for(|stop| *stop) => return None,
                news = self.news.recv() => {
                    let news = news?;
                    let objects = affected::objects(&self.view, &news.view, &*news.changed);
                    self.view = news.view;
                    for object in objects.iter().filter(|object| self.wanted.is(object)) {
                        push_line(&mut found, &line(&self.view, object));
                    }
                }
                () = sleep_until(self.progress_at) => {
                    push_line(&mut found, &WatchLine::Progress { revision: self.view.revision() });
                    self.progress_at = Instant::now() + WATCH_SILENCE_MAX;
                }
            }
        }
        Some(found.into())
    }
}
