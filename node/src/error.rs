//! What can go wrong at the door of the node, named by what the caller can do about it.

/// An error of the node. A *refusal* (a requirement that does not hold) is not here: it is an
/// [`Outcome`](crate::Outcome).
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Another node leads; the write or linearizable read must go there.
    #[error("this node does not lead the cluster")]
    NotLeader {
        /// Id of the leader, when it is known.
        leader: Option<u64>,
    },
    /// No quorum, or the node is stopping: nothing was written; try again.
    #[error("the ledger cannot answer now: {0}")]
    Unavailable(String),
    /// Too much is queued: nothing was written; try again later.
    #[error("too many requests are waiting")]
    Overloaded,
    /// The reserve of free space is reached: writes are refused, reads go on.
    #[error("no room: {free_bytes} bytes free in the data directory, {reserve_bytes} are kept in reserve")]
    NoRoom {
        /// Bytes free on the file system of the data directory.
        free_bytes: u64,
        /// Bytes below which writes are refused.
        reserve_bytes: u64,
    },
    /// The request is beyond a limit.
    #[error("{what} is {size} bytes, the limit is {limit}")]
    TooLarge {
        /// `value`, `transaction`, `entry` or `blob`.
        what: &'static str,
        /// Size found, in bytes.
        size: u64,
        /// Size allowed, in bytes.
        limit: u64,
    },
    /// The request can never succeed as it stands.
    #[error("{0}")]
    Invalid(String),
    /// What was asked for does not exist (a block beyond the head, an entry beyond the log).
    #[error("{0} does not exist")]
    NotFound(String),
    /// A write names a blob that is not here: nothing was written.
    #[error("the blob {0} is not here")]
    NoBlob(String),
    /// A blob that values name is damaged or missing; uploading it again mends that.
    #[error("the blob {0} is damaged or missing here, so it is not given out")]
    DamagedBlob(String),
    /// What was uploaded has not the digest that was said; it is the blob that is named here. Nothing was kept.
    #[error("the bytes that came are those of the blob {0}, not what the digest says")]
    DigestMismatch(String),
    /// The write was handed in, but whether it was committed is not known. Repeating it with the same
    /// `Idempotency-Key` is safe.
    #[error("whether the write was committed is not known")]
    Unknown,
    /// Stored data is damaged; the text says what and how to repair.
    #[error("{0}")]
    Corrupt(String),
    /// The store is damaged; the text says what. The node must be started again: it then builds the store anew from its
    /// archive.
    #[error("{0}")]
    DamagedStore(String),
    /// The ledger was recovered without this node, which must not serve again; the text says what to do.
    #[error("{0}")]
    Superseded(String),
    /// The operating system refused a file operation.
    #[error("{context}: {message}")]
    Io {
        /// What was being done, with the path.
        context: String,
        /// The system's message.
        message: String,
    },
}

impl Error {
    /// An [`Error::Io`] that says what was being done.
    pub fn io(context: impl Into<String>, error: &std::io::Error) -> Self {
        Self::Io { context: context.into(), message: error.to_string() }
    }
}
