//! Users: people and service accounts, their passwords, sessions and certificates.

use std::path::PathBuf;

use anyhow::Context as _;
use hyper::Method;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};

use super::api_key::{DAY_MS, Role, role_name, save_token};
use super::keys::figure;
use super::secret::password;
use crate::client::{Client, Request, Target, key_path};
use crate::output::{self, Format, Table};

#[derive(Debug, clap::Subcommand)]
pub(super) enum User {
    /// Make a user; asks for the password unless a file has it
    Create {
        #[command(flatten)]
        target: Target,
        /// Name: 1 to 64 of a-z, 0-9, `.`, `_` and `-`. It stands in every entry that the user makes, for ever
        name: String,
        #[command(flatten)]
        access: Access,
        /// A service account, which has no password: it comes in by API key or certificate
        #[arg(long, conflicts_with = "password_file")]
        service: bool,
        /// File with the password
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// List users
    List {
        #[command(flatten)]
        target: Target,
    },
    /// Change what a user may do: role, prefixes and rights as given here
    Change {
        #[command(flatten)]
        target: Target,
        /// Name of the user
        name: String,
        #[command(flatten)]
        access: Access,
    },
    /// Refuse everything of a user for now, and end all sessions
    Disable {
        #[command(flatten)]
        target: Target,
        /// Name of the user
        name: String,
    },
    /// Let a disabled user in again
    Enable {
        #[command(flatten)]
        target: Target,
        /// Name of the user
        name: String,
    },
    /// Delete a user with its password, API keys and certificates
    Delete {
        #[command(flatten)]
        target: Target,
        /// Name of the user
        name: String,
    },
    /// Set the password of somebody else, and end all sessions
    SetPassword {
        #[command(flatten)]
        target: Target,
        /// Name of the user
        name: String,
        /// File with the new password
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// End all sessions of a user
    EndSessions {
        #[command(flatten)]
        target: Target,
        /// Name of the user
        name: String,
    },
    /// Open a session and write its token to a file, for --token-file
    Login {
        #[command(flatten)]
        target: Target,
        /// Name of the user
        name: String,
        /// File to write the token to, readable for its owner only; must not exist
        #[arg(long, value_name = "FILE")]
        save: PathBuf,
        /// File with the password
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// End the session of the token
    Logout {
        #[command(flatten)]
        target: Target,
    },
    /// Change one's own password, and end all of one's sessions
    Password {
        #[command(flatten)]
        target: Target,
        /// File with the old password
        #[arg(long, value_name = "FILE", requires = "new_password_file")]
        old_password_file: Option<PathBuf>,
        /// File with the new password
        #[arg(long, value_name = "FILE", requires = "old_password_file")]
        new_password_file: Option<PathBuf>,
    },
    /// Show who asks, and what it may do
    Whoami {
        #[command(flatten)]
        target: Target,
    },
    /// Register the key of a TLS client certificate: whoever has it is the user
    AddCertificate {
        #[command(flatten)]
        target: Target,
        /// Name of the user
        name: String,
        /// The certificate, PEM. Only its key counts, not the names and dates in it
        certificate: PathBuf,
        /// What it is, in words [default: the file's name]
        #[arg(long, value_name = "TEXT")]
        label: Option<String>,
        /// Registered for so many days [default: until it is removed]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=36_500))]
        days: Option<u64>,
    },
    /// List registered keys of client certificates
    ListCertificates {
        #[command(flatten)]
        target: Target,
    },
    /// Take a client certificate its registration
    RemoveCertificate {
        #[command(flatten)]
        target: Target,
        /// SHA-256 of its key, as the list shows it
        key: String,
    },
}

/// What a user or API key may do.
#[derive(Debug, clap::Args)]
pub(super) struct Access {
    /// Role
    #[arg(long, value_enum)]
    role: Role,
    /// Only keys of the ledger that begin so; may be repeated [default: all]
    #[arg(long = "prefix", value_name = "TEXT")]
    prefixes: Vec<String>,
    /// Also destroy values, which otherwise only an admin may
    #[arg(long)]
    erase: bool,
}

impl Access {
    fn document(&self) -> anyhow::Result<Value> {
        let grants: &[&str] = if self.erase { &["erase"] } else { &[] };
        Ok(json!({ "role": role_name(self.role)?, "prefixes": self.prefixes, "grants": grants }))
    }
}

pub(super) async fn run(command: &User, format: Format) -> anyhow::Result<()> {
    match command {
        User::Create { target, name, access, service, password_file } => {
            let mut body = access.document()?;
            body["name"] = name.as_str().into();
            if !service {
                body["password"] = password(password_file.as_deref(), "Password: ", true)?.into();
            }
            send(&Client::open(target)?, Method::POST, "/v1/users", &body).await?;
            done(format, name, "made")
        }
        User::List { target } => list(&Client::open(target)?, format).await,
        User::Change { target, name, access } => {
            change(&Client::open(target)?, name, &access.document()?).await?;
            done(format, name, "changed")
        }
        User::Disable { target, name } => {
            change(&Client::open(target)?, name, &json!({ "disabled": true })).await?;
            done(format, name, "disabled")
        }
        User::Enable { target, name } => {
            change(&Client::open(target)?, name, &json!({ "disabled": false })).await?;
            done(format, name, "enabled")
        }
        User::Delete { target, name } => {
            remove(&Client::open(target)?, &path(name, "")).await?;
            done(format, name, "deleted")
        }
        User::EndSessions { target, name } => {
            remove(&Client::open(target)?, &path(name, "/sessions")).await?;
            done(format, name, "signed out everywhere")
        }
        User::SetPassword { target, name, password_file } => {
            let body = json!({ "password": password(password_file.as_deref(), "New password: ", true)? });
            send(&Client::open(target)?, Method::PUT, &path(name, "/password"), &body).await?;
            done(format, name, "given a new password")
        }
        own => run_own(own, format).await,
    }
}

/// What users do for themselves, and certificates.
async fn run_own(command: &User, format: Format) -> anyhow::Result<()> {
    match command {
        User::Login { target, name, save, password_file } => {
            let client = Client::open(target)?.without_token();
            let body = json!({ "user": name, "password": password(password_file.as_deref(), "Password: ", false)? });
            let answer = save_token(&client, "/v1/login", Some(&body), save).await?;
            let end = answer.get("expires_ms").and_then(Value::as_u64).map(output::time).unwrap_or_default();
            match format {
                Format::Text => Ok(output::text(&format!("the token is in {}, good until {end}\n", save.display()))?),
                Format::Json => Ok(output::json(&json!({ "file": save, "expires_ms": answer["expires_ms"] }))?),
            }
        }
        User::Logout { target } => {
            let client = Client::open(target)?;
            client.send(Request::write(Method::POST, "/v1/logout", "")).await?;
            done(format, "the session", "ended")
        }
        User::Password { target, old_password_file, new_password_file } => {
            let old = password(old_password_file.as_deref(), "Old password: ", false)?;
            let new = password(new_password_file.as_deref(), "New password: ", true)?;
            let body = json!({ "old": old, "new": new });
            send(&Client::open(target)?, Method::PUT, "/v1/me/password", &body).await?;
            done(format, "the password", "changed; log in again")
        }
        User::Whoami { target } => whoami(&Client::open(target)?, format).await,
        User::AddCertificate { target, name, certificate, label, days } => {
            let key = key_of(certificate)?;
            let file = || certificate.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let expires = days.map(|d| samovar_node::rt::now_ms() + d * DAY_MS);
            let label = label.clone().unwrap_or_else(file);
            let body = json!({ "name": label, "user": name, "key": key, "expires_ms": expires });
            send(&Client::open(target)?, Method::POST, "/v1/certificates", &body).await?;
            done(format, &key, &format!("registered for {name}"))
        }
        User::ListCertificates { target } => list_certificates(&Client::open(target)?, format).await,
        User::RemoveCertificate { target, key } => {
            remove(&Client::open(target)?, &key_path("/v1/certificates", key)).await?;
            done(format, key, "removed")
        }
        _ => unreachable!("these are for administrators and were run already"),
    }
}

fn path(name: &str, rest: &str) -> String {
    format!("{}{rest}", key_path("/v1/users", name))
}

async fn send(client: &Client, method: Method, path: &str, body: &Value) -> anyhow::Result<Value> {
    let request = Request::write(method, path, body.to_string()).header("content-type", "application/json")?;
    let answer = client.send(request).await?;
    if answer.body.is_empty() { Ok(Value::Null) } else { Ok(answer.json()?) }
}

async fn remove(client: &Client, path: &str) -> anyhow::Result<()> {
    client.send(Request::write(Method::DELETE, path, Vec::new())).await?;
    Ok(())
}

fn done(format: Format, what: &str, how: &str) -> anyhow::Result<()> {
    match format {
        Format::Text => Ok(output::text(&format!("{what}: {how}\n"))?),
        Format::Json => Ok(output::json(&json!({ "done": what }))?),
    }
}

/// Puts what is given in place of what is there, unless somebody else was faster.
async fn change(client: &Client, name: &str, given: &Value) -> anyhow::Result<()> {
    let path = path(name, "");
    let before = client.send(Request::get(&path)).await?.json()?;
    let mut body = json!({});
    for member in ["role", "prefixes", "grants", "disabled"] {
        body[member] = given.get(member).or_else(|| before.get(member)).cloned().unwrap_or_default();
    }
    let request = Request::write(Method::PUT, path, body.to_string())
        .header("content-type", "application/json")?
        .header("if-match", &format!("\"{}\"", figure(&before, "revision")))?;
    client.send(request).await?;
    Ok(())
}

async fn list(client: &Client, format: Format) -> anyhow::Result<()> {
    let answer = client.send(Request::get("/v1/users")).await?.json()?;
    if format == Format::Json {
        return Ok(output::json(&answer)?);
    }
    let mut table = Table::new(&["NAME", "ROLE", "PREFIXES", "RIGHTS", "KIND", "STATE", "CREATED"]);
    for user in answer.get("users").and_then(Value::as_array).context("the node's answer lists no users")? {
        let is = |name: &str| user.get(name).and_then(Value::as_bool) == Some(true);
        table.row(vec![
            figure(user, "name"),
            figure(user, "role"),
            words(user, "prefixes"),
            words(user, "grants"),
            if is("password") { "person" } else { "service" }.into(),
            if is("disabled") { "disabled" } else { "enabled" }.into(),
            time(user, "created_ms"),
        ]);
    }
    Ok(output::text(&table.render())?)
}

async fn list_certificates(client: &Client, format: Format) -> anyhow::Result<()> {
    let answer = client.send(Request::get("/v1/certificates")).await?.json()?;
    if format == Format::Json {
        return Ok(output::json(&answer)?);
    }
    let mut table = Table::new(&["KEY", "USER", "NAME", "CREATED", "EXPIRES"]);
    let rows = answer.get("certificates").and_then(Value::as_array);
    for row in rows.context("the node's answer lists no certificates")? {
        table.row(vec![
            figure(row, "key"),
            figure(row, "user"),
            figure(row, "name"),
            time(row, "created_ms"),
            time(row, "expires_ms"),
        ]);
    }
    Ok(output::text(&table.render())?)
}

async fn whoami(client: &Client, format: Format) -> anyhow::Result<()> {
    let me = client.send(Request::get("/v1/me")).await?.json()?;
    if format == Format::Json {
        return Ok(output::json(&me)?);
    }
    let mut table = Table::new(&["ID", "ROLE", "PREFIXES", "RIGHTS", "BY", "UNTIL"]);
    table.row(vec![
        figure(&me, "id"),
        figure(&me, "role"),
        words(&me, "prefixes"),
        words(&me, "grants"),
        figure(&me, "way"),
        time(&me, "expires_ms"),
    ]);
    Ok(output::text(&table.render())?)
}

/// A list of texts as one cell.
pub(super) fn words(row: &Value, name: &str) -> String {
    let words: Vec<&str> =
        row.get(name).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    words.join(" ")
}

/// A time as one cell.
pub(super) fn time(row: &Value, name: &str) -> String {
    row.get(name).and_then(Value::as_u64).map(output::time).unwrap_or_default()
}

/// SHA-256 of the key of the first certificate in a file, hex.
fn key_of(path: &std::path::Path) -> anyhow::Result<String> {
    let certificate = CertificateDer::from_pem_file(path)
        .map_err(|e| anyhow::anyhow!("{}: holds no certificate in PEM ({e:?})", path.display()))?;
    let hash = crate::tls::key_hash(&certificate);
    let hash = hash.with_context(|| format!("{}: holds no certificate that can be read", path.display()))?;
    Ok(crate::auth::hex(&hash))
}
