//! Records as files, and where disks are: the file system is the agent's database.
//!
//! ```text
//! STATE/vm/<uid>/record          what counts for this VM; its console is beside it
//! STATE/volume/<uid>/record      what counts for this volume
//! STATE/volume/<uid>/disk        the disk itself, there whole or not at all
//! STATE/volume/<uid>/arriving    what was fetched of a disk that another worker has, see `transfer.rs`
//! STATE/quarantine/<uid>         a disk that was moved to another worker, for a day
//! IMAGES/                        parts of images, see `parts`
//! ```

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lightbyte_api::assigned::{Assigned, AssignedDisk, HostObject};
use lightbyte_api::kinds::image::Part;
use lightbyte_api::{ByteSize, Kind, Uid, VolumeId};
use lightbyte_plan::agent::Saved;
use rustix::fs::{FlockOperation, flock, statvfs};
use sha2::{Digest as _, Sha256};

use crate::driver::{DriverError, Records};
use crate::ended;
use crate::parts::Parts;
use crate::peers::{NoPeers, Peers};

const RECORD: &str = "record";
/// Where it is kept what VMs said that are no more.
const ENDED: &str = "ended";
/// The extension of a record that is not whole yet.
const UNFINISHED: &str = "new";
/// The extension of a record that cannot be read.
const DAMAGED: &str = "damaged";
pub(crate) const DISK: &str = "disk";

/// What a disk is taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// To write: nobody else has it.
    Write,
    /// To read: others may, and nobody writes.
    Read,
}

impl Access {
    /// The access of a machine to one of its disks.
    #[must_use]
    pub const fn of(disk: &AssignedDisk) -> Access {
        if disk.read_only { Access::Read } else { Access::Write }
    }
}

/// Makes a directory whose disks, consoles, and what is to be done at a first boot, are nobody else's to read.
fn keep_from_others(directory: &Path) -> Result<(), DriverError> {
    fs::create_dir_all(directory).map_err(system(format!("create {}", directory.display())))?;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o700))
        .map_err(system(format!("keep {} from others", directory.display())))
}

/// Where a worker keeps what must outlive it.
#[derive(Clone)]
pub struct Files {
    state: PathBuf,
    parts: Parts,
    pub(crate) peers: Arc<dyn Peers>,
    /// What stays free of the disk.
    reserve: ByteSize,
}

impl std::fmt::Debug for Files {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Files").field("state", &self.state).finish_non_exhaustive()
    }
}

impl Files {
    /// Files below `state`, with the parts of images in `images`. What an agent has left that was killed in its first
    /// save of an object, or in its last deed for one, is taken away: nobody else would find it.
    ///
    /// # Errors
    /// When a directory cannot be made.
    pub fn new(state: &Path, images: &Path) -> Result<Files, DriverError> {
        for kind in [Kind::Vm, Kind::Volume] {
            let directory = state.join(kind.word());
            keep_from_others(&directory)?;
            set_damaged_aside(&directory);
            sweep(&directory);
        }
        let files = Files {
            state: state.to_owned(),
            parts: Parts::new(images)?,
            peers: Arc::new(NoPeers),
            reserve: ByteSize::default(),
        };
        for place in [files.ended(), files.quarantine()] {
            keep_from_others(&place)?;
        }
        ended::sweep(&files.ended());
        files.sweep_quarantine();
        Ok(files)
    }

    /// The same files, whose disks may be fetched from other workers.
    #[must_use]
    pub fn with_peers(self, peers: Arc<dyn Peers>) -> Files {
        Files { peers, ..self }
    }

    /// The same files, which leave so much of their file system free.
    #[must_use]
    pub fn with_reserve(self, reserve: ByteSize) -> Files {
        Files { reserve, ..self }
    }

    /// Whether anything may be added to disks.
    ///
    /// # Errors
    /// [`DriverError::Refused`] when less is free than stays free.
    pub(crate) fn check_reserve(&self) -> Result<(), DriverError> {
        let found = statvfs(&self.state).map_err(|error| {
            let context = format!("look at the file system of {}", self.state.display());
            DriverError::System { context, source: error.into() }
        })?;
        let free = ByteSize::from_mib(found.f_bavail.saturating_mul(found.f_frsize) >> 20);
        if free < self.reserve {
            let (state, reserve) = (self.state.display(), self.reserve);
            let rule = format!("only {free} are free on the file system of {state}, and {reserve} stay free");
            return Err(DriverError::Refused(format!("{rule}; delete volumes or snapshots, or move them")));
        }
        Ok(())
    }

