//! Rows on disk: the only file that imports sled.
//!
//! sled 0.34.7 keeps three habits that this file answers (`docs/design/storage.md`): `flush` does not reach the disk, so
//! [`Rows::sync`] syncs the data file itself; a leaf page beyond 128 KiB goes to a file of its own that is never synced,
//! so no row is larger than [`ROW_BYTES_MAX`]; and damage makes it panic or roll back, so every call is fenced and turned
//! into [`Error::DamagedStore`]: the store is then set aside ([`Shelf::set_aside`]) and built anew.
//!
//! One [`Batch`] is atomic. Nothing is durable before [`Rows::sync`] returns.

#[cfg(test)]
use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
#[cfg(test)]
use std::sync::{Mutex, PoisonError};

use crate::error::Error;

pub(crate) mod entries;
pub(crate) mod names;
pub(crate) mod outcomes;
mod pending;
pub(crate) mod values;

pub(crate) use pending::Rows;

/// Largest row, in bytes. A sled leaf of 16 rows stays below 128 KiB.
pub(crate) const ROW_BYTES_MAX: usize = 4096;
/// How often, and after which wait, a locked database is tried again.
const LOCK_TRIES: usize = 50;
const LOCK_WAIT: std::time::Duration = std::time::Duration::from_millis(20);
const SEGMENT_BYTES: usize = 512 << 10;

/// Where a row lives. Trees are separate because in one tree a prefix's right edge would share pages with the next
/// prefix's large rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Tree {
    /// `head`, `names`: singletons.
    Meta,
    /// The chain log ([`entries`]).
    Entries,
    /// Encrypted values ([`values`]).
    Values,
    /// Full tiles of hashes: level, index, half.
    Tiles,
    /// Height → index of the block entry, time.
    Blocks,
    /// Key names in order ([`names`]).
    Names,
    /// Every 64th revision of a key.
    History,
    /// Outcomes of requests with an `Idempotency-Key` ([`outcomes`]).
    Outcomes,
    /// The same in order of age.
    OutcomeQueue,
    /// Slots of values that are the CID of a blob → revision.
    BlobSlots,
}

const TREES: [(Tree, &str); 10] = [
    (Tree::Meta, "meta"),
    (Tree::Entries, "entries"),
    (Tree::Values, "values"),
    (Tree::Tiles, "tiles"),
    (Tree::Blocks, "blocks"),
    (Tree::Names, "names"),
    (Tree::History, "history"),
    (Tree::Outcomes, "outcomes"),
    (Tree::OutcomeQueue, "outcome-queue"),
    (Tree::BlobSlots, "blob-slots"),
];

/// Rows to write (or, without a value, to remove) together.
#[derive(Debug, Default)]
pub(crate) struct Batch(Vec<(Tree, Vec<u8>, Option<Vec<u8>>)>);

impl Batch {
    pub(crate) fn put(&mut self, tree: Tree, key: &[u8], value: Vec<u8>) {
        debug_assert!(value.len() <= ROW_BYTES_MAX, "a row of {} bytes in {tree:?}", value.len());
        self.0.push((tree, key.to_vec(), Some(value)));
    }

