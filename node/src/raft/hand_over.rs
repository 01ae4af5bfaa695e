//! Planned change of the leader, with writes held and not refused.
//!
//! ```text
//! leader A                             every voter                  B, which is to lead
//!   permit: "vote for B in my next term" ─▶ if A leads here: noted
//!   holds new blocks, waits for those in flight, and until B has all
//!   "take over" ──────────────────────────────────────────────────▶ stands for election
//!                                      a permit for B: its vote  ◀── vote for me
//!                                      counts at once, though A
//!                                      was heard just now
//!   writes that were held go to B
//! ```
//!
//! A voter that hears a leader does not vote for another until its lease is over. A permit, which comes from that leader
//! itself and is good for one term and one node, ends the lease of that leader. If anything is in the way the old leader
//! goes on, or an election is held as after a crash: nothing is lost, it only takes longer.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use openraft::ServerState;
use openraft::raft::AppendEntriesRequest;

use super::Consensus;
use super::core::Core;
use super::elect::{self, View};
use super::log::{self, EntryId, Vote};
use super::message::{self, Answer, Request};
use super::propose::Proposer;
use crate::error::Error;
use crate::planted::{Bug, planted};
use crate::rt;
use crate::transport::Peer;

/// How long a permit is good, at whoever has it.
const PERMIT_LIFE: Duration = Duration::from_secs(1);
/// How long a peer may take to answer, with an fsync before it in the queue.
const ANSWER_WAIT: Duration = Duration::from_millis(300);
/// Writes are not held before the node that is to lead is so close to the end of the raft log, in entries …
const LAG_MAX: u64 = 64;
/// … for which it has so long.
const NEAR_WAIT: Duration = Duration::from_secs(2);
/// How long writes are held for blocks in flight, and until the node that is to lead has everything.
const LEVEL_WAIT: Duration = Duration::from_millis(500);
/// How long that node may take to lead from then on; writes are held meanwhile.
const ELECTION_WAIT: Duration = Duration::from_millis(500);
const POLL: Duration = Duration::from_millis(1);

/// The word of a leader that another may be voted for.
#[derive(Clone, Copy)]
struct Permit {
    /// The vote by which it leads.
    leader: Vote,
    to: u64,
    until: tokio::time::Instant,
}

/// The permit that this node has last got. Clones name the same one.
#[derive(Clone, Default)]
pub(super) struct Permits(Arc<Mutex<Option<Permit>>>);

impl Permits {
    fn note(&self, leader: Vote, to: u64) {
        let until = rt::instant() + PERMIT_LIFE;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Permit { leader, to, until });
    }

    /// Takes the permit for a vote, if it is there: it is good once.
    fn take(&self, vote: Vote, own: Vote) -> bool {
        let permit = self.0.lock().unwrap_or_else(PoisonError::into_inner).take_if(|permit| {
            permit.to == vote.node && permit.leader == own && vote.term == own.term + 1 && rt::instant() < permit.until
        });
        permit.is_some()
    }
}

/// The vote in force at this node.
async fn own_vote(core: &Core) -> Result<Vote, Error> {
    let own = core.raft()?.with_raft_state(|state| *state.vote_ref()).await;
    own.map(|vote| message::vote_of(&vote)).map_err(|e| Error::Unavailable(format!("the Raft core has stopped: {e}")))
}

/// Notes a permit that `from` gives, if it leads by `leader` as far as this node knows.
pub(super) async fn permit(core: &Core, permits: &Permits, from: u64, leader: Vote, to: u64) -> Result<Answer, Error> {
    let own = own_vote(core).await?;
    let given = from == leader.node && leader.committed && leader == own;
    if !given && !planted(Bug::PermitOfAnybody) {
        return Err(Error::Unavailable(format!("node {from} does not lead here, so it can hand nothing over")));
    }
    permits.note(own, to);
    Ok(Answer::Permit)
}

