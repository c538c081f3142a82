//! The agent in a guest of the fake host: it speaks the protocol of a real one, over a pair of sockets, and knows the
//! few programs that a test or a demonstration needs.

use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use lightbyte_api::explain::{Answer, Explained};
use lightbyte_api::topology::{Sealed, Topology};
use lightbyte_guest::frame::Frame;
use lightbyte_guest::protocol::{
    BODY_BYTES_MAX, Checked, EXEC_PROTOCOL, Exec, Frozen, Grown, Identity, Info, Metrics, Milestones,
    Problem, ProxyStatus, TOPOLOGY_BYTES_MAX, Told,
};
use serde_json::{Value, json};

use crate::http;

/// What an agent says in an image without a proxy.
const NO_PROXY: &str = "this image has no proxy";

/// Connections to one guest, as a real agent takes them.
const CONNECTIONS_MAX: usize = 64;

/// Largest head of a request, as a real agent takes it.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// How long the request may take to come, as a real agent lets it.
const REQUEST_MAX: Duration = Duration::from_secs(30);

/// Stack of a connection's thread: it holds a few small buffers.
const STACK_BYTES: usize = 256 * 1024;

/// What a guest of the fake host is.
#[derive(Clone, Debug)]
pub(crate) struct FakeGuest {
    pub(crate) identity: Identity,
    pub(crate) memory_bytes: u64,
    pub(crate) started: Instant,
    /// Whether nothing works that is tried.
    pub(crate) sick: bool,
    /// The revision that its proxy was told last, in an image that has one.
    pub(crate) proxy: Option<Arc<AtomicU64>>,
}

/// The connections to one guest. They end with it.
#[derive(Default)]
pub(crate) struct Calls(Vec<Weak<UnixStream>>);

impl Calls {
    /// One more connection, served by a thread of its own.
    ///
    /// # Errors
    /// If there are too many, or the system gives no sockets or thread.
    pub(crate) fn take(&mut self, guest: FakeGuest) -> io::Result<UnixStream> {
        // A caller that breaks off is no news.
        self.serve(move |stream| drop(Call { stream, unread: Vec::new() }.serve(&guest)))
    }

    /// The serial console: it shows what is typed, as a line without a program behind it does, and `say` keeps it.
    ///
    /// # Errors
    /// As [`Calls::take`].
    pub(crate) fn open_console(&mut self, say: impl Fn(&[u8]) + Send + 'static) -> io::Result<UnixStream> {
        self.serve(move |mut stream| {
            let mut typed = [0; 256];
            while let Ok(bytes @ 1..) = stream.read(&mut typed) {
                say(&typed[..bytes]);
                if stream.write_all(&typed[..bytes]).is_err() {
                    return;
                }
            }
        })
    }

    fn serve(&mut self, act: impl FnOnce(&UnixStream) + Send + 'static) -> io::Result<UnixStream> {
        self.0.retain(|call| call.strong_count() > 0);
        if self.0.len() >= CONNECTIONS_MAX {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (ours, theirs) = UnixStream::pair()?;
        let theirs = Arc::new(theirs);
        self.0.push(Arc::downgrade(&theirs));
        let thread = std::thread::Builder::new().name("fake guest".to_owned()).stack_size(STACK_BYTES);
        thread.spawn(move || act(&theirs))?;
        Ok(ours)
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        for call in self.0.iter().filter_map(Weak::upgrade) {
            let _ = call.shutdown(Shutdown::Both);
        }
    }
}

/// One connection: one request, since every answer closes it.
struct Call<'a> {
    stream: &'a UnixStream,
    /// What has come and was not used yet.
    unread: Vec<u8>,
}

/// What a program that is known does.
#[derive(Debug, PartialEq, Eq)]
enum Program {
    /// Says this and ends with that code.
    Says(String, u32),
    /// Says what it hears.
    Repeats,
}

