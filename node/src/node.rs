//! [`Node`]: the only door to the ledger. Opens, starts and stops its parts, and keeps what has been written durable.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::clock::Clock;
use crate::command::{Command, Outcome, Write, WriteCommand};
use crate::cosign::Notary;
use crate::disk::Disk;
use crate::error::Error;
pub use crate::identity::Admission;
use crate::identity::{Identity, Keys, Place};
use crate::ledger::Ledger;
use crate::log_key::KeyRing;
use crate::planted::{Bug, planted};
pub use crate::raft::TARGETS_LEFT_OUT;
use crate::raft::{Consensus, Job, Ping, Proposer, ReadJob, Reads, batcher, only};
use crate::rt::{self, Doing};
use crate::seal::Seal;
use crate::store::Shelf;
use crate::trace;
use crate::transport::{Alone, Transport};
use crate::view::{ApplyStages, Head, LogInfo, Status};

mod blobs;
mod cluster;
mod copies;
mod log_key;
mod reads;
mod recover;
mod refused;
mod rounds;
mod tasks;
mod vital;

pub use recover::{Operations, Recover, Recovered, Rows};
use tasks::{let_go, open_ledger, until};

/// Directory, in the data directory, of what a node had that was built anew from its peers.
pub const QUARANTINE: &str = "quarantine";
/// Who holds the ledger of a node that does nothing: the node, its notary, its consensus twice.
const LEDGER_OWNERS: usize = 4;

/// What a node needs to start.
#[derive(Debug, Clone)]
pub struct Config {
    /// Data directory, made by [`Node::init`].
    pub data: PathBuf,
    /// Bytes of free space below which writes are refused. Must exceed what is written between two looks (100 ms) and
    /// one segment of the raft log.
    pub reserve_bytes: u64,
    /// Most writes that may wait for a block; beyond, [`Error::Overloaded`].
    pub queue_max: usize,
    /// Bytes of the store's page cache; its memory is about twice that.
    pub cache_bytes: u64,
    /// Longest blob, in bytes.
    pub blob_bytes_max: u64,
    /// How long a blob that no value names is kept.
    pub unnamed_blob_age: Duration,
    /// How the private keys are sealed.
    pub seal: Seal,
}

impl Config {
    /// Defaults for a data directory.
    #[must_use]
    pub fn new(data: impl Into<PathBuf>) -> Self {
        Self {
            data: data.into(),
            reserve_bytes: 128 << 20,
            queue_max: 4096,
            cache_bytes: 4 << 20,
            blob_bytes_max: 4 << 30,
            unnamed_blob_age: Duration::from_secs(24 * 3600),
            seal: Seal::default(),
        }
    }

    /// Where identity and keys lie.
    fn place<'a>(&'a self, disk: &'a dyn Disk) -> Place<'a> {
        Place { disk, data: &self.data, seal: &self.seal }
    }
}

/// What a node stands on.
pub(crate) struct Ground {
    pub disk: Arc<dyn Disk>,
    pub config: Config,
    pub shelf: Shelf,
    pub transport: Arc<dyn Transport>,
}

