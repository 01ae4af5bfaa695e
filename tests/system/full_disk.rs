//! A full disk refuses writes before anything breaks, keeps serving reads, and recovers by itself.

use std::fs;
use std::time::{Duration, Instant};

use hyper::Method;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use samovar_tests::durability::{Image, Load, check, seed};
use samovar_tests::{Client, Daemon, Settings};

use crate::raw::{Dialer, token};

const IMAGE_BYTES: u64 = 512 << 20;
/// Must exceed a segment of the raft log, which is allocated whole.
const RESERVE: &str = "[store]\nreserve = \"128MiB\"\n";
/// Freed later.
const BALLAST_BYTES: u64 = 160 << 20;
/// Of the blob that finds no room.
const BLOB_BYTES: usize = 1 << 20;
/// For the disk to fill, and for writes to come back.
const PATIENCE: Duration = Duration::from_secs(120);

async fn status(client: &mut Client, path: &str) -> u16 {
    client.get(path).await.unwrap().status
}

#[tokio::test]
#[ignore = "needs root and loop devices; tests/run runs it where they are"]
async fn a_full_disk_refuses_writes_and_recovers() {
    let seed = seed("a_full_disk_refuses_writes_and_recovers");
    let mut rng = StdRng::seed_from_u64(seed);
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let image = Image::create(directory.path(), "small", IMAGE_BYTES).unwrap();
    let ballast = image.path().join("ballast");
    let file = fs::File::create(&ballast).unwrap();
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, BALLAST_BYTES).unwrap();
    drop(file);
    let settings = Settings { toml: RESERVE.into(), ..Settings::default() };
    let mut daemon = Daemon::create(&image.path().join("data"), settings).await.unwrap();
    let mut client = daemon.client().await.unwrap();
    let mut load = Load::new(seed);

    load.begin(&daemon).await.unwrap();
    let begun = Instant::now();
    while load.refused() < 100 {
        assert!(begun.elapsed() < PATIENCE, "the load did not fill the disk in {PATIENCE:?}: {}", daemon.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(status(&mut client, "/ready").await, 200, "reads still work");
    assert_eq!(status(&mut client, "/ready?for=write").await, 503, "and there is no room to write");
    assert_eq!(status(&mut client, "/v1/keys?limit=10").await, 200, "a listing is a read");
    let blob = vec![b'b'; BLOB_BYTES];
    // As a client of large bodies asks, so that the refusal comes before the body is sent and is not lost with it.
    let head = format!(
        "POST /v1/blobs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nContent-Length: {BLOB_BYTES}\r\n\
         Expect: 100-continue\r\n\r\n",
        token(&daemon)
    );
    let upload = Dialer::new(&daemon, &[b"http/1.1"]).unwrap().exchange(head.as_bytes(), false).await.unwrap();
    assert_eq!(upload.status, 507, "a blob needs room, too: {}", upload.text());
    assert_eq!(upload.json().unwrap()["type"], "urn:samovar:problem:no-room");
    tokio::time::sleep(Duration::from_secs(7)).await;
    load.end().await.unwrap();
    let refused = load.refused();
    assert!(load.in_doubt().next().is_none(), "a full disk leaves no write in doubt: {}", daemon.log());
    let log = daemon.log();
    for word in ["No space left", "ENOSPC", "os error 28", "panicked"] {
        assert!(!log.contains(word), "`{word}` in the journal: the reserve did not hold\n{log}");
    }
    let when_full = check(&daemon, &mut load, &mut rng).await.unwrap_or_else(|e| panic!("full, seed {seed}: {e:#}"));

    fs::remove_file(&ballast).unwrap();
    let freed = Instant::now();
    while status(&mut client, "/ready?for=write").await != 200 {
        assert!(freed.elapsed() < PATIENCE, "writes did not come back in {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let back = freed.elapsed();
    let upload = client.request(Method::POST, "/v1/blobs", &[], blob).await.unwrap();
    assert_eq!(upload.status, 201, "the same blob once there is room: {}", upload.text());
    load.begin(&daemon).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    load.end().await.unwrap();
    daemon.kill().unwrap();
    daemon.start().await.unwrap();
    let after = check(&daemon, &mut load, &mut rng).await.unwrap_or_else(|e| panic!("after, seed {seed}: {e:#}"));
    assert!(after.revisions > when_full.revisions, "writes came back");
    println!(
        "RESULT full disk: {refused} writes refused with 507, {} acknowledged revisions held; writes back {back:?} after \
         room was made, {} then",
        when_full.revisions, after.revisions
    );
}
