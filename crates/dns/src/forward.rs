//! Asking others for names that are not the zone's.
//!
//! Queries and answers go on as they are, but for the id. Nothing is kept: whoever is asked has a cache. A stranger who
//! wants to answer in another's place has to guess an id and a port for each query (RFC 5452): every try has a random id
//! and a socket of its own, with a port that the kernel draws, and the socket takes only what comes from whom it asked.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket as StdUdpSocket};
use std::sync::{Arc, Weak};
use std::time::Duration;

use rustix::net::{SendFlags, sendto};
use rustix::rand::{GetRandomFlags, getrandom};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::alias;
use crate::answer;
use crate::counters::count;
use crate::reply::{Transport, udp_bytes_max};
use crate::state::Shared;
use crate::tcp::length;
use crate::tickets::{Ticket, Tickets};
use crate::wire::{self, HEADER_BYTES, Rcode, UDP_BYTES_MAX, flag, u16_at};

/// Resolvers that are asked, at most: more tries than clients wait for would help nobody.
pub(crate) const UPSTREAMS_MAX: usize = 3;
/// Queries in flight at once. Each has a socket.
const IN_FLIGHT_MAX: usize = 512;
/// Queries in flight of one client, so that one whose names nobody answers does not take others' places.
const IN_FLIGHT_OF_ONE_MAX: usize = 64;
/// Tries for a query, over all resolvers.
const TRIES_MAX: usize = 3;
/// How long one try waits over UDP.
const UDP_TRY: Duration = Duration::from_millis(1_500);
/// How long one try waits over TCP, from the connection to the end of the answer.
const TCP_TRY: Duration = Duration::from_secs(3);
/// How long all tries of a query take together: clients ask again after 5 s.
const ALL_TRIES: Duration = Duration::from_millis(4_800);
/// Messages that one try looks at. Who sends more that do not fit is guessing.
const GUESSES_MAX: usize = 16;

/// Who asked over UDP.
pub(crate) struct Client {
    /// Gone when the port is closed: a query in flight does not keep it.
    pub(crate) socket: Weak<StdUdpSocket>,
    pub(crate) address: SocketAddr,
}

/// A query over UDP that waits for its turn.
struct Job {
    message: Vec<u8>,
    begun: Option<Vec<u8>>,
    client: Client,
    ticket: Ticket,
}

/// Asks others.
#[derive(Clone, Debug)]
pub(crate) struct Forwarder {
    upstreams: Arc<[SocketAddr]>,
    tickets: Tickets,
    jobs: mpsc::Sender<Job>,
    shared: Arc<Shared>,
}

impl Forwarder {
    /// Starts to ask. What runs ends when the tasks are dropped.
    pub(crate) fn start(
        upstreams: &[SocketAddr],
        shared: &Arc<Shared>,
        tasks: &mut JoinSet<()>,
    ) -> Forwarder {
        let (jobs, received) = mpsc::channel(IN_FLIGHT_MAX);
        let forwarder = Forwarder {
            upstreams: upstreams.into(),
            tickets: Tickets::new(IN_FLIGHT_MAX, IN_FLIGHT_OF_ONE_MAX),
            jobs,
            shared: Arc::clone(shared),
        };
        tasks.spawn(forwarder.clone().run(received));
        forwarder
    }

    /// Answers a query over UDP some time later. It is not for a task: any thread may call it, and it never waits. An
    /// answer that was begun ends with an alias, and is gone on with.
    pub(crate) fn take(&self, message: &[u8], begun: Option<&[u8]>, client: Client) {
        let Some(ticket) = self.tickets.take(client.address.ip()) else {
            count(&self.shared.counters.forwards_refused);
            let mut reply = Vec::new();
            answer::fail(message, Transport::Udp, &mut reply);
            return client.send(&reply);
        };
        let (message, begun) = (message.to_owned(), begun.map(<[u8]>::to_owned));
        let job = Job { message, begun, client, ticket };
        // There is room for as many as there are tickets; it fails only when everything ends.
        let _ = self.jobs.try_send(job);
    }

    /// Answers a query over TCP. `reply` is overwritten.
    pub(crate) async fn answer(
        &self,
        client: IpAddr,
        message: &[u8],
        begun: Option<&[u8]>,
        reply: &mut Vec<u8>,
    ) {
        let Some(_ticket) = self.tickets.take(client) else {
            count(&self.shared.counters.forwards_refused);
            return answer::fail(message, Transport::Tcp, reply);
        };
        self.answer_with_ticket(message, begun, Transport::Tcp, reply).await;
    }

    async fn answer_with_ticket(
        &self,
        message: &[u8],
        begun: Option<&[u8]>,
        transport: Transport,
        reply: &mut Vec<u8>,
    ) {
        let query = match begun {
            None => Some(message.to_owned()),
            Some(begun) => alias::query_for_target(message, begun),
        };
        let found = match query {
            None => None,
            Some(query) => timeout(ALL_TRIES, self.ask(&query)).await.ok().flatten(),
        };
        let Some(found) = found else {
            count(&self.shared.counters.forwards_failed);
            return answer::fail(message, transport, reply);
        };
        count(&self.shared.counters.forwarded);
        let edns = wire::read(message).ok().and_then(|query| query.edns);
        if let Some(begun) = begun {
            alias::join(message, begun, &found, transport, reply);
        } else if transport == Transport::Udp && found.len() > udp_bytes_max(edns) {
            answer::truncate(message, reply);
        } else {
            *reply = found;
        }
    }

