//! Disks of a host in memory: a size, and how often they were written to.

use std::ops::Range;

use lightbyte_api::assigned::{Arriving, AssignedVolume, Source};
use lightbyte_api::{ByteSize, VolumeId};
use lightbyte_plan::agent::Fetched;
use serde::{Deserialize, Serialize};

use super::{FakeHost, not_here, refuse};
use crate::driver::{Disks, DriverError, StillFlushed};
use crate::peers::{PeerDisk, SUM_OF_ZEROS, Sum};

/// What a disk holds: how often it was written to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FakeDisk {
    pub(super) size: ByteSize,
    pub(super) writes: u64,
}

/// What was fetched of a disk: nothing in the first slice, all in the second.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct FakeFetched {
    pub(super) disk: FakeDisk,
    pub(super) held: bool,
    pub(super) complete: bool,
}

impl Disks for FakeHost {
    fn ensure(
        &self,
        volume: VolumeId,
        assigned: &AssignedVolume,
        still_flushed: Option<StillFlushed<'_>>,
    ) -> Result<(), DriverError> {
        let mut made = FakeDisk { size: assigned.size, writes: 0 };
        if let Source::Image(part) = &assigned.source
            && self.lock().without([part].into_iter()).is_some()
        {
            return refuse(not_here(part));
        }
        if let Source::Disk(source) = assigned.source {
            let state = self.change()?;
            let Some(found) = state.disks.get(&source) else {
                return refuse(format!("disk {source} is not there"));
            };
            if still_flushed.is_none() && state.user(source, true).is_some() {
                return refuse(format!("disk {source} is in use"));
            }
            made = FakeDisk { size: made.size.max(found.size), ..*found };
        }
        still_flushed.map_or(Ok(()), |still_flushed| still_flushed())?;
        let mut state = self.change()?;
        state.disks.entry(volume).or_insert(made);
        state.keep()
    }

    fn grow(&self, volume: VolumeId, size: ByteSize) -> Result<(), DriverError> {
        let mut state = self.change()?;
        match (state.disks.get(&volume), state.user(volume, false)) {
            (Some(found), _) if found.size >= size => Ok(()),
            (_, Some(vm)) => refuse(format!("the disk is in use by VM {vm}")),
            (_, None) => state.grow(volume, size),
        }
    }

    fn remove(&self, volume: VolumeId) -> Result<(), DriverError> {
        let mut state = self.change()?;
        if let Some(vm) = state.user(volume, false) {
            return refuse(format!("the disk is in use by VM {vm}"));
        }
        state.disks.remove(&volume);
        state.keep()
    }

    fn size(&self, volume: VolumeId) -> Result<Option<ByteSize>, DriverError> {
        Ok(self.lock().disks.get(&volume).map(|disk| disk.size))
    }

    fn list(&self) -> Result<Vec<VolumeId>, DriverError> {
        let state = self.lock();
        Ok(state.disks.keys().chain(state.arriving.keys()).copied().collect())
    }

    fn fetch(&self, volume: VolumeId, arriving: &Arriving) -> Result<(), DriverError> {
        let Some(peers) = self.change()?.peers.clone() else { return refuse("this host knows no other") };
        let disk = PeerDisk { worker: arriving.from, address: arriving.address.clone(), disk: volume };
        let size = peers.size(&disk)?;
        let sums = peers.sums(&disk, 0..1)?;
        let writes =
            sums.first().and_then(|sum| sum.first_chunk()).map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let mut state = self.change()?;
        let fetched = FakeFetched { disk: FakeDisk { size, writes }, held: arriving.held, complete: false };
        match state.arriving.get_mut(&volume) {
            Some(found) if found.held == arriving.held => *found = FakeFetched { complete: true, ..fetched },
            _ => drop(state.arriving.insert(volume, fetched)),
        }
        state.keep()
    }

    fn fetched(&self, volume: VolumeId) -> Result<Option<Fetched>, DriverError> {
        let state = self.lock();
        let fetched = state.arriving.get(&volume);
        Ok(fetched.map(|fetched| Fetched { complete: fetched.complete, held: fetched.held }))
    }

    fn take_fetched(&self, volume: VolumeId) -> Result<(), DriverError> {
        let mut state = self.change()?;
        if state.disks.contains_key(&volume) {
            return Ok(());
        }
        match state.arriving.get(&volume).copied() {
            Some(FakeFetched { disk, held: true, complete: true }) => {
                state.arriving.remove(&volume);
                state.disks.insert(volume, disk);
                state.keep()
            }
            _ => refuse(format!("disk {volume} has not been fetched whole")),
        }
    }

    fn drop_fetched(&self, volume: VolumeId) -> Result<(), DriverError> {
        let mut state = self.change()?;
        state.arriving.remove(&volume);
        state.keep()
    }

    fn quarantine(&self, volume: VolumeId) -> Result<(), DriverError> {
        Disks::remove(self, volume)
    }

    /// Nothing is kept aside.
    fn sweep(&self) {}

    fn sums(&self, volume: VolumeId, _chunks: Range<u64>) -> Result<Vec<Sum>, DriverError> {
        let Some(writes) = self.writes(volume) else { return refuse(format!("disk {volume} is not there")) };
        let mut sum = SUM_OF_ZEROS;
        sum[..8].copy_from_slice(&writes.to_le_bytes());
        Ok(vec![sum])
    }

    /// There is nothing in it but what its sum says.
    fn read(&self, volume: VolumeId, _bytes: Range<u64>) -> Result<Vec<u8>, DriverError> {
        self.sums(volume, 0..1).map(|_| Vec::new())
    }
}
