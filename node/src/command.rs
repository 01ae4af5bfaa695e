//! What is replicated: [`Command`], and what comes of it: [`Outcome`]. Both are versioned and their encodings are held by
//! golden bytes, because every node must read what any node of the neighbouring version proposed.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::blobs::Cid;
use crate::entry;
use crate::error::Error;
use crate::format;

/// Longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 512;
/// Longest media type, in bytes.
pub const MEDIA_TYPE_BYTES_MAX: usize = 127;
/// Largest value, and largest sum of values in a transaction, in bytes.
pub const VALUE_BYTES_MAX: usize = 1 << 20;
/// Most operations in a transaction.
pub const OPERATIONS_MAX: usize = 128;
/// Largest entry of the chain log, in bytes: the limit of tlog-tiles.
pub const ENTRY_BYTES_MAX: usize = 65_535;
/// Longest `Idempotency-Key`, in bytes.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 128;
/// First character of the keys that hold system state.
pub const RESERVED_PREFIX: char = '~';

/// A key of the ledger: 1–512 bytes of UTF-8 without control characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Key(String);

impl Key {
    /// A key as a client may name it.
    ///
    /// # Errors
    /// Says what is wrong with it: empty, too long, a control character, or in the reserved range.
    pub fn client(text: &str) -> Result<Self, String> {
        if text.starts_with(RESERVED_PREFIX) {
            return Err(format!("a key may not begin with {RESERVED_PREFIX}: that range holds system state"));
        }
        Self::checked(text)
    }

    /// A key of the system state, `~…`.
    ///
    /// # Errors
    /// The same as [`Key::client`], and a key that is not in the reserved range.
    pub fn reserved(text: &str) -> Result<Self, String> {
        if !text.starts_with(RESERVED_PREFIX) {
            return Err(format!("a system key begins with {RESERVED_PREFIX}"));
        }
        Self::checked(text)
    }

    /// A key that was checked when it was written.
    pub(crate) fn stored(text: String) -> Self {
        Self(text)
    }

    fn checked(text: &str) -> Result<Self, String> {
        Self::check(text).map(|()| Self(text.to_owned()))
    }

    /// Whether a text is a key, of a client or of the system state.
    pub(crate) fn check(text: &str) -> Result<(), String> {
        if text.is_empty() {
            return Err("a key has at least one byte".into());
        }
        if text.len() > KEY_BYTES_MAX {
            return Err(format!("a key has at most {KEY_BYTES_MAX} bytes, this one has {}", text.len()));
        }
        if let Some(c) = text.chars().find(|c| c.is_control()) {
            return Err(format!("a key has no control characters, this one has U+{:04X}", u32::from(c)));
        }
        Ok(())
    }

    /// The key as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the key holds system state.
    #[must_use]
    pub fn is_reserved(&self) -> bool {
        self.0.starts_with(RESERVED_PREFIX)
    }
}

/// A condition on a key that must hold when the transaction is applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requirement {
    /// The key.
    pub key: Key,
    /// The revision it must have; `None`: it must not exist.
    pub revision: Option<u64>,
}

/// One operation of a transaction, as a client asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Set a key to a value.
    Put {
        /// The key.
        key: Key,
        /// The value; for `blob`, the text of the CID.
        value: Bytes,
        /// Media type of the value.
        media_type: String,
        /// Whether the value is the CID of a blob.
        blob: bool,
    },
    /// Remove a key; its history stays.
    Delete {
        /// The key.
        key: Key,
    },
    /// Destroy one value for good; every proof still verifies.
    Erase {
        /// The key.
        key: Key,
        /// Revision whose value is destroyed.
        revision: u64,
    },
}

impl Operation {
    /// The key that the operation names.
    #[must_use]
    pub fn key(&self) -> &Key {
        match self {
            Self::Put { key, .. } | Self::Delete { key } | Self::Erase { key, .. } => key,
        }
    }

