//! Waiting until an object is as asked: a pure judgement of what a watch shows, and the loop that feeds it.

use std::time::Duration;

use anyhow::{Context as _, Result};
use lightbyte_api::object::{Object, ObjectRef};
use lightbyte_api::waiting::Waiting;
use lightbyte_api::wire::{Changed, WatchLine};
use lightbyte_api::{Timestamp, Uid, WaitingOn};
use lightbyte_link::{ClientError, Lines};
use tokio::time::{Instant, timeout, timeout_at};

use crate::arguments::Goal;
use crate::cluster::{Cluster, may_read_again};
use crate::failure::{Code, Failure};
use crate::terminal::say;

/// How long a watch may be silent before another server is asked: servers send progress every five.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// The pause before a broken watch is begun again; connecting has its own limit of five seconds.
pub(crate) const RESUME_PAUSE: Duration = Duration::from_millis(200);

/// What is waited for, and from where.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    pub(crate) object: ObjectRef,
    pub(crate) goal: Goal,
    /// The object's identity: another one of its name is not it.
    pub(crate) uid: Uid,
    /// The least generation that counts.
    pub(crate) generation: u64,
    /// A crash loop that began then was there before we asked, and says nothing about what we asked.
    pub(crate) old_crash: Option<Timestamp>,
}

impl Wish {
    /// Waits for what a request has just asked.
    pub(crate) fn after(changed: &Changed, goal: Goal) -> Wish {
        Wish {
            object: changed.object.clone(),
            goal,
            uid: changed.uid,
            generation: changed.generation,
            old_crash: None,
        }
    }

    /// Waits for what is asked of the object now.
    pub(crate) fn of(object: &Object, goal: Goal) -> Wish {
        Wish {
            object: ObjectRef::new(object.kind, object.name.clone()),
            goal,
            uid: object.uid,
            generation: object.generation,
            old_crash: None,
        }
    }
}

/// What an observation means for a wish.
#[derive(Debug)]
enum Verdict {
    /// It came true.
    Reached,
    /// It will not, unless somebody does something.
    Hopeless(Failure),
    /// Not yet.
    NotYet,
}

/// Judges the object as it is; `None` when it is gone.
fn judge(wish: &Wish, now: Option<&Object>) -> Verdict {
    let object = &wish.object;
    let Some(now) = now.filter(|now| now.uid == wish.uid) else {
        return match wish.goal {
            Goal::Deleted => Verdict::Reached,
            _ => Verdict::Hopeless(Failure::new(Code::NotFound, format!("`{object}` was deleted"))),
        };
    };
    let status = &now.status;
    if wish.goal == Goal::Deleted || now.generation < wish.generation {
        return Verdict::NotYet;
    }
    if status.state == "deleting" {
        let failure = Failure::new(Code::Error, format!("`{object}` is being deleted"))
            .hint(format!("`lightbyte wait {object} --for deleted`"));
        return Verdict::Hopeless(failure);
    }
    let crash_loop = crash_loop(now).filter(|waiting| wish.old_crash != Some(waiting.since));
    if let Some(waiting) = crash_loop.filter(|_| wish.goal == Goal::Ready) {
        return Verdict::Hopeless(crashed(object, now, waiting));
    }
    let is_stopped = status.state == "stopped";
    match wish.goal {
        Goal::Ready if status.ready && is_stopped => Verdict::Hopeless(
            Failure::new(Code::Error, format!("`{object}` is stopped, as it was asked to be"))
                .hint(format!("`lightbyte start {object}`")),
        ),
        Goal::Ready if status.ready => Verdict::Reached,
        Goal::Stopped if status.ready && is_stopped => Verdict::Reached,
        Goal::Stopped if status.ready => Verdict::Hopeless(
            Failure::new(Code::Error, format!("`{object}` is {}, as it was asked to be", status.state))
                .hint(format!("`lightbyte stop {object}`")),
        ),
        _ => Verdict::NotYet,
    }
}

/// The crash loop that an object is in.
pub(crate) fn crash_loop(object: &Object) -> Option<&Waiting> {
    object.status.waiting_on.iter().find(|waiting| matches!(waiting.on, WaitingOn::CrashLoop { .. }))
}

fn crashed(object: &ObjectRef, now: &Object, waiting: &Waiting) -> Failure {
    let problem = now.status.more.get("problem").and_then(|problem| problem.as_str());
    let details = problem.map(|problem| vec![problem.to_owned()]).unwrap_or_default();
    Failure::new(Code::Error, format!("`{object}` does not stay up: {}", waiting.on))
        .details(details)
        .hint(waiting.on.hint())
}

/// The state of an object with its reasons, on one line.
fn progress(object: &ObjectRef, now: Option<&Object>) -> String {
    format!("{object}: {}", state(now))
}

/// The state of an object with its reasons.
pub(crate) fn state(now: Option<&Object>) -> String {
    let Some(now) = now else { return "gone".to_owned() };
    let reasons: Vec<String> = now.status.waiting_on.iter().map(|waiting| phrase(&waiting.on)).collect();
    match reasons.is_empty() {
        true => now.status.state.clone(),
        false => format!("{} ({})", now.status.state, reasons.join("; ")),
    }
}

/// A reason after "waiting": some are deeds or things that are waited for, the others are facts.
fn phrase(on: &WaitingOn) -> String {
    match on {
        WaitingOn::Worker { .. } | WaitingOn::WorkerAway { .. } | WaitingOn::Child { .. } => {
            format!("waiting for {on}")
        }
        _ => format!("waiting: {on}"),
    }
}

