//! The words between host and guest agent. Unknown fields are ignored on both sides, so that host and image may differ in
//! age; what a side needs and does not find has a default that means "not said".

mod proxy;

use serde::{Deserialize, Serialize};

pub use proxy::{
    Addressed, BackendStatus, PROXY_ANSWER_BYTES_MAX, PROXY_ANSWER_MS_MAX, ProxyStatus, TOPOLOGY_BYTES_MAX,
    Told, VirtualAddress,
};

/// vsock port of the agent's HTTP server.
pub const AGENT_PORT: u32 = 1024;

/// vsock port on the host (CID 2) that the agent dials once its server listens.
pub const READY_PORT: u32 = 1025;

/// What the host answers to [`Ready`]; only then does the agent stop dialling.
pub const READY_ANSWER: &[u8] = b"ok\n";

/// Longest line of [`Ready`], newline included.
pub const READY_BYTES_MAX: usize = 1024;

/// Largest request body that the agent reads, but for topologies.
pub const BODY_BYTES_MAX: usize = 256 * 1024;

/// Protocol named in the `Upgrade` header of `POST /v1/exec`.
pub const EXEC_PROTOCOL: &str = "lightbyte-exec/1";

/// Protocol named in the `Upgrade` header of a worker's console: bytes of the serial line both ways.
pub const CONSOLE_PROTOCOL: &str = "lightbyte-console/1";

/// The one line that the agent sends to [`READY_PORT`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Always true; there for people who read the line.
    pub ready: bool,
    /// The agent's version.
    pub agent: String,
    /// Milliseconds since the kernel started.
    pub boot_ms: u64,
}

/// The line that the agent sends to [`READY_PORT`] when the guest's own init ends the machine; it is answered as
/// [`Ready`] is. A guest may lie, and one that crashes says nothing: it is a wish, no fact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaving {
    /// What the guest wants.
    pub leaving: Way,
}

/// How a guest's init ends its machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// It wants to stay off.
    Poweroff,
    /// It wants to be started again.
    Reboot,
}

/// Who the guest is, said by the host (`PUT /v1/identity`). Saying the same again changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Identity {
    /// The VM's name, which becomes its host name.
    pub name: String,
    /// The VM's uid.
    pub uid: String,
    /// The worker that the VM runs on.
    pub worker: String,
    /// The image that it was started from.
    pub image: String,
    /// Version of that image.
    pub image_version: String,
    /// Its network interfaces.
    pub nics: Vec<Nic>,
    /// Name servers, as addresses.
    pub dns: Vec<std::net::IpAddr>,
    /// What is done once in the life of its root disk.
    pub first_boot: FirstBoot,
    /// Where its other disks are mounted.
    pub mounts: Vec<Mount>,
}

/// What a guest does once in the life of its root disk: keys, files, then the script. It has been done when the script has
/// ended, well or not; one that a crash cut short begins again. The agent forgets it when it is done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FirstBoot {
    /// Keys that may log in as root, a line each as in `authorized_keys`.
    pub ssh_keys: Vec<String>,
    /// Files that are written, and replace what is there.
    pub files: Vec<NewFile>,
    /// A script for `/bin/sh`; what it says goes to the console.
    pub script: String,
}

/// A file that belongs to root.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NewFile {
    /// From the root; directories on the way are made.
    pub path: String,
    /// Permissions, such as 0o644; nought means these.
    pub mode: u32,
    /// All of it.
    pub content: String,
}

/// A disk beside the root that is to be seen at a path. Always without devices and set-user-id programs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mount {
    /// Which one: 1 is the second disk, /dev/vdb.
    pub disk: u16,
    /// From the root; made if it is not there.
    pub path: String,
    /// Whether nothing may be written.
    pub read_only: bool,
    /// Whether the host made an ext4 on it; without one nothing is mounted.
    pub filesystem: bool,
}

/// One network interface, found by its hardware address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// `02:00:0a:4d:00:0b`, lower case.
    pub mac: String,
    /// `10.77.0.11/24`; where it is empty, a DHCP server says it (RFC 2131).
    pub address: String,
    /// The default route, where there is one.
    #[serde(default)]
    pub gateway: Option<std::net::IpAddr>,
    /// Whether the default route is taken that a DHCP server says.
    #[serde(default)]
    pub takes_route: bool,
    /// The largest packets; what the interface has by itself where nothing is said.
    #[serde(default)]
    pub mtu: Option<u32>,
    /// Its IPv6; it speaks none where nothing is said.
    #[serde(default)]
    pub ipv6: Option<Ipv6>,
}

/// The IPv6 of a network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ipv6 {
    /// `fe80::a4d:b`. The last half of every other address is the same: nothing else is let through.
    pub link_local: String,
    /// `fd00:77::a4d:b/64`; where it is empty, routers say what the first half is (RFC 4862).
    pub address: String,
    /// The default route, where there is one.
    pub gateway: Option<std::net::IpAddr>,
}

