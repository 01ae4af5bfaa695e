//! Snapshots for peers. A snapshot at a raft index is what the archive holds up to there, which never changes, with the
//! salts of the values still held. Every peer's chain is a beginning of the leader's, so only what the receiver lacks is
//! sent, in chunks; neither side holds more than one of them in memory.
//!
//! The receiver stages what comes in a file beside the store ([`Receiver`]), and installs it as a whole: once the file and
//! the note that says so are durable, each frame is put back as from the own archive, block hashes and state roots
//! recomputed ([`Ledger::install`]). A crash before the note leaves the ledger as it was, one after it is gone on from at
//! the next start. Salts are in the file in the clear: it goes when it was installed, at each start, and after an erase.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::archive::{FileReader, FileWriter, Frame, Mark, Reader, Step};
use crate::disk::Disk;
use crate::durable;
use crate::error::Error;
use crate::ledger::{HeadRow, Ledger};
use crate::machine::Source;
use crate::planted::{Bug, planted};
use crate::rt;
use crate::salts::{self, SALT_BYTES};
use crate::store::values;

mod pace;

use pace::{Pace, Paces};

/// A chunk is sent when it has grown so far, in bytes; one frame may exceed it.
const CHUNK_BYTES: usize = 1 << 20;
/// Largest chunk that is taken, in bytes: a frame has at most 32 MiB, and its salts fewer.
const CHUNK_BYTES_MAX: usize = 64 << 20;
/// Before each frame of a chunk: its length with its salts, u32, little-endian.
const LENGTH_BYTES: usize = 4;
/// To put an entry back is as much work as so many bytes, whatever it holds.
const ENTRY_BYTES: u64 = 2 << 10;
/// So many bytes are made durable at a time while a snapshot is taken in: all at once, they would hold up every other file
/// of the disk.
const SYNC_BYTES: u64 = 16 << 20;

/// Reads a snapshot of this ledger, chunk by chunk.
pub(crate) struct Sender {
    ledger: Arc<Ledger>,
    /// Where the snapshot ends.
    end: Mark,
    /// How far the receiver is with what it was sent.
    at: Mark,
    reader: Option<Box<Reader>>,
}

impl Sender {
    /// A snapshot of the ledger as it was at a mark up to which it is durable.
    pub(crate) fn new(ledger: Arc<Ledger>, end: Mark) -> Self {
        Self { ledger, end, at: Mark::default(), reader: None }
    }

    /// Begins after what the receiver has ([`Receiver::has`]); may be called again to resume.
    pub(crate) fn begin_after(&mut self, has: Mark) {
        self.at = has;
        self.reader = None;
    }

    /// The next chunk: frames, each with its length before and the salts of its values behind it. `None` at the end.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when archive or salt file are damaged, the archive is mended then; [`Error::Unavailable`] when it was
    /// mended where the snapshot ends: take a newer one; [`Error::Io`].
    pub(crate) async fn next_chunk(&mut self) -> Result<Option<Bytes>, Error> {
        let (ledger, end, mut at) = (Arc::clone(&self.ledger), self.end, self.at);
        let mut reader = self.reader.take().unwrap_or_else(|| Box::new(ledger.archive.read_from(&at)));
        let read = rt::blocking(move || {
            let mut chunk = Vec::new();
            while chunk.len() < CHUNK_BYTES {
                let next = reader.next();
                if let (Err(Error::Corrupt(_)), Some(number)) = (&next, reader.segment()) {
                    ledger.archive.suspect(number);
                }
                let Some(frame) = next?.filter(|frame| frame.raft_index <= end.raft_index) else { break };
                if planted(Bug::SnapshotWithoutLastBlock) && frame.raft_index == end.raft_index {
                    at = at.after(&frame);
                    continue;
                }
                if !at.covers(&frame) {
                    at = at.after(&frame);
                    push_item(&ledger, frame, &mut chunk)?;
                }
            }
            Ok::<_, Error>((reader, at, chunk))
        });
        let (reader, at, chunk) = read.await.map_err(|e| Error::Unavailable(format!("reading a snapshot: {e}")))??;
        self.reader = Some(reader);
        self.at = at;
        // What was made again from the store can be cut at its end only: outcomes stand there together.
        let covered = end.raft_index < at.raft_index || Mark { raft_index: end.raft_index, ..at }.meets(&end);
        if chunk.is_empty() && !covered {
            return Err(Error::Unavailable("the archive was mended where the snapshot ends: take a newer one".into()));
        }
        Ok((!chunk.is_empty()).then(|| chunk.into()))
    }
}

