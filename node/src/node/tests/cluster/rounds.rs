//! Rounds of cosignatures: what a client gets of them, and what becomes of a head that does not hold.

use super::super::*;
use super::world::{World, put};
use super::{auditor, elections};
use crate::checkpoint::Checkpoint;
use crate::ledger::key_hash;
use crate::note::{Note, assemble};
use crate::proof::{Contents, Followed};
use crate::raft::{Question, Reply, rounds};
use crate::rt::sim::sleep_true;
use crate::view::Divergence;

async fn write_at(world: &World, id: u64, name: &str) -> Committed {
    let write = put(name);
    match world.on(id, |node| async move { node.write(write).await }).await.expect("the node is up") {
        Ok(Outcome::Committed(committed)) => committed,
        other => panic!("a write of {name} at node {id}: {other:?}"),
    }
}

fn node(world: &World, id: u64) -> Node {
    world.node(id).unwrap_or_else(|| panic!("node {id} is down")).1
}

/// Waits until the policy names so many nodes, and every node serves a checkpoint of its newest block.
async fn settled(world: &World, cosigners: usize) {
    let ids = world.ids();
    for _ in 0..1000 {
        let named = ids.iter().all(|id| node(world, *id).log_info().cosigners.len() == cosigners);
        if named && world.is_level(&ids) {
            return;
        }
        sleep_true(Duration::from_millis(20)).await;
    }
    let named: Vec<_> = ids.iter().map(|id| node(world, *id).log_info().cosigners.len()).collect();
    panic!("after 20 s the policy names {named:?} cosigners on nodes {ids:?}, not {cosigners}");
}

/// Whoever knows the policy that the log began with follows it to the one in force.
async fn followed(node: &Node) -> Followed {
    auditor::followed(node).await.unwrap_or_else(|why| panic!("{why}"))
}

/// A proof file with only so many cosignatures of its checkpoint.
fn with_cosignatures(file: &str, count: usize) -> String {
    let (head, note) = file.split_once("\n\n").unwrap();
    let (text, signatures) = note.split_once("\n\n").unwrap();
    let lines: Vec<String> = signatures.lines().map(|line| format!("{line}\n")).collect();
    format!("{head}\n\n{}", assemble(&format!("{text}\n"), &lines[..1 + count]))
}

#[test]
fn three_nodes_cosign_and_any_of_them_serves_what_verifies_offline() {
    const SEED: u64 = 41;
    simulate(SEED, async {
        let world = World::new(SEED, 3);
        world.found_cluster().await;
        settled(&world, 3).await;
        let begun = rt::instant();
        let committed = write_at(&world, 2, "k").await;
        let receipt = world.on(3, move |node| async move { node.receipt(committed.transaction, true).await }).await;
        let receipt = receipt.unwrap().unwrap();
        println!("a receipt that waits for the quorum: {:?} after the write was sent", begun.elapsed());
        settled(&world, 3).await;
        for id in world.ids() {
            let trusted = followed(&node(&world, id)).await;
            let verified = trusted.verify(receipt.as_bytes()).unwrap_or_else(|e| panic!("node {id}: {e}"));
            assert_eq!(verified.cosigned.len(), 3, "cosigned by all three: {:?}", verified.cosigned);
            trusted.verify(with_cosignatures(&receipt, 2).as_bytes()).expect("two of three are the quorum");
            let short = with_cosignatures(&receipt, 1);
            let refused = trusted.verify(short.as_bytes()).expect_err("one of three is no quorum").to_string();
            assert!(refused.contains("quorum"), "one cosignature: {refused}");
            for (name, there) in [("k", true), ("absent", false)] {
                let key = Key::client(name).unwrap();
                let proof = world.on(id, move |node| async move { node.proof(&key).await }).await.unwrap();
                let proof = proof.unwrap_or_else(|e| panic!("proof of {name} at node {id}: {e}"));
                let verified = trusted.verify(proof.as_bytes()).unwrap_or_else(|e| panic!("{name} at node {id}: {e}"));
                let Contents::Latest(latest) = verified.contents else { panic!("another proof") };
                let found = matches!(latest.found, crate::proof::Found::Value { .. });
                assert_eq!(found, there, "{name} at node {id}: {:?}", latest.found);
            }
        }
    });
}

