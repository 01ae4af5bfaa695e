//! The API by example: what each route answers when all is well, and when it politely is not.

use std::collections::BTreeSet;

use hyper::Method;
use samovar_tests::{Answer, Client, Daemon, Settings};
use serde_json::{Value, json};

/// Entries and hashes of a full tile.
const TILE_WIDTH: usize = 256;

struct Ledger {
    daemon: Daemon,
    client: Client,
    _directory: tempfile::TempDir,
}

async fn ledger() -> Ledger {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::create(&directory.path().join("data"), Settings::default()).await.unwrap();
    let client = daemon.client().await.unwrap();
    Ledger { daemon, client, _directory: directory }
}

/// Sends a request and expects a status; a failure shows the whole exchange.
#[track_caller]
fn expect(answer: Answer, status: u16, what: &str) -> Answer {
    assert_eq!(answer.status, status, "{what}: expected {status}, got {} {}", answer.status, answer.text());
    answer
}

impl Ledger {
    async fn get(&mut self, path: &str, status: u16) -> Answer {
        expect(self.client.get(path).await.unwrap(), status, path)
    }

    async fn send(&mut self, method: Method, path: &str, headers: &[(&str, &str)], body: &str, status: u16) -> Answer {
        let what = format!("{method} {path} {headers:?} {body}");
        expect(self.client.request(method, path, headers, body.to_owned()).await.unwrap(), status, &what)
    }

    async fn put(&mut self, path: &str, headers: &[(&str, &str)], body: &str, status: u16) -> Answer {
        self.send(Method::PUT, path, headers, body, status).await
    }

    async fn transact(&mut self, body: Value, status: u16) -> Answer {
        let headers = [("content-type", "application/json")];
        self.send(Method::POST, "/v1/transactions", &headers, &body.to_string(), status).await
    }

    /// A connection of a new API key.
    async fn with_role(&mut self, role: &str, prefixes: &[&str]) -> (String, Client) {
        let body = json!({ "name": role, "role": role, "prefixes": prefixes }).to_string();
        let headers = [("content-type", "application/json")];
        let made = self.send(Method::POST, "/v1/api-keys", &headers, &body, 201).await.json().unwrap();
        let token = made["token"].as_str().unwrap();
        let ca = self.daemon.data().join("ca.pem");
        let client = Client::connect(self.daemon.port(), &ca, Some(token)).await.unwrap();
        (made["id"].as_str().unwrap().to_owned(), client)
    }
}

fn header<'a>(answer: &'a Answer, name: &str) -> &'a str {
    answer.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("")
}

fn tag(answer: &Answer) -> String {
    format!("\"{}\"", answer.json().unwrap()["revision"])
}

