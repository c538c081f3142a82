//! Disks as files: cloned, grown and removed, each whole or not at all.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use lightbyte_api::assigned::{Arriving, AssignedVolume, Source};
use lightbyte_api::kinds::volume::Filesystem;
use lightbyte_api::{ByteSize, Kind, VolumeId};
use lightbyte_plan::agent::Fetched;
use rustix::fs::{SeekFrom, seek};

use crate::driver::{Disks, DriverError, StillFlushed};
use crate::files::{Access, DISK, Files, of_volume, rename_durably, short, system};
use crate::peers::{CHUNK_BYTES, READ_BYTES_MAX, SUMS_MAX, Sum};
use crate::transfer::{ARRIVING, sum_at};

/// How much of a disk is copied at once where the file system cannot share blocks.
const COPY_BYTES: usize = 1 << 20;

/// Where programs of administrators are, which the search path of a service may lack.
const ADMINISTRATOR_PATHS: &str = "/usr/sbin:/sbin:/run/current-system/sw/bin";

impl Disks for Files {
    fn ensure(
        &self,
        volume: VolumeId,
        assigned: &AssignedVolume,
        still_flushed: Option<StillFlushed<'_>>,
    ) -> Result<(), DriverError> {
        if self.size(volume)?.is_some() {
            return Ok(());
        }
        self.check_reserve()?;
        let path = self.disk(volume);
        let temporary = path.with_extension("new");
        let directory = self.directory(of_volume(volume));
        fs::create_dir_all(&directory).map_err(system(format!("create {}", directory.display())))?;
        let made = self.make(&temporary, assigned, still_flushed).and_then(|()| {
            rename_durably(&temporary, &path).map_err(system(format!("make {}", path.display())))
        });
        if made.is_err() {
            // What a full disk left half written must not fill it further.
            let _ = fs::remove_file(&temporary);
        }
        made
    }

    fn grow(&self, volume: VolumeId, size: ByteSize) -> Result<(), DriverError> {
        if self.size(volume)?.is_some_and(|found| found >= size) {
            return Ok(());
        }
        self.check_reserve()?;
        let _held = self.hold(volume, Access::Write)?;
        grow_file(&self.disk(volume), size).map_err(system(format!("grow disk {volume} to {size}")))
    }

    fn remove(&self, volume: VolumeId) -> Result<(), DriverError> {
        // Held until it has gone: who wants it at the same time does not get it, or finds none.
        let Some(_held) = self.take(volume, Access::Write)? else { return Ok(()) };
        let path = self.disk(volume);
        fs::remove_file(&path).map_err(system(format!("remove {}", path.display())))
    }