    pub(crate) fn remove(&mut self, tree: Tree, key: &[u8]) {
        self.0.push((tree, key.to_vec(), None));
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

/// A row: key and value.
pub(crate) type Row = (Vec<u8>, Vec<u8>);

/// The row engine, for [`Rows`] alone. Clones name the same rows.
#[derive(Clone)]
pub(crate) enum Engine {
    /// sled, on the operating system's file system.
    Sled(Arc<SledRows>),
    /// An ordered map for simulations; see [`MemoryRows`].
    #[cfg(test)]
    Memory(Arc<MemoryRows>),
}

impl Engine {
    fn get(&self, tree: Tree, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        match self {
            Self::Sled(s) => s.fenced(|| Ok(s.tree(tree).get(key)?.map(|v| v.to_vec()))),
            #[cfg(test)]
            Self::Memory(m) => Ok(m.sound()?.live.get(&(tree, key.to_vec())).map(|v| v.to_vec())),
        }
    }

    /// Up to `limit` rows from `key` on, in order.
    fn from(&self, tree: Tree, key: &[u8], limit: usize) -> Result<Vec<Row>, Error> {
        match self {
            Self::Sled(s) => s.fenced(|| {
                let rows = s.tree(tree).range(key..).take(limit);
                rows.map(|r| r.map(|(k, v)| (k.to_vec(), v.to_vec()))).collect()
            }),
            #[cfg(test)]
            Self::Memory(m) => {
                let state = m.sound()?;
                let rows = state.live.range((tree, key.to_vec())..).take_while(|((t, _), _)| *t == tree).take(limit);
                Ok(rows.map(|((_, k), v)| (k.clone(), v.to_vec())).collect())
            }
        }
    }

    /// Writes a batch atomically; durable after [`Engine::sync`].
    fn commit(&self, batch: Batch) -> Result<(), Error> {
        match self {
            Self::Sled(s) => s.commit(batch),
            #[cfg(test)]
            Self::Memory(m) => {
                let batch: MemoryBatch = batch.0.into_iter().map(|(t, k, v)| (t, k, v.map(Arc::new))).collect();
                let mut state = m.sound()?;
                state.written_bytes +=
                    batch.iter().flat_map(|(_, _, value)| value).map(|v| v.len() as u64).sum::<u64>();
                put_all(&mut state.live, batch.iter().cloned());
                state.undurable.push(batch);
                Ok(())
            }
        }
    }

    /// Makes every committed batch durable.
    fn sync(&self) -> Result<(), Error> {
        match self {
            Self::Sled(s) => s.sync(),
            #[cfg(test)]
            Self::Memory(m) => {
                let mut state = m.lock();
                let MemoryState { durable, undurable, .. } = &mut *state;
                put_all(durable, undurable.drain(..).flatten());
                Ok(())
            }
        }
    }

    /// Bytes on disk.
    fn disk_bytes(&self) -> u64 {
        match self {
            Self::Sled(s) => s.db.size_on_disk().unwrap_or(0),
            #[cfg(test)]
            Self::Memory(m) => m.lock().written_bytes,
        }
    }
}

/// Where the rows lie, before they are open.
pub(crate) enum Shelf {
    /// A directory of sled's.
    Sled {
        /// The directory.
        directory: PathBuf,
        /// Bytes of sled's page cache.
        cache_bytes: u64,
    },
    /// Rows of a simulation.
    #[cfg(test)]
    Memory(Arc<MemoryRows>),
}

impl Shelf {
    /// Opens the rows, making them when there are none.
    ///
    /// # Errors
    /// [`Error::DamagedStore`]; [`Error::Unavailable`] when another process has them open; [`Error::Io`].
    pub(crate) fn open(&self) -> Result<Rows, Error> {
        match self {
            Self::Sled { directory, cache_bytes } => {
                Ok(Rows::over(Engine::Sled(Arc::new(SledRows::open(directory, *cache_bytes)?))))
            }
            #[cfg(test)]
            Self::Memory(m) => Ok(Rows::over(Engine::Memory(Arc::clone(m)))),
        }
    }

    /// Moves rows that must not be trusted away, so that others can take their place; returns where they are now. The
    /// first that were set aside and the last are kept: a repetition must not wear out the evidence.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn set_aside(&self) -> Result<String, Error> {
        match self {
            Self::Sled { directory, .. } => {
                let first = directory.with_extension("damaged-1");
                let target = if first.exists() { directory.with_extension("damaged-2") } else { first };
                move_aside(directory, &target)
                    .map_err(|e| Error::io(format!("moving {} to {}", directory.display(), target.display()), &e))?;
                Ok(target.display().to_string())
            }
            #[cfg(test)]
            Self::Memory(m) => {
                *m.lock() = MemoryState::default();
                Ok("nothing".into())
            }
        }
    }
}

fn move_aside(from: &Path, to: &Path) -> std::io::Result<()> {
    match fs::remove_dir_all(to) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    match fs::rename(from, to) {
        // Gone already: before a crash, or the operator removed it.
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    fs::File::open(from.parent().unwrap_or(Path::new(".")))?.sync_all()
}

/// sled with its trees.
pub(crate) struct SledRows {
    directory: PathBuf,
    data_file: fs::File,
    db: sled::Db,
    trees: Vec<sled::Tree>,
}

impl SledRows {
    /// Opens or makes the database in `directory`.
    pub(crate) fn open(directory: &Path, cache_bytes: u64) -> Result<Self, Error> {
        let opened = Self::open_sled(directory, cache_bytes);
        let (db, trees) = match opened {
            Ok(Ok(opened)) => opened,
            Ok(Err(sled::Error::Io(error))) if error.to_string().contains("acquire lock") => {
                let directory = directory.display();
                return Err(Error::Unavailable(format!(
                    "{directory} is in use by another process: stop that one first"
                )));
            }
            Ok(Err(error)) => return Err(failed(directory, &error)),
            Err(panic) => return Err(panicked(directory, &panic)),
        };
        let data_path = directory.join("db");
        let data_file =
            fs::File::open(&data_path).map_err(|e| Error::io(format!("opening {}", data_path.display()), &e))?;
        Ok(Self { directory: directory.to_owned(), data_file, db, trees })
    }

    /// sled's threads let go of the file's lock a moment after the last handle is gone; that moment is waited for.
    fn open_sled(directory: &Path, cache_bytes: u64) -> std::thread::Result<sled::Result<(sled::Db, Vec<sled::Tree>)>> {
        let open = || -> sled::Result<_> {
            let db = sled::Config::new()
                .path(directory)
                .cache_capacity(cache_bytes)
                .segment_size(SEGMENT_BYTES)
                .flush_every_ms(None)
                .open()?;
            let trees = TREES.iter().map(|(_, name)| db.open_tree(name)).collect::<sled::Result<Vec<_>>>()?;
            Ok((db, trees))
        };
        for _ in 0..LOCK_TRIES {
            match catch_unwind(AssertUnwindSafe(open)) {
                Ok(Err(sled::Error::Io(error))) if error.to_string().contains("acquire lock") => {
                    std::thread::sleep(LOCK_WAIT);
                }
                opened => return opened,
            }
        }
        catch_unwind(AssertUnwindSafe(open))
    }

    fn tree(&self, tree: Tree) -> &sled::Tree {
        &self.trees[tree as usize]
    }

    /// Runs a sled call; an error or a panic inside it says that the database is damaged.
    fn fenced<T>(&self, call: impl FnOnce() -> sled::Result<T>) -> Result<T, Error> {
        match catch_unwind(AssertUnwindSafe(call)) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(failed(&self.directory, &error)),
            Err(panic) => Err(panicked(&self.directory, &panic)),
        }
    }

    fn commit(&self, batch: Batch) -> Result<(), Error> {
        use sled::Transactional;
        use sled::transaction::{ConflictableTransactionError, TransactionError, TransactionalTree};
        let mut batches: Vec<(usize, sled::Batch)> = Vec::new();
        for (tree, key, value) in batch.0 {
            let index = tree as usize;
            let position = batches.iter().position(|(i, _)| *i == index).unwrap_or_else(|| {
                batches.push((index, sled::Batch::default()));
                batches.len() - 1
            });
            match value {
                Some(value) => batches[position].1.insert(key, value),
                None => batches[position].1.remove(key),
            }
        }
        let trees: Vec<&sled::Tree> = batches.iter().map(|(i, _)| &self.trees[*i]).collect();
        let done = catch_unwind(AssertUnwindSafe(|| {
            trees.as_slice().transaction(|open: &Vec<TransactionalTree>| {
                for (tree, (_, batch)) in open.iter().zip(&batches) {
                    tree.apply_batch(batch)?;
                }
                Ok::<(), ConflictableTransactionError<()>>(())
            })
        }));
        match done {
            Ok(Ok(())) => Ok(()),
            Ok(Err(TransactionError::Storage(error))) => Err(failed(&self.directory, &error)),
            Ok(Err(TransactionError::Abort(()))) => Err(damaged(&self.directory, "a batch was refused")),
            Err(panic) => Err(panicked(&self.directory, &panic)),
        }
    }

    fn sync(&self) -> Result<(), Error> {
        self.fenced(|| self.db.flush())?;
        let context = || format!("syncing {}", self.directory.display());
        self.data_file.sync_data().map_err(|e| Error::io(context(), &e))?;
        self.sync_blobs().map_err(|e| Error::io(context(), &e))
    }

    /// sled's own overflow files are never synced by it. With rows bounded there are none; should one appear, it is
    /// made durable here.
    fn sync_blobs(&self) -> std::io::Result<()> {
        let directory = self.directory.join("blobs");
        let Ok(listing) = fs::read_dir(&directory) else { return Ok(()) };
        let mut any = false;
        for file in listing {
            fs::File::open(file?.path())?.sync_all()?;
            any = true;
        }
        if any { fs::File::open(&directory)?.sync_all() } else { Ok(()) }
    }
}

/// An error of sled's: damage, unless it says that the system has no room or does not let it.
fn failed(directory: &Path, error: &sled::Error) -> Error {
    use std::io::ErrorKind;
    match error {
        sled::Error::Io(error)
            if matches!(
                error.kind(),
                ErrorKind::StorageFull
                    | ErrorKind::QuotaExceeded
                    | ErrorKind::PermissionDenied
                    | ErrorKind::ReadOnlyFilesystem
                    | ErrorKind::OutOfMemory
            ) =>
        {
            Error::io(format!("the store in {}", directory.display()), error)
        }
        other => damaged(directory, &other.to_string()),
    }
}

/// A panic of sled's: damage, unless it came of a full disk.
fn panicked(directory: &Path, panic: &Box<dyn std::any::Any + Send>) -> Error {
    let text = panic_text(panic);
    if ["StorageFull", "No space left"].iter().any(|full| text.contains(full)) {
        return Error::Io { context: format!("the store in {}", directory.display()), message: text };
    }
    damaged(directory, &text)
}

fn damaged(directory: &Path, what: &str) -> Error {
    Error::DamagedStore(format!("the store in {} is damaged ({what})", directory.display()))
}

pub(crate) fn panic_text(panic: &Box<dyn std::any::Any + Send>) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
        .unwrap_or_else(|| "it panicked".into())
}

