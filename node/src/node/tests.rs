//! One node in a simulated world: crashes at every durable operation, and random lives from a seed.
//!
//! `SAMOVAR_SEED=N cargo test -p samovar-node --lib node::tests::lives` repeats one life.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::command::{Committed, Idempotency, Key, Operation};
use crate::disk::sim::{CrashPoint, SimDisk};
use crate::seal::{Kek, kek_of};
use crate::store::{MemoryRows, Tree};
use crate::view::{Consistency, Found};

mod snapshot;

/// How long a client waits for an answer, in virtual time.
const PATIENCE: Duration = Duration::from_secs(30);
const DATA: &str = "/ledger";

/// The machine: what survives a crash of the node on it.
struct Machine {
    disk: SimDisk,
    rows: Arc<MemoryRows>,
}

/// Short, since every tick of the node on the way is simulated.
const UNNAMED_BLOB_AGE: Duration = Duration::from_secs(300);

/// What a machine can lose and make again from the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    Nothing,
    StateMap,
    Store,
    Archive,
    /// Every call of the store finds damage.
    SoundnessOfStore,
    /// The store is one that an earlier version wrote.
    FormatOfStore,
}

const LOSSES: [Loss; 6] =
    [Loss::Nothing, Loss::StateMap, Loss::Store, Loss::Archive, Loss::SoundnessOfStore, Loss::FormatOfStore];

/// What clients know: for each key the last acknowledged state, and what is in doubt.
#[derive(Default)]
struct Known {
    /// Key → revision and value; a value of `None`: deleted.
    acknowledged: BTreeMap<String, (u64, Option<Bytes>)>,
    /// Writes without an answer, to be asked for again under their name.
    in_doubt: Vec<(String, Write)>,
    /// Entries of acknowledged rotations of the log key.
    rotations: Vec<u64>,
}

impl Machine {
    fn new(seed: u64) -> Self {
        let machine = Self { disk: SimDisk::new(seed), rows: Arc::default() };
        let disk: Arc<dyn Disk> = Arc::new(machine.disk.clone());
        simulate(seed, async move { Node::init(&disk, &Self::config(), "sim", "sim.example").unwrap() });
        machine
    }

    /// With sealed keys: whatever is cut in a rotation, they are to be found under it.
    fn config() -> Config {
        Config { seal: Seal::new(Kek::of(&[7; 32]), None), ..Config::new(DATA) }
    }

    async fn start(&self) -> Result<Node, Error> {
        let disk: Arc<dyn Disk> = Arc::new(self.disk.clone());
        let config = Config { reserve_bytes: 0, unnamed_blob_age: UNNAMED_BLOB_AGE, ..Self::config() };
        let (identity, keys) = Identity::load(config.place(disk.as_ref()))?;
        let shelf = Shelf::Memory(Arc::clone(&self.rows));
        Node::start_on(Ground { disk, config, shelf, transport: Arc::new(Alone) }, identity, keys).await
    }

    fn lose(&self, loss: Loss) {
        match loss {
            Loss::Nothing => {}
            Loss::StateMap => self.remove("state-map"),
            Loss::Store => self.rows.lose(),
            Loss::Archive => self.remove("archive"),
            Loss::SoundnessOfStore => self.rows.break_all(),
            Loss::FormatOfStore => self.rows.change(Tree::Meta, b"head", |row| row[0] = 1),
        }
    }

    /// Removes what lies under a name in the data directory, durably.
    fn remove(&self, name: &str) {
        let path = Config::new(DATA).data.join(name);
        for file in self.disk.files().iter().filter(|file| file.starts_with(&path)) {
            self.disk.remove(file).unwrap();
            self.disk.sync_directory(file.parent().unwrap()).unwrap();
        }
    }

    fn crash(&self, rng: &mut StdRng) {
        self.disk.crash();
        for key in ["keys/log", "keys/cosigner"] {
            let stored = self.disk.contents(&Path::new(DATA).join(key));
            let closed = |s: Vec<u8>| kek_of(&s).is_some() || s.iter().all(|byte| *byte == 0);
            assert!(stored.is_none_or(closed), "{key} lies in the clear");
        }
        self.rows.crash(rng.gen_range(0..8));
    }
}

/// Runs a world of its own; whatever still works when `life` is over, ends with it.
fn simulate<F: Future>(seed: u64, life: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        rt::simulate(seed, 1_700_000_000_000);
        life.await
    })
}

