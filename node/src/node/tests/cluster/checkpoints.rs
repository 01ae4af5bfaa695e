//! What must hold of checkpoints: what each node signs, and what each node serves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::checkpoint::Checkpoint;
use crate::cosign::signed;
use crate::entry::{Change, Entry};
use crate::merkle::{Hash, Tree, leaf_hash};
use crate::note::{Note, VerifierKey};
use crate::policy::Policy;

/// What was seen of a world's checkpoints.
#[derive(Default)]
pub(super) struct Watched {
    /// The largest head that each cosigner signed.
    largest: BTreeMap<String, u64>,
    /// Root by size, with who signed it first.
    heads: BTreeMap<u64, (String, Hash)>,
    /// Every checkpoint that a node served.
    served: BTreeSet<Arc<str>>,
}

/// Keys and policy that an entry put in force.
struct Keys {
    index: u64,
    log: VerifierKey,
    policy: Policy,
}

impl Keys {
    fn meet(&self, note: &Note<'_>) -> bool {
        let signed = |key: &VerifierKey| matches!(note.verify(key), Ok(Some(_)));
        signed(&self.log) && self.policy.is_met(signed)
    }
}

impl Watched {
    /// Takes in what was signed since the last call, in order, and what is served now.
    pub(super) fn look(&mut self, served: Vec<Arc<str>>) -> Result<(), String> {
        self.served.extend(served);
        for (by, Checkpoint { size, root, .. }) in signed::take() {
            let largest = self.largest.entry(by.clone()).or_default();
            if size < *largest {
                return Err(format!("{by} signed {size} entries after {largest}"));
            }
            *largest = size;
            let (first, known) = self.heads.entry(size).or_insert_with(|| (by.clone(), root));
            if *known != root {
                return Err(format!("{first} and {by} signed two logs of {size} entries"));
            }
        }
        Ok(())
    }

    /// Compares it with the chain log: every head that was signed is one of it, and every checkpoint that was served met the
    /// policy in force.
    pub(super) fn check(&self, lines: &[Vec<u8>]) -> Result<(), String> {
        let mut served: BTreeMap<u64, Vec<&str>> = BTreeMap::new();
        for text in &self.served {
            let note = Note::parse(text).map_err(|e| e.to_string())?;
            let checkpoint = Checkpoint::parse(note.text()).map_err(|e| e.to_string())?;
            if self.heads.get(&checkpoint.size).is_none_or(|(_, root)| *root != checkpoint.root) {
                return Err(format!("a checkpoint is served that no node signed: {text}"));
            }
            served.entry(checkpoint.size).or_default().push(text);
        }
        if let Some((size, (by, _))) = self.heads.iter().find(|(size, _)| **size > lines.len() as u64) {
            return Err(format!("{by} signed {size} entries, the log came to {}", lines.len()));
        }
        let (mut tree, mut full) = (Tree::new(), Vec::new());
        let (mut keys, mut kept): (Vec<Keys>, BTreeSet<String>) = (Vec::new(), BTreeSet::new());
        for (index, line) in (0..).zip(lines) {
            tree.push(leaf_hash(line), &mut full);
            let entry = Entry::parse(line).map_err(|e| e.to_string())?;
            if let Entry::Cosigners(change) = &entry {
                let log = VerifierKey::parse(&change.log).map_err(|e| e.to_string())?;
                let policy = Policy::parse(change.policy.as_bytes()).map_err(|e| e.to_string())?;
                keys.push(Keys { index, log, policy });
            }
            kept.extend(entry.changes().iter().filter_map(|change| match change {
                Change::Put { key, .. } => Some(key.to_string()),
                _ => None,
            }));
            let size = index + 1;
            if let Some((by, root)) = self.heads.get(&size)
                && *root != tree.root()
            {
                return Err(format!("{by} signed {size} entries that are not the log's"));
            }
            for text in served.get(&size).into_iter().flatten() {
                let note = Note::parse(text).map_err(|e| e.to_string())?;
                let handed_over = |change: &Keys| kept.contains(&format!("~log-key/checkpoints/{}", change.index));
                let Some((newest, earlier)) = keys.split_last() else {
                    return Err(format!("a checkpoint of {size} entries, before any key is named"));
                };
                let mut in_force = vec![newest];
                if !handed_over(newest) {
                    // One that was replaced before its hand-over counts no more.
                    let first = earlier.first();
                    in_force.extend(earlier.iter().rev().find(|keys| handed_over(keys)).or(first));
                }
                if let Some(unmet) = in_force.iter().find(|keys| !keys.meet(&note)) {
                    return Err(format!("served, and short of what entry {} asks for: {text}", unmet.index));
                }
            }
        }
        Ok(())
    }

    /// Forgets what worlds before this one signed.
    pub(super) fn forget() {
        signed::take();
    }
}
