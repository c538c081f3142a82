//! What the resolvers of the cluster are told: every name of its zone, as one document.
//!
//! The document is whole and ordered: no choice is left to who reads it, and two servers that see the same compose the
//! same bytes. [`Zone::check`] is the rule for both sides, so what a server sends is what a resolver takes.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::address::Cidr;
use crate::kinds::dnsrecord::{DOMAIN_NAME_LENGTH_MAX, LABEL_LENGTH_MAX, TEXT_BYTES_MAX};
pub use crate::topology::Problem;

/// The format that this code writes and reads. A reader refuses every other: what it does not understand of a zone it
/// would answer wrongly.
pub const FORMAT: u32 = 1;

/// How long others may keep an answer when nothing is said, in seconds, and how long they may keep it that there is
/// none: whoever takes a name away waits this long before what it named ends.
pub const TTL_DEFAULT_S: u32 = 5;

/// The zone's name where nobody says another one: `internal` is what private networks may use as they like (ICANN board
/// resolution 2024.07.29.06).
pub const NAME_DEFAULT: &str = "lightbyte.internal";

/// The owner name of the zone itself in [`Zone::names`].
pub const APEX: &str = "@";

/// Upper limits. They hold for what a resolver takes, so that no document can make one too big or too slow.
pub mod maximum {
    /// Records, pointers included: a resolver that keeps document and table has about 60 MB with so many names.
    pub const RECORDS: usize = 100_000;
    /// Characters of the zone's name: names in it need room, and so does what tells that there is none.
    pub const ZONE_NAME: usize = 100;
    /// Bytes of one record set on the wire: an answer has to fit into a message of 65,535 bytes (RFC 1035, 4.2.2), with
    /// room for its question, a chain of aliases and what EDNS adds.
    pub const SET_BYTES: usize = 60_000;
    /// Subnets whose reverse names belong to the zone; a name that is in none is looked for in all of them.
    pub const REVERSE: usize = 1_000;
    /// How long others may keep an answer, in seconds: a mistake should not outlive a day.
    pub const TTL_S: u32 = 86_400;
    /// Problems that are told at once: a document that was wrong from end to end needs no longer list.
    pub const PROBLEMS: usize = 100;
}

/// A zone with a checksum of its text, as it lies on a resolver's disk.
///
/// The checksum is of the bytes of the member `zone` just as they stand in the document, so nobody needs a canonical
/// form, and a field that a newer server adds does not break an older reader's sum.
#[derive(Debug, Serialize, Deserialize)]
pub struct Sealed {
    /// SHA-256 of `zone`'s text, in lower-case hexadecimal digits.
    pub checksum: String,
    /// The text of a [`Zone`].
    pub zone: Box<RawValue>,
}

/// Every name of the cluster, complete.
///
/// Names are lower-case and have no dot at their end ([`canonical`] makes them so). Owners stand relative to the zone,
/// targets in full.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zone {
    /// [`FORMAT`].
    pub format: u32,
    /// Rises with every change. A resolver never goes back to an older one.
    pub revision: u64,
    /// Such as `lightbyte.internal`.
    pub name: String,
    /// By owner: `web.lb` is `web.lb.lightbyte.internal`, [`APEX`] the zone itself.
    #[serde(default)]
    pub names: BTreeMap<String, Records>,
    /// Subnets whose reverse names (RFC 1035, 3.5; RFC 3596, 2.5) belong to the zone: of an address in them that has no
    /// pointer it is known that there is none.
    #[serde(default)]
    pub reverse: Vec<Cidr>,
    /// The name of an address. Each lies in one of `reverse`.
    #[serde(default)]
    pub pointers: BTreeMap<IpAddr, String>,
}

/// What one name has. A name with an alias has nothing else (RFC 2181, 10.1).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Records {
    /// IPv4 addresses.
    #[serde(skip_serializing_if = "Set::is_empty")]
    pub a: Set<Ipv4Addr>,
    /// IPv6 addresses (RFC 3596).
    #[serde(skip_serializing_if = "Set::is_empty")]
    pub aaaa: Set<Ipv6Addr>,
    /// Services, for owners such as `_http._tcp.web.lb` (RFC 2782).
    #[serde(skip_serializing_if = "Set::is_empty")]
    pub srv: Set<Service>,
    /// Texts.
    #[serde(skip_serializing_if = "Set::is_empty")]
    pub txt: Set<String>,
    /// The name that this one stands for; at most one.
    #[serde(skip_serializing_if = "Set::is_empty")]
    pub cname: Set<String>,
}

