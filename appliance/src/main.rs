//! `samovar`: the ledger daemon and its command line in one binary.

use std::process::ExitCode;

use clap::Parser;

mod cli;
mod client;
mod config;
mod export;
mod import;
mod output;
mod serve;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let format = cli.output;
    match cli::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => cli::report(&error, format),
    }
}
