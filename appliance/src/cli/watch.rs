//! `samovar watch`: the change feed, one JSON value a line, none missed and none twice across lost connections.

use std::io;
use std::time::Duration;

use samovar_node::rt;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::client::sse::{Event, Parser};
use crate::client::{Client, Error, Request, Target, query};
use crate::output;

/// Silence after which the connection counts as lost; the node sends comments far more often.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Pause between two tries to connect again.
const RECONNECT_PAUSE: Duration = Duration::from_secs(1);
/// How long the node may be away before the command ends.
const AWAY_MAX: Duration = Duration::from_secs(15 * 60);

#[derive(Debug, clap::Args)]
pub(super) struct Watch {
    #[command(flatten)]
    target: Target,
    /// Only keys that begin so
    #[arg(default_value = "")]
    prefix: String,
    /// Begin after this block; 0 for everything [default: now]
    #[arg(long, value_name = "BLOCK")]
    after: Option<u64>,
}

/// How far the feed was printed. A transaction of several keys is several events of one id, so a connection may break
/// between them: the feed is then asked for from the id before, and what was printed is passed over.
#[derive(Debug, Default, PartialEq, Eq)]
struct Cursor {
    id: Option<u64>,
    /// Events printed of this id.
    printed: usize,
    /// Events of this id seen on the present connection.
    seen: usize,
}

impl Cursor {
    /// `Last-Event-ID` that brings back the events of the newest id.
    fn last_event_id(&self) -> Option<u64> {
        self.id.and_then(|id| id.checked_sub(1))
    }

    /// A new connection begins.
    fn reconnect(&mut self) {
        self.seen = 0;
    }

    /// Whether an event is to be printed.
    fn admits(&mut self, id: u64) -> bool {
        match self.id {
            Some(newest) if id < newest => false,
            Some(newest) if id == newest => {
                self.seen += 1;
                let new = self.seen > self.printed;
                self.printed = self.printed.max(self.seen);
                new
            }
            _ => {
                *self = Self { id: Some(id), printed: 1, seen: 1 };
                true
            }
        }
    }
}

pub(super) async fn run(watch: &Watch) -> anyhow::Result<()> {
    let client = Client::open(&watch.target)?;
    let after = match watch.after {
        Some(block) => block,
        // Fixed before the first connection: what is written while it is being lost must not be missed.
        None => super::status::height(&client).await?,
    };
    let mut feed = Feed { client, prefix: watch.prefix.clone(), after, cursor: Cursor::default(), heard: None };
    feed.run(output::text).await
}

/// The change feed over all its connections.
struct Feed {
    client: Client,
    prefix: String,
    /// Height of the block after which it begins.
    after: u64,
    cursor: Cursor,
    /// When the node was heard last; `None`: never yet.
    heard: Option<Instant>,
}

impl Feed {
    /// Follows the feed until the node refuses it or is away for too long.
    async fn run(&mut self, mut print: impl FnMut(&str) -> io::Result<()>) -> anyhow::Result<()> {
        loop {
            let error = match self.follow(&mut print).await {
                Ok(()) => self.closed(),
                Err(e) => e.downcast::<Error>()?,
            };
            let away_too_long = self.heard.is_none_or(|heard| heard.elapsed() > AWAY_MAX);
            if away_too_long || !error.is_passing() {
                return Err(error.into());
            }
            output::note(&format!("samovar: {error}; connecting again"));
            rt::sleep(RECONNECT_PAUSE).await;
            self.cursor.reconnect();
        }
    }

    /// Prints events of one connection until it ends.
    async fn follow(&mut self, print: &mut impl FnMut(&str) -> io::Result<()>) -> anyhow::Result<()> {
        let mut stream = self.client.stream(self.request()?).await?;
        self.heard = Some(Instant::now());
        let mut parser = Parser::default();
        let mut events = Vec::new();
        while let Some(bytes) = stream.next(SILENCE_MAX).await? {
            self.heard = Some(Instant::now());
            parser.push(&bytes, &mut events).map_err(|e| Error::Protocol(format!("the node's change feed: {e}")))?;
            for event in events.drain(..) {
                let id = event.id.parse();
                let id: u64 = id.map_err(|_| Error::Protocol(format!("the feed has an event id {:?}", event.id)))?;
                if self.cursor.admits(id) {
                    print(&line(id, &event))?;
                }
            }
        }
        Ok(())
    }

    fn request(&self) -> Result<Request, Error> {
        let resume = self.cursor.last_event_id();
        let after = resume.is_none().then(|| self.after.to_string());
        let prefix = (!self.prefix.is_empty()).then_some(self.prefix.as_str());
        let path = format!("/v1/watch{}", query(&[("prefix", prefix), ("after", after.as_deref())]));
        let request = Request::get(path).header("accept", "text/event-stream")?;
        match resume {
            Some(id) => request.header("last-event-id", &id.to_string()),
            None => Ok(request),
        }
    }

