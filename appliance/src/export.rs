//! `samovar export --tiles DIR`: the whole chain log as a static tlog-tiles directory that any file server can serve
//! and any verifier of tlog-tiles can read.
//!
//! Crash order: tiles come first, each written beside and renamed; the checkpoint is replaced last, after every tile
//! was checked against its root and synced. So the directory never shows a checkpoint that it cannot prove, and an export
//! that was interrupted goes on where it stopped: full tiles never change.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use samovar_node::checkpoint::{Checkpoint, CheckpointError};
use samovar_node::command::ENTRY_BYTES_MAX;
use samovar_node::note::{Note, VerifierKey};
use samovar_node::tiles::{Kind, TILE_WIDTH, Tile};
use serde_json::json;

use crate::client::{Client, Request, Target};
use crate::output::{self, Format};

mod check;

/// Tiles fetched at once.
const FETCH_AHEAD: usize = 16;
/// Longest wait for one tile.
const TILE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long one tile is asked for while the node is away or busy.
const PATIENCE: Duration = Duration::from_secs(120);
/// Largest bundle: 256 entries, each with its length in two bytes.
const BUNDLE_BYTES_MAX: usize = TILE_WIDTH as usize * (ENTRY_BYTES_MAX + 2);
/// Name of the checkpoint in the directory and in the API.
const CHECKPOINT: &str = "checkpoint";

/// Write the whole chain log as static files that other verifiers read
///
/// The directory is what C2SP tlog-tiles calls a log: checkpoint, tile/…, tile/entries/…; any file server can serve it.
/// Every entry and tile is checked against the signed checkpoint before that is written, last. Interrupted or repeated,
/// the command fetches only what is missing. Needs the right to read the whole log (roles admin and auditor).
#[derive(Debug, clap::Args)]
pub(crate) struct Export {
    #[command(flatten)]
    target: Target,
    /// Directory of the static files; made when it is missing, brought up to date when it holds an earlier export
    #[arg(long, value_name = "DIR")]
    tiles: PathBuf,
    /// Verifier key of the log, or a file with one, to check the checkpoint's signature against [default: what the
    /// node says its key is]
    #[arg(long, value_name = "LOGKEY")]
    key: Option<String>,
    /// Show no progress
    #[arg(long, short)]
    quiet: bool,
}

/// Runs the export.
pub(crate) async fn run(export: &Export, format: Format) -> anyhow::Result<()> {
    let client = Client::open(&export.target)?;
    let key = match &export.key {
        Some(key) => crate::cli::log_key(key)?,
        None => {
            let log = client.send(Request::get("/v1/log")).await?.json()?;
            let key = log.get("vkey").and_then(|v| v.as_str()).context("/v1/log names no verifier key")?;
            VerifierKey::parse(key).context("/v1/log")?
        }
    };
    let text = client.send(Request::get(format!("/{CHECKPOINT}"))).await?.text()?.to_owned();
    let head = open_checkpoint(&text, &key)?;
    let directory = export.tiles.as_path();
    let earlier = earlier_checkpoint(directory, &key)?;
    if let Some(earlier) = earlier.as_ref().filter(|e| e.size > head.size) {
        bail!(
            "{} holds {} entries, the node's checkpoint only {}: export to another directory, and find out why the log \
             is shorter",
            directory.display(),
            earlier.size,
            head.size
        );
    }
    let fetched = fetch_missing(&client, directory, head.size, export.quiet).await?;
    check::directory(directory, &head, earlier.as_ref())?;
    rustix::fs::syncfs(File::open(directory)?).with_context(|| format!("cannot sync {}", directory.display()))?;
    write(&directory.join(CHECKPOINT), text.as_bytes(), true)?;
    summary(export, &head, fetched, format)
}

fn summary(export: &Export, head: &Checkpoint, fetched: u64, format: Format) -> anyhow::Result<()> {
    let (size, directory) = (head.size, export.tiles.display());
    match format {
        Format::Json => output::json(&json!({ "origin": head.origin, "size": size, "tiles_fetched": fetched }))?,
        Format::Text => output::text(&format!(
            "{size} entries of {} in {directory}, {fetched} tiles fetched; every tile was checked against the \
             checkpoint\n",
            head.origin
        ))?,
    }
    Ok(())
}

/// What the log signed.
fn open_checkpoint(text: &str, key: &VerifierKey) -> anyhow::Result<Checkpoint> {
    let note = Note::parse(text).context("the checkpoint")?;
    Ok(Checkpoint::open(&note, key)?)
}

/// The checkpoint of an earlier export to the same directory.
fn earlier_checkpoint(directory: &Path, key: &VerifierKey) -> anyhow::Result<Option<Checkpoint>> {
    let path = directory.join(CHECKPOINT);
    match fs::read_to_string(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| format!("cannot read {}", path.display())),
        Ok(text) => {
            let head = match open_checkpoint(&text, key) {
                // Of before a rotation of the log key: its root is compared with the tiles, which says more than a signature.
                Err(e) if matches!(e.downcast_ref(), Some(CheckpointError::OtherKey(_))) => {
                    let head = Note::parse(&text).map_err(anyhow::Error::from);
                    head.and_then(|note| Ok(Checkpoint::parse(note.text())?))
                }
                head => head,
            };
            let head =
                head.with_context(|| format!("{} is not of this log: choose another directory", path.display()))?;
            Ok(Some(head))
        }
    }
}

/// Fetches every tile and bundle of a log of `size` entries that the directory does not hold; returns how many.
async fn fetch_missing(client: &Client, directory: &Path, size: u64, quiet: bool) -> anyhow::Result<u64> {
    let bundles = size.div_ceil(u64::from(TILE_WIDTH));
    let bar = if quiet { indicatif::ProgressBar::hidden() } else { indicatif::ProgressBar::new(bundles * 2) };
    let fetched = stream::iter(Tile::all(size))
        .inspect(|_| bar.inc(1))
        .filter(|tile| std::future::ready(!is_held(directory, tile)))
        .map(|tile| fetch(client, directory, tile))
        .buffer_unordered(FETCH_AHEAD)
        .try_fold(0, |n, ()| std::future::ready(Ok(n + 1)))
        .await;
    bar.finish_and_clear();
    fetched.context("stopped; the same command goes on from there")
}

/// Whether the file is there with a length that it may have; its content is checked later, with all others.
fn is_held(directory: &Path, tile: &Tile) -> bool {
    let length = directory.join(tile.to_string()).metadata().map_or(0, |m| m.len());
    match tile.kind {
        Kind::Hashes(_) => length == u64::from(tile.width) * 32,
        Kind::Entries => length > 0,
    }
}

async fn fetch(client: &Client, directory: &Path, tile: Tile) -> anyhow::Result<()> {
    let request = Request::get(format!("/{tile}")).patience(PATIENCE).bounds(TILE_TIMEOUT, BUNDLE_BYTES_MAX);
    let answer = client.send(request).await.with_context(|| tile.to_string())?;
    write(&directory.join(tile.to_string()), &answer.body, false)
}

/// Replaces a file; `durable` when it must survive a power cut on return.
fn write(path: &Path, content: &[u8], durable: bool) -> anyhow::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let write = || -> io::Result<()> {
        let parent = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(parent)?;
        let mut file = File::create(&beside)?;
        file.write_all(content)?;
        if durable {
            file.sync_all()?;
        }
        fs::rename(&beside, path)?;
        if durable { File::open(parent)?.sync_all() } else { Ok(()) }
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests;
