//! Bad input: every limit and every malformed thing, route by route. Each is refused with the documented status and
//! problem, nothing is written, and the daemon lives on without a panic.
//!
//! The tables stand in `bad_input/`; a row is a request and what must come back. Each row is sent on a connection of its
//! own, byte by byte as it stands, so that no client library can tidy it up.

use std::fmt::Write as _;
use std::panic::Location;

use anyhow::{Context as _, Result, bail, ensure};
use samovar_tests::{Answer, Client, Daemon, Settings};

use crate::raw::{Dialer, token};

mod bodies;
mod requests;

/// Runs only the rows of this line of a table.
const ONE_ROW: &str = "SAMOVAR_ROW";
/// How much of a request is shown when a row fails.
const SHOWN_CHARS: usize = 200;

/// A row: a request, and what must come back.
struct Row {
    method: String,
    target: Vec<u8>,
    headers: Vec<Vec<u8>>,
    body: Vec<u8>,
    authorized: bool,
    hosted: bool,
    framed: bool,
    status: u16,
    /// Name of the problem; `-`: HTTP itself could not be parsed and the answer has no body.
    problem: &'static str,
    at: &'static Location<'static>,
}

/// A request with the admin's token that would be well-formed.
#[track_caller]
fn on(method: &str, target: impl Into<Vec<u8>>) -> Row {
    Row {
        method: method.to_owned(),
        target: target.into(),
        headers: Vec::new(),
        body: Vec::new(),
        authorized: true,
        hosted: true,
        framed: true,
        status: 0,
        problem: "",
        at: Location::caller(),
    }
}

/// A transaction with this body.
#[track_caller]
fn transaction(body: impl Into<Vec<u8>>) -> Row {
    on("POST", "/v1/transactions").header("Content-Type: application/json").body(body)
}

impl Row {
    fn header(mut self, line: impl Into<Vec<u8>>) -> Self {
        self.headers.push(line.into());
        self
    }

    fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// Without the `Content-Length` that a body gets: the row frames it by itself.
    fn unframed(mut self) -> Self {
        self.framed = false;
        self
    }

    /// Without the admin's token.
    fn without_token(mut self) -> Self {
        self.authorized = false;
        self
    }

    /// Without a `Host`.
    fn without_host(mut self) -> Self {
        self.hosted = false;
        self
    }

    /// What must come back.
    fn is(mut self, status: u16, problem: &'static str) -> Self {
        (self.status, self.problem) = (status, problem);
        self
    }

    fn bytes(&self, token: &str) -> Vec<u8> {
        let mut all = self.method.clone().into_bytes();
        all.push(b' ');
        all.extend_from_slice(&self.target);
        all.extend_from_slice(b" HTTP/1.1\r\n");
        let mut line = |bytes: &[u8]| {
            all.extend_from_slice(bytes);
            all.extend_from_slice(b"\r\n");
        };
        if self.hosted {
            line(b"Host: localhost");
        }
        if self.authorized {
            line(format!("Authorization: Bearer {token}").as_bytes());
        }
        if self.framed && !self.body.is_empty() {
            line(format!("Content-Length: {}", self.body.len()).as_bytes());
        }
        self.headers.iter().for_each(|h| line(h));
        line(b"");
        all.extend_from_slice(&self.body);
        all
    }

    /// The row as a failure shows it.
    fn shown(&self) -> String {
        let mut text = format!("{} {}", self.method, self.target.escape_ascii());
        for header in &self.headers {
            // Writing to a string does not fail.
            let _ = write!(text, " | {}", header.escape_ascii());
        }
        if !self.body.is_empty() {
            let _ = write!(text, " | {} bytes: {}", self.body.len(), self.body.escape_ascii());
        }
        if text.chars().count() > SHOWN_CHARS {
            text = text.chars().take(SHOWN_CHARS).collect::<String>() + "…";
        }
        text
    }

    fn check(&self, answer: &Answer) -> Result<()> {
        let said = answer.text();
        ensure!(answer.status == self.status, "answered {} {said}", answer.status);
        if self.problem == "-" {
            ensure!(answer.body.is_empty(), "an answer of the HTTP parser with a body: {said}");
            return Ok(());
        }
        let header = |name: &str| answer.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("");
        ensure!(header("content-type") == "application/problem+json", "of type {:?}: {said}", header("content-type"));
        if self.method == "HEAD" {
            return Ok(());
        }
        let problem = answer.json()?;
        ensure!(problem["type"] == format!("urn:samovar:problem:{}", self.problem), "another problem: {said}");
        ensure!(problem["status"] == self.status, "the status in the body differs: {said}");
        ensure!(problem["request_id"].as_str().is_some_and(|id| !id.is_empty()), "no request_id: {said}");
        ensure!(problem["request_id"] == header("x-request-id"), "request_id is not X-Request-Id: {said}");
        ensure!(problem["detail"].as_str().is_some_and(|d| !d.is_empty()), "no detail: {said}");
        Ok(())
    }
}

/// Size of the chain log: a refused request leaves it alone.
async fn size(client: &mut Client) -> Result<u64> {
    let status = client.get("/v1/status").await?.json()?;
    status["size"].as_u64().with_context(|| format!("no size in {status}"))
}

#[tokio::test]
async fn every_malformed_request_is_refused_and_writes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::create(&directory.path().join("data"), Settings::default()).await.unwrap();
    let mut client = daemon.client().await.unwrap();
    let written = client.put("/v1/keys/k", "v").await.unwrap();
    assert_eq!(written.status, 201, "{}", written.text());
    let dialer = Dialer::new(&daemon, &[b"http/1.1"]).unwrap();
    let token = token(&daemon);
    let wanted = std::env::var(ONE_ROW).ok().and_then(|line| line.parse::<u32>().ok());

    let (mut sent, mut failed) = (0, String::new());
    for row in requests::table().into_iter().chain(bodies::table()) {
        if wanted.is_some_and(|line| row.at.line() != line) {
            continue;
        }
        sent += 1;
        if let Err(error) = attempt(&row, &dialer, &token, &mut client).await {
            let Row { status, problem, at, .. } = &row;
            let _ = write!(failed, "\n{at}: {}\n  expected {status} {problem}, but: {error:#}", row.shown());
            let _ = write!(
                failed,
                "\n  alone: {ONE_ROW}={} cargo test -p samovar-tests --test system bad_input",
                at.line()
            );
        }
    }
    println!("{sent} malformed requests sent");
    assert!(sent > 0, "no row stands on line {wanted:?} of a table");
    assert!(failed.is_empty(), "of {sent} rows these failed:{failed}");
    assert!(!daemon.log().contains("panic"), "the daemon panicked: {}", daemon.log());
}

/// Sends a row; afterwards the daemon lives and the chain log is as long as before.
async fn attempt(row: &Row, dialer: &Dialer, token: &str, client: &mut Client) -> Result<()> {
    let before = size(client).await?;
    let answer = dialer.exchange(&row.bytes(token), row.method == "HEAD").await?;
    row.check(&answer)?;
    let after = size(client).await.context("the daemon does not answer any more")?;
    if before != after {
        bail!("something was written: the chain log grew from {before} to {after} entries");
    }
    Ok(())
}
