//! Consensus: openraft over the raft log, the ledger as its state machine. Only this file and those below it import
//! openraft (and [`crate::rt`], which implements its runtime).
//!
//! What openraft 0.9.25 needs to be held by the hand with, each seen in a simulation (`docs/design/cluster.md`): a leader
//! does not resume after a restart (`log`), a purge becomes durable only after the state that it relies on
//! ([`Consensus::release`]), writes are batched above it and reads confirmed together (`propose`), elections are begun
//! from outside, after a pre-vote (`elect`), and a core that ends is started again (`core`).

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::{ServerState, SnapshotPolicy};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

use crate::clock::Clock;
use crate::command::{Command, Outcome};
use crate::disk::Disk;
use crate::error::Error;
use crate::identity::ClusterId;
use crate::ledger::Ledger;
use crate::rt;
use crate::snapshot;
use crate::transport::Transport;
use crate::view::{Part, RaftLogStatus};
use crate::wal;

mod answer;
mod clocks;
mod core;
mod elect;
mod epoch;
mod forward;
mod hand_over;
mod log;
mod members;
mod message;
mod peers;
mod propose;
mod release;
pub(crate) mod rounds;
mod standing;
mod state;

use answer::Responder;
use clocks::Clocks;
use core::Core;
#[cfg(test)]
pub(crate) use core::SNAPSHOT_GONE;
use elect::{Draining, Heard};
pub(crate) use forward::{Desk, refuses_writes};
use hand_over::Permits;
pub(crate) use log::RaftLog;
use peers::Link;
pub(crate) use propose::{Job, Ping, Proposer, ReadJob, Reads, batcher, only};
pub(crate) use rounds::{Question, Reply, Secret};
use standing::Standing;
use state::Durable;
pub(crate) use state::latest_members;

openraft::declare_raft_types!(
    /// The ledger's Raft.
    pub(crate) TypeConfig:
        D = Proposal,
        R = Applied,
        NodeId = u64,
        Node = openraft::BasicNode,
        Entry = openraft::Entry<TypeConfig>,
        SnapshotData = SnapshotStream,
        AsyncRuntime = crate::rt::Runtime,
);

/// What is proposed: an encoded [`Command`], carried as it lies in the raft log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Proposal(pub Bytes);

/// What apply answers: one outcome per write of the proposal, in order.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Applied(pub Arc<[Outcome]>);

/// A snapshot in transit, at one of its ends: chunks come out of the one and go into the other.
pub(crate) enum SnapshotStream {
    /// Where it is read.
    Sending(snapshot::Sender),
    /// Where it is received.
    Receiving(snapshot::Receiver),
}

impl std::fmt::Debug for SnapshotStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Sending(_) => "Sending",
            Self::Receiving(_) => "Receiving",
        })
    }
}

/// Targets of events that a journal leaves out but at `debug`: Raft says there, as errors and many times a second, that a peer does
/// not answer, which would bury what is wrong. The node's status tells of peers; the end of Raft itself is handed over, and told.
pub const TARGETS_LEFT_OUT: [&str; 2] = ["openraft::replication", "openraft::core::raft_core"];

const HEARTBEAT_MS: u64 = 50;
const ELECTION_MIN_MS: u64 = 400;
const ELECTION_MAX_MS: u64 = 500;
/// A leader that was not heard for so long, or that a majority did not answer, is none as far as is known here: by then there
/// is another, or no quorum.
const LEADER_HEARD_MS: u64 = 3000;
/// How often a state that openraft reaches by itself is looked for.
const POLL: Duration = Duration::from_millis(2);

/// Who a node is to the consensus.
pub(crate) struct Own {
    /// Id in the cluster.
    pub node: u64,
    /// Whether its raft log was ever written to.
    pub begun: bool,
    /// Whether it joins a cluster that others began: its raft log comes from them.
    pub joined: bool,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Why it is to take no part in votes, if it is not.
    pub refused: Option<String>,
}

/// This node's part in the consensus.
pub(crate) struct Consensus {
    core: Core,
    durable: Durable,
    responder: Responder,
    draining: Draining,
    clocks: Clocks,
}

/// How the consensus is.
pub(crate) struct ConsensusStatus {
    pub role: &'static str,
    pub leader: Option<u64>,
    pub term: u64,
    pub voters: usize,
    pub restarts: u64,
    pub last_index: u64,
    pub applied_index: u64,
    pub log: RaftLogStatus,
}

