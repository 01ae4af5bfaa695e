//! The whole daemon in this process: init, serve over a real socket, stop.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::*;
use crate::secrets::KekFiles;

mod site;

/// Longest time that one answer may take.
const PATIENCE: Duration = Duration::from_secs(20);

struct Daemon {
    address: SocketAddr,
    data: tempfile::TempDir,
    token: String,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    reload: mpsc::Sender<()>,
    thread: Option<std::thread::JoinHandle<Result<()>>>,
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("JSON expected ({e}): {}", self.body))
    }

    fn header(&self, name: &str) -> &str {
        let line = self.head.lines().find(|l| l.to_lowercase().starts_with(&format!("{name}: ")));
        line.and_then(|l| l.split_once(": ")).map_or("", |(_, v)| v)
    }
}

impl Daemon {
    fn start() -> Self {
        let data = tempfile::tempdir().expect("a directory");
        let anywhere = Shown::from(SocketAddr::from(([127, 0, 0, 1], 0)));
        init(data.path(), Some("test"), &anywhere, &KekFiles::default()).expect("init");
        let token = std::fs::read_to_string(data.path().join("admin.token")).expect("a token").trim().to_owned();
        let (address, stop, reload, thread) = run_daemon(data.path());
        Self { address, data, token, stop: Some(stop), reload, thread: Some(thread) }
    }

    fn stop(&mut self) {
        self.stop.take().expect("running").send(()).expect("running");
        self.thread.take().expect("running").join().expect("no panic").expect("stops without an error");
    }

    fn restart(&mut self) {
        self.stop();
        let (address, stop, reload, thread) = run_daemon(self.data.path());
        (self.address, self.stop, self.reload, self.thread) = (address, Some(stop), reload, Some(thread));
    }

    fn ask(&self, request: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let token = format!("Bearer {}", self.token);
        let mut all = vec![("Authorization", token.as_str())];
        all.extend(headers);
        self.ask_as(request, &all, body)
    }

    fn ask_as(&self, request: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let mut text = format!("{request} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
        for (name, value) in headers {
            text += &format!("{name}: {value}\r\n");
        }
        text += &format!("Content-Length: {}\r\n\r\n{body}", body.len());
        let config = client_config(self.data.path());
        let name = rustls::pki_types::ServerName::try_from("localhost").expect("a name");
        let mut tls = rustls::ClientConnection::new(config, name).expect("TLS");
        let mut socket = TcpStream::connect(self.address).expect("connected");
        socket.set_read_timeout(Some(PATIENCE)).expect("timeout");
        let mut stream = rustls::Stream::new(&mut tls, &mut socket);
        stream.write_all(text.as_bytes()).expect("sent");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("answered");
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("an answer expected: {answer:?}"));
        let status = head.get(9..12).and_then(|s| s.parse().ok()).unwrap_or(0);
        Answer { status, head: head.to_owned(), body: body.to_owned() }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let (Some(stop), Some(thread)) = (self.stop.take(), self.thread.take()) {
            let _ = stop.send(());
            let _ = thread.join();
        }
    }
}

type Stop = tokio::sync::oneshot::Sender<()>;
type Running = (SocketAddr, Stop, mpsc::Sender<()>, std::thread::JoinHandle<Result<()>>);

fn run_daemon(data: &Path) -> Running {
    let source = Source { file: None, data: Some(data.to_owned()) };
    let config = source.load().expect("the configuration that init wrote");
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let (ready, address) = std::sync::mpsc::channel();
    let (reload, reloads) = mpsc::channel(1);
    let thread = std::thread::spawn(move || {
        let told = move |address| ready.send(address).expect("the test waits");
        run(source, &config, told, async { drop(stopped.await) }, reloads)
    });
    match address.recv_timeout(PATIENCE) {
        Ok(address) => (address, stop, reload, thread),
        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => panic!("the daemon is not ready within {PATIENCE:?}"),
        Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => {
            panic!("the daemon ended before it was ready: {:?}", thread.join())
        }
    }
}

