//! `/v1/blobs`: large values, streamed in and out.

use std::io;
use std::ops::Range;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap, HeaderName,
    HeaderValue, IF_MATCH, IF_NONE_MATCH, IF_RANGE, RANGE, VARY,
};
use hyper::{Method, Response, StatusCode};
use samovar_node::view::{Consistency, Found};
use samovar_node::{Blob, Cid, Error, Key, rt};
use serde::Serialize;
use tokio::sync::mpsc;

use super::problem::Problem;
use super::{Call, Handled, keys, render};
use crate::http::Payload;

/// Pieces of an answer that wait for the client.
const PIECES_WAITING: usize = 8;
/// Length of such a piece, in bytes.
const PIECE_BYTES: usize = 16 << 10;
/// What a CID names never changes, but only who may read it may keep it.
const IMMUTABLE: HeaderValue = HeaderValue::from_static("private, max-age=31536000, immutable");
const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");
static CONTENT_DIGEST: HeaderName = HeaderName::from_static("content-digest");
static REPR_DIGEST: HeaderName = HeaderName::from_static("repr-digest");
static DIGEST: HeaderName = HeaderName::from_static("digest");

#[derive(Serialize)]
struct Uploaded {
    cid: String,
    size: u64,
}

/// `POST /v1/blobs`.
pub(crate) async fn post(mut call: Call) -> Handled {
    if call.head.headers.contains_key(CONTENT_ENCODING) || call.head.headers.contains_key(CONTENT_RANGE) {
        let detail = "a blob is stored as it comes: send it whole, without Content-Encoding and Content-Range";
        return Err(Problem::media_type(detail).closing(true));
    }
    let expected = digest(&call.head.headers).map_err(|problem| problem.closing(true))?;
    let Some(mut body) = call.body.take() else { return Err(Problem::invalid("the body was read already")) };
    let closing = |error: Error| Problem::from(error).closing(true);
    // Before the first look at the body: a client that waits for 100 Continue has sent nothing yet.
    let mut upload = call.app.node.upload(body.announced()).await.map_err(closing)?;
    while let Some(bytes) = body.next().await? {
        upload = upload.write(bytes).await.map_err(closing)?;
    }
    let (cid, size) = upload.finish(expected).await?;
    call.app.node.offer_blob(cid);
    let mut response = render::json(StatusCode::CREATED, &Uploaded { cid: cid.to_string(), size })?;
    response.headers_mut().insert(ETAG, tag(&cid)?);
    Ok(response)
}

/// The SHA-256 that the client says the body has: `Content-Digest` or `Repr-Digest` (RFC 9530), or the older `Digest`
/// (RFC 3230). Other algorithms are passed over.
fn digest(headers: &HeaderMap) -> Result<Option<[u8; 32]>, Problem> {
    let malformed = |name| Problem::invalid(format!("{name} is not as RFC 9530 has it: sha-256=:BASE64 OF 32 BYTES:"));
    let mut said = None;
    for name in [&CONTENT_DIGEST, &REPR_DIGEST, &DIGEST] {
        for item in keys::single(headers, name)?.unwrap_or("").split(',') {
            let item = item.trim();
            if item.is_empty() {
                continue;
            }
            let (algorithm, value) = item.split_once('=').ok_or_else(|| malformed(name))?;
            if !algorithm.eq_ignore_ascii_case("sha-256") {
                continue;
            }
            let inner =
                if *name == DIGEST { Some(value) } else { value.strip_prefix(':').and_then(|v| v.strip_suffix(':')) };
            let hash = inner.and_then(|text| STANDARD.decode(text).ok()).and_then(|bytes| bytes.try_into().ok());
            let hash: [u8; 32] = hash.ok_or_else(|| malformed(name))?;
            if said.is_some_and(|other| other != hash) {
                return Err(Problem::invalid("the digests in the header are not the same"));
            }
            said = Some(hash);
        }
    }
    Ok(said)
}

/// `GET /v1/blobs/{cid}`.
pub(crate) async fn get(call: Call) -> Handled {
    let cid: Cid = call.captured().parse().map_err(|e: String| Problem::cid(e))?;
    allowed(&call, &cid).await?;
    let blob = call.app.node.blob(cid).await.map_err(no_such_blob)?;
    let headers = &call.head.headers;
    let mut response = match condition(headers, &cid)? {
        Some(status) => render::empty(status),
        None => show(&blob, &call.head.method, wanted(headers, &blob)).await?,
    };
    let headers = response.headers_mut();
    headers.insert(ETAG, tag(&cid)?);
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(CACHE_CONTROL, IMMUTABLE);
    headers.insert(VARY, HeaderValue::from_static("authorization"));
    Ok(response)
}

