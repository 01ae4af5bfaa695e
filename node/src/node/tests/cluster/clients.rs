//! Clients of a world, and what they saw.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::super::*;
use super::history::Act;
use super::world::World;
use crate::rt::sim::sleep_true;

/// Keys that all clients write to and read.
pub(super) const KEYS: u64 = 4;
/// How long a client waits for an answer before it takes the outcome for unknown.
const CLIENT_PATIENCE: Duration = Duration::from_secs(4);

/// A write or read of a client, as it saw it.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub key: u64,
    pub act: Act,
    pub called: Duration,
    pub answered: Option<Duration>,
    /// Index of the entry, of an acknowledged write.
    pub entry: Option<u64>,
    /// The node said that nothing was written.
    pub refused: bool,
}

pub(super) type Log = Arc<Mutex<Vec<Seen>>>;

/// Whether a key is one that clients write to and read, each value with a number.
pub(super) fn is_register(key: &Key) -> bool {
    key.as_str().starts_with('k')
}

fn key_name(key: u64) -> Key {
    Key::client(&format!("k{key}")).unwrap()
}

fn value_bytes(value: u64, size: usize) -> Bytes {
    let mut bytes = value.to_le_bytes().to_vec();
    bytes.resize(size.max(8), 7);
    bytes.into()
}

pub(super) fn value_number(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(*bytes.first_chunk().unwrap())
}

pub(super) fn put(key: u64, value: u64, size: usize, named: bool) -> Write {
    let value_bytes = value_bytes(value, size);
    let operation = Operation::Put { key: key_name(key), value: value_bytes, media_type: "a/b".into(), blob: false };
    let mut fingerprint = [0; 32];
    fingerprint[..8].copy_from_slice(&value.to_le_bytes());
    let idempotency = named.then(|| Idempotency { key: format!("v{value}"), fingerprint });
    Write { author: "client".into(), requirements: Vec::new(), operations: vec![operation], idempotency }
}

/// What became of one call.
pub(super) enum Answer<T> {
    Got(T),
    /// Nothing was written.
    Refused(String),
    Unknown,
}

pub(super) async fn call<T, F>(world: &World, id: u64, act: impl FnOnce(Node) -> F) -> Answer<T>
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
pub(super) async fn client(world: World, number: u64, seed: u64, log: Log) {
    let mut rng = StdRng::seed_from_u64(seed ^ number << 8 ^ 0xc11e);
    let mut ids = world.ids();
    let mut at = ids[usize::try_from(number).unwrap() % ids.len()];
    let begun = rt::instant();
    let mut serial = 0;
    while !world.is_calm() {
        sleep_true(Duration::from_micros(rng.gen_range(500..100_000))).await;
        ids = world.ids();
        let key = rng.gen_range(0..KEYS);
        serial += 1;
        let value = number << 32 | serial;
        let called = begun.elapsed();
        let mut seen = Seen { key, act: Act::Read(0), called, answered: None, entry: None, refused: false };
        if rng.gen_bool(0.5) {
            let size = [8, 300, 300, 5000, 5000, 60_000][rng.gen_range(0..6)];
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
                        world.count("writes");
                    }
                    Answer::Got(Outcome::Refused(refusal)) => world.violated(format!("{value:x} refused: {refusal:?}")),
                    // Says nothing of a try before this one.
                    Answer::Refused(why) => {
                        world.network().note(|| format!("refused: {why}"));
                        seen.refused = !doubt;
                    }
                    Answer::Unknown => {
                        world.count("unknown");
                        doubt = true;
                        if named && !world.is_calm() {
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
                    world.count("reads");
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
