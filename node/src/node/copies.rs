//! Copies of blobs. A write names only what a majority of the voters has, durably; every member then gets what values name,
//! and a copy that is lost or damaged comes again from the others.
//!
//! Who has a blob asks the others which they lack; these get it from there, in pieces, under the bounds of an upload. Nobody
//! gets what an erase took away: a copy that arrives after it is not taken in, and only what values name here, or what a
//! member says it is about to name, is asked for.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;

use super::Inner;
use crate::blobs::{BlobUpload, Bounds, Cid, Fetch, Pins};
use crate::error::Error;
use crate::merkle::Hash;
use crate::raft::{Question, Reply};
use crate::rt::{self, Doing};

/// Most bytes of a piece.
const PIECE_BYTES_MAX: usize = 1 << 20;
/// How long a peer may take for one.
const PIECE_WAIT: Duration = Duration::from_secs(10);
/// How long a peer may take to say what it lacks.
const LACK_WAIT: Duration = Duration::from_secs(2);
/// How long a write waits for copies of what it names, and a read for a copy here.
const COPY_WAIT: Duration = Duration::from_secs(20);
/// So often it is looked how far they are.
const COPY_LOOK: Duration = Duration::from_millis(50);
/// How often it is looked for blobs that are missing here …
const HEAL_INTERVAL: Duration = Duration::from_secs(5);
/// … and when some could not be had.
const HEAL_RETRY: Duration = Duration::from_secs(30);

impl Inner {
    /// Whether there are other members.
    pub(super) fn has_peers(&self) -> bool {
        self.consensus.members().len() > 1
    }

    fn peers(&self) -> Vec<u64> {
        let members = self.consensus.members().into_iter();
        members.map(|member| member.node).filter(|node| *node != self.identity.node).collect()
    }