/// Who is limited to prefixes must name a key within them whose value the blob is.
async fn allowed(call: &Call, cid: &Cid) -> Result<(), Problem> {
    if !call.principal.is_limited() {
        return Ok(());
    }
    let Some(key) = call.query.text("key") else {
        return Err(Problem::forbidden(
            "you are limited to prefixes: add ?key=KEY, a key within them that has this blob",
        ));
    };
    let key = Key::client(key).map_err(Problem::key)?;
    call.allow(key.as_str())?;
    match call.app.node.get(&key, Consistency::Linearizable, None).await?.found {
        Found::Value(value) if value.blob && value.content == cid.to_string().as_bytes() => Ok(()),
        _ => Err(Problem::forbidden("the key that you name does not have this blob")),
    }
}

/// What the client wants of a blob.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    All,
    Part(Range<u64>),
    /// A part that it does not have.
    Beyond,
}

/// One range of bytes (RFC 9110, 14.1.2), unless `If-Range` names another blob. Several ranges, other units and what is
/// malformed are passed over: the answer is the whole blob (14.2).
fn wanted(headers: &HeaderMap, blob: &Blob) -> Wanted {
    let own = format!("\"{}\"", blob.cid());
    match (headers.get(RANGE).and_then(|v| v.to_str().ok()), headers.get(IF_RANGE)) {
        (None, _) => Wanted::All,
        (_, Some(tag)) if tag.as_bytes() != own.as_bytes() => Wanted::All,
        (Some(range), _) => part(range, blob.size()),
    }
}

fn part(range: &str, size: u64) -> Wanted {
    let number = |text: &str| match text.parse::<u64>() {
        // `parse` takes a sign, too.
        Ok(n) if text.bytes().all(|b| b.is_ascii_digit()) => Some(n),
        _ => None,
    };
    let Some((first, last)) = range.strip_prefix("bytes=").and_then(|r| r.trim().split_once('-')) else {
        return Wanted::All;
    };
    let (start, end) = match (number(first), number(last)) {
        (None, Some(count)) if first.is_empty() => (size.saturating_sub(count), if count == 0 { 0 } else { size }),
        (Some(start), None) if last.is_empty() => (start, size),
        (Some(start), Some(last)) if start <= last => (start, size.min(last.saturating_add(1))),
        _ => return Wanted::All,
    };
    if start < end { Wanted::Part(start..end) } else { Wanted::Beyond }
}

/// The blob, or a part of it. The first piece is read before anything is said: damage there is a problem, not a broken
/// answer.
async fn show(blob: &Blob, method: &Method, wanted: Wanted) -> Handled {
    let size = blob.size();
    let (status, range) = match wanted {
        _ if *method == Method::HEAD => (StatusCode::OK, 0..size),
        Wanted::All => (StatusCode::OK, 0..size),
        Wanted::Part(range) => (StatusCode::PARTIAL_CONTENT, range),
        Wanted::Beyond => {
            let detail = format!("the blob has {size} bytes, and none of those that the range asks for");
            return Err(Problem::range(detail, size));
        }
    };
    let first = blob.read(range.start).await.map_err(no_such_blob)?;
    let mut response = Response::new(payload(blob, &range, first, *method == Method::HEAD));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, OCTETS);
    if status == StatusCode::PARTIAL_CONTENT {
        let text = format!("bytes {}-{}/{size}", range.start, range.end - 1);
        let value = HeaderValue::try_from(text).map_err(|e| Problem::internal(&e))?;
        response.headers_mut().insert(CONTENT_RANGE, value);
    }
    Ok(response)
}

fn payload(blob: &Blob, range: &Range<u64>, first: Bytes, headless: bool) -> Payload {
    let length = range.end - range.start;
    let (sender, pieces) = mpsc::channel(PIECES_WAITING);
    if !headless && length > 0 {
        rt::spawn(send(blob.clone(), range.clone(), first, sender));
    }
    Payload::Pieces { length, pieces }
}

