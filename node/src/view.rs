//! What reads return: plain data, no handles.

use std::time::Duration;

use bytes::Bytes;

pub use crate::cosign::Divergence;

use crate::checkpoint::Checkpoint;
use crate::command::Key;

/// Which state a read must see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consistency {
    /// At least everything acknowledged before the read began.
    Linearizable,
    /// What this node has applied.
    Stale,
}

/// A read of one key.
#[derive(Debug, Clone)]
pub struct Reading {
    /// Height of the block as of which the read holds.
    pub block: u64,
    /// What was found.
    pub found: Found,
}

/// State of a key.
#[derive(Debug, Clone)]
pub enum Found {
    /// It has a value.
    Value(Value),
    /// It was never written, or is deleted.
    Absent,
    /// Its value was erased.
    Erased {
        /// Revision of the value.
        revision: u64,
        /// Index of the entry that erased it.
        erased_by: u64,
    },
}

/// Whether a reading found a value; for callers that only ask.
impl Found {
    /// The revision of what was found.
    #[must_use]
    pub fn revision(&self) -> Option<u64> {
        match self {
            Self::Value(value) => Some(value.revision),
            Self::Erased { revision, .. } => Some(*revision),
            Self::Absent => None,
        }
    }
}

/// A value with what its entry says of it.
#[derive(Debug, Clone)]
pub struct Value {
    /// Index of the entry that wrote it.
    pub revision: u64,
    /// The value; for a blob, the text of its CID.
    pub content: Bytes,
    /// Media type.
    pub media_type: String,
    /// Whether the value is the CID of a blob.
    pub blob: bool,
}

/// A row of a key listing.
#[derive(Debug, Clone)]
pub struct KeyRow {
    /// The key.
    pub key: Key,
    /// Revision of its value.
    pub revision: u64,
    /// Whether the value is the CID of a blob; the size is then the blob's.
    pub blob: bool,
    /// Size of the value in bytes.
    pub size: u64,
    /// Media type of the value.
    pub media_type: String,
}

/// One page of a key listing, in byte order of the keys.
#[derive(Debug, Clone)]
pub struct KeyPage {
    /// Height of the block as of which the page holds.
    pub block: u64,
    /// The rows.
    pub keys: Vec<KeyRow>,
    /// Pass as `after` to go on; `None`: this was the last page.
    pub next: Option<Key>,
}

/// One revision of a key, newest first in a history.
#[derive(Debug, Clone)]
pub struct Version {
    /// Index of the entry.
    pub revision: u64,
    /// Time of the entry, milliseconds since 1970.
    pub time_ms: u64,
    /// Id of the principal that wrote it.
    pub author: String,
    /// Height of its block.
    pub block: u64,
    /// What it did.
    pub change: Change,
}

/// What a revision did to its key.
#[derive(Debug, Clone)]
pub enum Change {
    /// Set it.
    Put {
        /// Size of the value in bytes.
        size: u64,
        /// Media type.
        media_type: String,
        /// Whether the value is a blob's CID.
        blob: bool,
        /// Index of the entry that erased the value, if one did.
        erased_by: Option<u64>,
    },
    /// Deleted it.
    Delete,
}

/// One page of a key's history.
#[derive(Debug, Clone)]
pub struct HistoryPage {
    /// The revisions, newest first.
    pub versions: Vec<Version>,
    /// Pass as `before` to go on; `None`: this was the last page.
    pub next: Option<u64>,
}

/// Any entry of the chain log with the values still held.
#[derive(Debug, Clone)]
pub struct Record {
    /// Index in the chain log.
    pub index: u64,
    /// Height of its block.
    pub block: u64,
    /// The leaf: one line of JSON without newline.
    pub line: Bytes,
    /// For each put of the entry, in order, its key and what is left of its value.
    pub openings: Vec<(Key, Opening)>,
}

/// What opens a salted commitment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opening {
    /// Commitment = SHA-256(salt ‖ value).
    Value {
        /// 32 random bytes.
        salt: [u8; 32],
        /// The value.
        value: Bytes,
    },
    /// The value and its salt are destroyed.
    Erased {
        /// Index of the entry that says so.
        erased_by: u64,
    },
}

/// A block.
#[derive(Debug, Clone)]
pub struct BlockRow {
    /// Height, from 1.
    pub height: u64,
    /// Index of its first entry.
    pub first: u64,
    /// Index of the block entry, its last one.
    pub last: u64,
    /// Time, milliseconds since 1970.
    pub time_ms: u64,
    /// The block entry: one line of JSON.
    pub line: Bytes,
}

