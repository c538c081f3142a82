//! Who did something: the leader, a worker, or somebody whose request a server took.
//!
//! Every stored value says in its envelope who wrote it ([`Writer`]). That is where events get their actor from, so every
//! server tells the same one, and nothing has to be carried from the server that took a request to the one that leads.
//!
//! **Nobody proves who he is yet.** What a person calls himself ([`Who`]) is shown as unproven. It comes from outside, so it is
//! short, and of characters that neither a terminal nor the text around it could be misled by.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::name::Name;

/// The longest name that somebody may call himself.
pub const WHO_LENGTH_MAX: usize = 64;

/// What somebody calls himself, such as `ana@laptop`: at most [`WHO_LENGTH_MAX`] letters, digits and `.-_@+`, of ASCII.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Who(String);

/// A text that nobody may call himself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a name of who asks has 1 to {WHO_LENGTH_MAX} letters, digits and `.-_@+`")]
pub struct WhoError;

const fn is_fine(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '.' | '-' | '_' | '@' | '+')
}

impl Who {
    /// What is left of `text` without the characters that may not be in it; nothing when that is nothing.
    #[must_use]
    pub fn nearest(text: &str) -> Option<Who> {
        let fine: String =
            text.chars().filter(|character| is_fine(*character)).take(WHO_LENGTH_MAX).collect();
        (!fine.is_empty()).then_some(Who(fine))
    }
}

impl fmt::Display for Who {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl FromStr for Who {
    type Err = WhoError;

    fn from_str(text: &str) -> Result<Who, WhoError> {
        let is_good = (1..=WHO_LENGTH_MAX).contains(&text.len()) && text.chars().all(is_fine);
        if is_good { Ok(Who(text.to_owned())) } else { Err(WhoError) }
    }
}

/// The writer of a stored value, as its envelope has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Writer {
    /// The leader's loop of this server.
    Leader {
        /// The server.
        server: Name,
    },
    /// A server, for somebody who asked it.
    Request {
        /// The server.
        server: Name,
        /// Where the request came from, as far as the connection shows it: `user 0` of the server's machine, or an address.
        from: String,
        /// What they call themselves.
        says: Option<Who>,
    },
}

/// What stands between where a request came from and what its sender calls himself.
pub const SAYS: &str = ", who says to be ";

impl fmt::Display for Writer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Writer::Leader { server } => write!(formatter, "server {server} as leader"),
            Writer::Request { server, from, says: None } => write!(formatter, "server {server} for {from}"),
            Writer::Request { server, from, says: Some(who) } => {
                write!(formatter, "server {server} for {from}{SAYS}{who}")
            }
        }
    }
}

/// A writer that is none of these: `init`, or what another version calls its writers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is neither a leader nor a server for somebody")]
pub struct WriterError;

impl FromStr for Writer {
    type Err = WriterError;

    fn from_str(text: &str) -> Result<Writer, WriterError> {
        let (server, rest) =
            text.strip_prefix("server ").and_then(|text| text.split_once(' ')).ok_or(WriterError)?;
        let server: Name = server.parse().map_err(|_| WriterError)?;
        if rest == "as leader" {
            return Ok(Writer::Leader { server });
        }
        let whom = rest.strip_prefix("for ").ok_or(WriterError)?;
        let (from, says) = match whom.split_once(SAYS) {
            None => (whom, None),
            Some((from, who)) => (from, Some(who.parse().map_err(|_| WriterError)?)),
        };
        Ok(Writer::Request { server, from: from.to_owned(), says })
    }
}

/// Who did something.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Actor {
    /// In which role.
    pub role: Role,
    /// The server that leads, the worker, or the person: what they call themselves, or else where they asked from.
    pub name: String,
    /// Whether something vouches for the name: the guards of a leader, the kernel for a user of the server's machine.
    pub proven: bool,
    /// Where a person asked from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
}

/// The roles of those who do something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The leader's controllers.
    Leader,
    /// A worker's agent.
    Worker,
    /// Whoever sent a request.
    Person,
}

impl Actor {
    /// The controllers of the server that leads.
    #[must_use]
    pub fn leader(server: &Name) -> Actor {
        Actor { role: Role::Leader, name: server.to_string(), proven: true, from: None }
    }

    /// A worker. Its reports come over the network as everything else does: nothing proves that they are its own.
    #[must_use]
    pub fn worker(name: &Name) -> Actor {
        Actor { role: Role::Worker, name: name.to_string(), proven: false, from: None }
    }
}

impl From<Writer> for Actor {
    fn from(writer: Writer) -> Actor {
        match writer {
            Writer::Leader { server } => Actor::leader(&server),
            Writer::Request { from, says, .. } => Actor {
                role: Role::Person,
                // The kernel vouches for the user at the other end of a Unix socket, and nobody for an address.
                proven: says.is_none() && from.starts_with("user "),
                name: says.map_or_else(|| from.clone(), |who| who.to_string()),
                from: Some(from),
            },
        }
    }
}

/// As people read it: `leader n1`, `worker n2`, `ana@laptop (unproven)`.
impl fmt::Display for Actor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.role, self.proven) {
            (Role::Leader, _) => write!(formatter, "leader {}", self.name),
            (Role::Worker, _) => write!(formatter, "worker {}", self.name),
            (Role::Person, true) => formatter.write_str(&self.name),
            (Role::Person, false) => write!(formatter, "{} (unproven)", self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_call_themselves_is_short_and_harmless() {
        let check = |text: &str, fine: bool, nearest: &str| {
            assert_eq!(text.parse::<Who>().is_ok(), fine, "{text:?}");
            let found = Who::nearest(text).map(|who| who.to_string()).unwrap_or_default();
            assert_eq!(found, nearest, "{text:?}");
        };
        check("ana@laptop", true, "ana@laptop");
        check("", false, "");
        check("a b", false, "ab");
        check("a\u{1b}[2J", false, "a2J");
        check("J\u{f6}rg", false, "Jrg");
        check("x, who says to be root", false, "xwhosaystoberoot");
        check(&"x".repeat(WHO_LENGTH_MAX), true, &"x".repeat(WHO_LENGTH_MAX));
        check(&"x".repeat(WHO_LENGTH_MAX + 1), false, &"x".repeat(WHO_LENGTH_MAX));
    }

    #[test]
    fn writers_are_read_as_they_are_written_and_become_actors() {
        let check = |text: &str, actor: &str| {
            let writer: Writer = text.parse().unwrap();
            assert_eq!(writer.to_string(), text);
            assert_eq!(Actor::from(writer).to_string(), actor, "{text}");
        };
        check("server n1 as leader", "leader n1");
        check("server n1 for user 0", "user 0");
        check("server n1 for user 0, who says to be ana@laptop", "ana@laptop (unproven)");
        check("server n1 for 10.0.0.9", "10.0.0.9 (unproven)");
        check("server n1 for somebody unknown", "somebody unknown (unproven)");
        for text in ["", "init", "server n1", "server N1 as leader", "server n1 of x", "worker n1 for x"] {
            assert!(text.parse::<Writer>().is_err(), "{text}");
        }
        assert!("server n1 for user 0, who says to be a b".parse::<Writer>().is_err());
    }
}
