//! Which log key signs, and how one is handed over to the next; the same for a change of the cosigners, which is an entry of
//! the same kind, with the log key that was.
//!
//! A rotation, in the order in which it becomes durable:
//!
//! 1. The new key's file, `keys/log.next`.
//! 2. The block with the `cosigners` entry that names it, and the system key [`KEY`], whose value is its verifier key.
//! 3. The *hand-over checkpoint*, the first to cover that entry: both keys sign it, and it meets the policies before and
//!    after. It is kept as the value of [`checkpoint_key`], since the receipt of the entry must stand on it for ever. No
//!    other change is taken before it is there, but for one: when a cosigner that the change names is taken out of the
//!    cluster, being dead, a change without it takes its place ([`waits`]), and must meet the policy before the one that was
//!    never handed over.
//! 4. `node.json` names the new key, the old one's file is destroyed, the new one's takes its name.
//!
//! With peers, every voter keeps the key file of 1: the leader sends it to them over the transport, which is theirs alone, and
//! goes on once a majority has it; whoever was away asks another voter when the chain log names a key that it lacks. Each
//! does 4 for itself, once it has applied 3. No secret lies in the ledger, so no old copy of it, nor a member that is gone,
//! tells a key that came later.
//!
//! The hand-over checkpoint is published after 4; every later one carries the new key's signature alone. So after a crash
//! the chain log says where a rotation stands: without 2 the new key is discarded, without 3 both keys are there and sign
//! again, after 3 the old one is not needed any more.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;

use crate::command::{Key, Operation, Requirement, Write};
use crate::cosigners::InForce;
use crate::disk::Disk;
use crate::entry::Entry;
use crate::error::Error;
use crate::identity::{self, Identity, Keys, Place, SEED_BYTES};
use crate::ledger::{Ledger, key_hash};
use crate::machine::damaged_entry;
use crate::node::Config;
use crate::note::{Signer, VerifierKey};
use crate::seal::Seal;
use crate::store::entries;
use crate::view::{Found, LogInfo};

/// The system key that is put in the block of every change of the log key, by the entry that follows the change.
pub(crate) const KEY: &str = "~log-key";
const MEDIA_TYPE: &str = "text/plain; charset=utf-8";

/// The key [`KEY`].
pub(crate) fn key() -> Key {
    Key::stored(KEY.to_owned())
}

/// The system key whose value is the hand-over checkpoint of the change at `index`.
pub(crate) fn checkpoint_key(index: u64) -> Key {
    Key::stored(format!("{KEY}/checkpoints/{index}"))
}

fn put(author: &str, key: Key, value: String, requirements: Vec<Requirement>) -> Write {
    let operation = Operation::Put { key, value: Bytes::from(value), media_type: MEDIA_TYPE.to_owned(), blob: false };
    Write { author: author.to_owned(), requirements, operations: vec![operation], idempotency: None }
}

/// What keys are to be changed to, and how.
pub(crate) struct NewKeys {
    /// The keys, and the policy that goes with them.
    pub info: LogInfo,
    /// What must hold so that the change follows the one that it was made for.
    pub requirements: Vec<Requirement>,
    /// What else changes in the same transaction.
    pub operations: Vec<Operation>,
}

impl NewKeys {
    /// The write that follows the `cosigners` entry in its block.
    pub(crate) fn row(&mut self, author: &str) -> Write {
        let mut write = put(author, key(), self.info.vkey.clone(), std::mem::take(&mut self.requirements));
        write.operations.append(&mut self.operations);
        write
    }
}

/// The write that keeps a hand-over checkpoint. Refused when one is kept already, and when another change has taken the place
/// of the one at `index`.
pub(crate) fn keep(author: &str, index: u64, checkpoint: &str) -> Write {
    put(author, checkpoint_key(index), checkpoint.to_owned(), waits(index))
}

/// Holds while the change of keys at `index` is the newest and waits for its hand-over checkpoint.
pub(crate) fn waits(index: u64) -> Vec<Requirement> {
    let newest = Requirement { key: key(), revision: Some(index + 1) };
    vec![newest, Requirement { key: checkpoint_key(index), revision: None }]
}

/// The newest change of keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    /// Index of its `cosigners` entry.
    pub index: u64,
    /// Verifier key of the log from there on.
    pub log: String,
}

impl Ledger {
    /// What must hold for the next change of keys: that this one is the newest, and that it is handed over.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when it is not handed over yet.
    pub(crate) fn requirements_of_change(&self) -> Result<Vec<Requirement>, Error> {
        let newest = self.revision_of(&key())?;
        let mut requirements = vec![Requirement { key: key(), revision: newest }];
        if let Some(newest) = newest {
            let key = checkpoint_key(newest.saturating_sub(1));
            let revision = self.revision_of(&key)?;
            if revision.is_none() {
                return Err(Error::Unavailable(
                    "a change of keys waits for its hand-over checkpoint; try again when there is one".into(),
                ));
            }
            requirements.push(Requirement { key, revision });
        }
        Ok(requirements)
    }

