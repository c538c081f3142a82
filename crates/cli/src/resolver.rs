//! Feeds a host's resolver: follows any server's names, hands them over, and says which are the newest.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use lightbyte_api::wire::ZoneLine;
use lightbyte_dns::Dns;
use lightbyte_link::{Client, Endpoint};
use tokio::time::{Instant, sleep, timeout};

/// The pause before another server is asked.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// How long a server may be silent: they confirm twice a second, and without that names are denied for 10 s only.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// For how long nothing is confirmed before that is told: from then on unknown names are not denied any more, and before it
/// another server was found, or a cluster has begun.
const TOLD_AFTER: Duration = Duration::from_secs(10);

/// Follows one server after the other, until it is dropped.
pub(crate) async fn feed(dns: Arc<Dns>, servers: &[Endpoint]) {
    let (mut confirmed_at, mut is_told) = (Instant::now(), false);
    for server in servers.iter().cycle() {
        let mut follower = Follower { dns: Arc::clone(&dns), server, confirmed_at: None };
        let Err(problem) = follower.follow().await;
        if let Some(at) = follower.confirmed_at {
            (confirmed_at, is_told) = (at, false);
        }
        if !is_told && confirmed_at.elapsed() > TOLD_AFTER {
            is_told = true;
            tracing::warn!(%server, "no server confirms the names; those that are known are answered still: {problem:#}");
        } else {
            tracing::debug!(%server, "another server is asked for the names: {problem:#}");
        }
        sleep(RETRY_PAUSE).await;
    }
}

/// Follows one server.
struct Follower<'a> {
    dns: Arc<Dns>,
    server: &'a Endpoint,
    /// When it last confirmed anything.
    confirmed_at: Option<Instant>,
}

impl Follower<'_> {
    /// Follows it until it is of no use any more.
    async fn follow(&mut self) -> Result<std::convert::Infallible> {
        // One server, so that no time is lost on others after this moment: everything that it says is dated from here.
        let client = Client::new([self.server.clone()]);
        let holds = self.dns.status().revision;
        let after = holds.map_or_else(String::new, |revision| format!("?after={revision}"));
        let asked = Instant::now();
        let mut lines = client.lines(&format!("/v1/zone{after}")).await?;
        loop {
            let line = timeout(SILENCE_MAX, lines.next::<ZoneLine>()).await;
            match line.map_err(|_| anyhow!("it was silent for {} s", SILENCE_MAX.as_secs()))?? {
                None => bail!("it has ended the stream"),
                Some(ZoneLine::Zone(zone)) => {
                    let dns = Arc::clone(&self.dns);
                    let applied = tokio::task::spawn_blocking(move || dns.apply(&zone)).await;
                    let revision = applied.context("apply the names")?.context("apply the names")?;
                    tracing::debug!(server = %self.server, revision, "other names hold");
                }
                Some(ZoneLine::Confirmed { revision, at_ms }) => self.confirm(asked, revision, at_ms)?,
                Some(ZoneLine::Unconfirmed) => {}
            }
        }
    }

    fn confirm(&mut self, asked: Instant, revision: u64, at_ms: u64) -> Result<()> {
        let now = Instant::now();
        // Two clocks: the other one may be ahead by a moment.
        let at = asked.checked_add(Duration::from_millis(at_ms)).unwrap_or(now).min(now);
        if !self.dns.confirm(revision, at.into_std()) {
            bail!("it confirms revision {revision}, and another one holds");
        }
        if self.confirmed_at.replace(now).is_none() {
            tracing::info!(server = %self.server, revision, "the names are confirmed");
        }
        Ok(())
    }
}
