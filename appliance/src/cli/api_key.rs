//! API keys: who may do what. The secret is shown once, when it is made.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use hyper::Method;
use serde_json::{Value, json};

use super::keys::figure;
use crate::client::{Client, Request, Target, key_path};
use crate::output::{self, Format, Table};

/// Milliseconds of a day.
const DAY_MS: u64 = 86_400_000;

#[derive(Debug, clap::Subcommand)]
pub(super) enum ApiKey {
    /// Make an API key and write it to a file
    Create {
        #[command(flatten)]
        target: Target,
        /// What the key is for
        #[arg(long, value_name = "TEXT")]
        name: String,
        /// What it may do
        #[arg(long, value_enum)]
        role: Role,
        /// Only keys of the ledger that begin so; may be repeated [default: all]
        #[arg(long = "prefix", value_name = "TEXT")]
        prefixes: Vec<String>,
        /// Valid for so many days [default: until it is revoked]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=36_500))]
        days: Option<u64>,
        /// File to write the key to, readable for its owner only; must not exist
        #[arg(long, value_name = "FILE")]
        save: PathBuf,
    },
    /// List API keys, never their secrets
    List {
        #[command(flatten)]
        target: Target,
    },
    /// End an API key
    Revoke {
        #[command(flatten)]
        target: Target,
        /// Id of the key, as `list` shows it
        id: String,
    },
}

/// Roles of the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Role {
    /// Everything
    Admin,
    /// Runs nodes, reads no values
    Operator,
    /// Reads and writes keys
    Writer,
    /// Reads keys
    Reader,
    /// Reads the whole chain log and its proofs
    Auditor,
}

pub(super) async fn run(command: &ApiKey, format: Format) -> anyhow::Result<()> {
    match command {
        ApiKey::Create { target, name, role, prefixes, days, save } => {
            let role = clap::ValueEnum::to_possible_value(role).context("a role without a name")?;
            let expires = days.map(|d| samovar_node::rt::now_ms() + d * DAY_MS);
            let mut body = json!({ "name": name, "role": role.get_name(), "prefixes": prefixes });
            if let Some(expires) = expires {
                body["expires_ms"] = expires.into();
            }
            create(&Client::open(target)?, &body, save, format).await
        }
        ApiKey::List { target } => list(&Client::open(target)?, format).await,
        ApiKey::Revoke { target, id } => {
            let request = Request::write(Method::DELETE, key_path("/v1/api-keys", id), Vec::new());
            Client::open(target)?.send(request).await?;
            match format {
                Format::Text => Ok(output::text(&format!("{id} is revoked\n"))?),
                Format::Json => Ok(output::json(&json!({ "id": id, "revoked": true }))?),
            }
        }
    }
}

/// The file is made first, so that a secret which is shown once always has a place to go.
async fn create(client: &Client, body: &Value, save: &Path, format: Format) -> anyhow::Result<()> {
    let name = save.display();
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let mut file = options.open(save).with_context(|| format!("cannot make {name}"))?;
    let request =
        Request::write(Method::POST, "/v1/api-keys", body.to_string()).header("content-type", "application/json")?;
    let answer = match client.send(request).await {
        Ok(answer) => answer.json()?,
        Err(e) => {
            std::fs::remove_file(save).ok();
            return Err(e.into());
        }
    };
    let Some(token) = answer.get("token").and_then(Value::as_str) else {
        bail!("the node's answer holds no token; revoke the key that was made: see `samovar api-key list`");
    };
    file.write_all(token.as_bytes())
        .and_then(|()| file.write_all(b"\n"))
        .and_then(|()| file.sync_all())
        .with_context(|| format!("cannot write {name}; revoke the key {}", figure(&answer, "id")))?;
    let id = figure(&answer, "id");
    match format {
        Format::Text => Ok(output::text(&format!("{id} is in {name}\n"))?),
        Format::Json => Ok(output::json(&json!({ "id": id, "file": save }))?),
    }
}

async fn list(client: &Client, format: Format) -> anyhow::Result<()> {
    let answer = client.send(Request::get("/v1/api-keys")).await?.json()?;
    if format == Format::Json {
        return Ok(output::json(&answer)?);
    }
    let keys = answer.get("api_keys").and_then(Value::as_array).context("the node's answer lists no API keys")?;
    Ok(output::text(&table(keys).render())?)
}

fn table(keys: &[Value]) -> Table {
    let mut table = Table::new(&["ID", "NAME", "ROLE", "PREFIXES", "CREATED", "EXPIRES", "REVOKED"]);
    for key in keys {
        let time = |name: &str| key.get(name).and_then(Value::as_u64).map(output::time).unwrap_or_default();
        let prefixes = key.get("prefixes").and_then(Value::as_array).into_iter().flatten();
        let prefixes: Vec<&str> = prefixes.filter_map(Value::as_str).collect();
        let revoked = if key.get("revoked").and_then(Value::as_bool) == Some(true) { "yes" } else { "no" };
        table.row(vec![
            figure(key, "id"),
            figure(key, "name"),
            figure(key, "role"),
            prefixes.join(" "),
            time("created_ms"),
            time("expires_ms"),
            revoked.into(),
        ]);
    }
    table
}
