//! `samovar blob`: large values, sent and fetched in pieces, and checked at this end as well.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use hyper::Method;
use ring::digest::{Context as Hasher, SHA256};
use samovar_node::{Cid, Key};
use serde_json::{Value, json};

use super::keys::{WriteArgs, client_key};
use crate::client::{Client, Error, Request, Target};
use crate::output::{self, Format};

/// What is read and sent at once, in bytes.
const PIECE_BYTES: usize = 256 << 10;
/// Longest silence of a node that sends.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How often a lost connection is made again while nothing comes at all.
const TRIES_MAX: u32 = 30;
/// Pause before each of them.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Subcommand)]
pub(super) enum Blob {
    /// Send a file as a blob and print its CID
    ///
    /// The CID is computed here too, and must be the node's. Sending the same bytes again is safe. A blob that no key names is
    /// removed after a day (`blobs.keep_unnamed`): name it with --key, or in a transaction.
    Put {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        write: WriteArgs,
        /// File to send; `-` is standard input
        #[arg(default_value = "-")]
        file: PathBuf,
        /// Give the blob to this key, once it is there
        #[arg(long, value_name = "KEY", value_parser = client_key)]
        key: Option<Key>,
        /// Media type, with --key [default: application/octet-stream]
        #[arg(long = "type", value_name = "TYPE", requires = "key")]
        media_type: Option<String>,
    },
    /// Fetch a blob
    ///
    /// What came is hashed, and must be what the CID names. A lost connection is made again where it was lost. A file is there
    /// whole or not at all.
    Get {
        #[command(flatten)]
        target: Target,
        /// CID of the blob
        cid: Cid,
        /// File to write, which must not exist; `-` is standard output
        #[arg(default_value = "-")]
        file: PathBuf,
        /// A key that names it, for principals that are limited to prefixes
        #[arg(long, value_name = "KEY", value_parser = client_key)]
        key: Option<Key>,
    },
}

pub(super) async fn run(command: &Blob, format: Format) -> anyhow::Result<()> {
    match command {
        Blob::Put { target, write, file, key, media_type } => {
            let client = Client::open(target)?;
            let (cid, size) = put(&client, file).await?;
            let named = match key {
                Some(key) => Some(name(&client, write, key, &cid, media_type.as_deref()).await?),
                None => None,
            };
            match (format, named) {
                (Format::Text, _) => output::text(&format!("{cid}\n"))?,
                (Format::Json, named) => output::json(&json!({ "cid": cid, "size": size, "transaction": named }))?,
            }
            Ok(())
        }
        Blob::Get { target, cid, file, key } => {
            let client = Client::open(target)?;
            let key = key.as_ref().map(Key::as_str);
            let path = format!("/v1/blobs/{cid}{}", crate::client::query(&[("key", key)]));
            if file.as_os_str() == "-" {
                return get(&client, &path, cid, &mut io::stdout().lock()).await;
            }
            to_file(&client, &path, cid, file).await
        }
    }
}

async fn put(client: &Client, path: &Path) -> anyhow::Result<(String, u64)> {
    let (mut from, length): (Box<dyn io::Read>, _) = if path.as_os_str() == "-" {
        (Box::new(io::stdin()), None)
    } else {
        let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
        let metadata = file.metadata().with_context(|| format!("looking at {}", path.display()))?;
        (Box::new(file), metadata.is_file().then_some(metadata.len()))
    };
    let (mut hasher, mut size) = (Hasher::new(&SHA256), 0);
    let answer = client.upload("/v1/blobs", length, || {
        let mut piece = vec![0; PIECE_BYTES];
        let n = from.read(&mut piece)?;
        piece.truncate(n);
        hasher.update(&piece);
        size += n as u64;
        Ok((n > 0).then(|| Bytes::from(piece)))
    });
    let answer = answer.await?.json()?;
    let own = cid_of(hasher).to_string();
    let cid = answer.get("cid").and_then(Value::as_str).unwrap_or_default();
    if cid != own || answer.get("size").and_then(Value::as_u64) != Some(size) {
        bail!("what was sent is {own} of {size} bytes, the node took something else: {answer}; send it again");
    }
    Ok((own, size))
}

/// The transaction that gives a blob to a key.
async fn name(
    client: &Client,
    write: &WriteArgs,
    key: &Key,
    cid: &str,
    media_type: Option<&str>,
) -> anyhow::Result<Option<u64>> {
    let mut put = json!({ "key": key.as_str(), "blob": cid });
    if let Some(media_type) = media_type {
        put["type"] = json!(media_type);
    }
    let body = json!({ "operations": [{ "put": put }] }).to_string();
    let request = Request::write(Method::POST, "/v1/transactions", body).header("content-type", "application/json")?;
    let answer = write.send(client, request).await;
    let answer = answer.with_context(|| format!("the blob {cid} is there, and {} does not name it", key.as_str()))?;
    Ok(answer.json()?.get("transaction").and_then(Value::as_u64))
}

/// Whole or not at all: beside it first, then its name.
async fn to_file(client: &Client, path: &str, cid: &Cid, file: &Path) -> anyhow::Result<()> {
    if file.exists() {
        bail!("{} exists: name another file, or remove it", file.display());
    }
    let part = file.with_added_extension("part");
    let mut to = File::create(&part).with_context(|| format!("making {}", part.display()))?;
    let done = match get(client, path, cid, &mut to).await {
        Ok(()) => to.sync_all().and_then(|()| std::fs::rename(&part, file)).context("putting the file in its place"),
        Err(error) => Err(error),
    };
    if done.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    done
}

/// Fetches, from where it was broken off if need be.
async fn get(client: &Client, path: &str, cid: &Cid, to: &mut impl io::Write) -> anyhow::Result<()> {
    let (mut hasher, mut at, mut tries) = (Hasher::new(&SHA256), 0u64, 0);
    loop {
        let before = at;
        match pieces(client, path, &mut at, &mut |piece| {
            hasher.update(piece);
            to.write_all(piece)
        })
        .await
        {
            Ok(()) => break,
            Err(Broken::Client(error)) if error.is_passing() => {
                tries = if at > before { 0 } else { tries + 1 };
                if tries == TRIES_MAX {
                    return Err(error.into());
                }
                samovar_node::rt::sleep(RETRY_PAUSE).await;
            }
            Err(Broken::Client(error)) => return Err(error.into()),
            Err(Broken::Output(error)) => return Err(error).context("writing what came"),
        }
    }
    to.flush().context("writing what came")?;
    let came = cid_of(hasher);
    if came != *cid {
        bail!("what came is {came}, {cid} was asked for: the node or the way to it changed it");
    }
    Ok(())
}

enum Broken {
    Client(Error),
    Output(io::Error),
}

/// One connection's worth of a blob, from `at` on, which it moves.
async fn pieces(
    client: &Client,
    path: &str,
    at: &mut u64,
    take: &mut impl FnMut(&[u8]) -> io::Result<()>,
) -> Result<(), Broken> {
    let mut request = Request::get(path);
    if *at > 0 {
        request = request.header("range", &format!("bytes={at}-")).map_err(Broken::Client)?;
    }
    let mut stream = client.stream(request).await.map_err(Broken::Client)?;
    while let Some(piece) = stream.next(SILENCE_MAX).await.map_err(Broken::Client)? {
        take(&piece).map_err(Broken::Output)?;
        *at += piece.len() as u64;
    }
    Ok(())
}

fn cid_of(hasher: Hasher) -> Cid {
    let mut hash = [0; 32];
    hash.copy_from_slice(hasher.finish().as_ref());
    Cid::of_hash(hash)
}
