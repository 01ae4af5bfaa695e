//! The commands: their definitions, from which help, completions, manual pages and reference are made, and the way from
//! arguments to exit code.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use serde_json::json;

use crate::bundle::SupportBundle;
use crate::client;
use crate::confirm::Confirm;
use crate::doctor::Doctor;
use crate::export::Export;
use crate::import::Import;
use crate::output::{self, Format};
use crate::secrets::KekFiles;
use crate::serve::{Made, init};
use crate::tty::Console;

mod api_key;
mod blob;
mod clock;
mod finalize;
mod kek;
mod keys;
mod log_level;
mod manual;
mod node;
mod proofs;
mod ready;
mod recover;
mod rotate;
mod secret;
mod status;
mod update;
mod user;
mod watch;

pub(crate) use proofs::log_key;
pub(crate) use status::log_size;

/// Refused or failed.
const EXIT_FAILED: u8 = 1;
/// The command was called wrongly.
const EXIT_USAGE: u8 = 2;
/// The node cannot be reached.
const EXIT_UNREACHABLE: u8 = 3;

/// A ledger that proves what it says: daemon and command line
///
/// Client commands find the node through --url, --ca and --token-file, or SAMOVAR_URL, SAMOVAR_CA and
/// SAMOVAR_TOKEN_FILE, or a data directory on this machine (--data, SAMOVAR_DATA).
///
/// Exit codes: 0 done, 1 refused or failed, 2 usage, 3 cannot reach the node.
#[derive(Debug, Parser)]
#[command(name = "samovar", version, max_term_width = 100)]
pub(crate) struct Cli {
    /// How results are printed
    #[arg(long, global = true, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    pub(crate) output: Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the data directory of a new ledger: keys, certificates, first API key
    Init {
        /// Data directory; must be empty or not exist
        #[arg(long, value_name = "DIR", env = "SAMOVAR_DATA", hide_env_values = true)]
        data: PathBuf,
        /// Name of the node [default: the machine's]
        #[arg(long, value_name = "NODE")]
        name: Option<String>,
        /// Address of the API [default: 0.0.0.0:8443]
        #[arg(long, value_name = "ADDR:PORT")]
        listen: Option<SocketAddr>,
        /// More names and addresses of its certificate, as `tls.names`
        #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
        tls_names: Vec<String>,
        /// Key-encryption key under which the private keys are sealed [default: the credential samovar.kek, if there is one]
        #[arg(long, value_name = "FILE")]
        kek: Option<PathBuf>,
    },
    /// Run the daemon
    Serve {
        /// Configuration file [default: /etc/samovar/samovar.toml, if it exists]
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Data directory, instead of the configured one
        #[arg(long, value_name = "DIR", env = "SAMOVAR_DATA", hide_env_values = true)]
        data: Option<PathBuf>,
    },
    /// Run a ledger for development in one process; prints its URL, certificate and token file
    Dev {
        /// Nodes of the ledger
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=5))]
        nodes: u8,
        /// Data directory, kept when the process ends [default: samovar-dev]
        #[arg(long, value_name = "DIR")]
        data: Option<PathBuf>,
    },
    Join(node::Join),
    /// The nodes of the cluster: list them, take them in and out
    #[command(subcommand)]
    Node(node::Node),
    /// The permit to go down, which one node at a time may have
    #[command(subcommand)]
    Permit(node::Permit),
    Finalize(finalize::Finalize),
    Recover(recover::Recover),
    /// Look at configuration files
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Show how the node is
    Status(status::Status),
    Ready(ready::Ready),
    Doctor(Doctor),
    SupportBundle(SupportBundle),
    /// Set a key to the content of a file or of standard input
    Put(keys::Put),
    /// Print the value of a key
    Get(keys::Get),
    /// Delete a key; its history stays
    Delete(keys::Delete),
    /// Large values: files of up to 4 GiB, named by their content
    #[command(subcommand)]
    Blob(blob::Blob),
    /// List every revision of a key, newest first
    History(keys::History),
    /// List keys in byte order
    Keys(keys::Keys),
    /// Destroy one value for good, everywhere; every proof still verifies
    Erase(keys::Erase),
    /// Print changes as they happen, one JSON value a line
    Watch(watch::Watch),
    Import(Import),
    /// Print the receipt of a transaction
    Receipt(proofs::Receipt),
    /// Print a proof of a key's latest value, or of its absence
    Prove(proofs::Prove),
    /// Verify a receipt or proof, offline
    Verify(proofs::Verify),
    /// Users: people and service accounts, their passwords, sessions and certificates
    #[command(subcommand)]
    User(user::User),
    /// Make, list, disable and revoke API keys
    #[command(subcommand)]
    ApiKey(api_key::ApiKey),
    /// The key-encryption key under which private keys lie sealed
    #[command(subcommand)]
    Kek(kek::Kek),
    /// Replace secrets of the ledger by new ones
    #[command(subcommand)]
    Rotate(rotate::Rotate),
    /// Say that a clock is right which the node does not believe
    #[command(subcommand)]
    Clock(clock::Clock),
    LogLevel(log_level::LogLevel),
    Export(Export),
    /// Updates of the appliance
    #[command(subcommand)]
    Update(update::Update),
    Confirm(Confirm),
    Console(Console),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write manual pages, one for each command
    Man {
        /// Directory, made when it is missing
        dir: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Check a configuration file and name what is wrong by line
    Check {
        /// The file
        #[arg(default_value = "/etc/samovar/samovar.toml")]
        file: PathBuf,
    },
}

/// The command was called wrongly in a way that only shows beyond the parser.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

