//! Machines on the bridge of a test: network namespaces, with sockets that stay in them.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// How long something may take that is not to come. What comes takes a millisecond.
const SILENCE: Duration = Duration::from_millis(700);

/// A machine on a wire of the bridge. It ends with its input.
pub(super) struct Machine(Child);

/// `ip` in the namespace of this test.
pub(super) fn ip(words: &str) {
    let status = Command::new("ip").args(words.split(' ')).status().expect("run ip");
    assert!(status.success(), "ip {words}");
}

impl Machine {
    /// One whose wire ends at the bridge as `wire`; its own end is `eth0` with the hardware address `mac`.
    pub(super) fn new(wire: &str, mac: &str) -> Machine {
        let mut command = Command::new("unshare");
        command.args(["-n", "sh", "-c", "echo; while read -r words; do ip $words; echo; done"]);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("start a machine");
        let mut machine = Machine(child);
        machine.heard();
        let namespace = machine.0.id();
        ip(&format!("link add {wire} type veth peer name eth0 address {mac} netns {namespace}"));
        ip(&format!("link set {wire} master br0 up"));
        machine.ip("link set lo up");
        machine.ip("link set eth0 up");
        machine
    }

    fn heard(&mut self) {
        let mut output = BufReader::with_capacity(1, self.0.stdout.as_mut().expect("its output"));
        output.read_line(&mut String::new()).expect("an answer");
    }

    /// `ip` in its namespace.
    pub(super) fn ip(&mut self, words: &str) {
        writeln!(self.0.stdin.as_mut().expect("its input"), "{words}").expect("tell it");
        self.heard();
    }

    /// Does something in its namespace. Sockets that are made there stay there.
    fn inside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/proc/{}/ns/net", self.0.id())).expect("its namespace");
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("enter its namespace");
                act()
            });
            thread.join().expect("done")
        })
    }

    pub(super) fn listen(&self, port: u16) -> TcpListener {
        self.inside(|| TcpListener::bind(("0.0.0.0", port)).expect("listen"))
    }

    /// On one address of its own.
    pub(super) fn listen_on(&self, address: SocketAddr) -> TcpListener {
        self.inside(|| TcpListener::bind(address).expect("listen"))
    }

    pub(super) fn connect(&self, to: &str) -> Option<TcpStream> {
        self.inside(|| connect(to))
    }

    pub(super) fn udp(&self, port: u16) -> UdpSocket {
        self.udp_on((Ipv4Addr::UNSPECIFIED, port).into())
    }

    pub(super) fn udp_on(&self, address: SocketAddr) -> UdpSocket {
        let socket = self.inside(|| UdpSocket::bind(address).expect("a socket"));
        socket.set_read_timeout(Some(SILENCE)).expect("a time-out");
        socket
    }
}

/// A connection from the namespace of this test; nothing if nobody answers in time.
pub(super) fn connect(to: &str) -> Option<TcpStream> {
    let to: SocketAddr = to.parse().expect("an address");
    TcpStream::connect_timeout(&to, SILENCE).ok()
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}
