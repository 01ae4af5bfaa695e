//! Test vectors of a log whose key was rotated twice: receipts and proofs of before and after, for who knows the first key.

use super::ledger::{Keys, Ledger, ORIGIN, Op};
use super::vectors::Vectors;
use crate::note::{Scheme, Signer, assemble};

/// The same nodes with another log key.
fn rotated(keys: &Keys, seed: u8) -> Keys {
    Keys { log: Signer::from_seed(ORIGIN, Scheme::Ed25519, &[seed; 32]).unwrap(), ..Keys::new(keys.seed) }
}

/// A checkpoint of the ledger's end that the log keys and the nodes signed.
fn sign(ledger: &Ledger, logs: &[&Keys], nodes: usize) -> String {
    let text = ledger.checkpoint().to_text();
    let signers = logs.iter().map(|keys| &keys.log).chain(logs[0].nodes.iter().take(nodes));
    assemble(&text, &signers.map(|signer| signer.sign(&text, 1_760_000_060)).collect::<Vec<_>>())
}

impl Vectors {
    /// The files of the changes stand in the table under `rotation-…`; `chain` names them.
    pub(super) fn rotations(&mut self) {
        let keys = [rotated(&self.keys, self.keys.seed), rotated(&self.keys, 60), rotated(&self.keys, 61)];
        let [first, second, third] = &keys;
        let mut l = Ledger::default();
        l.transaction(&[Op::Put("k", b"v")]);
        l.end_block();
        let (saved, saved_proof) = (l.receipt(first, 0), l.proof(first, "k"));
        let change = l.keys_change(second, &second.majority());
        l.transaction(&[Op::Put("~log-key", b"the second key")]);
        l.end_block();
        let receipt =
            |l: &Ledger, logs: &[&Keys], nodes, index| l.receipt_with(&sign(l, logs, nodes), index, &l.openings(index));
        let one = receipt(&l, &[first, second], 3, change);
        let by_new_alone = receipt(&l, &[second], 3, change);
        let not_cosigned = receipt(&l, &[first, second], 1, change);
        let other_entry = receipt(&l, &[first, second], 3, 0);
        let change = l.keys_change(third, &third.majority());
        l.transaction(&[Op::Put("~log-key", b"the third key")]);
        l.end_block();
        let two = receipt(&l, &[second, third], 3, change);
        let between = receipt(&l, &[second], 3, 0);
        l.transaction(&[Op::Put("k", b"later")]);
        l.end_block();
        let elsewhere = Keys::new(80);
        let mut other = Ledger::default();
        let foreign = other.keys_change(&elsewhere, &elsewhere.majority());
        other.end_block();

        self.add(
            "rotation-1",
            one,
            Ok(()),
            "a change of the log key, on its hand-over checkpoint: the old key signed it",
        );
        self.add("rotation-2", two, Ok(()), "the next change, for who knows the key before it");
        self.with(|v| (v.key, v.policy) = (second.log_key().to_string(), None));
        self.add("rotation-1-new-key", by_new_alone, Err("another log key"), "only the new key signed its own coming");
        self.add("rotation-1-no-quorum", not_cosigned, Err("quorum"), "the nodes did not cosign the change");
        self.add("rotation-1-other-entry", other_entry, Ok(()), "a good receipt, but of no change of keys");
        let foreign = other.receipt(&elsewhere, foreign);
        self.add("rotation-other-log", foreign, Err("another log key"), "a change of keys of a log with the same name");

        let (both, newest) = (&["rotation-1", "rotation-2"], l.receipt(third, 0));
        self.add("rotated-receipt", newest.clone(), Ok(()), "of an entry before both changes, signed by the third key");
        self.with(|v| v.chain = both);
        self.add("rotated-receipt-saved", saved, Ok(()), "saved before both changes, signed by the first key");
        self.with(|v| v.chain = both);
        self.add("rotated-receipt-between", between, Ok(()), "signed by the second key while it was in force");
        self.with(|v| v.chain = both);
        self.add("rotated-proof", l.proof(third, "k"), Ok(()), "a latest-or-absent proof of after both changes");
        self.with(|v| (v.chain, v.expect_key) = (both, Some("k")));
        self.add("rotated-proof-saved", saved_proof, Ok(()), "a latest-or-absent proof saved before both changes");
        self.with(|v| v.chain = both);
        self.add("rotated-no-policy", newest.clone(), Ok(()), "log keys alone are followed without a policy");
        self.with(|v| (v.chain, v.policy) = (both, None));

        self.add("bad-rotated-no-chain", newest.clone(), Err("--chain DIR"), "the changes were not followed");
        for (name, chain, reason, why) in [
            ("bad-rotated-skipped", &["rotation-2"][..], "another log key", "a change was left out"),
            ("bad-rotated-order", &["rotation-2", "rotation-1"], "another log key", "the changes in the wrong order"),
            ("bad-rotated-twice", &["rotation-1", "rotation-1", "rotation-2"], "not newer", "one change twice"),
            ("bad-rotated-short", &["rotation-1"], "another log key", "a change that came later is missing"),
            (
                "bad-rotated-new-key",
                &["rotation-1-new-key", "rotation-2"],
                "another log key",
                "a key that names itself",
            ),
            ("bad-rotated-no-quorum", &["rotation-1-no-quorum", "rotation-2"], "quorum", "a change without the nodes"),
            ("bad-rotated-entry", &["rotation-1-other-entry", "rotation-2"], "another entry", "no change of keys"),
            ("bad-rotated-other-log", &["rotation-other-log", "rotation-2"], "another log key", "another log's change"),
        ] {
            self.add(name, newest.clone(), Err(reason), why);
            self.with(|v| v.chain = chain);
        }
        let stolen = l.receipt(first, 0);
        self.add("bad-rotated-old-key", stolen, Err("somebody else"), "the first key signed more than it lived to see");
        self.with(|v| v.chain = both);
        let stolen = receipt(&l, &[second], 3, 0);
        self.add("bad-rotated-second-key", stolen, Err("somebody else"), "so did the second key");
        self.with(|v| v.chain = both);
    }
}
