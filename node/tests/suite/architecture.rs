//! Imports run one way; see "Rules that hold" in ARCHITECTURE.md.

use std::fs;
use std::path::{Path, PathBuf};

/// A word that only some files may hold: (word, crate directory, files and folders that may, why).
const RULES: &[(&str, &str, &[&str], &str)] = &[
    ("sled::", "node/src", &["store.rs"], "rows are reached through store.rs"),
    ("openraft", "node/src", &["raft.rs", "raft/", "rt.rs"], "consensus is reached through raft.rs"),
    ("SystemTime::now", "node/src", &["rt.rs"], "time comes from rt.rs, so that a simulation can set it"),
    ("Utc::now", "node/src", &[], "time comes from rt.rs, so that a simulation can set it"),
    ("OsRng", "node/src", &["rt.rs"], "randomness comes from rt.rs, so that a simulation can seed it"),
    ("tokio::spawn", "node/src", &["rt.rs", "rt/"], "tasks are spawned by rt.rs"),
    ("tokio::time::sleep", "node/src", &["rt.rs", "rt/"], "sleeping is rt.rs's"),
    ("hyper::", "node/src", &[], "the node knows no HTTP"),
    ("rustls", "node/src", &[], "the node knows no TLS"),
    ("toml::", "node/src", &[], "the node knows no configuration file"),
    ("clap::", "node/src", &[], "the node knows no command line"),
    ("crate::raft", "node/src", &["node.rs", "node/", "raft.rs", "raft/"], "only the door knows the consensus"),
    ("crate::wal", "node/src", &["wal/", "raft.rs", "raft/log.rs", "raft/log/"], "only the raft log knows the wal"),
    ("sled::", "appliance/src", &[], "the appliance goes through samovar_node::Node"),
    ("openraft::", "appliance/src", &[], "the appliance goes through samovar_node::Node"),
];

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// The code of a file: without comments, and without what is compiled for tests only.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let product = text.lines().enumerate().take_while(|(_, line)| !line.starts_with("#[cfg(test)]"));
    product.filter(|(_, line)| !line.trim_start().starts_with("//"))
}

#[test]
fn imports_run_one_way() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut broken = Vec::new();
    let mut seen = 0;
    for (word, directory, allowed, why) in RULES {
        let base = root.join(directory);
        let mut files = Vec::new();
        sources(&base, &mut files);
        for file in files {
            let name = file.strip_prefix(&base).unwrap().to_string_lossy().into_owned();
            if allowed.iter().any(|a| name == *a || (a.ends_with('/') && name.starts_with(a))) || name.contains("tests")
            {
                continue;
            }
            seen += 1;
            let text = fs::read_to_string(&file).unwrap();
            for (number, _) in code(&text).filter(|(_, line)| line.contains(word)) {
                broken.push(format!("{directory}/{name}:{}: `{word}`: {why}", number + 1));
            }
        }
    }
    assert!(seen > 200, "the test looked at {seen} files only: did the sources move?");
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}
