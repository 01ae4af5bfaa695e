//! `/v1/updates`: the update of this box. The daemon has no right to do any of it; the box's updater has.

use hyper::StatusCode;
use serde::Deserialize;

use super::problem::Problem;
use super::{Call, Handled, access, render};
use crate::update::{self, Order, Reply};

/// Longest name of a bundle, in bytes.
const BUNDLE_BYTES_MAX: usize = 4096;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    bundle: String,
}

/// `GET /v1/updates`.
pub(crate) async fn get(call: Call) -> Handled {
    here(&call)?;
    state(&call, StatusCode::OK)
}

/// `POST /v1/updates`: checks a bundle and begins to install it.
pub(crate) async fn install(call: Call) -> Handled {
    here(&call)?;
    let (call, wanted) = access::body::<Wanted>(call).await?;
    let fits = (1..=BUNDLE_BYTES_MAX).contains(&wanted.bundle.len()) && !wanted.bundle.chars().any(char::is_control);
    let named = ["/", "http://", "https://"].iter().any(|start| wanted.bundle.starts_with(start));
    if !(fits && named) {
        let detail = "`bundle` is the absolute path of a file on the box, or an http or https URL";
        return Err(Problem::unprocessable(detail));
    }
    order(&call, &Order::Install { bundle: &wanted.bundle, by: &call.principal.id }).await
}

/// `POST /v1/updates/rollback`.
pub(crate) async fn rollback(call: Call) -> Handled {
    here(&call)?;
    order(&call, &Order::Rollback { by: &call.principal.id }).await
}

/// `POST /v1/updates/restart`.
pub(crate) async fn restart(call: Call) -> Handled {
    here(&call)?;
    order(&call, &Order::Restart { by: &call.principal.id }).await
}

fn here(call: &Call) -> Result<(), Problem> {
    if update::is_here(&call.app.updates) {
        return Ok(());
    }
    let detail = "this node does not run from the appliance's image: it is updated as its package or container is";
    Err(Problem::missing("no-appliance", detail))
}

async fn order(call: &Call, order: &Order<'_>) -> Handled {
    match update::order(&call.app.updates, order).await {
        Ok(Reply { taken: true, .. }) => state(call, StatusCode::ACCEPTED),
        Ok(Reply { why, .. }) => Err(Problem::conflict("update-refused", why)),
        Err(error) => Err(Problem::unavailable(format!("{error:#}; on the box: journalctl -u 'samovar-update@*'"))),
    }
}

fn state(call: &Call, status: StatusCode) -> Handled {
    let state = update::state(&call.app.updates).map_err(|e| Problem::unavailable(format!("{e:#}")))?;
    render::json(status, &state)
}
