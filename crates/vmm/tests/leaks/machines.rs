//! Machine processes in memory that take what real ones take: disks with their locks, taps, a directory with a socket in
//! it, a console. The state of each is kept by the fake host, which knows nothing of taps and disks here.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lightbyte_api::address::tap_name;
use lightbyte_api::assigned::{AssignedVm, HostObject};
use lightbyte_api::{ByteSize, Kind, VmId, VolumeId};
use lightbyte_plan::agent::VmmState;
use lightbyte_vmm::driver::Listener;
use lightbyte_vmm::{Disks as _, DriverError, FakeHost, Files, Vmm, taps};

pub(crate) struct Machines {
    pub(crate) host: FakeHost,
    files: Files,
    run: PathBuf,
    /// What machines that run have open.
    held: Mutex<BTreeMap<VmId, Vec<OwnedFd>>>,
}

impl Machines {
    pub(crate) fn new(host: FakeHost, files: Files, run: PathBuf) -> Machines {
        Machines { host, files, run, held: Mutex::default() }
    }

    /// The machine process ends by itself.
    pub(crate) fn exit(&self, vm: VmId) {
        self.held().remove(&vm);
        self.host.exit(vm);
    }

    /// All of them end at once, and what was in memory is gone.
    pub(crate) fn power_cut(&self) {
        let vms: Vec<VmId> = self.held().keys().copied().collect();
        vms.into_iter().for_each(|vm| self.exit(vm));
        for vm in Vmm::list(self).expect("a list") {
            self.remove(vm).expect("a machine that has ended");
        }
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<VmId, Vec<OwnedFd>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes all that a machine needs; what was taken is let go if a part is missing.
    fn take(&self, vm: VmId, assigned: &AssignedVm) -> Result<Vec<OwnedFd>, DriverError> {
        self.files.part(&assigned.kernel)?;
        let mut held = self.files.hold_all(&assigned.disks)?;
        for index in 0..assigned.nics.len() {
            held.push(taps::open(&tap_name(vm.uid(), index))?);
        }
        let directory = self.run.join(vm.to_string());
        let failed = |source| DriverError::System { context: "make the sockets".to_owned(), source };
        fs::create_dir(&directory).map_err(failed)?;
        let made = UnixListener::bind(directory.join("socket"));
        let made = made.or_else(|error| fs::remove_dir_all(&directory).and(Err(error)));
        held.push(made.map_err(failed)?.into());
        Ok(held)
    }
}

impl Vmm for Machines {
    fn ensure(&self, vm: VmId, assigned: &AssignedVm) -> Result<(), DriverError> {
        // What it is made of is held here; the fake host would look for it in memory.
        let bare = AssignedVm { disks: Vec::new(), nics: Vec::new(), ..assigned.clone() };
        if self.state(vm)? != VmmState::Absent {
            return Vmm::ensure(&self.host, vm, &bare);
        }
        let held = self.take(vm, assigned)?;
        Vmm::ensure(&self.host, vm, &bare)?;
        self.held().insert(vm, held);
        let object = HostObject { kind: Kind::Vm, uid: vm.uid() };
        // A full disk takes no console, and a machine runs without one.
        let _ = fs::write(self.files.directory(object).join("console.log"), "it begins\n");
        Ok(())
    }

    fn shut_down(&self, vm: VmId) -> Result<(), DriverError> {
        self.host.shut_down(vm)
    }

    fn remove(&self, vm: VmId) -> Result<(), DriverError> {
        self.held().remove(&vm);
        Vmm::remove(&self.host, vm)?;
        match fs::remove_dir_all(self.run.join(vm.to_string())) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(DriverError::System { context: "remove the sockets".to_owned(), source: error })
            }
            _ => Ok(()),
        }
    }

    fn grow_disk(&self, _vm: VmId, disk: VolumeId, size: ByteSize) -> Result<(), DriverError> {
        self.files.grow(disk, size)
    }

    /// Nothing is copied from a disk in use here.
    fn place_of(&self, _vm: VmId, _disk: VolumeId) -> Result<Option<usize>, DriverError> {
        Ok(None)
    }

    fn state(&self, vm: VmId) -> Result<VmmState, DriverError> {
        Vmm::state(&self.host, vm)
    }

    fn list(&self) -> Result<Vec<VmId>, DriverError> {
        Vmm::list(&self.host)
    }

    fn watch(&self, listener: Listener) {
        self.host.watch(listener);
    }
}
