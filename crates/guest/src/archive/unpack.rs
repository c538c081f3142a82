//! Reads a tar stream and makes what is in it.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, Uid, chownat, fchmod, fchown, futimens, mkdirat};
use rustix::io::Errno;
use tar::{Archive, EntryType, Header};

use super::PATH_BYTES_MAX;
use super::place::{Ground, Place};

/// Longest description of an entry that stands before it (long names; records of pax).
const DESCRIPTION_BYTES_MAX: u64 = 64 * 1024;

/// Directories whose modes keep their owner out, and are set when everything is in them.
const CLOSED_DIRECTORIES_MAX: usize = 10_000;

/// Whose the files become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// The owners' numbers and all mode bits, as the stream says: for root, of what root on the other side has sent.
    Everything,
    /// All mode bits, and no owners: for whoever unpacks a system without being root.
    Modes,
    /// Permissions alone; set-user-id bits and owners are not taken from a stranger.
    Permissions,
}

/// What was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Files, directories and links.
    pub entries: u64,
    /// Bytes of files.
    pub bytes: u64,
}

/// Makes what `input` holds at `target`, in the way of `docker cp`:
///
/// - `target` is a directory: what comes goes into it, under its own name;
/// - nothing is there, or a file: what comes gets this name (a directory does not replace a file);
/// - `target` ends with `/.`: it must be a directory, and may get several things.
///
/// A file appears whole or not at all, and replaces one that is there. A directory that is there stays as it is, and gets
/// more in it. Devices and pipes are passed over.
///
/// # Errors
/// If the stream is none, or an entry cannot be made; those before it are there. `done` says how many.
pub fn unpack(input: impl Read, target: &Path, keep: Keep, done: &mut Unpacked) -> Result<()> {
    let mut archive = Archive::new(input);
    let mut described = Described::default();
    let mut goal = None;
    let mut closed = Vec::new();
    // Raw: names that are longer than a header come as entries, whose size is looked at here before they are read.
    for entry in archive.entries().context("read the stream")?.raw(true) {
        let mut entry = entry.context("read the stream")?;
        if described.takes(&mut entry)? {
            continue;
        }
        let described = std::mem::take(&mut described);
        let header = entry.header().clone();
        let name = described.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let name = clean(&name)?;
        let goal: &mut Goal = match &mut goal {
            Some(goal) => goal,
            None => goal.insert(Goal::choose(target, &name, header.entry_type().is_dir())?),
        };
        let path = goal.path(&name)?;
        let link = described.link.or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned));
        let item = Item { header: &header, path: &path, link: link.unwrap_or_default(), keep };
        let bytes =
            item.make(goal, &mut entry, &mut closed).with_context(|| format!("make `{}`", name.display()))?;
        done.entries += 1;
        done.bytes += bytes;
    }
    let Some(goal) = goal else { bail!("the stream is empty") };
    // The innermost first: one that is closed to us hides those in it.
    for (path, mode) in closed.iter().rev() {
        let directory = goal.ground.open_directory(path)?;
        rustix::fs::chmod(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&directory)), *mode)?;
    }
    Ok(())
}

/// What entries say about the one after them.
#[derive(Default)]
struct Described {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl Described {
    /// Whether an entry only describes others; then it was read.
    fn takes(&mut self, entry: &mut tar::Entry<'_, impl Read>) -> Result<bool> {
        let kind = entry.header().entry_type();
        if !matches!(
            kind,
            EntryType::GNULongName | EntryType::GNULongLink | EntryType::XHeader | EntryType::XGlobalHeader
        ) {
            return Ok(false);
        }
        ensure!(entry.size() <= DESCRIPTION_BYTES_MAX, "a name in the stream is too long");
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).context("read a name")?;
        match kind {
            EntryType::GNULongName => self.path = Some(without_end(&bytes)),
            EntryType::GNULongLink => self.link = Some(without_end(&bytes)),
            EntryType::XHeader => self.take_records(&bytes)?,
            // It describes the archive.
            _ => {}
        }
        Ok(true)
    }

