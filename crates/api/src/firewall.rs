//! What may come in to a VM: as people ask for it, and as its worker carries it out.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use crate::address::Cidr;
use crate::reader::Reader;

/// How many rules a firewall has at most: each is looked at for each new connection.
pub const RULES_MAX: usize = 32;
/// How many ports or ranges of ports one rule has at most.
pub const PORTS_MAX: usize = 16;
/// How many addresses the labels of one firewall may come to, all its rules together: they stand in the assignment of each of
/// the VM's network cards, and change with every VM that has the labels.
pub const SOURCES_MAX: usize = 256;

/// What may come in; everything else may not. Answers to the VM's own connections always may.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Firewall {
    /// What is allowed.
    #[serde(default)]
    pub allow: Vec<Rule>,
}

/// One thing that is allowed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// From whom; anybody when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<From>,
    /// Of which protocol.
    pub protocol: Protocol,
    /// To which ports; all when left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Ports>,
}

/// Whose packets a rule is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum From {
    /// Those from these addresses.
    Cidr(Cidr),
    /// Those from VMs that have all these labels, whichever they are at the time.
    Labels(BTreeMap<String, String>),
}

/// A protocol over IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP, such as pings.
    Icmp,
}

impl Protocol {
    /// Its name, as manifests and nftables have it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Icmp => "icmp",
        }
    }
}

/// A port, or a range of them: `80` or `8000-8010`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ports {
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
}

/// A text that names no ports.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no port and no range of ports; write 80 or 8000-8010")]
pub struct PortsError(String);

impl FromStr for Ports {
    type Err = PortsError;
    fn from_str(text: &str) -> Result<Ports, PortsError> {
        let bad = || PortsError(text.to_owned());
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(bad);
        let ports = Ports { first: port(first)?, last: port(last)? };
        if ports.first <= ports.last { Ok(ports) } else { Err(bad()) }
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(formatter, "{}", self.first)
        } else {
            write!(formatter, "{}-{}", self.first, self.last)
        }
    }
}

impl Serialize for Ports {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.first == self.last {
            serializer.serialize_u16(self.first)
        } else {
            serializer.collect_str(self)
        }
    }
}

impl<'de> Deserialize<'de> for Ports {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Ports, D::Error> {
        // One port is a number in YAML, and a range a text.
        let text = match Value::deserialize(deserializer)? {
            Value::String(text) => text,
            other => other.to_string(),
        };
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A firewall with its sources found out: what a worker carries out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wall {
    /// What is allowed.
    #[serde(default)]
    pub allow: Vec<Opening>,
}

/// One thing that is allowed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opening {
    /// From these addresses; from anybody if there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<Cidr>,
    /// Of this protocol.
    pub protocol: Protocol,
    /// To these ports; to all if there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Ports>,
}

impl Firewall {
    /// The labels that its rules name, rule by rule.
    pub fn selectors(&self) -> impl Iterator<Item = &BTreeMap<String, String>> {
        self.allow.iter().filter_map(|rule| match &rule.from {
            Some(From::Labels(labels)) => Some(labels),
            _ => None,
        })
    }

    /// Reads what a person wrote, and notes every problem.
    pub fn read(fields: &mut Reader<'_>) -> Option<Firewall> {
        let allow = fields.list("allow", RULES_MAX, read_rule);
        Some(Firewall { allow: allow.unwrap_or_default() })
    }
}

fn read_rule(fields: &mut Reader<'_>) -> Option<Rule> {
    // A source that is wrong must not be taken for none, which means anybody; it is a problem of its own then.
    let from = fields.object("from", read_from);
    let protocol: Option<Protocol> = fields.required("protocol");
    let ports: Vec<Ports> = fields.or("ports", Vec::new());
    if ports.len() > PORTS_MAX {
        fields.problem("ports", format!("are {}, at most {PORTS_MAX} are allowed", ports.len()), None);
    }
    if protocol == Some(Protocol::Icmp) && !ports.is_empty() {
        fields.problem("ports", "are nothing that ICMP has", Some("leave them out".to_owned()));
    }
    Some(Rule { from, protocol: protocol?, ports })
}

fn read_from(fields: &mut Reader<'_>) -> Option<From> {
    let cidr: Option<Cidr> = fields.optional("cidr");
    let labels: Option<BTreeMap<String, String>> = fields.optional("labels");
    let group: Option<String> = fields.optional("group");
    if group.is_some() {
        let hint = "label the VMs, and name the labels".to_owned();
        fields.problem("group", "cannot be named yet: this version has no scale groups", Some(hint));
        return None;
    }
    match (cidr, labels) {
        (Some(cidr), None) => Some(From::Cidr(cidr)),
        (None, Some(labels)) if !labels.is_empty() => Some(From::Labels(labels)),
        (None, Some(_)) => {
            fields.problem("labels", "must be at least one", Some("leave out `from` for anybody".to_owned()));
            None
        }
        _ => {
            let hint = "such as {cidr: 10.0.0.0/8} or {labels: {app: web}}; leave out `from` for anybody";
            fields.problem("cidr", "name either a cidr or labels", Some(hint.to_owned()));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(value: &Value, expect: &[&str]) {
        let mut problems = Vec::new();
        let mut reader = Reader::new("", value, &mut problems);
        let read = Firewall::read(&mut reader);
        reader.finish();
        assert_eq!(problems.iter().map(ToString::to_string).collect::<Vec<_>>(), expect, "{value}");
        if expect.is_empty() {
            let read = read.expect("no problem");
            assert_eq!(serde_json::from_value::<Firewall>(json!(read)).expect("it is stored"), read);
        }
    }

    #[test]
    fn what_a_person_writes_is_read_or_refused() {
        check(&json!({}), &[]);
        check(
            &json!({"allow": [
                {"protocol": "tcp", "ports": [80, "8000-8010"], "from": {"labels": {"app": "proxy"}}},
                {"protocol": "udp", "from": {"cidr": "10.0.0.0/8"}},
                {"protocol": "icmp"},
            ]}),
            &[],
        );
        check(
            &json!({"allow": [{"protocol": "icmp", "ports": [8]}, {"protocol": "tcp", "ports": ["9-8"]}]}),
            &[
                "allow[0].ports: are nothing that ICMP has (leave them out)",
                "allow[1].ports: `9-8` is no port and no range of ports; write 80 or 8000-8010",
            ],
        );
        check(
            &json!({"allow": [
                {"protocol": "tcp", "from": {"group": "web"}},
                {"protocol": "tcp", "from": {"labels": {}}},
                {"protocol": "tcp", "from": {}},
            ]}),
            &[
                "allow[0].from.group: cannot be named yet: this version has no scale groups (label the VMs, and name the labels)",
                "allow[1].from.labels: must be at least one (leave out `from` for anybody)",
                "allow[2].from.cidr: name either a cidr or labels (such as {cidr: 10.0.0.0/8} or {labels: {app: web}}; leave out `from` for anybody)",
            ],
        );
        let zero = "`0` is no port and no range of ports; write 80 or 8000-8010";
        check(&json!({"allow": [{"protocol": "tcp", "ports": [0]}]}), &[&format!("allow[0].ports: {zero}")]);
    }
}
