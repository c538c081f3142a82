//! A guest's console is a file that the VMM appends to. It is kept within bounds by copying its end and cutting it: it
//! was opened in append mode, and the VMM goes on at the new end. What the guest says between the copy and the cut is
//! lost.
//!
//! ```text
//!   console.log.1 (1 MiB at most) | console.log
//!   positions:                    ^ console.begin     its lock keeps who cuts and who reads apart
//! ```

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags, flock};

use crate::driver::{ConsoleChunk, ConsoleFrom};

/// The console's file in the VM's directory; the older one has `.1` added.
pub(crate) const CONSOLE: &str = "console.log";

/// How long the file may be when it is looked at, and how much of it is kept as the older file: some ten boots.
const CONSOLE_BYTES_MAX: u64 = 1 << 20;

/// Unit of what a file takes up (stat(2), `st_blocks`).
const BLOCK_BYTES: u64 = 512;

/// How often it is looked at. A guest writes at most some MB in that time.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(10);

/// The position at which the console's file begins, which is where the older one ends.
struct Begin {
    file: File,
    position: u64,
}

impl Begin {
    fn hold(console: &Path, operation: FlockOperation) -> io::Result<Begin> {
        let path = console.with_extension("begin");
        let mut file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        flock(&file, operation)?;
        let mut text = String::new();
        file.by_ref().take(u64::BITS.into()).read_to_string(&mut text)?;
        // One that was never written, or is damaged, is nought: positions go back, which readers take for the end.
        Ok(Begin { position: text.trim().parse().unwrap_or(0), file })
    }

    fn move_by(&self, bytes: u64) -> io::Result<()> {
        // All digits always, so that it is replaced in place: on a full disk too.
        self.file.write_all_at(format!("{:020}\n", self.position.saturating_add(bytes)).as_bytes(), 0)
    }
}

