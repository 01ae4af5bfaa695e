//! Limits under load, for `tests/run long`: quotas over a minute, and what bad clients do to honest ones.

use std::time::{Duration, Instant};

use hyper::Method;
use samovar_tests::{Client, Daemon, Settings};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::limits::descriptors_for;
use crate::raw::{Dialer, token};

const PRINCIPALS: usize = 50;
/// What each principal may, a second, and what it tries.
const ALLOWED: u64 = 4;
const OFFERED: u64 = 8;
const MINUTE: Duration = Duration::from_secs(60);

/// Honest clients, how often each asks, and for how long.
const HONEST: usize = 20;
const HONEST_INTERVAL: Duration = Duration::from_millis(50);
const HONEST_TIME: Duration = Duration::from_secs(8);
/// Alone and among bad clients in turn, so often: what else the machine does meets both.
const ROUNDS: usize = 5;
/// For handshakes and closed connections to be over before honest clients are timed.
const SETTLE: Duration = Duration::from_secs(2);
const IDLE: usize = 5000;
const SLOW_SENDERS: usize = 200;
const SLOW_READERS: usize = 50;

async fn daemon(directory: &tempfile::TempDir, toml: &str) -> Daemon {
    let settings = Settings { toml: toml.to_owned(), ..Settings::default() };
    Daemon::create(&directory.path().join("data"), settings).await.unwrap()
}

/// Asks at a steady rate, whatever comes back; how many times it asked, and how many were taken.
async fn at_rate(mut client: Client, per_second: u64, time: Duration) -> (u64, u64) {
    let mut ticks = tokio::time::interval(Duration::from_millis(1000 / per_second));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (begun, mut sent, mut taken) = (Instant::now(), 0, 0);
    while begun.elapsed() < time {
        ticks.tick().await;
        let answer = client.get("/v1/me").await.unwrap();
        sent += 1;
        match answer.status {
            200 => taken += 1,
            429 => assert!(answer.headers.contains_key("retry-after"), "a refusal says when to come again"),
            other => panic!("{other}: {}", answer.text()),
        }
    }
    (sent, taken)
}

#[tokio::test]
#[ignore = "takes a minute; tests/run long runs it"]
async fn quotas_of_fifty_principals_hold_within_5_percent_over_a_minute() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = daemon(&directory, &format!("[limits]\napi = \"{ALLOWED}/1s\"\n")).await;
    let ca = daemon.data().join("ca.pem");
    let mut clients = Vec::new();
    for n in 0..PRINCIPALS {
        // The Unix socket has no quota.
        let mut admin = Client::local(&daemon.data().join("samovar.sock")).await.unwrap();
        let body = json!({ "name": format!("p{n}"), "role": "reader" }).to_string();
        let headers = [("content-type", "application/json")];
        let made = admin.request(Method::POST, "/v1/api-keys", &headers, body).await.unwrap();
        let token = made.json().unwrap()["token"].as_str().unwrap().to_owned();
        clients.push(Client::connect(daemon.port(), &ca, Some(&token)).await.unwrap());
    }
    let mut running = JoinSet::new();
    for client in clients {
        running.spawn(at_rate(client, OFFERED, MINUTE));
    }
    let all = running.join_all().await;
    let offered = OFFERED * MINUTE.as_secs() * PRINCIPALS as u64;
    let (sent, taken) = all.iter().fold((0, 0), |(s, t), (sent, taken)| (s + sent, t + taken));
    let configured = ALLOWED * MINUTE.as_secs();
    let (least, most) = (all.iter().map(|a| a.1).min().unwrap(), all.iter().map(|a| a.1).max().unwrap());
    println!(
        "RESULT quotas: {PRINCIPALS} principals, {offered} offered, {sent} sent, {taken} taken; of each {least} to {most}, \
         {configured} configured"
    );
    assert!(sent * 100 >= offered * 95, "void: only {sent} of {offered} requests were sent");
    let within = configured * 95..=configured * 105;
    assert!(
        within.contains(&(least * 100)) && within.contains(&(most * 100)),
        "of {configured} configured in a minute {least} to {most} were taken"
    );
}

