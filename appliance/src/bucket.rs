//! Token buckets: so much of something may happen in a time, for each of many.
//!
//! A bucket holds the quota and refills evenly over its window. It is kept as one number, the time at which it will be full
//! again (the generic cell rate algorithm): a bucket that is full is as good as none, so dropping it loses nothing, which
//! is what bounds the tables.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Buckets of a table. When all are in use, those that come new share one.
const BUCKETS_MAX: usize = 16_384;
/// How often a full table is searched for buckets that can go.
const SEARCH_INTERVAL: Duration = Duration::from_secs(1);

/// So many requests in a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Quota {
    /// Requests; all of them may come at once.
    pub(crate) requests: u32,
    /// Time in which as many may come again, whole seconds.
    pub(crate) window: Duration,
}

/// Where a bucket stands after a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    /// How long until the request would be let through; zero: it is.
    pub(crate) wait: Duration,
    /// Requests left.
    pub(crate) left: u32,
    /// Until the bucket is full again.
    pub(crate) refilled: Duration,
}

impl Quota {
    /// Time in which one request comes back.
    fn interval(self) -> Duration {
        self.window / self.requests.max(1)
    }

    /// How long until a bucket that will be full at `full_at` has a request; zero: it has.
    fn wait(self, full_at: Instant, now: Instant) -> Duration {
        (full_at.saturating_duration_since(now) + self.interval()).saturating_sub(self.window)
    }

    /// Takes one request of a bucket that will be full at `full_at`.
    fn take(self, full_at: &mut Instant, now: Instant) -> Standing {
        // It may have been taken from under another quota; it is never emptier than empty.
        *full_at = (*full_at).min(now + self.window);
        let missing = full_at.saturating_duration_since(now);
        let wait = self.wait(*full_at, now);
        if !wait.is_zero() {
            return Standing { wait, left: 0, refilled: missing };
        }
        let after = missing + self.interval();
        *full_at = now + after;
        let left = (self.window - after).as_nanos() / self.interval().as_nanos().max(1);
        Standing { wait, left: u32::try_from(left).unwrap_or(u32::MAX), refilled: after }
    }
}

/// When each bucket will be full again.
pub(crate) struct Table<K> {
    buckets: HashMap<K, Instant>,
    /// For all that found no place.
    shared: Instant,
    searched: Instant,
}

impl<K: Hash + Eq> Table<K> {
    /// All buckets full.
    pub(crate) fn new(now: Instant) -> Self {
        Self { buckets: HashMap::new(), shared: now, searched: now }
    }

    /// Takes one request of a bucket, if it has one.
    pub(crate) fn take(&mut self, key: K, quota: Quota, now: Instant) -> Standing {
        if let Some(full_at) = self.buckets.get_mut(&key) {
            return quota.take(full_at, now);
        }
        if self.buckets.len() >= BUCKETS_MAX && now.saturating_duration_since(self.searched) >= SEARCH_INTERVAL {
            self.searched = now;
            self.buckets.retain(|_, full_at| *full_at > now);
        }
        if self.buckets.len() >= BUCKETS_MAX {
            return quota.take(&mut self.shared, now);
        }
        quota.take(self.buckets.entry(key).or_insert(now), now)
    }

    /// How long until [`Table::take`] would find one; zero: it would. Takes nothing.
    pub(crate) fn wait(&self, key: &K, quota: Quota, now: Instant) -> Duration {
        let shared = || if self.buckets.len() >= BUCKETS_MAX { self.shared } else { now };
        quota.wait(self.buckets.get(key).copied().unwrap_or_else(shared), now)
    }
}

/// Whole seconds, rounded up: for `Retry-After`.
pub(crate) fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quota(requests: u32, seconds: u64) -> Quota {
        Quota { requests, window: Duration::from_secs(seconds) }
    }

    /// 60 seconds, 50 principals, each asking twice as often as it may: what is let through is what is configured.
    #[test]
    fn what_is_let_through_is_what_is_configured() {
        let (limit, start) = (quota(100, 10), Instant::now());
        let mut table = Table::new(start);
        let mut granted = vec![0u32; 50];
        for tick in 0..1200u64 {
            let now = start + Duration::from_millis(50 * tick);
            for (name, granted) in granted.iter_mut().enumerate() {
                *granted += u32::from(table.take(name, limit, now).wait.is_zero());
            }
        }
        // The bucket's content at once, and 10 a second.
        for granted in granted {
            assert!((665..=735).contains(&granted), "{granted} requests in 60 s, of 100 + 600 +- 5 %");
        }
    }

    #[test]
    fn a_bucket_says_where_it_stands() {
        let (limit, now) = (quota(4, 8), Instant::now());
        let mut full_at = now;
        for left in [3, 2, 1, 0] {
            let standing = limit.take(&mut full_at, now);
            assert_eq!((standing.wait, standing.left), (Duration::ZERO, left));
        }
        let refused = limit.take(&mut full_at, now);
        assert_eq!(refused, Standing { wait: Duration::from_secs(2), left: 0, refilled: Duration::from_secs(8) });
        assert!(limit.take(&mut full_at, now + Duration::from_millis(1999)).wait > Duration::ZERO, "too early");
        assert!(limit.take(&mut full_at, now + Duration::from_secs(2)).wait.is_zero(), "one came back");
        assert_eq!(limit.take(&mut full_at, now + Duration::from_secs(60)).left, 3, "and never more than all");
    }

    #[test]
    fn a_bucket_goes_over_to_another_quota() {
        let (before, after, now) = (quota(1, 3600), quota(10, 1), Instant::now());
        let mut full_at = now;
        assert!(before.take(&mut full_at, now).wait.is_zero(), "the one request of an hour");
        let refused = after.take(&mut full_at, now).wait;
        assert_eq!(refused, Duration::from_millis(100), "ten a second: the next comes in a tenth, not in an hour");
        assert!(after.take(&mut full_at, now + refused).wait.is_zero(), "and is taken then");
    }

    #[test]
    fn tables_are_bounded_and_lose_nothing() {
        let (limit, now) = (quota(1, 10), Instant::now());
        let mut table = Table::new(now);
        for key in 0..BUCKETS_MAX {
            assert!(table.take(key, limit, now).wait.is_zero(), "each its own");
        }
        assert!(table.take(BUCKETS_MAX, limit, now).wait.is_zero(), "the first of the rest");
        assert!(!table.take(BUCKETS_MAX + 1, limit, now).wait.is_zero(), "they share one bucket");
        assert!(!table.take(7, limit, now).wait.is_zero(), "those before keep theirs");
        assert_eq!(table.buckets.len(), BUCKETS_MAX);
        let later = now + Duration::from_secs(11);
        assert!(table.take(BUCKETS_MAX + 2, limit, later).wait.is_zero(), "full buckets make room");
        assert_eq!(table.buckets.len(), 1);
    }
}
