//! The largest blob there may be, up and down again, with flat memory.

use std::time::Instant;

use anyhow::{Context as _, Result};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use ring::digest::{Context as Sha256, SHA256};
use samovar_tests::durability::seed;
use samovar_tests::{Daemon, Settings};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::raw::{Dialer, read_answer, token};

const BYTES: u64 = 4 << 30;
/// What memory of the daemon may grow by.
const GROWTH_BYTES_MAX: u64 = 16 << 20;
const PIECE_BYTES: usize = 1 << 20;
/// How often memory is looked at, in pieces.
const LOOK_PIECES: u64 = 64;

/// Anonymous and shared memory of a process that is resident now (`VmRSS`).
fn resident_bytes(daemon: &Daemon) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.id().context("it runs")?))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse::<u64>()? * 1024)
}

async fn up(daemon: &Daemon, rng: &mut StdRng, most: &mut u64) -> Result<(String, Vec<u8>)> {
    let mut stream = Dialer::new(daemon, &[b"http/1.1"])?.connect().await?;
    let token = token(daemon);
    let head = format!(
        "POST /v1/blobs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nContent-Length: {BYTES}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    let (mut hash, mut piece) = (Sha256::new(&SHA256), vec![0; PIECE_BYTES]);
    rng.fill(piece.as_mut_slice());
    for n in 0..BYTES / PIECE_BYTES as u64 {
        piece[..8].copy_from_slice(&n.to_le_bytes());
        hash.update(&piece);
        stream.write_all(&piece).await?;
        if n % LOOK_PIECES == 0 {
            *most = (*most).max(resident_bytes(daemon)?);
        }
    }
    stream.flush().await?;
    let answer = read_answer(&mut stream, false).await?;
    *most = (*most).max(resident_bytes(daemon)?);
    anyhow::ensure!(answer.status == 201, "the upload: {}", answer.text());
    let cid = answer.json()?["cid"].as_str().context("cid")?.to_owned();
    Ok((cid, hash.finish().as_ref().to_vec()))
}

async fn down(daemon: &Daemon, cid: &str, most: &mut u64) -> Result<Vec<u8>> {
    let mut stream = Dialer::new(daemon, &[b"http/1.1"])?.connect().await?;
    let token = token(daemon);
    let head = format!("GET /v1/blobs/{cid} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let mut header = Vec::new();
    while !header.ends_with(b"\r\n\r\n") {
        header.push(stream.read_u8().await?);
    }
    let header = String::from_utf8_lossy(&header).into_owned();
    anyhow::ensure!(header.starts_with("HTTP/1.1 200"), "the download: {header}");
    let (mut hash, mut piece) = (Sha256::new(&SHA256), vec![0; PIECE_BYTES]);
    let (mut left, mut looked_at) = (BYTES, BYTES);
    while left > 0 {
        let read = stream.read(&mut piece).await?;
        anyhow::ensure!(read > 0, "the answer ended {left} bytes short");
        hash.update(&piece[..read]);
        left -= read as u64;
        if looked_at - left >= LOOK_PIECES * PIECE_BYTES as u64 {
            looked_at = left;
            *most = (*most).max(resident_bytes(daemon)?);
        }
    }
    Ok(hash.finish().as_ref().to_vec())
}

#[tokio::test]
#[ignore = "moves 8 GiB; tests/long runs it"]
async fn four_gib_go_up_and_down_with_flat_memory() {
    let seed = seed("four_gib_go_up_and_down_with_flat_memory");
    let mut rng = StdRng::seed_from_u64(seed);
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let daemon = Daemon::create(&directory.path().join("data"), Settings::default()).await.unwrap();
    // Both ways once, so that what is made at first use is there before it is measured.
    let mut client = daemon.client().await.unwrap();
    let first = client.request(hyper::Method::POST, "/v1/blobs", &[], vec![1; 1 << 20]).await.unwrap();
    let cid = first.json().unwrap()["cid"].as_str().unwrap().to_owned();
    assert_eq!(client.get(&format!("/v1/blobs/{cid}")).await.unwrap().status, 200);
    let before = resident_bytes(&daemon).unwrap();
    let mut most = before;
    let begun = Instant::now();
    let (cid, sent) = up(&daemon, &mut rng, &mut most).await.unwrap_or_else(|e| panic!("seed {seed}: {e:#}"));
    let (up_time, begun) = (begun.elapsed(), Instant::now());
    let received = down(&daemon, &cid, &mut most).await.unwrap_or_else(|e| panic!("seed {seed}: {e:#}"));
    assert_eq!(sent, received, "seed {seed}: what came back is not what was sent");
    let growth = most - before;
    println!(
        "RESULT blob of 4 GiB: up {up_time:?}, down {:?}, memory grew by {:.1} MiB from {:.1} MiB",
        begun.elapsed(),
        growth as f64 / f64::from(1 << 20),
        before as f64 / f64::from(1 << 20)
    );
    assert!(growth <= GROWTH_BYTES_MAX, "memory grew by {growth} bytes, at most {GROWTH_BYTES_MAX} are expected");
}