/// Before a vote of `from` is handed in: with a permit for it, the leader that gave it is left.
pub(super) async fn leave_for(
    core: &Core,
    permits: &Permits,
    from: u64,
    vote: Vote,
    last: Option<EntryId>,
) -> Result<(), Error> {
    let own = own_vote(core).await?;
    let behind = last < core.log().last_log_id().as_ref().map(log::entry_id);
    if from != vote.node || vote.committed || behind || !permits.take(vote, own) {
        return Ok(());
    }
    // Entries that follow on one that nobody has: openraft takes over the vote, which ends the lease of the leader, finds
    // that it lacks what comes before, and changes nothing else.
    let nowhere = log::log_id(EntryId { term: vote.term, node: vote.node, index: u64::MAX - 1 });
    let moves_vote = AppendEntriesRequest {
        vote: message::raft_vote(vote),
        prev_log_id: Some(nowhere),
        entries: Vec::new(),
        leader_commit: None,
    };
    let moved = core.raft()?.append_entries(moves_vote).await;
    moved.map(drop).map_err(|e| Error::Unavailable(e.to_string()))
}

/// Stands for election, if `from` leads by `leader` as far as this node knows, and this one has all of its raft log.
pub(super) async fn take_over(core: &Core, from: u64, leader: Vote, last: Option<EntryId>) -> Result<Answer, Error> {
    let own = own_vote(core).await?;
    if from != leader.node || leader != own {
        return Err(Error::Unavailable(format!("node {from} does not lead here, so it can hand nothing over")));
    }
    if core.log().last_log_id().as_ref().map(log::entry_id) < last {
        return Err(Error::Unavailable("this node lacks the end of the raft log".into()));
    }
    let begun = core.raft()?.trigger().elect().await;
    begun.map(|()| Answer::TakeOver).map_err(|e| Error::Unavailable(e.to_string()))
}

/// What a leader knows that is about to hand over.
struct Lead {
    vote: Vote,
    view: View,
    /// Other voters, the one with most of the raft log first, and how many entries each lacks.
    heirs: Vec<(Peer, u64)>,
    last: Option<EntryId>,
}

fn lead(core: &Core) -> Result<Lead, Error> {
    let raft = core.raft()?;
    let view = elect::view(&raft, core.node())?;
    let metrics = raft.metrics();
    let m = metrics.borrow();
    if m.state != ServerState::Leader {
        return Err(Error::NotLeader { leader: m.current_leader });
    }
    let last_index = m.last_log_index.unwrap_or(0);
    let lag = |node: u64| {
        let has = m.replication.as_ref().and_then(|r| r.get(&node)).and_then(|id| id.map(|id| id.index));
        last_index.saturating_sub(has.unwrap_or(0))
    };
    let mut heirs: Vec<_> = view.peers.iter().map(|peer| (peer.clone(), lag(peer.node))).collect();
    heirs.sort_unstable_by_key(|(peer, lag)| (*lag, peer.node));
    let last = core.log().last_log_id().as_ref().map(log::entry_id);
    Ok(Lead { vote: message::vote_of(&m.vote), view, heirs, last })
}

impl Consensus {
    /// Whether this node leads others, so that it has something to hand over.
    pub(crate) fn leads_others(&self) -> bool {
        lead(&self.core).is_ok_and(|lead| !lead.heirs.is_empty())
    }

