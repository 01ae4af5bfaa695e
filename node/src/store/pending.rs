//! [`Rows`]: the row engine behind batches that wait in memory.
//!
//! sled pays for a batch more than for its rows: each seals a buffer twice and wakes seven threads for it. So batches
//! gather here until they have [`WAITING_ROWS`] rows, and leave together, off the thread that applies: with one connection
//! no put waits for rows. Readers see what waits and what is leaving at once. A crash loses both, as it may lose whatever
//! was committed since the last [`Rows::sync`].

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::{Batch, Engine, Row, TREES, Tree};
use crate::error::Error;
use crate::rt;

/// Rows that wait before they leave. Small in tests, so that a crash finds every state in between.
const WAITING_ROWS: usize = if cfg!(test) { 12 } else { 96 };
/// So many may wait while others leave; then whoever commits waits too.
const WAITING_ROWS_MAX: usize = 4 * WAITING_ROWS;

/// Rows on disk, with those on their way there. Clones name the same rows.
#[derive(Clone)]
pub(crate) struct Rows {
    engine: Engine,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    pending: RwLock<Pending>,
    /// Held while rows go to the engine, so that they do in the order in which they were committed.
    turn: Mutex<()>,
}

/// What the engine does not have yet.
#[derive(Default)]
struct Pending {
    waiting: Layer,
    /// Older than what waits. Stays until the engine has it.
    leaving: Option<Arc<Layer>>,
    /// Why it could not leave; told once, to the next who commits.
    failed: Option<Error>,
}

/// Rows over others; one without a value is removed.
#[derive(Default)]
struct Layer {
    trees: [BTreeMap<Vec<u8>, Option<Vec<u8>>>; TREES.len()],
    rows: usize,
}

impl Layer {
    fn tree(&self, tree: Tree) -> &BTreeMap<Vec<u8>, Option<Vec<u8>>> {
        &self.trees[tree as usize]
    }

    fn from(&self, tree: Tree, key: &[u8]) -> impl Iterator<Item = (&Vec<u8>, &Option<Vec<u8>>)> {
        self.tree(tree).range::<[u8], _>((Bound::Included(key), Bound::Unbounded))
    }

    fn add(&mut self, batch: Batch) {
        for (tree, key, value) in batch.0 {
            let added = self.trees[tree as usize].insert(key, value).is_none();
            self.rows += usize::from(added);
        }
    }

    fn to_batch(&self) -> Batch {
        let of_tree = |&(tree, _)| self.tree(tree).iter().map(move |(key, value)| (tree, key.clone(), value.clone()));
        Batch(TREES.iter().flat_map(of_tree).collect())
    }
}

impl Pending {
    /// The newest layer first.
    fn layers(&self) -> impl Iterator<Item = &Layer> {
        std::iter::once(&self.waiting).chain(self.leaving.as_deref())
    }

    /// What the newest layer that has the row says of it.
    fn get(&self, tree: Tree, key: &[u8]) -> Option<&Option<Vec<u8>>> {
        self.layers().find_map(|layer| layer.tree(tree).get(key))
    }

    /// Lets what waits leave, if all before is gone.
    fn depart(&mut self) -> bool {
        let departs = self.leaving.is_none() && self.waiting.rows > 0;
        if departs {
            self.leaving = Some(Arc::new(std::mem::take(&mut self.waiting)));
        }
        departs
    }
}

impl Rows {
    /// The rows of an engine that nobody else uses.
    pub(crate) fn over(engine: Engine) -> Self {
        Self { engine, shared: Arc::default() }
    }

    /// A row's value.
    pub(crate) fn get(&self, tree: Tree, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        if let Some(value) = self.pending().get(tree, key) {
            return Ok(value.clone());
        }
        self.engine.get(tree, key)
    }

    /// Up to `limit` rows from `key` on, in order.
    pub(crate) fn from(&self, tree: Tree, key: &[u8], limit: usize) -> Result<Vec<Row>, Error> {
        let pending = self.pending();
        // Each that is removed can take at most one of the rows below away.
        let removed: usize =
            pending.layers().map(|layer| layer.from(tree, key).filter(|(_, value)| value.is_none()).count()).sum();
        let enough = limit + removed;
        let stored = self.engine.from(tree, key, enough)?;
        if pending.layers().all(|layer| layer.from(tree, key).next().is_none()) {
            return Ok(stored);
        }
        let mut merged: BTreeMap<Vec<u8>, Vec<u8>> = stored.into_iter().collect();
        let oldest_first = pending.leaving.as_deref().into_iter().chain([&pending.waiting]);
        for layer in oldest_first {
            for (key, value) in layer.from(tree, key).take(enough) {
                match value {
                    Some(value) => merged.insert(key.clone(), value.clone()),
                    None => merged.remove(key),
                };
            }
        }
        Ok(merged.into_iter().take(limit).collect())
    }

