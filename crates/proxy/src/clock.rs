//! Time since the process began, which is what limits and health count in: it is never set back.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Time since the first call.
pub(crate) fn now() -> Duration {
    BEGAN.elapsed()
}

/// The same in milliseconds.
pub(crate) fn now_ms() -> u64 {
    u64::try_from(now().as_millis()).unwrap_or(u64::MAX)
}
