//! A snapshot goes from one ledger to another: to an empty one, to one that is behind, with a crash at every durable
//! operation of the receiver, and while values are being erased.

use bytes::BytesMut;

use super::*;
use crate::archive::Mark;
use crate::command::{OperationCommand, WriteCommand};
use crate::ledger::HeadRow;
use crate::machine::{Input, Position};
use crate::salts::SALT_BYTES;
use crate::snapshot::{Receiver, Sender};
use crate::store::outcomes;
use crate::view::{Change, Opening};

/// Who receives: a ledger without a node on it.
struct Peer {
    disk: SimDisk,
    rows: Arc<MemoryRows>,
}

impl Peer {
    fn new(seed: u64) -> Self {
        let disk = SimDisk::new(seed);
        disk.create_directory(&Config::new(DATA).data).unwrap();
        Self { disk, rows: Arc::default() }
    }

    fn open(&self) -> Result<Arc<Ledger>, Error> {
        let disk: Arc<dyn Disk> = Arc::new(self.disk.clone());
        Ok(Arc::new(Ledger::open(&disk, &Config::new(DATA).data, &Shelf::Memory(Arc::clone(&self.rows)))?))
    }

    fn staged(&self) -> Vec<std::path::PathBuf> {
        self.disk.files().into_iter().filter(|f| f.to_string_lossy().contains("snapshot")).collect()
    }
}

/// What a snapshot taken now ends with.
fn end(ledger: &Ledger) -> (Mark, Vec<u8>) {
    let head = ledger.sync(false).unwrap();
    (Mark::of(&head), head.raft)
}

/// Sends a snapshot; returns the sizes of its chunks.
async fn transfer(from: &Arc<Ledger>, to: &Arc<Ledger>, (end, place): (Mark, Vec<u8>)) -> Result<Vec<usize>, Error> {
    let mut sender = Sender::new(Arc::clone(from), end);
    let mut receiver = Receiver::begin(Arc::clone(to)).await?;
    sender.begin_after(receiver.has());
    let mut sizes = Vec::new();
    while let Some(chunk) = sender.next_chunk().await? {
        sizes.push(chunk.len());
        receiver.push_chunk(chunk).await?;
    }
    receiver.install(end.raft_index, place).await?;
    Ok(sizes)
}

fn chain_of(ledger: &Ledger) -> HeadRow {
    HeadRow { raft: Vec::new(), ..ledger.chain().head.clone() }
}

fn all_outcomes(ledger: &Ledger) -> Vec<(outcomes::RequestKey, Vec<u8>)> {
    let (mut all, mut next) = (Vec::new(), 0);
    while next < u64::MAX {
        let (page, after) = outcomes::page(&ledger.rows, next, u64::MAX).unwrap();
        all.extend(page);
        next = after;
    }
    all
}

/// Everything that can be asked of a ledger is answered the same.
fn assert_equal(a: &Ledger, b: &Ledger, what: &str) {
    assert_eq!(chain_of(a), chain_of(b), "{what}: the head");
    assert_eq!(a.chain().tree.root(), b.chain().tree.root(), "{what}: the Merkle root");
    assert_eq!(a.map.root().unwrap(), b.map.root().unwrap(), "{what}: the state root");
    let size = usize::try_from(a.chain().head.size).unwrap();
    for (x, y) in a.records(0, size).unwrap().iter().zip(b.records(0, size).unwrap()) {
        assert_eq!(x.line, y.line, "{what}: entry {}", x.index);
        assert_eq!(x.openings, y.openings, "{what}: what is left of the values of entry {}", x.index);
    }
    assert_eq!(all_outcomes(a), all_outcomes(b), "{what}: the answers kept for repetitions");
    let names = |ledger: &Ledger| ledger.chain().names.page(&ledger.rows, "", None, 1000).unwrap();
    assert_eq!(names(a), names(b), "{what}: the names of the keys");
    for name in names(a) {
        let key = Key::stored(name.clone());
        let versions = |ledger: &Ledger| {
            let page = ledger.history(&key, None, 1000).unwrap().versions;
            page.into_iter().map(|v| (v.revision, v.block, matches!(v.change, Change::Delete))).collect::<Vec<_>>()
        };
        assert_eq!(versions(a), versions(b), "{what}: the history of {name}");
        let half = a.chain().head.height / 2;
        for at in [None, Some(half)] {
            let read = |ledger: &Ledger| format!("{:?}", ledger.get(&key, at).map(|r| r.found));
            assert_eq!(read(a), read(b), "{what}: {name} at {at:?}");
        }
    }
    let full = a.chain().head.size >> 8;
    for index in 0..full {
        let tile = |ledger: &Ledger| ledger.tile(&ledger.chain(), 0, index, 256).unwrap();
        assert_eq!(tile(a), tile(b), "{what}: tile {index}");
    }
}

