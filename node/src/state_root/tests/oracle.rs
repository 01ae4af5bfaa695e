//! Roots and proofs against the `jmt` crate, and refusal of everything false.

use borsh::BorshDeserialize;
use jmt::proof::SparseMerkleProof;
use jmt::storage::{LeafNode, Node as JmtNode, NodeBatch, NodeKey, TreeReader};
use jmt::{JellyfishMerkleTree, OwnedValue, RootHash, SimpleHasher};

use super::disk::TestDisk;
use super::*;
use crate::state_root::proof::{Claim, Refused, verify};

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
        self.0.finish().as_ref().try_into().unwrap()
    }
}

/// The nodes and values of a jmt tree.
#[derive(Default)]
struct Jmt {
    nodes: HashMap<NodeKey, JmtNode>,
    values: HashMap<jmt::KeyHash, Vec<(u64, Option<OwnedValue>)>>,
}

impl TreeReader for Jmt {
    fn get_node_option(&self, key: &NodeKey) -> anyhow::Result<Option<JmtNode>> {
        Ok(self.nodes.get(key).cloned())
    }
    fn get_rightmost_leaf(&self) -> anyhow::Result<Option<(NodeKey, LeafNode)>> {
        Ok(None)
    }
    fn get_value_option(&self, max: u64, key: jmt::KeyHash) -> anyhow::Result<Option<OwnedValue>> {
        let versions = self.values.get(&key).map(Vec::as_slice).unwrap_or_default();
        Ok(versions.iter().rev().find(|(version, _)| *version <= max).and_then(|(_, value)| value.clone()))
    }
}

impl Jmt {
    /// Applies a block and returns the root.
    fn apply(&mut self, block: u64, changes: &[(KeyHash, Slot)]) -> [u8; 32] {
        let last: BTreeMap<KeyHash, Slot> = changes.iter().copied().collect();
        let values = last.iter().map(|(key, slot)| (jmt::KeyHash(key.0), map_value(slot)));
        let (root, batch) =
            JellyfishMerkleTree::<_, Sha>::new(&*self).put_value_set(values.collect::<Vec<_>>(), block).unwrap();
        self.store(&batch.node_batch);
        root.0
    }

    fn store(&mut self, batch: &NodeBatch) {
        self.nodes.extend(batch.nodes().iter().map(|(key, node)| (key.clone(), node.clone())));
        for ((version, key), value) in batch.values() {
            self.values.entry(*key).or_default().push((*version, value.clone()));
        }
    }
}

/// The bytes of the map value, written out once more.
fn map_value(slot: &Slot) -> Option<Vec<u8>> {
    let revision = slot.revision.to_be_bytes();
    match slot.state {
        SlotState::Live { commitment } => Some([&[1], revision.as_slice(), &commitment].concat()),
        SlotState::Erased { commitment, erased_by } => {
            Some([&[2], revision.as_slice(), &commitment, &erased_by.to_be_bytes()].concat())
        }
        SlotState::Deleted => None,
    }
}

/// Our proof as jmt's: from the leaf up, each sibling with what it stands for.
fn as_jmt(
    proof: &MapProof,
    state: &BTreeMap<KeyHash, Slot>,
    preimages: &HashMap<[u8; 32], Preimage>,
) -> SparseMerkleProof<Sha> {
    let mut bytes = Vec::new();
    match proof.leaf {
        Some(leaf) => {
            bytes.push(1);
            bytes.extend(leaf.key_hash.0);
            bytes.extend(state[&leaf.key_hash].value_hash().expect("a proof shows keys in the trie"));
        }
        None => bytes.push(0),
    }
    bytes.extend(u32::try_from(proof.siblings.len()).unwrap().to_le_bytes());
    for sibling in proof.siblings.iter().rev() {
        match preimages.get(sibling) {
            None => {
                assert_eq!(*sibling, EMPTY, "a sibling is a node of the trie or empty");
                bytes.push(0);
            }
            Some(Preimage::Node(left, right)) => bytes.extend([[1].as_slice(), left, right].concat()),
            Some(Preimage::Leaf(key, value)) => bytes.extend([[2].as_slice(), &key.0, value].concat()),
        }
    }
    SparseMerkleProof::try_from_slice(&bytes).expect("jmt reads the proof")
}

/// The claim that a proof supports, its value hash taken from the model as a node takes it from the entry.
fn claim(key: &KeyHash, proof: &MapProof, state: &BTreeMap<KeyHash, Slot>) -> Claim {
    match proof.leaf {
        None => Claim::AbsentEmpty,
        Some(leaf) => {
            let slot = state[&leaf.key_hash];
            assert_eq!(leaf.revision, slot.revision, "revision of the leaf of {key:?}");
            assert_eq!(leaf.erased, matches!(slot.state, SlotState::Erased { .. }), "erasure of the leaf of {key:?}");
            let value_hash = slot.value_hash().expect("a proof shows keys in the trie");
            if leaf.key_hash == *key {
                Claim::Present { value_hash }
            } else {
                Claim::AbsentNeighbour { key: leaf.key_hash, value_hash }
            }
        }
    }
}

