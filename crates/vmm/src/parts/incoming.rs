//! A part on its way: it grows under a name of its own, goes on where it was cut off, and appears when its checksum is right.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::PathBuf;

use lightbyte_api::ByteSize;
use lightbyte_api::kinds::image::Part;
use rustix::fs::{FlockOperation, flock, statvfs};

use super::{Fault, INCOMING, Parts, digest, shift};
use crate::driver::DriverError;
use crate::files::short;

/// A run of zeros so long is not written: disks are mostly holes, and stay so.
const HOLE_BYTES: usize = 64 << 10;

/// Why a part does not come.
#[derive(Debug, thiserror::Error)]
pub enum PartError {
    /// The file system is too full.
    #[error(
        "no room for image part {part}: its {size} do not fit into {directory} beside the {reserve} that are kept free for \
         what VMs write"
    )]
    NoRoom {
        /// The part.
        part: String,
        /// Its size. How much is free is not told: it changes all the time, and this text may be stored.
        size: ByteSize,
        /// Where.
        directory: String,
        /// What is kept free.
        reserve: ByteSize,
    },
    /// What came is something else. Nothing is left of it.
    #[error("what came for image part {part} has the checksum {found}")]
    Wrong {
        /// The part.
        part: String,
        /// The beginning of the checksum.
        found: String,
    },
    /// Somebody else receives it.
    #[error("image part {part} is being received already")]
    Busy {
        /// The part.
        part: String,
    },
    /// A call to the system failed.
    #[error("{context}")]
    System {
        /// What was tried, verb first.
        context: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl From<DriverError> for PartError {
    fn from(error: DriverError) -> PartError {
        match error {
            DriverError::System { context, source } => PartError::System { context, source },
            DriverError::Refused(reason) => {
                PartError::System { context: reason, source: io::ErrorKind::Other.into() }
            }
        }
    }
}

/// A part that is being received, by this process alone. When it is dropped, what has come stays, and the next one goes on.
#[derive(Debug)]
pub struct Incoming {
    parts: Parts,
    part: Part,
    file: File,
    received: u64,
}

impl Parts {
    /// Begins to receive a part, or goes on.
    ///
    /// # Errors
    /// [`PartError::Busy`] while another does, and [`PartError::NoRoom`] when it does not fit.
    pub fn receive(&self, part: &Part) -> Result<Incoming, PartError> {
        let path = self.incoming(&part.sha256);
        let failed = |source| PartError::System { context: format!("open {}", path.display()), source };
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(failed)?;
        let busy = || PartError::Busy { part: short(part).to_owned() };
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(busy()),
            Err(error) => return Err(failed(error.into())),
        }
        let found = file.metadata().map_err(failed)?;
        // Between the opening and the lock it may have become whole under its own name, or been given up.
        if fs::metadata(&path).map_or(0, |named| named.ino()) != found.ino() {
            return Err(busy());
        }
        let mut incoming = Incoming { parts: self.clone(), part: part.clone(), file, received: found.len() };
        if incoming.received > part.size.bytes() {
            incoming.begin_anew()?;
        }
        if let Err(told) = incoming.must_fit() {
            if incoming.received == 0 {
                incoming.give_up();
            }
            return Err(told);
        }
        Ok(incoming)
    }

    /// How much of a part has come; nothing when it is not on its way.
    #[must_use]
    pub fn received(&self, sha256: &str) -> u64 {
        fs::metadata(self.incoming(sha256)).map_or(0, |found| found.len())
    }

    pub(super) fn incoming(&self, sha256: &str) -> PathBuf {
        self.directory.join(INCOMING).join(sha256)
    }
}

impl Incoming {
    /// How much has come.
    #[must_use]
    pub const fn received(&self) -> u64 {
        self.received
    }

