//! From queue to disk: everything that waits goes into one frame and one fsync. On a thread of its own in production, as
//! a task with a drawn latency in a simulation.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use super::format::Record;
use super::index::Index;
use super::stats::Counters;
use super::writer::Writer;
use super::{Done, EntryId, Vote, lock};
use crate::error::Error;
use crate::planted::{Bug, planted};
use crate::rt;

/// How long records that nobody waits for may stay in memory.
const LAZY: Duration = Duration::from_millis(100);

/// A change of the log, in order of its queueing.
pub(super) enum Op {
    Vote(Vote),
    Committed(EntryId),
    Truncate(u64),
    Base(EntryId),
    /// Writes nothing: whoever queued it wants to know that the disk answers.
    Ping,
    Entries {
        entries: Vec<(EntryId, Bytes)>,
        /// Index of the newest entry written or queued before.
        tail: Option<u64>,
    },
    Release {
        mark: EntryId,
        seal: bool,
    },
}

pub(super) struct Queued {
    pub(super) op: Op,
    pub(super) done: Vec<Done>,
}

/// What waits to be written, and the marks that decide about it.
#[derive(Default)]
pub(super) struct Queue {
    pub(super) ops: Vec<Queued>,
    /// Somebody waits for the fsync.
    pub(super) urgent: bool,
    closing: bool,
    lazy_due: bool,
    lazy_timer: bool,
    /// Simulation: a task is at work.
    running: bool,
    pub(super) failed: Option<Error>,
    /// Index of the newest entry written or queued, hidden or not.
    pub(super) tail: Option<u64>,
    /// State is durable up to here, as the owner said.
    pub(super) state_durable: Option<EntryId>,
    /// The purge mark that is written or queued.
    pub(super) released: Option<EntryId>,
    /// Set while newer entries stand on a purge that is not released, and then who waits for it.
    pub(super) base: Option<EntryId>,
    pub(super) held: Vec<Done>,
}

impl Queue {
    /// The empty queue of a log that was opened: its newest entry and its purge mark.
    pub(super) fn new(tail: Option<u64>, released: Option<EntryId>) -> Self {
        Self { tail, released, state_durable: released, ..Self::default() }
    }

    pub(super) fn push(&mut self, op: Op, done: Option<Done>) {
        if let (Op::Committed(id), Some(Queued { op: Op::Committed(last), .. })) = (&op, self.ops.last_mut()) {
            *last = *id;
            return;
        }
        self.urgent |= done.is_some();
        self.ops.push(Queued { op, done: done.into_iter().collect() });
    }

    fn is_due(&self) -> bool {
        self.urgent || self.closing || (self.lazy_due && !self.ops.is_empty())
    }
}

/// What callers and the flusher share. Locks are taken in the order `writer`, `queue`, index.
pub(super) struct Shared {
    pub(super) queue: Mutex<Queue>,
    wake: Condvar,
    pub(super) index: Arc<Mutex<Index>>,
    writer: Mutex<Writer>,
    pub(super) counters: Arc<Counters>,
    pub(super) nonce: u64,
}

/// A round of work taken from the queue.
struct Round {
    ops: Vec<Queued>,
    urgent: bool,
    closing: bool,
}

impl Shared {
    pub(super) fn new(queue: Queue, writer: Writer, index: Arc<Mutex<Index>>, counters: Arc<Counters>) -> Self {
        let nonce = writer.nonce();
        Self { queue: Mutex::new(queue), wake: Condvar::new(), index, writer: Mutex::new(writer), counters, nonce }
    }

    /// Lets the flusher see what was queued. In a simulation, must be called on a runtime.
    pub(super) fn kick(self: &Arc<Self>, mut queue: MutexGuard<'_, Queue>) {
        if !rt::is_simulated() {
            drop(queue);
            self.wake.notify_one();
            return;
        }
        if queue.is_due() && !queue.running {
            queue.running = true;
            drop(queue);
            rt::spawn(self.clone().flush_simulated());
        } else if !queue.ops.is_empty() && !queue.lazy_timer {
            queue.lazy_timer = true;
            drop(queue);
            let shared = self.clone();
            rt::spawn(async move {
                rt::sleep(LAZY).await;
                let mut queue = lock(&shared.queue);
                queue.lazy_timer = false;
                queue.lazy_due = true;
                shared.kick(queue);
            });
        }
    }

