//! A node on real files, and short ways to use it.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use samovar_node::command::{Committed, Outcome};
use samovar_node::disk::{Disk, OsDisk};
use samovar_node::node::Config;
use samovar_node::note::VerifierKey;
use samovar_node::policy::Policy;
use samovar_node::proof::Verifier;
use samovar_node::view::{Consistency, Found};
use samovar_node::{Key, Node, Operation, Write};

pub(crate) fn disk() -> Arc<dyn Disk> {
    Arc::new(OsDisk)
}

pub(crate) fn config(data: &Path) -> Config {
    Config { reserve_bytes: 0, ..Config::new(data) }
}

/// Makes a ledger and starts it.
pub(crate) async fn new_node(data: &Path) -> Node {
    let config = config(data);
    Node::init(&disk(), &config, "box-01", "ledger.example/box-01").unwrap();
    Node::start(disk(), config).await.unwrap()
}

pub(crate) fn key(text: &str) -> Key {
    Key::client(text).unwrap()
}

pub(crate) fn put(name: &str, value: &str) -> Operation {
    let value = Bytes::copy_from_slice(value.as_bytes());
    Operation::Put { key: key(name), value, media_type: "text/plain".into(), blob: false }
}

pub(crate) fn write(operations: Vec<Operation>) -> Write {
    Write { author: "tester".into(), requirements: vec![], operations, idempotency: None }
}

pub(crate) async fn committed(node: &Node, write: Write) -> Committed {
    match node.write(write).await.unwrap() {
        Outcome::Committed(committed) => committed,
        Outcome::Refused(refusal) => panic!("expected the write to be committed, it was refused: {refusal:?}"),
    }
}

/// What a read says: the value, `erased by N`, or nothing.
pub(crate) async fn value(node: &Node, name: &str, at: Option<u64>) -> Option<String> {
    match node.get(&key(name), Consistency::Linearizable, at).await.unwrap().found {
        Found::Value(v) => Some(String::from_utf8(v.content.to_vec()).unwrap()),
        Found::Absent => None,
        Found::Erased { erased_by, .. } => Some(format!("erased by {erased_by}")),
    }
}

/// A verifier that needs every signature of the node's checkpoints.
pub(crate) fn verifier(node: &Node, expect_key: Option<&str>) -> Verifier {
    let info = node.log_info();
    Verifier {
        log: VerifierKey::parse(&info.vkey).unwrap(),
        policy: Some(Policy::parse(info.policy.as_bytes()).unwrap()),
        expect_key: expect_key.map(str::to_owned),
    }
}
