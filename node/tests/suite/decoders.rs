//! Fuzzing of the public decoders: no panic, bounded memory, and where a format is canonical, what is accepted is
//! written again as the very same bytes.

use std::fs;
use std::path::Path;

use samovar_fuzz::decoder;
use samovar_node::checkpoint::Checkpoint;
use samovar_node::entry::{Entry, find_change};
use samovar_node::note::{Note, VerifierKey};
use samovar_node::policy::Policy;
use samovar_node::proof::Verifier;
use samovar_node::tiles::{Tile, push_bundled, split_bundle};

/// The test vectors whose name ends so.
fn vectors(ending: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors");
    let files = fs::read_dir(&directory).unwrap().map(|f| f.unwrap().path());
    let found: Vec<_> = files.filter(|p| p.to_string_lossy().ends_with(ending)).map(|p| fs::read(p).unwrap()).collect();
    assert!(!found.is_empty(), "{} has no file *{ending}", directory.display());
    found
}

/// What stands behind the first `"NAME":"` of the index of the vectors.
fn first(name: &str) -> String {
    let index = String::from_utf8(vectors("index.json").remove(0)).unwrap();
    let (_, rest) = index.split_once(&format!("\"{name}\":\"")).unwrap();
    rest.split('"').next().unwrap().to_owned()
}

/// The signed notes within the proof files.
fn notes() -> Vec<Vec<u8>> {
    let text = |file: Vec<u8>| String::from_utf8(file).ok();
    let notes: Vec<_> = vectors(".tlog-proof")
        .into_iter()
        .filter_map(text)
        .filter_map(|t| t.split_once("\n\n").map(|(_, note)| note.as_bytes().to_vec()))
        .collect();
    assert!(notes.iter().any(|n| Note::parse(std::str::from_utf8(n).unwrap()).is_ok()), "no note among the vectors");
    notes
}

fn lines() -> Vec<Vec<u8>> {
    let parts = String::from_utf8(vectors("parts.json").remove(0)).unwrap();
    let escaped = parts.lines().filter_map(|l| l.trim().strip_prefix("\"line\": \""));
    let lines: Vec<_> = escaped
        .map(|l| l.trim_end_matches(',').trim_end_matches('"').replace("\\\"", "\"").replace("\\\\", "\\").into_bytes())
        .collect();
    assert!(lines.iter().any(|l| Entry::parse(l).is_ok()), "no entry among the vectors");
    lines
}

#[test]
fn entry() {
    decoder("entry", &lines(), |bytes| {
        let parsed = Entry::parse(bytes);
        if let Ok(entry) = &parsed {
            assert_eq!(entry.to_line(), bytes, "an entry was accepted that is not canonical");
            for change in entry.changes() {
                let found = find_change(bytes, change.key()).expect("the line was accepted as a whole");
                assert_eq!(found.as_ref(), Some(change), "the key is found where it stands");
            }
        }
        let _ = find_change(bytes, "a");
    });
}

#[test]
fn note() {
    decoder("note", &notes(), |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return };
        let Ok(note) = Note::parse(text) else { return };
        assert!(text.starts_with(note.text()), "the text of a note is its beginning");
        if let Ok(checkpoint) = Checkpoint::parse(note.text()) {
            let written = checkpoint.to_text();
            assert!(note.text().starts_with(&written), "a checkpoint was accepted that is not canonical");
        }
    });
}

#[test]
fn verifier_key() {
    decoder("verifier-key", &[first("key").into_bytes()], |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return };
        if let Ok(key) = VerifierKey::parse(text) {
            assert_eq!(key.to_string(), text, "a verifier key was accepted that is not canonical");
        }
    });
}

#[test]
fn policy() {
    decoder("policy", &vectors(".policy"), |bytes| {
        if let Ok(policy) = Policy::parse(bytes) {
            let cosigners = policy.witnesses().count();
            assert!(cosigners <= bytes.len(), "more witnesses than bytes");
            let all = policy.is_met(|_| true);
            assert!(all || !policy.is_met(|_| false), "met by nobody, but not by everybody");
        }
    });
}

#[test]
fn proof_file() {
    let log = VerifierKey::parse(&first("key")).unwrap();
    let policy = Policy::parse(&vectors("majority.policy")[0]).unwrap();
    let verifier = Verifier { log, policy: Some(policy), expect_key: None };
    let seeds = vectors(".tlog-proof");
    let accepted = |file: &[u8]| verifier.verify(file).ok().map(|v| v.contents);
    let good: Vec<_> = seeds.iter().filter_map(|s| accepted(s)).collect();
    assert!(good.len() > 10, "only {} of the vectors verify", good.len());
    decoder("proof-file", &seeds, |bytes| {
        // Whatever still verifies says the same as a file that did before.
        if let Some(contents) = accepted(bytes) {
            assert!(good.contains(&contents), "a changed file verifies and says something new: {contents:?}");
        }
    });
}

#[test]
fn tile_path() {
    let seeds = ["tile/0/000", "tile/5/x001/x234/067", "tile/1/x001/000.p/1", "tile/entries/999.p/255"];
    decoder("tile-path", &seeds.map(|s| s.as_bytes().to_vec()), |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return };
        if let Ok(tile) = Tile::parse(text) {
            assert_eq!(tile.to_string(), text, "a tile has two paths");
            let _ = tile.is_within(u64::MAX);
        }
    });
}

#[test]
fn entry_bundle() {
    let mut bundle = Vec::new();
    lines().iter().for_each(|line| assert!(push_bundled(&mut bundle, line)));
    decoder("entry-bundle", &[bundle, Vec::new()], |bytes| {
        if let Ok(entries) = split_bundle(bytes) {
            let mut written = Vec::new();
            entries.iter().for_each(|entry| assert!(push_bundled(&mut written, entry)));
            assert_eq!(written, bytes, "a bundle was accepted that is not canonical");
        }
    });
}
