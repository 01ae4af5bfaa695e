//! Erased is erased: neither salt nor value is left in any file, and every proof still holds.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use samovar_tests::durability::{from_base64, to_base64};
use samovar_tests::{Client, Daemon, Settings, binary};
use serde_json::Value;

/// The promise of the documentation; usually it is seconds.
const ERASED_WITHIN: Duration = Duration::from_secs(600);
/// Files are searched in pieces of this size; the pieces of sparse files that are all zero are passed over.
const PIECE_BYTES: usize = 64 << 10;

/// The forms in which bytes could lie in a file.
fn forms(bytes: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    let numbers = bytes.iter().map(u8::to_string).collect::<Vec<_>>();
    vec![
        ("raw", bytes.to_vec()),
        ("hex", hex.clone().into_bytes()),
        ("HEX", hex.to_uppercase().into_bytes()),
        ("base64", to_base64(bytes).trim_end_matches('=').as_bytes().to_vec()),
        ("JSON array", numbers.join(",").into_bytes()),
        ("spaced JSON array", numbers.join(", ").into_bytes()),
    ]
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|b| *b == needle[0]) {
        if rest[at..].starts_with(needle) {
            return true;
        }
        rest = &rest[at + 1..];
    }
    false
}

/// Where any form of `secret` lies under a directory: `file (form)`.
fn find(directory: &Path, secret: &[u8]) -> Vec<String> {
    let forms = forms(secret);
    let overlap = forms.iter().map(|(_, needle)| needle.len()).max().unwrap();
    let mut found = Vec::new();
    for path in files(directory) {
        // A file may go while we look: then nothing is in it.
        let Ok(bytes) = fs::read(&path) else { continue };
        for from in (0..bytes.len()).step_by(PIECE_BYTES) {
            let piece = &bytes[from..bytes.len().min(from + PIECE_BYTES + overlap)];
            if piece.iter().all(|b| *b == 0) {
                continue;
            }
            let hits = forms.iter().filter(|(_, needle)| contains(piece, needle));
            found.extend(hits.map(|(form, _)| format!("{} ({form})", path.display())));
        }
    }
    found
}

/// The JSON in a proof file.
fn extra(file: &str) -> Value {
    let line = file.lines().find_map(|line| line.strip_prefix("extra ")).expect("a proof file has an extra line");
    serde_json::from_slice(&from_base64(line).unwrap()).unwrap()
}

async fn receipt(client: &mut Client, index: u64) -> String {
    let answer = client.get(&format!("/v1/transactions/{index}/receipt?wait=quorum")).await.unwrap();
    assert_eq!(answer.status, 200, "receipt of {index}: {}", answer.text());
    answer.text()
}

/// `samovar verify` accepts a file; returns what it said.
fn verified(daemon: &Daemon, directory: &Path, file: &str, key: &str) -> String {
    let path = directory.join("proof.tlog-proof");
    fs::File::create(&path).and_then(|mut f| std::io::Write::write_all(&mut f, file.as_bytes())).unwrap();
    let mut verify = std::process::Command::new(binary().unwrap());
    verify.arg("verify").arg(&path).args(["--expect-key", key, "--key"]).arg(daemon.data().join("log.vkey"));
    let output = verify.output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "`samovar verify` was expected to accept, but said: {said}\n{file}");
    said
}

async fn put(client: &mut Client, key: &str, value: Vec<u8>) -> u64 {
    let answer = client.put(&format!("/v1/keys/{key}"), value).await.unwrap();
    assert!(matches!(answer.status, 200 | 201), "put of {key}: {}", answer.text());
    answer.json().unwrap()["revision"].as_u64().unwrap()
}

async fn erase(client: &mut Client, key: &str, revision: u64) -> u64 {
    let body = serde_json::json!({ "operations": [{ "erase": { "key": key, "revision": revision } }] }).to_string();
    let json = [("content-type", "application/json")];
    let answer = client.request(hyper::Method::POST, "/v1/transactions", &json, body).await.unwrap();
    assert_eq!(answer.status, 201, "erase: {}", answer.text());
    answer.json().unwrap()["transaction"].as_u64().unwrap()
}

/// After an erase: what reading, receipt and proof say of it.
async fn says_erased(daemon: &Daemon, directory: &Path, key: &str, revision: u64, by: u64) {
    let mut client = daemon.client().await.unwrap();
    let answer = client.get(&format!("/v1/keys/{key}")).await.unwrap();
    assert_eq!((answer.status, answer.json().unwrap()["erased_by"].as_u64()), (410, Some(by)), "{}", answer.text());
    let later = receipt(&mut client, revision).await;
    assert_eq!(extra(&later)["openings"][0]["erased"], by, "a receipt fetched after the erase names its entry");
    assert!(verified(daemon, directory, &later, key).contains("erased"), "verify says that the value is erased");
    let proof = client.get(&format!("/v1/proofs/{key}")).await.unwrap().text();
    assert_eq!(extra(&proof)["map"]["leaf"]["erased"], by, "a latest-or-absent proof names the erase");
    assert!(verified(daemon, directory, &proof, key).contains("erased"), "verify says that the latest is erased");
}

#[tokio::test]
async fn an_erased_value_is_in_no_file() {
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let mut daemon = Daemon::create(&directory.path().join("data"), Settings::default()).await.unwrap();
    let mut client = daemon.client().await.unwrap();
    let secret: Vec<u8> = (0..96).map(|_| rand::random::<u8>()).collect();
    put(&mut client, "people/before", b"stays".to_vec()).await;
    let revision = put(&mut client, "people/ada", secret.clone()).await;
    let kept = put(&mut client, "people/after", b"stays too".to_vec()).await;

    let saved = receipt(&mut client, revision).await;
    let opening = extra(&saved)["openings"][0].clone();
    assert_eq!(from_base64(opening["value"].as_str().unwrap()).unwrap(), secret, "the receipt opens the value");
    let salt = from_base64(opening["salt"].as_str().unwrap()).unwrap();
    for (what, bytes) in [("salt", &salt), ("value", &secret)] {
        let found = find(daemon.data(), bytes);
        println!("before the erase the {what} lies in {found:?}");
        assert!(!found.is_empty(), "the search must find the {what} before the erase, else it shows nothing after it");
    }

    let begun = Instant::now();
    let by = erase(&mut client, "people/ada", revision).await;
    loop {
        let found = [find(daemon.data(), &salt), find(daemon.data(), &secret)].concat();
        if found.is_empty() {
            break;
        }
        assert!(begun.elapsed() < ERASED_WITHIN, "after {:?} still there: {found:?}", begun.elapsed());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    println!("RESULT erase: neither salt nor value in any file after {:?}", begun.elapsed());

    verified(&daemon, directory.path(), &saved, "people/ada");
    says_erased(&daemon, directory.path(), "people/ada", revision, by).await;
    daemon.kill().unwrap();
    daemon.start().await.unwrap();
    says_erased(&daemon, directory.path(), "people/ada", revision, by).await;
    let found = [find(daemon.data(), &salt), find(daemon.data(), &secret)].concat();
    assert!(found.is_empty(), "a restart after kill -9 brought back {found:?}");
    let answer = daemon.client().await.unwrap().get("/v1/keys/people/after").await.unwrap();
    assert_eq!((answer.status, answer.body.as_ref()), (200, &b"stays too"[..]), "revision {kept} was not erased");
}
