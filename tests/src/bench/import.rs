//! `samovar import` of generated rows.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::ops::Range;
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Result, bail};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};

use super::load::count;
use crate::Daemon;

/// Random bytes of a row, written in hex: with the key field its JSON is 255 bytes long.
const ROW_BYTES: usize = 113;

/// Imports rows under the keys that the generator asks for; returns rows per second.
pub(super) async fn rows(daemon: &Daemon, directory: &Path, rows: Range<u64>) -> Result<f64> {
    let path = directory.join("rows.csv");
    write_csv(&path, rows.clone())?;
    let mut command = daemon.command(&["import"])?;
    command.arg(&path).args(["--prefix", "bench/", "--key", "id"]).stdin(Stdio::null());
    let begun = Instant::now();
    let output = command.output()?;
    let seconds = begun.elapsed().as_secs_f64();
    if !output.status.success() {
        bail!("samovar import: {}", String::from_utf8_lossy(&output.stderr));
    }
    fs::remove_file(&path)?;
    let keys = daemon.client().await?.get("/v1/status").await?.json()?["keys"].as_u64().unwrap_or(0);
    if keys < rows.end {
        bail!("after the import there are {keys} keys, {} were expected", rows.end);
    }
    Ok(count(rows.end - rows.start) / seconds)
}

fn write_csv(path: &Path, rows: Range<u64>) -> Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    let mut random = StdRng::seed_from_u64(rows.start);
    let mut bytes = [0; ROW_BYTES];
    let mut hex = String::with_capacity(2 * ROW_BYTES);
    writeln!(file, "id,data")?;
    for n in rows {
        random.fill_bytes(&mut bytes);
        hex.clear();
        for byte in bytes {
            hex.push(char::from(b"0123456789abcdef"[usize::from(byte >> 4)]));
            hex.push(char::from(b"0123456789abcdef"[usize::from(byte & 15)]));
        }
        writeln!(file, "{n:010},{hex}")?;
    }
    file.into_inner()?.sync_all()?;
    Ok(())
}
