//! What stands on a checkpoint: receipts, and latest-or-absent proofs.

use super::{Notary, Published, unreadable};
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::command::Key;
use crate::entry::{Change, Entry, MapValue};
use crate::error::Error;
use crate::ledger::key_hash;
use crate::machine::damaged_entry;
use crate::merkle::{Hash, inclusion_proof};
use crate::note::Note;
use crate::proof::{self, Erasure, Inclusion, MapLeaf, MapProof, Opening, Source};
use crate::state_root::{KeyHash, ProofLeaf, ViewId};
use crate::store::{entries, values};
use crate::view;

/// How often a proof is begun again because its checkpoint was replaced meanwhile.
const PROOF_TRIES: usize = 8;

impl Notary {
    /// Proof that an entry is in the log of `size` entries.
    fn inclusion(&self, index: u64, size: u64) -> Result<Vec<Hash>, Error> {
        let chain = self.ledger.chain();
        inclusion_proof(index, size, |level, index, width| self.ledger.tile(&chain, level, index, width))
            .map_err(unreadable)
    }

    fn source(&self, index: u64, size: u64) -> Result<Source, Error> {
        let line = text_line(index, entries::one(&self.ledger.rows, index)?.line)?;
        Ok(Source { line, path: self.inclusion(index, size)? })
    }

    /// The receipt of an entry, with the values still held and proof of what was erased. Values of the system state hold
    /// hashes of secrets; a receipt goes into other hands, so it withholds them. That of a change of the log key stands on
    /// its hand-over checkpoint: under a later one who knows only the key before could not check it.
    pub(crate) fn receipt(&self, record: view::Record, published: &Published) -> Result<String, Error> {
        let index = record.index;
        let kept = if is_key_change(&record.line) { self.ledger.handover(index)? } else { None };
        let (checkpoint, size) = match &kept {
            Some(text) => (text.as_str(), size_of(index, text)?),
            None => (&*published.text, published.size),
        };
        let mut openings = Vec::with_capacity(record.openings.len());
        for (key, opening) in record.openings {
            openings.push(match opening {
                view::Opening::Value { .. } if key.is_reserved() => Opening::Withheld,
                view::Opening::Value { salt, value } => Opening::Value { salt, value },
                view::Opening::Erased { erased_by } => {
                    Opening::Erased(Erasure { index: erased_by, source: self.source(erased_by, size)? })
                }
            });
        }
        let path = self.inclusion(index, size)?;
        let inclusion = Inclusion { index, path: &path, checkpoint };
        Ok(proof::receipt(&inclusion, &text_line(index, record.line.to_vec())?, &openings))
    }

    /// Latest-or-absent proof of a key as of the published checkpoint. `None`: this node has not the state map as of it,
    /// having gone on; the leader has.
    pub(crate) fn latest_or_absent(&self, key: &Key) -> Result<Option<String>, Error> {
        for _ in 0..PROOF_TRIES {
            let Some(published) = self.published() else { break };
            let Some(view) = self.view_of(&published)? else { return Ok(None) };
            match self.latest_at(key, &published, view) {
                // The view went with its checkpoint: there is a newer one.
                Err(Error::NotFound(_)) => {}
                other => return other.map(Some),
            }
        }
        Err(Error::Unavailable("there is no cosigned checkpoint to prove against yet; ask again".into()))
    }

    fn latest_at(&self, key: &Key, published: &Published, view: ViewId) -> Result<String, Error> {
        let hash = key_hash(key);
        let path = self.ledger.map.prove(&hash, Some(view))?;
        let (mut put, mut opening) = (None, None);
        let leaf = match path.leaf {
            None => MapLeaf::Empty,
            Some(leaf) => {
                let (value, slot) = self.map_value(&leaf)?;
                if leaf.key_hash == hash {
                    put = Some(self.source(leaf.revision, published.size)?);
                    if let view::Opening::Value { salt, value } = self.ledger.opening(leaf.revision, slot)? {
                        opening = Some((salt, value));
                    }
                    MapLeaf::Own(value)
                } else {
                    MapLeaf::Neighbour { key_hash: leaf.key_hash.0, value_hash: value.hash() }
                }
            }
        };
        let map = MapProof { siblings: path.siblings, leaf };
        let block = self.source(published.size - 1, published.size)?;
        let inclusion = Inclusion { index: published.size - 1, path: &block.path, checkpoint: &published.text };
        let opening = opening.as_ref().map(|(salt, value)| (salt, value.as_ref()));
        Ok(proof::latest(&inclusion, &block.line, key.as_str(), &map, put.as_ref(), opening))
    }

    /// What the map held under a leaf, from the entry that put it, and the slot of the value.
    fn map_value(&self, leaf: &ProofLeaf) -> Result<(MapValue, u64), Error> {
        let revision = leaf.revision;
        let stored = entries::one(&self.ledger.rows, revision)?;
        let entry = Entry::parse(&stored.line).map_err(|e| damaged_entry(revision, &e))?;
        let puts = entry.changes().iter().filter_map(|change| match change {
            Change::Put { key, commitment, .. } => Some((KeyHash::of(key.as_bytes()), *commitment)),
            _ => None,
        });
        let found = puts.zip(stored.slot..).find(|((key_hash, _), _)| *key_hash == leaf.key_hash);
        let ((_, commitment), slot) = found
            .ok_or_else(|| damaged_entry(revision, &"the state map points to it for a key that it does not put"))?;
        let erased_by = match values::one(&self.ledger.rows, slot)? {
            values::Stored::Erased(by) if leaf.erased => Some(by),
            _ => None,
        };
        Ok((MapValue { revision, commitment, erased_by }, slot))
    }
}

/// The newest entry that a receipt of this one speaks of: itself, or the one that erased a value of it.
pub(crate) fn needs(record: &view::Record) -> u64 {
    let erased = record.openings.iter().filter_map(|(_, opening)| match opening {
        view::Opening::Erased { erased_by } => Some(*erased_by),
        view::Opening::Value { .. } => None,
    });
    erased.fold(record.index, u64::max)
}

fn is_key_change(line: &[u8]) -> bool {
    Entry::parse(line).is_ok_and(|entry| entry.keys().is_some())
}

/// Entries that a kept checkpoint covers.
fn size_of(index: u64, note: &str) -> Result<u64, Error> {
    let checkpoint = Note::parse(note).map_err(CheckpointError::from).and_then(|note| Checkpoint::parse(note.text()));
    checkpoint.map(|checkpoint| checkpoint.size).map_err(|e| damaged_entry(index, &e))
}

fn text_line(index: u64, line: Vec<u8>) -> Result<String, Error> {
    String::from_utf8(line).map_err(|e| damaged_entry(index, &e))
}
