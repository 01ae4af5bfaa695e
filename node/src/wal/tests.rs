use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::disk::sim::SimDisk;

mod damage;
mod fuzz;
mod model;

/// Small enough that a few dozen entries fill several.
const SMALL: Config = Config { segment_bytes: 8 << 10, cache_bytes_max: 2000 };

fn directory() -> PathBuf {
    PathBuf::from("/data/raft")
}

fn open(disk: &SimDisk) -> Result<Wal, Error> {
    Wal::open(Arc::new(disk.clone()), &directory(), &SMALL)
}

fn id(term: u64, index: u64) -> EntryId {
    EntryId { term, node: 1, index }
}

/// Runs a test in simulated time on a runtime of its own; whatever still works on the log then, ends with it.
fn simulate<F: Future>(seed: u64, test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        rt::simulate(seed, 0);
        test.await
    })
}

async fn wait(call: impl FnOnce(Done) -> Result<(), Error>) -> Result<(), Error> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    call(Box::new(move |result| drop(sender.send(result))))?;
    receiver.await.expect("a done is called")
}

async fn append(wal: &Wal, term: u64, indexes: Range<u64>, payload_bytes: usize) -> Result<(), Error> {
    let entries = indexes.map(|index| (id(term, index), payload(index, payload_bytes))).collect();
    wait(|done| wal.append(entries, done)).await
}

/// Bytes that differ from index to index and can be found in a file.
fn payload(index: u64, bytes: usize) -> Bytes {
    let mut payload = format!("<entry {index}>").into_bytes();
    payload.resize(payload.len().max(bytes), b'.');
    payload.into()
}

async fn indexes(wal: &Wal) -> Vec<u64> {
    wal.read(0..u64::MAX, usize::MAX).await.unwrap().iter().map(|(id, _)| id.index).collect()
}

fn holding(disk: &SimDisk, needle: &[u8]) -> Vec<PathBuf> {
    let holds = |path: &PathBuf| disk.contents(path).unwrap().windows(needle.len()).any(|window| window == needle);
    disk.files().into_iter().filter(holds).collect()
}

#[test]
fn a_release_with_seal_leaves_no_file_with_a_purged_entry() {
    for newest_too in [false, true] {
        let disk = SimDisk::new(1);
        simulate(1, async {
            let wal = open(&disk).unwrap();
            wait(|done| wal.save_vote(Vote { term: 1, node: 1, committed: false }, Some(done))).await.unwrap();
            append(&wal, 1, 0..10, 500).await.unwrap();
            append(&wal, 1, 10..14, 100).await.unwrap();
            let mark = if newest_too { 13 } else { 11 };
            assert!(!holding(&disk, b"<entry 11>").is_empty(), "the entry is found before");
            wal.purge(id(1, mark)).unwrap();
            wait(|done| wal.release(id(1, mark), true, done)).await.unwrap();
            for index in 0..14 {
                let found = holding(&disk, format!("<entry {index}>").as_bytes());
                assert_eq!(found.is_empty(), index <= mark, "entry {index} in {found:?}");
            }
        });
        disk.crash();
        simulate(2, async {
            let wal = open(&disk).unwrap();
            assert_eq!(wal.vote(), Some(Vote { term: 1, node: 1, committed: false }), "the vote moved along");
            let expected: Vec<u64> = if newest_too { vec![] } else { vec![12, 13] };
            assert_eq!(indexes(&wal).await, expected);
            append(&wal, 1, 14..15, 10).await.unwrap();
        });
    }
}

