//! Shedding of load: what cannot be answered in time is refused early, and whoever is refused is not read for a while.
//!
//! Over connections that pipeline every request that is read costs, a refusal a sixth of a put, so at ten times the rate
//! refusals alone would take more than all of the CPU. Two rules, neither of which holds until requests are seen to wait:
//!
//! - **Too old.** A request that waited so long that its answer would be late gets 503 and `Retry-After: 1`. Its age is
//!   reckoned from when the socket was last seen empty, or its task was woken ([`Seat`]).
//! - **Seats.** When too little of what comes on the connections gets done, and it is the CPU that lacks, only so many connections are
//!   served as bring about what gets done. The others get one 503, then their socket is left unread for some seconds, as
//!   `Retry-After` says, and costs nothing meanwhile: backpressure, kernel to kernel. How many seats there are follows from a
//!   ratio that is measured, the most requests that were seen to get done to those that come on a connection that is served, and not
//!   from how long anything waits.
//!
//! A few seats too many cost little, since who has a seat and falls behind is refused by age; too few show by nearly all that comes
//! getting done. Whoever gets a seat has mostly sent on meanwhile, which costs a refusal each, or a handshake: so seats change
//! hands slowly. Once nothing is refused for a while all of it ends. docs/design/overload.md has what was measured.

use std::cmp::Reverse;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use tokio::time::Instant;

use crate::metrics::Metrics;

mod seat;

pub(super) use seat::Seat;

/// An answer is wanted within this time of when its request came; what cannot have it is refused.
const ANSWERED_WITHIN: Duration = Duration::from_millis(800);
/// However long work takes, a request younger than this is not refused for its age.
const STALE_MIN: Duration = Duration::from_millis(300);
/// A request that has waited so long before anything was done about it is a late one.
const LATE: Duration = Duration::from_millis(400);
/// How often it is reckoned whether load is shed.
const TICK: Duration = Duration::from_millis(250);
/// Load is shed after so many ticks in a row in which so many of a hundred requests, of at least so many, were late.
const STRAINED_TICKS: u32 = 2;
const STRAINED_LATE_PERCENT: u64 = 30;
const STRAINED_REQUESTS_MIN: u64 = 16;
/// It ends after so many ticks in a row without a late request and without anybody put off.
const CALM_TICKS: u32 = 20;
/// How many seats there are is reckoned anew so often, in ticks.
const SEATS_TICKS: u32 = 2;
/// Seats are taken away when less than this part of what comes gets done, …
const DONE_MIN: f64 = 0.8;
/// … so many that this times what gets done comes then; …
const OVERBOOKED: f64 = 1.1;
/// … and some are added when more than this part gets done. Between the two is peace, since whoever gets a seat costs as much as a
/// handshake: what it has sent meanwhile is refused or thrown away.
const DONE_ENOUGH: f64 = 0.95;
/// By how much seats are added at once, at least and at most.
const SEATS_GROW: f64 = 1.03;
const SEATS_GROW_MAX: f64 = 1.5;
/// When this part of the most that was seen gets done, and the CPU is used up, there is no room for more.
const USED_UP: f64 = 0.9;
/// Which part of the time the thread that serves wants a CPU when it is the CPU that lacks. When it is not, as while a disk stands
/// still, fewer connections would get no more done, and none loses its seat.
const BUSY: f64 = 0.9;
/// The most that was seen to get done fades by this at each reckoning while load is shed, …
const BEST_FADES: f64 = 0.99;
/// … by this when the seats that it says were too many, …
const BEST_FADES_SHORT: f64 = 0.85;
/// … and by this before, when more may have got done because more was to be had: the last seconds count.
const BEST_FADES_CALM: f64 = 0.7;
/// Once there are seats, some are taken away when too little gets done for so many reckonings in a row.
const SHORT: u32 = 2;
/// Reckonings between two times that seats are taken away.
const SHRINK_PAUSE: u32 = 2;
/// The most part of the seats that is left when some are taken away.
const SEATS_SHRINK: f64 = 0.85;
/// Seats there are at least.
const SEATS_MIN: f64 = 4.0;
/// Who does not ask for so long gives the seat up.
const SEAT_IDLE: Duration = Duration::from_secs(2);
/// Who had a seat for so long, and up to as long again, lets another have it.
const SEAT_TERM: Duration = Duration::from_secs(60);
/// For so long a seat is kept for who was told to connect again.
const RESERVED: Duration = Duration::from_secs(3);
/// How long a connection that was refused is left unread, and up to how much longer.
const PUT_OFF: Duration = Duration::from_secs(8);
const PUT_OFF_MORE: Duration = Duration::from_secs(8);
/// Bytes that may wait on a connection that gets a seat; with more it is cheaper to have it connect again.
const BACKLOG_MAX: u64 = 32 << 10;
/// Requests that cost as much to refuse as a handshake does.
const FAR_BEHIND: f64 = 40.0;
/// Of what gets done in a time, so much may be refused in it to let others catch up.
const CATCH_UP: f64 = 0.1;
/// What is not used of the CPU may go into it too: so many requests are refused for what one that is served takes.
const REFUSED_FOR_ONE: f64 = 3.0;
/// While load is shed connections are taken in at this part of the rate of what gets done, with these bounds.
const ACCEPTED_PART: u32 = 120;
const ACCEPT_EVERY_MIN: Duration = Duration::from_millis(4);
const ACCEPT_EVERY_MAX: Duration = Duration::from_millis(100);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// For how long the thread that serves has wanted a CPU, had or not, in all.
pub(super) type Wanted = fn() -> Option<Duration>;