    fn take_records(&mut self, bytes: &[u8]) -> Result<()> {
        for record in tar::PaxExtensions::new(bytes) {
            let record = record.context("read a record")?;
            match record.key_bytes() {
                b"path" => self.path = Some(record.value_bytes().to_vec()),
                b"linkpath" => self.link = Some(record.value_bytes().to_vec()),
                b"size" => {
                    bail!("the stream has a file whose size is written as only pax does; use GNU's form")
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn without_end(bytes: &[u8]) -> Vec<u8> {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
}

/// A name without a beginning slash and dots; nothing in it leads upwards.
fn clean(name: &[u8]) -> Result<PathBuf> {
    let path = Path::new(OsStr::from_bytes(name));
    ensure!(name.len() < PATH_BYTES_MAX, "a name in the stream is too long");
    let mut cleaned = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => cleaned.push(part),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                bail!("`{}` leads out of the target", path.display())
            }
        }
    }
    Ok(cleaned)
}

/// Where everything goes.
struct Goal {
    ground: Ground,
    /// What stands before all names, and what they get instead. Nothing: names stay.
    renamed: Option<(PathBuf, PathBuf)>,
}

impl Goal {
    /// `first` is the name of the first entry.
    fn choose(target: &Path, first: &Path, is_directory: bool) -> Result<Self> {
        let text = target.as_os_str().as_bytes();
        let into = |directory: &Path| Ok(Self { ground: Ground::open(directory)?, renamed: None });
        match fs::metadata(target) {
            Ok(found) if found.is_dir() => into(target),
            Ok(_) if text.ends_with(b"/.") || text.ends_with(b"/") => {
                bail!("`{}` is no directory", target.display())
            }
            Ok(_) if is_directory => {
                bail!("`{}` is a file, and a directory does not replace it", target.display())
            }
            // The file that a link leads to.
            Ok(_) => Self::named(&fs::canonicalize(target)?, first),
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| target.display().to_string())
            }
            Err(_) if text.ends_with(b"/.") => bail!("there is no directory `{}`", target.display()),
            Err(_) if is_directory => {
                fs::create_dir(target).with_context(|| format!("make `{}`", target.display()))?;
                let ground = Ground::open(target)?;
                Ok(Self { ground, renamed: Some((first.to_owned(), PathBuf::new())) })
            }
            Err(_) if text.ends_with(b"/") => bail!("there is no directory `{}`", target.display()),
            Err(_) => Self::named(target, first),
        }
    }

    fn named(target: &Path, first: &Path) -> Result<Self> {
        let name = target.file_name().context("the target has no name")?;
        let parent =
            target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Ok(Self { ground: Ground::open(parent)?, renamed: Some((first.to_owned(), name.into())) })
    }

    fn path(&self, name: &Path) -> Result<PathBuf> {
        let Some((before, after)) = &self.renamed else { return Ok(name.to_owned()) };
        let Ok(rest) = name.strip_prefix(before) else {
            bail!("the stream has more than one thing, and the target is no directory (end it with `/.`)")
        };
        // Joining nothing would add a slash.
        Ok(if rest.as_os_str().is_empty() { after.clone() } else { after.join(rest) })
    }
}

/// One entry, and its path below the ground.
struct Item<'a> {
    header: &'a Header,
    path: &'a Path,
    link: Vec<u8>,
    keep: Keep,
}

