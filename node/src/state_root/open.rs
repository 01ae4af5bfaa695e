//! Opening the page file: which of the marks holds, and which pages are live under it.

use std::collections::BTreeMap;
use std::path::Path;

use super::buckets::{DIRECTORY_DEPTH_MAX, FIRST_PAGE, Layout};
use super::page::{Header, Mark, PAGE_BYTES, Page};
use super::tree::index;
use crate::disk::File;
use crate::error::Error;

/// Pages read at a time.
const READ_PAGES: usize = 64;

/// An intact page of the file.
struct Found {
    number: u32,
    header: Header,
    contribution: u64,
}

/// The live pages under a mark.
struct Selection {
    directory: Vec<u32>,
    depth: u8,
    chains: BTreeMap<u32, Vec<u32>>,
    buckets: usize,
    /// Numbers of all live pages, sorted.
    pages: Vec<u32>,
    /// Entries in them.
    entries: u64,
}

/// What the page file is good for.
pub(super) enum Content {
    /// A mark holds; the number of entries.
    Intact(Layout, u64),
    /// The file is new.
    New,
    /// No mark holds; the text says what was found.
    Damaged(String),
}

/// Reads all pages and finds the newest mark that holds. Pages of later generations are wiped: else they could be taken
/// for live ones once generations have caught up. Then the file is synced: after a kill in the middle of a sync, a mark
/// may be seen that is not durable yet, and the one that is would be written over next.
pub(super) fn examine(file: &dyn File, path: &Path) -> Result<Content, Error> {
    let Scan { marks, mut found, end } = scan(file, path)?;
    if end == 0 {
        return Ok(Content::New);
    }
    found.sort_unstable_by_key(|page| (page.header.generation, page.header.part));
    let [sync_0, sync_1, flush] = marks;
    let sync = [sync_0.map(|mark| (mark, 0)), sync_1.map(|mark| (mark, 1))].into_iter().flatten();
    let sync = sync.max_by_key(|(mark, _)| (mark.block, mark.generation));
    let holds = |mark: Mark| select(&found, &mark).map(|selection| (mark, selection));
    let synced = sync.and_then(|(mark, _)| holds(mark));
    let synced_pages = synced.as_ref().map_or(Vec::new(), |(_, selection)| selection.pages.clone());
    let best = [synced, flush.and_then(holds)].into_iter().flatten();
    let Some((mark, live)) = best.max_by_key(|(mark, _)| (mark.block, mark.generation)) else {
        return Ok(Content::Damaged(format!(
            "{}: none of the marks {marks:?} holds over {} intact of {end} pages",
            path.display(),
            found.len()
        )));
    };
    wipe_later(file, path, &found, &mark)?;
    file.sync().map_err(|e| Error::io(format!("sync {}", path.display()), &e))?;
    let entries = live.entries;
    let generation = found.last().map_or(0, |page| page.header.generation).max(mark.generation);
    let next_sync_page = sync.map_or(0, |(_, page)| 1 - page);
    Ok(Content::Intact(layout(live, (mark, generation), &synced_pages, (end, next_sync_page)), entries))
}

/// Cuts the file to nothing, durably, so that no page of a former map can be met again, and writes a first mark.
pub(super) fn start_over(file: &dyn File, path: &Path) -> Result<Layout, Error> {
    let mut first = [0; PAGE_BYTES];
    Mark::default().encode(0, &mut first);
    // The pages of the other marks get their room now, so that a full disk cannot keep a mark from being written.
    let marks = [first, [0; PAGE_BYTES], [0; PAGE_BYTES]];
    let written = file.set_length(0).and_then(|()| {
        file.sync()?;
        file.write_at(marks.as_flattened(), 0)?;
        file.sync()
    });
    written.map_err(|e| Error::io(format!("start {} over", path.display()), &e))?;
    Ok(Layout { next_sync_page: 1, end: FIRST_PAGE, ..Layout::default() })
}

