//! What QEMU tells the device over vhost-user: memory, rings, features. It keeps them, and moves no packet.
//!
//! This stands on the `vhost` crate's message layer and not on `vhost-user-backend`, whose event loop runs in a thread of
//! its own: there a ring can be taken away between a wake-up and its handling, and the first error (a kick that is
//! already read, a ring that is not ready) ends the loop for good while the process lives on. Here one thread handles
//! messages and rings in turn, so that a ring never changes under it.
//!
//! Source: QEMU's `docs/interop/vhost-user.rst`.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVirtioFeatures, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use crate::ring::Ring;

/// Queue that carries packets to the guest (virtio 1.2, 5.10.2); QEMU keeps the event queue, number 2, itself.
pub(crate) const TO_GUEST: usize = 0;

/// Queue that carries packets from the guest.
pub(crate) const FROM_GUEST: usize = 1;

const RINGS: usize = 2;

/// Where a region of guest memory lies for QEMU, whose ring addresses are its own.
struct Mapping {
    frontend_address: u64,
    guest_address: u64,
    bytes: u64,
}

/// The device as QEMU has set it up.
pub(crate) struct Device {
    guest_cid: u64,
    pub(crate) memory: Option<GuestMemoryMmap>,
    mappings: Vec<Mapping>,
    pub(crate) rings: [Ring; RINGS],
    protocol_features: bool,
    /// Positions at which the rings were last stopped.
    stopped_at: [u16; RINGS],
    /// A driver began at the start of a ring that had been in use: its guest knows no connection any more.
    restarted: bool,
}

impl Device {
    /// A device that knows nothing but its address; kicks wake `epoll` with the tokens.
    pub(crate) fn new(guest_cid: u64, epoll: &Arc<OwnedFd>, tokens: [u64; RINGS]) -> anyhow::Result<Self> {
        let rings =
            [Ring::new(epoll.clone(), tokens[TO_GUEST])?, Ring::new(epoll.clone(), tokens[FROM_GUEST])?];
        Ok(Self {
            guest_cid,
            memory: None,
            mappings: Vec::new(),
            rings,
            protocol_features: false,
            stopped_at: [0; RINGS],
            restarted: false,
        })
    }

    /// Whether the guest's driver began anew since this was last asked.
    pub(crate) fn take_restarted(&mut self) -> bool {
        std::mem::take(&mut self.restarted)
    }

    fn ring(&mut self, index: u32) -> Result<&mut Ring> {
        let index = usize::try_from(index).map_err(|_| Error::InvalidParam)?;
        self.rings.get_mut(index).ok_or(Error::InvalidParam)
    }

    fn guest_address(&self, frontend_address: u64) -> Result<u64> {
        let inside = |mapping: &&Mapping| {
            frontend_address
                .checked_sub(mapping.frontend_address)
                .is_some_and(|offset| offset < mapping.bytes)
        };
        let mapping = self.mappings.iter().find(inside).ok_or(Error::InvalidParam)?;
        mapping
            .guest_address
            .checked_add(frontend_address - mapping.frontend_address)
            .ok_or(Error::InvalidParam)
    }
}

fn unsupported<T>() -> Result<T> {
    Err(Error::InvalidOperation("not offered by this device"))
}

fn refused(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::ReqHandlerError(io::Error::other(error))
}

