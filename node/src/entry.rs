//! Entries, the leaves of the chain log: one line of canonical JSON each (`docs/reference/formats.md`), and the
//! commitments in them.
//!
//! An entry says who wrote what and when, never the value: of that it has a salted commitment. The reader takes only what
//! the writer writes, so a line and its [`Entry`] are one to one. Both borrow the caller's texts.

use std::borrow::Cow;

pub use crate::canonical::Malformed;
use crate::canonical::{
    HASH_CHARS, NUMBER_DIGITS_MAX, Reader, push_base64_string, push_number, push_number_or_null, push_string,
    string_bytes,
};
use crate::command::{ENTRY_BYTES_MAX, Key, MEDIA_TYPE_BYTES_MAX, OPERATIONS_MAX, Operation};
use crate::merkle::Hash;

mod committed;
mod recovery;

pub use committed::{MapValue, commitment};
pub use recovery::{REASON_BYTES_MAX, Recovery};

/// Longest author id, in bytes.
pub const AUTHOR_BYTES_MAX: usize = 128;
/// Most members of one kind, and most cosigners.
pub const MEMBERS_MAX: usize = 64;
/// Longest verifier key, in bytes: room for the 1,312 bytes of an ML-DSA-44 key.
pub const VKEY_BYTES_MAX: usize = 2_560;

/// A leaf of the chain log. More types may come; a reader that does not know a type says so.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Entry<'a> {
    /// What a client wrote.
    Transaction(Transaction<'a>),
    /// The end of a block.
    Block(Block),
    /// A change of the cluster's members.
    Membership(Membership),
    /// A change of the keys that sign the log.
    Cosigners(Cosigners<'a>),
    /// A log that is gone on with by other keys, after its quorum was lost.
    Recovery(Recovery<'a>),
}

/// A transaction that was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction<'a> {
    /// Milliseconds since 1970, never less than in the entries before.
    pub time_ms: u64,
    /// Id of the principal.
    pub author: Cow<'a, str>,
    /// What it changed, 1 to [`OPERATIONS_MAX`] changes, each key once.
    pub changes: Vec<Change<'a>>,
}

/// What a transaction does to one key.
///
/// `previous` is the index of the entry that last put or deleted the key before this one, so that the history of a key is
/// a chain through the log; `None`: none ever did. An erase is not part of that chain: it only names where it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change<'a> {
    /// Sets it. The index of the entry is the revision of the value.
    Put {
        /// The key.
        key: Cow<'a, str>,
        /// The revision or deletion before.
        previous: Option<u64>,
        /// [`commitment`] of the value.
        commitment: Hash,
        /// Size of the value in bytes.
        size: u64,
        /// Media type of the value.
        media_type: Cow<'a, str>,
        /// Whether the value is the CID of a blob.
        blob: bool,
    },
    /// Removes it.
    Delete {
        /// The key.
        key: Cow<'a, str>,
        /// The revision that it removes.
        previous: u64,
    },
    /// Destroys the value and the salt of one revision.
    Erase {
        /// The key.
        key: Cow<'a, str>,
        /// The revision.
        revision: u64,
        /// The newest revision or deletion.
        previous: Option<u64>,
    },
}

/// The last entry of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// Number of the block, from 1.
    pub height: u64,
    /// Milliseconds since 1970.
    pub time_ms: u64,
    /// Entries of the block before this one.
    pub count: u64,
    /// Leaf hash of the previous block entry; `None` for the first block.
    pub previous: Option<Hash>,
    /// Root of the state map after the block.
    pub state: Hash,
}

/// The members of the cluster from here on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// Milliseconds since 1970.
    pub time_ms: u64,
    /// Ids of the nodes that vote.
    pub voters: Vec<u64>,
    /// Ids of the nodes that only follow.
    pub learners: Vec<u64>,
}

/// The keys of the log from here on. A receipt of this entry under the policy before it is how a verifier follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cosigners<'a> {
    /// Milliseconds since 1970.
    pub time_ms: u64,
    /// Id of the principal.
    pub author: Cow<'a, str>,
    /// Verifier key of the log.
    pub log: Cow<'a, str>,
    /// Verifier keys of the cosigners.
    pub cosigners: Vec<Cow<'a, str>>,
    /// The new policy, as C2SP tlog-policy.
    pub policy: Cow<'a, str>,
}

