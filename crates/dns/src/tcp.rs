//! The TCP ports (RFC 7766): messages one after the other, each answered before the next is read.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::answer::Verdict;
use crate::counters::count;
use crate::forward::Forwarder;
use crate::reply::Transport;
use crate::state::Shared;
use crate::tickets::Tickets;
use crate::wire::QUERY_BYTES_MAX;

/// Connections of one port at once; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 256;
/// Connections of one address at once, so that one client cannot hold them all; more are closed.
const CONNECTIONS_OF_ONE_MAX: usize = 32;
/// From one message's end to the next one's: a connection without a whole query for so long is closed.
const IDLE_MAX: Duration = Duration::from_secs(5);
/// How long a client may take to make room for an answer.
const WRITE_MAX: Duration = Duration::from_secs(5);
/// Before another connection is taken when one could not be: what is short (descriptors, memory) takes its time.
const PAUSE: Duration = Duration::from_millis(100);

/// What a connection works with.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) shared: Arc<Shared>,
    pub(crate) forwarder: Option<Forwarder>,
}

/// Takes connections for ever. They end when this is dropped.
pub(crate) async fn serve(listener: TcpListener, service: Service) {
    let tickets = Tickets::new(CONNECTIONS_MAX, CONNECTIONS_OF_ONE_MAX);
    let mut connections = JoinSet::new();
    loop {
        let has_room = connections.len() < CONNECTIONS_MAX;
        tokio::select! {
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept(), if has_room => match accepted {
                Ok((stream, peer)) => {
                    let Some(ticket) = tickets.take(peer.ip()) else { continue };
                    count(&service.shared.counters.tcp_connections);
                    let service = service.clone();
                    connections.spawn(async move {
                        // How a client's connection ends is its own affair.
                        let _ = converse(stream, peer.ip(), &service).await;
                        drop(ticket);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection for DNS could not be taken");
                    sleep(PAUSE).await;
                }
            },
        }
    }
}

/// Answers until the client goes, says nothing for too long, or says what is no query.
async fn converse(stream: TcpStream, client: IpAddr, service: &Service) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::with_capacity(QUERY_BYTES_MAX + 2, stream);
    let (mut message, mut reply, mut framed) = (Vec::new(), Vec::new(), Vec::new());
    loop {
        timeout(IDLE_MAX, read(&mut stream, &mut message)).await??;
        match service.shared.answer(Transport::Tcp, &message, &mut reply) {
            Verdict::Silence => return Ok(()),
            Verdict::Send { .. } => {}
            Verdict::Forward => {
                let Some(forwarder) = &service.forwarder else { return Ok(()) };
                forwarder.answer(client, &message, None, &mut reply).await;
            }
            Verdict::Follow => {
                let Some(forwarder) = &service.forwarder else { return Ok(()) };
                let begun = reply.clone();
                forwarder.answer(client, &message, Some(&begun), &mut reply).await;
            }
        }
        framed.clear();
        framed.extend_from_slice(&length(&reply)?.to_be_bytes());
        framed.extend_from_slice(&reply);
        timeout(WRITE_MAX, stream.write_all(&framed)).await??;
    }
}

async fn read(stream: &mut BufReader<TcpStream>, message: &mut Vec<u8>) -> io::Result<()> {
    let length = usize::from(stream.read_u16().await?);
    if length > QUERY_BYTES_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    message.resize(length, 0);
    stream.read_exact(message).await?;
    Ok(())
}

/// The length that goes before a message.
pub(crate) fn length(message: &[u8]) -> io::Result<u16> {
    u16::try_from(message.len()).map_err(io::Error::other)
}
