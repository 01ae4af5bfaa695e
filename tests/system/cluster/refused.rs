//! Nodes that must not vote any more: put back to an older copy of their disk, running twice, on a machine that was put back.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use samovar_tests::{Daemon, free_port};

use super::nodes::{Nodes, said};

/// How long it may take until a node knows that it is refused.
const KNOWN_WITHIN: Duration = Duration::from_secs(60);
/// What a node says that is: a clone is found out as the second machine, or as the older disk, whichever shows first.
const REFUSED: &str = "it is refused and votes no more";

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(copied.success(), "copying {}", from.display());
}

/// Waits until nodes say themselves why they are refused. Somebody uses each of them, so that it asks the leader.
async fn refused(daemons: &[&Daemon], why: &str) {
    let begun = Instant::now();
    loop {
        let mut silent = Vec::new();
        for daemon in daemons {
            let mut client = daemon.client().await.unwrap();
            let status = client.get("/v1/status").await.unwrap().json().unwrap();
            if !status["errors"].to_string().contains(why) {
                silent.push(status["errors"].clone());
            }
            // Whatever it answers, or not soon.
            let _ = tokio::time::timeout(Duration::from_millis(200), client.get("/v1/keys/used")).await;
        }
        if silent.is_empty() {
            return;
        }
        assert!(begun.elapsed() < KNOWN_WITHIN, "`{why}` is not said within {KNOWN_WITHIN:?}, but {silent:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn writes(nodes: &Nodes, count: usize) {
    let mut client = nodes.client(0).await;
    for n in 0..count {
        let put = client.put(&format!("/v1/keys/k-{n}"), "v").await.unwrap();
        assert!(put.status < 300, "{}", put.text());
    }
}

#[tokio::test]
async fn a_node_put_back_to_an_older_disk_stays_refused_though_all_have_forgotten_why() {
    let mut nodes = Nodes::new(3).await;
    // The leader is who remembers what the others had.
    let leader = nodes.leader().await;
    let old = (leader + 1) % 3;
    nodes.all[old].stop().unwrap();
    let (data, kept) = (nodes.all[old].data().to_owned(), nodes.path("older"));
    copy(&data, &kept);
    nodes.all[old].start().await.unwrap();
    nodes.level(old, leader).await;
    writes(&nodes, 50).await;
    nodes.level(old, leader).await;
    // A while: only what was known before is held against it.
    tokio::time::sleep(Duration::from_secs(1)).await;
    nodes.all[old].kill().unwrap();
    std::fs::remove_dir_all(&data).unwrap();
    copy(&kept, &data);
    nodes.all[old].start_unready().await.unwrap();
    refused(&[&nodes.all[old]], "older copy").await;

    for place in 0..3 {
        nodes.all[place].stop().unwrap();
    }
    // Two are a majority, if the one that is refused voted.
    let other = (leader + 2) % 3;
    nodes.all[other].start_unready().await.unwrap();
    nodes.all[old].start_unready().await.unwrap();
    refused(&[&nodes.all[old]], "older copy").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let put = nodes.client(other).await.put("/v1/keys/after", "v").await.unwrap();
    assert_eq!(put.status, 503, "nobody leads with the vote of a node that is refused: {}", put.text());
    nodes.all[leader].start().await.unwrap();
    let name = data.file_name().unwrap().to_str().unwrap();
    let removed = nodes.all[leader].command(&["node", "remove", name]).unwrap().output().unwrap();
    assert!(removed.status.success(), "as it is told to: {}", said(&removed));
}

#[tokio::test]
async fn a_clone_and_its_original_are_both_refused_and_stay_so() {
    let mut nodes = Nodes::new(3).await;
    let original = (nodes.leader().await + 1) % 3;
    nodes.all[original].stop().unwrap();
    let clone = nodes.path("clone");
    copy(nodes.all[original].data(), &clone);
    nodes.all[original].start().await.unwrap();
    let peers = format!("[peers]\nlisten = \"127.0.0.1:{}\"\n", free_port().unwrap());
    let settings = samovar_tests::Settings { toml: peers, ..Default::default() };
    let mut clone = Daemon::existing(&clone, free_port().unwrap(), settings).with_token(nodes.all[0].token());
    clone.start_unready().await.unwrap();
    refused(&[&nodes.all[original], &clone], REFUSED).await;
    let place = usize::from(original == 0);
    let put = nodes.client(place).await.put("/v1/keys/after", "v").await.unwrap();
    assert!(put.status < 300, "the others go on: {}", put.text());
    clone.kill().unwrap();
    nodes.all[original].kill().unwrap();
    nodes.all[original].start_unready().await.unwrap();
    refused(&[&nodes.all[original]], REFUSED).await;
}

#[tokio::test]
async fn a_machine_with_another_generation_id_is_refused_from_its_start_and_a_node_alone_is_not() {
    let mut nodes = Nodes::new(3).await;
    let place = (nodes.leader().await + 1) % 3;
    let file = nodes.path("generation");
    let id =
        |text: &str| std::fs::File::create(&file).and_then(|mut f| std::io::Write::write_all(&mut f, text.as_bytes()));
    let line = format!("[node]\nvm_generation = \"{}\"\n", file.display());
    nodes.all[place].stop().unwrap();
    nodes.all[place].append(&line);
    for (text, is_refused) in [("first", false), ("first", false), ("second", true), ("first", true)] {
        id(text).unwrap();
        nodes.all[place].start_unready().await.unwrap();
        if is_refused {
            refused(&[&nodes.all[place]], "generation id has changed").await;
        } else {
            nodes.all[place].kill().unwrap();
            nodes.all[place].start().await.unwrap();
            let status = nodes.client(place).await.get("/v1/status").await.unwrap().text();
            assert!(!status.contains("generation"), "the same machine: {status}");
        }
        nodes.all[place].stop().unwrap();
    }
    let mut alone = Nodes::one().await;
    alone.all[0].stop().unwrap();
    alone.all[0].append(&line);
    for text in ["first", "second"] {
        id(text).unwrap();
        alone.all[0].start().await.unwrap();
        alone.all[0].stop().unwrap();
    }
}
