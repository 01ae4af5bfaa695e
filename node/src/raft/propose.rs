//! Above Raft: writes that arrive while a block is in flight share the next one, which gets its time here, and reads that
//! arrive together share one confirmation of leadership.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use openraft::ServerState;
use openraft::error::{ClientWriteError, RaftError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use super::clocks::Clocks;
use super::core::Core;
use super::{Proposal, forward};
use crate::clock::{self, Clock, Time};
use crate::command::{Command, Outcome, Write, WriteCommand};
use crate::error::Error;
use crate::format;
use crate::ledger::Ledger;
use crate::log_key::NewKeys;
use crate::view::LogInfo;
use crate::{rt, trace};

/// Most writes in one block, but for those of its last job.
const BLOCK_WRITES_MAX: usize = 512;
/// Most bytes in one block, but for its last job: bounds the rows of one store batch.
const BLOCK_BYTES_MAX: usize = 512 << 10;
/// While a write is in flight, so often it is looked whether this node still leads.
const LEADERSHIP_LOOK: Duration = Duration::from_secs(1);
/// A leader whose peers answer, and that commits nothing for so many looks, gives the lead up.
const STALLED_LOOKS: u32 = 6;
/// So long ago a majority may have answered, at most, in milliseconds, for the peers to count as there.
const ANSWERED_MS: u64 = 1000;
/// Blocks in flight: one is made durable while the other is applied.
const BLOCKS_IN_FLIGHT: usize = 2;

/// Writes that stand together in one block, and where their outcomes go.
pub(crate) struct Job {
    pub writes: Vec<WriteCommand>,
    pub reply: oneshot::Sender<Result<Vec<Outcome>, Error>>,
    /// Whether it is an administrator's word that the clock is right: its block has the wall clock's time.
    pub accepts_clock: bool,
    /// Whether it goes to no other node: a peer sent it, or it is this node's own.
    pub forwarded: bool,
}

/// Asks the batcher whether it runs; answered between two blocks, and while one waits for a place.
pub(crate) type Ping = oneshot::Sender<()>;

/// What a proposal is made with.
pub(crate) struct Proposer {
    pub(super) core: Core,
    clock: Arc<Clock>,
    /// Author of what the node itself writes.
    author: String,
    /// Of what is forwarded.
    pub(super) sequence: AtomicU64,
    /// Places for blocks in flight.
    flights: Arc<Semaphore>,
    clocks: Clocks,
}

/// Why a proposal has no outcome.
#[derive(Debug)]
pub(super) enum Failure {
    /// Nothing was proposed: another node leads.
    NotLeader(Option<u64>),
    /// It may be in the raft log of a peer, and be committed yet.
    Unknown,
    /// Nothing was proposed.
    Not(Error),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NotLeader(leader) => Self::NotLeader { leader },
            Failure::Unknown => Self::Unknown,
            Failure::Not(error) => error,
        }
    }
}

/// Takes writes off the queue until the node stops, then those that wait, and waits for the blocks in flight.
pub(crate) async fn batcher(
    proposer: Arc<Proposer>,
    mut queue: mpsc::Receiver<Job>,
    mut pings: mpsc::Receiver<Ping>,
    mut stopping: watch::Receiver<bool>,
) {
    while let Some(first) = answering(&mut pings, next(&mut queue, &mut stopping)).await {
        // The semaphore is never closed.
        let Ok(permit) = answering(&mut pings, Arc::clone(&proposer.flights).acquire_owned()).await else { return };
        let jobs = fill(first, &mut queue);
        let proposer = Arc::clone(&proposer);
        rt::spawn(async move {
            proposer.propose(jobs).await;
            drop(permit);
        });
    }
    drop(proposer.hold().await);
}

/// Waits for `work`, and answers pings meanwhile.
async fn answering<T>(pings: &mut mpsc::Receiver<Ping>, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            biased;
            done = work.as_mut() => return done,
            Some(ping) = pings.recv() => drop(ping.send(())),
        }
    }
}

/// The next job. Once the node stops the queue takes no more, and ends when it is empty: that comes first, since whoever asks again
/// and again may leave it never empty.
async fn next<T>(queue: &mut mpsc::Receiver<T>, stopping: &mut watch::Receiver<bool>) -> Option<T> {
    if !queue.is_closed() {
        tokio::select! {
            biased;
            _ = stopping.wait_for(|stopping| *stopping) => queue.close(),
            job = queue.recv() => return job,
        }
    }
    queue.recv().await
}

fn fill(first: Job, queue: &mut mpsc::Receiver<Job>) -> Vec<Job> {
    let (mut count, mut bytes) = (first.writes.len(), first.weight());
    let mut jobs = vec![first];
    while count < BLOCK_WRITES_MAX && bytes < BLOCK_BYTES_MAX {
        let Ok(job) = queue.try_recv() else { break };
        count += job.writes.len();
        bytes += job.weight();
        jobs.push(job);
    }
    jobs
}

impl Job {
    fn weight(&self) -> usize {
        self.writes.iter().map(WriteCommand::weight).sum()
    }
}

