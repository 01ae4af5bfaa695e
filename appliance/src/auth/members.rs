//! The rows about the nodes of the cluster, and about the tokens with which others join.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use samovar_node::format::InForce;
use samovar_node::node::Rows;
use samovar_node::{Error, Key, Node, Operation, rt};
use serde::{Deserialize, Serialize};

use super::rows::{SECRET_BYTES, SECRET_CHARS, fresh_id, hex, is_short_id, same, sha256};
use super::table::{Stored, Table};
use crate::api::problem::Problem;

/// What a join token begins with.
pub(crate) const JOIN_PREFIX: &str = "samovar_join_";
/// Most digits of a node's id.
const NODE_DIGITS_MAX: usize = 10;

/// Every node that was ever admitted, by its id. A row is never deleted, so no id comes back.
pub(crate) static NODES: Table<NodeRow> =
    Table::new("~nodes/", ("no-such-node", "no node of the cluster has this name"), is_node_id, 10_000);
/// Join tokens by id.
pub(crate) static JOIN_TOKENS: Table<JoinToken> =
    Table::new("~join-tokens/", ("no-such-join-token", "no join token has this id"), is_short_id, 64);

/// The permit to go down, under one id: there is at most one. Under another, what was taken last without a quorum.
pub(crate) static PERMITS: Table<PermitRow> =
    Table::new("~permits/", ("no-permit", "no node has the permit to go down"), |id| id == PERMIT || id == TAKEN, 2);
/// Id of the permit.
pub(crate) const PERMIT: &str = "down";
/// Id of what the local root of a node took when there was no quorum, put on the ledger later. It lets nobody do anything.
pub(crate) const TAKEN: &str = "taken";

/// What versions must read, by what it is about: there is [`COMMANDS`] alone.
pub(crate) static FORMATS: Table<InForce> =
    Table::new("~format/", ("no-format", "nothing was finalized"), |id| id == COMMANDS, 1);
/// Id of the row about commands ([`samovar_node::format::KEY`]).
pub(crate) const COMMANDS: &str = "commands";

/// A node, as it is to be: whoever leads makes the members of the cluster so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeRow {
    /// Its name.
    pub(crate) name: String,
    /// Where its peers reach it, `HOST:PORT`.
    pub(crate) address: String,
    /// Whether it is to vote, once it lags little.
    pub(crate) voter: bool,
    /// When it was admitted, milliseconds since 1970.
    pub(crate) admitted_ms: u64,
    /// When it was removed, for good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) removed_ms: Option<u64>,
}

/// A join token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JoinToken {
    /// SHA-256 of the secret's text, hex.
    pub(crate) hash: String,
    /// When it was made, milliseconds since 1970.
    pub(crate) created_ms: u64,
    /// When it ends.
    pub(crate) expires_ms: u64,
    /// Whether the node is to vote.
    pub(crate) voter: bool,
    /// Name of the node whose place is taken, and which is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) replaces: Option<String>,
    /// Id of the node that used it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) used_by: Option<u64>,
}

/// Who may go down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PermitRow {
    /// Name of the node.
    pub(crate) name: String,
    /// Its id.
    pub(crate) node: u64,
    /// What for.
    pub(crate) reason: String,
    /// Who asked.
    pub(crate) by: String,
    /// When it was granted, milliseconds since 1970.
    pub(crate) granted_ms: u64,
    /// When it ends, unless the node is down then.
    pub(crate) expires_ms: u64,
    /// Whether nothing can be written while the node is down.
    pub(crate) accepted_outage: bool,
    /// Whether the local root took it when nobody could grant it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) without_quorum: bool,
}

impl NodeRow {
    /// Whether it belongs to the cluster, or is to.
    pub(crate) fn is_current(&self) -> bool {
        self.removed_ms.is_none()
    }
}

impl Stored<NodeRow> {
    /// The node's id.
    pub(crate) fn node(&self) -> u64 {
        self.id.parse().unwrap_or(0)
    }
}

/// The node that has a name now.
///
/// # Errors
/// 404.
pub(crate) async fn node_named(node: &Node, name: &str) -> Result<Stored<NodeRow>, Problem> {
    let rows = NODES.all(node).await?;
    rows.into_iter().find(|stored| stored.row.is_current() && stored.row.name == name).ok_or_else(|| NODES.missing())
}