async fn write_one(node: &Node, operation: Operation) -> Committed {
    let write =
        Write { author: "client".into(), requirements: Vec::new(), operations: vec![operation], idempotency: None };
    match node.write(write).await.unwrap() {
        Outcome::Committed(committed) => committed,
        Outcome::Refused(refusal) => panic!("refused: {refusal:?}"),
    }
}

fn put(name: &str, bytes: usize) -> Operation {
    let value = BytesMut::zeroed(bytes).freeze();
    Operation::Put { key: Key::client(name).unwrap(), value, media_type: "text/plain".into(), blob: false }
}

fn erase(name: &str, revision: u64) -> Operation {
    Operation::Erase { key: Key::client(name).unwrap(), revision }
}

/// Has a follower apply the erase that brought the leader to a head, as from the raft log; not durable.
fn apply_erase(follower: &Ledger, head: &HeadRow, name: &str, revision: u64) {
    let operation = OperationCommand::Erase { key: Key::client(name).unwrap(), revision };
    let write = WriteCommand {
        author: "client".into(),
        requirements: Vec::new(),
        operations: vec![operation],
        idempotency: None,
        proposal: None,
    };
    let command = Command::Writes { time_ms: head.time_ms, writes: vec![write] };
    let position = Position { index: head.raft_index, opaque: b"{}".to_vec() };
    follower.apply(Input::Command(&command), position).unwrap();
}

/// A leader with a history: names are written, deleted, erased, written again.
async fn history(node: &Node, rng: &mut StdRng, serial: &mut u64) {
    Known::default().write(node, rng, serial, 40).await;
    let gone = write_one(node, put("erased", 300)).await.transaction;
    write_one(node, put("erased", 5000)).await;
    write_one(node, put("deleted", 10)).await;
    write_one(node, Operation::Delete { key: Key::client("deleted").unwrap() }).await;
    write_one(node, erase("erased", gone)).await;
    for _ in 0..70 {
        write_one(node, put("often", 20)).await;
    }
}

#[test]
fn a_snapshot_makes_an_equal_ledger_of_an_empty_one_and_of_one_behind() {
    const SEED: u64 = 21;
    let (machine, peer) = (Machine::new(SEED), Peer::new(SEED));
    let mut rng = StdRng::seed_from_u64(SEED);
    let mut serial = 0;
    simulate(SEED, async {
        let node = machine.start().await.unwrap();
        let leader = Arc::clone(&node.inner.ledger);
        let follower = peer.open().unwrap();
        for round in ["an empty one", "one behind", "one behind by nothing"] {
            if round != "one behind by nothing" {
                history(&node, &mut rng, &mut serial).await;
            }
            let sizes = transfer(&leader, &follower, end(&leader)).await.unwrap();
            println!("{round}: chunks of {sizes:?} bytes");
            assert_equal(&leader, &follower, round);
            assert!(peer.staged().is_empty(), "{round}: what was staged is gone: {:?}", peer.staged());
            // One frame, of a block of half a MiB and one write, may go beyond the size at which a chunk is sent.
            assert!(sizes.iter().all(|size| *size < 3 << 20), "{round}: a chunk of more than is bounded: {sizes:?}");
            assert_eq!(sizes.is_empty(), round == "one behind by nothing", "{round}");
        }
        node.stop().await;
        drop(follower);
        assert_equal(&leader, &peer.open().unwrap(), "after a restart of the receiver");
        peer.rows.lose();
        assert_equal(&leader, &peer.open().unwrap(), "rebuilt from the receiver's own archive");
    });
}

