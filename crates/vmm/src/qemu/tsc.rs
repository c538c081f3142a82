//! Speed of this machine's time stamp counter. An emulated guest sees it as its own, but has no timer to calibrate it
//! against, and hangs in its boot unless it is told.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Shortest measurement: with clock reads of well under a microsecond the error stays below 20 ppm.
const MEASURE_MIN: Duration = Duration::from_millis(50);

/// Attempts; the median wins, so that one interruption between the two reads does not matter.
const ATTEMPTS: usize = 3;

/// Measures the counter in kHz against `CLOCK_MONOTONIC_RAW`; nothing where a CPU has none. It takes 150 ms, so measure
/// once at start, and never store it: another boot of this machine may count at another speed.
#[expect(clippy::disallowed_methods, reason = "time has to pass between two readings; nothing is waited for")]
pub(super) fn measure_khz() -> Option<u64> {
    let mut speeds = [0; ATTEMPTS];
    for speed in &mut speeds {
        let (ticks, time) = read()?;
        std::thread::sleep(MEASURE_MIN);
        let (ticks_after, time_after) = read()?;
        let nanoseconds = (time_after - time).max(1);
        *speed = u128::from(ticks_after.wrapping_sub(ticks)) * 1_000_000 / nanoseconds;
    }
    speeds.sort_unstable();
    u64::try_from(speeds[ATTEMPTS / 2]).ok()
}

fn read() -> Option<(u64, u128)> {
    let time = clock_gettime(ClockId::MonotonicRaw);
    let seconds = u128::try_from(time.tv_sec).unwrap_or(0);
    Some((counter()?, seconds * 1_000_000_000 + u128::try_from(time.tv_nsec).unwrap_or(0)))
}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "reading the counter is an intrinsic")]
fn counter() -> Option<u64> {
    // SAFETY: RDTSC reads a register and exists on every x86-64 CPU; Linux leaves it allowed unless a process asked
    // otherwise (PR_SET_TSC of prctl(2)), which we do not.
    Some(unsafe { core::arch::x86_64::_rdtsc() })
}

#[cfg(not(target_arch = "x86_64"))]
fn counter() -> Option<u64> {
    None
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_agree_and_are_of_this_world() {
        let (first, second) = (measure_khz().unwrap(), measure_khz().unwrap());
        assert!((100_000..10_000_000).contains(&first), "{first}");
        assert!(
            first.abs_diff(second) * 1000 < first,
            "{first} and {second} differ by more than a thousandth"
        );
    }
}
