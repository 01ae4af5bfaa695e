//! `POST /v1/cluster/join`: who has a join token becomes a node. The token is used up and the node admitted in one
//! transaction, so that of two that show one token at the same time one is refused.

use std::collections::BTreeSet;

use samovar_node::Requirement;
use samovar_node::command::Committed;
use samovar_node::node::Admission;

use super::*;

/// Most names and addresses that a node may ask for.
const NAMES_MAX: usize = 64;
/// How often an id that another took at the same moment is drawn anew.
const TRIES: usize = 8;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Joining {
    /// The join token.
    token: String,
    /// Name of the node.
    name: String,
    /// Where its peers will reach it.
    address: String,
    /// Certificate request, PEM.
    request: String,
    /// Names and addresses for its certificate.
    names: Vec<String>,
    /// The newest format of commands that its version reads.
    #[serde(default)]
    format: Option<u8>,
}

#[derive(Serialize)]
struct Joined<'a> {
    node: u64,
    name: &'a str,
    voter: bool,
    vkey: String,
    ca: String,
    certificate: String,
    admission: Admission,
}

/// The handler.
pub(crate) async fn join(call: Call) -> Handled {
    let (call, joining) = access::body::<Joining>(call).await?;
    let app = call.app.clone();
    let token = JoinTokenText::parse(&joining.token).ok_or_else(unknown)?;
    app.node.barrier().await?;
    check(&joining)?;
    for _ in 0..TRIES {
        let taken = NODES.all(&app.node).await?;
        let stored = valid(&app.node, &token).await?;
        name_is_free(&taken, &joining.name, stored.row.replaces.as_deref())?;
        let readable = finalize::check_joining(&app.node, joining.format).await?;
        let id = next_id(&taken, &app.node);
        // Whatever can fail comes before the token is used up.
        reachable(&app).await?;
        let (certificate, ca) = certify(&app, &joining, id).await?;
        let admission = app.node.admission(id)?;
        match admit(&app, (&stored, &taken, readable), &joining, id).await {
            Ok(committed) => {
                tracing::info!(node = id, name = joining.name, "a node was admitted");
                let (voter, vkey) = (stored.row.voter, app.node.log_info().vkey);
                let joined = Joined { node: id, name: &joining.name, voter, vkey, ca, certificate, admission };
                return Ok(render::committed(render::json(StatusCode::CREATED, &joined)?, &committed));
            }
            // Another was faster, with this id, this token or this name: the next look says which.
            Err(problem) if problem.is("precondition-failed") => app.node.barrier().await?,
            Err(problem) => return Err(problem),
        }
    }
    Err(Problem::unavailable("too many nodes join at once"))
}

/// Uses the token up and admits the node, or does neither.
async fn admit(
    app: &App,
    (stored, taken, readable): (&Stored<JoinToken>, &[Stored<NodeRow>], Requirement),
    joining: &Joining,
    id: u64,
) -> Result<Committed, Problem> {
    let now_ms = app.node.now_ms();
    let id = id.to_string();
    let row = NodeRow {
        name: joining.name.clone(),
        address: joining.address.clone(),
        voter: stored.row.voter,
        admitted_ms: now_ms,
        removed_ms: None,
    };
    let used = JoinToken { used_by: id.parse().ok(), ..stored.row.clone() };
    let mut requirements =
        vec![JOIN_TOKENS.unchanged(&stored.id, Some(stored.revision))?, NODES.unchanged(&id, None)?, readable];
    let mut operations = vec![JOIN_TOKENS.put(&stored.id, &used)?, NODES.put(&id, &row)?];
    let replaced = |s: &&Stored<NodeRow>| s.row.is_current() && stored.row.replaces.as_ref() == Some(&s.row.name);
    if let Some(old) = taken.iter().find(replaced) {
        requirements.push(NODES.unchanged(&old.id, Some(old.revision))?);
        operations.push(NODES.put(&old.id, &NodeRow { removed_ms: Some(now_ms), ..old.row.clone() })?);
    }
    commit(&app.node, &format!("join-token/{}", stored.id), requirements, operations).await
}

/// The row of a token that may be used now.
async fn valid(node: &Node, token: &JoinTokenText) -> Result<Stored<JoinToken>, Problem> {
    let found = JOIN_TOKENS.find(node, &token.id).await?;
    let stored = found.filter(|stored| token.is(&stored.row)).ok_or_else(unknown)?;
    if stored.row.used_by.is_some() {
        let detail = "the join token was used: each is good for one node; make another: samovar node token";
        return Err(Problem::refused("join-token-used", detail));
    }
    if stored.row.expires_ms <= node.now_ms() {
        let detail = "the join token has ended; make another: samovar node token";
        return Err(Problem::refused("join-token-expired", detail));
    }
    Ok(stored)
}

fn unknown() -> Problem {
    Problem::refused("join-token-unknown", "this ledger has no such join token: it may be another's, or was revoked")
}

fn check(joining: &Joining) -> Result<(), Problem> {
    let Joining { name, address, request, names, .. } = joining;
    if !is_node_name(name) {
        return Err(Problem::unprocessable("`name` must have 1 to 63 of a-z, 0-9 and -, and no - at its ends"));
    }
    if address.len() > NAME_BYTES_MAX || !is_host_and_port(address) {
        return Err(Problem::unprocessable("`address` must be HOST:PORT, where peers reach the node"));
    }
    let is_name = |name: &String| is_dns_name(name) || name.parse::<std::net::IpAddr>().is_ok();
    if names.is_empty() || names.len() > NAMES_MAX || !names.iter().all(is_name) {
        let detail = format!("`names` must hold 1 to {NAMES_MAX} host names and addresses of the node");
        return Err(Problem::unprocessable(detail));
    }
    if request.len() > REQUEST_BYTES_MAX {
        return Err(Problem::unprocessable(format!("`request` may have at most {REQUEST_BYTES_MAX} bytes")));
    }
    Ok(())
}

fn name_is_free(taken: &[Stored<NodeRow>], name: &str, replaces: Option<&str>) -> Result<(), Problem> {
    let mut current = taken.iter().filter(|stored| stored.row.is_current() && replaces != Some(&stored.row.name));
    if current.any(|stored| stored.row.name == name) {
        let detail = format!("a node of the cluster is called {name}: choose another name, or remove that one first");
        return Err(Problem::conflict("node-name-taken", detail));
    }
    Ok(())
}

/// Above every id that ever was.
pub(super) fn next_id(taken: &[Stored<NodeRow>], node: &Node) -> u64 {
    let ids: BTreeSet<u64> = taken.iter().map(Stored::node).chain(node.members().iter().map(|m| m.node)).collect();
    ids.last().copied().unwrap_or(node.id()) + 1
}

/// The node's certificate and the CAs, in PEM.
async fn certify(app: &std::sync::Arc<App>, joining: &Joining, id: u64) -> Result<(String, String), Problem> {
    let (app, request) = (app.clone(), joining.request.clone());
    let subject = Subject::of_texts(&joining.names).of_node(id);
    let certified = rt::blocking(move || app.certificates.certify_request(&request, &subject)).await;
    certified.map_err(|e| Problem::internal(&e))?.map_err(|error| {
        let detail = format!("no certificate can be made here: {error:#}; ask a node that votes");
        Problem::conflict("no-authority", detail)
    })
}
