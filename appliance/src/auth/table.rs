//! Rows of the system state: JSON values under reserved keys, so that the state root covers them and every change of one
//! is an entry of the chain log.

use std::marker::PhantomData;

use samovar_node::command::{Committed, Requirement};
use samovar_node::view::{Consistency, Found};
use samovar_node::{Key, Node, Operation, Outcome, Write};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::problem::Problem;

/// Rows read at once.
const ROWS_AT_ONCE: usize = 100;
const JSON: &str = "application/json";

/// The rows of one kind.
pub(crate) struct Table<R> {
    /// What their keys begin with; the id follows.
    prefix: &'static str,
    /// Name of the problem when there is no such row, and its words.
    missing: (&'static str, &'static str),
    /// Whether a text can be an id.
    is_id: fn(&str) -> bool,
    /// Most rows.
    pub(crate) rows_max: usize,
    row: PhantomData<fn() -> R>,
}

/// A row as it was read.
#[derive(Debug, Clone)]
pub(crate) struct Stored<R> {
    /// Its id.
    pub(crate) id: String,
    /// Index of the entry that wrote it.
    pub(crate) revision: u64,
    /// What it says.
    pub(crate) row: R,
}

impl<R: Serialize + DeserializeOwned> Table<R> {
    /// Declares a table.
    pub(super) const fn new(
        prefix: &'static str,
        missing: (&'static str, &'static str),
        is_id: fn(&str) -> bool,
        rows_max: usize,
    ) -> Self {
        Self { prefix, missing, is_id, rows_max, row: PhantomData }
    }

    /// What the keys of its rows begin with.
    pub(crate) const fn prefix(&self) -> &'static str {
        self.prefix
    }

    /// The reserved key of a row.
    ///
    /// # Errors
    /// 404 for what cannot be an id: there is no such row.
    pub(crate) fn key(&self, id: &str) -> Result<Key, Problem> {
        if !(self.is_id)(id) {
            return Err(self.missing());
        }
        Key::reserved(&format!("{}{id}", self.prefix)).map_err(Problem::key)
    }

    /// 404.
    pub(crate) fn missing(&self) -> Problem {
        Problem::missing(self.missing.0, self.missing.1)
    }

    /// A row as this node has it; callers that change it read behind a barrier.
    pub(crate) async fn find(&self, node: &Node, id: &str) -> Result<Option<Stored<R>>, Problem> {
        let Ok(key) = self.key(id) else { return Ok(None) };
        let Found::Value(value) = node.get(&key, Consistency::Stale, None).await?.found else { return Ok(None) };
        let row = serde_json::from_slice(&value.content).map_err(|e| Problem::internal(&e))?;
        Ok(Some(Stored { id: id.to_owned(), revision: value.revision, row }))
    }

    /// A row that must be there.
    pub(crate) async fn get(&self, node: &Node, id: &str) -> Result<Stored<R>, Problem> {
        self.find(node, id).await?.ok_or_else(|| self.missing())
    }

    /// Every row, in the order of their ids.
    pub(crate) async fn all(&self, node: &Node) -> Result<Vec<Stored<R>>, Problem> {
        let mut rows = Vec::new();
        for id in self.ids(node).await? {
            rows.extend(self.find(node, &id).await?);
        }
        Ok(rows)
    }

    /// The id of every row, in order.
    pub(crate) async fn ids(&self, node: &Node) -> Result<Vec<String>, Problem> {
        let mut ids = Vec::new();
        let mut after: Option<Key> = None;
        loop {
            let page = node.keys(self.prefix, after.as_ref(), ROWS_AT_ONCE).await?;
            ids.extend(
                page.keys.iter().filter_map(|row| row.key.as_str().strip_prefix(self.prefix)).map(str::to_owned),
            );
            match page.next {
                Some(next) if ids.len() <= self.rows_max => after = Some(next),
                _ => return Ok(ids),
            }
        }
    }

    /// Whether there is any row.
    pub(crate) async fn any(&self, node: &Node) -> Result<bool, Problem> {
        let page = node.keys(self.prefix, None, 1).await?;
        Ok(!page.keys.is_empty() || page.next.is_some())
    }

    /// Sets a row.
    pub(crate) fn put(&self, id: &str, row: &R) -> Result<Operation, Problem> {
        let value = serde_json::to_vec(row).map_err(|e| Problem::internal(&e))?.into();
        Ok(Operation::Put { key: self.key(id)?, value, media_type: JSON.to_owned(), blob: false })
    }

    /// Removes a row; its history stays.
    pub(crate) fn delete(&self, id: &str) -> Result<Operation, Problem> {
        Ok(Operation::Delete { key: self.key(id)? })
    }

    /// Destroys an earlier value of a row.
    pub(crate) fn erase(&self, id: &str, revision: u64) -> Result<Operation, Problem> {
        Ok(Operation::Erase { key: self.key(id)?, revision })
    }

    /// The condition that a row is still as it was read; `None`: that there is none.
    pub(crate) fn unchanged(&self, id: &str, revision: Option<u64>) -> Result<Requirement, Problem> {
        Ok(Requirement { key: self.key(id)?, revision })
    }
}

/// Commits a change of the system state; a refusal is a problem.
pub(crate) async fn commit(
    node: &Node,
    author: &str,
    requirements: Vec<Requirement>,
    operations: Vec<Operation>,
) -> Result<Committed, Problem> {
    let write = Write { author: author.to_owned(), requirements, operations, idempotency: None };
    match node.write(write).await? {
        Outcome::Committed(committed) => Ok(committed),
        Outcome::Refused(refusal) => Err(refusal.into()),
    }
}
