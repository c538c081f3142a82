//! `lightbyte logs`: what a guest wrote to its console, or one of its services to the journal.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use lightbyte_api::object::ObjectRef;
use lightbyte_api::{Kind, Name};
use lightbyte_link::ClientError;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::arguments::Logs;
use crate::cluster::Cluster;
use crate::failure::{self, Code, Failure};
use crate::harmless::Harmless;
use crate::remote::{self, CHUNKS_MAX};
use crate::target;
use crate::terminal::{colour, say, say_error};

/// What knows what services wrote.
const JOURNAL: &str = "journalctl";

pub(crate) async fn run(cluster: &Cluster, words: &Logs) -> Result<Code> {
    let object = target::read_vm(&words.target)?;
    if object.kind == Kind::ScaleGroup {
        return of_group(cluster, &object, words).await;
    }
    if let Some(unit) = &words.unit {
        return of_unit(cluster, &object, unit, words).await;
    }
    let stream = cluster.bytes(&object, "logs", &query(words)).await;
    let mut stream = stream.with_context(|| format!("read the console of `{object}`"))?;
    let mut shown = Shown::default();
    while let Some(bytes) = stream.next().await.context("read on")? {
        shown.write(&bytes)?;
    }
    Ok(Code::Done)
}

fn query(words: &Logs) -> Vec<(&'static str, String)> {
    let mut query = vec![("follow", words.follow.to_string())];
    if words.previous {
        query.push(("previous", true.to_string()));
    }
    query.extend(words.lines.map(|lines| ("lines", lines.to_string())));
    query
}

/// The longest line of a member that is waited for: what is longer is shown in pieces.
const LINE_BYTES_MAX: usize = 16 << 10;

/// The consoles of the members that a group has now, line by line, each behind its member's name.
async fn of_group(cluster: &Cluster, group: &ObjectRef, words: &Logs) -> Result<Code> {
    if words.unit.is_some() {
        let failure = Failure::usage("a journal is one VM's");
        return Err(failure.hint("name a member: `lightbyte logs VM --unit NAME`").into());
    }
    let read = cluster.object(group).await.with_context(|| format!("read `{group}`"))?;
    let members = read.status.more.get("members").and_then(Value::as_array).cloned().unwrap_or_default();
    let names = members.iter().filter_map(|member| member.get("name")?.as_str()?.parse::<Name>().ok());
    let names: Vec<Name> = names.collect();
    if names.is_empty() {
        say(&format!("{group} has no members"));
    }
    let width = names.iter().map(|name| name.as_str().len()).max().unwrap_or(0);
    let told = names.into_iter().enumerate().map(async |(index, name)| {
        let member = ObjectRef::new(Kind::Vm, name);
        let prefix = colour(&format!("{:<width$} |", member.name.as_str()), index);
        (of_member(cluster, &member, &prefix, words).await, member)
    });
    let mut code = Code::Done;
    let mut told: FuturesUnordered<_> = told.collect();
    while let Some((told, member)) = told.next().await {
        if let Err(error) = told {
            // The others are told all the same.
            let error = error.context(format!("read the console of `{member}`"));
            if failure::is_hang_up(&error) {
                return Err(error);
            }
            say_error(&failure::describe(&error));
            code = failure::code_of(&error);
        }
    }
    Ok(code)
}

async fn of_member(cluster: &Cluster, member: &ObjectRef, prefix: &str, words: &Logs) -> Result<()> {
    let mut stream = cluster.bytes(member, "logs", &query(words)).await?;
    let mut rest = Vec::new();
    while let Some(bytes) = stream.next().await.context("read on")? {
        rest.extend_from_slice(&bytes);
        while let Some(length) = line_length(&rest) {
            let line: Vec<u8> = rest.drain(..length).collect();
            write_line(prefix, &line)?;
        }
    }
    if rest.is_empty() { Ok(()) } else { write_line(prefix, &rest) }
}

/// How many bytes the first line has, its end included; nothing while that has not come.
fn line_length(bytes: &[u8]) -> Option<usize> {
    let end = bytes.iter().position(|byte| *byte == b'\n').map(|place| place + 1);
    end.or((bytes.len() >= LINE_BYTES_MAX).then_some(LINE_BYTES_MAX))
}

