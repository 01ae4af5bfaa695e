//! Verification of proof files, offline: says what was checked, what was not, and what the file then proves.

use super::ProofFile;
use super::extra::{Erasure, Extra, Opening, Source};
use super::map::{MapLeaf, MapProof};
use crate::checkpoint::Checkpoint;
use crate::entry::{Block, Change, Entry, MapValue, commitment};
use crate::merkle::{leaf_hash, verify_inclusion};
use crate::note::{Note, Scheme, VerifierKey};
use crate::policy::{NODES, Policy};

/// Why a file proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(String);

impl From<&str> for Refused {
    fn from(reason: &str) -> Self {
        Self(reason.to_owned())
    }
}

impl From<String> for Refused {
    fn from(reason: String) -> Self {
        Self(reason)
    }
}

/// What a verifier trusts, and what it was asked.
#[derive(Debug, Clone)]
pub struct Verifier {
    /// Verifier key of the log.
    pub log: VerifierKey,
    /// Whose cosignatures must be there. `None`: only the log's signature is checked.
    pub policy: Option<Policy>,
    /// The key that the file must be about.
    pub expect_key: Option<String>,
}

/// A file that holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// The head of the log that it stands on.
    pub checkpoint: Checkpoint,
    /// Witnesses of the policy that cosigned it.
    pub cosigned: Vec<Cosigned>,
    /// What was checked, in sentences for people.
    pub checked: Vec<String>,
    /// What was not, and what the file does not say.
    pub unchecked: Vec<String>,
    /// What it proves.
    pub contents: Contents,
}

/// A cosignature that verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cosigned {
    /// Name of the witness in the policy.
    pub name: String,
    /// When, by its own clock, seconds since 1970.
    pub time_s: u64,
}

/// What a file proves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Contents {
    /// An entry is in the log.
    Receipt(Receipt),
    /// This is what the newest block of the checkpoint says of a key.
    Latest(Latest),
}

/// An entry of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// Its index.
    pub index: u64,
    /// The entry: one line of JSON.
    pub line: String,
    /// For each put, in order, the key and its value.
    pub values: Vec<(String, Value)>,
}

/// A value that an entry committed to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// The value.
    Known(Vec<u8>),
    /// It was destroyed.
    Erased {
        /// Index of the entry that did.
        erased_by: u64,
    },
    /// The file does not carry it.
    Withheld,
}

/// The state of a key as of a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Latest {
    /// The key.
    pub key: String,
    /// The block.
    pub block: Block,
    /// What the state map holds under the key.
    pub found: Found,
    /// The entry that put the value, when the file carries it: says author, time and media type.
    pub put: Option<String>,
}

/// What the state map holds under a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// A value.
    Value {
        /// Index of the entry that put it.
        revision: u64,
        /// The value, when the file carries it.
        value: Option<Vec<u8>>,
    },
    /// A value that was destroyed.
    Erased {
        /// Index of the entry that put it.
        revision: u64,
        /// Index of the entry that destroyed it.
        erased_by: u64,
    },
    /// Nothing: never written, or deleted.
    Absent,
}

/// A signed head, and the notes taken on the way.
struct Head {
    checkpoint: Checkpoint,
    cosigned: Vec<Cosigned>,
    checked: Vec<String>,
    unchecked: Vec<String>,
}

impl Verifier {
    /// Verifies a receipt or a latest-or-absent proof.
    ///
    /// # Errors
    /// With the reason, when any part of it does not hold.
    pub fn verify(&self, file: &[u8]) -> Result<Verified, Refused> {
        let file = ProofFile::parse(file).map_err(|why| format!("not a proof file: {why}"))?;
        let extra = Extra::parse(&file.extra).map_err(|e| format!("not a proof file: extra, {e}"))?;
        let mut head = self.head(&file, matches!(extra, Extra::Latest { .. }))?;
        let contents = match extra {
            Extra::Receipt { line, openings } => {
                head.includes(&line, file.index, &file.path)?;
                Contents::Receipt(self.receipt(&mut head, file.index, line, openings)?)
            }
            Extra::Latest { block, key, map, put, opening } => {
                head.includes(&block, file.index, &file.path)?;
                let block = newest_block(&head, file.index, &block)?;
                Contents::Latest(self.latest(&mut head, &block, key, &map, put, opening)?)
            }
        };
        let Head { checkpoint, cosigned, checked, unchecked } = head;
        Ok(Verified { checkpoint, cosigned, checked, unchecked, contents })
    }

