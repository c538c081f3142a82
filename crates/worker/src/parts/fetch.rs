//! One part, from whoever has it: from where the last source broke off, until its checksum is right.
//!
//! A source that breaks off is left for the next. Bytes are not believed: when all have come and the checksum is wrong,
//! everything is thrown away. If one source has sent them all it is left alone for a while; if there were several, each must
//! send all of it alone from then on, so that it shows who it is.

use std::collections::BTreeSet;
use std::time::Duration;

use lightbyte_api::kinds::image::Part;
use lightbyte_api::parts::PartSource;
use lightbyte_api::wire::List;
use lightbyte_link::{ByteStream, Client, Endpoint};
use lightbyte_vmm::DriverError;
use lightbyte_vmm::parts::{Fault, Incoming, PartError};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::progress::Progress;
use super::{LIAR_PAUSE, News, Store, lock, short};
use crate::life::describe;

/// The pause before all sources are asked again; it doubles with each round in which nothing came.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
/// The longest such pause.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// How long a server may take to say who has a part: without it, the servers themselves are asked.
const SOURCES_WITHIN: Duration = Duration::from_secs(3);
/// How long a source may send nothing.
const STALL_MAX: Duration = Duration::from_secs(10);
/// How much is written at once.
const WRITE_BYTES: usize = 1 << 20;

/// Who may have a part.
struct Source {
    name: String,
    endpoint: Endpoint,
}

/// Why nothing comes from one source any more.
enum Cut {
    /// It does not have the part.
    NotThere,
    /// It broke off, or cannot be reached.
    Broken(String),
    /// All has come, and is wrong.
    Wrong,
    /// It is this host: no other source helps.
    Here(String),
}

/// Who has sent what has come so far.
#[derive(Default)]
struct Senders {
    names: BTreeSet<String>,
    /// Something is of an earlier run.
    earlier: bool,
    /// Each source must send everything.
    alone: bool,
}

