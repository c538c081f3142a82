//! What goes over HTTP about the parts of images.
//!
//! ```text
//! GET  /v1/parts                       -> RegisteredParts     GET /v1/parts/SHA256          -> its bytes, from `Range` on
//! POST /v1/parts/SHA256?size=&offset=  bytes -> PartState     GET /v1/parts/SHA256/state    -> PartState
//! GET  /v1/parts/SHA256/sources        -> List of PartSource  GET /v1/objects/KIND/NAME/fetches -> List of Fetch
//! ```
//!
//! Workers serve the bytes at the same path, and what they fetch at `/v1/fetches`.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::name::Name;
use crate::records::Epoch;

/// The largest part that is taken.
pub const PART_BYTES_MAX: u64 = 1 << 40;
/// The most bytes of a part that one request brings: little is lost when it is cut off, and a server has room for many.
pub const PART_CHUNK_BYTES_MAX: usize = 8 << 20;
/// How many sources of a part are named.
pub const PART_SOURCES_MAX: usize = 16;

/// How much of a part a server has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartState {
    /// It has all of it, and its checksum is right.
    pub held: bool,
    /// How much has come of it: where to go on.
    pub received: u64,
}

/// The parts of all registered versions of all images: the list is whole, or there is none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RegisteredParts {
    /// In which cluster and epoch.
    pub epoch: Epoch,
    /// At which revision.
    pub revision: u64,
    /// Their checksums.
    pub parts: BTreeSet<String>,
}

/// A worker that says that it has a part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartSource {
    /// The worker.
    pub worker: Name,
    /// Where it listens.
    pub address: String,
}

/// A part that a worker fetches. Nothing of this is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetch {
    /// Its checksum.
    pub sha256: String,
    /// Its size in bytes.
    pub size: u64,
    /// How much has come.
    pub done: u64,
    /// From whom it comes now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// How long it will take, if it goes on as now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds_left: Option<u64>,
    /// What hinders it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}
