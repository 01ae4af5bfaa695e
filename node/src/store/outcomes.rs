//! Outcomes of requests that named themselves (`Idempotency-Key`, or a forwarded write), kept so that a repetition gets
//! the same answer: the last [`OUTCOMES_MAX`], none older than [`OUTCOME_AGE_MS`] of chain time.
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

/// Names a request: SHA-256 over its kind, author and key, cut to 16 bytes.
pub(crate) type RequestKey = [u8; 16];

/// An outcome kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// SHA-256 over the request.
    pub fingerprint: [u8; 32],
    /// Time of the block, milliseconds since 1970.
    pub time_ms: u64,
    /// Place in the order of age.
    pub sequence: u64,
    /// The answer.
    pub outcome: Outcome,
}

/// The range of sequences in use: `first..next`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Span {
    pub first: u64,
    pub next: u64,
}

/// The key under which the outcome of a client's request is kept.
pub(crate) fn client_key(author: &str, idempotency_key: &str) -> RequestKey {
    request_key(&[b"client\0", author.as_bytes(), b"\0", idempotency_key.as_bytes()].concat())
}

/// The key under which the outcome of a forwarded write is kept.
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
    postcard::from_bytes(row).map_err(|e| Error::Corrupt(format!("an idempotency record is damaged: {e}")))
}

/// Adds an outcome to a batch; moves the span.
pub(crate) fn put(batch: &mut Batch, span: &mut Span, key: &RequestKey, kept: &Kept) {
    // postcard cannot fail on this type: every sequence has a known length.
    let row = postcard::to_stdvec(kept).unwrap_or_default();
    batch.put(Tree::Outcomes, key, row);
    let mut place = key.to_vec();
    place.extend_from_slice(&kept.time_ms.to_be_bytes());
    batch.put(Tree::OutcomeQueue, &kept.sequence.to_be_bytes(), place);
    span.next = kept.sequence + 1;
}

/// Drops what is too old or too much, oldest first, a bounded number per block.
pub(crate) fn evict(rows: &Rows, batch: &mut Batch, span: &mut Span, added: usize, now_ms: u64) -> Result<(), Error> {
    let limit = added + DROPPED_PER_BLOCK;
    if span.first == span.next {
        return Ok(());
    }
    for (sequence, place) in rows.from(Tree::OutcomeQueue, &span.first.to_be_bytes(), limit)? {
        let (Some((key, time)), Some(number)) = (place.split_first_chunk::<16>(), sequence.first_chunk::<8>()) else {
            return Err(Error::Corrupt("the queue of idempotency records is damaged".into()));
        };
        let time_ms = time.first_chunk::<8>().map_or(0, |t| u64::from_be_bytes(*t));
        let number = u64::from_be_bytes(*number);
        if span.next - number <= OUTCOMES_MAX && now_ms.saturating_sub(time_ms) <= OUTCOME_AGE_MS {
            break;
        }
        batch.remove(Tree::OutcomeQueue, &sequence);
        batch.remove(Tree::Outcomes, key);
        span.first = number + 1;
    }
    Ok(())
}
