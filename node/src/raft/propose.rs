//! Above Raft: writes that arrive while a block is in flight share the next one, which gets its time here, and reads that
//! arrive together share one confirmation of leadership.

use std::sync::Arc;

use openraft::Raft;
use openraft::error::{CheckIsLeaderError, ClientWriteError, RaftError};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use super::{Proposal, TypeConfig};
use crate::clock::{self, Clock, Time};
use crate::command::{Command, Outcome, Write, WriteCommand};
use crate::error::Error;
use crate::ledger::Ledger;
use crate::view::LogInfo;
use crate::{log_key, rt, trace};

/// Most writes in one block.
const BLOCK_WRITES_MAX: usize = 512;
/// Most bytes in one block, but for its last write: bounds the rows of one store batch.
const BLOCK_BYTES_MAX: usize = 512 << 10;
/// Blocks in flight: one is made durable while the other is applied.
const BLOCKS_IN_FLIGHT: usize = 2;

/// A write and where its answer goes.
pub(crate) struct Job {
    pub write: WriteCommand,
    pub reply: oneshot::Sender<Result<Outcome, Error>>,
    /// Whether the write is an administrator's word that the clock is right: its block has the wall clock's time.
    pub accepts_clock: bool,
}

/// Asks the batcher whether it runs; answered between two blocks, and while one waits for a place.
pub(crate) type Ping = oneshot::Sender<()>;

/// What a proposal is made with.
pub(crate) struct Proposer {
    pub raft: Raft<TypeConfig>,
    pub ledger: Arc<Ledger>,
    pub clock: Arc<Clock>,
    /// Author of what the node itself writes.
    pub author: String,
}

