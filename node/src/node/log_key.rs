//! Checkpoints, the keys of the log, and the rotation of the one that signs them.

use std::sync::Arc;
use std::time::Duration;

use super::{Inner, Node};
use crate::command::{Committed, Outcome};
use crate::cosign::Notary;
use crate::error::Error;
use crate::identity::SEED_BYTES;
use crate::log_key::NewKeys;
use crate::raft::{Question, Reply, Secret};
use crate::rt::Doing;
use crate::view::LogInfo;
use crate::{cosigners, log_key, rt};

/// Most changes of the log key that are listed.
const CHANGES_MAX: usize = 1000;
/// How long a voter may take to keep a log key, or to give one.
const KEEP_WAIT: Duration = Duration::from_secs(2);

impl Node {
    /// Keys and policy of the log.
    #[must_use]
    pub fn log_info(&self) -> LogInfo {
        self.inner.notary.log_info()
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
    /// As [`Node::write`]; [`Error::NotLeader`]; [`Error::Unavailable`] while the rotation before is not handed over, when no
    /// majority of the voters takes the new key, or when no checkpoint is made in time: then the entry is there, and the next
    /// checkpoint ends the rotation.
    pub fn rotate_log_key<'a>(&'a self, author: &'a str) -> Doing<'a, Result<(Committed, LogInfo), Error>> {
        Box::pin(async move {
            let (node, author) = (self.clone(), author.to_owned());
            let rotation = rt::spawn(async move { node.rotate(&author).await });
            rotation.await.unwrap_or(Err(Error::Unknown))
        })
    }

    async fn rotate(&self, author: &str) -> Result<(Committed, LogInfo), Error> {
        let _turn = self.inner.rotating.lock().await;
        self.inner.consensus.must_lead()?;
        self.room()?;
        // Whatever leaders before this one proposed is applied then, or never will be.
        self.barrier().await?;
        match self.inner.change_log_key(author).await? {
            Outcome::Committed(committed) => {
                self.inner.notary.covering(committed.transaction, true).await?;
                Ok((committed, self.log_info()))
            }
            Outcome::Refused(_) => Err(Error::Unavailable("the keys of the log were just changed; try again".into())),
        }
    }
}

impl Inner {
    /// Keeps the hand-over checkpoint in the ledger, then destroys the log key before the change at `index`, if that
    /// brought another, `log`.
    pub(super) async fn hand_over(&self, index: u64, log: &str, checkpoint: &str) -> Result<(), Error> {
        let kept = self.proposer.write(log_key::keep(&self.identity.name, index, checkpoint)).await?;
        // Refused: one is kept already, and signed by the same two keys, or another change came instead.
        if matches!(kept, Outcome::Refused(_)) && self.ledger.handover(index)?.is_none() {
            return Err(Error::Unavailable(format!("another change took the place of the one at entry {index}")));
        }
        let log = log.to_owned();
        self.with_notary(move |notary| notary.keys().take_next(&log)).await
    }

    /// Proposes that the log key change to a new one, by `author`; gives the outcome of the entry.
    async fn change_log_key(self: &Arc<Self>, author: &str) -> Result<Outcome, Error> {
        let requirements = self.ledger.requirements_of_change()?;
        let now = self.notary.log_info();
        let mut seed = [0; SEED_BYTES];
        rt::fill_random(&mut seed);
        let log = self.with_notary(move |notary| notary.keys().keep_next(&seed)).await?;
        if let Err(error) = self.hand_to_voters(seed).await {
            self.with_notary(|notary| notary.keys().discard_next()).await?;
            return Err(error);
        }
        let cosigners = now.cosigners.iter().map(|key| cosigners::parse(&now.origin, key));
        let policy = cosigners::policy(&log, &cosigners.collect::<Result<Vec<_>, _>>()?)?;
        let info = LogInfo { vkey: log.to_string(), policy, ..now };
        let to = NewKeys { info, requirements, operations: Vec::new() };
        let proposed = self.proposer.change_keys(author, to).await;
        // After any other error the entry may be there: the next start looks.
        if let Err(Error::NotLeader { .. }) | Ok(Outcome::Refused(_)) = &proposed {
            self.with_notary(|notary| notary.keys().discard_next()).await?;
        }
        proposed
    }

