//! How the node is: status, health, readiness, metrics, and the description of the API.

use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use hyper::header::HeaderValue;
use samovar_node::view::{ClockStatus, Status as NodeStatus};
use samovar_node::{QUARANTINE, rt};
use serde::Serialize;

use super::log_level::LogLevel;
use super::problem::Problem;
use super::{App, Call, Handled, render};
use crate::tls::{SiteStanding, Standing};
use crate::{metrics, openapi, output};

/// How often peers get news of what is wrong.
const TELL_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Serialize)]
struct Status<'a> {
    node: u64,
    name: &'a str,
    version: &'static str,
    role: &'a str,
    leader: Option<u64>,
    term: u64,
    height: u64,
    size: u64,
    block_time_ms: u64,
    checkpoint_size: u64,
    keys: u64,
    free_bytes: u64,
    reserve_bytes: u64,
    store_bytes: u64,
    archive_bytes: u64,
    uptime_s: u64,
    /// When these figures were taken, so that who shows them can say how old they are.
    now_ms: u64,
    clock: Clock,
    tls: Tls,
    log_level: LogLevel,
    errors: Vec<String>,
}

#[derive(Serialize)]
struct Clock {
    wall_ms: u64,
    sure_ms: u64,
    synchronised: bool,
    doubted: bool,
    held: bool,
}

#[derive(Serialize)]
struct Tls {
    node_not_after_s: Option<u64>,
    ca_not_after_s: Option<u64>,
    rolling_over: bool,
    site: SiteTls,
}

/// The certificate for the site's own names.
#[derive(Serialize)]
struct SiteTls {
    source: &'static str,
    names: Vec<String>,
    not_after_s: Option<u64>,
    served: bool,
    error: Option<String>,
    next_try_ms: Option<u64>,
}

/// `GET /v1/status`.
pub(crate) async fn status(call: Call) -> Handled {
    let status = call.app.node.status();
    let errors = errors(&call.app, &status);
    let head = status.head;
    let Standing { node_not_after_s, ca_not_after_s, rolling_over } = call.app.certificates.standing();
    let SiteStanding { source, names, not_after_s, served, trouble, next_try_ms } =
        call.app.certificates.site.standing();
    let site = SiteTls { source, names, not_after_s, served, error: trouble, next_try_ms };
    let ClockStatus { wall_ms, sure_ms, synchronised, doubted, held } = status.clock;
    render::json(
        StatusCode::OK,
        &Status {
            node: status.node,
            name: &status.name,
            version: env!("CARGO_PKG_VERSION"),
            role: status.role,
            leader: leader(&call.app, &status),
            term: status.term,
            height: head.height,
            size: head.size,
            block_time_ms: head.time_ms,
            checkpoint_size: status.checkpoint_size,
            keys: status.keys,
            free_bytes: status.free_bytes,
            reserve_bytes: status.reserve_bytes,
            store_bytes: status.store_bytes,
            archive_bytes: status.archive.bytes,
            uptime_s: call.app.started.elapsed().as_secs(),
            now_ms: wall_ms,
            clock: Clock { wall_ms, sure_ms, synchronised, doubted, held },
            tls: Tls { node_not_after_s, ca_not_after_s, rolling_over, site },
            log_level: LogLevel::now(),
            errors,
        },
    )
}

/// The leader that this node knows, if that one is heard of: Raft itself remembers a dead one until there is another.
pub(super) fn leader(app: &App, status: &NodeStatus) -> Option<u64> {
    let heard = |id: &u64| *id == status.node || app.peers.known(*id).is_live();
    status.leader.filter(heard).filter(|_| !app.peers.is_refused())
}

