//! What the durability tests share: a [`Load`] of concurrent writers that know what was acknowledged, the [`check`] that
//! recomputes the ledger from scratch and compares, and ext4 [`Image`]s for power cuts and full disks.

mod chain;
mod check;
mod image;
mod load;
mod oracle;
mod write;

pub use chain::{Chain, download};
pub use check::{Checked, Wrong, check};
pub use image::Image;
pub use load::Load;
pub use oracle::Oracle;
pub use write::{Content, Request, Version};

use anyhow::{Context as _, Result};

/// A number from the environment, or the default: how the long lane asks for more than CI does.
#[must_use]
pub fn count(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// The seed of a test: `SAMOVAR_SEED`, or a fresh one; printed, so that the case can be run again.
#[must_use]
pub fn seed(test: &str) -> u64 {
    let seed = count("SAMOVAR_SEED", u64::from(rand::random::<u32>()));
    println!(
        "{test}: again with SAMOVAR_SEED={seed} cargo test -p samovar-tests --test system {test} -- --include-ignored --nocapture"
    );
    seed
}

/// Base64 of the standard alphabet, padded.
///
/// # Errors
/// When the text is none.
pub fn from_base64(text: &str) -> Result<Vec<u8>> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text).with_context(|| format!("no base64: {text}"))
}

/// Bytes as base64.
#[must_use]
pub fn to_base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    for part in parts {
        context.update(part);
    }
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}
