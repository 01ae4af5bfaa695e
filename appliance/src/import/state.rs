//! The progress file of an import: how far everything is acknowledged. It is replaced whole (written beside, synced,
//! renamed), so after a kill at any instant it holds some earlier truth; what was acknowledged after it is sent again
//! under the same `Idempotency-Key` and applied once.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use ring::digest;
use serde::{Deserialize, Serialize};

use super::rows::{Place, Shape};

/// How much of the file's beginning goes into its identity, in bytes.
const IDENTITY_BYTES: u64 = 1 << 20;
/// Largest progress file, in bytes.
const STATE_BYTES_MAX: u64 = 4096;
/// Version of the progress file, of the way batches are cut, and of the identity.
const VERSION: u32 = 1;

/// What is known of an unfinished import.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    version: u32,
    /// See [`identity`].
    pub(crate) identity: String,
    /// Makes the identity of an import that is to write the same file anew.
    pub(crate) nonce: String,
    /// Entries in the chain log when the import began.
    pub(crate) size_before: u64,
    /// Everything before is acknowledged.
    pub(crate) place: Place,
    /// Rows acknowledged.
    pub(crate) rows: u64,
    /// Of these, rows that an earlier import of the same file had written.
    pub(crate) rows_before: u64,
    /// Transactions acknowledged.
    pub(crate) transactions: u64,
    /// Bad rows skipped.
    pub(crate) rejected: u64,
    /// The file of bad rows, as it was named when the import began.
    pub(crate) rejected_file: Option<String>,
    /// Length of the file of bad rows, in bytes.
    pub(crate) rejected_bytes: u64,
}

impl State {
    /// The state of an import that begins.
    pub(crate) fn new(identity: String, nonce: String, size_before: u64) -> Self {
        Self {
            version: VERSION,
            identity,
            nonce,
            size_before,
            place: Place::START,
            rows: 0,
            rows_before: 0,
            transactions: 0,
            rejected: 0,
            rejected_file: None,
            rejected_bytes: 0,
        }
    }

    /// Reads a progress file; `None` when there is none.
    pub(crate) fn load(path: &Path) -> anyhow::Result<Option<Self>> {
        let mut text = String::new();
        match File::open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.and_then(|f| f.take(STATE_BYTES_MAX).read_to_string(&mut text)),
        }
        .with_context(|| format!("cannot read the progress file {}", path.display()))?;
        let state: Self = serde_json::from_str(&text).with_context(|| {
            format!("{} is not a progress file of an import; name another with --state", path.display())
        })?;
        if state.version != VERSION {
            bail!(
                "{}: version {} of progress files, this program writes {VERSION}; finish the import with the program \
                   that began it",
                path.display(),
                state.version
            );
        }
        Ok(Some(state))
    }

    /// Replaces the progress file; durable when it returns.
    pub(crate) fn save(&self, path: &Path) -> anyhow::Result<()> {
        let mut beside = path.as_os_str().to_owned();
        beside.push(".new");
        let beside = PathBuf::from(beside);
        let write = || -> io::Result<()> {
            let mut file = File::create(&beside)?;
            file.write_all(serde_json::to_string(self)?.as_bytes())?;
            file.sync_all()?;
            fs::rename(&beside, path)?;
            sync_directory_of(path)
        };
        write().with_context(|| format!("cannot write the progress file {}", path.display()))
    }

    /// Removes the progress file of an import that is done.
    pub(crate) fn remove(path: &Path) -> anyhow::Result<()> {
        let removed = fs::remove_file(path).and_then(|()| sync_directory_of(path));
        removed.with_context(|| format!("cannot remove the progress file {}", path.display()))
    }
}

fn sync_directory_of(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}