    fn size(&self, volume: VolumeId) -> Result<Option<ByteSize>, DriverError> {
        let path = self.disk(volume);
        match fs::metadata(&path) {
            Ok(found) => Ok(Some(ByteSize::from_bytes(found.len()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(system(format!("look at {}", path.display()))(error)),
        }
    }

    fn list(&self) -> Result<Vec<VolumeId>, DriverError> {
        let mut found = self.objects(Kind::Volume, DISK)?;
        found.extend(self.objects(Kind::Volume, ARRIVING)?);
        Ok(found.into_iter().map(|object| VolumeId::new(object.uid)).collect())
    }

    fn fetch(&self, volume: VolumeId, arriving: &Arriving) -> Result<(), DriverError> {
        self.fetch_slice(volume, arriving)
    }

    fn fetched(&self, volume: VolumeId) -> Result<Option<Fetched>, DriverError> {
        self.what_was_fetched(volume)
    }

    fn take_fetched(&self, volume: VolumeId) -> Result<(), DriverError> {
        Files::take_fetched(self, volume)
    }

    fn drop_fetched(&self, volume: VolumeId) -> Result<(), DriverError> {
        Files::drop_fetched(self, volume)
    }

    fn quarantine(&self, volume: VolumeId) -> Result<(), DriverError> {
        self.put_aside(volume)
    }

    fn sweep(&self) {
        self.sweep_quarantine();
    }

    fn sums(&self, volume: VolumeId, chunks: Range<u64>) -> Result<Vec<Sum>, DriverError> {
        let file = self.open_to_read(volume)?;
        let failed = || system(format!("read disk {volume}"));
        let size = file.metadata().map_err(failed())?.len();
        let chunks = chunks.start..chunks.end.min(chunks.start.saturating_add(SUMS_MAX));
        let chunks = chunks.start..chunks.end.min(size.div_ceil(CHUNK_BYTES));
        let sum = |chunk: u64| sum_at(&file, chunk * CHUNK_BYTES, size.min((chunk + 1) * CHUNK_BYTES));
        chunks.map(sum).collect::<io::Result<_>>().map_err(failed())
    }

    fn read(&self, volume: VolumeId, bytes: Range<u64>) -> Result<Vec<u8>, DriverError> {
        let file = self.open_to_read(volume)?;
        let failed = || system(format!("read disk {volume}"));
        let size = file.metadata().map_err(failed())?.len();
        let end = bytes.end.min(size).min(bytes.start.saturating_add(READ_BYTES_MAX));
        let mut read = vec![0; usize::try_from(end.saturating_sub(bytes.start)).unwrap_or(usize::MAX)];
        file.read_exact_at(&mut read, bytes.start).map_err(failed())?;
        Ok(read)
    }
}

impl Files {
    /// A disk to read from for another worker, whoever has it.
    fn open_to_read(&self, volume: VolumeId) -> Result<File, DriverError> {
        let path = self.disk(volume);
        File::open(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => DriverError::Refused(format!("disk {volume} is not there")),
            _ => system(format!("open {}", path.display()))(error),
        })
    }

    /// Makes the whole disk at `path`, durably.
    fn make(
        &self,
        path: &Path,
        assigned: &AssignedVolume,
        still_flushed: Option<StillFlushed<'_>>,
    ) -> Result<(), DriverError> {
        match &assigned.source {
            Source::Blank(_) => {
                File::create(path).map_err(system(format!("create {}", path.display())))?;
            }
            Source::Image(part) => {
                if assigned.size < part.size {
                    let (size, source) = (assigned.size, part.size);
                    return Err(DriverError::Refused(format!("{size} is less than the image's {source}")));
                }
                let what = format!("clone image part {} to a volume", short(part));
                clone(&self.part(part)?, path).map_err(system(what))?;
            }
            Source::Disk(source) => self.copy_disk(*source, path, still_flushed)?,
        }
        grow_file(path, assigned.size).map_err(system(format!("make a disk of {}", assigned.size)))?;
        match assigned.source {
            Source::Blank(Filesystem::Ext4) => make_ext4(path),
            _ => Ok(()),
        }
    }

    /// Copies another disk as it is now. Without machines that were asked to hold their breath, nobody may write to it.
    fn copy_disk(
        &self,
        source: VolumeId,
        path: &Path,
        still_flushed: Option<StillFlushed<'_>>,
    ) -> Result<(), DriverError> {
        let held = match still_flushed {
            Some(_) => None,
            None => Some(self.hold(source, Access::Read)?),
        };
        let from = self.disk(source);
        clone(&from, path).map_err(system(format!("copy {}", from.display())))?;
        drop(held);
        still_flushed.map_or(Ok(()), |still_flushed| still_flushed())
    }
}

fn grow_file(path: &Path, size: ByteSize) -> io::Result<()> {
    let file = File::options().write(true).open(path)?;
    if file.metadata()?.len() < size.bytes() {
        file.set_len(size.bytes())?;
    }
    file.sync_all()
}

/// Makes an empty ext4 in the file (mke2fs(8)), its tables left for the guest to write.
fn make_ext4(path: &Path) -> Result<(), DriverError> {
    let mut command = Command::new("mkfs.ext4");
    let found = std::env::var_os("PATH").unwrap_or_default();
    command.env("PATH", join_paths(PathBuf::from(found), ADMINISTRATOR_PATHS));
    command.args(["-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"]);
    let output =
        command.arg(path).output().map_err(system("run mkfs.ext4 (package e2fsprogs)".to_owned()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(DriverError::Refused(format!("no file system could be made: {}", said.trim())))
}

fn join_paths(first: PathBuf, more: &str) -> std::ffi::OsString {
    let mut joined = first.into_os_string();
    joined.push(":");
    joined.push(more);
    joined
}

/// Copies a file: shares its blocks where the file system can (XFS, btrfs; ioctl_ficlone(2)), and copies only what is
/// not a hole elsewhere.
pub(crate) fn clone(source: &Path, target: &Path) -> io::Result<()> {
    let from = File::open(source)?;
    let to = File::create(target)?;
    if rustix::fs::ioctl_ficlone(&to, &from).is_ok() {
        return Ok(());
    }
    copy_sparse(&from, &to)
}

fn copy_sparse(from: &File, to: &File) -> io::Result<()> {
    let length = from.metadata()?.size();
    to.set_len(length)?;
    let mut buffer = vec![0; COPY_BYTES];
    let mut position = 0;
    while position < length {
        let begin = match seek(from, SeekFrom::Data(position)) {
            Ok(begin) => begin,
            // Nothing but a hole until the end.
            Err(rustix::io::Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let end = seek(from, SeekFrom::Hole(begin))?;
        copy_range(from, to, begin..end, &mut buffer)?;
        position = end;
    }
    Ok(())
}

fn copy_range(from: &File, to: &File, range: Range<u64>, buffer: &mut [u8]) -> io::Result<()> {
    let mut position = range.start;
    while position < range.end {
        let wanted = usize::try_from(range.end - position).unwrap_or(usize::MAX).min(buffer.len());
        let read = from.read_at(&mut buffer[..wanted], position)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        to.write_all_at(&buffer[..read], position)?;
        position += read as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::tests::Place;
    use lightbyte_api::assigned::WantedVolume;
    use lightbyte_api::{Name, Uid};

    fn assigned(size: u64, source: Source) -> AssignedVolume {
        AssignedVolume {
            sequence: 1,
            generation: 1,
            name: Name::new("a-root").unwrap(),
            wanted: WantedVolume::Present,
            size: ByteSize::from_bytes(size),
            source,
            arriving: None,
        }
    }

    fn image(content: &[u8]) -> Source {
        Source::Image(crate::parts::tests::part(content))
    }

    const VOLUME: VolumeId = VolumeId::new(Uid::from_bits(7));
    const COPY: VolumeId = VolumeId::new(Uid::from_bits(8));

    #[test]
    fn a_disk_is_cloned_grown_and_removed() {
        let place = Place::new("clone");
        let files = place.files();
        let mut source = vec![0_u8; 3 << 20];
        source[2 << 20] = 9;
        let assigned = assigned(8 << 20, image(&source));
        let missing = files.ensure(VOLUME, &assigned, None).unwrap_err();
        let part = crate::parts::tests::part(&source);
        assert_eq!(missing.to_string(), format!("image part {} is not on this host", short(&part)));
        fs::write(files.parts().path(&part.sha256), &source).unwrap();
        files.ensure(VOLUME, &assigned, None).unwrap();
        let disk = fs::read(files.disk(VOLUME)).unwrap();
        assert_eq!((disk.len(), &disk[..source.len()]), (8 << 20, &source[..]));
        assert_eq!(Disks::list(&files).unwrap(), [VOLUME]);
        files.grow(VOLUME, ByteSize::from_mib(16)).unwrap();
        files.grow(VOLUME, ByteSize::from_mib(4)).unwrap();
        assert_eq!(files.size(VOLUME).unwrap(), Some(ByteSize::from_mib(16)));
        let held = files.hold(VOLUME, Access::Write).unwrap();
        let grown = files.grow(VOLUME, ByteSize::from_mib(32));
        for refused in [files.hold(VOLUME, Access::Read).map(drop), files.remove(VOLUME), grown] {
            assert!(refused.unwrap_err().to_string().ends_with("is in use"));
        }
        drop(held);
        files.remove(VOLUME).unwrap();
        files.remove(VOLUME).unwrap();
        assert!(files.hold(VOLUME, Access::Write).unwrap_err().to_string().ends_with("is not there"));
        assert!(Disks::list(&files).unwrap().is_empty());
    }

    #[test]
    fn readers_share_a_disk_and_a_writer_shares_with_nobody() {
        let place = Place::new("share");
        let files = place.files();
        files.ensure(VOLUME, &assigned(1 << 20, Source::Blank(Filesystem::None)), None).unwrap();
        let readers = [files.hold(VOLUME, Access::Read).unwrap(), files.hold(VOLUME, Access::Read).unwrap()];
        assert!(files.hold(VOLUME, Access::Write).is_err());
        drop(readers);
        let _writer = files.hold(VOLUME, Access::Write).unwrap();
        assert!(files.hold(VOLUME, Access::Read).is_err());
    }

    #[test]
    fn a_blank_disk_has_its_file_system_and_a_copy_is_the_same() {
        let place = Place::new("blank");
        let files = place.files();
        files.ensure(VOLUME, &assigned(8 << 20, Source::Blank(Filesystem::Ext4)), None).unwrap();
        let original = fs::read(files.disk(VOLUME)).unwrap();
        // The magic number of the superblock (ext4(5), the kernel's Documentation/filesystems/ext4/super.rst).
        assert_eq!(original[1024 + 0x38..1024 + 0x3a], [0x53, 0xef]);
        let copy = assigned(1, Source::Disk(VOLUME));
        files.ensure(COPY, &copy, None).unwrap();
        assert!(fs::read(files.disk(COPY)).unwrap() == original, "the copy differs");
    }

    #[test]
    fn a_disk_that_is_written_to_is_copied_only_while_its_guest_holds_its_breath() {
        let place = Place::new("flush");
        let files = place.files();
        files.ensure(VOLUME, &assigned(1 << 20, Source::Blank(Filesystem::None)), None).unwrap();
        let copy = assigned(1 << 20, Source::Disk(VOLUME));
        let _machine = files.hold(VOLUME, Access::Write).unwrap();
        assert!(files.ensure(COPY, &copy, None).unwrap_err().to_string().ends_with("is in use"));
        let went_on = || Err(DriverError::Refused("it went on".to_owned()));
        assert_eq!(files.ensure(COPY, &copy, Some(&went_on)).unwrap_err().to_string(), "it went on");
        assert_eq!(files.size(COPY).unwrap(), None);
        assert!(!files.disk(COPY).with_extension("new").exists(), "half a disk is left");
        files.ensure(COPY, &copy, Some(&|| Ok(()))).unwrap();
        assert_eq!(files.size(COPY).unwrap(), Some(ByteSize::from_mib(1)));
    }

    #[test]
    fn holes_stay_holes_where_blocks_cannot_be_shared() {
        let place = Place::new("holes");
        let (from, to) = (place.0.join("from"), place.0.join("to"));
        let file = File::create(&from).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(b"middle", 32 << 20).unwrap();
        copy_sparse(&File::open(&from).unwrap(), &File::create(&to).unwrap()).unwrap();
        assert!(fs::read(&from).unwrap() == fs::read(&to).unwrap(), "the copy differs");
        assert!(fs::metadata(&to).unwrap().blocks() * 512 < 8 << 20, "the copy is not sparse");
    }
}
