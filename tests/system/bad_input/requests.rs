//! What is wrong before the body: framing, method, target, key, query, header, credentials.

use super::{Row, on};

/// Every path with the methods it takes.
const PATHS: &[(&str, &[&str])] = &[
    ("/v1/keys/k", &["PUT", "GET", "DELETE"]),
    ("/v1/blobs", &["POST"]),
    ("/v1/blobs/bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku", &["GET"]),
    ("/v1/keys", &["GET"]),
    ("/v1/history/k", &["GET"]),
    ("/v1/proofs/k", &["GET"]),
    ("/v1/transactions", &["POST"]),
    ("/v1/transactions/0", &["GET"]),
    ("/v1/transactions/0/receipt", &["GET"]),
    ("/v1/blocks", &["GET"]),
    ("/v1/blocks/1", &["GET"]),
    ("/v1/watch", &["GET"]),
    ("/checkpoint", &["GET"]),
    ("/tile/0/000.p/1", &["GET"]),
    ("/v1/log", &["GET"]),
    ("/v1/api-keys", &["POST", "GET"]),
    ("/v1/api-keys/0011223344556677", &["PUT", "DELETE"]),
    ("/v1/login", &["POST"]),
    ("/v1/logout", &["POST"]),
    ("/v1/me", &["GET"]),
    ("/v1/me/password", &["PUT"]),
    ("/v1/users", &["POST", "GET"]),
    ("/v1/users/nobody", &["GET", "PUT", "DELETE"]),
    ("/v1/users/nobody/password", &["PUT"]),
    ("/v1/users/nobody/sessions", &["DELETE"]),
    ("/v1/certificates", &["POST", "GET"]),
    ("/v1/certificates/00", &["DELETE"]),
    ("/v1/session-keys", &["POST"]),
    ("/v1/tls/node", &["POST"]),
    ("/v1/tls/ca", &["POST"]),
    ("/v1/clock/accept", &["POST"]),
    ("/v1/log-level", &["GET", "PUT", "DELETE"]),
    ("/v1/status", &["GET"]),
    ("/debug/pprof/profile", &["GET"]),
    ("/debug/pprof/heap", &["GET"]),
    ("/debug/pprof/trace", &["GET"]),
    ("/health", &["GET"]),
    ("/ready", &["GET"]),
    ("/metrics", &["GET"]),
    ("/openapi.json", &["GET"]),
];

/// The paths that need no token from loopback.
const OPEN: &[&str] = &["/v1/log", "/v1/login", "/health", "/ready", "/metrics", "/openapi.json"];

/// All rows.
pub(super) fn table() -> Vec<Row> {
    let tables =
        [http(), every_path(), targets(), keys_in_paths(), numbers_in_paths(), queries(), conditions(), tokens()];
    tables.into_iter().flatten().collect()
}

