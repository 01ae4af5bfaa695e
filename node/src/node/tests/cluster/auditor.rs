//! Who trusts no node: a client that asks whichever node it likes for receipts, proofs, keys and histories, and holds them
//! against the chain log and the policies at the end. And one that deletes and erases, so that there is something to ask about.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::super::*;
use super::clients::{Answer, KEYS, call};
use super::world::World;
use crate::entry::{Change, Entry};
use crate::merkle::{Hash, Tree, leaf_hash};
use crate::note::VerifierKey;
use crate::policy::Policy;
use crate::proof::{Contents, Followed, Found as Proved, Verifier};
use crate::rt::sim::sleep_true;
use crate::view::Opening;

/// Keys whose values are deleted and erased.
const ERASED_KEYS: u64 = 3;
/// Rows and revisions that are asked for at once.
const PAGE: usize = 3;

/// What was handed out while faults went on.
#[derive(Default)]
pub(super) struct Files {
    proofs: Vec<String>,
    /// Key and revision of each version that a node told of.
    told: Vec<(String, u64)>,
    /// Key and revision of what was erased, acknowledged.
    erased: Vec<(String, u64)>,
}

pub(super) type Shared = Arc<Mutex<Files>>;

/// Asks any node for any proof, until the world is calm.
pub(super) async fn audit(world: World, seed: u64, files: Shared) {
    let mut rng = StdRng::seed_from_u64(seed ^ 0xa0d17);
    while !world.is_calm() {
        sleep_true(Duration::from_millis(rng.gen_range(20..400))).await;
        let at = world.any();
        let Some(size) = world.node(at).map(|(_, node)| node.head().borrow().size) else { continue };
        let key = match rng.gen_range(0..3) {
            0 => format!("e{}", rng.gen_range(0..ERASED_KEYS)),
            1 => "never written".to_owned(),
            _ => format!("k{}", rng.gen_range(0..KEYS)),
        };
        let name = Key::client(&key).unwrap();
        match rng.gen_range(0..4) {
            0 => {
                let (index, wait) = (rng.gen_range(0..size.max(1)), rng.gen_bool(0.5));
                if let Answer::Got(file) = call(&world, at, |node| async move { node.receipt(index, wait).await }).await
                {
                    world.count("receipts");
                    files.lock().unwrap().proofs.push(file);
                }
            }
            1 => {
                if let Answer::Got(file) = call(&world, at, |node| async move { node.proof(&name).await }).await {
                    world.count("proofs");
                    files.lock().unwrap().proofs.push(file);
                }
            }
            2 => {
                let before = rng.gen_bool(0.5).then(|| rng.gen_range(0..=size));
                let page = call(&world, at, |node| async move { node.history(&name, before, PAGE).await }).await;
                if let Answer::Got(page) = page {
                    let told = page.versions.iter().map(|version| (key.clone(), version.revision));
                    files.lock().unwrap().told.extend(told);
                }
            }
            _ => {
                let after = rng.gen_bool(0.5).then_some(name);
                let page = call(&world, at, |node| async move { node.keys("", after.as_ref(), PAGE).await }).await;
                if let Answer::Got(page) = page {
                    let told = page.keys.into_iter().map(|row| (row.key.as_str().to_owned(), row.revision));
                    files.lock().unwrap().told.extend(told);
                }
            }
        }
    }
}

/// Puts, deletes and erases values of keys of its own, until the world is calm.
pub(super) async fn erase(world: World, seed: u64, files: Shared) {
    let mut rng = StdRng::seed_from_u64(seed ^ 0xe2a5e);
    let mut revisions: Vec<(Key, u64)> = Vec::new();
    while !world.is_calm() {
        sleep_true(Duration::from_millis(rng.gen_range(20..500))).await;
        let at = world.any();
        let key = Key::client(&format!("e{}", rng.gen_range(0..ERASED_KEYS))).unwrap();
        let operation = match rng.gen_range(0..4) {
            0 => Operation::Delete { key: key.clone() },
            1 if !revisions.is_empty() => {
                let (key, revision) = revisions.swap_remove(rng.gen_range(0..revisions.len()));
                Operation::Erase { key, revision }
            }
            _ => {
                let value = Bytes::from(vec![7; rng.gen_range(0..5000)]);
                Operation::Put { key: key.clone(), value, media_type: "a/b".into(), blob: false }
            }
        };
        let (author, asked) = ("eraser".to_owned(), operation.clone());
        let write = Write { author, requirements: Vec::new(), operations: vec![operation], idempotency: None };
        let Answer::Got(Outcome::Committed(done)) =
            call(&world, at, |node| async move { node.write(write).await }).await
        else {
            continue;
        };
        match asked {
            Operation::Put { key, .. } => revisions.push((key, done.transaction)),
            Operation::Delete { .. } => world.count("deleted"),
            Operation::Erase { key, revision } => {
                world.count("erased");
                files.lock().unwrap().erased.push((key.as_str().to_owned(), revision));
            }
        }
    }
}

/// What the entries of a chain log say.
struct Told {
    lines: Vec<String>,
    /// Root by size.
    roots: Vec<Hash>,
    /// Of each key the entries that put (`true`) or deleted it.
    changes: BTreeMap<String, Vec<(u64, bool)>>,
    /// The entry that erased a revision of a key.
    erased: BTreeMap<(String, u64), u64>,
}

