//! What the log tells of itself.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::view::FSYNC_BOUNDS;
use crate::{rt, trace};

/// Figures of a log since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Stats {
    /// Frames written.
    pub(crate) frames: u64,
    /// Bytes written, with headers and padding.
    pub(crate) bytes: u64,
    /// Fsyncs done.
    pub(crate) fsyncs: u64,
    /// The same by how long they took: one count per bound, and one for those beyond the last.
    pub(crate) fsyncs_by_time: [u64; FSYNC_BOUNDS.len() + 1],
    /// Time that they took together.
    pub(crate) fsync_time: Duration,
    /// Time that the longest one took.
    pub(crate) fsync_time_max: Duration,
    /// Age of the round under way (write, fsync, spare segment), for a watchdog: a disk that stands still may hold any of
    /// the three.
    pub(crate) write_in_flight: Option<Duration>,
    /// Segment files, spare ones too.
    pub(crate) segments: u64,
    /// Bytes of payloads in memory.
    pub(crate) cached_bytes: u64,
}

/// Counters behind [`Stats`].
#[derive(Default)]
pub(super) struct Counters {
    frames: AtomicU64,
    bytes: AtomicU64,
    fsyncs_by_time: [AtomicU64; FSYNC_BOUNDS.len() + 1],
    fsync_ns: AtomicU64,
    fsync_ns_max: AtomicU64,
    round_since: Mutex<Option<tokio::time::Instant>>,
    pub(super) segments: AtomicU64,
}

/// A round of the flusher; over when dropped.
pub(super) struct InRound<'a>(&'a Counters);

impl Drop for InRound<'_> {
    fn drop(&mut self) {
        *self.0.round_since.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Counters {
    /// A round begins that works on the disk.
    pub(super) fn round(&self) -> InRound<'_> {
        *self.round_since.lock().unwrap_or_else(PoisonError::into_inner) = Some(rt::instant());
        InRound(self)
    }

    pub(super) fn wrote(&self, bytes: usize) {
        self.frames.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn timed_fsync<T>(&self, fsync: impl FnOnce() -> T) -> T {
        let start = rt::instant();
        let span = trace::span("raft log: fsync");
        let result = fsync();
        drop(span);
        let took = start.elapsed();
        let bucket = FSYNC_BOUNDS.partition_point(|bound| *bound < took);
        self.fsyncs_by_time[bucket].fetch_add(1, Ordering::Relaxed);
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.fsync_ns.fetch_add(ns, Ordering::Relaxed);
        self.fsync_ns_max.fetch_max(ns, Ordering::Relaxed);
        result
    }

    pub(super) fn stats(&self, cached_bytes: usize) -> Stats {
        let since = *self.round_since.lock().unwrap_or_else(PoisonError::into_inner);
        let fsyncs_by_time = self.fsyncs_by_time.each_ref().map(|count| count.load(Ordering::Relaxed));
        Stats {
            frames: self.frames.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            fsyncs: fsyncs_by_time.iter().sum(),
            fsyncs_by_time,
            fsync_time: Duration::from_nanos(self.fsync_ns.load(Ordering::Relaxed)),
            fsync_time_max: Duration::from_nanos(self.fsync_ns_max.load(Ordering::Relaxed)),
            write_in_flight: since.map(|since| since.elapsed()),
            segments: self.segments.load(Ordering::Relaxed),
            cached_bytes: cached_bytes as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_has_an_age_until_it_is_over() {
        let counters = Counters::default();
        let in_round = counters.round();
        std::thread::sleep(Duration::from_millis(2));
        let age = counters.stats(0).write_in_flight;
        assert!(age >= Some(Duration::from_millis(2)), "a round of 2 ms that is not over, but its age is {age:?}");
        drop(in_round);
        assert_eq!(counters.stats(0).write_in_flight, None, "the round is over");
    }

    #[test]
    fn fsyncs_are_counted_by_their_time() {
        let counters = Counters::default();
        counters.timed_fsync(|| ());
        counters.timed_fsync(|| std::thread::sleep(FSYNC_BOUNDS[3]));
        let stats = counters.stats(0);
        let (quick, slow) = stats.fsyncs_by_time.split_at(4);
        let counted = (stats.fsyncs, slow.iter().sum::<u64>() >= 1, quick.iter().sum::<u64>() <= 1);
        assert_eq!(counted, (2, true, true), "one took longer than {:?}: {:?}", FSYNC_BOUNDS[3], stats.fsyncs_by_time);
        assert!(stats.fsync_time >= FSYNC_BOUNDS[3], "the sum holds it: {:?}", stats.fsync_time);
    }
}