/// Values of one type. Answers turn their order, so that clients share themselves out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Set<T> {
    /// None means that the name has no such record.
    pub values: Vec<T>,
    /// How long others may keep them, in seconds.
    pub ttl_s: u32,
}

/// Where a service is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Service {
    /// Lower ones are tried first.
    pub priority: u16,
    /// The share among those of one priority.
    pub weight: u16,
    /// Where it listens.
    pub port: u16,
    /// The host's name.
    pub target: String,
}

impl<T> Default for Set<T> {
    fn default() -> Set<T> {
        Set { values: Vec::new(), ttl_s: TTL_DEFAULT_S }
    }
}

impl<T> From<Vec<T>> for Set<T> {
    fn from(values: Vec<T>) -> Set<T> {
        Set { values, ttl_s: TTL_DEFAULT_S }
    }
}

impl<T> Set<T> {
    /// Whether it says nothing.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.values.is_empty()
    }
}

/// The form that names have in a [`Zone`]: lower-case, without the dot that ends a full name.
#[must_use]
pub fn canonical(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

impl Zone {
    /// A zone without names.
    #[must_use]
    pub fn new(name: &str, revision: u64) -> Zone {
        Zone {
            format: FORMAT,
            revision,
            name: canonical(name),
            names: BTreeMap::new(),
            reverse: Vec::new(),
            pointers: BTreeMap::new(),
        }
    }

    /// Every rule that it breaks, the first [`maximum::PROBLEMS`] of them; none if a resolver can answer from it.
    #[must_use]
    pub fn check(&self) -> Vec<Problem> {
        let mut problems = Problems::default();
        if self.format != FORMAT {
            // Nothing else of it means what it seems to.
            problems.add("format", format!("is {}, this reader knows {FORMAT} only", self.format));
            return problems.0;
        }
        problems.name("name", &self.name);
        if self.name.len() > maximum::ZONE_NAME {
            let rule =
                format!("has {} characters, at most {} are allowed", self.name.len(), maximum::ZONE_NAME);
            problems.add("name", rule);
        }
        let records = self.names.values().map(Records::count).sum::<usize>() + self.pointers.len();
        if records > maximum::RECORDS {
            problems.add("names", format!("has {records} records, at most {} are allowed", maximum::RECORDS));
        }
        if self.reverse.len() > maximum::REVERSE {
            let rule =
                format!("has {} subnets, at most {} are allowed", self.reverse.len(), maximum::REVERSE);
            problems.add("reverse", rule);
        }
        for (owner, records) in &self.names {
            if problems.are_enough() {
                break;
            }
            self.check_name(owner, records, &mut problems);
        }
        for (address, target) in &self.pointers {
            if problems.are_enough() {
                break;
            }
            let at = format!("pointers[{address}]");
            problems.name(&at, target);
            if !self.reverse.iter().any(|subnet| contains(*subnet, *address)) {
                problems.add(&at, "lies in no subnet of `reverse`");
            }
        }
        problems.0
    }

    fn check_name(&self, owner: &str, records: &Records, problems: &mut Problems) {
        let at = format!("names[{owner}]");
        if owner != APEX {
            problems.name(&at, owner);
            let length = owner.len() + 1 + self.name.len();
            if length > DOMAIN_NAME_LENGTH_MAX {
                let rule =
                    format!("has {length} characters with the zone, {DOMAIN_NAME_LENGTH_MAX} are allowed");
                problems.add(&at, rule);
            }
        }
        if records.count() == 0 {
            problems.add(&at, "has no record");
        }
        if !records.cname.is_empty() && (records.count() > 1 || owner == APEX) {
            problems.add(&at, "has an alias, and a name with an alias has nothing else");
        }
        problems.set(&at, "a", &records.a, |_| 4);
        problems.set(&at, "aaaa", &records.aaaa, |_| 16);
        problems.set(&at, "srv", &records.srv, |service| 6 + service.target.len() + 2);
        problems.set(&at, "txt", &records.txt, |text| text.len() + 1);
        problems.set(&at, "cname", &records.cname, |target| target.len() + 2);
        for (index, service) in records.srv.values.iter().enumerate() {
            problems.name(&format!("{at}.srv.values[{index}].target"), &service.target);
        }
        for (index, target) in records.cname.values.iter().enumerate() {
            problems.name(&format!("{at}.cname.values[{index}]"), target);
        }
        for (index, text) in records.txt.values.iter().enumerate() {
            if text.len() > TEXT_BYTES_MAX {
                let rule = format!("has {} bytes, at most {TEXT_BYTES_MAX} are allowed", text.len());
                problems.add(&format!("{at}.txt.values[{index}]"), rule);
            }
        }
    }
}

impl Records {
    /// How many records they are.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.a.values.len()
            + self.aaaa.values.len()
            + self.srv.values.len()
            + self.txt.values.len()
            + self.cname.values.len()
    }
}

