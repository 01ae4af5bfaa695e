//! The keys of the log, and the rotation of the one that signs its checkpoints.

use std::sync::Arc;

use super::Node;
use crate::command::{Committed, Outcome};
use crate::error::Error;
use crate::rt;
use crate::view::LogInfo;

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
        self.room()?;
        let notary = &self.inner.notary;
        match Arc::clone(notary).change_log_key(author).await? {
            Outcome::Committed(committed) => {
                notary.covering(committed.transaction, true).await?;
                Ok((committed, self.log_info()))
            }
            // Nothing is required of it.
            Outcome::Refused(_) => Err(Error::Unknown),
        }
    }
}
