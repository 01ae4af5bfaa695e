//! Reads: a key now or at a past block, its history, listings, entries. Each sees one block.

use bytes::Bytes;

use crate::command::{Key, RESERVED_PREFIX};
use crate::entry::{Change as EntryChange, Entry};
use crate::error::Error;
use crate::ledger::{BlockPlace, Ledger, block_row, first_of_block, key_hash};
use crate::machine::{HISTORY_STRIDE, damaged_entry, history_key, previous_of};
use crate::planted::{Bug, planted};
use crate::salts;
use crate::state_root::KeyHash;
use crate::store::{Tree, entries, values};
use crate::view::{BlockRow, Change, Found, HistoryPage, KeyPage, KeyRow, Opening, Reading, Record, Value, Version};

/// Names looked at for one page of a listing, beyond which it is cut short (deleted keys do not show).
const NAMES_PER_PAGE: usize = 2000;
/// Sorts after every reserved name and before every other that is greater.
const PAST_RESERVED: &str = "\u{7f}";

impl Ledger {
    /// Reads a key as of the head, or as of the end of block `at`.
    pub(crate) fn get(&self, key: &Key, at: Option<u64>) -> Result<Reading, Error> {
        let chain = self.chain();
        let head = chain.head.height;
        let newest = self.map.get(&key_hash(key))?;
        let Some(height) = at.filter(|at| *at != head) else {
            let found = match newest.filter(|s| s.exists()) {
                Some(stored) => self.value(key, stored.revision)?,
                None => Found::Absent,
            };
            return Ok(Reading { block: head, found });
        };
        drop(chain);
        if height > head {
            return Err(Error::NotFound(format!("block {height} (the head is block {head})")));
        }
        let revision = match newest.filter(|_| height > 0) {
            Some(s) => self.revision_at(key, s.revision, s.versions, block_row(&self.rows, height)?.last)?,
            None => None,
        };
        let found = revision.map_or(Ok(Found::Absent), |revision| self.value(key, revision))?;
        Ok(Reading { block: height, found })
    }

    /// The newest put or deletion of a key at or below index `end`: a binary search among the marks, then a walk of less
    /// than a stride.
    fn revision_at(&self, key: &Key, newest: u64, versions: u32, end: u64) -> Result<Option<u64>, Error> {
        let hash = key_hash(key);
        let marks = versions / HISTORY_STRIDE;
        // The first mark above `end`.
        let (mut low, mut high) = (1, marks + 1);
        while low < high {
            let middle = low.midpoint(high);
            if self.mark(&hash, middle)? > end { high = middle } else { low = middle + 1 }
        }
        let start = if low > marks { newest } else { self.mark(&hash, low)? };
        self.walk(key, start, end)
    }

    fn walk(&self, key: &Key, newest: u64, end: u64) -> Result<Option<u64>, Error> {
        let mut at = newest;
        while at > end {
            let line = entries::one(&self.rows, at)?.line;
            match previous_of(&line, key.as_str()).map_err(|e| damaged_entry(at, &e))? {
                Some(previous) => at = previous,
                None => return Ok(None),
            }
        }
        Ok(Some(at))
    }

    /// A key's revision number `mark` × [`HISTORY_STRIDE`].
    fn mark(&self, hash: &KeyHash, mark: u32) -> Result<u64, Error> {
        let row = self.rows.get(Tree::History, &history_key(hash, mark))?;
        let revision = row.as_deref().and_then(|row| Some(u64::from_be_bytes(*row.as_array()?)));
        revision.ok_or_else(|| Error::DamagedStore(format!("mark {mark} of a key's revisions is missing")))
    }

    /// The value that the entry `revision` put under a key.
    fn value(&self, key: &Key, revision: u64) -> Result<Found, Error> {
        let stored = entries::one(&self.rows, revision)?;
        let entry = Entry::parse(&stored.line).map_err(|e| damaged_entry(revision, &e))?;
        let mut slot = stored.slot;
        for change in entry.changes() {
            match change {
                EntryChange::Put { key: name, media_type, blob, .. } if name == key.as_str() => {
                    return Ok(match self.opening(revision, slot)? {
                        Opening::Erased { erased_by } => Found::Erased { revision, erased_by },
                        Opening::Value { value, .. } => Found::Value(Value {
                            revision,
                            content: value,
                            media_type: media_type.to_string(),
                            blob: *blob,
                        }),
                    });
                }
                EntryChange::Put { .. } => slot += 1,
                _ => {}
            }
        }
        Ok(Found::Absent)
    }

