//! Opening a log: what is whole is replayed, a torn tail is cut, damage is refused.
//!
//! A segment is durable before its successor is written to, and each frame says up to where the log was durable when it
//! was written. So a bad frame is a torn write, which was never acknowledged, only in the last segment that was written
//! to, and only if no whole frame behind it says otherwise.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use super::format::{self, Record, SEGMENT_MAGIC};
use super::index::{Index, Place, Slot};
use super::stats::Counters;
use super::writer::{Location, Marks, Position, Segment, Writer};
use super::{Config, EntryId, HOW_TO_REPAIR};
use crate::error::Error;
use crate::rt;
use crate::segment::{ALIGNMENT, FIRST_FRAME, FRAME_HEADER_BYTES, Frame, SegmentHeader};

/// A log that was opened.
pub(super) struct Opened {
    pub(super) writer: Writer,
    pub(super) index: Arc<Mutex<Index>>,
    /// Index of the newest entry.
    pub(super) tail: Option<u64>,
}

/// Opens the log at a location, or makes an empty one.
pub(super) fn open(location: Location, config: &Config, counters: Arc<Counters>) -> Result<Opened, Error> {
    let directory = location.directory.clone();
    location.disk.create_directory(&directory).map_err(|e| location.error("making", &directory, &e))?;
    let mut numbers = segment_numbers(&location)?;
    let stale = split_stale(&mut numbers);
    let mut replay = Replay::new(location.clone(), config);
    for &number in &numbers {
        replay.segment(number)?;
    }
    replay.check_complete(numbers.first().copied(), stale.last().copied())?;
    replay.repair_tail()?;
    let needless = numbers.into_iter().filter(|number| *number < replay.marks.first_segment);
    for number in stale.into_iter().chain(needless) {
        location.remove(number)?;
        replay.closed.remove(&number);
    }
    location.sync_names()?;
    replay.finish(config, counters)
}

