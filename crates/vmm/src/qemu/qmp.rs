//! A client for QEMU's machine protocol: JSON lines on a Unix socket. QEMU serves one client at a time, so a connection is
//! short. Source: QEMU's `docs/interop/qmp-spec.rst`.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use thiserror::Error;

/// Longest line that is read; the greeting has about 100 bytes, answers to our commands fewer.
const LINE_BYTES_MAX: u64 = 64 * 1024;

/// Events that may come before an answer.
const EVENTS_MAX: usize = 64;

/// Why a command has no answer.
#[derive(Debug, Error)]
pub(super) enum QmpError {
    /// The socket failed, or QEMU was silent for too long.
    #[error("the connection to QEMU failed")]
    Io(#[from] io::Error),
    /// QEMU said no.
    #[error("QEMU refused `{command}`: {reason}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's own words.
        reason: String,
    },
    /// What came is not QMP.
    #[error("QEMU gave no QMP: {0}")]
    Protocol(&'static str),
}

/// One connection.
#[derive(Debug)]
pub(super) struct Qmp {
    reader: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects and leaves the negotiation mode. Every wait is bounded by `wait`.
    ///
    /// # Errors
    /// If QEMU is not there, serves another client, or is silent.
    pub(super) fn connect(socket: &Path, wait: Duration) -> Result<Self, QmpError> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(wait))?;
        stream.set_write_timeout(Some(wait))?;
        let mut qmp = Self { reader: BufReader::new(stream) };
        if qmp.line()?.get("QMP").is_none() {
            return Err(QmpError::Protocol("no greeting"));
        }
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Executes one command and gives what it returned.
    ///
    /// # Errors
    /// See [`QmpError`]; after an `Io` or `Protocol` error the connection is of no more use.
    pub(super) fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value, QmpError> {
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        self.reader.get_mut().write_all(line.as_bytes())?;
        for _ in 0..EVENTS_MAX {
            let mut answer = self.line()?;
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get("error") {
                let reason = error.get("desc").and_then(Value::as_str).unwrap_or("no reason").to_owned();
                return Err(QmpError::Refused { command: command.to_owned(), reason });
            }
        }
        Err(QmpError::Protocol("too many events before an answer"))
    }

    fn line(&mut self) -> Result<Value, QmpError> {
        let mut line = String::new();
        self.reader.by_ref().take(LINE_BYTES_MAX).read_line(&mut line)?;
        if !line.ends_with('\n') {
            return Err(QmpError::Protocol("a line without an end"));
        }
        serde_json::from_str(&line).map_err(|_| QmpError::Protocol("a line that is no JSON"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// A QEMU that answers each line with the next text.
    fn check(answers: &'static [&'static str]) -> Result<Value, QmpError> {
        let directory = std::env::temp_dir().join(format!("qmp-{}-{:p}", std::process::id(), answers));
        std::fs::create_dir_all(&directory)?;
        let path = directory.join("s");
        let listener = UnixListener::bind(&path)?;
        let server = std::thread::spawn(move || -> io::Result<()> {
            let (mut stream, _) = listener.accept()?;
            let mut lines = BufReader::new(stream.try_clone()?).lines();
            for (index, answer) in answers.iter().enumerate() {
                // The greeting is unasked; each answer follows a command, and the end follows the last.
                if index > 0 && lines.next().is_none() {
                    break;
                }
                stream.write_all(answer.as_bytes())?;
            }
            Ok(())
        });
        let result =
            Qmp::connect(&path, Duration::from_secs(5)).and_then(|mut qmp| qmp.execute("x", &json!({})));
        let _ = server.join();
        std::fs::remove_dir_all(&directory)?;
        result
    }

    #[test]
    fn answers_events_and_nonsense() {
        const GREETING: &str = "{\"QMP\": {}}\n";
        const OK: &str = "{\"return\": {}}\n";
        let good = check(&[GREETING, OK, "{\"event\": \"STOP\"}\n{\"return\": {\"a\": 1}}\n"]);
        assert_eq!(good.expect("an answer")["a"], 1);
        let refused = check(&[GREETING, OK, "{\"error\": {\"class\": \"x\", \"desc\": \"no\"}}\n"]);
        assert!(matches!(refused, Err(QmpError::Refused { reason, .. }) if reason == "no"));
        assert!(matches!(check(&["hello\n"]), Err(QmpError::Protocol(_))));
        assert!(matches!(check(&["{}\n"]), Err(QmpError::Protocol(_))));
        assert!(matches!(check(&[GREETING, OK, "{\"return\""]), Err(QmpError::Protocol(_))));
    }
}
