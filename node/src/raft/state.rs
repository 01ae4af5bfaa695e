//! openraft's state machine: turns raft entries into [`Input`]s for the ledger.

use std::sync::{Arc, Mutex, PoisonError};

use openraft::storage::{RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, LogId, Snapshot, SnapshotMeta, StorageError, StorageIOError, StoredMembership};
use serde::{Deserialize, Serialize};

use super::core::Applying;
use super::log::{RaftLog, members_of};
use super::{Applied, SnapshotStream, TypeConfig};
use crate::archive::Mark;
use crate::command::Command;
use crate::error::Error;
use crate::ledger::{HeadRow, Ledger};
use crate::machine::{Input, Position};
use crate::rt::CpuTimer;
use crate::snapshot::{Receiver, Sender};
use crate::view::Member;

type Failure = StorageError<u64>;
type Members = StoredMembership<u64, openraft::BasicNode>;

/// What openraft wants to find again: kept with every batch, opaque to the ledger.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Place {
    applied: Option<LogId<u64>>,
    membership: Members,
    /// Index that the newest snapshot from a peer ended with: nothing up to there needs to be in the raft log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    installed: Option<u64>,
}

/// See [`Place::installed`].
pub(super) fn installed(ledger: &Ledger) -> Result<Option<u64>, Error> {
    Ok(Place::of(&ledger.chain().head)?.installed)
}

/// The members as of the newest block.
pub(crate) fn latest_members(ledger: &Ledger) -> Result<Vec<Member>, Error> {
    Ok(members_of(Place::of(&ledger.chain().head)?.membership.membership()))
}

impl Place {
    fn of(head: &HeadRow) -> Result<Self, Error> {
        if head.raft.is_empty() {
            return Ok(Self::default());
        }
        serde_json::from_slice(&head.raft)
            .map_err(|e| Error::Corrupt(format!("the position in the raft log is damaged: {e}")))
    }

    fn encode(&self) -> Vec<u8> {
        // serde_json cannot fail on this type: its keys are numbers and its values plain.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// The newest state that survives a power cut; a snapshot for openraft, which may then purge its log.
#[derive(Clone)]
pub(crate) struct Durable {
    newest: Arc<Mutex<(Place, Mark)>>,
    ledger: Arc<Ledger>,
}

impl Durable {
    /// Nothing is known to be durable yet.
    pub(crate) fn new(ledger: Arc<Ledger>) -> Self {
        Self { newest: Arc::default(), ledger }
    }

    /// The ledger whose state it is.
    pub(super) fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// Records that the state of this head is durable. Returns its place in the raft log. Does not go back: who made a head
    /// durable may say so after a snapshot from a peer was put in place, and openraft has purged its log up to that one.
    pub(crate) fn advance(&self, head: &HeadRow) -> Result<Option<LogId<u64>>, Error> {
        let place = Place::of(head)?;
        let applied = place.applied;
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if newest.0.applied <= applied {
            *newest = (place, Mark::of(head));
        }
        Ok(applied)
    }

    /// Its place in the raft log.
    pub(super) fn applied(&self) -> Option<LogId<u64>> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner).0.applied
    }

    /// A snapshot as of there; of nothing, when nothing is durable yet.
    fn snapshot(&self) -> Snapshot<TypeConfig> {
        let (place, end) = self.newest.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Place { applied, membership, .. } = place;
        let (term, index) = applied.map_or((0, 0), |id| (id.leader_id.term, id.index));
        let meta =
            SnapshotMeta { last_log_id: applied, last_membership: membership, snapshot_id: format!("{term}-{index}") };
        let stream = SnapshotStream::Sending(Sender::new(Arc::clone(&self.ledger), end));
        Snapshot { meta, snapshot: Box::new(stream) }
    }
}

/// The adapter.
pub(crate) struct StateMachine {
    ledger: Arc<Ledger>,
    place: Place,
    durable: Durable,
    log: RaftLog,
    applying: Arc<Applying>,
}

impl StateMachine {
    pub(super) fn new(
        ledger: Arc<Ledger>,
        durable: Durable,
        log: RaftLog,
        applying: Arc<Applying>,
    ) -> Result<Self, Error> {
        let place = Place::of(&ledger.chain().head)?;
        Ok(Self { ledger, place, durable, log, applying })
    }

