//! Checkpoints: one round at a time. The leader takes the newest applied block end and signs it; each cosigner that has
//! applied it, and finds the same root, makes (size, root) durable as its promise and only then cosigns it, and never a
//! smaller size again. [`crate::node`] carries a round from node to node, here is what one node does in it.
//!
//! What is published is the newest checkpoint that meets the policy ([`crate::cosigners`]). Who led its round keeps of the
//! state map what it needs to prove as of it until the next one; another node has that only while the checkpoint covers
//! its newest block, and asks the leader otherwise. Between the signature and the publication of a hand-over checkpoint the
//! log key is exchanged ([`crate::log_key`]).

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::watch;

use crate::checkpoint::Checkpoint;
use crate::clock::Clock;
use crate::cosigners::InForce;
use crate::disk::Disk;
use crate::error::Error;
use crate::ledger::{Chain, Ledger};
use crate::log_key::KeyRing;
use crate::merkle::{self, Hash, ProofError};
use crate::note::{Note, VerifierKey, assemble};
use crate::rt;
use crate::state_root::ViewId;
use crate::trace;
use crate::view::LogInfo;

mod divergence;
mod peers;
mod promise;
mod proofs;
#[cfg(test)]
pub(crate) mod signed;

pub use divergence::Divergence;
pub(crate) use divergence::{DIVERGENCE, Soundness};
pub(crate) use peers::{Examined, Shown};
pub(crate) use proofs::needs;

use promise::Promise;

/// File of the largest head promised.
pub(crate) const PROMISE: &str = "promise";

/// The largest head that the node of a data directory signed or cosigned.
pub(crate) fn promised(disk: &dyn Disk, data: &Path) -> Result<Option<Checkpoint>, Error> {
    Ok(Promise::open(disk, &data.join(PROMISE))?.newest())
}

/// Promises a head for a node that does not run.
///
/// # Errors
/// [`Error::Corrupt`] when it promised a larger one, or another of that size.
pub(crate) fn promise_last(disk: &dyn Disk, data: &Path, head: &Checkpoint) -> Result<(), Error> {
    let kept = Promise::open(disk, &data.join(PROMISE))?.make(head)?;
    kept.map_err(|newer| broken(&format!("this node cosigned {} entries, but the log has {}", newer.size, head.size)))
}

/// How long a receipt waits for a checkpoint that covers it.
const RECEIPT_WAIT: Duration = Duration::from_secs(30);

/// A checkpoint that meets the policy.
#[derive(Debug)]
pub(crate) struct Published {
    /// The signed note.
    pub text: Arc<str>,
    /// Entries that it covers; its last one is a block entry.
    pub size: u64,
    /// Who has applied the raft log up to here has applied that block.
    pub raft_index: u64,
    /// The state map as of that block, if this node has it.
    view: Mutex<Option<ViewId>>,
}

impl Published {
    fn view(&self) -> MutexGuard<'_, Option<ViewId>> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A checkpoint in the making: signed by the log, not known to meet the policy.
pub(crate) struct Round {
    pub checkpoint: Checkpoint,
    pub raft_index: u64,
    /// State root of its block.
    pub state: Hash,
    pub in_force: InForce,
    text: String,
    lines: Vec<String>,
    /// Keys of the cosignatures among the lines.
    cosigned: Vec<VerifierKey>,
    view: ViewId,
}

impl Round {
    /// The note as signed so far.
    pub(crate) fn note(&self) -> String {
        assemble(&self.text, &self.lines)
    }

    /// Adds a cosignature, if it is one of a cosigner asked for; says whether it is.
    pub(crate) fn add(&mut self, line: String) -> bool {
        let alone = assemble(&self.text, std::slice::from_ref(&line));
        let Ok(note) = Note::parse(&alone) else { return false };
        let Some(key) = self.in_force.witnesses().find(|key| matches!(note.verify(key), Ok(Some(_)))).cloned() else {
            return false;
        };
        if !self.cosigned.contains(&key) {
            self.cosigned.push(key);
            self.lines.push(line);
        }
        true
    }

