//! The permit to go down: at most one node at a time may be taken out of service, and only while the others are well enough to
//! go on without it. It is a row (`~permits/down`), and so on the ledger, with who asked for it and why.
//!
//! A node that is down or ill already always gets it, unless another holds it: to wait would cure nobody. It ends by a
//! release; or by its deadline, but never while its holder is down.
//!
//! Without a quorum nobody can grant it. The local root of a node may take it for that node all the same, with a reason that
//! is kept there and put on the ledger later ([`Peers::take_permit`]).
//!
//! [`Peers::take_permit`]: crate::peers::Peers::take_permit

use hyper::Response;
use samovar_node::Error;
use samovar_node::command::Committed;

use super::*;
use crate::auth::{PERMIT, PERMITS, PermitRow, TAKEN, Way};
use crate::http::Payload;
use crate::peers::Service;

/// How long a permit is good unless it is said: half an hour.
const LIFE_S: u64 = 1800;
/// Between which lives one may choose, in seconds.
const LIFE_S_MIN: u64 = 60;
const LIFE_S_MAX: u64 = 86_400;
/// A voter that trails by more blocks is not well.
const TRAILS_MAX: u64 = 1000;
const REASON_BYTES_MAX: usize = 256;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewPermit {
    #[serde(default)]
    node: Option<String>,
    reason: String,
    #[serde(default)]
    expires_s: Option<u64>,
    /// Nothing can be written while the node is away, and that is wanted.
    #[serde(default)]
    accept_outage: bool,
    /// There is no quorum that could grant it, and the local root takes it.
    #[serde(default)]
    without_quorum: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Drain {
    reason: String,
    #[serde(default)]
    expires_s: Option<u64>,
    #[serde(default)]
    accept_outage: bool,
    #[serde(default)]
    without_quorum: bool,
}

#[derive(Serialize)]
struct ShownPermit<'a> {
    name: &'a str,
    node: u64,
    reason: &'a str,
    by: &'a str,
    granted_ms: u64,
    expires_ms: u64,
    accepted_outage: bool,
    without_quorum: bool,
    /// Its time is over and its holder is there: another may have it.
    over: bool,
}

#[derive(Serialize)]
struct Permits<'a> {
    permit: Option<ShownPermit<'a>>,
    /// Taken here without a quorum, and not on the ledger yet.
    taken: Vec<ShownPermit<'a>>,
    /// The newest on the ledger that was taken so.
    taken_last: Option<ShownPermit<'a>>,
}

/// `GET /v1/permits`.
pub(crate) async fn show(call: Call) -> Handled {
    let app = &call.app;
    let held = PERMITS.find(&app.node, PERMIT).await?;
    let taken = app.peers.taken_permits().map_err(|e| Problem::internal(&format!("{e:#}")))?;
    let last = PERMITS.find(&app.node, TAKEN).await?;
    let [permit, taken_last] = [&held, &last].map(|row| row.as_ref().map(|stored| shown(app, &stored.row)));
    let taken = taken.iter().map(|row| shown(app, row)).collect();
    render::json(StatusCode::OK, &Permits { permit, taken, taken_last })
}

fn shown<'a>(app: &App, row: &'a PermitRow) -> ShownPermit<'a> {
    let PermitRow { name, node, reason, by, granted_ms, expires_ms, accepted_outage, without_quorum } = row;
    ShownPermit {
        name,
        node: *node,
        reason,
        by,
        granted_ms: *granted_ms,
        expires_ms: *expires_ms,
        accepted_outage: *accepted_outage,
        without_quorum: *without_quorum,
        over: is_over(app, row),
    }
}

fn is_over(app: &App, row: &PermitRow) -> bool {
    row.expires_ms <= app.node.now_ms() && is_live(app, row.node)
}

fn is_live(app: &App, id: u64) -> bool {
    id == app.node.id() || app.peers.known(id).is_live()
}

/// `POST /v1/permits`.
pub(crate) async fn acquire(call: Call) -> Handled {
    let (call, NewPermit { node, reason, expires_s, accept_outage, without_quorum }) = access::body(call).await?;
    let wanted = Wanted { name: node.as_deref(), reason, expires_s, accept_outage, without_quorum };
    let (row, committed) = grant(&call, wanted).await?;
    let answer = render::json(StatusCode::CREATED, &shown(&call.app, &row))?;
    Ok(told(answer, committed.as_ref()))
}

