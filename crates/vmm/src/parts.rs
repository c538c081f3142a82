//! The image parts of one host, by content: a kernel, an initramfs or a root disk that VMs are made from.
//!
//! ```text
//! PARTS/<sha256>                 a part, there whole or not at all
//! PARTS/checked/<sha256>         which file it was whose checksum was right, and in which boot of the host
//! PARTS/incoming/<sha256>        what has come of a part so far
//! PARTS/unneeded/<sha256>        since when nothing needs it
//! PARTS/quarantine/<sha256>      what is not used any more; beside it a note of why, and since when
//! ```
//!
//! **Nothing is used, and nothing is sent, whose checksum was not seen to be right**: once in each boot of the host, and again
//! when the file is another one than it was then. What is damaged goes to quarantine, and so does not come into use again.
//! A server and a worker of one host may share a directory: what appears does so by a rename, and who receives a part
//! holds a lock on it.

mod incoming;
mod keeping;

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use lightbyte_api::kinds::image::Part;
use lightbyte_api::{ByteSize, Timestamp};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::driver::{self, DriverError};
use crate::files::{rename_durably, short, system, write_durably};

pub use incoming::{Incoming, PartError};
pub use keeping::Kept;

/// Kept free on the file system of the parts when one is received: records, consoles and the disks of VMs that run are written
/// there too, and must not fail because an image came.
pub const DISK_RESERVE: ByteSize = ByteSize::from_mib(512);
/// How much is read at once to be hashed.
const READ_BYTES: usize = 1 << 20;
/// Digits of a SHA-256.
const DIGITS: usize = 64;

/// The directories below that of the parts.
const CHECKED: &str = "checked";
const INCOMING: &str = "incoming";
const UNNEEDED: &str = "unneeded";
const QUARANTINE: &str = "quarantine";
/// Changes with every boot of the kernel (random(4)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The image parts of one host.
#[derive(Clone, Debug)]
pub struct Parts {
    directory: PathBuf,
    reserve: ByteSize,
    boot_id: String,
    /// One check at a time: whoever wants the same part meanwhile finds it checked.
    checking: Arc<Mutex<()>>,
}

/// What tells one state of a file from another, and the boot in which its checksum was right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Checked {
    boot_id: String,
    size: u64,
    changed_ns: i128,
    inode: u64,
    device: u64,
}

/// Why a part is in quarantine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// Nothing needs it.
    Unneeded,
    /// It is not what it was: what was found.
    Damaged(String),
}

/// What stands beside a part in quarantine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// Since when.
    pub since: Timestamp,
    /// Why.
    pub fault: Fault,
}

