//! How a VM is asked whether what it does works: its own agent tries it from inside, and the worker counts.

use std::ops::RangeInclusive;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::reader::Reader;
use crate::units::Span;

/// The longest path of an HTTP check.
pub const PATH_BYTES_MAX: usize = 1_024;
/// The most words of a command that checks, and their most bytes together.
pub const WORDS_MAX: usize = 64;
/// See [`WORDS_MAX`].
pub const WORDS_BYTES_MAX: usize = 4_096;
/// The shortest and the longest time between two checks.
pub const EVERY: RangeInclusive<Span> = Span::from_secs(1)..=Span::from_secs(3_600);
/// The shortest and the longest time that a check may take.
pub const TIMEOUT: RangeInclusive<Span> = Span::from_millis(100)..=Span::from_secs(30);
/// The most failures in a row that may be asked for.
pub const FAILURES_MAX: u64 = 100;
/// The longest grace.
pub const GRACE_MAX: Span = Span::from_secs(3_600);
/// The longest reason of a failure that is told.
pub const PROBLEM_LENGTH_MAX: usize = 200;

/// What is asked of a guest, how often, and what follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// What is tried.
    #[serde(flatten)]
    pub probe: HealthProbe,
    /// From the end of one check to the begin of the next.
    #[serde(default = "default_every")]
    pub every: Span,
    /// How long one may take.
    #[serde(default = "default_timeout")]
    pub timeout: Span,
    /// After how many failures in a row the VM is unhealthy. One success makes it healthy.
    #[serde(default = "default_failures")]
    pub failures: u64,
    /// For how long after a boot failures do not count, unless a check has passed since.
    #[serde(default = "default_grace")]
    pub grace: Span,
    /// Whether an unhealthy VM is restarted by its worker.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub restart: bool,
}

/// What a check tries, inside the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthProbe {
    /// A GET over HTTP/1.1 is answered with a status from 200 to 399.
    Http {
        /// The port, on 127.0.0.1 or the guest's first address.
        port: u16,
        /// The path, with its query.
        path: String,
    },
    /// A connection is accepted.
    Tcp {
        /// The port, on 127.0.0.1 or the guest's first address.
        port: u16,
    },
    /// A command ends with code 0.
    Exec {
        /// The program with its arguments; no shell.
        command: Vec<String>,
    },
}

/// How a VM with a health check is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// What the checks came to.
    pub state: HealthState,
    /// Since when, on the worker's clock.
    pub since: Timestamp,
    /// Why the check failed that made it so, in words for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// What the checks of a VM came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthState {
    /// None has passed since it booted, and its grace is not over.
    Starting,
    /// The last one passed, or not enough have failed since.
    Healthy,
    /// Too many failed in a row.
    Unhealthy,
}

fn default_every() -> Span {
    Span::from_secs(10)
}
fn default_timeout() -> Span {
    Span::from_secs(2)
}
fn default_failures() -> u64 {
    3
}
fn default_grace() -> Span {
    Span::from_secs(60)
}

impl HealthCheck {
    /// A check with every default.
    #[must_use]
    pub fn of(probe: HealthProbe) -> HealthCheck {
        HealthCheck {
            probe,
            every: default_every(),
            timeout: default_timeout(),
            failures: default_failures(),
            grace: default_grace(),
            restart: false,
        }
    }

    pub(crate) fn read(fields: &mut Reader<'_>) -> Option<HealthCheck> {
        let named = ["http", "tcp", "exec"].into_iter().filter(|probe| fields.has(probe)).count();
        let http = fields.object("http", read_http);
        let tcp = fields.object("tcp", |tcp| Some(HealthProbe::Tcp { port: read_port(tcp)? }));
        let exec = fields.object("exec", read_exec);
        if named != 1 {
            let hint = "such as http: {port: 80, path: /}".to_owned();
            fields.problem("http", "one of http, tcp and exec must be there, and only one", Some(hint));
        }
        let every = fields.span("every", EVERY, default_every());
        let timeout = fields.span("timeout", TIMEOUT, default_timeout());
        let failures = fields.number("failures", 1..=FAILURES_MAX, default_failures());
        let grace = fields.span("grace", Span::from_secs(0)..=GRACE_MAX, default_grace());
        let restart = fields.or("restart", false);
        Some(HealthCheck { probe: http.or(tcp).or(exec)?, every, timeout, failures, grace, restart })
    }
}

fn read_port(fields: &mut Reader<'_>) -> Option<u16> {
    let port: u16 = fields.required("port")?;
    if port == 0 {
        fields.problem("port", format!("must be between 1 and {}", u16::MAX), None);
    }
    Some(port)
}

fn read_http(fields: &mut Reader<'_>) -> Option<HealthProbe> {
    let port = read_port(fields);
    let path = fields.or("path", "/".to_owned());
    // RFC 9112, section 3.2: the target of a request has no spaces, and nothing of it may end the line.
    let is_plain = path.bytes().all(|byte| byte.is_ascii_graphic());
    if !path.starts_with('/') || !is_plain || path.len() > PATH_BYTES_MAX {
        let rule = format!("must begin with `/`, with visible ASCII and at most {PATH_BYTES_MAX} bytes");
        fields.problem("path", rule, Some("such as /healthz; encode others as %20".to_owned()));
    }
    Some(HealthProbe::Http { port: port?, path })
}

fn read_exec(fields: &mut Reader<'_>) -> Option<HealthProbe> {
    let command: Vec<String> = fields.required("command")?;
    let bytes: usize = command.iter().map(String::len).sum();
    if command.first().is_none_or(String::is_empty) || command.iter().any(|word| word.contains('\0')) {
        fields.problem("command", "must begin with a program", Some("such as [pg_isready, -q]".to_owned()));
    }
    if command.len() > WORDS_MAX || bytes > WORDS_BYTES_MAX {
        let rule = format!("has {} words of {bytes} bytes", command.len());
        let limit = format!("{rule}, at most {WORDS_MAX} of {WORDS_BYTES_MAX} are allowed");
        fields.problem("command", limit, None);
    }
    Some(HealthProbe::Exec { command })
}
