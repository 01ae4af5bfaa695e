//! Apply: what a committed proposal does to the ledger. Pure but for its storage, synchronous, deterministic: no clock, no
//! randomness, no order of a hash map reaches what is hashed or answered.
//!
//! Order of a block: salts to their file, its frame to the archive, the rows as one atomic batch (with the position in the
//! raft log), then the answer. What was not durable comes again from the raft log; so do salts that a power cut took from
//! under rows that it left ([`Ledger::restore_salts`]). An erase destroys its salts before the batch that says so.

use crate::blobs::Cid;
use crate::command::{Command, Committed, Idempotency, Key, OperationCommand, Outcome, Refusal, WriteCommand};
use crate::entry::{self, Change, Cosigners, Entry, Membership, Recovery, Transaction};
use crate::error::Error;
use crate::ledger::{Ledger, key_hash};
use crate::planted::{Bug, planted};
use crate::salts;
use crate::state_root::{KeyHash, Slot, SlotState};
use crate::store::outcomes::{self, Kept, Mark, RequestKey};
use crate::store::values;
use crate::trace;

mod block;
mod restore;

use block::{Current, Draft};
pub(crate) use block::{HISTORY_STRIDE, history_key, tile_key};
pub(crate) use restore::{Source, restate};

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

impl Ledger {
    /// Applies one raft entry. An error is final for this node: its state is not known to equal its peers' any more.
    pub(crate) fn apply(&self, input: Input<'_>, position: Position) -> Result<Vec<Outcome>, Error> {
        let _span = trace::span("apply");
        let mut chain = self.write_chain();
        let proposed_ms = match &input {
            Input::Command(
                Command::Writes { time_ms, .. }
                | Command::Messages { time_ms, .. }
                | Command::Cosigners { time_ms, .. }
                | Command::LogKey { time_ms, .. }
                | Command::Recovery { time_ms, .. },
            ) => *time_ms,
            Input::Nothing | Input::Membership { .. } => 0,
        };
        let proposed_ms = if planted(Bug::ApplyReadsClock) { crate::rt::now_ms() } else { proposed_ms };
        let mut draft = Draft::new(self, &mut chain, proposed_ms)?;
        let outcomes = match input {
            Input::Nothing => Vec::new(),
            Input::Membership { voters, learners } => {
                draft.add_line(Entry::Membership(Membership { time_ms: draft.time_ms, voters, learners }));
                Vec::new()
            }
            Input::Command(Command::Cosigners { author, log, cosigners, policy, .. }) => {
                vec![draft.cosigners(author, log, cosigners, policy)]
            }
            Input::Command(Command::LogKey { author, log, cosigners, policy, writes, .. }) => {
                draft.change_of_keys(|draft| draft.cosigners(author, log, cosigners, policy), writes)?
            }
            Input::Command(Command::Recovery {
                author, log, cosigners, policy, reason, last, known, writes, ..
            }) => {
                let recovery = |draft: &mut Draft<'_>| {
                    let keys = draft.keys(author, log, cosigners, policy);
                    let known = known.as_deref().map(Into::into);
                    draft.key_change(Entry::Recovery(Recovery {
                        keys,
                        reason: reason.into(),
                        last: last.into(),
                        known,
                    }))
                };
                draft.change_of_keys(recovery, writes)?
            }
            Input::Command(Command::Writes { writes, .. }) => draft.writes(writes)?,
            Input::Command(Command::Messages { writes, counts, .. }) => draft.messages(writes, counts)?,
        };
        draft.finish(position)?;
        let head = chain.head.view();
        drop(chain);
        self.announce(head);
        Ok(outcomes)
    }
}

