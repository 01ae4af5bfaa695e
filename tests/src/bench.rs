//! The benchmark: speed beside etcd's, and how small the daemon is and stays. `tests/bench` runs it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};

mod calibrate;
mod cluster;
mod compare;
mod etcd;
mod evidence;
mod growth;
mod grpc;
mod import;
mod load;
mod process;
mod puts;
mod report;
mod samovar;
mod scrape;
mod size;
mod stages;
mod wire;

/// How much is done.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Scratch directory, on a disk; removed at the end.
    directory: PathBuf,
    /// Rounds of each case.
    rounds: u64,
    /// Time of one round.
    round: Duration,
    /// Key sets whose speeds are compared with that of the first one.
    key_sets: Vec<u64>,
    /// Rows of the timed import, and keys of the start after a crash.
    rows: u64,
    /// Puts whose space on disk is measured.
    puts: u64,
    seed: u64,
}

impl Settings {
    /// At most 4 minutes: the comparison, and the rest on small sets.
    #[must_use]
    pub fn quick(directory: PathBuf, seed: u64) -> Self {
        let round = Duration::from_millis(1200);
        let key_sets = vec![10_000, 100_000];
        Self { directory, rounds: 5, round, key_sets, rows: 100_000, puts: 50_000, seed }
    }

    /// At most 25 minutes: every figure that the project promises.
    #[must_use]
    pub fn full(directory: PathBuf, seed: u64) -> Self {
        let round = Duration::from_secs(4);
        let key_sets = vec![10_000, 1_000_000, 4_000_000];
        Self { directory, rounds: 5, round, key_sets, rows: 1_000_000, puts: 300_000, seed }
    }
}

/// Runs the named parts (`compare`, `cluster`, `growth`, `size`, all of them when none is named; `puts`); returns how many ratios fell short.
///
/// # Errors
/// When a figure could not be measured, or would not count: see `evidence`.
pub async fn run(settings: &Settings, parts: &[String]) -> Result<usize> {
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|p| p == part);
    calibrate::require_real_disk(&settings.directory)?;
    let values = load::Values::new(settings.seed);
    let mut report = report::Report::default();
    if wanted("compare") {
        eprintln!("comparing with etcd");
        compare::run(settings, &values, &mut report).await.context("comparing with etcd")?;
    }
    if wanted("cluster") {
        eprintln!("comparing three nodes with three of etcd");
        cluster::run(settings, &values, &mut report).await.context("comparing three nodes")?;
    }
    if parts.iter().any(|p| p == "puts") {
        eprintln!("measuring where the time of a put over three nodes goes");
        puts::run(settings, &values, &mut report).await.context("measuring puts over three nodes")?;
    }
    if wanted("growth") {
        eprintln!("importing, and measuring with more and more keys");
        growth::run(settings, &values, &mut report).await.context("measuring growth")?;
    }
    if wanted("size") {
        eprintln!("measuring how small it is");
        size::run(settings, &values, &mut report).await.context("measuring size")?;
    }
    Ok(report.finish())
}
