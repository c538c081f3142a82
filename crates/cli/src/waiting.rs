//! Waiting until an object is as asked: a pure judgement of what a watch shows, and the loop that feeds it.

use std::time::Duration;

use anyhow::{Context as _, Result};
use lightbyte_api::object::{Object, ObjectRef};
use lightbyte_api::waiting::Waiting;
use lightbyte_api::wire::{Changed, WatchLine};
use lightbyte_api::{Kind, Timestamp, Uid, WaitingOn};
use lightbyte_link::{ClientError, Lines};
use tokio::time::{Instant, timeout, timeout_at};

use crate::arguments::Goal;
use crate::cluster::{Cluster, may_read_again};
use crate::failure::{Code, Failure};
use crate::terminal::say;
use crate::verbs::{logs, maintenance};

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
    if let Some(waiting) = crash_loop.filter(|_| wish.goal == Goal::Ready && !status.ready) {
        return Verdict::Hopeless(crashed(object, now, waiting));
    }
    if wish.goal == Goal::Ready
        && let Some(failure) = maintenance::blocked(object, now).or_else(|| stands(object, now))
    {
        return Verdict::Hopeless(failure);
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

/// Why a group does not become what it was asked to be before a person says more.
fn stands(object: &ObjectRef, now: &Object) -> Option<Failure> {
    let version = || now.status.more.get("version").map(ToString::to_string).unwrap_or_default();
    let reason = |is: fn(&WaitingOn) -> bool| {
        now.status.waiting_on.iter().map(|waiting| &waiting.on).find(|on| is(on))
    };
    let rejected = || reason(|on| matches!(on, WaitingOn::Rejected { .. }));
    let steered = || reason(|on| matches!(on, WaitingOn::Promotion { .. } | WaitingOn::Paused { .. }));
    let protected = || reason(|on| matches!(on, WaitingOn::Protected { .. }));
    let (code, message, on) = match now.status.state.as_str() {
        "rolled-back" => (Code::Error, format!("`{object}` is back at version {}", version()), rejected()?),
        "failed" => (Code::Error, format!("`{object}` stands still"), rejected()?),
        "canary" => (Code::Differs, format!("`{object}` has come to its canaries"), steered()?),
        "paused" => (Code::Differs, format!("`{object}` is paused"), steered()?),
        "scaling" => (Code::Differs, format!("`{object}` keeps more members"), protected()?),
        _ => return None,
    };
    Some(Failure::new(code, format!("{message}: {on}")).hint(on.hint()))
}

/// What the member said last on its console for which a group's update failed.
async fn last_words(cluster: &Cluster, now: Option<&Object>) -> Vec<String> {
    let member = now.and_then(|now| now.status.more.get("failed_member")?.as_str()?.parse().ok());
    let (Some(member), Some(now)) = (member, now) else { return Vec::new() };
    let vm = ObjectRef::new(Kind::Vm, member);
    logs::last_words(cluster, &vm, now.status.state == "rolled-back").await
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
            WaitingOn::Capacity { .. }
                | WaitingOn::WorkersFull
                | WaitingOn::Workers { .. }
                | WaitingOn::WorkerLabels { .. }
                | WaitingOn::WorkersReserved
                | WaitingOn::KeptNear { .. }
                | WaitingOn::KeptApart
                | WaitingOn::Address { .. }
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
        let verdict = judge(wish, now.as_ref());
        if let Some(text) = what_to_say(wish, &verdict, now.as_ref()).filter(|text| text != said) {
            say(&text);
            *said = text;
        }
        last.clone_from(&now);
        match verdict {
            Verdict::Reached => return Ok(now),
            Verdict::Hopeless(failure) => {
                let said = last_words(cluster, now.as_ref()).await;
                return Err(if said.is_empty() { failure } else { failure.details(said) }.into());
            }
            Verdict::NotYet => {}
        }
        now = next_of(&mut lines, wish, cluster.seen()).await?;
    }
}

