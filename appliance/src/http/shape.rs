//! What a request must look like before anybody reads it: method, target form, host, framing. hyper lets all of these
//! through.

use hyper::header::{HOST, HeaderMap, TRANSFER_ENCODING};
use hyper::http::request::Parts;
use hyper::http::uri::Authority;
use hyper::{Method, Uri, Version};

use super::Limits;
use crate::api::problem::Problem;

/// Refuses what no route could answer safely.
pub(super) fn check(head: &Parts, limits: &Limits) -> Result<(), Problem> {
    method(&head.method)?;
    target(&head.uri, limits.uri_bytes_max)?;
    host(head)?;
    framing(head.version, &head.headers)
}

fn method(method: &Method) -> Result<(), Problem> {
    match *method {
        Method::GET | Method::HEAD | Method::PUT | Method::POST | Method::DELETE => Ok(()),
        // Known, but no route takes them: the table of routes answers 405 and names those that the path takes.
        Method::OPTIONS | Method::PATCH | Method::TRACE => Ok(()),
        _ if method.as_str() == "QUERY" => Ok(()),
        _ => Err(Problem::method_unknown()),
    }
}

fn target(uri: &Uri, bytes_max: usize) -> Result<(), Problem> {
    let bytes = uri.path_and_query().map_or(0, |p| p.as_str().len());
    if bytes > bytes_max {
        return Err(Problem::uri_too_long(bytes_max));
    }
    if !uri.path().starts_with('/') {
        return Err(Problem::invalid("the request target must be a path that begins with /"));
    }
    match uri.scheme_str() {
        None | Some("https") => Ok(()),
        Some(_) => Err(Problem::invalid("the request target names another scheme than https")),
    }
}

/// Exactly one well-formed host, and the target's authority, if it has one, equal to it (RFC 9112, 3.2; RFC 9113, 8.3.1).
fn host(head: &Parts) -> Result<(), Problem> {
    let mut named = head.headers.get_all(HOST).iter();
    let (first, second) = (named.next(), named.next());
    if second.is_some() {
        return Err(Problem::invalid("more than one Host header"));
    }
    let authority = head.uri.authority().map(Authority::as_str);
    let host = match first {
        Some(value) => value.to_str().map_err(|_| Problem::invalid("the Host header is malformed"))?,
        None if head.version >= Version::HTTP_2 => {
            authority.ok_or_else(|| Problem::invalid("neither :authority nor Host"))?
        }
        None => return Err(Problem::invalid("no Host header")),
    };
    if !is_host(host) {
        return Err(Problem::invalid("the Host header is malformed"));
    }
    if authority.is_some_and(|a| !a.eq_ignore_ascii_case(host)) {
        return Err(Problem::invalid("the Host header and the request target name different hosts"));
    }
    Ok(())
}

/// `name`, `address` or `[v6]`, with or without a port; no user, no comma, no blank.
fn is_host(text: &str) -> bool {
    let Ok(authority) = text.parse::<Authority>() else { return false };
    let (host, rest) = (authority.host(), &text[authority.host().len().min(text.len())..]);
    let port = rest.is_empty() || (rest.starts_with(':') && authority.port_u16().is_some());
    let v6 = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let name = || host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
    !host.is_empty()
        && text.starts_with(host)
        && port
        && v6.map_or_else(name, |h| h.parse::<std::net::Ipv6Addr>().is_ok())
}

/// HTTP/1 bodies are framed by one `Transfer-Encoding: chunked` or by a length and by nothing else: what another coding
/// would hide could be served as a second request. (With both, hyper drops the length and closes after the answer.)
fn framing(version: Version, headers: &HeaderMap) -> Result<(), Problem> {
    if version >= Version::HTTP_2 {
        return Ok(());
    }
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let Some(first) = codings.next() else { return Ok(()) };
    let chunked = first.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
    if version < Version::HTTP_11 || !chunked || codings.next().is_some() {
        return Err(Problem::invalid("Transfer-Encoding must be exactly `chunked`"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::is_host;

    #[test]
    fn hosts() {
        for good in ["localhost", "box-01.local:8443", "127.0.0.1", "127.0.0.1:1", "[::1]", "[::1]:8443", "a_b"] {
            assert!(is_host(good), "{good:?} is a host");
        }
        let bad =
            ["", ":80", "a b", "a,b", "user@host", "host:", "host:x", "host:99999", "[::1", "[x]", "a/b", "a%20b", "é"];
        for bad in bad {
            assert!(!is_host(bad), "{bad:?} is no host");
        }
    }
}
