//! `/v1/keys`, `/v1/history`, `/v1/proofs`: one key at a time.

use hyper::StatusCode;
use hyper::header::{
    CONTENT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_MATCH, IF_NONE_MATCH,
};
use samovar_node::command::{KEY_BYTES_MAX, MEDIA_TYPE_BYTES_MAX, RESERVED_PREFIX, VALUE_BYTES_MAX};
use samovar_node::view::{Change, Consistency, Found, Value, Version};
use samovar_node::{Error, Key, Operation, Requirement, Write};
use serde::Serialize;

use super::problem::Problem;
use super::{Call, Handled, idempotency, render};

/// Media type of a value that came without one.
const MEDIA_TYPE_DEFAULT: &str = "application/octet-stream";
/// Media type of the blob whose CID the answer is.
static SAMOVAR_BLOB_TYPE: HeaderName = HeaderName::from_static("samovar-blob-type");

#[derive(Serialize)]
struct Written<'a> {
    key: &'a str,
    revision: u64,
    transaction: u64,
    block: u64,
}

/// `PUT /v1/keys/{key}`.
pub(crate) async fn put(call: Call) -> Handled {
    let key = call.key()?;
    let media_type = media_type(&call.head.headers)?;
    let requirements = write_conditions(&call.head.headers, &key)?;
    let (call, value) = call.read(VALUE_BYTES_MAX).await?;
    let write = Write {
        author: call.principal.id.to_string(),
        requirements,
        idempotency: idempotency::of(&call.head, &value)?,
        operations: vec![Operation::Put { key: key.clone(), value, media_type, blob: false }],
    };
    let committed = call.commit(write).await?;
    let status = if committed.created.first() == Some(&true) { StatusCode::CREATED } else { StatusCode::OK };
    let (transaction, block) = (committed.transaction, committed.block);
    let response = render::json(status, &Written { key: key.as_str(), revision: transaction, transaction, block })?;
    let mut response = render::committed(response, &committed);
    response.headers_mut().insert(ETAG, render::etag(transaction)?);
    Ok(response)
}

/// `DELETE /v1/keys/{key}`.
pub(crate) async fn delete(call: Call) -> Handled {
    let key = call.key()?;
    let write = Write {
        author: call.principal.id.to_string(),
        requirements: write_conditions(&call.head.headers, &key)?,
        operations: vec![Operation::Delete { key }],
        idempotency: idempotency::of(&call.head, b"")?,
    };
    let committed = call.commit(write).await?;
    Ok(render::committed(render::empty(StatusCode::NO_CONTENT), &committed))
}

/// `GET /v1/keys/{key}`.
pub(crate) async fn get(call: Call) -> Handled {
    let key = call.key()?;
    let consistency = match call.query.text("consistency") {
        Some("stale") => Consistency::Stale,
        _ => Consistency::Linearizable,
    };
    let at = call.query.number("at");
    let reading = call.app.node.get(&key, consistency, at).await.map_err(no_such_block)?;
    match reading.found {
        Found::Value(value) => show(&call.head.headers, value, reading.block),
        Found::Absent => {
            let detail = "the key does not exist as of this block";
            Err(Problem::missing("no-such-key", detail).with("key", key.as_str()).with("block", reading.block))
        }
        Found::Erased { revision, erased_by } => Err(Problem::erased(key.as_str(), Some(revision), erased_by)),
    }
}

fn show(headers: &HeaderMap, value: Value, block: u64) -> Handled {
    let tag = render::etag(value.revision)?;
    let mut response = match read_condition(headers, value.revision)? {
        Some(status) => render::empty(status),
        None => {
            let media_type = HeaderValue::from_str(&value.media_type);
            let media_type = media_type.unwrap_or(HeaderValue::from_static(MEDIA_TYPE_DEFAULT));
            if value.blob {
                let text = HeaderValue::from_static("text/plain; charset=utf-8");
                let mut response = render::content(StatusCode::OK, text, value.content);
                response.headers_mut().insert(SAMOVAR_BLOB_TYPE.clone(), media_type);
                response
            } else {
                render::content(StatusCode::OK, media_type, value.content)
            }
        }
    };
    response.headers_mut().insert(ETAG, tag);
    Ok(render::as_of(response, block))
}

