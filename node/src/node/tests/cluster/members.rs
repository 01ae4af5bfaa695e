//! Growing and shrinking, and members that were away.

use std::sync::Mutex;

use super::super::*;
use super::elections;
use super::world::World;
use crate::rt::sim::{sleep_true, spawn_outside};
use crate::salts::SALT_BYTES;
use crate::view::Opening;

fn put(name: &str, bytes: usize) -> Write {
    let operation = Operation::Put {
        key: Key::client(name).unwrap(),
        value: vec![7; bytes].into(),
        media_type: "a/b".into(),
        blob: false,
    };
    Write { author: "client".into(), requirements: Vec::new(), operations: vec![operation], idempotency: None }
}

async fn write_at(world: &World, id: u64, write: Write) -> Result<Committed, Error> {
    match world.on(id, |node| async move { node.write(write).await }).await.expect("the node is up")? {
        Outcome::Committed(committed) => Ok(committed),
        Outcome::Refused(refusal) => panic!("refused: {refusal:?}"),
    }
}

async fn read_at(world: &World, id: u64, name: &str) -> Result<bool, Error> {
    let key = Key::client(name).unwrap();
    let read = world.on(id, |node| async move { node.get(&key, Consistency::Linearizable, None).await }).await;
    read.expect("the node is up").map(|reading| matches!(reading.found, Found::Value(_)))
}

fn lines(world: &World, id: u64) -> Vec<Vec<u8>> {
    let (_, node) = world.node(id).unwrap();
    let size = usize::try_from(node.head().borrow().size).unwrap();
    node.inner.ledger.records(0, size).unwrap().into_iter().map(|record| record.line.to_vec()).collect()
}

/// Waits until nodes have the same chain log, and a checkpoint of it.
async fn converge(world: &World, ids: &[u64]) {
    for _ in 0..1000 {
        if world.is_level(ids) {
            let first = lines(world, ids[0]);
            for id in ids {
                assert!(lines(world, *id) == first, "node {id} has another chain log than node {}", ids[0]);
                check_chain(&world.node(*id).unwrap().1).unwrap();
            }
            return;
        }
        sleep_true(Duration::from_millis(20)).await;
    }
    panic!("nodes {ids:?} do not come to one end");
}

#[test]
fn three_nodes_come_together_and_any_of_them_answers() {
    const SEED: u64 = 31;
    simulate(SEED, async {
        let world = World::new(SEED, 3);
        world.found_cluster().await;
        for id in 1..=3 {
            let name = format!("of-{id}");
            write_at(&world, id, put(&name, 10)).await.unwrap_or_else(|e| panic!("a write at node {id}: {e}"));
            for other in 1..=3 {
                let seen = read_at(&world, other, &name).await;
                assert!(seen.as_ref().is_ok_and(|seen| *seen), "{name} read at node {other}: {seen:?}");
            }
        }
        let (_, node) = world.node(2).unwrap();
        let members = node.members();
        assert_eq!(members.iter().filter(|m| m.voter).count(), 3, "{members:?}");
        converge(&world, &[1, 2, 3]).await;
        let cid = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy";
        let operation = Operation::Put {
            key: Key::client("blob").unwrap(),
            value: cid.into(),
            media_type: "a/b".into(),
            blob: true,
        };
        let refused = node.write(Write { operations: vec![operation], ..put("blob", 1) }).await;
        assert!(matches!(&refused, Err(Error::NoBlob(none)) if none == cid), "a blob that no node has: {refused:?}");
    });
}

