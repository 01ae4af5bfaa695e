//! `/v1/watch`: committed transactions as server-sent events.
//!
//! One event per transaction, because it is the unit that is committed: its id is the transaction's index in the chain
//! log, and its data lists every change within the prefix. A client that reconnects with `Last-Event-ID` therefore gets
//! every transaction once, wherever the connection broke.

use samovar_node::rt;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{HeaderName, HeaderValue};
use samovar_node::Error;
use samovar_node::view::{Head, Record};
use serde::Serialize;
use tokio::sync::{mpsc, watch};

use super::entries::{Entry, Logged, LoggedDelete, LoggedErase, LoggedPut};
use super::problem::Problem;
use super::{App, Call, Handled, keys, query, render};
use crate::auth::Principal;
use crate::http::{Payload, stopped};

/// Entries that are read at once.
const RECORDS_AT_ONCE: usize = 64;
/// Events that may wait for a client; behind that its feed stands still, and the listener's deadlines decide.
const EVENTS_WAITING_MAX: usize = 16;
/// Comments that keep the connection known to be alive. Below the silence that the listener allows.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
static LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// `GET /v1/watch`.
pub(crate) async fn watch(call: Call) -> Handled {
    let prefix = keys::client_prefix(&call)?.to_owned();
    let head = call.app.node.head();
    let now = *head.borrow();
    let next = start(&call, now).await?;
    let place = Place::take(&call.app)?;
    let (sender, receiver) = mpsc::channel(EVENTS_WAITING_MAX);
    let feed = Feed { call, prefix, head, next, sender, _place: place };
    rt::spawn(feed.run());
    let media_type = HeaderValue::from_static("text/event-stream");
    let mut response = render::content(StatusCode::OK, media_type, Bytes::new());
    *response.body_mut() = Payload::Stream(receiver);
    Ok(response)
}

/// Index of the first entry to look at: after `Last-Event-ID`, else after the block `after`, else what comes from now on.
async fn start(call: &Call, head: Head) -> Result<u64, Problem> {
    if let Some(id) = keys::single(&call.head.headers, &LAST_EVENT_ID)? {
        let last = query::whole_number(id)
            .ok_or_else(|| Problem::invalid("Last-Event-ID must be the id of an event: a whole number"))?;
        return Ok(last.saturating_add(1));
    }
    match call.query.number("after") {
        None => Ok(head.size),
        Some(0) => Ok(0),
        Some(height) => match call.app.node.block(height).await {
            Ok(block) => Ok(block.last + 1),
            Err(Error::NotFound(what)) => Err(Problem::missing("no-such-block", format!("{what} does not exist yet"))),
            Err(other) => Err(other.into()),
        },
    }
}

/// One of the places for watches.
struct Place(Arc<App>);

