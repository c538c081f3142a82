//! `lightbyte logs group/NAME`: the consoles of a group's members, line by line, each behind its member's name. With `-f`
//! members that are made later are joined, and it is said when one goes.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;

use anyhow::{Context as _, Result};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use lightbyte_api::object::{Object, ObjectRef};
use lightbyte_api::wire::WatchLine;
use lightbyte_api::{Kind, Name};
use lightbyte_link::ClientError;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::arguments::Logs;
use crate::cluster::Cluster;
use crate::failure::{self, Code, Failure};
use crate::terminal::{colour, say, say_error};
use crate::verbs::get;
use crate::verbs::logs::{Shown, query};

/// The longest line of a member that is waited for: what is longer is shown in pieces.
const LINE_BYTES_MAX: usize = 16 << 10;
/// How many changes of members may wait to be looked at: a few for each member of the largest group.
const NEWS_MAX: usize = 8_192;

/// What becomes of a group.
#[derive(Debug, PartialEq)]
enum News {
    /// This member is there, in this state.
    Member(Name, Life),
    /// This one is gone, if it was a member.
    Gone(Name),
    /// The group is gone.
    Over,
}

/// How far a member is, for whoever wants to read its console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    /// It may have a console by now, or not yet.
    Begins,
    /// It has one.
    Runs,
    /// It is on its way out: what it has said is read by whoever reads already.
    Ends,
}

fn life(state: &str) -> Life {
    match state {
        "pending" | "creating" | "starting" => Life::Begins,
        "deleting" => Life::Ends,
        _ => Life::Runs,
    }
}

/// What a line of a watch says of `group`.
fn news_of(group: &ObjectRef, line: WatchLine) -> Option<News> {
    match line {
        WatchLine::Object { object, .. }
            if object.owner.as_ref() == Some(group) && object.kind == Kind::Vm =>
        {
            let Object { name, status, .. } = *object;
            Some(News::Member(name, life(&status.state)))
        }
        WatchLine::Gone { object, .. } if object == *group => Some(News::Over),
        WatchLine::Gone { object, .. } if object.kind == Kind::Vm => Some(News::Gone(object.name)),
        _ => None,
    }
}

/// How a console ended: its member, how far that was when it was begun, and whether it said anything.
type Ended = (Name, Life, Result<bool>);

/// The consoles that are read.
struct Reading<'a> {
    cluster: &'a Cluster,
    words: &'a Logs,
    members: BTreeMap<Name, Member>,
    consoles: FuturesUnordered<Pin<Box<dyn Future<Output = Ended> + 'a>>>,
    /// How many consoles were begun, for their colours.
    begun: usize,
    /// How wide the names are.
    width: usize,
    code: Code,
}

struct Member {
    life: Life,
    /// Whether its console is read, or was.
    is_read: bool,
}

pub(crate) async fn run(cluster: &Cluster, group: &ObjectRef, words: &Logs) -> Result<Code> {
    if words.unit.is_some() {
        let failure = Failure::usage("a journal is one VM's");
        return Err(failure.hint("name a member: `lightbyte logs VM --unit NAME`").into());
    }
    let read = cluster.object(group).await.with_context(|| format!("read `{group}`"))?;
    let mut reading = Reading {
        cluster,
        words,
        members: BTreeMap::new(),
        consoles: FuturesUnordered::new(),
        begun: 0,
        width: 0,
        code: Code::Done,
    };
    reading.begin(&read);
    if reading.members.is_empty() {
        say(&format!("{group} has no members"));
    }
    if words.follow {
        return reading.follow(group).await;
    }
    while let Some(ended) = reading.consoles.next().await {
        reading.ended(ended)?;
    }
    Ok(reading.code)
}

