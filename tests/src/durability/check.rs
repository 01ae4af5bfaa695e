use std::fmt;

use anyhow::{Result, bail, ensure};
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;

use super::chain::{Chain, download};
use super::load::Load;
use super::oracle::Oracle;
use super::write::{Content, Request, Version};
use crate::{Answer, Client, Daemon};

/// Acknowledged revisions of the past that are read again, and keys whose proofs jmt judges, per check.
const SAMPLE: usize = 24;

/// The ledger gave a wrong answer; anything else that fails is a refusal.
#[derive(Debug)]
pub struct Wrong(pub String);

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WRONG: {}", self.0)
    }
}

impl std::error::Error for Wrong {}

/// What a check looked at.
#[derive(Debug, Clone, Copy, Default)]
pub struct Checked {
    /// Acknowledged revisions that are in the chain log, and only once.
    pub revisions: usize,
    /// Writes in doubt that were found done.
    pub done: usize,
    /// Writes in doubt that were found not done.
    pub not_done: usize,
    /// Proofs that jmt's verifier accepted.
    pub proofs: usize,
    /// Entries from which everything was recomputed.
    pub entries: u64,
}

/// Compares everything that was acknowledged with what the daemon serves, settles what is in doubt by sending it again,
/// and recomputes chain and state from the entries.
///
/// # Errors
/// [`Wrong`] with what differs; anything else says that the daemon did not answer.
pub async fn check(daemon: &Daemon, load: &mut Load, rng: &mut StdRng) -> Result<Checked> {
    let mut client = daemon.client().await?;
    let mut checked = Checked::default();
    let doubtful: Vec<Request> = load.in_doubt().cloned().collect();
    let mut done = Vec::new();
    for request in &doubtful {
        match whole_or_not(&mut client, load, request).await? {
            Some(revision) => {
                checked.done += 1;
                done.push((request, revision));
            }
            None => checked.not_done += 1,
        }
    }
    load.resolve(&mut client).await?;
    for (request, revision) in done {
        let answered = load.latest(&request.changes[0].0).map(|v| v.revision);
        if answered != Some(revision) {
            bail!(Wrong(format!("{} was done at {revision}, its retry answered {answered:?}", request.name)));
        }
    }
    values(&mut client, load, rng).await?;
    let newest = load.versions().filter_map(|(_, v)| v.last()).map(|v| v.revision).max().unwrap_or(0);
    let chain = download(&mut client, newest).await?;
    checked.entries = chain.size;
    checked.revisions = revisions(load, &chain)?;
    checked.proofs = proofs(&mut client, load, chain, rng).await?;
    Ok(checked)
}

/// A write without an answer is there in all its keys, or in none. Returns its revision if it is.
async fn whole_or_not(client: &mut Client, load: &Load, request: &Request) -> Result<Option<u64>> {
    let (mut there, mut missing) = (Vec::new(), 0);
    for (key, wanted) in &request.changes {
        let answer = read(client, &format!("/v1/keys/{key}")).await?;
        let before = load.latest(key);
        if shows(&answer, before.map(|v| v.revision), before.and_then(|v| v.content)) {
            missing += 1;
        } else if shows(&answer, None, *wanted) {
            there.push(revision_of(client, key, &answer).await?);
        } else {
            let got = answer.status;
            bail!(Wrong(format!("{key} holds neither {before:?} nor {wanted:?} of {}: {got}", request.name)));
        }
    }
    there.dedup();
    match (there.as_slice(), missing) {
        ([], _) => Ok(None),
        ([revision], 0) => Ok(Some(*revision)),
        _ => bail!(Wrong(format!("{} is torn: revisions {there:?}, {missing} keys without it", request.name))),
    }
}

/// Whether an answer is this state of a key; the revision is compared if it is known.
fn shows(answer: &Answer, revision: Option<u64>, content: Option<Content>) -> bool {
    match content {
        None => answer.status == 404,
        Some(content) => {
            answer.status == 200 && revision.is_none_or(|r| etag(answer) == Some(r)) && answer.body == content.bytes()
        }
    }
}

