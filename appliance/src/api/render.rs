//! Answers: JSON, text, bytes, and the headers they share. Header values are static where they can be.

use bytes::Bytes;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use samovar_node::command::Committed;
use serde::Serialize;

use super::Handled;
use super::problem::Problem;
use crate::http::{Compressible, Payload};

/// Answers of a principal's data are nobody else's.
pub(crate) const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
static SAMOVAR_TRANSACTION: HeaderName = HeaderName::from_static("samovar-transaction");
static SAMOVAR_BLOCK: HeaderName = HeaderName::from_static("samovar-block");

/// An answer with a body.
pub(crate) fn content(status: StatusCode, media_type: HeaderValue, body: impl Into<Bytes>) -> Response<Payload> {
    let mut response = empty(status);
    *response.body_mut() = Payload::Full(body.into());
    response.headers_mut().insert(CONTENT_TYPE, media_type);
    response
}

/// An answer without a body.
pub(crate) fn empty(status: StatusCode) -> Response<Payload> {
    let mut response = Response::new(Payload::Empty);
    *response.status_mut() = status;
    response.headers_mut().insert(CACHE_CONTROL, NO_STORE);
    response
}

/// A JSON answer.
pub(crate) fn json(status: StatusCode, body: &impl Serialize) -> Handled {
    let mut bytes = Vec::with_capacity(256);
    serde_json::to_writer(&mut bytes, body).map_err(|e| Problem::internal(&e))?;
    Ok(content(status, JSON, bytes))
}

/// Lets an answer be compressed. Only for what holds no value and no secret (`http/coding.rs` says why).
pub(crate) fn compressible(mut response: Response<Payload>) -> Response<Payload> {
    response.extensions_mut().insert(Compressible);
    response
}

/// A plain text answer.
pub(crate) fn text(body: impl Into<Bytes>) -> Response<Payload> {
    content(StatusCode::OK, HeaderValue::from_static("text/plain; charset=utf-8"), body)
}

/// Names the transaction and block of a write.
pub(crate) fn committed(mut response: Response<Payload>, committed: &Committed) -> Response<Payload> {
    let headers = response.headers_mut();
    headers.insert(SAMOVAR_TRANSACTION.clone(), HeaderValue::from(committed.transaction));
    headers.insert(SAMOVAR_BLOCK.clone(), HeaderValue::from(committed.block));
    response
}

/// Names the block as of which a read holds.
pub(crate) fn as_of(mut response: Response<Payload>, block: u64) -> Response<Payload> {
    response.headers_mut().insert(SAMOVAR_BLOCK.clone(), HeaderValue::from(block));
    response
}

/// An entity tag: the revision in quotes.
pub(crate) fn etag(revision: u64) -> Result<HeaderValue, Problem> {
    HeaderValue::try_from(format!("\"{revision}\"")).map_err(|e| Problem::internal(&e))
}

/// For members that are left out unless they say something.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
pub(crate) fn is_false(flag: &bool) -> bool {
    !flag
}
