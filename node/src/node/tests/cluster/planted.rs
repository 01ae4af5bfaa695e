//! Bugs that are planted must be found, by what must hold and not by a panic.

use super::chaos;
use crate::planted::{Bug, plant};

/// How many worlds from a starting point on it takes until the bug is found; `None`: more than `limit`.
fn found_after(bug: Bug, start: u64, limit: u64) -> Option<(u64, String)> {
    plant(Some(bug));
    let found = (0..limit).find_map(|n| chaos::run(start + n, 3, false).err().map(|(violation, _)| (n + 1, violation)));
    plant(None);
    found
}

/// Each with the most worlds that it may take.
const BUGS: [(Bug, u64); 8] = [
    (Bug::AckBeforeFsync, 60),
    (Bug::VoteNotPersisted, 30),
    (Bug::ForwardedWithoutName, 30),
    (Bug::StaleRead, 200),
    (Bug::ApplyReadsClock, 3),
    (Bug::SnapshotWithoutLastBlock, 10),
    (Bug::OutcomesLostAtRestart, 60),
    (Bug::ReleasedBeforeDurable, 10),
];

#[test]
fn planted_bugs_are_found() {
    let mut missed = Vec::new();
    for (bug, limit) in BUGS {
        match found_after(bug, 1, limit) {
            Some((worlds, violation)) => {
                // A node that ended tells of a panic in the core, not of what must hold.
                assert!(!violation.contains("Raft core"), "{bug:?} is found by a panic only: {violation}");
                println!("{bug:?}: found after {worlds}: {}", violation.chars().take(200).collect::<String>());
            }
            None => missed.push(bug),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}

/// The count over five starting points, for docs/operate/tested.md; takes minutes.
#[test]
#[ignore = "takes minutes: run it by its name"]
fn how_many_worlds_each_planted_bug_takes() {
    let rare = [(Bug::OwnVoteResumes, 2_000)];
    for (bug, limit) in BUGS.into_iter().map(|(bug, _)| (bug, 500)).chain(rare) {
        let counts = [1u64, 10_000, 20_000, 30_000, 40_000].map(|start| found_after(bug, start, limit));
        let kinds: Vec<_> = counts.iter().flatten().map(|(_, v)| v.chars().take(60).collect::<String>()).collect();
        println!("{bug:?}: {:?} {kinds:?}", counts.each_ref().map(|found| found.as_ref().map(|(n, _)| *n)));
    }
}