    /// Where it is kept what VMs said that are no more.
    pub(crate) fn ended(&self) -> PathBuf {
        self.state.join(ENDED)
    }

    pub(crate) fn state(&self) -> &Path {
        &self.state
    }

    /// The directory of one object.
    #[must_use]
    pub fn directory(&self, object: HostObject) -> PathBuf {
        self.state.join(object.kind.word()).join(object.uid.to_string())
    }

    /// The file of one volume.
    #[must_use]
    pub fn disk(&self, volume: VolumeId) -> PathBuf {
        self.directory(of_volume(volume)).join(DISK)
    }

    /// The parts of images on this host.
    #[must_use]
    pub const fn parts(&self) -> &Parts {
        &self.parts
    }

    /// The file of one part of an image, whose checksum is right.
    ///
    /// # Errors
    /// [`DriverError::Refused`] when this host does not have it, or had it damaged.
    pub fn part(&self, part: &Part) -> Result<PathBuf, DriverError> {
        self.parts.checked(part)
    }

    /// Takes the disk for one machine process, whichever program that is: it is held as long as the descriptor is open
    /// anywhere, and so is to be handed over. Disks that are held are not removed, and not taken twice unless all who take
    /// it only read.
    ///
    /// # Errors
    /// [`DriverError::Refused`] when the disk is not there, or held.
    pub fn hold(&self, volume: VolumeId, access: Access) -> Result<OwnedFd, DriverError> {
        self.take(volume, access)?.ok_or_else(|| DriverError::Refused(format!("disk {volume} is not there")))
    }

    /// Takes all disks of one machine, each for what the machine may do with it.
    ///
    /// # Errors
    /// See [`Files::hold`]; then none is held.
    pub fn hold_all(&self, disks: &[AssignedDisk]) -> Result<Vec<OwnedFd>, DriverError> {
        disks.iter().map(|disk| self.hold(disk.volume, Access::of(disk))).collect()
    }

    /// The disk with its lock; nothing if it is not there.
    pub(crate) fn take(&self, volume: VolumeId, access: Access) -> Result<Option<OwnedFd>, DriverError> {
        let path = self.disk(volume);
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(system(format!("open {}", path.display())))?,
        };
        // Not the locks of QEMU on parts of the file: those are QEMU's alone, and other VMMs neither take nor see them.
        let operation = match access {
            Access::Write => FlockOperation::NonBlockingLockExclusive,
            Access::Read => FlockOperation::NonBlockingLockShared,
        };
        match flock(&file, operation) {
            Ok(()) => Ok(Some(file.into())),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                Err(DriverError::Refused(format!("disk {volume} is in use")))
            }
            Err(error) => Err(system(format!("lock {}", path.display()))(error.into())),
        }
    }

    pub(crate) fn objects(&self, kind: Kind, file: &str) -> Result<Vec<HostObject>, DriverError> {
        let directory = self.state.join(kind.word());
        let failed = || format!("list {}", directory.display());
        let mut objects = Vec::new();
        for entry in fs::read_dir(&directory).map_err(system(failed()))? {
            let entry = entry.map_err(system(failed()))?;
            let uid = entry.file_name().to_str().and_then(|name| name.parse::<Uid>().ok());
            // What is not named by a uid is not ours to judge; the sweeper reports it.
            let Some(uid) = uid else { continue };
            if entry.path().join(file).try_exists().map_err(system(failed()))? {
                objects.push(HostObject { kind, uid });
            }
        }
        Ok(objects)
    }
}

pub(crate) const fn of_volume(volume: VolumeId) -> HostObject {
    HostObject { kind: Kind::Volume, uid: volume.uid() }
}

pub(crate) fn short(part: &Part) -> &str {
    part.sha256.get(..12).unwrap_or(&part.sha256)
}

pub(crate) fn system(context: String) -> impl FnOnce(io::Error) -> DriverError {
    move |source| DriverError::System { context, source }
}

// ----------------------------------------------------------------------------------------------------- records

