//! Which file systems of disks are mounted, as the kernel says (proc(5), `/proc/self/mountinfo`).

use std::path::Path;

use crate::boot::read_limited;

/// Longest table that is read; a line has about a hundred bytes.
const TABLE_BYTES_MAX: u64 = 1 << 20;

/// Longest text of a disk's numbers.
const NUMBERS_BYTES_MAX: u64 = 64;

/// A file system on a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileSystem {
    /// Numbers of its disk, `254:16`.
    pub(crate) device: String,
    /// Where it is seen: the first place, if there are several.
    pub(crate) path: String,
    /// `ext4` or `xfs`.
    pub(crate) kind: String,
    /// Whether nothing may be written to it, wherever it is mounted.
    pub(crate) is_read_only: bool,
}

/// Those that are mounted, each once, in the order in which they were mounted: the root comes first.
pub(crate) fn file_systems() -> Vec<FileSystem> {
    parse(&read_limited(Path::new("/proc/self/mountinfo"), TABLE_BYTES_MAX).unwrap_or_default())
}

fn parse(table: &str) -> Vec<FileSystem> {
    let mut found: Vec<FileSystem> = Vec::new();
    for line in table.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let left: Vec<&str> = left.split(' ').collect();
        let right: Vec<&str> = right.split(' ').collect();
        let ([_, _, device, _, path, ..], [kind, source, options, ..]) = (left.as_slice(), right.as_slice())
        else {
            continue;
        };
        let is_of_disk = matches!(*kind, "ext4" | "xfs") && source.starts_with("/dev/");
        if !is_of_disk || found.iter().any(|found| found.device == **device) {
            continue;
        }
        found.push(FileSystem {
            device: (*device).to_owned(),
            path: unescaped(path),
            kind: (*kind).to_owned(),
            is_read_only: options.split(',').any(|option| option == "ro"),
        });
    }
    found
}

/// The numbers of a disk by its place, `254:16` for 1; nothing if there is none.
pub(crate) fn device_of(disk: u16) -> Option<String> {
    let letter = char::from(b'a'.checked_add(u8::try_from(disk).ok()?).filter(u8::is_ascii_lowercase)?);
    let numbers =
        read_limited(Path::new(&format!("/sys/class/block/vd{letter}/dev")), NUMBERS_BYTES_MAX).ok()?;
    Some(numbers.trim().to_owned())
}

/// Blanks, tabs, line ends and backslashes are written as three octal digits.
fn unescaped(text: &str) -> String {
    let all = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    all.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_found_once_and_other_file_systems_are_not() {
        let table = "\
21 1 254:0 / / rw,noatime - ext4 /dev/vda rw
22 21 0:5 / /dev rw,nosuid - devtmpfs dev rw
30 21 254:16 / /srv/a\\040b rw,nosuid,nodev shared:4 - ext4 /dev/vdb rw
31 21 254:16 /x /elsewhere ro - ext4 /dev/vdb rw
32 21 254:32 / /ro ro,nosuid - xfs /dev/vdc ro
34 21 254:48 / /a ro - ext4 /dev/vdd rw
33 21 0:40 / /over rw - overlay overlay rw
nonsense
";
        let found: Vec<String> = parse(table)
            .iter()
            .map(|found| format!("{} {} {} {}", found.device, found.path, found.kind, found.is_read_only))
            .collect();
        assert_eq!(
            found,
            [
                "254:0 / ext4 false",
                "254:16 /srv/a b ext4 false",
                "254:32 /ro xfs true",
                "254:48 /a ext4 false"
            ]
        );
    }
}
