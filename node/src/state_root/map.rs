//! The map itself, under its lock: deltas over buckets, the tree above them, views of the past.

use super::buckets::{Buckets, EVERYTHING, SyncPoint};
use super::page::{Entry, Mark, Run, overlay};
use super::proof::KeyHash;
use super::tree::{Kind, Node, Place, Tree, bounds, descend, index};
use super::view::{Frozen, ViewId, Views};
use super::{Config, Deltas, MapProof, ProofLeaf, SLICE_BUCKETS, Sizes, Slot, State};
use crate::error::Error;

/// Keys per cell at which the tree grows by a level.
const CELL_KEYS: u64 = 4;
/// Deepest cells that can be configured: 1.1 GB of tree.
const CELL_DEPTH_MAX: u8 = 24;

/// Deltas that wait for their block to become durable, then are written.
#[derive(Default)]
struct Sealed {
    /// They are all changes above the low-water mark up to this block.
    block: u64,
    deltas: Deltas,
}

pub(super) struct Map {
    buckets: Buckets,
    tree: Tree,
    views: Views,
    /// Changes since `sealed`, over `sealed`, over the buckets.
    active: Deltas,
    sealed: Option<Sealed>,
    /// Every change up to here is in the pages.
    low_water: u64,
    /// The newest block applied.
    block: u64,
    live_keys: u64,
    keys: u64,
    cell_depth_max: u8,
    replaced_max: usize,
    /// False while a block is half applied, and after it failed.
    usable: bool,
}

impl Map {
    /// Reads all buckets once and computes the tree above them.
    pub(super) fn load(buckets: Buckets, config: &Config, entries: u64) -> Result<Self, Error> {
        let cell_depth_max = config.cell_depth_max.min(CELL_DEPTH_MAX);
        let mut depth = config.cell_depth_min.min(cell_depth_max);
        while entries > CELL_KEYS << depth && depth < cell_depth_max {
            depth += 1;
        }
        let low_water = buckets.mark().block;
        let mut map = Self {
            buckets,
            tree: Tree::empty(depth),
            views: Views::default(),
            active: Deltas::new(),
            sealed: None,
            low_water,
            block: low_water,
            live_keys: 0,
            keys: 0,
            cell_depth_max,
            replaced_max: config.replaced_max,
            usable: true,
        };
        map.load_cells()?;
        map.tree.raise_all();
        Ok(map)
    }

    fn load_cells(&mut self) -> Result<(), Error> {
        let (depth, mut head, mut run) = (self.tree.depth(), 0, Run::new());
        let mut cell: (u32, Run) = (0, Run::new());
        loop {
            run.clear();
            let last = self.buckets.read_bucket(head, |page| page.read_into(EVERYTHING, &mut run))?;
            for &(key, entry) in &run {
                let number = index(key.head(), depth);
                if number != cell.0 {
                    self.tree.set(Place { depth, index: cell.0 }, Node::over(&cell.1, usize::from(depth)));
                    cell.0 = number;
                    cell.1.clear();
                }
                self.keys += 1;
                if entry.in_trie() {
                    self.live_keys += 1;
                    cell.1.push((key, entry));
                }
            }
            match last.checked_add(1) {
                Some(next) => head = next,
                None => break,
            }
        }
        self.tree.set(Place { depth, index: cell.0 }, Node::over(&cell.1, usize::from(depth)));
        Ok(())
    }

    pub(super) fn is_usable(&self) -> bool {
        self.usable
    }

    pub(super) fn low_water(&self) -> u64 {
        self.low_water
    }

    pub(super) fn root(&self) -> [u8; 32] {
        self.tree.node(Place::ROOT).hash
    }

    /// Deltas not yet sealed: what a flush would begin to write.
    pub(super) fn deltas(&self) -> usize {
        self.active.len().max(self.sealed.as_ref().map_or(0, |sealed| sealed.deltas.len()))
    }

    pub(super) fn sizes(&self) -> Sizes {
        Sizes {
            live_keys: self.live_keys,
            keys: self.keys,
            deltas: self.active.len() + self.sealed.as_ref().map_or(0, |sealed| sealed.deltas.len()),
            replaced: self.views.replaced(),
            file_bytes: self.buckets.file_bytes(),
            memory_bytes: self.tree.bytes() + self.buckets.bytes(),
        }
    }

