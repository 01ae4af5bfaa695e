//! The bytes of a segment: its header, its frames, and the records in a frame. Pure; all integers are little-endian.
//!
//! ```text
//! segment header, at 0            frame, at a multiple of 512       records in a payload, each a kind byte and
//!   0  "SAMOVWAL"                   0  "SWF1"                         1 vote       term u64, node u64, committed u8
//!   8  version u32 = 1              4  payload length u32             2 entry      id, length u32, checksum u32, payload
//!  12  number u64                   8  checksum u32                   3 truncate   index u64
//!  20  nonce u64                   12  checksum of the previous u32   4 committed  id
//!  28  capacity u64                16  sequence number u64            5 purged     id, first segment needed u64
//!  36  crc32 of the above          24  durable up to u64              6 base       id
//!      zeros up to 4096            32  payload, zeros up to 512       7 moved      as entry
//!                                                                   id = term u64, node u64, index u64
//! ```
//!
//! The checksum of a frame covers nonce, segment number, the rest of its header and its payload. The nonce is drawn when
//! the log is made and never leaves the node, so bytes that a client stores cannot pass for a frame, nor can a segment of
//! another node. Frames begin at sectors of their own: a sector once durable is never written again.

use bytes::Bytes;

use super::{EntryId, Vote};

/// Where the first frame of a segment begins, in bytes.
pub(super) const FIRST_FRAME: u64 = 4096;
/// Frames begin at multiples of this, in bytes.
pub(super) const ALIGNMENT: u64 = 512;
/// Length of a frame's header, in bytes.
pub(super) const FRAME_HEADER_BYTES: usize = 32;
/// What an entry takes besides its payload, in bytes.
pub(super) const ENTRY_HEADER_BYTES: usize = 1 + ID_BYTES + 8;

const ID_BYTES: usize = 24;
const SEGMENT_HEADER_BYTES: usize = 40;
const SEGMENT_MAGIC: &[u8; 8] = b"SAMOVWAL";
const FRAME_MAGIC: &[u8; 4] = b"SWF1";
const VERSION: u32 = 1;

/// The header of a segment file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    /// Number of the segment, also its name.
    pub(super) number: u64,
    /// Random, one for the whole log.
    pub(super) nonce: u64,
    /// Length of the file, in bytes.
    pub(super) capacity: u64,
}

impl SegmentHeader {
    pub(super) fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        bytes[..8].copy_from_slice(SEGMENT_MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..20].copy_from_slice(&self.number.to_le_bytes());
        bytes[20..28].copy_from_slice(&self.nonce.to_le_bytes());
        bytes[28..36].copy_from_slice(&self.capacity.to_le_bytes());
        let checksum = crc32fast::hash(&bytes[..36]);
        bytes[36..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// `None`: these are not the bytes of a header of this version.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut at = Cursor(bytes.get(..SEGMENT_HEADER_BYTES)?);
        let known = at.array::<8>()? == *SEGMENT_MAGIC && at.u32()? == VERSION;
        let header = Self { number: at.u64()?, nonce: at.u64()?, capacity: at.u64()? };
        (known && at.u32()? == crc32fast::hash(&bytes[..36])).then_some(header)
    }
}

/// What the header of a frame says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FrameHeader {
    /// Counts frames over all segments, from 1.
    pub(super) sequence: u64,
    /// Highest sequence number that was durable when this frame was written.
    pub(super) durable: u64,
    /// Checksum of the frame before, over segments; 0 before the first.
    pub(super) previous: u32,
}

/// A frame that was read and found whole.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame<'a> {
    pub(super) header: FrameHeader,
    pub(super) checksum: u32,
    pub(super) payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Reads the frame at the beginning of `bytes`; `None`: there is no whole frame.
    pub(super) fn decode(segment: &SegmentHeader, bytes: &'a [u8]) -> Option<Self> {
        let mut at = Cursor(bytes.get(..FRAME_HEADER_BYTES)?);
        if at.array::<4>()? != *FRAME_MAGIC {
            return None;
        }
        let length = at.u32()?;
        let checksum = at.u32()?;
        let header = FrameHeader { previous: at.u32()?, sequence: at.u64()?, durable: at.u64()? };
        let payload = bytes[FRAME_HEADER_BYTES..].get(..usize::try_from(length).ok()?)?;
        (frame_checksum(segment, &header, payload) == checksum).then_some(Self { header, checksum, payload })
    }

    /// Bytes that the frame takes in its segment, with the zeros behind it.
    pub(super) fn span(&self) -> u64 {
        frame_span(self.payload.len())
    }
}

