//! What a frame of the archive holds: what one raft entry added to the ledger. Pure; all integers are little-endian.
//!
//! ```text
//! mark, first in every segment    entry                                 in bodies, one after another
//!   0  1                            0  2                                  lines
//!   1  raft index u64               1  raft index u64                     bodies of values: the ciphertext, or the index
//!   9  whole u8                     9  first entry u64                      u64 of the entry that erased the value
//!  10  height u64                  17  first slot u64                     outcomes: request key 16 bytes, row of the store
//!  18  entries u64                 25  outcomes kept: first, next u64
//!  26  slots u64                   41  bytes of the place u32, or 2^32 - 1: not known
//!  34  outcomes kept: first,       45  lines, values, outcomes: u32 each
//!      next u64                    57  place
//!                                      lines: bytes u32, values before it in the frame u32
//!                                      values: 0 ciphertext or 1 erased, bytes u32
//!                                      outcomes: bytes u32
//!                                      bodies
//! ```
//!
//! Of a value there is the ciphertext, never the salt: what an erase destroys is not here.

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::ledger::HeadRow;
use crate::segment::Cursor;
use crate::store::outcomes::{OutcomeRow, Span};
use crate::store::{entries, values};

const MARK: u8 = 1;
const ENTRY: u8 = 2;
const NO_PLACE: u32 = u32::MAX;
const REQUEST_KEY_BYTES: usize = 16;

/// How far a ledger is: what it has, and which raft entry was the last to add to it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Mark {
    /// Index of that raft entry.
    pub raft_index: u64,
    /// Whether everything of it is there. Not so for an empty ledger, nor within a stretch that was made again from the
    /// store: of that only the end can be gone on from.
    pub whole: bool,
    /// Height of the newest block.
    pub height: u64,
    /// Entries in the chain log.
    pub size: u64,
    /// Value slots in use.
    pub slots: u64,
    /// Outcomes kept.
    pub outcomes: Span,
}

impl Mark {
    /// How far the ledger of a head is.
    pub(crate) fn of(head: &HeadRow) -> Self {
        let HeadRow { raft_index, height, size, slots, outcomes, .. } = *head;
        Self { raft_index, whole: !head.raft.is_empty(), height, size, slots, outcomes }
    }

    /// How far it is after a frame.
    pub(crate) fn after(self, frame: &Frame) -> Self {
        let mut mark =
            Self { raft_index: frame.raft_index, whole: frame.place.is_some(), outcomes: frame.outcomes_kept, ..self };
        if !frame.lines.is_empty() {
            mark.height += 1;
            mark.size = frame.first + frame.lines.len() as u64;
            mark.slots = frame.first_slot + frame.values.len() as u64;
        }
        mark
    }

    /// Whether a segment that begins with `base` goes on where one ends that ends here. One that was made again from the
    /// store does not know that it is whole.
    pub(crate) fn meets(&self, base: &Self) -> bool {
        Self { whole: base.whole, ..*self } == *base
    }

    /// Whether a ledger that is so far has what the frame adds.
    pub(crate) fn covers(&self, frame: &Frame) -> bool {
        let has_lines = !frame.lines.is_empty() && frame.first < self.size;
        self.raft_index > frame.raft_index || self.raft_index == frame.raft_index && (self.whole || has_lines)
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.push(MARK);
        out.extend_from_slice(&self.raft_index.to_le_bytes());
        out.push(u8::from(self.whole));
        for number in [self.height, self.size, self.slots, self.outcomes.first, self.outcomes.next] {
            out.extend_from_slice(&number.to_le_bytes());
        }
    }

    /// `None`: these are not the bytes of a mark.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut at = Cursor(bytes);
        let [MARK] = at.array()? else { return None };
        let raft_index = at.u64()?;
        let whole = match at.array()? {
            [flag @ 0..=1] => flag == 1,
            _ => return None,
        };
        let (height, size, slots) = (at.u64()?, at.u64()?, at.u64()?);
        let outcomes = Span { first: at.u64()?, next: at.u64()? };
        at.0.is_empty().then_some(Self { raft_index, whole, height, size, slots, outcomes })
    }
}

