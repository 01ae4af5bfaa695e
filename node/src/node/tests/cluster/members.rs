//! Growing and shrinking, without faults.

use std::time::Duration;

use super::super::*;
use super::world::World;
use crate::rt::sim::sleep_true;

async fn write_at(world: &World, id: u64, name: &str) -> Result<Outcome, Error> {
    let operation = Operation::Put {
        key: Key::client(name).unwrap(),
        value: Bytes::from_static(b"value"),
        media_type: "a/b".into(),
        blob: false,
    };
    let write =
        Write { author: "client".into(), requirements: Vec::new(), operations: vec![operation], idempotency: None };
    world.on(id, |node| async move { node.write(write).await }).await.expect("the node is up")
}

async fn read_at(world: &World, id: u64, name: &str) -> Result<bool, Error> {
    let key = Key::client(name).unwrap();
    let read = world.on(id, |node| async move { node.get(&key, Consistency::Linearizable, None).await }).await;
    read.expect("the node is up").map(|reading| matches!(reading.found, Found::Value(_)))
}

#[test]
fn three_nodes_come_together_and_any_of_them_answers() {
    const SEED: u64 = 31;
    simulate(SEED, async {
        let world = World::new(SEED, 3);
        world.found_cluster().await;
        for id in 1..=3 {
            let name = format!("of-{id}");
            write_at(&world, id, &name).await.unwrap_or_else(|e| panic!("a write at node {id}: {e}"));
            for other in 1..=3 {
                let seen = read_at(&world, other, &name).await;
                assert!(seen.as_ref().is_ok_and(|seen| *seen), "{name} read at node {other}: {seen:?}");
            }
        }
        let (_, node) = world.node(2).unwrap();
        let members = node.members();
        assert_eq!(members.iter().filter(|m| m.voter).count(), 3, "{members:?}");
        sleep_true(Duration::from_secs(1)).await;
    });
}
