//! A crash at every durable operation of a fixed workload, and damage of every kind to its files.

use super::*;
use crate::disk::sim::{CrashPoint, PAGE_BYTES};

/// What a log is to hold.
#[derive(Debug, Clone, Default, PartialEq)]
struct Content {
    vote: u64,
    purged: u64,
    /// Index to term.
    entries: BTreeMap<u64, u64>,
}

#[derive(Clone, Copy)]
enum Step {
    Vote(u64),
    Append { term: u64, from: u64, to: u64 },
    Truncate(u64),
    Purge { upto: u64, seal: bool },
}

/// Fills several segments; each step can be lost only until it is acknowledged.
const WORKLOAD: [Step; 14] = [
    Step::Vote(1),
    Step::Append { term: 1, from: 0, to: 6 },
    Step::Append { term: 1, from: 6, to: 16 },
    Step::Purge { upto: 3, seal: false },
    Step::Append { term: 1, from: 16, to: 30 },
    Step::Truncate(26),
    Step::Append { term: 2, from: 26, to: 33 },
    Step::Purge { upto: 12, seal: true },
    Step::Vote(2),
    Step::Append { term: 2, from: 33, to: 40 },
    Step::Purge { upto: 20, seal: false },
    Step::Append { term: 3, from: 40, to: 52 },
    Step::Purge { upto: 44, seal: true },
    Step::Append { term: 3, from: 52, to: 58 },
];

fn bytes_of(term: u64, index: u64) -> Bytes {
    payload(index * 1000 + term, 150 + usize::try_from(index % 7).unwrap() * 90)
}

impl Content {
    fn after(&self, step: Step) -> Self {
        let mut next = self.clone();
        match step {
            Step::Vote(term) => next.vote = term,
            Step::Append { term, from, to } => next.entries.extend((from..to).map(|index| (index, term))),
            Step::Truncate(from) => drop(next.entries.split_off(&from)),
            Step::Purge { upto, .. } => {
                next.purged = upto;
                next.entries = next.entries.split_off(&(upto + 1));
            }
        }
        next
    }

    /// What an opened log holds; each payload must be the one that was written.
    async fn of(wal: &Wal, case: &str) -> Self {
        let read = wal.read(0..u64::MAX, usize::MAX).await.unwrap();
        for (id, payload) in &read {
            assert_eq!(*payload, bytes_of(id.term, id.index), "{case}: entry {id:?} is not what was written");
        }
        Self {
            vote: wal.vote().map_or(0, |vote| vote.term),
            purged: wal.purged().map_or(0, |mark| mark.index),
            entries: read.iter().map(|(id, _)| (id.index, id.term)).collect(),
        }
    }
}

async fn perform(wal: &Wal, before: &Content, step: Step) -> Result<(), Error> {
    match step {
        Step::Vote(term) => wait(|done| wal.save_vote(Vote { term, node: 1, committed: false }, Some(done))).await,
        Step::Append { term, from, to } => {
            let entries = (from..to).map(|index| (id(term, index), bytes_of(term, index))).collect();
            wait(|done| wal.append(entries, done)).await
        }
        Step::Truncate(from) => wal.truncate(from),
        Step::Purge { upto, seal } => {
            let mark = id(before.entries[&upto], upto);
            wal.purge(mark)?;
            wait(|done| wal.release(mark, seal, done)).await
        }
    }
}

/// Runs the workload as far as the disk lets it: the states after each step acknowledged, from the empty one.
fn run_workload(disk: &SimDisk, seed: u64, quiet_end: bool) -> Vec<Content> {
    simulate(seed, async {
        let mut states = vec![Content::default()];
        let Ok(wal) = open(disk) else { return states };
        for step in WORKLOAD {
            let before = states.last().unwrap().clone();
            if perform(&wal, &before, step).await.is_err() {
                assert!(disk.is_dead(), "seed {seed}: a step failed without a crash");
                return states;
            }
            states.push(before.after(step));
        }
        if quiet_end {
            wal.save_committed(id(3, 57)).unwrap();
            rt::sleep(Duration::from_secs(1)).await;
        }
        states
    })
}

/// Whether `found` lies between what was acknowledged and what the next steps, in part or in whole, make of it.
fn is_between(found: &Content, acknowledged: &Content, rest: &[Step]) -> bool {
    // A truncation is acknowledged before it is durable, so it may come with the step after it.
    let mut reached = acknowledged.clone();
    for step in std::iter::once(None).chain(rest.iter().take(2).copied().map(Some)) {
        let before = reached.clone();
        reached = step.map_or(before.clone(), |step| before.after(step));
        let partial = Content {
            entries: reached
                .entries
                .iter()
                .filter(|e| found.entries.contains_key(e.0))
                .map(|(i, t)| (*i, *t))
                .collect(),
            ..reached.clone()
        };
        let keeps = before.entries.keys().all(|index| *index <= reached.purged || found.entries.contains_key(index));
        if *found == reached || (*found == partial && keeps) {
            return true;
        }
    }
    false
}

