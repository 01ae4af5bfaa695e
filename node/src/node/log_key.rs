//! Checkpoints, the keys of the log, and the rotation of the one that signs them.

use std::sync::Arc;

use super::{Inner, Node};
use crate::command::{Committed, Outcome};
use crate::cosign::Notary;
use crate::error::Error;
use crate::identity::SEED_BYTES;
use crate::view::LogInfo;
use crate::{log_key, rt};

/// Most changes of the log key that are listed.
const CHANGES_MAX: usize = 1000;

impl Node {
    /// Keys and policy of the log.
    #[must_use]
    pub fn log_info(&self) -> LogInfo {
        self.inner.notary.keys().log_info()
    }

    /// Indexes of the entries that changed the log key, oldest first; the newest 1,000 of them. Their receipts, in this
    /// order, lead from the first key to the one in force.
    ///
    /// # Errors
    /// [`Error::Corrupt`].
    pub async fn log_key_changes(&self) -> Result<Vec<u64>, Error> {
        self.aside(|inner| inner.ledger.log_changes(CHANGES_MAX)).await
    }

    /// Replaces the log key by a new one. Returns once the hand-over checkpoint, which both sign, is published and the old
    /// key is destroyed; gives the entry that says so and the new keys of the log. Goes on to its end if the caller does
    /// not wait.
    ///
    /// # Errors
    /// As [`Node::write`]; [`Error::Unavailable`] while the rotation before is not handed over, or when no checkpoint is
    /// made in time: then the entry is there, and the next checkpoint ends the rotation.
    pub async fn rotate_log_key(&self, author: &str) -> Result<(Committed, LogInfo), Error> {
        let (node, author) = (self.clone(), author.to_owned());
        let rotation = rt::spawn(async move { node.rotate(&author).await });
        rotation.await.unwrap_or(Err(Error::Unknown))
    }

    async fn rotate(&self, author: &str) -> Result<(Committed, LogInfo), Error> {
        let _turn = self.inner.rotating.lock().await;
        self.inner.no_peers("a new log key is not handed to peers yet, so it cannot be rotated")?;
        self.room()?;
        match self.inner.change_log_key(author).await? {
            Outcome::Committed(committed) => {
                self.inner.notary.covering(committed.transaction, true).await?;
                Ok((committed, self.log_info()))
            }
            // Nothing is required of it.
            Outcome::Refused(_) => Err(Error::Unknown),
        }
    }
}

impl Inner {
    /// One checkpoint, if there is a new block: signed, the log key exchanged if it is being rotated, published.
    pub(super) async fn checkpoint_round(&self) -> Result<(), Error> {
        if !self.with_notary(Notary::keeps_promise).await.inspect_err(|error| self.fail(error.clone()))? {
            return Ok(());
        }
        let Some((signed, hands_over)) = self.with_notary(Notary::sign_newest).await? else { return Ok(()) };
        if let Some(index) = hands_over
            && let Err(error) = self.hand_over(index, &signed.text).await
        {
            self.notary.discard(&signed)?;
            return Err(error);
        }
        self.with_notary(move |notary| notary.publish(signed)).await
    }

    /// Keeps the hand-over checkpoint in the ledger, then destroys the log key before the change at `index`.
    async fn hand_over(&self, index: u64, checkpoint: &str) -> Result<(), Error> {
        // A refusal: one is kept already, and signed by the same two keys.
        let (Outcome::Committed(_) | Outcome::Refused(_)) =
            self.proposer.write(log_key::keep(&self.identity.name, index, checkpoint)).await?;
        self.with_notary(|notary| notary.keys().take_next()).await
    }

    /// Proposes that the log key change to a new one, by `author`; gives the outcome of the entry.
    async fn change_log_key(&self, author: &str) -> Result<Outcome, Error> {
        let mut seed = [0; SEED_BYTES];
        rt::fill_random(&mut seed);
        let to = self.with_notary(move |notary| notary.keys().make_next(&seed)).await?;
        let proposed = self.proposer.change_log_key(author, to).await;
        // After any other error the entry may be there: the next start looks.
        if let Err(Error::NotLeader { .. }) = &proposed {
            self.with_notary(|notary| notary.keys().discard_next()).await?;
        }
        proposed
    }

    /// Work of the notary, which waits for the disk.
    async fn with_notary<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Notary) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let notary = Arc::clone(&self.notary);
        let done = rt::blocking(move || work(&notary)).await;
        done.unwrap_or_else(|e| Err(Error::Unavailable(format!("a checkpoint round died: {e}"))))
    }
}
