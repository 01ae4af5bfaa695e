use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

mod ledger;
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
        let verified = all.verifier(vector).verify(&vector.file);
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
