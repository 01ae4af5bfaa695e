//! Copies of blobs among three nodes: how many there are before a value may name one, and how one that is lost comes again.

use super::super::blobs::{committed, content, erased, put_blob, read, upload};
use super::super::*;
use super::elections::cluster;
use super::world::World;
use crate::blobs::Cid;
use crate::rt::sim::sleep_true;

/// Longer than a node takes to look for what it lacks.
const HEALED: Duration = Duration::from_secs(45);

/// Ids of the leader, and of the others.
async fn roles(world: &World) -> (u64, Vec<u64>) {
    let leader = world.wait_for_leader().await;
    (leader, world.ids().into_iter().filter(|id| *id != leader).collect())
}

/// Files of a node's blobs, whatever they are called.
fn files(world: &World, id: u64) -> Vec<String> {
    let directory = Config::new(DATA).data.join("blobs");
    let files = world.disk(id).files().into_iter().filter(|file| file.starts_with(&directory));
    files.map(|file| file.file_name().unwrap().to_string_lossy().into_owned()).collect()
}

fn holders(world: &World, cid: &Cid) -> Vec<u64> {
    world.ids().into_iter().filter(|id| files(world, *id).contains(&cid.to_string())).collect()
}

/// What a node gives for a blob.
async fn given(world: &World, id: u64, cid: Cid) -> Result<Vec<u8>, Error> {
    world.on(id, |node| async move { read(&node, cid).await }).await.expect("the node runs")
}

#[test]
fn a_blob_is_on_a_majority_before_a_value_names_it_and_outlives_the_node_that_took_it() {
    cluster(101, |world| async move {
        let (leader, others) = roles(&world).await;
        let (first, last) = (others[0], others[1]);
        // Taken in by a follower that reaches nobody: no value may name it.
        for other in world.ids().into_iter().filter(|id| *id != first) {
            world.network().cut(first, other);
            world.network().cut(other, first);
        }
        let cid = world.on(first, |node| async move { upload(&node, 1).await }).await.unwrap();
        let named = world.on(first, move |node| async move {
            let write = Write {
                author: "client".into(),
                requirements: Vec::new(),
                operations: vec![put_blob("k", &cid)],
                idempotency: None,
            };
            node.write(write).await
        });
        let refused = named.await.unwrap();
        assert!(matches!(&refused, Err(Error::Unavailable(why)) if why.contains("1 of 3 voters")), "{refused:?}");
        assert_eq!(holders(&world, &cid), [first], "nobody else could get it");
        world.network().heal();
        sleep_true(Duration::from_secs(2)).await;
        // Named through another node, which gets it first.
        world.on(last, move |node| async move { committed(&node, put_blob("k", &cid)).await }).await.unwrap();
        let held = holders(&world, &cid);
        assert!(held.len() >= 2 && held.contains(&last), "a majority has it when the write is answered: {held:?}");
        sleep_true(HEALED).await;
        assert_eq!(holders(&world, &cid), world.ids(), "then every node gets it");
        world.crash(first);
        for id in [leader, last] {
            assert_eq!(given(&world, id, cid).await.unwrap(), content(1), "node {id} gives it");
        }
    });
}

#[test]
fn a_copy_that_is_lost_or_damaged_comes_again_from_a_peer() {
    cluster(102, |world| async move {
        let (leader, others) = roles(&world).await;
        let cid = world.on(leader, |node| async move { upload(&node, 2).await }).await.unwrap();
        let away = others[0];
        world.crash(away);
        world.on(leader, move |node| async move { committed(&node, put_blob("k", &cid)).await }).await.unwrap();
        assert!(world.start(away).await);
        sleep_true(HEALED).await;
        assert!(holders(&world, &cid).contains(&away), "who was away gets what it lacks");

        let path = Config::new(DATA).data.join("blobs").join(cid.to_string());
        assert!(world.disk(others[1]).flip_bit(&path, 8 * 70_000));
        let spoilt = given(&world, others[1], cid).await;
        assert!(matches!(spoilt, Err(Error::DamagedBlob(_))), "a damaged piece is not given out: {spoilt:?}");
        assert_eq!(given(&world, others[1], cid).await.unwrap(), content(2), "the next read brings it from a peer");
        assert_eq!(files(&world, others[1]), [cid.to_string()], "and the damaged copy is gone");
    });
}

#[test]
fn an_erased_blob_is_gone_from_every_node_also_from_one_that_was_away() {
    cluster(103, |world| async move {
        let (leader, others) = roles(&world).await;
        let cid = world.on(leader, |node| async move { upload(&node, 3).await }).await.unwrap();
        let put = world.on(leader, move |node| async move { committed(&node, put_blob("k", &cid)).await });
        let revision = put.await.unwrap();
        sleep_true(HEALED).await;
        assert_eq!(holders(&world, &cid), world.ids());
        world.crash(others[0]);
        world.on(leader, move |node| async move { erased(&node, "k", revision).await }).await.unwrap();
        sleep_true(Duration::from_secs(12)).await;
        assert!(world.start(others[0]).await);
        sleep_true(HEALED).await;
        for id in world.ids() {
            assert_eq!(files(&world, id), Vec::<String>::new(), "node {id} keeps nothing of an erased blob");
            assert!(matches!(given(&world, id, cid).await, Err(Error::NotFound(_))), "node {id} gives nothing");
        }
    });
}
