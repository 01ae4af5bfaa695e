//! `samovar support-bundle` holds what helps, and nothing of the secrets that lie all around it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD};
use hyper::Method;
use samovar_tests::{Settings, binary};
use serde_json::{Value, json};

use super::doctor::{Site, write};

const JSON: [(&str, &str); 1] = [("content-type", "application/json")];
const PASSWORD: &str = "nine-brass-samovars-hum";
const VALUE: &str = "value-plum-jam-4417-and-some-more";
const KEY: &str = "orders/secretive-customer-7731";
/// What somebody left where it should not be.
const STRAY: [&str; 7] = [
    "stray-comment-credential-1f",
    "stray-url-password-2e",
    "stray-environment-3d",
    "stray-argument-4c",
    "stray-message-token-5b",
    "stray-file-name-6a",
    "stray-request-id-79",
];

/// Every way in which a secret might be written down, as bytes.
fn writings(secret: &[u8]) -> Vec<Vec<u8>> {
    let hex: String = secret.iter().map(|b| format!("{b:02x}")).collect();
    let mut all = vec![secret.to_vec(), hex.to_uppercase().into_bytes(), hex.into_bytes()];
    // In base64 it looks different after each number of bytes modulo three; what touches its neighbours is cut off.
    for before in 0..3 {
        let padded = [&vec![0; before][..], secret].concat();
        for text in [BASE64_STANDARD_NO_PAD.encode(&padded), BASE64_URL_SAFE_NO_PAD.encode(&padded)] {
            let (from, to) = ([0, 2, 3][before], text.len() - 2);
            all.push(text.as_bytes()[from..to].to_vec());
        }
    }
    all
}

fn holds(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|w| w == needle)
}

/// The secrets in files of the data directory: whole, and each line that is long enough to be one.
fn in_files(site: &Site) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let keys = fs::read_dir(site.file("keys")).unwrap().map(|e| e.unwrap().path());
    let named = ["admin.token", "session.key", "tls/ca.key", "tls/node.key"].map(|name| site.file(name));
    for path in keys.chain(named) {
        let bytes = fs::read(&path).unwrap_or_else(|e| panic!("{} holds a secret: {e}", path.display()));
        let lines = bytes.split(|b| *b == b'\n').filter(|l| l.len() >= 16 && !l.starts_with(b"-----"));
        found.extend(lines.map(|line| (path.display().to_string(), line.to_vec())));
    }
    let salts = fs::read(site.file("salts")).unwrap();
    let salt = salts.chunks(32).skip(1).find(|slot| slot.iter().filter(|b| **b != 0).count() > 20);
    found.push(("a salt".into(), salt.expect("a value has a salt").to_vec()));
    found
}

/// Makes a bundle with a `journalctl` in the path that says what a journal of this machine might, and unpacks it.
fn bundle(site: &Site, directory: &Path, name: &str) -> BTreeMap<String, Vec<u8>> {
    let file = directory.join(format!("{name}.tar"));
    let path = format!("{}:{}", directory.join("bin").display(), std::env::var("PATH").unwrap());
    let made = Command::new(binary().unwrap())
        .arg("support-bundle")
        .arg(&file)
        .arg("--data")
        .arg(site.daemon.data())
        .arg("--root")
        .arg(&site.root)
        .arg("--config")
        .arg(site.config())
        .env("PATH", path)
        .output()
        .unwrap();
    assert!(made.status.success(), "support-bundle: {}", String::from_utf8_lossy(&made.stderr));
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "the bundle is its maker's only");
    let unpacked = directory.join(name);
    fs::create_dir(&unpacked).unwrap();
    let tar =
        Command::new("tar").args(["-x", "--strip-components=1", "-C"]).arg(&unpacked).arg("-f").arg(&file).status();
    assert!(tar.unwrap().success(), "tar unpacks it");
    let members = fs::read_dir(&unpacked).unwrap().map(|e| e.unwrap());
    members.map(|m| (m.file_name().to_string_lossy().into_owned(), fs::read(m.path()).unwrap())).collect()
}

/// Leaves secrets in every place that a bundle looks at, a private key among certificates.
fn plant(site: &Site, directory: &Path, private_key: &str) {
    let config = fs::read_to_string(site.config()).unwrap();
    write(&site.config(), &format!("# https://me:{}@example.com\n{config}", STRAY[0]), 0o600);
    let unit = format!(
        "[Service]\nEnvironment=TOKEN={}\nExecStart=\nExecStart=/usr/bin/samovar serve --token {}\n",
        STRAY[2], STRAY[3]
    );
    write(&site.root.join("etc/systemd/system/samovar.service.d/own.conf"), &unit, 0o644);
    write(&site.file(STRAY[5]), "", 0o600);
    let pem = site.file("tls/node.pem");
    let both = [&fs::read_to_string(&pem).unwrap(), private_key].concat();
    write(&pem, &both, 0o600);
    let record = json!({
        "__REALTIME_TIMESTAMP": "1764024000000000", "PRIORITY": "4", "CODE_FILE": "appliance/src/http/access.rs",
        "CODE_LINE": "77", "TARGET": "samovar::access", "MESSAGE": format!("Authorization: Bearer {}", STRAY[4]),
        "SAMOVAR_REQUEST_ID": STRAY[6], "SAMOVAR_ROUTE": format!("/v1/{}", STRAY[4]), "SAMOVAR_STATUS": "200",
        "SAMOVAR_METHOD": "PUT", "_CMDLINE": STRAY[3],
    });
    let script = directory.join("bin/journalctl");
    write(&script, &format!("#!/bin/sh\ncat <<'END'\n{record}\nEND\n"), 0o755);
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
}

