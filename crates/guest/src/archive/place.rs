//! Makes files below one directory, and never outside of it, whatever links lie on the way.
//!
//! The kernel does the looking up: `openat2` with `RESOLVE_BENEATH` (openat2(2)) refuses what leads out, so there is no
//! moment between a check and its use.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::{Component, Path};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, ResolveFlags, linkat, mkdirat, openat, openat2, renameat, symlinkat, unlinkat,
};
use rustix::io::Errno;

/// What directories that nobody described are made with.
const DIRECTORY_MODE: u32 = 0o755;

/// Begins the names of what is not whole yet.
const NEW_PREFIX: &str = ".lightbyte-new-";

/// A directory that everything stays below.
pub(super) struct Ground {
    root: OwnedFd,
    made: u64,
}

/// A place for something: an open directory, and a name in it.
pub(super) struct Place<'a> {
    pub(super) directory: OwnedFd,
    pub(super) name: &'a OsStr,
}

/// A new file, which has no name yet or a name that nobody will look for.
pub(super) struct NewFile {
    pub(super) file: File,
    temporary: Option<String>,
}

impl Ground {
    /// Opens it; it must be there.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(CWD, path, flags, Mode::empty()).with_context(|| path.display().to_string())?;
        Ok(Self { root, made: 0 })
    }

    /// The place of a path below, whose directories are made where they are not there.
    pub(super) fn place<'a>(&self, path: &'a Path) -> Result<Place<'a>> {
        let name = path.file_name().context("it has no name")?;
        let parent = path.parent().unwrap_or(Path::new(""));
        Ok(Place { directory: self.directory(parent)?, name })
    }

    /// Opens a directory below, which is made where it is not there.
    fn directory(&self, path: &Path) -> Result<OwnedFd> {
        match self.open_directory(path) {
            Err(Errno::NOENT) => {}
            result => return result.map_err(|error| leads_out(error, path)),
        }
        let mut directory = self.open_directory(Path::new("")).map_err(|error| leads_out(error, path))?;
        let mut way = std::path::PathBuf::new();
        for component in path.components() {
            let Component::Normal(name) = component else { bail!("`{}` leads out", path.display()) };
            way.push(name);
            match mkdirat(&directory, name, Mode::from_raw_mode(DIRECTORY_MODE)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error).with_context(|| way.display().to_string()),
            }
            directory = self.open_directory(&way).map_err(|error| leads_out(error, &way))?;
        }
        Ok(directory)
    }

    pub(super) fn open_directory(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat2(&self.root, path, flags, Mode::empty(), ResolveFlags::BENEATH)
    }

    /// A file to be filled. If this process dies, nothing is left of it where the file system can do that.
    pub(super) fn new_file(&mut self, place: &Place<'_>) -> Result<NewFile> {
        let mode = Mode::RUSR | Mode::WUSR;
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        match openat(&place.directory, ".", flags | OFlags::TMPFILE, mode) {
            Ok(file) => return Ok(NewFile { file: file.into(), temporary: None }),
            // A file system, or a kernel, without it (open(2)).
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let temporary = self.temporary();
        let file = openat(&place.directory, &temporary, flags | OFlags::CREATE | OFlags::EXCL, mode)?;
        Ok(NewFile { file: file.into(), temporary: Some(temporary) })
    }

    /// Gives a whole file its name; what had that name is replaced.
    pub(super) fn name_file(&mut self, new: NewFile, place: &Place<'_>) -> Result<()> {
        let temporary = match new.temporary {
            Some(temporary) => temporary,
            None => {
                let temporary = self.temporary();
                let open = format!("/proc/self/fd/{}", new.file.as_raw_fd());
                linkat(CWD, open, &place.directory, &temporary, AtFlags::SYMLINK_FOLLOW)?;
                temporary
            }
        };
        rename(place, &temporary)
    }

    /// Removes what a file that did not become whole may have left.
    pub(super) fn give_up(new: &NewFile, place: &Place<'_>) {
        if let Some(temporary) = &new.temporary {
            let _ = unlinkat(&place.directory, temporary, AtFlags::empty());
        }
    }

    pub(super) fn link_symbolically(&mut self, target: &OsStr, place: &Place<'_>) -> Result<()> {
        let temporary = self.temporary();
        symlinkat(target, &place.directory, &temporary)?;
        rename(place, &temporary)
    }

    /// One more name for a file below.
    pub(super) fn link(&mut self, first: &Place<'_>, place: &Place<'_>) -> Result<()> {
        let temporary = self.temporary();
        linkat(&first.directory, first.name, &place.directory, &temporary, AtFlags::empty())?;
        rename(place, &temporary)?;
        // Renaming one name of a file to another of its names does nothing (rename(2)).
        let _ = unlinkat(&place.directory, &temporary, AtFlags::empty());
        Ok(())
    }

    fn temporary(&mut self) -> String {
        self.made += 1;
        format!("{NEW_PREFIX}{}-{}", std::process::id(), self.made)
    }
}

fn rename(place: &Place<'_>, temporary: &str) -> Result<()> {
    let renamed = renameat(&place.directory, temporary, place.directory.as_fd(), place.name);
    if renamed.is_err() {
        let _ = unlinkat(&place.directory, temporary, AtFlags::empty());
    }
    match renamed {
        Err(Errno::ISDIR | Errno::NOTEMPTY | Errno::EXIST) => bail!("there is a directory of that name"),
        other => Ok(other?),
    }
}

fn leads_out(error: Errno, path: &Path) -> anyhow::Error {
    match error {
        Errno::XDEV => anyhow::anyhow!("`{}` leads out of the target by a link", path.display()),
        Errno::NOTDIR => anyhow::anyhow!("`{}` is no directory", path.display()),
        error => anyhow::Error::new(error).context(path.display().to_string()),
    }
}