    /// The newest change of keys as of the state map; `None`: the first key is in force. Does not take the chain's
    /// lock, so that who holds it sees both as of one block.
    pub(crate) fn log_change(&self) -> Result<Option<Change>, Error> {
        let Some(slot) = self.map.get(&key_hash(&key()))? else { return Ok(None) };
        let index = slot.revision.saturating_sub(1);
        let line = entries::one(&self.rows, index)?.line;
        match Entry::parse(&line).map_err(|e| damaged_entry(index, &e))?.keys() {
            Some(keys) => Ok(Some(Change { index, log: keys.log.clone().into_owned() })),
            None => Err(damaged_entry(index, &"the entry after it puts a new log key, and it is no change of keys")),
        }
    }

    /// The hand-over checkpoint of the change at `index`, when it is kept already.
    pub(crate) fn handover(&self, index: u64) -> Result<Option<String>, Error> {
        match self.get(&checkpoint_key(index), None)?.found {
            Found::Value(value) => {
                let text = String::from_utf8(value.content.to_vec());
                text.map(Some).map_err(|e| damaged_entry(value.revision, &e))
            }
            Found::Absent | Found::Erased { .. } => Ok(None),
        }
    }

    /// Indexes of the changes of the log key, oldest first, of which at most `limit` newest. One that was never handed over, since
    /// a recovery or another change came instead, is not followed and not among them.
    pub(crate) fn log_changes(&self, limit: usize) -> Result<Vec<u64>, Error> {
        let page = self.history(&key(), None, limit)?;
        let mut changes = Vec::with_capacity(page.versions.len());
        for (n, version) in page.versions.iter().enumerate() {
            let index = version.revision.saturating_sub(1);
            if n == 0 || self.revision_of(&checkpoint_key(index))?.is_some() {
                changes.push(index);
            }
        }
        changes.reverse();
        Ok(changes)
    }
}

/// The keys of this node's signatures, and their files.
pub(crate) struct KeyRing {
    disk: Arc<dyn Disk>,
    data: PathBuf,
    seal: Seal,
    identity: Identity,
    cosigner: VerifierKey,
    /// Locked for a signature or an exchange, never over an await.
    keys: RwLock<Keys>,
}

impl KeyRing {
    pub(crate) fn new(disk: Arc<dyn Disk>, config: &Config, identity: Identity, keys: Keys) -> Self {
        let (data, seal) = (config.data.clone(), config.seal.clone());
        let cosigner = keys.cosigner.verifier_key().clone();
        Self { disk, data, seal, identity, cosigner, keys: RwLock::new(keys) }
    }

    /// Origin of the log.
    pub(crate) fn origin(&self) -> &str {
        &self.identity.origin
    }

    /// Keys and policy of a log that this node alone has begun.
    pub(crate) fn log_info(&self) -> LogInfo {
        self.identity.log_info(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Brings the files to what the chain log says, once it is replayed. What a node that is not `alone` lacks then, it gets
    /// from its peers ([`KeyRing::follow`]).
    ///
    /// # Errors
    /// [`Error::Corrupt`] when the key that the chain log names is not here.
    pub(crate) fn settle(&self, ledger: &Ledger, alone: bool) -> Result<(), Error> {
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        let named = ledger.log_change()?;
        let log = keys.log.verifier_key().to_string();
        let next = keys.next.as_ref().map(|next| next.verifier_key().to_string());
        match named {
            Some(change) if Some(&change.log) == next.as_ref() => {
                if ledger.handover(change.index)?.is_some() {
                    self.exchange(&mut keys)?;
                }
                Ok(())
            }
            Some(change) if change.log != log && alone => Err(Error::Corrupt(format!(
                "the chain log names the log key {} (entry {}), but keys/log holds {log}: restore the directory keys and \
                 node.json from a backup made after that entry",
                change.log, change.index
            ))),
            _ if next.is_some() => {
                // Alone, its entry never came; with peers, it may still.
                if alone { self.discard(&mut keys) } else { Ok(()) }
            }
            // The last step of a hand-over was cut short.
            _ if identity::has_next(self.disk.as_ref(), &self.data)? => {
                identity::take_next(self.disk.as_ref(), &self.data, keys.log.verifier_key())
            }
            _ => Ok(()),
        }
    }

    /// Ends a hand-over that the chain log says is over. Gives the public half of the log key that it names, if this node
    /// does not hold it.
    pub(crate) fn follow(&self, ledger: &Ledger) -> Result<Option<String>, Error> {
        let Some(change) = ledger.log_change()? else { return Ok(None) };
        let is = |signer: &Signer| signer.verifier_key().to_string() == change.log;
        {
            let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
            if is(&keys.log) {
                return Ok(None);
            }
            if !keys.next.as_ref().is_some_and(is) {
                return Ok(Some(change.log));
            }
        }
        if ledger.revision_of(&checkpoint_key(change.index))?.is_some() {
            self.take_next(&change.log)?;
        }
        Ok(None)
    }

    /// The private half of a log key, if this node holds it.
    pub(crate) fn secret(&self, vkey: &str) -> Result<Option<[u8; SEED_BYTES]>, Error> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let is = |signer: &Signer| signer.verifier_key().to_string() == vkey;
        let follows = if is(&keys.log) {
            false
        } else if keys.next.as_ref().is_some_and(is) {
            true
        } else {
            return Ok(None);
        };
        identity::log_seed(self.place(), follows)
    }

    fn place(&self) -> Place<'_> {
        Place { disk: self.disk.as_ref(), data: &self.data, seal: &self.seal }
    }

