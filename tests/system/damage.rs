//! Damage on a stopped node: served right, repaired, or refused with what to do. Never a wrong value.
//!
//! `SAMOVAR_DAMAGE` says how many cases; `SAMOVAR_SEED` repeats a run.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};
use samovar_tests::durability::{Load, Wrong, check, count, seed};
use samovar_tests::{Daemon, Settings};

/// What lies under the data directory and is damaged; a directory stands for one of its files.
const TARGETS: [&str; 9] = ["raft", "store/db", "archive", "state-map", "salts", "promise", "node.json", "keys", "tls"];
/// What can be made again from the rest, so that a refusal would be a fault.
const DERIVED: [&str; 3] = ["state-map", "store/db", "archive"];
/// Words of a next step: one of them stands in every refusal.
const NEXT_STEPS: [&str; 6] = ["restore", "rejoin", "samovar ", "rebuilt", "replace", "remove"];
const PAGE_BYTES: u64 = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    ServedRight,
    Repaired,
    RefusedAtStart,
    RefusedWhenRead,
}

fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    let done = Command::new("cp").args(["-a", "--sparse=always"]).arg(from).arg(to).status().unwrap();
    assert!(done.success(), "copying {}", from.display());
}

/// A file to damage: of a directory, one by chance.
fn pick(data: &Path, target: &str, rng: &mut StdRng) -> PathBuf {
    let path = data.join(target);
    if !path.is_dir() {
        return path;
    }
    let mut files: Vec<_> = fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_file()).collect();
    files.sort();
    files.choose(rng).unwrap_or_else(|| panic!("nothing in {}", path.display())).clone()
}

/// An offset of the file that holds data: most of a preallocated file is zeros that nobody reads.
fn used_offset(bytes: &[u8], rng: &mut StdRng) -> u64 {
    let end = bytes.iter().rposition(|b| *b != 0).map_or(1, |at| at + 1) as u64;
    rng.gen_range(0..end)
}

/// Damages a file; says how.
fn damage(path: &Path, rng: &mut StdRng) -> String {
    let bytes = fs::read(path).unwrap();
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    let at = used_offset(&bytes, rng);
    let index = usize::try_from(at).unwrap();
    match rng.gen_range(0..3) {
        0 => {
            let bit = rng.gen_range(0..8);
            let byte = bytes.get(index).copied().unwrap_or(0) ^ (1 << bit);
            file.write_all_at(&[byte], at).unwrap();
            format!("bit {bit} of byte {at} flipped")
        }
        1 => {
            let from = at - at % PAGE_BYTES;
            let length = PAGE_BYTES.min(bytes.len() as u64 - from);
            file.write_all_at(&vec![0; usize::try_from(length).unwrap()], from).unwrap();
            format!("page at {from} zeroed")
        }
        _ => {
            file.set_len(at).unwrap();
            format!("cut to {at} bytes")
        }
    }
}

/// Whether a refusal says what to do about the file.
fn names_a_next_step(said: &str, target: &str) -> bool {
    let part = target.split('/').next().unwrap_or(target);
    let named = [part, part.trim_end_matches('s'), if part == "raft" { "raft log" } else { part }];
    named.iter().any(|name| said.contains(name)) && NEXT_STEPS.iter().any(|step| said.contains(step))
}

