//! `/v1/transactions/{n}`: entries as logged, and their receipts.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::StatusCode;
use samovar_node::command::RESERVED_PREFIX;
use samovar_node::view::{Opening, Record};
use samovar_node::{Error, Key};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::problem::Problem;
use super::{Call, Handled, render};

/// What the API needs of an entry's line; the format is the chain's (docs/reference/formats.md).
#[derive(Deserialize)]
pub(super) struct Entry {
    /// `transaction`, `block` or an administrative type.
    #[serde(rename = "type")]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) time: u64,
    #[serde(default)]
    pub(super) author: String,
    #[serde(default)]
    pub(super) operations: Vec<Logged>,
}

/// An operation as logged.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Logged {
    /// A value was set.
    Put(LoggedPut),
    /// A key was deleted.
    Delete(LoggedDelete),
    /// A value was destroyed.
    Erase(LoggedErase),
}

#[derive(Deserialize)]
pub(super) struct LoggedPut {
    pub(super) key: String,
    pub(super) size: u64,
    pub(super) media: String,
    #[serde(default)]
    pub(super) blob: bool,
}

#[derive(Deserialize)]
pub(super) struct LoggedDelete {
    pub(super) key: String,
}

#[derive(Deserialize)]
pub(super) struct LoggedErase {
    pub(super) key: String,
    pub(super) revision: u64,
}

impl Entry {
    pub(super) fn of(record: &Record) -> Result<Self, Problem> {
        serde_json::from_slice(&record.line)
            .map_err(|e| Problem::internal(&format!("entry {} cannot be read: {e}", record.index)))
    }

    /// Whether it is a transaction of clients' keys only.
    pub(super) fn is_of_clients(&self) -> bool {
        self.kind == "transaction" && self.operations.iter().all(|o| !o.key().starts_with(RESERVED_PREFIX))
    }
}

impl Logged {
    pub(super) fn key(&self) -> &str {
        match self {
            Self::Put(LoggedPut { key, .. })
            | Self::Delete(LoggedDelete { key })
            | Self::Erase(LoggedErase { key, .. }) => key,
        }
    }
}

#[derive(Serialize)]
struct Shown<'a> {
    index: u64,
    block: u64,
    entry: &'a RawValue,
    openings: Vec<ShownOpening<'a>>,
}

#[derive(Serialize)]
struct ShownOpening<'a> {
    key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    salt: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    erased_by: Option<u64>,
}

/// `GET /v1/transactions/{n}`.
pub(crate) async fn record(call: Call) -> Handled {
    let record = readable(&call).await?;
    let line = std::str::from_utf8(&record.line).map_err(|e| Problem::internal(&e))?;
    let entry = serde_json::from_str(line).map_err(|e| Problem::internal(&e))?;
    // Values of the system state hold hashes of secrets: nobody gets them from here, nor from receipts.
    let openings = record.openings.iter().filter(|(key, _)| !key.is_reserved()).map(shown).collect();
    render::json(StatusCode::OK, &Shown { index: record.index, block: record.block, entry, openings })
}

fn shown((key, opening): &(Key, Opening)) -> ShownOpening<'_> {
    let key = key.as_str();
    match opening {
        Opening::Value { salt, value } => ShownOpening {
            key,
            salt: Some(STANDARD.encode(salt)),
            value: Some(STANDARD.encode(value)),
            erased_by: None,
        },
        Opening::Erased { erased_by } => ShownOpening { key, salt: None, value: None, erased_by: Some(*erased_by) },
    }
}

/// `GET /v1/transactions/{n}/receipt`.
pub(crate) async fn receipt(call: Call) -> Handled {
    let record = readable(&call).await?;
    let wait = call.query.text("wait").is_some();
    let receipt = call.app.node.receipt(record.index, wait).await.map_err(no_such_entry)?;
    Ok(render::text(receipt))
}

/// The entry in the path, if the principal may see it: one that is limited to prefixes sees transactions all of whose
/// keys are within, and nothing else.
async fn readable(call: &Call) -> Result<Record, Problem> {
    let index = call.number("the transaction")?;
    let record = call.app.node.record(index).await.map_err(no_such_entry)?;
    if call.principal.is_limited() {
        let entry = Entry::of(&record)?;
        if entry.kind != "transaction" || !entry.operations.iter().all(|o| call.principal.covers(o.key())) {
            return Err(Problem::forbidden("the entry has keys outside the prefixes that you are limited to"));
        }
    }
    Ok(record)
}

fn no_such_entry(error: Error) -> Problem {
    match error {
        Error::NotFound(what) => Problem::missing("no-such-entry", format!("{what} does not exist yet")),
        other => other.into(),
    }
}
