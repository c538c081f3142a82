//! Fetching a disk that another worker has: chunk by chunk, only what differs, in slices that can be broken off.
//!
//! ```text
//! STATE/volume/<uid>/arriving         what was fetched so far; as large as the disk
//! STATE/volume/<uid>/arriving.state   how far that is
//! ```
//!
//! A slice asks for the sums of some chunks, compares them with what is here, and fetches those that differ. What is fetched
//! while nobody writes to the source is verified by its sum; what is fetched while somebody does is compared again later.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use lightbyte_api::VolumeId;
use lightbyte_api::assigned::Arriving;
use lightbyte_api::kinds::volume::SIZE_MAX;
use lightbyte_plan::agent::Fetched;
use rustix::fs::{FallocateFlags, SeekFrom, Timespec, Timestamps, UTIME_NOW, fallocate, futimens, seek};
use serde::{Deserialize, Serialize};

use crate::driver::DriverError;
use crate::files::{Access, Files, of_volume, rename_durably, system, write_durably};
use crate::peers::{CHUNK_BYTES, PeerDisk, READ_BYTES_MAX, SUM_OF_ZEROS, SUMS_MAX, Sum, sum};

pub(crate) const ARRIVING: &str = "arriving";
const STATE: &str = "arriving.state";
const QUARANTINE: &str = "quarantine";

/// How long one slice lasts; a batch of chunks that was begun is ended.
const SLICE: Duration = Duration::from_secs(3);
/// How many chunks are compared at once.
const BATCH_CHUNKS: u64 = 64;
const _: () = assert!(BATCH_CHUNKS <= SUMS_MAX);
/// How long what was moved away is kept, if there was anything wrong with what arrived.
const QUARANTINE_KEEP: Duration = Duration::from_secs(24 * 60 * 60);

/// How far a fetch is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    /// Nobody wrote to the source from the first chunk on.
    held: bool,
    /// The size of the source.
    size: u64,
    /// The first chunk that was not compared yet.
    next: u64,
    complete: bool,
}

impl Files {
    fn arriving(&self, volume: VolumeId) -> PathBuf {
        self.directory(of_volume(volume)).join(ARRIVING)
    }

    /// One slice of fetching.
    pub(crate) fn fetch_slice(&self, volume: VolumeId, arriving: &Arriving) -> Result<(), DriverError> {
        self.check_reserve()?;
        let disk = PeerDisk { worker: arriving.from, address: arriving.address.clone(), disk: volume };
        let size = self.peers.size(&disk)?;
        if size > SIZE_MAX {
            return Err(DriverError::Refused(format!(
                "disk {volume} is said to have {size}, at most {SIZE_MAX} are allowed"
            )));
        }
        let size = size.bytes();
        let file = self.open_arriving(volume, arriving, size)?;
        let mut state = self.fetch_state(volume)?.unwrap_or_default();
        if (state.held, state.size) != (arriving.held, size) {
            state = State { held: arriving.held, size, next: 0, complete: false };
        }
        let end = Instant::now() + SLICE;
        let chunks = size.div_ceil(CHUNK_BYTES);
        while state.next < chunks && Instant::now() < end {
            let batch = state.next..chunks.min(state.next + BATCH_CHUNKS);
            let sums = self.peers.sums(&disk, batch.clone())?;
            // What was not answered was not compared.
            if sums.len() as u64 != batch.end - batch.start {
                return Err(cut_short(&disk));
            }
            Fetch { files: self, disk: &disk, file: &file, state: &state }.batch(batch.start, &sums)?;
            state.next = batch.end;
        }
        let failed = || system(format!("keep what was fetched of disk {volume}"));
        // Before it is noted: after a power cut nothing counts as compared that is not on the disk.
        file.sync_all().map_err(failed())?;
        state.complete = state.next == chunks;
        let text = serde_json::to_string(&state).map_err(|error| failed()(error.into()))?;
        write_durably(&self.directory(of_volume(volume)).join(STATE), &text).map_err(failed())
    }

    /// The file to fetch into. The first time it begins as a copy of what may be much like it.
    fn open_arriving(&self, volume: VolumeId, arriving: &Arriving, size: u64) -> Result<File, DriverError> {
        let path = self.arriving(volume);
        let failed = || system(format!("make {}", path.display()));
        let directory = self.directory(of_volume(volume));
        fs::create_dir_all(&directory).map_err(failed())?;
        if !path.try_exists().map_err(failed())?
            && let Some(base) = arriving.base
            // It may be gone: then all is fetched.
            && let Some(_held) = self.take(base, Access::Read)?
        {
            let temporary = path.with_extension("new");
            let cloned = crate::disks::clone(&self.disk(base), &temporary);
            cloned.and_then(|()| fs::rename(&temporary, &path)).map_err(failed())?;
        }
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(failed())?;
        if file.metadata().map_err(failed())?.len() != size {
            file.set_len(size).map_err(failed())?;
        }
        Ok(file)
    }