fn client_config(data: &Path) -> Arc<rustls::ClientConfig> {
    use rustls::pki_types::pem::PemObject as _;
    let mut roots = rustls::RootCertStore::empty();
    let ca = rustls::pki_types::CertificateDer::from_pem_file(data.join("ca.pem")).expect("ca.pem");
    roots.add(ca).expect("a CA");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    Arc::new(builder.expect("versions").with_root_certificates(roots).with_no_client_auth())
}

#[test]
fn a_key_lives_through_the_api_and_a_restart() {
    let mut daemon = Daemon::start();
    let put = daemon.ask("PUT /v1/keys/a%2Fb", &[("Content-Type", "text/plain"), ("If-None-Match", "*")], "hello");
    assert_eq!(put.status, 201, "{}", put.body);
    let revision = put.json()["revision"].as_u64().expect("a revision");
    assert_eq!(put.header("samovar-transaction"), revision.to_string());
    assert_eq!(daemon.ask("PUT /v1/keys/a/b", &[("If-None-Match", "*")], "x").status, 412);
    let get = daemon.ask("GET /v1/keys/a/b", &[], "");
    assert_eq!((get.status, get.body.as_str()), (200, "hello"));
    assert_eq!((get.header("etag"), get.header("content-type")), (&*format!("\"{revision}\""), "text/plain"));
    let tag = format!("\"{revision}\"");
    assert_eq!(daemon.ask("GET /v1/keys/a/b", &[("If-None-Match", &tag)], "").status, 304);
    assert_eq!(daemon.ask("PUT /v1/keys/a/b", &[("If-Match", &tag)], "again").status, 200);
    daemon.restart();
    let get = daemon.ask("GET /v1/keys/a/b", &[], "");
    assert_eq!(get.body, "again", "what was acknowledged is there after a restart");
    let first = put.header("samovar-block").to_owned();
    assert_eq!(
        daemon.ask(&format!("GET /v1/keys/a/b?at={first}"), &[], "").body,
        "hello",
        "the past as of block {first}"
    );
    assert_eq!(daemon.ask("GET /v1/keys/a/b?at=99999", &[], "").status, 404);
    assert_eq!(daemon.ask("DELETE /v1/keys/a/b", &[], "").status, 204);
    assert_eq!(daemon.ask("GET /v1/keys/a/b", &[], "").status, 404);
    let history = daemon.ask("GET /v1/history/a/b", &[], "").json();
    let changes: Vec<_> =
        history["versions"].as_array().expect("versions").iter().map(|v| v["change"].clone()).collect();
    assert_eq!(changes, ["delete", "put", "put"]);
}

#[test]
fn idempotency_keys_make_retries_safe() {
    let daemon = Daemon::start();
    let key = [("Idempotency-Key", "once")];
    let first = daemon.ask("PUT /v1/keys/k", &key, "v");
    let again = daemon.ask("PUT /v1/keys/k", &key, "v");
    assert_eq!(first.json()["revision"], again.json()["revision"], "the retry has the first outcome");
    assert_eq!(daemon.ask("PUT /v1/keys/k", &key, "w").status, 422, "another request under the same key");
}

