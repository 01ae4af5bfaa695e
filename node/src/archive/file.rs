//! One file of frames: written at its end, read from its beginning.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::{Disk, File};
use crate::error::Error;
use crate::rt;
use crate::segment::{
    ALIGNMENT, FIRST_FRAME, FRAME_HEADER_BYTES, Frame, FrameBuilder, FrameHeader, SegmentHeader, frame_span,
};

/// Marks the segments of an archive.
const SEGMENT_MAGIC: &[u8; 8] = b"SAMOVARC";
/// Largest payload of a frame, in bytes. A raft entry has at most 16 MiB, and what it adds is less than twice that.
const PAYLOAD_BYTES_MAX: usize = 32 << 20;
/// Bytes read at a time.
const READ_BYTES: usize = 256 << 10;

/// A file that grows.
pub(crate) struct Writer {
    header: SegmentHeader,
    pub(super) file: Arc<dyn File>,
    pub(super) path: PathBuf,
    /// Where the next frame goes.
    pub(super) offset: u64,
    sequence: u64,
    checksum: u32,
    frame: FrameBuilder,
}

impl Writer {
    /// Makes an empty file. Its name is durable after a sync of its directory.
    pub(crate) fn create(disk: &dyn Disk, path: PathBuf, number: u64) -> Result<Self, Error> {
        let mut nonce = [0; 8];
        rt::fill_random(&mut nonce);
        let header = SegmentHeader { number, nonce: u64::from_le_bytes(nonce), capacity: 0 };
        let make = || -> std::io::Result<Arc<dyn File>> {
            let file = disk.open(&path, true)?;
            file.set_length(0)?;
            file.write_at(&header.encode(SEGMENT_MAGIC), 0)?;
            Ok(Arc::from(file))
        };
        let file = make().map_err(|e| Error::io(format!("making {}", path.display()), &e))?;
        let frame = FrameBuilder::default();
        Ok(Self { header, file, path, offset: FIRST_FRAME, sequence: 0, checksum: 0, frame })
    }

    /// Goes on where a reader has come to; what lies behind is cut.
    pub(crate) fn after(reader: Reader) -> Result<Self, Error> {
        let Reader { header, file, path, offset, sequence, checksum, .. } = reader;
        let longer = file.length().and_then(|length| if length > offset { file.set_length(offset) } else { Ok(()) });
        longer.map_err(|e| Error::io(format!("cutting {}", path.display()), &e))?;
        Ok(Self { header, file, path, offset, sequence, checksum, frame: FrameBuilder::default() })
    }

    /// Writes one frame with what `encode` appends as its payload; not yet durable.
    pub(crate) fn append(&mut self, durable: u64, encode: impl FnOnce(&mut Vec<u8>)) -> Result<(), Error> {
        self.frame.clear();
        encode(self.frame.bytes());
        if self.frame.payload_bytes() > PAYLOAD_BYTES_MAX {
            let size = self.frame.payload_bytes() as u64;
            return Err(Error::TooLarge { what: "frame of the archive", size, limit: PAYLOAD_BYTES_MAX as u64 });
        }
        let header = FrameHeader { sequence: self.sequence + 1, durable, previous: self.checksum };
        let (checksum, bytes) = self.frame.seal(&self.header, &header);
        self.file
            .write_at(bytes, self.offset)
            .map_err(|e| Error::io(format!("writing {}", self.path.display()), &e))?;
        self.offset += bytes.len() as u64;
        self.sequence += 1;
        self.checksum = checksum;
        Ok(())
    }

    pub(crate) fn sync(&self) -> Result<(), Error> {
        sync(self.file.as_ref(), &self.path)
    }
}

pub(super) fn sync(file: &dyn File, path: &Path) -> Result<(), Error> {
    file.sync().map_err(|e| Error::io(format!("syncing {}", path.display()), &e))
}