    fn delta(&self, key: &KeyHash) -> Option<Entry> {
        let sealed = || self.sealed.as_ref().and_then(|sealed| sealed.deltas.get(key));
        self.active.get(key).or_else(sealed).copied()
    }

    pub(super) fn entry(&self, key: &KeyHash) -> Result<Option<Entry>, Error> {
        match self.delta(key) {
            Some(entry) => Ok(Some(entry)),
            None => self.buckets.find(key),
        }
    }

    #[cfg(test)]
    pub(super) fn entry_at(&self, key: &KeyHash, view: ViewId) -> Result<Option<Entry>, Error> {
        match self.views.entry(self.views.position(view)?, key) {
            Some(entry) => Ok(entry),
            None => self.entry(key),
        }
    }

    pub(super) fn apply(&mut self, block: u64, slots: &[(KeyHash, Slot)]) -> Result<[u8; 32], Error> {
        if block <= self.block {
            return Err(Error::Invalid(format!("the state map is at block {}, not before {block}", self.block)));
        }
        self.usable = false;
        let mut changes: Run = slots.iter().map(|(key, slot)| (*key, slot.entry(key))).collect();
        changes.sort_by_key(|(key, _)| *key);
        let (mut run, mut changed) = (Run::new(), Vec::new());
        let depth = self.tree.depth();
        let cells: Vec<u32> = changes.iter().map(|(key, _)| index(key.head(), depth)).collect();
        self.tree.fetch(&cells);
        for cell in changes.chunk_by(|a, b| index(a.0.head(), depth) == index(b.0.head(), depth)) {
            let mut touched = false;
            for &(key, entry) in cell {
                touched |= self.change(key, entry)?;
            }
            if touched {
                let place = Place::on_path(&cell[0].0, depth);
                let node = self.subtree(place, &mut run)?;
                self.set_node(place, node);
                changed.push(place.index);
            }
        }
        self.raise(changed, &mut run)?;
        if self.keys > CELL_KEYS << depth && depth < self.cell_depth_max {
            self.tree.grow();
        }
        self.views.trim(self.replaced_max);
        self.block = block;
        self.usable = true;
        Ok(self.root())
    }

    /// Sets one key, unless what is stored is as late; says whether it did.
    fn change(&mut self, key: KeyHash, entry: Entry) -> Result<bool, Error> {
        let old = self.entry(&key)?;
        if old.is_some_and(|old| !entry.supersedes(&old)) {
            return Ok(false);
        }
        self.keys += u64::from(old.is_none());
        self.live_keys += u64::from(entry.in_trie());
        self.live_keys -= u64::from(old.is_some_and(|old| old.in_trie()));
        self.views.keep_entry(key, old);
        self.active.insert(key, entry);
        Ok(true)
    }

    /// Computes the ancestors of the changed cells, level by level.
    fn raise(&mut self, mut changed: Vec<u32>, run: &mut Run) -> Result<(), Error> {
        for depth in (0..self.tree.depth()).rev() {
            changed.iter_mut().for_each(|index| *index >>= 1);
            changed.dedup();
            for &index in &changed {
                let place = Place { depth, index };
                let left = self.known(place.child(false), run)?;
                let right = self.known(place.child(true), run)?;
                self.set_node(place, Node::join(&left, &right));
            }
        }
        Ok(())
    }

    /// A node of the present, computed when its level is newer than the last change below it.
    fn known(&mut self, place: Place, run: &mut Run) -> Result<Node, Error> {
        let node = self.tree.node(place);
        if node.kind != Kind::Unknown {
            return Ok(node);
        }
        let node = self.subtree(place, run)?;
        self.tree.set(place, node);
        Ok(node)
    }

    fn set_node(&mut self, place: Place, node: Node) {
        self.views.keep_node(place, self.tree.node(place));
        self.tree.set(place, node);
    }

    fn subtree(&self, place: Place, run: &mut Run) -> Result<Node, Error> {
        self.live_below(place, None, run)?;
        Ok(Node::over(run, usize::from(place.depth)))
    }

