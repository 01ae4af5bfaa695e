use std::cell::RefCell;
use std::collections::HashMap;
use std::io::Cursor;
use std::sync::{Arc, Mutex};

use clap::Parser;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::batch::tests::keys_of;
use super::rows::{Place, tests::shape};
use super::*;
use crate::client::fake::{Fake, Reply, start};

/// A ledger as far as an import sees it: one outcome per `Idempotency-Key`, and the puts in order.
#[derive(Default)]
struct Ledger {
    outcomes: HashMap<String, (u64, Bytes)>,
    puts: Vec<(String, String)>,
}

impl Ledger {
    fn write(&mut self, key: &str, body: &Bytes) -> u64 {
        if let Some((transaction, first)) = self.outcomes.get(key) {
            assert_eq!(first, body, "the same Idempotency-Key {key} always comes with the same request");
            return *transaction;
        }
        let transaction = 1000 + self.outcomes.len() as u64;
        self.outcomes.insert(key.to_owned(), (transaction, body.clone()));
        let document: serde_json::Value = serde_json::from_slice(body).expect("JSON");
        for operation in document["operations"].as_array().expect("operations") {
            let put = &operation["put"];
            self.puts.push((put["key"].as_str().expect("key").to_owned(), put["value"]["n"].to_string()));
        }
        transaction
    }

    /// The values of each key, in the order in which they were put.
    fn histories(&self) -> HashMap<String, Vec<String>> {
        histories(&self.puts)
    }
}

fn histories(puts: &[(String, String)]) -> HashMap<String, Vec<String>> {
    let mut all: HashMap<String, Vec<String>> = HashMap::new();
    for (key, value) in puts {
        all.entry(key.clone()).or_default().push(value.clone());
    }
    all
}

/// Rows `n` with keys of which some come again and again; and what the ledger should hold in the end.
fn random_rows(rng: &mut StdRng, format: RowFormat) -> (String, HashMap<String, Vec<String>>) {
    let (mut content, mut puts) = (String::new(), Vec::new());
    if format == RowFormat::Csv {
        content.push_str("id,n,\"text\r\n\"\r\n");
    }
    for n in 0..rng.gen_range(0..900) {
        let id = if rng.gen_bool(0.05) { rng.gen_range(0..4) } else { n + 10 };
        if rng.gen_bool(0.01) {
            content.push_str("\"bad\n\"x,\n");
            continue;
        }
        match format {
            RowFormat::Csv => content.push_str(&format!("{id},{n},\"a \"\"quoted\"\"\nline\"\r\n")),
            RowFormat::Jsonl => content.push_str(&format!("{{\"id\":{id},\"n\":{n}}}\n\n")),
        }
        puts.push((format!("p/{id}"), if format == RowFormat::Csv { format!("\"{n}\"") } else { n.to_string() }));
    }
    (content, histories(&puts))
}

/// One run from a saved state; returns whether it came to its end before `steps` answers, after which it is killed.
async fn run_until_killed(
    content: &str,
    format: RowFormat,
    ledger: &RefCell<Ledger>,
    durable: &RefCell<State>,
    rng: &RefCell<StdRng>,
    steps: usize,
) -> bool {
    let mut rows = Rows::new(Cursor::new(content.as_bytes()), shape(format, &["id"])).expect("rows");
    let mut state = durable.borrow().clone();
    if state.place.offset > 0 {
        rows.resume_at(state.place).expect("seek");
    }
    let mut cutter = Cutter::new(rows, true);
    let (sender, receiver) = mpsc::channel(4);
    let left = std::cell::Cell::new(steps);
    let send = async |offset: u64, body: Bytes| -> Result<u64, ()> {
        // A request takes a while to arrive, is done at once, and its answer takes a while; a kill may fall anywhere.
        let pause = || rng.borrow_mut().gen_range(0..4);
        let (before, after) = (pause(), pause());
        for _ in 0..before {
            tokio::task::yield_now().await;
        }
        let transaction = ledger.borrow_mut().write(&state::idempotency_key("abc", offset), &body);
        for _ in 0..after {
            tokio::task::yield_now().await;
        }
        if left.get() == 0 {
            return std::future::pending().await;
        }
        left.set(left.get() - 1);
        Ok(transaction)
    };
    let record = |acked: Acked| {
        state.place = acked.end;
        state.rows += acked.rows;
        state.rejected += acked.rejected.len() as u64;
        if rng.borrow_mut().gen_bool(0.3) {
            *durable.borrow_mut() = state.clone();
        }
        Ok(())
    };
    let source = async {
        while let Some(cut) = cutter.next().transpose() {
            sender.send(cut).await.expect("the pipeline reads on");
        }
        drop(sender);
    };
    let whole = async { tokio::join!(pipeline::run(receiver, 6, send, record), source).0 };
    let mut whole = std::pin::pin!(whole);
    for _ in 0..20_000 {
        match futures_util::poll!(whole.as_mut()) {
            std::task::Poll::Ready(ended) => {
                ended.expect("no row ends this import");
                return true;
            }
            std::task::Poll::Pending if left.get() == 0 => return false,
            std::task::Poll::Pending => tokio::task::yield_now().await,
        }
    }
    panic!("the run neither ends nor comes to its kill point");
}

