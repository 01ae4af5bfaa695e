//! The state map: an authenticated map from key hash to the key's current revision, whose root every block carries.
//!
//! [`proof`] says what the root is and checks proofs. This module keeps the map so that a block costs little:
//!
//! - `tree`: the upper nodes of the trie, in memory, down to cells of a few keys;
//! - `buckets`: the entries, in pages on disk, found by extendible hashing over the key-hash prefix;
//! - *deltas*: the entries that blocks changed lately, in memory, laid over the buckets until they are flushed;
//! - `view`: what later blocks replaced, for proofs as of an earlier block.
//!
//! The map is derived from the chain log and its layout is local: nothing here is replicated. What matters is that it
//! never shows a wrong root. So a change reaches a page only when its block is durable elsewhere
//! ([`StateMap::flush`]); opening finds the newest set of pages that is provably whole, and the caller replays the
//! entries of the blocks above [`StateMap::low_water`] through [`StateMap::apply`] and compares the root with that of
//! its newest block ([`StateMap::root`]). If they differ, [`StateMap::reset`] and replay from the first block.
//!
//! **Locks.** One `RwLock` over everything but the file. Readers share it and read pages under it. `apply` holds it
//! for a block, `flush` for a slice of [`SLICE_BUCKETS`] buckets. `sync` waits for the disk without it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::disk::{Disk, File};
use crate::entry::MapValue;
use crate::error::Error;

pub mod proof;

mod buckets;
mod file;
mod map;
mod open;
mod page;
mod tree;
mod view;

#[cfg(test)]
mod tests;

pub use page::{PAGE_ENTRIES_MAX, State};
pub use proof::KeyHash;
pub use view::{VIEWS_MAX, ViewId};

use buckets::{Buckets, DIRECTORY_DEPTH_MAX};
use file::PageFile;
use map::Map;
use open::Content;
use page::{Entry, Mark, PAGE_BYTES};

/// How often a flush looks whether those who waited for the lock have had it.
const HAND_OVER_TRIES: usize = 1_000;
/// Buckets written under one hold of the lock.
const SLICE_BUCKETS: usize = 32;

/// Entries that blocks changed and that are in no page yet.
type Deltas = BTreeMap<KeyHash, Entry>;

/// How the map is kept. The root does not depend on any of it.
#[derive(Debug, Clone)]
pub struct Config {
    /// Changed keys kept in memory before [`StateMap::flush`] writes: more means fewer page writes. Each takes about
    /// 120 bytes, and up to twice as many are held. Default 16,384.
    pub write_behind: usize,
    /// Most replaced nodes and entries kept for frozen views, about 60 bytes each; beyond, the oldest view is dropped
    /// and its proofs answer [`Error::NotFound`]. Default 131,072.
    pub replaced_max: usize,
    /// Entries in a page, 1 to [`PAGE_ENTRIES_MAX`] (the default).
    pub page_entries: usize,
    /// Deepest bucket prefix, in bits, at most 20 (the default); keys that collide in it make their bucket overflow.
    pub directory_depth_max: u8,
    /// Depth of the cells of a new map, in bits. Default 8.
    pub cell_depth_min: u8,
    /// Depth at which the tree in memory stops growing, at most 24: it takes 66 bytes × 2^depth. Default 19.
    pub cell_depth_max: u8,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            write_behind: 16_384,
            replaced_max: 131_072,
            page_entries: PAGE_ENTRIES_MAX,
            directory_depth_max: DIRECTORY_DEPTH_MAX,
            cell_depth_min: 8,
            cell_depth_max: 19,
        }
    }
}

/// The current revision of a key, as a block sets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// Index of the entry that put or deleted it. An erase leaves it as it is.
    pub revision: u64,
    /// How many puts and deletes the key has seen, this one included.
    pub versions: u32,
    /// What the revision is.
    pub state: SlotState,
}

/// What a revision is, with what its map value is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotState {
    /// A value.
    Live {
        /// SHA-256(salt ‖ value).
        commitment: [u8; 32],
    },
    /// A value that was erased.
    Erased {
        /// The commitment that the value had.
        commitment: [u8; 32],
        /// Index of the entry that erased it.
        erased_by: u64,
    },
    /// Nothing: the key is not in the trie.
    Deleted,
}

