//! What is derived from the chain log in the store, brought up to its head: the tree's right edge, the state map, the names
//! of the keys.

use crate::entry::{self, Change, Entry};
use crate::error::Error;
use crate::ledger::{Chain, Touched, first_of_block, name_hash, stored_tile};
use crate::machine::{damaged_entry, find_put};
use crate::merkle::{self, leaf_hash};
use crate::state_root::{Slot, SlotState, StateMap};
use crate::store::names::Names;
use crate::store::{Rows, Tree, entries};

/// Entries read at a time when replaying the chain log.
const REPLAY_ENTRIES: usize = 512;

/// Makes the tree's right edge again from stored tiles and the newest entries.
pub(super) fn rebuild_tree(rows: &Rows, size: u64) -> Result<merkle::Tree, Error> {
    let tail = entries::from(rows, size - size % 256, 256)?;
    let leaves: Vec<_> = tail.iter().map(|e| leaf_hash(&e.line)).collect();
    merkle::Tree::rebuild(size, &leaves, |level, index| stored_tile(rows, level, index)).map_err(|e| match e {
        merkle::ProofError::Read(e) => e,
        other => Error::DamagedStore(format!("the Merkle tree cannot be rebuilt: {other}")),
    })
}

/// Brings state map and key names from their low-water marks up to the head, and compares the root.
pub(super) fn replay(rows: &Rows, map: &StateMap, chain: &mut Chain) -> Result<(), Error> {
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
    Err(Error::DamagedStore("the state rebuilt from the chain log does not give the root that the log states".into()))
}

fn replay_from(rows: &Rows, map: &StateMap, chain: &mut Chain, low: u64, names_low: u64) -> Result<(), Error> {
    let map_low = map.low_water()?;
    let mut index = first_of_block(rows, low + 1)?;
    let mut height = low + 1;
    let mut touched = Touched::default();
    while index < chain.head.size {
        let lines = entries::from(rows, index, REPLAY_ENTRIES)?;
        if lines.is_empty() {
            return Err(Error::DamagedStore(format!(
                "the chain log ends at {index}, before its head {}",
                chain.head.size
            )));
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
