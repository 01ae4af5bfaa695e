//! Receipts and latest-or-absent proofs of a running daemon, verified offline: every flip and every forgery is refused
//! with its reason, by the library and by `samovar verify`; those that are fetched under load hold.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use hyper::Method;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use samovar_fuzz::forge::{self, Honest};
use samovar_node::note::{Scheme, Signer, VerifierKey};
use samovar_node::policy::Policy;
use samovar_node::proof::{Contents, Found, Value, Verifier};
use samovar_tests::durability::{count, seed};
use samovar_tests::{Client, Daemon, Settings, binary};
use serde_json::json;

/// Keys that the ledger has before anything is proved: enough that the state map has levels.
const KEYS: u64 = 24;
/// Names tried until one is absent in the way that is wanted; half of them are.
const NAMES_TRIED: u64 = 1000;
/// Each this many bytes, one flipped file goes through the binary too.
const BINARY_EVERY: usize = 60;

/// A running daemon, and what somebody needs to verify its files.
struct Log {
    daemon: Daemon,
    client: Client,
    verifier: Verifier,
    /// Policy and file under test.
    policy: PathBuf,
    file: PathBuf,
    _directory: tempfile::TempDir,
}

impl Log {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let daemon = Daemon::create(&directory.path().join("data"), Settings::default()).await.unwrap();
        let mut client = daemon.client().await.unwrap();
        let log = client.get("/v1/log").await.unwrap().json().unwrap();
        let policy = log["policy"].as_str().unwrap();
        let verifier = Verifier {
            log: VerifierKey::parse(log["vkey"].as_str().unwrap()).unwrap(),
            policy: Some(Policy::parse(policy.as_bytes()).unwrap()),
            expect_key: None,
        };
        let (policy_file, file) = (directory.path().join("policy"), directory.path().join("file.tlog-proof"));
        write(&policy_file, policy.as_bytes());
        Self { daemon, client, verifier, policy: policy_file, file, _directory: directory }
    }

    /// Puts a value of its own name; gives the revision.
    async fn put(&mut self, key: &str) -> u64 {
        let answer = self.client.put(&format!("/v1/keys/{key}"), format!("value of {key}")).await.unwrap();
        answer.json().unwrap()["revision"].as_u64().unwrap_or_else(|| panic!("PUT {key}: {}", answer.text()))
    }

    async fn transact(&mut self, operations: serde_json::Value) -> u64 {
        let (headers, body) = ([("content-type", "application/json")], json!({ "operations": operations }).to_string());
        let answer = self.client.request(Method::POST, "/v1/transactions", &headers, body).await.unwrap();
        answer.json().unwrap()["transaction"].as_u64().unwrap_or_else(|| panic!("transaction: {}", answer.text()))
    }

    async fn text(&mut self, path: &str) -> String {
        let answer = self.client.get(path).await.unwrap();
        assert_eq!(answer.status, 200, "GET {path}: {}", answer.text());
        answer.text()
    }

    async fn receipt(&mut self, index: u64) -> String {
        self.text(&format!("/v1/transactions/{index}/receipt?wait=quorum")).await
    }

    async fn proof(&mut self, key: &str) -> String {
        self.text(&format!("/v1/proofs/{key}")).await
    }

    /// A key that does not exist and whose proof has `end` for a leaf, and that proof.
    async fn absent(&mut self, end: &str) -> (String, String) {
        for n in 0..NAMES_TRIED {
            let key = format!("absent/{n}");
            let proof = self.proof(&key).await;
            if forge::extra(&proof).contains(&format!("\"leaf\":{end}")) {
                return (key, proof);
            }
        }
        panic!("expected one of {NAMES_TRIED} absent keys to have the leaf {end}");
    }

    /// `samovar verify` on these bytes.
    fn verify(&self, file: &[u8], key: &str, policy: bool, expect_key: Option<&str>) -> Output {
        write(&self.file, file);
        let mut command = Command::new(binary().unwrap());
        command.arg("verify").arg(&self.file).args(["--key", key]);
        if policy {
            command.arg("--policy").arg(&self.policy);
        }
        command.args(expect_key.map(|key| ["--expect-key", key]).into_iter().flatten());
        command.output().unwrap()
    }

    fn own_key(&self) -> String {
        self.verifier.log.to_string()
    }
}