#[test]
fn a_cluster_grows_to_five_and_shrinks_to_three_under_load() {
    const SEED: u64 = 32;
    simulate(SEED, async {
        let world = World::new(SEED, 5);
        world.found();
        assert!(world.start(1).await);
        world.on(1, |node| async move { node.set_address(1, "node1:8444").await }).await.unwrap().unwrap();
        let (acknowledged, failed) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(0)));
        let clients: Vec<_> = (0..3u64)
            .map(|client| {
                let (world, acknowledged, failed) = (world.clone(), Arc::clone(&acknowledged), Arc::clone(&failed));
                spawn_outside(async move {
                    for n in 0..400u64 {
                        let name = format!("load-{client}-{n}");
                        let ids = world.ids();
                        let up: Vec<u64> = ids.into_iter().filter(|id| world.node(*id).is_some()).collect();
                        let id = up[usize::try_from(n).unwrap() % up.len()];
                        match world
                            .on(id, |node| {
                                let w = put(&name, 100);
                                async move { node.write(w).await }
                            })
                            .await
                        {
                            Some(Ok(Outcome::Committed(_))) => acknowledged.lock().unwrap().push(name),
                            _ => *failed.lock().unwrap() += 1,
                        }
                        sleep_true(Duration::from_millis(10)).await;
                    }
                })
            })
            .collect();
        for id in 2..=5 {
            world.join(id).await;
            world.grow(id).await;
        }
        // The leader itself, and one more.
        let leader = world.wait_for_leader().await;
        let other = world.ids().into_iter().find(|id| *id != leader).unwrap();
        for gone in [leader, other] {
            world
                .lead(&format!("removing node {gone}"), |node| async move {
                    match node.remove(gone).await {
                        // Another try did it.
                        Err(Error::NotFound(_)) => Ok(()),
                        done => done,
                    }
                })
                .await;
            sleep_true(Duration::from_secs(1)).await;
            world.crash(gone);
        }
        for client in clients {
            client.await.unwrap();
        }
        let stay: Vec<u64> = world.ids().into_iter().filter(|id| *id != leader && *id != other).collect();
        let acknowledged = acknowledged.lock().unwrap().clone();
        let failed = *failed.lock().unwrap();
        println!("{} writes acknowledged, {failed} not", acknowledged.len());
        assert!(acknowledged.len() > 900, "{} of 1,200 writes were acknowledged", acknowledged.len());
        for name in &acknowledged {
            assert!(read_at(&world, stay[0], name).await.unwrap(), "{name} is lost");
        }
        converge(&world, &stay).await;
        let (_, node) = world.node(stay[1]).unwrap();
        let members: Vec<u64> = node.members().into_iter().filter(|m| m.voter).map(|m| m.node).collect();
        assert_eq!(members, stay);
    });
}

#[test]
fn a_removed_node_deposes_nobody_and_is_served_no_more() {
    const SEED: u64 = 33;
    simulate(SEED, async {
        let world = World::new(SEED, 4);
        world.found_cluster().await;
        let leader = world.wait_for_leader().await;
        let gone = world.ids().into_iter().rfind(|id| *id != leader).unwrap();
        world.on(leader, move |node| async move { node.remove(gone).await }).await.unwrap().unwrap();
        let (_, node) = world.node(leader).unwrap();
        let before = node.status().term;
        sleep_true(Duration::from_secs(5)).await;
        assert_eq!((world.leader(), node.status().term), (Some(leader), before), "the removed node disturbs");
        write_at(&world, gone, put("late", 10)).await.expect_err("it is no member");
        read_at(&world, gone, "late").await.expect_err("it is no member");
        // It comes back neither after a restart.
        world.crash(gone);
        assert!(world.start(gone).await);
        sleep_true(Duration::from_secs(5)).await;
        assert_eq!((world.leader(), node.status().term), (Some(leader), before), "the removed node disturbs");
        assert!(!read_at(&world, leader, "late").await.unwrap());
    });
}

