//! Names and coordinates of tiles (C2SP tlog-tiles): hash tiles and bundles of entries. Pure.

use std::fmt;

/// Hashes in a full tile, entries in a full bundle.
pub const TILE_WIDTH: u16 = 256;
/// Highest level: with it a tile tree spans 2^64 leaves.
pub const LEVEL_MAX: u8 = 7;

/// Width, 0–255, of the partial tile at `level` of a tree of `size` leaves.
#[must_use]
#[allow(clippy::cast_possible_truncation, reason = "the remainder of 256")]
pub fn width_at(size: u64, level: usize) -> u16 {
    (passed(size, level) % u64::from(TILE_WIDTH)) as u16
}

/// Hashes at `level` of a tree of `size` leaves.
fn passed(size: u64, level: usize) -> u64 {
    u32::try_from(8 * level).ok().and_then(|bits| size.checked_shr(bits)).unwrap_or(0)
}

/// What a tile holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Hashes of this level; 0: of leaves.
    Hashes(u8),
    /// Entries, each with its length before it.
    Entries,
}

/// Coordinates of a tile or bundle; as text `tile/0/x001/234.p/56`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tile {
    /// What it holds.
    pub kind: Kind,
    /// Index in its level.
    pub index: u64,
    /// Hashes or entries, 1–256; below 256 it is partial.
    pub width: u16,
}

impl Tile {
    /// Reads a path as in a URL, without a slash before it.
    ///
    /// # Errors
    /// Says which part is not as tlog-tiles has it; there is one path per tile.
    pub fn parse(path: &str) -> Result<Self, &'static str> {
        let rest = path.strip_prefix("tile/").ok_or("a tile's path begins with tile/")?;
        let (kind, rest) = rest.split_once('/').ok_or("a tile's path has a level and an index")?;
        let kind = match kind {
            "entries" => Kind::Entries,
            level => Kind::Hashes(
                small(level)
                    .filter(|l| *l <= u16::from(LEVEL_MAX))
                    .and_then(|l| l.try_into().ok())
                    .ok_or("a level is a number from 0 to 7")?,
            ),
        };
        let (index, width) = match rest.split_once(".p/") {
            None => (rest, TILE_WIDTH),
            Some((index, width)) => {
                let width = small(width).filter(|w| (1..TILE_WIDTH).contains(w));
                (index, width.ok_or("the width of a partial tile is a number from 1 to 255")?)
            }
        };
        let index =
            parse_index(index).ok_or("an index is written in groups of three digits, all but the last behind an x")?;
        Ok(Self { kind, index, width })
    }

    /// Whether every hash or entry of the tile exists in a tree of `size` leaves.
    #[must_use]
    pub fn is_within(&self, size: u64) -> bool {
        let level = match self.kind {
            Kind::Hashes(level) => usize::from(level),
            Kind::Entries => 0,
        };
        let first = self.index.checked_mul(u64::from(TILE_WIDTH));
        first.and_then(|f| f.checked_add(u64::from(self.width))).is_some_and(|end| end <= passed(size, level))
    }

    /// All tiles and bundles of a tree of `size` leaves, full ones and the partial ones of that very size.
    pub fn all(size: u64) -> impl Iterator<Item = Self> {
        let levels = (0..=LEVEL_MAX).map(Kind::Hashes);
        [Kind::Entries].into_iter().chain(levels).flat_map(move |kind| {
            let level = if let Kind::Hashes(level) = kind { usize::from(level) } else { 0 };
            let full = passed(size, level + 1);
            let width = width_at(size, level);
            let partial = (width > 0).then_some(Self { kind, index: full, width });
            (0..full).map(move |index| Self { kind, index, width: TILE_WIDTH }).chain(partial)
        })
    }
}

impl fmt::Display for Tile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Hashes(level) => write!(f, "tile/{level}/")?,
            Kind::Entries => f.write_str("tile/entries/")?,
        }
        let digits = self.index.to_string();
        let groups = digits.len().div_ceil(3);
        let padded = format!("{digits:0>width$}", width = 3 * groups);
        for group in 0..groups {
            let last = group + 1 == groups;
            let text = padded.get(3 * group..3 * group + 3).unwrap_or_default();
            f.write_str(if last { "" } else { "x" })?;
            f.write_str(text)?;
            f.write_str(if last { "" } else { "/" })?;
        }
        if self.width < TILE_WIDTH { write!(f, ".p/{}", self.width) } else { Ok(()) }
    }
}

/// A number of at most three digits without leading zeros.
fn small(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    (digits && (text == "0" || !text.starts_with('0')) && text.len() <= 3).then(|| text.parse().ok())?
}

fn parse_index(text: &str) -> Option<u64> {
    let mut index = 0_u64;
    let groups = text.split('/').count();
    for (n, group) in text.split('/').enumerate() {
        let digits = if n + 1 == groups { group } else { group.strip_prefix('x')? };
        if digits.len() != 3 || !digits.bytes().all(|b| b.is_ascii_digit()) || (groups > 1 && n == 0 && digits == "000")
        {
            return None;
        }
        index = index.checked_mul(1000)?.checked_add(digits.parse().ok()?)?;
    }
    Some(index)
}

/// Appends an entry to a bundle: its length in two bytes, big-endian, and the entry. `false`, and nothing appended, when
/// it is longer than 65,535 bytes.
#[must_use]
pub fn push_bundled(bundle: &mut Vec<u8>, entry: &[u8]) -> bool {
    let Ok(length) = u16::try_from(entry.len()) else { return false };
    bundle.extend_from_slice(&length.to_be_bytes());
    bundle.extend_from_slice(entry);
    true
}