#[tokio::test]
async fn killed_anywhere_and_resumed_gives_each_row_once_and_in_order() {
    let seed = 4711;
    let rng = RefCell::new(StdRng::seed_from_u64(seed));
    for round in 0..150 {
        let format = if round % 2 == 0 { RowFormat::Csv } else { RowFormat::Jsonl };
        let (content, expected) = random_rows(&mut rng.borrow_mut(), format);
        let ledger = RefCell::new(Ledger::default());
        let durable = RefCell::new(State::new("abc".into(), String::new(), 0));
        let mut kills = 0;
        loop {
            let steps = if kills == 20 { usize::MAX } else { rng.borrow_mut().gen_range(0..8) };
            if run_until_killed(&content, format, &ledger, &durable, &rng, steps).await {
                break;
            }
            kills += 1;
        }
        let found = ledger.borrow().histories();
        assert!(
            found == expected,
            "seed {seed}, round {round}, {kills} kills: each row of each key once, in the order of the file"
        );
    }
}

/// A node that takes transactions into a ledger; every `fail`-th request is done but answered with 503.
async fn fake_node(ledger: &Arc<Mutex<Ledger>>, fail: usize) -> Fake {
    let (ledger, count) = (ledger.clone(), Arc::new(Mutex::new(0)));
    start(move |request| {
        let (ledger, count) = (ledger.clone(), count.clone());
        async move {
            match request.uri().path() {
                "/v1/log" => return Reply::new(200, r#"{"origin":"test.example/log"}"#),
                "/v1/transactions" => {}
                _ => return Reply::new(404, "{}"),
            }
            let key = request.headers()["idempotency-key"].to_str().expect("text").to_owned();
            let transaction = ledger.lock().expect("lock").write(&key, request.body());
            let mut count = count.lock().expect("lock");
            *count += 1;
            if fail > 0 && *count % fail == 0 {
                return Reply::new(503, "{}").header("retry-after", 0);
            }
            Reply::new(201, "{}").header("samovar-transaction", transaction)
        }
    })
    .await
}

#[derive(clap::Parser)]
struct Line {
    #[command(flatten)]
    import: Import,
}

fn arguments(fake: &Fake, file: &Path, more: &[&str]) -> Import {
    let (url, ca) = (fake.target.url.as_deref().expect("url"), fake.target.ca.as_deref().expect("ca"));
    let fixed = ["import", "--url", url, "--ca", ca.to_str().expect("path"), "-q", "--prefix", "p/", "--key", "id"];
    let line = fixed.into_iter().chain([file.to_str().expect("path")]).chain(more.iter().copied());
    Line::try_parse_from(line).unwrap_or_else(|e| panic!("{e}")).import
}

fn create(path: &Path, content: &str) {
    File::create(path).and_then(|mut f| f.write_all(content.as_bytes())).expect("write");
}

#[tokio::test]
async fn file_goes_over_the_wire_once_whatever_fails() {
    let seed = 8;
    let mut rng = StdRng::seed_from_u64(seed);
    let (content, expected) = random_rows(&mut rng, RowFormat::Csv);
    let dir = tempfile::tempdir().expect("temporary directory");
    let file = dir.path().join("rows.csv");
    create(&file, &content);
    let ledger = Arc::default();
    let fake = fake_node(&ledger, 3).await;
    let strict = run(&arguments(&fake, &file, &[]), Format::Json).await;
    let said = format!("{:#}", strict.expect_err("there are bad rows"));
    assert!(said.contains("rows.csv:") && said.contains("--skip-bad"), "names the place and the way out: {said}");
    let state = dir.path().join("rows.csv.samovar-import");
    assert!(state.exists(), "progress is kept");
    run(&arguments(&fake, &file, &["--skip-bad"]), Format::Json).await.expect("goes on with bad rows skipped");
    assert!(ledger.lock().expect("lock").histories() == expected, "seed {seed}: each row once and in order");
    assert!(!state.exists(), "the progress file of a finished import is removed");
    let rejected = std::fs::read_to_string(dir.path().join("rows.csv.rejected")).expect("bad rows");
    let bad = content.matches("\"bad\n\"x,\n").count();
    let header = "id,n,\"text\r\n\"\r\n";
    assert_eq!(rejected, header.to_owned() + &"\"bad\n\"x,\n".repeat(bad), "bad rows under the header, each once");

    let puts = ledger.lock().expect("lock").puts.len();
    run(&arguments(&fake, &file, &["--skip-bad"]), Format::Json).await.expect("the same file again");
    assert_eq!(ledger.lock().expect("lock").puts.len(), puts, "nothing is written again");
    run(&arguments(&fake, &file, &["--skip-bad", "--again"]), Format::Json).await.expect("anew");
    assert_eq!(ledger.lock().expect("lock").puts.len(), 2 * puts, "--again writes every row anew");
}

#[tokio::test]
async fn progress_of_another_import_is_refused() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let file = dir.path().join("rows.jsonl");
    create(&file, "{\"id\":1}\n{\"id\":}\n");
    let fake = fake_node(&Arc::default(), 0).await;
    run(&arguments(&fake, &file, &[]), Format::Json).await.expect_err("line 2 is bad");
    let same = run(&arguments(&fake, &file, &[]), Format::Json).await.expect_err("line 2 is still bad");
    assert!(format!("{same:#}").contains("rows.jsonl:2: "), "goes on at the bad row: {same:#}");
    let other = run(&arguments(&fake, &file, &["--key", "x"]), Format::Json).await.expect_err("other options");
    assert!(other.to_string().contains("remove the progress file"), "says what to do: {other:#}");
    create(&file, "{\"id\":1}\n{\"id\":22}\n");
    let changed = run(&arguments(&fake, &file, &[]), Format::Json).await.expect_err("another file");
    assert!(changed.to_string().contains("another import (1 rows done)"), "{changed:#}");
}

