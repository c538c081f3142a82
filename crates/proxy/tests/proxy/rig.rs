//! A proxy, backends and clients of a test.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use lightbyte_proxy::{Options, Proxy};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};

/// How long a test waits for what must come.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// A port that nobody listens on, below those that the kernel gives away.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let base = 20_000 + u16::try_from(std::process::id() % 100).expect("small") * 100;
    loop {
        let port = base + NEXT.fetch_add(1, Ordering::Relaxed) % 12_000;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Waits until the condition holds.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("it never came: {what}"));
}

/// A proxy with a directory and a control socket of its own.
pub(crate) struct Rig {
    pub(crate) directory: PathBuf,
    _proxy: Option<Proxy>,
}

impl Rig {
    pub(crate) async fn start() -> Rig {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("lightbyte-proxy-{}-{number}", std::process::id()));
        Rig::start_in(directory).await
    }

    pub(crate) async fn start_in(directory: PathBuf) -> Rig {
        Rig::start_after_boot(directory, Duration::ZERO).await
    }

    /// As the first start after a boot: a fresh topology is waited for.
    pub(crate) async fn start_after_boot(directory: PathBuf, wait_for_fresh: Duration) -> Rig {
        let control = directory.join("control.sock");
        let state = directory.join("state");
        std::fs::create_dir_all(&directory).expect("a directory");
        let options = Options { control, state, access_log: false, wait_for_fresh };
        let proxy = Proxy::start(options).await.expect("starts");
        Rig { directory, _proxy: Some(proxy) }
    }

    /// Ends the proxy as SIGTERM would, and keeps its directory.
    pub(crate) async fn leave(mut self) -> PathBuf {
        if let Some(proxy) = self._proxy.take() {
            proxy.leave().await;
        }
        self.directory.clone()
    }

    pub(crate) async fn control(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let mut stream = UnixStream::connect(self.directory.join("control.sock")).await.expect("connects");
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        // The proxy may refuse and close before all is sent.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let answer = Answer::parse(&answer);
        (answer.status, answer.body)
    }

    /// Applies a topology, which must be good.
    pub(crate) async fn apply(&self, topology: &Value) {
        let (status, body) = self.control("PUT", "/topology", &sealed(topology)).await;
        assert_eq!(status, 200, "{body}");
    }

    pub(crate) async fn status(&self) -> Value {
        serde_json::from_str(&self.control("GET", "/status", "").await.1).expect("is JSON")
    }

    /// Requests in flight to a backend; none if it is not told of.
    pub(crate) async fn in_flight(&self, uid: &str) -> u64 {
        self.status().await["in_flight"][uid].as_u64().unwrap_or_default()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if self._proxy.is_some() {
            let _ = std::fs::remove_dir_all(&self.directory);
        }
    }
}

