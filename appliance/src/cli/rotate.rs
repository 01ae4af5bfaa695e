//! Secrets of the ledger, each replaced by one command.

use hyper::Method;
use serde_json::json;

use super::keys::figure;
use crate::client::{Client, Request, Target, query};
use crate::output::{self, Format};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Rotate {
    /// Replace the keys that sign session tokens
    Sessions {
        #[command(flatten)]
        target: Target,
        /// End all sessions now; otherwise each lasts as long as it would have
        #[arg(long)]
        end_all: bool,
    },
}

pub(super) async fn run(command: &Rotate, format: Format) -> anyhow::Result<()> {
    let Rotate::Sessions { target, end_all } = command;
    let path = format!("/v1/session-keys{}", query(&[("old", end_all.then_some("refused"))]));
    let answer = Client::open(target)?.send(Request::write(Method::POST, path, "")).await?;
    let key = figure(&answer.json()?, "key");
    match format {
        Format::Text => Ok(output::text(&format!("session tokens are signed by key {key} from now on\n"))?),
        Format::Json => Ok(output::json(&json!({ "key": key, "sessions_ended": end_all }))?),
    }
}
