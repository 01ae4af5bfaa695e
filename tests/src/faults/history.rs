//! What clients saw of each key, and what a register is, in the words of `todc-utils`, whose checker (Wing, Gong, Lowe)
//! judges whether one register could have shown it to them.

use std::sync::mpsc;
use std::time::Duration;

use serde_json::{Value, json};
use todc_utils::linearizability::WGLChecker;
use todc_utils::linearizability::history::{Action, History};
use todc_utils::specifications::Specification;

/// How long the checker may search one key. It finds an order of a good history at once, and may need longer than anybody
/// waits to say that there is none.
const SEARCH: Duration = Duration::from_secs(120);

/// What a key holds: a value that no other write of the run has. `None`: nothing.
pub(super) type Held = Option<u64>;

/// On what a write depends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum If {
    /// On nothing.
    Always,
    /// On what the key holds: `If-Match` for a value, `If-None-Match: *` for none.
    Holds(Held),
    /// On that it holds anything: what a DELETE does.
    Exists,
}

impl If {
    fn holds(self, state: Held) -> bool {
        match self {
            Self::Always => true,
            Self::Holds(wanted) => state == wanted,
            Self::Exists => state.is_some(),
        }
    }
}

/// What a client did, and what it was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    /// It read this.
    Read(Held),
    /// It wrote this, and was told that it was done; `None` is a delete.
    Done(If, Held),
    /// It was told that the condition did not hold, and what the key holds, if that is known.
    Refused(If, Option<Held>),
    /// It was told nothing, or that nobody knows: done at any time after the call, or never.
    Unknown(If, Held),
}

/// One operation on one key, in nanoseconds since the run began.
#[derive(Debug, Clone, Copy)]
pub(super) struct Operation {
    pub(super) client: usize,
    pub(super) act: Act,
    pub(super) called_ns: u64,
    /// When the answer came; of one whose outcome is unknown, when the client gave up.
    pub(super) answered_ns: u64,
    /// Revision that a read or a write was told.
    pub(super) revision: Option<u64>,
}

impl Operation {
    /// For the file that is kept of a run.
    pub(super) fn to_json(self, key: &str) -> Value {
        let act = format!("{:?}", self.act);
        json!({ "key": key, "client": self.client, "act": act, "called_ns": self.called_ns, "answered_ns": self.answered_ns,
                "revision": self.revision })
    }
}

/// One key of the API as a register.
struct Register;

impl Specification for Register {
    type State = Held;
    type Operation = Act;

    fn init() -> Held {
        None
    }

    fn apply(act: &Act, state: &Held) -> (bool, Held) {
        match *act {
            Act::Read(held) => (held == *state, *state),
            Act::Done(condition, value) if condition.holds(*state) => (true, value),
            Act::Done(..) => (false, *state),
            Act::Refused(condition, held) => {
                (!condition.holds(*state) && held.is_none_or(|held| held == *state), *state)
            }
            // Without an effect it is as if it were done after all that was seen.
            Act::Unknown(condition, value) => (true, if condition.holds(*state) { value } else { *state }),
        }
    }
}

/// What the checker says of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Linearizable,
    /// No order of the operations explains what was seen.
    Wrong,
    /// It searched for too long.
    Undecided,
}

