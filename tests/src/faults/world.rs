//! The nodes, each with a disk and a line of its own, and the hand that does to them what the schedule says.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::process::Signal;

use super::aftermath::Auditor;
use super::clients::Ledger;
use super::network::{self, CLIENTS, Cut, Slow, address, run};
use super::schedule::{Fault, Kind, Target};
use crate::durability::Image;
use crate::{Daemon, Settings, cluster};

/// Disk of a node, of which only what is written takes room.
const DISK_BYTES: u64 = 4 << 30;
/// Requests are in the history, not in the journal.
const JOURNAL: &str = "[journal]\naccess = false\n";
/// Between two stand-stills of a slow disk.
const DISK_MOVES: Duration = Duration::from_millis(30);
/// How long a process that ended by itself stays away, as under systemd.
const RESTART: Duration = Duration::from_secs(1);
/// After the start of a node before the next is stopped, in a rolling restart.
const SETTLE: Duration = Duration::from_secs(2);
/// After a disk was full, how long the end of its process may still be caused by that, if it says so.
const FULL_LINGERS: Duration = Duration::from_secs(60);
const FULL_WORDS: &str = "No space left on device";
/// Last lines of a journal in which that is looked for.
const LAST_WORDS: usize = 2_000;
/// No place: nobody is known to lead.
const NOBODY: usize = usize::MAX;

/// One node. Locks are taken for as long as a fault lasts, and only one of each kind by one fault unless it takes all, in order.
struct Node {
    daemon: Mutex<Daemon>,
    line: Mutex<()>,
    disk: Mutex<Image>,
    /// When its disk was full last.
    full: Mutex<Option<Instant>>,
}

impl Node {
    /// What is told of a process that has ended, and should not have, or not so.
    fn last_words(&self, place: usize, daemon: &Daemon, status: ExitStatus) -> Ended {
        let journal = daemon.log();
        let last: Vec<&str> = journal.lines().rev().take(LAST_WORDS).collect();
        let full_lately = lock(&self.full).is_some_and(|last| last.elapsed() < FULL_LINGERS);
        let disk_full = full_lately && last.iter().any(|line| line.contains(FULL_WORDS));
        let words: Vec<&str> = last.into_iter().take(3).rev().collect();
        Ended { how: format!("node {}, {status}: {}", place + 1, words.join(" | ")), disk_full }
    }
}

/// A process that ended and was told by nobody to.
#[derive(Debug, Clone)]
pub(super) struct Ended {
    /// Which node, and how, with its last words.
    pub(super) how: String,
    /// Whether its disk was full then.
    pub(super) disk_full: bool,
}

/// The nodes and their network.
pub(super) struct World {
    nodes: Vec<Node>,
    leader: AtomicUsize,
    counts: Mutex<BTreeMap<&'static str, u64>>,
    ended: Mutex<Vec<Ended>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Network, disks and so many nodes, all of which vote; what an auditor has from before there was a second one, and what
/// clients have.
///
/// # Errors
/// When something of it cannot be made.
pub(super) async fn build(directory: &Path, count: usize) -> Result<(Arc<World>, Auditor, Arc<Ledger>)> {
    network::build(count)?;
    let (mut disks, mut places) = (Vec::new(), Vec::new());
    for place in 0..count {
        let disk = Image::create(directory, &format!("disk-{}", place + 1), DISK_BYTES)?;
        let data = disk.path().join("data");
        fs::create_dir(&data)?;
        fs::set_permissions(&data, fs::Permissions::from_mode(0o700))?;
        // Configuration and journal lie beside the link, and so not on the disk that gets full.
        let link = directory.join(format!("node-{}", place + 1));
        symlink(&data, &link)?;
        let settings =
            Settings { host: Some(address(place)), wrapper: network::within(place), toml: JOURNAL.to_owned() };
        disks.push(disk);
        places.push((link, settings));
    }
    let (data, own) = places.remove(0);
    let mut daemons = vec![cluster::alone(&data, own).await?];
    let auditor = Auditor::begin(&daemons[0]).await?;
    cluster::grow(&mut daemons, places).await?;
    let addresses = daemons.iter().map(Daemon::address).collect();
    let token = fs::read_to_string(daemons[0].token())?.trim().to_owned();
    let ledger = Ledger::new(addresses, daemons[0].data().join("ca.pem"), token);
    let nodes = daemons.into_iter().zip(disks).map(|(daemon, disk)| Node {
        daemon: Mutex::new(daemon),
        line: Mutex::default(),
        disk: Mutex::new(disk),
        full: Mutex::default(),
    });
    let world = World {
        nodes: nodes.collect(),
        leader: AtomicUsize::new(NOBODY),
        counts: Mutex::default(),
        ended: Mutex::default(),
    };
    Ok((Arc::new(world), auditor, ledger))
}

impl World {
    /// What is known of who leads.
    pub(super) fn leads(&self, place: usize) {
        self.leader.store(place, Relaxed);
    }

