use std::convert::Infallible;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

fn rng() -> StdRng {
    let seed = rand::random();
    println!("seed {seed}");
    StdRng::seed_from_u64(seed)
}

fn leaf(n: u64) -> Hash {
    leaf_hash(&n.to_be_bytes())
}

/// MTH of RFC 6962, word for word.
fn mth(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => empty_root(),
        [one] => *one,
        many => {
            let k = many.len().next_power_of_two() / 2;
            node_hash(&mth(&many[..k]), &mth(&many[k..]))
        }
    }
}

/// PATH of RFC 6962.
fn path(m: usize, leaves: &[Hash]) -> Vec<Hash> {
    if leaves.len() <= 1 {
        return vec![];
    }
    let k = leaves.len().next_power_of_two() / 2;
    let (mut found, other) =
        if m < k { (path(m, &leaves[..k]), mth(&leaves[k..])) } else { (path(m - k, &leaves[k..]), mth(&leaves[..k])) };
    found.push(other);
    found
}

/// SUBPROOF of RFC 6962.
fn subproof(m: usize, leaves: &[Hash], whole: bool) -> Vec<Hash> {
    if m == leaves.len() {
        return if whole { vec![] } else { vec![mth(leaves)] };
    }
    let k = leaves.len().next_power_of_two() / 2;
    let (mut found, other) = if m <= k {
        (subproof(m, &leaves[..k], whole), mth(&leaves[k..]))
    } else {
        (subproof(m - k, &leaves[k..], false), mth(&leaves[..k]))
    };
    found.push(other);
    found
}

/// A log with its stored tiles.
#[derive(Default)]
struct Log {
    leaves: Vec<Hash>,
    tree: Tree,
    full: Vec<FullTile>,
}

impl Log {
    fn grow(&mut self, to: u64) {
        while self.tree.size() < to {
            let hash = leaf(self.tree.size());
            self.leaves.push(hash);
            self.tree.push(hash, &mut self.full);
        }
    }

    fn of(size: u64) -> Self {
        let mut log = Self::default();
        log.grow(size);
        log
    }

    fn read(&self, level: u8, index: u64, width: u16) -> Result<Vec<u8>, Infallible> {
        let stored = self.full.iter().find(|t| (t.level, t.index) == (level, index)).map(|t| t.hashes.as_slice());
        let bytes = stored.or_else(|| self.tree.edge_tile(level, index, width)).expect("a tile of this size exists");
        Ok(bytes[..usize::from(width) * HASH_BYTES].to_vec())
    }
}

