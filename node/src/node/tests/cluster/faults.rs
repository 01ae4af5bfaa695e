//! What goes wrong in a world, drawn from its seed.

use std::time::Duration;

use super::super::*;
use super::world::{RESERVE_BYTES, World};
use crate::rt::sim::{sleep_true, spawn_outside};
use crate::transport::sim::Weather;

/// Long windows between write and fsync, so that what is acknowledged too early is lost by some crash.
pub(super) const FSYNC_US: std::ops::Range<u64> = 5_000..20_000;

pub(super) fn usual() -> Weather {
    Weather { delay_us: 200..2000, slow: 0.01, drop: 0.01, repeat: 0.02 }
}

/// So many entries, and operations of the disk, later the frame that holds an entry is known to have been durable.
const LATER_ENTRIES: u64 = 8;

/// One fault after the other.
pub(super) async fn faults(world: World, changes: bool) {
    let wait = |range: std::ops::Range<u64>| {
        let ms = world.draw(range);
        sleep_true(Duration::from_millis(ms))
    };
    while !world.is_calm() {
        wait(100..1500).await;
        let (ids, id) = (world.ids(), world.any());
        match world.draw(0..if changes { 26 } else { 20 }) {
            0 | 1 => {
                world.fault("crash");
                world.crash(id);
                wait(1..1500).await;
                world.start(id).await;
            }
            2 => {
                world.fault("crash of all");
                for id in &ids {
                    world.crash(*id);
                }
                wait(1..300).await;
                for id in &ids {
                    world.start(*id).await;
                }
            }
            3 | 4 => {
                world.fault("isolation");
                for other in ids.iter().filter(|other| **other != id) {
                    world.network().cut(id, *other);
                    world.network().cut(*other, id);
                }
                wait(100..2500).await;
                world.network().heal();
            }
            5 => {
                world.fault("cut one way");
                let other = world.any();
                world.network().cut(id, other);
                wait(100..2500).await;
                world.network().heal();
            }
            6 => {
                world.fault("pause");
                let Some((power, _)) = world.node(id) else { continue };
                power.pause();
                wait(50..1500).await;
                power.resume();
            }
            7 => {
                world.fault("bad weather");
                world.network().set_weather(Weather { delay_us: 200..20_000, slow: 0.05, drop: 0.05, repeat: 0.1 });
                wait(500..3000).await;
                world.network().set_weather(usual());
            }
            8 => {
                world.fault("slow disk");
                world.set_fsync_us(id, 20_000..300_000);
                wait(500..3000).await;
                world.set_fsync_us(id, FSYNC_US);
            }
            9 => {
                world.fault("clock jump");
                let Some((power, _)) = world.node(id) else { continue };
                let offset = i64::try_from(world.draw(0..7_200_000)).unwrap() - 3_600_000;
                power.set_wall_offset_ms(offset);
            }
            10 => {
                world.fault("crash within an operation");
                let disk = world.disk(id);
                let ahead = world.draw(1..30);
                let point = if world.chance(0.5) { CrashPoint::Before } else { CrashPoint::After };
                disk.crash_at(disk.durable_operations() + ahead, point);
            }
            11 | 12 => {
                // Several at once, and wherever it comes: most are refused.
                for id in ids.into_iter().filter(|_| world.chance(0.7)) {
                    let asked = world.clone();
                    spawn_outside(async move {
                        let handed = asked.on(id, |node| async move { node.hand_over(None).await }).await;
                        asked.count(if matches!(handed, Some(Ok(_))) { "hand-over" } else { "no hand-over" });
                    });
                }
            }
            13 => {
                world.fault("forged checkpoint");
                world.show_forged(id);
            }
            14 => {
                let rotating = world.clone();
                let rotation = spawn_outside(async move { rotating.try_to_rotate().await });
                if world.chance(0.5) {
                    wait(1..100).await;
                    world.fault("crash");
                    world.crash(id);
                    wait(1..500).await;
                    world.start(id).await;
                }
                rotation.await.unwrap();
            }
            15 => scrub(&world, id).await,
            16 => fill_disk(&world, id).await,
            17 | 19 => damage(&world, id).await,
            // A change of the members, and some other fault beside it.
            20.. => {
                let changing = world.clone();
                let grows = ids.len() < 5 && (ids.len() <= 3 || world.chance(0.5));
                let change = spawn_outside(async move {
                    if grows {
                        changing.try_to_grow().await;
                    } else {
                        changing.try_to_shrink().await;
                    }
                });
                if world.chance(0.5) {
                    wait(1..500).await;
                    let leader = world.leader().unwrap_or(id);
                    world.fault("crash");
                    world.crash(leader);
                    wait(1..500).await;
                    world.start(leader).await;
                }
                change.await.unwrap();
            }
            _ => {
                world.fault("crash with a loss");
                world.crash(id);
                let loss = LOSSES[usize::try_from(world.draw(0..LOSSES.len() as u64)).unwrap()];
                world.lose(id, loss);
                wait(1..500).await;
                world.start(id).await;
            }
        }
    }
}

