//! A **secret**: a certificate with its private key, for load balancers that speak TLS: one that somebody has, or one that is asked of
//! a certification authority, again and again.
//!
//! The key of a stored one is sealed: whoever reads the store, a backup of it, or what the API shows, has not read the key. The
//! text of a sealed key may stand in a manifest like any other, and is taken by the cluster that sealed it, under the name that
//! it was sealed for.

mod acme;

use std::fmt;

use jiff::Timestamp;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Field, SpecRules};
use crate::reader::Reader;
use crate::topology::SecretText;

pub use self::acme::{Account, Acme, CHALLENGE_LABEL, CONTACTS_MAX, DIRECTORY_DEFAULT, Failure, Issued, NAMES_MAX, Order, Proof, Text};

/// The longest chain, in bytes of PEM: a version of it lies in the store for each that load balancers still show.
pub const CHAIN_BYTES_MAX: usize = 32 << 10;
/// The longest key, in bytes of PEM: one of RSA with 8,192 bits has about 6,400.
pub const KEY_BYTES_MAX: usize = 8 << 10;
/// The longest that it becomes by being sealed.
pub const SEALED_BYTES_MAX: usize = 12 << 10;
/// What a sealed text begins with.
pub const SEALED_PREFIX: &str = "sealed:";

/// What is asked of a secret: where its certificate comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Spec {
    /// Somebody has it.
    Given(Pair),
    /// A certification authority gives it.
    Ordered {
        /// Which, and for what.
        acme: Acme,
    },
}

/// A certificate with its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    /// The chain, the server's own certificate first, as PEM. Everybody who connects is shown it.
    pub chain: String,
    /// The key that fits it.
    pub key: PrivateKey,
}

/// A private key.
#[derive(Clone, PartialEq, Eq)]
pub enum PrivateKey {
    /// As a person wrote it, in PEM. **It can be written nowhere**: to serialize it fails. A server seals it first.
    Plain(SecretText),
    /// Sealed by a server; it begins with [`SEALED_PREFIX`].
    Sealed(String),
}

/// Which sealing key a text was sealed with, as far as it says so.
#[must_use]
pub fn sealed_with(sealed: &str) -> Option<&str> {
    sealed.strip_prefix(SEALED_PREFIX)?.split(':').nth(1)
}

impl PrivateKey {
    /// Its text, sealed or not.
    fn of(text: String) -> PrivateKey {
        match text.starts_with(SEALED_PREFIX) {
            true => PrivateKey::Sealed(text.trim_end().to_owned()),
            false => PrivateKey::Plain(SecretText::new(text)),
        }
    }

    /// Which sealing key it was sealed with, as far as its text says so.
    #[must_use]
    pub fn sealed_with(&self) -> Option<&str> {
        match self {
            PrivateKey::Plain(_) => None,
            PrivateKey::Sealed(text) => sealed_with(text),
        }
    }

    /// How many bytes it has, and how many it may have.
    fn length(&self) -> (usize, usize) {
        match self {
            PrivateKey::Plain(text) => (text.reveal().len(), KEY_BYTES_MAX),
            PrivateKey::Sealed(text) => (text.len(), SEALED_BYTES_MAX),
        }
    }
}

/// Never prints a key that is not sealed.
impl fmt::Debug for PrivateKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PrivateKey::Plain(text) => text.fmt(formatter),
            PrivateKey::Sealed(text) => formatter.write_str(text),
        }
    }
}

impl Serialize for PrivateKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            PrivateKey::Plain(_) => Err(S::Error::custom("a private key that is not sealed is written nowhere")),
            PrivateKey::Sealed(text) => serializer.serialize_str(text),
        }
    }
}

impl<'de> Deserialize<'de> for PrivateKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<PrivateKey, D::Error> {
        String::deserialize(deserializer).map(PrivateKey::of)
    }
}

/// What the controller of secrets chose: the versions that somebody may need.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Choice {
    /// The newest, and before it those that a load balancer still shows.
    pub versions: Vec<Version>,
    /// With whom certificates are ordered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account: Option<Account>,
    /// The certificate that is ordered now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order: Option<Order>,
    /// Why the last order brought none; nothing once one has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
}

