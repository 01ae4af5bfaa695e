//! Checkpoints: one round at a time. A round takes the newest applied block end, makes (size, root) durable as this
//! node's promise, and only then signs and cosigns it; never a smaller size again.
//!
//! What is published is the newest checkpoint that meets the policy. The state map keeps what it needs to prove as of it
//! until the next one. Between the signature and the publication of a hand-over checkpoint the log key is exchanged
//! ([`crate::log_key`]).

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::watch;

use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::clock::Clock;
use crate::command::Key;
use crate::disk::{Disk, File};
use crate::entry::{Change, Entry, MapValue};
use crate::error::Error;
use crate::ledger::{Chain, Ledger, key_hash};
use crate::log_key::{Change as KeyChange, KeyRing, Signatures};
use crate::machine::damaged_entry;
use crate::merkle::{Hash, ProofError, Tree, inclusion_proof};
use crate::note::{Note, assemble};
use crate::proof::{self, Erasure, Inclusion, MapLeaf, MapProof, Opening, Source};
use crate::rt;
use crate::state_root::{KeyHash, ProofLeaf, ViewId};
use crate::store::{entries, values};
use crate::trace;
use crate::view;

/// How long a receipt waits for a checkpoint that covers it.
const RECEIPT_WAIT: Duration = Duration::from_secs(30);
/// How often a proof is begun again because its checkpoint was replaced meanwhile.
const PROOF_TRIES: usize = 8;

/// A checkpoint that meets the policy.
#[derive(Debug)]
pub(crate) struct Published {
    /// The signed note.
    pub text: Arc<str>,
    /// Entries that it covers; its last one is a block entry.
    pub size: u64,
    /// The state map as of that block.
    pub view: ViewId,
}

/// Signs checkpoints of the ledger.
pub(crate) struct Notary {
    clock: Arc<Clock>,
    ledger: Arc<Ledger>,
    promise: Promise,
    /// What was promised before the start, until the ledger is known to have it.
    promised: Mutex<Option<Checkpoint>>,
    keys: KeyRing,
    published: RwLock<Option<Arc<Published>>>,
    size: watch::Sender<u64>,
    rounds: AtomicU64,
}

impl Notary {
    pub(crate) fn open(
        disk: &dyn Disk,
        data: &Path,
        ledger: Arc<Ledger>,
        keys: KeyRing,
        clock: Arc<Clock>,
    ) -> Result<Self, Error> {
        Ok(Self {
            promise: Promise::open(disk, &data.join("promise"))?,
            promised: Mutex::new(None),
            clock,
            ledger,
            keys,
            published: RwLock::new(None),
            size: watch::Sender::new(0),
            rounds: AtomicU64::new(0),
        })
    }

    /// The keys of the signatures.
    pub(crate) fn keys(&self) -> &KeyRing {
        &self.keys
    }

    /// Refuses a ledger that contradicts what this node cosigned: a node whose data fell behind must not sign again. A node
    /// that is not `alone` may be behind for now, since what it applied comes back to it from its peers: then it is
    /// [`Notary::keeps_promise`] that looks.
    pub(crate) fn check_promise(&self, alone: bool) -> Result<(), Error> {
        let Some(promised) = self.promise.read()? else { return Ok(()) };
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
        let tail_start = size - size % 256;
        let width = u16::try_from(size - tail_start).unwrap_or(0);
        let tail = if width == 0 { Vec::new() } else { self.ledger.tile(chain, 0, size >> 8, width)? };
        let read = |level, index| self.ledger.tile(chain, level, index, 256);
        Tree::rebuild(size, tail.as_chunks().0, read).map(|tree| tree.root()).map_err(unreadable)
    }

    /// Signs a checkpoint of the newest block, if there is none yet; gives, too, the change of the log key that it hands
    /// over for.
    pub(crate) fn sign_newest(&self) -> Result<Option<(Published, Option<u64>)>, Error> {
        let _span = trace::span("checkpoint");
        let (checkpoint, view, change) = {
            let chain = self.ledger.chain();
            let (size, height) = (chain.head.size, chain.head.height);
            if height == 0 || size <= *self.size.borrow() {
                return Ok(None);
            }
            let checkpoint = Checkpoint { origin: self.keys.origin().to_owned(), size, root: chain.tree.root() };
            let change = self.ledger.log_change()?;
            (checkpoint, self.ledger.map.freeze(height)?, change)
        };
        match self.sign(&checkpoint, change.as_ref()) {
            Ok((text, hands_over)) => {
                Ok(Some((Published { text: text.into(), size: checkpoint.size, view }, hands_over)))
            }
            Err(error) => {
                self.ledger.map.release(view)?;
                Err(error)
            }
        }
    }

    fn sign(&self, checkpoint: &Checkpoint, change: Option<&KeyChange>) -> Result<(String, Option<u64>), Error> {
        let text = checkpoint.to_text();
        self.promise.write(&text)?;
        let now_s = self.clock.read(self.ledger.newest().time_ms).sure_ms / 1000;
        let Signatures { lines, hands_over } = self.keys.sign(&text, now_s, change)?;
        Ok((assemble(&text, &lines), hands_over))
    }

