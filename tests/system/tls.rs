//! Every secret replaced under load: clients that verify what they are shown lose no request.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use hyper::Method;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use samovar_tests::{Client, Daemon, Settings};
use serde_json::{Value, json};

/// Requests a second, all clients together; the long lane asks for 200.
const RATE: &str = "SAMOVAR_TLS_RATE";
/// Seconds of load between two rotations.
const PAUSE: &str = "SAMOVAR_TLS_PAUSE";
const PASSWORD: &str = "a samovar in every house";

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

/// What the clients saw.
#[derive(Default)]
struct Seen {
    answered: AtomicU64,
    /// Clients that share the rate now: it stays the same however many there are.
    asking: AtomicU64,
    failures: std::sync::Mutex<Vec<String>>,
}

impl Seen {
    fn note(&self, who: &str, outcome: anyhow::Result<u16>) {
        match outcome {
            Ok(200 | 201) => drop(self.answered.fetch_add(1, Relaxed)),
            Ok(status) => self.failures.lock().unwrap().push(format!("{who}: status {status}")),
            Err(error) => self.failures.lock().unwrap().push(format!("{who}: {error:#}")),
        }
    }
}

/// A client that asks at its share of the rate until it is told to stop.
struct Asker {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<u64>,
}

/// How a client asks.
struct Manner {
    who: &'static str,
    ca: PathBuf,
    token: String,
    /// Requests of a connection; 0: all.
    per_connection: u64,
}

impl Asker {
    /// `pace`: between two requests of all clients together.
    fn start(port: u16, manner: Manner, pace: Duration, seen: &Arc<Seen>) -> Self {
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), seen.clone());
        seen.asking.fetch_add(1, Relaxed);
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let (mut client, mut asked) = (None, 0u64);
            let mut due = tokio::time::Instant::now();
            while !stopped.load(Relaxed) {
                // Whoever was late makes up for it.
                tokio::time::sleep_until(due).await;
                due += pace * u32::try_from(seen.asking.load(Relaxed)).expect("a few");
                let outcome = ask(port, &manner, &mut client, asked).await;
                seen.note(manner.who, outcome);
                asked += 1;
                if manner.per_connection > 0 && asked % manner.per_connection == 0 {
                    client = None;
                }
            }
            seen.asking.fetch_sub(1, Relaxed);
            asked
        });
        Self { stop, task }
    }

    /// Stops it after the request that it is at; how many it made.
    async fn stop(self) -> u64 {
        self.stop.store(true, Relaxed);
        self.task.await.unwrap()
    }
}

async fn ask(port: u16, manner: &Manner, client: &mut Option<Client>, n: u64) -> anyhow::Result<u16> {
    let mut open = match client.take() {
        Some(open) => open,
        None => Client::connect(port, &manner.ca, Some(&manner.token)).await?,
    };
    let answer = match n % 2 {
        0 => open.put(&format!("/v1/keys/load/{}", manner.who), n.to_string()).await?,
        _ => open.get("/v1/keys?prefix=load/").await?,
    };
    *client = Some(open);
    Ok(answer.status)
}

/// Runs a command of the binary, which must succeed.
async fn good(daemon: &Daemon, words: &[&str]) -> Value {
    let mut command: Command = daemon.command(words).unwrap();
    command.args(["--output", "json"]);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "`samovar {}` was expected to succeed: {said}", words.join(" "));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Copies one of the certificates of `ca.pem` into a file of its own, as a client has it.
fn copy_of(daemon: &Daemon, at: usize, to: &Path) -> PathBuf {
    let text = std::fs::read_to_string(daemon.data().join("ca.pem")).unwrap();
    let blocks: Vec<_> = text.split_inclusive("-----END CERTIFICATE-----\n").collect();
    let mut file = std::fs::File::create(to).unwrap();
    std::io::Write::write_all(&mut file, blocks[at].as_bytes()).unwrap();
    to.to_owned()
}