/// What comes next in a file.
pub(crate) enum Step<'a> {
    Frame(Frame<'a>),
    /// The file ends where a frame ends.
    End,
    /// There is something that is no frame, or not the next one.
    Bad,
}

/// A place between two frames.
#[derive(Clone, Copy)]
pub(super) struct Place {
    offset: u64,
    sequence: u64,
    checksum: u32,
}

/// Reads a file from its beginning.
pub(crate) struct Reader {
    header: SegmentHeader,
    file: Arc<dyn File>,
    pub(super) path: PathBuf,
    /// Where the next frame begins.
    pub(super) offset: u64,
    sequence: u64,
    checksum: u32,
    /// What was read from `offset` on.
    buffer: Vec<u8>,
    used: usize,
}

impl Reader {
    /// Opens a file; `None`: it is not there, or its header is not readable.
    pub(crate) fn open(disk: &dyn Disk, path: PathBuf) -> Result<Option<Self>, Error> {
        let context = |e| Error::io(format!("reading {}", path.display()), &e);
        let file: Arc<dyn File> = match disk.open(&path, false) {
            Ok(file) => Arc::from(file),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(context(e)),
        };
        let mut bytes = [0; 64];
        let read = file.read_at(&mut bytes, 0).map_err(context)?;
        let Some(header) = SegmentHeader::decode(SEGMENT_MAGIC, &bytes[..read]) else { return Ok(None) };
        let (buffer, used) = (Vec::new(), 0);
        Ok(Some(Self { header, file, path, offset: FIRST_FRAME, sequence: 0, checksum: 0, buffer, used }))
    }

    /// The next frame.
    pub(crate) fn step(&mut self) -> Result<Step<'_>, Error> {
        if self.fill(FRAME_HEADER_BYTES)? == 0 {
            return Ok(Step::End);
        }
        let claimed = self.buffer[self.used..].get(4..8).and_then(|b| b.first_chunk::<4>());
        let payload = claimed.map_or(0, |b| usize::try_from(u32::from_le_bytes(*b)).unwrap_or(usize::MAX));
        if payload > PAYLOAD_BYTES_MAX {
            return Ok(Step::Bad);
        }
        let span = usize::try_from(frame_span(payload)).unwrap_or(usize::MAX);
        self.fill(span)?;
        let start = self.used;
        let Some(frame) = Frame::decode(&self.header, &self.buffer[start..]) else { return Ok(Step::Bad) };
        if frame.header.previous != self.checksum || frame.header.sequence != self.sequence + 1 {
            return Ok(Step::Bad);
        }
        self.checksum = frame.checksum;
        self.sequence = frame.header.sequence;
        self.offset += span as u64;
        self.used = self.buffer.len().min(start + span);
        Ok(Step::Frame(frame))
    }

    /// Where it stands; [`Reader::rewind`] goes back there.
    pub(super) fn place(&self) -> Place {
        Place { offset: self.offset, sequence: self.sequence, checksum: self.checksum }
    }

    pub(super) fn rewind(&mut self, place: Place) {
        Place { offset: self.offset, sequence: self.sequence, checksum: self.checksum } = place;
        self.buffer.clear();
        self.used = 0;
    }

    /// Reads on until so many bytes wait, or the file ends; returns how many wait.
    fn fill(&mut self, wanted: usize) -> Result<usize, Error> {
        let waiting = self.buffer.len() - self.used;
        if waiting >= wanted {
            return Ok(waiting);
        }
        self.buffer.drain(..self.used);
        self.used = 0;
        let more = (wanted - waiting).max(READ_BYTES);
        self.buffer.resize(waiting + more, 0);
        let at = self.offset + waiting as u64;
        let read = self.file.read_at(&mut self.buffer[waiting..], at);
        let read = read.map_err(|e| Error::io(format!("reading {}", self.path.display()), &e))?;
        self.buffer.truncate(waiting + read);
        Ok(self.buffer.len())
    }
}

const _: () = assert!(FIRST_FRAME.is_multiple_of(ALIGNMENT));
