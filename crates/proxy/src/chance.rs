//! Numbers that look random and need no lock: for trace ids, hashes and choices, never for secrets.

use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

static SEED: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(0_u8));
static COUNTER: AtomicU64 = AtomicU64::new(0);

/// The next number. Differs between processes.
pub(crate) fn next() -> u64 {
    let counter = COUNTER.fetch_add(1, Ordering::Relaxed);
    mix(SEED.wrapping_add(counter.wrapping_mul(0x9E37_79B9_7F4A_7C15)))
}

/// Every bit of the input changes half of the output (the finisher of splitmix64).
pub(crate) const fn mix(mut number: u64) -> u64 {
    number = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    number = (number ^ (number >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    number ^ (number >> 31)
}

/// A hash that is the same in every process and version: sticky cookies and hashed choices outlive both.
pub(crate) fn stable_hash(bytes: &[u8]) -> u64 {
    let mut hash = 0xCBF2_9CE4_8422_2325_u64;
    for byte in bytes {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3);
    }
    mix(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stable_hash_is_what_it_always_was() {
        // Whoever changes these moves every client to another backend.
        assert_eq!(stable_hash(b""), mix(0xCBF2_9CE4_8422_2325));
        assert_ne!(stable_hash(b"a"), stable_hash(b"b"));
        assert_ne!(next(), next());
    }
}
