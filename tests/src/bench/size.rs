//! How small it is: the binary, memory and start of a fresh ledger, and what a put leaves on disk.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::load::{self, Ask, Keys, Load, VALUE_BYTES, Values, count};
use super::process::memory_mib;
use super::report::{Report, Table, median, whole};
use super::scrape::Metrics;
use super::{Settings, samovar};
use crate::{Daemon, binary};

const BINARY_MIB_MAX: f64 = 16.0;
const IDLE_MIB_MAX: f64 = 40.0;
const FRESH_START_S_MAX: f64 = 0.5;
const DISK_BYTES_PER_PUT_MAX: f64 = 3072.0;
const FRESH_STARTS: usize = 5;
const IDLE: Duration = Duration::from_secs(3);
const PUTS_DEADLINE: Duration = Duration::from_secs(120);

pub(super) async fn run(settings: &Settings, values: &Arc<Values>, report: &mut Report) -> Result<()> {
    the_binary(report)?;
    let mut starts = Vec::new();
    for n in 0..FRESH_STARTS {
        let mut daemon = Daemon::create(&settings.directory.join(format!("fresh-{n}")), samovar::settings()).await?;
        daemon.stop()?;
        starts.push(daemon.start().await?.as_secs_f64());
        daemon.stop()?;
    }
    report.hoped_at_most("start to ready, fresh ledger, s", median(starts.into_iter()), FRESH_START_S_MAX);
    let mut daemon = Daemon::create(&settings.directory.join("small"), samovar::settings()).await?;
    tokio::time::sleep(IDLE).await;
    report.hoped_at_most("memory of an idle fresh ledger, MiB", memory_mib(samovar::id(&daemon)?)?.0, IDLE_MIB_MAX);
    disk(settings, values, &mut daemon, report).await
}

fn the_binary(report: &mut Report) -> Result<()> {
    let path = binary()?;
    let mib = count(fs::metadata(&path)?.len()) / f64::from(1 << 20);
    report.at_most("the binary, MiB", mib, BINARY_MIB_MAX);
    let ldd = Command::new("ldd").arg(&path).output().context("ldd")?;
    let said = String::from_utf8_lossy(&[ldd.stdout, ldd.stderr].concat()).trim().to_owned();
    let is_static = said.contains("statically linked") || said.contains("not a dynamic executable");
    ensure!(is_static, "{} is not static; ldd says: {said}", path.display());
    eprintln!("  {}: {mib:.1} MiB; ldd: {said}", path.display());
    Ok(())
}

/// Bytes that the files of a directory take on disk.
fn disk_bytes(directory: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let mut bytes = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() { disk_bytes(&entry.path())? } else { metadata.blocks() * 512 };
    }
    Ok(bytes)
}

/// Puts of new keys, one a request; then what each added, without the raft log, whose segments are allocated beforehand.
async fn disk(settings: &Settings, values: &Arc<Values>, daemon: &mut Daemon, report: &mut Report) -> Result<()> {
    let outside_raft_log = |data: &Path| -> Result<u64> { Ok(disk_bytes(data)? - disk_bytes(&data.join("raft"))?) };
    let data = daemon.data().to_owned();
    let before = outside_raft_log(&data)?;
    let keys = Keys::Once(settings.puts);
    let load = Load { ask: Ask::Put, connections: 64, keys, duration: PUTS_DEADLINE, seed: settings.seed };
    let done = load::run(&[samovar::endpoint(daemon)?], load, values).await?.done;
    ensure!(done == settings.puts, "only {done} of {} puts were done in {PUTS_DEADLINE:?}", settings.puts);
    let metric = Metrics::of(&mut daemon.client().await?).await?.get("samovar_data_bytes")?;
    let under_load = disk_bytes(&data)?;
    daemon.stop()?;
    let after = outside_raft_log(&data)?;
    let mut table = Table::new(&["part", "MiB on disk after a clean stop"]);
    let mut parts: Vec<_> = fs::read_dir(&data)?.collect::<Result<_, _>>()?;
    parts.sort_by_key(fs::DirEntry::file_name);
    for part in parts {
        let metadata = part.metadata()?;
        let bytes = if metadata.is_dir() { disk_bytes(&part.path())? } else { metadata.len() };
        let name = part.file_name().to_string_lossy().into_owned();
        table.row(&[name, format!("{:.1}", count(bytes) / f64::from(1 << 20))]);
    }
    table.row(&["`samovar_data_bytes` under load".to_owned(), whole(metric / f64::from(1 << 20))]);
    table.row(&["the directory under load".to_owned(), whole(count(under_load) / f64::from(1 << 20))]);
    report.table(&format!("Space of {done} puts of {VALUE_BYTES} bytes, 64 connections"), table);
    let each = count(after - before) / count(done);
    report.hoped_at_most("disk bytes per put after a clean stop", each, DISK_BYTES_PER_PUT_MAX);
    Ok(())
}