impl<'a> Reading<'a> {
    /// Begins with the members that the group has now.
    fn begin(&mut self, group: &Object) {
        let members = group.status.more.get("members").and_then(Value::as_array).into_iter().flatten();
        let member = |member: &Value| {
            let name: Name = member.get("name")?.as_str()?.parse().ok()?;
            Some((name, life(member.get("state")?.as_str()?)))
        };
        let members: Vec<(Name, Life)> = members.filter_map(member).collect();
        self.width = members.iter().map(|(name, _)| name.as_str().len()).max().unwrap_or(0);
        for (name, life) in members {
            self.members.insert(name.clone(), Member { life, is_read: false });
            self.open(&name, self.words.lines);
        }
    }

    /// Goes on until the group is gone, or Ctrl-C.
    async fn follow(mut self, group: &ObjectRef) -> Result<Code> {
        let (sender, mut news) = mpsc::channel(NEWS_MAX);
        let seen = self.cluster.seen();
        // Two watches of one kind each: one of everything would bring every change of the cluster here.
        let watch = async |kind: Kind| {
            let tell = |line: WatchLine| match news_of(group, line) {
                Some(news) => sender.try_send(news).context("keep up with the changes of the members"),
                None => Ok(()),
            };
            get::follow(self.cluster, Some(kind), seen, tell).await
        };
        let (cluster_vms, cluster_groups) = (watch(Kind::Vm), watch(Kind::ScaleGroup));
        let mut watching = std::pin::pin!(async { tokio::try_join!(cluster_vms, cluster_groups) });
        loop {
            tokio::select! {
                Some(ended) = self.consoles.next(), if !self.consoles.is_empty() => self.ended(ended)?,
                Some(news) = news.recv() => {
                    if self.take(news) {
                        say(&format!("{group} is gone"));
                        return Ok(self.code);
                    }
                }
                // Watches go on on another server when one breaks off: this is an error.
                watched = &mut watching => return watched.map(|(code, _)| code),
            }
        }
    }

    /// Takes what became of the group; true when it is gone.
    fn take(&mut self, news: News) -> bool {
        match news {
            // A group ends after its members; the two watches may tell it the other way round.
            News::Over => {
                std::mem::take(&mut self.members).keys().for_each(|name| say(&format!("vm/{name} is gone")));
                return true;
            }
            News::Gone(name) => {
                if self.members.remove(&name).is_some() {
                    say(&format!("vm/{name} is gone"));
                }
            }
            News::Member(name, life) => {
                if !self.members.contains_key(&name) {
                    say(&format!("vm/{name} is a new member"));
                }
                let member = self.members.entry(name.clone()).or_insert(Member { life, is_read: false });
                member.life = life;
                // All of its console is news.
                self.open(&name, None);
            }
        }
        false
    }

    /// Begins to read a member's console, unless that was done or is of no use.
    fn open(&mut self, name: &Name, lines: Option<usize>) {
        let Some(member) = self.members.get_mut(name) else { return };
        if member.is_read || (self.words.follow && member.life == Life::Ends) {
            return;
        }
        member.is_read = true;
        let width = self.width;
        let prefix = colour(&format!("{:<width$} |", name.as_str()), self.begun);
        self.begun += 1;
        let (cluster, words, life, name) = (self.cluster, self.words, member.life, name.clone());
        self.consoles.push(Box::pin(async move {
            let member = ObjectRef::new(Kind::Vm, name.clone());
            (name, life, read(cluster, &member, &prefix, words, lines).await)
        }));
    }

    /// Takes how a console ended. The others are told all the same.
    fn ended(&mut self, (name, life, told): Ended) -> Result<()> {
        let was_refused = |error: &anyhow::Error| {
            error.downcast_ref::<ClientError>().and_then(ClientError::status).is_some()
        };
        // A worker that has not heard of a VM yet says that its console is over.
        let had_none = told.as_ref().map_or_else(was_refused, |said| !said);
        if self.words.follow && had_none {
            match self.members.get_mut(&name) {
                // It has none any more.
                None | Some(Member { life: Life::Ends, .. }) => return Ok(()),
                // It had none yet: with its next change, or, if that came meanwhile, at once.
                Some(member) if life == Life::Begins => {
                    member.is_read = false;
                    if member.life == Life::Runs {
                        self.open(&name, None);
                    }
                    return Ok(());
                }
                Some(_) => {}
            }
        }
        let Err(error) = told else { return Ok(()) };
        if failure::is_hang_up(&error) {
            return Err(error);
        }
        let error = error.context(format!("read the console of `vm/{name}`"));
        say_error(&failure::describe(&error));
        self.code = failure::code_of(&error);
        Ok(())
    }
}

