//! Clients of every node, which write down what they asked for and what they were told.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use hyper::Method;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::time::{sleep, timeout};

use super::history::{Act, Held, If, Operation};
use crate::{Answer, Client, Ends};

/// Keys of one generation. Few, so that clients meet at them.
const KEYS: u32 = 16;
/// After so long other keys are taken: the history of one key stays short enough to be judged.
const GENERATION: Duration = Duration::from_secs(5);
/// For a connection, and for an answer.
const CONNECT_WITHIN: Duration = Duration::from_secs(1);
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// How long a write under a name is asked for again.
const NAMED_FOR: Duration = Duration::from_secs(12);
/// Most between two operations of a client.
const REST_MS: u64 = 40;
/// Between two tries.
const RETRY: Duration = Duration::from_millis(100);

/// What clients share.
pub(super) struct Ledger {
    /// Where each node answers.
    nodes: Vec<SocketAddr>,
    ca: PathBuf,
    token: String,
    pub(super) begun: Instant,
    /// Values so far: each is written once.
    values: AtomicU64,
    /// Revision and value of what each key was last seen to hold, for writes that depend on it.
    seen: Mutex<HashMap<String, (u64, u64)>>,
}

impl Ledger {
    pub(super) fn new(nodes: Vec<SocketAddr>, ca: PathBuf, token: String) -> Arc<Self> {
        let (values, seen) = (AtomicU64::new(1), Mutex::default());
        Arc::new(Self { nodes, ca, token, begun: Instant::now(), values, seen })
    }

    /// A connection to the node at a place.
    ///
    /// # Errors
    /// When it does not answer.
    pub(super) async fn connect(&self, place: usize) -> Result<Client> {
        Client::connect_to(self.nodes[place], &self.ca, Some(&self.token), Ends::default()).await
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn seen(&self, key: &str) -> Option<(u64, u64)> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).get(key).copied()
    }

    fn saw(&self, key: &str, revision: u64, value: u64) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(key.to_owned(), (revision, value));
    }
}

/// What one client has to tell.
#[derive(Default)]
pub(super) struct Story {
    pub(super) operations: Vec<(String, Operation)>,
    /// Writes that were refused with nothing written, and reads that were not answered.
    pub(super) refused: u64,
    /// Writes that were asked for again under their name.
    pub(super) again: u64,
}

pub(super) struct Worker {
    ledger: Arc<Ledger>,
    number: usize,
    /// The node that it asks first.
    home: usize,
    random: StdRng,
    connections: HashMap<usize, Client>,
    story: Story,
}

enum Told {
    Answer(Answer),
    /// Nothing was sent.
    NotSent,
    /// It was sent, and no answer came.
    Nothing,
}

struct Write {
    key: String,
    condition: If,
    value: Held,
    /// `If-Match` of a value.
    revision: Option<u64>,
    name: Option<String>,
}

