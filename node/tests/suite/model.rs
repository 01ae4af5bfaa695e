//! Random operations against a plain map in memory: reads now and at past blocks, history, listings, proofs.
//!
//! `SAMOVAR_SEED=N cargo test -p samovar-node --test main model` repeats one run.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use samovar_node::view::{Change, Consistency, Found};
use samovar_node::{Node, Operation, Outcome, proof};

use super::support::{committed, config, disk, key, new_node, put, value, verifier, write};

/// One revision of a key as the model knows it.
#[derive(Debug, Clone)]
struct Revision {
    index: u64,
    block: u64,
    /// `None`: deleted.
    value: Option<String>,
    erased_by: Option<u64>,
}

#[derive(Default)]
struct Model {
    keys: BTreeMap<String, Vec<Revision>>,
}

impl Model {
    fn latest(&self, name: &str) -> Option<&Revision> {
        self.keys.get(name)?.last().filter(|r| r.value.is_some())
    }

    fn at(&self, name: &str, block: u64) -> Option<&Revision> {
        self.keys.get(name)?.iter().rfind(|r| r.block <= block).filter(|r| r.value.is_some())
    }
}

/// What [`value`] says of a revision.
fn shown(revision: Option<&Revision>) -> Option<String> {
    let revision = revision?;
    match revision.erased_by {
        Some(by) => Some(format!("erased by {by}")),
        None => revision.value.clone(),
    }
}

/// A random transaction over `names`; what the model must take over if it is committed.
fn random_operations(rng: &mut StdRng, model: &Model, names: u32, serial: u64) -> Vec<Operation> {
    let mut used = BTreeSet::new();
    let count = if rng.gen_bool(0.2) { rng.gen_range(2..20) } else { 1 };
    let mut operations = Vec::new();
    for n in 0..count {
        let name = format!("k/{:05}", rng.gen_range(0..names));
        if !used.insert(name.clone()) {
            continue;
        }
        let revisions = model.keys.get(&name).map_or(&[][..], Vec::as_slice);
        let held: Vec<u64> =
            revisions.iter().filter(|r| r.value.is_some() && r.erased_by.is_none()).map(|r| r.index).collect();
        operations.push(match rng.gen_range(0..100) {
            0..10 if model.latest(&name).is_some() => Operation::Delete { key: key(&name) },
            10..13 if !held.is_empty() => {
                Operation::Erase { key: key(&name), revision: held[rng.gen_range(0..held.len())] }
            }
            _ => put(&name, &format!("value {serial} {n} {}", "x".repeat(rng.gen_range(0..40)))),
        });
    }
    operations
}

fn take_over(model: &mut Model, operations: &[Operation], index: u64, block: u64) {
    for operation in operations {
        let revisions = model.keys.entry(operation.key().as_str().to_owned()).or_default();
        match operation {
            Operation::Put { value, .. } => {
                let value = Some(String::from_utf8(value.to_vec()).unwrap());
                revisions.push(Revision { index, block, value, erased_by: None });
            }
            Operation::Delete { .. } => revisions.push(Revision { index, block, value: None, erased_by: None }),
            Operation::Erase { revision, .. } => {
                revisions.iter_mut().find(|r| r.index == *revision).unwrap().erased_by = Some(index);
            }
        }
    }
}

/// Writes in waves of distinct keys, so that many share a block and the order within it does not matter.
async fn run(node: &Node, rng: &mut StdRng, model: &mut Model, names: u32, total: usize) {
    let mut done = 0;
    while done < total {
        let mut used = BTreeSet::new();
        let mut wave = Vec::new();
        for _ in 0..rng.gen_range(1..200) {
            let serial = rng.gen_range(0..u64::MAX);
            let operations = random_operations(rng, model, names, serial);
            if operations.iter().all(|o| used.insert(o.key().as_str().to_owned())) {
                wave.push(operations);
            }
        }
        let writes = wave.iter().map(|operations| {
            let (node, write) = (node.clone(), write(operations.clone()));
            tokio::spawn(async move { node.write(write).await })
        });
        for (task, operations) in writes.collect::<Vec<_>>().into_iter().zip(&wave) {
            match task.await.unwrap().unwrap() {
                Outcome::Committed(c) => take_over(model, operations, c.transaction, c.block),
                Outcome::Refused(refusal) => panic!("{operations:?} was refused: {refusal:?}"),
            }
            done += operations.len();
        }
    }
}

async fn check_reads(node: &Node, rng: &mut StdRng, model: &Model, names: u32, count: usize) {
    let head = node.head().borrow().height;
    for _ in 0..count {
        let name = format!("k/{:05}", rng.gen_range(0..names + names / 10));
        assert_eq!(value(node, &name, None).await, shown(model.latest(&name)), "{name} now");
        let block = rng.gen_range(0..=head);
        assert_eq!(value(node, &name, Some(block)).await, shown(model.at(&name, block)), "{name} at block {block}");
    }
}