/// Shows a console until it ends; whether it said anything.
async fn read(
    cluster: &Cluster,
    member: &ObjectRef,
    prefix: &str,
    words: &Logs,
    lines: Option<usize>,
) -> Result<bool> {
    let mut stream = cluster.bytes(member, "logs", &query(words, lines)).await?;
    let (mut rest, mut has_said) = (Vec::new(), false);
    while let Some(bytes) = stream.next().await.context("read on")? {
        has_said |= !bytes.is_empty();
        rest.extend_from_slice(&bytes);
        while let Some(length) = line_length(&rest) {
            let line: Vec<u8> = rest.drain(..length).collect();
            write_line(prefix, &line)?;
        }
    }
    if !rest.is_empty() {
        write_line(prefix, &rest)?;
    }
    Ok(has_said)
}

/// How many bytes the first line has, its end included; nothing while that has not come.
fn line_length(bytes: &[u8]) -> Option<usize> {
    let end = bytes.iter().position(|byte| *byte == b'\n').map(|place| place + 1);
    end.or((bytes.len() >= LINE_BYTES_MAX).then_some(LINE_BYTES_MAX))
}

fn write_line(prefix: &str, line: &[u8]) -> Result<()> {
    let mut shown = Shown::default();
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    shown.write_ours(&format!("{prefix} "))?;
    shown.write(line)?;
    shown.write_ours("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_line_ends_where_it_ends_or_is_too_long() {
        let check = |bytes: &[u8], expect: Option<usize>| assert_eq!(line_length(bytes), expect);
        check(b"", None);
        check(b"begun", None);
        check(b"one\ntwo", Some(4));
        check(b"\n", Some(1));
        check(&[b'x'; LINE_BYTES_MAX + 5], Some(LINE_BYTES_MAX));
    }

    #[test]
    fn a_watch_tells_of_members_and_of_the_group() {
        let group: ObjectRef = "scalegroup/web".parse().unwrap();
        let check = |line: Value, expect: Option<News>| {
            assert_eq!(news_of(&group, serde_json::from_value(line).unwrap()), expect);
        };
        let vm = |owner: Value, state: &str| {
            json!({ "object": { "revision": 7, "object": {
                "kind": "vm", "name": "web-1", "uid": "0193a5c0-7d3e-7c4a-9b1e-2f6d8a4b0c1d", "generation": 1,
                "labels": {}, "owner": owner, "spec": {},
                "status": { "state": state, "ready": false, "since": null, "deadline": null, "waiting_on": [] },
            } } })
        };
        let member = || Name::new("web-1").unwrap();
        check(vm(json!("scalegroup/web"), "starting"), Some(News::Member(member(), Life::Begins)));
        check(vm(json!("scalegroup/web"), "running"), Some(News::Member(member(), Life::Runs)));
        check(vm(json!("scalegroup/web"), "deleting"), Some(News::Member(member(), Life::Ends)));
        check(vm(json!("scalegroup/shop"), "running"), None);
        check(vm(Value::Null, "running"), None);
        check(json!({ "gone": { "revision": 7, "object": "vm/web-1" } }), Some(News::Gone(member())));
        check(json!({ "gone": { "revision": 7, "object": "scalegroup/web" } }), Some(News::Over));
        check(json!({ "gone": { "revision": 7, "object": "scalegroup/shop" } }), None);
        check(json!({ "progress": { "revision": 7 } }), None);
    }
}
