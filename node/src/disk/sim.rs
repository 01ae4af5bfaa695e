//! A simulated [`Disk`] in memory that loses at a power cut what a real one may lose, and fails where a test tells it to.
//!
//! What it promises is what POSIX promises and no more: data is durable after [`File::sync`], names are durable after
//! [`Disk::sync_directory`], a 512-byte sector is written whole or not at all, and nothing orders unsynced writes among
//! each other. Directories themselves are durable at once.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{Disk, File};

/// What a power cut writes whole or not at all, in bytes.
pub const SECTOR_BYTES: usize = 512;
/// Unit of [`SimDisk::zero_page`], in bytes.
pub const PAGE_BYTES: usize = 4096;

/// Whether the durable operation at a crash point still takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CrashPoint {
    /// The machine stops before the operation.
    Before,
    /// The machine stops after the operation, before the caller learns of it.
    After,
}

/// The simulated disk. Clones are cheap and name the same disk.
#[derive(Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Clone)]
struct State {
    rng: StdRng,
    /// Counts crashes; a handle of an earlier epoch is dead.
    epoch: u64,
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    unsynced_names: Vec<NameChange>,
    directories: BTreeSet<PathBuf>,
    capacity: u64,
    durable_operations: u64,
    crash_at: Option<(u64, CrashPoint)>,
    dead: bool,
    fail_next_sync: bool,
}

#[derive(Clone, Default)]
struct Inode {
    current: Content,
    durable: Content,
    unsynced: Vec<Change>,
}

/// The bytes of a file, page by page; copies share what neither of them changes. What was never written reads as zeros.
#[derive(Clone, Default)]
struct Content {
    length: usize,
    pages: Vec<Option<Arc<[u8; PAGE_BYTES]>>>,
}

#[derive(Clone)]
enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    Length(usize),
}

#[derive(Clone)]
enum NameChange {
    Create { path: PathBuf, inode: u64 },
    Rename { from: PathBuf, to: PathBuf, inode: u64 },
    Remove { path: PathBuf },
}

impl SimDisk {
    /// An empty disk without bound on its size; all that is random in it comes from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let state = State {
            rng: StdRng::seed_from_u64(seed),
            epoch: 0,
            inodes: BTreeMap::new(),
            next_inode: 0,
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            unsynced_names: Vec::new(),
            directories: BTreeSet::new(),
            capacity: u64::MAX,
            durable_operations: 0,
            crash_at: None,
            dead: false,
            fail_next_sync: false,
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Cuts the power and starts the machine again: unsynced writes are kept or lost sector by sector, unsynced names
    /// kept or undone, handles opened before answer errors, and a crash point set before is gone.
    pub fn crash(&self) {
        let mut state = self.lock();
        state.epoch += 1;
        state.dead = false;
        state.crash_at = None;
        state.fail_next_sync = false;
        state.settle_names();
        state.settle_data();
    }

    /// Another disk with all that is on this one, synced or not, as a copy of a running machine has it.
    #[must_use]
    pub fn copied(&self) -> Self {
        let mut state = self.lock().clone();
        (state.crash_at, state.dead, state.fail_next_sync) = (None, false, false);
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// How many durable operations ([`File::sync`], [`Disk::sync_directory`]) were asked for so far.
    #[must_use]
    pub fn durable_operations(&self) -> u64 {
        self.lock().durable_operations
    }

    /// The `ordinal`-th durable operation, counted from the making of the disk and from 1, fails `point` its effect, and
    /// every call after it, until [`SimDisk::crash`].
    pub fn crash_at(&self, ordinal: u64, point: CrashPoint) {
        self.lock().crash_at = Some((ordinal, point));
    }

    /// Whether the crash point was reached and [`SimDisk::crash`] not yet called.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.lock().dead
    }

    /// The next [`File::sync`] fails as Linux fails it: what was unsynced stays readable, counts as clean, and is lost
    /// at the next crash whatever is synced later.
    pub fn fail_next_sync(&self) {
        self.lock().fail_next_sync = true;
    }

    /// Bounds the sum of the lengths of all files; growing beyond it answers `StorageFull`.
    pub fn set_capacity(&self, bytes: u64) {
        self.lock().capacity = bytes;
    }

