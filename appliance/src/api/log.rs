//! The log as a whole: blocks, checkpoint, tiles, keys of the log.

use hyper::StatusCode;
use hyper::header::{CACHE_CONTROL, HeaderValue};
use samovar_node::view::{BlockRow, LogInfo};
use samovar_node::{Error, rt};
use serde::Serialize;
use serde_json::value::RawValue;

use super::problem::Problem;
use super::{Call, Handled, render};
use crate::serve::write_vkey;

/// Entries and hashes of a full tile.
const TILE_WIDTH: u16 = 256;
/// Highest level of a tile (tlog-tiles).
const LEVEL_MAX: u8 = 5;

#[derive(Serialize)]
struct BlockPage<'a> {
    blocks: Vec<Block<'a>>,
    next: Option<u64>,
}

#[derive(Serialize)]
struct Block<'a> {
    height: u64,
    first: u64,
    last: u64,
    time_ms: u64,
    entry: &'a RawValue,
}

/// `GET /v1/blocks`.
pub(crate) async fn blocks(call: Call) -> Handled {
    let limit = call.query.limit();
    let rows = call.app.node.blocks(call.query.number("after").unwrap_or(0), limit).await?;
    let next = if rows.len() == limit { rows.last().map(|b| b.height) } else { None };
    let blocks = rows.iter().map(shown).collect::<Result<_, _>>()?;
    Ok(render::compressible(render::json(StatusCode::OK, &BlockPage { blocks, next })?))
}

/// `GET /v1/blocks/{height}`.
pub(crate) async fn block(call: Call) -> Handled {
    let row = call.app.node.block(call.number("the height")?).await.map_err(|error| match error {
        Error::NotFound(what) => Problem::missing("no-such-block", format!("{what} does not exist yet")),
        other => other.into(),
    })?;
    render::json(StatusCode::OK, &shown(&row)?)
}

fn shown(row: &BlockRow) -> Result<Block<'_>, Problem> {
    let entry = serde_json::from_slice(&row.line).map_err(|e| Problem::internal(&e))?;
    let BlockRow { height, first, last, time_ms, .. } = *row;
    Ok(Block { height, first, last, time_ms, entry })
}

/// `GET /checkpoint`.
pub(crate) async fn checkpoint(call: Call) -> Handled {
    match call.app.node.checkpoint() {
        Some(checkpoint) => Ok(render::text(checkpoint.as_bytes().to_vec())),
        None => Err(Problem::missing("no-checkpoint", "no checkpoint meets the policy yet; try again")),
    }
}

/// `GET /tile/{tile}`.
pub(crate) async fn tile(call: Call) -> Handled {
    let Some(tile) = Tile::parse(call.captured()) else {
        return Err(Problem::missing("no-such-tile", "not a path of a tile (C2SP tlog-tiles)"));
    };
    let node = &call.app.node;
    let bytes = match tile.level {
        Some(level) => node.tile(level, tile.index, tile.width).await,
        None => node.entry_bundle(tile.index, tile.width).await,
    };
    let bytes = bytes.map_err(|error| match error {
        Error::NotFound(what) => Problem::missing("no-such-tile", format!("{what} does not exist yet")),
        other => other.into(),
    })?;
    let octets = HeaderValue::from_static("application/octet-stream");
    let mut response = render::content(StatusCode::OK, octets, bytes);
    // A tile never changes; who may keep it depends on who may read it.
    let public = HeaderValue::from_static("public, max-age=31536000, immutable");
    let private = HeaderValue::from_static("private, max-age=31536000, immutable");
    response.headers_mut().insert(CACHE_CONTROL, if call.app.openness.get().public { public } else { private });
    Ok(response)
}

#[derive(Serialize)]
struct Log<'a> {
    origin: &'a str,
    vkey: &'a str,
    cosigners: &'a [String],
    policy: &'a str,
    /// Entries that changed the log key; their receipts lead from the first key to this one.
    key_changes: &'a [u64],
}

/// `GET /v1/log`.
pub(crate) async fn info(call: Call) -> Handled {
    let node = &call.app.node;
    let (LogInfo { origin, vkey, cosigners, policy }, key_changes) = (node.log_info(), node.log_key_changes().await?);
    let log = Log { origin: &origin, vkey: &vkey, cosigners: &cosigners, policy: &policy, key_changes: &key_changes };
    render::json(StatusCode::OK, &log)
}

