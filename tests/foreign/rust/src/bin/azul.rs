//! signed_note and tlog_tiles (of Azul): signatures, tiles, inclusion, consistency.

use std::cell::RefCell;
use std::collections::HashMap;

use anyhow::{Result, anyhow, ensure};
use foreign::{checkpoints, entries, fetch};
use signed_note::{Note, StandardVerifier, VerifierList};
use tlog_tiles::*;

struct Files(String, RefCell<HashMap<String, Vec<u8>>>);

impl TileReader for Files {
    fn height(&self) -> u8 {
        8
    }
    fn read_tiles(&self, tiles: &[Tile]) -> Result<Vec<Vec<u8>>, Error> {
        let mut held = self.1.borrow_mut();
        let mut read = |tile: &Tile| -> Result<Vec<u8>> {
            let path = tile.path().replacen("tile/8/", "tile/", 1);
            if !held.contains_key(&path) {
                held.insert(path.clone(), fetch(&self.0, &path)?);
            }
            Ok(held[&path].clone())
        };
        tiles.iter().map(|t| read(t).map_err(|e| Error::InvalidInput(e.to_string()))).collect()
    }
    fn save_tiles(&self, _: &[Tile], _: &[Vec<u8>]) {}
}

fn head(note: &[u8], vkey: &str) -> Result<Checkpoint> {
    let note = Note::from_bytes(note)?;
    let (signed, _) = note.verify(&VerifierList::new(vec![Box::new(StandardVerifier::new(vkey)?)]))?;
    let head = Checkpoint::from_bytes(note.text()).map_err(|e| anyhow!("{e}"))?;
    ensure!(signed[0].name() == head.origin(), "the origin {} is not the key's name", head.origin());
    Ok(head)
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let notes = checkpoints(&args[1], &args[2])?;
    let heads = notes.iter().map(|n| head(n, &args[3])).collect::<Result<Vec<_>>>()?;
    println!("signature: {} checkpoints", heads.len());
    let newest = &heads[heads.len() - 1];
    let files = Files(args[1].clone(), RefCell::default());
    let tiles = TileHashReader::new(newest.size(), *newest.hash(), &files);
    for (n, entry) in (0..).zip(entries(&args[1], newest.size())?) {
        let proof = prove_record(newest.size(), n, &tiles)?;
        check_record(&proof, newest.size(), *newest.hash(), n, record_hash(&entry))?;
    }
    println!("inclusion: {} entries", newest.size());
    let mut pairs = 0;
    for (b, later) in heads.iter().enumerate() {
        for earlier in &heads[..b] {
            let proof = prove_tree(later.size(), earlier.size(), &tiles)?;
            check_tree(&proof, later.size(), *later.hash(), earlier.size(), *earlier.hash())?;
            pairs += 1;
        }
    }
    println!("consistency: {pairs} pairs");
    Ok(())
}