    /// Sum of the lengths of all files, in bytes.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.lock().used()
    }

    /// The bytes of a file; `None` when there is none of this name.
    #[must_use]
    pub fn contents(&self, path: &Path) -> Option<Vec<u8>> {
        let state = self.lock();
        state.names.get(path).and_then(|inode| state.inodes.get(inode)).map(|inode| inode.current.to_vec())
    }

    /// Paths of all files, sorted.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        self.lock().names.keys().cloned().collect()
    }

    /// Inverts one bit of a file, durably; bit 0 is the lowest of the first byte. Returns whether it was there.
    pub fn flip_bit(&self, path: &Path, bit: u64) -> bool {
        let at = usize::try_from(bit / 8).unwrap_or(usize::MAX);
        self.damage(path, |bytes| bytes.get_mut(at).map(|byte| *byte ^= 1 << (bit % 8)).is_some())
    }

    /// Zeroes one 4096-byte page of a file, durably. Returns whether it was there.
    pub fn zero_page(&self, path: &Path, page: u64) -> bool {
        let from = usize::try_from(page).unwrap_or(usize::MAX).saturating_mul(PAGE_BYTES);
        self.damage(path, |bytes| {
            let to = bytes.len().min(from.saturating_add(PAGE_BYTES));
            bytes.get_mut(from..to).is_some_and(|page| {
                page.fill(0);
                !page.is_empty()
            })
        })
    }

    /// Cuts a file to a length, durably. Returns whether it was longer.
    pub fn cut(&self, path: &Path, length: usize) -> bool {
        self.damage(path, |bytes| {
            let longer = bytes.len() > length;
            bytes.truncate(length);
            longer
        })
    }

    fn damage(&self, path: &Path, mut change: impl FnMut(&mut Vec<u8>) -> bool) -> bool {
        let mut state = self.lock();
        let Some(&inode) = state.names.get(path) else { return false };
        let Some(inode) = state.inodes.get_mut(&inode) else { return false };
        let mut changed = false;
        for content in [&mut inode.durable, &mut inode.current] {
            let mut bytes = content.to_vec();
            changed = change(&mut bytes);
            *content = Content::default();
            content.put(0, &bytes);
        }
        changed
    }
}

impl State {
    fn used(&self) -> u64 {
        self.names.values().filter_map(|inode| self.inodes.get(inode)).map(|inode| inode.current.length as u64).sum()
    }

    fn room_for(&self, growth: usize) -> io::Result<()> {
        if self.used().saturating_add(growth as u64) > self.capacity {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "no space left on the simulated disk"));
        }
        Ok(())
    }

    fn alive(&self) -> io::Result<()> {
        if self.dead { Err(switched_off()) } else { Ok(()) }
    }

    /// Counts a durable operation and runs its `effect` unless the crash point forbids it.
    fn durably(&mut self, effect: impl FnOnce(&mut Self) -> io::Result<()>) -> io::Result<()> {
        self.alive()?;
        self.durable_operations += 1;
        match self.crash_at {
            Some((ordinal, point)) if self.durable_operations >= ordinal => {
                self.dead = true;
                if point == CrashPoint::After {
                    effect(self)?;
                }
                Err(switched_off())
            }
            _ => effect(self),
        }
    }

    fn settle_names(&mut self) {
        let keep_share = self.keep_share();
        for change in std::mem::take(&mut self.unsynced_names) {
            if self.rng.gen_bool(keep_share) {
                change.apply(&mut self.durable_names);
            }
        }
        self.names = self.durable_names.clone();
        let named: BTreeSet<u64> = self.names.values().copied().collect();
        self.inodes.retain(|inode, _| named.contains(inode));
    }

    fn settle_data(&mut self) {
        let mut inodes = std::mem::take(&mut self.inodes);
        for inode in inodes.values_mut() {
            let keep_share = self.keep_share();
            for change in std::mem::take(&mut inode.unsynced) {
                change.apply(&mut inode.durable, || self.rng.gen_bool(keep_share));
            }
            inode.current = inode.durable.clone();
        }
        self.inodes = inodes;
    }

    /// Nothing kept, everything kept and a mixture each come often.
    fn keep_share(&mut self) -> f64 {
        match self.rng.gen_range(0..6) {
            0 => 0.0,
            1 => 1.0,
            2 => 0.1,
            3 => 0.9,
            _ => 0.5,
        }
    }
}

