//! Many worlds: fresh ones in every run of the tests, and a campaign over seeds in a row, in several sittings.
//!
//! `tests/worlds` calls these with what it was asked for in the environment:
//! `SAMOVAR_SEED` one world, `SAMOVAR_SEEDS` so many fresh ones, `SAMOVAR_THREADS` so many at a time;
//! `SAMOVAR_CAMPAIGN` the file of what ran, `SAMOVAR_CAMPAIGN_SECONDS` how long to go on, `SAMOVAR_COMMIT` of what.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rand::Rng;

use super::chaos::{self, Report, Shape, Wrong};

/// Fresh worlds in every run of the tests, unless told otherwise.
const FRESH: u64 = 12;
/// Worlds of a campaign that run before the file is written.
const BATCH: u64 = 100;
/// One of so many worlds of a campaign runs twice, and must repeat.
const TWICE: u64 = 100;

fn told<T: std::str::FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is not what was expected: {text:?}")))
}

/// Runs the world of a seed; a panic counts as going wrong.
fn run(seed: u64, traced: bool) -> Result<Report, Wrong> {
    let ran = catch_unwind(AssertUnwindSafe(|| chaos::run(seed, Shape::of(seed), traced)));
    ran.unwrap_or_else(|panic| Err((format!("a panic: {}", crate::store::panic_text(&panic)), Vec::new())))
}

/// Runs it twice: whether it repeats.
fn run_twice(seed: u64) -> Result<Report, Wrong> {
    let (first, second) = (run(seed, true)?, run(seed, true)?);
    let differs = first.trace.iter().zip(&second.trace).position(|(a, b)| a != b);
    if differs.is_some() || first.trace.len() != second.trace.len() {
        let of = |report: &Report| differs.map(|n| report.trace[n].clone());
        let what = format!("it does not repeat from event {differs:?} on: {:?} and {:?}", of(&first), of(&second));
        return Err((what, first.trace));
    }
    Ok(first)
}

/// Tells of a world that went wrong, with the command that repeats it.
fn tell(seed: u64, (violation, trace): Wrong) -> String {
    // Once more, for the trace.
    let (trace, again) = match trace.is_empty() {
        true => run(seed, true).map_or_else(|(violation, trace)| (trace, violation), |r| (r.trace, "nothing".into())),
        false => (trace, violation.clone()),
    };
    let path = std::env::temp_dir().join(format!("samovar-trace-{seed}"));
    write_lines(&path, trace.iter().map(String::as_str));
    let repeats = if again == violation { String::new() } else { format!("\nrun again, it says: {again}") };
    let what = format!(
        "{:?}, seed {seed}: {violation}{repeats}\nthe trace: {}\nagain: tests/worlds seed {seed}",
        Shape::of(seed),
        path.display()
    );
    println!("{what}");
    what
}

fn write_lines<'a>(path: &Path, lines: impl Iterator<Item = &'a str>) {
    use std::io::Write as _;
    let fresh = path.with_extension("new");
    let mut file = std::io::BufWriter::new(std::fs::File::create(&fresh).unwrap());
    for line in lines {
        writeln!(file, "{line}").unwrap();
    }
    file.into_inner().unwrap();
    std::fs::rename(fresh, path).unwrap();
}

/// Runs worlds, some at a time, in no order.
fn run_all(seeds: &[u64], twice: impl Fn(u64) -> bool + Sync) -> Vec<(u64, Result<Report, Wrong>)> {
    let (left, done) = (Mutex::new(seeds.to_vec()), Mutex::new(Vec::new()));
    let work = || {
        while let Some(seed) = { left.lock().unwrap().pop() } {
            let ran = if twice(seed) { run_twice(seed) } else { run(seed, false) };
            done.lock().unwrap().push((seed, ran));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..told("SAMOVAR_THREADS").unwrap_or(1) {
            scope.spawn(work);
        }
    });
    done.into_inner().unwrap()
}

#[test]
fn worlds_lose_nothing_and_repeat_from_their_seed() {
    let fresh = |_| rand::thread_rng().gen_range(0..1 << 48);
    let seeds: Vec<u64> = match told("SAMOVAR_SEED") {
        Some(seed) => vec![seed],
        None => (0..told("SAMOVAR_SEEDS").unwrap_or(FRESH)).map(fresh).collect(),
    };
    let begun = Instant::now();
    let twice = seeds.iter().copied().take(2).collect::<Vec<_>>();
    let (mut totals, mut wrong, mut short): (BTreeMap<&str, u64>, _, _) = (BTreeMap::new(), Vec::new(), 0);
    for (seed, ran) in run_all(&seeds, |seed| twice.contains(&seed)) {
        match ran {
            Ok(report) => {
                short += u64::from(!report.is_full());
                report.counts.into_iter().for_each(|(what, count)| *totals.entry(what).or_default() += count);
            }
            Err(violation) => wrong.push(tell(seed, violation)),
        }
    }
    println!("{} worlds in {:?}, {short} short of what is asked of one: {totals:?}", seeds.len(), begun.elapsed());
    assert!(wrong.is_empty(), "{} of {} worlds went wrong:\n{}", wrong.len(), seeds.len(), wrong.join("\n"));
}

