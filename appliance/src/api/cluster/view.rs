//! How the cluster is, as the node that is asked knows it: nothing here needs a leader, and every figure of another node comes
//! with its age.

use super::*;
use crate::metrics::PeerFigures;
use crate::peers::{Known, disk_bytes};

#[derive(Serialize)]
struct Cluster<'a> {
    origin: String,
    /// Who answers, and when by its clock.
    answered_by: &'a str,
    now_ms: u64,
    leader: Option<String>,
    term: u64,
    voters: usize,
    live_voters: usize,
    /// How many more voters may fail before nothing can be written.
    can_lose: usize,
    has_quorum: bool,
    attention: Vec<String>,
    nodes: Vec<Shown>,
}

#[derive(Serialize)]
struct Nodes {
    nodes: Vec<Shown>,
}

/// A node. What is not known is null.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Shown {
    pub(super) node: u64,
    pub(super) name: String,
    address: String,
    role: Option<String>,
    pub(super) voter: bool,
    /// `member`, `joining` or `removing`.
    state: &'static str,
    pub(super) live: bool,
    height: Option<u64>,
    /// Blocks behind the highest that this node knows of.
    pub(super) trails: Option<u64>,
    /// How long ago it was last heard of; 0 for the one that answers.
    contact_ms: Option<u64>,
    /// How old the figures are.
    age_ms: Option<u64>,
    version: Option<String>,
    slot: Option<String>,
    /// The newest format of commands that its version reads, and what its spare slot holds, if it has one.
    pub(super) format: Option<u8>,
    pub(super) spare_format: Option<u8>,
    free_bytes: Option<u64>,
    disk_bytes: Option<u64>,
    pub(super) errors: Vec<String>,
}

/// `GET /v1/cluster`.
pub(crate) async fn cluster(call: Call) -> Handled {
    let (app, status) = (&call.app, call.app.node.status());
    let nodes = all(app).await?;
    let voters = nodes.iter().filter(|shown| shown.voter).count();
    let live_voters = nodes.iter().filter(|shown| shown.voter && shown.live).count();
    let majority = voters / 2 + 1;
    let leader = super::super::node::leader(app, &status);
    let leader = leader.and_then(|id| nodes.iter().find(|shown| shown.node == id)).map(|s| s.name.clone());
    let mut attention = attention(&nodes);
    let info = app.node.log_info();
    // Until the change of the policy is handed over, it takes the cosigners of before, who may be fewer.
    let named = info.cosigners.len();
    let can_lose = if named < voters { 0 } else { live_voters.saturating_sub(majority) };
    if named < voters && voters > 1 {
        attention
            .push(format!("the policy of the log names {named} of {voters} voters yet: take none down before it does"));
    }
    if voters > 1 && !app.peers.is_refused() {
        attention.insert(0, format!("{live_voters} of {voters} voters, can lose {can_lose} more"));
    }
    let cluster = Cluster {
        origin: info.origin,
        answered_by: &status.name,
        now_ms: rt::now_ms(),
        leader,
        term: status.term,
        voters,
        live_voters,
        can_lose,
        has_quorum: voters > 0 && live_voters >= majority,
        attention,
        nodes,
    };
    render::json(StatusCode::OK, &cluster)
}

/// `GET /v1/cluster/nodes`.
pub(crate) async fn nodes(call: Call) -> Handled {
    render::json(StatusCode::OK, &Nodes { nodes: all(&call.app).await? })
}

/// `GET /v1/cluster/nodes/{name}`.
pub(crate) async fn node(call: Call) -> Handled {
    let found = all(&call.app).await?.into_iter().find(|shown| shown.name == call.captured());
    render::json(StatusCode::OK, &found.ok_or_else(|| NODES.missing())?)
}

/// What metrics say of the other nodes.
pub(crate) async fn figures(app: &App) -> Result<Vec<PeerFigures>, Problem> {
    let others = all(app).await?.into_iter().filter(|shown| shown.node != app.node.id());
    Ok(others
        .map(|shown| PeerFigures {
            live: shown.live,
            contact: shown.contact_ms.map(Duration::from_millis),
            trails: shown.trails,
            calls: app.peers.known(shown.node).calls,
            name: shown.name,
        })
        .collect())
}

