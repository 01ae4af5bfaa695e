//! What peers say to each other, as bytes: a version byte, then the message in postcard. Every node must read what one of
//! the neighbouring version sends, so golden bytes hold the encodings.

use bytes::Bytes;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse};
use openraft::{Entry, SnapshotMeta};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::TypeConfig;
use super::log::{self, EntryId, Vote};
use super::rounds::{Question, Reply};
use crate::command::{Outcome, WriteCommand};
use crate::error::Error;

const VERSION: u8 = 1;
/// Bytes of an [`Asker`].
const ASKER_BYTES: usize = 16;

/// A question to a peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Raft: append entries, or none as a heartbeat.
    Append { vote: Vote, previous: Option<EntryId>, committed: Option<EntryId>, entries: Vec<(EntryId, Bytes)> },
    /// Raft: vote for me.
    Vote { vote: Vote, last: Option<EntryId> },
    /// Would you vote for me now? Changes nothing.
    PreVote { last: Option<EntryId> },
    /// A snapshot follows: how far are you?
    SnapshotBegin { vote: Vote },
    /// The next chunk of it.
    SnapshotChunk { vote: Vote, chunk: Bytes },
    /// That was all of it: install it. `members`: JSON of the membership as of its end.
    SnapshotInstall { vote: Vote, last: EntryId, members: Bytes },
    /// Writes of clients, each under a name: propose them.
    Write { writes: Vec<WriteCommand> },
    /// Up to where must be applied what is read now?
    ReadIndex,
    /// I lead by this vote: vote for node `to` in the next term, though you hear me.
    Permit { leader: Vote, to: u64 },
    /// I lead by this vote, and my raft log ends with `last`: stand for election now.
    TakeOver { leader: Vote, last: Option<EntryId> },
    /// What time is it?
    Clock,
    /// About a checkpoint or a blob.
    Round(Question),
}

/// The answer to a [`Request`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Answer {
    Append(AppendAnswer),
    Vote {
        vote: Vote,
        granted: bool,
        last: Option<EntryId>,
    },
    PreVote(PreVoteAnswer),
    /// How far the ledger is with what was received, as the archive encodes it.
    SnapshotBegin {
        has: Bytes,
    },
    SnapshotChunk,
    SnapshotInstall {
        vote: Vote,
    },
    /// One for each write.
    Write(Vec<Result<Outcome, WriteError>>),
    ReadIndex {
        index: u64,
    },
    /// The peer cannot do what was asked; nothing was done.
    Refused(Refused),
    Permit,
    TakeOver,
    /// By the wall clock, milliseconds since 1970.
    Clock {
        wall_ms: u64,
    },
    /// About a checkpoint or a blob.
    Round(Reply),
}

/// See [`AppendEntriesResponse`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum AppendAnswer {
    Success,
    Partial(Option<EntryId>),
    Conflict,
    HigherVote(Vote),
}

/// What a peer thinks of an election now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum PreVoteAnswer {
    Yes,
    /// It heard a leader lately: ask again in so many milliseconds.
    Later(u64),
    /// It leads, or has more in its raft log.
    No,
}

/// Why one of several writes has no outcome.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum WriteError {
    /// Nothing was written: this node does not lead.
    NotLeader(Option<u64>),
    /// Nothing was written: no room, too much waiting, or the node stops.
    Refused(String),
    /// Whether it was written is not known.
    Unknown,
}

/// Why a peer did nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Refused {
    /// It does not lead; perhaps it knows who does.
    NotLeader(Option<u64>),
    /// For a reason that may pass.
    Unavailable(String),
    /// Something speaks against who asks: it is no member that can be served.
    Member(String),
    /// It belongs to another cluster than who asks, and which.
    Cluster { cluster: u64, why: String },
}

/// Encodes a message.
pub(crate) fn encode<T: Serialize>(message: &T) -> Bytes {
    // postcard fails on sequences of unknown length only, and there are none.
    postcard::to_extend(message, vec![VERSION]).unwrap_or_default().into()
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asker {
    /// Number of the node's start.
    pub(super) start: u64,
    /// Its cluster.
    pub(super) cluster: u64,
}

/// Encodes a question: who asks, both numbers as u64 BE, then the message.
pub(crate) fn encode_request(asker: Asker, request: &Request) -> Bytes {
    let mut bytes = [asker.start.to_be_bytes(), asker.cluster.to_be_bytes()].concat();
    bytes.push(VERSION);
    // As in [`encode`].
    postcard::to_extend(request, bytes).unwrap_or_default().into()
}

/// Decodes a question.
///
/// # Errors
/// As [`decode`].
pub(crate) fn decode_request(bytes: &Bytes) -> Result<(Asker, Request), Error> {
    let asker = asker(bytes).ok_or_else(|| Error::Invalid("a message of a peer is too short".into()))?;
    Ok((asker, decode(&bytes.slice(ASKER_BYTES..))?))
}

/// Who asks a question; `None`: it is none.
pub(crate) fn asker(bytes: &Bytes) -> Option<Asker> {
    let (numbers, _) = bytes.first_chunk::<ASKER_BYTES>()?.as_chunks::<8>();
    let [start, cluster] = numbers else { return None };
    Some(Asker { start: u64::from_be_bytes(*start), cluster: u64::from_be_bytes(*cluster) })
}

/// Decodes a message.
///
/// # Errors
/// [`Error::Invalid`] for bytes of another version, or that are no message.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &Bytes) -> Result<T, Error> {
    let Some((&VERSION, rest)) = bytes.split_first() else {
        let found = bytes.first().map_or("nothing".into(), |version| format!("version {version}"));
        return Err(Error::Invalid(format!("a message of a peer is of {found}, this node speaks version {VERSION}")));
    };
    let invalid = |e: &dyn std::fmt::Display| Error::Invalid(format!("a message of a peer cannot be read: {e}"));
    let (message, left) = postcard::take_from_bytes(rest).map_err(|e| invalid(&e))?;
    if left.is_empty() { Ok(message) } else { Err(invalid(&format!("{} bytes follow it", left.len()))) }
}

