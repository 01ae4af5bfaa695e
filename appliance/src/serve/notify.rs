//! What systemd wants to know (`Type=notify`): one datagram to the socket that it named.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Tells systemd; without systemd nothing happens. A failure is worth a line, never the service.
pub(super) fn send(state: &str) {
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