/// Checks the proof of a key with our verifier and with jmt's, and that the opposite of it is refused.
fn assert_proves(key: &KeyHash, proof: &MapProof, state: &BTreeMap<KeyHash, Slot>, what: &str) {
    let mut preimages = HashMap::new();
    let root = reference(state, &mut preimages);
    assert_eq!(proof.root, root, "root of the proof, {what}");
    let slot = state.get(key).filter(|slot| slot.value_hash().is_some());
    let claim = claim(key, proof, state);
    assert_eq!(matches!(claim, Claim::Present { .. }), slot.is_some(), "presence of {key:?}, {what}");
    assert_eq!(verify(&root, key, &claim, &proof.siblings), Ok(()), "our verifier, {key:?}, {what}");
    let theirs = as_jmt(proof, state, &preimages);
    let (root, key) = (RootHash(root), jmt::KeyHash(key.0));
    match slot {
        Some(slot) => {
            let value = map_value(slot).unwrap();
            theirs.verify_existence(root, key, &value).unwrap_or_else(|e| panic!("jmt refuses presence, {what}: {e}"));
            assert!(theirs.verify_nonexistence(root, key).is_err(), "jmt refuses absence of a present key, {what}");
        }
        None => theirs.verify_nonexistence(root, key).unwrap_or_else(|e| panic!("jmt refuses absence, {what}: {e}")),
    }
}

fn open(config: Config) -> StateMap {
    StateMap::open(&TestDisk::default(), Path::new("/state"), config).unwrap()
}

#[test]
fn roots_equal_those_of_jmt() {
    for (seed, keys, most, config) in
        [(1, 40, 12, tiny()), (2, 400, 40, tiny()), (3, 3000, 200, tiny()), (4, 3000, 300, Config::default())]
    {
        let (map, mut jmt, mut ledger) = (open(config), Jmt::default(), Ledger::new(seed, keys));
        for _ in 0..150 {
            let height = ledger.block(most);
            let changes = ledger.changes(height);
            let theirs = jmt.apply(height - 1, changes);
            assert_eq!(map.apply(height, changes).unwrap(), theirs, "seed {seed}, block {height}");
            if ledger.random.gen_bool(0.3) {
                let durable = height - ledger.random.gen_range(0..3).min(height);
                map.flush(durable).unwrap();
            }
            if ledger.random.gen_bool(0.1) {
                map.sync(height).unwrap();
            }
        }
        assert_holds(&map, &ledger.state, &format!("seed {seed}"));
    }
}

#[test]
fn a_map_that_is_emptied_has_the_empty_root() {
    let (map, mut jmt) = (open(tiny()), Jmt::default());
    let keys: Vec<_> = (0..50_u8).map(|n| KeyHash::of(&[n])).collect();
    let slot = |revision, state| Slot { revision, versions: 1, state };
    let puts: Vec<_> = keys.iter().map(|k| (*k, slot(1, SlotState::Live { commitment: [3; 32] }))).collect();
    let deletes: Vec<_> = keys.iter().map(|k| (*k, slot(2, SlotState::Deleted))).collect();
    assert_eq!(map.root().unwrap(), EMPTY, "a new map");
    assert_eq!(map.apply(1, &puts).unwrap(), jmt.apply(1, &puts));
    map.sync(1).unwrap();
    assert_eq!(map.apply(2, &deletes).unwrap(), EMPTY, "everything deleted");
    assert_eq!(jmt.apply(2, &deletes), EMPTY, "jmt says so too");
    map.sync(2).unwrap();
    assert_eq!(map.sizes().unwrap().live_keys, 0);
    assert_eq!(map.get(&keys[7]).unwrap().map(|s| (s.revision, s.state)), Some((2, State::Deleted)), "remembered");
}

#[test]
fn proofs_verify_here_and_in_jmt() {
    for seed in 10..14 {
        let (map, mut ledger) = (open(tiny()), Ledger::new(seed, 30 * (seed - 9)));
        for _ in 0..60 {
            let height = ledger.grow(&map, 10);
            map.flush(height).unwrap();
            for _ in 0..6 {
                let key = ledger.any_key();
                let proof = map.prove(&key, None).unwrap();
                assert_proves(&key, &proof, &ledger.state, &format!("seed {seed}, block {height}"));
            }
        }
    }
}