/// Starts on what is left, and classifies; `Err` is a fault of the product.
async fn outcome(data: &Path, port: u16, target: &str, load: &mut Load, rng: &mut StdRng) -> Result<Outcome, String> {
    let token = fs::read(data.join("admin.token")).ok();
    let mut daemon = Daemon::existing(data, port, Settings::default());
    if let Err(error) = daemon.start().await {
        let said = format!("{error:#}");
        return match () {
            () if said.contains("not ready") => Err(format!("neither served nor refused: {said}")),
            () if said.contains("signal") => Err(format!("died by a signal: {said}")),
            () if said.contains("panicked at") && !said.contains("store") => Err(format!("panicked: {said}")),
            () if DERIVED.contains(&target) => Err(format!("refused, though it could be made again: {said}")),
            () if !names_a_next_step(&said, target) => Err(format!("refused without file or next step: {said}")),
            () => Ok(Outcome::RefusedAtStart),
        };
    }
    drop(token);
    let mut checked = check(&daemon, load, rng).await;
    if checked.as_ref().is_err_and(|e| !e.is::<Wrong>()) && daemon.log().contains("at the next start the store") {
        // A store that is found damaged at work ends the daemon; its next start rebuilds it.
        daemon.kill().map_err(|e| e.to_string())?;
        let again = daemon.start().await;
        again.map_err(|e| format!("was to rebuild its store at the next start, but said: {e:#}"))?;
        checked = check(&daemon, load, rng).await;
    }
    let log = daemon.log();
    match checked {
        Ok(_) if log.contains(" WARN ") => Ok(Outcome::Repaired),
        Ok(_) => Ok(Outcome::ServedRight),
        Err(error) if error.is::<Wrong>() => Err(format!("{error:#}\n{log}")),
        Err(error) if !names_a_next_step(&log, target) => Err(format!("failed without a next step: {error:#}\n{log}")),
        Err(_) => Ok(Outcome::RefusedWhenRead),
    }
}

/// A ledger with some history, stopped or killed, and who knows what is in it.
async fn ledger(data: &Path, seed: u64, killed: bool) -> (Load, u16) {
    let mut daemon = Daemon::create(data, Settings::default()).await.unwrap();
    let mut load = Load::new(seed);
    load.begin(&daemon).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    load.end().await.unwrap();
    let ended = if killed { daemon.kill() } else { daemon.stop() };
    ended.unwrap();
    (load, daemon.port())
}

#[tokio::test]
#[ignore = "cases are drawn at random; `tests/run long` runs 200 of them"]
async fn damage_never_gives_a_wrong_value() {
    let seed = seed("damage_never_gives_a_wrong_value");
    let mut rng = StdRng::seed_from_u64(seed);
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let sound = [directory.path().join("stopped"), directory.path().join("killed")];
    let mut loads = [ledger(&sound[0], seed, false).await, ledger(&sound[1], seed + 1, true).await];
    let (mut counts, mut faults) = (BTreeMap::<(&str, Outcome), u64>::new(), Vec::new());
    let cases = usize::try_from(count("SAMOVAR_DAMAGE", 40)).unwrap();
    let data = directory.path().join("data");
    for case in 0..cases {
        let (target, which) = (TARGETS[case % TARGETS.len()], case / TARGETS.len() % 2);
        copy(&sound[which], &data);
        let path = pick(&data, target, &mut rng);
        let how = damage(&path, &mut rng);
        let what = format!("case {case}, {} of a {} ledger, {how}", path.display(), ["stopped", "killed"][which]);
        let (load, port) = &mut loads[which];
        match outcome(&data, *port, target, load, &mut rng).await {
            Ok(outcome) => {
                println!("{what}: {outcome:?}");
                *counts.entry((target, outcome)).or_default() += 1;
            }
            Err(fault) => faults.push(format!("{what}: {fault}")),
        }
    }
    for ((target, outcome), count) in &counts {
        println!("RESULT damage: {target} {outcome:?} {count}");
    }
    assert!(faults.is_empty(), "seed {seed}: {} of {cases} cases:\n{}", faults.len(), faults.join("\n\n"));
}

/// Removes what lies under names in a data directory.
fn remove(data: &Path, names: &[&str]) {
    for name in names {
        let path = data.join(name);
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.unwrap_or_else(|e| panic!("removing {}: {e}", path.display()));
    }
}