/// Honest clients ask at their rate; the times of all their requests, sorted.
async fn honest(daemon: &Daemon) -> Vec<Duration> {
    let mut running = JoinSet::new();
    for _ in 0..HONEST {
        let mut client = daemon.client().await.unwrap();
        running.spawn(async move {
            let mut ticks = tokio::time::interval(HONEST_INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let (begun, mut times) = (Instant::now(), Vec::new());
            while begun.elapsed() < HONEST_TIME {
                // From when it should have been sent: waiting for the one before counts too.
                let due = ticks.tick().await.into_std();
                assert_eq!(client.get("/v1/keys/honest").await.unwrap().status, 200);
                times.push(due.elapsed());
            }
            times
        });
    }
    let mut times: Vec<_> = running.join_all().await.into_iter().flatten().collect();
    times.sort();
    times
}

fn p99(times: &[Duration]) -> Duration {
    times[times.len() * 99 / 100]
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// Opens what no honest client would: connections that say nothing, say little, or take little.
async fn bad_clients(daemon: &Daemon, idle: usize) -> JoinSet<()> {
    let dialer = Dialer::new(daemon, &[b"http/1.1"]).unwrap();
    let mut running = JoinSet::new();
    let mut silent = Vec::new();
    for _ in 0..idle {
        silent.push(dialer.connect().await.unwrap());
    }
    running.spawn(async move {
        let _silent = silent;
        std::future::pending().await
    });
    for _ in 0..SLOW_SENDERS {
        let dialer = dialer.clone();
        running.spawn(async move {
            // Cut again and again, and there again.
            loop {
                let Ok(mut stream) = dialer.connect().await else { continue };
                for byte in b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: ".iter().cycle() {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    if stream.write_all(&[*byte]).await.is_err() || stream.flush().await.is_err() {
                        break;
                    }
                }
            }
        });
    }
    let asks =
        format!("GET /v1/keys/large HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n\r\n", token(daemon));
    for _ in 0..SLOW_READERS {
        let (dialer, asks) = (dialer.clone(), asks.clone());
        running.spawn(async move {
            loop {
                let Ok(mut stream) = dialer.connect().await else { continue };
                if stream.write_all(asks.as_bytes()).await.is_err() {
                    continue;
                }
                let mut piece = [0; 1024];
                while stream.read(&mut piece).await.is_ok_and(|n| n > 0) {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        });
    }
    running
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes three minutes and a quiet machine; tests/run long runs it"]
async fn slow_and_idle_clients_do_not_double_the_p99_of_honest_ones() {
    let idle = descriptors_for(IDLE + SLOW_SENDERS + SLOW_READERS) - SLOW_SENDERS - SLOW_READERS;
    let directory = tempfile::tempdir().unwrap();
    let limits = "[limits]\nconnections = 8000\nconnections_per_address = 8000\nidle_timeout = \"10m\"\n";
    let daemon = daemon(&directory, limits).await;
    let mut client = daemon.client().await.unwrap();
    assert_eq!(client.put("/v1/keys/honest", "v").await.unwrap().status, 201);
    assert_eq!(client.put("/v1/keys/large", vec![b'x'; 1 << 20]).await.unwrap().status, 201);
    let (mut alone, mut among) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        alone.push(p99(&honest(&daemon).await));
        let bad = bad_clients(&daemon, idle).await;
        tokio::time::sleep(SETTLE).await;
        among.push(p99(&honest(&daemon).await));
        drop(bad);
        tokio::time::sleep(SETTLE).await;
    }
    println!("p99 alone {alone:?}, among bad clients {among:?}");
    let (alone, among) = (median(alone), median(among));
    let ratio = among.as_secs_f64() / alone.as_secs_f64();
    println!(
        "RESULT bad clients: median of {ROUNDS} p99 of {HONEST} honest clients {alone:?} alone, {among:?} among {idle} \
         idle, {SLOW_SENDERS} slow senders, {SLOW_READERS} slow readers; ratio {ratio:.2}"
    );
    assert!(ratio <= 2.0, "the p99 of honest clients became {ratio:.2} times what it was, at most 2 is expected");
}
