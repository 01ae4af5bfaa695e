//! A client that follows the log, as `/v1/watch` has it done: from where it was, on whichever node answers.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::clients::{is_register, value_number};
use super::world::World;
use crate::merkle::{Hash, leaf_hash};
use crate::rt::sim::sleep_true;
use crate::view::Opening;

/// Entries that are read at once.
const AT_ONCE: usize = 64;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// An entry as it was passed on.
pub(super) struct Passed {
    hash: Hash,
    /// Keys and numbers of the values that came with it.
    values: Vec<(String, u64)>,
}

/// Follows the log from its first entry on, until the world is calm. An entry that is left out or comes twice is a violation.
pub(super) async fn follow(world: World, seed: u64) -> Vec<Passed> {
    let mut rng = StdRng::seed_from_u64(seed ^ 0xf0110);
    let mut passed: Vec<Passed> = Vec::new();
    let mut at = world.any();
    while !world.is_calm() {
        sleep_true(Duration::from_millis(rng.gen_range(5..150))).await;
        let next = passed.len() as u64;
        let read = world.on(at, move |node| async move { node.records(next, AT_ONCE).await });
        let Ok(Some(Ok(records))) = tokio::time::timeout(PATIENCE, read).await else {
            at = world.any();
            continue;
        };
        for record in records {
            if record.index != passed.len() as u64 {
                world.violated(format!("who follows the log gets entry {} from node {at} after {next}", record.index));
                return passed;
            }
            let values = record.openings.iter().filter(|(key, _)| is_register(key));
            let values = values.filter_map(|(key, opening)| match opening {
                Opening::Value { value, .. } => Some((key.as_str().to_owned(), value_number(value))),
                _ => None,
            });
            passed.push(Passed { hash: leaf_hash(&record.line), values: values.collect() });
            world.count("followed");
        }
        if rng.gen_bool(0.05) {
            at = world.any();
        }
    }
    passed
}

/// What was passed on is the log that the nodes came to, and the values in it.
pub(super) fn check_followed(
    passed: &[Passed],
    lines: &[Vec<u8>],
    values: &BTreeMap<u64, (u64, String)>,
) -> Result<(), String> {
    for (index, passed) in (0..).zip(passed) {
        let line = usize::try_from(index).ok().and_then(|index| lines.get(index));
        if line.is_none_or(|line| leaf_hash(line) != passed.hash) {
            return Err(format!("who follows the log was told another entry {index} than is in it"));
        }
        for (key, value) in &passed.values {
            if values.get(value) != Some(&(index, key.clone())) {
                return Err(format!("who follows the log was told of {key} = {value:x} in entry {index}"));
            }
        }
    }
    Ok(())
}
