//! Rate limits of routes: one bucket, or one for each client address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Mutex;
use std::time::Duration;

use lightbyte_api::topology::{RateLimit, RateScope};

use crate::bucket::Bucket;
use crate::lock::lock;

/// Addresses with a bucket of their own, of one route. Beyond that the rest shares one: memory is bounded, and who
/// comes from many addresses gets less, not more.
const SOURCES_MAX: usize = 65_536;

/// The buckets of a route.
#[derive(Debug)]
pub(crate) struct Limiter {
    limit: RateLimit,
    buckets: Mutex<Buckets>,
}

#[derive(Debug)]
struct Buckets {
    shared: Bucket,
    by_source: HashMap<IpAddr, Bucket>,
    /// When the map was last looked through: not more than once a second, or a flood would pay for it with each request.
    swept_at: Duration,
}

impl Limiter {
    pub(crate) fn new(limit: RateLimit, now: Duration) -> Limiter {
        let shared = Bucket::full(limit.per_second, limit.burst, now);
        let buckets = Buckets { shared, by_source: HashMap::new(), swept_at: now };
        Limiter { limit, buckets: Mutex::new(buckets) }
    }

    /// Whether its buckets are for this limit.
    pub(crate) fn is_for(&self, limit: &RateLimit) -> bool {
        self.limit == *limit
    }

    /// Whether a request may pass.
    pub(crate) fn admit(&self, source: IpAddr, now: Duration) -> bool {
        let mut buckets = lock(&self.buckets);
        match self.limit.scope {
            RateScope::Route => buckets.shared.take(now),
            RateScope::Source => self.of_source(&mut buckets, whole(source), now).take(now),
        }
    }

    fn of_source<'a>(&self, buckets: &'a mut Buckets, source: IpAddr, now: Duration) -> &'a mut Bucket {
        let is_known = buckets.by_source.contains_key(&source);
        if !is_known
            && buckets.by_source.len() >= SOURCES_MAX
            && now >= buckets.swept_at + Duration::from_secs(1)
        {
            buckets.by_source.retain(|_, bucket| !bucket.is_full(now));
            buckets.swept_at = now;
        }
        if !is_known && buckets.by_source.len() >= SOURCES_MAX {
            return &mut buckets.shared;
        }
        let new = || Bucket::full(self.limit.per_second, self.limit.burst, now);
        buckets.by_source.entry(source).or_insert_with(new)
    }
}

/// One client of IPv6 has a whole /64.
fn whole(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_shares_a_bucket_shares_its_tokens() {
        let table = [
            (RateScope::Route, "10.0.0.1", "10.0.0.2", false),
            (RateScope::Source, "10.0.0.1", "10.0.0.2", true),
            (RateScope::Source, "10.0.0.1", "::ffff:10.0.0.1", false),
            (RateScope::Source, "fd00::1", "fd00::2", false),
            (RateScope::Source, "fd00::1", "fd00:0:0:1::1", true),
        ];
        for (scope, first, second, expected) in table {
            let limiter = Limiter::new(RateLimit { per_second: 1, burst: 1, scope }, Duration::ZERO);
            assert!(limiter.admit(first.parse().expect("an address"), Duration::ZERO));
            let is_admitted = limiter.admit(second.parse().expect("an address"), Duration::ZERO);
            assert_eq!(is_admitted, expected, "{scope:?} {first} {second}");
        }
    }

    #[test]
    fn addresses_without_number_share_a_bucket() {
        let limit = RateLimit { per_second: 1, burst: 1, scope: RateScope::Source };
        let limiter = Limiter::new(limit, Duration::ZERO);
        let address = |number: usize| IpAddr::from(u32::try_from(number).expect("small").to_be_bytes());
        assert!((0..SOURCES_MAX).all(|number| limiter.admit(address(number), Duration::ZERO)));
        assert!(limiter.admit(address(SOURCES_MAX), Duration::ZERO), "the shared one is still full");
        assert!(!limiter.admit(address(SOURCES_MAX + 1), Duration::ZERO));
        assert!(limiter.admit(address(SOURCES_MAX + 1), Duration::from_secs(2)), "the idle ones have gone");
    }
}
