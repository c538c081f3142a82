//! One thread, one epoll set: vhost-user messages, kicks of the rings, and host sockets, in turn. Behaviour lives in
//! [`crate::machine`]; here bytes are only carried.

use std::io::ErrorKind;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use vhost::vhost_user::{BackendReqHandler, Error as VhostError};
use virtio_queue::{Reader, Writer};
use vm_memory::GuestMemoryMmap;

use crate::connection::ConnectionId;
use crate::device::{Device, FROM_GUEST, TO_GUEST};
use crate::machine::{Effect, Machine, Outgoing};
use crate::packet::{HEADER_BYTES, Header, PAYLOAD_BYTES_MAX};
use crate::sockets::{Arrival, Sockets, bind};

/// How long QEMU may take to connect; afterwards the process ends, so that a VM that never started leaves none behind.
const FRONTEND_MAX: Duration = Duration::from_secs(30);

/// How long host programs may take, after QEMU has gone, to read what the guest had sent.
const LINGER_MAX: Duration = Duration::from_secs(5);

/// Packets handled in one direction before the other one, the sockets and QEMU's messages get their turn.
const BATCH_PACKETS: usize = 64;

/// Events taken from the kernel at once.
const EVENTS: usize = 64;

/// Tokens up to here are ours, connections follow: [`Machine::mint`] counts from 1, so this many are skipped.
const TOKENS: u64 = 16;
const TOKEN_FRONTEND: u64 = 0;
const TOKEN_LISTENER: u64 = 1;
const TOKEN_TO_GUEST: u64 = 2;
const TOKEN_FROM_GUEST: u64 = 3;

/// What one device needs to know.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where QEMU connects (`-chardev socket,path=…`).
    pub vhost_socket: PathBuf,
    /// Where host programs connect; guests reach listeners at this path with `_<port>` added.
    pub uds: PathBuf,
    /// The guest's address, at least 3.
    pub guest_cid: u32,
}

/// The two sockets of a device, listening.
#[derive(Debug)]
pub struct Listeners {
    /// At [`Options::vhost_socket`].
    pub frontend: UnixListener,
    /// At [`Options::uds`].
    pub host: UnixListener,
}

impl Listeners {
    /// Binds both, replacing sockets of a former life.
    ///
    /// # Errors
    /// If a path is too long, taken by something else, or its directory is missing.
    pub fn bind(options: &Options) -> anyhow::Result<Self> {
        let listen = |path: &Path| bind(path).with_context(|| format!("listen at {}", path.display()));
        Ok(Self { frontend: listen(&options.vhost_socket)?, host: listen(&options.uds)? })
    }

    /// Takes both from whoever started us, as standard input and output. A process that its starter bound the sockets for can
    /// never bind them late, over those of a successor, if the starter dies.
    ///
    /// # Errors
    /// If the descriptors cannot be duplicated.
    pub fn inherited() -> anyhow::Result<Self> {
        let frontend = std::io::stdin().as_fd().try_clone_to_owned().context("take standard input")?;
        let host = std::io::stdout().as_fd().try_clone_to_owned().context("take standard output")?;
        Ok(Self { frontend: frontend.into(), host: host.into() })
    }
}

/// Serves one VM from when QEMU connects to when it disconnects.
///
/// # Errors
/// If a listener is none, QEMU does not come within 30 seconds, or speaks another protocol.
pub fn run(options: &Options, listeners: Listeners) -> anyhow::Result<()> {
    if options.guest_cid < 3 || options.guest_cid == u32::MAX {
        bail!("the guest's address {} is reserved", options.guest_cid);
    }
    let epoll = Arc::new(epoll::create(CreateFlags::CLOEXEC).context("create an epoll set")?);
    let sockets = Sockets::new(epoll.clone(), &options.uds, listeners.host, TOKEN_LISTENER)
        .context("watch the host's socket")?;
    let stream = accept_frontend(&listeners.frontend, &options.vhost_socket)?;
    drop(listeners.frontend);
    Daemon::new(u64::from(options.guest_cid), epoll, sockets, stream)?.serve()
}

