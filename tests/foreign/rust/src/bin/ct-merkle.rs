//! ct-merkle: the tree built anew from the entries; inclusion and consistency. It knows no notes.

use std::{env, fs};

use anyhow::{Context, Result};
use base64::{Engine, engine::general_purpose::STANDARD};
use ct_merkle::{RootHash, mem_backed_tree::MemoryBackedTree};
use sha2::Sha256;

fn head(file: &str) -> Result<RootHash<Sha256>> {
    let note = fs::read_to_string(file)?;
    let lines: Vec<&str> = note.lines().collect();
    let root: [u8; 32] = STANDARD.decode(lines[2])?.try_into().ok().context("the root has not 32 bytes")?;
    Ok(RootHash::new(root.into(), lines[1].parse()?))
}

fn main() -> Result<()> {
    let args: Vec<String> = env::args().collect();
    let heads = args[4..].iter().map(|file| head(file)).collect::<Result<Vec<_>>>()?;
    let newest = heads.last().context("no checkpoint")?;
    let mut tree = MemoryBackedTree::<Sha256, Vec<u8>>::new();
    let mut pairs = 0;
    for entry in fs::read_to_string(format!("{}/entries", args[1]))?.lines() {
        tree.push(entry.into());
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
    println!("inclusion: {} entries\nconsistency: {pairs} pairs", tree.len());
    Ok(())
}
