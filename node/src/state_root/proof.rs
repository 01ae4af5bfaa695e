//! What the state root is, and how one key is checked against it: pure functions, no I/O, total on every input.
//!
//! The root is that of the `jmt` crate (0.12, SHA-256), a canonical binary trie over SHA-256(key):
//!
//! - a subtree without keys has the hash `SPARSE_MERKLE_PLACEHOLDER_HASH__` (32 bytes of ASCII);
//! - a subtree with one key is that key's leaf, at whatever depth: `SHA-256("JMT::LeafNode" ‖ key hash ‖ value hash)`;
//! - any other is `SHA-256("JMT::IntrnalNode" ‖ left ‖ right)`, where bit 0 of the key hash is its most significant.
//!
//! The value hash is SHA-256 of the map value: `0x01 ‖ revision (u64 BE) ‖ commitment`, or, once the value is erased,
//! `0x02 ‖ revision ‖ commitment ‖ index of the erase entry (u64 BE)`.

use ring::digest;

/// Most siblings that a path can have: the bits of a key hash.
pub const SIBLINGS_MAX: usize = 256;
/// Hash of a subtree without keys, and the root of an empty map.
pub const EMPTY: [u8; 32] = *b"SPARSE_MERKLE_PLACEHOLDER_HASH__";

const LEAF_TAG: &[u8; 13] = b"JMT::LeafNode";
const NODE_TAG: &[u8; 16] = b"JMT::IntrnalNode";

/// SHA-256 of a key's bytes: where the key stands in the trie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyHash(pub [u8; 32]);

/// Byte order; the first word decides nearly always, and comparing it is cheap.
impl Ord for KeyHash {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.head().cmp(&other.head()).then_with(|| self.0.cmp(&other.0))
    }
}

impl PartialOrd for KeyHash {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl KeyHash {
    /// The hash of a key.
    #[must_use]
    pub fn of(key: &[u8]) -> Self {
        Self(sha256(key))
    }

    /// Bit `depth` of the path, 0 being the most significant of the first byte; `depth` ≤ 255.
    pub(crate) fn bit(&self, depth: usize) -> bool {
        self.0[depth / 8] >> (7 - depth % 8) & 1 == 1
    }

    /// The first 64 bits of the path.
    pub(super) fn head(&self) -> u64 {
        let mut first = [0; 8];
        first.copy_from_slice(&self.0[..8]);
        u64::from_be_bytes(first)
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    hash
}

/// Hash of the leaf of a key.
#[must_use]
pub fn leaf_hash(key: &KeyHash, value_hash: &[u8; 32]) -> [u8; 32] {
    let mut leaf = [0; 77];
    leaf[..13].copy_from_slice(LEAF_TAG);
    leaf[13..45].copy_from_slice(&key.0);
    leaf[45..].copy_from_slice(value_hash);
    sha256(&leaf)
}

/// Hash of a node with two children.
#[must_use]
pub fn node_hash(left: &[u8; 32], right: &[u8; 32]) -> [u8; 32] {
    let mut node = [0; 80];
    node[..16].copy_from_slice(NODE_TAG);
    node[16..48].copy_from_slice(left);
    node[48..].copy_from_slice(right);
    sha256(&node)
}

/// What a proof says of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// The key is in the map.
    Present {
        /// Hash of its map value.
        value_hash: [u8; 32],
    },
    /// The key is not in the map: its path ends in an empty subtree.
    AbsentEmpty,
    /// The key is not in the map: its path ends in the leaf of another key.
    AbsentNeighbour {
        /// That other key.
        key: KeyHash,
        /// Hash of that key's map value.
        value_hash: [u8; 32],
    },
}

/// Why a proof was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No path is that long.
    #[error("the map proof has more than {SIBLINGS_MAX} siblings")]
    TooLong,
    /// The neighbour is the key itself, so the key is present.
    #[error("the leaf that the map proof shows for a neighbour is the key's own: the key is not absent")]
    NeighbourIsKey,
    /// The neighbour does not lie where the key would.
    #[error("the leaf that the map proof shows does not lie on the way to the key")]
    NeighbourElsewhere,
    /// The hashes lead elsewhere.
    #[error("the map proof does not lead to the state root")]
    OtherRoot,
}

