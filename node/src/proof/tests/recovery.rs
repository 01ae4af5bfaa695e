//! Recoveries: a chain of keys that goes on by other keys, under another origin, without the quorum of the policy before.

use super::ledger::{Keys, Ledger, ORIGIN, Op};
use crate::checkpoint::Checkpoint;
use crate::entry::{Cosigners, Entry, Recovery};
use crate::note::{Scheme, Signer, VerifierKey, assemble};
use crate::policy::Policy;
use crate::proof::{Followed, Refused, Verifier};

const NEW_ORIGIN: &str = "ledger.example/samovar-2";

struct Case {
    old: Keys,
    new: Keys,
    ledger: Ledger,
    /// Index of the entry.
    at: u64,
    /// Of before the recovery.
    saved: String,
}

/// Keys of the epoch that the recovery begins: one node.
fn new_keys() -> Keys {
    let keys = Keys::new(100);
    let log = Signer::from_seed(NEW_ORIGIN, Scheme::Ed25519, &[100; 32]).unwrap();
    let node = Signer::from_seed(&format!("{NEW_ORIGIN}/node-1"), Scheme::Cosignature, &[101; 32]).unwrap();
    Keys { log, nodes: vec![node], ..keys }
}

/// A log whose recovery has this as its last checkpoint.
fn case(last: impl FnOnce(&Keys, &Checkpoint) -> String) -> Case {
    let (old, new) = (Keys::new(40), new_keys());
    let mut ledger = Ledger::default();
    for n in 0..7 {
        ledger.transaction(&[Op::Put(if n % 2 == 0 { "a" } else { "b" }, b"v")]);
        ledger.end_block();
    }
    let saved = ledger.receipt(&old, 2);
    let last = last(&old, &ledger.checkpoint());
    let keys = Cosigners {
        time_ms: 1_760_000_000_100,
        author: "recover".into(),
        log: new.log_key().to_string().into(),
        cosigners: vec![new.nodes[0].verifier_key().to_string().into()],
        policy: Policy::of_cluster(new.log_key(), &[("node-1".into(), new.nodes[0].verifier_key().clone())]).into(),
    };
    let at =
        ledger.append(&Entry::Recovery(Recovery { keys, reason: "two burnt".into(), last: last.into(), known: None }));
    ledger.end_block();
    Case { old, new, ledger, at, saved }
}

/// What the node that is left signs: with the log key and its own.
fn survivor(old: &Keys, head: &Checkpoint) -> String {
    old.sign_by(head, &[&old.nodes[1]])
}

impl Case {
    fn sign(&self, ledger: &Ledger) -> String {
        let text = Checkpoint { origin: NEW_ORIGIN.into(), ..ledger.checkpoint() }.to_text();
        assemble(&text, &[self.new.log.sign(&text, 1_760_000_200), self.new.nodes[0].sign(&text, 1_760_000_200)])
    }

    fn receipt(&self, index: u64) -> String {
        self.ledger.receipt_with(&self.sign(&self.ledger), index, &self.ledger.openings(index))
    }

    fn follow(&self, recovered: &[VerifierKey]) -> Result<Followed, Refused> {
        let policy = Some(Policy::parse(self.old.majority().as_bytes()).unwrap());
        let verifier = Verifier { log: self.old.log_key().clone(), policy, expect_key: None };
        verifier.verify_chain_with(&[self.receipt(self.at)], recovered)
    }

    fn refused(&self, part: &str) {
        let why = self.follow(&[self.new.log_key().clone()]).expect_err(part).to_string();
        assert!(why.contains(part), "`{part}` was expected in: {why}");
    }
}

#[test]
fn a_recovery_is_followed_by_who_has_its_key_confirmed_and_by_nobody_else() {
    let case = case(survivor);
    let why = case.follow(&[]).unwrap_err().to_string();
    assert!(why.contains("--recovered") && why.contains("two burnt"), "{why}");
    assert!(case.follow(&[case.old.log_key().clone()]).is_err(), "another key was confirmed");
    let followed = case.follow(&[case.new.log_key().clone()]).unwrap();
    let fresh = followed.verify(case.receipt(2).as_bytes()).unwrap();
    assert!(fresh.unchecked.iter().any(|line| line.contains("two burnt")), "it says so: {:?}", fresh.unchecked);
    followed.verify(case.saved.as_bytes()).expect("a receipt of before holds under the policy of before");
}

#[test]
fn what_was_lost_with_a_recovery_is_said_to_be_lost() {
    let case = case(survivor);
    let mut other = Ledger::default();
    for _ in 0..30 {
        other.transaction(&[Op::Put("a", b"what the others went on with")]);
        other.end_block();
    }
    let lost = other.receipt(&case.old, 40);
    let followed = case.follow(&[case.new.log_key().clone()]).unwrap();
    let why = followed.verify(lost.as_bytes()).unwrap_err().to_string();
    assert!(why.contains("was lost"), "{why}");
}

#[test]
fn a_recovery_of_another_log_or_without_a_node_of_before_is_refused() {
    case(|old, head| old.sign_by(head, &[])).refused("no node of the policy before cosigned");
    case(|_, head| Keys::new(60).sign(head)).refused("another log key");
    case(|old, head| survivor(old, &Checkpoint { size: head.size - 2, ..head.clone() }))
        .refused("does not begin with the log");
    case(|old, head| survivor(old, &Checkpoint { root: [7; 32], ..head.clone() }))
        .refused("does not begin with the log");
    case(|_, _| "no note".into()).refused("the last checkpoint before the recovery");
    assert_eq!(case(survivor).ledger.checkpoint().origin, ORIGIN, "the helper signs under its own origin");
}
