//! Apply: what a committed proposal does to the ledger. Pure but for its storage, synchronous, deterministic: no clock, no
//! randomness, no order of a hash map reaches what is hashed or answered.
//!
//! Crash order of a block: salts to their file, the rows in one atomic batch (with the position in the raft log), then the
//! answer. What was not durable comes again from the raft log; so do salts that a power cut took from under rows that it
//! left ([`Ledger::restore_salts`]). An erase destroys its salts before the batch that says so.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering::Relaxed;

use crate::command::{Command, Committed, Key, OperationCommand, Outcome, Refusal, WriteCommand};
use crate::entry::{self, Block, Change, Cosigners, Entry, Membership, Transaction};
use crate::error::Error;
use crate::ledger::{BlockPlace, Chain, HeadRow, Ledger, Touched, key_hash};
use crate::merkle::{FullTile, leaf_hash};
use crate::rt::CpuTimer;
use crate::salts;
use crate::state_root::{KeyHash, Lookup, Slot, SlotState};
use crate::store::outcomes::{self, Kept, RequestKey};
use crate::store::{Batch, Tree, entries, values};

/// A row marks a key's revision each time it has this many more.
pub(crate) const HISTORY_STRIDE: u32 = 64;

/// What one raft entry asks of the machine.
pub(crate) enum Input<'a> {
    /// A leader's blank entry.
    Nothing,
    /// A change of the members.
    Membership { voters: Vec<u64>, learners: Vec<u64> },
    /// A proposal.
    Command(&'a Command),
}

/// The position in the raft log that goes with an input: its index, and what the Raft adapter must find again.
pub(crate) struct Position {
    pub index: u64,
    pub opaque: Vec<u8>,
}

/// What apply knows of a key: from the state map, or from earlier in the same block.
#[derive(Debug, Clone, Copy)]
struct Current {
    revision: u64,
    versions: u32,
    exists: bool,
}

impl Ledger {
    /// Applies one raft entry. An error is final for this node: its state is not known to equal its peers' any more.
    pub(crate) fn apply(&self, input: Input<'_>, position: Position) -> Result<Vec<Outcome>, Error> {
        let mut chain = self.write_chain();
        let mut draft = Draft::new(self, &mut chain, &input)?;
        let outcomes = match input {
            Input::Nothing => Vec::new(),
            Input::Membership { voters, learners } => {
                draft.add_line(Entry::Membership(Membership { time_ms: draft.time_ms, voters, learners }));
                Vec::new()
            }
            Input::Command(Command::Cosigners { author, log, cosigners, policy, .. }) => {
                vec![draft.cosigners(author, log, cosigners, policy)]
            }
            Input::Command(Command::Writes { writes, .. }) => draft.writes(writes)?,
        };
        draft.finish(position)?;
        let head = chain.head.view();
        drop(chain);
        self.announce(head);
        Ok(outcomes)
    }
}

/// A block in the making.
struct Draft<'a> {
    ledger: &'a Ledger,
    chain: &'a mut Chain,
    time_ms: u64,
    first: u64,
    first_slot: u64,
    lines: Vec<entries::Stored>,
    values: Vec<values::Stored>,
    salts: Vec<u8>,
    touched: Touched,
    /// Given up before the map is changed.
    lookup: Option<Lookup<'a>>,
    /// Slots of earlier blocks whose values this block erases → index of the entry that says so.
    erased: BTreeMap<u64, u64>,
    system_revision: u64,
    full: Vec<FullTile>,
    batch: Batch,
    outcomes_added: usize,
    /// Outcomes of this block that can be asked for again within it.
    named: HashMap<RequestKey, Kept>,
    timer: CpuTimer,
}