    /// Checks the signatures: the log's always, those of the policy's witnesses when there is a policy. What leans on the
    /// state root needs the nodes themselves.
    fn head(&self, file: &ProofFile<'_>, needs_nodes: bool) -> Result<Head, Refused> {
        if self.log.scheme() != Scheme::Ed25519 {
            return Err("the key given is a cosigner's (type 0x04), a log's key has type 0x01".into());
        }
        let note = Note::parse(file.note).map_err(|e| e.to_string())?;
        let checkpoint = Checkpoint::open(&note, &self.log).map_err(|e| e.to_string())?;
        let signed = format!("the log {} signed its head of {} entries", checkpoint.origin, checkpoint.size);
        let mut head = Head { checkpoint, cosigned: Vec::new(), checked: vec![signed], unchecked: Vec::new() };
        match &self.policy {
            Some(policy) => self.cosignatures(policy, &note, needs_nodes, &mut head)?,
            None => head.unchecked.push("log signature only, cosignatures not checked (no policy was given)".into()),
        }
        Ok(head)
    }

    fn cosignatures(
        &self,
        policy: &Policy,
        note: &Note<'_>,
        needs_nodes: bool,
        head: &mut Head,
    ) -> Result<(), Refused> {
        if !policy.logs().is_empty() && !policy.logs().contains(&self.log) {
            return Err(format!("the policy does not know the log key {}", self.log).into());
        }
        let mut keys = Vec::new();
        for (name, key) in policy.witnesses() {
            let Some(signed) = note.verify(key).map_err(|e| e.to_string())? else { continue };
            head.cosigned.push(Cosigned { name, time_s: signed.time_s.unwrap_or_default() });
            keys.push(key);
        }
        let by: Vec<&str> = head.cosigned.iter().map(|c| c.name.as_str()).collect();
        let by = if by.is_empty() { "none of the policy's witnesses".to_owned() } else { by.join(", ") };
        if !policy.is_met(|key| keys.contains(&key)) {
            return Err(format!("the quorum of the policy is not reached: cosigned by {by}").into());
        }
        match policy.nodes_met(|key| keys.contains(&key)) {
            _ if !needs_nodes => {}
            Some(true) => {}
            Some(false) => return Err(format!("the policy's group {NODES} is not reached: cosigned by {by}").into()),
            None => {
                let reason =
                    format!("the policy has no group {NODES}: the state root is vouched for by the nodes alone");
                return Err(reason.into());
            }
        }
        head.checked.push(format!("the quorum of the policy is reached: cosigned by {by}"));
        Ok(())
    }

    fn receipt(&self, head: &mut Head, index: u64, line: String, openings: Vec<Opening>) -> Result<Receipt, Refused> {
        let entry = parse_entry(&line)?;
        if let Some(expected) = &self.expect_key
            && !entry.changes().iter().any(|change| change.key() == expected)
        {
            return Err(format!("the entry does not name the key {expected:?}").into());
        }
        let puts: Vec<_> = entry.changes().iter().filter_map(Put::of).collect();
        if puts.len() != openings.len() {
            return Err(format!("the entry has {} puts, the file opens {}", puts.len(), openings.len()).into());
        }
        let mut values = Vec::new();
        for (put, opening) in puts.iter().zip(openings) {
            values.push((put.key.to_owned(), put.open(head, index, opening)?));
        }
        head.unchecked.push("a receipt does not say whether a later entry changed its keys".into());
        Ok(Receipt { index, line, values })
    }

    fn latest(
        &self,
        head: &mut Head,
        block: &Block,
        key: String,
        map: &MapProof,
        put: Option<Source>,
        opening: Option<([u8; 32], Vec<u8>)>,
    ) -> Result<Latest, Refused> {
        if let Some(expected) = &self.expect_key
            && *expected != key
        {
            return Err(format!("the proof is about the key {key:?}, not {expected:?}").into());
        }
        if map.root(&key).map_err(|e| e.to_string())? != block.state {
            return Err("the way through the state map does not lead to the state root of the block".into());
        }
        head.checked.push(format!("the state root of block {} says so of {key:?}", block.height));
        let MapLeaf::Own(value) = map.leaf else {
            if put.is_some() || opening.is_some() {
                return Err("the key is absent, yet the file carries a value".into());
            }
            return Ok(Latest { key, block: *block, found: Found::Absent, put: None });
        };
        let put = put.map(|source| head.put_of(&key, &value, source)).transpose()?;
        let found = found(head, &key, &value, opening)?;
        Ok(Latest { key, block: *block, found, put })
    }
}

