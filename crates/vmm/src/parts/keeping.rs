//! What is kept of the parts, what is in quarantine, and the deeds between them. Which deed is done is decided elsewhere
//! (`lightbyte_plan::agent::parts`).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use lightbyte_api::Timestamp;

use super::{CHECKED, Fault, INCOMING, Note, Parts, QUARANTINE, UNNEEDED, is_digest, shift};
use crate::driver::DriverError;
use crate::files::{system, write_durably};

/// The extension of a note beside what is in quarantine.
const NOTE: &str = "note";

/// One file of the store, as somebody finds it who tidies up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// A part, and since when nothing needs it if that was noted.
    Whole {
        /// Its checksum.
        sha256: String,
        /// Since when it is not needed.
        unneeded_since: Option<Timestamp>,
    },
    /// A part that has not come whole, and when it grew last.
    Incoming {
        /// Its checksum.
        sha256: String,
        /// When it grew last.
        since: Timestamp,
    },
    /// A part in quarantine.
    Quarantined {
        /// Its checksum.
        sha256: String,
        /// Why, and since when.
        note: Note,
    },
}

impl Parts {
    /// The checksums of all parts that are there, in order.
    ///
    /// # Errors
    /// When the list cannot be made whole.
    pub fn names(&self) -> Result<Vec<String>, DriverError> {
        self.list("")
    }

    /// Everything that is kept, in whatever state.
    ///
    /// # Errors
    /// When the list cannot be made whole.
    pub fn kept(&self) -> Result<Vec<Kept>, DriverError> {
        let mut kept = Vec::new();
        for sha256 in self.list("")? {
            let unneeded_since = self.modified(UNNEEDED, &sha256)?;
            kept.push(Kept::Whole { sha256, unneeded_since });
        }
        for sha256 in self.list(INCOMING)? {
            if let Some(since) = self.modified(INCOMING, &sha256)? {
                kept.push(Kept::Incoming { sha256, since });
            }
        }
        for sha256 in self.list(QUARANTINE)? {
            // Without a note it counts from now on.
            let unknown = || Note { since: Timestamp::now(), fault: Fault::Unneeded };
            let note = match self.note(&sha256)? {
                Some(note) => note,
                None => {
                    let note = unknown();
                    self.write_note(&sha256, &note)?;
                    note
                }
            };
            kept.push(Kept::Quarantined { sha256, note });
        }
        Ok(kept)
    }

