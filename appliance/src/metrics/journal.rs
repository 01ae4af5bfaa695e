//! Counts the lines that go to the journal with a warning or an error, so that an alert can ask for them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

// There is one journal per process, and it is begun before anything else.
static ERRORS: AtomicU64 = AtomicU64::new(0);
static WARNINGS: AtomicU64 = AtomicU64::new(0);

/// Lines so far, by level.
pub(super) fn lines_by_level() -> [(&'static str, u64); 2] {
    [("error", ERRORS.load(Relaxed)), ("warn", WARNINGS.load(Relaxed))]
}

/// Sees every line that the journal's filter lets through.
pub(crate) struct CountLines;

impl<S: Subscriber> Layer<S> for CountLines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        match *event.metadata().level() {
            Level::ERROR => ERRORS.fetch_add(1, Relaxed),
            Level::WARN => WARNINGS.fetch_add(1, Relaxed),
            _ => return,
        };
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[test]
    fn warnings_and_errors_are_counted() {
        let before = lines_by_level();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(CountLines), || {
            tracing::error!("one");
            tracing::warn!("two");
            tracing::info!("not counted");
        });
        let after = lines_by_level();
        // Other tests of this process may write lines of their own meanwhile, but not into this subscriber.
        assert_eq!([after[0].1 - before[0].1, after[1].1 - before[1].1], [1, 1], "one error and one warning");
    }
}
