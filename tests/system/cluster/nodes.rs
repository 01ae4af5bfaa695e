//! A cluster of real processes over loopback.

use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};

use hyper::Method;
use samovar_tests::{Answer, Client, Daemon, Settings, binary, free_port};
use serde_json::Value;

/// How long something that is under way may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

/// Nodes by their place: the first began the cluster.
pub(super) struct Nodes {
    pub(super) all: Vec<Daemon>,
    directory: tempfile::TempDir,
    tokens: usize,
}

impl Nodes {
    /// One that may have peers.
    pub(super) async fn one() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let toml = format!("[peers]\nlisten = \"127.0.0.1:{}\"\n", free_port().unwrap());
        let settings = Settings { toml, ..Settings::default() };
        let first = Daemon::create(&directory.path().join("box-01"), settings).await.unwrap();
        Self { all: vec![first], directory, tokens: 0 }
    }

    /// So many, all of them voters.
    pub(super) async fn new(count: usize) -> Self {
        let mut nodes = Self::one().await;
        for n in 2..=count {
            let token = nodes.token(&[]);
            nodes.add(&format!("box-{n:02}"), &token).await;
        }
        nodes.until("every node votes", |cluster| cluster["live_voters"] == count).await;
        nodes.cosign(0, count).await;
        nodes
    }

    /// Waits until the policy of the log, as a node has it, names so many: before, none of those of before may be missing.
    pub(super) async fn cosign(&self, place: usize, count: usize) {
        let begun = Instant::now();
        loop {
            let log = self.client(place).await.get("/v1/log").await.unwrap().json().unwrap();
            if log["cosigners"].as_array().is_some_and(|cosigners| cosigners.len() == count) {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "the policy does not name {count} nodes within {PATIENCE:?}: {log:#}");
            tokio::time::sleep(POLL).await;
        }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A command against the first node.
    pub(super) fn command(&self, words: &[&str]) -> Output {
        self.all[0].command(words).unwrap().output().unwrap()
    }

    /// A fresh join token in a file.
    pub(super) fn token(&mut self, words: &[&str]) -> PathBuf {
        self.tokens += 1;
        let file = self.path(&format!("token-{}", self.tokens));
        let made = self.command(&[&["node", "token", "--save", file.to_str().unwrap()], words].concat());
        assert!(made.status.success(), "samovar node token {words:?}: {}", said(&made));
        file
    }

    /// Has a node join and starts it.
    pub(super) async fn add(&mut self, name: &str, token: &Path) {
        let mut daemon = self.all[0].join(&self.path(name), name, token).unwrap();
        daemon.start().await.unwrap();
        self.all.push(daemon);
    }

    /// Runs `samovar join` through the node with this place; the data directory is named after the node.
    pub(super) fn join(&self, through: usize, name: &str, token: &Path, directory: &str) -> Output {
        std::process::Command::new(binary().unwrap())
            .args(["join", &format!("https://127.0.0.1:{}", self.all[through].port()), "--name", name])
            .args(["--peers", &format!("127.0.0.1:{}", free_port().unwrap()), "--token-file"])
            .arg(token)
            .arg("--data")
            .arg(self.path(directory))
            .output()
            .unwrap()
    }

    pub(super) async fn client(&self, place: usize) -> Client {
        self.all[place].client().await.unwrap()
    }

    /// What a node says of the cluster.
    pub(super) async fn cluster(&self, place: usize) -> Value {
        let answer = self.client(place).await.get("/v1/cluster").await.unwrap();
        assert_eq!(answer.status, 200, "/v1/cluster of node {place}: {}", answer.text());
        answer.json().unwrap()
    }

    /// Waits until the first node that runs says so.
    pub(super) async fn until(&self, what: &str, holds: impl Fn(&Value) -> bool) {
        let place = self.all.iter().position(|daemon| daemon.id().is_some()).expect("a node that runs");
        self.until_at(place, what, holds).await;
    }

    pub(super) async fn until_at(&self, place: usize, what: &str, holds: impl Fn(&Value) -> bool) {
        let begun = Instant::now();
        loop {
            let cluster = self.cluster(place).await;
            if holds(&cluster) {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}: {cluster:#}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Place of the node that leads.
    pub(super) async fn leader(&self) -> usize {
        let begun = Instant::now();
        loop {
            for (place, _) in self.all.iter().enumerate().filter(|(_, daemon)| daemon.id().is_some()) {
                let cluster = self.cluster(place).await;
                let own = cluster["nodes"].as_array().unwrap().iter().find(|n| n["name"] == cluster["answered_by"]);
                if own.is_some_and(|own| own["role"] == "leader") {
                    return place;
                }
            }
            assert!(begun.elapsed() < PATIENCE, "no node says that it leads");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until a node has applied all that another has.
    pub(super) async fn level(&self, place: usize, with: usize) {
        let begun = Instant::now();
        loop {
            let (mut one, mut other) = (self.client(place).await, self.client(with).await);
            let heights = (height(&mut one).await, height(&mut other).await);
            if heights.0 >= heights.1 {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "node {place} is at block {}, node {with} at {}", heights.0, heights.1);
            tokio::time::sleep(POLL).await;
        }
    }
}

async fn height(client: &mut Client) -> u64 {
    client.get("/v1/status").await.unwrap().json().unwrap()["height"].as_u64().unwrap()
}

/// What a command said, on both outputs.
pub(super) fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Sends JSON and expects a status.
pub(super) async fn send(client: &mut Client, method: Method, path: &str, body: &Value, status: u16) -> Answer {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let headers: &[_] = if body.is_empty() { &[] } else { &[("content-type", "application/json")] };
    let answer = client.request(method.clone(), path, headers, body).await.unwrap();
    assert_eq!(answer.status, status, "{method} {path}: {}", answer.text());
    answer
}
