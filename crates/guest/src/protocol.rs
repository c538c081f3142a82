//! The words between host and guest agent. Unknown fields are ignored on both sides, so that host and image may differ in
//! age; what a side needs and does not find has a default that means "not said".

use serde::{Deserialize, Serialize};

/// vsock port of the agent's HTTP server.
pub const AGENT_PORT: u32 = 1024;

/// vsock port on the host (CID 2) that the agent dials once its server listens.
pub const READY_PORT: u32 = 1025;

/// What the host answers to [`Ready`]; only then does the agent stop dialling.
pub const READY_ANSWER: &[u8] = b"ok\n";

/// Longest line of [`Ready`], newline included.
pub const READY_BYTES_MAX: usize = 1024;

/// Largest request body that the agent reads.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

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
}

/// One network interface, found by its hardware address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// `02:00:0a:4d:00:0b`, lower case.
    pub mac: String,
    /// `10.77.0.11/24`.
    pub address: String,
    /// The default route, where there is one.
    #[serde(default)]
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
    /// What the host said last.
    pub identity: Option<Identity>,
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
}

/// Body of `POST /v1/exec`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Exec {
    /// Program and its arguments.
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
