//! Disks of other workers, as those who fetch them see them: sums of their chunks, and their bytes.

use std::ops::Range;
use std::sync::Arc;

use lightbyte_api::{ByteSize, VolumeId, WorkerId};
use sha2::{Digest as _, Sha256};

use crate::driver::{Disks, DriverError};

/// How much of a disk is compared by one sum; the last chunk of a disk may be shorter.
pub const CHUNK_BYTES: u64 = 1 << 20;
/// The most sums of one answer.
pub const SUMS_MAX: u64 = 256;
/// The most bytes of one answer.
pub const READ_BYTES_MAX: u64 = 8 * CHUNK_BYTES;

/// SHA-256 (FIPS 180-4) of a chunk; all zeros for a chunk of zeros, which need neither be read nor sent.
pub type Sum = [u8; 32];

/// The sum of a chunk of zeros.
pub const SUM_OF_ZEROS: Sum = [0; 32];

/// A disk of another worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerDisk {
    /// The worker.
    pub worker: WorkerId,
    /// Where its agent listens, as `host:port`.
    pub address: String,
    /// The disk.
    pub disk: VolumeId,
}

/// The way to other workers. Each call is over after a time of its own.
pub trait Peers: Send + Sync {
    /// The size of the disk.
    ///
    /// # Errors
    /// When the worker cannot be reached, or does not have it.
    fn size(&self, disk: &PeerDisk) -> Result<ByteSize, DriverError>;

    /// The sums of these chunks, at most [`SUMS_MAX`].
    ///
    /// # Errors
    /// When the worker cannot be reached, or does not have them all.
    fn sums(&self, disk: &PeerDisk, chunks: Range<u64>) -> Result<Vec<Sum>, DriverError>;

    /// These bytes, at most [`READ_BYTES_MAX`].
    ///
    /// # Errors
    /// When the worker cannot be reached, or does not have them all.
    fn read(&self, disk: &PeerDisk, bytes: Range<u64>) -> Result<Vec<u8>, DriverError>;
}

/// No other worker: for a host that stands alone.
pub struct NoPeers;

impl Peers for NoPeers {
    fn size(&self, disk: &PeerDisk) -> Result<ByteSize, DriverError> {
        Err(DriverError::Refused(format!("this host knows no way to worker {}", disk.worker)))
    }

    fn sums(&self, disk: &PeerDisk, _chunks: Range<u64>) -> Result<Vec<Sum>, DriverError> {
        self.size(disk).map(|_| Vec::new())
    }

    fn read(&self, disk: &PeerDisk, _bytes: Range<u64>) -> Result<Vec<u8>, DriverError> {
        self.size(disk).map(|_| Vec::new())
    }
}

/// Workers in this process: whose disks they are is asked of the function. For benches, simulations and tests.
pub struct InProcess<F>(pub F);

impl<F> Peers for InProcess<F>
where
    F: Fn(&PeerDisk) -> Result<Arc<dyn Disks>, DriverError> + Send + Sync,
{
    fn size(&self, disk: &PeerDisk) -> Result<ByteSize, DriverError> {
        let size = (self.0)(disk)?.size(disk.disk)?;
        size.ok_or_else(|| DriverError::Refused(format!("disk {} is not there", disk.disk)))
    }

    fn sums(&self, disk: &PeerDisk, chunks: Range<u64>) -> Result<Vec<Sum>, DriverError> {
        (self.0)(disk)?.sums(disk.disk, chunks)
    }

    fn read(&self, disk: &PeerDisk, bytes: Range<u64>) -> Result<Vec<u8>, DriverError> {
        (self.0)(disk)?.read(disk.disk, bytes)
    }
}

/// The sum of a chunk.
#[must_use]
pub fn sum(chunk: &[u8]) -> Sum {
    if chunk.iter().all(|byte| *byte == 0) { SUM_OF_ZEROS } else { Sha256::digest(chunk).into() }
}
