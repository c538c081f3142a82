//! Running other programs: quietly, or with their output passed on and read along.

use std::ffi::OsStr;
use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::thread;

use anyhow::{Context as _, Result, bail};

/// Standard output of a program that succeeded. Its complaints are in the error when it failed.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start `{}`", command.get_program().display()))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` failed ({}): {}", line(command), output.status, complaint.trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("read the output of `{}`", line(command)))
}

/// Whether a program starts and exits with 0. It says nothing.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Runs a program with our own terminal and fails unless it exits with 0.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("start `{}`", command.get_program().display()))?;
    if !status.success() {
        bail!("`{}` failed ({status})", line(command));
    }
    Ok(())
}

/// Runs a program, passes its output on as it comes, and shows each line (without colours) to `read`.
pub(crate) fn stream(command: &mut Command, read: impl FnMut(&str) + Send) -> Result<ExitStatus> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start `{}`", command.get_program().display()))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let read = Mutex::new(read);
    thread::scope(|scope| {
        if let Some(stdout) = stdout {
            scope.spawn(|| pass_on(stdout, io::stdout(), &read));
        }
        if let Some(stderr) = stderr {
            scope.spawn(|| pass_on(stderr, io::stderr(), &read));
        }
    });
    child.wait().with_context(|| format!("wait for `{}`", line(command)))
}

/// The command as a person would type it; only for messages.
pub(crate) fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

/// Copies until the other side closes. A closed terminal on our side does not stop it: the child must not die of a
/// full pipe, and its result is still wanted.
fn pass_on(from: impl Read, mut to: impl Write, read: &Mutex<impl FnMut(&str)>) {
    let mut from = BufReader::new(from);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        match from.read_until(b'\n', &mut bytes) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let _terminal_is_gone = to.write_all(&bytes).and_then(|()| to.flush()).is_err();
        let text = without_colours(&String::from_utf8_lossy(&bytes));
        if let Ok(mut read) = read.lock() {
            read(text.trim_end());
        }
    }
}

/// Removes escape sequences of the form `ESC [ … letter`.
pub(crate) fn without_colours(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        if character == '\u{1b}' {
            for skipped in characters.by_ref() {
                if skipped.is_ascii_alphabetic() {
                    break;
                }
            }
        } else {
            plain.push(character);
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_shows_each_line_of_both_streams_and_the_status() {
        let mut lines = Vec::new();
        let mut command = Command::new("sh");
        command.args(["-c", "printf 'a\\n\\033[31mb\\033[0m'; echo c >&2; exit 3"]);
        let status = stream(&mut command, |line| lines.push(line.to_owned())).expect("sh runs");
        lines.sort();
        assert_eq!(lines, ["a", "b", "c"]);
        assert_eq!(status.code(), Some(3));
    }

    #[test]
    fn output_of_a_failing_program_names_the_complaint() {
        let error = output(Command::new("sh").args(["-c", "echo broken >&2; exit 1"])).expect_err("fails");
        assert!(error.to_string().contains("broken"), "{error}");
    }
}
