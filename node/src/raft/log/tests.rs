use std::collections::BTreeSet;

use openraft::storage::{RaftLogStorageExt, RaftStateMachine, Snapshot};
use openraft::testing::{StoreBuilder, Suite};
use openraft::{BasicNode, Membership, SnapshotMeta, StoredMembership};

use super::*;
use crate::disk::OsDisk;
use crate::ledger::Ledger;
use crate::raft::state::{Durable, StateMachine};
use crate::raft::{Applied, SnapshotStream};
use crate::store::Shelf;

/// The real state machine; as the owner of the log, it makes its state durable as soon as it changed.
struct Machine {
    inner: StateMachine,
    ledger: Arc<Ledger>,
    durable: Durable,
    log: RaftLog,
}

impl Machine {
    fn open(directory: &Path, log: RaftLog) -> Result<Self, Error> {
        let disk: Arc<dyn Disk> = Arc::new(OsDisk);
        let ledger = Arc::new(Ledger::open(&disk, directory, &Shelf::Memory(Arc::default()))?);
        let durable = Durable::new(Arc::clone(&ledger));
        let inner = StateMachine::new(Arc::clone(&ledger), durable.clone(), log.clone(), Arc::default())?;
        Ok(Self { inner, ledger, durable, log })
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotBuilder = Durable;

    async fn applied_state(&mut self) -> Result<(Option<LogId<u64>>, StoredMembership<u64, BasicNode>), Failure> {
        self.inner.applied_state().await
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Applied>, Failure>
    where
        I: IntoIterator<Item = Entry<TypeConfig>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<_> = entries.into_iter().collect();
        let applied = self.inner.apply(entries).await?;
        let head = self.ledger.sync(false).unwrap();
        if let Some(id) = self.durable.advance(&head).unwrap() {
            self.log.release(id, false).await.unwrap();
        }
        Ok(applied)
    }

    async fn get_snapshot_builder(&mut self) -> Durable {
        self.inner.get_snapshot_builder().await
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<SnapshotStream>, Failure> {
        self.inner.begin_receiving_snapshot().await
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta<u64, BasicNode>,
        snapshot: Box<SnapshotStream>,
    ) -> Result<(), Failure> {
        self.inner.install_snapshot(meta, snapshot).await
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, Failure> {
        self.inner.get_current_snapshot().await
    }
}

struct InTemporaryDirectory;

impl StoreBuilder<TypeConfig, RaftLog, Machine, tempfile::TempDir> for InTemporaryDirectory {
    async fn build(&self) -> Result<(tempfile::TempDir, RaftLog, Machine), Failure> {
        let directory = tempfile::tempdir().unwrap();
        let log = open(directory.path());
        let machine = Machine::open(directory.path(), log.clone()).unwrap();
        Ok((directory, log, machine))
    }
}

fn open(directory: &Path) -> RaftLog {
    RaftLog::open(Arc::new(OsDisk), &directory.join("raft"), 1, &wal::Config::default()).unwrap()
}

fn at(term: u64, index: u64) -> LogId<u64> {
    LogId::new(CommittedLeaderId::new(term, 1), index)
}

fn normal(term: u64, index: u64, bytes: &'static [u8]) -> Entry<TypeConfig> {
    Entry { log_id: at(term, index), payload: EntryPayload::Normal(Proposal(Bytes::from_static(bytes))) }
}

#[test]
fn the_suite_of_openraft_passes() {
    Suite::test_all(InTemporaryDirectory).unwrap();
}

#[test]
fn the_bytes_of_an_entry_stay_what_they_are() {
    let nodes = [(1, BasicNode::new("a:8444")), (2, BasicNode::new("b:8444"))];
    let configs = vec![BTreeSet::from([1]), BTreeSet::from([1, 2])];
    let membership = Membership::new(configs, std::collections::BTreeMap::from(nodes));
    let json = br#"{"configs":[[1],[1,2]],"nodes":{"1":{"addr":"a:8444"},"2":{"addr":"b:8444"}}}"#;
    let cases = [
        (EntryPayload::Blank, b"\x01\x00".to_vec()),
        (EntryPayload::Normal(Proposal(Bytes::from_static(b"xyz"))), b"\x01\x01xyz".to_vec()),
        (EntryPayload::Membership(membership), [b"\x01\x02".as_slice(), json].concat()),
    ];
    for (payload, golden) in cases {
        let encoded = encode(&payload).unwrap();
        assert_eq!(encoded, golden, "{}", String::from_utf8_lossy(&encoded));
        assert_eq!(decode(&encoded).unwrap(), payload);
    }
    for bad in [&b""[..], b"\x01", b"\x02\x00", b"\x01\x03", b"\x01\x00x", b"\x01\x02{"] {
        decode(&Bytes::copy_from_slice(bad)).expect_err("no entry of this version");
    }
}

#[tokio::test]
async fn what_was_saved_is_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let mut log = open(directory.path());
    log.save_vote(&openraft::Vote::new(3, 2)).await.unwrap();
    log.blocking_append([normal(3, 0, b"a"), normal(3, 1, b"b"), normal(3, 2, b"c")]).await.unwrap();
    log.save_committed(Some(at(3, 1))).await.unwrap();
    log.truncate(at(3, 2)).await.unwrap();
    log.purge(at(3, 0)).await.unwrap();
    log.release(at(3, 0), true).await.unwrap();
    assert!(log.stats().fsyncs > 0 && log.stats().frames > 0, "{:?}", log.stats());
    drop(log);

    let mut log = open(directory.path());
    assert_eq!(log.read_vote().await.unwrap(), Some(openraft::Vote::new(3, 2)));
    assert_eq!(log.read_committed().await.unwrap(), Some(at(3, 1)));
    assert_eq!((log.purged(), log.last_log_id()), (Some(at(3, 0)), Some(at(3, 1))));
    let entries = log.try_get_log_entries(..).await.unwrap();
    assert_eq!(entries, [normal(3, 1, b"b")]);
}

#[tokio::test]
async fn our_own_vote_comes_back_uncommitted_and_that_of_others_does_not() {
    let directory = tempfile::tempdir().unwrap();
    for (node, committed) in [(1, false), (2, true)] {
        let mut log = open(directory.path());
        let term = 10 + node;
        log.save_vote(&openraft::Vote::new(term, node)).await.unwrap();
        let fsyncs = log.stats().fsyncs;
        log.save_vote(&openraft::Vote::new_committed(term, node)).await.unwrap();
        assert_eq!(log.stats().fsyncs, fsyncs, "learning of the quorum needs no fsync");
        drop(log);
        let vote = open(directory.path()).read_vote().await.unwrap().expect("a vote was saved");
        assert_eq!((vote.leader_id.node_id, vote.leader_id.term, vote.committed), (node, term, committed));
    }
}

#[tokio::test]
async fn replication_reads_in_bounded_pieces() {
    let directory = tempfile::tempdir().unwrap();
    let mut log = open(directory.path());
    static MEBIBYTE: [u8; 1 << 20] = [7; 1 << 20];
    log.blocking_append((0..10).map(|index| normal(1, index, &MEBIBYTE))).await.unwrap();
    let read = log.limited_get_log_entries(2, 10).await.unwrap();
    assert_eq!(read.first().map(|entry| entry.log_id.index), Some(2));
    assert!((1..=4).contains(&read.len()), "{} entries of 1 MiB, bound {REPLICATION_BYTES_MAX}", read.len());
    assert_eq!(log.try_get_log_entries(2..10).await.unwrap().len(), 8, "apply gets all it asks for");
}