impl NameChange {
    fn directory(&self) -> Option<&Path> {
        match self {
            Self::Create { path, .. } | Self::Remove { path } | Self::Rename { to: path, .. } => path.parent(),
        }
    }

    fn apply(self, names: &mut BTreeMap<PathBuf, u64>) {
        match self {
            Self::Create { path, inode } => {
                names.insert(path, inode);
            }
            Self::Rename { from, to, inode } => {
                names.remove(&from);
                names.insert(to, inode);
            }
            Self::Remove { path } => {
                names.remove(&path);
            }
        }
    }
}

impl Change {
    /// Applies the change to a file, each sector of a write only if `keep` says so.
    fn apply(self, file: &mut Content, mut keep: impl FnMut() -> bool) {
        match self {
            Self::Length(length) => {
                if keep() {
                    file.resize(length);
                }
            }
            Self::Write { offset, bytes } => {
                for (from, to) in pieces(offset, bytes.len(), SECTOR_BYTES) {
                    if keep() {
                        file.put(offset + from, &bytes[from..to]);
                    }
                }
            }
        }
    }

    /// Applies the change as a whole.
    fn apply_all(self, file: &mut Content) {
        match self {
            Self::Length(length) => file.resize(length),
            Self::Write { offset, bytes } => file.put(offset, &bytes),
        }
    }
}

/// Cuts `length` bytes at `offset` of a file where units of it end: from and to, counted from `offset`.
fn pieces(offset: usize, length: usize, unit: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut from = 0;
    std::iter::from_fn(move || {
        let to = length.min(from + unit - (offset + from) % unit);
        (from < length).then(|| (std::mem::replace(&mut from, to), to))
    })
}

impl Content {
    fn resize(&mut self, length: usize) {
        let tail = length % PAGE_BYTES;
        self.pages.resize(length.div_ceil(PAGE_BYTES), None);
        if length < self.length
            && tail > 0
            && let Some(Some(page)) = self.pages.last_mut()
        {
            Arc::make_mut(page)[tail..].fill(0);
        }
        self.length = length;
    }

    fn put(&mut self, offset: usize, written: &[u8]) {
        if self.length < offset + written.len() {
            self.resize(offset + written.len());
        }
        for (from, to) in pieces(offset, written.len(), PAGE_BYTES) {
            let at = offset + from;
            let page = self.pages[at / PAGE_BYTES].get_or_insert_with(|| Arc::new([0; PAGE_BYTES]));
            Arc::make_mut(page)[at % PAGE_BYTES..][..to - from].copy_from_slice(&written[from..to]);
        }
    }

    /// Reads from `offset` on; how many bytes there were.
    fn get(&self, offset: usize, buffer: &mut [u8]) -> usize {
        let length = self.length.saturating_sub(offset).min(buffer.len());
        for (from, to) in pieces(offset, length, PAGE_BYTES) {
            let at = offset + from;
            match &self.pages[at / PAGE_BYTES] {
                Some(page) => buffer[from..to].copy_from_slice(&page[at % PAGE_BYTES..][..to - from]),
                None => buffer[from..to].fill(0),
            }
        }
        length
    }

    fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.length];
        self.get(0, &mut bytes);
        bytes
    }
}

fn switched_off() -> io::Error {
    io::Error::other("the simulated machine is switched off")
}

fn not_found(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{} does not exist", path.display()))
}

