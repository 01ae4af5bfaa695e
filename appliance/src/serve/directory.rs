//! The data directory: whose it is, whether it is complete, and that one process has it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{FlockOperation, flock};

use crate::durable::{Mode, replace};

/// Token of the first admin key.
pub(crate) const ADMIN_TOKEN_FILE: &str = "admin.token";
/// Verifier key of the log.
pub(crate) const VKEY_FILE: &str = "log.vkey";
/// Held by the process that has the directory.
pub(crate) const LOCK_FILE: &str = "samovar.lock";
/// Where `init` builds; its presence says that the rest of the directory is not complete.
const PARTIAL: &str = "init.partial";
/// Made by mkfs in the root of a file system.
const LOST_AND_FOUND: &str = "lost+found";

/// Writes the verifier key of the log where people and commands on this machine look for it.
pub(crate) fn write_vkey(data: &Path, vkey: &str) -> Result<()> {
    replace(&data.join(VKEY_FILE), format!("{vkey}\n").as_bytes(), Mode::Public)
}

/// A data directory that this process has until it is dropped.
pub(super) struct DataDirectory {
    path: PathBuf,
    _lock: File,
}

impl DataDirectory {
    /// Takes a directory that `init` completed.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let shown = path.display();
        if !path.is_dir() {
            bail!("{shown} does not exist; make a ledger there: samovar init --data {shown}");
        }
        check_owner(path)?;
        let directory = Self::lock(path)?;
        if path.join(PARTIAL).exists() {
            bail!("{shown} was left by an init that did not finish; run again: samovar init --data {shown}");
        }
        if !path.join(VKEY_FILE).exists() {
            bail!("{shown} holds no ledger; make one there: samovar init --data {shown}");
        }
        Ok(directory)
    }

    /// Takes an empty directory, or one that an earlier `init` left half-made, and makes a place to build in.
    pub(super) fn begin(path: &Path) -> Result<(Self, PathBuf)> {
        let shown = path.display();
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .with_context(|| format!("making {shown}"))?;
        check_owner(path)?;
        let directory = Self::lock(path)?;
        let found = directory.entries()?;
        let partial = path.join(PARTIAL);
        if !found.is_empty() {
            if !partial.exists() {
                let first = found[0].display();
                bail!(
                    "{shown} is not empty (it holds {first}); name an empty directory, or start what is there: samovar serve --data {shown}"
                );
            }
            directory.clear(found)?;
        }
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&partial)
            .with_context(|| format!("making {}", partial.display()))?;
        crate::durable::sync_directory(path)?;
        Ok((directory, partial))
    }

    /// Moves what was built to its place. Crash order: the mark that the directory is not complete goes last, after
    /// every name before it is durable.
    pub(super) fn complete(&self) -> Result<()> {
        let partial = self.path.join(PARTIAL);
        crate::durable::sync_directory(&partial)?;
        for entry in std::fs::read_dir(&partial).context("listing what init made")? {
            let name = entry.context("listing what init made")?.file_name();
            std::fs::rename(partial.join(&name), self.path.join(&name))
                .with_context(|| format!("moving {} to its place", name.display()))?;
        }
        crate::durable::sync_directory(&self.path)?;
        std::fs::remove_dir(&partial).context("removing the mark of an unfinished init")?;
        crate::durable::sync_directory(&self.path)
    }

    /// The directory.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn lock(path: &Path) -> Result<Self> {
        let file = path.join(LOCK_FILE);
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&file)
            .with_context(|| format!("opening {}", file.display()))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                bail!(
                    "{} is in use by another samovar process; stop that one, or name another directory",
                    path.display()
                )
            }
            Err(error) => Err(error).with_context(|| format!("locking {}", file.display())),
        }
    }

    fn entries(&self) -> Result<Vec<PathBuf>> {
        let context = || format!("listing {}", self.path.display());
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.path).with_context(context)? {
            let path = entry.with_context(context)?.path();
            let name = path.file_name().unwrap_or_default();
            if name != LOCK_FILE && name != LOST_AND_FOUND {
                found.push(path);
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Removes what an unfinished `init` left; the mark goes last, so that this too may be interrupted.
    fn clear(&self, found: Vec<PathBuf>) -> Result<()> {
        let partial = self.path.join(PARTIAL);
        for path in found.into_iter().filter(|p| *p != partial).chain([partial.clone()]) {
            let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            removed.with_context(|| format!("removing {}, left by an unfinished init", path.display()))?;
            crate::durable::sync_directory(&self.path)?;
        }
        Ok(())
    }
}

fn check_owner(path: &Path) -> Result<()> {
    let owner = path.metadata().with_context(|| format!("looking at {}", path.display()))?.uid();
    let own = rustix::process::geteuid().as_raw();
    if owner != own {
        bail!(
            "{} belongs to user {owner}, this process runs as user {own}: run samovar as that user, or chown the directory",
            path.display()
        );
    }
    Ok(())
}