/// The raft log is released every few seconds, so a member that was away for longer needs a snapshot. A value that was
/// erased meanwhile never reaches it.
#[test]
fn a_member_that_was_away_is_brought_up_by_a_snapshot_and_an_erase_holds_everywhere() {
    const SEED: u64 = 34;
    simulate(SEED, async {
        let world = World::new(SEED, 3);
        world.found_cluster().await;
        let leader = world.wait_for_leader().await;
        let away = world.ids().into_iter().find(|id| *id != leader).unwrap();
        let early = write_at(&world, leader, put("early", 100)).await.unwrap().transaction;
        converge(&world, &[1, 2, 3]).await;
        world.crash(away);
        let late = write_at(&world, leader, put("late", 100)).await.unwrap().transaction;
        for n in 0..200 {
            write_at(&world, leader, put(&format!("k{n}"), 20_000)).await.unwrap();
        }
        for (name, revision) in [("early", early), ("late", late)] {
            let operation = Operation::Erase { key: Key::client(name).unwrap(), revision };
            write_at(&world, leader, Write { operations: vec![operation], ..put(name, 1) }).await.unwrap();
        }
        sleep_true(Duration::from_secs(12)).await;
        world.network().trace();
        assert!(world.start(away).await);
        converge(&world, &[1, 2, 3]).await;
        let install = format!("{leader}>{away}: ");
        let trace = world.network().take_trace();
        let installs = trace.iter().filter(|l| l.contains(&install) && l.ends_with("kind Some(5)")).count();
        let chunks = trace.iter().filter(|l| l.contains(&install) && l.ends_with("kind Some(4)")).count();
        assert!(installs > 0 && chunks > 1, "{installs} snapshots in {chunks} chunks");
        for id in world.ids() {
            for revision in [early, late] {
                let record = world.node(id).unwrap().1.record(revision).await.unwrap();
                let erased = matches!(record.openings[0].1, Opening::Erased { .. });
                assert!(erased, "node {id}: {:?}", record.openings[0].1);
            }
        }
    });
}

/// Who leads finds the damage when it sends the value to a member that was away: it sends nothing that is damaged, and leaves
/// that to another.
#[test]
fn a_leader_with_a_damaged_salt_has_another_bring_up_who_was_away() {
    const SEED: u64 = 35;
    simulate(SEED, async {
        let world = World::new(SEED, 3);
        world.found_cluster().await;
        let leader = world.wait_for_leader().await;
        let others: Vec<u64> = world.ids().into_iter().filter(|id| *id != leader).collect();
        world.crash(others[0]);
        write_at(&world, leader, put("late", 100)).await.unwrap();
        let slot = world.node(leader).unwrap().1.inner.ledger.chain().head.slots - 1;
        for n in 0..20 {
            write_at(&world, leader, put(&format!("k{n}"), 20_000)).await.unwrap();
        }
        sleep_true(Duration::from_secs(12)).await;
        let salts = Config::new(DATA).data.join("salts");
        assert!(world.disk(leader).flip_bit(&salts, 8 * SALT_BYTES as u64 * slot));
        assert!(world.start(others[0]).await);
        converge(&world, &others).await;
        assert!(others.contains(&world.wait_for_leader().await), "node {leader} leads still");
        read_at(&world, others[0], "late").await.unwrap();
        for id in world.ids() {
            world.crash(id);
        }
    });
}

/// Two voters of whom one is dead could neither commit nor meet their policy.
#[test]
fn a_voter_stays_when_no_majority_of_the_others_answers() {
    elections::cluster(57, |world| async move {
        let leader = world.wait_for_leader().await;
        let others: Vec<u64> = world.ids().into_iter().filter(|id| *id != leader).collect();
        let (dead, whole) = (others[0], others[1]);
        world.crash(dead);
        sleep_true(Duration::from_secs(3)).await;
        let refused = world.on(leader, move |node| async move { node.remove(whole).await }).await.unwrap();
        assert!(matches!(&refused, Err(Error::Unavailable(why)) if why.contains("only 1 answer")), "{refused:?}");
        world.lead("removing the dead one", move |node| async move { node.remove(dead).await }).await;
        world.retire(dead);
        world.lead("removing the whole one", move |node| async move { node.remove(whole).await }).await;
    });
}