    /// Whether it meets the policy.
    pub(crate) fn is_met(&self) -> bool {
        self.in_force.is_met_by(&self.cosigned)
    }
}

/// Signs checkpoints of the ledger.
pub(crate) struct Notary {
    clock: Arc<Clock>,
    ledger: Arc<Ledger>,
    promise: Promise,
    /// What was promised before the start, until the ledger is known to have it.
    promised: Mutex<Option<Checkpoint>>,
    keys: KeyRing,
    soundness: Soundness,
    published: RwLock<Option<Arc<Published>>>,
    size: watch::Sender<u64>,
    rounds: AtomicU64,
    published_at: Mutex<tokio::time::Instant>,
}

impl Notary {
    pub(crate) fn open(
        disk: &Arc<dyn Disk>,
        data: &Path,
        ledger: Arc<Ledger>,
        keys: KeyRing,
        clock: Arc<Clock>,
    ) -> Result<Self, Error> {
        Ok(Self {
            promise: Promise::open(disk.as_ref(), &data.join(PROMISE))?,
            promised: Mutex::new(None),
            soundness: Soundness::open(disk, data)?,
            clock,
            ledger,
            keys,
            published: RwLock::new(None),
            size: watch::Sender::new(0),
            rounds: AtomicU64::new(0),
            published_at: Mutex::new(rt::instant()),
        })
    }

    /// The keys of the signatures.
    pub(crate) fn keys(&self) -> &KeyRing {
        &self.keys
    }

    /// Whether this node's state is known to differ from its peers'.
    pub(crate) fn soundness(&self) -> &Soundness {
        &self.soundness
    }

    /// Keys and policy as a verifier needs them. A change of them shows here once it is handed over.
    pub(crate) fn log_info(&self) -> LogInfo {
        match self.ledger.in_force(self.ledger.newest().size) {
            Ok(Some(keys)) => keys.info(),
            Ok(None) => self.keys.log_info(),
            Err(error) => {
                tracing::error!(%error, "the keys in force cannot be read");
                self.keys.log_info()
            }
        }
    }

    /// Refuses a ledger that contradicts what this node cosigned: a node whose data fell behind must not sign again. A node
    /// that is not `alone` may be behind for now, since what it applied comes back to it from its peers: then it is
    /// [`Notary::keeps_promise`] that looks.
    pub(crate) fn check_promise(&self, alone: bool) -> Result<(), Error> {
        let Some(promised) = self.promise.newest() else { return Ok(()) };
        if promised.origin != self.keys.origin() {
            return Err(Error::Corrupt(format!(
                "node.json names the log {}, but this node cosigned {} (file promise): one of the two is damaged, or belongs \
                 to another node; restore node.json from a backup, or rejoin the cluster from its peers",
                self.keys.origin(),
                promised.origin
            )));
        }
        let (size, head) = (promised.size, self.ledger.chain().head.size);
        *self.promised() = Some(promised);
        if self.keeps_promise()? || !alone {
            return Ok(());
        }
        Err(broken(&format!("this node cosigned {size} entries, but the log has {head}")))
    }

    fn promised(&self) -> MutexGuard<'_, Option<Checkpoint>> {
        self.promised.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the ledger has all that this node cosigned before its start; not while it is behind that.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when it cosigned something else.
    pub(crate) fn keeps_promise(&self) -> Result<bool, Error> {
        let mut slot = self.promised();
        let Some(promised) = &*slot else { return Ok(true) };
        let chain = self.ledger.chain();
        if promised.size > chain.head.size {
            return Ok(false);
        }
        if self.root_at(&chain, promised.size)? != promised.root {
            return Err(broken(&format!("this node cosigned another log of {} entries", promised.size)));
        }
        *slot = None;
        Ok(true)
    }

    /// Root of the log when it had `size` entries.
    fn root_at(&self, chain: &Chain, size: u64) -> Result<Hash, Error> {
        if size == chain.head.size {
            return Ok(chain.tree.root());
        }
        let tile = |level, index, width| self.ledger.tile(chain, level, index, width);
        merkle::root_at(size, tile).map_err(unreadable)
    }

    /// Signs the newest block's end, if no checkpoint of it is published yet. Not what is before a promise made already.
    pub(crate) fn sign_newest(&self) -> Result<Option<Round>, Error> {
        let _span = trace::span("checkpoint");
        let (checkpoint, raft_index, state, view, in_force) = {
            let chain = self.ledger.chain();
            let (size, height) = (chain.head.size, chain.head.height);
            // While this node is in doubt, a round of the same head may end that.
            if height == 0 || (size <= *self.size.borrow() && self.soundness.check().is_ok()) {
                return Ok(None);
            }
            let Some(in_force) = self.ledger.in_force(size)? else { return Ok(None) };
            let checkpoint = Checkpoint { origin: self.keys.origin().to_owned(), size, root: chain.tree.root() };
            let view = self.ledger.map.freeze(height)?;
            (checkpoint, chain.head.raft_index, chain.head.state_root, view, in_force)
        };
        match self.sign(&checkpoint, &in_force) {
            Ok(Some((text, lines))) => {
                let own = in_force.witnesses().find(|key| *key == self.keys.cosigner());
                let cosigned = own.cloned().into_iter().collect();
                Ok(Some(Round { checkpoint, raft_index, state, in_force, text, lines, cosigned, view }))
            }
            other => {
                self.ledger.map.release(view)?;
                other.map(|_| None)
            }
        }
    }

