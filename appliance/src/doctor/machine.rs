//! The machine under the daemon: disk, memory, clock, journal.

use std::fs;
use std::path::Path;

use rustix::fs::StatVfsMountFlags;
use serde_json::Value;

use super::{Facts, Look, need, no, unseen, yes};
use crate::output;

/// Fewest free inodes: the ledger makes a file for each 64 MiB.
const INODES_MIN: u64 = 1000;
/// What the daemon takes beside its cache, in bytes: 36 MiB idle, 84 MiB under load, and some room.
const MEMORY_BASE_BYTES: u64 = 128 << 20;
/// How far the clock may be behind the newest block, in milliseconds.
const BEHIND_MS_MAX: u64 = 60_000;

/// Kinds of file system by their magic number (statfs(2)), and whether what was synced stays.
const FILE_SYSTEMS: [(u64, &str, Option<bool>); 13] = [
    (0xef53, "ext4", Some(true)),
    (0x5846_5342, "xfs", Some(true)),
    (0x9123_683e, "btrfs", Some(true)),
    (0x2fc1_2fc1, "zfs", Some(true)),
    (0xf2f5_2010, "f2fs", Some(true)),
    (0x0102_1994, "tmpfs", Some(false)),
    (0x8584_58f6, "ramfs", Some(false)),
    (0x6969, "nfs", Some(false)),
    (0xff53_4d42, "cifs", Some(false)),
    (0xfe53_4d42, "smb2", Some(false)),
    (0x0102_1997, "9p", Some(false)),
    (0x6573_5546, "fuse", None),
    (0x794c_7630, "overlay", None),
];

pub(super) fn disk(facts: &Facts) -> Look {
    let reserve = facts.configured()?.reserve_bytes;
    let Ok(room) = rustix::fs::statvfs(&facts.data) else {
        return unseen("the file system does not say how much is free", format!("df {}", facts.data.display()));
    };
    let free = room.f_bavail * room.f_frsize;
    let shown = format!("{} free, {} of it kept in reserve", output::size(free), output::size(reserve));
    if free > reserve {
        return yes(shown);
    }
    let next = "Make room or enlarge the file system; writes come back by themselves";
    no(format!("{shown}: writes are refused"), format!("{next}: du -xh --max-depth=1 {}", facts.data.display()))
}

pub(super) fn inodes(facts: &Facts) -> Look {
    let Ok(room) = rustix::fs::statvfs(&facts.data) else {
        return unseen("the file system does not say", format!("df -i {}", facts.data.display()));
    };
    match (room.f_files, room.f_favail) {
        (0, _) => yes("this file system has no fixed number of files"),
        (_, free) if free >= INODES_MIN => yes(format!("{free} more files fit")),
        (_, free) => no(
            format!("only {free} more files fit"),
            format!("Remove small files, or make the file system with more inodes: df -i {}", facts.data.display()),
        ),
    }
}

pub(super) fn file_system(facts: &Facts) -> Look {
    let looked = rustix::fs::statfs(&facts.data).and_then(|kind| Ok((kind, rustix::fs::statvfs(&facts.data)?)));
    let Ok((kind, mount)) = looked else {
        return unseen("the file system does not say what it is", format!("findmnt -T {}", facts.data.display()));
    };
    let elsewhere = "Stop the daemon and move the data directory to a local disk (ext4 or xfs)";
    if mount.f_flag.contains(StatVfsMountFlags::RDONLY) {
        let path = facts.data.display();
        return no(
            "it is mounted read-only",
            format!("journalctl -k says why; then: mount -o remount,rw $(findmnt -nT {path} -o TARGET)"),
        );
    }
    // The kernel's type is signed on some machines; the numbers have 32 bits on all.
    let magic = u64::try_from(kind.f_type & 0xffff_ffff).unwrap_or(0);
    let Some((_, name, keeps)) = FILE_SYSTEMS.iter().find(|row| row.0 == magic) else {
        return unseen(format!("file system {magic:#x} is not known here"), elsewhere);
    };
    match keeps {
        None => unseen(format!("{name}: what lies below cannot be seen"), elsewhere),
        Some(false) => no(format!("{name} does not keep what was synced as a local disk does"), elsewhere),
        Some(true) => match mount_options(&facts.data) {
            Some(options) if options.split(',').any(|o| o == "nobarrier" || o == "barrier=0") => no(
                format!("{name}, mounted without barriers: a power cut can take what was acknowledged"),
                "Remove nobarrier and barrier=0 from /etc/fstab and mount it again",
            ),
            Some(_) => yes(format!("{name}, a local disk")),
            None => unseen(format!("{name}, but its mount options cannot be seen"), "findmnt"),
        },
    }
}

/// Options of the file system of a path (proc(5), mountinfo): the deepest mount point above it counts, of those the last.
fn mount_options(path: &Path) -> Option<String> {
    let path = path.canonicalize().ok()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let above = mounts.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let point = before.split(' ').nth(4)?.replace("\\040", " ");
        path.starts_with(&point).then(|| (point.len(), after.split(' ').nth(2).unwrap_or("").to_owned()))
    });
    above.max_by_key(|(depth, _)| *depth).map(|(_, options)| options)
}

