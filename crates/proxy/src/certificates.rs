//! Certificates of a topology, ready to be shown, and which one a client sees.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use lightbyte_api::topology::{Certificate, Problem};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::table::Table;

/// Certificates in a chain. Real ones have two to four.
const CHAIN_MAX: usize = 16;

/// By server name.
#[derive(Debug, Default)]
pub(crate) struct Certificates {
    by_name: HashMap<String, Arc<CertifiedKey>>,
    first: Option<Arc<CertifiedKey>>,
}

impl Certificates {
    /// Parses all and sees that keys fit.
    pub(crate) fn compile(certificates: &[Certificate]) -> Result<Certificates, Problem> {
        let mut compiled = Certificates::default();
        for (index, certificate) in certificates.iter().enumerate() {
            let problem = |what: String| Problem { path: format!("certificates[{index}]"), what };
            let key = Arc::new(certified(certificate).map_err(problem)?);
            compiled.first.get_or_insert_with(|| key.clone());
            for name in &certificate.server_names {
                // The first that names it, as everywhere in a topology.
                compiled.by_name.entry(name.clone()).or_insert_with(|| key.clone());
            }
        }
        Ok(compiled)
    }

    /// The certificate for a client: by the whole name, by the domain above it, or the first.
    pub(crate) fn choose(&self, server_name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let by_name = |name: &str| self.by_name.get(name).cloned();
        let named = server_name.and_then(|name| {
            let above = name.split_once('.').map(|(_, domain)| format!("*.{domain}"));
            by_name(name).or_else(|| by_name(&above?))
        });
        named.or_else(|| self.first.clone())
    }
}

fn certified(certificate: &Certificate) -> Result<CertifiedKey, String> {
    let chain: Result<Vec<CertificateDer<'static>>, _> =
        CertificateDer::pem_slice_iter(certificate.chain_pem.as_bytes()).take(CHAIN_MAX + 1).collect();
    let chain = chain.map_err(|error| format!("its chain is not PEM: {error}"))?;
    if chain.is_empty() || chain.len() > CHAIN_MAX {
        return Err(format!("its chain has {} certificates, not 1 to {CHAIN_MAX}", chain.len()));
    }
    // Of the key the error's text is not passed on: it might tell of the key.
    let key = PrivateKeyDer::from_pem_slice(certificate.key_pem.reveal().as_bytes())
        .map_err(|_| "its key is not PEM, or none that is known".to_owned())?;
    CertifiedKey::from_der(chain, key, &ring::default_provider())
        .map_err(|error| format!("certificate and key are not usable together: {error}"))
}

/// Asks the table that holds now, so a new certificate needs neither a restart nor a new listener.
#[derive(Debug)]
pub(crate) struct Resolver {
    pub(crate) table: Arc<ArcSwap<Table>>,
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.table.load().certificates.choose(hello.server_name())
    }
}
