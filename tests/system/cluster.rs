//! Several nodes as processes: they join over HTTPS, take writes and reads anywhere, and go on when one dies.
//!
//! One case: `cargo test -p samovar-tests --test system cluster::NAME`, after `cargo build`.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use hyper::Method;
use samovar_tests::{Client, Ends};
use serde_json::{Value, json};
use tokio::net::TcpStream;

mod dev;
mod finalize;
mod held;
mod joining;
mod nodes;
mod rebuild;
mod recover;
mod refused;
mod service;
mod strangers;

use nodes::{Nodes, said, send};

/// How long the others may take to go on when a leader dies. Its time is measured elsewhere, alone on a machine; here a
/// cluster that never goes on is what must show.
const FAILOVER_WITHIN: Duration = Duration::from_secs(30);

/// By then nothing of the raft log is left that a node which is down lacks.
const RAFT_LOG_GOES_WITHIN: Duration = Duration::from_secs(12);

/// Puts through a node until it is taken; the answer.
async fn put_until_taken(nodes: &Nodes, place: usize, key: &str, headers: &[(&str, &str)]) -> Value {
    let begun = Instant::now();
    loop {
        let mut client = nodes.client(place).await;
        let answer = client.request(Method::PUT, &format!("/v1/keys/{key}"), headers, "v").await.unwrap();
        if answer.status < 300 {
            return answer.json().unwrap();
        }
        assert!(answer.status == 503 || answer.status == 429, "only a wait is asked for: {}", answer.text());
        assert!(begun.elapsed() < FAILOVER_WITHIN, "nothing is taken: {}", answer.text());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_write_through_any_node_is_read_through_any_other_at_once() {
    let nodes = Nodes::new(3).await;
    let mut clients = [nodes.client(0).await, nodes.client(1).await, nodes.client(2).await];
    for round in 0..20 {
        for writer in 0..3 {
            let (path, value) = (format!("/v1/keys/k-{writer}"), format!("{round}"));
            let put =
                clients[writer].request(Method::PUT, &path, &[("x-request-id", "ours")], value.clone()).await.unwrap();
            assert!(put.status == 200 || put.status == 201, "{}", put.text());
            assert_eq!(put.headers["x-request-id"], "ours", "the request keeps its id on its way through a follower");
            for (reader, client) in clients.iter_mut().enumerate() {
                let read = client.get(&path).await.unwrap();
                assert_eq!(read.text(), value, "written through node {writer}, read through node {reader}");
            }
            let n = put.json().unwrap()["transaction"].as_u64().unwrap();
            let entry = clients[writer].get(&format!("/v1/transactions/{n}")).await.unwrap().json().unwrap();
            assert!(entry.to_string().contains("\"api-key/"), "the author is who asked, whoever led: {entry}");
        }
    }
}

#[tokio::test]
async fn access_given_through_one_node_counts_on_every_other_at_once() {
    let nodes = Nodes::new(3).await;
    let leader = nodes.leader().await;
    let (one, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let mut admin = nodes.client(one).await;
    let user = json!({ "name": "alice", "role": "admin", "password": "a samovar in every house" });
    send(&mut admin, Method::POST, "/v1/users", &user, 201).await;
    let login = json!({ "user": "alice", "password": "a samovar in every house" });
    // Each of them on a node that was not asked before.
    let mut elsewhere = nodes.client(other).await;
    elsewhere.set_token(None);
    let session = send(&mut elsewhere, Method::POST, "/v1/login", &login, 200).await.json().unwrap();
    let session = session["token"].as_str().expect("a session token").to_owned();
    for place in [leader, one, other] {
        let mut client = nodes.client(place).await;
        client.set_token(Some(&session));
        let me = client.get("/v1/me").await.unwrap();
        assert_eq!(me.status, 200, "a session of node {other} on node {place}: {}", me.text());
        assert!(me.text().contains("alice"), "{}", me.text());
    }
    let mut by_session = nodes.client(one).await;
    by_session.set_token(Some(&session));
    let key = json!({ "name": "ci", "role": "writer" });
    let issued = send(&mut by_session, Method::POST, "/v1/api-keys", &key, 201).await.json().unwrap();
    let (id, token) = (issued["id"].as_str().unwrap(), issued["token"].as_str().unwrap());
    let mut by_key = nodes.client(other).await;
    by_key.set_token(Some(token));
    let put = by_key.put("/v1/keys/a", "1").await.unwrap();
    assert_eq!(put.status, 201, "an API key made through node {one}, used on node {other}: {}", put.text());
    send(&mut by_session, Method::DELETE, &format!("/v1/api-keys/{id}"), &Value::Null, 204).await;
    // A linearizable read brings node `other` to where the revocation is.
    send(&mut nodes.client(other).await, Method::GET, "/v1/keys/a", &Value::Null, 200).await;
    let refused = by_key.put("/v1/keys/a", "2").await.unwrap();
    assert_eq!(refused.status, 401, "a key that was revoked: {}", refused.text());
    send(&mut by_session, Method::POST, "/v1/logout", &Value::Null, 204).await;
    send(&mut nodes.client(other).await, Method::GET, "/v1/keys/a", &Value::Null, 200).await;
    let mut client = nodes.client(other).await;
    client.set_token(Some(&session));
    assert_eq!(client.get("/v1/me").await.unwrap().status, 401, "a session that was ended elsewhere");
}

#[tokio::test]
async fn writes_go_on_when_the_leader_is_killed_and_a_retry_gives_the_same_answer() {
    let mut nodes = Nodes::new(3).await;
    let leader = nodes.leader().await;
    let survivor = (leader + 1) % 3;
    let named = [("idempotency-key", "once")];
    let mut client = nodes.client(leader).await;
    let first = client.request(Method::PUT, "/v1/keys/once", &named, "v").await.unwrap();
    assert_eq!(first.status, 201, "{}", first.text());
    nodes.all[leader].kill().unwrap();
    let again = put_until_taken(&nodes, survivor, "once", &named).await;
    assert_eq!(again, first.json().unwrap(), "the same answer after the failover");
    let begun = Instant::now();
    put_until_taken(&nodes, survivor, "after", &[]).await;
    assert!(begun.elapsed() < FAILOVER_WITHIN, "{:?}", begun.elapsed());
    let history = nodes.client(survivor).await.get("/v1/history/once").await.unwrap().json().unwrap();
    assert_eq!(history["versions"].as_array().map(Vec::len), Some(1), "one entry: {history}");

    let down = nodes.all[leader].data().file_name().unwrap().to_str().unwrap().to_owned();
    nodes
        .until_at(survivor, "the dead node is seen", |cluster| {
            let all = cluster["nodes"].as_array().unwrap();
            all.iter().any(|n| n["name"] == down && n["live"] == false) && cluster["can_lose"] == 0
        })
        .await;
    let listed = nodes.all[survivor].command(&["node", "list"]).unwrap().output().unwrap();
    assert!(listed.status.success(), "{}", said(&listed));
    assert!(said(&listed).contains(&format!("{down} is not heard of")), "{}", said(&listed));

    nodes.all[leader].start().await.unwrap();
    nodes.level(leader, survivor).await;
    let read = nodes.client(leader).await.get("/v1/keys/after?consistency=stale").await.unwrap();
    assert_eq!(read.status, 200, "what was written while it was down: {}", read.text());
}

#[tokio::test]
async fn a_retry_gives_the_same_answer_on_a_node_that_got_it_in_a_snapshot() {
    let mut nodes = Nodes::new(3).await;
    let leader = nodes.leader().await;
    let (away, other) = ((leader + 1) % 3, (leader + 2) % 3);
    nodes.all[away].kill().unwrap();
    let named = [("idempotency-key", "in-a-snapshot")];
    let path = "/v1/keys/once";
    let first = nodes.client(leader).await.request(Method::PUT, path, &named, "v").await.unwrap();
    assert_eq!(first.status, 201, "{}", first.text());
    // The raft log goes with what is durable, every five seconds, once who lacks it has not answered for two.
    let (mut client, begun) = (nodes.client(leader).await, Instant::now());
    for n in 0.. {
        assert!(client.put(&format!("/v1/keys/k-{n}"), "v").await.unwrap().status < 300);
        if begun.elapsed() > RAFT_LOG_GOES_WITHIN {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    nodes.all[away].start().await.unwrap();
    nodes.level(away, leader).await;
    let journal = nodes.all[away].log();
    assert!(journal.contains("a snapshot was put in place"), "it came another way: {journal}");
    // It leads or asks who does: in both cases it is the one that is asked.
    nodes.all[leader].kill().unwrap();
    let again = put_until_taken(&nodes, away, "once", &named).await;
    assert_eq!(again, first.json().unwrap(), "the same answer on the node that was away");
    for place in [away, other] {
        let history = nodes.client(place).await.get("/v1/history/once").await.unwrap().json().unwrap();
        assert_eq!(history["versions"].as_array().map(Vec::len), Some(1), "one entry on node {place}: {history}");
    }
}

#[tokio::test]
async fn without_a_quorum_a_node_says_so_and_answers_what_it_can() {
    let mut nodes = Nodes::new(3).await;
    nodes.client(0).await.put("/v1/keys/k", "v").await.unwrap();
    nodes.level(2, 0).await;
    nodes.all[0].kill().unwrap();
    nodes.all[1].kill().unwrap();
    nodes.until_at(2, "the others are seen to be down", |cluster| cluster["live_voters"] == 1).await;
    let status = nodes.all[2].command(&["status"]).unwrap().output().unwrap();
    let text = said(&status);
    assert_eq!(status.status.code(), Some(0), "it needs no leader: {text}");
    for part in
        ["1 of 3 voters, can lose 0 more", "no leader is known", "box-01 is not heard of", "Figures of live nodes"]
    {
        assert!(text.contains(part), "`{part}` was expected in: {text}");
    }
    let mut client = nodes.client(2).await;
    assert_eq!(client.get("/v1/keys/k").await.unwrap().status, 503, "a linearizable read");
    assert_eq!(client.get("/ready").await.unwrap().status, 503);
    assert_eq!(client.get("/health").await.unwrap().status, 200, "the process lives");
    let stale = client.get("/v1/keys/k?consistency=stale").await.unwrap();
    assert_eq!((stale.status, stale.text().as_str()), (200, "v"));
    let refused = client.put("/v1/keys/k", "w").await.unwrap();
    assert_eq!(refused.status, 503, "{}", refused.text());
    let doctor = nodes.all[2].command(&["doctor", "--output", "json"]).unwrap().output().unwrap();
    let doctor: Value = serde_json::from_slice(&doctor.stdout).unwrap();
    let faults = doctor["faults"].as_array().unwrap();
    assert!(["quorum", "peers"].iter().all(|name| faults.contains(&json!(name))), "{faults:?}");
    nodes.all[0].start().await.unwrap();
    put_until_taken(&nodes, 2, "k", &[]).await;
}

#[tokio::test]
async fn a_node_that_was_removed_is_refused_and_its_id_does_not_come_back() {
    let mut nodes = Nodes::new(3).await;
    let ids = |cluster: &Value| -> Vec<u64> {
        cluster["nodes"].as_array().unwrap().iter().map(|n| n["node"].as_u64().unwrap()).collect()
    };
    let removed = nodes.command(&["node", "remove", "box-03"]);
    assert!(removed.status.success(), "{}", said(&removed));
    assert_eq!(ids(&nodes.cluster(0).await), [1, 2]);
    for _ in 0..2 {
        nodes
            .until_at(2, "it says that it was removed", |cluster| {
                cluster["attention"].to_string().contains("removed from the cluster")
            })
            .await;
        let mut client = nodes.client(2).await;
        assert_eq!(client.get("/ready").await.unwrap().status, 503, "it is no node to ask");
        assert_eq!(client.put("/v1/keys/k", "v").await.unwrap().status, 503, "nor does anybody take its writes");
        // The same after a start, which is not ready and never will be.
        nodes.all[2].kill().unwrap();
        nodes.all[2].start_unready().await.unwrap();
    }
    let gone = nodes.command(&["node", "remove", "box-03"]);
    assert!(!gone.status.success() && said(&gone).contains("no-such-node"), "{}", said(&gone));
    let token = nodes.token(&[]);
    let again = nodes.join(0, "box-03", &token, "again");
    assert!(again.status.success(), "a name may come back: {}", said(&again));
    assert_eq!(ids(&nodes.cluster(0).await), [1, 2, 4], "an id does not");
}

#[tokio::test]
async fn the_leader_and_the_first_node_can_go_and_the_last_cannot() {
    let mut nodes = Nodes::new(3).await;
    let leader = nodes.leader().await;
    let name = nodes.all[leader].data().file_name().unwrap().to_str().unwrap().to_owned();
    let through = (leader + 1) % 3;
    let path = format!("/v1/cluster/nodes/{name}");
    let answer = send(&mut nodes.client(through).await, Method::DELETE, &path, &Value::Null, 200).await;
    assert_eq!(answer.json().unwrap()["state"], "removed", "{}", answer.text());
    nodes.all[leader].kill().unwrap();
    put_until_taken(&nodes, through, "after-the-leader", &[]).await;

    // Two are left. When one of them is down the other must not be taken out, nor can it be without a majority.
    let rest = (leader + 2) % 3;
    let rest_name = nodes.all[rest].data().file_name().unwrap().to_str().unwrap().to_owned();
    nodes.all[rest].kill().unwrap();
    let refused = send_any(&nodes, through, &format!("/v1/cluster/nodes/{rest_name}")).await;
    assert_eq!(refused, 503, "nothing is changed without a majority");
    nodes.all[rest].start().await.unwrap();
    nodes.until_at(through, "both are there", |cluster| cluster["live_voters"] == 2).await;
    let path = format!("/v1/cluster/nodes/{rest_name}");
    send(&mut nodes.client(through).await, Method::DELETE, &path, &Value::Null, 200).await;
    let last = nodes.all[through].data().file_name().unwrap().to_str().unwrap().to_owned();
    let path = format!("/v1/cluster/nodes/{last}");
    let refused = send(&mut nodes.client(through).await, Method::DELETE, &path, &Value::Null, 409).await;
    assert!(refused.text().contains("last-voter"), "{}", refused.text());
    put_until_taken(&nodes, through, "alone-again", &[]).await;
}

async fn send_any(nodes: &Nodes, place: usize, path: &str) -> u16 {
    nodes.client(place).await.request(Method::DELETE, path, &[], "").await.unwrap().status
}

#[tokio::test]
async fn a_dead_machine_is_replaced_by_one_command_and_its_loss_risks_no_quorum() {
    let mut nodes = Nodes::new(3).await;
    nodes.all[2].kill().unwrap();
    nodes.until("it is seen to be dead", |cluster| cluster["live_voters"] == 2).await;
    let refused = nodes.command(&["node", "remove", "box-02"]);
    assert!(
        said(&refused).contains("quorum-at-risk"),
        "one of two that live, of two that would be left: {}",
        said(&refused)
    );
    let token = nodes.token(&["--replaces", "box-03"]);
    let mut new = nodes.all[0].join(&nodes.path("new"), "box-03", &token).unwrap();
    new.start().await.unwrap();
    nodes.all.push(new);
    nodes
        .until("the new one votes in its place", |cluster| {
            let all = cluster["nodes"].as_array().unwrap();
            cluster["live_voters"] == 3 && all.len() == 3 && all.iter().any(|n| n["node"] == 4 && n["name"] == "box-03")
        })
        .await;
    put_until_taken(&nodes, 3, "k", &[]).await;
}

#[tokio::test]
async fn a_node_without_peers_opens_no_port_for_them() {
    let mut nodes = Nodes::one().await;
    let config = fs::read_to_string(nodes.all[0].data().with_extension("toml")).unwrap();
    let port: u16 = config.rsplit_once(':').unwrap().1.trim().trim_end_matches('"').parse().unwrap();
    let reach = || TcpStream::connect(("127.0.0.1", port));
    assert!(reach().await.is_err(), "no token was made: nobody listens at {port}");
    nodes.token(&[]);
    assert!(reach().await.is_ok(), "one was: somebody may join through {port}");
}

#[tokio::test]
async fn nodes_are_in_the_metrics_of_their_peers() {
    let nodes = Nodes::new(2).await;
    let metrics = nodes.client(0).await.get("/metrics").await.unwrap().text();
    assert!(metrics.contains("samovar_peer_live{peer=\"box-02\"} 1\n"), "{metrics}");
    assert!(!metrics.contains("peer=\"box-01\""), "a node is not its own peer: {metrics}");
    let ca = nodes.all[1].data().join("ca.pem");
    let shown =
        Client::connect_as(nodes.all[1].port(), &ca, None, Ends::default()).await.unwrap().get("/v1/cluster/ca").await;
    assert_eq!(
        shown.unwrap().text(),
        fs::read_to_string(nodes.all[0].data().join("ca.pem")).unwrap(),
        "one CA for all"
    );
}
