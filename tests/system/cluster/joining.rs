//! Who may join, and what the others are told.

use samovar_tests::Daemon;

use super::*;

fn refused(output: &std::process::Output, part: &str) {
    assert_eq!(output.status.code(), Some(1), "a refusal with `{part}` was expected: {}", said(output));
    assert!(said(output).contains(part), "`{part}` was expected in: {}", said(output));
}

#[tokio::test]
async fn a_token_is_good_once_for_a_while_and_for_its_own_ledger() {
    let mut nodes = Nodes::one().await;
    let token = nodes.token(&[]);
    let secret = fs::read_to_string(&token).unwrap();
    let first = nodes.join(0, "box-02", &token, "first");
    assert!(first.status.success(), "{}", said(&first));
    refused(&nodes.join(0, "box-03", &token, "used"), "join-token-used");

    let short = nodes.token(&["--expires", "1s"]);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    refused(&nodes.join(0, "box-03", &short, "expired"), "join-token-expired");

    let mut other = Nodes::one().await;
    let foreign = other.token(&[]);
    refused(&nodes.join(0, "box-03", &foreign, "foreign"), "is not the ledger that the join token is for");

    let revoked = nodes.token(&[]);
    let mut admin = nodes.client(0).await;
    let tokens = admin.get("/v1/cluster/join-tokens").await.unwrap().json().unwrap();
    let tokens = tokens["join_tokens"].as_array().unwrap().clone();
    assert!(tokens.iter().any(|t| t["used_by"] == 2), "who used it is kept: {tokens:?}");
    for token in tokens.iter().filter(|t| t["used_by"].is_null()) {
        let path = format!("/v1/cluster/join-tokens/{}", token["id"].as_str().unwrap());
        send(&mut admin, Method::DELETE, &path, &Value::Null, 204).await;
    }
    refused(&nodes.join(0, "box-03", &revoked, "revoked"), "join-token-unknown");

    let nonsense = nodes.path("nonsense");
    fs::File::create(&nonsense).unwrap();
    refused(&nodes.join(0, "box-03", &nonsense, "nonsense"), "holds no join token");
    let good = nodes.token(&[]);
    refused(&nodes.join(0, "box-02", &good, "named"), "node-name-taken");
    refused(&nodes.join(0, "box-03", &good, "first"), "is not empty");
    // What was refused has not used the token up, nor left anything in the way.
    let then = nodes.join(0, "box-03", &good, "named");
    assert!(then.status.success(), "{}", said(&then));

    let status = admin.get("/v1/status").await.unwrap().json().unwrap();
    for n in 0..status["size"].as_u64().unwrap() {
        let entry = admin.get(&format!("/v1/transactions/{n}")).await.unwrap().text();
        let secret = secret.trim().strip_prefix("samovar_join_").unwrap().split('.').next().unwrap();
        assert!(!entry.contains(secret), "entry {n} holds the secret of a token: {entry}");
    }
}

#[tokio::test]
async fn of_two_that_show_one_token_at_once_one_joins() {
    let mut nodes = Nodes::one().await;
    let token = nodes.token(&[]);
    let (nodes, token) = (&nodes, &token);
    let outputs = std::thread::scope(|scope| {
        let joins = [2, 3, 4, 5]
            .map(|n| scope.spawn(move || nodes.join(0, &format!("box-{n:02}"), token, &format!("at-once-{n}"))));
        joins.map(|join| join.join().unwrap())
    });
    let joined = outputs.iter().filter(|output| output.status.success()).count();
    assert_eq!(joined, 1, "{:?}", outputs.iter().map(said).collect::<Vec<_>>());
    for output in outputs.iter().filter(|output| !output.status.success()) {
        refused(output, "join-token-used");
    }
}

#[tokio::test]
async fn a_learner_stays_one_until_it_is_promoted() {
    let mut nodes = Nodes::one().await;
    nodes.client(0).await.put("/v1/keys/before", "v").await.unwrap();
    let token = nodes.token(&["--learner"]);
    nodes.add("box-02", &token).await;
    nodes
        .until_at(1, "it is a learner", |cluster| cluster["voters"] == 1 && cluster["nodes"][1]["role"] == "learner")
        .await;
    let read = nodes.client(1).await.get("/v1/keys/before").await.unwrap();
    assert_eq!((read.status, read.text().as_str()), (200, "v"), "a linearizable read on a learner");
    // It has no key of the CA, so nobody joins through it.
    assert!(!nodes.all[1].data().join("tls/ca.key").exists());
    let token = nodes.token(&[]);
    refused(&nodes.join(1, "box-03", &token, "through-a-learner"), "no-authority");
    let promoted = nodes.command(&["node", "promote", "box-02"]);
    assert!(promoted.status.success() && said(&promoted).contains("voter"), "{}", said(&promoted));
    nodes.until("both vote", |cluster| cluster["voters"] == 2).await;
}

#[tokio::test]
async fn one_that_was_admitted_and_never_came_is_no_voter_and_can_be_removed() {
    let mut nodes = Nodes::one().await;
    let token = nodes.token(&[]);
    let joined = nodes.join(0, "box-02", &token, "never-started");
    assert!(joined.status.success(), "{}", said(&joined));
    tokio::time::sleep(Duration::from_secs(3)).await;
    let cluster = nodes.cluster(0).await;
    assert_eq!(cluster["voters"], 1, "who is not there would take the quorum with it: {cluster:#}");
    let removed = nodes.command(&["node", "remove", "box-02"]);
    assert!(removed.status.success(), "{}", said(&removed));
}

#[tokio::test]
async fn the_first_node_can_be_gone_for_good() {
    let mut nodes = Nodes::new(3).await;
    gets_the_key_of_the_ca(&nodes, 1).await;
    let token = nodes.token(&["--replaces", "box-01"]);
    nodes.all[0].kill().unwrap();
    put_until_taken(&nodes, 1, "k", &[]).await;
    let mut new: Daemon = nodes.all[1].join(&nodes.path("box-04"), "box-04", &token).unwrap();
    new.start().await.unwrap();
    nodes.all.push(new);
    nodes.until_at(1, "the new one votes", |cluster| cluster["live_voters"] == 3 && cluster["voters"] == 3).await;
    gets_the_key_of_the_ca(&nodes, 3).await;
    send(&mut nodes.client(3).await, Method::POST, "/v1/tls/node", &Value::Null, 201).await;
    put_until_taken(&nodes, 3, "k", &[]).await;
    // New connections are made with the new certificate.
    nodes.all[1].stop().unwrap();
    nodes.all[1].start().await.unwrap();
    nodes.until_at(3, "all hear each other", |cluster| cluster["live_voters"] == 3).await;
}

/// Every voter does, from another one.
pub(super) async fn gets_the_key_of_the_ca(nodes: &Nodes, place: usize) {
    let (file, begun) = (nodes.all[place].data().join("tls/ca.key"), Instant::now());
    while !file.exists() {
        assert!(begun.elapsed() < FAILOVER_WITHIN, "a voter gets the key of the CA: {}", nodes.all[place].log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
