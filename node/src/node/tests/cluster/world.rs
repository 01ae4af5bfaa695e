//! A cluster in a simulated world: machines, their disks, the network between them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::super::*;
use super::checkpoints::Watched;
use crate::checkpoint::Checkpoint;
use crate::raft::{Question, SNAPSHOT_GONE};
use crate::rt::sim::{Machine as Power, sleep_true, spawn_outside};
use crate::transport::sim::{SimNetwork, Weather};

mod checks;
mod members;

/// How long a machine takes to boot, in milliseconds.
const BOOT_MS: std::ops::Range<u64> = 1..300;
/// How long a start may take.
const START_WAIT: Duration = Duration::from_secs(30);

/// What lies on one machine and outlives its crashes.
struct Host {
    disk: SimDisk,
    rows: Arc<MemoryRows>,
    fsync_us: std::ops::Range<u64>,
}

/// What is counted when a node that may fails, or does not start.
struct Excuse {
    failed: &'static str,
    no_start: &'static str,
}

/// The world. Clones name the same one.
#[derive(Clone)]
pub(super) struct World(Arc<Shared>);

struct Shared {
    pub network: SimNetwork,
    hosts: BTreeMap<u64, Mutex<Host>>,
    state: Mutex<State>,
}

struct State {
    rng: StdRng,
    /// What went against what must hold, first first.
    violations: Vec<String>,
    /// Nodes that ended by themselves, first first: wrong too, but it says less.
    failures: Vec<String>,
    checkpoints: Watched,
    counts: BTreeMap<&'static str, u64>,
    /// The newest term that each node was seen in.
    terms: BTreeMap<u64, u64>,
    /// Nodes that belong to the cluster, or are to.
    active: BTreeSet<u64>,
    /// Nodes that are being started: not twice at once.
    starting: BTreeSet<u64>,
    /// Nothing new goes wrong, and clients begin nothing.
    calm: bool,
    /// Nodes that were removed from the cluster and run on.
    removed: BTreeSet<u64>,
    /// Nodes whose disk is full, or was until a moment ago: they may end, and need not start.
    full: BTreeSet<u64>,
    /// A node with bits flipped in its files: it may end, need not start, and may be refused by its peers. Others have to do
    /// without it, so there is never more than one.
    damaged: Option<u64>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Free space below which a node takes no writes, in bytes.
pub(super) const RESERVE_BYTES: u64 = 6 << 20;

fn config() -> Config {
    Config { reserve_bytes: RESERVE_BYTES, unnamed_blob_age: UNNAMED_BLOB_AGE, ..Config::new(DATA) }
}

/// A write of one key, whose value is its name.
pub(super) fn put(name: &str) -> Write {
    let operation = Operation::Put {
        key: Key::client(name).unwrap(),
        value: Bytes::from(name.to_owned()),
        media_type: "a/b".into(),
        blob: false,
    };
    Write { author: "client".into(), requirements: Vec::new(), operations: vec![operation], idempotency: None }
}

impl World {
    pub(super) fn new(seed: u64, nodes: u64) -> Self {
        Self::with_spares(seed, nodes, 0)
    }

    /// With machines that belong to no cluster yet.
    pub(super) fn with_spares(seed: u64, nodes: u64, spares: u64) -> Self {
        Watched::forget();
        let host = |id| Host { disk: SimDisk::new(seed ^ id << 32), rows: Arc::default(), fsync_us: 300..3000 };
        let state = State {
            rng: StdRng::seed_from_u64(seed ^ 0xfa17),
            violations: Vec::new(),
            failures: Vec::new(),
            checkpoints: Watched::default(),
            counts: BTreeMap::new(),
            terms: BTreeMap::new(),
            active: (1..=nodes).collect(),
            starting: BTreeSet::new(),
            calm: false,
            removed: BTreeSet::new(),
            full: BTreeSet::new(),
            damaged: None,
        };
        Self(Arc::new(Shared {
            network: SimNetwork::new(seed ^ 0x0e7, Weather::fair()),
            hosts: (1..=nodes + spares).map(|id| (id, Mutex::new(host(id)))).collect(),
            state: Mutex::new(state),
        }))
    }

    pub(super) fn network(&self) -> &SimNetwork {
        &self.0.network
    }

    /// The nodes that belong to the cluster.
    pub(super) fn ids(&self) -> Vec<u64> {
        lock(&self.0.state).active.iter().copied().collect()
    }

    /// One of them.
    pub(super) fn any(&self) -> u64 {
        let ids = self.ids();
        ids[usize::try_from(self.draw(0..ids.len() as u64)).unwrap()]
    }

    pub(super) fn draw(&self, range: std::ops::Range<u64>) -> u64 {
        lock(&self.0.state).rng.gen_range(range)
    }

    pub(super) fn chance(&self, share: f64) -> bool {
        lock(&self.0.state).rng.gen_bool(share)
    }

    pub(super) fn count(&self, what: &'static str) {
        *lock(&self.0.state).counts.entry(what).or_default() += 1;
        self.network().note(|| what.into());
    }

