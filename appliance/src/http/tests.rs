//! Every row of "what hyper and rustls do not stop by themselves", over real TLS sockets.

use std::net::SocketAddr;
use std::time::Instant;

use bytes::Bytes;
use hyper::{Response, StatusCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::*;
use crate::config::Config;

/// Longest time that a test waits for something that must happen.
const PATIENCE: Duration = Duration::from_secs(10);
/// A body that no socket buffer swallows.
const LARGE_BYTES: usize = 16 << 20;
static LARGE: std::sync::LazyLock<Bytes> = std::sync::LazyLock::new(|| Bytes::from(vec![b'x'; LARGE_BYTES]));

struct Fixture {
    address: SocketAddr,
    connector: fn(&[&[u8]], &std::path::Path) -> tokio_rustls::TlsConnector,
    data: tempfile::TempDir,
    metrics: Arc<Metrics>,
    stop: watch::Sender<bool>,
    running: tokio::task::JoinHandle<()>,
}

/// Limits that pass within a test.
fn quick() -> Limits {
    let mut limits = Config::parse("test", "").expect("defaults").limits;
    limits.handshake_timeout = Duration::from_millis(400);
    limits.header_timeout = Duration::from_millis(400);
    limits.idle_timeout = Duration::from_millis(900);
    limits.body_deadline = Duration::from_millis(700);
    limits.request_deadline = Duration::from_millis(500);
    limits.write_timeout = Duration::from_millis(700);
    limits.response_deadline = Duration::from_millis(2500);
    limits.stop_deadline = Duration::from_secs(2);
    limits
}

/// `/echo` answers its body, `/large` 16 MiB, `/slow` after 300 ms, `/never` never, as does `/swallow` once it has read its body, anything
/// else its path.
fn handler() -> Handler {
    Arc::new(|asked: Asked| {
        let answer = Box::pin(async move {
            let answered = |bytes: Bytes| Response::new(Payload::Full(bytes));
            let response = match asked.head.uri.path() {
                "/echo" => match asked.body.read(64 << 10).await {
                    Ok(bytes) => answered(bytes),
                    Err(problem) => problem.into_response(asked.id.as_str()),
                },
                "/large" => answered(LARGE.clone()),
                "/slow" => {
                    tokio::time::sleep(Duration::from_millis(300)).await;
                    answered(Bytes::from_static(b"slow"))
                }
                "/never" => std::future::pending().await,
                "/swallow" => {
                    asked.body.read(64 << 10).await.expect("a body");
                    std::future::pending().await
                }
                path => answered(Bytes::from(path.to_owned())),
            };
            Answer { response, route: "/test", actor: None }
        });
        Reply { route: "/test", answer }
    })
}

async fn serve(limits: Limits) -> Fixture {
    let data = tempfile::tempdir().expect("a directory");
    let local = std::net::IpAddr::from([127, 0, 0, 1]);
    let secrets = crate::secrets::Secrets::clear(data.path());
    crate::tls::make(&secrets, &crate::tls::Subject::of("test", local, &[])).expect("certificates");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("an address");
    let tls = Live::shared(crate::tls::load(&secrets).expect("TLS"));
    let metrics = Arc::new(Metrics::new(data.path()));
    let (stop, stop_seen) = watch::channel(false);
    let limits = Live::new(limits);
    let server = Server { listener, local: None, tls, limits, handler: handler(), metrics: metrics.clone() };
    let running = tokio::spawn(server.run(stop_seen));
    Fixture { address, connector, data, metrics, stop, running }
}

/// A TLS client that trusts the CA in a data directory.
pub(crate) fn connector(alpn: &[&[u8]], data: &std::path::Path) -> tokio_rustls::TlsConnector {
    use rustls::pki_types::pem::PemObject as _;
    let mut roots = rustls::RootCertStore::empty();
    let ca = rustls::pki_types::CertificateDer::from_pem_file(data.join("ca.pem")).expect("ca.pem");
    roots.add(ca).expect("a CA");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    tokio_rustls::TlsConnector::from(Arc::new(config))
}

impl Fixture {
    async fn connect(&self, alpn: &[&[u8]]) -> TlsStream<TcpStream> {
        let socket = TcpStream::connect(self.address).await.expect("connected");
        let name = rustls::pki_types::ServerName::try_from("localhost").expect("a name");
        (self.connector)(alpn, self.data.path()).connect(name, socket).await.expect("handshake")
    }

    /// Sends bytes on a fresh HTTP/1.1 connection and reads until the server closes it.
    async fn exchange(&self, request: &[u8]) -> String {
        let mut stream = self.connect(&[b"http/1.1"]).await;
        stream.write_all(request).await.expect("sent");
        read_to_close(&mut stream).await
    }

    async fn answers(&self) -> bool {
        self.exchange(b"GET /alive HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.contains("/alive")
    }
}

async fn read_to_close(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut all = Vec::new();
    let read = tokio::time::timeout(PATIENCE, async {
        let mut buffer = [0; 16 << 10];
        // A connection that was cut ends without close_notify: that is an end too.
        while let Ok(n @ 1..) = stream.read(&mut buffer).await {
            all.extend_from_slice(&buffer[..n]);
        }
    });
    read.await.unwrap_or_else(|_| panic!("the server must close the connection within {PATIENCE:?}"));
    String::from_utf8_lossy(&all).into_owned()
}

fn status_of(answer: &str) -> &str {
    answer.get(9..12).unwrap_or("none")
}

#[tokio::test]
async fn every_answer_carries_the_security_headers_and_its_id() {
    let fixture = serve(quick()).await;
    let close = "Host: localhost\r\nConnection: close\r\n";
    let own = fixture.exchange(format!("GET /a HTTP/1.1\r\n{close}X-Request-Id: my.id-1_\r\n\r\n").as_bytes()).await;
    assert!(own.contains("x-request-id: my.id-1_\r\n"), "a well-formed id comes back: {own}");
    assert!(own.contains("strict-transport-security: ") && own.contains("x-content-type-options: nosniff"), "{own}");
    for bad in ["a b", "<script>", &"x".repeat(65)] {
        let other = fixture.exchange(format!("GET /a HTTP/1.1\r\n{close}X-Request-Id: {bad}\r\n\r\n").as_bytes()).await;
        assert!(!other.contains(&format!("x-request-id: {bad}\r")), "{bad:?} must not come back: {other}");
        assert!(other.contains("x-request-id: "), "another id is made: {other}");
    }
    let head = fixture.exchange(format!("HEAD /abc HTTP/1.1\r\n{close}\r\n").as_bytes()).await;
    assert!(head.contains("content-length: 4\r\n") && head.ends_with("\r\n\r\n"), "HEAD has length, no body: {head}");
}

#[tokio::test]
async fn malformed_requests_are_refused() {
    let fixture = serve(quick()).await;
    let long_target = format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "a".repeat(9 << 10));
    let long_method = format!("{} / HTTP/1.1\r\nHost: localhost\r\n\r\n", "A".repeat(100_000));
    let long_header = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "a".repeat(40 << 10));
    let many_headers = format!("GET / HTTP/1.1\r\nHost: localhost\r\n{}\r\n", "X: y\r\n".repeat(100));
    let announced =
        "PUT /echo HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 9223372036854775807\r\n\r\n";
    let table: &[(&str, &[&str])] = &[
        ("GET / HTTP/1.1\r\n\r\n", &["400"]),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", &["400"]),
        ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", &["400"]),
        ("GET / HTTP/1.1\r\nHost: user@a\r\n\r\n", &["400"]),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n", &["400"]),
        ("GET https://other/ HTTP/1.1\r\nHost: localhost\r\n\r\n", &["400"]),
        ("GET http://localhost/ HTTP/1.1\r\nHost: localhost\r\n\r\n", &["400"]),
        ("GET * HTTP/1.1\r\nHost: localhost\r\n\r\n", &["400"]),
        ("GET localhost:80 HTTP/1.1\r\nHost: localhost:80\r\n\r\n", &["400"]),
        ("OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", &["400"]),
        ("CONNECT localhost:443 HTTP/1.1\r\nHost: localhost:443\r\n\r\n", &["501"]),
        ("FROB / HTTP/1.1\r\nHost: localhost\r\n\r\n", &["501"]),
        ("PUT /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", &["400"]),
        ("PUT /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", &["400"]),
        (
            "PUT /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            &["400"],
        ),
        (
            "PUT /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
            &["200"],
        ),
        ("PUT /echo HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", &["400"]),
        ("PUT /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", &["400"]),
        ("PUT /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 65537\r\n\r\n", &["413"]),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &["400", "505", "none"]),
        ("GET / HTTP/1.1\r\nHost: localhost\r\n Folded: x\r\n\r\n", &["400"]),
        (announced, &["413"]),
        (&long_target, &["414"]),
        (&long_method, &["400", "431", "501"]),
        (&long_header, &["431"]),
        (&many_headers, &["431"]),
    ];
    for (request, want) in table {
        let smuggled = format!("{request}GET /second HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let answer = fixture.exchange(smuggled.as_bytes()).await;
        let first = &request[..request.len().min(80)];
        assert!(want.contains(&status_of(&answer)), "{first:?}: expected one of {want:?}, got {answer:?}");
        assert!(
            !answer.contains("/second") && !answer.contains("100 Continue"),
            "{first:?}: answered more: {answer:?}"
        );
    }
    assert!(fixture.answers().await, "the server still answers");
}