impl Place {
    fn take(app: &Arc<App>) -> Result<Self, Problem> {
        let open = app.metrics.watches.inc();
        if open >= app.limits.get().watches_max as u64 {
            app.metrics.watches.dec();
            return Err(Problem::unavailable("all places for watches are taken (limits.watches); try again later"));
        }
        Ok(Self(app.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.metrics.watches.dec();
    }
}

struct Feed {
    call: Call,
    prefix: String,
    head: watch::Receiver<Head>,
    /// Index of the next entry to look at.
    next: u64,
    sender: mpsc::Sender<Bytes>,
    _place: Place,
}

impl Feed {
    /// Until the client goes, the daemon stops, or the principal is none any more.
    async fn run(mut self) {
        let mut stop = self.call.app.stop.clone();
        let ended = tokio::select! {
            ended = self.follow() => ended,
            () = stopped(&mut stop) => Ok(()),
        };
        if let Err(error) = ended {
            // Headers are out already: the client sees the connection end and comes back with its Last-Event-ID.
            tracing::warn!(%error, "a watch ended");
        }
    }

    async fn follow(&mut self) -> Result<(), Error> {
        let mut system_revision = self.head.borrow().system_revision;
        // A first comment, so that the client's headers arrive at once.
        self.send(":\n\n".into()).await?;
        loop {
            let head = *self.head.borrow_and_update();
            if head.system_revision != system_revision {
                system_revision = head.system_revision;
                if !self.still_allowed().await {
                    return Ok(());
                }
            }
            while self.next < head.size {
                self.pass_on().await?;
            }
            tokio::select! {
                changed = self.head.changed() => if changed.is_err() { return Ok(()) },
                () = tokio::time::sleep(KEEP_ALIVE) => {
                    if !self.still_allowed().await {
                        return Ok(());
                    }
                    self.send(":\n\n".into()).await?;
                }
                () = self.sender.closed() => return Ok(()),
            }
        }
    }

    async fn still_allowed(&self) -> bool {
        let Call { app, head, peer, principal, .. } = &self.call;
        app.auth.still_valid(&head.headers, peer, principal).await
    }

    async fn pass_on(&mut self) -> Result<(), Error> {
        let records = self.call.app.node.records(self.next, RECORDS_AT_ONCE).await?;
        if records.is_empty() {
            return Err(Error::Unavailable(format!("entry {} is missing", self.next)));
        }
        for record in &records {
            if let Some(event) = event(record, &self.prefix, &self.call.principal)? {
                self.send(event).await?;
            }
            self.next = record.index + 1;
        }
        Ok(())
    }

    async fn send(&self, text: String) -> Result<(), Error> {
        self.sender.send(text.into()).await.map_err(|_| Error::Unavailable("the client went away".into()))
    }
}

#[derive(Serialize)]
struct Transaction<'a> {
    transaction: u64,
    block: u64,
    time_ms: u64,
    author: &'a str,
    changes: Vec<Change<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Change<'a> {
    Put {
        key: &'a str,
        size: u64,
        #[serde(rename = "type")]
        media_type: &'a str,
        #[serde(skip_serializing_if = "super::render::is_false")]
        blob: bool,
    },
    Delete {
        key: &'a str,
    },
    Erase {
        key: &'a str,
        revision: u64,
    },
}

impl<'a> Change<'a> {
    fn of(operation: &'a Logged) -> Self {
        match operation {
            Logged::Put(LoggedPut { key, size, media, blob }) => {
                Self::Put { key, size: *size, media_type: media, blob: *blob }
            }
            Logged::Delete(LoggedDelete { key }) => Self::Delete { key },
            Logged::Erase(LoggedErase { key, revision }) => Self::Erase { key, revision: *revision },
        }
    }
}

/// The event of an entry, if it is a transaction with a change within the prefix and all of it is the principal's.
fn event(record: &Record, prefix: &str, principal: &Principal) -> Result<Option<String>, Error> {
    let entry = Entry::of(record).map_err(|_| Error::Corrupt(format!("entry {} cannot be read", record.index)))?;
    if !entry.is_of_clients() || !entry.operations.iter().all(|o| principal.covers(o.key())) {
        return Ok(None);
    }
    let changes: Vec<_> = entry.operations.iter().filter(|o| o.key().starts_with(prefix)).map(Change::of).collect();
    if changes.is_empty() {
        return Ok(None);
    }
    let Record { index, block, .. } = *record;
    let data = Transaction { transaction: index, block, time_ms: entry.time, author: &entry.author, changes };
    let json = serde_json::to_string(&data).map_err(|e| Error::Corrupt(e.to_string()))?;
    let mut text = String::with_capacity(json.len() + 48);
    let _ = write!(text, "id: {index}\nevent: transaction\ndata: {json}\n\n");
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(line: &'static str) -> Record {
        Record { index: 9, block: 3, line: Bytes::from_static(line.as_bytes()), openings: Vec::new() }
    }

    fn principal(prefixes: &[&str]) -> Principal {
        Principal { prefixes: prefixes.iter().map(|p| (*p).to_owned()).collect(), ..Principal::anonymous() }
    }

    const LINE: &str = r#"{"type":"transaction","time":7,"author":"w","operations":[{"put":{"key":"a/1","previous":null,"commitment":"","size":5,"media":"text/plain"}},{"delete":{"key":"b/1","previous":2}},{"erase":{"key":"a/2","revision":4,"previous":4}}]}"#;

    #[test]
    fn an_event_is_one_transaction() {
        let got = event(&record(LINE), "a/", &principal(&[])).expect("readable").expect("an event");
        let want = "id: 9\nevent: transaction\ndata: {\"transaction\":9,\"block\":3,\"time_ms\":7,\"author\":\"w\",\"changes\":[{\"put\":{\"key\":\"a/1\",\"size\":5,\"type\":\"text/plain\"}},{\"erase\":{\"key\":\"a/2\",\"revision\":4}}]}\n\n";
        assert_eq!(got, want);
    }

    #[test]
    fn what_is_not_the_clients_is_left_out() {
        let none =
            |line, prefix, prefixes: &[&str]| event(&record(line), prefix, &principal(prefixes)).expect("readable");
        assert!(none(LINE, "c/", &[]).is_none(), "another prefix");
        assert!(none(LINE, "a/", &["a/"]).is_none(), "one key is outside the principal's prefixes");
        assert!(none(LINE, "a/", &["a/", "b/"]).is_some(), "all keys are within");
        let system = r#"{"type":"transaction","time":7,"author":"w","operations":[{"put":{"key":"~api-keys/x","previous":null,"commitment":"","size":5,"media":"a/b"}}]}"#;
        assert!(none(system, "", &[]).is_none(), "system state");
        let block = r#"{"type":"block","height":1,"time":7,"count":1,"previous":null,"state":""}"#;
        assert!(none(block, "", &[]).is_none(), "a block entry");
    }
}
