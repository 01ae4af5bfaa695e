//! Nothing acknowledged is lost: kill -9 and power cuts at random instants under load.
//!
//! `SAMOVAR_KILLS` and `SAMOVAR_CUTS` say how many; `SAMOVAR_SEED` repeats a run.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use samovar_tests::durability::{Checked, Image, Load, check, count, seed};
use samovar_tests::{Daemon, Settings};

/// A ledger is left for a fresh one after so many rounds, so that its size stays bounded.
const ROUNDS_PER_LEDGER: u64 = 10;
/// Under load for so long, in milliseconds.
const LOAD_MS: std::ops::Range<u64> = 30..900;
const IMAGE_BYTES: u64 = 6 << 30;

/// Adds up what many checks saw.
#[derive(Default)]
struct Tally {
    rounds: u64,
    revisions: usize,
    done: usize,
    not_done: usize,
    proofs: usize,
    entries: u64,
}

impl Tally {
    fn add(&mut self, checked: Checked) {
        self.rounds += 1;
        self.revisions += checked.revisions;
        self.done += checked.done;
        self.not_done += checked.not_done;
        self.proofs += checked.proofs;
        self.entries += checked.entries;
    }

    fn print(&self, what: &str) {
        let Self { rounds, revisions, done, not_done, proofs, entries } = self;
        println!(
            "RESULT {what}: {rounds} rounds, {revisions} acknowledged revisions compared, {done} writes in doubt found \
             done and {not_done} not done, {entries} entries recomputed, {proofs} proofs accepted by jmt"
        );
    }
}

#[tokio::test]
async fn kill_nine_loses_nothing() {
    let seed = seed("kill_nine_loses_nothing");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut tally = Tally::default();
    let mut left = count("SAMOVAR_KILLS", 12);
    while left > 0 {
        let rounds = left.min(ROUNDS_PER_LEDGER);
        left -= rounds;
        let directory = tempfile::tempdir_in("/var/tmp").unwrap();
        let mut daemon = Daemon::create(&directory.path().join("data"), Settings::default()).await.unwrap();
        let mut load = Load::new(rng.r#gen::<u32>().into());
        for _ in 0..rounds {
            load.begin(&daemon).await.unwrap();
            tokio::time::sleep(Duration::from_millis(rng.gen_range(LOAD_MS))).await;
            daemon.kill().unwrap();
            load.end().await.unwrap();
            let round = tally.rounds;
            daemon.start().await.unwrap_or_else(|e| panic!("seed {seed}, kill {round}: no start: {e:#}"));
            let checked = check(&daemon, &mut load, &mut rng).await;
            tally.add(checked.unwrap_or_else(|e| panic!("seed {seed}, kill {round}: {e:#}\n{}", daemon.log())));
        }
    }
    tally.print("kill -9");
    assert!(tally.revisions > 0 && tally.done + tally.not_done > 0, "no kill came in the middle of a write");
}

#[tokio::test]
#[ignore = "needs root and loop devices; tests/run runs it where they are"]
async fn power_cuts_lose_nothing() {
    let seed = seed("power_cuts_lose_nothing");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut tally = Tally::default();
    let mut left = count("SAMOVAR_CUTS", 2);
    while left > 0 {
        let cuts = left.min(ROUNDS_PER_LEDGER);
        left -= cuts;
        let directory = tempfile::tempdir_in("/var/tmp").unwrap();
        let mut image = Image::create(directory.path(), "first", IMAGE_BYTES).unwrap();
        let mut daemon = Daemon::create(&image.path().join("data"), Settings::default()).await.unwrap();
        // What `init` made is older than the outage; from here on only fsync counts.
        rustix::fs::sync();
        let mut load = Load::new(rng.r#gen::<u32>().into());
        for _ in 0..cuts {
            load.begin(&daemon).await.unwrap();
            tokio::time::sleep(Duration::from_millis(rng.gen_range(LOAD_MS))).await;
            freeze(&daemon);
            // Nothing was acknowledged after the freeze, so the copy must hold all that was.
            let after = image.cut(&format!("cut-{}", tally.rounds)).unwrap();
            let port = daemon.port();
            daemon.kill().unwrap();
            load.end().await.unwrap();
            drop(std::mem::replace(&mut image, after));
            daemon = Daemon::existing(&image.path().join("data"), port, Settings::default());
            let cut = tally.rounds;
            daemon.start().await.unwrap_or_else(|e| panic!("seed {seed}, cut {cut}: no start: {e:#}"));
            let checked = check(&daemon, &mut load, &mut rng).await;
            tally.add(checked.unwrap_or_else(|e| panic!("seed {seed}, cut {cut}: {e:#}\n{}", daemon.log())));
        }
        daemon.kill().unwrap();
    }
    tally.print("power cut");
    assert!(tally.revisions > 0 && tally.done + tally.not_done > 0, "no cut came in the middle of a write");
}

fn freeze(daemon: &Daemon) {
    let id = rustix::process::Pid::from_raw(i32::try_from(daemon.id().unwrap()).unwrap()).unwrap();
    rustix::process::kill_process(id, rustix::process::Signal::STOP).unwrap();
}
