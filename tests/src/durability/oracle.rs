use std::collections::{BTreeMap, HashMap};

use anyhow::{Context as _, Result, ensure};
use borsh::BorshDeserialize as _;
use jmt::proof::SparseMerkleProof;
use jmt::storage::{LeafNode, Node, NodeKey, TreeReader};
use jmt::{JellyfishMerkleTree, KeyHash, OwnedValue, RootHash, SimpleHasher};
use serde_json::Value;

use super::{from_base64, sha256};

const EMPTY: &[u8; 32] = b"SPARSE_MERKLE_PLACEHOLDER_HASH__";

/// SHA-256 for jmt.
struct Sha(ring::digest::Context);

impl SimpleHasher for Sha {
    fn new() -> Self {
        Self(ring::digest::Context::new(&ring::digest::SHA256))
    }
    fn update(&mut self, data: &[u8]) {
        self.0.update(data);
    }
    fn finalize(self) -> [u8; 32] {
        let mut hash = [0; 32];
        hash.copy_from_slice(self.0.finish().as_ref());
        hash
    }
}

/// An empty tree to build on.
struct Nothing;

impl TreeReader for Nothing {
    fn get_node_option(&self, _: &NodeKey) -> Result<Option<Node>> {
        Ok(None)
    }
    fn get_rightmost_leaf(&self) -> Result<Option<(NodeKey, LeafNode)>> {
        Ok(None)
    }
    fn get_value_option(&self, _: u64, _: KeyHash) -> Result<Option<OwnedValue>> {
        Ok(None)
    }
}

/// What a hash in the trie was made of, in the bytes of jmt's proof type.
type Preimages = HashMap<[u8; 32], Vec<u8>>;

/// The crate `jmt` as a second opinion on the state map.
pub struct Oracle {
    root: RootHash,
    state: BTreeMap<[u8; 32], Vec<u8>>,
    preimages: Preimages,
}

impl Oracle {
    /// Builds the map once more, with jmt.
    ///
    /// # Errors
    /// When jmt does not take it.
    pub fn new(state: BTreeMap<[u8; 32], Vec<u8>>) -> Result<Self> {
        let values = state.iter().map(|(key, value)| (KeyHash(*key), Some(value.clone())));
        let (root, _) = JellyfishMerkleTree::<_, Sha>::new(&Nothing).put_value_set(values.collect::<Vec<_>>(), 0)?;
        let leaves: Vec<_> = state.iter().map(|(key, value)| (*key, sha256(&[value]))).collect();
        let mut preimages = Preimages::new();
        walk(&leaves, 0, &mut preimages);
        Ok(Self { root, state, preimages })
    }

    /// jmt's root.
    #[must_use]
    pub fn root(&self) -> [u8; 32] {
        self.root.0
    }

    /// Whether jmt's verifier agrees with a latest-or-absent proof of this state; returns whether the key is present.
    ///
    /// # Errors
    /// With its objection.
    pub fn accepts(&self, key: &str, proof: &str) -> Result<bool> {
        let extra = proof.lines().find_map(|line| line.strip_prefix("extra ")).context("no extra line")?;
        let extra: Value = serde_json::from_slice(&from_base64(extra)?)?;
        let hash = sha256(&[key.as_bytes()]);
        let proof = self.as_jmt(&extra["map"], &hash)?;
        match self.state.get(&hash) {
            Some(value) => {
                proof.verify_existence(self.root, KeyHash(hash), value)?;
                ensure!(proof.verify_nonexistence(self.root, KeyHash(hash)).is_err(), "{key} is proved absent, too");
                Ok(true)
            }
            None => proof.verify_nonexistence(self.root, KeyHash(hash)).map(|()| false),
        }
    }

    fn as_jmt(&self, map: &Value, key: &[u8; 32]) -> Result<SparseMerkleProof<Sha>> {
        let text = |value: &Value| from_base64(value.as_str().unwrap_or_default());
        let leaf = &map["leaf"];
        let mut bytes = if leaf.is_null() {
            vec![0]
        } else if leaf.get("key").is_some() {
            [vec![1], text(&leaf["key"])?, text(&leaf["value"])?].concat()
        } else {
            let value = self.state.get(key).context("the proof shows a key that the entries do not put")?;
            [&[1], key.as_slice(), &sha256(&[value])].concat()
        };
        let siblings = map["siblings"].as_array().context("siblings")?;
        bytes.extend(u32::try_from(siblings.len())?.to_le_bytes());
        for sibling in siblings.iter().rev() {
            let hash = text(sibling)?;
            match <[u8; 32]>::try_from(hash.as_slice()).ok().and_then(|hash| self.preimages.get(&hash)) {
                Some(preimage) => bytes.extend(preimage),
                None => {
                    ensure!(hash == EMPTY, "a sibling is no node of the trie");
                    bytes.push(0);
                }
            }
        }
        Ok(SparseMerkleProof::try_from_slice(&bytes)?)
    }
}

/// The trie over sorted leaves, as docs/reference/formats.md defines it, keeping what each hash was made of.
fn walk(leaves: &[([u8; 32], [u8; 32])], depth: usize, preimages: &mut Preimages) -> [u8; 32] {
    match leaves {
        [] => *EMPTY,
        [(key, value)] => {
            let hash = sha256(&[b"JMT::LeafNode", key, value]);
            preimages.insert(hash, [&[2], key.as_slice(), value].concat());
            hash
        }
        _ => {
            let (left, right) =
                leaves.split_at(leaves.partition_point(|(key, _)| key[depth / 8] << (depth % 8) < 0x80));
            let (left, right) = (walk(left, depth + 1, preimages), walk(right, depth + 1, preimages));
            let hash = sha256(&[b"JMT::IntrnalNode", &left, &right]);
            preimages.insert(hash, [&[1], left.as_slice(), &right].concat());
            hash
        }
    }
}
