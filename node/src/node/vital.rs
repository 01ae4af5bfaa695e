//! What an operator and a watchdog ask of a node: is its clock right, does every part still move.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::Node;
use crate::clock;
use crate::command::Outcome;
use crate::error::Error;
use crate::rt;
use crate::view::{ClockStatus, Part};

impl Node {
    /// The time to go by, milliseconds since 1970: the wall clock, but never before the newest block, and that block's
    /// time while the clock is doubted. What expires is compared with this.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.inner.clock.read(self.inner.ledger.newest().time_ms).sure_ms
    }

    /// The wall clock, and what is made of it.
    #[must_use]
    pub fn clock(&self) -> ClockStatus {
        let inner = &self.inner;
        let clock::Time { sure_ms, wall_ms, synchronised, doubted } = inner.clock.read(inner.ledger.newest().time_ms);
        // An unreadable state map is told of by the next block.
        let held = inner.ledger.exists(&clock::held_key()).unwrap_or(false);
        ClockStatus { wall_ms, sure_ms, synchronised, doubted, held }
    }

    /// Accepts a doubted clock as it is, for good: the chain's time moves to it and never goes back. The act is an entry
    /// of its own, by `author`.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the clock is not doubted; else as [`Node::write`].
    pub async fn accept_clock(&self, author: &str) -> Result<Outcome, Error> {
        let inner = &self.inner;
        let time = inner.clock.read(inner.ledger.newest().time_ms);
        if !time.doubted {
            return Err(Error::Invalid("the clock is not doubted: there is nothing to accept".into()));
        }
        self.submit(clock::acceptance(author, time), true).await
    }

    /// Asks batcher, Raft core, apply and the raft log's thread for a sign of life and returns when all have given one.
    /// A lost quorum delays none of them and an idle node answers at once; an fsync that does not return does delay it.
    ///
    /// # Errors
    /// The part that has given no sign when `within` has passed, or has ended.
    pub async fn pulse(&self, within: Duration) -> Result<(), Part> {
        let asked = Mutex::new(Part::Batcher);
        let next = |part: Part| *asked.lock().unwrap_or_else(PoisonError::into_inner) = part;
        let ask = async {
            let (reply, answer) = oneshot::channel();
            // One ping waits at most; with one more waiting the batcher has not moved since the last.
            self.inner.pings.try_send(reply).map_err(|_| ())?;
            answer.await.map_err(|_| ())?;
            next(Part::Core);
            self.inner.consensus.pulse(next).await.map_err(|_| ())
        };
        match rt::timeout(within, ask).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(())) | Err(_) => Err(*asked.lock().unwrap_or_else(PoisonError::into_inner)),
        }
    }
}
