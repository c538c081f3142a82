//! A resolver for a test, and clients for it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use domain::base::Message;
use domain::rdata::A;
use lightbyte_api::zone::{Records, Zone};
use lightbyte_dns::{Dns, Options};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// What is told of a name that is not known.
pub(crate) const SERVFAIL: &str = "SERVFAIL";

/// A test that waits for longer than this has failed.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Rig {
    pub(crate) dns: Dns,
    directory: PathBuf,
    forward_to: Vec<SocketAddr>,
}

impl Rig {
    pub(crate) async fn start(name: &str, forward_to: &[SocketAddr]) -> Rig {
        let directory = state_dir(name);
        let dns = start(&directory, "127.0.0.1:0".parse().expect("an address"), forward_to).await;
        Rig { dns, directory, forward_to: forward_to.to_vec() }
    }

    /// Ends it, and starts another at the same place.
    pub(crate) async fn restart(&mut self, address: SocketAddr) {
        // Its ports have to be free first.
        let name = format!("elsewhere-{}", address.port());
        let directory = state_dir(&name);
        let elsewhere = start(&directory, "127.0.0.1:0".parse().expect("an address"), &[]).await;
        std::mem::replace(&mut self.dns, elsewhere).stop().await;
        self.dns = start(&self.directory, address, &self.forward_to).await;
        std::fs::remove_dir_all(directory).expect("is ours");
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.dns.addresses()[0]
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

async fn start(directory: &Path, listen: SocketAddr, forward_to: &[SocketAddr]) -> Dns {
    let mut options = options(directory, listen);
    options.forward_to = forward_to.to_vec();
    Dns::start(options).await.expect("starts")
}

pub(crate) fn options(directory: &Path, listen: SocketAddr) -> Options {
    let mut options = Options::new("lab", directory);
    options.listen = vec![listen];
    options.udp_threads = 2;
    options
}

pub(crate) fn state_dir(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("lightbyte-dns-{name}-{}", std::process::id()))
}

/// A zone with one name and one address, and an alias that leaves it.
pub(crate) fn zone(revision: u64, octet: u8) -> Zone {
    let mut zone = Zone::new("lab", revision);
    let a = vec![Ipv4Addr::new(10, 77, 0, octet)].into();
    zone.names.insert("db.vm".to_owned(), Records { a, ..Records::default() });
    let cname = vec!["www.example.org".to_owned()].into();
    zone.names.insert("far".to_owned(), Records { cname, ..Records::default() });
    zone
}

/// A query for an IPv4 address.
pub(crate) fn query(name: &str) -> Vec<u8> {
    let mut message = vec![0x12, 0x34, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).expect("a label"));
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    message
}

/// The code and the addresses of an answer.
pub(crate) fn told(answer: &[u8]) -> String {
    let message = Message::from_octets(answer).expect("a message");
    assert_eq!(message.header().id(), 0x1234);
    let mut told = message.header().rcode().to_string();
    told += if message.header().tc() { " tc" } else { "" };
    for record in message.answer().expect("answers").limit_to::<A>() {
        told += &format!(" {}", record.expect("a record").data());
    }
    told
}

pub(crate) async fn ask_udp(server: SocketAddr, query: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
    socket.connect(server).await.expect("connects");
    socket.send(query).await.expect("sends");
    let mut answer = vec![0; 65_535];
    let length = timeout(PATIENCE, socket.recv(&mut answer)).await.expect("an answer").expect("receives");
    answer.truncate(length);
    answer
}

pub(crate) async fn ask_tcp(server: SocketAddr, query: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(server).await.expect("connects");
    stream.write_all(&framed(query)).await.expect("sends");
    read_framed(&mut stream).await
}

/// A message as it goes over TCP.
pub(crate) fn framed(message: &[u8]) -> Vec<u8> {
    [&u16::try_from(message.len()).expect("fits").to_be_bytes(), message].concat()
}

pub(crate) async fn read_framed(stream: &mut TcpStream) -> Vec<u8> {
    let read = async {
        let mut message = vec![0; usize::from(stream.read_u16().await.expect("a length"))];
        stream.read_exact(&mut message).await.expect("a message");
        message
    };
    timeout(PATIENCE, read).await.expect("a message in time")
}