/// Requests that are no HTTP, or of a shape that no route could answer safely.
fn http() -> Vec<Row> {
    let get = || on("GET", "/health");
    vec![
        get().without_host().is(400, "invalid-request"),
        get().header("Host: localhost").is(400, "invalid-request"),
        get().without_host().header("Host: ").is(400, "invalid-request"),
        get().without_host().header("Host: a b").is(400, "invalid-request"),
        get().without_host().header("Host: user@localhost").is(400, "invalid-request"),
        get().without_host().header("Host: localhost:99999").is(400, "invalid-request"),
        get().without_host().header(b"Host: \xff").is(400, "invalid-request"),
        on("GET", "https://elsewhere/health").is(400, "invalid-request"),
        on("GET", "http://localhost/health").is(400, "invalid-request"),
        on("OPTIONS", "*").is(400, "invalid-request"),
        on("GET", "*").is(400, "invalid-request"),
        on("CONNECT", "localhost:443").is(501, "method-unknown"),
        on("FROB", "/health").is(501, "method-unknown"),
        on("TRACE", "/nowhere").is(404, "no-such-route"),
        on("get", "/health").is(501, "method-unknown"),
        on("G(T", "/health").is(400, "-"),
        on("", "/health").is(400, "-"),
        on("GET", "health").is(400, "invalid-request"),
        on("GET", "").is(400, "-"),
        on("GET", "/a b").is(400, "-"),
        on("GET", b"/v1/keys/\x00").is(400, "-"),
        on("GET", b"/v1/keys/a\x7f").is(400, "-"),
        on("GET", b"/v1/keys/\xff").is(400, "-"),
        get().header("No colon").is(400, "-"),
        get().header("Bad name: x").is(400, "-"),
        get().header(b"X: a\x00b").is(400, "-"),
        get().header("X: a\r\n folded").is(400, "-"),
        get().header("X: a\rb").is(400, "-"),
        get().header("Content-Length: x").is(400, "-"),
        get().header("Content-Length: -1").is(400, "-"),
        get().header("Content-Length: 18446744073709551616").is(400, "-"),
        get().header("Content-Length: 1").header("Content-Length: 2").is(400, "-"),
        get().header("Transfer-Encoding: gzip").is(400, "-"),
        get().header("Transfer-Encoding: gzip, chunked").is(400, "invalid-request"),
        get().header("Transfer-Encoding: chunked, chunked").is(400, "invalid-request"),
        get().header("Transfer-Encoding: chunked").header("Transfer-Encoding: chunked").is(400, "invalid-request"),
        get().header(format!("X: {}", "x".repeat(40 << 10))).is(431, "-"),
        (0..70).fold(get(), |row, n| row.header(format!("X-{n}: x"))).is(431, "-"),
        on("GET", format!("/v1/keys/{}", "k".repeat(9 << 10))).is(414, "uri-too-long"),
        on("GET", format!("/v1/keys?prefix={}", "k".repeat(9 << 10))).is(414, "uri-too-long"),
        // Longer than a whole header may be.
        on("GET", format!("/{}", "k".repeat(70 << 10))).is(431, "-"),
    ]
}

/// What holds on every path: other methods, unknown parameters, bodies where none is taken.
fn every_path() -> Vec<Row> {
    let mut rows = Vec::new();
    for (path, methods) in PATHS {
        for method in ["GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS", "PATCH", "TRACE"] {
            let as_get = if method == "HEAD" { "GET" } else { method };
            if !methods.contains(&as_get) {
                rows.push(on(method, *path).is(405, "method-not-allowed"));
                continue;
            }
            rows.push(on(method, format!("{path}?x=1")).is(400, "invalid-parameter"));
            rows.push(on(method, format!("{path}?=")).is(400, "invalid-parameter"));
            rows.push(on(method, format!("{path}?%")).is(400, "invalid-request"));
            if as_get != "PUT" && as_get != "POST" {
                rows.push(on(method, *path).body("x").is(400, "invalid-request"));
            }
            let open = OPEN.contains(path);
            rows.extend((!open).then(|| on(method, *path).without_token().is(401, "unauthenticated")));
        }
    }
    rows
}

/// Paths that no route has.
fn targets() -> Vec<Row> {
    let nowhere = [
        "/",
        "/v1",
        "/v1/",
        "/v2/keys/k",
        "/V1/keys/k",
        "/v1/Keys/k",
        "//v1/keys/k",
        "/v1//keys/k",
        "/v1/keys-k",
        "/v1/../health",
        "/./health",
        "/health/",
        "/health;x",
        "/%68ealth",
        "/v1/transactions/0/",
        "/v1/transactions/0/x",
        "/v1/transactions/0/receipt/",
        "/v1/blocks/1/x",
        "/v1/api-keys/x/y",
        "/checkpoint/",
        "/tile",
        "/debug/pprof/cmdline",
    ];
    let mut rows: Vec<_> = nowhere.into_iter().map(|path| on("GET", path).is(404, "no-such-route")).collect();
    let no_tiles = [
        "",
        "0",
        "0/0",
        "0/00",
        "0/0000",
        "0/001/002",
        "0/x000/001",
        "6/000",
        "64/000",
        "-1/000",
        "00/000",
        "0/000.p/0",
        "0/000.p/256",
        "0/000.p/01",
        "0/000.p/",
        "0/+01",
        "0/000.p/1/",
        "0/%30%30%30",
        "entries/x018/x446/x744/x073/x709/x551/616",
        "data/000",
        "0/999",
        "entries/000",
        "0/000.p/255",
    ];
    rows.extend(no_tiles.into_iter().map(|tile| on("GET", format!("/tile/{tile}")).is(404, "no-such-tile")));
    rows
}

