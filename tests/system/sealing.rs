//! Private keys under a key-encryption key: no start without it, nothing in the clear, every rotation goes on.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use hyper::Method;
use samovar_tests::{Daemon, Settings, binary};
use serde_json::json;

const JSON: [(&str, &str); 1] = [("content-type", "application/json")];
const PASSWORD: &str = "brass-taps-never-sleep";
/// What is there after a login, in the order of their names.
const SECRET: [&str; 5] = ["keys/cosigner", "keys/log", "session.key", "tls/ca.key", "tls/node.key"];

fn kek(directory: &Path, name: &str) -> PathBuf {
    let path = directory.join(name);
    let made = Command::new(binary().unwrap()).args(["kek", "new"]).arg(&path).status().unwrap();
    assert!(made.success(), "samovar kek new");
    path
}

fn toml(keks: &[(&str, &Path)]) -> String {
    let lines: Vec<String> = keks.iter().map(|(key, path)| format!("{key} = \"{}\"\n", path.display())).collect();
    format!("[node]\n{}", lines.concat())
}

fn contents(daemon: &Daemon) -> BTreeMap<&'static str, Vec<u8>> {
    SECRET.iter().map(|name| (*name, fs::read(daemon.data().join(name)).expect(name))).collect()
}

/// The id in the first line of each secret file; all have one, and it is the same.
fn sealed_under(daemon: &Daemon) -> String {
    let ids: Vec<String> = contents(daemon)
        .iter()
        .map(|(name, stored)| {
            let line = stored.split(|b| *b == b'\n').next().unwrap_or_default();
            let line = String::from_utf8_lossy(line);
            line.strip_prefix("samovar sealed 1 ").unwrap_or_else(|| panic!("{name} is not sealed: {line}")).to_owned()
        })
        .collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "under different keys: {ids:?}");
    ids[0].clone()
}

fn holds(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

/// Every file below a directory.
fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// What a start is refused with.
async fn refused(daemon: &mut Daemon, why: &str) -> String {
    let started = daemon.start().await;
    assert!(started.is_err(), "{why}, and it started");
    daemon.log()
}

fn run(daemon: &Daemon, words: &[&str]) -> String {
    let output = daemon.command(words).unwrap().output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "samovar {words:?}: {said}");
    said
}

/// A user with a session, and a value.
async fn live(daemon: &Daemon) -> String {
    let mut client = daemon.client().await.unwrap();
    let user = json!({ "name": "anna", "role": "writer", "password": PASSWORD }).to_string();
    assert_eq!(client.request(Method::POST, "/v1/users", &JSON, user).await.unwrap().status, 201);
    let login = json!({ "user": "anna", "password": PASSWORD }).to_string();
    let answer = client.request(Method::POST, "/v1/login", &JSON, login).await.unwrap();
    assert_eq!(client.put("/v1/keys/tea", "Assam").await.unwrap().status, 201);
    answer.json().unwrap()["token"].as_str().expect("a token").to_owned()
}

/// The ledger is the one that it was: value, session, and clients that trust the CA.
async fn check(daemon: &Daemon, session: &str, when: &str) {
    let mut client = daemon.client().await.unwrap();
    assert_eq!(client.get("/v1/keys/tea").await.unwrap().body, "Assam", "{when}");
    assert_eq!(client.put("/v1/keys/more", when.to_owned()).await.unwrap().status / 100, 2, "{when}");
    client.set_token(Some(session));
    assert_eq!(client.get("/v1/keys/tea").await.unwrap().status, 200, "{when}: the session of before");
}

/// The key-encryption keys that the log names, oldest first.
async fn on_the_log(daemon: &Daemon) -> Vec<serde_json::Value> {
    let mut client = daemon.client().await.unwrap();
    let size = client.get("/v1/status").await.unwrap().json().unwrap()["size"].as_u64().unwrap();
    let mut found = Vec::new();
    for index in 0..size {
        let entry = client.get(&format!("/v1/transactions/{index}")).await.unwrap().json().unwrap();
        if entry.to_string().contains("~seals/box-01") {
            found.push(entry);
        }
    }
    found
}

