//! Puts into one node through its door, without HTTP: where the time of a put goes.
//!
//! `cargo run --release -p samovar-node --example put_bench -- DIR KEYS PUTS WRITERS`
//! writes KEYS distinct keys first, then PUTS to random ones of them from WRITERS tasks, 256-byte values.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use samovar_node::disk::{Disk, OsDisk};
use samovar_node::node::Config;
use samovar_node::view::Status;
use samovar_node::{Error, Key, Node, Operation, Write};

const VALUE_BYTES: usize = 256;

fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().unwrap_or_else(|| "put-bench.data".into());
    let mut number = |default| arguments.next().and_then(|a| a.parse().ok()).unwrap_or(default);
    let (keys, puts, writers) = (number(100_000), number(100_000), number(256));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Error::io("making a runtime", &e))?;
    runtime.block_on(run(Path::new(&directory), keys, puts, writers))
}

async fn run(directory: &Path, keys: u64, puts: u64, writers: u64) -> Result<(), Error> {
    let disk: Arc<dyn Disk> = Arc::new(OsDisk);
    let config = Config::new(directory);
    if !directory.join("node.json").exists() {
        Node::init(&disk, &config, "bench", "bench.example")?;
    }
    let started = Instant::now();
    let node = Node::start(disk, config).await?;
    println!("start {:?}, rss {} MB", started.elapsed(), rss_mb());
    if node.status().keys < keys {
        measure(&node, "load", keys, writers.max(512), move |n, _| n).await?;
    }
    measure(&node, "put", puts, writers, move |_, rng| rng.gen_range(0..keys)).await?;
    println!("rss {} MB, store {} MB", rss_mb(), node.status().store_bytes >> 20);
    node.stop().await;
    Ok(())
}

async fn measure(
    node: &Node,
    label: &str,
    count: u64,
    writers: u64,
    pick: impl Fn(u64, &mut StdRng) -> u64 + Copy + Send + 'static,
) -> Result<(), Error> {
    let (before, cpu, started) = (node.status(), process_cpu(), Instant::now());
    let mut tasks = Vec::new();
    for writer in 0..writers {
        let node = node.clone();
        tasks.push(tokio::spawn(async move {
            let mut rng = StdRng::seed_from_u64(writer);
            let mut latencies = Vec::new();
            for n in (writer..count).step_by(usize::try_from(writers).unwrap_or(1)) {
                let at = Instant::now();
                put(&node, pick(n, &mut rng), &mut rng).await?;
                latencies.push(at.elapsed());
            }
            Ok::<_, Error>(latencies)
        }));
    }
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await.map_err(|e| Error::Unavailable(e.to_string()))??);
    }
    let (wall, cpu) = (started.elapsed(), process_cpu() - cpu);
    report(label, wall, cpu, &before, &node.status(), latencies);
    Ok(())
}

async fn put(node: &Node, number: u64, rng: &mut StdRng) -> Result<(), Error> {
    let mut value = vec![0; VALUE_BYTES];
    rng.fill_bytes(&mut value);
    let key = Key::client(&format!("bench/{:016x}", number.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
    let operation = Operation::Put {
        key: key.map_err(Error::Invalid)?,
        value: Bytes::from(value),
        media_type: "application/octet-stream".into(),
        blob: false,
    };
    let write =
        Write { author: "bench".into(), requirements: Vec::new(), operations: vec![operation], idempotency: None };
    node.write(write).await.map(|_| ())
}

#[allow(clippy::cast_precision_loss, reason = "figures for people")]
fn report(label: &str, wall: Duration, cpu: Duration, before: &Status, after: &Status, mut latencies: Vec<Duration>) {
    latencies.sort_unstable();
    let n = latencies.len() as f64;
    let us = |ns: u64| ns as f64 / 1000.0 / n;
    let (a, b) = (&after.apply, &before.apply);
    println!(
        "{label}: {:.0} puts/s, process cpu {:.1} us/put; apply cpu us/put: decode {:.1}, transactions {:.1}, state map \
         {:.1}, archive {:.1}, rows {:.1} ({:.2} rows); blocks of {:.0}",
        n / wall.as_secs_f64(),
        cpu.as_secs_f64() * 1e6 / n,
        us(a.decode_ns - b.decode_ns),
        us(a.transactions_ns - b.transactions_ns),
        us(a.state_map_ns - b.state_map_ns),
        us(a.archive_ns - b.archive_ns),
        us(a.rows_ns - b.rows_ns),
        (a.rows - b.rows) as f64 / n,
        n / (after.head.height - before.head.height).max(1) as f64,
    );
    let fsyncs = after.raft_log.fsyncs - before.raft_log.fsyncs;
    println!(
        "  fsyncs {fsyncs}, {:.2} ms each, longest {:?}; checkpoints {}; p50 {:?} p99 {:?} longest {:?}",
        (after.raft_log.fsync_time - before.raft_log.fsync_time).as_secs_f64() * 1000.0 / fsyncs.max(1) as f64,
        after.raft_log.fsync_time_max,
        after.checkpoint_rounds - before.checkpoint_rounds,
        latencies[latencies.len() / 2],
        latencies[latencies.len() * 99 / 100],
        latencies[latencies.len() - 1],
    );
}

fn process_cpu() -> Duration {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(t.tv_sec.unsigned_abs(), u32::try_from(t.tv_nsec).unwrap_or(0))
}

fn rss_mb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) >> 10
}