impl Parts {
    /// The parts in `directory`, which is made.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(directory: &Path) -> Result<Parts, DriverError> {
        for below in ["", CHECKED, INCOMING, UNNEEDED, QUARANTINE] {
            let path = directory.join(below);
            fs::create_dir_all(&path).map_err(system(format!("create {}", path.display())))?;
        }
        // Without it every start of a machine checks anew, which is slow and safe.
        let boot_id = fs::read_to_string(BOOT_ID).unwrap_or_default().trim().to_owned();
        Ok(Parts {
            directory: directory.to_owned(),
            reserve: DISK_RESERVE,
            boot_id,
            checking: Arc::default(),
        })
    }

    /// The same parts, with another reserve.
    #[must_use]
    pub fn with_reserve(self, reserve: ByteSize) -> Parts {
        Parts { reserve, ..self }
    }

    /// Where the part is, or would be.
    #[must_use]
    pub fn path(&self, sha256: &str) -> PathBuf {
        self.directory.join(sha256)
    }

    /// Whether the part is there, with its right size. Its content is not looked at.
    ///
    /// # Errors
    /// When it cannot be found out.
    pub fn has(&self, part: &Part) -> Result<bool, DriverError> {
        Ok(self.look(part)?.is_some_and(|found| found.len() == part.size.bytes()))
    }

    fn look(&self, part: &Part) -> Result<Option<fs::Metadata>, DriverError> {
        let path = self.path(&part.sha256);
        match fs::metadata(&path) {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(system(format!("look at {}", path.display()))(error)),
        }
    }

    /// The file of a part whose checksum is right. One that is damaged is put into quarantine.
    ///
    /// # Errors
    /// [`DriverError::Refused`] when this host does not have it, or had it damaged.
    pub fn checked(&self, part: &Part) -> Result<PathBuf, DriverError> {
        let name = short(part);
        let Some(found) = self.look(part)? else {
            return Err(DriverError::Refused(format!("image part {name} is not on this host")));
        };
        let path = self.path(&part.sha256);
        if found.len() == part.size.bytes() && self.is_checked(&part.sha256, &found) {
            return Ok(path);
        }
        // A lock that a panic left says nothing of files.
        let _turn = self.checking.lock().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have checked it, or found it damaged, meanwhile.
        let Some(found) = self.look(part)? else {
            return Err(DriverError::Refused(format!("image part {name} is not on this host")));
        };
        if self.is_checked(&part.sha256, &found) && found.len() == part.size.bytes() {
            return Ok(path);
        }
        match self.fault(part, &path, &found)? {
            None => {
                self.note_checked(&part.sha256, &found)?;
                Ok(path)
            }
            Some(fault) => {
                let told = format!(
                    "image part {name} is damaged on this host and was put into quarantine: it {fault}"
                );
                self.put_away(&part.sha256, Fault::Damaged(fault))?;
                Err(DriverError::Refused(told))
            }
        }
    }

    /// A part for whoever asks for it by its checksum alone; nothing when it is not here, or was damaged.
    ///
    /// # Errors
    /// When it cannot be found out.
    pub fn open(&self, sha256: &str) -> Result<Option<File>, DriverError> {
        let path = self.path(sha256);
        let size = match fs::metadata(&path) {
            Ok(found) => ByteSize::from_bytes(found.len()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(system(format!("look at {}", path.display()))(error)),
        };
        let file = File::open(&path).map_err(system(format!("open {}", path.display())))?;
        match self.checked(&Part { sha256: sha256.to_owned(), size }) {
            Ok(_) => Ok(Some(file)),
            // It is in quarantine, with a note of why; whoever asks has others to ask.
            Err(DriverError::Refused(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What is wrong with the file, if anything is.
    fn fault(&self, part: &Part, path: &Path, found: &fs::Metadata) -> Result<Option<String>, DriverError> {
        let (length, size) = (found.len(), part.size.bytes());
        if length != size {
            return Ok(Some(format!("has {length} bytes instead of {size}")));
        }
        let digest = match digest(path) {
            Ok(digest) => digest,
            // A sector that cannot be read is damage, whatever else is right.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
                return Ok(Some("cannot be read any more".to_owned()));
            }
            Err(error) => return Err(system(format!("read {}", path.display()))(error)),
        };
        Ok((digest != part.sha256)
            .then(|| format!("has the checksum {}", digest.get(..12).unwrap_or(&digest))))
    }

    fn is_checked(&self, sha256: &str, found: &fs::Metadata) -> bool {
        let noted = fs::read(self.directory.join(CHECKED).join(sha256));
        // A note that cannot be read is none: then the part is checked.
        let noted = noted.ok().and_then(|text| serde_json::from_slice::<Checked>(&text).ok());
        !self.boot_id.is_empty() && noted.is_some_and(|noted| noted == self.identity(found))
    }

    fn identity(&self, found: &fs::Metadata) -> Checked {
        Checked {
            boot_id: self.boot_id.clone(),
            size: found.len(),
            changed_ns: i128::from(found.mtime()) * 1_000_000_000 + i128::from(found.mtime_nsec()),
            inode: found.ino(),
            device: found.dev(),
        }
    }

    fn note_checked(&self, sha256: &str, found: &fs::Metadata) -> Result<(), DriverError> {
        let path = self.directory.join(CHECKED).join(sha256);
        let text = serde_json::to_string(&self.identity(found));
        text.map_err(io::Error::from)
            .and_then(|text| write_durably(&path, &text))
            .map_err(system(format!("write {}", path.display())))
    }
}

impl driver::Parts for Parts {
    fn has(&self, part: &Part) -> Result<bool, DriverError> {
        Parts::has(self, part)
    }
}

/// Whether it can be the name of a part: nothing else becomes a path.
#[must_use]
pub fn is_digest(text: &str) -> bool {
    text.len() == DIGITS && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// SHA-256 (FIPS 180-4) of a file, in hexadecimal.
fn digest(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; READ_BYTES]);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(bytes) => hash.update(&buffer[..bytes]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(hex(&hash.finalize()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Moves a part within its store, durably.
fn shift(from: &Path, to: &Path) -> Result<(), DriverError> {
    rename_durably(from, to).map_err(system(format!("move {} to {}", from.display(), to.display())))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A place for parts that goes with its test.
    pub(crate) struct Place(pub(crate) PathBuf);

    impl Place {
        pub(crate) fn new(name: &str) -> Place {
            let path = std::env::temp_dir().join(format!("lightbyte-parts-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            Place(path)
        }

        pub(crate) fn parts(&self) -> Parts {
            Parts::new(&self.0).unwrap().with_reserve(ByteSize::from_bytes(0))
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    pub(crate) fn part(content: &[u8]) -> Part {
        let sha256 = hex(&Sha256::digest(content));
        Part { sha256, size: ByteSize::from_bytes(content.len() as u64) }
    }

    #[test]
    fn what_is_damaged_is_found_before_it_is_used_and_is_not_used_again() {
        let check = |name: &str, damage: &dyn Fn(&Path), told: &str| {
            let place = Place::new(name);
            let parts = place.parts();
            let (content, part) = (vec![7; 100_000], part(&[7; 100_000]));
            assert!(parts.checked(&part).unwrap_err().to_string().ends_with("is not on this host"));
            let path = parts.path(&part.sha256);
            fs::write(&path, &content).unwrap();
            assert_eq!(parts.checked(&part).unwrap(), path);
            damage(&path);
            let refused = parts.checked(&part).unwrap_err().to_string();
            assert!(refused.contains("put into quarantine") && refused.contains(told), "{refused}");
            assert!(!parts.has(&part).unwrap() && !path.exists());
            assert!(matches!(parts.note(&part.sha256).unwrap().unwrap().fault, Fault::Damaged(_)));
            // Good again, it is used again.
            fs::write(&path, &content).unwrap();
            assert_eq!(parts.checked(&part).unwrap(), path);
        };
        check("cut", &|path| fs::write(path, vec![7; 99_999]).unwrap(), "has 99999 bytes instead of 100000");
        check("longer", &|path| fs::write(path, vec![7; 100_001]).unwrap(), "has 100001 bytes");
        let mut flipped = vec![7; 100_000];
        flipped[50_000] ^= 1;
        check("flipped", &|path| fs::write(path, &flipped).unwrap(), "has the checksum");
    }

    #[test]
    fn a_checksum_is_looked_at_once_in_a_boot_and_again_when_the_file_is_another() {
        let place = Place::new("once");
        let parts = place.parts();
        let part = part(b"kernel");
        let path = parts.path(&part.sha256);
        fs::write(&path, "kernel").unwrap();
        parts.checked(&part).unwrap();
        let found = fs::metadata(&path).unwrap();
        assert!(parts.is_checked(&part.sha256, &found));
        // The rot that no time tells of is found in the next boot of the host.
        fs::write(&path, "kernal").unwrap();
        File::options().write(true).open(&path).unwrap().set_modified(found.modified().unwrap()).unwrap();
        assert!(parts.checked(&part).is_ok(), "nothing tells of it in this boot");
        let rebooted = Parts { boot_id: "another".to_owned(), ..parts };
        assert!(rebooted.checked(&part).is_err());
    }
}
