//! Checks a tlog-tiles directory: every entry, every tile and the root of a checkpoint, from the entries upwards.

use std::fs;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use samovar_node::checkpoint::Checkpoint;
use samovar_node::merkle::{self, FullTile, Hash, Tree};
use samovar_node::tiles::{self, Kind, TILE_WIDTH, Tile};

/// Checks the directory against a checkpoint, and that the log of an earlier one is its beginning. A file that does not
/// fit is removed, so that the next export fetches it again.
pub(super) fn directory(directory: &Path, head: &Checkpoint, earlier: Option<&Checkpoint>) -> anyhow::Result<()> {
    let mut tree = Tree::new();
    let mut full: Vec<FullTile> = Vec::new();
    let is_earlier = |tree: &Tree| earlier.is_none_or(|e| e.size != tree.size() || e.root == tree.root());
    ensure!(is_earlier(&tree), "{REWRITTEN}");
    for tile in Tile::all(head.size).filter(|t| t.kind == Kind::Entries) {
        for leaf in bundle_leaves(directory, tile)? {
            tree.push(leaf, &mut full);
            ensure!(is_earlier(&tree), "{REWRITTEN}");
        }
        for FullTile { level, index, hashes } in full.drain(..) {
            let tile = Tile { kind: Kind::Hashes(level), index, width: TILE_WIDTH };
            compare(directory, tile, &hashes)?;
        }
    }
    for tile in Tile::all(head.size).filter(|t| t.width < TILE_WIDTH) {
        if let Kind::Hashes(level) = tile.kind {
            let hashes =
                tree.edge_tile(level, tile.index, tile.width).context("a partial tile beyond the right edge")?;
            compare(directory, tile, hashes)?;
        }
    }
    ensure!(
        tree.root() == head.root,
        "the entries do not hash to the root of the checkpoint: the node serves a log that it did not sign; keep {} \
         and see `samovar status`",
        directory.display()
    );
    Ok(())
}

const REWRITTEN: &str =
    "the log of the earlier export is not the beginning of this one: it was rewritten. Keep the directory as evidence";

/// Leaf hashes of a bundle, which must hash to the level-0 tile beside it.
fn bundle_leaves(directory: &Path, tile: Tile) -> anyhow::Result<Vec<Hash>> {
    let content = read(directory, tile)?;
    let entries = match tiles::split_bundle(&content) {
        Ok(entries) if entries.len() == usize::from(tile.width) => entries,
        Ok(entries) => return damaged(directory, tile, &format!("it holds {} entries", entries.len())),
        Err(e) => return damaged(directory, tile, e),
    };
    let leaves: Vec<Hash> = entries.iter().map(|e| merkle::leaf_hash(e)).collect();
    let hashes = Tile { kind: Kind::Hashes(0), ..tile };
    if read(directory, hashes)? != leaves.concat() {
        fs::remove_file(directory.join(hashes.to_string())).ok();
        return damaged(directory, tile, "its entries are not those of the hash tile");
    }
    Ok(leaves)
}

fn compare(directory: &Path, tile: Tile, expected: &[u8]) -> anyhow::Result<()> {
    if read(directory, tile)? == expected { Ok(()) } else { damaged(directory, tile, "its hashes are not those below") }
}

fn read(directory: &Path, tile: Tile) -> anyhow::Result<Vec<u8>> {
    let path = directory.join(tile.to_string());
    fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
}

fn damaged<T>(directory: &Path, tile: Tile, why: &str) -> anyhow::Result<T> {
    let path = directory.join(tile.to_string());
    fs::remove_file(&path).ok();
    bail!("{}: {why}; it was removed: run the command again to fetch it anew", path.display())
}