/// Waits until so many entries name a key-encryption key: they are made beside the serving.
async fn entries(daemon: &Daemon, wanted: usize) {
    for _ in 0..200 {
        if on_the_log(daemon).await.len() == wanted {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("{wanted} entries expected that name the key-encryption key: {:?}", on_the_log(daemon).await);
}

#[tokio::test]
async fn private_keys_are_sealed_and_nothing_else_opens_them() {
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let (one, two) = (kek(directory.path(), "one.kek"), kek(directory.path(), "two.kek"));
    let mut daemon = Daemon::create(&directory.path().join("data"), Settings::default()).await.unwrap();
    let session = live(&daemon).await;
    let before = contents(&daemon);
    let vkey = fs::read_to_string(daemon.data().join("log.vkey")).unwrap();

    // Turned on: everything is sealed, and it is the same ledger.
    daemon.stop().unwrap();
    daemon.configure(&toml(&[("kek", &one)]));
    daemon.start().await.unwrap();
    let id = sealed_under(&daemon);
    check(&daemon, &session, "sealed").await;
    entries(&daemon, 1).await;
    assert_eq!(fs::read_to_string(daemon.data().join("log.vkey")).unwrap(), vkey, "the log key is the one it was");
    for path in files(daemon.data()) {
        let content = fs::read(&path).unwrap_or_default();
        for (name, secret) in &before {
            // The first line of PEM is the same for every key.
            let body = secret.splitn(2, |b| *b == b'\n').nth(1).filter(|_| name.starts_with("tls/"));
            let part = body.unwrap_or(secret);
            assert!(!holds(&content, part), "{} holds {name} in the clear", path.display());
        }
    }

    // Rotations write sealed files, and a start finds them.
    for words in [&["rotate", "log-key"][..], &["rotate", "node"], &["rotate", "ca"], &["rotate", "ca", "--finish"]] {
        run(&daemon, words);
    }
    assert_eq!(sealed_under(&daemon), id, "after the rotations");
    daemon.kill().unwrap();
    daemon.start().await.unwrap();
    check(&daemon, &session, "after rotations and a crash").await;
    entries(&daemon, 1).await;

    // Without the key, and with another, nothing starts, and nothing is changed.
    daemon.stop().unwrap();
    let kept = contents(&daemon);
    for (settings, given) in [(String::new(), "none was given"), (toml(&[("kek", &two)]), "given was")] {
        daemon.configure(&settings);
        let said = refused(&mut daemon, given).await;
        for words in [&*format!("is sealed under the key-encryption key {id}"), given, "give the daemon that key"] {
            assert!(said.contains(words), "{words:?} expected in: {said}");
        }
        assert_eq!(contents(&daemon), kept, "a refused start changes nothing");
    }

    // Another key: everything is brought under it at a start that has both.
    daemon.configure(&toml(&[("kek", &two), ("kek_old", &one)]));
    daemon.start().await.unwrap();
    let second = sealed_under(&daemon);
    assert_ne!(second, id);
    entries(&daemon, 2).await;
    daemon.stop().unwrap();
    daemon.configure(&toml(&[("kek", &two)]));
    daemon.start().await.unwrap();
    check(&daemon, &session, "under the second key").await;

    // The same by command; a running daemon's files are left alone.
    let data = daemon.data().to_string_lossy().into_owned();
    let (one, two) = (one.to_string_lossy().into_owned(), two.to_string_lossy().into_owned());
    let back = ["kek", "seal", "--data", &data, "--kek", &one, "--old", &two];
    let busy = daemon.command(&back).unwrap().output().unwrap();
    assert!(String::from_utf8_lossy(&busy.stderr).contains("is in use by another samovar process"), "{busy:?}");
    daemon.stop().unwrap();
    let said = run(&daemon, &back);
    assert!(said.contains(&format!("5 files were brought under the key-encryption key {id}")), "{said}");
    assert_eq!(sealed_under(&daemon), id);

    // And in the clear again.
    run(&daemon, &["kek", "unseal", "--data", &data, "--kek", &one]);
    daemon.configure("");
    daemon.start().await.unwrap();
    check(&daemon, &session, "in the clear again").await;
    assert!(contents(&daemon)["tls/ca.key"].starts_with(b"-----BEGIN"), "in the clear");
    entries(&daemon, 3).await;
}

/// The key comes as a systemd credential, and `init` seals from the first byte on.
#[tokio::test]
async fn a_credential_seals_from_the_first_byte_on() {
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let credentials = directory.path().join("credentials");
    fs::create_dir(&credentials).unwrap();
    let key = kek(&credentials, "samovar.kek");
    let data = directory.path().join("data");
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let listen = format!("127.0.0.1:{port}");
    let init = Command::new(binary().unwrap())
        .args(["init", "--name", "box-01", "--listen", &listen, "--data"])
        .arg(&data)
        .arg("--kek")
        .arg(&key)
        .status();
    assert!(init.unwrap().success(), "samovar init --kek");
    for name in SECRET.iter().filter(|name| **name != "session.key") {
        assert!(fs::read(data.join(name)).unwrap().starts_with(b"samovar sealed 1 "), "{name} is not sealed");
    }
    let passed = format!("CREDENTIALS_DIRECTORY={}", credentials.display());
    let settings = Settings { wrapper: vec!["env".into(), passed], ..Settings::default() };
    let mut daemon = Daemon::existing(&data, port, settings);
    daemon.start().await.unwrap();
    let session = live(&daemon).await;
    daemon.kill().unwrap();
    daemon.start().await.unwrap();
    check(&daemon, &session, "by credential").await;
    sealed_under(&daemon);
}

/// Files that somebody exchanged are refused, or made again where that harms nobody.
#[tokio::test]
async fn exchanged_files_are_not_taken() {
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let key = kek(directory.path(), "kek");
    let settings = Settings { toml: toml(&[("kek", &key)]), ..Settings::default() };
    let mut daemon = Daemon::create(&directory.path().join("data"), settings).await.unwrap();
    let session = live(&daemon).await;
    daemon.stop().unwrap();
    let good = contents(&daemon);
    let put = |daemon: &Daemon, name: &str, content: &[u8]| {
        super::doctor::write_bytes(&daemon.data().join(name), content, 0o600);
    };
    for (one, other) in [("keys/log", "keys/cosigner"), ("keys/log", "tls/ca.key"), ("keys/cosigner", "session.key")] {
        put(&daemon, one, &good[other]);
        let said = refused(&mut daemon, "another file in its place").await;
        assert!(said.contains(&format!("{one} is damaged, or was sealed as another file")), "{other} as {one}: {said}");
        put(&daemon, one, &good[one]);
    }
    // The CA makes the node's key again; a session costs a login.
    put(&daemon, "tls/node.key", &good["tls/ca.key"]);
    daemon.start().await.unwrap();
    check(&daemon, &session, "with a new TLS key").await;
    daemon.stop().unwrap();
    put(&daemon, "session.key", &good["tls/node.key"]);
    daemon.start().await.unwrap();
    check(&daemon, &session, "without its session key").await;
    assert!(daemon.log().contains("a new session key is made"), "{}", daemon.log());
}