/// While later blocks are applied without end, a node that does not lead has the leader make its proofs.
#[test]
fn proofs_are_made_on_every_node_under_load() {
    const SEED: u64 = 42;
    simulate(SEED, async {
        let world = World::new(SEED, 3);
        world.found_cluster().await;
        settled(&world, 3).await;
        let writer = world.clone();
        let load = crate::rt::sim::spawn_outside(async move {
            for n in 0.. {
                write_at(&writer, 1 + n % 3, &format!("k{}", n % 50)).await;
            }
        });
        let trusted = followed(&node(&world, 1)).await;
        for n in 0..60u64 {
            sleep_true(Duration::from_millis(17)).await;
            let id = 1 + n % 3;
            let key = Key::client("k7").unwrap();
            let proof = world.on(id, move |node| async move { node.proof(&key).await }).await.unwrap();
            let proof = proof.unwrap_or_else(|e| panic!("proof {n} at node {id}: {e}"));
            trusted.verify(proof.as_bytes()).unwrap_or_else(|e| panic!("proof {n} at node {id}: {e}"));
        }
        load.abort();
    });
}

#[test]
fn the_policy_follows_the_voters_as_they_come_and_go() {
    const SEED: u64 = 43;
    simulate(SEED, async {
        let world = World::new(SEED, 5);
        world.found_cluster().await;
        settled(&world, 5).await;
        let early = world.on(1, |node| async move { node.receipt(0, true).await }).await.unwrap().unwrap();
        for stay in [4, 3, 2, 1] {
            let leader = world.wait_for_leader().await;
            // The leader itself among them.
            let gone = if stay == 3 { leader } else { world.ids().into_iter().find(|id| *id != leader).unwrap() };
            world.lead(&format!("removing node {gone}"), |node| async move { node.remove(gone).await }).await;
            world.retire(gone);
            world.wait_for_leader().await;
            settled(&world, stay).await;
        }
        let last = node(&world, world.ids()[0]);
        let trusted = followed(&last).await;
        let receipt = last.receipt(0, true).await.unwrap();
        let verified = trusted.verify(receipt.as_bytes()).unwrap();
        assert_eq!(verified.cosigned.len(), 1, "{:?}", verified.cosigned);
        // What was given out under five cosigners holds under those.
        trusted.verify(early.as_bytes()).unwrap();
    });
}

/// A voter dies just before another is to be removed: the policy of the two that would stay needs the dead one. Taking that one out
/// replaces the change, which is followed by nobody.
#[test]
fn a_change_of_the_policy_that_needs_a_dead_node_is_replaced_when_that_is_taken_out() {
    elections::cluster(44, |world| async move {
        settled(&world, 3).await;
        let leader = world.wait_for_leader().await;
        let others: Vec<u64> = world.ids().into_iter().filter(|id| *id != leader).collect();
        let (dead, whole) = (others[0], others[1]);
        world.crash(dead);
        let remove = move |gone: u64| move |node: Node| async move { node.remove(gone).await };
        let stuck = world.on(leader, remove(whole)).await.unwrap();
        assert!(matches!(&stuck, Err(Error::Unavailable(why)) if why.contains("still asks for")), "{stuck:?}");
        let in_force = |id: u64| {
            let ledger = node(&world, id).inner.ledger.clone();
            ledger.in_force(ledger.newest().size).unwrap().unwrap()
        };
        let waits = in_force(leader).hands_over().expect("the change to the two that stay waits");
        world.lead("taking out the dead node", remove(dead)).await;
        world.retire(dead);
        let leader = world.wait_for_leader().await;
        let changes = node(&world, leader).log_key_changes().await.unwrap();
        assert!(!changes.contains(&waits), "a change that was replaced is not followed: {waits} in {changes:?}");
        assert_eq!(in_force(leader).hands_over(), None);
        followed(&node(&world, leader)).await;
        world.lead("taking out the whole node", remove(whole)).await;
        world.retire(whole);
        settled(&world, 1).await;
        followed(&node(&world, world.ids()[0])).await;
    });
}

