//! Chains with their keys, ready to be shown.

use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::sign::CertifiedKey;

use crate::{CertificateError, chain};

/// A chain with its key, both as PEM.
///
/// # Errors
/// [`CertificateError`], when one of them cannot be read, or the key is another's.
pub fn certified(chain_pem: &str, key_pem: &str) -> Result<CertifiedKey, CertificateError> {
    let chain = chain(chain_pem)?;
    // Of the key the error's text is not passed on: it might tell of the key.
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes())
        .map_err(|_| CertificateError::new("its key is not PEM, or none that is known"))?;
    let unusable =
        |error| CertificateError::new(format!("certificate and key are not usable together: {error}"));
    let certified = CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(unusable)?;
    Ok(certified)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertifiedKey as Made, generate_simple_self_signed};

    use super::*;

    #[test]
    fn only_its_own_key_fits() {
        let made = || generate_simple_self_signed(vec!["a.example".to_owned()]).expect("a certificate");
        let (Made { cert, signing_key }, Made { signing_key: other, .. }) = (made(), made());
        assert!(certified(&cert.pem(), &signing_key.serialize_pem()).is_ok());
        let check = |key: &str, expected: &str| {
            let error = certified(&cert.pem(), key).expect_err("does not fit").to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(&other.serialize_pem(), "not usable together");
        check("nonsense", "its key is not PEM");
        check(&cert.pem(), "its key is not PEM");
    }
}
