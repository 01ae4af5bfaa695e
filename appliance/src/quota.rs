//! How many requests one principal and one network may make of each class: token buckets, per node.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use hyper::Response;
use hyper::header::{HeaderName, HeaderValue};

use crate::api::problem::Problem;
use crate::auth::Principal;
use crate::bucket::{Quota, Standing, Table, whole_seconds};
use crate::http::{Payload, Peer, Proved, network_of};
use crate::live::Live;

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

    /// Its place among the three.
    fn place(self) -> usize {
        match self {
            Self::Api => 0,
            Self::Login => 1,
            Self::Upload => 2,
        }
    }
}

/// Counts requests against the quotas.
pub(crate) struct Limiter {
    quotas: Live<Quotas>,
    /// Locked for a look-up, never over an await.
    networks: Mutex<[Table<IpAddr>; 3]>,
    /// Locked like `networks`.
    principals: Mutex<[Table<Arc<str>>; 3]>,
}

/// What an answer says of the limit nearest to being reached.
pub(crate) struct Told {
    class: Class,
    quota: Quota,
    standing: Standing,
}

impl Limiter {
    /// Nothing counted yet.
    pub(crate) fn new(quotas: Live<Quotas>) -> Self {
        let now = Instant::now();
        let networks = [(); 3].map(|()| Table::new(now));
        let principals = [(); 3].map(|()| Table::new(now));
        Self { quotas, networks: Mutex::new(networks), principals: Mutex::new(principals) }
    }

    /// Counts a request of a network, before anything else is done for it. The Unix socket has no limit: it is what is
    /// left to an operator when all else is used up.
    pub(crate) fn network(&self, class: Class, peer: &Peer) -> Option<Told> {
        if matches!(peer.proved, Proved::User(_)) {
            return None;
        }
        let quota = self.quotas.get().network[class.place()];
        let mut tables = self.networks.lock().unwrap_or_else(PoisonError::into_inner);
        let standing = tables[class.place()].take(network_of(peer.address), quota, Instant::now());
        Some(Told { class, quota, standing })
    }

    /// Counts a request of a principal; nobody in particular is counted by the network alone.
    pub(crate) fn principal(&self, class: Class, principal: &Principal, peer: &Peer) -> Option<Told> {
        if principal.role.is_none() || matches!(peer.proved, Proved::User(_)) {
            return None;
        }
        let quota = self.quotas.get().principal[class.place()];
        let mut tables = self.principals.lock().unwrap_or_else(PoisonError::into_inner);
        let standing = tables[class.place()].take(principal.id.clone(), quota, Instant::now());
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
        Err(Problem::too_many(detail, whole_seconds(self.standing.wait)))
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
        let limit = format!("\"{name}\";r={left};t={}", whole_seconds(refilled));
        for (header, value) in [(&RATE_LIMIT_POLICY, policy), (&RATE_LIMIT, limit)] {
            if let Ok(value) = HeaderValue::try_from(value) {
                response.headers_mut().insert(header.clone(), value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::http::Proved;

    #[test]
    fn classes_have_their_own_buckets() {
        let quotas = [Quota { requests: 1, window: Duration::from_secs(10) }; 3];
        let limiter = Limiter::new(Live::new(Quotas { principal: quotas, network: quotas }));
        let peer = Peer { address: IpAddr::from([192, 0, 2, 1]), proved: Proved::Nothing };
        let taken = |class| limiter.network(class, &peer).is_some_and(|told| told.check().is_ok());
        for class in [Class::Api, Class::Login, Class::Upload] {
            assert!(taken(class), "the first of {class:?}");
            assert!(!taken(class), "the second of {class:?}");
        }
    }
}
