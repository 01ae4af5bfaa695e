//! A lone node whose clock is wrong: a year ahead, a year back, set right again, with restarts in between.
//!
//! `cargo test -p samovar-node --lib node::tests::clock`

use super::*;
use crate::clock::{HELD, JUMP_MAX_MS};
use crate::entry::Entry;
use crate::store::outcomes::OUTCOME_AGE_MS;

const YEAR_MS: u64 = 365 * 24 * 3600 * 1000;
const HOUR_MS: u64 = 3600 * 1000;

fn put(name: &str, idempotency_key: Option<&str>) -> Write {
    let operation = Operation::Put {
        key: Key::client(name).unwrap(),
        value: Bytes::from_static(b"v"),
        media_type: "text/plain".into(),
        blob: false,
    };
    let idempotency = idempotency_key.map(|key| Idempotency { key: key.into(), fingerprint: [7; 32] });
    Write { author: "client".into(), requirements: Vec::new(), operations: vec![operation], idempotency }
}

async fn committed(node: &Node, write: Write) -> Committed {
    match node.write(write).await.unwrap() {
        Outcome::Committed(committed) => committed,
        Outcome::Refused(refusal) => panic!("expected the write to be committed, it was refused: {refusal:?}"),
    }
}

/// Writes one value and returns the time of its block.
async fn block_time(node: &Node) -> u64 {
    let block = committed(node, put("k", None)).await.block;
    node.block(block).await.unwrap().time_ms
}

/// What the log says of held time: for each put or delete of the mark, its name and the time of its entry.
fn marks(node: &Node) -> Vec<(&'static str, u64)> {
    let size = usize::try_from(node.head().borrow().size).unwrap();
    let mut found = Vec::new();
    for record in node.inner.ledger.records(0, size).unwrap() {
        let Entry::Transaction(transaction) = Entry::parse(&record.line).unwrap() else { continue };
        for change in transaction.changes.iter().filter(|c| c.key() == HELD) {
            let name = if matches!(change, crate::entry::Change::Delete { .. }) { "resume" } else { "hold" };
            found.push((name, transaction.time_ms));
        }
    }
    found
}

/// Runs a life of a machine whose wall clock begins at `wall_ms`.
fn life<T>(machine: &Machine, wall_ms: u64, synchronised: bool, body: impl AsyncFnOnce(&Node) -> T) -> T {
    simulate(3, async {
        rt::set_simulated_clock(wall_ms, synchronised);
        let node = machine.start().await.unwrap();
        let result = body(&node).await;
        node.stop().await;
        result
    })
}

const START_MS: u64 = 1_700_000_000_000;

/// A ledger with a block made at about [`START_MS`], and that block's time.
fn begun() -> (Machine, u64) {
    let machine = Machine::new(3);
    let time = life(&machine, START_MS, false, block_time_of);
    assert!(time.abs_diff(START_MS) < HOUR_MS, "the first clock of a ledger is believed, got {time}");
    (machine, time)
}

async fn block_time_of(node: &Node) -> u64 {
    block_time(node).await
}

#[test]
fn a_year_ahead_is_held_over_restarts_until_the_clock_is_set_right() {
    let (machine, sure) = begun();
    for life_number in 1..=2 {
        life(&machine, sure + YEAR_MS, false, async |node| {
            for _ in 0..3 {
                assert_eq!(block_time(node).await, sure, "life {life_number}: a doubted clock must not move the chain");
            }
            let clock = node.clock();
            assert!(clock.doubted && clock.held, "status must say so, got {clock:?}");
            assert_eq!(node.now_ms(), sure, "what expires is compared with the last sure time");
            assert_eq!(marks(node), [("hold", sure)], "one mark, in the first block that is held");
        });
    }
    life(&machine, sure + HOUR_MS, false, async |node| {
        let time = block_time(node).await;
        assert!((sure + HOUR_MS..sure + 2 * HOUR_MS).contains(&time), "a clock set right is believed, got {time}");
        let clock = node.clock();
        assert!(!clock.doubted && !clock.held, "nothing is held any more, got {clock:?}");
        assert_eq!(marks(node), [("hold", sure), ("resume", time)]);
        check_chain(node).unwrap();
    });
}