/// A running node. Clones are cheap and name the same node.
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    disk: Arc<dyn Disk>,
    identity: Identity,
    ledger: Arc<Ledger>,
    clock: Arc<Clock>,
    consensus: Consensus,
    proposer: Arc<Proposer>,
    notary: Arc<Notary>,
    writes: mpsc::Sender<Job>,
    reads: mpsc::Sender<ReadJob>,
    /// Of peers that take this node for the leader.
    peer_reads: mpsc::Sender<ReadJob>,
    pings: mpsc::Sender<Ping>,
    /// Whether `node.json` says that the log has been begun.
    begun: AtomicBool,
    /// Rotations of the log key, one at a time.
    rotating: tokio::sync::Mutex<()>,
    /// Held by who has the policy name the voters, and shared by removals: else a leader that removes itself, and has its key as
    /// long as it is there, would be named again before it is gone. One removal may wait for another.
    naming: tokio::sync::RwLock<()>,
    free_bytes: AtomicU64,
    stopping: watch::Sender<bool>,
    /// Set when a part failed for good; the daemon must end and be started again.
    failed: watch::Sender<Option<Error>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Node {
    /// Makes the files of a new ledger in an empty data directory. `name` is the name of the node, `origin` that of the
    /// log.
    ///
    /// # Errors
    /// When there is a ledger already, a name cannot name a key, or a file cannot be written.
    pub fn init(disk: &Arc<dyn Disk>, config: &Config, name: &str, origin: &str) -> Result<LogInfo, Error> {
        let data = &config.data;
        disk.create_directory(data).map_err(|e| Error::io(format!("making {}", data.display()), &e))?;
        Identity::create(config.place(disk.as_ref()), name, origin)?;
        let (identity, keys) = Identity::load(config.place(disk.as_ref()))?;
        Ok(identity.log_info(&keys))
    }

    /// Name of the node whose data directory this is.
    ///
    /// # Errors
    /// As [`Node::start`], when `node.json` is damaged or missing.
    pub fn name_of(disk: &Arc<dyn Disk>, data: &Path) -> Result<String, Error> {
        Identity::read(disk.as_ref(), data).map(|identity| identity.name)
    }

    /// Opens the data directory, replays, and serves. Must be called on the runtime that is to run the node's tasks.
    ///
    /// # Errors
    /// [`Error::Corrupt`] names what is damaged and what to do; nothing is changed then.
    pub fn start(disk: Arc<dyn Disk>, config: Config) -> Doing<'static, Result<Self, Error>> {
        Self::start_with(disk, config, Arc::new(Alone))
    }

    /// [`Node::start`] with a way to reach peers. A node that has some serves before it knows of a leader: until then
    /// writes and linearizable reads wait, and then fail.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub fn start_with(
        disk: Arc<dyn Disk>,
        config: Config,
        transport: Arc<dyn Transport>,
    ) -> Doing<'static, Result<Self, Error>> {
        Box::pin(async move {
            let (identity, keys) = Identity::load(config.place(disk.as_ref()))?;
            let shelf = Shelf::Sled { directory: config.data.join("store"), cache_bytes: config.cache_bytes };
            Self::start_on(Ground { disk, config, shelf, transport }, identity, keys).await
        })
    }

    /// [`Node::start_with`] over any rows.
    pub(crate) async fn start_on(ground: Ground, identity: Identity, keys: Keys) -> Result<Self, Error> {
        let Ground { disk, config, shelf, transport } = ground;
        recover::check_may_start(disk.as_ref(), &config.data)?;
        let (ledger, consensus) = open_ledger(&disk, &config, &identity, shelf, transport).await?;
        if planted(Bug::OutcomesLostAtRestart) {
            ledger.forget_outcomes()?;
        }
        let clock = Arc::new(Clock::default());
        let proposer = Arc::new(consensus.proposer(Arc::clone(&clock), identity.name.clone()));
        let keys = KeyRing::new(Arc::clone(&disk), &config, identity.clone(), keys);
        let (book, time) = (Arc::clone(&ledger), Arc::clone(&clock));
        let notary = Arc::new(Notary::open(&disk, &config.data, book, keys, time)?);
        let (writes, write_queue) = mpsc::channel(config.queue_max);
        let (reads, read_queue) = mpsc::channel(config.queue_max);
        let (peer_reads, peer_read_queue) = mpsc::channel(config.queue_max);
        let (pings, ping_queue) = mpsc::channel(1);
        let begun = AtomicBool::new(identity.begun || !identity.joined);
        let inner = Arc::new(Inner {
            free_bytes: AtomicU64::new(u64::MAX),
            stopping: watch::Sender::new(false),
            failed: watch::Sender::new(None),
            tasks: Mutex::new(Vec::new()),
            config,
            disk,
            identity,
            ledger,
            clock,
            consensus,
            proposer,
            notary,
            writes,
            reads,
            peer_reads,
            pings,
            begun,
            rotating: tokio::sync::Mutex::new(()),
            naming: tokio::sync::RwLock::new(()),
        });
        inner.begin().await?;
        inner.look_at_space();
        let alone = inner.consensus.is_alone().await?;
        inner.notary.check_promise(alone)?;
        inner.notary.keys().settle(&inner.ledger, alone)?;
        // Alone, a node serves no log without a checkpoint of its newest block.
        if alone {
            inner.checkpoint_round().await?;
        }
        inner.spawn_tasks(write_queue, read_queue, peer_read_queue, ping_queue);
        Ok(Self { inner })
    }

    /// Hands the lead over, if this node has it and there are peers, answers what is in flight, makes everything durable,
    /// stops.
    pub fn stop<'a>(&'a self) -> Doing<'a, ()> {
        Box::pin(async move {
            let inner = &self.inner;
            if let Err(error) = self.drain().await {
                tracing::warn!(%error, "the node stops as the leader: the others will elect another");
            }
            inner.stopping.send_replace(true);
            let tasks = std::mem::take(&mut *inner.tasks.lock().unwrap_or_else(PoisonError::into_inner));
            for task in tasks {
                // A task that panicked has said so already.
                let _ = task.await;
            }
            if let Err(error) = inner.make_durable(true, false).await {
                tracing::error!(%error, "the store was not made durable; the raft log brings it again at the next start");
            }
            inner.consensus.stop().await;
            let_go(&inner.ledger, LEDGER_OWNERS).await;
        })
    }

    /// Resolves when a part of the node has failed for good, with the reason.
    pub async fn failure(&self) -> Error {
        let mut failed = self.inner.failed.subscribe();
        match failed.wait_for(Option::is_some).await {
            Ok(error) => error.clone().unwrap_or(Error::Unknown),
            Err(_) => Error::Unknown,
        }
    }

    /// Resolves when it is proved that this node's state is wrong, with both heads.
    pub async fn proved_wrong(&self) -> crate::cosign::Divergence {
        let soundness = self.inner.notary.soundness();
        loop {
            soundness.proved().await;
            if let Some(divergence) = soundness.divergence() {
                return divergence;
            }
        }
    }

    /// Ends the node as one that failed, for this reason.
    pub fn end(&self, error: Error) {
        self.inner.fail(error);
    }

    /// Commits a transaction, or says why it was refused. A write of reserved keys is allowed here; the API refuses them.
    ///
    /// # Errors
    /// [`Error::Invalid`] and [`Error::TooLarge`] before anything is proposed; [`Error::NoRoom`], [`Error::Overloaded`];
    /// [`Error::Unknown`] when the node failed with the write in flight.
    pub async fn write(&self, write: Write) -> Result<Outcome, Error> {
        self.submit(write, false).await
    }

    /// Queues a write for the batcher and waits for its outcome.
    async fn submit(&self, write: Write, accepts_clock: bool) -> Result<Outcome, Error> {
        self.inner.notary.soundness().check()?;
        let named = write.operations.iter().filter_map(|operation| operation.blob().transpose());
        let named = named.collect::<Result<Vec<_>, _>>()?;
        // Held until the outcome is known: what a write names must not be collected under it.
        let pins = if named.is_empty() { None } else { Some(self.inner.pin_copies(named).await?) };
        let write = WriteCommand::prepare(write, |cid| pins.as_ref().and_then(|pins| pins.size(cid)), rt::fill_random)?;
        self.room()?;
        let (reply, answer) = oneshot::channel();
        let job = Job { writes: vec![write], reply, accepts_clock, forwarded: false };
        self.inner.writes.try_send(job).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => Error::Overloaded,
            mpsc::error::TrySendError::Closed(_) => Error::Unavailable("the node is stopping".into()),
        })?;
        only(answer).await
    }

    /// Where the chain stands; the receiver wakes at every block.
    #[must_use]
    pub fn head(&self) -> watch::Receiver<Head> {
        self.inner.ledger.head()
    }

    /// Returns when everything acknowledged before the call is applied here and this node still leads.
    ///
    /// # Errors
    /// [`Error::NotLeader`], [`Error::Unavailable`].
    pub async fn barrier(&self) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        self.inner.reads.try_send(reply).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => Error::Overloaded,
            mpsc::error::TrySendError::Closed(_) => Error::Unavailable("the node is stopping".into()),
        })?;
        answer.await.unwrap_or_else(|_| Err(Error::Unavailable("the node is stopping".into())))
    }

    /// Whether a write would find room.
    ///
    /// # Errors
    /// [`Error::NoRoom`].
    pub fn room(&self) -> Result<(), Error> {
        self.inner.notary.soundness().check()?;
        let (free_bytes, reserve_bytes) = (self.inner.free_bytes.load(Relaxed), self.inner.config.reserve_bytes);
        if free_bytes < reserve_bytes { Err(Error::NoRoom { free_bytes, reserve_bytes }) } else { Ok(()) }
    }

    /// How the node is.
    #[must_use]
    pub fn status(&self) -> Status {
        let inner = &self.inner;
        let consensus = inner.consensus.status();
        let clock = self.clock();
        let chain = inner.ledger.chain();
        let stages = &inner.ledger.stages;
        let map = inner.ledger.map.sizes().unwrap_or_default();
        let store_bytes = inner.ledger.rows.disk_bytes();
        let archive = inner.ledger.archive.status();
        let blobs = inner.ledger.blobs.status();
        Status {
            node: inner.identity.node,
            name: inner.identity.name.clone(),
            role: consensus.role,
            leader: consensus.leader,
            term: consensus.term,
            voters: consensus.voters,
            raft_restarts: consensus.restarts,
            draining: self.is_draining(),
            clock_off_ms: inner.consensus.clock_off_ms(),
            refused_by_peers: inner.consensus.standing().accusation(),
            refused_members: inner.consensus.standing().faults(),
            raft_index: consensus.last_index,
            applied_index: consensus.applied_index,
            waiting_writes: inner.writes.max_capacity() - inner.writes.capacity(),
            waiting_writes_max: inner.writes.max_capacity(),
            head: chain.head.view(),
            checkpoint_size: inner.notary.published().map_or(0, |p| p.size),
            checkpoint_rounds: inner.notary.rounds(),
            divergence: inner.notary.soundness().divergence(),
            forged_checkpoints: inner.notary.soundness().forged(),
            keys: map.live_keys,
            free_bytes: inner.free_bytes.load(Relaxed),
            reserve_bytes: inner.config.reserve_bytes,
            store_bytes,
            data_bytes: store_bytes
                + archive.bytes
                + blobs.bytes
                + map.file_bytes
                + chain.head.slots * 32
                + consensus.log.segment_bytes,
            stores_set_aside: inner.ledger.set_aside.clone(),
            archive,
            blobs,
            clock,
            raft_log: consensus.log,
            apply: ApplyStages {
                entries: stages.entries.load(Relaxed),
                rows: stages.row_count.load(Relaxed),
                decode_ns: stages.decode.load(Relaxed),
                transactions_ns: stages.transactions.load(Relaxed),
                state_map_ns: stages.map.load(Relaxed),
                archive_ns: stages.archive.load(Relaxed),
                rows_ns: stages.rows.load(Relaxed),
            },
        }
    }
}

