//! The open connections, and the judgement over them: one sweep looks at every deadline, so that ten thousand idle
//! connections cost no timers.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};
use tokio::task::AbortHandle;
use tokio::time::{Instant, Interval};

use super::Limits;
use super::linger::{self, Linger};
use super::shed::Seat;
use crate::live::Live;
use crate::metrics::Metrics;

/// At a stop, how long a connection between two requests may bring one more.
const LAST_REQUEST: Duration = Duration::from_millis(250);
/// Idle connections that one scan makes room of when all places are taken.
const EVICTED_AT_ONCE: usize = 16;
/// How long a connection that was asked to go may stay.
const LEAVE_TIME: Duration = Duration::from_secs(5);
/// A stream of answers is silent at most this long (its keep-alive comments), so it gets this much on top.
pub(crate) const STREAM_SILENCE_MAX: Duration = Duration::from_secs(15);

/// Milliseconds since the registry was made, read once per sweep; 0 stands for "not".
type Tick = u64;

/// What one connection is doing, written by its task and read by the sweep.
pub(super) struct Activity {
    clock: Arc<AtomicU64>,
    born: Tick,
    http2: AtomicBool,
    /// First byte of a header came, and no request yet.
    head_since: AtomicU64,
    /// No request since.
    idle_since: AtomicU64,
    /// Bytes were handed to the socket and not all have left.
    unflushed_since: AtomicU64,
    /// The socket last took bytes.
    wrote_at: AtomicU64,
    /// The connection was asked to go.
    leaving_since: AtomicU64,
    /// The body of the last request was not read to its end.
    unread: AtomicBool,
    /// Places to linger in.
    lingering: Arc<Semaphore>,
    /// Requests in flight. Locked for a few instructions, never over an await.
    slots: Mutex<Vec<Option<Slot>>>,
    /// Wakes the connection's task to begin leaving.
    pub(super) leave: Notify,
}

#[derive(Clone, Copy)]
struct Slot {
    answering_since: Tick,
    progress_at: Tick,
    stream: bool,
}

/// A request in flight; gone from its connection when dropped.
pub(super) struct InFlight {
    activity: Arc<Activity>,
    slot: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Activity {
    fn now(&self) -> Tick {
        self.clock.load(Ordering::Relaxed)
    }

    pub(super) fn is_http2(&self) {
        self.http2.store(true, Ordering::Relaxed);
    }

    pub(super) fn received(&self) {
        let idle = self.idle_since.load(Ordering::Relaxed) != 0;
        if idle && self.head_since.load(Ordering::Relaxed) == 0 && !self.http2.load(Ordering::Relaxed) {
            self.head_since.store(self.now(), Ordering::Relaxed);
        }
    }

    pub(super) fn wrote(&self, taken: bool) {
        if self.unflushed_since.load(Ordering::Relaxed) == 0 {
            self.unflushed_since.store(self.now(), Ordering::Relaxed);
            self.wrote_at.store(self.now(), Ordering::Relaxed);
        } else if taken {
            self.wrote_at.store(self.now(), Ordering::Relaxed);
        }
    }

    pub(super) fn flushed(&self) {
        self.unflushed_since.store(0, Ordering::Relaxed);
    }

    /// A request's header is complete.
    pub(super) fn begin(self: &Arc<Self>) -> Arc<InFlight> {
        self.head_since.store(0, Ordering::Relaxed);
        self.idle_since.store(0, Ordering::Relaxed);
        self.unread.store(false, Ordering::Relaxed);
        let mut slots = lock(&self.slots);
        let fresh = Some(Slot { answering_since: 0, progress_at: 0, stream: false });
        let slot = match slots.iter().position(Option::is_none) {
            Some(free) => {
                slots[free] = fresh;
                free
            }
            None => {
                slots.push(fresh);
                slots.len() - 1
            }
        };
        Arc::new(InFlight { activity: self.clone(), slot })
    }

    /// The connection is closed by this end: how it lingers, if its client may still send and there is a place.
    pub(super) fn linger(&self, deaf: bool) -> Option<Linger> {
        if deaf {
            return Linger::deaf(&self.lingering);
        }
        // A header without an end is refused as well.
        let sends = self.unread.load(Ordering::Relaxed) || self.head_since.load(Ordering::Relaxed) != 0;
        (sends && !self.http2.load(Ordering::Relaxed)).then(|| Linger::begin(&self.lingering)).flatten()
    }

    /// What is to be done about the connection now.
    fn judge(&self, now: Tick, limits: &Limits) -> Verdict {
        let over =
            |since: Tick, limit: Duration| since != 0 && Duration::from_millis(now.saturating_sub(since)) > limit;
        let load = |field: &AtomicU64| field.load(Ordering::Relaxed);
        if over(load(&self.head_since), limits.header_timeout) {
            return Verdict::Cut("header");
        }
        let unflushed = load(&self.unflushed_since);
        if unflushed != 0 && over(load(&self.wrote_at), limits.write_timeout) {
            return Verdict::Cut("write");
        }
        let streaming = lock(&self.slots).iter().flatten().any(|s| s.stream);
        if !streaming && over(unflushed, limits.response_deadline) {
            return Verdict::Cut("response");
        }
        let stalled = |s: &Slot| {
            let silence = if s.stream { STREAM_SILENCE_MAX } else { Duration::ZERO };
            over(s.progress_at, limits.write_timeout + silence)
                || (!s.stream && over(s.answering_since, limits.response_deadline))
        };
        if lock(&self.slots).iter().flatten().any(stalled) {
            return Verdict::Cut("response");
        }
        let idle = load(&self.idle_since);
        let leaving = load(&self.leaving_since);
        if leaving != 0 {
            return if idle != 0 && over(leaving, LEAVE_TIME) { Verdict::Cut("idle") } else { Verdict::Stay };
        }
        let old = self.http2.load(Ordering::Relaxed) && over(self.born, limits.connection_lifetime);
        if over(idle, limits.idle_timeout) || old { Verdict::Leave } else { Verdict::Stay }
    }

    fn ask_to_leave(&self) {
        self.leaving_since.store(self.now(), Ordering::Relaxed);
        self.leave.notify_one();
    }
}

impl InFlight {
    /// The answer is ready; from now on the client must take it.
    pub(super) fn answering(&self, stream: bool) {
        let now = self.activity.now();
        self.update(|s| *s = Slot { answering_since: now, progress_at: now, stream });
    }