/// What worlds of seeds in a row did: a line of the file.
#[derive(Debug, Default, PartialEq, Eq)]
struct Range {
    commit: String,
    first: u64,
    worlds: u64,
    /// Of all of them, by column.
    totals: [u64; COUNTED.len()],
    /// Worlds that were shorter or emptier than asked for.
    short: u64,
    /// Seeds of worlds that went wrong.
    wrong: Vec<u64>,
}

/// Columns of totals: virtual seconds, then what worlds counted under that name.
const COUNTED: [&str; 9] =
    ["virtual_s", "writes", "reads", "unknown", "faults", "crashes", "elections", "snapshots", "messages"];

fn header() -> String {
    ["commit", "first", "worlds"].into_iter().chain(COUNTED).chain(["short", "wrong"]).collect::<Vec<_>>().join("\t")
}

impl Range {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split('\t');
        let commit = fields.next()?.to_owned();
        let mut number = || fields.next()?.parse::<u64>().ok();
        let (first, worlds, mut totals) = (number()?, number()?, [0; COUNTED.len()]);
        for total in &mut totals {
            *total = number()?;
        }
        let short = number()?;
        let wrong = match fields.next()? {
            "-" => Vec::new(),
            seeds => seeds.split(',').map(|seed| seed.parse().ok()).collect::<Option<_>>()?,
        };
        Some(Self { commit, first, worlds, totals, short, wrong })
    }

    fn to_line(&self) -> String {
        let wrong: Vec<_> = self.wrong.iter().map(u64::to_string).collect();
        let numbers = [self.first, self.worlds].into_iter().chain(self.totals).chain([self.short]);
        let mut fields = vec![self.commit.clone()];
        fields.extend(numbers.map(|n| n.to_string()));
        fields.push(if wrong.is_empty() { "-".into() } else { wrong.join(",") });
        fields.join("\t")
    }

    /// Takes in a world of the seed after those.
    fn add(&mut self, seed: u64, ran: &Result<Report, Wrong>) {
        self.worlds += 1;
        match ran {
            Ok(report) => {
                self.short += u64::from(!report.is_full());
                for (total, what) in self.totals.iter_mut().zip(COUNTED) {
                    *total += if what == "virtual_s" { report.lasted.as_secs() } else { report.count(what) };
                }
            }
            Err(_) => self.wrong.push(seed),
        }
    }
}

/// What ran so far; an empty file is made.
fn read_ranges(path: &Path) -> Vec<Range> {
    let Ok(text) = std::fs::read_to_string(path) else { return Vec::new() };
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some(header().as_str()), "columns of {}", path.display());
    lines.map(|line| Range::parse(line).unwrap_or_else(|| panic!("{}: {line:?}", path.display()))).collect()
}

#[test]
#[ignore = "as long as it is told: tests/worlds campaign"]
fn campaign() {
    let path: PathBuf = told("SAMOVAR_CAMPAIGN").expect("SAMOVAR_CAMPAIGN names the file of what ran");
    let seconds = told("SAMOVAR_CAMPAIGN_SECONDS").expect("SAMOVAR_CAMPAIGN_SECONDS says how long to go on");
    let commit: String = told("SAMOVAR_COMMIT").expect("SAMOVAR_COMMIT says what is run");
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut ranges = read_ranges(&path);
    let mut wrong = Vec::new();
    while Instant::now() < until {
        let first = ranges.iter().map(|range| range.first + range.worlds).max().unwrap_or(0);
        if ranges.last().is_none_or(|last| last.commit != commit || last.first + last.worlds != first) {
            ranges.push(Range { commit: commit.clone(), first, ..Range::default() });
        }
        let seeds: Vec<u64> = (first..first + BATCH).collect();
        let mut done = run_all(&seeds, |seed| seed % TWICE == 0);
        done.sort_by_key(|(seed, _)| *seed);
        let range = ranges.last_mut().unwrap();
        for (seed, ran) in done {
            range.add(seed, &ran);
            wrong.extend(ran.err().map(|violation| tell(seed, violation)));
        }
        let lines: Vec<String> = [header()].into_iter().chain(ranges.iter().map(Range::to_line)).collect();
        write_lines(&path, lines.iter().map(String::as_str));
    }
    assert!(wrong.is_empty(), "{} worlds went wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn the_file_of_a_campaign_is_read_as_it_was_written() {
    let mut range = Range { commit: "abc".into(), first: 100, ..Range::default() };
    range.add(100, &Err(("lost".into(), Vec::new())));
    let counts = BTreeMap::from([("writes", 250), ("faults", 7), ("unheard of", 3)]);
    range.add(101, &Ok(Report { trace: Vec::new(), counts: counts.clone(), lasted: Duration::from_secs(21) }));
    range.add(102, &Ok(Report { trace: Vec::new(), counts, lasted: Duration::from_secs(19) }));
    assert_eq!((range.worlds, range.short, range.wrong.as_slice()), (3, 1, [100].as_slice()));
    assert_eq!(range.totals[..2], [40, 500], "virtual seconds and writes");
    assert_eq!(Range::parse(&range.to_line()), Some(range));
    assert_eq!(Range::parse("abc\t1\t2"), None);
}
