//! Our resolver as a process: this program under another word, which is handed zones as lines on its standard input.

use std::io::BufRead as _;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};
use lightbyte_api::zone::Zone;
use lightbyte_dns::{Dns, Options};

use super::peers::ZONE;

/// Answers from the zone that came last, until no more can come.
///
/// # Errors
/// When it does not start or does not take a zone.
pub(crate) async fn resolve(listen: SocketAddr, state: &Path) -> Result<()> {
    let mut options = Options::new(ZONE, state);
    options.listen = vec![listen];
    let dns = Dns::start(options).await.context("start the resolver")?;
    tokio::task::spawn_blocking(move || {
        for line in std::io::stdin().lock().lines() {
            let asked = Instant::now();
            let zone: Zone = serde_json::from_str(&line.context("read a zone")?).context("parse a zone")?;
            let revision = dns.apply(&zone).context("apply a zone")?;
            dns.confirm(revision, asked);
        }
        Ok(())
    })
    .await
    .context("wait for the last zone")?
}
