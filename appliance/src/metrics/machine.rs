//! Figures of this process and of the machine under it, read from the system at each scrape.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use sysinfo::{MemoryRefreshKind, Networks, Pid, ProcessRefreshKind, ProcessesToUpdate, System};

/// Shortest time over which the CPU's busy share is taken. Whoever scrapes oftener gets the same figure again, so that
/// a second reader does not shorten the window of the first.
const CPU_WINDOW: Duration = Duration::from_secs(5);

/// What is kept from one look to the next.
pub(super) struct Machine {
    /// Data directory, whose file system is reported.
    data: PathBuf,
    /// Locked for one look, a fraction of a millisecond.
    looks: Mutex<Looks>,
}

struct Looks {
    system: System,
    networks: Networks,
    cpu_at: Instant,
    cpu_ratio: Option<f64>,
}

/// One look.
#[derive(Debug, Default)]
pub(super) struct Figures {
    /// Busy share of all CPUs, 0 to 1; nothing before the first [`CPU_WINDOW`] is over.
    pub(super) cpu_ratio: Option<f64>,
    pub(super) cpus: usize,
    pub(super) load1: f64,
    pub(super) memory_bytes: u64,
    pub(super) memory_available_bytes: u64,
    pub(super) network_received_bytes: u64,
    pub(super) network_sent_bytes: u64,
    /// Size of the file system of the data directory.
    pub(super) filesystem_bytes: Option<u64>,
    pub(super) process: Option<Process>,
}

/// This process.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) cpu_seconds: f64,
    pub(super) resident_bytes: u64,
    pub(super) virtual_bytes: u64,
    /// Seconds since 1970.
    pub(super) started: u64,
    pub(super) open_files: Option<usize>,
    pub(super) open_files_max: Option<usize>,
}

impl Machine {
    pub(super) fn new(data: &Path) -> Self {
        let mut system = System::new();
        system.refresh_cpu_usage();
        let looks = Looks { system, networks: Networks::new(), cpu_at: Instant::now(), cpu_ratio: None };
        Self { data: data.to_owned(), looks: Mutex::new(looks) }
    }

    pub(super) fn look(&self) -> Figures {
        let mut looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        let Looks { system, networks, cpu_at, cpu_ratio } = &mut *looks;
        if cpu_at.elapsed() >= CPU_WINDOW {
            system.refresh_cpu_usage();
            (*cpu_at, *cpu_ratio) = (Instant::now(), Some(f64::from(system.global_cpu_usage()) / 100.0));
        }
        system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
        networks.refresh(true);
        let outside = || networks.iter().filter(|(name, _)| *name != "lo").map(|(_, data)| data);
        Figures {
            cpu_ratio: *cpu_ratio,
            cpus: system.cpus().len(),
            load1: System::load_average().one,
            memory_bytes: system.total_memory(),
            memory_available_bytes: system.available_memory(),
            network_received_bytes: outside().map(sysinfo::NetworkData::total_received).sum(),
            network_sent_bytes: outside().map(sysinfo::NetworkData::total_transmitted).sum(),
            // Not sysinfo's list of disks, which asks every mount: one dead network mount would hold the scrape.
            filesystem_bytes: rustix::fs::statvfs(&self.data).ok().map(|fs| fs.f_blocks * fs.f_frsize),
            process: this_process(system),
        }
    }
}

fn this_process(system: &mut System) -> Option<Process> {
    let id = Pid::from_u32(std::process::id());
    let what = ProcessRefreshKind::nothing().with_cpu().with_memory().without_tasks();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[id]), false, what);
    let process = system.process(id)?;
    Some(Process {
        cpu_seconds: Duration::from_millis(process.accumulated_cpu_time()).as_secs_f64(),
        resident_bytes: process.memory(),
        virtual_bytes: process.virtual_memory(),
        started: process.start_time(),
        open_files: process.open_files(),
        open_files_max: process.open_files_limit(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_found_and_grows() {
        let machine = Machine::new(Path::new("/"));
        let first = machine.look();
        let before = first.process.expect("this process is in /proc");
        let held: Vec<_> = (0..50).map(|_| std::fs::File::open("/dev/null").expect("opened")).collect();
        let spun = Instant::now();
        while spun.elapsed() < Duration::from_millis(150) {
            std::hint::spin_loop();
        }
        let after = machine.look().process.expect("this process is in /proc");
        assert!(after.cpu_seconds > before.cpu_seconds, "150 ms of work: {before:?} to {after:?}");
        assert!(after.open_files >= before.open_files.map(|n| n + 40), "{} files: {before:?} to {after:?}", held.len());
        assert!(after.resident_bytes > 1 << 20 && after.virtual_bytes >= after.resident_bytes, "{after:?}");
        assert!((0..=first.memory_bytes).contains(&first.memory_available_bytes) && first.cpus > 0, "memory and CPUs");
        assert!(first.filesystem_bytes.is_some_and(|n| n > 0), "the root file system has a size");
        assert_eq!(first.cpu_ratio, None, "no busy share before a window is over");
    }
}
