//! Every key name that ever was, in byte order, many to a row. What is new waits in memory and is merged into the rows
//! by [`Names::flush`]; after a crash it comes again from the entries above the low-water mark (`machine`).
//!
//! Row key: an upper bound of the names in it, which one of them may equal; the last row's is above every name
//! ([`HIGHEST`]). So a name stands in the first row from itself on, or in none. Row value: names, each as the length it shares
//! with the one before (u16 LE), the length of the rest (u16 LE), the rest.

use std::collections::BTreeSet;
use std::ops::Bound;

use super::{Batch, Rows, Tree};
use crate::error::Error;

/// A row is cut in two when it grows beyond this many bytes.
const SPLIT_BYTES: usize = 2048;
/// Above every name: no text begins with this byte.
const HIGHEST: &[u8] = &[0xff];
/// Names merged in one batch.
const BATCH_NAMES: usize = 512;

/// The names not yet in rows.
#[derive(Default)]
pub(crate) struct Names {
    waiting: BTreeSet<String>,
}

impl Names {
    /// Takes a name in; doing so twice does no harm.
    pub(crate) fn insert(&mut self, name: &str) {
        self.waiting.insert(name.to_owned());
    }

    /// How many names wait in memory.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Up to `limit` names above `after` (exclusive) that begin with `prefix`, in order.
    pub(crate) fn page(
        &self,
        rows: &Rows,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<String>, Error> {
        let lower = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let mut waiting =
            self.waiting.range::<str, _>((lower, Bound::Unbounded)).take_while(|n| n.starts_with(prefix)).peekable();
        let mut stored = StoredNames::new(rows, lower);
        let mut next_stored = stored.next()?.filter(|n| n.starts_with(prefix));
        let mut page: Vec<String> = Vec::with_capacity(limit.min(1024));
        while page.len() < limit {
            let take_waiting = match (waiting.peek(), &next_stored) {
                (None, None) => break,
                (Some(w), Some(s)) => *w < s,
                (w, None) => w.is_some(),
                (None, Some(_)) => false,
            };
            let name = if take_waiting {
                waiting.next().cloned().unwrap_or_default()
            } else {
                let name = next_stored.take().unwrap_or_default();
                next_stored = stored.next()?.filter(|n| n.starts_with(prefix));
                name
            };
            if page.last() != Some(&name) {
                page.push(name);
            }
        }
        Ok(page)
    }

    /// The names that wait, for [`merge`]; they stay here until [`Names::merged`].
    pub(crate) fn to_merge(&self) -> Vec<String> {
        self.waiting.iter().cloned().collect()
    }

    /// Forgets names that are in rows now.
    pub(crate) fn merged(&mut self, names: &[String]) {
        if names.len() == self.waiting.len() {
            self.waiting.clear();
        } else {
            for name in names {
                self.waiting.remove(name);
            }
        }
    }
}

/// Merges sorted names into the rows, in batches of bounded size; `commit` writes each batch.
pub(crate) fn merge(
    rows: &Rows,
    names: &[String],
    mut commit: impl FnMut(Batch) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut rest = names;
    while !rest.is_empty() {
        let mut batch = Batch::default();
        let mut done = 0;
        while done < rest.len() && done < BATCH_NAMES {
            done += merge_row(rows, &mut batch, &rest[done..])?;
        }
        commit(batch)?;
        rest = &rest[done..];
    }
    Ok(())
}

/// Merges into one row as many of the sorted names as belong to it; returns how many.
fn merge_row(rows: &Rows, batch: &mut Batch, names: &[String]) -> Result<usize, Error> {
    let first = names[0].as_bytes();
    let found = rows.from(Tree::Names, first, 1)?.pop();
    let (bound, row) = found.unwrap_or_else(|| (HIGHEST.to_vec(), Vec::new()));
    let belong = |n: &&String| n.as_bytes() <= bound.as_slice();
    let new: Vec<&String> = names.iter().take(BATCH_NAMES).take_while(belong).collect();
    let mut all = decode(&row)?;
    all.extend(new.iter().map(|n| (*n).clone()));
    all.sort_unstable();
    all.dedup();
    let mut start = 0;
    while start < all.len() {
        let (row, end) = encode(&all, start);
        let key = if end < all.len() { all[end - 1].as_bytes() } else { &bound };
        batch.put(Tree::Names, key, row);
        start = end;
    }
    Ok(new.len())
}

/// Encodes names from `start` until a row is full enough; returns the row and where the next one starts.
fn encode(names: &[String], start: usize) -> (Vec<u8>, usize) {
    let mut row = Vec::with_capacity(SPLIT_BYTES);
    let mut previous = "";
    let mut end = start;
    while end < names.len() && (row.len() < SPLIT_BYTES || end == start) {
        let name = names[end].as_str();
        let shared = previous.bytes().zip(name.bytes()).take_while(|(a, b)| a == b).count();
        row.extend_from_slice(&u16::try_from(shared).unwrap_or(0).to_le_bytes());
        let rest = &name.as_bytes()[shared..];
        row.extend_from_slice(&u16::try_from(rest.len()).unwrap_or(0).to_le_bytes());
        row.extend_from_slice(rest);
        previous = name;
        end += 1;
    }
    (row, end)
}

fn decode(mut row: &[u8]) -> Result<Vec<String>, Error> {
    let damaged = || Error::DamagedStore("a row of key names is damaged".into());
    let mut names: Vec<String> = Vec::new();
    let mut previous: Vec<u8> = Vec::new();
    while !row.is_empty() {
        let (head, after) = row.split_first_chunk::<4>().ok_or_else(damaged)?;
        let shared = usize::from(u16::from_le_bytes([head[0], head[1]]));
        let length = usize::from(u16::from_le_bytes([head[2], head[3]]));
        let (rest, after) = after.split_at_checked(length).ok_or_else(damaged)?;
        let mut name = previous.get(..shared).ok_or_else(damaged)?.to_vec();
        name.extend_from_slice(rest);
        names.push(String::from_utf8(name.clone()).map_err(|_| damaged())?);
        previous = name;
        row = after;
    }
    Ok(names)
}

/// Walks the stored names in order from a lower bound.
struct StoredNames<'a> {
    rows: &'a Rows,
    /// Where the next row is looked for; `None`: that was the last one.
    at: Option<Vec<u8>>,
    page: std::vec::IntoIter<String>,
    lower: Bound<String>,
}

impl<'a> StoredNames<'a> {
    fn new(rows: &'a Rows, lower: Bound<&str>) -> Self {
        let lower = lower.map(str::to_owned);
        let at = match &lower {
            Bound::Included(name) | Bound::Excluded(name) => name.as_bytes(),
            Bound::Unbounded => &[],
        };
        let at = Some(at.to_vec());
        Self { rows, at, page: Vec::new().into_iter(), lower }
    }

    fn next(&mut self) -> Result<Option<String>, Error> {
        loop {
            for name in self.page.by_ref() {
                let above = match &self.lower {
                    Bound::Included(lower) => name >= *lower,
                    Bound::Excluded(lower) => name > *lower,
                    Bound::Unbounded => true,
                };
                if above {
                    return Ok(Some(name));
                }
            }
            let Some(at) = self.at.take() else { return Ok(None) };
            let Some((mut key, row)) = self.rows.from(Tree::Names, &at, 1)?.pop() else { return Ok(None) };
            self.page = decode(&row)?.into_iter();
            key.push(0);
            self.at = Some(key);
        }
    }
}
