//! Recovery after a lost quorum, on the data directory of a node that is left and does not run. The log goes on with this node
//! as its only member, as a new epoch: another origin, log key and cosigning key, and another id of the cluster in every
//! message, so that the nodes of before have no part in it. The entry of the recovery says where the log of before ends and
//! who signed that.
//!
//! In the order in which it becomes durable: the new keys; the plan (`recovery.json`), from which on the node does not start
//! until the recovery is through; the membership in the raft log; the entry with its keys and rows, in one block; keys and
//! `node.json` in their places; the plan goes. Cut off anywhere, it goes on from there when it is run again.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::tasks::{let_go, open_ledger};
use super::{Config, LEDGER_OWNERS, Node};
use crate::checkpoint::Checkpoint;
use crate::clock::Clock;
use crate::command::{Command, Key, Operation, Outcome, Requirement, Write, WriteCommand};
use crate::disk::Disk;
use crate::durable;
use crate::entry::REASON_BYTES_MAX;
use crate::error::Error;
use crate::identity::{Identity, Place};
use crate::ledger::Ledger;
use crate::log_key::{self, NewKeys};
use crate::note::{Note, VerifierKey, assemble};
use crate::raft::{Consensus, RaftLog, latest_members};
use crate::rt::{self, Doing};
use crate::store::Shelf;
use crate::transport::Alone;
use crate::view::{Found, KeyPage, LogInfo, Member, RaftPlace, Survey};
use crate::{cosign, cosigners, identity, wal};

/// Author of the entry.
const AUTHOR: &str = "recover";
/// Keys read at once.
const PAGE: usize = 256;

/// What changes with a recovery besides the keys: from the rows of the system state, as a function from what their keys begin
/// with to keys and values.
pub type Rows<'a> = dyn Fn(&str) -> Result<Vec<(Key, Vec<u8>)>, Error> + 'a;
/// Makes the operations of [`Recover`].
pub type Operations = Box<dyn FnOnce(&Rows<'_>) -> Result<Vec<Operation>, Error> + Send>;

/// What a recovery is done with.
pub struct Recover {
    /// Why, for whoever reads the log.
    pub reason: String,
    /// A checkpoint that somebody has, a signed note: it shows how far the log of before went at least.
    pub known: Option<String>,
    /// Rows that change in the same block.
    pub operations: Operations,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// Number of the epoch that began.
    pub epoch: u64,
    /// Origin of the log from here on.
    pub origin: String,
    /// Its verifier key.
    pub log: String,
    /// Index of the entry: the entries before it were kept.
    pub entry: u64,
    /// Entries that this node knew to be the cluster's, all of which are kept. What others acknowledged with this revision or a
    /// higher one is lost, unless it is among the entries that were kept.
    pub certain: u64,
}

/// The file `recovery.json`: there while a recovery is under way.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Plan {
    epoch: u64,
    origin: String,
    log: String,
    cosigner: String,
    reason: String,
    known: Option<String>,
    certain: u64,
}

fn plan_path(data: &Path) -> PathBuf {
    data.join("recovery.json")
}

fn superseded_path(data: &Path) -> PathBuf {
    data.join("superseded")
}

/// Notes durably that the ledger went on without this node.
pub(super) fn note_superseded(disk: &dyn Disk, data: &Path, why: &str) -> Result<(), Error> {
    durable::replace(disk, &superseded_path(data), why.as_bytes())
}

/// Refuses the start of a node that was left behind by a recovery, or whose own is not through.
pub(super) fn check_may_start(disk: &dyn Disk, data: &Path) -> Result<(), Error> {
    if let Some(why) = durable::read(disk, &superseded_path(data))? {
        return Err(Error::Superseded(String::from_utf8_lossy(&why).into_owned()));
    }
    if durable::read(disk, &plan_path(data))?.is_some() {
        return Err(Error::Invalid(format!(
            "a recovery was begun in {0} and is not through: run again samovar recover --data {0} --accept-loss",
            data.display()
        )));
    }
    Ok(())
}

