//! Nodes on small machines, for `tests/run long`: one that joins a ledger of many times its memory, three with half a core
//! each. Control groups hold them; the load comes from outside.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use samovar_tests::cluster::{begin, until_all_vote};
use samovar_tests::{ControlGroup, Daemon, Limits, Settings};
use tokio::task::JoinSet;

use crate::open_loop::{Ask, Got, Offer, closed_loop, run};
use crate::raw::Dialer;

const MIB: u64 = 1 << 20;
const NODES: usize = 3;
/// Connections to each node.
const CONNECTIONS: u64 = 16;
const KEYS: u64 = 10_000;
const VALUE_BYTES: usize = 256;
/// Of what was to be sent, so much must have been: else the generator measured itself.
const SENT_PERCENT_MIN: u64 = 95;

/// The memory of the node that joins, and how many times of it the ledger holds.
const JOINER_MIB: u64 = 128;
const TIMES: u64 = 10;
/// Values of the size that one may have at most.
const LARGE_BYTES: usize = 1 << 20;
/// Clients that write them.
const WRITERS: u64 = 8;
const JOIN_PUTS: u64 = 2_000;
/// Times of this long are compared with those before the join.
const WINDOW: Duration = Duration::from_secs(10);
const JOIN_WITHIN: Duration = Duration::from_secs(900);
/// How many times what it was the p95 may be while a node joins.
const P95_TIMES_MAX: f64 = 3.0;

const HALF_A_CORE: u64 = 50;
const SMALL_MIB: u64 = 256;
const SMALL_PUTS: u64 = 500;
const SMALL_TIME: Duration = Duration::from_secs(60);
/// For how long each node is asked for all that it can do.
const BITING: Duration = Duration::from_secs(4);
/// How often, if the machine has no time for it to use up what it may.
const BITES_MAX: usize = 4;
/// Connections that ask.
const BITERS: u64 = 64;
const SMALL_P95_MAX: Duration = Duration::from_millis(20);

fn puts(token: String) -> Ask {
    Arc::new(move |n, bytes| {
        let head = format!(
            "PUT /v1/keys/held/{:05} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\
             Content-Type: application/octet-stream\r\nContent-Length: {VALUE_BYTES}\r\n\r\n",
            n % KEYS,
        );
        bytes.extend_from_slice(head.as_bytes());
        bytes.extend_from_slice(&[b'v'; VALUE_BYTES]);
    })
}

/// Lists of 1,000 keys: much work for a node, and little for who asks.
fn lists(token: String) -> Ask {
    Arc::new(move |_, bytes| {
        let head = "GET /v1/keys?prefix=held/&limit=1000 HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer ";
        bytes.extend_from_slice(format!("{head}{token}\r\n\r\n").as_bytes());
    })
}

/// So many puts a second, spread over all nodes, for so long.
async fn offered(dialers: &[Dialer], ask: &Ask, per_second: u64, time: Duration) -> Got {
    let mut running = JoinSet::new();
    for dialer in dialers {
        let dialer = dialer.clone();
        let per_second = per_second.div_ceil(dialers.len() as u64);
        let (warm_up, ask) = (Duration::ZERO, ask.clone());
        let offer = Offer { per_second, connections: CONNECTIONS, burst: 1, warm_up, time, ask };
        running.spawn(async move { run(&dialer, &offer).await.unwrap() });
    }
    let mut all = Got::default();
    while let Some(got) = running.join_next().await {
        all.add(got.unwrap());
    }
    all.times.sort_unstable();
    all
}

/// The same until it is told to end, one window after the other without a gap.
async fn windows(dialers: Vec<Dialer>, ask: Ask, per_second: u64, over: Arc<AtomicBool>) -> Vec<Got> {
    let mut running = Vec::new();
    while !over.load(Relaxed) {
        let (dialers, ask) = (dialers.clone(), ask.clone());
        running.push(tokio::spawn(async move { offered(&dialers, &ask, per_second, WINDOW).await }));
        tokio::time::sleep(WINDOW).await;
    }
    let mut all = Vec::new();
    for window in running {
        all.push(window.await.unwrap());
    }
    all
}

fn total(windows: &[Got]) -> Got {
    let mut all = Got::default();
    for window in windows {
        all.add(window.clone());
    }
    all.times.sort_unstable();
    all
}