pub(super) fn vote_of(vote: &openraft::Vote<u64>) -> Vote {
    Vote { term: vote.leader_id.term, node: vote.leader_id.node_id, committed: vote.committed }
}

pub(super) fn raft_vote(vote: Vote) -> openraft::Vote<u64> {
    openraft::Vote { leader_id: openraft::LeaderId::new(vote.term, vote.node), committed: vote.committed }
}

impl Request {
    pub(super) fn append(request: &AppendEntriesRequest<TypeConfig>) -> Result<Self, Error> {
        let entries = request.entries.iter();
        let entries = entries.map(|entry| Ok((log::entry_id(&entry.log_id), log::encode(&entry.payload)?)));
        Ok(Self::Append {
            vote: vote_of(&request.vote),
            previous: request.prev_log_id.as_ref().map(log::entry_id),
            committed: request.leader_commit.as_ref().map(log::entry_id),
            entries: entries.collect::<Result<_, Error>>()?,
        })
    }

    pub(super) fn vote(request: &VoteRequest<u64>) -> Self {
        Self::Vote { vote: vote_of(&request.vote), last: request.last_log_id.as_ref().map(log::entry_id) }
    }

    /// The end of a snapshot.
    pub(super) fn install(
        vote: &openraft::Vote<u64>,
        meta: &SnapshotMeta<u64, openraft::BasicNode>,
    ) -> Result<Self, Error> {
        let last = meta.last_log_id.as_ref().ok_or_else(|| Error::Invalid("a snapshot of nothing".into()))?;
        let members = serde_json::to_vec(&meta.last_membership)
            .map_err(|e| Error::Invalid(format!("a membership cannot be encoded: {e}")))?;
        Ok(Self::SnapshotInstall { vote: vote_of(vote), last: log::entry_id(last), members: members.into() })
    }
}

/// The append that a message asks for.
pub(super) fn append_request(
    vote: Vote,
    previous: Option<EntryId>,
    committed: Option<EntryId>,
    entries: Vec<(EntryId, Bytes)>,
) -> Result<AppendEntriesRequest<TypeConfig>, Error> {
    let decoded =
        entries.iter().map(|(id, payload)| Ok(Entry { log_id: log::log_id(*id), payload: log::decode(payload)? }));
    Ok(AppendEntriesRequest {
        vote: raft_vote(vote),
        prev_log_id: previous.map(log::log_id),
        leader_commit: committed.map(log::log_id),
        entries: decoded.collect::<Result<_, Error>>()?,
    })
}

/// What a snapshot is of.
pub(super) fn snapshot_meta(last: EntryId, members: &[u8]) -> Result<SnapshotMeta<u64, openraft::BasicNode>, Error> {
    let last_membership = serde_json::from_slice(members)
        .map_err(|e| Error::Invalid(format!("the membership of a snapshot cannot be read: {e}")))?;
    let snapshot_id = format!("{}-{}", last.term, last.index);
    Ok(SnapshotMeta { last_log_id: Some(log::log_id(last)), last_membership, snapshot_id })
}

impl Answer {
    pub(super) fn append(response: AppendEntriesResponse<u64>) -> Self {
        Self::Append(match response {
            AppendEntriesResponse::Success => AppendAnswer::Success,
            AppendEntriesResponse::PartialSuccess(id) => AppendAnswer::Partial(id.as_ref().map(log::entry_id)),
            AppendEntriesResponse::Conflict => AppendAnswer::Conflict,
            AppendEntriesResponse::HigherVote(vote) => AppendAnswer::HigherVote(vote_of(&vote)),
        })
    }

    pub(super) fn vote(response: &VoteResponse<u64>) -> Self {
        let last = response.last_log_id.as_ref().map(log::entry_id);
        Self::Vote { vote: vote_of(&response.vote), granted: response.vote_granted, last }
    }

    pub(super) fn installed(response: &SnapshotResponse<u64>) -> Self {
        Self::SnapshotInstall { vote: vote_of(&response.vote) }
    }

    pub(super) fn into_append(self) -> Option<AppendEntriesResponse<u64>> {
        let Self::Append(answer) = self else { return None };
        Some(match answer {
            AppendAnswer::Success => AppendEntriesResponse::Success,
            AppendAnswer::Partial(id) => AppendEntriesResponse::PartialSuccess(id.map(log::log_id)),
            AppendAnswer::Conflict => AppendEntriesResponse::Conflict,
            AppendAnswer::HigherVote(vote) => AppendEntriesResponse::HigherVote(raft_vote(vote)),
        })
    }

    pub(super) fn into_vote(self) -> Option<VoteResponse<u64>> {
        let Self::Vote { vote, granted, last } = self else { return None };
        Some(VoteResponse { vote: raft_vote(vote), vote_granted: granted, last_log_id: last.map(log::log_id) })
    }
}

#[cfg(test)]
mod tests;
