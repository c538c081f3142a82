//! Ports that appear and go while the proxy runs.
//!
//! The HTTP library binds its ports when it starts and never again. So the ports are ours: each is a task that takes
//! connections and hands them to the library, and nothing needs a restart.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use lightbyte_api::topology::{Listener, Protocol, ProxyProtocol};
use pingora_core::apps::ServerApp as _;
use pingora_core::listeners::tls::Acceptor;
use pingora_core::protocols::Stream;
use pingora_proxy::HttpProxy;
use rustix::io::Errno;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Notify, oneshot, watch};

use crate::certificates::Resolver;
use crate::connection::{Connection, Watched};
use crate::framed::Framed;
use crate::gateway::Gateway;
use crate::leaving::{self, Leaving};
use crate::lock::lock;
use crate::proxy_header;
use crate::say::say;
use crate::table::Table;

/// Connections that wait in the kernel until they are taken.
const BACKLOG: u32 = 4_096;

/// Pause after a failed accept, which otherwise could repeat at once for ever (no descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a PROXY header and a TLS handshake may take together.
const HELLO_MAX: Duration = Duration::from_secs(10);

/// What every listener needs.
pub(crate) struct Shared {
    pub(crate) table: Arc<ArcSwap<Table>>,
    pub(crate) proxy: Arc<HttpProxy<Gateway>>,
    pub(crate) stopping: watch::Receiver<bool>,
    acceptor: Acceptor,
    /// The virtual address that is left.
    pub(crate) leaving: Arc<Leaving>,
    connections: AtomicUsize,
    /// Ports whose sockets are open, those that are about to go included.
    open_ports: AtomicUsize,
    closed: Notify,
}

/// The ports that are listened on.
pub(crate) struct Listeners {
    shared: Arc<Shared>,
    running: Mutex<HashMap<SocketAddr, Running>>,
}

/// Ends its task when it is dropped.
struct Running {
    port: u16,
    _stop: oneshot::Sender<()>,
}

/// Sockets that are bound and not yet used.
pub(crate) type Bound = Vec<(Listener, TcpListener)>;

/// A listener whose socket could not be bound.
#[derive(Debug)]
pub(crate) struct Unbound {
    pub(crate) name: String,
    pub(crate) port: u16,
    pub(crate) reason: String,
}

impl Shared {
    /// # Errors
    /// If TLS cannot be set up.
    pub(crate) fn new(
        table: Arc<ArcSwap<Table>>,
        proxy: Arc<HttpProxy<Gateway>>,
        stopping: watch::Receiver<bool>,
    ) -> anyhow::Result<Arc<Shared>> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Resolver { table: table.clone() }));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = Acceptor::from_server_config(Arc::new(config));
        let (connections, open_ports) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Ok(Arc::new(Shared {
            table,
            proxy,
            stopping,
            acceptor,
            leaving: Arc::default(),
            connections,
            open_ports,
            closed: Notify::new(),
        }))
    }

    /// Connections of clients that are open.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

