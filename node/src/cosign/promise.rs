//! The promise of a node: the largest head that it signed or cosigned, durable before the signature is made.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::broken;
use crate::checkpoint::Checkpoint;
use crate::disk::{Disk, File};
use crate::error::Error;

const SLOT_BYTES: usize = 4096;

/// The text of the checkpoint, in the two slots of a file by turns, so that a torn write leaves the one before.
pub(super) struct Promise {
    file: Box<dyn File>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next_slot: u64,
    newest: Option<Checkpoint>,
}

impl Promise {
    /// Opens the file and reads what was promised before.
    pub(super) fn open(disk: &dyn Disk, path: &Path) -> Result<Self, Error> {
        let open = || {
            let file = disk.open(path, true)?;
            file.allocate(2 * SLOT_BYTES as u64)?;
            // Else a power cut could take the file with what was promised in it.
            disk.sync_directory(path.parent().unwrap_or(Path::new(".")))?;
            Ok(file)
        };
        let file = open().map_err(|e| Error::io(format!("opening {}", path.display()), &e))?;
        let promise = Self { file, state: Mutex::default() };
        promise.read()?;
        Ok(promise)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> Result<(), Error> {
        let mut state = self.state();
        let mut blank = 0;
        for slot in 0..2 {
            let mut bytes = vec![0; SLOT_BYTES];
            let offset = slot * SLOT_BYTES as u64;
            self.file.read_at(&mut bytes, offset).map_err(|e| Error::io("reading the promise", &e))?;
            blank += u32::from(bytes.iter().all(|b| *b == 0));
            if let Some(found) = decode(&bytes).filter(|c| state.newest.as_ref().is_none_or(|n| n.size < c.size)) {
                *state = State { next_slot: 1 - slot, newest: Some(found) };
            }
        }
        if state.newest.is_none() && blank == 0 {
            return Err(broken("the file `promise`, which says what this node cosigned, is damaged"));
        }
        Ok(())
    }

    /// The largest head promised.
    pub(super) fn newest(&self) -> Option<Checkpoint> {
        self.state().newest.clone()
    }

    /// Promises a head, durably. Gives back the one promised before when that is larger, or of the same size with another
    /// root: then nothing may be signed.
    pub(super) fn make(&self, checkpoint: &Checkpoint) -> Result<Result<(), Checkpoint>, Error> {
        let mut state = self.state();
        match &state.newest {
            Some(newest) if newest == checkpoint => return Ok(Ok(())),
            Some(newest) if newest.size >= checkpoint.size => return Ok(Err(newest.clone())),
            _ => {}
        }
        let text = checkpoint.to_text();
        let mut bytes = vec![0; 8];
        bytes[4..8].copy_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend_from_slice(text.as_bytes());
        let checksum = crc32fast::hash(&bytes[4..]);
        bytes[..4].copy_from_slice(&checksum.to_le_bytes());
        let offset = state.next_slot * SLOT_BYTES as u64;
        let written = self.file.write_at(&bytes, offset).and_then(|()| self.file.sync());
        written.map_err(|e| Error::io("writing the promise", &e))?;
        *state = State { next_slot: 1 - state.next_slot, newest: Some(checkpoint.clone()) };
        Ok(Ok(()))
    }
}

fn decode(bytes: &[u8]) -> Option<Checkpoint> {
    let (checksum, rest) = bytes.split_first_chunk::<4>()?;
    let (length, text) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    let whole = rest.get(..4 + length)?;
    if length == 0 || crc32fast::hash(whole) != u32::from_le_bytes(*checksum) {
        return None;
    }
    Checkpoint::parse(std::str::from_utf8(text.get(..length)?).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::sim::{CrashPoint, SimDisk};

    const PATH: &str = "/ledger/promise";

    fn disk(seed: u64) -> SimDisk {
        let disk = SimDisk::new(seed);
        disk.create_directory(Path::new("/ledger")).unwrap();
        disk.sync_directory(Path::new("/ledger")).unwrap();
        disk
    }

    fn head(size: u64, root: u8) -> Checkpoint {
        Checkpoint { origin: "a.example".into(), size, root: [root; 32] }
    }

    /// Promises heads until the disk stops; gives the last one that was promised.
    fn promise_until_cut(disk: &SimDisk) -> Option<Checkpoint> {
        let promise = Promise::open(disk, Path::new(PATH)).ok()?;
        let mut last = promise.newest();
        for n in 1..8 {
            let next = head(last.as_ref().map_or(0, |c| c.size) + n, 7);
            match promise.make(&next) {
                Ok(made) => made.expect("a larger head is promised"),
                Err(_) => return last,
            }
            last = Some(next);
        }
        last
    }

    #[test]
    fn a_promise_outlives_a_crash_at_any_durable_operation() {
        let whole = disk(1);
        promise_until_cut(&whole);
        let before = disk(1).durable_operations();
        let operations = whole.durable_operations();
        assert!(operations > before + 7, "each promise is made durable: {operations} operations");
        for seed in 0..4 {
            for ordinal in before + 1..=operations {
                for point in [CrashPoint::Before, CrashPoint::After] {
                    let disk = disk(seed);
                    disk.crash_at(ordinal, point);
                    let promised = promise_until_cut(&disk);
                    disk.crash();
                    let what = format!("seed {seed}, cut {point:?} operation {ordinal}, promised {promised:?}");
                    let promise = Promise::open(&disk, Path::new(PATH)).unwrap_or_else(|e| panic!("{what}: {e}"));
                    let Some(promised) = promised else { continue };
                    let found = promise.newest().unwrap_or_else(|| panic!("{what}: nothing is there"));
                    assert!(found.size >= promised.size, "{what}: found {found:?}");
                    let smaller = head(promised.size - 1, 7);
                    assert_eq!(
                        promise.make(&smaller).unwrap(),
                        Err(found.clone()),
                        "{what}: a smaller head was promised"
                    );
                    let other = head(found.size, 8);
                    assert_eq!(promise.make(&other).unwrap(), Err(found), "{what}: another root was promised");
                }
            }
        }
    }
}
