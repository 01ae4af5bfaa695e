//! Faults of all kinds under clients, and what must hold afterwards.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::super::*;
use super::history::{self, Act};
use super::world::World;
use crate::rt::sim::{sleep_true, spawn_outside};
use crate::transport::sim::Weather;
use crate::view::Opening;

/// How long faults go on, in virtual time.
const CHAOS: Duration = Duration::from_secs(20);
/// After the last fault every node answers again within this time.
const RECOVERY: Duration = Duration::from_secs(30);
const CLIENTS: u64 = 5;
const KEYS: u64 = 4;
/// How long a client waits for an answer before it takes the outcome for unknown.
const CLIENT_PATIENCE: Duration = Duration::from_secs(4);
/// Worlds in every run of the tests: of three nodes, of five, and of three to five.
const SEEDS: (u64, u64, u64) = (24, 8, 12);

/// A write or read of a client, as it saw it.
#[derive(Debug, Clone)]
struct Seen {
    key: u64,
    act: Act,
    called: Duration,
    answered: Option<Duration>,
    /// Index of the entry, of an acknowledged write.
    entry: Option<u64>,
    /// The node said that nothing was written.
    refused: bool,
}

type Log = Arc<Mutex<Vec<Seen>>>;

fn key_name(key: u64) -> Key {
    Key::client(&format!("k{key}")).unwrap()
}

fn value_bytes(value: u64, size: usize) -> Bytes {
    let mut bytes = value.to_le_bytes().to_vec();
    bytes.resize(size.max(8), 7);
    bytes.into()
}

fn value_number(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(*bytes.first_chunk().unwrap())
}

fn put(key: u64, value: u64, size: usize, named: bool) -> Write {
    let value_bytes = value_bytes(value, size);
    let operation = Operation::Put { key: key_name(key), value: value_bytes, media_type: "a/b".into(), blob: false };
    let mut fingerprint = [0; 32];
    fingerprint[..8].copy_from_slice(&value.to_le_bytes());
    let idempotency = named.then(|| Idempotency { key: format!("v{value}"), fingerprint });
    Write { author: "client".into(), requirements: Vec::new(), operations: vec![operation], idempotency }
}

/// What became of one call.
enum Answer<T> {
    Got(T),
    /// Nothing was written.
    Refused(String),
    Unknown,
}

async fn call<T, F>(world: &World, id: u64, act: impl FnOnce(Node) -> F) -> Answer<T>
where
    F: Future<Output = Result<T, Error>> + Send + 'static,
    T: Send + 'static,
{
    if world.node(id).is_none() {
        return Answer::Refused("the node is down".into());
    }
    match tokio::time::timeout(CLIENT_PATIENCE, world.on(id, act)).await {
        Ok(Some(Ok(got))) => Answer::Got(got),
        Ok(Some(Err(Error::Unknown))) | Ok(None) | Err(_) => Answer::Unknown,
        Ok(Some(Err(error))) => Answer::Refused(error.to_string()),
    }
}

