//! The test vectors under `tests/vectors`: each a file, what it is verified with, and whether it holds. The same table is
//! the adversarial test of the verifier.

use std::path::PathBuf;

use samovar_fuzz::forge::{self, Honest, edit_extra};

use super::ledger::{Keys, Ledger, Op};
use crate::proof::{Opening, Refused, Verified, Verifier};

/// One vector.
pub(super) struct Vector {
    pub(super) name: &'static str,
    pub(super) file: Vec<u8>,
    pub(super) key: String,
    pub(super) policy: Option<&'static str>,
    pub(super) expect_key: Option<&'static str>,
    /// Vectors that are the receipts of changes of keys, in the order in which they are followed.
    pub(super) chain: &'static [&'static str],
    /// `Ok`, or a part of the reason that must be given.
    pub(super) outcome: Result<(), &'static str>,
    pub(super) why: &'static str,
}

pub(super) struct Vectors {
    pub(super) keys: Keys,
    /// The ledger as it ends.
    pub(super) ledger: Ledger,
    /// The same two blocks earlier.
    older: Ledger,
    pub(super) vectors: Vec<Vector>,
}

pub(super) const POLICIES: [&str; 4] = ["majority", "all", "witnessed", "outside-only"];

impl Vectors {
    pub(super) fn policy(&self, name: &str) -> String {
        match name {
            "majority" => self.keys.majority(),
            "all" => self.keys.all(),
            "witnessed" => self.keys.witnessed(),
            _ => self.keys.outside_only(),
        }
    }

    /// Verifies a vector as it says.
    pub(super) fn verify(&self, vector: &Vector) -> Result<Verified, Refused> {
        let verifier = Verifier {
            log: crate::note::VerifierKey::parse(&vector.key).unwrap(),
            policy: vector.policy.map(|name| crate::policy::Policy::parse(self.policy(name).as_bytes()).unwrap()),
            expect_key: vector.expect_key.map(str::to_owned),
        };
        let file = |name: &&str| self.vectors.iter().find(|v| v.name == *name).unwrap().file.as_slice();
        let chain: Vec<_> = vector.chain.iter().map(file).collect();
        verifier.verify_chain(&chain)?.verify(&vector.file)
    }

    pub(super) fn add(
        &mut self,
        name: &'static str,
        file: impl Into<Vec<u8>>,
        outcome: Result<(), &'static str>,
        why: &'static str,
    ) {
        let key = self.keys.log_key().to_string();
        let file = file.into();
        let policy = Some("majority");
        self.vectors.push(Vector { name, file, key, policy, expect_key: None, chain: &[], outcome, why });
    }

    pub(super) fn with(&mut self, change: impl FnOnce(&mut Vector)) {
        change(self.vectors.last_mut().unwrap());
    }

    pub(super) fn new() -> Self {
        let keys = Keys::new(40);
        let mut ledger = Ledger::default();
        ledger.members();
        ledger.end_block();
        ledger.transaction(&[
            Op::Put("flights/1", b"first"),
            Op::Put("a \"quoted\\\" key/\u{e9}\u{1fad6}", b"{\"n\":1}"),
        ]);
        ledger.transaction(&[Op::Put("flights/2", b"second"), Op::Put("empty", b"")]);
        ledger.end_block();
        ledger.transaction(&[
            Op::Put("flights/1", b"third"),
            Op::Delete("flights/2"),
            Op::Put("secret", b"to be erased"),
        ]);
        ledger.end_block();
        for n in 0..260 {
            ledger.transaction(&[Op::Put(FILLERS[n % FILLERS.len()], b"filler")]);
        }
        ledger.transaction(&[Op::Blob("blob", b"bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku")]);
        ledger.end_block();
        let older = ledger.clone();
        ledger.transaction(&[Op::Erase("secret", 5), Op::Put("new", b"in the newest block")]);
        ledger.keys_change(&Keys::new(80), &Keys::new(80).majority());
        ledger.end_block();
        ledger.transaction(&[Op::Put("flights/1", b"fourth")]);
        ledger.end_block();
        let mut all = Self { keys, ledger, older, vectors: Vec::new() };
        all.valid_receipts();
        all.valid_proofs();
        all.false_signatures();
        all.false_receipts();
        all.false_proofs();
        all.malformed();
        all.forged();
        all.rotations();
        all
    }