fn contains(subnet: Cidr, address: IpAddr) -> bool {
    match (subnet, address) {
        (Cidr::V4(subnet), IpAddr::V4(address)) => subnet.contains(address),
        (Cidr::V6(subnet), IpAddr::V6(address)) => subnet.contains(address),
        _ => false,
    }
}

/// What was found so far.
#[derive(Default)]
struct Problems(Vec<Problem>);

impl Problems {
    fn are_enough(&self) -> bool {
        self.0.len() >= maximum::PROBLEMS
    }

    fn add(&mut self, path: &str, what: impl Into<String>) {
        if !self.are_enough() {
            self.0.push(Problem { path: path.to_owned(), what: what.into() });
        }
    }

    /// A name as RFC 1035, 2.3.4 bounds it, of the characters that hosts and services have.
    fn name(&mut self, path: &str, name: &str) {
        if name.len() > DOMAIN_NAME_LENGTH_MAX {
            let rule = format!("has {} characters, at most {DOMAIN_NAME_LENGTH_MAX} are allowed", name.len());
            return self.add(path, rule);
        }
        let is_good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
        for label in name.split('.') {
            if !(1..=LABEL_LENGTH_MAX).contains(&label.len()) || !label.bytes().all(is_good) {
                let rule = format!(
                    "`{name}` is no name of lower-case letters, digits, - and _ in labels of 1 to {LABEL_LENGTH_MAX} \
                     that dots part"
                );
                return self.add(path, rule);
            }
        }
    }

