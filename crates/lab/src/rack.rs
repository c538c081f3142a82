//! The rack: which hosts there are, what runs on each, and where it listens. Pure: it is worked out once, written to
//! the state directory, and the same on the next start.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use lightbyte_api::{ByteSize, Subnet};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The most hosts of a lab: each costs four processes, and the machine has only so much.
pub const HOSTS_MAX: usize = 9;
/// The first port of a host that has an address of its own.
const HOST_PORT: u16 = 7_701;
/// How many hosts run etcd and a server.
const CONTROL_PLANE_HOSTS: usize = 3;
/// Where the ports of labs begin, below those that the kernel gives away by itself (`ip_local_port_range`).
const PORTS_FIRST: u16 = 20_000;
/// How many places for a lab there are.
const PORT_PLACES: u16 = 200;
/// Ports of one place: enough for the most hosts, or for what is forwarded to a lab that the machine does not reach.
const PORTS_PER_PLACE: u16 = 50;
/// Ports that one host needs: etcd's clients, etcd's peers, the API, the agent.
pub const PORTS_PER_HOST: u16 = 4;

/// The port of a host's resolver behind the first of its lab, where all share one address: after the ports of the most hosts.
const DNS_PORTS_OFFSET: u16 = 36;
/// The port of a host's resolver where it has an address of its own (RFC 1035, 4.2).
pub const DNS_PORT: u16 = 53;

/// How the machines of VMs are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VmmChoice {
    /// In memory, without any machine.
    Fake,
    /// QEMU microVMs.
    Qemu,
}

impl VmmChoice {
    /// The word for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            VmmChoice::Fake => "fake",
            VmmChoice::Qemu => "qemu",
        }
    }
}

/// What a person asks of a lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wish {
    /// How many hosts.
    pub hosts: usize,
    /// What each offers to VMs.
    pub host_cpus: u64,
    /// What each offers to VMs.
    pub host_memory: ByteSize,
    /// How VMs run.
    pub vmm: VmmChoice,
    /// Whether VMs reach what the machine reaches.
    #[serde(default)]
    pub nat: bool,
}

impl Wish {
    /// Whether there can be such a lab.
    ///
    /// # Errors
    /// When more or fewer hosts are asked for than a lab can have.
    pub fn check(&self) -> Result<()> {
        let hosts = self.hosts;
        ensure!((1..=HOSTS_MAX).contains(&hosts), "a lab has 1 to {HOSTS_MAX} hosts, not {hosts}");
        Ok(())
    }

    /// How many hosts run etcd and a server.
    #[must_use]
    pub const fn control_plane(&self) -> usize {
        // Two members of etcd are worse than one: losing either stops both.
        if self.hosts < CONTROL_PLANE_HOSTS { 1 } else { CONTROL_PLANE_HOSTS }
    }
}

/// A lab, worked out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rack {
    /// What was asked.
    pub wish: Wish,
    /// Eight hexadecimal digits that tell this lab from others on the machine.
    pub hash: String,
    /// The hosts.
    pub hosts: Vec<Host>,
    /// The network that joins them, when each is a namespace of its own.
    #[serde(default)]
    pub lan: Option<Lan>,
}

/// The network of a lab: `10.x.0.0/16`. The machine is `.0.1`, hosts are from `.0.11` on, VMs from `.1.1` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lan {
    /// The second part of its addresses.
    pub octet: u8,
}

/// The length of the prefix of a lab's network.
pub const LAN_PREFIX_LENGTH: u8 = 16;
/// Where the octets of labs lie: home and cluster networks are rarely there.
const LAN_OCTETS: std::ops::RangeInclusive<u8> = 64..=127;
/// The last part of the first host's address.
const HOST_FIRST: u8 = 11;

impl Lan {
    /// Every network that a lab can have, beginning at one that `start` picks.
    pub fn all_from(start: u8) -> impl Iterator<Item = Lan> {
        let count = LAN_OCTETS.end() - LAN_OCTETS.start() + 1;
        (0..count).map(move |offset| Lan { octet: LAN_OCTETS.start() + (start % count + offset) % count })
    }

    /// The network.
    #[must_use]
    pub fn subnet(self) -> Subnet {
        Subnet::of(Ipv4Addr::new(10, self.octet, 0, 0), LAN_PREFIX_LENGTH)
    }

