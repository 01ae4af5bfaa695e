//! Receipts and proofs: fetched from a node, verified without one.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use samovar_node::Key;
use samovar_node::note::VerifierKey;
use samovar_node::policy::Policy;
use samovar_node::proof::{Contents, FILE_BYTES_MAX, Found, Latest, Receipt as Receipted, Value, Verified, Verifier};
use serde_json::{Value as Json, json};

use super::keys::client_key;
use crate::client::{Client, Request, Target, key_path, query};
use crate::output::{self, Format, printable};

/// Longest wait for cosignatures.
const QUORUM_TIMEOUT: Duration = Duration::from_secs(60);
/// Largest policy or file with a verifier key, in bytes.
const TEXT_BYTES_MAX: usize = 64 << 10;
/// Most changes of keys that are followed.
const CHAIN_FILES_MAX: usize = 1000;

#[derive(Debug, clap::Args)]
pub(super) struct Receipt {
    #[command(flatten)]
    target: Target,
    /// Number of the transaction
    transaction: u64,
    /// Wait until a checkpoint with enough cosignatures covers it
    #[arg(long)]
    wait: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Prove {
    #[command(flatten)]
    target: Target,
    /// The key
    #[arg(value_parser = client_key)]
    key: Key,
}

#[derive(Debug, clap::Args)]
pub(super) struct Verify {
    /// The receipt or proof
    file: PathBuf,
    /// Verifier key of the log, or a file with one
    #[arg(long, value_name = "LOGKEY")]
    key: String,
    /// Policy: which cosignatures must be there (C2SP tlog-policy)
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// The key of the ledger that the file must be about
    #[arg(long, value_name = "KEY", value_parser = client_key)]
    expect_key: Option<Key>,
    /// Receipts of changes of the log's keys, in order of file name, each checked under the policy before it
    #[arg(long, value_name = "DIR")]
    chain: Option<PathBuf>,
    /// Verifier key of the log, or a file with one, that came with a recovery after a lost quorum and that whoever runs the
    /// ledger confirmed by another way; once for each recovery
    #[arg(long, value_name = "LOGKEY")]
    recovered: Vec<String>,
}

pub(super) async fn receipt(receipt: &Receipt) -> anyhow::Result<()> {
    let path = format!("/v1/transactions/{}/receipt", receipt.transaction);
    let path = path + &query(&[("wait", receipt.wait.then_some("quorum"))]);
    print(&receipt.target, path).await
}

pub(super) async fn prove(prove: &Prove) -> anyhow::Result<()> {
    print(&prove.target, key_path("/v1/proofs", prove.key.as_str())).await
}

async fn print(target: &Target, path: String) -> anyhow::Result<()> {
    let request = Request::get(path).bounds(QUORUM_TIMEOUT, FILE_BYTES_MAX);
    let answer = Client::open(target)?.send(request).await?;
    Ok(output::bytes(&answer.body)?)
}

/// Needs neither network nor runtime.
pub(super) fn verify(verify: &Verify, format: Format) -> anyhow::Result<()> {
    let policy = verify.policy.as_deref().map(read_policy).transpose()?;
    let verifier = Verifier {
        log: log_key(&verify.key)?,
        policy,
        expect_key: verify.expect_key.as_ref().map(|k| k.as_str().to_owned()),
    };
    let changes = verify.chain.as_deref().map(chain_files).transpose()?.unwrap_or_default();
    let refused = || format!("{}: refused", verify.chain.as_deref().unwrap_or(Path::new("")).display());
    let recovered = verify.recovered.iter().map(|key| log_key(key)).collect::<anyhow::Result<Vec<_>>>()?;
    let trusted = verifier.verify_chain_with(&changes, &recovered).with_context(refused)?;
    let file = read_bounded(&verify.file, FILE_BYTES_MAX)?;
    let verified = trusted.verify(&file).with_context(|| format!("{}: refused", verify.file.display()))?;
    match format {
        Format::Json => output::json(&document(&verified))?,
        Format::Text => output::text(&sentences(&verified))?,
    }
    Ok(())
}

/// A verifier key of a log, or a file with one.
pub(crate) fn log_key(text: &str) -> anyhow::Result<VerifierKey> {
    let path = Path::new(text);
    let text = if path.is_file() { String::from_utf8(read_bounded(path, TEXT_BYTES_MAX)?)? } else { text.to_owned() };
    VerifierKey::parse(text.trim()).with_context(|| {
        format!("{:?} is neither a verifier key (NAME+HEX+BASE64) nor a file with one", printable(text.trim()))
    })
}

fn read_policy(path: &Path) -> anyhow::Result<Policy> {
    Policy::parse(&read_bounded(path, TEXT_BYTES_MAX)?).with_context(|| path.display().to_string())
}

fn read_bounded(path: &Path, bytes_max: usize) -> anyhow::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)
        .and_then(|file| file.take(bytes_max as u64 + 1).read_to_end(&mut content))
        .with_context(|| format!("cannot read {}", path.display()))?;
    if content.len() > bytes_max {
        bail!("{} is larger than {bytes_max} bytes", path.display());
    }
    Ok(content)
}