impl<'a> Change<'a> {
    /// The key that it changes.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key, .. } | Self::Erase { key, .. } => key,
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Put { key, previous, commitment, size, media_type, blob } => {
                out.extend_from_slice(br#"{"put":{"key":"#);
                push_string(out, key);
                out.extend_from_slice(br#","previous":"#);
                push_number_or_null(out, *previous);
                out.extend_from_slice(br#","commitment":"#);
                push_base64_string(out, commitment);
                out.extend_from_slice(br#","size":"#);
                push_number(out, *size);
                out.extend_from_slice(br#","media":"#);
                push_string(out, media_type);
                if *blob {
                    out.extend_from_slice(br#","blob":true"#);
                }
            }
            Self::Delete { key, previous } => {
                out.extend_from_slice(br#"{"delete":{"key":"#);
                push_string(out, key);
                out.extend_from_slice(br#","previous":"#);
                push_number(out, *previous);
            }
            Self::Erase { key, revision, previous } => {
                out.extend_from_slice(br#"{"erase":{"key":"#);
                push_string(out, key);
                out.extend_from_slice(br#","revision":"#);
                push_number(out, *revision);
                out.extend_from_slice(br#","previous":"#);
                push_number_or_null(out, *previous);
            }
        }
        out.extend_from_slice(b"}}");
    }

    fn read(r: &mut Reader<'a>) -> Result<Self, Malformed> {
        if r.accept(r#"{"put":{"key":"#) {
            return Self::read_put(r);
        }
        let change = if r.accept(r#"{"delete":{"key":"#) {
            let key = read_key(r)?;
            r.expect(r#","previous":"#)?;
            Self::Delete { key, previous: r.number()? }
        } else {
            r.expect(r#"{"erase":{"key":"#)
                .map_err(|e| Malformed::new(e.at, r#"an operation: {"put":…, {"delete":… or {"erase":…"#))?;
            let key = read_key(r)?;
            r.expect(r#","revision":"#)?;
            let revision = r.number()?;
            r.expect(r#","previous":"#)?;
            Self::Erase { key, revision, previous: r.number_or_null()? }
        };
        r.expect("}}")?;
        Ok(change)
    }

    fn read_put(r: &mut Reader<'a>) -> Result<Self, Malformed> {
        let key = read_key(r)?;
        r.expect(r#","previous":"#)?;
        let previous = r.number_or_null()?;
        r.expect(r#","commitment":"#)?;
        let commitment = r.hash()?;
        r.expect(r#","size":"#)?;
        let size = r.number()?;
        r.expect(r#","media":"#)?;
        let media_type = r.name("a media type", MEDIA_TYPE_BYTES_MAX)?;
        let blob = r.accept(r#","blob":true"#);
        r.expect("}}")?;
        Ok(Self::Put { key, previous, commitment, size, media_type, blob })
    }
}

fn read_key<'a>(r: &mut Reader<'a>) -> Result<Cow<'a, str>, Malformed> {
    let at = r.at();
    let key = r.string()?;
    Key::check(&key).map_err(|why| Malformed::new(at, format!("a key ({why})")))?;
    Ok(key)
}

impl<'a> Entry<'a> {
    /// The line, without a newline. It is within [`ENTRY_BYTES_MAX`] if the entry is within the bounds of its parts; for a
    /// transaction see [`transaction_bytes_max`].
    #[must_use]
    pub fn to_line(&self) -> Vec<u8> {
        let mut line = Vec::with_capacity(384);
        self.write_line(&mut line);
        line
    }

    /// Appends the line to `out`.
    pub fn write_line(&self, out: &mut Vec<u8>) {
        match self {
            Self::Transaction(transaction) => transaction.write(out),
            Self::Block(block) => block.write(out),
            Self::Membership(membership) => membership.write(out),
            Self::Cosigners(cosigners) => cosigners.write(out),
            Self::Recovery(recovery) => recovery.write(out),
        }
    }

    /// Reads a line.
    ///
    /// # Errors
    /// When it is not, byte for byte, what [`Entry::to_line`] writes for some entry; says where and what is expected.
    pub fn parse(line: &'a [u8]) -> Result<Self, Malformed> {
        let mut r = reader(line)?;
        r.expect(r#"{"type":""#)?;
        let entry = if r.accept(r#"transaction","#) {
            Self::Transaction(Transaction::read(&mut r)?)
        } else if r.accept(r#"block","#) {
            Self::Block(Block::read(&mut r)?)
        } else if r.accept(r#"membership","#) {
            Self::Membership(Membership::read(&mut r)?)
        } else if r.accept(r#"cosigners","#) {
            Self::Cosigners(Cosigners::read(&mut r)?)
        } else if r.accept(r#"recovery","#) {
            Self::Recovery(Recovery::read(&mut r)?)
        } else {
            return Err(Malformed::new(r.at(), "a type of entry that this version knows"));
        };
        r.end()?;
        Ok(entry)
    }

    /// Time of the entry, milliseconds since 1970.
    #[must_use]
    pub fn time_ms(&self) -> u64 {
        match self {
            Self::Transaction(t) => t.time_ms,
            Self::Block(b) => b.time_ms,
            Self::Membership(m) => m.time_ms,
            Self::Cosigners(c) => c.time_ms,
            Self::Recovery(r) => r.keys.time_ms,
        }
    }

    /// The keys of the log from here on, where they change.
    #[must_use]
    pub fn keys(&self) -> Option<&Cosigners<'a>> {
        match self {
            Self::Cosigners(keys) | Self::Recovery(Recovery { keys, .. }) => Some(keys),
            _ => None,
        }
    }

    /// The changes of a transaction; none for other entries.
    #[must_use]
    pub fn changes(&self) -> &[Change<'a>] {
        match self {
            Self::Transaction(t) => &t.changes,
            _ => &[],
        }
    }
}

fn reader(line: &[u8]) -> Result<Reader<'_>, Malformed> {
    if line.len() > ENTRY_BYTES_MAX {
        return Err(Malformed::new(ENTRY_BYTES_MAX, "the end of the entry: it has at most 65535 bytes"));
    }
    Reader::new(line)
}

impl<'a> Transaction<'a> {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(br#"{"type":"transaction","time":"#);
        push_number(out, self.time_ms);
        out.extend_from_slice(br#","author":"#);
        push_string(out, &self.author);
        out.extend_from_slice(br#","operations":["#);
        for (n, change) in self.changes.iter().enumerate() {
            if n > 0 {
                out.push(b',');
            }
            change.write(out);
        }
        out.extend_from_slice(b"]}");
    }

    fn read(r: &mut Reader<'a>) -> Result<Self, Malformed> {
        let (time_ms, author) = Self::read_head(r)?;
        let at = r.at();
        let changes = r.array(OPERATIONS_MAX, Change::read)?;
        r.expect("}")?;
        let mut keys: Vec<&str> = changes.iter().map(Change::key).collect();
        keys.sort_unstable();
        if keys.is_empty() || keys.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(Malformed::new(at, "at least one operation, and none twice on a key"));
        }
        Ok(Self { time_ms, author, changes })
    }

    fn read_head(r: &mut Reader<'a>) -> Result<(u64, Cow<'a, str>), Malformed> {
        r.expect(r#""time":"#)?;
        let time_ms = r.number()?;
        r.expect(r#","author":"#)?;
        let author = r.name("an author", AUTHOR_BYTES_MAX)?;
        r.expect(r#","operations":"#)?;
        Ok((time_ms, author))
    }
}

/// The change that a transaction's line makes to `key`; `None` when it is not a transaction or does not name the key.
///
/// For walks through a key's history: it reads no further than the change.
///
/// # Errors
/// When the line is malformed before that place.
pub fn find_change<'a>(line: &'a [u8], key: &str) -> Result<Option<Change<'a>>, Malformed> {
    let mut r = reader(line)?;
    if !r.accept(r#"{"type":"transaction","#) {
        return Ok(None);
    }
    Transaction::read_head(&mut r)?;
    r.expect("[")?;
    loop {
        let change = Change::read(&mut r)?;
        if change.key() == key {
            return Ok(Some(change));
        }
        if r.accept("]") {
            return Ok(None);
        }
        r.expect(",")?;
    }
}

impl Block {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(br#"{"type":"block","height":"#);
        push_number(out, self.height);
        out.extend_from_slice(br#","time":"#);
        push_number(out, self.time_ms);
        out.extend_from_slice(br#","count":"#);
        push_number(out, self.count);
        out.extend_from_slice(br#","previous":"#);
        match &self.previous {
            Some(hash) => push_base64_string(out, hash),
            None => out.extend_from_slice(b"null"),
        }
        out.extend_from_slice(br#","state":"#);
        push_base64_string(out, &self.state);
        out.push(b'}');
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        r.expect(r#""height":"#)?;
        let at = r.at();
        let height = r.number()?;
        r.expect(r#","time":"#)?;
        let time_ms = r.number()?;
        r.expect(r#","count":"#)?;
        let count = r.number()?;
        r.expect(r#","previous":"#)?;
        let previous = if r.accept("null") { None } else { Some(r.hash()?) };
        r.expect(r#","state":"#)?;
        let state = r.hash()?;
        r.expect("}")?;
        if height == 0 || (height == 1) != previous.is_none() {
            return Err(Malformed::new(at, "a height from 1, and a previous block for all but the first"));
        }
        Ok(Self { height, time_ms, count, previous, state })
    }
}

impl Membership {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(br#"{"type":"membership","time":"#);
        push_number(out, self.time_ms);
        for (name, ids) in [(br#","voters":["#.as_slice(), &self.voters), (br#","learners":["#, &self.learners)] {
            out.extend_from_slice(name);
            push_list(out, ids, |out, id| push_number(out, *id));
        }
        out.push(b'}');
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        r.expect(r#""time":"#)?;
        let time_ms = r.number()?;
        r.expect(r#","voters":"#)?;
        let voters = r.array(MEMBERS_MAX, Reader::number)?;
        r.expect(r#","learners":"#)?;
        let learners = r.array(MEMBERS_MAX, Reader::number)?;
        r.expect("}")?;
        Ok(Self { time_ms, voters, learners })
    }
}

impl<'a> Cosigners<'a> {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(br#"{"type":"cosigners","#);
        self.write_fields(out);
        out.push(b'}');
    }

    fn write_fields(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(br#""time":"#);
        push_number(out, self.time_ms);
        out.extend_from_slice(br#","author":"#);
        push_string(out, &self.author);
        out.extend_from_slice(br#","log":"#);
        push_string(out, &self.log);
        out.extend_from_slice(br#","cosigners":["#);
        push_list(out, &self.cosigners, |out, vkey| push_string(out, vkey));
        out.extend_from_slice(br#","policy":"#);
        push_string(out, &self.policy);
    }

    fn read(r: &mut Reader<'a>) -> Result<Self, Malformed> {
        let keys = Self::read_fields(r)?;
        r.expect("}")?;
        Ok(keys)
    }

    fn read_fields(r: &mut Reader<'a>) -> Result<Self, Malformed> {
        r.expect(r#""time":"#)?;
        let time_ms = r.number()?;
        r.expect(r#","author":"#)?;
        let author = r.name("an author", AUTHOR_BYTES_MAX)?;
        r.expect(r#","log":"#)?;
        let log = r.name("a verifier key", VKEY_BYTES_MAX)?;
        r.expect(r#","cosigners":"#)?;
        let cosigners = r.array(MEMBERS_MAX, |r| r.name("a verifier key", VKEY_BYTES_MAX))?;
        r.expect(r#","policy":"#)?;
        let policy = r.string()?;
        Ok(Self { time_ms, author, log, cosigners, policy })
    }
}

/// Writes the items and the closing bracket.
fn push_list<T>(out: &mut Vec<u8>, items: &[T], mut write: impl FnMut(&mut Vec<u8>, &T)) {
    for (n, item) in items.iter().enumerate() {
        if n > 0 {
            out.push(b',');
        }
        write(out, item);
    }
    out.push(b']');
}

/// Upper bound, in bytes, of the line of a transaction whose time, revisions and commitments are not known yet.
#[must_use]
pub fn transaction_bytes_max(author: &str, operations: &[Operation]) -> usize {
    const HEAD: usize = br#"{"type":"transaction","time":,"author":,"operations":[]}"#.len() + NUMBER_DIGITS_MAX;
    const PUT: usize = br#"{"put":{"key":,"previous":,"commitment":"","size":,"media":,"blob":true}},"#.len();
    const DELETE: usize = br#"{"delete":{"key":,"previous":}},"#.len();
    const ERASE: usize = br#"{"erase":{"key":,"revision":,"previous":}},"#.len();
    let change = |operation: &Operation| {
        let rest = match operation {
            Operation::Put { media_type, .. } => PUT + 2 * NUMBER_DIGITS_MAX + HASH_CHARS + string_bytes(media_type),
            Operation::Delete { .. } => DELETE + NUMBER_DIGITS_MAX,
            Operation::Erase { .. } => ERASE + 2 * NUMBER_DIGITS_MAX,
        };
        rest + string_bytes(operation.key().as_str())
    };
    HEAD + string_bytes(author) + operations.iter().map(change).sum::<usize>()
}

#[cfg(test)]
mod tests;
