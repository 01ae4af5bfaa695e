//! ct-merkle: the tree built anew from the entry bundles; inclusion and consistency. It knows no notes.

use anyhow::{Context, Result};
use base64::{Engine, engine::general_purpose::STANDARD};
use ct_merkle::{RootHash, mem_backed_tree::MemoryBackedTree};
use foreign::{checkpoints, entries};
use sha2::Sha256;

fn head(note: &[u8]) -> Result<RootHash<Sha256>> {
    let lines: Vec<&str> = std::str::from_utf8(note)?.lines().collect();
    let root: [u8; 32] = STANDARD.decode(lines[2])?.try_into().ok().context("the root has not 32 bytes")?;
    Ok(RootHash::new(root.into(), lines[1].parse()?))
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let heads = checkpoints(&args[1], &args[2])?.iter().map(|n| head(n)).collect::<Result<Vec<_>>>()?;
    let newest = &heads[heads.len() - 1];
    let mut tree = MemoryBackedTree::<Sha256, Vec<u8>>::new();
    let mut pairs = 0;
    for entry in entries(&args[1], newest.num_leaves())? {
        tree.push(entry);
        for (b, later) in heads.iter().enumerate().filter(|(_, h)| h.num_leaves() == tree.len()) {
            for earlier in &heads[..b] {
                let proof = tree.prove_consistency(usize::try_from(later.num_leaves() - earlier.num_leaves())?);
                later.verify_consistency(earlier, &proof)?;
                pairs += 1;
            }
        }
    }
    for (n, entry) in tree.items().iter().enumerate() {
        newest.verify_inclusion(entry, n as u64, &tree.prove_inclusion(n))?;
    }
    println!("inclusion: {} entries", tree.len());
    println!("consistency: {pairs} pairs");
    Ok(())
}