    /// Has a majority of the voters keep the next log key.
    async fn hand_to_voters(self: &Arc<Self>, seed: [u8; SEED_BYTES]) -> Result<(), Error> {
        let voters = self.consensus.members().into_iter().filter(|member| member.voter);
        let others: Vec<u64> = voters.map(|member| member.node).filter(|node| *node != self.identity.node).collect();
        let asked = others.iter().map(|peer| {
            let (node, peer) = (Arc::clone(self), *peer);
            let question = Question::KeepLogKey { secret: Secret(seed) };
            rt::spawn(async move { node.consensus.ask(peer, question, KEEP_WAIT).await })
        });
        let asked: Vec<_> = asked.collect();
        let (mut have, mut last) = (1, None);
        for reply in asked {
            match reply.await {
                Ok(Ok(Reply::LogKeyKept)) => have += 1,
                Ok(Err(error)) => last = Some(error.to_string()),
                _ => {}
            }
        }
        let needed = others.len().div_ceil(2) + 1;
        if have >= needed {
            return Ok(());
        }
        let last = last.unwrap_or_default();
        Err(Error::Unavailable(format!(
            "{have} voters have the new log key, {needed} must before it is named; nothing was changed ({last})"
        )))
    }

    /// Gets the log key that the chain log names from another voter, if this one lacks it; ends a hand-over that is over.
    pub(super) async fn hold_log_key(&self) -> Result<(), Error> {
        let ledger = Arc::clone(&self.ledger);
        let Some(vkey) = self.with_notary(move |notary| notary.keys().follow(&ledger)).await? else { return Ok(()) };
        let voters: Vec<u64> = self.consensus.members().iter().filter(|m| m.voter).map(|m| m.node).collect();
        if !voters.contains(&self.identity.node) {
            return Ok(());
        }
        for peer in voters.into_iter().filter(|voter| *voter != self.identity.node) {
            let asked = self.consensus.ask(peer, Question::LogKey { vkey: vkey.clone() }, KEEP_WAIT).await;
            let Ok(Reply::LogKey(Secret(seed))) = asked else { continue };
            let (ledger, vkey) = (Arc::clone(&self.ledger), vkey.clone());
            let kept = self.with_notary(move |notary| {
                let kept = notary.keys().keep_next(&seed)?;
                if kept.to_string() != vkey {
                    notary.keys().discard_next()?;
                    return Err(Error::Invalid(format!("node {peer} sent another log key than {vkey}")));
                }
                notary.keys().follow(&ledger).map(drop)
            });
            return kept.await;
        }
        tracing::warn!(vkey, "no voter that answers has the log key that the chain log names; it is asked for again");
        Ok(())
    }

    /// Keeps the next log key for the leader.
    pub(super) async fn keep_log_key(&self, from: u64, seed: [u8; SEED_BYTES]) -> Result<Reply, Error> {
        if self.consensus.other_leader() != Some(from) {
            return Err(Error::Unavailable("only the leader hands out a new log key".into()));
        }
        let ledger = Arc::clone(&self.ledger);
        self.with_notary(move |notary| notary.keys().keep_from_leader(&ledger, &seed)).await?;
        Ok(Reply::LogKeyKept)
    }

    /// Gives another voter a log key that it lacks.
    pub(super) async fn give_log_key(&self, to: u64, vkey: String) -> Result<Reply, Error> {
        if !self.consensus.members().iter().any(|member| member.voter && member.node == to) {
            return Err(Error::Unavailable("only voters hold the log key".into()));
        }
        let secret = self.with_notary(move |notary| notary.keys().secret(&vkey)).await?;
        let secret = secret.ok_or_else(|| Error::Unavailable("this node does not hold that log key".into()))?;
        Ok(Reply::LogKey(Secret(secret)))
    }

    /// Work of the notary, which waits for the disk.
    pub(super) async fn with_notary<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Notary) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let notary = Arc::clone(&self.notary);
        let done = rt::blocking(move || work(&notary)).await;
        done.unwrap_or_else(|e| Err(Error::Unavailable(format!("a checkpoint round died: {e}"))))
    }
}
