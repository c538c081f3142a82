//! Certificates of a topology, ready to be shown, and which one a client sees.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use lightbyte_api::topology::{Certificate, Problem};
use lightbyte_certificate::certified;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::table::Table;

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
            let key = certified(&certificate.chain_pem, certificate.key_pem.reveal());
            let key = Arc::new(key.map_err(|error| problem(error.to_string()))?);
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