/// `GET /v1/info`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Info {
    /// The agent's version.
    pub agent: String,
    /// Release of the running kernel.
    pub kernel_release: String,
    /// Milestones of this boot.
    pub boot: Milestones,
    /// What the host said last, without what was to be done at the first boot.
    pub identity: Option<Identity>,
    /// How that went.
    pub first_boot: FirstBootState,
    /// Why disks are not mounted; empty if all are.
    pub mount_error: String,
}

/// How far the work of the first boot is. Both fields are at their defaults where there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FirstBootState {
    /// Whether it has ended.
    pub done: bool,
    /// What went wrong; empty if nothing did.
    pub error: String,
}

/// Answer to `POST /v1/grow`: file systems take up the room that their disks have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Grown {
    /// Bytes that all of them have more than before.
    pub bytes: u64,
    /// Why one did not grow; empty if none failed.
    pub error: String,
}

/// Longest time that file systems may stay frozen.
pub const FREEZE_MS_MAX: u64 = 30_000;

/// Body of `POST /v1/freeze`: everything is written, and nothing more until `POST /v1/thaw` or the end of the time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Freeze {
    /// Milliseconds until they thaw by themselves; at most [`FREEZE_MS_MAX`].
    pub for_ms: u64,
    /// Whose freeze it is: only who says the same word thaws it.
    pub token: String,
    /// Disks of which nothing may reach the host meanwhile: 0 is the root, 1 the second. Each must be a file system that is
    /// mounted and can be frozen.
    pub disks: Vec<u16>,
}

/// Body of `POST /v1/thaw`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Thaw {
    /// That of the freeze. One that has not come yet is refused when it comes.
    pub token: String,
}

impl Default for Freeze {
    fn default() -> Self {
        Self { for_ms: 10_000, token: String::new(), disks: Vec::new() }
    }
}

/// Answer to `POST /v1/freeze` and `POST /v1/thaw`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Frozen {
    /// How many file systems were frozen, or thawed. Nought from `thaw`: the time was over, and what was copied meanwhile
    /// may not be of one moment.
    pub file_systems: u32,
}

/// Milliseconds since the kernel started; absent until reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Milestones {
    /// The kernel handed over to the agent.
    pub kernel: Option<u64>,
    /// Modules are loaded, the root file system is mounted.
    pub init: Option<u64>,
    /// Addresses are set.
    pub network: Option<u64>,
    /// The agent's server listens.
    pub ready: Option<u64>,
    /// The proxy of a load balancer's VM answers.
    pub proxy: Option<u64>,
}

/// `GET /v1/metrics`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Metrics {
    /// Load average over one minute.
    pub load_1m: f64,
    /// Bytes of memory that the kernel manages.
    pub memory_total_bytes: u64,
    /// Bytes that could be given to programs without swapping.
    pub memory_available_bytes: u64,
    /// Seconds since the kernel started.
    pub uptime_seconds: f64,
    /// Milliseconds since then in which something ran, over all CPUs together; not those that the host took away.
    pub cpu_busy_millis: u64,
    /// The same in which nothing did.
    pub cpu_idle_millis: u64,
}

/// Body of `POST /v1/exec`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Exec {
    /// Program and its arguments. The program `lightbyte-guest` is the agent's own, with the words `pack PATH`,
    /// `unpack PATH`, `connect PORT` and `reaches PORT`.
    pub argv: Vec<String>,
    /// `NAME=value`, added to the agent's own few.
    pub env: Vec<String>,
    /// Where the program starts; `/` if empty.
    pub cwd: String,
    /// Whether it gets a terminal. Then there is no separate standard error.
    pub terminal: bool,
    /// Size of the terminal; nought means 24 by 80.
    pub rows: u16,
    /// See `rows`.
    pub columns: u16,
}

/// Longest time that a check may take.
pub const CHECK_MS_MAX: u64 = 60_000;

/// Body of `POST /v1/check`: what is tried from inside, the first that is there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Check {
    /// A GET over HTTP/1.1 that is to be answered with a status from 200 to 399.
    pub http: Option<HttpCheck>,
    /// A port that is to accept a connection.
    pub tcp: Option<TcpCheck>,
    /// A program with its arguments that is to end with code 0.
    pub command: Vec<String>,
    /// How long it may take; at most [`CHECK_MS_MAX`].
    pub timeout_ms: u64,
}

/// A page that is to be served on 127.0.0.1 or the guest's first address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HttpCheck {
    /// The port.
    pub port: u16,
    /// The path, with its query.
    pub path: String,
}

/// A port that is to be served on 127.0.0.1 or the guest's first address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TcpCheck {
    /// The port.
    pub port: u16,
}

/// Answer to `POST /v1/check`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Checked {
    /// Whether it works.
    pub passed: bool,
    /// It was not tried, because file systems are frozen.
    pub skipped: bool,
    /// Why not, in one line.
    pub problem: String,
}

/// Body of `POST /v1/shutdown`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Shutdown {
    /// Milliseconds between TERM and KILL; at most 60,000.
    pub grace_ms: u64,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { grace_ms: 5_000 }
    }
}

/// Body of an answer that is not a success.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Problem {
    /// One line for people.
    pub error: String,
}
