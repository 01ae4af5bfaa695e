//! openraft's network over the [`Transport`].
//!
//! Every failure is told as a network error: openraft's answer to an unreachable peer is a wait that wakes in an order of
//! its own, and that a simulation cannot repeat. Instead a failed call waits here before it is tried again.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use openraft::error::{Fatal, NetworkError, RPCError, RaftError, ReplicationClosed, StreamingError};
use openraft::network::{RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse, SnapshotResponse,
    VoteRequest, VoteResponse,
};
use openraft::{BasicNode, OptionalSend, Snapshot, Vote};

use super::epoch::Epoch;
use super::message::{self, Answer, Refused, Request};
use super::standing::Standing;
use super::{SnapshotStream, TypeConfig};
use crate::archive::Mark;
use crate::error::Error;
use crate::identity::ClusterId;
use crate::rt;
use crate::transport::{Lost, Peer, Transport};

/// Pause after a call that failed, so that a peer that is down is not called without end.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a vote may take, with the fsync of the peer.
const VOTE_WAIT: Duration = Duration::from_millis(400);
/// How long the answer to a chunk of a snapshot may take.
const CHUNK_WAIT: Duration = Duration::from_secs(3);
/// How long a peer may take to install a snapshot before it is asked again how far it is.
const INSTALL_WAIT: Duration = Duration::from_secs(20);
/// Pause after a snapshot that was not taken.
const SNAPSHOT_PAUSE: Duration = Duration::from_millis(500);

/// The way to the peers. Clones are cheap.
#[derive(Clone)]
pub(crate) struct Link {
    transport: Arc<dyn Transport>,
    /// Drawn anew at each start of the node.
    pub(super) start: u64,
    pub(super) standing: Standing,
    pub(super) epoch: Epoch,
}

impl Link {
    pub(super) fn new(transport: Arc<dyn Transport>, cluster: ClusterId) -> Self {
        let mut start = [0; 8];
        rt::fill_random(&mut start);
        let (start, epoch) = (u64::from_le_bytes(start), Epoch::new(cluster));
        Self { transport, start, standing: Standing::default(), epoch }
    }

    /// As who this node asks.
    pub(super) fn asker(&self) -> message::Asker {
        message::Asker { start: self.start, cluster: self.epoch.id().0 }
    }

    /// Asks a peer, and waits for the answer no longer than `within`.
    pub(super) async fn ask(&self, to: &Peer, request: &Request, within: Duration) -> Result<Answer, Lost> {
        let call = self.transport.call(to, message::encode_request(self.asker(), request));
        let answer = rt::timeout(within, call).await;
        let answer = answer.map_err(|_| Lost::NoAnswer(format!("nothing came within {} ms", within.as_millis())))??;
        let answer = message::decode(&answer).map_err(|e| Lost::NoAnswer(e.to_string()))?;
        self.standing.answered(to.node);
        if let Answer::Refused(Refused::Member(why)) = &answer {
            self.standing.accused(why);
        }
        if let Answer::Refused(Refused::Cluster { cluster, .. }) = &answer {
            self.epoch.refused(to.node, *cluster);
        }
        Ok(answer)
    }
}

pub(super) fn peer(node: u64, known: &BasicNode) -> Peer {
    Peer { node, address: known.addr.clone() }
}

impl RaftNetworkFactory<TypeConfig> for Link {
    type Network = Connection;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Connection {
        Connection { peer: peer(target, node), link: self.clone(), told: String::new() }
    }
}

/// The way to one peer.
pub(crate) struct Connection {
    peer: Peer,
    link: Link,
    /// Why the newest snapshot was not taken, if it was not.
    told: String,
}

fn failed(what: &dyn std::fmt::Display) -> NetworkError {
    NetworkError::new(&io::Error::other(what.to_string()))
}

/// What a peer said that did not answer the question.
fn unexpected(answer: &Answer) -> String {
    match answer {
        Answer::Refused(Refused::NotLeader(_)) => "the peer does not lead".into(),
        Answer::Refused(Refused::Unavailable(why) | Refused::Member(why) | Refused::Cluster { why, .. }) => why.clone(),
        _ => "the peer answered another question".into(),
    }
}

impl Connection {
    async fn ask<T>(
        &self,
        request: &Request,
        within: Duration,
        read: impl FnOnce(Answer) -> Option<T>,
    ) -> Result<T, NetworkError> {
        let asked = self.link.ask(&self.peer, request, within).await.map_err(|e| failed(&e))?;
        let what = unexpected(&asked);
        read(asked).ok_or_else(|| failed(&what))
    }

