//! Where this machine gets Debian from: its own lists and options of apt. What makes a Debian in a directory is told the
//! same, so that no host is named here, and behind a mirror it works as well as this machine does.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};

use crate::process;

/// Debian 12.
pub(crate) const SUITE: &str = "bookworm";

/// Options of apt that say how registries are reached.
const APT_OPTIONS: &[&str] =
    &["Acquire::http::", "Acquire::https::", "Acquire::Check-Valid-Until", "Acquire::Check-Date"];

/// The files in which this machine names Debian's own packages.
pub(crate) fn sources() -> Result<Vec<PathBuf>> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    let entries = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten();
    files.extend(entries.map(|entry| entry.path()));
    files.retain(|file| fs::read_to_string(file).is_ok_and(|text| names_debian(&text)));
    files.sort();
    if files.is_empty() {
        bail!("no file of /etc/apt names Debian's {SUITE}, so it is not known where to get it");
    }
    Ok(files)
}

/// Whether a list of sources, in either form of apt, is of Debian itself: the suite and the component are its own, and
/// so is the path on the mirror. Other people's lists name their products there.
fn names_debian(text: &str) -> bool {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    let words: Vec<&str> = lines.flat_map(str::split_whitespace).collect();
    let has = |wanted: &str| words.contains(&wanted);
    has(SUITE) && has("main") && words.iter().any(|word| word.trim_end_matches('/').ends_with("/debian"))
}

/// The options of apt by which this machine reaches its packages.
pub(crate) fn options() -> Result<Vec<String>> {
    let dump = process::output(Command::new("apt-config").args(["dump", "Acquire"]))?;
    Ok(options_in(&dump))
}

fn options_in(dump: &str) -> Vec<String> {
    let is_wanted = |line: &&str| APT_OPTIONS.iter().any(|option| line.starts_with(option));
    dump.lines().filter(is_wanted).map(|line| line.trim_end_matches(';').to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_debian_are_told_from_those_of_others() {
        let table = [
            ("deb http://mirror.invalid/debian bookworm main\n", true),
            (
                "Types: deb\nURIs: http://mirror.invalid/debian/\nSuites: bookworm bookworm-updates\nComponents: main\n",
                true,
            ),
            ("deb https://cloud.invalid/apt cloud-sdk-bookworm main\n", false),
            ("deb https://product.invalid bookworm main\n", false),
            ("deb https://product.invalid/linux/debian bookworm stable\n", false),
            ("# deb http://mirror.invalid/debian bookworm main\n", false),
            ("deb http://mirror.invalid/debian trixie main\n", false),
        ];
        for (text, expected) in table {
            assert_eq!(names_debian(text), expected, "{text}");
        }
    }

    #[test]
    fn only_options_that_reach_packages_are_taken() {
        let dump = "Acquire::http::Proxy \"http://p.invalid\";\nAcquire::Languages:: \"none\";\nAcquire::Check-Date \"false\";";
        assert_eq!(
            options_in(dump),
            ["Acquire::http::Proxy \"http://p.invalid\"", "Acquire::Check-Date \"false\""]
        );
    }
}
