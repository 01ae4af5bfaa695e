//! Where the CPU time of a put goes: apply by its own stage timers, the rest by the thread that spent it.

use super::compare::Sample;
use super::load::count;
use super::process::FIRST_THREAD;
use super::report::{Table, median};

/// Stages of apply, as `samovar_apply_seconds_total` names them, and what they are.
const APPLY: [(&str, &str); 5] = [
    ("decode", "decode the proposal"),
    ("transactions", "check, commit, encrypt, entry, Merkle hashes"),
    ("state_map", "state map and its root"),
    ("archive", "salts and the frame of the archive"),
    ("rows", "rows"),
];
/// The thread of the listener.
const FRONT: &str = FIRST_THREAD;
/// The thread of the node.
const NODE: &str = "node";

fn each(sample: &Sample, seconds: f64) -> f64 {
    seconds * 1e6 / count(sample.done)
}

fn apply(sample: &Sample, stage: &str) -> f64 {
    sample.metrics.get_or_zero(&format!("samovar_apply_seconds_total{{stage=\"{stage}\"}}"))
}

fn thread(sample: &Sample, name: &str) -> f64 {
    sample.cpu.threads.get(name).copied().unwrap_or(0.0)
}

/// CPU µs of apply per put, by its own timers.
pub(super) fn apply_us(sample: &Sample) -> f64 {
    each(sample, all_apply(sample))
}

fn all_apply(sample: &Sample) -> f64 {
    APPLY.iter().map(|(stage, _)| apply(sample, stage)).sum()
}

/// Medians over the rounds, µs per put.
pub(super) fn table(samples: &[Sample]) -> Table {
    let mut table = Table::new(&["stage", "µs of CPU per put"]);
    let of = |figure: &dyn Fn(&Sample) -> f64| median(samples.iter().map(|s| each(s, figure(s))));
    let mut line = |name: &str, us: f64| table.row(&[name.to_owned(), format!("{us:.2}")]);
    line("front: TLS, HTTP, JSON, authentication", of(&|s| thread(s, FRONT)));
    for (stage, what) in APPLY {
        line(&format!("apply: {what}"), of(&|s| apply(s, stage)));
    }
    line("apply, sum", of(&all_apply));
    line("node thread: all of it", of(&|s| thread(s, NODE)));
    let others: std::collections::BTreeSet<_> = samples.iter().flat_map(|s| s.cpu.threads.keys()).collect();
    for name in others.into_iter().filter(|n| *n != FRONT && *n != NODE) {
        line(&format!("thread {name}"), of(&|s| thread(s, name)));
    }
    line("the process", of(&|s| s.cpu.total));
    let fsyncs = |s: &Sample| s.metrics.get_or_zero("samovar_raft_log_fsync_duration_seconds_count");
    let puts = median(samples.iter().map(|s| count(s.done) / fsyncs(s).max(1.0)));
    table.row(&["puts per fsync".to_owned(), format!("{puts:.1}")]);
    let fsync =
        |s: &Sample| s.metrics.get_or_zero("samovar_raft_log_fsync_duration_seconds_sum") * 1e6 / fsyncs(s).max(1.0);
    table.row(&["µs per fsync (waiting, not CPU)".to_owned(), format!("{:.0}", median(samples.iter().map(fsync)))]);
    let rows = |s: &Sample| s.metrics.get_or_zero("samovar_store_rows_total") / count(s.done);
    table.row(&["store rows per put".to_owned(), format!("{:.2}", median(samples.iter().map(rows)))]);
    table
}
