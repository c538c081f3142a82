//! The host's side: the listener at `<uds>`, programs that have not yet said CONNECT, and the sockets of connections.
//!
//! All sockets are non-blocking and stand edge-triggered in the epoll set, once and for both directions; who is readable
//! is remembered by the machine, so that a socket nobody may read from does not wake the process again and again.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::net::{AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType};

use crate::connection::ConnectionId;
use crate::handshake::{self, Handshake, LINE_BYTES_MAX};

/// Programs that are connected and have not yet said CONNECT. More are turned away.
const NEWCOMERS_MAX: usize = 64;

/// How long such a program may take.
const NEWCOMER_MAX: Duration = Duration::from_secs(10);

/// Programs accepted at one wake-up, so that a crowd at the door does not stop the traffic.
const ACCEPTS_MAX: usize = 16;

struct Newcomer {
    stream: UnixStream,
    deadline: Duration,
}

/// What a socket's event meant.
pub(crate) enum Arrival {
    /// Nothing to tell the machine.
    Nothing,
    /// A newcomer wants this port; its socket is now a connection's.
    Connects(u32),
    /// The event belongs to a connection.
    Known,
}

/// All Unix sockets of one VM.
pub(crate) struct Sockets {
    epoll: Arc<OwnedFd>,
    uds: PathBuf,
    /// Device and inode of our socket at `uds`.
    name: Option<(u64, u64)>,
    listener: UnixListener,
    newcomers: HashMap<ConnectionId, Newcomer>,
    streams: HashMap<ConnectionId, UnixStream>,
}

impl Sockets {
    /// Accepts on `listener`, which was bound at `uds` and wakes `epoll` with `token`.
    pub(crate) fn new(
        epoll: Arc<OwnedFd>,
        uds: &Path,
        listener: UnixListener,
        token: u64,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        epoll::add(&*epoll, &listener, EventData::new_u64(token), EventFlags::IN)?;
        Ok(Self {
            epoll,
            uds: uds.to_owned(),
            name: name_of(uds),
            listener,
            newcomers: HashMap::new(),
            streams: HashMap::new(),
        })
    }

    /// Takes in those who knock; `mint` names them.
    pub(crate) fn accept(&mut self, now: Duration, mut mint: impl FnMut() -> ConnectionId) {
        for _ in 0..ACCEPTS_MAX {
            let Ok((stream, _)) = self.listener.accept() else { return };
            if self.newcomers.len() >= NEWCOMERS_MAX || stream.set_nonblocking(true).is_err() {
                continue;
            }
            let id = mint();
            if self.watch(id, &stream).is_ok() {
                self.newcomers.insert(id, Newcomer { stream, deadline: now + NEWCOMER_MAX });
            }
        }
    }

    /// Looks at what an event on a socket means; `ended` tells that its program will write no more.
    pub(crate) fn event(&mut self, id: ConnectionId, ended: bool) -> Arrival {
        if self.streams.contains_key(&id) {
            return Arrival::Known;
        }
        let Some(newcomer) = self.newcomers.get(&id) else { return Arrival::Nothing };
        match read_line(&newcomer.stream) {
            // Killed in the middle of its line: it must not keep a place until its time is up.
            Ok(Handshake::Incomplete) if ended => {
                self.newcomers.remove(&id);
                Arrival::Nothing
            }
            Ok(Handshake::Incomplete) => Arrival::Nothing,
            Ok(Handshake::Connect { port, .. }) => {
                if let Some(newcomer) = self.newcomers.remove(&id) {
                    self.streams.insert(id, newcomer.stream);
                }
                Arrival::Connects(port)
            }
            Ok(Handshake::Malformed) | Err(_) => {
                self.newcomers.remove(&id);
                Arrival::Nothing
            }
        }
    }

    /// Connects to the host's listener for `port`; false where nobody listens (or nobody accepts).
    pub(crate) fn dial(&mut self, id: ConnectionId, port: u32) -> bool {
        let mut path = self.uds.clone().into_os_string();
        path.push(format!("_{port}"));
        let Ok(stream) = connect(Path::new(&path)) else { return false };
        if self.watch(id, &stream).is_err() {
            return false;
        }
        self.streams.insert(id, stream);
        true
    }

    /// Reads for a connection; like [`Read::read`].
    pub(crate) fn read(&mut self, id: ConnectionId, into: &mut [u8]) -> io::Result<usize> {
        match self.streams.get_mut(&id) {
            Some(stream) => retry(|| stream.read(into)),
            None => Err(ErrorKind::NotConnected.into()),
        }
    }

    /// Writes for a connection; like [`Write::write`].
    pub(crate) fn write(&mut self, id: ConnectionId, bytes: &[u8]) -> io::Result<usize> {
        match self.streams.get_mut(&id) {
            Some(stream) => retry(|| stream.write(bytes)),
            None => Err(ErrorKind::NotConnected.into()),
        }
    }

    /// Shuts one direction; a socket whose program has gone needs no shutting.
    pub(crate) fn shut(&self, id: ConnectionId, how: Shutdown) {
        if let Some(stream) = self.streams.get(&id) {
            let _ = stream.shutdown(how);
        }
    }

    /// Closes a connection's socket.
    pub(crate) fn close(&mut self, id: ConnectionId) {
        self.streams.remove(&id);
    }

    /// Number of connections that still have a socket.
    pub(crate) fn open(&self) -> usize {
        self.streams.len()
    }

    /// When [`Sockets::tick`] has to be called next.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        self.newcomers.values().map(|newcomer| newcomer.deadline).min()
    }

    /// Turns away newcomers that said nothing for too long.
    pub(crate) fn tick(&mut self, now: Duration) {
        self.newcomers.retain(|_, newcomer| newcomer.deadline > now);
    }

    fn watch(&self, id: ConnectionId, stream: &UnixStream) -> io::Result<()> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        Ok(epoll::add(&*self.epoll, stream, EventData::new_u64(id.0), flags)?)
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        // A successor may have replaced it while we were still waiting for a QEMU that never came.
        if self.name.is_some() && name_of(&self.uds) == self.name {
            let _ = std::fs::remove_file(&self.uds);
        }
    }
}

fn name_of(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    std::fs::symlink_metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Binds a listener, replacing a socket (nothing else) that stands at the path.
pub(crate) fn bind(path: &Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::FileTypeExt;
    if std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket()) {
        std::fs::remove_file(path)?;
    }
    UnixListener::bind(path)
}

/// Connects without waiting: a listener whose backlog is full must not stop the whole VM's channel.
fn connect(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(UnixStream::from(socket))
}

/// Takes a newcomer's first line from its socket once it is whole, and not one byte more.
fn read_line(stream: &UnixStream) -> io::Result<Handshake> {
    let mut head = [0; LINE_BYTES_MAX];
    let seen = match rustix::net::recv(stream, &mut head, RecvFlags::PEEK) {
        Ok((0, _)) => return Err(ErrorKind::UnexpectedEof.into()),
        Ok((seen, _)) => seen.min(head.len()),
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(Handshake::Incomplete),
        Err(error) => return Err(error.into()),
    };
    let handshake = handshake::parse(&head[..seen]);
    if let Handshake::Connect { line_bytes, .. } = handshake {
        let mut stream = stream;
        stream.read_exact(&mut head[..line_bytes])?;
    }
    Ok(handshake)
}

fn retry(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