/// The line for an observation. At the end the reasons are those of a decision that has not been looked at again, and
/// the end of an object is said by whoever asked for it.
fn what_to_say(wish: &Wish, verdict: &Verdict, now: Option<&Object>) -> Option<String> {
    match (verdict, now) {
        (Verdict::Reached, None) => None,
        (Verdict::Reached, Some(now)) => Some(format!("{}: {}", wish.object, now.status.state)),
        (_, now) => Some(progress(&wish.object, now)),
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const UID: &str = "0193a5c0-7d3e-7c4a-9b1e-2f6d8a4b0c1d";

    #[expect(clippy::needless_pass_by_value, reason = "cases write their reasons in place")]
    fn vm(generation: u64, state: &str, ready: bool, waiting_on: Value) -> Object {
        serde_json::from_value(json!({
            "kind": "vm", "name": "a", "uid": UID, "generation": generation, "labels": {}, "owner": null, "spec": {},
            "status": {"state": state, "ready": ready, "since": null, "deadline": null, "waiting_on": waiting_on,
                "problem": "exit status 1"},
        }))
        .unwrap()
    }

    fn wish(goal: Goal) -> Wish {
        Wish { old_crash: None, ..Wish::of(&vm(2, "pending", false, json!([])), goal) }
    }

    fn crash_at(second: u64) -> Value {
        json!([{"reason": "crash_loop", "worker": "n1", "since": format!("2026-11-22T10:00:0{second}Z")}])
    }

    #[test]
    fn a_wait_ends_when_its_goal_is_reached_or_cannot_be() {
        let check = |wish: &Wish, now: Option<Object>, expect: &str| {
            let verdict = match judge(wish, now.as_ref()) {
                Verdict::Reached => "reached".to_owned(),
                Verdict::NotYet => "not yet".to_owned(),
                Verdict::Hopeless(failure) => format!("{} {failure}", failure.code as i32),
            };
            assert_eq!(verdict, expect, "{wish:?} {now:?}");
        };
        let none = || json!([]);
        let ready = wish(Goal::Ready);
        check(&ready, Some(vm(2, "starting", false, none())), "not yet");
        check(&ready, Some(vm(2, "running", true, none())), "reached");
        check(&ready, Some(vm(3, "running", true, none())), "reached");
        // What was asked before is reached; what was just asked is not.
        check(&ready, Some(vm(1, "running", true, none())), "not yet");
        check(&ready, Some(vm(2, "stopped", true, none())), "1 `vm/a` is stopped, as it was asked to be");
        check(&ready, Some(vm(2, "deleting", false, none())), "1 `vm/a` is being deleted");
        check(&ready, None, "5 `vm/a` was deleted");
        let other = Object { uid: Uid::from_bits(7), ..vm(2, "running", true, none()) };
        check(&ready, Some(other.clone()), "5 `vm/a` was deleted");
        check(
            &ready,
            Some(vm(2, "crashed", false, crash_at(1))),
            "1 `vm/a` does not stay up: it ended by itself on worker `n1`",
        );
        // The same crash loop was there before the restart that we wait for.
        let again = Wish { old_crash: "2026-11-22T10:00:01Z".parse().ok(), ..wish(Goal::Ready) };
        check(&again, Some(vm(2, "crashed", false, crash_at(1))), "not yet");
        check(
            &again,
            Some(vm(2, "crashed", false, crash_at(2))),
            "1 `vm/a` does not stay up: it ended by itself on worker `n1`",
        );
        let stopped = wish(Goal::Stopped);
        check(&stopped, Some(vm(2, "stopping", false, none())), "not yet");
        check(&stopped, Some(vm(2, "stopped", true, none())), "reached");
        check(&stopped, Some(vm(2, "crashed", false, crash_at(1))), "not yet");
        check(&stopped, Some(vm(2, "running", true, none())), "1 `vm/a` is running, as it was asked to be");
        let deleted = wish(Goal::Deleted);
        check(&deleted, Some(vm(2, "running", true, none())), "not yet");
        check(&deleted, None, "reached");
        check(&deleted, Some(other), "reached");
    }

    #[test]
    fn a_wait_that_is_too_long_says_what_was_seen_last() {
        let check = |goal: Goal, waiting_on: Value, expect: &str| {
            let last = vm(2, "pending", false, waiting_on);
            let failure = too_late(&wish(goal), Duration::from_secs(2), Some(&last));
            let text = format!("{} {failure} | {}", failure.code as i32, failure.details.join(" | "));
            assert_eq!(text, expect);
            assert!(failure.hint.is_some());
        };
        let since = "2026-11-22T10:00:00Z";
        let capacity = json!([{"reason": "capacity", "cpus": 2, "memory": "1GiB", "since": since}]);
        check(
            Goal::Ready,
            capacity,
            "2 `vm/a` has no place after 2 s | vm/a: pending (waiting: no worker has 2 CPU and 1GiB free)",
        );
        let worker = json!([{"reason": "worker", "worker": "n1", "to": "start", "since": since}]);
        check(
            Goal::Ready,
            worker,
            "3 `vm/a` is not ready after 2 s | vm/a: pending (waiting for worker `n1` to start it)",
        );
        check(Goal::Deleted, json!([]), "3 `vm/a` is not deleted after 2 s | vm/a: pending");
    }
}