/// Key bytes, on every route whose path names a key.
fn keys_in_paths() -> Vec<Row> {
    let long = "k".repeat(513);
    let long_encoded = "%C3%A9".repeat(257);
    let bad: &[(&str, &'static str)] = &[
        ("", "invalid-key"),
        (&long, "invalid-key"),
        (&long_encoded, "invalid-key"),
        ("~", "invalid-key"),
        ("~api-keys/x", "invalid-key"),
        ("%7Eapi-keys/x", "invalid-key"),
        ("a%00b", "invalid-key"),
        ("%0A", "invalid-key"),
        ("a%0D%0Ab", "invalid-key"),
        ("a%1F", "invalid-key"),
        ("a%7F", "invalid-key"),
        ("a%C2%85", "invalid-key"),
        ("%", "invalid-request"),
        ("a%2", "invalid-request"),
        ("a%zz", "invalid-request"),
        ("a%+1", "invalid-request"),
        ("%FF", "invalid-request"),
        ("%C3", "invalid-request"),
        ("%C0%AF", "invalid-request"),
        ("%E0%80%AF", "invalid-request"),
        ("%ED%A0%80", "invalid-request"),
        ("%F4%90%80%80", "invalid-request"),
    ];
    let routes = [
        ("PUT", "/v1/keys/"),
        ("GET", "/v1/keys/"),
        ("HEAD", "/v1/keys/"),
        ("DELETE", "/v1/keys/"),
        ("GET", "/v1/history/"),
        ("GET", "/v1/proofs/"),
    ];
    let each = |(method, path): (&'static str, &'static str)| {
        bad.iter().map(move |(key, problem)| on(method, format!("{path}{key}")).is(400, problem)).collect::<Vec<_>>()
    };
    routes.into_iter().flat_map(each).collect()
}

/// Whole numbers and ids in paths.
fn numbers_in_paths() -> Vec<Row> {
    let no_numbers = ["x", "-1", "+1", "01", "1.0", "1e3", "0x1", "%31", "18446744073709551616", ""];
    let mut rows = Vec::new();
    for n in no_numbers {
        rows.push(on("GET", format!("/v1/transactions/{n}")).is(400, "invalid-request"));
        rows.push(on("GET", format!("/v1/transactions/{n}/receipt")).is(400, "invalid-request"));
        rows.push(on("GET", format!("/v1/blocks/{n}")).is(400, "invalid-request"));
    }
    for n in ["999999999", "18446744073709551615"] {
        rows.push(on("GET", format!("/v1/transactions/{n}")).is(404, "no-such-entry"));
        rows.push(on("GET", format!("/v1/transactions/{n}/receipt")).is(404, "no-such-entry"));
        rows.push(on("GET", format!("/v1/blocks/{n}")).is(404, "no-such-block"));
        rows.push(on("GET", format!("/v1/keys/k?at={n}")).is(404, "no-such-block"));
        rows.push(on("GET", format!("/v1/watch?after={n}")).is(404, "no-such-block"));
    }
    rows.push(on("GET", "/v1/blocks/0").is(404, "no-such-block"));
    for id in
        ["", "x", "0011223344556677", "001122334455667", "00112233445566778", "001122334455667G", "00112233445566%37"]
    {
        rows.push(on("DELETE", format!("/v1/api-keys/{id}")).is(404, "no-such-api-key"));
        rows.push(on("DELETE", format!("/v1/certificates/{id}")).is(404, "no-such-certificate"));
    }
    for name in ["", "nobody", "Nobody", ".", "..", "a%20b", "~users", &"n".repeat(65)] {
        rows.push(on("GET", format!("/v1/users/{name}")).is(404, "no-such-user"));
        rows.push(on("DELETE", format!("/v1/users/{name}")).is(404, "no-such-user"));
        rows.push(on("DELETE", format!("/v1/users/{name}/sessions")).is(404, "no-such-user"));
    }
    rows
}

/// Query parameters: repeated, malformed, out of range.
fn queries() -> Vec<Row> {
    let numbers = [
        ("/v1/keys/k", "at"),
        ("/v1/keys", "limit"),
        ("/v1/history/k", "before"),
        ("/v1/history/k", "limit"),
        ("/v1/blocks", "after"),
        ("/v1/blocks", "limit"),
        ("/v1/watch", "after"),
    ];
    let mut rows = Vec::new();
    for (path, name) in numbers {
        for bad in ["", "x", "-1", "+1", "01", "1.0", "1e3", "%2531", "18446744073709551616", "%00"] {
            rows.push(on("GET", format!("{path}?{name}={bad}")).is(400, "invalid-parameter"));
        }
        rows.push(on("GET", format!("{path}?{name}")).is(400, "invalid-parameter"));
        rows.push(on("GET", format!("{path}?{name}=1&{name}=1")).is(400, "invalid-parameter"));
        rows.push(on("GET", format!("{path}?{name}=%zz")).is(400, "invalid-request"));
        if name == "limit" {
            rows.push(on("GET", format!("{path}?limit=0")).is(400, "invalid-parameter"));
            rows.push(on("GET", format!("{path}?limit=1001")).is(400, "invalid-parameter"));
        }
    }
    for (path, name) in [("/v1/keys", "prefix"), ("/v1/keys", "after"), ("/v1/watch", "prefix")] {
        rows.push(on("GET", format!("{path}?{name}=~")).is(400, "invalid-parameter"));
        rows.push(on("GET", format!("{path}?{name}=%7Ex")).is(400, "invalid-parameter"));
        rows.push(on("GET", format!("{path}?{name}=a%0a")).is(400, "invalid-parameter"));
        rows.push(on("GET", format!("{path}?{name}=a&{name}=b")).is(400, "invalid-parameter"));
        rows.push(on("GET", format!("{path}?{name}=%FF")).is(400, "invalid-request"));
        rows.push(on("GET", format!("{path}?{name}={}", "k".repeat(513))).is(400, "invalid-parameter"));
    }
    for bad in ["", "x", "-1", "01", "1.5", "2592001", "18446744073709551615"] {
        let path = format!("/v1/api-keys/0011223344556677/successor?grace={bad}");
        rows.push(on("POST", path).is(400, "invalid-parameter"));
    }
    rows.push(on("POST", "/v1/api-keys/0011223344556677/successor?grace=2592000").is(404, "no-such-api-key"));
    rows.push(on("GET", "/v1/keys?after=").is(400, "invalid-parameter"));
    let choices = [("/v1/keys/k", "consistency"), ("/v1/transactions/0/receipt", "wait"), ("/ready", "for")];
    for (path, name) in choices {
        for bad in ["", "x", "QUORUM", "write,write"] {
            rows.push(on("GET", format!("{path}?{name}={bad}")).is(400, "invalid-parameter"));
        }
    }
    rows
}

/// Headers that carry conditions.
fn conditions() -> Vec<Row> {
    let mut rows = Vec::new();
    for method in ["PUT", "DELETE"] {
        let bad = [
            "0",
            "*",
            "\"x\"",
            "W/\"0\"",
            "\"0\", \"1\"",
            "\"01\"",
            "\"-1\"",
            "\"\"",
            "\"0",
            "\"18446744073709551616\"",
        ];
        for bad in bad {
            rows.push(on(method, "/v1/keys/k").header(format!("If-Match: {bad}")).is(400, "invalid-request"));
        }
        for bad in ["\"0\"", "x", "**", "* *"] {
            rows.push(on(method, "/v1/keys/k").header(format!("If-None-Match: {bad}")).is(400, "invalid-request"));
        }
        let two = || on(method, "/v1/keys/k");
        rows.push(two().header("If-Match: \"0\"").header("If-None-Match: *").is(412, "precondition-failed"));
        rows.push(two().header("If-Match: \"0\"").header("If-Match: \"0\"").is(400, "invalid-request"));
        rows.push(two().header("If-None-Match: *").header("If-None-Match: *").is(400, "invalid-request"));
        rows.push(two().header(b"If-Match: \xff").is(400, "invalid-request"));
        rows.push(two().header("If-Match: ").is(412, "precondition-failed"));
        rows.push(two().header("If-Match: \"999999\"").is(412, "precondition-failed"));
        rows.push(two().header("If-None-Match: *").is(412, "precondition-failed"));
        let long = "k".repeat(129);
        for bad in ["", "a b", "a\tb", "\u{e9}", long.as_str()] {
            rows.push(two().header(format!("Idempotency-Key: {bad}")).is(400, "invalid-request"));
        }
        rows.push(two().header("Idempotency-Key: a").header("Idempotency-Key: a").is(400, "invalid-request"));
    }
    rows.push(on("DELETE", "/v1/keys/absent").is(404, "no-such-key"));
    rows.push(on("GET", "/v1/keys/absent").is(404, "no-such-key"));
    rows.push(on("GET", "/v1/history/absent").is(404, "no-such-key"));
    rows.push(on("GET", "/v1/keys/k").header("If-Match: \"999999\"").is(412, "precondition-failed"));
    rows.push(on("GET", "/v1/keys/k").header("If-None-Match: *").header("If-None-Match: *").is(400, "invalid-request"));
    for bad in ["", "x", "-1", "01", "1.0", "18446744073709551616"] {
        rows.push(on("GET", "/v1/watch").header(format!("Last-Event-ID: {bad}")).is(400, "invalid-request"));
    }
    rows.push(on("GET", "/v1/watch").header("Last-Event-ID: 1").header("Last-Event-ID: 1").is(400, "invalid-request"));
    rows
}

/// Credentials. Few enough that the limit of wrong tokens per address is not reached.
fn tokens() -> Vec<Row> {
    let secret = "A".repeat(43);
    let bad = |value: String| on("GET", "/v1/status").without_token().header(format!("Authorization: {value}"));
    vec![
        bad(String::new()).is(401, "unauthenticated"),
        bad("Bearer".into()).is(401, "unauthenticated"),
        bad("Bearer ".into()).is(401, "unauthenticated"),
        bad("Basic dXNlcjpwYXNz".into()).is(401, "unauthenticated"),
        bad("Bearer x".into()).is(401, "unauthenticated"),
        bad(format!("Bearer samovar_0011223344556677_{secret}")).is(401, "unauthenticated"),
        bad(format!("Bearer samovar_../../x_{secret}")).is(401, "unauthenticated"),
        bad(format!("Bearer samovar__{secret}")).is(401, "unauthenticated"),
        bad(format!("Bearer samovar_{}_{secret}", "0".repeat(1000))).is(401, "unauthenticated"),
        bad("Bearer samovar_session_".into()).is(401, "unauthenticated"),
        bad("Bearer samovar_session_0011223344556677.e30.".into()).is(401, "unauthenticated"),
        bad(format!("Bearer samovar_session_{}", "A".repeat(2000))).is(401, "unauthenticated"),
        bad("Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZG1pbiJ9.".into()).is(401, "unauthenticated"),
        on("GET", "/v1/status").without_token().header(b"Authorization: Bearer \xff").is(401, "unauthenticated"),
        on("GET", "/v1/status").header("Authorization: Bearer x").is(400, "invalid-request"),
    ]
}
