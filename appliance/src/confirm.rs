//! `samovar confirm`: whether the version that runs is good here. An updated node must still have the very log that was durable
//! before the update, and answer for it: that a process runs and `/ready` says 200 shows neither.
//!
//! What the version before had is an [`Expectation`], written by it (`--record`) before the machine went down. The log's root
//! at that size is reckoned from the tiles that the new version serves, so its own word for it does not count.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use samovar_node::checkpoint::Checkpoint;
use samovar_node::merkle::{HASH_BYTES, Hash, node_hash};
use samovar_node::note::{Note, VerifierKey};
use samovar_node::rt;
use samovar_node::tiles::{Kind, LEVEL_MAX, Tile, width_at};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::Instant;

use crate::client::{Client, DATA_DEFAULT, Error, Request, Target};
use crate::durable::{Mode, replace};
use crate::output::{self, Format};
use crate::serve::SOCKET_FILE;
use crate::update::{DIRECTORY, EXPECTATION_FILE};

/// Exit code for "ask again": EX_TEMPFAIL of sysexits.h.
const EXIT_WAIT: u8 = 75;
/// How long a node that does not answer is asked again; who calls this asks again anyway.
const PATIENCE: Duration = Duration::from_secs(2);
/// Time for one answer: a linearizable read may wait for a quorum.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a checkpoint over everything is waited for, and how often it is looked at.
const COVER_TIMEOUT: Duration = Duration::from_secs(10);
const COVER_PAUSE: Duration = Duration::from_millis(100);
/// Longest answer, in bytes.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Say whether the version that runs is good here
///
/// Exit codes: 0 good, 1 bad, 75 not known yet: ask again. What was durable before an update is compared with what there is
/// now; the version before left it in a file.
#[derive(Debug, clap::Args)]
pub(crate) struct Confirm {
    /// Print the checks as JSON; the same as --output json
    #[arg(long)]
    json: bool,
    /// What was durable before the update [default: /var/lib/samovar-update/expectation, if it is there]
    #[arg(long, value_name = "FILE")]
    expect: Option<PathBuf>,
    /// Instead of checking: record what is durable now, for the version after this one
    #[arg(long, value_name = "FILE", conflicts_with = "expect")]
    record: Option<PathBuf>,
    #[command(flatten)]
    target: Target,
}

/// What the version before had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Expectation {
    /// Version of the binary that recorded it.
    pub(crate) version: String,
    /// Origin of the log.
    pub(crate) origin: String,
    /// Entries that the log had, all of them durable.
    pub(crate) size: u64,
    /// Merkle root over them (base64).
    pub(crate) root: String,
    /// The signed checkpoint that says so.
    pub(crate) checkpoint: String,
}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// It holds.
    Good,
    /// It cannot be said yet.
    Wait,
    /// It does not hold, and waiting will not change that.
    Bad,
}

/// One check, with its reason in words.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Check {
    check: &'static str,
    verdict: Verdict,
    why: String,
}

/// All of it.
#[derive(Debug, Serialize)]
struct Report {
    verdict: Verdict,
    version: &'static str,
    checks: Vec<Check>,
}

/// Runs the command; its exit code is the verdict.
pub(crate) async fn run(command: &Confirm, format: Format) -> Result<ExitCode> {
    let client = client(&command.target);
    if let Some(file) = &command.record {
        let expectation = record(&client?).await?;
        let text = serde_json::to_string_pretty(&expectation)? + "\n";
        replace(file, text.as_bytes(), Mode::Public)?;
        return Ok(ExitCode::SUCCESS);
    }
    let checks = match client {
        Ok(client) => check(&client, expectation(command.expect.as_deref())).await,
        Err(error @ Error::Unreachable { .. }) => vec![unanswered("daemon", &error)],
        Err(error) => return Err(error.into()),
    };
    let verdict = checks.iter().map(|c| c.verdict).max().unwrap_or(Verdict::Wait);
    let report = Report { verdict, version: env!("CARGO_PKG_VERSION"), checks };
    if command.json || format == Format::Json {
        output::json(&serde_json::to_value(&report)?)?;
    } else {
        output::text(&render(&report))?;
    }
    Ok(ExitCode::from(match verdict {
        Verdict::Good => 0,
        Verdict::Bad => 1,
        Verdict::Wait => EXIT_WAIT,
    }))
}

fn render(report: &Report) -> String {
    let mut table = output::Table::new(&["CHECK", "VERDICT", "WHY"]);
    for Check { check, verdict, why } in &report.checks {
        table.row(vec![(*check).to_owned(), word(*verdict).to_owned(), why.clone()]);
    }
    format!(
        "{}Version {} is {} here.\n",
        table.render(),
        report.version,
        match report.verdict {
            Verdict::Good => "good",
            Verdict::Wait => "not known to be good yet: ask again",
            Verdict::Bad => "bad",
        }
    )
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Good => "good",
        Verdict::Wait => "wait",
        Verdict::Bad => "bad",
    }
}

