//! Debian packages that are downloaded and unpacked, never installed.
//!
//! ```text
//! absent --fetch--> .new-<pid>/<directory> (growing) --stamp, last--> .new-<pid>/<directory> (whole) --rename--> <directory>
//! ```
//!
//! A directory with a stamp is whole, because the stamp is written after everything else and the rename comes after
//! that. Anything else is leftovers of a killed run and is thrown away by the next, under a lock, so that two runs at
//! once do not throw away each other's work. A newer version is fetched only after the directory was removed: what
//! tests ran against yesterday they run against today.

use std::fs::{self, File, TryLockError};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::Scope;
use super::apt::Apt;
use crate::process;

/// Written last into an unpacked directory; holds `package=version` lines for people.
const STAMP: &str = ".complete";

/// Where directories grow before they are renamed; the process id follows. Not one place for all, because the apt or
/// dpkg-deb of a run that was killed may still be writing there.
const GROWING: &str = ".new-";

/// One directory of the cache.
pub(super) struct Download {
    pub(super) directory: &'static str,
    pub(super) packages: &'static [&'static str],
    pub(super) about: &'static str,
    /// Set if the packages are empty ones that depend on the real one, whose name begins so.
    real_prefix: Option<&'static str>,
    /// Paths of which one each has to exist; a `*` at the end stands for any rest of the file name.
    payload: &'static [&'static [&'static str]],
    scope: Scope,
}

const DOWNLOADS: &[Download] = &[
    Download {
        directory: "etcd",
        packages: &["etcd-server", "etcd-client"],
        about: "usr/bin/etcd and usr/bin/etcdctl, version 3.4 or newer",
        real_prefix: None,
        payload: &[&["usr/bin/etcd"], &["usr/bin/etcdctl"]],
        scope: Scope::WithoutVms,
    },
    Download {
        directory: "busybox",
        packages: &["busybox-static"],
        about: "bin/busybox, statically linked",
        real_prefix: None,
        payload: &[&["bin/busybox", "usr/bin/busybox"]],
        scope: Scope::Everything,
    },
    Download {
        directory: "kernel",
        packages: &["linux-image-cloud-amd64"],
        about: "boot/vmlinuz-* and its lib/modules, a kernel with virtio drivers",
        real_prefix: Some("linux-image-"),
        payload: &[&["boot/vmlinuz-*"], &["lib/modules/*", "usr/lib/modules/*"]],
        scope: Scope::Everything,
    },
];

/// Directories that are not there whole. Looks at files only. Where there is no apt, what a person has put there
/// counts without a stamp.
pub(super) fn missing(cache: &Path, scope: Scope, is_debian: bool) -> Vec<&'static Download> {
    let is_there = |download: &Download| {
        let directory = cache.join(download.directory);
        if is_debian { download.is_whole(&directory) } else { download.has_payload(&directory) }
    };
    DOWNLOADS.iter().filter(|download| scope.covers(download.scope) && !is_there(download)).collect()
}

/// Fetches whatever is missing. Waits while another run does the same.
pub(super) fn fetch(apt: &mut Apt, cache: &Path, scope: Scope) -> Result<()> {
    fs::create_dir_all(cache).with_context(|| format!("create {}", cache.display()))?;
    let _lock = lock(&cache.join(".lock"))?;
    remove_leftovers(cache);
    let growing = cache.join(format!("{GROWING}{}", std::process::id()));
    remove(&growing)?;
    // Looked at again: the run that held the lock may have fetched it.
    for download in missing(cache, scope, true) {
        download.fetch(apt, cache, &growing)?;
    }
    remove(&growing)
}

/// What cannot be removed now, because somebody still writes there, is removed by a later run.
fn remove_leftovers(cache: &Path) {
    for entry in fs::read_dir(cache).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(GROWING) {
            let _still_written_to = remove(&entry.path()).is_err();
        }
    }
}

impl Download {
    fn is_whole(&self, directory: &Path) -> bool {
        directory.join(STAMP).is_file() && self.has_payload(directory)
    }

