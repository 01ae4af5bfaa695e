//! A blob on its way in: a file of its own until it is whole, durable, and what the client says it is.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use super::file::BlobWriter;
use super::{Blobs, Cid, Fetch, UPLOAD_PREFIX, UPLOADS_MAX};
use crate::error::Error;
use crate::rt;

/// What may gather before it is written, in bytes.
const GATHERED_BYTES_MAX: usize = 256 << 10;

/// Bounds of an upload.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Longest blob, in bytes.
    pub blob_bytes_max: u64,
    /// Bytes of free space that must stay.
    pub reserve_bytes: u64,
}

/// A blob that is being uploaded. Dropped before [`BlobUpload::finish`], it leaves nothing.
pub struct BlobUpload {
    place: Place,
    /// `None` once an error made of it something that cannot go on.
    writer: Option<BlobWriter>,
    gathered: Vec<Bytes>,
    gathered_bytes: usize,
    bounds: Bounds,
}

/// One of [`UPLOADS_MAX`] places, and the file in it.
struct Place {
    blobs: Arc<Blobs>,
    path: Option<PathBuf>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.blobs.state().uploads -= 1;
        if let Some(path) = self.path.take() {
            // What cannot be removed now is removed at the next start.
            if let Err(error) = self.blobs.disk.remove(&path) {
                tracing::warn!(%error, "the file of a broken upload stays until the next start");
            }
        }
    }
}

impl Blobs {
    /// Begins an upload of `announced` bytes, if that is known.
    pub(crate) fn upload(self: &Arc<Self>, announced: Option<u64>, bounds: Bounds) -> Result<BlobUpload, Error> {
        let blobs = Arc::clone(self);
        bounds.check(&blobs, announced.unwrap_or(0), announced.unwrap_or(0))?;
        let path = {
            let mut state = self.state();
            if state.uploads == UPLOADS_MAX {
                return Err(Error::Overloaded);
            }
            state.uploads += 1;
            state.sequence += 1;
            self.directory.join(format!("{UPLOAD_PREFIX}{}", state.sequence))
        };
        let mut place = Place { blobs, path: None };
        let file = self.disk.open(&path, true).map_err(|e| Error::io(format!("making {}", path.display()), &e))?;
        place.path = Some(path);
        let writer = Some(BlobWriter::new(file));
        Ok(BlobUpload { place, writer, gathered: Vec::new(), gathered_bytes: 0, bounds })
    }
}

impl Bounds {
    /// Whether a blob of `size` bytes is allowed and `coming` of them have room.
    fn check(self, blobs: &Blobs, size: u64, coming: u64) -> Result<(), Error> {
        let (limit, reserve_bytes) = (self.blob_bytes_max, self.reserve_bytes);
        if size > limit {
            return Err(Error::TooLarge { what: "blob", size, limit });
        }
        let free_bytes = blobs.free_bytes()?;
        if free_bytes < reserve_bytes.saturating_add(coming) {
            return Err(Error::NoRoom { free_bytes, reserve_bytes });
        }
        Ok(())
    }
}

impl Bounds {
    /// A failed write as an error: a disk that others filled is one without room.
    fn failed(self, blobs: &Blobs, error: &std::io::Error) -> Error {
        match (error.kind(), blobs.free_bytes()) {
            (std::io::ErrorKind::StorageFull, Ok(free_bytes)) => {
                Error::NoRoom { free_bytes, reserve_bytes: self.reserve_bytes }
            }
            _ => Error::io("writing a blob", error),
        }
    }
}

impl BlobUpload {
    /// Adds bytes. After an error the upload cannot go on.
    ///
    /// # Errors
    /// [`Error::TooLarge`]; [`Error::NoRoom`]; [`Error::Io`].
    pub async fn write(mut self, bytes: Bytes) -> Result<Self, Error> {
        self.gathered_bytes += bytes.len();
        self.gathered.push(bytes);
        if self.gathered_bytes < GATHERED_BYTES_MAX {
            return Ok(self);
        }
        let written = rt::blocking(move || self.flush().map(|()| self)).await;
        written.unwrap_or_else(|e| Err(ended_early(&e)))
    }

    fn flush(&mut self) -> Result<(), Error> {
        let coming = std::mem::take(&mut self.gathered_bytes) as u64;
        let Some(writer) = &mut self.writer else { return Ok(()) };
        self.bounds.check(&self.place.blobs, writer.size() + coming, coming)?;
        for bytes in self.gathered.drain(..) {
            writer.write(&bytes).map_err(|e| self.bounds.failed(&self.place.blobs, &e))?;
        }
        Ok(())
    }

    /// Makes the blob durable and gives it its name. `expected`: the SHA-256 that it must have.
    ///
    /// # Errors
    /// [`Error::DigestMismatch`]; as [`BlobUpload::write`].
    pub async fn finish(self, expected: Option<[u8; 32]>) -> Result<(Cid, u64), Error> {
        let finished = rt::blocking(move || self.finish_now(expected, false)).await;
        finished.unwrap_or_else(|e| Err(ended_early(&e)))
    }

    /// [`BlobUpload::finish`] for what comes from a peer.
    pub(crate) async fn finish_fetch(self, fetch: &Fetch) -> Result<(), Error> {
        let expected = Some(fetch.cid.hash());
        let finished = rt::blocking(move || self.finish_now(expected, true)).await;
        finished.unwrap_or_else(|e| Err(ended_early(&e))).map(drop)
    }

    fn finish_now(mut self, expected: Option<[u8; 32]>, fetched: bool) -> Result<(Cid, u64), Error> {
        self.flush()?;
        let (Some(writer), Some(path)) = (self.writer.take(), self.place.path.clone()) else {
            return Err(Error::Invalid("the upload had ended".into()));
        };
        let (cid, size) = writer.finish().map_err(|e| self.bounds.failed(&self.place.blobs, &e))?;
        if expected.is_some_and(|hash| hash != cid.hash()) {
            return Err(Error::DigestMismatch(cid.to_string()));
        }
        self.place.blobs.take_in(&path, cid, size, fetched)?;
        self.place.path = None;
        Ok((cid, size))
    }
}

impl Blobs {
    /// Gives a whole, durable file the name of its blob. One that was there is replaced: this one is known to be right.
    fn take_in(&self, path: &std::path::Path, cid: Cid, size: u64, fetched: bool) -> Result<(), Error> {
        let _names = self.names();
        if fetched && self.state().fetched.get(&cid).is_some_and(|erased| *erased) {
            return Err(Error::NotFound(format!("the blob {cid}, which was erased while it came from a peer")));
        }
        let named = self.disk.rename(path, &self.path(&cid));
        named.map_err(|e| Error::io(format!("naming the blob {cid}"), &e))?;
        match self.disk.remove(&self.damaged_path(&cid)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io(format!("removing a damaged copy of the blob {cid}"), &e));
            }
            _ => {}
        }
        self.sync_names()?;
        let mut state = self.state();
        let known = state.known.entry(cid).or_default();
        known.size = Some(size);
        known.condemned = false;
        known.idle_since = rt::instant();
        Ok(())
    }
}

fn ended_early(error: &dyn std::fmt::Display) -> Error {
    Error::Unavailable(format!("the upload ended early: {error}"))
}