/// `DELETE /v1/permits/{name}`.
pub(crate) async fn release(call: Call) -> Handled {
    let node = &call.app.node;
    node.barrier().await?;
    let held = PERMITS.get(node, PERMIT).await?;
    if held.row.name != call.captured() {
        return Err(Problem::conflict("permit-held", format!("the permit is {}'s", held.row.name)));
    }
    let unchanged = PERMITS.unchanged(PERMIT, Some(held.revision))?;
    let committed = commit(node, &call.principal.id, vec![unchanged], vec![PERMITS.delete(PERMIT)?]).await?;
    Ok(render::committed(render::empty(StatusCode::NO_CONTENT), &committed))
}

struct Wanted<'a> {
    /// `None`: the node that answers.
    name: Option<&'a str>,
    reason: String,
    expires_s: Option<u64>,
    accept_outage: bool,
    without_quorum: bool,
}

/// An answer to what was committed, or will be.
fn told(answer: Response<Payload>, committed: Option<&Committed>) -> Response<Payload> {
    match committed {
        Some(committed) => render::committed(answer, committed),
        None => answer,
    }
}

/// What the local root takes: the permit of its own node, while nobody can grant it.
async fn take(call: &Call, mut row: PermitRow) -> Result<PermitRow, Problem> {
    let app = &call.app;
    if call.principal.way != Way::Local {
        return Err(Problem::forbidden(
            "without a quorum a permit is taken by root of the machine, through the node's Unix socket: run the command there",
        ));
    }
    if row.node != app.node.id() {
        return Err(Problem::unprocessable(
            "without a quorum a node takes the permit for itself only: run the command there",
        ));
    }
    match app.node.barrier().await {
        Ok(()) => {
            let detail = "there is a quorum: ask for the permit without --without-quorum";
            return Err(Problem::conflict("quorum-is-there", detail));
        }
        Err(Error::Unavailable(_) | Error::NotLeader { .. } | Error::Unknown) => {}
        Err(error) => return Err(error.into()),
    }
    row.without_quorum = true;
    let (peers, kept) = (app.peers.clone(), row.clone());
    let kept = rt::blocking(move || peers.take_permit(&kept)).await.map_err(|e| Problem::internal(&e))?;
    kept.map_err(|e| Problem::internal(&format!("the permit could not be kept, and is not good: {e:#}")))?;
    tracing::warn!(reason = row.reason, by = row.by, "the permit to go down was taken without a quorum");
    Ok(row)
}

/// The permit, and the entry that it stands in unless that is to come.
async fn grant(call: &Call, wanted: Wanted<'_>) -> Result<(PermitRow, Option<Committed>), Problem> {
    let app = &call.app;
    let node = &app.node;
    let Wanted { name, reason, expires_s, accept_outage, without_quorum } = wanted;
    let life_s = expires_s.unwrap_or(LIFE_S);
    if !(LIFE_S_MIN..=LIFE_S_MAX).contains(&life_s) {
        let detail = format!("`expires_s` must lie between {LIFE_S_MIN} and {LIFE_S_MAX}");
        return Err(Problem::unprocessable(detail));
    }
    if reason.is_empty() || reason.len() > REASON_BYTES_MAX || reason.chars().any(char::is_control) {
        let detail = format!("`reason` must have 1 to {REASON_BYTES_MAX} bytes and no control characters");
        return Err(Problem::unprocessable(detail));
    }
    if !without_quorum {
        node.barrier().await?;
    }
    let own = node.status().name;
    let name = name.unwrap_or(&own);
    // A node alone has no row.
    let id = if name == own { node.id() } else { node_named(node, name).await?.node() };
    let now_ms = node.now_ms();
    let row = PermitRow {
        name: name.to_owned(),
        node: id,
        reason,
        by: call.principal.id.to_string(),
        granted_ms: now_ms,
        expires_ms: now_ms.saturating_add(life_s * 1000),
        accepted_outage: accept_outage,
        without_quorum,
    };
    if without_quorum {
        return take(call, row).await.map(|row| (row, None));
    }
    let held = PERMITS.find(node, PERMIT).await?;
    if let Some(held) = &held
        && held.row.node != id
        && !is_over(app, &held.row)
    {
        let PermitRow { name, reason, expires_ms, .. } = &held.row;
        let until = crate::output::time(*expires_ms);
        let detail = format!(
            "{name} has the permit until {until}, or until it is back ({reason}): wait for it, or see to it and run samovar \
             permit release {name}"
        );
        return Err(Problem::conflict("permit-held", detail));
    }
    may_go_down(app, id, name, accept_outage).await?;
    let unchanged = PERMITS.unchanged(PERMIT, held.map(|held| held.revision))?;
    let committed = commit(node, &row.by, vec![unchanged], vec![PERMITS.put(PERMIT, &row)?]).await?;
    Ok((row, Some(committed)))
}