/// The archive of a node is read again, as it is once a day, beside everything else.
async fn scrub(world: &World, id: u64) {
    let passed = world.on(id, |node| async move { tasks::scrub_pass(&node.inner.ledger).await });
    if let Ok(Some(Ok(()))) = tokio::time::timeout(Duration::from_secs(10), passed).await {
        world.count("scrubbed");
    }
}

/// A disk without room, for a while. The node refuses writes, or ends, and comes back when there is room. Disks of one size that
/// hold the same can fill up together, and then the power can go too.
async fn fill_disk(world: &World, id: u64) {
    world.fault("disk full");
    let full = if world.chance(0.3) { world.ids() } else { vec![id] };
    for id in &full {
        let room = if world.chance(0.5) { world.draw(0..64 << 10) } else { world.draw(0..2 * RESERVE_BYTES) };
        world.fill(*id, room);
    }
    sleep_true(Duration::from_millis(world.draw(500..4000))).await;
    if full.len() > 1 && world.chance(0.5) {
        world.count("all full and cut off");
        for id in &full {
            world.crash(*id);
        }
    }
    for id in &full {
        world.make_room(*id);
    }
    // What had no room may still be on its way to its end.
    sleep_true(Duration::from_millis(300)).await;
    for id in full {
        world.start(id).await;
        world.excuse_no_more(id);
    }
}

/// Bits flip in a file of a node, which goes on, and starts again some time later. Of one node in a world at most: what two have
/// damaged may be the only two copies.
async fn damage(world: &World, id: u64) {
    if world.damaged().is_some_and(|damaged| damaged != id) {
        return;
    }
    let disk = world.disk(id);
    let files = disk.files();
    let Some((_, node)) = world.node(id).filter(|_| !files.is_empty()) else { return };
    let file = files[usize::try_from(world.draw(0..files.len() as u64)).unwrap()].clone();
    let bytes = disk.contents(&file).unwrap_or_default();
    // Of a file that was made longer than what is in it, the part that is used.
    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1);
    if used == 0 {
        return;
    }
    let bits: Vec<u64> = (0..world.draw(1..4)).map(|_| world.draw(0..8 * used)).collect();
    let flip = || bits.iter().filter(|bit| disk.flip_bit(&file, **bit)).count();
    let (before, operations) = (node.status().raft_index, disk.durable_operations());
    drop(node);
    world.note_damage(Some(id));
    flip();
    world.network().note(|| format!("bits {bits:?} of {} of node {id} flip", file.display()));
    sleep_true(Duration::from_millis(world.draw(500..3000))).await;
    // The newest frame of a raft log that is damaged looks like one that was never written whole. A node that lacks what it
    // acknowledged is known to its leader, but not if that one goes too.
    let index = world.node(id).map_or(0, |(_, node)| node.status().raft_index);
    if index < before + LATER_ENTRIES || disk.durable_operations() < operations + LATER_ENTRIES {
        flip();
        world.count("bit flip undone");
        return;
    }
    world.fault("bit flip");
    world.crash(id);
    sleep_true(Duration::from_millis(world.draw(1..500))).await;
    world.start(id).await;
    sleep_true(Duration::from_millis(world.draw(0..2000))).await;
    if world.node(id).is_none() && world.chance(0.5) {
        // What cannot be done now is done when all is well.
        drop(world.replace_damaged().await);
    }
}
