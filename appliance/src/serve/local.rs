//! The node's Unix socket: how root and the daemon's own user ask it without any token.

use std::path::Path;

use tokio::net::UnixListener;

/// Name of the socket in the data directory, which only its owner and root may enter.
pub(crate) const SOCKET_FILE: &str = "samovar.sock";

/// Listens. Without the socket the daemon serves all the same: a path that is too long for one must not keep it down.
pub(super) fn bind(data: &Path) -> Option<UnixListener> {
    let path = data.join(SOCKET_FILE);
    // Left by a process that was killed: this one has the directory's lock, so nobody listens there.
    let _ = std::fs::remove_file(&path);
    UnixListener::bind(&path)
        .map_err(|error| tracing::warn!(%error, "no Unix socket at {}: commands here need a token", path.display()))
        .ok()
}

/// Takes the socket away at the stop.
pub(super) fn remove(data: &Path) {
    let _ = std::fs::remove_file(data.join(SOCKET_FILE));
}
