//! What the state map costs: CPU per put, memory, bytes on disk, time to open.
//!
//! `cargo run --release -p samovar-node --example state_map_bench -- KEYS [BLOCK] [PUTS] [DIRECTORY]`
//!
//! Fills the map with KEYS random keys, then measures PUTS puts on random keys in blocks of BLOCK, each read first (as
//! apply does), one frozen view moving along, a flush after each block and a sync at the end.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use samovar_node::disk::OsDisk;
use samovar_node::state_root::proof::node_hash;
use samovar_node::state_root::{Config, KeyHash, Slot, SlotState, StateMap, ViewId};

type Failure = Box<dyn std::error::Error>;

struct Run {
    map: StateMap,
    random: StdRng,
    block: u64,
    view: Option<ViewId>,
    /// Time in get, apply, freeze and release, flush.
    stages: [Duration; 4],
}

impl Run {
    /// Applies one block of puts, as a node does.
    fn block(&mut self, keys: impl Iterator<Item = u64>) -> Result<(), Failure> {
        self.block += 1;
        let keys: Vec<KeyHash> = keys.map(|number| KeyHash::of(&number.to_be_bytes())).collect();
        let mut slots = Vec::new();
        let start = Instant::now();
        for key in keys {
            let versions = self.map.get(&key)?.map_or(0, |stored| stored.versions) + 1;
            let state = SlotState::Live { commitment: [self.random.r#gen(); 32] };
            slots.push((key, Slot { revision: self.block, versions, state }));
        }
        let got = Instant::now();
        self.map.apply(self.block, &slots)?;
        let applied = Instant::now();
        let old = self.view.replace(self.map.freeze(self.block)?);
        old.map_or(Ok(()), |view| self.map.release(view))?;
        let frozen = Instant::now();
        self.map.flush(self.block)?;
        let spent = [got - start, applied - got, frozen - applied, frozen.elapsed()];
        self.stages.iter_mut().zip(spent).for_each(|(sum, spent)| *sum += spent);
        Ok(())
    }
}

/// CPU time of this process in microseconds, user and system.
fn cpu_us() -> Result<(u64, u64), Failure> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    Ok((ticks(11) * 10_000, ticks(12) * 10_000))
}

fn memory_kb() -> Result<String, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = |name: &str| status.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
    Ok(format!("{}, {}", line("VmRSS"), line("VmHWM")))
}

fn main() -> Result<(), Failure> {
    let argument = |at: usize, default: u64| std::env::args().nth(at).map_or(Ok(default), |text| text.parse::<u64>());
    let (keys, block, puts) = (argument(1, 1_000_000)?, argument(2, 256)?, argument(3, 500_000)?);
    let directory = std::env::args().nth(4).map_or_else(std::env::temp_dir, PathBuf::from);
    let path = directory.join(format!("state_map_bench.{}", std::process::id()));
    calibrate()?;
    println!("at start: {}", memory_kb()?);
    let map = StateMap::open(&OsDisk, &path, Config::default())?;
    let mut run = Run { map, random: StdRng::seed_from_u64(1), block: 0, view: None, stages: [Duration::ZERO; 4] };

    let (start, cpu) = (Instant::now(), cpu_us()?);
    for first in (0..keys).step_by(usize::try_from(block)?) {
        run.block(first..keys.min(first + block))?;
    }
    report("fill", keys, start, cpu)?;
    run.map.sync(run.block)?;

    let (start, cpu) = (Instant::now(), cpu_us()?);
    run.stages = [Duration::ZERO; 4];
    for _ in 0..puts / block {
        let chosen: Vec<u64> = (0..block).map(|_| run.random.gen_range(0..keys)).collect();
        run.block(chosen.into_iter())?;
    }
    report("put", puts, start, cpu)?;
    let ns = run.stages.map(|stage| stage.as_nanos() / u128::from(puts));
    println!("ns per put: get {}, apply {}, freeze and release {}, flush {}", ns[0], ns[1], ns[2], ns[3]);
    println!("{:?}\n{}", run.map.sizes()?, memory_kb()?);

    let start = Instant::now();
    for _ in 0..20_000 {
        let key = KeyHash::of(&run.random.gen_range(0..keys * 2).to_be_bytes());
        std::hint::black_box(run.map.prove(&key, run.view)?);
    }
    println!("proof: {} µs", start.elapsed().as_micros() / 20_000);

    let start = Instant::now();
    run.map.sync(run.block)?;
    println!("sync: {} ms", start.elapsed().as_millis());
    let root = run.map.root()?;
    drop(run);
    let start = Instant::now();
    let map = StateMap::open(&OsDisk, &path, Config::default())?;
    println!("open: {} ms; {}", start.elapsed().as_millis(), memory_kb()?);
    assert_eq!(map.root()?, root, "the replayed map has another root");
    Ok(std::fs::remove_file(path)?)
}

/// Prints what a hash of 80 bytes costs here and now, to set the other figures against.
fn calibrate() -> Result<(), Failure> {
    let ((before, _), mut hash) = (cpu_us()?, [0; 32]);
    for _ in 0..5_000_000 {
        hash = node_hash(&hash, &hash);
    }
    println!("one node hash: {} ns of CPU ({:02x})", (cpu_us()?.0 - before) / 5_000, hash[0]);
    Ok(())
}

fn report(what: &str, puts: u64, start: Instant, (user, system): (u64, u64)) -> Result<(), Failure> {
    let (now_user, now_system) = cpu_us()?;
    let each = |us: u64| format!("{}.{:02}", us / puts, us * 100 / puts % 100);
    println!(
        "{what}: {puts} puts, each {} µs user + {} µs system, {} puts/s",
        each(now_user - user),
        each(now_system - system),
        u128::from(puts) * 1_000_000 / start.elapsed().as_micros().max(1)
    );
    Ok(())
}