/// A write under a name, so that it can be asked for again.
fn random_write(rng: &mut StdRng, serial: u64) -> (String, Write) {
    let name = format!("k{}", rng.gen_range(0..12));
    let size = *[10, 256, 300, 5 << 10, 60 << 10].get(rng.gen_range(0..5)).unwrap();
    let mut value = vec![0; size];
    rng.fill(value.as_mut_slice());
    let key = Key::client(&name).unwrap();
    let operation =
        Operation::Put { key, value: value.into(), media_type: "application/octet-stream".into(), blob: false };
    let mut fingerprint = [0; 32];
    fingerprint[..8].copy_from_slice(&serial.to_le_bytes());
    let idempotency = Some(Idempotency { key: format!("w{serial}"), fingerprint });
    (name, Write { author: "client".into(), requirements: Vec::new(), operations: vec![operation], idempotency })
}

fn value_of(write: &Write) -> Option<Bytes> {
    match &write.operations[0] {
        Operation::Put { value, .. } => Some(value.clone()),
        _ => None,
    }
}

impl Known {
    /// Takes an answer. Of two writes to one key the later revision counts.
    fn acknowledge(&mut self, name: &str, write: &Write, committed: &Committed) {
        let state = self.acknowledged.entry(name.to_owned()).or_insert((0, None));
        if committed.transaction >= state.0 {
            *state = (committed.transaction, value_of(write));
        }
    }

    /// Writes `count` times, from the outside as many clients at once.
    async fn write(&mut self, node: &Node, rng: &mut StdRng, serial: &mut u64, count: usize) {
        let mut flights = Vec::new();
        for _ in 0..count {
            *serial += 1;
            let (name, write) = random_write(rng, *serial);
            let (node, copy) = (node.clone(), write.clone());
            flights.push((name, write, rt::spawn(async move { rt::timeout(PATIENCE, node.write(copy)).await })));
            if rng.gen_bool(0.3) {
                rt::sleep(Duration::from_micros(rng.gen_range(0..20_000))).await;
            }
        }
        for (name, write, flight) in flights {
            match flight.await {
                Ok(Ok(Ok(Outcome::Committed(committed)))) => self.acknowledge(&name, &write, &committed),
                Ok(Ok(Ok(Outcome::Refused(refusal)))) => panic!("{name} was refused: {refusal:?}"),
                _ => self.in_doubt.push((name, write)),
            }
        }
    }

    /// Asks again for what is in doubt, and then for everything: nothing acknowledged may be missing or older.
    async fn check(&mut self, node: &Node) -> Result<(), String> {
        for (name, write) in std::mem::take(&mut self.in_doubt) {
            let first = node.write(write.clone()).await.map_err(|e| format!("asking again for {name}: {e}"))?;
            let again = node.write(write.clone()).await.map_err(|e| format!("asking once more for {name}: {e}"))?;
            if first != again {
                return Err(format!("one name, two answers: {first:?} and {again:?}"));
            }
            if let Outcome::Committed(committed) = first {
                self.acknowledge(&name, &write, &committed);
            }
        }
        for (name, (revision, value)) in &self.acknowledged {
            let read = node.get(&Key::client(name).unwrap(), Consistency::Linearizable, None).await;
            match read.map_err(|e| format!("reading {name}: {e}"))?.found {
                Found::Value(v) if v.revision == *revision && Some(&v.content) == value.as_ref() => {}
                other => return Err(format!("{name} was acknowledged at {revision}, found {:?}", other.revision())),
            }
        }
        log_key::check(node, &self.rotations).await?;
        check_chain(node)
    }
}

/// The chain log from its first entry: heights, counts, previous blocks, and the Merkle root that is signed.
fn check_chain(node: &Node) -> Result<(), String> {
    use crate::checkpoint::Checkpoint;
    use crate::entry::Entry;
    use crate::merkle::{Tree, leaf_hash};
    use crate::note::Note;
    let text = node.checkpoint().ok_or("no checkpoint")?;
    let note = Note::parse(&text).map_err(|e| e.to_string())?;
    let checkpoint = Checkpoint::parse(note.text()).map_err(|e| e.to_string())?;
    let size = node.head().borrow().size;
    let records = node.inner.ledger.records(0, usize::try_from(size).unwrap()).map_err(|e| e.to_string())?;
    let (mut tree, mut full) = (Tree::new(), Vec::new());
    let (mut height, mut since, mut previous) = (0, 0, None);
    for record in records {
        tree.push(leaf_hash(&record.line), &mut full);
        if tree.size() == checkpoint.size && tree.root() != checkpoint.root {
            return Err(format!("the signed root of {} entries is another", checkpoint.size));
        }
        match Entry::parse(&record.line).map_err(|e| format!("entry {}: {e}", record.index))? {
            Entry::Block(block) => {
                if (block.height, block.count, block.previous) != (height + 1, since, previous) {
                    return Err(format!("block {} does not follow block {height}", block.height));
                }
                (height, since, previous) = (block.height, 0, Some(leaf_hash(&record.line)));
            }
            _ => since += 1,
        }
    }
    if since != 0 || tree.size() < checkpoint.size { Err("the log does not end with a block".into()) } else { Ok(()) }
}