#[test]
fn a_transfer_goes_on_where_it_was_given_up_and_refuses_what_does_not_follow() {
    const SEED: u64 = 22;
    let (machine, peer) = (Machine::new(SEED), Peer::new(SEED));
    let mut rng = StdRng::seed_from_u64(SEED);
    let mut serial = 0;
    simulate(SEED, async {
        let node = machine.start().await.unwrap();
        let leader = Arc::clone(&node.inner.ledger);
        history(&node, &mut rng, &mut serial).await;
        for _ in 0..6 {
            write_one(&node, put("large", 1 << 20)).await;
        }
        let (end, place) = end(&leader);
        let follower = peer.open().unwrap();
        let mut sender = Sender::new(Arc::clone(&leader), end);
        let mut receiver = Receiver::begin(Arc::clone(&follower)).await.unwrap();
        let first = sender.next_chunk().await.unwrap().unwrap();
        receiver.push_chunk(first.clone()).await.unwrap();
        let has = receiver.has();
        drop(receiver);
        let mut receiver = Receiver::begin(Arc::clone(&follower)).await.unwrap();
        assert_eq!(receiver.has(), has, "what was staged is not sent twice");
        receiver.push_chunk(first.clone()).await.expect("a chunk that comes twice does no harm");
        let _skipped = sender.next_chunk().await.unwrap().unwrap();
        let beyond = sender.next_chunk().await.unwrap().unwrap();
        receiver.push_chunk(beyond).await.expect_err("a chunk is missing before it");
        for bad in [&b"\0"[..], b"\x05\0\0\0abcd", &first[..first.len() - 1]] {
            let mut receiver = Receiver::begin(Arc::clone(&follower)).await.unwrap();
            receiver.push_chunk(Bytes::copy_from_slice(bad)).await.expect_err("this is no chunk");
        }
        assert_eq!(chain_of(&follower), HeadRow::default(), "nothing is installed before the end");
        let mut receiver = Receiver::begin(Arc::clone(&follower)).await.unwrap();
        sender.begin_after(receiver.has());
        while let Some(chunk) = sender.next_chunk().await.unwrap() {
            receiver.push_chunk(chunk).await.unwrap();
        }
        receiver.install(end.raft_index, place).await.unwrap();
        assert_equal(&leader, &follower, "after a transfer in two parts");
        node.stop().await;
    });
}

/// A value erased while the snapshot is on its way: the receiver never has it, and applies the erase all the same.
#[test]
fn a_value_erased_after_the_snapshot_was_taken_does_not_travel() {
    const SEED: u64 = 23;
    let (machine, peer) = (Machine::new(SEED), Peer::new(SEED));
    simulate(SEED, async {
        let node = machine.start().await.unwrap();
        let leader = Arc::clone(&node.inner.ledger);
        let (kept, gone) = (
            write_one(&node, put("kept", 100)).await.transaction,
            write_one(&node, put("gone", 100)).await.transaction,
        );
        let taken = end(&leader);
        let at = chain_of(&leader);
        let erased = write_one(&node, erase("gone", gone)).await.transaction;
        let follower = peer.open().unwrap();
        transfer(&leader, &follower, taken).await.unwrap();
        assert_eq!(chain_of(&follower), at, "the ledger as it was when the snapshot was taken");
        let opening = |index| follower.record(index).unwrap().openings[0].1.clone();
        assert!(matches!(opening(kept), Opening::Value { .. }), "{:?}", opening(kept));
        assert_eq!(opening(gone), Opening::Erased { erased_by: erased });
        // The erase comes from the raft log then, as the leader applied it.
        apply_erase(&follower, &leader.chain().head, "gone", gone);
        assert_equal(&leader, &follower, "after the erase");
        node.stop().await;
    });
}