/// The root of the map in which `claim` holds for `key`. `siblings` go from the root down.
///
/// # Errors
/// Says why it can hold in none.
pub fn root_of(key: &KeyHash, claim: &Claim, siblings: &[[u8; 32]]) -> Result<[u8; 32], Refused> {
    if siblings.len() > SIBLINGS_MAX {
        return Err(Refused::TooLong);
    }
    let end = match claim {
        Claim::Present { value_hash } => leaf_hash(key, value_hash),
        Claim::AbsentEmpty => EMPTY,
        Claim::AbsentNeighbour { key: other, value_hash } => {
            if other == key {
                return Err(Refused::NeighbourIsKey);
            }
            if (0..siblings.len()).any(|depth| other.bit(depth) != key.bit(depth)) {
                return Err(Refused::NeighbourElsewhere);
            }
            leaf_hash(other, value_hash)
        }
    };
    Ok(siblings.iter().enumerate().rev().fold(end, |below, (depth, sibling)| {
        if key.bit(depth) { node_hash(sibling, &below) } else { node_hash(&below, sibling) }
    }))
}

/// Checks that `claim` holds for `key` in the map with this `root`. `siblings` go from the root down.
///
/// # Errors
/// Says why the proof shows no such thing.
pub fn verify(root: &[u8; 32], key: &KeyHash, claim: &Claim, siblings: &[[u8; 32]]) -> Result<(), Refused> {
    if root_of(key, claim, siblings)? == *root { Ok(()) } else { Err(Refused::OtherRoot) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::MapValue;

    /// A key hash with these first bits, the rest zero.
    fn key(first: u8) -> KeyHash {
        let mut hash = [0; 32];
        hash[0] = first;
        KeyHash(hash)
    }

    #[test]
    fn the_formulas_are_those_of_the_format_page() {
        let value = [[1].as_slice(), &7_u64.to_be_bytes(), &[9; 32]].concat();
        assert_eq!(
            MapValue { revision: 7, commitment: [9; 32], erased_by: None }.hash(),
            sha256(&value),
            "0x01, revision, commitment"
        );
        let value = [[2].as_slice(), &7_u64.to_be_bytes(), &[9; 32], &8_u64.to_be_bytes()].concat();
        assert_eq!(
            MapValue { revision: 7, commitment: [9; 32], erased_by: Some(8) }.hash(),
            sha256(&value),
            "0x02, revision, commitment, erase entry"
        );
        let leaf = [b"JMT::LeafNode".as_slice(), &key(3).0, &[5; 32]].concat();
        assert_eq!(leaf_hash(&key(3), &[5; 32]), sha256(&leaf), "leaf tag, key hash, value hash");
        let node = [b"JMT::IntrnalNode".as_slice(), &[1; 32], &[2; 32]].concat();
        assert_eq!(node_hash(&[1; 32], &[2; 32]), sha256(&node), "node tag, left, right");
    }

    #[test]
    fn an_empty_map_and_a_map_of_one() {
        let (a, b, v) = (key(0b0100_0000), key(0b1000_0000), [7; 32]);
        assert_eq!(verify(&EMPTY, &a, &Claim::AbsentEmpty, &[]), Ok(()));
        let root = leaf_hash(&a, &v);
        assert_eq!(verify(&root, &a, &Claim::Present { value_hash: v }, &[]), Ok(()));
        assert_eq!(verify(&root, &b, &Claim::AbsentNeighbour { key: a, value_hash: v }, &[]), Ok(()));
        assert_eq!(verify(&root, &b, &Claim::AbsentEmpty, &[]), Err(Refused::OtherRoot));
    }

    #[test]
    fn each_reason_to_refuse() {
        let (a, b, v) = (key(0b0100_0000), key(0b1000_0000), [7; 32]);
        let root = node_hash(&leaf_hash(&a, &v), &leaf_hash(&b, &v));
        let (path_a, present) = ([leaf_hash(&b, &v)], Claim::Present { value_hash: v });
        assert_eq!(verify(&root, &a, &present, &path_a), Ok(()));
        assert_eq!(verify(&root, &b, &present, &path_a), Err(Refused::OtherRoot), "the neighbour's path");
        assert_eq!(verify(&root, &a, &present, &[]), Err(Refused::OtherRoot), "a truncated path");
        assert_eq!(verify(&root, &a, &present, &[path_a[0], EMPTY]), Err(Refused::OtherRoot), "a padded path");
        let own = Claim::AbsentNeighbour { key: a, value_hash: v };
        assert_eq!(verify(&root, &a, &own, &path_a), Err(Refused::NeighbourIsKey));
        assert_eq!(verify(&root, &b, &own, &path_a), Err(Refused::NeighbourElsewhere));
        assert_eq!(verify(&root, &a, &present, &[EMPTY; 257]), Err(Refused::TooLong));
        assert_eq!(verify(&root, &a, &present, &[EMPTY; 256]), Err(Refused::OtherRoot), "256 is a legal length");
    }
}
