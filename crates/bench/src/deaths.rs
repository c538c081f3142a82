//! `deaths`: what clients see when a backend is killed, vanishes or hangs: through our proxy, haproxy and nginx at once.
//!
//! ```text
//!   machine              lb-deaths-hub                     lb-deaths-b1 … b3
//!   clients ──── br0 ── lightbyte-proxy, haproxy ×2, nginx ──── one backend each
//! ```
//!
//! All four stand in one namespace in front of the same three backends and meet the same death at the same moment. Each
//! gets [`REQUESTS`] requests in [`SECONDS`] s, started by the clock whatever became of those before; each on a
//! connection of its own. A request has failed if it has no whole answer of 200 within [`GIVE_UP`].

mod backend;
mod client;
mod ground;
mod proxies;

use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::Outcome;
use crate::bed::Bed;
use crate::figures::{Row, Samples};
use client::Seen;
use ground::Ground;
use proxies::Proxies;

pub(crate) use backend::serve;

/// What each proxy is asked, and in how many seconds.
const REQUESTS: u32 = 900;
const SECONDS: u32 = 10;

/// When the backend dies.
const DEATH_AFTER: Duration = Duration::from_secs(3);

/// When a client gives up.
const GIVE_UP: Duration = Duration::from_secs(5);

/// What took longer was slow.
const SLOW_MS: f64 = 500.0;

/// How the backend ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Death {
    /// `SIGKILL`: its kernel says so to whoever asks.
    Killed,
    /// Its link goes down: nobody says anything any more.
    Vanished,
    /// `SIGSTOP`: its kernel takes connections and requests, and nobody answers.
    Hung,
}

impl Death {
    const ALL: [Death; 3] = [Death::Killed, Death::Vanished, Death::Hung];

    const fn word(self) -> &'static str {
        match self {
            Death::Killed => "killed",
            Death::Vanished => "vanished",
            Death::Hung => "hung",
        }
    }
}

/// Measures the three deaths, one after the other.
///
/// # Errors
/// When something does not start or cannot be killed.
pub(crate) async fn measure(bed: &Bed) -> Result<Outcome> {
    if let Some(why) = ground::lacking().or_else(proxies::lacking) {
        return Ok(Outcome::Skipped(why));
    }
    let mut rows = Vec::new();
    for death in Death::ALL {
        rows.extend(one(bed, death).await.with_context(|| format!("a backend that is {}", death.word()))?);
    }
    Ok(Outcome::Measured(rows))
}

async fn one(bed: &Bed, death: Death) -> Result<Vec<Row>> {
    let mut ground = Ground::up(bed)?;
    let proxies = Proxies::start(bed, &ground).await?;
    let begun = Instant::now();
    let mut loads = JoinSet::new();
    for (name, address) in proxies.addresses() {
        loads.spawn(async move { (name, load(address, begun).await) });
    }
    sleep_until(begun + DEATH_AFTER).await;
    ground.kill(death)?;
    let mut seen = loads.join_all().await;
    seen.sort_by_key(|(name, _)| proxies.place(name));
    Ok(seen.into_iter().map(|(name, seen)| row(name, death, &seen)).collect())
}

/// All requests of one proxy, by the clock.
async fn load(address: std::net::SocketAddr, begun: Instant) -> Vec<Seen> {
    let mut requests = JoinSet::new();
    for number in 0..REQUESTS {
        sleep_until(begun + Duration::from_secs(SECONDS.into()) * number / REQUESTS).await;
        requests.spawn(client::get(address, GIVE_UP));
    }
    requests.join_all().await
}

fn row(name: &'static str, death: Death, seen: &[Seen]) -> Row {
    let whole: Samples = seen.iter().filter_map(|seen| seen.whole_ms).collect();
    let slow = seen.iter().filter_map(|seen| seen.whole_ms).filter(|ms| *ms > SLOW_MS).count();
    let slowest = seen.iter().filter_map(|seen| seen.whole_ms).fold(0.0, f64::max);
    let failed = seen.len() - whole.count();
    let remark = format!("{failed} failed, {slow} slower than 0.5 s, slowest {slowest:.0} ms");
    Row { remark, ..Row::new("deaths", format!("{}: {name}", death.word()), "ms", whole) }
}
