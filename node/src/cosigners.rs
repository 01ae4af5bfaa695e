//! Who cosigns, and what a checkpoint must carry: the log keys and the policy in force as of its size.
//!
//! The cosigning key of each member lies under the system key `~cosigners/ID` from before it gets anything of the cluster.
//! The policy names those of the voters, and changes by an entry of its own ([`crate::log_key`] says how such a change is
//! handed over). Until it is, a checkpoint must meet the policy before it and the one after.

use bytes::Bytes;

use crate::command::{Key, Operation, Requirement, Write};
use crate::entry::Entry;
use crate::error::Error;
use crate::ledger::{Ledger, key_hash};
use crate::log_key;
use crate::machine::{damaged_entry, previous_of};
use crate::note::{Note, Scheme, VerifierKey};
use crate::policy::{POLICY_ITEMS_MAX, Policy};
use crate::store::entries;
use crate::view::{Found, LogInfo};

const MEDIA_TYPE: &str = "text/plain; charset=utf-8";
/// The log's first keys stand among so many first entries.
const FIRST_ENTRIES: usize = 16;

/// The system key whose value is the cosigning key of a member.
pub(crate) fn row_key(node: u64) -> Key {
    Key::stored(format!("~cosigners/{node}"))
}

/// Puts the cosigning key of a member.
pub(crate) fn put_row(node: u64, key: &VerifierKey) -> Operation {
    let value = Bytes::from(key.to_string());
    Operation::Put { key: row_key(node), value, media_type: MEDIA_TYPE.to_owned(), blob: false }
}

/// The write that keeps the cosigning key of a member. Refused when the member has one.
pub(crate) fn enrol(author: &str, node: u64, key: &VerifierKey) -> Write {
    let requirements = vec![Requirement { key: row_key(node), revision: None }];
    Write { author: author.to_owned(), requirements, operations: vec![put_row(node, key)], idempotency: None }
}

/// Name of a cosigner in the policy: that of its node.
pub(crate) fn name_of<'a>(origin: &str, key: &'a VerifierKey) -> &'a str {
    key.name().strip_prefix(origin).and_then(|rest| rest.strip_prefix('/')).unwrap_or(key.name())
}

/// The policy of a log with these cosigners.
///
/// # Errors
/// [`Error::Invalid`] when their names or keys cannot stand in one policy.
pub(crate) fn policy(log: &VerifierKey, cosigners: &[VerifierKey]) -> Result<String, Error> {
    let named: Vec<_> = cosigners.iter().map(|key| (name_of(log.name(), key).to_owned(), key.clone())).collect();
    let text = Policy::of_cluster(log, &named);
    Policy::parse(text.as_bytes()).map_err(|e| Error::Invalid(format!("these nodes cannot cosign together: {e}")))?;
    Ok(text)
}

/// Reads a cosigning key of a node of this log.
///
/// # Errors
/// [`Error::Invalid`].
pub(crate) fn parse(origin: &str, text: &str) -> Result<VerifierKey, Error> {
    let key = VerifierKey::parse(text).map_err(|e| Error::Invalid(format!("the cosigning key {text:?}: {e}")))?;
    if key.scheme() != Scheme::Cosignature || name_of(origin, &key) == key.name() {
        return Err(Error::Invalid(format!("{text:?} is not the cosigning key of a node of {origin}")));
    }
    Ok(key)
}

/// What a checkpoint must carry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InForce {
    /// Index of the change that brought it; `None`: the log began so.
    pub change: Option<u64>,
    pub log: VerifierKey,
    pub cosigners: Vec<VerifierKey>,
    pub policy: Policy,
    policy_text: String,
    /// Whether the change waits for its hand-over checkpoint.
    waits: bool,
    /// What was in force before the change, while that is not handed over. Nothing after a recovery: nobody can hand over then.
    pub before: Option<Box<InForce>>,
}

impl InForce {
    fn parse(index: u64, line: &[u8]) -> Result<Option<Self>, Error> {
        let damaged = |e: &dyn std::fmt::Display| damaged_entry(index, e);
        let entry = Entry::parse(line).map_err(|e| damaged(&e))?;
        let Some(change) = entry.keys() else { return Ok(None) };
        let cosigners = change.cosigners.iter().map(|key| VerifierKey::parse(key));
        Ok(Some(Self {
            change: Some(index),
            log: VerifierKey::parse(&change.log).map_err(|e| damaged(&e))?,
            cosigners: cosigners.collect::<Result<_, _>>().map_err(|e| damaged(&e))?,
            policy: Policy::parse(change.policy.as_bytes()).map_err(|e| damaged(&e))?,
            policy_text: change.policy.clone().into_owned(),
            waits: false,
            before: None,
        }))
    }

    /// The change that a checkpoint as of here hands over for. After a recovery that is the first one of the new keys.
    pub(crate) fn hands_over(&self) -> Option<u64> {
        self.change.filter(|_| self.waits)
    }

    /// Itself and, while it is not handed over, what was before.
    pub(crate) fn each(&self) -> impl Iterator<Item = &Self> {
        std::iter::once(self).chain(self.before.as_deref())
    }

    /// The cosigning keys that count for it.
    pub(crate) fn witnesses(&self) -> impl Iterator<Item = &VerifierKey> {
        self.each().flat_map(|keys| &keys.cosigners)
    }