/// What somebody should look at, a line each.
fn attention(nodes: &[Shown]) -> Vec<String> {
    let mut lines = Vec::new();
    for shown in nodes {
        let name = &shown.name;
        match shown.state {
            "joining" => lines.push(format!("{name} was admitted and has not come yet: start it with samovar serve")),
            "removing" => {
                lines.push(format!("{name} is being removed"));
                lines.extend(shown.errors.iter().map(|error| format!("{name}: {error}")));
            }
            _ if !shown.live => lines.push(format!("{name} is not heard of: run samovar doctor on it")),
            _ => lines.extend(shown.errors.iter().map(|error| format!("{name}: {error}"))),
        }
    }
    lines
}

/// Every node, by id. Local: no other node is asked.
pub(super) async fn all(app: &App) -> Result<Vec<Shown>, Problem> {
    let (members, status) = (app.node.members(), app.node.status());
    let mut rows = NODES.all(&app.node).await?;
    rows.retain(|s| s.row.is_current() || members.iter().any(|m| m.node == s.node()));
    let mut nodes: Vec<Shown> = Vec::new();
    for stored in &rows {
        let member = members.iter().find(|m| m.node == stored.node());
        let state = match (stored.row.is_current(), member) {
            (false, _) => "removing",
            (true, None) => "joining",
            (true, Some(_)) => "member",
        };
        let (name, address) = (stored.row.name.clone(), stored.row.address.clone());
        nodes.push(of_known(stored.node(), name, address, &app.peers.known(stored.node())));
        if let Some(shown) = nodes.last_mut() {
            shown.state = state;
            shown.voter = member.is_some_and(|m| m.voter);
        }
    }
    // A node alone has no row, nor has one that has not heard of the others yet.
    for member in members.iter().filter(|m| !rows.iter().any(|s| s.node() == m.node)) {
        let name = if member.node == app.node.id() { status.name.clone() } else { format!("node-{}", member.node) };
        let known = app.peers.known(member.node);
        nodes.push(Shown { voter: member.voter, ..of_known(member.node, name, member.address.clone(), &known) });
    }
    if let Some(own) = nodes.iter_mut().find(|shown| shown.node == app.node.id()) {
        own.role = Some(status.role.to_owned());
        own.live = true;
        own.height = Some(status.head.height);
        (own.contact_ms, own.age_ms) = (Some(0), Some(0));
        own.version = Some(env!("CARGO_PKG_VERSION").to_owned());
        (own.format, own.spare_format) = (Some(samovar_node::format::NEWEST), app.peers.spare_format());
        own.free_bytes = Some(status.free_bytes);
        own.disk_bytes = disk_bytes(&app.data);
        own.errors = super::super::node::errors(app, &status);
    }
    nodes.sort_unstable_by_key(|shown| shown.node);
    let highest = nodes.iter().filter_map(|shown| shown.height).max();
    for shown in &mut nodes {
        shown.trails = highest.zip(shown.height).map(|(highest, height)| highest - height);
    }
    Ok(nodes)
}

#[cfg(test)]
impl Shown {
    /// A node that nothing is known of.
    pub(super) fn example(name: &str) -> Self {
        of_known(2, name.to_owned(), String::new(), &Known::default())
    }
}

fn of_known(node: u64, name: String, address: String, known: &Known) -> Shown {
    let age = |at: tokio::time::Instant| u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX);
    let report = known.report.as_ref().map(|(report, _)| report);
    let live = known.is_live();
    let mut errors = report.map(|report| report.errors.clone()).unwrap_or_default();
    if !live && let Some(trouble) = &known.trouble {
        errors.insert(0, trouble.clone());
    }
    Shown {
        node,
        name,
        address,
        role: report.map(|report| report.role.clone()),
        voter: false,
        state: "member",
        live,
        height: report.map(|report| report.height),
        trails: None,
        contact_ms: known.contact.map(age),
        age_ms: known.report.as_ref().map(|(_, at)| age(*at)),
        version: report.map(|report| report.version.clone()),
        slot: None,
        format: report.map(|report| report.format),
        spare_format: report.and_then(|report| report.spare_format),
        free_bytes: report.map(|report| report.free_bytes),
        disk_bytes: report.and_then(|report| report.disk_bytes),
        errors,
    }
}
