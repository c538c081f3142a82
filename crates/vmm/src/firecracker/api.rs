//! A client for Firecracker's API: HTTP on a Unix socket, one connection for each call. Blocking and bounded. Only what
//! lightbyte uses is here. Source: Firecracker's `src/firecracker/swagger/firecracker.yaml`, version 1.16.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use super::types::{
    Action, Balloon, BalloonStatistics, BootSource, Drive, DriveChange, Entropy, InstanceInfo, Logger,
    MachineConfig, Metrics, NetworkInterface, SnapshotCreate, SnapshotLoad, VmState, Vsock,
};
use crate::channel::{self, Timed};
use crate::http;

/// Largest answer, head included. The longest that we ask for are the balloon's statistics, with some 700 bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Most characters of a reason: what people are shown is not without end, whatever comes.
const REASON_CHARS_MAX: usize = 1000;

/// Why a call was not done.
#[derive(Debug, Error)]
pub enum ApiError {
    /// The socket failed, or Firecracker was silent for too long.
    #[error("the connection to Firecracker failed")]
    Io(#[from] io::Error),
    /// Firecracker said no.
    #[error("{0}")]
    Refused(String),
    /// What came is not an answer of Firecracker's.
    #[error("Firecracker gave no answer: {0}")]
    Protocol(&'static str),
}

/// The way to one Firecracker.
#[derive(Clone, Debug)]
pub struct Api {
    socket: PathBuf,
    wait: Duration,
}

impl Api {
    /// A client of the socket. Each call is over after `wait`.
    #[must_use]
    pub const fn new(socket: PathBuf, wait: Duration) -> Api {
        Api { socket, wait }
    }

    /// Who answers, and in which state it is.
    ///
    /// # Errors
    /// See [`ApiError`], as for every call.
    pub fn instance(&self) -> Result<InstanceInfo, ApiError> {
        self.get("/")
    }

    /// Where it logs to. Only before the start.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub fn set_logger(&self, logger: &Logger) -> Result<(), ApiError> {
        self.put("/logger", logger)
    }

    /// Where it writes its metrics to, one line of JSON a minute. Only before the start.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub fn set_metrics(&self, metrics: &Metrics) -> Result<(), ApiError> {
        self.put("/metrics", metrics)
    }

    /// CPUs and memory. Only before the start.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub fn set_machine(&self, machine: &MachineConfig) -> Result<(), ApiError> {
        self.put("/machine-config", machine)
    }

    /// Kernel, initial file system and kernel arguments. Only before the start.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub fn set_boot_source(&self, source: &BootSource) -> Result<(), ApiError> {
        self.put("/boot-source", source)
    }

    /// Adds a disk; the guest sees them in the order of these calls. Only before the start.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub fn add_drive(&self, drive: &Drive) -> Result<(), ApiError> {
        self.put(&format!("/drives/{}", drive.drive_id), drive)
    }

    /// Looks again at the file of a disk, and tells the guest its size.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub fn change_drive(&self, change: &DriveChange) -> Result<(), ApiError> {
        self.patch(&format!("/drives/{}", change.drive_id), change)
    }

    /// Adds a network interface. Only before the start.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub fn add_network_interface(&self, interface: &NetworkInterface) -> Result<(), ApiError> {
        self.put(&format!("/network-interfaces/{}", interface.iface_id), interface)
    }

    /// The guest's vsock. Only before the start.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub fn set_vsock(&self, vsock: &Vsock) -> Result<(), ApiError> {
        self.put("/vsock", vsock)
    }

    /// A source of random numbers. Only before the start.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub fn set_entropy(&self, entropy: &Entropy) -> Result<(), ApiError> {
        self.put("/entropy", entropy)
    }

    /// A balloon, which also tells how the guest uses its memory. Only before the start.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub fn set_balloon(&self, balloon: &Balloon) -> Result<(), ApiError> {
        self.put("/balloon", balloon)
    }

    /// How the guest uses its memory, as its balloon said last.
    ///
    /// # Errors
    /// See [`ApiError`]; also while the guest has no driver for it.
    pub fn balloon_statistics(&self) -> Result<BalloonStatistics, ApiError> {
        self.get("/balloon/statistics")
    }

    /// Starts the machine. Firecracker keeps a refused start for good: its process is of no more use.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub fn start(&self) -> Result<(), ApiError> {
        self.put("/actions", &Action { action_type: "InstanceStart" })
    }

    /// Stops the machine's CPUs. One that is paused already stays so.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub fn pause(&self) -> Result<(), ApiError> {
        self.patch("/vm", &VmState { state: "Paused" })
    }

    /// Lets the machine's CPUs go on.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub fn resume(&self) -> Result<(), ApiError> {
        self.patch("/vm", &VmState { state: "Resumed" })
    }

    /// Writes the state of a paused machine to two files.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub fn create_snapshot(&self, snapshot: &SnapshotCreate) -> Result<(), ApiError> {
        self.put("/snapshot/create", snapshot)
    }

    /// Makes a machine from a snapshot, in a process that was not told anything else. One that refuses ends.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub fn load_snapshot(&self, snapshot: &SnapshotLoad) -> Result<(), ApiError> {
        self.put("/snapshot/load", snapshot)
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        let body = self.call("GET", path, b"")?;
        serde_json::from_slice(&body).map_err(|_| ApiError::Protocol("a body that was not expected"))
    }

    fn put(&self, path: &str, value: &impl Serialize) -> Result<(), ApiError> {
        self.send("PUT", path, value)
    }

    fn patch(&self, path: &str, value: &impl Serialize) -> Result<(), ApiError> {
        self.send("PATCH", path, value)
    }

    fn send(&self, method: &str, path: &str, value: &impl Serialize) -> Result<(), ApiError> {
        let body = serde_json::to_vec(value).map_err(io::Error::from)?;
        self.call(method, path, &body).map(drop)
    }

    fn call(&self, method: &str, path: &str, body: &[u8]) -> Result<Vec<u8>, ApiError> {
        let until = Instant::now() + self.wait;
        let mut stream = channel::reach(&self.socket)?;
        stream.set_write_timeout(Some(self.wait))?;
        // A request with an empty body is none to Firecracker, which wants no length then.
        let length = if body.is_empty() {
            String::new()
        } else {
            format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len())
        };
        let head = format!("{method} {path} HTTP/1.1\r\nHost: firecracker\r\n{length}\r\n");
        stream.write_all(&[head.as_bytes(), body].concat())?;
        let mut timed = Timed { stream: &stream, until };
        read_answer(&mut timed)
    }
}