/// The node that is named, else the one of this machine by its socket: an API key that lies there may be revoked, and that
/// says nothing about the version.
fn client(target: &Target) -> Result<Client, Error> {
    let Target { url, ca, token_file, data } = target;
    if url.is_some() || ca.is_some() || token_file.is_some() {
        return Client::open(target);
    }
    let data = data.as_deref().unwrap_or(Path::new(DATA_DEFAULT));
    Ok(Client::local(&data.join(SOCKET_FILE)))
}

/// The expectation: of the named file, which must be there, or of the usual place, where it need not be.
fn expectation(file: Option<&Path>) -> Result<Option<Expectation>> {
    let usual = Path::new(DIRECTORY).join(EXPECTATION_FILE);
    let path = file.unwrap_or(&usual);
    let text = match std::fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && file.is_none() => return Ok(None),
        text => text.with_context(|| format!("reading {}", path.display()))?,
    };
    serde_json::from_str(&text).map(Some).with_context(|| format!("{} is no expectation", path.display()))
}

/// What is durable now: the newest checkpoint, whose signature was made after everything in it was on disk. One that covers
/// all that there is now is waited for, but not for ever: an earlier one is as true, and says less.
async fn record(client: &Client) -> Result<Expectation> {
    let log = answer(client, "/v1/log").await?;
    let size = size(&answer(client, "/v1/status").await?)?;
    let end = Instant::now() + COVER_TIMEOUT;
    let (note, head) = loop {
        let (note, head) = checkpoint(client, &log).await?;
        if head.size >= size || Instant::now() > end {
            break (note, head);
        }
        rt::sleep(COVER_PAUSE).await;
    };
    Ok(Expectation {
        version: member(&answer(client, "/v1/status").await?, "version")?,
        origin: head.origin,
        size: head.size,
        root: STANDARD.encode(head.root),
        checkpoint: note,
    })
}

/// Every check that can be made; the first that must wait ends it.
async fn check(client: &Client, expected: Result<Option<Expectation>>) -> Vec<Check> {
    let mut checks = Vec::new();
    let status = match answer(client, "/v1/status").await {
        Ok(status) => status,
        Err(error) => return vec![failed("daemon", &error)],
    };
    checks.push(version(&status));
    match client.send(bounded("/ready")).await {
        Ok(_) => checks.push(good("reads", "a linearizable read was answered, so a quorum is there".into())),
        Err(error) => checks.push(unanswered("reads", &error)),
    }
    let head = match signed(client).await {
        Ok(head) => head,
        Err(error) => {
            checks.push(failed("checkpoint", &error));
            return checks;
        }
    };
    checks.push(good("checkpoint", format!("the log's key signed the head of {} entries", head.size)));
    checks.push(match expected {
        Ok(None) => good("head", "nothing was recorded before this version: there is nothing to compare with".into()),
        Ok(Some(expected)) => compare(client, (&status, &head), &expected).await.unwrap_or_else(|e| failed("head", &e)),
        Err(error) => bad("head", format!("{error:#}")),
    });
    checks
}

fn version(status: &Value) -> Check {
    let own = env!("CARGO_PKG_VERSION");
    match member(status, "version") {
        Ok(version) if version == own => good("version", format!("the daemon runs {version}")),
        Ok(version) => bad("version", format!("the daemon runs {version}, this is {own}: it was not restarted")),
        Err(error) => bad("version", error.to_string()),
    }
}

async fn signed(client: &Client) -> Result<Checkpoint> {
    let log = answer(client, "/v1/log").await?;
    Ok(checkpoint(client, &log).await?.1)
}

/// The newest checkpoint, verified under the log's key: its text and what it says.
async fn checkpoint(client: &Client, log: &Value) -> Result<(String, Checkpoint)> {
    let text = client.send(bounded("/checkpoint")).await?.text()?.to_owned();
    let key = VerifierKey::parse(&member(log, "vkey")?).map_err(|e| anyhow!("the log's key: {e}"))?;
    let note = Note::parse(&text).map_err(|e| anyhow!("the checkpoint: {e}"))?;
    let head = Checkpoint::open(&note, &key)?;
    Ok((text, head))
}

