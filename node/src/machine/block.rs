//! A block in the making: what entries do to keys, values and tree, whether apply makes them or they are put back from the
//! archive; how it is closed, and written.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering::Relaxed;

use super::{FoundPut, cid_of, damaged_entry, find_put, position};
use crate::archive::Frame;
use crate::blobs::Cid;
use crate::command::Key;
use crate::entry::{Block, Entry};
use crate::error::Error;
use crate::ledger::{BlockPlace, Chain, HeadRow, Ledger, Touched};
use crate::merkle::{FullTile, leaf_hash};
use crate::rt::CpuTimer;
use crate::salts::{self, SALT_BYTES};
use crate::state_root::{KeyHash, Lookup, Slot, SlotState};
use crate::store::outcomes::{self, Kept, OutcomeRow, RequestKey};
use crate::store::{Batch, Tree, entries, values};

/// A row marks a key's revision each time it has this many more.
pub(crate) const HISTORY_STRIDE: u32 = 64;

/// What apply knows of a key: from the state map, or from earlier in the same block.
#[derive(Debug, Clone, Copy)]
pub(super) struct Current {
    pub(super) revision: u64,
    pub(super) versions: u32,
    pub(super) exists: bool,
}

/// A block in the making.
pub(super) struct Draft<'a> {
    pub(super) ledger: &'a Ledger,
    pub(super) chain: &'a mut Chain,
    pub(super) time_ms: u64,
    pub(super) first: u64,
    pub(super) first_slot: u64,
    pub(super) lines: Vec<entries::Stored>,
    pub(super) values: Vec<values::Stored>,
    pub(super) salts: Vec<u8>,
    pub(super) touched: Touched,
    /// Given up before the map is changed.
    pub(super) lookup: Option<Lookup<'a>>,
    /// Whether it erases a value, of whichever block.
    pub(super) erases: bool,
    /// Slots of earlier blocks whose values this block erases → index of the entry that says so.
    pub(super) erased: BTreeMap<u64, u64>,
    pub(super) system_revision: u64,
    pub(super) full: Vec<FullTile>,
    pub(super) batch: Batch,
    /// Outcomes to keep that this block adds, with their rows.
    pub(super) outcomes: Vec<OutcomeRow>,
    /// Outcomes of this block that can be asked for again within it.
    pub(super) named: HashMap<RequestKey, Kept>,
    /// Blobs that its puts name, each time.
    pub(super) blobs_named: Vec<Cid>,
    /// Blobs whose names it erases, each time.
    pub(super) blobs_erased: Vec<Cid>,
    pub(super) timer: CpuTimer,
}

impl<'a> Draft<'a> {
    /// A block on top of the chain's newest one. Its time is `proposed_ms`, but never before that of the newest.
    pub(super) fn new(ledger: &'a Ledger, chain: &'a mut Chain, proposed_ms: u64) -> Result<Self, Error> {
        let head = &chain.head;
        Ok(Self {
            ledger,
            time_ms: proposed_ms.max(head.time_ms),
            first: head.size,
            first_slot: head.slots,
            system_revision: head.system_revision,
            chain,
            lines: Vec::new(),
            values: Vec::new(),
            salts: Vec::new(),
            touched: Touched::default(),
            lookup: Some(ledger.map.lookup()?),
            erased: BTreeMap::new(),
            erases: false,
            full: Vec::new(),
            batch: Batch::default(),
            outcomes: Vec::new(),
            named: HashMap::new(),
            blobs_named: Vec::new(),
            blobs_erased: Vec::new(),
            timer: CpuTimer::start(),
        })
    }

    pub(super) fn next_index(&self) -> u64 {
        self.first + self.lines.len() as u64
    }

    pub(super) fn add_line(&mut self, entry: Entry<'_>) {
        let slot = self.first_slot + self.values.len() as u64;
        self.push_line(entry.to_line(), slot);
    }

    pub(super) fn push_line(&mut self, line: Vec<u8>, slot: u64) {
        self.chain.tree.push(leaf_hash(&line), &mut self.full);
        self.lines.push(entries::Stored { line, slot });
    }

    pub(super) fn current(&self, hash: &KeyHash) -> Result<Option<Current>, Error> {
        if let Some(slot) = self.touched.get(hash) {
            let exists = !matches!(slot.state, SlotState::Deleted);
            return Ok(Some(Current { revision: slot.revision, versions: slot.versions, exists }));
        }
        let stored = match &self.lookup {
            Some(lookup) => lookup.get(hash)?,
            None => self.ledger.map.get(hash)?,
        };
        Ok(stored.map(|s| Current { revision: s.revision, versions: s.versions, exists: s.exists() }))
    }