fn layout(
    live: Selection,
    (mark, generation): (Mark, u64),
    synced: &[u32],
    (end, next_sync_page): (u32, u32),
) -> Layout {
    let is_in = |pages: &[u32], page: &u32| pages.binary_search(page).is_ok();
    Layout {
        fresh: live.pages.iter().filter(|page| !is_in(synced, page)).copied().collect(),
        retired: synced.iter().filter(|page| !is_in(&live.pages, page)).copied().collect(),
        free: (FIRST_PAGE..end).rev().filter(|page| !is_in(&live.pages, page) && !is_in(synced, page)).collect(),
        directory: live.directory,
        depth: live.depth,
        chains: live.chains,
        buckets: live.buckets,
        mark,
        next_sync_page,
        end,
        generation,
    }
}

/// What is in a file.
struct Scan {
    /// Sync, sync, flush.
    marks: [Option<Mark>; 3],
    /// The intact pages.
    found: Vec<Found>,
    /// Number of pages.
    end: u32,
}

fn scan(file: &dyn File, path: &Path) -> Result<Scan, Error> {
    let mut buffer = vec![0; READ_PAGES * PAGE_BYTES];
    let (mut marks, mut found, mut number) = ([None; 3], Vec::new(), 0_u32);
    loop {
        let read = file.read_at(&mut buffer, u64::from(number) * PAGE_BYTES as u64);
        let read = read.map_err(|e| Error::io(format!("read {}", path.display()), &e))?;
        for bytes in buffer[..read].as_chunks::<PAGE_BYTES>().0 {
            if number < FIRST_PAGE {
                marks[number as usize] = Mark::parse(number, bytes);
            } else if let Some(page) = Page::parse(number, bytes)
                && page.header.depth <= DIRECTORY_DEPTH_MAX
            {
                found.push(Found { number, header: page.header, contribution: page.contribution(number) });
            }
            number += 1;
        }
        if read < buffer.len() {
            // A part of a page at the end was torn off; it counts, so that it is written over.
            let torn = u32::from(!read.is_multiple_of(PAGE_BYTES));
            return Ok(Scan { marks, found, end: number + torn });
        }
    }
}

/// The newest version of every bucket as of a mark, if that is exactly what the mark names. `found` is sorted by
/// generation and part.
fn select(found: &[Found], mark: &Mark) -> Option<Selection> {
    let known = &found[..found.partition_point(|page| page.header.generation <= mark.generation)];
    let depth = known.iter().map(|page| page.header.depth).max().unwrap_or(0);
    let mut directory = vec![0; 1 << depth];
    let versions = || known.chunk_by(|a, b| a.header.generation == b.header.generation);
    for version in versions().filter(|version| version.len() == usize::from(version[0].header.parts)) {
        let Header { depth: own, prefix, .. } = version[0].header;
        let from = index(prefix, depth) as usize;
        directory.get_mut(from..from + (1 << (depth - own)))?.fill(version[0].number);
    }
    let mut selection =
        Selection { directory, depth, chains: BTreeMap::new(), buckets: 0, pages: Vec::new(), entries: 0 };
    let mut digest = 0;
    for version in versions() {
        let first = &version[0];
        if selection.directory[index(first.header.prefix, depth) as usize] != first.number {
            continue;
        }
        selection.buckets += 1;
        for page in version {
            digest ^= page.contribution;
            selection.entries += u64::from(page.header.count);
            selection.pages.push(page.number);
        }
        if version.len() > 1 {
            selection.chains.insert(first.number, version[1..].iter().map(|page| page.number).collect());
        }
    }
    selection.pages.sort_unstable();
    let complete = selection.directory.iter().all(|&page| page != 0) || (known.is_empty() && mark.pages == 0);
    let exact = digest == mark.digest && selection.pages.len() == mark.pages as usize;
    (complete && exact).then_some(selection)
}

fn wipe_later(file: &dyn File, path: &Path, found: &[Found], mark: &Mark) -> Result<(), Error> {
    let later = found.partition_point(|page| page.header.generation <= mark.generation);
    for page in &found[later..] {
        let wiped = file.write_at(&[0; PAGE_BYTES], u64::from(page.number) * PAGE_BYTES as u64);
        wiped.map_err(|e| Error::io(format!("write {}", path.display()), &e))?;
    }
    Ok(())
}
