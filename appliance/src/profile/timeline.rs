//! A recording as Chrome's trace events ("Trace Event Format"): what Perfetto and chrome://tracing open.

use anyhow::{Context as _, Result};
use samovar_node::trace::{Done, Recorded};
use serde::Serialize;
use serde_json::{Value, json};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a> {
    trace_events: Vec<Event<'a>>,
    display_time_unit: &'static str,
    other_data: Value,
}

/// One event. A span of a thread is one, complete (`X`); work that waits is a begin and an end (`b`, `e`) with an id, since
/// such spans overlap.
#[derive(Serialize)]
struct Event<'a> {
    name: &'a str,
    cat: &'static str,
    ph: &'static str,
    /// Microseconds since the recording began.
    ts: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    dur: Option<u64>,
    pid: u32,
    tid: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    args: Option<Value>,
}

/// The recording as JSON.
///
/// # Errors
/// None that is expected.
pub(super) fn render(recorded: &Recorded) -> Result<Vec<u8>> {
    let pid = std::process::id();
    let names = recorded
        .threads
        .iter()
        .map(|(thread, name)| Event { args: Some(json!({ "name": name })), ..event("thread_name", "M", pid, *thread) });
    let process = Event { args: Some(json!({ "name": "samovar" })), ..event("process_name", "M", pid, 0) };
    let trace_events = names.chain([process]).chain(recorded.spans.iter().flat_map(|s| spans(s, pid))).collect();
    let other_data = json!({ "omitted": recorded.omitted, "version": env!("CARGO_PKG_VERSION") });
    serde_json::to_vec(&Document { trace_events, display_time_unit: "ms", other_data }).context("rendering the trace")
}

fn event<'a>(name: &'a str, ph: &'static str, pid: u32, tid: u64) -> Event<'a> {
    Event { name, cat: "samovar", ph, ts: 0, dur: None, pid, tid, id: None, args: None }
}

fn spans(span: &Done, pid: u32) -> impl Iterator<Item = Event<'static>> + use<> {
    let Done { name, thread, task, begun_us, took_us } = *span;
    let at = move |ph, ts| Event { ts, id: task, ..event(name, ph, pid, thread) };
    let (first, last) = match task {
        None => (Event { dur: Some(took_us), ..at("X", begun_us) }, None),
        Some(_) => (at("b", begun_us), Some(at("e", begun_us + took_us))),
    };
    std::iter::once(first).chain(last)
}

#[cfg(test)]
mod tests {
    use samovar_node::trace;

    use super::*;

    #[test]
    fn spans_become_events() {
        let recording = trace::Recording::begin().expect("nobody else records here");
        drop(trace::span("work"));
        drop(trace::task("request"));
        let recorded = recording.finish().expect("a recording");
        let document: Value = serde_json::from_slice(&render(&recorded).expect("JSON")).expect("JSON");
        let events = document["traceEvents"].as_array().expect("events");
        let of = |name: &str| -> Vec<_> {
            events.iter().filter(|e| e["name"] == name).map(|e| e["ph"].as_str().unwrap_or("")).collect()
        };
        assert_eq!((of("work"), of("request")), (vec!["X"], vec!["b", "e"]));
        assert!(of("thread_name").contains(&"M"), "threads have names: {events:?}");
        for event in events {
            assert!(["ts", "pid", "tid"].iter().all(|field| event[field].is_u64()), "{event}");
        }
    }
}
