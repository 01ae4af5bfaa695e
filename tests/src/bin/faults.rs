//! `tests/faults` builds and runs this in namespaces of its own; it is of no use by itself.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use samovar_tests::faults::{self, Settings};

const USAGE: &str = "usage: tests/faults [--may-skip] [--stalls] NODES SECONDS [SEED]";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("faults: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut words = std::env::args().skip(1).peekable();
    let stalls = words.next_if(|word| word == "--stalls").is_some();
    let mut number = |what: &str| -> Result<Option<u64>> {
        words
            .next()
            .map(|word| word.parse().with_context(|| format!("{what} {word} is no number; {USAGE}")))
            .transpose()
    };
    let nodes = number("NODES")?.context(USAGE)?;
    let seconds = number("SECONDS")?.context(USAGE)?;
    let seed = number("SEED")?.unwrap_or_else(|| u64::from(rand::random::<u32>()));
    ensure!((1..=9).contains(&nodes), "1 to 9 nodes; {USAGE}");
    let again = format!("tests/faults {}{nodes} {seconds} {seed}", if stalls { "--stalls " } else { "" });
    println!("the same schedule again: {again}");
    let parent = std::env::var_os("SAMOVAR_FAULTS_DIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
    let scratch = tempfile::Builder::new().prefix("samovar-faults-").tempdir_in(parent)?;
    let settings = Settings {
        seed,
        nodes: usize::try_from(nodes)?,
        duration: Duration::from_secs(seconds),
        stalls,
        directory: scratch.path().to_owned(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match runtime.block_on(faults::run(&settings)) {
        Ok(line) => {
            println!("{line}");
            Ok(())
        }
        Err(error) => {
            let kept = scratch.keep();
            Err(error.context(format!(
                "{again} went wrong; faults.txt, history.jsonl, journals (node-*.log) and disks (disk-*.img) are in {}",
                kept.display()
            )))
        }
    }
}
