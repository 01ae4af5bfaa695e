//! What makes a retry safe: the client's `Idempotency-Key`, a fingerprint of the request, and the refusal of a second
//! request while the first is still running here. That outcomes are kept is the chain's part.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, IF_MATCH, IF_NONE_MATCH};
use hyper::http::request::Parts;
use ring::digest::{Context, SHA256};
use samovar_node::command::{IDEMPOTENCY_KEY_BYTES_MAX, Idempotency};

use super::problem::Problem;

static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Key and fingerprint of a request; none without the header.
pub(crate) fn of(head: &Parts, body: &[u8]) -> Result<Option<Idempotency>, Problem> {
    let Some(key) = key_of(&head.headers)? else { return Ok(None) };
    let mut context = Context::new(&SHA256);
    let mut part = |bytes: &[u8]| {
        context.update(&(bytes.len() as u64).to_be_bytes());
        context.update(bytes);
    };
    part(head.method.as_str().as_bytes());
    part(head.uri.path().as_bytes());
    for name in [IF_MATCH, IF_NONE_MATCH, CONTENT_TYPE] {
        part(head.headers.get(name).map_or(b"", |v| v.as_bytes()));
    }
    part(body);
    let mut fingerprint = [0; 32];
    fingerprint.copy_from_slice(context.finish().as_ref());
    Ok(Some(Idempotency { key: key.to_owned(), fingerprint }))
}

fn key_of(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let mut values = headers.get_all(&IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let bytes = value.as_bytes();
    let visible = bytes.iter().all(u8::is_ascii_graphic);
    if values.next().is_some() || !visible || !(1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&bytes.len()) {
        let detail =
            format!("Idempotency-Key must be given once, 1 to {IDEMPOTENCY_KEY_BYTES_MAX} visible ASCII characters");
        return Err(Problem::invalid(detail));
    }
    value.to_str().map(Some).map_err(|_| Problem::invalid("Idempotency-Key must be ASCII"))
}

/// Principal and key of each request under way.
type Claims = HashSet<(Arc<str>, String)>;

/// The keys that are running on this node, per principal. Bounded by the requests in flight.
#[derive(Default)]
pub(crate) struct Running(Arc<Mutex<Claims>>);

/// A claim on a key; given up when dropped, also when the client goes away: the chain then answers the retry.
pub(crate) struct Claim {
    running: Arc<Mutex<Claims>>,
    entry: (Arc<str>, String),
}

impl Running {
    /// Claims a key, or says that it is running.
    pub(crate) fn claim(&self, principal: &Arc<str>, key: &str) -> Result<Claim, Problem> {
        let entry = (principal.clone(), key.to_owned());
        if !self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(entry.clone()) {
            return Err(Problem::in_progress());
        }
        Ok(Claim { running: self.0.clone(), entry })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(method: &str, path: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = hyper::Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).expect("a request").into_parts().0
    }

    #[test]
    fn the_fingerprint_tells_requests_apart() {
        let key = ("idempotency-key", "k");
        let requests = [
            (head("PUT", "/a", &[key]), &b"x"[..]),
            (head("DELETE", "/a", &[key]), b"x"),
            (head("PUT", "/b", &[key]), b"x"),
            (head("PUT", "/a", &[key]), b"y"),
            (head("PUT", "/a", &[key, ("if-match", "\"1\"")]), b"x"),
            (head("PUT", "/a", &[key, ("if-none-match", "\"1\"")]), b"x"),
            (head("PUT", "/a", &[key, ("content-type", "a/b")]), b"x"),
            (head("PUT", "/ax", &[key]), b""),
        ];
        let prints: HashSet<_> =
            requests.iter().map(|(h, b)| of(h, b).expect("well-formed").expect("a key").fingerprint).collect();
        assert_eq!(prints.len(), requests.len(), "each request has its own fingerprint");
        let traced = head("PUT", "/a", &[key, ("x-request-id", "r"), ("authorization", "z")]);
        let print = of(&traced, b"x").expect("well-formed").expect("a key").fingerprint;
        assert!(prints.contains(&print), "request id and credentials do not count");
    }

    #[test]
    fn keys_are_bounded() {
        let long = "k".repeat(IDEMPOTENCY_KEY_BYTES_MAX);
        assert!(of(&head("PUT", "/", &[("idempotency-key", &long)]), b"").is_ok(), "the longest key is taken");
        for bad in ["", "a b", "a\tb", "é", &format!("{long}k")] {
            assert!(of(&head("PUT", "/", &[("idempotency-key", bad)]), b"").is_err(), "{bad:?} should be refused");
        }
        let twice = head("PUT", "/", &[("idempotency-key", "a"), ("idempotency-key", "a")]);
        assert!(of(&twice, b"").is_err(), "two keys should be refused");
    }

    #[test]
    fn a_claim_holds_until_it_is_dropped() {
        let (running, who) = (Running::default(), Arc::<str>::from("a"));
        let claim = running.claim(&who, "k").expect("free");
        assert_eq!(running.claim(&who, "k").err().expect("taken").status().as_u16(), 409);
        assert!(running.claim(&Arc::from("b"), "k").is_ok(), "another principal's key is another key");
        drop(claim);
        assert!(running.claim(&who, "k").is_ok(), "free again");
    }
}
