//! Stands in for the daemon until it is joined to the command line.

use std::path::{Path, PathBuf};

use crate::config::Config;

/// Runs the daemon.
pub(crate) fn serve(_config: Config) -> anyhow::Result<()> {
    anyhow::bail!("the daemon is not joined yet")
}

/// Makes a data directory.
pub(crate) fn init(_data: &Path, _name: Option<&str>, _listen: Option<std::net::SocketAddr>) -> anyhow::Result<()> {
    anyhow::bail!("the daemon is not joined yet")
}

/// Runs a ledger for development.
pub(crate) fn dev(_nodes: u8, _data: Option<PathBuf>) -> anyhow::Result<()> {
    anyhow::bail!("the daemon is not joined yet")
}
