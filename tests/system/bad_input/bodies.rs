//! What is wrong with a body: size, framing, media type, JSON, and what it asks for.

use super::{Row, on, transaction};

/// Largest value, and largest sum of values of a transaction.
const VALUE_BYTES_MAX: usize = 1 << 20;
/// Largest body of a transaction.
const TRANSACTION_BYTES_MAX: usize = 2 << 20;

/// Routes that take JSON by POST.
const JSON_PATHS: [&str; 5] = ["/v1/transactions", "/v1/api-keys", "/v1/users", "/v1/certificates", "/v1/login"];

/// All rows.
pub(super) fn table() -> Vec<Row> {
    let tables = [framing(), media_types(), json(), transaction_fields(), transaction_limits(), api_keys(), users()];
    tables.into_iter().flatten().collect()
}

/// A chunked body as it is sent.
fn chunked(path: &str, body: impl Into<Vec<u8>>) -> Row {
    on("PUT", path).unframed().header("Transfer-Encoding: chunked").body(body)
}

/// Sizes and framing.
fn framing() -> Vec<Row> {
    let put = || on("PUT", "/v1/keys/k");
    let over = VALUE_BYTES_MAX + 1;
    let mut endless = format!("{over:x}\r\n").into_bytes();
    endless.resize(endless.len() + over, b'x');
    vec![
        put().body(vec![b'x'; over]).is(413, "too-large"),
        // Refused by what is announced, before a byte of it comes.
        put().header(format!("Content-Length: {over}")).is(413, "too-large"),
        put().header("Content-Length: 9223372036854775807").is(413, "too-large"),
        put().header(format!("Content-Length: {over}")).header("Expect: 100-continue").is(413, "too-large"),
        chunked("/v1/keys/k", endless).is(413, "too-large"),
        chunked("/v1/keys/k", "x\r\n").is(400, "body-broken"),
        chunked("/v1/keys/k", "-1\r\n").is(400, "body-broken"),
        chunked("/v1/keys/k", "1\r\nabc\r\n0\r\n\r\n").is(400, "body-broken"),
        chunked("/v1/keys/k", "ffffffffffffffffff\r\n").is(400, "body-broken"),
        on("POST", "/v1/api-keys")
            .header("Content-Type: application/json")
            .body(vec![b' '; (64 << 10) + 1])
            .is(413, "too-large"),
    ]
}

/// `Content-Type` and its relatives.
fn media_types() -> Vec<Row> {
    let put = || on("PUT", "/v1/keys/k").body("v");
    let longest = format!("a/{}", "b".repeat(126));
    let bad = ["", "text", "/", "a/", "/b", "a b/c", "a/b c", "a/b\u{e9}", longest.as_str()];
    let mut rows: Vec<_> = bad
        .into_iter()
        .map(|t| {
            // Bytes beyond ASCII are a malformed header, not another media type.
            let (status, problem) =
                if t.is_ascii() { (415, "unsupported-media-type") } else { (400, "invalid-request") };
            put().header(format!("Content-Type: {t}")).is(status, problem)
        })
        .collect();
    rows.push(put().header("Content-Type: a/b").header("Content-Type: a/b").is(400, "invalid-request"));
    rows.push(put().header("Content-Encoding: gzip").is(415, "unsupported-media-type"));
    rows.push(put().header("Content-Range: bytes 0-0/1").is(400, "invalid-request"));
    for path in JSON_PATHS {
        let post = || on("POST", path).body("{}");
        rows.push(post().is(415, "unsupported-media-type"));
        rows.push(post().header("Content-Type: text/plain").is(415, "unsupported-media-type"));
        rows.push(post().header("Content-Type: application/jsonx").is(415, "unsupported-media-type"));
        let json = || post().header("Content-Type: application/json");
        rows.push(json().header("Content-Encoding: gzip").is(415, "unsupported-media-type"));
        rows.push(json().header("Content-Type: application/json").is(400, "invalid-request"));
    }
    rows
}

