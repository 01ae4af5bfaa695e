//! Limits of the listener on the real daemon: many idle connections, slow and endless clients, and a stop under load.

use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use samovar_tests::{Client, Daemon, Settings};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::raw::{Dialer, read_answer, token};

/// Idle connections that a daemon must bear.
const IDLE: usize = 10_000;
/// Descriptors of this process beside its connections.
const DESCRIPTORS_RESERVED: u64 = 200;
/// What an idle TLS connection may cost the daemon, in bytes; twice what was measured.
const IDLE_BYTES_MAX: u64 = 48 << 10;
/// Longest that anything here may take before the test calls it stuck.
const PATIENCE: Duration = Duration::from_secs(60);

async fn daemon(directory: &tempfile::TempDir, toml: &str) -> Daemon {
    let settings = Settings { toml: toml.to_owned(), ..Settings::default() };
    Daemon::create(&directory.path().join("data"), settings).await.unwrap()
}

/// Resident memory of a process, in bytes.
fn resident_bytes(id: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).expect("a process has VmRSS");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

/// Connections this process may open, at most `wanted`; says so loudly when the machine forbids them.
pub(crate) fn descriptors_for(wanted: usize) -> usize {
    let needed = wanted as u64 + DESCRIPTORS_RESERVED;
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(u64::MAX).min(needed);
    setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: limit.maximum })
        .expect("raising the soft limit");
    let possible = usize::try_from(most - DESCRIPTORS_RESERVED).expect("a small number");
    if possible < wanted {
        eprintln!(
            "NOT TESTED IN FULL: this machine allows {possible} connections, not {wanted}; raise `ulimit -Hn` to {needed}"
        );
    }
    possible
}

#[tokio::test]
async fn idle_connections_leave_honest_clients_served() {
    let idle = descriptors_for(IDLE);
    let directory = tempfile::tempdir().unwrap();
    let limits =
        format!("[limits]\nconnections = {0}\nconnections_per_address = {0}\nidle_timeout = \"10m\"\n", IDLE + 100);
    let daemon = daemon(&directory, &limits).await;
    let id = daemon.id().unwrap();
    let mut honest = daemon.client().await.unwrap();
    let before = resident_bytes(id);
    let dialer = Dialer::new(&daemon, &[b"http/1.1"]).unwrap();
    let mut held = Vec::with_capacity(idle);
    for _ in 0..idle {
        held.push(dialer.connect().await.unwrap());
    }
    let put = honest.put("/v1/keys/honest", "v").await.unwrap();
    assert_eq!(put.status, 201, "a client from before is served: {}", put.text());
    let mut late = daemon.client().await.unwrap();
    assert_eq!(late.get("/v1/keys/honest").await.unwrap().text(), "v", "so is one that comes later");
    let grown = resident_bytes(id).saturating_sub(before);
    println!("{} idle connections: + {} KiB, {} bytes each", held.len(), grown >> 10, grown / held.len() as u64);
    assert!(grown < IDLE_BYTES_MAX * held.len() as u64, "memory grew by {grown} bytes for {} connections", held.len());
}

