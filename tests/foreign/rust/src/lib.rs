//! Files of a log over HTTP, and nothing that verifies.

use std::process::Command;

use anyhow::{Result, ensure};

/// Fetches a file by curl, which takes the trusted CA from `SSL_CERT_FILE`.
pub fn fetch(base: &str, path: &str) -> Result<Vec<u8>> {
    let out = Command::new("curl").args(["-sSf", &format!("{base}/{path}")]).output()?;
    ensure!(out.status.success(), "{path}: {}", String::from_utf8_lossy(&out.stderr));
    Ok(out.stdout)
}

/// The saved checkpoints, in the order of their names, and then the log's own.
pub fn checkpoints(base: &str, directory: &str) -> Result<Vec<Vec<u8>>> {
    let mut files = std::fs::read_dir(directory)?.map(|f| Ok(f?.path())).collect::<Result<Vec<_>>>()?;
    files.sort();
    let mut notes = files.iter().map(|f| Ok(std::fs::read(f)?)).collect::<Result<Vec<_>>>()?;
    notes.push(fetch(base, "checkpoint")?);
    Ok(notes)
}

/// Path of the tile or bundle number `n` that a log of `size` entries has.
pub fn path(kind: &str, n: u64, size: u64) -> String {
    let (thousands, rest) = (n / 1000, n % 1000);
    let place = if thousands > 0 { format!("x{thousands:03}/{rest:03}") } else { format!("{rest:03}") };
    let width = (size - n * 256).min(256);
    format!("tile/{kind}/{place}{}", if width < 256 { format!(".p/{width}") } else { String::new() })
}

/// Entries of the log, by its bundles.
pub fn entries(base: &str, size: u64) -> Result<Vec<Vec<u8>>> {
    let mut entries = Vec::new();
    for n in 0..size.div_ceil(256) {
        let bundle = fetch(base, &path("entries", n, size))?;
        let mut rest = &bundle[..];
        while let Some((length, tail)) = rest.split_first_chunk() {
            let length = usize::from(u16::from_be_bytes(*length));
            ensure!(length <= tail.len(), "bundle {n} is cut short");
            entries.push(tail[..length].to_vec());
            rest = &tail[length..];
        }
    }
    ensure!(entries.len() as u64 == size, "{} entries instead of {size}", entries.len());
    Ok(entries)
}
