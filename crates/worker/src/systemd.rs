//! What the agent tells systemd, if that started it (sd_notify(3)): that it is ready, and that its loop turns. Without
//! systemd nothing is told to anybody.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::Instant;

/// How often in its period the watchdog hears from a loop that turns: two words may be late.
const WORDS_PER_PERIOD: u32 = 3;

/// The watchdog that restarts an agent whose loop does not turn (systemd.service(5), `WatchdogSec`). VMs go on meanwhile.
pub(crate) struct Watchdog {
    /// How often it wants to hear from us; `None` when there is none.
    period: Option<Duration>,
    told: Instant,
}

impl Watchdog {
    /// The agent is ready: it knows its host, and listens.
    pub(crate) fn begin() -> Watchdog {
        tell(&[NotifyState::Ready]);
        let period = sd_notify::watchdog_enabled().map(|period| period / WORDS_PER_PERIOD);
        Watchdog { period, told: Instant::now() }
    }

    /// The loop turns. Gives when it has to turn again.
    pub(crate) fn turn(&mut self) -> Duration {
        let Some(period) = self.period else { return Duration::MAX };
        if self.told.elapsed() >= period / 2 {
            tell(&[NotifyState::Watchdog]);
            self.told = Instant::now();
        }
        period
    }

    /// The agent ends because it was asked to.
    pub(crate) fn end(&self) {
        tell(&[NotifyState::Stopping]);
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!("systemd cannot be told: {error}");
    }
}
