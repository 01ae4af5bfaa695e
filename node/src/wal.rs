//! The raft log on disk: entries, the vote, and the marks of what is committed and purged.
//!
//! A log is a directory of preallocated segment files ([`crate::segment`] has their bytes). Everything that waits is written as
//! one frame and made durable by one fsync, on a thread of the log's own. Segments are never written again once they are
//! full; they are deleted when what they hold was purged *and* the owner has said that state is durable up to there.
//!
//! What a crash may leave, and what [`Wal::open`] makes of it: a torn tail, which nobody was told is durable, is cut.
//! Everything else that is not as it was written is damage, and refused: a log that silently forgets its end makes Raft
//! elect two leaders or lose what it acknowledged. One thing cannot be told apart: damage to the newest frame alone,
//! with no frame behind it. So the marks that trail each burst of entries are written as a frame of their own soon after
//! it, and the owner compares [`Wal::last`] with the state it has.

use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::disk::Disk;
use crate::error::Error;
use crate::rt;

use flusher::{Op, Queue, Shared};
use stats::Counters;
pub(crate) use stats::Stats;
use writer::Location;

mod flusher;
mod format;
mod index;
mod recovery;
mod stats;
#[cfg(test)]
mod tests;
mod writer;

const HOW_TO_REPAIR: &str =
    "Nothing was changed. Remove this node and let it join its peers again, or restore a backup";

/// Smallest and largest size of a segment, in bytes.
const SEGMENT_BYTES: std::ops::RangeInclusive<u64> = 8 << 10..=1 << 30;

/// Name of an entry: who proposed it and where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct EntryId {
    /// Term of the leader that proposed it.
    pub(crate) term: u64,
    /// That leader.
    pub(crate) node: u64,
    /// Index in the raft log.
    pub(crate) index: u64,
}

/// For whom this node voted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Vote {
    /// The term.
    pub(crate) term: u64,
    /// The candidate.
    pub(crate) node: u64,
    /// Whether a quorum made it the leader.
    pub(crate) committed: bool,
}

/// Called once, when what it was given with is durable or will never be. Runs on the log's thread: must not block.
pub(crate) type Done = Box<dyn FnOnce(Result<(), Error>) + Send>;

/// Sizes of a log.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// Size of a segment file, in bytes; bounds the largest entry. 8 KiB to 1 GiB, a multiple of 4 KiB.
    pub(crate) segment_bytes: u64,
    /// Most bytes of written payloads kept in memory.
    pub(crate) cache_bytes_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        // Simulated disks hold them in memory, several times.
        Self { segment_bytes: if cfg!(test) { 4 << 20 } else { 16 << 20 }, cache_bytes_max: 4 << 20 }
    }
}

/// An open log. Clones are cheap and name the same log; when the last one is dropped, what is queued is written and the
/// log closed.
#[derive(Clone)]
pub(crate) struct Wal {
    handle: Arc<Handle>,
    entry_bytes_max: usize,
}

struct Handle {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.close();
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            // Who opens the log again next must find this one at rest.
            let _ = thread.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Wal {
    /// Opens the log in a directory, or makes an empty one. Blocks. In a simulation the log works on the runtime of its
    /// callers, otherwise on a thread.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when the log is damaged, with file, offset and what to do; [`Error::NoRoom`] when there is no
    /// room for a new log; [`Error::Io`].
    pub(crate) fn open(disk: Arc<dyn Disk>, directory: &Path, config: &Config) -> Result<Self, Error> {
        if !SEGMENT_BYTES.contains(&config.segment_bytes) || !config.segment_bytes.is_multiple_of(4096) {
            return Err(Error::Invalid(format!(
                "a segment of the raft log has {} to {} bytes, in steps of 4096, not {}",
                SEGMENT_BYTES.start(),
                SEGMENT_BYTES.end(),
                config.segment_bytes
            )));
        }
        let counters = Arc::new(Counters::default());
        let location = Location { disk, directory: directory.to_owned() };
        let opened = recovery::open(location, config, counters.clone())?;
        let released = lock(&opened.index).purged;
        let queue = Queue::new(opened.tail, released);
        let shared = Arc::new(Shared::new(queue, opened.writer, opened.index, counters));
        let thread = if rt::is_simulated() {
            None
        } else {
            let flusher = shared.clone();
            let spawned = std::thread::Builder::new().name("raft-log".into()).spawn(move || flusher.run());
            Some(spawned.map_err(|e| Error::io("starting the thread of the raft log", &e))?)
        };
        let entry_bytes_max = writer::entry_bytes_max(config.segment_bytes);
        Ok(Self { handle: Arc::new(Handle { shared, thread }), entry_bytes_max })
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.handle.shared
    }

    fn queue(&self) -> Result<MutexGuard<'_, Queue>, Error> {
        let queue = lock(&self.shared().queue);
        match &queue.failed {
            Some(error) => Err(error.clone()),
            None => Ok(queue),
        }
    }