/// Appends a frame with the salts that are held now. A value that was erased since it was archived goes without its bytes.
fn push_item(ledger: &Ledger, mut frame: Frame, chunk: &mut Vec<u8>) -> Result<(), Error> {
    let salts = {
        // An erase takes salt and row under the chain's lock: neither without the other is seen.
        let _chain = ledger.chain();
        let salts = ledger.salts.read_many(frame.first_slot, frame.values.len())?;
        for ((slot, value), salt) in (frame.first_slot..).zip(&mut frame.values).zip(salts.as_chunks::<SALT_BYTES>().0)
        {
            if *salt == [0; SALT_BYTES]
                && let erased @ values::Stored::Erased(_) = values::one(&ledger.rows, slot)?
            {
                *value = erased;
            }
        }
        salts
    };
    check_salts(&frame, &salts).inspect_err(|_| ledger.salts.note_damage())?;
    let start = chunk.len();
    chunk.extend_from_slice(&[0; LENGTH_BYTES]);
    frame.encode(chunk);
    chunk.extend_from_slice(&salts);
    let length = u32::try_from(chunk.len() - start - LENGTH_BYTES).unwrap_or(u32::MAX);
    chunk[start..start + LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
    Ok(())
}

/// Looks whether the values of a frame open with their salts. A peer that got one that does not would lose the value too, and
/// write it over a salt of its own that is whole.
fn check_salts(frame: &Frame, salts: &[u8]) -> Result<(), Error> {
    for ((slot, value), salt) in (frame.first_slot..).zip(&frame.values).zip(salts.as_chunks::<SALT_BYTES>().0) {
        if let values::Stored::Ciphertext(bytes) = value {
            // Of entries that begin at one slot, only the last has values.
            let entries = frame.lines.partition_point(|stored| stored.slot <= slot) as u64;
            salts::open(salt, frame.first + entries.saturating_sub(1), bytes.clone())?;
        }
    }
    Ok(())
}

/// Splits a frame from the salts behind it; `None`: it is not that.
fn split_item(item: &[u8]) -> Option<(Frame, &[u8])> {
    let (frame, salts) = Frame::decode(item)?;
    (salts.len() == frame.values.len() * SALT_BYTES).then_some((frame, salts))
}

/// The files of a snapshot being received, in the data directory.
pub(crate) struct Staging {
    disk: Arc<dyn Disk>,
    data: PathBuf,
    /// Counts how often what was staged went away. Held while the file is made, installed or removed.
    gone: Mutex<u64>,
    installing: AtomicBool,
    paces: Paces,
}

/// That the staged file is to be installed: the place in the raft log at its end.
#[derive(Serialize, Deserialize)]
struct Install {
    raft_index: u64,
    place: Vec<u8>,
}

impl Staging {
    pub(crate) fn new(disk: &Arc<dyn Disk>, data: &std::path::Path) -> Self {
        Self {
            disk: Arc::clone(disk),
            data: data.to_owned(),
            gone: Mutex::new(0),
            installing: AtomicBool::default(),
            paces: Paces::default(),
        }
    }

    fn part(&self) -> PathBuf {
        self.data.join("snapshot.part")
    }

    fn note(&self) -> PathBuf {
        self.data.join("snapshot.install")
    }

    fn pending(&self) -> Result<Option<Install>, Error> {
        let note = durable::read(self.disk.as_ref(), &self.note())?;
        let decode = |bytes: Vec<u8>| {
            let damaged = |e| Error::Corrupt(format!("{} is damaged ({e}): restore a backup", self.note().display()));
            postcard::from_bytes(&bytes).map_err(damaged)
        };
        note.map(decode).transpose()
    }

    /// Removes what was staged and not installed; who is receiving must begin again. Waits for an installation.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn discard(&self) -> Result<(), Error> {
        self.discard_under(&mut self.gone())
    }

    fn discard_under(&self, gone: &mut u64) -> Result<(), Error> {
        *gone += 1;
        self.remove(&self.part())
    }

    /// Whether a snapshot is being put in place, which takes as long as it is large.
    pub(crate) fn is_installing(&self) -> bool {
        self.installing.load(Relaxed)
    }

    fn gone(&self) -> MutexGuard<'_, u64> {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remove(&self, path: &std::path::Path) -> Result<(), Error> {
        let removed = match self.disk.remove(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            removed => removed.and_then(|()| self.disk.sync_directory(&self.data)),
        };
        removed.map_err(|e| Error::io(format!("removing {}", path.display()), &e))
    }
}

/// Takes a snapshot in.
pub(crate) struct Receiver {
    ledger: Arc<Ledger>,
    /// `None` after an error: the snapshot must be begun again.
    stage: Option<Stage>,
}

struct Stage {
    writer: FileWriter,
    /// What [`Staging::gone`] was when it was begun.
    gone: u64,
    /// How far the ledger will be with what is staged.
    end: Mark,
    pace: Pace,
    /// Bytes that were staged and are not known to be durable.
    loose: u64,
}