    /// Gives up a checkpoint that is not published.
    pub(crate) fn discard(&self, checkpoint: &Published) -> Result<(), Error> {
        self.ledger.map.release(checkpoint.view)
    }

    /// Publishes what [`Notary::sign_newest`] signed.
    pub(crate) fn publish(&self, published: Published) -> Result<(), Error> {
        let size = published.size;
        let mut slot = self.published.write().unwrap_or_else(PoisonError::into_inner);
        let old = slot.replace(Arc::new(published));
        drop(slot);
        if let Some(old) = old {
            self.ledger.map.release(old.view)?;
        }
        self.rounds.fetch_add(1, Relaxed);
        self.size.send_replace(size);
        Ok(())
    }

    /// The newest checkpoint that meets the policy.
    pub(crate) fn published(&self) -> Option<Arc<Published>> {
        self.published.read().unwrap_or_else(PoisonError::into_inner).clone()
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

    /// Rounds done since start; each is one signature and one cosignature.
    pub(crate) fn rounds(&self) -> u64 {
        self.rounds.load(Relaxed)
    }

    /// Proof that an entry is in the log of `size` entries.
    fn inclusion(&self, index: u64, size: u64) -> Result<Vec<Hash>, Error> {
        let chain = self.ledger.chain();
        inclusion_proof(index, size, |level, index, width| self.ledger.tile(&chain, level, index, width))
            .map_err(unreadable)
    }

    fn source(&self, index: u64, size: u64) -> Result<Source, Error> {
        let line = text_line(index, entries::one(&self.ledger.rows, index)?.line)?;
        Ok(Source { line, path: self.inclusion(index, size)? })
    }

    /// The receipt of an entry, with the values still held and proof of what was erased. Values of the system state hold
    /// hashes of secrets; a receipt goes into other hands, so it withholds them. That of a change of the log key stands on
    /// its hand-over checkpoint: under a later one who knows only the key before could not check it.
    pub(crate) fn receipt(&self, record: view::Record, published: &Published) -> Result<String, Error> {
        let index = record.index;
        let kept = if is_key_change(&record.line) { self.ledger.handover(index)? } else { None };
        let (checkpoint, size) = match &kept {
            Some(text) => (text.as_str(), size_of(index, text)?),
            None => (&*published.text, published.size),
        };
        let mut openings = Vec::with_capacity(record.openings.len());
        for (key, opening) in record.openings {
            openings.push(match opening {
                view::Opening::Value { .. } if key.is_reserved() => Opening::Withheld,
                view::Opening::Value { salt, value } => Opening::Value { salt, value },
                view::Opening::Erased { erased_by } => {
                    Opening::Erased(Erasure { index: erased_by, source: self.source(erased_by, size)? })
                }
            });
        }
        let path = self.inclusion(index, size)?;
        let inclusion = Inclusion { index, path: &path, checkpoint };
        Ok(proof::receipt(&inclusion, &text_line(index, record.line.to_vec())?, &openings))
    }

    /// Latest-or-absent proof of a key as of the published checkpoint.
    pub(crate) fn latest_or_absent(&self, key: &Key) -> Result<String, Error> {
        for _ in 0..PROOF_TRIES {
            let Some(published) = self.published() else { break };
            match self.latest_at(key, &published) {
                // The view went with its checkpoint: there is a newer one.
                Err(Error::NotFound(_)) => {}
                other => return other,
            }
        }
        Err(Error::Unavailable("there is no cosigned checkpoint to prove against yet; ask again".into()))
    }

    fn latest_at(&self, key: &Key, published: &Published) -> Result<String, Error> {
        let hash = key_hash(key);
        let path = self.ledger.map.prove(&hash, Some(published.view))?;
        let (mut put, mut opening) = (None, None);
        let leaf = match path.leaf {
            None => MapLeaf::Empty,
            Some(leaf) => {
                let (value, slot) = self.map_value(&leaf)?;
                if leaf.key_hash == hash {
                    put = Some(self.source(leaf.revision, published.size)?);
                    if let view::Opening::Value { salt, value } = self.ledger.opening(leaf.revision, slot)? {
                        opening = Some((salt, value));
                    }
                    MapLeaf::Own(value)
                } else {
                    MapLeaf::Neighbour { key_hash: leaf.key_hash.0, value_hash: value.hash() }
                }
            }
        };
        let map = MapProof { siblings: path.siblings, leaf };
        let block = self.source(published.size - 1, published.size)?;
        let inclusion = Inclusion { index: published.size - 1, path: &block.path, checkpoint: &published.text };
        let opening = opening.as_ref().map(|(salt, value)| (salt, value.as_ref()));
        Ok(proof::latest(&inclusion, &block.line, key.as_str(), &map, put.as_ref(), opening))
    }

    /// What the map held under a leaf, from the entry that put it, and the slot of the value.
    fn map_value(&self, leaf: &ProofLeaf) -> Result<(MapValue, u64), Error> {
        let revision = leaf.revision;
        let stored = entries::one(&self.ledger.rows, revision)?;
        let entry = Entry::parse(&stored.line).map_err(|e| damaged_entry(revision, &e))?;
        let puts = entry.changes().iter().filter_map(|change| match change {
            Change::Put { key, commitment, .. } => Some((KeyHash::of(key.as_bytes()), *commitment)),
            _ => None,
        });
        let found = puts.zip(stored.slot..).find(|((key_hash, _), _)| *key_hash == leaf.key_hash);
        let ((_, commitment), slot) = found
            .ok_or_else(|| damaged_entry(revision, &"the state map points to it for a key that it does not put"))?;
        let erased_by = match values::one(&self.ledger.rows, slot)? {
            values::Stored::Erased(by) if leaf.erased => Some(by),
            _ => None,
        };
        Ok((MapValue { revision, commitment, erased_by }, slot))
    }
}

/// The newest entry that a receipt of this one speaks of: itself, or the one that erased a value of it.
pub(crate) fn needs(record: &view::Record) -> u64 {
    let erased = record.openings.iter().filter_map(|(_, opening)| match opening {
        view::Opening::Erased { erased_by } => Some(*erased_by),
        view::Opening::Value { .. } => None,
    });
    erased.fold(record.index, u64::max)
}

fn is_key_change(line: &[u8]) -> bool {
    matches!(Entry::parse(line), Ok(Entry::Cosigners(_)))
}

/// Entries that a kept checkpoint covers.
fn size_of(index: u64, note: &str) -> Result<u64, Error> {
    let checkpoint = Note::parse(note).map_err(CheckpointError::from).and_then(|note| Checkpoint::parse(note.text()));
    checkpoint.map(|checkpoint| checkpoint.size).map_err(|e| damaged_entry(index, &e))
}

fn unreadable(error: ProofError<Error>) -> Error {
    match error {
        ProofError::Read(error) => error,
        other => Error::DamagedStore(format!("the Merkle tree cannot be read: {other}")),
    }
}

fn text_line(index: u64, line: Vec<u8>) -> Result<String, Error> {
    String::from_utf8(line).map_err(|e| damaged_entry(index, &e))
}

fn broken(what: &str) -> Error {
    Error::Corrupt(format!(
        "{what}; it must not sign again before its data is known to be whole: restore a backup, or rejoin the cluster \
         from its peers"
    ))
}

const PROMISE_SLOT_BYTES: usize = 4096;

/// The largest head that this node cosigned: the text of the checkpoint, in the two slots of a file by turns, so that a
/// torn write leaves the one before.
struct Promise {
    file: Box<dyn File>,
    next_slot: Mutex<u64>,
}

impl Promise {
    fn open(disk: &dyn Disk, path: &Path) -> Result<Self, Error> {
        let open = || {
            let file = disk.open(path, true)?;
            file.allocate(2 * PROMISE_SLOT_BYTES as u64)?;
            Ok(file)
        };
        let file = open().map_err(|e| Error::io(format!("opening {}", path.display()), &e))?;
        Ok(Self { file, next_slot: Mutex::new(0) })
    }