fn position(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

impl Disk for SimDisk {
    fn open(&self, path: &Path, create: bool) -> io::Result<Box<dyn File>> {
        let mut state = self.lock();
        state.alive()?;
        let inode = match state.names.get(path) {
            Some(&inode) => inode,
            None if !create => return Err(not_found(path)),
            None => {
                if !path.parent().is_some_and(|directory| state.directories.contains(directory)) {
                    return Err(not_found(path.parent().unwrap_or(path)));
                }
                let inode = state.next_inode;
                state.next_inode += 1;
                state.inodes.insert(inode, Inode::default());
                state.names.insert(path.to_owned(), inode);
                state.unsynced_names.push(NameChange::Create { path: path.to_owned(), inode });
                inode
            }
        };
        Ok(Box::new(SimFile { disk: self.clone(), inode, epoch: state.epoch }))
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        let state = self.lock();
        state.alive()?;
        if !state.directories.contains(directory) {
            return Err(not_found(directory));
        }
        let inside = state.names.keys().filter(|path| path.parent() == Some(directory));
        Ok(inside.filter_map(|path| path.file_name()).map(|name| name.to_string_lossy().into_owned()).collect())
    }

    fn create_directory(&self, directory: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.alive()?;
        state.directories.extend(directory.ancestors().map(Path::to_owned));
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.alive()?;
        let inode = state.names.remove(from).ok_or_else(|| not_found(from))?;
        state.names.insert(to.to_owned(), inode);
        state.unsynced_names.push(NameChange::Rename { from: from.to_owned(), to: to.to_owned(), inode });
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.alive()?;
        state.names.remove(path).ok_or_else(|| not_found(path))?;
        state.unsynced_names.push(NameChange::Remove { path: path.to_owned() });
        Ok(())
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        self.lock().durably(|state| {
            let (synced, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut state.unsynced_names)
                .into_iter()
                .partition(|change| change.directory() == Some(directory));
            state.unsynced_names = rest;
            synced.into_iter().for_each(|change| change.apply(&mut state.durable_names));
            Ok(())
        })
    }

    fn free_bytes(&self, _path: &Path) -> io::Result<u64> {
        let state = self.lock();
        state.alive()?;
        Ok(state.capacity.saturating_sub(state.used()))
    }
}

struct SimFile {
    disk: SimDisk,
    inode: u64,
    epoch: u64,
}

impl SimFile {
    fn with<T>(&self, work: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.disk.lock();
        state.alive()?;
        if state.epoch != self.epoch {
            return Err(switched_off());
        }
        work(&mut state)
    }

    /// Runs `change` on the file when the disk has room for it to become `length` bytes long.
    fn resize(&self, length: usize, change: impl FnOnce(&mut Inode)) -> io::Result<()> {
        self.with(|state| {
            let now = state.inode(self.inode)?.current.length;
            if length > now && state.names.values().any(|inode| *inode == self.inode) {
                state.room_for(length - now)?;
            }
            change(state.inode(self.inode)?);
            Ok(())
        })
    }
}

impl State {
    fn inode(&mut self, inode: u64) -> io::Result<&mut Inode> {
        self.inodes.get_mut(&inode).ok_or_else(switched_off)
    }
}

impl File for SimFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let from = position(offset)?;
        self.with(|state| Ok(state.inode(self.inode)?.current.get(from, buffer)))
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let offset = position(offset)?;
        self.resize(offset + bytes.len(), |inode| {
            inode.current.put(offset, bytes);
            inode.unsynced.push(Change::Write { offset, bytes: bytes.to_owned() });
        })
    }

    fn length(&self) -> io::Result<u64> {
        self.with(|state| Ok(state.inode(self.inode)?.current.length as u64))
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        let length = position(length)?;
        self.resize(length, |inode| {
            inode.current.resize(length);
            inode.unsynced.push(Change::Length(length));
        })
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        let length = position(length)?;
        self.resize(length, |inode| {
            if inode.current.length < length {
                inode.current.resize(length);
                inode.unsynced.push(Change::Length(length));
            }
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.with(|state| {
            state.durably(|state| {
                let fails = std::mem::take(&mut state.fail_next_sync);
                let inode = state.inode(self.inode)?;
                let unsynced = std::mem::take(&mut inode.unsynced);
                if fails {
                    return Err(io::Error::other("the simulated disk failed to write"));
                }
                unsynced.into_iter().for_each(|change| change.apply_all(&mut inode.durable));
                Ok(())
            })
        })
    }
}

#[cfg(test)]
mod tests;
