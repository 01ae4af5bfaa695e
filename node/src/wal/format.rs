//! What the raft log writes into the frames of its segments ([`crate::segment`]): records. Pure; all integers are
//! little-endian.
//!
//! ```text
//! records in a payload, each a kind byte and
//!   1 vote       term u64, node u64, committed u8
//!   2 entry      id, length u32, checksum u32, payload
//!   3 truncate   index u64
//!   4 committed  id
//!   5 purged     id, first segment needed u64
//!   6 base       id
//!   7 moved      as entry
//! id = term u64, node u64, index u64
//! ```

use bytes::Bytes;

use super::{EntryId, Vote};
use crate::segment::{Cursor, FrameBuilder};

/// What an entry takes besides its payload, in bytes.
pub(super) const ENTRY_HEADER_BYTES: usize = 1 + ID_BYTES + 8;

const ID_BYTES: usize = 24;
/// Marks the segments of a raft log.
pub(super) const SEGMENT_MAGIC: &[u8; 8] = b"SAMOVWAL";

/// Checksum of one entry, so that it can be read back without its frame.
pub(super) fn entry_checksum(nonce: u64, id: &EntryId, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&nonce.to_le_bytes());
    hasher.update(&encode_id(id));
    hasher.update(payload);
    hasher.finalize()
}

/// Appends a record to a frame; answers its offset in the frame.
pub(super) fn push(frame: &mut FrameBuilder, record: &Record, nonce: u64) -> usize {
    let bytes = frame.bytes();
    let offset = bytes.len();
    record.encode(nonce, bytes);
    offset
}

/// One record of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Record {
    Vote(Vote),
    Entry {
        id: EntryId,
        payload: Bytes,
        /// Written before, in a segment that is to go: may come after entries above it.
        moved: bool,
    },
    /// Entries from this index on are gone.
    Truncate(u64),
    Committed(EntryId),
    /// Entries up to this one are gone, and so are the segments below `first_segment`.
    Purged {
        mark: EntryId,
        first_segment: u64,
    },
    /// What follows stands on a purge up to here that no record says yet; without one, it was never acknowledged.
    Base(EntryId),
}

impl Record {
    /// Length of the encoding, in bytes.
    pub(super) fn encoded_bytes(&self) -> usize {
        match self {
            Self::Vote(_) => 18,
            Self::Entry { payload, .. } => ENTRY_HEADER_BYTES + payload.len(),
            Self::Truncate(_) => 9,
            Self::Committed(_) | Self::Base(_) => 1 + ID_BYTES,
            Self::Purged { .. } => 9 + ID_BYTES,
        }
    }

    fn encode(&self, nonce: u64, out: &mut Vec<u8>) {
        match self {
            Self::Vote(vote) => {
                out.push(1);
                out.extend_from_slice(&vote.term.to_le_bytes());
                out.extend_from_slice(&vote.node.to_le_bytes());
                out.push(u8::from(vote.committed));
            }
            Self::Entry { id, payload, moved } => {
                out.push(if *moved { 7 } else { 2 });
                out.extend_from_slice(&encode_id(id));
                out.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
                out.extend_from_slice(&entry_checksum(nonce, id, payload).to_le_bytes());
                out.extend_from_slice(payload);
            }
            Self::Truncate(index) => {
                out.push(3);
                out.extend_from_slice(&index.to_le_bytes());
            }
            Self::Committed(id) => {
                out.push(4);
                out.extend_from_slice(&encode_id(id));
            }
            Self::Purged { mark, first_segment } => {
                out.push(5);
                out.extend_from_slice(&encode_id(mark));
                out.extend_from_slice(&first_segment.to_le_bytes());
            }
            Self::Base(id) => {
                out.push(6);
                out.extend_from_slice(&encode_id(id));
            }
        }
    }
}

/// Reads the records of a frame's payload in order, each with its offset in the payload. An error is the offset of what
/// is no record.
pub(super) fn records(payload: &[u8]) -> impl Iterator<Item = Result<(usize, Record), usize>> {
    let mut rest = payload;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let offset = payload.len() - rest.len();
        let mut at = Cursor(rest);
        let record = decode_record(&mut at);
        rest = if record.is_some() { at.0 } else { &[] };
        Some(record.map(|record| (offset, record)).ok_or(offset))
    })
}

/// Reads an entry record back and checks it; `None`: it is not this entry with this checksum.
pub(super) fn decode_entry(nonce: u64, bytes: &[u8], expected: &EntryId, checksum: u32) -> Option<Bytes> {
    match decode_record(&mut Cursor(bytes))? {
        Record::Entry { id, payload, .. } if id == *expected => {
            (entry_checksum(nonce, &id, &payload) == checksum).then_some(payload)
        }
        _ => None,
    }
}

fn decode_record(at: &mut Cursor) -> Option<Record> {
    Some(match at.array::<1>()?[0] {
        1 => {
            let (term, node) = (at.u64()?, at.u64()?);
            match at.array::<1>()?[0] {
                flag @ 0..=1 => Record::Vote(Vote { term, node, committed: flag == 1 }),
                _ => return None,
            }
        }
        kind @ (2 | 7) => {
            let id = read_id(at)?;
            let length = usize::try_from(at.u32()?).ok()?;
            at.u32()?;
            Record::Entry { id, payload: Bytes::copy_from_slice(at.take(length)?), moved: kind == 7 }
        }
        3 => Record::Truncate(at.u64()?),
        4 => Record::Committed(read_id(at)?),
        5 => Record::Purged { mark: read_id(at)?, first_segment: at.u64()? },
        6 => Record::Base(read_id(at)?),
        _ => return None,
    })
}

