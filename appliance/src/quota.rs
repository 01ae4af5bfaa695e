//! How many requests one principal and one network may make of each class: token buckets, per node.
//!
//! A bucket holds the quota and refills evenly over its window. It is kept as one number, the time at which it will be full
//! again (the generic cell rate algorithm): a bucket that is full is as good as none, so dropping it loses nothing, which
//! is what bounds the tables.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper::Response;
use hyper::header::{HeaderName, HeaderValue};

use crate::api::problem::Problem;
use crate::auth::Principal;
use crate::http::{Payload, Peer, Proved, network_of};

/// Buckets of a table. When all are in use, those that come new share one.
const BUCKETS_MAX: usize = 16_384;
/// How often a full table is searched for buckets that can go.
const SEARCH_INTERVAL: Duration = Duration::from_secs(1);
static RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
static RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// What a request is, for its limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Class {
    /// Any other.
    Api,
    /// A password is checked.
    Login,
    /// Values are brought.
    Upload,
}

/// So many requests in a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Quota {
    /// Requests; all of them may come at once.
    pub(crate) requests: u32,
    /// Time in which as many may come again, whole seconds.
    pub(crate) window: Duration,
}

/// The quotas of each class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Quotas {
    /// Of one principal: [`Class::Api`], [`Class::Login`], [`Class::Upload`].
    pub(crate) principal: [Quota; 3],
    /// Of one network.
    pub(crate) network: [Quota; 3],
}

impl Class {
    fn name(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Login => "login",
            Self::Upload => "upload",
        }
    }

    fn of(self, quotas: &[Quota; 3]) -> Quota {
        match self {
            Self::Api => quotas[0],
            Self::Login => quotas[1],
            Self::Upload => quotas[2],
        }
    }
}

/// Where a bucket stands after a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Standing {
    /// How long until the request would be let through; zero: it is.
    wait: Duration,
    /// Requests left.
    left: u32,
    /// Until the bucket is full again.
    refilled: Duration,
}

impl Quota {
    /// Time in which one request comes back.
    fn interval(self) -> Duration {
        self.window / self.requests.max(1)
    }

    /// Takes one request of a bucket that will be full at `full_at`.
    fn take(self, full_at: &mut Instant, now: Instant) -> Standing {
        let missing = full_at.saturating_duration_since(now);
        let after = missing + self.interval();
        let wait = after.saturating_sub(self.window);
        if !wait.is_zero() {
            return Standing { wait, left: 0, refilled: missing };
        }
        *full_at = now + after;
        let left = (self.window - after).as_nanos() / self.interval().as_nanos().max(1);
        Standing { wait, left: u32::try_from(left).unwrap_or(u32::MAX), refilled: after }
    }
}

/// When each bucket will be full again.
struct Table<K> {
    buckets: HashMap<(K, Class), Instant>,
    /// For all that found no place.
    shared: HashMap<Class, Instant>,
    searched: Instant,
}

impl<K: Hash + Eq> Table<K> {
    fn new(now: Instant) -> Self {
        Self { buckets: HashMap::new(), shared: HashMap::new(), searched: now }
    }

    fn take(&mut self, key: K, class: Class, quota: Quota, now: Instant) -> Standing {
        let key = (key, class);
        if let Some(full_at) = self.buckets.get_mut(&key) {
            return quota.take(full_at, now);
        }
        if self.buckets.len() >= BUCKETS_MAX && now.saturating_duration_since(self.searched) >= SEARCH_INTERVAL {
            self.searched = now;
            self.buckets.retain(|_, full_at| *full_at > now);
        }
        if self.buckets.len() >= BUCKETS_MAX {
            return quota.take(self.shared.entry(class).or_insert(now), now);
        }
        quota.take(self.buckets.entry(key).or_insert(now), now)
    }
}

/// Counts requests against the quotas.
pub(crate) struct Limiter {
    quotas: Quotas,
    /// Locked for a look-up, never over an await.
    networks: Mutex<Table<IpAddr>>,
    /// Locked like `networks`.
    principals: Mutex<Table<Arc<str>>>,
}

/// What an answer says of the limit nearest to being reached.
pub(crate) struct Told {
    class: Class,
    quota: Quota,
    standing: Standing,
}

impl Limiter {
    /// Nothing counted yet.
    pub(crate) fn new(quotas: Quotas) -> Self {
        let now = Instant::now();
        Self { quotas, networks: Mutex::new(Table::new(now)), principals: Mutex::new(Table::new(now)) }
    }

