//! `lightbyte logs`: what a guest wrote to its console, or one of its services to the journal.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use anyhow::{Context as _, Result};
use lightbyte_api::Kind;
use lightbyte_api::object::ObjectRef;
use lightbyte_link::ClientError;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::arguments::Logs;
use crate::cluster::Cluster;
use crate::failure::{Code, Failure};
use crate::harmless::Harmless;
use crate::remote::{self, CHUNKS_MAX};
use crate::target;
use crate::verbs::member_logs;

/// What knows what services wrote.
const JOURNAL: &str = "journalctl";

pub(crate) async fn run(cluster: &Cluster, words: &Logs) -> Result<Code> {
    let object = target::read_vm(&words.target)?;
    if object.kind == Kind::ScaleGroup {
        return member_logs::run(cluster, &object, words).await;
    }
    if let Some(unit) = &words.unit {
        return of_unit(cluster, &object, unit, words).await;
    }
    let stream = cluster.bytes(&object, "logs", &query(words, words.lines)).await;
    let mut stream = stream.with_context(|| format!("read the console of `{object}`"))?;
    let mut shown = Shown::default();
    while let Some(bytes) = stream.next().await.context("read on")? {
        shown.write(&bytes)?;
    }
    Ok(Code::Done)
}

/// What a server is asked for: the last `lines`, or all that are kept.
pub(crate) fn query(words: &Logs, lines: Option<usize>) -> Vec<(&'static str, String)> {
    let mut query = vec![("follow", words.follow.to_string())];
    if words.previous {
        query.push(("previous", true.to_string()));
    }
    query.extend(lines.map(|lines| ("lines", lines.to_string())));
    query
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
pub(crate) struct Shown {
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
    /// Writes what is ours.
    pub(crate) fn write_ours(&mut self, text: &str) -> Result<()> {
        self.stdout.write_all(text.as_bytes()).and_then(|()| self.stdout.flush()).context("write the log")
    }

    /// Writes what a guest said.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let written = match &mut self.harmless {
            Some(harmless) => self.stdout.write_all(harmless.show(bytes).as_bytes()),
            None => self.stdout.write_all(bytes),
        };
        written.and_then(|()| self.stdout.flush()).context("write the log")
    }
}
