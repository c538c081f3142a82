//! The jail of a VM: a directory that is the whole file system of its Firecracker, which runs under a uid and gid that
//! no other VM of the worker has. Firecracker's jailer locks it in and drops its rights.
//!
//! ```text
//! JAILS/                     of root alone; by default in the worker's state directory
//!   firecracker/<uid>/run    whose it is: the run directory of the worker
//!   firecracker/<uid>/root/  the jail: the VM's own
//!     kernel, initrd         links to the image's files, copies elsewhere
//!     disk0, …               links to the disks, which belong to the VM's uid while it runs
//!     api, vsock, …          sockets
//!     firecracker, dev/      the jailer's
//! RUN/<uid>/jail.json        what was allotted
//! ```
//!
//! Disks are hard links. A bind mount would stay behind in the host when the agent is killed, and keep the disk busy; a
//! node of a device wants a loop device for each disk. A link goes away with its directory, and its only price is
//! that jails and disks have to be on one file system.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use lightbyte_api::assigned::AssignedVm;
use lightbyte_api::{Uid, VmId};
use serde::{Deserialize, Serialize};

use super::limits::{self, limits};
use super::paths::Paths;
use crate::driver::DriverError;
use crate::room::{Room, refuse, system, write_whole};

/// The uids, and gids of the same numbers, that VMs get unless others are set. Neither systemd nor the usual tables for
/// containers and user namespaces give out any of them (systemd's `docs/UIDS-GIDS.md`), and they fit where 31 bits do.
pub const UIDS: RangeInclusive<u32> = 1_900_000_000..=1_900_065_535;

/// Name of the file that says whose a jail is.
const OWNER: &str = "run";

/// How Firecracker is jailed.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Firecracker's `jailer`, of the same release.
    pub jailer: PathBuf,
    /// Where jails are: on the disks' file system, which must not be mounted `nodev`.
    pub jails: PathBuf,
    /// Uids, and gids of the same numbers, for VMs of this worker. Another worker on the same host needs others.
    pub uids: RangeInclusive<u32>,
}

/// What makes jails.
#[derive(Debug)]
pub(super) struct Jails {
    settings: Settings,
    firecracker: PathBuf,
    run: PathBuf,
    /// Held while a uid is looked for and noted.
    allotting: Mutex<()>,
}

/// The jail of one VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Jail {
    /// Its uid and its gid.
    pub(super) uid: u32,
    /// Removed with the VM; `root` in it is what Firecracker sees.
    directory: PathBuf,
    /// Its control groups.
    groups: Vec<PathBuf>,
}

impl Jails {
    /// Makes the directory, and removes jails of VMs that a reboot has ended.
    ///
    /// # Errors
    /// [`DriverError::Refused`] without root, or if the directory is of no use.
    pub(super) fn new(
        mut settings: Settings,
        firecracker: PathBuf,
        run: PathBuf,
    ) -> Result<Jails, DriverError> {
        if !rustix::process::geteuid().is_root() {
            return refuse("the jailer needs root; start the worker as root, or with --no-jailer");
        }
        // A link in the VM's room leads there, which is not in our directory.
        settings.jails = std::path::absolute(&settings.jails)
            .map_err(system(format!("find {}", settings.jails.display())))?;
        let jails = &settings.jails;
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(jails);
        made.map_err(system(format!("create {}", jails.display())))?;
        let jails = Jails { firecracker, run, allotting: Mutex::default(), settings };
        jails.sweep()?;
        Ok(jails)
    }

    fn sweep(&self) -> Result<(), DriverError> {
        let failed = || format!("list the jails in {}", self.settings.jails.display());
        for program in fs::read_dir(&self.settings.jails).map_err(system(failed()))? {
            let program = program.map_err(system(failed()))?.path();
            if !program.is_dir() {
                continue;
            }
            for entry in fs::read_dir(program).map_err(system(failed()))? {
                self.sweep_one(&entry.map_err(system(failed()))?)?;
            }
        }
        Ok(())
    }

    fn sweep_one(&self, entry: &fs::DirEntry) -> Result<(), DriverError> {
        let uid = entry.file_name().to_str().and_then(|name| name.parse::<Uid>().ok());
        // What is not named by a uid is not ours to judge, nor what another worker has made in the same place.
        let Some(uid) = uid else { return Ok(()) };
        let is_own = fs::read(entry.path().join(OWNER)).is_ok_and(|owner| owner == self.owner());
        if is_own && !self.run.join(uid.to_string()).exists() {
            return remove_all(&entry.path());
        }
        Ok(())
    }

    /// How a jail of this worker is marked.
    fn owner(&self) -> &[u8] {
        self.run.as_os_str().as_bytes()
    }

