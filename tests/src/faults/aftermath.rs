//! What must hold when all is well again: of every acknowledged write one entry, one log and one state on all nodes, each
//! checkpoint with the cosignatures that the policy wants, as an auditor checks it who was there from the start.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::history::{Act, Operation};
use crate::durability::{Chain, Oracle, download};
use crate::{Daemon, binary};

/// How long nodes may take to come to one end, and their checkpoints with them.
const LEVEL_WITHIN: Duration = Duration::from_secs(90);

/// What an auditor has who was there before the cluster was one.
pub(super) struct Auditor {
    key: String,
    policy: String,
}

impl Auditor {
    /// # Errors
    /// When the node does not tell.
    pub(super) async fn begin(node: &Daemon) -> Result<Self> {
        let key = fs::read_to_string(node.data().join("log.vkey"))?.trim().to_owned();
        let log = node.client().await?.get("/v1/log").await?.json()?;
        Ok(Self { key, policy: log["policy"].as_str().context("/v1/log has no policy")?.to_owned() })
    }

    /// The receipt that a node gives of a transaction verifies, with the receipts of all changes of keys and cosigners.
    ///
    /// # Errors
    /// With what `samovar verify` said.
    async fn verify(&self, node: &Daemon, transaction: u64, scratch: &Path) -> Result<usize> {
        let mut client = node.client().await?;
        let log = client.get("/v1/log").await?.json()?;
        let chain = scratch.join("key-changes");
        fs::create_dir_all(&chain)?;
        let changes: Vec<u64> =
            log["key_changes"].as_array().into_iter().flatten().filter_map(|n| n.as_u64()).collect();
        for change in &changes {
            let receipt = client.get(&format!("/v1/transactions/{change}/receipt?wait=quorum")).await?;
            ensure!(receipt.status == 200, "no receipt of the change {change}: {}", receipt.text());
            write(&chain.join(format!("{change:012}")), &receipt.body)?;
        }
        let receipt = client.get(&format!("/v1/transactions/{transaction}/receipt?wait=quorum")).await?;
        ensure!(receipt.status == 200, "no receipt of transaction {transaction}: {}", receipt.text());
        let (file, policy) = (scratch.join("receipt"), scratch.join("policy"));
        write(&file, &receipt.body)?;
        write(&policy, self.policy.as_bytes())?;
        let mut command = Command::new(binary()?);
        command
            .arg("verify")
            .arg(&file)
            .args(["--key", &self.key])
            .arg("--policy")
            .arg(&policy)
            .arg("--chain")
            .arg(&chain);
        let said = command.output()?;
        let text = String::from_utf8_lossy(&said.stderr);
        ensure!(said.status.success(), "samovar verify refuses the receipt of transaction {transaction}: {text}");
        Ok(changes.len())
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    Ok(fs::File::create(path).and_then(|mut file| std::io::Write::write_all(&mut file, bytes))?)
}

/// What was compared.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Compared {
    /// Acknowledged writes, each found once at the index that was told.
    pub(super) acknowledged: usize,
    /// Writes of unknown outcome that are in the log.
    pub(super) found: usize,
    /// And that are not.
    pub(super) not_found: usize,
    /// Entries from which every node's log was recomputed.
    pub(super) entries: u64,
    /// Changes of keys and cosigners that the auditor followed.
    pub(super) key_changes: usize,
}

/// Waits until all nodes have applied and cosigned the same.
///
/// # Errors
/// When they do not.
pub(super) async fn level(nodes: &[Daemon]) -> Result<()> {
    let begun = Instant::now();
    loop {
        let mut ends = Vec::new();
        for node in nodes {
            let status = node.client().await?.get("/v1/status").await?.json()?;
            ends.push(["size", "height", "checkpoint_size"].map(|name| status[name].as_u64()));
        }
        let [size, _, signed] = ends[0];
        if size == signed && ends.iter().all(|end| *end == ends[0]) {
            return Ok(());
        }
        ensure!(begun.elapsed() < LEVEL_WITHIN, "size, height and checkpoint differ after {LEVEL_WITHIN:?}: {ends:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Compares what clients were told with the log of every node, recomputed from its entries.
///
/// # Errors
/// With what differs.
pub(super) async fn compare(
    nodes: &[Daemon],
    keys: &BTreeMap<String, Vec<Operation>>,
    auditor: &Auditor,
    scratch: &Path,
) -> Result<Compared> {
    let newest = keys.values().flatten().filter_map(|operation| operation.revision).max().unwrap_or(0);
    let mut chains = Vec::new();
    for node in nodes {
        let of = || format!("the log of {}", node.data().display());
        chains.push(download(&mut node.client().await?, newest).await.with_context(of)?);
    }
    for chain in &chains[1..] {
        let ends = [&chains[0], chain].map(|c| (c.size, c.height, c.root.clone(), c.state_root.clone()));
        ensure!(ends[0] == ends[1], "two nodes have two ledgers: {:?} and {:?}", ends[0], ends[1]);
    }
    let mut chain = chains.swap_remove(0);
    let mut compared = Compared { entries: chain.size, ..Compared::default() };
    for (key, operations) in keys {
        of_key(key, operations, &chain, &mut compared)?;
    }
    let oracle = Oracle::new(std::mem::take(&mut chain.state))?;
    ensure!(oracle.root()[..] == chain.state_root[..], "jmt computes another state root than block {}", chain.height);
    for node in nodes {
        compared.key_changes = auditor.verify(node, newest, scratch).await?;
    }
    Ok(compared)
}

fn of_key(key: &str, operations: &[Operation], chain: &Chain, compared: &mut Compared) -> Result<()> {
    let empty = Vec::new();
    let logged = chain.revisions.get(key).unwrap_or(&empty);
    let there: HashMap<u64, bool> = logged.iter().copied().collect();
    let mut values: HashMap<u64, u64> = HashMap::new();
    let (mut told, mut unknown) = (HashSet::new(), 0);
    for operation in operations {
        match (operation.act, operation.revision) {
            (Act::Done(_, value), Some(revision)) => {
                ensure!(told.insert(revision), "two writes of {key} were told revision {revision}");
                ensure!(
                    there.get(&revision) == Some(&value.is_some()),
                    "LOST: a write of {key} was acknowledged as {revision}: {operation:?}; the log has {logged:?}"
                );
            }
            (Act::Unknown(..), _) => unknown += 1,
            _ => {}
        }
        if let (Act::Done(_, Some(value)) | Act::Read(Some(value)), Some(revision)) =
            (operation.act, operation.revision)
        {
            let other = values.insert(revision, value);
            ensure!(other.is_none_or(|other| other == value), "revision {revision} of {key} was {value} and {other:?}");
        }
    }
    let found = logged.len() - told.len();
    ensure!(
        found <= unknown,
        "{key} has {found} revisions that nobody was told of; {unknown} writes are unknown: {logged:?}"
    );
    compared.acknowledged += told.len();
    compared.found += found;
    compared.not_found += unknown - found;
    Ok(())
}
