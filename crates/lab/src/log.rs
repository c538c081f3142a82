//! The log of one process: a file with a limit, and lines for the person who watches.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader};

/// A log is moved aside at this size, and the one moved aside before is lost: two of them are kept.
pub const LOG_BYTES_MAX: u64 = 8 << 20;
/// A longer line is cut into several.
pub const LINE_BYTES_MAX: u64 = 64 << 10;

/// A log file that grows little beyond [`LOG_BYTES_MAX`], written by everything that one process says.
#[derive(Clone)]
pub struct SharedLog(Arc<Mutex<LogFile>>);

struct LogFile {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl SharedLog {
    /// Opens the log at `path`, and goes on behind what is there.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(path: &Path) -> io::Result<SharedLog> {
        Ok(SharedLog(Arc::new(Mutex::new(LogFile::open(path)?))))
    }

    /// Writes one line.
    ///
    /// # Errors
    /// What the system says.
    pub fn line(&self, line: &str) -> io::Result<()> {
        // Whoever panicked with the log in hand has left it whole: its fields change one at a time.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).line(line)
    }
}

impl LogFile {
    fn open(path: &Path) -> io::Result<LogFile> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let bytes = file.metadata()?.len();
        Ok(LogFile { path: path.to_owned(), file, bytes })
    }

    fn line(&mut self, line: &str) -> io::Result<()> {
        if self.bytes > LOG_BYTES_MAX {
            match fs::rename(&self.path, self.path.with_extension("log.1")) {
                // Moved aside already, when there was no room for a new one.
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => *self = LogFile::open(&self.path)?,
            }
        }
        self.bytes += line.len() as u64 + 1;
        writeln!(self.file, "{line}")
    }
}

/// Copies what a process says into its log, line by line, and shows it to the person if `show` says so. It reads on
/// whatever the process says: one whose output is closed would die of it.
pub async fn follow(source: impl AsyncRead + Unpin, log: SharedLog, prefix: String, show: bool) {
    let mut source = BufReader::new(source);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        match (&mut source).take(LINE_BYTES_MAX).read_until(b'\n', &mut bytes).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let line = String::from_utf8_lossy(bytes.strip_suffix(b"\n").unwrap_or(&bytes));
        // A full disk must not stop the process that is logged.
        let _ = log.line(&line);
        if show {
            eprintln!("{prefix} | {line}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn everything_is_read_whatever_it_is() {
        let path = std::env::temp_dir().join(format!("lightbyte-log-{}", std::process::id()));
        let check = async |said: &[u8], expect: &[usize]| {
            let log = SharedLog::open(&path).expect("a log");
            follow(said, log, String::new(), false).await;
            let text = fs::read_to_string(&path).expect("the log");
            fs::remove_file(&path).expect("remove it");
            assert_eq!(text.lines().map(|line| line.chars().count()).collect::<Vec<_>>(), expect);
        };
        check(b"", &[]).await;
        check(b"one\nthree\n", &[3, 5]).await;
        check(b"cut off", &[7]).await;
        check(b"\xff\xfe\nafter it\n", &[2, 8]).await;
        let long = LINE_BYTES_MAX as usize;
        check(&vec![b'x'; long + 5], &[long, 5]).await;
    }

    #[test]
    fn a_log_is_moved_aside_when_it_is_full() {
        let path = std::env::temp_dir().join(format!("lightbyte-full-{}.log", std::process::id()));
        let aside = path.with_extension("log.1");
        let log = SharedLog::open(&path).expect("a log");
        let line = "x".repeat(1 << 20);
        for _ in 0..12 {
            log.clone().line(&line).expect("a line");
        }
        let bytes = |path: &Path| fs::metadata(path).expect("a log").len();
        assert!(bytes(&aside) > LOG_BYTES_MAX && bytes(&aside) < LOG_BYTES_MAX + (2 << 20));
        assert!(bytes(&path) < LOG_BYTES_MAX);
        fs::remove_file(&path).and_then(|()| fs::remove_file(&aside)).expect("remove them");
    }
}
