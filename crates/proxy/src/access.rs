//! The access log: a line of JSON for each request, on stdout.
//!
//! Requests never wait for it. What the reader of stdout does not take in time is dropped and counted.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use serde::Serialize;

/// Lines that wait to be written: some megabytes at the worst.
const LINES_MAX: usize = 8_192;

/// How long lines are gathered while requests come.
const GATHERED: Duration = Duration::from_millis(10);

/// Longest path in a line; what is longer is cut.
pub(crate) const PATH_BYTES_MAX: usize = 1_024;

/// Longest method in a line.
pub(crate) const METHOD_BYTES_MAX: usize = 32;

/// The beginning of a text: a line must not be as long as a client likes.
pub(crate) fn cut(text: &str, bytes_max: usize) -> String {
    text[..text.floor_char_boundary(bytes_max)].to_owned()
}

/// One request.
#[derive(Serialize)]
pub(crate) struct Line {
    pub(crate) time: jiff::Timestamp,
    pub(crate) client: std::net::IpAddr,
    pub(crate) method: String,
    pub(crate) scheme: &'static str,
    pub(crate) host: String,
    pub(crate) path: String,
    /// Absent if the client got no answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) status: Option<u16>,
    pub(crate) bytes: usize,
    pub(crate) took_us: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) route: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) backend: Option<String>,
    pub(crate) tries: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

/// Where lines go.
#[derive(Clone, Debug)]
pub(crate) struct AccessLog {
    lines: Option<SyncSender<Box<Line>>>,
    dropped: Arc<AtomicU64>,
}

impl AccessLog {
    /// With a thread of its own that writes; or one that takes nothing.
    pub(crate) fn new(is_on: bool) -> std::io::Result<AccessLog> {
        let dropped = Arc::new(AtomicU64::new(0));
        if !is_on {
            return Ok(AccessLog { lines: None, dropped });
        }
        let (lines, receiver) = sync_channel(LINES_MAX);
        std::thread::Builder::new().name("access-log".to_owned()).spawn(move || write_all(&receiver))?;
        Ok(AccessLog { lines: Some(lines), dropped })
    }

    /// Whether a line would be taken, so that nobody makes one for nothing.
    pub(crate) const fn is_on(&self) -> bool {
        self.lines.is_some()
    }

    pub(crate) fn write(&self, line: Line) {
        let is_taken = self.lines.as_ref().is_some_and(|lines| lines.try_send(Box::new(line)).is_ok());
        if !is_taken {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Lines that nobody took.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

fn write_all(lines: &Receiver<Box<Line>>) {
    let mut output = std::io::BufWriter::new(std::io::stdout());
    while let Ok(first) = lines.recv() {
        let mut line = Some(first);
        while let Some(next) = line {
            // A stdout that is gone takes nothing; the requests go on all the same.
            if serde_json::to_writer(&mut output, &next).is_ok() {
                let _ = output.write_all(b"\n");
            }
            line = lines.try_recv().ok().or_else(|| {
                let _ = output.flush();
                // To wake this thread for each line would cost requests more than the line itself.
                std::thread::park_timeout(GATHERED);
                lines.try_recv().ok()
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_between_characters() {
        for (text, expected) in [("abc", "abc"), ("abcde", "abcd"), ("abc\u{e9}", "abc"), ("", "")] {
            assert_eq!(cut(text, 4), expected);
        }
    }
}