    fn valid_receipts(&mut self) {
        let l = self.ledger.clone();
        let receipt = |v: &Self, index| l.receipt(&v.keys, index);
        for (name, index, why) in [
            ("receipt", 2, "two puts, one key with characters that JSON escapes"),
            ("receipt-empty-value", 3, "a value of no bytes"),
            ("receipt-erased", 5, "a put, a delete, and a put whose value a later entry erased"),
            ("receipt-blob", 267, "the value of a blob is its CID, its size that of the blob"),
            ("receipt-erase", 269, "the entry that erases, with a put beside it"),
            ("receipt-membership", 0, "no transaction: nothing to open"),
            ("receipt-block", 4, "a block entry is an entry like others"),
            ("receipt-cosigners", 270, "a change of the log's keys"),
        ] {
            let file = receipt(self, index);
            self.add(name, file, Ok(()), why);
        }
        let file = receipt(self, 2);
        self.add("receipt-no-policy", file.clone(), Ok(()), "without a policy the log's signature suffices");
        self.with(|v| v.policy = None);
        self.add("receipt-all", file.clone(), Ok(()), "every node cosigned");
        self.with(|v| v.policy = Some("all"));
        self.add("receipt-expected-key", file, Ok(()), "the entry puts the key that was asked for");
        self.with(|v| v.expect_key = Some("flights/1"));
        let (two, outside) = {
            let head = l.checkpoint();
            let nodes = &self.keys.nodes;
            let two = self.keys.sign_by(&head, &[&nodes[2], &nodes[0]]);
            (two, self.keys.sign_by(&head, &[&nodes[0], &self.keys.witness, &nodes[1]]))
        };
        self.add("receipt-two-of-three", l.receipt_with(&two, 2, &l.openings(2)), Ok(()), "a majority, in any order");
        let by_outside = l.receipt_with(&outside, 2, &l.openings(2));
        self.add("receipt-witnessed", by_outside.clone(), Ok(()), "two nodes and an outside witness");
        self.with(|v| v.policy = Some("witnessed"));
        self.add("receipt-outside-only", by_outside, Ok(()), "an outside witness suffices for inclusion");
        self.with(|v| v.policy = Some("outside-only"));
        let withheld = l.receipt_with(&two, 2, &[Opening::Withheld, l.openings(2)[1].clone()]);
        self.add("receipt-withheld", withheld, Ok(()), "one value is not in the file");
        let unknown = receipt(self, 2) + forge::UNKNOWN_SIGNATURE;
        self.add("receipt-unknown-signature", unknown, Ok(()), "unknown signatures are passed over");
        let older = self.older.receipt(&self.keys, 5);
        self.add("receipt-before-erase", older, Ok(()), "saved before the erase, it still opens its value");
    }

    fn valid_proofs(&mut self) {
        let l = self.ledger.clone();
        for (name, key, why) in [
            ("proof", "flights/1", "the newest of three values, with its entry"),
            ("proof-escapes", "a \"quoted\\\" key/\u{e9}\u{1fad6}", "a key with characters that JSON escapes"),
            ("proof-empty-value", "empty", "a value of no bytes"),
            ("proof-blob", "blob", "the value of a blob is its CID"),
            ("proof-erased", "secret", "the value was erased, and by which entry"),
            ("proof-deleted", "flights/2", "a deleted key is absent"),
            ("proof-absent-neighbour", ABSENT_BY_NEIGHBOUR, "never written; another key's leaf stands on its way"),
            ("proof-absent-empty", ABSENT_BY_EMPTY, "never written; the way ends at an empty subtree"),
        ] {
            let file = l.proof(&self.keys, key);
            self.add(name, file, Ok(()), why);
        }
        let head = self.keys.sign(&l.checkpoint());
        self.add(
            "proof-without-value",
            l.proof_with(&head, "flights/1", false),
            Ok(()),
            "revision and commitment only",
        );
        self.add("proof-no-policy", l.proof_with(&head, "flights/1", true), Ok(()), "the log's signature only");
        self.with(|v| (v.policy, v.expect_key) = (None, Some("flights/1")));
        self.add(
            "proof-older",
            self.older.proof(&self.keys, "new"),
            Ok(()),
            "absent as of an older head, which it names",
        );
        let mut first = Ledger::default();
        first.members();
        first.end_block();
        self.add("proof-empty-map", first.proof(&self.keys, "flights/1"), Ok(()), "nothing was ever written");
    }