#[test]
fn synchronisation_ends_the_doubt_while_the_node_runs() {
    let (machine, sure) = begun();
    life(&machine, sure + YEAR_MS, false, async |node| {
        assert_eq!(block_time(node).await, sure);
        rt::set_simulated_clock(sure + YEAR_MS, true);
        let time = block_time(node).await;
        assert!(time >= sure + YEAR_MS, "a synchronised clock is believed whatever it says, got {time}");
        assert_eq!(marks(node), [("hold", sure), ("resume", time)]);
    });
}

#[test]
fn an_administrator_accepts_the_clock_and_it_stays_accepted() {
    let (machine, sure) = begun();
    let accepted = life(&machine, sure + YEAR_MS, false, async |node| {
        assert_eq!(block_time(node).await, sure);
        let Outcome::Committed(act) = node.accept_clock("api-key/7").await.unwrap() else { panic!("refused") };
        let entry = node.record(act.transaction).await.unwrap();
        let Entry::Transaction(entry) = Entry::parse(&entry.line).unwrap() else { panic!("not a transaction") };
        assert_eq!((&*entry.author, entry.changes[0].key()), ("api-key/7", "~clock/accepted"), "the act is an entry");
        assert!(entry.time_ms >= sure + YEAR_MS, "it has the accepted time, got {}", entry.time_ms);
        assert_eq!(marks(node), [("hold", sure), ("resume", entry.time_ms)], "and ends the mark in its own block");
        let again = node.accept_clock("api-key/7").await.unwrap_err();
        assert!(matches!(again, Error::Invalid(_)), "there is nothing to accept twice, got {again}");
        entry.time_ms
    });
    life(&machine, accepted + HOUR_MS, false, async |node| {
        assert!(block_time(node).await >= accepted + HOUR_MS, "the acceptance holds over a restart");
    });
}

#[test]
fn a_year_back_never_turns_time_back() {
    let (machine, sure) = begun();
    for synchronised in [false, true] {
        life(&machine, sure - YEAR_MS, synchronised, async |node| {
            for _ in 0..3 {
                assert_eq!(block_time(node).await, sure, "time never goes back (synchronised: {synchronised})");
            }
            assert!(!node.clock().doubted && marks(node).is_empty(), "a clock that is behind is no doubt");
            assert_eq!(node.now_ms(), sure, "nor does what expires come back to life");
            rt::set_simulated_clock(sure - HOUR_MS, synchronised);
            assert_eq!(block_time(node).await, sure, "still behind");
        });
    }
    life(&machine, sure + HOUR_MS, true, async |node| {
        assert!(block_time(node).await >= sure + HOUR_MS, "set right, it goes on");
    });
}

#[test]
fn a_quiet_day_is_no_jump_but_a_day_switched_off_is() {
    let (machine, sure) = begun();
    let day = JUMP_MAX_MS + HOUR_MS;
    let later = life(&machine, sure, false, async |node| {
        block_time(node).await;
        rt::sleep(Duration::from_millis(day)).await;
        let time = block_time(node).await;
        assert!(time >= sure + day, "the node saw the time pass, got {time}");
        time
    });
    life(&machine, later + day, false, async |node| {
        assert_eq!(block_time(node).await, later, "nobody saw this day pass");
        assert_eq!(marks(node), [("hold", later)]);
    });
}

#[test]
fn nothing_expires_on_a_doubted_clock() {
    let (machine, sure) = begun();
    let first = life(&machine, sure, false, async |node| committed(node, put("once", Some("order-1"))).await);
    life(&machine, sure + YEAR_MS, false, async |node| {
        for _ in 0..70 {
            block_time(node).await;
        }
        let again = committed(node, put("once", Some("order-1"))).await;
        assert_eq!(again, first, "the outcome kept for 24 h of chain time is still there");
        rt::set_simulated_clock(sure + OUTCOME_AGE_MS + 2 * HOUR_MS, true);
        block_time(node).await;
        let anew = committed(node, put("once", Some("order-1"))).await;
        assert_ne!(anew, first, "control: a sure clock 26 h later drops it");
    });
}

#[test]
fn every_part_of_an_idle_node_gives_a_sign_of_life_and_a_stopped_one_none() {
    let machine = Machine::new(3);
    simulate(3, async {
        let node = machine.start().await.unwrap();
        for _ in 0..3 {
            assert_eq!(node.pulse(Duration::from_secs(5)).await, Ok(()), "an idle node answers");
        }
        node.stop().await;
        assert!(node.pulse(Duration::from_secs(5)).await.is_err(), "a stopped node gives no sign");
    });
}