fn parse_entry(line: &str) -> Result<Entry<'_>, Refused> {
    Entry::parse(line.as_bytes()).map_err(|e| format!("the entry is malformed: {e}").into())
}

/// The block entry, which must end the tree: an older one would pass an old state off as the newest.
fn newest_block(head: &Head, index: u64, line: &str) -> Result<Block, Refused> {
    let Entry::Block(block) = parse_entry(line)? else {
        return Err("the entry is not a block entry".into());
    };
    if Some(index) != head.checkpoint.size.checked_sub(1) {
        let size = head.checkpoint.size;
        return Err(format!("the block entry {index} is not the last of the {size} entries of the checkpoint").into());
    }
    Ok(block)
}

/// What the leaf of the map says of the value, and whether the opening is of it.
fn found(head: &mut Head, key: &str, value: &MapValue, opening: Option<([u8; 32], Vec<u8>)>) -> Result<Found, Refused> {
    let revision = value.revision;
    match (value.erased_by, opening) {
        (Some(_), Some(_)) => Err("the value was erased, yet the file carries one".into()),
        (Some(erased_by), None) => Ok(Found::Erased { revision, erased_by }),
        (None, None) => {
            head.unchecked.push(format!("the value of {key:?}: the file does not carry it"));
            Ok(Found::Value { revision, value: None })
        }
        (None, Some((salt, bytes))) => {
            if commitment(&salt, &bytes) != value.commitment {
                return Err(format!("the value of {key:?} is not the one that was committed to").into());
            }
            head.checked.push(format!("the value of {key:?} opens its commitment"));
            Ok(Found::Value { revision, value: Some(bytes) })
        }
    }
}

impl Head {
    fn includes(&mut self, line: &str, index: u64, path: &[[u8; 32]]) -> Result<(), Refused> {
        let Checkpoint { size, root, .. } = &self.checkpoint;
        if index >= *size {
            return Err(format!("entry {index} is beyond the {size} entries of the checkpoint").into());
        }
        if !verify_inclusion(&leaf_hash(line.as_bytes()), index, *size, path, root) {
            return Err(format!("entry {index} is not in the log as given: its path does not lead to the root").into());
        }
        self.checked.push(format!("entry {index} is in the log"));
        Ok(())
    }

    /// Checks that `source` is the entry that put `value`.
    fn put_of(&mut self, key: &str, value: &MapValue, source: Source) -> Result<String, Refused> {
        self.includes(&source.line, value.revision, &source.path)?;
        let entry = parse_entry(&source.line)?;
        let put = entry.changes().iter().filter_map(Put::of).find(|put| put.key == key);
        if put.is_none_or(|put| put.commitment != value.commitment) {
            return Err(format!("entry {} did not put the value of {key:?}", value.revision).into());
        }
        Ok(source.line)
    }
}

/// What of a put its opening must fit.
struct Put<'a> {
    key: &'a str,
    commitment: [u8; 32],
    /// Size of the value; a blob's value is its CID, its size that of the blob.
    size: Option<u64>,
}

impl<'a> Put<'a> {
    fn of(change: &'a Change<'_>) -> Option<Self> {
        let Change::Put { key, commitment, size, blob, .. } = change else { return None };
        Some(Self { key, commitment: *commitment, size: (!blob).then_some(*size) })
    }

    fn open(&self, head: &mut Head, index: u64, opening: Opening) -> Result<Value, Refused> {
        let key = self.key;
        match opening {
            Opening::Value { salt, value } => {
                if commitment(&salt, &value) != self.commitment {
                    return Err(format!("the value of {key:?} is not the one that was committed to").into());
                }
                if self.size.is_some_and(|size| size != value.len() as u64) {
                    return Err(format!("the value of {key:?} has another size than its entry says").into());
                }
                head.checked.push(format!("the value of {key:?} opens its commitment"));
                Ok(Value::Known(value.into()))
            }
            Opening::Erased(Erasure { index: erased_by, source }) => {
                head.includes(&source.line, erased_by, &source.path)?;
                let erase = parse_entry(&source.line)?;
                let erases = |c: &Change<'_>| matches!(c, Change::Erase { key: k, revision, .. } if k == key && *revision == index);
                if !erase.changes().iter().any(erases) {
                    return Err(format!("entry {erased_by} does not erase the value of {key:?}").into());
                }
                head.checked.push(format!("the value of {key:?} was erased by entry {erased_by}"));
                Ok(Value::Erased { erased_by })
            }
            Opening::Withheld => {
                head.unchecked.push(format!("the value of {key:?}: the file does not carry it"));
                Ok(Value::Withheld)
            }
        }
    }
}