impl Receiver {
    /// Begins, or goes on where an earlier one of this start was given up.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) async fn begin(ledger: Arc<Ledger>) -> Result<Self, Error> {
        let opening = Arc::clone(&ledger);
        let stage = rt::blocking(move || Stage::open(&opening)).await;
        let stage = stage.map_err(|e| Error::Unavailable(format!("beginning a snapshot: {e}")))??;
        Ok(Self { ledger, stage: Some(stage) })
    }

    /// How far the ledger will be with what was received: what the sender is to begin after.
    pub(crate) fn has(&self) -> Mark {
        self.stage.as_ref().map_or_else(Mark::default, |stage| stage.end)
    }

    /// Takes a chunk. One that was taken before does no harm.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is no chunk or does not follow; [`Error::Io`]. Begin again then.
    pub(crate) async fn push_chunk(&mut self, chunk: Bytes) -> Result<(), Error> {
        let given_up = || Error::Unavailable("receiving a snapshot was given up: begin again".into());
        let mut stage = self.stage.take().ok_or_else(given_up)?;
        rt::sleep(stage.pace.take(chunk.len() as u64)).await;
        let ledger = Arc::clone(&self.ledger);
        let pushed = rt::blocking(move || {
            let gone = ledger.staging.gone();
            stage.check(*gone)?;
            stage.push(&chunk).map(|()| stage)
        });
        let pushed = pushed.await;
        self.stage = Some(pushed.map_err(|_| given_up())??);
        Ok(())
    }

    /// Installs what was received: the ledger is then as the sender's was at `raft_index`, with `place` as its place in the
    /// raft log, durably. Returns the head.
    ///
    /// # Errors
    /// As [`Ledger::install`]; the node must be started again.
    pub(crate) async fn install(mut self, raft_index: u64, place: Vec<u8>) -> Result<HeadRow, Error> {
        let given_up = || Error::Unavailable("installing a snapshot was given up".into());
        let stage = self.stage.take().ok_or_else(given_up)?;
        let ledger = self.ledger;
        let installed = rt::blocking(move || {
            let staging = &ledger.staging;
            let mut gone = staging.gone();
            stage.check(*gone)?;
            // What is staged begins where the ledger was, which need not be durable yet: at a start the note is followed
            // before the raft log brings that again.
            ledger.sync(true)?;
            stage.writer.sync()?;
            let note = Install { raft_index, place };
            // postcard cannot fail on this type: every sequence has a known length.
            durable::replace(staging.disk.as_ref(), &staging.note(), &postcard::to_stdvec(&note).unwrap_or_default())?;
            staging.installing.store(true, Relaxed);
            let installed = ledger.install_under(&mut gone, Some(staging.paces.next()));
            staging.installing.store(false, Relaxed);
            staging.paces.installed();
            installed
        });
        installed.await.map_err(|_| given_up())?
    }
}

impl Stage {
    fn open(ledger: &Ledger) -> Result<Self, Error> {
        let staging = &ledger.staging;
        let gone = staging.gone();
        let head = Mark::of(&ledger.chain().head);
        if let Some((reader, end)) = Self::resume(staging, &head)? {
            let (writer, pace) = (FileWriter::after(reader)?, staging.paces.next());
            return Ok(Self { writer, gone: *gone, end, pace, loose: 0 });
        }
        let mut writer = FileWriter::create(staging.disk.as_ref(), staging.part(), 0)?;
        writer.append(0, |bytes| head.encode(bytes))?;
        Ok(Self { writer, gone: *gone, end: head, pace: staging.paces.next(), loose: 0 })
    }

    /// Refuses to go on with a file that is gone.
    fn check(&self, gone: u64) -> Result<(), Error> {
        if self.gone == gone {
            return Ok(());
        }
        Err(Error::Unavailable("what was received of the snapshot was removed meanwhile: begin again".into()))
    }

    /// What is staged already, if the ledger has what comes before it.
    fn resume(staging: &Staging, head: &Mark) -> Result<Option<(FileReader, Mark)>, Error> {
        let Some((mut reader, mut end)) = open_part(staging)? else { return Ok(None) };
        if end > *head {
            return Ok(None);
        }
        while let Step::Frame(frame) = reader.step()? {
            match split_item(frame.payload) {
                Some((frame, _)) => end = end.after(&frame),
                None => return Ok(None),
            }
        }
        Ok((end >= *head).then_some((reader, end)))
    }

