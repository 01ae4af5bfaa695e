//! Receipts and proofs: fetched from a node, verified without one.

use std::path::PathBuf;
use std::time::Duration;

use samovar_node::Key;

use super::keys::client_key;
use crate::client::{Client, Request, Target, key_path, query};
use crate::output::{self, Format};

/// Longest wait for cosignatures.
const QUORUM_TIMEOUT: Duration = Duration::from_secs(60);
/// Largest receipt or proof, in bytes: an entry, and the values of a transaction in base64 twice over.
const PROOF_BYTES_MAX: usize = 4 << 20;

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
    let request = Request::get(path).bounds(QUORUM_TIMEOUT, PROOF_BYTES_MAX);
    let answer = Client::open(target)?.send(request).await?;
    Ok(output::bytes(&answer.body)?)
}

/// Needs neither network nor runtime.
pub(super) fn verify(_verify: &Verify, _format: Format) -> anyhow::Result<()> {
    anyhow::bail!("not yet")
}