impl Slot {
    /// Hash of the map value; `None` for a deleted key.
    #[must_use]
    pub fn value_hash(&self) -> Option<[u8; 32]> {
        let (commitment, erased_by) = match self.state {
            SlotState::Live { commitment } => (commitment, None),
            SlotState::Erased { commitment, erased_by } => (commitment, Some(erased_by)),
            SlotState::Deleted => return None,
        };
        Some(MapValue { revision: self.revision, commitment, erased_by }.hash())
    }

    fn entry(&self, key: &KeyHash) -> Entry {
        let state = match self.state {
            SlotState::Live { .. } => State::Live,
            SlotState::Erased { .. } => State::Erased,
            SlotState::Deleted => State::Deleted,
        };
        let leaf = self.value_hash().map_or([0; 32], |value_hash| proof::leaf_hash(key, &value_hash));
        Entry { leaf, revision: self.revision, versions: self.versions, state }
    }
}

/// What the map remembers of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Index of the entry of its last revision.
    pub revision: u64,
    /// How many puts and deletes it has seen.
    pub versions: u32,
    /// What that revision is.
    pub state: State,
}

impl Stored {
    /// Whether the key is in the trie: it has a value, be it an erased one.
    #[must_use]
    pub fn exists(&self) -> bool {
        !matches!(self.state, State::Deleted)
    }
}

/// The path from the root to where a key is, or would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapProof {
    /// Root that the path leads to.
    pub root: [u8; 32],
    /// Block as of which it holds.
    pub block: u64,
    /// The leaf at its end: of the key itself when it is present, of a neighbour when it is not, `None` when the path
    /// ends in an empty subtree.
    pub leaf: Option<ProofLeaf>,
    /// Hashes beside the path, from the root down; at most [`proof::SIBLINGS_MAX`].
    pub siblings: Vec<[u8; 32]>,
}

/// A leaf by name. The map holds no commitments: recompute the value hash from the entry `revision` (and, when erased,
/// from the entry that erased it).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProofLeaf {
    /// Where the leaf stands.
    pub key_hash: KeyHash,
    /// Revision of its key as of the proof's block.
    pub revision: u64,
    /// Whether its value was erased as of the proof's block.
    pub erased: bool,
}

/// Sizes of the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sizes {
    /// Keys in the trie.
    pub live_keys: u64,
    /// Keys remembered, deleted ones included.
    pub keys: u64,
    /// Changed keys in memory that are in no page yet.
    pub deltas: usize,
    /// Nodes and entries kept for frozen views.
    pub replaced: usize,
    /// Bytes of the page file.
    pub file_bytes: u64,
    /// Bytes of memory of tree, directory and page lists.
    pub memory_bytes: usize,
}

/// How the last sync ended.
enum LastSync {
    /// This mark is durable; `None`: whichever was when the file was opened.
    Done(Option<Mark>),
    /// Nothing is known about what was written before.
    Failed,
}

/// The state map. See the module for what its locks and marks guarantee.
pub struct StateMap {
    file: Arc<dyn File>,
    path: PathBuf,
    config: Config,
    map: RwLock<Map>,
    /// Readers at the lock.
    waiting: AtomicUsize,
    /// Held during [`StateMap::sync`]: one at a time.
    last_sync: Mutex<LastSync>,
    damage: Option<String>,
}

/// See [`StateMap::lookup`].
pub struct Lookup<'a>(RwLockReadGuard<'a, Map>);

impl Lookup<'_> {
    /// As [`StateMap::get`].
    ///
    /// # Errors
    /// As [`StateMap::get`].
    pub fn get(&self, key: &KeyHash) -> Result<Option<Stored>, Error> {
        Ok(self.0.entry(key)?.as_ref().map(stored))
    }
}

