//! What can go wrong between a command and the node, and what the user can do about it.

use std::time::Duration;

use hyper::StatusCode;
use hyper::header::HeaderMap;

/// Longest `Retry-After` that is obeyed.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);
/// Longest piece of an answer that is shown when it is not a problem document, in characters.
const EXCERPT_CHARS_MAX: usize = 200;

/// An error of the client.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Error {
    /// The command was called wrongly.
    #[error("{0}")]
    Usage(String),
    /// Something on this machine is missing: a certificate, a token file.
    #[error("{0}")]
    Setup(String),
    /// No answer came. A write that was sent may or may not have been done.
    #[error("cannot reach {url}: {reason}")]
    Unreachable {
        /// URL of the node.
        url: String,
        /// What happened, and where it helps, what to do.
        reason: String,
    },
    /// The connection broke after a write was sent.
    #[error("the connection to {url} was lost, whether the write was done is not known: {reason}")]
    Unknown {
        /// URL of the node.
        url: String,
        /// What happened.
        reason: String,
    },
    /// The node answered with an error.
    #[error("{0}")]
    Refused(Box<Problem>),
    /// The answer is not one of Samovar's.
    #[error("{0}; is the URL that of a Samovar node of this version?")]
    Protocol(String),
}

impl Error {
    /// A connection that could not be made.
    pub(super) fn unreachable(url: &str, error: &std::io::Error) -> Self {
        let hint = match error.kind() {
            std::io::ErrorKind::ConnectionRefused => " (is the node running there? see `samovar serve`)",
            std::io::ErrorKind::InvalidData => {
                " (is --ca the ca.pem of this node, and the host in --url the one it is named by?)"
            }
            _ => "",
        };
        Self::Unreachable { url: url.to_owned(), reason: format!("{error}{hint}") }
    }

    /// A connection that broke; `written`: a write may have reached the node.
    pub(super) fn lost(url: &str, error: &hyper::Error, written: bool) -> Self {
        let mut reason = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            reason = format!("{reason}: {cause}");
            source = cause.source();
        }
        let url = url.to_owned();
        if written { Self::Unknown { url, reason } } else { Self::Unreachable { url, reason } }
    }

    /// Whether the same request may succeed a moment later.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Unknown { .. } => true,
            Self::Refused(problem) => problem.is_passing(),
            Self::Usage(_) | Self::Setup(_) | Self::Protocol(_) => false,
        }
    }

    /// The pause that the node asked for.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused(problem) => problem.retry_after,
            _ => None,
        }
    }
}

/// An error answer (RFC 9457).
#[derive(Debug, Clone)]
pub(crate) struct Problem {
    /// HTTP status.
    pub(crate) status: StatusCode,
    /// `NAME` of `urn:samovar:problem:NAME`; empty when the answer was no problem document.
    pub(crate) name: String,
    /// What happened, in words.
    pub(crate) detail: String,
    /// Id to find the request by in the node's journal.
    pub(crate) request_id: Option<String>,
    /// The whole document, `null` when the answer was none.
    pub(crate) document: serde_json::Value,
    retry_after: Option<Duration>,
}

impl Problem {
    pub(super) fn parse(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Self {
        let document: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
        let member = |name: &str| document.get(name).and_then(|v| v.as_str()).map(str::to_owned);
        let name = member("type").and_then(|t| t.strip_prefix("urn:samovar:problem:").map(str::to_owned));
        let detail = member("detail").or_else(|| member("title")).unwrap_or_else(|| {
            let text: String = String::from_utf8_lossy(body).chars().take(EXCERPT_CHARS_MAX).collect();
            if text.trim().is_empty() { status.to_string() } else { format!("{status}: {text}") }
        });
        let header = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
        let seconds = header("retry-after").and_then(|v| v.parse().ok()).map(Duration::from_secs);
        Self {
            status,
            name: name.unwrap_or_default(),
            detail: crate::output::printable(&detail),
            request_id: member("request_id").or_else(|| header("x-request-id").map(str::to_owned)),
            document,
            retry_after: seconds.map(|s| s.min(RETRY_AFTER_MAX)),
        }
    }

    fn is_passing(&self) -> bool {
        match self.status.as_u16() {
            429 | 502 | 503 | 504 => true,
            409 => self.name.contains("running") || self.name.contains("progress"),
            _ => false,
        }
    }

    fn hint(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "pass an API key that is valid on this ledger with --token-file",
            403 if self.name.starts_with("join-token") => "",
            403 => "use an API key with the right to do this (see `samovar api-key list`)",
            412 => "read the key again and repeat with its present revision",
            429 => "the node is busy; try again later",
            503 => "try again when the node is ready (see `samovar status`)",
            507 => "make room on the node's disk; writes come back by themselves",
            _ => "",
        }
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.detail)?;
        if !self.hint().is_empty() {
            write!(f, "; {}", self.hint())?;
        }
        write!(f, " (")?;
        if !self.name.is_empty() {
            write!(f, "{}, ", self.name)?;
        }
        write!(f, "{}", self.status.as_u16())?;
        if let Some(id) = &self.request_id {
            write!(f, ", request {}", crate::output::printable(id))?;
        }
        write!(f, ")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(status: u16, retry_after: Option<&str>, body: &str) -> Problem {
        let mut headers = HeaderMap::new();
        if let Some(v) = retry_after {
            headers.insert("retry-after", v.parse().expect("header"));
        }
        Problem::parse(StatusCode::from_u16(status).expect("status"), &headers, body.as_bytes())
    }

    #[test]
    fn problem_is_shown_with_what_to_do() {
        let body = r#"{"type":"urn:samovar:problem:requirement-failed","title":"t","detail":"key a has revision 7",
                       "request_id":"r1"}"#;
        let shown = problem(412, None, body).to_string();
        let expected = "key a has revision 7; read the key again and repeat with its present revision \
                        (requirement-failed, 412, request r1)";
        assert_eq!(shown, expected);
        let shown = problem(502, None, "<html>\u{1b}bad gateway").to_string();
        assert_eq!(shown, "502 Bad Gateway: <html>\u{fffd}bad gateway (502)", "foreign answers are shown harmlessly");
        assert_eq!(problem(404, None, "").to_string(), "404 Not Found (404)");
    }

    #[test]
    fn what_passes_is_repeated_when_the_node_says() {
        for (status, name, passing) in [
            (429, "too-many-requests", true),
            (503, "unavailable", true),
            (409, "idempotency-key-running", true),
            (409, "other", false),
            (412, "requirement-failed", false),
            (422, "idempotency-mismatch", false),
            (507, "no-room", false),
            (500, "internal", false),
        ] {
            let body = format!(r#"{{"type":"urn:samovar:problem:{name}"}}"#);
            let error = Error::Refused(Box::new(problem(status, None, &body)));
            assert_eq!(error.is_passing(), passing, "{status} {name}");
        }
        let after = |v| Error::Refused(Box::new(problem(503, v, "{}"))).retry_after();
        assert_eq!(after(Some("2")), Some(Duration::from_secs(2)));
        assert_eq!(after(Some("86400")), Some(RETRY_AFTER_MAX), "a day is not waited for");
        assert_eq!(after(Some("soon")), None);
    }
}
