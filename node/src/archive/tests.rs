//! The archive on a simulated disk: what was synced is there, what is damaged is found, cut or made again.
//!
//! `SAMOVAR_SEED=N cargo test -p samovar-node --lib archive::tests::crashes` repeats one run.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::disk::sim::SimDisk;
use crate::store::{entries, outcomes::Span, values};

const DATA: &str = "/ledger";

fn disk(seed: u64) -> (SimDisk, Arc<dyn Disk>) {
    let sim = SimDisk::new(seed);
    sim.create_directory(Path::new(DATA)).unwrap();
    (sim.clone(), Arc::new(sim))
}

fn open(disk: &Arc<dyn Disk>) -> Archive {
    Archive::open(disk, Path::new(DATA)).unwrap()
}

/// What raft entry number `n` adds: most a block of one value, every fifth nothing but an outcome.
fn frame(n: u64) -> Frame {
    let blocks = n - n / 5;
    let row = vec![7; usize::try_from(n % 50).unwrap()];
    let base = Frame {
        raft_index: n,
        place: Some(format!("place {n}").into_bytes()),
        first: 2 * blocks,
        first_slot: blocks,
        outcomes_kept: Span { first: 0, next: n + 1 },
        outcomes: vec![([1; 16], row)],
        ..Frame::default()
    };
    if n % 5 == 4 {
        return base;
    }
    let line = |text: &str, slot| entries::Stored { line: format!("{text} {n}").into_bytes(), slot };
    let bytes = vec![u8::try_from(n % 251).unwrap(); usize::try_from(1 + n * 37 % 5000).unwrap()];
    let lines = vec![line("entry", blocks), line("block", blocks + 1)];
    Frame { lines, values: vec![values::Stored::Ciphertext(bytes)], ..base }
}

fn append(archive: &Archive, numbers: std::ops::Range<u64>) {
    numbers.for_each(|n| archive.append(&frame(n)).unwrap());
}

/// Reads all frames; they must be those from 0 on. Returns how many there are.
fn read_all(archive: &Archive) -> u64 {
    let mut reader = archive.read_from(&Mark::default());
    let mut count = 0;
    while let Some(found) = reader.next().unwrap() {
        assert_eq!(found, frame(count), "frame {count}");
        count += 1;
    }
    let end = (0..count).fold(Mark::default(), |mark, n| mark.after(&frame(n)));
    assert_eq!(archive.end(), end, "the end after {count} frames");
    count
}

fn segments(sim: &SimDisk) -> Vec<PathBuf> {
    sim.files().into_iter().filter(|path| path.extension().is_some_and(|e| e == "archive")).collect()
}

#[test]
fn what_was_appended_comes_back_over_many_segments_and_goes_on() {
    let (sim, disk) = disk(1);
    for round in 0..4 {
        let archive = open(&disk);
        assert_eq!(read_all(&archive), round * 100, "frames at opening {round}");
        append(&archive, round * 100..round * 100 + 99);
        archive.note_store_durable(round * 100);
        append(&archive, round * 100 + 99..(round + 1) * 100);
        archive.sync().unwrap();
        assert_eq!(read_all(&archive), (round + 1) * 100);
        assert_eq!(archive.bytes(), segments(&sim).iter().map(|s| sim.contents(s).unwrap().len() as u64).sum::<u64>());
    }
    assert!(segments(&sim).len() >= 5, "expected several segments, found {:?}", segments(&sim));
    let archive = open(&disk);
    assert_eq!(archive.store_durable(), 301, "what the last frames say of the store");
    let middle = (0..250).fold(Mark::default(), |mark, n| mark.after(&frame(n)));
    let mut reader = archive.read_from(&middle);
    let first = reader.next().unwrap().unwrap().raft_index;
    assert!((150..=250).contains(&first), "reading from frame 250 begins at {first}: in the segment that holds it");
}

#[test]
fn crashes_keep_what_was_synced_and_cut_the_rest() {
    let seed = std::env::var("SAMOVAR_SEED").ok().and_then(|s| s.parse().ok());
    let seeds: Vec<u64> = seed.map_or_else(|| (0..40).map(|_| rand::random()).collect(), |seed| vec![seed]);
    for seed in seeds {
        println!("seed {seed}");
        let (sim, disk) = disk(seed);
        let mut rng = StdRng::seed_from_u64(seed);
        let mut synced = 0;
        for _ in 0..12 {
            let archive = open(&disk);
            let found = read_all(&archive);
            assert!(found >= synced, "seed {seed}: {synced} frames were synced, {found} are there");
            let first = found + rng.gen_range(0..60);
            append(&archive, found..first);
            archive.sync().unwrap();
            synced = first;
            append(&archive, first..first + rng.gen_range(0..60));
            sim.crash();
        }
    }
}