impl Listeners {
    pub(crate) fn new(shared: Arc<Shared>) -> Listeners {
        Listeners { shared, running: Mutex::default() }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Binds what a table has and is not listened on yet. Changes nothing.
    pub(crate) fn bind(&self, table: &Table) -> (Bound, Vec<Unbound>) {
        let running = lock(&self.running);
        let (mut bound, mut failed) = (Bound::new(), Vec::new());
        for listener in table.listeners.values().filter(|listener| !running.contains_key(&listener.address()))
        {
            match bind(listener.address()) {
                Ok(socket) => bound.push((listener.clone(), socket)),
                Err(error) => {
                    let reason = format!("listen on {}: {error}", listener.address());
                    failed.push(Unbound { name: listener.name.clone(), port: listener.port, reason });
                }
            }
        }
        (bound, failed)
    }

    /// Takes connections on what was bound, and none any more on what the table does not have.
    pub(crate) fn switch(&self, table: &Table, bound: Bound) {
        let mut running = lock(&self.running);
        running
            .retain(|address, run| table.listeners.get(&run.port).is_some_and(|is| is.address() == *address));
        for (listener, socket) in bound {
            let (stop, stopped) = oneshot::channel();
            running.insert(listener.address(), Running { port: listener.port, _stop: stop });
            let open = OpenPort::new(self.shared.clone(), socket);
            tokio::spawn(accept(open, listener, stopped));
        }
    }

    /// Takes no connections any more.
    pub(crate) fn close(&self) {
        lock(&self.running).clear();
    }

    /// Whether every socket is closed, so that somebody else may have the ports.
    pub(crate) fn are_closed(&self) -> bool {
        self.shared.open_ports.load(Ordering::Relaxed) == 0
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let is_for_all = address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let socket = match socket {
        // A kernel without IPv6: all addresses are those of IPv4.
        Err(error) if is_for_all && error.raw_os_error() == Some(Errno::AFNOSUPPORT.raw_os_error()) => {
            return bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port())));
        }
        socket => socket?,
    };
    if is_for_all {
        // All addresses are those of both families, whatever the machine's default is.
        SockRef::from(&socket).set_only_v6(false)?;
    }
    socket.set_reuseaddr(true)?;
    // So that a listener may move to another address of its port, which overlaps with the one that it leaves. A socket of
    // somebody else is in the way all the same: both have to ask for this.
    socket.set_reuseport(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Counts a port while its socket is open, whatever ends its task.
struct OpenPort {
    shared: Arc<Shared>,
    // Closed before it is counted as closed.
    socket: Option<TcpListener>,
}

impl OpenPort {
    fn new(shared: Arc<Shared>, socket: TcpListener) -> OpenPort {
        shared.open_ports.fetch_add(1, Ordering::Relaxed);
        OpenPort { shared, socket: Some(socket) }
    }
}

impl Drop for OpenPort {
    fn drop(&mut self) {
        self.socket = None;
        self.shared.open_ports.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn accept(mut open: OpenPort, mut listener: Listener, mut stopped: oneshot::Receiver<()>) {
    let shared = open.shared.clone();
    let Some(socket) = &open.socket else { return };
    let mut held = shared.leaving.held();
    held.mark_changed();
    loop {
        tokio::select! {
            biased;
            _ = &mut stopped => break,
            () = room(&shared) => {}
        }
        let accepted = tokio::select! {
            biased;
            _ = &mut stopped => break,
            // Whoever could tell is there for as long as this port is.
            Ok(()) = held.changed() => {
                let address = *held.borrow_and_update();
                if let Err(error) = leaving::hold(socket, address) {
                    say(format_args!("filter who begins on port {}: {error}", listener.port));
                }
                continue;
            }
            accepted = socket.accept() => accepted,
        };
        // What a port speaks may change while it is open; once it is gone, it speaks what it last did.
        if let Some(now) = shared.table.load().listeners.get(&listener.port) {
            listener = now.clone();
        }
        match accepted {
            Ok((stream, peer)) => begin(&shared, listener.clone(), stream, peer),
            Err(error) => {
                // One client that has gone already, or no descriptors left: neither ends the port.
                say(format_args!("accept on port {}: {error}", listener.port));
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    if let Some(socket) = open.socket.take() {
        drain(&shared, &listener, socket);
    }
}

/// What the kernel has taken for a port that is to go is served: its clients have done nothing wrong. Asked of the kernel
/// itself, since the runtime may not have heard of it yet.
fn drain(shared: &Arc<Shared>, listener: &Listener, socket: TcpListener) {
    let Ok(socket) = socket.into_std() else { return };
    for _ in 0..BACKLOG {
        let Ok((stream, peer)) = socket.accept() else { return };
        let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
        if let Ok(stream) = stream {
            begin(shared, listener.clone(), stream, peer);
        }
    }
}

/// Waits until there may be one more connection.
async fn room(shared: &Shared) {
    loop {
        let closed = shared.closed.notified();
        let connections_max = shared.table.load().limits.connections_max as usize;
        if shared.connections() < connections_max {
            return;
        }
        closed.await;
    }
}

/// Counts a connection while it lives, whatever ends it.
struct Open(Arc<Shared>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
        self.0.closed.notify_waiters();
    }
}

fn begin(shared: &Arc<Shared>, listener: Listener, stream: TcpStream, peer: SocketAddr) {
    // A port of IPv6 takes those of IPv4 too, under a name that nobody knows them by.
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    shared.connections.fetch_add(1, Ordering::Relaxed);
    let open = Open(shared.clone());
    // A panic in a request ends this task and the connection with it, nothing else.
    tokio::spawn(async move {
        serve(&open.0, &listener, stream, peer).await;
        drop(open);
    });
}

async fn serve(shared: &Arc<Shared>, listener: &Listener, stream: TcpStream, peer: SocketAddr) {
    let Ok(local) = stream.local_addr() else { return };
    let local = leaving::place_of(local.ip());
    let _counted = Counted::new(shared.leaving.clone(), local);
    let hello = tokio::time::timeout(HELLO_MAX, hello(shared, listener, stream, (peer, local))).await;
    // Who says nothing, or nonsense, before the first request is closed without a word.
    let Ok(Some((mut stream, connection))) = hello else {
        return;
    };
    connection.begin_anew();
    let limits = || shared.table.load().limits;
    let stopping = shared.stopping.clone();
    let process = async {
        while let Some(again) = shared.proxy.process_new(stream, &stopping).await {
            stream = again;
        }
    };
    let ends = async {
        tokio::select! {
            () = connection.outlived(limits) => {}
            () = connection.left(shared.stopping.clone()) => {}
            () = connection.departed() => {}
        }
    };
    // By itself it would be asked with each packet of a request; so it is only when it wakes.
    let mut ends: FuturesUnordered<_> = std::iter::once(ends).collect();
    tokio::select! {
        biased;
        () = process => {}
        _ = ends.next() => {}
    }
}

/// Counts a connection at the address that it came in at from the first moment on, whatever ends it.
struct Counted {
    leaving: Arc<Leaving>,
    local: Ipv4Addr,
    generation: u64,
}

impl Counted {
    fn new(leaving: Arc<Leaving>, local: Ipv4Addr) -> Counted {
        let generation = leaving.opened(local);
        Counted { leaving, local, generation }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.leaving.closed(self.local, self.generation);
    }
}

async fn hello(
    shared: &Arc<Shared>,
    listener: &Listener,
    mut stream: TcpStream,
    (mut peer, local): (SocketAddr, Ipv4Addr),
) -> Option<(Stream, Arc<Connection>)> {
    stream.set_nodelay(true).ok()?;
    if listener.proxy_protocol == ProxyProtocol::Required {
        // Whoever could write a header could write who he is.
        if !shared.table.load().trusts(peer.ip()) {
            return None;
        }
        peer = proxy_header::read(&mut stream).await.ok()?.unwrap_or(peer);
    }
    let connection = Connection::new(listener, peer, local, shared.leaving.clone());
    let watched = Watched::new(stream, connection.clone()).ok()?;
    let stream: Stream = match listener.protocol {
        Protocol::Http => Box::new(watched),
        Protocol::Https => Box::new(shared.acceptor.tls_handshake(watched).await.ok()?),
    };
    Some((Box::new(Framed::new(stream, connection.clone())), connection))
}
