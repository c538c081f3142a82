//! Which mount a path is on, from `/proc/self/mountinfo` (proc_pid_mountinfo(5)).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use super::super::facts::Mount;

/// The mount that `path` is on, which has no links in it. Of two at one place the later one lies on top.
pub(super) fn of(text: &str, path: &Path) -> Option<Mount> {
    let around = all(text).filter(|mount| path.starts_with(&mount.place));
    around.max_by_key(|mount| mount.place.components().count())
}

/// Every mount, in the order in which they were made.
pub(super) fn all(text: &str) -> impl Iterator<Item = Mount> + '_ {
    text.lines().filter_map(read)
}

fn read(line: &str) -> Option<Mount> {
    let (first, last) = line.split_once(" - ")?;
    let mut first = first.split(' ').skip(4);
    let mut last = last.split(' ');
    let (place, options) = (first.next()?, first.next()?);
    let (kind, of_system) = (last.next()?, last.nth(1).unwrap_or_default());
    let options = options.split(',').chain(of_system.split(',')).map(str::to_owned).collect();
    Some(Mount { place: plain(place), kind: kind.to_owned(), options })
}

/// Undoes how spaces, tabs, line ends and backslashes are written: `\040` and the like.
fn plain(text: &str) -> PathBuf {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut place = 0;
    while let Some(byte) = bytes.get(place) {
        let digits = bytes.get(place + 1..place + 4).filter(|_| *byte == b'\\');
        let digits = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(meant) => {
                plain.push(meant);
                place += 4;
            }
            None => {
                plain.push(*byte);
                place += 1;
            }
        }
    }
    OsString::from_vec(plain).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
23 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
31 23 0:28 / /var/lib rw,nodev - xfs /dev/vdb rw,noquota
32 23 0:29 / /var/lib/a\\040b rw,noexec master:2 - btrfs /dev/vdc rw
33 23 0:30 / /var/lib rw,nosuid - tmpfs tmpfs rw,size=4k
broken line
";

    #[test]
    fn the_nearest_and_the_latest_counts() {
        let check = |path: &str, kind: &str, option: &str| {
            let mount = of(TEXT, Path::new(path)).unwrap();
            assert_eq!(mount.kind, kind, "{path}");
            assert!(mount.options.iter().any(|had| had == option), "{path}: {mount:?}");
        };
        check("/", "ext4", "discard");
        check("/var/library", "ext4", "relatime");
        check("/var/lib/lightbyte", "tmpfs", "nosuid");
        check("/var/lib/a b/c", "btrfs", "noexec");
        assert_eq!(of("", Path::new("/")), None);
    }
}
