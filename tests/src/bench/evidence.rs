//! What must have happened for a figure to count: read from the servers' own metrics, and from the checkpoint itself.

use anyhow::{Result, ensure};

use super::compare::Sample;
use super::load::{Ask, count};
use super::scrape::Metrics;
use crate::Daemon;

/// The log's signature and the node's cosignature.
const SIGNATURES_MIN: usize = 2;
/// etcd 3.5.1 was seen to count 6,560 fsyncs for 6,562 puts one after the other: its counter misses a few.
const ETCD_FSYNCS_COUNTED_MIN: f64 = 0.99;

fn sum(samples: &[Sample]) -> (f64, Metrics) {
    let mut metrics = Metrics::default();
    let mut done = 0;
    for sample in samples {
        metrics.add(&sample.metrics);
        done += sample.done;
    }
    (count(done), metrics)
}

pub(super) async fn of_samovar(ask: Ask, connections: u64, samples: &[Sample], daemon: &Daemon) -> Result<()> {
    let (done, metrics) = sum(samples);
    let handshakes = metrics.get("samovar_tls_handshakes_total{result=\"done\"}")?;
    let opened = count(connections * samples.len() as u64);
    ensure!(handshakes >= opened, "{opened} connections were opened, but only {handshakes} TLS handshakes counted");
    if ask == Ask::Get {
        let answered = metrics.get("http_requests_total{method=\"GET\",route=\"/v1/keys/{key}\",status=\"200\"}")?;
        ensure!(answered >= done, "{done} gets were answered, but only {answered} counted");
        return Ok(());
    }
    let entries = metrics.get("samovar_chain_entries")?;
    ensure!(entries > done, "{done} puts were answered, but the chain log grew by {entries} entries, blocks included");
    let fsyncs = metrics.get("samovar_raft_log_fsync_duration_seconds_count")?;
    ensure!(fsyncs > 0.0, "puts were answered without one fsync");
    ensure!(connections > 1 || fsyncs >= done, "one connection did {done} puts with only {fsyncs} fsyncs");
    let checkpoints = metrics.get("samovar_checkpoints_total")?;
    ensure!(checkpoints > 0.0, "no checkpoint was made under load");
    let covered = metrics.get("samovar_checkpoint_entries")?;
    ensure!(covered > 0.0, "the checkpoint did not move under load");
    cosigned(daemon).await
}

/// The checkpoint that is served carries the log's signature and a cosignature of another key.
async fn cosigned(daemon: &Daemon) -> Result<()> {
    let note = daemon.client().await?.get("/checkpoint").await?.text();
    let mut signers: Vec<_> = note.lines().filter_map(|l| l.strip_prefix("— ")?.split_once(' ')).collect();
    signers.dedup_by_key(|(name, signature)| (name.to_owned(), signature.get(..6).map(str::to_owned)));
    ensure!(signers.len() >= SIGNATURES_MIN, "the checkpoint has no cosignature beside the log's signature:\n{note}");
    Ok(())
}

pub(super) fn of_etcd(ask: Ask, connections: u64, samples: &[Sample]) -> Result<()> {
    if ask == Ask::EtcdGet {
        return Ok(());
    }
    let (done, metrics) = sum(samples);
    let fsyncs = metrics.get("etcd_disk_wal_fsync_duration_seconds_count")?;
    ensure!(fsyncs > 0.0, "etcd answered puts without one fsync");
    ensure!(
        connections > 1 || fsyncs >= ETCD_FSYNCS_COUNTED_MIN * done,
        "etcd: one connection did {done} puts with only {fsyncs} fsyncs"
    );
    Ok(())
}