/// What is not JSON, or not JSON that every reader understands alike: on the routes that take it.
fn json() -> Vec<Row> {
    let deep = |open: &str, close: &str| open.repeat(10_000) + "1" + &close.repeat(10_000);
    let bad: Vec<Vec<u8>> = vec![
        b"".into(),
        b" ".into(),
        b"{".into(),
        b"}".into(),
        b"{}{}".into(),
        b"{\"a\":1,}".into(),
        b"{'a':1}".into(),
        b"// x\n{}".into(),
        b"null".into(),
        b"true".into(),
        b"1".into(),
        b"\"x\"".into(),
        b"[]".into(),
        b"[1]".into(),
        b"{}".into(),
        b"{\"x\":1}".into(),
        b"{\"\":{}}".into(),
        b"{\"x\":01}".into(),
        b"{\"x\":1e999}".into(),
        b"{\"x\":NaN}".into(),
        b"{\"x\":-}".into(),
        b"{\"x\":\"\\ud800\"}".into(),
        b"{\"x\":\"\xff\"}".into(),
        b"{\"x\":\"a\nb\"}".into(),
        b"{\"x\":\"a\x00b\"}".into(),
        b"\xef\xbb\xbf{}".into(),
        b"{\x00}".into(),
        "{}".encode_utf16().flat_map(u16::to_le_bytes).collect(),
        deep("[", "]").into(),
        deep("{\"a\":", "}").into(),
        vec![b'['; 60_000],
    ];
    let post = |path, body: &Vec<u8>| on("POST", path).header("Content-Type: application/json").body(body.clone());
    let each = |path| bad.iter().map(move |body| post(path, body).is(400, "invalid-request")).collect::<Vec<_>>();
    let mut rows: Vec<_> = JSON_PATHS.into_iter().flat_map(each).collect();
    // Without a body there is nothing to be malformed but the length: the same answer.
    rows.push(transaction("").is(400, "invalid-request"));
    rows
}