    /// Whether the log keys have signed a note.
    pub(crate) fn is_signed(&self, note: &Note<'_>) -> bool {
        self.each().all(|keys| matches!(note.verify(&keys.log), Ok(Some(_))))
    }

    /// Whether a note has the cosignatures that are asked for.
    pub(crate) fn is_cosigned(&self, note: &Note<'_>) -> bool {
        let cosigned = |key: &VerifierKey| matches!(note.verify(key), Ok(Some(_)));
        self.each().all(|keys| keys.policy.is_met(cosigned))
    }

    /// Whether these nodes' word would meet the policy.
    pub(crate) fn is_met_by(&self, nodes: &[VerifierKey]) -> bool {
        self.each().all(|keys| keys.policy.is_met(|key| nodes.contains(key)))
    }

    /// For verifiers: keys and policy that are handed over.
    pub(crate) fn info(&self) -> LogInfo {
        let settled = self.before.as_deref().unwrap_or(self);
        LogInfo {
            origin: settled.log.name().to_owned(),
            vkey: settled.log.to_string(),
            cosigners: settled.cosigners.iter().map(ToString::to_string).collect(),
            policy: settled.policy_text.clone(),
        }
    }
}

impl Ledger {
    /// What a checkpoint of `size` entries, a block's end, must carry; `None`: the log does not name its first keys yet.
    /// Takes the chain's lock only for a size before the newest change.
    pub(crate) fn in_force(&self, size: u64) -> Result<Option<InForce>, Error> {
        let Some(slot) = self.map.get(&key_hash(&log_key::key()))? else { return self.first_keys() };
        let revision = if slot.revision < size {
            slot.revision
        } else {
            let page = self.history(&log_key::key(), Some(size), 1)?;
            let Some(version) = page.versions.first() else { return self.first_keys() };
            version.revision
        };
        let mut keys = self.keys_changed(revision)?;
        if !self.is_handed_over(revision, size)? {
            let before = self.keys_before(revision, size)?;
            keys.waits = true;
            keys.before = before.filter(|before| before.log.name() == keys.log.name()).map(Box::new);
        }
        Ok(Some(keys))
    }

    /// Whether the hand-over checkpoint of the change of the revision `row` of [`log_key::KEY`] is kept in a log of `size` entries.
    fn is_handed_over(&self, row: u64, size: u64) -> Result<bool, Error> {
        let kept = self.map.get(&key_hash(&log_key::checkpoint_key(row.saturating_sub(1))))?;
        Ok(kept.is_some_and(|kept| kept.revision < size))
    }

    /// The keys that were handed over last before the change of the revision `row` of [`log_key::KEY`]: one that was replaced before
    /// its hand-over never counted alone.
    fn keys_before(&self, mut row: u64, size: u64) -> Result<Option<InForce>, Error> {
        loop {
            let line = entries::one(&self.rows, row)?.line;
            match previous_of(&line, log_key::KEY).map_err(|e| damaged_entry(row, &e))? {
                None => return self.first_keys(),
                Some(before) if self.is_handed_over(before, size)? => return self.keys_changed(before).map(Some),
                Some(before) => row = before,
            }
        }
    }

    /// The keys of the change that the revision `row` of [`log_key::KEY`] follows.
    fn keys_changed(&self, row: u64) -> Result<InForce, Error> {
        let index = row.saturating_sub(1);
        let found = InForce::parse(index, &entries::one(&self.rows, index)?.line)?;
        found.ok_or_else(|| damaged_entry(index, &"the entry after it says that keys change here, and they do not"))
    }

    /// The keys that the log began with.
    fn first_keys(&self) -> Result<Option<InForce>, Error> {
        for (index, stored) in (0..).zip(entries::from(&self.rows, 0, FIRST_ENTRIES)?) {
            if let Some(first) = InForce::parse(index, &stored.line)? {
                return Ok(Some(InForce { change: None, ..first }));
            }
        }
        Ok(None)
    }

    /// The cosigning key of a member, if it is known.
    pub(crate) fn cosigner(&self, node: u64) -> Result<Option<VerifierKey>, Error> {
        match self.get(&row_key(node), None)?.found {
            Found::Value(value) => {
                let text = String::from_utf8_lossy(&value.content);
                VerifierKey::parse(&text).map(Some).map_err(|e| damaged_entry(value.revision, &e))
            }
            Found::Absent | Found::Erased { .. } => Ok(None),
        }
    }

    /// The revision that a key has now.
    pub(crate) fn revision_of(&self, key: &Key) -> Result<Option<u64>, Error> {
        Ok(self.map.get(&key_hash(key))?.filter(|slot| slot.exists()).map(|slot| slot.revision))
    }
}

/// Refuses a cosigning key that cannot stand beside those of the other members.
pub(crate) fn check_beside(log: &VerifierKey, others: &[VerifierKey], key: &VerifierKey) -> Result<(), Error> {
    if others.len() >= POLICY_ITEMS_MAX {
        return Err(Error::Invalid(format!("a cluster has at most {POLICY_ITEMS_MAX} cosigners")));
    }
    let all: Vec<_> = others.iter().chain([key]).cloned().collect();
    policy(log, &all).map(drop)
}
