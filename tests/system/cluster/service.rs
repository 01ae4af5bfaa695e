//! Taking a node out of service by day: the permit to go down, draining, and a leader that stops.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use hyper::Method;
use samovar_tests::Client;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::nodes::{Nodes, said, send};

/// Clients while nodes are restarted.
const CONNECTIONS: usize = 64;
/// For one request of theirs.
const PATIENCE: Duration = Duration::from_secs(30);

async fn acquire(nodes: &Nodes, through: usize, node: &str, accept: bool, status: u16) -> Value {
    let body = json!({ "node": node, "reason": "a test", "accept_outage": accept });
    let mut client = nodes.client(through).await;
    send(&mut client, Method::POST, "/v1/permits", &body, status).await.json().unwrap()
}

/// So many voters, each of which knows that all are well: what they say of each other is up to a second old.
async fn well(count: usize) -> Nodes {
    let nodes = Nodes::new(count).await;
    all_well(&nodes).await;
    nodes
}

async fn all_well(nodes: &Nodes) {
    for place in 0..nodes.all.len() {
        let is_well = |node: &Value| node["live"] == true && node["errors"].as_array().is_some_and(Vec::is_empty);
        let all = |cluster: &Value| cluster["nodes"].as_array().unwrap().iter().all(is_well);
        nodes.until_at(place, "every node is well", all).await;
    }
}

/// What the node at a place is called.
fn name(place: usize) -> String {
    format!("box-{:02}", place + 1)
}

/// Writes through some nodes until it is told to end; how many were answered, and what was refused.
async fn load(clients: Vec<samovar_tests::Client>, over: Arc<AtomicBool>) -> (u64, Vec<String>) {
    let mut tasks = tokio::task::JoinSet::new();
    for (number, mut client) in clients.into_iter().enumerate() {
        let over = Arc::clone(&over);
        tasks.spawn(async move {
            let (mut done, mut refused) = (0, Vec::new());
            while !over.load(Relaxed) {
                match client.put(&format!("/v1/keys/load-{number}"), "v").await {
                    Ok(answer) if answer.status < 300 => done += 1,
                    Ok(answer) => refused.push(format!("{} {}", answer.status, answer.text())),
                    Err(error) => {
                        refused.push(format!("{error:#}"));
                        break;
                    }
                }
            }
            (done, refused)
        });
    }
    let mut all = (0, Vec::new());
    while let Some(Ok((done, refused))) = tasks.join_next().await {
        all.0 += done;
        all.1.extend(refused);
    }
    all
}

#[tokio::test]
async fn a_leader_is_drained_and_stopped_while_clients_write_and_nothing_fails() {
    let mut nodes = well(3).await;
    let leader = nodes.leader().await;
    let others: Vec<usize> = (0..3).filter(|place| *place != leader).collect();
    let mut clients = Vec::new();
    for place in [others[0], others[0], others[1], others[1]] {
        clients.push(nodes.client(place).await);
    }
    let over = Arc::new(AtomicBool::new(false));
    let writing = tokio::spawn(load(clients, Arc::clone(&over)));
    tokio::time::sleep(Duration::from_millis(300)).await;

    // Asked of another node, as Ansible does.
    let words = ["node", "drain", &name(leader), "--reason", "new disk"];
    let drained = nodes.all[others[0]].command(&words).unwrap().output().unwrap();
    assert!(drained.status.success() && said(&drained).contains("ready to be stopped"), "{}", said(&drained));
    let mut at_leader = nodes.client(leader).await;
    let ready = at_leader.get("/ready").await.unwrap();
    assert_eq!(ready.status, 503, "balancers are to leave it: {}", ready.text());
    assert!(ready.text().contains("drained"), "{}", ready.text());
    assert_ne!(nodes.leader().await, leader, "another leads");
    let put = at_leader.put("/v1/keys/meanwhile", "v").await.unwrap();
    assert_eq!(put.status, 201, "who asks it all the same is answered: {}", put.text());
    let shown = nodes.all[others[1]].command(&["permit", "show"]).unwrap().output().unwrap();
    assert!(said(&shown).contains(&format!("{} may go down until", name(leader))), "{}", said(&shown));

    nodes.all[leader].stop().unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    nodes.all[leader].start().await.unwrap();
    let resumed = nodes.all[leader].command(&["node", "resume", &name(leader)]).unwrap().output().unwrap();
    assert!(resumed.status.success(), "{}", said(&resumed));
    let shown = nodes.all[others[1]].command(&["permit", "show"]).unwrap().output().unwrap();
    assert!(said(&shown).contains("no node has the permit"), "{}", said(&shown));
    over.store(true, Relaxed);
    let (done, refused) = writing.await.unwrap();
    assert!(done > 0, "clients wrote");
    assert!(refused.is_empty(), "{} of {done} writes through the others failed: {:?}", refused.len(), refused.first());
}

