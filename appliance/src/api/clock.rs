//! `/v1/clock`: an administrator's word about the machine's clock.

use hyper::StatusCode;
use samovar_node::Outcome;
use serde::Serialize;

use super::problem::Problem;
use super::{Call, Handled, render};

#[derive(Serialize)]
struct Accepted {
    transaction: u64,
    block: u64,
    /// Time of the newest block before, milliseconds since 1970.
    before_ms: u64,
    /// Time of the block that holds the act.
    block_time_ms: u64,
}

/// `POST /v1/clock/accept`: for good, since time never goes back.
pub(crate) async fn accept(call: Call) -> Handled {
    let node = &call.app.node;
    let clock = node.clock();
    if !clock.doubted {
        let detail = "the clock is not doubted, so there is nothing to accept";
        return Err(Problem::conflict("clock-not-doubted", detail));
    }
    let committed = match node.accept_clock(&call.principal.id).await? {
        Outcome::Committed(committed) => committed,
        Outcome::Refused(refusal) => return Err(refusal.into()),
    };
    let block_time_ms = node.block(committed.block).await?.time_ms;
    let (transaction, block) = (committed.transaction, committed.block);
    let accepted = Accepted { transaction, block, before_ms: clock.sure_ms, block_time_ms };
    Ok(render::committed(render::json(StatusCode::CREATED, &accepted)?, &committed))
}