fn accept_frontend(listener: &UnixListener, path: &Path) -> anyhow::Result<UnixStream> {
    use rustix::event::{PollFd, PollFlags, poll};
    let wait = Timespec::try_from(FRONTEND_MAX).context("convert a time")?;
    let came = poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&wait)).context("wait for QEMU")?;
    if came == 0 {
        bail!("QEMU did not connect within {} s", FRONTEND_MAX.as_secs());
    }
    let (stream, _) = listener.accept().context("accept QEMU's connection")?;
    // One VM, one frontend: nobody else finds this door. (A successor cannot have bound it: QEMU came to us.)
    let _ = std::fs::remove_file(path);
    Ok(stream)
}

/// Whether there is more to do before sleeping.
#[derive(Clone, Copy, PartialEq, Eq)]
enum More {
    Yes,
    No,
}

struct Daemon {
    epoll: Arc<OwnedFd>,
    started: Instant,
    machine: Machine,
    sockets: Sockets,
    device: Arc<Mutex<Device>>,
    frontend: BackendReqHandler<Mutex<Device>>,
    /// A second descriptor of the same connection: the one that stands in the epoll set.
    frontend_watch: UnixStream,
    scratch: Vec<u8>,
}

impl Daemon {
    fn new(
        guest_cid: u64,
        epoll: Arc<OwnedFd>,
        sockets: Sockets,
        stream: UnixStream,
    ) -> anyhow::Result<Self> {
        let frontend_watch = stream.try_clone().context("duplicate QEMU's connection")?;
        epoll::add(&*epoll, &frontend_watch, EventData::new_u64(TOKEN_FRONTEND), EventFlags::IN)
            .context("watch QEMU's connection")?;
        let device = Device::new(guest_cid, &epoll, [TOKEN_TO_GUEST, TOKEN_FROM_GUEST])?;
        let device = Arc::new(Mutex::new(device));
        let frontend = BackendReqHandler::from_stream(stream, device.clone());
        let mut machine = Machine::new(guest_cid);
        for _ in 0..TOKENS {
            machine.mint();
        }
        let scratch = vec![0; HEADER_BYTES + PAYLOAD_BYTES_MAX];
        Ok(Self {
            epoll,
            started: Instant::now(),
            machine,
            sockets,
            device,
            frontend,
            frontend_watch,
            scratch,
        })
    }

    fn serve(mut self) -> anyhow::Result<()> {
        let mut events = Vec::with_capacity(EVENTS);
        let mut more = More::No;
        loop {
            self.wait(&mut events, more)?;
            for event in events.drain(..) {
                if event.data.u64() == TOKEN_FRONTEND {
                    if !self.frontend_speaks()? {
                        return self.linger();
                    }
                } else {
                    self.event(event.data.u64(), event.flags);
                }
            }
            self.machine.tick(self.now());
            self.sockets.tick(self.now());
            self.effects();
            more = self.pump();
        }
    }