#[derive(Serialize)]
struct RotatedLogKey<'a> {
    vkey: &'a str,
    transaction: u64,
}

/// `POST /v1/log/key`. In a task of its own: a client that goes away does not keep `log.vkey` from following.
pub(crate) async fn rotate_key(call: Call) -> Handled {
    let (app, author) = (call.app.clone(), call.principal.id.clone());
    let done = rt::spawn(async move {
        let (committed, info) = app.node.rotate_log_key(&author).await?;
        let (data, vkey) = (app.data.clone(), info.vkey.clone());
        let written = rt::blocking(move || write_vkey(&data, &vkey)).await.map_err(|e| Problem::internal(&e))?;
        if let Err(error) = written {
            tracing::error!("the log key is rotated, but log.vkey is not replaced; the next start does it: {error:#}");
        }
        Ok::<_, Problem>((committed, info))
    });
    let (committed, info) = done.await.map_err(|e| Problem::internal(&e))??;
    let rotated = RotatedLogKey { vkey: &info.vkey, transaction: committed.transaction };
    Ok(render::committed(render::json(StatusCode::CREATED, &rotated)?, &committed))
}

/// Coordinates of a tile: of hashes at a level, or of entries.
#[derive(Debug, PartialEq, Eq)]
struct Tile {
    level: Option<u8>,
    index: u64,
    width: u16,
}

impl Tile {
    /// `L/N[.p/W]` with L `entries` or 0–5, N in groups of three digits, all but the last with an `x` before them. One
    /// spelling per tile.
    fn parse(path: &str) -> Option<Self> {
        let (level, rest) = path.split_once('/')?;
        let level = match level {
            "entries" => None,
            digits => Some(u8::try_from(super::query::whole_number(digits)?).ok().filter(|l| *l <= LEVEL_MAX)?),
        };
        let (index, width) = match rest.split_once(".p/") {
            Some((index, width)) => {
                let width = u16::try_from(super::query::whole_number(width)?).ok()?;
                (index, Some(width).filter(|w| (1..TILE_WIDTH).contains(w))?)
            }
            None => (rest, TILE_WIDTH),
        };
        Some(Self { level, index: Self::parse_index(index)?, width })
    }

    fn parse_index(text: &str) -> Option<u64> {
        let groups: Vec<_> = text.split('/').collect();
        let mut index = 0u64;
        for (i, group) in groups.iter().enumerate() {
            let digits = if i + 1 < groups.len() { group.strip_prefix('x')? } else { group };
            if digits.len() != 3 || !digits.bytes().all(|b| b.is_ascii_digit()) {
                return None;
            }
            if i == 0 && groups.len() > 1 && digits == "000" {
                return None;
            }
            index = index.checked_mul(1000)?.checked_add(digits.parse().ok()?)?;
        }
        Some(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tile_paths() {
        let tile = |level, index, width| Some(Tile { level, index, width });
        let table = [
            ("0/000", tile(Some(0), 0, 256)),
            ("5/x001/x234/067", tile(Some(5), 1_234_067, 256)),
            ("1/x001/000.p/1", tile(Some(1), 1000, 1)),
            ("entries/999.p/255", tile(None, 999, 255)),
            ("entries/x018/x446/x744/x073/x709/x551/615", tile(None, u64::MAX, 256)),
        ];
        for (path, want) in table {
            assert_eq!(Tile::parse(path), want, "{path}");
        }
    }

    #[test]
    fn other_spellings_are_no_tiles() {
        for bad in [
            "",
            "0",
            "0/",
            "0/0",
            "0/00",
            "0/0000",
            "0/x000/001",
            "0/001/002",
            "0/x001",
            "0/x001/x002",
            "6/000",
            "00/000",
            "-1/000",
            "0/000.p/0",
            "0/000.p/256",
            "0/000.p/01",
            "0/000.p/",
            "0/000.p",
            "0/000/",
            "data/000",
            "0/+01",
            "entries/x018/x446/x744/x073/x709/x551/616",
            "0/000.p/1/",
            "0/00a",
            "0/000.p/1.p/1",
        ] {
            assert_eq!(Tile::parse(bad), None, "{bad:?} should be refused");
        }
    }
}