async fn check_history(node: &Node, model: &Model, name: &str, page: usize) {
    let mut found = Vec::new();
    let mut before = None;
    loop {
        let history = node.history(&key(name), before, page).await.unwrap();
        found.extend(history.versions);
        before = history.next;
        if before.is_none() {
            break;
        }
    }
    let expected = &model.keys[name];
    assert_eq!(found.len(), expected.len(), "revisions of {name}");
    for (version, revision) in found.iter().zip(expected.iter().rev()) {
        assert_eq!((version.revision, version.block), (revision.index, revision.block), "{name}");
        match &version.change {
            Change::Delete => assert_eq!(revision.value, None, "{name} at {}", revision.index),
            Change::Put { size, erased_by, .. } => {
                assert_eq!(
                    Some(*size),
                    revision.value.as_ref().map(|v| v.len() as u64),
                    "{name} at {}",
                    revision.index
                );
                assert_eq!(*erased_by, revision.erased_by, "{name} at {}", revision.index);
            }
        }
    }
}

async fn check_proof(node: &Node, model: &Model, name: &str) {
    let file = node.proof(&key(name)).await.unwrap();
    let verified = verifier(node, Some(name)).verify(file.as_bytes());
    let verified = verified.unwrap_or_else(|e| panic!("the proof of {name} is refused: {e}"));
    let proof::Contents::Latest(latest) = verified.contents else { panic!("a latest-or-absent proof was expected") };
    let expected = match model.latest(name) {
        None => proof::Found::Absent,
        Some(Revision { index, erased_by: Some(by), .. }) => proof::Found::Erased { revision: *index, erased_by: *by },
        Some(Revision { index, value, .. }) => {
            proof::Found::Value { revision: *index, value: value.clone().map(String::into_bytes) }
        }
    };
    assert_eq!(latest.found, expected, "{name}");
}