impl Call<'_> {
    fn serve(mut self, guest: &FakeGuest) -> io::Result<()> {
        self.stream.set_read_timeout(Some(REQUEST_MAX))?;
        let Some(head_bytes) = self.until(HEAD_BYTES_MAX, http::head_bytes)? else {
            return self.fail("431 Request Header Fields Too Large", "the head is too long");
        };
        let head = String::from_utf8_lossy(&self.used(head_bytes)).into_owned();
        let mut words = head.split(' ');
        match (words.next().unwrap_or_default(), words.next().unwrap_or_default()) {
            ("GET", "/v1/health") => self.answer("200 OK", &json!({ "healthy": true })),
            ("GET", "/v1/info") => self.answer("200 OK", &json!(guest.info())),
            ("GET", "/v1/metrics") => self.answer("200 OK", &json!(guest.metrics())),
            ("POST", "/v1/freeze" | "/v1/thaw") => self.answer("200 OK", &json!(Frozen { file_systems: 1 })),
            ("POST", "/v1/grow") => self.answer("200 OK", &json!(Grown::default())),
            ("POST", "/v1/check") => {
                let problem = if guest.sick { "it is sick" } else { "" }.to_owned();
                let checked = Checked { passed: !guest.sick, problem, ..Checked::default() };
                self.answer("200 OK", &json!(checked))
            }
            ("POST", "/v1/exec") => self.exec(&head),
            ("PUT", "/v1/topology") => self.tell_proxy(guest, &head),
            // It has no table, and says only by what it would act.
            ("POST", "/v1/proxy/explain") => match &guest.proxy {
                Some(told) => {
                    let revision = told.load(Ordering::SeqCst);
                    self.answer("200 OK", &json!(Explained { revision, answer: Answer::NoRoute }))
                }
                None => self.fail("404 Not Found", NO_PROXY),
            },
            ("GET", "/v1/proxy") => match &guest.proxy {
                Some(told) => {
                    let revision = told.load(Ordering::SeqCst);
                    let uptime_ms = u64::try_from(guest.started.elapsed().as_millis()).unwrap_or(u64::MAX);
                    self.answer(
                        "200 OK",
                        &json!(ProxyStatus { revision, uptime_ms, ..ProxyStatus::default() }),
                    )
                }
                None => self.fail("404 Not Found", NO_PROXY),
            },
            _ => self.fail("404 Not Found", "there is nothing here"),
        }
    }

    /// The proxy takes what is whole and good, and nothing older than what it has.
    fn tell_proxy(&mut self, guest: &FakeGuest, head: &str) -> io::Result<()> {
        let length = http::field(head, "content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
        if length > TOPOLOGY_BYTES_MAX {
            return self.fail("413 Payload Too Large", "length limit exceeded");
        }
        self.until(TOPOLOGY_BYTES_MAX, |bytes| (bytes.len() >= length).then_some(length))?;
        let body = self.used(length);
        let Some(told) = &guest.proxy else { return self.fail("404 Not Found", NO_PROXY) };
        let read = serde_json::from_slice::<Sealed>(&body)
            .and_then(|sealed| serde_json::from_str::<Topology>(sealed.topology.get()));
        let topology = match read.map_err(|error| error.to_string()) {
            Ok(topology) => topology,
            Err(why) => return self.fail("422 Unprocessable Entity", &why),
        };
        if let Err(problem) = topology.check() {
            return self.fail("422 Unprocessable Entity", &problem.to_string());
        }
        if told.fetch_max(topology.revision, Ordering::SeqCst) > topology.revision {
            return self.fail("409 Conflict", "it is older than what holds");
        }
        self.answer("200 OK", &json!(Told { revision: topology.revision }))
    }

    fn exec(&mut self, head: &str) -> io::Result<()> {
        if http::field(head, "upgrade") != Some(EXEC_PROTOCOL) {
            return self.fail("426 Upgrade Required", &format!("upgrade to {EXEC_PROTOCOL}"));
        }
        let length = http::field(head, "content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
        if length > BODY_BYTES_MAX {
            return self.fail("413 Payload Too Large", "length limit exceeded");
        }
        self.until(BODY_BYTES_MAX, |bytes| (bytes.len() >= length).then_some(length))?;
        let body = self.used(length);
        let wanted: Exec = match serde_json::from_slice(if body.is_empty() { b"{}" } else { &body }) {
            Ok(wanted) => wanted,
            Err(error) => return self.fail("400 Bad Request", &error.to_string()),
        };
        let program = match program(&wanted.argv) {
            Ok(program) => program,
            Err(why) => return self.fail("422 Unprocessable Entity", &why),
        };
        let head = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: {EXEC_PROTOCOL}\r\n\r\n"
        );
        self.stream.write_all(head.as_bytes())?;
        self.stream.set_read_timeout(None)?;
        let code = match program {
            Program::Says(text, code) => {
                if !text.is_empty() {
                    self.send(&Frame::Stdout(text.into_bytes()))?;
                }
                code
            }
            Program::Repeats => self.repeat()?,
        };
        self.send(&Frame::Exit(code))
    }

    /// Says what it hears until the end of its input or a signal.
    fn repeat(&mut self) -> io::Result<u32> {
        loop {
            let (frame, bytes) = loop {
                match Frame::decode(&self.unread).map_err(io::Error::other)? {
                    Some(found) => break found,
                    None => self.more()?,
                }
            };
            self.used(bytes);
            match frame {
                Frame::Stdin(bytes) if bytes.is_empty() => return Ok(0),
                Frame::Stdin(bytes) => {
                    let taken = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                    self.send(&Frame::Stdout(bytes))?;
                    self.send(&Frame::Taken(taken))?;
                }
                Frame::Signal(number) => return Ok(128 + u32::from(number)),
                _ => {}
            }
        }
    }

    /// Reads until `whole` finds what it looks for; nothing if it does not within so many bytes.
    fn until(
        &mut self,
        bytes_max: usize,
        whole: impl Fn(&[u8]) -> Option<usize>,
    ) -> io::Result<Option<usize>> {
        loop {
            match whole(&self.unread) {
                Some(bytes) => return Ok(Some(bytes)),
                None if self.unread.len() > bytes_max => return Ok(None),
                None => self.more()?,
            }
        }
    }

    fn more(&mut self) -> io::Result<()> {
        let mut chunk = [0; 4096];
        match self.stream.read(&mut chunk)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                self.unread.extend_from_slice(&chunk[..read]);
                Ok(())
            }
        }
    }

    fn used(&mut self, bytes: usize) -> Vec<u8> {
        self.unread.drain(..bytes).collect()
    }

    fn send(&mut self, frame: &Frame) -> io::Result<()> {
        self.stream.write_all(&frame.encode())
    }

    fn fail(&mut self, status: &str, why: &str) -> io::Result<()> {
        self.answer(status, &json!(Problem { error: why.to_owned() }))
    }

    fn answer(&mut self, status: &str, body: &Value) -> io::Result<()> {
        let body = body.to_string();
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        self.stream.write_all(&[head.as_bytes(), body.as_bytes()].concat())
    }
}

