//! A member whose data is damaged, or proved to be wrong, is built anew from its peers without a hand, while clients write.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::recover::{Acknowledged, load};
use super::*;

/// Takes the raft log of a node away, as a disk that lost it.
fn damage_raft_log(data: &std::path::Path) -> PathBuf {
    let directory = data.join("raft");
    fs::remove_dir_all(&directory).unwrap();
    directory
}

/// Waits until the node with this place votes again, as another one than `before`.
async fn back(nodes: &Nodes, through: usize, name: &str, before: u64) {
    nodes
        .until_at(through, "it votes again as a new node", |cluster| {
            let all = cluster["nodes"].as_array().unwrap();
            let own = all.iter().find(|node| node["name"] == *name);
            cluster["live_voters"] == 3
                && cluster["voters"] == 3
                && own.is_some_and(|own| own["node"].as_u64().unwrap() > before && own["voter"] == true)
        })
        .await;
}

async fn id_of(nodes: &Nodes, through: usize, name: &str) -> u64 {
    let cluster = nodes.cluster(through).await;
    let all = cluster["nodes"].as_array().unwrap();
    all.iter().find(|node| node["name"] == *name).unwrap()["node"].as_u64().unwrap()
}

fn evidence(nodes: &Nodes, place: usize) -> Value {
    let why = nodes.all[place].data().join("quarantine/why.json");
    serde_json::from_slice(&fs::read(&why).unwrap_or_else(|e| panic!("{}: {e}", why.display()))).unwrap()
}

/// Every write that was acknowledged, read through a node.
async fn all_there(nodes: &Nodes, place: usize, acknowledged: &Acknowledged) {
    let mut client = nodes.client(place).await;
    let acknowledged = std::mem::take(&mut *acknowledged.lock().unwrap());
    assert!(acknowledged.len() > 50, "only {} writes were acknowledged", acknowledged.len());
    for (key, value) in acknowledged.values() {
        let read = client.get(&format!("/v1/keys/{key}")).await.unwrap();
        assert_eq!((read.status, read.text()), (200, value.clone()), "{key} through node {place}");
    }
}

#[tokio::test]
async fn a_node_with_a_damaged_raft_log_is_built_anew_under_load() {
    let mut nodes = Nodes::new(3).await;
    let leader = nodes.leader().await;
    let ill = (leader + 1) % 3;
    let name = nodes.all[ill].data().file_name().unwrap().to_str().unwrap().to_owned();
    let before = id_of(&nodes, leader, &name).await;
    let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Acknowledged::default());
    let loaded = load(&nodes, leader, &stop, &acknowledged);
    tokio::time::sleep(Duration::from_secs(1)).await;
    nodes.all[ill].kill().unwrap();
    let damaged = damage_raft_log(nodes.all[ill].data());
    // It starts, and that is all that anybody does.
    nodes.all[ill].start().await.unwrap();
    back(&nodes, leader, &name, before).await;
    let why = evidence(&nodes, ill);
    assert!(why["reason"].as_str().unwrap().contains("raft"), "{} was damaged: {why}", damaged.display());
    let data = nodes.all[ill].data();
    for gone in ["quarantine/keys", "quarantine/salts", "rebuild.partial", "rebuild.ready", "rebuild.moving"] {
        assert!(!data.join(gone).exists(), "{gone} is there");
    }
    assert!(data.join("quarantine/raft").exists() && data.join("quarantine/node.json").exists(), "the evidence");
    let doctor = nodes.all[ill].command(&["doctor"]).unwrap().output().unwrap();
    assert!(said(&doctor).contains("built anew from its peers"), "{}", said(&doctor));
    nodes.cosign(leader, 3).await;
    // It is a whole member: of the other two one may go.
    stop.store(true, Relaxed);
    loaded.await.unwrap();
    nodes.level(ill, leader).await;
    let other = (leader + 2) % 3;
    nodes.all[other].kill().unwrap();
    put_until_taken(&nodes, ill, "with-the-new-one", &[]).await;
    all_there(&nodes, ill, &acknowledged).await;
}

#[tokio::test]
async fn a_node_whose_state_is_proved_wrong_is_built_anew() {
    let mut nodes = Nodes::new(3).await;
    let leader = nodes.leader().await;
    let ill = (leader + 1) % 3;
    let name = nodes.all[ill].data().file_name().unwrap().to_str().unwrap().to_owned();
    let before = id_of(&nodes, leader, &name).await;
    put_until_taken(&nodes, leader, "k", &[]).await;
    nodes.all[ill].stop().unwrap();
    let proved = json!({
        "size": 5, "own_root": "", "own_state": "", "shown": "", "shown_state": "", "from": 1, "proved": true, "time_ms": 1,
    });
    let file = nodes.all[ill].data().join("divergence.json");
    std::io::Write::write_all(&mut fs::File::create(&file).unwrap(), proved.to_string().as_bytes()).unwrap();
    // It says so, has itself taken in anew and ends, as often as it must; its supervisor starts it again.
    let begun = Instant::now();
    while !nodes.all[ill].data().join("quarantine").exists() {
        assert!(begun.elapsed() < FAILOVER_WITHIN * 2, "it is not built anew: {}", nodes.all[ill].log());
        if nodes.all[ill].has_ended().unwrap().is_some() || nodes.all[ill].id().is_none() {
            // What ends before it answers is started again, too.
            let _ = nodes.all[ill].start_unready().await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    back(&nodes, leader, &name, before).await;
    assert!(evidence(&nodes, ill)["reason"].as_str().unwrap().contains("proved to be wrong"));
    assert!(nodes.all[ill].data().join("quarantine/divergence.json").exists(), "both heads are kept");
    nodes.level(ill, leader).await;
    let read = nodes.client(ill).await.get("/v1/keys/k").await.unwrap();
    assert_eq!((read.status, read.text().as_str()), (200, "v"));
}

#[tokio::test]
async fn a_node_is_not_built_anew_without_a_majority_of_the_others() {
    let mut nodes = Nodes::new(3).await;
    let leader = nodes.leader().await;
    let (ill, other) = ((leader + 1) % 3, (leader + 2) % 3);
    nodes.all[ill].kill().unwrap();
    nodes.all[other].kill().unwrap();
    let damaged = damage_raft_log(nodes.all[ill].data());
    let refused = nodes.all[ill].start_unready().await.unwrap_err().to_string();
    assert!(refused.contains("no peer builds this node anew"), "{refused}");
    assert!(refused.contains("raft"), "and what is wrong: {refused}");
    assert!(!nodes.all[ill].data().join("quarantine").exists(), "nothing was set aside");
    assert!(nodes.all[ill].data().join("node.json").exists(), "nothing was changed but {}", damaged.display());
    nodes.all[other].start().await.unwrap();
    nodes.all[ill].start().await.unwrap();
    nodes.until_at(leader, "all three vote", |cluster| cluster["live_voters"] == 3 && cluster["voters"] == 3).await;
}
