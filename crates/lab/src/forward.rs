//! Ports of 127.0.0.1 that lead into a lab which the machine's own network does not reach: those of its servers, and
//! port 80 of its first VMs.
//!
//! A socket stays in the network namespace in which it was made. The listeners were made outside, by the process that
//! then moved into the lab's namespaces; they are accepted on here, inside, and what they bring is carried to addresses
//! that exist inside only. No other process has a part in it.

use std::fmt;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lightbyte_link::{Endpoint, Listener, Stream};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf, split};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

/// How many VMs have a port: those with the first addresses.
pub const VM_PORTS: u16 = 32;
/// The port of a VM that is reached.
pub const VM_PORT: u16 = 80;
/// How many connections there may be at once to VMs, and as many to servers; later ones are closed at once. Each costs
/// two descriptors, of which a process usually has 1024.
const CONNECTIONS_MAX: usize = 192;
/// How long a connection may be silent: watches are, for as long as nothing changes.
const IDLE_MAX: Duration = Duration::from_secs(3_600);
/// How long the other end may take to answer.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// What is carried at a time in one direction.
const BUFFER_BYTES: usize = 16 << 10;
/// The pause when nothing can be accepted, as when there are too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Which ports lead where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forwards {
    /// The servers, as they are reached from outside.
    pub servers: Vec<String>,
    /// The port that leads to the first VM; the next one leads to the next, [`VM_PORTS`] of them.
    pub first_port: u16,
    /// The address of the first VM.
    pub first_vm: Ipv4Addr,
}

impl Forwards {
    fn vm(&self, index: u16) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.first_vm) + u32::from(index))
    }
}

impl fmt::Display for Forwards {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, last) = (self.first_port, self.first_port + VM_PORTS - 1);
        let (first_vm, last_vm) = (self.first_vm, self.vm(VM_PORTS - 1));
        write!(
            formatter,
            "http://127.0.0.1:{first}/ is port {VM_PORT} of {first_vm}, and so on to port {last} for {last_vm}"
        )
    }
}

/// Accepts on each listener for as long as this process lives, and carries what comes to its target. They share the
/// room for [`CONNECTIONS_MAX`].
///
/// # Errors
/// When a listener cannot be watched.
pub fn serve(listeners: impl IntoIterator<Item = (OwnedFd, Endpoint)>) -> io::Result<()> {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    for (listener, target) in listeners {
        tokio::spawn(accept_all(Listener::inherited(listener)?, target, Arc::clone(&room)));
    }
    Ok(())
}

async fn accept_all(mut listener: Listener, target: Endpoint, room: Arc<Semaphore>) {
    loop {
        match listener.accept().await {
            Ok((client, _)) => {
                if let Ok(place) = Arc::clone(&room).try_acquire_owned() {
                    let target = target.clone();
                    tokio::spawn(async move {
                        // What goes wrong with a connection shows at both of its ends, and concerns nobody else.
                        let _ = carry(client, &target).await;
                        drop(place);
                    });
                }
            }
            Err(error) => {
                tracing::debug!(%error, "accept a forwarded connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Carries bytes both ways until both directions have ended, one of them breaks, or nothing has moved for
/// [`IDLE_MAX`].
async fn carry(client: Stream, target: &Endpoint) -> io::Result<()> {
    let stream = timeout(CONNECT_WITHIN, target.connect()).await??;
    let activity = Activity::new();
    let (from_target, to_target) = split(stream);
    let (from_client, to_client) = split(client);
    let both = async {
        tokio::try_join!(
            one_way(from_client, to_target, &activity),
            one_way(from_target, to_client, &activity)
        )
    };
    tokio::select! {
        ended = both => ended.map(drop),
        () = activity.idle() => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Carries bytes one way, and then their end.
async fn one_way(
    mut from: ReadHalf<Stream>,
    mut to: WriteHalf<Stream>,
    activity: &Activity,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let bytes = from.read(&mut buffer).await?;
        activity.note();
        if bytes == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..bytes]).await?;
    }
}

/// When something was carried last.
struct Activity {
    begun: Instant,
    last_ms: AtomicU64,
}

impl Activity {
    fn new() -> Activity {
        Activity { begun: Instant::now(), last_ms: AtomicU64::new(0) }
    }

    fn note(&self) {
        let now_ms = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(now_ms, Ordering::Relaxed);
    }

    /// Ends when nothing was carried for [`IDLE_MAX`].
    async fn idle(&self) {
        loop {
            let last = self.begun + Duration::from_millis(self.last_ms.load(Ordering::Relaxed));
            if last.elapsed() >= IDLE_MAX {
                return;
            }
            tokio::time::sleep_until(last + IDLE_MAX).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn people_are_told_the_first_and_the_last() {
        let forwards =
            Forwards { servers: Vec::new(), first_port: 20_101, first_vm: Ipv4Addr::new(10, 77, 1, 1) };
        assert_eq!(
            forwards.to_string(),
            "http://127.0.0.1:20101/ is port 80 of 10.77.1.1, and so on to port 20132 for 10.77.1.32"
        );
    }

    #[tokio::test]
    async fn bytes_go_both_ways_and_each_end_is_told_of_the_others() {
        let target = TcpListener::bind("127.0.0.1:0").expect("a target");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let outside = listener.local_addr().expect("its address");
        let inside = target.local_addr().expect("its address");
        serve([(listener.into(), Endpoint::Tcp("127.0.0.1".to_owned(), inside.port()))]).expect("it serves");
        let echo = std::thread::spawn(move || {
            let (mut stream, _) = target.accept().expect("it is reached");
            let mut text = Vec::new();
            stream.read_to_end(&mut text).expect("everything up to the end");
            stream.write_all(&text).expect("it answers after the end");
        });
        let sent: Vec<u8> = (0..3_000_000_u32).map(|index| (index % 251) as u8).collect();
        let expected = sent.clone();
        let received = tokio::task::spawn_blocking(move || {
            let mut stream = TcpStream::connect(outside).expect("it connects");
            stream.write_all(&sent).expect("it sends");
            stream.shutdown(std::net::Shutdown::Write).expect("it ends");
            let mut received = Vec::new();
            stream.read_to_end(&mut received).expect("it receives");
            received
        });
        assert!(received.await.expect("no panic") == expected, "what was sent comes back");
        echo.join().expect("no panic");
    }

    #[tokio::test]
    async fn what_is_not_there_is_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let outside = listener.local_addr().expect("its address");
        let nobody = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address");
        serve([(listener.into(), Endpoint::Tcp("127.0.0.1".to_owned(), nobody.port()))]).expect("it serves");
        let end = tokio::task::spawn_blocking(move || {
            TcpStream::connect(outside).expect("it connects").read(&mut [0; 1])
        });
        assert!(matches!(end.await.expect("no panic"), Ok(0) | Err(_)));
    }
}
