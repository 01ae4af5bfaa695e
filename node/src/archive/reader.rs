//! Reads the archive over its segments, frame by frame.

use std::collections::VecDeque;

use super::file::{self, Step};
use super::{Frame, Location, Mark};
use crate::error::Error;

/// Frames from one place on, in order. Holds one frame at a time.
pub(crate) struct Reader {
    location: Location,
    /// Number and, in bytes, the end of the segments to come, the open one first.
    segments: VecDeque<(u64, u64)>,
    open: Option<Stopped>,
}

/// The segment being read.
pub(super) struct Stopped {
    pub(super) number: u64,
    pub(super) reader: file::Reader,
    /// How far the ledger was before the segment.
    pub(super) base: Mark,
    /// How far it is after what was read.
    pub(super) end: Mark,
}

impl Reader {
    pub(super) fn new(location: Location, segments: VecDeque<(u64, u64)>) -> Self {
        Self { location, segments, open: None }
    }

    /// The next frame; `None` at the end.
    ///
    /// # Errors
    /// [`Error::Corrupt`] names file and place of what is damaged; [`Error::Io`].
    pub(crate) fn next(&mut self) -> Result<Option<Frame>, Error> {
        while let Some(&(number, end)) = self.segments.front() {
            if self.open.as_ref().is_none_or(|open| open.number != number) {
                self.enter(number)?;
            }
            let Some(open) = &mut self.open else { return Ok(None) };
            let offset = open.reader.offset;
            let step = if offset >= end { Step::End } else { open.reader.step()? };
            let frame = match step {
                Step::Frame(frame) => Frame::decode_whole(frame.payload),
                Step::End if end == u64::MAX || offset >= end => {
                    self.segments.pop_front();
                    continue;
                }
                Step::End | Step::Bad => Err(Error::Corrupt("there is a bad frame".into())),
            };
            let frame = frame.map_err(|what| damaged(&self.location, number, offset, &what.to_string()))?;
            open.end = open.end.after(&frame);
            return Ok(Some(frame));
        }
        Ok(None)
    }

    /// Number of the segment that it is in, or comes to next.
    pub(crate) fn segment(&self) -> Option<u64> {
        self.segments.front().map(|(number, _)| *number)
    }

    /// Opens a segment, which must go on where the one before it ended.
    fn enter(&mut self, number: u64) -> Result<(), Error> {
        let opened = file::Reader::open(self.location.disk.as_ref(), self.location.path(number))?;
        let unreadable = |what| damaged(&self.location, number, 0, what);
        let mut reader = opened.ok_or_else(|| unreadable("it is missing, or its header is damaged"))?;
        let base = match reader.step()? {
            Step::Frame(frame) => Mark::decode(frame.payload),
            Step::End | Step::Bad => None,
        };
        let base = base.ok_or_else(|| unreadable("its mark is damaged"))?;
        if self.open.as_ref().is_some_and(|before| !before.end.meets(&base)) {
            return Err(unreadable("it does not go on where the segment before it ends"));
        }
        self.open = Some(Stopped { number, reader, base, end: base });
        Ok(())
    }

    /// Where it stands, with the segment that it read last; `None`: it has read none.
    pub(super) fn stopped(self) -> Option<Stopped> {
        self.open
    }
}

fn damaged(location: &Location, number: u64, offset: u64, what: &str) -> Error {
    let path = location.path(number);
    Error::Corrupt(format!("the archive is damaged: {} at offset {offset}: {what}", path.display()))
}