fn encode_id(id: &EntryId) -> [u8; ID_BYTES] {
    let mut bytes = [0; ID_BYTES];
    bytes[..8].copy_from_slice(&id.term.to_le_bytes());
    bytes[8..16].copy_from_slice(&id.node.to_le_bytes());
    bytes[16..].copy_from_slice(&id.index.to_le_bytes());
    bytes
}

fn read_id(at: &mut Cursor) -> Option<EntryId> {
    Some(EntryId { term: at.u64()?, node: at.u64()?, index: at.u64()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::{FRAME_HEADER_BYTES, Frame, FrameHeader, SegmentHeader};

    const SEGMENT: SegmentHeader = SegmentHeader { number: 3, nonce: 0x0102_0304_0506_0708, capacity: 16 << 20 };
    const ID: EntryId = EntryId { term: 2, node: 7, index: 41 };

    fn one_of_each() -> Vec<Record> {
        vec![
            Record::Vote(Vote { term: 2, node: 7, committed: true }),
            Record::Committed(EntryId { term: 1, node: 7, index: 40 }),
            Record::Purged { mark: EntryId { term: 1, node: 7, index: 30 }, first_segment: 2 },
            Record::Base(EntryId { term: 1, node: 7, index: 40 }),
            Record::Truncate(41),
            Record::Entry { id: ID, payload: Bytes::from_static(b"payload"), moved: false },
            Record::Entry { id: ID, payload: Bytes::from_static(b"payload"), moved: true },
        ]
    }

    fn frame() -> Vec<u8> {
        let mut builder = FrameBuilder::default();
        for record in one_of_each() {
            push(&mut builder, &record, SEGMENT.nonce);
        }
        builder.seal(&SEGMENT, &FrameHeader { sequence: 9, durable: 8, previous: 0xdead_beef }).1.to_vec()
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// The expected bytes were computed from the tables at the top of this file and of `segment.rs` by another program.
    #[test]
    fn the_bytes_on_disk_stay_what_they_are() {
        assert_eq!(
            hex(&SEGMENT.encode(SEGMENT_MAGIC)),
            "53414d4f5657414c01000000030000000000000008070605040302010000000100000000fe4e6eb6"
        );
        let frame = frame();
        assert_eq!(frame.len(), 512, "one small frame takes one sector");
        let used = FRAME_HEADER_BYTES + one_of_each().iter().map(Record::encoded_bytes).sum::<usize>();
        assert!(frame[used..].iter().all(|b| *b == 0), "the rest of the sector is zeros");
        assert_eq!(
            hex(&frame[..used]),
            concat!(
                "53574631be000000a6991c3eefbeadde0900000000000000080000000000000001020000000000000007000000000000",
                "00010401000000000000000700000000000000280000000000000005010000000000000007000000000000001e000000",
                "000000000200000000000000060100000000000000070000000000000028000000000000000329000000000000000202",
                "00000000000000070000000000000029000000000000000700000067fd31a57061796c6f616407020000000000000007",
                "0000000000000029000000000000000700000067fd31a57061796c6f6164"
            )
        );
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(SegmentHeader::decode(SEGMENT_MAGIC, &SEGMENT.encode(SEGMENT_MAGIC)), Some(SEGMENT));
        let bytes = frame();
        let read = Frame::decode(&SEGMENT, &bytes).expect("a whole frame");
        assert_eq!((read.header.sequence, read.header.durable, read.header.previous), (9, 8, 0xdead_beef));
        assert_eq!(read.span(), 512);
        let found: Vec<Record> = records(read.payload).map(|r| r.expect("a record").1).collect();
        assert_eq!(found, one_of_each());
    }

    #[test]
    fn every_changed_bit_is_seen() {
        let header = SEGMENT.encode(SEGMENT_MAGIC);
        for bit in 0..header.len() * 8 {
            let mut bytes = header;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SegmentHeader::decode(SEGMENT_MAGIC, &bytes), None, "bit {bit} of the segment header");
        }
        let good = frame();
        let used = FRAME_HEADER_BYTES + one_of_each().iter().map(Record::encoded_bytes).sum::<usize>();
        for bit in 0..used * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Frame::decode(&SEGMENT, &bytes).is_none(), "bit {bit} of the frame");
        }
    }

    #[test]
    fn a_frame_belongs_to_its_segment_and_its_log() {
        let bytes = frame();
        assert!(Frame::decode(&SegmentHeader { number: 4, ..SEGMENT }, &bytes).is_none());
        assert!(Frame::decode(&SegmentHeader { nonce: 1, ..SEGMENT }, &bytes).is_none());
    }

    #[test]
    fn garbage_is_no_record_and_no_panic() {
        for length in 0..64 {
            for fill in [0, 1, 2, 3, 4, 5, 6, 7, 0xff] {
                let bytes = vec![fill; length];
                assert!(Frame::decode(&SEGMENT, &bytes).is_none());
                let bad = records(&bytes).find_map(Result::err);
                assert!(bad.is_none_or(|offset| offset < length), "the offset lies inside");
            }
        }
    }
}
