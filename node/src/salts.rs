//! The salt file: slot → 32 random bytes, and the encryption of values under keys made from them.
//!
//! sled cannot clear old bytes, so a value is stored only as ciphertext under a key that its salt alone gives. Zeroing the
//! salt in place and syncing destroys the value wherever a copy of the ciphertext may remain.
//!
//! Crash order: the salts of a block are written before its rows are committed and synced before the rows count as
//! durable; until then the raft log brings them again.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::digest::{Context, SHA256};

use crate::disk::{Disk, File};
use crate::error::Error;

/// Length of a salt, in bytes.
pub(crate) const SALT_BYTES: usize = 32;
const TAG_BYTES: usize = 16;

/// 32 random bytes; all zero: destroyed.
pub(crate) type Salt = [u8; SALT_BYTES];

/// The open salt file. Clones name the same file.
#[derive(Clone)]
pub(crate) struct Salts {
    file: Arc<dyn File>,
    damaged: Arc<AtomicBool>,
}

impl Salts {
    pub(crate) fn open(disk: &dyn Disk, path: &Path) -> Result<Self, Error> {
        let file = disk.open(path, true).map_err(|e| Error::io(format!("opening {}", path.display()), &e))?;
        Ok(Self { file: Arc::from(file), damaged: Arc::default() })
    }

    /// Writes the salts of consecutive slots.
    pub(crate) fn write(&self, first: u64, salts: &[u8]) -> Result<(), Error> {
        self.file.write_at(salts, offset(first)).map_err(|e| Error::io("writing the salt file", &e))
    }

    /// The salt in a slot; `None` when it was destroyed.
    pub(crate) fn read(&self, slot: u64) -> Result<Option<Salt>, Error> {
        let mut salt = [0; SALT_BYTES];
        let read = self.file.read_at(&mut salt, offset(slot)).map_err(|e| Error::io("reading the salt file", &e))?;
        if read < SALT_BYTES {
            return Err(ends_before(slot));
        }
        Ok((salt != [0; SALT_BYTES]).then_some(salt))
    }

    /// The salts of consecutive slots, one after another; all zero: destroyed.
    pub(crate) fn read_many(&self, first: u64, count: usize) -> Result<Vec<u8>, Error> {
        let mut salts = vec![0; count * SALT_BYTES];
        let read = self.file.read_at(&mut salts, offset(first)).map_err(|e| Error::io("reading the salt file", &e))?;
        if read < salts.len() { Err(ends_before(first + count as u64)) } else { Ok(salts) }
    }

    /// Destroys the salts of slots, durably.
    pub(crate) fn destroy(&self, slots: impl Iterator<Item = u64>) -> Result<(), Error> {
        for slot in slots {
            self.write(slot, &[0; SALT_BYTES])?;
        }
        self.sync()
    }

    /// Notes that a salt was found not to fit its value.
    pub(crate) fn note_damage(&self) {
        self.damaged.store(true, Relaxed);
    }

    /// Whether one was found so since this was asked last.
    pub(crate) fn take_damage(&self) -> bool {
        self.damaged.swap(false, Relaxed)
    }

    pub(crate) fn sync(&self) -> Result<(), Error> {
        self.file.sync().map_err(|e| Error::io("syncing the salt file", &e))
    }
}

fn ends_before(slot: u64) -> Error {
    Error::Corrupt(format!(
        "the salt file ends before slot {slot}: restore a backup, or rejoin the cluster from its peers"
    ))
}

fn offset(slot: u64) -> u64 {
    slot * SALT_BYTES as u64
}

/// Encrypts a value (AES-256-GCM). The key is unique per value, so the nonce is zero; the revision is bound to it.
pub(crate) fn seal(salt: &Salt, revision: u64, value: &[u8]) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::with_capacity(value.len() + TAG_BYTES);
    bytes.extend_from_slice(value);
    key(salt)?
        .seal_in_place_append_tag(zero_nonce(), Aad::from(revision.to_be_bytes()), &mut bytes)
        .map_err(|_| Error::Invalid("a value could not be encrypted".into()))?;
    Ok(bytes)
}

/// Decrypts a value.
///
/// # Errors
/// [`Error::Corrupt`] when salt, ciphertext or revision do not belong together: never a wrong value.
pub(crate) fn open(salt: &Salt, revision: u64, mut ciphertext: Vec<u8>) -> Result<Vec<u8>, Error> {
    let length = key(salt)?
        .open_in_place(zero_nonce(), Aad::from(revision.to_be_bytes()), &mut ciphertext)
        .map_err(|_| {
            Error::Corrupt(format!(
                "the value of revision {revision} is damaged (salt and ciphertext do not fit): restore a backup, or \
                 rejoin the cluster from its peers"
            ))
        })?
        .len();
    ciphertext.truncate(length);
    Ok(ciphertext)
}

fn key(salt: &Salt) -> Result<LessSafeKey, Error> {
    let mut hash = Context::new(&SHA256);
    hash.update(b"samovar value key v1");
    hash.update(salt);
    let key = UnboundKey::new(&AES_256_GCM, hash.finish().as_ref());
    key.map(LessSafeKey::new).map_err(|_| Error::Invalid("a key could not be made".into()))
}

fn zero_nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_opens_only_with_its_own_salt_and_revision() {
        let sealed = seal(&[7; 32], 5, b"soup").unwrap();
        assert!(!sealed.windows(4).any(|w| w == b"soup"), "the ciphertext shows the value");
        assert_eq!(open(&[7; 32], 5, sealed.clone()).unwrap(), b"soup");
        assert!(open(&[8; 32], 5, sealed.clone()).is_err(), "another salt opened it");
        assert!(open(&[7; 32], 6, sealed.clone()).is_err(), "another revision opened it");
        for i in 0..sealed.len() {
            let mut flipped = sealed.clone();
            flipped[i] ^= 1;
            assert!(open(&[7; 32], 5, flipped).is_err(), "a flip in byte {i} was not seen");
        }
    }

    #[test]
    fn a_destroyed_salt_reads_as_none() {
        let directory = tempfile::tempdir().unwrap();
        let salts = Salts::open(&crate::disk::OsDisk, &directory.path().join("salts")).unwrap();
        salts.write(3, &[[1u8; 32], [2u8; 32]].concat()).unwrap();
        assert_eq!(salts.read(4).unwrap(), Some([2; 32]));
        salts.destroy([4].into_iter()).unwrap();
        assert_eq!((salts.read(3).unwrap(), salts.read(4).unwrap()), (Some([1; 32]), None));
        assert!(salts.read(5).is_err(), "a slot beyond the end must not read as destroyed");
    }
}