/// The same of the calling thread, from the scheduler's account of it (proc(5), `schedstat`: time on a CPU and time ready for one, in ns).
pub(super) fn wanted() -> Option<Duration> {
    let account = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    let mut fields = account.split(' ').map_while(|field| field.trim().parse::<u64>().ok());
    Some(Duration::from_nanos(fields.next()? + fields.next()?))
}

/// Whether load is shed, and how much.
pub(super) struct Shed {
    origin: Instant,
    metrics: Arc<Metrics>,
    wanted: Wanted,
    /// Locked for a few instructions, never over an await.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The listener stops.
    ends: bool,
    strained: bool,
    /// Connections that are served; none: all.
    seats: Option<f64>,
    holders: usize,
    /// Seats kept for who was told to connect again, each until then.
    reserved: VecDeque<Duration>,
    put_off: usize,
    shrunk: u32,
    short: u32,
    /// What came and what got done of it while seats were too many.
    short_of: Figures,
    /// Requests a second of one connection that is served, and how many may be refused at once to let others catch up.
    rate: f64,
    catch_up: f64,
    /// The most that got done, requests a second.
    best: f64,
    late_ticks: u32,
    calm_ticks: u32,
    ticks: u32,
    tick: Figures,
    tick_began: Duration,
    figures: Figures,
    figures_began: Duration,
    wanted: Duration,
    /// How long the work on a request takes, on average.
    work: Duration,
    /// Requests that are worked on, and how many a second are done with.
    in_flight: u64,
    pace: f64,
    accept_every: Duration,
    next: u64,
    seated: HashMap<u64, Arc<Seat>>,
}

/// What happened in a time.
#[derive(Default, Clone, Copy)]
struct Figures {
    begun: u64,
    late: u64,
    served: u64,
    done: u64,
    refused: u64,
    /// Bytes that were read, and that came, on connections that are read.
    read: u64,
    came: u64,
}

/// What is to be done with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is served.
    Serve,
    /// It is refused.
    Refuse {
        /// When it is worth trying again.
        retry_after_s: u64,
        /// Whether the connection ends.
        close: bool,
    },
}

impl Shed {
    pub(super) fn new(metrics: Arc<Metrics>, wanted: Wanted) -> Arc<Self> {
        Arc::new(Self { origin: Instant::now(), metrics, wanted, state: Mutex::default() })
    }

    /// The seat of a new connection.
    pub(super) fn seat(self: &Arc<Self>) -> Arc<Seat> {
        let mut state = lock(&self.state);
        let number = state.next;
        state.next += 1;
        let seat = Arc::new(Seat::new(self.clone(), number, self.origin));
        state.seated.insert(number, seat.clone());
        seat
    }

    /// When the next connection may be taken in.
    pub(super) fn accept_at(&self, last: Instant) -> Instant {
        let state = lock(&self.state);
        if state.strained { last + state.accept_every } else { last }
    }

    /// Looks at every connection: who asks no more gives up the seat, who was put off long enough is read again.
    pub(super) fn sweep(&self) {
        self.sweep_at(self.origin.elapsed());
    }

    /// The listener stops: nobody is put off any more, nor refused.
    pub(super) fn end(&self) {
        lock(&self.state).ends = true;
        self.sweep();
    }

    fn sweep_at(&self, now: Duration) {
        let mut state = lock(&self.state);
        self.tick(&mut state, now);
        let mut woken = Vec::new();
        let (mut left, mut seated, mut read_again) = (0, 0, 0);
        while state.reserved.front().is_some_and(|until| *until <= now) {
            state.reserved.pop_front();
        }
        let since = state.fresh_enough(now);
        for seat in state.seated.values() {
            let mut at = lock(&seat.at);
            if at.holder_since.is_some() && now.saturating_sub(at.asked) > SEAT_IDLE {
                at.holder_since = None;
                left += 1;
            }
            let invited = at.put_off_until.is_some() && since.is_some_and(|since| at.emptied >= since);
            if invited || at.put_off_until.is_some_and(|until| until <= now || state.ends) {
                at.put_off_until = None;
                woken.append(&mut at.wakers);
                read_again += 1;
                if invited {
                    (at.holder_since, at.asked) = (Some(now), now);
                    seated += 1;
                }
            }
        }
        state.holders = state.holders + seated - left;
        state.put_off -= read_again;
        self.metrics.put_off(state.put_off);
        drop(state);
        woken.into_iter().for_each(Waker::wake);
    }

