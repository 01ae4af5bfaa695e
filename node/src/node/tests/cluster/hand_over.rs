//! Planned changes of the leader: nothing fails, nobody waits long, and only a leader can ask for one.

use std::sync::Mutex;

use super::super::*;
use super::elections;
use super::world::{World, put};
use crate::planted::{Bug, plant, planted};
use crate::rt::sim::{sleep_true, spawn_outside};

/// What clients saw: how long each call took, in milliseconds, and what failed.
#[derive(Default)]
struct Seen {
    took_ms: Vec<u64>,
    failed: Vec<String>,
    done: bool,
}

/// A client of each node that writes and reads without a pause, until it is told that it is done.
fn clients(world: &World) -> Arc<Mutex<Seen>> {
    let seen = Arc::new(Mutex::new(Seen::default()));
    for id in world.ids() {
        for client in 0..4 {
            let (world, seen) = (world.clone(), Arc::clone(&seen));
            spawn_outside(async move {
                for n in 0u64.. {
                    let begun = rt::now_ms();
                    let name = format!("k-{id}-{client}-{}", n % 10);
                    let called = world.on(id, |node| async move {
                        if n % 4 == 0 {
                            let read = node.get(&Key::client(&name).unwrap(), Consistency::Linearizable, None).await;
                            read.map(drop)
                        } else {
                            node.write(put(&name)).await.map(drop)
                        }
                    });
                    let answer = called.await;
                    let mut seen = seen.lock().unwrap();
                    if seen.done {
                        return;
                    }
                    seen.took_ms.push(rt::now_ms() - begun);
                    match answer {
                        Some(Ok(())) => {}
                        Some(Err(error)) => seen.failed.push(format!("call {n} at node {id}: {error}")),
                        None => return,
                    }
                }
            });
        }
    }
    seen
}

/// Hands the lead over again and again under clients; gives the longest call around each hand-over, in milliseconds.
fn hand_overs(seed: u64, nodes: u64, rounds: usize) -> Vec<u64> {
    simulate(seed, async {
        let world = World::new(seed, nodes);
        world.found_cluster().await;
        let seen = clients(&world);
        let mut longest = Vec::new();
        for round in 0..rounds {
            // Now and then right after the one before.
            sleep_true(Duration::from_millis(if round % 4 == 0 { 20 } else { 700 })).await;
            let leader = world.wait_for_leader().await;
            seen.lock().unwrap().took_ms.clear();
            let heir = world.on(leader, |node| async move { node.hand_over(None).await }).await.unwrap();
            let heir = heir.unwrap_or_else(|e| panic!("seed {seed}, round {round}: no hand-over: {e}"));
            sleep_true(Duration::from_millis(200)).await;
            assert_eq!(world.leader(), Some(heir), "seed {seed}, round {round}: the heir leads");
            longest.push(seen.lock().unwrap().took_ms.iter().copied().max().unwrap());
        }
        let mut seen = seen.lock().unwrap();
        seen.done = true;
        assert!(seen.failed.is_empty(), "seed {seed}: {} calls failed: {:?}", seen.failed.len(), seen.failed);
        drop(seen);
        for id in world.ids() {
            world.crash(id);
        }
        longest
    })
}

#[test]
fn a_hand_over_fails_nothing_and_holds_nobody_up() {
    for nodes in [3, 5] {
        let mut longest: Vec<u64> = (0..4).flat_map(|seed| hand_overs(81 + seed, nodes, 10)).collect();
        longest.sort_unstable();
        let (median, worst) = (longest[longest.len() / 2], longest[longest.len() - 1]);
        println!("hand-over among {nodes}: longest call {median} ms median, {worst} ms at worst, of {}", longest.len());
        assert!(worst <= 150, "{nodes} nodes: nobody waits more than 150 ms: {longest:?}");
    }
}

#[test]
fn a_leader_that_stops_hands_over_first() {
    const SEED: u64 = 91;
    simulate(SEED, async {
        let world = World::new(SEED, 3);
        world.found_cluster().await;
        for round in 0..3 {
            let leader = world.wait_for_leader().await;
            let other = world.ids().into_iter().find(|id| *id != leader).unwrap();
            let (power, node) = world.node(leader).unwrap();
            let stopping = power.spawn(async move { node.stop().await });
            let begun = rt::now_ms();
            let wrote = world.on(other, |node| async move { node.write(put("meanwhile")).await }).await;
            assert!(matches!(wrote, Some(Ok(Outcome::Committed(_)))), "round {round}: {wrote:?}");
            let took = rt::now_ms() - begun;
            assert!(took <= 150, "round {round}: a write took {took} ms while the leader stopped");
            stopping.await.unwrap();
            world.crash(leader);
            assert!(world.start(leader).await);
            sleep_true(Duration::from_secs(1)).await;
        }
        for id in world.ids() {
            world.crash(id);
        }
    });
}

#[test]
fn a_node_that_drains_leads_only_if_nobody_else_can() {
    const SEED: u64 = 92;
    simulate(SEED, async {
        let world = World::new(SEED, 3);
        world.found_cluster().await;
        let drained = world.wait_for_leader().await;
        world.on(drained, |node| async move { node.drain().await }).await.unwrap().unwrap();
        let next = world.wait_for_leader().await;
        assert_ne!(next, drained, "who drains hands the lead over");
        world.crash(next);
        let third = world.ids().into_iter().find(|id| ![drained, next].contains(id)).unwrap();
        sleep_true(Duration::from_secs(1)).await;
        assert_eq!(world.leader(), Some(third), "the other one leads");
        world.start(next).await;
        world.on(next, |node| async move { node.drain().await }).await.unwrap().unwrap();
        world.crash(third);
        sleep_true(Duration::from_secs(4)).await;
        assert!(world.leader().is_some(), "two nodes of three drain: one of them leads rather than nobody");
        let (_, node) = world.node(drained).unwrap();
        node.resume();
        assert!(!node.is_draining());
        for id in world.ids() {
            world.crash(id);
        }
    });
}

