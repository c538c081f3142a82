//! **Certificates**: what is in a chain (RFC 5280, as PEM of RFC 7468), and whether a key fits it.
//!
//! Read by whoever takes one from a person, and by whoever shows it to clients, so that both refuse the same.

#[cfg(feature = "keys")]
mod keys;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

#[cfg(feature = "keys")]
pub use keys::certified;

/// Certificates in a chain. Real ones have two to four.
pub const CHAIN_MAX: usize = 16;

/// Why a chain or its key cannot be used. It never has anything of the key in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct CertificateError {
    what: String,
}

impl CertificateError {
    fn new(what: impl Into<String>) -> CertificateError {
        CertificateError { what: what.into() }
    }
}

/// What the first certificate of a chain says, which is the server's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The DNS names that it is for, in lower case: exact ones or `*.domain`. Other names in it mean nothing here.
    pub server_names: Vec<String>,
    /// From when it is good.
    pub begins_at: Timestamp,
    /// Till when.
    pub expires_at: Timestamp,
    /// The SHA-256 of its DER form, in lower-case hexadecimal digits.
    pub fingerprint: String,
}

impl Certificate {
    /// Reads the first certificate of a chain.
    ///
    /// # Errors
    /// [`CertificateError`], when the text is no chain, or clients could not use it for any name.
    pub fn read(chain_pem: &str) -> Result<Certificate, CertificateError> {
        let chain = chain(chain_pem)?;
        let own = chain.first().ok_or_else(|| CertificateError::new("its chain is empty"))?;
        let broken = |error| CertificateError::new(format!("its first certificate cannot be read: {error}"));
        let (rest, parsed) = X509Certificate::from_der(own).map_err(|error| broken(error.to_string()))?;
        if !rest.is_empty() {
            return Err(broken("something comes after it".to_owned()));
        }
        let names = parsed.subject_alternative_name().map_err(|error| broken(error.to_string()))?;
        let dns_name = |name: &GeneralName<'_>| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            _ => None,
        };
        let server_names: Vec<String> =
            names.iter().flat_map(|names| &names.value.general_names).filter_map(dns_name).collect();
        if server_names.is_empty() {
            // RFC 6125: clients do not look at the subject for it any more.
            return Err(CertificateError::new("its first certificate names no DNS name that it is for"));
        }
        // 99991231235959Z, which stands for no end (RFC 5280, 4.1.2.5), is later than the last time that we know.
        let (first, last) = (Timestamp::MIN.as_second(), Timestamp::MAX.as_second());
        let at = |seconds: i64| {
            Timestamp::from_second(seconds.clamp(first, last)).map_err(|error| broken(error.to_string()))
        };
        Ok(Certificate {
            server_names,
            begins_at: at(parsed.validity().not_before.timestamp())?,
            expires_at: at(parsed.validity().not_after.timestamp())?,
            fingerprint: Sha256::digest(own).iter().map(|byte| format!("{byte:02x}")).collect(),
        })
    }
}

/// The same chain with nothing but its certificates: what else stands in a file is not to be stored.
///
/// # Errors
/// [`CertificateError`], when the text is no chain.
pub fn only_certificates(chain_pem: &str) -> Result<String, CertificateError> {
    let lines = |der: &CertificateDer<'_>| {
        let text = BASE64.encode(der);
        // RFC 7468, 2: lines of 64 characters. Base64 is ASCII.
        let lines: Vec<&str> =
            text.as_bytes().chunks(64).filter_map(|line| str::from_utf8(line).ok()).collect();
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
    };
    Ok(chain(chain_pem)?.iter().map(lines).collect())
}

/// The certificates of a chain, the server's own first.
fn chain(chain_pem: &str) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let chain: Result<Vec<_>, _> =
        CertificateDer::pem_slice_iter(chain_pem.as_bytes()).take(CHAIN_MAX + 1).collect();
    let chain = chain.map_err(|error| CertificateError::new(format!("its chain is not PEM: {error}")))?;
    if chain.is_empty() || chain.len() > CHAIN_MAX {
        let what = format!("its chain has {} certificates, not 1 to {CHAIN_MAX}", chain.len());
        return Err(CertificateError::new(what));
    }
    Ok(chain)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    #[test]
    fn nothing_but_certificates_is_left() {
        let (one, other) = (pem(&["a.example"]), pem(&["b.example"]));
        let key = KeyPair::generate().expect("a key").serialize_pem();
        let left = only_certificates(&format!("a comment\n{one}\n{key}{other}")).expect("a chain");
        assert_eq!(left, format!("{one}{other}").replace("\r\n", "\n"));
        assert_eq!(only_certificates(&left), Ok(left.clone()));
    }

    fn pem(names: &[&str]) -> String {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        params.not_before = time::OffsetDateTime::from_unix_timestamp(1_000).expect("a time");
        params.not_after = time::OffsetDateTime::from_unix_timestamp(2_000).expect("a time");
        params.self_signed(&KeyPair::generate().expect("a key")).expect("a certificate").pem()
    }

    #[test]
    fn names_and_times_are_those_of_the_first_certificate() {
        let chain =
            format!("{}{}", pem(&["Shop.example", "*.shop.example", "192.0.2.1"]), pem(&["other.example"]));
        let read = Certificate::read(&chain).expect("a chain");
        assert_eq!(read.server_names, ["shop.example", "*.shop.example"]);
        assert_eq!((read.begins_at.as_second(), read.expires_at.as_second()), (1_000, 2_000));
        assert_eq!(read.fingerprint.len(), 64);
    }

    #[test]
    fn what_is_no_chain_for_any_name_is_refused_in_words() {
        let check = |text: &str, expected: &str| {
            let error = Certificate::read(text).expect_err("is refused").to_string();
            assert!(error.contains(expected), "{error}");
        };
        check("", "its chain has 0 certificates, not 1 to 16");
        check(&pem(&["a.example"]).repeat(17), "its chain has 17 certificates");
        check(&pem(&["192.0.2.1"]), "names no DNS name");
        check("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "cannot be read");
        check("-----BEGIN CERTIFICATE-----\n???\n-----END CERTIFICATE-----\n", "is not PEM");
    }
}
