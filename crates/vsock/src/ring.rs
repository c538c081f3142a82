//! One virtqueue with its two event descriptors, usable only while QEMU has started it.
//!
//! QEMU stops the rings (and takes their positions) when the VM is paused or its driver resets, and starts them again
//! later. A stopped ring gives nothing and takes nothing; that is a state, never an error.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::event::epoll;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use virtio_queue::{DescriptorChain, Error, Queue, QueueOwnedT, QueueT};
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// Most entries of a ring: QEMU's `VIRTQUEUE_MAX_SIZE`. A guest on virtio-mmio chooses just that, whatever size the device
/// itself would have.
pub(crate) const RING_SIZE_MAX: u16 = 1024;

/// A virtqueue of a vhost-user device.
pub(crate) struct Ring {
    queue: Queue,
    kick: Option<File>,
    call: Option<File>,
    enabled: bool,
    /// The guest broke the ring's rules; it stays unused until it is started anew.
    broken: bool,
    /// Entries were returned since the guest was last told.
    unsignalled: bool,
    epoll: Arc<OwnedFd>,
    token: u64,
}

impl Ring {
    /// A stopped ring whose kicks wake `epoll` with `token`.
    pub(crate) fn new(epoll: Arc<OwnedFd>, token: u64) -> Result<Self, Error> {
        let queue = Queue::new(RING_SIZE_MAX)?;
        Ok(Self {
            queue,
            kick: None,
            call: None,
            enabled: false,
            broken: false,
            unsignalled: false,
            epoll,
            token,
        })
    }

    pub(crate) fn set_size(&mut self, entries: u16) -> Result<(), Error> {
        self.queue.try_set_size(entries)
    }

    /// Sets the guest's addresses and takes the used index from the guest's memory, since QEMU hands over only the
    /// available index ([`Ring::set_next`]).
    pub(crate) fn set_addresses(
        &mut self,
        memory: &GuestMemoryMmap,
        descriptors: u64,
        available: u64,
        used: u64,
    ) -> Result<(), Error> {
        self.queue.try_set_desc_table_address(GuestAddress(descriptors))?;
        self.queue.try_set_avail_ring_address(GuestAddress(available))?;
        self.queue.try_set_used_ring_address(GuestAddress(used))?;
        let next_used = self.queue.used_idx(memory, Ordering::Relaxed)?.0;
        self.queue.set_next_used(next_used);
        Ok(())
    }

    pub(crate) fn set_next(&mut self, next: u16) {
        self.queue.set_next_avail(next);
    }

    pub(crate) fn set_event_index(&mut self, on: bool) {
        self.queue.set_event_idx(on);
    }

    pub(crate) fn set_enabled(&mut self, on: bool) {
        self.enabled = on;
    }

    /// Takes the event descriptor that the guest's kicks arrive on; this starts the ring.
    pub(crate) fn start(&mut self, kick: Option<File>) -> std::io::Result<()> {
        self.drop_kick();
        if let Some(kick) = kick {
            // A read must never wait: the kick may have been taken by QEMU itself.
            fcntl_setfl(&kick, fcntl_getfl(&kick)? | OFlags::NONBLOCK)?;
            epoll::add(&*self.epoll, &kick, epoll::EventData::new_u64(self.token), epoll::EventFlags::IN)?;
            self.kick = Some(kick);
        }
        self.broken = false;
        self.queue.set_ready(true);
        Ok(())
    }

    /// Stops the ring and tells how far it got.
    pub(crate) fn stop(&mut self) -> u16 {
        self.queue.set_ready(false);
        self.drop_kick();
        self.call = None;
        self.unsignalled = false;
        self.queue.next_avail()
    }

    pub(crate) fn set_call(&mut self, call: Option<File>) {
        self.call = call;
    }

    /// Whether entries may be taken and returned now.
    pub(crate) fn running(&self) -> bool {
        self.queue.ready() && self.enabled && !self.broken
    }

    /// Marks a kick as seen.
    pub(crate) fn take_kick(&self) {
        if let Some(mut kick) = self.kick.as_ref() {
            // Nothing to read means that somebody else has seen it, which is as good.
            let _ = kick.read(&mut [0; 8]);
        }
    }

    /// The next chain of buffers from the guest. A guest that breaks the ring loses it, until it starts anew.
    pub(crate) fn pop<'m>(
        &mut self,
        memory: &'m GuestMemoryMmap,
    ) -> Option<DescriptorChain<&'m GuestMemoryMmap>> {
        if !self.running() {
            return None;
        }
        let next = self.queue.next_avail();
        let offered = self.queue.avail_idx(memory, Ordering::Acquire).is_ok_and(|index| index.0 != next);
        let chain = self.queue.iter(memory).ok().and_then(|mut chains| chains.next());
        // Offered and yet not to be had: an index that jumped, or entries outside of memory. Without this the caller would
        // look again and again.
        self.broken = offered && chain.is_none();
        chain
    }

    /// Puts back the chain that [`Ring::pop`] gave last.
    pub(crate) fn unpop(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Returns a chain with `bytes` written into it.
    pub(crate) fn push(&mut self, memory: &GuestMemoryMmap, head: u16, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(0);
        match self.queue.add_used(memory, head, bytes) {
            Ok(()) => self.unsignalled = true,
            Err(_) => self.broken = true,
        }
    }

    /// Asks the guest to kick when it adds buffers; true if it added some in the meantime.
    pub(crate) fn listen(&mut self, memory: &GuestMemoryMmap) -> bool {
        self.running() && self.queue.enable_notification(memory).unwrap_or(false)
    }

    /// Tells the guest of returned entries, if it wants to know.
    pub(crate) fn signal(&mut self, memory: &GuestMemoryMmap) {
        if !std::mem::take(&mut self.unsignalled) {
            return;
        }
        let wanted = self.queue.needs_notification(memory).unwrap_or(true);
        if let (true, Some(mut call)) = (wanted, self.call.as_ref()) {
            // An event descriptor that is full has been signalled already.
            let _ = call.write(&1_u64.to_ne_bytes());
        }
    }

    fn drop_kick(&mut self) {
        if let Some(kick) = self.kick.take() {
            // Closing is not enough: QEMU holds the same open file, which would keep waking us.
            let _ = epoll::delete(&*self.epoll, &kick);
        }
    }
}
