//! Looking into a running daemon: level of the journal, profiles, timeline.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use hyper::Method;
use samovar_tests::{Client, Daemon, Settings};
use serde_json::{Value, json};

const JSON: [(&str, &str); 1] = [("content-type", "application/json")];

async fn daemon(directory: &Path) -> Daemon {
    Daemon::create(&directory.join("data"), Settings::default()).await.unwrap()
}

/// Puts, from another connection, until told to end.
async fn load(daemon: &Daemon) -> tokio::task::JoinHandle<u64> {
    let mut client = daemon.client().await.unwrap();
    tokio::spawn(async move {
        let (begun, mut puts) = (Instant::now(), 0);
        while begun.elapsed() < Duration::from_secs(2) {
            let answer = client.put(&format!("/v1/keys/load/{}", puts % 100), "value").await.unwrap();
            assert!(answer.status < 300, "a put under a profile: {}", answer.text());
            puts += 1;
        }
        puts
    })
}

fn gunzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = Command::new("gzip").arg("-dc").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut input, bytes) = (gzip.stdin.take().unwrap(), bytes.to_vec());
    let writer = std::thread::spawn(move || input.write_all(&bytes));
    let mut plain = Vec::new();
    gzip.stdout.take().unwrap().read_to_end(&mut plain).unwrap();
    writer.join().unwrap().unwrap();
    assert!(gzip.wait().unwrap().success(), "gzip takes the profile");
    plain
}

/// A field of a protobuf message: number, and a varint or bytes.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let (mut value, mut shift) = (0, 0);
    loop {
        let byte = bytes[0];
        *bytes = &bytes[1..];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return value;
        }
        shift += 7;
    }
}

/// The fields of a message; panics on what is none.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Field<'_>)> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes);
        let field = match tag & 7 {
            0 => Field::Number(varint(&mut bytes)),
            2 => {
                let length = usize::try_from(varint(&mut bytes)).unwrap();
                let (field, rest) = bytes.split_at(length);
                bytes = rest;
                Field::Bytes(field)
            }
            other => panic!("wire type {other} is in no profile"),
        };
        all.push((tag >> 3, field));
    }
    all
}

/// Samples of a `profile.proto`, and the names of all functions.
fn profile(bytes: &[u8]) -> (usize, Vec<String>) {
    let plain = gunzip(bytes);
    let fields = fields(&plain);
    let strings: Vec<String> = fields
        .iter()
        .filter_map(|(number, field)| match field {
            Field::Bytes(text) if *number == 6 => Some(String::from_utf8_lossy(text).into_owned()),
            _ => None,
        })
        .collect();
    assert_eq!(strings.first().map(String::as_str), Some(""), "the first string of a profile is empty");
    let names = fields.iter().filter_map(|(number, field)| match field {
        Field::Bytes(function) if *number == 5 => self::fields(function).into_iter().find_map(|f| match f {
            (2, Field::Number(name)) => strings.get(usize::try_from(name).unwrap()).cloned(),
            _ => None,
        }),
        _ => None,
    });
    let names = names.collect();
    (fields.iter().filter(|(number, _)| *number == 2).count(), names)
}