    /// The newest vote saved.
    pub(crate) fn vote(&self) -> Option<Vote> {
        lock(&self.shared().index).vote
    }

    /// The newest committed mark saved; at startup, of what is on disk.
    pub(crate) fn committed(&self) -> Option<EntryId> {
        lock(&self.shared().index).committed
    }

    /// The purge mark: entries up to here are hidden.
    pub(crate) fn purged(&self) -> Option<EntryId> {
        lock(&self.shared().index).purged
    }

    /// Id of the newest entry, or the purge mark when there is none.
    pub(crate) fn last(&self) -> Option<EntryId> {
        lock(&self.shared().index).last()
    }

    /// Figures for metrics and watchdog.
    pub(crate) fn stats(&self) -> Stats {
        let cached_bytes = lock(&self.shared().index).cached_bytes();
        self.shared().counters.stats(cached_bytes)
    }

    /// Calls `done` when all that was queued before is written and one more fsync has been answered.
    ///
    /// # Errors
    /// That of the write or fsync that ended the log.
    pub(crate) fn ping(&self, done: Done) -> Result<(), Error> {
        let mut queue = self.queue()?;
        queue.push(Op::Ping, Some(done));
        self.shared().kick(queue);
        Ok(())
    }

    /// Queues a vote. With `done`, it is made durable at once; without, soon and without an fsync of its own, which is
    /// enough for a vote that only learned of its quorum.
    ///
    /// # Errors
    /// That of the write or fsync that ended the log.
    pub(crate) fn save_vote(&self, vote: Vote, done: Option<Done>) -> Result<(), Error> {
        let mut queue = self.queue()?;
        lock(&self.shared().index).vote = Some(vote);
        queue.push(Op::Vote(vote), done);
        self.shared().kick(queue);
        Ok(())
    }

    /// Queues the committed mark. It becomes durable with what comes after it, or soon; losing it is harmless.
    ///
    /// # Errors
    /// That of the write or fsync that ended the log.
    pub(crate) fn save_committed(&self, id: EntryId) -> Result<(), Error> {
        let mut queue = self.queue()?;
        lock(&self.shared().index).committed = Some(id);
        queue.push(Op::Committed(id), None);
        self.shared().kick(queue);
        Ok(())
    }

    /// Queues entries, in ascending order and above all others; they can be read when this returns (those up to the purge
    /// mark are hidden like the rest). Holes are the caller's: openraft's own suite makes some. `done` is called
    /// when they are durable, or could not be made so. Entries that stand on a purge beyond the end of the log (a
    /// snapshot was installed) are acknowledged only once that is released: until then a crash could leave them without
    /// what is below. Bounded by the caller: openraft has one append in flight.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::Invalid`], or that of the write or fsync that ended the log; then nothing was
    /// queued and `done` is not called. `done` is given [`Error::NoRoom`] on a full disk: the entries are taken back,
    /// and the log can go on.
    pub(crate) fn append(&self, entries: Vec<(EntryId, Bytes)>, done: Done) -> Result<(), Error> {
        self.check_sizes(&entries)?;
        let mut queue = self.queue()?;
        let mut index = lock(&self.shared().index);
        let purged = index.purged;
        let tail = queue.tail;
        let mut newest = tail;
        for (id, _) in &entries {
            if newest.is_some_and(|newest| newest >= id.index) {
                return Err(Error::Invalid(format!("entry {} is not above the end of the raft log", id.index)));
            }
            newest = Some(id.index);
        }
        let unreleased = purged.filter(|mark| queue.released.is_none_or(|released| released.index < mark.index));
        let stands_on = |mark: &EntryId| tail < Some(mark.index) && newest > Some(mark.index);
        if let Some(mark) = unreleased.filter(stands_on) {
            queue.base = Some(mark);
            queue.push(Op::Base(mark), None);
        }
        entries.iter().for_each(|(id, payload)| index.push(*id, payload.clone()));
        drop(index);
        queue.tail = newest;
        let held = queue.base.is_some();
        queue.push(Op::Entries { entries, tail }, None);
        queue.urgent = true;
        if held {
            queue.held.push(done);
        } else if let Some(last) = queue.ops.last_mut() {
            last.done.push(done);
        }
        self.shared().kick(queue);
        Ok(())
    }

