//! That a node is refused, kept in its data directory: it was put back to an older copy of its disk, or runs twice. Whoever
//! said so may have forgotten it with its own next start, and the node itself cannot see it. It votes for nobody and stands
//! for no election as long as this is there: until its machine joins as a new node.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::{Inner, Node};
use crate::disk::Disk;
use crate::durable;
use crate::error::Error;
use crate::rt;

/// Name of the file.
pub(super) const FILE: &str = "refused";
/// How often it is looked whether a peer has something against this node.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

fn path(data: &Path) -> PathBuf {
    data.join(FILE)
}

/// Why the node of a data directory is refused, if it is.
pub(super) fn read(disk: &dyn Disk, data: &Path) -> Result<Option<String>, Error> {
    let why = durable::read(disk, &path(data))?;
    Ok(why.map(|why| String::from_utf8_lossy(&why).into_owned()))
}

impl Node {
    /// Notes durably that the node of a data directory is to take no part in votes, from its next start on: its machine is
    /// a copy of another one, or was put back to an earlier state.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn refuse(disk: &Arc<dyn Disk>, data: &Path, why: &str) -> Result<(), Error> {
        match read(disk.as_ref(), data)? {
            Some(_) => Ok(()),
            None => durable::replace(disk.as_ref(), &path(data), why.as_bytes()),
        }
    }
}

/// Keeps what a peer has against this node.
pub(super) async fn keep(node: Arc<Inner>) {
    loop {
        rt::sleep(LOOK_INTERVAL).await;
        let Some(why) = node.consensus.standing().accusation() else { continue };
        match Node::refuse(&node.disk, &node.config.data, &why) {
            Ok(()) => return,
            Err(error) => {
                tracing::error!(%error, "that this node is refused was not kept: it must not be started again")
            }
        }
    }
}