impl Item<'_> {
    /// Makes it; gives the bytes of its content.
    fn make(
        &self,
        goal: &mut Goal,
        content: &mut impl Read,
        closed: &mut Vec<(PathBuf, Mode)>,
    ) -> Result<u64> {
        let kind = self.header.entry_type();
        if kind.is_dir() {
            return self.directory(goal, closed).map(|()| 0);
        }
        let place = goal.ground.place(self.path)?;
        match kind {
            EntryType::Regular | EntryType::Continuous => {
                return self.file(&mut goal.ground, &place, content);
            }
            EntryType::Symlink => {
                goal.ground.link_symbolically(OsStr::from_bytes(&self.link), &place)?;
                if self.keep == Keep::Everything {
                    let (user, group) = self.owner()?;
                    chownat(
                        &place.directory,
                        place.name,
                        Some(user),
                        Some(group),
                        AtFlags::SYMLINK_NOFOLLOW,
                    )?;
                }
            }
            EntryType::Link => {
                let first = goal.path(&clean(&self.link)?)?;
                let first = goal.ground.place(&first)?;
                goal.ground.link(&first, &place)?;
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {}
            EntryType::GNUSparse => bail!("a file with holes; make the stream without `--sparse`"),
            other => {
                bail!("an entry of kind `{}`, which is unknown", char::from(other.as_byte()).escape_default())
            }
        }
        Ok(0)
    }

    fn directory(&self, goal: &Goal, closed: &mut Vec<(PathBuf, Mode)>) -> Result<()> {
        if self.path.as_os_str().is_empty() {
            return Ok(());
        }
        let place = goal.ground.place(self.path)?;
        let mode = self.mode()?;
        match mkdirat(&place.directory, place.name, mode | Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) => match goal.ground.open_directory(self.path) {
                Ok(_) => return Ok(()),
                Err(_) => bail!("there is something of that name that is no directory"),
            },
            Err(error) => return Err(error.into()),
        }
        let directory = goal.ground.open_directory(self.path)?;
        // An open path has no mode to change, its name below /proc has.
        let open = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&directory));
        if self.keep == Keep::Everything {
            let (user, group) = self.owner()?;
            rustix::fs::chown(&open, Some(user), Some(group))?;
        }
        if mode.contains(Mode::RWXU) {
            return Ok(rustix::fs::chmod(&open, mode)?);
        }
        ensure!(
            closed.len() < CLOSED_DIRECTORIES_MAX,
            "more than {CLOSED_DIRECTORIES_MAX} closed directories"
        );
        closed.push((self.path.to_owned(), mode));
        Ok(())
    }

    fn file(&self, ground: &mut Ground, place: &Place<'_>, content: &mut impl Read) -> Result<u64> {
        let mut new = ground.new_file(place)?;
        let filled = self.fill(&mut new.file, content);
        match filled {
            Ok(bytes) => {
                ground.name_file(new, place)?;
                Ok(bytes)
            }
            Err(error) => {
                Ground::give_up(&new, place);
                Err(error)
            }
        }
    }

    fn fill(&self, file: &mut fs::File, content: &mut impl Read) -> Result<u64> {
        let promised = self.header.entry_size()?;
        let bytes = io::copy(content, file)?;
        ensure!(bytes == promised, "the stream ended in it");
        if self.keep == Keep::Everything {
            let (user, group) = self.owner()?;
            fchown(&*file, Some(user), Some(group))?;
        }
        // After the owner, whose change takes some of them away.
        fchmod(&*file, self.mode()?)?;
        let seconds = i64::try_from(self.header.mtime()?).unwrap_or(0);
        let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
        futimens(&*file, &Timestamps { last_access: time, last_modification: time })?;
        Ok(bytes)
    }

    fn mode(&self) -> Result<Mode> {
        let taken = match self.keep {
            Keep::Everything | Keep::Modes => 0o7777,
            Keep::Permissions => 0o777,
        };
        Ok(Mode::from_raw_mode(self.header.mode()? & taken))
    }

    fn owner(&self) -> Result<(Uid, Gid)> {
        let number = |number: u64| u32::try_from(number).ok().filter(|number| *number != u32::MAX);
        let user = number(self.header.uid()?).context("an owner with no possible number")?;
        let group = number(self.header.gid()?).context("a group with no possible number")?;
        Ok((Uid::from_raw(user), Gid::from_raw(group)))
    }
}