/// Takes writes off the queue until the node stops, then those that wait, and waits for the blocks in flight.
pub(crate) async fn batcher(
    proposer: Arc<Proposer>,
    mut queue: mpsc::Receiver<Job>,
    mut pings: mpsc::Receiver<Ping>,
    mut stopping: watch::Receiver<bool>,
) {
    let flights = Arc::new(Semaphore::new(BLOCKS_IN_FLIGHT));
    while let Some(first) = answering(&mut pings, next(&mut queue, &mut stopping)).await {
        // The semaphore is never closed.
        let Ok(permit) = answering(&mut pings, Arc::clone(&flights).acquire_owned()).await else { return };
        let jobs = fill(first, &mut queue);
        let proposer = Arc::clone(&proposer);
        rt::spawn(async move {
            proposer.propose(jobs).await;
            drop(permit);
        });
    }
    let all = u32::try_from(BLOCKS_IN_FLIGHT).unwrap_or(u32::MAX);
    let _ = flights.acquire_many(all).await;
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

/// The next job. Once the node stops the queue takes no more, and ends when it is empty.
async fn next<T>(queue: &mut mpsc::Receiver<T>, stopping: &mut watch::Receiver<bool>) -> Option<T> {
    if !queue.is_closed() {
        tokio::select! {
            biased;
            job = queue.recv() => return job,
            _ = stopping.wait_for(|stopping| *stopping) => queue.close(),
        }
    }
    queue.recv().await
}

fn fill(first: Job, queue: &mut mpsc::Receiver<Job>) -> Vec<Job> {
    let mut bytes = first.write.weight();
    let mut jobs = vec![first];
    while jobs.len() < BLOCK_WRITES_MAX && bytes < BLOCK_BYTES_MAX {
        let Ok(job) = queue.try_recv() else { break };
        bytes += job.write.weight();
        jobs.push(job);
    }
    jobs
}

impl Proposer {
    async fn propose(&self, jobs: Vec<Job>) {
        let _span = trace::task("propose a block");
        let accepts_clock = jobs.iter().any(|job| job.accepts_clock);
        if accepts_clock {
            self.clock.accept();
        }
        let (mut writes, replies): (Vec<_>, Vec<_>) = jobs.into_iter().map(|job| (job.write, job.reply)).unzip();
        let time = self.clock.read(self.ledger.newest().time_ms);
        writes.extend(self.mark(time));
        let command = Command::Writes { time_ms: time.sure_ms, writes };
        match propose_command(&self.raft, &command).await {
            Ok(outcomes) => {
                // What the node itself wrote stands last, and nobody waits for it.
                for (reply, outcome) in replies.into_iter().zip(outcomes.iter()) {
                    // A client that went away is no error.
                    let _ = reply.send(Ok(outcome.clone()));
                }
            }
            Err(error) => {
                if accepts_clock {
                    self.clock.forget();
                }
                for reply in replies {
                    let _ = reply.send(Err(error.clone()));
                }
            }
        }
    }

    /// Proposes one write of the node's own, in a block of its own.
    pub(crate) async fn write(&self, write: Write) -> Result<Outcome, Error> {
        let write = WriteCommand::prepare(write, |_| None, rt::fill_random)?;
        let (reply, answer) = oneshot::channel();
        self.propose(vec![Job { write, reply, accepts_clock: false }]).await;
        answer.await.unwrap_or(Err(Error::Unknown))
    }

    /// Proposes a change of the log key; gives the outcome of its `cosigners` entry.
    pub(crate) async fn change_log_key(&self, author: &str, to: LogInfo) -> Result<Outcome, Error> {
        let LogInfo { vkey: log, cosigners, policy, .. } = to;
        let row = WriteCommand::prepare(log_key::row(author, &log), |_| None, rt::fill_random)?;
        let time = self.clock.read(self.ledger.newest().time_ms);
        let writes = [row].into_iter().chain(self.mark(time)).collect();
        let author = author.to_owned();
        let command = Command::LogKey { time_ms: time.sure_ms, author, log, cosigners, policy, writes };
        let outcomes = propose_command(&self.raft, &command).await?;
        outcomes.first().cloned().ok_or(Error::Unknown)
    }

    /// The entry that says that from this block on time is held, or goes on. With two blocks in flight both may bring it:
    /// the second one's is refused and leaves nothing.
    fn mark(&self, time: Time) -> Option<WriteCommand> {
        let held = self.ledger.exists(&clock::held_key());
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

/// Proposes one command and waits until it is applied here.
pub(crate) async fn propose_command(raft: &Raft<TypeConfig>, command: &Command) -> Result<Arc<[Outcome]>, Error> {
    match raft.client_write(Proposal(command.encode())).await {
        Ok(response) => Ok(response.data.0),
        Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to))) => {
            Err(Error::NotLeader { leader: to.leader_id })
        }
        Err(RaftError::APIError(error)) => Err(Error::Unavailable(error.to_string())),
        // The core is gone: the entry may or may not be in the log.
        Err(RaftError::Fatal(error)) => {
            tracing::error!(%error, "the Raft core stopped with a write in flight");
            Err(Error::Unknown)
        }
    }
}

/// A linearizable read waiting for its confirmation.
pub(crate) type ReadJob = oneshot::Sender<Result<(), Error>>;

/// Confirms leadership for all reads that wait, at once, and releases them when the log is applied so far.
pub(crate) async fn read_barrier(
    raft: Raft<TypeConfig>,
    ledger: Arc<Ledger>,
    mut queue: mpsc::Receiver<ReadJob>,
    mut stopping: watch::Receiver<bool>,
) {
    while let Some(first) = next(&mut queue, &mut stopping).await {
        let mut waiting = vec![first];
        while let Ok(job) = queue.try_recv() {
            waiting.push(job);
        }
        let answer = {
            let _span = trace::task("confirm leadership");
            confirm(&raft, &ledger).await
        };
        for reply in waiting {
            let _ = reply.send(answer.clone());
        }
    }
}

async fn confirm(raft: &Raft<TypeConfig>, ledger: &Ledger) -> Result<(), Error> {
    let index = match raft.get_read_log_id().await {
        Ok((read, _)) => read.map_or(0, |id| id.index),
        Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(to))) => {
            return Err(Error::NotLeader { leader: to.leader_id });
        }
        Err(error) => return Err(Error::Unavailable(error.to_string())),
    };
    match ledger.applied(index) {
        None => Ok(()),
        Some(applied) => applied.await.map_err(|_| Error::Unavailable("the node is stopping".into())),
    }
}