    /// The client took all that it was given so far.
    pub(super) fn progress(&self) {
        let now = self.activity.now();
        self.update(|s| s.progress_at = now);
    }

    /// Its body is given up before its end.
    pub(super) fn left_unread(&self) {
        self.activity.unread.store(true, Ordering::Relaxed);
    }

    fn update(&self, change: impl FnOnce(&mut Slot)) {
        if let Some(Some(slot)) = lock(&self.activity.slots).get_mut(self.slot) {
            change(slot);
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut slots = lock(&self.activity.slots);
        slots[self.slot] = None;
        if slots.iter().all(Option::is_none) {
            self.activity.idle_since.store(self.activity.now(), Ordering::Relaxed);
        }
    }
}

enum Verdict {
    Stay,
    Leave,
    Cut(&'static str),
}

/// All open connections.
pub(super) struct Registry {
    limits: Live<Limits>,
    metrics: Arc<Metrics>,
    origin: Instant,
    clock: Arc<AtomicU64>,
    lingering: Arc<Semaphore>,
    /// Locked for one look at every connection at most, never over an await.
    open: Mutex<Open>,
    changed: Notify,
    draining: AtomicBool,
}

#[derive(Default)]
struct Open {
    next: u64,
    connections: HashMap<u64, Connection>,
    per_address: HashMap<IpAddr, usize>,
}

struct Connection {
    activity: Arc<Activity>,
    task: Option<AbortHandle>,
}

/// A place among the open connections; given back when dropped.
pub(super) struct Place {
    shared: Arc<super::Shared>,
    id: u64,
    address: IpAddr,
    /// What the connection does.
    pub(super) activity: Arc<Activity>,
    /// Whether it is served when there is too much to do.
    pub(super) seat: Arc<Seat>,
}

impl Registry {
    pub(super) fn new(limits: Live<Limits>, metrics: Arc<Metrics>) -> Self {
        metrics.connections_max(limits.get().connections_max);
        let clock = Arc::new(AtomicU64::new(1));
        let (origin, lingering) = (Instant::now(), linger::places());
        let (open, changed, draining) = (Mutex::default(), Notify::new(), AtomicBool::new(false));
        Self { limits, metrics, origin, clock, lingering, open, changed, draining }
    }