    /// The blob that the operation puts, if it puts one.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the value is no CID.
    pub fn blob(&self) -> Result<Option<Cid>, Error> {
        match self {
            Self::Put { value, blob: true, .. } => {
                let text = String::from_utf8_lossy(value);
                text.parse().map(Some).map_err(Error::Invalid)
            }
            _ => Ok(None),
        }
    }
}

/// What makes a retry safe: the client's `Idempotency-Key` and a fingerprint of its request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idempotency {
    /// The key, unique per author.
    pub key: String,
    /// SHA-256 over the request.
    pub fingerprint: [u8; 32],
}

/// A transaction as it is handed to [`Node::write`](crate::Node::write).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// Id of the principal.
    pub author: String,
    /// Conditions; if one does not hold, nothing is written.
    pub requirements: Vec<Requirement>,
    /// What to do; a key occurs at most once.
    pub operations: Vec<Operation>,
    /// Set when the client gave an `Idempotency-Key`.
    pub idempotency: Option<Idempotency>,
}

/// What came of a write that was committed or refused; equal on every node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The transaction is in the chain log.
    Committed(Committed),
    /// A condition did not hold; nothing was written.
    Refused(Refusal),
}

/// Where a committed transaction lies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Committed {
    /// Index of the entry in the chain log: the transaction's number, and the revision of every key that it wrote.
    pub transaction: u64,
    /// Height of its block.
    pub block: u64,
    /// For each operation, in order, whether it made a key that did not exist.
    pub created: Vec<bool>,
}

/// Why a transaction was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// A requirement, or `If-Match`, did not hold.
    Requirement {
        /// The key.
        key: Key,
        /// The revision asked for.
        required: Option<u64>,
        /// The revision it has.
        actual: Option<u64>,
    },
    /// A key to delete does not exist.
    Absent {
        /// The key.
        key: Key,
    },
    /// The revision to erase is not one of this key's values.
    NoSuchRevision {
        /// The key.
        key: Key,
        /// The revision asked for.
        revision: u64,
    },
    /// The value was erased before.
    AlreadyErased {
        /// The key.
        key: Key,
        /// Index of the entry that erased it.
        erased_by: u64,
    },
    /// The `Idempotency-Key` was used for another request.
    IdempotencyMismatch,
}

/// What is replicated. The first byte of its encoding is the format version; the rest is postcard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Command {
    /// Transactions that share a block.
    Writes {
        /// Wall clock of the proposer, milliseconds since 1970.
        time_ms: u64,
        /// In the order in which they are applied.
        writes: Vec<WriteCommand>,
    },
    /// A change of the keys that sign checkpoints.
    Cosigners {
        /// Wall clock of the proposer, milliseconds since 1970.
        time_ms: u64,
        /// Id of the principal.
        author: String,
        /// Verifier key of the log.
        log: String,
        /// Verifier keys of the cosigners.
        cosigners: Vec<String>,
        /// The policy, as C2SP tlog-policy.
        policy: String,
    },
    /// A change of the log key or of the cosigners: the entry of [`Command::Cosigners`], and then writes, in one block. If
    /// the first of them is refused, so is all. Format 2; 3 when the first one requires something.
    LogKey {
        /// Wall clock of the proposer, milliseconds since 1970.
        time_ms: u64,
        /// Id of the principal.
        author: String,
        /// Verifier key of the log.
        log: String,
        /// Verifier keys of the cosigners.
        cosigners: Vec<String>,
        /// The policy, as C2SP tlog-policy.
        policy: String,
        /// What the state map is to say of it, and what else belongs in the block.
        writes: Vec<WriteCommand>,
    },
    /// Transactions that share a block, some of which came together in one message of a peer. Format 4.
    Messages {
        /// Wall clock of the proposer, milliseconds since 1970.
        time_ms: u64,
        /// In the order in which they are applied.
        writes: Vec<WriteCommand>,
        /// How many of the writes came together, one after the other; they add up to all.
        counts: Vec<u32>,
    },
    /// A recovery, and then writes, in one block. Format 5. Only a node alone proposes it.
    Recovery {
        /// Wall clock of the proposer, milliseconds since 1970.
        time_ms: u64,
        /// Who did it.
        author: String,
        /// Verifier key of the log, whose name is the new origin.
        log: String,
        /// Verifier keys of the cosigners.
        cosigners: Vec<String>,
        /// The policy, as C2SP tlog-policy.
        policy: String,
        /// Why.
        reason: String,
        /// The last checkpoint of the log before.
        last: String,
        /// A larger one that somebody has.
        known: Option<String>,
        /// As in [`Command::LogKey`].
        writes: Vec<WriteCommand>,
    },
}

