//! `/v1/tls`: the node's certificate and the ledger's CA, replaced. Each is an act of a principal, and so an entry.

use std::sync::Arc;

use hyper::StatusCode;
use samovar_node::command::Committed;
use samovar_node::rt;
use serde::Serialize;

use super::problem::Problem;
use super::{App, Call, Handled, render};
use crate::auth::{TLS, TlsCertificate, commit, hex};
use crate::tls::Shown;

#[derive(Serialize)]
struct Rotated {
    /// SHA-256 of the certificate in DER, hex.
    certificate: String,
    not_after_s: u64,
    rolling_over: bool,
    /// Whether a certificate for the site's names was ordered too.
    site_ordered: bool,
}

/// `POST /v1/tls/node`.
pub(crate) async fn rotate_node(call: Call) -> Handled {
    to_its_end(call, |app, author| async move {
        let certificates = app.certificates.clone();
        let made = aside(move || certificates.make_node()).await?.map_err(no_authority)?;
        let rolling_over = app.certificates.standing().rolling_over;
        let committed = record(&app, &author, "node", made.shown(), rolling_over).await?;
        let (certificates, shown) = (app.certificates.clone(), made.shown());
        aside(move || certificates.take_node(&made)).await?.map_err(half_done)?;
        // Its own entry follows when it has come: an authority may take minutes.
        let site_ordered = app.certificates.site.order();
        Ok(Done { shown, rolling_over, committed, site_ordered })
    })
    .await
}

/// `POST /v1/tls/ca`.
pub(crate) async fn rotate_ca(call: Call) -> Handled {
    match call.query.text("roll_over") {
        Some("finish") => finish(call).await,
        _ => begin(call).await,
    }
}

async fn begin(call: Call) -> Handled {
    to_its_end(call, |app, author| async move {
        if app.certificates.standing().rolling_over {
            let detail = "a roll-over is under way; end it first: samovar rotate ca --finish";
            return Err(Problem::conflict("roll-over-under-way", detail));
        }
        if app.node.members().len() > 1 {
            let detail =
                "the CA cannot be replaced while the ledger has several nodes: the others would not get the new one";
            return Err(Problem::conflict("has-peers", detail));
        }
        let certificates = app.certificates.clone();
        let made = aside(move || certificates.make_authority()).await?.map_err(no_authority)?;
        let committed = record(&app, &author, "ca", made.shown(), true).await?;
        let (certificates, shown) = (app.certificates.clone(), made.shown());
        aside(move || certificates.take_authority(&made)).await?.map_err(half_done)?;
        Ok(Done { shown, rolling_over: true, committed, site_ordered: false })
    })
    .await
}

async fn finish(call: Call) -> Handled {
    to_its_end(call, |app, author| async move {
        if !app.certificates.standing().rolling_over {
            return Err(Problem::conflict("no-roll-over", "no roll-over to a new CA is under way"));
        }
        let shown = app.certificates.authority().map_err(|e| Problem::internal(&format!("{e:#}")))?;
        let committed = record(&app, &author, "ca", shown, false).await?;
        let certificates = app.certificates.clone();
        aside(move || certificates.finish()).await?.map_err(half_done)?;
        Ok(Done { shown, rolling_over: false, committed, site_ordered: false })
    })
    .await
}

/// What a rotation did.
struct Done {
    shown: Shown,
    rolling_over: bool,
    committed: Committed,
    site_ordered: bool,
}

/// Runs a rotation in a task of its own and one at a time, so that a client that goes away, or a deadline, does not stop it
/// between entry and files. Order: made, entry, files. After a crash behind the entry the certificate that it names was
/// never in use, and the next rotation has an entry of its own.
async fn to_its_end<F>(call: Call, rotation: impl FnOnce(Arc<App>, Arc<str>) -> F + Send + 'static) -> Handled
where
    F: Future<Output = Result<Done, Problem>> + Send + 'static,
{
    let (app, author) = (call.app.clone(), call.principal.id.clone());
    let done = rt::spawn(async move {
        let turn = app.clone();
        let _turn = turn.rotating.lock().await;
        rotation(app, author).await
    });
    let Done { shown, rolling_over, committed, site_ordered } = done.await.map_err(|e| Problem::internal(&e))??;
    let Shown { sha256, not_after_s } = shown;
    let rotated = Rotated { certificate: hex(&sha256), not_after_s, rolling_over, site_ordered };
    Ok(render::committed(render::json(StatusCode::CREATED, &rotated)?, &committed))
}

/// The entry.
async fn record(app: &App, author: &str, id: &str, shown: Shown, rolling_over: bool) -> Result<Committed, Problem> {
    let node = app.node.status().name;
    let row = TlsCertificate { sha256: hex(&shown.sha256), not_after_s: shown.not_after_s, node, rolling_over };
    commit(&app.node, author, Vec::new(), vec![TLS.put(id, &row)?]).await
}

/// Work with files, which waits for the disk.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
    rt::blocking(work).await.map_err(|e| Problem::internal(&e))
}

fn no_authority(error: anyhow::Error) -> Problem {
    Problem::conflict("no-authority", format!("the CA of this ledger cannot sign: {error:#}"))
}

fn half_done(error: anyhow::Error) -> Problem {
    Problem::internal(&format!("the entry is made, the files are not replaced; rotate again: {error:#}"))
}
