//! Which Firecracker this is, and whether this driver knows it.

use std::fmt;
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::driver::DriverError;
use crate::process::Identity;
use crate::room::{refuse, system};

/// How long a program may take to say its version: it takes milliseconds, on a loaded machine a second.
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// More than what it says.
const ANSWER_BYTES_MAX: u64 = 4096;

/// A version of Firecracker or of its jailer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(u64, u64, u64);

/// The first version whose API this driver was written for.
const FIRST: Version = Version(1, 16, 0);
/// The first that may differ: Firecracker changes its API with the major version only.
const TOO_NEW: Version = Version(2, 0, 0);

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl Version {
    /// Reads `Firecracker v1.16.1` and the like: the first word that is a version, with whatever stands behind it.
    fn parse(text: &str) -> Option<Version> {
        text.split_whitespace().find_map(|word| {
            let mut numbers = word.strip_prefix('v')?.splitn(3, '.');
            let mut next = || numbers.next();
            let (major, minor, rest) = (next()?.parse().ok()?, next()?.parse().ok()?, next()?);
            let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            Some(Version(major, minor, rest[..digits].parse().ok()?))
        })
    }

    fn is_known(self) -> bool {
        (FIRST..TOO_NEW).contains(&self)
    }
}

/// Asks both programs, and says which version they are.
///
/// # Errors
/// [`DriverError::Refused`] if one does not answer, is not supported, or the two do not belong together.
pub(super) fn check(firecracker: &Path, jailer: Option<&Path>) -> Result<Version, DriverError> {
    let version = ask(firecracker)?;
    if !version.is_known() {
        return refuse(format!(
            "{} is Firecracker {version}; {FIRST} up to below {TOO_NEW} is supported",
            firecracker.display()
        ));
    }
    if let Some(jailer) = jailer {
        let found = ask(jailer)?;
        if found != version {
            return refuse(format!(
                "{} is of Firecracker {found}, and {} is {version}; take both from one release",
                jailer.display(),
                firecracker.display()
            ));
        }
    }
    Ok(version)
}

fn ask(program: &Path) -> Result<Version, DriverError> {
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let failed = || format!("ask {} for its version", program.display());
    let mut child = command.spawn().map_err(system(failed()))?;
    let held = i32::try_from(child.id()).ok().and_then(Identity::of).and_then(|process| process.open());
    // One that has ended already needs no waiting for.
    if let Some(held) = held
        && !held.wait(ANSWER_MAX).map_err(system(failed()))?
    {
        child.kill().and_then(|()| child.wait()).map_err(system(failed()))?;
        return refuse(format!("{} does not say its version", program.display()));
    }
    child.wait().map_err(system(failed()))?;
    let mut text = Vec::new();
    if let Some(output) = child.stdout.take() {
        output.take(ANSWER_BYTES_MAX).read_to_end(&mut text).map_err(system(failed()))?;
    }
    match Version::parse(&String::from_utf8_lossy(&text)) {
        Some(version) => Ok(version),
        None => refuse(format!("{} does not say its version", program.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_or_are_none() {
        let table = [
            (
                "Firecracker v1.16.1\n\nSupported snapshot data format versions: v7.0.0",
                Some(Version(1, 16, 1)),
            ),
            ("Jailer v1.17.0-dev\n", Some(Version(1, 17, 0))),
            ("v1.16.1-34-gabcdef", Some(Version(1, 16, 1))),
            ("Firecracker v1.16", None),
            ("Firecracker 1.16.1", None),
            ("v1.x.3", None),
            ("v99999999999999999999.1.1", None),
            ("", None),
        ];
        for (text, expected) in table {
            assert_eq!(Version::parse(text), expected, "{text}");
        }
    }

    #[test]
    fn a_range_is_supported() {
        let table = [("v1.15.9", false), ("v1.16.0", true), ("v1.99.3", true), ("v2.0.0", false)];
        for (text, expected) in table {
            assert_eq!(Version::parse(text).expect("a version").is_known(), expected, "{text}");
        }
    }

    #[test]
    fn a_program_that_says_something_else_is_refused() {
        let refused = |program: &str| check(Path::new(program), None).expect_err("it is none").chain();
        assert_eq!(refused("/bin/true"), "/bin/true does not say its version");
        assert!(
            refused("/nowhere/firecracker").starts_with("ask /nowhere/firecracker for its version: No such")
        );
    }
}