/// What one raft entry added to the ledger.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Frame {
    /// Index of the raft entry.
    pub raft_index: u64,
    /// What the Raft adapter must find again; `None` in what was made again from the store, which keeps only the newest.
    pub place: Option<Vec<u8>>,
    /// Index of the first line.
    pub first: u64,
    /// Slot of the first value.
    pub first_slot: u64,
    /// The outcomes kept afterwards.
    pub outcomes_kept: Span,
    /// The lines of the block, its block entry last; none if the entry made no block.
    pub lines: Vec<entries::Stored>,
    /// The values that the block put.
    pub values: Vec<values::Stored>,
    /// The outcomes to keep that it added: rows as in the store.
    pub outcomes: Vec<OutcomeRow>,
}

impl Frame {
    /// Appends the encoding to `out`.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.push(ENTRY);
        let kept = self.outcomes_kept;
        for number in [self.raft_index, self.first, self.first_slot, kept.first, kept.next] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        put_count(out, self.place.as_ref().map_or(NO_PLACE as usize, Vec::len));
        for count in [self.lines.len(), self.values.len(), self.outcomes.len()] {
            put_count(out, count);
        }
        out.extend_from_slice(self.place.as_deref().unwrap_or_default());
        for stored in &self.lines {
            put_count(out, stored.line.len());
            put_count(out, usize::try_from(stored.slot - self.first_slot).unwrap_or(usize::MAX));
        }
        for value in &self.values {
            let (kind, length) = match value {
                values::Stored::Ciphertext(bytes) => (0, bytes.len()),
                values::Stored::Erased(_) => (1, size_of::<u64>()),
            };
            out.push(kind);
            put_count(out, length);
        }
        self.outcomes.iter().for_each(|(_, row)| put_count(out, row.len()));
        self.lines.iter().for_each(|stored| out.extend_from_slice(&stored.line));
        for value in &self.values {
            match value {
                values::Stored::Ciphertext(bytes) => out.extend_from_slice(bytes),
                values::Stored::Erased(by) => out.extend_from_slice(&by.to_le_bytes()),
            }
        }
        for (key, row) in &self.outcomes {
            out.extend_from_slice(key);
            out.extend_from_slice(row);
        }
    }

    /// Reads a frame off the front; returns it with what follows. `None`: these are not the bytes of a frame.
    pub(crate) fn decode(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let mut at = Cursor(bytes);
        let [ENTRY] = at.array()? else { return None };
        let (raft_index, first, first_slot) = (at.u64()?, at.u64()?, at.u64()?);
        let outcomes_kept = Span { first: at.u64()?, next: at.u64()? };
        let place_bytes = at.u32()?;
        let (lines, values, outcomes) = (length(&mut at)?, length(&mut at)?, length(&mut at)?);
        let place = match place_bytes {
            NO_PLACE => None,
            bytes => Some(at.take(usize::try_from(bytes).ok()?)?.to_vec()),
        };
        let mut line_table = Cursor(at.take(lines.checked_mul(8)?)?);
        let mut value_table = Cursor(at.take(values.checked_mul(5)?)?);
        let mut outcome_table = Cursor(at.take(outcomes.checked_mul(4)?)?);
        let read_line = |_| {
            let (bytes, before) = (length(&mut line_table)?, line_table.u32()?);
            let slot = first_slot.checked_add(u64::from(before))?;
            Some(entries::Stored { line: at.take(bytes)?.to_vec(), slot })
        };
        let lines = (0..lines).map(read_line).collect::<Option<Vec<_>>>()?;
        let read_value = |_| {
            let ([kind], bytes) = (value_table.array()?, length(&mut value_table)?);
            let body = at.take(bytes)?;
            match kind {
                0 => Some(values::Stored::Ciphertext(body.to_vec())),
                1 => Some(values::Stored::Erased(u64::from_le_bytes(body.try_into().ok()?))),
                _ => None,
            }
        };
        let values = (0..values).map(read_value).collect::<Option<Vec<_>>>()?;
        let read_outcome = |_| {
            let bytes = length(&mut outcome_table)?;
            Some((at.array::<REQUEST_KEY_BYTES>()?, at.take(bytes)?.to_vec()))
        };
        let outcomes = (0..outcomes).map(read_outcome).collect::<Option<Vec<_>>>()?;
        Some((Self { raft_index, place, first, first_slot, outcomes_kept, lines, values, outcomes }, at.0))
    }

    /// Reads a frame that fills its bytes.
    pub(crate) fn decode_whole(bytes: &[u8]) -> Result<Self, Error> {
        let decoded = Self::decode(bytes).filter(|(_, rest)| rest.is_empty());
        decoded.map(|(frame, _)| frame).ok_or_else(|| Error::Corrupt("it holds no entry of a known format".into()))
    }
}

