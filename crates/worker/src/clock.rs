//! The one place of this crate that reads the wall clock.

use lightbyte_api::Timestamp;

/// The time now, in whole milliseconds.
#[must_use]
pub fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now)
}
