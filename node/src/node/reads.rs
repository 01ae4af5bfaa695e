//! What a node is asked: keys, entries, proofs, tiles.

use std::sync::Arc;

use super::{Inner, Node};
use crate::command::Key;
use crate::cosign;
use crate::error::Error;
use crate::rt::{self, Doing};
use crate::tiles::TILE_WIDTH;
use crate::view::{BlockRow, Consistency, HistoryPage, KeyPage, Reading, Record};

impl Node {
    /// Reads a key; `at` is the height of a block.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a block beyond the head; [`Error::Unavailable`] when a linearizable read has no quorum.
    pub async fn get(&self, key: &Key, consistency: Consistency, at: Option<u64>) -> Result<Reading, Error> {
        if consistency == Consistency::Linearizable {
            self.barrier().await?;
        }
        self.inner.notary.soundness().check()?;
        match at {
            // Most reads: found in memory, as a rule.
            None => self.inner.checked(self.inner.ledger.get(key, None)),
            Some(_) => {
                let key = key.clone();
                self.aside(move |inner| inner.ledger.get(&key, at)).await
            }
        }
    }

    /// Runs a read that may take long, or wait for the disk, where it holds up nobody else.
    pub(super) async fn aside<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Inner) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let inner = Arc::clone(&self.inner);
        inner.notary.soundness().check()?;
        let read = rt::blocking(move || inner.checked(read(&inner))).await;
        read.unwrap_or_else(|e| Err(Error::Unavailable(format!("the read ended early: {e}"))))
    }

    /// Keys with a prefix, in byte order; `after` is exclusive. An empty prefix does not list reserved keys. A page may
    /// be short of `limit` and still have a next one.
    ///
    /// # Errors
    /// [`Error::Corrupt`].
    pub async fn keys(&self, prefix: &str, after: Option<&Key>, limit: usize) -> Result<KeyPage, Error> {
        let (prefix, after) = (prefix.to_owned(), after.cloned());
        self.aside(move |inner| inner.ledger.keys(&prefix, after.as_ref(), limit)).await
    }

    /// Revisions of a key, newest first, those below `before`.
    ///
    /// # Errors
    /// [`Error::Corrupt`].
    pub async fn history(&self, key: &Key, before: Option<u64>, limit: usize) -> Result<HistoryPage, Error> {
        let key = key.clone();
        self.aside(move |inner| inner.ledger.history(&key, before, limit)).await
    }

    /// One entry of the chain log.
    ///
    /// # Errors
    /// [`Error::NotFound`] beyond its end.
    pub async fn record(&self, index: u64) -> Result<Record, Error> {
        self.aside(move |inner| inner.ledger.record(index)).await
    }

    /// Entries from `first` on, as many as there are up to `limit`, with the values still held: for the change feed.
    ///
    /// # Errors
    /// [`Error::Corrupt`].
    pub async fn records(&self, first: u64, limit: usize) -> Result<Vec<Record>, Error> {
        self.aside(move |inner| inner.ledger.records(first, limit)).await
    }

    /// The receipt of an entry, a C2SP tlog-proof; `wait`: until a checkpoint that meets the policy covers it.
    ///
    /// # Errors
    /// [`Error::NotFound`] beyond the log; [`Error::Unavailable`] when no checkpoint covers the entry yet.
    pub fn receipt<'a>(&'a self, index: u64, wait: bool) -> Doing<'a, Result<String, Error>> {
        Box::pin(async move {
            if wait && index >= self.inner.ledger.newest().size {
                // Another node may have acknowledged the entry already.
                self.barrier().await?;
            }
            let record = self.record(index).await?;
            let published = self.inner.notary.covering(cosign::needs(&record), wait).await?;
            self.aside(move |inner| inner.notary.receipt(record, &published)).await
        })
    }

    /// Latest-or-absent proof of a key as of the newest checkpoint, a C2SP tlog-proof. A node that does not lead, and has
    /// applied more than the checkpoint covers, has the leader make it.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when there is no checkpoint yet, or no leader to ask.
    pub fn proof<'a>(&'a self, key: &'a Key) -> Doing<'a, Result<String, Error>> {
        Box::pin(async move {
            self.inner.notary.soundness().check()?;
            self.inner.proof(key.clone()).await
        })
    }

    /// Blocks above `after`, in order.
    ///
    /// # Errors
    /// [`Error::Corrupt`].
    pub async fn blocks(&self, after: u64, limit: usize) -> Result<Vec<BlockRow>, Error> {
        self.aside(move |inner| inner.ledger.blocks(after, limit)).await
    }

    /// One block.
    ///
    /// # Errors
    /// [`Error::NotFound`] beyond the head.
    pub async fn block(&self, height: u64) -> Result<BlockRow, Error> {
        self.aside(move |inner| inner.ledger.block(height)).await
    }

    /// The newest checkpoint that meets the policy, as text (C2SP tlog-checkpoint).
    #[must_use]
    pub fn checkpoint(&self) -> Option<Arc<str>> {
        self.inner.notary.published().map(|p| Arc::clone(&p.text))
    }

    /// A tile of hashes of the published log, `width` 1–256 (C2SP tlog-tiles).
    ///
    /// # Errors
    /// [`Error::NotFound`] beyond the newest checkpoint.
    pub async fn tile(&self, level: u8, index: u64, width: u16) -> Result<Vec<u8>, Error> {
        self.published_width(level, index, width)?;
        self.aside(move |inner| inner.ledger.tile(&inner.ledger.chain(), level, index, width)).await
    }

    /// A bundle of entries of the published log: each with its length before it (u16 BE).
    ///
    /// # Errors
    /// [`Error::NotFound`] beyond the newest checkpoint.
    pub async fn entry_bundle(&self, index: u64, width: u16) -> Result<Vec<u8>, Error> {
        self.published_width(0, index, width)?;
        let first = index * u64::from(TILE_WIDTH);
        self.aside(move |inner| inner.ledger.bundle(first, usize::from(width))).await
    }

    fn published_width(&self, level: u8, index: u64, width: u16) -> Result<(), Error> {
        let size = self.inner.notary.published().map_or(0, |p| p.size);
        let hashes = size.checked_shr(8 * u32::from(level)).unwrap_or(0);
        let end = index.checked_mul(u64::from(TILE_WIDTH)).and_then(|start| start.checked_add(u64::from(width)));
        if width == 0 || width > TILE_WIDTH || end.is_none_or(|end| end > hashes) {
            return Err(Error::NotFound(format!("tile {level}/{index} of width {width} in the log of {size} entries")));
        }
        Ok(())
    }
}