    /// Slot of the value that a revision of a key put, and the put; `None` when it put none.
    pub(super) fn value_of(&self, key: &Key, revision: u64) -> Result<Option<(u64, FoundPut)>, Error> {
        if revision >= self.next_index() {
            return Ok(None);
        }
        let stored = self.stored(revision)?;
        let put = find_put(&stored.line, key.as_str()).map_err(|e| damaged_entry(revision, &e))?;
        Ok(put.map(|put| (stored.slot + put.position, put)))
    }

    /// An entry of the log or of this block.
    fn stored(&self, index: u64) -> Result<entries::Stored, Error> {
        match index.checked_sub(self.first) {
            Some(at) => Ok(self.lines[position(at)].clone()),
            None => entries::one(&self.ledger.rows, index),
        }
    }

    pub(super) fn erase(
        &mut self,
        index: u64,
        key: &Key,
        revision: u64,
        hash: &KeyHash,
        current: Option<Current>,
    ) -> Result<(), Error> {
        let Some((slot, FoundPut { commitment, blob, .. })) = self.value_of(key, revision)? else { return Ok(()) };
        if blob {
            self.batch.remove(Tree::BlobSlots, &slot.to_be_bytes());
            self.blobs_erased.extend(self.blob_in(revision, slot)?);
        }
        self.erases = true;
        match slot.checked_sub(self.first_slot) {
            Some(at) => {
                let at = position(at);
                self.values[at] = values::Stored::Erased(index);
                if let Some(salt) = self.salts.get_mut(at * 32..(at + 1) * 32) {
                    salt.fill(0);
                }
            }
            None => {
                self.erased.insert(slot, index);
            }
        }
        if let Some(c) = current.filter(|c| c.exists && c.revision == revision) {
            let state = SlotState::Erased { commitment, erased_by: index };
            self.touched.set(hash, Slot { revision, versions: c.versions, state });
        }
        Ok(())
    }

    /// Notes that the value in a slot is the CID of a blob.
    pub(super) fn blob_slot(&mut self, slot: u64, revision: u64) {
        self.batch.put(Tree::BlobSlots, &slot.to_be_bytes(), revision.to_be_bytes().to_vec());
    }

    /// The CID in a slot; `None` when its salt is gone: then its file was put away before.
    fn blob_in(&self, revision: u64, slot: u64) -> Result<Option<Cid>, Error> {
        let Some(at) = slot.checked_sub(self.first_slot).map(position) else {
            return self.ledger.blob_in(revision, slot);
        };
        let salt = self.salts.get(at * SALT_BYTES..).and_then(<[u8]>::first_chunk);
        match (&self.values[at], salt) {
            (values::Stored::Ciphertext(bytes), Some(salt)) if *salt != [0; SALT_BYTES] => {
                Ok(cid_of(&salts::open(salt, revision, bytes.clone())?))
            }
            _ => Ok(None),
        }
    }

    /// Marks every [`HISTORY_STRIDE`]th revision of a key, so that a read of the past starts near it.
    pub(super) fn note_history(&mut self, hash: &KeyHash) -> Result<(), Error> {
        let Some(current) = self.current(hash)? else { return Ok(()) };
        // An erase leaves the revision where it is.
        if current.versions % HISTORY_STRIDE == 0 && current.revision + 1 == self.next_index() {
            let row_key = history_key(hash, current.versions / HISTORY_STRIDE);
            self.batch.put(Tree::History, &row_key, current.revision.to_be_bytes().to_vec());
        }
        Ok(())
    }

    /// Closes what apply made of a raft entry: drops the outcomes that are too old, closes the block, if there is one,
    /// archives and writes.
    pub(super) fn finish(mut self, position: super::Position) -> Result<(), Error> {
        self.ledger.stages.transactions.fetch_add(self.timer.lap_ns(), Relaxed);
        let span = &mut self.chain.head.outcomes;
        outcomes::evict(&self.ledger.rows, &mut self.batch, span, self.outcomes.len(), self.time_ms)?;
        if !self.lines.is_empty() {
            self.close_block(position.index)?;
        }
        // Before the salts go, which alone say which blobs they are. What is put back instead is counted afterwards, by
        // `Ledger::count_blobs`.
        self.blobs_named.iter().for_each(|cid| self.ledger.blobs.name(cid));
        self.ledger.blobs.erase(&self.blobs_erased)?;
        self.commit(position.index, Some(position.opaque), true)
    }