impl Inner {
    /// First entry of a new log: its keys and its policy, so that later changes of them form a chain of receipts.
    async fn begin(&self) -> Result<(), Error> {
        // A node that joins has begun once it has something of the cluster's: `note_begun`.
        if self.identity.begun || self.identity.joined {
            return Ok(());
        }
        let LogInfo { vkey, cosigners, policy, .. } = self.notary.keys().log_info();
        let author = self.identity.name.clone();
        if self.ledger.newest().system_revision == 0 {
            let time_ms = self.clock.read(0).sure_ms;
            let command = Command::Cosigners { time_ms, author, log: vkey, cosigners, policy };
            self.consensus.propose(&command).await?;
        }
        let begun = Identity { begun: true, ..self.identity.clone() };
        begun.save(self.disk.as_ref(), &self.config.data)
    }

    fn spawn_tasks(
        self: &Arc<Self>,
        writes: mpsc::Receiver<Job>,
        reads: mpsc::Receiver<ReadJob>,
        peer_reads: mpsc::Receiver<ReadJob>,
        pings: mpsc::Receiver<Ping>,
    ) {
        let stopping = self.stopping.subscribe();
        let tasks = vec![
            rt::spawn(batcher(Arc::clone(&self.proposer), writes, pings, stopping.clone())),
            rt::spawn(self.consensus.read_barrier(reads, stopping.clone(), Reads::Own)),
            rt::spawn(self.consensus.read_barrier(peer_reads, stopping.clone(), Reads::OfPeers)),
            rt::spawn(until(stopping.clone(), tasks::stand_for_election(Arc::clone(self)))),
            rt::spawn(until(stopping.clone(), tasks::checkpoints(Arc::clone(self)))),
            rt::spawn(until(stopping.clone(), tasks::watch_core(Arc::clone(self)))),
            rt::spawn(until(stopping.clone(), tasks::watch_epoch(Arc::clone(self)))),
            rt::spawn(until(stopping.clone(), tasks::watch_fitness(Arc::clone(self)))),
            rt::spawn(until(stopping.clone(), tasks::maintain(Arc::clone(self)))),
            rt::spawn(until(stopping.clone(), tasks::scrub(Arc::clone(self)))),
            rt::spawn(until(stopping.clone(), refused::keep(Arc::clone(self)))),
            rt::spawn(until(stopping.clone(), blobs::scrub(Arc::clone(self)))),
            rt::spawn(until(stopping.clone(), blobs::collect(Arc::clone(self)))),
            rt::spawn(until(stopping, copies::heal(Arc::clone(self)))),
        ];
        *self.tasks.lock().unwrap_or_else(PoisonError::into_inner) = tasks;
    }