#[test]
fn a_receiver_that_crashes_at_any_durable_operation_has_all_of_the_snapshot_or_nothing() {
    const SEED: u64 = 24;
    let machine = Machine::new(SEED);
    let mut rng = StdRng::seed_from_u64(SEED);
    let mut serial = 0;
    simulate(SEED, async {
        let node = machine.start().await.unwrap();
        let leader = Arc::clone(&node.inner.ledger);
        history(&node, &mut rng, &mut serial).await;
        let erased = write_one(&node, put("volatile", 10)).await.transaction;
        let first = end(&leader);
        let before = chain_of(&leader);
        write_one(&node, erase("volatile", erased)).await;
        let after = chain_of(&leader);
        history(&node, &mut rng, &mut serial).await;
        let second = end(&leader);
        let mut total = 0;
        let mut cuts = vec![None];
        while let Some(cut) = cuts.pop() {
            let peer = Peer::new(SEED);
            let follower = peer.open().unwrap();
            transfer(&leader, &follower, first.clone()).await.unwrap();
            // The snapshot goes on from what is not durable yet.
            apply_erase(&follower, &after, "volatile", erased);
            let begun = peer.disk.durable_operations();
            if let Some((ordinal, point)) = cut {
                peer.disk.crash_at(begun + ordinal, point);
            }
            let done = transfer(&leader, &follower, second.clone()).await;
            drop(follower);
            let Some(cut) = cut else {
                total = peer.disk.durable_operations() - begun;
                let both = |ordinal| [CrashPoint::Before, CrashPoint::After].map(|point| Some((ordinal, point)));
                cuts = (1..=total).flat_map(both).collect();
                continue;
            };
            assert!(done.is_err(), "cut at {cut:?}: it was not cut");
            peer.disk.crash();
            peer.rows.crash(rng.gen_range(0..200));
            let follower = peer.open().unwrap_or_else(|e| panic!("cut at {cut:?}: {e}"));
            if [&before, &after].contains(&&chain_of(&follower)) {
                assert!(peer.staged().is_empty(), "cut at {cut:?}: {:?} is left", peer.staged());
                transfer(&leader, &follower, second.clone()).await.unwrap_or_else(|e| panic!("cut at {cut:?}: {e}"));
            }
            assert_equal(&leader, &follower, &format!("cut at {cut:?}"));
            assert_eq!(follower.chain().head.raft, second.1, "cut at {cut:?}: the place in the raft log");
            drop(follower);
            peer.rows.lose();
            assert_equal(&leader, &peer.open().unwrap(), &format!("cut at {cut:?}, rebuilt from the archive"));
        }
        assert!(total > 5, "receiving makes {total} durable operations only");
        println!("{total} durable operations, each cut before and after");
        node.stop().await;
    });
}

/// Who sends finds the damage long before the scrub would come to it: the peer must not wait for that.
#[test]
fn an_archive_that_a_snapshot_finds_damaged_is_mended_at_once() {
    const SEED: u64 = 25;
    let (machine, peer) = (Machine::new(SEED), Peer::new(SEED));
    let mut serial = 0;
    simulate(SEED, async {
        let node = machine.start().await.unwrap();
        let leader = Arc::clone(&node.inner.ledger);
        history(&node, &mut StdRng::seed_from_u64(SEED), &mut serial).await;
        let taken = end(&leader);
        let segment = Config::new(DATA).data.join("archive/0000000000000001.archive");
        assert!(machine.disk.flip_bit(&segment, 8 * 20_000), "{} is shorter", segment.display());
        let follower = peer.open().unwrap();
        let refused = transfer(&leader, &follower, taken.clone()).await;
        assert!(matches!(refused, Err(Error::Corrupt(_))), "a damaged archive gives {refused:?}");
        rt::sleep(Duration::from_secs(1)).await;
        transfer(&leader, &follower, end(&leader)).await.expect("the archive was made again from the store");
        assert_eq!(chain_of(&leader), chain_of(&follower));
        assert_eq!(leader.archive.status().repaired_segments, 1);
        node.stop().await;
    });
}

/// A bit that flips in the leader's salts must not cost a peer its whole copy of the value.
#[test]
fn a_damaged_salt_is_not_passed_on_to_a_peer() {
    const SEED: u64 = 26;
    let (machine, peer) = (Machine::new(SEED), Peer::new(SEED));
    let mut serial = 0;
    simulate(SEED, async {
        let node = machine.start().await.unwrap();
        let leader = Arc::clone(&node.inner.ledger);
        history(&node, &mut StdRng::seed_from_u64(SEED), &mut serial).await;
        let revision = write_one(&node, put("kept", 100)).await.transaction;
        let slot = leader.chain().head.slots - 1;
        let salts = Config::new(DATA).data.join("salts");
        assert!(machine.disk.flip_bit(&salts, 8 * SALT_BYTES as u64 * slot), "{} is shorter", salts.display());
        let follower = peer.open().unwrap();
        let refused = transfer(&leader, &follower, end(&leader)).await;
        let what = format!("revision {revision} is damaged");
        assert!(matches!(&refused, Err(Error::Corrupt(why)) if why.contains(&what)), "{refused:?}");
        node.stop().await;
    });
}
