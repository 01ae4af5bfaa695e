use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use samovar_fuzz::forge;

use super::*;

mod differential;
mod ledger;
mod parts;
mod recovery;
mod rotations;
mod vectors;

use ledger::{Keys, Ledger, Op};
use vectors::{POLICIES, Vectors};

use crate::note::VerifierKey;
use crate::policy::Policy;

#[test]
fn every_vector_is_accepted_or_refused_for_its_reason() {
    let all = Vectors::new();
    let mut names = Vec::new();
    for vector in &all.vectors {
        let verified = all.verify(vector);
        match (vector.outcome, verified) {
            (Ok(()), Ok(_)) => {}
            (Err(reason), Err(refused)) => {
                assert!(refused.to_string().contains(reason), "{}: {refused:?} instead of {reason:?}", vector.name);
            }
            (Ok(()), Err(refused)) => panic!("{} ({}) was refused: {refused}", vector.name, vector.why),
            (Err(_), Ok(verified)) => panic!("{} ({}) was accepted: {verified:?}", vector.name, vector.why),
        }
        assert!(!names.contains(&vector.name), "{} stands twice in the table", vector.name);
        names.push(vector.name);
    }
    println!("{} vectors, {} of them valid", names.len(), all.vectors.iter().filter(|v| v.outcome.is_ok()).count());
}

fn verifier(keys: &Keys, policy: &str) -> Verifier {
    let policy = Some(Policy::parse(policy.as_bytes()).unwrap());
    Verifier { log: keys.log_key().clone(), policy, expect_key: None }
}

fn file_of<'a>(all: &'a Vectors, name: &str) -> &'a [u8] {
    &all.vectors.iter().find(|v| v.name == name).unwrap().file
}

/// What a vector proves, under the policy of the majority.
fn contents(all: &Vectors, name: &str) -> Contents {
    verifier(&all.keys, &all.keys.majority()).verify(file_of(all, name)).unwrap().contents
}

#[test]
fn a_verified_receipt_says_what_it_proves() {
    let all = Vectors::new();
    let values = |name| match contents(&all, name) {
        Contents::Receipt(receipt) => {
            assert_eq!(receipt.line, all.ledger.line(receipt.index), "{name}: the entry");
            receipt.values
        }
        Contents::Latest(_) => panic!("{name} is a receipt"),
    };
    let known = |key: &str, value: &[u8]| (key.to_owned(), Value::Known(value.to_vec()));
    let escaped = "a \"quoted\\\" key/\u{e9}\u{1fad6}";
    assert_eq!(values("receipt"), [known("flights/1", b"first"), known(escaped, b"{\"n\":1}")]);
    let secret = ("secret".to_owned(), Value::Erased { erased_by: 269 });
    assert_eq!(values("receipt-erased"), [known("flights/1", b"third"), secret]);
    assert_eq!(values("receipt-before-erase")[1], known("secret", b"to be erased"));
    let withheld = ("flights/1".to_owned(), Value::Withheld);
    assert_eq!(values("receipt-withheld"), [withheld, known(escaped, b"{\"n\":1}")]);
    assert_eq!(values("receipt-block"), []);
}

