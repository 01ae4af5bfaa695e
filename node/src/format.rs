//! Which format of commands is in force. Every command in the raft log says the oldest format that knows it (`command.rs`). A
//! version that knows a newer format reads all older ones, and proposes nothing above the one in force, so a node of the version
//! before can follow it, and a box can go back to the version in its spare slot. **Finalizing** raises what is in force: a write of
//! the row [`KEY`], made once every node, and what is in the spare slot of each, reads the newer one. There is no way back.

use serde::{Deserialize, Serialize};

use crate::command::{Command, Key};
use crate::error::Error;
use crate::ledger::Ledger;
use crate::view::Found;

/// The newest format that this version reads. One more in a build that stands for the next version in tests (`tests/next`).
pub const NEWEST: u8 = if cfg!(feature = "next-format") { 6 } else { 5 };
/// In force on a ledger that nobody finalized: what the first version reads.
pub const FIRST: u8 = 5;
/// Reserved key of the [`InForce`] row.
pub const KEY: &str = "~format/commands";

/// The row under [`KEY`], as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InForce {
    /// The newest format that may be proposed.
    pub format: u8,
}

/// The format in force as of the newest block here.
///
/// # Errors
/// [`Error::Corrupt`] when the row is none; what reading says.
pub(crate) fn in_force(ledger: &Ledger) -> Result<u8, Error> {
    let Found::Value(value) = ledger.get(&Key::stored(KEY.to_owned()), None)?.found else { return Ok(FIRST) };
    let row: Result<InForce, _> = serde_json::from_slice(&value.content);
    row.map(|row| row.format).map_err(|e| Error::Corrupt(format!("the row {KEY} is damaged: {e}")))
}

/// Whether this version may serve a ledger: it must read what others propose from now on.
///
/// # Errors
/// [`Error::Invalid`] says what to do.
pub(crate) fn check_read(ledger: &Ledger) -> Result<(), Error> {
    let format = in_force(ledger)?;
    if format > NEWEST {
        return Err(Error::Invalid(format!(
            "the ledger was finalized for commands of format {format}, this version reads {NEWEST}: start a newer version; nothing \
             was changed"
        )));
    }
    Ok(())
}

/// Whether a command may be proposed: others must be able to read it.
///
/// # Errors
/// [`Error::Invalid`] when its format is not in force.
pub(crate) fn check_proposed(ledger: &Ledger, command: &Command) -> Result<(), Error> {
    check_needed(command.format(), || in_force(ledger))
}

/// [`check_proposed`] of a format. What every version reads needs no look at the ledger.
pub(crate) fn check_needed(needed: u8, in_force: impl FnOnce() -> Result<u8, Error>) -> Result<(), Error> {
    if needed <= FIRST {
        return Ok(());
    }
    let format = in_force()?;
    if needed > format {
        return Err(Error::Invalid(format!(
            "this needs commands of format {needed}, the ledger takes up to {format}: when every node has the newer version, run samovar \
             finalize"
        )));
    }
    Ok(())
}