fn said(got: &Got) -> String {
    format!(
        "{} offered, {} sent, {} answered in a second, {} later, {} refused, {} else, {} connections closed, p50 {:?}, p95 \
         {:?}, p99 {:?}",
        got.offered,
        got.sent,
        got.good,
        got.late,
        got.refused,
        got.other,
        got.closed,
        got.percentile(50),
        got.percentile(95),
        got.percentile(99)
    )
}

fn nodes_in(directory: &Path, settings: impl Fn(usize) -> Settings) -> Vec<(std::path::PathBuf, Settings)> {
    (0..NODES).map(|n| (directory.join(format!("box-{:02}", n + 1)), settings(n))).collect()
}

fn dialers(nodes: &[Daemon]) -> Vec<Dialer> {
    nodes.iter().map(|node| Dialer::new(node, &[b"http/1.1"]).unwrap()).collect()
}

fn token(nodes: &[Daemon]) -> String {
    crate::raw::token(&nodes[0])
}

/// Writes values of the largest size until the ledger holds so many MiB of them.
async fn fill(nodes: &[Daemon], mib: u64) {
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let mut client = nodes[usize::try_from(writer).unwrap() % nodes.len()].client().await.unwrap();
        writers.spawn(async move {
            let mut value = vec![0; LARGE_BYTES];
            for n in (writer..mib).step_by(usize::try_from(WRITERS).unwrap()) {
                rand::RngCore::fill_bytes(&mut rand::thread_rng(), &mut value);
                loop {
                    let put = client.put(&format!("/v1/keys/large/{n:05}"), value.clone()).await.unwrap();
                    if put.status == 201 {
                        break;
                    }
                    assert!(put.status == 503 || put.status == 429, "{}: {}", put.status, put.text());
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        });
    }
    while let Some(written) = writers.join_next().await {
        written.unwrap();
    }
}

/// Whether a node votes, as the cluster says.
async fn votes(node: &Daemon, name: &str) -> bool {
    let Ok(mut client) = node.client().await else { return false };
    let cluster = client.get("/v1/cluster").await.unwrap().json().unwrap();
    let all = cluster["nodes"].as_array().unwrap();
    all.iter().any(|n| n["name"] == name && n["voter"] == true && n["live"] == true)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes, a release binary and a quiet machine; tests/run long runs it"]
async fn a_node_of_128_mib_joins_a_ledger_of_ten_times_that_while_clients_write() {
    let limits = Limits { memory_bytes: Some(JOINER_MIB * MIB), ..Limits::default() };
    let Some(group) = ControlGroup::create("joiner", limits) else {
        eprintln!("NOT RUN: a node held to {JOINER_MIB} MiB: no memory controller can be used here (needs root)");
        return;
    };
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let mut nodes = begin(nodes_in(directory.path(), |_| Settings::unbounded())).await.unwrap();
    let begun = Instant::now();
    fill(&nodes, JOINER_MIB * TIMES).await;
    println!("{} MiB of values written in {:.0?}", JOINER_MIB * TIMES, begun.elapsed());
    // What the filling left to be written is no part of what is compared.
    rustix::fs::sync();
    tokio::time::sleep(WINDOW).await;
    let ask = puts(token(&nodes));
    let before = offered(&dialers(&nodes), &ask, JOIN_PUTS, 3 * WINDOW).await;
    println!("before: {}", said(&before));

    let over = Arc::new(AtomicBool::new(false));
    let load = tokio::spawn(windows(dialers(&nodes), ask, JOIN_PUTS, Arc::clone(&over)));
    tokio::time::sleep(Duration::from_secs(2)).await;
    let file = directory.path().join("token");
    let made = nodes[0].command(&["node", "token", "--save"]).unwrap().arg(&file).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let settings = Settings { wrapper: group.wrapper(), ..Settings::unbounded() };
    let begun = Instant::now();
    let mut joiner = nodes[0].join_with(&directory.path().join("box-04"), "box-04", &file, settings).unwrap();
    joiner.start_unready().await.unwrap();
    let process = joiner.id();
    while !votes(&nodes[0], "box-04").await {
        let ended = joiner.ended().unwrap();
        assert!(ended.is_none(), "the node that joins ended ({ended:?}): {}", joiner.log());
        assert!(begun.elapsed() < JOIN_WITHIN, "no voter after {:?}: {}", begun.elapsed(), joiner.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let took = begun.elapsed();
    over.store(true, Relaxed);
    let during = load.await.unwrap();
    for (number, window) in during.iter().enumerate() {
        println!("window {number} of {WINDOW:?}: {}", said(window));
    }
    assert_eq!(joiner.id(), process, "the same process from its start to its promotion");
    nodes.push(joiner);
    until_all_vote(&nodes).await.unwrap();
    let all = total(&during);
    let times = |got: &Got| got.percentile(95).as_secs_f64() / before.percentile(95).as_secs_f64();
    let worst = during.iter().map(times).fold(0.0, f64::max);
    println!(
        "RESULT joiner: {JOINER_MIB} MiB of memory (most used {} MiB, {} times at the limit), {} MiB of values, {JOIN_PUTS} puts a \
         second; a voter after {:.1} s; p95 {:?} before, {:?} meanwhile, {:.2} times, {worst:.2} in the worst {WINDOW:?}; {} of {} \
         answered within a second",
        group.memory_most() / MIB,
        group.memory_limited(),
        JOINER_MIB * TIMES,
        took.as_secs_f64(),
        before.percentile(95),
        all.percentile(95),
        times(&all),
        all.good,
        all.offered,
    );
    assert!(group.memory_limited() > 0, "void: the limit of {JOINER_MIB} MiB was never reached");
    for (what, got) in [("before", &before), ("meanwhile", &all)] {
        assert!(got.sent_percent() >= SENT_PERCENT_MIN, "void: {what} only {} % was sent", got.sent_percent());
    }
    assert!(
        times(&all) <= P95_TIMES_MAX,
        "at most {P95_TIMES_MAX} times the p95 of before was expected; once more: {AGAIN} joins"
    );
    drop(nodes);
}

const AGAIN: &str = "cargo test -p samovar-tests --test system cluster::held -- --ignored --nocapture";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute, a release binary and a quiet machine; tests/run long runs it"]
async fn three_nodes_of_half_a_core_each_take_500_puts_a_second() {
    let limits = Limits { cpu_percent: Some(HALF_A_CORE), memory_bytes: Some(SMALL_MIB * MIB) };
    let groups: Option<Vec<_>> = (0..NODES).map(|n| ControlGroup::create(&format!("half-{n}"), limits)).collect();
    let Some(groups) = groups else {
        eprintln!("NOT RUN: nodes of half a core: no controllers that can be used here (needs root)");
        return;
    };
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let held = |n: usize| Settings { wrapper: groups[n].wrapper(), ..Settings::unbounded() };
    let nodes = begin(nodes_in(directory.path(), held)).await.unwrap();
    let throttled = || groups.iter().map(ControlGroup::throttled).collect::<Vec<_>>();
    let (ask, dialers) = (puts(token(&nodes)), dialers(&nodes));
    // Handshakes and the first blocks of a new cluster.
    offered(&dialers, &ask, SMALL_PUTS, WINDOW).await;
    let begun = throttled();
    let got = offered(&dialers, &ask, SMALL_PUTS, SMALL_TIME).await;
    let meanwhile = throttled();
    println!("{}", said(&got));
    // That the limit is there: each of them is asked for more than half a core can do.
    let (mut most, ask) = (Vec::new(), lists(token(&nodes)));
    for (dialer, group) in dialers.iter().zip(&groups) {
        let before = group.throttled();
        for _ in 0..BITES_MAX {
            most.push(closed_loop(dialer, BITERS, BITING, &ask).await.unwrap());
            if group.throttled() > before {
                break;
            }
        }
    }
    let bitten = throttled();
    println!(
        "RESULT half a core and {SMALL_MIB} MiB for each of {NODES} nodes: {} puts a second offered, {} of {} answered within a second, \
         p50 {:?}, p95 {:?}, p99 {:?}; periods throttled at {begun:?} before, {meanwhile:?} after, {bitten:?} after {most:?} lists a \
         second in a closed loop; most memory {:?} MiB",
        SMALL_PUTS,
        got.good,
        got.offered,
        got.percentile(50),
        got.percentile(95),
        got.percentile(99),
        groups.iter().map(|g| g.memory_most() / MIB).collect::<Vec<_>>(),
    );
    assert!(
        bitten.iter().zip(&meanwhile).all(|(now, then)| now > then),
        "void: nodes that are asked for more than half a core were not throttled: {meanwhile:?}, {bitten:?}"
    );
    assert!(got.sent_percent() >= SENT_PERCENT_MIN, "void: only {} % was sent", got.sent_percent());
    assert_eq!(got.good, got.offered, "every put is answered within a second");
    assert!(got.percentile(95) < SMALL_P95_MAX, "a p95 under {SMALL_P95_MAX:?} was expected; once more: {AGAIN}");
    drop(nodes);
}
