//! Real VMs whose addresses a DHCP server of the LAN gives.

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use smoltcp::wire::{DhcpMessageType, DhcpPacket, DhcpRepr};

use crate::bed::{Bed, skip, until};
use crate::networks::Stranger;
use crate::real::{missing, page_at};

const ROUTER: Ipv4Addr = Ipv4Addr::new(198, 18, 68, 1);
const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(198, 18, 68, 53);
const FIRST: Ipv4Addr = Ipv4Addr::new(198, 18, 68, 60);
const SECOND: Ipv4Addr = Ipv4Addr::new(198, 18, 68, 61);

/// How long a lease lasts: a client renews it after half of that. What comes after a renewal that was not heard would be too late.
const LEASE_SECONDS: u32 = 20;

/// How often the server looks whether it is to end.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What a server gives, and what it was asked.
struct Given {
    address: Ipv4Addr,
    discoveries: usize,
    renewals: usize,
}

/// A DHCP server that has one address to give. It ends when this does.
struct Server {
    given: Arc<Mutex<Given>>,
    thread: Option<JoinHandle<()>>,
    end: Option<mpsc::Sender<()>>,
}

impl Server {
    fn new(router: &Stranger) -> Server {
        router.ip(&format!("addr add {ROUTER}/24 dev eth0"));
        router.ip("route add 255.255.255.255/32 dev eth0");
        let socket = router.inside(|| UdpSocket::bind(("0.0.0.0", 67)).expect("a socket"));
        socket.set_broadcast(true).expect("it may");
        socket.set_read_timeout(Some(LOOK_EVERY)).expect("a time-out");
        let given = Arc::new(Mutex::new(Given { address: FIRST, discoveries: 0, renewals: 0 }));
        let (end, ended) = mpsc::channel::<()>();
        let shared = given.clone();
        let thread = std::thread::spawn(move || {
            while ended.try_recv() == Err(mpsc::TryRecvError::Empty) {
                serve(&socket, &shared);
            }
        });
        Server { given, thread: Some(thread), end: Some(end) }
    }

    fn with<T>(&self, act: impl FnOnce(&mut Given) -> T) -> T {
        act(&mut self.given.lock().expect("no test panics in the lock"))
    }

