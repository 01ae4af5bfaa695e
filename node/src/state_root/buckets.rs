//! The page file: buckets of entries by key-hash prefix (extendible hashing), written by shadowing.
//!
//! **Crash order.** A bucket is never written over. Its new version goes to free pages under the next generation; only
//! then does memory point there. Two marks say which pages count:
//!
//! - the *flush mark* (page 2), written behind every slice of buckets without a sync. Pages that it names are reused
//!   only after the next flush mark. After a kill the operating system still has all of it, so it holds.
//! - the *sync marks* (pages 0 and 1 in turn), written after all earlier pages were synced, then synced themselves.
//!   Pages that it names are reused only after the next sync mark is durable. So it holds after a power cut.
//!
//! A mark holds the digest of its pages, so that opening knows whether every page of it is there, unharmed and in the
//! right version; if neither mark holds, the file is of no use and the map is rebuilt from the entries.

use std::collections::BTreeMap;

use super::file::PageFile;
use super::page::{Entry, Header, Mark, PAGE_BYTES, PAGE_ENTRIES_MAX, Page, Run, encode, overlay};
use super::proof::KeyHash;
use super::tree::{Place, bounds, index};
use super::{Config, Deltas};
use crate::error::Error;

/// Pages in front of the buckets: two sync marks and the flush mark.
pub(super) const FIRST_PAGE: u32 = 3;
const FLUSH_MARK_PAGE: u32 = 2;
/// Stands in the directory for a bucket that has no page yet: the whole of a new map.
pub(super) const NO_PAGE: u32 = 0;
/// The bounds of all keys.
pub(super) const EVERYTHING: (KeyHash, KeyHash) = (KeyHash([0; 32]), KeyHash([0xff; 32]));
/// Deepest prefix of a bucket: bounds the directory to 4 MiB; what collides below overflows.
pub(super) const DIRECTORY_DEPTH_MAX: u8 = 20;
/// How much deeper than evenly spread buckets need a prefix may be; so the directory has at most 16 places per bucket.
const SKEW_DEPTH_MAX: u8 = 4;

/// A bucket as it was read: one page, or more when it overflows.
struct Bucket {
    depth: u8,
    prefix: u64,
    run: Run,
    /// Number and contribution of each page.
    pages: Vec<(u32, u64)>,
}

/// One piece of a bucket that is being written.
struct Piece {
    depth: u8,
    prefix: u64,
    run: Run,
    pages: Vec<u32>,
}

/// A sync in progress: what must become durable, and the pages that it then sets free.
pub(super) struct SyncPoint {
    pub(super) mark: Mark,
    pub(super) page: u32,
    retired: Vec<u32>,
}

/// Which pages are live, as found on opening.
#[derive(Default)]
pub(super) struct Layout {
    pub(super) directory: Vec<u32>,
    pub(super) depth: u8,
    pub(super) chains: BTreeMap<u32, Vec<u32>>,
    pub(super) buckets: usize,
    pub(super) mark: Mark,
    /// Page 0 or 1: where the next sync mark goes.
    pub(super) next_sync_page: u32,
    /// Live pages that the sync mark does not name.
    pub(super) fresh: Vec<u32>,
    /// Pages that only the sync mark names.
    pub(super) retired: Vec<u32>,
    pub(super) free: Vec<u32>,
    /// Pages in the file.
    pub(super) end: u32,
    pub(super) generation: u64,
}

/// The buckets on disk and the directory that finds them.
pub(super) struct Buckets {
    file: PageFile,
    page_entries: usize,
    depth_max: u8,
    /// First page of the bucket of each prefix of `depth` bits.
    directory: Vec<u32>,
    depth: u8,
    /// The further pages of buckets that overflow.
    chains: BTreeMap<u32, Vec<u32>>,
    buckets: usize,
    generation: u64,
    mark: Mark,
    next_sync_page: u32,
    /// For each page, whether it was written since the last sync began.
    fresh: Vec<bool>,
    free: Vec<u32>,
    /// Superseded, but named by the flush mark only.
    stale: Vec<u32>,
    /// Superseded, but named by the sync mark.
    retired: Vec<u32>,
}

impl Buckets {
    pub(super) fn new(file: PageFile, config: &Config, layout: Layout) -> Self {
        let mut fresh = vec![false; layout.end.max(FIRST_PAGE) as usize];
        for page in layout.fresh {
            fresh[page as usize] = true;
        }
        let directory = if layout.directory.is_empty() { vec![NO_PAGE] } else { layout.directory };
        Self {
            file,
            page_entries: config.page_entries.clamp(1, PAGE_ENTRIES_MAX),
            depth_max: config.directory_depth_max.min(DIRECTORY_DEPTH_MAX),
            directory,
            depth: layout.depth,
            chains: layout.chains,
            buckets: layout.buckets.max(1),
            generation: layout.generation,
            mark: layout.mark,
            next_sync_page: layout.next_sync_page,
            fresh,
            free: layout.free,
            stale: Vec::new(),
            retired: layout.retired,
        }
    }