impl Draft<'_> {
    fn cosigners(&mut self, author: &str, log: &str, cosigners: &[String], policy: &str) -> Outcome {
        let keys = self.keys(author, log, cosigners, policy);
        self.key_change(Entry::Cosigners(keys))
    }

    fn keys<'c>(&self, author: &'c str, log: &'c str, cosigners: &'c [String], policy: &'c str) -> Cosigners<'c> {
        Cosigners {
            time_ms: self.time_ms,
            author: author.into(),
            log: log.into(),
            cosigners: cosigners.iter().map(|c| c.as_str().into()).collect(),
            policy: policy.into(),
        }
    }

    fn key_change(&mut self, entry: Entry<'_>) -> Outcome {
        let transaction = self.next_index();
        self.add_line(entry);
        self.system_revision = transaction;
        Outcome::Committed(Committed { transaction, block: self.chain.head.height + 1, created: Vec::new() })
    }

    /// A change of keys and the writes that go with it; all is refused when the first write's requirements do not hold, so
    /// that each change follows the one that it was made for.
    fn change_of_keys(
        &mut self,
        change: impl FnOnce(&mut Self) -> Outcome,
        writes: &[WriteCommand],
    ) -> Result<Vec<Outcome>, Error> {
        let refusal = match writes.first() {
            Some(row) => self.requirement_refusal(row)?,
            None => None,
        };
        if let Some(refusal) = refusal {
            return Ok(vec![Outcome::Refused(refusal); 1 + writes.len()]);
        }
        let mut outcomes = vec![change(self)];
        outcomes.extend(self.writes(writes)?);
        Ok(outcomes)
    }

    fn writes(&mut self, writes: &[WriteCommand]) -> Result<Vec<Outcome>, Error> {
        let mut answers = Vec::with_capacity(writes.len());
        for write in writes {
            answers.extend(self.message(std::slice::from_ref(write))?);
        }
        Ok(answers)
    }

    /// Writes of which so many each came together.
    fn messages(&mut self, mut writes: &[WriteCommand], counts: &[u32]) -> Result<Vec<Outcome>, Error> {
        let mut answers = Vec::with_capacity(writes.len());
        for count in counts {
            // The counts add up, or the command had not been read.
            let (message, after) = writes.split_at(position(u64::from(*count)).min(writes.len()));
            answers.extend(self.message(message)?);
            writes = after;
        }
        Ok(answers)
    }

    /// Writes that came together: the answers kept for their name, or new ones.
    fn message(&mut self, message: &[WriteCommand]) -> Result<Vec<Outcome>, Error> {
        let all = |draft: &mut Self| message.iter().map(|write| draft.write(write)).collect();
        match message.first().and_then(|first| first.proposal) {
            Some(id) => self.once(outcomes::proposal_key(id), [0; 32], message.len(), all),
            None => all(self),
        }
    }

    /// One write of a client: the answer kept for its name, or a new one.
    fn write(&mut self, write: &WriteCommand) -> Result<Outcome, Error> {
        let Some(Idempotency { key, fingerprint }) = &write.idempotency else { return self.transaction(write) };
        let request = outcomes::client_key(&write.author, key);
        let answers = self.once(request, *fingerprint, 1, |draft| Ok(vec![draft.transaction(write)?]))?;
        Ok(answers.into_iter().next().unwrap_or(Outcome::Refused(Refusal::IdempotencyMismatch)))
    }

    /// What a request is answered: what is kept for its name, or what it does now, and is kept. `count` outcomes.
    fn once(
        &mut self,
        request: RequestKey,
        fingerprint: [u8; 32],
        count: usize,
        act: impl FnOnce(&mut Self) -> Result<Vec<Outcome>, Error>,
    ) -> Result<Vec<Outcome>, Error> {
        let kept = match self.named.get(&request) {
            Some(kept) => Some(kept.clone()),
            None => outcomes::get(&self.ledger.rows, &request)?,
        };
        if let Some(Kept { mark, outcomes }) = kept {
            let same = mark.fingerprint == fingerprint && outcomes.len() == count;
            return Ok(if same { outcomes } else { vec![Outcome::Refused(Refusal::IdempotencyMismatch); count] });
        }
        let outcomes = act(self)?;
        let span = &mut self.chain.head.outcomes;
        let mark = Mark { fingerprint, time_ms: self.time_ms, sequence: span.next };
        span.next += 1;
        let kept = Kept { mark, outcomes: outcomes.clone() };
        self.outcomes.push((request, outcomes::put(&mut self.batch, &request, &kept)));
        self.named.insert(request, kept);
        Ok(outcomes)
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

    /// Why the transaction must not be applied, if so. Nothing was changed before.
    fn refusal(&self, write: &WriteCommand, currents: &[(KeyHash, Option<Current>)]) -> Result<Option<Refusal>, Error> {
        if let Some(refusal) = self.requirement_refusal(write)? {
            return Ok(Some(refusal));
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

    fn requirement_refusal(&self, write: &WriteCommand) -> Result<Option<Refusal>, Error> {
        for requirement in &write.requirements {
            let current = self.current(&key_hash(&requirement.key))?;
            let actual = current.filter(|c| c.exists).map(|c| c.revision);
            if actual != requirement.revision {
                let (key, required) = (requirement.key.clone(), requirement.revision);
                return Ok(Some(Refusal::Requirement { key, required, actual }));
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
            // A snapshot may have come without a value that is erased only by an entry still to come.
            values::Stored::Erased(erased_by) if erased_by < self.next_index() => {
                Some(Refusal::AlreadyErased { key: key.clone(), erased_by })
            }
            values::Stored::Erased(_) | values::Stored::Ciphertext(_) => None,
        })
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
                if blob.is_some() {
                    self.blob_slot(self.first_slot + self.values.len() as u64 - 1, index);
                    self.blobs_named.extend(cid_of(value));
                }
                if current.is_none() {
                    self.chain.names.insert(key.as_str());
                }
                self.touched.set(hash, Slot { revision: index, versions, state: SlotState::Live { commitment } });
                Change::Put {
                    key: key.as_str().into(),
                    previous,
                    commitment,
                    size: blob.unwrap_or(value.len() as u64),
                    media_type: media_type.as_str().into(),
                    blob: blob.is_some(),
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
}

/// The put of a key in an entry's line.
pub(crate) struct FoundPut {
    /// How many puts of the entry come before it: its value lies so many slots after the entry's first.
    pub position: u64,
    pub commitment: [u8; 32],
    /// Whether its value is the CID of a blob.
    pub blob: bool,
}

/// Finds the put of a key; `None` when the entry puts no such key.
pub(crate) fn find_put(line: &[u8], key: &str) -> Result<Option<FoundPut>, entry::Malformed> {
    let entry = Entry::parse(line)?;
    let mut position = 0;
    for change in entry.changes() {
        if let Change::Put { key: name, commitment, blob, .. } = change {
            if name == key {
                return Ok(Some(FoundPut { position, commitment: *commitment, blob: *blob }));
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

/// The CID in a value that is one.
pub(crate) fn cid_of(value: &[u8]) -> Option<Cid> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

fn position(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

/// The error for an entry that does not read back as it was written.
pub(crate) fn damaged_entry(index: u64, what: &dyn std::fmt::Display) -> Error {
    Error::DamagedStore(format!("entry {index} of the chain log is damaged ({what})"))
}