/// The program of that name, or why it cannot be started, in a real agent's words.
fn program(argv: &[String]) -> Result<Program, String> {
    let words: Vec<&str> = argv.iter().map(String::as_str).collect();
    match words.as_slice() {
        [] => Err("argv is empty".to_owned()),
        ["echo", words @ ..] => Ok(Program::Says(format!("{}\n", words.join(" ")), 0)),
        ["false"] => Ok(Program::Says(String::new(), 1)),
        // As a shell does: a code has a byte.
        ["exit", code] => Ok(Program::Says(String::new(), code.parse::<u8>().unwrap_or(2).into())),
        ["cat"] => Ok(Program::Repeats),
        [name, ..] => Err(format!("start {name}: No such file or directory (os error 2)")),
    }
}

impl FakeGuest {
    fn info(&self) -> Info {
        Info {
            agent: env!("CARGO_PKG_VERSION").to_owned(),
            kernel_release: "fake".to_owned(),
            boot: Milestones::default(),
            identity: Some(self.identity.clone()),
            ..Info::default()
        }
    }

    fn metrics(&self) -> Metrics {
        Metrics {
            load_1m: 0.0,
            memory_total_bytes: self.memory_bytes,
            memory_available_bytes: self.memory_bytes,
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            // It does nothing.
            cpu_busy_millis: 0,
            cpu_idle_millis: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        }
    }
}
