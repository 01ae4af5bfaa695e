//! What systemd wants to know (`Type=notify-reload`): datagrams to the socket that it named (sd_notify(3)). Without systemd
//! nothing happens.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// How much longer than now a start or stop may take, each time it is told.
pub(super) const EXTENSION: Duration = Duration::from_secs(30);

/// The daemon serves.
pub(super) fn ready(status: &str) {
    send(&format!("READY=1\nSTATUS={status}"));
}

/// A reload begins; [`ready`] ends it.
pub(super) fn reloading() {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let micros = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1000;
    send(&format!("RELOADING=1\nMONOTONIC_USEC={micros}\nSTATUS=Reading the configuration again"));
}

/// The daemon stops.
pub(super) fn stopping(status: &str) {
    send(&format!("STOPPING=1\nSTATUS={status}"));
}

/// What the daemon is doing, for people.
pub(super) fn status(status: &str) {
    send(&format!("STATUS={status}"));
}

/// What the daemon is doing, and that it must be given [`EXTENSION`] more.
pub(super) fn still(status: &str) {
    send(&format!("EXTEND_TIMEOUT_USEC={}\nSTATUS={status}", EXTENSION.as_micros()));
}

/// Every part of the daemon works.
pub(super) fn alive(status: &str) {
    send(&format!("WATCHDOG=1\nSTATUS={status}"));
}

/// How long systemd waits for [`alive`] before it ends the process; `None`: it does not.
pub(super) fn watchdog() -> Option<Duration> {
    let variable = |name| std::env::var(name).ok();
    let for_us = variable("WATCHDOG_PID").is_none_or(|pid| pid == std::process::id().to_string());
    let micros: u64 = variable("WATCHDOG_USEC")?.parse().ok()?;
    (for_us && micros > 0).then(|| Duration::from_micros(micros))
}

/// A failure is worth a line, never the service.
fn send(state: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET").filter(|s| !s.is_empty()) else { return };
    let sent = address(socket.as_bytes()).and_then(|a| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &a));
    if let Err(error) = sent {
        tracing::warn!(%error, "systemd could not be told: {state}");
    }
}

fn address(socket: &[u8]) -> std::io::Result<SocketAddr> {
    match socket.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(socket)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_sockets_are_reached() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("notify");
        let name = format!("@samovar-test-{}", std::process::id());
        for socket in [path.as_os_str().as_bytes(), name.as_bytes()] {
            let address = address(socket).expect("an address");
            let receiver = UnixDatagram::bind_addr(&address).expect("bound");
            UnixDatagram::unbound().expect("a socket").send_to_addr(b"READY=1", &address).expect("sent");
            let mut buffer = [0; 16];
            let n = receiver.recv(&mut buffer).expect("received");
            assert_eq!(&buffer[..n], b"READY=1");
        }
    }
}