/// Who waits for some of the writes of a block.
struct Waiting {
    reply: oneshot::Sender<Result<Vec<Outcome>, Error>>,
    count: usize,
    /// Whether the writes are proposed here or not at all.
    stays: bool,
}

/// Gives each its outcomes. A client that went away is no error.
fn answer_all(waiting: Vec<Waiting>, outcomes: &[Outcome]) {
    let mut rest = outcomes;
    for Waiting { reply, count, .. } in waiting {
        let Some((own, after)) = rest.split_at_checked(count) else { return };
        let _ = reply.send(Ok(own.to_vec()));
        rest = after;
    }
}

fn refuse_all(waiting: Vec<Waiting>, error: &Error) {
    for Waiting { reply, .. } in waiting {
        let _ = reply.send(Err(error.clone()));
    }
}

impl Proposer {
    pub(super) fn new(core: Core, clock: Arc<Clock>, clocks: Clocks, author: String) -> Self {
        let flights = Arc::new(Semaphore::new(BLOCKS_IN_FLIGHT));
        Self { core, clock, author, sequence: AtomicU64::new(0), flights, clocks }
    }

    /// Returns when no block is in flight; none is begun until what is returned is dropped.
    pub(super) async fn hold(&self) -> Option<OwnedSemaphorePermit> {
        let all = u32::try_from(BLOCKS_IN_FLIGHT).unwrap_or(u32::MAX);
        // The semaphore is never closed.
        Arc::clone(&self.flights).acquire_many_owned(all).await.ok()
    }

    fn ledger(&self) -> &Ledger {
        self.core.ledger()
    }

    async fn propose(&self, jobs: Vec<Job>) {
        let _span = trace::task("propose a block");
        let accepts_clock = jobs.iter().any(|job| job.accepts_clock);
        if accepts_clock {
            self.clock.accept();
        }
        let (mut writes, mut waiting) = (Vec::with_capacity(jobs.len()), Vec::with_capacity(jobs.len()));
        for job in jobs {
            // What came from a peer goes no further, nor does a word about this node's own clock.
            let (count, stays) = (job.writes.len(), job.forwarded || job.accepts_clock);
            waiting.push(Waiting { reply: job.reply, count, stays });
            writes.extend(job.writes);
        }
        let proposed = if self.follows() {
            Err(Failure::NotLeader(None))
        } else {
            self.propose_here(&mut writes, waiting.iter().map(|one| one.count)).await
        };
        let failure = match proposed {
            // What the node itself wrote stands last, and nobody waits for it.
            Ok(outcomes) => return answer_all(waiting, &outcomes),
            Err(failure) => failure,
        };
        if accepts_clock {
            self.clock.forget();
        }
        if !matches!(failure, Failure::NotLeader(_)) {
            return refuse_all(waiting, &failure.into());
        }
        let (mut moved, mut going, mut staying) = (Vec::new(), Vec::new(), Vec::new());
        let mut writes = writes.into_iter();
        for one in waiting {
            let own = writes.by_ref().take(one.count);
            if one.stays {
                own.for_each(drop);
                staying.push(one);
            } else {
                moved.extend(own);
                going.push(one);
            }
        }
        refuse_all(staying, &failure.into());
        if !moved.is_empty() {
            match self.forward(moved).await {
                Ok(outcomes) => answer_all(going, &outcomes),
                Err(error) => refuse_all(going, &error),
            }
        }
    }

    /// Proposes writes as one block, if this node leads; `counts`: how many of them came together, one after the other. They
    /// are there again afterwards, for another try.
    pub(super) async fn propose_here(
        &self,
        writes: &mut Vec<WriteCommand>,
        counts: impl Iterator<Item = usize>,
    ) -> Result<Arc<[Outcome]>, Failure> {
        if !self.clocks.agrees().await {
            // The lead is being handed over, and the write goes there.
            return Err(Failure::NotLeader(None));
        }
        let time = self.clock.read(self.ledger().newest().time_ms);
        let own = self.mark(time);
        let count = writes.len();
        let counts =
            counts.chain(own.iter().map(|_| 1)).map(|count| u32::try_from(count).unwrap_or(u32::MAX)).collect();
        let mut all = std::mem::take(writes);
        all.extend(own);
        let command = Command::block(time.sure_ms, all, counts);
        let proposed = propose_command(&self.core, &command).await;
        if let Command::Writes { writes: mut all, .. } | Command::Messages { writes: mut all, .. } = command {
            all.truncate(count);
            *writes = all;
        }
        proposed
    }

    /// Proposes one write of the node's own, in a block of its own.
    pub(crate) async fn write(&self, write: Write) -> Result<Outcome, Error> {
        let write = WriteCommand::prepare(write, |_| None, rt::fill_random)?;
        // A block as any other: who hands the lead over waits for it, and it for them.
        let _flight = self.flights.acquire().await;
        let (reply, answer) = oneshot::channel();
        // Only the leader has anything of its own to write.
        self.propose(vec![Job { writes: vec![write], reply, accepts_clock: false, forwarded: true }]).await;
        only(answer).await
    }

