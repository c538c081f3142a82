//! Which programs are there, and which versions they say that they are.

use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::super::Wishes;
use super::super::facts::{Program, Programs};

/// Where programs of administrators are, which the search path of a person may lack.
const ADMINISTRATOR_PATHS: [&str; 3] = ["/usr/sbin", "/sbin", "/run/current-system/sw/bin"];

/// How long a program may take. It takes milliseconds, on a loaded machine a second.
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// Most of its words that are read.
const WORDS_BYTES_MAX: u64 = 4096;

/// Where a program is.
pub(super) struct Found {
    pub(super) path: PathBuf,
    is_in_path: bool,
}

/// The programs that VMs need.
pub(super) fn find(wishes: &Wishes) -> Programs {
    let firecracker = lightbyte_vmm::firecracker::find(&wishes.firecracker);
    let jailer = match (&wishes.jailer, &firecracker) {
        (Some(jailer), _) => lightbyte_vmm::firecracker::find(jailer),
        (None, Some(firecracker)) => {
            let beside = lightbyte_vmm::firecracker::find(&firecracker.with_file_name("jailer"));
            beside.or_else(|| lightbyte_vmm::firecracker::find(Path::new("jailer")))
        }
        (None, None) => lightbyte_vmm::firecracker::find(Path::new("jailer")),
    };
    let named = |path: Option<PathBuf>| path.map(|path| Found { path, is_in_path: true });
    // The worker starts QEMU by its name alone.
    let qemu = place("qemu-system-x86_64").filter(|found| found.is_in_path);
    Programs {
        qemu: qemu.map(|found| asked(found, "--version")),
        firecracker: named(firecracker).map(|found| asked(found, "--version")),
        jailer: named(jailer).map(|found| asked(found, "--version")),
        mkfs: place("mkfs.ext4").map(|found| asked(found, "-V")),
        nft: place("nft").map(|found| asked(found, "--version")),
    }
}

/// A program by its name, in `PATH` or where administrators have theirs.
pub(super) fn place(name: &str) -> Option<Found> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&path).map(|place| (place, true));
    let others = ADMINISTRATOR_PATHS.iter().map(|place| (PathBuf::from(place), false));
    let found = in_path.chain(others).map(|(place, is_in_path)| Found { path: place.join(name), is_in_path });
    let mut found = found.filter(|found| found.path.is_file());
    found.next()
}

fn asked(found: Found, word: &str) -> Program {
    let mut command = command(&found.path);
    command.arg(word);
    let version = ask(command, "");
    let version = version.and_then(|line| match line.is_empty() {
        true => Err("it says nothing".to_owned()),
        false => Ok(line),
    });
    Program { version, path: found.path, is_in_path: found.is_in_path }
}

/// A program that speaks English.
pub(super) fn command(path: &Path) -> Command {
    let mut command = Command::new(path);
    command.env("LC_ALL", "C");
    command
}

/// The first line that a program says when it is given `input`; empty if it says nothing.
///
/// # Errors
/// In words: it does not start, has no end, or fails.
pub(super) fn ask(mut command: Command, input: &str) -> Result<String, String> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| format!("it does not start: {error}"))?;
    // One that ended before it read says why; its end is what counts.
    let _ = child.stdin.take().map(|mut stdin| stdin.write_all(input.as_bytes()));
    let ended = has_ended(&child);
    if !matches!(ended, Ok(true)) {
        let _ = child.kill();
    }
    let status = child.wait().map_err(|error| format!("its end is not told: {error}"))?;
    match ended {
        Ok(true) => {}
        Ok(false) => return Err(format!("it has no end after {} s", ANSWER_MAX.as_secs())),
        Err(error) => return Err(format!("it cannot be waited for: {error}")),
    }
    let said = [first_line(child.stdout.take()), first_line(child.stderr.take())];
    let said = said.into_iter().flatten().next();
    match status.success() {
        true => Ok(said.unwrap_or_default()),
        false => Err(said.unwrap_or_else(|| status.to_string())),
    }
}

/// Waits for the child's end, and says whether it came in time.
fn has_ended(child: &Child) -> io::Result<bool> {
    let process = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let wait = Timespec::try_from(ANSWER_MAX).map_err(io::Error::other)?;
    loop {
        match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&wait)) {
            Ok(ended) => return Ok(ended > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn first_line(words: Option<impl io::Read>) -> Option<String> {
    let mut bytes = Vec::new();
    words?.take(WORDS_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty())?;
    Some(line.chars().filter(|character| !character.is_control()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_says_is_taken_from_where_it_says_it() {
        let check = |script: &str, input: &str, expected: Result<&str, &str>| {
            let mut command = command(Path::new("/bin/sh"));
            command.args(["-c", script]);
            let said = ask(command, input);
            assert_eq!(said.as_deref().map_err(String::as_str), expected, "{script}");
        };
        check("echo; echo one; echo two", "", Ok("one"));
        check("echo one >&2", "", Ok("one"));
        check("cat", "given", Ok("given"));
        check("cat > /dev/null", "given", Ok(""));
        check("true", "", Ok(""));
        check("echo no >&2; exit 3", "", Err("no"));
        check("exit 3", "", Err("exit status: 3"));
        let missing = ask(command(Path::new("/no/such/program")), "").unwrap_err();
        assert!(missing.starts_with("it does not start: "), "{missing}");
    }
}
