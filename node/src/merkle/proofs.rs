//! Proofs of the Merkle tree, made from tiles, and their verification (RFC 9162, sections 2.1.3 and 2.1.4, whose trees
//! are those of RFC 6962).

use super::{HASH_BYTES, Hash, empty_root, node_hash, perfect_root};
use crate::tiles::TILE_WIDTH;

/// Why a proof could not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProofError<E> {
    /// The reader of tiles failed.
    #[error("a tile could not be read")]
    Read(#[source] E),
    /// A stored tile has the wrong length.
    #[error("tile {level}/{index} is damaged: it does not have the length that the size of the log asks for")]
    Tile {
        /// Level of the tile.
        level: u8,
        /// Index in its level.
        index: u64,
    },
    /// No such leaf or tree.
    #[error("{0} is beyond a log of {1} entries")]
    Beyond(u64, u64),
}

/// Hashes from the leaf's sibling up to the root's child that prove leaf `index` in the tree of `size` leaves.
///
/// `read(level, index, width)` gives the first `width` hashes of a tile, all of which exist in a tree of `size` leaves.
///
/// # Errors
/// When `index` is not below `size`, or a tile cannot be had.
pub fn inclusion_proof<E>(
    index: u64,
    size: u64,
    read: impl FnMut(u8, u64, u16) -> Result<Vec<u8>, E>,
) -> Result<Vec<Hash>, ProofError<E>> {
    if index >= size {
        return Err(ProofError::Beyond(index, size));
    }
    let mut tiles = Tiles { size, read, cache: Vec::new() };
    let mut path = Vec::new();
    let (mut start, mut end) = (0, size);
    while end - start > 1 {
        let middle = start + split(end - start);
        if index < middle {
            path.push(tiles.root(middle, end)?);
            end = middle;
        } else {
            path.push(tiles.root(start, middle)?);
            start = middle;
        }
    }
    path.reverse();
    Ok(path)
}

/// Hashes that prove the tree of `old` leaves a prefix of that of `size` leaves; `read` as in [`inclusion_proof`].
///
/// # Errors
/// When `old` is above `size`, or a tile cannot be had.
pub fn consistency_proof<E>(
    old: u64,
    size: u64,
    read: impl FnMut(u8, u64, u16) -> Result<Vec<u8>, E>,
) -> Result<Vec<Hash>, ProofError<E>> {
    if old > size {
        return Err(ProofError::Beyond(old, size));
    }
    let mut tiles = Tiles { size, read, cache: Vec::new() };
    let mut path = Vec::new();
    if old == 0 {
        return Ok(path);
    }
    let (mut start, mut end, mut whole) = (0, size, true);
    while end != old {
        let middle = start + split(end - start);
        if old <= middle {
            path.push(tiles.root(middle, end)?);
            end = middle;
        } else {
            path.push(tiles.root(start, middle)?);
            start = middle;
            whole = false;
        }
    }
    if !whole {
        path.push(tiles.root(start, end)?);
    }
    path.reverse();
    Ok(path)
}

/// The largest power of two below `leaves`, which is at least 2.
fn split(leaves: u64) -> u64 {
    1 << (u64::BITS - 1 - (leaves - 1).leading_zeros())
}

/// Subtree roots of one tree, with the tiles read so far: a proof touches a tile or two per level.
struct Tiles<F> {
    size: u64,
    read: F,
    cache: Vec<(u8, u64, Vec<u8>)>,
}

impl<E, F: FnMut(u8, u64, u16) -> Result<Vec<u8>, E>> Tiles<F> {
    /// Root over the leaves `start..end`: perfect subtrees from left to right, folded from the right.
    fn root(&mut self, start: u64, end: u64) -> Result<Hash, ProofError<E>> {
        let mut perfect = Vec::new();
        let mut at = start;
        while at < end {
            let leaves = 1 << (u64::BITS - 1 - (end - at).leading_zeros());
            perfect.push(self.perfect(at, leaves)?);
            at += leaves;
        }
        let mut nodes = perfect.into_iter().rev();
        let Some(last) = nodes.next() else { return Ok(empty_root()) };
        Ok(nodes.fold(last, |right, left| node_hash(&left, &right)))
    }

    /// Root of the perfect subtree of `leaves` leaves, a power of two, at `start`, a multiple of it.
    #[allow(clippy::cast_possible_truncation, reason = "a level is at most 7, an offset at most 255")]
    fn perfect(&mut self, start: u64, leaves: u64) -> Result<Hash, ProofError<E>> {
        let height = leaves.trailing_zeros();
        let level = height / 8;
        let first = start >> (8 * level);
        let offset = (first % u64::from(TILE_WIDTH)) as usize * HASH_BYTES;
        let length = (1 << (height % 8)) * HASH_BYTES;
        let tile = self.tile(level as u8, first / u64::from(TILE_WIDTH))?;
        Ok(perfect_root(&tile[offset..offset + length]))
    }

