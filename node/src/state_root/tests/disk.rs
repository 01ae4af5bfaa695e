//! A disk in memory that loses unsynced sectors at a power cut, and refuses writes when told to.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rand::Rng;
use rand::rngs::StdRng;

use crate::disk::{Disk, File};

/// What survives or is lost as one.
const SECTOR_BYTES: usize = 512;

enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

#[derive(Default)]
struct Content {
    /// What a reader sees.
    seen: Vec<u8>,
    /// What the platter has.
    durable: Vec<u8>,
    /// What was done since, in order.
    unsynced: Vec<Change>,
    /// Writes and syncs still allowed; `None`: any number.
    allowed: Option<u64>,
    writes: u64,
}

impl Content {
    fn allow(&mut self) -> io::Result<()> {
        self.writes += 1;
        match &mut self.allowed {
            Some(0) => Err(io::Error::from(io::ErrorKind::StorageFull)),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

fn write(bytes: &mut Vec<u8>, at: usize, new: &[u8]) {
    if bytes.len() < at + new.len() {
        bytes.resize(at + new.len(), 0);
    }
    bytes[at..at + new.len()].copy_from_slice(new);
}

/// The disk; clones are the same one.
#[derive(Clone, Default)]
pub(super) struct TestDisk {
    files: Arc<Mutex<BTreeMap<PathBuf, Arc<Mutex<Content>>>>>,
}

impl TestDisk {
    fn content(&self, path: &Path) -> Arc<Mutex<Content>> {
        Arc::clone(self.files.lock().unwrap().get(path).expect("the file was opened before"))
    }

    /// Cuts the power: of what was not synced, each sector of each write is kept with probability `kept`.
    pub(super) fn cut_power(&self, path: &Path, random: &mut StdRng, kept: f64) {
        let content = self.content(path);
        let mut content = content.lock().unwrap();
        let mut after = std::mem::take(&mut content.durable);
        for change in std::mem::take(&mut content.unsynced) {
            match change {
                Change::Write(at, bytes) => {
                    for (i, sector) in bytes.chunks(SECTOR_BYTES).enumerate() {
                        if random.gen_bool(kept) {
                            write(&mut after, at + i * SECTOR_BYTES, sector);
                        }
                    }
                }
                Change::Length(length) if random.gen_bool(kept) => after.resize(length, 0),
                Change::Length(_) => {}
            }
        }
        (content.seen, content.durable) = (after.clone(), after);
    }

    /// Damages what is stored.
    pub(super) fn damage(&self, path: &Path, damage: impl FnOnce(&mut Vec<u8>)) {
        let content = self.content(path);
        let mut content = content.lock().unwrap();
        damage(&mut content.seen);
        content.durable = content.seen.clone();
        content.unsynced.clear();
    }

    /// Lets `allowed` more writes and syncs succeed.
    pub(super) fn allow(&self, path: &Path, allowed: Option<u64>) {
        self.content(path).lock().unwrap().allowed = allowed;
    }

    /// Writes and syncs asked for so far.
    pub(super) fn writes(&self, path: &Path) -> u64 {
        self.content(path).lock().unwrap().writes
    }
}

impl Disk for TestDisk {
    fn open(&self, path: &Path, _create: bool) -> io::Result<Box<dyn File>> {
        Ok(Box::new(TestFile(Arc::clone(self.files.lock().unwrap().entry(path.to_owned()).or_default()))))
    }
    fn list(&self, _directory: &Path) -> io::Result<Vec<String>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn create_directory(&self, _directory: &Path) -> io::Result<()> {
        Ok(())
    }
    fn rename(&self, _from: &Path, _to: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn remove(&self, _path: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn sync_directory(&self, _directory: &Path) -> io::Result<()> {
        Ok(())
    }
    fn free_bytes(&self, _path: &Path) -> io::Result<u64> {
        Ok(u64::MAX)
    }
}

struct TestFile(Arc<Mutex<Content>>);

impl File for TestFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let content = self.0.lock().unwrap();
        let rest = content.seen.get(offset as usize..).unwrap_or_default();
        let read = rest.len().min(buffer.len());
        buffer[..read].copy_from_slice(&rest[..read]);
        Ok(read)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut content = self.0.lock().unwrap();
        content.allow()?;
        write(&mut content.seen, offset as usize, bytes);
        content.unsynced.push(Change::Write(offset as usize, bytes.to_vec()));
        Ok(())
    }
    fn length(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().seen.len() as u64)
    }
    fn set_length(&self, length: u64) -> io::Result<()> {
        let mut content = self.0.lock().unwrap();
        content.allow()?;
        content.seen.resize(length as usize, 0);
        content.unsynced.push(Change::Length(length as usize));
        Ok(())
    }
    fn allocate(&self, _length: u64) -> io::Result<()> {
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        let mut content = self.0.lock().unwrap();
        content.allow()?;
        content.durable = content.seen.clone();
        content.unsynced.clear();
        Ok(())
    }
}
