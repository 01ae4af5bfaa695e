//! Sends batches, many at once, so that the outcome is that of sending them one after the other: a batch waits while
//! one with an equal key is in flight, and acknowledgements are handed on in the order of the file.

use std::collections::{BTreeMap, HashSet};
use std::future::Future;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::mpsc::Receiver;

use super::batch::{Batch, CutError, Rejected};
use super::rows::Place;

/// Most batches that may be acknowledged ahead of an earlier one that is not: bounds what a resumed import sends again.
const AHEAD_MAX: u64 = 256;

/// A batch that is done, with everything before it.
#[derive(Debug)]
pub(crate) struct Acked {
    /// Where the next batch begins.
    pub(crate) end: Place,
    /// Rows written.
    pub(crate) rows: u64,
    /// Number of its transaction; `None` when all its rows were bad.
    pub(crate) transaction: Option<u64>,
    /// Its bad rows.
    pub(crate) rejected: Vec<Rejected>,
}

/// Why the pipeline ended early. What was in flight was waited for first.
#[derive(Debug)]
pub(crate) enum Failure<E> {
    /// The rows ended it.
    Cut(CutError),
    /// Sending ended it.
    Send(E),
    /// An acknowledgement could not be recorded.
    Record(anyhow::Error),
}

struct InFlight {
    sequence: u64,
    keys: Vec<u64>,
    acked: Acked,
}

/// Runs until the batches end and everything is acknowledged. `send` gets the batch's offset and body and returns the
/// number of the transaction; `record` is called once per batch, in order.
pub(crate) async fn run<F, E>(
    mut batches: Receiver<Result<Batch, CutError>>,
    window: usize,
    send: impl Fn(u64, Bytes) -> F,
    mut record: impl FnMut(Acked) -> anyhow::Result<()>,
) -> Result<(), Failure<E>>
where
    F: Future<Output = Result<u64, E>>,
{
    let mut flying = FuturesUnordered::new();
    let mut keys: HashSet<u64> = HashSet::new();
    let mut waiting: BTreeMap<u64, Acked> = BTreeMap::new();
    let (mut launched, mut recorded) = (0, 0);
    let (mut held, mut ended, mut failure): (Option<Batch>, bool, Option<Failure<E>>) = (None, false, None);
    loop {
        let room = flying.len() < window && launched < recorded + AHEAD_MAX && failure.is_none();
        if let Some(batch) = held.take_if(|b: &mut Batch| room && b.keys.iter().all(|k| !keys.contains(k))) {
            keys.extend(&batch.keys);
            flying.push(fly(&send, launched, batch));
            launched += 1;
            continue;
        }
        tokio::select! {
            biased;
            Some((flight, outcome)) = flying.next(), if !flying.is_empty() => {
                let InFlight { sequence, keys: flown, acked } = flight;
                flown.iter().for_each(|k| { keys.remove(k); });
                match outcome {
                    Ok(transaction) => drop(waiting.insert(sequence, Acked { transaction, ..acked })),
                    Err(e) => drop(failure.get_or_insert(Failure::Send(e))),
                }
            }
            cut = batches.recv(), if held.is_none() && !ended && failure.is_none() => match cut {
                Some(Ok(batch)) => held = Some(batch),
                Some(Err(e)) => failure = Some(Failure::Cut(e)),
                None => ended = true,
            },
            else => break,
        }
        while let Some(acked) = waiting.remove(&recorded) {
            recorded += 1;
            if let Err(e) = record(acked) {
                failure.get_or_insert(Failure::Record(e));
            }
        }
    }
    failure.map_or(Ok(()), Err)
}

async fn fly<F, E>(send: impl Fn(u64, Bytes) -> F, sequence: u64, batch: Batch) -> (InFlight, Result<Option<u64>, E>)
where
    F: Future<Output = Result<u64, E>>,
{
    let acked = Acked { end: batch.end, rows: batch.rows, transaction: None, rejected: batch.rejected };
    let flight = InFlight { sequence, keys: batch.keys, acked };
    if batch.rows == 0 {
        return (flight, Ok(None));
    }
    let outcome = send(batch.start.offset, batch.body).await;
    (flight, outcome.map(Some))
}

#[cfg(test)]
mod tests;
