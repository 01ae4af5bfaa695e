//! What entries and state map hold of a value: its commitment.

use ring::digest::{Context, SHA256, digest};

use crate::merkle::{Hash, to_hash};

/// Commitment to a value: SHA-256(salt ‖ value). Without the salt it says nothing about the value.
#[must_use]
pub fn commitment(salt: &[u8; 32], value: &[u8]) -> Hash {
    let mut context = Context::new(&SHA256);
    context.update(salt);
    context.update(value);
    to_hash(&context.finish())
}

/// What the state map holds under a key that has a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapValue {
    /// Index of the entry that put the value.
    pub revision: u64,
    /// Commitment of that put.
    pub commitment: Hash,
    /// Index of the entry that erased the value, if one did.
    pub erased_by: Option<u64>,
}

impl MapValue {
    /// 0x01 ‖ revision ‖ commitment, or 0x02 ‖ revision ‖ commitment ‖ index of the erase; numbers in 8 bytes,
    /// big-endian.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let (bytes, length) = self.encode();
        bytes[..length].to_vec()
    }

    /// SHA-256 of [`MapValue::to_bytes`], as it goes into the leaf of the map.
    #[must_use]
    pub fn hash(&self) -> Hash {
        let (bytes, length) = self.encode();
        to_hash(&digest(&SHA256, &bytes[..length]))
    }

    fn encode(&self) -> ([u8; 49], usize) {
        let mut bytes = [0; 49];
        bytes[0] = if self.erased_by.is_some() { 2 } else { 1 };
        bytes[1..9].copy_from_slice(&self.revision.to_be_bytes());
        bytes[9..41].copy_from_slice(&self.commitment);
        match self.erased_by {
            Some(index) => {
                bytes[41..].copy_from_slice(&index.to_be_bytes());
                (bytes, 49)
            }
            None => (bytes, 41),
        }
    }
}
