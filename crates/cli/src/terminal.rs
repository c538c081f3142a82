//! Speaking with people: data on stdout, everything else on stderr, colour only where somebody sees it.

use std::io::{self, BufRead as _, IsTerminal, Write as _};

use anyhow::{Context as _, Result};

use crate::failure::Description;

/// Writes data: with a line end, and at once.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    let end = if text.ends_with('\n') || text.is_empty() { "" } else { "\n" };
    write!(stdout, "{text}{end}").and_then(|()| stdout.flush()).context("write the answer")
}

/// Says what is going on. A closed stderr loses it, and nothing else.
pub(crate) fn say(text: &str) {
    drop(writeln!(io::stderr(), "{text}"));
}

/// Says what to do next.
pub(crate) fn say_hint(text: &str) {
    say(&format!("{} {text}", paint("hint:", "36")));
}

/// Says an error: one line, its details, and the hint.
pub(crate) fn say_error(description: &Description) {
    say(&format!("{} {}", paint("error:", "1;31"), description.message));
    for detail in &description.details {
        say(&format!("  - {detail}"));
    }
    if let Some(hint) = &description.hint {
        say_hint(hint);
    }
}

/// Whether a person can be asked: both the question and the answer need a terminal.
pub(crate) fn can_ask() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks; anything but yes is no.
pub(crate) fn ask(question: &str) -> Result<bool> {
    drop(write!(io::stderr(), "{question} [y/N] ").and_then(|()| io::stderr().flush()));
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).context("read the answer")?;
    Ok(is_yes(&answer))
}

fn is_yes(answer: &str) -> bool {
    matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

/// Colours of things that are told one beside the other.
const COLOURS: [&str; 6] = ["36", "33", "32", "35", "34", "31"];

/// `text` in the colour of the thing of this number, on a standard output that is a terminal.
pub(crate) fn colour(text: &str, index: usize) -> String {
    painted(text, COLOURS[index % COLOURS.len()], &io::stdout())
}

/// Colours `text` for a person who reads what we say.
fn paint(text: &str, colour: &str) -> String {
    painted(text, colour, &io::stderr())
}

/// Colours `text` for a person at a terminal (no-color.org: `NO_COLOR`, when not empty, says no).
fn painted(text: &str, colour: &str, out: &impl IsTerminal) -> String {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    if out.is_terminal() && !refused { format!("\u{1b}[{colour}m{text}\u{1b}[0m") } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_yes_is_yes() {
        let check = |answer: &str, expect: bool| assert_eq!(is_yes(answer), expect, "{answer:?}");
        check("y\n", true);
        check(" YES \n", true);
        check("\n", false);
        check("", false);
        check("yep", false);
        check("n\n", false);
    }
}
