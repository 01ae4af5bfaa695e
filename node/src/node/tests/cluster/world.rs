//! A cluster in a simulated world: machines, their disks, the network between them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::super::*;
use super::checkpoints::Watched;
use crate::checkpoint::Checkpoint;
use crate::raft::Question;
use crate::rt::sim::{Machine as Power, sleep_true, spawn_outside};
use crate::transport::sim::{SimNetwork, Weather};

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
    active: std::collections::BTreeSet<u64>,
    /// Nodes that are being started: not twice at once.
    starting: std::collections::BTreeSet<u64>,
    /// Nothing new goes wrong, and clients begin nothing.
    calm: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn config() -> Config {
    Config { reserve_bytes: 0, unnamed_blob_age: UNNAMED_BLOB_AGE, ..Config::new(DATA) }
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
            starting: std::collections::BTreeSet::new(),
            calm: false,
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
                if !self.disk(id).is_dead() {
                    self.violated(format!("node {id} does not start: {error}"));
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
            let by_disk = world.disk(id).is_dead();
            world.count(if by_disk { "failed by its disk" } else { "failed" });
            if !by_disk {
                lock(&world.0.state).failures.push(format!("node {id} failed: {error}"));
            }
            if world.crash(id) {
                sleep_true(Duration::from_millis(world.draw(BOOT_MS))).await;
                world.start(id).await;
            }
        });
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

    /// The whole cluster: the first node begins it, the others join it and become voters.
    pub(super) async fn found_cluster(&self) {
        self.try_to_found().await.unwrap_or_else(|why| panic!("{why}"));
    }

    /// The same; what does not come about is an error.
    pub(super) async fn try_to_found(&self) -> Result<(), String> {
        self.found();
        assert!(self.start(1).await, "the first node starts");
        self.on(1, |node| async move { node.set_address(1, "node1:8444").await }).await.unwrap().unwrap();
        for id in self.ids().into_iter().skip(1) {
            self.join(id).await;
            self.grow(id).await;
        }
        self.wait_for_cosigners().await
    }

    /// Waits until the policy names all nodes.
    async fn wait_for_cosigners(&self) -> Result<(), String> {
        let ids = self.ids();
        for _ in 0..2000 {
            let named = |id: &u64| self.node(*id).map_or(0, |(_, node)| node.log_info().cosigners.len());
            if ids.iter().all(|id| named(id) == ids.len()) {
                return Ok(());
            }
            sleep_true(Duration::from_millis(5)).await;
        }
        Err(format!("the policy does not come to name all of {ids:?} within 10 s"))
    }

    /// Makes the files of a node that joins, and starts it.
    pub(super) async fn join(&self, id: u64) {
        let admission = self.on(1, move |node| async move { node.admission(id) }).await.unwrap().unwrap();
        let disk: Arc<dyn Disk> = Arc::new(self.disk(id));
        Node::join(&disk, &config(), &format!("node{id}"), &admission).unwrap();
        assert!(self.start(id).await, "node {id} starts");
    }

    /// Verifier key of the cosignatures of a node whose files are made.
    fn cosigner(&self, id: u64) -> String {
        let disk: Arc<dyn Disk> = Arc::new(self.disk(id));
        Node::cosigner_of(&disk, &config().data).unwrap()
    }

    /// Brings a spare machine in, as far as the faults let it.
    pub(super) async fn try_to_grow(&self) {
        let used = |id: &u64| !self.disk(*id).files().is_empty();
        let Some(id) = self.0.hosts.keys().copied().find(|id| !used(id)) else { return };
        let Some(Ok(admission)) = self.on(self.any(), move |node| async move { node.admission(id) }).await else {
            return;
        };
        let disk: Arc<dyn Disk> = Arc::new(self.disk(id));
        Node::join(&disk, &config(), &format!("node{id}"), &admission).unwrap();
        lock(&self.0.state).active.insert(id);
        self.start(id).await;
        let (address, cosigner) = (format!("node{id}:8444"), self.cosigner(id));
        let taken_in = self.try_to_lead(|node| {
            let (address, cosigner) = (address.clone(), cosigner.clone());
            async move { node.add_learner(id, &address, &cosigner).await }
        });
        if taken_in.await && self.try_to_lead(|node| async move { node.promote(id).await }).await {
            self.count("member added");
        }
    }

    /// Takes a member out, as far as the faults let it.
    pub(super) async fn try_to_shrink(&self) {
        let gone = self.any();
        let removed = self.try_to_lead(|node| async move {
            match node.remove(gone).await {
                Err(Error::NotFound(_)) => Ok(()),
                done => done,
            }
        });
        if removed.await {
            self.count("member removed");
            sleep_true(Duration::from_millis(self.draw(0..1000))).await;
            self.retire(gone);
        }
    }

    /// A node that is no member any more is switched off.
    pub(super) fn retire(&self, gone: u64) {
        lock(&self.0.state).active.remove(&gone);
        self.crash(gone);
    }

    async fn try_to_lead<F>(&self, act: impl Fn(Node) -> F) -> bool
    where
        F: Future<Output = Result<(), Error>> + Send + 'static,
    {
        for _ in 0..20 {
            if let Some(leader) = self.leader()
                && let Ok(Some(Ok(()))) = tokio::time::timeout(Duration::from_secs(2), self.on(leader, &act)).await
            {
                return true;
            }
            sleep_true(Duration::from_millis(100)).await;
        }
        false
    }

    /// Brings the machines that run in line with what the leader says of the members.
    pub(super) async fn reconcile(&self) {
        self.heal().await;
        let leader = self.wait_for_leader().await;
        let Some(members) = self.node(leader).map(|(_, node)| node.members()) else { return };
        let members: std::collections::BTreeSet<u64> = members.into_iter().map(|member| member.node).collect();
        for id in self.ids().into_iter().filter(|id| !members.contains(id)) {
            self.crash(id);
        }
        lock(&self.0.state).active = members;
        self.heal().await;
    }

    /// Has the leader take a node in and make it a voter.
    pub(super) async fn grow(&self, id: u64) {
        let (address, cosigner) = (format!("node{id}:8444"), self.cosigner(id));
        let adding = |node: Node| {
            let (address, cosigner) = (address.clone(), cosigner.clone());
            async move { node.add_learner(id, &address, &cosigner).await }
        };
        self.lead(&format!("taking in node {id}"), adding).await;
        self.lead(&format!("promoting node {id}"), |node| async move { node.promote(id).await }).await;
    }

    /// Does something on whoever leads, until it is done; panics after a minute.
    pub(super) async fn lead<F>(&self, what: &str, act: impl Fn(Node) -> F)
    where
        F: Future<Output = Result<(), Error>> + Send + 'static,
    {
        let mut last = "no node was up".to_owned();
        for round in 0..600u64 {
            let ids = self.ids();
            let id = ids[usize::try_from(round).unwrap() % ids.len()];
            match tokio::time::timeout(Duration::from_secs(5), self.on(id, &act)).await {
                Ok(Some(Ok(()))) => return,
                Ok(Some(Err(error))) => last = error.to_string(),
                Ok(None) => {}
                Err(_) => last = "no answer".into(),
            }
            sleep_true(Duration::from_millis(100)).await;
        }
        panic!("{what}: {last}");
    }

    /// Whether nodes are all up, at one end of the chain log, and have signed it.
    pub(super) fn is_level(&self, ids: &[u64]) -> bool {
        let ends = ids.iter().flat_map(|id| match self.node(*id) {
            Some((_, node)) => {
                let status = node.status();
                [status.head.size, status.checkpoint_size]
            }
            None => [0, u64::MAX],
        });
        ends.collect::<std::collections::BTreeSet<_>>().len() == 1
    }

    /// Who leads, as the nodes say that are up.
    pub(super) fn leader(&self) -> Option<u64> {
        let leads = |id: &u64| self.node(*id).is_some_and(|(_, node)| node.status().role == "leader");
        self.ids().into_iter().filter(leads).max_by_key(|id| self.node(*id).map_or(0, |(_, n)| n.status().term))
    }

    /// Waits until somebody leads.
    pub(super) async fn wait_for_leader(&self) -> u64 {
        for _ in 0..10_000 {
            if let Some(id) = self.leader() {
                return id;
            }
            sleep_true(Duration::from_millis(1)).await;
        }
        panic!("nobody leads after 10 s");
    }

    /// Looks at the terms: what a node has voted for it never forgets.
    pub(super) fn look_at_terms(&self) {
        for id in self.ids() {
            let Some(status) = self.node(id).map(|(_, node)| node.status()).filter(|s| s.role != "stopped") else {
                continue;
            };
            let before = {
                let mut state = lock(&self.0.state);
                let newest = state.terms.entry(id).or_default();
                std::mem::replace(newest, status.term.max(*newest))
            };
            if let Some((member, fault)) = status.refused_members.first() {
                self.violated(format!("node {id} refuses node {member}, which is whole: {fault}"));
            }
            if status.term < before {
                self.violated(format!("node {id} is in term {} and was in {before}: it forgot a vote", status.term));
            }
        }
    }

    /// Looks at what was signed, and at the checkpoints that are served now.
    pub(super) fn look_at_checkpoints(&self) {
        let served = self.ids().into_iter().filter_map(|id| self.node(id)?.1.checkpoint());
        let served: Vec<_> = served.collect();
        // The lock is let go before what was seen is noted.
        let looked = lock(&self.0.state).checkpoints.look(served);
        if let Err(what) = looked {
            self.violated(what);
        }
    }

    /// What must hold of checkpoints, against the chain log that the nodes came to.
    pub(super) fn check_checkpoints(&self, lines: &[Vec<u8>]) -> Result<(), String> {
        lock(&self.0.state).checkpoints.check(lines)
    }

    /// Every voter comes to hold the log key in force, which they agree on, and to have ended every hand-over.
    pub(super) async fn check_log_keys(&self) -> Result<(), String> {
        let mut last = String::new();
        for _ in 0..100 {
            let all = self.ids().into_iter().filter_map(|id| Some((id, self.node(id)?.1)));
            // A learner gets it when it is promoted.
            let votes = |id: u64, node: &Node| node.members().iter().any(|member| member.voter && member.node == id);
            let voters = all.filter(|(id, node)| votes(*id, node));
            let all: Vec<_> =
                voters.map(|(id, node)| (id, node.log_info().vkey, node.inner.notary.keys().held())).collect();
            let first = all.first().map(|(_, named, _)| named.clone()).unwrap_or_default();
            if all.iter().all(|(_, named, held)| *named == first && held.0 == first) {
                return Ok(());
            }
            last = format!("{all:?}");
            sleep_true(Duration::from_millis(100)).await;
        }
        Err(format!("voters do not come to hold the log key that the log names: {last}"))
    }

    /// Has the leader rotate the log key, as far as the faults let it.
    pub(super) async fn try_to_rotate(&self) {
        let Some(leader) = self.leader() else { return };
        let rotated = self.on(leader, |node| async move { node.rotate_log_key("admin").await.map(drop) });
        match tokio::time::timeout(Duration::from_secs(5), rotated).await {
            Ok(Some(Ok(()))) => self.count("rotation"),
            _ => self.count("rotation in doubt"),
        }
    }

    /// Shows a node a head that is not the log's, signed by the log key, as from another member.
    pub(super) fn show_forged(&self, victim: u64) {
        let (from, beyond) = (self.any(), self.draw(0..4).saturating_sub(1));
        let (Some((power, node)), Some((_, sender))) = (self.node(victim), self.node(from)) else { return };
        if from == victim {
            return;
        }
        let mut root = [0; 32];
        root[..8].copy_from_slice(&self.draw(0..u64::MAX).to_le_bytes());
        let size = node.head().borrow().size + beyond;
        let text = Checkpoint { origin: "sim.example".into(), size, root }.to_text();
        let note = node.inner.notary.keys().sign_blindly(&text);
        let raft_index = node.status().applied_index;
        let question = match self.chance(0.7) {
            true => Question::Cosign { note, raft_index, state: root },
            false => Question::Publish { note, raft_index },
        };
        let message = sender.inner.consensus.message(question);
        power.spawn(async move { node.answer(from, message).await });
    }

    /// Ends every fault.
    pub(super) async fn heal(&self) {
        self.network().heal();
        self.network().set_weather(Weather::fair());
        for id in self.ids() {
            self.set_fsync_us(id, 300..3000);
            self.disk(id).crash_at(u64::MAX, CrashPoint::Before);
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
