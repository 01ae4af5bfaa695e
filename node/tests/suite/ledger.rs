//! The ledger by example: each test is one promise.

use samovar_node::command::{Idempotency, Outcome, Refusal, Requirement};
use samovar_node::proof;
use samovar_node::view::Change;
use samovar_node::{Node, Operation, Write};

use super::support::{committed, config, disk, key, new_node, put, value, verifier, write};

#[tokio::test]
async fn a_value_is_written_read_proved_and_found_again_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let node = new_node(directory.path()).await;
    let first = committed(&node, write(vec![put("menu/soup", "tomato")])).await;
    let second = committed(&node, write(vec![put("menu/soup", "pumpkin")])).await;
    assert!(second.transaction > first.transaction && first.created == [true] && second.created == [false]);
    assert_eq!(value(&node, "menu/soup", None).await.as_deref(), Some("pumpkin"));
    assert_eq!(value(&node, "menu/soup", Some(first.block)).await.as_deref(), Some("tomato"));
    assert_eq!(value(&node, "menu/soup", Some(first.block - 1)).await, None, "before it was first written");
    let receipt = node.receipt(second.transaction, true).await.unwrap();
    let verified = verifier(&node, Some("menu/soup")).verify(receipt.as_bytes()).unwrap();
    assert!(matches!(verified.contents, proof::Contents::Receipt(_)));
    for (name, present) in [("menu/soup", true), ("menu/none", false)] {
        let file = node.proof(&key(name)).await.unwrap();
        let verified = verifier(&node, Some(name)).verify(file.as_bytes()).unwrap();
        let proof::Contents::Latest(latest) = verified.contents else {
            panic!("a latest-or-absent proof was expected")
        };
        assert_eq!(matches!(latest.found, proof::Found::Value { .. }), present, "{name}: {:?}", latest.found);
    }
    node.stop().await;
    drop(node);
    let node = Node::start(disk(), config(directory.path())).await.unwrap();
    assert_eq!(value(&node, "menu/soup", None).await.as_deref(), Some("pumpkin"));
    node.stop().await;
}

#[tokio::test]
async fn a_refused_requirement_leaves_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let node = new_node(directory.path()).await;
    let first = committed(&node, write(vec![put("a", "1")])).await;
    let before = *node.head().borrow();
    let requirement = |revision| Requirement { key: key("a"), revision };
    for (required, name) in [(None, "that it does not exist"), (Some(first.transaction + 7), "another revision")] {
        let asked = Write { requirements: vec![requirement(required)], ..write(vec![put("a", "2"), put("b", "2")]) };
        let refused = node.write(asked).await.unwrap();
        let expected = Refusal::Requirement { key: key("a"), required, actual: Some(first.transaction) };
        assert_eq!(refused, Outcome::Refused(expected), "required: {name}");
    }
    let refused = node.write(write(vec![put("c", "1"), Operation::Delete { key: key("d") }])).await.unwrap();
    assert_eq!(refused, Outcome::Refused(Refusal::Absent { key: key("d") }));
    assert_eq!(*node.head().borrow(), before, "refusals only must make no block");
    assert_eq!(value(&node, "b", None).await, None);
    let good = Write { requirements: vec![requirement(Some(first.transaction))], ..write(vec![put("a", "2")]) };
    committed(&node, good).await;
    node.stop().await;
}

