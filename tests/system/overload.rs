//! Overload: the daemon held to a quarter of a core, and up to ten times as much asked of it as it can do. Only ratios are
//! asserted. Part of the long lane, alone on its machine: docs/design/overload.md.

use std::sync::Arc;
use std::time::Duration;

use samovar_tests::{ControlGroup, Daemon, Limits, Settings};

use crate::limits::descriptors_for;
use crate::open_loop::{Ask, Got, Offer, closed_loop, run};
use crate::raw::{Dialer, token};

/// Connections of the generator: enough that each has few requests a second to send.
const CONNECTIONS: u64 = 3000;
const BURST: u64 = 2;
/// Of each connection: what the daemon does not read is sent all the same.
const SEND_BUFFER_BYTES: u32 = 1 << 20;
const KEYS: u64 = 10_000;
const VALUE: [u8; 256] = [b'v'; 256];
/// Of one core, in percent.
const CPU_PERCENT: u64 = 25;
/// Of the best goodput, so much must be left at ten times the rate that gave it.
const GOODPUT_PERCENT_MIN: u64 = 80;
/// Below this part of what it offered the generator measured itself.
const SENT_PERCENT_MIN: u64 = 95;

fn puts(token: String) -> Ask {
    Arc::new(move |n, bytes| {
        let head = format!(
            "PUT /v1/keys/over/{:05} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\
             Content-Type: application/octet-stream\r\nContent-Length: {}\r\n\r\n",
            n % KEYS,
            VALUE.len()
        );
        bytes.extend_from_slice(head.as_bytes());
        bytes.extend_from_slice(&VALUE);
    })
}

fn gets(token: String) -> Ask {
    Arc::new(move |n, bytes| {
        let key = n % KEYS;
        let head =
            format!("GET /v1/keys/over/{key:05} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n");
        bytes.extend_from_slice(head.as_bytes());
    })
}

fn print(what: &str, factor: &str, offer: &Offer, got: &Got) {
    let seconds = offer.time.as_secs();
    println!(
        "RESULT overload {what} {factor}: offered {} a second, sent {} ({} %), 2xx within 1 s {} (before that in the \
         warm-up {}), later {}, 503 {}, other {}, connections closed {}; accepted p50 {:?} p99 {:?}",
        got.offered / seconds,
        got.sent / seconds,
        got.sent_percent(),
        got.good / seconds,
        got.good_before / offer.warm_up.as_secs().max(1),
        got.late / seconds,
        got.refused / seconds,
        got.other / seconds,
        got.closed,
        got.percentile(50),
        got.percentile(99),
    );
}

/// A number from the environment, for a try by hand; else what is asserted.
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |v| v.parse().unwrap_or_else(|_| panic!("{name}={v} is no whole number")))
}

async fn goodput_holds(what: &str, ask: fn(String) -> Ask) {
    let limits = Limits { cpu_percent: Some(CPU_PERCENT), ..Limits::default() };
    let Some(group) = ControlGroup::create("overload", limits) else {
        eprintln!("NOT RUN: overload {what}: no CPU controller under /sys/fs/cgroup can be written (needs root)");
        return;
    };
    let connections = setting("SAMOVAR_OVERLOAD_CONNECTIONS", CONNECTIONS);
    let possible = descriptors_for(usize::try_from(connections).unwrap());
    assert!(possible as u64 >= connections, "this machine allows {possible} connections, not {connections}");
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let most = "\"1000000/1s\"";
    let quotas = ["api", "api_per_address", "upload", "upload_per_address"].map(|k| format!("{k} = {most}\n")).concat();
    let toml =
        format!("[limits]\nconnections = 8000\nconnections_per_address = 8000\nidle_timeout = \"10m\"\n{quotas}");
    let settings = Settings { toml, ..Settings::default() };
    let daemon = Daemon::create(&directory.path().join("data"), settings).await.unwrap();
    let dialer = Dialer::new(&daemon, &[b"http/1.1"]).unwrap().with_send_buffer(SEND_BUFFER_BYTES);
    let fill: Ask = puts(token(&daemon));
    closed_loop(&dialer, 64, Duration::from_secs(4), &fill).await.unwrap();
    group.hold(daemon.id().unwrap()).expect("a process can be moved");
    let ask = ask(token(&daemon));
    let closed = closed_loop(&dialer, 256, Duration::from_secs(6), &ask).await.unwrap();
    println!("RESULT overload {what}: a quarter of a core, closed loop of 256 connections: {closed} a second");
    let seconds = setting("SAMOVAR_OVERLOAD_SECONDS", 15);
    let (warm_up, time) = (Duration::from_secs(5), Duration::from_secs(seconds));
    let offer = Offer { per_second: closed, connections, burst: BURST, warm_up, time, ask };
    // For a try by hand: the rate that was found before, and which multiples of it.
    let (given, only) = (setting("SAMOVAR_OVERLOAD_BEST", 0), setting("SAMOVAR_OVERLOAD_ONLY", 0));
    let mut found = given;
    for percent in [60, 70, 80, 90].into_iter().filter(|_| given == 0) {
        let offer = Offer { per_second: closed * percent / 100, ..offer.clone() };
        let got = run(&dialer, &offer).await.unwrap();
        print(what, &format!("rising, {percent} % of that"), &offer, &got);
        found = found.max(got.good / seconds);
    }
    let best = found;
    let mut results = Vec::new();
    for factor in [1, 2, 5, 10].into_iter().filter(|factor| only == 0 || *factor == only) {
        let offer = Offer { per_second: best * factor, ..offer.clone() };
        let before = group.throttled();
        let got = run(&dialer, &offer).await.unwrap();
        print(what, &format!("{factor} x {best}"), &offer, &got);
        println!("  throttled in {} periods", group.throttled() - before);
        results.push((factor, got));
    }
    let health = daemon.client().await.unwrap().get("/metrics").await.unwrap();
    assert_eq!(health.status, 200, "after overload");
    drop(daemon);
    for (factor, got) in results {
        let (good, sent) = (got.good / seconds, got.sent_percent());
        assert!(sent >= SENT_PERCENT_MIN, "void: at {factor} x only {sent} % of what was offered was sent");
        assert!(
            good * 100 >= best * GOODPUT_PERCENT_MIN,
            "at {factor} times the sustainable rate of {best} a second {good} are answered in time, expected at least \
             {GOODPUT_PERCENT_MIN} %; once more: cargo test -p samovar-tests --test system overload -- --ignored --nocapture"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes, and the whole machine: tests/run long"]
async fn overload_of_puts_leaves_most_of_the_goodput() {
    goodput_holds("puts", puts).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes, and the whole machine: tests/run long"]
async fn overload_of_gets_leaves_most_of_the_goodput() {
    goodput_holds("gets", gets).await;
}
