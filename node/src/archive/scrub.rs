//! Reads the archive again, slowly, and makes damaged segments again from the store.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tokio::sync::Notify;

use super::file::{Reader, Step, Writer};
use super::{Archive, Closed, Frame, Mark, Newest};
use crate::error::Error;
use crate::view::ArchiveStatus;

/// What the scrub did since start.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    bytes: AtomicU64,
    damaged: AtomicU64,
    repaired: AtomicU64,
    passed_ms: AtomicU64,
}

impl Counters {
    /// A pass ended.
    pub(crate) fn passed(&self, now_ms: u64) {
        self.passed_ms.store(now_ms, Relaxed);
    }
}

/// A segment that a reader found damaged, for the scrub to look at next.
#[derive(Debug, Default)]
pub(super) struct Suspect {
    /// Its number; 0: none.
    number: AtomicU64,
    named: Notify,
}

/// One segment being checked, piece by piece.
pub(crate) struct Check {
    pub(crate) number: u64,
    /// Where it ends, in bytes; `u64::MAX`: with the file.
    end: u64,
    /// How far the ledger was before it, as the end of the segment before says; to be compared.
    from: Mark,
    at: Option<(Reader, Mark)>,
}

/// How a check goes on.
pub(crate) enum Progress {
    /// So many bytes were read; there is more.
    Read(u64),
    /// The segment is whole; how far the ledger is after it.
    Whole(Mark),
    /// It is not.
    Damaged(String),
}

impl Check {
    /// Reads on until `bytes_max` have been read, or the segment ends.
    pub(crate) fn advance(&mut self, archive: &Archive, bytes_max: u64) -> Result<Progress, Error> {
        let (mut reader, mut mark) = match self.at.take() {
            Some(at) => at,
            None => match self.begin(archive)? {
                Some(reader) => (reader, self.from),
                None => return Ok(self.damaged(archive, 0)),
            },
        };
        let start = reader.offset;
        loop {
            let offset = reader.offset;
            if offset >= self.end {
                return Ok(self.whole(archive, offset - start, mark));
            }
            if offset - start >= bytes_max {
                archive.scrubbed.bytes.fetch_add(offset - start, Relaxed);
                self.at = Some((reader, mark));
                return Ok(Progress::Read(offset - start));
            }
            mark = match reader.step()? {
                Step::Frame(frame) => match Frame::decode_whole(frame.payload) {
                    Ok(frame) => mark.after(&frame),
                    Err(_) => return Ok(self.damaged(archive, offset)),
                },
                Step::End if self.end == u64::MAX => return Ok(self.whole(archive, offset - start, mark)),
                Step::End | Step::Bad => return Ok(self.damaged(archive, offset)),
            };
        }
    }

    fn begin(&self, archive: &Archive) -> Result<Option<Reader>, Error> {
        let location = &archive.location;
        let Some(mut reader) = Reader::open(location.disk.as_ref(), location.path(self.number))? else {
            return Ok(None);
        };
        let base = match reader.step()? {
            Step::Frame(frame) => Mark::decode(frame.payload),
            Step::End | Step::Bad => None,
        };
        Ok(base.filter(|base| self.from.meets(base)).map(|_| reader))
    }

    fn whole(&self, archive: &Archive, read: u64, mark: Mark) -> Progress {
        archive.scrubbed.bytes.fetch_add(read, Relaxed);
        match archive.base_after(self.number).filter(|base| !mark.meets(base)) {
            Some(_) => self.damaged(archive, self.end),
            None => Progress::Whole(mark),
        }
    }

    fn damaged(&self, archive: &Archive, offset: u64) -> Progress {
        archive.scrubbed.damaged.fetch_add(1, Relaxed);
        let path = archive.location.path(self.number);
        let place = if offset == u64::MAX { "its end".to_owned() } else { format!("offset {offset}") };
        Progress::Damaged(format!("the archive is damaged: {} at {place}", path.display()))
    }
}

impl Archive {
    /// The check of the first segment after number `after`; `from`: how far the ledger is after the one before. The part
    /// of the newest that is appended later is left out. `None`: there is none.
    pub(crate) fn check_after(&self, after: u64, from: Mark) -> Option<Check> {
        let tail = self.tail();
        let closed = tail.closed.range(after + 1..).next().map(|(number, _)| (*number, u64::MAX));
        let newest = match &tail.newest {
            Newest::Open { number, writer } if *number > after => Some((*number, writer.offset)),
            _ => None,
        };
        let (number, end) = closed.or(newest)?;
        Some(Check { number, end, from, at: None })
    }