impl Consensus {
    /// Opens the raft log, checks it against the ledger, and makes what is applied durable. A node that is alone then leads
    /// (it needs nobody's vote) and has applied all of its raft log; with peers, both come later.
    pub(crate) async fn start(
        disk: &Arc<dyn Disk>,
        directory: &Path,
        own: &Own,
        ledger: Arc<Ledger>,
        transport: Arc<dyn Transport>,
    ) -> Result<Self, Error> {
        let log = RaftLog::open(Arc::clone(disk), directory, own.node, &wal::Config::default())?;
        check_log(&log, &ledger, own.begun)?;
        restore_salts(&log, &ledger).await?;
        let durable = Durable::new(Arc::clone(&ledger));
        let syncing = Arc::clone(&ledger);
        let synced = rt::blocking(move || syncing.sync(false)).await;
        let head = synced.map_err(|e| Error::Corrupt(format!("making the store durable: {e}")))??;
        if let Some(applied) = durable.advance(&head)? {
            log.release(applied, false).await?;
        }
        let link = Link::new(transport, own.cluster);
        if let Some(why) = &own.refused {
            link.standing.accused(why);
        }
        let core = Core::start(own.node, link, log, durable.clone()).await?;
        let (heard, permits, receiving) = (Heard::new(), Permits::default(), Arc::default());
        let responder = Responder { core: core.clone(), heard, permits, receiving };
        let clocks = Clocks::new(core.clone());
        let consensus = Self { core, durable, responder, draining: Draining::default(), clocks };
        if let Err(error) = consensus.begin(own).await {
            consensus.stop().await;
            return Err(error);
        }
        Ok(consensus)
    }

    async fn begin(&self, own: &Own) -> Result<(), Error> {
        let raft = self.core.raft()?;
        if self.core.log().last_log_id().is_none() && !own.joined {
            let members = BTreeSet::from([own.node]);
            raft.initialize(members).await.map_err(|e| Error::Unavailable(format!("beginning the log: {e}")))?;
        }
        if self.is_alone().await? { self.lead().await } else { Ok(()) }
    }

    /// Whether this node is the only voter.
    pub(crate) async fn is_alone(&self) -> Result<bool, Error> {
        let node = self.core.node();
        let raft = self.core.raft()?;
        let alone = raft.with_raft_state(move |state| {
            let voters: BTreeSet<u64> = state.membership_state.effective().membership().voter_ids().collect();
            voters == BTreeSet::from([node])
        });
        alone.await.map_err(|e| Error::Unavailable(format!("the Raft core has stopped: {e}")))
    }

    fn ledger(&self) -> &Arc<Ledger> {
        self.durable.ledger()
    }

    /// Elects this node and waits until it has applied all that its raft log holds.
    async fn lead(&self) -> Result<(), Error> {
        let raft = self.core.raft()?;
        let metrics = raft.metrics();
        let mut elect_at = rt::instant();
        loop {
            let (state, leader, applied, last) = {
                let m = metrics.borrow();
                m.running_state.clone().map_err(|e| match self.ledger().suspicion.noted() {
                    Some(what) => Error::DamagedStore(what),
                    None => Error::Corrupt(format!("the raft log cannot be used: {e}")),
                })?;
                (m.state, m.current_leader, m.last_applied.map(|id| id.index), m.last_log_index)
            };
            if state == ServerState::Leader && leader.is_some() && applied == last && applied.is_some() {
                return Ok(());
            }
            if state != ServerState::Leader && rt::instant() >= elect_at {
                elect_at = rt::instant() + Duration::from_millis(ELECTION_MAX_MS);
                let elected = raft.trigger().elect().await;
                elected.map_err(|e| Error::Unavailable(format!("the Raft core has stopped: {e}")))?;
            }
            rt::sleep(POLL).await;
        }
    }

    /// What proposes for this node. `author` is that of what the node itself writes.
    pub(crate) fn proposer(&self, clock: Arc<Clock>, author: String) -> Proposer {
        Proposer::new(self.core.clone(), clock, self.clocks.clone(), author)
    }

