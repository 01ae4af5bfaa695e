//! Three nodes beside three of etcd, by turns: speed, memory, and how long nobody can write when the leader goes.
//!
//! Samovar speaks TLS to clients and peers and cosigns; etcd speaks plain HTTP to both. Clients are spread over all nodes.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tokio::task::JoinSet;

use super::compare::{KEYS, fill};
use super::etcd::Etcd;
use super::load::{self, Ask, Endpoint, Keys, Load, Values, count};
use super::process::{Cpu, Frozen, memory_mib};
use super::report::{Report, Table, median, whole};
use super::wire::Connection;
use super::{Settings, samovar};
use crate::Daemon;
use crate::cluster::{self, leader, until_all_vote};

const NODES: usize = 3;
/// After three servers are woken they may elect a leader first.
const WAKING: Duration = Duration::from_secs(2);
/// After the start, before memory is looked at.
const IDLE: Duration = Duration::from_secs(10);
/// Connections while a leader is killed or stopped.
const CONNECTIONS: usize = 64;
/// How often a leader is killed.
const KILLS: usize = 20;
/// How often it is stopped.
const STOPS: usize = 10;
/// How long writes are watched after a leader has gone.
const WATCHED: Duration = Duration::from_secs(3);
/// Pause of a client after a refusal.
const RETRY: Duration = Duration::from_millis(10);

/// One line of the comparison: what is asked of Samovar and, by turns, of etcd in one way or another.
struct Case {
    name: &'static str,
    samovar: Ask,
    /// With the least ratio of throughputs that is wanted.
    etcd: &'static [(&'static str, Ask, f64)],
    connections: u64,
}

const PUTS: &[(&str, Ask, f64)] = &[("etcd, JSON", Ask::EtcdPut, 2.0), ("etcd, gRPC", Ask::EtcdPutGrpc, 1.3)];
const CASES: [Case; 3] = [
    Case { name: "put", samovar: Ask::Put, etcd: PUTS, connections: 64 },
    Case { name: "put", samovar: Ask::Put, etcd: PUTS, connections: 256 },
    Case { name: "get", samovar: Ask::Get, etcd: &[("etcd, JSON", Ask::EtcdGet, 2.0)], connections: 64 },
];

struct Sample {
    per_second: f64,
    p50_us: f64,
    p99_us: f64,
    /// Of all nodes together, for each answer.
    cpu_us: f64,
    /// Of the node that has most.
    memory_mib: f64,
}

/// Servers that are measured, or hold still.
pub(super) struct Side {
    pub(super) endpoints: Vec<Endpoint>,
    ids: Vec<u32>,
}

impl Side {
    pub(super) fn of_samovar(nodes: &[Daemon]) -> Result<Self> {
        let endpoints = nodes.iter().map(samovar::endpoint).collect::<Result<_>>()?;
        Ok(Self { endpoints, ids: nodes.iter().map(samovar::id).collect::<Result<_>>()? })
    }

    fn of_etcd(nodes: &[Etcd]) -> Result<Self> {
        let endpoints = nodes.iter().map(Etcd::endpoint).collect::<Result<_>>()?;
        Ok(Self { endpoints, ids: nodes.iter().map(Etcd::id).collect() })
    }

    fn freeze(&self) -> Result<Vec<Frozen>> {
        self.ids.iter().map(|id| Frozen::new(*id)).collect()
    }

    fn memory_mib(&self) -> Result<f64> {
        let all = self.ids.iter().map(|id| Ok(memory_mib(*id)?.0)).collect::<Result<Vec<_>>>()?;
        Ok(all.into_iter().fold(0.0, f64::max))
    }

    fn cpu_s(&self) -> Result<f64> {
        self.ids.iter().map(|id| Ok(Cpu::of(*id)?.total)).sum()
    }

    async fn sample(&self, load: Load, values: &Arc<Values>) -> Result<Sample> {
        tokio::time::sleep(WAKING).await;
        let cpu_s = self.cpu_s()?;
        let round = load::run(&self.endpoints, load, values).await?;
        Ok(Sample {
            per_second: round.per_second(),
            p50_us: round.percentile_us(50),
            p99_us: round.percentile_us(99),
            cpu_us: (self.cpu_s()? - cpu_s) * 1e6 / count(round.done),
            memory_mib: self.memory_mib()?,
        })
    }
}

pub(super) async fn run(settings: &Settings, values: &Arc<Values>, report: &mut Report) -> Result<()> {
    let mut nodes = start(&settings.directory.join("nodes")).await?;
    tokio::time::sleep(IDLE).await;
    let idle_mib = Side::of_samovar(&nodes)?.memory_mib()?;
    {
        let etcd = Etcd::start_cluster(&settings.directory.join("three-of-etcd"), NODES).await?;
        compare(settings, values, &Side::of_samovar(&nodes)?, &Side::of_etcd(&etcd)?, report).await?;
        cosigned(&nodes[0]).await?;
    }
    report.hoped_at_most("three nodes: memory of one, idle, MiB", idle_mib, 48.0);
    failovers(&mut nodes, report).await?;
    stops(&mut nodes, report).await?;
    for node in &mut nodes {
        node.stop()?;
    }
    Ok(())
}

