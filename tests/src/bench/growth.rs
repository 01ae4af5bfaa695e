//! Whether a put costs the same with few keys and with millions: daemons with key sets of different sizes, measured by
//! turns. On the way: how fast rows are imported, memory under load, the start after a crash.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Result, ensure};

use super::compare::{Sample, sample};
use super::import;
use super::load::{Ask, Keys, Load, Values, count};
use super::process::{Frozen, memory_mib};
use super::report::{Report, Table, median, whole};
use super::stages;
use super::{Settings, samovar};
use crate::Daemon;

const CONNECTIONS: u64 = 256;
/// Least speed with so many keys, of that with the first set.
const FLAT: [(u64, f64); 2] = [(1_000_000, 0.70), (4_000_000, 0.60)];
const ROWS_PER_SECOND_MIN: f64 = 25_000.0;
const APPLY_US_MAX: f64 = 20.0;
const MEMORY_MIB_MAX: f64 = 96.0;
const CRASHED_START_S_MAX: f64 = 3.0;
const CRASHES: usize = 3;

/// A daemon with its key set.
struct Grown {
    keys: u64,
    daemon: Daemon,
    samples: Vec<Sample>,
}

pub(super) async fn run(settings: &Settings, values: &Arc<Values>, report: &mut Report) -> Result<()> {
    let mut all = grow(settings, report).await?;
    for round in 0..settings.rounds {
        for at in 0..all.len() {
            let others: Vec<_> = (0..all.len()).filter(|o| *o != at).collect();
            let frozen: Result<Vec<_>> = others.iter().map(|o| Frozen::new(samovar::id(&all[*o].daemon)?)).collect();
            let _frozen = frozen?;
            let grown = &mut all[at];
            let load = load(settings, grown.keys, settings.seed + round);
            let (endpoint, id) = (samovar::endpoint(&grown.daemon)?, samovar::id(&grown.daemon)?);
            let scrape = grown.daemon.client().await?;
            grown.samples.push(sample(&endpoint, id, scrape, load, values).await?);
        }
    }
    tables(&all, report)?;
    for grown in &mut all {
        if grown.keys == settings.rows {
            crash(settings, values, grown, report).await?;
        }
    }
    for mut grown in all {
        grown.daemon.stop()?;
    }
    Ok(())
}

fn load(settings: &Settings, keys: u64, seed: u64) -> Load {
    Load { ask: Ask::Put, connections: CONNECTIONS, keys: Keys::Random(keys), duration: settings.round, seed }
}

/// Makes the ledgers: each is a copy of the one before, and more rows. The ledger that reaches `rows` is restarted before
/// it is measured, so that its memory is what load needs, not what the import left.
async fn grow(settings: &Settings, report: &mut Report) -> Result<Vec<Grown>> {
    let mut all: Vec<Grown> = Vec::new();
    for &keys in &settings.key_sets {
        let data = settings.directory.join(format!("keys-{keys}"));
        let mut have = 0;
        let mut daemon = match all.last_mut() {
            None => Daemon::create(&data, samovar::settings()).await?,
            Some(smaller) => {
                smaller.daemon.stop()?;
                copy(smaller.daemon.data(), &data)?;
                smaller.daemon.start().await?;
                have = smaller.keys;
                let mut daemon = Daemon::existing(&data, free_port()?, samovar::settings());
                daemon.start().await?;
                daemon
            }
        };
        let rate = {
            let frozen: Result<Vec<_>> = all.iter().map(|g| Frozen::new(samovar::id(&g.daemon)?)).collect();
            let _frozen = frozen?;
            import::rows(&daemon, &settings.directory, have..keys).await?
        };
        eprintln!("  {have}..{keys} imported, {rate:.0} rows/s, {:.0} MiB", memory_mib(samovar::id(&daemon)?)?.0);
        if keys == settings.rows {
            report.hoped_at_least(&format!("import of {} rows, rows/s", keys - have), rate, ROWS_PER_SECOND_MIN);
        }
        daemon.stop()?;
        let started = daemon.start().await?;
        eprintln!("  started with {keys} keys after a clean stop in {:.2} s", started.as_secs_f64());
        all.push(Grown { keys, daemon, samples: Vec::new() });
    }
    Ok(all)
}

/// Copies the directory of a stopped ledger.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status()?;
    ensure!(copied.success(), "copying {} failed", from.display());
    Ok(())
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn speed(grown: &Grown) -> f64 {
    median(grown.samples.iter().map(|s| s.per_second))
}

fn apply_us(grown: &Grown) -> f64 {
    median(grown.samples.iter().map(stages::apply_us))
}

fn tables(all: &[Grown], report: &mut Report) -> Result<()> {
    let mut table =
        Table::new(&["keys", "puts/s", "of the first", "apply, CPU µs per put", "puts per block", "most RSS, MiB"]);
    for grown in all {
        let id = samovar::id(&grown.daemon)?;
        let per_block = median(grown.samples.iter().map(puts_per_block));
        table.row(&[
            grown.keys.to_string(),
            whole(speed(grown)),
            format!("{:.2}", speed(grown) / speed(&all[0])),
            format!("{:.1}", apply_us(grown)),
            whole(per_block),
            whole(memory_mib(id)?.1),
        ]);
    }
    report.table(&format!("Puts at {CONNECTIONS} connections, by size of the key set"), table);
    for grown in all {
        if let Some((_, least)) = FLAT.iter().find(|(keys, _)| *keys == grown.keys) {
            let what = format!("speed with {} keys, of that with {}", grown.keys, all[0].keys);
            report.at_least(&what, speed(grown) / speed(&all[0]), *least);
        }
        if grown.keys == FLAT[0].0 {
            report.table(
                &format!("Where the CPU time of a put goes, {} keys", grown.keys),
                stages::table(&grown.samples),
            );
            report.hoped_at_most("apply with 1,000,000 keys, CPU µs per put", apply_us(grown), APPLY_US_MAX);
            let most = memory_mib(samovar::id(&grown.daemon)?)?.1;
            report.hoped_at_most("most memory under load with 1,000,000 keys, MiB", most, MEMORY_MIB_MAX);
        }
    }
    Ok(())
}

fn puts_per_block(sample: &Sample) -> f64 {
    count(sample.done) / sample.metrics.get_or_zero("samovar_chain_height").max(1.0)
}

/// Kills the daemon in the middle of its work, several times, and takes the median of the starts.
async fn crash(settings: &Settings, values: &Arc<Values>, grown: &mut Grown, report: &mut Report) -> Result<()> {
    let mut starts = Vec::new();
    for crash in 0..CRASHES {
        let load = load(settings, grown.keys, settings.seed + crash as u64);
        let done = super::load::run(&[samovar::endpoint(&grown.daemon)?], load, values).await?.done;
        grown.daemon.kill()?;
        let start = grown.daemon.start().await?.as_secs_f64();
        eprintln!("  killed right after {done} puts; ready again in {start:.2} s");
        starts.push(start);
    }
    let what = format!("start after kill -9 with {} keys, s", grown.keys);
    report.hoped_at_most(&what, median(starts.into_iter()), CRASHED_START_S_MAX);
    Ok(())
}
