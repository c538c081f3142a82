//! The way to a guest's console. Firecracker's serial port is its standard input and output. The output is the console's
//! file, opened in append mode: it is whole whether an agent lives or not, and is cut as QEMU's is. The input is a named
//! pipe, which Firecracker itself holds open for both directions, so that it never ends. Whoever opens the console gets
//! a stream of what the file grows by, and what it writes goes into the pipe. Several may do so at a time.
//!
//! A terminal (pty) was the alternative: it wants a process that reads it as long as the VM lives, or what the guest says
//! is lost.

use std::fs::File;
use std::io::{self, ErrorKind, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify;
use rustix::fs::{CWD, FileType, Mode, OFlags};

use crate::console;
use crate::driver::ConsoleFrom;
use crate::process::Held;

/// How much of what is typed is on its way at once. Nobody types faster than a serial port takes it.
const TYPED_BYTES_MAX: usize = 4096;

/// Stack of a console's thread.
const STACK_BYTES: usize = 256 * 1024;

/// Makes the pipe of what is typed, and gives its end for Firecracker.
///
/// # Errors
/// If it cannot be made.
pub(super) fn make_input(typed: &Path) -> io::Result<OwnedFd> {
    rustix::fs::mknodat(CWD, typed, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
    // Both directions (fifo(7)): it does not wait for a writer, and does not end when one goes.
    Ok(File::options().read(true).write(true).open(typed)?.into())
}

/// Opens the console's file for Firecracker.
///
/// # Errors
/// If the disk is full, or the directory cannot be made.
pub(super) fn make_output(console: &Path) -> io::Result<OwnedFd> {
    if let Some(directory) = console.parent() {
        std::fs::create_dir_all(directory)?;
    }
    Ok(File::options().append(true).create(true).open(console)?.into())
}

/// A stream to the console of a process, until either ends.
///
/// # Errors
/// If a part of it cannot be opened.
pub(super) fn open(console: &Path, typed: &Path, process: Held) -> io::Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let nonblocking = i32::try_from(OFlags::NONBLOCK.bits()).map_err(io::Error::other)?;
    let pipe = File::options().write(true).custom_flags(nonblocking).open(typed)?;
    let grown = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    inotify::add_watch(&grown, console, inotify::WatchFlags::MODIFY)?;
    // After the watch, so that nothing comes unseen between the two.
    let position = console::read(console, ConsoleFrom::Position(u64::MAX))?.next();
    let bridge =
        Bridge { reader: ours, pipe, grown: grown.into(), process, console: console.to_owned(), position };
    let thread = std::thread::Builder::new().name("vm-console".to_owned()).stack_size(STACK_BYTES);
    thread.spawn(move || {
        // However it ends, the stream breaks off.
        let _ = bridge.run();
    })?;
    Ok(theirs)
}

struct Bridge {
    reader: UnixStream,
    pipe: File,
    /// Has something to read when the console's file has changed.
    grown: File,
    process: Held,
    console: PathBuf,
    position: u64,
}

impl Bridge {
    fn run(mut self) -> io::Result<()> {
        let (mut said, mut typed) = (Vec::new(), Vec::new());
        let mut has_ended = false;
        loop {
            if said.is_empty() {
                let chunk = console::read(&self.console, ConsoleFrom::Position(self.position))?;
                self.position = chunk.next();
                said = chunk.bytes;
                // Seen to have ended before this look, so that it was the last.
                if said.is_empty() && has_ended {
                    return Ok(());
                }
            }
            has_ended = self.wait(!said.is_empty(), !typed.is_empty(), has_ended)?;
            if typed.is_empty() {
                typed = self.read_typed()?;
            }
            if has_ended || pass_on(&mut self.pipe, &mut typed).is_err() {
                // Nobody is there to read it.
                typed.clear();
            }
            pass_on(&mut self.reader, &mut said)?;
        }
    }

    /// What was typed meanwhile.
    ///
    /// # Errors
    /// Also at the end: who has closed the stream reads nothing more.
    fn read_typed(&mut self) -> io::Result<Vec<u8>> {
        let mut buffer = [0; TYPED_BYTES_MAX];
        match self.reader.read(&mut buffer) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(read) => Ok(buffer[..read].to_vec()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Waits until something can be done, and says whether the process has ended.
    fn wait(&mut self, has_said: bool, has_typed: bool, has_ended: bool) -> io::Result<bool> {
        let mut wanted = PollFlags::empty();
        wanted.set(PollFlags::OUT, has_said);
        wanted.set(PollFlags::IN, !has_typed);
        let mut descriptors = vec![PollFd::new(&self.reader, wanted)];
        if !has_ended {
            descriptors.push(PollFd::new(self.process.pidfd(), PollFlags::IN));
            descriptors.push(PollFd::new(&self.grown, PollFlags::IN));
            if has_typed {
                descriptors.push(PollFd::new(&self.pipe, PollFlags::OUT));
            }
        }
        match poll(&mut descriptors, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ends_now = descriptors.get(1).is_some_and(|process| !process.revents().is_empty());
        drop(descriptors);
        // How often it has grown does not matter.
        while self.grown.read(&mut [0; 4096]).is_ok_and(|read| read > 0) {}
        Ok(has_ended || ends_now)
    }
}

/// Writes as much as is taken now.
fn pass_on(to: &mut impl io::Write, bytes: &mut Vec<u8>) -> io::Result<()> {
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(written) => drop(bytes.drain(..written)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Identity;
    use std::io::Write as _;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    #[test]
    fn a_console_is_followed_typed_at_and_ends_with_its_process() {
        let place = std::env::temp_dir().join(format!("lightbyte-fc-console-{}", std::process::id()));
        std::fs::create_dir_all(&place).expect("make a directory");
        let (console, typed) = (place.join("vm/console.log"), place.join("typed"));
        let input = make_input(&typed).expect("a pipe");
        let output = make_output(&console).expect("a file");
        std::fs::write(&console, "before\n").expect("write");
        // What a guest does: says what it reads.
        let mut child =
            Command::new("cat").stdin(input).stdout(output).stderr(Stdio::null()).spawn().expect("start cat");
        let hold = || i32::try_from(child.id()).ok().and_then(Identity::of).and_then(|found| found.open());
        let mut streams = [(); 2].map(|()| {
            let stream = open(&console, &typed, hold().expect("it runs")).expect("a console");
            stream.set_read_timeout(Some(Duration::from_secs(30))).expect("set a time-out");
            stream
        });
        streams[0].write_all(b"one\n").expect("type");
        for stream in &mut streams {
            let mut said = [0; 4];
            stream.read_exact(&mut said).expect("what was said");
            assert_eq!(&said, b"one\n");
        }
        let [gone, mut stays] = streams;
        drop(gone);
        // More than any of the buffers on the way holds.
        let many = vec![b'x'; 300_000];
        let mut writer = stays.try_clone().expect("a second handle");
        let (sent, typing) = (many.clone(), std::thread::spawn(move || writer.write_all(&many)));
        let mut said = vec![0; sent.len()];
        stays.read_exact(&mut said).expect("all of it");
        typing.join().expect("a thread").expect("type");
        assert!(said == sent, "what was said differs");
        child.kill().and_then(|()| child.wait()).expect("end it");
        assert_eq!(stays.read(&mut [0; 8]).expect("an end"), 0);
        std::fs::remove_dir_all(&place).expect("remove it");
    }
}
