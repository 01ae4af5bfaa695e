//! Commands on keys and their values.

use std::io::{self, IsTerminal, Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use hyper::Method;
use samovar_node::Key;
use samovar_node::command::VALUE_BYTES_MAX;
use samovar_node::rt;
use serde_json::{Value, json};

use super::Usage;
use crate::client::{Answer, Client, Error, Request, Target, key_path, query};
use crate::output::{self, Format, Table, printable};

/// Rows asked for at once.
const PAGE_ROWS: u64 = 1000;
/// How long one read of a value may take.
const VALUE_TIMEOUT: Duration = Duration::from_secs(60);

/// Arguments of every write.
#[derive(Debug, clap::Args)]
pub(super) struct WriteArgs {
    /// Write once, however often it is tried: give the same text to try again [default: a random one]
    #[arg(long, value_name = "TEXT")]
    idempotency_key: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Put {
    #[command(flatten)]
    pub(super) target: Target,
    #[command(flatten)]
    write: WriteArgs,
    /// The key
    #[arg(value_parser = client_key)]
    key: Key,
    /// File with the value; `-` is standard input
    #[arg(default_value = "-")]
    file: PathBuf,
    /// Media type of the value [default: application/octet-stream]
    #[arg(long = "type", value_name = "TYPE")]
    media_type: Option<String>,
    /// Write only if the key has this revision
    #[arg(long, value_name = "REVISION")]
    if_match: Option<u64>,
    /// Write only if the key does not exist
    #[arg(long, conflicts_with = "if_match")]
    if_absent: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Get {
    #[command(flatten)]
    pub(super) target: Target,
    /// The key
    #[arg(value_parser = client_key)]
    key: Key,
    /// The value as of this block
    #[arg(long, value_name = "BLOCK")]
    at: Option<u64>,
    /// What this node has, without asking the others
    #[arg(long)]
    stale: bool,
    /// Print binary data to a terminal
    #[arg(long)]
    force: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Delete {
    #[command(flatten)]
    pub(super) target: Target,
    #[command(flatten)]
    write: WriteArgs,
    /// The key
    #[arg(value_parser = client_key)]
    key: Key,
    /// Delete only if the key has this revision
    #[arg(long, value_name = "REVISION")]
    if_match: Option<u64>,
}

#[derive(Debug, clap::Args)]
pub(super) struct History {
    #[command(flatten)]
    pub(super) target: Target,
    /// The key
    #[arg(value_parser = client_key)]
    key: Key,
    /// Most revisions to list [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Keys {
    #[command(flatten)]
    pub(super) target: Target,
    /// Only keys that begin so
    #[arg(default_value = "")]
    prefix: String,
    /// Most keys to list [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Erase {
    #[command(flatten)]
    pub(super) target: Target,
    #[command(flatten)]
    write: WriteArgs,
    /// The key
    #[arg(value_parser = client_key)]
    key: Key,
    /// The revision whose value is destroyed
    #[arg(long, value_name = "N")]
    revision: u64,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

/// A key as the command line names it.
pub(super) fn client_key(text: &str) -> Result<Key, String> {
    Key::client(text)
}

impl WriteArgs {
    /// Sends a write so that it is done once, and on doubt says how to find out.
    pub(super) async fn send(&self, client: &Client, request: Request) -> anyhow::Result<Answer> {
        let key = self.idempotency_key.clone().unwrap_or_else(random_key);
        client.send(request.idempotent(&key)?).await.map_err(|e| match e {
            Error::Unknown { .. } => anyhow::Error::new(e)
                .context(format!("to find out, repeat the command with --idempotency-key {key}: it is done once")),
            other => other.into(),
        })
    }
}

fn random_key() -> String {
    let mut bytes = [0; 16];
    rt::fill_random(&mut bytes);
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

pub(super) async fn put(put: &Put, format: Format) -> anyhow::Result<()> {
    let client = Client::open(&put.target)?;
    let value = read_value(&put.file)?;
    let mut request = Request::write(Method::PUT, key_path("/v1/keys", put.key.as_str()), value)
        .header("content-type", put.media_type.as_deref().unwrap_or("application/octet-stream"))?;
    if let Some(revision) = put.if_match {
        request = request.header("if-match", &format!("\"{revision}\""))?;
    }
    if put.if_absent {
        request = request.header("if-none-match", "*")?;
    }
    let answer = put.write.send(&client, request).await?.json()?;
    if format == Format::Json {
        return Ok(output::json(&answer)?);
    }
    Ok(output::text(&format!("revision {} in block {}\n", figure(&answer, "revision"), figure(&answer, "block")))?)
}

fn read_value(file: &PathBuf) -> anyhow::Result<Vec<u8>> {
    let name = if file.as_os_str() == "-" { "standard input".into() } else { file.display().to_string() };
    let input: Box<dyn Read> = match file.as_os_str() == "-" {
        true => Box::new(io::stdin().lock()),
        false => Box::new(std::fs::File::open(file).with_context(|| format!("cannot open {name}"))?),
    };
    let mut value = Vec::new();
    input.take(VALUE_BYTES_MAX as u64 + 1).read_to_end(&mut value).with_context(|| format!("cannot read {name}"))?;
    if value.len() > VALUE_BYTES_MAX {
        bail!("{name} is larger than {VALUE_BYTES_MAX} bytes, the limit of a value");
    }
    Ok(value)
}

pub(super) async fn get(get: &Get, format: Format) -> anyhow::Result<()> {
    let client = Client::open(&get.target)?;
    let at = get.at.map(|b| b.to_string());
    let parameters = [("at", at.as_deref()), ("consistency", get.stale.then_some("stale"))];
    let path = key_path("/v1/keys", get.key.as_str()) + &query(&parameters);
    let answer = client.send(Request::get(path).bounds(VALUE_TIMEOUT, VALUE_BYTES_MAX)).await?;
    if format == Format::Json {
        return Ok(output::json(&value_document(get, &answer))?);
    }
    if io::stdout().is_terminal() && !get.force && is_binary(&answer.body) {
        bail!(
            "the value is binary ({}, {} bytes) and would disturb the terminal: redirect it to a file, or pass --force",
            printable(answer.header("content-type").unwrap_or("no type")),
            answer.body.len()
        );
    }
    Ok(output::bytes(&answer.body)?)
}

fn value_document(get: &Get, answer: &Answer) -> Value {
    use base64::Engine;
    let revision = answer.header("etag").and_then(|e| e.trim_matches('"').parse::<u64>().ok());
    json!({
        "key": get.key.as_str(),
        "revision": revision,
        "block": answer.header("samovar-block").and_then(|b| b.parse::<u64>().ok()),
        "type": answer.header("content-type"),
        "bytes": base64::engine::general_purpose::STANDARD.encode(&answer.body),
    })
}

/// Whether bytes are better not shown on a terminal.
fn is_binary(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).map_or(true, |t| t.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t')))
}

pub(super) async fn delete(delete: &Delete, format: Format) -> anyhow::Result<()> {
    let client = Client::open(&delete.target)?;
    let mut request = Request::write(Method::DELETE, key_path("/v1/keys", delete.key.as_str()), Vec::new());
    if let Some(revision) = delete.if_match {
        request = request.header("if-match", &format!("\"{revision}\""))?;
    }
    let answer = delete.write.send(&client, request).await?;
    written("deleted", &answer, format)
}

pub(super) async fn erase(erase: &Erase, format: Format) -> anyhow::Result<()> {
    let (key, revision) = (erase.key.as_str(), erase.revision);
    if !erase.yes {
        confirm(&format!("Destroy the value of {key} at revision {revision} for good, on every node? [y/N] "))?;
    }
    let client = Client::open(&erase.target)?;
    let body = json!({ "operations": [{ "erase": { "key": key, "revision": revision } }] }).to_string();
    let request = Request::write(Method::POST, "/v1/transactions", body).header("content-type", "application/json")?;
    let answer = erase.write.send(&client, request).await?;
    written("erased", &answer, format)
}

/// Says which transaction and block did it.
fn written(what: &str, answer: &Answer, format: Format) -> anyhow::Result<()> {
    let number = |name| answer.header(name).and_then(|v| v.parse::<u64>().ok());
    let (transaction, block) = (number("samovar-transaction"), number("samovar-block"));
    if format == Format::Json {
        return Ok(output::json(&json!({ "transaction": transaction, "block": block }))?);
    }
    let shown = |n: Option<u64>| n.map_or("-".into(), |n| n.to_string());
    Ok(output::text(&format!("{what} by transaction {} in block {}\n", shown(transaction), shown(block)))?)
}

fn confirm(question: &str) -> anyhow::Result<()> {
    if !io::stdin().is_terminal() {
        bail!(Usage("erasing cannot be undone: pass --yes to do it without being asked".into()));
    }
    eprint!("{}", printable(question));
    io::stderr().flush()?;
    let mut line = String::new();
    io::stdin().read_line(&mut line)?;
    match line.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => bail!("nothing was erased"),
    }
}

/// A list that the node gives page by page.
struct Listing<'a> {
    path: String,
    /// Parameter that names where the next page begins.
    cursor: &'a str,
    prefix: Option<&'a str>,
    /// Field of the answer with the rows.
    field: &'a str,
    table: fn(&[Value]) -> Table,
    /// Most rows; all of them without.
    limit: Option<u64>,
}

impl Listing<'_> {
    async fn print(&self, target: &Target, format: Format) -> anyhow::Result<()> {
        let client = Client::open(target)?;
        let mut left = self.limit.unwrap_or(u64::MAX);
        let mut next: Option<String> = None;
        loop {
            let limit = left.min(PAGE_ROWS).to_string();
            let parameters = [("prefix", self.prefix), (self.cursor, next.as_deref()), ("limit", Some(&limit))];
            let page = client.send(Request::get(format!("{}{}", self.path, query(&parameters)))).await?.json()?;
            let rows = page.get(self.field).and_then(Value::as_array);
            let rows = rows.with_context(|| format!("the node's answer lists no {}", self.field))?;
            match format {
                Format::Json => rows.iter().try_for_each(output::json)?,
                Format::Text => print_page(&(self.table)(rows), next.is_none())?,
            }
            left = left.saturating_sub(rows.len() as u64);
            next = next_page(&page);
            if left == 0 || next.is_none() || rows.is_empty() {
                return Ok(());
            }
        }
    }
}

pub(super) async fn history(history: &History, format: Format) -> anyhow::Result<()> {
    let path = key_path("/v1/history", history.key.as_str());
    let limit = history.limit;
    let listing = Listing { path, cursor: "before", prefix: None, field: "versions", table: version_table, limit };
    listing.print(&history.target, format).await
}

fn version_table(rows: &[Value]) -> Table {
    let mut table = Table::new(&["REVISION", "TIME", "AUTHOR", "BLOCK", "SIZE", "TYPE", "STATE"]);
    for row in rows {
        let state = match (figure(row, "change").as_str(), row.get("erased_by").and_then(Value::as_u64)) {
            ("delete", _) => "deleted".into(),
            (_, Some(entry)) => format!("erased by {entry}"),
            _ => "held".into(),
        };
        let time = row.get("time_ms").and_then(Value::as_u64).map(output::time).unwrap_or_default();
        let mut cells = vec![figure(row, "revision"), time];
        cells.extend(["author", "block", "size", "type"].map(|name| figure(row, name)));
        cells.push(state);
        table.row(cells);
    }
    table
}

pub(super) async fn keys(keys: &Keys, format: Format) -> anyhow::Result<()> {
    let prefix = Some(keys.prefix.as_str()).filter(|p| !p.is_empty());
    let (path, limit) = ("/v1/keys".to_owned(), keys.limit);
    let listing = Listing { path, cursor: "after", prefix, field: "keys", table: key_table, limit };
    listing.print(&keys.target, format).await
}

fn key_table(rows: &[Value]) -> Table {
    let mut table = Table::new(&["KEY", "REVISION", "SIZE", "TYPE"]);
    for row in rows {
        table.row(["key", "revision", "size", "type"].map(|name| figure(row, name)).into());
    }
    table
}

/// Prints one page of a list; only the first has the header.
fn print_page(table: &Table, first: bool) -> io::Result<()> {
    output::text(&if first { table.render() } else { table.render_rows() })
}

/// The cursor of a page, as text for the next request.
fn next_page(page: &Value) -> Option<String> {
    match page.get("next")? {
        Value::String(key) => Some(key.clone()),
        Value::Number(n) => Some(n.to_string()),
        _ => None,
    }
}

/// A member of an answer as text; empty when it is missing.
pub(super) fn figure(document: &Value, name: &str) -> String {
    match document.get(name) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}