#[test]
fn damage_in_the_newest_segments_ends_the_archive_there() {
    let (sim, disk) = disk(2);
    let archive = open(&disk);
    append(&archive, 0..300);
    archive.sync().unwrap();
    drop(archive);
    let files = segments(&sim);
    let newest = files.last().unwrap();
    assert!(sim.flip_bit(newest, 8 * (sim.contents(newest).unwrap().len() as u64 / 2)));
    let archive = open(&disk);
    let found = read_all(&archive);
    assert!(found < 300, "a damaged frame was read");
    append(&archive, found..400);
    assert_eq!(read_all(&archive), 400);
    archive.sync().unwrap();
    drop(archive);
    // A newest segment of which nothing can be read, and the end of the one before it gone.
    let files = segments(&sim);
    sim.cut(&files[files.len() - 1], 10);
    sim.cut(&files[files.len() - 2], 9000);
    let archive = open(&disk);
    let found = read_all(&archive);
    append(&archive, found..500);
    archive.sync().unwrap();
    assert_eq!(read_all(&open(&disk)), 500);
}

#[test]
fn a_reader_names_the_damage_and_the_archive_can_end_there() {
    for what in ["flipped", "removed"] {
        let (sim, disk) = disk(3);
        let archive = open(&disk);
        append(&archive, 0..400);
        archive.sync().unwrap();
        let old = segments(&sim)[1].clone();
        match what {
            "flipped" => assert!(sim.flip_bit(&old, 8 * 60_000)),
            _ => sim.remove(&old).unwrap(),
        }
        let archive = open(&disk);
        let mut reader = archive.read_from(&Mark::default());
        let mut count = 0;
        let error = loop {
            match reader.next() {
                Ok(Some(_)) => count += 1,
                Ok(None) => panic!("{what}: the damage was not seen"),
                Err(error) => break error.to_string(),
            }
        };
        if what == "flipped" {
            assert!(error.contains(old.to_str().unwrap()), "the error names the file: {error}");
        }
        archive.end_at(reader, error.clone());
        assert_eq!(archive.damage(), Some(error));
        assert_eq!(read_all(&archive), count, "{what}");
        append(&archive, count..450);
        archive.sync().unwrap();
        assert_eq!(read_all(&open(&disk)), 450, "{what}");
    }
}

/// Checks all segments from the first on; mends what is damaged from the frames as they were.
fn pass(archive: &Archive) -> u64 {
    let (mut after, mut from, mut mended) = (0, Mark::default(), 0);
    while let Some(mut check) = archive.check_after(after, from) {
        after = check.number;
        from = loop {
            match check.advance(archive, 10_000).unwrap() {
                Progress::Read(bytes) => assert!((1..100_000).contains(&bytes), "{bytes} bytes for 10,000"),
                Progress::Whole(end) => break end,
                Progress::Damaged(_) => {
                    mended += 1;
                    let restate = |from: Mark, to: Mark, emit: &mut dyn FnMut(Frame) -> Result<(), Error>| {
                        let all = (0..).map(frame);
                        let lost = all.skip_while(|f| from.covers(f)).take_while(|f| to.covers(f));
                        lost.map(|f| Frame { place: None, ..f }).try_for_each(emit)
                    };
                    let end = Frame { place: Some(Vec::new()), lines: Vec::new(), ..frame(599) };
                    archive.seal(&check, &end).unwrap();
                    break archive.mend(&check, restate).unwrap();
                }
            }
        };
    }
    mended
}

#[test]
fn the_scrub_finds_every_damaged_segment_and_makes_it_again() {
    let (sim, disk) = disk(4);
    let archive = open(&disk);
    append(&archive, 0..600);
    archive.sync().unwrap();
    assert_eq!(pass(&archive), 0, "nothing is damaged yet");
    let files = segments(&sim);
    assert!(files.len() > 5, "{files:?}");
    sim.flip_bit(&files[0], 8 * 4100);
    sim.flip_bit(&files[2], 8 * 3);
    sim.remove(&files[3]).unwrap();
    sim.cut(&files[4], 50_000);
    let newest = files.last().unwrap();
    sim.flip_bit(newest, 8 * 5000);
    assert_eq!(pass(&archive), 5, "five segments are damaged, the newest among them");
    assert_eq!(pass(&archive), 0, "and whole afterwards");
    let status = archive.status();
    assert_eq!((status.damaged_segments, status.repaired_segments), (5, 5));
    append(&archive, 600..650);
    archive.sync().unwrap();
    let archive = open(&disk);
    let mut reader = archive.read_from(&Mark::default());
    let mut count = 0;
    while let Some(found) = reader.next().unwrap() {
        if found.place == Some(Vec::new()) {
            continue;
        }
        let place = found.place.clone();
        assert_eq!(found, Frame { place, ..frame(count) }, "frame {count}");
        count += 1;
    }
    assert_eq!(count, 650);
}
