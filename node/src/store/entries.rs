//! The chain log in rows: neighbouring entries share a row, an entry larger than a row takes several.
//!
//! Row key: index of the last entry (u64 BE) ‖ piece (u16 BE), so that the row that holds an entry is the first one from
//! its index on. Row value: `0` ‖ count (u16) ‖ count × (length u16,
//! first value slot u64, both LE) ‖ the lines; or, for a large entry, `1` ‖ slot (u64 LE) ‖ its bytes, going on in the
//! rows of pieces 1, 2, ….

use super::{Batch, ROW_BYTES_MAX, Rows, Tree};
use crate::error::Error;

/// An entry as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    /// The line without newline.
    pub line: Vec<u8>,
    /// Slot of its first value; the others follow.
    pub slot: u64,
}

const BUNDLE: u8 = 0;
const LARGE: u8 = 1;
const HEADER: usize = 3;
const PER_LINE: usize = 10;

fn row_key(index: u64, piece: u16) -> [u8; 10] {
    let mut key = [0; 10];
    key[..8].copy_from_slice(&index.to_be_bytes());
    key[8..].copy_from_slice(&piece.to_be_bytes());
    key
}

/// Adds the rows of the entries `first…` to a batch.
pub(crate) fn put(batch: &mut Batch, first: u64, entries: &[Stored]) {
    let mut start = 0;
    while start < entries.len() {
        let index = first + start as u64;
        let mut end = start;
        let mut bytes = HEADER;
        while end < entries.len() && bytes + PER_LINE + entries[end].line.len() <= ROW_BYTES_MAX {
            bytes += PER_LINE + entries[end].line.len();
            end += 1;
        }
        if end == start {
            put_large(batch, index, &entries[start]);
            end = start + 1;
        } else {
            let last = first + end as u64 - 1;
            batch.put(Tree::Entries, &row_key(last, 0), bundle(&entries[start..end], bytes));
        }
        start = end;
    }
}

fn bundle(entries: &[Stored], bytes: usize) -> Vec<u8> {
    let mut row = Vec::with_capacity(bytes);
    row.push(BUNDLE);
    row.extend_from_slice(&u16::try_from(entries.len()).unwrap_or(u16::MAX).to_le_bytes());
    for entry in entries {
        row.extend_from_slice(&u16::try_from(entry.line.len()).unwrap_or(u16::MAX).to_le_bytes());
        row.extend_from_slice(&entry.slot.to_le_bytes());
    }
    for entry in entries {
        row.extend_from_slice(&entry.line);
    }
    row
}

fn put_large(batch: &mut Batch, index: u64, entry: &Stored) {
    let mut head = vec![LARGE];
    head.extend_from_slice(&entry.slot.to_le_bytes());
    let room = ROW_BYTES_MAX - head.len();
    let (first, rest) = entry.line.split_at(room.min(entry.line.len()));
    head.extend_from_slice(first);
    batch.put(Tree::Entries, &row_key(index, 0), head);
    for (piece, chunk) in (1u16..).zip(rest.chunks(ROW_BYTES_MAX)) {
        batch.put(Tree::Entries, &row_key(index, piece), chunk.to_vec());
    }
}

/// Up to `limit` entries from `first` on.
pub(crate) fn from(rows: &Rows, first: u64, limit: usize) -> Result<Vec<Stored>, Error> {
    let mut found = Vec::with_capacity(limit.min(512));
    let mut at = row_key(first, 0).to_vec();
    let mut expected = None;
    // One more than asked for: only then is a large entry at the end known to be whole.
    while found.len() <= limit {
        let page = rows.from(Tree::Entries, &at, 32)?;
        let Some((last, _)) = page.last() else { break };
        at = last.clone();
        at.push(0);
        for (key, value) in page {
            take_row(&key, &value, first, &mut expected, &mut found)?;
        }
    }
    found.truncate(limit);
    Ok(found)
}