    /// Writes what is left and ends [`Shared::run`].
    pub(super) fn close(&self) {
        lock(&self.queue).closing = true;
        self.wake.notify_one();
    }

    /// The flusher's thread.
    pub(super) fn run(&self) {
        loop {
            let round = self.wait();
            let (urgent, closing) = (round.urgent || round.closing, round.closing);
            let _in_round = self.counters.round();
            let ops = self.write(round.ops);
            if urgent {
                self.sync(ops);
            }
            if closing {
                return;
            }
            self.prepare();
        }
    }

    async fn flush_simulated(self: Arc<Self>) {
        while let Some(round) = self.take_due() {
            let _in_round = self.counters.round();
            let mut ops = self.write(round.ops);
            if round.urgent {
                if planted(Bug::AckBeforeFsync) {
                    std::mem::take(&mut ops).into_iter().for_each(|done| done(Ok(())));
                }
                rt::sleep(rt::fsync_latency()).await;
                self.sync(ops);
            }
            self.prepare();
        }
    }

    fn wait(&self) -> Round {
        let mut queue = lock(&self.queue);
        while !queue.is_due() {
            if queue.ops.is_empty() {
                queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
            } else {
                let waited = self.wake.wait_timeout(queue, LAZY).unwrap_or_else(PoisonError::into_inner);
                queue = waited.0;
                queue.lazy_due = waited.1.timed_out();
            }
        }
        Self::take(&mut queue)
    }

    /// Takes what is due; `None`, and the task is no longer running.
    fn take_due(&self) -> Option<Round> {
        let mut queue = lock(&self.queue);
        queue.running = queue.is_due();
        queue.running.then(|| Self::take(&mut queue))
    }

    fn take(queue: &mut Queue) -> Round {
        queue.lazy_due = false;
        Round { ops: std::mem::take(&mut queue.ops), urgent: std::mem::take(&mut queue.urgent), closing: queue.closing }
    }

    /// Writes a round, not yet durable; answers who waits for its fsync.
    fn write(&self, mut ops: Vec<Queued>) -> Vec<Done> {
        if lock(&self.queue).failed.is_some() {
            self.fail(ops.drain(..).flat_map(|queued| queued.done).collect(), None);
            return Vec::new();
        }
        let mut writer = lock(&self.writer);
        let sizes = ops.iter().filter_map(|queued| match &queued.op {
            Op::Entries { entries, .. } => Some(entries.iter().map(|(_, payload)| payload.len())),
            _ => None,
        });
        let sizes: Vec<usize> = sizes.flatten().collect();
        if !sizes.is_empty() {
            match writer.reserve(sizes.into_iter()) {
                Ok(()) => {}
                Err(Error::NoRoom { .. }) if planted(Bug::FullDiskUnnoticed) => {
                    let (unwritten, rest) = ops.into_iter().partition(|o| matches!(o.op, Op::Entries { .. }));
                    ops = rest;
                    let unwritten: Vec<Queued> = unwritten;
                    unwritten.into_iter().flat_map(|queued| queued.done).for_each(|done| done(Ok(())));
                }
                Err(error @ Error::NoRoom { .. }) => self.refuse(&mut ops, &error),
                Err(error) => {
                    self.fail(ops.into_iter().flat_map(|queued| queued.done).collect(), Some(error));
                    return Vec::new();
                }
            }
        }
        let mut done = Vec::new();
        let mut ops = ops.into_iter();
        while let Some(queued) = ops.next() {
            let refusable = matches!(queued.op, Op::Release { .. });
            match write_op(&mut writer, queued.op) {
                Ok(()) => done.extend(queued.done),
                Err(error @ Error::NoRoom { .. }) if refusable => {
                    queued.done.into_iter().for_each(|done| done(Err(error.clone())));
                }
                Err(error) => {
                    done.extend(queued.done);
                    done.extend(ops.flat_map(|queued| queued.done));
                    self.fail(done, Some(error));
                    return Vec::new();
                }
            }
        }
        if let Err(error) = writer.emit() {
            self.fail(std::mem::take(&mut done), Some(error));
        }
        done
    }

