//! What the machine gives at the moment, without any server: two figures that stand beside every run, so that runs on
//! other machines, or in worse company, can be compared.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rand::RngCore as _;
use rustix::fs::{FsWord, statfs};

use super::load::count;

const FSYNC_TIME: Duration = Duration::from_millis(250);
const HASH_TIME: Duration = Duration::from_millis(100);
const HASH_BYTES: usize = 64 << 10;
const TMPFS_MAGIC: FsWord = 0x0102_1994;

/// One look at the machine.
#[derive(Debug, Clone, Copy)]
pub(super) struct Calibration {
    /// Appends of 4 KiB, each with fdatasync, per second.
    pub(super) fsyncs_per_second: f64,
    /// SHA-256 on one thread, MB/s.
    pub(super) sha256_mb_per_second: f64,
}

/// fsync costs nothing on a tmpfs: a figure from there would be none.
pub(super) fn require_real_disk(directory: &Path) -> Result<()> {
    if statfs(directory)?.f_type == TMPFS_MAGIC {
        bail!("{} is a tmpfs: set SAMOVAR_BENCH_DIR to a directory on a disk", directory.display());
    }
    Ok(())
}

pub(super) fn calibrate(directory: &Path) -> Result<Calibration> {
    Ok(Calibration { fsyncs_per_second: fsyncs(directory)?, sha256_mb_per_second: sha256() })
}

fn fsyncs(directory: &Path) -> Result<f64> {
    let path = directory.join("calibration");
    let mut file = File::create(&path)?;
    let mut block = [0; 4096];
    rand::thread_rng().fill_bytes(&mut block);
    let begun = Instant::now();
    let mut done = 0;
    while begun.elapsed() < FSYNC_TIME {
        file.write_all(&block)?;
        file.sync_data()?;
        done += 1;
    }
    let seconds = begun.elapsed().as_secs_f64();
    fs::remove_file(&path)?;
    Ok(count(done) / seconds)
}

fn sha256() -> f64 {
    let block = vec![0x5a; HASH_BYTES];
    let begun = Instant::now();
    let mut bytes = 0;
    while begun.elapsed() < HASH_TIME {
        std::hint::black_box(ring::digest::digest(&ring::digest::SHA256, &block));
        bytes += HASH_BYTES as u64;
    }
    count(bytes) / begun.elapsed().as_secs_f64() / 1e6
}
