//! Blobs: files named by their content under `blobs/`, and which of them the chain log names.
//!
//! | name in `blobs/` | what |
//! |---|---|
//! | `bafkrei…` | a whole blob ([`file`]) |
//! | `upload-N` | one on its way; removed at start |
//! | `erased-N` | one that goes; removed soon, and at start |
//! | `bafkrei….damaged` | one that was found damaged: kept for a person, never served; goes when the blob comes again |
//!
//! **References** are counted in memory: by apply as it goes, and at start from the rows of slots that hold a CID
//! ([`Tree::BlobSlots`](crate::store::Tree)), opened with their salts. No CID lies in a row: an erase could not clear it.
//! An erase that takes the last reference renames the file, durably, before it destroys the salt that says which one it is;
//! so whoever finds the salt gone after a crash finds the file gone, too.
//!
//! **Locks**: `names` is held by whoever changes names in the directory, over its sync; `state` inside it for a few
//! instructions.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::disk::Disk;
use crate::error::Error;
use crate::rt;
use crate::view::BlobStatus;

mod cid;
mod file;
mod upload;

pub use cid::{CID_CHARS, Cid};
use file::BlobFile;
pub use upload::BlobUpload;
pub(crate) use upload::Bounds;

/// Blobs fetched from peers at once.
const FETCHES_MAX: usize = 4;
/// Uploads at once; each takes up to 3 MiB of memory.
const UPLOADS_MAX: usize = 32;
const UPLOAD_PREFIX: &str = "upload-";
const ERASED_PREFIX: &str = "erased-";
const DAMAGED_SUFFIX: &str = ".damaged";

/// The blobs of this node.
pub(crate) struct Blobs {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    names: Mutex<()>,
    state: Mutex<State>,
    scrubbed_bytes: AtomicU64,
    damaged: AtomicU64,
    scrub_passed_ms: AtomicU64,
}

#[derive(Default)]
struct State {
    known: BTreeMap<Cid, Known>,
    /// Of names that are used once.
    sequence: u64,
    uploads: usize,
    /// Blobs that are being fetched from peers, and whether the last value that named one was erased meanwhile.
    fetched: BTreeMap<Cid, bool>,
    /// Files to remove.
    gone: Vec<PathBuf>,
}

/// What is known of a blob that is there, or ought to be.
struct Known {
    /// Its length in bytes, when it is there whole.
    size: Option<u64>,
    /// Values that name it and were not erased.
    references: u64,
    /// Writes in flight that name it.
    pins: u64,
    /// Its last reference was erased: it goes as soon as no write in flight names it.
    condemned: bool,
    /// When it last came or lost a reference.
    idle_since: tokio::time::Instant,
}

impl Default for Known {
    fn default() -> Self {
        Self { size: None, references: 0, pins: 0, condemned: false, idle_since: rt::instant() }
    }
}

/// Blobs that a write in flight names: they stay until it is dropped.
pub(crate) struct Pins {
    blobs: Arc<Blobs>,
    held: Vec<Cid>,
}

impl Blobs {
    /// Looks at what is there; removes what dead uploads and erases left.
    pub(crate) fn open(disk: &Arc<dyn Disk>, data: &Path) -> Result<Self, Error> {
        let directory = data.join("blobs");
        let context = || format!("opening {}", directory.display());
        let made = disk.create_directory(&directory).and_then(|()| disk.sync_directory(data));
        let names = made.and_then(|()| disk.list(&directory)).map_err(|e| Error::io(context(), &e))?;
        let blobs = Self {
            disk: Arc::clone(disk),
            directory,
            names: Mutex::default(),
            state: Mutex::default(),
            scrubbed_bytes: AtomicU64::new(0),
            damaged: AtomicU64::new(0),
            scrub_passed_ms: AtomicU64::new(0),
        };
        for name in names {
            blobs.found(&name)?;
        }
        blobs.remove_gone()?;
        Ok(blobs)
    }

    fn found(&self, name: &str) -> Result<(), Error> {
        let path = self.directory.join(name);
        if name.starts_with(UPLOAD_PREFIX) || name.starts_with(ERASED_PREFIX) {
            self.state().gone.push(path);
        } else if let Some(cid) = name.strip_suffix(DAMAGED_SUFFIX).and_then(|name| name.parse().ok()) {
            self.state().known.entry(cid).or_default();
        } else if let Ok(cid) = name.parse::<Cid>() {
            match self.open_file(&path)? {
                Some(file) => self.state().known.entry(cid).or_default().size = Some(file.size()),
                None => self.set_aside(&cid, "its end is missing")?,
            }
        }
        Ok(())
    }

