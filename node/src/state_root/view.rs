//! Frozen views: what the map was at an earlier block, kept as what later blocks replaced.
//!
//! Each view has one layer with the old value of whatever changed first after it and before the next view; a view is
//! read through its own layer, then the newer ones, then the present.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use super::page::{Entry, Run, overlay};
use super::proof::KeyHash;
use super::tree::{Node, Place};
use crate::error::Error;

/// Most views at a time: the published checkpoint, the one being cosigned, a snapshot, and one to spare.
pub const VIEWS_MAX: usize = 4;

/// Names a frozen view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ViewId(u64);

/// What a view is, beyond the replaced values.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frozen {
    pub(super) block: u64,
    pub(super) root: [u8; 32],
    /// Depth of the cells then: deeper levels say nothing about this view.
    pub(super) depth: u8,
}

/// Spreads places over a hash table. Each place gives another word, and an adversary who wants words that collide would
/// have to grind keys for it; the tables are small and short-lived.
#[derive(Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u32(u32::from(*byte)));
    }
    fn write_u8(&mut self, depth: u8) {
        self.write_u32(u32::from(depth));
    }
    fn write_u32(&mut self, word: u32) {
        self.0 = (self.0.rotate_left(32) ^ u64::from(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }
}

struct Layer {
    id: ViewId,
    frozen: Frozen,
    nodes: HashMap<Place, Node, BuildHasherDefault<Spread>>,
    entries: BTreeMap<KeyHash, Option<Entry>>,
}

/// The views, oldest first.
#[derive(Default)]
pub(super) struct Views {
    layers: VecDeque<Layer>,
    last: u64,
    /// Nodes that the layer released last held: what the next one may come to.
    nodes_expected: usize,
}

impl Views {
    /// # Errors
    /// [`Error::Invalid`] when there are [`VIEWS_MAX`] already.
    pub(super) fn freeze(&mut self, frozen: Frozen) -> Result<ViewId, Error> {
        if self.layers.len() >= VIEWS_MAX {
            return Err(Error::Invalid(format!("the state map holds {VIEWS_MAX} frozen views; release one first")));
        }
        self.last += 1;
        let id = ViewId(self.last);
        let nodes = HashMap::with_capacity_and_hasher(self.nodes_expected, BuildHasherDefault::default());
        self.layers.push_back(Layer { id, frozen, nodes, entries: BTreeMap::new() });
        Ok(id)
    }

    /// Forgets a view; what an older one still needs of its layer passes to that one.
    pub(super) fn release(&mut self, id: ViewId) {
        let Ok(at) = self.position(id) else { return };
        let Some(gone) = self.layers.remove(at) else { return };
        self.nodes_expected = gone.nodes.len();
        if let Some(older) = at.checked_sub(1).and_then(|at| self.layers.get_mut(at)) {
            for (place, node) in gone.nodes {
                older.nodes.entry(place).or_insert(node);
            }
            for (key, entry) in gone.entries {
                older.entries.entry(key).or_insert(entry);
            }
        }
    }

    /// Drops the oldest views until at most `max` replaced nodes and entries are held.
    pub(super) fn trim(&mut self, max: usize) {
        while self.replaced() > max && self.layers.pop_front().is_some() {}
    }

    /// Replaced nodes and entries held.
    pub(super) fn replaced(&self) -> usize {
        self.layers.iter().map(|layer| layer.nodes.len() + layer.entries.len()).sum()
    }

    /// Where a view stands among the layers.
    ///
    /// # Errors
    /// [`Error::NotFound`] when it was released, or dropped because it held too much.
    pub(super) fn position(&self, id: ViewId) -> Result<usize, Error> {
        let found = self.layers.iter().position(|layer| layer.id == id);
        found.ok_or_else(|| Error::NotFound(format!("view {} of the state map", id.0)))
    }

    pub(super) fn frozen(&self, at: usize) -> Option<Frozen> {
        self.layers.get(at).map(|layer| layer.frozen)
    }

    /// Keeps what a node was, if the newest view sees it change for the first time.
    pub(super) fn keep_node(&mut self, place: Place, old: Node) {
        if let Some(layer) = self.layers.back_mut()
            && place.depth <= layer.frozen.depth
        {
            layer.nodes.entry(place).or_insert(old);
        }
    }

    /// Keeps what a key's entry was, if the newest view sees it change for the first time.
    pub(super) fn keep_entry(&mut self, key: KeyHash, old: Option<Entry>) {
        if let Some(layer) = self.layers.back_mut() {
            layer.entries.entry(key).or_insert(old);
        }
    }

    /// The node as of the view, if it changed since.
    pub(super) fn node(&self, at: usize, place: Place) -> Option<Node> {
        self.layers.range(at..).find_map(|layer| layer.nodes.get(&place).copied())
    }

    /// The key's entry as of the view, if it changed since.
    #[cfg(test)]
    pub(super) fn entry(&self, at: usize, key: &KeyHash) -> Option<Option<Entry>> {
        self.layers.range(at..).find_map(|layer| layer.entries.get(key).copied())
    }

    /// Turns the present entries between two keys into those of the view.
    pub(super) fn rewind(&self, at: usize, bounds: (KeyHash, KeyHash), run: &mut Run) {
        for layer in self.layers.range(at..).rev() {
            for (key, old) in layer.entries.range(bounds.0..=bounds.1) {
                overlay(run, *key, *old);
            }
        }
    }
}