    /// The task that stands for election when no leader is heard.
    pub(crate) fn election_driver(&self) -> impl Future<Output = ()> + Send + 'static {
        let heard = self.responder.heard.clone();
        elect::driver(self.core.clone(), heard, self.draining.clone(), self.clocks.clone())
    }

    /// Answers a message of a peer; `desk` does what concerns clients, `rounds` what concerns checkpoints.
    pub(crate) async fn answer<F>(&self, message: &Bytes, desk: &Desk, rounds: impl FnOnce(Question) -> F) -> Bytes
    where
        F: Future<Output = Reply>,
    {
        let (refused, standing) = (message::Answer::Refused, &self.core.link().standing);
        if let Some(answer) = self.refuse_other_cluster(desk.from, message) {
            return answer;
        }
        let answer = match message::decode_request(message) {
            Err(error) => refused(message::Refused::Unavailable(error.to_string())),
            Ok((asker, request)) => match (standing.hear(desk.from, asker.start), request) {
                (Err(why), _) => refused(why),
                (Ok(()), message::Request::Round(question)) => {
                    let member = self.members().iter().any(|member| member.node == desk.from);
                    let stranger = || Reply::Refused("the node that asks is no member of the cluster".into());
                    message::Answer::Round(if member { rounds(question).await } else { stranger() })
                }
                // Who takes no write must not lead: for want of room, or because its state is not known to be right.
                (Ok(()), message::Request::TakeOver { .. }) if desk.room.is_err() => {
                    refused(message::Refused::Unavailable("it takes no writes now".into()))
                }
                (Ok(()), request) => self.answer_member(request, desk).await,
            },
        };
        message::encode(&answer)
    }

    /// The answer to a question of a node of another cluster; `None`: it is of this one.
    pub(crate) fn refuse_other_cluster(&self, from: u64, message: &Bytes) -> Option<Bytes> {
        let cluster = message::asker(message)?.cluster;
        let refused = self.core.link().epoch.hear(from, cluster).err()?;
        Some(message::encode(&message::Answer::Refused(refused)))
    }

    /// Resolves when the ledger went on without this node, with what that means.
    pub(crate) fn superseded(&self) -> impl Future<Output = String> + Send + 'static {
        self.core.link().epoch.superseded()
    }

    async fn answer_member(&self, request: message::Request, desk: &Desk) -> message::Answer {
        match self.responder.answer(desk.from, request).await {
            Ok(answer) => answer,
            Err(request) => desk.answer(&self.core, request).await,
        }
    }

    /// What speaks against this node and against its peers.
    pub(crate) fn standing(&self) -> &Standing {
        &self.core.link().standing
    }

    /// Whether this node is about to stop: it then leads only if nobody else does.
    pub(crate) const fn draining(&self) -> &Draining {
        &self.draining
    }

    /// How far the median of the voters' clocks is from this node's, in milliseconds, if that is too far to lead.
    pub(crate) fn clock_off_ms(&self) -> Option<i64> {
        self.clocks.off_ms()
    }

    /// Compares this node's clock with its peers' and hands the lead over when it is off, or when a snapshot that a peer needs
    /// cannot be made here; for as long as the node runs.
    pub(crate) async fn watch_fitness(&self, proposer: &Proposer) {
        loop {
            let off = self.clocks.next().await;
            let unable = self.ledger().salts.take_damage();
            if (off || unable)
                && self.leads_others()
                && let Err(error) = self.hand_over(proposer, None).await
            {
                tracing::warn!(%error, "the lead could not be handed over to a node that is fitter for it");
            }
        }
    }

    /// Asks Raft core, apply and the raft log's thread, in this order, for a sign of life; returns when all have given
    /// one. `asks` is told which is asked next. None needs a quorum, so a lost one does not delay the answer.
    ///
    /// # Errors
    /// When a part has ended; what it was doing stands in the journal.
    pub(crate) async fn pulse(&self, asks: impl Fn(Part)) -> Result<(), Error> {
        let committed = self.core.raft()?.with_raft_state(|state| state.committed.map(|id| id.index)).await;
        let committed = committed.map_err(|e| Error::Unavailable(format!("the Raft core has stopped: {e}")))?;
        asks(Part::Apply);
        // What is committed is applied soon, whoever else is gone.
        if let Some(applied) = committed.and_then(|index| self.ledger().applied(index)) {
            applied.await.map_err(|_| Error::Unavailable("apply has stopped".into()))?;
        }
        asks(Part::RaftLog);
        self.core.log().ping().await
    }

    /// A task that answers linearizable reads.
    pub(crate) fn read_barrier(
        &self,
        queue: mpsc::Receiver<ReadJob>,
        stopping: watch::Receiver<bool>,
        whose: Reads,
    ) -> impl Future<Output = ()> + Send + 'static {
        propose::read_barrier(self.core.clone(), queue, stopping, whose)
    }

    /// Proposes one command and waits until it is applied here.
    pub(crate) async fn propose(&self, command: &Command) -> Result<Arc<[Outcome]>, Error> {
        propose::propose_command(&self.core, command).await.map_err(Error::from)
    }

    /// Resolves when the Raft core has ended and cannot be started again, with the reason.
    pub(crate) fn core_ended(&self) -> impl Future<Output = Error> + Send + 'static {
        let core = self.core.clone();
        async move { core.supervise().await }
    }

    /// Ends the Raft core, as a failed assertion in it does.
    #[cfg(test)]
    pub(crate) fn break_core(&self) {
        self.core.raft().unwrap().external_request(|_| panic!("a test breaks the Raft core"));
    }

    /// Stops the core. Writes in flight are answered before.
    pub(crate) async fn stop(&self) {
        self.core.stop().await;
    }

    pub(crate) fn status(&self) -> ConsensusStatus {
        let (log, restarts) = (self.log_status(), self.core.restarts());
        let Ok(raft) = self.core.raft() else {
            let applied_index = self.ledger().chain().head.raft_index;
            let role = "stopped";
            return ConsensusStatus {
                role,
                leader: None,
                term: 0,
                voters: 0,
                restarts,
                last_index: 0,
                applied_index,
                log,
            };
        };
        let metrics = raft.metrics();
        let m = metrics.borrow();
        // Raft itself remembers a leader until there is another, and a leader itself.
        let heard = match m.state {
            ServerState::Leader => {
                let alone = m.membership_config.membership().voter_ids().nth(1).is_none();
                alone || m.millis_since_quorum_ack.unwrap_or(0) < LEADER_HEARD_MS
            }
            _ => self.responder.heard.since() < Duration::from_millis(LEADER_HEARD_MS),
        };
        let role = match m.state {
            ServerState::Leader => "leader",
            ServerState::Follower => "follower",
            ServerState::Candidate => "candidate",
            ServerState::Learner => "learner",
            ServerState::Shutdown => "stopped",
        };
        ConsensusStatus {
            role,
            leader: m.current_leader.filter(|_| heard),
            term: m.current_term,
            voters: m.membership_config.membership().voter_ids().count(),
            restarts,
            last_index: m.last_log_index.unwrap_or(0),
            applied_index: m.last_applied.map_or(0, |id| id.index),
            log,
        }
    }
}

