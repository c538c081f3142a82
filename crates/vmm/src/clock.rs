//! The kernel's own judgement of its clock, for `lightbyte doctor`. Nothing is set.

use std::ffi::c_int;
use std::io;
use std::time::Duration;

/// The clock as the kernel sees it (adjtimex(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelClock {
    /// Whether somebody keeps it right.
    pub is_synchronised: bool,
    /// How far off it may be at most. It grows by itself while nobody corrects the clock.
    pub error_max: Duration,
}

/// `STA_UNSYNC` (linux/timex.h).
const UNSYNCHRONISED: c_int = 0x40;
/// `TIME_ERROR` (linux/timex.h): what the call returns for a clock that nobody keeps right.
const TIME_ERROR: c_int = 5;

/// The beginning of `struct timex` (linux/timex.h), and more than the rest of its 208 bytes.
#[repr(C)]
struct Timex {
    /// What is to be set: nothing.
    modes: u32,
    offset: i64,
    frequency: i64,
    /// In microseconds.
    error_max: i64,
    error: i64,
    status: c_int,
    rest: [i64; 32],
}

#[expect(unsafe_code, reason = "the call has no safe form")]
unsafe extern "C" {
    fn adjtimex(timex: *mut Timex) -> c_int;
}

/// Asks the kernel.
///
/// # Errors
/// When it does not answer, as under some filters of system calls.
pub fn ask() -> io::Result<KernelClock> {
    let mut timex =
        Timex { modes: 0, offset: 0, frequency: 0, error_max: 0, error: 0, status: 0, rest: [0; 32] };
    #[expect(unsafe_code, reason = "the call has no safe form")]
    // SAFETY: with `modes` nought the kernel only fills in `struct timex`, which `Timex` begins as on every 64-bit
    // Linux, and is larger than.
    let state = unsafe { adjtimex(&raw mut timex) };
    if state < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(KernelClock {
        is_synchronised: state != TIME_ERROR && timex.status & UNSYNCHRONISED == 0,
        error_max: Duration::from_micros(u64::try_from(timex.error_max).unwrap_or_default()),
    })
}
