//! Reading and writing whole pages, through a small cache.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use super::buckets::NO_PAGE;
use super::page::{PAGE_BYTES, Page, PageBytes};
use crate::disk::File;
use crate::error::Error;

/// Pages read lately, each in the place that its number gives it: a block that reads its keys and then changes them reads
/// each page once. Checksums were verified on the way in.
struct Cache(Mutex<Vec<(u32, PageBytes)>>);

/// Places in the cache: 2 MiB, twice the keys of a large block.
const CACHE_PAGES: usize = 512;

impl Cache {
    fn new() -> Self {
        Self(Mutex::new(vec![(NO_PAGE, [0; PAGE_BYTES]); CACHE_PAGES]))
    }

    fn place(number: u32) -> usize {
        number as usize % CACHE_PAGES
    }

    /// Calls `with` on the page if it is there.
    fn read<T>(&self, number: u32, with: impl FnOnce(&PageBytes) -> T) -> Option<T> {
        let places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (held, bytes) = &places[Self::place(number)];
        (*held == number).then(|| with(bytes))
    }

    fn put(&self, number: u32, bytes: &PageBytes) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)[Self::place(number)] = (number, *bytes);
    }

    fn forget(&self, number: u32) {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = &mut places[Self::place(number)];
        if place.0 == number {
            place.0 = NO_PAGE;
        }
    }
}

/// The page file. Whoever writes a page excludes its readers (the lock of the map).
pub(super) struct PageFile {
    file: Arc<dyn File>,
    path: PathBuf,
    cache: Cache,
}

impl PageFile {
    pub(super) fn new(file: Arc<dyn File>, path: PathBuf) -> Self {
        Self { file, path, cache: Cache::new() }
    }

    /// What a damaged page is told as.
    pub(super) fn damaged(&self, page: u32) -> Error {
        Error::Corrupt(format!(
            "page {page} of {} is damaged; restart: the state map is then rebuilt from the entries",
            self.path.display()
        ))
    }

    /// Calls `with` on a page.
    pub(super) fn read<T>(&self, number: u32, mut with: impl FnMut(Page<'_>) -> T) -> Result<T, Error> {
        if let Some(Some(found)) = self.cache.read(number, |bytes| Page::trusted(bytes).map(&mut with)) {
            return Ok(found);
        }
        let mut bytes = [0; PAGE_BYTES];
        let read = self.file.read_at(&mut bytes, u64::from(number) * PAGE_BYTES as u64);
        let read = read.map_err(|e| Error::io(format!("read {}", self.path.display()), &e))?;
        let page = Page::parse(number, &bytes).filter(|_| read == PAGE_BYTES).ok_or_else(|| self.damaged(number))?;
        let found = with(page);
        self.cache.put(number, &bytes);
        Ok(found)
    }

    /// Writes a page; not durable before a sync.
    pub(super) fn write(&self, number: u32, bytes: &PageBytes) -> Result<(), Error> {
        self.cache.forget(number);
        let written = self.file.write_at(bytes, u64::from(number) * PAGE_BYTES as u64);
        written.map_err(|e| Error::io(format!("write {}", self.path.display()), &e))
    }
}