impl Consensus {
    fn log_status(&self) -> RaftLogStatus {
        let stats = self.core.log().stats();
        RaftLogStatus {
            frames: stats.frames,
            bytes: stats.bytes,
            segment_bytes: stats.segments * wal::Config::default().segment_bytes,
            fsyncs: stats.fsyncs,
            fsyncs_by_time: stats.fsyncs_by_time,
            fsync_time: stats.fsync_time,
            fsync_time_max: stats.fsync_time_max,
            write_in_flight: stats.write_in_flight,
        }
    }
}

fn config() -> Result<openraft::Config, Error> {
    let config = openraft::Config {
        cluster_name: "samovar".into(),
        heartbeat_interval: HEARTBEAT_MS,
        election_timeout_min: ELECTION_MIN_MS,
        election_timeout_max: ELECTION_MAX_MS,
        enable_elect: false,
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: 0,
        ..Default::default()
    };
    config.validate().map_err(|e| Error::Invalid(format!("the Raft configuration: {e}")))
}

/// Writes the salts of all blocks again whose raft entries are still there: nothing else says that they are durable.
async fn restore_salts(log: &RaftLog, ledger: &Ledger) -> Result<(), Error> {
    let purged = log.purged().map_or(0, |id| id.index);
    let head = ledger.chain().head.height;
    for height in ledger.first_block_after(purged)?..=head {
        if let Some(proposal) = log.proposal(ledger.raft_index_of(height)?).await? {
            ledger.restore_salts(height, &Command::decode(&proposal.0)?)?;
        }
    }
    Ok(())
}

/// A raft log that ends before the store, or begins after it, has lost something.
fn check_log(log: &RaftLog, ledger: &Ledger, begun: bool) -> Result<(), Error> {
    let applied = {
        let chain = ledger.chain();
        (!chain.head.raft.is_empty()).then_some(chain.head.raft_index)
    };
    // A snapshot may have been installed, and the raft log not yet know that it begins behind it.
    let installed = state::installed(ledger)?;
    let end = applied.map_or("are empty".into(), |index| format!("end at raft index {index}"));
    let last = log.last_log_id().map(|id| id.index);
    let purged = log.purged().map(|id| id.index);
    let damage = ledger.archive.damage().map(|what| format!(" ({what})")).unwrap_or_default();
    let lost = |what: String| {
        Error::Corrupt(format!("{what}{damage}: restore a backup, or rejoin the cluster from its peers"))
    };
    match (purged, last) {
        // One that joined may not have noted yet that it has begun.
        (_, None) if begun || applied != installed => Err(lost("the raft log is gone".into())),
        (Some(purged), _) if Some(purged) > applied => {
            Err(lost(format!("store and archive {end}, but the raft log keeps only what comes after {purged}")))
        }
        (_, last) if last < applied && last.is_some() && applied != installed => {
            Err(lost(format!("the raft log ends at index {}, but store and archive {end}", last.unwrap_or_default())))
        }
        _ => Ok(()),
    }
}