    /// What a mark would say now.
    pub(super) fn mark(&self) -> Mark {
        self.mark
    }

    /// Bytes of the file.
    pub(super) fn file_bytes(&self) -> u64 {
        self.fresh.len() as u64 * PAGE_BYTES as u64
    }

    /// Bytes of memory held.
    pub(super) fn bytes(&self) -> usize {
        self.directory.len() * 4 + self.fresh.len() + (self.free.len() + self.stale.len() + self.retired.len()) * 4
    }

    fn first_page(&self, head: u64) -> u32 {
        self.directory[index(head, self.depth) as usize]
    }

    /// The pages of a bucket.
    fn pages_from(&self, first: u32) -> impl Iterator<Item = u32> + '_ {
        std::iter::once(first).chain(self.chains.get(&first).into_iter().flatten().copied())
    }

    /// The entry of a key, without reading more than it must.
    pub(super) fn find(&self, key: &KeyHash) -> Result<Option<Entry>, Error> {
        let first = self.first_page(key.head());
        if first == NO_PAGE {
            return Ok(None);
        }
        for number in self.pages_from(first) {
            if let Some(entry) = self.file.read(number, |page| page.find(key))? {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    /// Appends the entries of all buckets below a node of the trie.
    pub(super) fn below(&self, place: Place, run: &mut Run) -> Result<(), Error> {
        let (mut head, last) = place.heads();
        let bounds = bounds((head, last));
        loop {
            match self.read_bucket(head, |page| page.read_into(bounds, run))?.checked_add(1) {
                Some(next) if next <= last => head = next,
                _ => return Ok(()),
            }
        }
    }

    /// Calls `with` on the pages of the bucket of keys that begin with `head`; returns the last `head` that belongs there.
    pub(super) fn read_bucket(&self, head: u64, mut with: impl FnMut(Page<'_>)) -> Result<u64, Error> {
        let (first, mut last) = (self.first_page(head), u64::MAX);
        if first == NO_PAGE {
            return Ok(last);
        }
        for number in self.pages_from(first) {
            let (low, high) = self.file.read(number, |page| {
                let heads = page.header.heads();
                with(page);
                heads
            })?;
            if head < low || high < head {
                return Err(self.file.damaged(number));
            }
            last = high;
        }
        Ok(last)
    }

    /// Writes the bucket of the first delta with all deltas that belong there, and takes them out of `deltas`. After an
    /// error all is as it was.
    pub(super) fn write_first(&mut self, deltas: &mut Deltas) -> Result<(), Error> {
        let Some((key, _)) = deltas.first_key_value() else { return Ok(()) };
        let mut bucket = Bucket { depth: 0, prefix: 0, run: Run::with_capacity(self.page_entries), pages: Vec::new() };
        let mut numbers = self.pages_from(self.first_page(key.head()));
        let last = self.read_bucket(key.head(), |page| {
            (bucket.depth, bucket.prefix) = (page.header.depth, page.header.prefix);
            bucket.pages.extend(numbers.next().map(|number| (number, page.contribution(number))));
            page.read_into(EVERYTHING, &mut bucket.run);
        })?;
        drop(numbers);
        let (low, high) = bounds((bucket.prefix, last));
        for (key, entry) in deltas.range(low..=high) {
            overlay(&mut bucket.run, *key, Some(*entry));
        }
        self.replace(bucket)?;
        while deltas.first_key_value().is_some_and(|(key, _)| *key <= high) {
            deltas.pop_first();
        }
        Ok(())
    }

    /// Puts the run of `bucket` in place of its former version, in as many buckets as it takes.
    fn replace(&mut self, bucket: Bucket) -> Result<(), Error> {
        let spread = u8::try_from(self.buckets.ilog2()).unwrap_or(u8::MAX);
        let depth_max = self.depth_max.min(spread.saturating_add(SKEW_DEPTH_MAX));
        let whole = Piece { depth: bucket.depth, prefix: bucket.prefix, run: Vec::new(), pages: Vec::new() };
        let mut pieces = Vec::with_capacity(1);
        split(whole, bucket.run, (self.page_entries, depth_max), &mut pieces);
        let (mut digest, mut pages) = (self.mark.digest, self.mark.pages);
        for at in 0..pieces.len() {
            match self.write_piece(&mut pieces[at]) {
                Ok(contribution) => digest ^= contribution,
                Err(error) => {
                    self.free.extend(pieces.iter().flat_map(|piece| &piece.pages));
                    return Err(error);
                }
            }
            pages += u32::try_from(pieces[at].pages.len()).unwrap_or(u32::MAX);
        }
        for &(page, contribution) in &bucket.pages {
            digest ^= contribution;
            pages -= 1;
            if self.fresh[page as usize] {
                self.stale.push(page)
            } else {
                self.retired.push(page)
            }
            self.chains.remove(&page);
        }
        self.buckets += pieces.len() - 1;
        pieces.iter().for_each(|piece| self.point_at(piece));
        self.mark = Mark { digest, pages, generation: self.generation, ..self.mark };
        Ok(())
    }

    /// Writes the pages of a piece and returns the XOR of their contributions. After an error `piece.pages` are those
    /// that were taken.
    fn write_piece(&mut self, piece: &mut Piece) -> Result<u64, Error> {
        self.generation += 1;
        let parts = piece.run.len().div_ceil(self.page_entries).max(1);
        let parts = u16::try_from(parts).map_err(|_| Error::TooLarge {
            what: "bucket of the state map",
            size: piece.run.len() as u64,
            limit: u64::from(u16::MAX) * self.page_entries as u64,
        })?;
        let (mut bytes, mut digest) = ([0; PAGE_BYTES], 0);
        for part in 0..parts {
            let from = usize::from(part) * self.page_entries;
            let run = &piece.run[from..piece.run.len().min(from + self.page_entries)];
            let header = Header {
                depth: piece.depth,
                prefix: piece.prefix,
                generation: self.generation,
                count: u16::try_from(run.len()).unwrap_or(u16::MAX),
                part,
                parts,
            };
            let number = self.take_page();
            piece.pages.push(number);
            digest ^= encode(number, &header, run, &mut bytes);
            self.file.write(number, &bytes)?;
        }
        Ok(digest)
    }

    fn take_page(&mut self) -> u32 {
        let number = self.free.pop().unwrap_or_else(|| {
            self.fresh.push(true);
            u32::try_from(self.fresh.len() - 1).unwrap_or(u32::MAX)
        });
        self.fresh[number as usize] = true;
        number
    }

    /// Lets the directory find a piece that is written.
    fn point_at(&mut self, piece: &Piece) {
        while self.depth < piece.depth {
            self.directory = self.directory.iter().flat_map(|&page| [page, page]).collect();
            self.depth += 1;
        }
        let (first, rest) = (piece.pages[0], &piece.pages[1..]);
        let from = index(piece.prefix, self.depth) as usize;
        self.directory[from..from + (1 << (self.depth - piece.depth))].fill(first);
        if !rest.is_empty() {
            self.chains.insert(first, rest.to_vec());
        }
    }

    /// Writes the flush mark: the pages hold every change up to `block` and none after `newest`. Not a sync.
    pub(super) fn write_flush_mark(&mut self, block: u64, newest: u64) -> Result<(), Error> {
        (self.mark.block, self.mark.newest) = (block, newest);
        let mut bytes = [0; PAGE_BYTES];
        self.mark.encode(FLUSH_MARK_PAGE, &mut bytes);
        self.file.write(FLUSH_MARK_PAGE, &bytes)?;
        self.free.append(&mut self.stale);
        Ok(())
    }

    /// Begins a sync of all that is written. From here on the live pages are kept until the next sync is done.
    /// The caller syncs the file, writes the mark to its page, syncs again, and calls [`Buckets::finish_sync`].
    pub(super) fn begin_sync(&mut self) -> SyncPoint {
        self.fresh.fill(false);
        // A stale page is fresh again only when it is reused, and none is reused before the next flush mark.
        SyncPoint { mark: self.mark, page: self.next_sync_page, retired: std::mem::take(&mut self.retired) }
    }

    /// The mark of `point` is durable.
    pub(super) fn finish_sync(&mut self, point: SyncPoint) {
        self.free.extend(point.retired);
        self.next_sync_page = 1 - point.page;
    }
}

/// Cuts a run into pieces of at most `limits.0` entries, but no deeper than `limits.1`.
fn split(piece: Piece, mut run: Run, limits: (usize, u8), pieces: &mut Vec<Piece>) {
    if run.len() <= limits.0 || piece.depth >= limits.1 {
        pieces.push(Piece { run, ..piece });
        return;
    }
    let right = run.split_off(run.partition_point(|(key, _)| !key.bit(usize::from(piece.depth))));
    let depth = piece.depth + 1;
    let prefix = piece.prefix | 1 << (64 - u32::from(depth));
    split(Piece { depth, prefix: piece.prefix, run: Vec::new(), pages: Vec::new() }, run, limits, pieces);
    split(Piece { depth, prefix, run: Vec::new(), pages: Vec::new() }, right, limits, pieces);
}
