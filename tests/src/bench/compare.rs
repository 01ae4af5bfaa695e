//! Samovar and etcd by turns, in one run: same disk, generator, values, keys and connections.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::calibrate::{Calibration, calibrate};
use super::etcd::Etcd;
use super::evidence;
use super::load::{self, Ask, Endpoint, Keys, Load, Values, count};
use super::process::{Cpu, Frozen, memory_mib};
use super::report::{Report, Table, median, whole};
use super::scrape::Metrics;
use super::stages;
use super::{Settings, samovar};
use crate::Daemon;

/// Keys of the comparison; each has a value before anything is measured.
pub(super) const KEYS: u64 = 10_000;
/// After a server is woken, before it is measured.
const WAKING: Duration = Duration::from_millis(200);

/// One line of the comparison.
#[derive(Debug, Clone, Copy)]
struct Case {
    name: &'static str,
    samovar: Ask,
    etcd: Ask,
    connections: u64,
    /// Least ratio of throughputs that is wanted.
    ratio_min: f64,
}

const CASES: [Case; 5] = [
    Case { name: "put", samovar: Ask::Put, etcd: Ask::EtcdPut, connections: 1, ratio_min: 1.0 },
    Case { name: "put", samovar: Ask::Put, etcd: Ask::EtcdPut, connections: 64, ratio_min: 3.0 },
    Case { name: "put", samovar: Ask::Put, etcd: Ask::EtcdPut, connections: 256, ratio_min: 3.0 },
    Case { name: "put in JSON", samovar: Ask::PutJson, etcd: Ask::EtcdPut, connections: 64, ratio_min: 1.0 },
    Case { name: "get", samovar: Ask::Get, etcd: Ask::EtcdGet, connections: 64, ratio_min: 2.0 },
];

/// One server in one round.
pub(super) struct Sample {
    pub(super) per_second: f64,
    p50_us: f64,
    p99_us: f64,
    memory_mib: f64,
    pub(super) done: u64,
    pub(super) cpu: Cpu,
    pub(super) metrics: Metrics,
}

/// All rounds of a case.
struct Measured {
    case: Case,
    samovar: Vec<Sample>,
    etcd: Vec<Sample>,
    machine: Vec<Calibration>,
}

pub(super) async fn run(settings: &Settings, values: &Arc<Values>, report: &mut Report) -> Result<()> {
    let mut daemon = Daemon::create(&settings.directory.join("compared"), samovar::settings()).await?;
    let etcd = Etcd::start(&settings.directory.join("etcd")).await?;
    fill(&[samovar::endpoint(&daemon)?], Ask::Put, values).await?;
    fill(&[etcd.endpoint()?], Ask::EtcdPut, values).await?;
    let mut all = Vec::new();
    for case in CASES {
        let measured = measure(settings, values, case, &daemon, &etcd).await?;
        eprintln!("  {} at {}: done", case.name, case.connections);
        evidence::of_samovar(case.samovar, case.connections, &measured.samovar, &daemon).await?;
        evidence::of_etcd(case.etcd, case.connections, &measured.etcd)?;
        all.push(measured);
    }
    tables(&all, report);
    for measured in &all {
        verdicts(measured, report);
    }
    daemon.stop()?;
    Ok(())
}

/// Gives every key a value.
pub(super) async fn fill(endpoints: &[Endpoint], ask: Ask, values: &Arc<Values>) -> Result<()> {
    let load = Load { ask, connections: 64, keys: Keys::Once(KEYS), duration: Duration::from_secs(60), seed: 0 };
    let filled = load::run(endpoints, load, values).await.context("filling the key set")?;
    ensure!(filled.done == KEYS, "only {} of {KEYS} keys were filled in a minute", filled.done);
    Ok(())
}