#[test]
fn known_roots() {
    let hex = |h: Hash| h.iter().map(|b| format!("{b:02x}")).collect::<String>();
    assert_eq!(hex(Tree::new().root()), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    assert_eq!(hex(leaf_hash(b"")), "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d");
    // The eight leaves and roots that certificate-transparency tests have used since RFC 6962.
    let inputs: [&[u8]; 8] = [
        b"",
        &[0x00],
        &[0x10],
        &[0x20, 0x21],
        &[0x30, 0x31],
        &[0x40, 0x41, 0x42, 0x43],
        &[0x50, 0x51, 0x52, 0x53, 0x54, 0x55, 0x56, 0x57],
        &[0x60, 0x61, 0x62, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x6b, 0x6c, 0x6d, 0x6e, 0x6f],
    ];
    let mut tree = Tree::new();
    for input in inputs {
        tree.push(leaf_hash(input), &mut Vec::new());
    }
    assert_eq!(hex(tree.root()), "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328");
}

#[test]
fn every_root_up_to_600_is_that_of_the_definition() {
    let mut log = Log::default();
    for size in 0..=600 {
        log.grow(size);
        assert_eq!(log.tree.root(), mth(&log.leaves), "root at size {size}");
    }
    for size in 0..=600_u64 {
        let then = mth(&log.leaves[..usize::try_from(size).unwrap()]);
        let found = root_at(size, |l, i, w| log.read(l, i, w)).unwrap();
        assert_eq!(found, then, "root of the first {size} of 600 leaves");
    }
    assert_eq!(log.full.iter().map(|t| (t.level, t.index)).collect::<Vec<_>>(), [(0, 0), (0, 1)]);
    assert_eq!(log.full[1].hashes, log.leaves[256..512].concat());
}

#[test]
fn proofs_are_those_of_the_definition_and_verify() {
    let mut log = Log::of(70);
    for size in 1..=70_usize {
        let root = mth(&log.leaves[..size]);
        for index in 0..size {
            let proof = inclusion_proof(index as u64, size as u64, |l, i, w| log.read(l, i, w)).unwrap();
            assert_eq!(proof, path(index, &log.leaves[..size]), "inclusion of {index} in {size}");
            assert!(verify_inclusion(&log.leaves[index], index as u64, size as u64, &proof, &root));
            let before = root_before(index as u64, size as u64, &proof);
            assert_eq!(before, (index > 0).then(|| mth(&log.leaves[..index])), "before {index} of {size}");
            assert!(size == 1 || !verify_inclusion(&leaf(999), index as u64, size as u64, &proof, &root));
        }
        for old in 0..=size {
            let proof = consistency_proof(old as u64, size as u64, |l, i, w| log.read(l, i, w)).unwrap();
            let expected = if old == 0 { vec![] } else { subproof(old, &log.leaves[..size], true) };
            assert_eq!(proof, expected, "consistency of {old} with {size}");
            assert!(verify_consistency(old as u64, &mth(&log.leaves[..old]), size as u64, &root, &proof));
        }
    }
    log.grow(71);
    assert_eq!(inclusion_proof::<Infallible>(71, 71, |_, _, _| unreachable!()), Err(ProofError::Beyond(71, 71)));
    assert_eq!(consistency_proof::<Infallible>(72, 71, |_, _, _| unreachable!()), Err(ProofError::Beyond(72, 71)));
}

#[test]
fn proofs_hold_across_levels_of_tiles() {
    let mut rng = rng();
    let sizes = [255, 256, 257, 511, 65_535, 65_536, 65_537, 66_049, 70_000];
    let mut log = Log::default();
    for size in sizes {
        log.grow(size);
        let root = log.tree.root();
        assert_eq!(root, mth(&log.leaves), "root at size {size}");
        for _ in 0..8 {
            let old = rng.gen_range(1..=size);
            let index = rng.gen_range(0..old);
            let then = mth(&log.leaves[..usize::try_from(old).unwrap()]);
            // A proof in an earlier, smaller tree, made from today's tiles.
            let proof = inclusion_proof(index, old, |l, i, w| log.read(l, i, w)).unwrap();
            assert!(verify_inclusion(&leaf(index), index, old, &proof, &then), "{index} in {old} of {size}");
            let proof = consistency_proof(old, size, |l, i, w| log.read(l, i, w)).unwrap();
            assert!(verify_consistency(old, &then, size, &root, &proof), "{old} with {size}");
            let found = root_at(old, |l, i, w| log.read(l, i, w)).unwrap();
            assert_eq!(found, then, "root of the first {old} leaves from the tiles of {size}");
        }
    }
}

#[test]
fn a_false_proof_is_refused() {
    let mut rng = rng();
    let log = Log::of(300);
    for _ in 0..2_000 {
        let size = rng.gen_range(2..=300_u64);
        let root = mth(&log.leaves[..usize::try_from(size).unwrap()]);
        let index = rng.gen_range(0..size);
        let mut proof = inclusion_proof(index, size, |l, i, w| log.read(l, i, w)).unwrap();
        let (mut claimed, mut claimed_size) = (index, size);
        match rng.gen_range(0..6) {
            0 => drop(proof.pop()),
            1 => proof.push(leaf(1_000)),
            2 => proof.insert(0, leaf(index)),
            3 => proof[0][rng.gen_range(0..32)] ^= 1 << rng.gen_range(0..8),
            4 => claimed = (index + rng.gen_range(1..size)) % size,
            _ => claimed_size = index,
        }
        let accepted = verify_inclusion(&leaf(index), claimed, claimed_size, &proof, &root);
        assert!(!accepted, "a forged inclusion of {index} in {size} was accepted");
    }
}

#[test]
fn a_false_consistency_is_refused() {
    let mut rng = rng();
    let log = Log::of(300);
    for _ in 0..2_000 {
        let size = rng.gen_range(2..=300_u64);
        let old = rng.gen_range(1..size);
        let mut root = mth(&log.leaves[..usize::try_from(size).unwrap()]);
        let mut then = mth(&log.leaves[..usize::try_from(old).unwrap()]);
        let mut proof = consistency_proof(old, size, |l, i, w| log.read(l, i, w)).unwrap();
        let (mut claimed_old, mut claimed_size) = (old, size);
        match rng.gen_range(0..7) {
            0 => drop(proof.pop()),
            1 => proof.push(leaf(1_000)),
            2 => proof.insert(0, then),
            3 => proof[0][rng.gen_range(0..32)] ^= 1,
            4 => root[0] ^= 1,
            5 => then[0] ^= 1,
            _ => (claimed_old, claimed_size) = (size, old),
        }
        let accepted = verify_consistency(claimed_old, &then, claimed_size, &root, &proof);
        assert!(!accepted, "a forged consistency of {old} with {size} was accepted");
    }
    assert!(!verify_consistency(0, &leaf(1), 5, &mth(&log.leaves[..5]), &[]), "an empty tree has one root");
    assert!(!verify_consistency(5, &leaf(1), 5, &leaf(2), &[]), "two roots of one size");
}

#[test]
fn verification_takes_any_numbers() {
    let mut rng = rng();
    for _ in 0..20_000 {
        let any = |rng: &mut StdRng| rng.r#gen::<u64>() >> rng.gen_range(0..64);
        let proof: Vec<Hash> = (0..rng.gen_range(0..70)).map(leaf).collect();
        let (a, b) = (any(&mut rng), any(&mut rng));
        assert!(!verify_inclusion(&leaf(1), a, b, &proof, &leaf(2)));
        assert!(!verify_consistency(a, &leaf(1), b, &leaf(2), &proof));
    }
    for n in [0, 1, u64::MAX - 1, u64::MAX] {
        for m in [0, 1, u64::MAX - 1, u64::MAX] {
            let proof: Vec<Hash> = (0..64).map(leaf).collect();
            assert!(!verify_inclusion(&leaf(1), n, m, &proof, &leaf(2)));
            assert!(!verify_consistency(n, &leaf(1), m, &leaf(2), &proof));
        }
    }
}

#[test]
fn the_right_edge_is_rebuilt_from_full_tiles() {
    let mut log = Log::default();
    for size in [0, 1, 255, 256, 257, 1_000, 65_535, 65_536, 65_537, 66_000] {
        log.grow(size);
        let tail = &log.leaves[log.leaves.len() & !255..];
        let full = |level, index| log.read(level, index, TILE_WIDTH);
        let mut rebuilt = Tree::rebuild(size, tail, full).unwrap();
        assert_eq!(rebuilt.root(), log.tree.root(), "root after rebuilding {size}");
        let mut grown = log.tree.clone();
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for n in size..size + 600 {
            rebuilt.push(leaf(n), &mut a);
            grown.push(leaf(n), &mut b);
        }
        assert_eq!((a, rebuilt.root()), (b, grown.root()), "growth after rebuilding {size}");
        assert_eq!(rebuilt.partial, grown.partial);
    }
    let short = Tree::rebuild(300, &log.leaves[256..299], |_, _| Ok::<_, Infallible>(vec![0; 8192]));
    assert_eq!(short, Err(ProofError::Tile { level: 0, index: 1 }));
    let damaged = Tree::rebuild(300, &log.leaves[256..300], |_, _| Ok::<_, Infallible>(vec![0; 8191]));
    assert_eq!(damaged, Err(ProofError::Tile { level: 0, index: 0 }));
}