#[derive(Serialize)]
struct KeyPage<'a> {
    block: u64,
    keys: Vec<KeyRow<'a>>,
    next: Option<&'a str>,
}

#[derive(Serialize)]
struct KeyRow<'a> {
    key: &'a str,
    revision: u64,
    size: u64,
    #[serde(rename = "type")]
    media_type: &'a str,
    /// The value is the CID of a blob, and `size` that of the blob.
    #[serde(skip_serializing_if = "render::is_false")]
    blob: bool,
}

/// `GET /v1/keys`.
pub(crate) async fn list(call: Call) -> Handled {
    let prefix = client_prefix(&call)?;
    let after = call.query.text("after").map(|a| Key::client(a).map_err(|e| Problem::parameter("after", e)));
    let page = call.app.node.keys(prefix, after.transpose()?.as_ref(), call.query.limit()).await?;
    let rows = page.keys.iter().map(|row| KeyRow {
        key: row.key.as_str(),
        revision: row.revision,
        size: row.size,
        media_type: &row.media_type,
        blob: row.blob,
    });
    let body = KeyPage { block: page.block, keys: rows.collect(), next: page.next.as_ref().map(Key::as_str) };
    Ok(render::as_of(render::compressible(render::json(StatusCode::OK, &body)?), page.block))
}

/// The `prefix` parameter; all of what it selects must be the principal's.
pub(super) fn client_prefix(call: &Call) -> Result<&str, Problem> {
    let prefix = call.query.text("prefix").unwrap_or("");
    if prefix.starts_with(RESERVED_PREFIX) {
        return Err(Problem::parameter(
            "prefix",
            format!("may not begin with {RESERVED_PREFIX}: that range holds system state"),
        ));
    }
    if prefix.len() > KEY_BYTES_MAX {
        return Err(Problem::parameter("prefix", format!("longer than any key: at most {KEY_BYTES_MAX} bytes")));
    }
    call.allow(prefix)?;
    Ok(prefix)
}

#[derive(Serialize)]
struct HistoryPage<'a> {
    key: &'a str,
    versions: Vec<HistoryRow<'a>>,
    next: Option<u64>,
}

#[derive(Serialize)]
struct HistoryRow<'a> {
    revision: u64,
    block: u64,
    time_ms: u64,
    author: &'a str,
    change: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    media_type: Option<&'a str>,
    /// The value is the CID of a blob, and `size` that of the blob.
    #[serde(skip_serializing_if = "render::is_false")]
    blob: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    erased_by: Option<u64>,
}

/// `GET /v1/history/{key}`.
pub(crate) async fn history(call: Call) -> Handled {
    let key = call.key()?;
    let page = call.app.node.history(&key, call.query.number("before"), call.query.limit()).await?;
    if page.versions.is_empty() && call.query.number("before").is_none() {
        return Err(Problem::missing("no-such-key", "the key was never written").with("key", key.as_str()));
    }
    let versions = page.versions.iter().map(history_row).collect();
    let page = HistoryPage { key: key.as_str(), versions, next: page.next };
    Ok(render::compressible(render::json(StatusCode::OK, &page)?))
}

fn history_row(version: &Version) -> HistoryRow<'_> {
    let (change, size, media_type, blob, erased_by) = match &version.change {
        Change::Put { size, media_type, blob, erased_by } => {
            ("put", Some(*size), Some(media_type.as_str()), *blob, *erased_by)
        }
        Change::Delete => ("delete", None, None, false, None),
    };
    let Version { revision, time_ms, author, block, .. } = version;
    HistoryRow {
        revision: *revision,
        block: *block,
        time_ms: *time_ms,
        author,
        change,
        size,
        media_type,
        blob,
        erased_by,
    }
}

