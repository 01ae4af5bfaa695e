//! `samovar kek`: the key-encryption key under which the private keys of a data directory lie sealed.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use samovar_node::seal::Seal;
use serde_json::json;

use crate::output::{self, Format};
use crate::secrets::{new_kek, read_kek};
use crate::serve;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Kek {
    /// Make a key-encryption key
    ///
    /// The file must not exist; it gets mode 0600. With `-` the key goes to standard output, for systemd-creds to encrypt. Keep
    /// a copy where the data directory is not: without the key the private keys cannot be read by anybody.
    New {
        /// File to write, or `-`
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Bring every private key of a data directory under a key-encryption key
    ///
    /// The daemon must be stopped; it does the same at every start. What lies in the clear is sealed, and with --old what lies
    /// under the key before is brought under the new one. May be cut off and run again. Afterwards give the daemon the new
    /// key: it refuses to start with another.
    Seal {
        /// Data directory
        #[arg(long, value_name = "DIR", env = "SAMOVAR_DATA", hide_env_values = true)]
        data: PathBuf,
        /// File with the key
        #[arg(long, value_name = "FILE")]
        kek: PathBuf,
        /// File with the key before it
        #[arg(long, value_name = "FILE")]
        old: Option<PathBuf>,
    },
    /// Put every private key of a data directory into the clear again
    ///
    /// The daemon must be stopped, and started without a key-encryption key afterwards.
    Unseal {
        /// Data directory
        #[arg(long, value_name = "DIR", env = "SAMOVAR_DATA", hide_env_values = true)]
        data: PathBuf,
        /// File with the key
        #[arg(long, value_name = "FILE")]
        kek: PathBuf,
    },
}

pub(super) fn run(command: &Kek, format: Format) -> Result<()> {
    match command {
        Kek::New { file } => new(file),
        Kek::Seal { data, kek, old } => {
            let old = old.as_deref().map(|old| read_kek(old, data)).transpose()?;
            settle(data, Seal::new(Some(read_kek(kek, data)?), old), format)
        }
        Kek::Unseal { data, kek } => settle(data, Seal::new(None, Some(read_kek(kek, data)?)), format),
    }
}

fn new(path: &Path) -> Result<()> {
    if path.as_os_str() == "-" {
        return Ok(output::text(&new_kek())?);
    }
    let make = || -> std::io::Result<()> {
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(new_kek().as_bytes())?;
        file.sync_all()
    };
    make().with_context(|| format!("making {}", path.display()))
}

fn settle(data: &Path, seal: Seal, format: Format) -> Result<()> {
    let kek = seal.kek_id().map(str::to_owned);
    let files = serve::settle(data, seal)?;
    match (format, &kek) {
        (Format::Json, _) => output::json(&json!({ "kek": kek, "files": files }))?,
        (Format::Text, Some(kek)) => {
            output::text(&format!("{} files were brought under the key-encryption key {kek}\n", files.len()))?;
        }
        (Format::Text, None) => output::text(&format!("{} files lie in the clear again\n", files.len()))?,
    }
    Ok(())
}
