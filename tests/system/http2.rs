//! HTTP/2 on the running daemon: values, the change feed, limits; and what only requests at the very same time can show.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use samovar_tests::{Answer, Daemon, Settings};

use crate::raw::{Dialer, token};

/// Streams at once; the daemon takes 100 by default.
const STREAMS: usize = 100;
/// Rounds in which two requests may meet; they do in nearly every one.
const ROUNDS: usize = 200;

/// One connection.
struct Connection {
    send: SendRequest<Full<Bytes>>,
    token: String,
}

impl Connection {
    async fn open(daemon: &Daemon) -> Self {
        let stream = Dialer::new(daemon, &[b"h2"]).unwrap().connect().await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]), "HTTP/2 was agreed upon");
        let io = TokioIo::new(stream);
        let (send, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        Self { send, token: token(daemon) }
    }

    /// Sends a request; other requests may be sent before its answer comes.
    fn begin(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> impl Future<Output = hyper::Result<Response<Incoming>>> + use<> {
        let mut request = Request::builder().method(method).uri(format!("https://localhost{path}"));
        request = request.header("authorization", format!("Bearer {}", self.token));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send.send_request(request.body(Full::new(Bytes::from(body.to_owned()))).unwrap())
    }

    async fn ask(&mut self, method: Method, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        answer(self.begin(method, path, headers, body)).await
    }
}

async fn answer(response: impl Future<Output = hyper::Result<Response<Incoming>>>) -> Answer {
    let (head, body) = response.await.expect("an answer").into_parts();
    let body = body.collect().await.expect("a whole body").to_bytes();
    Answer { status: head.status.as_u16(), headers: head.headers, body }
}

async fn daemon(directory: &tempfile::TempDir, toml: &str) -> Daemon {
    let settings = Settings { toml: toml.to_owned(), ..Settings::default() };
    Daemon::create(&directory.path().join("data"), settings).await.unwrap()
}

#[tokio::test]
async fn values_and_the_feed_go_over_one_connection() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = daemon(&directory, "").await;
    let mut connection = Connection::open(&daemon).await;
    let feed = connection.begin(Method::GET, "/v1/watch?prefix=h2", &[], "").await.unwrap();
    assert_eq!((feed.status().as_u16(), &feed.headers()["content-type"]), (200, &"text/event-stream".parse().unwrap()));
    let large = "v".repeat(1 << 20);
    let writes: Vec<_> =
        ["h2/a", "h2/b"].map(|key| connection.begin(Method::PUT, &format!("/v1/keys/{key}"), &[], &large)).into();
    for write in writes {
        let made = answer(write).await;
        assert_eq!(made.status, 201, "a write while another is on its way: {}", made.text());
    }
    let read = connection.ask(Method::GET, "/v1/keys/h2/b", &[], "").await;
    assert_eq!((read.status, read.body.len()), (200, large.len()), "the value comes back whole");
    let tag = read.headers["etag"].to_str().unwrap().to_owned();
    let same = connection.ask(Method::GET, "/v1/keys/h2/b", &[("if-none-match", &tag)], "").await;
    assert_eq!((same.status, same.body.len()), (304, 0), "conditions hold over HTTP/2 too");

    let (mut feed, mut events) = (feed.into_body(), String::new());
    while events.matches("\ndata: ").count() < 2 {
        let frame = tokio::time::timeout(std::time::Duration::from_secs(30), feed.frame()).await;
        let data = frame.expect("both writes are events").unwrap().unwrap().into_data().unwrap();
        events.push_str(std::str::from_utf8(&data).unwrap());
    }
    assert!(events.contains("h2/a") && events.contains("h2/b"), "{events}");
}

#[tokio::test]
async fn a_header_too_large_is_refused_and_the_connection_lives() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = daemon(&directory, "[limits]\nheader_size = \"16KiB\"\n").await;
    let mut connection = Connection::open(&daemon).await;
    for (bytes, status) in [(15 << 10, 404), (17 << 10, 431)] {
        let answer = connection.ask(Method::GET, "/v1/keys/none", &[("x", &"x".repeat(bytes))], "").await;
        assert_eq!(answer.status, status, "a header field of {bytes} bytes: {}", answer.text());
    }
    let after = connection.ask(Method::GET, "/health", &[], "").await;
    assert_eq!(after.status, 200, "the next request on the connection is served");
}

/// Two requests under one `Idempotency-Key` at the same time: the second is told to come again, and then has the outcome
/// of the first.
#[tokio::test]
async fn a_repetition_of_what_still_runs_is_409() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = daemon(&directory, "").await;
    let mut connection = Connection::open(&daemon).await;
    let mut met = 0;
    for round in 0..ROUNDS {
        let name = format!("twice-{round}");
        let headers = [("idempotency-key", name.as_str())];
        let path = format!("/v1/keys/{name}");
        let both = [(); 2].map(|()| connection.begin(Method::PUT, &path, &headers, "v"));
        let [first, second] = both.map(answer);
        let (first, second) = tokio::join!(first, second);
        let done = connection.ask(Method::PUT, &path, &headers, "v").await;
        assert_eq!(done.status, 201, "once it ran, a repetition has its outcome: {}", done.text());
        for answer in [first, second] {
            if answer.status == 409 {
                let problem = answer.json().unwrap();
                assert_eq!(problem["type"], "urn:samovar:problem:in-progress", "{problem}");
                assert!(answer.headers.contains_key("retry-after"), "409 says when to come again");
                met += 1;
            } else {
                assert_eq!((answer.status, &answer.body), (201, &done.body), "two outcomes of {name}");
            }
        }
    }
    println!("{met} of {ROUNDS} pairs met");
    assert!(met > 0, "in {ROUNDS} rounds no request met its repetition while it ran");
}

/// A full queue refuses with 429 and has written nothing; what was taken is there.
#[tokio::test]
async fn more_writes_than_the_queue_holds_are_429() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = daemon(&directory, "[store]\nqueue = 1\n").await;
    let mut connection = Connection::open(&daemon).await;
    let path = |n: usize| format!("/v1/keys/queue/{n}");
    let asked: Vec<_> = (0..STREAMS).map(|n| connection.begin(Method::PUT, &path(n), &[], "v")).collect();
    let mut refused = 0;
    let mut answers = Vec::new();
    for asked in asked {
        answers.push(answer(asked).await);
    }
    for (n, answer) in answers.iter().enumerate() {
        if answer.status == 429 {
            assert_eq!(answer.json().unwrap()["type"], "urn:samovar:problem:overloaded");
            assert!(answer.headers.contains_key("retry-after"), "429 says when to come again");
            refused += 1;
        } else {
            assert_eq!(answer.status, 201, "write {n}: {}", answer.text());
        }
        let read = connection.ask(Method::GET, &path(n), &[], "").await;
        let expected = if answer.status == 429 { 404 } else { 200 };
        assert_eq!(read.status, expected, "write {n} was answered with {}", answer.status);
    }
    println!("{refused} of {STREAMS} writes at once were refused by a queue of one");
    assert!(refused > 0 && refused < STREAMS, "{refused} of {STREAMS} refused: the queue holds one");
}