/// A follower says to all that another is to lead, and that one stands: whether it leads soon. Of five, since of three it
/// would anyway: its own vote and that of the leader, which it deposes by standing, are enough.
fn forged(seed: u64) -> bool {
    simulate(seed, async {
        let world = World::new(seed, 5);
        world.found_cluster().await;
        let leader = world.wait_for_leader().await;
        let others: Vec<u64> = world.ids().into_iter().filter(|id| *id != leader).collect();
        let (liar, heir) = (others[0], others[1]);
        let permit = world.node(liar).unwrap().1.inner.consensus.permit_for(heir);
        for to in world.ids().into_iter().filter(|id| *id != liar) {
            let message = permit.clone();
            world.on(to, move |node| async move { node.answer(liar, message).await }).await.unwrap();
        }
        world.on(heir, |node| async move { node.inner.consensus.stand().await }).await.unwrap();
        sleep_true(Duration::from_millis(200)).await;
        let leads = world.leader() == Some(heir);
        for id in world.ids() {
            world.crash(id);
        }
        leads
    })
}

#[test]
fn only_the_leader_can_permit_another() {
    assert!(!forged(93), "a permit of a node that does not lead changes nothing");
    plant(Some(Bug::PermitOfAnybody));
    let leads = forged(93);
    plant(None);
    assert!(leads, "taken from anybody it makes another leader: does this test see anything?");
}

/// A leader's clock jumps an hour ahead under clients: who leads two seconds later, and the newest block's time against the
/// true one, in milliseconds.
fn wrong_clock(seed: u64) -> (bool, i64) {
    simulate(seed, async {
        let world = World::new(seed, 3);
        world.found_cluster().await;
        let leader = world.wait_for_leader().await;
        let seen = clients(&world);
        sleep_true(Duration::from_millis(1234)).await;
        world.node(leader).unwrap().0.set_wall_offset_ms(3_600_000);
        sleep_true(Duration::from_secs(2)).await;
        let led_on = world.leader() == Some(leader);
        let failed = std::mem::take(&mut seen.lock().unwrap().failed);
        // With the bug planted, blocks go on under the hand-over.
        let alright = failed.is_empty() || planted(Bug::LeadsWithWrongClock);
        assert!(alright, "seed {seed}: {} calls failed: {failed:?}", failed.len());
        let (_, node) = world.node(world.leader().unwrap()).unwrap();
        let ahead_ms = i64::try_from(node.head().borrow().time_ms).unwrap() - i64::try_from(rt::now_ms()).unwrap();
        if !led_on {
            assert!(
                world.node(leader).unwrap().1.status().clock_off_ms.is_some(),
                "the node says what is wrong with it"
            );
            world.node(leader).unwrap().0.set_wall_offset_ms(0);
            sleep_true(Duration::from_secs(2)).await;
            assert_eq!(world.node(leader).unwrap().1.status().clock_off_ms, None, "the clock is right again");
        }
        seen.lock().unwrap().done = true;
        for id in world.ids() {
            world.crash(id);
        }
        (led_on, ahead_ms)
    })
}

#[test]
fn a_leader_whose_clock_is_wrong_stamps_nothing_and_hands_over() {
    for seed in 94..99 {
        let (led_on, ahead_ms) = wrong_clock(seed);
        assert!(!led_on, "seed {seed}: another leads");
        assert!(ahead_ms < 1000, "seed {seed}: a block is stamped {ahead_ms} ms ahead of the true time");
    }
    plant(Some(Bug::LeadsWithWrongClock));
    let (_, ahead_ms) = wrong_clock(94);
    plant(None);
    assert!(
        ahead_ms > 3_000_000,
        "without the comparison the chain's time is an hour ahead: does this test see anything?"
    );
}

/// Each answer takes its time when no leader is reached, and by then others wait.
#[test]
fn a_node_stops_although_its_clients_go_on_asking() {
    elections::cluster(61, |world| async move {
        let leader = world.wait_for_leader().await;
        let ids = world.ids();
        let id = ids.iter().copied().find(|id| *id != leader).unwrap();
        for other in ids.into_iter().filter(|other| *other != id) {
            world.network().cut(id, other);
            world.network().cut(other, id);
        }
        let (power, node) = world.node(id).unwrap();
        for client in 0..8 {
            let node = node.clone();
            power.spawn(async move {
                rt::sleep(Duration::from_millis(300 * client)).await;
                loop {
                    let key = Key::client("asked").unwrap();
                    drop(node.get(&key, Consistency::Linearizable, None).await);
                    rt::sleep(Duration::from_millis(5)).await;
                }
            });
        }
        drop(node);
        sleep_true(Duration::from_secs(10)).await;
        let begun = rt::instant();
        let stopped =
            tokio::time::timeout(Duration::from_secs(120), world.on(id, |node| async move { node.stop().await }));
        let stopped = stopped.await.is_ok_and(|stopped| stopped.is_some());
        assert!(
            stopped && begun.elapsed() < Duration::from_secs(20),
            "it stopped: {stopped}, after {:?}",
            begun.elapsed()
        );
    });
}
