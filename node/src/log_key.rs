//! Which log key signs, and how one is handed over to the next.
//!
//! A rotation, in the order in which it becomes durable:
//!
//! 1. The new key's file, `keys/log.next`.
//! 2. The block with the `cosigners` entry that names it, and the system key [`KEY`], whose value is its verifier key.
//! 3. The *hand-over checkpoint*, the first to cover that entry: both keys sign it. It is kept as the value of
//!    [`checkpoint_key`], since the receipt of the entry must stand on it for ever.
//! 4. `node.json` names the new key, the old one's file is destroyed, the new one's takes its name.
//!
//! The hand-over checkpoint is published after 4; every later one carries the new key's signature alone. So after a crash
//! the chain log says where a rotation stands: without 2 the new key is discarded, without 3 both keys are there and sign
//! again, after 3 the old one is not needed any more.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;

use crate::command::{Key, Operation, Requirement, Write};
use crate::disk::Disk;
use crate::entry::Entry;
use crate::error::Error;
use crate::identity::{self, Identity, Keys, Place, SEED_BYTES};
use crate::ledger::{Ledger, key_hash};
use crate::machine::damaged_entry;
use crate::node::Config;
use crate::policy::Policy;
use crate::seal::Seal;
use crate::store::entries;
use crate::view::{Found, LogInfo};

/// The system key that is put in the block of every change of the log key, by the entry that follows the change.
pub(crate) const KEY: &str = "~log-key";
const MEDIA_TYPE: &str = "text/plain; charset=utf-8";

fn key() -> Key {
    Key::stored(KEY.to_owned())
}

/// The system key whose value is the hand-over checkpoint of the change at `index`.
fn checkpoint_key(index: u64) -> Key {
    Key::stored(format!("{KEY}/checkpoints/{index}"))
}

fn put(author: &str, key: Key, value: String, requirements: Vec<Requirement>) -> Write {
    let operation = Operation::Put { key, value: Bytes::from(value), media_type: MEDIA_TYPE.to_owned(), blob: false };
    Write { author: author.to_owned(), requirements, operations: vec![operation], idempotency: None }
}

/// The write that follows the `cosigners` entry in its block.
pub(crate) fn row(author: &str, vkey: &str) -> Write {
    put(author, key(), vkey.to_owned(), Vec::new())
}

/// The write that keeps a hand-over checkpoint. Refused when one is kept already.
pub(crate) fn keep(author: &str, index: u64, checkpoint: &str) -> Write {
    let key = checkpoint_key(index);
    let requirements = vec![Requirement { key: key.clone(), revision: None }];
    put(author, key, checkpoint.to_owned(), requirements)
}

/// The newest change of the log key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    /// Index of its `cosigners` entry.
    pub index: u64,
    /// Verifier key of the log from there on.
    pub log: String,
}

