//! Three nodes under puts: where the CPU time of one goes, node by node and thread by thread.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::Result;

use super::cluster::{Side, start};
use super::compare::{KEYS, fill};
use super::load::{self, Ask, Keys, Load, Values, count};
use super::process::Cpu;
use super::report::{Report, Table};
use super::scrape::Metrics;
use super::{Settings, samovar};
use crate::Daemon;
use crate::cluster::leader;

/// What a node had spent and done.
struct Spent {
    cpu: Cpu,
    metrics: Metrics,
}

impl Spent {
    async fn of(node: &Daemon) -> Result<Self> {
        Ok(Self { cpu: Cpu::of(samovar::id(node)?)?, metrics: Metrics::of(&mut node.client().await?).await? })
    }

    fn since(&self, before: &Self) -> Self {
        Self { cpu: self.cpu.since(&before.cpu), metrics: self.metrics.since(&before.metrics) }
    }
}

async fn of_all(nodes: &[Daemon]) -> Result<Vec<Spent>> {
    let mut all = Vec::new();
    for node in nodes {
        all.push(Spent::of(node).await?);
    }
    Ok(all)
}

pub(super) async fn run(settings: &Settings, values: &Arc<Values>, report: &mut Report) -> Result<()> {
    let mut nodes = start(&settings.directory.join("profiled")).await?;
    let side = Side::of_samovar(&nodes)?;
    fill(&side.endpoints, Ask::Put, values).await?;
    for connections in [64, 256] {
        let leads = leader(&nodes).await?;
        let before = of_all(&nodes).await?;
        let duration = settings.round * 5;
        let keys = Keys::Random(KEYS);
        let load = Load { ask: Ask::Put, connections, keys, duration, seed: settings.seed };
        let round = load::run(&side.endpoints, load, values).await?;
        let after = of_all(&nodes).await?;
        let spent: Vec<_> = after.iter().zip(&before).map(|(after, before)| after.since(before)).collect();
        let title = format!(
            "Puts at {connections} over three nodes: {:.0} a second, p50 {:.0} µs, p99 {:.0} µs",
            round.per_second(),
            round.percentile_us(50),
            round.percentile_us(99)
        );
        report.table(&title, table(&spent, leads, count(round.done)));
    }
    for node in &mut nodes {
        node.stop()?;
    }
    Ok(())
}

fn table(spent: &[Spent], leads: usize, puts: f64) -> Table {
    let role = |place: usize| if place == leads { "the leader" } else { "a follower" };
    let names = (0..spent.len()).map(|place| format!("{}: µs of CPU per put", role(place)));
    let columns: Vec<String> = ["what".to_owned()].into_iter().chain(names).collect();
    let mut table = Table::new(&columns.iter().map(String::as_str).collect::<Vec<_>>());
    let mut line = |what: &str, figure: &dyn Fn(&Spent) -> f64| {
        let cells = spent.iter().map(|node| format!("{:.2}", figure(node)));
        table.row(&[what.to_owned()].into_iter().chain(cells).collect::<Vec<_>>());
    };
    let threads: BTreeSet<&String> = spent.iter().flat_map(|node| node.cpu.threads.keys()).collect();
    for name in threads {
        let of = |node: &Spent| node.cpu.threads.get(name).copied().unwrap_or(0.0) * 1e6 / puts;
        line(&format!("thread {name}"), &of);
    }
    line("the process", &|node| node.cpu.total * 1e6 / puts);
    let apply = |node: &Spent| {
        let stages = ["decode", "transactions", "state_map", "archive", "rows"];
        let of = |stage: &&str| node.metrics.get_or_zero(&format!("samovar_apply_seconds_total{{stage=\"{stage}\"}}"));
        stages.iter().map(of).sum::<f64>() * 1e6 / puts
    };
    line("of which apply, by its own timers", &apply);
    let fsyncs = |node: &Spent| node.metrics.get_or_zero("samovar_raft_log_fsync_duration_seconds_count");
    line("puts per fsync of the raft log (no time)", &|node| puts / fsyncs(node).max(1.0));
    let waited = |node: &Spent| node.metrics.get_or_zero("samovar_raft_log_fsync_duration_seconds_sum");
    line("µs of waiting per fsync (no CPU)", &|node| waited(node) * 1e6 / fsyncs(node).max(1.0));
    table
}
