//! Disks that other workers fetch: what an agent serves of its own, and how it reaches those of others.
//!
//! ```text
//! GET /v1/volumes/UID                          {"size": "1GiB"}
//! GET /v1/volumes/UID/sums?first=0&count=64    32 bytes for each chunk, see `lightbyte_vmm::peers`
//! GET /v1/volumes/UID/bytes?begin=0&length=N   the bytes
//! ```

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use lightbyte_api::{ByteSize, Uid, VolumeId};
use lightbyte_link::{Client, ClientError, Endpoint, Problem};
use lightbyte_vmm::DriverError;
use lightbyte_vmm::driver::Disks;
use lightbyte_vmm::peers::{PeerDisk, Peers, READ_BYTES_MAX, SUMS_MAX, Sum};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::life::describe;

/// How many answers are made at once: each holds a thread, and eight MiB at the most.
const ANSWERS_AT_ONCE_MAX: usize = 8;
/// How long one answer of another worker may take: the sums of 64 MiB, read from a slow disk.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// What the handlers share.
struct Served {
    disks: Arc<dyn Disks>,
    places: Semaphore,
}

/// What is served of a disk.
#[derive(Serialize, Deserialize)]
struct Shape {
    size: ByteSize,
}

#[derive(Deserialize)]
struct Chunks {
    first: u64,
    count: u64,
}

#[derive(Deserialize)]
struct Bytes {
    begin: u64,
    length: u64,
}

/// What an agent serves of its disks.
pub(crate) fn router(disks: Arc<dyn Disks>) -> Router {
    let served = Served { disks, places: Semaphore::new(ANSWERS_AT_ONCE_MAX) };
    Router::new()
        .route("/v1/volumes/{uid}", get(shape))
        .route("/v1/volumes/{uid}/sums", get(sums))
        .route("/v1/volumes/{uid}/bytes", get(bytes))
        .with_state(Arc::new(served))
}

impl Served {
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&dyn Disks) -> Result<T, DriverError> + Send + 'static,
    ) -> Result<T, Problem> {
        let _place = self.places.acquire().await;
        let disks = Arc::clone(&self.disks);
        match tokio::task::spawn_blocking(move || question(disks.as_ref())).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(DriverError::Refused(reason))) => Err(Problem::new(StatusCode::NOT_FOUND, reason)),
            Ok(Err(error)) => Err(Problem::new(StatusCode::BAD_GATEWAY, error.chain())),
            Err(panic) => Err(Problem::new(StatusCode::BAD_GATEWAY, format!("the driver failed: {panic}"))),
        }
    }
}

fn volume(Path(uid): Path<String>) -> Result<VolumeId, Problem> {
    uid.parse::<Uid>()
        .map(VolumeId::new)
        .map_err(|error| Problem::new(StatusCode::BAD_REQUEST, error.to_string()))
}

async fn shape(State(served): State<Arc<Served>>, path: Path<String>) -> Result<Response, Problem> {
    let disk = volume(path)?;
    let missing = move || DriverError::Refused(format!("disk {disk} is not there"));
    let size = served.ask(move |disks| disks.size(disk)?.ok_or_else(missing)).await?;
    let body = serde_json::to_vec(&Shape { size }).unwrap_or_else(|_| unreachable!("a size is plain data"));
    Ok(([(CONTENT_TYPE, "application/json")], Body::from(body)).into_response())
}

async fn sums(
    State(served): State<Arc<Served>>,
    path: Path<String>,
    Query(Chunks { first, count }): Query<Chunks>,
) -> Result<Response, Problem> {
    let disk = volume(path)?;
    let end = first.saturating_add(count.min(SUMS_MAX));
    let sums = served.ask(move |disks| disks.sums(disk, first..end)).await?;
    Ok(octets(sums.concat()))
}

