//! The key that signs this node's session tokens: made when it is first needed, replaced by a rotation anywhere.

use samovar_node::command::Committed;
use samovar_node::{Node, Operation};
use tokio::sync::Mutex;

use super::rows::{SESSION_KEYS, SessionKey};
use super::session::{Claims, KeyFile, Signer};
use super::table::{Stored, commit};
use crate::api::problem::Problem;
use crate::secrets::Secrets;

/// What becomes of the tokens of a key that is replaced.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Old {
    /// They are good for so many milliseconds more, which is as long as the youngest of them lasts.
    Honoured(u64),
    /// They are refused from now on.
    Refused,
}

/// The signing key of this node.
pub(super) struct Signing {
    file: KeyFile,
    /// Held while a key is made, which waits for a write: two logins at once make one key.
    current: Mutex<Option<Signer>>,
}

impl Signing {
    /// With the key of a data directory, if it has one.
    pub(super) fn of(secrets: &Secrets) -> Self {
        let file = KeyFile::of(secrets);
        Self { current: Mutex::new(file.load()), file }
    }

    /// The token for a session.
    pub(super) async fn token(&self, node: &Node, origin: &str, claims: &Claims) -> Result<String, Problem> {
        let mut current = self.current.lock().await;
        let registered = match &*current {
            Some(signer) => SESSION_KEYS.find(node, &signer.id).await?,
            None => None,
        };
        if registered.is_none_or(|key| key.row.honoured_until_ms.is_some()) {
            let author = node.status().name;
            self.replace(&mut current, node, &author, None).await?;
        }
        let signer = current.as_ref().ok_or_else(|| Problem::internal(&"no session key"))?;
        signer.token(origin, claims).map_err(|e| Problem::internal(&e))
    }

    /// Replaces the session keys of all nodes: this one has a new key now, the others make theirs when they need one.
    pub(super) async fn rotate(&self, node: &Node, author: &str, old: Old) -> Result<(String, Committed), Problem> {
        let mut current = self.current.lock().await;
        let committed = self.replace(&mut current, node, author, Some(old)).await?;
        let id = current.as_ref().map(|s| s.id.clone()).unwrap_or_default();
        Ok((id, committed))
    }

    /// Crash order: the public half on the ledger, then the private half in its file. In between the next login makes
    /// another key, and the first one has signed nothing.
    async fn replace(
        &self,
        current: &mut Option<Signer>,
        node: &Node,
        author: &str,
        old: Option<Old>,
    ) -> Result<Committed, Problem> {
        node.barrier().await?;
        let (seed, signer) = KeyFile::draw().map_err(|e| Problem::internal(&e))?;
        let now_ms = node.now_ms();
        let rows = SESSION_KEYS.all(node).await?;
        let mut requirements = vec![SESSION_KEYS.unchanged(&signer.id, None)?];
        let mut operations = vec![SESSION_KEYS.put(
            &signer.id,
            &SessionKey {
                public: signer.public(),
                node: node.status().name,
                created_ms: now_ms,
                honoured_until_ms: None,
            },
        )?];
        for key in &rows {
            if let Some(operation) = retire(key, old, now_ms)? {
                requirements.push(SESSION_KEYS.unchanged(&key.id, Some(key.revision))?);
                operations.push(operation);
            }
        }
        let left = rows.len() + 1 - operations.iter().filter(|o| matches!(o, Operation::Delete { .. })).count();
        if left > SESSION_KEYS.rows_max {
            let detail = "too many session keys are honoured still; try again when some ran out, or end all sessions";
            return Err(Problem::conflict("too-many-session-keys", detail));
        }
        let committed = commit(node, author, requirements, operations).await?;
        self.file.keep(&seed).map_err(|e| Problem::internal(&e))?;
        *current = Some(signer);
        Ok(committed)
    }
}

/// What becomes of a key's row when another takes its place.
fn retire(key: &Stored<SessionKey>, old: Option<Old>, now_ms: u64) -> Result<Option<Operation>, Problem> {
    let honoured_until_ms = match (key.row.honoured_until_ms, old) {
        (_, Some(Old::Refused)) => return SESSION_KEYS.delete(&key.id).map(Some),
        (Some(until), _) if until <= now_ms => return SESSION_KEYS.delete(&key.id).map(Some),
        (None, Some(Old::Honoured(life_ms))) => Some(now_ms.saturating_add(life_ms)),
        (Some(_), _) | (None, None) => return Ok(None),
    };
    SESSION_KEYS.put(&key.id, &SessionKey { honoured_until_ms, ..key.row.clone() }).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_key_runs_out() {
        let key = |honoured_until_ms| Stored {
            id: "0011223344556677".into(),
            revision: 3,
            row: SessionKey { public: String::new(), node: "a".into(), created_ms: 1, honoured_until_ms },
        };
        let what = |until, old| match retire(&key(until), old, 1000).expect("a key") {
            None => "stays".to_owned(),
            Some(Operation::Delete { .. }) => "goes".to_owned(),
            Some(Operation::Put { value, .. }) => {
                let row: SessionKey = serde_json::from_slice(&value).expect("a row");
                format!("until {}", row.honoured_until_ms.expect("an end"))
            }
            Some(Operation::Erase { .. }) => "is erased".to_owned(),
        };
        assert_eq!(what(None, None), "stays", "another node's key, when this node makes its first");
        assert_eq!(what(None, Some(Old::Honoured(50))), "until 1050");
        assert_eq!(what(Some(1020), Some(Old::Honoured(50))), "stays", "a second rotation prolongs nothing");
        assert_eq!(what(Some(1000), None), "goes", "run out");
        assert_eq!(what(None, Some(Old::Refused)), "goes");
        assert_eq!(what(Some(1020), Some(Old::Refused)), "goes");
    }
}