fn shelf(config: &Config) -> Shelf {
    Shelf::Sled { directory: config.data.join("store"), cache_bytes: config.cache_bytes }
}

impl Node {
    /// What a node that does not run has of the log. Opens the data directory as a start does, and so may finish what a crash
    /// cut short; nothing else is changed.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub fn survey(disk: Arc<dyn Disk>, config: Config) -> Doing<'static, Result<Survey, Error>> {
        Box::pin(async move { survey(&disk, &config).await })
    }

    /// Goes on with the log of a node that does not run, without the other members, for good: what they have and this node has
    /// not is lost. Run again after it was cut off, it goes on; what it was done with then does not count.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a reason or a known checkpoint that will not do; [`Error::Corrupt`] when the data cannot be read
    /// or contradicts what this node cosigned.
    pub fn recover(disk: Arc<dyn Disk>, config: Config, with: Recover) -> Doing<'static, Result<Recovered, Error>> {
        Box::pin(async move { recover(&disk, &config, with).await })
    }
}

async fn survey(disk: &Arc<dyn Disk>, config: &Config) -> Result<Survey, Error> {
    let identity = Identity::read(disk.as_ref(), &config.data)?;
    let (opening, data, shelf) = (Arc::clone(disk), config.data.clone(), shelf(config));
    let opened = rt::blocking(move || Ledger::open(&opening, &data, &shelf)).await;
    let ledger = opened.map_err(|e| Error::Corrupt(format!("opening the ledger: {e}")))??;
    let log = open_log(disk, config, &identity)?;
    let (head, root) = {
        let chain = ledger.chain();
        (chain.head.clone(), chain.tree.root())
    };
    let (waiting, members) = log.look(head.raft_index).await?;
    let (vote, last, committed) = log.marks();
    if last.is_none_or(|last| last.index < head.raft_index) {
        return Err(Error::Corrupt(
            "the raft log ends before the store: it lost what it had acknowledged, so this is no node to recover from"
                .into(),
        ));
    }
    let place = |id: wal::EntryId| RaftPlace { term: id.term, node: id.node, index: id.index };
    let diverged = durable::read(disk.as_ref(), &config.data.join(cosign::DIVERGENCE))?.is_some();
    Ok(Survey {
        node: identity.node,
        name: identity.name,
        origin: identity.origin,
        epoch: identity.epoch,
        log_key: identity.log,
        term: vote.map_or(0, |vote| vote.term),
        last: last.map(place),
        committed: committed.map(|id| id.index),
        applied: head.raft_index,
        waiting_writes: waiting.writes,
        height: head.height,
        size: head.size,
        size_max: head.size + waiting.entries_max,
        time_ms: head.time_ms,
        root,
        state_root: head.state_root,
        promised: cosign::promised(disk.as_ref(), &config.data)?,
        members: match members {
            Some(members) => members,
            None => latest_members(&ledger)?,
        },
        diverged,
        unfinished: durable::read(disk.as_ref(), &plan_path(&config.data))?.is_some(),
    })
}

fn open_log(disk: &Arc<dyn Disk>, config: &Config, identity: &Identity) -> Result<RaftLog, Error> {
    RaftLog::open(Arc::clone(disk), &config.data.join("raft"), identity.node, &wal::Config::default())
}