    /// Proposes a change of keys; gives the outcome of its `cosigners` entry.
    pub(crate) async fn change_keys(&self, author: &str, mut to: NewKeys) -> Result<Outcome, Error> {
        let row = WriteCommand::prepare(to.row(author), |_| None, rt::fill_random)?;
        let LogInfo { vkey: log, cosigners, policy, .. } = to.info;
        let _flight = self.flights.acquire().await;
        if !self.clocks.agrees().await {
            return Err(Error::NotLeader { leader: None });
        }
        let time = self.clock.read(self.ledger().newest().time_ms);
        let writes = [row].into_iter().chain(self.mark(time)).collect();
        let author = author.to_owned();
        let command = Command::LogKey { time_ms: time.sure_ms, author, log, cosigners, policy, writes };
        let outcomes = propose_command(&self.core, &command).await.map_err(Error::from)?;
        outcomes.first().cloned().ok_or(Error::Unknown)
    }

    /// The entry that says that from this block on time is held, or goes on. With two blocks in flight both may bring it:
    /// the second one's is refused and leaves nothing.
    fn mark(&self, time: Time) -> Option<WriteCommand> {
        let held = self.ledger().exists(&clock::held_key());
        let write: Write = match (time.doubted, held) {
            (true, Ok(false)) => clock::hold(&self.author, time),
            (false, Ok(true)) => clock::resume(&self.author),
            (_, Ok(_)) => return None,
            (_, Err(error)) => {
                tracing::error!(%error, "whether time is held could not be read");
                return None;
            }
        };
        match WriteCommand::prepare(write, |_| None, rt::fill_random) {
            Ok(command) => Some(command),
            Err(error) => {
                tracing::error!(%error, "that time is held could not be written");
                None
            }
        }
    }
}

/// The outcome of a job of one write.
pub(crate) async fn only(answer: oneshot::Receiver<Result<Vec<Outcome>, Error>>) -> Result<Outcome, Error> {
    answer.await.unwrap_or(Err(Error::Unknown))?.pop().ok_or(Error::Unknown)
}

/// Proposes one command and waits until it is applied here.
pub(super) async fn propose_command(core: &Core, command: &Command) -> Result<Arc<[Outcome]>, Failure> {
    format::check_proposed(core.ledger(), command).map_err(Failure::Not)?;
    let raft = core.raft().map_err(Failure::Not)?;
    let truncations = core.log().truncations();
    let mut written = std::pin::pin!(raft.client_write(Proposal(command.encode())));
    let (mut followed, mut stalled) = (false, 0);
    let written = loop {
        match rt::timeout(LEADERSHIP_LOOK, written.as_mut()).await {
            Ok(written) => break written,
            // Who lost the lead may get the entry in a snapshot, and then hears nothing of it.
            Err(_) if followed => return Err(Failure::Unknown),
            Err(_) => {
                let metrics = raft.metrics();
                let m = metrics.borrow();
                followed = m.state != ServerState::Leader;
                let answered = m.millis_since_quorum_ack.is_some_and(|ms| ms < ANSWERED_MS);
                // Alone, a leader waits for its own disk only.
                let peers = m.membership_config.membership().voter_ids().nth(1).is_some();
                stalled = if answered && peers && !followed { stalled + 1 } else { 0 };
            }
        }
        if stalled == STALLED_LOOKS {
            core.give_up_lead();
        }
    };
    match written {
        Ok(response) => Ok(response.data.0),
        // Turned away at the door; or taken in, and taken back when another led: a third node may have it still.
        Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to))) => {
            let at_the_door = core.log().truncations() == truncations;
            Err(if at_the_door { Failure::NotLeader(to.leader_id) } else { Failure::Unknown })
        }
        Err(RaftError::APIError(error)) => Err(Failure::Not(Error::Unavailable(error.to_string()))),
        // The core is gone: the entry may or may not be in the log.
        Err(RaftError::Fatal(error)) => {
            tracing::error!(%error, "the Raft core stopped with a write in flight");
            Err(Failure::Unknown)
        }
    }
}

/// A linearizable read waiting for its confirmation.
pub(crate) type ReadJob = oneshot::Sender<Result<(), Error>>;

/// Who asks for linearizable reads.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reads {
    /// Clients of this node, which asks the leader when that is another.
    Own,
    /// Peers that take this node for the leader. They are answered by it alone, and wait for nothing that it asks of others:
    /// two nodes that took each other for the leader would wait for each other.
    OfPeers,
}

/// Confirms leadership for all reads that wait, at once, and releases them when the log is applied so far.
pub(super) async fn read_barrier(
    core: Core,
    mut queue: mpsc::Receiver<ReadJob>,
    mut stopping: watch::Receiver<bool>,
    whose: Reads,
) {
    while let Some(first) = next(&mut queue, &mut stopping).await {
        let mut waiting = vec![first];
        while let Ok(job) = queue.try_recv() {
            waiting.push(job);
        }
        let answer = {
            let _span = trace::task("confirm leadership");
            match whose {
                Reads::Own => forward::read_index(&core).await,
                Reads::OfPeers => forward::read_index_here(&core).await,
            }
        };
        for reply in waiting {
            let _ = reply.send(answer.clone());
        }
    }
}
