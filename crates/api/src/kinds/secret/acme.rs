//! Certificates that a certification authority gives to whoever shows that names lead to him (ACME, RFC 8555).

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::kinds::dnsrecord::{DOMAIN_NAME_LENGTH_MAX, is_domain_name};
use crate::reader::Reader;
use crate::topology::Challenge;

/// Where certificates come from that do not say where.
pub const DIRECTORY_DEFAULT: &str = "https://acme-v02.api.letsencrypt.org/directory";
/// Names of one certificate.
pub const NAMES_MAX: usize = 32;
/// Addresses for messages of the authority.
pub const CONTACTS_MAX: usize = 8;
/// The longest address of a directory or a person.
const TEXT_BYTES_MAX: usize = 512;
/// The label below which an authority looks for a text (RFC 8555, 8.4).
pub const CHALLENGE_LABEL: &str = "_acme-challenge";

/// A certificate is to be asked for, and again before it ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acme {
    /// The names that it is for, in lower case.
    pub names: Vec<String>,
    /// How the authority is shown that they lead here.
    #[serde(default, skip_serializing_if = "Proof::is_http")]
    pub challenge: Proof,
    /// The directory of the authority (RFC 8555, 7.1.1).
    pub directory: String,
    /// E-mail addresses that the authority may write to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub contact: Vec<String>,
}

/// How a certification authority is shown that names lead here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Proof {
    /// It asks on port 80 of each name, and proxies of a load balancer that names the secret answer (RFC 8555, 8.3).
    #[default]
    Http,
    /// It looks for a text in the cluster's zone, which the names are in (RFC 8555, 8.4).
    Dns,
}

impl Proof {
    const fn is_http(&self) -> bool {
        matches!(self, Proof::Http)
    }
}

/// A text in the zone that a certification authority looks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Text {
    /// The whole name, without a dot at its end.
    pub name: String,
    /// The text.
    pub value: String,
}

/// An account of a certification authority, with which all orders of a secret are made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// Whose it is.
    pub directory: String,
    /// Its address and key, sealed as private keys are.
    pub sealed: String,
}

/// A certificate that was ordered and has not come yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// What was asked for then.
    pub acme: Acme,
    /// Its address at the authority.
    pub url: String,
    /// The key that the certificate will fit, sealed as private keys are. Whoever leads may go on with the order.
    pub key: String,
    /// What proxies are to answer to the authority.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub challenges: Vec<Challenge>,
    /// What it is to find in the zone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub texts: Vec<Text>,
    /// When it was made, on the leader's clock.
    pub since: Timestamp,
}

/// What a certificate was ordered for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issued {
    /// What was asked for then.
    pub acme: Acme,
    /// When it came, on the leader's clock.
    pub at: Timestamp,
}

/// The last time that no certificate came.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What was asked for then.
    pub acme: Acme,
    /// Why, in words for people.
    pub because: String,
    /// When, on the leader's clock.
    pub at: Timestamp,
    /// How often in a row.
    pub times: u32,
}

impl Order {
    /// How much text it has.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let challenges = self.challenges.iter().map(|one| one.token.len() + one.answer.len());
        let texts = self.texts.iter().map(|text| text.name.len() + text.value.len());
        self.key.len() + challenges.chain(texts).sum::<usize>()
    }
}

impl Acme {
    /// Its fields.
    pub(super) fn read(fields: &mut Reader<'_>) -> Option<Acme> {
        let names: Option<Vec<String>> = fields.required("names");
        let challenge: Proof = fields.or("challenge", Proof::Http);
        let directory = fields.or("directory", DIRECTORY_DEFAULT.to_owned());
        let contact: Vec<String> = fields.or("contact", Vec::new());
        let names: Vec<String> = names?.iter().map(|name| name.to_ascii_lowercase()).collect();
        if names.is_empty() || names.len() > NAMES_MAX {
            fields.problem("names", format!("must have 1 to {NAMES_MAX} names, has {}", names.len()), None);
        }
        for (index, name) in names.iter().enumerate() {
            if let Some(wrong) = wrong_with(name, challenge) {
                fields.problem(&format!("names[{index}]"), wrong, None);
            } else if names[..index].contains(name) {
                fields.problem(&format!("names[{index}]"), "is there twice", None);
            }
        }
        if directory.len() > TEXT_BYTES_MAX || !directory.starts_with("https://") || !is_plain(&directory) {
            fields.problem("directory", "must be the https:// address of a directory of ACME", None);
        }
        if contact.len() > CONTACTS_MAX {
            fields.problem("contact", format!("has {} items, at most {CONTACTS_MAX} are allowed", contact.len()), None);
        }
        let is_address = |text: &String| text.len() <= TEXT_BYTES_MAX && text.contains('@') && is_plain(text);
        if let Some(index) = contact.iter().position(|text| !is_address(text)) {
            fields.problem(&format!("contact[{index}]"), "must be an e-mail address", None);
        }
        Some(Acme { names, challenge, directory, contact })
    }
}

fn is_plain(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Why no certificate can be had for a name in this way.
fn wrong_with(name: &str, challenge: Proof) -> Option<String> {
    let below = name.strip_prefix("*.");
    if below.is_some() && challenge == Proof::Http {
        let why = "nobody can show by HTTP that all its names lead here";
        return Some(format!("cannot be a wildcard, unless with `challenge: dns`: {why}"));
    }
    let name = below.unwrap_or(name);
    let shown_at_bytes = match challenge {
        Proof::Http => 0,
        Proof::Dns => CHALLENGE_LABEL.len() + 1,
    };
    let is_name = name.len() + shown_at_bytes <= DOMAIN_NAME_LENGTH_MAX
        && name.contains('.')
        && !name.ends_with('.')
        && !name.contains('_')
        && is_domain_name(name);
    // An address would be a name of digits alone.
    let is_address = name.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    (!is_name || is_address).then(|| "must be a DNS name with a dot in it, as `www.example.org`".to_owned())
}