    fn open_file(&self, path: &Path) -> Result<Option<BlobFile>, Error> {
        let file = self.disk.open(path, false).and_then(BlobFile::of);
        file.map_err(|e| Error::io(format!("opening {}", path.display()), &e))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn names(&self) -> MutexGuard<'_, ()> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, cid: &Cid) -> PathBuf {
        self.directory.join(cid.to_string())
    }

    fn damaged_path(&self, cid: &Cid) -> PathBuf {
        self.directory.join(format!("{cid}{DAMAGED_SUFFIX}"))
    }

    /// Length of a blob, in bytes, if it is here.
    pub(crate) fn size(&self, cid: &Cid) -> Option<u64> {
        self.state().known.get(cid).filter(|known| !known.condemned).and_then(|known| known.size)
    }

    /// Holds the blobs that a write names.
    ///
    /// # Errors
    /// [`Error::NoBlob`] for the first one that is not here.
    pub(crate) fn pin(self: &Arc<Self>, cids: impl Iterator<Item = Cid>) -> Result<Pins, Error> {
        let mut pins = Pins { blobs: Arc::clone(self), held: Vec::new() };
        for cid in cids {
            let mut state = self.state();
            let known = state.known.get_mut(&cid).filter(|known| known.size.is_some() && !known.condemned);
            known.ok_or_else(|| Error::NoBlob(cid.to_string()))?.pins += 1;
            pins.held.push(cid);
        }
        Ok(pins)
    }

    /// Begins to count from new what values name. Gives what they named before.
    pub(crate) fn forget_names(&self) -> Vec<Cid> {
        let mut state = self.state();
        let named = |known: &mut Known| std::mem::take(&mut known.references) > 0;
        state.known.iter_mut().filter_map(|(cid, known)| named(known).then_some(*cid)).collect()
    }

    /// Of blobs that values named before they were counted anew, those that none names now are erased, as by
    /// [`Blobs::erase`].
    pub(crate) fn erase_forgotten(&self, named_before: &[Cid]) -> Result<(), Error> {
        let named = |cid: &&Cid| self.state().known.get(cid).is_some_and(|known| known.references > 0);
        let forgotten: Vec<Cid> = named_before.iter().filter(|cid| !named(cid)).copied().collect();
        self.erase(&forgotten)
    }

    /// Blobs that values name and that are not here whole.
    pub(crate) fn missing(&self) -> Vec<Cid> {
        let state = self.state();
        let missing = |known: &Known| known.references > 0 && known.size.is_none();
        state.known.iter().filter(|(_, known)| missing(known)).map(|(cid, _)| *cid).collect()
    }

    /// Whether a blob is here; if so it stays as long as one that has just come.
    pub(crate) fn touch(&self, cid: &Cid) -> bool {
        let mut state = self.state();
        let here = state.known.get_mut(cid).filter(|known| known.size.is_some() && !known.condemned);
        here.map(|known| known.idle_since = rt::instant()).is_some()
    }

    /// A place for a blob that is to be fetched; `None` when it is here, being fetched already, or others take all places.
    pub(crate) fn fetch(self: &Arc<Self>, cid: Cid) -> Option<Fetch> {
        let mut state = self.state();
        let here = state.known.get(&cid).is_some_and(|known| known.size.is_some() && !known.condemned);
        if here || state.fetched.contains_key(&cid) || state.fetched.len() == FETCHES_MAX {
            return None;
        }
        state.fetched.insert(cid, false);
        Some(Fetch { blobs: Arc::clone(self), cid })
    }

    /// One more value names the blob.
    pub(crate) fn name(&self, cid: &Cid) {
        let mut state = self.state();
        let known = state.known.entry(*cid).or_default();
        known.references += 1;
        known.condemned = false;
    }

