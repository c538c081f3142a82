//! The last zone, on disk, so that a resolver that starts again knows its names with nobody there.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use lightbyte_api::zone::{Problem, Sealed, Zone};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

/// The largest file that is read. 100,000 records of ordinary names have 15 MB.
const SEALED_BYTES_MAX: u64 = 128 * 1024 * 1024;

const NAME: &str = "zone.json";
const NEW_NAME: &str = "zone.json.new";
const DAMAGED_NAME: &str = "zone.json.damaged";

/// Why a file is of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("it has more than {SEALED_BYTES_MAX} bytes")]
    TooLarge,
    #[error("it is no sealed zone")]
    Unreadable(#[source] serde_json::Error),
    #[error("its checksum is {found}, not the {said} that it names")]
    Checksum { found: String, said: String },
    #[error("it holds no zone that this version understands")]
    NoZone(#[source] serde_json::Error),
    #[error("its zone breaks a rule: {0}")]
    Bad(Problem),
    #[error("it is of another zone, `{0}`")]
    Another(String),
}

impl Refusal {
    /// Whether the bytes are not what was once written. The rest is for another version, or for another start, to read.
    pub(crate) const fn is_damage(&self) -> bool {
        matches!(self, Refusal::TooLarge | Refusal::Unreadable(_) | Refusal::Checksum { .. })
    }
}

/// The directory that holds it.
#[derive(Debug)]
pub(crate) struct Disk {
    directory: PathBuf,
}

impl Disk {
    /// # Errors
    /// If the directory cannot be made.
    pub(crate) fn open(directory: &Path) -> io::Result<Disk> {
        DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
        Ok(Disk { directory: directory.to_owned() })
    }

    /// The zone that lies there, if one does. What is damaged is put aside for people to look at, the latest such only; what
    /// is whole and of no use now stays.
    ///
    /// # Errors
    /// If the file cannot be read. That it is of no use is no error: the second value says how.
    pub(crate) fn load(&self, name: &str) -> io::Result<(Option<Zone>, Option<Refusal>)> {
        let path = self.directory.join(NAME);
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((None, None)),
            file => file?,
        };
        let mut bytes = Vec::new();
        file.take(SEALED_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        match unseal(&bytes, name) {
            Ok(zone) => Ok((Some(zone), None)),
            Err(refusal) => {
                if refusal.is_damage() {
                    fs::rename(&path, self.directory.join(DAMAGED_NAME))?;
                }
                Ok((None, Some(refusal)))
            }
        }
    }

    /// Replaces it. When this returns without an error, the new one is there whatever happens; with one, there is the
    /// former or the new one, and each is whole.
    pub(crate) fn save(&self, sealed: &Sealed) -> io::Result<()> {
        let text = serde_json::to_string(sealed)?;
        let new = self.directory.join(NEW_NAME);
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, self.directory.join(NAME))?;
        File::open(&self.directory)?.sync_all()
    }
}

/// Adds the checksum.
///
/// # Errors
/// None that a zone can cause: its keys are texts, and its numbers are finite.
pub(crate) fn seal(zone: &Zone) -> serde_json::Result<Sealed> {
    let text = serde_json::to_string(zone)?;
    Ok(Sealed { checksum: checksum(&text), zone: RawValue::from_string(text)? })
}

fn unseal(bytes: &[u8], name: &str) -> Result<Zone, Refusal> {
    if bytes.len() as u64 > SEALED_BYTES_MAX {
        return Err(Refusal::TooLarge);
    }
    let sealed: Sealed = serde_json::from_slice(bytes).map_err(Refusal::Unreadable)?;
    let found = checksum(sealed.zone.get());
    if found != sealed.checksum {
        // What it names may be anything; of a checksum 64 digits are enough to see.
        let said = sealed.checksum.chars().filter(char::is_ascii_hexdigit).take(64).collect();
        return Err(Refusal::Checksum { found, said });
    }
    let zone: Zone = serde_json::from_str(sealed.zone.get()).map_err(Refusal::NoZone)?;
    if let Some(problem) = zone.check().into_iter().next() {
        return Err(Refusal::Bad(problem));
    }
    if zone.name == name { Ok(zone) } else { Err(Refusal::Another(zone.name)) }
}

/// SHA-256 in lower-case hexadecimal digits.
fn checksum(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(name: &str) -> Disk {
        let directory = std::env::temp_dir().join(format!("lightbyte-dns-{name}-{}", std::process::id()));
        Disk::open(&directory).expect("opens")
    }

    #[test]
    fn what_is_saved_is_loaded_and_what_is_damaged_is_put_aside() {
        let disk = disk("disk");
        let file = disk.directory.join(NAME);
        assert!(matches!(disk.load("lab"), Ok((None, None))));
        disk.save(&seal(&Zone::new("lab", 9)).expect("seals")).expect("saves");
        assert_eq!(disk.load("lab").expect("reads").0, Some(Zone::new("lab", 9)));
        let (none, refusal) = disk.load("other").expect("reads");
        assert!(none.is_none() && matches!(refusal, Some(Refusal::Another(_))), "{refusal:?}");
        let text = fs::read_to_string(&file).expect("reads");
        fs::write(&file, text.replace("\"revision\":9", "\"revision\":8")).expect("writes");
        let (none, refusal) = disk.load("lab").expect("reads");
        assert!(none.is_none() && matches!(refusal, Some(Refusal::Checksum { .. })), "{refusal:?}");
        assert!(disk.directory.join(DAMAGED_NAME).is_file() && !file.exists());
        assert!(matches!(disk.load("lab"), Ok((None, None))));
        fs::remove_dir_all(&disk.directory).expect("is ours");
    }

    #[test]
    fn what_is_no_zone_is_refused() {
        let sealed = |zone: &str| format!(r#"{{"checksum":"{}","zone":{zone}}}"#, checksum(zone));
        let check = |text: &str, expect: &str, is_damage: bool| {
            let refusal = unseal(text.as_bytes(), "lab").expect_err(expect);
            assert_eq!((refusal.to_string().as_str(), refusal.is_damage()), (expect, is_damage));
        };
        let good = sealed(r#"{"format":1,"revision":1,"name":"lab"}"#);
        assert_eq!(unseal(good.as_bytes(), "lab").expect("a zone"), Zone::new("lab", 1));
        check("", "it is no sealed zone", true);
        check(&good[..good.len() - 1], "it is no sealed zone", true);
        check(&sealed("[]"), "it holds no zone that this version understands", false);
        let bad = "its zone breaks a rule: format: is 2, this reader knows 1 only";
        check(&sealed(r#"{"format":2,"revision":1,"name":"lab"}"#), bad, false);
        let other = "it is of another zone, `x`";
        check(&sealed(r#"{"format":1,"revision":1,"name":"x"}"#), other, false);
        let unknown = sealed(r#"{"format":1,"revision":1,"name":"lab","later":[1]}"#);
        assert!(unseal(unknown.as_bytes(), "lab").is_ok(), "what a newer server adds is no damage");
    }
}