async fn session(daemon: &Daemon) -> String {
    let mut admin = daemon.client().await.unwrap();
    let json_body = [("content-type", "application/json")];
    let user = json!({ "name": "alice", "role": "writer", "password": PASSWORD }).to_string();
    let made = admin.request(Method::POST, "/v1/users", &json_body, user).await.unwrap();
    assert_eq!(made.status, 201, "{}", made.text());
    let login = json!({ "user": "alice", "password": PASSWORD }).to_string();
    let answer = admin.request(Method::POST, "/v1/login", &json_body, login).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json().unwrap()["token"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotations_under_load_lose_no_request() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::create(&directory.path().join("data"), Settings::default()).await.unwrap();
    let (rate, pause) = (setting(RATE, 40), Duration::from_secs(setting(PAUSE, 1)));
    let token = std::fs::read_to_string(daemon.data().join("admin.token")).unwrap().trim().to_owned();
    let old_ca = copy_of(&daemon, 0, &directory.path().join("old.pem"));
    let session = session(&daemon).await;
    let seen = Arc::new(Seen::default());
    let pace = Duration::from_secs(1) / u32::try_from(rate).unwrap();
    let start = |who, ca: &Path, token: &str, per_connection| {
        let manner = Manner { who, ca: ca.to_owned(), token: token.to_owned(), per_connection };
        Asker::start(daemon.port(), manner, pace, &seen)
    };
    let kept = start("kept", &old_ca, &token, 0);
    let with_session = start("session", &old_ca, &session, 5);
    let fresh_old = start("fresh-old", &old_ca, &token, 1);
    let begun = tokio::time::Instant::now();

    tokio::time::sleep(pause).await;
    good(&daemon, &["rotate", "sessions"]).await;
    tokio::time::sleep(pause).await;
    let log_key = log_key_rotated(&daemon).await;
    tokio::time::sleep(pause).await;
    let node = good(&daemon, &["rotate", "node"]).await;
    tokio::time::sleep(pause).await;
    let (old_id, old_token) = api_key(&daemon).await;
    let with_key = start("api-key", &old_ca, &old_token, 1);
    tokio::time::sleep(pause).await;
    let save = directory.path().join("new.token");
    let words = ["rotate", "api-key", &old_id, "--grace", "10m", "--save", save.to_str().unwrap()];
    let api_key = good(&daemon, &words).await;
    let new_token = std::fs::read_to_string(&save).unwrap().trim().to_owned();
    let with_new_key = start("new-api-key", &old_ca, &new_token, 1);
    tokio::time::sleep(pause).await;
    let mut asked = with_key.stop().await;
    let new_id = api_key["id"].as_str().unwrap().to_owned();
    let ca = good(&daemon, &["rotate", "ca"]).await;
    let new_ca = copy_of(&daemon, 0, &directory.path().join("new.pem"));
    let fresh_new = start("fresh-new", &new_ca, &token, 1);
    tokio::time::sleep(pause).await;
    let status = good(&daemon, &["status"]).await;
    assert_eq!(status["tls"]["rolling_over"], true, "the status tells of a roll-over: {status}");
    let again = daemon.command(&["rotate", "ca"]).unwrap().output().unwrap();
    assert_eq!(again.status.code(), Some(1), "a second roll-over within the first is refused");

    // Who knows only the old CA is not served after the end; those with connections stay.
    asked += fresh_old.stop().await + with_session.stop().await + with_new_key.stop().await;
    good(&daemon, &["rotate", "ca", "--finish"]).await;
    tokio::time::sleep(pause).await;
    let elapsed = begun.elapsed();
    asked += kept.stop().await + fresh_new.stop().await;
    let (answered, failures) = (seen.answered.load(Relaxed), seen.failures.lock().unwrap().clone());
    let offered = u64::try_from(elapsed.as_millis()).unwrap() * rate / 1000;
    println!(
        "RESULT rotations: {offered} requests offered at {rate} a second, {asked} sent, {answered} answered in {elapsed:?}, \
         {} failed",
        failures.len()
    );
    assert!(failures.is_empty(), "no request may fail; {} of {asked} did: {failures:#?}", failures.len());
    assert!(answered == asked && asked > 40, "{answered} of {asked} requests were answered");
    assert!(asked * 100 >= offered * 95, "void: of {offered} requests {asked} were sent; a quieter machine is needed");

    let refused = Client::connect(daemon.port(), &old_ca, None).await.err();
    assert!(refused.is_some(), "the old CA must not count after the end of the roll-over");
    assert_ne!(node["certificate"], ca["certificate"]);
    each_is_an_entry_with_a_receipt(&daemon, &[&node, &ca]).await;
    log_key.followed(&daemon).await;
    let last = directory.path().join("last");
    good(&daemon, &["rotate", "api-key", &new_id, "--save", last.to_str().unwrap()]).await;
    let mut refused = Client::connect(daemon.port(), &new_ca, Some(&new_token)).await.unwrap();
    assert_eq!(refused.get("/v1/me").await.unwrap().status, 401, "without grace the key before ends at once");
    an_ended_key_has_no_successor(&daemon).await;
}

/// A key that was switched off is refused a successor: that would switch it on again.
async fn an_ended_key_has_no_successor(daemon: &Daemon) {
    let (id, _) = api_key(daemon).await;
    let mut admin = daemon.client().await.unwrap();
    let path = format!("/v1/api-keys/{id}");
    let off = json!({ "name": "load", "role": "writer", "disabled": true }).to_string();
    let headers = [("content-type", "application/json")];
    let changed = admin.request(Method::PUT, &path, &headers, off).await.unwrap();
    assert_eq!(changed.status, 200, "an administrator switches a key off: {}", changed.text());
    let refused = admin.request(Method::POST, &format!("{path}/successor"), &[], "").await.unwrap();
    let problem = refused.json().unwrap();
    assert_eq!(problem["type"], "urn:samovar:problem:api-key-ended", "a disabled key has no successor: {problem}");
}

/// An API key of a writer: id and token.
async fn api_key(daemon: &Daemon) -> (String, String) {
    let mut admin = daemon.client().await.unwrap();
    let body = json!({ "name": "load", "role": "writer" }).to_string();
    let headers = [("content-type", "application/json")];
    let made = admin.request(Method::POST, "/v1/api-keys", &headers, body).await.unwrap().json().unwrap();
    (made["id"].as_str().unwrap().to_owned(), made["token"].as_str().unwrap().to_owned())
}

/// What an auditor has who was there before a rotation of the log key.
struct Auditor {
    /// Verifier key of before.
    key: String,
    /// A receipt and a proof of before.
    saved: Vec<Vec<u8>>,
    transaction: u64,
}

async fn log_key_rotated(daemon: &Daemon) -> Auditor {
    let mut admin = daemon.client().await.unwrap();
    let key = admin.get("/v1/log").await.unwrap().json().unwrap()["vkey"].as_str().unwrap().to_owned();
    let mut saved = Vec::new();
    for path in ["/v1/transactions/2/receipt?wait=quorum", "/v1/proofs/load/kept"] {
        let answer = admin.get(path).await.unwrap();
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        saved.push(answer.body.to_vec());
    }
    let rotated = good(daemon, &["rotate", "log-key"]).await;
    assert_ne!(rotated["vkey"], key, "the key is a new one");
    let file = std::fs::read_to_string(daemon.data().join("log.vkey")).unwrap();
    assert_eq!(rotated["vkey"], file.trim(), "log.vkey follows");
    Auditor { key, saved, transaction: rotated["transaction"].as_u64().unwrap() }
}

impl Auditor {
    /// With the key of before and the receipt of the change everything verifies, without that only what was saved.
    async fn followed(&self, daemon: &Daemon) {
        let mut admin = daemon.client().await.unwrap();
        let log = admin.get("/v1/log").await.unwrap().json().unwrap();
        assert_eq!(log["key_changes"], json!([self.transaction]), "{log}");
        let directory = tempfile::tempdir().unwrap();
        let chain = directory.path().join("chain");
        std::fs::create_dir(&chain).unwrap();
        let write = |path: &Path, bytes: &[u8]| {
            let mut file = std::fs::File::create(path).unwrap();
            std::io::Write::write_all(&mut file, bytes).unwrap();
        };
        let mut newer = Vec::new();
        for path in ["/v1/transactions/2/receipt?wait=quorum", "/v1/proofs/load/kept"] {
            newer.push(admin.get(path).await.unwrap().body.to_vec());
        }
        let change = admin.get(&format!("/v1/transactions/{}/receipt", self.transaction)).await.unwrap();
        write(&chain.join(self.transaction.to_string()), &change.body);
        for (what, files, holds_without) in [("saved before", &self.saved, true), ("asked for later", &newer, false)] {
            for (n, file) in files.iter().enumerate() {
                let path = directory.path().join("file");
                write(&path, file);
                for followed in [true, false] {
                    let mut verify = daemon.command(&["verify", path.to_str().unwrap(), "--key", &self.key]).unwrap();
                    if followed {
                        verify.arg("--chain").arg(&chain);
                    }
                    let output = verify.output().unwrap();
                    let said = String::from_utf8_lossy(&output.stderr).into_owned();
                    let holds = followed || holds_without;
                    assert_eq!(output.status.success(), holds, "file {n} {what}, chain {followed}: {said}");
                    assert!(holds || said.contains("--chain DIR"), "the refusal says what to do: {said}");
                }
            }
        }
    }
}

async fn each_is_an_entry_with_a_receipt(daemon: &Daemon, rotations: &[&Value]) {
    let mut admin = daemon.client().await.unwrap();
    for rotated in rotations {
        let n = rotated["transaction"].as_u64().expect("the command names the transaction");
        let entry = admin.get(&format!("/v1/transactions/{n}")).await.unwrap();
        assert!(entry.text().contains("~tls/"), "entry {n} says what was rotated: {}", entry.text());
        let receipt = admin.get(&format!("/v1/transactions/{n}/receipt?wait=quorum")).await.unwrap();
        assert_eq!(receipt.status, 200, "entry {n} has a receipt: {}", receipt.text());
    }
}

/// Certificates as a box has them that was switched off for eleven years.
fn expire(data: &Path) {
    let key = |name: &str| {
        let pem = std::fs::read_to_string(data.join("tls").join(name)).unwrap();
        rcgen::KeyPair::from_pem(&pem).unwrap()
    };
    let (ca_key, node_key) = (key("ca.key"), key("node.key"));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(data.join("ca.pem")).unwrap()).unwrap();
    let subject = String::from_utf8_lossy(&roots.roots[0].subject).into_owned();
    let name = &subject[subject.find("Samovar CA of ").expect("the CA's name")..];
    let mut ca = rcgen::CertificateParams::default();
    ca.distinguished_name = rcgen::DistinguishedName::new();
    ca.distinguished_name.push(rcgen::DnType::CommonName, name);
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(1));
    (ca.not_before, ca.not_after) = (rcgen::date_time_ymd(2005, 1, 1), rcgen::date_time_ymd(2015, 1, 1));
    let mut node = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    (node.not_before, node.not_after) = (rcgen::date_time_ymd(2013, 1, 1), rcgen::date_time_ymd(2015, 1, 1));
    let signed = node.signed_by(&node_key, &rcgen::Issuer::from_params(&ca, &ca_key)).unwrap();
    for (file, pem) in [("ca.pem", ca.self_signed(&ca_key).unwrap().pem()), ("tls/node.pem", signed.pem())] {
        let mut file = std::fs::File::create(data.join(file)).unwrap();
        std::io::Write::write_all(&mut file, pem.as_bytes()).unwrap();
    }
}

