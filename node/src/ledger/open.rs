//! Opening a ledger: store and archive are compared, and the newer one brings the other up to itself.
//!
//! - The archive is ahead (the store is gone, was set aside, or lost what was not durable): its frames are put back, from
//!   the first one or from where the store ends, each block with its hash of the one before and its state root.
//! - The store is ahead (the archive is gone, damaged at its end, or of an older version): its frames are made again from
//!   the rows.
//! - The store cannot be opened, has lost what was durable, or does not fit: it is set aside and rebuilt. A store found
//!   damaged while the node runs is not trusted at the next start ([`Suspicion`]).

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use tokio::sync::watch;

use super::replay::{rebuild_tree, replay};
use super::{Chain, HeadRow, Ledger, MapSync, Stages};
use crate::archive::{Archive, Check, Frame, Mark};
use crate::blobs::Blobs;
use crate::disk::Disk;
use crate::durable;
use crate::error::Error;
use crate::machine::{Source, restate};
use crate::node::QUARANTINE;
use crate::rt;
use crate::salts::Salts;
use crate::snapshot::Staging;
use crate::state_root::{self, StateMap};
use crate::store::names::Names;
use crate::store::{Batch, Shelf, Tree};

/// Row that says that the store is being rebuilt: it lacks what was durable before.
const REBUILDING: &[u8] = b"rebuilding";

/// A durable note, beside the store, that it was found damaged: the next start does not trust it.
pub(crate) struct Suspicion {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    noted: Mutex<Option<String>>,
}

impl Suspicion {
    fn new(disk: &Arc<dyn Disk>, data: &Path) -> Self {
        Self { disk: Arc::clone(disk), path: data.join("store.suspect"), noted: Mutex::new(None) }
    }

    /// What was noted since this start.
    pub(crate) fn noted(&self) -> Option<String> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes it if the error says that the store is damaged; the first one counts.
    pub(crate) fn note_if_damaged(&self, error: &Error) {
        let Error::DamagedStore(what) = error else { return };
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        if noted.is_some() {
            return;
        }
        tracing::error!("{what}; at the next start the store is set aside and rebuilt from the archive");
        if let Err(error) = durable::replace(self.disk.as_ref(), &self.path, what.as_bytes()) {
            tracing::error!(%error, "the note was not written: remove the directory `store` before the next start");
        }
        *noted = Some(what.clone());
    }

