//! The raft log as openraft wants it, over [`Wal`]: ids, votes and entries translated, nothing else.
//!
//! An entry's payload on disk is a version byte, a kind byte and the body:
//!
//! ```text
//! 1 0            blank
//! 1 1 bytes      normal: the proposal as it is
//! 1 2 JSON       membership: {"configs":[[1,2,3]],"nodes":{"1":{"addr":"…"},…}}
//! ```

use std::fmt::Debug;
use std::ops::{Bound, Range, RangeBounds};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::{BufMut, Bytes, BytesMut};
use openraft::storage::{LogFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{
    AnyError, CommittedLeaderId, Entry, EntryPayload, ErrorSubject, ErrorVerb, LogId, OptionalSend, StorageError,
    StorageIOError,
};

use super::{Proposal, TypeConfig};
use crate::disk::Disk;
use crate::error::Error;
use crate::planted::{Bug, planted};
use crate::wal::{self, Wal};

pub(super) use crate::wal::{EntryId, Vote};

/// Most bytes of payload that one read for replication returns, at least one entry.
const REPLICATION_BYTES_MAX: usize = 4 << 20;

const VERSION: u8 = 1;
const BLANK: u8 = 0;
const NORMAL: u8 = 1;
const MEMBERSHIP: u8 = 2;

/// The raft log. Clones are cheap and name the same log.
#[derive(Clone)]
pub(crate) struct RaftLog {
    wal: Wal,
    node_id: u64,
    /// How often entries were taken back since the start.
    truncations: Arc<AtomicU64>,
}

impl RaftLog {
    /// Opens the log of a node, or makes an empty one. Blocks.
    ///
    /// Whoever starts Raft on it must have called [`RaftLog::release`] with what its state holds durably, and call it
    /// again as that grows: entries that follow an installed snapshot wait for it.
    ///
    /// # Errors
    /// As [`Wal::open`].
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        directory: &Path,
        node_id: u64,
        config: &wal::Config,
    ) -> Result<Self, Error> {
        Ok(Self { wal: Wal::open(disk, directory, config)?, node_id, truncations: Arc::default() })
    }

    /// Id of the newest entry, or the purge mark when there is none.
    pub(crate) fn last_log_id(&self) -> Option<LogId<u64>> {
        self.wal.last().map(log_id)
    }

    /// The purge mark.
    pub(crate) fn purged(&self) -> Option<LogId<u64>> {
        self.wal.purged().map(log_id)
    }

    /// How often entries that another leader contradicted were taken back since the start.
    pub(super) fn truncations(&self) -> u64 {
        self.truncations.load(Relaxed)
    }

    /// Says that state is durable up to `upto`, so that what was purged up to there can go; returns when it has. With
    /// `seal`, every file that holds an entry purged so is deleted. See [`Wal::release`].
    ///
    /// # Errors
    /// As [`Wal::release`].
    pub(crate) async fn release(&self, upto: LogId<u64>, seal: bool) -> Result<(), Error> {
        self.durably(|done| self.wal.release(entry_id(&upto), seal, done)).await
    }

    /// Returns when the thread of the log has written and synced what was queued before: the disk answers.
    ///
    /// # Errors
    /// That of the write or fsync that ended the log.
    pub(crate) async fn ping(&self) -> Result<(), Error> {
        self.durably(|done| self.wal.ping(done)).await
    }

    /// Figures for metrics and watchdog.
    pub(crate) fn stats(&self) -> wal::Stats {
        self.wal.stats()
    }

    /// The proposal in the entry at `index`; `None` when it is another kind of entry, or not there.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when it cannot be read.
    pub(crate) async fn proposal(&self, index: u64) -> Result<Option<Proposal>, Error> {
        let read = self.wal.read(index..index + 1, usize::MAX).await?;
        let Some((_, payload)) = read.into_iter().next() else { return Ok(None) };
        Ok(match decode(&payload)? {
            EntryPayload::Normal(proposal) => Some(proposal),
            EntryPayload::Blank | EntryPayload::Membership(_) => None,
        })
    }

    async fn durably(&self, call: impl FnOnce(wal::Done) -> Result<(), Error>) -> Result<(), Error> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        // Nobody may wait any more; the write stands all the same.
        call(Box::new(move |result| drop(sender.send(result))))?;
        receiver.await.unwrap_or_else(|_| Err(Error::Unavailable("the raft log was closed".into())))
    }

    async fn entries(&self, range: Range<u64>, bytes_max: usize) -> Result<Vec<Entry<TypeConfig>>, Failure> {
        let read = self.wal.read(range, bytes_max).await.map_err(|e| failure(ErrorVerb::Read, &e))?;
        let decoded =
            read.into_iter().map(|(id, payload)| Ok(Entry { log_id: log_id(id), payload: decode(&payload)? }));
        decoded.collect::<Result<_, Error>>().map_err(|e| failure(ErrorVerb::Read, &e))
    }
}

/// openraft's own, and large.
type Failure = StorageError<u64>;

fn failure(verb: ErrorVerb, error: &Error) -> Failure {
    StorageIOError::new(ErrorSubject::Logs, verb, AnyError::new(error)).into()
}

pub(super) fn entry_id(id: &LogId<u64>) -> EntryId {
    EntryId { term: id.leader_id.term, node: id.leader_id.node_id, index: id.index }
}

