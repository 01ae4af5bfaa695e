//! The top of the trie, in memory: one array of nodes per depth, down to *cells* of a few keys each.
//!
//! What lies below a cell is computed from its keys when it is needed. A deeper level starts out unknown and is filled
//! where blocks touch it, so that growing never stops the world.

use super::page::{Entry, Run};
use super::proof::{EMPTY, KeyHash, node_hash};

/// What a node is; the distinction that hashes alone do not show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Kind {
    /// Not computed since its level was added.
    #[default]
    Unknown,
    /// No key below.
    Empty,
    /// One key below: the node *is* that key's leaf.
    Leaf,
    /// At least two keys below.
    Internal,
}

/// A node of the trie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) kind: Kind,
    pub(super) hash: [u8; 32],
}

impl Node {
    pub(super) const EMPTY: Self = Self { kind: Kind::Empty, hash: EMPTY };
    pub(super) const UNKNOWN: Self = Self { kind: Kind::Unknown, hash: EMPTY };

    /// The parent of two known nodes.
    pub(super) fn join(left: &Self, right: &Self) -> Self {
        match (left.kind, right.kind) {
            (Kind::Empty, Kind::Empty) => Self::EMPTY,
            (Kind::Empty, Kind::Leaf) => *right,
            (Kind::Leaf, Kind::Empty) => *left,
            _ => Self { kind: Kind::Internal, hash: node_hash(&left.hash, &right.hash) },
        }
    }

    /// The subtree over live keys that share their first `depth` bits, sorted.
    pub(super) fn over(run: &[(KeyHash, Entry)], depth: usize) -> Self {
        match run {
            [] => Self::EMPTY,
            [(_, entry)] => Self { kind: Kind::Leaf, hash: entry.leaf },
            _ => {
                let (left, right) = run.split_at(run.partition_point(|(key, _)| !key.bit(depth)));
                Self::join(&Self::over(left, depth + 1), &Self::over(right, depth + 1))
            }
        }
    }
}

/// Follows `key` below `depth` among the live keys of one subtree: pushes the sibling at each branch and returns the
/// leaf at the end of the path, if there is one.
pub(super) fn descend(run: &Run, key: &KeyHash, from: usize, siblings: &mut Vec<[u8; 32]>) -> Option<(KeyHash, Entry)> {
    let (mut rest, mut depth) = (run.as_slice(), from);
    while rest.len() > 1 {
        let (left, right) = rest.split_at(rest.partition_point(|(k, _)| !k.bit(depth)));
        let (own, other) = if key.bit(depth) { (right, left) } else { (left, right) };
        siblings.push(Node::over(other, depth + 1).hash);
        (rest, depth) = (own, depth + 1);
    }
    rest.first().copied()
}

/// Where a node stands: its depth below the root, and its number among the nodes of that depth, from the left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub(super) depth: u8,
    pub(super) index: u32,
}

impl Place {
    pub(super) const ROOT: Self = Self { depth: 0, index: 0 };

    /// The node of that depth on the path of a key.
    pub(super) fn on_path(key: &KeyHash, depth: u8) -> Self {
        Self { depth, index: index(key.head(), depth) }
    }

    pub(super) fn child(self, right: bool) -> Self {
        Self { depth: self.depth + 1, index: self.index << 1 | u32::from(right) }
    }

    /// First and last value that the first 64 bits of a key below this node can have.
    pub(super) fn heads(self) -> (u64, u64) {
        let low = if self.depth == 0 { 0 } else { u64::from(self.index) << (64 - u32::from(self.depth)) };
        (low, low | u64::MAX.checked_shr(u32::from(self.depth)).unwrap_or(0))
    }
}

/// The first `depth` (≤ 32) of 64 bits, as a number.
#[allow(clippy::cast_possible_truncation, reason = "at most 32 bits are left")]
pub(super) fn index(head: u64, depth: u8) -> u32 {
    head.checked_shr(64 - u32::from(depth)).unwrap_or(0) as u32
}

/// The smallest and largest key hash whose first 64 bits lie in `heads`.
pub(super) fn bounds(heads: (u64, u64)) -> (KeyHash, KeyHash) {
    let (mut low, mut high) = ([0; 32], [0xff; 32]);
    low[..8].copy_from_slice(&heads.0.to_be_bytes());
    high[..8].copy_from_slice(&heads.1.to_be_bytes());
    (KeyHash(low), KeyHash(high))
}

#[derive(Default)]
struct Level {
    kinds: Vec<Kind>,
    hashes: Vec<[u8; 32]>,
}

impl Level {
    fn new(depth: u8, kind: Kind) -> Self {
        Self { kinds: vec![kind; 1 << depth], hashes: vec![[0; 32]; 1 << depth] }
    }
}

/// The nodes of depth 0 (the root) to [`Tree::depth`] (the cells).
pub(super) struct Tree {
    levels: Vec<Level>,
    depth: u8,
}

impl Tree {
    /// A tree of an empty map.
    pub(super) fn empty(depth: u8) -> Self {
        Self { levels: (0..=depth).map(|depth| Level::new(depth, Kind::Empty)).collect(), depth }
    }

    /// Depth of the cells.
    pub(super) fn depth(&self) -> u8 {
        self.depth
    }

    pub(super) fn node(&self, place: Place) -> Node {
        let level = &self.levels[usize::from(place.depth)];
        match level.kinds[place.index as usize] {
            Kind::Empty => Node::EMPTY,
            Kind::Unknown => Node::UNKNOWN,
            kind => Node { kind, hash: level.hashes[place.index as usize] },
        }
    }

    pub(super) fn set(&mut self, place: Place, node: Node) {
        let level = &mut self.levels[usize::from(place.depth)];
        level.kinds[place.index as usize] = node.kind;
        if matches!(node.kind, Kind::Leaf | Kind::Internal) {
            level.hashes[place.index as usize] = node.hash;
        }
    }

    /// Touches the nodes between the root and some cells, so that the processor fetches them from memory side by side;
    /// the hashing that follows would wait for one after the other.
    pub(super) fn fetch(&self, cells: &[u32]) {
        let mut sum = 0;
        for (above, level) in
            self.levels.iter().rev().enumerate().take_while(|(_, level)| level.kinds.len() > cells.len())
        {
            for &cell in cells {
                let index = (cell >> above) as usize;
                sum ^= level.hashes[index ^ 1][0] ^ level.kinds[index] as u8;
            }
        }
        std::hint::black_box(sum);
    }

    /// Adds a level below the cells, unknown for now.
    pub(super) fn grow(&mut self) {
        self.depth += 1;
        self.levels.push(Level::new(self.depth, Kind::Unknown));
    }

    /// Computes everything above the cells, which must be known.
    pub(super) fn raise_all(&mut self) {
        for depth in (0..self.depth).rev() {
            for index in 0..1_u32 << depth {
                let place = Place { depth, index };
                let parent = Node::join(&self.node(place.child(false)), &self.node(place.child(true)));
                self.set(place, parent);
            }
        }
    }

    /// Bytes of memory held.
    pub(super) fn bytes(&self) -> usize {
        self.levels.iter().map(|level| level.kinds.len() * 33).sum()
    }
}