#[tokio::test]
async fn refusal_ends_the_import_with_the_reason() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let file = dir.path().join("rows.jsonl");
    create(&file, &(0..500).map(|n| format!("{{\"id\":{n}}}\n")).collect::<String>());
    let fake = start(|request| async move {
        match request.uri().path() {
            "/v1/log" => Reply::new(200, r#"{"origin":"o"}"#),
            _ => Reply::new(403, r#"{"type":"urn:samovar:problem:forbidden","detail":"outside your prefixes"}"#),
        }
    })
    .await;
    let error = run(&arguments(&fake, &file, &[]), Format::Json).await.expect_err("forbidden");
    let said = format!("{error:#}");
    assert!(said.contains("0 rows before are imported") && said.contains("outside your prefixes"), "{said}");
    assert_eq!(crate::cli::exit_code(&error), 1);
}

#[test]
fn arguments_decide_the_shape() {
    let shape = |line: &str| {
        let words = format!("import --key id {line}");
        Line::try_parse_from(words.split(' ')).unwrap_or_else(|e| panic!("{e}")).import.shape()
    };
    let of = |line: &str| shape(line).map(|s| (s.format, s.delimiter)).expect(line);
    assert_eq!(of("a.csv"), (RowFormat::Csv, b','));
    assert_eq!(of("a.TSV"), (RowFormat::Csv, b'\t'));
    assert_eq!(of("a.tsv --delimiter ;"), (RowFormat::Csv, b';'));
    assert_eq!(of("a.ndjson"), (RowFormat::Jsonl, b','));
    assert_eq!(of("- --format csv --delimiter tab"), (RowFormat::Csv, b'\t'));
    for line in ["a.txt", "-", "a.csv --delimiter ab", "a.csv --delimiter \"", "a.csv --delimiter ü", "a.csv --key id"]
    {
        let error = shape(line).expect_err(line);
        assert_eq!(crate::cli::exit_code(&error), 2, "{line} is a usage error: {error:#}");
    }
}

#[test]
fn keys_of_a_batch_are_those_of_its_rows() {
    let rows = Rows::new(Cursor::new(b"{\"id\":\"a\\\"b\"}\n{\"id\":2}".as_slice()), shape(RowFormat::Jsonl, &["id"]));
    let batch = Cutter::new(rows.expect("rows"), false).next().expect("no bad row").expect("a batch");
    assert_eq!(keys_of(&batch.body), ["p/a\"b", "p/2"]);
    assert_eq!((batch.start, batch.end), (Place::START, Place { offset: 22, line: 2 }));
}
