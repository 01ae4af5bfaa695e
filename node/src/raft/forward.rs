//! What a node that does not lead asks of the one that does, and how that one answers: writes of clients, and up to where
//! the raft log must be applied for a linearizable read.
//!
//! A write that is sent to the leader gets a name first (node, start, sequence) unless its client gave it one. So it may be
//! sent again, to whoever leads then, when no answer comes: apply does it once and gives the same outcome. One that was
//! proposed here without a name is not sent after its fate is in doubt.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use openraft::Raft;
use openraft::ServerState;
use openraft::error::{CheckIsLeaderError, RaftError};
use tokio::sync::{mpsc, oneshot};

use super::TypeConfig;
use super::core::Core;
use super::message::{Answer, Refused, Request, WriteError};
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

/// A write on its way.
struct Pending {
    write: WriteCommand,
    /// Where its answer goes.
    at: usize,
    /// Whether a try may have written it.
    doubt: bool,
}

impl Proposer {
    /// Has the leader do writes; gives the results in their order.
    pub(super) async fn forward(&self, writes: Vec<WriteCommand>) -> Vec<Result<Outcome, Error>> {
        let mut results: Vec<Option<Result<Outcome, Error>>> = writes.iter().map(|_| None).collect();
        let named = writes.into_iter().map(|write| self.named(write)).enumerate();
        let mut pending: Vec<_> = named.map(|(at, write)| Pending { write, at, doubt: false }).collect();
        let deadline = rt::instant() + WRITE_WAIT;
        while !pending.is_empty() && rt::instant() < deadline {
            self.try_once(&mut pending, &mut results).await;
            if !pending.is_empty() {
                rt::sleep(RETRY).await;
            }
        }
        for Pending { at, doubt, .. } in pending {
            results[at] = Some(Err(if doubt { Error::Unknown } else { no_leader() }));
        }
        results.into_iter().map(|result| result.unwrap_or(Err(Error::Unknown))).collect()
    }

    fn named(&self, write: WriteCommand) -> WriteCommand {
        if write.idempotency.is_some() || write.proposal.is_some() || planted(Bug::ForwardedWithoutName) {
            return write;
        }
        let sequence = self.sequence.fetch_add(1, Relaxed);
        let id = ProposalId { node: self.core.node(), boot: self.core.link().start, sequence };
        WriteCommand { proposal: Some(id), ..write }
    }

    /// Sends what is pending to the leader, or proposes it when that is this node by now.
    async fn try_once(&self, pending: &mut Vec<Pending>, results: &mut [Option<Result<Outcome, Error>>]) {
        let Ok(raft) = self.core.raft() else { return };
        let mut writes: Vec<_> = pending.iter().map(|p| p.write.clone()).collect();
        let answers = match leader(&raft, self.core.node()) {
            Some(leader) => self.ask(&leader, writes).await,
            None => match self.propose_here(&mut writes).await {
                Ok(outcomes) => outcomes.iter().cloned().map(Ok).collect(),
                Err(failure) => vec![Err(WriteError::of(failure.into())); writes.len()],
            },
        };
        let mut answers = answers.into_iter();
        pending.retain_mut(|p| match answers.next() {
            Some(Ok(outcome)) => {
                results[p.at] = Some(Ok(outcome));
                false
            }
            // A try before this one may have written it.
            Some(Err(WriteError::Refused(why))) if !p.doubt => {
                results[p.at] = Some(Err(Error::Unavailable(why)));
                false
            }
            Some(Err(WriteError::NotLeader(_) | WriteError::Refused(_))) => true,
            Some(Err(WriteError::Unknown)) | None => {
                p.doubt = true;
                true
            }
        });
    }

    async fn ask(&self, leader: &Peer, writes: Vec<WriteCommand>) -> Vec<Result<Outcome, WriteError>> {
        let count = writes.len();
        let all = |error: WriteError| vec![Err(error); count];
        match self.core.link().ask(leader, &Request::Write { writes }, LEADER_WAIT).await {
            Ok(Answer::Write(answers)) if answers.len() == count => answers,
            Ok(Answer::Refused(_)) | Err(Lost::NotSent(_)) => all(WriteError::NotLeader(None)),
            Ok(_) | Err(Lost::NoAnswer(_)) => all(WriteError::Unknown),
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

/// Raft index of the newest entry that a linearizable read must see, confirmed by a majority.
async fn confirmed(core: &Core) -> Result<u64, Error> {
    let raft = core.raft()?;
    if planted(Bug::StaleRead) && raft.metrics().borrow().state == ServerState::Leader {
        return Ok(0);
    }
    match raft.get_read_log_id().await {
        Ok((read, _)) => return Ok(read.map_or(0, |id| id.index)),
        Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(_))) => {}
        Err(error) => return Err(Error::Unavailable(error.to_string())),
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
            (None, Request::Write { writes }) => self.write(writes).await,
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

    async fn write(&self, writes: Vec<WriteCommand>) -> Answer {
        if writes.len() > WRITES_MAX {
            return Answer::Refused(Refused::Unavailable(format!("more than {WRITES_MAX} writes in one message")));
        }
        let mut flights = Vec::with_capacity(writes.len());
        for write in writes {
            let (reply, answer) = oneshot::channel();
            let queued = self.room.clone().and_then(|()| {
                let job = Job { write, reply, accepts_clock: false, forwarded: true };
                self.writes.try_send(job).map_err(|e| match e {
                    mpsc::error::TrySendError::Full(_) => Error::Overloaded,
                    mpsc::error::TrySendError::Closed(_) => Error::Unavailable("the leader is stopping".into()),
                })
            });
            flights.push(queued.map(|()| answer));
        }
        let mut answers = Vec::with_capacity(flights.len());
        for flight in flights {
            let answer = match flight {
                Ok(answer) => answer.await.unwrap_or(Err(Error::Unknown)),
                Err(error) => Err(error),
            };
            answers.push(answer.map_err(WriteError::of));
        }
        Answer::Write(answers)
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

impl From<Failure> for WriteError {
    fn from(failure: Failure) -> Self {
        Self::of(failure.into())
    }
}
