//! Which time a block is stamped with: the wall clock, unless it cannot be believed.
//!
//! A node without peers has nobody to compare its clock with. A clock that nothing synchronises and that stands more than a
//! day past what is known is *doubted*: until it is synchronised, or an administrator accepts it, blocks keep the time of the
//! last one, so that a broken clock cannot move the chain's time to where it could never come back from. What is known is
//! the last block's time, and in a running node also the time believed last plus what has passed since, so that a quiet
//! weekend is no jump. A clock that is behind needs no doubt: apply never lets time go back.
//!
//! Whether blocks are being stamped so is system state, the key [`HELD`]: its put and its delete are entries like any other,
//! so the log itself says which blocks lie between.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use crate::command::{Key, Operation, Requirement, Write};
use crate::rt;

/// An unsynchronised clock may stand so far past what is known, in milliseconds.
pub(crate) const JUMP_MAX_MS: u64 = 24 * 3600 * 1000;
/// Exists while blocks are stamped with the last sure time.
pub(crate) const HELD: &str = "~clock/held";
/// What an administrator accepted last.
pub(crate) const ACCEPTED: &str = "~clock/accepted";

/// What the clock says, and what is made of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Time {
    /// The time to go by, milliseconds since 1970: never before the last block's.
    pub sure_ms: u64,
    /// The wall clock, milliseconds since 1970.
    pub wall_ms: u64,
    /// Whether the machine says that the clock is synchronised.
    pub synchronised: bool,
    /// Whether the wall clock is not believed.
    pub doubted: bool,
}

/// The judgement over the wall clock.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    /// Locked for a look, never over an await.
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// The wall clock when it was last believed, and when that was.
    believed: Option<(u64, tokio::time::Instant)>,
    doubted: bool,
}

impl Clock {
    /// Looks at the clock; `last_ms` is the time of the newest block, 0 if there is none.
    pub(crate) fn read(&self, last_ms: u64) -> Time {
        let (wall_ms, synchronised) = (rt::now_ms(), rt::is_synchronised());
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let reckoned = seen.believed.map_or(0, |(wall_ms, at)| wall_ms.saturating_add(millis(at.elapsed())));
        let known = last_ms.max(reckoned);
        let doubted = !synchronised && known > 0 && wall_ms > known.saturating_add(JUMP_MAX_MS);
        if !doubted {
            seen.believed = Some((wall_ms, rt::instant()));
        }
        if std::mem::replace(&mut seen.doubted, doubted) != doubted {
            tell(doubted, wall_ms, known);
        }
        let sure_ms = if doubted { last_ms } else { wall_ms.max(last_ms) };
        Time { sure_ms, wall_ms, synchronised, doubted }
    }

    /// Believes the clock as it is: an administrator said so.
    pub(crate) fn accept(&self) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.believed = Some((rt::now_ms(), rt::instant()));
    }

    /// Forgets what was believed: the acceptance did not reach the log.
    pub(crate) fn forget(&self) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).believed = None;
    }
}

fn tell(doubted: bool, wall_ms: u64, known_ms: u64) {
    if doubted {
        tracing::warn!(
            wall_ms,
            known_ms,
            "the clock is not synchronised and more than a day ahead of the chain: blocks keep the last sure time until \
             it is synchronised, or accepted with `samovar clock accept`"
        );
    } else {
        tracing::info!(wall_ms, "the clock is believed again");
    }
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn reserved(key: &str) -> Key {
    Key::stored(key.to_owned())
}

/// Reads the key that is there while blocks keep the last sure time.
pub(crate) fn held_key() -> Key {
    reserved(HELD)
}

/// What goes into the first block stamped with the last sure time. Refused, and so no entry, when it is there already.
pub(crate) fn hold(author: &str, time: Time) -> Write {
    let operations = vec![put(HELD, time)];
    let requirements = vec![Requirement { key: held_key(), revision: None }];
    Write { author: author.to_owned(), requirements, operations, idempotency: None }
}

/// What goes into the first block after that. Refused when it is gone already.
pub(crate) fn resume(author: &str) -> Write {
    let operations = vec![Operation::Delete { key: held_key() }];
    Write { author: author.to_owned(), requirements: Vec::new(), operations, idempotency: None }
}

/// The administrator's word that the clock is right, an entry of its own.
pub(crate) fn acceptance(author: &str, time: Time) -> Write {
    Write {
        author: author.to_owned(),
        requirements: Vec::new(),
        operations: vec![put(ACCEPTED, time)],
        idempotency: None,
    }
}

fn put(key: &str, time: Time) -> Operation {
    let value = format!("{{\"clock_ms\":{},\"block_time_ms\":{}}}", time.wall_ms, time.sure_ms);
    Operation::Put { key: reserved(key), value: Bytes::from(value), media_type: "application/json".into(), blob: false }
}
