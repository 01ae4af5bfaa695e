//! The Merkle tree of RFC 6962, section 2.1, with SHA-256: hashes, the growing right edge, proofs and their verification.
//!
//! Pure. A [`Tree`] holds only the right edge: about 8 KiB per 256-fold of its size. Everything left of it lies in tiles
//! (C2SP tlog-tiles), which proofs read through a closure.

use ring::digest::{Context, SHA256, digest};

use crate::tiles::{TILE_WIDTH, width_at};

mod proofs;

pub use proofs::{ProofError, consistency_proof, inclusion_proof, root_before, verify_consistency, verify_inclusion};

/// A SHA-256 hash.
pub type Hash = [u8; 32];

/// Bytes of a [`Hash`].
pub const HASH_BYTES: usize = 32;

/// Hash of a leaf: SHA-256(0x00 ‖ data).
#[must_use]
pub fn leaf_hash(data: &[u8]) -> Hash {
    let mut context = Context::new(&SHA256);
    context.update(&[0]);
    context.update(data);
    to_hash(&context.finish())
}

/// Hash of an interior node: SHA-256(0x01 ‖ left ‖ right).
#[must_use]
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    let mut bytes = [1; 1 + 2 * HASH_BYTES];
    bytes[1..33].copy_from_slice(left);
    bytes[33..].copy_from_slice(right);
    to_hash(&digest(&SHA256, &bytes))
}

/// Root of the tree without leaves: SHA-256 of nothing.
#[must_use]
pub fn empty_root() -> Hash {
    to_hash(&digest(&SHA256, b""))
}

pub(crate) fn to_hash(digest: &ring::digest::Digest) -> Hash {
    let mut hash = [0; HASH_BYTES];
    hash.copy_from_slice(digest.as_ref());
    hash
}

/// Root of a perfect subtree over 1, 2, 4 … 256 consecutive hashes, given as their concatenation.
pub(crate) fn perfect_root(hashes: &[u8]) -> Hash {
    let (hashes, _) = hashes.as_chunks::<HASH_BYTES>();
    debug_assert!(hashes.len().is_power_of_two());
    let mut row = hashes.to_vec();
    while row.len() > 1 {
        for i in 0..row.len() / 2 {
            row[i] = node_hash(&row[2 * i], &row[2 * i + 1]);
        }
        row.truncate(row.len() / 2);
    }
    row.first().copied().unwrap_or_else(empty_root)
}

/// A tile that has become full and will never change: 256 hashes, 8,192 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FullTile {
    /// Level; 0 holds leaf hashes.
    pub level: u8,
    /// Index in its level.
    pub index: u64,
    /// The hashes, concatenated.
    pub hashes: Vec<u8>,
}

/// The right edge of a growing tree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree {
    size: u64,
    /// `edge[h]`: root of the perfect subtree of 2^h leaves at the right edge; meant only where bit `h` of `size` is set.
    edge: Vec<Hash>,
    /// For each level the right-most tile as far as it goes: 0–255 hashes.
    partial: Vec<Vec<u8>>,
}

impl Tree {
    /// A tree without leaves.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of leaves.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Appends a leaf. Tiles that it completes, at most one per level, are added to `full`, lower levels first.
    pub fn push(&mut self, leaf: Hash, full: &mut Vec<FullTile>) {
        let mut node = leaf;
        for height in 0.. {
            if height % 8 == 0 {
                self.extend_tile(height / 8, &node, full);
            }
            if self.size >> height & 1 == 0 {
                self.set_edge(height, node);
                break;
            }
            node = node_hash(&self.edge[height], &node);
        }
        self.size += 1;
    }

    fn set_edge(&mut self, height: usize, node: Hash) {
        if height == self.edge.len() {
            self.edge.push(node);
        } else {
            self.edge[height] = node;
        }
    }

    #[allow(clippy::cast_possible_truncation, reason = "a level is at most 7")]
    fn extend_tile(&mut self, level: usize, node: &Hash, full: &mut Vec<FullTile>) {
        if level == self.partial.len() {
            self.partial.push(Vec::new());
        }
        let tile = &mut self.partial[level];
        tile.extend_from_slice(node);
        if tile.len() == usize::from(TILE_WIDTH) * HASH_BYTES {
            let hashes = std::mem::take(tile);
            full.push(FullTile { level: level as u8, index: self.size >> (8 * (level + 1)), hashes });
        }
    }

