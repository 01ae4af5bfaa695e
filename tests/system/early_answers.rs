//! Answers that come before a body was read reach a client that sends all of it first (RFC 9112, 9.6), and nobody gains by
//! sending for ever.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request};
use hyper_util::rt::{TokioExecutor, TokioIo};
use samovar_tests::{Daemon, Settings};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;

use crate::raw::{Dialer, read_answer, token};

/// More than any socket buffers between the two, so that the client still sends when the answer is made.
const BODY_BYTES: usize = 12 << 20;
/// For each kind of refusal.
const ROUNDS: usize = 15;
/// Longest wait for an answer, or for a connection to be closed.
const PATIENCE: Duration = Duration::from_secs(60);
/// Of the daemon: how long and how much it reads on, and on how many connections.
const LINGER_TIME: Duration = Duration::from_secs(10);
const LINGER_BYTES_MAX: usize = 64 << 20;
const LINGERING_MAX: usize = 64;

async fn daemon(directory: &tempfile::TempDir, toml: &str) -> Daemon {
    let settings = Settings { toml: toml.to_owned(), ..Settings::default() };
    Daemon::create(&directory.path().join("data"), settings).await.unwrap()
}

/// An API key with a role, and how it is written in a header.
async fn key(daemon: &Daemon, role: &str) -> String {
    let body = json!({ "name": role, "role": role }).to_string();
    let headers = [("content-type", "application/json")];
    let mut client = daemon.client().await.unwrap();
    let made = client.request(Method::POST, "/v1/api-keys", &headers, body).await.unwrap();
    format!("Authorization: Bearer {}\r\n", made.json().unwrap()["token"].as_str().unwrap())
}

