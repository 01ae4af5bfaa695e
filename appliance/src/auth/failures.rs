//! Wrong credentials cost their sender: a bucket of failures per network.

use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::api::problem::Problem;
use crate::bucket::{Quota, Table, whole_seconds};
use crate::http::network_of;

/// Failures that one network may have: 30 at once, and one more a second.
const FAILURES: Quota = Quota { requests: 30, window: Duration::from_secs(30) };

/// The buckets. Locked for a look-up, never over an await.
pub(super) struct Failures(Mutex<Table<IpAddr>>);

impl Default for Failures {
    fn default() -> Self {
        Self(Mutex::new(Table::new(Instant::now())))
    }
}

impl Failures {
    /// 429 when the network has failed too often of late.
    pub(super) fn may_fail(&self, address: IpAddr) -> Result<(), Problem> {
        check(self.lock().wait(&network_of(address), FAILURES, Instant::now()))
    }

    /// Counts a failure; 429 when it is one too many.
    pub(super) fn failed(&self, address: IpAddr) -> Result<(), Problem> {
        check(self.lock().take(network_of(address), FAILURES, Instant::now()).wait)
    }

    fn lock(&self) -> MutexGuard<'_, Table<IpAddr>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn check(wait: Duration) -> Result<(), Problem> {
    if wait.is_zero() {
        return Ok(());
    }
    Err(Problem::too_many("too many requests with wrong credentials came from this address", whole_seconds(wait)))
}