    /// A place for a new connection, or none: the address has too many, or all are taken and none is idle.
    pub(super) fn place(shared: &Arc<super::Shared>, address: IpAddr) -> Option<Place> {
        let registry = &shared.registry;
        let address = network_of(address);
        let mut open = lock(&registry.open);
        let of_address = open.per_address.get(&address).copied().unwrap_or(0);
        let limits = registry.limits.get();
        if of_address >= limits.connections_per_address_max {
            registry.metrics.refused("address");
            return None;
        }
        if open.connections.len() >= limits.connections_max {
            // The places come free when the tasks were dropped, soon; until then there is no room for this one either.
            registry.evict(&open);
            registry.metrics.refused("total");
            return None;
        }
        let now = registry.clock.load(Ordering::Relaxed);
        let activity = Arc::new(Activity {
            clock: registry.clock.clone(),
            born: now,
            http2: AtomicBool::new(false),
            head_since: AtomicU64::new(0),
            idle_since: AtomicU64::new(now),
            unflushed_since: AtomicU64::new(0),
            wrote_at: AtomicU64::new(0),
            leaving_since: AtomicU64::new(0),
            unread: AtomicBool::new(false),
            lingering: registry.lingering.clone(),
            slots: Mutex::default(),
            leave: Notify::new(),
        });
        let id = open.next;
        open.next += 1;
        open.connections.insert(id, Connection { activity: activity.clone(), task: None });
        *open.per_address.entry(address).or_default() += 1;
        registry.metrics.connections(open.connections.len());
        Some(Place { shared: shared.clone(), id, address, activity, seat: shared.shed.seat() })
    }

    /// Lets the sweep cut the connection whose task this is.
    pub(super) fn runs(&self, id: u64, task: AbortHandle) {
        if let Some(connection) = lock(&self.open).connections.get_mut(&id) {
            connection.task = Some(task);
        }
    }

    /// Cuts the longest idle connections, and keeps one or more places free ahead of need.
    fn evict(&self, open: &Open) {
        let mut idle: Vec<_> = open
            .connections
            .values()
            .map(|c| (c.activity.idle_since.load(Ordering::Relaxed), c))
            .filter(|(since, _)| *since != 0)
            .collect();
        let count = EVICTED_AT_ONCE.min(idle.len()).min(1 + self.limits.get().connections_max / 8);
        if count == 0 {
            return;
        }
        idle.select_nth_unstable_by_key(count - 1, |(since, _)| *since);
        for (_, connection) in &idle[..count] {
            if let Some(task) = &connection.task {
                task.abort();
                self.metrics.cut("evicted");
            }
        }
    }

    /// Looks at every deadline once.
    pub(super) fn sweep(&self) {
        let now = u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
        self.clock.store(now, Ordering::Relaxed);
        let limits = self.limits.get();
        self.metrics.connections_max(limits.connections_max);
        let open = lock(&self.open);
        for connection in open.connections.values() {
            match connection.activity.judge(now, &limits) {
                Verdict::Stay => {}
                Verdict::Leave => connection.activity.ask_to_leave(),
                Verdict::Cut(why) => {
                    if let Some(task) = &connection.task {
                        task.abort();
                        self.metrics.cut(why);
                    }
                }
            }
        }
    }

    fn ask_to_leave(&self, which: impl Fn(&Activity) -> bool) {
        for connection in lock(&self.open).connections.values().filter(|connection| which(&connection.activity)) {
            connection.activity.ask_to_leave();
        }
    }

    /// Whether the listener stops: an answer is then the last one of its connection, and says so.
    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Asks every connection to go once its requests are answered; cuts what is left after the deadline. In HTTP/1.1 only an
    /// answer can say that a connection ends: one between two requests is closed after [`LAST_REQUEST`], so that a client
    /// that is about to send its next one is not left without an answer.
    pub(super) async fn drain(&self, sweep: &mut Interval) {
        self.draining.store(true, Ordering::Relaxed);
        self.ask_to_leave(|activity| activity.http2.load(Ordering::Relaxed));
        let last_request = tokio::time::sleep(LAST_REQUEST);
        tokio::pin!(last_request);
        while !lock(&self.open).connections.is_empty() {
            tokio::select! {
                () = &mut last_request => break,
                () = self.changed.notified() => {}
                _ = sweep.tick() => self.sweep(),
            }
        }
        self.ask_to_leave(|_| true);
        let deadline = tokio::time::sleep(self.limits.get().stop_deadline);
        tokio::pin!(deadline);
        while !lock(&self.open).connections.is_empty() {
            tokio::select! {
                () = &mut deadline => break,
                () = self.changed.notified() => {}
                _ = sweep.tick() => self.sweep(),
            }
        }
        for connection in lock(&self.open).connections.values() {
            if let Some(task) = &connection.task {
                task.abort();
                self.metrics.cut("stop");
            }
        }
    }
}

impl Place {
    /// Number of the connection.
    pub(super) fn id(&self) -> u64 {
        self.id
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.seat.leave();
        let registry = &self.shared.registry;
        let mut open = lock(&registry.open);
        open.connections.remove(&self.id);
        if let Some(count) = open.per_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.per_address.remove(&self.address);
            }
        }
        registry.metrics.connections(open.connections.len());
        registry.changed.notify_one();
    }
}

/// What limits count as one address: an IPv6 client owns at least its /64.
pub(crate) fn network_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(a) => IpAddr::V6(Ipv6Addr::from_bits(a.to_bits() & !u128::from(u64::MAX))),
    }
}