/// Reads one answer; the connection stays open behind it. Gives the body of a good one.
fn read_answer(stream: &mut impl io::Read) -> Result<Vec<u8>, ApiError> {
    let mut answer = Vec::new();
    let head_bytes = loop {
        if let Some(bytes) = http::head_bytes(&answer) {
            break bytes;
        }
        read_more(stream, &mut answer)?;
    };
    let text =
        str::from_utf8(&answer[..head_bytes]).map_err(|_| ApiError::Protocol("a head that is no text"))?;
    let status: u16 = text
        .strip_prefix("HTTP/1.1 ")
        .or_else(|| text.strip_prefix("HTTP/1.0 "))
        .and_then(|rest| rest.get(..3)?.parse().ok())
        .ok_or(ApiError::Protocol("a head without a status"))?;
    let length: usize = match http::field(text, "Content-Length") {
        Some(length) => length.parse().map_err(|_| ApiError::Protocol("a length that is no number"))?,
        None => 0,
    };
    if length > ANSWER_BYTES_MAX {
        return Err(ApiError::Protocol("an answer that is too long"));
    }
    while answer.len() < head_bytes + length {
        read_more(stream, &mut answer)?;
    }
    let body = &answer[head_bytes..head_bytes + length];
    if (200..300).contains(&status) {
        Ok(body.to_vec())
    } else {
        Err(ApiError::Refused(reason(status, body)))
    }
}

fn read_more(stream: &mut impl io::Read, answer: &mut Vec<u8>) -> Result<(), ApiError> {
    let mut buffer = [0; 4096];
    let read = loop {
        match stream.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => break read?,
        }
    };
    if read == 0 {
        return Err(ApiError::Protocol("it ended in the middle"));
    }
    answer.extend_from_slice(&buffer[..read]);
    if answer.len() > ANSWER_BYTES_MAX {
        Err(ApiError::Protocol("an answer that is too long"))
    } else {
        Ok(())
    }
}