    /// The work on a request took so long.
    fn worked(&self, time: Duration) {
        let mut state = lock(&self.state);
        state.in_flight -= 1;
        state.tick.done += 1;
        state.work = (state.work * 63 + time.min(ANSWERED_WITHIN)) / 64;
    }

    /// Reckons anew what holds, once the tick is over.
    fn tick(&self, state: &mut State, now: Duration) {
        let time = now.saturating_sub(state.tick_began);
        if time < TICK {
            return;
        }
        let tick = std::mem::take(&mut state.tick);
        state.tick_began = now;
        // What is not seen any more is forgotten.
        state.work -= state.work / 8;
        state.figures.add(tick);
        state.ticks += 1;
        if !state.strained {
            let late = tick.begun >= STRAINED_REQUESTS_MIN && tick.late * 100 >= tick.begun * STRAINED_LATE_PERCENT;
            state.late_ticks = if late { state.late_ticks + 1 } else { 0 };
            if state.late_ticks >= STRAINED_TICKS {
                *state = State {
                    strained: true,
                    accept_every: ACCEPT_EVERY_MAX,
                    figures_began: now,
                    tick_began: now,
                    wanted: (self.wanted)().unwrap_or_default(),
                    ends: state.ends,
                    work: state.work,
                    best: state.best,
                    pace: state.pace,
                    in_flight: state.in_flight,
                    holders: state.holders,
                    next: state.next,
                    seated: std::mem::take(&mut state.seated),
                    ..State::default()
                };
                tracing::warn!(
                    "requests wait too long: those that would be answered late are refused (503) from now on"
                );
            } else if state.ticks >= SEATS_TICKS {
                let took = now.saturating_sub(state.figures_began);
                let figures = std::mem::take(&mut state.figures);
                (state.figures_began, state.ticks) = (now, 0);
                state.reckon_pace(&figures, took, BEST_FADES_CALM);
            }
            return;
        }
        state.calm_ticks = if tick.late == 0 && state.put_off == 0 { state.calm_ticks + 1 } else { 0 };
        if state.calm_ticks >= CALM_TICKS {
            state.strained = false;
            state.seats = None;
            tracing::info!("requests are answered in time again: none is refused any more");
            return;
        }
        if state.ticks < SEATS_TICKS {
            return;
        }
        let took = now.saturating_sub(state.figures_began);
        let figures = std::mem::take(&mut state.figures);
        (state.figures_began, state.ticks) = (now, 0);
        // Without an account of it, the CPU is what lacks.
        let before = state.wanted;
        state.wanted = (self.wanted)().unwrap_or(before + took);
        let busy = state.wanted.saturating_sub(before).as_secs_f64() / took.as_secs_f64();
        state.reckon_seats(&figures, took, busy);
        tracing::debug!(
            best = state.best,
            rate = state.rate,
            busy,
            seats = state.seats,
            holders = state.holders,
            put_off = state.put_off,
            begun = figures.begun,
            late = figures.late,
            served = figures.served,
            refused = figures.refused,
            read = figures.read,
            came = figures.came,
            work = ?state.work,
            in_flight = state.in_flight,
            pace = state.pace,
            ?took,
            "seats"
        );
    }
}

impl Figures {
    fn add(&mut self, other: Self) {
        self.begun += other.begun;
        self.late += other.late;
        self.served += other.served;
        self.done += other.done;
        self.refused += other.refused;
        self.read += other.read;
        self.came += other.came;
    }

    /// Which part of what came on the connections that are read got done; nothing when nothing came.
    fn done(&self) -> Option<f64> {
        if self.begun == 0 || self.came == 0 {
            return None;
        }
        #[allow(clippy::cast_precision_loss)]
        let [begun, served, read, came] = [self.begun, self.served, self.read, self.came].map(|n| n as f64);
        Some((served * (read / begun) / came).min(1.0))
    }
}

impl State {
    /// How fast requests get done, and the most that was seen of it.
    fn reckon_pace(&mut self, figures: &Figures, took: Duration, fades: f64) {
        #[allow(clippy::cast_precision_loss)]
        let pace = figures.done as f64 / took.as_secs_f64();
        self.pace = f64::midpoint(pace, if self.pace > 0.0 { self.pace } else { pace });
        self.best = if self.strained { self.pace } else { pace }.max(self.best * fades);
    }

