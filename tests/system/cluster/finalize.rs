//! What a new version knows is put in force when nobody is left who could not read it, and not before.

use std::path::PathBuf;

use super::*;

/// What `GET /v1/cluster/format` says.
async fn format(nodes: &Nodes) -> Value {
    nodes.client(0).await.get("/v1/cluster/format").await.unwrap().json().unwrap()
}

fn finalize(nodes: &Nodes, place: usize) -> (bool, String) {
    let output = nodes.all[place].command(&["finalize"]).unwrap().output().unwrap();
    (output.status.success(), said(&output))
}

#[tokio::test]
async fn with_one_version_there_is_nothing_to_finalize_and_an_older_one_may_not_join() {
    let mut nodes = Nodes::one().await;
    let shown = format(&nodes).await;
    assert_eq!(shown["in_force"], shown["newest"], "a first version reads what is in force: {shown}");
    let size = |status: Value| status["size"].as_u64().unwrap();
    let mut admin = nodes.client(0).await;
    let before = size(admin.get("/v1/status").await.unwrap().json().unwrap());
    let (good, text) = finalize(&nodes, 0);
    assert!(good && text.contains("nothing to finalize"), "{text}");
    let after = size(admin.get("/v1/status").await.unwrap().json().unwrap());
    assert_eq!(before, after, "what changes nothing is no entry");

    let token = nodes.token(&[]);
    let body = json!({
        "token": fs::read_to_string(&token).unwrap().trim(), "name": "box-02", "address": "127.0.0.1:1", "request": "",
        "names": ["box-02.local"], "format": shown["in_force"].as_u64().unwrap() - 1,
    });
    let refused = send(&mut admin, Method::POST, "/v1/cluster/join", &body, 409).await;
    assert!(refused.text().contains("version-too-old"), "{}", refused.text());
    let joined = nodes.join(0, "box-02", &token, "box-02");
    assert!(joined.status.success(), "the token was not used up by who was refused: {}", said(&joined));
}

/// Has a node run by another binary, from its next start on.
fn run_by(nodes: &mut Nodes, place: usize, binary: Option<&std::path::Path>) {
    let wrapper = binary
        .map(|next| vec!["sh".into(), "-c".into(), format!("shift; exec {} \"$@\"", next.display()), "sh".into()]);
    nodes.all[place].wrap(wrapper.unwrap_or_default());
}

async fn restart(nodes: &mut Nodes, place: usize) {
    nodes.all[place].stop().unwrap();
    nodes.all[place].start().await.unwrap();
}

#[tokio::test]
#[ignore = "needs a second binary, that of the next version: tests/next builds it and runs this"]
async fn what_the_next_version_knows_waits_for_every_node_and_its_spare_slot() {
    let next = std::env::var_os("SAMOVAR_NEXT_BIN").map(PathBuf::from).expect("SAMOVAR_NEXT_BIN: see tests/next");
    let mut nodes = Nodes::new(3).await;
    nodes.client(0).await.put("/v1/keys/before", "v").await.unwrap();
    let first = format(&nodes).await["in_force"].as_u64().unwrap();
    // One after the other gets the new version; one has a spare slot with the old one.
    let updates = nodes.path("updates");
    fs::create_dir(&updates).unwrap();
    let spare = |reads: u64| {
        let state = json!({ "slot": "A", "slots": {
            "A": { "version": "0.2.0", "data_format": first + 1 }, "B": { "version": "0.1.0", "data_format": reads },
        } });
        let (new, file) = (updates.join("state.new"), updates.join("state"));
        fs::File::create(&new)
            .and_then(|mut f| std::io::Write::write_all(&mut f, state.to_string().as_bytes()))
            .unwrap();
        fs::rename(new, file).unwrap();
    };
    spare(first);
    nodes.all[1].append(&format!("[update]\ndirectory = \"{}\"\n", updates.display()));
    for place in [1, 2] {
        run_by(&mut nodes, place, Some(&next));
        restart(&mut nodes, place).await;
    }
    nodes.until("all are there", |cluster| cluster["live_voters"] == 3).await;
    let (good, text) = finalize(&nodes, 1);
    assert!(!good && text.contains("finalize-waits") && text.contains("box-01"), "box-01 runs the old version: {text}");
    for place in 0..3 {
        let put = nodes.client(place).await.put(&format!("/v1/keys/mixed-{place}"), "v").await.unwrap();
        assert_eq!(put.status, 201, "versions are mixed, and each takes writes: {}", put.text());
    }

    run_by(&mut nodes, 0, Some(&next));
    restart(&mut nodes, 0).await;
    nodes.until_at(1, "all are there", |cluster| cluster["live_voters"] == 3).await;
    let waits = |wanted: &'static str| {
        let nodes = &nodes;
        async move {
            let begun = Instant::now();
            loop {
                let shown = format(nodes).await;
                let waits = shown["waits_for"].as_array().unwrap();
                if waits.len() == 1 && waits[0].as_str().unwrap().contains(wanted) {
                    return;
                }
                assert!(begun.elapsed() < Duration::from_secs(30), "{wanted}: not waited for within 30 s: {shown}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    };
    waits("box-02 could go back to the version in its spare slot").await;
    let (good, text) = finalize(&nodes, 0);
    assert!(!good && text.contains("finalize-waits"), "{text}");

    spare(first + 1);
    let begun = Instant::now();
    while !format(&nodes).await["waits_for"].as_array().unwrap().is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(30), "the spare slot is not known within 30 s");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (good, text) = finalize(&nodes, 2);
    assert!(good, "{text}");
    let shown = format(&nodes).await;
    assert_eq!((shown["in_force"].as_u64(), shown["waits_for"].clone()), (Some(first + 1), json!([])), "{shown}");
    let (good, text) = finalize(&nodes, 0);
    assert!(good && text.contains("nothing to finalize"), "{text}");

    // The version before refuses to start, says what to do and changes nothing; it may not join either.
    nodes.all[2].stop().unwrap();
    run_by(&mut nodes, 2, None);
    let refused = nodes.all[2].start().await.expect_err("the version before starts on a ledger that it cannot read");
    assert!(refused.to_string().contains("start a newer version"), "{refused}");
    let token = nodes.token(&[]);
    let joined = nodes.join(0, "box-04", &token, "box-04");
    assert!(!joined.status.success() && said(&joined).contains("version-too-old"), "{}", said(&joined));
    run_by(&mut nodes, 2, Some(&next));
    nodes.all[2].start().await.unwrap();
    nodes.until("all are there", |cluster| cluster["live_voters"] == 3).await;
    for place in 0..3 {
        let read = nodes.client(place).await.get("/v1/keys/before").await.unwrap();
        assert_eq!((read.status, read.text().as_str()), (200, "v"), "through node {place}");
    }
}