impl<'a> Draft<'a> {
    fn new(ledger: &'a Ledger, chain: &'a mut Chain, input: &Input<'_>) -> Result<Self, Error> {
        let proposed = match input {
            Input::Command(Command::Writes { time_ms, .. } | Command::Cosigners { time_ms, .. }) => *time_ms,
            Input::Nothing | Input::Membership { .. } => 0,
        };
        let head = &chain.head;
        Ok(Self {
            ledger,
            time_ms: proposed.max(head.time_ms),
            first: head.size,
            first_slot: head.slots,
            system_revision: head.system_revision,
            chain,
            lines: Vec::new(),
            values: Vec::new(),
            salts: Vec::new(),
            touched: Touched::default(),
            lookup: Some(ledger.map.lookup()?),
            erased: BTreeMap::new(),
            full: Vec::new(),
            batch: Batch::default(),
            outcomes_added: 0,
            named: HashMap::new(),
            timer: CpuTimer::start(),
        })
    }

    fn next_index(&self) -> u64 {
        self.first + self.lines.len() as u64
    }

    fn add_line(&mut self, entry: Entry<'_>) {
        let slot = self.first_slot + self.values.len() as u64;
        self.push_line(entry.to_line(), slot);
    }

    fn push_line(&mut self, line: Vec<u8>, slot: u64) {
        self.chain.tree.push(leaf_hash(&line), &mut self.full);
        self.lines.push(entries::Stored { line, slot });
    }

    fn cosigners(&mut self, author: &str, log: &str, cosigners: &[String], policy: &str) -> Outcome {
        let transaction = self.next_index();
        self.add_line(Entry::Cosigners(Cosigners {
            time_ms: self.time_ms,
            author: author.into(),
            log: log.into(),
            cosigners: cosigners.iter().map(|c| c.as_str().into()).collect(),
            policy: policy.into(),
        }));
        self.system_revision = transaction;
        Outcome::Committed(Committed { transaction, block: self.chain.head.height + 1, created: Vec::new() })
    }

    fn writes(&mut self, writes: &[WriteCommand]) -> Result<Vec<Outcome>, Error> {
        let mut answers = Vec::with_capacity(writes.len());
        for write in writes {
            answers.push(self.write(write)?);
        }
        Ok(answers)
    }

    /// One transaction: the answer kept for its name, or a new one.
    fn write(&mut self, write: &WriteCommand) -> Result<Outcome, Error> {
        let (request, fingerprint) = match (&write.idempotency, write.proposal) {
            (Some(i), _) => (outcomes::client_key(&write.author, &i.key), i.fingerprint),
            (None, Some(id)) => (outcomes::proposal_key(id), [0; 32]),
            (None, None) => return self.transaction(write),
        };
        let kept = match self.named.get(&request) {
            Some(kept) => Some(kept.clone()),
            None => outcomes::get(&self.ledger.rows, &request)?,
        };
        if let Some(kept) = kept {
            let same = kept.fingerprint == fingerprint;
            return Ok(if same { kept.outcome } else { Outcome::Refused(Refusal::IdempotencyMismatch) });
        }
        let outcome = self.transaction(write)?;
        let span = &mut self.chain.head.outcomes;
        let kept = Kept { fingerprint, time_ms: self.time_ms, sequence: span.next, outcome: outcome.clone() };
        outcomes::put(&mut self.batch, span, &request, &kept);
        self.outcomes_added += 1;
        self.named.insert(request, kept);
        Ok(outcome)
    }

    fn transaction(&mut self, write: &WriteCommand) -> Result<Outcome, Error> {
        let mut currents = Vec::with_capacity(write.operations.len());
        for operation in &write.operations {
            let hash = key_hash(operation.key());
            currents.push((hash, self.current(&hash)?));
        }
        if let Some(refusal) = self.refusal(write, &currents)? {
            return Ok(Outcome::Refused(refusal));
        }
        let transaction = self.next_index();
        let slot = self.first_slot + self.values.len() as u64;
        let mut created = Vec::with_capacity(currents.len());
        let mut changes = Vec::with_capacity(currents.len());
        for (operation, (hash, current)) in write.operations.iter().zip(&currents) {
            created.push(matches!(operation, OperationCommand::Put { .. }) && !current.is_some_and(|c| c.exists));
            changes.push(self.change(transaction, operation, hash, *current)?);
            if operation.key().is_reserved() {
                self.system_revision = transaction;
            }
        }
        let entry = Transaction { time_ms: self.time_ms, author: write.author.as_str().into(), changes };
        self.push_line(Entry::Transaction(entry).to_line(), slot);
        for (hash, _) in &currents {
            self.note_history(hash)?;
        }
        Ok(Outcome::Committed(Committed { transaction, block: self.chain.head.height + 1, created }))
    }

