//! The one module that reads the wall clock and makes fresh identities. Everything else is handed what it says.

use lightbyte_api::{Timestamp, Uid};

/// The bits of a fresh number that its user may count up in: a plan takes its uids from neighbouring numbers.
const NEIGHBOURS_BITS: u32 = 12;

/// The time, to the millisecond: what is stored and compared.
pub(crate) fn now() -> Timestamp {
    let now = precise();
    Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now)
}

/// The time as precisely as it is known: tells two writes of equal values apart.
#[expect(clippy::disallowed_methods, reason = "this module is where the wall clock is read")]
pub(crate) fn precise() -> Timestamp {
    Timestamp::now()
}

/// A number that nobody else has (a UUID of version 7, RFC 9562), with room for neighbours.
#[expect(clippy::disallowed_methods, reason = "this module is where fresh identities are made")]
pub(crate) fn fresh() -> u128 {
    uuid::Uuid::now_v7().as_u128() & !((1 << NEIGHBOURS_BITS) - 1)
}

/// A uid that nobody else has.
pub(crate) fn fresh_uid() -> Uid {
    Uid::from_bits(fresh())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fresh_numbers_are_apart_and_times_have_milliseconds() {
        let mut numbers: Vec<u128> = (0..10_000).map(|_| fresh()).collect();
        numbers.sort_unstable();
        assert!(numbers.windows(2).all(|pair| pair[1] - pair[0] >= 1 << NEIGHBOURS_BITS));
        assert_eq!(now().subsec_nanosecond() % 1_000_000, 0);
    }
}
