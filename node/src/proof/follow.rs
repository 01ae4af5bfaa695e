//! Changes of a log's keys, followed from receipt to receipt, and what may be trusted then.

use super::ProofFile;
use super::extra::Extra;
use super::verify::{Contents, Refused, Verified, Verifier};
use crate::checkpoint::Checkpoint;
use crate::entry::{Entry, Recovery};
use crate::merkle::root_before;
use crate::note::{Note, Scheme, VerifierKey};
use crate::policy::Policy;

impl Verifier {
    /// Follows changes of the log's keys: each file is the receipt of a `cosigners` entry, in the order of the log, and is
    /// accepted only under the keys and the policy before it. Without a policy to begin with only log keys are followed.
    ///
    /// # Errors
    /// When a file does not hold; its number, from 1, is in the reason.
    pub fn verify_chain<F: AsRef<[u8]>>(self, files: &[F]) -> Result<Followed, Refused> {
        self.verify_chain_with(files, &[])
    }

    /// [`Verifier::verify_chain`], also over recoveries that whoever runs the log has confirmed by naming the log key that came
    /// with them: no quorum of the policy before vouches for a recovery.
    ///
    /// # Errors
    /// As there; and for a recovery whose log key is not among `recovered`.
    pub fn verify_chain_with<F: AsRef<[u8]>>(
        self,
        files: &[F],
        recovered: &[VerifierKey],
    ) -> Result<Followed, Refused> {
        let expect_key = self.expect_key.clone();
        let mut followed = Followed { newest: Self { expect_key: None, ..self }, earlier: Vec::new() };
        for (n, file) in files.iter().enumerate() {
            followed.follow(file.as_ref(), recovered).map_err(|e| format!("key change {}: {e}", n + 1))?;
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
    /// Entries that the checkpoint of that entry's receipt covers: these keys signed nothing larger. After a recovery: what of
    /// their log was kept.
    size_max: u64,
    /// Why the log was recovered, if that ended it.
    recovered: Option<String>,
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
            Ok(mut verified) => {
                verified.unchecked.extend(self.recoveries());
                return Ok(verified);
            }
            Err(refused) => refused,
        };
        for Earlier { verifier, until, size_max, recovered } in self.earlier.iter().rev() {
            let Ok(mut verified) = verifier.verify(file) else { continue };
            let size = verified.checkpoint.size;
            if size > *size_max && verifier.log == self.newest.log {
                break;
            }
            if size > *size_max && recovered.is_some() {
                return Err(format!(
                    "it is of the log before the recovery, with {size} entries, of which {size_max} were kept: what it \
                     proves was there, and what came after entry {size_max} was lost"
                )
                .into());
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

    /// What is to be said of the recoveries on the way.
    fn recoveries(&self) -> impl Iterator<Item = String> {
        self.earlier.iter().filter_map(|Earlier { until, recovered, .. }| {
            let reason = recovered.as_ref()?;
            Some(format!(
                "whether anything was written after entry {until} that is lost: there the log was recovered without the \
                 quorum of its policy ({reason})"
            ))
        })
    }

    fn follow(&mut self, file: &[u8], recovered: &[VerifierKey]) -> Result<(), Refused> {
        if self.follow_recovery(file, recovered)? {
            return Ok(());
        }
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
        let size_max = verified.checkpoint.size;
        self.earlier.push(Earlier { verifier, until: receipt.index, size_max, recovered: None });
        Ok(())
    }

    /// Follows the receipt of a recovery; whether it is one. The new keys vouch for the entry, and for that the log of the old
    /// ones is a beginning of theirs; the last checkpoint of the old keys, which the entry holds, says where that ends.
    fn follow_recovery(&mut self, bytes: &[u8], recovered: &[VerifierKey]) -> Result<bool, Refused> {
        let Ok(file) = ProofFile::parse(bytes) else { return Ok(false) };
        let Ok(Extra::Receipt { line, .. }) = Extra::parse(&file.extra) else { return Ok(false) };
        let Ok(Entry::Recovery(recovery)) = Entry::parse(line.as_bytes()) else { return Ok(false) };
        let (now, index) = (&self.newest, file.index);
        let Recovery { keys, reason, last, .. } = &recovery;
        let log = VerifierKey::parse(&keys.log).map_err(|e| format!("its log key: {e}"))?;
        let policy = Policy::parse(keys.policy.as_bytes()).map_err(|e| e.to_string())?;
        let note = Note::parse(last).map_err(|e| format!("the last checkpoint before the recovery: {e}"))?;
        let before = Checkpoint::open(&note, &now.log).map_err(|e| e.to_string())?;
        let cosigned = now.policy.as_ref().is_none_or(|policy| {
            let mut witnesses = policy.witnesses();
            witnesses.any(|(_, key)| matches!(note.verify(key), Ok(Some(_))))
        });
        if !cosigned {
            return Err("no node of the policy before cosigned the last checkpoint before the recovery".into());
        }
        if !recovered.contains(&log) {
            return Err(format!(
                "the log was recovered here without the quorum of its policy ({reason}): nothing signed proves that it was \
                 done by who may. Ask whoever runs the log, by another way, whether its new key is {log}; if it is, give \
                 --recovered with it"
            )
            .into());
        }
        let next = Verifier { log, policy: Some(policy), expect_key: None };
        let verified = next.verify(bytes)?;
        let root = root_before(index, verified.checkpoint.size, &file.path);
        if before.size != index || root != Some(before.root) {
            return Err("the log of the new keys does not begin with the log of those before".into());
        }
        let recovered = Some(reason.clone().into_owned());
        let verifier = std::mem::replace(&mut self.newest, next);
        self.earlier.push(Earlier { verifier, until: index, size_max: index, recovered });
        Ok(true)
    }
}