impl Ledger {
    /// The newest change of the log key as of the state map; `None`: the first key is in force. Does not take the chain's
    /// lock, so that who holds it sees both as of one block.
    pub(crate) fn log_change(&self) -> Result<Option<Change>, Error> {
        let Some(slot) = self.map.get(&key_hash(&key()))? else { return Ok(None) };
        let index = slot.revision.saturating_sub(1);
        let line = entries::one(&self.rows, index)?.line;
        match Entry::parse(&line).map_err(|e| damaged_entry(index, &e))? {
            Entry::Cosigners(change) => Ok(Some(Change { index, log: change.log.into_owned() })),
            _ => Err(damaged_entry(index, &"the entry after it puts a new log key, and it is no change of keys")),
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

    /// Indexes of the changes of the log key, oldest first, of which at most `limit` newest.
    pub(crate) fn log_changes(&self, limit: usize) -> Result<Vec<u64>, Error> {
        let page = self.history(&key(), None, limit)?;
        Ok(page.versions.iter().rev().map(|version| version.revision.saturating_sub(1)).collect())
    }
}

/// What is signed, and what follows from it.
pub(crate) struct Signatures {
    pub lines: Vec<String>,
    /// Index of the change that this checkpoint hands over for.
    pub hands_over: Option<u64>,
}

/// The keys of this node's signatures, and their files.
pub(crate) struct KeyRing {
    disk: Arc<dyn Disk>,
    data: PathBuf,
    seal: Seal,
    identity: Identity,
    /// Locked for a signature or an exchange, never over an await.
    keys: RwLock<Keys>,
}

impl KeyRing {
    pub(crate) fn new(disk: Arc<dyn Disk>, config: &Config, identity: Identity, keys: Keys) -> Self {
        let (data, seal) = (config.data.clone(), config.seal.clone());
        Self { disk, data, seal, identity, keys: RwLock::new(keys) }
    }

    /// Origin of the log.
    pub(crate) fn origin(&self) -> &str {
        &self.identity.origin
    }

    /// Keys and policy as a verifier needs them. A new log key shows here once it alone signs.
    pub(crate) fn log_info(&self) -> LogInfo {
        self.identity.log_info(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Brings the files to what the chain log says, once it is replayed.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when the key that the chain log names is not here.
    pub(crate) fn settle(&self, ledger: &Ledger) -> Result<(), Error> {
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
            Some(change) if change.log != log => Err(Error::Corrupt(format!(
                "the chain log names the log key {} (entry {}), but keys/log holds {log}: restore the directory keys and \
                 node.json from a backup made after that entry",
                change.log, change.index
            ))),
            _ if next.is_some() => {
                // Its entry never came.
                keys.next = None;
                identity::discard_next(self.disk.as_ref(), &self.data)
            }
            // The last step of a hand-over was cut short.
            _ if identity::has_next(self.disk.as_ref(), &self.data)? => {
                identity::take_next(self.disk.as_ref(), &self.data, keys.log.verifier_key())
            }
            _ => Ok(()),
        }
    }

    /// Signs the text of a checkpoint, as of which `change` is the newest change of the log key.
    pub(crate) fn sign(&self, text: &str, time_s: u64, change: Option<&Change>) -> Result<Signatures, Error> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let mut lines = vec![keys.log.sign(text, time_s)];
        let mut hands_over = None;
        if let Some(change) = change.filter(|change| change.log != keys.log.verifier_key().to_string()) {
            let next = keys.next.as_ref().filter(|next| next.verifier_key().to_string() == change.log);
            let next = next.ok_or_else(|| {
                Error::Unavailable(format!("entry {} names a log key that this node does not hold", change.index))
            })?;
            lines.push(next.sign(text, time_s));
            hands_over = Some(change.index);
        }
        lines.push(keys.cosigner.sign(text, time_s));
        Ok(Signatures { lines, hands_over })
    }

    /// Makes the next log key, durably; gives its verifier key and the policy that goes with it.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while the rotation before is not handed over.
    pub(crate) fn make_next(&self, seed: &[u8; SEED_BYTES]) -> Result<LogInfo, Error> {
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        if keys.next.is_some() {
            return Err(Error::Unavailable(
                "a rotation of the log key waits for its hand-over checkpoint; try again when there is one".into(),
            ));
        }
        let place = Place { disk: self.disk.as_ref(), data: &self.data, seal: &self.seal };
        let next = identity::make_next(place, self.origin(), seed)?;
        let mut info = self.identity.log_info(&keys);
        let witnesses = [(self.identity.name.clone(), keys.cosigner.verifier_key().clone())];
        info.vkey = next.verifier_key().to_string();
        info.policy = Policy::of_cluster(next.verifier_key(), &witnesses);
        keys.next = Some(next);
        Ok(info)
    }

    /// Gives up a key whose entry was refused.
    pub(crate) fn discard_next(&self) -> Result<(), Error> {
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        keys.next = None;
        identity::discard_next(self.disk.as_ref(), &self.data)
    }

    /// Ends a hand-over whose checkpoint is kept: the old key is destroyed, the new one alone signs.
    pub(crate) fn take_next(&self) -> Result<(), Error> {
        self.exchange(&mut self.keys.write().unwrap_or_else(PoisonError::into_inner))
    }

    fn exchange(&self, keys: &mut Keys) -> Result<(), Error> {
        let Some(next) = keys.next.take() else { return Ok(()) };
        let taken = identity::take_next(self.disk.as_ref(), &self.data, next.verifier_key());
        // Whatever became of the files, the old key must not sign again: its last checkpoint is made.
        keys.log = next;
        taken
    }
}
