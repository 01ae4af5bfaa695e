//! What a simulation of openraft 0.9.25 found, point by point: each with its remedy, and again without it.

use std::collections::BTreeSet;
use std::sync::Mutex;

use super::super::*;
use super::world::{World, put};
use crate::planted::{Bug, plant};
use crate::rt::sim::{sleep_true, spawn_outside};
use crate::transport::sim::Weather;
use crate::view::Record;

/// Runs a world of three that has come together.
pub(super) fn cluster<F: Future>(seed: u64, life: impl FnOnce(World) -> F) -> F::Output {
    simulate(seed, async {
        let world = World::new(seed, 3);
        world.found_cluster().await;
        let output = life(world.clone()).await;
        for id in world.ids() {
            world.crash(id);
        }
        output
    })
}

fn with(bug: Bug, run: impl FnOnce()) {
    plant(Some(bug));
    run();
    plant(None);
}

/// Writes again and again, each time at a node that is up; notes when each write was answered, in milliseconds.
fn load(world: &World) -> Arc<Mutex<Vec<u64>>> {
    let answered = Arc::new(Mutex::new(Vec::new()));
    for client in 0..2 {
        let (world, answered) = (world.clone(), Arc::clone(&answered));
        spawn_outside(async move {
            for n in 0u64.. {
                let Some(id) = world.ids().into_iter().find(|id| world.node(*id).is_some()) else { return };
                let write = put(&format!("load-{client}-{}", n % 10));
                let wrote = tokio::time::timeout(
                    Duration::from_millis(300),
                    world.on(id, |node| async move { node.write(write).await }),
                );
                if let Ok(Some(Ok(_))) = wrote.await {
                    answered.lock().unwrap().push(rt::now_ms());
                }
                sleep_true(Duration::from_millis(2)).await;
            }
        });
    }
    answered
}

/// The longest time without an answer after `since`.
fn longest_gap_ms(answered: &Mutex<Vec<u64>>, since: u64) -> u64 {
    let answered = answered.lock().unwrap();
    let after: Vec<u64> = answered.iter().copied().filter(|at| *at >= since).collect();
    let ends = after.iter().copied().chain([rt::now_ms()]);
    let starts = [since].into_iter().chain(after.iter().copied());
    starts.zip(ends).map(|(a, b)| b - a).max().unwrap_or(u64::MAX)
}

fn term(world: &World, id: u64) -> u64 {
    world.node(id).map_or(0, |(_, node)| node.status().term)
}

/// Milliseconds from the death of the leader until another node has taken a write.
fn failover_ms(seed: u64) -> u64 {
    cluster(seed, |world| async move {
        let leader = world.wait_for_leader().await;
        sleep_true(Duration::from_millis(500 + seed % 97)).await;
        let begun = rt::now_ms();
        world.crash(leader);
        let other = world.ids().into_iter().find(|id| *id != leader).unwrap();
        let wrote = world.on(other, |node| async move { node.write(put("after")).await }).await;
        assert!(matches!(wrote, Some(Ok(_))), "seed {seed}: {wrote:?}");
        rt::now_ms() - begun
    })
}

#[test]
fn a_dead_leader_is_replaced_soon() {
    let mut took: Vec<u64> = (0..20).map(failover_ms).collect();
    took.sort_unstable();
    let (median, worst) = (took[took.len() / 2], took[took.len() - 1]);
    println!("failover: {median} ms median, {worst} ms at worst");
    assert!(median <= 800 && worst <= 2000, "expected at most 800 ms median and 2,000 at worst: {took:?}");
}