fn segment_numbers(location: &Location) -> Result<Vec<u64>, Error> {
    let listed = location.disk.list(&location.directory);
    let names = listed.map_err(|e| location.error("listing", &location.directory, &e))?;
    let stems = names.iter().filter_map(|name| name.strip_suffix(".wal")).filter(|stem| stem.len() == 16);
    let mut numbers: Vec<u64> = stems.filter_map(|stem| u64::from_str_radix(stem, 16).ok()).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// Leaves the newest unbroken run in `numbers` and returns what lies before it: files whose removal was undone by a
/// crash, if the run is found to be complete.
fn split_stale(numbers: &mut Vec<u64>) -> Vec<u64> {
    let breaks = numbers.windows(2).rposition(|pair| pair[0] + 1 != pair[1]);
    let rest = breaks.map(|at| numbers.split_off(at + 1));
    rest.map(|run| std::mem::replace(numbers, run)).unwrap_or_default()
}

/// Where the frames of the last segment read end.
struct End {
    number: u64,
    offset: u64,
    /// Bytes behind the frames, up to the last that is not zero.
    dirty: u64,
    /// The highest sequence number that a whole frame behind the end says was durable.
    claimed: u64,
}

struct Replay {
    location: Location,
    segment_bytes: u64,
    nonce: Option<u64>,
    index: Index,
    marks: Marks,
    closed: BTreeMap<u64, Option<(u64, u64)>>,
    active: Option<Segment>,
    empty: VecDeque<Segment>,
    /// The file of a spare that was being made.
    unfinished: Option<u64>,
    sequence: u64,
    checksum: u32,
    /// Frames of the last segment that no later one says are durable: sequence number and offset.
    unsure: VecDeque<(u64, u64)>,
    end: Option<End>,
}

impl Replay {
    fn new(location: Location, config: &Config) -> Self {
        Self {
            location,
            segment_bytes: config.segment_bytes,
            nonce: None,
            index: Index::new(config.cache_bytes_max),
            marks: Marks { first_segment: 1, ..Marks::default() },
            closed: BTreeMap::new(),
            active: None,
            empty: VecDeque::new(),
            unfinished: None,
            sequence: 0,
            checksum: 0,
            unsure: VecDeque::new(),
            end: None,
        }
    }

    fn damaged(&self, number: u64, offset: u64, what: &str) -> Error {
        let path = self.location.path(number);
        Error::Corrupt(format!(
            "the raft log is damaged: {} at offset {offset}: {what}. {HOW_TO_REPAIR}",
            path.display()
        ))
    }

    /// Reads the next segment.
    fn segment(&mut self, number: u64) -> Result<(), Error> {
        if let Some(unfinished) = self.unfinished {
            return Err(self.damaged(unfinished, 0, "the header is damaged"));
        }
        let path = self.location.path(number);
        let failed = |e| self.location.error("reading", &path, &e);
        let file = self.location.disk.open(&path, false).map_err(failed)?;
        let length = file.length().map_err(failed)?;
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
        let read = file.read_at(&mut bytes, 0).map_err(failed)?;
        bytes.truncate(read);
        let frames = bytes.get(first_frame()..).unwrap_or_default();
        let used = frames.iter().any(|byte| *byte != 0);
        let Some(header) = SegmentHeader::decode(SEGMENT_MAGIC, &bytes) else {
            if used {
                return Err(self.damaged(number, 0, "the header is damaged"));
            }
            self.unfinished = Some(number);
            return Ok(());
        };
        if header.number != number || self.nonce.is_some_and(|nonce| nonce != header.nonce) {
            return Err(self.damaged(number, 0, "the file belongs to another place or another log"));
        }
        if header.capacity != length {
            return Err(self.damaged(number, length, &format!("the file was cut, it had {} bytes", header.capacity)));
        }
        self.nonce = Some(header.nonce);
        let segment = Segment { header, file: Arc::from(file), extent: None };
        if !used {
            self.empty.push_back(segment);
            return Ok(());
        }
        if let Some(empty) = self.empty.front() {
            return Err(self.damaged(empty.header.number, FIRST_FRAME, "frames are missing"));
        }
        self.frames(segment, &bytes)
    }

    /// Replays the frames of a segment and makes it the active one.
    fn frames(&mut self, segment: Segment, bytes: &[u8]) -> Result<(), Error> {
        let number = segment.header.number;
        if let Some(full) = self.active.replace(segment) {
            self.closed.insert(full.header.number, full.extent);
        }
        let before = self.end.take();
        let mut offset = first_frame();
        self.unsure.clear();
        while let Some(frame) = bytes.get(offset..).and_then(|rest| Frame::decode(&self.header()?, rest)) {
            self.frame(number, offset as u64, &frame, before.as_ref())?;
            offset += usize::try_from(frame.span()).unwrap_or(usize::MAX);
        }
        let rest = bytes.get(offset..).unwrap_or_default();
        let dirty = rest.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let claimed = self.header().map_or(0, |header| claimed_durable(&header, rest, dirty));
        let torn_start = offset == first_frame() && before.as_ref().is_some_and(|end| end.dirty > 0);
        if let Some(end) = before.filter(|_| torn_start) {
            return Err(self.damaged(end.number, end.offset, "a frame is damaged, and a later segment was written to"));
        }
        self.end = Some(End { number, offset: offset as u64, dirty: dirty as u64, claimed });
        Ok(())
    }

    fn header(&self) -> Option<SegmentHeader> {
        self.active.as_ref().map(|segment| segment.header)
    }

    fn frame(&mut self, number: u64, offset: u64, frame: &Frame, before: Option<&End>) -> Result<(), Error> {
        let expected = self.sequence + 1;
        // The first frame of a log whose older segments are gone can be any.
        let known = number == 1 || self.sequence > 0 || before.is_some();
        let follows = frame.header.sequence == expected && frame.header.previous == self.checksum;
        if known && !follows {
            let at = before.filter(|_| offset == FIRST_FRAME).map_or((number, offset), |end| (end.number, end.offset));
            let what = format!("frame {expected} is missing or damaged, and frame {} follows", frame.header.sequence);
            return Err(self.damaged(at.0, at.1, &what));
        }
        self.sequence = frame.header.sequence;
        self.checksum = frame.checksum;
        self.unsure.push_back((self.sequence, offset));
        while self.unsure.front().is_some_and(|(sequence, _)| *sequence <= frame.header.durable) {
            self.unsure.pop_front();
        }
        for record in format::records(frame.payload) {
            let (at, record) = record.map_err(|at| {
                self.damaged(number, offset + at as u64, "a frame holds what is no record of this version")
            })?;
            let at = offset + (FRAME_HEADER_BYTES + at) as u64;
            self.record(at, record)?;
        }
        Ok(())
    }

    fn record(&mut self, at: u64, record: Record) -> Result<(), Error> {
        self.marks.note(&record);
        match record {
            Record::Truncate(index) => self.index.truncate(index),
            Record::Entry { id, payload, moved } => return self.entry(at, id, &payload, moved),
            Record::Vote(_) | Record::Committed(_) | Record::Base(_) | Record::Purged { .. } => {}
        }
        Ok(())
    }

    fn entry(&mut self, at: u64, id: EntryId, payload: &[u8], moved: bool) -> Result<(), Error> {
        let Some(active) = self.active.as_mut() else { return Ok(()) };
        active.holds(id.index);
        let header = active.header;
        let checksum = format::entry_checksum(header.nonce, &id, payload);
        let place = Place { file: active.file.clone(), segment: header.number, offset: at, checksum };
        if !moved && self.index.newest().is_some_and(|newest| newest >= id.index) {
            return Err(self.damaged(header.number, at, &format!("entry {} is out of order", id.index)));
        }
        self.index.restore(Slot::written(id, payload.len(), place));
        Ok(())
    }

    /// Refuses a log of which a part that was acknowledged is missing.
    fn check_complete(&self, first: Option<u64>, stale: Option<u64>) -> Result<(), Error> {
        let Some(first) = first else { return Ok(()) };
        if first > self.marks.first_segment {
            let missing = stale.map_or(self.marks.first_segment, |stale| stale + 1).max(self.marks.first_segment);
            return Err(self.damaged(missing, 0, "the file is missing"));
        }
        let Some(end) = &self.end else {
            let lost = first > 1;
            return if lost { Err(self.damaged(first, FIRST_FRAME, "frames are missing")) } else { Ok(()) };
        };
        // Older segments went only after a frame that says so was durable here.
        let headless = first > 1 && self.sequence == 0;
        if headless || end.claimed > self.sequence {
            let what = format!("frame {} is damaged, and a later frame says that it was durable", self.sequence + 1);
            return Err(self.damaged(end.number, end.offset, &what));
        }
        Ok(())
    }

    /// Makes the end of the log what it will be taken for: zeros behind the last frame, and everything durable. Frames
    /// that nothing says are durable are written again, since after a failed fsync they may exist in memory only.
    fn repair_tail(&mut self) -> Result<(), Error> {
        let (Some(end), Some(active)) = (&self.end, &self.active) else { return Ok(()) };
        let path = self.location.path(end.number);
        let failed = |e| self.location.error("repairing", &path, &e);
        let from = self.unsure.front().map_or(end.offset, |(_, offset)| *offset);
        let mut bytes = vec![0; usize::try_from(end.offset - from + end.dirty).unwrap_or(usize::MAX)];
        let kept = usize::try_from(end.offset - from).unwrap_or(usize::MAX);
        let read = active.file.read_at(&mut bytes[..kept], from).map_err(failed)?;
        if read != kept {
            return Err(self.damaged(end.number, from + read as u64, "the file ends while it is read"));
        }
        if end.dirty > 0 {
            tracing::warn!(path = %path.display(), offset = end.offset, bytes = end.dirty, "cutting a torn tail of the raft log");
        }
        active.file.write_at(&bytes, from).map_err(failed)?;
        active.file.sync().map_err(failed)
    }

    /// Sets the writer to work behind what was read.
    fn finish(mut self, config: &Config, counters: Arc<Counters>) -> Result<Opened, Error> {
        self.drop_unfit_spares()?;
        let active = match self.active.take().or_else(|| self.empty.pop_front()) {
            Some(active) => active,
            None => self.first_segment()?,
        };
        let torn_base = self.marks.base.take();
        if let Some(mark) = self.marks.purged {
            self.index.purge(mark);
            self.index.forget(mark);
        }
        if let Some(base) = torn_base {
            self.index.truncate(base.first.index.saturating_add(1));
            self.marks.truncate(self.index.newest().map_or(0, |newest| newest + 1));
        }
        self.index.vote = self.marks.vote;
        self.index.committed = self.marks.committed;
        let tail = self.index.newest();
        let offset = self.end.map_or(FIRST_FRAME, |end| end.offset);
        let marks = self.marks;
        let at = Position {
            active,
            spares: self.empty,
            closed: self.closed,
            offset,
            sequence: self.sequence,
            checksum: self.checksum,
            marks,
        };
        let index = Arc::new(Mutex::new(self.index));
        let mut writer = Writer::new((self.location, config.segment_bytes), at, index.clone(), counters);
        if offset == FIRST_FRAME {
            // The beginning of the segment was torn, and with it the copy of the marks.
            marks.records().try_for_each(|record| writer.push(&record))?;
        }
        if torn_base.is_some() {
            writer.push(&Record::Truncate(tail.map_or(0, |tail| tail + 1)))?;
        }
        match writer.spare(1) {
            // Votes can still be written where there is room in the active segment.
            Err(error @ Error::NoRoom { .. }) => tracing::warn!(%error, "no spare segment for the raft log"),
            other => other?,
        }
        Ok(Opened { writer, index, tail })
    }

    /// Removes a spare that was being made, and those of another size, newest first so that no number goes missing
    /// between two others.
    fn drop_unfit_spares(&mut self) -> Result<(), Error> {
        if let Some(unfinished) = self.unfinished {
            self.location.remove(unfinished)?;
            self.location.sync_names()?;
        }
        while let Some(spare) = self.empty.pop_back_if(|spare| spare.header.capacity != self.segment_bytes) {
            self.location.remove(spare.header.number)?;
            self.location.sync_names()?;
        }
        Ok(())
    }

    /// Makes the first segment of an empty log.
    fn first_segment(&self) -> Result<Segment, Error> {
        let mut nonce = [0; 8];
        rt::fill_random(&mut nonce);
        let nonce = self.nonce.unwrap_or(u64::from_le_bytes(nonce));
        let made = self.location.create(SegmentHeader { number: 1, nonce, capacity: self.segment_bytes })?;
        if let Some(parent) = self.location.directory.parent() {
            let synced = self.location.disk.sync_directory(parent);
            synced.map_err(|e| self.location.error("syncing", parent, &e))?;
        }
        Ok(made)
    }
}

fn first_frame() -> usize {
    usize::try_from(FIRST_FRAME).unwrap_or(usize::MAX)
}

/// The highest sequence number that a whole frame, begun in the first `dirty` of `bytes`, says was durable; 0: there is
/// none.
fn claimed_durable(segment: &SegmentHeader, bytes: &[u8], dirty: usize) -> u64 {
    let step = usize::try_from(ALIGNMENT).unwrap_or(usize::MAX);
    let starts = (0..dirty).step_by(step);
    starts.filter_map(|at| Frame::decode(segment, &bytes[at..])).map(|frame| frame.header.durable).max().unwrap_or(0)
}
