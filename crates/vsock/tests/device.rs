//! The whole device against a made-up QEMU and guest: real sockets, real rings in shared memory, no VM.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lightbyte_vsock::packet::{HEADER_BYTES, HOST_CID, Header, Operation, TYPE_STREAM};
use lightbyte_vsock::{Listeners, Options, run};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

const CID: u32 = 7;
const MEMORY_BYTES: u64 = 1 << 20;
const ENTRIES: u16 = 64;
const BUFFER_BYTES: u64 = 4096;
/// Everything must happen within this; nothing here waits for the clock otherwise.
const WAIT: Duration = Duration::from_secs(20);

/// Addresses of a ring's parts in guest memory.
struct Ring {
    index: usize,
    descriptors: u64,
    available: u64,
    used: u64,
    buffers: u64,
    kick: EventFd,
    call: EventFd,
    next_available: u16,
    next_used: u16,
}

struct World {
    directory: PathBuf,
    frontend: Option<Frontend>,
    memory: GuestMemoryMmap,
    rings: [Ring; 2],
    device: Option<JoinHandle<anyhow::Result<()>>>,
}

fn event() -> EventFd {
    EventFd::new(libc_nonblock()).expect("an event descriptor")
}

fn libc_nonblock() -> i32 {
    i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).expect("a small number")
}

fn ring(index: usize) -> Ring {
    let base = 0x4000 * index as u64;
    let buffers = 0x10_000 + 0x50_000 * index as u64;
    let (kick, call) = (event(), event());
    Ring {
        index,
        descriptors: base,
        available: base + 0x1000,
        used: base + 0x2000,
        buffers,
        kick,
        call,
        next_available: 0,
        next_used: 0,
    }
}

impl World {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("vsock-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory).expect("a directory");
        let options =
            Options { vhost_socket: directory.join("vhost"), uds: directory.join("vsock"), guest_cid: CID };
        let listeners = Listeners::bind(&options).expect("it listens");
        let device = std::thread::spawn(move || run(&options, listeners));
        let path = directory.join("memory");
        let file = File::options().read(true).write(true).create_new(true).open(&path).expect("a file");
        file.set_len(MEMORY_BYTES).expect("room");
        let range = (GuestAddress(0), MEMORY_BYTES as usize, Some(FileOffset::new(file, 0)));
        let memory = GuestMemoryMmap::from_ranges_with_files([range]).expect("memory");
        let frontend = Frontend::connect(directory.join("vhost"), 2).expect("a connection");
        let mut world = Self {
            directory,
            frontend: Some(frontend),
            memory,
            rings: [ring(0), ring(1)],
            device: Some(device),
        };
        world.set_up();
        world.start([0, 0]);
        world
    }

    fn frontend(&mut self) -> &mut Frontend {
        self.frontend.as_mut().expect("QEMU lives")
    }

    fn set_up(&mut self) {
        let region = self.memory.find_region(GuestAddress(0)).expect("a region");
        let info = VhostUserMemoryRegionInfo::from_guest_region(region).expect("with a file");
        let frontend = self.frontend();
        frontend.set_owner().expect("an owner");
        let features = frontend.get_features().expect("features");
        let protocol = frontend.get_protocol_features().expect("protocol features");
        frontend.set_protocol_features(protocol).expect("set");
        // Without the event index every entry is signalled, which is what a simple guest wants.
        frontend.set_features(features & !(1 << 29)).expect("set");
        frontend.set_mem_table(&[info]).expect("memory is taken");
        let (_, config) = frontend
            .get_config(0, 8, vhost::vhost_user::message::VhostUserConfigFlags::WRITABLE, &[0; 8])
            .expect("a configuration");
        assert_eq!(config, u64::from(CID).to_le_bytes());
    }

    fn start(&mut self, bases: [u16; 2]) {
        let host = self.memory.get_host_address(GuestAddress(0)).expect("mapped") as u64;
        let frontend = self.frontend.as_mut().expect("QEMU lives");
        for (ring, base) in self.rings.iter_mut().zip(bases) {
            let config = VringConfigData {
                queue_max_size: ENTRIES,
                queue_size: ENTRIES,
                flags: 0,
                desc_table_addr: host + ring.descriptors,
                used_ring_addr: host + ring.used,
                avail_ring_addr: host + ring.available,
                log_addr: None,
            };
            frontend.set_vring_num(ring.index, ENTRIES).expect("a size");
            frontend.set_vring_base(ring.index, base).expect("a base");
            frontend.set_vring_addr(ring.index, &config).expect("addresses");
            frontend.set_vring_kick(ring.index, &ring.kick).expect("a kick");
            frontend.set_vring_call(ring.index, &ring.call).expect("a call");
        }
        for index in 0..self.rings.len() {
            frontend.set_vring_enable(index, true).expect("enabled");
        }
    }