/// Fields of a transaction: missing, unknown, repeated, of another type.
fn transaction_fields() -> Vec<Row> {
    let operations = [
        "1",
        "null",
        "{}",
        "\"x\"",
        "[1]",
        "[null]",
        "[[]]",
        "[{}]",
        r#"[{"rename":{"key":"a"}}]"#,
        r#"[{"Put":{"key":"a","value":1}}]"#,
        r#"[{"delete":{"key":"a"},"put":{"key":"b","value":1}}]"#,
        r#"[{"delete":{"key":"a"},"delete":{"key":"a"}}]"#,
        r#"[{"delete":null}]"#,
        r#"[{"delete":{}}]"#,
        r#"[{"delete":{"key":1}}]"#,
        r#"[{"delete":{"key":null}}]"#,
        r#"[{"delete":{"key":["a"]}}]"#,
        r#"[{"delete":{"key":"a","x":1}}]"#,
        r#"[{"delete":{"key":"a","key":"b"}}]"#,
        r#"[{"delete":{"key":"a","k\u0065y":"a"}}]"#,
        r#"[{"put":{"key":"a","value":{"x":1,"x":2}}}]"#,
        r#"[{"put":{"key":"a","value":1e999}}]"#,
        r#"[{"put":{"key":"a","bytes":1}}]"#,
        r#"[{"put":{"key":"a","value":1,"type":1}}]"#,
        r#"[{"put":{"value":1}}]"#,
        r#"[{"put":{"key":"a","blob":1}}]"#,
        r#"[{"erase":{"key":"a"}}]"#,
        r#"[{"erase":{"key":"a","revision":null}}]"#,
        r#"[{"erase":{"key":"a","revision":-1}}]"#,
        r#"[{"erase":{"key":"a","revision":1.5}}]"#,
        r#"[{"erase":{"key":"a","revision":1e300}}]"#,
        r#"[{"erase":{"key":"a","revision":"1"}}]"#,
        r#"[{"erase":{"key":"a","revision":18446744073709551616}}]"#,
    ];
    let of = |operations: &str| transaction(format!(r#"{{"operations":{operations}}}"#));
    let mut rows: Vec<_> = operations.into_iter().map(|o| of(o).is(400, "invalid-request")).collect();
    let deep = format!(r#"[{{"put":{{"key":"a","value":{}1{}}}}}]"#, "[".repeat(10_000), "]".repeat(10_000));
    rows.push(of(&deep).is(400, "invalid-request"));
    for key in ["", "~", "~api-keys/x", "a\\u0000", "a\\r\\nb", "a\\u007f", "a\\u0085", &"k".repeat(513)] {
        rows.push(of(&format!(r#"[{{"delete":{{"key":"{key}"}}}}]"#)).is(400, "invalid-key"));
        rows.push(of(&format!(r#"[{{"put":{{"key":"{key}","value":1}}}}]"#)).is(400, "invalid-key"));
        rows.push(of(&format!(r#"[{{"erase":{{"key":"{key}","revision":0}}}}]"#)).is(400, "invalid-key"));
        let require =
            format!(r#"{{"require":[{{"key":"{key}","revision":null}}],"operations":[{{"delete":{{"key":"a"}}}}]}}"#);
        rows.push(transaction(require).is(400, "invalid-key"));
    }
    let requires = [
        "1",
        "null",
        "{}",
        "[1]",
        "[{}]",
        r#"[{"key":"a"}]"#,
        r#"[{"revision":1}]"#,
        r#"[{"key":"a","revision":-1}]"#,
        r#"[{"key":"a","revision":1.5}]"#,
        r#"[{"key":"a","revision":"1"}]"#,
        r#"[{"key":"a","revision":1,"x":1}]"#,
    ];
    for require in requires {
        let body = format!(r#"{{"require":{require},"operations":[{{"delete":{{"key":"k"}}}}]}}"#);
        rows.push(transaction(body).is(400, "invalid-request"));
    }
    let twice = r#"{"operations":[{"delete":{"key":"k"}}],"operations":[{"delete":{"key":"k"}}]}"#;
    rows.push(transaction(twice).is(400, "invalid-request"));
    rows.push(transaction(r#"{"operations":[{"delete":{"key":"k"}}],"x":1}"#).is(400, "invalid-request"));
    let good = r#"{"operations":[{"put":{"key":"new","value":1}}]}"#;
    rows.push(transaction(good).header("Idempotency-Key: a b").is(400, "invalid-request"));
    rows
}

/// CID of a blob that nobody has uploaded.
const ABSENT_CID: &str = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku";

/// Transactions that are well-formed and cannot be done.
fn transaction_limits() -> Vec<Row> {
    let of = |operations: &[String]| transaction(format!(r#"{{"operations":[{}]}}"#, operations.join(",")));
    let one = |operation: &str| of(&[operation.to_owned()]);
    let puts = |n: usize, key_bytes: usize| -> Vec<_> {
        (0..n).map(|i| format!(r#"{{"put":{{"key":"{i:0key_bytes$}","value":1}}}}"#)).collect()
    };
    let requires: Vec<_> = (0..129).map(|i| format!(r#"{{"key":"k{i}","revision":null}}"#)).collect();
    let half = "x".repeat(VALUE_BYTES_MAX / 2);
    let halves: Vec<_> = ["a", "b"].iter().map(|k| format!(r#"{{"put":{{"key":"{k}","value":"{half}"}}}}"#)).collect();
    // Names that JSON writes six times as long as they are: 128 of them make an entry above 65,535 bytes.
    let quoted = |i: usize| format!(r#"{{"put":{{"key":"{i:03}{}","value":1}}}}"#, "\\\"".repeat(509));
    vec![
        of(&[]).is(422, "unprocessable"),
        of(&puts(129, 4)).is(422, "unprocessable"),
        of(&(0..128).map(quoted).collect::<Vec<_>>()).is(413, "entry-too-large"),
        of(&puts(128, 512)).is(413, "entry-too-large"),
        of(&halves).is(413, "too-large"),
        transaction(vec![b' '; TRANSACTION_BYTES_MAX + 1]).is(413, "too-large"),
        transaction(format!(r#"{{"require":[{}],"operations":[{{"delete":{{"key":"k"}}}}]}}"#, requires.join(","))).is(422, "unprocessable"),
        of(&[r#"{"delete":{"key":"k"}}"#.into(), r#"{"delete":{"key":"k"}}"#.into()]).is(422, "unprocessable"),
        of(&[r#"{"put":{"key":"a","value":1}}"#.into(), r#"{"delete":{"key":"\u0061"}}"#.into()]).is(422, "unprocessable"),
        transaction(r#"{"require":[{"key":"a","revision":null},{"key":"a","revision":1}],"operations":[{"delete":{"key":"k"}}]}"#).is(422, "unprocessable"),
        one(r#"{"put":{"key":"a"}}"#).is(422, "unprocessable"),
        one(r#"{"put":{"key":"a","value":1,"bytes":""}}"#).is(422, "unprocessable"),
        one(r#"{"put":{"key":"a","bytes":"A"}}"#).is(422, "unprocessable"),
        one(r#"{"put":{"key":"a","bytes":"AB=="}}"#).is(422, "unprocessable"),
        one(r#"{"put":{"key":"a","bytes":"AAA"}}"#).is(422, "unprocessable"),
        one(r#"{"put":{"key":"a","bytes":"-_-_"}}"#).is(422, "unprocessable"),
        one(r#"{"put":{"key":"a","bytes":"AAAA\n"}}"#).is(422, "unprocessable"),
        one(r#"{"put":{"key":"a","blob":"bafk"}}"#).is(422, "unprocessable"),
        one(r#"{"put":{"key":"a","value":1,"blob":"bafk"}}"#).is(422, "unprocessable"),
        one(&format!(r#"{{"put":{{"key":"a","blob":"{ABSENT_CID}"}}}}"#)).is(422, "no-such-blob"),
        one(&format!(r#"{{"put":{{"key":"a","blob":"{}"}}}}"#, ABSENT_CID.to_uppercase())).is(422, "unprocessable"),
        one(r#"{"put":{"key":"a","value":1,"type":"x"}}"#).is(415, "unsupported-media-type"),
        one(r#"{"put":{"key":"a","value":1,"type":"a/b\r\nX: y"}}"#).is(415, "unsupported-media-type"),
        one(r#"{"delete":{"key":"absent"}}"#).is(404, "no-such-key"),
        one(r#"{"erase":{"key":"absent","revision":1}}"#).is(404, "no-such-revision"),
        one(r#"{"erase":{"key":"absent","revision":1.0}}"#).is(404, "no-such-revision"),
        one(r#"{"erase":{"key":"k","revision":18446744073709551615}}"#).is(404, "no-such-revision"),
        transaction(r#"{"require":[{"key":"absent","revision":1}],"operations":[{"put":{"key":"a","value":1}}]}"#).is(412, "precondition-failed"),
        transaction(r#"{"require":[{"key":"k","revision":null}],"operations":[{"put":{"key":"a","value":1}}]}"#).is(412, "precondition-failed"),
    ]
}

/// Bodies of new API keys.
fn api_keys() -> Vec<Row> {
    let of = |body: String| on("POST", "/v1/api-keys").header("Content-Type: application/json").body(body);
    let malformed = [
        r#"{"role":"reader"}"#,
        r#"{"name":1,"role":"reader"}"#,
        r#"{"name":"n","role":"root"}"#,
        r#"{"name":"n","role":"Reader"}"#,
        r#"{"name":"n","role":"writer","grants":["admin"]}"#,
        r#"{"name":"n","role":"reader","x":1}"#,
        r#"{"name":"n","name":"n","role":"reader"}"#,
        r#"{"name":"n","role":"reader","prefixes":"a"}"#,
        r#"{"name":"n","role":"reader","prefixes":[1]}"#,
        r#"{"name":"n","role":"reader","prefixes":null}"#,
        r#"{"name":"n","role":"reader","expires_ms":-1}"#,
        r#"{"name":"n","role":"reader","expires_ms":1.5}"#,
        r#"{"name":"n","role":"reader","expires_ms":"1"}"#,
        r#"{"name":"n","role":"reader","expires_ms":18446744073709551616}"#,
    ];
    let mut rows: Vec<_> = malformed.into_iter().map(|b| of(b.to_owned()).is(400, "invalid-request")).collect();
    let long = "n".repeat(129);
    for name in ["", "a\\u0000", "a\\n", &long] {
        rows.push(of(format!(r#"{{"name":"{name}","role":"reader"}}"#)).is(422, "unprocessable"));
    }
    let many = vec!["\"a\""; 33].join(",");
    let prefix = format!("\"{}\"", "p".repeat(513));
    for prefixes in ["\"\"", "\"~\"", "\"~api-keys/\"", "\"a\\u0000\"", &many, &prefix] {
        rows.push(of(format!(r#"{{"name":"n","role":"reader","prefixes":[{prefixes}]}}"#)).is(422, "unprocessable"));
    }
    for body in [
        r#"{"name":"n","role":"reader","expires_ms":1}"#,
        r#"{"name":"n"}"#,
        r#"{"name":"n","role":null}"#,
        r#"{"name":"n","role":"reader","user":"nobody"}"#,
        r#"{"name":"n","user":"nobody","prefixes":["a"]}"#,
        r#"{"name":"n","user":"nobody","grants":["erase"]}"#,
    ] {
        rows.push(of(body.into()).is(422, "unprocessable"));
    }
    rows.push(of(r#"{"name":"n","user":"nobody"}"#.into()).is(404, "no-such-user"));
    // The last key that may make others cannot be thrown away; its id is not known here, the test of the API does that.
    rows
}

/// Bodies about users, their passwords and certificates.
fn users() -> Vec<Row> {
    let to = |method: &str, path: &str, body: &str| {
        on(method, path).header("Content-Type: application/json").body(body.to_owned())
    };
    let mut rows = Vec::new();
    for body in [
        r#"{"name":"a"}"#,
        r#"{"name":"a","role":"root"}"#,
        r#"{"name":"a","role":"reader","password":1}"#,
        r#"{"name":"a","role":"reader","service":true}"#,
        r#"{"name":"a","role":"reader","grants":"erase"}"#,
    ] {
        rows.push(to("POST", "/v1/users", body).is(400, "invalid-request"));
    }
    let long = "n".repeat(65);
    for name in ["", "A", "-a", "a b", "a/b", "~a", "\\u00e9", "a\\u0000", &long] {
        let body = format!(r#"{{"name":"{name}","role":"reader"}}"#);
        rows.push(to("POST", "/v1/users", &body).is(422, "unprocessable"));
    }
    let long = "long".repeat(257);
    for password in ["", "fourteen chars", "aaaaaaaaaaaaaaaaaaaa", "alice-is-alice", "alice-is-alice-1", &long] {
        let body = format!(r#"{{"name":"alice","role":"reader","password":"{password}"}}"#);
        rows.push(to("POST", "/v1/users", &body).is(422, "unprocessable"));
    }
    rows.push(to("PUT", "/v1/users/nobody", r#"{"role":"reader"}"#).is(404, "no-such-user"));
    rows.push(to("PUT", "/v1/users/nobody", r#"{"disabled":true}"#).is(400, "invalid-request"));
    rows.push(to("PUT", "/v1/users/nobody/password", r#"{"password":"fifteen letters"}"#).is(404, "no-such-user"));
    rows.push(to("PUT", "/v1/api-keys/0011223344556677", r#"{"name":"n"}"#).is(404, "no-such-api-key"));
    // The admin's key is nobody's: it has no password to change.
    let change = r#"{"old":"fifteen letters","new":"fifteen letters more"}"#;
    rows.push(to("PUT", "/v1/me/password", change).is(409, "no-user"));
    rows.push(on("POST", "/v1/logout").is(409, "no-session"));
    let key = "0".repeat(64);
    let certificate = |key: &str| format!(r#"{{"name":"n","user":"nobody","key":"{key}"}}"#);
    rows.push(to("POST", "/v1/certificates", &certificate(&key)).is(404, "no-such-user"));
    for key in ["", "00", &"0".repeat(63), &"0".repeat(65), &"g".repeat(64), &"A".repeat(64)] {
        rows.push(to("POST", "/v1/certificates", &certificate(key)).is(422, "unprocessable"));
    }
    // One argon2 each; the user does not exist.
    for name in ["nobody", "", "A", "~", "a\\u0000"] {
        let body = format!(r#"{{"user":"{name}","password":"x"}}"#);
        rows.push(to("POST", "/v1/login", &body).without_token().is(401, "unauthenticated"));
    }
    rows
}