    #[allow(clippy::cast_possible_truncation, reason = "a width is at most 256")]
    fn tile(&mut self, level: u8, index: u64) -> Result<&[u8], ProofError<E>> {
        let known = self.cache.iter().position(|(l, i, _)| (*l, *i) == (level, index));
        let at = match known {
            Some(at) => at,
            None => {
                let passed = (self.size >> (8 * u32::from(level))) - index * u64::from(TILE_WIDTH);
                let width = passed.min(u64::from(TILE_WIDTH)) as u16;
                let hashes = (self.read)(level, index, width).map_err(ProofError::Read)?;
                if hashes.len() != usize::from(width) * HASH_BYTES {
                    return Err(ProofError::Tile { level, index });
                }
                self.cache.push((level, index, hashes));
                self.cache.len() - 1
            }
        };
        Ok(&self.cache[at].2)
    }
}

/// Whether `path` proves `leaf`, a leaf hash, at `index` of the tree of `size` leaves with this `root`. The path must
/// have exactly the length that index and size ask for.
#[must_use]
pub fn verify_inclusion(leaf: &Hash, index: u64, size: u64, path: &[Hash], root: &Hash) -> bool {
    if index >= size {
        return false;
    }
    let (mut node, mut last) = (index, size - 1);
    let mut hash = *leaf;
    for sibling in path {
        if last == 0 {
            return false;
        }
        if node & 1 == 1 || node == last {
            hash = node_hash(sibling, &hash);
            // A right-most node without a right sibling moves up unhashed.
            let up = if node & 1 == 1 { 1 } else { node.trailing_zeros() + 1 };
            (node, last) = (shift(node, up), shift(last, up));
        } else {
            hash = node_hash(&hash, sibling);
            (node, last) = (node >> 1, last >> 1);
        }
    }
    last == 0 && hash == *root
}

/// Root of the first `index` leaves, as the inclusion path of leaf `index` in a tree of `size` leaves has it: the hashes to the
/// left of the path are those of the perfect trees that the first leaves make. Means nothing unless [`verify_inclusion`]
/// holds for the path. `None` for the first leaf.
#[must_use]
pub fn root_before(index: u64, size: u64, path: &[Hash]) -> Option<Hash> {
    let (mut node, mut last) = (index, size.checked_sub(1)?);
    let mut before: Option<Hash> = None;
    for sibling in path {
        if node & 1 == 1 || node == last {
            before = Some(before.map_or(*sibling, |right| node_hash(sibling, &right)));
            let up = if node & 1 == 1 { 1 } else { node.trailing_zeros() + 1 };
            (node, last) = (shift(node, up), shift(last, up));
        } else {
            (node, last) = (node >> 1, last >> 1);
        }
    }
    before
}

fn shift(n: u64, by: u32) -> u64 {
    n.checked_shr(by).unwrap_or(0)
}

/// Whether `path` proves that the tree of `old` leaves with `old_root` is a prefix of that of `size` leaves with `root`.
/// The path must have exactly the length that the sizes ask for.
#[must_use]
pub fn verify_consistency(old: u64, old_root: &Hash, size: u64, root: &Hash, path: &[Hash]) -> bool {
    if old > size || (old == 0 && *old_root != empty_root()) || (size == 0 && *root != empty_root()) {
        return false;
    }
    if old == size || old == 0 {
        return path.is_empty() && (old == 0 || old_root == root);
    }
    let up = (old - 1).trailing_ones();
    let (mut node, mut last) = (shift(old - 1, up), shift(size - 1, up));
    let (first, rest) = match (node, path) {
        (0, _) => (old_root, path),
        (_, [first, rest @ ..]) => (first, rest),
        (_, []) => return false,
    };
    let (mut old_hash, mut hash) = (*first, *first);
    for sibling in rest {
        if last == 0 {
            return false;
        }
        if node & 1 == 1 || node == last {
            old_hash = node_hash(sibling, &old_hash);
            hash = node_hash(sibling, &hash);
            let up = if node & 1 == 1 { 1 } else { node.trailing_zeros() + 1 };
            (node, last) = (shift(node, up), shift(last, up));
        } else {
            hash = node_hash(&hash, sibling);
            (node, last) = (node >> 1, last >> 1);
        }
    }
    last == 0 && old_hash == *old_root && hash == *root
}
