//! Puts back what a frame of the archive holds: the same block as apply made it, from its entries. The block entry is
//! computed anew, with state root and the hash of the block before, and must come out as it stands in the frame.

use super::block::Draft;
use super::damaged_entry;
use crate::archive::{Frame, Mark};
use crate::command::Key;
use crate::entry::{Change, Entry, Transaction};
use crate::error::Error;
use crate::ledger::{Ledger, block_row, first_of_block, key_hash};
use crate::state_root::{Slot, SlotState};
use crate::store::{Rows, entries, outcomes, values};

/// Where a frame comes from, and what comes with it.
pub(crate) enum Source {
    /// This node's archive; salts lie in their own file.
    Archive,
    /// A peer's, with 32 bytes for each value of the frame: its salt, or zeros when it is destroyed.
    Peer {
        /// The salts.
        salts: Vec<u8>,
    },
}

impl Ledger {
    /// Adds what a frame holds to the ledger. An error is final: the ledger must be opened again.
    ///
    /// # Errors
    /// [`Error::DamagedStore`] when the frame does not continue the ledger or does not give the block that it states: one
    /// of the two is damaged.
    pub(crate) fn restore(&self, frame: Frame, source: Source) -> Result<(), Error> {
        let mut chain = self.write_chain();
        let before = Mark::of(&chain.head);
        if !frame.lines.is_empty() && (frame.first, frame.first_slot) != (before.size, before.slots) {
            return Err(Error::DamagedStore(format!(
                "the archive goes on with entry {}, the store ends at entry {}",
                frame.first, before.size
            )));
        }
        outcomes::forget(&self.rows, before.outcomes.first, frame.outcomes_kept.first)?;
        let mut draft = Draft::new(self, &mut chain, 0)?;
        let archive = match source {
            Source::Archive => false,
            Source::Peer { salts } => {
                draft.salts = salts;
                true
            }
        };
        draft.restore(frame, archive)?;
        let head = chain.head.view();
        drop(chain);
        self.announce(head);
        Ok(())
    }
}

impl Draft<'_> {
    fn restore(mut self, frame: Frame, archive: bool) -> Result<(), Error> {
        let Frame { raft_index, place, outcomes_kept, mut lines, values, outcomes, .. } = frame;
        for (request, row) in &outcomes {
            outcomes::put_row(&mut self.batch, request, row)?;
        }
        self.outcomes = outcomes;
        self.values = values;
        if let Some(block) = lines.pop() {
            self.block(lines, &block, raft_index)?;
        }
        self.chain.head.outcomes = outcomes_kept;
        self.commit(raft_index, place, archive)
    }

    /// The entries of a block, and its block entry, which is made anew and compared.
    fn block(&mut self, lines: Vec<entries::Stored>, block: &entries::Stored, raft_index: u64) -> Result<(), Error> {
        let last = self.first + lines.len() as u64;
        match Entry::parse(&block.line).map_err(|e| damaged_entry(last, &e))? {
            Entry::Block(block) => self.time_ms = block.time_ms,
            _ => return Err(damaged_entry(last, &"a block ends with another entry")),
        }
        let mut slot = self.first_slot;
        for stored in lines {
            slot += self.line(stored, slot)?;
        }
        if slot != self.first_slot + self.values.len() as u64 {
            return Err(damaged_entry(last, &"the block has other values than its entries put"));
        }
        self.close_block(raft_index)?;
        if self.lines.last() != Some(block) {
            return Err(Error::DamagedStore(format!(
                "block entry {last} of the archive does not follow from the entries before it"
            )));
        }
        Ok(())
    }

    /// One entry that is no block entry; returns how many values it puts.
    fn line(&mut self, stored: entries::Stored, slot: u64) -> Result<u64, Error> {
        let index = self.next_index();
        if stored.slot != slot {
            return Err(damaged_entry(index, &"its values lie in other slots"));
        }
        let line = stored.line.clone();
        self.push_line(stored.line, slot);
        match Entry::parse(&line).map_err(|e| damaged_entry(index, &e))? {
            Entry::Transaction(transaction) => self.transaction_again(index, slot, &transaction),
            Entry::Cosigners(_) | Entry::Recovery(_) => {
                self.system_revision = index;
                Ok(0)
            }
            Entry::Membership(_) => Ok(0),
            Entry::Block(_) => Err(damaged_entry(index, &"a block entry within a block")),
        }
    }

    fn transaction_again(&mut self, index: u64, slot: u64, transaction: &Transaction<'_>) -> Result<u64, Error> {
        let (mut puts, mut hashes) = (0, Vec::with_capacity(transaction.changes.len()));
        for change in &transaction.changes {
            let key = Key::stored(change.key().to_owned());
            let hash = key_hash(&key);
            hashes.push(hash);
            let current = self.current(&hash)?;
            let versions = current.map_or(0, |c| c.versions) + 1;
            match change {
                Change::Put { commitment, blob, .. } => {
                    if *blob {
                        self.blob_slot(slot + puts, index);
                    }
                    puts += 1;
                    if current.is_none() {
                        self.chain.names.insert(key.as_str());
                    }
                    let state = SlotState::Live { commitment: *commitment };
                    self.touched.set(&hash, Slot { revision: index, versions, state });
                }
                Change::Delete { .. } => {
                    self.touched.set(&hash, Slot { revision: index, versions, state: SlotState::Deleted });
                }
                Change::Erase { revision, .. } => self.erase(index, &key, *revision, &hash, current)?,
            }
            if key.is_reserved() {
                self.system_revision = index;
            }
        }
        for hash in &hashes {
            self.note_history(hash)?;
        }
        Ok(puts)
    }
}

/// Makes the frames again that lead from a mark to the head, from the rows of the store. What of it cannot be known any
/// more, the place in the raft log within, is left out ([`Frame::place`]).
///
/// # Errors
/// What `emit` says; [`Error::DamagedStore`].
pub(crate) fn restate(
    rows: &Rows,
    from: Mark,
    to: Mark,
    place: Option<Vec<u8>>,
    emit: &mut dyn FnMut(Frame) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut frame = Frame { outcomes_kept: from.outcomes, ..Frame::default() };
    for height in from.height + 1..=to.height {
        let (first, row) = (first_of_block(rows, height)?, block_row(rows, height)?);
        let count = usize::try_from(row.last + 1 - first).unwrap_or(usize::MAX);
        let lines = entries::from(rows, first, count)?;
        let slots = lines.first().zip(lines.last()).map(|(first, last)| (first.slot, last.slot));
        let Some((first_slot, end)) = slots.filter(|_| lines.len() == count) else {
            return Err(damaged_entry(first, &"entries of its block are missing"));
        };
        let values = values::from(rows, first_slot, end)?;
        emit(Frame { raft_index: row.raft_index, first, first_slot, lines, values, ..frame.clone() })?;
    }
    frame.raft_index = to.raft_index;
    frame.outcomes_kept.first = to.outcomes.first;
    let mut next = from.outcomes.next.max(to.outcomes.first);
    while next < to.outcomes.next {
        let (outcomes, after) = outcomes::page(rows, next, to.outcomes.next)?;
        next = after;
        frame.outcomes_kept.next = next;
        emit(Frame { outcomes, ..frame.clone() })?;
    }
    emit(Frame { place, outcomes_kept: to.outcomes, ..frame })
}