/// A follower is cut off for a while and comes back: whether the same node leads in the same term, and the longest time
/// without a write meanwhile.
fn isolation(seed: u64) -> (bool, u64) {
    cluster(seed, |world| async move {
        let leader = world.wait_for_leader().await;
        let follower = world.ids().into_iter().rfind(|id| *id != leader).unwrap();
        let answered = load(&world);
        sleep_true(Duration::from_millis(300)).await;
        let before = term(&world, leader);
        for other in world.ids().into_iter().filter(|id| *id != follower) {
            world.network().cut(follower, other);
            world.network().cut(other, follower);
        }
        sleep_true(Duration::from_secs(5)).await;
        let since = rt::now_ms();
        world.network().heal();
        sleep_true(Duration::from_secs(3)).await;
        let same = world.leader() == Some(leader) && term(&world, leader) == before;
        (same, longest_gap_ms(&answered, since))
    })
}

#[test]
fn a_node_back_from_isolation_deposes_nobody() {
    for seed in 0..10 {
        let (same, gap) = isolation(seed);
        assert!(same, "seed {seed}: another leader, or another term");
        assert!(gap <= 200, "seed {seed}: {gap} ms without a write");
    }
    with(Bug::NoPreVote, || {
        let deposed = (0..10).filter(|seed| !isolation(*seed).0).count();
        assert!(
            deposed >= 8,
            "without a pre-vote {deposed} of 10 returns depose the leader: does this test see anything?"
        );
    });
}

/// Four voters, of whom one is dead, and one has not heard yet that it is one: without its vote there is no majority.
#[test]
fn a_voter_that_does_not_know_that_it_is_one_has_its_vote() {
    const SEED: u64 = 42;
    const LATE: u64 = 4;
    simulate(SEED, async {
        let world = World::with_spares(SEED, 3, 1);
        world.found_cluster().await;
        world.join(LATE).await;
        world.take_in(LATE).await;
        sleep_true(Duration::from_secs(1)).await;
        let leader = world.wait_for_leader().await;
        for id in world.ids() {
            world.network().cut(id, LATE);
            world.network().cut(LATE, id);
        }
        world.on(leader, |node| async move { node.promote(LATE).await }).await.unwrap().unwrap();
        let votes = world.node(LATE).unwrap().1.members().iter().any(|member| member.voter && member.node == LATE);
        assert!(!votes, "node {LATE} was told that it votes: does this test see anything?");
        let dead = world.ids().into_iter().find(|id| *id != leader).unwrap();
        world.crash(dead);
        world.crash(leader);
        world.network().heal();
        assert!(world.start(leader).await);
        world.leads_at_last().await.unwrap();
        let wrote = world.on(LATE, |node| async move { node.write(put("after")).await }).await;
        assert!(matches!(wrote, Some(Ok(_))), "{wrote:?}");
        for id in world.ids().into_iter().chain([LATE]) {
            world.crash(id);
        }
    });
}

#[test]
fn stalled_disks_make_no_election() {
    const SEED: u64 = 41;
    cluster(SEED, |world| async move {
        let leader = world.wait_for_leader().await;
        let before = term(&world, leader);
        let answered = load(&world);
        let since = rt::now_ms();
        for round in 0..120 {
            let id = world.ids()[round % 3];
            // One fsync begins meanwhile.
            world.set_fsync_us(id, 299_000..300_000);
            sleep_true(Duration::from_millis(10)).await;
            world.set_fsync_us(id, 300..3000);
            sleep_true(Duration::from_millis(990)).await;
        }
        assert_eq!(term(&world, leader), before, "an election in two minutes of stalls of 300 ms");
        let gap = longest_gap_ms(&answered, since);
        assert!(gap < 1500, "{gap} ms without a write");
    });
}

/// Whether a core that ended is there again, and the node takes writes.
fn broken_core(seed: u64) -> bool {
    cluster(seed, |world| async move {
        let leader = world.wait_for_leader().await;
        let (power, node) = world.node(leader).unwrap();
        let breaking = node.clone();
        power.spawn(async move { breaking.inner.consensus.break_core() }).await.unwrap();
        sleep_true(Duration::from_secs(3)).await;
        let failed = node.inner.failed.borrow().is_some();
        let wrote = world.on(leader, |node| async move { node.write(put("after")).await }).await;
        if !failed {
            assert_eq!(node.status().raft_restarts, 1, "the core was started again once");
        }
        !failed && matches!(wrote, Some(Ok(_)))
    })
}

