//! A whole ledger in memory, as its definition reads: for the tests of proof files and for the test vectors.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::convert::Infallible;

use bytes::Bytes;
use ring::digest::{SHA256, digest};

use crate::checkpoint::Checkpoint;
use crate::entry::{Block, Change, Cosigners, Entry, MapValue, Membership, Transaction, commitment};
use crate::merkle::{FullTile, HASH_BYTES, Hash, Tree, inclusion_proof, leaf_hash, to_hash};
use crate::note::{Scheme, Signer, VerifierKey, assemble};
use crate::policy::Policy;
use crate::proof::map::tests::ModelMap;
use crate::proof::{Erasure, Inclusion, Opening, Source, latest, receipt};

pub(super) const ORIGIN: &str = "ledger.example/samovar";
/// Seconds since 1970 of the first entry and of every signature.
const START_S: u64 = 1_760_000_000;

/// Keys from fixed seeds: a log, three nodes, an outside witness.
pub(super) struct Keys {
    pub(super) seed: u8,
    pub(super) log: Signer,
    pub(super) nodes: Vec<Signer>,
    pub(super) witness: Signer,
}

impl Keys {
    pub(super) fn new(seed: u8) -> Self {
        let signer = |name: &str, scheme, n| Signer::from_seed(name, scheme, &[seed + n; 32]).unwrap();
        Self {
            seed,
            log: signer(ORIGIN, Scheme::Ed25519, 0),
            nodes: (1..=3).map(|n| signer(&format!("{ORIGIN}/node-{n}"), Scheme::Cosignature, n)).collect(),
            witness: signer("witness.example/w1", Scheme::Cosignature, 9),
        }
    }

    pub(super) fn log_key(&self) -> &VerifierKey {
        self.log.verifier_key()
    }

    /// The policy that the cluster itself writes: two of three nodes.
    pub(super) fn majority(&self) -> String {
        let nodes = self.nodes.iter().zip(1..).map(|(s, n)| (format!("node-{n}"), s.verifier_key().clone()));
        Policy::of_cluster(self.log_key(), &nodes.collect::<Vec<_>>())
    }

    /// Every signature in the file.
    pub(super) fn all(&self) -> String {
        self.majority().replace("group nodes 2 ", "group nodes all ")
    }

    /// An outside witness besides the nodes.
    pub(super) fn witnessed(&self) -> String {
        let witness = format!("witness outside {}\ngroup everybody all nodes outside\n", self.witness.verifier_key());
        self.majority().replace("quorum nodes\n", &format!("{witness}quorum everybody\n"))
    }

    /// An outside witness only.
    pub(super) fn outside_only(&self) -> String {
        let quorum = format!("witness outside {}\nquorum outside\n", self.witness.verifier_key());
        self.majority().replace("quorum nodes\n", &quorum)
    }

    /// A checkpoint that the log and all nodes signed.
    pub(super) fn sign(&self, checkpoint: &Checkpoint) -> String {
        self.sign_by(checkpoint, &self.nodes.iter().collect::<Vec<_>>())
    }

    pub(super) fn sign_by(&self, checkpoint: &Checkpoint, cosigners: &[&Signer]) -> String {
        let text = checkpoint.to_text();
        let signers = [&self.log].into_iter().chain(cosigners.iter().copied());
        let lines: Vec<String> = signers.zip(0..).map(|(s, n)| s.sign(&text, START_S + 60 + n)).collect();
        assemble(&text, &lines)
    }
}

#[derive(Clone, Default)]
pub(super) struct Ledger {
    lines: Vec<String>,
    tree: Tree,
    full: Vec<FullTile>,
    map: ModelMap,
    /// What the map holds under each key that has a value.
    state: BTreeMap<String, MapValue>,
    /// Last put or delete of each key.
    last: BTreeMap<String, u64>,
    /// What each put wrote.
    values: BTreeMap<(u64, String), Written>,
    height: u64,
    /// Entries since the last block entry.
    count: u64,
    last_block: Option<Hash>,
}

/// Salt, value, and the entry that erased it.
type Written = ([u8; 32], Vec<u8>, Option<u64>);

