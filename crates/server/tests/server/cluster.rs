//! A cluster in one process: servers over a store in memory, each with a Unix socket of its own, and workers whose
//! hosts are fakes. Nothing sleeps to wait for something: every wait looks at a condition, with a deadline.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lightbyte_api::object::Object;
use lightbyte_api::wire::{Applied, Apply, Changed, ClusterStatus, WatchLine};
use lightbyte_api::{Name, Uid};
use lightbyte_link::{Client, ClientError, Endpoint, Lines, Problem};
use lightbyte_server::Config;
use lightbyte_store::MemoryStore;
use lightbyte_vmm::Parts;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::oneshot;

use crate::etcd::Etcd;

/// How long any condition may take: two leaders' times to live and some more, on a machine that does other things.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);
/// The pause between two looks at a condition that nothing tells of.
const LOOK_PAUSE: Duration = Duration::from_millis(5);

/// Where the view begins in real etcd.
pub(crate) const ROOT: &str = "/test/v1/";

/// A directory that is removed at the end.
pub(crate) struct TempDir(pub(crate) PathBuf);

impl TempDir {
    pub(crate) fn new() -> TempDir {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("lb-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("make a temporary directory");
        TempDir(path)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Ends when a server is to stop.
type Stopped = Pin<Box<dyn Future<Output = ()> + Send>>;

/// One server, on a runtime of its own so that it can be killed whole.
pub(crate) struct TestServer {
    pub(crate) endpoint: Endpoint,
    runtime: Option<tokio::runtime::Runtime>,
    stop: Option<oneshot::Sender<()>>,
    _directory: TempDir,
}

impl TestServer {
    pub(crate) fn start(name: &str, store: &MemoryStore) -> TestServer {
        let store = Arc::new(store.clone());
        Self::serving(name, |config, stopped| lightbyte_server::serve(store, None, config, stopped))
    }

    /// A server that is set up in its own way.
    pub(crate) fn start_with(
        name: &str,
        store: &MemoryStore,
        set_up: impl FnOnce(&mut Config) + Send + 'static,
    ) -> TestServer {
        let store = Arc::new(store.clone());
        Self::serving(name, |mut config, stopped| {
            set_up(&mut config);
            lightbyte_server::serve(store, None, config, stopped)
        })
    }

    /// A server that keeps room for the loss of any one worker.
    pub(crate) fn keeping_room(name: &str, store: &MemoryStore) -> TestServer {
        TestServer::start_with(name, store, |config| config.keeps_room_for_a_loss = true)
    }

    /// A server over real etcd.
    pub(crate) fn over_etcd(name: &str, etcd: &Etcd) -> TestServer {
        let (url, root) = (etcd.url.clone(), ROOT.to_owned());
        Self::serving(name, |config, stopped| {
            lightbyte_server::run(Config { etcd: vec![url], root, ..config }, stopped)
        })
    }

    fn serving<Serving>(
        name: &str,
        serve: impl FnOnce(Config, Stopped) -> Serving + Send + 'static,
    ) -> TestServer
    where
        Serving: Future<Output = anyhow::Result<()>> + Send,
    {
        let directory = TempDir::new();
        let endpoint = Endpoint::Unix(directory.0.join("api.sock"));
        let config = Config {
            name: Name::new(name).expect("a name"),
            listen: vec![endpoint.clone()],
            url: endpoint.to_string(),
            etcd: Vec::new(),
            root: String::new(),
            parts: Some(Arc::new(Parts::new(&directory.0.join("parts")).expect("make the parts"))),
            sealing_keys: None,
            zone: "lab".to_owned(),
            keeps_room_for_a_loss: false,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("make a runtime");
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown: Stopped = Box::pin(async {
            let _ = stopped.await;
        });
        runtime.spawn(async { serve(config, shutdown).await.expect("the server serves") });
        TestServer { endpoint, runtime: Some(runtime), stop: Some(stop), _directory: directory }
    }

    /// Stops everything in it, as SIGSTOP does, until the returned value is dropped.
    pub(crate) async fn pause(&self) -> std::sync::mpsc::Sender<()> {
        let (resume, resumed) = std::sync::mpsc::channel::<()>();
        let (stopped, has_stopped) = oneshot::channel();
        let block = async move {
            let _ = stopped.send(());
            // The runtime has one thread: nothing else runs until this returns.
            let _ = resumed.recv();
        };
        self.runtime.as_ref().expect("it runs").spawn(block);
        has_stopped.await.expect("the runtime runs it");
        resume
    }

    /// One request as a person with a terminal could send it: the status, the headers and the body.
    pub(crate) async fn raw(&self, head: &str, body: &str) -> (u16, String, String) {
        let Endpoint::Unix(path) = &self.endpoint else { panic!("servers of tests have Unix sockets") };
        let mut stream = UnixStream::connect(path).await.expect("connect");
        let length = body.len();
        let text =
            format!("{head}\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}");
        // A server may answer and close before it has read everything.
        let _ = stream.write_all(text.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8(answer).expect("text");
        let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        (status, head.to_lowercase(), body.to_owned())
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(vec![self.endpoint.clone()])
    }

    /// Ends everything at once, as `kill -9` does.
    pub(crate) fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    /// Asks it to stop.
    pub(crate) fn stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A store that was set up, and one server on it that has read it.
pub(crate) async fn begin() -> (MemoryStore, TestServer, Client) {
    begin_as(TestServer::start).await
}

/// A cluster with one server that `start` starts.
pub(crate) async fn begin_as(
    start: impl FnOnce(&str, &MemoryStore) -> TestServer,
) -> (MemoryStore, TestServer, Client) {
    let store = MemoryStore::new();
    lightbyte_server::init(&store, Uid::from_bits(1)).await.expect("set up the cluster");
    let server = start("s1", &store);
    let client = server.client();
    until_some("the server has a view", || async { client.get::<Value>("/v1/status").await.ok() }).await;
    (store, server, client)
}

/// Looks until there is something, or panics.
pub(crate) async fn until_some<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut look: impl FnMut() -> F,
) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

/// A bounded wait for a future.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"))
}

pub(crate) async fn apply(client: &Client, documents: Vec<Value>) -> Result<Applied, ClientError> {
    let apply = Apply { documents, create_only: false, dry_run: false };
    client.post("/v1/apply", &apply).await.map(|answer| answer.value)
}

pub(crate) async fn foresee(client: &Client, documents: Vec<Value>) -> Result<Applied, ClientError> {
    let apply = Apply { documents, create_only: false, dry_run: true };
    client.post("/v1/apply", &apply).await.map(|answer| answer.value)
}

pub(crate) async fn status(client: &Client) -> ClusterStatus {
    client.get("/v1/status").await.expect("the server shows its status").value
}

/// Waits until a server leads, and returns its name.
pub(crate) async fn led_by(client: &Client, wanted: impl Fn(&str) -> bool) -> String {
    let look = || async {
        let leader = client.get::<ClusterStatus>("/v1/status").await.ok()?.value.leader?;
        Some(leader.to_string()).filter(|leader| wanted(leader))
    };
    until_some("somebody leads", look).await
}

pub(crate) async fn delete(client: &Client, object: &str) -> Result<Changed, ClientError> {
    let path = format!("/v1/objects/{object}");
    client.request::<(), Changed>(http::Method::DELETE, &path, None, &[]).await.map(|answer| answer.value)
}

pub(crate) async fn get(client: &Client, object: &str) -> Result<Object, ClientError> {
    client.get(&format!("/v1/objects/{object}")).await.map(|answer| answer.value)
}

/// The problem document of a request that must fail.
pub(crate) fn refused<T: std::fmt::Debug>(answer: Result<T, ClientError>) -> Problem {
    match answer {
        Err(ClientError::Refused(problem)) => problem,
        other => panic!("expected a refusal, found {other:?}"),
    }
}

pub(crate) fn image() -> Value {
    let part = |digit: &str, size: &str| json!({ "sha256": digit.repeat(64), "size": size });
    json!({
        "kind": "image", "name": "demo",
        "spec": { "current": "v1", "versions": [{
            "version": "v1", "architecture": "x86_64", "kernel": part("a", "8MiB"), "root": part("b", "64MiB"),
        }] },
    })
}

pub(crate) fn network() -> Value {
    json!({ "kind": "network", "name": "default", "spec": { "subnet": "10.77.0.0/24", "gateway": "10.77.0.1" } })
}

pub(crate) fn vm(name: &str) -> Value {
    json!({ "kind": "vm", "name": name, "spec": { "image": "demo" } })
}

/// The next line of a watch that is no progress.
pub(crate) async fn next_change(lines: &mut Lines) -> WatchLine {
    loop {
        let line: Option<WatchLine> =
            soon("a line of a watch", lines.next()).await.expect("the watch goes on");
        match line.expect("the watch does not end") {
            WatchLine::Progress { .. } => {}
            line => return line,
        }
    }
}

/// Reads a watch of one object until it looks as wanted.
pub(crate) async fn watch_until(
    client: &Client,
    object: &str,
    wanted: impl Fn(Option<&Object>) -> bool,
) -> Option<Object> {
    let (kind, name) = object.split_once('/').expect("KIND/NAME");
    let mut last = None;
    let path = format!("/v1/watch?kind={kind}&name={name}");
    let reading = async {
        loop {
            let Ok(mut lines) = client.lines(&path).await else {
                tokio::time::sleep(LOOK_PAUSE).await;
                continue;
            };
            while let Ok(Some(line)) = lines.next::<WatchLine>().await {
                match line {
                    WatchLine::Object { object, .. } => last = Some(*object),
                    WatchLine::Gone { .. } => last = None,
                    WatchLine::Progress { .. } => {}
                }
                if wanted(last.as_ref()) {
                    return;
                }
            }
        }
    };
    if tokio::time::timeout(PATIENCE, reading).await.is_err() {
        panic!("{object} does not look as wanted within {PATIENCE:?}: {last:#?}");
    }
    last
}