    fn push(&mut self, chunk: &[u8]) -> Result<(), Error> {
        if chunk.len() > CHUNK_BYTES_MAX {
            let (size, limit) = (chunk.len() as u64, CHUNK_BYTES_MAX as u64);
            return Err(Error::TooLarge { what: "chunk of a snapshot", size, limit });
        }
        let invalid = |what: &str| Error::Invalid(format!("a chunk of a snapshot {what}"));
        let mut rest = chunk;
        while !rest.is_empty() {
            let (length, after) = rest.split_first_chunk().ok_or_else(|| invalid("is cut off"))?;
            let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
            let (item, after) = after.split_at_checked(length).ok_or_else(|| invalid("is cut off"))?;
            let (frame, _) = split_item(item).ok_or_else(|| invalid("holds no frame with its salts"))?;
            rest = after;
            if self.end.covers(&frame) {
                continue;
            }
            if !frame.lines.is_empty() && (frame.first, frame.first_slot) != (self.end.size, self.end.slots) {
                return Err(invalid("does not follow what was received"));
            }
            self.writer.append(0, |bytes| bytes.extend_from_slice(item))?;
            self.end = self.end.after(&frame);
        }
        self.loose += chunk.len() as u64;
        if self.loose >= SYNC_BYTES {
            self.loose = 0;
            self.writer.sync()?;
        }
        Ok(())
    }
}

/// Opens the staged file and reads how far the ledger was when it was begun.
fn open_part(staging: &Staging) -> Result<Option<(FileReader, Mark)>, Error> {
    let Some(mut reader) = FileReader::open(staging.disk.as_ref(), staging.part())? else { return Ok(None) };
    let base = match reader.step()? {
        Step::Frame(frame) => Mark::decode(frame.payload),
        Step::End | Step::Bad => None,
    };
    Ok(base.map(|base| (reader, base)))
}

impl Ledger {
    /// Installs what is staged, if a note says that it is to be; else removes it. Returns the head.
    ///
    /// # Errors
    /// [`Error::DamagedStore`] when a frame does not give the block that it states, [`Error::Corrupt`], [`Error::Io`].
    pub(crate) fn install(&self) -> Result<HeadRow, Error> {
        self.install_under(&mut self.staging.gone(), None)
    }

    /// `pace`: how fast, if others are not to notice.
    fn install_under(&self, gone: &mut u64, pace: Option<Pace>) -> Result<HeadRow, Error> {
        let staging = &self.staging;
        if let Some(Install { raft_index, place }) = staging.pending()? {
            self.put_back_staged(pace)?;
            let (head, outcomes_kept) = {
                let chain = self.chain();
                (Mark::of(&chain.head), chain.head.outcomes)
            };
            if head.raft_index > raft_index {
                return Err(Error::Corrupt(format!(
                    "a snapshot at raft index {raft_index} was received, the ledger is at {}: restore a backup, or rejoin \
                     the cluster from its peers",
                    head.raft_index
                )));
            }
            // Nothing but the place, which the receiver's own Raft must find again.
            let end = Frame { raft_index, place: Some(place), outcomes_kept, ..Frame::default() };
            self.restore(end, Source::Peer { salts: Vec::new() })?;
            self.sync(true)?;
            staging.remove(&staging.note())?;
        }
        staging.discard_under(gone)?;
        self.count_blobs()?;
        Ok(self.chain().head.clone())
    }

    fn put_back_staged(&self, mut pace: Option<Pace>) -> Result<(), Error> {
        let staging = &self.staging;
        let path = staging.part();
        let damaged =
            || Error::Corrupt(format!("{} is damaged: restore a backup, or rejoin the cluster", path.display()));
        let (mut reader, _) = open_part(staging)?.ok_or_else(damaged)?;
        let mut loose = 0;
        loop {
            let item = match reader.step()? {
                Step::Frame(frame) => frame.payload,
                Step::End => return Ok(()),
                Step::Bad => return Err(damaged()),
            };
            let bytes = item.len() as u64;
            let (frame, salts) = split_item(item).ok_or_else(damaged)?;
            if let Some(pace) = &mut pace {
                pace.hold_back(bytes + ENTRY_BYTES * frame.lines.len() as u64);
            }
            if Mark::of(&self.chain().head).covers(&frame) {
                self.salts_again(&frame, salts)?;
            } else {
                self.restore(frame, Source::Peer { salts: salts.to_vec() })?;
            }
            loose += bytes;
            if loose >= SYNC_BYTES {
                loose = 0;
                self.sync(false)?;
            }
            self.sync_if_much()?;
        }
    }

    /// Writes the salts of a frame that is there already: a power cut can have kept its rows and lost the salts.
    fn salts_again(&self, frame: &Frame, salts: &[u8]) -> Result<(), Error> {
        for (slot, salt) in (frame.first_slot..).zip(salts.as_chunks::<SALT_BYTES>().0) {
            let held =
                *salt != [0; SALT_BYTES] && matches!(values::one(&self.rows, slot)?, values::Stored::Ciphertext(_));
            if held {
                self.salts.write(slot, salt)?;
            }
        }
        Ok(())
    }
}
