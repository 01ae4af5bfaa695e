//! signed_note and tlog_tiles (of Azul): signatures, inclusion from tiles, consistency.

use std::{env, fs};

use anyhow::{Context, Result, anyhow, ensure};
use signed_note::{Note, StandardVerifier, VerifierList};
use tlog_tiles::*;

struct Files(String);

impl TileReader for Files {
    fn height(&self) -> u8 {
        8
    }
    fn read_tiles(&self, tiles: &[Tile]) -> Result<Vec<Vec<u8>>, Error> {
        let read = |tile: &Tile| fs::read(tile.path().replacen("tile/8", &format!("{}/tile", self.0), 1));
        tiles.iter().map(|tile| read(tile).map_err(|e| Error::InvalidInput(e.to_string()))).collect()
    }
    fn save_tiles(&self, _: &[Tile], _: &[Vec<u8>]) {}
}

fn head(file: &str, vkey: &str) -> Result<Checkpoint> {
    let note = Note::from_bytes(&fs::read(file)?)?;
    let (signed, _) = note.verify(&VerifierList::new(vec![Box::new(StandardVerifier::new(vkey)?)]))?;
    let head = Checkpoint::from_bytes(note.text()).map_err(|e| anyhow!("{e}"))?;
    ensure!(signed[0].name() == head.origin(), "the origin {} is not the key's name", head.origin());
    Ok(head)
}

fn main() -> Result<()> {
    let args: Vec<String> = env::args().collect();
    let heads = args[4..].iter().map(|file| head(file, &args[2])).collect::<Result<Vec<_>>>()?;
    let newest = heads.last().context("no checkpoint")?;
    let (files, entries) = (Files(args[1].clone()), fs::read_to_string(format!("{}/entries", args[1]))?);
    let tiles = TileHashReader::new(newest.size(), *newest.hash(), &files);
    for (n, entry) in (0..).zip(entries.lines()) {
        let proof = prove_record(newest.size(), n, &tiles)?;
        check_record(&proof, newest.size(), *newest.hash(), n, record_hash(entry.as_bytes()))?;
    }
    let before = |(b, later)| heads[..b].iter().map(move |earlier| (earlier, later));
    let pairs: Vec<_> = heads.iter().enumerate().flat_map(before).collect();
    for (earlier, later) in &pairs {
        let proof = prove_tree(later.size(), earlier.size(), &tiles)?;
        check_tree(&proof, later.size(), *later.hash(), earlier.size(), *earlier.hash())?;
    }
    println!("signature: {}\ninclusion: {}\nconsistency: {}", heads.len(), entries.lines().count(), pairs.len());
    Ok(())
}
