//! The receiving end of what peers ask of the consensus.

use std::sync::Arc;

use bytes::Bytes;
use openraft::Snapshot;
use openraft::raft::{AppendEntriesResponse, VoteRequest};
use tokio::sync::Mutex;

use super::core::Core;
use super::elect::{self, Heard};
use super::hand_over::{self, Permits};
use super::log::{EntryId, Vote};
use super::message::{self, Answer, Refused, Request};
use super::{SnapshotStream, log};
use crate::error::Error;
use crate::rt;
use crate::snapshot::Receiver;

/// A snapshot that is being received, and the vote of the leader that sends it.
#[derive(Default)]
pub(super) struct Receiving(Mutex<Option<(Vote, Receiver)>>);

/// What answers.
#[derive(Clone)]
pub(super) struct Responder {
    pub core: Core,
    pub heard: Heard,
    pub permits: Permits,
    pub receiving: Arc<Receiving>,
}

impl Responder {
    /// Answers what concerns the consensus, to the member `from`; gives back what does not.
    pub(super) async fn answer(&self, from: u64, request: Request) -> Result<Answer, Request> {
        let answered = match request {
            Request::Append { vote, previous, committed, entries } => {
                self.append(vote, previous, committed, entries).await
            }
            Request::Vote { vote, last } => self.vote(from, vote, last).await,
            Request::Permit { leader, to } => hand_over::permit(&self.core, &self.permits, from, leader, to).await,
            Request::TakeOver { leader, last } => hand_over::take_over(&self.core, from, leader, last).await,
            Request::PreVote { last } => self.pre_vote(from, last),
            Request::Clock => Ok(Answer::Clock { wall_ms: rt::now_ms() }),
            Request::SnapshotBegin { vote } => self.begin(vote).await,
            Request::SnapshotChunk { vote, chunk } => self.chunk(vote, chunk).await,
            Request::SnapshotInstall { vote, last, members } => self.install(vote, last, &members).await,
            other @ (Request::Write { .. } | Request::ReadIndex | Request::Round(_)) => return Err(other),
        };
        Ok(answered.unwrap_or_else(|e| Answer::Refused(Refused::Unavailable(e.to_string()))))
    }

    async fn append(
        &self,
        vote: Vote,
        previous: Option<EntryId>,
        committed: Option<EntryId>,
        entries: Vec<(EntryId, Bytes)>,
    ) -> Result<Answer, Error> {
        let request = message::append_request(vote, previous, committed, entries)?;
        let response = self.core.raft()?.append_entries(request).await;
        let response = response.map_err(|e| Error::Unavailable(e.to_string()))?;
        if !matches!(response, AppendEntriesResponse::HigherVote(_)) {
            self.heard.now();
        }
        Ok(Answer::append(response))
    }

    fn pre_vote(&self, from: u64, last: Option<EntryId>) -> Result<Answer, Error> {
        self.may_vote(from, last)?;
        elect::pre_vote(&self.core, &self.heard, last).map(Answer::PreVote)
    }

    /// Whether this node may vote for a member whose raft log ends with `last`.
    fn may_vote(&self, from: u64, last: Option<EntryId>) -> Result<(), Error> {
        let standing = &self.core.link().standing;
        standing.look(from, last).map_err(Error::Unavailable)?;
        standing.accusation().map_or(Ok(()), |why| Err(Error::Unavailable(why)))
    }

    async fn vote(&self, from: u64, vote: Vote, last: Option<EntryId>) -> Result<Answer, Error> {
        self.may_vote(from, last)?;
        hand_over::leave_for(&self.core, &self.permits, from, vote, last).await?;
        let request = VoteRequest { vote: message::raft_vote(vote), last_log_id: last.map(log::log_id) };
        let response = self.core.raft()?.vote(request).await.map_err(|e| Error::Unavailable(e.to_string()))?;
        if response.vote_granted {
            self.heard.now();
        }
        Ok(Answer::vote(&response))
    }

    /// Refuses a leader that was overtaken.
    async fn check(&self, vote: Vote) -> Result<(), Error> {
        let own = self.core.raft()?.with_raft_state(|state| *state.vote_ref()).await;
        let own = own.map_err(|e| Error::Unavailable(e.to_string()))?;
        if message::raft_vote(vote) < own {
            return Err(Error::Unavailable(format!("a snapshot of a leader of before: its vote is less than {own}")));
        }
        self.heard.now();
        Ok(())
    }

    async fn begin(&self, vote: Vote) -> Result<Answer, Error> {
        self.check(vote).await?;
        if self.core.ledger().staging.is_installing() {
            return Err(Error::Unavailable("the snapshot before is being put in place".into()));
        }
        let mut receiving = self.receiving.0.lock().await;
        // The one before lets go of its file first.
        *receiving = None;
        let receiver = Receiver::begin(Arc::clone(self.core.ledger())).await?;
        let mut has = Vec::new();
        receiver.has().encode(&mut has);
        *receiving = Some((vote, receiver));
        Ok(Answer::SnapshotBegin { has: has.into() })
    }

    async fn chunk(&self, vote: Vote, chunk: Bytes) -> Result<Answer, Error> {
        self.check(vote).await?;
        let mut receiving = self.receiving.0.lock().await;
        let (_, receiver) = receiving.as_mut().filter(|(from, _)| *from == vote).ok_or_else(not_begun)?;
        receiver.push_chunk(chunk).await?;
        Ok(Answer::SnapshotChunk)
    }

    async fn install(&self, vote: Vote, last: EntryId, members: &[u8]) -> Result<Answer, Error> {
        self.check(vote).await?;
        let meta = message::snapshot_meta(last, members)?;
        let receiver = {
            let mut receiving = self.receiving.0.lock().await;
            let begun = receiving.take_if(|(from, _)| *from == vote);
            begun.map(|(_, receiver)| receiver).ok_or_else(not_begun)?
        };
        if receiver.has().raft_index > last.index {
            drop(receiver);
            self.core.ledger().staging.discard()?;
            return Err(Error::Unavailable("more was received than the snapshot has: begin again".into()));
        }
        let snapshot = Snapshot { meta, snapshot: Box::new(SnapshotStream::Receiving(receiver)) };
        let response = self.core.raft()?.install_full_snapshot(message::raft_vote(vote), snapshot).await;
        let response = response.map_err(|e| Error::Unavailable(e.to_string()))?;
        self.heard.now();
        Ok(Answer::installed(&response))
    }
}

fn not_begun() -> Error {
    Error::Unavailable("no snapshot of this leader was begun here: begin again".into())
}