    fn sync(&self, done: Vec<Done>) {
        // The queue is not locked while the disk works: callers go on queueing.
        let failed = lock(&self.queue).failed.clone();
        let synced = match failed {
            Some(error) => Err(error),
            None => lock(&self.writer).sync(),
        };
        match synced {
            Ok(()) => done.into_iter().for_each(|done| done(Ok(()))),
            Err(error) => self.fail(done, Some(error)),
        }
    }

    /// Allocates the spare segment ahead of need. Without room for it, entries are refused when they come.
    fn prepare(&self) {
        let mut writer = lock(&self.writer);
        let failed = lock(&self.queue).failed.is_some();
        if !failed && let Err(error) = writer.spare(1) {
            tracing::warn!(%error, "no spare segment for the raft log");
        }
        let segments = 1 + writer.closed.len() + writer.spares.len();
        self.counters.segments.store(segments as u64, std::sync::atomic::Ordering::Relaxed);
    }

    /// Takes entries for which there is no room back out of memory, those queued meanwhile too: they would leave a hole.
    fn refuse(&self, ops: &mut Vec<Queued>, error: &Error) {
        let mut refused = Vec::new();
        let mut queue = lock(&self.queue);
        let mut first = None;
        for list in [ops, &mut queue.ops] {
            for queued in list.extract_if(.., |queued| matches!(queued.op, Op::Entries { .. })) {
                if let Op::Entries { entries, tail } = &queued.op {
                    let index = entries.first().map_or(u64::MAX, |(id, _)| id.index);
                    first = first.filter(|(lowest, _)| *lowest <= index).or(Some((index, *tail)));
                }
                refused.extend(queued.done);
            }
        }
        if let Some((index, tail)) = first {
            lock(&self.index).truncate(index);
            queue.tail = tail;
        }
        refused.append(&mut queue.held);
        drop(queue);
        refused.into_iter().for_each(|done| done(Err(error.clone())));
    }

    /// Ends the log: whoever waits is told, and every later call is refused. A failed write or fsync is never retried,
    /// for nothing is known about the bytes that it was to make durable.
    fn fail(&self, mut waiting: Vec<Done>, error: Option<Error>) {
        let mut queue = lock(&self.queue);
        let error = match (&queue.failed, error) {
            (Some(first), _) => first.clone(),
            (None, Some(error)) => error,
            (None, None) => return,
        };
        tracing::error!(%error, "the raft log stops; restart the node when its disk is well");
        queue.failed = Some(error.clone());
        waiting.append(&mut queue.held);
        waiting.extend(queue.ops.drain(..).flat_map(|queued| queued.done));
        queue.urgent = false;
        drop(queue);
        waiting.into_iter().for_each(|done| done(Err(error.clone())));
    }
}

fn write_op(writer: &mut Writer, op: Op) -> Result<(), Error> {
    match op {
        Op::Vote(vote) => writer.push(&Record::Vote(vote)),
        Op::Committed(id) => writer.push(&Record::Committed(id)),
        Op::Truncate(index) => writer.push(&Record::Truncate(index)),
        Op::Base(id) => writer.push(&Record::Base(id)),
        Op::Ping => Ok(()),
        Op::Entries { entries, .. } => {
            entries.into_iter().try_for_each(|(id, payload)| writer.push(&Record::Entry { id, payload, moved: false }))
        }
        Op::Release { mark, seal } => writer.release(mark, seal),
    }
}
