//! When an authority is asked, and when it is left alone: all on the monotonic clock, which does not jump.

use std::time::Duration;

use anyhow::{Error, anyhow};
use samovar_node::rt;
use tokio::time::Instant;

use super::super::validity::Validity;
use crate::config::ChallengeKind;

/// Pause after the first failure; four times as long after each further one. Let's Encrypt refuses a name for a time after
/// five failed validations within an hour.
const PAUSE_FIRST: Duration = Duration::from_secs(60);
/// Longest pause of our own.
const PAUSE_MAX: Duration = Duration::from_secs(6 * 3600);
/// Longest pause that an authority may ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(7 * 86_400);
/// Bounds of the rest after a certificate was got, whatever clocks say.
const REST: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(12 * 3600));

/// When to ask.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    failures: u32,
    /// What went wrong last.
    failure: Option<String>,
    /// Not before.
    next_try: Option<Instant>,
    /// The certificate in use is to be renewed then.
    renewal: Option<Instant>,
    /// When one was got.
    got: Option<Instant>,
    /// How long to rest after that.
    rest: Duration,
}

impl Schedule {
    /// Forgets failures: somebody has changed something, or asks.
    pub(super) fn clear(&mut self) {
        (self.next_try, self.failure, self.failures) = (None, None, 0);
    }

    /// Whether an authority may be asked now.
    pub(super) fn may_try(&self) -> bool {
        self.next_try.is_none_or(|at| at <= rt::instant())
    }

    /// Whether enough time has passed since a certificate was got: a clock that jumps must not order one after the other.
    pub(super) fn is_rested(&self) -> bool {
        self.got.is_none_or(|got| got + self.rest <= rt::instant())
    }

    /// The certificate in use is to be renewed in so many seconds.
    pub(super) fn due_at(&mut self, in_s: u64, life: Validity) {
        let length = Duration::from_secs(life.not_after_s.saturating_sub(life.not_before_s));
        self.rest = (length / 3).clamp(REST.0, REST.1);
        self.renewal = rt::instant().checked_add(Duration::from_secs(in_s));
    }

    /// A certificate was got.
    pub(super) fn succeeded(&mut self) {
        *self = Self { got: Some(rt::instant()), rest: REST.0, ..Self::default() };
    }

    /// Nothing was got; the authority may have said when to come again.
    pub(super) fn failed(&mut self, retry_after: Option<Duration>, why: &Error) {
        let own = PAUSE_FIRST.saturating_mul(4u32.saturating_pow(self.failures.min(8))).min(PAUSE_MAX);
        let asked = retry_after.unwrap_or_default().min(RETRY_AFTER_MAX);
        let pause = own.max(asked);
        self.failures += 1;
        self.failure = Some(format!("{why:#}"));
        self.next_try = Some(rt::instant() + pause + jitter(pause));
    }

    /// What went wrong last.
    pub(super) fn failure(&self) -> Option<Error> {
        self.failure.as_ref().map(|failure| anyhow!("{failure}"))
    }

    /// How long until the next try, if it has to wait.
    pub(super) fn wait(&self) -> Option<Duration> {
        self.next_try.map(|at| at.saturating_duration_since(rt::instant()))
    }

    /// Which of these is to be tried: the next one after each failure.
    pub(super) fn challenge(&self, kinds: &[ChallengeKind]) -> ChallengeKind {
        let at = self.failures as usize % kinds.len().max(1);
        kinds.get(at).copied().unwrap_or(ChallengeKind::Http01)
    }

    /// How long to wait before the next look, at most `longest`.
    pub(super) fn pause(&self, longest: Duration) -> Duration {
        let now = rt::instant();
        let rested = self.got.map(|got| got + self.rest);
        // A renewal that has to wait is looked at when it need not any more.
        let at = self.renewal.map(|at| at.max(self.next_try.unwrap_or(now)).max(rested.unwrap_or(now)));
        at.or(self.next_try).map_or(longest, |at| at.saturating_duration_since(now).min(longest))
    }
}

/// Up to an eighth of the pause, so that many nodes do not come back at once.
fn jitter(pause: Duration) -> Duration {
    let mut byte = [0];
    rt::fill_random(&mut byte);
    pause * u32::from(byte[0]) / 2048
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(times: u32, retry_after: Option<Duration>) -> Duration {
        let mut schedule = Schedule::default();
        (0..times).for_each(|_| schedule.failed(retry_after, &anyhow!("the authority is away")));
        schedule.wait().expect("a pause")
    }

    #[test]
    fn pauses_grow_to_a_bound_and_the_authority_can_ask_for_longer_ones() {
        let hours = |n: u64| Duration::from_secs(n * 3600);
        for (times, retry_after, least) in [
            (1, None, Duration::from_secs(60)),
            (2, None, Duration::from_secs(240)),
            (3, None, Duration::from_secs(960)),
            (9, None, hours(6)),
            (60, None, hours(6)),
            (1, Some(Duration::from_secs(5)), Duration::from_secs(60)),
            (1, Some(hours(30)), hours(30)),
            (1, Some(Duration::MAX), Duration::from_secs(7 * 86_400)),
        ] {
            let pause = failed(times, retry_after);
            // A moment has passed since; an eighth is the jitter.
            let (from, to) = (least - Duration::from_secs(1), least + least / 8);
            assert!(
                (from..=to).contains(&pause),
                "{times} failures, {retry_after:?}: {least:?} expected, got {pause:?}"
            );
        }
    }

    #[test]
    fn after_a_failure_the_next_challenge_is_tried_and_a_change_begins_anew() {
        let kinds = [ChallengeKind::Http01, ChallengeKind::TlsAlpn01];
        let mut schedule = Schedule::default();
        assert!(schedule.may_try() && schedule.challenge(&kinds) == kinds[0]);
        schedule.failed(None, &anyhow!("refused"));
        assert!(!schedule.may_try() && schedule.challenge(&kinds) == kinds[1]);
        assert_eq!(schedule.failure().map(|e| e.to_string()).as_deref(), Some("refused"));
        assert_eq!(schedule.pause(Duration::from_secs(5)), Duration::from_secs(5), "the looks go on meanwhile");
        schedule.clear();
        assert!(schedule.may_try() && schedule.challenge(&kinds) == kinds[0] && schedule.failure().is_none());
    }

    /// A clock that jumps ahead makes each new certificate look old.
    #[test]
    fn one_certificate_is_not_ordered_right_after_the_other() {
        let mut schedule = Schedule::default();
        assert!(schedule.is_rested());
        schedule.succeeded();
        schedule.due_at(0, Validity { not_before_s: 0, not_after_s: 90 * 86_400 });
        assert!(!schedule.is_rested(), "not within hours of the last one");
        assert_eq!(schedule.pause(Duration::from_secs(60)), Duration::from_secs(60), "and no turning in circles");
    }
}
