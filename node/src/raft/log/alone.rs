//! The raft log of a node that is left of its cluster, read and changed while no Raft runs on it.

use std::collections::BTreeMap;

use openraft::{BasicNode, EntryPayload, LogId, Membership};

use super::{EntryId, RaftLog, Vote, decode, encode, log_id};
use crate::command::Command;
use crate::error::Error;
use crate::view::Member;

/// Bytes of entries read at once.
const READ_BYTES: usize = 4 << 20;

/// What a raft log holds beyond what is applied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Waiting {
    /// Raft entries.
    pub raft_entries: u64,
    /// Transactions in them.
    pub writes: u64,
    /// Most entries that they can add to the chain log.
    pub entries_max: u64,
}

/// The members that a membership names.
pub(crate) fn members_of(membership: &Membership<u64, BasicNode>) -> Vec<Member> {
    let voters: std::collections::BTreeSet<u64> = membership.voter_ids().collect();
    let nodes = membership.nodes();
    nodes.map(|(id, n)| Member { node: *id, address: n.addr.clone(), voter: voters.contains(id) }).collect()
}

impl RaftLog {
    /// The vote, the newest entry, and the newest one known to be committed.
    pub(crate) fn marks(&self) -> (Option<Vote>, Option<EntryId>, Option<EntryId>) {
        (self.wal.vote(), self.wal.last(), self.wal.committed())
    }

    /// Reads what lies above `applied`, and the newest membership that the log still holds.
    pub(crate) async fn look(&self, applied: u64) -> Result<(Waiting, Option<Vec<Member>>), Error> {
        let mut waiting = Waiting::default();
        let mut members = None;
        let mut at = self.wal.purged().map_or(0, |mark| mark.index + 1);
        let end = self.wal.last().map_or(0, |id| id.index + 1);
        while at < end {
            let read = self.wal.read(at..end, READ_BYTES).await?;
            let Some((last, _)) = read.last() else { break };
            at = last.index + 1;
            for (id, payload) in &read {
                let added = match decode(payload)? {
                    EntryPayload::Blank => 0,
                    EntryPayload::Membership(membership) => {
                        members = Some(members_of(&membership));
                        2
                    }
                    EntryPayload::Normal(_) if id.index <= applied => 0,
                    EntryPayload::Normal(proposal) => {
                        let writes = Command::decode(&proposal.0)?.writes().len() as u64;
                        waiting.writes += writes;
                        // A block entry, and a change of keys.
                        writes + 2
                    }
                };
                if id.index > applied {
                    waiting.raft_entries += 1;
                    waiting.entries_max += added;
                }
            }
        }
        Ok((waiting, members))
    }

    /// Makes `node` the only member: by an entry on top of all others, in a term above every one that was voted in. Durable when
    /// it returns.
    pub(crate) async fn leave_alone(&self, node: u64, address: &str) -> Result<LogId<u64>, Error> {
        let (vote, last, _) = self.marks();
        let term = vote.map_or(0, |vote| vote.term).max(last.map_or(0, |id| id.term)) + 1;
        let id = EntryId { term, node, index: last.map_or(0, |id| id.index + 1) };
        let nodes = BTreeMap::from([(node, BasicNode::new(address))]);
        let membership = Membership::new(vec![[node].into()], nodes);
        let payload = encode(&EntryPayload::Membership(membership))?;
        let vote = Vote { term, node, committed: false };
        self.durably(|done| self.wal.save_vote(vote, Some(done))).await?;
        self.durably(|done| self.wal.append(vec![(id, payload)], done)).await?;
        Ok(log_id(id))
    }
}
