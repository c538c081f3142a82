//! One case through one proxy, and what the two tests make of it.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::peers::{self, Peer};
use super::recorder::Recorder;
use super::{cases, cases_h2};
use crate::rig::{Answer, DEADLINE, Rig, free_port, simple};

/// After so long without an end the client has no more to say, and says so by closing its half.
const PATIENCE: Duration = Duration::from_millis(500);

/// Cases at once through one proxy.
const AT_ONCE: usize = 16;

/// Where a proxy listens. Ours tells the two apart by itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ports {
    pub(super) h1: u16,
    pub(super) h2: u16,
}

/// What of ours is expected.
#[derive(Clone, Copy, Debug)]
pub(super) enum Expected {
    /// One of these statuses (0: closed without a word), and nothing reaches the backend.
    Refused(&'static [u16]),
    /// 200 of the backend.
    Taken,
    /// Refused or taken: no harm is in either. What both peers refuse is refused all the same.
    Either,
}

/// Bytes, and what is expected. `@case@` and `@smuggled@` stand for paths of this case only: the first is asked for, the
/// second stands where only somebody who reads the bytes otherwise sees a request.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) what: &'static str,
    pub(super) bytes: Vec<u8>,
    pub(super) expected: Expected,
    pub(super) is_h2: bool,
}

/// What became of a case.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fate {
    /// Of the first answer; 0 if there was none.
    status: u16,
    is_forwarded: bool,
    is_smuggled: bool,
}

impl Fate {
    fn is_taken(self) -> bool {
        self.is_forwarded || (200..300).contains(&self.status)
    }
}

/// Words of a case of its own in the place of the marks. Of equal length, since lengths are what it is about.
fn marked(bytes: &[u8], number: usize) -> Vec<u8> {
    let (case, smuggled) = (format!("/c-{number:03}"), format!("/smu-{number:04}x"));
    let mut marked = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(first) = rest.first() {
        if let Some(after) = rest.strip_prefix(b"@case@") {
            marked.extend_from_slice(case.as_bytes());
            rest = after;
        } else if let Some(after) = rest.strip_prefix(b"@smuggled@") {
            marked.extend_from_slice(smuggled.as_bytes());
            rest = after;
        } else {
            marked.push(*first);
            rest = &rest[1..];
        }
    }
    marked
}

/// All that comes back until the other side closes. If it waits for more, it is told that no more will come.
async fn exchange(port: u16, bytes: &[u8]) -> Vec<u8> {
    let mut answer = Vec::new();
    let Ok(stream) = TcpStream::connect(("127.0.0.1", port)).await else { return answer };
    let (mut read, mut write) = stream.into_split();
    let sending = async {
        // Whoever refuses closes before all is sent.
        let _ = write.write_all(bytes).await;
    };
    let receiving = async {
        let _ = read.read_to_end(&mut answer).await;
    };
    let both = async { tokio::join!(sending, receiving) };
    if tokio::time::timeout(PATIENCE, both).await.is_err() {
        let _ = write.shutdown().await;
        let _ = tokio::time::timeout(PATIENCE, read.read_to_end(&mut answer)).await;
    }
    answer
}

async fn fate(case: &Case, number: usize, port: u16, recorder: &Recorder) -> Fate {
    let answer = exchange(port, &marked(&case.bytes, number)).await;
    let status = if case.is_h2 { cases_h2::status_of(&answer) } else { Answer::parse(&answer).status };
    Fate {
        status,
        is_forwarded: recorder.was_asked(&format!("/c-{number:03}")),
        is_smuggled: recorder.was_asked(&format!("/smu-{number:04}x")),
    }
}

/// Our proxy before a recorder.
struct Ours {
    _rig: Rig,
    port: u16,
    recorder: Arc<Recorder>,
}

impl Ours {
    const fn ports(&self) -> Ports {
        Ports { h1: self.port, h2: self.port }
    }

    async fn start() -> Ours {
        let (rig, port, recorder) = (Rig::start().await, free_port(), Arc::new(Recorder::start().await));
        let mut topology = simple(1, port, &[]);
        let (address, backend_port) = (recorder.address.ip(), recorder.address.port());
        topology["pools"][0]["backends"] = json!([{"uid": "all", "address": address, "port": backend_port}]);
        // What is not complete is over before a test is.
        topology["limits"] = json!({"header_timeout_ms": 5_000, "header_bytes_max": 65_536});
        rig.apply(&topology).await;
        Ours { _rig: rig, port, recorder }
    }
}

fn all() -> Vec<Case> {
    cases::all().into_iter().chain(cases_h2::all()).collect()
}

/// All cases through a proxy, some at a time: most of the time they wait for each other's patience.
async fn fates(ports: Ports, recorder: Arc<Recorder>) -> Vec<Fate> {
    let all = all();
    let mut fates = Vec::new();
    for (turn, cases) in all.chunks(AT_ONCE).enumerate() {
        let mut tasks = JoinSet::new();
        for (index, case) in cases.iter().enumerate() {
            let (case, recorder, number) = (case.clone(), recorder.clone(), turn * AT_ONCE + index);
            let port = if case.is_h2 { ports.h2 } else { ports.h1 };
            tasks.spawn(async move {
                let fate = tokio::time::timeout(DEADLINE, fate(&case, number, port, &recorder)).await;
                (number, fate.unwrap_or_else(|_| panic!("{} takes for ever", case.what)))
            });
        }
        let mut done = tasks.join_all().await;
        done.sort_by_key(|(number, _)| *number);
        fates.extend(done.into_iter().map(|(_, fate)| fate));
    }
    fates
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_bytes_meet_the_fate_that_is_expected() {
    let ours = Ours::start().await;
    let fates = fates(ours.ports(), ours.recorder.clone()).await;
    let wrong = |(case, fate): (&Case, &Fate)| {
        let is_fine = match case.expected {
            Expected::Refused(statuses) => !fate.is_taken() && statuses.contains(&fate.status),
            Expected::Taken => fate.status == 200 && fate.is_forwarded,
            Expected::Either => true,
        };
        let is_fine = is_fine && !fate.is_smuggled;
        (!is_fine).then(|| format!("{}: {fate:?}, expected {:?}", case.what, case.expected))
    };
    let wrong: Vec<String> = all().iter().zip(&fates).filter_map(wrong).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn ours_takes_nothing_that_both_peers_refuse() {
    if let Some(why) = peers::lacking() {
        peers::skip("ours_takes_nothing_that_both_peers_refuse", &why);
        return;
    }
    let ours = Ours::start().await;
    let (haproxy, nginx) = (Peer::haproxy().await, Peer::nginx().await);
    let (own, ones, others) = tokio::join!(
        fates(ours.ports(), ours.recorder.clone()),
        fates(haproxy.ports, haproxy.recorder.clone()),
        fates(nginx.ports, nginx.recorder.clone()),
    );
    let (mut wrong, mut differing) = (Vec::new(), Vec::new());
    for (((case, own), one), other) in all().iter().zip(&own).zip(&ones).zip(&others) {
        let line = format!("{}: ours {own:?}, haproxy {one:?}, nginx {other:?}", case.what);
        if own.is_taken() && !one.is_taken() && !other.is_taken() {
            wrong.push(line);
        } else if own.is_taken() != one.is_taken() || own.is_taken() != other.is_taken() {
            differing.push(line);
        }
    }
    eprintln!("of {} cases these differ:\n{}", own.len(), differing.join("\n"));
    assert!(wrong.is_empty(), "taken by ours alone:\n{}", wrong.join("\n"));
}
