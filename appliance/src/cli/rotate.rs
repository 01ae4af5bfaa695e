//! Secrets of the ledger, each replaced by one command.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::Method;
use serde_json::{Value, json};

use super::api_key::save_token;
use super::keys::figure;
use crate::client::{Client, Request, Target, key_path, query};
use crate::config::Span;
use crate::output::{self, Format};

const NODE: &str = "/v1/tls/node";
const BEGIN: &str = "/v1/tls/ca";
const LOG_KEY: &str = "/v1/log/key";
/// Longest wait for the hand-over checkpoint.
const LOG_KEY_TIMEOUT: Duration = Duration::from_secs(60);
const ANSWER_BYTES_MAX: usize = 64 << 10;
const FINISH: &str = "/v1/tls/ca?roll_over=finish";

#[derive(Debug, clap::Subcommand)]
pub(super) enum Rotate {
    /// Replace the CA that signs the node's certificate
    ///
    /// The new CA works at once, and the old one goes on to: clients that trust either of them are served. Give all of them
    /// the new ca.pem of the data directory, which holds both, then end the roll-over with --finish: from then on only the
    /// new CA counts. The key of the old one is destroyed at the beginning.
    Ca {
        #[command(flatten)]
        target: Target,
        /// End a roll-over: clients that know only the old CA are not served any more
        #[arg(long)]
        finish: bool,
    },
    /// Replace the TLS key and certificate of the node
    ///
    /// Connections that come next get the new one; those that are open stay. Clients that trust the CA notice nothing. If an
    /// ACME authority is configured, a new certificate for the site's names is ordered too.
    Node {
        #[command(flatten)]
        target: Target,
    },
    /// Replace the keys that sign session tokens
    Sessions {
        #[command(flatten)]
        target: Target,
        /// End all sessions now; otherwise each lasts as long as it would have
        #[arg(long)]
        end_all: bool,
    },
    /// Replace the key that signs the log's checkpoints
    ///
    /// The entry that names the new key is covered by a checkpoint that both keys sign; then the old key is destroyed and the
    /// new one alone signs. Who knows only the old key follows with the entry's receipt: samovar verify --chain. Replaces
    /// log.vkey in the data directory.
    LogKey {
        #[command(flatten)]
        target: Target,
    },
    /// Replace an API key by a new one with the same rights
    ApiKey {
        #[command(flatten)]
        target: Target,
        /// Id of the key, as `samovar api-key list` shows it
        id: String,
        /// File to write the new key to, readable for its owner only; must not exist
        #[arg(long, value_name = "FILE")]
        save: PathBuf,
        /// How long the old key still counts, such as 10m; at most 30d
        #[arg(long, value_name = "TIME", default_value = "0s")]
        grace: Span,
    },
}

pub(super) async fn run(command: &Rotate, format: Format) -> anyhow::Result<()> {
    match command {
        Rotate::Sessions { target, end_all } => sessions(target, *end_all, format).await,
        Rotate::Node { target } => certificate(target, NODE, format).await,
        Rotate::Ca { target, finish: false } => certificate(target, BEGIN, format).await,
        Rotate::Ca { target, finish: true } => certificate(target, FINISH, format).await,
        Rotate::LogKey { target } => log_key(target, format).await,
        Rotate::ApiKey { target, id, save, grace } => api_key(target, id, save, *grace, format).await,
    }
}

async fn sessions(target: &Target, end_all: bool, format: Format) -> anyhow::Result<()> {
    let path = format!("/v1/session-keys{}", query(&[("old", end_all.then_some("refused"))]));
    let answer = Client::open(target)?.send(Request::write(Method::POST, path, "")).await?;
    let key = figure(&answer.json()?, "key");
    match format {
        Format::Text => Ok(output::text(&format!("session tokens are signed by key {key} from now on\n"))?),
        Format::Json => Ok(output::json(&json!({ "key": key, "sessions_ended": end_all }))?),
    }
}

async fn log_key(target: &Target, format: Format) -> anyhow::Result<()> {
    let request = Request::write(Method::POST, LOG_KEY, "").bounds(LOG_KEY_TIMEOUT, ANSWER_BYTES_MAX);
    let rotated = Client::open(target)?.send(request).await?.json()?;
    let (vkey, n) = (figure(&rotated, "vkey"), figure(&rotated, "transaction"));
    match format {
        Format::Json => Ok(output::json(&rotated)?),
        Format::Text => Ok(output::text(&format!(
            "The log is signed by a new key, the old one is destroyed:\n{vkey}\nTransaction {n} says so. Give its receipt to \
             everybody who knows the old key:\n  samovar receipt {n} > {n}.tlog-proof\nThey keep it in a directory and \
             verify with --chain DIR.\n"
        ))?),
    }
}

async fn api_key(target: &Target, id: &str, save: &Path, grace: Span, format: Format) -> anyhow::Result<()> {
    let grace_s = grace.0.as_millis().div_ceil(1000);
    let path = key_path("/v1/api-keys", id) + "/successor" + &query(&[("grace", Some(&grace_s.to_string()))]);
    let new = figure(&save_token(&Client::open(target)?, &path, None, save).await?, "id");
    let end = if grace_s == 0 { "has ended".to_owned() } else { format!("ends in {grace}") };
    match format {
        Format::Json => Ok(output::json(&json!({ "id": new, "before": id, "grace_s": grace_s, "file": save }))?),
        Format::Text => Ok(output::text(&format!("{new} is in {}; {id} {end}\n", save.display()))?),
    }
}

async fn certificate(target: &Target, path: &str, format: Format) -> anyhow::Result<()> {
    let answer = Client::open(target)?.send(Request::write(Method::POST, path, "")).await?;
    let transaction = answer.header("samovar-transaction").and_then(|n| n.parse::<u64>().ok());
    let mut document = answer.json()?;
    document["transaction"] = transaction.into();
    match format {
        Format::Json => output::json(&document)?,
        Format::Text => output::text(&render(path, &document))?,
    }
    Ok(())
}

fn render(path: &str, rotated: &Value) -> String {
    let end = rotated.get("not_after_s").and_then(Value::as_u64);
    let end = end.map_or("?".into(), |s| output::time(s.saturating_mul(1000)));
    let what = match path {
        NODE => "The node has a new key and certificate, served to connections that come next",
        BEGIN => "There is a new CA beside the old one; clients may trust either of them",
        _ => "The roll-over has ended: only the new CA counts",
    };
    let next = match rotated.get("rolling_over").and_then(Value::as_bool) {
        Some(true) => "Give clients the new ca.pem, then run: samovar rotate ca --finish\n",
        _ => "",
    };
    let next = match rotated.get("site_ordered").and_then(Value::as_bool) {
        Some(true) => "A certificate for the site's names is ordered as well; samovar status says when it has come.\n",
        _ => next,
    };
    format!(
        "{what}.\nSHA-256 {}, until {end}; transaction {} says so.\n{next}",
        figure(rotated, "certificate"),
        figure(rotated, "transaction")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_rotated_and_what_comes_next_is_said() {
        let rotated = json!({ "certificate": "ab", "not_after_s": 86_400, "rolling_over": true, "transaction": 7 });
        let said = render(BEGIN, &rotated);
        for part in ["clients may trust either", "SHA-256 ab, until 1970-01-02", "transaction 7", "rotate ca --finish"]
        {
            assert!(said.contains(part), "`{part}` was expected in: {said}");
        }
        let over = json!({ "certificate": "ab", "not_after_s": 86_400, "rolling_over": false, "transaction": 8 });
        assert!(!render(FINISH, &over).contains("--finish"), "nothing is left to do");
    }
}
