//! What a node does beside answering: opening its parts, keeping what was applied durable, reading the archive again.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::sync::watch;

use super::{Config, Inner};
use crate::archive::{Check, Mark, Progress};
use crate::disk::Disk;
use crate::error::Error;
use crate::format;
use crate::identity::Identity;
use crate::ledger::Ledger;
use crate::raft::{Consensus, Own};
use crate::rt;
use crate::store::Shelf;
use crate::transport::Transport;

/// Least time between two checkpoints; a receipt that waits is delayed by no more.
const ROUND_INTERVAL: Duration = Duration::from_millis(50);
/// Pause after a checkpoint that could not be made.
const ROUND_RETRY: Duration = Duration::from_secs(1);
/// The same when the cosignatures of peers were missing.
const ROUND_RETRY_PEERS: Duration = Duration::from_millis(200);
/// With peers, so often it is looked for a checkpoint when there is no new block.
const ROUND_LOOK: Duration = Duration::from_millis(300);
/// How often free space is looked at, and whether anything must be made durable.
const MAINTENANCE_INTERVAL: Duration = Duration::from_millis(100);
/// What has been applied is made durable in the store after this long, so that the raft log can be released; or once
/// [`Ledger::wants_sync`].
const SYNC_INTERVAL: Duration = Duration::from_secs(5);
/// A pass of the scrub begins so long after the start …
const SCRUB_DELAY: Duration = Duration::from_secs(600);
/// … and so long after the one before ended.
const SCRUB_INTERVAL: Duration = Duration::from_secs(24 * 3600);
/// Most bytes that the scrub reads in a second.
const SCRUB_BYTES_PER_SECOND: u64 = 4 << 20;
/// What it reads at a time, in bytes.
const SCRUB_PIECE_BYTES: u64 = 1 << 20;

/// How often a stop looks, a millisecond apart, whether all others have let go.
const STOP_LOOKS: usize = 2_000;

/// Opens ledger and raft log. A store that proves damaged only when the raft log is applied to it is given up then, once.
pub(super) async fn open_ledger(
    disk: &Arc<dyn Disk>,
    config: &Config,
    identity: &Identity,
    shelf: Shelf,
    transport: Arc<dyn Transport>,
) -> Result<(Arc<Ledger>, Consensus), Error> {
    let (begun, joined, cluster) = (identity.begun, identity.joined, identity.cluster());
    let refused = super::refused::read(disk.as_ref(), &config.data)?;
    let own = Own { node: identity.node, begun, joined, cluster, refused };
    let shelf = Arc::new(shelf);
    let mut again = true;
    loop {
        let (opening, directory, shelf) = (Arc::clone(disk), config.data.clone(), Arc::clone(&shelf));
        let opened = rt::blocking(move || Ledger::open(&opening, &directory, &shelf)).await;
        let ledger = Arc::new(opened.map_err(|e| Error::Corrupt(format!("opening the ledger: {e}")))??);
        format::check_read(&ledger)?;
        let log = config.data.join("raft");
        match Consensus::start(disk, &log, &own, Arc::clone(&ledger), Arc::clone(&transport)).await {
            Err(error @ Error::DamagedStore(_)) if again => {
                ledger.suspicion.note_if_damaged(&error);
                let_go(&ledger, 1).await;
                again = false;
            }
            Err(Error::DamagedStore(what)) => {
                return Err(Error::Corrupt(format!(
                    "{what}, also after the store was rebuilt from the archive: restore a backup, or rejoin the cluster \
                     from its peers"
                )));
            }
            started => return Ok((ledger, started?)),
        }
    }
}

/// Waits until openraft's tasks, which end some time after its shutdown, have let go of the ledger: whoever opens the data
/// directory next must find it free.
pub(super) async fn let_go(ledger: &Arc<Ledger>, owners: usize) {
    for _ in 0..STOP_LOOKS {
        if Arc::strong_count(ledger) <= owners {
            return;
        }
        rt::sleep(Duration::from_millis(1)).await;
    }
    tracing::warn!("a task still holds the ledger after the stop");
}

/// Runs a task until the node stops.
pub(super) async fn until(mut stopping: watch::Receiver<bool>, task: impl Future<Output = ()>) {
    tokio::select! {
        biased;
        _ = stopping.wait_for(|stopping| *stopping) => {}
        () = task => {}
    }
}

/// Leads a round whenever there is a new block, or follows those of the leader.
pub(super) async fn checkpoints(node: Arc<Inner>) {
    let mut head = node.ledger.head();
    let mut failing = false;
    loop {
        let next = rt::instant() + ROUND_INTERVAL;
        let alone = node.consensus.members().len() <= 1;
        match node.checkpoint_round().await {
            Ok(()) => failing = false,
            Err(error) => {
                // Peers that are away may be so for long.
                if alone || !std::mem::replace(&mut failing, true) {
                    tracing::error!(%error, "no checkpoint could be made; it is tried again");
                }
                rt::sleep(if alone { ROUND_RETRY } else { ROUND_RETRY_PEERS }).await;
                continue;
            }
        }
        let changed = if alone {
            head.changed().await
        } else {
            // Who does not lead looks whether a checkpoint is missing; who begins to lead, whether one is to be made.
            rt::timeout(ROUND_LOOK, head.changed()).await.unwrap_or(Ok(()))
        };
        if changed.is_err() {
            return;
        }
        rt::sleep_until(next).await;
    }
}