#[tokio::test]
async fn an_idempotency_key_gives_the_same_answer_over_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let node = new_node(directory.path()).await;
    let named = |fingerprint: u8, value: &str| Write {
        idempotency: Some(Idempotency { key: "order-1".into(), fingerprint: [fingerprint; 32] }),
        ..write(vec![put("order/1", value)])
    };
    let first = node.write(named(1, "tea")).await.unwrap();
    let size = node.head().borrow().size;
    assert_eq!(node.write(named(1, "tea")).await.unwrap(), first);
    assert_eq!(node.write(named(2, "milk")).await.unwrap(), Outcome::Refused(Refusal::IdempotencyMismatch));
    let other = Write { author: "other".into(), ..named(2, "milk") };
    assert_ne!(node.write(other).await.unwrap(), first, "the key is the author's own");
    node.stop().await;
    drop(node);
    let node = Node::start(disk(), config(directory.path())).await.unwrap();
    assert_eq!(node.write(named(1, "tea")).await.unwrap(), first, "after a restart");
    assert_eq!(node.head().borrow().size, size + 2, "only the other author's transaction and its block came to it");
    node.stop().await;
}

#[tokio::test]
async fn an_erased_value_is_gone_while_its_proofs_still_hold() {
    let directory = tempfile::tempdir().unwrap();
    let node = new_node(directory.path()).await;
    let first = committed(&node, write(vec![put("guest/7", "secret one"), put("guest/8", "stays")])).await;
    let saved = node.receipt(first.transaction, true).await.unwrap();
    let erase = Operation::Erase { key: key("guest/7"), revision: first.transaction };
    let by = committed(&node, write(vec![erase.clone()])).await.transaction;
    assert_eq!(value(&node, "guest/7", None).await, Some(format!("erased by {by}")));
    assert_eq!(value(&node, "guest/7", Some(first.block)).await, Some(format!("erased by {by}")));
    assert_eq!(value(&node, "guest/8", None).await.as_deref(), Some("stays"));
    let again = node.write(write(vec![erase])).await.unwrap();
    assert_eq!(again, Outcome::Refused(Refusal::AlreadyErased { key: key("guest/7"), erased_by: by }));
    verifier(&node, None).verify(saved.as_bytes()).expect("a receipt saved before the erase");
    let later = node.receipt(first.transaction, true).await.unwrap();
    verifier(&node, None).verify(later.as_bytes()).expect("a receipt fetched after the erase");
    let proof::Contents::Latest(latest) = verifier(&node, Some("guest/7"))
        .verify(node.proof(&key("guest/7")).await.unwrap().as_bytes())
        .unwrap()
        .contents
    else {
        panic!("a latest-or-absent proof was expected")
    };
    assert_eq!(latest.found, proof::Found::Erased { revision: first.transaction, erased_by: by });
    let history = node.history(&key("guest/7"), None, 10).await.unwrap();
    assert!(matches!(history.versions[0].change, Change::Put { erased_by: Some(e), .. } if e == by));
    node.stop().await;
}

#[tokio::test]
async fn a_listing_skips_system_keys_and_deleted_ones_and_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let node = new_node(directory.path()).await;
    let system = Operation::Put {
        key: samovar_node::Key::reserved("~settings/x").unwrap(),
        value: "1".into(),
        media_type: "text/plain".into(),
        blob: false,
    };
    committed(&node, write(vec![system])).await;
    for name in ["a", "b/1", "b/2", "b/3", "é", "z"] {
        committed(&node, write(vec![put(name, name)])).await;
    }
    committed(&node, write(vec![Operation::Delete { key: key("b/2") }])).await;
    let expected: [(&str, &[&str]); 4] =
        [("", &["a", "b/1", "b/3", "z", "é"]), ("b/", &["b/1", "b/3"]), ("~", &["~settings/x"]), ("nothing", &[])];
    for (prefix, names) in expected {
        for limit in 1..8 {
            let mut found = Vec::new();
            let mut after = None;
            loop {
                let page = node.keys(prefix, after.as_ref(), limit).await.unwrap();
                found.extend(page.keys.iter().map(|row| row.key.as_str().to_owned()));
                let Some(next) = page.next else { break };
                assert!(found.len() <= names.len(), "prefix {prefix:?}, limit {limit}: it does not end");
                after = Some(next);
            }
            assert_eq!(found, names, "prefix {prefix:?}, pages of {limit}");
        }
    }
    node.stop().await;
}
