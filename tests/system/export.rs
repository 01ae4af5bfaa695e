//! `samovar export --tiles` of a log that grows meanwhile: each export is whole, and true to its signed checkpoint.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use samovar_node::checkpoint::Checkpoint;
use samovar_node::merkle::{HASH_BYTES, Tree, leaf_hash};
use samovar_node::note::{Note, VerifierKey};
use samovar_node::tiles::{Kind, TILE_WIDTH, Tile};
use samovar_tests::{Daemon, Settings};

/// Connections that write meanwhile.
const WRITERS: usize = 16;
/// Exports, one after the other into one directory.
const EXPORTS: usize = 4;

/// Entries of a bundle, by their lengths.
fn entries(mut bundle: &[u8]) -> Vec<&[u8]> {
    let mut entries = Vec::new();
    while let Some((length, rest)) = bundle.split_first_chunk() {
        let (entry, rest) = rest.split_at(usize::from(u16::from_be_bytes(*length)));
        entries.push(entry);
        bundle = rest;
    }
    entries
}

/// Recomputes every tile from the entries, and the root; gives the size.
fn verify(directory: &Path, key: &VerifierKey) -> u64 {
    let text = fs::read_to_string(directory.join("checkpoint")).unwrap();
    let head = Checkpoint::open(&Note::parse(&text).unwrap(), key).expect("the log signed the exported checkpoint");
    let (mut tree, mut full, mut count) = (Tree::new(), Vec::new(), 0);
    for first in (0..head.size).step_by(TILE_WIDTH.into()) {
        let width = u16::try_from((head.size - first).min(TILE_WIDTH.into())).unwrap();
        let bundle = Tile { kind: Kind::Entries, index: first / u64::from(TILE_WIDTH), width };
        let bundle = fs::read(directory.join(bundle.to_string())).unwrap();
        for entry in entries(&bundle) {
            tree.push(leaf_hash(entry), &mut full);
            count += 1;
        }
    }
    assert_eq!(count, head.size, "entries in the bundles");
    assert_eq!(tree.root(), head.root, "the root of the exported entries is the signed one");
    for tile in Tile::all(head.size) {
        let Kind::Hashes(level) = tile.kind else { continue };
        let stored = full.iter().find(|t| (t.level, t.index) == (level, tile.index)).map(|t| t.hashes.as_slice());
        let expected = stored.or_else(|| tree.edge_tile(level, tile.index, tile.width)).expect("a tile of this tree");
        let found = fs::read(directory.join(tile.to_string())).unwrap();
        assert_eq!(found, expected[..usize::from(tile.width) * HASH_BYTES], "{tile}");
    }
    head.size
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_grows_is_exported_whole() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::create(&directory.path().join("data"), Settings::default()).await.unwrap();
    let key = VerifierKey::parse(fs::read_to_string(daemon.data().join("log.vkey")).unwrap().trim()).unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let (mut client, over) = (daemon.client().await.unwrap(), Arc::clone(&over));
        writers.spawn(async move {
            let mut n = 0;
            while !over.load(Relaxed) {
                let put = client.put(&format!("/v1/keys/w{writer}/{n}"), "v".repeat(n % 300)).await.unwrap();
                assert!(put.status < 300, "a put under an export: {}", put.text());
                n += 1;
            }
        });
    }
    let tiles = directory.path().join("tiles");
    let words = ["export", "--quiet", "--tiles", tiles.to_str().unwrap()];
    let mut sizes = vec![0];
    for n in 0..EXPORTS {
        // Enough that each export has something new, full tiles among it.
        let last = sizes[n];
        let mut client = daemon.client().await.unwrap();
        while client.get("/v1/status").await.unwrap().json().unwrap()["size"].as_u64().unwrap() < last + 1000 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        let mut command = daemon.command(&words).unwrap();
        let done = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        assert!(done.status.success(), "export {n}: {}", String::from_utf8_lossy(&done.stderr));
        sizes.push(verify(&tiles, &key));
    }
    over.store(true, Relaxed);
    writers.join_all().await;
    println!("exported while {WRITERS} connections wrote: {sizes:?} entries");
    assert!(sizes.windows(2).all(|pair| pair[0] < pair[1]), "the log grew between exports: {sizes:?}");
}