/// Bytes that a frame with a payload of this length takes in its segment.
pub(super) fn frame_span(payload_bytes: usize) -> u64 {
    ((FRAME_HEADER_BYTES + payload_bytes) as u64).next_multiple_of(ALIGNMENT)
}

fn frame_checksum(segment: &SegmentHeader, header: &FrameHeader, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&segment.nonce.to_le_bytes());
    hasher.update(&segment.number.to_le_bytes());
    hasher.update(&header.previous.to_le_bytes());
    hasher.update(&header.sequence.to_le_bytes());
    hasher.update(&header.durable.to_le_bytes());
    hasher.update(&(payload.len() as u64).to_le_bytes());
    hasher.update(payload);
    hasher.finalize()
}

/// Checksum of one entry, so that it can be read back without its frame.
pub(super) fn entry_checksum(nonce: u64, id: &EntryId, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&nonce.to_le_bytes());
    hasher.update(&encode_id(id));
    hasher.update(payload);
    hasher.finalize()
}

/// A frame being filled with records.
#[derive(Debug, Default)]
pub(super) struct FrameBuilder {
    bytes: Vec<u8>,
}

impl FrameBuilder {
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.len() <= FRAME_HEADER_BYTES
    }

    pub(super) fn payload_bytes(&self) -> usize {
        self.bytes.len().saturating_sub(FRAME_HEADER_BYTES)
    }

    /// Appends a record; answers its offset in the frame.
    pub(super) fn push(&mut self, record: &Record, nonce: u64) -> usize {
        if self.bytes.is_empty() {
            self.bytes.resize(FRAME_HEADER_BYTES, 0);
        }
        let offset = self.bytes.len();
        record.encode(nonce, &mut self.bytes);
        offset
    }

    /// Completes the frame: its checksum and its bytes, padded to the alignment. The builder keeps its buffer.
    pub(super) fn seal(&mut self, segment: &SegmentHeader, header: &FrameHeader) -> (u32, &[u8]) {
        let checksum = frame_checksum(segment, header, &self.bytes[FRAME_HEADER_BYTES..]);
        // A payload is no longer than its segment, and a segment's capacity is checked to fit 32 bits.
        let length = u32::try_from(self.payload_bytes()).unwrap_or(u32::MAX);
        self.bytes[..4].copy_from_slice(FRAME_MAGIC);
        self.bytes[4..8].copy_from_slice(&length.to_le_bytes());
        self.bytes[8..12].copy_from_slice(&checksum.to_le_bytes());
        self.bytes[12..16].copy_from_slice(&header.previous.to_le_bytes());
        self.bytes[16..24].copy_from_slice(&header.sequence.to_le_bytes());
        self.bytes[24..32].copy_from_slice(&header.durable.to_le_bytes());
        let padded = self.bytes.len().next_multiple_of(usize::try_from(ALIGNMENT).unwrap_or(1));
        self.bytes.resize(padded, 0);
        (checksum, &self.bytes)
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
    }
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
            let id = at.id()?;
            let length = usize::try_from(at.u32()?).ok()?;
            at.u32()?;
            Record::Entry { id, payload: Bytes::copy_from_slice(at.take(length)?), moved: kind == 7 }
        }
        3 => Record::Truncate(at.u64()?),
        4 => Record::Committed(at.id()?),
        5 => Record::Purged { mark: at.id()?, first_segment: at.u64()? },
        6 => Record::Base(at.id()?),
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

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn id(&mut self) -> Option<EntryId> {
        Some(EntryId { term: self.u64()?, node: self.u64()?, index: self.u64()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            builder.push(&record, SEGMENT.nonce);
        }
        builder.seal(&SEGMENT, &FrameHeader { sequence: 9, durable: 8, previous: 0xdead_beef }).1.to_vec()
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// The expected bytes were computed from the table at the top of this file by another program.
    #[test]
    fn the_bytes_on_disk_stay_what_they_are() {
        assert_eq!(
            hex(&SEGMENT.encode()),
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
        assert_eq!(SegmentHeader::decode(&SEGMENT.encode()), Some(SEGMENT));
        let bytes = frame();
        let read = Frame::decode(&SEGMENT, &bytes).expect("a whole frame");
        assert_eq!((read.header.sequence, read.header.durable, read.header.previous), (9, 8, 0xdead_beef));
        assert_eq!(read.span(), 512);
        let found: Vec<Record> = records(read.payload).map(|r| r.expect("a record").1).collect();
        assert_eq!(found, one_of_each());
    }

    #[test]
    fn every_changed_bit_is_seen() {
        let header = SEGMENT.encode();
        for bit in 0..header.len() * 8 {
            let mut bytes = header;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SegmentHeader::decode(&bytes), None, "bit {bit} of the segment header");
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