    /// As QEMU does for a pause and for a driver's reset.
    fn stop(&mut self) -> [u16; 2] {
        [0, 1].map(|index| {
            let frontend = self.frontend();
            frontend.set_vring_enable(index, false).expect("disabled");
            frontend.get_vring_base(index).expect("a base") as u16
        })
    }

    /// A driver that begins anew.
    fn restart(&mut self) {
        self.stop();
        self.memory.write_slice(&[0; 0x8000], GuestAddress(0)).expect("rings in memory");
        for ring in &mut self.rings {
            (ring.next_available, ring.next_used) = (0, 0);
        }
        self.start([0, 0]);
    }

    fn offer(&mut self, index: usize, slot: u16, bytes: u32, writable: bool) {
        let ring = &mut self.rings[index];
        let at = ring.descriptors + u64::from(slot) * 16;
        let memory = &self.memory;
        memory.write_obj(ring.buffers + u64::from(slot) * BUFFER_BYTES, GuestAddress(at)).expect("in memory");
        memory.write_obj(bytes, GuestAddress(at + 8)).expect("in memory");
        memory.write_obj(if writable { 2_u32 } else { 0 }, GuestAddress(at + 12)).expect("in memory");
        let entry = ring.available + 4 + u64::from(ring.next_available % ENTRIES) * 2;
        memory.write_obj(slot, GuestAddress(entry)).expect("in memory");
        ring.next_available = ring.next_available.wrapping_add(1);
        memory
            .store(ring.next_available, GuestAddress(ring.available + 2), Ordering::Release)
            .expect("in memory");
    }

    /// Gives the device a buffer to fill.
    fn give(&mut self, count: u16) {
        for _ in 0..count {
            let slot = self.rings[0].next_available % ENTRIES;
            self.offer(0, slot, BUFFER_BYTES as u32, true);
        }
        self.rings[0].kick.write(1).expect("a kick");
    }

    fn send(&mut self, operation: Operation, ports: (u32, u32), payload: &[u8]) {
        let header = Header {
            source_cid: u64::from(CID),
            destination_cid: HOST_CID,
            source_port: ports.0,
            destination_port: ports.1,
            length: payload.len() as u32,
            kind: TYPE_STREAM,
            operation: operation.code(),
            buffer_bytes: 1 << 20,
            ..Header::default()
        };
        let slot = self.rings[1].next_available % ENTRIES;
        let at = self.rings[1].buffers + u64::from(slot) * BUFFER_BYTES;
        self.memory.write_slice(&[&header.encode(), payload].concat(), GuestAddress(at)).expect("in memory");
        self.offer(1, slot, (HEADER_BYTES + payload.len()) as u32, false);
        self.rings[1].kick.write(1).expect("a kick");
        self.await_used(1);
    }

    fn await_used(&mut self, index: usize) -> u64 {
        let deadline = Instant::now() + WAIT;
        loop {
            let ring = &mut self.rings[index];
            let used: u16 =
                self.memory.load(GuestAddress(ring.used + 2), Ordering::Acquire).expect("in memory");
            if used != ring.next_used {
                let at = ring.used + 4 + u64::from(ring.next_used % ENTRIES) * 8;
                ring.next_used = ring.next_used.wrapping_add(1);
                let slot: u32 = self.memory.read_obj(GuestAddress(at)).expect("in memory");
                return ring.buffers + u64::from(slot) * BUFFER_BYTES;
            }
            let left = deadline.checked_duration_since(Instant::now()).expect("the device answers in time");
            await_event(&ring.call, left);
            let _ = ring.call.read();
        }
    }