/// Waits until the policy is settled and every node holds the log key that the log names.
async fn rotated(world: &World) -> String {
    settled(world, 3).await;
    world.check_log_keys().await.unwrap();
    node(world, 1).log_info().vkey
}

#[test]
fn a_rotation_reaches_every_voter_and_who_was_away_gets_the_key_from_another() {
    const SEED: u64 = 48;
    simulate(SEED, async {
        let world = World::new(SEED, 3);
        world.found_cluster().await;
        settled(&world, 3).await;
        let first = node(&world, 1).log_info().vkey;
        let leader = world.wait_for_leader().await;
        let others: Vec<u64> = world.ids().into_iter().filter(|id| *id != leader).collect();
        let refused = node(&world, others[0]).rotate_log_key("admin").await;
        assert!(matches!(refused, Err(Error::NotLeader { .. })), "{refused:?}");
        let saved = world.on(leader, |node| async move { node.receipt(0, true).await }).await.unwrap().unwrap();
        world.on(leader, |node| async move { node.rotate_log_key("admin").await }).await.unwrap().unwrap();
        let second = rotated(&world).await;
        assert_ne!(second, first, "the log key is another");
        // Without one voter a rotation goes on, and it gets the key when it is back.
        world.crash(others[0]);
        world.on(leader, |node| async move { node.rotate_log_key("admin").await }).await.unwrap().unwrap();
        assert!(world.start(others[0]).await);
        let third = rotated(&world).await;
        assert_ne!(third, second, "the log key is another once more");
        // Without two it does not, and nothing changes.
        world.crash(others[0]);
        world.crash(others[1]);
        let alone = world.on(leader, |node| async move { node.rotate_log_key("admin").await }).await.unwrap();
        alone.expect_err("a rotation without a majority");
        for id in &others {
            assert!(world.start(*id).await);
        }
        assert_eq!(rotated(&world).await, third, "the log key is what it was");
        // The first leader gone, another signs with the newest key.
        world.crash(leader);
        world.wait_for_leader().await;
        let committed = write_at(&world, others[0], "after").await;
        let receipt = world.on(others[1], move |n| async move { n.receipt(committed.transaction, true).await }).await;
        let trusted = followed(&node(&world, others[0])).await;
        assert_eq!(trusted.newest().log.to_string(), third);
        trusted.verify(receipt.unwrap().unwrap().as_bytes()).unwrap();
        trusted.verify(saved.as_bytes()).expect("a receipt of before both rotations");
    });
}

/// The divergence that a node has found; waits for it.
async fn divergence(world: &World, id: u64, proved: bool) -> Divergence {
    for _ in 0..500 {
        if let Some(found) = node(world, id).status().divergence.filter(|found| found.proved == proved) {
            return found;
        }
        sleep_true(Duration::from_millis(10)).await;
    }
    panic!("node {id} finds nothing wrong (proved: {proved}) within 5 s: {:?}", node(world, id).status().divergence);
}

/// Flips a bit of a node's state map, beside the path of `k`, and has a block touch `k`.
async fn alter_and_write(world: &World, altered: u64, writer: u64) -> u64 {
    let bit = |name: &str| key_hash(&Key::client(name).unwrap()).bit(0);
    let other = (0..).map(|n| format!("other-{n}")).find(|name| bit(name) != bit("k")).unwrap();
    write_at(world, writer, &other).await;
    sleep_true(Duration::from_millis(300)).await;
    node(world, altered).inner.ledger.map.flip_bit(&key_hash(&Key::client(&other).unwrap()));
    let size = node(world, writer).head().borrow().size;
    write_at(world, writer, "k").await;
    size
}

