//! What a node that does not lead asks of the one that does, and how that one answers: writes of clients, and up to where
//! the raft log must be applied for a linearizable read.
//!
//! The writes of a message to the leader get a name first (node, start, sequence). So they may be sent again, to whoever
//! leads then, when no answer comes: they stand together in one block, and apply does them once and gives the same outcomes.
//! What was proposed here without a name is not sent after its fate is in doubt.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use openraft::Raft;
use openraft::ServerState;
use openraft::error::{CheckIsLeaderError, RaftError};
use tokio::sync::{mpsc, oneshot};

use super::TypeConfig;
use super::core::Core;
use super::message::{self, Answer, Refused, Request, WriteError};
use super::peers::peer;
use super::propose::{Failure, Job, Proposer, ReadJob};
use crate::command::{Outcome, ProposalId, WriteCommand};
use crate::error::Error;
use crate::planted::{Bug, planted};
use crate::rt;
use crate::transport::{Lost, Peer};

/// How long a write looks for a leader that answers.
const WRITE_WAIT: Duration = Duration::from_secs(10);
/// How long a leader may take for the block of a write.
const LEADER_WAIT: Duration = Duration::from_secs(3);
/// How long a read looks for a leader that answers.
const READ_WAIT: Duration = Duration::from_secs(3);
/// How long a leader may take to confirm that it leads.
const CONFIRM_WAIT: Duration = Duration::from_millis(500);
/// How long this node may take to apply what the leader had applied.
const APPLY_WAIT: Duration = Duration::from_secs(10);
/// While a peer's write waits here, so often it is looked whether this node still leads.
const LEADERSHIP_LOOK: Duration = Duration::from_millis(100);
/// Pause between two tries.
const RETRY: Duration = Duration::from_millis(25);
/// Most writes in one message.
const WRITES_MAX: usize = 1024;

/// The leader that this node knows, if it is another.
fn leader(raft: &Raft<TypeConfig>, own: u64) -> Option<Peer> {
    let metrics = raft.metrics();
    let m = metrics.borrow();
    let id = m.current_leader.filter(|id| *id != own)?;
    m.membership_config.membership().get_node(&id).map(|known| peer(id, known))
}

fn no_leader() -> Error {
    Error::Unavailable(
        "there is no leader that answers: the cluster may have lost its quorum; nothing was written".into(),
    )
}

impl Proposer {
    /// Whether another node is known to lead.
    pub(super) fn follows(&self) -> bool {
        self.core.raft().is_ok_and(|raft| leader(&raft, self.core.node()).is_some())
    }

    /// Has the leader do writes; gives their outcomes, in their order.
    pub(super) async fn forward(&self, mut writes: Vec<WriteCommand>) -> Result<Vec<Outcome>, Error> {
        self.name(&mut writes);
        // Whether a try may have written them.
        let mut doubt = false;
        let deadline = rt::instant() + WRITE_WAIT;
        // Who has failed ends as soon as nothing is in flight any more.
        while rt::instant() < deadline && !self.core.has_failed() {
            match self.try_once(&mut writes).await {
                Ok(outcomes) => return Ok(outcomes),
                Err(WriteError::Refused(why)) if !doubt => return Err(Error::Unavailable(why)),
                // A try before this one may have written them.
                Err(WriteError::NotLeader(_) | WriteError::Refused(_)) => {}
                Err(WriteError::Unknown) => doubt = true,
            }
            rt::sleep(RETRY).await;
        }
        Err(if doubt { Error::Unknown } else { no_leader() })
    }

    fn name(&self, writes: &mut [WriteCommand]) {
        if planted(Bug::ForwardedWithoutName) {
            return;
        }
        let sequence = self.sequence.fetch_add(1, Relaxed);
        let id = ProposalId { node: self.core.node(), boot: self.core.link().start, sequence };
        for write in writes {
            write.proposal = Some(id);
        }
    }

    /// Sends the writes to the leader, or proposes them when that is this node by now.
    async fn try_once(&self, writes: &mut Vec<WriteCommand>) -> Result<Vec<Outcome>, WriteError> {
        let raft = self.core.raft().map_err(|_| WriteError::NotLeader(None))?;
        match leader(&raft, self.core.node()) {
            Some(leader) => self.ask(&leader, writes).await,
            None => {
                let count = writes.len();
                let outcomes = self.propose_here(writes, std::iter::once(count)).await?;
                outcomes.get(..count).map(<[_]>::to_vec).ok_or(WriteError::Unknown)
            }
        }
    }

    async fn ask(&self, leader: &Peer, writes: &mut Vec<WriteCommand>) -> Result<Vec<Outcome>, WriteError> {
        let count = writes.len();
        let request = Request::Write { writes: std::mem::take(writes) };
        let answer = self.core.link().ask(leader, &request, LEADER_WAIT).await;
        if let Request::Write { writes: sent } = request {
            *writes = sent;
        }
        match answer {
            Ok(Answer::Write(answers)) if answers.len() == count => answers.into_iter().collect(),
            Ok(Answer::Refused(_)) | Err(Lost::NotSent(_)) => Err(WriteError::NotLeader(None)),
            Ok(_) | Err(Lost::NoAnswer(_)) => Err(WriteError::Unknown),
        }
    }
}

impl WriteError {
    fn of(error: Error) -> Self {
        match error {
            Error::NotLeader { leader } => Self::NotLeader(leader),
            Error::Unknown => Self::Unknown,
            other => Self::Refused(other.to_string()),
        }
    }
}

/// Returns when everything acknowledged before the call is applied here.
pub(super) async fn read_index(core: &Core) -> Result<(), Error> {
    let deadline = rt::instant() + READ_WAIT;
    loop {
        let error = match confirmed(core).await {
            Ok(index) => return applied(core, index).await,
            Err(error) => error,
        };
        if rt::instant() > deadline {
            return Err(error);
        }
        rt::sleep(RETRY).await;
    }
}