async fn recover(disk: &Arc<dyn Disk>, config: &Config, with: Recover) -> Result<Recovered, Error> {
    let identity = Identity::read(disk.as_ref(), &config.data)?;
    let place = config.place(disk.as_ref());
    let Recover { reason, known, operations } = with;
    let plan = match durable::read(disk.as_ref(), &plan_path(&config.data))? {
        Some(bytes) => serde_json::from_slice(&bytes)
            .map_err(|e| Error::Corrupt(format!("{} is damaged ({e})", plan_path(&config.data).display())))?,
        None => begin(place, &identity, &reason, known, survey(disk, config).await?.size)?,
    };
    if identity.epoch < plan.epoch {
        let survey = survey(disk, config).await?;
        if !matches!(&survey.members[..], [Member { voter: true, node, .. }] if *node == identity.node) {
            let address = survey.members.iter().find(|m| m.node == identity.node).map_or("", |m| m.address.as_str());
            let log = open_log(disk, config, &identity)?;
            log.leave_alone(identity.node, address).await?;
        }
    }
    // The consensus needs of the identity only what does not change.
    let (ledger, consensus) = open_ledger(disk, config, &identity, shelf(config), Arc::new(Alone)).await?;
    let recorded = record(config, disk, &identity, &plan, operations, &ledger, &consensus).await;
    let synced = ledger.sync(true).map(drop);
    consensus.stop().await;
    drop(consensus);
    let_go(&ledger, LEDGER_OWNERS - 3).await;
    drop(ledger);
    let entry = recorded?;
    synced?;
    settle(place, &plan)?;
    Ok(Recovered { epoch: plan.epoch, origin: plan.origin, log: plan.log, entry, certain: plan.certain })
}

/// Makes the new keys and the plan.
fn begin(
    place: Place<'_>,
    identity: &Identity,
    reason: &str,
    known: Option<String>,
    certain: u64,
) -> Result<Plan, Error> {
    if reason.is_empty() || reason.len() > REASON_BYTES_MAX || reason.chars().any(char::is_control) {
        return Err(Error::Invalid(format!("a reason has 1 to {REASON_BYTES_MAX} bytes and no control characters")));
    }
    if let Some(known) = &known {
        open_known(identity, known)?;
    }
    let origin = fresh_origin(&identity.origin);
    let (log, cosigner) = identity::make_recovered(place, &origin, &identity.name)?;
    let plan = Plan {
        epoch: identity.epoch + 1,
        origin,
        log: log.to_string(),
        cosigner: cosigner.to_string(),
        reason: reason.to_owned(),
        known,
        certain,
    };
    let bytes = serde_json::to_vec_pretty(&plan).unwrap_or_default();
    durable::replace(place.disk, &plan_path(place.data), &bytes)?;
    Ok(plan)
}

/// A checkpoint of the log of before that its key signed.
fn open_known(identity: &Identity, text: &str) -> Result<Checkpoint, Error> {
    let invalid = |e: &dyn std::fmt::Display| Error::Invalid(format!("the known checkpoint: {e}"));
    let note = Note::parse(text).map_err(|e| invalid(&e))?;
    let log = VerifierKey::parse(&identity.log).map_err(|e| Error::Corrupt(format!("node.json: {e}")))?;
    Checkpoint::open(&note, &log).map_err(|e| invalid(&e))
}

/// The origin of before with another random end.
fn fresh_origin(origin: &str) -> String {
    let mut random = [0; 8];
    rt::fill_random(&mut random);
    let end = format!("{:016x}", u64::from_be_bytes(random));
    match origin.rsplit_once('/') {
        Some((begin, old)) if old.len() == end.len() => format!("{begin}/{end}"),
        _ => format!("{origin}/{end}"),
    }
}

