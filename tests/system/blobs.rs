//! Blobs over HTTPS: up, down, in part; cut, damaged, erased; in mid-upload when the daemon is killed.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use hyper::Method;
use samovar_tests::durability::to_base64;
use samovar_tests::{Answer, Client, Daemon, Settings};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

use crate::raw::{Dialer, token};

mod commands;
mod large;

/// Longer than several pieces of 64 KiB, and no whole number of them.
const BYTES: usize = 1_000_003;
/// For what a task of the daemon does in seconds.
const PATIENCE: Duration = Duration::from_secs(60);

fn content(n: u8) -> Vec<u8> {
    (0..BYTES).map(|i| u8::try_from(i % 251).unwrap() ^ n).collect()
}

fn digest(bytes: &[u8]) -> String {
    format!("sha-256=:{}:", to_base64(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref()))
}

async fn upload(client: &mut Client, bytes: &[u8], headers: &[(&str, &str)]) -> Answer {
    client.request(Method::POST, "/v1/blobs", headers, bytes.to_vec()).await.unwrap()
}

async fn uploaded(client: &mut Client, bytes: &[u8]) -> String {
    let answer = upload(client, bytes, &[]).await;
    assert_eq!(answer.status, 201, "upload: {}", answer.text());
    let body = answer.json().unwrap();
    assert_eq!(body["size"], bytes.len(), "{body}");
    body["cid"].as_str().unwrap().to_owned()
}

async fn transaction(client: &mut Client, operation: &Value) -> Answer {
    let json_type = [("content-type", "application/json")];
    let body = json!({ "operations": [operation] }).to_string();
    client.request(Method::POST, "/v1/transactions", &json_type, body).await.unwrap()
}

async fn name(client: &mut Client, key: &str, cid: &str) -> u64 {
    let answer = transaction(client, &json!({ "put": { "key": key, "blob": cid, "type": "application/x-tar" } })).await;
    assert_eq!(answer.status, 201, "naming a blob: {}", answer.text());
    answer.json().unwrap()["transaction"].as_u64().unwrap()
}

