//! Whether this machine is still the one that ran the node last. A hypervisor gives a virtual machine another generation id
//! when it is put back from a snapshot, or copied: its disk and memory are then older than what its peers have seen of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use ring::digest::{SHA256, digest};
use samovar_node::Node;
use samovar_node::disk::{Disk, OsDisk};

use crate::config::Config;
use crate::durable::{Mode, replace};
use crate::peers::read_peers;

/// What the machine's generation id was, as a hash: in the data directory.
pub(super) const FILE: &str = "vm-generation";
/// The credential that holds the id.
const CREDENTIAL: &str = "samovar.vm-generation";
/// Where Linux shows it under QEMU, to those who may read it.
const FIRMWARE: &str = "/sys/firmware/qemu_fw_cfg/by_name/etc/vmgenid_guid/raw";
/// Longest of what is taken for an id, in bytes.
const ID_BYTES_MAX: usize = 4096;

/// Where the id is read: what is configured, else the credential, else the firmware's.
fn source(configured: Option<&Path>) -> Option<PathBuf> {
    let credential = std::env::var_os("CREDENTIALS_DIRECTORY").map(|d| Path::new(&d).join(CREDENTIAL));
    let places = [configured.map(Path::to_owned), credential, Some(PathBuf::from(FIRMWARE))];
    places.into_iter().flatten().find(|path| path.exists())
}

/// Compares the machine's generation id with that of the last start. One that changed, of a node with peers, has it refused.
///
/// # Errors
/// When the file in the data directory cannot be read or written.
pub(super) fn check(config: &Config) -> Result<()> {
    let configured = config.vm_generation.as_deref();
    let Some(path) = source(configured) else {
        anyhow::ensure!(
            configured.is_none(),
            "node.vm_generation: there is no {}",
            configured.unwrap_or(Path::new("")).display()
        );
        return Ok(());
    };
    let id = match std::fs::read(&path) {
        Ok(id) if !id.is_empty() && id.len() <= ID_BYTES_MAX => id,
        Ok(_) => {
            tracing::warn!("{} holds no generation id of the machine: it is not looked at", path.display());
            return Ok(());
        }
        // The firmware's is for root only.
        Err(error) if configured.is_none() => {
            tracing::debug!(%error, "the machine's generation id cannot be read at {}", path.display());
            return Ok(());
        }
        Err(error) => return Err(error).with_context(|| format!("node.vm_generation: reading {}", path.display())),
    };
    let now = crate::auth::hex(digest(&SHA256, &id).as_ref());
    let kept = config.data.join(FILE);
    let before = match std::fs::read_to_string(&kept) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        text => Some(text.with_context(|| format!("reading {}", kept.display()))?),
    };
    match before {
        Some(before) if before.trim() == now => return Ok(()),
        Some(_) if !read_peers(&config.data).is_empty() => {
            let why = "the machine's generation id has changed: it was put back from a snapshot or is a copy of another one. \
                       Remove the node, and let it join again as a new one";
            tracing::error!("{why}");
            let disk: Arc<dyn Disk> = Arc::new(OsDisk);
            return Ok(Node::refuse(&disk, &config.data, why)?);
        }
        Some(_) => {
            tracing::warn!("the machine's generation id has changed: it was put back from a snapshot, or copied")
        }
        None => {}
    }
    replace(&kept, format!("{now}\n").as_bytes(), Mode::Public)
}