/// Firecracker's own words for a refusal: `fault_message`, or `error` for what did not get as far as its machine.
fn reason(status: u16, body: &[u8]) -> String {
    let value: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let words = ["fault_message", "error"].into_iter().find_map(|name| value.get(name)?.as_str());
    match words.map(str::trim) {
        // Some have several lines, or end with a full stop; ours go on.
        Some(words) if !words.is_empty() => {
            let line = words.split_whitespace().collect::<Vec<_>>().join(" ");
            line.trim_end_matches('.').chars().filter(|c| !c.is_control()).take(REASON_CHARS_MAX).collect()
        }
        _ => format!("it answers {status} and says no reason"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::os::unix::net::UnixListener;

    /// As slow as it can be: byte by byte.
    struct Slow<'a>(&'a [u8]);

    impl io::Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let Some((first, rest)) = self.0.split_first() else { return Ok(0) };
            (buffer[0], self.0) = (*first, rest);
            Ok(1)
        }
    }

    fn read(answer: &str) -> Result<String, String> {
        match read_answer(&mut Slow(answer.as_bytes())) {
            Ok(body) => Ok(String::from_utf8(body).expect("text")),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn answers_refusals_and_nonsense() {
        let table: [(&str, Result<&str, &str>); 13] = [
            ("HTTP/1.1 204 No Content\r\nServer: x\r\n\r\n", Ok("")),
            ("HTTP/1.1 200 \r\ncontent-length: 2\r\n\r\n{}rest", Ok("{}")),
            (
                "HTTP/1.1 400 \r\nContent-Length: 40\r\n\r\n{\"fault_message\": \"Bad\\n kernel\\u0007.\"}",
                Err("Bad kernel"),
            ),
            ("HTTP/1.1 400 \r\nContent-Length: 17\r\n\r\n{\"error\": \"long\"}", Err("long")),
            ("HTTP/1.1 400 \r\nContent-Length: 4\r\n\r\noops", Err("it answers 400 and says no reason")),
            ("HTTP/1.1 500 \r\n\r\n", Err("it answers 500 and says no reason")),
            ("", Err("Firecracker gave no answer: it ended in the middle")),
            (
                "HTTP/1.1 200 \r\nContent-Length: 9\r\n\r\n{}",
                Err("Firecracker gave no answer: it ended in the middle"),
            ),
            ("HTTP/1.1 200 \r\n", Err("Firecracker gave no answer: it ended in the middle")),
            ("nonsense\r\n\r\n", Err("Firecracker gave no answer: a head without a status")),
            ("HTTP/1.1 2\u{e9}\r\n\r\n", Err("Firecracker gave no answer: a head without a status")),
            (
                "HTTP/1.1 200 \r\nContent-Length: -1\r\n\r\n",
                Err("Firecracker gave no answer: a length that is no number"),
            ),
            (
                "HTTP/1.1 200 \r\nContent-Length: 99999999999\r\n\r\n",
                Err("Firecracker gave no answer: an answer that is too long"),
            ),
        ];
        for (answer, expected) in table {
            assert_eq!(read(answer).as_deref().map_err(String::as_str), expected, "{answer}");
        }
        let endless = format!("HTTP/1.1 200 \r\nA: {}", "a".repeat(ANSWER_BYTES_MAX));
        assert_eq!(read(&endless), Err("Firecracker gave no answer: an answer that is too long".to_owned()));
        let wordy = format!("{{\"fault_message\": \"{}\"}}", "w".repeat(5000));
        assert_eq!(reason(400, wordy.as_bytes()).len(), REASON_CHARS_MAX);
    }

    /// A Firecracker that gives one answer to whatever comes; what came, and what the call gave.
    fn serve<T>(
        answer: &'static str,
        call: impl FnOnce(Api) -> Result<T, ApiError>,
    ) -> (String, Result<T, ApiError>) {
        let directory = std::env::temp_dir().join(format!("lbfc-{}-{:p}", std::process::id(), answer));
        std::fs::create_dir_all(&directory).expect("make a directory");
        let socket = directory.join("api");
        let listener = UnixListener::bind(&socket).expect("listen");
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a call");
            let mut request = vec![0; 4096];
            let read = stream.read(&mut request).expect("a request");
            stream.write_all(answer.as_bytes()).expect("answer");
            // Open until the other side goes, as Firecracker leaves it.
            let _ = stream.read(&mut [0]);
            String::from_utf8_lossy(&request[..read]).into_owned()
        });
        let outcome = call(Api::new(socket, Duration::from_millis(300)));
        let request = server.join().expect("a server");
        std::fs::remove_dir_all(&directory).expect("remove it");
        (request, outcome)
    }

    #[test]
    fn calls_are_what_firecracker_reads() {
        let (request, outcome) = serve("HTTP/1.1 204 \r\n\r\n", |api| api.pause());
        outcome.expect("it is done");
        let head =
            "PATCH /vm HTTP/1.1\r\nHost: firecracker\r\nContent-Type: application/json\r\nContent-Length: 18";
        assert_eq!(request, format!("{head}\r\n\r\n{{\"state\":\"Paused\"}}"));
        let answer = "HTTP/1.1 200 \r\nContent-Length: 73\r\n\r\n{\"id\":\"a\",\"state\":\"Not started\",\"vmm_version\":\"1.16.1\",\"app_name\":\"Fire\"}";
        let (request, outcome) = serve(answer, |api| api.instance());
        assert_eq!(request, "GET / HTTP/1.1\r\nHost: firecracker\r\n\r\n");
        assert_eq!(outcome.expect("an instance").state, "Not started");
    }

    #[test]
    fn a_silent_firecracker_is_left() {
        let begin = Instant::now();
        let (_, outcome) = serve("HTTP/1.1 200 \r\n", |api| api.resume());
        assert!(matches!(outcome, Err(ApiError::Io(_))), "{outcome:?}");
        assert!(begin.elapsed() >= Duration::from_millis(300));
        let nobody = Api::new("/nowhere/api".into(), Duration::from_secs(1)).start();
        assert!(matches!(nobody, Err(ApiError::Io(_))), "{nobody:?}");
    }
}