    fn check_sizes(&self, entries: &[(EntryId, Bytes)]) -> Result<(), Error> {
        let limit = self.entry_bytes_max;
        match entries.iter().find(|(_, payload)| payload.len() > limit) {
            Some((_, payload)) => {
                Err(Error::TooLarge { what: "raft log entry", size: payload.len() as u64, limit: limit as u64 })
            }
            None => Ok(()),
        }
    }

    /// Removes entries from `index` on. Durable before anything queued after it.
    ///
    /// # Errors
    /// That of the write or fsync that ended the log.
    pub(crate) fn truncate(&self, index: u64) -> Result<(), Error> {
        let mut queue = self.queue()?;
        if queue.tail.is_none_or(|tail| tail < index) {
            return Ok(());
        }
        lock(&self.shared().index).truncate(index);
        queue.tail = index.checked_sub(1);
        queue.push(Op::Truncate(index), None);
        self.shared().kick(queue);
        Ok(())
    }

    /// Hides entries up to `mark` and returns at once. Only [`Wal::release`] makes that durable: a crash before brings
    /// back the mark and the entries that were there.
    ///
    /// # Errors
    /// That of the write or fsync that ended the log.
    pub(crate) fn purge(&self, mark: EntryId) -> Result<(), Error> {
        let mut queue = self.queue()?;
        lock(&self.shared().index).purge(mark);
        if let Some(mark) = self.releasable(&queue)
            && queue.released.is_none_or(|released| released.index < mark.index)
        {
            self.queue_release(&mut queue, mark, false, None);
        }
        self.shared().kick(queue);
        Ok(())
    }

    /// The owner says that its state is durable up to `upto`, in whatever order with [`Wal::purge`]: what is purged up to
    /// there becomes durable and its segments are deleted. With `seal`, every file that holds an entry purged so is
    /// deleted, what else it holds being moved; without, files go when nothing above the mark is in them. `done` is
    /// called when the files are gone.
    ///
    /// # Errors
    /// That of the write or fsync that ended the log. `done` is given [`Error::NoRoom`] when there is no room to move
    /// entries to; nothing changed then.
    pub(crate) fn release(&self, upto: EntryId, seal: bool, done: Done) -> Result<(), Error> {
        let mut queue = self.queue()?;
        if queue.state_durable.is_none_or(|durable| durable.index < upto.index) {
            queue.state_durable = Some(upto);
        }
        match self.releasable(&queue) {
            Some(mark) => self.queue_release(&mut queue, mark, seal, Some(done)),
            None => {
                drop(queue);
                done(Ok(()));
                return Ok(());
            }
        }
        self.shared().kick(queue);
        Ok(())
    }

    /// Up to where the purge mark may become durable.
    fn releasable(&self, queue: &Queue) -> Option<EntryId> {
        let purged = lock(&self.shared().index).purged?;
        let durable = queue.state_durable?;
        Some(if purged.index <= durable.index { purged } else { durable })
    }

    fn queue_release(&self, queue: &mut Queue, mark: EntryId, seal: bool, done: Option<Done>) {
        queue.push(Op::Release { mark, seal }, done);
        queue.released = Some(mark);
        if queue.base.is_some_and(|base| base.index <= mark.index) {
            queue.base = None;
            let held = std::mem::take(&mut queue.held);
            queue.urgent |= !held.is_empty();
            if let Some(last) = queue.ops.last_mut() {
                last.done.extend(held);
            }
        }
    }

    /// Reads the entries of a range that exist, in order: as many as come to `bytes_max` of payload, and at least one.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when an entry is no longer what was written, [`Error::Io`].
    pub(crate) async fn read(&self, range: Range<u64>, bytes_max: usize) -> Result<Vec<(EntryId, Bytes)>, Error> {
        let slots = lock(&self.shared().index).range(range, bytes_max);
        let nonce = self.shared().nonce;
        let read_all = move |slots: Vec<index::Slot>| {
            slots.iter().map(|slot| Ok((slot.id, slot.read(nonce)?))).collect::<Result<Vec<_>, Error>>()
        };
        if slots.iter().all(index::Slot::is_cached) {
            return read_all(slots);
        }
        let read = rt::blocking(move || read_all(slots)).await;
        read.map_err(|e| Error::Unavailable(format!("reading the raft log was given up: {e}")))?
    }
}
