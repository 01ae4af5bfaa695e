//! Who belongs to the cluster, and how that changes. Each change is an entry of the raft log, and so a block.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::error::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::{BasicNode, ChangeMembers, ServerState};

use super::Consensus;
use super::log::members_of;
use crate::error::Error;
use crate::planted::{Bug, planted};
use crate::view::Member;

/// A learner that lags so many raft entries behind, or fewer, can become a voter.
const PROMOTION_LAG_MAX: u64 = 1_000;

/// Who answered this node within this time is there.
const ANSWERED_WITHIN: Duration = Duration::from_secs(2);

impl Consensus {
    /// The members as this node knows them, by id.
    pub(crate) fn members(&self) -> Vec<Member> {
        let Ok(raft) = self.core.raft() else { return Vec::new() };
        let metrics = raft.metrics();
        let m = metrics.borrow();
        members_of(m.membership_config.membership())
    }

    /// Refuses what only the leader does.
    pub(crate) fn must_lead(&self) -> Result<(), Error> {
        let metrics = self.core.raft()?.metrics();
        let m = metrics.borrow();
        if m.state == ServerState::Leader { Ok(()) } else { Err(Error::NotLeader { leader: m.current_leader }) }
    }

    /// Takes a node in as a learner. Done again, it changes nothing.
    pub(crate) async fn add_learner(&self, node: u64, address: &str) -> Result<(), Error> {
        let known = self.members().into_iter().find(|member| member.node == node);
        match known {
            Some(member) if member.address == address => Ok(()),
            Some(member) => Err(Error::Invalid(format!("node {node} is a member already, at {}", member.address))),
            None => {
                let nodes = BTreeMap::from([(node, BasicNode::new(address))]);
                self.change(ChangeMembers::AddNodes(nodes), true).await
            }
        }
    }

    /// Says where a member is reached from now on.
    pub(crate) async fn set_address(&self, node: u64, address: &str) -> Result<(), Error> {
        if !self.members().iter().any(|member| member.node == node) {
            return Err(Error::NotFound(format!("node {node} in this cluster")));
        }
        let nodes = BTreeMap::from([(node, BasicNode::new(address))]);
        self.change(ChangeMembers::SetNodes(nodes), true).await
    }

    /// Makes a learner a voter.
    pub(crate) async fn promote(&self, node: u64) -> Result<(), Error> {
        let lag = {
            let metrics = self.core.raft()?.metrics();
            let m = metrics.borrow();
            if m.state != ServerState::Leader {
                return Err(Error::NotLeader { leader: m.current_leader });
            }
            let membership = m.membership_config.membership();
            if membership.voter_ids().any(|id| id == node) {
                return Ok(());
            }
            if membership.get_node(&node).is_none() {
                return Err(Error::NotFound(format!("node {node} in this cluster")));
            }
            let has = m.replication.as_ref().and_then(|r| r.get(&node)).and_then(|id| id.map(|id| id.index));
            // One that has nothing may not be there at all: as a voter it would count, and never answer.
            let Some(has) = has else {
                return Err(Error::Unavailable(format!("node {node} has nothing of the raft log yet")));
            };
            m.last_log_index.unwrap_or(0).saturating_sub(has)
        };
        if lag > PROMOTION_LAG_MAX {
            return Err(Error::Unavailable(format!(
                "node {node} is {lag} raft entries behind: it becomes a voter once that is {PROMOTION_LAG_MAX} or less"
            )));
        }
        self.change(ChangeMembers::AddVoterIds(BTreeSet::from([node])), true).await
    }

    /// Refuses a removal of a voter that leaves others of whom no majority answers: they could commit nothing any more, and meet
    /// no policy.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub(crate) fn may_remove(&self, node: u64) -> Result<(), Error> {
        let members = self.members();
        let stay: Vec<u64> = members.iter().filter(|m| m.voter && m.node != node).map(|m| m.node).collect();
        let answers = |id: &&u64| **id == self.core.node() || self.standing().answers(**id, ANSWERED_WITHIN);
        let up = stay.iter().filter(answers).count();
        if !stay.is_empty() && up <= stay.len() / 2 {
            return Err(Error::Unavailable(format!(
                "of the {} voters that stay without node {node} only {up} answer, which is no majority: the member stays; remove \
                 or replace those that are gone first",
                stay.len()
            )));
        }
        Ok(())
    }

    /// Takes a member out, voter or learner.
    pub(crate) async fn remove(&self, node: u64) -> Result<(), Error> {
        let members = self.members();
        let Some(member) = members.iter().find(|member| member.node == node) else {
            return Err(Error::NotFound(format!("node {node} in this cluster")));
        };
        if member.voter && members.iter().filter(|member| member.voter).count() == 1 {
            return Err(Error::Invalid(format!("node {node} is the only voter: a cluster has at least one")));
        }
        if planted(Bug::RemovedNodeVotes) {
            return Ok(());
        }
        let gone = BTreeSet::from([node]);
        let change = if member.voter { ChangeMembers::RemoveVoters(gone) } else { ChangeMembers::RemoveNodes(gone) };
        self.change(change, false).await
    }

    async fn change(&self, change: ChangeMembers<u64, BasicNode>, retain: bool) -> Result<(), Error> {
        match self.core.raft()?.change_membership(change, retain).await {
            Ok(_) => Ok(()),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to))) => {
                Err(Error::NotLeader { leader: to.leader_id })
            }
            Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(error))) => Err(match error {
                ChangeMembershipError::InProgress(_) => {
                    Error::Unavailable("another change of the members is not yet committed".into())
                }
                error @ (ChangeMembershipError::EmptyMembership(_) | ChangeMembershipError::LearnerNotFound(_)) => {
                    Error::Invalid(error.to_string())
                }
            }),
            Err(RaftError::Fatal(_)) => Err(Error::Unknown),
        }
    }
}