fn etag(answer: &Answer) -> Option<u64> {
    answer.headers.get("etag")?.to_str().ok()?.trim_matches('"').parse().ok()
}

async fn revision_of(client: &mut Client, key: &str, answer: &Answer) -> Result<u64> {
    if let Some(revision) = etag(answer) {
        return Ok(revision);
    }
    let history = read(client, &format!("/v1/history/{key}?limit=1")).await?.json()?;
    history["versions"][0]["revision"].as_u64().ok_or_else(|| Wrong(format!("{key} has no history")).into())
}

/// An answer; the node's own failures are errors, not answers.
async fn read(client: &mut Client, path: &str) -> Result<Answer> {
    let answer = client.get(path).await?;
    ensure!(answer.status < 500, "{path} was refused with {}: {}", answer.status, answer.text());
    Ok(answer)
}

/// Every key holds its last acknowledged value, and a sample of older revisions can still be read as of their blocks.
async fn values(client: &mut Client, load: &Load, rng: &mut StdRng) -> Result<()> {
    let mut wanted: Vec<(String, Version)> = Vec::new();
    let mut past = Vec::new();
    for (key, versions) in load.versions() {
        wanted.extend(versions.last().map(|v| (format!("/v1/keys/{key}"), *v)));
        let last_of_block = versions.windows(2).filter(|pair| pair[0].block != pair[1].block).map(|pair| pair[0]);
        past.extend(last_of_block.map(|v| (format!("/v1/keys/{key}?at={}", v.block), v)));
    }
    wanted.extend(past.choose_multiple(rng, SAMPLE).cloned());
    for (path, version) in wanted {
        let answer = read(client, &path).await?;
        if !shows(&answer, Some(version.revision), version.content) {
            let (status, tag, size) = (answer.status, etag(&answer), answer.body.len());
            bail!(Wrong(format!("{path}: acknowledged {version:?}, got {status}, revision {tag:?}, {size} bytes")));
        }
    }
    Ok(())
}

/// The chain log has exactly the acknowledged revisions of every key: none lost, none twice.
fn revisions(load: &Load, chain: &Chain) -> Result<usize> {
    let mut count = 0;
    for (key, versions) in load.versions() {
        let known: Vec<_> = versions.iter().map(|v| (v.revision, v.content.is_some())).collect();
        let logged = chain.revisions.get(key).map_or(&[][..], Vec::as_slice);
        if known != logged {
            let differs = known.iter().zip(logged).position(|(a, b)| a != b).unwrap_or(known.len().min(logged.len()));
            let (a, b) = (known.get(differs), logged.get(differs));
            bail!(Wrong(format!("revision {differs} of {key}: acknowledged {a:?}, the chain log has {b:?}")));
        }
        count += known.len();
    }
    Ok(count)
}

/// jmt computes the same root, and accepts our proofs.
async fn proofs(client: &mut Client, load: &Load, chain: Chain, rng: &mut StdRng) -> Result<usize> {
    let (stated, height) = (chain.state_root, chain.height);
    let oracle = Oracle::new(chain.state)?;
    if oracle.root()[..] != stated[..] {
        bail!(Wrong(format!(
            "jmt's state root of block {height} is {:02x?}, the block says {stated:02x?}",
            oracle.root()
        )));
    }
    let mut keys: Vec<String> = load.versions().map(|(key, _)| key.to_owned()).collect();
    keys.shuffle(rng);
    keys.truncate(SAMPLE);
    keys.extend((0..SAMPLE / 2).map(|n| format!("never/{n}/{}", rand::Rng::r#gen::<u32>(rng))));
    for key in &keys {
        let proof = read(client, &format!("/v1/proofs/{key}")).await?;
        ensure!(proof.status == 200, "no proof of {key}: {}", proof.text());
        oracle.accepts(key, &proof.text()).map_err(|e| Wrong(format!("jmt refuses the proof of {key}: {e:#}")))?;
    }
    Ok(keys.len())
}