impl Told {
    fn read(lines: &[Vec<u8>]) -> Result<Self, String> {
        let (mut tree, mut full) = (Tree::new(), Vec::new());
        let (lines_told, roots) = (Vec::with_capacity(lines.len()), vec![tree.root()]);
        let mut told = Self { lines: lines_told, roots, changes: BTreeMap::new(), erased: BTreeMap::new() };
        for (index, line) in (0..).zip(lines) {
            tree.push(leaf_hash(line), &mut full);
            told.roots.push(tree.root());
            told.lines.push(String::from_utf8(line.clone()).map_err(|e| e.to_string())?);
            let entry = Entry::parse(line).map_err(|e| e.to_string())?;
            for change in entry.changes() {
                match change {
                    Change::Put { key, .. } => told.changes.entry(key.to_string()).or_default().push((index, true)),
                    Change::Delete { key, .. } => told.changes.entry(key.to_string()).or_default().push((index, false)),
                    Change::Erase { key, revision, .. } => {
                        told.erased.insert((key.to_string(), *revision), index);
                    }
                }
            }
        }
        Ok(told)
    }

    /// The revision of a key's value in a log of `size` entries, and what erased it there.
    fn latest(&self, key: &str, size: u64) -> Option<(u64, Option<u64>)> {
        let change = self.changes.get(key)?.iter().rev().find(|(index, _)| *index < size);
        let (revision, _) = change.filter(|(_, put)| *put)?;
        let erased = self.erased.get(&(key.to_owned(), *revision)).filter(|index| **index < size);
        Some((*revision, erased.copied()))
    }

    /// What a file proves is what the log says.
    fn check(&self, trusted: &Followed, file: &str) -> Result<(), String> {
        let verified = trusted.verify(file.as_bytes()).map_err(|e| format!("it does not verify: {e}"))?;
        let size = verified.checkpoint.size;
        let root = usize::try_from(size).ok().and_then(|size| self.roots.get(size));
        if root != Some(&verified.checkpoint.root) {
            return Err(format!("its head of {size} entries is not one of the log"));
        }
        match verified.contents {
            Contents::Receipt(receipt) => {
                let line = usize::try_from(receipt.index).ok().and_then(|index| self.lines.get(index));
                if line != Some(&receipt.line) {
                    return Err(format!("entry {} of the log is {line:?}", receipt.index));
                }
            }
            Contents::Latest(latest) => {
                let found = match latest.found {
                    Proved::Value { revision, .. } => Some((revision, None)),
                    Proved::Erased { revision, erased_by } => Some((revision, Some(erased_by))),
                    Proved::Absent => None,
                };
                let told = self.latest(&latest.key, size);
                if found != told {
                    return Err(format!("it says {found:?} of {}, the log of {size} entries {told:?}", latest.key));
                }
            }
        }
        Ok(())
    }
}

/// Whoever knows the keys that the log began with follows all changes of them, as a node tells of them.
pub(super) async fn followed(node: &Node) -> Result<Followed, String> {
    let records = node.records(0, 16).await.map_err(|e| e.to_string())?;
    let entries = records.iter().filter_map(|record| Entry::parse(&record.line).ok());
    let first = entries.into_iter().find_map(|entry| entry.keys().map(|k| (k.log.to_string(), k.policy.to_string())));
    let (log, policy) = first.ok_or("the log does not name its first keys")?;
    let log = VerifierKey::parse(&log).map_err(|e| e.to_string())?;
    let policy = Policy::parse(policy.as_bytes()).map_err(|e| e.to_string())?;
    let mut receipts = Vec::new();
    for index in node.log_key_changes().await.map_err(|e| e.to_string())? {
        receipts.push(node.receipt(index, true).await.map_err(|e| format!("the receipt of entry {index}: {e}"))?);
    }
    let begin = Verifier { log, policy: Some(policy), expect_key: None };
    begin
        .verify_chain(&receipts)
        .map_err(|e| format!("the keys cannot be followed over {} changes: {e}", receipts.len()))
}

/// Every file that was handed out holds, for whoever knows the first keys alone, and says what is in the log. What every node says of
/// keys and histories is in it too, and what was erased is gone on each.
pub(super) async fn check(world: &World, files: &Files, lines: &[Vec<u8>]) -> Result<(), String> {
    let told = Told::read(lines)?;
    let Some((_, any)) = world.node(world.any()) else { return Err("no node is up to be followed".into()) };
    let trusted = followed(&any).await?;
    for file in &files.proofs {
        told.check(&trusted, file).map_err(|e| format!("{e}: {file}"))?;
    }
    for (key, revision) in &files.told {
        if !told.changes.get(key).is_some_and(|changes| changes.iter().any(|(index, _)| index == revision)) {
            return Err(format!("a node told of revision {revision} of {key}, which the log does not have"));
        }
    }
    let clients = told.changes.keys().filter(|key| !key.starts_with('~'));
    let live: Vec<_> = clients.filter_map(|key| Some((key.clone(), told.latest(key, u64::MAX)?.0))).collect();
    for id in world.ids() {
        let Some((_, node)) = world.node(id) else { return Err(format!("node {id} went down")) };
        let page = node.keys("", None, 100).await.map_err(|e| format!("node {id}: {e}"))?;
        let keys: Vec<_> = page.keys.into_iter().map(|row| (row.key.as_str().to_owned(), row.revision)).collect();
        if keys != live {
            return Err(format!("node {id} lists {keys:?}, the log says {live:?}"));
        }
        for (key, revision) in &files.erased {
            let record = node.record(*revision).await.map_err(|e| format!("node {id}: {e}"))?;
            let kept = record.openings.iter().find(|(name, _)| name.as_str() == key);
            if !kept.is_some_and(|(_, opening)| matches!(opening, Opening::Erased { .. })) {
                return Err(format!("node {id}: revision {revision} of {key} was erased, and it has {kept:?}"));
            }
        }
    }
    Ok(())
}
