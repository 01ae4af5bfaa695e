//! Request ids, and what every answer carries whatever it says.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hyper::header::{
    CONTENT_LENGTH, CONTENT_SECURITY_POLICY, HeaderMap, HeaderName, HeaderValue, REFERRER_POLICY,
    STRICT_TRANSPORT_SECURITY, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Method, Response};

use super::body::Payload;
use crate::api::problem::Problem;

static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const HSTS: HeaderValue = HeaderValue::from_static("max-age=31536000");
const NOSNIFF: HeaderValue = HeaderValue::from_static("nosniff");
/// Answers are data. Should a browser show one (a value may be a page), it runs nothing, loads nothing, is
/// framed nowhere and acts in nobody's name.
const CSP: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; sandbox",
);
const NO_REFERRER: HeaderValue = HeaderValue::from_static("no-referrer");
const SAME_ORIGIN: HeaderValue = HeaderValue::from_static("same-origin");
/// What a page from here could ask the browser for: nothing.
const PERMISSIONS: HeaderValue = HeaderValue::from_static(
    "camera=(), display-capture=(), geolocation=(), microphone=(), midi=(), payment=(), serial=(), usb=()",
);
static PERMISSIONS_POLICY: HeaderName = HeaderName::from_static("permissions-policy");
static CROSS_ORIGIN_RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

/// Longest request id that is taken from a client, in bytes.
const REQUEST_ID_BYTES_MAX: usize = 64;
/// Digits of a request id.
const HEX: &[u8; 16] = b"0123456789abcdef";

/// Id of a request: the client's `X-Request-Id` when it is well-formed, else made here. For tracing only.
#[derive(Debug, Clone)]
pub(crate) struct RequestId(HeaderValue);

impl RequestId {
    /// The id of a request with these headers.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let well_formed = |v: &&HeaderValue| {
            let bytes = v.as_bytes();
            (1..=REQUEST_ID_BYTES_MAX).contains(&bytes.len())
                && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        };
        headers.get(&X_REQUEST_ID).filter(well_formed).map_or_else(Self::fresh, |v| Self(v.clone()))
    }

    /// Unique within this process, and random enough to tell processes apart.
    fn fresh() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        static SEED: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
        let seed = *SEED.get_or_init(|| {
            let mut bytes = [0; 8];
            samovar_node::rt::fill_random(&mut bytes);
            u64::from_le_bytes(bytes)
        });
        // A bijection of the counter (multiplication by an odd number, then xor): ids never collide within a process.
        let n = NEXT.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ seed;
        let mut text = [0u8; 16];
        for (byte, pair) in n.to_be_bytes().into_iter().zip(text.chunks_exact_mut(2)) {
            pair[0] = HEX[usize::from(byte >> 4)];
            pair[1] = HEX[usize::from(byte & 0xf)];
        }
        Self(HeaderValue::from_bytes(&text).unwrap_or(HeaderValue::from_static("0")))
    }

    /// The id as text.
    pub(crate) fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or("")
    }
}

/// What a handler answers: the response, and what metrics and the access record call it.
pub(crate) struct Answer {
    /// The response.
    pub(crate) response: Response<Payload>,
    /// Pattern of the route, or `-`.
    pub(crate) route: &'static str,
    /// Id of the principal, once it is known.
    pub(crate) actor: Option<Arc<str>>,
}

impl Answer {
    /// A refusal before any route was found.
    pub(crate) fn refused(problem: Problem, id: &RequestId) -> Self {
        Self { response: problem.into_response(id.as_str()), route: "-", actor: None }
    }

    /// Adds what every answer carries; for HEAD the length stays and the body goes.
    pub(super) fn dress(self, id: &RequestId, headless: bool) -> Response<Payload> {
        let mut response = self.response;
        let body_bytes = response.body().length();
        let headers = response.headers_mut();
        headers.insert(STRICT_TRANSPORT_SECURITY, HSTS);
        headers.insert(X_CONTENT_TYPE_OPTIONS, NOSNIFF);
        headers.insert(CONTENT_SECURITY_POLICY, CSP);
        headers.insert(REFERRER_POLICY, NO_REFERRER);
        headers.insert(PERMISSIONS_POLICY.clone(), PERMISSIONS);
        headers.insert(CROSS_ORIGIN_RESOURCE_POLICY.clone(), SAME_ORIGIN);
        headers.insert(X_REQUEST_ID.clone(), id.0.clone());
        if headless {
            if let Some(n) = body_bytes.filter(|n| *n > 0) {
                headers.insert(CONTENT_LENGTH, HeaderValue::from(n));
            }
            *response.body_mut() = Payload::Empty;
        }
        response
    }
}

/// The method as a metric's label: a client must not be able to make labels.
pub(super) fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::PUT => "PUT",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}