fn files(data: &Path) -> Vec<String> {
    let entries = fs::read_dir(data.join("blobs")).unwrap();
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Waits until the directory of blobs holds these files.
async fn holds(daemon: &Daemon, expected: &[&str], when: &str) {
    let begun = Instant::now();
    while files(daemon.data()) != expected {
        assert!(
            begun.elapsed() < PATIENCE,
            "{when} the directory of blobs was expected to hold {expected:?}, it holds {:?}",
            files(daemon.data())
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn problem(answer: &Answer) -> (u16, String) {
    let kind = answer.json().ok().and_then(|body| body["type"].as_str().map(str::to_owned)).unwrap_or_default();
    (answer.status, kind.trim_start_matches("urn:samovar:problem:").to_owned())
}

fn header<'a>(answer: &'a Answer, name: &str) -> &'a str {
    answer.headers.get(name).map_or("", |value| value.to_str().unwrap())
}

#[tokio::test]
async fn blobs_come_back_whole_and_in_part() {
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let daemon = Daemon::create(&directory.path().join("data"), Settings::default()).await.unwrap();
    let mut client = daemon.client().await.unwrap();
    let bytes = content(1);
    let cid = uploaded(&mut client, &bytes).await;
    assert_eq!(uploaded(&mut client, &bytes).await, cid, "the same content twice is one blob");
    assert_eq!(files(daemon.data()), [cid.as_str()], "and one file");
    let good = upload(&mut client, &bytes, &[("content-digest", &digest(&bytes))]).await;
    assert_eq!(good.status, 201, "{}", good.text());

    let path = format!("/v1/blobs/{cid}");
    let tag = format!("\"{cid}\"");
    let whole = client.get(&path).await.unwrap();
    assert_eq!((whole.status, whole.body.len()), (200, BYTES));
    assert!(whole.body == bytes, "the blob came back changed");
    assert_eq!((header(&whole, "etag"), header(&whole, "accept-ranges")), (tag.as_str(), "bytes"));
    assert!(header(&whole, "cache-control").contains("private"), "only who may read it may keep it");
    let head = client.request(Method::HEAD, &path, &[], "").await.unwrap();
    assert_eq!((head.status, header(&head, "content-length")), (200, BYTES.to_string().as_str()));

    for (range, expected) in [
        ("bytes=0-0", 0..1),
        ("bytes=65530-65545", 65_530..65_546),
        ("bytes=900000-", 900_000..BYTES),
        ("bytes=-7", BYTES - 7..BYTES),
    ] {
        let part = client.request(Method::GET, &path, &[("range", range)], "").await.unwrap();
        assert_eq!(part.status, 206, "{range}: {}", part.text());
        assert!(part.body == bytes[expected.clone()], "{range} gave other bytes");
        let shown = format!("bytes {}-{}/{BYTES}", expected.start, expected.end - 1);
        assert_eq!(header(&part, "content-range"), shown, "{range}");
    }
    let beyond = client.request(Method::GET, &path, &[("range", "bytes=2000000-")], "").await.unwrap();
    assert_eq!(problem(&beyond), (416, "no-such-range".into()));
    assert_eq!(header(&beyond, "content-range"), format!("bytes */{BYTES}"));
    for (headers, status) in [
        (vec![("range", "bytes=0-0"), ("if-range", tag.as_str())], 206),
        (vec![("range", "bytes=0-0"), ("if-range", "\"another\"")], 200),
        (vec![("if-none-match", tag.as_str())], 304),
        (vec![("if-match", "\"another\"")], 412),
    ] {
        let answer = client.request(Method::GET, &path, &headers, "").await.unwrap();
        assert_eq!(answer.status, status, "{headers:?}");
    }
}

#[tokio::test]
async fn what_is_refused_leaves_nothing() {
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let settings = Settings { toml: "[blobs]\nsize = \"2MiB\"\n".into(), ..Settings::default() };
    let daemon = Daemon::create(&directory.path().join("data"), settings).await.unwrap();
    let mut client = daemon.client().await.unwrap();
    let (bytes, other) = (content(1), digest(&content(2)));
    let mismatch = upload(&mut client, &bytes, &[("content-digest", &other)]).await;
    assert_eq!(problem(&mismatch), (422, "digest-mismatch".into()), "{}", mismatch.text());
    let absent = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku";
    let missing = client.get(&format!("/v1/blobs/{absent}")).await.unwrap();
    assert_eq!(problem(&missing), (404, "no-such-blob".into()));
    let malformed = client.get("/v1/blobs/bafkrei").await.unwrap();
    assert_eq!(problem(&malformed), (400, "invalid-cid".into()));
    let unnamed = transaction(&mut client, &json!({ "put": { "key": "k", "blob": absent } })).await;
    assert_eq!(problem(&unnamed), (422, "no-such-blob".into()), "{}", unnamed.text());
    assert_eq!(client.get("/v1/keys/k").await.unwrap().status, 404, "and nothing was written");

    let dialer = Dialer::new(&daemon, &[b"http/1.1"]).unwrap();
    let head = |length: usize| {
        let token = token(&daemon);
        format!(
            "POST /v1/blobs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nContent-Length: {length}\r\n\r\n"
        )
    };
    let large = dialer.exchange(head(3 << 20).as_bytes(), false).await.unwrap();
    assert_eq!(problem(&large), (413, "too-large".into()), "refused before a byte of it was sent");
    // A body that ends short of its length.
    let mut cut = dialer.connect().await.unwrap();
    cut.write_all(head(BYTES).as_bytes()).await.unwrap();
    cut.write_all(&bytes[..BYTES - 1]).await.unwrap();
    cut.flush().await.unwrap();
    let begun = Instant::now();
    while files(daemon.data()).is_empty() {
        assert!(begun.elapsed() < PATIENCE, "an upload that has begun has a file");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(cut);
    holds(&daemon, &[], "after the upload was cut").await;
}

#[tokio::test]
async fn a_key_names_a_blob_and_an_erase_takes_it_away() {
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let settings = Settings { toml: "[blobs]\nkeep_unnamed = \"1s\"\n".into(), ..Settings::default() };
    let mut daemon = Daemon::create(&directory.path().join("data"), settings).await.unwrap();
    let mut client = daemon.client().await.unwrap();
    let cid = uploaded(&mut client, &content(1)).await;
    let revision = name(&mut client, "tapes/one", &cid).await;
    let second = name(&mut client, "tapes/two", &cid).await;
    uploaded(&mut client, &content(2)).await;
    holds(&daemon, &[&cid], "when what nobody names was collected").await;

    let value = client.get("/v1/keys/tapes/one").await.unwrap();
    assert_eq!((value.status, value.text()), (200, cid.clone()), "the value is the CID");
    assert_eq!(header(&value, "samovar-blob-type"), "application/x-tar");
    let history = client.get("/v1/history/tapes/one").await.unwrap().json().unwrap();
    let version = &history["versions"][0];
    assert_eq!((&version["size"], &version["blob"]), (&json!(BYTES), &json!(true)), "{history}");
    let block = header(&value, "samovar-block").to_owned();
    let past = client.get(&format!("/v1/keys/tapes/one?at={block}")).await.unwrap();
    assert_eq!(past.text(), cid, "as of block {block}");
    for path in ["/v1/proofs/tapes/one".to_owned(), format!("/v1/transactions/{revision}/receipt?wait=quorum")] {
        let file = client.get(&path).await.unwrap();
        assert_eq!(file.status, 200, "{path}: {}", file.text());
        let saved = directory.path().join("proof.tlog-proof");
        fs::File::create(&saved).and_then(|mut f| std::io::Write::write_all(&mut f, &file.body)).unwrap();
        let key = daemon.data().join("log.vkey");
        let mut verify = daemon.command(&["verify"]).unwrap();
        let output = verify.arg(&saved).arg("--key").arg(key).args(["--expect-key", "tapes/one"]).output().unwrap();
        assert!(output.status.success(), "verify of {path}: {}", String::from_utf8_lossy(&output.stderr));
    }

    let erase = |key: &str, revision: u64| json!({ "erase": { "key": key, "revision": revision } });
    assert_eq!(transaction(&mut client, &erase("tapes/one", revision)).await.status, 201);
    assert_eq!(client.get(&format!("/v1/blobs/{cid}")).await.unwrap().status, 200, "another key names it");
    daemon.kill().unwrap();
    daemon.start().await.unwrap();
    let mut client = daemon.client().await.unwrap();
    assert_eq!(transaction(&mut client, &erase("tapes/two", second)).await.status, 201);
    assert_eq!(client.get(&format!("/v1/blobs/{cid}")).await.unwrap().status, 404, "nothing names it");
    assert_eq!(client.get("/v1/keys/tapes/two").await.unwrap().status, 410);
    holds(&daemon, &[], "after the last erase").await;
    daemon.kill().unwrap();
    daemon.start().await.unwrap();
    assert_eq!(files(daemon.data()), [""; 0], "a restart after kill -9 brought it back");
}

#[tokio::test]
async fn kill_nine_in_mid_upload_leaves_no_garbage() {
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let mut daemon = Daemon::create(&directory.path().join("data"), Settings::default()).await.unwrap();
    let dialer = Dialer::new(&daemon, &[b"http/1.1"]).unwrap();
    let token = token(&daemon);
    let head = format!(
        "POST /v1/blobs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nContent-Length: {}\r\n\r\n",
        2 * BYTES
    );
    let mut open = dialer.connect().await.unwrap();
    open.write_all(head.as_bytes()).await.unwrap();
    open.write_all(&content(1)).await.unwrap();
    open.flush().await.unwrap();
    let begun = Instant::now();
    let written =
        || fs::read_dir(daemon.data().join("blobs")).unwrap().any(|e| e.unwrap().metadata().unwrap().len() > 0);
    while !written() {
        assert!(begun.elapsed() < PATIENCE, "an upload that goes on has a file that grows");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    daemon.kill().unwrap();
    assert_eq!(files(daemon.data()).len(), 1, "kill -9 leaves the file of the upload, else this test shows nothing");
    daemon.start().await.unwrap();
    assert_eq!(files(daemon.data()), [""; 0], "after the restart");
}

#[tokio::test]
async fn a_damaged_blob_is_never_served() {
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let daemon = Daemon::create(&directory.path().join("data"), Settings::default()).await.unwrap();
    let mut client = daemon.client().await.unwrap();
    let bytes = content(1);
    let cid = uploaded(&mut client, &bytes).await;
    name(&mut client, "k", &cid).await;
    let file = fs::OpenOptions::new().write(true).open(daemon.data().join("blobs").join(&cid)).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[!bytes[700_000]], 700_000).unwrap();
    let path = format!("/v1/blobs/{cid}");
    // The pieces before the damaged one are good: the answer begins, and must break off.
    let broken = client.get(&path).await;
    assert!(broken.is_err(), "an answer that is cut must not look whole: {:?}", broken.map(|a| a.status));
    let mut client = daemon.client().await.unwrap();
    let refused = client.get(&path).await.unwrap();
    assert_eq!(problem(&refused), (500, "blob-damaged".into()), "{}", refused.text());
    let status = client.get("/v1/status").await.unwrap().text();
    assert!(status.contains("damaged or missing"), "the status says so: {status}");
    let metrics = client.get("/metrics").await.unwrap().text();
    assert!(metrics.contains("\nsamovar_blobs_missing 1\n"), "and the metrics: {metrics}");
    assert_eq!(uploaded(&mut client, &bytes).await, cid);
    assert!(client.get(&path).await.unwrap().body == bytes, "uploading it again mends it");
    assert_eq!(files(daemon.data()), [cid]);
}