fn write(path: &Path, bytes: &[u8]) {
    fs::File::create(path).and_then(|mut f| std::io::Write::write_all(&mut f, bytes)).unwrap();
}

/// The binary refused, by its own words and not by a panic.
#[track_caller]
fn assert_refused(output: &Output, reason: &str, what: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{what}: `samovar verify` must end with 1; it said {said}");
    let (_, given) = said.split_once("refused: ").unwrap_or_else(|| panic!("{what}: no reason in {said}"));
    assert!(given.contains(reason), "{what}: expected the reason {reason:?}, got {given}");
}

#[track_caller]
fn assert_good(output: &Output, what: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{what}: `samovar verify` must accept it; it said {said}");
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("Good: "), "{what}: it must say what it proves");
}

/// Writes a history and takes the files that all forgeries begin in.
async fn honest(log: &mut Log) -> Honest {
    for n in 0..KEYS {
        log.put(&format!("menu/{n}")).await;
    }
    let secret = log.put("secret").await;
    let put = |key: &str, bytes: &str| json!({ "put": { "key": key, "bytes": bytes, "type": "text/plain" } });
    let two = log.transact(json!([put("two/a", "Zmlyc3Q="), put("two/b", "c2Vjb25k")])).await;
    log.receipt(two).await;
    let older_absent = log.proof("new").await;
    log.transact(json!([{ "erase": { "key": "secret", "revision": secret } }])).await;
    let last = log.put("new").await;
    // From here on nothing is written: one checkpoint for all.
    log.receipt(last).await;
    let (absent, absent_proof) = log.absent("{\"key\":").await;
    let (empty, _) = log.absent("null").await;
    Honest {
        receipt: log.receipt(two).await,
        neighbour: log.receipt(two + 1).await,
        older_checkpoint: forge::note(&older_absent).to_owned(),
        proof: log.proof("menu/7").await,
        present: "menu/7".into(),
        other: "menu/8".into(),
        absent_proof,
        absent,
        empty,
        erased: log.proof("secret").await,
        older_block: log.receipt(forge::index(&older_absent)).await,
        older_absent,
    }
}

#[tokio::test]
async fn a_flip_of_any_byte_of_a_live_file_is_refused() {
    let mut log = Log::new().await;
    let honest = honest(&mut log).await;
    let key = log.own_key();
    let files = [("receipt", &honest.receipt), ("proof of a value", &honest.proof), ("absence", &honest.absent_proof)];
    for (name, good) in files {
        let held = log.verifier.verify(good.as_bytes()).unwrap_or_else(|e| panic!("{name} must hold as it is: {e}"));
        assert!(!held.cosigned.is_empty(), "{name}: the policy must need the node's cosignature");
        assert_good(&log.verify(good.as_bytes(), &key, true, None), name);
        for at in 0..good.len() {
            for flip in [0x01, 0xff, 1 << (at % 8)] {
                let mut bytes = good.clone().into_bytes();
                bytes[at] ^= flip;
                let what = format!("{name}, byte {at} of {} xor {flip:#x}", good.len());
                let refused = log.verifier.verify(&bytes).expect_err(&what).to_string();
                assert!(refused.len() > 10, "{what}: a reason was expected, got {refused:?}");
                if at % BINARY_EVERY == 0 && flip == 1 {
                    assert_refused(&log.verify(&bytes, &key, true, None), &refused, &what);
                }
            }
        }
        let more = format!("{good}{}", forge::UNKNOWN_SIGNATURE);
        let held = log.verifier.verify(more.as_bytes());
        held.unwrap_or_else(|e| panic!("{name} with an unknown signature must hold: {e}"));
        assert_good(&log.verify(more.as_bytes(), &key, true, None), &format!("{name} with an unknown signature"));
        println!("{name}: {} bytes, three flips each, all refused", good.len());
    }
}

