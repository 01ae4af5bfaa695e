//! The key-encryption key at the start of the daemon, and the entry that says which one it is.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use samovar_node::seal::Seal;
use samovar_node::{Node, rt};

use super::directory::DataDirectory;
use crate::auth::{SEALS, SealRow, commit};
use crate::config::Config;
use crate::secrets::Secrets;

/// Author of the entry.
const AUTHOR: &str = "sealing";
/// Pause before it is tried again: it needs a quorum and room.
const RETRY_PAUSE: Duration = Duration::from_secs(10);

/// The secret files of the configured data directory, each brought under the key-encryption key in force. Called with the
/// directory's lock, before anything reads one of them.
pub(super) fn open(config: &Config) -> Result<Secrets> {
    let secrets = Secrets::new(&config.data, config.kek.or_credentials().read(&config.data)?);
    let sealed = secrets.settle()?;
    if let Some(kek) = secrets.seal().kek_id().filter(|_| !sealed.is_empty()) {
        tracing::info!(kek, files = sealed.join(" "), "secret files were sealed under this key-encryption key");
    }
    Ok(secrets)
}

/// Makes the entry of a change of the key-encryption key, unless the newest one names the one in force.
pub(super) async fn record(node: Node, secrets: Secrets) {
    let kek = secrets.seal().kek_id().map(str::to_owned);
    while let Err(error) = recorded(&node, kek.as_deref()).await {
        tracing::warn!("the entry of the key-encryption key cannot be made yet: {error}");
        rt::sleep(RETRY_PAUSE).await;
    }
}

async fn recorded(node: &Node, kek: Option<&str>) -> Result<(), String> {
    let told = |problem| format!("{problem:?}");
    let name = node.status().name;
    let before = SEALS.find(node, &name).await.map_err(told)?;
    if before.and_then(|row| row.row.kek).as_deref() == kek {
        return Ok(());
    }
    let operation = SEALS.put(&name, &SealRow { kek: kek.map(str::to_owned) }).map_err(told)?;
    commit(node, AUTHOR, Vec::new(), vec![operation]).await.map(drop).map_err(told)
}

/// Brings the secret files of a data directory, which no daemon may have, under the key-encryption key of a seal; the names of
/// those that were not.
pub(crate) fn settle(data: &Path, seal: Seal) -> Result<Vec<&'static str>> {
    let directory = DataDirectory::open(data)?;
    Secrets::new(directory.path(), seal).settle()
}