/// Where the chain stands on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Head {
    /// Height of the newest applied block; 0: none.
    pub height: u64,
    /// Number of entries in the chain log.
    pub size: u64,
    /// Time of the newest block, milliseconds since 1970.
    pub time_ms: u64,
    /// Index of the newest entry that changed system state; changes when credentials must be looked at again.
    pub system_revision: u64,
}

/// What a verifier needs to know of this log.
#[derive(Debug, Clone)]
pub struct LogInfo {
    /// Origin line of its checkpoints.
    pub origin: String,
    /// Verifier key of the log.
    pub vkey: String,
    /// Verifier keys of the cosigners.
    pub cosigners: Vec<String>,
    /// The policy, as C2SP tlog-policy.
    pub policy: String,
}

/// A part of the node that must give signs of life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// What turns waiting writes into blocks.
    Batcher,
    /// The Raft core.
    Core,
    /// What applies committed entries.
    Apply,
    /// The thread that writes and syncs the raft log.
    RaftLog,
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Batcher => "the batcher",
            Self::Core => "the Raft core",
            Self::Apply => "apply",
            Self::RaftLog => "the raft log's thread",
        })
    }
}

/// The wall clock, and what is made of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClockStatus {
    /// What the clock says, milliseconds since 1970.
    pub wall_ms: u64,
    /// The time that the node goes by, milliseconds since 1970.
    pub sure_ms: u64,
    /// Whether the machine says that the clock is synchronised.
    pub synchronised: bool,
    /// Whether the clock is not believed: it is not synchronised, and more than a day past what is known.
    pub doubted: bool,
    /// Whether the newest block has the time of an earlier one because the clock was doubted.
    pub held: bool,
}

/// Bounds of the classes that fsyncs of the raft log are counted in: a good disk takes less than one millisecond, an
/// election waits 400 ms, and [`RaftLogStatus::write_in_flight`] says when one does not end.
pub const FSYNC_BOUNDS: [Duration; 12] = [
    Duration::from_micros(250),
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_micros(2500),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(400),
    Duration::from_secs(1),
    Duration::from_secs(5),
];

/// How the node is.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// Id in the cluster.
    pub node: u64,
    /// Name of the node.
    pub name: String,
    /// `leader`, `follower`, `candidate`, `learner` or `stopped`.
    pub role: &'static str,
    /// Id of the leader that it heard within the last second, or of itself if a majority answered it as the leader.
    pub leader: Option<u64>,
    /// Raft term.
    pub term: u64,
    /// Voters of the cluster.
    pub voters: usize,
    /// How often the Raft core ended by itself and was started again, since the start.
    pub raft_restarts: u64,
    /// Whether it prepares for a stop, and leads only if nobody else does.
    pub draining: bool,
    /// From this node's clock to the median of the voters', in milliseconds, if that is too far for it to lead.
    pub clock_off_ms: Option<i64>,
    /// What a peer has against this node: it then votes no more, and must be removed and join again.
    pub refused_by_peers: Option<String>,
    /// Members by id that this node refuses, and why.
    pub refused_members: Vec<(u64, String)>,
    /// Index of the last entry in the raft log.
    pub raft_index: u64,
    /// Index of the last raft entry that was applied here.
    pub applied_index: u64,
    /// Writes that wait for a block.
    pub waiting_writes: usize,
    /// Most writes that may wait.
    pub waiting_writes_max: usize,
    /// Where the chain stands.
    pub head: Head,
    /// Size of the newest published checkpoint.
    pub checkpoint_size: u64,
    /// Set while this node's state is not known to be that of its peers: it then answers nothing, and cosigns nothing of
    /// theirs that it has not.
    pub divergence: Option<Divergence>,
    /// Checkpoints that peers showed and that the log key did not sign, since start.
    pub forged_checkpoints: u64,
    /// Keys that have a value.
    pub keys: u64,
    /// Bytes free in the data directory.
    pub free_bytes: u64,
    /// Bytes kept in reserve.
    pub reserve_bytes: u64,
    /// Bytes that the store takes on disk.
    pub store_bytes: u64,
    /// Bytes that store, archive, salts, state map and raft log take together.
    pub data_bytes: u64,
    /// Names of damaged stores that were set aside in the data directory; they take room until they are removed.
    pub stores_set_aside: Vec<String>,
    /// The archive.
    pub archive: ArchiveStatus,
    /// The blobs.
    pub blobs: BlobStatus,
    /// Checkpoints published since start; each was signed and cosigned.
    pub checkpoint_rounds: u64,
    /// The clock.
    pub clock: ClockStatus,
    /// The raft log.
    pub raft_log: RaftLogStatus,
    /// What apply did and what it took.
    pub apply: ApplyStages,
}