/// What a client saw that goes on elsewhere when its node is gone, and waits as long as it is told to.
#[derive(Default)]
struct Seen {
    done: u64,
    waited: u64,
    /// Connections that were closed after a request was sent and before its answer came: it is sent again elsewhere, under
    /// its name.
    lost: Vec<String>,
    failed: Vec<String>,
}

/// Writes under a name until it is told to end, first through the node at a place.
async fn follow(nodes: Vec<(u16, PathBuf)>, token: String, number: usize, over: Arc<AtomicBool>) -> Seen {
    let (mut seen, mut place, mut connection) = (Seen::default(), number % nodes.len(), None);
    for n in 0.. {
        let name = format!("rolling-{number}-{n}");
        let headers = [("content-type", "text/plain"), ("idempotency-key", name.as_str())];
        let begun = Instant::now();
        // A request is one thing from its first try to its answer: it is over when it is done.
        loop {
            let (port, ca) = &nodes[place];
            let mut client = match connection.take() {
                Some(client) => client,
                None => match Client::connect(*port, ca, Some(&token)).await {
                    Ok(client) => client,
                    Err(_) => {
                        // Nobody listens: nothing was sent.
                        place = (place + 1) % nodes.len();
                        continue;
                    }
                },
            };
            match client.request(Method::PUT, &format!("/v1/keys/rolling/{number}"), &headers, n.to_string()).await {
                Ok(answer) if answer.status < 300 => {
                    seen.done += 1;
                    let closes = answer.headers.get("connection").is_some_and(|value| value == "close");
                    connection = (!closes).then_some(client);
                    break;
                }
                Ok(answer) if matches!(answer.status, 429 | 503) && answer.headers.contains_key("retry-after") => {
                    let seconds = answer.headers["retry-after"].to_str().unwrap().parse().unwrap();
                    seen.waited += 1;
                    tokio::time::sleep(Duration::from_secs(seconds)).await;
                    connection = Some(client);
                }
                Ok(answer) => {
                    seen.failed.push(format!("{} {}", answer.status, answer.text()));
                    break;
                }
                Err(error) => {
                    seen.lost.push(format!("node {}: {error:#}", place + 1));
                    place = (place + 1) % nodes.len();
                }
            }
            if begun.elapsed() > PATIENCE {
                seen.failed.push(format!("not done in {PATIENCE:?}"));
                break;
            }
        }
        if over.load(Relaxed) {
            break;
        }
    }
    seen
}

