//! Sockets that systemd has bound and passes (sd_listen_fds(3)), so that the daemon needs no privilege for low ports, and
//! those of `acme.listen`.

use std::net::{SocketAddr, TcpListener};

use anyhow::{Context as _, Result, anyhow};
use listenfd::ListenFd;

/// What `FileDescriptorName=` calls those of `samovar-acme.socket`.
const ACME: &str = "acme";

/// The sockets to answer an ACME authority at. Called once, before there are threads.
pub(super) fn acme(configured: &[SocketAddr]) -> Result<Vec<TcpListener>> {
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let names: Vec<&str> = names.split(':').collect();
    let mut passed = ListenFd::from_env();
    let mut listeners = Vec::new();
    for at in 0..passed.len() {
        let name = names.get(at).copied().unwrap_or_default();
        let socket = passed.take_tcp_listener(at).with_context(|| format!("socket {at} (`{name}`) that was passed"))?;
        match socket {
            Some(listener) if name == ACME => listeners.push(listener),
            _ => tracing::warn!("a socket `{name}` was passed, which this daemon has no use for: it takes `{ACME}`"),
        }
    }
    for address in configured {
        let bound = TcpListener::bind(address).map_err(|error| {
            anyhow!("cannot listen on {address}: {error}; see acme.listen, or use samovar-acme.socket")
        })?;
        listeners.push(bound);
    }
    Ok(listeners)
}
