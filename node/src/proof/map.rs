//! What a state root says about one key, as a proof file carries it. How it is checked stands in
//! [`crate::state_root::proof`].

use crate::entry::MapValue;
use crate::merkle::Hash;
use crate::state_root::proof::{Claim, KeyHash, Refused, root_of};

/// The way from the root to where a key would lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapProof {
    /// Roots of the subtrees beside the way, from the root down.
    pub siblings: Vec<Hash>,
    /// What stands at its end.
    pub leaf: MapLeaf,
}

/// The end of the way to a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapLeaf {
    /// Nothing: the key is absent.
    Empty,
    /// The only leaf under the bits that the key shares with it: the key is absent.
    Neighbour {
        /// SHA-256 of the other key.
        key_hash: Hash,
        /// SHA-256 of the other map value.
        value_hash: Hash,
    },
    /// What the map holds under the key.
    Own(MapValue),
}

impl MapProof {
    /// The state root under which the proof holds for `key`.
    ///
    /// # Errors
    /// When it can hold under none.
    pub fn root(&self, key: &str) -> Result<Hash, Refused> {
        let claim = match self.leaf {
            MapLeaf::Empty => Claim::AbsentEmpty,
            MapLeaf::Own(value) => Claim::Present { value_hash: value.hash() },
            MapLeaf::Neighbour { key_hash, value_hash } => {
                Claim::AbsentNeighbour { key: KeyHash(key_hash), value_hash }
            }
        };
        root_of(&KeyHash::of(key.as_bytes()), &claim, &self.siblings)
    }
}