#[test]
fn a_crash_at_every_durable_operation_loses_nothing_acknowledged() {
    let whole = SimDisk::new(0);
    assert_eq!(run_workload(&whole, 0, false).len(), WORKLOAD.len() + 1, "without a crash every step is done");
    let operations = whole.durable_operations();
    let mut cases = 0;
    for ordinal in 1..=operations {
        for point in [CrashPoint::Before, CrashPoint::After] {
            for seed in 0..8 {
                let disk = SimDisk::new(seed);
                disk.crash_at(ordinal, point);
                let states = run_workload(&disk, 0, false);
                disk.crash();
                let case = format!("ordinal {ordinal} {point:?} seed {seed}");
                let found = simulate(seed, async {
                    let wal = open(&disk).unwrap_or_else(|error| panic!("{case}: refused without damage: {error}"));
                    Content::of(&wal, &case).await
                });
                // A truncation as the last step acknowledged may be undone.
                let done = states.len() - 1;
                let undone = done > 0 && matches!(WORKLOAD[done - 1], Step::Truncate(_));
                let from = if undone { done - 1 } else { done };
                let fits = is_between(&found, &states[from], &WORKLOAD[from..]);
                assert!(fits, "{case}: {done} steps acknowledged, so {:?}, found {found:?}", states[done]);
                cases += 1;
            }
        }
    }
    println!("{operations} durable operations, {cases} crashes");
    assert!(operations >= 30, "the workload is to touch the disk more than {operations} times");
}

#[derive(Debug, Clone, Copy)]
enum Damage {
    Bit,
    Page,
    Cut,
    Removal,
}

fn damage(disk: &SimDisk, rng: &mut StdRng, kind: Damage) -> String {
    let files = disk.files();
    let path = files[rng.gen_range(0..files.len())].clone();
    let bytes = disk.contents(&path).unwrap();
    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(1, |last| last + 1);
    let at = rng.gen_range(0..used as u64 * 8);
    match kind {
        Damage::Bit => assert!(disk.flip_bit(&path, at)),
        Damage::Page => assert!(disk.zero_page(&path, at / 8 / PAGE_BYTES as u64)),
        Damage::Cut => assert!(disk.cut(&path, usize::try_from(at / 8).unwrap())),
        Damage::Removal => disk.remove(&path).unwrap(),
    }
    disk.sync_directory(&directory()).unwrap();
    format!("{kind:?} of {} at byte {}", path.display(), at / 8)
}

#[test]
fn damage_is_refused_or_harmless_and_never_read() {
    let (mut right, mut cut, mut refused) = (0, 0, 0);
    for seed in 0..1200 {
        let mut rng = StdRng::seed_from_u64(seed);
        let disk = SimDisk::new(seed);
        let quiet_end = rng.gen_bool(0.5);
        let states = run_workload(&disk, 0, quiet_end);
        if !quiet_end {
            disk.crash();
        }
        let kind = [Damage::Bit, Damage::Page, Damage::Cut, Damage::Removal][rng.gen_range(0..4)];
        let case = format!("seed {seed}, {}", damage(&disk, &mut rng, kind));
        let (last, before) = (&states[WORKLOAD.len()], &states[WORKLOAD.len() - 1]);
        match simulate(seed, async { Ok(Content::of(&open(&disk)?, &case).await) }) {
            Ok(found) if found == *last => right += 1,
            Ok(found) => {
                assert!(!quiet_end || matches!(kind, Damage::Page), "{case}: lost what a later frame declares durable");
                assert!(is_between(&found, before, &WORKLOAD[WORKLOAD.len() - 1..]), "{case}: found {found:?}");
                cut += 1;
            }
            Err(Error::Corrupt(text)) => {
                let says = [".wal at offset ", "join", "backup"].iter().all(|part| text.contains(part));
                assert!(says, "{case}: the refusal is to name file, offset and repair: {text}");
                refused += 1;
            }
            Err(error) => panic!("{case}: {error:?}"),
        }
    }
    println!("of 1200 damages: {right} read right, {cut} cut at the newest frame, {refused} refused");
    assert!(right > 100 && cut > 10 && refused > 300, "{right} right, {cut} cut, {refused} refused");
}

