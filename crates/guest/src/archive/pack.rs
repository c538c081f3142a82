//! Writes a file, or a directory with everything in it, as a tar stream.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use tar::{Builder, EntryType, Header};

use super::PATH_BYTES_MAX;

/// Files with several names that are remembered, so that they arrive as one; more of them arrive as several.
const LINKED_FILES_MAX: usize = 100_000;

/// Directories within directories that are followed.
const DEPTH_MAX: usize = 1_000;

/// Bytes of a link's target that a header holds; longer ones need an entry of their own.
const LINK_BYTES_SHORT: usize = 100;

/// Whose the files are in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owners {
    /// The numbers that they have here.
    AsTheyAre,
    /// All are root's: numbers of this machine's users mean nothing on another.
    Root,
}

/// Writes what is at `path` to `output`, and gives it back. A link is carried as a link. The first entry is `path` by its
/// last name, or `.` if `path` ends with `/.` or has no name. What is on another file system (such as `/proc`), a socket
/// or a device is left out and told to `left_out`, a line each.
///
/// # Errors
/// If something cannot be read, or the output takes no more. What was written then is no whole archive.
pub fn pack<W: Write>(path: &Path, owners: Owners, output: W, left_out: &mut dyn FnMut(String)) -> Result<W> {
    let metadata = fs::symlink_metadata(path).with_context(|| path.display().to_string())?;
    let contents_only = path.as_os_str().as_bytes().ends_with(b"/.");
    let name = path.file_name().filter(|_| !contents_only).map_or_else(|| PathBuf::from("."), PathBuf::from);
    let mut packer = Packer {
        builder: Builder::new(output),
        owners,
        device: metadata.dev(),
        linked: HashMap::new(),
        left_out,
    };
    packer.entry(path, &name, &metadata, 0)?;
    packer.builder.into_inner().context("write the end")
}

struct Packer<'a, W: Write> {
    builder: Builder<W>,
    owners: Owners,
    device: u64,
    /// First names of files that have several, by inode.
    linked: HashMap<u64, PathBuf>,
    left_out: &'a mut dyn FnMut(String),
}

impl<W: Write> Packer<'_, W> {
    fn entry(&mut self, path: &Path, name: &Path, metadata: &Metadata, depth: usize) -> Result<()> {
        ensure!(depth <= DEPTH_MAX, "{}: more than {DEPTH_MAX} directories deep", path.display());
        ensure!(name.as_os_str().len() < PATH_BYTES_MAX, "{}: its name is too long", path.display());
        let kind = metadata.file_type();
        if metadata.dev() != self.device {
            (self.left_out)(format!("{}: on another file system", path.display()));
            return Ok(());
        }
        let done = if kind.is_dir() {
            return self.directory(path, name, metadata, depth);
        } else if kind.is_symlink() {
            self.link(path, name, metadata)
        } else if kind.is_file() {
            self.file(path, name, metadata)
        } else {
            let what = if kind.is_socket() { "a socket" } else { "a device or a pipe" };
            (self.left_out)(format!("{}: {what}", path.display()));
            return Ok(());
        };
        done.with_context(|| path.display().to_string())
    }

    fn directory(&mut self, path: &Path, name: &Path, metadata: &Metadata, depth: usize) -> Result<()> {
        let mut header = self.header(metadata, EntryType::Directory);
        self.builder
            .append_data(&mut header, name, io::empty())
            .with_context(|| path.display().to_string())?;
        let read = || -> io::Result<Vec<_>> {
            let mut entries =
                fs::read_dir(path)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
            // The same tree gives the same stream.
            entries.sort();
            Ok(entries)
        };
        for entry in read().with_context(|| path.display().to_string())? {
            let below = path.join(&entry);
            let name = if name == Path::new(".") { PathBuf::from(&entry) } else { name.join(&entry) };
            match fs::symlink_metadata(&below) {
                Ok(metadata) => self.entry(&below, &name, &metadata, depth + 1)?,
                // It was removed since the directory was read.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).with_context(|| below.display().to_string()),
            }
        }
        Ok(())
    }

    fn link(&mut self, path: &Path, name: &Path, metadata: &Metadata) -> Result<()> {
        let target = fs::read_link(path)?;
        let mut header = self.header(metadata, EntryType::Symlink);
        self.append_link(&mut header, name, &target)
    }

    /// To the letter where it is short, since a target need not be a path that makes sense here.
    fn append_link(&mut self, header: &mut Header, name: &Path, target: &Path) -> Result<()> {
        let bytes = target.as_os_str().as_bytes();
        if bytes.len() > LINK_BYTES_SHORT {
            return Ok(self.builder.append_link(header, name, target)?);
        }
        header.set_link_name_literal(bytes)?;
        Ok(self.builder.append_data(header, name, io::empty())?)
    }

    fn file(&mut self, path: &Path, name: &Path, metadata: &Metadata) -> Result<()> {
        if metadata.nlink() > 1 {
            if let Some(first) = self.linked.get(&metadata.ino()).cloned() {
                let mut header = self.header(metadata, EntryType::Link);
                return self.append_link(&mut header, name, &first);
            }
            if self.linked.len() < LINKED_FILES_MAX {
                self.linked.insert(metadata.ino(), name.to_owned());
            }
        }
        let file = File::open(path)?;
        let bytes = file.metadata()?.len();
        let mut header = self.header(metadata, EntryType::Regular);
        header.set_size(bytes);
        let mut content = Exactly { file, left: bytes, is_short: false };
        self.builder.append_data(&mut header, name, &mut content)?;
        if content.is_short {
            (self.left_out)(format!("{}: its end, which was cut off while it was read", path.display()));
        }
        Ok(())
    }

    fn header(&self, metadata: &Metadata, kind: EntryType) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(metadata.mode() & 0o7777);
        header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
        header.set_size(0);
        let (user, group) = match self.owners {
            Owners::AsTheyAre => (metadata.uid(), metadata.gid()),
            Owners::Root => (0, 0),
        };
        header.set_uid(user.into());
        header.set_gid(group.into());
        header
    }
}

/// As many bytes as were promised, whatever happens to the file meanwhile: zeros stand for what it has not any more.
struct Exactly {
    file: File,
    left: u64,
    is_short: bool,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let buffer = &mut buffer[..room];
        if buffer.is_empty() {
            return Ok(0);
        }
        let mut bytes = if self.is_short { 0 } else { self.file.read(buffer)? };
        if bytes == 0 {
            self.is_short = true;
            buffer.fill(0);
            bytes = buffer.len();
        }
        self.left -= bytes as u64;
        Ok(bytes)
    }
}
