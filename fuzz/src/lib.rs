//! Fuzzing of decoders on stable Rust, as ordinary tests.
//!
//! A target is a test beside its decoder that calls [`decoder`] with good inputs and a property. First every good input
//! and every file under `fuzz/corpus/NAME/` is tried as it is, then mutations of them: bolero chooses what to change, so
//! a failure is made small and printed with the seed that repeats it. An input that once failed is kept as a file there.
//!
//! What chance does not find stands in [`forge`]: proof files changed on purpose.
//!
//! Each target runs two seconds, or as many as `SAMOVAR_FUZZ_SECONDS` says: `tests/fuzz` runs all of them long.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub mod forge;

/// How long a target runs when nothing else is said.
const SECONDS_DEFAULT: u64 = 2;
/// Longest input that mutation makes, in bytes.
const INPUT_BYTES_MAX: usize = 128 << 10;
/// Most that the process may reserve while a target runs: a decoder that trusts a length field of 32 bits takes more.
/// Other tests of the same process count too, so it is generous.
const MEMORY_GROWTH_KIB_MAX: u64 = 1 << 20;
/// What decoders give a meaning of their own.
const TOKENS: &[&[u8]] = &[
    b"\0",
    b"\xff\xff\xff\xff",
    b"\x80",
    b"\n",
    b"\r\n",
    b"\n\n",
    b"\"",
    b"\\u0000",
    b"\\ud800",
    b"[",
    b"]",
    b"{",
    b"}",
    b",",
    b":",
    b"null",
    b"-1",
    b"0",
    b"00",
    b"1e999",
    b"18446744073709551616",
    b"9223372036854775808",
    b"=",
    b"==",
    b"+",
    b"/",
    b".p/",
    b"x001/",
    b"%",
    b"%00",
    b"%C0%AF",
    b"\xe2\x80\x94 ",
    b"\xc3",
    b"\xef\xbb\xbf",
    b" ",
    b"\t",
    b"#",
    b"~",
    b"entries/",
];

/// One change of an input: what, where, and how much.
type Change = (u8, u16, u16);

/// Runs `property` on the seeds, the kept corpus and mutations of both, until the time is over. The property panics
/// when it does not hold.
///
/// # Panics
/// When a kept file cannot be read, or memory is not bounded.
pub fn decoder(name: &str, seeds: &[Vec<u8>], property: impl Fn(&[u8]) + std::panic::RefUnwindSafe) {
    let mut corpus = seeds.to_vec();
    corpus.extend(kept(&Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name)));
    assert!(!corpus.is_empty(), "the target {name} has no seed to begin with");
    corpus.iter().for_each(|input| property(input));

    let (began, peak_kib) = (Instant::now(), peak_kib());
    let tried = std::cell::Cell::new(corpus.len() as u64);
    let count = std::panic::AssertUnwindSafe(&tried);
    bolero::check!(name = name).with_test_time(time()).with_type::<(u16, Vec<Change>)>().for_each(
        |(which, changes)| {
            count.set(count.get() + 1);
            property(&mutate(&corpus, *which, changes));
        },
    );
    let grown_kib = self::peak_kib().saturating_sub(peak_kib);
    println!("fuzz {name}: {} inputs in {:?}, memory + {grown_kib} KiB", tried.get(), began.elapsed());
    assert!(
        grown_kib < MEMORY_GROWTH_KIB_MAX,
        "expected memory to stay bounded, but the process grew by {grown_kib} KiB: does {name} trust a length field?"
    );
}

fn time() -> Duration {
    let seconds = std::env::var("SAMOVAR_FUZZ_SECONDS").ok().and_then(|s| s.parse().ok());
    Duration::from_secs(seconds.unwrap_or(SECONDS_DEFAULT))
}

/// The files of a directory, in the order of their names; none when there is none.
fn kept(directory: &Path) -> Vec<Vec<u8>> {
    let Ok(files) = fs::read_dir(directory) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = files.filter_map(|f| f.ok().map(|f| f.path())).collect();
    paths.sort();
    let read = |path: &PathBuf| fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    paths.iter().map(read).collect()
}

/// A member of the corpus with some changes; none, when there are no changes.
fn mutate(corpus: &[Vec<u8>], which: u16, changes: &[Change]) -> Vec<u8> {
    let pick = |n: u16| &corpus[usize::from(n) % corpus.len()];
    let mut input = pick(which).clone();
    for (what, place, amount) in changes {
        let at = usize::from(*place) % (input.len() + 1);
        let upto = input.len().min(at + 1 + usize::from(amount % 64));
        let [low, high] = amount.to_le_bytes();
        match what % 10 {
            0 if at < input.len() => input[at] ^= 1 << (low % 8),
            1 if at < input.len() => input[at] = high,
            2 => input.insert(at, high),
            3 => drop(input.drain(at..upto)),
            4 => {
                let piece = input[at..upto].to_vec();
                input.splice(at..at, piece);
            }
            5 => input.truncate(at),
            6 => drop(input.splice(at..at, TOKENS[usize::from(*amount) % TOKENS.len()].iter().copied())),
            7 => drop(input.splice(at..upto, TOKENS[usize::from(high) % TOKENS.len()].iter().copied())),
            8 => {
                let other = pick(*amount);
                input.splice(at.., other[at.min(other.len())..].iter().copied());
            }
            _ => {
                let times = 1 + usize::from(high);
                let piece = input[at..upto].repeat(times);
                input.splice(at..at, piece);
            }
        }
        input.truncate(INPUT_BYTES_MAX);
    }
    input
}

/// Most memory that the process ever had reserved.
fn peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmPeak:")).unwrap_or("0");
    line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
}