    /// What is left of the value in a slot.
    pub(crate) fn opening(&self, revision: u64, slot: u64) -> Result<Opening, Error> {
        let ciphertext = match values::one(&self.rows, slot)? {
            values::Stored::Erased(erased_by) => return Ok(Opening::Erased { erased_by }),
            values::Stored::Ciphertext(bytes) => bytes,
        };
        let Some(salt) = self.salts.read(slot)? else {
            // The salt goes before the row says so.
            return match values::one(&self.rows, slot)? {
                values::Stored::Erased(erased_by) => Ok(Opening::Erased { erased_by }),
                values::Stored::Ciphertext(_) => {
                    tracing::warn!(revision, "a salt is gone that no entry erased; if it stays so, restore a backup");
                    Err(Error::Unavailable(format!(
                        "the salt of revision {revision} is gone: it is being erased now, or the salt file is damaged; ask again, \
                     and restore a backup if that does not help"
                    )))
                }
            };
        };
        Ok(Opening::Value { salt, value: salts::open(&salt, revision, ciphertext)?.into() })
    }

    /// Keys that exist, in byte order.
    pub(crate) fn keys(&self, prefix: &str, after: Option<&Key>, limit: usize) -> Result<KeyPage, Error> {
        let chain = self.chain();
        let system = prefix.starts_with(RESERVED_PREFIX);
        let mut page = KeyPage { block: chain.head.height, keys: Vec::new(), next: None };
        let mut last = after.map(|key| key.as_str().to_owned());
        let mut from = last.clone();
        let mut looked_at = 0;
        loop {
            let names = chain.names.page(&self.rows, prefix, from.as_deref(), limit + 1)?;
            let mut end = names.len() <= limit;
            for name in names.into_iter().take(limit) {
                if page.keys.len() == limit || looked_at == NAMES_PER_PAGE {
                    page.next = last.map(Key::stored);
                    return Ok(page);
                }
                looked_at += 1;
                if name.starts_with(RESERVED_PREFIX) && !system {
                    from = Some(PAST_RESERVED.to_owned());
                    end = false;
                    break;
                }
                page.keys.extend(self.key_row(&name)?);
                last = Some(name);
                from.clone_from(&last);
            }
            if end {
                return Ok(page);
            }
        }
    }

    fn key_row(&self, name: &str) -> Result<Option<KeyRow>, Error> {
        let key = Key::stored(name.to_owned());
        let Some(stored) = self.map.get(&key_hash(&key))?.filter(|s| s.exists()) else { return Ok(None) };
        let revision = stored.revision;
        let line = entries::one(&self.rows, revision)?.line;
        let entry = Entry::parse(&line).map_err(|e| damaged_entry(revision, &e))?;
        Ok(entry.changes().iter().find_map(|change| match change {
            EntryChange::Put { key: put, size, media_type, blob, .. } if put == name => {
                let media_type = media_type.to_string();
                Some(KeyRow { key: key.clone(), revision, blob: *blob, size: *size, media_type })
            }
            _ => None,
        }))
    }

    /// Revisions of a key below `before`, newest first.
    pub(crate) fn history(&self, key: &Key, before: Option<u64>, limit: usize) -> Result<HistoryPage, Error> {
        let newest = self.map.get(&key_hash(key))?;
        let mut page = HistoryPage { versions: Vec::new(), next: None };
        let Some(newest) = newest else { return Ok(page) };
        let mut at = match before {
            None => Some(newest.revision),
            Some(0) => None,
            Some(before) => self.revision_at(key, newest.revision, newest.versions, before - 1)?,
        };
        while let Some(revision) = at {
            if page.versions.len() == limit {
                page.next = page.versions.last().map(|v: &Version| v.revision);
                break;
            }
            let (version, previous) = self.version(key, revision)?;
            page.versions.push(version);
            at = previous;
        }
        Ok(page)
    }