    fn receive(&mut self) -> (Header, Vec<u8>) {
        let at = self.await_used(0);
        let mut head = [0; HEADER_BYTES];
        self.memory.read_slice(&mut head, GuestAddress(at)).expect("in memory");
        let header = Header::decode(&head);
        let mut payload = vec![0; header.length as usize];
        self.memory.read_slice(&mut payload, GuestAddress(at + HEADER_BYTES as u64)).expect("in memory");
        (header, payload)
    }

    fn expect(&mut self, operation: Operation) -> (Header, Vec<u8>) {
        let (header, payload) = self.receive();
        assert_eq!(Operation::from_code(header.operation), Some(operation), "{header:?}");
        (header, payload)
    }

    fn host(&self) -> UnixStream {
        let stream = UnixStream::connect(self.directory.join("vsock")).expect("the device listens");
        stream.set_read_timeout(Some(WAIT)).expect("a time-out");
        stream
    }

    /// A host connection that is open on both sides.
    fn open(&mut self) -> (UnixStream, (u32, u32)) {
        let mut stream = self.host();
        stream.write_all(b"CONNECT 5\n").expect("written");
        let (request, _) = self.expect(Operation::Request);
        let ports = (request.destination_port, request.source_port);
        assert_eq!(ports.0, 5);
        self.send(Operation::Response, ports, &[]);
        let mut line = vec![0; format!("OK {}\n", ports.1).len()];
        stream.read_exact(&mut line).expect("an answer");
        assert_eq!(line, format!("OK {}\n", ports.1).as_bytes());
        (stream, ports)
    }

    /// QEMU goes away.
    fn finish(mut self) {
        self.frontend = None;
        let device = self.device.take().expect("it runs");
        device.join().expect("no panic").expect("an orderly end");
        assert!(!self.directory.join("vsock").exists());
        std::fs::remove_dir_all(&self.directory).expect("removed");
    }
}

/// Waits until an event descriptor is readable.
fn await_event(event: &EventFd, wait: Duration) {
    let epoll = Epoll::new().expect("an epoll set");
    let events = EpollEvent::new(EventSet::IN, 0);
    epoll.ctl(ControlOperation::Add, event.as_raw_fd(), events).expect("added");
    let wait = i32::try_from(wait.as_millis()).expect("a short time");
    epoll.wait(wait, &mut [EpollEvent::default()]).expect("waited");
}

#[test]
fn bytes_go_both_ways_and_ends_are_told() {
    let mut world = World::new();
    world.give(ENTRIES);
    let (mut stream, ports) = world.open();
    stream.write_all(b"to the guest").expect("written");
    assert_eq!(world.expect(Operation::ReadWrite).1, b"to the guest");
    world.send(Operation::ReadWrite, ports, b"to the host");
    let mut bytes = [0; 11];
    stream.read_exact(&mut bytes).expect("bytes");
    assert_eq!(&bytes, b"to the host");
    drop(stream);
    let (header, _) = world.expect(Operation::Shutdown);
    assert!(header.flags & 1 == 1);
    world.finish();
}

#[test]
fn guests_reach_listeners_and_are_refused_where_there_is_none() {
    let mut world = World::new();
    world.give(ENTRIES);
    let listener = UnixListener::bind(world.directory.join("vsock_1025")).expect("a listener");
    world.send(Operation::Request, (900, 1025), &[]);
    world.expect(Operation::Response);
    let (mut stream, _) = listener.accept().expect("a connection");
    world.send(Operation::ReadWrite, (900, 1025), b"ready\n");
    let mut bytes = [0; 6];
    stream.read_exact(&mut bytes).expect("bytes");
    world.send(Operation::Request, (901, 9), &[]);
    let (header, _) = world.expect(Operation::Reset);
    assert_eq!((header.source_port, header.destination_port), (9, 901));
    world.finish();
}

#[test]
fn a_pause_loses_nothing_and_a_new_driver_knows_nothing() {
    let mut world = World::new();
    world.give(ENTRIES / 2);
    let (mut stream, ports) = world.open();
    let bases = world.stop();
    // While the rings are stopped: bytes, newcomers, and one that leaves before its answer.
    stream.write_all(b"sent in the pause").expect("written");
    let mut late = world.host();
    late.write_all(b"CONNECT 5\n").expect("written");
    let mut gone = world.host();
    gone.write_all(b"CONNECT 5\n").expect("written");
    drop(gone);
    world.start(bases);
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let (header, payload) = world.receive();
        match Operation::from_code(header.operation) {
            Some(Operation::ReadWrite) => seen.push(String::from_utf8_lossy(&payload).into_owned()),
            Some(Operation::Request) => seen.push("request".to_owned()),
            _ => panic!("{header:?}"),
        }
    }
    seen.sort();
    assert_eq!(seen, ["request", "sent in the pause"]);
    world.send(Operation::ReadWrite, ports, b"after");
    let mut bytes = [0; 5];
    stream.read_exact(&mut bytes).expect("bytes");
    world.restart();
    assert_eq!(stream.read(&mut bytes).expect("an end"), 0);
    world.give(ENTRIES);
    world.open();
    world.finish();
}

