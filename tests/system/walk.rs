//! A newcomer's walk: what the README promises.

use std::path::Path;
use std::process::Output;

use samovar_tests::{Daemon, Settings, binary};

fn run(daemon: &Daemon, words: &[&str]) -> Output {
    daemon.command(words).unwrap().output().unwrap()
}

fn good(daemon: &Daemon, words: &[&str]) -> Vec<u8> {
    let output = run(daemon, words);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "`samovar {}` was expected to succeed: {said}", words.join(" "));
    output.stdout
}

fn write(path: &Path, bytes: &[u8]) {
    let file = std::fs::File::create(path);
    file.and_then(|mut f| std::io::Write::write_all(&mut f, bytes)).unwrap();
}

#[tokio::test]
async fn a_row_is_imported_proved_and_verified_offline() {
    let directory = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::create(&directory.path().join("data"), Settings::default()).await.unwrap();
    let rows: String = (0..1000).map(|n| format!("{n},dish {n},{}\n", n * 7)).collect();
    let csv = directory.path().join("menu.csv");
    write(&csv, format!("id,name,price\n{rows}").as_bytes());
    good(&daemon, &["import", csv.to_str().unwrap(), "--prefix", "menu/", "--key", "id"]);
    let value = good(&daemon, &["get", "menu/17"]);
    let value: serde_json::Value = serde_json::from_slice(&value).unwrap();
    assert_eq!(value["name"], "dish 17");

    let mut client = daemon.client().await.unwrap();
    let answer = client.get("/v1/keys/menu/17").await.unwrap();
    let revision = answer.headers["etag"].to_str().unwrap().trim_matches('"').to_owned();
    let receipt = directory.path().join("17.tlog-proof");
    write(&receipt, &good(&daemon, &["receipt", &revision, "--wait"]));
    let proof = directory.path().join("17.latest.tlog-proof");
    write(&proof, &good(&daemon, &["prove", "menu/17"]));
    let policy = directory.path().join("policy");
    write(&policy, client.get("/v1/log").await.unwrap().json().unwrap()["policy"].as_str().unwrap().as_bytes());
    let vkey = daemon.data().join("log.vkey");
    daemon.stop().unwrap();

    for (file, key, holds) in [(&receipt, "menu/17", true), (&proof, "menu/17", true), (&proof, "menu/18", false)] {
        let verify = std::process::Command::new(binary().unwrap())
            .arg("verify")
            .arg(file)
            .arg("--key")
            .arg(&vkey)
            .arg("--policy")
            .arg(&policy)
            .args(["--expect-key", key])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&verify.stderr);
        assert_eq!(verify.status.success(), holds, "{} for {key}: {said}", file.display());
    }
    let before = value;
    daemon.start().await.unwrap();
    let value: serde_json::Value = serde_json::from_slice(&good(&daemon, &["get", "menu/17"])).unwrap();
    assert_eq!(value, before, "the value changed over a restart");
}