/// One client: works on a node until that fails it, then on another.
async fn client(world: World, number: u64, seed: u64, log: Log, until: tokio::time::Instant) {
    let mut rng = StdRng::seed_from_u64(seed ^ number << 8 ^ 0xc11e);
    let mut ids = world.ids();
    let mut at = ids[usize::try_from(number).unwrap() % ids.len()];
    let begun = rt::instant();
    let mut serial = 0;
    while rt::instant() < until {
        sleep_true(Duration::from_micros(rng.gen_range(500..60_000))).await;
        ids = world.ids();
        let key = rng.gen_range(0..KEYS);
        serial += 1;
        let value = number << 32 | serial;
        let called = begun.elapsed();
        let mut seen = Seen { key, act: Act::Read(0), called, answered: None, entry: None, refused: false };
        if rng.gen_bool(0.5) {
            let size = [8, 300, 5000, 60_000][rng.gen_range(0..4)];
            let named = rng.gen_bool(0.5);
            seen.act = Act::Wrote(value);
            let mut doubt = false;
            // A named write is asked for again until it is answered, on whichever node.
            loop {
                let write = put(key, value, size, named);
                match call(&world, at, |node| async move { node.write(write).await }).await {
                    Answer::Got(Outcome::Committed(committed)) => {
                        seen.answered = Some(begun.elapsed());
                        seen.entry = Some(committed.transaction);
                    }
                    Answer::Got(Outcome::Refused(refusal)) => world.violated(format!("{value:x} refused: {refusal:?}")),
                    // Says nothing of a try before this one.
                    Answer::Refused(_) => seen.refused = !doubt,
                    Answer::Unknown => {
                        world.count("unknown");
                        doubt = true;
                        if named && rt::instant() < until {
                            at = ids[rng.gen_range(0..ids.len())];
                            sleep_true(Duration::from_millis(rng.gen_range(1..200))).await;
                            continue;
                        }
                    }
                }
                break;
            }
        } else {
            match call(
                &world,
                at,
                |node| async move { node.get(&key_name(key), Consistency::Linearizable, None).await },
            )
            .await
            {
                Answer::Got(reading) => {
                    seen.answered = Some(begun.elapsed());
                    seen.act = Act::Read(match reading.found {
                        Found::Value(value) => value_number(&value.content),
                        Found::Absent | Found::Erased { .. } => 0,
                    });
                }
                Answer::Refused(_) | Answer::Unknown => seen.refused = true,
            }
        }
        world.network().note(|| format!("client {number} at {at}: {seen:?}"));
        if seen.answered.is_none() || rng.gen_bool(0.05) {
            at = ids[rng.gen_range(0..ids.len())];
        }
        log.lock().unwrap().push(seen);
    }
}

/// One fault after the other.
async fn faults(world: World, until: tokio::time::Instant, changes: bool) {
    let wait = |range: std::ops::Range<u64>| {
        let ms = world.draw(range);
        sleep_true(Duration::from_millis(ms))
    };
    while rt::instant() < until {
        wait(100..1500).await;
        let (ids, id) = (world.ids(), world.any());
        match world.draw(0..if changes { 22 } else { 16 }) {
            0 | 1 => {
                world.count("crash");
                world.crash(id);
                wait(1..1500).await;
                world.start(id).await;
            }
            2 => {
                world.count("crash of all");
                for id in &ids {
                    world.crash(*id);
                }
                wait(1..300).await;
                for id in &ids {
                    world.start(*id).await;
                }
            }
            3 | 4 => {
                world.count("isolation");
                for other in ids.iter().filter(|other| **other != id) {
                    world.network().cut(id, *other);
                    world.network().cut(*other, id);
                }
                wait(100..2500).await;
                world.network().heal();
            }
            5 => {
                world.count("cut one way");
                let other = world.any();
                world.network().cut(id, other);
                wait(100..2500).await;
                world.network().heal();
            }
            6 => {
                world.count("pause");
                let Some((power, _)) = world.node(id) else { continue };
                power.pause();
                wait(50..1500).await;
                power.resume();
            }
            7 => {
                world.count("bad weather");
                world.network().set_weather(Weather { delay_us: 200..20_000, slow: 0.05, drop: 0.05, repeat: 0.1 });
                wait(500..3000).await;
                world.network().set_weather(usual());
            }
            8 => {
                world.count("slow disk");
                world.set_fsync_us(id, 20_000..300_000);
                wait(500..3000).await;
                world.set_fsync_us(id, FSYNC_US);
            }
            9 => {
                world.count("clock jump");
                let Some((power, _)) = world.node(id) else { continue };
                let offset = i64::try_from(world.draw(0..7_200_000)).unwrap() - 3_600_000;
                power.set_wall_offset_ms(offset);
            }
            10 => {
                world.count("crash within an operation");
                let disk = world.disk(id);
                let ahead = world.draw(1..30);
                let point = if world.chance(0.5) { CrashPoint::Before } else { CrashPoint::After };
                disk.crash_at(disk.durable_operations() + ahead, point);
            }
            11 | 12 => {
                // Several at once, and wherever it comes: most are refused.
                for id in ids.into_iter().filter(|_| world.chance(0.7)) {
                    let asked = world.clone();
                    spawn_outside(async move {
                        let handed = asked.on(id, |node| async move { node.hand_over(None).await }).await;
                        asked.count(if matches!(handed, Some(Ok(_))) { "hand-over" } else { "no hand-over" });
                    });
                }
            }
            13 => {
                world.count("forged checkpoint");
                world.show_forged(id);
            }
            14 => {
                let rotating = world.clone();
                let rotation = spawn_outside(async move { rotating.try_to_rotate().await });
                if world.chance(0.5) {
                    wait(1..100).await;
                    world.count("crash");
                    world.crash(id);
                    wait(1..500).await;
                    world.start(id).await;
                }
                rotation.await.unwrap();
            }
            // A change of the members, and some other fault beside it.
            16.. => {
                let changing = world.clone();
                let grows = ids.len() < 5 && (ids.len() <= 3 || world.chance(0.5));
                let change = spawn_outside(async move {
                    if grows { changing.try_to_grow().await } else { changing.try_to_shrink().await }
                });
                if world.chance(0.5) {
                    wait(1..500).await;
                    let leader = world.leader().unwrap_or(id);
                    world.count("crash");
                    world.crash(leader);
                    wait(1..500).await;
                    world.start(leader).await;
                }
                change.await.unwrap();
            }
            _ => {
                world.count("crash with a loss");
                world.crash(id);
                let loss = LOSSES[usize::try_from(world.draw(0..LOSSES.len() as u64)).unwrap()];
                world.lose(id, loss);
                wait(1..500).await;
                world.start(id).await;
            }
        }
    }
}