/// What is wrong with this node, a sentence each.
pub(super) fn errors(app: &App, status: &NodeStatus) -> Vec<String> {
    let mut errors = Vec::new();
    if let Err(error) = app.node.room() {
        errors.push(error.to_string());
    }
    if app.peers.is_refused() {
        errors.push(
            "its peers say that this node was removed from the cluster: it comes back as a new one only, with an empty data \
             directory and a join token"
                .to_owned(),
        );
    } else if leader(app, status).is_none() {
        errors.push("no leader is known: nothing can be written".to_owned());
    }
    if let Some(why) = &status.refused_by_peers {
        errors.push(format!(
            "it is refused and votes no more: {why}. Take it out (samovar node remove) and let its machine join again"
        ));
    }
    for (member, why) in &status.refused_members {
        errors.push(format!("node {member} is refused: {why}"));
    }
    if let Some(off_ms) = status.clock_off_ms {
        let off = output::span(off_ms.unsigned_abs());
        errors.push(format!("its clock is {off} from that of its peers, too far to lead: set it right"));
    }
    for name in &status.stores_set_aside {
        errors.push(if name == QUARANTINE {
            format!(
                "its data was damaged or wrong, and it was built anew from its peers: {name}/why.json says why; look after the \
                 disk, then remove it"
            )
        } else {
            format!("a damaged store was set aside as {name} and rebuilt: look after the disk, then remove it")
        });
    }
    if status.blobs.missing > 0 {
        errors.push(format!(
            "{} blobs that keys name are damaged or missing: the journal names them; upload them again",
            status.blobs.missing
        ));
    }
    let SiteStanding { trouble, next_try_ms, .. } = app.certificates.site.standing();
    if let Some(trouble) = trouble {
        let next = next_try_ms.map_or(String::new(), |ms| format!("; it is tried again at {}", output::time(ms)));
        errors.push(format!("the certificate for the site's names: {trouble}{next}"));
    }
    if status.clock.doubted {
        let (wall, sure) = (output::time(status.clock.wall_ms), output::time(status.clock.sure_ms));
        errors.push(format!(
            "the clock says {wall}, which nothing confirms and which is more than a day ahead: blocks keep the time {sure}. \
             Set the clock right, or if it is right: samovar clock accept"
        ));
    }
    errors
}

/// Keeps peers informed about what is wrong with this node, until the task is dropped.
pub(crate) async fn tell_peers(app: Arc<App>) {
    loop {
        if app.peers.is_open() {
            app.peers.set_errors(errors(&app, &app.node.status()));
        }
        rt::sleep(TELL_INTERVAL).await;
    }
}

#[derive(Serialize)]
struct Health {
    status: &'static str,
}

/// `GET /health`.
pub(crate) async fn health(_: Call) -> Handled {
    render::json(StatusCode::OK, &Health { status: "alive" })
}

/// `GET /ready`.
pub(crate) async fn ready(call: Call) -> Handled {
    if *call.app.stop.borrow() {
        return Err(Problem::unavailable("the node is stopping"));
    }
    if call.app.node.is_draining() {
        return Err(Problem::unavailable("the node is drained: samovar node resume puts it back into service"));
    }
    call.app.node.barrier().await?;
    if call.query.text("for").is_some() {
        call.app.node.room().map_err(|e| Problem::unavailable(e.to_string()))?;
    }
    render::json(StatusCode::OK, &Health { status: "ready" })
}

/// `GET /metrics`.
pub(crate) async fn metrics(call: Call) -> Handled {
    let peers = super::cluster::figures(&call.app).await?;
    let text = call.app.metrics.exposition(&call.app.node.status(), peers).map_err(|e| Problem::internal(&e))?;
    let media_type = HeaderValue::from_static(metrics::CONTENT_TYPE);
    Ok(render::compressible(render::content(StatusCode::OK, media_type, text)))
}

/// `GET /openapi.json`.
pub(crate) async fn openapi(_: Call) -> Handled {
    let json = HeaderValue::from_static("application/json");
    Ok(render::compressible(render::content(StatusCode::OK, json, openapi::document().as_bytes())))
}
