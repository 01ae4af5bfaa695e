//! openraft's state machine: turns raft entries into [`Input`]s for the ledger.

use std::sync::{Arc, Mutex, PoisonError};

use openraft::storage::{RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, LogId, Snapshot, SnapshotMeta, StorageError, StorageIOError, StoredMembership};
use serde::{Deserialize, Serialize};

use super::{Applied, SnapshotStream, TypeConfig};
use crate::command::Command;
use crate::error::Error;
use crate::ledger::{HeadRow, Ledger};
use crate::machine::{Input, Position};
use crate::rt::CpuTimer;

type Failure = StorageError<u64>;
type Members = StoredMembership<u64, openraft::BasicNode>;

/// What openraft wants to find again: kept with every batch, opaque to the ledger.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Place {
    applied: Option<LogId<u64>>,
    membership: Members,
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
#[derive(Debug, Clone, Default)]
pub(crate) struct Durable(Arc<Mutex<Place>>);

impl Durable {
    /// Records that the state of this head is durable. Returns its place in the raft log.
    pub(crate) fn advance(&self, head: &HeadRow) -> Result<Option<LogId<u64>>, Error> {
        let place = Place::of(head)?;
        let applied = place.applied;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = place;
        Ok(applied)
    }

    fn snapshot(&self) -> Option<Snapshot<TypeConfig>> {
        let place = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let last = place.applied?;
        let meta = SnapshotMeta {
            last_log_id: Some(last),
            last_membership: place.membership,
            snapshot_id: format!("{}-{}", last.leader_id.term, last.index),
        };
        Some(Snapshot { meta, snapshot: Box::new(SnapshotStream) })
    }
}

/// The adapter.
pub(crate) struct StateMachine {
    ledger: Arc<Ledger>,
    place: Place,
    durable: Durable,
}

impl StateMachine {
    pub(crate) fn new(ledger: Arc<Ledger>, durable: Durable) -> Result<Self, Error> {
        let place = Place::of(&ledger.chain().head)?;
        Ok(Self { ledger, place, durable })
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
        Err(no_peers())
    }

    async fn install_snapshot(
        &mut self,
        _meta: &SnapshotMeta<u64, openraft::BasicNode>,
        _snapshot: Box<SnapshotStream>,
    ) -> Result<(), Failure> {
        Err(no_peers())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, Failure> {
        Ok(self.durable.snapshot())
    }
}

fn no_peers() -> Failure {
    let message = Error::Unavailable("a cluster of one receives no snapshots".into());
    StorageIOError::read_snapshot(None, &message).into()
}

impl RaftSnapshotBuilder<TypeConfig> for Durable {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, Failure> {
        self.snapshot().ok_or_else(|| {
            StorageIOError::read_snapshot(None, &Error::Unavailable("nothing is durable yet".into())).into()
        })
    }
}