    fn fetch_state(&self, volume: VolumeId) -> Result<Option<State>, DriverError> {
        let path = self.directory(of_volume(volume)).join(STATE);
        match fs::read(&path) {
            // What is damaged is fetched again: only what differs costs anything.
            Ok(text) => Ok(serde_json::from_slice(&text).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(system(format!("read {}", path.display()))(error)),
        }
    }

    /// What was fetched of a disk.
    pub(crate) fn what_was_fetched(&self, volume: VolumeId) -> Result<Option<Fetched>, DriverError> {
        let path = self.arriving(volume);
        if !path.try_exists().map_err(system(format!("look at {}", path.display())))? {
            return Ok(None);
        }
        let state = self.fetch_state(volume)?.unwrap_or_default();
        Ok(Some(Fetched { complete: state.complete, held: state.held }))
    }

    /// What was fetched is the disk from now on.
    pub(crate) fn take_fetched(&self, volume: VolumeId) -> Result<(), DriverError> {
        let (from, to) = (self.arriving(volume), self.disk(volume));
        let failed = || system(format!("make {}", to.display()));
        match self.what_was_fetched(volume)? {
            _ if to.try_exists().map_err(failed())? => {}
            Some(Fetched { complete: true, held: true }) => rename_durably(&from, &to).map_err(failed())?,
            _ => return Err(DriverError::Refused(format!("disk {volume} has not been fetched whole"))),
        }
        // How far it was says nothing without it.
        let _ = fs::remove_file(self.directory(of_volume(volume)).join(STATE));
        Ok(())
    }

    /// Removes what was fetched.
    pub(crate) fn drop_fetched(&self, volume: VolumeId) -> Result<(), DriverError> {
        for path in [self.directory(of_volume(volume)).join(STATE), self.arriving(volume)] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(system(format!("remove {}", path.display()))(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Puts a disk where nothing looks for it, for [`QUARANTINE_KEEP`].
    pub(crate) fn put_aside(&self, volume: VolumeId) -> Result<(), DriverError> {
        let Some(_held) = self.take(volume, Access::Write)? else { return Ok(()) };
        let (from, place) = (self.disk(volume), self.quarantine());
        let failed = || system(format!("move {} to {}", from.display(), place.display()));
        fs::create_dir_all(&place).map_err(failed())?;
        // From now on it ages.
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let times = Timestamps { last_access: now, last_modification: now };
        let file = File::options().write(true).open(&from).map_err(failed())?;
        futimens(&file, &times).map_err(|error| failed()(error.into()))?;
        rename_durably(&from, &place.join(volume.to_string())).map_err(failed())?;
        self.sweep_quarantine();
        Ok(())
    }

    pub(crate) fn quarantine(&self) -> PathBuf {
        self.state().join(QUARANTINE)
    }

    /// Removes what has been in quarantine long enough.
    pub(crate) fn sweep_quarantine(&self) {
        for entry in fs::read_dir(self.quarantine()).into_iter().flatten().flatten() {
            let modified = entry.metadata().and_then(|found| found.modified());
            let age = modified.ok().and_then(|modified| modified.elapsed().ok());
            if age.is_some_and(|age| age > QUARANTINE_KEEP) {
                // What cannot be removed now is for the next time.
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// One fetch under way.
struct Fetch<'a> {
    files: &'a Files,
    disk: &'a PeerDisk,
    file: &'a File,
    state: &'a State,
}

impl Fetch<'_> {
    /// Brings the chunks from `first` on to what these sums say.
    fn batch(&self, first: u64, sums: &[Sum]) -> Result<(), DriverError> {
        let mut wanted: Option<Range<u64>> = None;
        for (chunk, theirs) in (first..).zip(sums) {
            let (begin, end) = self.place(chunk);
            if sum_at(self.file, begin, end).map_err(self.failed("read"))? == *theirs {
                continue;
            }
            if *theirs == SUM_OF_ZEROS {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                let punched = fallocate(self.file, flags, begin, end - begin);
                punched.map_err(|error| self.failed("write")(error.into()))?;
                continue;
            }
            let full = READ_BYTES_MAX / CHUNK_BYTES;
            wanted = match wanted {
                Some(run) if run.end == chunk && run.end - run.start < full => Some(run.start..chunk + 1),
                Some(run) => {
                    self.run(run, first, sums)?;
                    Some(chunk..chunk + 1)
                }
                None => Some(chunk..chunk + 1),
            };
        }
        wanted.map_or(Ok(()), |run| self.run(run, first, sums))
    }

    /// Fetches a run of chunks.
    fn run(&self, chunks: Range<u64>, first: u64, sums: &[Sum]) -> Result<(), DriverError> {
        let (begin, end) = (self.place(chunks.start).0, self.place(chunks.end - 1).1);
        let bytes = self.files.peers.read(self.disk, begin..end)?;
        if bytes.len() as u64 != end - begin {
            return Err(cut_short(self.disk));
        }
        let parts = bytes.chunks(usize::try_from(CHUNK_BYTES).unwrap_or(usize::MAX));
        if self.state.held {
            let theirs = sums.iter().skip(usize::try_from(chunks.start - first).unwrap_or(usize::MAX));
            if let Some((chunk, _)) =
                (chunks.start..).zip(parts.zip(theirs)).find(|(_, (part, theirs))| sum(part) != **theirs)
            {
                return Err(DriverError::Refused(format!(
                    "chunk {chunk} of disk {} did not come as its sum says",
                    self.disk.disk
                )));
            }
        }
        self.file.write_all_at(&bytes, begin).map_err(self.failed("write"))
    }

    /// Where a chunk begins and ends.
    fn place(&self, chunk: u64) -> (u64, u64) {
        (chunk * CHUNK_BYTES, self.state.size.min((chunk + 1) * CHUNK_BYTES))
    }

    fn failed(&self, what: &'static str) -> impl FnOnce(io::Error) -> DriverError {
        system(format!("{what} what was fetched of disk {}", self.disk.disk))
    }
}

fn cut_short(disk: &PeerDisk) -> DriverError {
    let PeerDisk { worker, disk, .. } = disk;
    DriverError::Refused(format!("worker {worker} answered for a part only of what was asked of disk {disk}"))
}

/// The sum of what is in a file between two places; a hole is not read.
pub(crate) fn sum_at(file: &File, begin: u64, end: u64) -> io::Result<Sum> {
    match seek(file, SeekFrom::Data(begin)) {
        Ok(data) if data < end => {
            let mut chunk = vec![0; usize::try_from(end - begin).unwrap_or(usize::MAX)];
            file.read_exact_at(&mut chunk, begin)?;
            Ok(sum(&chunk))
        }
        Ok(_) | Err(rustix::io::Errno::NXIO) => Ok(SUM_OF_ZEROS),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::Disks as _;
    use crate::files::tests::Place;
    use crate::peers::Peers;
    use lightbyte_api::{ByteSize, Uid, WorkerId};
    use std::sync::Arc;

    const DISK: VolumeId = VolumeId::new(Uid::from_bits(9));

    /// A worker that says what it likes of a disk of two chunks and a half.
    #[derive(Clone, Copy)]
    struct Liar {
        size: u64,
        sums: usize,
        bytes: usize,
        wrong: bool,
    }

    const HONEST: Liar = Liar { size: 5 << 19, sums: 3, bytes: 5 << 19, wrong: false };

    impl Peers for Liar {
        fn size(&self, _: &PeerDisk) -> Result<ByteSize, DriverError> {
            Ok(ByteSize::from_bytes(self.size))
        }

        fn sums(&self, _: &PeerDisk, _: Range<u64>) -> Result<Vec<Sum>, DriverError> {
            let (whole, half) = (sum(&[7; 1 << 20]), sum(&[7; 1 << 19]));
            Ok([whole, whole, half].into_iter().take(self.sums).collect())
        }

        fn read(&self, _: &PeerDisk, _: Range<u64>) -> Result<Vec<u8>, DriverError> {
            Ok(vec![if self.wrong { 8 } else { 7 }; self.bytes])
        }
    }

    #[test]
    fn a_worker_that_lies_or_says_too_little_is_not_believed() {
        let check = |name: &str, liar: Liar, held: bool, refused: Option<&str>| {
            let place = Place::new(name);
            let files = place.files().with_peers(Arc::new(liar));
            let from = WorkerId::new(Uid::from_bits(1));
            let arriving = Arriving { from, address: String::new(), held, base: None };
            let said = files.fetch(DISK, &arriving).err().map(|error| error.to_string());
            let is_as_said = match (&said, refused) {
                (Some(said), Some(refused)) => said.contains(refused),
                (said, refused) => said.is_none() && refused.is_none(),
            };
            assert!(is_as_said, "{name}: {said:?}");
            let fetched = files.fetched(DISK).unwrap().is_some_and(|fetched| fetched.complete);
            assert_eq!(fetched, refused.is_none(), "{name}");
            assert_eq!(files.take_fetched(DISK).is_ok(), held && refused.is_none(), "{name}");
        };
        check("honest", HONEST, true, None);
        check("used", HONEST, false, None);
        check("few-sums", Liar { sums: 2, ..HONEST }, true, Some("a part only"));
        check("few-bytes", Liar { bytes: 100, ..HONEST }, true, Some("a part only"));
        check("wrong", Liar { wrong: true, ..HONEST }, true, Some("as its sum says"));
        check("huge", Liar { size: u64::MAX, ..HONEST }, true, Some("is said to have"));
    }

    #[test]
    fn what_was_put_aside_has_its_day() {
        let place = Place::new("aside");
        let files = place.files();
        let aside = |name: &str, age: Duration| {
            let file = File::create(files.quarantine().join(name)).unwrap();
            let at = lightbyte_api::Timestamp::now()
                - lightbyte_api::units::Span::from_secs(age.as_secs()).duration();
            file.set_modified(at.into()).unwrap();
        };
        let minute = Duration::from_secs(60);
        aside("old", QUARANTINE_KEEP + minute);
        aside("new", QUARANTINE_KEEP - minute);
        files.sweep();
        let left = fs::read_dir(files.quarantine()).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(left.collect::<Vec<_>>(), ["new"]);
    }
}
