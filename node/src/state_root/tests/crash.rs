//! Kills, power cuts, damage and full disks: after each, the map gives the right root, or says that it starts over.

use super::disk::TestDisk;
use super::*;

const PATH: &str = "/state";

fn open(disk: &TestDisk) -> StateMap {
    StateMap::open(disk, Path::new(PATH), tiny()).unwrap()
}

/// Applies a few blocks; flushes and syncs now and then. Returns the newest block that may be in a page, and the newest
/// that a sync promised.
fn work(map: &StateMap, ledger: &mut Ledger) -> (u64, u64) {
    let (mut durable, mut synced) = (map.low_water().unwrap(), 0);
    for _ in 0..ledger.random.gen_range(1..25) {
        let height = ledger.grow(map, 12);
        durable = ledger.random.gen_range(durable..=height);
        if ledger.random.gen_bool(0.5) {
            map.flush(durable).unwrap();
        }
        if ledger.random.gen_bool(0.15) {
            synced = map.sync(durable).unwrap();
            assert!(synced <= durable, "a sync promises no block that is not durable");
        }
    }
    (durable, synced)
}

/// Replays, then compares everything with the model.
fn recover(disk: &TestDisk, ledger: &Ledger, what: &str) -> StateMap {
    let map = open(disk);
    replay(&map, ledger);
    assert_holds(&map, &ledger.state, what);
    map
}

#[test]
fn a_kill_loses_only_what_was_in_memory() {
    for seed in 100..130 {
        let (disk, mut ledger) = (TestDisk::default(), Ledger::new(seed, 120));
        let mut map = open(&disk);
        for round in 0..12 {
            let what = format!("seed {seed}, round {round}");
            work(&map, &mut ledger);
            let low_water = map.low_water().unwrap();
            drop(map);
            map = recover(&disk, &ledger, &what);
            assert_eq!(map.damage(), None, "{what}");
            assert_eq!(open(&disk).low_water().unwrap(), low_water, "nothing flushed is lost, {what}");
        }
    }
}

#[test]
fn a_kill_within_a_flush_or_sync() {
    for seed in 200..260 {
        let (disk, mut ledger) = (TestDisk::default(), Ledger::new(seed, 400));
        let mut map = open(&disk);
        for round in 0..12 {
            let what = format!("seed {seed}, round {round}");
            work(&map, &mut ledger);
            let low_water = map.low_water().unwrap();
            disk.allow(Path::new(PATH), Some(ledger.random.gen_range(0..30)));
            let _ = map.sync(ledger.height());
            disk.allow(Path::new(PATH), None);
            drop(map);
            map = open(&disk);
            assert_eq!(map.damage(), None, "{what}");
            assert!(map.low_water().unwrap() >= low_water, "nothing flushed is lost, {what}");
            drop(map);
            map = recover(&disk, &ledger, &what);
        }
    }
}

/// Syncs on a disk that stops somewhere in between; returns what was promised.
fn sync_on_failing_disk(map: &StateMap, disk: &TestDisk, ledger: &mut Ledger, durable: u64) -> u64 {
    disk.allow(Path::new(PATH), Some(ledger.random.gen_range(0..12)));
    let promised = map.sync(durable).unwrap_or(0);
    disk.allow(Path::new(PATH), None);
    promised
}

#[test]
fn a_power_cut_loses_nothing_synced() {
    let (mut fell_back, mut rounds) = (0, 0);
    for seed in 300..400 {
        let (disk, mut ledger) = (TestDisk::default(), Ledger::new(seed, 120));
        let mut map = open(&disk);
        let mut promised = 0;
        for round in 0..12 {
            let what = format!("seed {seed}, round {round}");
            for _ in 0..ledger.random.gen_range(1..3) {
                let (durable, synced) = work(&map, &mut ledger);
                promised = promised.max(synced);
                if ledger.random.gen_bool(0.5) {
                    promised = promised.max(sync_on_failing_disk(&map, &disk, &mut ledger, durable));
                    // A kill, perhaps between a mark and its sync. What is opened then must be safe from a power cut too.
                    drop(map);
                    map = recover(&disk, &ledger, &what);
                }
            }
            let flushed = map.low_water().unwrap();
            if ledger.random.gen_bool(0.5) {
                let durable = ledger.height();
                promised = promised.max(sync_on_failing_disk(&map, &disk, &mut ledger, durable));
            }
            drop(map);
            let kept = *[0.0, 0.3, 0.9, 1.0].choose(&mut ledger.random).unwrap();
            disk.cut_power(Path::new(PATH), &mut ledger.random, kept);
            map = open(&disk);
            assert_eq!(map.damage(), None, "a power cut is no damage, {what}");
            let low_water = map.low_water().unwrap();
            assert!(low_water >= promised, "block {promised} was promised, {low_water} is there, {what}");
            rounds += 1;
            fell_back += u32::from(low_water < flushed);
            drop(map);
            map = recover(&disk, &ledger, &what);
        }
    }
    assert!(fell_back > rounds / 20, "the test must make the map fall back: {fell_back} of {rounds}");
}

