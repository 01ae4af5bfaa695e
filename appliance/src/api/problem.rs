//! RFC 9457 problem details: the only place where something that went wrong becomes a status code.

use std::time::Duration;

use bytes::Bytes;
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_RANGE, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER,
    WWW_AUTHENTICATE,
};
use hyper::{Response, StatusCode};
use samovar_node::{Error, Refusal};
use serde_json::{Map, Value, json};

use crate::http::Payload;

/// Prefix of `type`.
pub(crate) const TYPE_PREFIX: &str = "urn:samovar:problem:";

/// What went wrong with a request, and what the client can do about it.
#[derive(Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    name: &'static str,
    detail: String,
    extra: Map<String, Value>,
    header: Option<(HeaderName, HeaderValue)>,
    close: bool,
    /// For the journal alone.
    cause: Option<String>,
}

impl Problem {
    /// A problem with a name that stays stable.
    pub(crate) fn new(status: StatusCode, name: &'static str, detail: impl Into<String>) -> Self {
        Self { status, name, detail: detail.into(), extra: Map::new(), header: None, close: false, cause: None }
    }

    /// What went wrong, in words.
    pub(crate) fn detail(&self) -> String {
        self.detail.clone()
    }

    /// Adds a member.
    pub(crate) fn with(mut self, member: &str, value: impl Into<Value>) -> Self {
        self.extra.insert(member.to_owned(), value.into());
        self
    }

    /// Closes an HTTP/1 connection after the answer: what follows on it cannot be trusted to be a request.
    pub(crate) fn closing(mut self, close: bool) -> Self {
        self.close |= close;
        self
    }

    fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.header = Some((name, value));
        self
    }

    fn retry_after(self, seconds: u64) -> Self {
        self.header(RETRY_AFTER, HeaderValue::from(seconds))
    }

    /// Whether it is the problem of this name.
    pub(crate) fn is(&self, name: &str) -> bool {
        self.name == name
    }

    /// The status that will be answered.
    #[cfg(test)]
    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    /// The response: `application/problem+json`.
    pub(crate) fn into_response(self, request_id: &str) -> Response<Payload> {
        if let Some(error) = &self.cause {
            tracing::error!(request_id, error, "a request failed");
        }
        let mut body = self.extra;
        body.insert("type".into(), json!(format!("{TYPE_PREFIX}{}", self.name)));
        body.insert("title".into(), json!(self.status.canonical_reason().unwrap_or("Error")));
        body.insert("status".into(), json!(self.status.as_u16()));
        body.insert("detail".into(), json!(self.detail));
        body.insert("request_id".into(), json!(request_id));
        let mut response = Response::new(Payload::Full(Bytes::from(Value::Object(body).to_string())));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some((name, value)) = self.header {
            headers.insert(name, value);
        }
        if self.close {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// What is wrong with a request as it stands.
impl Problem {
    /// 400: malformed.
    pub(crate) fn invalid(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid-request", detail)
    }

    /// 400: a query parameter.
    pub(crate) fn parameter(name: &str, detail: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid-parameter", format!("parameter `{name}`: {detail}"))
            .with("parameter", name)
    }

    /// 400: a key.
    pub(crate) fn key(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid-key", detail)
    }

    /// 400: a CID.
    pub(crate) fn cid(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid-cid", detail)
    }

    /// 416: a blob of `size` bytes has nothing of the range.
    pub(crate) fn range(detail: String, size: u64) -> Self {
        let length = HeaderValue::try_from(format!("bytes */{size}")).unwrap_or(HeaderValue::from_static("bytes */*"));
        Self::new(StatusCode::RANGE_NOT_SATISFIABLE, "no-such-range", detail).header(CONTENT_RANGE, length)
    }

    /// 401.
    pub(crate) fn unauthenticated(detail: &'static str) -> Self {
        let challenge = HeaderValue::from_static("Bearer realm=\"samovar\"");
        Self::new(StatusCode::UNAUTHORIZED, "unauthenticated", detail).header(WWW_AUTHENTICATE, challenge)
    }

    /// 403.
    pub(crate) fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", detail)
    }

    /// 403: what is shown is not good for this, or not any more.
    pub(crate) fn refused(name: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, name, detail)
    }

    /// 404: no such route.
    pub(crate) fn no_route() -> Self {
        Self::new(StatusCode::NOT_FOUND, "no-such-route", "no route has this path; the routes stand in /openapi.json")
    }

    /// 404: what the path names does not exist.
    pub(crate) fn missing(name: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, name, detail)
    }

    /// 405.
    pub(crate) fn method_not_allowed(allow: &str) -> Self {
        let value = HeaderValue::from_str(allow).unwrap_or(HeaderValue::from_static(""));
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", format!("this path takes {allow}"))
            .header(ALLOW, value)
    }

    /// 501.
    pub(crate) fn method_unknown() -> Self {
        let detail = "methods are GET, HEAD, PUT, POST and DELETE";
        Self::new(StatusCode::NOT_IMPLEMENTED, "method-unknown", detail)
    }

    /// 408.
    pub(crate) fn body_too_slow() -> Self {
        let detail = "the body came too slowly; send the request again";
        Self::new(StatusCode::REQUEST_TIMEOUT, "body-too-slow", detail)
    }

    /// 400: framing of the body, or the client went away.
    pub(crate) fn body_broken(error: &hyper::Error) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "body-broken", format!("the body could not be read: {error}"))
    }

    /// 413.
    pub(crate) fn body_too_large(bytes_max: usize) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", format!("the body may have at most {bytes_max} bytes"))
            .with("limit", bytes_max)
    }

    /// 414.
    pub(crate) fn uri_too_long(bytes_max: usize) -> Self {
        let detail = format!("the request target may have at most {bytes_max} bytes");
        Self::new(StatusCode::URI_TOO_LONG, "uri-too-long", detail).with("limit", bytes_max)
    }

    /// 415.
    pub(crate) fn media_type(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type", detail)
    }

    /// 422: well-formed, but it cannot be done.
    pub(crate) fn unprocessable(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "unprocessable", detail)
    }

    /// 409: the same `Idempotency-Key` is still running.
    pub(crate) fn in_progress() -> Self {
        let detail = "a request with this Idempotency-Key is still running; repeat this one when it is done";
        Self::new(StatusCode::CONFLICT, "in-progress", detail).retry_after(1)
    }

    /// 409: the change would take something away that is needed.
    pub(crate) fn conflict(name: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, name, detail)
    }

    /// 429.
    pub(crate) fn too_many(detail: &'static str, retry_after_s: u64) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "too-many-requests", detail).retry_after(retry_after_s)
    }

    /// 503: this would take too long.
    pub(crate) fn too_busy(detail: &'static str, retry_after_s: u64) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "too-busy", detail).retry_after(retry_after_s)
    }

    /// 503.
    pub(crate) fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", detail).retry_after(1)
    }

    /// 503: the deadline of the request passed.
    pub(crate) fn deadline(after: Duration) -> Self {
        let after = Duration::from_millis(u64::try_from(after.as_millis()).unwrap_or(u64::MAX));
        let detail = format!(
            "not done within {after:?}; a write may or may not be committed, repeat it with the same Idempotency-Key"
        );
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "deadline", detail).retry_after(1)
    }

    /// 410: the value was erased.
    pub(crate) fn erased(key: &str, revision: Option<u64>, erased_by: u64) -> Self {
        let problem = Self::new(StatusCode::GONE, "erased", format!("the value was erased by entry {erased_by}"))
            .with("key", key)
            .with("erased_by", erased_by);
        match revision {
            Some(revision) => problem.with("revision", revision),
            None => problem,
        }
    }

    /// 500: what failed stands in the journal, not in the answer.
    pub(crate) fn internal(error: &dyn std::fmt::Display) -> Self {
        let detail = "the node failed; its journal says why, under this request id";
        let cause = Some(error.to_string());
        Self { cause, ..Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail) }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::NotLeader { leader } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "not-leader", text).with("leader", leader).retry_after(1)
            }
            Error::Unavailable(_) => Self::unavailable(text),
            Error::Overloaded => Self::new(StatusCode::TOO_MANY_REQUESTS, "overloaded", text).retry_after(1),
            Error::NoRoom { free_bytes, reserve_bytes } => {
                let status = StatusCode::INSUFFICIENT_STORAGE;
                Self::new(status, "no-room", text).with("free_bytes", free_bytes).with("reserve_bytes", reserve_bytes)
            }
            Error::TooLarge { what, size, limit } => {
                let name = if what == "entry" { "entry-too-large" } else { "too-large" };
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, name, text).with("size", size).with("limit", limit)
            }
            Error::Invalid(_) => Self::unprocessable(text),
            Error::NotFound(_) => Self::missing("not-found", text),
            Error::NoBlob(cid) => {
                let detail = format!("{text}; upload it with POST /v1/blobs, then send this again");
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "no-such-blob", detail).with("cid", cid)
            }
            Error::DamagedBlob(cid) => {
                let detail = format!("{text}; uploading it again with POST /v1/blobs mends that");
                let problem = Self::new(StatusCode::INTERNAL_SERVER_ERROR, "blob-damaged", detail).with("cid", cid);
                Self { cause: Some(text), ..problem }
            }
            Error::DigestMismatch(cid) => {
                let detail = format!("{text}; nothing was kept, send it again");
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "digest-mismatch", detail).with("cid", cid)
            }
            Error::Unknown => {
                let detail = format!("{text}; repeat it with the same Idempotency-Key");
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "outcome-unknown", detail).retry_after(1)
            }
            Error::Superseded(_) => Self::unavailable(text),
            Error::Corrupt(_) | Error::DamagedStore(_) | Error::Io { .. } => Self::internal(&text),
        }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Requirement { key, required, actual } => {
                let named = |r: Option<u64>| r.map_or("does not exist".to_owned(), |n| format!("has revision {n}"));
                let detail = format!("required that the key {}, but it {}", named(required), named(actual));
                Self::new(StatusCode::PRECONDITION_FAILED, "precondition-failed", detail)
                    .with("key", key.as_str())
                    .with("required", required)
                    .with("actual", actual)
            }
            Refusal::Absent { key } => Self::missing("no-such-key", "the key does not exist").with("key", key.as_str()),
            Refusal::NoSuchRevision { key, revision } => {
                Self::missing("no-such-revision", format!("revision {revision} is no value of this key"))
                    .with("key", key.as_str())
                    .with("revision", revision)
            }
            Refusal::AlreadyErased { key, erased_by } => Self::erased(key.as_str(), None, erased_by),
            Refusal::IdempotencyMismatch => {
                let detail = "this Idempotency-Key was used for another request; use a fresh one";
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "idempotency-mismatch", detail)
            }
        }
    }
}
