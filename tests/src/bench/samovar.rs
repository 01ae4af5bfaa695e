//! The daemon as the benchmark asks for it.

use std::fs;

use anyhow::{Context as _, Result};

use super::load::Endpoint;
use super::wire;
use crate::{Daemon, Settings};

pub(super) fn settings() -> Settings {
    Settings::unbounded()
}

pub(super) fn endpoint(daemon: &Daemon) -> Result<Endpoint> {
    let token = fs::read_to_string(daemon.token())?.trim().to_owned();
    Ok(Endpoint { port: daemon.port(), tls: Some(wire::connector(&daemon.data().join("ca.pem"))?), token: Some(token) })
}

pub(super) fn id(daemon: &Daemon) -> Result<u32> {
    daemon.id().context("the daemon does not run")
}