/// What tells one import from another: SHA-256, in hex, over the ledger's origin, the file's first MiB and size, and
/// everything that decides how its rows become transactions.
pub(crate) fn identity(head: impl Read, size: u64, shape: &Shape, origin: &str, nonce: &str) -> io::Result<String> {
    let mut context = digest::Context::new(&digest::SHA256);
    let mut part = |bytes: &[u8]| {
        context.update(&(bytes.len() as u64).to_be_bytes());
        context.update(bytes);
    };
    part(format!("samovar import {VERSION}").as_bytes());
    let mut content = Vec::new();
    head.take(IDENTITY_BYTES).read_to_end(&mut content)?;
    part(&content);
    part(&size.to_be_bytes());
    part(origin.as_bytes());
    part(nonce.as_bytes());
    part(format!("{:?} {} {}", shape.format, shape.delimiter, shape.typed).as_bytes());
    part(shape.prefix.as_bytes());
    for field in &shape.key_fields {
        part(field.as_bytes());
    }
    Ok(context.finish().as_ref().iter().map(|b| format!("{b:02x}")).collect())
}

/// The `Idempotency-Key` of the batch that begins at an offset.
pub(crate) fn idempotency_key(identity: &str, offset: u64) -> String {
    format!("import-{}-{offset}", &identity[..identity.len().min(40)])
}

#[cfg(test)]
mod tests {
    use super::super::rows::RowFormat;
    use super::*;

    #[test]
    fn state_survives_and_foreign_files_are_refused() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("f.csv.samovar-import");
        assert_eq!(State::load(&path).expect("no file is no error"), None);
        let mut state = State::new("ab".into(), String::new(), 7);
        state.save(&path).expect("save");
        state.place = Place { offset: 12, line: 3 };
        state.save(&path).expect("replace");
        assert_eq!(State::load(&path).expect("load"), Some(state.clone()));
        // A kill between write and rename leaves the file beside, which must not matter.
        File::create(dir.path().join("f.csv.samovar-import.new")).expect("torn file beside");
        assert_eq!(State::load(&path).expect("load"), Some(state.clone()));
        state.version = 2;
        state.save(&path).expect("save");
        let said = State::load(&path).expect_err("a later version is refused").to_string();
        assert!(said.contains("finish the import with"), "says what to do, said: {said}");
        State::remove(&path).expect("remove");
        let mut foreign = File::create(&path).expect("create");
        foreign.write_all(b"{\"name\":1}").expect("write");
        let said = State::load(&path).expect_err("a foreign file is refused").to_string();
        assert!(said.contains("--state"), "says what to do, said: {said}");
    }

    #[test]
    fn identity_tells_imports_apart() {
        let shape = Shape {
            format: RowFormat::Csv,
            prefix: "p/".into(),
            key_fields: vec!["id".into()],
            delimiter: b',',
            typed: false,
        };
        let of = |content: &[u8], size, shape: &Shape, origin: &str, nonce: &str| {
            identity(content, size, shape, origin, nonce).expect("reads from memory")
        };
        let base = of(b"id\n1\n", 5, &shape, "log", "");
        assert_eq!(base, of(b"id\n1\n", 5, &shape, "log", ""), "the same import has the same identity");
        let others = [
            of(b"id\n2\n", 5, &shape, "log", ""),
            of(b"id\n1\n", 6, &shape, "log", ""),
            of(b"id\n1\n", 5, &shape, "other log", ""),
            of(b"id\n1\n", 5, &shape, "log", "again"),
            of(b"id\n1\n", 5, &Shape { prefix: "q/".into(), ..shape.clone() }, "log", ""),
            of(b"id\n1\n", 5, &Shape { key_fields: vec!["i".into(), "d".into()], ..shape.clone() }, "log", ""),
            of(b"id\n1\n", 5, &Shape { delimiter: b';', ..shape.clone() }, "log", ""),
            of(b"id\n1\n", 5, &Shape { typed: true, ..shape.clone() }, "log", ""),
            of(b"id\n1\n", 5, &Shape { format: RowFormat::Jsonl, ..shape.clone() }, "log", ""),
        ];
        for (n, other) in others.iter().enumerate() {
            assert_ne!(*other, base, "difference {n} makes another import");
        }
        let key = idempotency_key(&base, u64::MAX);
        assert!(key.len() <= samovar_node::command::IDEMPOTENCY_KEY_BYTES_MAX, "{key} fits the limit");
    }
}
