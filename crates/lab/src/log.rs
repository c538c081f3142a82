//! The log of one process: a file with a limit, and lines for the person who watches.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};

/// A log is moved aside at this size, and the one moved aside before is lost: two of them are kept.
pub const LOG_BYTES_MAX: u64 = 8 << 20;

/// A log file that never grows beyond twice [`LOG_BYTES_MAX`].
pub struct LogFile {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl LogFile {
    /// Opens the log at `path`, and goes on behind what is there.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(path: &Path) -> io::Result<LogFile> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let bytes = file.metadata()?.len();
        Ok(LogFile { path: path.to_owned(), file, bytes })
    }

    /// Writes one line.
    ///
    /// # Errors
    /// What the system says.
    pub fn line(&mut self, line: &str) -> io::Result<()> {
        if self.bytes > LOG_BYTES_MAX {
            fs::rename(&self.path, self.path.with_extension("log.1"))?;
            *self = LogFile::open(&self.path)?;
        }
        self.bytes += line.len() as u64 + 1;
        writeln!(self.file, "{line}")
    }
}

/// Copies what a process says into its log, line by line, and shows it to the person if `show` says so.
pub async fn follow(source: impl AsyncRead + Unpin, mut log: LogFile, prefix: String, show: bool) {
    let mut lines = BufReader::new(source).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        // A full disk must not stop the process that is logged.
        let _ = log.line(&line);
        if show {
            eprintln!("{prefix} | {line}");
        }
    }
}