#[test]
fn a_host_that_floods_waits_for_buffers_and_nothing_is_lost() {
    let mut world = World::new();
    world.give(1);
    let (mut stream, ports) = {
        let mut stream = world.host();
        stream.write_all(b"CONNECT 5\n").expect("written");
        let (request, _) = world.expect(Operation::Request);
        (stream, (request.destination_port, request.source_port))
    };
    world.send(Operation::Response, ports, &[]);
    let sent: Vec<u8> = (0..300_000_u32).map(|number| (number % 251) as u8).collect();
    let copy = sent.clone();
    let writer = std::thread::spawn(move || stream.write_all(&copy).map(|()| stream));
    let mut got = Vec::new();
    while got.len() < sent.len() {
        world.give(1);
        got.extend(world.expect(Operation::ReadWrite).1);
    }
    assert_eq!(got, sent);
    drop(writer.join().expect("no panic").expect("written"));
    world.finish();
}

/// Rings full of nonsense: whatever the guest writes, the device neither panics nor ends, and serves the next driver.
#[test]
fn hostile_rings_break_nothing() {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    println!("seed {random}");
    let mut pick = move |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    let mut world = World::new();
    for round in 0..150 {
        let idle = world.host();
        let mut asking = world.host();
        let _ = asking.write_all(b"CONNECT 5\nsome bytes for the guest");
        for _ in 0..40 {
            let index = pick(2) as usize;
            let ring = &world.rings[index];
            let slot = pick(u64::from(ENTRIES));
            let at = ring.descriptors + slot * 16;
            let address = [pick(MEMORY_BYTES), MEMORY_BYTES - 1, u64::MAX, u64::MAX - 43, ring.descriptors]
                [pick(5) as usize];
            let length = [0, 1, 43, 44, 45, 4096, u32::MAX, pick(1 << 20) as u32][pick(8) as usize];
            let (flags, next) =
                (pick(8) as u16, [pick(64) as u16, slot as u16, 63, 64, u16::MAX][pick(5) as usize]);
            world.memory.write_obj(address, GuestAddress(at)).expect("in memory");
            world.memory.write_obj(length, GuestAddress(at + 8)).expect("in memory");
            world.memory.write_obj(flags, GuestAddress(at + 12)).expect("in memory");
            world.memory.write_obj(next, GuestAddress(at + 14)).expect("in memory");
            let head = [slot as u16, 64, u16::MAX][pick(20).min(2) as usize % 3];
            let entry = ring.available + 4 + pick(64) * 2;
            world.memory.write_obj(head, GuestAddress(entry)).expect("in memory");
            let step = [1, 2, 64, 65, pick(65_536) as u16][pick(20).min(4) as usize];
            let index_at = GuestAddress(ring.available + 2);
            let available: u16 = world.memory.load(index_at, Ordering::Acquire).expect("in memory");
            world.memory.store(available.wrapping_add(step), index_at, Ordering::Release).expect("in memory");
            ring.kick.write(1).expect("a kick");
        }
        drop((idle, asking));
        world.restart();
        world.give(ENTRIES);
        // Programs that came before the new driver may still have asked it.
        let mut stream = world.host();
        stream.write_all(b"CONNECT 77\n").expect("written");
        let ports = loop {
            let (header, _) = world.receive();
            if header.operation == Operation::Request.code() && header.destination_port == 77 {
                break (77, header.source_port);
            }
        };
        world.send(Operation::Response, ports, &[]);
        let mut answer = [0; 3];
        stream.read_exact(&mut answer).unwrap_or_else(|error| panic!("round {round}: {error}"));
        assert_eq!(&answer, b"OK ");
    }
    world.finish();
}
