//! Files for a comparison of two verifiers: what this one says of thousands of damaged files, entries and policies.

use std::path::PathBuf;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use samovar_fuzz::forge::{base64, extra};

use super::vectors::{Vectors, row};
use crate::checkpoint::Checkpoint;
use crate::merkle::leaf_hash;
use crate::policy::Policy;
use crate::proof::{Inclusion, Verifier, receipt};

fn mutate(rng: &mut StdRng, bytes: &mut Vec<u8>) {
    for _ in 0..rng.gen_range(1..3) {
        let at = rng.gen_range(0..bytes.len().max(1));
        match rng.gen_range(0..5) {
            _ if bytes.is_empty() => {}
            0 => bytes[at] ^= 1 << rng.gen_range(0..8),
            1 => drop(bytes.remove(at)),
            2 | 3 => bytes.insert(at, b"\"\\{}[],:01 n#\n\t+=A\x7f\xc2"[rng.gen_range(0..20)]),
            _ => drop(bytes.drain(at..(at + rng.gen_range(1..40)).min(bytes.len()))),
        }
    }
}

/// Run with `SAMOVAR_DIFFERENTIAL=DIR cargo test -p samovar-node differential -- --ignored`, then
/// `python3 tests/verifier/verify.py --vectors DIR`.
#[test]
#[ignore = "writes files for tests/verifier/verify.py"]
#[allow(clippy::disallowed_methods, reason = "test files need no durability")]
fn files_with_the_answers_of_this_verifier() {
    let directory =
        PathBuf::from(std::env::var_os("SAMOVAR_DIFFERENTIAL").expect("SAMOVAR_DIFFERENTIAL names a directory"));
    std::fs::create_dir_all(&directory).unwrap();
    let seed = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let all = Vectors::new();
    let good: Vec<_> = all.vectors.iter().filter(|v| v.outcome.is_ok()).collect();
    let (mut rows, mut accepted) = (Vec::new(), 0);
    for n in 0..4_000 {
        let vector = good[rng.gen_range(0..good.len())];
        let mut file = vector.file.clone();
        let mut policy = all.policy(vector.policy.unwrap_or("majority")).into_bytes();
        match n % 4 {
            0 => mutate(&mut rng, &mut file),
            1 => mutate(&mut rng, &mut policy),
            2 => {
                let text = String::from_utf8(file).unwrap();
                let before = extra(&text);
                let mut after = before.clone().into_bytes();
                mutate(&mut rng, &mut after);
                file = text.replace(&base64(before.as_bytes()), &base64(&after)).into_bytes();
            }
            _ => {
                // A log that took and signed a damaged line.
                let mut line = all.ledger.line(rng.gen_range(0..all.ledger.size())).as_bytes().to_vec();
                mutate(&mut rng, &mut line);
                let Ok(line) = String::from_utf8(line) else { continue };
                let head = Checkpoint { size: 1, root: leaf_hash(line.as_bytes()), ..all.ledger.checkpoint() };
                let inclusion = Inclusion { index: 0, path: &[], checkpoint: &all.keys.sign(&head) };
                let puts = line.matches("\"put\"").count();
                file = receipt(&inclusion, &line, &vec![crate::proof::Opening::Withheld; puts]).into_bytes();
            }
        }
        let holds = Policy::parse(&policy).is_ok_and(|policy| {
            let verifier = Verifier { log: all.keys.log_key().clone(), policy: Some(policy), expect_key: None };
            verifier.verify(&file).is_ok()
        });
        accepted += usize::from(holds);
        let (name, policy_name) = (format!("{n}.tlog-proof"), format!("{n}.policy"));
        std::fs::write(directory.join(&name), &file).unwrap();
        std::fs::write(directory.join(&policy_name), &policy).unwrap();
        rows.push(row(&name, &all.keys.log_key().to_string(), Some(&policy_name), None, &[], (holds, vector.why)));
    }
    println!("{accepted} of {} accepted", rows.len());
    std::fs::write(directory.join("index.json"), format!("[{}]", rows.join(","))).unwrap();
}