    fn wait(&self, events: &mut Vec<epoll::Event>, more: More) -> anyhow::Result<()> {
        let deadline = self.machine.deadline().into_iter().chain(self.sockets.deadline()).min();
        let wait = match (more, deadline) {
            (More::Yes, _) => Some(Timespec::default()),
            // A millisecond more, so that the deadline has surely passed when we wake.
            (More::No, Some(deadline)) => {
                let wait = deadline.saturating_sub(self.now()) + Duration::from_millis(1);
                Some(Timespec::try_from(wait).context("convert a time")?)
            }
            (More::No, None) => None,
        };
        match epoll::wait(&*self.epoll, spare_capacity(events), wait.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error).context("wait for events"),
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Handles one message of QEMU; false when it has gone. A message that asks for what is not offered is no reason
    /// to leave the guest without its channel.
    fn frontend_speaks(&mut self) -> anyhow::Result<bool> {
        match self.frontend.handle_request() {
            Ok(()) | Err(VhostError::SocketRetry(_)) => {}
            Err(
                error @ (VhostError::InvalidParam
                | VhostError::InvalidOperation(_)
                | VhostError::InactiveFeature(_)
                | VhostError::InactiveOperation(_)
                | VhostError::ReqHandlerError(_)
                | VhostError::BackendInternalError),
            ) => {
                // QEMU sends a few messages at each start of the device, so this cannot flood the log.
                eprintln!("refused a message of QEMU: {error}");
            }
            Err(VhostError::Disconnected | VhostError::SocketBroken(_) | VhostError::PartialMessage) => {
                return Ok(false);
            }
            Err(error) => return Err(error).context("talk to QEMU"),
        }
        if lock(&self.device).take_restarted() {
            self.machine.guest_restarted(self.now());
            self.effects();
        }
        Ok(true)
    }

    fn event(&mut self, token: u64, flags: EventFlags) {
        match token {
            TOKEN_LISTENER => {
                let now = self.now();
                let machine = &mut self.machine;
                self.sockets.accept(now, || machine.mint());
            }
            TOKEN_TO_GUEST => lock(&self.device).rings[TO_GUEST].take_kick(),
            TOKEN_FROM_GUEST => lock(&self.device).rings[FROM_GUEST].take_kick(),
            token => self.socket_event(ConnectionId(token), flags),
        }
    }

    fn socket_event(&mut self, id: ConnectionId, flags: EventFlags) {
        let ended = flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
        match self.sockets.event(id, ended) {
            Arrival::Nothing => return,
            Arrival::Connects(port) => self.machine.host_connects(id, port),
            Arrival::Known => {
                if flags.intersects(EventFlags::IN | EventFlags::RDHUP) {
                    self.machine.host_readable(id);
                }
                if flags.contains(EventFlags::OUT) {
                    self.flush(id);
                }
            }
        }
        if flags.intersects(EventFlags::HUP | EventFlags::ERR) {
            self.machine.host_hung_up(id);
        }
        self.effects();
    }

    fn effects(&mut self) {
        while let Some(effect) = self.machine.effect() {
            match effect {
                Effect::Dial { connection, port } => {
                    let listening = self.sockets.dial(connection, port);
                    self.machine.dialled(connection, listening);
                }
                Effect::Flush(id) => self.flush(id),
                Effect::ShutRead(id) => self.sockets.shut(id, Shutdown::Read),
                Effect::ShutWrite(id) => self.sockets.shut(id, Shutdown::Write),
                Effect::Close(id) => self.sockets.close(id),
            }
        }
    }

    fn flush(&mut self, id: ConnectionId) {
        loop {
            let bytes = self.machine.to_host(id);
            if bytes.is_empty() {
                return;
            }
            match self.sockets.write(id, bytes) {
                Ok(written) => self.machine.host_wrote(id, written),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.machine.host_hung_up(id);
                    return;
                }
            }
        }
    }

    /// Moves packets both ways, a batch each.
    fn pump(&mut self) -> More {
        let device = self.device.clone();
        let mut device = lock(&device);
        let Some(memory) = device.memory.clone() else { return More::No };
        let from_guest = self.take(&mut device, &memory);
        let to_guest = self.give(&mut device, &memory);
        for ring in &mut device.rings {
            ring.signal(&memory);
        }
        if from_guest == More::Yes || to_guest == More::Yes { More::Yes } else { More::No }
    }

    /// Takes packets from the guest.
    fn take(&mut self, device: &mut Device, memory: &GuestMemoryMmap) -> More {
        let ring = &mut device.rings[FROM_GUEST];
        for _ in 0..BATCH_PACKETS {
            let Some(chain) = ring.pop(memory) else {
                return if ring.listen(memory) { More::Yes } else { More::No };
            };
            let head = chain.head_index();
            if let Ok(reader) = Reader::new(memory, chain) {
                self.take_packet(reader);
            }
            ring.push(memory, head, 0);
        }
        More::Yes
    }