    fn reckon_seats(&mut self, figures: &Figures, took: Duration, busy: f64) {
        let every = u32::try_from(figures.served).ok().filter(|n| *n > 0).map(|n| took * ACCEPTED_PART / n);
        self.accept_every = every.unwrap_or(ACCEPT_EVERY_MAX).clamp(ACCEPT_EVERY_MIN, ACCEPT_EVERY_MAX);
        #[allow(clippy::cast_precision_loss)]
        let [holders, put_off, served, begun, read, came] =
            [self.holders as u64, self.put_off as u64, figures.served, figures.begun, figures.read, figures.came]
                .map(|n| n as f64);
        let done = figures.done().unwrap_or(1.0);
        self.rate = came * begun / read.max(1.0) / holders.max(1.0) / took.as_secs_f64();
        self.reckon_pace(figures, took, BEST_FADES);
        let used = served / took.as_secs_f64() / self.best.max(1.0);
        let room = if busy < BUSY { REFUSED_FOR_ONE * (1.0 - used) } else { 0.0 };
        self.catch_up = (CATCH_UP + room) * self.best * TICK.as_secs_f64();
        self.shrunk = self.shrunk.saturating_sub(1);
        if busy >= BUSY && done < DONE_MIN {
            self.short += 1;
            self.short_of.add(*figures);
        } else {
            (self.short, self.short_of) = (0, Figures::default());
        }
        let calm = figures.refused * 10 <= figures.begun;
        // Below the most that was seen, too few bring it about; the further, the more are added. How much the thread that serves
        // waits says little of how much room there is, under a quota: it is small until that is used up.
        let below = (1.0 / used.max(0.01)).sqrt().max(if busy < BUSY { (BUSY / busy.max(0.01)).cbrt() } else { 1.0 });
        let grown = holders.max(SEATS_MIN) * below.clamp(SEATS_GROW, SEATS_GROW_MAX);
        let patience = if self.seats.is_some() { SHORT } else { 1 };
        self.seats = match self.seats {
            Some(_) if put_off == 0.0 => None,
            Some(seats) if busy < BUSY || calm && done >= DONE_ENOUGH && used < USED_UP => {
                Some(seats.max(grown).min(holders + put_off))
            }
            seats if self.short < patience || self.shrunk > 0 => seats,
            _ => {
                self.shrunk = SHRINK_PAUSE;
                let done = std::mem::take(&mut self.short_of).done().unwrap_or(1.0);
                // When load begins to be shed, what gets done is what waited before, and late. What the most that was seen takes is
                // known better; unless it was of other requests: then it is not reached, and fades.
                let wanted = (done * holders).max(self.best / self.rate.max(f64::MIN_POSITIVE)) * OVERBOOKED;
                self.best *= BEST_FADES_SHORT;
                Some(wanted.min(holders * SEATS_SHRINK).max(SEATS_MIN))
            }
        };
    }

    /// As there are seats free, who was put off and whose socket was empty since then gets one: who has the least to catch up with.
    fn fresh_enough(&self, now: Duration) -> Option<Duration> {
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let free = (self.seats? - self.taken()) as usize;
        let put_off = self.seated.values().map(|seat| lock(&seat.at)).filter(|at| at.put_off_until.is_some());
        let mut emptied: Vec<Duration> = put_off.map(|at| at.emptied).collect();
        emptied.sort_unstable_by_key(|emptied| Reverse(*emptied));
        // What each has sent meanwhile is refused first.
        let mut rest = self.catch_up;
        let within = |emptied: &&Duration| {
            rest -= (now.saturating_sub(**emptied).as_secs_f64() * self.rate).min(FAR_BEHIND);
            rest >= 0.0
        };
        emptied.iter().take(free).take_while(within).last().copied()
    }

    /// How long the work on a request that begins now will take: as the last ones did, or longer if more are worked on.
    fn expected_work(&self) -> Duration {
        #[allow(clippy::cast_precision_loss)]
        let queued = self.in_flight as f64 / self.pace.max(1.0);
        if self.pace > 0.0 { self.work.max(Duration::from_secs_f64(queued.min(2.0))) } else { self.work }
    }

    #[allow(clippy::cast_precision_loss)]
    fn taken(&self) -> f64 {
        (self.holders + self.reserved.len()) as f64
    }

    /// Whether there is a seat for one more. Who is behind gets one only by [`State::fresh_enough`], since it costs something first.
    fn has_seat(&mut self, behind: bool) -> bool {
        if self.seats.is_none() {
            return true;
        }
        !behind && (self.reserved.pop_front().is_some() || !self.is_full())
    }

    fn is_full(&self) -> bool {
        self.seats.is_some_and(|seats| self.taken() >= seats)
    }

    /// Whether more are served than there are seats.
    fn is_overfull(&self) -> bool {
        self.seats.is_some_and(|seats| self.taken() > seats.ceil())
    }
}

#[cfg(test)]
mod tests;