    fn false_signatures(&mut self) {
        let l = self.ledger.clone();
        let file = l.receipt(&self.keys, 2);
        let head = l.checkpoint();
        let nodes = |n: usize| self.keys.nodes.iter().take(n).collect::<Vec<_>>();
        let one = l.receipt_with(&self.keys.sign_by(&head, &nodes(1)), 2, &l.openings(2));
        let two = l.receipt_with(&self.keys.sign_by(&head, &nodes(2)), 2, &l.openings(2));
        let two_nodes = l.proof_with(&self.keys.sign_by(&head, &nodes(2)), "flights/1", true);
        let outside = l.proof_with(&self.keys.sign_by(&head, &[&self.keys.witness]), "flights/1", true);
        let twice = l.receipt_with(&self.keys.sign_by(&head, &nodes(1).repeat(2)), 2, &l.openings(2));
        self.add("bad-quorum", one, Err("quorum"), "one of three nodes is no majority");
        self.add("bad-quorum-all", two, Err("quorum"), "the policy asks for every node");
        self.with(|v| v.policy = Some("all"));
        self.add("bad-proof-outside-only", outside, Err("group nodes"), "a witness does not vouch for the state root");
        self.with(|v| v.policy = Some("outside-only"));
        self.add("bad-quorum-witness", two_nodes, Err("quorum"), "the outside witness is missing");
        self.with(|v| v.policy = Some("witnessed"));
        self.add("bad-quorum-twice", twice, Err("quorum"), "one node twice is one node");
        let other = Keys::new(80);
        self.add("bad-log-key", file.clone(), Err("another log key"), "the key of another log");
        self.with(|v| (v.key, v.policy) = (other.log_key().to_string(), None));
        self.add(
            "bad-policy-log",
            l.receipt(&other, 2),
            Err("does not know the log key"),
            "the policy names another log",
        );
        self.with(|v| v.key = other.log_key().to_string());
        let forged = l.receipt_with(&other.sign_by(&head, &nodes_of(&self.keys)), 2, &l.openings(2));
        self.add("bad-log-signature-missing", forged, Err("another log key"), "nodes signed it, the log did not");
        let as_cosigner = self.keys.nodes[0].verifier_key().to_string();
        self.add("bad-key-type", file, Err("type 0x01"), "a cosigner's key is not a log's");
        self.with(|v| (v.key, v.policy) = (as_cosigner, None));
    }

    /// What can be forged of honest files alone.
    fn forged(&mut self) {
        for forgery in forge::table(&self.honest()) {
            self.add(forgery.name, forgery.file, Err(forgery.reason), forgery.why);
        }
    }

    fn honest(&self) -> Honest {
        let (l, older, keys) = (&self.ledger, &self.older, &self.keys);
        Honest {
            receipt: l.receipt(keys, 2),
            neighbour: l.receipt(keys, 3),
            older_checkpoint: keys.sign(&older.checkpoint()),
            proof: l.proof(keys, "flights/1"),
            present: "flights/1".into(),
            other: "empty".into(),
            absent_proof: l.proof(keys, ABSENT_BY_NEIGHBOUR),
            absent: ABSENT_BY_NEIGHBOUR.into(),
            empty: ABSENT_BY_EMPTY.into(),
            erased: l.proof(keys, "secret"),
            older_absent: older.proof(keys, "new"),
            older_block: l.receipt(keys, older.size() - 1),
        }
    }

    fn false_receipts(&mut self) {
        let l = self.ledger.clone();
        let (two, erased) = (l.receipt(&self.keys, 2), l.receipt(&self.keys, 5));
        let head = self.keys.sign(&l.checkpoint());
        let by_other = edit_extra(&erased, |e| e.replace("\"erased\":269", "\"erased\":270"));
        self.add("bad-erase-index", by_other, Err("does not lead to the root"), "another entry is named as the erase");
        let mut none = l.openings(5);
        none[1] = Opening::Erased(crate::proof::Erasure { index: 4, source: l.source(4) });
        self.add("bad-erase-entry", l.receipt_with(&head, 5, &none), Err("does not erase"), "the entry erases nothing");
        let mut other = l.openings(5);
        other[0] = other[1].clone();
        self.add("bad-erase-key", l.receipt_with(&head, 5, &other), Err("does not erase"), "it erases another key");
        self.add("bad-expected-key", two, Err("does not name the key"), "the entry is about other keys");
        self.with(|v| v.expect_key = Some("flights/2"));
    }

    fn false_proofs(&mut self) {
        let l = self.ledger.clone();
        let present = l.proof(&self.keys, "flights/1");
        self.add("bad-proof-expected-key", present, Err("is about the key"), "a proof of another key than asked");
        self.with(|v| v.expect_key = Some("empty"));
        let not_block = crate::proof::latest(
            &crate::proof::Inclusion { index: 2, path: &l.path(2), checkpoint: &self.keys.sign(&l.checkpoint()) },
            l.line(2),
            "flights/1",
            &crate::proof::MapProof { siblings: vec![], leaf: crate::proof::MapLeaf::Empty },
            None,
            None,
        );
        self.add("bad-not-a-block", not_block, Err("not a block entry"), "a transaction in place of the block entry");
    }

    fn malformed(&mut self) {
        let receipt = self.ledger.receipt(&self.keys, 2);
        let spelling = "not a proof file";
        let extra_line = receipt.lines().nth(1).unwrap();
        let unpadded = receipt.replace(extra_line, extra_line.trim_end_matches('='));
        self.add("bad-extra-padding", unpadded, Err(spelling), "padding is missing");
        self.add("bad-extra-bits", with_spare_bits(&receipt), Err(spelling), "spare bits of the base64 are set");
        let beyond = receipt.replace("index 2\n", "index 999\n");
        self.add("bad-index-beyond", beyond, Err("beyond"), "an index beyond the checkpoint");
        let mut bytes = receipt.into_bytes();
        bytes[30] = 0xff;
        self.add("bad-utf8", bytes, Err(spelling), "not UTF-8");
        self.duplicate_field_in_log();
    }

