//! How many requests are taken: by principal, by address, by class. That quotas are exact over a minute is a unit test in
//! virtual time (`quota.rs` of the daemon).

use hyper::Method;
use samovar_tests::{Answer, Client, Daemon, Ends, Settings};
use serde_json::json;

const JSON: [(&str, &str); 1] = [("content-type", "application/json")];

async fn daemon(directory: &tempfile::TempDir, limits: &str) -> Daemon {
    let settings = Settings { toml: format!("[limits]\n{limits}\n"), ..Settings::default() };
    Daemon::create(&directory.path().join("data"), settings).await.unwrap()
}

fn header<'a>(answer: &'a Answer, name: &str) -> &'a str {
    answer.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("")
}

/// Asks until it is refused; how many were taken, and the refusal.
async fn until_refused(client: &mut Client, path: &str) -> (u32, Answer) {
    for taken in 0..1000 {
        let answer = client.get(path).await.unwrap();
        if answer.status == 429 {
            return (taken, answer);
        }
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    }
    panic!("1,000 requests were taken, and a quota was set");
}

#[tokio::test]
async fn a_principal_has_its_quota_and_not_anothers() {
    let directory = tempfile::tempdir().unwrap();
    // Nothing comes back while the test runs.
    let daemon = daemon(&directory, "api = \"20/1h\"\nupload = \"5/1h\"").await;
    let mut admin = daemon.client().await.unwrap();
    let body = json!({ "name": "other", "role": "reader" }).to_string();
    let made = admin.request(Method::POST, "/v1/api-keys", &JSON, body).await.unwrap();
    assert_eq!(made.status, 201, "{}", made.text());
    let token = made.json().unwrap()["token"].as_str().unwrap().to_owned();
    let mut other = Client::connect(daemon.port(), &daemon.data().join("ca.pem"), Some(&token)).await.unwrap();

    let first = other.get("/v1/status").await.unwrap();
    assert_eq!(header(&first, "ratelimit"), "", "while there is plenty nothing is said");
    let (taken, refused) = until_refused(&mut other, "/v1/status").await;
    assert_eq!(taken, 19, "20 with the one before");
    assert_eq!(header(&refused, "ratelimit-policy"), "\"api\";q=20;w=3600");
    assert!(header(&refused, "ratelimit").starts_with("\"api\";r=0;t=3"), "{}", header(&refused, "ratelimit"));
    let wait: u64 = header(&refused, "retry-after").parse().unwrap();
    assert!((100..=180).contains(&wait), "one of 20 an hour comes back in 3 minutes, not in {wait} s");
    assert_eq!(refused.json().unwrap()["type"], "urn:samovar:problem:too-many-requests");

    assert_eq!(admin.get("/v1/status").await.unwrap().status, 200, "another principal at the same address");
    assert_eq!(other.get("/health").await.unwrap().status, 200, "nobody in particular has no quota of its own");
    let mut taken = 0;
    while admin.put("/v1/keys/k", "v").await.unwrap().status != 429 {
        taken += 1;
    }
    assert_eq!(taken, 5, "uploads have a quota of their own");
    assert_eq!(admin.get("/v1/keys/k").await.unwrap().status, 200, "which leaves the other alone");
}

#[tokio::test]
async fn an_address_has_its_quota_and_logins_one_of_their_own() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = daemon(&directory, "api_per_address = \"200/1h\"\nlogin_per_address = \"3/1h\"").await;
    let ca = daemon.data().join("ca.pem");
    let from = |last: u8| Ends { from: Some([127, 0, 2, last].into()), ..Ends::default() };
    let mut here = Client::connect_as(daemon.port(), &ca, None, from(1)).await.unwrap();
    for taken in 0..4 {
        let body = json!({ "user": "nobody", "password": "x" }).to_string();
        let status = here.request(Method::POST, "/v1/login", &JSON, body).await.unwrap().status;
        assert_eq!(status, if taken < 3 { 401 } else { 429 }, "login {taken} of 3");
    }
    let (taken, _) = until_refused(&mut here, "/health").await;
    assert_eq!(taken, 200, "logins were not counted among them");
    let mut elsewhere = Client::connect_as(daemon.port(), &ca, None, from(2)).await.unwrap();
    assert_eq!(elsewhere.get("/health").await.unwrap().status, 200, "another address");
    let mut local = Client::local(&daemon.data().join("samovar.sock")).await.unwrap();
    for _ in 0..300 {
        assert_eq!(local.get("/health").await.unwrap().status, 200, "the Unix socket has no limit");
    }
}