#[test]
fn a_follower_whose_map_is_altered_by_one_bit_is_found_out_within_one_block() {
    const SEED: u64 = 44;
    simulate(SEED, async {
        let world = World::new(SEED, 3);
        world.found_cluster().await;
        settled(&world, 3).await;
        let leader = world.wait_for_leader().await;
        let sick = world.ids().into_iter().find(|id| *id != leader).unwrap();
        let before = alter_and_write(&world, sick, leader).await;
        let found = divergence(&world, sick, true).await;
        assert!(found.size > before && found.own_root != found.shown_state, "both heads are kept: {found:?}");
        let newest = node(&world, leader).checkpoint().unwrap();
        let signed = Checkpoint::parse(Note::parse(&newest).unwrap().text()).unwrap();
        assert!(found.shown.contains(&signed.origin) && found.size <= signed.size, "{found:?} beside {newest}");
        // It answers nothing, and says why; the others go on, without its cosignature.
        let key = Key::client("k").unwrap();
        let refused = node(&world, sick).get(&key, Consistency::Stale, None).await.expect_err("it answers");
        assert!(refused.to_string().contains("state is wrong"), "{refused}");
        world.on(sick, |node| async move { node.write(put("k")).await }).await.unwrap().expect_err("it takes a write");
        let handed = world.on(leader, move |node| async move { node.hand_over(Some(sick)).await }).await.unwrap();
        handed.expect_err("it is to lead");
        let committed = write_at(&world, leader, "after").await;
        let receipt = world.on(leader, move |n| async move { n.receipt(committed.transaction, true).await }).await;
        let trusted = followed(&node(&world, leader)).await;
        let verified = trusted.verify(receipt.unwrap().unwrap().as_bytes()).unwrap();
        let name = format!("node{sick}");
        assert!(verified.cosigned.len() == 2 && verified.cosigned.iter().all(|c| c.name != name), "{verified:?}");
        // Nor after a restart.
        world.crash(sick);
        assert!(world.start(sick).await);
        assert_eq!(node(&world, sick).status().divergence.as_ref(), Some(&found), "the evidence outlives a restart");
        node(&world, sick).get(&key, Consistency::Stale, None).await.expect_err("it answers after a restart");
    });
}

#[test]
fn a_leader_whose_map_is_altered_by_one_bit_lets_another_lead() {
    const SEED: u64 = 45;
    simulate(SEED, async {
        let world = World::new(SEED, 3);
        world.found_cluster().await;
        settled(&world, 3).await;
        let sick = world.wait_for_leader().await;
        alter_and_write(&world, sick, sick).await;
        divergence(&world, sick, true).await;
        let well: Vec<u64> = world.ids().into_iter().filter(|id| *id != sick).collect();
        for _ in 0..500 {
            let leads = well.iter().any(|id| node(&world, *id).status().role == "leader");
            if leads && well.iter().all(|id| node(&world, *id).status().divergence.is_none()) && world.is_level(&well) {
                break;
            }
            sleep_true(Duration::from_millis(10)).await;
        }
        let committed = write_at(&world, well[0], "after").await;
        let receipt = world.on(well[1], move |n| async move { n.receipt(committed.transaction, true).await }).await;
        followed(&node(&world, well[0])).await.verify(receipt.unwrap().unwrap().as_bytes()).unwrap();
        node(&world, sick).get(&Key::client("k").unwrap(), Consistency::Stale, None).await.expect_err("it answers");
    });
}

