//! What the kernel says of a process: CPU time, memory; and how to make it hold still.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};

/// Ticks per second in `/proc/PID/stat`: 100 on every Linux that this runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// What the thread that a process began with is called here.
pub(super) const FIRST_THREAD: &str = "(first)";

/// CPU time of a process since its start, in seconds.
#[derive(Debug, Clone, Default)]
pub(super) struct Cpu {
    pub(super) total: f64,
    /// By name of the thread, of those alive.
    pub(super) threads: BTreeMap<String, f64>,
}

impl Cpu {
    pub(super) fn of(pid: u32) -> Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name, in parentheses, may hold anything; fields are counted behind it: 14 and 15 are utime and stime.
        let (_, fields) = stat.rsplit_once(") ").context("/proc/PID/stat without a name")?;
        let fields: Vec<&str> = fields.split(' ').collect();
        let ticks: f64 =
            fields.get(11..13).context("/proc/PID/stat is short")?.iter().flat_map(|f| f.parse::<f64>()).sum();
        let mut threads = BTreeMap::new();
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let path = task?.path();
            let (Ok(name), Ok(time)) =
                (fs::read_to_string(path.join("comm")), fs::read_to_string(path.join("schedstat")))
            else {
                continue; // It ended meanwhile.
            };
            // The first thread is named as the binary's file is, which may be any name.
            let first = path.file_name().is_some_and(|tid| tid.to_string_lossy() == pid.to_string());
            let name = if first { FIRST_THREAD } else { name.trim() };
            let ns: f64 = time.split(' ').next().unwrap_or("0").parse()?;
            *threads.entry(name.to_owned()).or_default() += ns / 1e9;
        }
        Ok(Self { total: ticks / TICKS_PER_SECOND, threads })
    }

    pub(super) fn since(&self, before: &Self) -> Self {
        let earlier = |name: &String| before.threads.get(name).copied().unwrap_or(0.0);
        let threads = self.threads.iter().map(|(name, s)| (name.clone(), (s - earlier(name)).max(0.0))).collect();
        Self { total: self.total - before.total, threads }
    }
}

/// Resident memory in MiB: now, and the most since start.
pub(super) fn memory_mib(pid: u32) -> Result<(f64, f64)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| -> Result<f64> {
        let line = status.lines().find_map(|l| l.strip_prefix(name)).with_context(|| format!("no {name}"))?;
        Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
    };
    Ok((field("VmRSS:")?, field("VmHWM:")?))
}

/// A process that is stopped (SIGSTOP) until this is dropped: while one server is measured, nobody pays for what the
/// others do in the background.
pub(super) struct Frozen(Pid);

impl Frozen {
    pub(super) fn new(pid: u32) -> Result<Self> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("not a process id")?;
        kill_process(pid, Signal::STOP)?;
        Ok(Self(pid))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // If it is gone there is nothing to wake.
        let _ = kill_process(self.0, Signal::CONT);
    }
}
