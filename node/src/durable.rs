//! Small files that must be whole or absent after a crash.

use std::path::Path;

use crate::disk::Disk;
use crate::error::Error;

/// Largest file that [`read`] takes, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Replaces a file: temporary name, write, sync, rename, sync of the directory.
pub(crate) fn replace(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let temporary = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let file = disk.open(&temporary, true)?;
        file.set_length(0)?;
        file.write_at(bytes, 0)?;
        file.sync()?;
        disk.rename(&temporary, path)?;
        disk.sync_directory(directory)
    };
    write().map_err(|e| Error::io(format!("writing {}", path.display()), &e))
}

/// Reads a whole file; `None` when there is none.
pub(crate) fn read(disk: &dyn Disk, path: &Path) -> Result<Option<Vec<u8>>, Error> {
    let read = || -> std::io::Result<Vec<u8>> {
        let file = disk.open(path, false)?;
        let length = file.length()?.min(FILE_BYTES_MAX);
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        let read = file.read_at(&mut bytes, 0)?;
        bytes.truncate(read);
        Ok(bytes)
    };
    match read() {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(format!("reading {}", path.display()), &e)),
    }
}