#[test]
fn false_claims_and_tampered_proofs_are_refused() {
    let seed = 20;
    let (map, mut ledger) = (open(tiny()), Ledger::new(seed, 200));
    for _ in 0..40 {
        ledger.grow(&map, 20);
    }
    let (root, state) = (map.root().unwrap(), ledger.state.clone());
    for _ in 0..300 {
        let (key, other) = (ledger.any_key(), ledger.any_key());
        let proof = map.prove(&key, None).unwrap();
        let right = claim(&key, &proof, &state);
        let refuse = |what: &str, root: &[u8; 32], key: &KeyHash, claim: &Claim, siblings: &[[u8; 32]]| {
            assert!(verify(root, key, claim, siblings).is_err(), "accepted {what} of {key:?}, seed {seed}");
        };
        let opposite = match right {
            Claim::Present { value_hash } => vec![Claim::AbsentEmpty, Claim::AbsentNeighbour { key, value_hash }],
            Claim::AbsentNeighbour { value_hash, .. } => vec![Claim::AbsentEmpty, Claim::Present { value_hash }],
            Claim::AbsentEmpty => vec![Claim::Present { value_hash: EMPTY }],
        };
        opposite.iter().for_each(|claim| refuse("the opposite", &root, &key, claim, &proof.siblings));
        if other != key && matches!(right, Claim::Present { .. }) {
            refuse("another key's proof", &root, &other, &right, &proof.siblings);
        }
        refuse("another root", &[1; 32], &key, &right, &proof.siblings);
        refuse("a padded path", &root, &key, &right, &[proof.siblings.as_slice(), &[EMPTY]].concat());
        if let Some((_, shorter)) = proof.siblings.split_last() {
            refuse("a truncated path", &root, &key, &right, shorter);
        }
        for at in 0..proof.siblings.len() {
            let mut flipped = proof.siblings.clone();
            flipped[at][ledger.random.gen_range(0..32)] ^= 1 << ledger.random.gen_range(0..8);
            refuse("a flipped bit", &root, &key, &right, &flipped);
        }
    }
}

#[test]
fn the_verifier_is_total() {
    let mut random = StdRng::seed_from_u64(21);
    for _ in 0..2000 {
        let siblings: Vec<[u8; 32]> = (0..random.gen_range(0..300)).map(|_| random.r#gen()).collect();
        let (key, value_hash) = (KeyHash(random.r#gen()), random.r#gen());
        let claims = [Claim::Present { value_hash }, Claim::AbsentEmpty, Claim::AbsentNeighbour { key, value_hash }];
        for claim in claims {
            let refused = verify(&random.r#gen(), &key, &claim, &siblings).expect_err("random bytes prove nothing");
            assert_eq!(refused == Refused::TooLong, siblings.len() > 256, "256 siblings and no more");
        }
    }
}

#[test]
fn frozen_views_stay_while_blocks_arrive() {
    for seed in 30..36 {
        let (map, mut ledger) = (open(tiny()), Ledger::new(seed, 150));
        let mut views: Vec<(ViewId, u64)> = Vec::new();
        for _ in 0..150 {
            let height = ledger.grow(&map, 12);
            if ledger.random.gen_bool(0.3) {
                map.sync(height).unwrap();
            }
            if views.len() < VIEWS_MAX && ledger.random.gen_bool(0.3) {
                views.push((map.freeze(height).unwrap(), height));
            }
            for &(view, block) in &views {
                let state = ledger.state_at(block);
                for _ in 0..3 {
                    let (key, what) = (ledger.any_key(), format!("seed {seed}, view of {block} at {height}"));
                    let proof = map.prove(&key, Some(view)).unwrap();
                    assert_eq!(proof.block, block, "block of the proof, {what}");
                    assert_proves(&key, &proof, &state, &what);
                    assert_eq!(map.get_at(&key, view).unwrap(), state.get(&key).map(stored_as), "{what}");
                }
            }
            if ledger.random.gen_bool(0.25) && !views.is_empty() {
                views.shuffle(&mut ledger.random);
                let (gone, _) = views.pop().unwrap();
                map.release(gone).unwrap();
                assert!(matches!(map.prove(&ledger.any_key(), Some(gone)), Err(Error::NotFound(_))), "released");
            }
        }
        for (view, _) in views {
            map.release(view).unwrap();
        }
        assert_eq!(map.sizes().unwrap().replaced, 0, "nothing is kept for views that are gone");
    }
}

#[test]
fn views_are_bounded() {
    let map = open(Config { replaced_max: 200, ..tiny() });
    let mut ledger = Ledger::new(40, 500);
    let first = ledger.block(20);
    map.apply(first, &ledger.blocks[0]).unwrap();
    let views: Vec<_> = (0..VIEWS_MAX).map(|_| map.freeze(first).unwrap()).collect();
    assert!(matches!(map.freeze(first), Err(Error::Invalid(_))), "one view too many");
    assert!(matches!(map.freeze(first + 1), Err(Error::Invalid(_))), "a block that is not there yet");
    for _ in 0..40 {
        let height = ledger.grow(&map, 20);
        assert!(map.sizes().unwrap().replaced <= 200, "replaced entries at block {height}");
    }
    assert!(matches!(map.prove(&ledger.any_key(), Some(views[0])), Err(Error::NotFound(_))), "dropped, and it says so");
    assert_holds(&map, &ledger.state, "after views were dropped");
}
