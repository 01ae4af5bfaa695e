//! Wrong credentials cost their sender: a bucket of failures per network.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::api::problem::Problem;
use crate::http::network_of;

/// Failures that one network may cause at once; then one per second.
const FAILURES_MAX: f64 = 30.0;
/// Networks whose failures are remembered; beyond, unknown credentials are refused unseen until some are forgotten.
const NETWORKS_MAX: usize = 4096;

/// The buckets.
#[derive(Default)]
pub(super) struct Failures {
    /// Locked for a look-up, never over an await.
    buckets: Mutex<HashMap<IpAddr, Bucket>>,
}

struct Bucket {
    left: f64,
    at: Instant,
}

impl Failures {
    /// Refuses to look at credentials that were never seen to be good, when the network failed too often.
    pub(super) fn may_fail(&self, address: IpAddr) -> Result<(), Problem> {
        let buckets = self.lock();
        match buckets.get(&network_of(address)) {
            Some(bucket) if bucket.now() < 1.0 => Err(too_many()),
            None if buckets.len() >= NETWORKS_MAX => Err(too_many()),
            _ => Ok(()),
        }
    }

    /// Counts a failure.
    pub(super) fn failed(&self, address: IpAddr) -> Result<(), Problem> {
        let network = network_of(address);
        let mut buckets = self.lock();
        if buckets.len() >= NETWORKS_MAX {
            buckets.retain(|_, bucket| bucket.now() < FAILURES_MAX);
        }
        if buckets.len() >= NETWORKS_MAX && !buckets.contains_key(&network) {
            return Err(too_many());
        }
        let bucket = buckets.entry(network).or_insert(Bucket { left: FAILURES_MAX, at: Instant::now() });
        let left = bucket.now();
        *bucket = Bucket { left: (left - 1.0).max(0.0), at: Instant::now() };
        if left < 1.0 { Err(too_many()) } else { Ok(()) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<IpAddr, Bucket>> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bucket {
    /// What is left now: one comes back every second.
    fn now(&self) -> f64 {
        (self.left + self.at.elapsed().min(Duration::from_secs(3600)).as_secs_f64()).min(FAILURES_MAX)
    }
}

fn too_many() -> Problem {
    Problem::too_many("too many requests with wrong credentials came from this address", 1)
}