    fn take_packet(&mut self, mut reader: Reader<'_>) {
        use std::io::Read;
        let mut header = [0; HEADER_BYTES];
        if reader.read_exact(&mut header).is_err() {
            return;
        }
        let header = Header::decode(&header);
        let length = usize::try_from(header.length).unwrap_or(usize::MAX);
        let honest = length <= PAYLOAD_BYTES_MAX && length <= reader.available_bytes();
        let length = if honest { length } else { 0 };
        if reader.read_exact(&mut self.scratch[..length]).is_ok() {
            self.machine.packet(&header, &self.scratch[..length], self.started.elapsed());
            self.effects();
        }
    }

    /// Fills the guest's buffers.
    fn give(&mut self, device: &mut Device, memory: &GuestMemoryMmap) -> More {
        let ring = &mut device.rings[TO_GUEST];
        for _ in 0..BATCH_PACKETS {
            if !self.machine.has_outgoing() {
                return More::No;
            }
            let Some(chain) = ring.pop(memory) else {
                return if ring.listen(memory) { More::Yes } else { More::No };
            };
            let head = chain.head_index();
            let written = match Writer::new(memory, chain) {
                // A buffer without room for a byte of payload is of no use, and goes back empty.
                Ok(writer) if writer.available_bytes() > HEADER_BYTES => self.give_packet(writer),
                _ => Some(0),
            };
            match written {
                Some(bytes) => ring.push(memory, head, bytes),
                None => {
                    ring.unpop();
                    return More::No;
                }
            }
        }
        More::Yes
    }

    /// Writes the next packet; nothing if there is none after all.
    fn give_packet(&mut self, mut writer: Writer<'_>) -> Option<usize> {
        use std::io::Write;
        let room = writer.available_bytes() - HEADER_BYTES;
        loop {
            let outgoing = self.machine.next(self.now());
            self.effects();
            let (header, length) = match outgoing? {
                Outgoing::Control(header) => (header, 0),
                Outgoing::Data { connection, bytes_max } => match self.read(connection, bytes_max, room) {
                    Some(read) => read,
                    None => continue,
                },
            };
            // The writer has room for both; guest memory does not go away while the device is locked.
            let written =
                writer.write_all(&header.encode()).and_then(|()| writer.write_all(&self.scratch[..length]));
            return Some(if written.is_ok() { HEADER_BYTES + length } else { 0 });
        }
    }

    /// Reads from a connection's socket into the scratch buffer and makes the header for it.
    fn read(&mut self, id: ConnectionId, bytes_max: u32, room: usize) -> Option<(Header, usize)> {
        let limit = usize::try_from(bytes_max).unwrap_or(usize::MAX).min(room).min(PAYLOAD_BYTES_MAX);
        match self.sockets.read(id, &mut self.scratch[..limit]) {
            Ok(0) => self.machine.host_ended(id),
            Ok(length) => {
                let header = self.machine.data_read(id, u32::try_from(length).ok()?)?;
                return Some((header, length));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => self.machine.data_blocked(id),
            Err(_) => self.machine.host_failed(id),
        }
        self.effects();
        None
    }

    /// QEMU has gone: lets host programs read the guest's last words, then ends.
    fn linger(mut self) -> anyhow::Result<()> {
        self.machine.guest_restarted(self.now());
        self.effects();
        let end = self.now() + LINGER_MAX;
        // Its end would wake us for ever.
        let _ = epoll::delete(&*self.epoll, &self.frontend_watch);
        let mut events = Vec::with_capacity(EVENTS);
        while self.sockets.open() > 0 && self.now() < end {
            let wait = Timespec::try_from(end.saturating_sub(self.now())).context("convert a time")?;
            match epoll::wait(&*self.epoll, spare_capacity(&mut events), Some(&wait)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).context("wait for events"),
            }
            for event in events.drain(..) {
                if event.data.u64() >= TOKENS {
                    self.socket_event(ConnectionId(event.data.u64()), event.flags);
                }
            }
        }
        Ok(())
    }
}

fn lock(device: &Mutex<Device>) -> std::sync::MutexGuard<'_, Device> {
    // One thread holds it at a time; a poisoned lock cannot be met.
    device.lock().unwrap_or_else(PoisonError::into_inner)
}
