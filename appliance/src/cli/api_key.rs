//! API keys: who may do what. The secret is shown once, when it is made.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use hyper::Method;
use serde_json::{Value, json};

use super::keys::figure;
use super::user::{time, words};
use crate::client::{Client, Request, Target, key_path};
use crate::output::{self, Format, Table};

/// Milliseconds of a day.
pub(super) const DAY_MS: u64 = 86_400_000;

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
        #[arg(long, value_enum, required_unless_present = "user")]
        role: Option<Role>,
        /// Only keys of the ledger that begin so; may be repeated [default: all]
        #[arg(long = "prefix", value_name = "TEXT", requires = "role")]
        prefixes: Vec<String>,
        /// Also destroy values, which otherwise only an admin may
        #[arg(long, requires = "role")]
        erase: bool,
        /// It acts for this user and may do what the user may
        #[arg(long, value_name = "NAME", conflicts_with = "role")]
        user: Option<String>,
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
    /// Refuse an API key for now
    Disable {
        #[command(flatten)]
        target: Target,
        /// Id of the key, as `list` shows it
        id: String,
    },
    /// Let a disabled API key in again
    Enable {
        #[command(flatten)]
        target: Target,
        /// Id of the key, as `list` shows it
        id: String,
    },
    /// End an API key for good
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

/// The role as the API names it.
pub(super) fn role_name(role: Role) -> anyhow::Result<String> {
    let value = clap::ValueEnum::to_possible_value(&role).context("a role without a name")?;
    Ok(value.get_name().to_owned())
}

pub(super) async fn run(command: &ApiKey, format: Format) -> anyhow::Result<()> {
    match command {
        ApiKey::Create { target, name, role, prefixes, erase, user, days, save } => {
            let mut body = json!({ "name": name });
            if let Some(role) = role {
                body["role"] = role_name(*role)?.into();
                body["prefixes"] = json!(prefixes);
            }
            if *erase {
                body["grants"] = json!(["erase"]);
            }
            if let Some(user) = user {
                body["user"] = user.as_str().into();
            }
            if let Some(days) = days {
                body["expires_ms"] = (samovar_node::rt::now_ms() + days * DAY_MS).into();
            }
            let id = figure(&save_token(&Client::open(target)?, "/v1/api-keys", Some(&body), save).await?, "id");
            match format {
                Format::Text => Ok(output::text(&format!("{id} is in {}\n", save.display()))?),
                Format::Json => Ok(output::json(&json!({ "id": id, "file": save }))?),
            }
        }
        ApiKey::List { target } => list(&Client::open(target)?, format).await,
        ApiKey::Disable { target, id } => {
            disable(&Client::open(target)?, id, true).await?;
            said(format, id, "disabled")
        }
        ApiKey::Enable { target, id } => {
            disable(&Client::open(target)?, id, false).await?;
            said(format, id, "enabled")
        }
        ApiKey::Revoke { target, id } => {
            let request = Request::write(Method::DELETE, key_path("/v1/api-keys", id), Vec::new());
            Client::open(target)?.send(request).await?;
            said(format, id, "revoked")
        }
    }
}

fn said(format: Format, id: &str, what: &str) -> anyhow::Result<()> {
    match format {
        Format::Text => Ok(output::text(&format!("{id} is {what}\n"))?),
        Format::Json => Ok(output::json(&json!({ "id": id, what: true }))?),
    }
}

/// Sends a request whose answer holds a token, and writes the token to a new file. The file is made first, so that a
/// secret which is shown once always has a place to go.
pub(super) async fn save_token(
    client: &Client,
    path: &str,
    body: Option<&Value>,
    save: &Path,
) -> anyhow::Result<Value> {
    let name = save.display();
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let mut file = options.open(save).with_context(|| format!("cannot make {name}"))?;
    let request = match body {
        Some(body) => {
            Request::write(Method::POST, path, body.to_string()).header("content-type", "application/json")?
        }
        None => Request::write(Method::POST, path, ""),
    };
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
    Ok(answer)
}

/// Sends the key back as it is, disabled or not, unless somebody else was faster.
async fn disable(client: &Client, id: &str, disabled: bool) -> anyhow::Result<()> {
    let answer = client.send(Request::get("/v1/api-keys")).await?.json()?;
    let keys = answer.get("api_keys").and_then(Value::as_array).into_iter().flatten();
    let key =
        keys.into_iter().find(|k| figure(k, "id") == id).with_context(|| format!("no API key has the id {id}"))?;
    let mut body = json!({ "disabled": disabled });
    for member in ["name", "role", "prefixes", "grants", "expires_ms"] {
        body[member] = key.get(member).cloned().unwrap_or_default();
    }
    let request = Request::write(Method::PUT, key_path("/v1/api-keys", id), body.to_string())
        .header("content-type", "application/json")?
        .header("if-match", &format!("\"{}\"", figure(key, "revision")))?;
    client.send(request).await?;
    Ok(())
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
    let mut table = Table::new(&["ID", "NAME", "ROLE", "PREFIXES", "RIGHTS", "USER", "CREATED", "EXPIRES", "STATE"]);
    for key in keys {
        let disabled = key.get("disabled").and_then(Value::as_bool) == Some(true);
        table.row(vec![
            figure(key, "id"),
            figure(key, "name"),
            figure(key, "role"),
            words(key, "prefixes"),
            words(key, "grants"),
            figure(key, "user"),
            time(key, "created_ms"),
            time(key, "expires_ms"),
            if disabled { "disabled" } else { "enabled" }.into(),
        ]);
    }
    table
}