/// A fixed workload that is cut at one durable operation; returns how many there were.
fn cut_at(cut: Option<(u64, CrashPoint)>) -> u64 {
    const SEED: u64 = 11;
    let machine = Machine::new(SEED);
    let mut rng = StdRng::seed_from_u64(SEED);
    let (mut known, mut serial) = (Known::default(), 0);
    if let Some((ordinal, point)) = cut {
        machine.disk.crash_at(ordinal, point);
    }
    simulate(SEED, async {
        if let Ok(node) = machine.start().await {
            for round in 0..4 {
                known.write(&node, &mut rng, &mut serial, 6).await;
                if round % 2 == 1 {
                    log_key::rotate(&node, &mut known.rotations).await;
                }
                rt::sleep(Duration::from_secs(6)).await;
            }
            node.stop().await;
        }
    });
    let operations = machine.disk.durable_operations();
    machine.crash(&mut rng);
    let mut before = None;
    // What is lost alternates, to save time: each point is cut twice.
    let losses = match cut {
        Some((_, CrashPoint::Before)) => [Loss::Nothing, Loss::StateMap, Loss::Store],
        Some((_, CrashPoint::After)) => [Loss::Nothing, Loss::Archive, Loss::SoundnessOfStore],
        None => [Loss::Store, Loss::Archive, Loss::Store],
    };
    for lost in losses {
        machine.lose(lost);
        simulate(SEED + 1, async {
            let node = machine.start().await.unwrap_or_else(|e| panic!("cut at {cut:?}, lost {lost:?}: {e}"));
            known.check(&node).await.unwrap_or_else(|e| panic!("cut at {cut:?}, lost {lost:?}: {e}"));
            let head = node.inner.ledger.chain().head.clone();
            let roots = (head.height, head.block_hash, head.state_root, head.outcomes);
            assert_eq!(*before.get_or_insert(roots), roots, "cut at {cut:?}, lost {lost:?}: another chain than before");
            node.stop().await;
        });
    }
    operations
}

#[test]
fn nothing_acknowledged_is_lost_at_any_durable_operation() {
    let total = cut_at(None);
    assert!(total > 30, "the workload makes {total} durable operations only");
    for ordinal in 1..=total {
        for point in [CrashPoint::Before, CrashPoint::After] {
            cut_at(Some((ordinal, point)));
        }
    }
    println!("{total} durable operations, each cut before and after");
}

/// Several lives of one machine, each ended by a crash at a random operation. Returns a hash of all that was seen.
fn lives(seed: u64) -> u64 {
    let machine = Machine::new(seed);
    let mut rng = StdRng::seed_from_u64(seed);
    let (mut known, mut serial) = (Known::default(), 0);
    let mut seen = DefaultHasher::new();
    for life in 0..6 {
        let ahead = rng.gen_range(1..40);
        machine.disk.crash_at(machine.disk.durable_operations() + ahead, CrashPoint::Before);
        simulate(seed.wrapping_add(life), async {
            let Ok(node) = machine.start().await else { return };
            for _ in 0..rng.gen_range(1..6) {
                let count = rng.gen_range(1..20);
                known.write(&node, &mut rng, &mut serial, count).await;
                if rng.gen_bool(0.3) {
                    log_key::rotate(&node, &mut known.rotations).await;
                }
                rt::sleep(Duration::from_millis(rng.gen_range(0..8_000))).await;
                (rt::now_ms(), node.head().borrow().size).hash(&mut seen);
            }
        });
        machine.crash(&mut rng);
        let lost = LOSSES[rng.gen_range(0..LOSSES.len())];
        machine.lose(lost);
        simulate(seed.wrapping_add(life), async {
            let node = machine.start().await.unwrap_or_else(|e| panic!("seed {seed}, life {life}, lost {lost:?}: {e}"));
            known.check(&node).await.unwrap_or_else(|e| panic!("seed {seed}, life {life}, lost {lost:?}: {e}"));
            let head = *node.head().borrow();
            (head.height, head.size, node.checkpoint()).hash(&mut seen);
        });
        machine.crash(&mut rng);
    }
    seen.finish()
}

