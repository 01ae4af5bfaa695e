//! The writing half of the log: frames, segments, fsync. One [`Writer`] exists per log, and one thread or task uses it.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::format::{self, ENTRY_HEADER_BYTES, Record, SEGMENT_MAGIC};
use super::index::{Index, Place};
use super::stats::Counters;
use super::{EntryId, Vote, lock};
use crate::disk::{Disk, File};
use crate::error::Error;
use crate::segment::{FIRST_FRAME, FRAME_HEADER_BYTES, FrameBuilder, FrameHeader, SegmentHeader, frame_span};

/// Most bytes that the state copied to the beginning of a segment takes.
const STATE_BYTES_MAX: usize = 128;

/// Largest payload of an entry in segments of a size, in bytes.
pub(super) fn entry_bytes_max(segment_bytes: u64) -> usize {
    let usable = usize::try_from(segment_bytes - FIRST_FRAME).unwrap_or(usize::MAX);
    usable.saturating_sub(FRAME_HEADER_BYTES + STATE_BYTES_MAX + ENTRY_HEADER_BYTES)
}

/// Where a log lies.
#[derive(Clone)]
pub(super) struct Location {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) directory: PathBuf,
}

impl Location {
    pub(super) fn path(&self, number: u64) -> PathBuf {
        self.directory.join(format!("{number:016x}.wal"))
    }

    pub(super) fn sync_names(&self) -> Result<(), Error> {
        self.disk.sync_directory(&self.directory).map_err(|e| self.error("syncing", &self.directory, &e))
    }

    pub(super) fn remove(&self, number: u64) -> Result<(), Error> {
        let path = self.path(number);
        self.disk.remove(&path).map_err(|e| self.error("removing", &path, &e))
    }

    /// Makes a segment: when its header is on disk, its length and its name are too.
    pub(super) fn create(&self, header: SegmentHeader) -> Result<Segment, Error> {
        let path = self.path(header.number);
        let file = self.disk.open(&path, true).map_err(|e| self.error("making", &path, &e))?;
        if let Err(error) = self.prepare(&path, &*file, &header) {
            // Half a segment would take room that is needed elsewhere; what remains of it is cleared at the next open.
            let _ = self.disk.remove(&path);
            return Err(error);
        }
        Ok(Segment { header, file: Arc::from(file), extent: None })
    }

    fn prepare(&self, path: &Path, file: &dyn File, header: &SegmentHeader) -> Result<(), Error> {
        file.allocate(header.capacity).map_err(|e| self.error("allocating", path, &e))?;
        file.sync().map_err(|e| self.error("syncing", path, &e))?;
        self.sync_names()?;
        file.write_at(&header.encode(SEGMENT_MAGIC), 0).map_err(|e| self.error("writing", path, &e))?;
        file.sync().map_err(|e| self.error("syncing", path, &e))
    }

    pub(super) fn error(&self, doing: &str, path: &Path, error: &io::Error) -> Error {
        if error.kind() == io::ErrorKind::StorageFull {
            let free_bytes = self.disk.free_bytes(&self.directory).unwrap_or(0);
            return Error::NoRoom { free_bytes, reserve_bytes: 0 };
        }
        Error::io(format!("{doing} {} of the raft log", path.display()), error)
    }
}

/// A segment file, and the lowest and highest index of the entries that were ever written to it.
pub(super) struct Segment {
    pub(super) header: SegmentHeader,
    pub(super) file: Arc<dyn File>,
    pub(super) extent: Option<(u64, u64)>,
}

impl Segment {
    pub(super) fn holds(&mut self, index: u64) {
        let (low, high) = self.extent.unwrap_or((index, index));
        self.extent = Some((low.min(index), high.max(index)));
    }
}

/// Purges that entries stand on without their being durable, each beyond what was the end of the log. Nothing above the
/// first was acknowledged until the newest is durable.
#[derive(Debug, Clone, Copy)]
pub(super) struct Base {
    pub(super) first: EntryId,
    pub(super) newest: EntryId,
}

/// What is copied to the beginning of each segment, so that those before it can go.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Marks {
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<EntryId>,
    pub(super) purged: Option<EntryId>,
    pub(super) base: Option<Base>,
    /// Lowest segment that is needed.
    pub(super) first_segment: u64,
}

impl Marks {
    /// Takes note of a record, written or read, that is no entry.
    pub(super) fn note(&mut self, record: &Record) {
        match record {
            Record::Vote(vote) => self.vote = Some(*vote),
            Record::Committed(id) => self.committed = Some(*id),
            Record::Base(id) => {
                let first = self.base.map_or(*id, |base| base.first);
                self.base = Some(Base { first, newest: *id });
            }
            Record::Purged { mark, first_segment } => {
                self.purged = Some(*mark);
                self.first_segment = self.first_segment.max(*first_segment);
                self.base = self.base.filter(|base| base.newest.index > mark.index);
            }
            Record::Truncate(index) => {
                self.truncate(*index);
                // Below the base: what stood on it was cut when the log was opened.
                self.base = self.base.filter(|base| base.first.index < *index);
            }
            Record::Entry { .. } => {}
        }
    }

