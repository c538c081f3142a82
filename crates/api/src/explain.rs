//! Where a load balancer would send a request, and why: asked of its proxies, and of what they do now. No request is sent.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::name::Name;
use crate::topology::Protocol;

/// The longest question, in bytes of JSON.
pub const QUESTION_BYTES_MAX: usize = 16 << 10;
/// How many backends of a pool are told.
pub const CANDIDATES_MAX: usize = 100;
/// The longest answer of one proxy.
pub const EXPLAINED_BYTES_MAX: usize = 256 << 10;

/// A request that somebody might send.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// What the client speaks.
    pub protocol: Protocol,
    /// The port of the listener.
    pub port: u16,
    /// Such as `GET`.
    pub method: String,
    /// The host that is asked for, with its port if one is named.
    pub host: String,
    /// The path, with its query if there is one.
    pub path: String,
    /// Headers, by name.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// The client's address, where that counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<IpAddr>,
}

/// What one proxy would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explained {
    /// The revision that it acts by.
    pub revision: u64,
    /// What.
    pub answer: Answer,
}

/// What a proxy would do with a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "does", rename_all = "snake_case")]
pub enum Answer {
    /// No listener has the port.
    NotListening,
    /// Its listener speaks something else.
    Speaks {
        /// What.
        protocol: Protocol,
    },
    /// It answers 404 itself.
    NoRoute,
    /// It proves to a certification authority that the host leads here (RFC 8555, 8.3).
    Proves,
    /// It sends the client elsewhere.
    Redirects {
        /// The route that says so; none where the listener does.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        route: Option<String>,
        /// Such as 308.
        status: u16,
        /// Where.
        location: String,
    },
    /// It asks a backend, or answers 503 where there is none.
    Forwards {
        /// The route that fits best.
        route: String,
        /// The path that the backend is asked for, with its query.
        path: String,
        /// Those who may be asked, pool by pool.
        pools: Vec<Candidates>,
    },
}

/// How a backend is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// In turn.
    Turn,
    /// The fewest requests in flight.
    Load,
    /// The same one for the same key.
    Hash,
    /// A cookie names it.
    Cookie,
}

/// The backends of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidates {
    /// The pool.
    pub pool: String,
    /// How many of a hundred requests of this route it gets.
    pub percent: u64,
    /// How one of them is chosen.
    pub by: By,
    /// Its backends, at most [`CANDIDATES_MAX`].
    pub backends: Vec<Candidate>,
    /// How many more there are.
    #[serde(default)]
    pub untold: u64,
}

/// A backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// Its VM.
    pub uid: String,
    /// The VM's name, as the server knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<Name>,
    /// Where it is.
    pub address: String,
    /// `healthy`, `failing` or `ejected`.
    pub health: String,
    /// Why that is so.
    #[serde(default)]
    pub because: String,
    /// Whether this request might go to it, as things are.
    pub might_be_asked: bool,
}

/// What all proxies of a load balancer would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tested {
    /// One for each proxy.
    pub proxies: Vec<TestedProxy>,
}

/// What one of them would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestedProxy {
    /// Its VM.
    pub vm: Name,
    /// What it would do, if it said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub explained: Option<Explained>,
    /// Why it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}
