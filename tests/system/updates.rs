//! Updates: `samovar confirm` on right and wrong heads, steps of the box's updater as entries, orders passed on to it.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use hyper::Method;
use samovar_tests::{Daemon, Settings};
use serde_json::{Value, json};

const JSON: [(&str, &str); 1] = [("content-type", "application/json")];
/// EX_TEMPFAIL: ask again.
const WAIT: i32 = 75;

async fn daemon(directory: &Path) -> Daemon {
    Daemon::create(&directory.join("data"), Settings::default()).await.unwrap()
}

fn write(path: &Path, text: &str) {
    File::create(path).and_then(|mut file| file.write_all(text.as_bytes())).unwrap();
}

async fn put(daemon: &Daemon, count: u32) {
    let mut client = daemon.client().await.unwrap();
    for n in 0..count {
        let answer = client.put(&format!("/v1/keys/k{n}"), "value").await.unwrap();
        assert!(answer.status < 300, "a put: {}", answer.text());
    }
}

/// `samovar confirm` with what it said: exit code, verdict, and the checks by name.
fn confirm(daemon: &Daemon, expect: &Path) -> (i32, Value) {
    let Output { status, stdout, stderr } =
        daemon.command(&["confirm", "--json", "--expect", expect.to_str().unwrap()]).unwrap().output().unwrap();
    let report = serde_json::from_slice(&stdout)
        .unwrap_or_else(|e| panic!("confirm prints JSON: {e}: {}", String::from_utf8_lossy(&stderr)));
    (status.code().unwrap(), report)
}

fn record(daemon: &Daemon, expect: &Path) {
    let recorded = daemon.command(&["confirm", "--record", expect.to_str().unwrap()]).unwrap().output().unwrap();
    assert!(recorded.status.success(), "recording: {}", String::from_utf8_lossy(&recorded.stderr));
}

fn check<'a>(report: &'a Value, name: &str) -> &'a Value {
    let checks = report["checks"].as_array().unwrap();
    checks.iter().find(|c| c["check"] == name).unwrap_or_else(|| panic!("no check {name} in {report}"))
}

