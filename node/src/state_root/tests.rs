//! Tests of the state map. A [`Ledger`] is the plain model: every block with its changes, and what they add up to.

#![allow(clippy::cast_possible_truncation, reason = "heights and sizes of tests are small")]

use std::collections::{BTreeMap, HashMap};

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use super::proof::{EMPTY, leaf_hash, node_hash};
use super::*;

mod crash;
mod disk;
mod oracle;

/// Tiny pages, a shallow directory and a shallow tree, so that splits, overflow and growth happen all the time.
fn tiny() -> Config {
    Config {
        write_behind: 8,
        page_entries: 3,
        directory_depth_max: 6,
        cell_depth_min: 1,
        cell_depth_max: 7,
        ..Config::default()
    }
}

/// What stands at a hash of the trie.
#[derive(Debug, Clone, Copy)]
enum Preimage {
    Leaf(KeyHash, [u8; 32]),
    Node([u8; 32], [u8; 32]),
}

/// The model: blocks of changes, and the state after the last of them.
struct Ledger {
    random: StdRng,
    blocks: Vec<Vec<(KeyHash, Slot)>>,
    state: BTreeMap<KeyHash, Slot>,
    /// Length of the chain log: the next entry's index.
    size: u64,
    /// How many different keys there are.
    keys: u64,
}

impl Ledger {
    fn new(seed: u64, keys: u64) -> Self {
        let random = StdRng::seed_from_u64(seed);
        Self { random, blocks: Vec::new(), state: BTreeMap::new(), size: 1, keys }
    }

    fn key(&self, number: u64) -> KeyHash {
        let mut key = KeyHash::of(format!("key {number}").as_bytes());
        if number.is_multiple_of(8) {
            // Some keys share a long prefix, as an adversary would have it.
            key.0[..5].copy_from_slice(&[0xa5; 5]);
        }
        if number.is_multiple_of(64) {
            key.0 = [0x5a; 32];
            key.0[24..].copy_from_slice(&number.to_be_bytes());
        }
        key
    }

    /// The slot that a random operation makes of a key.
    fn operation(&mut self, key: &KeyHash) -> Option<Slot> {
        let (old, index) = (self.state.get(key).copied(), self.size);
        let versions = old.map_or(0, |slot| slot.versions) + 1;
        self.size += 1;
        match (self.random.gen_range(0..10), old) {
            (0 | 1, Some(Slot { state: SlotState::Live { .. } | SlotState::Erased { .. }, .. })) => {
                Some(Slot { revision: index, versions, state: SlotState::Deleted })
            }
            (2, Some(Slot { state: SlotState::Live { commitment }, revision, versions })) => {
                Some(Slot { revision, versions, state: SlotState::Erased { commitment, erased_by: index } })
            }
            (0..=2, _) => None,
            _ => Some(Slot { revision: index, versions, state: SlotState::Live { commitment: self.random.r#gen() } }),
        }
    }

    /// Adds a block of up to `most` operations, some on the same key, and returns its height.
    fn block(&mut self, most: usize) -> u64 {
        let mut changes = Vec::new();
        for _ in 0..self.random.gen_range(0..=most) {
            let number = self.random.gen_range(0..self.keys);
            let key = self.key(number);
            if let Some(slot) = self.operation(&key) {
                self.state.insert(key, slot);
                changes.push((key, slot));
            }
        }
        self.size += 1;
        self.blocks.push(changes);
        self.height()
    }

    /// Adds a block and applies it.
    fn grow(&mut self, map: &StateMap, most: usize) -> u64 {
        let height = self.block(most);
        map.apply(height, self.changes(height)).unwrap();
        height
    }

    /// What a block changed.
    fn changes(&self, height: u64) -> &[(KeyHash, Slot)] {
        &self.blocks[height as usize - 1]
    }

    fn height(&self) -> u64 {
        self.blocks.len() as u64
    }

    /// The state after `height` blocks.
    fn state_at(&self, height: u64) -> BTreeMap<KeyHash, Slot> {
        self.blocks.iter().take(height as usize).flatten().copied().collect()
    }

    fn any_key(&mut self) -> KeyHash {
        let number = self.random.gen_range(0..self.keys + self.keys / 4);
        self.key(number)
    }
}

/// Root of a state by definition, recording what each hash stands for.
fn reference(state: &BTreeMap<KeyHash, Slot>, preimages: &mut HashMap<[u8; 32], Preimage>) -> [u8; 32] {
    fn over(leaves: &[(KeyHash, [u8; 32])], depth: usize, preimages: &mut HashMap<[u8; 32], Preimage>) -> [u8; 32] {
        match leaves {
            [] => EMPTY,
            [(key, value)] => {
                let hash = leaf_hash(key, value);
                preimages.insert(hash, Preimage::Leaf(*key, *value));
                hash
            }
            _ => {
                let (left, right) = leaves.split_at(leaves.partition_point(|(key, _)| !key.bit(depth)));
                let (left, right) = (over(left, depth + 1, preimages), over(right, depth + 1, preimages));
                let hash = node_hash(&left, &right);
                preimages.insert(hash, Preimage::Node(left, right));
                hash
            }
        }
    }
    let leaves: Vec<_> = state.iter().filter_map(|(key, slot)| Some((*key, slot.value_hash()?))).collect();
    over(&leaves, 0, preimages)
}

fn reference_root(state: &BTreeMap<KeyHash, Slot>) -> [u8; 32] {
    reference(state, &mut HashMap::new())
}

fn stored_as(slot: &Slot) -> Stored {
    let state = match slot.state {
        SlotState::Live { .. } => State::Live,
        SlotState::Erased { .. } => State::Erased,
        SlotState::Deleted => State::Deleted,
    };
    Stored { revision: slot.revision, versions: slot.versions, state }
}

/// Compares everything that the map says with the model.
fn assert_holds(map: &StateMap, state: &BTreeMap<KeyHash, Slot>, what: &str) {
    assert_eq!(map.root().unwrap(), reference_root(state), "root, {what}");
    let live = state.values().filter(|slot| slot.value_hash().is_some()).count() as u64;
    let sizes = map.sizes().unwrap();
    assert_eq!((sizes.live_keys, sizes.keys), (live, state.len() as u64), "live keys and keys, {what}");
    for (key, slot) in state {
        assert_eq!(map.get(key).unwrap(), Some(stored_as(slot)), "{key:?}, {what}");
    }
}

/// Replays what the map lacks, as a node does at start. From the newest block in the pages on, every root must be right.
fn replay(map: &StateMap, ledger: &Ledger) {
    let (low_water, newest) = (map.low_water().unwrap(), map.newest_in_pages().unwrap());
    assert!(low_water <= newest && newest <= ledger.height(), "{low_water} ≤ {newest} ≤ {}", ledger.height());
    for height in low_water + 1..=ledger.height() {
        let revisions =
            || ledger.changes(height).iter().map(|(key, _)| map.get(key).unwrap().map_or(0, |s| s.revision));
        let before: Vec<u64> = revisions().collect();
        let root = map.apply(height, ledger.changes(height)).unwrap();
        assert!(revisions().zip(before).all(|(now, before)| now >= before), "a replay goes back, block {height}");
        if height >= newest {
            assert_eq!(root, reference_root(&ledger.state_at(height)), "root of block {height} in the replay");
        }
    }
}