    /// Fills `run` with the keys in the trie below a node, as of a view (by position) or now.
    fn live_below(&self, place: Place, view: Option<usize>, run: &mut Run) -> Result<(), Error> {
        run.clear();
        self.buckets.below(place, run)?;
        let (low, high) = bounds(place.heads());
        for deltas in self.sealed.iter().map(|sealed| &sealed.deltas).chain([&self.active]) {
            for (key, entry) in deltas.range(low..=high) {
                overlay(run, *key, Some(*entry));
            }
        }
        if let Some(view) = view {
            self.views.rewind(view, (low, high), run);
        }
        run.retain(|(_, entry)| entry.in_trie());
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn flip_bit(&mut self, untouched: &KeyHash) {
        let place = Place::ROOT.child(untouched.bit(0));
        let mut node = self.tree.node(place);
        node.hash[31] ^= 1;
        self.tree.set(place, node);
    }

    pub(super) fn freeze(&mut self, block: u64) -> Result<ViewId, Error> {
        if block != self.block {
            return Err(Error::Invalid(format!("block {block} cannot be frozen: the newest is {}", self.block)));
        }
        self.views.freeze(Frozen { block, root: self.root(), depth: self.tree.depth() })
    }

    pub(super) fn release(&mut self, view: ViewId) {
        self.views.release(view);
    }

    pub(super) fn prove(&self, key: &KeyHash, view: Option<ViewId>) -> Result<MapProof, Error> {
        let view = view.map(|id| self.views.position(id)).transpose()?;
        let present = Frozen { block: self.block, root: self.root(), depth: self.tree.depth() };
        let frozen = view.and_then(|at| self.views.frozen(at)).unwrap_or(present);
        let node = |place: Place| match view {
            _ if place.depth > frozen.depth => Node::UNKNOWN,
            Some(at) => self.views.node(at, place).unwrap_or_else(|| self.tree.node(place)),
            None => self.tree.node(place),
        };
        let (mut place, mut siblings) = (Place::ROOT, Vec::new());
        loop {
            let right = key.bit(usize::from(place.depth));
            let (own, other) = (place.child(right), place.child(!right));
            match (node(place).kind, node(own).kind, node(other).kind) {
                (Kind::Empty, ..) | (_, Kind::Unknown, _) | (_, _, Kind::Unknown) => break,
                (Kind::Leaf, Kind::Empty, _) => place = other,
                (Kind::Leaf, ..) => place = own,
                _ => {
                    siblings.push(node(other).hash);
                    place = own;
                }
            }
        }
        let leaf = self.end_of_path(key, (place, view), &mut siblings)?;
        Ok(MapProof { root: frozen.root, block: frozen.block, leaf, siblings })
    }

    /// The rest of a path, below the nodes that are known.
    fn end_of_path(
        &self,
        key: &KeyHash,
        (place, view): (Place, Option<usize>),
        siblings: &mut Vec<[u8; 32]>,
    ) -> Result<Option<ProofLeaf>, Error> {
        let mut run = Run::new();
        self.live_below(place, view, &mut run)?;
        let leaf = descend(&run, key, usize::from(place.depth), siblings);
        Ok(leaf.map(|(key_hash, entry)| ProofLeaf {
            key_hash,
            revision: entry.revision,
            erased: entry.state == State::Erased,
        }))
    }

    /// Writes a slice of the deltas whose block is durable; says whether it found any. Seals what is in memory when
    /// nothing is sealed.
    pub(super) fn write_slice(&mut self, durable_block: u64) -> Result<bool, Error> {
        if self.sealed.is_none() {
            if self.low_water == self.block {
                return Ok(false);
            }
            self.sealed = Some(Sealed { block: self.block, deltas: std::mem::take(&mut self.active) });
        }
        let Some(sealed) = self.sealed.as_mut().filter(|sealed| sealed.block <= durable_block) else {
            return Ok(false);
        };
        for _ in 0..SLICE_BUCKETS {
            self.buckets.write_first(&mut sealed.deltas)?;
        }
        let done = sealed.deltas.is_empty();
        let low_water = if done { sealed.block } else { self.low_water };
        self.buckets.write_flush_mark(low_water, sealed.block)?;
        if done {
            (self.low_water, self.sealed) = (low_water, None);
        }
        Ok(true)
    }

    pub(super) fn mark(&self) -> Mark {
        self.buckets.mark()
    }

    /// See [`Buckets::begin_sync`].
    pub(super) fn begin_sync(&mut self) -> SyncPoint {
        self.buckets.begin_sync()
    }

    /// See [`Buckets::finish_sync`].
    pub(super) fn finish_sync(&mut self, point: SyncPoint) {
        self.buckets.finish_sync(point);
    }
}