pub(super) enum Op {
    Put(&'static str, &'static [u8]),
    Blob(&'static str, &'static [u8]),
    Delete(&'static str),
    Erase(&'static str, u64),
}

impl Ledger {
    pub(super) fn size(&self) -> u64 {
        self.tree.size()
    }

    pub(super) fn line(&self, index: u64) -> &str {
        &self.lines[usize::try_from(index).unwrap()]
    }

    fn time_ms(&self) -> u64 {
        START_S * 1000 + self.size()
    }

    pub(super) fn append(&mut self, entry: &Entry<'_>) -> u64 {
        let index = self.size();
        let line = entry.to_line();
        self.tree.push(leaf_hash(&line), &mut self.full);
        self.lines.push(String::from_utf8(line).unwrap());
        self.count += 1;
        index
    }

    pub(super) fn transaction(&mut self, operations: &[Op]) -> u64 {
        let index = self.size();
        let changes = operations.iter().map(|op| self.change(index, op)).collect();
        let author = Cow::Borrowed("importer");
        self.append(&Entry::Transaction(Transaction { time_ms: self.time_ms(), author, changes }))
    }

    fn change(&mut self, index: u64, operation: &Op) -> Change<'static> {
        let (key, value, blob) = match *operation {
            Op::Put(key, value) => (key, value, false),
            Op::Blob(key, value) => (key, value, true),
            Op::Delete(key) => {
                self.state.remove(key);
                self.map.remove(key);
                return Change::Delete { key: key.into(), previous: self.last.insert(key.into(), index).unwrap() };
            }
            Op::Erase(key, revision) => {
                self.values.get_mut(&(revision, key.into())).unwrap().2 = Some(index);
                if let Some(current) = self.state.get_mut(key).filter(|v| v.revision == revision) {
                    current.erased_by = Some(index);
                    self.map.set(key, current);
                }
                return Change::Erase { key: key.into(), revision, previous: self.last.get(key).copied() };
            }
        };
        let salt = to_hash(&digest(&SHA256, format!("salt {index} {key}").as_bytes()));
        let commitment = commitment(&salt, value);
        let current = MapValue { revision: index, commitment, erased_by: None };
        self.map.set(key, &current);
        self.state.insert(key.into(), current);
        self.values.insert((index, key.into()), (salt, value.to_vec(), None));
        Change::Put {
            key: key.into(),
            previous: self.last.insert(key.into(), index),
            commitment,
            size: if blob { 4_294_967_296 } else { value.len() as u64 },
            media_type: if blob { "application/x-tar" } else { "text/plain; charset=utf-8" }.into(),
            blob,
        }
    }

    pub(super) fn members(&mut self) -> u64 {
        let membership = Membership { time_ms: self.time_ms(), voters: vec![1, 2, 3], learners: vec![4] };
        self.append(&Entry::Membership(membership))
    }

    pub(super) fn keys_change(&mut self, to: &Keys, policy: &str) -> u64 {
        let cosigners = to.nodes.iter().map(|s| s.verifier_key().to_string().into()).collect();
        let (log, policy) = (to.log_key().to_string().into(), policy.into());
        let change = Cosigners { time_ms: self.time_ms(), author: "root".into(), log, cosigners, policy };
        self.append(&Entry::Cosigners(change))
    }

    pub(super) fn end_block(&mut self) -> u64 {
        self.height += 1;
        let block = Block {
            height: self.height,
            time_ms: self.time_ms(),
            count: self.count,
            previous: self.last_block,
            state: self.map.root(),
        };
        let index = self.append(&Entry::Block(block));
        self.count = 0;
        self.last_block = Some(leaf_hash(self.line(index).as_bytes()));
        index
    }

    pub(super) fn checkpoint(&self) -> Checkpoint {
        Checkpoint { origin: ORIGIN.into(), size: self.size(), root: self.tree.root() }
    }

    pub(super) fn path(&self, index: u64) -> Vec<Hash> {
        let read = |level, tile, width: u16| {
            let stored = self.full.iter().find(|t| (t.level, t.index) == (level, tile)).map(|t| t.hashes.as_slice());
            let hashes = stored.or_else(|| self.tree.edge_tile(level, tile, width)).unwrap();
            Ok::<_, Infallible>(hashes[..usize::from(width) * HASH_BYTES].to_vec())
        };
        inclusion_proof(index, self.size(), read).unwrap()
    }

    pub(super) fn source(&self, index: u64) -> Source {
        Source { line: self.line(index).into(), path: self.path(index) }
    }

    pub(super) fn openings(&self, index: u64) -> Vec<Opening> {
        let entry = Entry::parse(self.line(index).as_bytes()).unwrap();
        let puts = entry.changes().iter().filter(|c| matches!(c, Change::Put { .. }));
        puts.map(|put| self.opening(index, put.key())).collect()
    }

    fn opening(&self, index: u64, key: &str) -> Opening {
        let (salt, value, erased_by) = &self.values[&(index, key.to_owned())];
        match erased_by {
            None => Opening::Value { salt: *salt, value: Bytes::copy_from_slice(value) },
            Some(by) => Opening::Erased(Erasure { index: *by, source: self.source(*by) }),
        }
    }

    pub(super) fn receipt(&self, keys: &Keys, index: u64) -> String {
        self.receipt_with(&keys.sign(&self.checkpoint()), index, &self.openings(index))
    }

    pub(super) fn receipt_with(&self, checkpoint: &str, index: u64, openings: &[Opening]) -> String {
        let inclusion = Inclusion { index, path: &self.path(index), checkpoint };
        receipt(&inclusion, self.line(index), openings)
    }

    /// The latest-or-absent proof with all that can be in it.
    pub(super) fn proof(&self, keys: &Keys, key: &str) -> String {
        self.proof_with(&keys.sign(&self.checkpoint()), key, true)
    }

    pub(super) fn proof_with(&self, checkpoint: &str, key: &str, value: bool) -> String {
        let index = self.size() - 1;
        let inclusion = Inclusion { index, path: &self.path(index), checkpoint };
        let current = self.state.get(key).copied();
        let map = self.map.prove(key, current);
        let put = current.filter(|_| value).map(|v| self.source(v.revision));
        let opening = current.filter(|v| value && v.erased_by.is_none()).map(|v| self.opening(v.revision, key));
        let opening = match &opening {
            Some(Opening::Value { salt, value }) => Some((salt, value.as_ref())),
            _ => None,
        };
        latest(&inclusion, self.line(index), key, &map, put.as_ref(), opening)
    }
}