    fn sign(&self, checkpoint: &Checkpoint, in_force: &InForce) -> Result<Option<(String, Vec<String>)>, Error> {
        if let Err(newer) = self.promise.make(checkpoint)? {
            return if newer.size > checkpoint.size { Ok(None) } else { Err(broken("it cosigned another log")) };
        }
        let text = checkpoint.to_text();
        let lines = self.keys.sign(&text, self.now_s(), in_force)?;
        #[cfg(test)]
        signed::note(self.keys.cosigner().name(), checkpoint);
        Ok(Some((text, lines)))
    }

    fn now_s(&self) -> u64 {
        self.clock.read(self.ledger.newest().time_ms).sure_ms / 1000
    }

    /// Gives up a checkpoint that is not published.
    pub(crate) fn discard(&self, round: &Round) -> Result<(), Error> {
        self.ledger.map.release(round.view)
    }

    /// Publishes what this node signed, once it meets the policy.
    pub(crate) fn publish(&self, round: Round) -> Result<Arc<Published>, Error> {
        let text = round.note().into();
        let Round { checkpoint: Checkpoint { size, .. }, raft_index, view, .. } = round;
        self.replace(Published { text, size, raft_index, view: Mutex::new(Some(view)) })
    }

    /// Publishes a checkpoint, unless there is a newer one.
    fn replace(&self, published: Published) -> Result<Arc<Published>, Error> {
        let (size, new) = (published.size, Arc::new(published));
        let mut slot = self.published.write().unwrap_or_else(PoisonError::into_inner);
        let newer = slot.as_ref().is_some_and(|newest| newest.size > size);
        let gone = if newer { Some(Arc::clone(&new)) } else { slot.replace(Arc::clone(&new)) };
        drop(slot);
        let view = gone.and_then(|gone| gone.view().take());
        if let Some(view) = view {
            self.ledger.map.release(view)?;
        }
        self.soundness.clear(size)?;
        if !newer {
            self.rounds.fetch_add(1, Relaxed);
            *self.published_at.lock().unwrap_or_else(PoisonError::into_inner) = rt::instant();
            self.size.send_replace(size);
        }
        Ok(new)
    }

    /// The newest checkpoint that meets the policy.
    pub(crate) fn published(&self) -> Option<Arc<Published>> {
        self.published.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The state map as of a published checkpoint, if this node has it: frozen in its round, or now, while no later block is
    /// applied.
    fn view_of(&self, published: &Arc<Published>) -> Result<Option<ViewId>, Error> {
        let known = *published.view();
        if known.is_some() {
            return Ok(known);
        }
        let chain = self.ledger.chain();
        let slot = self.published.read().unwrap_or_else(PoisonError::into_inner);
        // One that was replaced is not looked after any more.
        if chain.head.size != published.size || !slot.as_ref().is_some_and(|newest| Arc::ptr_eq(newest, published)) {
            return Ok(None);
        }
        let mut view = published.view();
        if view.is_none() {
            *view = Some(self.ledger.map.freeze(chain.head.height)?);
        }
        Ok(*view)
    }

    /// The published checkpoint, once it covers an entry.
    pub(crate) async fn covering(&self, index: u64, wait: bool) -> Result<Arc<Published>, Error> {
        if wait {
            let mut size = self.size.subscribe();
            let covered = rt::timeout(RECEIPT_WAIT, size.wait_for(|size| *size > index)).await;
            let covered = covered.map_err(|_| Error::Unavailable("no checkpoint was cosigned in time".into()))?;
            covered.map_err(|_| Error::Unavailable("the node is stopping".into()))?;
        }
        self.published().filter(|p| p.size > index).ok_or_else(|| {
            Error::Unavailable(format!(
                "no cosigned checkpoint covers entry {index} yet; ask again, or with wait=quorum"
            ))
        })
    }

    /// How long ago a checkpoint was published last.
    pub(crate) fn quiet_for(&self) -> Duration {
        self.published_at.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    /// Checkpoints published since start.
    pub(crate) fn rounds(&self) -> u64 {
        self.rounds.load(Relaxed)
    }
}

fn unreadable(error: ProofError<Error>) -> Error {
    match error {
        ProofError::Read(error) => error,
        other => Error::DamagedStore(format!("the Merkle tree cannot be read: {other}")),
    }
}

fn broken(what: &str) -> Error {
    Error::Corrupt(format!(
        "{what}; it must not sign again before its data is known to be whole: restore a backup, or rejoin the cluster \
         from its peers"
    ))
}
