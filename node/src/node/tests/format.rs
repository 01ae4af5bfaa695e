//! A ledger that is finalized for more, or for less, than this version knows.
//!
//! `cargo test -p samovar-node --lib node::tests::format`

use super::*;
use crate::command::Command;
use crate::format::{self, InForce};

/// Puts a format in force.
fn in_force(format: u8) -> Write {
    let operation = Operation::Put {
        key: Key::reserved(format::KEY).unwrap(),
        value: serde_json::to_vec(&InForce { format }).unwrap().into(),
        media_type: "application/json".into(),
        blob: false,
    };
    Write { author: "admin".into(), requirements: Vec::new(), operations: vec![operation], idempotency: None }
}

#[test]
fn a_ledger_that_is_finalized_for_more_than_is_read_is_refused_at_the_start() {
    let machine = Machine::new(4);
    simulate(4, async {
        let node = machine.start().await.unwrap();
        node.write(in_force(format::NEWEST + 1)).await.unwrap();
        node.stop().await;
    });
    for _ in 0..2 {
        simulate(4, async {
            let error = machine.start().await.err().expect("what cannot be read is served").to_string();
            assert!(error.contains("start a newer version; nothing was changed"), "{error}");
        });
    }
}

#[test]
fn nothing_above_the_format_in_force_is_proposed() {
    let machine = Machine::new(4);
    simulate(4, async {
        let node = machine.start().await.unwrap();
        let newest = Command::Recovery {
            time_ms: 1,
            author: "a".into(),
            log: String::new(),
            cosigners: Vec::new(),
            policy: String::new(),
            reason: String::new(),
            last: String::new(),
            known: None,
            writes: Vec::new(),
        };
        let ledger = &node.inner.ledger;
        assert_eq!((newest.format(), format::in_force(ledger).unwrap()), (format::FIRST, format::FIRST));
        format::check_proposed(ledger, &newest).expect("what the first version reads needs nothing to be finalized");
        assert!(
            format::check_needed(format::FIRST + 1, || format::in_force(ledger)).is_err(),
            "above what is in force"
        );
        node.write(in_force(format::FIRST + 1)).await.unwrap();
        format::check_needed(format::FIRST + 1, || format::in_force(ledger)).expect("what was put in force");
        node.stop().await;
    });
}
