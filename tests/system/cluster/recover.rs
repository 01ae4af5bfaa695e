//! Lost quorum: a ledger goes on from one survivor, with the loss that was announced and no other.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use samovar_tests::{Daemon, binary};

use super::*;

/// Writes through a node until it is told to stop; what was acknowledged, by revision.
pub(super) fn load(
    nodes: &Nodes,
    place: usize,
    stop: &Arc<AtomicBool>,
    acknowledged: &Acknowledged,
) -> tokio::task::JoinHandle<()> {
    let (port, ca) = (nodes.all[place].port(), nodes.all[place].data().join("ca.pem"));
    let token = fs::read_to_string(nodes.all[place].token()).unwrap();
    let (stop, acknowledged) = (stop.clone(), acknowledged.clone());
    tokio::spawn(async move {
        let mut n = 0;
        while !stop.load(Relaxed) {
            let Ok(mut client) = Client::connect(port, &ca, Some(token.trim())).await else {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            while !stop.load(Relaxed) {
                n += 1;
                let (key, value) = (format!("load-{place}-{n}"), format!("value {n} through {place}"));
                let Ok(answer) = client.put(&format!("/v1/keys/{key}"), value.clone()).await else { break };
                if answer.status < 300 {
                    let revision = answer.json().unwrap()["transaction"].as_u64().unwrap();
                    acknowledged.lock().unwrap().insert(revision, (key, value));
                }
            }
        }
    })
}

pub(super) type Acknowledged = Arc<Mutex<BTreeMap<u64, (String, String)>>>;

/// `samovar recover` on a node that does not run.
fn recover(daemon: &Daemon, words: &[&str]) -> Output {
    let mut command = Command::new(binary().unwrap());
    command.args(["recover", "--output", "json", "--config"]).arg(daemon.data().with_extension("toml"));
    command.arg("--data").arg(daemon.data()).args(words).output().unwrap()
}

fn preview(daemon: &Daemon, words: &[&str]) -> Value {
    let output = recover(daemon, &[&["--preview"], words].concat());
    assert!(output.status.success(), "a preview: {}", said(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn refuses(daemon: &Daemon, words: &[&str], part: &str) {
    let output = recover(daemon, words);
    assert_eq!(output.status.code(), Some(1), "a refusal with `{part}` was expected: {}", said(&output));
    assert!(said(&output).contains(part), "`{part}` was expected in: {}", said(&output));
}

/// Stops a process for a while, as a machine that hangs.
fn signal(daemon: &Daemon, signal: rustix::process::Signal) {
    let id = rustix::process::Pid::from_raw(i32::try_from(daemon.id().unwrap()).unwrap()).unwrap();
    rustix::process::kill_process(id, signal).unwrap();
}

fn write(path: &Path, bytes: &[u8]) {
    std::io::Write::write_all(&mut fs::File::create(path).unwrap(), bytes).unwrap();
}

/// Verifies a file offline; whether it holds, and what is said.
fn verify(file: &Path, words: &[&str]) -> (bool, String) {
    let output = Command::new(binary().unwrap()).arg("verify").arg(file).args(words).output().unwrap();
    (output.status.success(), said(&output))
}

async fn receipt(client: &mut Client, transaction: u64, file: &Path) {
    let answer = client.get(&format!("/v1/transactions/{transaction}/receipt?wait=quorum")).await.unwrap();
    assert_eq!(answer.status, 200, "the receipt of {transaction}: {}", answer.text());
    write(file, &answer.body);
}

#[tokio::test]
async fn a_ledger_goes_on_from_one_survivor_with_the_loss_that_was_announced_and_no_other() {
    let mut nodes = Nodes::new(3).await;
    let log = nodes.client(0).await.get("/v1/log").await.unwrap().json().unwrap();
    let (key, policy) = (log["vkey"].as_str().unwrap().to_owned(), nodes.path("policy"));
    write(&policy, log["policy"].as_str().unwrap().as_bytes());
    let policy = policy.to_str().unwrap().to_owned();
    let by_old = ["--key", &key, "--policy", &policy];

    // The survivor hangs while the others go on, and they die before it is back: what they acknowledged meanwhile is lost.
    let survivor = (nodes.leader().await + 1) % 3;
    joining::gets_the_key_of_the_ca(&nodes, survivor).await;
    let others: Vec<usize> = (0..3).filter(|place| *place != survivor).collect();
    let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Acknowledged::default());
    let mut loads: Vec<_> = (0..3).map(|place| load(&nodes, place, &stop, &acknowledged)).collect();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let saved = *acknowledged.lock().unwrap().keys().next().expect("something was acknowledged");
    let saved_receipt = nodes.path("saved-receipt");
    receipt(&mut nodes.client(others[0]).await, saved, &saved_receipt).await;
    signal(&nodes.all[survivor], rustix::process::Signal::STOP);
    let before = acknowledged.lock().unwrap().len();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let newest = *acknowledged.lock().unwrap().keys().last().unwrap();
    let lost_receipt = nodes.path("lost-receipt");
    receipt(&mut nodes.client(others[0]).await, newest, &lost_receipt).await;
    for place in &others {
        nodes.all[*place].kill().unwrap();
    }
    stop.store(true, Relaxed);
    signal(&nodes.all[survivor], rustix::process::Signal::CONT);
    for load in loads.drain(..) {
        load.await.unwrap();
    }
    let acknowledged = std::mem::take(&mut *acknowledged.lock().unwrap());
    assert!(
        acknowledged.len() > before + 10,
        "the others go on without the survivor: {before} of {}",
        acknowledged.len()
    );
    for file in [&saved_receipt, &lost_receipt] {
        assert!(verify(file, &by_old).0, "it holds before: {}", verify(file, &by_old).1);
    }

    refuses(&nodes.all[survivor], &["--accept-loss"], "is in use by another samovar process");
    nodes.all[survivor].stop().unwrap();
    let shown = preview(&nodes.all[survivor], &["--known", lost_receipt.to_str().unwrap()]);
    assert_eq!((&shown["refused"], &shown["loss"]["none"]), (&Value::Null, &json!(false)), "{shown:#}");
    assert_eq!((&shown["voters"], &shown["quorum"], &shown["live"]), (&json!(3), &json!(2), &json!([])), "{shown:#}");
    let certain = shown["loss"]["from_revision"].as_u64().unwrap();
    assert!(shown["loss"]["at_least_up_to"].as_u64().unwrap() > newest, "a receipt shows what is lost: {shown:#}");
    assert!(saved < certain && certain <= newest, "{saved} < {certain} <= {newest}");
    refuses(&nodes.all[survivor], &[], "--accept-loss");
    // The preview of another disk says which of the two is the more advanced, and a majority of disks is a quorum.
    let other = preview(&nodes.all[others[0]], &[]);
    let file = nodes.path("other.json");
    write(&file, other.to_string().as_bytes());
    refuses(&nodes.all[survivor], &["--accept-loss", "--compare", file.to_str().unwrap()], "recover from there");
    write(&file, shown.to_string().as_bytes());
    let whole = ["--accept-loss", "--compare", file.to_str().unwrap()];
    refuses(&nodes.all[others[0]], &whole, "a majority of the voters are there");

    let known = ["--accept-loss", "--reason", "both others burnt", "--known", lost_receipt.to_str().unwrap()];
    let recovered = recover(&nodes.all[survivor], &known);
    assert!(recovered.status.success(), "{}", said(&recovered));
    let recovered: Value = serde_json::from_slice(&recovered.stdout).unwrap();
    assert_eq!((&recovered["epoch"], &recovered["certain_entries"]), (&json!(2), &json!(certain)), "{recovered}");
    let entry = recovered["entry"].as_u64().unwrap();
    nodes.all[survivor].start().await.unwrap();

    // Every write that was acknowledged is there, as it was, or was announced.
    let mut client = nodes.client(survivor).await;
    let (mut kept, mut lost) = (0, 0);
    for (revision, (key, value)) in &acknowledged {
        let read = client.get(&format!("/v1/keys/{key}")).await.unwrap();
        match read.status {
            200 => {
                assert_eq!(read.text(), *value, "{key}");
                assert_eq!(read.headers["etag"], format!("\"{revision}\""), "{key} has the revision that was told");
                kept += 1;
            }
            404 => {
                assert!(
                    *revision >= certain,
                    "revision {revision} was not announced to be lost, from {certain} on was"
                );
                lost += 1;
            }
            status => panic!("{key}: {status}: {}", read.text()),
        }
    }
    assert!(kept >= before / 2 && lost > 10, "{kept} kept, {lost} lost");
    let shown = client.get(&format!("/v1/transactions/{entry}")).await.unwrap().text();
    assert!(shown.contains("recovery") && shown.contains("both others burnt"), "{shown}");

    // The old majority is told, and refused for good.
    for place in &others {
        // It may be told before it answers anybody.
        if let Err(ended) = nodes.all[*place].start_unready().await {
            assert!(ended.to_string().contains("recovered without this node"), "{ended}");
        }
    }
    for place in &others {
        let begun = Instant::now();
        while nodes.all[*place].id().is_some() && nodes.all[*place].has_ended().unwrap().is_none() {
            assert!(begun.elapsed() < FAILOVER_WITHIN, "it is told and ends: {}", nodes.all[*place].log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let again = nodes.all[*place].start_unready().await.unwrap_err().to_string();
        assert!(again.contains("recovered without this node"), "{again}");
    }

    // Two new ones join, and cosign under the new policy.
    let names = ["box-04", "box-05"];
    for name in names {
        let token = nodes.path(name).with_extension("token");
        let made = nodes.all[survivor].command(&["node", "token", "--save", token.to_str().unwrap()]).unwrap().output();
        assert!(made.as_ref().is_ok_and(|made| made.status.success()), "{made:?}");
        let mut new = nodes.all[survivor].join(&nodes.path(name), name, &token).unwrap();
        new.start().await.unwrap();
        nodes.all.push(new);
    }
    nodes.until_at(survivor, "three vote", |cluster| cluster["live_voters"] == 3 && cluster["voters"] == 3).await;
    nodes.cosign(4, 3).await;
    put_until_taken(&nodes, 4, "after", &[]).await;

    // Old receipts hold under the old policy, and the chain of keys leads over the recovery for whoever confirms its key.
    assert!(verify(&saved_receipt, &by_old).0, "{}", verify(&saved_receipt, &by_old).1);
    let log = nodes.client(4).await.get("/v1/log").await.unwrap().json().unwrap();
    let chain = nodes.path("chain");
    fs::create_dir(&chain).unwrap();
    let changes: Vec<u64> = log["key_changes"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
    assert!(changes.contains(&entry), "{changes:?} names the recovery {entry}");
    let of_policy = changes.iter().position(|change| *change == entry).unwrap();
    for change in &changes[of_policy..] {
        receipt(&mut nodes.client(4).await, *change, &chain.join(change.to_string())).await;
    }
    let fresh = nodes.path("fresh-receipt");
    receipt(&mut nodes.client(3).await, saved, &fresh).await;
    let chain = chain.to_str().unwrap();
    let over = [by_old.as_slice(), &["--chain", chain]].concat();
    let (good, why) = verify(&fresh, &over);
    assert!(!good && why.contains("--recovered"), "nobody confirmed the new key: {why}");
    let confirmed = recovered["log_key"].as_str().unwrap();
    let over = [over.as_slice(), &["--recovered", confirmed]].concat();
    for file in [&fresh, &saved_receipt] {
        let (good, said) = verify(file, &over);
        assert!(good, "{said}");
    }
    assert!(verify(&fresh, &over).1.contains("recovered"), "it says so: {}", verify(&fresh, &over).1);
    let (good, why) = verify(&lost_receipt, &over);
    assert!(!good && why.contains("was lost"), "{why}");
}

#[tokio::test]
async fn a_recovery_that_is_cut_off_goes_on_when_it_is_run_again() {
    let mut nodes = Nodes::new(3).await;
    put_until_taken(&nodes, 0, "kept", &[]).await;
    nodes.level(2, 0).await;
    joining::gets_the_key_of_the_ca(&nodes, 2).await;
    nodes.all[0].kill().unwrap();
    nodes.all[1].kill().unwrap();
    nodes.all[2].stop().unwrap();
    // Killed a little later each time; when the plan is written and the recovery not through, the daemon does not start.
    let (mut after, mut refused) = (Duration::from_millis(5), 0);
    let done = loop {
        let mut command = Command::new(binary().unwrap());
        command.args(["recover", "--accept-loss", "--output", "json", "--config"]);
        command.arg(nodes.all[2].data().with_extension("toml")).arg("--data").arg(nodes.all[2].data());
        let mut child =
            command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
        let begun = Instant::now();
        while begun.elapsed() < after && child.try_wait().unwrap().is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        if child.try_wait().unwrap().is_some() {
            break child.wait_with_output().unwrap();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        if nodes.all[2].data().join("recovery.json").exists() {
            let why = nodes.all[2].start_unready().await.expect_err("it is not through").to_string();
            assert!(why.contains("run again samovar recover"), "{why}");
            refused += 1;
        }
        after = after * 5 / 4;
        assert!(after < FAILOVER_WITHIN, "a recovery takes longer than {after:?}");
    };
    // It may be through, but for the first start under the new keys.
    assert!(done.status.success() || said(&done).contains("is the only voter"), "{}", said(&done));
    println!("{refused} cuts between the plan and the end");
    nodes.all[2].start().await.unwrap();
    let read = nodes.client(2).await.get("/v1/keys/kept").await.unwrap();
    assert_eq!((read.status, read.text().as_str()), (200, "v"));
    put_until_taken(&nodes, 2, "after", &[]).await;
    let log = nodes.client(2).await.get("/v1/log").await.unwrap().json().unwrap();
    assert_eq!(log["cosigners"].as_array().map(Vec::len), Some(1), "{log}");
    assert_eq!(nodes.cluster(2).await["voters"], 1);
}