/// Twelve blocks with flushes and three syncs; `promised` is the last block that a sync promised.
fn fixed_workload(disk: &TestDisk, ledger: &mut Ledger, promised: &mut u64) -> Result<(), Error> {
    let map = StateMap::open(disk, Path::new(PATH), tiny())?;
    for _ in 0..12 {
        let height = ledger.block(10);
        map.apply(height, ledger.changes(height))?;
        map.flush(height)?;
        if height.is_multiple_of(4) {
            *promised = map.sync(height)?;
        }
    }
    Ok(())
}

#[test]
fn a_power_cut_at_every_write_of_a_fixed_workload() {
    let disk = TestDisk::default();
    fixed_workload(&disk, &mut Ledger::new(1, 60), &mut 0).unwrap();
    let writes = disk.writes(Path::new(PATH));
    println!("{writes} writes and syncs in the workload");
    for at in 0..writes {
        for kept in [0.0, 0.5, 1.0] {
            let (disk, mut ledger, mut promised) = (TestDisk::default(), Ledger::new(1, 60), 0);
            let what = format!("cut at write {at} of {writes}, {kept} kept");
            drop(disk.open(Path::new(PATH), true).unwrap());
            disk.allow(Path::new(PATH), Some(at));
            let error = fixed_workload(&disk, &mut ledger, &mut promised).expect_err("the disk stops before the end");
            assert!(matches!(error, Error::Io { .. }), "an I/O error is told as one, {what}: {error}");
            disk.allow(Path::new(PATH), None);
            disk.cut_power(Path::new(PATH), &mut ledger.random, kept);
            let low_water = open(&disk).low_water().unwrap();
            assert!(low_water >= promised, "block {promised} was promised, {low_water} is there, {what}");
            recover(&disk, &ledger, &what);
        }
    }
}

#[test]
fn damage_is_found_or_does_not_matter() {
    let (mut repaired, mut rebuilt) = (0, 0);
    for seed in 500..700 {
        let (disk, mut ledger) = (TestDisk::default(), Ledger::new(seed, 200));
        let map = open(&disk);
        for _ in 0..3 {
            work(&map, &mut ledger);
        }
        map.sync(ledger.height()).unwrap();
        map.flush(ledger.height()).unwrap();
        drop(map);
        let mut random = StdRng::seed_from_u64(seed);
        let kind = ["bit flip", "zeroed page", "truncation", "page copied over another", "all zero"][seed as usize % 5];
        disk.damage(Path::new(PATH), |bytes| {
            let pages = bytes.len() / PAGE_BYTES;
            let (page, other) = (random.gen_range(0..pages), random.gen_range(0..pages));
            let at = page * PAGE_BYTES;
            match kind {
                "bit flip" => bytes[at + random.gen_range(0..200)] ^= 1 << random.gen_range(0..8),
                "zeroed page" => bytes[at..at + PAGE_BYTES].fill(0),
                "truncation" => bytes.truncate(random.gen_range(0..bytes.len())),
                "page copied over another" => {
                    bytes.copy_within(other * PAGE_BYTES..(other + 1) * PAGE_BYTES, at);
                }
                _ => bytes.fill(0),
            }
        });
        let what = format!("{kind}, seed {seed}");
        let map = recover(&disk, &ledger, &what);
        if map.damage().is_some() {
            rebuilt += 1
        } else {
            repaired += 1
        }
        work(&map, &mut ledger);
        drop(map);
        recover(&disk, &ledger, &format!("after {what}"));
    }
    println!("of 200 damaged files {repaired} opened, {rebuilt} were rebuilt");
    assert!(repaired > 20 && rebuilt > 20, "both must happen: {repaired} opened, {rebuilt} rebuilt");
}

