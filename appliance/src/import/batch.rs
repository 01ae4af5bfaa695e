//! Cuts rows into transactions. Where a batch ends depends on nothing but the bytes of the file from its start on: the
//! same offset always gives the same transaction, and so the same `Idempotency-Key` and the same request. A bad row
//! ends the batch before it, skipped or not, so that an import that stopped there can go on with bad rows skipped.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::io::BufRead;

use bytes::Bytes;
use samovar_node::Key;
use samovar_node::command::{ENTRY_BYTES_MAX, OPERATIONS_MAX, VALUE_BYTES_MAX};

use super::rows::{Place, Row, Rows, Stop};

/// Most bytes of keys and values in a batch of several rows; a single row may be larger, up to the limit of a value.
const BATCH_BYTES_MAX: usize = VALUE_BYTES_MAX - (64 << 10);
/// Bytes that one put takes in an entry besides its key: names, previous revision, commitment, size, media type.
const ENTRY_BYTES_PER_PUT: usize = 256;
/// Bytes of an entry that are not puts: type, time, author.
const ENTRY_BYTES_FIXED: usize = 1024;

/// One transaction to be sent, and what is known of its place once it is acknowledged.
#[derive(Debug)]
pub(crate) struct Batch {
    /// Where it begins.
    pub(crate) start: Place,
    /// Where the next one begins.
    pub(crate) end: Place,
    /// Body of the request; empty when all rows are bad.
    pub(crate) body: Bytes,
    /// Rows in the body.
    pub(crate) rows: u64,
    /// Hash of each key in it: equal keys have equal hashes within one process.
    pub(crate) keys: Vec<u64>,
    /// Bad rows, in order; they come before the good ones.
    pub(crate) rejected: Vec<Rejected>,
}

/// A bad row that was skipped.
#[derive(Debug)]
pub(crate) struct Rejected {
    /// Number of its first line.
    pub(crate) line: u64,
    /// What is wrong with it.
    pub(crate) reason: String,
    /// The row as it stands in the file.
    pub(crate) raw: Vec<u8>,
}

/// Why no further batch can be cut.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CutError {
    /// The file ends the import.
    #[error(transparent)]
    Stop(#[from] Stop),
    /// A row is bad, and bad rows are not skipped.
    #[error("line {line}: {reason}")]
    BadRow {
        /// Number of its first line.
        line: u64,
        /// What is wrong with it.
        reason: String,
    },
}

/// Cuts the rows of a reader.
pub(crate) struct Cutter<R> {
    rows: Rows<R>,
    skip_bad: bool,
    hasher: RandomState,
    /// A row that was read but belongs to the next batch, with the place where it begins.
    pending: Option<(Place, Row)>,
    /// A bad row that was read but comes after rows which are still to be sent.
    failed: Option<CutError>,
}

impl<R: BufRead> Cutter<R> {
    /// A cutter that begins where the reader stands.
    pub(crate) fn new(rows: Rows<R>, skip_bad: bool) -> Self {
        Self { rows, skip_bad, hasher: RandomState::new(), pending: None, failed: None }
    }

    /// The next batch; `None` at the end. An error is told after the rows before it were handed out.
    ///
    /// # Errors
    /// See [`CutError`]; the cutter ends with it.
    pub(crate) fn next(&mut self) -> Result<Option<Batch>, CutError> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let start = self.pending.as_ref().map_or(self.rows.place(), |(place, _)| *place);
        let mut open = Open::default();
        let mut end = start;
        loop {
            let (place, row) = match self.read() {
                Ok(Some(row)) => row,
                Ok(None) => break,
                Err(e) if open.is_empty() => return Err(e),
                Err(e) => {
                    self.failed = Some(e);
                    break;
                }
            };
            let fits = match &row.content {
                Ok((key, value)) => open.fits(key, value),
                Err(_) => open.keys.is_empty(),
            };
            if !fits {
                self.pending = Some((place, row));
                end = place;
                break;
            }
            match row.content {
                Ok((key, value)) => open.put(&key, &value, self.hasher.hash_one(key.as_str())),
                Err(bad) => open.rejected.push(Rejected { line: row.line, reason: bad.reason, raw: bad.raw }),
            }
            end = self.rows.place();
            if open.is_full() {
                break;
            }
        }
        Ok((!open.is_empty()).then(|| open.close(start, end)))
    }

    fn read(&mut self) -> Result<Option<(Place, Row)>, CutError> {
        if let Some(row) = self.pending.take() {
            return Ok(Some(row));
        }
        let place = self.rows.place();
        match self.rows.next()? {
            Some(Row { line, content: Err(bad), .. }) if !self.skip_bad => {
                Err(CutError::BadRow { line, reason: bad.reason })
            }
            row => Ok(row.map(|row| (place, row))),
        }
    }
}

/// A batch that is being filled.
#[derive(Default)]
struct Open {
    body: Vec<u8>,
    names: HashSet<String>,
    keys: Vec<u64>,
    content_bytes: usize,
    entry_bytes: usize,
    rejected: Vec<Rejected>,
}

impl Open {
    fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.rejected.is_empty()
    }

    /// Bad rows count too, so that a file of nothing else stays bounded in memory.
    fn is_full(&self) -> bool {
        self.keys.len() >= OPERATIONS_MAX
            || self.rejected.len() >= OPERATIONS_MAX
            || self.content_bytes + self.rejected.iter().map(|r| r.raw.len()).sum::<usize>() >= BATCH_BYTES_MAX
    }

    fn fits(&self, key: &Key, value: &[u8]) -> bool {
        let key = key.as_str();
        self.keys.is_empty()
            || (!self.names.contains(key)
                && self.content_bytes + key.len() + value.len() <= BATCH_BYTES_MAX
                && self.entry_bytes + entry_bytes(key) <= ENTRY_BYTES_MAX - ENTRY_BYTES_FIXED)
    }

    fn put(&mut self, key: &Key, value: &[u8], hash: u64) {
        let key = key.as_str();
        self.body.extend_from_slice(if self.keys.is_empty() { br#"{"operations":["# } else { b"," });
        self.body.extend_from_slice(br#"{"put":{"key":"#);
        self.body.extend_from_slice(serde_json::Value::from(key).to_string().as_bytes());
        self.body.extend_from_slice(br#","value":"#);
        self.body.extend_from_slice(value);
        self.body.extend_from_slice(b"}}");
        self.content_bytes += key.len() + value.len();
        self.entry_bytes += entry_bytes(key);
        self.names.insert(key.to_owned());
        self.keys.push(hash);
    }

    fn close(mut self, start: Place, end: Place) -> Batch {
        if !self.keys.is_empty() {
            self.body.extend_from_slice(b"]}");
        }
        let rows = self.keys.len() as u64;
        Batch { start, end, body: self.body.into(), rows, keys: self.keys, rejected: self.rejected }
    }
}

/// What a put of this key takes in its entry at most; every byte that JSON escapes there takes two.
fn entry_bytes(key: &str) -> usize {
    ENTRY_BYTES_PER_PUT + key.len() + key.bytes().filter(|b| matches!(b, b'"' | b'\\')).count()
}

#[cfg(test)]
pub(super) mod tests;