/// A certificate as it was asked for, or came, at some time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// Higher than those of all before it. Of one that somebody has it is the generation in which that was asked for, where that is so.
    pub number: u64,
    /// The chain and its sealed key.
    #[serde(flatten)]
    pub pair: Pair,
    /// What it was ordered for; nothing where somebody had it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issued: Option<Issued>,
    /// The names that it is shown for.
    pub server_names: Vec<String>,
    /// From when it is good.
    pub begins_at: Timestamp,
    /// Till when.
    pub expires_at: Timestamp,
    /// The SHA-256 of the server's own certificate.
    pub fingerprint: String,
}

impl Pair {
    /// How much text it has.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.chain.len() + self.key.length().0
    }
}

impl Spec {
    /// What is given, if it is.
    #[must_use]
    pub const fn given(&self) -> Option<&Pair> {
        match self {
            Spec::Given(pair) => Some(pair),
            Spec::Ordered { .. } => None,
        }
    }

    /// What is to be ordered, if it is.
    #[must_use]
    pub const fn ordered(&self) -> Option<&Acme> {
        match self {
            Spec::Given(_) => None,
            Spec::Ordered { acme } => Some(acme),
        }
    }
}

impl Choice {
    /// The newest version.
    #[must_use]
    pub fn newest(&self) -> Option<&Version> {
        self.versions.last()
    }
}

impl SpecRules for Spec {
    const ABOUT: &'static str = "a certificate with its key, for load balancers that speak TLS";

    const FIELDS: &'static [Field] = &[
        ("chain", "the certificates as PEM, the server's own first"),
        ("key", "the private key as PEM, which is sealed before it is stored; or the sealed text of one, as `get -o yaml` shows it"),
        ("acme", "in place of `chain` and `key`: a certification authority is asked for it (RFC 8555), and again before it ends"),
        ("acme.names", "the names that it is for, at most 32"),
        ("acme.challenge", "http: port 80 of the names leads to a load balancer that names this secret; dns: they are in the cluster's zone; http when left out"),
        ("acme.directory", "the authority's directory; Let's Encrypt's when left out. To ask is to agree to its terms"),
        ("acme.contact", "e-mail addresses that the authority may write to, at most 8"),
    ];

    fn read(fields: &mut Reader<'_>) -> Option<Spec> {
        if fields.has("acme") {
            for field in ["chain", "key"] {
                if fields.optional::<serde_json::Value>(field).is_some() {
                    fields.problem(field, "cannot stand beside `acme`", None);
                }
            }
            return fields.object("acme", Acme::read).map(|acme| Spec::Ordered { acme });
        }
        let chain: Option<String> = fields.required("chain");
        let key: Option<PrivateKey> = fields.required("key");
        let lengths = [
            ("chain", chain.as_ref().map(|chain| (chain.len(), CHAIN_BYTES_MAX))),
            ("key", key.as_ref().map(PrivateKey::length)),
        ];
        for (field, length) in lengths {
            if let Some((_, bytes_max)) = length.filter(|(bytes, bytes_max)| bytes > bytes_max) {
                fields.problem(field, format!("has more than {bytes_max} bytes"), None);
            }
        }
        if chain.as_deref().is_some_and(has_something_else) {
            let rule = "has something else than certificates in it";
            fields.problem("chain", rule, Some("leave in only what stands between BEGIN CERTIFICATE and END CERTIFICATE".to_owned()));
        }
        Some(Spec::Given(Pair { chain: chain?, key: key? }))
    }
}