    /// Holds the blobs that a write names, once a majority of the voters has them.
    ///
    /// # Errors
    /// [`Error::NoBlob`] for one that no member has; [`Error::Unavailable`] when there are too few copies in time.
    pub(super) fn pin_copies(self: &Arc<Self>, named: Vec<Cid>) -> Doing<'_, Result<Pins, Error>> {
        Box::pin(async move {
            let blobs = &self.ledger.blobs;
            let pins = match blobs.pin(named.iter().copied()) {
                Err(Error::NoBlob(_)) if self.has_peers() => {
                    for cid in named.iter().filter(|cid| blobs.size(cid).is_none()) {
                        // Another node may have got it from the client, a moment ago.
                        self.bring(*cid).await.map_err(|error| match error {
                            Error::DamagedBlob(cid) => Error::NoBlob(cid),
                            other => other,
                        })?;
                    }
                    blobs.pin(named.iter().copied())?
                }
                pins => pins?,
            };
            self.until_copied(&named).await?;
            Ok(pins)
        })
    }

    /// Waits until a majority of the voters has these blobs.
    async fn until_copied(&self, blobs: &[Cid]) -> Result<(), Error> {
        let hashes: Vec<Hash> = blobs.iter().map(Cid::hash).collect();
        let deadline = rt::instant() + COPY_WAIT;
        loop {
            let voters: Vec<u64> = self.consensus.members().iter().filter(|m| m.voter).map(|m| m.node).collect();
            let own = usize::from(voters.contains(&self.identity.node));
            let mut have = own;
            let others = voters.iter().filter(|node| **node != self.identity.node);
            let mut asked: FuturesUnordered<_> = others
                .map(|node| self.consensus.ask(*node, Question::Lacking { blobs: hashes.clone() }, LACK_WAIT))
                .collect();
            while 2 * have <= voters.len()
                && let Some(answer) = asked.next().await
            {
                have += usize::from(matches!(answer, Ok(Reply::Lacks(lacks)) if lacks.is_empty()));
            }
            if 2 * have > voters.len() {
                return Ok(());
            }
            if rt::instant() > deadline {
                return Err(Error::Unavailable(format!(
                    "what the write names is on {have} of {} voters, and must be on a majority; nothing was written, try again",
                    voters.len()
                )));
            }
            rt::sleep(COPY_LOOK).await;
        }
    }

    /// Has every peer get a blob from here.
    pub(super) fn offer(self: &Arc<Self>, cid: Cid) {
        for peer in self.peers() {
            let node = Arc::clone(self);
            rt::spawn(async move {
                // A write that names it asks again.
                let _ = node.consensus.ask(peer, Question::Lacking { blobs: vec![cid.hash()] }, LACK_WAIT).await;
            });
        }
    }

    /// Says to a member which blobs this node lacks, and gets them from it.
    pub(super) fn lacking(self: &Arc<Self>, from: u64, blobs: &[Hash]) -> Reply {
        let cids = blobs.iter().map(|hash| Cid::of_hash(*hash));
        let lacks: Vec<Cid> = cids.filter(|cid| !self.ledger.blobs.touch(cid)).collect();
        for fetch in lacks.iter().filter_map(|cid| self.ledger.blobs.fetch(*cid)) {
            let node = Arc::clone(self);
            rt::spawn(async move {
                if let Err(error) = node.fetch(&fetch, &[from]).await {
                    tracing::warn!(cid = %fetch.cid, peer = from, %error, "a blob was not copied; it is tried again");
                }
            });
        }
        Reply::Lacks(lacks.iter().map(Cid::hash).collect())
    }

    /// A piece of a blob, for a member.
    pub(super) async fn piece_of(&self, blob: Hash, offset: u64) -> Result<Reply, Error> {
        let blobs = Arc::clone(&self.ledger.blobs);
        let read = rt::blocking(move || {
            let blob = blobs.read(&Cid::of_hash(blob))?;
            let mut bytes = BytesMut::new();
            while bytes.len() < PIECE_BYTES_MAX {
                let more = blob.read_now(offset + bytes.len() as u64)?;
                if more.is_empty() {
                    break;
                }
                bytes.extend_from_slice(&more);
            }
            Ok(Reply::Piece { size: blob.size(), bytes: bytes.freeze() })
        });
        read.await.map_err(|e| Error::Unavailable(format!("reading a blob ended early: {e}")))?
    }

    /// Brings a blob here from whichever peer has it.
    ///
    /// # Errors
    /// [`Error::DamagedBlob`] when none has; [`Error::Unavailable`] when it takes long.
    pub(super) fn bring(self: &Arc<Self>, cid: Cid) -> Doing<'_, Result<(), Error>> {
        Box::pin(async move {
            let deadline = rt::instant() + COPY_WAIT;
            while rt::instant() < deadline {
                if self.ledger.blobs.size(&cid).is_some() {
                    return Ok(());
                }
                if let Some(fetch) = self.ledger.blobs.fetch(cid) {
                    let node = Arc::clone(self);
                    // It goes on when who asked has gone.
                    let fetched = rt::spawn(async move { node.fetch(&fetch, &node.peers()).await });
                    let left = deadline.saturating_duration_since(rt::instant());
                    if let Ok(Ok(fetched)) = rt::timeout(left, fetched).await {
                        return fetched;
                    }
                } else {
                    rt::sleep(COPY_LOOK).await;
                }
            }
            Err(Error::Unavailable(format!("the blob {cid} is still being copied from a peer; ask again")))
        })
    }

    /// Gets a blob from the first of some peers that has it.
    ///
    /// # Errors
    /// [`Error::DamagedBlob`] when none has.
    async fn fetch(&self, fetch: &Fetch, from: &[u64]) -> Result<(), Error> {
        for peer in from {
            match self.fetch_from(fetch, *peer).await {
                Err(error @ (Error::NoRoom { .. } | Error::Overloaded)) => return Err(error),
                Err(error) => tracing::debug!(cid = %fetch.cid, peer, %error, "a peer did not give a blob"),
                Ok(()) => return Ok(()),
            }
        }
        Err(Error::DamagedBlob(fetch.cid.to_string()))
    }

    async fn fetch_from(&self, fetch: &Fetch, peer: u64) -> Result<(), Error> {
        let (mut upload, mut offset): (Option<BlobUpload>, u64) = (None, 0);
        loop {
            let question = Question::Piece { blob: fetch.cid.hash(), offset };
            let Reply::Piece { size, bytes } = self.consensus.ask(peer, question, PIECE_WAIT).await? else {
                return Err(Error::Unavailable("the peer answered another question".into()));
            };
            let so_far = match upload.take() {
                Some(upload) => upload,
                None => self.upload_of(size).await?,
            };
            offset += bytes.len() as u64;
            let ended = bytes.is_empty() || offset >= size;
            let so_far = if bytes.is_empty() { so_far } else { so_far.write(bytes).await? };
            if ended {
                return so_far.finish_fetch(fetch).await;
            }
            upload = Some(so_far);
        }
    }

    async fn upload_of(&self, size: u64) -> Result<BlobUpload, Error> {
        // The node that took it in had its own limit.
        let bounds = Bounds { blob_bytes_max: u64::MAX, reserve_bytes: self.config.reserve_bytes };
        let blobs = Arc::clone(&self.ledger.blobs);
        let begun = rt::blocking(move || blobs.upload(Some(size), bounds)).await;
        begun.map_err(|e| Error::Unavailable(format!("beginning a copy ended early: {e}")))?
    }
}

/// Gets from peers what values name and is not here, until the node stops.
pub(super) async fn heal(node: Arc<Inner>) {
    loop {
        rt::sleep(HEAL_INTERVAL).await;
        let mut failed = 0;
        for cid in node.ledger.blobs.missing() {
            let Some(fetch) = node.ledger.blobs.fetch(cid).filter(|_| node.has_peers()) else { continue };
            match node.fetch(&fetch, &node.peers()).await {
                Ok(()) => tracing::info!(%cid, "a blob that was missing here came from a peer"),
                Err(error) => {
                    failed += 1;
                    tracing::warn!(%cid, %error, "a blob that values name is missing here, and no peer gave it");
                }
            }
        }
        if failed > 0 {
            rt::sleep(HEAL_RETRY).await;
        }
    }
}
