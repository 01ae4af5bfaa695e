//! `samovar`: the ledger daemon and its command line in one binary.

use std::process::ExitCode;

use clap::Parser;

mod api;
mod auth;
mod bucket;
mod bundle;
mod cli;
mod client;
mod config;
mod confirm;
mod doctor;
mod durable;
mod export;
mod http;
mod import;
mod journal;
mod live;
mod metrics;
mod openapi;
mod output;
mod peers;
mod profile;
mod quota;
mod secrets;
mod serve;
mod tls;
mod tty;
mod update;

/// glibc's allocator keeps what the store's threads free, some 30 MB of it; this one gives it back. Its settings stand in
/// `.cargo/config.toml`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let format = cli.output;
    match cli::run(cli) {
        Ok(code) => code,
        Err(error) => cli::report(&error, format),
    }
}
