//! The access record: one line of the journal per request, with fields of their own. Never a header, a body or a path:
//! they hold secrets and key names; the route says what was asked.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use hyper::Method;
use hyper::body::Incoming;
use hyper::header::HeaderMap;
use hyper::http::request::Parts;

use super::answer::{Answer, RequestId, method_label};
use crate::metrics::Metrics;

/// Length of a `traceparent` of version 00.
const TRACEPARENT_BYTES: usize = 55;

/// How many records were written in the current second.
#[derive(Default)]
pub(super) struct Budget {
    /// The second, counted from the start of the process, above the count in it (32 bits each).
    spent: AtomicU64,
}

impl Budget {
    /// Whether there is room for one record more in this second, `elapsed` after the start. Two requests at the turn of a
    /// second may both open it: the bound is then off by one.
    fn take(&self, elapsed: Duration, per_second_max: u32) -> bool {
        let second = elapsed.as_secs() & u64::from(u32::MAX);
        let spent = self.spent.load(Relaxed);
        let count = if spent >> 32 == second { spent & u64::from(u32::MAX) } else { 0 };
        if count >= u64::from(per_second_max) {
            return false;
        }
        self.spent.store(second << 32 | (count + 1), Relaxed);
        true
    }
}

/// What the record needs of a request.
pub(super) struct AccessRecord {
    method: &'static str,
    request_bytes: Option<u64>,
    trace: Option<Trace>,
}

impl AccessRecord {
    pub(super) fn of(head: &Parts, body: &Incoming) -> Self {
        let method = match head.method {
            Method::OPTIONS => "OPTIONS",
            ref method => method_label(method),
        };
        Self { method, request_bytes: hyper::body::Body::size_hint(body).exact(), trace: Trace::of(&head.headers) }
    }

    /// Writes the record unless this second has had enough of them; failures are always written.
    pub(super) fn write(self, answer: &Answer, id: &RequestId, peer: IpAddr, took: Duration, records: &Records<'_>) {
        let status = answer.response.status().as_u16();
        let failed = status >= 500;
        let wanted = records.per_second_max > 0 && records.budget.take(records.elapsed, records.per_second_max);
        if !failed && !wanted {
            if records.per_second_max > 0 {
                records.metrics.access_record_omitted();
            }
            return;
        }
        let Self { method, request_bytes, trace } = self;
        let (request_id, route) = (id.as_str(), answer.route);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let answer_bytes = answer.response.body().length();
        let principal = answer.actor.as_deref();
        let (trace_id, parent_id) =
            trace.as_ref().map_or((None, None), |t| (Some(t.trace_id.as_str()), Some(t.parent_id.as_str())));
        macro_rules! record {
            ($level:ident) => {
                tracing::$level!(
                    target: "samovar::access",
                    request_id, principal, method, route, status, request_bytes, answer_bytes, micros, %peer, trace_id,
                    parent_id, "{method} {route} {status}"
                )
            };
        }
        if failed { record!(warn) } else { record!(info) }
    }
}

/// Where records go and how many may.
pub(super) struct Records<'a> {
    pub(super) budget: &'a Budget,
    /// Time since the process started.
    pub(super) elapsed: Duration,
    pub(super) per_second_max: u32,
    pub(super) metrics: &'a Metrics,
}

/// W3C Trace Context: which trace of the client's the request belongs to.
#[derive(Debug, PartialEq, Eq)]
struct Trace {
    trace_id: String,
    parent_id: String,
}

impl Trace {
    /// From exactly one well-formed `traceparent`; anything else is as if there were none (W3C Trace Context, 3.2).
    fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all("traceparent").iter();
        let (Some(value), None) = (values.next(), values.next()) else { return None };
        Self::parse(value.to_str().ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(4, '-');
        let (version, trace_id, parent_id, rest) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let hex = |text: &str, digits: usize| {
            text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        };
        let zero = |text: &str| text.bytes().all(|b| b == b'0');
        // A later version may add fields after the flags, of which nothing is known.
        let length = if version == "00" { text.len() == TRACEPARENT_BYTES } else { text.len() >= TRACEPARENT_BYTES };
        let flags =
            rest.get(..2).is_some_and(|flags| hex(flags, 2)) && matches!(rest.as_bytes().get(2), None | Some(b'-'));
        let good = hex(version, 2) && version != "ff" && hex(trace_id, 32) && hex(parent_id, 16);
        (good && length && flags && !zero(trace_id) && !zero(parent_id))
            .then(|| Self { trace_id: trace_id.to_owned(), parent_id: parent_id.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trace_contexts() {
        let (trace, parent) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
        for good in [format!("00-{trace}-{parent}-01"), format!("cc-{trace}-{parent}-01-what-comes-later")] {
            let read = Trace::parse(&good).unwrap_or_else(|| panic!("{good} is well-formed"));
            assert_eq!((read.trace_id.as_str(), read.parent_id.as_str()), (trace, parent));
        }
        for bad in [
            format!("00-{trace}-{parent}-01-more"),
            format!("00-{trace}-{parent}"),
            format!("00-{trace}-{parent}-1"),
            format!("00-{trace}-{parent}-0g"),
            format!("ff-{trace}-{parent}-01"),
            format!("00-{}-{parent}-01", trace.to_uppercase()),
            format!("00-{}-{parent}-01", "0".repeat(32)),
            format!("00-{trace}-{}-01", "0".repeat(16)),
            format!("cc-{trace}-{parent}-01x"),
            String::new(),
        ] {
            assert_eq!(Trace::parse(&bad), None, "{bad:?} is not well-formed");
        }
    }

    #[test]
    fn a_second_has_so_many_records_and_no_more() {
        let budget = Budget::default();
        let at = |ms| Duration::from_millis(ms);
        let taken = (0..10).filter(|n| budget.take(at(5000 + n), 3)).count();
        assert_eq!(taken, 3, "of ten requests in one second three are written");
        assert!(budget.take(at(6000), 3), "the next second has room again");
        assert!(!budget.take(at(6000), 0), "none when none may be");
    }
}