    /// Counts a request of a network, before anything else is done for it. The Unix socket has no limit: it is what is
    /// left to an operator when all else is used up.
    pub(crate) fn network(&self, class: Class, peer: &Peer) -> Option<Told> {
        if matches!(peer.proved, Proved::User(_)) {
            return None;
        }
        let quota = class.of(&self.quotas.network);
        let mut table = self.networks.lock().unwrap_or_else(PoisonError::into_inner);
        let standing = table.take(network_of(peer.address), class, quota, Instant::now());
        Some(Told { class, quota, standing })
    }

    /// Counts a request of a principal; nobody in particular is counted by the network alone.
    pub(crate) fn principal(&self, class: Class, principal: &Principal, peer: &Peer) -> Option<Told> {
        if principal.role.is_none() || matches!(peer.proved, Proved::User(_)) {
            return None;
        }
        let quota = class.of(&self.quotas.principal);
        let mut table = self.principals.lock().unwrap_or_else(PoisonError::into_inner);
        let standing = table.take(principal.id.clone(), class, quota, Instant::now());
        Some(Told { class, quota, standing })
    }
}

impl Told {
    /// 429 when the quota is used up.
    pub(crate) fn check(&self) -> Result<(), Problem> {
        if self.standing.wait.is_zero() {
            return Ok(());
        }
        let detail = match self.class {
            Class::Api => "too many requests; see RateLimit-Policy for how many are taken",
            Class::Login => "too many logins; see RateLimit-Policy for how many are taken",
            Class::Upload => "too many requests that bring values; see RateLimit-Policy for how many are taken",
        };
        Err(Problem::too_many(detail, seconds(self.standing.wait)))
    }

    /// The one that says more: the one with the smaller part left.
    pub(crate) fn nearer(a: Option<Self>, b: Option<Self>) -> Option<Self> {
        let part = |t: &Self| f64::from(t.standing.left) / f64::from(t.quota.requests.max(1));
        match (a, b) {
            (Some(a), Some(b)) => Some(if part(&b) < part(&a) { b } else { a }),
            (a, b) => a.or(b),
        }
    }

    /// Adds `RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers-10) once less than half is left:
    /// before that they would tell nobody anything.
    pub(crate) fn dress(&self, response: &mut Response<Payload>) {
        let Standing { left, refilled, .. } = self.standing;
        if left >= self.quota.requests / 2 && self.standing.wait.is_zero() {
            return;
        }
        let name = self.class.name();
        let policy = format!("\"{name}\";q={};w={}", self.quota.requests, self.quota.window.as_secs());
        let limit = format!("\"{name}\";r={left};t={}", seconds(refilled));
        for (header, value) in [(&RATE_LIMIT_POLICY, policy), (&RATE_LIMIT, limit)] {
            if let Ok(value) = HeaderValue::try_from(value) {
                response.headers_mut().insert(header.clone(), value);
            }
        }
    }
}

/// Whole seconds, rounded up.
fn seconds(time: Duration) -> u64 {
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
                *granted += u32::from(table.take(name, Class::Api, limit, now).wait.is_zero());
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
    fn tables_are_bounded_and_lose_nothing() {
        let (limit, now) = (quota(1, 10), Instant::now());
        let mut table = Table::new(now);
        for key in 0..BUCKETS_MAX {
            assert!(table.take(key, Class::Api, limit, now).wait.is_zero(), "each its own");
        }
        assert!(table.take(BUCKETS_MAX, Class::Api, limit, now).wait.is_zero(), "the first of the rest");
        assert!(!table.take(BUCKETS_MAX + 1, Class::Api, limit, now).wait.is_zero(), "they share one bucket");
        assert!(!table.take(7, Class::Api, limit, now).wait.is_zero(), "those before keep theirs");
        assert_eq!(table.buckets.len(), BUCKETS_MAX);
        let later = now + Duration::from_secs(11);
        assert!(table.take(BUCKETS_MAX + 2, Class::Api, limit, later).wait.is_zero(), "full buckets make room");
        assert_eq!(table.buckets.len(), 1);
    }

    #[test]
    fn classes_have_their_own_buckets() {
        let (limit, now) = (quota(1, 10), Instant::now());
        let mut table = Table::new(now);
        for class in [Class::Api, Class::Login, Class::Upload] {
            assert!(table.take("a", class, limit, now).wait.is_zero(), "{class:?}");
        }
        assert!(!table.take("a", Class::Api, limit, now).wait.is_zero(), "and each ends");
    }
}
