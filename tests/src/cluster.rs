//! Several nodes as one cluster: what the benchmark, the lane of faults and tests of load begin with.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{Daemon, Settings, free_port};

/// How long nodes may take to come together.
const TOGETHER_WITHIN: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

/// Begins a cluster of nodes in these data directories, each with its settings, and waits until all vote and cosign.
///
/// # Errors
/// With what a node or command said.
pub async fn begin(nodes: Vec<(PathBuf, Settings)>) -> Result<Vec<Daemon>> {
    let mut nodes = nodes.into_iter();
    let Some((data, settings)) = nodes.next() else { return Ok(Vec::new()) };
    let mut all = vec![alone(&data, settings).await?];
    grow(&mut all, nodes.collect()).await?;
    Ok(all)
}

/// A node that may have peers.
///
/// # Errors
/// As [`begin`].
pub async fn alone(data: &Path, settings: Settings) -> Result<Daemon> {
    Daemon::create(data, settings.with_peers(free_port()?)).await
}

/// Has more nodes join a cluster, and waits until all of them vote and cosign.
///
/// # Errors
/// As [`begin`].
pub async fn grow(all: &mut Vec<Daemon>, more: Vec<(PathBuf, Settings)>) -> Result<()> {
    for (data, settings) in more {
        let first = all.first().context("a cluster has a first node")?;
        let (name, token) = (format!("box-{:02}", all.len() + 1), data.with_extension("join"));
        let made = first.command(&["node", "token", "--save"])?.arg(&token).output()?;
        ensure!(made.status.success(), "samovar node token: {}", String::from_utf8_lossy(&made.stderr));
        let mut node = first.join_with(&data, &name, &token, settings)?;
        node.start().await?;
        all.push(node);
    }
    until_all_vote(all).await
}

/// Waits until every node knows of a leader, and that all of them are live voters and in the policy of the log.
///
/// # Errors
/// When they do not come together.
pub async fn until_all_vote(nodes: &[Daemon]) -> Result<()> {
    let begun = Instant::now();
    let mut last = Vec::new();
    while begun.elapsed() < TOGETHER_WITHIN {
        last.clear();
        for node in nodes {
            last.push(votes(node, nodes.len()).await.unwrap_or_else(|error| Some(format!("{error:#}"))));
        }
        if last.iter().all(Option::is_none) {
            return Ok(());
        }
        tokio::time::sleep(POLL).await;
    }
    bail!("the nodes did not come together in {TOGETHER_WITHIN:?}: {last:#?}")
}

/// What a node lacks of that, in words.
async fn votes(node: &Daemon, count: usize) -> Result<Option<String>> {
    let mut client = node.client().await?;
    let cluster = client.get("/v1/cluster").await?.json()?;
    let log = client.get("/v1/log").await?.json()?;
    let cosigners = log["cosigners"].as_array().map_or(0, Vec::len);
    let all = cluster["live_voters"] == count && cosigners == count && cluster["leader"].is_string();
    Ok((!all).then(|| format!("{cosigners} cosigners, {cluster}")))
}

/// Place of the node that leads, as it says itself.
///
/// # Errors
/// When none says so in a minute.
pub async fn leader(nodes: &[Daemon]) -> Result<usize> {
    let begun = Instant::now();
    while begun.elapsed() < TOGETHER_WITHIN {
        for (place, node) in nodes.iter().enumerate() {
            let status = node.client().await?.get("/v1/status").await?.json()?;
            if status["role"] == "leader" {
                return Ok(place);
            }
        }
        tokio::time::sleep(POLL).await;
    }
    bail!("no node says that it leads");
}