#[test]
fn a_purge_comes_back_until_it_is_released() {
    let disk = SimDisk::new(1);
    simulate(1, async {
        let wal = open(&disk).unwrap();
        append(&wal, 1, 0..10, 900).await.unwrap();
        wal.purge(id(1, 7)).unwrap();
        assert_eq!(indexes(&wal).await, [8, 9], "hidden at once");
        assert_eq!((wal.purged(), wal.last()), (Some(id(1, 7)), Some(id(1, 9))));
        append(&wal, 1, 10..11, 0).await.unwrap();
    });
    disk.crash();
    simulate(2, async {
        let wal = open(&disk).unwrap();
        assert_eq!(wal.purged(), None, "nobody said that state is durable");
        assert_eq!(indexes(&wal).await, (0..11).collect::<Vec<_>>());
        wait(|done| wal.release(id(1, 5), false, done)).await.unwrap();
        wal.purge(id(1, 7)).unwrap();
        wait(|done| wal.release(id(1, 5), false, done)).await.unwrap();
        assert_eq!(wal.purged(), Some(id(1, 7)));
    });
    disk.crash();
    simulate(3, async {
        let wal = open(&disk).unwrap();
        assert_eq!(wal.purged(), Some(id(1, 5)), "as far as state is durable");
        assert_eq!(indexes(&wal).await, (6..11).collect::<Vec<_>>());
    });
}

#[test]
fn entries_above_an_installed_snapshot_wait_for_its_release() {
    for released in [false, true] {
        let disk = SimDisk::new(1);
        simulate(1, async {
            let wal = open(&disk).unwrap();
            append(&wal, 1, 0..4, 0).await.unwrap();
            wal.purge(id(2, 100)).unwrap();
            let (sender, mut receiver) = tokio::sync::oneshot::channel();
            let done = Box::new(move |result| drop(sender.send(result)));
            wal.append(vec![(id(2, 101), payload(101, 0))], done).unwrap();
            rt::sleep(Duration::from_secs(1)).await;
            receiver.try_recv().expect_err("not acknowledged while a crash could leave a hole below");
            if released {
                wait(|done| wal.release(id(2, 100), false, done)).await.unwrap();
                receiver.await.expect("acknowledged now").unwrap();
            }
        });
        disk.crash();
        simulate(2, async {
            let wal = open(&disk).unwrap();
            let expected = if released { vec![101] } else { vec![0, 1, 2, 3] };
            assert_eq!(indexes(&wal).await, expected, "released: {released}");
            let next = expected.last().unwrap() + 1;
            append(&wal, 2, next..next + 1, 0).await.unwrap();
        });
        disk.crash();
        simulate(3, async {
            let next = if released { 102 } else { 4 };
            assert_eq!(indexes(&open(&disk).unwrap()).await.last(), Some(&next));
        });
    }
}

#[test]
fn a_full_disk_refuses_entries_and_still_takes_votes() {
    let disk = SimDisk::new(1);
    simulate(1, async {
        let wal = open(&disk).unwrap();
        append(&wal, 1, 0..1, 0).await.unwrap();
        disk.set_capacity(disk.used_bytes());
        let mut next = 1;
        let error = loop {
            match append(&wal, 1, next..next + 1, 1000).await {
                Ok(()) => next += 1,
                Err(error) => break error,
            }
            assert!(next < 100, "the disk is full");
        };
        assert!(matches!(error, Error::NoRoom { .. }), "{error:?}");
        assert_eq!(indexes(&wal).await.last(), Some(&(next - 1)), "what was refused is not there");
        for term in 2..9 {
            wait(|done| wal.save_vote(Vote { term, node: 2, committed: false }, Some(done))).await.unwrap();
        }
        disk.set_capacity(u64::MAX);
        append(&wal, 8, next..next + 20, 1000).await.expect("there is room again");
        assert_eq!(indexes(&wal).await.len() as u64, next + 20);
    });
    disk.crash();
    simulate(2, async {
        let wal = open(&disk).unwrap();
        assert_eq!(wal.vote(), Some(Vote { term: 8, node: 2, committed: false }));
        let all = indexes(&wal).await;
        assert_eq!(all, (0..all.len() as u64).collect::<Vec<_>>(), "no hole where entries were refused");
    });
}