    /// Entries from `index` on are gone, and with them what was committed of them: only those that were never
    /// acknowledged here can go so.
    pub(super) fn truncate(&mut self, index: u64) {
        self.committed = self.committed.filter(|id| id.index < index);
    }

    pub(super) fn records(&self) -> impl Iterator<Item = Record> + use<> {
        let first_segment = self.first_segment;
        let purged = self.purged.map(|mark| Record::Purged { mark, first_segment });
        let vote = self.vote.map(Record::Vote);
        let base = self.base.into_iter().flat_map(|base| [base.first, base.newest]).map(Record::Base);
        vote.into_iter().chain(self.committed.map(Record::Committed)).chain(purged).chain(base)
    }
}

/// The writing half of a log. Order on disk: a frame is durable before the next segment is written to; the purge mark
/// that makes a segment needless is durable before its file goes.
pub(super) struct Writer {
    pub(super) location: Location,
    pub(super) segment_bytes: u64,
    pub(super) active: Segment,
    /// Segments that are allocated and empty, next first.
    pub(super) spares: VecDeque<Segment>,
    /// Full or sealed segments: number and extent.
    pub(super) closed: BTreeMap<u64, Option<(u64, u64)>>,
    /// Where the next frame goes.
    pub(super) offset: u64,
    pub(super) sequence: u64,
    pub(super) checksum: u32,
    pub(super) durable: u64,
    pub(super) marks: Marks,
    frame: FrameBuilder,
    entries: Vec<(EntryId, usize, u32)>,
    /// Segments up to here go after the next fsync.
    doomed: Option<u64>,
    index: Arc<Mutex<Index>>,
    counters: Arc<Counters>,
}

/// Where writing goes on after recovery.
pub(super) struct Position {
    pub(super) active: Segment,
    pub(super) spares: VecDeque<Segment>,
    pub(super) closed: BTreeMap<u64, Option<(u64, u64)>>,
    pub(super) offset: u64,
    pub(super) sequence: u64,
    pub(super) checksum: u32,
    pub(super) marks: Marks,
}