impl Records for Files {
    fn save(&self, object: HostObject, saved: &Saved) -> Result<(), DriverError> {
        let directory = self.directory(object);
        let write = || {
            fs::create_dir_all(&directory)?;
            let text = serde_json::to_string(saved)?;
            write_durably(&directory.join(RECORD), &format!("{}\n{text}\n", checksum(&text)))
        };
        write().map_err(system(format!("save the record of {} {}", object.kind, object.uid)))
    }

    fn forget(&self, object: HostObject) -> Result<(), DriverError> {
        let directory = self.directory(object);
        if let (Kind::Vm, Ok(Some(Saved { assigned: Assigned::Vm(vm), .. }))) =
            (object.kind, self.load(object))
        {
            // What cannot be kept must not keep the rest from going.
            let _ = ended::keep(&self.ended(), &directory, object.uid, &vm.name);
        }
        match remove_all(&directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(system(format!("remove {}", directory.display()))(error))
            }
            _ => Ok(()),
        }
    }

    fn load(&self, object: HostObject) -> Result<Option<Saved>, DriverError> {
        let path = self.directory(object).join(RECORD);
        match fs::read_to_string(&path) {
            Ok(text) => read_record(&text).map(Some).map_err(system(format!("read {}", path.display()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(system(format!("read {}", path.display()))(error)),
        }
    }

    fn list(&self) -> Result<Vec<HostObject>, DriverError> {
        let mut objects = self.objects(Kind::Vm, RECORD)?;
        objects.extend(self.objects(Kind::Volume, RECORD)?);
        Ok(objects)
    }
}

/// Sets records aside that were damaged, as by a disk that lied: what counts for their objects comes from the cluster again,
/// and what is on the host of them stays. One that is whole and of a newer version is not damaged: an agent that cannot read it
/// must not begin.
fn set_damaged_aside(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let record = entry.path().join(RECORD);
        let Ok(text) = fs::read(&record) else { continue };
        let text = String::from_utf8(text).map_err(|_| "it is no text");
        if let Err(why) = text.and_then(|text| whole(&text).map(drop)) {
            let aside = record.with_extension(DAMAGED);
            tracing::error!("{} is damaged ({why}); it is kept as {}", record.display(), aside.display());
            if let Err(error) = fs::rename(&record, &aside) {
                tracing::error!("{} cannot be set aside: {error}", record.display());
            }
        }
    }
}

/// Removes directories of objects in which there is no record and nothing else but half of one. All else is left: it may
/// be somebody's, and what is not empty cannot be removed by accident.
fn sweep(directory: &Path) {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let of_objects = entries
        .filter(|entry| entry.file_name().to_str().is_some_and(|name| name.parse::<Uid>().is_ok()))
        .map(|entry| entry.path());
    for object in of_objects.filter(|object| matches!(object.join(RECORD).try_exists(), Ok(false))) {
        // What cannot be removed now is for the next start.
        let _ = fs::remove_file(object.join(RECORD).with_extension(UNFINISHED));
        let _ = fs::remove_dir(object);
    }
}

/// Removes a directory with all that is in it, its record last: an agent that is killed meanwhile leaves either a record,
/// by which the next one finds the rest, or an empty directory, see [`sweep`].
fn remove_all(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else if entry.file_name() != RECORD {
            fs::remove_file(entry.path())?;
        }
    }
    fs::remove_dir_all(directory)
}

fn checksum(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read_record(text: &str) -> io::Result<Saved> {
    let value = whole(text).map_err(|why| io::Error::new(io::ErrorKind::InvalidData, why))?;
    Ok(serde_json::from_str(value)?)
}

/// What a record says, if its checksum fits.
fn whole(text: &str) -> Result<&str, &'static str> {
    let (found, rest) = text.split_once('\n').ok_or("it has no checksum")?;
    let value = rest.strip_suffix('\n').ok_or("its end is missing")?;
    if checksum(value) == found { Ok(value) } else { Err("its checksum does not fit") }
}

