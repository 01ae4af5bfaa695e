//! The ledger on this node: rows, archive, salts, state map and Merkle tree together; how they are made durable.
//!
//! Order of durability, which every crash point respects: raft log (before a write is answered) → salts, archive and rows
//! ([`Ledger::sync`]) → pages of the state map → its low-water mark → release of the raft log. State map, key names and
//! the tree's right edge are derived: they are rebuilt from the chain log and checked against the roots in it. Rows and
//! archive are two copies of the chain log: each is made again from the other ([`open`]).

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};

use crate::archive::Archive;
use crate::blobs::{Blobs, Cid};
use crate::command::{Command, Key, OperationCommand};
use crate::entry::{self, Change, Entry};
use crate::error::Error;
use crate::machine::{cid_of, damaged_entry, tile_key};
use crate::merkle;
use crate::rt;
use crate::salts::{self, Salts};
use crate::snapshot::Staging;
use crate::state_root::{KeyHash, Slot, StateMap};
use crate::store::names::{self, Names};
use crate::store::outcomes::{self, Span};
use crate::store::{Batch, Rows, Tree, entries, values};
use crate::view::Head;

mod open;
mod replay;

use open::Suspicion;

/// Hash under which the state map keeps a key.
pub(crate) fn key_hash(key: &Key) -> KeyHash {
    name_hash(key.as_str())
}

fn name_hash(name: &str) -> KeyHash {
    KeyHash::of(name.as_bytes())
}

/// The newest block, and the position in the raft log that made it; one row, written with every batch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HeadRow {
    pub height: u64,
    pub size: u64,
    pub time_ms: u64,
    /// Leaf hash of the newest block entry.
    pub block_hash: Option<[u8; 32]>,
    pub state_root: [u8; 32],
    /// Value slots in use.
    pub slots: u64,
    pub outcomes: Span,
    /// Index of the newest entry that changed system state.
    pub system_revision: u64,
    pub raft_index: u64,
    /// What the Raft adapter must find again.
    pub raft: Vec<u8>,
}

/// Of the rows of the store. 2: rows are found by the last entry, value or name in them.
const HEAD_VERSION: u8 = 2;

impl HeadRow {
    pub(crate) fn encode(&self) -> Vec<u8> {
        // postcard cannot fail on this type: every sequence has a known length.
        postcard::to_extend(self, vec![HEAD_VERSION]).unwrap_or_default()
    }

    fn decode(row: &[u8]) -> Result<Self, Error> {
        match row.split_first() {
            Some((&HEAD_VERSION, rest)) => {
                postcard::from_bytes(rest).map_err(|e| Error::DamagedStore(format!("the head row is damaged: {e}")))
            }
            // Unlike a newer one it can be made anew from the archive.
            Some((version @ 0..HEAD_VERSION, _)) => Err(Error::DamagedStore(format!(
                "the store has the earlier format {version}, this version reads {HEAD_VERSION}"
            ))),
            Some((version, _)) => Err(Error::Invalid(format!(
                "the store has format {version}, this version reads {HEAD_VERSION}: start the newer version again"
            ))),
            None => Err(Error::DamagedStore("the head row is empty".into())),
        }
    }

    pub(crate) fn view(&self) -> Head {
        let Self { height, size, time_ms, system_revision, .. } = *self;
        Head { height, size, time_ms, system_revision }
    }
}

/// What changes with every block; behind one lock, so that a reader sees one block. The state map has locks of its own,
/// but is changed under this one too.
pub(crate) struct Chain {
    pub tree: merkle::Tree,
    pub names: Names,
    pub head: HeadRow,
}

/// The chain, held for reading. A thread that took it twice would wait for itself once apply waits in between, so debug
/// builds panic at the second time.
pub(crate) struct ChainRead<'a> {
    chain: RwLockReadGuard<'a, Chain>,
    #[cfg(debug_assertions)]
    _once: once::Once,
}

impl std::ops::Deref for ChainRead<'_> {
    type Target = Chain;

    fn deref(&self) -> &Chain {
        &self.chain
    }
}

#[cfg(debug_assertions)]
mod once {
    use std::cell::RefCell;

    thread_local! {
        /// Addresses of the locks that this thread holds.
        static HELD: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
    }

    /// This thread holds a lock, once.
    pub(super) struct Once(usize);

