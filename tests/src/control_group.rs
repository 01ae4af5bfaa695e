//! Processes held to a part of a core and to so much memory, by control groups of either version.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The period in which CPU time is counted, in µs: the one that systemd's `CPUQuota` has.
const PERIOD_US: u64 = 100_000;
const ROOT: &str = "/sys/fs/cgroup";

/// What processes may take.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    /// CPU time, in percent of one core.
    pub cpu_percent: Option<u64>,
    /// Memory in bytes, with the page cache of the files that they write and read.
    pub memory_bytes: Option<u64>,
}

/// A control group. Removed when dropped; what runs in it must have ended.
pub struct ControlGroup {
    /// Its directories: in version 1 one for each controller.
    directories: Vec<PathBuf>,
}

/// Writes one of the files through which the kernel is told something.
fn tell(file: &Path, text: &str) -> io::Result<()> {
    fs::OpenOptions::new().write(true).open(file)?.write_all(text.as_bytes())
}

impl ControlGroup {
    /// A group with these limits; nothing if this machine has no controllers that we may use.
    #[must_use]
    pub fn create(name: &str, limits: Limits) -> Option<Self> {
        let mut group = Self { directories: Vec::new() };
        let name = format!("samovar-{name}-{}", std::process::id());
        if let Some(percent) = limits.cpu_percent {
            let quota = PERIOD_US * percent / 100;
            // The most weight that there is: the quota holds it back, and not what else the machine does.
            let v1 = [
                ("cpu.cfs_period_us", PERIOD_US.to_string()),
                ("cpu.cfs_quota_us", quota.to_string()),
                ("cpu.shares", "262144".to_owned()),
            ];
            let v2 = [("cpu.max", format!("{quota} {PERIOD_US}")), ("cpu.weight", "10000".to_owned())];
            group.limit("cpu", &name, &v1, &v2)?;
        }
        if let Some(bytes) = limits.memory_bytes {
            let bytes = bytes.to_string();
            group.limit("memory", &name, &[("memory.limit_in_bytes", bytes.clone())], &[("memory.max", bytes)])?;
        }
        Some(group)
    }

    /// Sets the limits of one controller, by the files of version 1 if it is mounted so.
    fn limit(&mut self, controller: &str, name: &str, v1: &[(&str, String)], v2: &[(&str, String)]) -> Option<()> {
        let (root, mounted) = (Path::new(ROOT), Path::new(ROOT).join(controller));
        let (parent, files) = if mounted.join("cgroup.procs").exists() { (&*mounted, v1) } else { (root, v2) };
        let directory = parent.join(name);
        if !self.directories.contains(&directory) {
            fs::create_dir(&directory).ok()?;
            self.directories.push(directory.clone());
        }
        for (file, value) in files {
            tell(&directory.join(file), value).ok()?;
        }
        Some(())
    }

    /// Moves a process that runs into the group.
    ///
    /// # Errors
    /// When the kernel does not let us.
    pub fn hold(&self, process: u32) -> io::Result<()> {
        self.directories.iter().try_for_each(|directory| tell(&directory.join("cgroup.procs"), &process.to_string()))
    }

    /// Words before a command that run it in the group from its first instruction on ([`crate::Settings::wrapper`]).
    #[must_use]
    pub fn wrapper(&self) -> Vec<String> {
        let moves = self.directories.iter().map(|d| format!("echo $$ > {}/cgroup.procs && ", d.display()));
        let script = moves.collect::<String>() + "exec \"$@\"";
        ["sh", "-c", &script, "sh"].map(str::to_owned).to_vec()
    }

    /// The figure on a line of one of its files, or the first one that it holds.
    fn figure(&self, file: &str, line: &str) -> Option<u64> {
        let text = self.directories.iter().find_map(|d| fs::read_to_string(d.join(file)).ok())?;
        text.lines().find_map(|l| l.strip_prefix(line)?.trim().parse().ok())
    }

    /// In how many periods the processes in it had to wait for the next one.
    #[must_use]
    pub fn throttled(&self) -> u64 {
        self.figure("cpu.stat", "nr_throttled ").unwrap_or(0)
    }

    /// How often they wanted more memory than they may have: each time something was taken away again, or they waited.
    #[must_use]
    pub fn memory_limited(&self) -> u64 {
        self.figure("memory.failcnt", "").or_else(|| self.figure("memory.events", "max ")).unwrap_or(0)
    }

    /// The most memory that they had, in bytes, page cache included.
    #[must_use]
    pub fn memory_most(&self) -> u64 {
        self.figure("memory.max_usage_in_bytes", "").or_else(|| self.figure("memory.peak", "")).unwrap_or(0)
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        for directory in &self.directories {
            let gone = (0..50).any(|_| {
                let removed = fs::remove_dir(directory).is_ok();
                if !removed {
                    std::thread::sleep(Duration::from_millis(20));
                }
                removed
            });
            if !gone {
                eprintln!("{} could not be removed", directory.display());
            }
        }
    }
}