impl Worker {
    pub(super) fn new(ledger: &Arc<Ledger>, number: usize, seed: u64) -> Self {
        let random = StdRng::seed_from_u64(seed.wrapping_add(number as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let home = number % ledger.nodes.len();
        Self { ledger: Arc::clone(ledger), number, home, random, connections: HashMap::new(), story: Story::default() }
    }

    /// Asks until it is told to end.
    pub(super) async fn run(mut self, over: Arc<AtomicBool>) -> Result<Story> {
        while !over.load(Relaxed) {
            let key = self.draw_key();
            let node = if self.random.gen_ratio(1, 10) { self.other() } else { self.home };
            if self.random.gen_ratio(2, 5) {
                self.read(node, &key).await?;
            } else {
                let write = self.draw_write(key);
                self.write(node, &write).await?;
            }
            let rest = self.random.gen_range(0..REST_MS);
            sleep(Duration::from_millis(rest)).await;
        }
        Ok(self.story)
    }

    /// Reads keys once all is well again; every one of them must be answered.
    pub(super) async fn read_all(mut self, keys: Vec<String>, patience: Duration) -> Result<Story> {
        for key in keys {
            let (before, begun) = (self.story.operations.len(), Instant::now());
            while self.story.operations.len() == before {
                ensure!(begun.elapsed() < patience, "node {} does not answer a read of {key}", self.home + 1);
                self.read(self.home, &key).await?;
            }
        }
        Ok(self.story)
    }

    fn other(&mut self) -> usize {
        self.random.gen_range(0..self.ledger.nodes.len())
    }

    fn draw_key(&mut self) -> String {
        let generation = self.ledger.begun.elapsed().as_secs() / GENERATION.as_secs();
        let key = if self.random.gen_ratio(1, 5) { 0 } else { self.random.gen_range(0..KEYS) };
        format!("faults/{generation:05}/{key:02}")
    }

    fn draw_write(&mut self, key: String) -> Write {
        let value = Some(self.ledger.values.fetch_add(1, Relaxed));
        let seen = self.ledger.seen(&key);
        let (condition, value, revision) = match (self.random.gen_range(0..10), seen) {
            (0, _) => (If::Holds(None), value, None),
            (1, _) => (If::Exists, None, None),
            (2..5, Some((revision, held))) => (If::Holds(Some(held)), value, Some(revision)),
            _ => (If::Always, value, None),
        };
        let name = self.random.gen_bool(0.5).then(|| format!("{}-{}", self.number, self.random.r#gen::<u64>()));
        Write { key, condition, value, revision, name }
    }

    fn record(&mut self, key: &str, act: Act, called_ns: u64, revision: Option<u64>) {
        let operation = Operation { client: self.number, act, called_ns, answered_ns: self.ledger.now_ns(), revision };
        if let (Some(revision), Act::Read(Some(value)) | Act::Done(_, Some(value))) = (revision, act) {
            self.ledger.saw(key, revision, value);
        }
        self.story.operations.push((key.to_owned(), operation));
    }

    async fn ask(&mut self, node: usize, method: Method, path: &str, headers: &[(&str, &str)], body: String) -> Told {
        let mut client = match self.connections.remove(&node) {
            Some(client) => client,
            None => match timeout(CONNECT_WITHIN, self.ledger.connect(node)).await {
                Ok(Ok(client)) => client,
                _ => return Told::NotSent,
            },
        };
        match timeout(ANSWER_WITHIN, client.request(method, path, headers, body)).await {
            Ok(Ok(answer)) => {
                self.connections.insert(node, client);
                Told::Answer(answer)
            }
            _ => Told::Nothing,
        }
    }

    async fn read(&mut self, node: usize, key: &str) -> Result<()> {
        let called_ns = self.ledger.now_ns();
        let told = self.ask(node, Method::GET, &format!("/v1/keys/{key}"), &[], String::new()).await;
        let Told::Answer(answer) = told else {
            self.story.refused += 1;
            sleep(RETRY).await;
            return Ok(());
        };
        match answer.status {
            200 => {
                let tag = answer.headers.get("etag").and_then(|tag| tag.to_str().ok()?.trim_matches('"').parse().ok());
                let revision: u64 = tag.with_context(|| format!("a value of {key} came without its revision"))?;
                let value = answer.text().parse().with_context(|| format!("{key} holds {:?}", answer.text()))?;
                self.record(key, Act::Read(Some(value)), called_ns, Some(revision));
            }
            404 => self.record(key, Act::Read(None), called_ns, None),
            429 | 503 => {
                self.story.refused += 1;
                sleep(RETRY).await;
            }
            status => bail!("GET {key} was answered {status}: {}", answer.text()),
        }
        Ok(())
    }

    async fn write(&mut self, node: usize, write: &Write) -> Result<()> {
        let (called_ns, begun, mut node) = (self.ledger.now_ns(), Instant::now(), node);
        let tag = write.revision.map(|revision| format!("\"{revision}\""));
        let mut headers = vec![("content-type", "text/plain")];
        headers.extend(tag.as_ref().map(|tag| ("if-match", tag.as_str())));
        headers.extend((write.condition == If::Holds(None)).then_some(("if-none-match", "*")));
        headers.extend(write.name.as_ref().map(|name| ("idempotency-key", name.as_str())));
        let method = if write.value.is_some() { Method::PUT } else { Method::DELETE };
        let path = format!("/v1/keys/{}", write.key);
        let mut maybe = false;
        loop {
            let body = write.value.map(|value| value.to_string()).unwrap_or_default();
            match self.ask(node, method.clone(), &path, &headers, body).await {
                Told::NotSent => {}
                Told::Nothing => maybe = true,
                Told::Answer(answer) => match self.told(write, &answer)? {
                    Some((act, revision)) => {
                        self.record(&write.key, act, called_ns, revision);
                        return Ok(());
                    }
                    None => maybe |= in_doubt(&answer),
                },
            }
            if write.name.is_none() || begun.elapsed() > NAMED_FOR {
                break;
            }
            self.story.again += 1;
            sleep(RETRY).await;
            node = self.other();
        }
        if maybe {
            self.record(&write.key, Act::Unknown(write.condition, write.value), called_ns, None);
        } else {
            self.story.refused += 1;
            sleep(RETRY).await;
        }
        Ok(())
    }

    /// What an answer says of a write, if it settles it.
    fn told(&self, write: &Write, answer: &Answer) -> Result<Option<(Act, Option<u64>)>> {
        let number = |name: &str| answer.headers.get(name).and_then(|value| value.to_str().ok()?.parse().ok());
        Ok(match answer.status {
            200 | 201 | 204 => {
                let revision: u64 = number("samovar-transaction").context("a write was done, and not told where")?;
                Some((Act::Done(write.condition, write.value), Some(revision)))
            }
            404 if write.value.is_none() => Some((Act::Refused(write.condition, Some(None)), None)),
            412 => {
                // The revision that stands in the way; what it holds is known if somebody saw it.
                let actual = answer.json()?["actual"].as_u64();
                let seen = self.ledger.seen(&write.key).filter(|(revision, _)| Some(*revision) == actual);
                let held = match (actual, seen) {
                    (None, _) => Some(None),
                    (Some(_), seen) => seen.map(|(_, value)| Some(value)),
                };
                Some((Act::Refused(write.condition, held), None))
            }
            409 if write.name.is_some() => None,
            429 | 503 | 507 => None,
            status => bail!("a write of {} was answered {status}: {}", write.key, answer.text()),
        })
    }
}

/// Whether a refusal leaves open if the write was done.
fn in_doubt(answer: &Answer) -> bool {
    let kind = answer.json().ok().and_then(|problem| Some(problem["type"].as_str()?.to_owned()));
    // 409: the first try still runs.
    answer.status == 409 || kind.is_some_and(|kind| kind.ends_with(":outcome-unknown") || kind.ends_with(":deadline"))
}