async fn measure(
    settings: &Settings,
    values: &Arc<Values>,
    case: Case,
    daemon: &Daemon,
    etcd: &Etcd,
) -> Result<Measured> {
    let mut measured = Measured { case, samovar: Vec::new(), etcd: Vec::new(), machine: Vec::new() };
    for round in 0..settings.rounds {
        measured.machine.push(calibrate(&settings.directory)?);
        let load = |ask| Load {
            ask,
            connections: case.connections,
            keys: Keys::Random(KEYS),
            duration: settings.round,
            seed: settings.seed + round,
        };
        // Who goes first changes with every round.
        for turn in 0..2 {
            if (round + turn) % 2 == 0 {
                let _frozen = Frozen::new(etcd.id())?;
                let (endpoint, id) = (samovar::endpoint(daemon)?, samovar::id(daemon)?);
                let scrape = daemon.client().await?;
                measured.samovar.push(sample(&endpoint, id, scrape, load(case.samovar), values).await?);
            } else {
                let _frozen = Frozen::new(samovar::id(daemon)?)?;
                let scrape = etcd.client().await?;
                let sampled = sample(&etcd.endpoint()?, etcd.id(), scrape, load(case.etcd), values).await?;
                measured.etcd.push(sampled);
            }
        }
    }
    Ok(measured)
}

pub(super) async fn sample(
    endpoint: &Endpoint,
    id: u32,
    mut scrape: crate::Client,
    load: Load,
    values: &Arc<Values>,
) -> Result<Sample> {
    tokio::time::sleep(WAKING).await;
    let metrics = Metrics::of(&mut scrape).await?;
    let cpu = Cpu::of(id)?;
    let round = load::run(std::slice::from_ref(endpoint), load, values).await?;
    let cpu = Cpu::of(id)?.since(&cpu);
    let metrics = Metrics::of(&mut scrape).await?.since(&metrics);
    Ok(Sample {
        per_second: round.per_second(),
        p50_us: round.percentile_us(50),
        p99_us: round.percentile_us(99),
        memory_mib: memory_mib(id)?.0,
        done: round.done,
        cpu,
        metrics,
    })
}

fn of(samples: &[Sample], figure: impl Fn(&Sample) -> f64) -> f64 {
    median(samples.iter().map(figure))
}

fn cpu_us(sample: &Sample) -> f64 {
    sample.cpu.total * 1e6 / count(sample.done)
}

fn tables(all: &[Measured], report: &mut Report) {
    let mut table = Table::new(&[
        "what",
        "connections",
        "server",
        "per second",
        "p50 µs",
        "p99 µs",
        "CPU µs each",
        "RSS MiB",
        "fsync/s",
        "SHA-256 MB/s",
    ]);
    for m in all {
        let fsyncs = median(m.machine.iter().map(|c| c.fsyncs_per_second));
        let hashing = median(m.machine.iter().map(|c| c.sha256_mb_per_second));
        for (server, samples) in [("samovar", &m.samovar), ("etcd", &m.etcd)] {
            table.row(&[
                m.case.name.to_owned(),
                m.case.connections.to_string(),
                server.to_owned(),
                whole(of(samples, |s| s.per_second)),
                whole(of(samples, |s| s.p50_us)),
                whole(of(samples, |s| s.p99_us)),
                format!("{:.1}", of(samples, cpu_us)),
                whole(of(samples, |s| s.memory_mib)),
                whole(fsyncs),
                whole(hashing),
            ]);
        }
    }
    report.table("Samovar and etcd by turns, medians", table);
    for m in all.iter().filter(|m| m.case.samovar == Ask::Put && m.case.connections > 1) {
        report.table(
            &format!("Where the CPU time of a put goes, {} connections", m.case.connections),
            stages::table(&m.samovar),
        );
    }
}

fn verdicts(m: &Measured, report: &mut Report) {
    let name = format!("{} at {}", m.case.name, m.case.connections);
    let ratio = of(&m.samovar, |s| s.per_second) / of(&m.etcd, |s| s.per_second);
    report.at_least(&format!("{name}: throughput, of etcd's"), ratio, m.case.ratio_min);
    if m.case.connections == 1 {
        let latency = of(&m.samovar, |s| s.p50_us) / of(&m.etcd, |s| s.p50_us);
        report.at_most(&format!("{name}: median latency, of etcd's"), latency, 1.0);
    }
    let tail = of(&m.samovar, |s| s.p99_us) / of(&m.etcd, |s| s.p99_us);
    report.at_most(&format!("{name}: p99, of etcd's"), tail, 1.0);
}
