use std::sync::Arc;

use bytes::Bytes;
use samovar_node::command::{Outcome, Refusal, Requirement};
use samovar_node::disk::{Disk, OsDisk};
use samovar_node::node::Config;
use samovar_node::note::VerifierKey;
use samovar_node::policy::Policy;
use samovar_node::proof::{self, Verifier};
use samovar_node::view::{Consistency, Found};
use samovar_node::{Key, Node, Operation, Write};

fn disk() -> Arc<dyn Disk> {
    Arc::new(OsDisk)
}

fn key(text: &str) -> Key {
    Key::client(text).unwrap()
}

fn put(name: &str, value: &str) -> Write {
    let operation = Operation::Put {
        key: key(name),
        value: Bytes::copy_from_slice(value.as_bytes()),
        media_type: "text/plain".into(),
        blob: false,
    };
    Write { author: "tester".into(), requirements: vec![], operations: vec![operation], idempotency: None }
}

async fn committed(node: &Node, write: Write) -> u64 {
    match node.write(write).await.unwrap() {
        Outcome::Committed(c) => c.transaction,
        Outcome::Refused(refusal) => panic!("expected the write to be committed, it was refused: {refusal:?}"),
    }
}

async fn value(node: &Node, name: &str, at: Option<u64>) -> Option<String> {
    match node.get(&key(name), Consistency::Linearizable, at).await.unwrap().found {
        Found::Value(v) => Some(String::from_utf8(v.content.to_vec()).unwrap()),
        Found::Absent => None,
        Found::Erased { erased_by, .. } => Some(format!("erased by {erased_by}")),
    }
}

fn verifier(node: &Node, expect_key: Option<&str>) -> Verifier {
    let info = node.log_info();
    Verifier {
        log: VerifierKey::parse(&info.vkey).unwrap(),
        policy: Some(Policy::parse(info.policy.as_bytes()).unwrap()),
        expect_key: expect_key.map(str::to_owned),
    }
}

#[tokio::test]
async fn a_value_is_written_read_proved_and_found_again_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let config = Config { reserve_bytes: 0, ..Config::new(directory.path().join("data")) };
    Node::init(&disk(), &config, "box-01", "ledger.example/box-01").unwrap();
    let node = Node::start(disk(), config.clone()).await.unwrap();
    let first = committed(&node, put("menu/soup", "tomato")).await;
    let second = committed(&node, put("menu/soup", "pumpkin")).await;
    assert!(second > first);
    assert_eq!(value(&node, "menu/soup", None).await.as_deref(), Some("pumpkin"));
    let block = node.record(first).await.unwrap().block;
    assert_eq!(value(&node, "menu/soup", Some(block)).await.as_deref(), Some("tomato"));
    let receipt = node.receipt(second, true).await.unwrap();
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
    let node = Node::start(disk(), config).await.unwrap();
    assert_eq!(value(&node, "menu/soup", None).await.as_deref(), Some("pumpkin"));
    let missing = Requirement { key: key("menu/soup"), revision: None };
    let refused = node.write(Write { requirements: vec![missing], ..put("menu/soup", "x") }).await.unwrap();
    assert!(matches!(refused, Outcome::Refused(Refusal::Requirement { actual: Some(r), .. }) if r == second));
    node.stop().await;
}