async fn bytes(
    State(served): State<Arc<Served>>,
    path: Path<String>,
    Query(Bytes { begin, length }): Query<Bytes>,
) -> Result<Response, Problem> {
    let disk = volume(path)?;
    let end = begin.saturating_add(length.min(READ_BYTES_MAX));
    let bytes = served.ask(move |disks| disks.read(disk, begin..end)).await?;
    Ok(octets(bytes))
}

fn octets(bytes: Vec<u8>) -> Response {
    ([(CONTENT_TYPE, "application/octet-stream")], Body::from(bytes)).into_response()
}

// ------------------------------------------------------------------------------------------------- other workers

/// The way to other workers over HTTP. Its calls block; they are made on threads that may.
pub struct HttpPeers {
    runtime: tokio::runtime::Handle,
}

impl HttpPeers {
    /// Peers whose connections belong to this runtime.
    #[must_use]
    pub const fn new(runtime: tokio::runtime::Handle) -> HttpPeers {
        HttpPeers { runtime }
    }

    fn client(disk: &PeerDisk) -> Result<Client, DriverError> {
        let unknown = || DriverError::Refused(format!("where worker {} listens is not known", disk.worker));
        let endpoint = Endpoint::of_address(&disk.address).ok_or_else(unknown)?;
        Ok(Client::new([endpoint]).within(ANSWER_WITHIN))
    }

    /// An answer of exactly so many bytes.
    fn octets(&self, disk: &PeerDisk, query: &str, length: usize) -> Result<Vec<u8>, DriverError> {
        let client = HttpPeers::client(disk)?;
        let path = format!("/v1/volumes/{}/{query}", disk.disk);
        let read = async {
            let mut stream = client.bytes(&path).await?;
            let mut bytes = Vec::with_capacity(length);
            while let Some(more) = stream.next().await? {
                bytes.extend_from_slice(&more);
                if bytes.len() > length {
                    break;
                }
            }
            Ok(bytes)
        };
        let answer = self.runtime.block_on(async { timeout(ANSWER_WITHIN, read).await });
        let bytes = answer.map_err(|_| silent(disk))?.map_err(|error| failed(disk, &error))?;
        if bytes.len() != length {
            let address = &disk.address;
            let reason = format!("worker at {address} sent {} bytes instead of {length}", bytes.len());
            return Err(DriverError::Refused(reason));
        }
        Ok(bytes)
    }
}

fn silent(disk: &PeerDisk) -> DriverError {
    DriverError::Refused(format!("worker at {} did not answer in time", disk.address))
}

fn failed(disk: &PeerDisk, error: &ClientError) -> DriverError {
    DriverError::Refused(format!("worker at {}: {}", disk.address, describe(error)))
}

impl Peers for HttpPeers {
    fn size(&self, disk: &PeerDisk) -> Result<ByteSize, DriverError> {
        let client = HttpPeers::client(disk)?;
        let path = format!("/v1/volumes/{}", disk.disk);
        let asked = async { timeout(ANSWER_WITHIN, client.get::<Shape>(&path)).await };
        let answer = self.runtime.block_on(asked).map_err(|_| silent(disk))?;
        Ok(answer.map_err(|error| failed(disk, &error))?.value.size)
    }

    fn sums(&self, disk: &PeerDisk, chunks: Range<u64>) -> Result<Vec<Sum>, DriverError> {
        let count = chunks.end.saturating_sub(chunks.start).min(SUMS_MAX);
        let query = format!("sums?first={}&count={count}", chunks.start);
        let length = usize::try_from(count).unwrap_or(usize::MAX) * size_of::<Sum>();
        let bytes = self.octets(disk, &query, length)?;
        Ok(bytes.as_chunks::<{ size_of::<Sum>() }>().0.to_vec())
    }

    fn read(&self, disk: &PeerDisk, bytes: Range<u64>) -> Result<Vec<u8>, DriverError> {
        let length = bytes.end.saturating_sub(bytes.start).min(READ_BYTES_MAX);
        let query = format!("bytes?begin={}&length={length}", bytes.start);
        self.octets(disk, &query, usize::try_from(length).unwrap_or(usize::MAX))
    }
}
