//! Faults of all kinds under clients, and what must hold afterwards.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::super::*;
use super::auditor::{self, Files};
use super::clients::{Answer, KEYS, Log, Seen, call, client, is_register, put, value_number};
use super::faults::{FSYNC_US, faults, usual};
use super::follower::{Passed, check_followed, follow};
use super::history::{self, Act};
use super::world::World;
use crate::rt::sim::{sleep_true, spawn_outside};
use crate::view::Opening;

/// How long faults go on at least, in virtual time, and at most.
const CHAOS: std::ops::RangeInclusive<Duration> = Duration::from_secs(20)..=Duration::from_secs(40);
/// A world goes on until it has seen so many acknowledged writes, and so many faults.
const WRITES_MIN: u64 = 200;
const FAULTS_MIN: u64 = 5;
/// After the last fault every node answers again within this time.
const RECOVERY: Duration = Duration::from_secs(30);
const CLIENTS: u64 = 5;

/// Which nodes a world has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Three,
    Five,
    /// Three at first; members come and go.
    Changing,
}

impl Shape {
    /// That of a seed: half of the worlds have three nodes, an eighth has five.
    pub(super) fn of(seed: u64) -> Self {
        match seed % 8 {
            0..=3 => Self::Three,
            4 => Self::Five,
            _ => Self::Changing,
        }
    }
}

/// What one world did.
pub(super) struct Report {
    /// Empty unless it was asked for.
    pub trace: Vec<String>,
    /// By what it was that happened.
    pub counts: BTreeMap<&'static str, u64>,
    /// How long faults went on, in virtual time.
    pub lasted: Duration,
}

impl Report {
    pub(super) fn count(&self, what: &str) -> u64 {
        self.counts.get(what).copied().unwrap_or(0)
    }

    /// Whether the world was as long and as full as is asked for.
    pub(super) fn is_full(&self) -> bool {
        is_full(self.lasted, self.count("writes"), self.count("faults"))
    }
}

fn is_full(lasted: Duration, writes: u64, faults: u64) -> bool {
    lasted >= *CHAOS.start() && writes >= WRITES_MIN && faults >= FAULTS_MIN
}

/// A world that went wrong: what did not hold, and its trace, if it was asked for.
pub(super) type Wrong = (String, Vec<String>);

/// Runs one world to its end.
pub(super) fn run(seed: u64, shape: Shape, traced: bool) -> Result<Report, Wrong> {
    simulate(seed, async {
        let (nodes, spares) = match shape {
            // One machine takes the place of another that has damaged files.
            Shape::Three => (3, 1),
            Shape::Five => (5, 1),
            Shape::Changing => (3, 6),
        };
        let world = World::with_spares(seed, nodes, spares);
        if traced {
            world.network().trace();
        }
        let lived = live(&world, seed, shape).await;
        for id in world.ids().into_iter().chain(world.removed()) {
            world.crash(id);
        }
        let trace = world.network().take_trace();
        let violation = match lived {
            Ok(lasted) => return Ok(Report { trace, counts: world.counts(), lasted }),
            Err(violation) => violation,
        };
        Err((violation, trace))
    })
}

/// The life of a world; how long its faults went on.
async fn live(world: &World, seed: u64, shape: Shape) -> Result<Duration, String> {
    world.try_to_found().await?;
    world.network().set_weather(usual());
    world.ids().into_iter().for_each(|id| world.set_fsync_us(id, FSYNC_US));
    let begun = rt::instant();
    let log = Log::default();
    let clients: Vec<_> =
        (0..CLIENTS).map(|number| spawn_outside(client(world.clone(), number + 1, seed, Arc::clone(&log)))).collect();
    let watcher = {
        let world = world.clone();
        spawn_outside(async move {
            loop {
                world.look_at_checkpoints();
                world.look_at_terms();
                let lasted = begun.elapsed();
                if is_full(lasted, world.counted("writes"), world.counted("faults")) || lasted >= *CHAOS.end() {
                    world.calm_down();
                }
                sleep_true(Duration::from_millis(50)).await;
            }
        })
    };
    let follower = spawn_outside(follow(world.clone(), seed));
    let files = auditor::Shared::default();
    let auditor = spawn_outside(auditor::audit(world.clone(), seed, Arc::clone(&files)));
    let eraser = spawn_outside(auditor::erase(world.clone(), seed, Arc::clone(&files)));
    faults(world.clone(), shape == Shape::Changing).await;
    let lasted = begun.elapsed();
    for client in clients {
        client.await.unwrap();
    }
    let followed = follower.await.unwrap();
    auditor.await.unwrap();
    eraser.await.unwrap();
    let files = std::mem::take(&mut *files.lock().unwrap());
    let log = log.lock().unwrap().clone();
    let checked = match world.violation() {
        Some(violation) => Err(violation),
        None => check(world, &log, &followed, &files).await.and_then(|()| world.failure().map_or(Ok(()), Err)),
    };
    watcher.abort();
    world.count_standing();
    checked.map(|()| lasted)
}