#[tokio::test]
async fn a_key_through_its_life() {
    let mut ledger = ledger().await;
    let first = ledger.put("/v1/keys/a/b%20c", &[("content-type", "text/plain")], "one", 201).await;
    let made = first.json().unwrap();
    assert_eq!(made["key"], "a/b c");
    assert_eq!(made["revision"], made["transaction"]);
    assert_eq!(header(&first, "samovar-transaction"), made["transaction"].to_string());
    assert_eq!(header(&first, "samovar-block"), made["block"].to_string());

    let read = ledger.get("/v1/keys/a/b%20c", 200).await;
    assert_eq!((read.text().as_str(), header(&read, "content-type")), ("one", "text/plain"));
    assert_eq!(header(&read, "etag"), tag(&first));
    assert!(!header(&read, "samovar-block").is_empty(), "a read names its block");
    let same = ledger.send(Method::GET, "/v1/keys/a/b%20c", &[("if-none-match", &tag(&first))], "", 304).await;
    assert!(same.body.is_empty(), "304 has no body");
    let head = ledger.send(Method::HEAD, "/v1/keys/a/b%20c", &[], "", 200).await;
    assert_eq!((header(&head, "content-length"), head.body.len()), ("3", 0));

    let second = ledger.put("/v1/keys/a/b%20c", &[("if-match", &tag(&first))], "two", 200).await;
    let refused = ledger.put("/v1/keys/a/b%20c", &[("if-match", &tag(&first))], "three", 412).await.json().unwrap();
    assert_eq!(refused["actual"], second.json().unwrap()["revision"], "412 names what was found");
    ledger.put("/v1/keys/a/b%20c", &[("if-none-match", "*")], "three", 412).await;

    let at = |answer: &Answer| format!("/v1/keys/a/b%20c?at={}", answer.json().unwrap()["block"]);
    assert_eq!(ledger.get(&at(&first), 200).await.text(), "one", "the past stays");
    assert_eq!(ledger.get(&at(&second), 200).await.text(), "two");
    assert_eq!(ledger.get("/v1/keys/a/b%20c?consistency=stale", 200).await.text(), "two");

    let gone = ledger.send(Method::DELETE, "/v1/keys/a/b%20c", &[("if-match", &tag(&second))], "", 204).await;
    assert!(!header(&gone, "samovar-transaction").is_empty(), "a delete is a write");
    ledger.get("/v1/keys/a/b%20c", 404).await;
    ledger.send(Method::DELETE, "/v1/keys/a/b%20c", &[], "", 404).await;
    let page = ledger.get("/v1/history/a/b%20c?limit=2", 200).await.json().unwrap();
    let changes: Vec<_> = page["versions"].as_array().unwrap().iter().map(|v| v["change"].clone()).collect();
    assert_eq!(changes, ["delete", "put"], "newest first");
    let rest = ledger.get(&format!("/v1/history/a/b%20c?limit=2&before={}", page["next"]), 200).await.json().unwrap();
    assert_eq!(rest["versions"][0]["revision"], made["revision"]);
    assert_eq!(rest["next"], Value::Null, "the last page says so");
}

#[tokio::test]
async fn an_idempotency_key_makes_a_retry_safe() {
    let mut ledger = ledger().await;
    let key = [("idempotency-key", "order-17"), ("content-type", "text/plain")];
    let first = ledger.put("/v1/keys/a", &key, "one", 201).await;
    let again = ledger.put("/v1/keys/a", &key, "one", 201).await;
    assert_eq!(first.json().unwrap(), again.json().unwrap(), "a retry has the outcome of the first");
    let other = ledger.put("/v1/keys/a", &key, "two", 422).await.json().unwrap();
    assert_eq!(other["type"], "urn:samovar:problem:idempotency-mismatch");
    ledger.daemon.kill().unwrap();
    ledger.daemon.start().await.unwrap();
    ledger.client = ledger.daemon.client().await.unwrap();
    let later = ledger.put("/v1/keys/a", &key, "one", 201).await;
    assert_eq!(first.json().unwrap(), later.json().unwrap(), "also after a crash");
}

#[tokio::test]
async fn transactions_and_erasing() {
    let mut ledger = ledger().await;
    let put = json!({"operations": [
        {"put": {"key": "a", "value": {"n": [1, null]}}},
        {"put": {"key": "b", "bytes": "AAEC", "type": "image/png"}},
    ]});
    let made = ledger.transact(put, 201).await.json().unwrap();
    let n = made["transaction"].clone();
    assert_eq!(made["revisions"], json!({"a": n, "b": n}));
    assert_eq!(ledger.get("/v1/keys/b", 200).await.body.as_ref(), [0, 1, 2]);
    let refused = json!({"require": [{"key": "b", "revision": null}], "operations": [{"delete": {"key": "a"}}]});
    let refused = ledger.transact(refused, 412).await.json().unwrap();
    assert_eq!((&refused["key"], &refused["actual"]), (&json!("b"), &n), "412 names the requirement that failed");
    ledger.get("/v1/keys/a", 200).await;
    let both = json!({"require": [{"key": "b", "revision": n}, {"key": "c", "revision": null}],
        "operations": [{"delete": {"key": "a"}}, {"put": {"key": "c", "value": 1}}]});
    ledger.transact(both, 201).await;
    ledger.get("/v1/keys/a", 404).await;

    let erased = ledger.transact(json!({"operations": [{"erase": {"key": "b", "revision": n}}]}), 201).await;
    let by = erased.json().unwrap()["transaction"].clone();
    let gone = ledger.get("/v1/keys/b", 410).await.json().unwrap();
    assert_eq!((&gone["erased_by"], &gone["revision"]), (&by, &n), "410 names the erase entry");
    ledger.transact(json!({"operations": [{"erase": {"key": "b", "revision": n}}]}), 410).await;
    let entry = ledger.get(&format!("/v1/transactions/{n}"), 200).await.json().unwrap();
    let opening = entry["openings"].as_array().unwrap().iter().find(|o| o["key"] == "b").unwrap();
    assert_eq!((&opening["erased_by"], &opening["value"]), (&by, &Value::Null), "the value is gone from its entry");
    let receipt = ledger.get(&format!("/v1/transactions/{n}/receipt?wait=quorum"), 200).await;
    assert!(receipt.text().starts_with("c2sp.org/tlog-proof@v1\n"), "{}", receipt.text());
}

