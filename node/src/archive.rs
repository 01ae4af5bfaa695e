//! The archive: a second copy of all that the store holds, frame by frame as the raft log added it, from which the store
//! is built anew when it is lost. And a snapshot for a peer: what lies before a frame never changes.
//!
//! A directory of segments that only grows ([`frame`] has what is in them). Apply appends one frame per raft entry;
//! [`Archive::sync`] makes them durable before the store is, and the raft log is released below both. So at start the
//! newer of the two brings the other up to itself (`ledger::open`). The archive has no salts: an erase needs nothing of it.
//!
//! Each segment begins with a mark of how far the ledger was before it, and its checksums form a chain of its own, so that
//! a damaged one can be made again from the store ([`scrub`]). What is behind a bad frame in the newest segments is cut
//! with the next append, not before: until then nothing is changed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::disk::{Disk, File};
use crate::error::Error;

mod file;
mod frame;
mod reader;
mod scrub;

pub(crate) use frame::{Frame, Mark};
pub(crate) use reader::Reader;
pub(crate) use scrub::{Check, Progress};

pub(crate) use file::{Reader as FileReader, Step, Writer as FileWriter};

use file::Writer;

/// A segment that has grown so far is followed by the next one, in bytes.
const SEGMENT_BYTES: u64 = if cfg!(test) {
    // So that a simulated life passes several.
    128 << 10
} else {
    64 << 20
};

/// The open archive.
pub(crate) struct Archive {
    location: Location,
    tail: Mutex<Tail>,
    /// One more than the raft index up to which the store is durable; 0: nothing is.
    store_durable: AtomicU64,
    /// What the scrub did.
    pub(crate) scrubbed: scrub::Counters,
    suspect: scrub::Suspect,
    /// What was found damaged at opening and could not be passed over.
    damage: Mutex<Option<String>>,
}

/// Where the segments lie.
#[derive(Clone)]
struct Location {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
}

impl Location {
    fn path(&self, number: u64) -> PathBuf {
        self.directory.join(format!("{number:016x}.archive"))
    }