/// Shortens a console that has become too long.
///
/// # Errors
/// If the disk is full; then the console is cut all the same, since it must not fill it further.
pub(crate) fn rotate(console: &Path) -> io::Result<()> {
    let length = match fs::metadata(console) {
        Ok(found) => found.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if length <= CONSOLE_BYTES_MAX {
        return Ok(());
    }
    let begin = Begin::hold(console, FlockOperation::LockExclusive);
    let kept = keep_end(console, length);
    if kept.is_err() {
        // A part of it would be taken for its end.
        let _ = fs::remove_file(older(console));
    }
    File::options().write(true).open(console)?.set_len(0)?;
    begin?.move_by(length)?;
    kept
}

/// Empties a log that takes up too much of the disk. What is in it is for a person who looks soon. Its writer goes on where
/// it was, behind a hole, and may be jailed: a link that it has put in the log's place is not followed.
pub(crate) fn cut(log: &Path) {
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    // One that cannot be cut now is looked at again.
    let Ok(file) = rustix::fs::open(log, flags, Mode::empty()).map(File::from) else { return };
    if file.metadata().is_ok_and(|found| found.is_file() && found.blocks() * BLOCK_BYTES > CONSOLE_BYTES_MAX)
    {
        let _ = file.set_len(0);
    }
}

fn keep_end(console: &Path, length: u64) -> io::Result<()> {
    let mut source = File::open(console)?;
    source.seek(SeekFrom::Start(length - CONSOLE_BYTES_MAX))?;
    io::copy(&mut source.take(CONSOLE_BYTES_MAX), &mut File::create(older(console))?)?;
    Ok(())
}

/// The files that a console in that directory may have.
pub(crate) fn files(directory: &Path) -> [PathBuf; 4] {
    let console = directory.join(CONSOLE);
    [older(&console), console.with_extension("begin"), console.with_extension("life"), console]
}

/// Notes that a machine is about to start: what comes from here on is of its life.
///
/// # Errors
/// If it cannot be written.
pub(crate) fn begin_life(console: &Path) -> io::Result<()> {
    let now = read(console, ConsoleFrom::Position(u64::MAX))?.next();
    let (_, before) = lives(console)?;
    if now == before {
        // The machine before has said nothing: most often it was never there.
        return Ok(());
    }
    // In place, so that it can be on a full disk too.
    let path = console.with_extension("life");
    let file = File::options().write(true).create(true).truncate(false).open(path)?;
    file.write_all_at(format!("{before:020} {now:020}\n").as_bytes(), 0)
}

/// Where the life before the last one began, and where the last one did.
///
/// # Errors
/// If the note cannot be read. One that is damaged counts as none.
pub(crate) fn lives(console: &Path) -> io::Result<(u64, u64)> {
    match fs::read_to_string(console.with_extension("life")) {
        Ok(text) => {
            let mut numbers = text.split_whitespace().map(|word| word.parse().unwrap_or(0));
            Ok((numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok((0, 0)),
        Err(error) => Err(error),
    }
}

fn older(console: &Path) -> PathBuf {
    let mut older = console.as_os_str().to_owned();
    older.push(".1");
    older.into()
}

/// Reads a chunk of a console; an empty one if there is none.
///
/// # Errors
/// If a file cannot be read.
pub(crate) fn read(console: &Path, from: ConsoleFrom) -> io::Result<ConsoleChunk> {
    let Some((newer, _)) = open(console)? else { return Ok(ConsoleChunk::default()) };
    let middle = Begin::hold(console, FlockOperation::LockShared)?;
    let end = middle.position + newer.metadata()?.len();
    let older = open(&older(console))?;
    let older_bytes = older.as_ref().map_or(0, |(_, bytes)| *bytes).min(middle.position);
    let begin = middle.position - older_bytes;
    let wanted = from.within(begin..end);
    let mut bytes = Vec::new();
    let parts = [older.map(|(file, _)| (file, begin..middle.position)), Some((newer, middle.position..end))];
    for (mut file, part) in parts.into_iter().flatten() {
        let (from, to) = (wanted.start.max(part.start), wanted.end.min(part.end));
        if from < to {
            file.seek(SeekFrom::Start(from - part.start))?;
            file.take(to - from).read_to_end(&mut bytes)?;
        }
    }
    Ok(ConsoleChunk { begin: wanted.start, bytes })
}

fn open(path: &Path) -> io::Result<Option<(File, u64)>> {
    match File::open(path) {
        Ok(file) => file.metadata().map(|found| Some((file, found.len()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::CONSOLE_CHUNK_BYTES_MAX;
    use std::io::Write as _;
    use std::ops::Range;

    fn place(name: &str) -> PathBuf {
        let directory = std::env::temp_dir().join(format!("lightbyte-console-{name}-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        directory
    }

    #[test]
    fn a_long_console_is_cut_and_its_writer_goes_on() {
        let directory = place("cut");
        let console = directory.join(CONSOLE);
        rotate(&console).unwrap();
        let mut writer = File::options().create(true).append(true).open(&console).unwrap();
        let most = usize::try_from(CONSOLE_BYTES_MAX).unwrap();
        for (written, left) in [(most, most), (7, 0), (5, 5)] {
            writer.write_all(&vec![b'x'; written]).unwrap();
            rotate(&console).unwrap();
            assert_eq!(fs::metadata(&console).unwrap().len(), left as u64, "after {written}");
        }
        assert_eq!(fs::metadata(directory.join("console.log.1")).unwrap().len(), CONSOLE_BYTES_MAX);
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn a_log_that_fills_the_disk_is_emptied_and_a_link_is_not_followed() {
        let directory = place("log");
        let (log, link) = (directory.join("log"), directory.join("link"));
        let mut writer = File::create(&log).unwrap();
        std::os::unix::fs::symlink(&log, &link).unwrap();
        let most = usize::try_from(CONSOLE_BYTES_MAX).unwrap();
        writer.write_all(&vec![b'x'; most]).unwrap();
        let length = || fs::metadata(&log).unwrap().len();
        for (more, path, left) in
            [(0, &log, most), (8192, &link, most + 8192), (0, &log, 0), (5, &log, most + 8197)]
        {
            writer.write_all(&vec![b'x'; more]).unwrap();
            cut(path);
            assert_eq!(length(), left as u64, "after {more} more");
        }
        cut(&directory.join("none"));
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn the_last_two_lives_are_known() {
        let directory = place("life");
        let console = directory.join(CONSOLE);
        assert_eq!(lives(&console).unwrap(), (0, 0));
        begin_life(&console).unwrap();
        assert_eq!(lives(&console).unwrap(), (0, 0));
        for (lines, expected) in [(0..3, (0, 24)), (3..5, (24, 40)), (5..5, (24, 40)), (5..6, (40, 48))] {
            write(&console, lines);
            begin_life(&console).unwrap();
            assert_eq!(lives(&console).unwrap(), expected);
        }
        fs::write(console.with_extension("life"), "no number").unwrap();
        assert_eq!(lives(&console).unwrap(), (0, 0));
        fs::remove_dir_all(&directory).unwrap();
    }

    /// Writes numbered lines of eight bytes, so that every byte tells its position.
    fn write(console: &Path, lines: Range<u64>) {
        let mut writer = File::options().create(true).append(true).open(console).unwrap();
        let text: String = lines.map(|line| format!("{line:07}\n")).collect();
        writer.write_all(text.as_bytes()).unwrap();
    }

    fn follow(console: &Path, from: u64) -> (u64, Vec<u8>) {
        let first = read(console, ConsoleFrom::Position(from)).unwrap();
        let (begin, mut next, mut bytes) = (first.begin, first.next(), first.bytes);
        loop {
            let chunk = read(console, ConsoleFrom::Position(next)).unwrap();
            assert_eq!(chunk.begin, next);
            if chunk.bytes.is_empty() {
                return (begin, bytes);
            }
            assert!(chunk.bytes.len() as u64 <= CONSOLE_CHUNK_BYTES_MAX);
            next = chunk.next();
            bytes.extend(chunk.bytes);
        }
    }

    #[test]
    fn positions_go_on_over_cuts() {
        let directory = place("read");
        let console = directory.join(CONSOLE);
        assert_eq!(read(&console, ConsoleFrom::Last(9)).unwrap(), ConsoleChunk::default());
        let lines_most = CONSOLE_BYTES_MAX / 8;
        let mut written = 0;
        for lines in [3, lines_most, 5, lines_most + 1, 2] {
            write(&console, written..written + lines);
            rotate(&console).unwrap();
            written += lines;
            let end = written * 8;
            let last = read(&console, ConsoleFrom::Last(12)).unwrap();
            assert_eq!(last.bytes, format!("{:03}\n{:07}\n", (written - 2) % 1000, written - 1).as_bytes());
            assert_eq!(last.next(), end);
            // From the beginning: as much as is kept, without a gap, and every byte at its position.
            let (begin, bytes) = follow(&console, 0);
            assert_eq!(begin + bytes.len() as u64, end);
            assert!(bytes.len() as u64 >= CONSOLE_BYTES_MAX.min(end), "{} are kept", bytes.len());
            let line = begin.div_ceil(8);
            let at = usize::try_from(line * 8 - begin).unwrap();
            assert_eq!(bytes[at..at + 8], *format!("{line:07}\n").as_bytes());
        }
        // Who asks for what has not been said waits for what comes next.
        let beyond = read(&console, ConsoleFrom::Position(u64::MAX)).unwrap();
        assert_eq!(beyond, ConsoleChunk { begin: written * 8, bytes: Vec::new() });
        fs::remove_dir_all(&directory).unwrap();
    }
}