    /// Makes the jail of a VM that is about to start, with a way to it from the VM's room.
    ///
    /// # Errors
    /// If no uid is free, or the jail cannot be made.
    pub(super) fn make(
        &self,
        vm: VmId,
        room: &Room,
        assigned: &AssignedVm,
    ) -> Result<(Jail, Command), DriverError> {
        let paths = Paths::of(room);
        let name = self.firecracker.file_name().unwrap_or_default();
        let directory = self.settings.jails.join(name).join(vm.to_string());
        remove_all(&directory)?;
        let limits = limits(vm, assigned.cpus, assigned.memory.bytes());
        let jail = self.allot(&paths, Jail { uid: 0, directory, groups: limits.directories })?;
        let root = jail.root();
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&root);
        made.and_then(|()| symlink(&root, &paths.root))
            .map_err(system(format!("create {}", root.display())))?;
        let mut command = Command::new(&self.settings.jailer);
        command.args(["--id", &vm.to_string()]).arg("--exec-file").arg(&self.firecracker);
        command.args(["--uid", &jail.uid.to_string(), "--gid", &jail.uid.to_string()]);
        command.arg("--chroot-base-dir").arg(&self.settings.jails);
        command.args(limits.words).arg("--");
        Ok((jail, command))
    }

    /// Notes the lowest free uid as this VM's.
    fn allot(&self, paths: &Paths, jail: Jail) -> Result<Jail, DriverError> {
        let _one_at_a_time = self.allotting.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = taken(&self.run)?;
        let uids = &self.settings.uids;
        let Some(uid) = uids.clone().find(|uid| !taken.contains(uid)) else {
            return refuse(format!("no uid from {} to {} is free for this VM", uids.start(), uids.end()));
        };
        let jail = Jail { uid, ..jail };
        let note = serde_json::to_vec(&jail).map_err(|error| system("note the jail")(error.into()))?;
        write_whole(&paths.jail, &note)?;
        Ok(jail)
    }
}

/// The uids of all VMs that have a room.
fn taken(run: &Path) -> Result<BTreeSet<u32>, DriverError> {
    let failed = || format!("list {}", run.display());
    let mut taken = BTreeSet::new();
    for entry in fs::read_dir(run).map_err(system(failed()))? {
        let note = entry.map_err(system(failed()))?.path().join(super::paths::JAIL);
        // One that cannot be read might be any: it is no reason to give out one that is in use.
        taken.extend(read(&note)?.map(|jail| jail.uid));
    }
    Ok(taken)
}

fn read(note: &Path) -> Result<Option<Jail>, DriverError> {
    let failed = || format!("read {}", note.display());
    match fs::read(note) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(system(failed())(error)),
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| system(failed())(error.into())),
    }
}

/// Removes the jail of a VM whose process has ended, if it had one.
///
/// # Errors
/// If a part of it stays.
pub(super) fn remove(room: &Room) -> Result<(), DriverError> {
    let Some(jail) = read(&Paths::of(room).jail)? else { return Ok(()) };
    limits::remove(&jail.groups)?;
    remove_all(&jail.directory)
}

fn remove_all(directory: &Path) -> Result<(), DriverError> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(system(format!("remove {}", directory.display()))(error))
        }
        _ => Ok(()),
    }
}

impl Jail {
    fn root(&self) -> PathBuf {
        self.directory.join("root")
    }