/// Adds what a row holds of the entries from `first` on. `expected` is the index that must come next.
fn take_row(
    key: &[u8],
    value: &[u8],
    first: u64,
    expected: &mut Option<u64>,
    found: &mut Vec<Stored>,
) -> Result<(), Error> {
    let (last, piece) = split_key(key)?;
    if piece > 0 {
        if let Some(large) = found.last_mut().filter(|_| *expected == Some(last + 1)) {
            large.line.extend_from_slice(value);
        }
        return Ok(());
    }
    let damaged = || Error::DamagedStore(format!("the row of entry {last} is damaged"));
    let entries = decode(value).ok_or_else(damaged)?;
    let index = (last + 1).checked_sub(entries.len() as u64).ok_or_else(damaged)?;
    if expected.map_or(index > first, |expected| expected != index) {
        return Err(Error::DamagedStore(format!("the chain log has a gap before entry {index}")));
    }
    *expected = Some(last + 1);
    found.extend(entries.into_iter().zip(index..).filter(|(_, i)| *i >= first).map(|(e, _)| e));
    Ok(())
}

fn split_key(key: &[u8]) -> Result<(u64, u16), Error> {
    let index = key.first_chunk::<8>().map(|b| u64::from_be_bytes(*b));
    let piece = key.last_chunk::<2>().map(|b| u16::from_be_bytes(*b));
    index.zip(piece).ok_or_else(|| Error::DamagedStore("a row key of the chain log is damaged".into()))
}

fn decode(row: &[u8]) -> Option<Vec<Stored>> {
    let (&kind, rest) = row.split_first()?;
    if kind == LARGE {
        let (slot, line) = rest.split_first_chunk::<8>()?;
        return Some(vec![Stored { line: line.to_vec(), slot: u64::from_le_bytes(*slot) }]);
    }
    let (count, rest) = rest.split_first_chunk::<2>()?;
    let (table, mut lines) = rest.split_at_checked(usize::from(u16::from_le_bytes(*count)) * PER_LINE)?;
    let mut entries = Vec::with_capacity(table.len() / PER_LINE);
    for item in table.chunks_exact(PER_LINE) {
        let length = u16::from_le_bytes(*item.first_chunk::<2>()?);
        let (line, after) = lines.split_at_checked(usize::from(length))?;
        entries.push(Stored { line: line.to_vec(), slot: u64::from_le_bytes(*item.last_chunk::<8>()?) });
        lines = after;
    }
    (kind == BUNDLE && lines.is_empty()).then_some(entries)
}

/// One entry.
pub(crate) fn one(rows: &Rows, index: u64) -> Result<Stored, Error> {
    let missing = || Error::DamagedStore(format!("entry {index} is missing from the chain log"));
    let (key, value) = rows.from(Tree::Entries, &row_key(index, 0), 1)?.pop().ok_or_else(missing)?;
    let (last, _) = split_key(&key)?;
    if value.first() == Some(&BUNDLE) {
        return bundled(&value, last - index).ok_or_else(missing);
    }
    from(rows, index, 1)?.pop().ok_or_else(missing)
}

/// The entry of a bundle that so many follow, without decoding the others.
fn bundled(row: &[u8], followed_by: u64) -> Option<Stored> {
    let count = usize::from(u16::from_le_bytes(*row.get(1..3)?.first_chunk::<2>()?));
    let position = count.checked_sub(1)?.checked_sub(usize::try_from(followed_by).ok()?)?;
    let table = row.get(HEADER..HEADER + count * PER_LINE)?;
    let length =
        |i: usize| table.get(i * PER_LINE..i * PER_LINE + 2).map(|b| usize::from(u16::from_le_bytes([b[0], b[1]])));
    let mut start = HEADER + count * PER_LINE;
    for i in 0..position {
        start += length(i)?;
    }
    let slot = table.get(position * PER_LINE + 2..(position + 1) * PER_LINE)?.first_chunk::<8>()?;
    Some(Stored { line: row.get(start..start + length(position)?)?.to_vec(), slot: u64::from_le_bytes(*slot) })
}