    fn look_at_space(&self) {
        match self.disk.free_bytes(&self.config.data) {
            Ok(bytes) => self.free_bytes.store(bytes, Relaxed),
            Err(error) => tracing::warn!(%error, "free space is not known"),
        }
    }

    /// Makes what is applied durable and lets the raft log go up to there; says whether it went. `all`: with the pages of
    /// the state map; `seal` closes the raft log's segment too.
    async fn make_durable(&self, all: bool, seal: bool) -> Result<bool, Error> {
        let ledger = Arc::clone(&self.ledger);
        if planted(Bug::ReleasedBeforeDurable) {
            let head = ledger.chain().head.clone();
            return self.consensus.release(&head, seal).await;
        }
        let synced = rt::blocking(move || {
            let _span = trace::span("store: make durable");
            ledger.sync(all)
        })
        .await;
        let head = synced.map_err(|e| Error::Corrupt(format!("making the store durable: {e}")))??;
        self.consensus.release(&head, seal).await
    }

    /// Passes an answer of the ledger on. One that shows that the store is damaged ends the node: it is rebuilt at the next
    /// start.
    fn checked<T>(&self, answer: Result<T, Error>) -> Result<T, Error> {
        if let Err(error @ Error::DamagedStore(_)) = &answer {
            self.fail(error.clone());
        }
        answer
    }

    /// Removes the raft log of a quarantine: it has values in the clear, and one was erased.
    fn forget_quarantined_values(&self) -> Result<(), Error> {
        let directory = self.config.data.join(QUARANTINE).join("raft");
        let Ok(names) = self.disk.list(&directory) else { return Ok(()) };
        for name in names {
            let path = directory.join(name);
            self.disk.remove(&path).map_err(|e| Error::io(format!("removing {}", path.display()), &e))?;
        }
        Ok(())
    }

    fn fail(&self, error: Error) {
        self.ledger.suspicion.note_if_damaged(&error);
        tracing::error!(%error, "the node has failed and must be started again");
        self.failed.send_replace(Some(error));
    }
}

#[cfg(test)]
mod tests;
