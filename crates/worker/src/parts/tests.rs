//! Fetches against real listeners: sources that break off, lie, and have nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body;
use axum::extract::Path as Parameters;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse as _;
use axum::routing::get;
use futures::stream;
use lightbyte_api::{ByteSize, Uid};
use lightbyte_link::{Endpoint, Listener};
use serde_json::json;

use super::*;

/// What a source does.
#[derive(Clone, Copy, Debug)]
enum Habit {
    Good,
    /// It sends so many bytes and breaks off.
    Cut(usize),
    /// It sends something else at the end.
    Lies,
    /// It has nothing.
    Empty,
}

struct Bed {
    place: PathBuf,
    content: Vec<u8>,
    part: Part,
    asked: Arc<AtomicUsize>,
}

impl Bed {
    fn new(name: &str) -> Bed {
        let place = std::env::temp_dir().join(format!("lb-fetch-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&place);
        fs::create_dir_all(&place).unwrap();
        let content: Vec<u8> = (0..3_000_000_u32).map(|index| (index % 251) as u8).collect();
        // The checksum of that, by the program that people would use.
        fs::write(place.join("content"), &content).unwrap();
        let said = std::process::Command::new("sha256sum").arg(place.join("content")).output().unwrap();
        let sha256 = String::from_utf8(said.stdout).unwrap()[..64].to_owned();
        let part = Part { sha256, size: ByteSize::from_bytes(content.len() as u64) };
        Bed { place, content, part, asked: Arc::default() }
    }

    /// A worker with this habit; the path of its socket.
    async fn source(&self, name: &str, habit: Habit) -> String {
        let (content, asked) = (self.content.clone(), Arc::clone(&self.asked));
        let answer = move |headers: HeaderMap| {
            asked.fetch_add(1, Ordering::Relaxed);
            let begin: usize = headers
                .get("range")
                .and_then(|range| {
                    range.to_str().ok()?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
                })
                .unwrap_or(0);
            let mut rest = content[begin..].to_vec();
            let range = format!("bytes {begin}-{}/{}", content.len() - 1, content.len());
            let end = match habit {
                Habit::Empty => return StatusCode::NOT_FOUND.into_response(),
                Habit::Cut(bytes) => {
                    rest.truncate(bytes);
                    Some(Err(std::io::Error::other("cut")))
                }
                Habit::Lies => {
                    *rest.last_mut().unwrap() ^= 1;
                    None
                }
                Habit::Good => None,
            };
            let pieces = [Ok(bytes::Bytes::from(rest))].into_iter().chain(end);
            let body = Body::from_stream(stream::iter(pieces));
            (StatusCode::PARTIAL_CONTENT, [("content-range", range)], body).into_response()
        };
        let router = Router::new().route(
            "/v1/parts/{sha256}",
            get(move |_: Parameters<String>, headers: HeaderMap| async move { answer(headers) }),
        );
        self.serve(name, router).await
    }

    /// The cluster's server, which has no parts itself and knows who says to have them.
    async fn server(&self, sources: &[(&str, &str)]) -> Client {
        let items: Vec<_> =
            sources.iter().map(|(worker, address)| json!({"worker": worker, "address": address})).collect();
        let said = json!({ "items": items }).to_string();
        let router = Router::new().route("/v1/parts/{sha256}/sources", get(move || async move { said }));
        let socket = self.serve("server", router).await;
        Client::new(vec![Endpoint::Unix(socket.into())])
    }

    async fn serve(&self, name: &str, router: Router) -> String {
        let socket = self.place.join(name);
        let listener = Listener::bind(&Endpoint::Unix(socket.clone())).await.unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        socket.display().to_string()
    }

    fn parts(&self) -> Parts {
        Parts::new(&self.place.join("parts")).unwrap().with_reserve(ByteSize::from_bytes(0))
    }

    fn fetches(&self, client: Client, parts: Parts) -> Fetches {
        let name = Name::new("n9").unwrap();
        Fetches::new(Store::new(Arc::new(parts), client, WorkerId::new(Uid::from_bits(9)), name))
    }

    fn wanted(&self) -> BTreeSet<Part> {
        [self.part.clone()].into()
    }

    fn is_here(&self) -> bool {
        let path = self.parts().checked(&self.part);
        path.is_ok_and(|path| fs::read(path).unwrap() == self.content)
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.place);
    }
}

async fn outcome(fetches: &mut Fetches) -> Result<(), String> {
    match timeout(Duration::from_secs(30), fetches.next()).await.expect("some news").expect("fetches") {
        News::Came(_) => Ok(()),
        News::Hindered(_, problem) => Err(problem),
    }
}

/// Fetches from sources of these habits, and says what came of it and how often any source was asked.
async fn fetched(name: &str, habits: &[Habit]) -> (Bed, Result<(), String>, usize) {
    let bed = Bed::new(name);
    let mut sources = Vec::new();
    for (index, habit) in habits.iter().enumerate() {
        let worker = format!("n{}", index + 1);
        sources.push((worker.clone(), bed.source(&worker, *habit).await));
    }
    let named: Vec<(&str, &str)> =
        sources.iter().map(|(name, path)| (name.as_str(), path.as_str())).collect();
    let client = bed.server(&named).await;
    let mut fetches = bed.fetches(client, bed.parts());
    fetches.want(&bed.wanted());
    let outcome = outcome(&mut fetches).await;
    let asked = bed.asked.load(Ordering::Relaxed);
    (bed, outcome, asked)
}

#[tokio::test]
async fn a_part_comes_from_a_worker_that_has_it() {
    let (bed, outcome, asked) = fetched("good", &[Habit::Good]).await;
    assert_eq!((outcome, asked), (Ok(()), 1));
    assert!(bed.is_here());
}

#[tokio::test]
async fn the_next_source_goes_on_where_one_broke_off() {
    let habits = [Habit::Cut(1_000_000), Habit::Cut(500_000), Habit::Empty, Habit::Good];
    let (bed, outcome, asked) = fetched("cut", &habits).await;
    assert_eq!(outcome, Ok(()));
    // Wherever it begins, the good one ends it in the first round.
    assert!(asked <= 4, "{asked}");
    assert!(bed.is_here());
}

#[tokio::test]
async fn a_liar_is_left_for_another() {
    for turn in 0..2 {
        let mut habits = [Habit::Lies, Habit::Good];
        habits.rotate_left(turn);
        let (bed, outcome, _) = fetched(&format!("liar-{turn}"), &habits).await;
        assert_eq!(outcome, Ok(()));
        assert!(bed.is_here());
    }
}

#[tokio::test]
async fn when_several_have_sent_something_wrong_each_must_send_it_alone() {
    for turn in 0..3 {
        let mut habits = [Habit::Cut(2_000_000), Habit::Lies, Habit::Good];
        habits.rotate_left(turn);
        let (bed, outcome, _) = fetched(&format!("alone-{turn}"), &habits).await;
        assert_eq!(outcome, Ok(()), "{habits:?}");
        assert!(bed.is_here());
    }
}

#[tokio::test]
async fn what_nobody_has_is_said_with_what_to_do() {
    let (bed, outcome, _) = fetched("nobody", &[Habit::Empty]).await;
    let name = &bed.part.sha256[..12];
    let expect =
        format!("image part {name} is on no server and no worker; `lightbyte import image` brings it in");
    assert_eq!(outcome, Err(expect));
    let (bed, outcome, _) = fetched("lies", &[Habit::Lies]).await;
    assert!(outcome.unwrap_err().contains("came with wrong bytes from n1, and nobody else has it"));
    assert_eq!(bed.parts().received(&bed.part.sha256), 0);
}

#[tokio::test]
async fn a_full_disk_is_said_and_the_fetch_goes_on_when_there_is_room() {
    let bed = Bed::new("full");
    let good = bed.source("n1", Habit::Good).await;
    let client = bed.server(&[("n1", &good)]).await;
    let full = bed.parts().with_reserve(ByteSize::from_bytes(1 << 60));
    let mut fetches = bed.fetches(client.clone(), full);
    fetches.want(&bed.wanted());
    let problem = outcome(&mut fetches).await.unwrap_err();
    assert!(
        problem.starts_with("no room for image part ") && problem.ends_with("it goes on by itself"),
        "{problem}"
    );
    assert!(fs::read_dir(bed.place.join("parts/incoming")).unwrap().next().is_none());
    drop(fetches);
    let mut fetches = bed.fetches(client, bed.parts());
    fetches.want(&bed.wanted());
    assert_eq!(outcome(&mut fetches).await, Ok(()));
    assert!(bed.is_here());
}

#[tokio::test]
async fn a_fetch_that_nobody_wants_is_called_off_and_gone_on_with_later() {
    let bed = Bed::new("off");
    let cut = bed.source("n1", Habit::Cut(1_500_000)).await;
    let client = bed.server(&[("n1", &cut)]).await;
    let mut fetches = bed.fetches(client, bed.parts());
    fetches.want(&bed.wanted());
    let come = async {
        while bed.parts().received(&bed.part.sha256) < 1_500_000 {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(30), come).await.expect("some of it comes");
    fetches.want(&BTreeSet::new());
    assert!(fetches.running.is_empty() && lock(&fetches.store.progress).is_empty());
    let good = bed.source("n2", Habit::Good).await;
    let _ = fs::remove_file(Path::new(&bed.place).join("server"));
    let mut fetches = bed.fetches(bed.server(&[("n2", &good)]).await, bed.parts());
    fetches.want(&bed.wanted());
    assert_eq!(outcome(&mut fetches).await, Ok(()));
    assert!(bed.is_here());
}