async fn ready(daemon: &Daemon) -> u16 {
    daemon.client().await.unwrap().get("/ready").await.unwrap().status
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_is_good_when_the_log_goes_on_where_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let mut daemon = daemon(directory.path()).await;
    let expect = directory.path().join("expectation");
    // More than one tile, and a right edge at two levels.
    put(&daemon, 300).await;
    record(&daemon, &expect);
    daemon.kill().unwrap();
    daemon.start().await.unwrap();
    put(&daemon, 20).await;
    let (code, report) = confirm(&daemon, &expect);
    assert_eq!((code, &report["verdict"]), (0, &json!("good")), "{report}");
    for name in ["version", "reads", "checkpoint", "head"] {
        assert_eq!(check(&report, name)["verdict"], "good", "{report}");
    }
    daemon.stop().unwrap();
    let (code, report) = confirm(&daemon, &expect);
    assert_eq!((code, &report["verdict"]), (WAIT, &json!("wait")), "a daemon that is away is waited for: {report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_head_is_bad_although_the_node_is_ready() {
    let directory = tempfile::tempdir().unwrap();
    let mut daemon = daemon(directory.path()).await;
    let (expect, changed) = (directory.path().join("expectation"), directory.path().join("changed"));
    put(&daemon, 5).await;
    daemon.stop().unwrap();
    let copy = directory.path().join("copy");
    let copied = Command::new("cp").arg("-a").args([daemon.data(), &copy]).status().unwrap();
    assert!(copied.success());
    daemon.start().await.unwrap();
    put(&daemon, 40).await;
    record(&daemon, &expect);
    let recorded: Value = serde_json::from_slice(&fs::read(&expect).unwrap()).unwrap();

    // Another history of the same length, and another log.
    for (member, value, said) in [
        ("root", "hIf0Ty3VF5VMSFr4j0pQ3sLfqvBfGxWAfCqfTMG4i2k=", "another history"),
        ("origin", "other", "this is the log"),
    ] {
        let mut wrong = recorded.clone();
        wrong[member] = value.into();
        write(&changed, &wrong.to_string());
        let (code, report) = confirm(&daemon, &changed);
        assert_eq!((code, &check(&report, "head")["verdict"]), (1, &json!("bad")), "{member}: {report}");
        let why = check(&report, "head")["why"].as_str().unwrap();
        assert!(why.contains(said), "{member}: the reason says {said:?}: {why}");
        assert_eq!(ready(&daemon).await, 200);
    }

    // A disk that was put back to what it was earlier: the node knows nothing of what it lost.
    daemon.stop().unwrap();
    fs::remove_dir_all(daemon.data()).unwrap();
    fs::rename(&copy, daemon.data()).unwrap();
    daemon.start().await.unwrap();
    assert_eq!(ready(&daemon).await, 200);
    let (code, report) = confirm(&daemon, &expect);
    assert_eq!((code, &report["verdict"]), (1, &json!("bad")), "{report}");
    let why = check(&report, "head")["why"].as_str().unwrap();
    assert!(why.contains("are missing"), "the reason says how many: {why}");
    write(&changed, "{}");
    let (code, report) = confirm(&daemon, &changed);
    assert_eq!(code, 1, "an expectation that is none is no reason to call a version good: {report}");
}

/// A box's updater without the box: its files, and answers to orders.
struct Updater {
    directory: PathBuf,
}

impl Updater {
    fn new(directory: &Path) -> Self {
        let directory = directory.join("update");
        fs::create_dir(&directory).unwrap();
        let slot = json!({ "slot": "B", "version": "0.0.9", "standing": "confirmed" });
        let state = json!({ "state": "idle", "message": "", "slot": "A", "version": "0.1.0", "standing": "confirmed", "spare": slot });
        write(&directory.join("state"), &state.to_string());
        Self { directory }
    }

    fn settings(&self) -> Settings {
        Settings { toml: format!("[update]\ndirectory = \"{}\"\n", self.directory.display()), ..Settings::default() }
    }

    fn step(&self, sequence: u64, step: &str) {
        let mut spool = File::options().create(true).append(true).open(self.directory.join("events")).unwrap();
        writeln!(spool, "{}", Self::event(sequence, step)).unwrap();
    }

    fn event(sequence: u64, step: &str) -> Value {
        json!({
            "sequence": sequence, "time_s": 1_790_000_000, "step": step, "version": "0.1.1", "slot": "B", "by": "user/a",
            "why": "",
        })
    }

    /// Answers one order each time; gives what was ordered.
    fn answer(&self, why: &'static str) -> std::thread::JoinHandle<Value> {
        let socket = self.directory.join("socket");
        let _ = fs::remove_file(&socket);
        let listener = UnixListener::bind(socket).unwrap();
        std::thread::spawn(move || {
            let (mut order, _) = listener.accept().unwrap();
            let mut line = String::new();
            BufReader::new(order.try_clone().unwrap()).read_line(&mut line).unwrap();
            writeln!(order, "{}", json!({ "taken": why.is_empty(), "why": why })).unwrap();
            serde_json::from_str(&line).unwrap()
        })
    }
}

/// Sizes of the steps on the ledger, in order. What they say is system state, which entries only commit to.
async fn steps(daemon: &Daemon) -> Vec<u64> {
    let mut client = daemon.client().await.unwrap();
    let status: Value = client.get("/v1/status").await.unwrap().json().unwrap();
    let mut steps = Vec::new();
    for n in 0..status["size"].as_u64().unwrap() {
        let record: Value = client.get(&format!("/v1/transactions/{n}")).await.unwrap().json().unwrap();
        let put = record.pointer("/entry/operations/0/put").cloned().unwrap_or_default();
        if put["key"] == "~updates/box-01" {
            steps.push(put["size"].as_u64().unwrap());
        }
    }
    steps
}

/// Waits until there are so many.
async fn until(daemon: &Daemon, count: usize) -> Vec<u64> {
    let began = Instant::now();
    loop {
        let found = steps(daemon).await;
        if found.len() >= count || began.elapsed() > Duration::from_secs(30) {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_step_becomes_one_entry() {
    let directory = tempfile::tempdir().unwrap();
    let updater = Updater::new(directory.path());
    updater.step(1, "installed");
    let mut daemon = Daemon::create(&directory.path().join("data"), updater.settings()).await.unwrap();
    updater.step(2, "trial");
    until(&daemon, 2).await;
    daemon.kill().unwrap();
    updater.step(3, "confirmed");
    daemon.start().await.unwrap();
    until(&daemon, 3).await;
    // Nothing comes twice: a look at the spool is due every two seconds.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let sizes: Vec<u64> =
        ["installed", "trial", "confirmed"].map(|step| Updater::event(1, step).to_string().len() as u64).into();
    assert_eq!(steps(&daemon).await, sizes, "one entry a step, in the order of the spool, told by their sizes");
    let mut client = daemon.client().await.unwrap();
    let state: Value = client.get("/v1/updates").await.unwrap().json().unwrap();
    assert_eq!(state["events"].as_array().unwrap().len(), 3, "{state}");
    assert_eq!(state["spare"]["version"], "0.0.9", "{state}");
    let shown = daemon.command(&["update", "status"]).unwrap().output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("A     0.1.0    runs, confirmed"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_are_passed_on_with_who_asked_and_refusals_come_back() {
    let directory = tempfile::tempdir().unwrap();
    let updater = Updater::new(directory.path());
    let daemon = Daemon::create(&directory.path().join("data"), updater.settings()).await.unwrap();
    let mut client = daemon.client().await.unwrap();
    let body = json!({ "bundle": "/var/tmp/b.raucb" }).to_string();

    let asked = updater.answer("");
    let answer = client.request(Method::POST, "/v1/updates", &JSON, body.clone()).await.unwrap();
    assert_eq!(answer.status, 202, "{}", answer.text());
    let order = asked.join().unwrap();
    assert_eq!((&order["order"], &order["bundle"]), (&json!("install"), &json!("/var/tmp/b.raucb")), "{order}");
    assert!(order["by"].as_str().unwrap().starts_with("api-key/"), "{order}");

    let refused = updater.answer("the data disk has 3 MiB free: make room");
    let answer = client.request(Method::POST, "/v1/updates", &JSON, body.clone()).await.unwrap();
    refused.join().unwrap();
    assert_eq!(answer.status, 409, "{}", answer.text());
    assert!(answer.text().contains("make room") && answer.text().contains("update-refused"), "{}", answer.text());

    for (path, name) in [("/v1/updates/rollback", "rollback"), ("/v1/updates/restart", "restart")] {
        let asked = updater.answer("");
        let answer = client.request(Method::POST, path, &[], String::new()).await.unwrap();
        assert_eq!(answer.status, 202, "{}", answer.text());
        assert_eq!(asked.join().unwrap()["order"], name);
    }

    fs::remove_file(updater.directory.join("socket")).unwrap();
    let answer = client.request(Method::POST, "/v1/updates", &JSON, body).await.unwrap();
    assert_eq!(answer.status, 503, "without its updater a box says so: {}", answer.text());
    for bad in [json!({ "bundle": "b.raucb" }), json!({ "bundle": "/a\n" }), json!({ "bundle": "ftp://h/b" })] {
        let answer = client.request(Method::POST, "/v1/updates", &JSON, bad.to_string()).await.unwrap();
        assert_eq!(answer.status, 422, "{bad}: {}", answer.text());
    }
    let command = daemon.command(&["update", "install", "/b"]).unwrap().output().unwrap();
    assert_eq!(command.status.code(), Some(1), "{}", String::from_utf8_lossy(&command.stderr));
}
