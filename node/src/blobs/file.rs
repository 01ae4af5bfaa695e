//! The file of a blob: its bytes as they came, then the SHA-256 of each 64 KiB of them, then their length (u64 LE) and
//! [`MAGIC`]. With the hashes a piece is checked before it goes out, wherever a read begins, at the cost of that piece;
//! one hash over all could be checked only once all were read.

use std::sync::Arc;

use ring::digest::{Context, SHA256, digest};

use super::Cid;
use crate::disk::File;
use crate::error::Error;
use crate::merkle::to_hash;

/// Bytes that one hash covers.
pub(crate) const PIECE_BYTES: usize = 64 << 10;
const HASH_BYTES: usize = 32;
const MAGIC: &[u8; 16] = b"samovar blob v1\n";
const FOOT: usize = 8 + MAGIC.len();
const FOOT_BYTES: u64 = FOOT as u64;
/// What was written is made durable each time it has grown by so much, so that a large blob does not leave its whole
/// length to the last sync, in the way of the raft log's.
const SYNC_BYTES: u64 = 32 << 20;

fn pieces(size: u64) -> u64 {
    size.div_ceil(PIECE_BYTES as u64)
}

/// Writes a blob whose length is not known yet. Memory: one piece, and 32 bytes for each 64 KiB (2 MiB at 4 GiB).
pub(super) struct BlobWriter {
    file: Box<dyn File>,
    whole: Context,
    piece: Vec<u8>,
    hashes: Vec<u8>,
    written: u64,
    synced: u64,
}

impl BlobWriter {
    pub(super) fn new(file: Box<dyn File>) -> Self {
        let piece = Vec::with_capacity(PIECE_BYTES);
        Self { file, whole: Context::new(&SHA256), piece, hashes: Vec::new(), written: 0, synced: 0 }
    }

    pub(super) fn size(&self) -> u64 {
        self.written + self.piece.len() as u64
    }

    pub(super) fn write(&mut self, mut bytes: &[u8]) -> std::io::Result<()> {
        while !bytes.is_empty() {
            let (now, rest) = bytes.split_at(bytes.len().min(PIECE_BYTES - self.piece.len()));
            self.piece.extend_from_slice(now);
            bytes = rest;
            if self.piece.len() == PIECE_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        self.whole.update(&self.piece);
        self.hashes.extend_from_slice(digest(&SHA256, &self.piece).as_ref());
        self.file.write_at(&self.piece, self.written)?;
        self.written += self.piece.len() as u64;
        self.piece.clear();
        if self.written - self.synced >= SYNC_BYTES {
            self.file.sync()?;
            self.synced = self.written;
        }
        Ok(())
    }

    /// Writes what follows the bytes and makes all of it durable.
    pub(super) fn finish(mut self) -> std::io::Result<(Cid, u64)> {
        self.flush()?;
        self.hashes.extend_from_slice(&self.written.to_le_bytes());
        self.hashes.extend_from_slice(MAGIC);
        self.file.write_at(&self.hashes, self.written)?;
        self.file.sync()?;
        Ok((Cid::of_hash(to_hash(&self.whole.finish())), self.written))
    }
}

/// Reads a blob piece by piece, each checked.
#[derive(Clone)]
pub(super) struct BlobFile {
    file: Arc<dyn File>,
    size: u64,
}

impl BlobFile {
    /// Opens the file of a blob; `None` when its end is not that of one.
    pub(super) fn of(file: Box<dyn File>) -> std::io::Result<Option<Self>> {
        let length = file.length()?;
        let mut foot = [0; FOOT];
        if length < FOOT_BYTES || file.read_at(&mut foot, length - FOOT_BYTES)? < foot.len() {
            return Ok(None);
        }
        let size = foot.first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let whole =
            size <= length && size + pieces(size) * HASH_BYTES as u64 + FOOT_BYTES == length && foot.ends_with(MAGIC);
        Ok(whole.then(|| Self { file: Arc::from(file), size }))
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// The piece that holds the byte at `offset`, and where it begins; never damaged bytes.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when it is not what its hash says; [`Error::Io`].
    pub(super) fn piece(&self, offset: u64) -> Result<(u64, Vec<u8>), Error> {
        let number = offset / PIECE_BYTES as u64;
        let start = number * PIECE_BYTES as u64;
        let length = usize::try_from(self.size.saturating_sub(start)).unwrap_or(usize::MAX).min(PIECE_BYTES);
        let (mut bytes, mut hash) = (vec![0; length], [0; HASH_BYTES]);
        let read = |buffer: &mut [u8], at| self.file.read_at(buffer, at).map_err(|e| Error::io("reading a blob", &e));
        let got = read(&mut bytes, start)? + read(&mut hash, self.size + number * HASH_BYTES as u64)?;
        if got == length + HASH_BYTES && digest(&SHA256, &bytes).as_ref() == hash {
            Ok((start, bytes))
        } else {
            Err(Error::Corrupt(format!("the 64 KiB at byte {start} are not what was written")))
        }
    }
}