    fn current(&self, hash: &KeyHash) -> Result<Option<Current>, Error> {
        if let Some(slot) = self.touched.get(hash) {
            let exists = !matches!(slot.state, SlotState::Deleted);
            return Ok(Some(Current { revision: slot.revision, versions: slot.versions, exists }));
        }
        let stored = match &self.lookup {
            Some(lookup) => lookup.get(hash)?,
            None => self.ledger.map.get(hash)?,
        };
        Ok(stored.map(|s| Current { revision: s.revision, versions: s.versions, exists: s.exists() }))
    }

    /// Why the transaction must not be applied, if so. Nothing was changed before.
    fn refusal(&self, write: &WriteCommand, currents: &[(KeyHash, Option<Current>)]) -> Result<Option<Refusal>, Error> {
        for requirement in &write.requirements {
            let current = self.current(&key_hash(&requirement.key))?;
            let actual = current.filter(|c| c.exists).map(|c| c.revision);
            if actual != requirement.revision {
                let (key, required) = (requirement.key.clone(), requirement.revision);
                return Ok(Some(Refusal::Requirement { key, required, actual }));
            }
        }
        for (operation, (_, current)) in write.operations.iter().zip(currents) {
            let refusal = match operation {
                OperationCommand::Put { .. } => None,
                OperationCommand::Delete { key } => {
                    (!current.is_some_and(|c| c.exists)).then(|| Refusal::Absent { key: key.clone() })
                }
                OperationCommand::Erase { key, revision } => self.erase_refusal(key, *revision)?,
            };
            if refusal.is_some() {
                return Ok(refusal);
            }
        }
        Ok(None)
    }

    fn erase_refusal(&self, key: &Key, revision: u64) -> Result<Option<Refusal>, Error> {
        let Some((slot, _)) = self.value_of(key, revision)? else {
            return Ok(Some(Refusal::NoSuchRevision { key: key.clone(), revision }));
        };
        let stored = if let Some(&by) = self.erased.get(&slot) {
            values::Stored::Erased(by)
        } else if slot >= self.first_slot {
            self.values[position(slot - self.first_slot)].clone()
        } else {
            values::one(&self.ledger.rows, slot)?
        };
        Ok(match stored {
            values::Stored::Erased(erased_by) => Some(Refusal::AlreadyErased { key: key.clone(), erased_by }),
            values::Stored::Ciphertext(_) => None,
        })
    }

    /// Slot and commitment of the value that a revision of a key put; `None` when it put none.
    fn value_of(&self, key: &Key, revision: u64) -> Result<Option<(u64, [u8; 32])>, Error> {
        if revision >= self.next_index() {
            return Ok(None);
        }
        let stored = self.stored(revision)?;
        let put = find_put(&stored.line, key.as_str()).map_err(|e| damaged_entry(revision, &e))?;
        Ok(put.map(|put| (stored.slot + put.position, put.commitment)))
    }

    /// An entry of the log or of this block.
    fn stored(&self, index: u64) -> Result<entries::Stored, Error> {
        match index.checked_sub(self.first) {
            Some(at) => Ok(self.lines[position(at)].clone()),
            None => entries::one(&self.ledger.rows, index),
        }
    }

