//! The generator by the clock: this program under another word. `h2load` sends the requests of all its connections in
//! the same moment when it is given a rate, and keeps to none when connections end.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::load::Workload;

/// Requests at once, and so connections that are kept. Clients that open one more whenever all are busy would make each hiccup of
/// the machine an avalanche, since a new connection costs several requests.
const AT_ONCE: usize = 64;

/// Longest head of an answer.
const HEAD_BYTES_MAX: usize = 4096;

/// Asks `requests` times, by the clock if there is a rate, whatever became of those before. Gives a line of all seconds,
/// and one of microseconds for each request from the moment on at which it was to be sent.
///
/// # Errors
/// When an answer is not 200 and whole.
pub(crate) async fn ask(
    to: SocketAddr,
    workload: Workload,
    requests: u64,
    per_second: f64,
) -> Result<String> {
    let is_clocked = per_second > 0.0;
    let clients = Arc::new(Clients::new(to, workload).await?);
    let is_bounded = !is_clocked || workload != Workload::New;
    let at_once = Arc::new(Semaphore::new(if is_bounded { AT_ONCE } else { Semaphore::MAX_PERMITS }));
    let begun = Instant::now();
    let mut asked = JoinSet::new();
    for number in 0..requests {
        if is_clocked {
            sleep_until(begun + Duration::from_secs_f64(number as f64 / per_second)).await;
        }
        let (at_once, clients) = (at_once.clone(), clients.clone());
        asked.spawn(async move {
            // A wait for its turn is a part of what it takes.
            let due = Instant::now();
            let _permit = at_once.acquire_owned().await.context("wait for a turn")?;
            let asked = if is_clocked { due } else { Instant::now() };
            clients.one(number).await?;
            Ok::<_, anyhow::Error>(asked.elapsed().as_micros())
        });
    }
    let latencies = asked.join_all().await;
    let mut text = format!("{}\n", begun.elapsed().as_secs_f64());
    for latency in latencies {
        writeln!(text, "{}", latency?).context("write a line")?;
    }
    Ok(text)
}

/// What is kept between requests.
struct Clients {
    to: SocketAddr,
    workload: Workload,
    /// Of HTTP/1.1, those that wait.
    idle: Mutex<Vec<TcpStream>>,
    /// Of HTTP/2.
    senders: Vec<SendRequest<Empty<Bytes>>>,
}

impl Clients {
    async fn new(to: SocketAddr, workload: Workload) -> Result<Clients> {
        let mut senders = Vec::new();
        for _ in 0..if workload.is_h2() { workload.clients().0 } else { 0 } {
            let stream = TcpStream::connect(to).await.context("connect")?;
            stream.set_nodelay(true).context("set up a connection")?;
            let (sender, connection) =
                handshake(TokioExecutor::new(), TokioIo::new(stream)).await.context("greet")?;
            // Its end is seen by whoever sends.
            tokio::spawn(async move { connection.await.ok() });
            senders.push(sender);
        }
        Ok(Clients { to, workload, idle: Mutex::default(), senders })
    }

    async fn one(&self, number: u64) -> Result<()> {
        if let Some(sender) = self.senders.get(number as usize % self.senders.len().max(1)) {
            return self.by_http2(sender.clone()).await;
        }
        let waiting = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut stream = match waiting {
            Some(stream) => stream,
            None => TcpStream::connect(self.to).await.context("connect")?,
        };
        let is_kept = self.workload != Workload::New;
        let close = if is_kept { "" } else { "Connection: close\r\n" };
        let request = format!("GET {} HTTP/1.1\r\nHost: requests\r\n{close}\r\n", self.workload.path());
        stream.write_all(request.as_bytes()).await.context("ask")?;
        read_answer(&mut stream, self.workload.answer_bytes()).await?;
        if is_kept {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(stream);
        }
        Ok(())
    }

    async fn by_http2(&self, mut sender: SendRequest<Empty<Bytes>>) -> Result<()> {
        let uri = format!("http://{}{}", self.to, self.workload.path());
        let request = Request::get(uri).body(Empty::new()).context("make a request")?;
        let answer = sender.send_request(request).await.context("ask")?;
        ensure!(answer.status() == 200, "an answer of {}", answer.status());
        let body = answer.into_body().collect().await.context("read the answer")?.to_bytes();
        ensure!(body.len() == self.workload.answer_bytes(), "a body of {} bytes", body.len());
        Ok(())
    }
}

async fn read_answer(stream: &mut TcpStream, body_bytes: usize) -> Result<()> {
    let mut answer = Vec::with_capacity(HEAD_BYTES_MAX + body_bytes);
    loop {
        let head = answer.windows(4).take(HEAD_BYTES_MAX).position(|bytes| bytes == b"\r\n\r\n");
        if let Some(head) = head
            && answer.len() >= head + 4 + body_bytes
        {
            ensure!(answer.starts_with(b"HTTP/1.1 200 "), "an answer that is not 200");
            return Ok(());
        }
        if stream.read_buf(&mut answer).await.context("read the answer")? == 0 {
            bail!("an answer that breaks off");
        }
    }
}
