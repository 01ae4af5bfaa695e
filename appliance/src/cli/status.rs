//! `samovar status`: one table that answers whether the node can be relied on, and how old each figure is.

use anyhow::Context;
use serde_json::Value;

use super::keys::figure;
use crate::client::{Client, Request, Target};
use crate::output::{self, Format, Table};

#[derive(Debug, clap::Args)]
pub(super) struct Status {
    #[command(flatten)]
    target: Target,
}

pub(super) async fn run(status: &Status, format: Format) -> anyhow::Result<()> {
    let client = Client::open(&status.target)?;
    let document = fetch(&client).await?;
    match format {
        Format::Json => output::json(&document)?,
        Format::Text => output::text(&document.to_string())?,
    }
    Ok(())
}

async fn fetch(client: &Client) -> Result<Value, crate::client::Error> {
    client.send(Request::get("/v1/status")).await?.json()
}

/// Height of the newest block of a node.
pub(super) async fn height(client: &Client) -> anyhow::Result<u64> {
    let document = fetch(client).await?;
    member(&document, "height").context("the node's status names no height")
}

/// Entries in the chain log, from a status.
pub fn log_size(status: &Value) -> Option<u64> {
    member(status, "size")
}

fn member(status: &Value, name: &str) -> Option<u64> {
    status.get("head").and_then(|h| h.get(name)).or_else(|| status.get(name)).and_then(Value::as_u64)
}