    /// Values that named these blobs are erased. What no other value names is out of reach, durably, when this returns,
    /// and removed soon after.
    pub(crate) fn erase(&self, cids: &[Cid]) -> Result<(), Error> {
        let _names = self.names();
        let mut renamed = false;
        for cid in cids {
            let erased = {
                let mut state = self.state();
                let Some(known) = state.known.get_mut(cid) else { continue };
                known.references = known.references.saturating_sub(1);
                known.idle_since = rt::instant();
                known.condemned = known.references == 0;
                let (condemned, erased) = (known.condemned, known.condemned && known.pins == 0);
                if let Some(gone) = state.fetched.get_mut(cid).filter(|_| condemned) {
                    *gone = true;
                }
                erased
            };
            if erased {
                renamed = true;
                self.put_away(cid)?;
            }
        }
        if renamed { self.sync_names() } else { Ok(()) }
    }

    /// Gives the files of a blob names that go, and forgets it. Called with `names` held, which then must be synced.
    fn put_away(&self, cid: &Cid) -> Result<(), Error> {
        self.state().known.remove(cid);
        for path in [self.path(cid), self.damaged_path(cid)] {
            let gone = {
                let mut state = self.state();
                state.sequence += 1;
                self.directory.join(format!("{ERASED_PREFIX}{}", state.sequence))
            };
            match self.disk.rename(&path, &gone) {
                Ok(()) => self.state().gone.push(gone),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::io(format!("renaming {}", path.display()), &e)),
            }
        }
        Ok(())
    }

    fn sync_names(&self) -> Result<(), Error> {
        let synced = self.disk.sync_directory(&self.directory);
        synced.map_err(|e| Error::io(format!("syncing {}", self.directory.display()), &e))
    }

    /// Removes what erases put away, and what nobody has named for `age`.
    pub(crate) fn collect(&self, age: Duration) -> Result<(), Error> {
        let names = self.names();
        let idle: Vec<Cid> = {
            let state = self.state();
            let goes = |known: &Known| {
                let unnamed = known.references == 0 && known.pins == 0;
                unnamed && (known.condemned || known.idle_since.elapsed() >= age)
            };
            state.known.iter().filter(|(_, known)| goes(known)).map(|(cid, _)| *cid).collect()
        };
        for cid in &idle {
            // A write may have come to name it in between; from here on none can.
            let goes = match self.state().known.get_mut(cid) {
                Some(known) if known.pins == 0 && known.references == 0 => {
                    known.condemned = true;
                    true
                }
                _ => false,
            };
            if goes {
                self.put_away(cid)?;
            }
        }
        drop(names);
        self.remove_gone()
    }

    fn remove_gone(&self) -> Result<(), Error> {
        let gone = std::mem::take(&mut self.state().gone);
        if gone.is_empty() {
            return Ok(());
        }
        for path in &gone {
            match self.disk.remove(path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io(format!("removing {}", path.display()), &e));
                }
                _ => {}
            }
        }
        self.sync_names()
    }

    /// A blob to read from.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::DamagedBlob`] when values name it and it is not here whole.
    pub(crate) fn read(self: &Arc<Self>, cid: &Cid) -> Result<Blob, Error> {
        let (size, named) = {
            let state = self.state();
            let known = state.known.get(cid).filter(|known| !known.condemned);
            (known.and_then(|known| known.size), known.is_some_and(|known| known.references > 0))
        };
        if size.is_none() {
            return Err(if named { Error::DamagedBlob(cid.to_string()) } else { no_blob(cid) });
        }
        match self.open_file(&self.path(cid)) {
            Ok(Some(file)) => Ok(Blob { blobs: Arc::clone(self), cid: *cid, file }),
            _ => {
                self.set_aside(cid, "its file cannot be opened, or its end is missing")?;
                Err(Error::DamagedBlob(cid.to_string()))
            }
        }
    }

    /// Takes a damaged blob out of service.
    fn set_aside(&self, cid: &Cid, what: &str) -> Result<(), Error> {
        let _names = self.names();
        self.state().known.entry(*cid).or_default().size = None;
        self.damaged.fetch_add(1, Relaxed);
        let path = self.damaged_path(cid);
        tracing::error!("the blob {cid} is damaged: {what}. It is set aside as {}; upload it again", path.display());
        match self.disk.rename(&self.path(cid), &path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io(format!("setting the blob {cid} aside"), &e));
            }
            _ => {}
        }
        self.sync_names()
    }

    /// Bytes that an unprivileged process may still write here.
    fn free_bytes(&self) -> Result<u64, Error> {
        self.disk.free_bytes(&self.directory).map_err(|e| Error::io("looking at free space for blobs", &e))
    }

    /// The first blob after one, for a walk over all of them.
    pub(crate) fn after(&self, cid: Option<Cid>) -> Option<Cid> {
        use std::ops::Bound::{Excluded, Unbounded};
        let state = self.state();
        let from = cid.map_or(Unbounded, Excluded);
        state.known.range((from, Unbounded)).find(|(_, known)| known.size.is_some()).map(|(cid, _)| *cid)
    }

    /// Takes note that all of them were read again.
    pub(crate) fn scrub_passed(&self) {
        self.scrub_passed_ms.store(rt::now_ms(), Relaxed);
    }

    /// How they are.
    pub(crate) fn status(&self) -> BlobStatus {
        let mut status = BlobStatus {
            scrubbed_bytes: self.scrubbed_bytes.load(Relaxed),
            damaged: self.damaged.load(Relaxed),
            scrub_passed_ms: self.scrub_passed_ms.load(Relaxed),
            ..BlobStatus::default()
        };
        let state = self.state();
        for known in state.known.values() {
            match known.size {
                Some(size) => {
                    status.count += 1;
                    status.bytes += size;
                    status.unnamed += u64::from(known.references == 0);
                }
                None => status.missing += u64::from(known.references > 0),
            }
        }
        status
    }
}