#[test]
fn a_raft_core_that_ends_is_started_again() {
    assert!(broken_core(51), "the node must take writes again");
    with(Bug::CoreStaysEnded, || {
        assert!(!broken_core(51), "without a restart it cannot: does this test see anything?");
    });
}

/// Writes through a follower while every message arrives twice; gives how many entries came of how many writes.
fn delivered_twice(seed: u64) -> (usize, usize) {
    const WRITES: usize = 96;
    // A message then holds several: the first two waves of a batch are on their way while the others gather.
    const AT_ONCE: usize = 24;
    cluster(seed, |world| async move {
        let leader = world.wait_for_leader().await;
        let follower = world.ids().into_iter().find(|id| *id != leader).unwrap();
        world.network().set_weather(Weather { repeat: 1.0, ..Weather::fair() });
        for first in (0..WRITES).step_by(AT_ONCE) {
            let writes: Vec<_> = (first..first + AT_ONCE).map(|n| put(&format!("once-{n}"))).collect();
            let wrote = world.on(follower, |node| async move {
                futures_util::future::join_all(writes.into_iter().map(|write| node.write(write))).await
            });
            let wrote = wrote.await.expect("the follower runs");
            let transactions = wrote.iter().map(|wrote| match wrote {
                Ok(Outcome::Committed(committed)) => committed.transaction,
                other => panic!("a write of those from {first} on: {other:?}"),
            });
            let transactions: BTreeSet<_> = transactions.collect();
            assert_eq!(transactions.len(), AT_ONCE, "each write has an entry of its own: {transactions:?}");
        }
        sleep_true(Duration::from_millis(100)).await;
        assert!(world.network().counts().repeated > 0);
        let (_, node) = world.node(leader).unwrap();
        let size = usize::try_from(node.head().borrow().size).unwrap();
        let records = node.inner.ledger.records(0, size).unwrap();
        let ours = |r: &&Record| r.openings.iter().any(|(key, _)| key.as_str().starts_with("once-"));
        (records.iter().filter(ours).count(), WRITES)
    })
}

#[test]
fn a_write_that_arrives_twice_is_applied_once() {
    let (entries, writes) = delivered_twice(61);
    assert_eq!(entries, writes);
    with(Bug::ForwardedWithoutName, || {
        let (entries, writes) = delivered_twice(61);
        assert!(entries > writes, "without names {entries} entries of {writes} writes: does this test see anything?");
    });
}

/// What a leader that was cut off, and does not know it yet, answers to a linearizable read after a write elsewhere.
fn read_at_a_deposed_leader(seed: u64) -> Option<Result<bool, Error>> {
    cluster(seed, |world| async move {
        let old = world.wait_for_leader().await;
        let others: Vec<u64> = world.ids().into_iter().filter(|id| *id != old).collect();
        for other in &others {
            world.network().cut(old, *other);
            world.network().cut(*other, old);
        }
        let wrote = world.on(others[0], |node| async move { node.write(put("new")).await }).await;
        assert!(matches!(wrote, Some(Ok(_))), "the majority goes on: {wrote:?}");
        let key = Key::client("new").unwrap();
        let read = world.on(old, |node| async move {
            node.get(&key, Consistency::Linearizable, None).await.map(|r| matches!(r.found, Found::Value(_)))
        });
        tokio::time::timeout(Duration::from_secs(10), read).await.ok().flatten()
    })
}

#[test]
fn a_deposed_leader_serves_no_stale_read() {
    let read = read_at_a_deposed_leader(71);
    assert!(matches!(read, Some(Err(Error::Unavailable(_) | Error::NotLeader { .. }))), "{read:?}");
    with(Bug::StaleRead, || {
        let read = read_at_a_deposed_leader(71);
        assert!(matches!(read, Some(Ok(false))), "without a confirmation it is stale: {read:?}");
    });
}