    fn numbers(&self) -> Result<Vec<u64>, Error> {
        let names = self.disk.list(&self.directory);
        let names = names.map_err(|e| Error::io(format!("listing {}", self.directory.display()), &e))?;
        let stems = names.iter().filter_map(|name| name.strip_suffix(".archive")).filter(|stem| stem.len() == 16);
        let mut numbers: Vec<u64> = stems.filter_map(|stem| u64::from_str_radix(stem, 16).ok()).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    fn sync_names(&self) -> Result<(), Error> {
        let synced = self.disk.sync_directory(&self.directory);
        synced.map_err(|e| Error::io(format!("syncing {}", self.directory.display()), &e))
    }

    fn sync(&self, number: u64) -> Result<(), Error> {
        let path = self.path(number);
        let file = self.disk.open(&path, false).map_err(|e| Error::io(format!("opening {}", path.display()), &e))?;
        file::sync(file.as_ref(), &path)
    }

    fn remove(&self, number: u64) -> Result<(), Error> {
        let path = self.path(number);
        self.disk.remove(&path).map_err(|e| Error::io(format!("removing {}", path.display()), &e))
    }
}

/// A segment that is not the newest.
#[derive(Debug, Clone, Copy)]
struct Closed {
    /// How far the ledger was before it; `None`: not readable.
    base: Option<Mark>,
    bytes: u64,
}

/// The end that grows.
struct Tail {
    closed: BTreeMap<u64, Closed>,
    newest: Newest,
    /// How far the ledger is that is archived.
    end: Mark,
    /// Of the newest segment: how far the ledger was before it.
    base: Mark,
    /// A closed segment that is not durable yet; there is never more than one.
    unsynced: Option<(Arc<dyn File>, PathBuf)>,
    /// The newest segment has frames that are not durable.
    dirty: bool,
    /// Its name is not durable.
    unnamed: bool,
}

/// The newest segment.
enum Newest {
    /// None yet; these files are damaged and go before the first append.
    Nothing { beyond: Vec<u64> },
    /// As it was found: what is behind the reader is cut before the first append, and so are segments after it.
    Found { number: u64, reader: file::Reader, beyond: Vec<u64> },
    /// Being written to.
    Open { number: u64, writer: Writer },
}

/// What a segment was found to hold.
struct Found {
    base: Mark,
    end: Mark,
    /// The last place in it that can be gone on from, and how far the ledger is there. What follows was being made again
    /// from the store when a crash came, and lacks its end.
    sound: Option<(Mark, file::Place)>,
    /// The highest mark of how far the store was durable.
    store_durable: u64,
    reader: file::Reader,
}

impl Archive {
    /// Opens the archive of a data directory, making it when it is missing, and finds its end.
    ///
    /// # Errors
    /// [`Error::Io`]. What is damaged is left out.
    pub(crate) fn open(disk: &Arc<dyn Disk>, data: &Path) -> Result<Self, Error> {
        let location = Location { disk: Arc::clone(disk), directory: data.join("archive") };
        let made = disk.create_directory(&location.directory).and_then(|()| disk.sync_directory(data));
        made.map_err(|e| Error::io(format!("making {}", location.directory.display()), &e))?;
        let mut numbers = location.numbers()?;
        let (mut beyond, mut store_durable, mut newest) = (Vec::new(), 0, None);
        let mut found = numbers.last().map(|number| examine(&location, *number)).transpose()?.flatten();
        while let Some(number) = numbers.pop() {
            let before = numbers.last().map(|number| examine(&location, *number)).transpose()?;
            store_durable = found.as_ref().map_or(0, |f| f.store_durable).max(store_durable);
            // A crash may keep a segment and lose the one before it, or its end.
            let follows = |f: &Found| match &before {
                Some(before) => before.as_ref().is_some_and(|before| before.end.meets(&f.base)),
                None => f.base == Mark::default(),
            };
            if found.as_ref().is_some_and(|found| found.sound.is_some() && follows(found)) {
                newest = found.map(|found| (number, found));
                break;
            }
            beyond.push(number);
            found = before.flatten();
        }
        if let Some((number, _)) = &newest {
            // After a kill, what was read need not be durable yet.
            for number in numbers.last().into_iter().chain([number]) {
                location.sync(*number)?;
            }
            location.sync_names()?;
        }
        let closed = numbers.into_iter().map(|number| Ok((number, look_at(&location, number)?)));
        let closed = closed.collect::<Result<BTreeMap<_, _>, Error>>()?;
        if let Some(number) = beyond.last() {
            tracing::warn!("the archive is not whole at {}: its end is made again", location.path(*number).display());
        }
        let (base, end, newest) = match newest {
            Some((number, Found { base, end, mut reader, sound, .. })) => {
                let cut = sound.filter(|(mark, _)| *mark != end);
                cut.iter().for_each(|(_, place)| reader.rewind(*place));
                (base, cut.map_or(end, |(mark, _)| mark), Newest::Found { number, reader, beyond })
            }
            None => (Mark::default(), Mark::default(), Newest::Nothing { beyond }),
        };
        let tail = Tail { closed, newest, end, base, unsynced: None, dirty: false, unnamed: false };
        let (store_durable, damage) = (AtomicU64::new(store_durable), Mutex::new(None));
        let (scrubbed, suspect) = Default::default();
        Ok(Self { location, tail: Mutex::new(tail), store_durable, scrubbed, suspect, damage })
    }