/// Three nodes, all of them voters.
pub(super) async fn start(directory: &Path) -> Result<Vec<Daemon>> {
    fs::create_dir_all(directory)?;
    let nodes = (1..=NODES).map(|n| (directory.join(format!("box-{n:02}")), samovar::settings()));
    cluster::begin(nodes.collect()).await
}

/// The checkpoint that is served carries the log's signature and a majority's cosignatures.
async fn cosigned(node: &Daemon) -> Result<()> {
    let note = node.client().await?.get("/checkpoint").await?.text();
    let signatures = note.lines().filter(|line| line.starts_with("— ")).count();
    ensure!(signatures > 1 + NODES / 2, "the checkpoint has not the cosignatures of a majority:\n{note}");
    Ok(())
}

async fn compare(
    settings: &Settings,
    values: &Arc<Values>,
    samovar: &Side,
    etcd: &Side,
    report: &mut Report,
) -> Result<()> {
    for (side, ask) in [(samovar, Ask::Put), (etcd, Ask::EtcdPut)] {
        fill(&side.endpoints, ask, values).await?;
    }
    let mut table = Table::new(&[
        "what",
        "connections",
        "server",
        "per second",
        "p50 µs",
        "p99 µs",
        "CPU µs each, all nodes",
        "RSS MiB of the largest",
    ]);
    let mut most_mib: f64 = 0.0;
    for case in &CASES {
        let mut ours = Vec::new();
        let mut theirs: Vec<Vec<Sample>> = case.etcd.iter().map(|_| Vec::new()).collect();
        for round in 0..settings.rounds {
            let load = |ask| Load {
                ask,
                connections: case.connections,
                keys: Keys::Random(KEYS),
                duration: settings.round,
                seed: settings.seed + round,
            };
            let turns = case.etcd.len() + 1;
            for turn in 0..turns {
                // Who goes first changes with every round.
                let turn = (turn + usize::try_from(round).unwrap_or(0)) % turns;
                if turn == 0 {
                    let _frozen = etcd.freeze()?;
                    ours.push(samovar.sample(load(case.samovar), values).await?);
                } else {
                    let _frozen = samovar.freeze()?;
                    theirs[turn - 1].push(etcd.sample(load(case.etcd[turn - 1].1), values).await?);
                }
            }
        }
        let names = case.etcd.iter().map(|(name, ..)| *name);
        for (server, samples) in std::iter::once(("samovar", &ours)).chain(names.zip(&theirs)) {
            let of = |figure: fn(&Sample) -> f64| median(samples.iter().map(figure));
            table.row(&[
                case.name.to_owned(),
                case.connections.to_string(),
                server.to_owned(),
                whole(of(|s| s.per_second)),
                whole(of(|s| s.p50_us)),
                whole(of(|s| s.p99_us)),
                whole(of(|s| s.cpu_us)),
                whole(of(|s| s.memory_mib)),
            ]);
        }
        most_mib = ours.iter().map(|s| s.memory_mib).fold(most_mib, f64::max);
        for ((server, _, ratio_min), samples) in case.etcd.iter().zip(&theirs) {
            let ratio =
                |figure: fn(&Sample) -> f64| median(ours.iter().map(figure)) / median(samples.iter().map(figure));
            let name = format!("three nodes, {} at {}, of {server}", case.name, case.connections);
            report.at_least(&format!("{name}: throughput"), ratio(|s| s.per_second), *ratio_min);
            report.at_most(&format!("{name}: p99"), ratio(|s| s.p99_us), 1.0);
        }
        eprintln!("  {} at {}: done", case.name, case.connections);
    }
    report.table("Three nodes and three of etcd by turns, medians", table);
    report.hoped_at_most("three nodes: memory of one under load, MiB", most_mib, 96.0);
    Ok(())
}

/// What clients saw of writes.
#[derive(Default)]
struct Seen {
    /// When each answered write was sent and answered.
    answered: Vec<(Instant, Instant)>,
    /// What else came.
    refused: Vec<String>,
    lost: usize,
}

impl Seen {
    /// From a moment until the first write that was sent after it was answered.
    fn first_after(&self, moment: Instant) -> Option<Duration> {
        let after = self.answered.iter().filter(|(sent, _)| *sent >= moment).map(|(_, answered)| *answered);
        after.min().map(|answered| answered - moment)
    }

    /// The longest that a write took which was on its way at a moment or later.
    fn longest_since(&self, moment: Instant) -> Duration {
        let late = self.answered.iter().filter(|(_, answered)| *answered >= moment);
        late.map(|(sent, answered)| *answered - *sent).max().unwrap_or(WATCHED)
    }
}