async fn check_listing(node: &Node, model: &Model) {
    let mut found = Vec::new();
    let mut after = None;
    loop {
        let page = node.keys("k/", after.as_ref(), 700).await.unwrap();
        found.extend(page.keys.iter().map(|row| (row.key.as_str().to_owned(), row.revision)));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    let live = model.keys.keys().filter_map(|name| Some((name.clone(), model.latest(name)?.index)));
    assert_eq!(found, live.collect::<Vec<_>>(), "the listing");
}

fn seed() -> u64 {
    std::env::var("SAMOVAR_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or_else(|| rand::thread_rng().gen_range(0..1 << 32))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_random_operations_equal_a_plain_map() {
    const NAMES: u32 = 5_000;
    let seed = seed();
    println!("repeat with SAMOVAR_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let directory = tempfile::tempdir().unwrap();
    let mut node = new_node(directory.path()).await;
    let mut model = Model::default();
    for _ in 0..4 {
        run(&node, &mut rng, &mut model, NAMES, 25_000).await;
        check_reads(&node, &mut rng, &model, NAMES, 250).await;
        node.stop().await;
        drop(node);
        node = Node::start(disk(), config(directory.path())).await.unwrap();
    }
    check_reads(&node, &mut rng, &model, NAMES, 1_000).await;
    check_listing(&node, &model).await;
    let present: Vec<String> = model.keys.keys().filter(|name| model.latest(name).is_some()).cloned().collect();
    for _ in 0..1_000 {
        check_proof(&node, &model, &present[rng.gen_range(0..present.len())]).await;
        check_proof(&node, &model, &format!("absent/{}", rng.gen_range(0..u64::MAX))).await;
    }
    for name in present.iter().step_by(50) {
        check_history(&node, &model, name, rng.gen_range(1..40)).await;
    }
    node.stop().await;
}

#[tokio::test]
async fn a_key_with_many_revisions_is_read_at_every_block() {
    const FEW: usize = 1_500;
    let directory = tempfile::tempdir().unwrap();
    let node = new_node(directory.path()).await;
    let mut model = Model::default();
    for n in 0..FEW {
        let operations =
            if n % 100 == 99 { vec![Operation::Delete { key: key("hot") }] } else { vec![put("hot", &n.to_string())] };
        let c = committed(&node, write(operations.clone())).await;
        take_over(&mut model, &operations, c.transaction, c.block);
    }
    let head = node.head().borrow().height;
    for block in 0..=head {
        let found = node.get(&key("hot"), Consistency::Stale, Some(block)).await.unwrap();
        let found = match found.found {
            Found::Value(v) => Some(String::from_utf8(v.content.to_vec()).unwrap()),
            _ => None,
        };
        assert_eq!(found, shown(model.at("hot", block)), "at block {block} of {head}");
    }
    check_history(&node, &model, "hot", 37).await;
    node.stop().await;
}

/// Revisions of the one key: as many as a counter gets that is written every second for a day.
const REVISIONS: u64 = 100_000;
/// Writes at once: they share blocks, so that the ledger is made in seconds.
const WRITERS: u64 = 128;
/// Rows of a page, as the API has it by default.
const HISTORY_ROWS: usize = 100;
/// Reads timed, of each kind.
const TIMED: usize = 400;
/// What a read of the far past may take, as a multiple of a read of a key with one revision.
const SLOWER_MAX: u32 = 20;
/// Below this, a ratio says more of the scheduler than of us.
const FLOOR: Duration = Duration::from_micros(50);

/// Writes the key `hot` in turns that each fill a block, as clients that do not wait for each other.
async fn heat(node: &Node, model: &mut Model) {
    for round in 0..REVISIONS / WRITERS + 1 {
        let count = WRITERS.min(REVISIONS - round * WRITERS);
        let tasks: Vec<_> = (0..count)
            .map(|n| {
                let n = round * WRITERS + n;
                // Each thousandth is a deletion of whatever stands there.
                let operation =
                    if n % 1000 == 999 { Operation::Delete { key: key("hot") } } else { put("hot", &n.to_string()) };
                let (node, operations) = (node.clone(), vec![operation]);
                tokio::spawn(async move { (node.write(write(operations.clone())).await.unwrap(), operations) })
            })
            .collect();
        let mut done = Vec::new();
        for task in tasks {
            match task.await.unwrap() {
                (Outcome::Committed(c), operations) => done.push((c.transaction, c.block, operations)),
                (Outcome::Refused(refusal), _) => panic!("a write of the hot key was refused: {refusal:?}"),
            }
        }
        done.sort_by_key(|(index, ..)| *index);
        for (index, block, operations) in done {
            take_over(model, &operations, index, block);
        }
    }
}

/// Median and slowest.
fn spread(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort_unstable();
    (times[times.len() / 2], times[times.len() - 1])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_with_a_hundred_thousand_revisions_is_read_at_any_block() {
    let seed = seed();
    println!("repeat with SAMOVAR_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let directory = tempfile::tempdir().unwrap();
    let node = new_node(directory.path()).await;
    let mut model = Model::default();
    heat(&node, &mut model).await;
    for n in 0..TIMED {
        committed(&node, write(vec![put(&format!("fresh/{n}"), "v")])).await;
    }
    let head = node.head().borrow().height;
    let (mut past, mut fresh) = (Vec::new(), Vec::new());
    for n in 0..TIMED {
        let block = rng.gen_range(0..=head);
        let begun = Instant::now();
        let found = value(&node, "hot", Some(block)).await;
        past.push(begun.elapsed());
        assert_eq!(found, shown(model.at("hot", block)), "seed {seed}: hot at block {block} of {head}");
        let begun = Instant::now();
        assert!(value(&node, &format!("fresh/{n}"), None).await.is_some());
        fresh.push(begun.elapsed());
    }
    let expected = &model.keys["hot"];
    assert_eq!(expected.len() as u64, REVISIONS, "revisions of the model");
    let (mut before, mut pages) = (None, Vec::new());
    for _ in 0..TIMED / 20 {
        let begun = Instant::now();
        let page = node.history(&key("hot"), before, HISTORY_ROWS).await.unwrap();
        pages.push(begun.elapsed());
        let below = expected.partition_point(|r| before.is_none_or(|before| r.index < before));
        let wanted: Vec<_> = expected[..below].iter().rev().take(HISTORY_ROWS).map(|r| (r.index, r.block)).collect();
        let found: Vec<_> = page.versions.iter().map(|v| (v.revision, v.block)).collect();
        assert_eq!(found, wanted, "seed {seed}: the history of hot before {before:?}");
        before = Some(expected[rng.gen_range(1..expected.len())].index);
    }
    let first_page = pages[0];
    let ((past, past_max), (fresh, fresh_max), (page, page_max)) = (spread(past), spread(fresh), spread(pages));
    println!(
        "RESULT a key with {REVISIONS} revisions: read at a random block of {head} {past:?} (median; slowest {past_max:?}), \
         read of a key with one revision {fresh:?} ({fresh_max:?}), first {HISTORY_ROWS} rows of its history {first_page:?}, \
         before a random revision {page:?} ({page_max:?})"
    );
    assert!(
        past <= SLOWER_MAX * fresh.max(FLOOR),
        "a read at a random block took {past:?}, more than {SLOWER_MAX} times the {fresh:?} of a key with one revision"
    );
    // Each row of a page is a read of an entry.
    let rows = u32::try_from(HISTORY_ROWS).unwrap();
    assert!(
        page <= 2 * rows * fresh.max(FLOOR),
        "a page of {HISTORY_ROWS} rows took {page:?}, more than twice as many reads of {fresh:?}"
    );
    node.stop().await;
}
