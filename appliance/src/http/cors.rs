//! Which pages may call the API from a browser (Fetch Standard, CORS): those of the configured origins, and none by default.
//! Credentials are tokens that a page has to send itself; the browser's own (client certificates) are never asked for.

use hyper::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, HeaderValue, ORIGIN, VARY,
};
use hyper::http::request::Parts;
use hyper::{Method, Response, StatusCode};

use super::body::Payload;

const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, PUT, POST, DELETE");
/// What clients may send beyond what browsers always may.
const SENT: HeaderValue = HeaderValue::from_static(
    "Authorization, Content-Type, If-Match, If-None-Match, Idempotency-Key, Last-Event-ID, X-Request-Id, traceparent",
);
/// What pages may read beyond what they always may.
const READ: HeaderValue = HeaderValue::from_static(
    "ETag, Retry-After, RateLimit, RateLimit-Policy, Samovar-Block, Samovar-Transaction, WWW-Authenticate, X-Request-Id",
);
/// How long a browser may remember what it was told, in seconds.
const MAX_AGE: HeaderValue = HeaderValue::from_static("600");

/// Whether a text is an origin as browsers send it: scheme, host in lower case and, unless it is the scheme's own, port.
pub(crate) fn is_origin(text: &str) -> bool {
    let Ok(uri) = text.parse::<hyper::Uri>() else { return false };
    let (Some(scheme @ ("https" | "http")), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return false;
    };
    let own = if scheme == "https" { 443 } else { 80 };
    let host = !authority.host().is_empty() && !authority.as_str().contains('@');
    let written = format!("{scheme}://{authority}");
    host && authority.port_u16() != Some(own) && written == text && text == text.to_lowercase()
}

fn is_allowed(origin: &HeaderValue, origins: &[String]) -> bool {
    origins.iter().any(|o| o.as_bytes() == origin.as_bytes())
}

/// The answer to a browser that asks first whether a page may make a request.
pub(super) fn preflight(head: &Parts, origins: &[String]) -> Option<Response<Payload>> {
    let asks = head.method == Method::OPTIONS && head.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
    if !asks || !head.headers.get(ORIGIN).is_some_and(|origin| is_allowed(origin, origins)) {
        return None;
    }
    let mut response = Response::new(Payload::Empty);
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, METHODS);
    headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, SENT);
    headers.insert(ACCESS_CONTROL_MAX_AGE, MAX_AGE);
    Some(response)
}

/// What an answer says to the browser of a page of this origin. Nothing when no origin is configured.
pub(super) fn dress(response: &mut Response<Payload>, origin: Option<&HeaderValue>, origins: &[String]) {
    if origins.is_empty() {
        return;
    }
    let headers = response.headers_mut();
    headers.append(VARY, HeaderValue::from_static("Origin"));
    if let Some(origin) = origin.filter(|origin| is_allowed(origin, origins)) {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, READ);
    }
}

#[cfg(test)]
mod tests {
    use super::is_origin;

    #[test]
    fn origins() {
        for good in ["https://app.example", "http://localhost:3000", "https://[::1]:8444", "https://10.0.0.1:80"] {
            assert!(is_origin(good), "{good:?} is an origin");
        }
        let bad = ["*", "null", "", "app.example", "https://", "https://app.example/", "https://App.example"];
        for bad in
            bad.into_iter().chain(["https://app.example:443", "http://a:80", "https://u@a", "ftp://a", "https://a/b"])
        {
            assert!(!is_origin(bad), "{bad:?} is no origin as a browser sends it");
        }
    }
}