#[tokio::test]
async fn lists_come_in_pages() {
    let mut ledger = ledger().await;
    let keys: Vec<_> = (0..25).map(|n| format!("p/{n:02}")).collect();
    let put = |key| json!({"put": {"key": key, "value": 1}});
    let mut operations: Vec<_> = keys.iter().map(put).collect();
    operations.extend(["o", "q/1"].map(|k| json!({"put": {"key": k, "value": 1}})));
    ledger.transact(json!({ "operations": operations }), 201).await;
    let (mut seen, mut after) = (Vec::new(), String::new());
    loop {
        let page = ledger.get(&format!("/v1/keys?prefix=p%2F&limit=10{after}"), 200).await.json().unwrap();
        let rows = page["keys"].as_array().unwrap();
        assert!(rows.len() <= 10, "a page is no longer than its limit");
        seen.extend(rows.iter().map(|r| r["key"].as_str().unwrap().to_owned()));
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    assert_eq!(seen, keys, "all keys of the prefix, in order, once");
    for n in 0..5 {
        ledger.put("/v1/keys/b", &[], &n.to_string(), if n == 0 { 201 } else { 200 }).await;
    }
    let (mut heights, mut after) = (Vec::new(), 0);
    while let Some(next) = Some(after) {
        let page = ledger.get(&format!("/v1/blocks?after={next}&limit=3"), 200).await.json().unwrap();
        heights.extend(page["blocks"].as_array().unwrap().iter().map(|b| b["height"].as_u64().unwrap()));
        match page["next"].as_u64() {
            Some(next) => after = next,
            None => break,
        }
    }
    assert_eq!(heights, (1..=heights.len() as u64).collect::<Vec<_>>(), "every block once");
    let beyond = ledger.get(&format!("/v1/blocks?after={}", u64::MAX), 200).await.json().unwrap();
    assert_eq!(beyond["blocks"], json!([]), "nothing comes after the last block there could be");
    let block = ledger.get("/v1/blocks/1", 200).await.json().unwrap();
    assert_eq!(block["height"], 1);
}

#[tokio::test]
async fn the_log_as_tiles_and_proofs() {
    let mut ledger = ledger().await;
    for n in 0..TILE_WIDTH {
        ledger.put(&format!("/v1/keys/{n}"), &[], "v", 201).await;
    }
    let status = ledger.get("/v1/status", 200).await.json().unwrap();
    let last = status["size"].as_u64().unwrap() - 1;
    ledger.get(&format!("/v1/transactions/{last}/receipt?wait=quorum"), 200).await;
    let checkpoint = ledger.get("/checkpoint", 200).await.text();
    let size: usize = checkpoint.lines().nth(1).unwrap().parse().unwrap();
    assert!(size as u64 > last && size >= TILE_WIDTH, "the checkpoint covers {size} entries, not entry {last}");
    let full = ledger.get("/tile/0/000", 200).await;
    assert_eq!(full.body.len(), 32 * TILE_WIDTH, "256 hashes");
    assert!(header(&full, "cache-control").contains("immutable"), "a tile never changes");
    let (tile, width) = (size / TILE_WIDTH, size % TILE_WIDTH);
    if width > 0 {
        let partial = ledger.get(&format!("/tile/0/{tile:03}.p/{width}"), 200).await;
        assert_eq!(partial.body.len(), 32 * width);
        ledger.get(&format!("/tile/entries/{tile:03}.p/{width}"), 200).await;
    }
    ledger.get("/tile/entries/000", 200).await;
    ledger.get(&format!("/tile/0/{:03}", tile + 1), 404).await;
    ledger.get("/tile/5/000", 404).await;
    for key in ["7", "absent"] {
        let proof = ledger.get(&format!("/v1/proofs/{key}"), 200).await.text();
        assert!(proof.starts_with("c2sp.org/tlog-proof@v1\n"), "{proof}");
    }
    let ca = ledger.daemon.data().join("ca.pem");
    let mut stranger = Client::connect(ledger.daemon.port(), &ca, None).await.unwrap();
    let log = expect(stranger.get("/v1/log").await.unwrap(), 200, "/v1/log without a token").json().unwrap();
    assert_eq!(log["origin"].as_str(), checkpoint.lines().next(), "the log names itself as its checkpoints do");
    for (path, status) in [("/health", 200), ("/ready?for=write", 200), ("/metrics", 200), ("/checkpoint", 401)] {
        expect(stranger.get(path).await.unwrap(), status, path);
    }
}

#[tokio::test]
async fn each_role_may_do_its_part() {
    let mut ledger = ledger().await;
    let n = ledger.put("/v1/keys/in/k", &[], "v", 201).await.json().unwrap()["transaction"].clone();
    let outside = ledger.put("/v1/keys/out", &[], "v", 201).await.json().unwrap()["transaction"].clone();
    let (n, outside) = (format!("/v1/transactions/{n}"), format!("/v1/transactions/{outside}"));
    let reads = [
        "/v1/keys/in/k",
        "/v1/keys?prefix=in%2F",
        &n,
        "/v1/keys/out",
        &outside,
        "/v1/blocks",
        "/checkpoint",
        "/tile/0/000.p/1",
        "/v1/status",
        "/v1/api-keys",
    ];
    // One digit per read above: whether it is allowed.
    let table: [(&str, &[&str], [u8; 10], u16); 7] = [
        ("admin", &[], [1; 10], 200),
        ("operator", &[], [0, 0, 0, 0, 0, 1, 0, 0, 1, 0], 403),
        ("writer", &[], [1, 1, 1, 1, 1, 1, 0, 0, 1, 0], 200),
        ("reader", &[], [1, 1, 1, 1, 1, 1, 0, 0, 1, 0], 403),
        ("auditor", &[], [1, 1, 1, 1, 1, 1, 1, 1, 1, 0], 403),
        ("writer", &["in/"], [1, 1, 1, 0, 0, 0, 0, 0, 1, 0], 200),
        ("auditor", &["in/"], [1, 1, 1, 0, 0, 0, 0, 0, 1, 0], 403),
    ];
    for (role, prefixes, allowed, put) in table {
        let (id, mut client) = ledger.with_role(role, prefixes).await;
        for (path, allowed) in reads.iter().zip(allowed) {
            let what = format!("{role} of {prefixes:?} on {path}");
            expect(client.get(path).await.unwrap(), if allowed == 1 { 200 } else { 403 }, &what);
        }
        expect(client.put("/v1/keys/in/k", "w").await.unwrap(), put, &format!("{role} of {prefixes:?} writes"));
        if !prefixes.is_empty() {
            expect(client.put("/v1/keys/out", "w").await.unwrap(), 403, "a write outside the prefixes");
        }
        let erase = json!({"operations": [{"erase": {"key": "in/none", "revision": 0}}]}).to_string();
        let json = [("content-type", "application/json")];
        let erased = client.request(Method::POST, "/v1/transactions", &json, erase).await.unwrap();
        let may_erase = role == "admin";
        expect(erased, if may_erase { 404 } else { 403 }, &format!("{role} erases"));
        ledger.send(Method::DELETE, &format!("/v1/api-keys/{id}"), &[], "", 204).await;
        expect(client.get("/v1/status").await.unwrap(), 401, "a revoked key");
    }
    let own = std::fs::read_to_string(ledger.daemon.data().join("admin.token")).unwrap();
    let id = own.trim().split('_').nth(1).unwrap().to_owned();
    let last = ledger.send(Method::DELETE, &format!("/v1/api-keys/{id}"), &[], "", 409).await.json().unwrap();
    assert_eq!(last["type"], "urn:samovar:problem:last-admin");
}

/// Whether a value has the shape of a schema: types, required fields, items, references. No more is needed here.
fn fits(value: &Value, schema: &Value, all: &Value) -> Result<(), String> {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.rsplit('/').next().unwrap_or("");
        return fits(value, &all[name], all);
    }
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let types: BTreeSet<_> = match &schema["type"] {
        Value::String(one) => [one.as_str()].into(),
        Value::Array(many) => many.iter().filter_map(Value::as_str).collect(),
        _ => [kind].into(),
    };
    if !types.contains(kind) {
        return Err(format!("{value} is of type {kind}, not {types:?}"));
    }
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        value.get(name).ok_or_else(|| format!("{value} lacks {name}"))?;
    }
    for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
        value.get(name).map_or(Ok(()), |v| fits(v, schema, all))?;
    }
    value.as_array().into_iter().flatten().try_for_each(|v| fits(v, &schema["items"], all))
}