/// Memory that the daemon should be able to have, in bytes.
pub(super) fn memory_wanted(facts: &Facts) -> Result<u64, super::Unseen> {
    Ok(MEMORY_BASE_BYTES + 2 * facts.configured()?.cache_bytes)
}

/// A line of `/proc/meminfo`, in bytes.
pub(crate) fn memory_bytes(name: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let kib: u64 =
        text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':')?.split_whitespace().next()?.parse().ok())?;
    Some(kib * 1024)
}

pub(super) fn memory(facts: &Facts) -> Look {
    let wanted = memory_wanted(facts)?;
    let (Some(total), Some(available)) = (memory_bytes("MemTotal"), memory_bytes("MemAvailable")) else {
        return unseen("the kernel does not say", "free -m");
    };
    let cap = need(&facts.unit)?.as_ref().and_then(|unit| unit.memory_max(total));
    if let Some((cap, file)) = cap.filter(|(cap, _)| *cap < wanted) {
        return no(
            format!("MemoryMax= in {file} allows {}, it wants {}", output::size(cap), output::size(wanted)),
            "Raise it (systemctl edit samovar), or lower store.cache",
        );
    }
    // A running daemon has its share already.
    if available < wanted && need(&facts.daemon)?.is_none() {
        return no(
            format!("{} available, it wants {}", output::size(available), output::size(wanted)),
            "Stop other programs, or lower store.cache: ps --sort=-rss -eo rss,comm | head",
        );
    }
    yes(format!("{} available of {}", output::size(available), output::size(total)))
}

pub(super) fn clock(facts: &Facts) -> Look {
    let set = "Get a time source to work (timedatectl set-ntp true; timedatectl timesync-status)";
    let Some(daemon) = need(&facts.daemon)? else {
        return match need(&facts.synchronised)? {
            true => yes("synchronised; the ledger's own time is known when the daemon runs"),
            false => no("no time source synchronises it", set),
        };
    };
    let status = need(&daemon.status)?;
    let clock = status.get("clock").cloned().unwrap_or_default();
    let (Some(doubted), Some(synchronised)) = (clock["doubted"].as_bool(), clock["synchronised"].as_bool()) else {
        return unseen("its status says nothing of the clock", "samovar status --output json");
    };
    if doubted {
        return no("the daemon does not believe it", format!("{set}, or if it is right: samovar clock accept"));
    }
    if !synchronised {
        return no("no time source synchronises it", set);
    }
    let (wall, block) = (clock["wall_ms"].as_u64(), status.get("block_time_ms").and_then(Value::as_u64));
    if let Some(behind) = wall.zip(block).map(|(wall, block)| block.saturating_sub(wall)).filter(|b| *b > BEHIND_MS_MAX)
    {
        return no(format!("it is {} behind the newest block", output::span(behind)), set);
    }
    match &facts.synchronised {
        Ok(_) => yes("synchronised, and believed"),
        Err(_) => yes("believed; it is the host's, which does not say whether it is synchronised"),
    }
}

pub(super) fn journal(facts: &Facts) -> Look {
    let storage = journald_storage(&facts.root);
    let at = |path: &str| facts.root.join(path).is_dir();
    let keep = "mkdir -p /var/log/journal && systemctl restart systemd-journald";
    match storage.as_deref() {
        Some(mode @ ("volatile" | "none")) => no(
            format!("journald.conf says Storage={mode}"),
            "Set Storage=persistent there: systemctl restart systemd-journald",
        ),
        Some("persistent") => yes("Storage=persistent"),
        _ if at("var/log/journal") => yes("it is kept in /var/log/journal"),
        _ if at("run/log/journal") => no("it is in memory only (/run/log/journal)", keep),
        _ => unseen("there is no journal here", "Keep what the daemon writes to standard error"),
    }
}

/// `Storage=` as the last file sets it (journald.conf(5)).
fn journald_storage(root: &Path) -> Option<String> {
    let mut files = vec![root.join("etc/systemd/journald.conf")];
    let mut drop_ins: Vec<_> = ["usr/lib", "run", "etc"]
        .iter()
        .filter_map(|place| fs::read_dir(root.join(place).join("systemd/journald.conf.d")).ok())
        .flat_map(|entries| entries.filter_map(|e| Some(e.ok()?.path())))
        .filter(|path| path.extension().is_some_and(|e| e == "conf"))
        .collect();
    drop_ins.sort_unstable_by_key(|path| path.file_name().map(ToOwned::to_owned));
    files.extend(drop_ins);
    let texts = files.iter().filter_map(|file| fs::read_to_string(file).ok());
    texts
        .flat_map(|text| {
            text.lines()
                .filter_map(|l| l.trim().strip_prefix("Storage=").map(|v| v.trim().to_lowercase()))
                .collect::<Vec<_>>()
        })
        .last()
}