/// Has the checker judge the operations on one key.
pub(super) fn judge(operations: &[Operation]) -> Verdict {
    if operations.is_empty() {
        return Verdict::Linearizable;
    }
    let mut moments = Vec::new();
    for (process, operation) in operations.iter().enumerate() {
        // What has no answer is open to the end. At one moment calls come before answers: so they overlap.
        let answered_ns = match operation.act {
            Act::Unknown(..) => u64::MAX,
            _ => operation.answered_ns,
        };
        moments.push((operation.called_ns, 0, process, Action::Call(operation.act)));
        moments.push((answered_ns, 1, process, Action::Response(operation.act)));
    }
    moments.sort_by_key(|(ns, kind, process, _)| (*ns, *kind, *process));
    let actions = moments.into_iter().map(|(.., process, action)| (process, action)).collect();
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || tell.send(WGLChecker::<Register>::is_linearizable(History::from_actions(actions))));
    match told.recv_timeout(SEARCH) {
        Ok(true) => Verdict::Linearizable,
        Ok(false) => Verdict::Wrong,
        Err(_) => Verdict::Undecided,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(act: Act, called_ns: u64, answered_ns: u64) -> Operation {
        Operation { client: 0, act, called_ns, answered_ns, revision: None }
    }

    fn put(value: u64) -> Act {
        Act::Done(If::Always, Some(value))
    }

    fn read(value: u64) -> Act {
        Act::Read(Some(value))
    }

    const NOTHING: Act = Act::Read(None);
    const DELETED: Act = Act::Done(If::Exists, None);

    /// Writes and reads of two clients, one after the other, as a run gives them.
    fn good() -> Vec<Operation> {
        let mut all = Vec::new();
        for n in 0..100 {
            all.push(op(put(n), 10 * n, 10 * n + 4));
            all.push(op(read(n), 10 * n + 5, 10 * n + 9));
        }
        all
    }

    #[test]
    fn a_history_with_one_stale_read_is_rejected() {
        assert_eq!(judge(&good()), Verdict::Linearizable);
        for at in [1, 50, 99] {
            let mut history = good();
            // The write before it was answered before this read was asked for.
            history[2 * at + 1].act = read(at as u64 - 1);
            assert_eq!(judge(&history), Verdict::Wrong, "read {at} of 100 gives the value before");
        }
    }

    #[test]
    fn one_lost_write_is_rejected() {
        assert_eq!(judge(&[op(put(1), 0, 1), op(NOTHING, 2, 3)]), Verdict::Wrong);
        assert_eq!(judge(&[op(put(1), 0, 1), op(put(2), 2, 3), op(read(1), 4, 5)]), Verdict::Wrong);
    }

    #[test]
    fn what_overlaps_may_come_in_either_order() {
        assert_eq!(judge(&[op(put(1), 0, 5), op(put(2), 0, 5), op(read(1), 6, 7)]), Verdict::Linearizable);
        let both = [op(put(1), 0, 5), op(put(2), 0, 5), op(read(1), 6, 7), op(read(2), 8, 9)];
        assert_eq!(judge(&both), Verdict::Wrong, "but not in both");
    }

    #[test]
    fn an_unknown_write_may_take_effect_late_or_never_but_once() {
        let unknown = op(Act::Unknown(If::Always, Some(2)), 2, 3);
        let late = [op(put(1), 0, 1), unknown, op(read(1), 4, 5), op(read(2), 6, 7)];
        assert_eq!(judge(&late), Verdict::Linearizable);
        let never = [op(put(1), 0, 1), unknown, op(read(1), 4, 5), op(read(1), 6, 7)];
        assert_eq!(judge(&never), Verdict::Linearizable);
        let twice = [unknown, op(read(2), 4, 5), op(DELETED, 6, 7), op(NOTHING, 8, 9), op(read(2), 10, 11)];
        assert_eq!(judge(&twice), Verdict::Wrong);
        let early = [op(NOTHING, 0, 1), op(read(2), 1, 2), op(Act::Unknown(If::Always, Some(2)), 3, 4)];
        assert_eq!(judge(&early), Verdict::Wrong, "before it was asked for");
    }

    #[test]
    fn conditions_are_part_of_the_register() {
        let swap = |from, to| Act::Done(If::Holds(Some(from)), Some(to));
        assert_eq!(judge(&[op(put(1), 0, 1), op(swap(1, 2), 2, 3), op(read(2), 4, 5)]), Verdict::Linearizable);
        assert_eq!(judge(&[op(put(1), 0, 1), op(swap(1, 2), 2, 6), op(swap(1, 3), 2, 6)]), Verdict::Wrong, "one wins");
        let create = Act::Done(If::Holds(None), Some(7));
        assert_eq!(judge(&[op(put(1), 0, 1), op(create, 2, 3)]), Verdict::Wrong);
        assert_eq!(judge(&[op(put(1), 0, 1), op(DELETED, 2, 3), op(create, 4, 5)]), Verdict::Linearizable);
        let refused = |held| Act::Refused(If::Holds(Some(9)), held);
        assert_eq!(judge(&[op(put(1), 0, 1), op(refused(Some(Some(1))), 2, 3)]), Verdict::Linearizable);
        assert_eq!(judge(&[op(put(1), 0, 1), op(refused(Some(None)), 2, 3)]), Verdict::Wrong, "told what is not so");
        assert_eq!(judge(&[op(put(9), 0, 1), op(refused(None), 2, 3)]), Verdict::Wrong, "it did hold");
        assert_eq!(judge(&[op(put(1), 0, 1), op(Act::Refused(If::Exists, None), 2, 3)]), Verdict::Wrong, "404");
        let maybe = op(Act::Unknown(If::Holds(Some(1)), Some(2)), 2, 3);
        assert_eq!(judge(&[op(put(1), 0, 1), maybe, op(read(2), 4, 5)]), Verdict::Linearizable);
        assert_eq!(judge(&[op(put(3), 0, 1), maybe, op(read(2), 4, 5)]), Verdict::Wrong, "its condition never held");
    }
}