    async fn run(self, mut jobs: mpsc::Receiver<Job>) {
        let mut running = JoinSet::new();
        loop {
            tokio::select! {
                Some(_) = running.join_next(), if !running.is_empty() => {}
                job = jobs.recv() => {
                    let Some(Job { message, begun, client, ticket }) = job else { return };
                    let forwarder = self.clone();
                    running.spawn(async move {
                        let mut reply = Vec::new();
                        let begun = begun.as_deref();
                        forwarder.answer_with_ticket(&message, begun, Transport::Udp, &mut reply).await;
                        client.send(&reply);
                        drop(ticket);
                    });
                }
            }
        }
    }

    /// Asks one after the other until one answers; if all that answered only failed, the last such answer.
    async fn ask(&self, message: &[u8]) -> Option<Vec<u8>> {
        let mut failed = None;
        for upstream in self.upstreams.iter().cycle().take(TRIES_MAX) {
            match try_once(*upstream, message).await {
                Ok(answer) if has_failed(&answer) => failed = Some(answer),
                Ok(answer) => return Some(answer),
                // The next may be there.
                Err(_) => {}
            }
        }
        failed
    }
}

impl Client {
    /// Sends, or lets it be: what waits here would hold up a thread that serves others.
    fn send(&self, reply: &[u8]) {
        if let Some(socket) = self.socket.upgrade()
            && !reply.is_empty()
        {
            let _ = sendto(&socket, reply, SendFlags::DONTWAIT, &self.address);
        }
    }
}

/// One query over UDP, and over TCP if its answer was cut.
async fn try_once(upstream: SocketAddr, message: &[u8]) -> io::Result<Vec<u8>> {
    let mut query = outgoing(message)?;
    let mut answer = timeout(UDP_TRY, over_udp(upstream, &query)).await??;
    if u16_at(&answer, 2).is_some_and(|flags| flags & flag::TRUNCATED != 0) {
        query[..2].copy_from_slice(&random_id()?);
        answer = timeout(TCP_TRY, over_tcp(upstream, &query)).await??;
    }
    // The client's own id, and its question in its own letters.
    answer[..2].copy_from_slice(&message[..2]);
    let question = wire::read(message).map_err(|_| io::ErrorKind::InvalidInput)?.question;
    answer[HEADER_BYTES..HEADER_BYTES + question.len()].copy_from_slice(question);
    Ok(answer)
}

/// The query with an id of its own, and no larger an answer over UDP than what passes every path.
fn outgoing(message: &[u8]) -> io::Result<Vec<u8>> {
    let query = wire::read(message).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut outgoing = message.to_owned();
    outgoing[..2].copy_from_slice(&random_id()?);
    if let Some(edns) = query.edns {
        let payload = u16::try_from(UDP_BYTES_MAX).unwrap_or(u16::MAX).min(edns.payload_bytes);
        outgoing[edns.payload_at..edns.payload_at + 2].copy_from_slice(&payload.to_be_bytes());
    }
    Ok(outgoing)
}

fn random_id() -> io::Result<[u8; 2]> {
    let mut id = [0; 2];
    // So few bytes come whole.
    getrandom(&mut id, GetRandomFlags::empty())?;
    Ok(id)
}

async fn over_udp(upstream: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr = match upstream {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(upstream).await?;
    socket.send(query).await?;
    let mut answer = vec![0; UDP_BYTES_MAX];
    for _ in 0..GUESSES_MAX {
        let length = socket.recv(&mut answer).await?;
        if is_answer(query, &answer[..length]) {
            answer.truncate(length);
            return Ok(answer);
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

async fn over_tcp(upstream: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(upstream).await?;
    stream.write_all(&[&length(query)?.to_be_bytes(), query].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    if is_answer(query, &answer) { Ok(answer) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Whether a message answers this query: the same id and the same question, whose letters may have changed their case.
fn is_answer(query: &[u8], answer: &[u8]) -> bool {
    let Ok(asked) = wire::read(query) else { return false };
    let is_response =
        u16_at(answer, 2).is_some_and(|flags| flags & (flag::RESPONSE | flag::OPCODE) == flag::RESPONSE);
    let is_same = |question: &[u8]| {
        // A type of 65 is not one of 97, whatever letters they would be.
        let (name, numbers) = question.split_at(question.len() - 4);
        let (asked_name, asked_numbers) = asked.question.split_at(asked.question.len() - 4);
        name.eq_ignore_ascii_case(asked_name) && numbers == asked_numbers
    };
    is_response
        && u16_at(answer, 0) == u16_at(query, 0)
        && u16_at(answer, 4) == Some(1)
        && answer.get(HEADER_BYTES..HEADER_BYTES + asked.question.len()).is_some_and(is_same)
}

/// Whether another resolver may know more.
fn has_failed(answer: &[u8]) -> bool {
    let rcode = u16_at(answer, 2).unwrap_or_default() & 0x000f;
    [Rcode::ServFail, Rcode::Refused].iter().any(|failed| failed.number() == rcode)
}