    fn has_payload(&self, directory: &Path) -> bool {
        self.payload.iter().all(|places| places.iter().any(|place| exists(directory, place)))
    }

    fn fetch(&self, apt: &mut Apt, cache: &Path, growing: &Path) -> Result<()> {
        let packages = growing.join("packages");
        let growing = growing.join(self.directory);
        let mut stamp = String::new();
        for name in self.packages {
            let (name, version, file) = apt
                .with_fresh_lists_if_needed(|apt| self.download(apt, name, &packages))
                .with_context(|| format!("download {name}"))?;
            let mut unpack = Command::new("dpkg-deb");
            unpack.arg("-x").arg(&file).arg(&growing);
            process::run(&mut unpack)?;
            stamp.push_str(&format!("{name}={version}\n"));
        }
        if !self.has_payload(&growing) {
            bail!("{} does not hold what is expected: {}", self.packages.join(" and "), self.about);
        }
        write_last(&growing, &stamp)?;
        let place = cache.join(self.directory);
        remove(&place)?;
        fs::rename(&growing, &place).with_context(|| format!("rename to {}", place.display()))?;
        eprintln!("unpacked {} into {}", stamp.trim().replace('\n', " and "), place.display());
        Ok(())
    }

    fn download(&self, apt: &Apt, name: &str, into: &Path) -> Result<(String, String, std::path::PathBuf)> {
        let name = match self.real_prefix {
            Some(prefix) => apt
                .dependency(name, prefix)?
                .with_context(|| format!("{name} depends on nothing that begins with {prefix}"))?,
            None => name.to_owned(),
        };
        let version = apt.candidate(&name)?.with_context(|| format!("apt knows no package {name}"))?;
        eprintln!("downloading {name} {version}");
        let file = apt.download(&name, &version, into)?;
        Ok((name, version, file))
    }
}

fn exists(directory: &Path, place: &str) -> bool {
    let path = directory.join(place);
    let Some(prefix) = place.strip_suffix('*') else { return path.is_file() };
    let prefix = prefix.rsplit('/').next().unwrap_or_default();
    let entries = path.parent().and_then(|parent| fs::read_dir(parent).ok());
    entries.is_some_and(|mut entries| {
        entries.any(|entry| entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with(prefix)))
    })
}

fn write_last(directory: &Path, text: &str) -> Result<()> {
    let temporary = directory.join(".stamp");
    let stamp = directory.join(STAMP);
    fs::write(&temporary, text)
        .and_then(|()| fs::rename(&temporary, &stamp))
        .with_context(|| format!("write {}", stamp.display()))
}

fn remove(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}

/// The lock ends with the process, however that ends.
fn lock(path: &Path) -> Result<File> {
    let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::WouldBlock) => eprintln!("waiting for another set-up to finish"),
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("lock {}", path.display()));
        }
    }
    file.lock().with_context(|| format!("lock {}", path.display()))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_counts_only_with_stamp_and_payload() {
        let root = std::env::temp_dir().join(format!("lightbyte-xtask-{}", std::process::id()));
        remove(&root).expect("clean");
        let download = &DOWNLOADS[2];
        let steps: [(&str, bool); 4] = [
            ("boot/vmlinuz-6.1.0-56-cloud-amd64", false),
            ("lib/modules/6.1.0-56-cloud-amd64/modules.dep", false),
            (".stamp", false),
            (STAMP, true),
        ];
        assert!(!download.is_whole(&root));
        for (file, whole) in steps {
            let path = root.join(file);
            fs::create_dir_all(path.parent().expect("has a parent")).expect("create");
            fs::write(&path, "x").expect("write");
            assert_eq!(download.is_whole(&root), whole, "after {file}");
        }
        fs::remove_file(root.join(steps[0].0)).expect("remove");
        assert!(!download.is_whole(&root), "without its kernel");
        remove(&root).expect("clean");
    }
}
