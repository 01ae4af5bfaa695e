//! Blobs at the door of the node, and what looks after them.

use std::sync::Arc;
use std::time::Duration;

use ring::digest::{Context, SHA256};

use super::{Inner, Node};
use crate::blobs::{Blob, BlobUpload, Bounds, Cid};
use crate::error::Error;
use crate::merkle::to_hash;
use crate::rt;

/// How often what was erased is removed, and what nobody names is looked for.
const COLLECT_INTERVAL: Duration = Duration::from_secs(5);
/// A pass of the scrub begins so long after the start …
const SCRUB_DELAY: Duration = Duration::from_secs(900);
/// … and so long after the one before ended.
const SCRUB_INTERVAL: Duration = Duration::from_secs(24 * 3600);
/// Most bytes that the scrub reads in a second.
const SCRUB_BYTES_PER_SECOND: u64 = 4 << 20;
/// Pieces of 64 KiB that it reads at a time.
const SCRUB_PIECES: usize = 16;

impl Node {
    /// Begins the upload of a blob of `announced` bytes, if that is known.
    ///
    /// # Errors
    /// [`Error::TooLarge`]; [`Error::NoRoom`]; [`Error::Overloaded`] when too many run.
    pub async fn upload(&self, announced: Option<u64>) -> Result<BlobUpload, Error> {
        let config = &self.inner.config;
        let bounds = Bounds { blob_bytes_max: config.blob_bytes_max, reserve_bytes: config.reserve_bytes };
        self.aside(move |inner| inner.ledger.blobs.upload(announced, bounds)).await
    }

    /// A blob, to be read from; when values name it and it is not here whole, it is brought from a peer first.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::DamagedBlob`] when values name it and no node has it whole; [`Error::Unavailable`] when
    /// bringing it takes long.
    pub async fn blob(&self, cid: Cid) -> Result<Blob, Error> {
        match self.aside(move |inner| inner.ledger.blobs.read(&cid)).await {
            Err(Error::DamagedBlob(_)) if self.inner.has_peers() => self.inner.bring(cid).await?,
            read => return read,
        }
        self.aside(move |inner| inner.ledger.blobs.read(&cid)).await
    }

    /// Has the peers copy a blob that was just uploaded here, and waits for nobody.
    pub fn offer_blob(&self, cid: Cid) {
        self.inner.offer(cid);
    }
}

/// Removes what was erased, and what nobody names, until the node stops.
pub(super) async fn collect(node: Arc<Inner>) {
    let age = node.config.unnamed_blob_age;
    loop {
        rt::sleep(COLLECT_INTERVAL.min(age.max(Duration::from_millis(100)))).await;
        let ledger = Arc::clone(&node.ledger);
        let collected = rt::blocking(move || ledger.blobs.collect(age)).await;
        match collected {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "blobs that are to go were not removed; tried again soon"),
            Err(error) => tracing::error!(%error, "removing blobs ended early; tried again soon"),
        }
    }
}

/// Reads every blob again, a pass a day, and takes damaged ones out of service.
pub(super) async fn scrub(node: Arc<Inner>) {
    rt::sleep(SCRUB_DELAY).await;
    loop {
        scrub_pass(&node).await;
        rt::sleep(SCRUB_INTERVAL).await;
    }
}

/// Reads every blob once.
pub(super) async fn scrub_pass(node: &Arc<Inner>) {
    let blobs = &node.ledger.blobs;
    let (mut at, mut whole) = (None, true);
    while let Some(cid) = blobs.after(at) {
        at = Some(cid);
        match scrub_blob(node, cid).await {
            // Gone or set aside: said where that was seen.
            Ok(()) | Err(Error::NotFound(_) | Error::DamagedBlob(_)) => {}
            Err(error) => {
                whole = false;
                tracing::error!(%cid, %error, "a blob could not be read again; the next pass tries once more");
            }
        }
    }
    if whole {
        blobs.scrub_passed();
    }
}

async fn scrub_blob(node: &Arc<Inner>, cid: Cid) -> Result<(), Error> {
    let ledger = Arc::clone(&node.ledger);
    let ended = |e| Error::Unavailable(format!("the scrub was given up: {e}"));
    let blob = rt::blocking(move || ledger.blobs.read(&cid)).await.map_err(ended)??;
    let (mut offset, mut hash) = (0, Context::new(&SHA256));
    while offset < blob.size() {
        let reading = blob.clone();
        let begun = offset;
        let read = rt::blocking(move || {
            for _ in 0..SCRUB_PIECES {
                let piece = reading.read_now(offset)?;
                hash.update(&piece);
                offset += piece.len() as u64;
            }
            Ok::<_, Error>((offset, hash))
        });
        (offset, hash) = read.await.map_err(ended)??;
        let bytes = offset - begun;
        blob.scrubbed(bytes);
        rt::sleep(Duration::from_micros(bytes * 1_000_000 / SCRUB_BYTES_PER_SECOND)).await;
    }
    if to_hash(&hash.finish()) == cid.hash() {
        return Ok(());
    }
    let damaged = rt::blocking(move || blob.damaged("its bytes have another SHA-256")).await;
    damaged.map_err(ended)?
}
