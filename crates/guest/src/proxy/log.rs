//! The access log of the proxy: two files on the root disk that take turns. Not the console: a line for each request would
//! drown all else there, and a serial line costs the machine a trap for each byte.
//!
//! A thread of its own, since disks may stand still. While this one does, the proxy's lines wait in the pipe and in its
//! own bounded queue, and what has no room there it drops and counts; its requests wait for nothing.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

/// The files.
const NAME: &str = "access.log";
const BEFORE_NAME: &str = "access.log.1";

/// Largest file; there are two.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Longest line; what is longer is kept as several.
const LINE_BYTES_MAX: u64 = 16 * 1024;

/// What is read at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// Keeps what comes, until its end.
///
/// # Errors
/// If there is no thread to be had.
pub(super) fn keep(from: impl Read + Send + 'static, directory: PathBuf) -> io::Result<()> {
    let keep = move || keep_all(from, &directory, FILE_BYTES_MAX);
    std::thread::Builder::new().name("access-log".to_owned()).spawn(keep).map(drop)
}

/// What cannot be written is lost: who waits for the reader matters more.
fn keep_all(from: impl Read, directory: &Path, file_bytes_max: u64) {
    let mut from = BufReader::with_capacity(CHUNK_BYTES, from);
    let mut file = None;
    let mut lines = Vec::new();
    loop {
        let before = lines.len();
        let read = from.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut lines);
        let has_ended = read.is_err() || lines.len() == before;
        // Lines that have come together are written together.
        if !has_ended && !lines.ends_with(b"\n") {
            // It is too long, or the proxy was killed in the middle of it: the next one's begins anew.
            lines.push(b'\n');
        }
        // Lines that have come together are written together.
        if has_ended && !lines.is_empty() && !lines.ends_with(b"\n") {
            // A proxy that was killed in the middle of a line: the next one's begins anew.
            lines.push(b'\n');
        }
        if has_ended || from.buffer().is_empty() || lines.len() >= CHUNK_BYTES {
            if write(&mut file, directory, &lines, file_bytes_max).is_err() {
                file = None;
            }
            lines.clear();
        }
        if has_ended {
            return;
        }
    }
}

/// Adds lines to the file that is open, or to another if that would become too large.
fn write(
    file: &mut Option<(File, u64)>,
    directory: &Path,
    lines: &[u8],
    file_bytes_max: u64,
) -> io::Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    let length = lines.len() as u64;
    let path = directory.join(NAME);
    let is_full = |bytes: u64| bytes > 0 && bytes + length > file_bytes_max;
    if file.is_none() {
        fs::create_dir_all(directory)?;
        *file = Some(open(&path)?);
    }
    if file.as_ref().is_some_and(|(_, bytes)| is_full(*bytes)) {
        fs::rename(&path, directory.join(BEFORE_NAME))?;
        *file = Some(open(&path)?);
    }
    if let Some((file, bytes)) = file {
        file.write_all(lines)?;
        *bytes += length;
    }
    Ok(())
}

fn open(path: &Path) -> io::Result<(File, u64)> {
    let file = File::options().append(true).create(true).open(path)?;
    let bytes = file.metadata()?.len();
    Ok((file, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_files_hold_the_latest_whole_lines() {
        let directory = std::env::temp_dir().join(format!("lightbyte-access-{}", std::process::id()));
        let _ = fs::remove_dir_all(&directory);
        let read = |name: &str| fs::read_to_string(directory.join(name)).unwrap_or_default();
        // What an earlier proxy has written is gone on with.
        for lines in ["one\ntwo\n", "three", "four\n", "five\nunfinished"] {
            keep_all(lines.as_bytes(), &directory, 16);
        }
        assert_eq!((read(BEFORE_NAME).as_str(), read(NAME).as_str()), ("four\n", "five\nunfinished\n"));
        let sizes = |lines: &str| {
            let _ = fs::remove_dir_all(&directory);
            keep_all(lines.as_bytes(), &directory, 16);
            (read(BEFORE_NAME).len(), read(NAME).len())
        };
        // One write is never torn, and one that is larger than a file is alone in it.
        assert_eq!(sizes(&"x".repeat(40)), (0, 41));
        assert_eq!(sizes(""), (0, 0));
        let _ = fs::remove_dir_all(&directory);
    }
}