fn write_line(prefix: &str, line: &[u8]) -> Result<()> {
    let mut shown = Shown::default();
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    shown.stdout.write_all(format!("{prefix} ").as_bytes()).context("write the log")?;
    shown.write(line)?;
    shown.stdout.write_all(b"\n").context("write the log")
}

/// How many of its last lines are told of a member that made an update fail.
const LAST_WORDS_LINES: u64 = 20;
/// How many bytes of them.
const LAST_WORDS_BYTES_MAX: usize = 4 << 10;
/// How long they may take to come.
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(3);

/// The last lines of a VM's console, of its last life when it is gone; none when they cannot be had.
pub(crate) async fn last_words(cluster: &Cluster, vm: &ObjectRef, is_gone: bool) -> Vec<String> {
    let query = [("previous", is_gone.to_string()), ("lines", LAST_WORDS_LINES.to_string())];
    let read = async {
        let mut stream = cluster.bytes(vm, "logs", &query).await.ok()?;
        let mut said = Vec::new();
        while let Ok(Some(bytes)) = stream.next().await
            && said.len() < LAST_WORDS_BYTES_MAX
        {
            said.extend_from_slice(&bytes);
        }
        said.truncate(LAST_WORDS_BYTES_MAX);
        Some(Harmless::default().show(&said))
    };
    let said = timeout(LAST_WORDS_WITHIN, read).await.ok().flatten().unwrap_or_default();
    said.lines().map(|line| line.trim_end().to_owned()).filter(|line| !line.is_empty()).collect()
}

/// What systemd has of a service in the guest.
async fn of_unit(cluster: &Cluster, object: &ObjectRef, unit: &str, words: &Logs) -> Result<Code> {
    let lines = words.lines.map_or_else(|| "all".to_owned(), |lines| lines.to_string());
    let unit_option = format!("--unit={unit}");
    let lines_option = format!("--lines={lines}");
    let mut command = vec![JOURNAL, "--no-pager", "--quiet", &unit_option, &lines_option];
    command.extend(words.follow.then_some("--follow"));
    let (output, mut said) = mpsc::channel::<Vec<u8>>(CHUNKS_MAX);
    let writing = async move {
        let mut shown = Shown::default();
        while let Some(bytes) = said.recv().await {
            shown.write(&bytes)?;
        }
        Ok::<_, anyhow::Error>(())
    };
    let running = async {
        let ended = remote::run(cluster, object, &command, None, output).await;
        ended.map_err(|error| match error.downcast_ref::<ClientError>().and_then(ClientError::status) {
            Some(422) => Failure::new(Code::Error, format!("`{object}` has no journal"))
                .hint(format!("`lightbyte logs {object}` shows its console"))
                .into(),
            _ => error,
        })
    };
    let (ended, written) = tokio::try_join!(running, writing)?;
    let () = written;
    Ok(ended.check(|| format!("read the journal of `{object}`")).map(|()| Code::Done)?)
}

/// Standard output: for a person without what a terminal would obey, as it is for everybody else.
struct Shown {
    stdout: io::Stdout,
    harmless: Option<Harmless>,
}

impl Default for Shown {
    fn default() -> Shown {
        let stdout = io::stdout();
        let harmless = stdout.is_terminal().then(Harmless::default);
        Shown { stdout, harmless }
    }
}

impl Shown {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let written = match &mut self.harmless {
            Some(harmless) => self.stdout.write_all(harmless.show(bytes).as_bytes()),
            None => self.stdout.write_all(bytes),
        };
        written.and_then(|()| self.stdout.flush()).context("write the log")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_ends_where_it_ends_or_is_too_long() {
        let check = |bytes: &[u8], expect: Option<usize>| assert_eq!(line_length(bytes), expect);
        check(b"", None);
        check(b"begun", None);
        check(b"one\ntwo", Some(4));
        check(b"\n", Some(1));
        check(&[b'x'; LINE_BYTES_MAX + 5], Some(LINE_BYTES_MAX));
    }
}