/// Long windows between write and fsync, so that what is acknowledged too early is lost by some crash.
const FSYNC_US: std::ops::Range<u64> = 5_000..20_000;

fn usual() -> Weather {
    Weather { delay_us: 200..2000, slow: 0.01, drop: 0.01, repeat: 0.02 }
}

/// What one world did.
pub(super) struct Report {
    pub trace: Vec<String>,
    pub counts: BTreeMap<&'static str, u64>,
    pub writes: usize,
    pub reads: usize,
    pub restarts: u64,
}

/// Runs one world to its end.
pub(super) fn run(seed: u64, nodes: u64, changes: bool) -> Result<Report, (String, Vec<String>)> {
    simulate(seed, async {
        let world = World::with_spares(seed, nodes, if changes { 6 } else { 0 });
        world.network().trace();
        if let Err(violation) = world.try_to_found().await {
            for id in world.ids() {
                world.crash(id);
            }
            return Err((violation, world.network().take_trace()));
        }
        world.network().set_weather(usual());
        world.ids().into_iter().for_each(|id| world.set_fsync_us(id, FSYNC_US));
        let until = rt::instant() + CHAOS;
        let log = Log::default();
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| spawn_outside(client(world.clone(), number + 1, seed, Arc::clone(&log), until)))
            .collect();
        let watcher = {
            let world = world.clone();
            spawn_outside(async move {
                loop {
                    world.look_at_checkpoints();
                    world.look_at_terms();
                    sleep_true(Duration::from_millis(50)).await;
                }
            })
        };
        faults(world.clone(), until, changes).await;
        for client in clients {
            client.await.unwrap();
        }
        let log = log.lock().unwrap().clone();
        let checked = match world.violation() {
            Some(violation) => Err(violation),
            None => check(&world, &log).await.and_then(|()| world.failure().map_or(Ok(()), Err)),
        };
        watcher.abort();
        let restarts = world.ids().iter().filter_map(|id| world.node(*id)).map(|(_, n)| n.status().raft_restarts).sum();
        for id in world.ids() {
            world.crash(id);
        }
        let trace = world.network().take_trace();
        let writes = log.iter().filter(|s| s.entry.is_some()).count();
        let reads = log.iter().filter(|s| matches!(s.act, Act::Read(_)) && s.answered.is_some()).count();
        match checked {
            Ok(()) => Ok(Report { trace, counts: world.counts(), writes, reads, restarts }),
            Err(violation) => Err((violation, trace)),
        }
    })
}

