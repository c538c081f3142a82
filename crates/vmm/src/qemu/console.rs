//! A guest's console is a file that QEMU appends to. It is kept within bounds by copying its end and cutting it: QEMU
//! opened it in append mode and goes on at the new end. What the guest says between the copy and the cut is lost.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::time::Duration;

/// The console's file in the VM's directory; the older one has `.1` added.
pub(super) const CONSOLE: &str = "console.log";

/// How long the file may be when it is looked at, and how much of it is kept as the older file: some ten boots.
const CONSOLE_BYTES_MAX: u64 = 1 << 20;

/// How often it is looked at. A guest writes at most some MB in that time.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Shortens a console that has become too long.
///
/// # Errors
/// If the disk is full; then the console is cut all the same, since it must not fill it further.
pub(super) fn rotate(console: &Path) -> io::Result<()> {
    let length = match fs::metadata(console) {
        Ok(found) => found.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if length <= CONSOLE_BYTES_MAX {
        return Ok(());
    }
    let kept = keep_end(console, length - CONSOLE_BYTES_MAX);
    File::options().write(true).open(console)?.set_len(0)?;
    kept
}

fn keep_end(console: &Path, from: u64) -> io::Result<()> {
    let mut source = File::open(console)?;
    source.seek(SeekFrom::Start(from))?;
    let mut older = console.as_os_str().to_owned();
    older.push(".1");
    io::copy(&mut source.take(CONSOLE_BYTES_MAX), &mut File::create(older)?)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn a_long_console_is_cut_and_its_writer_goes_on() {
        let directory = std::env::temp_dir().join(format!("lightbyte-console-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
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
}