    /// Looks at how far the peer is by its answer: openraft must not hear of one that lost what it had. `known`: what it
    /// had when it was asked.
    fn look(
        &self,
        request: &AppendEntriesRequest<TypeConfig>,
        known: u64,
        answer: AppendEntriesResponse<u64>,
    ) -> Result<AppendEntriesResponse<u64>, NetworkError> {
        let (standing, node) = (&self.link.standing, self.peer.node);
        let previous = request.prev_log_id.map_or(0, |id| id.index);
        match &answer {
            AppendEntriesResponse::Success => {
                let acknowledged = request.entries.last().map_or(previous, |entry| entry.log_id.index);
                standing.has(node, acknowledged, request.leader_commit.map_or(0, |id| id.index));
                Ok(())
            }
            AppendEntriesResponse::Conflict => standing.shows(node, known, previous.saturating_sub(1)),
            AppendEntriesResponse::PartialSuccess(_) | AppendEntriesResponse::HigherVote(_) => Ok(()),
        }
        .map(|()| answer)
        .map_err(|fault| failed(&fault))
    }

    /// Sends a snapshot from where the peer is; returns the vote that the peer then has.
    async fn send_snapshot(&self, vote: &Vote<u64>, snapshot: Snapshot<TypeConfig>) -> Result<Vote<u64>, Error> {
        let lost = |e: NetworkError| Error::Unavailable(e.to_string());
        let install = Request::install(vote, &snapshot.meta)?;
        let vote = message::vote_of(vote);
        let SnapshotStream::Sending(mut sender) = *snapshot.snapshot else {
            return Err(Error::Invalid("a snapshot that is still being received cannot be sent".into()));
        };
        let has = |answer| if let Answer::SnapshotBegin { has } = answer { Mark::decode(&has) } else { None };
        sender.begin_after(self.ask(&Request::SnapshotBegin { vote }, CHUNK_WAIT, has).await.map_err(lost)?);
        while let Some(chunk) = sender.next_chunk().await? {
            let taken = |answer| matches!(answer, Answer::SnapshotChunk).then_some(());
            self.ask(&Request::SnapshotChunk { vote, chunk }, CHUNK_WAIT, taken).await.map_err(lost)?;
        }
        let installed = |answer| if let Answer::SnapshotInstall { vote } = answer { Some(vote) } else { None };
        self.ask(&install, INSTALL_WAIT, installed).await.map(message::raft_vote).map_err(lost)
    }
}

impl RaftNetwork<TypeConfig> for Connection {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, RPCError<u64, BasicNode, RaftError<u64>>> {
        let message = Request::append(&request).map_err(|e| RPCError::Network(failed(&e)))?;
        let known = self.link.standing.known(self.peer.node);
        let asked = match self.link.standing.check(self.peer.node) {
            Ok(()) => self.ask(&message, option.hard_ttl(), Answer::into_append).await,
            Err(fault) => Err(failed(&fault)),
        };
        match asked.and_then(|answer| self.look(&request, known, answer)) {
            Ok(answer) => Ok(answer),
            Err(error) => {
                rt::sleep(PAUSE).await;
                Err(RPCError::Network(error))
            }
        }
    }

    async fn install_snapshot(
        &mut self,
        _request: InstallSnapshotRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<
        InstallSnapshotResponse<u64>,
        RPCError<u64, BasicNode, RaftError<u64, openraft::error::InstallSnapshotError>>,
    > {
        // openraft calls it in its own `full_snapshot` only, which is not used.
        Err(RPCError::Network(failed(&"snapshots go as a stream")))
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote<u64>,
        snapshot: Snapshot<TypeConfig>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<u64>, StreamingError<TypeConfig, Fatal<u64>>> {
        let id = snapshot.meta.snapshot_id.clone();
        let sent = async {
            match self.send_snapshot(&vote, snapshot).await {
                Ok(vote) => {
                    self.told.clear();
                    Ok(SnapshotResponse { vote })
                }
                Err(error) => {
                    let why = error.to_string();
                    // A large one is put in place for minutes.
                    if self.told != why {
                        tracing::warn!(peer = self.peer.node, snapshot = id, why, "a snapshot was not taken by a peer");
                        self.told = why;
                    }
                    rt::sleep(SNAPSHOT_PAUSE).await;
                    Err(StreamingError::Network(failed(&error)))
                }
            }
        };
        tokio::select! {
            biased;
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = sent => sent,
        }
    }

    async fn vote(
        &mut self,
        request: VoteRequest<u64>,
        _option: RPCOption,
    ) -> Result<VoteResponse<u64>, RPCError<u64, BasicNode, RaftError<u64>>> {
        let (standing, node) = (&self.link.standing, self.peer.node);
        let known = standing.known(node);
        let voted =
            self.ask(&Request::vote(&request), VOTE_WAIT, Answer::into_vote).await.map_err(RPCError::Network)?;
        // The vote of who forgot something would make a leader that lacks it.
        let last = voted.last_log_id.map_or(0, |id| id.index);
        standing.shows(node, known, last).map_err(|fault| RPCError::Network(failed(&fault)))?;
        Ok(voted)
    }
}