/// Of two nodes neither knows which is wrong: both stop answering, and the policy is not met.
#[test]
fn of_two_nodes_that_differ_neither_answers_and_no_checkpoint_is_made() {
    const SEED: u64 = 46;
    simulate(SEED, async {
        let world = World::new(SEED, 2);
        world.found_cluster().await;
        settled(&world, 2).await;
        let leader = world.wait_for_leader().await;
        let before = alter_and_write(&world, 3 - leader, leader).await;
        for id in [1, 2] {
            divergence(&world, id, false).await;
            let refused = node(&world, id).get(&Key::client("k").unwrap(), Consistency::Stale, None).await;
            assert!(refused.expect_err("it answers").to_string().contains("not known"));
            assert!(
                node(&world, id).status().checkpoint_size <= before,
                "node {id} has a checkpoint of a head in doubt"
            );
        }
    });
}

#[test]
fn a_forged_head_is_never_cosigned_and_what_it_cast_doubt_on_is_cleared() {
    const SEED: u64 = 47;
    simulate(SEED, async {
        let world = World::new(SEED, 3);
        world.found_cluster().await;
        settled(&world, 3).await;
        let leader = world.wait_for_leader().await;
        let shown = world.ids().into_iter().find(|id| *id != leader).unwrap();
        let ask = |note: String| {
            let world = world.clone();
            async move {
                let question = Question::Cosign { note, raft_index: 1, state: [7; 32] };
                let message = node(&world, leader).inner.consensus.message(question);
                let answer = world.on(shown, move |node| async move { node.answer(leader, message).await }).await;
                rounds::reply(&answer.unwrap())
            }
        };
        let size = node(&world, shown).head().borrow().size;
        let text = Checkpoint { origin: "sim.example".into(), size, root: [7; 32] }.to_text();
        // By another key: refused, and counted.
        let stranger = crate::note::Signer::from_seed("sim.example", crate::note::Scheme::Ed25519, &[9; 32]).unwrap();
        let reply = ask(assemble(&text, &[stranger.sign(&text, 0)])).await;
        assert!(matches!(&reply, Reply::Refused(why) if why.contains("did not sign")), "{reply:?}");
        assert_eq!(node(&world, shown).status().forged_checkpoints, 1);
        assert!(node(&world, shown).status().divergence.is_none(), "anybody's word casts no doubt");
        // By the log key: somebody lies, the node or who holds the key.
        let reply = ask(node(&world, leader).inner.notary.keys().sign_blindly(&text)).await;
        assert!(matches!(reply, Reply::Differs(_)), "{reply:?}");
        divergence(&world, shown, false).await;
        node(&world, shown).get(&Key::client("k").unwrap(), Consistency::Stale, None).await.expect_err("it answers");
        // Until a checkpoint that meets the policy says that it is not the node.
        for _ in 0..200 {
            sleep_true(Duration::from_millis(10)).await;
        }
        assert!(node(&world, shown).status().divergence.is_none(), "{:?}", node(&world, shown).status().divergence);
        let kept = Config::new(DATA).data.join("divergence.cleared.json");
        assert!(world.disk(shown).contents(&kept).is_some(), "the two heads are kept");
        // A smaller size is not cosigned any more, though it is the log's.
        let (old, note) = (size, node(&world, leader).checkpoint().unwrap());
        write_at(&world, leader, "later").await;
        settled(&world, 3).await;
        let line = node(&world, leader).inner.ledger.record(old - 1).unwrap().line;
        let crate::entry::Entry::Block(block) = crate::entry::Entry::parse(&line).unwrap() else { panic!("no block") };
        let question = Question::Cosign { note: note.to_string(), raft_index: 1, state: block.state };
        let message = node(&world, leader).inner.consensus.message(question);
        let answer = world.on(shown, move |node| async move { node.answer(leader, message).await }).await;
        let reply = rounds::reply(&answer.unwrap());
        assert!(matches!(reply, Reply::Promised(size) if size > old), "{reply:?}");
    });
}
