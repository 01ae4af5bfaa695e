//! Permits to go down that the local root took without a quorum: nobody could grant one, nor put it on the ledger. They are
//! kept in the data directory, durably before they are good, and written to the ledger by this node once there is a quorum.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use samovar_node::{Node, rt};

use super::Peers;
use crate::api::problem::Problem;
use crate::auth::{PERMIT, PERMITS, PermitRow, TAKEN, commit};
use crate::durable::{self, Mode};

const FILE: &str = "permits-taken.json";
/// Most that wait: each is an act of somebody at the machine.
const ROWS_MAX: usize = 64;
/// How often it is looked whether there is a quorum for them.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

fn path(data: &Path) -> PathBuf {
    data.join(FILE)
}

fn read(data: &Path) -> Result<Vec<PermitRow>> {
    let path = path(data);
    match std::fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        text => serde_json::from_slice(&text?).with_context(|| format!("{} is damaged", path.display())),
    }
}

fn write(data: &Path, rows: &[PermitRow]) -> Result<()> {
    if rows.is_empty() {
        durable::remove(&path(data))?;
        return durable::sync_directory(data);
    }
    durable::replace(&path(data), &serde_json::to_vec(rows)?, Mode::Secret)
}

impl Peers {
    /// Keeps a permit that was taken without a quorum. It is durable when this returns.
    ///
    /// # Errors
    /// When it cannot be kept: it must not be used then.
    pub(crate) fn take_permit(&self, row: &PermitRow) -> Result<()> {
        let (_turn, data) = (self.taking(), self.0.secrets.data());
        let mut rows = read(data)?;
        ensure!(rows.len() < ROWS_MAX, "{ROWS_MAX} permits that were taken without a quorum wait in {FILE} already");
        rows.push(row.clone());
        write(data, &rows)
    }

    /// Those that are not on the ledger yet, the earliest first.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn taken_permits(&self) -> Result<Vec<PermitRow>> {
        read(self.0.secrets.data())
    }

    fn taking(&self) -> std::sync::MutexGuard<'_, ()> {
        self.0.taking.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Puts what was taken on the ledger, for as long as the node runs.
    pub(super) async fn write_up_permits(&self, node: &Node) {
        let mut failing = false;
        loop {
            rt::sleep(LOOK_INTERVAL).await;
            match self.write_up_first(node).await {
                Ok(()) => failing = false,
                Err(problem) if !std::mem::replace(&mut failing, true) => {
                    tracing::warn!(?problem, "a permit that was taken without a quorum is not on the ledger yet");
                }
                Err(_) => {}
            }
        }
    }

    async fn write_up_first(&self, node: &Node) -> std::result::Result<(), Problem> {
        let rows = self.taken_permits().map_err(|e| Problem::internal(&format!("{e:#}")))?;
        let Some(row) = rows.first() else { return Ok(()) };
        node.barrier().await?;
        let before = PERMITS.find(node, TAKEN).await?;
        // One that was written, and not taken out of the file before the node ended.
        if before.as_ref().is_none_or(|stored| stored.row != *row) {
            let mut requirements = vec![PERMITS.unchanged(TAKEN, before.map(|stored| stored.revision))?];
            let mut operations = vec![PERMITS.put(TAKEN, row)?];
            let held = PERMITS.find(node, PERMIT).await?;
            // As long as it is good nobody else may go down, unless somebody was let before this was known.
            if row.expires_ms > node.now_ms() && held.is_none() {
                requirements.push(PERMITS.unchanged(PERMIT, None)?);
                operations.push(PERMITS.put(PERMIT, row)?);
            }
            commit(node, &row.by, requirements, operations).await?;
            tracing::info!(
                reason = row.reason,
                by = row.by,
                "a permit that was taken without a quorum is on the ledger"
            );
        }
        let (_turn, data) = (self.taking(), self.0.secrets.data());
        let rows: Vec<_> = read(data).map_err(|e| Problem::internal(&format!("{e:#}")))?.split_off(1);
        write(data, &rows).map_err(|e| Problem::internal(&format!("{e:#}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_is_kept_until_it_is_written_up() {
        let directory = tempfile::tempdir().expect("a directory");
        let row = |reason: &str| PermitRow {
            name: "box-01".into(),
            node: 1,
            reason: reason.into(),
            by: "local/0".into(),
            granted_ms: 1,
            expires_ms: 2,
            accepted_outage: true,
            without_quorum: true,
        };
        assert!(read(directory.path()).expect("no file").is_empty());
        write(directory.path(), &[row("a"), row("b")]).expect("written");
        assert_eq!(read(directory.path()).expect("read"), [row("a"), row("b")]);
        write(directory.path(), &[]).expect("removed");
        assert!(!path(directory.path()).exists(), "nothing waits any more");
    }
}
