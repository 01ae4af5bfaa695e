//! How fast a snapshot is taken in. Whoever takes one in has clients of its peers beside it, who write to disks and networks
//! that it may share with them; nobody waits for itself. So it goes on evenly, and each time that what came meanwhile must
//! be got as another snapshot, twice as fast: it arrives however much is written.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::rt;

/// The first time, in bytes a second: a ledger of a gigabyte is received in 43 s, and put in place in as many, or more if its
/// entries are small.
const BYTES_PER_SECOND: u64 = 24 << 20;
/// At most so many times as fast.
const DOUBLED_MAX: u32 = 6;
/// This much at once is as little as what any node does.
const BURST_BYTES: u64 = 8 << 20;
/// A node that took none in for so long begins as the first time.
const FORGOTTEN: Duration = Duration::from_secs(600);

/// Remembers what this node took in.
#[derive(Default)]
pub(super) struct Paces(Mutex<Option<(u32, tokio::time::Instant)>>);

impl Paces {
    fn recent(&self) -> u32 {
        let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.filter(|(_, at)| at.elapsed() < FORGOTTEN).map_or(0, |(installed, _)| installed)
    }

    /// One more was put in place.
    pub(super) fn installed(&self) {
        let installed = self.recent() + 1;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((installed, rt::instant()));
    }

    /// How fast the next one is to be taken in.
    pub(super) fn next(&self) -> Pace {
        let bytes_per_second = BYTES_PER_SECOND << self.recent().min(DOUBLED_MAX);
        Pace { bytes_per_second, due: rt::instant() }
    }
}

/// Spreads bytes over time.
pub(super) struct Pace {
    bytes_per_second: u64,
    /// When what was taken so far would be through, evenly.
    due: tokio::time::Instant,
}

impl Pace {
    /// Counts bytes; returns how long to wait before they are worked on.
    pub(super) fn take(&mut self, bytes: u64) -> Duration {
        let (now, span) =
            (rt::instant(), |bytes: u64| Duration::from_micros(bytes * 1_000_000 / self.bytes_per_second));
        let burst = span(BURST_BYTES);
        self.due = self.due.max(now) + span(bytes);
        self.due.saturating_duration_since(now).saturating_sub(burst)
    }

    /// The same within blocking work, which waits here; not in a simulation, where nobody's time passes by that.
    pub(super) fn hold_back(&mut self, bytes: u64) {
        let wait = self.take(bytes);
        if !wait.is_zero() && !rt::is_simulated() {
            std::thread::sleep(wait);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_taken_in_evenly_and_the_next_one_faster() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let paces = Paces::default();
            let takes = async |mut pace: Pace| {
                let begun = rt::instant();
                for _ in 0..100 {
                    rt::sleep(pace.take(1 << 20)).await;
                }
                begun.elapsed().as_millis()
            };
            let first = takes(paces.next()).await;
            assert!((3_700..4_200).contains(&first), "92 of 100 MiB at 24 MiB a second took {first} ms");
            paces.installed();
            let second = takes(paces.next()).await;
            assert!((1_850..2_100).contains(&second), "twice as fast: {second} ms");
            rt::sleep(FORGOTTEN).await;
            assert_eq!(takes(paces.next()).await, first, "long after, as the first time");
        });
    }
}
