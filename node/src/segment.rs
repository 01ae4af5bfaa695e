//! Segment files and the frames in them: what the raft log ([`crate::wal`]) and the archive ([`crate::archive`]) share. Pure;
//! all integers are little-endian.
//!
//! ```text
//! segment header, at 0            frame, at a multiple of 512
//!   0  magic, 8 bytes               0  "SWF1"
//!   8  version u32 = 1              4  payload length u32
//!  12  number u64                   8  checksum u32
//!  20  nonce u64                   12  checksum of the previous u32
//!  28  capacity u64                16  sequence number u64
//!  36  crc32 of the above          24  durable up to u64
//!      zeros up to 4096            32  payload, zeros up to 512
//! ```
//!
//! The checksum of a frame covers nonce, segment number, the rest of its header and its payload. The nonce is drawn on this
//! node and never leaves it, so bytes that a client stores cannot pass for a frame, nor can a segment of another node.
//! Frames begin at sectors of their own: a sector once durable is never written again.

use crate::planted::{Bug, planted};

/// Where the first frame of a segment begins, in bytes.
pub(crate) const FIRST_FRAME: u64 = 4096;
/// Frames begin at multiples of this, in bytes.
pub(crate) const ALIGNMENT: u64 = 512;
/// Length of a frame's header, in bytes.
pub(crate) const FRAME_HEADER_BYTES: usize = 32;
const SEGMENT_HEADER_BYTES: usize = 40;
const FRAME_MAGIC: &[u8; 4] = b"SWF1";
const VERSION: u32 = 1;

/// The header of a segment file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    /// Number of the segment, also its name.
    pub(crate) number: u64,
    /// Random; one for the whole raft log, another for each segment of the archive.
    pub(crate) nonce: u64,
    /// Length of the file, in bytes; 0: it grows.
    pub(crate) capacity: u64,
}

impl SegmentHeader {
    pub(crate) fn encode(&self, magic: &[u8; 8]) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        bytes[..8].copy_from_slice(magic);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..20].copy_from_slice(&self.number.to_le_bytes());
        bytes[20..28].copy_from_slice(&self.nonce.to_le_bytes());
        bytes[28..36].copy_from_slice(&self.capacity.to_le_bytes());
        let checksum = crc32fast::hash(&bytes[..36]);
        bytes[36..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// `None`: these are not the bytes of a header of this version with this magic.
    pub(crate) fn decode(magic: &[u8; 8], bytes: &[u8]) -> Option<Self> {
        let mut at = Cursor(bytes.get(..SEGMENT_HEADER_BYTES)?);
        let known = at.array::<8>()? == *magic && at.u32()? == VERSION;
        let header = Self { number: at.u64()?, nonce: at.u64()?, capacity: at.u64()? };
        (known && at.u32()? == crc32fast::hash(&bytes[..36])).then_some(header)
    }
}

/// What the header of a frame says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    /// Counts frames from 1: over all segments of the raft log, anew in each of the archive.
    pub(crate) sequence: u64,
    /// What was durable when this frame was written: in the raft log the highest sequence number, in the archive how far
    /// the store was.
    pub(crate) durable: u64,
    /// Checksum of the frame before, 0 before the first.
    pub(crate) previous: u32,
}

/// A frame that was read and found whole.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Frame<'a> {
    pub(crate) header: FrameHeader,
    pub(crate) checksum: u32,
    pub(crate) payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Reads the frame at the beginning of `bytes`; `None`: there is no whole frame.
    pub(crate) fn decode(segment: &SegmentHeader, bytes: &'a [u8]) -> Option<Self> {
        let mut at = Cursor(bytes.get(..FRAME_HEADER_BYTES)?);
        if at.array::<4>()? != *FRAME_MAGIC {
            return None;
        }
        let length = at.u32()?;
        let checksum = at.u32()?;
        let header = FrameHeader { previous: at.u32()?, sequence: at.u64()?, durable: at.u64()? };
        let payload = bytes[FRAME_HEADER_BYTES..].get(..usize::try_from(length).ok()?)?;
        let whole = frame_checksum(segment, &header, payload) == checksum || planted(Bug::DamageUnnoticed);
        whole.then_some(Self { header, checksum, payload })
    }

    /// Bytes that the frame takes in its segment, with the zeros behind it.
    pub(crate) fn span(&self) -> u64 {
        frame_span(self.payload.len())
    }
}

/// Bytes that a frame with a payload of this length takes in its segment.
pub(crate) fn frame_span(payload_bytes: usize) -> u64 {
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

/// A frame being filled.
#[derive(Debug, Default)]
pub(crate) struct FrameBuilder {
    bytes: Vec<u8>,
}

impl FrameBuilder {
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.len() <= FRAME_HEADER_BYTES
    }

    pub(crate) fn payload_bytes(&self) -> usize {
        self.bytes.len().saturating_sub(FRAME_HEADER_BYTES)
    }

    /// The frame so far, to append payload to; its first [`FRAME_HEADER_BYTES`] are kept for the header.
    pub(crate) fn bytes(&mut self) -> &mut Vec<u8> {
        if self.bytes.is_empty() {
            self.bytes.resize(FRAME_HEADER_BYTES, 0);
        }
        &mut self.bytes
    }

    /// Completes the frame: its checksum and its bytes, padded to the alignment. The builder keeps its buffer.
    pub(crate) fn seal(&mut self, segment: &SegmentHeader, header: &FrameHeader) -> (u32, &[u8]) {
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

    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
    }
}

/// Reads from the front of a slice; `None` beyond its end.
pub(crate) struct Cursor<'a>(pub(crate) &'a [u8]);

impl<'a> Cursor<'a> {
    pub(crate) fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}