#[test]
fn who_may_do_what() {
    let daemon = Daemon::start();
    assert_eq!(daemon.ask_as("GET /v1/keys/k", &[], "").status, 401);
    let make = |role: &str, prefixes: &str| {
        let body = format!(r#"{{"name":"t","role":"{role}","prefixes":{prefixes}}}"#);
        let made = daemon.ask("POST /v1/api-keys", &[("Content-Type", "application/json")], &body);
        assert_eq!(made.status, 201, "{}", made.body);
        let made = made.json();
        (made["id"].as_str().expect("id").to_owned(), format!("Bearer {}", made["token"].as_str().expect("token")))
    };
    let (id, writer) = make("writer", r#"["a/"]"#);
    let with =
        |token: &str, request: &str, body: &str| daemon.ask_as(request, &[("Authorization", token)], body).status;
    assert_eq!(with(&writer, "PUT /v1/keys/a/1", "v"), 201);
    assert_eq!(with(&writer, "PUT /v1/keys/b/1", "v"), 403, "outside its prefix");
    assert_eq!(with(&writer, "GET /v1/blocks", ""), 403, "a whole-log route");
    assert_eq!(with(&writer, "GET /v1/api-keys", ""), 403);
    let (_, reader) = make("reader", "[]");
    assert_eq!(with(&reader, "GET /v1/keys/a/1", ""), 200);
    assert_eq!(with(&reader, "PUT /v1/keys/a/1", "v"), 403);
    assert_eq!(with(&reader, "POST /v1/clock/accept", ""), 403, "an administrator's act");
    assert_eq!(daemon.ask(&format!("DELETE /v1/api-keys/{id}"), &[], "").status, 204);
    assert_eq!(with(&writer, "PUT /v1/keys/a/1", "v"), 401, "a revoked key no longer works");
    let admin = daemon.token.split('_').nth(1).expect("an id").to_owned();
    assert_eq!(daemon.ask(&format!("DELETE /v1/api-keys/{admin}"), &[], "").status, 409, "the last admin key stays");
    let listed = daemon.ask("GET /v1/api-keys", &[], "").body;
    assert!(!listed.contains("hash") && !listed.contains("token"), "no secret is listed: {listed}");
}

#[test]
fn the_open_routes_and_the_strict_ones() {
    let daemon = Daemon::start();
    for (request, want) in [
        ("GET /health", 200),
        ("HEAD /health", 200),
        ("GET /ready", 200),
        ("GET /ready?for=write", 200),
        ("GET /v1/log", 200),
        ("GET /openapi.json", 200),
        ("GET /metrics", 200),
        ("GET /checkpoint", 401),
        ("GET /nowhere", 404),
        ("POST /health", 405),
        ("GET /health?x=1", 400),
        ("GET /ready?for=read", 400),
    ] {
        assert_eq!(daemon.ask_as(request, &[], "").status, want, "{request}");
    }
    for (request, want) in [
        ("GET /v1/keys/", 400),
        ("GET /v1/keys/~api-keys/x", 400),
        ("GET /v1/keys/%ff", 400),
        ("GET /v1/keys/%zz", 400),
        ("GET /v1/keys/%00", 400),
        ("GET /v1/keys/a?at=x", 400),
        ("GET /v1/keys/a?at=1&at=1", 400),
        ("GET /v1/transactions/x", 400),
        ("GET /v1/transactions/999999", 404),
        ("GET /v1/blocks/999999", 404),
        ("GET /tile/9/000", 404),
        ("GET /v1/keys?limit=0", 400),
        ("GET /v1/keys?prefix=~", 400),
        ("GET /v1/status", 200),
        ("GET /checkpoint", 200),
    ] {
        let answer = daemon.ask(request, &[], "");
        assert_eq!(answer.status, want, "{request}: {}", answer.body);
        if want >= 400 {
            assert_eq!(answer.header("content-type"), "application/problem+json", "{request}");
            assert!(answer.json()["type"].as_str().is_some_and(|t| t.starts_with("urn:samovar:problem:")), "{request}");
        }
    }
    assert_eq!(daemon.ask("POST /health", &[], "").header("allow"), "GET, HEAD");
}

#[test]
fn a_data_directory_is_guarded() {
    let daemon = Daemon::start();
    let data = daemon.data.path();
    let config = Config::load(None, Some(data)).expect("configuration");
    let second = run(Source::default(), &config, |_| {}, async {}, mpsc::channel(1).1).expect_err("in use");
    assert!(second.to_string().contains("in use by another samovar process"), "{second}");
    drop(daemon);
    let other = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(other.path().join("mine")).expect("made");
    let refused = init(other.path(), None, &Shown::default(), &KekFiles::default()).expect_err("not empty");
    assert!(refused.to_string().contains("is not empty"), "{refused}");
    assert!(other.path().join("mine").exists(), "nothing of the user's is touched");
}

#[test]
fn an_unfinished_init_is_refused_and_then_done_again() {
    let data = tempfile::tempdir().expect("a directory");
    let (directory, partial) = DataDirectory::begin(data.path()).expect("begun");
    std::fs::create_dir(partial.join("keys")).expect("made");
    std::fs::create_dir(data.path().join("tls")).expect("moved already");
    drop(directory);
    let refused = DataDirectory::open(data.path()).err().expect("not complete");
    assert!(refused.to_string().contains("did not finish"), "{refused}");
    init(data.path(), Some("again"), &Shown::default(), &KekFiles::default()).expect("a second init completes");
    DataDirectory::open(data.path()).expect("complete");
}

#[test]
fn a_new_certificate_has_the_names_that_init_is_told() {
    let data = tempfile::tempdir().expect("a directory");
    let names = ["box.example", "192.0.2.7"].map(str::to_owned).to_vec();
    let shown = Shown { listen: None, names: names.clone() };
    init(data.path(), Some("test"), &shown, &KekFiles::default()).expect("init");
    let subject = |names: &[String]| tls::Subject::of("test", [127, 0, 0, 1].into(), names);
    let secrets = Secrets::clear(data.path());
    assert_eq!(tls::refused_names(&secrets, &subject(&names)).expect("a certificate"), []);
    let refused = tls::refused_names(&secrets, &subject(&["other.example".to_owned()])).expect("a certificate");
    assert_eq!(refused.len(), 1, "{refused:?}");
    let config = Config::load(Some(&data.path().join("samovar.toml")), Some(data.path())).expect("configuration");
    assert_eq!(config.tls_names, names, "and the daemon goes by them");
    let wrong = Shown { listen: None, names: vec!["a name".to_owned()] };
    let other = tempfile::tempdir().expect("a directory");
    let refused = init(other.path(), Some("test"), &wrong, &KekFiles::default()).expect_err("no name");
    assert!(format!("{refused:#}").contains("`a name` is neither a host name nor an address"), "{refused:#}");
    init(other.path(), Some("test"), &Shown::default(), &KekFiles::default()).expect("nothing was begun");
}

impl Daemon {
    /// Writes the configuration and asks for a reload, as SIGHUP does.
    fn reload(&self, toml: &str) {
        let text = format!("[listen]\napi = \"127.0.0.1:0\"\n{toml}");
        let path = self.data.path().join("samovar.toml");
        let file = std::fs::File::create(path.with_extension("new"));
        file.and_then(|mut f| f.write_all(text.as_bytes())).expect("written");
        // At once: an earlier reload may be reading.
        std::fs::rename(path.with_extension("new"), path).expect("renamed");
        self.reload.blocking_send(()).expect("running");
    }

    /// Waits until an unauthenticated request is answered so.
    fn until(&self, request: &str, status: u16) {
        let begun = std::time::Instant::now();
        while self.ask_as(request, &[], "").status != status {
            assert!(begun.elapsed() < PATIENCE, "{request} was expected to answer {status} after the reload");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn a_reload_takes_what_it_can_and_a_bad_file_changes_nothing() {
    let daemon = Daemon::start();
    let long = format!("GET /health?{}", "x".repeat(3000));
    assert_eq!(daemon.ask_as(&long, &[], "").status, 400, "a target within the default limit");
    daemon.until("GET /metrics", 200);
    daemon.reload("[metrics]\nallow = [\"192.0.2.0/24\"]\n[limits]\nuri_size = \"2KiB\"\n");
    daemon.until("GET /metrics", 401);
    assert_eq!(daemon.ask_as(&long, &[], "").status, 414, "the new limit counts");
    daemon.reload("[metrics]\nalow = [\"127.0.0.0/8\"]\n");
    // One request may wait and one be at work, so the first two of these are done when the fourth was taken.
    for _ in 0..3 {
        daemon.reload("[limits]\nuri_size = \"2KiB\"\n[metrics]\nallow = [\"127.0.0.0/8\", \"nonsense\"]\n");
    }
    assert_eq!(daemon.ask_as("GET /metrics", &[], "").status, 401, "a bad file changes nothing");
    daemon.reload("");
    daemon.until("GET /metrics", 200);
    assert_eq!(daemon.ask_as(&long, &[], "").status, 400, "the default limit is back");
    daemon.reload("[limits]\napi_per_address = \"1/1h\"\n");
    daemon.until("GET /health", 429);
    daemon.reload("");
    daemon.until("GET /health", 200);
}

#[test]
fn a_reload_serves_a_new_certificate_while_an_open_stream_goes_on() {
    let daemon = Daemon::start();
    let name = rustls::pki_types::ServerName::try_from("localhost").expect("a name");
    let mut tls = rustls::ClientConnection::new(client_config(daemon.data.path()), name).expect("TLS");
    let mut socket = TcpStream::connect(daemon.address).expect("connected");
    socket.set_read_timeout(Some(PATIENCE)).expect("timeout");
    let mut stream = rustls::Stream::new(&mut tls, &mut socket);
    let watch = format!("GET /v1/watch HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n\r\n", daemon.token);
    stream.write_all(watch.as_bytes()).expect("sent");
    let mut seen = String::new();
    let mut read_until = |what: &str| {
        let mut buffer = [0; 4096];
        while !seen.contains(what) {
            let n = stream.read(&mut buffer).expect("the stream is open");
            assert!(n > 0, "the stream ended before {what:?}: {seen}");
            seen.push_str(&String::from_utf8_lossy(&buffer[..n]));
        }
    };
    read_until("text/event-stream");

    let other = tempfile::tempdir().expect("a directory");
    let local = std::net::IpAddr::from([127, 0, 0, 1]);
    tls::make(&Secrets::clear(other.path()), &tls::Subject::of("test", local, &[]))
        .expect("certificates of another authority");
    for file in ["tls/node.pem", "tls/node.key", "ca.pem"] {
        std::fs::copy(other.path().join(file), daemon.data.path().join(file)).expect("copied");
    }
    daemon.reload("[metrics]\nallow = [\"192.0.2.0/24\"]\n");
    // Clients now trust the new authority alone: until the new certificate is served no handshake succeeds.
    let begun = std::time::Instant::now();
    let served = || {
        let connector = client_config(daemon.data.path());
        let name = rustls::pki_types::ServerName::try_from("localhost").expect("a name");
        let mut tls = rustls::ClientConnection::new(connector, name).expect("TLS");
        let mut socket = TcpStream::connect(daemon.address).expect("connected");
        tls.complete_io(&mut socket).is_ok()
    };
    while !served() {
        assert!(begun.elapsed() < PATIENCE, "the new certificate was expected after the reload");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(daemon.ask("PUT /v1/keys/after", &[("Content-Type", "text/plain")], "v").status, 201);
    read_until("\"after\"");
}

#[test]
fn a_clock_that_is_not_doubted_cannot_be_accepted() {
    let daemon = Daemon::start();
    let status = daemon.ask("GET /v1/status", &[], "").json();
    assert_eq!(status["clock"]["doubted"], false, "{status}");
    let answer = daemon.ask("POST /v1/clock/accept", &[], "");
    assert_eq!((answer.status, answer.json()["type"].as_str()), (409, Some("urn:samovar:problem:clock-not-doubted")));
    assert_eq!(daemon.ask_as("POST /v1/clock/accept", &[], "").status, 401, "nor by anybody");
}