    /// Counts a fault of a kind.
    pub(super) fn fault(&self, kind: &'static str) {
        self.count("faults");
        self.count(kind);
    }

    /// How often something was counted so far.
    pub(super) fn counted(&self, what: &str) -> u64 {
        lock(&self.0.state).counts.get(what).copied().unwrap_or(0)
    }

    /// Faults and clients come to their end.
    pub(super) fn calm_down(&self) {
        lock(&self.0.state).calm = true;
    }

    /// Whether they are to.
    pub(super) fn is_calm(&self) -> bool {
        lock(&self.0.state).calm
    }

    /// Counts what the nodes and the network counted themselves.
    pub(super) fn count_standing(&self) {
        let restarts =
            self.ids().iter().filter_map(|id| self.node(*id)).map(|(_, node)| node.status().raft_restarts).sum();
        let network = self.network().counts();
        let mut state = lock(&self.0.state);
        let elections = state.terms.values().max().copied().unwrap_or(0);
        let counted = [
            ("restarts of the Raft core", restarts),
            ("elections", elections),
            ("snapshots", network.snapshots),
            ("messages", network.delivered + network.repeated),
        ];
        state.counts.extend(counted);
    }

    pub(super) fn counts(&self) -> BTreeMap<&'static str, u64> {
        lock(&self.0.state).counts.clone()
    }

    pub(super) fn violated(&self, what: String) {
        self.network().note(|| format!("VIOLATED {what}"));
        lock(&self.0.state).violations.push(what);
    }

    /// What must hold and did not.
    pub(super) fn violation(&self) -> Option<String> {
        lock(&self.0.state).violations.first().cloned()
    }

    /// A node that ended by itself.
    pub(super) fn failure(&self) -> Option<String> {
        lock(&self.0.state).failures.first().cloned()
    }