/// The same, but only if this node leads.
pub(super) async fn read_index_here(core: &Core) -> Result<(), Error> {
    let raft = core.raft()?;
    let index = confirmed_here(&raft).await?.ok_or(Error::NotLeader { leader: None })?;
    applied(core, index).await
}

/// Raft index of the newest entry that a linearizable read must see, confirmed by a majority; `None`: another leads.
async fn confirmed_here(raft: &Raft<TypeConfig>) -> Result<Option<u64>, Error> {
    if planted(Bug::StaleRead) && raft.metrics().borrow().state == ServerState::Leader {
        return Ok(Some(0));
    }
    match raft.get_read_log_id().await {
        Ok((read, _)) => Ok(Some(read.map_or(0, |id| id.index))),
        Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(_))) => Ok(None),
        Err(error) => Err(Error::Unavailable(error.to_string())),
    }
}

/// The same, asked of the leader when that is another.
async fn confirmed(core: &Core) -> Result<u64, Error> {
    let raft = core.raft()?;
    if let Some(index) = confirmed_here(&raft).await? {
        return Ok(index);
    }
    let Some(leader) = leader(&raft, core.node()) else { return Err(Error::NotLeader { leader: None }) };
    match core.link().ask(&leader, &Request::ReadIndex, CONFIRM_WAIT).await {
        Ok(Answer::ReadIndex { index }) => Ok(index),
        Ok(_) => Err(Error::NotLeader { leader: None }),
        Err(lost) => Err(Error::Unavailable(lost.to_string())),
    }
}

async fn applied(core: &Core, index: u64) -> Result<(), Error> {
    let Some(applied) = core.ledger().applied(index) else { return Ok(()) };
    match rt::timeout(APPLY_WAIT, applied).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Error::Unavailable("the node is stopping".into())),
        Err(_) => Err(Error::Unavailable("this node is behind the leader".into())),
    }
}

/// Where the leader takes in what its peers send it.
pub(crate) struct Desk {
    /// Who asks.
    pub from: u64,
    pub writes: mpsc::Sender<Job>,
    pub reads: mpsc::Sender<ReadJob>,
    /// Whether there is room for a write.
    pub room: Result<(), Error>,
}

impl Desk {
    pub(super) async fn answer(&self, core: &Core, request: Request) -> Answer {
        match (self.refusal(core), request) {
            (Some(refused), _) => Answer::Refused(refused),
            (None, Request::Write { writes }) => self.write(core, writes).await,
            (None, Request::ReadIndex) => self.read_index(core).await,
            (None, _) => Answer::Refused(Refused::Unavailable("this is no question of a client".into())),
        }
    }

    /// Why this node does nothing for who asks, if so.
    fn refusal(&self, core: &Core) -> Option<Refused> {
        let raft = match core.raft() {
            Ok(raft) => raft,
            Err(error) => return Some(Refused::Unavailable(error.to_string())),
        };
        let metrics = raft.metrics();
        let m = metrics.borrow();
        if m.membership_config.membership().get_node(&self.from).is_none() {
            return Some(Refused::Unavailable("the node that asks is no member of the cluster".into()));
        }
        (m.state != ServerState::Leader).then_some(Refused::NotLeader(m.current_leader))
    }

    async fn write(&self, core: &Core, writes: Vec<WriteCommand>) -> Answer {
        let count = writes.len();
        if count > WRITES_MAX {
            return Answer::Refused(Refused::Unavailable(format!("more than {WRITES_MAX} writes in one message")));
        }
        Answer::Write(match self.queued(core, writes).await {
            Ok(outcomes) => outcomes.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(WriteError::of(error)); count],
        })
    }

    async fn queued(&self, core: &Core, writes: Vec<WriteCommand>) -> Result<Vec<Outcome>, Error> {
        self.room.clone()?;
        let (reply, mut answer) = oneshot::channel();
        let job = Job { writes, reply, accepts_clock: false, forwarded: true };
        self.writes.try_send(job).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => Error::Overloaded,
            mpsc::error::TrySendError::Closed(_) => Error::Unavailable("the leader is stopping".into()),
        })?;
        loop {
            match rt::timeout(LEADERSHIP_LOOK, &mut answer).await {
                Ok(answered) => return answered.unwrap_or(Err(Error::Unknown)),
                // Whoever asks may lead by now, and what waits here may wait for it.
                Err(_) if !core.raft().is_ok_and(|raft| raft.metrics().borrow().state == ServerState::Leader) => {
                    return Err(Error::Unknown);
                }
                Err(_) => {}
            }
        }
    }

    async fn read_index(&self, core: &Core) -> Answer {
        let unavailable = |why: &str| Answer::Refused(Refused::Unavailable(why.into()));
        let (reply, answer) = oneshot::channel();
        if self.reads.try_send(reply).is_err() {
            return unavailable("too many reads are waiting");
        }
        match answer.await {
            Ok(Ok(())) => Answer::ReadIndex { index: core.ledger().chain().head.raft_index },
            Ok(Err(error)) => unavailable(&error.to_string()),
            Err(_) => unavailable("the leader is stopping"),
        }
    }
}

/// Whether an answer says that writes were refused.
pub(crate) fn refuses_writes(answer: &Bytes) -> bool {
    let refused = |write: &Result<_, _>| matches!(write, Err(WriteError::Refused(_)));
    matches!(message::decode(answer), Ok(Answer::Write(writes)) if writes.iter().any(refused))
}

impl From<Failure> for WriteError {
    fn from(failure: Failure) -> Self {
        Self::of(failure.into())
    }
}