impl Writer {
    /// A writer that goes on at `at`, where everything before is durable.
    pub(super) fn new(
        (location, segment_bytes): (Location, u64),
        at: Position,
        index: Arc<Mutex<Index>>,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            location,
            segment_bytes,
            active: at.active,
            spares: at.spares,
            closed: at.closed,
            offset: at.offset,
            sequence: at.sequence,
            checksum: at.checksum,
            durable: at.sequence,
            marks: at.marks,
            frame: FrameBuilder::default(),
            entries: Vec::new(),
            doomed: None,
            index,
            counters,
        }
    }

    pub(super) fn nonce(&self) -> u64 {
        self.active.header.nonce
    }

    /// Adds a record to the frame at hand; goes on in the next segment when this one is full.
    pub(super) fn push(&mut self, record: &Record) -> Result<(), Error> {
        let span = frame_span(self.frame.payload_bytes() + record.encoded_bytes());
        if self.offset + span > self.active.header.capacity {
            self.rotate()?;
        }
        self.marks.note(record);
        if let Record::Entry { id, .. } = record {
            self.active.holds(id.index);
        }
        let offset = format::push(&mut self.frame, record, self.active.header.nonce);
        if let Record::Entry { id, payload, .. } = record {
            self.entries.push((*id, offset, format::entry_checksum(self.nonce(), id, payload)));
        }
        Ok(())
    }

    /// Writes the frame at hand and notes where its entries lie. Not yet durable.
    pub(super) fn emit(&mut self) -> Result<(), Error> {
        if self.frame.is_empty() {
            return Ok(());
        }
        let header = FrameHeader { sequence: self.sequence + 1, durable: self.durable, previous: self.checksum };
        let (checksum, bytes) = self.frame.seal(&self.active.header, &header);
        if let Err(e) = self.active.file.write_at(bytes, self.offset) {
            return Err(self.location.error("writing", &self.location.path(self.active.header.number), &e));
        }
        self.counters.wrote(bytes.len());
        let mut index = lock(&self.index);
        for (id, offset, checksum) in self.entries.drain(..) {
            let offset = self.offset + offset as u64;
            let segment = self.active.header.number;
            index.place(&id, Place { file: self.active.file.clone(), segment, offset, checksum });
        }
        index.shrink_cache();
        drop(index);
        self.sequence += 1;
        self.checksum = checksum;
        self.offset += bytes.len() as u64;
        self.frame.clear();
        Ok(())
    }

    /// Makes everything emitted durable, then removes the segments that the purge mark made needless.
    pub(super) fn sync(&mut self) -> Result<(), Error> {
        if self.durable < self.sequence {
            let synced = self.counters.timed_fsync(|| self.active.file.sync());
            synced.map_err(|e| self.location.error("syncing", &self.location.path(self.active.header.number), &e))?;
            self.durable = self.sequence;
        }
        if let Some(through) = self.doomed.take() {
            while let Some(segment) = self.closed.first_entry().filter(|segment| *segment.key() <= through) {
                self.location.remove(segment.remove_entry().0)?;
            }
            self.location.sync_names()?;
        }
        Ok(())
    }

    fn rotate(&mut self) -> Result<(), Error> {
        self.emit()?;
        self.sync()?;
        self.spare(1)?;
        let Some(next) = self.spares.pop_front() else {
            return Err(Error::Unavailable("the raft log has no segment to go on in".into()));
        };
        let full = std::mem::replace(&mut self.active, next);
        self.closed.insert(full.header.number, full.extent);
        self.offset = FIRST_FRAME;
        for record in self.marks.records() {
            self.push(&record)?;
        }
        Ok(())
    }

    /// Allocates segments until `count` are spare.
    pub(super) fn spare(&mut self, count: usize) -> Result<(), Error> {
        while self.spares.len() < count {
            let last = self.spares.back().unwrap_or(&self.active).header;
            let header = SegmentHeader { number: last.number + 1, nonce: last.nonce, capacity: self.segment_bytes };
            self.spares.push_back(self.location.create(header)?);
        }
        Ok(())
    }

    /// Allocates what entries with payloads of these sizes need, and one segment more: votes must find room when entries
    /// no longer do.
    ///
    /// # Errors
    /// [`Error::NoRoom`]; nothing was written.
    pub(super) fn reserve(&mut self, payload_bytes: impl Iterator<Item = usize>) -> Result<(), Error> {
        let mut segments = 1;
        let mut left = self.active.header.capacity - self.offset;
        let mut in_frame = self.frame.payload_bytes() + STATE_BYTES_MAX;
        for bytes in payload_bytes {
            in_frame += ENTRY_HEADER_BYTES + bytes;
            if frame_span(in_frame) > left {
                segments += 1;
                left = self.segment_bytes - FIRST_FRAME;
                in_frame = STATE_BYTES_MAX + ENTRY_HEADER_BYTES + bytes;
            }
        }
        self.spare(segments)
    }

    /// Records that state is durable up to `mark`, and dooms the segments that are needless then. With `seal`, entries
    /// above the mark move out of every segment that holds one at or below it, so that all of those go.
    ///
    /// # Errors
    /// [`Error::NoRoom`]: nothing changed; others are final.
    pub(super) fn release(&mut self, mark: EntryId, seal: bool) -> Result<(), Error> {
        let through = if seal { self.last_holding(mark.index) } else { self.last_needless(mark.index) };
        if through.is_none() && self.marks.purged == Some(mark) {
            return Ok(());
        }
        if seal && let Some(through) = through {
            self.emit()?;
            let moving: Vec<_> = {
                let index = lock(&self.index);
                let written = index.written_up_to(through).into_iter();
                written.filter(|slot| slot.id.index > mark.index).collect()
            };
            self.reserve(moving.iter().map(|slot| slot.payload_bytes + ENTRY_HEADER_BYTES))?;
            if through == self.active.header.number {
                self.spare(2)?;
                self.rotate()?;
            }
            for slot in moving {
                let payload = slot.read(self.nonce())?;
                self.push(&Record::Entry { id: slot.id, payload, moved: true })?;
            }
        }
        let first_segment = through.map_or(self.marks.first_segment, |through| through + 1);
        self.push(&Record::Purged { mark, first_segment })?;
        self.doomed = self.doomed.max(through);
        lock(&self.index).forget(mark);
        Ok(())
    }

    /// The newest segment that holds an entry at or below `index`.
    fn last_holding(&self, index: u64) -> Option<u64> {
        let closed = self.closed.iter().map(|(number, extent)| (*number, *extent));
        let all = closed.chain([(self.active.header.number, self.active.extent)]);
        all.filter(|(_, extent)| extent.is_some_and(|(low, _)| low <= index)).map(|(number, _)| number).max()
    }

    /// The newest of the closed segments that, with all before it, hold nothing above `index`.
    fn last_needless(&self, index: u64) -> Option<u64> {
        let needless = |extent: &Option<(u64, u64)>| extent.is_none_or(|(_, high)| high <= index);
        self.closed.iter().take_while(|(_, extent)| needless(extent)).last().map(|(number, _)| *number)
    }
}
