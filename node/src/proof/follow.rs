//! Changes of a log's keys, followed from receipt to receipt, and what may be trusted then.

use super::verify::{Contents, Refused, Verified, Verifier};
use crate::entry::Entry;
use crate::note::{Scheme, VerifierKey};
use crate::policy::Policy;

impl Verifier {
    /// Follows changes of the log's keys: each file is the receipt of a `cosigners` entry, in the order of the log, and is
    /// accepted only under the keys and the policy before it. Without a policy to begin with only log keys are followed.
    ///
    /// # Errors
    /// When a file does not hold; its number, from 1, is in the reason.
    pub fn verify_chain<F: AsRef<[u8]>>(self, files: &[F]) -> Result<Followed, Refused> {
        let expect_key = self.expect_key.clone();
        let mut followed = Followed { newest: Self { expect_key: None, ..self }, earlier: Vec::new() };
        for (n, file) in files.iter().enumerate() {
            followed.follow(file.as_ref()).map_err(|e| format!("key change {}: {e}", n + 1))?;
        }
        followed.newest.expect_key.clone_from(&expect_key);
        for earlier in &mut followed.earlier {
            earlier.verifier.expect_key.clone_from(&expect_key);
        }
        Ok(followed)
    }
}

/// What is trusted after the changes of a log's keys were followed.
#[derive(Debug, Clone)]
pub struct Followed {
    newest: Verifier,
    /// What was trusted before, oldest first.
    earlier: Vec<Earlier>,
}

/// What was trusted until a change of keys.
#[derive(Debug, Clone)]
struct Earlier {
    verifier: Verifier,
    /// Index of the entry that ended it.
    until: u64,
    /// Entries that the checkpoint of that entry's receipt covers: these keys signed nothing larger.
    size_max: u64,
}

impl Followed {
    /// The keys and the policy in force after the last change.
    #[must_use]
    pub fn newest(&self) -> &Verifier {
        &self.newest
    }

    /// Verifies a receipt or a latest-or-absent proof: under the keys in force, or, if it was made before a change of keys,
    /// under those of its time. The notes taken then say so.
    ///
    /// # Errors
    /// With the reason, when any part of it does not hold.
    pub fn verify(&self, file: &[u8]) -> Result<Verified, Refused> {
        let refused = match self.newest.verify(file) {
            Ok(verified) => return Ok(verified),
            Err(refused) => refused,
        };
        for Earlier { verifier, until, size_max } in self.earlier.iter().rev() {
            let Ok(mut verified) = verifier.verify(file) else { continue };
            let size = verified.checkpoint.size;
            if size > *size_max && verifier.log == self.newest.log {
                break;
            }
            if size > *size_max {
                return Err(format!(
                    "signed with {size} entries by keys that entry {until} replaced, which signed no more than {size_max}: \
                     somebody else holds the old log key"
                )
                .into());
            }
            verified.checked.push(format!("it was signed under the keys in force until entry {until} replaced them"));
            let doubt =
                "whether these keys were in other hands by then: ask for a new receipt if the old log key leaked";
            verified.unchecked.push(doubt.into());
            return Ok(verified);
        }
        Err(refused)
    }

    fn follow(&mut self, file: &[u8]) -> Result<(), Refused> {
        let now = &self.newest;
        let verified = now.verify(file)?;
        let Contents::Receipt(receipt) = verified.contents else {
            return Err("a latest-or-absent proof, not the receipt of a change of keys".into());
        };
        let Ok(Entry::Cosigners(change)) = Entry::parse(receipt.line.as_bytes()) else {
            return Err("the receipt of another entry, not of a change of keys".into());
        };
        if self.earlier.last().is_some_and(|last| receipt.index <= last.until) {
            return Err("it is not newer than the change before it: give the receipts in the order of the log".into());
        }
        let log = VerifierKey::parse(&change.log).map_err(|e| format!("its log key: {e}"))?;
        if log.name() != now.log.name() || log.scheme() != Scheme::Ed25519 {
            return Err(format!("its log key {log} is not one of {}", now.log.name()).into());
        }
        let policy = Policy::parse(change.policy.as_bytes()).map_err(|e| e.to_string())?;
        let policy = now.policy.is_some().then_some(policy);
        let next = Verifier { log, policy, expect_key: None };
        let verifier = std::mem::replace(&mut self.newest, next);
        self.earlier.push(Earlier { verifier, until: receipt.index, size_max: verified.checkpoint.size });
        Ok(())
    }
}
