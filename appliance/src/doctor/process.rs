//! What the kernel says of processes, locks and ports (proc(5)).

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::facts::AS_ROOT;
use super::{Fact, unseen};

/// State of a socket that listens, in `/proc/net/tcp`.
const LISTENS: &str = "0A";

/// The daemon's process.
pub(crate) struct Process {
    pub(crate) id: i32,
    /// The words it was started with.
    words: Vec<String>,
    directory: Option<PathBuf>,
    /// Its binary was replaced or removed since it started.
    pub(super) binary_gone: Option<bool>,
    /// Descriptors it may have, and has.
    pub(super) files: Option<(u64, u64)>,
}

/// Who holds a lock.
pub(super) struct Holder {
    pub(super) process: i32,
    pub(super) name: String,
}

impl Process {
    pub(super) fn look(id: i32) -> Fact<Self> {
        let directory = PathBuf::from(format!("/proc/{id}"));
        let Ok(words) = fs::read(directory.join("cmdline")) else {
            return unseen(format!("process {id} cannot be looked at"), AS_ROOT);
        };
        let limits = fs::read_to_string(directory.join("limits")).unwrap_or_default();
        let allowed = limits.lines().find_map(|l| l.strip_prefix("Max open files")?.split_whitespace().next());
        let allowed = allowed.map(|text| text.parse().unwrap_or(u64::MAX));
        let open = fs::read_dir(directory.join("fd")).ok().map(|entries| entries.count() as u64);
        let binary = fs::read_link(directory.join("exe")).ok();
        Ok(Self {
            id,
            words: words.split(|b| *b == 0).map(|w| String::from_utf8_lossy(w).into_owned()).collect(),
            directory: fs::read_link(directory.join("cwd")).ok(),
            binary_gone: binary.map(|path| path.to_string_lossy().ends_with(" (deleted)")),
            files: allowed.zip(open),
        })
    }

    /// The file it was told to read its configuration from.
    pub(super) fn config_file(&self) -> Option<PathBuf> {
        let named = self.words.iter().zip(self.words.iter().skip(1)).find_map(|(word, after)| {
            if word == "--config" { Some(after.as_str()) } else { after.strip_prefix("--config=") }
        })?;
        // An absolute one replaces the directory.
        Some(self.directory.as_deref().unwrap_or(Path::new("/")).join(named))
    }
}

/// Who holds a file's lock, read from the kernel's list: taking it ourselves could keep a daemon from starting.
pub(super) fn lock_holder(file: &Path) -> Fact<Option<Holder>> {
    let Ok(metadata) = fs::metadata(file) else {
        return unseen(format!("{} cannot be looked at", file.display()), AS_ROOT);
    };
    let device = (rustix::fs::major(metadata.dev()), rustix::fs::minor(metadata.dev()));
    let this = format!("{:02x}:{:02x}:{}", device.0, device.1, metadata.ino());
    let Ok(locks) = fs::read_to_string("/proc/locks") else {
        return unseen("the kernel's list of locks cannot be read", AS_ROOT);
    };
    // `1: FLOCK  ADVISORY  WRITE 1234 08:01:131090 0 EOF`; one that waits has `->` after the number.
    let process = locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        (words.get(1) == Some(&"FLOCK") && words.get(5) == Some(&this.as_str())).then(|| words[4].parse().ok())?
    });
    Ok(process.map(|process| Holder {
        process,
        name: fs::read_to_string(format!("/proc/{process}/comm")).map_or_else(|_| "?".into(), |n| n.trim().to_owned()),
    }))
}

/// Whether somebody listens at an address, or at all addresses on its port.
pub(super) fn is_taken(address: SocketAddr) -> Fact<bool> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(fs::read_to_string);
    if tables.iter().all(Result::is_err) {
        return unseen("the kernel's list of sockets cannot be read", "ss -ltn");
    }
    let listening = tables.iter().flatten().flat_map(|table| table.lines().filter_map(listening)).collect::<Vec<_>>();
    Ok(listening.into_iter().any(|taken| {
        let all = taken.ip().is_unspecified() || address.ip().is_unspecified();
        taken.port() == address.port() && (all || taken.ip() == address.ip())
    }))
}

/// The address of a row of `/proc/net/tcp` or `tcp6` if it listens. Addresses are words of 32 bits in the machine's order.
fn listening(row: &str) -> Option<SocketAddr> {
    let mut words = row.split_whitespace().skip(1);
    let (local, _, state) = (words.next()?, words.next()?, words.next()?);
    let (address, port) = local.split_once(':').filter(|_| state == LISTENS)?;
    let mut bytes = Vec::new();
    for at in (0..address.len()).step_by(8) {
        bytes.extend(u32::from_str_radix(address.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    }
    let ip = match bytes.len() {
        4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        _ => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)).to_canonical(),
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_of_both_families_are_found() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = std::net::TcpListener::bind(address).expect("loopback");
            let bound = listener.local_addr().expect("bound");
            assert!(is_taken(bound).expect("/proc is there"), "{bound} is taken");
            drop(listener);
            assert!(!is_taken(bound).expect("/proc is there"), "{bound} is free again");
        }
    }

    #[test]
    fn the_holder_of_a_lock_is_found_without_taking_it() {
        let file = tempfile::NamedTempFile::new_in("/var/tmp").expect("a file");
        assert!(lock_holder(file.path()).expect("seen").is_none(), "nobody holds it");
        rustix::fs::flock(file.as_file(), rustix::fs::FlockOperation::LockExclusive).expect("locked");
        let holder = lock_holder(file.path()).expect("seen").expect("this process holds it");
        assert_eq!(u32::try_from(holder.process), Ok(std::process::id()), "held by {}", holder.name);
    }
}