    /// The public half of this node's cosigning key.
    pub(crate) fn cosigner(&self) -> &VerifierKey {
        &self.cosigner
    }

    /// Signs the text of a checkpoint with the log keys that it needs, and as a cosigner if this node is one; gives the lines.
    pub(crate) fn sign(&self, text: &str, time_s: u64, in_force: &InForce) -> Result<Vec<String>, Error> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let mut needed: Vec<&VerifierKey> = in_force.each().map(|keys| &keys.log).collect();
        // The key before signs first.
        needed.reverse();
        needed.dedup();
        let mut lines = Vec::new();
        for key in needed {
            let signer = [Some(&keys.log), keys.next.as_ref()].into_iter().flatten().find(|k| k.verifier_key() == key);
            let signer = signer.ok_or_else(|| {
                Error::Unavailable(format!("a checkpoint needs the log key {key}, which this node does not hold"))
            })?;
            lines.push(signer.sign(text, time_s));
        }
        if in_force.witnesses().any(|key| *key == self.cosigner) {
            lines.push(keys.cosigner.sign(text, time_s));
        }
        Ok(lines)
    }

    /// Cosigns the text of a checkpoint.
    pub(crate) fn cosign(&self, text: &str, time_s: u64) -> String {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).cosigner.sign(text, time_s)
    }

    /// The log key in force, and the one that is to follow, by their public halves.
    #[cfg(test)]
    pub(crate) fn held(&self) -> (String, Option<String>) {
        let keys = self.keys.read().unwrap();
        (keys.log.verifier_key().to_string(), keys.next.as_ref().map(|next| next.verifier_key().to_string()))
    }

    /// Signs what it is told to: for tests of who is shown it.
    #[cfg(test)]
    pub(crate) fn sign_blindly(&self, text: &str) -> String {
        crate::note::assemble(text, &[self.keys.read().unwrap().log.sign(text, 0)])
    }

    /// Keeps the next log key, durably, in the place of one that no entry names and none can name any more.
    pub(crate) fn keep_next(&self, seed: &[u8; SEED_BYTES]) -> Result<VerifierKey, Error> {
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        let next = identity::make_next(self.place(), self.origin(), seed)?;
        let made = next.verifier_key().clone();
        keys.next = Some(next);
        Ok(made)
    }

    /// Keeps the next log key as the leader sends it, unless the chain log names the one that is kept and waits for its
    /// hand-over.
    ///
    /// # Errors
    /// [`Error::Unavailable`] then.
    pub(crate) fn keep_from_leader(&self, ledger: &Ledger, seed: &[u8; SEED_BYTES]) -> Result<(), Error> {
        ledger.requirements_of_change()?;
        self.keep_next(seed).map(drop)
    }

    /// Gives up a key whose entry was refused.
    pub(crate) fn discard_next(&self) -> Result<(), Error> {
        self.discard(&mut self.keys.write().unwrap_or_else(PoisonError::into_inner))
    }

    fn discard(&self, keys: &mut Keys) -> Result<(), Error> {
        keys.next = None;
        identity::discard_next(self.disk.as_ref(), &self.data)
    }

    /// Ends a hand-over to the log key `log` whose checkpoint is kept: the old key is destroyed, the new one alone signs.
    pub(crate) fn take_next(&self, log: &str) -> Result<(), Error> {
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        let named = keys.next.as_ref().is_some_and(|next| next.verifier_key().to_string() == log);
        if named { self.exchange(&mut keys) } else { Ok(()) }
    }

    fn exchange(&self, keys: &mut Keys) -> Result<(), Error> {
        let Some(next) = keys.next.take() else { return Ok(()) };
        let taken = identity::take_next(self.disk.as_ref(), &self.data, next.verifier_key());
        // Whatever became of the files, the old key must not sign again: its last checkpoint is made.
        keys.log = next;
        taken
    }
}