    fn tail(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far the ledger is that is archived.
    pub(crate) fn end(&self) -> Mark {
        self.tail().end
    }

    /// One more than the raft index up to which the store was durable at least; 0: nothing is known. A store that ends
    /// before it has lost something.
    pub(crate) fn store_durable(&self) -> u64 {
        self.store_durable.load(Relaxed)
    }

    /// Takes note that the store is durable up to a raft index; goes out with the frames to come.
    pub(crate) fn note_store_durable(&self, raft_index: u64) {
        self.store_durable.fetch_max(raft_index + 1, Relaxed);
    }

    /// Appends a frame; durable after [`Archive::sync`].
    ///
    /// # Errors
    /// [`Error::Io`]; final: nothing is known about the end of the file.
    pub(crate) fn append(&self, frame: &Frame) -> Result<(), Error> {
        let durable = self.store_durable();
        let mut tail = self.tail();
        let after = tail.end.after(frame);
        self.writer(&mut tail, durable)?.append(durable, |bytes| frame.encode(bytes))?;
        tail.dirty = true;
        tail.end = after;
        Ok(())
    }

    /// The segment to append to; makes the next one when it is full.
    fn writer<'t>(&self, tail: &'t mut Tail, durable: u64) -> Result<&'t mut Writer, Error> {
        self.cut(tail)?;
        let number = match &tail.newest {
            Newest::Open { writer, .. } if writer.offset < SEGMENT_BYTES => None,
            Newest::Open { number, .. } => Some(number + 1),
            _ => Some(tail.closed.last_key_value().map_or(1, |(number, _)| number + 1)),
        };
        if let Some(number) = number {
            self.next_segment(tail, number, durable)?;
        }
        match &mut tail.newest {
            Newest::Open { writer, .. } => Ok(writer),
            _ => Err(Error::Unavailable("the archive has no segment to go on in".into())),
        }
    }

    /// Gets rid of what lies behind the end that was found.
    fn cut(&self, tail: &mut Tail) -> Result<(), Error> {
        let (Newest::Nothing { beyond } | Newest::Found { beyond, .. }) = &mut tail.newest else { return Ok(()) };
        let beyond = std::mem::take(beyond);
        if !beyond.is_empty() {
            beyond.iter().try_for_each(|number| self.location.remove(*number))?;
            self.location.sync_names()?;
        }
        let found = std::mem::replace(&mut tail.newest, Newest::Nothing { beyond: Vec::new() });
        if let Newest::Found { number, reader, .. } = found {
            tail.newest = Newest::Open { number, writer: Writer::after(reader)? };
        }
        Ok(())
    }

    /// Begins a segment. The one that ends is made durable later, but before another one begins: opening looks at two.
    fn next_segment(&self, tail: &mut Tail, number: u64, durable: u64) -> Result<(), Error> {
        if let Some((file, path)) = tail.unsynced.take() {
            file::sync(file.as_ref(), &path)?;
            self.location.sync_names()?;
        }
        let path = self.location.path(number);
        let mut writer = Writer::create(self.location.disk.as_ref(), path, number)?;
        let base = tail.end;
        writer.append(durable, |bytes| base.encode(bytes))?;
        if let Newest::Open { number, writer } = std::mem::replace(&mut tail.newest, Newest::Open { number, writer }) {
            tail.closed.insert(number, Closed { base: Some(tail.base), bytes: writer.offset });
            tail.unsynced = Some((writer.file, writer.path));
        }
        tail.base = base;
        tail.dirty = true;
        tail.unnamed = true;
        Ok(())
    }

    /// Makes everything appended durable.
    ///
    /// # Errors
    /// [`Error::Io`]; final.
    pub(crate) fn sync(&self) -> Result<(), Error> {
        let (closed, newest, unnamed) = {
            let mut tail = self.tail();
            let dirty = std::mem::replace(&mut tail.dirty, false);
            let newest = match &tail.newest {
                Newest::Open { writer, .. } if dirty => Some((Arc::clone(&writer.file), writer.path.clone())),
                _ => None,
            };
            (tail.unsynced.take(), newest, std::mem::replace(&mut tail.unnamed, false))
        };
        for (file, path) in closed.into_iter().chain(newest) {
            file::sync(file.as_ref(), &path)?;
        }
        if unnamed { self.location.sync_names() } else { Ok(()) }
    }

    /// Reads the frames that a ledger which is as far as `from` may lack, up to the end as it is now.
    pub(crate) fn read_from(&self, from: &Mark) -> Reader {
        let tail = self.tail();
        let newest = match &tail.newest {
            Newest::Nothing { .. } => None,
            Newest::Found { number, reader, .. } => Some((*number, reader.offset)),
            Newest::Open { number, writer } => Some((*number, writer.offset)),
        };
        let closed = tail.closed.iter().map(|(number, closed)| (*number, closed.base, u64::MAX));
        let all = closed.chain(newest.map(|(number, end)| (number, Some(tail.base), end)));
        let mut segments: Vec<_> = all.collect();
        let begin = segments.iter().rposition(|(_, base, _)| base.is_some_and(|base| base <= *from)).unwrap_or(0);
        let segments = segments.split_off(begin).into_iter().map(|(number, _, end)| (number, end));
        Reader::new(self.location.clone(), segments.collect())
    }