/// What a recovery from the node `own` makes of the rows about nodes: all others are removed, and none of them has the permit.
///
/// # Errors
/// [`Error::Corrupt`] when a row is no such row.
pub(crate) fn without_others(rows: &Rows<'_>, own: u64, now_ms: u64) -> Result<Vec<Operation>, Error> {
    let damaged = |key: &Key| Error::Corrupt(format!("the row {} is damaged", key.as_str()));
    let mut operations = Vec::new();
    for (key, value) in rows(NODES.prefix())? {
        let row: NodeRow = serde_json::from_slice(&value).map_err(|_| damaged(&key))?;
        let id = key.as_str().strip_prefix(NODES.prefix()).unwrap_or_default();
        if row.is_current() && id != own.to_string() {
            let gone = NodeRow { removed_ms: Some(now_ms), ..row };
            operations.push(NODES.put(id, &gone).map_err(|_| damaged(&key))?);
        }
    }
    for (key, value) in rows(PERMITS.prefix())? {
        let row: PermitRow = serde_json::from_slice(&value).map_err(|_| damaged(&key))?;
        if row.node != own && key.as_str().strip_prefix(PERMITS.prefix()) == Some(PERMIT) {
            operations.push(Operation::Delete { key });
        }
    }
    Ok(operations)
}

/// A join token as its text says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct JoinTokenText {
    /// Its id.
    pub(crate) id: String,
    /// Its secret.
    secret: String,
    /// SHA-256 of the public key of the ledger's CA.
    pub(crate) pin: [u8; 32],
}

impl JoinTokenText {
    /// A fresh one, for the CA with this hash.
    pub(crate) fn draw(pin: [u8; 32]) -> Self {
        let mut secret = [0; SECRET_BYTES];
        rt::fill_random(&mut secret);
        Self { id: fresh_id(), secret: URL_SAFE_NO_PAD.encode(secret), pin }
    }

    /// Takes a text apart: `samovar_join_ID_SECRET.PIN`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (id, rest) = text.strip_prefix(JOIN_PREFIX)?.split_once('_')?;
        let (secret, pin) = rest.split_once('.')?;
        let pin = URL_SAFE_NO_PAD.decode(pin).ok()?.try_into().ok()?;
        let fit = is_short_id(id) && secret.len() == SECRET_CHARS;
        fit.then(|| Self { id: id.to_owned(), secret: secret.to_owned(), pin })
    }

    /// Its text.
    pub(crate) fn text(&self) -> String {
        format!("{JOIN_PREFIX}{}_{}.{}", self.id, self.secret, URL_SAFE_NO_PAD.encode(self.pin))
    }

    /// What is kept of the secret.
    pub(crate) fn hash(&self) -> String {
        hex(sha256(self.secret.as_bytes()).as_ref())
    }

    /// Whether a row is that of this token.
    pub(crate) fn is(&self, row: &JoinToken) -> bool {
        super::unhex(&row.hash).is_some_and(|hash| same(&hash, sha256(self.secret.as_bytes()).as_ref()))
    }
}

fn is_node_id(text: &str) -> bool {
    (1..=NODE_DIGITS_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_says_what_it_holds_and_its_row_does_not() {
        let token = JoinTokenText::draw([7; 32]);
        let text = token.text();
        assert_eq!(JoinTokenText::parse(&text).as_ref(), Some(&token), "{text}");
        for wrong in ["", "samovar_join_", &text[1..], &text[..text.len() - 1], &text.replace('.', "_")] {
            assert_eq!(JoinTokenText::parse(wrong), None, "{wrong} is no join token");
        }
        let row =
            JoinToken { hash: token.hash(), created_ms: 1, expires_ms: 2, voter: true, replaces: None, used_by: None };
        assert!(token.is(&row) && !JoinTokenText::draw([7; 32]).is(&row), "the secret decides");
        let stored = serde_json::to_string(&row).expect("JSON");
        assert!(!stored.contains(&token.secret), "{stored} holds the secret");
        assert_eq!(
            stored,
            format!(r#"{{"hash":"{}","created_ms":1,"expires_ms":2,"voter":true}}"#, token.hash()),
            "rows are replicated and hashed: their form is a format"
        );
        let node = NodeRow {
            name: "box-02".into(),
            address: "box-02:8444".into(),
            voter: false,
            admitted_ms: 5,
            removed_ms: Some(6),
        };
        assert_eq!(
            serde_json::to_string(&node).expect("JSON"),
            r#"{"name":"box-02","address":"box-02:8444","voter":false,"admitted_ms":5,"removed_ms":6}"#
        );
    }

    #[test]
    fn ids_of_nodes() {
        for (text, good) in [("1", true), ("12", true), ("", false), ("0", false), ("01", false), ("a", false)] {
            assert_eq!(is_node_id(text), good, "{text:?}");
        }
    }
}