/// Writes the entry, unless it is there; its index.
async fn record(
    config: &Config,
    disk: &Arc<dyn Disk>,
    identity: &Identity,
    plan: &Plan,
    operations: Operations,
    ledger: &Arc<Ledger>,
    consensus: &Consensus,
) -> Result<u64, Error> {
    if let Some(change) = ledger.log_change()?.filter(|change| change.log == plan.log) {
        return Ok(change.index);
    }
    let corrupt = |e: &dyn std::fmt::Display| Error::Corrupt(format!("recovery.json: {e}"));
    let log = VerifierKey::parse(&plan.log).map_err(|e| corrupt(&e))?;
    let cosigner = cosigners::parse(&plan.origin, &plan.cosigner).map_err(|e| corrupt(&e))?;
    let head = {
        let chain = ledger.chain();
        Checkpoint { origin: identity.origin.clone(), size: chain.head.size, root: chain.tree.root() }
    };
    let time_ms = Clock::default().read(ledger.newest().time_ms).sure_ms;
    let last = sign_last(config, disk, &head, time_ms)?;
    let known = plan.known.as_deref().map(|text| Ok::<_, Error>((open_known(identity, text)?, text))).transpose()?;
    let known = known.filter(|(known, _)| known.size > head.size).map(|(_, text)| text.to_owned());
    let rows = |prefix: &str| rows(ledger, prefix);
    let mut operations = operations(&rows)?;
    for (key, _) in rows("~cosigners/")? {
        if key != cosigners::row_key(identity.node) {
            operations.push(Operation::Delete { key });
        }
    }
    operations.push(cosigners::put_row(identity.node, &cosigner));
    let policy = cosigners::policy(&log, std::slice::from_ref(&cosigner))?;
    let info = LogInfo {
        origin: plan.origin.clone(),
        vkey: plan.log.clone(),
        cosigners: vec![plan.cosigner.clone()],
        policy: policy.clone(),
    };
    let newest = ledger.revision_of(&log_key::key())?;
    let requirements = vec![Requirement { key: log_key::key(), revision: newest }];
    let row: Write = NewKeys { info, requirements, operations }.row(AUTHOR);
    let command = Command::Recovery {
        time_ms,
        author: AUTHOR.to_owned(),
        log: plan.log.clone(),
        cosigners: vec![plan.cosigner.clone()],
        policy,
        reason: plan.reason.clone(),
        last,
        known,
        writes: vec![WriteCommand::prepare(row, |_| None, rt::fill_random)?],
    };
    match consensus.propose(&command).await?.first() {
        Some(Outcome::Committed(committed)) if committed.transaction == head.size => Ok(head.size),
        other => Err(Error::Corrupt(format!("the entry of the recovery was not made as it was meant: {other:?}"))),
    }
}

/// The last checkpoint of the log of before, signed by what this node has of its keys. They sign nothing after it.
fn sign_last(config: &Config, disk: &Arc<dyn Disk>, head: &Checkpoint, time_ms: u64) -> Result<String, Error> {
    cosign::promise_last(disk.as_ref(), &config.data, head)?;
    let (_, keys) = Identity::load(config.place(disk.as_ref()))?;
    let (text, time_s) = (head.to_text(), time_ms / 1000);
    let signers = [Some(&keys.log), keys.next.as_ref(), Some(&keys.cosigner)];
    let lines: Vec<_> = signers.into_iter().flatten().map(|signer| signer.sign(&text, time_s)).collect();
    Ok(assemble(&text, &lines))
}

fn rows(ledger: &Ledger, prefix: &str) -> Result<Vec<(Key, Vec<u8>)>, Error> {
    let (mut rows, mut after) = (Vec::new(), None);
    loop {
        let KeyPage { keys, next, .. } = ledger.keys(prefix, after.as_ref(), PAGE)?;
        for row in keys {
            if let Found::Value(value) = ledger.get(&row.key, None)?.found {
                rows.push((row.key, value.content.to_vec()));
            }
        }
        match next {
            Some(next) => after = Some(next),
            None => return Ok(rows),
        }
    }
}

/// Puts keys and identity in their places, and what belongs to the log of before aside. May be cut anywhere, and is then done
/// again.
fn settle(place: Place<'_>, plan: &Plan) -> Result<(), Error> {
    let Place { disk, data, .. } = place;
    identity::take_recovered(disk, data)?;
    let identity = Identity::read(disk, data)?;
    let before = identity.epoch;
    let Plan { epoch, origin, log, cosigner, .. } = plan.clone();
    Identity { epoch, origin, log, cosigner, begun: true, ..identity }.save(disk, data)?;
    for name in [cosign::PROMISE, cosign::DIVERGENCE, super::refused::FILE] {
        let aside = data.join(format!("{name}.epoch-{before}"));
        match disk.rename(&data.join(name), &aside) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            moved => moved.map_err(|e| Error::io(format!("renaming {name}"), &e))?,
        }
    }
    let removed = disk.sync_directory(data).and_then(|()| disk.remove(&plan_path(data)));
    let removed = removed.and_then(|()| disk.sync_directory(data));
    removed.map_err(|e| Error::io("removing recovery.json", &e))
}