#[test]
fn damage_met_while_running_is_an_error() {
    let (disk, mut ledger) = (TestDisk::default(), Ledger::new(700, 4000));
    let map = open(&disk);
    let height = ledger.block(0);
    map.apply(height, &[]).unwrap();
    for _ in 0..20 {
        ledger.grow(&map, 400);
    }
    map.sync(ledger.height()).unwrap();
    disk.damage(Path::new(PATH), |bytes| bytes.iter_mut().skip(PAGE_BYTES * 3).for_each(|byte| *byte ^= 0x10));
    // Some pages are still in the cache, as they were before.
    let mut damaged = Vec::new();
    for (key, slot) in &ledger.state {
        match map.get(key) {
            Ok(stored) => assert_eq!(stored, Some(stored_as(slot)), "{key:?} is read right or not at all"),
            Err(error) => {
                assert!(matches!(error, Error::Corrupt(_)), "{key:?}: {error}");
                damaged.push((*key, *slot));
            }
        }
    }
    let (key, slot) = damaged[0];
    assert!(matches!(map.prove(&key, None), Err(Error::Corrupt(_))), "no proof from a damaged page");
    let next = Slot { revision: ledger.size, ..slot };
    assert!(matches!(map.apply(ledger.height() + 1, &[(key, next)]), Err(Error::Corrupt(_))), "nothing is put over it");
    assert!(matches!(map.root(), Err(Error::Corrupt(_))), "a half applied block is never shown");
    map.reset().unwrap();
    replay(&map, &ledger);
    assert_holds(&map, &ledger.state, "after a reset");
}

#[test]
fn a_full_disk_loses_nothing_and_passes() {
    let (disk, mut ledger) = (TestDisk::default(), Ledger::new(800, 300));
    let map = open(&disk);
    let mut refused = 0;
    for _ in 0..300 {
        let height = ledger.grow(&map, 12);
        disk.allow(Path::new(PATH), Some(ledger.random.gen_range(0..6)));
        refused += u32::from(map.flush(height).is_err());
        disk.allow(Path::new(PATH), None);
        if ledger.random.gen_bool(0.2) {
            map.sync(height).unwrap();
            drop(recover(&disk, &ledger, &format!("block {height}")));
        }
    }
    assert!(refused > 50, "the disk must have been full often: {refused}");
    assert_holds(&map, &ledger.state, "in memory");
    map.sync(ledger.height()).unwrap();
    drop(map);
    recover(&disk, &ledger, "opened again");
}

#[test]
fn after_a_failed_sync_there_is_no_other() {
    let (disk, mut ledger) = (TestDisk::default(), Ledger::new(900, 50));
    let map = open(&disk);
    let height = ledger.grow(&map, 300);
    map.flush(height).unwrap();
    assert_eq!(map.sizes().unwrap().deltas, 0, "only the sync itself is left to do");
    let (before, _) = (disk.writes(Path::new(PATH)), disk.allow(Path::new(PATH), Some(0)));
    assert!(matches!(map.sync(height), Err(Error::Io { .. })), "the disk's error is told");
    assert!(disk.writes(Path::new(PATH)) > before, "the sync was tried");
    disk.allow(Path::new(PATH), None);
    map.sync(height).expect_err("a second sync would promise what the first lost");
    drop(map);
    recover(&disk, &ledger, "opened again");
}

#[test]
fn a_block_is_applied_once() {
    let (disk, mut ledger) = (TestDisk::default(), Ledger::new(901, 50));
    let map = open(&disk);
    let height = ledger.grow(&map, 30);
    assert!(matches!(map.apply(height, &[]), Err(Error::Invalid(_))), "the same block twice");
}

#[test]
fn sync_beside_readers_and_blocks() {
    let disk = TestDisk::default();
    let (map, mut ledger) = (open(&disk), Ledger::new(902, 300));
    let done = std::sync::atomic::AtomicBool::new(false);
    let over = || done.load(std::sync::atomic::Ordering::Relaxed);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over() {
                map.sync(u64::MAX).unwrap();
            }
        });
        scope.spawn(|| {
            let mut random = StdRng::seed_from_u64(903);
            while !over() {
                let key = KeyHash::of(format!("key {}", random.gen_range(0..300)).as_bytes());
                let proof = map.prove(&key, None).unwrap();
                assert_eq!(proof.leaf.is_none() && proof.siblings.is_empty(), proof.root == EMPTY, "an empty map");
            }
        });
        for _ in 0..400 {
            ledger.grow(&map, 12);
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert_holds(&map, &ledger.state, "after a run with other threads");
    drop(map);
    let mut random = StdRng::seed_from_u64(904);
    disk.cut_power(Path::new(PATH), &mut random, 0.5);
    recover(&disk, &ledger, "after a power cut");
}
