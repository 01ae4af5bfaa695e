use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::{from_base64, sha256, to_base64};
use crate::Client;

/// Entries of a full bundle.
const BUNDLE: u64 = 256;
/// How long a checkpoint may take to cover what was acknowledged.
const CHECKPOINT_WAIT: Duration = Duration::from_secs(30);

/// A chain log, recomputed from its entries alone.
#[derive(Default)]
pub struct Chain {
    /// Revisions of every key: index of the entry, and whether it put a value.
    pub revisions: HashMap<String, Vec<(u64, bool)>>,
    /// SHA-256(key) → map value.
    pub state: BTreeMap<[u8; 32], Vec<u8>>,
    /// Blocks.
    pub height: u64,
    /// Entries.
    pub size: u64,
    /// Root of all entries, as computed and as the checkpoint states.
    pub root: Vec<u8>,
    /// State root that the newest block states.
    pub state_root: Vec<u8>,
    previous_block: Option<[u8; 32]>,
    since_block: u64,
    commitments: HashMap<(u64, String), Vec<u8>>,
}

/// Fetches checkpoint and entries, the checkpoint one that covers `index`, and recomputes everything.
///
/// # Errors
/// Says where the log contradicts itself.
pub async fn download(client: &mut Client, index: u64) -> Result<Chain> {
    let (size, root) = checkpoint(client, index).await?;
    let (mut chain, mut tree) = (Chain::default(), Vec::new());
    for bundle in 0..size.div_ceil(BUNDLE) {
        let width = BUNDLE.min(size - bundle * BUNDLE);
        let path = bundle_path(bundle, width);
        let answer = client.get(&path).await?;
        ensure!(answer.status == 200, "{path} was answered {}: {}", answer.status, answer.text());
        let mut rest = &answer.body[..];
        for _ in 0..width {
            let (length, tail) = rest.split_first_chunk::<2>().context("a bundle ends early")?;
            let (line, tail) =
                tail.split_at_checked(usize::from(u16::from_be_bytes(*length))).context("a torn bundle")?;
            push(&mut tree, sha256(&[&[0], line]));
            chain.entry(line).with_context(|| format!("entry {}: {}", chain.size, String::from_utf8_lossy(line)))?;
            rest = tail;
        }
        ensure!(rest.is_empty(), "{path} is longer than {width} entries");
    }
    ensure!(chain.since_block == 0, "the checkpoint does not end at a block: {} entries more", chain.since_block);
    let computed = fold(&tree);
    ensure!(computed[..] == root[..], "the root of {size} entries is {computed:02x?}, the checkpoint says {root:02x?}");
    chain.root = root;
    Ok(chain)
}

async fn checkpoint(client: &mut Client, index: u64) -> Result<(u64, Vec<u8>)> {
    let begun = Instant::now();
    loop {
        let answer = client.get("/checkpoint").await?;
        ensure!(answer.status == 200, "/checkpoint was answered {}: {}", answer.status, answer.text());
        let text = answer.text();
        let mut lines = text.lines().skip(1);
        let size: u64 = lines.next().context("a checkpoint has a size")?.parse()?;
        if size > index {
            return Ok((size, from_base64(lines.next().context("a checkpoint has a root")?)?));
        }
        if begun.elapsed() > CHECKPOINT_WAIT {
            bail!("entry {index} was acknowledged, but the checkpoint still has {size} entries");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn bundle_path(bundle: u64, width: u64) -> String {
    let (thousands, rest) = (bundle / 1000, bundle % 1000);
    let index = if thousands == 0 { format!("{rest:03}") } else { format!("x{thousands:03}/{rest:03}") };
    let partial = if width == BUNDLE { String::new() } else { format!(".p/{width}") };
    format!("/tile/entries/{index}{partial}")
}

/// Complete subtrees from left to right, largest first: (leaves, hash).
fn push(tree: &mut Vec<(u64, [u8; 32])>, leaf: [u8; 32]) {
    tree.push((1, leaf));
    while let [.., (a, left), (b, right)] = tree.as_slice()
        && a == b
    {
        let joined = (a + b, sha256(&[&[1], left, right]));
        tree.truncate(tree.len() - 2);
        tree.push(joined);
    }
}

fn fold(tree: &[(u64, [u8; 32])]) -> [u8; 32] {
    let join = |right: [u8; 32], (_, left): &(u64, [u8; 32])| sha256(&[&[1], left, &right]);
    match tree.split_last() {
        Some(((_, last), rest)) => rest.iter().rev().fold(*last, join),
        None => sha256(&[]),
    }
}

impl Chain {
    fn entry(&mut self, line: &[u8]) -> Result<()> {
        let entry: Value = serde_json::from_slice(line)?;
        match entry["type"].as_str() {
            Some("block") => self.block(&entry, line)?,
            Some("transaction") => {
                for operation in entry["operations"].as_array().context("operations")? {
                    self.operation(operation)?;
                }
                self.since_block += 1;
            }
            _ => self.since_block += 1,
        }
        self.size += 1;
        Ok(())
    }

    fn block(&mut self, entry: &Value, line: &[u8]) -> Result<()> {
        self.height += 1;
        ensure!(entry["height"] == self.height, "expected height {}", self.height);
        ensure!(entry["count"] == self.since_block, "the block has {} entries", self.since_block);
        let previous = self.previous_block.map_or(Value::Null, |hash| to_base64(&hash).into());
        ensure!(entry["previous"] == previous, "expected the previous block {previous}");
        self.state_root = from_base64(entry["state"].as_str().context("state")?)?;
        self.previous_block = Some(sha256(&[&[0], line]));
        self.since_block = 0;
        Ok(())
    }

    fn operation(&mut self, operation: &Value) -> Result<()> {
        let (kind, body) = operation.as_object().and_then(|o| o.iter().next()).context("an operation")?;
        let key = body["key"].as_str().context("key")?.to_owned();
        let hash = sha256(&[key.as_bytes()]);
        let revisions = self.revisions.entry(key.clone()).or_default();
        let previous = revisions.last().map_or(Value::Null, |(index, _)| (*index).into());
        ensure!(body["previous"] == previous, "expected previous {previous} of {key}");
        let index = self.size.to_be_bytes();
        match kind.as_str() {
            "put" => {
                let commitment = from_base64(body["commitment"].as_str().context("commitment")?)?;
                revisions.push((self.size, true));
                self.state.insert(hash, [&[1], index.as_slice(), &commitment].concat());
                self.commitments.insert((self.size, key), commitment);
            }
            "delete" => {
                revisions.push((self.size, false));
                ensure!(self.state.remove(&hash).is_some(), "{key} was not there to be deleted");
            }
            _ => {
                let revision = body["revision"].as_u64().context("revision")?;
                let commitment = self.commitments.get(&(revision, key)).context("the erased revision put nothing")?;
                let number = revision.to_be_bytes();
                let current = self.state.get_mut(&hash).filter(|value| value[1..9] == number);
                if let Some(value) = current {
                    *value = [&[2], number.as_slice(), commitment, &index].concat();
                }
            }
        }
        Ok(())
    }
}