#[test]
fn without_store_and_archive_a_node_refuses_and_says_what_to_do() {
    const SEED: u64 = 5;
    let machine = Machine::new(SEED);
    let mut rng = StdRng::seed_from_u64(SEED);
    let (mut known, mut serial) = (Known::default(), 0);
    simulate(SEED, async {
        let node = machine.start().await.unwrap();
        known.write(&node, &mut rng, &mut serial, 40).await;
        node.stop().await;
    });
    machine.lose(Loss::Store);
    machine.lose(Loss::Archive);
    for _ in 0..2 {
        simulate(SEED, async {
            let error = machine.start().await.err().expect("neither store nor archive, and it started").to_string();
            for words in ["store and archive", "raft log", "restore a backup"] {
                assert!(error.contains(words), "expected {words:?} in: {error}");
            }
        });
    }
}

/// A store that fails while the node runs ends the node; the next start rebuilds it, and does so once.
#[test]
fn a_store_found_damaged_at_work_is_rebuilt_at_the_next_start() {
    const SEED: u64 = 6;
    let machine = Machine::new(SEED);
    let mut rng = StdRng::seed_from_u64(SEED);
    let (mut known, mut serial) = (Known::default(), 0);
    for by in ["a read", "a write"] {
        simulate(SEED, async {
            let node = machine.start().await.unwrap();
            known.write(&node, &mut rng, &mut serial, 20).await;
            machine.rows.break_all();
            if by == "a read" {
                node.record(0).await.expect_err("every row is damaged");
            } else {
                known.write(&node, &mut rng, &mut serial, 1).await;
            }
            let failed = rt::timeout(PATIENCE, node.failure()).await;
            failed.unwrap_or_else(|_| panic!("{by} found damage, and the node did not end"));
        });
        let suspect = Config::new(DATA).data.join("store.suspect");
        assert!(
            machine.disk.contents(&suspect).is_some(),
            "{by} found damage, and there is no note for the next start"
        );
        machine.crash(&mut rng);
        simulate(SEED, async {
            let node = machine.start().await.unwrap();
            known.check(&node).await.unwrap_or_else(|e| panic!("after {by} found damage: {e}"));
            assert!(machine.disk.contents(&suspect).is_none(), "the note must go when it is heeded");
            node.stop().await;
        });
    }
}

/// The scrub finds a damaged segment of the archive on a running node and makes it again; then the store can be lost.
#[test]
fn a_damaged_archive_is_mended_from_the_store() {
    const SEED: u64 = 7;
    let machine = Machine::new(SEED);
    let mut rng = StdRng::seed_from_u64(SEED);
    let (mut known, mut serial) = (Known::default(), 0);
    simulate(SEED, async {
        let node = machine.start().await.unwrap();
        known.write(&node, &mut rng, &mut serial, 60).await;
        let directory = Config::new(DATA).data.join("archive");
        let files = machine.disk.files().into_iter().filter(|file| file.starts_with(&directory)).collect::<Vec<_>>();
        assert!(files.len() > 3, "expected several segments: {files:?}");
        for file in &files[1..] {
            assert!(machine.disk.flip_bit(file, 8 * 5000), "{}", file.display());
        }
        rt::sleep(Duration::from_secs(3600)).await;
        let status = node.status().archive;
        let segments = files.len() as u64 - 1;
        assert_eq!((status.damaged_segments, status.repaired_segments), (segments, segments), "{status:?}");
        assert!(status.scrub_passed_ms > 0 && status.scrubbed_bytes > 0, "{status:?}");
        node.stop().await;
    });
    machine.lose(Loss::Store);
    simulate(SEED, async {
        let node = machine.start().await.unwrap();
        known.check(&node).await.unwrap();
        node.stop().await;
    });
}

/// A stop ends when the last task has let go of the ledger, not when patience with it ends.
#[test]
fn a_stop_is_quick() {
    let machine = Machine::new(11);
    let mut rng = StdRng::seed_from_u64(11);
    simulate(11, async {
        let node = machine.start().await.unwrap();
        Known::default().write(&node, &mut rng, &mut 0, 20).await;
        let begun = rt::instant();
        node.stop().await;
        let took = begun.elapsed();
        assert!(
            took < Duration::from_millis(200),
            "a stop of an idle node took {took:?} of virtual time: who holds the ledger?"
        );
    });
}

#[test]
fn random_lives_lose_nothing_and_repeat_from_their_seed() {
    let one = std::env::var("SAMOVAR_SEED").ok().and_then(|s| s.parse().ok());
    let seeds: Vec<u64> =
        one.map_or_else(|| (0..40).map(|_| rand::thread_rng().gen_range(0..1 << 32)).collect(), |s| vec![s]);
    for (n, seed) in seeds.into_iter().enumerate() {
        println!("seed {seed}");
        let first = lives(seed);
        if n < 5 {
            assert_eq!(
                first,
                lives(seed),
                "seed {seed} does not repeat: something reads the real clock or random source"
            );
        }
    }
}

mod blobs;
mod clock;
mod cluster;
mod format;
mod log_key;
