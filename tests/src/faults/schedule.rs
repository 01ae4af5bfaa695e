//! Which faults come when: drawn from the seed alone, so that one seed is one schedule.

use std::fmt;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// Faults that may be there at once: each row of the schedule is one after the other.
const ROWS: u64 = 2;
const ROW_STRIDE: u64 = 0x9E37_79B9_7F4A_7C15;
/// How long a disk stands still that stalls.
const STALL: Duration = Duration::from_millis(300);

/// Whom a fault hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// The node at a place.
    Place(usize),
    /// Whoever leads then, or else the node at a place.
    Leader(usize),
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// kill -9, and a start when it is over.
    Kill(Target),
    /// kill -9 of every node, and a start of each when it is over.
    KillAll,
    /// SIGSTOP, and SIGCONT when it is over.
    Pause(Target),
    /// Nothing passes between it and the other nodes; clients reach it.
    Isolate(Target),
    /// Nor between it and clients.
    Unplug(Target),
    /// What the first sends does not reach the second.
    OneWay(Target, usize),
    /// What it sends reaches nobody; what others send reaches it.
    Mute(Target),
    /// Nodes below the place and the others do not reach each other.
    Split(usize),
    /// So many packets in a hundred between it and the others are lost.
    Lossy(Target, u8),
    /// Its line carries so many kbit/s.
    SlowLine(Target, u32),
    /// Its disk stands still, again and again, for up to so many milliseconds.
    SlowDisk(Target, u64),
    /// Its disk stands still once.
    StalledDisk(Target),
    /// So many MiB are left on its disk.
    FullDisk(Target, u64),
    /// SIGTERM to each node, one after the other, with a start after each.
    RollingRestart,
}

/// One fault.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fault {
    /// Pause before it, in its row.
    pub(super) after: Duration,
    pub(super) kind: Kind,
    pub(super) lasts: Duration,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "after {:.1?} {:?} for {:.1?}", self.after, self.kind, self.lasts)
    }
}

/// The rows of a run: for each, its faults in their order, as many as there is time for.
pub(super) fn draw(seed: u64, nodes: usize, duration: Duration) -> Vec<Vec<Fault>> {
    (0..ROWS)
        .map(|row| draw_row(StdRng::seed_from_u64(seed ^ (row + 1).wrapping_mul(ROW_STRIDE)), nodes, duration))
        .collect()
}

/// The same where nothing happens but that disks stand still, each time for [`STALL`], those of two nodes at once now and then.
pub(super) fn draw_stalls(seed: u64, nodes: usize, duration: Duration) -> Vec<Vec<Fault>> {
    let row = |row: u64| {
        let mut random = StdRng::seed_from_u64(seed ^ (row + 1).wrapping_mul(ROW_STRIDE));
        let (mut faults, mut total) = (Vec::new(), Duration::ZERO);
        while total < duration {
            let after = Duration::from_millis(random.gen_range(100..2_000));
            let place = random.gen_range(0..nodes);
            let target = if random.gen_bool(0.5) { Target::Leader(place) } else { Target::Place(place) };
            total += after + STALL;
            faults.push(Fault { after, kind: Kind::StalledDisk(target), lasts: STALL });
        }
        faults
    };
    (0..ROWS).map(row).collect()
}

fn draw_row(mut random: StdRng, nodes: usize, duration: Duration) -> Vec<Fault> {
    let mut row = Vec::new();
    let mut total = Duration::ZERO;
    loop {
        let after = Duration::from_millis(random.gen_range(200..3_000));
        let place = random.gen_range(0..nodes);
        let target = if random.gen_bool(0.5) { Target::Leader(place) } else { Target::Place(place) };
        let kind = match random.gen_range(0..100) {
            0..18 => Kind::Kill(target),
            18..21 => Kind::KillAll,
            21..34 => Kind::Pause(target),
            34..45 => Kind::Isolate(target),
            45..50 => Kind::Unplug(target),
            50..58 => Kind::OneWay(target, random.gen_range(0..nodes)),
            58..63 => Kind::Mute(target),
            63..70 => Kind::Split(random.gen_range(1..nodes)),
            70..75 => Kind::Lossy(target, random.gen_range(5..50)),
            75..80 => Kind::SlowLine(target, random.gen_range(200..2_000)),
            80..88 => Kind::SlowDisk(target, random.gen_range(50..800)),
            88..95 => Kind::FullDisk(target, if random.gen_bool(0.5) { 0 } else { random.gen_range(1..120) }),
            _ => Kind::RollingRestart,
        };
        // Most are short against an election or about as long; some are long.
        let longest_ms = if random.gen_bool(0.2) { 9_000 } else { 2_500 };
        let lasts = Duration::from_millis(random.gen_range(50..longest_ms));
        total += after + lasts;
        if total > duration {
            return row;
        }
        row.push(Fault { after, kind, lasts });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_is_one_schedule_and_another_is_another() {
        let drawn = |seed| format!("{:?}", draw(seed, 5, Duration::from_secs(300)));
        assert_eq!(drawn(7), drawn(7));
        assert_ne!(drawn(7), drawn(8));
    }

    #[test]
    fn a_longer_run_begins_as_a_shorter_one() {
        let (long, short) = (draw(7, 3, Duration::from_secs(300)), draw(7, 3, Duration::from_secs(60)));
        for (long, short) in long.iter().zip(&short) {
            assert!(short.len() > 5, "a minute has faults: {}", short.len());
            assert_eq!(format!("{short:?}"), format!("{:?}", &long[..short.len()]));
        }
    }
}