#[tokio::test]
async fn a_support_bundle_helps_and_holds_no_secret() {
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let mut site = Site::new(directory.path(), Settings::default()).await;
    let mut client = site.daemon.client().await.unwrap();
    let user = json!({ "name": "anna", "role": "writer", "password": PASSWORD }).to_string();
    let made = client.request(Method::POST, "/v1/users", &JSON, user).await.unwrap();
    assert_eq!(made.status, 201, "{}", made.text());
    let login = json!({ "user": "anna", "password": PASSWORD }).to_string();
    let session = client.request(Method::POST, "/v1/login", &JSON, login).await.unwrap();
    let token = session.json().unwrap()["token"].as_str().expect("a session token").to_owned();
    assert!(client.put(&format!("/v1/keys/{KEY}"), VALUE).await.unwrap().status < 300);
    // The private keys are sealed, so that what they were is looked for beside what lies there.
    let (clear, private_key) = (in_files(&site), fs::read_to_string(site.file("tls/ca.key")).unwrap());
    let kek = "c3".repeat(32);
    let path = directory.path().join("kek");
    write(&path, &kek, 0o600);
    site.daemon.stop().unwrap();
    site.daemon.configure(&format!("[node]\nkek = \"{}\"\n", path.display()));
    site.daemon.start().await.unwrap();
    plant(&site, directory.path(), &private_key);

    let members = bundle(&site, directory.path(), "first");
    let text = |name: &str| {
        String::from_utf8_lossy(members.get(name).unwrap_or_else(|| panic!("{name} is missing"))).into_owned()
    };
    let status: Value = serde_json::from_str(&text("status.json")).unwrap();
    assert_eq!(status["name"], "box-01", "the status is there: {status}");
    let journal: Value = serde_json::from_str(&text("journal.jsonl")).unwrap();
    assert_eq!((&journal["CODE_LINE"], &journal["SAMOVAR_METHOD"]), (&json!("77"), &json!("PUT")), "{journal}");
    for (name, words) in [
        ("doctor.json", "\"checks\""),
        ("doctor.txt", "certificate"),
        ("metrics.txt", "samovar_chain_height"),
        ("configuration.json", "\"reserve\""),
        ("unit.txt", "WatchdogSec=60s"),
        ("files.txt", "./tls/ca.key"),
        ("certificates.pem", "BEGIN CERTIFICATE"),
        ("system.txt", "MemTotal"),
        ("version.txt", "samovar "),
    ] {
        assert!(text(name).contains(words), "{name} must hold {words:?}: {}", text(name));
    }

    // And once more with a configuration that is wrong where a secret stands.
    let config = fs::read_to_string(site.config()).unwrap();
    write(&site.config(), &format!("{config}\n[store]\nreserve = \"https://me:{}@example.com\"\n", STRAY[1]), 0o600);
    let again = bundle(&site, directory.path(), "second");

    let mut secrets = in_files(&site);
    secrets.extend(clear);
    secrets.push(("the key-encryption key".into(), vec![0xc3; 32]));
    secrets.push(("the key-encryption key, as it stands in its file".into(), kek.into_bytes()));
    secrets.extend(
        [("password", PASSWORD), ("session token", &token), ("value", VALUE), ("key name", KEY)]
            .map(|(what, s)| (what.into(), s.into())),
    );
    secrets.extend(
        token.split('.').filter(|part| part.len() > 16).map(|part| ("part of a session token".into(), part.into())),
    );
    secrets.extend(STRAY.iter().map(|s| ((*s).to_owned(), s.as_bytes().to_vec())));
    // The search finds what it looks for, wherever it stands in base64.
    for before in 0..3 {
        let blob = BASE64_STANDARD_NO_PAD.encode([&vec![b'x'; before][..], PASSWORD.as_bytes(), b"yyyy"].concat());
        assert!(writings(PASSWORD.as_bytes()).iter().any(|w| holds(blob.as_bytes(), w)), "{before} bytes before it");
    }
    let mut leaks = Vec::new();
    for (member, content) in members.iter().chain(&again) {
        for (what, secret) in &secrets {
            if writings(secret).iter().any(|w| holds(content, w)) {
                leaks.push(format!("{member} holds {what}"));
            }
        }
    }
    assert!(leaks.is_empty(), "{} leaks:\n{}", leaks.len(), leaks.join("\n"));
    println!("RESULT support-bundle: {} secrets looked for in {} members", secrets.len(), members.len() + again.len());
}
