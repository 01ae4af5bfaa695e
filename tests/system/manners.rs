//! What answers carry besides what was asked for: security headers, codings, CORS, trace contexts.

use hyper::Method;
use samovar_tests::{Answer, Client, Daemon, Settings};

const PAGE: (&str, &str) = ("origin", "https://app.example");

async fn daemon(directory: &tempfile::TempDir, toml: &str) -> (Daemon, Client) {
    let settings = Settings { toml: toml.to_owned(), ..Settings::default() };
    let daemon = Daemon::create(&directory.path().join("data"), settings).await.unwrap();
    let client = daemon.client().await.unwrap();
    (daemon, client)
}

fn header<'a>(answer: &'a Answer, name: &str) -> &'a str {
    answer.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("")
}

#[tokio::test]
async fn every_answer_has_the_security_headers() {
    let directory = tempfile::tempdir().unwrap();
    let (daemon, _) = daemon(&directory, "").await;
    for (method, path, status) in [
        (Method::PUT, "/v1/keys/k", 201),
        (Method::GET, "/v1/keys/k", 200),
        (Method::HEAD, "/v1/keys/k", 200),
        (Method::GET, "/v1/keys/absent", 404),
        (Method::GET, "/nowhere", 404),
        (Method::GET, "/v1/keys?limit=0", 400),
        (Method::POST, "/v1/keys/k", 405),
        (Method::OPTIONS, "/v1/keys/k", 405),
        (Method::POST, "/v1/transactions", 415),
        (Method::DELETE, "/v1/keys/k", 204),
        (Method::GET, "/health", 200),
    ] {
        // What is refused may end its connection.
        let mut client = daemon.client().await.unwrap();
        let answer = client.request(method.clone(), path, &[], "").await.unwrap();
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.text());
        for (name, part) in [
            ("strict-transport-security", "max-age=31536000"),
            ("x-content-type-options", "nosniff"),
            ("content-security-policy", "default-src 'none'"),
            ("content-security-policy", "frame-ancestors 'none'"),
            ("referrer-policy", "no-referrer"),
            ("permissions-policy", "geolocation=()"),
            ("cross-origin-resource-policy", "same-origin"),
        ] {
            let value = header(&answer, name);
            assert!(value.contains(part), "{method} {path} {status}: {name} is {value:?}, expected {part:?} in it");
        }
        assert_eq!(header(&answer, "access-control-allow-origin"), "", "{method} {path}: no CORS unless configured");
    }
}

#[tokio::test]
async fn pages_of_the_configured_origin_may_call() {
    let directory = tempfile::tempdir().unwrap();
    let (_daemon, mut client) = daemon(&directory, "cors_origins = [\"https://app.example\"]\n").await;
    let asks = [PAGE, ("access-control-request-method", "PUT"), ("access-control-request-headers", "authorization")];
    client.set_token(None);
    let preflight = client.request(Method::OPTIONS, "/v1/keys/k", &asks, "").await.unwrap();
    assert_eq!(preflight.status, 204, "{}", preflight.text());
    assert_eq!(header(&preflight, "access-control-allow-origin"), PAGE.1);
    assert!(header(&preflight, "access-control-allow-methods").contains("PUT"));
    assert!(header(&preflight, "access-control-allow-headers").contains("Authorization"));
    assert_eq!(
        header(&preflight, "access-control-allow-credentials"),
        "",
        "a browser's own credentials are not asked for"
    );
    assert_eq!(header(&preflight, "vary"), "Origin");

    let answer = client.request(Method::GET, "/v1/keys/k", &[PAGE], "").await.unwrap();
    assert_eq!(
        (answer.status, header(&answer, "access-control-allow-origin")),
        (401, PAGE.1),
        "errors are readable too"
    );
    assert!(header(&answer, "access-control-expose-headers").contains("Samovar-Block"));
    for other in ["https://app.example.evil", "http://app.example", "https://APP.example", "null"] {
        let asks = [("origin", other), ("access-control-request-method", "PUT")];
        let refused = client.request(Method::OPTIONS, "/v1/keys/k", &asks, "").await.unwrap();
        assert_eq!(refused.status, 405, "{other} is not configured");
        assert_eq!(header(&refused, "access-control-allow-origin"), "", "{other}");
        assert_eq!(header(&refused, "vary"), "Origin", "{other}: a cache must keep the answers apart");
    }
}

#[tokio::test]
async fn what_holds_no_secret_is_compressed_as_asked() {
    let directory = tempfile::tempdir().unwrap();
    let (_daemon, mut client) = daemon(&directory, "").await;
    let value = "the same again and again. ".repeat(200);
    for n in 0..50 {
        assert_eq!(client.put(&format!("/v1/keys/some/long/prefix/{n}"), value.clone()).await.unwrap().status, 201);
    }
    for (path, compressed) in [
        ("/openapi.json", true),
        ("/metrics", true),
        ("/v1/keys", true),
        ("/v1/blocks", true),
        ("/v1/keys/some/long/prefix/1", false),
        ("/v1/log", false),
    ] {
        let plain = client.get(path).await.unwrap();
        assert_eq!((plain.status, header(&plain, "content-encoding")), (200, ""), "{path}: not asked for");
        for (accepted, coding, magic) in
            [("gzip", "gzip", &[0x1f, 0x8b][..]), ("gzip;q=0.5, zstd", "zstd", &[0x28, 0xb5, 0x2f, 0xfd][..])]
        {
            let answer = client.request(Method::GET, path, &[("accept-encoding", accepted)], "").await.unwrap();
            let got = header(&answer, "content-encoding");
            if compressed {
                assert_eq!(got, coding, "{path} for Accept-Encoding: {accepted}");
                assert!(answer.body.starts_with(magic), "{path}: no {coding}: {:?}", &answer.body[..8]);
                assert!(answer.body.len() < plain.body.len(), "{path}: {} bytes", answer.body.len());
                assert_eq!(header(&answer, "vary"), "Accept-Encoding", "{path}");
            } else {
                assert_eq!((got, answer.body.len()), ("", plain.body.len()), "{path}: goes as it is");
            }
        }
    }
}

#[tokio::test]
async fn a_trace_context_is_in_the_access_record() {
    let directory = tempfile::tempdir().unwrap();
    let (daemon, mut client) = daemon(&directory, "").await;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    for (value, recorded) in [
        (format!("00-{trace}-00f067aa0ba902b7-01"), true),
        ("00-00000000000000000000000000000000-00f067aa0ba902b7-01".to_owned(), false),
    ] {
        let id = format!("trace-{recorded}");
        let headers = [("traceparent", value.as_str()), ("x-request-id", id.as_str())];
        assert_eq!(client.request(Method::GET, "/health", &headers, "").await.unwrap().status, 200);
        let log = daemon.log();
        let record = log.lines().find(|line| line.contains(&id)).unwrap_or_else(|| panic!("no record of {id}: {log}"));
        assert_eq!(record.contains("trace_id="), recorded, "{value}: {record}");
        assert_eq!(record.contains(trace), recorded, "{value}: {record}");
    }
}
