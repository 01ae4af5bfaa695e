use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use clap::Parser;
use samovar_node::merkle::{self, Tree};
use samovar_node::note::{Scheme, Signer, assemble};
use samovar_node::tiles::push_bundled;

use super::*;
use crate::client::fake::{Fake, Reply, start};

/// Every file of a log of `size` entries, as a node serves it.
fn served(size: u64, entry: impl Fn(u64) -> String, signer: &Signer) -> HashMap<String, Vec<u8>> {
    let entries: Vec<String> = (0..size).map(entry).collect();
    let (mut tree, mut full) = (Tree::new(), Vec::new());
    for entry in &entries {
        tree.push(merkle::leaf_hash(entry.as_bytes()), &mut full);
    }
    let mut files = HashMap::new();
    for tile in Tile::all(size) {
        let content = match tile.kind {
            Kind::Entries => {
                let mut bundle = Vec::new();
                let first = usize::try_from(tile.index).expect("small") * 256;
                for entry in &entries[first..first + usize::from(tile.width)] {
                    assert!(push_bundled(&mut bundle, entry.as_bytes()));
                }
                bundle
            }
            Kind::Hashes(level) => match full.iter().find(|f| (f.level, f.index) == (level, tile.index)) {
                Some(full) if tile.width == TILE_WIDTH => full.hashes.clone(),
                _ => tree.edge_tile(level, tile.index, tile.width).expect("on the right edge").to_vec(),
            },
        };
        files.insert(format!("/{tile}"), content);
    }
    let origin = signer.verifier_key().name().to_owned();
    let text = Checkpoint { origin, size, root: tree.root() }.to_text();
    let line = signer.sign(&text, 0);
    files.insert("/checkpoint".into(), assemble(&text, &[line]).into_bytes());
    files.insert("/v1/log".into(), format!("{{\"vkey\":\"{}\"}}", signer.verifier_key()).into_bytes());
    files
}

fn signer() -> Signer {
    Signer::from_seed("test.example/log", Scheme::Ed25519, &[7; 32]).expect("a signer")
}

type Files = Arc<Mutex<HashMap<String, Vec<u8>>>>;

async fn node(files: &Files, tiles_asked: &Arc<AtomicUsize>) -> Fake {
    let (files, asked) = (files.clone(), tiles_asked.clone());
    start(move |request| {
        let path = request.uri().path().to_owned();
        asked.fetch_add(usize::from(path.starts_with("/tile/")), Ordering::SeqCst);
        let found = files.lock().expect("lock").get(&path).cloned();
        async move { found.map_or_else(|| Reply::new(404, "{}"), |content| Reply::new(200, content)) }
    })
    .await
}

#[derive(clap::Parser)]
struct Line {
    #[command(flatten)]
    export: Export,
}

async fn export(fake: &Fake, directory: &Path, more: &[&str]) -> Result<(), String> {
    let fixed = ["export", "-q", "--tiles", directory.to_str().expect("path")];
    let line = Line::try_parse_from(fixed.iter().chain(more)).unwrap_or_else(|e| panic!("{e}"));
    let export = Export { target: fake.target.clone(), ..line.export };
    run(&export, Format::Json).await.map_err(|e| format!("{e:#}"))
}

fn entry(n: u64) -> String {
    format!("{{\"entry\":{n}}}")
}

#[tokio::test]
async fn export_grows_with_the_log_and_fetches_nothing_twice() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let directory = dir.path().join("tiles");
    let files: Files = Arc::new(Mutex::new(served(600, entry, &signer())));
    let asked = Arc::new(AtomicUsize::new(0));
    let fake = node(&files, &asked).await;
    export(&fake, &directory, &[]).await.expect("a good log");
    assert_eq!(asked.swap(0, Ordering::SeqCst), 7, "3 bundles, 3 tiles of leaves, 1 above");
    for (path, content) in files.lock().expect("lock").iter().filter(|(path, _)| *path != "/v1/log") {
        let held = fs::read(directory.join(&path[1..])).unwrap_or_else(|e| panic!("{path}: {e}"));
        assert_eq!(held, *content, "{path} as it is served");
    }
    export(&fake, &directory, &[]).await.expect("the same again");
    assert_eq!(asked.swap(0, Ordering::SeqCst), 0, "nothing is fetched twice");
    *files.lock().expect("lock") = served(66_000, entry, &signer());
    export(&fake, &directory, &[]).await.expect("a longer log");
    assert_eq!(asked.swap(0, Ordering::SeqCst), 2 * (258 - 2) + 3, "full tiles are kept; three tiles above the leaves");
    *files.lock().expect("lock") = served(600, entry, &signer());
    let said = export(&fake, &directory, &[]).await.expect_err("a shorter log");
    assert!(said.contains("66000 entries"), "{said}");
}

#[tokio::test]
async fn damaged_file_is_found_removed_and_fetched_again() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let files: Files = Arc::new(Mutex::new(served(600, entry, &signer())));
    let fake = node(&files, &Arc::default()).await;
    export(&fake, dir.path(), &[]).await.expect("a good log");
    for name in ["tile/entries/001", "tile/0/000", "tile/0/002.p/88", "tile/1/000.p/2", "tile/entries/002.p/88"] {
        let path = dir.path().join(name);
        let mut content = fs::read(&path).expect(name);
        let middle = content.len() / 2;
        content[middle] ^= 1;
        write(&path, &content, false).expect("write");
        let said = export(&fake, dir.path(), &[]).await.expect_err("a flipped bit is found");
        assert!(said.contains("run the command again"), "{name}: says what to do: {said}");
        export(&fake, dir.path(), &[]).await.unwrap_or_else(|e| panic!("{name} is fetched again: {e}"));
    }
}

#[tokio::test]
async fn lying_node_is_found_out() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let good = served(600, entry, &signer());
    let files: Files = Arc::new(Mutex::new(good.clone()));
    let fake = node(&files, &Arc::default()).await;
    // Consistent tiles of other entries under a checkpoint that signs the true ones.
    let mut forged = served(600, |n| entry(n + 1), &signer());
    forged.insert("/checkpoint".into(), good["/checkpoint"].clone());
    *files.lock().expect("lock") = forged;
    let said = export(&fake, &dir.path().join("a"), &[]).await.expect_err("entries that were not signed");
    assert!(said.contains("do not hash to the root"), "{said}");
    assert!(!dir.path().join("a/checkpoint").exists(), "no checkpoint beside tiles that do not fit it");
    // A log rewritten between two exports, and signed again.
    *files.lock().expect("lock") = served(300, |n| if n == 299 { "other".into() } else { entry(n) }, &signer());
    export(&fake, &dir.path().join("b"), &[]).await.expect("a good log");
    *files.lock().expect("lock") = good;
    let said = export(&fake, &dir.path().join("b"), &[]).await.expect_err("the 300th entry was another");
    assert!(said.contains("rewritten"), "{said}");
    // Another log's key.
    let other = Signer::from_seed("test.example/log", Scheme::Ed25519, &[8; 32]).expect("a signer");
    let key = other.verifier_key().to_string();
    let said = export(&fake, &dir.path().join("c"), &["--key", &key]).await.expect_err("signed by another key");
    assert!(said.contains("another log key"), "{said}");
}
