//! Outcomes of requests that named themselves (`Idempotency-Key`, or the writes of a forwarded message), kept so that a
//! repetition gets the same answer: the last [`OUTCOMES_MAX`], none older than [`OUTCOME_AGE_MS`] of chain time.
//!
//! What is dropped, and when, is decided by apply alone, so every node holds the same set.

use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use super::{Batch, Rows, Tree};
use crate::command::Outcome;
use crate::error::Error;

/// Most outcomes kept.
pub(crate) const OUTCOMES_MAX: u64 = 1_000_000;
/// Longest time that an outcome is kept, in milliseconds of chain time.
pub(crate) const OUTCOME_AGE_MS: u64 = 24 * 3600 * 1000;
/// Most outcomes dropped by one block, beyond as many as it adds.
const DROPPED_PER_BLOCK: usize = 64;
/// Outcomes read at a time.
const PAGE_OUTCOMES: usize = 512;

/// Names a request: SHA-256 over its kind, author and key, cut to 16 bytes.
pub(crate) type RequestKey = [u8; 16];

/// An outcome as it lies in the store: the request, and its row.
pub(crate) type OutcomeRow = (RequestKey, Vec<u8>);

/// The answer kept for a request. As a row: its fields in postcard, the outcomes without their number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kept {
    /// What tells it from the others.
    pub mark: Mark,
    /// The answer: one outcome, or one for each write of a forwarded message.
    pub outcomes: Vec<Outcome>,
}

/// What tells an answer that is kept from the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    /// SHA-256 over the request.
    pub fingerprint: [u8; 32],
    /// Time of the block, milliseconds since 1970.
    pub time_ms: u64,
    /// Place in the order of age.
    pub sequence: u64,
}

/// The range of sequences in use: `first..next`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Span {
    pub first: u64,
    pub next: u64,
}

/// The key under which the outcome of a client's request is kept.
pub(crate) fn client_key(author: &str, idempotency_key: &str) -> RequestKey {
    request_key(&[b"client\0", author.as_bytes(), b"\0", idempotency_key.as_bytes()].concat())
}

/// The key under which the outcomes of a forwarded message are kept.
pub(crate) fn proposal_key(id: crate::command::ProposalId) -> RequestKey {
    let numbers = [id.node, id.boot, id.sequence].map(u64::to_be_bytes);
    request_key(&[b"proposal\0", numbers.concat().as_slice()].concat())
}

fn request_key(name: &[u8]) -> RequestKey {
    let mut key = [0; 16];
    key.copy_from_slice(&digest(&SHA256, name).as_ref()[..16]);
    key
}

/// The outcome kept for a request.
pub(crate) fn get(rows: &Rows, key: &RequestKey) -> Result<Option<Kept>, Error> {
    rows.get(Tree::Outcomes, key)?.map(|row| decode(&row)).transpose()
}

fn decode(row: &[u8]) -> Result<Kept, Error> {
    let damaged = |e| Error::DamagedStore(format!("an idempotency record is damaged: {e}"));
    let (mark, mut rest) = postcard::take_from_bytes(row).map_err(damaged)?;
    let mut outcomes = Vec::new();
    while outcomes.is_empty() || !rest.is_empty() {
        let (outcome, after) = postcard::take_from_bytes(rest).map_err(damaged)?;
        outcomes.push(outcome);
        rest = after;
    }
    Ok(Kept { mark, outcomes })
}

/// Adds an outcome to a batch; returns its row.
pub(crate) fn put(batch: &mut Batch, key: &RequestKey, kept: &Kept) -> Vec<u8> {
    // postcard cannot fail on these types: every sequence has a known length.
    let mark = postcard::to_stdvec(&kept.mark).unwrap_or_default();
    let row = kept.outcomes.iter().fold(mark, |row, outcome| postcard::to_extend(outcome, row).unwrap_or_default());
    batch.put(Tree::Outcomes, key, row.clone());
    let mut place = key.to_vec();
    place.extend_from_slice(&kept.mark.time_ms.to_be_bytes());
    batch.put(Tree::OutcomeQueue, &kept.mark.sequence.to_be_bytes(), place);
    row
}

/// Adds an outcome to a batch that is known by its row.
pub(crate) fn put_row(batch: &mut Batch, key: &RequestKey, row: &[u8]) -> Result<(), Error> {
    put(batch, key, &decode(row)?);
    Ok(())
}

/// Outcomes with their rows in order of age, those from sequence `from` on and below `to`, as many as make a page; and
/// where the next page begins.
pub(crate) fn page(rows: &Rows, from: u64, to: u64) -> Result<(Vec<OutcomeRow>, u64), Error> {
    let (mut found, mut next) = (Vec::new(), from);
    for (sequence, place) in rows.from(Tree::OutcomeQueue, &from.to_be_bytes(), PAGE_OUTCOMES)? {
        let (number, key, _) = queued(&sequence, &place)?;
        if number >= to {
            return Ok((found, to));
        }
        if let Some(row) = rows.get(Tree::Outcomes, &key)? {
            found.push((key, row));
        }
        next = number + 1;
    }
    Ok((found, if next == from { to } else { next }))
}

/// Removes what is queued from sequence `from` on and below `to`.
pub(crate) fn forget(rows: &Rows, mut from: u64, to: u64) -> Result<(), Error> {
    while from < to {
        let mut batch = Batch::default();
        let page = rows.from(Tree::OutcomeQueue, &from.to_be_bytes(), PAGE_OUTCOMES)?;
        from = if page.len() < PAGE_OUTCOMES { to } else { from };
        for (sequence, place) in page {
            let (number, key, _) = queued(&sequence, &place)?;
            if number >= to {
                from = to;
                break;
            }
            batch.remove(Tree::OutcomeQueue, &sequence);
            batch.remove(Tree::Outcomes, &key);
            from = from.max(number + 1);
        }
        if batch.len() > 0 {
            rows.commit(batch)?;
        }
    }
    Ok(())
}

/// What a row of the queue says: sequence, key, and time in milliseconds.
fn queued(sequence: &[u8], place: &[u8]) -> Result<(u64, RequestKey, u64), Error> {
    let parts = || {
        let (key, time) = place.split_first_chunk::<16>()?;
        Some((u64::from_be_bytes(*sequence.first_chunk()?), *key, u64::from_be_bytes(*time.first_chunk()?)))
    };
    parts().ok_or_else(|| Error::DamagedStore("the queue of idempotency records is damaged".into()))
}

/// Drops what is too old or too much, oldest first, a bounded number per block.
pub(crate) fn evict(rows: &Rows, batch: &mut Batch, span: &mut Span, added: usize, now_ms: u64) -> Result<(), Error> {
    let limit = added + DROPPED_PER_BLOCK;
    // As a rule the oldest stays, and nothing more is read.
    for limit in [1, limit - 1] {
        if span.first == span.next {
            return Ok(());
        }
        for (sequence, place) in rows.from(Tree::OutcomeQueue, &span.first.to_be_bytes(), limit)? {
            let (number, key, time_ms) = queued(&sequence, &place)?;
            if span.next - number <= OUTCOMES_MAX && now_ms.saturating_sub(time_ms) <= OUTCOME_AGE_MS {
                return Ok(());
            }
            batch.remove(Tree::OutcomeQueue, &sequence);
            batch.remove(Tree::Outcomes, &key);
            span.first = number + 1;
        }
    }
    Ok(())
}