    fn change<'w>(
        &mut self,
        index: u64,
        operation: &'w OperationCommand,
        hash: &KeyHash,
        current: Option<Current>,
    ) -> Result<Change<'w>, Error> {
        let previous = current.map(|c| c.revision);
        let versions = current.map_or(0, |c| c.versions) + 1;
        Ok(match operation {
            OperationCommand::Put { key, value, media_type, blob, salt } => {
                let commitment = entry::commitment(salt, value);
                self.values.push(values::Stored::Ciphertext(salts::seal(salt, index, value)?));
                self.salts.extend_from_slice(salt);
                if current.is_none() {
                    self.chain.names.insert(key.as_str());
                }
                self.touched.set(hash, Slot { revision: index, versions, state: SlotState::Live { commitment } });
                Change::Put {
                    key: key.as_str().into(),
                    previous,
                    commitment,
                    size: value.len() as u64,
                    media_type: media_type.as_str().into(),
                    blob: *blob,
                }
            }
            OperationCommand::Delete { key } => {
                self.touched.set(hash, Slot { revision: index, versions, state: SlotState::Deleted });
                // A refusal came before if the key did not exist.
                Change::Delete { key: key.as_str().into(), previous: previous.unwrap_or_default() }
            }
            OperationCommand::Erase { key, revision } => {
                self.erase(index, key, *revision, hash, current)?;
                Change::Erase { key: key.as_str().into(), revision: *revision, previous }
            }
        })
    }

    fn erase(
        &mut self,
        index: u64,
        key: &Key,
        revision: u64,
        hash: &KeyHash,
        current: Option<Current>,
    ) -> Result<(), Error> {
        let Some((slot, commitment)) = self.value_of(key, revision)? else { return Ok(()) };
        match slot.checked_sub(self.first_slot) {
            Some(at) => {
                let at = position(at);
                self.values[at] = values::Stored::Erased(index);
                self.salts[at * 32..(at + 1) * 32].fill(0);
            }
            None => {
                self.erased.insert(slot, index);
            }
        }
        if let Some(c) = current.filter(|c| c.exists && c.revision == revision) {
            let state = SlotState::Erased { commitment, erased_by: index };
            self.touched.set(hash, Slot { revision, versions: c.versions, state });
        }
        Ok(())
    }

    /// Marks every [`HISTORY_STRIDE`]th revision of a key, so that a read of the past starts near it.
    fn note_history(&mut self, hash: &KeyHash) -> Result<(), Error> {
        let Some(current) = self.current(hash)? else { return Ok(()) };
        // An erase leaves the revision where it is.
        if current.versions % HISTORY_STRIDE == 0 && current.revision + 1 == self.next_index() {
            let row_key = history_key(hash, current.versions / HISTORY_STRIDE);
            self.batch.put(Tree::History, &row_key, current.revision.to_be_bytes().to_vec());
        }
        Ok(())
    }

    /// Closes the block, if there is one, and commits.
    fn finish(mut self, position: Position) -> Result<(), Error> {
        let stages = &self.ledger.stages;
        stages.transactions.fetch_add(self.timer.lap_ns(), Relaxed);
        let span = &mut self.chain.head.outcomes;
        outcomes::evict(&self.ledger.rows, &mut self.batch, span, self.outcomes_added, self.time_ms)?;
        self.chain.head.raft = position.opaque;
        self.chain.head.raft_index = position.index;
        if !self.lines.is_empty() {
            self.close_block()?;
        }
        self.batch.put(Tree::Meta, b"head", self.chain.head.encode());
        if !self.erased.is_empty() {
            self.ledger.salts.destroy(self.erased.keys().copied())?;
            values::erase(&self.ledger.rows, &mut self.batch, &self.erased)?;
        }
        if !self.salts.is_empty() {
            self.ledger.salts.write(self.first_slot, &self.salts)?;
        }
        let rows = self.batch.len() as u64;
        self.ledger.rows.commit(self.batch)?;
        stages.rows.fetch_add(self.timer.lap_ns(), Relaxed);
        stages.row_count.fetch_add(rows, Relaxed);
        stages.entries.fetch_add(self.lines.len() as u64, Relaxed);
        Ok(())
    }

    fn close_block(&mut self) -> Result<(), Error> {
        let height = self.chain.head.height + 1;
        self.lookup = None;
        let state = self.ledger.map.apply(height, self.touched.slots())?;
        self.ledger.stages.map.fetch_add(self.timer.lap_ns(), Relaxed);
        let block = Block {
            height,
            time_ms: self.time_ms,
            count: self.lines.len() as u64,
            previous: self.chain.head.block_hash,
            state,
        };
        let line = Entry::Block(block).to_line();
        let block_hash = leaf_hash(&line);
        let last = self.next_index();
        let slots = self.first_slot + self.values.len() as u64;
        self.push_line(line, slots);
        let place = BlockPlace { last, time_ms: self.time_ms, raft_index: self.chain.head.raft_index };
        self.batch.put(Tree::Blocks, &height.to_be_bytes(), place.encode());
        for tile in self.full.drain(..) {
            let (low, high) = tile.hashes.split_at(tile.hashes.len() / 2);
            self.batch.put(Tree::Tiles, &tile_key(tile.level, tile.index, 0), low.to_vec());
            self.batch.put(Tree::Tiles, &tile_key(tile.level, tile.index, 1), high.to_vec());
        }
        entries::put(&mut self.batch, self.first, &self.lines);
        values::put(&mut self.batch, self.first_slot, &self.values);
        let head = &mut self.chain.head;
        *head = HeadRow {
            height,
            size: last + 1,
            time_ms: self.time_ms,
            block_hash: Some(block_hash),
            state_root: state,
            slots,
            system_revision: self.system_revision,
            ..std::mem::take(head)
        };
        Ok(())
    }
}

