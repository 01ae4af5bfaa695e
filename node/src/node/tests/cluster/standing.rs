//! Members that cannot be trusted any more: put back from an older copy of their disk, or running twice.

use super::super::*;
use super::world::{World, put};
use crate::planted::{Bug, plant};
use crate::rt::sim::sleep_true;

async fn write(world: &World, id: u64, name: &str) -> Option<Result<Outcome, Error>> {
    let write = put(name);
    world.on(id, |node| async move { node.write(write).await }).await
}

/// What became of a follower that was put back to an older copy of its disk.
struct PutBack {
    /// What the leader has against it.
    refused: Vec<(u64, String)>,
    /// What it knows of that itself.
    accused: Option<String>,
    /// Whether it could make a majority, without the leader, with the third node, which lacks the same.
    voted: bool,
}

fn put_back(seed: u64) -> PutBack {
    simulate(seed, async {
        let world = World::new(seed, 3);
        world.found_cluster().await;
        let leader = world.wait_for_leader().await;
        let others: Vec<u64> = world.ids().into_iter().filter(|id| *id != leader).collect();
        let (old, away) = (others[0], others[1]);
        let copy = world.copy(old);
        world.crash(away);
        for n in 0..20 {
            let wrote = write(&world, leader, &format!("acknowledged-{n}")).await;
            assert!(matches!(wrote, Some(Ok(Outcome::Committed(_)))), "write {n}: {wrote:?}");
        }
        sleep_true(Duration::from_millis(200)).await;
        // The writes are with the leader and `old`, and not with `away`. Put back, `old` lacks them too.
        world.crash(old);
        world.put_back(old, copy);
        assert!(world.start(old).await);
        sleep_true(Duration::from_secs(2)).await;
        let refused = world.node(leader).map(|(_, node)| node.status().refused_members).unwrap_or_default();
        let accused = world.node(old).and_then(|(_, node)| node.status().refused_by_peers);
        world.network().cut(leader, old);
        world.network().cut(old, leader);
        world.network().cut(leader, away);
        world.network().cut(away, leader);
        assert!(world.start(away).await);
        let wrote = tokio::time::timeout(Duration::from_secs(5), write(&world, away, "after")).await;
        let voted = matches!(wrote, Ok(Some(Ok(Outcome::Committed(_)))));
        for id in world.ids() {
            world.crash(id);
        }
        PutBack { refused, accused, voted }
    })
}

#[test]
fn a_member_that_is_put_back_to_an_older_disk_is_refused_and_does_not_vote() {
    let PutBack { refused, accused, voted } = put_back(101);
    assert!(refused.iter().any(|(_, why)| why.contains("older copy")), "the leader says what is wrong: {refused:?}");
    assert!(accused.is_some_and(|why| why.contains("join again")), "the node knows what to do");
    assert!(!voted, "nobody may lead without the leader's writes");
    plant(Some(Bug::OldDisksAreServed));
    let PutBack { voted, .. } = put_back(101);
    plant(None);
    assert!(voted, "served, it votes as if nothing had been: does this test see anything?");
}

/// Two machines run as one follower: whether the leader refuses both, and whether the cluster still writes.
fn twins(seed: u64) -> (bool, bool) {
    simulate(seed, async {
        let world = World::new(seed, 3);
        world.found_cluster().await;
        let leader = world.wait_for_leader().await;
        let doubled = world.ids().into_iter().find(|id| *id != leader).unwrap();
        let (power, original) = world.start_copy(doubled).await;
        for _ in 0..40 {
            sleep_true(Duration::from_millis(250)).await;
            let original = original.clone();
            // Whoever uses the original makes it ask the leader.
            drop(power.spawn(async move { original.barrier().await }));
        }
        let refused = world.node(leader).map(|(_, node)| node.status().refused_members).unwrap_or_default();
        let refused = refused.iter().any(|(id, why)| *id == doubled && why.contains("two machines"));
        let wrote = write(&world, leader, "after").await;
        power.kill();
        for id in world.ids() {
            world.crash(id);
        }
        (refused, matches!(wrote, Some(Ok(Outcome::Committed(_)))))
    })
}

#[test]
fn two_machines_that_run_as_one_node_are_refused() {
    assert_eq!(twins(102), (true, true), "(both are refused, the others go on)");
    plant(Some(Bug::TwinsAreServed));
    let (refused, _) = twins(102);
    plant(None);
    assert!(!refused, "without a look at the starts nobody would know: does this test see anything?");
}