/// A [`Write`] as proposed: with the randomness that apply may not draw itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WriteCommand {
    pub author: String,
    pub requirements: Vec<Requirement>,
    pub operations: Vec<OperationCommand>,
    pub idempotency: Option<Idempotency>,
    /// Makes what was forwarded twice apply once.
    pub proposal: Option<ProposalId>,
}

/// An [`Operation`] with its salt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum OperationCommand {
    /// `blob`: the value is the CID of a blob of so many bytes.
    Put {
        key: Key,
        value: Bytes,
        media_type: String,
        blob: Option<u64>,
        salt: [u8; 32],
    },
    Delete {
        key: Key,
    },
    Erase {
        key: Key,
        revision: u64,
    },
}

impl OperationCommand {
    /// The key that the operation names.
    pub(crate) fn key(&self) -> &Key {
        match self {
            Self::Put { key, .. } | Self::Delete { key } | Self::Erase { key, .. } => key,
        }
    }
}

/// Names the writes of one forwarded message, which stand together in one block: node, boot of that node, sequence within
/// the boot. Never chosen by a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProposalId {
    pub node: u64,
    pub boot: u64,
    pub sequence: u64,
}

impl Command {
    /// Encodes the command as it is written to the raft log.
    pub(crate) fn encode(&self) -> Bytes {
        // postcard fails on sequences of unknown length only, and there are none.
        let encoded = postcard::to_extend(self, vec![self.format()]).unwrap_or_default();
        Bytes::from(encoded)
    }

    /// The oldest format that knows it, which it is written in, so that an older version reads what it can ([`format`]).
    pub(crate) fn format(&self) -> u8 {
        match self {
            Self::Writes { .. } | Self::Cosigners { .. } => 1,
            Self::Messages { .. } => 4,
            Self::LogKey { writes, .. } => 2 + u8::from(writes.first().is_some_and(|row| !row.requirements.is_empty())),
            Self::Recovery { .. } => 5,
        }
    }

    /// Transactions that share a block; `counts`: how many of them came together, one after the other.
    pub(crate) fn block(time_ms: u64, writes: Vec<WriteCommand>, counts: Vec<u32>) -> Self {
        if counts.iter().all(|count| *count == 1) {
            Self::Writes { time_ms, writes }
        } else {
            Self::Messages { time_ms, writes, counts }
        }
    }

    /// The writes in it.
    pub(crate) fn writes(&self) -> &[WriteCommand] {
        match self {
            Self::Writes { writes, .. }
            | Self::LogKey { writes, .. }
            | Self::Messages { writes, .. }
            | Self::Recovery { writes, .. } => writes,
            Self::Cosigners { .. } => &[],
        }
    }

    /// Decodes a command.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for bytes of another format version, or that are no command.
    pub(crate) fn decode(bytes: &Bytes) -> Result<Self, Error> {
        match bytes.split_first() {
            Some((&version @ 1..=format::NEWEST, rest)) => {
                let decoded = postcard::take_from_bytes(rest);
                let (command, left) =
                    decoded.map_err(|e| Error::Corrupt(format!("a command in the raft log is damaged: {e}")))?;
                if !left.is_empty() {
                    return Err(Error::Corrupt(format!("{} bytes follow a command in the raft log", left.len())));
                }
                let command: Self = command;
                if command.format() != version {
                    return Err(Error::Corrupt(format!("a command in the raft log is not one of format {version}")));
                }
                if let Self::Messages { writes, counts, .. } = &command
                    && counts.iter().map(|count| u64::from(*count)).sum::<u64>() != writes.len() as u64
                {
                    return Err(Error::Corrupt("a command in the raft log does not count its writes right".into()));
                }
                Ok(command)
            }
            Some((version, _)) => Err(Error::Invalid(format!(
                "the raft log holds commands of format {version}, this version reads {}: start the newer version again",
                format::NEWEST
            ))),
            None => Err(Error::Corrupt("an empty command in the raft log".into())),
        }
    }
}

