//! Random faults over real processes: nodes in network namespaces of their own, each with its own disk, clients of every
//! node, and a judge of what they saw that was not written here (`todc-utils`). `tests/faults` runs it.

mod aftermath;
mod clients;
mod history;
mod network;
mod schedule;
mod world;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::task::JoinSet;

use crate::{Client, Daemon, cluster};
use aftermath::Auditor;
use clients::{Ledger, Story, Worker};
use history::{Act, Operation, Verdict, judge};
use world::World;

/// Clients in all, spread over the nodes.
const CLIENTS: usize = 12;
/// Of writes after the last fault.
const CALM: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(100);
/// For a read when all is well again.
const READ_WITHIN: Duration = Duration::from_secs(30);

/// What is run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Of the schedule and of what clients ask.
    pub seed: u64,
    /// How many.
    pub nodes: usize,
    /// Of faults.
    pub duration: Duration,
    /// Whether disks stand still, and nothing else happens: then nobody may be elected.
    pub stalls: bool,
    /// For disks, journals and, when something is wrong, the history.
    pub directory: PathBuf,
}

/// Runs one schedule and judges what came of it; the line with the counts.
///
/// # Errors
/// With what was wrong. The history of each key, the faults and the journals then lie in the directory.
pub async fn run(settings: &Settings) -> Result<String> {
    let draw = if settings.stalls { schedule::draw_stalls } else { schedule::draw };
    let rows = draw(settings.seed, settings.nodes, settings.duration);
    let (world, auditor, ledger) = world::build(&settings.directory, settings.nodes).await?;
    let begins = term(&ledger).await?;
    let terms = Arc::new(AtomicU64::new(0));
    let (calm, over) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let mut watches = JoinSet::new();
    for place in 0..settings.nodes {
        watches.spawn(watch(Arc::clone(&world), Arc::clone(&ledger), place, Arc::clone(&terms)));
    }
    let mut workers = JoinSet::new();
    for number in 0..CLIENTS.max(2 * settings.nodes) {
        workers.spawn(Worker::new(&ledger, number, settings.seed).run(Arc::clone(&over)));
    }
    let faults = fs::File::create(settings.directory.join("faults.txt"))?;
    let mut hands: Vec<JoinHandle<Result<()>>> = Vec::new();
    for (number, row) in rows.into_iter().enumerate() {
        let (world, faults, begun) = (Arc::clone(&world), faults.try_clone()?, ledger.begun);
        hands.push(std::thread::spawn(move || {
            world.act(&row, |fault| {
                // A line that cannot be written must not end the run.
                let _ = writeln!(&faults, "{:9.3} s, row {number}: {fault}", begun.elapsed().as_secs_f64());
            })
        }));
    }
    let supervisor = {
        let (world, calm) = (Arc::clone(&world), Arc::clone(&calm));
        std::thread::spawn(move || world.supervise(&calm))
    };
    // What is there is judged all the same, and the history kept.
    let mut unmade: Vec<String> = Vec::new();
    for hand in hands {
        if let Err(error) = ended(hand).await {
            unmade.push(format!("{error:#}"));
        }
    }
    tokio::time::sleep(CALM).await;
    over.store(true, Relaxed);
    let mut stories = Vec::new();
    while let Some(story) = workers.join_next().await {
        stories.push(story??);
    }
    calm.store(true, Relaxed);
    ended(supervisor).await.context("a node could not be started again")?;
    watches.shutdown().await;
    let world = Arc::into_inner(world).context("the nodes are still held by a thread")?;
    let (counts, died) = (world.counts(), world.ended());
    let (mut nodes, disks) = world.into_nodes();
    let mut run = Run { settings, stories, counts, died, elections: terms.load(Relaxed) };
    let judged = run.judge(&nodes, &ledger, &auditor).await;
    let stopped = nodes.iter_mut().try_for_each(Daemon::stop);
    let line = judged.and_then(|line| {
        ensure!(
            !settings.stalls || run.elections == begins,
            "disks stood still for 300 ms, and nobody was to be elected: from term {begins} to {}; {line}",
            run.elections
        );
        ensure!(unmade.is_empty(), "faults that could not be made: {unmade:#?}; of the rest: {line}");
        stopped.map(|()| line)
    });
    if line.is_err() {
        // The disks are left for whoever looks for the cause.
        disks.into_iter().for_each(std::mem::forget);
    }
    line
}

/// The term in which the cluster is, as the first node says.
async fn term(ledger: &Arc<Ledger>) -> Result<u64> {
    let status = ledger.connect(0).await?.get("/v1/status").await?.json()?;
    status["term"].as_u64().context("the status names no term")
}

/// Waits for a thread without holding up the clients.
async fn ended<T>(thread: JoinHandle<Result<T>>) -> Result<T> {
    while !thread.is_finished() {
        tokio::time::sleep(LOOK).await;
    }
    thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?
}