impl VhostUserBackendReqHandlerMut for Device {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        for ring in &mut self.rings {
            ring.set_enabled(false);
            ring.stop();
        }
        self.restarted = true;
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        Ok(1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | protocol)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        self.protocol_features = features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() != 0;
        for ring in &mut self.rings {
            ring.set_event_index(features & 1 << VIRTIO_RING_F_EVENT_IDX != 0);
            if !self.protocol_features {
                // Without that feature there is no SET_VRING_ENABLE, and rings are enabled from their start.
                ring.set_enabled(true);
            }
        }
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::MQ)
    }

    fn set_protocol_features(&mut self, _features: u64) -> Result<()> {
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(RINGS as u64)
    }

    fn set_mem_table(
        &mut self,
        table: &[VhostUserMemoryRegion],
        files: Vec<File>,
        postcopy: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        if postcopy.is_some() || table.len() != files.len() {
            return unsupported();
        }
        let mut regions = Vec::with_capacity(table.len());
        let mut mappings = Vec::with_capacity(table.len());
        for (region, file) in table.iter().zip(files) {
            let mapped =
                GuestRegionMmap::new(region.mmap_region(file)?, GuestAddress(region.guest_phys_addr));
            regions.push(mapped.ok_or(Error::InvalidParam)?);
            mappings.push(Mapping {
                frontend_address: region.user_addr,
                guest_address: region.guest_phys_addr,
                bytes: region.memory_size,
            });
        }
        self.memory = Some(GuestMemoryMmap::from_regions(regions).map_err(refused)?);
        self.mappings = mappings;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, entries: u32) -> Result<()> {
        let entries = u16::try_from(entries).map_err(|_| Error::InvalidParam)?;
        self.ring(index)?.set_size(entries).map_err(|_| Error::InvalidParam)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptors: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        let descriptors = self.guest_address(descriptors)?;
        let available = self.guest_address(available)?;
        let used = self.guest_address(used)?;
        let memory = self.memory.take().ok_or(Error::InvalidParam)?;
        let result = self
            .ring(index)
            .and_then(|ring| ring.set_addresses(&memory, descriptors, available, used).map_err(refused));
        self.memory = Some(memory);
        result
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let next = u16::try_from(base & 0xffff).map_err(|_| Error::InvalidParam)?;
        self.ring(index)?.set_next(next);
        // After a pause QEMU gives back the position that it was told; a new driver begins at nought.
        // Told once for all rings: after the first of them runs, the new driver may already have connections.
        if next == 0 && self.stopped_at.get(index as usize).is_some_and(|stopped_at| *stopped_at != 0) {
            self.restarted = true;
            self.stopped_at = [0; RINGS];
        }
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let next = self.ring(index)?.stop();
        if let Some(stopped_at) = self.stopped_at.get_mut(index as usize) {
            *stopped_at = next;
        }
        Ok(VhostUserVringState::new(index, u32::from(next)))
    }

    fn set_vring_kick(&mut self, index: u8, kick: Option<File>) -> Result<()> {
        self.ring(u32::from(index))?.start(kick).map_err(Error::ReqHandlerError)
    }

    fn set_vring_call(&mut self, index: u8, call: Option<File>) -> Result<()> {
        self.ring(u32::from(index))?.set_call(call);
        Ok(())
    }

    fn set_vring_err(&mut self, _index: u8, _err: Option<File>) -> Result<()> {
        Ok(())
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.ring(index)?.set_enabled(enable);
        Ok(())
    }

    /// The configuration space holds the guest's address and nothing else (virtio 1.2, 5.10.4).
    fn get_config(&mut self, offset: u32, size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        let space = self.guest_cid.to_le_bytes();
        let bytes = (u64::from(offset)..u64::from(offset) + u64::from(size.min(4096)))
            .map(|at| usize::try_from(at).ok().and_then(|at| space.get(at)).copied().unwrap_or(0));
        Ok(bytes.collect())
    }

    fn set_config(&mut self, _offset: u32, _bytes: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        unsupported()
    }

    fn set_gpu_socket(&mut self, _gpu: GpuBackend) -> Result<()> {
        unsupported()
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        unsupported()
    }

    fn get_inflight_fd(&mut self, _inflight: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        unsupported()
    }

    fn set_inflight_fd(&mut self, _inflight: &VhostUserInflight, _file: File) -> Result<()> {
        unsupported()
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        unsupported()
    }

    fn add_mem_region(
        &mut self,
        _region: &VhostUserSingleMemoryRegion,
        _file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        unsupported()
    }

    fn remove_mem_region(&mut self, _region: &VhostUserSingleMemoryRegion) -> Result<()> {
        unsupported()
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _file: File,
    ) -> Result<Option<File>> {
        unsupported()
    }

    fn check_device_state(&mut self) -> Result<()> {
        unsupported()
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        unsupported()
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        unsupported()
    }
}