/// The entries of a bundle.
///
/// # Errors
/// When the last length goes beyond the end, or there are more than 256 entries.
pub fn split_bundle(mut bundle: &[u8]) -> Result<Vec<&[u8]>, &'static str> {
    let mut entries = Vec::new();
    while let Some((length, rest)) = bundle.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes(*length));
        let (entry, rest) = rest.split_at_checked(length).ok_or("the bundle ends within an entry")?;
        if entries.len() == usize::from(TILE_WIDTH) {
            return Err("a bundle has at most 256 entries");
        }
        entries.push(entry);
        bundle = rest;
    }
    if bundle.is_empty() { Ok(entries) } else { Err("the bundle ends within a length") }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    #[test]
    fn the_example_of_the_specification_has_its_path() {
        let tile = Tile { kind: Kind::Hashes(0), index: 1_234_067, width: TILE_WIDTH };
        assert_eq!(tile.to_string(), "tile/0/x001/x234/067");
        assert_eq!(Tile { width: 3, ..tile }.to_string(), "tile/0/x001/x234/067.p/3");
    }

    #[test]
    fn a_tree_of_70000_has_the_tiles_that_the_specification_lists() {
        let tiles: Vec<_> = Tile::all(70_000).filter(|t| t.kind != Kind::Entries).collect();
        let full = |level| tiles.iter().filter(|t| t.kind == Kind::Hashes(level) && t.width == 256).count();
        let partial = |level| tiles.iter().find(|t| t.kind == Kind::Hashes(level) && t.width < 256).map(|t| t.width);
        assert_eq!([full(0), full(1), full(2)], [273, 1, 0]);
        assert_eq!([partial(0), partial(1), partial(2), partial(3)], [Some(112), Some(17), Some(1), None]);
        assert!(tiles.iter().all(|t| t.is_within(70_000)));
        let of_256: Vec<_> = Tile::all(256).map(|t| t.to_string()).collect();
        assert_eq!(of_256, ["tile/entries/000", "tile/0/000", "tile/1/000.p/1"]);
        assert_eq!(Tile::all(0).count(), 0);
    }

    #[test]
    fn every_tile_has_one_path() {
        let seed = rand::random();
        println!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        for _ in 0..5_000 {
            let index = rng.r#gen::<u64>() >> rng.gen_range(0..64);
            let kind = if rng.r#gen() { Kind::Entries } else { Kind::Hashes(rng.gen_range(0..=LEVEL_MAX)) };
            let tile = Tile { kind, index, width: rng.gen_range(1..=TILE_WIDTH) };
            let path = tile.to_string();
            assert_eq!(Tile::parse(&path), Ok(tile), "{path}");
            let mut bytes = path.into_bytes();
            let at = rng.gen_range(0..bytes.len());
            match rng.gen_range(0..3) {
                0 => bytes[at] = b"0123456789x/.p \x00"[rng.gen_range(0..16)],
                1 => drop(bytes.remove(at)),
                _ => bytes.insert(at, b"0123456789x/.p \x00"[rng.gen_range(0..16)]),
            }
            let mutated = String::from_utf8(bytes).unwrap();
            if let Ok(other) = Tile::parse(&mutated) {
                assert_eq!(other.to_string(), mutated, "a second path for {other:?}");
            }
        }
    }

    #[test]
    fn other_paths_are_refused() {
        for path in [
            "",
            "tile",
            "tile/",
            "tile/0",
            "tile/0/",
            "tile/00/000",
            "tile/8/000",
            "tile/+1/000",
            "tile/-1/000",
            "tile/a/000",
            "tile/0/0",
            "tile/0/0000",
            "tile/0/x000/000",
            "tile/0/x001",
            "tile/0/001/002",
            "tile/0/X001/002",
            "tile/0/000.p",
            "tile/0/000.p/",
            "tile/0/000.p/0",
            "tile/0/000.p/256",
            "tile/0/000.p/01",
            "tile/0/000.p/1/",
            "tile/0/000/",
            "/tile/0/000",
            "tile/0/x018/x446/x744/x073/x709/x551/616",
            "tile/entries/x1",
            "tile/0/00\u{661}",
        ] {
            assert!(Tile::parse(path).is_err(), "{path:?} was taken as a tile");
        }
        assert!(
            Tile::parse("tile/0/x018/x446/x744/x073/x709/x551/615")
                .is_ok_and(|t| t.index == u64::MAX && !t.is_within(u64::MAX))
        );
    }

    #[test]
    fn a_bundle_gives_back_its_entries() {
        let entries: Vec<Vec<u8>> = (0..256).map(|n| vec![7; n * 3]).collect();
        let mut bundle = Vec::new();
        assert!(entries.iter().all(|e| push_bundled(&mut bundle, e)));
        assert_eq!(split_bundle(&bundle).unwrap(), entries);
        assert!(!push_bundled(&mut bundle, &vec![0; 65_536]), "an entry above the limit was bundled");
        assert!(split_bundle(&bundle[..bundle.len() - 1]).is_err());
        assert!(split_bundle(&[0]).is_err());
        assert!(push_bundled(&mut bundle, b"one more"));
        assert!(split_bundle(&bundle).is_err(), "257 entries in a bundle");
        assert_eq!(split_bundle(b""), Ok(vec![]));
    }
}