    /// Notes that nothing needs a part, or that something does again.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn note_unneeded(&self, sha256: &str, unneeded: bool) -> Result<(), DriverError> {
        let path = self.directory.join(UNNEEDED).join(sha256);
        match unneeded {
            true => write_durably(&path, "").map_err(system(format!("write {}", path.display()))),
            false => remove(&path),
        }
    }

    /// Puts a part into quarantine, if it is there.
    ///
    /// # Errors
    /// When it cannot be moved.
    pub fn put_away(&self, sha256: &str, fault: Fault) -> Result<(), DriverError> {
        let path = self.path(sha256);
        if !path.try_exists().map_err(system(format!("look at {}", path.display())))? {
            return Ok(());
        }
        // The note first: what is in quarantine without one counts from when somebody looks.
        self.write_note(sha256, &Note { since: Timestamp::now(), fault })?;
        shift(&path, &self.quarantined(sha256))?;
        remove(&self.directory.join(CHECKED).join(sha256))?;
        remove(&self.directory.join(UNNEEDED).join(sha256))
    }

    /// Takes a part out of quarantine that was put there because nothing needed it, and says whether there was one. Its
    /// checksum is looked at before it is used, as that of any other.
    ///
    /// # Errors
    /// When it cannot be moved.
    pub fn take_back(&self, sha256: &str) -> Result<bool, DriverError> {
        let is_good = self.note(sha256)?.is_some_and(|note| note.fault == Fault::Unneeded);
        let (path, target) = (self.quarantined(sha256), self.path(sha256));
        let is_there =
            |path: &PathBuf| path.try_exists().map_err(system(format!("look at {}", path.display())));
        if !is_good || !is_there(&path)? || is_there(&target)? {
            return Ok(false);
        }
        shift(&path, &target)?;
        remove(&path.with_extension(NOTE))?;
        Ok(true)
    }

    /// Removes what is in quarantine of a part.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove_quarantined(&self, sha256: &str) -> Result<(), DriverError> {
        let path = self.quarantined(sha256);
        remove(&path)?;
        remove(&path.with_extension(NOTE))
    }

    /// Removes what has come of a part that nobody receives any more.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove_incoming(&self, sha256: &str) -> Result<(), DriverError> {
        let path = self.incoming(sha256);
        let Ok(file) = fs::File::open(&path) else { return Ok(()) };
        // Somebody who receives it holds it.
        if rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(());
        }
        remove(&path)
    }

    /// Why a part is in quarantine, if it is.
    ///
    /// # Errors
    /// When that cannot be read.
    pub fn note(&self, sha256: &str) -> Result<Option<Note>, DriverError> {
        let path = self.quarantined(sha256).with_extension(NOTE);
        match fs::read(&path) {
            // One that a crash has cut is none.
            Ok(text) => Ok(serde_json::from_slice(&text).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(system(format!("read {}", path.display()))(error)),
        }
    }

    fn write_note(&self, sha256: &str, note: &Note) -> Result<(), DriverError> {
        let path = self.quarantined(sha256).with_extension(NOTE);
        let text = serde_json::to_string(note);
        text.map_err(io::Error::from)
            .and_then(|text| write_durably(&path, &text))
            .map_err(system(format!("write {}", path.display())))
    }

    fn quarantined(&self, sha256: &str) -> PathBuf {
        self.directory.join(QUARANTINE).join(sha256)
    }

    fn list(&self, below: &str) -> Result<Vec<String>, DriverError> {
        let directory = self.directory.join(below);
        let failed = || format!("list {}", directory.display());
        let mut names = Vec::new();
        for entry in fs::read_dir(&directory).map_err(system(failed()))? {
            let name = entry.map_err(system(failed()))?.file_name().into_string();
            names.extend(name.ok().filter(|name| is_digest(name)));
        }
        names.sort_unstable();
        Ok(names)
    }

    fn modified(&self, below: &str, sha256: &str) -> Result<Option<Timestamp>, DriverError> {
        let path = self.directory.join(below).join(sha256);
        match fs::metadata(&path).and_then(|found| found.modified()) {
            Ok(time) => Ok(Some(timestamp(time))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(system(format!("look at {}", path.display()))(error)),
        }
    }
}

fn timestamp(time: SystemTime) -> Timestamp {
    Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH)
}

fn remove(path: &Path) -> Result<(), DriverError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(system(format!("remove {}", path.display()))(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Place, part};
    use super::*;

    #[test]
    fn what_nothing_needs_is_put_away_taken_back_or_removed() {
        let place = Place::new("keeping");
        let parts = place.parts();
        let part = part(b"kernel");
        fs::write(parts.path(&part.sha256), "kernel").unwrap();
        parts.note_unneeded(&part.sha256, true).unwrap();
        assert!(matches!(parts.kept().unwrap().as_slice(), [Kept::Whole { unneeded_since: Some(_), .. }]));
        parts.put_away(&part.sha256, Fault::Unneeded).unwrap();
        let kept = parts.kept().unwrap();
        assert!(matches!(&kept[..], [Kept::Quarantined { note, .. }] if note.fault == Fault::Unneeded));
        assert!(!parts.has(&part).unwrap());
        assert!(parts.take_back(&part.sha256).unwrap());
        assert!(!parts.take_back(&part.sha256).unwrap());
        assert!(matches!(parts.kept().unwrap().as_slice(), [Kept::Whole { unneeded_since: None, .. }]));
        // What is damaged stays where it is, and goes with time.
        parts.put_away(&part.sha256, Fault::Damaged("is short".to_owned())).unwrap();
        assert!(!parts.take_back(&part.sha256).unwrap());
        parts.remove_quarantined(&part.sha256).unwrap();
        assert!(parts.kept().unwrap().is_empty());
    }

    #[test]
    fn what_somebody_receives_is_not_removed() {
        let place = Place::new("receives");
        let parts = place.parts();
        let part = part(b"kernel");
        let mut incoming = parts.receive(&part).unwrap();
        incoming.take(b"ker").unwrap();
        parts.remove_incoming(&part.sha256).unwrap();
        assert_eq!(parts.received(&part.sha256), 3);
        drop(incoming);
        parts.remove_incoming(&part.sha256).unwrap();
        assert!(parts.kept().unwrap().is_empty());
    }
}
