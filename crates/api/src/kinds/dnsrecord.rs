//! A **DNS record** of the user's own, beside the names that VMs have by themselves. Its rules are those of RFC 1035
//! and, for IPv6, RFC 3596.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Field, SpecRules};
use crate::reader::Reader;
use crate::units::Span;

/// How many values one record has at most: they share one answer, which should fit in 1,232 bytes (RFC 9715).
pub const VALUES_MAX: usize = 16;
/// The longest name, in characters (RFC 1035, section 2.3.4).
pub const DOMAIN_NAME_LENGTH_MAX: usize = 253;
/// The longest label of a name (RFC 1035, section 2.3.4).
pub const LABEL_LENGTH_MAX: usize = 63;
/// The longest text of a TXT record that needs no splitting (RFC 1035, section 3.3.14).
pub const TEXT_BYTES_MAX: usize = 255;
/// How long others may keep an answer when nothing is said.
pub const TTL_DEFAULT: Span = Span::from_secs(60);
/// The longest time that others may keep an answer: a mistake should not outlive a day.
pub const TTL_LIMIT: Span = Span::from_secs(86_400);

/// What is asked of a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// What its values are.
    #[serde(rename = "type")]
    pub record_type: RecordType,
    /// Its name below the cluster's zone; the object's own when it is not said, and `@` for the zone itself.
    #[serde(default)]
    pub host: Option<String>,
    /// Its values.
    pub values: Vec<String>,
    /// How long others may keep an answer.
    pub ttl: Span,
}

/// What the values of a record are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum RecordType {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// Another name, which stands for this one.
    Cname,
    /// Texts.
    Txt,
}

/// Nothing is chosen for a record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Choice {}

impl SpecRules for Spec {
    const ABOUT: &'static str = "a record of your own in the cluster's DNS zone";

    const FIELDS: &'static [Field] = &[
        ("type", "A, AAAA, CNAME or TXT"),
        ("host", "its name below the zone, @ for the zone itself; the object's own name when left out"),
        ("values", "1 to 16 addresses, names or texts, as the type says; a CNAME has one"),
        ("ttl", "how long others may keep an answer, 1s to 24h"),
    ];

    fn shortest() -> Option<Value> {
        Some(json!({ "type": "A", "values": ["192.0.2.1"] }))
    }

    fn read(fields: &mut Reader<'_>) -> Option<Spec> {
        let record_type: Option<RecordType> = fields.required("type");
        let host: Option<String> = fields.optional("host");
        let values: Option<Vec<String>> = fields.required("values");
        let ttl = fields.or("ttl", TTL_DEFAULT);
        if host.as_ref().is_some_and(|host| host != "@" && !is_domain_name(host)) {
            fields.problem("host", "must be a domain name, or @", None);
        }
        if ttl < Span::from_secs(1) || ttl > TTL_LIMIT {
            fields.problem("ttl", format!("must be between 1s and {TTL_LIMIT}, is {ttl}"), None);
        }
        let (record_type, values) = (record_type?, values?);
        let count_max = if record_type == RecordType::Cname { 1 } else { VALUES_MAX };
        if values.is_empty() || values.len() > count_max {
            let rule = format!("has {} values, 1 to {count_max} are allowed", values.len());
            fields.problem("values", rule, None);
        }
        for value in values.iter().filter(|value| !record_type.takes(value)) {
            fields.problem("values", format!("`{value}` is no {}", record_type.what()), None);
        }
        Some(Spec { record_type, host, values, ttl })
    }
}

impl RecordType {
    fn takes(self, value: &str) -> bool {
        match self {
            RecordType::A => value.parse::<Ipv4Addr>().is_ok(),
            RecordType::Aaaa => value.parse::<Ipv6Addr>().is_ok(),
            RecordType::Cname => is_domain_name(value),
            RecordType::Txt => value.len() <= TEXT_BYTES_MAX,
        }
    }

    const fn what(self) -> &'static str {
        match self {
            RecordType::A => "IPv4 address",
            RecordType::Aaaa => "IPv6 address",
            RecordType::Cname => "domain name",
            RecordType::Txt => "text of at most 255 bytes",
        }
    }
}

/// Whether `text` is a name as hosts and services have it: letters, digits, - and _, in labels that dots part.
pub(super) fn is_domain_name(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=LABEL_LENGTH_MAX).contains(&label.len())
            && label.chars().all(|character| character.is_ascii_alphanumeric() || "-_".contains(character))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let text = text.strip_suffix('.').unwrap_or(text);
    text.len() <= DOMAIN_NAME_LENGTH_MAX && text.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use crate::Manifest;
    use serde_json::{Value, json};

    fn problems(spec: &Value) -> String {
        match Manifest::read(&json!({ "kind": "dnsrecord", "name": "www", "spec": spec })) {
            Ok(_) => String::new(),
            Err(problems) => problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
        }
    }

    #[test]
    fn values_must_be_what_the_type_says() {
        let check = |spec: Value, expect: &str| assert_eq!(problems(&spec), expect, "{spec}");
        check(json!({ "type": "A", "values": ["192.0.2.1", "192.0.2.2"] }), "");
        check(json!({ "type": "A", "values": ["::1"] }), "spec.values: `::1` is no IPv4 address");
        check(json!({ "type": "AAAA", "values": ["2001:db8::1"], "host": "@" }), "");
        check(json!({ "type": "CNAME", "values": ["web.group.lab"], "host": "www.shop", "ttl": "5m" }), "");
        check(json!({ "type": "CNAME", "values": ["a", "b"] }), "spec.values: has 2 values, 1 to 1 are allowed");
        check(json!({ "type": "CNAME", "values": ["-a"] }), "spec.values: `-a` is no domain name");
        check(json!({ "type": "TXT", "values": ["any text; at all"] }), "");
        check(json!({ "type": "TXT", "values": [] }), "spec.values: has 0 values, 1 to 16 are allowed");
        check(
            json!({ "type": "A", "values": ["192.0.2.1"], "host": "a..b", "ttl": "25h" }),
            "spec.host: must be a domain name, or @; spec.ttl: must be between 1s and 24h, is 25h",
        );
        check(json!({}), "spec.type: is missing; spec.values: is missing");
    }
}