    /// How often each fault came.
    pub(super) fn counts(&self) -> BTreeMap<&'static str, u64> {
        lock(&self.counts).clone()
    }

    /// Processes that ended by themselves.
    pub(super) fn ended(&self) -> Vec<Ended> {
        lock(&self.ended).clone()
    }

    /// The nodes and their disks, when all faults are over.
    pub(super) fn into_nodes(self) -> (Vec<Daemon>, Vec<Image>) {
        let parts = self.nodes.into_iter().map(|node| {
            let daemon = node.daemon.into_inner().unwrap_or_else(PoisonError::into_inner);
            (daemon, node.disk.into_inner().unwrap_or_else(PoisonError::into_inner))
        });
        parts.unzip()
    }

    /// Does what a row of the schedule says, and lets `tell` know.
    ///
    /// # Errors
    /// When a fault cannot be made, or a node does not stop as it should.
    pub(super) fn act(&self, row: &[Fault], tell: impl Fn(&Fault)) -> Result<()> {
        for fault in row {
            sleep(fault.after);
            tell(fault);
            *lock(&self.counts).entry(name(fault.kind)).or_default() += 1;
            self.suffer(fault).with_context(|| format!("{fault}"))?;
        }
        Ok(())
    }

    /// Starts again what ends by itself, as systemd does, until it is told to end.
    ///
    /// # Errors
    /// When a process cannot be started.
    pub(super) fn supervise(&self, over: &AtomicBool) -> Result<()> {
        while !over.load(Relaxed) {
            sleep(Duration::from_millis(100));
            for (place, node) in self.nodes.iter().enumerate() {
                let Ok(mut daemon) = node.daemon.try_lock() else { continue };
                let Some(status) = daemon.ended()? else { continue };
                lock(&self.ended).push(node.last_words(place, &daemon, status));
                sleep(RESTART);
                daemon.spawn()?;
            }
        }
        Ok(())
    }

    fn place(&self, target: Target) -> usize {
        match target {
            Target::Place(place) => place,
            Target::Leader(other) => Some(self.leader.load(Relaxed)).filter(|p| *p < self.nodes.len()).unwrap_or(other),
        }
    }

    fn suffer(&self, fault: &Fault) -> Result<()> {
        let all = || 0..self.nodes.len();
        match fault.kind {
            Kind::Kill(target) => {
                let mut daemon = lock(&self.nodes[self.place(target)].daemon);
                daemon.kill()?;
                sleep(fault.lasts);
                daemon.spawn()
            }
            Kind::KillAll => {
                let mut daemons: Vec<_> = self.nodes.iter().map(|node| lock(&node.daemon)).collect();
                daemons.iter_mut().try_for_each(|daemon| daemon.kill())?;
                sleep(fault.lasts);
                daemons.iter_mut().try_for_each(|daemon| daemon.spawn())
            }
            Kind::Pause(target) => {
                let daemon = lock(&self.nodes[self.place(target)].daemon);
                daemon.signal(Signal::STOP)?;
                sleep(fault.lasts);
                daemon.signal(Signal::CONT)
            }
            Kind::RollingRestart => {
                for (place, node) in self.nodes.iter().enumerate() {
                    let mut daemon = lock(&node.daemon);
                    let ended = daemon.terminate()?;
                    let badly =
                        |status: &ExitStatus| !status.success() && status.signal() != Some(Signal::TERM.as_raw());
                    if let Some(status) = ended.filter(badly) {
                        lock(&self.ended).push(node.last_words(place, &daemon, status));
                    }
                    daemon.spawn()?;
                    drop(daemon);
                    sleep(SETTLE);
                }
                Ok(())
            }
            Kind::Isolate(target) => self.cut(fault.lasts, &both_ways(self.place(target), all()), &[], Cut::all),
            Kind::Unplug(target) => {
                let place = self.place(target);
                self.cut(fault.lasts, &both_ways(place, all()), &[(CLIENTS, place)], Cut::all)
            }
            Kind::OneWay(target, to) => self.cut(fault.lasts, &[(self.place(target), to)], &[], Cut::all),
            Kind::Mute(target) => {
                let from = self.place(target);
                self.cut(fault.lasts, &all().map(|to| (from, to)).collect::<Vec<_>>(), &[], Cut::all)
            }
            Kind::Split(below) => {
                let pairs: Vec<_> = (0..below)
                    .flat_map(|one| (below..self.nodes.len()).flat_map(move |other| [(one, other), (other, one)]))
                    .collect();
                self.cut(fault.lasts, &pairs, &[], Cut::all)
            }
            Kind::Lossy(target, percent) => {
                let make = |from, to| Cut::percent(from, to, percent);
                self.cut(fault.lasts, &both_ways(self.place(target), all()), &[], make)
            }
            Kind::SlowLine(target, kbit) => {
                let place = self.place(target);
                let _line = lock(&self.nodes[place].line);
                let _slow = Slow::new(place, kbit)?;
                sleep(fault.lasts);
                Ok(())
            }
            Kind::SlowDisk(target, most_ms) => {
                slow_disk(lock(&self.nodes[self.place(target)].disk).path(), most_ms, fault.lasts)
            }
            Kind::StalledDisk(target) => {
                let disk = lock(&self.nodes[self.place(target)].disk);
                let path = disk.path().to_string_lossy().into_owned();
                run(&["fsfreeze", "--freeze", &path])?;
                sleep(fault.lasts);
                run(&["fsfreeze", "--unfreeze", &path])
            }
            Kind::FullDisk(target, left_mib) => {
                let node = &self.nodes[self.place(target)];
                let disk = lock(&node.disk);
                let ballast = disk.path().join("ballast");
                fill(&ballast, left_mib << 20)?;
                let begun = Instant::now();
                while begun.elapsed() < fault.lasts {
                    *lock(&node.full) = Some(Instant::now());
                    sleep(Duration::from_millis(50).min(fault.lasts));
                }
                Ok(fs::remove_file(&ballast)?)
            }
        }
    }