/// `GET /v1/proofs/{key}`.
pub(crate) async fn proof(call: Call) -> Handled {
    let key = call.key()?;
    Ok(render::text(call.app.node.proof(&key).await?))
}

fn no_such_block(error: Error) -> Problem {
    match error {
        Error::NotFound(what) => Problem::missing("no-such-block", format!("{what} does not exist yet")),
        other => other.into(),
    }
}

/// The `Content-Type` to keep with a value.
fn media_type(headers: &HeaderMap) -> Result<String, Problem> {
    if headers.contains_key(CONTENT_ENCODING) {
        return Err(Problem::media_type("values are stored as they come: send the body without Content-Encoding"));
    }
    if headers.contains_key(CONTENT_RANGE) {
        return Err(Problem::invalid("a value is written whole: send the request without Content-Range"));
    }
    let Some(value) = single(headers, &CONTENT_TYPE)? else { return Ok(MEDIA_TYPE_DEFAULT.to_owned()) };
    checked_media_type(value)
}

/// A media type as RFC 9110 writes it, within its length.
pub(super) fn checked_media_type(value: &str) -> Result<String, Problem> {
    if value.len() > MEDIA_TYPE_BYTES_MAX {
        return Err(Problem::media_type(format!("a media type may have at most {MEDIA_TYPE_BYTES_MAX} bytes")));
    }
    let (kind, rest) = value.split_once('/').unwrap_or((value, ""));
    let subtype = rest.split(';').next().unwrap_or("").trim_end();
    let token =
        |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b));
    let visible = value.bytes().all(|b| b == b' ' || b.is_ascii_graphic());
    if visible && token(kind) && token(subtype) {
        return Ok(value.to_owned());
    }
    Err(Problem::media_type("not a media type; write one such as application/json"))
}

/// A header that may be given once, as ASCII text.
pub(super) fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Problem> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Problem::invalid(format!("more than one {name} header")));
    }
    let text = value.to_str().map_err(|_| Problem::invalid(format!("the {name} header is not ASCII")))?;
    Ok(Some(text))
}

/// `If-Match: "REV"` or `If-None-Match: *` as a requirement. An empty `If-None-Match` excludes nothing (RFC 9110, 13.1.2).
fn write_conditions(headers: &HeaderMap, key: &Key) -> Result<Vec<Requirement>, Problem> {
    let require = |revision| Ok(vec![Requirement { key: key.clone(), revision }]);
    let absent = match single(headers, &IF_NONE_MATCH)? {
        None | Some("") => false,
        Some("*") => true,
        Some(_) => return Err(Problem::invalid("for a write If-None-Match must be *")),
    };
    match (if_match(headers)?, absent) {
        (None, false) => Ok(Vec::new()),
        (None, true) => require(None),
        (Some(revision), false) => require(Some(revision)),
        (Some(_), true) => Err(never_met("the key cannot have a revision and not exist")),
    }
}

/// The revision that `If-Match: "REV"` of a write names. An empty list of tags is well-formed, and none of its tags
/// matches (RFC 9110, 5.6.1 and 13.1.1).
pub(super) fn if_match(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    match single(headers, &IF_MATCH)? {
        None => Ok(None),
        Some("") => Err(never_met("If-Match names no revision, so none matches")),
        Some(tag) => strong_tag(tag)
            .map(Some)
            .ok_or_else(|| Problem::invalid("If-Match must name one revision: If-Match: \"REVISION\"")),
    }
}

fn never_met(why: &str) -> Problem {
    Problem::new(StatusCode::PRECONDITION_FAILED, "precondition-failed", why)
}