/// A request that announces its length, or comes in chunks.
fn message(start: &str, headers: &str, chunked: bool) -> Vec<u8> {
    let framing =
        if chunked { "Transfer-Encoding: chunked".to_owned() } else { format!("Content-Length: {BODY_BYTES}") };
    let mut bytes = format!("{start} HTTP/1.1\r\nHost: localhost\r\n{headers}{framing}\r\n\r\n").into_bytes();
    if chunked {
        for _ in 0..BODY_BYTES >> 16 {
            bytes.extend_from_slice(b"10000\r\n");
            bytes.resize(bytes.len() + (1 << 16), b'x');
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"0\r\n\r\n");
    } else {
        bytes.resize(bytes.len() + BODY_BYTES, b'x');
    }
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_reaches_who_sends_the_whole_body_first() {
    let directory = tempfile::tempdir().unwrap();
    let mut daemon = daemon(&directory, "").await;
    let admin = format!("Authorization: Bearer {}\r\n", token(&daemon));
    let reader = key(&daemon, "reader").await;
    let dialer = Dialer::new(&daemon, &[b"http/1.1"]).unwrap();
    let (value, blob) = ("PUT /v1/keys/a", "POST /v1/blobs");
    let mut kinds = vec![
        (413, value, admin.clone(), false),
        (413, value, admin.clone(), true),
        (401, value, "Authorization: Bearer samovar_none\r\n".to_owned(), false),
        (401, blob, String::new(), true),
        (403, value, reader, false),
        (404, "PUT /v1/nothing", admin.clone(), false),
        (405, "POST /v1/status", admin.clone(), false),
        (400, value, format!("{admin}If-Match: nonsense\r\n"), false),
    ];
    refused(&dialer, &kinds).await;
    daemon.stop().unwrap();
    daemon.configure("[store]\nreserve = \"900000GiB\"\n");
    daemon.start().await.unwrap();
    kinds = vec![(507, blob, admin.clone(), false), (507, blob, admin.clone(), true)];
    refused(&dialer, &kinds).await;
    daemon.stop().unwrap();
    daemon.configure("[limits]\nupload = \"1/10m\"\n");
    daemon.start().await.unwrap();
    daemon.client().await.unwrap().put("/v1/keys/a", "v").await.unwrap();
    kinds = vec![(429, value, admin.clone(), false), (429, blob, admin, true)];
    refused(&dialer, &kinds).await;
}

/// Each kind again and again: it is a matter of chance whether an answer is lost.
async fn refused(dialer: &Dialer, kinds: &[(u16, &str, String, bool)]) {
    for (status, start, headers, chunked) in kinds {
        let bytes = message(start, headers, *chunked);
        for round in 0..ROUNDS {
            let what = format!("{start}, {status} expected, chunked: {chunked}, round {round} of {ROUNDS}");
            let mut stream = dialer.connect().await.unwrap();
            let exchange = async {
                stream.write_all(&bytes).await.unwrap_or_else(|e| panic!("{what}: sending the body: {e}"));
                stream.flush().await.unwrap_or_else(|e| panic!("{what}: sending the body: {e}"));
                read_answer(&mut stream, false).await.unwrap_or_else(|e| panic!("{what}: the answer is lost: {e:#}"))
            };
            let answer = tokio::time::timeout(PATIENCE, exchange).await.unwrap_or_else(|_| panic!("{what}: no answer"));
            assert_eq!(answer.status, *status, "{what}: {}", answer.text());
        }
    }
}

/// Sends after a refusal until it cannot; how much, and how long that took.
async fn sends_on(dialer: Dialer, pause: Duration) -> (usize, Duration) {
    let mut stream = dialer.connect().await.unwrap();
    let head = "PUT /v1/keys/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    assert_eq!(read_answer(&mut stream, false).await.unwrap().status, 401);
    let (begun, mut sent) = (Instant::now(), 0);
    let piece = vec![b'x'; if pause.is_zero() { 64 << 10 } else { 1 }];
    let sending = async {
        while stream.write_all(&piece).await.is_ok() && stream.flush().await.is_ok() {
            sent += piece.len();
            tokio::time::sleep(pause).await;
        }
    };
    let _ = tokio::time::timeout(PATIENCE, sending).await;
    (sent, begun.elapsed())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_sends_on_for_ever_is_closed_by_amount_time_and_number() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = daemon(&directory, "").await;
    let dialer = Dialer::new(&daemon, &[b"http/1.1"]).unwrap();
    let (sent, _) = sends_on(dialer.clone(), Duration::ZERO).await;
    // Socket buffers of both ends come on top.
    assert!((LINGER_BYTES_MAX / 2..LINGER_BYTES_MAX * 2).contains(&sent), "{sent} bytes were taken after a refusal");

    // One byte now and then: at most so many are waited for, and no longer than that.
    let mut running = JoinSet::new();
    for _ in 0..3 * LINGERING_MAX {
        running.spawn(sends_on(dialer.clone(), Duration::from_millis(200)));
    }
    let times: Vec<Duration> = running.join_all().await.into_iter().map(|(_, time)| time).collect();
    let held = times.iter().filter(|time| **time > LINGER_TIME / 2).count();
    assert!(held <= LINGERING_MAX, "{held} of {} connections were held, at most {LINGERING_MAX} expected", times.len());
    assert!(held > 0, "none of them was waited for");
    let longest = times.iter().max().unwrap();
    assert!(*longest < LINGER_TIME * 2, "one was held for {longest:?}");
    assert_eq!(daemon.client().await.unwrap().get("/health").await.unwrap().status, 200);
}

/// In HTTP/2 the stream alone ends (RST_STREAM with NO_ERROR), and the connection serves on.
#[tokio::test]
async fn in_http2_a_refusal_ends_its_stream_alone() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = daemon(&directory, "").await;
    let stream = Dialer::new(&daemon, &[b"h2"]).unwrap().connect().await.unwrap();
    let (mut send, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let running = tokio::spawn(connection);
    for round in 0..ROUNDS {
        for (status, authorized) in [(401, false), (413, true)] {
            let mut request = Request::builder().method(Method::PUT).uri("https://localhost/v1/keys/a");
            if authorized {
                request = request.header("authorization", format!("Bearer {}", token(&daemon)));
            }
            let body = Full::new(Bytes::from(vec![b'x'; BODY_BYTES]));
            let answer = tokio::time::timeout(PATIENCE, send.send_request(request.body(body).unwrap())).await;
            let answer = answer.expect("an answer in time").unwrap_or_else(|e| panic!("round {round}, {status}: {e}"));
            assert_eq!(answer.status().as_u16(), status, "round {round}");
            let body = answer.into_body().collect().await.unwrap_or_else(|e| panic!("round {round}, {status}: {e}"));
            assert!(body.to_bytes().starts_with(b"{"), "round {round}: the problem document");
        }
    }
    assert!(!running.is_finished(), "the connection serves on");
    running.abort();
}

/// A header that is refused, while more of it is on its way.
#[tokio::test]
async fn a_header_that_is_too_large_is_told_so() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = daemon(&directory, "").await;
    let dialer = Dialer::new(&daemon, &[b"http/1.1"]).unwrap();
    let bytes = format!("GET /health HTTP/1.1\r\nHost: localhost\r\nX-Large: {}\r\n\r\n", "x".repeat(8 << 20));
    for round in 0..ROUNDS {
        let mut stream = dialer.connect().await.unwrap();
        stream.write_all(bytes.as_bytes()).await.unwrap_or_else(|e| panic!("round {round}: sending the header: {e}"));
        stream.flush().await.unwrap_or_else(|e| panic!("round {round}: sending the header: {e}"));
        let mut said = Vec::new();
        let read = tokio::time::timeout(PATIENCE, stream.read_buf(&mut said)).await.expect("an answer in time");
        read.unwrap_or_else(|e| panic!("round {round}: the answer is lost: {e}"));
        let said = String::from_utf8_lossy(&said);
        assert!(said.starts_with("HTTP/1.1 431 "), "round {round}: {said}");
    }
}