/// Hands a part of a blob over, until it is done, the client has gone, or what is next is damaged.
async fn send(blob: Blob, range: Range<u64>, first: Bytes, sender: mpsc::Sender<io::Result<Bytes>>) {
    let mut at = range.start;
    let mut next: Result<Bytes, Error> = Ok(first);
    loop {
        let mut bytes = match next {
            Ok(bytes) => bytes,
            Err(error) => {
                // An answer that ends short of its length cannot be taken for a whole one.
                let _ = sender.send(Err(io::Error::other(error.to_string()))).await;
                return;
            }
        };
        bytes.truncate(usize::try_from(range.end - at).unwrap_or(usize::MAX));
        at += bytes.len() as u64;
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(PIECE_BYTES));
            if sender.send(Ok(piece)).await.is_err() {
                return;
            }
        }
        if at >= range.end {
            return;
        }
        next = blob.read(at).await;
    }
}

/// What to answer instead of the blob: 412, 304, or nothing.
fn condition(headers: &HeaderMap, cid: &Cid) -> Result<Option<StatusCode>, Problem> {
    let own = format!("\"{cid}\"");
    if let Some(tags) = keys::single(headers, &IF_MATCH)?
        && tags != "*"
        && !tags.split(',').any(|tag| tag.trim() == own)
    {
        let detail = "a blob never changes: its entity tag is its CID in quotes";
        return Err(Problem::new(StatusCode::PRECONDITION_FAILED, "precondition-failed", detail));
    }
    let Some(tags) = keys::single(headers, &IF_NONE_MATCH)? else { return Ok(None) };
    let weak = |tag: &str| tag.trim().strip_prefix("W/").unwrap_or(tag.trim()) == own;
    Ok((tags == "*" || tags.split(',').any(weak)).then_some(StatusCode::NOT_MODIFIED))
}

fn tag(cid: &Cid) -> Result<HeaderValue, Problem> {
    HeaderValue::try_from(format!("\"{cid}\"")).map_err(|e| Problem::internal(&e))
}

fn no_such_blob(error: Error) -> Problem {
    match error {
        Error::NotFound(what) => Problem::missing("no-such-blob", format!("{what} is not here")),
        other => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_rfc_9110_has_them() {
        for (range, size, expected) in [
            ("bytes=0-0", 10, Wanted::Part(0..1)),
            ("bytes=2-5", 10, Wanted::Part(2..6)),
            ("bytes=5-", 10, Wanted::Part(5..10)),
            ("bytes=-3", 10, Wanted::Part(7..10)),
            ("bytes=-30", 10, Wanted::Part(0..10)),
            ("bytes=8-99", 10, Wanted::Part(8..10)),
            ("bytes=0-18446744073709551615", 10, Wanted::Part(0..10)),
            ("bytes=10-", 10, Wanted::Beyond),
            ("bytes=10-12", 10, Wanted::Beyond),
            ("bytes=-0", 10, Wanted::Beyond),
            ("bytes=0-", 0, Wanted::Beyond),
            ("bytes=-5", 0, Wanted::Beyond),
            ("bytes=5-2", 10, Wanted::All),
            ("bytes=1-2,4-5", 10, Wanted::All),
            ("bytes=+1-2", 10, Wanted::All),
            ("bytes=-", 10, Wanted::All),
            ("bytes=a-b", 10, Wanted::All),
            ("lines=1-2", 10, Wanted::All),
            ("bytes", 10, Wanted::All),
        ] {
            assert_eq!(part(range, size), expected, "Range: {range} of {size} bytes");
        }
    }

    #[test]
    fn digests_are_read_as_rfc_9530_has_them() {
        let of = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(HeaderName::from_static(name), value.parse().expect("a value"));
            digest(&headers).map_err(|problem| problem.status().as_u16())
        };
        let text = STANDARD.encode([7; 32]);
        for (name, value) in [
            ("content-digest", format!("sha-256=:{text}:")),
            ("content-digest", format!("sha-512=:AAAA:, sha-256=:{text}:")),
            ("repr-digest", format!("sha-256=:{text}:")),
            ("digest", format!("SHA-256={text}")),
        ] {
            assert_eq!(of(name, &value), Ok(Some([7; 32])), "{name}: {value}");
        }
        assert_eq!(of("content-digest", "sha-512=:AAAA:"), Ok(None), "other algorithms are passed over");
        for bad in
            ["{}".into(), format!("sha-256={text}"), "sha-256=:AAAA:".into(), "sha-256=::".into(), "sha-256=:?:".into()]
        {
            assert_eq!(of("content-digest", &bad), Err(400), "content-digest: {bad}");
        }
    }
}
