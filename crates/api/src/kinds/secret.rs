//! A **secret**: a certificate with its private key, for load balancers that speak TLS.
//!
//! The key of a stored one is sealed: whoever reads the store, a backup of it, or what the API shows, has not read the key. The
//! text of a sealed key may stand in a manifest like any other, and is taken by the cluster that sealed it, under the name that
//! it was sealed for.

use std::fmt;

use jiff::Timestamp;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Field, SpecRules};
use crate::reader::Reader;
use crate::topology::SecretText;

/// The longest chain, in bytes of PEM: a version of it lies in the store for each that load balancers still show.
pub const CHAIN_BYTES_MAX: usize = 32 << 10;
/// The longest key, in bytes of PEM: one of RSA with 8,192 bits has about 6,400.
pub const KEY_BYTES_MAX: usize = 8 << 10;
/// The longest that it becomes by being sealed.
pub const SEALED_BYTES_MAX: usize = 12 << 10;
/// What a sealed text begins with.
pub const SEALED_PREFIX: &str = "sealed:";

/// What is asked of a secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
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
            PrivateKey::Sealed(text) => text.strip_prefix(SEALED_PREFIX)?.split(':').nth(1),
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
}

/// A certificate as it was asked for at some time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// The generation in which it was asked for.
    pub number: u64,
    /// The chain and its sealed key.
    #[serde(flatten)]
    pub spec: Spec,
    /// The names that it is shown for.
    pub server_names: Vec<String>,
    /// From when it is good.
    pub begins_at: Timestamp,
    /// Till when.
    pub expires_at: Timestamp,
    /// The SHA-256 of the server's own certificate.
    pub fingerprint: String,
}

impl Spec {
    /// How much text it has.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.chain.len() + self.key.length().0
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
    ];

    fn read(fields: &mut Reader<'_>) -> Option<Spec> {
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
        Some(Spec { chain: chain?, key: key? })
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
}