#[test]
fn a_failed_fsync_is_final_and_what_it_lost_is_not_taken_for_durable() {
    let disk = SimDisk::new(1);
    simulate(1, async {
        let wal = open(&disk).unwrap();
        append(&wal, 1, 0..2, 0).await.unwrap();
        disk.fail_next_sync();
        append(&wal, 1, 2..3, 0).await.expect_err("told to fail");
        append(&wal, 1, 3..4, 0).await.expect_err("never retried");
        wait(|done| wal.save_vote(Vote { term: 1, node: 1, committed: false }, Some(done)))
            .await
            .expect_err("nor votes");
    });
    let all = simulate(2, async { indexes(&open(&disk).unwrap()).await });
    assert_eq!(all, [0, 1, 2], "the process starts again and finds the entry in the page cache");
    disk.crash();
    let all = simulate(3, async { indexes(&open(&disk).unwrap()).await });
    assert_eq!(all, [0, 1, 2], "what opening found it made durable");
}

#[test]
fn what_waits_shares_an_fsync_and_an_idle_log_does_not_grow() {
    let disk = SimDisk::new(1);
    simulate(1, async {
        let wal = open(&disk).unwrap();
        append(&wal, 1, 0..1, 0).await.unwrap();
        let before = wal.stats();
        let appends = (1..9).map(|index| append(&wal, 1, index..index + 1, 0));
        futures_util::future::try_join_all(appends).await.unwrap();
        let after = wal.stats();
        assert!(after.fsyncs - before.fsyncs <= 2, "eight appends at once: {before:?} to {after:?}");
        wal.save_committed(id(1, 8)).unwrap();
        rt::sleep(Duration::from_secs(1)).await;
        let idle = wal.stats();
        assert_eq!((idle.frames - after.frames, idle.fsyncs - after.fsyncs), (1, 0), "the mark, without an fsync");
        rt::sleep(Duration::from_secs(3600)).await;
        let last = wal.stats();
        assert_eq!((idle.frames, idle.bytes, idle.fsyncs), (last.frames, last.bytes, last.fsyncs));
    });
}

#[test]
fn a_thread_writes_what_is_left_when_the_log_is_dropped() {
    let directory = tempfile::tempdir().unwrap();
    let open = || Wal::open(Arc::new(crate::disk::OsDisk), &directory.path().join("raft"), &Config::default()).unwrap();
    for round in 0..20 {
        let wal = open();
        assert_eq!(wal.committed().map(|id| id.index), if round == 0 { None } else { Some(round - 1) });
        let (sender, receiver) = std::sync::mpsc::channel();
        wal.append(vec![(id(1, round), payload(round, 300))], Box::new(move |result| sender.send(result).unwrap()))
            .unwrap();
        receiver.recv().unwrap().unwrap();
        wal.save_committed(id(1, round)).unwrap();
    }
    assert_eq!(open().last(), Some(id(1, 19)));
}

#[test]
fn sizes_are_checked() {
    let disk = SimDisk::new(1);
    for segment_bytes in [0, 4096, 10_000, 2 << 30] {
        let config = Config { segment_bytes, ..SMALL };
        Wal::open(Arc::new(disk.clone()), &directory(), &config).err().expect("not a size of a segment");
    }
    simulate(1, async {
        let wal = open(&disk).unwrap();
        let limit = wal.entry_bytes_max as u64;
        let (fits, not) = (vec![0; wal.entry_bytes_max], vec![0; wal.entry_bytes_max + 1]);
        for index in 0..3 {
            wait(|done| wal.append(vec![(id(1, index), fits.clone().into())], done)).await.unwrap();
        }
        let error = wait(|done| wal.append(vec![(id(1, 3), not.into())], done)).await.expect_err("too large");
        assert!(matches!(error, Error::TooLarge { limit: found, .. } if found == limit), "{error:?}");
        wait(|done| wal.append(vec![(id(1, 2), Bytes::new())], done)).await.expect_err("not above the end");
        assert_eq!(indexes(&wal).await, [0, 1, 2]);
    });
}
