//! The access log: a line of JSON for each request, on stdout.
//!
//! Requests never wait for it. What the reader of stdout does not take in time is dropped and counted.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use serde::Serialize;

/// Lines that wait to be written: some megabytes at the worst.
const LINES_MAX: usize = 8_192;

/// How long lines are gathered while requests come.
const GATHERED: Duration = Duration::from_millis(10);

/// How long the end waits for lines on their way: a reader of stdout that does not read holds nobody for ever.
const FINISH_MAX: Duration = Duration::from_secs(1);

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

/// What the writer is sent.
enum Entry {
    Line(Box<Line>),
    /// All that came before is to be written, and then this said.
    Finish(SyncSender<()>),
}

/// Where lines go.
#[derive(Clone, Debug)]
pub(crate) struct AccessLog {
    lines: Option<SyncSender<Entry>>,
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
        std::thread::Builder::new().name("access-log".to_owned()).spawn(move || {
            write_all(&receiver, std::io::BufWriter::new(std::io::stdout()));
        })?;
        Ok(AccessLog { lines: Some(lines), dropped })
    }

    /// Whether a line would be taken, so that nobody makes one for nothing.
    pub(crate) const fn is_on(&self) -> bool {
        self.lines.is_some()
    }

    pub(crate) fn write(&self, line: Line) {
        let is_taken =
            self.lines.as_ref().is_some_and(|lines| lines.try_send(Entry::Line(Box::new(line))).is_ok());
        if !is_taken {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until all lines so far are written, [`FINISH_MAX`] at most. Blocks its thread.
    pub(crate) fn finish(&self) {
        let Some(lines) = &self.lines else { return };
        let (done, written) = sync_channel(1);
        // A full queue means that nobody reads: then nobody is waited for.
        if lines.try_send(Entry::Finish(done)).is_ok() {
            let _ = written.recv_timeout(FINISH_MAX);
        }
    }

    /// Lines that nobody took.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

fn write_all(entries: &Receiver<Entry>, mut output: impl Write) {
    while let Ok(first) = entries.recv() {
        let mut entry = Some(first);
        while let Some(next) = entry {
            match next {
                // A stdout that is gone takes nothing; the requests go on all the same.
                Entry::Line(line) => {
                    if serde_json::to_writer(&mut output, &line).is_ok() {
                        let _ = output.write_all(b"\n");
                    }
                }
                Entry::Finish(done) => {
                    let _ = output.flush();
                    let _ = done.try_send(());
                }
            }
            entry = entries.try_recv().ok().or_else(|| {
                let _ = output.flush();
                // To wake this thread for each line would cost requests more than the line itself.
                std::thread::park_timeout(GATHERED);
                entries.try_recv().ok()
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stdout that shows what was flushed.
    #[derive(Clone, Default)]
    struct Flushed(Arc<std::sync::Mutex<(Vec<u8>, usize)>>);

    impl Write for Flushed {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            crate::lock::lock(&self.0).0.write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            let mut inner = crate::lock::lock(&self.0);
            inner.1 = inner.0.len();
            Ok(())
        }
    }

    #[test]
    fn what_was_said_before_the_end_is_written() {
        let (lines, receiver) = sync_channel(LINES_MAX);
        let output = Flushed::default();
        let written = output.clone();
        let writer = std::thread::spawn(move || write_all(&receiver, output));
        let log = AccessLog { lines: Some(lines), dropped: Arc::default() };
        for number in 0..100 {
            log.write(Line {
                time: jiff::Timestamp::UNIX_EPOCH,
                client: [127, 0, 0, 1].into(),
                method: "GET".to_owned(),
                scheme: "http",
                host: String::new(),
                path: format!("/{number}"),
                status: None,
                bytes: 0,
                took_us: 0,
                route: None,
                backend: None,
                tries: 0,
                error: None,
            });
        }
        log.finish();
        let (bytes, flushed) = crate::lock::lock(&written.0).clone();
        let lines = bytes[..flushed].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count();
        assert_eq!((lines, log.dropped()), (100, 0));
        drop(log);
        writer.join().expect("ends with its senders");
    }

    #[test]
    fn texts_are_cut_between_characters() {
        for (text, expected) in [("abc", "abc"), ("abcde", "abcd"), ("abc\u{e9}", "abc"), ("", "")] {
            assert_eq!(cut(text, 4), expected);
        }
    }
}