impl StateMap {
    /// Opens the page file, making it when it is missing. A file that is not provably whole is emptied; then
    /// [`StateMap::damage`] says what was found, and [`StateMap::low_water`] is 0, as for a new one.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be opened, read or written.
    pub fn open(disk: &dyn Disk, path: &Path, config: Config) -> Result<Self, Error> {
        let context = |what: &str| format!("{what} {}", path.display());
        let file: Arc<dyn File> = disk.open(path, true).map_err(|e| Error::io(context("open"), &e))?.into();
        if let Some(directory) = path.parent() {
            disk.sync_directory(directory).map_err(|e| Error::io(context("sync the directory of"), &e))?;
        }
        let (layout, entries, damage) = match open::examine(file.as_ref(), path)? {
            Content::Intact(layout, entries) => (layout, entries, None),
            Content::New => (open::start_over(file.as_ref(), path)?, 0, None),
            Content::Damaged(found) => (open::start_over(file.as_ref(), path)?, 0, Some(found)),
        };
        let buckets = Buckets::new(PageFile::new(Arc::clone(&file), path.to_owned()), &config, layout);
        let map = RwLock::new(Map::load(buckets, &config, entries)?);
        let last_sync = Mutex::new(LastSync::Done(None));
        Ok(Self { file, path: path.to_owned(), config, map, waiting: AtomicUsize::new(0), last_sync, damage })
    }

    /// What was wrong with the file on opening, if it had to be emptied.
    #[must_use]
    pub fn damage(&self) -> Option<&str> {
        self.damage.as_deref()
    }

    /// Block up to which every change is in the pages. After opening, replay later blocks.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when an earlier call failed halfway.
    pub fn low_water(&self) -> Result<u64, Error> {
        Ok(self.read()?.low_water())
    }

    /// The newest block that a page may hold a change of. A store that does not reach it any more has lost what the map
    /// was told was durable: [`StateMap::reset`] then, for the map would answer from the future.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when an earlier call failed halfway.
    pub fn newest_in_pages(&self) -> Result<u64, Error> {
        Ok(self.read()?.mark().newest)
    }

    /// The current revision of a key; `None`: it was never written.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Corrupt`] when its page cannot be read.
    pub fn get(&self, key: &KeyHash) -> Result<Option<Stored>, Error> {
        Ok(self.read()?.entry(key)?.as_ref().map(stored))
    }