    /// Gives the VM a disk under this name: to read and write, or to read as others may.
    ///
    /// # Errors
    /// [`DriverError::Refused`] if the disk is on another file system.
    pub(super) fn take_disk(&self, disk: &Path, name: &str, read_only: bool) -> Result<(), DriverError> {
        let link = self.root().join(name);
        match fs::hard_link(disk, &link) {
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                return refuse(format!(
                    "disk {} is not on the file system of the jails; start the worker with --jails DIR, on that of its \
                     state, or with --no-jailer",
                    disk.display()
                ));
            }
            linked => linked.map_err(system(format!("link {}", disk.display())))?,
        }
        let mode = if read_only { 0o644 } else { 0o600 };
        if read_only {
            // Not its last writer's: uids are given out again, and a reader might get that one.
            let no_follow = std::os::unix::fs::lchown(&link, Some(0), Some(0));
            no_follow.map_err(system(format!("take {} back", disk.display())))?;
        } else {
            self.own(&link)?;
        }
        fs::set_permissions(&link, fs::Permissions::from_mode(mode))
            .map_err(system(format!("let the VM use {}", disk.display())))
    }

    /// Gives the VM a file to read, which others read too: a link where that is possible, and a copy elsewhere.
    ///
    /// # Errors
    /// If it cannot be copied.
    pub(super) fn take_file(&self, file: &Path, name: &str) -> Result<(), DriverError> {
        let (link, failed) = (self.root().join(name), || format!("take {} into the jail", file.display()));
        // What stands there may be a link itself, which would lead out of the jail.
        let file = fs::canonicalize(file).map_err(system(failed()))?;
        let everybody_reads =
            fs::metadata(&file).map_err(system(failed()))?.permissions().mode() & 0o004 != 0;
        if everybody_reads && fs::hard_link(&file, &link).is_ok() {
            return Ok(());
        }
        // Shares blocks where the file system can (copy_file_range(2)).
        fs::copy(&file, &link).map_err(system(failed()))?;
        self.own(&link)
    }

    /// Makes a file the VM's own.
    ///
    /// # Errors
    /// If it cannot be done.
    pub(super) fn own(&self, path: &Path) -> Result<(), DriverError> {
        chown(path, Some(self.uid), Some(self.uid))
            .map_err(system(format!("give {} to the VM", path.display())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Place {
            let place = std::env::temp_dir().join(format!("lightbyte-jail-{name}-{}", std::process::id()));
            fs::create_dir_all(&place).expect("make a directory");
            Place(place)
        }

        fn jails(&self, uids: RangeInclusive<u32>) -> Jails {
            let settings = Settings { jailer: "jailer".into(), jails: self.0.join("jails"), uids };
            fs::create_dir_all(&settings.jails).expect("make a directory");
            let run = self.0.join("run");
            fs::create_dir_all(&run).expect("make a directory");
            Jails { settings, firecracker: "/x/firecracker".into(), run, allotting: Mutex::default() }
        }

        fn allot(&self, jails: &Jails, number: u128) -> Result<u32, DriverError> {
            let room = Room::new(&jails.run, VmId::new(Uid::from_bits(number)), "root");
            fs::create_dir_all(&room.directory).expect("make a room");
            let jail = Jail { uid: 0, directory: self.0.join("jail"), groups: Vec::new() };
            jails.allot(&Paths::of(&room), jail).map(|jail| jail.uid)
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_lowest_free_uid_is_allotted_and_found_again() {
        let place = Place::new("uids");
        let jails = place.jails(7..=9);
        fs::write(jails.run.join("a file"), "").expect("write");
        for (number, uid) in [(1, 7), (2, 8), (3, 9)] {
            assert_eq!(place.allot(&jails, number).expect("a uid"), uid);
        }
        let full = place.allot(&jails, 4).expect_err("none is free");
        assert_eq!(full.to_string(), "no uid from 7 to 9 is free for this VM");
        let second = jails.run.join(Uid::from_bits(2).to_string());
        fs::remove_dir_all(&second).expect("end a VM");
        // By another driver, which was started later.
        assert_eq!(place.allot(&place.jails(7..=9), 4).expect("a uid"), 8);
        // One that cannot be read is not taken for absence.
        fs::write(jails.run.join(Uid::from_bits(1).to_string()).join(super::super::paths::JAIL), "{")
            .expect("write");
        assert!(place.allot(&jails, 5).is_err());
    }

    #[test]
    fn a_reboot_leaves_no_jails() {
        let place = Place::new("sweep");
        let jails = place.jails(7..=9);
        let (gone, there) = (Uid::from_bits(1).to_string(), Uid::from_bits(2).to_string());
        let program = jails.settings.jails.join("firecracker");
        let foreign = Uid::from_bits(3).to_string();
        let owner = jails.run.to_str().expect("text");
        for (name, owner) in [
            (gone.as_str(), owner),
            (there.as_str(), owner),
            (foreign.as_str(), "/elsewhere"),
            ("other", owner),
        ] {
            fs::create_dir_all(program.join(name).join("root")).expect("make a jail");
            fs::write(program.join(name).join(OWNER), owner).expect("mark it");
        }
        fs::create_dir_all(jails.run.join(&there)).expect("make a room");
        jails.sweep().expect("sweep");
        let names = [gone.as_str(), there.as_str(), foreign.as_str(), "other"];
        assert_eq!(names.map(|name| program.join(name).exists()), [false, true, true, true]);
    }

    #[test]
    fn files_are_linked_or_copied_and_never_lead_out() {
        let place = Place::new("files");
        let own = rustix::process::geteuid().as_raw();
        let jail = Jail { uid: own, directory: place.0.join("jail"), groups: Vec::new() };
        fs::create_dir_all(jail.root()).expect("make a jail");
        let (file, link) = (place.0.join("file"), place.0.join("link"));
        fs::write(&file, "kernel").expect("write");
        symlink(&file, &link).expect("link");
        for (mode, links) in [(0o644, 2), (0o600, 1)] {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("set the mode");
            jail.take_file(&link, "kernel").expect("take it");
            let taken = fs::symlink_metadata(jail.root().join("kernel")).expect("it is there");
            use std::os::unix::fs::MetadataExt as _;
            assert_eq!((taken.is_file(), taken.nlink()), (true, links), "{mode:o}");
            fs::remove_file(jail.root().join("kernel")).expect("remove it");
        }
        jail.take_disk(&file, "disk0", false).expect("take it");
        assert!(jail.take_disk(&place.0.join("none"), "disk1", false).is_err());
    }
}