#[cfg(test)]
type MemoryBatch = Vec<(Tree, Vec<u8>, Option<Arc<Vec<u8>>>)>;

#[cfg(test)]
type MemoryTrees = BTreeMap<(Tree, Vec<u8>), Arc<Vec<u8>>>;

#[cfg(test)]
fn put_all(rows: &mut MemoryTrees, changes: impl Iterator<Item = (Tree, Vec<u8>, Option<Arc<Vec<u8>>>)>) {
    for (tree, key, value) in changes {
        match value {
            Some(value) => rows.insert((tree, key), value),
            None => rows.remove(&(tree, key)),
        };
    }
}

#[cfg(test)]
#[derive(Clone, Default)]
struct MemoryState {
    live: MemoryTrees,
    durable: MemoryTrees,
    undurable: Vec<MemoryBatch>,
    /// What a log of all writes would take: sled's files shrink late.
    written_bytes: u64,
    broken: bool,
}

/// Rows in memory with sled's manners at a power cut: of the batches that were not synced, some first ones survive.
#[cfg(test)]
#[derive(Default)]
pub(crate) struct MemoryRows(Mutex<MemoryState>);

#[cfg(test)]
impl MemoryRows {
    fn lock(&self) -> std::sync::MutexGuard<'_, MemoryState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sound(&self) -> Result<std::sync::MutexGuard<'_, MemoryState>, Error> {
        let state = self.lock();
        if state.broken { Err(damaged(Path::new("memory"), "a test broke it")) } else { Ok(state) }
    }

    /// Other rows, equal to these as they are now.
    pub(crate) fn copied(&self) -> Self {
        Self(Mutex::new(self.lock().clone()))
    }

    /// From now on every call finds damage, until the rows are set aside.
    pub(crate) fn break_all(&self) {
        self.lock().broken = true;
    }

    /// Changes a row, if it is there.
    pub(crate) fn change(&self, tree: Tree, key: &[u8], change: impl Fn(&mut Vec<u8>)) {
        let mut state = self.lock();
        let MemoryState { live, durable, .. } = &mut *state;
        for rows in [live, durable] {
            if let Some(row) = rows.get_mut(&(tree, key.to_vec())) {
                change(Arc::make_mut(row));
            }
        }
    }

    /// Removes every row, as if the directory had been deleted.
    pub(crate) fn lose(&self) {
        *self.lock() = MemoryState::default();
    }

    /// A power cut: keeps the durable rows and the first `survivors` of the batches since.
    pub(crate) fn crash(&self, survivors: usize) {
        let mut state = self.lock();
        let MemoryState { live, durable, undurable, .. } = &mut *state;
        put_all(durable, undurable.drain(..).take(survivors).flatten());
        live.clone_from(durable);
    }
}
