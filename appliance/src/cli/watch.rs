//! `samovar watch`: the change feed, one JSON value a line, none missed and none twice across lost connections.

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
    loop {
        let error = match feed.follow().await {
            Ok(()) => feed.closed(),
            Err(e) => e.downcast::<Error>()?,
        };
        let away_too_long = feed.heard.is_none_or(|heard| heard.elapsed() > AWAY_MAX);
        if away_too_long || !error.is_passing() {
            return Err(error.into());
        }
        eprintln!("samovar: {error}; connecting again");
        rt::sleep(RECONNECT_PAUSE).await;
        feed.cursor.reconnect();
    }
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
    /// Prints events of one connection until it ends.
    async fn follow(&mut self) -> anyhow::Result<()> {
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
                    output::text(&line(id, &event))?;
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

    #[test]
    fn one_line_per_event() {
        let event = |data: &str| Event { id: "3".into(), name: "put".into(), data: data.into() };
        assert_eq!(line(3, &event("{\"key\":\n\"a\"}")), "{\"key\":\"a\"}\n", "an object stays, on one line");
        assert_eq!(line(3, &event("a\nb")), "{\"data\":\"a\\nb\",\"event\":\"put\",\"id\":3}\n");
    }
}