    /// The machine's own address.
    #[must_use]
    pub const fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::new(10, self.octet, 0, 1)
    }

    /// The first address that a host may have.
    #[must_use]
    pub const fn first_host(self) -> Ipv4Addr {
        Ipv4Addr::new(10, self.octet, 0, 2)
    }

    /// Where each host answers its own VMs by DNS: the same address on all of them, so that they are told one, and it is near.
    /// It is the first of the hosts' addresses, which none of them has for itself.
    #[must_use]
    pub const fn resolver(self) -> Ipv4Addr {
        self.first_host()
    }

    /// The last address that a host may have.
    #[must_use]
    pub const fn last_host(self) -> Ipv4Addr {
        Ipv4Addr::new(10, self.octet, 0, 255)
    }

    /// The first address that a VM may have.
    #[must_use]
    pub const fn first_vm(self) -> Ipv4Addr {
        Ipv4Addr::new(10, self.octet, 1, 1)
    }
}

/// One host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// `n1` and so on.
    pub name: String,
    /// The address that its processes listen on.
    pub address: String,
    /// The first of its ports.
    pub port: u16,
    /// Whether it runs etcd and a server.
    pub control_plane: bool,
}

impl Host {
    /// Where etcd's clients connect.
    #[must_use]
    pub fn etcd_url(&self) -> String {
        format!("http://{}:{}", self.address, self.port)
    }

    /// Where etcd's peers connect.
    #[must_use]
    pub fn etcd_peer_url(&self) -> String {
        format!("http://{}:{}", self.address, self.port + 1)
    }

    /// Where the API is.
    #[must_use]
    pub fn api_url(&self) -> String {
        format!("http://{}:{}", self.address, self.port + 2)
    }

    /// Where the agent listens.
    #[must_use]
    pub fn agent_url(&self) -> String {
        format!("http://{}:{}", self.address, self.port + 3)
    }
}

/// One process of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// The host it belongs to.
    pub host: String,
    /// `etcd`, `server`, `worker` or `dns`.
    pub role: &'static str,
    /// The network namespace that it runs in, if not the machine's own.
    pub namespace: Option<String>,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
}

/// Where programs and files are.
#[derive(Clone, Debug)]
pub struct Places {
    /// The state directory.
    pub state: PathBuf,
    /// This program.
    pub lightbyte: PathBuf,
    /// etcd.
    pub etcd: PathBuf,
    /// The images of real VMs: a directory for each, and `blobs` with their parts by content.
    pub images: PathBuf,
    /// Name servers that hosts reach and ask for names that are not the lab's.
    pub resolvers: Vec<Ipv4Addr>,
}

impl Places {
    /// What the servers seal private keys with.
    #[must_use]
    pub fn sealing_key(&self) -> PathBuf {
        self.state.join("sealing-key")
    }

    /// Where a host keeps the parts of images: its server and its worker share them.
    #[must_use]
    pub fn parts(&self, host: &Host) -> PathBuf {
        self.state.join(&host.name).join("parts")
    }
}

/// Where real VMs of a lab have their sockets. Short, because a socket's path has at most 107 bytes (unix(7)).
#[must_use]
pub fn run_directory(hash: &str) -> PathBuf {
    Path::new("/run/lightbyte").join(hash)
}

/// Where labs may have their ports on the machine: the first port of each place, beginning with one that the state's
/// path picks, so that a lab is found where it was before.
pub fn port_places(state: &Path) -> impl Iterator<Item = u16> {
    let first = u16::from_str_radix(&hash_of(state)[..4], 16).unwrap_or(0) % PORT_PLACES;
    (0..PORT_PLACES).map(move |offset| PORTS_FIRST + (first + offset) % PORT_PLACES * PORTS_PER_PLACE)
}