    impl Once {
        pub(super) fn of<T>(lock: &T) -> Self {
            let address = std::ptr::from_ref(lock).addr();
            HELD.with_borrow_mut(|held| {
                assert!(!held.contains(&address), "the chain is held already by this thread: pass what was read on");
                held.push(address);
            });
            Self(address)
        }
    }

    impl Drop for Once {
        fn drop(&mut self) {
            HELD.with_borrow_mut(|held| held.retain(|address| *address != self.0));
        }
    }
}

/// What a block makes of the keys it touches, each once, in the order in which they were first touched.
#[derive(Debug, Default)]
pub(crate) struct Touched {
    slots: Vec<(KeyHash, Slot)>,
    at: HashMap<KeyHash, usize>,
}

impl Touched {
    pub(crate) fn get(&self, hash: &KeyHash) -> Option<&Slot> {
        self.at.get(hash).map(|&at| &self.slots[at].1)
    }

    pub(crate) fn set(&mut self, hash: &KeyHash, slot: Slot) {
        match self.at.get(hash) {
            Some(&at) => self.slots[at].1 = slot,
            None => {
                self.at.insert(*hash, self.slots.len());
                self.slots.push((*hash, slot));
            }
        }
    }

    pub(crate) fn slots(&self) -> &[(KeyHash, Slot)] {
        &self.slots
    }

    fn clear(&mut self) {
        self.slots.clear();
        self.at.clear();
    }
}

/// CPU time of apply by stage, in nanoseconds, and what it did; sums since start.
#[derive(Debug, Default)]
pub(crate) struct Stages {
    pub decode: AtomicU64,
    pub transactions: AtomicU64,
    pub map: AtomicU64,
    pub archive: AtomicU64,
    pub rows: AtomicU64,
    pub row_count: AtomicU64,
    pub entries: AtomicU64,
}

/// The ledger. Shared by apply, which alone changes it, and the readers.
pub(crate) struct Ledger {
    pub rows: Rows,
    pub archive: Archive,
    pub salts: Salts,
    pub blobs: Arc<Blobs>,
    pub map: StateMap,
    pub stages: Stages,
    /// Set by apply when a value was erased: the raft log still has it.
    pub erased: AtomicBool,
    /// Whether the store proved damaged.
    pub suspicion: Suspicion,
    /// Where a snapshot is received.
    pub staging: Staging,
    /// Names of stores that were set aside and are still there.
    pub set_aside: Vec<String>,
    chain: RwLock<Chain>,
    head: watch::Sender<Head>,
    /// Readers that wait until a raft index is applied, in order of arrival.
    waiters: Mutex<Vec<(u64, oneshot::Sender<()>)>>,
    map_synced: Mutex<MapSync>,
}

/// When the pages of the state map were last made durable.
struct MapSync {
    size: u64,
    at: tokio::time::Instant,
}

/// The pages of the state map are made durable after so many entries: what a start after a crash must replay at most …
const MAP_SYNC_ENTRIES: u64 = 150_000;
/// … or after this long.
const MAP_SYNC_INTERVAL: Duration = Duration::from_secs(30);

/// Rows read at once when the names of blobs are counted.
const BLOB_SLOTS_AT_ONCE: usize = 256;

/// So many names of keys may wait in memory.
const WAITING_NAMES_MAX: usize = 16_384;

