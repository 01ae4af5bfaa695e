//! A timeline of what the process does: spans on their threads, kept only while somebody records.
//!
//! Beside the journal's events, not among them: a span costs one relaxed load while nobody records, and no level, filter or
//! subscriber has a say.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::rt;

/// Most spans of one recording, some 6 MB; what comes after them is counted and left out.
pub const SPANS_MAX: usize = 100_000;

static RECORDING: AtomicBool = AtomicBool::new(false);
/// What was recorded; locked for a push, by who records, never over an await.
static RECORDED: Mutex<Option<Recorded>> = Mutex::new(None);

thread_local! {
    static THREAD: u64 = {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        NEXT.fetch_add(1, Relaxed)
    };
}

/// A span that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    /// What was done; a name of the code, never data.
    pub name: &'static str,
    /// The thread on which it ended.
    pub thread: u64,
    /// Of work that waits for others: what tells it from other such work. It is on no thread in particular.
    pub task: Option<u64>,
    /// Begin, in microseconds since the recording began.
    pub begun_us: u64,
    /// Length, in microseconds.
    pub took_us: u64,
}

/// A recording.
#[derive(Debug)]
pub struct Recorded {
    begun: tokio::time::Instant,
    /// In the order in which they ended.
    pub spans: Vec<Done>,
    /// Names of the threads.
    pub threads: BTreeMap<u64, String>,
    /// Spans beyond [`SPANS_MAX`].
    pub omitted: u64,
}

/// Records until it is finished or dropped.
#[derive(Debug)]
pub struct Recording {
    finished: bool,
}

impl Recording {
    /// Begins to record; `None` while another recording runs.
    #[must_use]
    pub fn begin() -> Option<Self> {
        let mut recorded = lock();
        if recorded.is_some() {
            return None;
        }
        let (spans, threads) = (Vec::new(), BTreeMap::new());
        *recorded = Some(Recorded { begun: rt::instant(), spans, threads, omitted: 0 });
        RECORDING.store(true, Relaxed);
        Some(Self { finished: false })
    }

    /// Ends it.
    #[must_use]
    pub fn finish(mut self) -> Option<Recorded> {
        self.finished = true;
        RECORDING.store(false, Relaxed);
        lock().take()
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        // Once finished, what there is belongs to the next.
        if !self.finished {
            RECORDING.store(false, Relaxed);
            lock().take();
        }
    }
}

/// A span that runs until it is dropped.
#[derive(Debug)]
#[must_use = "a span lasts until it is dropped"]
pub struct Span(Option<Running>);

#[derive(Debug)]
struct Running {
    name: &'static str,
    task: Option<u64>,
    begun: tokio::time::Instant,
}

/// Work of this thread. Never held over an await.
pub fn span(name: &'static str) -> Span {
    begin(name, false)
}

/// Work that waits for others meanwhile, such as a request.
pub fn task(name: &'static str) -> Span {
    begin(name, true)
}

fn begin(name: &'static str, is_task: bool) -> Span {
    static NEXT_TASK: AtomicU64 = AtomicU64::new(1);
    Span(RECORDING.load(Relaxed).then(|| Running {
        name,
        task: is_task.then(|| NEXT_TASK.fetch_add(1, Relaxed)),
        begun: rt::instant(),
    }))
}

impl Span {
    /// Gives it the name that is only known now.
    pub fn rename(&mut self, name: &'static str) {
        if let Some(running) = &mut self.0 {
            running.name = name;
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        let Some(Running { name, task, begun }) = self.0.take() else { return };
        let took = begun.elapsed();
        let mut recorded = lock();
        // It may have begun in an earlier recording, or end after the last one.
        let Some(recorded) = recorded.as_mut().filter(|r| begun >= r.begun) else { return };
        if recorded.spans.len() >= SPANS_MAX {
            recorded.omitted += 1;
            return;
        }
        let thread = THREAD.with(|thread| *thread);
        recorded.threads.entry(thread).or_insert_with(|| std::thread::current().name().unwrap_or("unnamed").to_owned());
        let us = |d: std::time::Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
        let begun_us = us(begun.duration_since(recorded.begun));
        recorded.spans.push(Done { name, thread, task, begun_us, took_us: us(took) });
    }
}

fn lock() -> MutexGuard<'static, Option<Recorded>> {
    RECORDED.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The one test that records: the recording is the process's.
    #[test]
    fn spans_are_kept_while_somebody_records_and_only_so_many() {
        drop(span("test: before"));
        let early = span("test: begun before");
        let recording = Recording::begin().expect("nobody else records");
        assert!(Recording::begin().is_none(), "one at a time");
        drop(early);
        let mut named_late = task("test: ?");
        named_late.rename("test: task");
        std::thread::Builder::new().name("helper".into()).spawn(|| drop(span("test: span"))).unwrap().join().unwrap();
        drop(named_late);
        for _ in 0..SPANS_MAX {
            drop(span("test: many"));
        }
        let recorded = recording.finish().expect("a recording");
        // Other tests of this process record what they do meanwhile.
        let ours: Vec<_> = recorded.spans.iter().filter(|s| s.name.starts_with("test: ")).collect();
        assert_eq!((ours[0].name, ours[0].task), ("test: span", None), "in the order in which they ended");
        assert_eq!(recorded.threads.get(&ours[0].thread).map(String::as_str), Some("helper"));
        assert!(ours[1].name == "test: task" && ours[1].task.is_some(), "{:?}", ours[1]);
        assert_eq!(recorded.spans.len(), SPANS_MAX, "the bound");
        assert!(recorded.omitted >= 2, "{} are counted beyond it", recorded.omitted);
        drop(span("test: after"));
        drop(Recording::begin().expect("the first is over"));
        drop(Recording::begin().expect("dropped, it is over too"));
    }
}