    fn closed(&self) -> Error {
        Error::Unreachable { url: self.client.url().to_owned(), reason: "the node closed the feed".into() }
    }
}

/// The event's data on one line; wrapped when it is no JSON object.
fn line(id: u64, event: &Event) -> String {
    match serde_json::from_str::<Value>(&event.data) {
        Ok(document @ Value::Object(_)) => format!("{document}\n"),
        _ => format!("{}\n", json!({ "id": id, "event": event.name, "data": event.data })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::fake::Reply;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    #[test]
    fn connection_lost_anywhere_misses_and_repeats_nothing() {
        let seed = 7;
        let mut rng = StdRng::seed_from_u64(seed);
        for round in 0..500 {
            let mut feed: Vec<(u64, usize)> = Vec::new();
            let mut id = rng.gen_range(0..3);
            for _ in 0..rng.gen_range(1..20) {
                feed.extend((0..rng.gen_range(1..5)).map(|n| (id, n)));
                id += rng.gen_range(1..4);
            }
            let (mut cursor, mut printed) = (Cursor::default(), Vec::new());
            for _ in 0..10_000 {
                let from = cursor.last_event_id();
                let rest = feed.iter().filter(|(id, _)| from.is_none_or(|f| *id > f));
                let length = rng.gen_range(0..8);
                for event in rest.take(length).copied() {
                    if cursor.admits(event.0) {
                        printed.push(event);
                    }
                }
                cursor.reconnect();
                if printed.len() >= feed.len() {
                    break;
                }
            }
            assert_eq!(printed, feed, "seed {seed}, round {round}: every event once and in order");
        }
    }

    #[tokio::test]
    async fn feed_goes_on_after_a_lost_connection() {
        let asked = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let seen = asked.clone();
        let fake = crate::client::fake::start(move |request| {
            let mut seen = seen.lock().expect("lock");
            let header = request.headers().get("last-event-id").map(|v| v.to_str().expect("text").to_owned());
            seen.push((request.uri().to_string(), header));
            let connection = seen.len();
            async move {
                let pieces = match connection {
                    1 => vec![":\n\nid: 5\ndata: {\"n\":1}\n\nid: 7\ndata: {\"n\":2}", "\n\nid: 7\ndata: {\"n\":3"],
                    2 => vec!["id: 7\ndata: {\"n\":2}\n\nid: 7\ndata: {\"n\":3}\n\n", "id: 9\ndata: {\"n\":4}\n\n"],
                    _ => return Reply::new(403, "{}"),
                };
                Reply { pieces: pieces.into_iter().map(|p| p.as_bytes().to_vec()).collect(), ..Reply::new(200, "") }
            }
        })
        .await;
        let client = Client::open(&fake.target).expect("target");
        let mut feed = Feed { client, prefix: "a b".into(), after: 3, cursor: Cursor::default(), heard: None };
        let mut printed = String::new();
        let ended = feed
            .run(|line| {
                printed.push_str(line);
                Ok(())
            })
            .await
            .expect_err("refused in the end");
        assert!(ended.to_string().contains("403"), "what can not pass ends it: {ended}");
        assert_eq!(printed, "{\"n\":1}\n{\"n\":2}\n{\"n\":3}\n{\"n\":4}\n", "each event once");
        let path = "/v1/watch?prefix=a%20b".to_owned();
        let expected =
            [(path.clone() + "&after=3", None), (path.clone(), Some("6".to_owned())), (path, Some("8".to_owned()))];
        assert_eq!(*asked.lock().expect("lock"), expected, "resumed from before the newest id");
    }

    #[tokio::test]
    async fn node_that_was_never_there_ends_it_at_once() {
        let fake = crate::client::fake::start(|_| async { Reply::new(200, "") }).await;
        let target = Target { url: Some("https://127.0.0.1:1".into()), ..fake.target.clone() };
        let client = Client::open(&target).expect("target");
        let mut feed = Feed { client, prefix: String::new(), after: 0, cursor: Cursor::default(), heard: None };
        let ended = feed.run(|_| Ok(())).await.expect_err("nobody listens");
        assert_eq!(crate::cli::exit_code(&ended), 3, "{ended:#}");
    }

    #[test]
    fn one_line_per_event() {
        let event = |data: &str| Event { id: "3".into(), name: "put".into(), data: data.into() };
        assert_eq!(line(3, &event("{\"key\":\n\"a\"}")), "{\"key\":\"a\"}\n", "an object stays, on one line");
        assert_eq!(line(3, &event("a\nb")), "{\"data\":\"a\\nb\",\"event\":\"put\",\"id\":3}\n");
    }
}
