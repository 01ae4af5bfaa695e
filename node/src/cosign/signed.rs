//! For tests: every head that a node of this thread signed, in order, whatever became of the signature.

use std::cell::RefCell;

use crate::checkpoint::Checkpoint;

thread_local! {
    static SIGNED: RefCell<Vec<(String, Checkpoint)>> = const { RefCell::new(Vec::new()) };
}

/// Notes that the cosigner of a name signs a head.
pub(super) fn note(cosigner: &str, checkpoint: &Checkpoint) {
    SIGNED.with_borrow_mut(|signed| signed.push((cosigner.to_owned(), checkpoint.clone())));
}

/// What was signed since the last call.
pub(crate) fn take() -> Vec<(String, Checkpoint)> {
    SIGNED.take()
}