    /// Installs a snapshot. One that was handed over within the process, still at its sending end, is received first.
    async fn install(
        &mut self,
        meta: &SnapshotMeta<u64, openraft::BasicNode>,
        stream: SnapshotStream,
    ) -> Result<(), Error> {
        let nothing = || Error::Invalid("a snapshot of nothing".into());
        let last = meta.last_log_id.ok_or_else(nothing)?;
        let receiver = match stream {
            SnapshotStream::Receiving(receiver) => receiver,
            SnapshotStream::Sending(mut sender) => {
                let mut receiver = Receiver::begin(Arc::clone(&self.ledger)).await?;
                sender.begin_after(receiver.has());
                while let Some(chunk) = sender.next_chunk().await? {
                    receiver.push_chunk(chunk).await?;
                }
                receiver
            }
        };
        let place =
            Place { applied: Some(last), membership: meta.last_membership.clone(), installed: Some(last.index) };
        let head = receiver.install(last.index, place.encode()).await?;
        tracing::info!(raft_index = last.index, height = head.height, "a snapshot was put in place");
        self.place = place;
        self.durable.advance(&head)?;
        // The entries up to there go when openraft purges them, which it does next.
        self.log.release(last, false).await
    }

    fn apply_one(&mut self, entry: openraft::Entry<TypeConfig>) -> Result<Applied, Error> {
        self.place.applied = Some(entry.log_id);
        let index = entry.log_id.index;
        let outcomes = match entry.payload {
            EntryPayload::Blank => self.ledger.apply(Input::Nothing, self.position(index))?,
            EntryPayload::Membership(membership) => {
                let voters = membership.voter_ids().collect();
                let learners = membership.learner_ids().collect();
                self.place.membership = StoredMembership::new(Some(entry.log_id), membership);
                self.ledger.apply(Input::Membership { voters, learners }, self.position(index))?
            }
            EntryPayload::Normal(proposal) => {
                let mut timer = CpuTimer::start();
                let command = Command::decode(&proposal.0)?;
                let decode = &self.ledger.stages.decode;
                decode.fetch_add(timer.lap_ns(), std::sync::atomic::Ordering::Relaxed);
                self.ledger.apply(Input::Command(&command), self.position(index))?
            }
        };
        Ok(Applied(outcomes.into()))
    }

    fn position(&self, index: u64) -> Position {
        Position { index, opaque: self.place.encode() }
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotBuilder = Durable;

    async fn applied_state(&mut self) -> Result<(Option<LogId<u64>>, Members), Failure> {
        Ok((self.place.applied, self.place.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Applied>, Failure>
    where
        I: IntoIterator<Item = openraft::Entry<TypeConfig>> + Send,
        I::IntoIter: Send,
    {
        let mut answers = Vec::new();
        for entry in entries {
            let id = entry.log_id;
            let answer = self.apply_one(entry).map_err(|e| {
                tracing::error!(error = %e, raft_index = id.index, "apply failed; this node stops");
                self.applying.fail();
                self.ledger.suspicion.note_if_damaged(&e);
                StorageIOError::apply(id, &e)
            })?;
            answers.push(answer);
        }
        Ok(answers)
    }

    async fn get_snapshot_builder(&mut self) -> Durable {
        self.durable.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<SnapshotStream>, Failure> {
        let receiver = Receiver::begin(Arc::clone(&self.ledger)).await;
        let receiver = receiver.map_err(|e| StorageIOError::write_snapshot(None, &e))?;
        Ok(Box::new(SnapshotStream::Receiving(receiver)))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta<u64, openraft::BasicNode>,
        snapshot: Box<SnapshotStream>,
    ) -> Result<(), Failure> {
        self.install(meta, *snapshot).await.map_err(|e| {
            tracing::error!(error = %e, snapshot = %meta.snapshot_id, "a snapshot was not installed");
            // Nothing was changed then.
            if !matches!(e, Error::Unavailable(_)) {
                self.applying.fail();
            }
            self.ledger.suspicion.note_if_damaged(&e);
            StorageIOError::write_snapshot(Some(meta.signature()), &e).into()
        })
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, Failure> {
        Ok(Some(self.durable.snapshot()).filter(|snapshot| snapshot.meta.last_log_id.is_some()))
    }
}

impl RaftSnapshotBuilder<TypeConfig> for Durable {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, Failure> {
        Ok(self.snapshot())
    }
}