    /// Has the scrub check a segment soon: whoever reads the archive for a peer needs it whole.
    pub(crate) fn suspect(&self, number: u64) {
        self.suspect.number.store(number, Relaxed);
        self.suspect.named.notify_one();
    }

    /// Resolves when a segment was named by [`Archive::suspect`]. For one that waits.
    pub(crate) async fn suspected(&self) {
        self.suspect.named.notified().await;
    }

    /// The check of the segment that was named, if there is one whose beginning is known.
    pub(crate) fn check_of_suspect(&self) -> Option<Check> {
        let number = self.suspect.number.swap(0, Relaxed);
        let tail = self.tail();
        let (from, end) = match &tail.newest {
            Newest::Open { number: newest, writer } if *newest == number => (tail.base, writer.offset),
            _ => (tail.closed.get(&number)?.base?, u64::MAX),
        };
        Some(Check { number, end, from, at: None })
    }

    /// How far the ledger was before the segment that follows `number`; `None`: there is none, or it cannot be read.
    fn base_after(&self, number: u64) -> Option<Mark> {
        let tail = self.tail();
        let closed = tail.closed.range(number + 1..).next();
        let is_newest = matches!(&tail.newest, Newest::Open { number: newest, .. } if *newest <= number);
        closed.map_or((!is_newest).then_some(tail.base), |(_, closed)| closed.base)
    }

    /// Makes a damaged segment again, which must not be the newest. `restate` is given two marks and a place for the frames that lead from one to the
    /// other. Returns how far the ledger is after the segment. The new file replaces the old one when it is durable.
    ///
    /// # Errors
    /// What `restate` says; [`Error::Io`]. Nothing is changed then.
    pub(crate) fn mend(
        &self,
        check: &Check,
        restate: impl FnOnce(Mark, Mark, &mut dyn FnMut(Frame) -> Result<(), Error>) -> Result<(), Error>,
    ) -> Result<Mark, Error> {
        let number = check.number;
        let to = self.next_known_base(number);
        let disk = self.location.disk.as_ref();
        let path = self.location.path(number);
        let mut writer = Writer::create(disk, path.with_extension("new"), number)?;
        writer.append(0, |bytes| check.from.encode(bytes))?;
        restate(check.from, to, &mut |frame| writer.append(0, |bytes| frame.encode(bytes)))?;
        writer.sync()?;
        let renamed = disk.rename(&writer.path, &path);
        renamed.map_err(|e| Error::io(format!("replacing {}", path.display()), &e))?;
        self.location.sync_names()?;
        self.tail().closed.insert(number, Closed { base: Some(check.from), bytes: writer.offset });
        self.scrubbed.repaired.fetch_add(1, Relaxed);
        Ok(to)
    }

    /// Goes on in another segment if this one is the newest, so that it can be made again. `end` is a frame that adds
    /// nothing and has the place where the ledger is: what is made again does not know it.
    ///
    /// # Errors
    /// [`Error::Io`]; final.
    pub(crate) fn seal(&self, check: &Check, end: &Frame) -> Result<(), Error> {
        let durable = self.store_durable();
        let mut tail = self.tail();
        if matches!(&tail.newest, Newest::Open { number, .. } if *number == check.number) {
            self.next_segment(&mut tail, check.number + 1, durable)?;
            self.writer(&mut tail, durable)?.append(durable, |bytes| end.encode(bytes))?;
        }
        Ok(())
    }

    /// Where the segment must end: at the base of the next one that has a readable one.
    fn next_known_base(&self, number: u64) -> Mark {
        let tail = self.tail();
        tail.closed.range(number + 1..).find_map(|(_, closed)| closed.base).unwrap_or(tail.base)
    }

    /// Figures.
    pub(crate) fn status(&self) -> ArchiveStatus {
        let Counters { bytes, damaged, repaired, passed_ms } = &self.scrubbed;
        ArchiveStatus {
            bytes: self.bytes(),
            scrubbed_bytes: bytes.load(Relaxed),
            damaged_segments: damaged.load(Relaxed),
            repaired_segments: repaired.load(Relaxed),
            scrub_passed_ms: passed_ms.load(Relaxed),
        }
    }
}