#[test]
fn a_verified_proof_says_what_it_proves() {
    let all = Vectors::new();
    let latest = |name| match contents(&all, name) {
        Contents::Latest(latest) => latest,
        Contents::Receipt(_) => panic!("{name} is a latest-or-absent proof"),
    };
    let present = latest("proof");
    assert_eq!((present.key.as_str(), present.block.height), ("flights/1", 6));
    assert_eq!(present.found, Found::Value { revision: 272, value: Some(b"fourth".to_vec()) });
    assert_eq!(present.put.as_deref(), Some(all.ledger.line(272)));
    assert_eq!(latest("proof-without-value").found, Found::Value { revision: 272, value: None });
    assert_eq!(latest("proof-erased").found, Found::Erased { revision: 5, erased_by: 269 });
    for name in ["proof-deleted", "proof-absent-neighbour", "proof-absent-empty", "proof-older", "proof-empty-map"] {
        assert_eq!(latest(name).found, Found::Absent, "{name}");
    }
    assert_eq!(latest("proof-older").block.height, 4, "the block as of which it holds");
    let extra = |name| forge::extra(std::str::from_utf8(file_of(&all, name)).unwrap());
    assert!(extra("proof-absent-neighbour").contains(r#""leaf":{"key":"#), "the way ends at a neighbour");
    assert!(extra("proof-absent-empty").contains(r#""leaf":null"#), "the way ends at nothing");
}

#[test]
fn what_was_not_checked_is_said() {
    let all = Vectors::new();
    let file = file_of(&all, "receipt");
    let trusting = Verifier { policy: None, ..verifier(&all.keys, &all.keys.majority()) };
    let verified = trusting.verify(file).unwrap();
    assert!(verified.unchecked[0].starts_with("log signature only, cosignatures not checked"), "{verified:?}");
    assert!(verified.cosigned.is_empty());
    let verified = verifier(&all.keys, &all.keys.majority()).verify(file).unwrap();
    let names: Vec<_> = verified.cosigned.iter().map(|c| (c.name.as_str(), c.time_s)).collect();
    assert_eq!(names, [("node-1", 1_760_000_061), ("node-2", 1_760_000_062), ("node-3", 1_760_000_063)]);
    assert!(verified.checked.iter().any(|c| c.contains("cosigned by node-1, node-2, node-3")), "{verified:?}");
    assert!(!verified.unchecked.iter().any(|u| u.contains("cosignatures")));
    let verified = verifier(&all.keys, &all.keys.majority()).verify(file_of(&all, "receipt-withheld")).unwrap();
    assert!(verified.unchecked.iter().any(|u| u.contains("\"flights/1\"")), "{verified:?}");
}

/// Every bit of every byte, one at a time, under the policy that needs every signature.
#[test]
fn a_flip_of_any_byte_is_refused_with_a_reason() {
    let all = Vectors::new();
    let verifier = verifier(&all.keys, &all.keys.all());
    for name in ["receipt", "receipt-erased", "proof", "proof-erased", "proof-absent-neighbour", "proof-absent-empty"] {
        let good = file_of(&all, name);
        assert!(verifier.verify(good).is_ok(), "{name} holds as it is");
        for at in 0..good.len() {
            for flip in [0x01, 0xff, 1 << (at % 8)] {
                let mut bytes = good.to_vec();
                bytes[at] ^= flip;
                match verifier.verify(&bytes) {
                    Ok(_) => panic!("{name}: byte {at} xor {flip:#x} was accepted"),
                    Err(refused) => {
                        assert!(refused.to_string().len() > 10, "{name}: byte {at}: no reason: {refused:?}")
                    }
                }
            }
        }
    }
}

#[test]
fn keys_are_followed_from_change_to_change() {
    let (first, second, third) = (Keys::new(40), Keys::new(80), Keys::new(120));
    let mut ledger = Ledger::default();
    ledger.transaction(&[Op::Put("k", b"v")]);
    let to_second = ledger.keys_change(&second, &second.majority());
    ledger.end_block();
    let receipt_second = ledger.receipt(&first, to_second);
    let to_third = ledger.keys_change(&third, &third.majority());
    ledger.end_block();
    let receipt_third = ledger.receipt(&second, to_third);
    let file = ledger.receipt(&third, 0);
    let begin = || verifier(&first, &first.majority());
    let chain = [receipt_second.as_str(), receipt_third.as_str()];
    assert!(begin().verify(file.as_bytes()).is_err(), "signed by keys not yet known");
    let followed = begin().verify_chain(&chain).unwrap();
    assert_eq!(followed.newest().log, *third.log_key());
    assert!(followed.verify(file.as_bytes()).is_ok());
    let stolen = followed.verify(ledger.receipt(&first, 0).as_bytes()).unwrap_err().to_string();
    assert!(stolen.contains("somebody else holds the old log key"), "larger than its keys lived to see: {stolen}");
    let saved = followed.verify(receipt_second.as_bytes()).unwrap();
    assert!(saved.checked.iter().any(|c| c.contains("until entry 1 replaced them")), "{saved:?}");
    let self_signed = ledger.receipt(&second, to_second);
    let no_policy = Verifier { policy: None, ..begin() };
    let followed = no_policy.verify_chain(&chain).unwrap();
    assert!(followed.newest().policy.is_none(), "who began without a policy checks log keys alone");
    assert!(followed.verify(file.as_bytes()).unwrap().unchecked[0].contains("cosignatures not checked"));
    let plain = ledger.receipt(&first, 0);
    let proof = ledger.proof(&first, "k");
    for (what, from, files, reason) in [
        ("a change left out", begin(), vec![chain[1]], "another log key"),
        ("two changes exchanged", begin(), vec![chain[1], chain[0]], "another log key"),
        ("a change twice", begin(), vec![chain[0], chain[0]], "another log key"),
        ("a change that only the new keys signed", begin(), vec![&self_signed], "another log key"),
        ("the receipt of another entry", begin(), vec![&plain], "of another entry"),
        ("a latest-or-absent proof", begin(), vec![&proof], "not the receipt"),
    ] {
        let refused = from.verify_chain(&files).expect_err(what).to_string();
        assert!(refused.starts_with("key change ") && refused.contains(reason), "{what}: {refused}");
    }
    let none: [&str; 0] = [];
    assert_eq!(begin().verify_chain(&none).unwrap().newest().log, *first.log_key());
}

#[test]
fn a_change_of_keys_to_another_log_or_to_an_older_entry_is_refused() {
    let first = Keys::new(40);
    let mut ledger = Ledger::default();
    // The same keys again: every signature holds, and only the order can be wrong.
    let one = ledger.keys_change(&first, &first.majority());
    let two = ledger.keys_change(&first, &first.majority());
    let no_policy = ledger.keys_change(&first, "quorum nodes\n");
    let other_log = Policy::of_cluster(first.log_key(), &[]);
    let foreign = ledger.keys_change(&first, &other_log);
    ledger.end_block();
    let receipt = |index| ledger.receipt(&first, index);
    let follow = |files: &[String]| verifier(&first, &first.majority()).verify_chain(files).map_err(|e| e.to_string());
    assert!(follow(&[receipt(one), receipt(two)]).is_ok());
    assert!(follow(&[receipt(two), receipt(one)]).unwrap_err().contains("not newer"));
    assert!(follow(&[receipt(no_policy)]).unwrap_err().contains("not defined above"));
    assert!(follow(&[receipt(foreign)]).is_ok(), "a policy may drop every witness, if those before it say so");
    let mut line = ledger.line(one).to_owned();
    let stranger = VerifierKey::new("other.example", crate::note::Scheme::Ed25519, [1; 32]).unwrap();
    line = line.replace(&first.log_key().to_string(), &stranger.to_string());
    let head = crate::checkpoint::Checkpoint {
        size: 1,
        root: crate::merkle::leaf_hash(line.as_bytes()),
        ..ledger.checkpoint()
    };
    let file = super::receipt(&Inclusion { index: 0, path: &[], checkpoint: &first.sign(&head) }, &line, &[]);
    assert!(follow(&[file]).unwrap_err().contains("is not one of"), "a log key of another origin");
}

#[test]
fn mutated_files_are_refused_or_prove_the_same() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let all = Vectors::new();
    for round in 0..8_000 {
        let vector = &all.vectors[rng.gen_range(0..all.vectors.len())];
        let policy = all.policy(POLICIES[rng.gen_range(0..2)]);
        let verifier = verifier(&all.keys, &policy);
        let before = verifier.verify(&vector.file).map(|v| v.contents);
        let mut bytes = vector.file.clone();
        for _ in 0..rng.gen_range(1..4) {
            let at = rng.gen_range(0..bytes.len().max(1));
            match rng.gen_range(0..6) {
                _ if bytes.is_empty() => {}
                0 => bytes[at] ^= 1 << rng.gen_range(0..8),
                1 => drop(bytes.remove(at)),
                2 => bytes.insert(at, b"\n A=+\xff"[rng.gen_range(0..6)]),
                3 => drop(bytes.drain(at..(at + rng.gen_range(1..200)).min(bytes.len()))),
                4 => bytes.truncate(at),
                _ => {
                    let other = &all.vectors[rng.gen_range(0..all.vectors.len())].file;
                    let from = rng.gen_range(0..=other.len());
                    bytes.splice(at.., other[from..].iter().copied());
                }
            }
        }
        let Ok(after) = verifier.verify(&bytes) else { continue };
        let same = before.as_ref() == Ok(&after.contents);
        let known = || all.vectors.iter().any(|v| verifier.verify(&v.file).is_ok_and(|v| v.contents == after.contents));
        assert!(same || known(), "round {round}: a mutation of {} proves something new: {after:?}", vector.name);
    }
}

/// The JSON inside, which the mutations above seldom reach through its base64.
#[test]
fn a_mutated_extra_is_refused_or_reads_as_it_is_written() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let all = Vectors::new();
    let extras: Vec<String> = all
        .vectors
        .iter()
        .filter(|v| v.outcome.is_ok())
        .map(|v| forge::extra(std::str::from_utf8(&v.file).unwrap()))
        .collect();
    for _ in 0..40_000 {
        let mut bytes = extras[rng.gen_range(0..extras.len())].clone().into_bytes();
        for _ in 0..rng.gen_range(0..4) {
            let at = rng.gen_range(0..bytes.len().max(1));
            match rng.gen_range(0..4) {
                _ if bytes.is_empty() => {}
                0 => bytes[at] ^= 1 << rng.gen_range(0..8),
                1 => drop(bytes.remove(at)),
                2 => bytes.insert(at, b"\"\\{}[],:0 n"[rng.gen_range(0..11)]),
                _ => bytes.truncate(at),
            }
        }
        let written = match extra::Extra::parse(&bytes) {
            Err(_) => continue,
            Ok(extra::Extra::Receipt { line, openings }) => extra::write_receipt(&line, &openings),
            Ok(extra::Extra::Latest { block, key, map, put, opening }) => {
                let opening = opening.as_ref().map(|(salt, value)| (salt, value.as_slice()));
                extra::write_latest(&block, &key, &map, put.as_ref(), opening)
            }
        };
        assert_eq!(String::from_utf8(written), String::from_utf8(bytes), "a second spelling was read");
    }
}