    /// Computes the state root and adds the block entry.
    pub(super) fn close_block(&mut self, raft_index: u64) -> Result<(), Error> {
        let height = self.chain.head.height + 1;
        self.lookup = None;
        let state = self.ledger.map.apply(height, self.touched.slots())?;
        self.ledger.stages.map.fetch_add(self.timer.lap_ns(), Relaxed);
        let block = Block {
            height,
            time_ms: self.time_ms,
            count: self.lines.len() as u64,
            previous: self.chain.head.block_hash,
            state,
        };
        let line = Entry::Block(block).to_line();
        let block_hash = leaf_hash(&line);
        let last = self.next_index();
        let slots = self.first_slot + self.values.len() as u64;
        self.push_line(line, slots);
        let place = BlockPlace { last, time_ms: self.time_ms, raft_index };
        self.batch.put(Tree::Blocks, &height.to_be_bytes(), place.encode());
        for tile in self.full.drain(..) {
            let (low, high) = tile.hashes.split_at(tile.hashes.len() / 2);
            self.batch.put(Tree::Tiles, &tile_key(tile.level, tile.index, 0), low.to_vec());
            self.batch.put(Tree::Tiles, &tile_key(tile.level, tile.index, 1), high.to_vec());
        }
        let head = &mut self.chain.head;
        *head = HeadRow {
            height,
            size: last + 1,
            time_ms: self.time_ms,
            block_hash: Some(block_hash),
            state_root: state,
            slots,
            system_revision: self.system_revision,
            ..std::mem::take(head)
        };
        Ok(())
    }

    /// Writes what the raft entry added: destroyed and new salts, the frame of the archive (unless it comes from there),
    /// the rows. Durable after [`Ledger::sync`], but destroyed salts at once.
    pub(super) fn commit(mut self, raft_index: u64, place: Option<Vec<u8>>, archive: bool) -> Result<(), Error> {
        let stages = &self.ledger.stages;
        let head = &mut self.chain.head;
        head.raft_index = raft_index;
        head.raft = place.clone().unwrap_or_default();
        let frame = Frame {
            raft_index,
            place,
            first: self.first,
            first_slot: self.first_slot,
            outcomes_kept: head.outcomes,
            lines: self.lines,
            values: self.values,
            outcomes: self.outcomes,
        };
        if !self.erased.is_empty() {
            self.ledger.salts.destroy(self.erased.keys().copied())?;
        }
        if self.erases {
            self.ledger.erased.store(true, Relaxed);
        }
        if !self.salts.is_empty() {
            self.ledger.salts.write(self.first_slot, &self.salts)?;
        }
        if archive {
            self.ledger.archive.append(&frame)?;
        }
        stages.archive.fetch_add(self.timer.lap_ns(), Relaxed);
        self.batch.put(Tree::Meta, b"head", head.encode());
        entries::put(&mut self.batch, frame.first, &frame.lines);
        values::put(&mut self.batch, frame.first_slot, &frame.values);
        if !self.erased.is_empty() {
            values::erase(&self.ledger.rows, &mut self.batch, &self.erased)?;
        }
        let rows = self.batch.len() as u64;
        self.ledger.rows.commit(self.batch)?;
        stages.rows.fetch_add(self.timer.lap_ns(), Relaxed);
        stages.row_count.fetch_add(rows, Relaxed);
        stages.entries.fetch_add(frame.lines.len() as u64, Relaxed);
        Ok(())
    }
}

/// Row key of the mark of a key's revision number `mark` × [`HISTORY_STRIDE`].
pub(crate) fn history_key(hash: &KeyHash, mark: u32) -> [u8; 20] {
    let mut key = [0; 20];
    key[..16].copy_from_slice(&hash.0[..16]);
    key[16..].copy_from_slice(&mark.to_be_bytes());
    key
}

/// Row key of one half of a full tile.
pub(crate) fn tile_key(level: u8, index: u64, half: u8) -> [u8; 10] {
    let mut key = [level; 10];
    key[1..9].copy_from_slice(&index.to_be_bytes());
    key[9] = half;
    key
}