    fn read(&self) -> Result<Option<Checkpoint>, Error> {
        let mut newest: Option<Checkpoint> = None;
        let mut blank = 0;
        for slot in 0..2 {
            let mut bytes = vec![0; PROMISE_SLOT_BYTES];
            let offset = slot * PROMISE_SLOT_BYTES as u64;
            self.file.read_at(&mut bytes, offset).map_err(|e| Error::io("reading the promise", &e))?;
            blank += u32::from(bytes.iter().all(|b| *b == 0));
            if let Some(checkpoint) = decode_promise(&bytes).filter(|c| newest.as_ref().is_none_or(|n| n.size < c.size))
            {
                *self.next_slot.lock().unwrap_or_else(PoisonError::into_inner) = 1 - slot;
                newest = Some(checkpoint);
            }
        }
        if newest.is_none() && blank == 0 {
            return Err(broken("the file `promise`, which says what this node cosigned, is damaged"));
        }
        Ok(newest)
    }

    fn write(&self, text: &str) -> Result<(), Error> {
        let mut slot = self.next_slot.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = vec![0; 8];
        bytes[4..8].copy_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend_from_slice(text.as_bytes());
        let checksum = crc32fast::hash(&bytes[4..]);
        bytes[..4].copy_from_slice(&checksum.to_le_bytes());
        let offset = *slot * PROMISE_SLOT_BYTES as u64;
        let written = self.file.write_at(&bytes, offset).and_then(|()| self.file.sync());
        written.map_err(|e| Error::io("writing the promise", &e))?;
        *slot = 1 - *slot;
        Ok(())
    }
}

fn decode_promise(bytes: &[u8]) -> Option<Checkpoint> {
    let (checksum, rest) = bytes.split_first_chunk::<4>()?;
    let (length, text) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    let whole = rest.get(..4 + length)?;
    if length == 0 || crc32fast::hash(whole) != u32::from_le_bytes(*checksum) {
        return None;
    }
    Checkpoint::parse(std::str::from_utf8(text.get(..length)?).ok()?).ok()
}