/// After a crash either the old or the new content is there, whole: a temporary name, fsync, rename, fsync of the
/// directory (rename(2), fsync(2)).
pub(crate) fn write_durably(path: &Path, text: &str) -> io::Result<()> {
    let temporary = path.with_extension(UNFINISHED);
    let mut file = File::create(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    rename_durably(&temporary, path)
}

pub(crate) fn rename_durably(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    match to.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use lightbyte_api::assigned::{Assigned, AssignedVolume, Source, WantedVolume};
    use lightbyte_api::kinds::volume::Filesystem;
    use lightbyte_api::{ByteSize, Name};

    /// A directory of a test, with files in it.
    pub(crate) struct Place(pub(crate) PathBuf);

    impl Place {
        pub(crate) fn new(name: &str) -> Place {
            let path = std::env::temp_dir().join(format!("lightbyte-files-{name}-{}", std::process::id()));
            fs::create_dir_all(path.join("images")).unwrap();
            Place(path)
        }
        pub(crate) fn files(&self) -> Files {
            Files::new(&self.0, &self.0.join("images")).unwrap()
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const VOLUME: VolumeId = VolumeId::new(Uid::from_bits(7));

    #[test]
    fn a_damaged_record_is_an_error_and_not_absence() {
        let place = Place::new("records");
        let files = place.files();
        let object = of_volume(VOLUME);
        let saved = saved();
        assert_eq!(files.load(object).unwrap(), None);
        files.save(object, &saved).unwrap();
        assert_eq!(files.load(object).unwrap(), Some(saved));
        assert_eq!(Records::list(&files).unwrap(), [object]);
        let path = files.directory(object).join(RECORD);
        let text = fs::read_to_string(&path).unwrap();
        for damaged in [text.replace("true", "false"), text[..text.len() / 2].to_owned(), String::new()] {
            fs::write(&path, damaged).unwrap();
            assert!(files.load(object).is_err());
        }
        files.forget(object).unwrap();
        files.forget(object).unwrap();
        assert!(Records::list(&files).unwrap().is_empty());
    }

    fn saved() -> Saved {
        Saved {
            assigned: Assigned::Volume(AssignedVolume {
                sequence: 1,
                generation: 1,
                name: Name::new("data").unwrap(),
                wanted: WantedVolume::Present,
                size: ByteSize::from_mib(1),
                source: Source::Blank(Filesystem::None),
                arriving: None,
            }),
            restarts: 0,
            restarts_done: 0,
            started_shape: 0,
            off: false,
            squatted: None,
            address_yielded: 0,
            created: true,
        }
    }

    #[test]
    fn a_write_that_is_torn_anywhere_leaves_the_old_record_and_a_damaged_one_is_none() {
        let place = Place::new("torn");
        let (files, object) = (place.files(), of_volume(VOLUME));
        let old = saved();
        files.save(object, &old).unwrap();
        let path = files.directory(object).join(RECORD);
        let whole = fs::read(&path).unwrap();
        for end in 0..=whole.len() {
            fs::write(path.with_extension(UNFINISHED), &whole[..end]).unwrap();
            assert_eq!(place.files().load(object).unwrap(), Some(old.clone()), "torn at {end}");
        }
        // A disk that lost the end of a record, or turned a bit of it.
        for end in 0..whole.len() {
            let mut turned = whole.clone();
            turned[end] ^= 1;
            for damaged in [&whole[..end], &turned] {
                fs::write(&path, damaged).unwrap();
                let files = place.files();
                assert_eq!(files.load(object).unwrap(), None, "damaged at {end}");
                assert_eq!(fs::read(path.with_extension(DAMAGED)).unwrap(), damaged);
                files.save(object, &old).unwrap();
            }
        }
    }

    #[test]
    fn only_what_is_nobodys_is_swept() {
        let place = Place::new("sweep");
        let files = place.files();
        let check = |names: &[&str], expected: &[&str]| {
            let directory = files.directory(of_volume(VOLUME));
            fs::create_dir_all(&directory).unwrap();
            let whole = format!("{}\n{{}}\n", checksum("{}"));
            names.iter().for_each(|name| fs::write(directory.join(name), &whole).unwrap());
            place.files();
            let left = fs::read_dir(&directory).into_iter().flatten().flatten();
            let mut left: Vec<_> =
                left.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
            left.sort_unstable();
            assert_eq!(left, expected, "{names:?}");
            assert_eq!(directory.exists(), !expected.is_empty(), "{names:?}");
            let _ = fs::remove_dir_all(&directory);
        };
        check(&[], &[]);
        check(&["record.new"], &[]);
        check(&["record", "record.new"], &["record", "record.new"]);
        check(&["disk", "record.new"], &["disk"]);
        check(&["something"], &["something"]);
        let other = place.0.join("vm").join("lost+found");
        fs::create_dir(&other).unwrap();
        place.files();
        assert!(other.exists());
    }
}