    /// Takes the place before which a reader found damage for the end. What is behind is cut with the next append.
    pub(crate) fn end_at(&self, reader: Reader, what: String) {
        let mut tail = self.tail();
        *self.damage.lock().unwrap_or_else(PoisonError::into_inner) = Some(what);
        let newest = match &tail.newest {
            Newest::Nothing { .. } => None,
            Newest::Found { number, .. } | Newest::Open { number, .. } => Some(*number),
        };
        let mut beyond: Vec<u64> = tail.closed.keys().copied().chain(newest).collect();
        tail.dirty = false;
        tail.newest = match reader.stopped() {
            Some(stopped) => {
                beyond.retain(|number| *number > stopped.number);
                tail.closed.retain(|number, _| *number < stopped.number);
                (tail.base, tail.end) = (stopped.base, stopped.end);
                Newest::Found { number: stopped.number, reader: stopped.reader, beyond }
            }
            None => {
                tail.closed.clear();
                (tail.base, tail.end) = (Mark::default(), Mark::default());
                Newest::Nothing { beyond }
            }
        };
    }

    /// What was found damaged at opening and ends the archive early.
    pub(crate) fn damage(&self) -> Option<String> {
        self.damage.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Bytes of all segments.
    pub(crate) fn bytes(&self) -> u64 {
        let tail = self.tail();
        let newest = match &tail.newest {
            Newest::Nothing { .. } => 0,
            Newest::Found { reader, .. } => reader.offset,
            Newest::Open { writer, .. } => writer.offset,
        };
        newest + tail.closed.values().map(|closed| closed.bytes).sum::<u64>()
    }
}

/// Reads a segment to its end, or to the first bad frame; `None`: not even its beginning is readable.
fn examine(location: &Location, number: u64) -> Result<Option<Found>, Error> {
    let Some(mut reader) = file::Reader::open(location.disk.as_ref(), location.path(number))? else { return Ok(None) };
    let base = match reader.step()? {
        Step::Frame(frame) => Mark::decode(frame.payload).map(|base| (base, frame.header.durable)),
        Step::End | Step::Bad => None,
    };
    let Some((base, mut store_durable)) = base else { return Ok(None) };
    let mut end = base;
    let sound_at = |mark: Mark, reader: &file::Reader| mark.is_sound().then(|| (mark, reader.place()));
    let mut sound = sound_at(base, &reader);
    while let Step::Frame(frame) = reader.step()? {
        store_durable = frame.header.durable;
        let entry = Frame::decode_whole(frame.payload).map_err(|_| unknown_format(location, number))?;
        end = end.after(&entry);
        sound = sound_at(end, &reader).or(sound);
    }
    Ok(Some(Found { base, end, sound, store_durable, reader }))
}

/// Its checksum is right, so it was written so.
fn unknown_format(location: &Location, number: u64) -> Error {
    let path = location.path(number);
    Error::Invalid(format!("{} is of a format not known here: start the newer version again", path.display()))
}

/// What is to know of a closed segment without reading it.
fn look_at(location: &Location, number: u64) -> Result<Closed, Error> {
    let path = location.path(number);
    let file = location.disk.open(&path, false).and_then(|file| file.length());
    let bytes = file.map_err(|e| Error::io(format!("reading {}", path.display()), &e))?;
    let mut reader = file::Reader::open(location.disk.as_ref(), path)?;
    let first = reader.as_mut().map(file::Reader::step).transpose()?;
    let base = match first {
        Some(Step::Frame(frame)) => Mark::decode(frame.payload),
        _ => None,
    };
    Ok(Closed { base, bytes })
}

#[cfg(test)]
mod tests;
