//! What a node does that finds its state to differ from what its peers say: it cosigns nothing of theirs, answers nothing,
//! says so, and keeps both heads.
//!
//! Whose state is wrong is not known from one head alone. A node that is shown another head of the log than its own, signed
//! by the log key, is *in doubt*, until a checkpoint that meets the policy says which of the two holds: its own, and the
//! doubt is over; or the other, and then it is *proved* that this node's state is wrong, for good.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::canonical::push_base64;
use crate::disk::Disk;
use crate::durable;
use crate::error::Error;
use crate::merkle::Hash;

/// File of two heads that contradict each other.
pub(crate) const DIVERGENCE: &str = "divergence.json";

/// Two heads of one log that contradict each other, as kept in the file `divergence.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Divergence {
    /// Entries of both heads.
    pub size: u64,
    /// This node's Merkle root over them, base64.
    pub own_root: String,
    /// This node's state root as of their end, base64; empty when no block ends there.
    pub own_state: String,
    /// The checkpoint that it was shown, a signed note.
    pub shown: String,
    /// State root that goes with it, base64, as far as it was told.
    pub shown_state: String,
    /// Id of the node that showed it.
    pub from: u64,
    /// Whether it is proved that this node is the one that is wrong; else that is in doubt.
    pub proved: bool,
    /// When it was found, by this node's clock, milliseconds since 1970.
    pub time_ms: u64,
}

/// A hash as text.
pub(super) fn text(hash: &Hash) -> String {
    let mut out = Vec::new();
    push_base64(&mut out, hash);
    String::from_utf8(out).unwrap_or_default()
}

/// Whether this node's state is known to differ from its peers'.
pub(crate) struct Soundness {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    found: Mutex<Option<Divergence>>,
    silent: AtomicBool,
    proved: watch::Sender<bool>,
    forged: AtomicU64,
}

impl Soundness {
    pub(super) fn open(disk: &Arc<dyn Disk>, data: &Path) -> Result<Self, Error> {
        let path = data.join(DIVERGENCE);
        let found = match durable::read(disk.as_ref(), &path)? {
            Some(bytes) => {
                let found: Divergence = serde_json::from_slice(&bytes).map_err(|e| {
                    Error::Corrupt(format!("{} is damaged ({e}): rejoin the cluster from its peers", path.display()))
                })?;
                tell(&found);
                Some(found)
            }
            None => None,
        };
        Ok(Self {
            disk: Arc::clone(disk),
            path,
            silent: AtomicBool::new(found.is_some()),
            proved: watch::Sender::new(found.as_ref().is_some_and(|found| found.proved)),
            found: Mutex::new(found),
            forged: AtomicU64::new(0),
        })
    }

    fn found(&self) -> MutexGuard<'_, Option<Divergence>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was found, if this node is in doubt or proved to be wrong.
    pub(crate) fn divergence(&self) -> Option<Divergence> {
        self.found().clone()
    }

    /// Refuses to answer anybody while the state is in doubt or wrong.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if !self.silent.load(Relaxed) {
            return Ok(());
        }
        let Some(Divergence { size, proved, .. }) = self.divergence() else { return Ok(()) };
        let what = if proved {
            "this node's state is wrong: rejoin the cluster from its peers, and keep divergence.json"
        } else {
            "which of them is wrong is not known yet"
        };
        Err(Error::Unavailable(format!(
            "this node and its peers have different heads of {size} entries; {what}. It answers nothing meanwhile"
        )))
    }

    /// Whether it is proved that this node is wrong.
    pub(crate) fn is_proved(&self) -> bool {
        *self.proved.borrow()
    }

    /// Resolves when it is proved that this node is wrong.
    pub(crate) async fn proved(&self) {
        let mut proved = self.proved.subscribe();
        // The sender lives as long as this does.
        let _ = proved.wait_for(|proved| *proved).await;
    }

    /// Takes note of two heads, durably. The first ones are kept, unless these prove more.
    pub(super) fn differ(&self, divergence: Divergence) -> Result<(), Error> {
        let mut found = self.found();
        if found.as_ref().is_some_and(|known| known.proved || !divergence.proved) {
            return Ok(());
        }
        tell(&divergence);
        let (bytes, proved) = (serde_json::to_vec_pretty(&divergence).unwrap_or_default(), divergence.proved);
        // Silent before the disk is asked: that may fail.
        *found = Some(divergence);
        self.silent.store(true, Relaxed);
        self.proved.send_replace(proved);
        durable::replace(self.disk.as_ref(), &self.path, &bytes)
    }

    /// A checkpoint of `size` entries meets the policy and is this node's head, too: what was in doubt before is not any more.
    /// The two heads stay on the disk under another name.
    pub(super) fn clear(&self, size: u64) -> Result<(), Error> {
        if !self.silent.load(Relaxed) {
            return Ok(());
        }
        let mut found = self.found();
        let Some(cleared) = found.take_if(|known| !known.proved && known.size <= size) else { return Ok(()) };
        tracing::warn!(
            size = cleared.size, shown = %cleared.shown, from = cleared.from,
            "the peers have this node's state: the other head was signed falsely, by whoever holds the log key"
        );
        self.silent.store(false, Relaxed);
        let aside = self.path.with_extension("cleared.json");
        let moved = self.disk.rename(&self.path, &aside);
        let moved = moved.and_then(|()| self.disk.sync_directory(self.path.parent().unwrap_or(Path::new("."))));
        moved.map_err(|e| Error::io(format!("renaming {}", self.path.display()), &e))
    }

    /// Takes note of a checkpoint that the log key did not sign.
    pub(super) fn note_forged(&self, note: &str, from: u64) {
        self.forged.fetch_add(1, Relaxed);
        tracing::error!(from, note, "a peer showed a checkpoint that the log key did not sign: it is not cosigned");
    }

    /// Checkpoints that peers showed and the log key did not sign, since start.
    pub(crate) fn forged(&self) -> u64 {
        self.forged.load(Relaxed)
    }
}

fn tell(divergence: &Divergence) {
    let Divergence { size, own_root, own_state, shown, shown_state, from, proved, .. } = divergence;
    tracing::error!(
        size,
        own_root,
        own_state,
        shown,
        shown_state,
        from,
        proved,
        "this node and its peers have different heads of the chain log: it cosigns and answers nothing; both heads are kept \
         in divergence.json"
    );
}