    /// Takes a batch, atomically; durable after [`Rows::sync`].
    ///
    /// # Errors
    /// Also that rows committed before could not be written; they stay, and are tried again.
    pub(crate) fn commit(&self, batch: Batch) -> Result<(), Error> {
        let mut pending = self.changing();
        pending.waiting.add(batch);
        if let Some(error) = pending.failed.take() {
            return Err(error);
        }
        if pending.waiting.rows < WAITING_ROWS {
            return Ok(());
        }
        if pending.depart() {
            drop(pending);
            let rows = self.clone();
            rt::aside(move || {
                if let Err(error) = rows.write_leaving() {
                    rows.changing().failed = Some(error);
                }
            });
            return Ok(());
        }
        let full = pending.waiting.rows >= WAITING_ROWS_MAX;
        drop(pending);
        if full { self.write_all() } else { Ok(()) }
    }

    /// Makes every committed batch durable.
    pub(crate) fn sync(&self) -> Result<(), Error> {
        self.write_all()?;
        self.engine.sync()
    }

    /// Bytes on disk.
    pub(crate) fn disk_bytes(&self) -> u64 {
        self.engine.disk_bytes()
    }

    /// Writes what is leaving, then what waits now.
    fn write_all(&self) -> Result<(), Error> {
        self.write_leaving()?;
        self.changing().depart();
        self.write_leaving()
    }

    fn write_leaving(&self) -> Result<(), Error> {
        let _turn = self.shared.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(leaving) = self.pending().leaving.clone() else { return Ok(()) };
        self.engine.commit(leaving.to_batch())?;
        self.changing().leaving = None;
        Ok(())
    }

    fn pending(&self) -> RwLockReadGuard<'_, Pending> {
        self.shared.pending.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn changing(&self) -> RwLockWriteGuard<'_, Pending> {
        self.shared.pending.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::MemoryRows;
    use super::*;

    /// Commits, removals and reads at random, with few keys and a crash now and then, beside one ordered map that knows
    /// no batches.
    #[test]
    fn reads_see_what_waits_as_if_it_were_written() {
        let seed = std::env::var("SAMOVAR_SEED").map_or_else(|_| rand::random(), |s| s.parse().expect("a number"));
        println!("seed {seed}: SAMOVAR_SEED={seed} cargo test -p samovar-node reads_see_what_waits");
        let mut random = <rand::rngs::StdRng as rand::SeedableRng>::seed_from_u64(seed);
        let mut draw = |below: u8| rand::Rng::gen_range(&mut random, 0..below);
        let rows = Rows::over(Engine::Memory(Arc::new(MemoryRows::default())));
        let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        for step in 0..20_000_u32 {
            let mut batch = Batch::default();
            for _ in 0..draw(4) {
                let key = vec![draw(40)];
                if draw(3) == 0 {
                    model.remove(&key);
                    batch.remove(Tree::Names, &key);
                } else {
                    let value = step.to_be_bytes().to_vec();
                    model.insert(key.clone(), value.clone());
                    batch.put(Tree::Names, &key, value);
                }
            }
            rows.commit(batch).expect("rows in memory take every batch");
            if draw(20) == 0 {
                // As if they took their time to leave: more wait over them.
                rows.changing().depart();
            }
            if draw(50) == 0 {
                rows.sync().expect("rows in memory take every sync");
            }
            let (key, limit) = (vec![draw(40)], usize::from(draw(9)));
            let got = rows.get(Tree::Names, &key).expect("a read");
            assert_eq!(got.as_ref(), model.get(&key), "seed {seed}, step {step}: key {key:?}");
            let got = rows.from(Tree::Names, &key, limit).expect("a read");
            let wanted: Vec<_> = model.range(key.clone()..).take(limit).map(|(k, v)| (k.clone(), v.clone())).collect();
            assert_eq!(got, wanted, "seed {seed}, step {step}: {limit} from {key:?}");
        }
    }

    #[test]
    fn what_could_not_leave_stays_and_is_told() {
        let again = "cargo test -p samovar-node what_could_not_leave";
        let memory = Arc::new(MemoryRows::default());
        let rows = Rows::over(Engine::Memory(Arc::clone(&memory)));
        memory.lock().broken = true;
        let mut told = 0;
        for at in 0..100_u8 {
            let mut batch = Batch::default();
            batch.put(Tree::Names, &[at], vec![at]);
            told += usize::from(rows.commit(batch).is_err());
        }
        assert!(told > 0, "100 rows went to an engine that takes none, and no commit said so: {again}");
        assert!(rows.sync().is_err(), "a sync to an engine that takes no rows must fail: {again}");
        memory.lock().broken = false;
        rows.sync().expect("the engine takes rows again");
        let stored = Rows::over(Engine::Memory(memory)).from(Tree::Names, &[], 200).expect("a read");
        assert_eq!(stored.len(), 100, "every committed row must be in the engine after a sync that succeeded: {again}");
    }
}