#[tokio::test]
async fn every_forgery_of_a_live_file_is_refused_for_its_reason() {
    let mut log = Log::new().await;
    let honest = honest(&mut log).await;
    let own = log.own_key();
    let Honest { receipt, neighbour, proof, absent_proof, erased, older_absent, older_block, .. } = &honest;
    for file in [receipt, neighbour, proof, absent_proof, erased, older_absent, older_block] {
        log.verifier.verify(file.as_bytes()).unwrap_or_else(|e| panic!("an honest file was refused, {e}:\n{file}"));
    }
    let table = forge::table(&honest);
    for row in &table {
        let what = format!("{} ({})", row.name, row.why);
        let refused = log.verifier.verify(row.file.as_bytes()).expect_err(&what).to_string();
        assert!(refused.contains(row.reason), "{what}: expected the reason {:?}, got {refused}", row.reason);
        assert_refused(&log.verify(row.file.as_bytes(), &own, true, None), row.reason, &what);
    }
    let stranger = Signer::from_seed(log.verifier.log.name(), Scheme::Ed25519, &[7; 32]).unwrap();
    let stranger = stranger.verifier_key().to_string();
    let asked = [
        ("other log's key", receipt, &stranger, false, None, "another log key"),
        ("other log's key, under the policy", receipt, &stranger, true, None, "another log key"),
        ("another key's proof", proof, &own, true, Some("menu/8"), "is about the key"),
        ("another key's absence", absent_proof, &own, true, Some("menu/8"), "is about the key"),
        ("the receipt of another key", receipt, &own, true, Some("menu/8"), "does not name the key"),
    ];
    for (what, file, key, policy, expect, reason) in &asked {
        assert_refused(&log.verify(file.as_bytes(), key, *policy, *expect), reason, what);
    }
    assert_good(&log.verify(proof.as_bytes(), &own, true, Some("menu/7")), "the key asked for");
    println!("{} forgeries and {} wrong questions refused", table.len(), asked.len());
}

/// Puts that arrive at a given rate, whatever the daemon does: an open loop, as far as its connections reach.
struct Arrivals {
    /// Puts a second.
    rate: u64,
    begun: Instant,
    due: AtomicU64,
    answered: AtomicU64,
    over: AtomicBool,
}

/// Connections of the open loop: what the daemon answers within 25 ms keeps to the schedule at 5,000 a second.
const CONNECTIONS: usize = 128;
/// Keys under load.
const LOADED_KEYS: u64 = 4096;
/// Proofs, and as many receipts, that are fetched meanwhile.
const FETCHED: u64 = 1000;
/// Connections that fetch.
const FETCHERS: u64 = 8;
/// Least time of the load: shorter, a rate says nothing.
const LOAD_SECONDS: Duration = Duration::from_secs(4);

/// What the nth put writes: everybody can tell from a value where it belongs.
fn loaded(n: u64) -> (String, String) {
    (format!("load/{}", n % LOADED_KEYS), format!("put {n}"))
}

impl Arrivals {
    /// One connection's share; gives (put, revision) of some of what was acknowledged.
    async fn put(self: Arc<Self>, mut client: Client) -> Vec<(u64, u64)> {
        let mut acknowledged = Vec::new();
        while !self.over.load(Relaxed) {
            let n = self.due.fetch_add(1, Relaxed);
            let at = self.begun + Duration::from_micros(n * 1_000_000 / self.rate);
            tokio::time::sleep_until(at.into()).await;
            let (key, value) = loaded(n);
            let answer = client.put(&format!("/v1/keys/{key}"), value).await.unwrap();
            let revision = answer.json().unwrap()["revision"].as_u64();
            acknowledged.push((n, revision.unwrap_or_else(|| panic!("PUT {key}: {}", answer.text()))));
            self.answered.fetch_add(1, Relaxed);
        }
        acknowledged
    }
}

/// Fetches proofs of keys under load, and receipts of puts just acknowledged on the same connection.
async fn fetch(mut client: Client, fetcher: u64, seed: u64) -> Vec<(String, Option<(u64, String)>)> {
    let mut rng = StdRng::seed_from_u64(seed ^ fetcher);
    let mut files = Vec::new();
    for n in 0..FETCHED / FETCHERS {
        let key = format!("load/{}", rng.gen_range(0..LOADED_KEYS));
        let proof = client.get(&format!("/v1/proofs/{key}")).await.unwrap();
        assert_eq!(proof.status, 200, "the proof of {key} under load: {}", proof.text());
        files.push((proof.text(), None));
        let own = format!("own/{fetcher}/{n}");
        let put = client.put(&format!("/v1/keys/{own}"), own.clone()).await.unwrap().json().unwrap();
        let index = put["transaction"].as_u64().unwrap();
        let receipt = client.get(&format!("/v1/transactions/{index}/receipt?wait=quorum")).await.unwrap();
        assert_eq!(receipt.status, 200, "the receipt of entry {index} under load: {}", receipt.text());
        files.push((receipt.text(), Some((index, own))));
    }
    files
}

