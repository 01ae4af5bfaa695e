use bytes::Bytes;
use hyper::Method;
use rand::rngs::StdRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};
use serde_json::json;

use super::to_base64;
use crate::{Answer, Client};

/// Sizes of values, each with its share in a hundred.
const SIZES: [(usize, u32); 4] = [(256, 78), (5 << 10, 15), (60 << 10, 6), (1 << 20, 1)];
/// Largest value in a transaction of several keys: their sum is bounded by the API.
const SHARED_BYTES_MAX: usize = 60 << 10;

/// A value that can be made again from its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    number: u64,
    size: usize,
}

impl Content {
    /// A value of one of the sizes under test; no two numbers give the same bytes.
    pub fn draw(number: u64, rng: &mut StdRng) -> Self {
        let mut share = rng.gen_range(0..100);
        for (size, of_hundred) in SIZES {
            if share < of_hundred {
                return Self { number, size };
            }
            share -= of_hundred;
        }
        Self { number, size: SIZES[0].0 }
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(self) -> Bytes {
        let mut bytes = vec![0; self.size];
        StdRng::seed_from_u64(self.number).fill_bytes(&mut bytes);
        bytes.into()
    }

    fn at_most(self, size: usize) -> Self {
        Self { size: self.size.min(size), ..self }
    }
}

/// One revision of a key, as it was acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    /// Index of its entry.
    pub revision: u64,
    /// Height of its block.
    pub block: u64,
    /// `None`: deleted.
    pub content: Option<Content>,
}

/// A write, sent under a name of its own, so that it can be sent again.
#[derive(Debug, Clone)]
pub struct Request {
    /// `Idempotency-Key`.
    pub name: String,
    /// Key, and what it is to hold; `None` deletes.
    pub changes: Vec<(String, Option<Content>)>,
}

impl Request {
    /// Makes a transaction fit for the API.
    #[must_use]
    pub fn new(name: String, mut changes: Vec<(String, Option<Content>)>) -> Self {
        if changes.len() > 1 {
            for (_, content) in &mut changes {
                *content = content.map(|c| c.at_most(SHARED_BYTES_MAX));
            }
        }
        Self { name, changes }
    }

    /// Sends it.
    ///
    /// # Errors
    /// When the outcome is not known.
    pub async fn send(&self, client: &mut Client) -> anyhow::Result<Answer> {
        let octets = ("content-type", "application/octet-stream");
        let name = ("idempotency-key", self.name.as_str());
        match self.changes.as_slice() {
            [(key, Some(content))] => {
                client.request(Method::PUT, &format!("/v1/keys/{key}"), &[octets, name], content.bytes()).await
            }
            [(key, None)] => client.request(Method::DELETE, &format!("/v1/keys/{key}"), &[name], Bytes::new()).await,
            changes => {
                let operations: Vec<_> = changes.iter().map(|(key, content)| operation(key, *content)).collect();
                let body = json!({ "operations": operations }).to_string();
                let json = ("content-type", "application/json");
                client.request(Method::POST, "/v1/transactions", &[json, name], body).await
            }
        }
    }
}

fn operation(key: &str, content: Option<Content>) -> serde_json::Value {
    match content {
        Some(content) => json!({ "put": { "key": key, "bytes": to_base64(&content.bytes()) } }),
        None => json!({ "delete": { "key": key } }),
    }
}
