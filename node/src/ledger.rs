//! The ledger on this node: rows, salts, state map and Merkle tree together; how they are opened, checked against each
//! other, and made durable.
//!
//! Order of durability, which every crash point respects: raft log (before a write is answered) → salts and rows
//! ([`Ledger::sync`]) → pages of the state map → its low-water mark → release of the raft log. State map, key names and
//! the tree's right edge are derived: they are rebuilt from the chain log and checked against the roots in it.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};

use crate::command::{Command, Key, OperationCommand};
use crate::disk::Disk;
use crate::entry::{self, Change, Entry};
use crate::error::Error;
use crate::machine::{damaged_entry, find_put, tile_key};
use crate::merkle::{self, leaf_hash};
use crate::rt;
use crate::salts::Salts;
use crate::state_root::{self, KeyHash, Slot, SlotState, StateMap};
use crate::store::names::{self, Names};
use crate::store::outcomes::Span;
use crate::store::{Batch, Rows, Tree, entries, values};
use crate::view::Head;

/// Entries read at a time when replaying the chain log.
const REPLAY_ENTRIES: usize = 512;

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

const HEAD_VERSION: u8 = 1;

impl HeadRow {
    pub(crate) fn encode(&self) -> Vec<u8> {
        // postcard cannot fail on this type: every sequence has a known length.
        postcard::to_extend(self, vec![HEAD_VERSION]).unwrap_or_default()
    }

