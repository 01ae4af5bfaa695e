//! `tests/bench` builds and runs this; it is of no use by itself.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use samovar_tests::bench::{self, Settings};

/// A ratio fell short.
const EXIT_SHORT: u8 = 1;
/// Nothing was measured, or not so that it counts.
const EXIT_FAILED: u8 = 2;

fn main() -> ExitCode {
    match run() {
        Ok(0) => ExitCode::SUCCESS,
        Ok(short) => {
            eprintln!("bench: {short} ratios fell short, see the last table");
            ExitCode::from(EXIT_SHORT)
        }
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::from(EXIT_FAILED)
        }
    }
}

fn run() -> Result<usize> {
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    let quick = words.first().is_some_and(|w| w == "quick");
    words.drain(..usize::from(quick));
    if let Some(unknown) =
        words.iter().find(|w| !["compare", "cluster", "puts", "growth", "size"].contains(&w.as_str()))
    {
        bail!("unknown word {unknown}; usage: tests/bench [quick] [compare] [cluster] [puts] [growth] [size]");
    }
    let parent = std::env::var_os("SAMOVAR_BENCH_DIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
    let scratch = tempfile::Builder::new().prefix("samovar-bench-").tempdir_in(parent)?;
    let seed = match std::env::var("SAMOVAR_BENCH_SEED") {
        Ok(seed) => seed.parse()?,
        Err(_) => rand::random(),
    };
    eprintln!("seed {seed} (SAMOVAR_BENCH_SEED={seed} draws the same keys and values again)");
    let directory = scratch.path().to_owned();
    let settings = if quick { Settings::quick(directory, seed) } else { Settings::full(directory, seed) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(bench::run(&settings, &words))
}