/// Keeps an eye on whether a node leads.
async fn watch(world: Arc<World>, ledger: Arc<Ledger>, place: usize, terms: Arc<AtomicU64>) {
    let mut client: Option<Client> = None;
    loop {
        tokio::time::sleep(LOOK).await;
        let look = async {
            let mut open = match client.take() {
                Some(open) => open,
                None => ledger.connect(place).await?,
            };
            let status = open.get("/v1/status").await?.json()?;
            client = Some(open);
            if status["role"] == "leader" {
                let term = status["term"].as_u64().unwrap_or(0);
                if terms.fetch_max(term, Relaxed) <= term {
                    world.leads(place);
                }
            }
            anyhow::Ok(())
        };
        // A node that does not answer does not lead, as far as this is concerned.
        let _ = tokio::time::timeout(Duration::from_millis(500), look).await;
    }
}

/// What is left of a run to be judged.
struct Run<'a> {
    settings: &'a Settings,
    stories: Vec<Story>,
    counts: BTreeMap<&'static str, u64>,
    died: Vec<world::Ended>,
    elections: u64,
}

impl Run<'_> {
    async fn judge(&mut self, nodes: &[Daemon], ledger: &Arc<Ledger>, auditor: &Auditor) -> Result<String> {
        let mut keys: BTreeMap<String, Vec<Operation>> = BTreeMap::new();
        let (mut refused, mut again) = (0, 0);
        for story in self.stories.drain(..) {
            (refused, again) = (refused + story.refused, again + story.again);
            for (key, operation) in story.operations {
                keys.entry(key).or_default().push(operation);
            }
        }
        let healed = self.healed(nodes, ledger, &mut keys).await;
        // Kept before anything is judged: a judge that runs out of memory must not take it along.
        let file = self.settings.directory.join("history.jsonl");
        keep(&file, &keys)?;
        healed?;
        let compared = aftermath::compare(nodes, &keys, auditor, &self.settings.directory).await?;
        let begun = Instant::now();
        let mut wrong = Vec::new();
        for (key, operations) in &keys {
            match judge(operations) {
                Verdict::Linearizable => {}
                verdict => wrong.push(format!("{key}: {verdict:?}")),
            }
        }
        ensure!(wrong.is_empty(), "no register could have shown that to its clients: {wrong:?}");
        let judged = begun.elapsed();
        for node in nodes {
            let journal = node.log();
            let panic = journal.lines().find(|line| line.contains("panicked"));
            ensure!(panic.is_none(), "{}: {}", node.data().display(), panic.unwrap_or_default());
        }
        let (full, unasked): (Vec<_>, Vec<_>) = self.died.iter().partition(|ended| ended.disk_full);
        let words: Vec<_> = unasked.iter().map(|ended| &ended.how).collect();
        ensure!(words.is_empty(), "nodes ended by themselves: {words:#?}");
        let all = || keys.values().flatten();
        let count = |is: fn(&Act) -> bool| all().filter(|operation| is(&operation.act)).count();
        let faults: u64 = self.counts.values().sum();
        let kinds: Vec<String> = self.counts.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        Ok(format!(
            "RESULT faults: {} nodes, {} s, seed {}: {faults} faults ({}), {} terms, {} operations on {} keys: {} reads, {} \
             writes acknowledged, {} refused by their condition, {} unknown, of which {} are in the log; {} asked again under a \
             name, {refused} not taken; 0 lost, 0 wrong; {} entries recomputed on each node, {} changes of cosigners followed; \
             judged in {judged:.1?}; ended on a full disk: {}",
            self.settings.nodes,
            self.settings.duration.as_secs(),
            self.settings.seed,
            kinds.join(", "),
            self.elections,
            all().count(),
            keys.len(),
            count(|act| matches!(act, Act::Read(_))),
            compared.acknowledged,
            count(|act| matches!(act, Act::Refused(..))),
            compared.found + compared.not_found,
            compared.found,
            again,
            compared.entries,
            compared.key_changes,
            full.len(),
        ))
    }

    /// All nodes come together again, and every key is read once more, through one of them.
    async fn healed(
        &self,
        nodes: &[Daemon],
        ledger: &Arc<Ledger>,
        keys: &mut BTreeMap<String, Vec<Operation>>,
    ) -> Result<()> {
        cluster::until_all_vote(nodes).await.context("all is well again")?;
        let mut readers = JoinSet::new();
        for place in 0..nodes.len() {
            let own: Vec<String> = keys.keys().skip(place).step_by(nodes.len()).cloned().collect();
            // Numbered after the others, and at home in turn.
            let reader = Worker::new(ledger, nodes.len() * CLIENTS + place, self.settings.seed);
            readers.spawn(reader.read_all(own, READ_WITHIN));
        }
        while let Some(story) = readers.join_next().await {
            for (key, operation) in story??.operations {
                keys.entry(key).or_default().push(operation);
            }
        }
        aftermath::level(nodes).await
    }
}

fn keep(file: &Path, keys: &BTreeMap<String, Vec<Operation>>) -> Result<()> {
    let mut out = std::io::BufWriter::new(fs::File::create(file)?);
    for (key, operations) in keys {
        for operation in operations {
            writeln!(out, "{}", operation.to_json(key))?;
        }
    }
    if keys.is_empty() {
        bail!("no client had anything to tell");
    }
    Ok(out.flush()?)
}
