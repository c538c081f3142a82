//! `cargo xtask VERB`: what people and CI run in this workspace.
//!
//! It exists so that a fresh machine with nothing but cargo and cc gets from a clone to a green test run with one
//! command, and so that CI has no steps of its own. It depends on no other crate of the workspace, because it has to
//! build before the tools that those need are there.
//!
//! This file only finds the verb; each verb is a module.

mod bench;
mod counts;
mod dev;
mod fresh;
mod images;
mod nested;
mod planted;
mod process;
mod profile;
mod setup;
mod sim;
mod stages;
mod test;
mod tidy;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;

use crate::workspace::Workspace;

/// Exit code for words that are not understood (`EX_USAGE` of sysexits.h).
const EXIT_USAGE: u8 = 64;

/// A word on the command line.
pub(crate) struct Verb {
    pub(crate) name: &'static str,
    words: &'static str,
    about: &'static str,
    run: fn(&Workspace, &[String]) -> Result<ExitCode>,
}

/// Every verb. Tidy compares the documentation with this table.
pub(crate) const VERBS: &[Verb] = &[
    Verb {
        name: "dev",
        words: "[--yes] …",
        about: "build, and start a cluster on this machine; the other words go to `lightbyte dev`",
        run: dev::run,
    },
    Verb {
        name: "test",
        words: "[--quick] [--yes]",
        about: "everything that CI runs; --quick leaves out planted bugs and most seeds",
        run: test::run,
    },
    Verb {
        name: "tidy",
        words: "",
        about: "rules of this repository that no compiler knows",
        run: tidy::run,
    },
    Verb {
        name: "sim",
        words: "--seeds N [--from S] | --seed N",
        about: "simulate whole clusters on many seeds, or replay one with a trace",
        run: sim::run,
    },
    Verb {
        name: "planted",
        words: "[NAME]…",
        about: "plant known bugs in a copy and see that each turns red; NAME is how a patch's name begins",
        run: planted::run,
    },
    Verb {
        name: "bench",
        words: "[placement|committed|packing|foresee|deaths|requests|names|dispatch|fleet|host|boot]… [--runs N] [--nodes N] [--json FILE] [--yes]",
        about: "what lightbyte adds, beside a raw baseline in the same run",
        run: bench::run,
    },
    Verb {
        name: "fresh",
        words: "[--test] [--keep] [--yes]",
        about: "README's way on a bare Debian 12, from a clone to the first page, with its minutes; needs root",
        run: fresh::run,
    },
    Verb {
        name: "images",
        words: "[demo] [proxy] [debian] [--yes]",
        about: "make images with the guest agent of this checkout: the demo and the proxy of load balancers, or a whole Debian",
        run: images::run,
    },
    Verb {
        name: "profile",
        words: "[--yes]",
        about: "teach the compiler where the proxy spends its time, which builds for `images proxy` then use",
        run: profile::run,
    },
    Verb {
        name: "nested",
        words: "--firecracker PATH [--jailer PATH] [--only REGEX] [--yes]",
        about: "what needs Firecracker and KVM, in an emulated host",
        run: nested::run,
    },
    Verb {
        name: "setup",
        words: "[--yes]",
        about: "install and download what building and testing need (other verbs do it too)",
        run: setup::run,
    },
];

/// Words that are not understood. Ends the program with exit code 64 and the usage text.
#[derive(Debug)]
pub(crate) struct WrongWords(String);

impl WrongWords {
    /// An error that says which word was not understood.
    pub(crate) fn error(message: impl Into<String>) -> anyhow::Error {
        anyhow::Error::new(Self(message.into()))
    }
}

impl std::fmt::Display for WrongWords {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for WrongWords {}

fn main() -> ExitCode {
    match dispatch() {
        Ok(code) => code,
        Err(error) => match error.downcast_ref::<WrongWords>() {
            Some(wrong) => {
                eprintln!("error: {wrong}\n\n{}", usage());
                ExitCode::from(EXIT_USAGE)
            }
            None => {
                eprintln!("error: {error:#}");
                ExitCode::FAILURE
            }
        },
    }
}

fn dispatch() -> Result<ExitCode> {
    let mut words = Vec::new();
    for word in std::env::args_os().skip(1) {
        match word.into_string() {
            Ok(word) => words.push(word),
            Err(word) => return Err(WrongWords::error(format!("{} is not UTF-8", word.display()))),
        }
    }
    let Some((name, rest)) = words.split_first() else {
        return Err(WrongWords::error("a verb is missing"));
    };
    if matches!(name.as_str(), "help" | "--help" | "-h") {
        println!("{}", usage());
        return Ok(ExitCode::SUCCESS);
    }
    let Some(verb) = VERBS.iter().find(|verb| verb.name == name) else {
        return Err(WrongWords::error(format!("unknown verb `{name}`")));
    };
    // `lightbyte dev` has a help of its own, and more to say.
    if rest.iter().any(|word| word == "--help") && verb.name != "dev" {
        println!("usage: cargo xtask {} {}\n\n{}", verb.name, verb.words, verb.about);
        return Ok(ExitCode::SUCCESS);
    }
    (verb.run)(&Workspace::find()?, rest)
}

fn usage() -> String {
    let mut text = String::from("usage: cargo xtask VERB\n");
    for verb in VERBS {
        text.push_str(&format!("\n  {} {}\n          {}", verb.name, verb.words, verb.about));
    }
    text
}

/// Splits off the flags in `known`; every other word is an error.
pub(crate) fn flags<'a>(words: &'a [String], known: &[&str]) -> Result<Vec<&'a str>> {
    words
        .iter()
        .map(|word| {
            if known.contains(&word.as_str()) {
                Ok(word.as_str())
            } else {
                Err(WrongWords::error(format!("unknown word `{word}`")))
            }
        })
        .collect()
}
