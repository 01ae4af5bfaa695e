//! Bugs that are planted must be found, by what must hold and not by a panic.

use super::chaos::{self, Shape};
use crate::planted::{Bug, plant};

/// How many worlds from a starting point on it takes until what must hold does not, and what that is; `None`: more than
/// `limit`. A node that ended tells of a panic in the core, which is not counted as finding the bug.
fn found_after(bug: Bug, start: u64, limit: u64) -> Option<(u64, String)> {
    plant(Some(bug));
    let found = (0..limit).find_map(|n| {
        let (violation, _) = chaos::run(start + n, Shape::Three, false).err()?;
        (!violation.contains("Raft core")).then_some((n + 1, violation))
    });
    plant(None);
    found
}

/// Each with the most worlds that it may take.
const BUGS: [(Bug, u64); 9] = [
    (Bug::CosignWithoutCheck, 30),
    (Bug::AckBeforeFsync, 60),
    (Bug::VoteNotPersisted, 30),
    (Bug::ForwardedWithoutName, 30),
    (Bug::StaleRead, 200),
    (Bug::ApplyReadsClock, 3),
    (Bug::SnapshotWithoutLastBlock, 10),
    (Bug::OutcomesLostAtRestart, 60),
    (Bug::ReleasedBeforeDurable, 10),
];

fn find_all(starts: &[u64]) {
    let mut missed = Vec::new();
    for (bug, limit) in BUGS {
        let mut worlds = Vec::new();
        for &start in starts {
            match found_after(bug, start, limit) {
                Some((count, violation)) => {
                    println!("{bug:?} from {start}: {}", violation.chars().take(200).collect::<String>());
                    worlds.push(count);
                }
                None => missed.push((bug, start, limit)),
            }
        }
        println!("RESULT {bug:?}: found after {worlds:?} worlds");
    }
    assert!(missed.is_empty(), "bug, first world, worlds within which it was not found: {missed:?}");
}

#[test]
fn planted_bugs_are_found() {
    find_all(&[1]);
}

#[test]
#[ignore = "most of a minute: tests/run long runs it"]
fn planted_bugs_are_found_from_five_starting_points() {
    find_all(&[1, 10_000, 20_000, 30_000, 40_000]);
}