async fn checkpoint(data: &Path, port: u16) -> String {
    let mut daemon = Daemon::existing(data, port, Settings::default());
    daemon.start().await.unwrap();
    let text = daemon.client().await.unwrap().get("/checkpoint").await.unwrap().text();
    daemon.stop().unwrap();
    // Origin, size and root; the signatures carry times.
    text.lines().take(3).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn what_is_derived_comes_again_and_what_is_not_is_asked_for() {
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let data = directory.path().join("data");
    let mut rng = StdRng::seed_from_u64(1);
    for killed in [false, true] {
        let sound = directory.path().join(if killed { "killed" } else { "stopped" });
        let (mut load, port) = ledger(&sound, 1 + u64::from(killed), killed).await;
        copy(&sound, &data);
        let root = checkpoint(&data, port).await;
        let all: [&[&str]; 4] = [&["state-map"], &["store"], &["archive"], &["store", "state-map"]];
        for lost in all {
            let what = format!("{lost:?} of a {} ledger", if killed { "killed" } else { "stopped" });
            copy(&sound, &data);
            remove(&data, lost);
            assert_eq!(checkpoint(&data, port).await, root, "without {what} the root is another");
            copy(&sound, &data);
            remove(&data, lost);
            // It compares with the root recomputed from the entries, too.
            let derived = outcome(&data, port, "state-map", &mut load, &mut rng).await;
            assert!(matches!(derived, Ok(Outcome::ServedRight | Outcome::Repaired)), "without {what}: {derived:?}");
            assert!(!data.join("store.damaged-1").exists(), "without {what}: what is missing was set aside");
        }
    }
    // Until the first release the raft log holds everything; afterwards only what is newer than store and archive.
    copy(&directory.path().join("stopped"), &data);
    remove(&data, &["store", "archive"]);
    let mut daemon = Daemon::existing(&data, 1, Settings::default());
    let refused = daemon.start().await.expect_err("a ledger that is gone must not be taken for an empty one");
    let said = format!("{refused:#}");
    for words in ["store and archive", "restore a backup"] {
        assert!(said.contains(words), "expected {words:?} in what it says, got: {said}");
    }
}

/// What the CA of the directory can make again is made again; clients that trust the CA see no difference.
#[tokio::test]
async fn tls_keys_are_made_again_by_the_ca() {
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let sound = directory.path().join("sound");
    let mut daemon = Daemon::create(&sound, Settings::default()).await.unwrap();
    daemon.stop().unwrap();
    let (port, data) = (daemon.port(), directory.path().join("data"));
    let cut = |path: &Path| fs::OpenOptions::new().write(true).open(path).unwrap().set_len(40).unwrap();
    let gone = |path: &Path| fs::remove_file(path).unwrap();
    // Another valid character in the middle of the base64.
    let changed = |path: &Path| {
        let mut bytes = fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] = if bytes[middle] == b'A' { b'B' } else { b'A' };
        fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(&bytes, 0).unwrap();
    };
    for (what, damage) in [("missing", &gone as &dyn Fn(&Path)), ("cut to 40 bytes", &cut), ("changed", &changed)] {
        for files in [&["node.key"][..], &["node.pem"], &["node.key", "node.pem"]] {
            let case = format!("{what}: {}", files.join(", "));
            copy(&sound, &data);
            files.iter().for_each(|file| damage(&data.join("tls").join(file)));
            let mut daemon = Daemon::existing(&data, port, Settings::default());
            // Ready means that a client which trusts ca.pem was served.
            daemon.start().await.unwrap_or_else(|e| panic!("{case}: expected a start, got {e:#}"));
            let log = daemon.log();
            assert!(log.contains("made again by its CA"), "{case}: it must be said in the journal: {log}");
            daemon.stop().unwrap();
            daemon.start().await.unwrap();
            assert!(!daemon.log().contains("made again"), "{case}: once is enough: {}", daemon.log());
        }
    }
    copy(&sound, &data);
    ["node.key", "ca.key"].iter().for_each(|file| gone(&data.join("tls").join(file)));
    let refused = Daemon::existing(&data, port, Settings::default()).start().await;
    let said = format!("{:#}", refused.expect_err("without the CA's key nothing can be made"));
    assert!(said.contains("ca.key") && said.contains("restore"), "expected what to do, got: {said}");
}