#[tokio::test]
async fn profiles_name_our_functions_and_the_timeline_our_work() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = daemon(directory.path()).await;
    let (mut first, mut second) = (daemon.client().await.unwrap(), daemon.client().await.unwrap());

    let puts = load(&daemon).await;
    let (cpu, other) = tokio::join!(first.get("/debug/pprof/profile?seconds=1"), async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        second.get("/debug/pprof/heap").await
    });
    let (cpu, other) = (cpu.unwrap(), other.unwrap());
    assert_eq!((cpu.status, other.status), (200, 409), "one at a time: {} {}", cpu.text(), other.text());
    let (samples, names) = profile(&cpu.body);
    let ours = names.iter().filter(|name| name.contains("samovar")).count();
    assert!(samples > 0 && ours > 0, "{samples} samples, none of {names:?} is ours");
    assert!(!names.iter().any(|name| name.contains("perf_signal_handler")), "the sampler itself is left out");
    assert!(puts.await.unwrap() > 0, "requests are answered meanwhile");

    let heap = first.get("/debug/pprof/heap").await.unwrap();
    assert_eq!(heap.status, 200, "{}", heap.text());
    let (samples, names) = profile(&heap.body);
    let ours = names.iter().filter(|name| name.contains("samovar")).count();
    assert!(samples > 0 && ours > 0, "{samples} samples of the heap, none of {names:?} is ours");

    let puts = load(&daemon).await;
    let trace = first.get("/debug/pprof/trace?seconds=1").await.unwrap();
    assert_eq!(trace.status, 200, "{}", trace.text());
    let trace = trace.json().unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    for event in events {
        let whole = ["ts", "pid", "tid"].iter().all(|field| event[field].is_u64());
        assert!(whole && event["ph"].is_string() && event["name"].is_string(), "no trace event: {event}");
    }
    for name in ["/v1/keys/{key}", "apply", "raft log: fsync", "propose a block", "checkpoint", "thread_name"] {
        assert!(events.iter().any(|e| e["name"] == name), "no {name} among {} events", events.len());
    }
    puts.await.unwrap();
    let refused = first.get("/debug/pprof/profile?seconds=61").await.unwrap();
    assert_eq!(refused.status, 400, "a bound: {}", refused.text());
}

async fn set_level(client: &mut Client, body: Value) -> Value {
    let answer = client.request(Method::PUT, "/v1/log-level", &JSON, body.to_string()).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json().unwrap()
}

#[tokio::test]
async fn the_level_of_the_journal_changes_and_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = daemon(directory.path()).await;
    let mut client = daemon.client().await.unwrap();
    let level = || {
        let command = daemon.command(&["log-level", "--output", "json"]).unwrap().output().unwrap();
        serde_json::from_slice::<Value>(&command.stdout).unwrap_or_else(|e| panic!("{e}: {command:?}"))
    };
    assert_eq!(level()["directives"], Value::Null);

    let changed = daemon.command(&["log-level", "error", "--for", "1h"]).unwrap().output().unwrap();
    let said = String::from_utf8_lossy(&changed.stdout).into_owned();
    assert!(changed.status.success() && said.contains("takes `error` until"), "{said} {changed:?}");
    let status = client.get("/v1/status").await.unwrap().json().unwrap();
    assert_eq!(status["log_level"]["directives"], "error", "the status says it: {status}");
    let lines = |daemon: &Daemon| daemon.log().lines().filter(|l| l.contains("samovar::access")).count();
    let before = lines(&daemon);
    for _ in 0..10 {
        client.get("/v1/me").await.unwrap();
    }
    assert_eq!(lines(&daemon), before, "no access records at `error`");
    assert!(daemon.log().contains("level of the journal is changed"), "the change itself is told");

    let answer = set_level(&mut client, json!({ "directives": "info", "for_s": 1 })).await;
    assert_eq!((answer["directives"].as_str(), answer["configured"].as_str()), (Some("info"), Some("info")));
    let begun = Instant::now();
    while level()["directives"] != Value::Null {
        assert!(begun.elapsed() < Duration::from_secs(60), "the change does not end by itself");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(daemon.log().contains("again as configured"), "the end is told");
    let before = lines(&daemon);
    client.get("/v1/me").await.unwrap();
    assert!(lines(&daemon) > before, "access records are written again");
    for bad in [json!({ "directives": "degub" }), json!({ "directives": "debug", "for_s": 86_401 })] {
        let answer = client.request(Method::PUT, "/v1/log-level", &JSON, bad.to_string()).await.unwrap();
        assert_eq!(answer.status, 422, "{bad}: {}", answer.text());
    }
}