#[tokio::test]
async fn slow_and_endless_clients_are_cut() {
    let directory = tempfile::tempdir().unwrap();
    let limits = "[limits]\nheader_timeout = \"500ms\"\nidle_timeout = \"1s\"\nbody_deadline = \"2s\"\n";
    let daemon = daemon(&directory, limits).await;
    let dialer = Dialer::new(&daemon, &[b"http/1.1"]).unwrap();
    let token = token(&daemon);

    let mut loris = dialer.connect().await.unwrap();
    loris.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: ").await.unwrap();
    let dripping = async {
        let mut byte = [0; 1];
        // Reads until the daemon ends the connection, dripping a byte of the header now and then.
        loop {
            tokio::select! {
                read = loris.read(&mut byte) => break read.unwrap_or(0),
                () = tokio::time::sleep(Duration::from_millis(100)) => drop(loris.write_all(b"x").await),
            }
        }
    };
    let read = tokio::time::timeout(PATIENCE, dripping).await.expect("a header that never ends is held for ever");
    assert_eq!(read, 0, "a header that never ends is cut without an answer");

    let mut endless = dialer.connect().await.unwrap();
    let head = format!(
        "PUT /v1/keys/k HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    endless.write_all(head.as_bytes()).await.unwrap();
    let (mut from, mut to) = tokio::io::split(endless);
    let dripping = tokio::spawn(async move {
        while to.write_all(b"1\r\nx\r\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let mut said = vec![0; 4096];
    let n =
        tokio::time::timeout(PATIENCE, from.read(&mut said)).await.expect("an endless body is held for ever").unwrap();
    dripping.abort();
    let said = String::from_utf8_lossy(&said[..n]);
    assert!(said.starts_with("HTTP/1.1 408 "), "expected 408 for a body without end, got {said}");

    let mut idle = dialer.connect().await.unwrap();
    let ended =
        tokio::time::timeout(PATIENCE, idle.read(&mut [0; 1])).await.expect("an idle connection is held for ever");
    assert_eq!(ended.unwrap_or(0), 0, "an idle connection is closed without a word");
    let mut honest = daemon.client().await.unwrap();
    assert_eq!(honest.get("/health").await.unwrap().status, 200);
    let value = honest.get("/v1/keys/k").await.unwrap();
    assert_eq!(value.status, 404, "nothing of the endless body was written: {}", value.text());
}

#[tokio::test]
async fn long_targets_and_headers_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = daemon(&directory, "[limits]\nheader_size = \"16KiB\"\nuri_size = \"4KiB\"\n").await;
    let dialer = Dialer::new(&daemon, &[b"http/1.1"]).unwrap();
    let get = |path_bytes: usize, header_bytes: usize| {
        let (path, value) = ("p".repeat(path_bytes), "x".repeat(header_bytes));
        format!("GET /{path} HTTP/1.1\r\nHost: localhost\r\nX: {value}\r\n\r\n").into_bytes()
    };
    for (path_bytes, header_bytes, status) in [(4095, 1, 404), (4096, 1, 414), (1, 15 << 10, 404), (1, 17 << 10, 431)] {
        let answer = dialer.exchange(&get(path_bytes, header_bytes), false).await.unwrap();
        assert_eq!(answer.status, status, "a path of {path_bytes} bytes and a header of {header_bytes}");
    }
}

/// What came of a writer's last request.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// The connection was closed between two requests, or refused.
    Closed,
    /// A request to write this key was sent, and the connection closed before a byte of an answer.
    Unanswered(String),
    /// An answer broke off.
    Half,
}

/// Writes one key after the other on one connection until it ends.
async fn write_until_the_end(dialer: Dialer, token: String, writer: usize) -> (Vec<String>, End) {
    let mut acknowledged = Vec::new();
    let Ok(mut stream) = dialer.connect().await else { return (acknowledged, End::Closed) };
    let mut n = 0;
    loop {
        n += 1;
        let key = format!("w{writer}/{n}");
        let request = format!(
            "PUT /v1/keys/{key} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nContent-Length: 1\r\n\r\nv"
        );
        if stream.write_all(request.as_bytes()).await.is_err() || stream.flush().await.is_err() {
            return (acknowledged, End::Closed);
        }
        match read_answer(&mut stream, false).await {
            Ok(answer) if answer.status == 201 => {
                acknowledged.push(key);
                if answer.headers.get("connection").is_some_and(|c| c == "close") {
                    return (acknowledged, End::Closed);
                }
            }
            Ok(answer) => assert_eq!(answer.status, 503, "while stopping: {}", answer.text()),
            Err(error) if error.to_string().contains("it said \"\"") => return (acknowledged, End::Unanswered(key)),
            Err(error) if error.is::<std::io::Error>() => return (acknowledged, End::Unanswered(key)),
            Err(_) => return (acknowledged, End::Half),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_answers_what_is_in_flight() {
    const WRITERS: usize = 32;
    let directory = tempfile::tempdir().unwrap();
    let mut daemon = daemon(&directory, "").await;
    let dialer = Dialer::new(&daemon, &[b"http/1.1"]).unwrap();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        writers.spawn(write_until_the_end(dialer.clone(), token(&daemon), writer));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let begun = Instant::now();
    tokio::task::block_in_place(|| daemon.stop()).unwrap();
    println!("stopped under load in {:?}", begun.elapsed());
    let ended = tokio::time::timeout(PATIENCE, writers.join_all()).await.expect("a writer hangs after the stop");
    let acknowledged: Vec<_> = ended.iter().flat_map(|(keys, _)| keys).collect();
    let unanswered = |end: &(Vec<String>, End)| match &end.1 {
        End::Unanswered(key) => Some(key.clone()),
        End::Closed | End::Half => None,
    };
    let unanswered: Vec<_> = ended.iter().filter_map(unanswered).collect();
    println!("{} writes acknowledged, {} of {WRITERS} last requests unread", acknowledged.len(), unanswered.len());
    assert!(acknowledged.len() >= WRITERS, "too little load: {} writes", acknowledged.len());
    assert!(ended.iter().all(|(_, end)| *end != End::Half), "an answer broke off");
    daemon.start().await.unwrap();
    let mut client: Client = daemon.client().await.unwrap();
    for key in acknowledged {
        let answer = client.get(&format!("/v1/keys/{key}")).await.unwrap();
        assert_eq!(answer.status, 200, "{key} was acknowledged and is gone after the stop: {}", answer.text());
    }
    for key in unanswered {
        let answer = client.get(&format!("/v1/keys/{key}")).await.unwrap();
        assert_eq!(answer.status, 404, "{key} was written, but its request got no answer: {}", answer.text());
    }
}

/// Requests whose body is on its way when the daemon is told to stop.
const IN_FLIGHT: usize = 200;

/// A write whose header the daemon has read: it asked for the body.
async fn begin_write(dialer: &Dialer, token: &str, n: usize) -> TlsStream<TcpStream> {
    let mut stream = dialer.connect().await.unwrap();
    let head = format!(
        "PUT /v1/keys/flight/{n} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nExpect: 100-continue\r\n\
         Content-Length: 5\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut said = vec![0; 64];
    let read = tokio::time::timeout(PATIENCE, stream.read(&mut said)).await.expect("no 100 Continue").unwrap();
    let said = String::from_utf8_lossy(&said[..read]);
    assert!(said.starts_with("HTTP/1.1 100 "), "write {n}: expected 100 Continue, got {said}");
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_in_flight_at_a_stop_are_answered_and_kept() {
    let directory = tempfile::tempdir().unwrap();
    let mut daemon = daemon(&directory, "").await;
    let (dialer, token) = (Dialer::new(&daemon, &[b"http/1.1"]).unwrap(), token(&daemon));
    let mut streams = Vec::new();
    for n in 0..IN_FLIGHT {
        streams.push(begin_write(&dialer, &token, n).await);
    }
    let journal = daemon.data().with_extension("log");
    let stopping = tokio::task::spawn_blocking(move || daemon.stop().map(|()| daemon));
    let begun = Instant::now();
    while !std::fs::read_to_string(&journal).unwrap().contains("stopping") {
        assert!(begun.elapsed() < PATIENCE, "the daemon does not say that it stops after SIGTERM");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for (n, stream) in streams.iter_mut().enumerate() {
        stream.write_all(b"value").await.unwrap();
        stream.flush().await.unwrap();
        let answer = tokio::time::timeout(PATIENCE, read_answer(stream, false)).await.expect("no answer");
        let answer = answer.unwrap_or_else(|e| panic!("write {n} was in flight at the stop: {e:#}"));
        assert_eq!(answer.status, 201, "write {n}: {}", answer.text());
    }
    let mut daemon = stopping.await.unwrap().unwrap();
    daemon.start().await.unwrap();
    let mut client = daemon.client().await.unwrap();
    for n in 0..IN_FLIGHT {
        let answer = client.get(&format!("/v1/keys/flight/{n}")).await.unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (200, "value"), "write {n} was acknowledged at the stop");
    }
}

/// A TLS hello as clients of before 2018 send it: `version` is the highest they know.
fn old_hello(version: [u8; 2]) -> Vec<u8> {
    let extension = |kind: u16, body: &[u8]| {
        let length = u16::try_from(body.len()).unwrap();
        [&kind.to_be_bytes(), &length.to_be_bytes(), body].concat()
    };
    let extensions = [
        // Curves x25519 and P-256, plain points, ECDSA and RSA with SHA-256.
        extension(10, &[0, 4, 0, 29, 0, 23]),
        extension(11, &[1, 0]),
        extension(13, &[0, 4, 4, 3, 4, 1]),
        extension(23, &[]),
    ]
    .concat();
    let suites = [0xc0, 0x2b, 0xc0, 0x2c, 0xc0, 0x2f, 0xc0, 0x09, 0xc0, 0x0a, 0xc0, 0x13, 0xc0, 0x14, 0x00, 0x2f];
    let mut body = [&version[..], &[7; 32], &[0], &[0, 16], &suites, &[1, 0]].concat();
    body.extend_from_slice(&u16::try_from(extensions.len()).unwrap().to_be_bytes());
    body.extend_from_slice(&extensions);
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    let handshake = [&[1], &length[1..], &body].concat();
    let length = u16::try_from(handshake.len()).unwrap().to_be_bytes();
    [&[22, 3, 1], &length[..], &handshake].concat()
}

#[tokio::test]
async fn tls_1_2_and_1_3_are_spoken_and_1_1_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = daemon(&directory, "").await;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let dialer = Dialer::of_version(&daemon, version).unwrap();
        let mut stream =
            dialer.connect().await.unwrap_or_else(|e| panic!("{:?} must be taken: {e:#}", version.version));
        assert_eq!(stream.get_ref().1.protocol_version(), Some(version.version));
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        assert_eq!(read_answer(&mut stream, false).await.unwrap().status, 200, "over {:?}", version.version);
    }
    // Record types: 22 a handshake, 21 an alert; 70 is `protocol_version` (RFC 5246, 7.2).
    for (version, record, what) in [([3, 3], 22, "1.2"), ([3, 2], 21, "1.1"), ([3, 1], 21, "1.0")] {
        let mut stream = TcpStream::connect(("127.0.0.1", daemon.port())).await.unwrap();
        stream.write_all(&old_hello(version)).await.unwrap();
        let mut said = [0; 7];
        let read = tokio::time::timeout(PATIENCE, stream.read_exact(&mut said)).await.expect("no answer to a hello");
        read.unwrap_or_else(|e| panic!("a hello of TLS {what} must be answered: {e}"));
        assert_eq!(said[0], record, "a client that knows TLS {what} at most got {said:?}");
        assert!(record == 22 || said[6] == 70, "TLS {what}: expected the alert protocol_version, got {said:?}");
    }
}