    /// Root of the tree as it stands; costs one hash per set bit of the size.
    #[must_use]
    pub fn root(&self) -> Hash {
        let mut nodes = self.edge.iter().enumerate().filter(|(h, _)| self.size >> h & 1 == 1).map(|(_, node)| node);
        let Some(&last) = nodes.next() else { return empty_root() };
        nodes.fold(last, |right, left| node_hash(left, &right))
    }

    /// The first `width` hashes of a tile at the right edge; `None` when the tile is full, and so stored, or not there.
    #[must_use]
    pub fn edge_tile(&self, level: u8, index: u64, width: u16) -> Option<&[u8]> {
        let tile = self.partial.get(usize::from(level))?;
        let at_edge = u32::from(level) < 7 && index == self.size >> (8 * (u32::from(level) + 1))
            || u32::from(level) == 7 && index == 0;
        tile.get(..usize::from(width) * HASH_BYTES).filter(|_| at_edge && width > 0)
    }

    /// Makes the right edge of a tree of `size` leaves from what is stored: `tail` are the hashes of the last
    /// `size % 256` leaves, `full_tile(level, index)` gives tiles that were reported full. The root should then be
    /// compared with the one known.
    ///
    /// # Errors
    /// What `full_tile` says, or [`ProofError::Tile`] when a tile or the tail has the wrong length.
    pub fn rebuild<E>(
        size: u64,
        tail: &[Hash],
        mut full_tile: impl FnMut(u8, u64) -> Result<Vec<u8>, E>,
    ) -> Result<Self, ProofError<E>> {
        if tail.len() as u64 != size % u64::from(TILE_WIDTH) {
            return Err(ProofError::Tile { level: 0, index: size >> 8 });
        }
        let mut partial = vec![tail.concat()];
        for level in 1_u8.. {
            if level == 8 || size >> (8 * u32::from(level)) == 0 {
                break;
            }
            let passed = size >> (8 * u32::from(level));
            let mut tile = Vec::new();
            for index in passed & !255..passed {
                let below = full_tile(level - 1, index).map_err(ProofError::Read)?;
                if below.len() != usize::from(TILE_WIDTH) * HASH_BYTES {
                    return Err(ProofError::Tile { level: level - 1, index });
                }
                tile.extend_from_slice(&perfect_root(&below));
            }
            partial.push(tile);
        }
        if size == 0 {
            partial.clear();
        }
        Ok(Self { size, edge: edge_of(size, &partial), partial })
    }
}

/// Root of a tree as it was with `size` leaves, from tiles of the tree as it is now: `tile(level, index, width)` gives the
/// first `width` hashes of one, concatenated.
///
/// # Errors
/// What `tile` says, or [`ProofError::Tile`] when one has the wrong length.
pub fn root_at<E>(size: u64, mut tile: impl FnMut(u8, u64, u16) -> Result<Vec<u8>, E>) -> Result<Hash, ProofError<E>> {
    let mut partial = Vec::new();
    for level in 0..8_u8 {
        let within = size >> (8 * u32::from(level));
        if within == 0 {
            break;
        }
        let (index, width) = (within >> 8, width_at(size, usize::from(level)));
        let hashes = if width == 0 { Vec::new() } else { tile(level, index, width).map_err(ProofError::Read)? };
        if hashes.len() != usize::from(width) * HASH_BYTES {
            return Err(ProofError::Tile { level, index });
        }
        partial.push(hashes);
    }
    Ok(Tree { size, edge: edge_of(size, &partial), partial }.root())
}

/// Roots of the perfect subtrees at the right edge, from the partial tiles.
fn edge_of(size: u64, partial: &[Vec<u8>]) -> Vec<Hash> {
    let heights = u64::BITS - size.leading_zeros();
    let mut edge = vec![[0; HASH_BYTES]; heights as usize];
    for (height, node) in edge.iter_mut().enumerate().filter(|(h, _)| size >> h & 1 == 1) {
        let (level, within) = (height / 8, height % 8);
        let width = usize::from(width_at(size, level));
        let start = width & !((2 << within) - 1);
        *node = perfect_root(&partial[level][start * HASH_BYTES..(start + (1 << within)) * HASH_BYTES]);
    }
    edge
}

#[cfg(test)]
mod tests;
