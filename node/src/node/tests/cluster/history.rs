//! What clients saw, and whether a single register per key could have shown it to them in that order: the check of Wing and
//! Gong, with the memory of states that Lowe added.

use std::collections::HashSet;
use std::time::Duration;

/// What a client did to a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    /// Wrote this value; 0 stands for a delete.
    Wrote(u64),
    /// Read this value; 0: there was none.
    Read(u64),
}

/// One operation, from its call to its answer in virtual time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Operation {
    pub act: Act,
    pub called: Duration,
    /// `None`: no answer came, and it may take effect at any time after the call.
    pub answered: Option<Duration>,
}

/// Whether the operations on one key can be ordered so that each takes effect between its call and its answer, and every
/// read gives what was written last. The key does not exist at first.
pub(super) fn is_linearizable(operations: &[Operation]) -> bool {
    let mut operations = operations.to_vec();
    operations.sort_by_key(|o| o.called);
    let end = |o: &Operation| o.answered.unwrap_or(Duration::MAX);
    let mut seen = HashSet::new();
    // Depth first: which were ordered already, and the value then.
    let mut open = vec![(vec![false; operations.len()], 0)];
    while let Some((done, value)) = open.pop() {
        let rest = || operations.iter().zip(&done).filter(|(_, done)| !**done).map(|(o, _)| o);
        // What nobody was told of need not have happened.
        if rest().all(|o| o.answered.is_none()) {
            return true;
        }
        let first_answer = rest().map(end).min().unwrap_or(Duration::MAX);
        for (at, operation) in operations.iter().enumerate() {
            if operation.called > first_answer {
                break;
            }
            let next = match operation.act {
                _ if done[at] => continue,
                Act::Read(read) if read != value => continue,
                Act::Read(_) => value,
                Act::Wrote(written) => written,
            };
            let mut done = done.clone();
            done[at] = true;
            if seen.insert((done.clone(), next)) {
                open.push((done, next));
            }
        }
    }
    operations.is_empty()
}

#[test]
fn the_checker_tells_histories_apart() {
    let ms = Duration::from_millis;
    let op = |act, called, answered: u64| Operation {
        act,
        called: ms(called),
        answered: (answered > 0).then(|| ms(answered)),
    };
    let (w, r) = (Act::Wrote, Act::Read);
    let good: [&[Operation]; 6] = [
        &[],
        &[op(w(1), 0, 1), op(r(1), 2, 3)],
        // A read beside a write sees either, and later ones agree.
        &[op(w(1), 0, 1), op(w(2), 2, 9), op(r(1), 3, 4), op(r(2), 5, 6), op(r(2), 7, 8)],
        &[op(w(1), 0, 5), op(w(2), 0, 5), op(r(1), 6, 7)],
        // A write without an answer may take effect late, or never.
        &[op(w(1), 0, 1), op(w(2), 2, 0), op(r(1), 3, 4), op(r(2), 5, 6)],
        &[op(w(1), 0, 1), op(w(2), 2, 0), op(r(1), 3, 4), op(w(0), 5, 6), op(r(0), 7, 8)],
    ];
    for history in good {
        assert!(is_linearizable(history), "{history:?}");
    }
    let bad: [&[Operation]; 6] = [
        // Stale.
        &[op(w(1), 0, 1), op(w(2), 2, 3), op(r(1), 4, 5)],
        // Of nothing that was written.
        &[op(w(1), 0, 1), op(r(7), 2, 3)],
        // Lost.
        &[op(w(1), 0, 1), op(r(0), 2, 3)],
        // Back in time, beside a write in flight.
        &[op(w(1), 0, 1), op(w(2), 2, 9), op(r(2), 3, 4), op(r(1), 5, 6)],
        // Before it was called.
        &[op(r(1), 0, 1), op(w(1), 2, 3)],
        // Effect of a write without an answer, taken back.
        &[op(w(1), 0, 1), op(w(2), 2, 0), op(r(2), 3, 4), op(r(1), 5, 6)],
    ];
    for history in bad {
        assert!(!is_linearizable(history), "{history:?}");
    }
}