/// The archive: the second copy of what the store holds. Sums since start.
#[derive(Debug, Clone, Copy, Default)]
pub struct ArchiveStatus {
    /// Bytes of its files.
    pub bytes: u64,
    /// Bytes that the scrub read.
    pub scrubbed_bytes: u64,
    /// Segments that it found damaged.
    pub damaged_segments: u64,
    /// Those that it made again from the store.
    pub repaired_segments: u64,
    /// When it last read all, milliseconds since 1970; 0: not yet.
    pub scrub_passed_ms: u64,
}

/// The blobs; sums since start.
#[derive(Debug, Clone, Copy, Default)]
pub struct BlobStatus {
    /// Blobs that are here whole.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Those of them that no value names.
    pub unnamed: u64,
    /// Blobs that values name and that are damaged or not here.
    pub missing: u64,
    /// Bytes that the scrub read.
    pub scrubbed_bytes: u64,
    /// Blobs found damaged.
    pub damaged: u64,
    /// When the scrub last read all, milliseconds since 1970; 0: not yet.
    pub scrub_passed_ms: u64,
}

/// The raft log on disk; sums since start.
#[derive(Debug, Clone, Copy, Default)]
pub struct RaftLogStatus {
    /// Batches written.
    pub frames: u64,
    /// Bytes written.
    pub bytes: u64,
    /// Bytes of its files, spare ones too.
    pub segment_bytes: u64,
    /// Calls of fdatasync.
    pub fsyncs: u64,
    /// The same by how long they took: one count per bound of [`FSYNC_BOUNDS`], and one for those beyond the last.
    pub fsyncs_by_time: [u64; FSYNC_BOUNDS.len() + 1],
    /// Time in them.
    pub fsync_time: Duration,
    /// The longest one.
    pub fsync_time_max: Duration,
    /// Age of the write now under way, with its fsync.
    pub write_in_flight: Option<Duration>,
}

/// CPU time of apply by stage, nanoseconds, and what it wrote; sums since start.
#[derive(Debug, Clone, Copy, Default)]
pub struct ApplyStages {
    /// Entries written, block entries included.
    pub entries: u64,
    /// Rows written to the store.
    pub rows: u64,
    /// Decoding proposals.
    pub decode_ns: u64,
    /// Checking transactions, commitments, encryption, entries and their Merkle hashes.
    pub transactions_ns: u64,
    /// The state map and its root.
    pub state_map_ns: u64,
    /// Salts and the archive's frame.
    pub archive_ns: u64,
    /// Rows.
    pub rows_ns: u64,
}

/// A member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its id.
    pub node: u64,
    /// Where its peers reach it; empty for a node that never had any.
    pub address: String,
    /// Whether it votes; if not, it is a learner.
    pub voter: bool,
}

/// A place in a raft log; ordered as Raft orders logs, the more advanced one being the larger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RaftPlace {
    /// Term of the leader that proposed the entry.
    pub term: u64,
    /// That leader.
    pub node: u64,
    /// Index of the entry.
    pub index: u64,
}

/// What a node that does not run has of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// Id of the node.
    pub node: u64,
    /// Its name.
    pub name: String,
    /// Origin of the log.
    pub origin: String,
    /// Number of the epoch.
    pub epoch: u64,
    /// Verifier key of the log.
    pub log_key: String,
    /// Newest Raft term in which the node voted.
    pub term: u64,
    /// The newest entry of its raft log. A recovery keeps all up to there.
    pub last: Option<RaftPlace>,
    /// Raft index that it knows to be committed; what comes after it may have been acknowledged or not.
    pub committed: Option<u64>,
    /// Raft index up to which it is applied.
    pub applied: u64,
    /// Transactions in the raft log that are not applied yet.
    pub waiting_writes: u64,
    /// Height of the newest block that is applied.
    pub height: u64,
    /// Entries of the chain log that are applied.
    pub size: u64,
    /// Most entries that it can have once all of the raft log is applied.
    pub size_max: u64,
    /// Time of the newest block, milliseconds since 1970.
    pub time_ms: u64,
    /// Merkle root of the log of `size` entries.
    pub root: [u8; 32],
    /// State root of the newest block.
    pub state_root: [u8; 32],
    /// The largest head that the node signed or cosigned.
    pub promised: Option<Checkpoint>,
    /// The members, as the newest membership in its raft log says.
    pub members: Vec<Member>,
    /// Whether its state was found to differ from its peers'.
    pub diverged: bool,
    /// Whether a recovery was begun here and is not through.
    pub unfinished: bool,
}