/// Fetches the part, however long it takes.
pub(super) async fn fetch(store: &Store, part: &Part, news: &mpsc::Sender<News>) {
    lock(&store.progress).insert(part.clone(), Progress::new(Instant::now()));
    let mut senders = Senders { earlier: store.parts.received(&part.sha256) > 0, ..Senders::default() };
    let (mut pause, mut told) = (PAUSE_FIRST, None);
    loop {
        let before = store.parts.received(&part.sha256);
        let outcome = {
            // One that is hindered takes nobody's turn while it waits. The semaphore is never closed.
            let _turn = store.turns.acquire().await;
            round(store, part, &mut senders).await
        };
        let problem = match outcome {
            Ok(()) => {
                tracing::info!("image part {} is here", short(part));
                // The agent's end is the only reason for a closed queue.
                let _ = news.send(News::Came(part.clone())).await;
                return;
            }
            Err(problem) => problem,
        };
        let done = store.parts.received(&part.sha256);
        if let Some(progress) = lock(&store.progress).get_mut(part) {
            progress.is_hindered(&problem, done);
        }
        if done > before {
            pause = PAUSE_FIRST;
        } else if told.as_ref() != Some(&problem) {
            tracing::warn!("{problem}");
            let _ = news.send(News::Hindered(part.clone(), problem.clone())).await;
            told = Some(problem);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Asks every source once. What it says when none has sent the part is told to people, and so does not change while
/// nothing else does.
async fn round(store: &Store, part: &Part, senders: &mut Senders) -> Result<(), String> {
    let wanted = part.clone();
    let is_here = store.ask(move |parts| {
        Ok::<_, DriverError>(parts.has(&wanted)? || (parts.take_back(&wanted.sha256)? && parts.has(&wanted)?))
    });
    if is_here.await.map_err(|error| error.chain())? {
        return Ok(());
    }
    let (mut broken, mut avoided) = (Vec::new(), Vec::new());
    for source in sources(store, part).await {
        if is_avoided(store, &source.name) {
            avoided.push(source.name);
            continue;
        }
        match receive(store, part, &source, senders).await {
            Ok(()) => return Ok(()),
            Err(Cut::NotThere) => {}
            Err(Cut::Here(problem)) => return Err(problem),
            Err(Cut::Broken(why)) => {
                tracing::debug!("image part {} from {}: {why}", short(part), source.name);
                broken.push(source.name);
            }
            Err(Cut::Wrong) => {
                blame(store, part, senders);
                if is_avoided(store, &source.name) {
                    avoided.push(source.name);
                }
            }
        }
    }
    Err(nobody(store, part, broken, avoided))
}

/// Why nobody sends the part.
fn nobody(store: &Store, part: &Part, mut broken: Vec<String>, mut avoided: Vec<String>) -> String {
    broken.sort_unstable();
    avoided.sort_unstable();
    let name = short(part);
    let mut text = match (broken.as_slice(), avoided.as_slice()) {
        ([], []) => {
            format!("image part {name} is on no server and no worker; `lightbyte import image` brings it in")
        }
        ([], liars) => format!(
            "image part {name} came with wrong bytes from {}, and nobody else has it; `lightbyte import image` brings it in",
            liars.join(", ")
        ),
        (broken, _) => format!(
            "image part {name} does not come from {}; `lightbyte get workers` shows who is away",
            broken.join(", ")
        ),
    };
    if let Ok(Some(note)) = store.parts.note(&part.sha256)
        && let Fault::Damaged(fault) = note.fault
    {
        text.push_str(&format!(" (this host's own was damaged: it {fault})"));
    }
    text
}

/// Whom to ask: workers that say that they have it, then the servers. Each worker begins elsewhere, so that they do not
/// all ask the same.
async fn sources(store: &Store, part: &Part) -> Vec<Source> {
    let path = format!("/v1/parts/{}/sources", part.sha256);
    let workers = match store.client.within(SOURCES_WITHIN).get::<List<PartSource>>(&path).await {
        Ok(answer) => answer.value.items,
        Err(error) => {
            tracing::debug!("nobody says who has image part {}: {}", short(part), describe(&error));
            Vec::new()
        }
    };
    let others = workers.into_iter().filter(|source| source.worker != store.name);
    let mut workers: Vec<Source> = others
        .filter_map(|source| {
            let endpoint = Endpoint::of_address(&source.address)?;
            Some(Source { name: source.worker.to_string(), endpoint })
        })
        .collect();
    let begin = store
        .worker
        .uid()
        .to_string()
        .bytes()
        .fold(0, |sum: usize, byte| sum * 31 % 9_973 + usize::from(byte));
    if !workers.is_empty() {
        let begin = begin % workers.len();
        workers.rotate_left(begin);
    }
    let servers = store.client.endpoints();
    let server = |index: usize| &servers[(begin + index) % servers.len()];
    let servers = (0..servers.len()).map(server);
    workers.extend(servers.map(|endpoint| Source { name: endpoint.to_string(), endpoint: endpoint.clone() }));
    workers
}

/// Receives what is still missing from one source, and makes it appear if it is right.
async fn receive(store: &Store, part: &Part, source: &Source, senders: &mut Senders) -> Result<(), Cut> {
    let (wanted, alone) = (part.clone(), senders.alone);
    let begun = store.ask(move |parts| {
        let mut incoming = parts.receive(&wanted)?;
        if alone {
            incoming.begin_anew()?;
        }
        Ok::<_, PartError>(incoming)
    });
    let mut incoming = begun.await.map_err(|error| here(&error))?;
    if incoming.received() == 0 {
        *senders = Senders { alone, ..Senders::default() };
    }
    if !incoming.is_complete() {
        let client = Client::new(vec![source.endpoint.clone()]);
        let path = format!("/v1/parts/{}", part.sha256);
        let stream =
            client.bytes_from(&path, incoming.received()).await.map_err(|error| match error.status() {
                Some(404) => Cut::NotThere,
                _ => Cut::Broken(describe(&error)),
            })?;
        if let Some(progress) = lock(&store.progress).get_mut(part) {
            progress.begins(&source.name, incoming.received(), Instant::now());
        }
        senders.names.insert(source.name.clone());
        incoming = take(store, part, stream, incoming).await?;
    }
    store.ask(move |_| incoming.finish()).await.map_err(|error| match error {
        PartError::Wrong { .. } => Cut::Wrong,
        error => here(&error),
    })
}

/// Takes what comes until all is there.
async fn take(
    store: &Store,
    part: &Part,
    mut stream: ByteStream,
    mut incoming: Incoming,
) -> Result<Incoming, Cut> {
    let mut buffer = Vec::with_capacity(WRITE_BYTES * 2);
    loop {
        let next = timeout(STALL_MAX, stream.next()).await;
        let (bytes, end) = match next {
            Ok(Ok(Some(bytes))) => (bytes, None),
            Ok(Ok(None)) => (bytes::Bytes::new(), Some("it ended early".to_owned())),
            Ok(Err(error)) => (bytes::Bytes::new(), Some(describe(&error))),
            Err(_) => (bytes::Bytes::new(), Some(format!("it sent nothing for {} s", STALL_MAX.as_secs()))),
        };
        buffer.extend_from_slice(&bytes);
        let has_all = incoming.received() + buffer.len() as u64 >= part.size.bytes();
        if buffer.len() >= WRITE_BYTES || has_all || end.is_some() {
            let chunk = std::mem::take(&mut buffer);
            let written = store.ask(move |_| {
                incoming.take(&chunk)?;
                Ok::<_, PartError>(incoming)
            });
            incoming = written.await.map_err(|error| here(&error))?;
            if let Some(progress) = lock(&store.progress).get_mut(part) {
                progress.grows(incoming.received(), Instant::now());
            }
        }
        match end {
            _ if incoming.is_complete() => return Ok(incoming),
            Some(why) => return Err(Cut::Broken(why)),
            None => {}
        }
    }
}

/// What is wrong on this host.
fn here(error: &PartError) -> Cut {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    Cut::Here(match error {
        PartError::NoRoom { .. } => format!("{text}; make room there, and it goes on by itself"),
        _ => text,
    })
}

/// Finds out who has sent wrong bytes.
fn blame(store: &Store, part: &Part, senders: &mut Senders) {
    let mut names = senders.names.iter();
    match (names.next(), names.next(), senders.earlier) {
        (Some(liar), None, false) => {
            tracing::warn!(
                "{liar} sent wrong bytes for image part {}; it is not asked for {} s",
                short(part),
                LIAR_PAUSE.as_secs()
            );
            lock(&store.avoided).insert(liar.clone(), Instant::now() + LIAR_PAUSE);
        }
        _ => {
            tracing::warn!(
                "what came of image part {} is wrong; each source sends it alone now",
                short(part)
            );
        }
    }
    *senders = Senders { alone: true, ..Senders::default() };
}

fn is_avoided(store: &Store, source: &str) -> bool {
    let mut avoided = lock(&store.avoided);
    let now = Instant::now();
    avoided.retain(|_, until| now < *until);
    avoided.contains_key(source)
}