    fn decode(row: &[u8]) -> Result<Self, Error> {
        match row.split_first() {
            Some((&HEAD_VERSION, rest)) => {
                postcard::from_bytes(rest).map_err(|e| Error::Corrupt(format!("the head row is damaged: {e}")))
            }
            Some((version, _)) => Err(Error::Corrupt(format!(
                "the store has format {version}, this version reads {HEAD_VERSION}: start the newer version again"
            ))),
            None => Err(Error::Corrupt("the head row is empty".into())),
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
    pub rows: AtomicU64,
    pub row_count: AtomicU64,
    pub entries: AtomicU64,
}

/// The ledger. Shared by apply, which alone changes it, and the readers.
pub(crate) struct Ledger {
    pub rows: Rows,
    pub salts: Salts,
    pub map: StateMap,
    pub stages: Stages,
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

impl Ledger {
    /// Opens what is in the data directory and brings the derived parts up to the chain log.
    pub(crate) fn open(disk: &dyn Disk, data: &Path, rows: Rows) -> Result<Self, Error> {
        let head = rows.get(Tree::Meta, b"head")?.map(|row| HeadRow::decode(&row)).transpose()?.unwrap_or_default();
        let salts = Salts::open(disk, &data.join("salts"))?;
        let map = StateMap::open(disk, &data.join("state-map"), state_root::Config::default())?;
        if let Some(what) = map.damage() {
            tracing::warn!("the state map is not whole ({what}): it is rebuilt from the chain log");
        }
        let tree = rebuild_tree(&rows, head.size)?;
        let mut chain = Chain { tree, names: Names::default(), head };
        // What is read from here on may reach the pages of the state map, so it must be durable.
        rows.sync()?;
        replay(&rows, &map, &mut chain)?;
        Ok(Self {
            rows,
            salts,
            map,
            stages: Stages::default(),
            head: watch::Sender::new(chain.head.view()),
            chain: RwLock::new(chain),
            waiters: Mutex::new(Vec::new()),
            map_synced: Mutex::new(MapSync { size: 0, at: rt::instant() }),
        })
    }

    /// The chain as of one block.
    pub(crate) fn chain(&self) -> RwLockReadGuard<'_, Chain> {
        self.chain.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// For apply, and for what freezes or flushes the state map.
    pub(crate) fn write_chain(&self) -> RwLockWriteGuard<'_, Chain> {
        self.chain.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a key has a value, or had one that was erased.
    pub(crate) fn exists(&self, key: &Key) -> Result<bool, Error> {
        Ok(self.map.get(&key_hash(key))?.is_some_and(|slot| slot.exists()))
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
        self.rows.sync()?;
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
        let Command::Writes { writes, .. } = command else { return Ok(()) };
        let puts = writes.iter().flat_map(|w| &w.operations).filter_map(|operation| match operation {
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
        hashes.extend(row.ok_or_else(|| Error::Corrupt(format!("tile {level}/{index} is missing")))?);
    }
    Ok(hashes)
}

/// Makes the tree's right edge again from stored tiles and the newest entries.
fn rebuild_tree(rows: &Rows, size: u64) -> Result<merkle::Tree, Error> {
    let tail = entries::from(rows, size - size % 256, 256)?;
    let leaves: Vec<_> = tail.iter().map(|e| leaf_hash(&e.line)).collect();
    merkle::Tree::rebuild(size, &leaves, |level, index| stored_tile(rows, level, index))
        .map_err(|e| Error::Corrupt(format!("the Merkle tree cannot be rebuilt: {e}")))
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
        _ => Err(Error::Corrupt(format!("the row of block {height} is damaged"))),
    }
}

/// Index of the first entry of a block.
pub(crate) fn first_of_block(rows: &Rows, height: u64) -> Result<u64, Error> {
    if height <= 1 { Ok(0) } else { Ok(block_row(rows, height - 1)?.last + 1) }
}

/// Brings state map and key names from their low-water marks up to the head, and compares the root.
fn replay(rows: &Rows, map: &StateMap, chain: &mut Chain) -> Result<(), Error> {
    let names_low = match rows.get(Tree::Meta, b"names")? {
        Some(row) => row.first_chunk::<8>().map_or(0, |b| u64::from_be_bytes(*b)),
        None => 0,
    };
    if map.newest_in_pages()? > chain.head.height {
        map.reset()?;
    }
    let low = names_low.min(map.low_water()?).min(chain.head.height);
    replay_from(rows, map, chain, low, names_low)?;
    if chain.head.height == 0 || map.root()? == chain.head.state_root {
        return Ok(());
    }
    tracing::warn!("the state map does not fit the chain log: it is rebuilt");
    map.reset()?;
    replay_from(rows, map, chain, 0, names_low)?;
    if map.root()? == chain.head.state_root {
        return Ok(());
    }
    Err(Error::Corrupt(
        "the state rebuilt from the chain log does not give the root that the log states: the chain log is damaged; \
         restore a backup, or rejoin the cluster from its peers"
            .into(),
    ))
}

fn replay_from(rows: &Rows, map: &StateMap, chain: &mut Chain, low: u64, names_low: u64) -> Result<(), Error> {
    let map_low = map.low_water()?;
    let mut index = first_of_block(rows, low + 1)?;
    let mut height = low + 1;
    let mut touched = Touched::default();
    while index < chain.head.size {
        let lines = entries::from(rows, index, REPLAY_ENTRIES)?;
        if lines.is_empty() {
            return Err(Error::Corrupt(format!("the chain log ends at {index}, before its head {}", chain.head.size)));
        }
        for stored in lines {
            match Entry::parse(&stored.line).map_err(|e| damaged_entry(index, &e))? {
                Entry::Transaction(transaction) => {
                    let mut replay = Replay {
                        rows,
                        map,
                        touched: &mut touched,
                        names: (height > names_low).then_some(&mut chain.names),
                    };
                    replay.transaction(index, &transaction)?;
                }
                Entry::Block(_) => {
                    if height > map_low {
                        map.apply(height, touched.slots())?;
                        map.flush(height)?;
                    }
                    touched.clear();
                    height += 1;
                }
                _ => {}
            }
            index += 1;
        }
    }
    Ok(())
}

/// Where replayed transactions go.
struct Replay<'a> {
    rows: &'a Rows,
    map: &'a StateMap,
    touched: &'a mut Touched,
    /// `None`: the names of this block are in rows already.
    names: Option<&'a mut Names>,
}

impl Replay<'_> {
    fn transaction(&mut self, index: u64, transaction: &entry::Transaction<'_>) -> Result<(), Error> {
        for change in &transaction.changes {
            let hash = name_hash(change.key());
            let current = match self.touched.get(&hash) {
                Some(slot) => Some((slot.revision, slot.versions)),
                None => self.map.get(&hash)?.map(|s| (s.revision, s.versions)),
            };
            let versions = current.map_or(0, |(_, versions)| versions) + 1;
            // A page may already hold what is replayed here.
            let known = current.is_some_and(|(revision, _)| revision >= index);
            match change {
                Change::Put { key, previous, commitment, .. } => {
                    if let Some(names) = self.names.as_mut().filter(|_| previous.is_none()) {
                        names.insert(key);
                    }
                    if !known {
                        let state = SlotState::Live { commitment: *commitment };
                        self.touched.set(&hash, Slot { revision: index, versions, state });
                    }
                }
                Change::Delete { .. } => {
                    if !known {
                        self.touched.set(&hash, Slot { revision: index, versions, state: SlotState::Deleted });
                    }
                }
                Change::Erase { key, revision, .. } => {
                    if let Some((at, versions)) = current.filter(|(at, _)| at == revision) {
                        let line = entries::one(self.rows, at)?.line;
                        if let Some(put) = find_put(&line, key).map_err(|e| damaged_entry(at, &e))? {
                            let state = SlotState::Erased { commitment: put.commitment, erased_by: index };
                            self.touched.set(&hash, Slot { revision: at, versions, state });
                        }
                    }
                }
            }
        }
        Ok(())
    }
}
