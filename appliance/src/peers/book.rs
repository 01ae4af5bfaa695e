//! What this node knows of its peers, and how old that is.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::Duration;

use samovar_node::rt;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// A peer that was heard of within this time counts as live: three reports may be late.
const LIVE_WITHIN: Duration = Duration::from_secs(3);
/// Most errors of a peer that are kept, and longest of them in bytes: who shows them is not to be flooded.
const ERRORS_MAX: usize = 8;
const ERROR_BYTES_MAX: usize = 512;

/// What a node says of itself to its peers, once a second.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Verifier key of its cosignatures.
    pub(crate) cosigner: String,
    /// Version of its binary.
    pub(crate) version: String,
    /// `leader`, `follower`, `candidate`, `learner` or `stopped`.
    pub(crate) role: String,
    /// Id of the leader it knows.
    pub(crate) leader: Option<u64>,
    /// Raft term.
    pub(crate) term: u64,
    /// Height of its newest block.
    pub(crate) height: u64,
    /// Newest index of its raft log.
    #[serde(default)]
    pub(crate) raft_index: u64,
    /// Free space for its data directory, in bytes.
    pub(crate) free_bytes: u64,
    /// Size of that file system, if it is known.
    pub(crate) disk_bytes: Option<u64>,
    /// The newest format of commands that its version reads.
    #[serde(default = "first_format")]
    pub(crate) format: u8,
    /// The same of the version in the spare slot, if the machine has one.
    #[serde(default)]
    pub(crate) spare_format: Option<u8>,
    /// What is wrong with it.
    pub(crate) errors: Vec<String>,
}

/// What a version reads that does not say.
fn first_format() -> u8 {
    samovar_node::format::FIRST
}

/// How calls to a peer ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Calls {
    /// With its answer.
    pub(crate) answered: u64,
    /// Surely without reaching it.
    pub(crate) not_sent: u64,
    /// Without an answer, whatever it did.
    pub(crate) no_answer: u64,
}

/// What is known of a peer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Known {
    /// When it was last heard of, either way.
    pub(crate) contact: Option<Instant>,
    /// Its last report, and when that came.
    pub(crate) report: Option<(Report, Instant)>,
    /// Why the last call did not reach it, if that was after the last contact.
    pub(crate) trouble: Option<String>,
    /// How calls to it ended, since the start.
    pub(crate) calls: Calls,
}

impl Known {
    /// Whether it was heard of lately.
    pub(crate) fn is_live(&self) -> bool {
        self.contact.is_some_and(|at| at.elapsed() < LIVE_WITHIN)
    }
}

#[derive(Default)]
pub(super) struct Book {
    /// Locked for a look.
    peers: Mutex<HashMap<u64, Known>>,
    /// Nodes that were removed, as the ledger says here.
    removed: RwLock<BTreeSet<u64>>,
    refused: AtomicBool,
}

impl Book {
    pub(super) fn known(&self, node: u64) -> Known {
        self.lock().get(&node).cloned().unwrap_or_default()
    }

    /// A peer answered, or asked.
    pub(super) fn heard(&self, node: u64) {
        self.with(node, |known| {
            known.contact = Some(rt::instant());
            known.trouble = None;
        });
    }

    pub(super) fn answered(&self, node: u64) {
        self.with(node, |known| known.calls.answered += 1);
        self.heard(node);
    }

    pub(super) fn not_sent(&self, node: u64, why: &str) {
        self.with(node, |known| {
            known.calls.not_sent += 1;
            known.trouble = Some(why.to_owned());
        });
    }

    pub(super) fn no_answer(&self, node: u64, why: &str) {
        self.with(node, |known| {
            known.calls.no_answer += 1;
            known.trouble = Some(why.to_owned());
        });
    }

    pub(super) fn reported(&self, node: u64, mut report: Report) {
        report.errors.truncate(ERRORS_MAX);
        report.errors.retain(|error| error.len() <= ERROR_BYTES_MAX);
        self.with(node, |known| known.report = Some((report, rt::instant())));
    }

    /// Forgets all peers but these.
    pub(super) fn keep(&self, peers: &BTreeSet<u64>) {
        self.lock().retain(|node, _| peers.contains(node));
    }

    pub(super) fn set_removed(&self, removed: BTreeSet<u64>) {
        *self.removed.write().unwrap_or_else(PoisonError::into_inner) = removed;
    }

    pub(super) fn is_removed(&self, node: u64) -> bool {
        self.removed.read().unwrap_or_else(PoisonError::into_inner).contains(&node)
    }

    pub(super) fn refuse(&self, refused: bool) {
        self.refused.store(refused, Relaxed);
    }

    pub(super) fn is_refused(&self) -> bool {
        self.refused.load(Relaxed)
    }

    fn with(&self, node: u64, change: impl FnOnce(&mut Known)) {
        change(self.lock().entry(node).or_default());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Known>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
