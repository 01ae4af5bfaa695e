//! Who cosigns: the cosigning key of each member lies under the system key `~cosigners/ID`, from before it gets anything of
//! the cluster.

use bytes::Bytes;

use crate::command::{Key, Operation, Requirement, Write};
use crate::error::Error;
use crate::ledger::Ledger;
use crate::machine::damaged_entry;
use crate::note::{Scheme, VerifierKey};
use crate::policy::{POLICY_ITEMS_MAX, Policy};
use crate::view::Found;

const MEDIA_TYPE: &str = "text/plain; charset=utf-8";

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

impl Ledger {
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
}

/// Refuses a cosigning key that cannot stand beside those of the other members.
pub(crate) fn check_beside(log: &VerifierKey, others: &[VerifierKey], key: &VerifierKey) -> Result<(), Error> {
    if others.len() >= POLICY_ITEMS_MAX {
        return Err(Error::Invalid(format!("a cluster has at most {POLICY_ITEMS_MAX} cosigners")));
    }
    let all: Vec<_> = others.iter().chain([key]).cloned().collect();
    policy(log, &all).map(drop)
}