impl Ledger {
    /// The chain as of one block.
    pub(crate) fn chain(&self) -> ChainRead<'_> {
        #[cfg(debug_assertions)]
        let once = once::Once::of(&self.chain);
        ChainRead {
            chain: self.chain.read().unwrap_or_else(PoisonError::into_inner),
            #[cfg(debug_assertions)]
            _once: once,
        }
    }

    /// For apply, and for what freezes or flushes the state map.
    pub(crate) fn write_chain(&self) -> RwLockWriteGuard<'_, Chain> {
        self.chain.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a key has a value, or had one that was erased.
    pub(crate) fn exists(&self, key: &Key) -> Result<bool, Error> {
        Ok(self.map.get(&key_hash(key))?.is_some_and(|slot| slot.exists()))
    }

    /// The newest block that was told of. Waits for nobody, where [`Ledger::chain`] waits for a block being applied.
    pub(crate) fn newest(&self) -> Head {
        *self.head.borrow()
    }

    /// Wakes at every block.
    pub(crate) fn head(&self) -> watch::Receiver<Head> {
        self.head.subscribe()
    }

    /// Tells of a new head, and those who wait for it. Must be called without the chain's lock.
    pub(crate) fn announce(&self, head: Head) {
        let applied = self.chain().head.raft_index;
        self.head.send_if_modified(|h| std::mem::replace(h, head) != head);
        let mut waiters = self.waiters.lock().unwrap_or_else(PoisonError::into_inner);
        let (ready, waiting) = waiters.drain(..).partition(|(index, _)| *index <= applied);
        *waiters = waiting;
        for (_, waiter) in ready {
            // A reader that gave up is no error.
            let _ = waiter.send(());
        }
    }

    /// Resolves when the raft log is applied up to `index`.
    pub(crate) fn applied(&self, index: u64) -> Option<oneshot::Receiver<()>> {
        let mut waiters = self.waiters.lock().unwrap_or_else(PoisonError::into_inner);
        if self.chain().head.raft_index >= index {
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        waiters.push((index, sender));
        Some(receiver)
    }

    /// Makes everything applied so far durable, in the order of the module's head; returns the row of the head that is
    /// durable now. The caller may then release the raft log up to it. `all`: the pages of the state map too, even if not
    /// due.
    pub(crate) fn sync(&self, all: bool) -> Result<HeadRow, Error> {
        let (head, waiting) = {
            let chain = self.chain();
            (chain.head.clone(), chain.names.to_merge())
        };
        names::merge(&self.rows, &waiting, |batch| self.rows.commit(batch))?;
        let mut mark = Batch::default();
        mark.put(Tree::Meta, b"names", head.height.to_be_bytes().to_vec());
        self.rows.commit(mark)?;
        self.salts.sync()?;
        self.archive.sync()?;
        self.rows.sync()?;
        self.archive.note_store_durable(head.raft_index);
        self.write_chain().names.merged(&waiting);
        self.map.flush(head.height)?;
        let mut synced = self.map_synced.lock().unwrap_or_else(PoisonError::into_inner);
        let due = head.size - synced.size >= MAP_SYNC_ENTRIES || synced.at.elapsed() >= MAP_SYNC_INTERVAL;
        if due || all {
            self.map.sync(head.height)?;
            *synced = MapSync { size: head.size, at: rt::instant() };
        }
        Ok(head)
    }

    /// Drops every outcome kept for repetitions: a bug that is planted.
    pub(crate) fn forget_outcomes(&self) -> Result<(), Error> {
        let Span { first, next } = self.chain().head.outcomes;
        outcomes::forget(&self.rows, first, next)
    }

    /// Whether so much waits in memory that [`Ledger::sync`] is due.
    pub(crate) fn wants_sync(&self) -> Result<bool, Error> {
        Ok(self.chain().names.waiting() >= WAITING_NAMES_MAX || self.map.wants_flush()?)
    }

    /// For who adds much in a row.
    pub(crate) fn sync_if_much(&self) -> Result<(), Error> {
        if self.wants_sync()? { self.sync(false).map(drop) } else { Ok(()) }
    }

    /// The first block that was made by a raft entry after `raft_index`; one above the head if there is none.
    pub(crate) fn first_block_after(&self, raft_index: u64) -> Result<u64, Error> {
        let (mut low, mut high) = (1, self.chain().head.height + 1);
        while low < high {
            let middle = low.midpoint(high);
            if block_row(&self.rows, middle)?.raft_index > raft_index { high = middle } else { low = middle + 1 }
        }
        Ok(low)
    }

    /// Index of the raft entry that made a block.
    pub(crate) fn raft_index_of(&self, height: u64) -> Result<u64, Error> {
        Ok(block_row(&self.rows, height)?.raft_index)
    }

    /// Writes the salts of a block again, from the command that made it. A power cut can keep rows that were not synced
    /// yet and lose the salts written before them; the raft log has them for as long as that can be.
    pub(crate) fn restore_salts(&self, height: u64, command: &Command) -> Result<(), Error> {
        let puts = command.writes().iter().flat_map(|w| &w.operations).filter_map(|operation| match operation {
            OperationCommand::Put { value, salt, .. } => Some((entry::commitment(salt, value), salt)),
            _ => None,
        });
        let salts: HashMap<_, _> = puts.collect();
        let first = first_of_block(&self.rows, height)?;
        let count = block_row(&self.rows, height)?.last + 1 - first;
        let lines = entries::from(&self.rows, first, usize::try_from(count).unwrap_or(usize::MAX))?;
        for (index, stored) in (first..).zip(lines) {
            let entry = Entry::parse(&stored.line).map_err(|e| damaged_entry(index, &e))?;
            let commitments = entry.changes().iter().filter_map(|change| match change {
                Change::Put { commitment, .. } => Some(commitment),
                _ => None,
            });
            for (slot, commitment) in (stored.slot..).zip(commitments) {
                let held = matches!(values::one(&self.rows, slot)?, values::Stored::Ciphertext(_));
                if let Some(salt) = salts.get(commitment).filter(|_| held) {
                    self.salts.write(slot, *salt)?;
                }
            }
        }
        Ok(())
    }

    /// The CID in a slot; `None` when it is erased.
    pub(crate) fn blob_in(&self, revision: u64, slot: u64) -> Result<Option<Cid>, Error> {
        match (values::one(&self.rows, slot)?, self.salts.read(slot)?) {
            (values::Stored::Ciphertext(bytes), Some(salt)) => Ok(cid_of(&salts::open(&salt, revision, bytes)?)),
            _ => Ok(None),
        }
    }

    /// Counts from the rows which blobs values name, and how often.
    pub(crate) fn count_blobs(&self) -> Result<(), Error> {
        let named_before = self.blobs.forget_names();
        let mut from = [0; 8];
        loop {
            let page = self.rows.from(Tree::BlobSlots, &from, BLOB_SLOTS_AT_ONCE)?;
            for (key, value) in &page {
                let (Some(slot), Some(revision)) = (key.as_array(), value.as_array()) else {
                    return Err(Error::DamagedStore("a row of the slots of blobs is damaged".into()));
                };
                let slot = u64::from_be_bytes(*slot);
                if let Some(cid) = self.blob_in(u64::from_be_bytes(*revision), slot)? {
                    self.blobs.name(&cid);
                }
                from = (slot + 1).to_be_bytes();
            }
            if page.len() < BLOB_SLOTS_AT_ONCE {
                return self.blobs.erase_forgotten(&named_before);
            }
        }
    }

    /// Hashes of a tile as far as `width`, from the rows or the right edge.
    pub(crate) fn tile(&self, chain: &Chain, level: u8, index: u64, width: u16) -> Result<Vec<u8>, Error> {
        if let Some(hashes) = chain.tree.edge_tile(level, index, width) {
            return Ok(hashes.to_vec());
        }
        let mut hashes = stored_tile(&self.rows, level, index)?;
        hashes.truncate(usize::from(width) * merkle::HASH_BYTES);
        Ok(hashes)
    }
}