    /// Whether all has come.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.received >= self.part.size.bytes()
    }

    /// Takes what comes next. More than the part has is not taken.
    ///
    /// # Errors
    /// [`PartError::NoRoom`] on a full disk; then nothing is left of it, so that others can write.
    pub fn take(&mut self, bytes: &[u8]) -> Result<(), PartError> {
        let left = usize::try_from(self.part.size.bytes() - self.received).unwrap_or(usize::MAX);
        let bytes = &bytes[..bytes.len().min(left)];
        match self.write(bytes) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                let told = self.no_room();
                self.give_up();
                Err(told)
            }
            Err(source) => Err(self.failed("write", source)),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        for run in bytes.chunks(HOLE_BYTES) {
            if run.iter().any(|byte| *byte != 0) {
                self.file.write_all_at(run, self.received)?;
            } else {
                self.file.set_len(self.received + run.len() as u64)?;
            }
            self.received += run.len() as u64;
        }
        Ok(())
    }

    /// Forgets what has come.
    ///
    /// # Errors
    /// What the system says.
    pub fn begin_anew(&mut self) -> Result<(), PartError> {
        self.file.set_len(0).map_err(|source| self.failed("empty", source))?;
        self.received = 0;
        Ok(())
    }

    /// Makes a part that has come whole appear, durably, if it is what it should be.
    ///
    /// # Errors
    /// [`PartError::Wrong`] when it is something else; nothing of it is left then.
    pub fn finish(self) -> Result<(), PartError> {
        let path = self.parts.incoming(&self.part.sha256);
        self.file.sync_all().map_err(|source| self.failed("write", source))?;
        let found = digest(&path).map_err(|source| self.failed("read", source))?;
        if found != self.part.sha256 {
            self.give_up();
            let found = found.get(..12).unwrap_or(&found).to_owned();
            return Err(PartError::Wrong { part: short(&self.part).to_owned(), found });
        }
        let target = self.parts.path(&self.part.sha256);
        // What stands there is not whole, or nobody would have fetched it.
        if let Ok(old) = fs::metadata(&target)
            && old.len() != self.part.size.bytes()
        {
            let fault = format!("has {} bytes instead of {}", old.len(), self.part.size.bytes());
            self.parts.put_away(&self.part.sha256, Fault::Damaged(fault))?;
        }
        shift(&path, &target)?;
        let whole = fs::metadata(&target).map_err(|source| self.failed("look at", source))?;
        Ok(self.parts.note_checked(&self.part.sha256, &whole)?)
    }

    /// Removes what has come.
    fn give_up(&self) {
        // What cannot be removed is found again, and its checksum tells.
        let _ = fs::remove_file(self.parts.incoming(&self.part.sha256));
    }

    /// What is still to come must fit beside the reserve.
    fn must_fit(&self) -> Result<(), PartError> {
        let left = self.part.size.bytes() - self.received;
        match self.free() {
            // A file system that says nothing of its room says so when it is full.
            Some(free) if free < left + self.parts.reserve.bytes() && left > 0 => Err(self.no_room()),
            _ => Ok(()),
        }
    }

    fn free(&self) -> Option<u64> {
        statvfs(&self.parts.directory).ok().map(|system| system.f_bavail * system.f_frsize)
    }

    fn no_room(&self) -> PartError {
        PartError::NoRoom {
            part: short(&self.part).to_owned(),
            size: self.part.size,
            directory: self.parts.directory.display().to_string(),
            reserve: self.parts.reserve,
        }
    }

    fn failed(&self, verb: &str, source: io::Error) -> PartError {
        let path = self.parts.incoming(&self.part.sha256);
        PartError::System { context: format!("{verb} {}", path.display()), source }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Place, part};
    use super::*;

    #[test]
    fn a_part_goes_on_where_it_was_cut_off_and_appears_whole() {
        let place = Place::new("resume");
        let parts = place.parts();
        let mut content = vec![0; 1 << 20];
        content[700_000] = 9;
        let part = part(&content);
        let mut incoming = parts.receive(&part).unwrap();
        incoming.take(&content[..300_000]).unwrap();
        assert!(matches!(parts.receive(&part), Err(PartError::Busy { .. })));
        drop(incoming);
        assert!(!parts.has(&part).unwrap());
        assert_eq!(parts.received(&part.sha256), 300_000);
        let mut incoming = parts.receive(&part).unwrap();
        assert_eq!(incoming.received(), 300_000);
        // More than there is of it is not taken.
        incoming.take(&content[300_000..]).unwrap();
        incoming.take(b"more").unwrap();
        assert!(incoming.is_complete());
        incoming.finish().unwrap();
        assert!(fs::read(parts.checked(&part).unwrap()).unwrap() == content);
        assert!(fs::metadata(parts.path(&part.sha256)).unwrap().blocks() * 512 < 400_000, "holes stay holes");
        assert_eq!(parts.received(&part.sha256), 0);
    }

    #[test]
    fn what_is_something_else_does_not_appear_and_leaves_nothing() {
        let place = Place::new("wrong");
        let parts = place.parts();
        let part = part(b"kernel");
        let mut incoming = parts.receive(&part).unwrap();
        incoming.take(b"kernal").unwrap();
        assert!(matches!(incoming.finish(), Err(PartError::Wrong { .. })));
        assert!(!parts.has(&part).unwrap());
        assert_eq!(parts.received(&part.sha256), 0);
    }

    #[test]
    fn a_part_that_does_not_fit_beside_the_reserve_is_not_begun() {
        let place = Place::new("room");
        let parts = place.parts().with_reserve(ByteSize::from_bytes(1 << 60));
        let told = parts.receive(&part(b"kernel")).unwrap_err();
        assert!(matches!(told, PartError::NoRoom { .. }));
        let text = told.to_string();
        assert!(text.starts_with("no room for image part ") && text.contains("are kept free"), "{text}");
        assert_eq!(parts.received(&part(b"kernel").sha256), 0);
    }
}