/// What a proof under load must say, from all that was acknowledged: a put of this key, at that put's revision.
fn check_latest(key: &str, found: &Found, revisions: &BTreeMap<u64, u64>) {
    let Found::Value { revision, value: Some(value) } = found else {
        assert_eq!(*found, Found::Absent, "{key}: nobody erases it");
        return;
    };
    let text = String::from_utf8_lossy(value).into_owned();
    let n: u64 = text.strip_prefix("put ").and_then(|n| n.parse().ok()).expect("a value of the load");
    assert_eq!(loaded(n).0, key, "the value {text:?} belongs to another key");
    if let Some(acknowledged) = revisions.get(&n) {
        assert_eq!(acknowledged, revision, "{key}: the revision of {text:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proofs_and_receipts_fetched_under_load_hold() {
    let seed = seed("proofs_and_receipts_fetched_under_load_hold");
    let log = Log::new().await;
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(log.daemon.client().await.unwrap());
    }
    let arrivals = Arc::new(Arrivals {
        rate: count("SAMOVAR_PUTS_PER_SECOND", 5_000),
        begun: Instant::now(),
        due: AtomicU64::new(0),
        answered: AtomicU64::new(0),
        over: AtomicBool::new(false),
    });
    let mut load = tokio::task::JoinSet::new();
    for client in clients {
        load.spawn(Arc::clone(&arrivals).put(client));
    }
    let mut fetching = tokio::task::JoinSet::new();
    for fetcher in 0..FETCHERS {
        fetching.spawn(fetch(log.daemon.client().await.unwrap(), fetcher, seed));
    }
    let files = fetching.join_all().await.concat();
    let fetched_in = arrivals.begun.elapsed();
    tokio::time::sleep_until((arrivals.begun + LOAD_SECONDS).into()).await;
    let (elapsed, answered) = (arrivals.begun.elapsed(), arrivals.answered.load(Relaxed));
    arrivals.over.store(true, Relaxed);
    let revisions: BTreeMap<u64, u64> = load.join_all().await.concat().into_iter().collect();
    drop(log.daemon);

    let (mut values, mut newest) = (0, 0);
    for (file, receipt) in &files {
        let verified = log.verifier.verify(file.as_bytes());
        let verified = verified.unwrap_or_else(|e| panic!("seed {seed}: fetched under load, refused, {e}:\n{file}"));
        newest = newest.max(verified.checkpoint.size);
        match (verified.contents, receipt) {
            (Contents::Receipt(held), Some((index, own))) => {
                assert_eq!((held.index, &held.values[..]), (*index, &[(own.clone(), known(own))][..]), "a receipt");
            }
            (Contents::Latest(latest), None) => {
                values += u64::from(matches!(latest.found, Found::Value { .. }));
                check_latest(&latest.key, &latest.found, &revisions);
            }
            (contents, _) => panic!("a file of the other kind was fetched: {contents:?}"),
        }
    }
    let per_second = answered * 1000 / u64::try_from(elapsed.as_millis()).unwrap().max(1);
    println!(
        "RESULT proofs under load: {} files fetched in {fetched_in:?}, all hold, {values} of the proofs of a value; {} puts \
         a second offered, {per_second} answered over {elapsed:?}; newest checkpoint {newest} entries",
        files.len(),
        arrivals.rate
    );
    assert_eq!(files.len() as u64, 2 * FETCHED, "files fetched");
    assert!(values > 0, "no key under load had a value yet: the load did not run beside");
    let least = arrivals.rate * count("SAMOVAR_PUTS_PERCENT_MIN", 0) / 100;
    assert!(per_second >= least.max(1), "{per_second} puts a second were answered, at least {least} were asked for");
}

fn known(value: &str) -> Value {
    Value::Known(value.as_bytes().to_vec())
}