/// Runs a command.
pub(crate) fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let format = cli.output;
    let done = match cli.command {
        Command::Init { data, name, listen, tls_names, kek } => {
            let kek = KekFiles { current: kek, old: None }.or_credentials();
            let shown = crate::serve::Shown { listen, names: tls_names };
            init(&data, name.as_deref(), &shown, &kek).and_then(|made| announce(&made, &data, format))
        }
        Command::Serve { config, data } => crate::serve::serve(crate::serve::Source { file: config, data }),
        Command::Dev { nodes, data } => crate::serve::dev(nodes, data),
        Command::Config(ConfigCommand::Check { file }) => {
            crate::config::Config::load(Some(&file), None)?;
            match format {
                Format::Text => Ok(output::text(&format!("{}: good\n", file.display()))?),
                Format::Json => Ok(output::json(&json!({ "file": file, "good": true }))?),
            }
        }
        Command::Kek(command) => kek::run(&command, format),
        Command::Verify(verify) => proofs::verify(&verify, format),
        Command::Recover(recover) => recover::run(&recover, format),
        Command::Completions { shell } => manual::completions(shell),
        Command::Man { dir } => manual::man_pages(&dir),
        client => return online(client, format),
    };
    done.map(|()| ExitCode::SUCCESS)
}

/// Says where the files of a new ledger are that its clients need; never what is in them.
fn announce(made: &Made, data: &Path, format: Format) -> anyhow::Result<()> {
    match format {
        Format::Text => output::text(&format!(
            "ca     {}\ntoken  {}\nvkey   {}\nnext   samovar serve --data {}\n",
            made.ca.display(),
            made.token.display(),
            made.vkey.display(),
            data.display()
        ))?,
        Format::Json => output::json(&json!({ "ca": made.ca, "token": made.token, "vkey": made.vkey }))?,
    }
    Ok(())
}

/// Runs a command that talks to a node.
fn online(command: Command, format: Format) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match command {
            Command::Confirm(c) => crate::confirm::run(&c, format).await,
            other => client_command(other, format).await.map(|()| ExitCode::SUCCESS),
        }
    })
}

async fn client_command(command: Command, format: Format) -> anyhow::Result<()> {
    match command {
        Command::Join(c) => node::join(&c, format).await,
        Command::Node(c) => node::run(&c, format).await,
        Command::Permit(c) => node::permit(&c, format).await,
        Command::Finalize(c) => finalize::run(&c, format).await,
        Command::Status(c) => status::run(&c, format).await,
        Command::Ready(c) => ready::run(&c, format).await,
        Command::Doctor(c) => crate::doctor::run(&c, format).await,
        Command::SupportBundle(c) => crate::bundle::run(&c, format).await,
        Command::Put(c) => keys::put(&c, format).await,
        Command::Get(c) => keys::get(&c, format).await,
        Command::Delete(c) => keys::delete(&c, format).await,
        Command::Blob(c) => blob::run(&c, format).await,
        Command::History(c) => keys::history(&c, format).await,
        Command::Keys(c) => keys::keys(&c, format).await,
        Command::Erase(c) => keys::erase(&c, format).await,
        Command::Watch(c) => watch::run(&c).await,
        Command::Import(c) => crate::import::run(&c, format).await,
        Command::Receipt(c) => proofs::receipt(&c).await,
        Command::Prove(c) => proofs::prove(&c).await,
        Command::User(c) => user::run(&c, format).await,
        Command::ApiKey(c) => api_key::run(&c, format).await,
        Command::Rotate(c) => rotate::run(&c, format).await,
        Command::Clock(c) => clock::run(&c, format).await,
        Command::LogLevel(c) => log_level::run(&c, format).await,
        Command::Export(c) => crate::export::run(&c, format).await,
        Command::Update(c) => update::run(&c, format).await,
        Command::Console(c) => crate::tty::run(&c).await,
        Command::Init { .. }
        | Command::Serve { .. }
        | Command::Dev { .. }
        | Command::Config(_)
        | Command::Kek(_)
        | Command::Verify(_)
        | Command::Recover(_)
        | Command::Confirm(_)
        | Command::Completions { .. }
        | Command::Man { .. } => unreachable!("these were run already"),
    }
}

/// Prints the error with its causes to standard error and says how the process ends.
pub(crate) fn report(error: &anyhow::Error, format: Format) -> ExitCode {
    let code = exit_code(error);
    if code == 0 {
        return ExitCode::SUCCESS;
    }
    match format {
        Format::Text => output::note(&format!("samovar: {error:#}")),
        Format::Json => {
            let problem = client_error(error).and_then(|e| match e {
                client::Error::Refused(problem) => Some(problem.document.clone()),
                _ => None,
            });
            output::note(&json!({ "error": format!("{error:#}"), "exit_code": code, "problem": problem }).to_string());
        }
    }
    ExitCode::from(code)
}

/// The exit code of an error; 0 for a broken pipe, whose reader has seen enough.
pub(crate) fn exit_code(error: &anyhow::Error) -> u8 {
    let broken_pipe = |e: &io::Error| e.kind() == io::ErrorKind::BrokenPipe;
    if error.chain().any(|cause| cause.downcast_ref::<io::Error>().is_some_and(broken_pipe)) {
        return 0;
    }
    if error.chain().any(|cause| cause.is::<Usage>()) {
        return EXIT_USAGE;
    }
    match client_error(error) {
        Some(client::Error::Usage(_)) => EXIT_USAGE,
        Some(client::Error::Unreachable { .. } | client::Error::Unknown { .. }) => EXIT_UNREACHABLE,
        Some(client::Error::Setup(_) | client::Error::Refused(_) | client::Error::Protocol(_)) | None => EXIT_FAILED,
    }
}

fn client_error(error: &anyhow::Error) -> Option<&client::Error> {
    error.chain().find_map(|cause| cause.downcast_ref())
}

#[cfg(test)]
mod tests;
