//! The few file operations under the write-ahead log, the page file and the salt file, so that a simulation can lose
//! unsynced writes where a power cut would.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

pub mod sim;

/// A file system. Every path is absolute or relative to the process.
pub trait Disk: Send + Sync + 'static {
    /// Opens a file for reading and writing; `create` makes it when it is missing (mode 0600).
    ///
    /// # Errors
    /// As the operating system says.
    fn open(&self, path: &Path, create: bool) -> io::Result<Box<dyn File>>;
    /// Names of the files in a directory, sorted.
    ///
    /// # Errors
    /// As the operating system says.
    fn list(&self, directory: &Path) -> io::Result<Vec<String>>;
    /// Makes a directory and its parents (mode 0700).
    ///
    /// # Errors
    /// As the operating system says.
    fn create_directory(&self, directory: &Path) -> io::Result<()>;
    /// Renames a file; durable after [`Disk::sync_directory`].
    ///
    /// # Errors
    /// As the operating system says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file; durable after [`Disk::sync_directory`].
    ///
    /// # Errors
    /// As the operating system says.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in a directory durable (fsync of the directory).
    ///
    /// # Errors
    /// As the operating system says.
    fn sync_directory(&self, directory: &Path) -> io::Result<()>;
    /// Bytes an unprivileged process may still write on the file system of `path`.
    ///
    /// # Errors
    /// As the operating system says.
    fn free_bytes(&self, path: &Path) -> io::Result<u64>;
}

/// An open file. Writes are durable after [`File::sync`] only.
pub trait File: Send + Sync {
    /// Reads as many bytes as there are at `offset`, up to the buffer's length; returns how many.
    ///
    /// # Errors
    /// As the operating system says.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all bytes at `offset`, growing the file when needed.
    ///
    /// # Errors
    /// As the operating system says; part of the bytes may have been written.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Length in bytes.
    ///
    /// # Errors
    /// As the operating system says.
    fn length(&self) -> io::Result<u64>;
    /// Cuts or grows (with zeros) the file.
    ///
    /// # Errors
    /// As the operating system says.
    fn set_length(&self, length: u64) -> io::Result<()>;
    /// Reserves room so that writes below `length` cannot fail for want of space; grows the file with zeros.
    ///
    /// # Errors
    /// `StorageFull` when there is no room.
    fn allocate(&self, length: u64) -> io::Result<()>;
    /// Makes data and length durable (fdatasync).
    ///
    /// # Errors
    /// As the operating system says. After an error nothing is known about earlier writes: the caller must not go on.
    fn sync(&self) -> io::Result<()>;
}

/// The operating system's file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct OsDisk;

impl Disk for OsDisk {
    fn open(&self, path: &Path, create: bool) -> io::Result<Box<dyn File>> {
        use std::os::unix::fs::OpenOptionsExt;
        let file =
            fs::OpenOptions::new().read(true).write(true).create(create).truncate(false).mode(0o600).open(path)?;
        Ok(Box::new(OsFile(file)))
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(directory)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort_unstable();
        Ok(names)
    }

    fn create_directory(&self, directory: &Path) -> io::Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        fs::File::open(directory)?.sync_all()
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let s = rustix::fs::statvfs(path)?;
        Ok(s.f_bavail * s.f_frsize)
    }
}

struct OsFile(fs::File);

impl File for OsFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut read = 0;
        while read < buffer.len() {
            match self.0.read_at(&mut buffer[read..], offset + read as u64) {
                Ok(0) => break,
                Ok(n) => read += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(read)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        Ok(rustix::fs::fallocate(&self.0, rustix::fs::FallocateFlags::empty(), 0, length)?)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}
