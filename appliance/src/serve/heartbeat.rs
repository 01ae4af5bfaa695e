//! Tells systemd, now and then, what the daemon is doing, and that every part of it still moves: the watchdog is fed only
//! when batcher, Raft core, apply and the raft log's thread each answered. This task runs on the listener's thread, so that
//! one is watched too. A lost quorum or an idle day is no stall; an fsync that does not return is one.

use std::time::Duration;

use samovar_node::view::Status;
use samovar_node::{Node, rt};

use super::{machine_clock, notify};

/// How often without a watchdog; with one at least [`BEATS`] times within its time.
const INTERVAL_MAX: Duration = Duration::from_secs(10);
/// Beats within the watchdog's time: one lost answer is no reason to end the process.
const BEATS: u32 = 6;
/// How often the machine is asked whether its clock is synchronised, in beats; at each while it is doubted.
const CLOCK_BEATS: u64 = 6;

/// Beats until the task is dropped.
pub(super) async fn run(node: Node) {
    let watchdog = notify::watchdog();
    let interval = watchdog.map_or(INTERVAL_MAX, |limit| (limit / BEATS).min(INTERVAL_MAX));
    // An answer may take two beats; what takes longer is a stall, and not told of as life.
    let patience = interval * 2;
    for beat in 1u64.. {
        match node.pulse(patience).await {
            Ok(()) => {
                let status = node.status();
                notify::alive(&describe(&status));
                if beat % CLOCK_BEATS == 0 || status.clock.doubted {
                    rt::report_synchronised(machine_clock::is_synchronised().await);
                }
            }
            Err(part) => {
                let stall = format!("{part} has given no sign of life for {patience:?}");
                tracing::error!("{stall}; unless it does, the watchdog will end this process");
                notify::status(&format!("Stalled: {stall}"));
            }
        }
        tokio::time::sleep(interval).await;
    }
}

/// One line for `systemctl status`.
pub(super) fn describe(status: &Status) -> String {
    let doing = if status.free_bytes < status.reserve_bytes {
        "Serving reads, refusing writes for want of room"
    } else if status.leader.is_none() {
        "Serving stale reads, as no leader has a quorum"
    } else {
        "Serving"
    };
    let clock = if status.clock.doubted { "; the clock is not believed, see samovar status" } else { "" };
    format!("{doing}: {}, block {}, {} entries{clock}", status.role, status.head.height, status.head.size)
}

#[cfg(test)]
mod tests {
    use samovar_node::view::{ClockStatus, Head};

    use super::*;

    #[test]
    fn the_status_line_says_what_matters() {
        let head = Head { height: 12, size: 40, ..Head::default() };
        let good = Status { role: "leader", leader: Some(1), head, ..Status::default() };
        assert_eq!(describe(&good), "Serving: leader, block 12, 40 entries");
        let full = Status { reserve_bytes: 1, ..good.clone() };
        assert!(describe(&full).contains("refusing writes for want of room"), "{}", describe(&full));
        let alone = Status { leader: None, role: "candidate", ..good.clone() };
        assert!(describe(&alone).contains("no leader has a quorum"), "{}", describe(&alone));
        let doubted = Status { clock: ClockStatus { doubted: true, ..ClockStatus::default() }, ..good };
        assert!(describe(&doubted).contains("clock is not believed"), "{}", describe(&doubted));
    }
}
