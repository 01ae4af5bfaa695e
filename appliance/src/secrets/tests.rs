use std::os::unix::fs::PermissionsExt as _;

use super::*;

/// A data directory with every secret file in the clear, and one that is none.
fn directory() -> tempfile::TempDir {
    let data = tempfile::tempdir().expect("a directory");
    for name in ["keys", "tls"] {
        std::fs::create_dir(data.path().join(name)).expect("made");
    }
    for (name, _) in FILES {
        durable::replace(&data.path().join(name), format!("secret of {name}").as_bytes(), Mode::Secret).expect(name);
    }
    durable::replace(&data.path().join("ca.pem"), b"public", Mode::Public).expect("written");
    data
}

fn kek_file(directory: &Path, name: &str) -> PathBuf {
    let path = directory.join(name);
    durable::replace(&path, new_kek().as_bytes(), Mode::Secret).expect("written");
    path
}

fn secrets(data: &Path, current: Option<&Path>, old: Option<&Path>) -> Secrets {
    let files = KekFiles { current: current.map(Path::to_owned), old: old.map(Path::to_owned) };
    Secrets::new(data, files.read(data).expect("keys"))
}

fn is_as_it_was(secrets: &Secrets) {
    for (name, _) in FILES {
        let content = secrets.read(name).unwrap_or_else(|e| panic!("{name}: {e:#}"));
        assert_eq!(content, Some(format!("secret of {name}").into_bytes()), "{name}");
    }
}

#[test]
fn every_secret_file_is_sealed_and_brought_under_another_key_and_back() {
    let (data, keks) = (directory(), tempfile::tempdir().expect("a directory"));
    let (one, two) = (kek_file(keks.path(), "one"), kek_file(keks.path(), "two"));
    let names: Vec<&str> = FILES.iter().map(|(name, _)| *name).collect();
    for (current, old) in [(Some(&one), None), (Some(&two), Some(&one)), (None, Some(&two))] {
        let secrets = match (current, old) {
            (None, Some(old)) => {
                Secrets::new(data.path(), Seal::new(None, Some(read_kek(old, data.path()).expect("a key"))))
            }
            _ => secrets(data.path(), current.map(PathBuf::as_path), old.map(PathBuf::as_path)),
        };
        assert_eq!(secrets.settle().expect("settled"), names);
        assert!(secrets.settle().expect("settled").is_empty(), "once is enough");
        is_as_it_was(&secrets);
        for (name, _) in FILES {
            let path = data.path().join(name);
            let stored = std::fs::read(&path).expect(name);
            let clear = String::from_utf8_lossy(&stored).contains("secret of");
            assert_eq!(clear, current.is_none(), "{name}");
            assert_eq!(path.metadata().expect(name).permissions().mode() & 0o777, 0o600, "{name}");
        }
    }
    assert_eq!(std::fs::read(data.path().join("ca.pem")).expect("there"), b"public");
}

#[test]
fn a_wrong_key_and_none_are_refused_with_what_to_do() {
    let (data, keks) = (directory(), tempfile::tempdir().expect("a directory"));
    let (one, two) = (kek_file(keks.path(), "one"), kek_file(keks.path(), "two"));
    secrets(data.path(), Some(&one), None).settle().expect("sealed");
    for other in [secrets(data.path(), Some(&two), None), Secrets::clear(data.path())] {
        let error = format!("{:#}", other.settle().expect_err("under another key"));
        for words in ["keys/log is sealed under the key-encryption key", "give the daemon that key", "node.kek"] {
            assert!(error.contains(words), "{words:?} expected in {error}");
        }
    }
    let read = Secrets::clear(data.path()).read(TLS_KEY).expect_err("sealed");
    assert!(is_sealed(&read), "{read:#}");
    is_as_it_was(&secrets(data.path(), Some(&one), None));
}

#[test]
fn files_that_were_exchanged_do_not_open() {
    let (data, keks) = (directory(), tempfile::tempdir().expect("a directory"));
    let one = kek_file(keks.path(), "one");
    let secrets = secrets(data.path(), Some(&one), None);
    secrets.settle().expect("sealed");
    for (name, own) in FILES {
        let stored = std::fs::read(data.path().join(name)).expect(name);
        for (other, role) in FILES.iter().filter(|(_, role)| *role != own) {
            let opened = secrets.seal.open(Path::new(other), *role, stored.clone());
            assert!(opened.is_err(), "{name} passes for {other}");
        }
    }
}

#[test]
fn what_is_no_key_is_refused_and_never_quoted() {
    let (data, keks) = (directory(), tempfile::tempdir().expect("a directory"));
    let path = keks.path().join("kek");
    for text in ["", "secret", &"0".repeat(63), &"z".repeat(64), &"0".repeat(66)] {
        durable::replace(&path, text.as_bytes(), Mode::Secret).expect("written");
        let error = format!("{:#}", read_kek(&path, data.path()).expect_err(text));
        assert!(error.contains("is no key-encryption key") && (text.is_empty() || !error.contains(text)), "{error}");
    }
    let inside = kek_file(data.path(), "kek");
    let error = format!("{:#}", read_kek(&inside, data.path()).expect_err("beside what it protects"));
    assert!(error.contains("lies in the data directory"), "{error}");
    let lone = KekFiles { current: None, old: Some(kek_file(keks.path(), "old")) };
    let error = format!("{:#}", lone.read(data.path()).expect_err("a former key alone"));
    assert!(error.contains("give that one too"), "{error}");
}