    /// Hands the lead to another voter: `to`, or whichever is best off; says to which. Writes wait meanwhile.
    ///
    /// # Errors
    /// [`Error::NotLeader`]; [`Error::NotFound`] when `to` is no other voter; [`Error::Unavailable`] when nobody can take
    /// over now, in which case this node goes on, or an election is held.
    pub(crate) async fn hand_over(&self, proposer: &Proposer, to: Option<u64>) -> Result<u64, Error> {
        let lead = lead(&self.core)?;
        let eligible = |peer: &Peer| to.map_or_else(|| !self.clocks.is_off(peer.node), |to| to == peer.node);
        let heirs: Vec<_> = lead.heirs.iter().filter(|(peer, _)| eligible(peer)).collect();
        if heirs.is_empty() {
            return Err(to.map_or_else(
                || Error::Unavailable("there is no other voter to hand over to".into()),
                |to| Error::NotFound(format!("node {to} among the other voters")),
            ));
        }
        let mut last = Error::Unavailable("nobody can take over".into());
        for (heir, _) in heirs {
            match self.hand_over_to(proposer, heir).await {
                Ok(()) => return Ok(heir.node),
                Err(error @ Error::NotLeader { .. }) => return Err(error),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn hand_over_to(&self, proposer: &Proposer, heir: &Peer) -> Result<(), Error> {
        self.wait_for_heir(heir, LAG_MAX, NEAR_WAIT).await?;
        let Lead { vote, view, .. } = lead(&self.core)?;
        self.give_permits(vote, &view, heir).await?;
        // With a wrong clock nothing is proposed anyway, and what waits for another leader is in flight until then.
        let _held = match self.clocks.off_ms() {
            Some(_) => None,
            None => rt::timeout(LEVEL_WAIT, proposer.hold())
                .await
                .map_err(|_| Error::Unavailable("a block in flight was not finished in time".into()))?,
        };
        self.wait_for_heir(heir, 0, LEVEL_WAIT).await?;
        self.wait_for_answers().await?;
        let last = lead(&self.core)?.last;
        let asked = self.core.link().ask(heir, &Request::TakeOver { leader: vote, last }, ANSWER_WAIT).await;
        match asked {
            Ok(Answer::TakeOver) => {}
            Ok(_) => return Err(Error::Unavailable(format!("node {} does not take over", heir.node))),
            Err(lost) => return Err(Error::Unavailable(lost.to_string())),
        }
        let deadline = rt::instant() + ELECTION_WAIT;
        while rt::instant() < deadline {
            let leader = self.core.raft()?.metrics().borrow().current_leader;
            if leader == Some(heir.node) {
                return Ok(());
            }
            rt::sleep(POLL).await;
        }
        Err(Error::Unavailable(format!("node {} was not elected in time", heir.node)))
    }

    /// Waits until an heir lacks at most `lag` entries.
    async fn wait_for_heir(&self, heir: &Peer, lag: u64, within: Duration) -> Result<(), Error> {
        let deadline = rt::instant() + within;
        loop {
            let lacks = lead(&self.core)?.heirs.into_iter().find(|(peer, _)| peer.node == heir.node);
            let Some((_, lacks)) = lacks else {
                return Err(Error::NotFound(format!("node {} among the other voters", heir.node)));
            };
            if lacks <= lag {
                return Ok(());
            }
            if rt::instant() > deadline {
                return Err(Error::Unavailable(format!("node {} lacks {lacks} entries of the raft log", heir.node)));
            }
            rt::sleep(POLL).await;
        }
    }

    /// Waits until all of the raft log is applied here: what is in flight is answered by the node that proposed it.
    async fn wait_for_answers(&self) -> Result<(), Error> {
        let deadline = rt::instant() + LEVEL_WAIT;
        loop {
            let applied = {
                let metrics = self.core.raft()?.metrics();
                let m = metrics.borrow();
                m.last_applied.map(|id| id.index) == m.last_log_index
            };
            if applied {
                return Ok(());
            }
            if rt::instant() > deadline {
                return Err(Error::Unavailable("the end of the raft log was not applied in time".into()));
            }
            rt::sleep(POLL).await;
        }
    }

    /// Tells all voters that the heir may be voted for; it and a majority must have heard it.
    async fn give_permits(&self, vote: Vote, view: &View, heir: &Peer) -> Result<(), Error> {
        self.responder.permits.note(vote, heir.node);
        let request = Request::Permit { leader: vote, to: heir.node };
        let mut asked: FuturesUnordered<_> = view
            .peers
            .iter()
            .map(|peer| {
                let request = &request;
                async move { (peer.node, self.core.link().ask(peer, request, ANSWER_WAIT).await) }
            })
            .collect();
        let mut permitted = BTreeSet::from([self.core.node()]);
        while let Some((peer, answer)) = asked.next().await {
            if matches!(answer, Ok(Answer::Permit)) {
                permitted.insert(peer);
            }
            if permitted.contains(&heir.node) && view.is_majority(|id| permitted.contains(&id)) {
                return Ok(());
            }
        }
        Err(Error::Unavailable(format!("node {} and a majority of the voters do not answer", heir.node)))
    }
}

#[cfg(test)]
impl Consensus {
    /// A permit as the leader that this node knows would give it.
    pub(crate) fn permit_for(&self, to: u64) -> bytes::Bytes {
        let leader = message::vote_of(&self.core.raft().unwrap().metrics().borrow().vote);
        message::encode_request(self.core.link().asker(), &Request::Permit { leader, to })
    }

    /// Begins an election without asking anybody.
    pub(crate) async fn stand(&self) {
        self.core.raft().unwrap().trigger().elect().await.unwrap();
    }
}