fn stored_tile(rows: &Rows, level: u8, index: u64) -> Result<Vec<u8>, Error> {
    let mut hashes = Vec::with_capacity(8192);
    for half in 0..2 {
        let row = rows.get(Tree::Tiles, &tile_key(level, index, half))?;
        hashes.extend(row.ok_or_else(|| Error::DamagedStore(format!("tile {level}/{index} is missing")))?);
    }
    Ok(hashes)
}

/// A block as its row says: index of its last entry, its time, and the raft entry that made it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockPlace {
    pub last: u64,
    pub time_ms: u64,
    pub raft_index: u64,
}

impl BlockPlace {
    pub(crate) fn encode(self) -> Vec<u8> {
        [self.last, self.time_ms, self.raft_index].map(u64::to_be_bytes).concat()
    }
}

/// The row of a block.
pub(crate) fn block_row(rows: &Rows, height: u64) -> Result<BlockPlace, Error> {
    if height == 0 {
        return Err(Error::NotFound("block 0".into()));
    }
    let row =
        rows.get(Tree::Blocks, &height.to_be_bytes())?.ok_or_else(|| Error::NotFound(format!("block {height}")))?;
    match row.as_chunks::<8>() {
        ([last, time_ms, raft_index], []) => Ok(BlockPlace {
            last: u64::from_be_bytes(*last),
            time_ms: u64::from_be_bytes(*time_ms),
            raft_index: u64::from_be_bytes(*raft_index),
        }),
        _ => Err(Error::DamagedStore(format!("the row of block {height} is damaged"))),
    }
}

/// Index of the first entry of a block.
pub(crate) fn first_of_block(rows: &Rows, height: u64) -> Result<u64, Error> {
    if height <= 1 { Ok(0) } else { Ok(block_row(rows, height - 1)?.last + 1) }
}