/// What to answer instead of the value: 412, 304, or nothing.
fn read_condition(headers: &HeaderMap, revision: u64) -> Result<Option<StatusCode>, Problem> {
    if let Some(tags) = single(headers, &IF_MATCH)? {
        let met = tags == "*" || tags.split(',').any(|tag| strong_tag(tag.trim()) == Some(revision));
        if !met {
            return Err(Problem::new(
                StatusCode::PRECONDITION_FAILED,
                "precondition-failed",
                "the revision is another one",
            )
            .with("actual", revision));
        }
    }
    let Some(tags) = single(headers, &IF_NONE_MATCH)? else { return Ok(None) };
    let weak = |tag: &str| strong_tag(tag.strip_prefix("W/").unwrap_or(tag));
    let same = tags == "*" || tags.split(',').any(|tag| weak(tag.trim()) == Some(revision));
    Ok(same.then_some(StatusCode::NOT_MODIFIED))
}

/// The revision of a strong entity tag.
fn strong_tag(text: &str) -> Option<u64> {
    super::query::whole_number(text.strip_prefix('"')?.strip_suffix('"')?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(n, v)| (HeaderName::from_static(n), v.parse().expect("a value"))).collect()
    }

    #[test]
    fn write_conditions_become_requirements() {
        let key = Key::client("k").expect("a key");
        let of = |pairs: &[(&'static str, &str)]| write_conditions(&headers(pairs), &key);
        assert_eq!(of(&[]).expect("none"), vec![]);
        assert_eq!(of(&[("if-match", "\"7\"")]).expect("one")[0].revision, Some(7));
        assert_eq!(of(&[("if-none-match", "*")]).expect("one")[0].revision, None);
        for bad in ["7", "*", "\"x\"", "W/\"7\"", "\"7\", \"8\"", "\"07\"", "\"-1\"", "\"\""] {
            assert!(of(&[("if-match", bad)]).is_err(), "If-Match {bad:?} should be refused");
        }
        let empty = of(&[("if-match", "")]).expect_err("no tag of an empty list matches");
        assert_eq!(empty.status().as_u16(), 412);
        assert_eq!(of(&[("if-none-match", "")]).expect("an empty list excludes nothing"), vec![]);
        assert!(of(&[("if-none-match", "\"7\"")]).is_err(), "If-None-Match with a tag on a write");
        let both = of(&[("if-match", "\"7\""), ("if-none-match", "*")]).expect_err("no key meets both");
        assert_eq!(both.status().as_u16(), 412);
    }

    #[test]
    fn read_conditions() {
        let of = |pairs: &[(&'static str, &str)]| {
            read_condition(&headers(pairs), 7).map_err(|p| p.status().as_u16()).map(|s| s.map(|s| s.as_u16()))
        };
        for same in ["\"7\"", "W/\"7\"", "*", "\"1\", \"7\""] {
            assert_eq!(of(&[("if-none-match", same)]), Ok(Some(304)), "If-None-Match {same}");
        }
        assert_eq!(of(&[("if-none-match", "\"8\"")]), Ok(None));
        assert_eq!(of(&[("if-match", "\"8\"")]), Err(412));
        assert_eq!(of(&[("if-match", "")]), Err(412), "no tag of an empty list matches");
        assert_eq!(of(&[("if-match", "W/\"7\"")]), Err(412), "a weak tag never matches strongly");
        assert_eq!(of(&[("if-match", "\"8\", \"7\"")]), Ok(None));
    }

    #[test]
    fn media_types() {
        let of = |v: &str| media_type(&headers(&[("content-type", v)]));
        for good in ["text/plain", "application/json; charset=utf-8", "a/b+c"] {
            assert_eq!(of(good).expect(good), good);
        }
        for bad in ["", "text", "/", "a/", "/b", "a b/c", "a/b c"] {
            assert_eq!(of(bad).expect_err(bad).status().as_u16(), 415, "{bad:?}");
        }
        assert!(of(&format!("a/{}", "b".repeat(126))).is_err(), "128 bytes are too long");
        assert_eq!(media_type(&HeaderMap::new()).expect("default"), MEDIA_TYPE_DEFAULT);
        assert!(media_type(&headers(&[("content-encoding", "gzip")])).is_err());
    }
}
