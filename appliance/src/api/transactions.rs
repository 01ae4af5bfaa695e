//! `POST /v1/transactions`: several operations at once, from strict JSON.

use std::collections::{BTreeMap, HashSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::CONTENT_TYPE;
use samovar_node::command::{OPERATIONS_MAX, VALUE_BYTES_MAX};
use samovar_node::{Cid, Key, Operation, Requirement, Write};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use super::problem::Problem;
use super::{Call, Handled, idempotency, keys, render};
use crate::auth::Right;

mod strict;

pub(crate) use strict::{check_within, whole_or_null};

/// Largest body, in bytes: the values of a full transaction in base64, and names.
pub(crate) const BODY_BYTES_MAX: usize = 2 << 20;
/// Media type of a value that was given as JSON.
const JSON: &str = "application/json";
/// Media type of bytes that came without one.
const OCTETS: &str = "application/octet-stream";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body<'a> {
    #[serde(default)]
    require: Vec<Require>,
    #[serde(borrow)]
    operations: Vec<Wanted<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Require {
    key: String,
    /// Must be given: `null` says "does not exist".
    #[serde(deserialize_with = "strict::whole_or_null")]
    revision: Option<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
enum Wanted<'a> {
    #[serde(borrow)]
    Put(Put<'a>),
    Delete(Delete),
    Erase(Erase),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Put<'a> {
    key: String,
    /// JSON, kept as it was written; `null` is a value.
    #[serde(borrow, default, deserialize_with = "present")]
    value: Option<&'a RawValue>,
    #[serde(default)]
    bytes: Option<String>,
    /// CID of a blob that is here.
    #[serde(default)]
    blob: Option<String>,
    #[serde(default, rename = "type")]
    media_type: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Delete {
    key: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Erase {
    key: String,
    #[serde(deserialize_with = "strict::whole")]
    revision: u64,
}

fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

#[derive(Serialize)]
struct Committed<'a> {
    transaction: u64,
    block: u64,
    /// Keys that were put, with their new revision.
    revisions: BTreeMap<&'a str, u64>,
}

/// `POST /v1/transactions`.
pub(crate) async fn post(call: Call) -> Handled {
    json_body(&call)?;
    let (call, body) = call.read(BODY_BYTES_MAX).await?;
    let (requirements, operations) = parse(&body)?;
    authorize(&call, &requirements, &operations)?;
    let put: Vec<Key> =
        operations.iter().filter(|o| matches!(o, Operation::Put { .. })).map(|o| o.key().clone()).collect();
    let idempotency = idempotency::of(&call.head, &body)?;
    let write = Write { author: call.principal.id.to_string(), requirements, operations, idempotency };
    let committed = call.commit(write).await?;
    let answer = Committed {
        transaction: committed.transaction,
        block: committed.block,
        revisions: put.iter().map(|key| (key.as_str(), committed.transaction)).collect(),
    };
    Ok(render::committed(render::json(StatusCode::CREATED, &answer)?, &committed))
}

/// Refuses a body that does not say it is JSON.
pub(super) fn json_body(call: &Call) -> Result<(), Problem> {
    let media_type = keys::single(&call.head.headers, &CONTENT_TYPE)?.unwrap_or("");
    let essence = media_type.split(';').next().unwrap_or("").trim();
    if essence.eq_ignore_ascii_case(JSON) && !call.head.headers.contains_key(hyper::header::CONTENT_ENCODING) {
        return Ok(());
    }
    Err(Problem::media_type("send the body as Content-Type: application/json, without Content-Encoding"))
}

/// Strict JSON into a type: no unknown or repeated fields, bounded depth.
pub(super) fn from_json<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Problem> {
    strict::check(body).and_then(|()| serde_json::from_slice(body)).map_err(|error| {
        Problem::invalid(format!("the body is not what this route takes: {error}"))
            .with("line", error.line())
            .with("column", error.column())
    })
}

/// Every key must be the principal's; erasing has a right of its own.
fn authorize(call: &Call, requirements: &[Requirement], operations: &[Operation]) -> Result<(), Problem> {
    for key in requirements.iter().map(|r| &r.key).chain(operations.iter().map(Operation::key)) {
        call.allow(key.as_str())?;
    }
    if operations.iter().any(|o| matches!(o, Operation::Erase { .. })) {
        call.principal.require(Right::Erase)?;
    }
    Ok(())
}

fn parse(body: &[u8]) -> Result<(Vec<Requirement>, Vec<Operation>), Problem> {
    let Body { require, operations } = from_json(body)?;
    if operations.is_empty() || operations.len() > OPERATIONS_MAX || require.len() > OPERATIONS_MAX {
        let detail =
            format!("a transaction has 1 to {OPERATIONS_MAX} operations and at most {OPERATIONS_MAX} requirements");
        return Err(Problem::unprocessable(detail));
    }
    let requirements = require
        .into_iter()
        .map(|r| Ok(Requirement { key: client_key(&r.key)?, revision: r.revision }))
        .collect::<Result<Vec<_>, Problem>>()?;
    let operations = operations.into_iter().map(operation).collect::<Result<Vec<_>, Problem>>()?;
    once_each(operations.iter().map(Operation::key), "operation")?;
    once_each(requirements.iter().map(|r| &r.key), "requirement")?;
    let bytes: usize =
        operations.iter().map(|o| if let Operation::Put { value, .. } = o { value.len() } else { 0 }).sum();
    if bytes > VALUE_BYTES_MAX {
        return Err(Problem::body_too_large(VALUE_BYTES_MAX).with("size", bytes));
    }
    Ok((requirements, operations))
}

fn once_each<'a>(keys: impl Iterator<Item = &'a Key>, what: &str) -> Result<(), Problem> {
    let mut seen = HashSet::new();
    for key in keys {
        if !seen.insert(key) {
            let detail = format!("a key may occur in one {what} of a transaction");
            return Err(Problem::unprocessable(detail).with("key", key.as_str()));
        }
    }
    Ok(())
}

fn operation(wanted: Wanted<'_>) -> Result<Operation, Problem> {
    match wanted {
        Wanted::Delete(Delete { key }) => Ok(Operation::Delete { key: client_key(&key)? }),
        Wanted::Erase(Erase { key, revision }) => Ok(Operation::Erase { key: client_key(&key)?, revision }),
        Wanted::Put(put) => put_operation(put),
    }
}

fn put_operation(put: Put<'_>) -> Result<Operation, Problem> {
    let key = client_key(&put.key)?;
    let blob = put.blob.is_some();
    let (value, default) = match (put.value, &put.bytes, put.blob) {
        (Some(json), None, None) => (Bytes::copy_from_slice(json.get().as_bytes()), JSON),
        (None, None, Some(text)) => {
            let cid: Cid = text.parse().map_err(|e: String| Problem::unprocessable(e).with("key", key.as_str()))?;
            (Bytes::from(cid.to_string()), OCTETS)
        }
        (None, Some(text), None) => {
            let bytes = STANDARD.decode(text).map_err(|e| {
                Problem::unprocessable(format!("`bytes` is not canonical base64: {e}")).with("key", key.as_str())
            })?;
            (Bytes::from(bytes), OCTETS)
        }
        _ => {
            let detail = "a put has exactly one of `value`, `bytes` and `blob`";
            return Err(Problem::unprocessable(detail).with("key", key.as_str()));
        }
    };
    let media_type = match put.media_type {
        Some(text) => keys::checked_media_type(&text)?,
        None => default.to_owned(),
    };
    Ok(Operation::Put { key, value, media_type, blob })
}

fn client_key(text: &str) -> Result<Key, Problem> {
    Key::client(text).map_err(Problem::key)
}

#[cfg(test)]
mod tests;
