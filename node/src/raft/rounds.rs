//! What nodes say to each other about checkpoints and blobs, carried as any other message of theirs.

use std::time::Duration;

use bytes::Bytes;
use openraft::ServerState;
use serde::{Deserialize, Serialize};

use super::Consensus;
use super::message::{Answer, Refused, Request};
use super::peers::peer;
use crate::command::Key;
use crate::error::Error;
use crate::identity::SEED_BYTES;
use crate::merkle::Hash;

/// The private half of a log key, on its way from one voter to another.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Secret(pub [u8; SEED_BYTES]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// A question about a checkpoint or a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Question {
    /// Cosign this head, once the raft log is applied up to `raft_index`. `state`: the state root of its block.
    Cosign { note: String, raft_index: u64, state: Hash },
    /// This checkpoint meets the policy: publish it, once the raft log is applied up to `raft_index`.
    Publish { note: String, raft_index: u64 },
    /// Which is the newest checkpoint?
    Newest,
    /// The latest-or-absent proof of a key, please.
    Proof { key: Key },
    /// Keep this log key, which an entry is to name: of the leader.
    KeepLogKey { secret: Secret },
    /// The log key with this public half, please: of a voter.
    LogKey { vkey: String },
    /// Which of these blobs do you lack? Get them from me, and keep for a while what you have. SHA-256 of each.
    Lacking { blobs: Vec<Hash> },
    /// Bytes of a blob from an offset on.
    Piece { blob: Hash, offset: u64 },
}

/// The answer to a [`Question`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// The line of a cosignature.
    Cosigned(String),
    /// A larger head was promised already, of so many entries.
    Promised(u64),
    /// The peer has another head of that size: its root.
    Differs(Hash),
    Published,
    /// The note, and the raft index up to which who publishes it must have applied.
    Newest(Option<(String, u64)>),
    Proof(String),
    LogKeyKept,
    LogKey(Secret),
    /// For a reason that may pass.
    Refused(String),
    /// Those it lacks.
    Lacks(Vec<Hash>),
    /// Bytes of a blob, none only at its end; and its length in bytes.
    Piece {
        size: u64,
        bytes: Bytes,
    },
}

impl Consensus {
    /// Asks a member something about checkpoints.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when it is no member, cannot be reached, or refuses.
    pub(crate) async fn ask(&self, node: u64, question: Question, within: Duration) -> Result<Reply, Error> {
        let to = {
            let metrics = self.core.raft()?.metrics();
            let m = metrics.borrow();
            m.membership_config.membership().get_node(&node).map(|known| peer(node, known))
        };
        let to = to.ok_or_else(|| Error::Unavailable(format!("node {node} is no member of the cluster")))?;
        match self.core.link().ask(&to, &Request::Round(question), within).await {
            Ok(Answer::Round(Reply::Refused(why)) | Answer::Refused(Refused::Unavailable(why))) => {
                Err(Error::Unavailable(why))
            }
            Ok(Answer::Round(reply)) => Ok(reply),
            Ok(_) => Err(Error::Unavailable("the peer answered another question".into())),
            Err(lost) => Err(Error::Unavailable(lost.to_string())),
        }
    }

    /// Whether this node leads, as far as it knows.
    pub(crate) fn leads(&self) -> bool {
        self.core.raft().is_ok_and(|raft| raft.metrics().borrow().state == ServerState::Leader)
    }

    /// The leader that this node knows, if it is another.
    pub(crate) fn other_leader(&self) -> Option<u64> {
        let leader = self.core.raft().ok()?.metrics().borrow().current_leader;
        leader.filter(|leader| *leader != self.core.node())
    }

    /// Ids of the voters, unless they are just changing.
    pub(crate) fn settled_voters(&self) -> Option<Vec<u64>> {
        let metrics = self.core.raft().ok()?.metrics();
        let m = metrics.borrow();
        let membership = m.membership_config.membership();
        (membership.get_joint_config().len() == 1).then(|| membership.voter_ids().collect())
    }

    /// Sends no more heartbeats as a leader, so that another is elected.
    pub(crate) fn fall_silent(&self) {
        if let Ok(raft) = self.core.raft() {
            raft.runtime_config().heartbeat(false);
        }
    }
}

#[cfg(test)]
impl Consensus {
    /// A question as this node sends it.
    pub(crate) fn message(&self, question: Question) -> bytes::Bytes {
        super::message::encode_request(self.core.link().asker(), &Request::Round(question))
    }
}

/// The reply in an answer to a [`Question`].
#[cfg(test)]
pub(crate) fn reply(answer: &bytes::Bytes) -> Reply {
    match super::message::decode(answer).unwrap() {
        Answer::Round(reply) => reply,
        other => panic!("another answer: {other:?}"),
    }
}