    fn set<T: Ord>(&mut self, at: &str, member: &str, set: &Set<T>, data_bytes: impl Fn(&T) -> usize) {
        let path = || format!("{at}.{member}");
        if set.ttl_s > maximum::TTL_S {
            self.add(&path(), format!("may be kept {} s, at most {} are allowed", set.ttl_s, maximum::TTL_S));
        }
        // An owner by a pointer, type, class, time to live and length (RFC 1035, 3.2.1 and 4.1.4).
        let bytes: usize = set.values.iter().map(|value| 12 + data_bytes(value)).sum();
        if bytes > maximum::SET_BYTES {
            self.add(&path(), format!("has {bytes} bytes, at most {} fit an answer", maximum::SET_BYTES));
        }
        let mut values: Vec<&T> = set.values.iter().collect();
        values.sort_unstable();
        if values.windows(2).any(|pair| pair[0] == pair[1]) {
            self.add(&path(), "has a value twice, and a set has each once (RFC 2181, 5)");
        }
        if member == "cname" && set.values.len() > 1 {
            self.add(&path(), "has more than one name");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn zone(change: Value) -> Zone {
        let mut zone = json!({ "format": 1, "revision": 7, "name": "lab" });
        let Value::Object(change) = change else { panic!("an object") };
        zone.as_object_mut().expect("an object").extend(change);
        serde_json::from_value(zone).expect("a zone")
    }

    fn check(change: Value, expect: &str) {
        let text = change.to_string();
        let problems: Vec<String> = zone(change).check().iter().map(ToString::to_string).collect();
        assert_eq!(problems.join("; "), expect, "{text:.200}");
    }

    const NO_NAME: &str =
        "is no name of lower-case letters, digits, - and _ in labels of 1 to 63 that dots part";

    #[test]
    fn good_zones_have_no_problem() {
        check(json!({}), "");
        check(json!({ "names": { "@": { "a": { "values": ["192.0.2.1"] } } } }), "");
        check(
            json!({ "names": {
                "db.vm": { "a": { "values": ["10.77.0.5"] }, "aaaa": { "values": ["fd00::5"] } },
                "_http._tcp.web.lb": { "srv": { "values": [
                    { "priority": 0, "weight": 1, "port": 80, "target": "web.lb.lab" }
                ] } },
                "www": { "cname": { "values": ["web.lb.lab"], "ttl_s": 300 } },
                "text": { "txt": { "values": ["any; text"] } },
            }, "reverse": ["10.77.0.0/16", "fd00::/64"],
               "pointers": { "10.77.0.5": "db.vm.lab", "fd00::5": "db.vm.lab" } }),
            "",
        );
    }

    #[test]
    fn every_broken_rule_is_told() {
        check(json!({ "format": 2, "name": "" }), "format: is 2, this reader knows 1 only");
        check(json!({ "name": "Lab" }), &format!("name: `Lab` {NO_NAME}"));
        check(json!({ "name": "" }), &format!("name: `` {NO_NAME}"));
        check(
            json!({ "name": "lab.", "names": { "a..b": {}, "c": {} } }),
            &format!(
                "name: `lab.` {NO_NAME}; names[a..b]: `a..b` {NO_NAME}; names[a..b]: has no record; \
                 names[c]: has no record"
            ),
        );
        check(
            json!({ "names": { "w": { "cname": { "values": ["a", "b"] }, "txt": { "values": ["t"], "ttl_s": 90_000 } } } }),
            "names[w]: has an alias, and a name with an alias has nothing else; \
             names[w].txt: may be kept 90000 s, at most 86400 are allowed; names[w].cname: has more than one name",
        );
        check(
            json!({ "names": { "w": { "a": { "values": ["10.0.0.1", "10.0.0.1"] } } } }),
            "names[w].a: has a value twice, and a set has each once (RFC 2181, 5)",
        );
        check(
            json!({ "names": { "@": { "cname": { "values": ["a"] } } } }),
            "names[@]: has an alias, and a name with an alias has nothing else",
        );
        check(
            json!({ "pointers": { "10.0.0.1": "x_Y" }, "reverse": ["10.1.0.0/16"] }),
            &format!(
                "pointers[10.0.0.1]: `x_Y` {NO_NAME}; pointers[10.0.0.1]: lies in no subnet of `reverse`"
            ),
        );
        check(
            json!({ "names": { "t": { "txt": { "values": ["x".repeat(256)] } } } }),
            "names[t].txt.values[0]: has 256 bytes, at most 255 are allowed",
        );
        check(
            json!({ "names": { "s": { "srv": { "values": [
                { "priority": 0, "weight": 0, "port": 80, "target": "a b" }
            ] } } } }),
            &format!("names[s].srv.values[0].target: `a b` {NO_NAME}"),
        );
    }

    #[test]
    fn limits_are_limits() {
        let label = "a".repeat(63);
        let longest = format!("{label}.{label}.{label}.{}", "a".repeat(57));
        let address = json!({ "a": { "values": ["10.0.0.1"] } });
        check(json!({ "names": { &longest: &address } }), "");
        let longer = format!("{longest}b");
        check(
            json!({ "names": { &longer: &address } }),
            &format!("names[{longer}]: has 254 characters with the zone, 253 are allowed"),
        );
        let addresses = |count: u32| {
            let values: Vec<Ipv4Addr> =
                (0..count).map(|number| Ipv4Addr::from(0x0a00_0000 + number)).collect();
            json!({ "names": { "g": { "a": { "values": values } } } })
        };
        check(addresses(3_750), "");
        check(addresses(3_751), "names[g].a: has 60016 bytes, at most 60000 fit an answer");
        let mut many = zone(json!({}));
        for number in 0..=maximum::RECORDS {
            let address = Ipv4Addr::from(0x0a00_0000 + u32::try_from(number).expect("fits"));
            many.names
                .insert(format!("n{number}"), Records { a: vec![address].into(), ..Records::default() });
        }
        assert_eq!(many.check().len(), 1, "100,001 records");
        many.names.remove("n0");
        assert!(many.check().is_empty());
        many.names.values_mut().for_each(|records| records.a.ttl_s = 1_000_000);
        assert_eq!(many.check().len(), maximum::PROBLEMS);
    }

    #[test]
    fn names_are_brought_to_one_form() {
        assert_eq!(canonical("WWW.Example.org."), "www.example.org");
        assert_eq!(Zone::new("Lab.", 1).name, "lab");
    }
}