#[tokio::test]
async fn all_three_are_restarted_in_turn_under_load_and_no_request_fails() {
    let mut nodes = well(3).await;
    let ports = nodes.all.iter().map(|node| (node.port(), node.data().join("ca.pem"))).collect::<Vec<_>>();
    let token = fs::read_to_string(nodes.all[0].token()).unwrap().trim().to_owned();
    let over = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for number in 0..CONNECTIONS {
        clients.spawn(follow(ports.clone(), token.clone(), number, Arc::clone(&over)));
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    for place in 0..3 {
        let mut daemon = nodes.all.remove(place);
        // Clients go on while it stops.
        daemon = tokio::task::spawn_blocking(move || daemon.stop().map(|()| daemon)).await.unwrap().unwrap();
        daemon.start().await.unwrap();
        nodes.all.insert(place, daemon);
        all_well(&nodes).await;
    }
    over.store(true, Relaxed);
    let mut all = Seen::default();
    while let Some(seen) = clients.join_next().await {
        let seen = seen.unwrap();
        (all.done, all.waited) = (all.done + seen.done, all.waited + seen.waited);
        all.lost.extend(seen.lost);
        all.failed.extend(seen.failed);
    }
    assert!(all.done > 0, "clients wrote");
    println!(
        "RESULT rolling restart: {} writes of {CONNECTIONS} connections, {} told to wait, {} crossed the end of their connection, \
         {} failed",
        all.done,
        all.waited,
        all.lost.len(),
        all.failed.len()
    );
    assert!(all.failed.is_empty(), "{} of {} failed: {:?}", all.failed.len(), all.done, all.failed.first());
    // They were sent again elsewhere, but not every client can do that.
    assert!(
        all.lost.is_empty(),
        "{} of {} crossed the end of their connection, none was expected to: {:?}; once more: cargo test -p samovar-tests --test \
         system all_three_are_restarted -- --nocapture",
        all.lost.len(),
        all.done,
        all.lost.first()
    );
}

#[tokio::test]
async fn one_node_at_a_time_may_go_down_and_only_while_the_others_are_well() {
    let mut nodes = well(3).await;
    acquire(&nodes, 0, &name(1), false, 201).await;
    acquire(&nodes, 2, &name(1), false, 201).await;
    let refused = acquire(&nodes, 0, &name(2), false, 409).await;
    assert_eq!(refused["type"], "urn:samovar:problem:permit-held", "{refused}");
    let path = format!("/v1/permits/{}", name(2));
    send(&mut nodes.client(0).await, Method::DELETE, &path, &Value::Null, 409).await;
    let path = format!("/v1/permits/{}", name(1));
    send(&mut nodes.client(0).await, Method::DELETE, &path, &Value::Null, 204).await;
    send(&mut nodes.client(0).await, Method::DELETE, &path, &Value::Null, 404).await;

    nodes.all[2].kill().unwrap();
    nodes.until("the dead node is seen", |cluster| cluster["live_voters"] == 2).await;
    let refused = acquire(&nodes, 0, &name(1), true, 409).await;
    assert_eq!(refused["type"], "urn:samovar:problem:peer-ill", "{refused}");
    assert!(refused["detail"].as_str().unwrap().contains("box-03 is not heard of"), "{refused}");
    let granted = acquire(&nodes, 0, &name(2), false, 201).await;
    assert_eq!(granted["name"], "box-03", "the one that is down is cured first: {granted}");
    let entry = nodes.command(&["history", "~permits/down"]);
    assert!(!entry.status.success(), "reserved keys are no keys of clients: {}", said(&entry));
    nodes.all[2].start().await.unwrap();
    all_well(&nodes).await;
    send(&mut nodes.client(2).await, Method::POST, "/v1/cluster/nodes/box-03/resume", &Value::Null, 200).await;
    acquire(&nodes, 0, &name(1), false, 201).await;
}

#[tokio::test]
async fn of_two_voters_one_goes_down_only_if_an_outage_is_accepted() {
    let nodes = well(2).await;
    let refused = acquire(&nodes, 0, &name(1), false, 409).await;
    assert_eq!(refused["type"], "urn:samovar:problem:quorum-at-risk", "{refused}");
    assert!(refused["detail"].as_str().unwrap().contains("--accept-outage"), "{refused}");
    let granted = acquire(&nodes, 0, &name(1), true, 201).await;
    assert_eq!(granted["accepted_outage"], true, "{granted}");
}

#[tokio::test]
async fn without_a_quorum_the_local_root_takes_the_permit_and_the_ledger_has_it_later() {
    let mut nodes = well(3).await;
    let at = |nodes: &Nodes, words: &[&str]| nodes.all[0].command(words).unwrap().output().unwrap();
    let taking = ["permit", "acquire", "--without-quorum", "the power goes at noon"];
    let refused = at(&nodes, &taking);
    assert!(!refused.status.success() && said(&refused).contains("quorum-is-there"), "{}", said(&refused));
    nodes.all[1].kill().unwrap();
    nodes.all[2].kill().unwrap();
    nodes.until_at(0, "the others are seen to be down", |cluster| cluster["live_voters"] == 1).await;

    // Nobody can grant it, and nobody from elsewhere takes it.
    acquire(&nodes, 0, &name(0), false, 503).await;
    let drained = at(&nodes, &["node", "drain", &name(0), "--reason", "new disk"]);
    assert!(!drained.status.success(), "a drain without a quorum: {}", said(&drained));
    let body = json!({ "node": name(0), "reason": "the power goes at noon", "without_quorum": true });
    send(&mut nodes.client(0).await, Method::POST, "/v1/permits", &body, 403).await;
    let other = at(&nodes, &["permit", "acquire", "--node", &name(1), "--without-quorum", "it is dead"]);
    assert!(!other.status.success() && said(&other).contains("for itself only"), "{}", said(&other));
    let taken = at(&nodes, &taking);
    assert!(taken.status.success() && said(&taken).contains("taken without a quorum"), "{}", said(&taken));
    let drained = at(&nodes, &["node", "drain", &name(0), "--without-quorum", "the disk is loud"]);
    assert!(drained.status.success() && said(&drained).contains("ready to be stopped"), "{}", said(&drained));

    // It outlives the node, and stands on the ledger once there is a quorum, with who and why.
    nodes.all[0].kill().unwrap();
    nodes.all[0].start_unready().await.unwrap();
    let shown = at(&nodes, &["permit", "show"]);
    for part in ["not on the ledger yet", "the power goes at noon", "the disk is loud", "local/"] {
        assert!(said(&shown).contains(part), "`{part}` was expected in: {}", said(&shown));
    }
    nodes.all[1].start().await.unwrap();
    nodes.all[2].start().await.unwrap();
    let begun = Instant::now();
    loop {
        let shown = at(&nodes, &["permit", "show", "--output", "json"]);
        let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
        if shown["taken"] == json!([]) && shown["permit"]["name"] == name(0) {
            assert_eq!(shown["permit"]["without_quorum"], true, "{shown}");
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "what was taken is not on the ledger after {PATIENCE:?}: {shown}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut client = nodes.client(1).await;
    let size = client.get("/v1/status").await.unwrap().json().unwrap()["size"].as_u64().unwrap();
    let mut acts = 0;
    for n in 0..size {
        let entry = client.get(&format!("/v1/transactions/{n}")).await.unwrap().text();
        acts += usize::from(entry.contains("~permits/taken") && entry.contains("\"local/"));
    }
    assert_eq!(acts, 2, "each act is an entry of who did it");
    let shown = client.get("/v1/permits").await.unwrap().json().unwrap();
    assert_eq!(shown["taken_last"]["reason"], "the disk is loud", "the newest one, on every node: {shown}");
    // Nobody else goes down meanwhile; who took it gives it back like any other.
    acquire(&nodes, 2, &name(2), false, 409).await;
    let resumed = at(&nodes, &["node", "resume", &name(0)]);
    assert!(resumed.status.success(), "{}", said(&resumed));
    all_well(&nodes).await;
    acquire(&nodes, 2, &name(2), false, 201).await;
}

#[tokio::test]
async fn a_node_alone_needs_nobodys_permit_but_may_have_it() {
    let nodes = Nodes::one().await;
    let granted = nodes.command(&["permit", "acquire", "--reason", "new disk", "--expires", "2m"]);
    assert!(granted.status.success() && said(&granted).contains("box-01 may go down until"), "{}", said(&granted));
    let unknown = nodes.command(&["permit", "acquire", "--node", "box-09", "--reason", "new disk"]);
    assert!(!unknown.status.success() && said(&unknown).contains("no node of the cluster"), "{}", said(&unknown));
    let short = nodes.command(&["permit", "acquire", "--reason", "new disk", "--expires", "1s"]);
    assert!(!short.status.success() && said(&short).contains("expires_s"), "{}", said(&short));
}
