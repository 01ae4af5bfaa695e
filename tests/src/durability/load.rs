use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use anyhow::{Context as _, Result, bail};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::task::JoinHandle;

use super::write::{Content, Request, Version};
use crate::{Answer, Client, Daemon};

/// Writers at once.
const WRITERS: usize = 8;
/// Keys of each writer; none is shared, so that each writer knows what its keys hold.
const KEYS: u32 = 12;
/// Most keys of one transaction.
const CHANGES_MAX: u32 = 5;
/// Each this many requests one is sent twice, as a client that missed the answer does.
const REPEAT_EVERY: u64 = 16;

/// Concurrent writers, and what they know: what was acknowledged, and what is in doubt.
pub struct Load {
    writers: Vec<Writer>,
    running: Vec<JoinHandle<Result<Writer>>>,
    stop: Arc<AtomicBool>,
    /// Requests refused for want of room.
    refused: Arc<AtomicU64>,
}

struct Writer {
    id: usize,
    rng: StdRng,
    sent: u64,
    seed: u64,
    versions: BTreeMap<String, Vec<Version>>,
    in_doubt: Option<Request>,
}

impl Load {
    /// Writers that have written nothing yet.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let writer = |id| Writer {
            id,
            rng: StdRng::seed_from_u64(seed.wrapping_mul(WRITERS as u64).wrapping_add(id as u64)),
            sent: 0,
            seed,
            versions: BTreeMap::new(),
            in_doubt: None,
        };
        Self {
            writers: (0..WRITERS).map(writer).collect(),
            running: Vec::new(),
            stop: Arc::default(),
            refused: Arc::default(),
        }
    }

    /// Lets them write until the daemon is gone or [`Load::end`] is called.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub async fn begin(&mut self, daemon: &Daemon) -> Result<()> {
        self.stop = Arc::default();
        self.refused.store(0, Relaxed);
        for mut writer in self.writers.drain(..) {
            let mut client = daemon.client().await?;
            let (stop, refused) = (Arc::clone(&self.stop), Arc::clone(&self.refused));
            self.running
                .push(tokio::spawn(async move { writer.write(&mut client, &stop, &refused).await.map(|()| writer) }));
        }
        Ok(())
    }

    /// Waits for the writers; those in the middle of a request finish it, or learn that the daemon is gone.
    ///
    /// # Errors
    /// With an answer that should not have come.
    pub async fn end(&mut self) -> Result<()> {
        self.stop.store(true, Relaxed);
        for task in self.running.drain(..) {
            self.writers.push(task.await.context("a writer panicked")??);
        }
        Ok(())
    }

    /// Requests refused for want of room since [`Load::begin`].
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }

    /// What is in doubt.
    pub fn in_doubt(&self) -> impl Iterator<Item = &Request> {
        self.writers.iter().filter_map(|w| w.in_doubt.as_ref())
    }

    /// Revisions of every key, oldest first, as acknowledged.
    pub fn versions(&self) -> impl Iterator<Item = (&str, &[Version])> {
        self.writers.iter().flat_map(|w| w.versions.iter().map(|(key, versions)| (key.as_str(), versions.as_slice())))
    }

    /// The newest acknowledged revision of a key.
    #[must_use]
    pub fn latest(&self, key: &str) -> Option<Version> {
        self.writers.iter().find_map(|w| w.versions.get(key)).and_then(|v| v.last().copied())
    }

    /// Acknowledged revisions.
    #[must_use]
    pub fn acknowledged(&self) -> usize {
        self.versions().map(|(_, versions)| versions.len()).sum()
    }

    /// Sends again, under the same name, what is in doubt.
    ///
    /// # Errors
    /// When it is not done now.
    pub async fn resolve(&mut self, client: &mut Client) -> Result<()> {
        for writer in &mut self.writers {
            let Some(request) = writer.in_doubt.clone() else { continue };
            let answer = request.send(client).await?;
            writer.acknowledge(&request, &answer).with_context(|| format!("retry of {}", request.name))?;
            writer.in_doubt = None;
        }
        Ok(())
    }
}

impl Writer {
    async fn write(&mut self, client: &mut Client, stop: &AtomicBool, refused: &AtomicU64) -> Result<()> {
        while !stop.load(Relaxed) {
            let request = self.draw();
            // No answer: the daemon is gone, with the write done or not.
            let Ok(answer) = request.send(client).await else {
                self.in_doubt = Some(request);
                return Ok(());
            };
            match answer.status {
                200 | 201 | 204 => self.acknowledge(&request, &answer)?,
                507 => {
                    refused.fetch_add(1, Relaxed);
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                    continue;
                }
                503 => {
                    self.in_doubt = Some(request);
                    return Ok(());
                }
                _ => bail!("{} was answered {}: {}", request.name, answer.status, answer.text()),
            }
            if self.sent.is_multiple_of(REPEAT_EVERY)
                && let Ok(again) = request.send(client).await
                && !matches!(again.status, 503 | 507)
                && committed(&again).ok() != committed(&answer).ok()
            {
                bail!("{} was answered twice, differently: {} and {}", request.name, answer.text(), again.text());
            }
        }
        Ok(())
    }

    fn draw(&mut self) -> Request {
        self.sent += 1;
        let several = self.rng.gen_ratio(1, 6);
        let wanted = if several { self.rng.gen_range(2..=CHANGES_MAX) } else { 1 };
        let mut changes = BTreeMap::new();
        for _ in 0..wanted {
            let key = format!("load/{}/{}", self.id, self.rng.gen_range(0..KEYS));
            let exists = self.versions.get(&key).and_then(|v| v.last()).is_some_and(|v| v.content.is_some());
            let number =
                self.seed.wrapping_mul(1 << 32) ^ (self.id as u64) << 28 ^ self.sent << 3 ^ changes.len() as u64;
            let content = Content::draw(number, &mut self.rng);
            let delete = exists && self.rng.gen_ratio(1, 8);
            changes.insert(key, (!delete).then_some(content));
        }
        Request::new(format!("{}-{}-{}", self.seed, self.id, self.sent), changes.into_iter().collect())
    }

    fn acknowledge(&mut self, request: &Request, answer: &Answer) -> Result<()> {
        let (revision, block) = committed(answer)?;
        for (key, content) in &request.changes {
            self.versions.entry(key.clone()).or_default().push(Version { revision, block, content: *content });
        }
        Ok(())
    }
}

/// Transaction and block of a write that was done.
fn committed(answer: &Answer) -> Result<(u64, u64)> {
    let number = |name: &str| answer.headers.get(name).and_then(|v| v.to_str().ok()?.parse().ok());
    match (answer.status, number("samovar-transaction"), number("samovar-block")) {
        (200 | 201 | 204, Some(transaction), Some(block)) => Ok((transaction, block)),
        _ => bail!("a write was answered {}: {}", answer.status, answer.text()),
    }
}