fn no_blob(cid: &Cid) -> Error {
    Error::NotFound(format!("the blob {cid}"))
}

impl Pins {
    /// Length of a blob that is held, in bytes.
    pub(crate) fn size(&self, cid: &Cid) -> Option<u64> {
        self.blobs.size(cid)
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let mut state = self.blobs.state();
        for cid in &self.held {
            if let Some(known) = state.known.get_mut(cid) {
                known.pins -= 1;
            }
        }
    }
}

/// A blob that is being fetched from a peer. What values named and was erased meanwhile is not taken in.
pub(crate) struct Fetch {
    blobs: Arc<Blobs>,
    pub(crate) cid: Cid,
}

impl Drop for Fetch {
    fn drop(&mut self) {
        self.blobs.state().fetched.remove(&self.cid);
    }
}

/// A blob that is read. Every piece is checked before it is given out.
#[derive(Clone)]
pub struct Blob {
    blobs: Arc<Blobs>,
    cid: Cid,
    file: BlobFile,
}

impl Blob {
    /// Its name.
    #[must_use]
    pub fn cid(&self) -> Cid {
        self.cid
    }

    /// Its length in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.file.size()
    }

    /// Bytes from `offset` on, at most 64 KiB of them and none only at the end.
    ///
    /// # Errors
    /// [`Error::DamagedBlob`]: they are not what was uploaded; the blob is taken out of service. [`Error::NotFound`] when it
    /// was erased meanwhile.
    pub async fn read(&self, offset: u64) -> Result<bytes::Bytes, Error> {
        let blob = self.clone();
        let read = rt::blocking(move || blob.read_now(offset)).await;
        read.unwrap_or_else(|e| Err(Error::Unavailable(format!("reading a blob ended early: {e}"))))
    }

    /// [`Blob::read`] on this thread.
    pub(crate) fn read_now(&self, offset: u64) -> Result<bytes::Bytes, Error> {
        if self.blobs.size(&self.cid).is_none() {
            return Err(no_blob(&self.cid));
        }
        if offset >= self.size() {
            return Ok(bytes::Bytes::new());
        }
        match self.file.piece(offset) {
            Ok((start, piece)) => {
                let skipped = usize::try_from(offset - start).unwrap_or(usize::MAX);
                Ok(bytes::Bytes::from(piece).slice(skipped..))
            }
            Err(error) => {
                self.damaged(&error.to_string())?;
                Err(Error::DamagedBlob(self.cid.to_string()))
            }
        }
    }

    /// Takes it out of service.
    pub(crate) fn damaged(&self, what: &str) -> Result<(), Error> {
        self.blobs.set_aside(&self.cid, what)
    }

    /// Counts what the scrub read.
    pub(crate) fn scrubbed(&self, bytes: u64) {
        self.blobs.scrubbed_bytes.fetch_add(bytes, Relaxed);
    }
}
