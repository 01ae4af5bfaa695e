//! A round as seen by a node that does not lead it: a head is shown to it, to be cosigned or to be published.

use super::divergence::{Divergence, text};
use super::{Notary, Published};
use crate::checkpoint::Checkpoint;
use crate::entry::Entry;
use crate::error::Error;
use crate::machine::damaged_entry;
use crate::merkle::Hash;
use crate::note::Note;
use crate::planted::{Bug, planted};
use crate::rt;
use crate::store::entries;

/// A head that a peer shows.
pub(crate) struct Shown<'a> {
    /// Checkpoint, signed by the log.
    pub note: &'a str,
    /// State root of its block, as the peer has it; `None`: not told.
    pub state: Option<Hash>,
    /// Id of the peer.
    pub from: u64,
}

/// What came of a head that was to be cosigned.
#[derive(Debug)]
pub(crate) enum Examined {
    /// The line of the cosignature.
    Cosigned(String),
    /// A larger head was promised already, of so many entries.
    Promised(u64),
    /// Not so far yet.
    Behind,
    /// This node has another head of that size.
    Differs {
        root: Hash,
    },
    Refused(String),
}

/// This node's own head of some size.
struct Own {
    root: Hash,
    /// State root of the block that ends there, if one does.
    state: Option<Hash>,
}

impl Notary {
    /// This node's head of `size` entries; `None` while it has less.
    fn own_head(&self, size: u64) -> Result<Option<Own>, Error> {
        let root = {
            let chain = self.ledger.chain();
            if size > chain.head.size || size == 0 {
                return Ok(None);
            }
            self.root_at(&chain, size)?
        };
        let line = entries::one(&self.ledger.rows, size - 1)?.line;
        let state = match Entry::parse(&line).map_err(|e| damaged_entry(size - 1, &e))? {
            Entry::Block(block) => Some(block.state),
            _ => None,
        };
        Ok(Some(Own { root, state }))
    }

    /// Examines a head, and cosigns it if it is this node's, too: first the promise, durably, then the signature.
    pub(crate) fn examine(&self, shown: &Shown<'_>) -> Result<Examined, Error> {
        let refused = |why: &str| Ok(Examined::Refused(why.to_owned()));
        let (Ok(note), true) = (Note::parse(shown.note), self.keeps_promise()?) else {
            return Ok(Examined::Behind);
        };
        let Ok(checkpoint) = Checkpoint::parse(note.text()) else { return refused("that is no checkpoint") };
        if planted(Bug::CosignWithoutCheck) {
            return self.cosign(&checkpoint);
        }
        if checkpoint.origin != self.keys.origin() {
            return refused("it is a checkpoint of another log");
        }
        if self.soundness.is_proved() {
            return refused("this node's state is known to be wrong");
        }
        let Some(own) = self.own_head(checkpoint.size)? else { return Ok(Examined::Behind) };
        let Some(in_force) = self.ledger.in_force(checkpoint.size)? else { return Ok(Examined::Behind) };
        if !in_force.is_signed(&note) {
            self.soundness.note_forged(shown.note, shown.from);
            return refused("the log key did not sign it");
        }
        if own.root != checkpoint.root || shown.state.is_some_and(|state| own.state != Some(state)) {
            self.differ(&checkpoint, shown, &own, false)?;
            return Ok(Examined::Differs { root: own.root });
        }
        if own.state.is_none() {
            return refused("no block ends there");
        }
        if !in_force.witnesses().any(|key| key == self.keys.cosigner()) {
            return refused("this node is no cosigner as of there");
        }
        self.cosign(&checkpoint)
    }

    fn cosign(&self, checkpoint: &Checkpoint) -> Result<Examined, Error> {
        if let Err(newer) = self.promise.make(checkpoint)? {
            return Ok(Examined::Promised(newer.size));
        }
        #[cfg(test)]
        super::signed::note(self.keys.cosigner().name(), checkpoint);
        Ok(Examined::Cosigned(self.keys.cosign(&checkpoint.to_text(), self.now_s())))
    }

    /// Publishes a checkpoint that a peer has, if it holds here.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while this node has not so much; [`Error::Invalid`] when it does not hold.
    pub(crate) fn accept(&self, shown: &Shown<'_>, raft_index: u64) -> Result<(), Error> {
        let note = Note::parse(shown.note).map_err(|e| Error::Invalid(e.to_string()))?;
        let checkpoint = Checkpoint::parse(note.text()).map_err(|e| Error::Invalid(e.to_string()))?;
        let size = checkpoint.size;
        if size <= *self.size.borrow() && self.soundness.check().is_ok() {
            return Ok(());
        }
        let behind = || Error::Unavailable(format!("this node has not {size} entries yet"));
        let own = self.own_head(size)?.ok_or_else(behind)?;
        let in_force = self.ledger.in_force(size)?.ok_or_else(behind)?;
        if checkpoint.origin != self.keys.origin() || !in_force.is_signed(&note) {
            self.soundness.note_forged(shown.note, shown.from);
            return Err(Error::Invalid("the log key did not sign this checkpoint".into()));
        }
        let cosigned = in_force.is_cosigned(&note);
        if own.root != checkpoint.root {
            self.differ(&checkpoint, shown, &own, cosigned)?;
            return Err(Error::Invalid(format!("this node has another head of {size} entries")));
        }
        if !cosigned || own.state.is_none() {
            return Err(Error::Invalid(format!("this checkpoint of {size} entries does not meet the policy")));
        }
        let text = shown.note.into();
        self.replace(Published { text, size, raft_index, view: std::sync::Mutex::new(None) }).map(drop)
    }

    /// Peers have another head than this node, which led a round: in doubt, or `proved` to be wrong.
    pub(crate) fn contradicted(&self, size: u64, note: &str, by: u64, root: Hash, proved: bool) -> Result<(), Error> {
        let Some(own) = self.own_head(size)? else { return Ok(()) };
        let origin = self.keys.origin().to_owned();
        let theirs = Checkpoint { origin, size, root }.to_text();
        let shown = format!("{theirs}\n(of node {by}, which did not sign it, against)\n{note}");
        self.differ_from(size, shown, None, by, &own, proved)
    }

    fn differ(&self, checkpoint: &Checkpoint, shown: &Shown<'_>, own: &Own, proved: bool) -> Result<(), Error> {
        self.differ_from(checkpoint.size, shown.note.to_owned(), shown.state, shown.from, own, proved)
    }

    fn differ_from(
        &self,
        size: u64,
        shown: String,
        state: Option<Hash>,
        from: u64,
        own: &Own,
        proved: bool,
    ) -> Result<(), Error> {
        self.soundness.differ(Divergence {
            size,
            own_root: text(&own.root),
            own_state: own.state.as_ref().map(text).unwrap_or_default(),
            shown,
            shown_state: state.as_ref().map(text).unwrap_or_default(),
            from,
            proved,
            time_ms: rt::now_ms(),
        })
    }
}