pub(super) fn log_id(id: EntryId) -> LogId<u64> {
    LogId::new(CommittedLeaderId::new(id.term, id.node), id.index)
}

pub(super) fn encode(payload: &EntryPayload<TypeConfig>) -> Result<Bytes, Error> {
    let (kind, body) = match payload {
        EntryPayload::Blank => (BLANK, Bytes::new()),
        EntryPayload::Normal(Proposal(bytes)) => (NORMAL, bytes.clone()),
        EntryPayload::Membership(membership) => {
            let json = serde_json::to_vec(membership);
            (MEMBERSHIP, json.map_err(|e| Error::Invalid(format!("a membership cannot be encoded: {e}")))?.into())
        }
    };
    let mut bytes = BytesMut::with_capacity(2 + body.len());
    bytes.put_u8(VERSION);
    bytes.put_u8(kind);
    bytes.put_slice(&body);
    Ok(bytes.freeze())
}

pub(super) fn decode(bytes: &Bytes) -> Result<EntryPayload<TypeConfig>, Error> {
    let unknown =
        || Error::Invalid("an entry of the raft log is of no version or kind known here: update this node".into());
    let [VERSION, kind, ..] = bytes[..] else { return Err(unknown()) };
    match kind {
        BLANK if bytes.len() == 2 => Ok(EntryPayload::Blank),
        NORMAL => Ok(EntryPayload::Normal(Proposal(bytes.slice(2..)))),
        MEMBERSHIP => {
            let membership = serde_json::from_slice(&bytes[2..]);
            Ok(EntryPayload::Membership(membership.map_err(|e| Error::Corrupt(format!("a membership entry: {e}")))?))
        }
        _ => Err(unknown()),
    }
}

impl RaftLogReader<TypeConfig> for RaftLog {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry<TypeConfig>>, Failure> {
        let start = match range.start_bound() {
            Bound::Included(index) => *index,
            Bound::Excluded(index) => index.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(index) => index.saturating_add(1),
            Bound::Excluded(index) => *index,
            Bound::Unbounded => u64::MAX,
        };
        self.entries(start..end, usize::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry<TypeConfig>>, Failure> {
        self.entries(start..end, REPLICATION_BYTES_MAX).await
    }
}

impl RaftLogStorage<TypeConfig> for RaftLog {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, Failure> {
        Ok(LogState { last_purged_log_id: self.purged(), last_log_id: self.last_log_id() })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    /// A vote that differs only in being committed is not waited for: losing that is what [`Self::read_vote`] does to
    /// our own vote anyway, and for another's the leader's next message says it again.
    async fn save_vote(&mut self, vote: &openraft::Vote<u64>) -> Result<(), Failure> {
        let new = wal::Vote { term: vote.leader_id.term, node: vote.leader_id.node_id, committed: vote.committed };
        if planted(Bug::VoteNotPersisted) {
            return Ok(());
        }
        let learned = self.wal.vote() == Some(wal::Vote { committed: false, ..new });
        let saved = if learned && new.committed {
            self.wal.save_vote(new, None)
        } else {
            self.durably(|done| self.wal.save_vote(new, Some(done))).await
        };
        saved.map_err(|e| StorageIOError::new(ErrorSubject::Vote, ErrorVerb::Write, AnyError::new(&e)).into())
    }

    /// Asked for when Raft starts only. A vote for ourselves comes back uncommitted: a leader that resumed its term
    /// without an election would not know what was committed meanwhile, and serve stale reads.
    async fn read_vote(&mut self) -> Result<Option<openraft::Vote<u64>>, Failure> {
        Ok(self.wal.vote().map(|vote| openraft::Vote {
            leader_id: openraft::LeaderId::new(vote.term, vote.node),
            committed: vote.committed && vote.node != self.node_id,
        }))
    }

    async fn save_committed(&mut self, committed: Option<LogId<u64>>) -> Result<(), Failure> {
        let saved = committed.map_or(Ok(()), |id| self.wal.save_committed(entry_id(&id)));
        saved.map_err(|e| failure(ErrorVerb::Write, &e))
    }

    async fn read_committed(&mut self) -> Result<Option<LogId<u64>>, Failure> {
        Ok(self.wal.committed().map(log_id))
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<TypeConfig>) -> Result<(), Failure>
    where
        I: IntoIterator<Item = Entry<TypeConfig>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let encoded = entries.into_iter().map(|entry| Ok((entry_id(&entry.log_id), encode(&entry.payload)?)));
        let encoded: Vec<_> = encoded.collect::<Result<_, Error>>().map_err(|e| failure(ErrorVerb::Write, &e))?;
        let done = Box::new(move |result: Result<(), Error>| {
            callback.log_io_completed(result.map_err(std::io::Error::other));
        });
        self.wal.append(encoded, done).map_err(|e| failure(ErrorVerb::Write, &e))
    }

    async fn truncate(&mut self, log_id: LogId<u64>) -> Result<(), Failure> {
        self.truncations.fetch_add(1, Relaxed);
        self.wal.truncate(log_id.index).map_err(|e| failure(ErrorVerb::Delete, &e))
    }

    async fn purge(&mut self, log_id: LogId<u64>) -> Result<(), Failure> {
        self.wal.purge(entry_id(&log_id)).map_err(|e| failure(ErrorVerb::Delete, &e))
    }
}

mod alone;
#[cfg(test)]
mod tests;

pub(super) use alone::members_of;