impl WriteCommand {
    /// Checks a write against the limits and gives each put its salt, and a put of a blob the size that `blob_size` says.
    ///
    /// # Errors
    /// [`Error::Invalid`] or [`Error::TooLarge`]; [`Error::NoBlob`].
    pub(crate) fn prepare(
        write: Write,
        blob_size: impl Fn(&Cid) -> Option<u64>,
        mut fill: impl FnMut(&mut [u8]),
    ) -> Result<Self, Error> {
        write.check()?;
        let operations = write
            .operations
            .into_iter()
            .map(|operation| {
                let blob = operation.blob()?.map(|cid| blob_size(&cid).ok_or_else(|| Error::NoBlob(cid.to_string())));
                let blob = blob.transpose()?;
                Ok(match operation {
                    Operation::Put { key, value, media_type, .. } => {
                        let mut salt = [0; 32];
                        fill(&mut salt);
                        OperationCommand::Put { key, value, media_type, blob, salt }
                    }
                    Operation::Delete { key } => OperationCommand::Delete { key },
                    Operation::Erase { key, revision } => OperationCommand::Erase { key, revision },
                })
            })
            .collect::<Result<_, Error>>()?;
        Ok(Self {
            author: write.author,
            requirements: write.requirements,
            operations,
            idempotency: write.idempotency,
            proposal: None,
        })
    }

    /// Bytes that the write adds to a proposal, roughly; what a block's size is bounded by.
    pub(crate) fn weight(&self) -> usize {
        let operations: usize = self
            .operations
            .iter()
            .map(|o| match o {
                OperationCommand::Put { key, value, media_type, .. } => {
                    key.as_str().len() + value.len() + media_type.len() + 48
                }
                OperationCommand::Delete { key } | OperationCommand::Erase { key, .. } => key.as_str().len() + 16,
            })
            .sum();
        operations + self.requirements.len() * 64 + self.author.len() + 64
    }
}

impl Write {
    fn check(&self) -> Result<(), Error> {
        if self.operations.is_empty() {
            return Err(Error::Invalid("a transaction has at least one operation".into()));
        }
        if self.operations.len() > OPERATIONS_MAX || self.requirements.len() > OPERATIONS_MAX {
            return Err(Error::Invalid(format!(
                "a transaction has at most {OPERATIONS_MAX} operations and as many requirements"
            )));
        }
        let mut keys = std::collections::HashSet::new();
        let mut total = 0;
        for operation in &self.operations {
            if !keys.insert(operation.key()) {
                return Err(Error::Invalid(format!("the key {:?} is named twice", operation.key().as_str())));
            }
            if let Operation::Put { value, media_type, .. } = operation {
                check_media_type(media_type)?;
                limit("value", value.len(), VALUE_BYTES_MAX)?;
                total += value.len();
            }
        }
        limit("transaction", total, VALUE_BYTES_MAX)?;
        limit("entry", entry::transaction_bytes_max(&self.author, &self.operations), ENTRY_BYTES_MAX)
    }
}

fn check_media_type(text: &str) -> Result<(), Error> {
    limit("media type", text.len(), MEDIA_TYPE_BYTES_MAX)?;
    if text.is_empty() || text.bytes().any(|b| !(0x20..0x7f).contains(&b)) {
        return Err(Error::Invalid("a media type is visible ASCII, as in text/plain".into()));
    }
    Ok(())
}

fn limit(what: &'static str, size: usize, limit: usize) -> Result<(), Error> {
    if size > limit {
        return Err(Error::TooLarge { what, size: size as u64, limit: limit as u64 });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
