//! What looking costs: throughput while a profile is taken against throughput while none is, by turns in one run. The data is in
//! memory, so that it is the CPU that bounds both: a disk that is waited for would hide what a profile takes, and swings more than
//! it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use samovar_tests::{Client, Daemon, Settings};
use tokio::task::JoinSet;

/// Clients, each with one request at a time: every second one puts.
const CLIENTS: usize = 32;
/// Windows of each kind, each between two without a profile.
const ROUNDS: usize = 8;
/// Length of every window, in seconds: what is recommended for a timeline.
const WINDOW_S: u64 = 5;
const WARM_UP: Duration = Duration::from_secs(4);
/// After each window, before the next is measured: what a profile leaves behind (tables, freed memory) is not the cost of another kind.
const SETTLE: Duration = Duration::from_secs(2);
/// What windows like the others, but without a profile, may seem to cost: above it the machine was measured.
const CONTROL_MAX_PER_MILLE: f64 = 20.0;
/// Of its throughput a profile may cost less than so many thousandths.
const COST_MAX_PER_MILLE: f64 = 50.0;

async fn load(mut client: Client, number: usize, stop: Arc<AtomicBool>, done: Arc<AtomicU64>) {
    let key = format!("/v1/keys/cost/{number}");
    assert_eq!(client.put(&key, "v").await.unwrap().status, 201);
    while !stop.load(Relaxed) {
        let answer = if number.is_multiple_of(2) { client.put(&key, "v").await } else { client.get(&key).await };
        let answer = answer.unwrap();
        assert!(answer.status < 300, "a request under a profile: {} {}", answer.status, answer.text());
        done.fetch_add(1, Relaxed);
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes eight minutes and a quiet machine; tests/run long runs it"]
async fn profiles_cost_less_than_5_percent_of_throughput() {
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let quotas = ["api", "api_per_address"].map(|kind| format!("{kind} = \"1000000/1s\"\n")).concat();
    let settings = Settings { toml: format!("[limits]\n{quotas}"), ..Settings::default() };
    let daemon = Daemon::create(&directory.path().join("data"), settings).await.unwrap();
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut running = JoinSet::new();
    for number in 0..CLIENTS {
        running.spawn(load(daemon.client().await.unwrap(), number, stop.clone(), done.clone()));
    }
    tokio::time::sleep(WARM_UP).await;
    let mut observer = daemon.client().await.unwrap();
    let kinds = [
        ("nothing (control)", None),
        ("CPU profile", Some(format!("/debug/pprof/profile?seconds={WINDOW_S}"))),
        ("heap profile", Some("/debug/pprof/heap".to_owned())),
        ("timeline", Some(format!("/debug/pprof/trace?seconds={WINDOW_S}"))),
    ];
    // Requests a second of a window; it lasts until the profile, if one is taken, has arrived.
    let mut ratios = kinds.each_ref().map(|_| Vec::new());
    let mut rate_of = async |path: Option<&str>| {
        let (begun, before) = (Instant::now(), done.load(Relaxed));
        if let Some(path) = path {
            let answer = observer.get(path).await.unwrap();
            assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        }
        tokio::time::sleep(Duration::from_secs(WINDOW_S).saturating_sub(begun.elapsed())).await;
        let requests = u32::try_from(done.load(Relaxed) - before).unwrap();
        let rate = f64::from(requests) / begun.elapsed().as_secs_f64();
        tokio::time::sleep(SETTLE).await;
        rate
    };
    let mut without = vec![rate_of(None).await];
    for _ in 0..ROUNDS {
        for ((_, path), ratios) in kinds.iter().zip(&mut ratios) {
            let before = without[without.len() - 1];
            let with = rate_of(path.as_deref()).await;
            let after = rate_of(None).await;
            ratios.push(with / f64::midpoint(before, after));
            without.push(after);
        }
    }
    stop.store(true, Relaxed);
    running.join_all().await;
    println!("RESULT cost of profiles: {:.0} requests a second without", median(without));
    let costs = kinds.iter().zip(ratios).map(|((name, _), ratios)| (*name, (1.0 - median(ratios)) * 1000.0));
    let costs: Vec<_> = costs.collect();
    for (name, cost) in &costs {
        println!(
            "RESULT cost of profiles: {name} {:.1} % (median of {ROUNDS} windows, each against its neighbours)",
            cost / 10.0
        );
    }
    let control = costs[0].1;
    assert!(
        control.abs() < CONTROL_MAX_PER_MILLE,
        "void: windows without a profile differ by {:.1} % from their neighbours; a quieter machine is needed",
        control / 10.0
    );
    for (name, cost) in costs {
        assert!(
            cost < COST_MAX_PER_MILLE,
            "a {name} costs {:.1} % of throughput, less than {:.0} % is expected; once more: cargo test -p samovar-tests \
             --test system profiles_cost -- --ignored --nocapture",
            cost / 10.0,
            COST_MAX_PER_MILLE / 10.0
        );
    }
}
