//! [`Node`]: the only door to the ledger.

use std::path::PathBuf;
use std::sync::Arc;

use crate::command::{Key, Outcome, Write};
use crate::disk::Disk;
use crate::error::Error;
use crate::view::{BlockRow, Consistency, Head, HistoryPage, KeyPage, LogInfo, Reading, Record, Status};

/// What a node needs to start.
#[derive(Debug, Clone)]
pub struct Config {
    /// Data directory, made by [`Node::init`].
    pub data: PathBuf,
    /// Bytes of free space below which writes are refused.
    pub reserve_bytes: u64,
    /// Most writes that may wait for a block.
    pub queue_max: usize,
}

/// A running node. Clones are cheap and name the same node.
#[derive(Clone)]
pub struct Node {
    _inner: Arc<()>,
}

#[allow(unused_variables, clippy::todo, clippy::unused_async, missing_docs)]
impl Node {
    /// Makes the files of a new ledger in an empty data directory: keys, WAL, store. `name` is the name of the node,
    /// `origin` that of the log.
    pub fn init(disk: Arc<dyn Disk>, config: &Config, name: &str, origin: &str) -> Result<LogInfo, Error> {
        todo!()
    }
    /// Opens the data directory, replays, and serves. Must be called on the runtime that is to run the node's tasks.
    pub async fn start(disk: Arc<dyn Disk>, config: Config) -> Result<Self, Error> {
        todo!()
    }
    /// Answers what is in flight, makes everything durable, stops.
    pub async fn stop(&self) {
        todo!()
    }
    /// Commits a transaction, or says why it was refused. A write of reserved keys is allowed here; the API refuses them.
    pub async fn write(&self, write: Write) -> Result<Outcome, Error> {
        todo!()
    }
    /// Reads a key; `at` is the height of a block.
    pub async fn get(&self, key: &Key, consistency: Consistency, at: Option<u64>) -> Result<Reading, Error> {
        todo!()
    }
    /// Keys with a prefix, in byte order; `after` is exclusive. An empty prefix does not list reserved keys.
    pub async fn keys(&self, prefix: &str, after: Option<&Key>, limit: usize) -> Result<KeyPage, Error> {
        todo!()
    }
    /// Revisions of a key, newest first, those below `before`.
    pub async fn history(&self, key: &Key, before: Option<u64>, limit: usize) -> Result<HistoryPage, Error> {
        todo!()
    }
    /// One entry of the chain log; [`Error::NotFound`] beyond its end.
    pub async fn record(&self, index: u64) -> Result<Record, Error> {
        todo!()
    }
    /// Entries from `first` on, as many as there are up to `limit`, with the values still held: for the change feed.
    pub async fn records(&self, first: u64, limit: usize) -> Result<Vec<Record>, Error> {
        todo!()
    }
    /// The receipt of an entry, a C2SP tlog-proof; `wait`: until a checkpoint that meets the policy covers it.
    pub async fn receipt(&self, index: u64, wait: bool) -> Result<String, Error> {
        todo!()
    }
    /// Latest-or-absent proof of a key as of the newest checkpoint, a C2SP tlog-proof.
    pub async fn proof(&self, key: &Key) -> Result<String, Error> {
        todo!()
    }
    /// Blocks above `after`, in order.
    pub async fn blocks(&self, after: u64, limit: usize) -> Result<Vec<BlockRow>, Error> {
        todo!()
    }
    /// One block; [`Error::NotFound`] beyond the head.
    pub async fn block(&self, height: u64) -> Result<BlockRow, Error> {
        todo!()
    }
    /// The newest checkpoint that meets the policy, as text (C2SP tlog-checkpoint).
    pub fn checkpoint(&self) -> Option<Arc<str>> {
        todo!()
    }
    /// A tile of hashes of the published log, `width` 1–256 (C2SP tlog-tiles).
    pub async fn tile(&self, level: u8, index: u64, width: u16) -> Result<Vec<u8>, Error> {
        todo!()
    }
    /// A bundle of entries of the published log.
    pub async fn entry_bundle(&self, index: u64, width: u16) -> Result<Vec<u8>, Error> {
        todo!()
    }
    /// Keys and policy of the log.
    pub fn log_info(&self) -> LogInfo {
        todo!()
    }
    /// Where the chain stands; the receiver wakes at every block.
    pub fn head(&self) -> tokio::sync::watch::Receiver<Head> {
        todo!()
    }
    /// Returns when everything acknowledged before the call is applied here and this node still leads.
    pub async fn barrier(&self) -> Result<(), Error> {
        todo!()
    }
    /// Whether a write would find room.
    pub fn room(&self) -> Result<(), Error> {
        todo!()
    }
    /// How the node is.
    pub fn status(&self) -> Status {
        todo!()
    }
}