/// Clients of some nodes that write until they are told to end, and try again after a refusal or a lost connection.
struct Clients {
    over: Arc<AtomicBool>,
    tasks: JoinSet<Seen>,
}

impl Clients {
    fn start(endpoints: Vec<Endpoint>) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for (number, endpoint) in (0..CONNECTIONS).zip(endpoints.into_iter().cycle()) {
            tasks.spawn(client(endpoint, number, Arc::clone(&over)));
        }
        Self { over, tasks }
    }

    async fn end(mut self) -> Result<Seen> {
        self.over.store(true, Relaxed);
        let mut all = Seen::default();
        while let Some(seen) = self.tasks.join_next().await {
            let seen = seen?;
            all.answered.extend(seen.answered);
            all.refused.extend(seen.refused);
            all.lost += seen.lost;
        }
        Ok(all)
    }
}

async fn client(endpoint: Endpoint, number: usize, over: Arc<AtomicBool>) -> Seen {
    let mut seen = Seen::default();
    let token = endpoint.token.as_deref().unwrap_or_default();
    let mut connection = None;
    for n in 0.. {
        if over.load(Relaxed) {
            break;
        }
        let sent = Instant::now();
        let request = format!(
            "PUT /v1/keys/failover/{number}-{} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\ncontent-type: \
             text/plain\r\ncontent-length: 8\r\n\r\n{n:08}",
            n % 10
        );
        let asked = async {
            let open = match connection.take() {
                Some(open) => open,
                None => Connection::open(endpoint.port, endpoint.tls.as_ref()).await?,
            };
            let open: &mut Connection = connection.insert(open);
            let answer = open.exchange(request.as_bytes()).await?;
            Ok::<_, anyhow::Error>((answer.status, String::from_utf8_lossy(answer.body).into_owned()))
        };
        match asked.await {
            Ok((200 | 201, _)) => seen.answered.push((sent, Instant::now())),
            Ok((status, body)) => {
                seen.refused.push(format!("{status} {body}"));
                tokio::time::sleep(RETRY).await;
            }
            Err(_) => {
                seen.lost += 1;
                connection = None;
                tokio::time::sleep(RETRY).await;
            }
        }
    }
    seen
}

fn others(nodes: &[Daemon], place: usize) -> Result<Vec<Endpoint>> {
    nodes.iter().enumerate().filter(|(n, _)| *n != place).map(|(_, node)| samovar::endpoint(node)).collect()
}

/// The leader is killed under load, again and again: how long until writes succeed through the others.
async fn failovers(nodes: &mut [Daemon], report: &mut Report) -> Result<()> {
    let mut took = Vec::new();
    for _ in 0..KILLS {
        until_all_vote(nodes).await?;
        let place = leader(nodes).await?;
        let clients = Clients::start(others(nodes, place)?);
        tokio::time::sleep(Duration::from_millis(700)).await;
        let killed = Instant::now();
        nodes[place].kill()?;
        tokio::time::sleep(WATCHED).await;
        let seen = clients.end().await?;
        let first = seen.first_after(killed).context("no write succeeded after the leader was killed")?;
        took.push(first.as_secs_f64());
        nodes[place].start().await?;
    }
    let worst = took.iter().copied().fold(0.0, f64::max);
    eprintln!("  {KILLS} leaders killed under {CONNECTIONS} connections: seconds until a write succeeds {took:.3?}");
    report.hoped_at_most("leader killed: until writes succeed, median, s", median(took.iter().copied()), 0.8);
    report.hoped_at_most("leader killed: the worst, s", worst, 2.0);
    Ok(())
}

/// The leader is told to stop under load: it hands over first.
async fn stops(nodes: &mut [Daemon], report: &mut Report) -> Result<()> {
    let (mut stalls, mut refused) = (Vec::new(), Vec::new());
    for _ in 0..STOPS {
        until_all_vote(nodes).await?;
        let place = leader(nodes).await?;
        let clients = Clients::start(others(nodes, place)?);
        tokio::time::sleep(Duration::from_millis(700)).await;
        let stopped = Instant::now();
        nodes[place].stop()?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let seen = clients.end().await?;
        stalls.push(seen.longest_since(stopped).as_secs_f64() * 1e3);
        refused.extend(seen.refused);
        ensure!(seen.lost == 0, "{} connections to nodes that go on were lost", seen.lost);
        nodes[place].start().await?;
    }
    let worst = stalls.iter().copied().fold(0.0, f64::max);
    eprintln!("  {STOPS} leaders stopped under {CONNECTIONS} connections: longest write, ms {stalls:.0?}");
    if let Some(first) = refused.first() {
        eprintln!("  refused meanwhile: {first}");
    }
    report.at_most("leader stopped: writes refused by the others", count(refused.len() as u64), 0.0);
    report.hoped_at_most("leader stopped: longest write, median, ms", median(stalls.iter().copied()), 150.0);
    report.hoped_at_most("leader stopped: the worst, ms", worst, 150.0);
    Ok(())
}