/// A count or a length. Both are bounded by that of a frame, which fits 32 bits.
fn put_count(out: &mut Vec<u8>, count: usize) {
    out.extend_from_slice(&u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
}

fn length(at: &mut Cursor) -> Option<usize> {
    usize::try_from(at.u32()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Frame {
        Frame {
            raft_index: 0x0102,
            place: Some(b"{}".to_vec()),
            first: 7,
            first_slot: 5,
            outcomes_kept: Span { first: 1, next: 3 },
            lines: vec![
                entries::Stored { line: b"line".to_vec(), slot: 5 },
                entries::Stored { line: b"block".to_vec(), slot: 7 },
            ],
            values: vec![values::Stored::Ciphertext(b"noise".to_vec()), values::Stored::Erased(7)],
            outcomes: vec![([0xaa; 16], b"row".to_vec())],
        }
    }

    fn encoded(frame: &Frame) -> Vec<u8> {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        bytes
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// The expected bytes were written down from the table at the top of this file.
    #[test]
    fn the_bytes_on_disk_stay_what_they_are() {
        let golden = concat!(
            "02",
            "0201000000000000",
            "0700000000000000",
            "0500000000000000",
            "01000000000000000300000000000000",
            "02000000",
            "020000000200000001000000",
            "7b7d",
            "04000000000000000500000002000000",
            "00050000000108000000",
            "03000000",
            "6c696e65626c6f636b",
            "6e6f6973650700000000000000",
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa726f77",
        );
        assert_eq!(hex(&encoded(&full())), golden);
        let mark =
            Mark { raft_index: 9, whole: true, height: 2, size: 4, slots: 1, outcomes: Span { first: 0, next: 1 } };
        let mut bytes = Vec::new();
        mark.encode(&mut bytes);
        let golden =
            "0109000000000000000102000000000000000400000000000000010000000000000000000000000000000100000000000000";
        assert_eq!(hex(&bytes), golden);
        assert_eq!(Mark::decode(&bytes), Some(mark));
    }

    #[test]
    fn what_is_written_is_read() {
        for frame in [full(), Frame { place: None, ..full() }, Frame { place: None, ..Frame::default() }] {
            let mut bytes = encoded(&frame);
            assert_eq!(Frame::decode_whole(&bytes).unwrap(), frame);
            bytes.extend_from_slice(b"salts");
            assert_eq!(Frame::decode(&bytes), Some((frame, &b"salts"[..])), "what follows is left for the caller");
            assert!(Frame::decode_whole(&bytes).is_err(), "an entry with something behind it");
        }
    }

    #[test]
    fn archive_frame() {
        let seeds = [full(), Frame { place: None, ..Frame::default() }].map(|frame| encoded(&frame));
        samovar_fuzz::decoder("archive-frame", &seeds, |bytes| {
            if let Some((frame, rest)) = Frame::decode(bytes) {
                let again = encoded(&frame);
                assert_eq!(again, bytes[..bytes.len() - rest.len()], "two encodings of one frame");
            }
        });
        let mut mark = Vec::new();
        Mark::default().encode(&mut mark);
        samovar_fuzz::decoder("archive-mark", &[mark], |bytes| {
            if let Some(mark) = Mark::decode(bytes) {
                let mut again = Vec::new();
                mark.encode(&mut again);
                assert_eq!(again, bytes, "two encodings of one mark");
            }
        });
    }

    #[test]
    fn a_mark_moves_with_its_frames_and_covers_them() {
        let before = Mark { raft_index: 1, whole: true, height: 3, size: 7, slots: 5, ..Mark::default() };
        let after = before.after(&full());
        assert_eq!((after.raft_index, after.height, after.size, after.slots), (0x0102, 4, 9, 7));
        assert!(after.covers(&full()) && !before.covers(&full()));
        let restated = Frame { place: None, ..full() };
        let within = before.after(&restated);
        assert!(!within.whole && within.covers(&restated), "a block that is there is not put twice");
        let end = Frame { raft_index: 0x0102, place: Some(Vec::new()), ..Frame::default() };
        assert!(!within.covers(&end), "the end of a stretch has the raft index of its last block");
    }
}