    /// What it gives from now on, and says no to all else.
    fn gives(&self, address: Ipv4Addr) {
        self.with(|given| given.address = address);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.end.take());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Answers one request, if one comes.
fn serve(socket: &UdpSocket, given: &Mutex<Given>) {
    let mut bytes = [0; 1500];
    let Ok((length, _)) = socket.recv_from(&mut bytes) else { return };
    let packet = DhcpPacket::new_checked(&bytes[..length]).expect("a message");
    let request = DhcpRepr::parse(&packet).expect("a client's message");
    let mut given = given.lock().expect("no test panics in the lock");
    let address = given.address;
    given.discoveries += usize::from(request.message_type == DhcpMessageType::Discover);
    given.renewals += usize::from(!request.client_ip.is_unspecified());
    let is_for_another = [request.requested_ip, Some(request.client_ip).filter(|ip| !ip.is_unspecified())]
        .into_iter()
        .flatten()
        .any(|wished| wished != address);
    let answer = match request.message_type {
        DhcpMessageType::Discover => DhcpMessageType::Offer,
        DhcpMessageType::Request if is_for_another => DhcpMessageType::Nak,
        DhcpMessageType::Request => DhcpMessageType::Ack,
        _ => return,
    };
    let is_given = answer != DhcpMessageType::Nak;
    let answer = DhcpRepr {
        message_type: answer,
        secs: 0,
        client_ip: Ipv4Addr::UNSPECIFIED,
        your_ip: if is_given { address } else { Ipv4Addr::UNSPECIFIED },
        router: is_given.then_some(ROUTER),
        subnet_mask: is_given.then_some(Ipv4Addr::new(255, 255, 255, 0)),
        requested_ip: None,
        client_identifier: None,
        server_identifier: Some(ROUTER),
        parameter_request_list: None,
        dns_servers: is_given.then(|| [NAME_SERVER].into_iter().collect()),
        max_size: None,
        lease_duration: is_given.then_some(LEASE_SECONDS),
        additional_options: &[],
        ..request
    };
    let mut bytes = vec![0; answer.buffer_len()];
    answer.emit(&mut DhcpPacket::new_unchecked(&mut bytes)).expect("it fits");
    socket.send_to(&bytes, (Ipv4Addr::BROADCAST, 68)).expect("send");
}

#[test]
fn a_vm_has_the_address_that_the_lan_gives_it() {
    let test = "a_vm_has_the_address_that_the_lan_gives_it";
    if let Some(why) = missing() {
        return skip(test, &why);
    }
    let Some(bed) = Bed::new("dhcp", &["--vmm", "qemu", "--nodes", "1"]) else { return };
    bed.start();
    let file = bed.manifests(
        "{kind: network, name: home, spec: {subnet: dhcp}}
---
{kind: vm, name: a, spec: {image: demo, nics: [{network: home}, {network: default}]}}
---
{kind: vm, name: walled, spec: {image: demo, nics: [{network: home}], firewall: {allow: []}}}
",
    );
    bed.ok(&["apply", "-f", crate::bed::path(&file)]);
    let status = |vm: &str| bed.json(&["get", &format!("vm/{vm}")])["status"].clone();
    let first = || status("a")["addresses"][0].as_str().unwrap_or_default().to_owned();
    until("it says that nobody gives it an address", || {
        status("a")["problem"].as_str().is_some_and(|text| text.contains("no DHCP server has given"))
    });
    let waiting = status("walled")["waiting_on"].to_string();
    assert!(waiting.contains("needs_pool") && waiting.contains("firewall"), "{waiting}");

    let router = Stranger::new(&bed, "router");
    let server = Server::new(&router);
    bed.ok(&["wait", "vm/a", "--for", "ready"]);
    assert_eq!(first(), FIRST.to_string());
    let asked = server.with(|given| given.discoveries);
    assert!(status("a")["problem"].is_null());
    let answers = |address: Ipv4Addr| {
        let page = router.inside(|| page_at(&format!("{address}:80")));
        page.is_some_and(|text| text.contains('a'))
    };
    assert!(answers(FIRST));
    let inside = |command: &str| bed.ok(&["exec", "a", "--", "sh", "-c", command]);
    assert!(inside("ip route").contains("default via 198.18.68.1 dev eth0"), "{}", inside("ip route"));
    assert!(inside("cat /etc/resolv.conf").ends_with("nameserver 198.18.68.53\n"));
    assert!(inside("cat /etc/hosts").contains("198.18.68.60 a\n"));

    // What it takes by itself does not get through.
    inside("ip addr add 198.18.68.99/24 dev eth0");
    assert!(!answers(Ipv4Addr::new(198, 18, 68, 99)));

    // The next agent sees what the kernel saw.
    let worker = status("a")["worker"].as_str().expect("a worker").to_owned();
    let agent = rustix::process::Pid::from_raw(bed.process(&format!("{worker}-worker"))).expect("a process");
    rustix::process::kill_process(agent, rustix::process::Signal::KILL).expect("it is killed");

    // It renews what it has, and is never without.
    until("it has renewed it three times", || server.with(|given| given.renewals) >= 3);
    assert_eq!(server.with(|given| given.discoveries), asked, "it has lost it meanwhile");
    assert!(answers(FIRST));

    // The server has another one: the guest takes it when it renews, and the cluster says so.
    server.gives(SECOND);
    until("it has the other", || first() == SECOND.to_string());
    assert!(answers(SECOND));
    assert!(!inside("ip addr show dev eth0").contains(&FIRST.to_string()));
    bed.ok(&["restart", "vm/a"]);
    bed.ok(&["wait", "vm/a", "--for", "ready"]);
    assert_eq!(first(), SECOND.to_string());
    bed.ok(&["stop", "vm/a"]);
    until("it has none while it does not run", || {
        status("a")["addresses"].as_array().map(Vec::len) == Some(1)
    });
}