    fn read(&self) -> Result<Option<String>, Error> {
        let text = durable::read(self.disk.as_ref(), &self.path)?;
        Ok(text.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    fn clear(&self) -> Result<(), Error> {
        let directory = self.path.parent().unwrap_or(Path::new("."));
        let removed = self.disk.remove(&self.path).and_then(|()| self.disk.sync_directory(directory));
        removed.map_err(|e| Error::io(format!("removing {}", self.path.display()), &e))
    }
}

impl Ledger {
    /// Opens what is in the data directory: makes of store and archive what the other one lacks, and brings the derived
    /// parts up to the chain log.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when neither store nor archive can help, with what to do; [`Error::Invalid`] for files of a newer
    /// version; [`Error::Io`].
    pub(crate) fn open(disk: &Arc<dyn Disk>, data: &Path, shelf: &Shelf) -> Result<Self, Error> {
        let suspicion = Suspicion::new(disk, data);
        if let Some(what) = suspicion.read()? {
            set_aside(shelf, &what)?;
            suspicion.clear()?;
        }
        match Self::attempt(disk, data, shelf) {
            Err(Error::DamagedStore(what)) => {
                set_aside(shelf, &what)?;
                Self::attempt(disk, data, shelf).map_err(|error| match error {
                    Error::DamagedStore(again) => Error::Corrupt(format!(
                        "the store was damaged ({what}), and what was rebuilt from the archive is so too ({again}): restore \
                         a backup, or rejoin the cluster from its peers"
                    )),
                    other => other,
                })
            }
            opened => opened,
        }
    }

    fn attempt(disk: &Arc<dyn Disk>, data: &Path, shelf: &Shelf) -> Result<Self, Error> {
        let archive = Archive::open(disk, data)?;
        let rows = shelf.open()?;
        let head = rows.get(Tree::Meta, b"head")?.map(|row| HeadRow::decode(&row)).transpose()?.unwrap_or_default();
        let rebuilding = rows.get(Tree::Meta, REBUILDING)?.is_some();
        if head == HeadRow::default() && archive.end() != Mark::default() {
            tracing::warn!("the store is empty: it is rebuilt from the archive");
            let mut batch = Batch::default();
            batch.put(Tree::Meta, REBUILDING, Vec::new());
            rows.commit(batch)?;
        } else if archive.store_durable() > head.raft_index + 1 && !rebuilding {
            return Err(Error::DamagedStore(format!(
                "the store ends at raft index {}, though it was durable up to {}",
                head.raft_index,
                archive.store_durable() - 1
            )));
        }
        let salts = Salts::open(disk.as_ref(), &data.join("salts"))?;
        let map = StateMap::open(disk.as_ref(), &data.join("state-map"), state_root::Config::default())?;
        if let Some(what) = map.damage() {
            tracing::warn!("the state map is not whole ({what}): it is rebuilt from the chain log");
        }
        let tree = rebuild_tree(&rows, head.size)?;
        let mut chain = Chain { tree, names: Names::default(), head };
        // What is read from here on may reach the pages of the state map and the archive, so it must be durable.
        rows.sync()?;
        replay(&rows, &map, &mut chain)?;
        let ledger = Self {
            rows,
            archive,
            salts,
            blobs: Arc::new(Blobs::open(disk, data)?),
            map,
            stages: Stages::default(),
            erased: AtomicBool::new(false),
            suspicion: Suspicion::new(disk, data),
            staging: Staging::new(disk, data),
            set_aside: names_set_aside(disk.as_ref(), data)?,
            head: watch::Sender::new(chain.head.view()),
            chain: RwLock::new(chain),
            waiters: Mutex::new(Vec::new()),
            map_synced: Mutex::new(MapSync { size: 0, at: rt::instant() }),
        };
        ledger.level()?;
        if ledger.rows.get(Tree::Meta, REBUILDING)?.is_some() {
            let mut batch = Batch::default();
            batch.remove(Tree::Meta, REBUILDING);
            ledger.rows.commit(batch)?;
        }
        let head = ledger.install()?;
        if !Mark::of(&head).is_sound() {
            return Err(Error::DamagedStore("the store was being rebuilt, and what it was rebuilt from is cut".into()));
        }
        Ok(ledger)
    }

    /// Brings store and archive to the same end.
    fn level(&self) -> Result<(), Error> {
        let (store, archive) = (Mark::of(&self.chain().head), self.archive.end());
        if store < archive {
            return self.roll_forward(&store);
        }
        if archive < store {
            tracing::warn!(
                "the archive ends at block {}, the store at {}: what lies between is made again",
                archive.height,
                store.height
            );
            let place = Some(self.chain().head.raft.clone()).filter(|place| !place.is_empty());
            restate(&self.rows, archive, store, place, &mut |frame| self.archive.append(&frame))?;
        }
        Ok(())
    }

    /// Makes a damaged segment of the archive again from the store; returns how far the ledger is after it.
    ///
    /// # Errors
    /// [`Error::DamagedStore`] when the store is damaged there, too; [`Error::Io`].
    pub(crate) fn mend(&self, check: &Check) -> Result<Mark, Error> {
        // While the chain is held, nothing is appended.
        let chain = self.chain();
        let HeadRow { raft_index, outcomes, .. } = chain.head;
        let place = Some(chain.head.raft.clone());
        let end = Frame { raft_index, place, outcomes_kept: outcomes, ..Frame::default() };
        self.archive.seal(check, &end)?;
        drop(chain);
        self.archive.mend(check, |from, to, emit| restate(&self.rows, from, to, None, emit))
    }

    /// Puts back what the archive holds beyond the store.
    fn roll_forward(&self, store: &Mark) -> Result<(), Error> {
        let mut reader = self.archive.read_from(store);
        loop {
            let frame = match reader.next() {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(Error::Corrupt(what)) => {
                    // The raft log may still have the rest; if it does not, the start is refused with this.
                    tracing::warn!("{what}");
                    self.archive.end_at(reader, what);
                    break;
                }
                Err(error) => return Err(error),
            };
            let at = Mark::of(&self.chain().head);
            if at.covers(&frame) {
                continue;
            }
            self.restore(frame, Source::Archive)?;
            self.sync_if_much()?;
        }
        Ok(())
    }
}

fn names_set_aside(disk: &dyn Disk, data: &Path) -> Result<Vec<String>, Error> {
    let names = disk.list(data).map_err(|e| Error::io(format!("listing {}", data.display()), &e))?;
    Ok(names.into_iter().filter(|name| name.starts_with("store.damaged-") || name == QUARANTINE).collect())
}

fn set_aside(shelf: &Shelf, what: &str) -> Result<(), Error> {
    let name = shelf.set_aside()?;
    tracing::warn!("{what}: the store is set aside as {name} and rebuilt from the archive");
    Ok(())
}
