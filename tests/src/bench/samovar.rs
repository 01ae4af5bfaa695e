//! The daemon as the benchmark asks for it.

use std::fs;

use anyhow::{Context as _, Result};

use super::load::Endpoint;
use super::wire;
use crate::{Daemon, Settings};

/// One client asks as often as it can, which is not what limits are for; they are counted all the same.
pub(super) fn settings() -> Settings {
    let most = "\"1000000/1s\"";
    let keys = ["api", "api_per_address", "upload", "upload_per_address"];
    let lines: String = keys.iter().map(|key| format!("{key} = {most}\n")).collect();
    Settings { toml: format!("[limits]\n{lines}"), ..Settings::default() }
}

pub(super) fn endpoint(daemon: &Daemon) -> Result<Endpoint> {
    let token = fs::read_to_string(daemon.token())?.trim().to_owned();
    Ok(Endpoint { port: daemon.port(), tls: Some(wire::connector(&daemon.data().join("ca.pem"))?), token: Some(token) })
}

pub(super) fn id(daemon: &Daemon) -> Result<u32> {
    daemon.id().context("the daemon does not run")
}
