//! The last good topology, on disk, so that a proxy that starts again needs nobody.
//!
//! It is replaced durably before it is applied: what was acknowledged is there after a power cut.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use lightbyte_api::topology::{Sealed, Topology};
use sha2::{Digest as _, Sha256};

/// Largest topology that is taken, sealed. With the limits of its parts it can be no bigger in earnest.
pub(crate) const SEALED_BYTES_MAX: usize = 8 * 1024 * 1024;

const NAME: &str = "topology.json";
const NEW_NAME: &str = "topology.json.new";
const BEFORE_NAME: &str = "topology.json.before";
const DAMAGED_NAME: &str = "topology.json.damaged";

/// Why bytes are no topology.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("more than {SEALED_BYTES_MAX} bytes")]
    TooLarge,
    #[error("not a sealed topology: {0}")]
    Unreadable(#[source] serde_json::Error),
    #[error("its checksum is {found}, not {said}: the topology is not what was sent")]
    Checksum { found: String, said: String },
    #[error("not a topology: {0}")]
    NoTopology(#[source] serde_json::Error),
}

impl Refusal {
    /// Whether the bytes are not what somebody once sent. The rest is for another version of this code to read.
    pub(crate) const fn is_damage(&self) -> bool {
        !matches!(self, Refusal::NoTopology(_))
    }
}

/// A topology with the checksum that it came with.
#[derive(Debug)]
pub(crate) struct Unsealed {
    pub(crate) checksum: String,
    pub(crate) topology: Topology,
}

/// Reads a sealed topology and sees that it is what was sent.
pub(crate) fn unseal(bytes: &[u8]) -> Result<Unsealed, Refusal> {
    if bytes.len() > SEALED_BYTES_MAX {
        return Err(Refusal::TooLarge);
    }
    let sealed: Sealed = serde_json::from_slice(bytes).map_err(Refusal::Unreadable)?;
    let found = checksum(sealed.topology.get());
    if found != sealed.checksum {
        // What was said is a stranger's text; of a checksum 64 digits are enough to see.
        let said = sealed.checksum.chars().take(64).collect();
        return Err(Refusal::Checksum { found, said });
    }
    let topology = serde_json::from_str(sealed.topology.get()).map_err(Refusal::NoTopology)?;
    Ok(Unsealed { checksum: found, topology })
}

/// SHA-256 in lower-case hexadecimal digits.
pub(crate) fn checksum(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The directory that holds it.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    directory: PathBuf,
}

impl Disk {
    /// # Errors
    /// If the directory cannot be made. Only its owner may look into it: keys lie there.
    pub(crate) fn open(directory: &Path) -> io::Result<Disk> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        Ok(Disk { directory: directory.to_owned() })
    }

    /// What lies there, if anything does. What is damaged is put aside for people to look at, the latest such only. What is
    /// whole and not understood stays: an older version of this code, or a newer one, may understand it.
    ///
    /// # Errors
    /// If the file cannot be read. That it is of no use is no error: the second value says how.
    pub(crate) fn load(&self) -> io::Result<(Option<Unsealed>, Option<Refusal>)> {
        let file = match File::open(self.directory.join(NAME)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((None, None)),
            file => file?,
        };
        let mut bytes = Vec::new();
        file.take(SEALED_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
        match unseal(&bytes) {
            Ok(unsealed) => Ok((Some(unsealed), None)),
            Err(refusal) => {
                if refusal.is_damage() {
                    self.put_aside()?;
                }
                Ok((None, Some(refusal)))
            }
        }
    }

    fn put_aside(&self) -> io::Result<()> {
        fs::rename(self.directory.join(NAME), self.directory.join(DAMAGED_NAME))
    }

    /// Replaces it. When this returns without an error, the new one is there whatever happens; with one, the former is.
    pub(crate) fn save(&self, sealed: &[u8]) -> io::Result<()> {
        let new = self.directory.join(NEW_NAME);
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(sealed)?;
        file.sync_all()?;
        self.replace(&new, || File::open(&self.directory)?.sync_all())
    }

    /// Puts the new file in the place. If that cannot be made durable it is undone: a topology that was refused must not
    /// come back with the next start.
    fn replace(&self, new: &Path, sync: impl Fn() -> io::Result<()>) -> io::Result<()> {
        let (name, before) = (self.directory.join(NAME), self.directory.join(BEFORE_NAME));
        let absent = |result: io::Result<()>| match result {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            result => result.map(|()| true),
        };
        absent(fs::remove_file(&before))?;
        let had_one = absent(fs::hard_link(&name, &before))?;
        fs::rename(new, &name)?;
        let synced = sync();
        if synced.is_ok() {
            // What is left of it is overwritten the next time.
            let _ = fs::remove_file(&before);
        } else if had_one {
            fs::rename(&before, &name)?;
        } else {
            fs::remove_file(&name)?;
        }
        synced
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(topology: &str) -> String {
        format!(r#"{{"checksum":"{}","topology":{topology}}}"#, checksum(topology))
    }

    #[test]
    fn what_is_saved_is_loaded_and_what_is_damaged_is_put_aside() {
        let directory = std::env::temp_dir().join(format!("lightbyte-proxy-disk-{}", std::process::id()));
        let disk = Disk::open(&directory).expect("opens");
        assert!(matches!(disk.load(), Ok((None, None))));
        disk.save(sealed(r#"{"format":1,"revision":9}"#).as_bytes()).expect("saves");
        let loaded = disk.load().expect("reads").0.expect("is there");
        assert_eq!(loaded.topology.revision, 9);
        disk.save(sealed(r#"{"format":1,"revision":9}"#).replace('9', "8").as_bytes()).expect("saves");
        let (none, refusal) = disk.load().expect("reads");
        assert!(none.is_none() && matches!(refusal, Some(Refusal::Checksum { .. })), "{refusal:?}");
        assert!(directory.join(DAMAGED_NAME).is_file());
        assert!(matches!(disk.load(), Ok((None, None))));
        fs::remove_dir_all(&directory).expect("is ours");
    }

    #[test]
    fn what_could_not_be_made_durable_does_not_come_back() {
        let directory = std::env::temp_dir().join(format!("lightbyte-proxy-sync-{}", std::process::id()));
        let disk = Disk::open(&directory).expect("opens");
        let text = |revision: u64| sealed(&format!(r#"{{"format":1,"revision":{revision}}}"#));
        let fail = |revision| {
            let new = directory.join(NEW_NAME);
            fs::write(&new, text(revision)).expect("writes");
            disk.replace(&new, || Err(io::Error::other("no disk"))).expect_err("is refused");
        };
        let revision = || disk.load().expect("reads").0.map(|unsealed| unsealed.topology.revision);
        fail(1);
        assert_eq!(revision(), None);
        disk.save(text(2).as_bytes()).expect("saves");
        fail(3);
        assert_eq!(revision(), Some(2));
        fs::remove_dir_all(&directory).expect("is ours");
    }

    #[test]
    fn bytes_that_are_no_topology_are_refused() {
        let table = [
            ("", "not a sealed topology"),
            ("{}", "not a sealed topology"),
            (r#"{"checksum":"","topology":{}}"#, "its checksum is"),
            (&sealed("{}"), "not a topology"),
            (&sealed("[]"), "not a topology"),
            (&" ".repeat(SEALED_BYTES_MAX + 1), "more than 8388608 bytes"),
        ];
        for (bytes, expected) in table {
            let said = unseal(bytes.as_bytes()).expect_err(expected).to_string();
            assert!(said.starts_with(expected), "{said}");
        }
    }
}
