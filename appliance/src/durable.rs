//! Small files that must survive a power cut.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};

/// Who may read a file.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Mode {
    /// Its owner: 0600.
    Secret,
    /// Everybody: 0644.
    Public,
}

/// Writes a file that must not exist yet and makes its content durable; its name is durable after [`sync_directory`].
pub(crate) fn write_new(path: &Path, content: &[u8], mode: Mode) -> Result<()> {
    let bits = match mode {
        Mode::Secret => 0o600,
        Mode::Public => 0o644,
    };
    let context = || format!("writing {}", path.display());
    let mut file = OpenOptions::new().write(true).create_new(true).mode(bits).open(path).with_context(context)?;
    file.write_all(content).with_context(context)?;
    file.sync_all().with_context(context)
}

/// Puts a file in place of the one before: a whole new file, then its name.
pub(crate) fn replace(path: &Path, content: &[u8], mode: Mode) -> Result<()> {
    let new = path.with_added_extension("new");
    remove(&new)?;
    write_new(&new, content, mode)?;
    std::fs::rename(&new, path).with_context(|| format!("putting {} in its place", path.display()))?;
    path.parent().map_or(Ok(()), sync_directory)
}

/// Removes a file, if it is there.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Makes the names in a directory durable.
pub(crate) fn sync_directory(path: &Path) -> Result<()> {
    File::open(path).and_then(|d| d.sync_all()).with_context(|| format!("syncing {}", path.display()))
}