/// With its checksum.
pub(crate) fn sealed(topology: &Value) -> String {
    let text = topology.to_string();
    let checksum: String = Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    format!(r#"{{"checksum":"{checksum}","topology":{text}}}"#)
}

/// A topology with one port and one route to these backends.
pub(crate) fn simple(revision: u64, port: u16, backends: &[&Backend]) -> Value {
    json!({
        "format": 1, "revision": revision,
        "listeners": [{"name": "web", "address": "127.0.0.1", "port": port, "protocol": "http"}],
        "routes": [{"name": "web", "targets": [{"pool": "web"}]}],
        "pools": [pool("web", backends)],
    })
}

pub(crate) fn pool(name: &str, backends: &[&Backend]) -> Value {
    let backends: Vec<Value> = backends.iter().map(|backend| backend.entry()).collect();
    json!({"name": name, "backends": backends})
}

/// A backend that says who it is.
pub(crate) struct Backend {
    pub(crate) uid: &'static str,
    pub(crate) address: SocketAddr,
    /// Requests that have come.
    pub(crate) requests: Arc<AtomicUsize>,
    /// Permits let requests for `/slow` go on.
    pub(crate) gate: Arc<Semaphore>,
    task: AbortHandle,
}

impl Backend {
    pub(crate) async fn start(uid: &'static str) -> Backend {
        Backend::start_with(uid, false).await
    }

    /// One that speaks HTTP/2 only.
    pub(crate) async fn start_h2(uid: &'static str) -> Backend {
        Backend::start_with(uid, true).await
    }

    async fn start_with(uid: &'static str, is_h2: bool) -> Backend {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("has an address");
        let requests = Arc::new(AtomicUsize::new(0));
        let gate = Arc::new(Semaphore::new(0));
        let (counter, opener) = (requests.clone(), gate.clone());
        let task = tokio::spawn(async move {
            // The connections end with this task.
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (counter, opener) = (counter.clone(), opener.clone());
                let service = service_fn(move |request| {
                    counter.fetch_add(1, Ordering::Relaxed);
                    let opener = opener.clone();
                    async move { Ok::<_, Infallible>(answer(uid, &opener, request).await) }
                });
                connections.spawn(async move {
                    let stream = TokioIo::new(stream);
                    if is_h2 {
                        let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                        let _ = builder.serve_connection(stream, service).await;
                    } else {
                        let builder = hyper::server::conn::http1::Builder::new();
                        let _ = builder.serve_connection(stream, service).with_upgrades().await;
                    }
                });
            }
        });
        Backend { uid, address, requests, gate, task: task.abort_handle() }
    }

    /// As a topology names it.
    pub(crate) fn entry(&self) -> Value {
        json!({"uid": self.uid, "address": self.address.ip(), "port": self.address.port()})
    }

    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    /// Dies: its port is closed, and its connections break off.
    pub(crate) fn kill(&self) {
        self.task.abort();
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(uid: &str, gate: &Semaphore, mut request: Request<Incoming>) -> Response<Full<Bytes>> {
    let target = request.uri().to_string();
    let body = match request.uri().path() {
        "/slow" => {
            gate.acquire().await.expect("is never closed").forget();
            Bytes::from("slow")
        }
        "/echo" => {
            request.body_mut().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default()
        }
        "/bad" if uid == "bad" => {
            return Response::builder().status(503).body(Full::default()).expect("is good");
        }
        "/socket" => return upgrade(request),
        path => Bytes::from(format!("{} {path} {:?}", request.method(), request.headers())),
    };
    Response::builder()
        .header("x-backend", uid)
        .header("x-target", target)
        .body(Full::new(body))
        .expect("is good")
}

/// Sends back what comes, byte for byte: what a WebSocket is to a proxy.
fn upgrade(request: Request<Incoming>) -> Response<Full<Bytes>> {
    tokio::spawn(async move {
        let upgraded = hyper::upgrade::on(request).await.expect("upgrades");
        let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded));
        let _ = tokio::io::copy(&mut read, &mut write).await;
    });
    let response =
        Response::builder().status(101).header("connection", "upgrade").header("upgrade", "websocket");
    response.header("sec-websocket-accept", "x").body(Full::default()).expect("is good")
}

/// An answer, read to the end of its connection.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn parse(bytes: &[u8]) -> Answer {
        let text = String::from_utf8_lossy(bytes);
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_default();
        Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut pairs = self.head.lines().filter_map(|line| line.split_once(": "));
        pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
    }

    pub(crate) fn backend(&self) -> &str {
        self.header("x-backend").unwrap_or("none")
    }
}

/// Sends bytes and reads until the proxy closes. 0 as status: it closed without an answer.
pub(crate) async fn send(port: u16, bytes: &[u8]) -> Answer {
    let exchange = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("connects");
        // The proxy may refuse and close before all is sent.
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        Answer::parse(&answer)
    };
    tokio::time::timeout(DEADLINE, exchange).await.expect("the proxy closes in time")
}

/// `GET`, on a connection of its own. `what` is a host and a path, `extra` more headers with their line ends.
pub(crate) async fn get_with(port: u16, what: &str, extra: &str) -> Answer {
    let (host, path) = what.find('/').map_or((what, "/"), |slash| what.split_at(slash));
    send(port, format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{extra}\r\n").as_bytes())
        .await
}

pub(crate) async fn get(port: u16, what: &str) -> Answer {
    get_with(port, what, "").await
}