/// Whether a chain has sections of other kinds: a private key in it would be stored, and shown to everybody.
fn has_something_else(chain: &str) -> bool {
    let mut lines = chain.lines().map(str::trim);
    lines.any(|line| line.starts_with("-----BEGIN ") && line != "-----BEGIN CERTIFICATE-----")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{Kind, Manifest, Spec as KindSpec};

    fn read(spec: &Value) -> Result<KindSpec, Vec<String>> {
        let read = Manifest::read(&json!({ "kind": "secret", "name": "shop", "spec": spec }));
        let words = |problems: Vec<_>| problems.iter().map(ToString::to_string).collect();
        read.map(|manifest| manifest.spec).map_err(words)
    }

    #[test]
    fn a_key_that_is_not_sealed_is_written_nowhere() {
        let spec = read(&json!({ "chain": "c", "key": "very secret" })).expect("a manifest");
        assert_eq!(spec.kind(), Kind::Secret);
        assert!(spec.to_json().is_err());
        assert!(!format!("{spec:?}").contains("very"), "{spec:?}");
    }

    #[test]
    fn a_sealed_key_reads_the_same_again() {
        let spec = read(&json!({ "chain": "c", "key": "sealed:1:ab:cd\n" })).expect("a manifest");
        let again = spec.to_json().expect("plain data");
        assert_eq!(again, json!({ "chain": "c", "key": "sealed:1:ab:cd" }));
        assert_eq!(read(&again), Ok(spec));
    }

    #[test]
    fn what_is_missing_or_too_long_is_told_and_never_the_key() {
        let check = |spec: Value, expected: &[&str]| assert_eq!(read(&spec).expect_err("is refused"), expected);
        check(json!({}), &["spec.chain: is missing", "spec.key: is missing"]);
        check(json!({ "chain": "c", "key": "x".repeat(KEY_BYTES_MAX + 1) }), &["spec.key: has more than 8192 bytes"]);
        let combined = "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n-----BEGIN EC PRIVATE KEY-----\nvery secret";
        check(json!({ "chain": combined, "key": "k" }), &["spec.chain: has something else than certificates in it (leave in only what stands between BEGIN CERTIFICATE and END CERTIFICATE)"]);
        let told = read(&json!({ "chain": "c", "key": 4711 })).expect_err("is refused").join("");
        assert!(told.contains("spec.key"), "{told}");
    }

    #[test]
    fn what_is_ordered_has_names_that_lead_somewhere() {
        let spec = read(&json!({ "acme": { "names": ["WWW.example.org"] } })).expect("a manifest");
        let whole = json!({ "acme": { "names": ["www.example.org"], "directory": DIRECTORY_DEFAULT } });
        assert_eq!(spec.to_json().expect("plain data"), whole);
        assert_eq!(read(&whole), Ok(spec));
        let check = |acme: Value, expected: &str| {
            let told = read(&json!({ "acme": acme })).expect_err("is refused").join("; ");
            assert!(told.starts_with(expected), "{told}");
        };
        check(json!({}), "spec.acme.names: is missing");
        check(json!({ "names": [] }), "spec.acme.names: must have 1 to 32 names, has 0");
        check(json!({ "names": ["a.b", "A.b"] }), "spec.acme.names[1]: is there twice");
        check(json!({ "names": ["*.a.b"] }), "spec.acme.names[0]: cannot be a wildcard, unless with `challenge: dns`");
        check(json!({ "names": ["*.*.a.b"], "challenge": "dns" }), "spec.acme.names[0]: must be a DNS name");
        check(json!({ "names": ["a.b"], "challenge": "mail" }), "spec.acme.challenge: ");
        // The text that shows it has a longer name, which no resolver would take.
        let long = format!("{}.b", ["a".repeat(59).as_str(); 4].join("."));
        read(&json!({ "acme": { "names": [&long] } })).expect("is short enough");
        check(json!({ "names": [&long], "challenge": "dns" }), "spec.acme.names[0]: must be a DNS name");
        read(&json!({ "acme": { "names": ["*.a.b", "a.b"], "challenge": "dns" } })).expect("a wildcard and its domain");
        for name in ["localhost", "", ".", "a..b", "-a.b", "a_b.c", "10.0.0.1", "a b.c", &format!("{}.b", "a".repeat(64))] {
            check(json!({ "names": [name] }), "spec.acme.names[0]: must be a DNS name");
        }
        check(json!({ "names": ["a.b"], "directory": "http://a/" }), "spec.acme.directory: must be the https:// address");
        check(json!({ "names": ["a.b"], "contact": ["me"] }), "spec.acme.contact[0]: must be an e-mail address");
        let both = read(&json!({ "chain": "c", "key": "very secret", "acme": { "names": ["a.b"] } }));
        assert_eq!(both.expect_err("is refused"), ["spec.chain: cannot stand beside `acme`", "spec.key: cannot stand beside `acme`"]);
    }
}
