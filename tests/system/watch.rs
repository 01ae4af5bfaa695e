//! The change feed: every transaction once and in order, over reconnects and a restart of the daemon, under writes.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use samovar_tests::{Client, Daemon, Settings};
use serde_json::Value;

use crate::raw::{Dialer, token};

/// Longest silence before a test gives up; comments come every ten seconds.
const SILENCE: Duration = Duration::from_secs(30);

/// One event: its id and its data.
struct Event {
    id: u64,
    data: Value,
}

/// An open feed.
struct Feed {
    body: Incoming,
    text: String,
}

impl Feed {
    async fn open(daemon: &Daemon, path: &str, last: Option<u64>) -> Self {
        let stream = Dialer::new(daemon, &[b"http/1.1"]).unwrap().connect().await.unwrap();
        let (mut send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let mut request = Request::get(path).header("host", "localhost");
        request = request.header("authorization", format!("Bearer {}", token(daemon)));
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response = send.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
        assert_eq!(response.status(), 200, "GET {path}");
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { body: response.into_body(), text: String::new() }
    }

    /// The next event; `None` when the connection ends.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let event = parse(event);
                self.text = rest.to_owned();
                if event.is_some() {
                    return event;
                }
                continue;
            }
            let frame = tokio::time::timeout(SILENCE, self.body.frame()).await.expect("a feed that says nothing");
            let data = frame?.ok()?.into_data().ok()?;
            self.text.push_str(std::str::from_utf8(&data).expect("events are UTF-8"));
        }
    }
}

/// An event of its lines; `None` for comments.
fn parse(text: &str) -> Option<Event> {
    let field = |name: &str| text.lines().find_map(|l| l.strip_prefix(name));
    let id = field("id: ")?.parse().expect("an id is a number");
    assert_eq!(field("event: "), Some("transaction"));
    let data: Value = serde_json::from_str(field("data: ").expect("an event has data")).expect("data is JSON");
    assert_eq!(data["transaction"], id, "the id is the transaction's index");
    Some(Event { id, data })
}

fn keys(event: &Event) -> Vec<String> {
    let changes = event.data["changes"].as_array().expect("changes");
    changes.iter().map(|c| c["put"]["key"].as_str().expect("a put").to_owned()).collect()
}

/// Writes keys one after the other and gives the revision of each.
async fn write(mut client: Client, keys: Vec<String>) -> Vec<u64> {
    let mut revisions = Vec::new();
    for key in keys {
        let answer = client.put(&format!("/v1/keys/{key}"), "v").await.unwrap();
        assert!(matches!(answer.status, 200 | 201), "{}", answer.text());
        revisions.push(answer.json().unwrap()["revision"].as_u64().unwrap());
    }
    revisions
}

#[tokio::test]
async fn none_is_missed_and_none_comes_twice_over_reconnects_and_a_restart() {
    const WRITERS: usize = 4;
    const KEYS: usize = 60;
    let directory = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::create(&directory.path().join("data"), Settings::default()).await.unwrap();
    let (mut seen, mut written, mut last) = (Vec::<u64>::new(), Vec::<u64>::new(), None);
    for round in 0..3 {
        let of = |w: usize| (0..KEYS).map(|n| format!("r{round}/w{w}/{n}")).collect::<Vec<_>>();
        let lists: Vec<_> = (0..WRITERS).map(of).collect();
        let mut writers = tokio::task::JoinSet::new();
        for keys in lists {
            let client = daemon.client().await.unwrap();
            writers.spawn(write(client, keys));
        }
        let reading = async {
            // The connection is dropped after every 37 events; the next one goes on where it broke.
            while seen.len() < (round + 1) * WRITERS * KEYS {
                let mut feed = Feed::open(&daemon, "/v1/watch?after=0", last).await;
                for _ in 0..37.min((round + 1) * WRITERS * KEYS - seen.len()) {
                    let event = feed.next().await.expect("the feed goes on while the daemon runs");
                    last = Some(event.id);
                    seen.push(event.id);
                }
            }
        };
        reading.await;
        written.extend(writers.join_all().await.concat());
        daemon.kill().unwrap();
        daemon.start().await.unwrap();
    }
    written.sort_unstable();
    assert_eq!(seen, written, "every acknowledged transaction once, in the order of the log");
}

#[tokio::test]
async fn a_feed_shows_its_prefix_from_where_it_was_asked() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::create(&directory.path().join("data"), Settings::default()).await.unwrap();
    let names = ["a/1", "b/1", "a/2", "c/1", "a/3"].map(str::to_owned);
    let revisions = write(daemon.client().await.unwrap(), names.to_vec()).await;
    let mut client = daemon.client().await.unwrap();
    let block_of = client.get(&format!("/v1/transactions/{}", revisions[0])).await.unwrap().json().unwrap();

    let mut all = Feed::open(&daemon, "/v1/watch?prefix=a%2F&after=0", None).await;
    for key in ["a/1", "a/2", "a/3"] {
        assert_eq!(keys(&all.next().await.unwrap()), [key]);
    }
    let mut rest = Feed::open(&daemon, &format!("/v1/watch?prefix=a%2F&after={}", block_of["block"]), None).await;
    assert_eq!(keys(&rest.next().await.unwrap()), ["a/2"], "after the block of a/1");
    let mut resumed = Feed::open(&daemon, "/v1/watch?prefix=a%2F&after=0", Some(revisions[2])).await;
    assert_eq!(keys(&resumed.next().await.unwrap()), ["a/3"], "Last-Event-ID goes before after");

    let mut live = Feed::open(&daemon, "/v1/watch?prefix=b", None).await;
    write(daemon.client().await.unwrap(), vec!["a/4".to_owned(), "b/2".to_owned()]).await;
    assert_eq!(keys(&live.next().await.unwrap()), ["b/2"], "without a place a feed begins now");
    assert_eq!(keys(&all.next().await.unwrap()), ["a/4"], "and an open one goes on");
}

#[tokio::test]
async fn a_feed_ends_when_the_daemon_stops() {
    let directory = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::create(&directory.path().join("data"), Settings::default()).await.unwrap();
    let mut feed = Feed::open(&daemon, "/v1/watch", None).await;
    daemon.stop().unwrap();
    assert!(feed.next().await.is_none(), "an event out of nothing");
}