#[tokio::test]
async fn no_wait_is_without_an_end() {
    let fixture = serve(quick()).await;
    let begun = Instant::now();
    let mut silent = TcpStream::connect(fixture.address).await.expect("connected");
    read_to_close(&mut silent).await;
    let mut half = TcpStream::connect(fixture.address).await.expect("connected");
    half.write_all(&[0x16, 3, 1, 2, 0, 1]).await.expect("half a handshake");
    read_to_close(&mut half).await;
    for alpn in [&b"http/1.1"[..], b"h2"] {
        let mut idle = fixture.connect(&[alpn]).await;
        read_to_close(&mut idle).await;
    }
    let mut loris = fixture.connect(&[b"http/1.1"]).await;
    loris.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ").await.expect("half a header");
    let dripping = async {
        while loris.write_all(b"x").await.is_ok() && loris.flush().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, dripping).await.expect("a dripping header is cut");
    let kept = fixture.exchange(b"GET /a HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert_eq!(status_of(&kept), "200", "a keep-alive connection is closed after its time: {kept}");
    assert!(begun.elapsed() < Duration::from_secs(15), "deadlines held: {:?}", begun.elapsed());
    let text = fixture.metrics.exposition(&Default::default(), Vec::new()).expect("metrics");
    assert!(text.contains("samovar_tls_handshakes_total{result=\"timeout\"} 2"), "both handshakes timed out: {text}");
    assert!(text.contains("samovar_connections_cut_total{reason=\"header\"} 1"), "the slow header was cut: {text}");
}

#[tokio::test]
async fn bodies_have_a_deadline() {
    let fixture = serve(quick()).await;
    let request = b"PUT /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nx";
    assert_eq!(status_of(&fixture.exchange(request).await), "408", "a body that does not come");
    let mut stream = fixture.connect(&[b"http/1.1"]).await;
    stream
        .write_all(b"PUT /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await
        .expect("sent");
    let (mut reading, mut writing) = tokio::io::split(stream);
    let dripping = tokio::spawn(async move {
        while writing.write_all(b"1\r\nx\r\n").await.is_ok() && writing.flush().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let answer = read_to_close(&mut reading).await;
    assert_eq!(status_of(&answer), "408", "a body that never ends: {answer}");
    dripping.abort();
    let flood = format!(
        "PUT /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFF\r\n{}",
        "x".repeat(70 << 10)
    );
    assert_eq!(status_of(&fixture.exchange(flood.as_bytes()).await), "413", "an endless chunk");
    let whole = b"PUT /echo HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
    assert!(fixture.exchange(whole).await.ends_with("\r\n\r\nabcde"), "a chunked body is read whole");
}

#[tokio::test]
async fn work_has_a_deadline() {
    let fixture = serve(quick()).await;
    let answer = fixture.exchange(b"GET /never HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await;
    assert_eq!(status_of(&answer), "503", "{answer}");
    assert!(answer.contains("retry-after: 1\r\n") && answer.contains("urn:samovar:problem:deadline"), "{answer}");
    // It counts under the route that was too slow.
    wait_for(&fixture, "http_requests_total{method=\"GET\",route=\"/test\",status=\"503\"} 1").await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut() {
    let mut limits = quick();
    limits.write_timeout = Duration::from_millis(500);
    let fixture = serve(limits).await;
    let mut stream = fixture.connect(&[b"http/1.1"]).await;
    stream.write_all(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("sent");
    wait_for(&fixture, "samovar_connections_cut_total{reason=\"write\"} 1").await;
}

#[tokio::test]
async fn work_has_its_own_deadline_once_the_body_is_there() {
    let mut limits = quick();
    limits.body_deadline = Duration::from_secs(60);
    let fixture = serve(limits).await;
    let begun = Instant::now();
    let request = b"POST /swallow HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nbody";
    let answer = fixture.exchange(request).await;
    assert!(answer.contains("urn:samovar:problem:deadline"), "{answer}");
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(20), "the time that bodies may take is added to that of the work: {took:?}");
}

#[tokio::test]
async fn a_client_that_reads_too_slowly_is_cut_at_the_deadline_of_the_answer() {
    let mut limits = quick();
    // The kernel lets the server write in bursts, seconds apart: only the deadline of the whole answer may cut here.
    limits.write_timeout = Duration::from_secs(60);
    limits.response_deadline = Duration::from_millis(1000);
    let fixture = serve(limits).await;
    let mut stream = fixture.connect(&[b"http/1.1"]).await;
    stream.write_all(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("sent");
    let sipping = async {
        let mut buffer = [0; 64 << 10];
        while stream.read_exact(&mut buffer).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    // What lies in the kernel's buffers can still be sipped after the cut, so the server's own count decides.
    tokio::select! {
        () = sipping => {}
        () = wait_for(&fixture, "samovar_connections_cut_total{reason=\"response\"} 1") => return,
    }
    wait_for(&fixture, "samovar_connections_cut_total{reason=\"response\"} 1").await;
}

async fn wait_for(fixture: &Fixture, metric: &str) {
    let mut text = String::new();
    for _ in 0..100 {
        text = fixture.metrics.exposition(&Default::default(), Vec::new()).expect("metrics");
        if text.contains(metric) {
            return;
        }
        tokio::time::sleep(PATIENCE / 100).await;
    }
    panic!("expected {metric} within {PATIENCE:?}, got\n{text}");
}

/// An HTTP/2 frame.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a small frame").to_be_bytes();
    let mut out = vec![length[1], length[2], length[3], kind, flags];
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
    out
}

/// `GET path` as a header block: literals without indexing and names of the static table.
fn get_block(path: &str) -> Vec<u8> {
    let mut block = vec![0x82, 0x87];
    for (name, value) in [(0x04, path), (0x01, "localhost")] {
        block.push(name);
        block.push(u8::try_from(value.len()).expect("short"));
        block.extend_from_slice(value.as_bytes());
    }
    block
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM_AND_HEADERS: u8 = 5;

/// Answers PINGs and SETTINGS until the server closes; returns how often it was pinged.
async fn answer_pings(stream: &mut TlsStream<TcpStream>, extra: impl Fn(u32) -> Option<Vec<u8>>) -> u32 {
    let mut pings = 0;
    let living = async {
        loop {
            let mut head = [0; 9];
            if stream.read_exact(&mut head).await.is_err() {
                return;
            }
            let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
            if stream.read_exact(&mut payload).await.is_err() {
                return;
            }
            let reply = match (head[3], head[4]) {
                (PING, 0) => {
                    pings += 1;
                    let mut reply = frame(PING, 1, 0, &payload);
                    reply.extend(extra(pings).unwrap_or_default());
                    reply
                }
                (SETTINGS, 0) => frame(SETTINGS, 1, 0, &[]),
                _ => continue,
            };
            if stream.write_all(&reply).await.is_err() || stream.flush().await.is_err() {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, living).await.expect("the server must end the connection");
    pings
}

#[tokio::test]
async fn http2_window_zero_is_cut_although_pings_are_answered() {
    let mut limits = quick();
    limits.write_timeout = Duration::from_millis(1500);
    let fixture = serve(limits).await;
    let mut stream = fixture.connect(&[b"h2"]).await;
    let mut hello = PREFACE.to_vec();
    hello.extend(frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]));
    for i in 0..50u32 {
        hello.extend(frame(HEADERS, END_STREAM_AND_HEADERS, 1 + 2 * i, &get_block("/large")));
    }
    stream.write_all(&hello).await.expect("sent");
    let pings = answer_pings(&mut stream, |_| None).await;
    assert!(pings >= 1, "the server pinged and was answered");
    wait_for(&fixture, "samovar_connections_cut_total{reason=\"response\"} 1").await;
    assert!(fixture.answers().await, "others are served");
}

#[tokio::test]
async fn http2_byte_by_byte_windows_meet_the_response_deadline() {
    let fixture = serve(quick()).await;
    let mut stream = fixture.connect(&[b"h2"]).await;
    let mut hello = PREFACE.to_vec();
    hello.extend(frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]));
    hello.extend(frame(HEADERS, END_STREAM_AND_HEADERS, 1, &get_block("/large")));
    stream.write_all(&hello).await.expect("sent");
    let begun = Instant::now();
    answer_pings(&mut stream, |_| Some(frame(WINDOW_UPDATE, 0, 1, &20_000u32.to_be_bytes()))).await;
    assert!(begun.elapsed() < Duration::from_secs(6), "cut at the deadline: {:?}", begun.elapsed());
    wait_for(&fixture, "samovar_connections_cut_total{reason=\"response\"} 1").await;
}

#[tokio::test]
async fn http2_headers_without_continuation_end() {
    let fixture = serve(quick()).await;
    let mut stream = fixture.connect(&[b"h2"]).await;
    let mut hello = PREFACE.to_vec();
    hello.extend(frame(SETTINGS, 0, 0, &[]));
    hello.extend(frame(HEADERS, 1, 1, &get_block("/a")));
    stream.write_all(&hello).await.expect("sent");
    read_to_close(&mut stream).await;
    assert!(fixture.answers().await, "others are served");
}

#[tokio::test]
async fn alpn_decides_between_the_protocols() {
    let fixture = serve(quick()).await;
    let mut agreed_http1 = fixture.connect(&[b"http/1.1"]).await;
    agreed_http1.write_all(PREFACE).await.expect("sent");
    let answer = read_to_close(&mut agreed_http1).await;
    assert!(!answer.contains('\0'), "no HTTP/2 frame where HTTP/1.1 was agreed: {answer:?}");
    let mut agreed_http2 = fixture.connect(&[b"h2"]).await;
    agreed_http2.write_all(b"GET /a HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("sent");
    let answer = read_to_close(&mut agreed_http2).await;
    assert!(!answer.contains("HTTP/1.1"), "no HTTP/1.1 answer where HTTP/2 was agreed: {answer:?}");
    let stream = fixture.connect(&[b"h2", b"http/1.1"]).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]), "HTTP/2 is preferred");
}

#[tokio::test]
async fn http2_requests_are_answered() {
    let fixture = serve(quick()).await;
    let stream = fixture.connect(&[b"h2"]).await;
    let executor = hyper_util::rt::TokioExecutor::new();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake::<_, _, http_body_util::Full<Bytes>>(executor, io).await.expect("h2");
    let driver = tokio::spawn(connection);
    let ask = |method: &str, uri: &str, body: &'static [u8]| {
        hyper::Request::builder().method(method).uri(uri).body(http_body_util::Full::new(Bytes::from_static(body)))
    };
    let answer =
        sender.send_request(ask("PUT", "https://localhost/echo", b"hello").expect("request")).await.expect("sent");
    assert_eq!(answer.status(), StatusCode::OK);
    let body = http_body_util::BodyExt::collect(answer.into_body()).await.expect("a body").to_bytes();
    assert_eq!(&body[..], b"hello");
    let large = sender.send_request(ask("GET", "https://localhost/large", b"").expect("request")).await.expect("sent");
    let body = http_body_util::BodyExt::collect(large.into_body()).await.expect("a body").to_bytes();
    assert_eq!(body.len(), LARGE_BYTES, "in pieces, and whole");
    let mut other = ask("GET", "https://localhost/a", b"").expect("request");
    other.headers_mut().insert("host", hyper::header::HeaderValue::from_static("elsewhere"));
    let answer = sender.send_request(other).await.expect("sent");
    assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "Host and :authority differ");
    drop(sender);
    driver.abort();
}

#[tokio::test]
async fn a_stop_answers_what_is_in_flight_and_closes() {
    let fixture = serve(quick()).await;
    let mut slow = fixture.connect(&[b"http/1.1"]).await;
    slow.write_all(b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("sent");
    let idle = fixture.connect(&[b"http/1.1"]).await;
    let mut late = fixture.connect(&[b"http/1.1"]).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    fixture.stop.send(true).expect("running");
    tokio::time::sleep(Duration::from_millis(20)).await;
    late.write_all(b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("sent");
    for (which, connection) in [("in flight", &mut slow), ("of a connection that had none", &mut late)] {
        let answer = read_to_close(connection).await;
        assert!(answer.ends_with("slow"), "the request {which} is answered: {answer}");
        assert!(answer.contains("connection: close\r\n"), "the answer says that it is the last, {which}: {answer}");
    }
    let Fixture { running, address, .. } = fixture;
    tokio::time::timeout(PATIENCE, running).await.expect("the server ends").expect("without a panic");
    assert!(TcpStream::connect(address).await.is_err(), "the listener is closed");
    drop(idle);
}

#[tokio::test]
async fn a_stop_cuts_what_takes_too_long() {
    let mut limits = quick();
    limits.request_deadline = Duration::from_secs(60);
    let fixture = serve(limits).await;
    let mut stuck = fixture.connect(&[b"http/1.1"]).await;
    stuck.write_all(b"GET /never HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("sent");
    tokio::time::sleep(Duration::from_millis(100)).await;
    let begun = Instant::now();
    fixture.stop.send(true).expect("running");
    tokio::time::timeout(PATIENCE, fixture.running).await.expect("the server ends").expect("without a panic");
    assert!(begun.elapsed() >= Duration::from_millis(1900), "it waited for the deadline: {:?}", begun.elapsed());
}

#[tokio::test]
async fn one_address_cannot_take_all_places() {
    let mut limits = quick();
    limits.connections_per_address_max = 3;
    limits.idle_timeout = PATIENCE;
    let fixture = serve(limits).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(fixture.connect(&[b"http/1.1"]).await);
    }
    let mut refused = TcpStream::connect(fixture.address).await.expect("the system accepts");
    assert_eq!(read_to_close(&mut refused).await, "", "closed at once");
    drop(held.pop());
    wait_for(&fixture, "samovar_connections 2").await;
    assert!(fixture.answers().await, "a place came free");
}

#[tokio::test]
async fn idle_connections_make_room_for_new_ones() {
    let mut limits = quick();
    limits.connections_max = 32;
    limits.connections_per_address_max = 1000;
    limits.idle_timeout = Duration::from_secs(60);
    let fixture = serve(limits).await;
    let mut held = Vec::new();
    for _ in 0..300 {
        let socket = TcpStream::connect(fixture.address).await.expect("the system accepts");
        let name = rustls::pki_types::ServerName::try_from("localhost").expect("a name");
        if let Ok(stream) = connector(&[b"http/1.1"], fixture.data.path()).connect(name, socket).await {
            held.push(stream);
        }
    }
    let text = fixture.metrics.exposition(&Default::default(), Vec::new()).expect("metrics");
    assert!(text.contains("reason=\"evicted\""), "idle ones were evicted: {text}");
    assert!(held.len() > 100, "most newcomers got in: {}", held.len());
    let answered = async {
        loop {
            let socket = TcpStream::connect(fixture.address).await.expect("the system accepts");
            let name = rustls::pki_types::ServerName::try_from("localhost").expect("a name");
            let Ok(mut stream) = connector(&[b"http/1.1"], fixture.data.path()).connect(name, socket).await else {
                continue;
            };
            let request = b"GET /alive HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
            if stream.write_all(request).await.is_ok() && read_to_close(&mut stream).await.contains("/alive") {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, answered).await.expect("a request gets through");
}
