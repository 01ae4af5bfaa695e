//! One page: a sorted run of entries whose key hashes share a prefix, under a checksum that covers the page's own number.
//!
//! Layout (little-endian, [`PAGE_BYTES`] bytes; what lies behind the entries is zero):
//!
//! ```text
//! 0  crc32 of page number ‖ bytes 4.. to the last entry    4  format      6  depth of the prefix, bits
//! 8  entries in this page    10 part, 12 parts of the bucket (> 1: overflow)
//! 16 generation              24 prefix: first 64 bits of the key hashes, zero behind `depth`
//! 32 entries: key hash 32, leaf hash 32 (zero when deleted), revision 8, versions 4, state 1
//! ```

use super::proof::KeyHash;

/// Size of a page, and the unit of writing, in bytes.
pub(super) const PAGE_BYTES: usize = 4096;
/// Bytes in front of the entries.
const HEADER_BYTES: usize = 32;
/// Bytes of an entry.
const ENTRY_BYTES: usize = 77;
/// Most entries in a page.
pub const PAGE_ENTRIES_MAX: usize = (PAGE_BYTES - HEADER_BYTES) / ENTRY_BYTES;
/// `SM`, version 1.
const FORMAT: u16 = u16::from_le_bytes([b'S', 1]);

/// What the current revision of a key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// A value.
    Live,
    /// A value that was erased: still in the trie.
    Erased,
    /// Nothing: the key is not in the trie, but its last revision is remembered.
    Deleted,
}

/// What is kept of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    /// Leaf hash; zero when deleted.
    pub(super) leaf: [u8; 32],
    pub(super) revision: u64,
    pub(super) versions: u32,
    pub(super) state: State,
}

impl Entry {
    /// Whether the key is in the trie.
    pub(super) fn in_trie(&self) -> bool {
        self.state != State::Deleted
    }

    /// Whether this is later than `other` in the life of one key: an erase keeps the revision that it erases.
    pub(super) fn supersedes(&self, other: &Self) -> bool {
        (self.revision, self.state == State::Erased) > (other.revision, other.state == State::Erased)
    }
}

/// Entries sorted by key hash, each key once.
pub(super) type Run = Vec<(KeyHash, Entry)>;

/// Puts an entry into a run in place of the key's former one; `None` takes the key out.
pub(super) fn overlay(run: &mut Run, key: KeyHash, entry: Option<Entry>) {
    match (run.binary_search_by(|(k, _)| k.cmp(&key)), entry) {
        (Ok(at), Some(entry)) => run[at].1 = entry,
        (Ok(at), None) => drop(run.remove(at)),
        (Err(at), Some(entry)) => run.insert(at, (key, entry)),
        (Err(_), None) => {}
    }
}

/// The front of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) depth: u8,
    pub(super) prefix: u64,
    pub(super) generation: u64,
    pub(super) count: u16,
    pub(super) part: u16,
    pub(super) parts: u16,
}

/// The bytes of a page.
pub(super) type PageBytes = [u8; PAGE_BYTES];

impl Header {
    /// First and last value that the first 64 bits of a key of this bucket can have.
    pub(super) fn heads(&self) -> (u64, u64) {
        (self.prefix, self.prefix | u64::MAX.checked_shr(u32::from(self.depth)).unwrap_or(0))
    }
}

/// A page that passed its checksum.
pub(super) struct Page<'a> {
    pub(super) header: Header,
    crc: u32,
    entries: &'a [[u8; ENTRY_BYTES]],
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

fn checksum(number: u32, covered: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&number.to_le_bytes());
    hasher.update(covered);
    hasher.finalize()
}

impl<'a> Page<'a> {
    /// Reads page `number`; `None` when it is damaged, was never written, or belongs elsewhere.
    pub(super) fn parse(number: u32, bytes: &'a PageBytes) -> Option<Self> {
        let page = Self::trusted(bytes)?;
        let end = HEADER_BYTES + page.entries.len() * ENTRY_BYTES;
        let intact = checksum(number, &bytes[4..end]) == page.crc && page.header.part < page.header.parts;
        intact.then_some(page)
    }

    /// Reads a page that passed [`Page::parse`] before.
    pub(super) fn trusted(bytes: &'a PageBytes) -> Option<Self> {
        let count = u16::from_le_bytes(field(bytes, 8));
        let end = HEADER_BYTES + usize::from(count) * ENTRY_BYTES;
        if u16::from_le_bytes(field(bytes, 4)) != FORMAT || end > PAGE_BYTES {
            return None;
        }
        let header = Header {
            depth: bytes[6],
            prefix: u64::from_le_bytes(field(bytes, 24)),
            generation: u64::from_le_bytes(field(bytes, 16)),
            count,
            part: u16::from_le_bytes(field(bytes, 10)),
            parts: u16::from_le_bytes(field(bytes, 12)),
        };
        Some(Self { header, crc: u32::from_le_bytes(field(bytes, 0)), entries: bytes[HEADER_BYTES..end].as_chunks().0 })
    }