/// Whether the log that was recorded is the beginning of this one.
async fn compare(client: &Client, (status, head): (&Value, &Checkpoint), expected: &Expectation) -> Result<Check> {
    let Expectation { version, origin, size, root, .. } = expected;
    if head.origin != *origin {
        return Ok(bad("head", format!("this is the log {}, version {version} had {origin}", head.origin)));
    }
    let there = self::size(status)?;
    if there < *size {
        let lost = format!(
            "the log has {there} entries, {size} were durable under version {version}: {} are missing",
            size - there
        );
        return Ok(bad("head", lost));
    }
    if head.size < *size {
        return Ok(wait("head", format!("the checkpoint covers {} of the {size} entries yet", head.size)));
    }
    let found = STANDARD.encode(root_at(client, *size).await?);
    Ok(if found == *root {
        good("head", format!("the {size} entries that version {version} had are the beginning of this log"))
    } else {
        bad(
            "head",
            format!("the first {size} entries hash to {found}, under version {version} it was {root}: another history"),
        )
    })
}

/// Merkle root over the first `size` entries, from the hash tiles at the right edge of a tree of that size.
async fn root_at(client: &Client, size: u64) -> Result<Hash> {
    let mut right: Option<Hash> = None;
    for level in 0..=LEVEL_MAX {
        let width = width_at(size, level.into());
        if width == 0 {
            continue;
        }
        let index = size.checked_shr(8 * (u32::from(level) + 1)).unwrap_or(0);
        let tile = Tile { kind: Kind::Hashes(level), index, width };
        let body = client.send(bounded(&format!("/{tile}"))).await?.body;
        if body.len() != usize::from(width) * HASH_BYTES {
            bail!("{tile} has {} bytes", body.len());
        }
        let mut hashes: Vec<Hash> = body.as_chunks().0.to_vec();
        hashes.extend(right);
        right = Some(root_of(&hashes));
    }
    right.context("a log begins with an entry")
}

/// Root over the roots of subtrees, all of one size but for the last, which may be smaller (RFC 6962, 2.1).
fn root_of(hashes: &[Hash]) -> Hash {
    match hashes {
        [] => samovar_node::merkle::empty_root(),
        [one] => *one,
        several => {
            let half = several.len().next_power_of_two() / 2;
            node_hash(&root_of(&several[..half]), &root_of(&several[half..]))
        }
    }
}

fn bounded(path: &str) -> Request {
    Request::get(path).patience(PATIENCE).bounds(ANSWER_TIMEOUT, ANSWER_BYTES_MAX)
}

async fn answer(client: &Client, path: &str) -> Result<Value> {
    Ok(client.send(bounded(path)).await?.json()?)
}

fn size(status: &Value) -> Result<u64> {
    status.get("size").and_then(Value::as_u64).context("the node's status names no size")
}

fn member(document: &Value, name: &str) -> Result<String> {
    let text = document.get(name).and_then(Value::as_str);
    text.map(str::to_owned).with_context(|| format!("the node's answer has no `{name}`"))
}

fn good(check: &'static str, why: String) -> Check {
    Check { check, verdict: Verdict::Good, why }
}

fn wait(check: &'static str, why: String) -> Check {
    Check { check, verdict: Verdict::Wait, why }
}

fn bad(check: &'static str, why: String) -> Check {
    Check { check, verdict: Verdict::Bad, why }
}

/// What passes is waited for; what does not is bad.
fn failed(check: &'static str, error: &anyhow::Error) -> Check {
    match error.chain().find_map(|e| e.downcast_ref::<Error>()) {
        Some(error) => unanswered(check, error),
        None => bad(check, format!("{error:#}")),
    }
}

fn unanswered(check: &'static str, error: &Error) -> Check {
    if error.is_passing() { wait(check, error.to_string()) } else { bad(check, error.to_string()) }
}

#[cfg(test)]
mod tests {
    use samovar_node::merkle::{Tree, leaf_hash};

    use super::*;

    #[test]
    fn a_root_is_that_of_the_tree() {
        let (mut tree, mut full, mut leaves) = (Tree::new(), Vec::new(), Vec::new());
        for n in 0u32..256 {
            let leaf = leaf_hash(&n.to_be_bytes());
            tree.push(leaf, &mut full);
            leaves.push(leaf);
            assert_eq!(root_of(&leaves), tree.root(), "of {} leaves", n + 1);
        }
    }

    #[test]
    fn one_bad_check_outweighs_all() {
        let worst = |checks: &[Verdict]| checks.iter().max().copied();
        assert_eq!(worst(&[Verdict::Good, Verdict::Wait]), Some(Verdict::Wait));
        assert_eq!(worst(&[Verdict::Wait, Verdict::Bad, Verdict::Good]), Some(Verdict::Bad));
    }

    #[test]
    fn a_missing_answer_is_waited_for_and_a_wrong_one_is_not() {
        let away = Error::Unreachable { url: "unix:x".into(), reason: "refused".into() };
        assert_eq!(unanswered("daemon", &away).verdict, Verdict::Wait);
        assert_eq!(failed("daemon", &away.into()).verdict, Verdict::Wait);
        assert_eq!(failed("daemon", &anyhow!("no JSON")).verdict, Verdict::Bad);
    }
}