/// Where a key lies in the map: SHA-256 of its bytes.
pub(super) fn key_hash(key: &str) -> Hash {
    KeyHash::of(key.as_bytes()).0
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use ring::digest::{Context, SHA256};

    use super::*;
    use crate::merkle::to_hash;
    use crate::state_root::proof::{EMPTY, leaf_hash, node_hash};

    fn bit(hash: &Hash, at: usize) -> bool {
        KeyHash(*hash).bit(at)
    }

    /// The map as its definition reads, without any store: for tests.
    #[derive(Debug, Clone, Default)]
    pub(crate) struct ModelMap(BTreeMap<Hash, Hash>);

    impl ModelMap {
        pub(crate) fn set(&mut self, key: &str, value: &MapValue) {
            self.0.insert(key_hash(key), value.hash());
        }

        pub(crate) fn remove(&mut self, key: &str) {
            self.0.remove(&key_hash(key));
        }

        pub(crate) fn root(&self) -> Hash {
            Self::root_of(&self.leaves(), 0)
        }

        fn leaves(&self) -> Vec<(Hash, Hash)> {
            self.0.iter().map(|(k, v)| (*k, *v)).collect()
        }

        fn root_of(leaves: &[(Hash, Hash)], depth: usize) -> Hash {
            match leaves {
                [] => EMPTY,
                [(key, value)] => leaf_hash(&KeyHash(*key), value),
                _ => {
                    let split = leaves.partition_point(|(key, _)| !bit(key, depth));
                    node_hash(&Self::root_of(&leaves[..split], depth + 1), &Self::root_of(&leaves[split..], depth + 1))
                }
            }
        }

        pub(crate) fn prove(&self, key: &str, value: Option<MapValue>) -> MapProof {
            let own = key_hash(key);
            let all = self.leaves();
            let mut leaves = all.as_slice();
            let mut siblings = Vec::new();
            while leaves.len() > 1 {
                let depth = siblings.len();
                let split = leaves.partition_point(|(key, _)| !bit(key, depth));
                let (left, right) = leaves.split_at(split);
                let (way, beside) = if bit(&own, depth) { (right, left) } else { (left, right) };
                siblings.push(Self::root_of(beside, depth + 1));
                leaves = way;
            }
            let leaf = match (leaves.first(), value) {
                (None, _) => MapLeaf::Empty,
                (Some((found, _)), Some(value)) if *found == own => MapLeaf::Own(value),
                (Some((key_hash, value_hash)), _) => {
                    MapLeaf::Neighbour { key_hash: *key_hash, value_hash: *value_hash }
                }
            };
            MapProof { siblings, leaf }
        }
    }

    fn value(n: u64) -> MapValue {
        MapValue { revision: n, commitment: [n.to_be_bytes()[7]; 32], erased_by: n.is_multiple_of(3).then_some(n + 1) }
    }

    /// A store without nodes, for jmt to begin from.
    struct Nothing;

    impl jmt::storage::TreeReader for Nothing {
        fn get_node_option(&self, _: &jmt::storage::NodeKey) -> anyhow::Result<Option<jmt::storage::Node>> {
            Ok(None)
        }
        fn get_value_option(&self, _: jmt::Version, _: jmt::KeyHash) -> anyhow::Result<Option<jmt::OwnedValue>> {
            Ok(None)
        }
        fn get_rightmost_leaf(&self) -> anyhow::Result<Option<(jmt::storage::NodeKey, jmt::storage::LeafNode)>> {
            Ok(None)
        }
    }

    struct Hasher(Context);

    impl jmt::SimpleHasher for Hasher {
        fn new() -> Self {
            Self(Context::new(&SHA256))
        }
        fn update(&mut self, data: &[u8]) {
            self.0.update(data);
        }
        fn finalize(self) -> [u8; 32] {
            to_hash(&self.0.finish())
        }
    }

    fn jmt_root(pairs: impl Iterator<Item = (String, MapValue)>) -> Hash {
        let tree = jmt::JellyfishMerkleTree::<_, Hasher>::new(&Nothing);
        let pairs = pairs.map(|(k, v)| (jmt::KeyHash(key_hash(&k)), Some(v.to_bytes())));
        tree.put_value_set(pairs, 0).unwrap().0.0
    }

    #[test]
    fn the_root_is_that_of_jmt() {
        let mut map = ModelMap::default();
        assert_eq!(map.root(), EMPTY);
        for size in [1, 2, 3, 10, 100, 500] {
            (0..size).for_each(|n| map.set(&format!("key {n}"), &value(n)));
            let pairs = (0..size).map(|n| (format!("key {n}"), value(n)));
            assert_eq!(map.root(), jmt_root(pairs), "root over {size} keys");
        }
        let mut removed = map.clone();
        removed.remove("key 7");
        assert_eq!(removed.root(), jmt_root((0..500).filter(|n| *n != 7).map(|n| (format!("key {n}"), value(n)))));
    }

    #[test]
    fn presence_and_absence_hold_under_the_root_and_false_ones_do_not() {
        let mut map = ModelMap::default();
        assert_eq!(map.prove("any", None).root("any"), Ok(EMPTY));
        (0..200).for_each(|n| map.set(&format!("key {n}"), &value(n)));
        let root = map.root();
        for n in 0..200 {
            let key = format!("key {n}");
            let proof = map.prove(&key, Some(value(n)));
            assert_eq!(proof.root(&key), Ok(root), "presence of {key}");
            assert_ne!(proof.root("key x"), Ok(root), "presence of {key} taken for another");
            let false_value = MapProof { leaf: MapLeaf::Own(value(n + 1)), ..proof.clone() };
            assert_ne!(false_value.root(&key), Ok(root), "another value of {key}");
            let false_absence = MapProof { leaf: MapLeaf::Empty, ..proof.clone() };
            assert_ne!(false_absence.root(&key), Ok(root), "absence of {key}");
            let own = key_hash(&key);
            let own = MapLeaf::Neighbour { key_hash: own, value_hash: value(n).hash() };
            assert!(MapProof { leaf: own, ..proof.clone() }.root(&key).is_err(), "its own leaf as a neighbour");
            let absent = format!("absent {n}");
            let proof = map.prove(&absent, None);
            assert_eq!(proof.root(&absent), Ok(root), "absence of {absent}");
            let present = map.prove(&key, Some(value(n)));
            assert_ne!(present.root(&absent), Ok(root));
            let MapLeaf::Neighbour { .. } = proof.leaf else { continue };
            let elsewhere = (0..200).map(|m| format!("key {m}")).map(|k| proof.root(&k));
            let elsewhere = elsewhere.filter(|r| *r == Ok(root)).count();
            assert_eq!(elsewhere, 0, "the neighbour's leaf proves a present key absent");
        }
    }

    #[test]
    fn too_long_a_way_is_refused() {
        let proof = MapProof { siblings: vec![[0; 32]; 257], leaf: MapLeaf::Empty };
        assert!(proof.root("k").is_err());
    }
}