#[tokio::test]
async fn a_node_whose_certificates_all_expired_heals_at_its_start() {
    let directory = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::create(&directory.path().join("data"), Settings::default()).await.unwrap();
    daemon.stop().unwrap();
    expire(daemon.data());
    let expired = copy_of(&daemon, 0, &directory.path().join("expired.pem"));
    // Ready means that a client with the new ca.pem verified the node.
    daemon.start().await.unwrap();
    let token = std::fs::read_to_string(daemon.data().join("admin.token")).unwrap();
    // Its key is the same, so that copies of the old certificate are as good to whom dates of a root do not matter.
    let mut client = Client::connect(daemon.port(), &expired, Some(token.trim())).await.expect("the CA's key is kept");
    let status = client.get("/v1/status").await.unwrap().json().unwrap();
    let (node, ca) = (&status["tls"]["node_not_after_s"], &status["tls"]["ca_not_after_s"]);
    let now_s = status["now_ms"].as_u64().unwrap() / 1000;
    for (which, end) in [("node", node), ("ca", ca)] {
        assert!(end.as_u64().is_some_and(|end| end > now_s), "the certificate `{which}` ends {end}, it is {now_s}");
    }
    assert_eq!(status["tls"]["rolling_over"], false, "a renewal is no roll-over");
}