/// What must hold once the faults are over.
async fn check(world: &World, log: &[Seen]) -> Result<(), String> {
    world.reconcile().await;
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
                    && !key.is_reserved()
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
    world.check_checkpoints(&first.unwrap_or_default())?;
    world.check_log_keys().await?;
    check_values(log, &values)?;
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

fn seeds(default: u64) -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    match number("SAMOVAR_SEED") {
        Some(seed) => vec![seed],
        None => {
            (0..number("SAMOVAR_SEEDS").unwrap_or(default)).map(|_| rand::thread_rng().gen_range(0..1 << 32)).collect()
        }
    }
}

/// Runs worlds; tells of each that goes wrong, with the command that repeats it.
fn worlds(nodes: u64, changes: bool, count: u64, test: &str) {
    let mut totals: BTreeMap<&str, u64> = BTreeMap::new();
    let mut wrong = Vec::new();
    let all = seeds(count);
    for (n, seed) in all.iter().enumerate() {
        println!("seed {seed}");
        let report = match run(*seed, nodes, changes) {
            Ok(report) => report,
            Err((violation, trace)) => {
                let path = std::env::temp_dir().join(format!("samovar-trace-{seed}"));
                save(&path, &trace);
                wrong.push(format!(
                    "{nodes} nodes, seed {seed}: {violation}\nthe trace: {}\nagain: SAMOVAR_SEED={seed} cargo test -p \
                     samovar-node --lib node::tests::cluster::chaos::{test} -- --nocapture",
                    path.display()
                ));
                println!("{}", wrong[wrong.len() - 1]);
                continue;
            }
        };
        if n < 2 {
            let again =
                run(*seed, nodes, changes).unwrap_or_else(|(e, _)| panic!("seed {seed} went well, and then: {e}"));
            let differs = report.trace.iter().zip(&again.trace).position(|(a, b)| a != b);
            assert!(
                differs.is_none() && report.trace.len() == again.trace.len(),
                "seed {seed} does not repeat: event {differs:?} of {}: {:?} and {:?}",
                report.trace.len(),
                differs.map(|n| &report.trace[n]),
                differs.map(|n| &again.trace[n]),
            );
        }
        *totals.entry("events").or_default() += report.trace.len() as u64;
        *totals.entry("writes").or_default() += report.writes as u64;
        *totals.entry("reads").or_default() += report.reads as u64;
        *totals.entry("restarts of the Raft core").or_default() += report.restarts;
        for (what, count) in report.counts {
            *totals.entry(what).or_default() += count;
        }
    }
    println!("{} worlds of {nodes} nodes: {totals:?}", all.len());
    assert!(wrong.is_empty(), "{} of {} worlds went wrong:\n{}", wrong.len(), all.len(), wrong.join("\n"));
}

fn save(path: &std::path::Path, trace: &[String]) {
    use std::io::Write as _;
    let mut file = std::fs::File::create(path).unwrap();
    for line in trace {
        writeln!(file, "{line}").unwrap();
    }
}

#[test]
fn three_nodes_lose_nothing_and_repeat_from_their_seed() {
    worlds(3, false, SEEDS.0, "three_nodes_lose_nothing_and_repeat_from_their_seed");
}

#[test]
fn five_nodes_lose_nothing_and_repeat_from_their_seed() {
    worlds(5, false, SEEDS.1, "five_nodes_lose_nothing_and_repeat_from_their_seed");
}

#[test]
fn members_come_and_go_and_nothing_is_lost() {
    worlds(3, true, SEEDS.2, "members_come_and_go_and_nothing_is_lost");
}
