use std::sync::atomic::{AtomicUsize, Ordering};

use super::fake::{Reply, start};
use super::*;

fn counter() -> (Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let counter = Arc::new(AtomicUsize::new(0));
    (counter.clone(), counter)
}

#[tokio::test]
async fn requests_share_a_connection_and_carry_the_token() {
    let fake = start(|request| async move {
        let header = |name: &str| request.headers()[name].to_str().expect("text").to_owned();
        Reply::new(200, format!("{} {} {}", request.uri(), header("host"), header("authorization")))
    })
    .await;
    let dir = tempfile::tempdir().expect("temporary directory");
    let token = dir.path().join("token");
    std::io::Write::write_all(&mut std::fs::File::create(&token).expect("create"), b"secret\n").expect("write");
    let client = Client::open(&Target { token_file: Some(token), ..fake.target.clone() }).expect("target");
    let host = client.url().trim_start_matches("https://").to_owned();
    for n in 0..5 {
        let answer = client.send(Request::get(format!("/v1/keys/{n}?x=1"))).await.expect("an answer");
        assert_eq!(answer.text().expect("text"), format!("/v1/keys/{n}?x=1 {host} Bearer secret"));
    }
    assert_eq!(fake.connections.load(Ordering::SeqCst), 1, "five requests one after the other need one connection");
}

#[tokio::test]
async fn closed_connections_are_replaced_unseen() {
    let fake = start(|_| async { Reply { close: true, ..Reply::new(200, "x") } }).await;
    let client = Client::open(&fake.target).expect("target");
    for _ in 0..3 {
        // Not repeatable: only what was never sent may go out again.
        client.send(Request::write(Method::POST, "/v1/api-keys", "x")).await.expect("an answer on a new connection");
    }
    assert_eq!(fake.connections.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn only_what_is_safe_is_repeated() {
    let (calls, seen) = counter();
    let fake = start(move |_| {
        let n = seen.fetch_add(1, Ordering::SeqCst);
        async move { if n % 3 < 2 { Reply::new(503, "{}").header("retry-after", 0) } else { Reply::new(200, "done") } }
    })
    .await;
    let client = Client::open(&fake.target).expect("target");
    client.send(Request::get("/")).await.expect("a read is repeated until it succeeds");
    assert_eq!(calls.swap(0, Ordering::SeqCst), 3);
    let write = || Request::write(Method::PUT, "/v1/keys/a", "v");
    client.send(write().idempotent("k").expect("key")).await.expect("a write with an Idempotency-Key is repeated");
    assert_eq!(calls.swap(0, Ordering::SeqCst), 3);
    let error = client.send(write()).await.expect_err("a bare write is not");
    assert!(matches!(error, Error::Refused(ref p) if p.status == 503), "{error}");
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn patience_ends() {
    let (calls, seen) = counter();
    let fake = start(move |_| {
        seen.fetch_add(1, Ordering::SeqCst);
        async { Reply::new(503, r#"{"detail":"no quorum"}"#) }
    })
    .await;
    let client = Client::open(&fake.target).expect("target");
    let request = Request::get("/").patience(Duration::from_millis(600));
    let began = Instant::now();
    let error = client.send(request).await.expect_err("the node never has a quorum");
    assert!(error.to_string().contains("no quorum"), "the last answer is what is told: {error}");
    assert!((2..=4).contains(&calls.load(Ordering::SeqCst)), "pauses of 100, 200, 400 ms and up to half more");
    assert!(began.elapsed() < Duration::from_secs(5), "it ends");
}

#[tokio::test]
async fn what_goes_wrong_is_told_apart() {
    let fake = start(|_| async { Reply::new(200, vec![0; 2000]) }).await;
    let quick = |path: &str| Request::get(path).patience(Duration::ZERO);
    let client = Client::open(&fake.target).expect("target");
    let error = client.send(quick("/").bounds(ANSWER_TIMEOUT, 1999)).await.expect_err("beyond the bound");
    assert!(matches!(error, Error::Protocol(_)), "{error}");
    client.send(quick("/").bounds(ANSWER_TIMEOUT, 2000)).await.expect("within the bound");

    let stranger = start(|_| async { Reply::new(200, "") }).await;
    let target = Target { ca: fake.target.ca.clone(), ..stranger.target.clone() };
    let error = Client::open(&target).expect("target").send(quick("/")).await.expect_err("another authority's node");
    assert!(matches!(error, Error::Unreachable { .. }) && error.to_string().contains("--ca"), "{error}");

    let target = Target { url: Some("https://127.0.0.1:1".into()), ..fake.target.clone() };
    let error = Client::open(&target).expect("target").send(quick("/")).await.expect_err("nobody listens");
    assert!(error.to_string().contains("samovar serve"), "says what to do: {error}");

    let silent = start(|_| std::future::pending()).await;
    let client = Client::open(&silent.target).expect("target");
    let bounds = |r: Request| Request { answer_timeout: Duration::ZERO, ..r };
    let error = client.send(bounds(quick("/"))).await.expect_err("never an answer");
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    let write = bounds(Request::write(Method::PUT, "/", "x"));
    let error = client.send(write).await.expect_err("never an answer");
    assert!(matches!(error, Error::Unknown { .. }), "a write may have been done: {error}");
}

#[tokio::test]
async fn stream_breaks_loudly() {
    let fake =
        start(|_| async { Reply { pieces: vec![b"id: 1\n".to_vec(), b"\n".to_vec()], ..Reply::new(200, "") } }).await;
    let client = Client::open(&fake.target).expect("target");
    let mut stream = client.stream(Request::get("/v1/watch")).await.expect("a stream");
    let (mut all, mut broken) = (Vec::new(), false);
    loop {
        match stream.next(Duration::from_secs(5)).await {
            Ok(Some(bytes)) => all.extend_from_slice(&bytes),
            Ok(None) => break,
            Err(e) => {
                assert!(matches!(e, Error::Unreachable { .. }), "{e}");
                broken = true;
                break;
            }
        }
    }
    assert_eq!((all.as_slice(), broken), (b"id: 1\n\n".as_slice(), true), "a cut stream is not an end");
}

#[test]
fn paths_and_queries() {
    for (key, path) in [
        ("a/b-c._~", "/v1/keys/a/b-c._~"),
        ("ü %?#", "/v1/keys/%C3%BC%20%25%3F%23"),
        ("..", "/v1/keys/.."),
        ("a+b&c=d\"'", "/v1/keys/a%2Bb%26c%3Dd%22%27"),
    ] {
        assert_eq!(key_path("/v1/keys", key), path, "key {key:?}");
        assert!(path.parse::<hyper::Uri>().is_ok(), "{path} is a request target");
    }
    assert_eq!(query(&[("a", None)]), "");
    assert_eq!(query(&[("a", Some("x/y z")), ("b", None), ("c", Some(""))]), "?a=x%2Fy%20z&c=");
}