/// The hash that tells the lab of `state` from others.
#[must_use]
pub fn hash_of(state: &Path) -> String {
    let digest = Sha256::digest(state.as_os_str().as_encoded_bytes());
    digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

impl Rack {
    /// Works out a lab whose hosts share the loopback address, with ports from `first_port` on.
    ///
    /// # Errors
    /// When more or fewer hosts are asked for than a lab can have.
    pub fn on_loopback(wish: Wish, state: &Path, first_port: u16) -> Result<Rack> {
        wish.check()?;
        let control_plane = wish.control_plane();
        let hosts = (0..wish.hosts).map(|index| Host {
            name: format!("n{}", index + 1),
            address: "127.0.0.1".to_owned(),
            port: first_port + PORTS_PER_HOST * u16::try_from(index).unwrap_or(0),
            control_plane: index < control_plane,
        });
        Ok(Rack { hosts: hosts.collect(), hash: hash_of(state), lan: None, wish })
    }

    /// Works out a lab whose hosts are namespaces on a network of their own.
    ///
    /// # Errors
    /// When more or fewer hosts are asked for than a lab can have.
    pub fn in_namespaces(wish: Wish, state: &Path, lan: Lan) -> Result<Rack> {
        let mut rack = Rack::on_loopback(wish, state, HOST_PORT)?;
        for (index, host) in (HOST_FIRST..).zip(&mut rack.hosts) {
            host.address = Ipv4Addr::new(10, lan.octet, 0, index).to_string();
            host.port = HOST_PORT;
        }
        rack.lan = Some(lan);
        Ok(rack)
    }

    /// The namespace of a host.
    #[must_use]
    pub fn namespace(&self, host: &Host) -> String {
        format!("lb-{}-{}", self.hash, host.name)
    }

    /// The namespace of the LAN bridge.
    #[must_use]
    pub fn lan_namespace(&self) -> String {
        format!("lb-{}-lan", self.hash)
    }

    fn process(&self, host: &Host, role: &'static str, program: &Path, arguments: Vec<String>) -> Process {
        let namespace = self.lan.map(|_| self.namespace(host));
        Process { host: host.name.clone(), role, namespace, program: program.to_owned(), arguments }
    }

    /// The hosts that run etcd and a server.
    pub fn control_plane(&self) -> impl Iterator<Item = &Host> {
        self.hosts.iter().filter(|host| host.control_plane)
    }

    /// The API of every server.
    #[must_use]
    pub fn servers(&self) -> Vec<String> {
        self.control_plane().map(Host::api_url).collect()
    }

    /// The port at which a host answers by DNS.
    #[must_use]
    pub fn dns_port(&self, host: &Host) -> u16 {
        let index = self.hosts.iter().position(|other| other.name == host.name).unwrap_or(0);
        let first = self.hosts.first().map_or(host.port, |first| first.port);
        match self.lan {
            Some(_) => DNS_PORT,
            None => first + DNS_PORTS_OFFSET + u16::try_from(index).unwrap_or(0),
        }
    }

    /// Where a host answers by DNS whoever asks it by its own address.
    #[must_use]
    pub fn dns_address(&self, host: &Host) -> String {
        format!("{}:{}", host.address, self.dns_port(host))
    }

    /// Everything that runs, in the order in which it is started.
    #[must_use]
    pub fn processes(&self, places: &Places) -> Vec<Process> {
        let etcd = self.control_plane().map(|host| self.etcd(host, places));
        let servers = self.control_plane().map(|host| self.server(host, places));
        let workers = self.hosts.iter().map(|host| self.worker(host, places));
        let resolvers = self.hosts.iter().map(|host| self.resolver(host, places));
        etcd.chain(servers).chain(workers).chain(resolvers).collect()
    }

    fn etcd(&self, host: &Host, places: &Places) -> Process {
        let cluster: Vec<String> = self
            .control_plane()
            .map(|member| format!("{}={}", member.name, member.etcd_peer_url()))
            .collect();
        let data = places.state.join(&host.name).join("etcd");
        let arguments = [
            ("name", host.name.clone()),
            ("data-dir", data.display().to_string()),
            ("listen-client-urls", host.etcd_url()),
            ("advertise-client-urls", host.etcd_url()),
            ("listen-peer-urls", host.etcd_peer_url()),
            ("initial-advertise-peer-urls", host.etcd_peer_url()),
            ("initial-cluster", cluster.join(",")),
            ("initial-cluster-state", "new".to_owned()),
            ("initial-cluster-token", format!("lightbyte-{}", self.hash)),
            ("auto-compaction-mode", "periodic".to_owned()),
            ("auto-compaction-retention", "1h".to_owned()),
            // Without it members before 3.4.25 tell a quiet watch nothing for ten minutes.
            ("experimental-watch-progress-notify-interval", "1s".to_owned()),
            ("log-level", "warn".to_owned()),
            ("logger", "zap".to_owned()),
        ];
        let arguments = arguments.into_iter().map(|(flag, value)| format!("--{flag}={value}")).collect();
        self.process(host, "etcd", &places.etcd, arguments)
    }

    fn server(&self, host: &Host, places: &Places) -> Process {
        let etcd: Vec<String> = self.control_plane().map(Host::etcd_url).collect();
        let arguments = [
            "server".to_owned(),
            format!("--name={}", host.name),
            format!("--listen={}", host.api_url()),
            format!("--advertise={}", host.api_url()),
            format!("--etcd={}", etcd.join(",")),
            format!("--sealing-key={}", places.sealing_key().display()),
        ];
        let real =
            (self.wish.vmm == VmmChoice::Qemu).then(|| format!("--parts={}", places.parts(host).display()));
        let arguments = arguments.into_iter().chain(real).collect();
        self.process(host, "server", &places.lightbyte, arguments)
    }

    /// The servers, for a process on this host: its own first, so that they are spread.
    fn servers_from(&self, host: &Host) -> String {
        let own = self.hosts.iter().position(|other| other.name == host.name).unwrap_or(0);
        let mut servers = self.servers();
        let own = own % servers.len();
        servers.rotate_left(own);
        servers.join(",")
    }

    fn resolver(&self, host: &Host, places: &Places) -> Process {
        let for_vms = self.lan.map(|lan| lan.resolver().to_string());
        let listen: Vec<String> = [self.dns_address(host)].into_iter().chain(for_vms).collect();
        let arguments = [
            "dns".to_owned(),
            format!("--listen={}", listen.join(",")),
            format!("--server={}", self.servers_from(host)),
            format!("--state={}", places.state.join(&host.name).join("dns").display()),
        ];
        let others = places.resolvers.iter().map(|other| format!("--forward-to={other}"));
        let arguments = arguments.into_iter().chain(others).collect();
        self.process(host, "dns", &places.lightbyte, arguments)
    }

    fn worker(&self, host: &Host, places: &Places) -> Process {
        let state = places.state.join(&host.name).join("worker");
        let arguments = [
            "worker".to_owned(),
            format!("--name={}", host.name),
            format!("--state={}", state.display()),
            format!("--server={}", self.servers_from(host)),
            format!("--vmm={}", self.wish.vmm.word()),
            format!("--cpus={}", self.wish.host_cpus),
            format!("--memory={}", self.wish.host_memory),
            format!("--listen={}", host.agent_url()),
        ];
        let real = match self.wish.vmm {
            VmmChoice::Fake => Vec::new(),
            VmmChoice::Qemu => vec![
                format!("--images={}", places.parts(host).display()),
                format!("--run={}", run_directory(&self.hash).join(&host.name).display()),
            ],
        };
        let arguments: Vec<String> = arguments.into_iter().chain(real).collect();
        self.process(host, "worker", &places.lightbyte, arguments)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rack(hosts: usize) -> Result<Rack> {
        let wish = Wish {
            hosts,
            host_cpus: 4,
            host_memory: ByteSize::from_mib(2_048),
            vmm: VmmChoice::Fake,
            nat: false,
        };
        Rack::on_loopback(wish, Path::new("/tmp/lab"), 20_000)
    }

    #[test]
    fn the_first_three_hosts_are_the_control_plane_and_fewer_have_one() {
        let check = |hosts, control_plane, processes| {
            let rack = rack(hosts).unwrap();
            let places = Places {
                state: "/tmp/lab".into(),
                lightbyte: "lightbyte".into(),
                etcd: "etcd".into(),
                images: "images".into(),
                resolvers: Vec::new(),
            };
            assert_eq!(rack.control_plane().count(), control_plane, "{hosts} hosts");
            assert_eq!(rack.processes(&places).len(), processes, "{hosts} hosts");
        };
        check(1, 1, 4);
        check(2, 1, 6);
        check(3, 3, 12);
        check(5, 3, 16);
        assert!(rack(0).is_err());
        assert!(rack(10).is_err());
    }

    #[test]
    fn no_two_listen_at_the_same_place() {
        let rack = rack(9).unwrap();
        let urls = rack
            .hosts
            .iter()
            .flat_map(|host| [host.etcd_url(), host.etcd_peer_url(), host.api_url(), host.agent_url()]);
        let resolvers = rack.hosts.iter().map(|host| format!("http://{}", rack.dns_address(host)));
        let mut urls: Vec<String> = urls.chain(resolvers).collect();
        let count = urls.len();
        urls.sort();
        urls.dedup();
        assert_eq!(urls.len(), count);
    }

    #[test]
    fn every_place_is_tried_once_and_the_last_one_lies_below_the_kernels_own_ports() {
        let mut places: Vec<u16> = port_places(Path::new("/tmp/lab")).collect();
        places.sort_unstable();
        let expected: Vec<u16> = (0..200).map(|place| 20_000 + 50 * place).collect();
        assert_eq!(places, expected);
    }

    #[test]
    fn labs_are_told_apart_by_their_state() {
        assert_ne!(hash_of(Path::new("/a")), hash_of(Path::new("/b")));
        assert_eq!(hash_of(Path::new("/a")).len(), 8);
    }
}