    /// A log that holds a line which is no entry: its own signature does not make it one.
    fn duplicate_field_in_log(&mut self) {
        let line = r#"{"type":"membership","time":1,"time":2,"voters":[1],"learners":[]}"#;
        let leaf = crate::merkle::leaf_hash(line.as_bytes());
        let head = crate::checkpoint::Checkpoint { root: leaf, size: 1, ..self.ledger.checkpoint() };
        let inclusion = crate::proof::Inclusion { index: 0, path: &[], checkpoint: &self.keys.sign(&head) };
        let file = crate::proof::receipt(&inclusion, line, &[]);
        self.add("bad-entry-in-log", file, Err("malformed"), "a leaf of the log that is not an entry");
    }
}

/// Sets a bit of the extra line's base64 that carries nothing; the JSON has the length that has such bits.
fn with_spare_bits(file: &str) -> String {
    let line = file.lines().nth(1).unwrap();
    let body = line.trim_end_matches('=');
    assert_ne!(body, line, "the vector needs an extra line with padding");
    let last = body.chars().last().unwrap();
    let next = char::from(u8::try_from(u32::from(last)).unwrap() + 1);
    let changed = format!("{}{next}{}", &body[..body.len() - 1], &line[body.len()..]);
    file.replace(line, &changed)
}

fn nodes_of(keys: &Keys) -> Vec<&crate::note::Signer> {
    keys.nodes.iter().collect()
}

const FILLERS: [&str; 7] = ["f/0", "f/1", "f/2", "f/3", "f/4", "f/5", "f/6"];
const ABSENT_BY_NEIGHBOUR: &str = "no such key 0";
const ABSENT_BY_EMPTY: &str = "no such key 1";

/// A row of `index.json`.
pub(super) fn row(
    file: &str,
    key: &str,
    policy: Option<&str>,
    expect: Option<&str>,
    chain: &[&str],
    (accept, why): (bool, &str),
) -> String {
    let text = |t: &str| serde_json::to_string(t).unwrap();
    let maybe = |t: Option<&str>| t.map_or("null".to_owned(), text);
    let (file, key, why) = (text(file), text(key), text(why));
    let (policy, expect) = (maybe(policy), maybe(expect));
    let chain: Vec<_> = chain.iter().map(|name| text(&format!("{name}.tlog-proof"))).collect();
    let chain = chain.join(",");
    format!(
        "{{\"file\":{file},\"key\":{key},\"policy\":{policy},\"expect_key\":{expect},\"chain\":[{chain}],\
         \"accept\":{accept},\"why\":{why}}}"
    )
}

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors")
}

/// `index.json` and every file beside it.
fn files(all: &Vectors) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<(String, Vec<u8>)> =
        POLICIES.iter().map(|name| (format!("{name}.policy"), all.policy(name).into_bytes())).collect();
    let mut rows = Vec::new();
    for v in &all.vectors {
        let (file, policy) = (format!("{}.tlog-proof", v.name), v.policy.map(|p| format!("{p}.policy")));
        rows.push(row(&file, &v.key, policy.as_deref(), v.expect_key, v.chain, (v.outcome.is_ok(), v.why)));
        files.push((format!("{}.tlog-proof", v.name), v.file.clone()));
    }
    files.push(("parts.json".into(), super::parts::json(&all.ledger)));
    files.push(("index.json".into(), format!("[\n{}\n]\n", rows.join(",\n")).into_bytes()));
    files
}

/// The files are compared byte for byte. `SAMOVAR_WRITE_VECTORS=1 cargo test -p samovar-node vectors` writes them anew:
/// to be done only when the formats change, and then said in the changelog.
#[test]
#[allow(clippy::disallowed_methods, reason = "test files need no durability")]
fn the_vectors_on_disk_are_these() {
    let files = files(&Vectors::new());
    let directory = directory();
    if std::env::var_os("SAMOVAR_WRITE_VECTORS").is_some() {
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir_all(&directory).unwrap();
        files.iter().for_each(|(name, bytes)| std::fs::write(directory.join(name), bytes).unwrap());
    }
    for (name, bytes) in &files {
        let stored = std::fs::read(directory.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(stored == *bytes, "{name} differs from what the code writes: a format has changed");
    }
    let stored = std::fs::read_dir(&directory).unwrap().count();
    assert_eq!(stored, files.len(), "files under tests/vectors that no vector names");
}
