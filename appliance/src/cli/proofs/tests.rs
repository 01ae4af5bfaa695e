use std::io::Write;

use super::*;

fn vectors() -> (PathBuf, Vec<Json>) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors");
    let index = fs::read(directory.join("index.json")).expect("tests/vectors/index.json");
    (directory, serde_json::from_slice(&index).expect("a list of vectors"))
}

fn arguments(directory: &Path, vector: &Json) -> Verify {
    let text = |name: &str| vector[name].as_str().map(str::to_owned);
    Verify {
        file: directory.join(text("file").expect("a file")),
        key: text("key").expect("a key"),
        policy: text("policy").map(|p| directory.join(p)),
        expect_key: text("expect_key").map(|k| client_key(&k).expect("a key of the ledger")),
        chain: None,
        recovered: Vec::new(),
    }
}

/// The vector's chain, as a directory of receipts.
fn chain(directory: &Path, vector: &Json) -> Option<tempfile::TempDir> {
    let files = vector["chain"].as_array().filter(|files| !files.is_empty())?;
    let chain = tempfile::tempdir().expect("a directory");
    for (n, file) in files.iter().enumerate() {
        let from = directory.join(file.as_str().expect("a file"));
        fs::copy(from, chain.path().join(format!("{n}.receipt"))).expect("a receipt");
    }
    Some(chain)
}

#[test]
fn vectors_are_accepted_and_refused() {
    let (directory, vectors) = vectors();
    let (mut accepted, mut refused) = (0, 0);
    for vector in &vectors {
        let chain = chain(&directory, vector);
        let chain = chain.as_ref().map(|chain| chain.path().to_owned());
        let ended = verify(&Verify { chain, ..arguments(&directory, vector) }, Format::Json);
        let accept = vector["accept"].as_bool().expect("accept");
        match &ended {
            Ok(()) => accepted += 1,
            Err(e) => {
                refused += 1;
                assert_eq!(crate::cli::exit_code(e), 1, "{vector}: {e:#}");
                assert!(format!("{e:#}").contains("refused: "), "{vector}: {e:#}");
            }
        }
        assert_eq!(ended.is_ok(), accept, "{vector}: {ended:?}");
    }
    assert!(accepted > 0 && refused > 0, "{accepted} accepted and {refused} refused: vectors of both kinds are there");
}

#[test]
fn what_was_checked_and_what_not_is_said() {
    let (directory, vectors) = vectors();
    let good = vectors.iter().find(|v| v["accept"] == true && v["policy"].is_string()).expect("a good vector");
    let arguments = arguments(&directory, good);
    let file = fs::read(&arguments.file).expect("vector");
    let policy = arguments.policy.as_deref().map(|p| read_policy(p).expect("policy"));
    let mut verifier = Verifier { log: log_key(&arguments.key).expect("key"), policy, expect_key: None };
    let with_policy = verifier.verify(&file).expect("a good vector");
    verifier.policy = None;
    let without = verifier.verify(&file).expect("a good vector");
    let text = sentences(&without);
    assert!(text.starts_with("Good: ") && text.contains("\nChecked:\n"), "{text}");
    let (_, unchecked) = text.split_once("\nNot checked:\n").expect("something is left unchecked without a policy");
    assert!(unchecked.contains("cosignatures not checked"), "{text}");
    assert!(!sentences(&with_policy).contains("cosignatures not checked"), "with a policy they are");
    let document = document(&with_policy);
    assert!(document["good"] == true && !document["cosigned"].as_array().expect("a list").is_empty(), "{document}");
    assert_eq!(document["checkpoint"]["size"], with_policy.checkpoint.size, "{document}");
}

#[test]
fn key_may_be_text_or_a_file() {
    let (_, vectors) = vectors();
    let key = vectors[0]["key"].as_str().expect("a key");
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("log.vkey");
    File::create(&path).and_then(|mut f| writeln!(f, "{key}")).expect("write");
    let from_file = log_key(path.to_str().expect("path")).expect("a file with a key");
    assert_eq!(from_file, log_key(key).expect("a key"));
    let said = format!("{:#}", log_key("/no/such/file").expect_err("neither"));
    assert!(said.contains("neither a verifier key"), "{said}");
}

#[test]
fn chain_is_ordered_by_number() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let said = format!("{:#}", chain_files(dir.path()).expect_err("an empty directory says nothing"));
    assert!(said.contains("holds 0 files"), "{said}");
    for name in ["10-c", "9-b", "x", "1-a"] {
        File::create(dir.path().join(name)).and_then(|mut f| f.write_all(name.as_bytes())).expect("write");
    }
    let order: Vec<String> =
        chain_files(dir.path()).expect("files").into_iter().map(|f| String::from_utf8(f).expect("text")).collect();
    assert_eq!(order, ["1-a", "9-b", "10-c", "x"], "9 comes before 10");
}