/// Row key of the mark of a key's revision number `mark` × [`HISTORY_STRIDE`].
pub(crate) fn history_key(hash: &KeyHash, mark: u32) -> [u8; 20] {
    let mut key = [0; 20];
    key[..16].copy_from_slice(&hash.0[..16]);
    key[16..].copy_from_slice(&mark.to_be_bytes());
    key
}

/// Row key of one half of a full tile.
pub(crate) fn tile_key(level: u8, index: u64, half: u8) -> [u8; 10] {
    let mut key = [level; 10];
    key[1..9].copy_from_slice(&index.to_be_bytes());
    key[9] = half;
    key
}

/// The put of a key in an entry's line.
pub(crate) struct FoundPut {
    /// How many puts of the entry come before it: its value lies so many slots after the entry's first.
    pub position: u64,
    pub commitment: [u8; 32],
}

/// Finds the put of a key; `None` when the entry puts no such key.
pub(crate) fn find_put(line: &[u8], key: &str) -> Result<Option<FoundPut>, entry::Malformed> {
    let entry = Entry::parse(line)?;
    let mut position = 0;
    for change in entry.changes() {
        if let Change::Put { key: name, commitment, .. } = change {
            if name == key {
                return Ok(Some(FoundPut { position, commitment: *commitment }));
            }
            position += 1;
        }
    }
    Ok(None)
}

/// Index of the entry that put or deleted the key before this one did.
pub(crate) fn previous_of(line: &[u8], key: &str) -> Result<Option<u64>, entry::Malformed> {
    Ok(entry::find_change(line, key)?.and_then(|change| match change {
        Change::Put { previous, .. } | Change::Erase { previous, .. } => previous,
        Change::Delete { previous, .. } => Some(previous),
    }))
}

fn position(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

/// The error for an entry that does not read back as it was written.
pub(crate) fn damaged_entry(index: u64, what: &dyn std::fmt::Display) -> Error {
    Error::Corrupt(format!(
        "entry {index} of the chain log is damaged ({what}): restore a backup, or rejoin the cluster from its peers"
    ))
}