    fn cut(
        &self,
        lasts: Duration,
        pairs: &[(usize, usize)],
        outside: &[(Ipv4Addr, usize)],
        make: impl Fn(Ipv4Addr, usize) -> Result<Cut>,
    ) -> Result<()> {
        let inside = pairs.iter().filter(|(from, to)| from != to).map(|(from, to)| (address(*from), *to));
        let _cuts =
            inside.chain(outside.iter().copied()).map(|(from, to)| make(from, to)).collect::<Result<Vec<_>>>()?;
        sleep(lasts);
        Ok(())
    }
}

fn both_ways(place: usize, all: std::ops::Range<usize>) -> Vec<(usize, usize)> {
    all.flat_map(|other| [(place, other), (other, place)]).collect()
}

fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Kill(_) => "kill -9",
        Kind::KillAll => "kill -9 of all",
        Kind::Pause(_) => "SIGSTOP",
        Kind::Isolate(_) => "isolated",
        Kind::Unplug(_) => "unplugged",
        Kind::OneWay(..) => "one-way cut",
        Kind::Mute(_) => "mute",
        Kind::Split(_) => "split",
        Kind::Lossy(..) => "packet loss",
        Kind::SlowLine(..) => "slow line",
        Kind::SlowDisk(..) => "slow disk",
        Kind::StalledDisk(_) => "stalled disk",
        Kind::FullDisk(..) => "full disk",
        Kind::RollingRestart => "rolling restart",
    }
}

/// Writes to a frozen file system wait, as they do at a disk that does not answer.
fn slow_disk(path: &Path, most_ms: u64, lasts: Duration) -> Result<()> {
    let (begun, path) = (Instant::now(), path.to_string_lossy().into_owned());
    // Longer and longer ones, in turn: nothing is drawn while it runs.
    for turn in 1.. {
        if begun.elapsed() >= lasts {
            break;
        }
        run(&["fsfreeze", "--freeze", &path])?;
        sleep(Duration::from_millis(most_ms * (turn % 4 + 1) / 4).min(lasts));
        run(&["fsfreeze", "--unfreeze", &path])?;
        sleep(DISK_MOVES);
    }
    Ok(())
}

/// Takes all room but so many bytes.
fn fill(ballast: &Path, left_bytes: u64) -> Result<()> {
    let file = fs::File::create(ballast)?;
    let free = rustix::fs::fstatvfs(&file)?;
    let bytes = (free.f_bavail * free.f_frsize).saturating_sub(left_bytes);
    // What the file system needs for itself, or a node took meanwhile, is not to be had: then less.
    for bytes in [bytes, bytes.saturating_sub(1 << 20), bytes.saturating_sub(8 << 20)] {
        match fallocate(&file, FallocateFlags::empty(), 0, bytes) {
            Err(rustix::io::Errno::NOSPC) => {}
            done => return done.context("filling a disk"),
        }
    }
    Ok(())
}