    /// For many lookups under one hold of the lock: while it lives the map does not change, and [`StateMap::apply`] must
    /// not be called by who holds it.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when an earlier call failed halfway.
    pub fn lookup(&self) -> Result<Lookup<'_>, Error> {
        Ok(Lookup(self.read()?))
    }

    /// The revision of a key as of a frozen view.
    #[cfg(test)]
    fn get_at(&self, key: &KeyHash, view: ViewId) -> Result<Option<Stored>, Error> {
        Ok(self.read()?.entry_at(key, view)?.as_ref().map(stored))
    }

    /// Sets the keys that `block` changed and returns the root. Blocks come in order; those that change nothing may be
    /// left out. A slot that is not later than what is stored is passed over, so that replaying blocks whose changes are
    /// in the pages already does no harm; in a replay, the root is that of the block from
    /// [`StateMap::newest_in_pages`] on.
    ///
    /// # Errors
    /// [`Error::Invalid`] when `block` is not above the last one. After any other error the map refuses all calls until
    /// it is opened again.
    pub fn apply(&self, block: u64, slots: &[(KeyHash, Slot)]) -> Result<[u8; 32], Error> {
        self.write()?.apply(block, slots)
    }

    /// The root.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when an earlier call failed halfway.
    pub fn root(&self) -> Result<[u8; 32], Error> {
        Ok(self.read()?.root())
    }

    /// Flips a bit of the tree, on the side of the root where `untouched` lies.
    #[cfg(test)]
    pub(crate) fn flip_bit(&self, untouched: &KeyHash) {
        self.write().unwrap().flip_bit(untouched);
    }

    /// Sizes, for metrics.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when an earlier call failed halfway.
    pub fn sizes(&self) -> Result<Sizes, Error> {
        Ok(self.read()?.sizes())
    }

    /// Keeps the state of the newest block, which must be `block`, readable until it is released.
    ///
    /// # Errors
    /// [`Error::Invalid`] when another block is the newest, or there are [`VIEWS_MAX`] views.
    pub fn freeze(&self, block: u64) -> Result<ViewId, Error> {
        self.write()?.freeze(block)
    }

    /// Ends a frozen view.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when an earlier call failed halfway.
    pub fn release(&self, view: ViewId) -> Result<(), Error> {
        self.write()?.release(view);
        Ok(())
    }

    /// The path of a key, as of a frozen view or now.
    ///
    /// # Errors
    /// As [`StateMap::get`]; [`Error::NotFound`] when the view is gone.
    pub fn prove(&self, key: &KeyHash, view: Option<ViewId>) -> Result<MapProof, Error> {
        self.read()?.prove(key, view)
    }

    /// Whether so many deltas wait that the caller should make its blocks durable and call [`StateMap::flush`].
    ///
    /// # Errors
    /// [`Error::Corrupt`] when an earlier call failed halfway.
    pub fn wants_flush(&self) -> Result<bool, Error> {
        Ok(self.read()?.deltas() >= self.config.write_behind)
    }

    /// Writes deltas to pages if enough wait. Blocks up to `durable_block` are durable outside the map; changes of later
    /// ones never reach a page. What is in memory is sealed at its newest block, so it can be written once that is
    /// durable, at this call or a later one.
    ///
    /// # Errors
    /// [`Error::Io`], for instance when the disk is full. The deltas stay in memory and the call may be repeated.
    pub fn flush(&self, durable_block: u64) -> Result<(), Error> {
        if self.wants_flush()? { self.write_out(durable_block) } else { Ok(()) }
    }

    /// Writes all deltas that may be written, makes the pages durable, then moves the durable mark. Returns it: after a
    /// power cut, blocks above it are replayed.
    ///
    /// # Errors
    /// [`Error::Io`]; once the disk has refused a sync, every later call fails: stop, and open again.
    pub fn sync(&self, durable_block: u64) -> Result<u64, Error> {
        let mut last = self.last_sync.lock().unwrap_or_else(PoisonError::into_inner);
        let LastSync::Done(durable) = *last else {
            return Err(Error::Corrupt(format!("a sync of {} failed before: restart the node", self.path.display())));
        };
        self.write_out(durable_block)?;
        if durable.is_some_and(|mark| self.read().is_ok_and(|map| map.mark() == mark)) {
            return self.low_water();
        }
        *last = LastSync::Failed;
        let point = self.write()?.begin_sync();
        let mut bytes = [0; PAGE_BYTES];
        point.mark.encode(point.page, &mut bytes);
        let synced = self.file.sync().and_then(|()| {
            self.file.write_at(&bytes, u64::from(point.page) * PAGE_BYTES as u64)?;
            self.file.sync()
        });
        synced.map_err(|e| Error::io(format!("sync {}", self.path.display()), &e))?;
        *last = LastSync::Done(Some(point.mark));
        let low_water = point.mark.block;
        self.write()?.finish_sync(point);
        Ok(low_water)
    }

    /// Empties map and file; then replay from the first block. Frozen views are gone.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be written.
    pub fn reset(&self) -> Result<(), Error> {
        let mut last = self.last_sync.lock().unwrap_or_else(PoisonError::into_inner);
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        let layout = open::start_over(self.file.as_ref(), &self.path)?;
        let pages = PageFile::new(Arc::clone(&self.file), self.path.clone());
        let buckets = Buckets::new(pages, &self.config, layout);
        *map = Map::load(buckets, &self.config, 0)?;
        *last = LastSync::Done(None);
        self.map.clear_poison();
        Ok(())
    }

    fn write_out(&self, durable_block: u64) -> Result<(), Error> {
        while self.write()?.write_slice(durable_block)? {
            self.let_others_in();
        }
        Ok(())
    }

    /// The lock is not fair: who takes it again at once starves those who wait. So the slices of a flush, which may take
    /// a tenth of a second together, wait for whoever waited before them.
    fn let_others_in(&self) {
        for _ in 0..HAND_OVER_TRIES {
            if self.waiting.load(Relaxed) == 0 {
                return;
            }
            std::thread::yield_now();
        }
    }

    fn read(&self) -> Result<RwLockReadGuard<'_, Map>, Error> {
        self.waiting.fetch_add(1, Relaxed);
        let map = self.map.read();
        self.waiting.fetch_sub(1, Relaxed);
        let map = map.map_err(|_| self.unusable())?;
        if map.is_usable() { Ok(map) } else { Err(self.unusable()) }
    }

    fn write(&self) -> Result<RwLockWriteGuard<'_, Map>, Error> {
        let map = self.map.write().map_err(|_| self.unusable())?;
        if map.is_usable() { Ok(map) } else { Err(self.unusable()) }
    }

    fn unusable(&self) -> Error {
        Error::Corrupt(format!("the state map {} stopped within a block: restart the node", self.path.display()))
    }
}

fn stored(entry: &Entry) -> Stored {
    Stored { revision: entry.revision, versions: entry.versions, state: entry.state }
}