    /// What this page adds to the digest of the set of live pages.
    pub(super) fn contribution(&self, number: u32) -> u64 {
        contribution(number, self.header.generation, self.crc)
    }

    /// The entry of a key.
    pub(super) fn find(&self, key: &KeyHash) -> Option<Entry> {
        let at = self.entries.binary_search_by(|entry| KeyHash(field(entry, 0)).cmp(key)).ok()?;
        Some(decode(&self.entries[at]).1)
    }

    /// Appends the entries from `low` to `high`.
    pub(super) fn read_into(&self, (low, high): (KeyHash, KeyHash), run: &mut Run) {
        let from = self.entries.partition_point(|entry| KeyHash(field(entry, 0)) < low);
        let rest = self.entries[from..].iter().map(decode);
        run.extend(rest.take_while(|(key, _)| *key <= high));
    }
}

/// A word that hardly any other page version has (the mixer of splitmix64): no defence against forgers, who must face
/// the state root instead.
fn contribution(number: u32, generation: u64, crc: u32) -> u64 {
    let mut word = generation.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (u64::from(number) << 32 | u64::from(crc));
    word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

fn decode(bytes: &[u8; ENTRY_BYTES]) -> (KeyHash, Entry) {
    let entry = Entry {
        leaf: field(bytes, 32),
        revision: u64::from_le_bytes(field(bytes, 64)),
        versions: u32::from_le_bytes(field(bytes, 72)),
        state: match bytes[76] {
            0 => State::Live,
            1 => State::Erased,
            _ => State::Deleted,
        },
    };
    (KeyHash(field(bytes, 0)), entry)
}

/// Writes page `number` into `bytes` and returns its contribution. `run` has at most [`PAGE_ENTRIES_MAX`] entries, and
/// `header.count` of them.
pub(super) fn encode(number: u32, header: &Header, run: &[(KeyHash, Entry)], bytes: &mut PageBytes) -> u64 {
    bytes[4..6].copy_from_slice(&FORMAT.to_le_bytes());
    bytes[6..8].copy_from_slice(&[header.depth, 0]);
    bytes[8..10].copy_from_slice(&header.count.to_le_bytes());
    bytes[10..12].copy_from_slice(&header.part.to_le_bytes());
    bytes[12..14].copy_from_slice(&header.parts.to_le_bytes());
    bytes[14..16].fill(0);
    bytes[16..24].copy_from_slice(&header.generation.to_le_bytes());
    bytes[24..32].copy_from_slice(&header.prefix.to_le_bytes());
    let end = HEADER_BYTES + run.len() * ENTRY_BYTES;
    let (slots, _) = bytes[HEADER_BYTES..end].as_chunks_mut::<ENTRY_BYTES>();
    for (slot, (key, entry)) in slots.iter_mut().zip(run) {
        slot[..32].copy_from_slice(&key.0);
        slot[32..64].copy_from_slice(&entry.leaf);
        slot[64..72].copy_from_slice(&entry.revision.to_le_bytes());
        slot[72..76].copy_from_slice(&entry.versions.to_le_bytes());
        slot[76] = entry.state as u8;
    }
    bytes[end..].fill(0);
    let crc = checksum(number, &bytes[4..end]);
    bytes[..4].copy_from_slice(&crc.to_le_bytes());
    contribution(number, header.generation, crc)
}

/// Where the pages stood when the mark was written: which of them are live, and which blocks they hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Mark {
    /// Every change of this block and earlier ones is in the pages.
    pub(super) block: u64,
    /// No change of a later block than this is in the pages.
    pub(super) newest: u64,
    /// Pages of later generations do not count.
    pub(super) generation: u64,
    /// XOR of the contributions of the live pages.
    pub(super) digest: u64,
    /// Number of live pages.
    pub(super) pages: u32,
}

const MARK_FORMAT: u16 = u16::from_le_bytes([b'K', 1]);
const MARK_BYTES: usize = 44;

impl Mark {
    /// Writes the mark into page `number`.
    pub(super) fn encode(&self, number: u32, bytes: &mut PageBytes) {
        bytes.fill(0);
        bytes[4..6].copy_from_slice(&MARK_FORMAT.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.block.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.generation.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.digest.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.newest.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.pages.to_le_bytes());
        let crc = checksum(number, &bytes[4..MARK_BYTES]);
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
    }

    /// Reads a mark from page `number`; `None` when it is damaged or was never written.
    pub(super) fn parse(number: u32, bytes: &PageBytes) -> Option<Self> {
        let intact = u16::from_le_bytes(field(bytes, 4)) == MARK_FORMAT
            && u32::from_le_bytes(field(bytes, 0)) == checksum(number, &bytes[4..MARK_BYTES]);
        intact.then(|| Self {
            block: u64::from_le_bytes(field(bytes, 8)),
            generation: u64::from_le_bytes(field(bytes, 16)),
            digest: u64::from_le_bytes(field(bytes, 24)),
            newest: u64::from_le_bytes(field(bytes, 32)),
            pages: u32::from_le_bytes(field(bytes, 40)),
        })
    }
}