#[tokio::test]
async fn every_route_that_the_description_names_answers_as_described() {
    let mut ledger = ledger().await;
    let n = ledger.put("/v1/keys/k", &[], "v", 201).await.json().unwrap()["transaction"].as_u64().unwrap();
    ledger.get(&format!("/v1/transactions/{n}/receipt?wait=quorum"), 200).await;
    let json = [("content-type", "application/json")];
    ledger.send(Method::POST, "/v1/users", &json, r#"{"name":"bot","role":"reader"}"#, 201).await;
    let key = "0".repeat(64);
    let certificate = json!({ "name": "c", "user": "bot", "key": key }).to_string();
    ledger.send(Method::POST, "/v1/certificates", &json, &certificate, 201).await;
    let blob = ledger.send(Method::POST, "/v1/blobs", &[], "a blob", 201).await.json().unwrap();
    let cid = blob["cid"].as_str().unwrap().to_owned();
    let document = ledger.get("/openapi.json", 200).await.json().unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    let schemas = &document["components"]["schemas"];
    let mut checked = 0;
    for (pattern, methods) in document["paths"].as_object().unwrap() {
        // The feed has no end; its tests are in watch.rs.
        if methods.get("get").is_none() || pattern == "/v1/watch" {
            continue;
        }
        let n = n.to_string();
        let path = [
            ("{cid}", cid.as_str()),
            ("{key}", "k"),
            ("{n}", &n),
            ("{height}", "1"),
            ("{tile}", "0/000.p/1"),
            ("{user}", "bot"),
            ("{name}", "box-01"),
        ];
        let path = path.iter().fold(pattern.clone(), |path, (name, value)| path.replace(name, value));
        if pattern == "/v1/updates" {
            // Only the appliance has them: updates.rs.
            ledger.get(&path, 404).await;
            continue;
        }
        let answer = ledger.get(&path, 200).await;
        let content = &methods["get"]["responses"]["200"]["content"];
        let (described, of) = content.as_object().unwrap().iter().next().unwrap();
        if described == "application/json" {
            assert_eq!(header(&answer, "content-type"), "application/json", "{path}");
            fits(&answer.json().unwrap(), &of["schema"], schemas).unwrap_or_else(|why| panic!("{path}: {why}"));
        } else if described != "*/*" {
            assert!(header(&answer, "content-type").starts_with(described.as_str()), "{path} is not {described}");
        }
        checked += 1;
    }
    assert!(checked >= 19, "only {checked} routes were described");
    let problem = ledger.get("/v1/keys/absent", 404).await.json().unwrap();
    fits(&problem, &schemas["Problem"], schemas).unwrap();
    assert!(fits(&json!({"key": 1}), &schemas["Written"], schemas).is_err(), "the checker refuses what does not fit");
}