/// What must hold once the faults are over.
async fn check(world: &World, log: &[Seen], followed: &[Passed], files: &Files) -> Result<(), String> {
    world.heal().await;
    world.replace_damaged().await?;
    world.reconcile().await?;
    // Progress: every node takes a write.
    let deadline = rt::instant() + RECOVERY;
    for id in world.ids() {
        loop {
            let write = put(KEYS, 1 << 63 | id, 8, true);
            let last = match call(world, id, |node| async move { node.write(write).await }).await {
                Answer::Got(Outcome::Committed(_)) => break,
                Answer::Got(Outcome::Refused(refusal)) => format!("{refusal:?}"),
                Answer::Refused(why) => why,
                Answer::Unknown => "unknown".into(),
            };
            if rt::instant() > deadline {
                return Err(format!("node {id} takes no write {RECOVERY:?} after the faults ended: {last}"));
            }
            world.heal().await;
            sleep_true(Duration::from_millis(50)).await;
        }
    }
    // One chain: everybody has the same.
    while !world.is_level(&world.ids()) {
        if rt::instant() > deadline + RECOVERY {
            let ends = world.ids().into_iter().map(|id| world.node(id).map(|(_, node)| node.status()));
            let ends: Vec<_> = ends.map(|s| s.map(|s| (s.role, s.head.size, s.checkpoint_size))).collect();
            return Err(format!("the nodes do not come to one end, signed by each: {ends:?}"));
        }
        sleep_true(Duration::from_millis(50)).await;
    }
    world.look_at_checkpoints();
    let mut first: Option<Vec<Vec<u8>>> = None;
    let mut values = BTreeMap::new();
    for id in world.ids() {
        let (_, node) = world.node(id).ok_or_else(|| format!("node {id} went down"))?;
        check_chain(&node).map_err(|e| format!("node {id}: {e}"))?;
        let size = usize::try_from(node.head().borrow().size).unwrap();
        let records = node.inner.ledger.records(0, size).map_err(|e| format!("node {id}: {e}"))?;
        for record in &records {
            for (key, opening) in &record.openings {
                if let Opening::Value { value, .. } = opening
                    && is_register(key)
                {
                    let found = (record.index, key.as_str().to_owned());
                    let known = values.entry(value_number(value)).or_insert_with(|| found.clone());
                    if *known != found {
                        return Err(format!("node {id}: a value is there twice: {known:?} and {found:?}"));
                    }
                }
            }
        }
        let lines: Vec<_> = records.into_iter().map(|record| record.line.to_vec()).collect();
        if let Some(first) = &first
            && let Some(index) = (0..size).find(|i| first.get(*i) != lines.get(*i))
        {
            let text = |line: &[u8]| String::from_utf8_lossy(line).into_owned();
            let (a, b) = (first.get(index).map(|l| text(l)), text(&lines[index]));
            return Err(format!("node {id} has another entry {index} than node 1: {a:?} and {b}"));
        }
        first.get_or_insert(lines);
        if let Some(divergence) = node.status().divergence {
            return Err(format!("node {id} still takes its state for another than its peers': {divergence:?}"));
        }
    }
    let first = first.unwrap_or_default();
    world.check_checkpoints(&first)?;
    check_followed(followed, &first, &values)?;
    auditor::check(world, files, &first).await?;
    world.check_log_keys().await?;
    check_values(log, &values)?;
    world.check_rest().await?;
    world.check_majority().await?;
    world.violation().map_or(Ok(()), Err)
}

/// Nothing acknowledged is lost, nothing refused is written, and each key's history could be that of a register.
fn check_values(log: &[Seen], values: &BTreeMap<u64, (u64, String)>) -> Result<(), String> {
    for seen in log {
        let Act::Wrote(value) = seen.act else { continue };
        let found = values.get(&value);
        match seen.entry {
            Some(entry) if found != Some(&(entry, format!("k{}", seen.key))) => {
                return Err(format!("acknowledged and lost: {seen:?}, found {found:?}"));
            }
            None if seen.refused && found.is_some() => {
                return Err(format!("refused and written: {seen:?}, found {found:?}"));
            }
            _ => {}
        }
    }
    for key in 0..KEYS {
        let of_key = log.iter().filter(|s| s.key == key).filter(|s| match s.act {
            Act::Read(_) => s.answered.is_some(),
            // One whose fate the client does not know did nothing if it is not in the log.
            Act::Wrote(value) => values.contains_key(&value),
        });
        let operations: Vec<_> =
            of_key.map(|s| history::Operation { act: s.act, called: s.called, answered: s.answered }).collect();
        if !history::is_linearizable(&operations) {
            return Err(format!("the history of k{key} is not linearizable: {operations:?}"));
        }
    }
    Ok(())
}
