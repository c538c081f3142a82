//! Words for looking at objects, now and as they were.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use lightbyte_api::Span;
use lightbyte_api::units::UnitError;

use super::read_label;

#[derive(Debug, Args)]
pub(crate) struct Get {
    /// KIND, KIND/NAME or NAME; everything when left out
    #[arg(value_name = "KIND[/NAME]")]
    pub(crate) targets: Vec<String>,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t = Form::Table)]
    pub(crate) output: Form,
    /// Only objects with this label; may be given several times
    #[arg(short = 'l', long = "label", value_name = "KEY=VALUE", value_parser = read_label)]
    pub(crate) labels: Vec<(String, String)>,
    /// Goes on with a line for each change
    #[arg(short, long, conflicts_with = "at")]
    pub(crate) watch: bool,
    #[command(flatten)]
    pub(crate) past: Past,
}

/// How objects are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    /// A line for each object
    Table,
    /// The same with more columns
    Wide,
    /// JSON: one object, or {"items": […]}
    Json,
    /// YAML documents that `apply` takes
    Yaml,
    /// KIND/NAME
    Name,
}

#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Past {
    /// As it was then: a revision, a time such as 2026-11-27T18:00:00Z, or how long ago, such as 10m
    #[arg(long, value_name = "WHEN", value_parser = read_past)]
    pub(crate) at: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Top {
    /// How often it is measured, 1s at least
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = read_period)]
    pub(crate) every: Span,
    /// Once, over one second; as when the output is no terminal
    #[arg(long)]
    pub(crate) once: bool,
}

fn read_period(text: &str) -> Result<Span, String> {
    let span: Span = text.parse().map_err(|error: UnitError| error.to_string())?;
    if span < Span::from_secs(1) { Err("must be 1s at least".to_owned()) } else { Ok(span) }
}

#[derive(Debug, Args)]
pub(crate) struct Describe {
    /// The object
    #[arg(value_name = "KIND/NAME", required = true)]
    pub(crate) target: Vec<String>,
    #[command(flatten)]
    pub(crate) past: Past,
}

#[derive(Debug, Args)]
pub(crate) struct Test {
    /// The load balancer
    #[arg(value_name = "LB")]
    pub(crate) target: String,
    /// What is asked for
    #[arg(value_name = "URL")]
    pub(crate) url: String,
    /// The method
    #[arg(short = 'X', long, value_name = "METHOD", default_value = "GET")]
    pub(crate) method: String,
    /// A header of the request
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    pub(crate) headers: Vec<String>,
    /// The client's address, where that counts
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) from: Option<IpAddr>,
}

#[derive(Debug, Args)]
pub(crate) struct Why {
    /// The object
    #[arg(value_name = "KIND/NAME", required = true)]
    pub(crate) target: Vec<String>,
    /// What this worker is to a VM, whether it is there or not
    #[arg(long, value_name = "WORKER")]
    pub(crate) on: Option<String>,
    #[command(flatten)]
    pub(crate) past: Past,
}

#[derive(Debug, Args)]
pub(crate) struct Diff {
    /// Whose changes are shown, with --from: KIND, KIND/NAME or NAME; everything when left out
    #[arg(value_name = "KIND[/NAME]")]
    pub(crate) targets: Vec<String>,
    /// A manifest, a directory of them, or - for standard input; may be given several times
    #[arg(short = 'f', long = "file", value_name = "FILE", num_args = 1..)]
    pub(crate) files: Vec<PathBuf>,
    /// What was changed since then: a revision, a time such as 2026-11-27T18:00:00Z, or how long ago, such as 10m
    #[arg(long, value_name = "WHEN", value_parser = read_past, conflicts_with = "files")]
    pub(crate) from: Option<String>,
    /// Until when; now when left out
    #[arg(long, value_name = "WHEN", value_parser = read_past, requires = "from")]
    pub(crate) to: Option<String>,
}

/// What may stand in a question to a server; what it means the server says.
pub(super) fn read_past(text: &str) -> Result<String, String> {
    let is_plain = |character: char| character.is_ascii_alphanumeric() || "-:.".contains(character);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => Ok(text.to_owned()),
        false => {
            Err("it is a revision, a time such as 2026-11-27T18:00:00Z, or how long ago, such as 10m"
                .to_owned())
        }
    }
}