#[test]
fn what_changes_under_an_open_log_is_not_read() {
    let (mut right, mut refused) = (0, 0);
    for seed in 0..300 {
        let mut rng = StdRng::seed_from_u64(seed);
        let disk = SimDisk::new(seed);
        simulate(seed, async {
            let wal = Wal::open(Arc::new(disk.clone()), &directory(), &Config { cache_bytes_max: 0, ..SMALL }).unwrap();
            let entries = (0..20).map(|index| (id(1, index), bytes_of(1, index))).collect();
            wait(|done| wal.append(entries, done)).await.unwrap();
            let case = format!("seed {seed}, {}", damage(&disk, &mut rng, Damage::Bit));
            for index in 0..20 {
                match wal.read(index..index + 1, usize::MAX).await {
                    Ok(read) => {
                        assert_eq!(read, [(id(1, index), bytes_of(1, index))], "{case}");
                        right += 1;
                    }
                    Err(error) => {
                        assert!(matches!(error, Error::Corrupt(_)), "{case}: {error:?}");
                        refused += 1;
                    }
                }
            }
        });
    }
    println!("{right} reads were right, {refused} refused");
    assert!(refused > 50, "one bit in an entry must be seen, {refused} of 300 were");
}

fn segment(number: u64) -> PathBuf {
    directory().join(format!("{number:016x}.wal"))
}

/// Queues an append whose frame reaches the disk and whose fsync does not.
async fn append_unsynced(disk: &SimDisk, wal: &Wal, entries: Vec<(EntryId, Bytes)>) {
    disk.crash_at(disk.durable_operations() + 1, CrashPoint::Before);
    wait(|done| wal.append(entries, done)).await.expect_err("the machine stops before the fsync");
}

#[test]
fn nothing_of_a_torn_tail_is_left_to_meet_new_frames() {
    let mut kept_behind = 0;
    for seed in 0..200 {
        let disk = SimDisk::new(seed);
        simulate(seed, async {
            let wal = open(&disk).unwrap();
            append(&wal, 1, 0..1, 0).await.unwrap();
            wal.save_committed(id(1, 0)).unwrap();
            rt::sleep(Duration::from_secs(1)).await;
            append_unsynced(&disk, &wal, vec![(id(1, 1), payload(1, 0))]).await;
        });
        disk.crash();
        let bytes = disk.contents(&segment(1)).unwrap();
        let is_kept = |frame: usize| bytes[4096 + frame * 512] != 0;
        kept_behind += u64::from(!is_kept(1) && is_kept(2));
        for restart in 0..2 {
            simulate(seed, async {
                let wal = open(&disk).unwrap_or_else(|error| panic!("seed {seed}, restart {restart}: {error}"));
                let next = wal.last().map_or(0, |last| last.index + 1);
                append(&wal, 2, next..next + 1, 0).await.unwrap();
            });
        }
    }
    assert!(kept_behind > 10, "a frame is to be lost with the one behind it kept, it was {kept_behind} times");
}

#[test]
fn a_segment_whose_beginning_was_torn_gets_the_vote_again() {
    let mut torn = 0;
    for seed in 0..200 {
        let disk = SimDisk::new(seed);
        let vote = Vote { term: 7, node: 2, committed: false };
        let acknowledged = simulate(seed, async {
            let wal = open(&disk).unwrap();
            wait(|done| wal.save_vote(vote, Some(done))).await.unwrap();
            append(&wal, 1, 0..1, 3400).await.unwrap();
            append_unsynced(&disk, &wal, vec![(id(1, 1), payload(1, 3000))]).await;
            wal.vote()
        });
        assert_eq!(acknowledged, Some(vote));
        disk.crash();
        let bytes = disk.contents(&segment(2)).unwrap();
        torn += u64::from(bytes[4096] == 0 && bytes[4096..].iter().any(|byte| *byte != 0));
        simulate(seed, async {
            let wal = open(&disk).unwrap();
            let next = wal.last().unwrap().index + 1;
            append(&wal, 1, next..next + 3, 200).await.unwrap();
            wal.purge(id(1, next)).unwrap();
            wait(|done| wal.release(id(1, next), false, done)).await.unwrap();
        });
        assert!(disk.contents(&segment(1)).is_none(), "seed {seed}: the segment that took the vote is gone");
        let found = simulate(seed, async { open(&disk).unwrap().vote() });
        assert_eq!(found, Some(vote), "seed {seed}");
    }
    assert!(torn > 10, "the beginning of the segment is to be torn, it was {torn} times");
}