/// The error of a wait whose time is up, from what was seen last.
fn too_late(wish: &Wish, patience: Duration, last: Option<&Object>) -> Failure {
    let object = &wish.object;
    let reasons = last.map(|last| last.status.waiting_on.as_slice()).unwrap_or_default();
    let has_no_place = |waiting: &Waiting| {
        matches!(
            waiting.on,
            WaitingOn::Capacity { .. } | WaitingOn::Workers { .. } | WaitingOn::Address { .. }
        )
    };
    let seconds = patience.as_secs_f64();
    let (code, message) = if wish.goal != Goal::Deleted && reasons.iter().any(has_no_place) {
        (Code::Differs, format!("`{object}` has no place after {seconds} s"))
    } else {
        let goal = match wish.goal {
            Goal::Ready => "ready",
            Goal::Stopped => "stopped",
            Goal::Deleted => "deleted",
        };
        (Code::TimedOut, format!("`{object}` is not {goal} after {seconds} s"))
    };
    let details = last.map(|last| vec![progress(object, Some(last))]).unwrap_or_default();
    let hint = match reasons.first() {
        Some(waiting) => waiting.on.hint(),
        None => format!("`lightbyte why {object}` says more"),
    };
    Failure::new(code, message).details(details).hint(hint)
}

/// Waits for a wish, and says each change of state or reason on stderr. The object as it is then; `None` when it is
/// gone. Ctrl-C ends the wait and changes nothing.
pub(crate) async fn until(cluster: &Cluster, wish: &Wish, patience: Duration) -> Result<Option<Object>> {
    let mut last = None;
    let detached = async {
        // Without a signal handler Ctrl-C ends the process, which is as good.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    let deadline = Instant::now().checked_add(patience);
    let deadline = deadline.unwrap_or_else(|| Instant::now() + Duration::from_secs(86_400 * 365));
    let outcome = tokio::select! {
        outcome = timeout_at(deadline, follow(cluster, wish, &mut last)) => outcome,
        () = detached => return Err(interrupted(wish).into()),
    };
    match outcome {
        Ok(outcome) => outcome,
        Err(_) => Err(too_late(wish, patience, last.as_ref()).into()),
    }
}

fn interrupted(wish: &Wish) -> Failure {
    let goal = match wish.goal {
        Goal::Ready => "ready",
        Goal::Stopped => "stopped",
        Goal::Deleted => "deleted",
    };
    let object = &wish.object;
    Failure::new(Code::Interrupted, format!("no longer waiting for `{object}`; the cluster goes on with it"))
        .hint(format!("`lightbyte wait {object} --for {goal}` waits again"))
}

async fn follow(cluster: &Cluster, wish: &Wish, last: &mut Option<Object>) -> Result<Option<Object>> {
    let mut said = String::new();
    loop {
        let broken = match follow_stream(cluster, wish, last, &mut said).await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        if !may_resume(&broken) {
            return Err(broken);
        }
        cluster.client().leave_server();
        tokio::time::sleep(RESUME_PAUSE).await;
    }
}

/// Whether another try can help: the stream ended, not we.
pub(crate) fn may_resume(error: &anyhow::Error) -> bool {
    match error.downcast_ref::<ClientError>() {
        Some(error) => may_read_again(error),
        None => error.downcast_ref::<StreamEnded>().is_some(),
    }
}

/// A watch never ends by itself; a server that stops ends it.
#[derive(Debug, thiserror::Error)]
#[error("the server ended the watch")]
pub(crate) struct StreamEnded;

/// The next line of a watch; a long silence counts as its end.
pub(crate) async fn next_line(lines: &mut Lines) -> Result<WatchLine> {
    match timeout(SILENCE_MAX, lines.next::<WatchLine>()).await {
        Ok(line) => line?.ok_or_else(|| StreamEnded.into()),
        Err(_) => Err(StreamEnded.into()),
    }
}

async fn follow_stream(
    cluster: &Cluster,
    wish: &Wish,
    last: &mut Option<Object>,
    said: &mut String,
) -> Result<Option<Object>> {
    // The watch begins before the object is read, so that no change falls between the two.
    let mut lines = cluster.watch(Some(wish.object.kind), Some(&wish.object.name), None).await?;
    let mut now = read(cluster, wish).await?;
    loop {
        let text = progress(&wish.object, now.as_ref());
        if *said != text {
            say(&text);
            *said = text;
        }
        last.clone_from(&now);
        match judge(wish, now.as_ref()) {
            Verdict::Reached => return Ok(now),
            Verdict::Hopeless(failure) => return Err(failure.into()),
            Verdict::NotYet => {}
        }
        now = next_of(&mut lines, wish, cluster.seen()).await?;
    }
}

/// The object as it is now, in a view that has seen our own request.
async fn read(cluster: &Cluster, wish: &Wish) -> Result<Option<Object>> {
    match cluster.object(&wish.object).await {
        Ok(object) => Ok(Some(object)),
        Err(error) if error.status() == Some(404) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("look at `{}`", wish.object)),
    }
}

/// What the watch says next about the object, if it is newer than what was read.
async fn next_of(lines: &mut Lines, wish: &Wish, seen: u64) -> Result<Option<Object>> {
    loop {
        match next_line(lines).await? {
            WatchLine::Object { revision, object }
                if revision > seen && object.kind == wish.object.kind && object.name == wish.object.name =>
            {
                return Ok(Some(*object));
            }
            WatchLine::Gone { revision, object } if revision > seen && object == wish.object => {
                return Ok(None);
            }
            _ => {}
        }
    }
}
