//! Rotations of the log key: whoever knows the first key can follow from it, whatever was cut.

use super::*;
use crate::durable;
use crate::entry::Entry;
use crate::note::{Note, VerifierKey};
use crate::policy::Policy;
use crate::proof::{Contents, Verifier};

/// The changes of keys in the log, the first one within: index, verifier key, policy.
fn changes(node: &Node) -> Result<Vec<(u64, String, String)>, String> {
    let size = usize::try_from(node.head().borrow().size).unwrap();
    let records = node.inner.ledger.records(0, size).map_err(|e| e.to_string())?;
    let changes = records.iter().filter_map(|record| match Entry::parse(&record.line).unwrap() {
        Entry::Cosigners(c) => Some((record.index, c.log.into_owned(), c.policy.into_owned())),
        _ => None,
    });
    Ok(changes.collect())
}

/// Follows the log key from the first to the one that signs now, and looks at what the node keeps of it.
pub(super) async fn check(node: &Node, acknowledged: &[u64]) -> Result<(), String> {
    let changes = changes(node)?;
    let ((_, first, policy), rotations) = changes.split_first().ok_or("the log does not name its first key")?;
    let listed = node.log_key_changes().await.map_err(|e| e.to_string())?;
    if listed != rotations.iter().map(|(index, ..)| *index).collect::<Vec<_>>() {
        return Err(format!("the node lists the changes {listed:?}, the log holds {rotations:?}"));
    }
    if let Some(lost) = acknowledged.iter().find(|index| !listed.contains(index)) {
        return Err(format!("the rotation at entry {lost} was acknowledged and is gone: {listed:?}"));
    }
    let mut receipts = Vec::new();
    for index in &listed {
        receipts.push(node.receipt(*index, true).await.map_err(|e| format!("receipt of the change {index}: {e}"))?);
    }
    let log = VerifierKey::parse(first).unwrap();
    let begin = Verifier { log, policy: Some(Policy::parse(policy.as_bytes()).unwrap()), expect_key: None };
    let trusted = begin.verify_chain(&receipts).map_err(|e| format!("following {listed:?}: {e}"))?;
    let newest = &changes.last().unwrap().1;
    if trusted.newest().log.to_string() != *newest || node.log_info().vkey != *newest {
        let said = node.log_info().vkey;
        return Err(format!("the newest key is {newest}, followed {}, the node says {said}", trusted.newest().log));
    }
    let receipt = node.receipt(0, true).await.map_err(|e| format!("receipt of entry 0: {e}"))?;
    let verified = trusted.verify(receipt.as_bytes()).map_err(|e| format!("receipt of entry 0: {e}"))?;
    assert!(matches!(verified.contents, Contents::Receipt(_)));
    // The newest block's checkpoint is behind every hand-over.
    let newest_block = node.head().borrow().size - 1;
    node.receipt(newest_block, true).await.map_err(|e| e.to_string())?;
    let checkpoint = node.checkpoint().ok_or("no checkpoint")?;
    let note = Note::parse(&checkpoint).unwrap();
    let signs = |key: &str| note.verify(&VerifierKey::parse(key).unwrap()).unwrap().is_some();
    if !signs(newest) || changes[..changes.len() - 1].iter().any(|(_, log, _)| signs(log)) {
        return Err(format!("one log key signs, the newest: {checkpoint}"));
    }
    let next = Config::new(DATA).data.join("keys/log.next");
    match durable::read(node.inner.disk.as_ref(), &next).map_err(|e| e.to_string())? {
        Some(_) => Err(format!("{} is left over", next.display())),
        None => Ok(()),
    }
}

/// Rotates, and notes the entry once it is acknowledged.
pub(super) async fn rotate(node: &Node, acknowledged: &mut Vec<u64>) {
    if let Ok(Ok((committed, info))) = rt::timeout(PATIENCE, node.rotate_log_key("client")).await {
        assert_eq!(info.vkey, node.log_info().vkey, "the answer names the key in force");
        acknowledged.push(committed.transaction);
    }
}

#[test]
fn rotations_follow_each_other_and_survive_a_restart() {
    const SEED: u64 = 21;
    let machine = Machine::new(SEED);
    let mut rng = StdRng::seed_from_u64(SEED);
    let (mut known, mut serial) = (Known::default(), 0);
    simulate(SEED, async {
        let node = machine.start().await.unwrap();
        for _ in 0..3 {
            known.write(&node, &mut rng, &mut serial, 5).await;
            rotate(&node, &mut known.rotations).await;
        }
        known.check(&node).await.unwrap();
        node.stop().await;
    });
    assert_eq!(known.rotations.len(), 3, "each rotation was to be acknowledged");
    for lost in LOSSES {
        machine.lose(lost);
        simulate(SEED, async {
            let node = machine.start().await.unwrap();
            known.check(&node).await.unwrap_or_else(|e| panic!("lost {lost:?}: {e}"));
            node.stop().await;
        });
    }
}

/// Keys put back from a backup made before a rotation are not those of the chain log.
#[test]
fn keys_of_before_a_rotation_are_refused_with_what_to_do() {
    const SEED: u64 = 22;
    let machine = Machine::new(SEED);
    let data = Config::new(DATA).data;
    let kept = ["node.json", "keys/log"].map(|name| (data.join(name), machine.disk.contents(&data.join(name))));
    simulate(SEED, async {
        let node = machine.start().await.unwrap();
        rotate(&node, &mut Vec::new()).await;
        node.stop().await;
    });
    let begun =
        |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).replace("\"begun\": false", "\"begun\": true").into_bytes();
    for (path, bytes) in kept {
        let bytes = bytes.unwrap();
        let bytes = if path.ends_with("node.json") { begun(bytes) } else { bytes };
        durable::replace(&machine.disk, &path, &bytes).unwrap();
    }
    simulate(SEED, async {
        let error = machine.start().await.err().expect("an old key, and it started").to_string();
        for words in ["the chain log names the log key", "keys/log holds", "restore"] {
            assert!(error.contains(words), "expected {words:?} in: {error}");
        }
    });
}