    fn host(&self, id: u64) -> MutexGuard<'_, Host> {
        lock(&self.0.hosts[&id])
    }

    pub(super) fn disk(&self, id: u64) -> SimDisk {
        self.host(id).disk.clone()
    }

    /// The node that runs on a machine, and the machine; `None` while it is down.
    pub(super) fn node(&self, id: u64) -> Option<(Power, Node)> {
        self.network().peek(id)
    }

    /// Runs on the node's machine; `None` when it is down, or goes down meanwhile.
    pub(super) async fn on<T, F>(&self, id: u64, act: impl FnOnce(Node) -> F) -> Option<T>
    where
        F: Future<Output = T> + Send + 'static,
        T: Send + 'static,
    {
        let (power, node) = self.node(id)?;
        power.spawn(act(node)).await.ok()
    }

    /// Makes the first node's files.
    pub(super) fn found(&self) {
        let disk: Arc<dyn Disk> = Arc::new(self.disk(1));
        Node::init(&disk, &config(), "node1", "sim.example").unwrap();
    }

    /// Starts a node on a fresh start of its machine; whether it came up.
    pub(super) async fn start(&self, id: u64) -> bool {
        if self.node(id).is_some() || !lock(&self.0.state).starting.insert(id) {
            return false;
        }
        let power = Power::default();
        let ppm = self.draw(980_000..1_020_000);
        power.set_timer_ppm(ppm);
        let (disk, rows) = {
            let host = self.host(id);
            power.set_fsync_us(host.fsync_us.clone());
            (host.disk.clone(), Arc::clone(&host.rows))
        };
        self.network().note(|| format!("start of {id}, timers at {ppm} ppm"));
        let transport = self.network().transport(id);
        let started = power.spawn(async move {
            let disk: Arc<dyn Disk> = Arc::new(disk);
            let (identity, keys) = Identity::load(config().place(disk.as_ref()))?;
            let shelf = Shelf::Memory(rows);
            Node::start_on(Ground { disk, config: config(), shelf, transport }, identity, keys).await
        });
        let started = tokio::time::timeout(START_WAIT, started).await;
        lock(&self.0.state).starting.remove(&id);
        match started {
            Ok(Ok(Ok(node))) => {
                self.network().attach(id, power.clone(), node.clone());
                self.watch(id, power, node);
                true
            }
            Ok(Ok(Err(error))) => {
                // A crash point of the disk may have come during the start; everything else must not be.
                self.network().note(|| format!("node {id} does not start: {error}"));
                match self.excuse(id) {
                    Some(excuse) => self.count(excuse.no_start),
                    None if self.disk(id).is_dead() => {}
                    None => self.violated(format!("node {id} does not start: {error}")),
                }
                power.kill();
                self.settle(id);
                false
            }
            Ok(Err(_)) | Err(_) => {
                self.violated(format!("node {id} did not come up within {START_WAIT:?}"));
                power.kill();
                self.settle(id);
                false
            }
        }
    }

    /// Starts a daemon that has ended again, as its service manager does.
    fn watch(&self, id: u64, power: Power, node: Node) {
        let world = self.clone();
        let failed = power.spawn(async move { node.failure().await });
        spawn_outside(async move {
            let Ok(error) = failed.await else { return };
            world.network().note(|| format!("node {id} failed: {error}"));
            match world.excuse(id) {
                _ if world.disk(id).is_dead() => world.count("failed by its disk"),
                Some(excuse) => world.count(excuse.failed),
                // As a daemon does: its service manager starts it again.
                None if error.to_string().contains(SNAPSHOT_GONE) => world.count("snapshot gone"),
                None => {
                    world.count("failed");
                    lock(&world.0.state).failures.push(format!("node {id} failed: {error}"));
                }
            }
            if world.crash(id) {
                sleep_true(Duration::from_millis(world.draw(BOOT_MS))).await;
                world.start(id).await;
            }
        });
    }

    /// Why a node may end by itself, and need not start.
    fn excuse(&self, id: u64) -> Option<Excuse> {
        let state = lock(&self.0.state);
        if state.damaged == Some(id) {
            return Some(Excuse { failed: "failed by its damage", no_start: "not started by its damage" });
        }
        let full = Excuse { failed: "failed by its full disk", no_start: "not started by its full disk" };
        state.full.contains(&id).then_some(full)
    }

    /// Fills a disk but for so many bytes.
    pub(super) fn fill(&self, id: u64, room: u64) {
        lock(&self.0.state).full.insert(id);
        let disk = self.disk(id);
        disk.set_capacity(disk.used_bytes() + room);
    }

    /// Makes room on a full disk.
    pub(super) fn make_room(&self, id: u64) {
        self.disk(id).set_capacity(u64::MAX);
    }

    /// From now on a node has to do without excuses: its disk has had room for a while.
    pub(super) fn excuse_no_more(&self, id: u64) {
        lock(&self.0.state).full.remove(&id);
    }

    /// The node with damaged files.
    pub(super) fn damaged(&self) -> Option<u64> {
        lock(&self.0.state).damaged
    }

    /// Says which node has damaged files.
    pub(super) fn note_damage(&self, id: Option<u64>) {
        lock(&self.0.state).damaged = id;
    }

    /// Nodes that were removed and run on.
    pub(super) fn removed(&self) -> Vec<u64> {
        lock(&self.0.state).removed.iter().copied().collect()
    }

    /// Cuts the power of a machine; whether it was up.
    pub(super) fn crash(&self, id: u64) -> bool {
        let Some((power, node)) = self.network().detach(id) else { return false };
        self.count("crashes");
        self.network().note(|| format!("crash of {id}"));
        power.kill();
        drop(node);
        self.settle(id);
        true
    }

    fn settle(&self, id: u64) {
        let survivors = self.draw(0..8);
        let host = self.host(id);
        host.disk.crash();
        host.rows.crash(usize::try_from(survivors).unwrap());
    }

    /// A copy of what lies on a machine.
    pub(super) fn copy(&self, id: u64) -> (SimDisk, Arc<MemoryRows>) {
        let host = self.host(id);
        (host.disk.copied(), Arc::new(MemoryRows::copied(&host.rows)))
    }

    /// Puts a copy of before onto a machine that is down.
    pub(super) fn put_back(&self, id: u64, (disk, rows): (SimDisk, Arc<MemoryRows>)) {
        let mut host = self.host(id);
        host.disk = disk;
        host.rows = rows;
    }

    /// Starts a copy of a machine beside it: both speak as one node, and peers reach the copy. Gives the original.
    pub(super) async fn start_copy(&self, id: u64) -> (Power, Node) {
        let copy = self.copy(id);
        let original = self.network().detach(id).unwrap();
        self.put_back(id, copy);
        assert!(self.start(id).await, "the copy of node {id} starts");
        original
    }

    /// Bounds of an fsync on a machine, from its next start on too.
    pub(super) fn set_fsync_us(&self, id: u64, us: std::ops::Range<u64>) {
        self.host(id).fsync_us = us.clone();
        if let Some((power, _)) = self.node(id) {
            power.set_fsync_us(us);
        }
    }

    /// Loses a copy of the data that can be made again from the rest, on a machine that is down.
    pub(super) fn lose(&self, id: u64, loss: Loss) {
        let host = self.host(id);
        Machine { disk: host.disk.clone(), rows: Arc::clone(&host.rows) }.lose(loss);
    }

    /// Ends every fault.
    pub(super) async fn heal(&self) {
        self.network().heal();
        self.network().set_weather(Weather::fair());
        for id in self.ids().into_iter().chain(self.removed()) {
            self.set_fsync_us(id, 300..3000);
            self.disk(id).crash_at(u64::MAX, CrashPoint::Before);
            self.make_room(id);
            if let Some((power, _)) = self.node(id) {
                power.resume();
                power.set_wall_offset_ms(0);
            }
        }
        let mut down: VecDeque<_> = self.ids().into_iter().filter(|id| self.node(*id).is_none()).collect();
        while let Some(id) = down.pop_front() {
            // One that is just being started by somebody else comes up by itself.
            self.start(id).await;
        }
    }
}