/// The files of a directory, ordered by the number that their names begin with, then by name.
fn chain_files(directory: &Path) -> anyhow::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    if names.is_empty() || names.len() > CHAIN_FILES_MAX {
        bail!("{}: holds {} files, 1 to {CHAIN_FILES_MAX} receipts are expected", directory.display(), names.len());
    }
    let number = |name: &String| name.split(|c: char| !c.is_ascii_digit()).next().and_then(|n| n.parse::<u64>().ok());
    names.sort_by_cached_key(|name| (number(name).unwrap_or(u64::MAX), name.clone()));
    names.iter().map(|name| read_bounded(&directory.join(name), FILE_BYTES_MAX)).collect()
}

/// What a file proves, what was checked and what not, for people.
fn sentences(verified: &Verified) -> String {
    let mut text = match &verified.contents {
        Contents::Receipt(Receipted { index, line, .. }) => {
            format!("Good: a receipt of entry {index}.\n  {}\n", printable(line))
        }
        Contents::Latest(latest) => format!("Good: {}\n", latest_sentence(latest)),
    };
    for (what, lines) in [("Checked", &verified.checked), ("Not checked", &verified.unchecked)] {
        if !lines.is_empty() {
            text.push_str(&format!("{what}:\n"));
        }
        for line in lines {
            text.push_str(&format!("  {}\n", printable(line)));
        }
    }
    text
}

fn latest_sentence(latest: &Latest) -> String {
    let key = printable(&latest.key);
    let found = match &latest.found {
        Found::Value { revision, .. } => format!("the latest value of {key} is that of revision {revision}"),
        Found::Erased { revision, erased_by } => {
            format!("the latest value of {key}, revision {revision}, was erased by entry {erased_by}")
        }
        Found::Absent => format!("{key} does not exist"),
    };
    format!("{found}, as of block {} ({}).", latest.block.height, output::time(latest.block.time_ms))
}

fn document(verified: &Verified) -> Json {
    let checkpoint = &verified.checkpoint;
    let cosigned = verified.cosigned.iter().map(|c| json!({ "name": c.name, "time": c.time_s }));
    let mut document = match &verified.contents {
        Contents::Receipt(receipt) => receipt_document(receipt),
        Contents::Latest(latest) => latest_document(latest),
    };
    document["good"] = true.into();
    document["checkpoint"] =
        json!({ "origin": checkpoint.origin, "size": checkpoint.size, "root": STANDARD.encode(checkpoint.root) });
    document["cosigned"] = cosigned.collect();
    document["checked"] = json!(verified.checked);
    document["not_checked"] = json!(verified.unchecked);
    document
}

fn receipt_document(receipt: &Receipted) -> Json {
    let value = |(key, value): &(String, Value)| match value {
        Value::Known(bytes) => json!({ "key": key, "value": STANDARD.encode(bytes) }),
        Value::Erased { erased_by } => json!({ "key": key, "erased_by": erased_by }),
        Value::Withheld => json!({ "key": key }),
    };
    let values: Vec<Json> = receipt.values.iter().map(value).collect();
    json!({ "kind": "receipt", "index": receipt.index, "entry": receipt.line, "values": values })
}

fn latest_document(latest: &Latest) -> Json {
    let (state, revision) = match &latest.found {
        Found::Value { revision, .. } => ("value", Some(*revision)),
        Found::Erased { revision, .. } => ("erased", Some(*revision)),
        Found::Absent => ("absent", None),
    };
    let mut document = json!({
        "kind": "latest", "key": latest.key, "state": state, "revision": revision,
        "block": latest.block.height, "time_ms": latest.block.time_ms, "entry": latest.put,
    });
    match &latest.found {
        Found::Value { value: Some(value), .. } => document["value"] = STANDARD.encode(value).into(),
        Found::Erased { erased_by, .. } => document["erased_by"] = (*erased_by).into(),
        Found::Value { value: None, .. } | Found::Absent => {}
    }
    document
}

#[cfg(test)]
mod tests;