/// What is wrong with a node that keeps others from going down, if anything.
fn ill(shown: &view::Shown) -> Option<String> {
    if !shown.live {
        return Some("is not heard of".to_owned());
    }
    if let Some(trails) = shown.trails.filter(|trails| *trails > TRAILS_MAX) {
        return Some(format!("is {trails} blocks behind"));
    }
    shown.errors.first().map(|error| format!("says: {error}"))
}

/// Refuses a permit that would stop the cluster, or while another voter is ill.
async fn may_go_down(app: &App, id: u64, name: &str, accept_outage: bool) -> Result<(), Problem> {
    let nodes = view::all(app).await?;
    let voters: Vec<_> = nodes.iter().filter(|shown| shown.voter).collect();
    let own = voters.iter().find(|shown| shown.node == id);
    // A learner is missed by no vote; one that is ill or down must be cured first; who is alone has nobody to ask.
    if voters.len() <= 1 || own.is_none_or(|shown| ill(shown).is_some()) {
        return Ok(());
    }
    let others = || voters.iter().filter(|shown| shown.node != id);
    if let Some((shown, why)) = others().find_map(|shown| Some((shown, ill(shown)?))) {
        let ill = &shown.name;
        let detail = format!("{ill} {why}: cure it first (samovar doctor on it); it gets the permit at once");
        return Err(Problem::conflict("peer-ill", detail));
    }
    if others().count() <= voters.len() / 2 && !accept_outage {
        let detail = format!(
            "without {name} there is no majority of the {} voters, and nothing can be written until it is back: say \
             --accept-outage if that is wanted, or take in another node first",
            voters.len()
        );
        return Err(Problem::conflict("quorum-at-risk", detail));
    }
    Ok(())
}

/// `POST /v1/cluster/nodes/{name}/drain`.
pub(crate) async fn drain(call: Call) -> Handled {
    let (call, Drain { reason, expires_s, accept_outage, without_quorum }) = access::body(call).await?;
    let name = call.captured().to_owned();
    let wanted = Wanted { name: Some(&name), reason, expires_s, accept_outage, without_quorum };
    let (row, committed) = grant(&call, wanted).await?;
    let app = &call.app;
    let state = match serve(app, row.node, Service::Drain).await {
        Ok(()) => "drained",
        // There is no lead to hand over; it is draining all the same.
        Err(_) if row.without_quorum => "drained",
        // One that is down has nothing to hand over.
        Err(_) if !is_live(app, row.node) => "down",
        Err(problem) => return Err(problem),
    };
    let changed = Changed { name: &name, node: row.node, state };
    Ok(told(render::json(StatusCode::OK, &changed)?, committed.as_ref()))
}

/// `POST /v1/cluster/nodes/{name}/resume`.
pub(crate) async fn resume(call: Call) -> Handled {
    let (app, name) = (&call.app, call.captured());
    let node = &app.node;
    node.barrier().await?;
    let id = if name == node.status().name { node.id() } else { node_named(node, name).await?.node() };
    serve(app, id, Service::Resume).await?;
    let answer = render::json(StatusCode::OK, &Changed { name, node: id, state: "in service" })?;
    let Some(held) = PERMITS.find(node, PERMIT).await?.filter(|held| held.row.node == id) else { return Ok(answer) };
    let unchanged = PERMITS.unchanged(PERMIT, Some(held.revision))?;
    let committed = commit(node, &call.principal.id, vec![unchanged], vec![PERMITS.delete(PERMIT)?]).await?;
    Ok(render::committed(answer, &committed))
}

/// Takes a node out of service, or puts it back: this one, or a peer.
async fn serve(app: &App, id: u64, service: Service) -> Result<(), Problem> {
    if id == app.node.id() {
        return service.apply(&app.node).await.map_err(Problem::from);
    }
    app.peers.order(&app.node, id, service).await.map_err(Problem::unavailable)
}