    fn version(&self, key: &Key, revision: u64) -> Result<(Version, Option<u64>), Error> {
        let stored = entries::one(&self.rows, revision)?;
        let Entry::Transaction(t) = Entry::parse(&stored.line).map_err(|e| damaged_entry(revision, &e))? else {
            return Err(damaged_entry(revision, &"no transaction"));
        };
        let mut slot = stored.slot;
        for change in &t.changes {
            let (change, previous) = match change {
                EntryChange::Put { key: name, size, media_type, blob, previous, .. } if name == key.as_str() => {
                    let erased_by = match values::one(&self.rows, slot)? {
                        values::Stored::Erased(by) => Some(by),
                        values::Stored::Ciphertext(_) => None,
                    };
                    let media_type = media_type.to_string();
                    (Change::Put { size: *size, media_type, blob: *blob, erased_by }, *previous)
                }
                EntryChange::Delete { key: name, previous } if name == key.as_str() => {
                    (Change::Delete, Some(*previous))
                }
                EntryChange::Put { .. } => {
                    slot += 1;
                    continue;
                }
                _ => continue,
            };
            let block = self.block_of(revision)?;
            return Ok((
                Version { revision, time_ms: t.time_ms, author: t.author.to_string(), block, change },
                previous,
            ));
        }
        Err(damaged_entry(revision, &"it does not name the key that points to it"))
    }

    /// Height of the block that holds an entry.
    fn block_of(&self, index: u64) -> Result<u64, Error> {
        let (mut low, mut high) = (1, self.chain().head.height);
        while low < high {
            let middle = low.midpoint(high);
            if block_row(&self.rows, middle)?.last >= index { high = middle } else { low = middle + 1 }
        }
        Ok(low)
    }

    /// Entries from `first` on, with the values still held.
    pub(crate) fn records(&self, first: u64, limit: usize) -> Result<Vec<Record>, Error> {
        let size = self.chain().head.size;
        if first >= size {
            return Ok(Vec::new());
        }
        let room = usize::try_from(size - first).unwrap_or(usize::MAX);
        let mut block = self.block_of(first)?;
        let mut records = Vec::new();
        for (index, stored) in (first..).zip(entries::from(&self.rows, first, limit.min(room))?) {
            let entry = Entry::parse(&stored.line).map_err(|e| damaged_entry(index, &e))?;
            let openings = self.openings(index, stored.slot, &entry)?;
            let closes = matches!(entry, Entry::Block(_));
            records.push(Record { index, block, line: stored.line.clone().into(), openings });
            block += u64::from(closes);
        }
        if planted(Bug::WatchLeavesOut) && limit <= 64 && records.len() > 2 {
            records.remove(1);
        }
        Ok(records)
    }

    /// One entry with the values still held.
    pub(crate) fn record(&self, index: u64) -> Result<Record, Error> {
        let missing = || Error::NotFound(format!("entry {index} (the log has {} entries)", self.chain().head.size));
        self.records(index, 1)?.pop().ok_or_else(missing)
    }

    fn openings(&self, index: u64, first_slot: u64, entry: &Entry<'_>) -> Result<Vec<(Key, Opening)>, Error> {
        let puts = entry.changes().iter().filter(|change| matches!(change, EntryChange::Put { .. }));
        puts.zip(first_slot..)
            .map(|(put, slot)| Ok((Key::stored(put.key().to_owned()), self.opening(index, slot)?)))
            .collect()
    }

    /// Entries from `first` on, each with its length before it (u16 BE): a tlog-tiles bundle.
    pub(crate) fn bundle(&self, first: u64, count: usize) -> Result<Vec<u8>, Error> {
        let mut bundle = Vec::with_capacity(count * 384);
        for stored in entries::from(&self.rows, first, count)? {
            let length = u16::try_from(stored.line.len());
            bundle.extend_from_slice(&length.map_err(|_| damaged_entry(first, &"an entry too long"))?.to_be_bytes());
            bundle.extend_from_slice(&stored.line);
        }
        Ok(bundle)
    }

    /// Blocks above `after`, in order.
    pub(crate) fn blocks(&self, after: u64, limit: usize) -> Result<Vec<BlockRow>, Error> {
        let head = self.chain().head.height;
        (after.saturating_add(1)..=head).take(limit).map(|height| self.block(height)).collect()
    }

    /// One block.
    pub(crate) fn block(&self, height: u64) -> Result<BlockRow, Error> {
        let BlockPlace { last, time_ms, .. } = block_row(&self.rows, height)?;
        let line: Bytes = entries::one(&self.rows, last)?.line.into();
        Ok(BlockRow { height, first: first_of_block(&self.rows, height)?, last, time_ms, line })
    }
}
