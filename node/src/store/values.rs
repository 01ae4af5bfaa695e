//! Encrypted values in rows, by slot: neighbouring small ones share a row, a large one takes several.
//!
//! Row key: slot of the last value (u64 BE) ‖ piece (u16 BE), so that the row that holds a slot is the first one from it on.
//! Row value: `0` ‖ count (u16 LE) ‖ count × (kind u8, length
//! u32 LE) ‖ bodies; kind 0 is a ciphertext, kind 1 an erased value whose body is the index (u64 LE) of the entry that
//! erased it. A large value: `1` ‖ bytes, going on in pieces 1, 2, ….

use std::collections::BTreeMap;

use super::{Batch, ROW_BYTES_MAX, Rows, Tree};
use crate::error::Error;

/// What is stored for a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stored {
    /// Encrypted under a key from its salt.
    Ciphertext(Vec<u8>),
    /// Gone; index of the entry that says so.
    Erased(u64),
}

const BUNDLE: u8 = 0;
const LARGE: u8 = 1;
const HEADER: usize = 3;
const PER_VALUE: usize = 5;

fn row_key(slot: u64, piece: u16) -> [u8; 10] {
    let mut key = [0; 10];
    key[..8].copy_from_slice(&slot.to_be_bytes());
    key[8..].copy_from_slice(&piece.to_be_bytes());
    key
}

/// Adds the rows of the values in slots `first…` to a batch.
pub(crate) fn put(batch: &mut Batch, first: u64, values: &[Stored]) {
    let mut start = 0;
    while start < values.len() {
        let slot = first + start as u64;
        let mut end = start;
        let mut bytes = HEADER;
        while end < values.len() && bytes + PER_VALUE + body_len(&values[end]) <= ROW_BYTES_MAX {
            bytes += PER_VALUE + body_len(&values[end]);
            end += 1;
        }
        match &values[start] {
            Stored::Ciphertext(bytes) if end == start => {
                // One of a few sizes is too long for a bundle, by its table, and still shorter than a row.
                let (head, rest) = bytes.split_at(bytes.len().min(ROW_BYTES_MAX - 1));
                batch.put(Tree::Values, &row_key(slot, 0), [&[LARGE], head].concat());
                for (piece, chunk) in (1u16..).zip(rest.chunks(ROW_BYTES_MAX)) {
                    batch.put(Tree::Values, &row_key(slot, piece), chunk.to_vec());
                }
                end = start + 1;
            }
            _ => {
                let last = first + end as u64 - 1;
                batch.put(Tree::Values, &row_key(last, 0), bundle(&values[start..end], bytes));
            }
        }
        start = end;
    }
}

fn body_len(value: &Stored) -> usize {
    match value {
        Stored::Ciphertext(bytes) => bytes.len(),
        Stored::Erased(_) => 8,
    }
}

fn bundle(values: &[Stored], bytes: usize) -> Vec<u8> {
    let mut row = Vec::with_capacity(bytes);
    row.push(BUNDLE);
    row.extend_from_slice(&u16::try_from(values.len()).unwrap_or(u16::MAX).to_le_bytes());
    for value in values {
        row.push(u8::from(matches!(value, Stored::Erased(_))));
        row.extend_from_slice(&u32::try_from(body_len(value)).unwrap_or(u32::MAX).to_le_bytes());
    }
    for value in values {
        match value {
            Stored::Ciphertext(bytes) => row.extend_from_slice(bytes),
            Stored::Erased(by) => row.extend_from_slice(&by.to_le_bytes()),
        }
    }
    row
}

fn decode(row: &[u8]) -> Option<Vec<Stored>> {
    let (&kind, rest) = row.split_first()?;
    let (count, rest) = rest.split_first_chunk::<2>()?;
    let (table, mut bodies) = rest.split_at_checked(usize::from(u16::from_le_bytes(*count)) * PER_VALUE)?;
    let mut values = Vec::with_capacity(table.len() / PER_VALUE);
    for item in table.chunks_exact(PER_VALUE) {
        let length = u32::from_le_bytes(*item.last_chunk::<4>()?);
        let (body, after) = bodies.split_at_checked(usize::try_from(length).ok()?)?;
        values.push(match item[0] {
            0 => Stored::Ciphertext(body.to_vec()),
            _ => Stored::Erased(u64::from_le_bytes(body.try_into().ok()?)),
        });
        bodies = after;
    }
    (kind == BUNDLE && bodies.is_empty()).then_some(values)
}