/// Stands for election when no leader is heard, unless this node's state is wrong.
pub(super) async fn stand_for_election(node: Arc<Inner>) {
    let soundness = node.notary.soundness();
    tokio::select! {
        biased;
        () = soundness.proved() => {}
        () = node.consensus.election_driver() => {}
    }
}

/// Says so when the Raft core ends by itself.
pub(super) async fn watch_core(node: Arc<Inner>) {
    let error = node.consensus.core_ended().await;
    node.fail(error);
}

/// Ends the node, for good, when the ledger went on without it.
pub(super) async fn watch_epoch(node: Arc<Inner>) {
    let why = node.consensus.superseded().await;
    if let Err(error) = super::recover::note_superseded(node.disk.as_ref(), &node.config.data, &why) {
        tracing::error!(%error, "that the ledger went on without this node was not noted: it must not be started again");
    }
    node.fail(Error::Superseded(why));
}

/// Leaves the lead to others while this node's clock is wrong, or its salts are damaged.
pub(super) async fn watch_fitness(node: Arc<Inner>) {
    node.consensus.watch_fitness(&node.proposer).await;
}

/// Looks after free space and durability.
pub(super) async fn maintain(node: Arc<Inner>) {
    let mut synced_size = 0;
    let mut next_sync = rt::instant() + SYNC_INTERVAL;
    loop {
        rt::sleep(MAINTENANCE_INTERVAL).await;
        node.look_at_space();
        let size = node.ledger.newest().size;
        // An erase: purge the raft log, which still has the value, and close its segment at once.
        let erased = node.ledger.erased.swap(false, Relaxed);
        let due = rt::instant() >= next_sync && size != synced_size;
        // What cannot be read is told of by the sync.
        let full = node.ledger.wants_sync().unwrap_or(true);
        if !(erased || due || full) {
            continue;
        }
        match node.make_durable(false, erased).await {
            // The raft log still holds the erased value.
            Ok(false) if erased => node.ledger.erased.store(true, Relaxed),
            Ok(_) => {}
            Err(error) => {
                node.fail(error);
                return;
            }
        }
        if let Err(error) = node.note_begun() {
            node.fail(error);
            return;
        }
        if erased && let Err(error) = node.forget_quarantined_values() {
            tracing::error!(%error, "the raft log in the quarantine may still hold the erased value: remove it");
        }
        if erased && let Err(error) = node.ledger.staging.discard() {
            tracing::error!(%error, "a snapshot that was being received may still hold the salt of an erased value");
        }
        synced_size = size;
        next_sync = rt::instant() + SYNC_INTERVAL;
    }
}

/// Reads the archive again, a pass a day, and has what is damaged made again from the store; at once what somebody found so.
pub(super) async fn scrub(node: Arc<Inner>) {
    let ledger = &node.ledger;
    let mut next_pass = rt::instant() + SCRUB_DELAY;
    loop {
        let wait = next_pass.saturating_duration_since(rt::instant());
        let done = match rt::timeout(wait, ledger.archive.suspected()).await {
            Ok(()) => scrub_suspect(ledger).await,
            Err(_) => {
                let passed = scrub_pass(ledger).await;
                next_pass = rt::instant() + SCRUB_INTERVAL;
                passed.map(|()| ledger.archive.scrubbed.passed(rt::now_ms()))
            }
        };
        if let Err(error) = done {
            tracing::error!(%error, "the archive could not be read again; the next pass tries once more");
        }
    }
}

/// Checks every segment once.
pub(super) async fn scrub_pass(ledger: &Arc<Ledger>) -> Result<(), Error> {
    let (mut after, mut from) = (0, Mark::default());
    while let Some(check) = ledger.archive.check_after(after, from) {
        after = check.number;
        from = scrub_segment(ledger, check).await?;
        scrub_suspect(ledger).await?;
    }
    Ok(())
}

/// Checks the segment that was found damaged, if there is one.
async fn scrub_suspect(ledger: &Arc<Ledger>) -> Result<(), Error> {
    match ledger.archive.check_of_suspect() {
        Some(check) => scrub_segment(ledger, check).await.map(drop),
        None => Ok(()),
    }
}

/// Checks one segment, and mends it if need be; returns how far the ledger is after it.
async fn scrub_segment(ledger: &Arc<Ledger>, mut check: Check) -> Result<Mark, Error> {
    loop {
        let ledger = Arc::clone(ledger);
        let step = rt::blocking(move || {
            let progress = check.advance(&ledger.archive, SCRUB_PIECE_BYTES)?;
            if let Progress::Damaged(what) = &progress {
                tracing::warn!("{what}: the segment is made again from the store");
                let end = ledger.mend(&check)?;
                return Ok((check, Progress::Whole(end)));
            }
            Ok::<_, Error>((check, progress))
        });
        let step = step.await.map_err(|e| Error::Unavailable(format!("the scrub was given up: {e}")))?;
        let (next, progress) = step?;
        check = next;
        match progress {
            Progress::Read(bytes) => rt::sleep(Duration::from_micros(bytes * 1_000_000 / SCRUB_BYTES_PER_SECOND)).await,
            Progress::Whole(end) => return Ok(end),
            Progress::Damaged(what) => return Err(Error::Corrupt(what)),
        }
    }
}
