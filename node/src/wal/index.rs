//! What the log holds, in memory: where each entry lies, the newest payloads, and the marks.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::format::{self, ENTRY_HEADER_BYTES};
use super::{EntryId, Vote};
use crate::disk::File;
use crate::error::Error;

/// Where an entry was written.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) file: Arc<dyn File>,
    pub(super) segment: u64,
    /// Of the entry's record, in bytes from the beginning of the file.
    pub(super) offset: u64,
    pub(super) checksum: u32,
}

/// An entry of the log.
#[derive(Clone)]
pub(super) struct Slot {
    pub(super) id: EntryId,
    pub(super) payload_bytes: usize,
    /// `None`: queued, not yet written.
    pub(super) place: Option<Place>,
    /// `None`: only on disk.
    payload: Option<Bytes>,
}

impl Slot {
    /// A slot of an entry that lies on disk only.
    pub(super) fn written(id: EntryId, payload_bytes: usize, place: Place) -> Self {
        Self { id, payload_bytes, place: Some(place), payload: None }
    }

    /// Whether the payload is in memory, so that [`Slot::read`] does not block.
    pub(super) fn is_cached(&self) -> bool {
        self.payload.is_some()
    }

    /// The payload, from memory or checked from disk. May block.
    pub(super) fn read(&self, nonce: u64) -> Result<Bytes, Error> {
        if let Some(payload) = &self.payload {
            return Ok(payload.clone());
        }
        let place = self.place.as_ref().ok_or_else(|| Error::Corrupt(self.damaged("lies nowhere")))?;
        let mut bytes = vec![0; ENTRY_HEADER_BYTES + self.payload_bytes];
        let read = place.file.read_at(&mut bytes, place.offset);
        let read = read.map_err(|e| Error::io(format!("reading entry {} of the raft log", self.id.index), &e))?;
        format::decode_entry(nonce, &bytes[..read], &self.id, place.checksum).ok_or_else(|| {
            let what =
                format!("in segment {:016x} at offset {} changed since it was written", place.segment, place.offset);
            Error::Corrupt(self.damaged(&what))
        })
    }

    fn damaged(&self, what: &str) -> String {
        format!("the raft log is damaged: entry {} {what}. {}", self.id.index, super::HOW_TO_REPAIR)
    }
}

/// The log in memory. Payloads are kept for a suffix of it: from `cached_from` on, within `cache_bytes_max` except for
/// what is not written yet.
pub(super) struct Index {
    entries: BTreeMap<u64, Slot>,
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<EntryId>,
    /// Entries up to here are hidden; may be ahead of what is durable.
    pub(super) purged: Option<EntryId>,
    cached_from: u64,
    cached_bytes: usize,
    cache_bytes_max: usize,
}

impl Index {
    pub(super) fn new(cache_bytes_max: usize) -> Self {
        Self {
            entries: BTreeMap::new(),
            vote: None,
            committed: None,
            purged: None,
            cached_from: 0,
            cached_bytes: 0,
            cache_bytes_max,
        }
    }

    /// Id of the newest entry that is not hidden, or else the purge mark.
    pub(super) fn last(&self) -> Option<EntryId> {
        self.entries.range(self.first_visible()..).next_back().map(|(_, slot)| slot.id).or(self.purged)
    }

    /// Index of the newest entry, hidden or not.
    pub(super) fn newest(&self) -> Option<u64> {
        self.entries.last_key_value().map(|(index, _)| *index)
    }

    fn first_visible(&self) -> u64 {
        self.purged.map_or(0, |mark| mark.index.saturating_add(1))
    }

    pub(super) fn cached_bytes(&self) -> usize {
        self.cached_bytes
    }

    /// Adds a queued entry; its index is above all others.
    pub(super) fn push(&mut self, id: EntryId, payload: Bytes) {
        self.cached_bytes += payload.len();
        if self.entries.is_empty() {
            self.cached_from = id.index;
        }
        self.entries.insert(id.index, Slot { id, payload_bytes: payload.len(), place: None, payload: Some(payload) });
    }

    /// Adds or moves an entry that lies on disk (recovery).
    pub(super) fn restore(&mut self, slot: Slot) {
        self.cached_from = self.cached_from.max(slot.id.index + 1);
        self.entries.insert(slot.id.index, slot);
    }

    /// Notes where an entry was written, if it is still there.
    pub(super) fn place(&mut self, id: &EntryId, place: Place) {
        if let Some(slot) = self.entries.get_mut(&id.index)
            && slot.id == *id
        {
            slot.place = Some(place);
        }
    }

    /// Drops payloads beyond the bound, oldest first, but none that is not written.
    pub(super) fn shrink_cache(&mut self) {
        while self.cached_bytes > self.cache_bytes_max {
            let Some((&index, slot)) = self.entries.range_mut(self.cached_from..).next() else { return };
            if slot.place.is_none() {
                return;
            }
            self.cached_bytes -= slot.payload.take().map_or(0, |payload| payload.len());
            self.cached_from = index + 1;
        }
    }

    /// Removes entries from `index` on.
    pub(super) fn truncate(&mut self, index: u64) {
        let removed = self.entries.split_off(&index);
        self.forget_payloads(&removed);
        self.cached_from = self.cached_from.min(index);
        self.committed = self.committed.filter(|id| id.index < index);
    }

    /// Hides entries up to `mark`. They are kept until [`Index::forget`]: a crash before that brings them back, so a
    /// segment that holds them must not go without them.
    pub(super) fn purge(&mut self, mark: EntryId) {
        if self.purged.is_none_or(|purged| purged.index <= mark.index) {
            self.purged = Some(mark);
        }
    }

    /// Removes entries up to `mark` for good.
    pub(super) fn forget(&mut self, mark: EntryId) {
        let kept = mark.index.checked_add(1).map(|next| self.entries.split_off(&next)).unwrap_or_default();
        let removed = std::mem::replace(&mut self.entries, kept);
        self.forget_payloads(&removed);
    }

    fn forget_payloads(&mut self, removed: &BTreeMap<u64, Slot>) {
        let bytes: usize = removed.values().filter_map(|slot| slot.payload.as_ref()).map(Bytes::len).sum();
        self.cached_bytes -= bytes;
    }

    /// Visible entries of a range in order: as many as come to `bytes_max` of payload, and at least one.
    pub(super) fn range(&self, range: Range<u64>, bytes_max: usize) -> Vec<Slot> {
        let start = range.start.max(self.first_visible());
        if start >= range.end {
            return Vec::new();
        }
        let mut bytes = 0;
        let within = |slot: &&Slot| {
            let first = bytes == 0;
            bytes += slot.payload_bytes.max(1);
            first || bytes <= bytes_max
        };
        self.entries.range(start..range.end).map(|(_, slot)| slot).take_while(within).cloned().collect()
    }

    /// Written entries that lie in segments up to `segment`, in order.
    pub(super) fn written_up_to(&self, segment: u64) -> Vec<Slot> {
        let inside = |slot: &&Slot| slot.place.as_ref().is_some_and(|place| place.segment <= segment);
        self.entries.values().filter(inside).cloned().collect()
    }
}