/// The row that holds a slot: its first slot, its values (one, when it is large), how many pieces it has.
fn row_of(rows: &Rows, slot: u64) -> Result<(u64, Vec<Stored>, u16), Error> {
    let missing = || Error::DamagedStore(format!("the value in slot {slot} is missing or damaged"));
    let (key, value) = rows.from(Tree::Values, &row_key(slot, 0), 1)?.pop().ok_or_else(missing)?;
    let (last, piece) = key.split_first_chunk::<8>().ok_or_else(missing)?;
    let last = u64::from_be_bytes(*last);
    if value.first() != Some(&LARGE) || piece != [0, 0] {
        let values = decode(&value).filter(|_| piece == [0, 0]).ok_or_else(missing)?;
        let first = (last + 1).checked_sub(values.len() as u64).filter(|first| *first <= slot).ok_or_else(missing)?;
        return Ok((first, values, 1));
    }
    if last != slot {
        return Err(missing());
    }
    let mut bytes = value[1..].to_vec();
    let mut pieces = 1;
    let mut from = row_key(slot, 1);
    'all: loop {
        let page = rows.from(Tree::Values, &from, 32)?;
        let full = page.len() == 32;
        for (key, value) in page {
            if key[..8] != slot.to_be_bytes() {
                break 'all;
            }
            bytes.extend_from_slice(&value);
            pieces += 1;
        }
        if !full {
            break;
        }
        from = row_key(slot, pieces);
    }
    Ok((slot, vec![Stored::Ciphertext(bytes)], pieces))
}

/// What is stored in a slot.
pub(crate) fn one(rows: &Rows, slot: u64) -> Result<Stored, Error> {
    let (first, mut values, _) = row_of(rows, slot)?;
    let position = usize::try_from(slot - first).unwrap_or(usize::MAX);
    if position >= values.len() {
        return Err(Error::DamagedStore(format!("the value in slot {slot} is missing")));
    }
    Ok(values.swap_remove(position))
}

/// What is stored in the slots from `first` on and below `end`.
pub(crate) fn from(rows: &Rows, first: u64, end: u64) -> Result<Vec<Stored>, Error> {
    let mut found = Vec::new();
    let mut slot = first;
    while slot < end {
        let (start, values, _) = row_of(rows, slot)?;
        let skipped = usize::try_from(slot - start).unwrap_or(usize::MAX);
        let room = usize::try_from(end - slot).unwrap_or(usize::MAX);
        let before = found.len();
        found.extend(values.into_iter().skip(skipped).take(room));
        if found.len() == before {
            return Err(Error::DamagedStore(format!("the value in slot {slot} is missing")));
        }
        slot += (found.len() - before) as u64;
    }
    Ok(found)
}

/// Adds to a batch what makes values erased ones: slot → index of the entry that says so. One call per batch, since
/// values that share a row must be rewritten together.
pub(crate) fn erase(rows: &Rows, batch: &mut Batch, slots: &BTreeMap<u64, u64>) -> Result<(), Error> {
    let mut open: Option<(u64, Vec<Stored>)> = None;
    for (&slot, &erased_by) in slots {
        let within = |(first, values): &(u64, Vec<Stored>)| slot < first + values.len() as u64;
        if !open.as_ref().is_some_and(within) {
            if let Some((first, values)) = open.take() {
                put(batch, first, &values);
            }
            let (first, values, pieces) = row_of(rows, slot)?;
            for piece in 1..pieces {
                batch.remove(Tree::Values, &row_key(slot, piece));
            }
            open = Some((first, values));
        }
        let value = open.as_mut().and_then(|(first, values)| values.get_mut(usize::try_from(slot - *first).ok()?));
        *value.ok_or_else(|| Error::DamagedStore(format!("the value in slot {slot} is missing")))? =
            Stored::Erased(erased_by);
    }
    if let Some((first, values)) = open {
        put(batch, first, &values);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::{Engine, MemoryRows};
    use super::*;

    /// Values of every length around the bounds of a row and of a piece, alone and between small ones, come back as they are; and
    /// with the middle one erased the others do.
    #[test]
    fn values_of_every_length_come_back() {
        let around = |bound: usize| bound.saturating_sub(20)..bound + 20;
        for length in around(0).chain(around(ROW_BYTES_MAX)).chain(around(2 * ROW_BYTES_MAX)) {
            let value = |mark: u8, length: usize| Stored::Ciphertext(vec![mark; length]);
            for values in [vec![value(1, length)], vec![value(1, 5), value(2, length), value(3, 7)]] {
                let rows = Rows::over(Engine::Memory(Arc::new(MemoryRows::default())));
                let read = || from(&rows, 0, values.len() as u64).expect("they are there");
                let mut batch = Batch::default();
                put(&mut batch, 0, &values);
                rows.commit(batch).expect("rows in memory take every batch");
                assert_eq!(read(), values, "values of {length} bytes");
                let (mut batch, middle) = (Batch::default(), values.len() / 2);
                erase(&rows, &mut batch, &BTreeMap::from([(middle as u64, 9)])).expect("it is there");
                rows.commit(batch).expect("rows in memory take every batch");
                let mut left = values.clone();
                left[middle] = Stored::Erased(9);
                assert_eq!(read(), left, "values of {length} bytes, one erased");
            }
        }
    }
}
