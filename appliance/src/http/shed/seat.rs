//! One connection, as far as the shedding of load goes: since when its requests wait, whether it has a seat, until when it is put off.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::time::Instant;

use super::{
    ANSWERED_WITHIN, BACKLOG_MAX, LATE, PUT_OFF, PUT_OFF_MORE, RESERVED, SEAT_TERM, STALE_MIN, Shed, Verdict, lock,
};

/// One connection, as far as the shedding of load goes.
pub(in crate::http) struct Seat {
    shed: Arc<Shed>,
    number: u64,
    /// Its socket may be left unread (HTTP/1.1): nothing but requests comes over it.
    exclusive: AtomicBool,
    pub(super) at: Mutex<At>,
    pub(super) woken: Arc<Woken>,
    waker: Waker,
}

#[derive(Default)]
pub(super) struct At {
    /// When what is worked on came, and the socket was last seen empty; since the origin.
    came: Duration,
    pub(super) emptied: Duration,
    /// Since the last read it is noted when something comes.
    watched: bool,
    unread: u64,
    /// The last request.
    pub(super) asked: Duration,
    pub(super) holder_since: Option<Duration>,
    pub(super) put_off_until: Option<Duration>,
    /// It went on sending while it was not read, and by more than is worth reading.
    behind: bool,
    closing: bool,
    pub(super) wakers: Vec<Waker>,
}

/// Notes when something came on a socket, and passes it on to the task if that waits for it.
pub(super) struct Woken {
    origin: Instant,
    /// None while the task does something else.
    task: AtomicWaker,
    /// Microseconds since the origin; 0: not yet.
    at: AtomicU64,
}

impl Woken {
    pub(super) fn note(&self, now: Duration) {
        let now = u64::try_from(now.as_micros()).unwrap_or(u64::MAX).max(1);
        let _ = self.at.compare_exchange(0, now, Relaxed, Relaxed);
    }
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.note(self.origin.elapsed());
        self.task.wake();
    }
}

/// A request is worked on.
pub(in crate::http) struct Working<'a> {
    shed: &'a Shed,
    begun: Instant,
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.shed.worked(self.begun.elapsed());
    }
}

impl Seat {
    pub(super) fn new(shed: Arc<Shed>, number: u64, origin: Instant) -> Self {
        let woken = Arc::new(Woken { origin, task: AtomicWaker::new(), at: AtomicU64::new(0) });
        let now = origin.elapsed();
        Self {
            shed,
            number,
            exclusive: AtomicBool::new(false),
            at: Mutex::new(At { came: now, emptied: now, watched: true, asked: now, ..At::default() }),
            waker: Waker::from(woken.clone()),
            woken,
        }
    }

    /// Nothing but requests comes over the connection: when it is put off, its socket is not read.
    pub(in crate::http) fn is_exclusive(&self) {
        self.exclusive.store(true, Relaxed);
    }

    /// What the socket is polled with, so that it is known when the task was woken.
    pub(in crate::http) fn waker(&self, context: &Context<'_>) -> &Waker {
        self.woken.task.register(context.waker());
        &self.waker
    }

    /// What the socket is polled with after a read, so that it is known when the next byte comes; the task is not woken for that.
    pub(in crate::http) fn noting(&self) -> &Waker {
        drop(self.woken.task.take());
        &self.waker
    }

    /// From now on it is noted when something comes.
    pub(in crate::http) fn watched(&self) {
        self.woken.at.store(0, Relaxed);
        lock(&self.at).watched = true;
    }

    /// So many bytes were read, and so many wait to be read.
    pub(in crate::http) fn received(&self, read: u64, unread: u64) {
        self.received_at(self.shed.origin.elapsed(), read, unread);
    }

    pub(super) fn received_at(&self, now: Duration, read: u64, unread: u64) {
        let mut at = lock(&self.at);
        at.came = if at.watched {
            let woken = Duration::from_micros(self.woken.at.load(Relaxed));
            if woken.is_zero() { now } else { woken.min(now) }
        } else {
            // It came at some time since then; the first of it, which is worked on next, rather early.
            at.emptied + now.saturating_sub(at.emptied) / 4
        };
        at.watched = false;
        if unread == 0 {
            at.emptied = now;
        }
        let came = (read + unread).saturating_sub(at.unread);
        at.unread = unread;
        drop(at);
        let mut state = lock(&self.shed.state);
        state.tick.read += read;
        state.tick.came += came;
    }

    /// Whether its socket is not to be read now; then the task is woken when it is.
    pub(in crate::http) fn is_unread(&self, context: &Context<'_>) -> bool {
        self.exclusive.load(Relaxed) && self.poll_put_off(context).is_pending()
    }

    /// Whether its socket is not to be read now.
    pub(in crate::http) fn is_put_off(&self) -> bool {
        self.exclusive.load(Relaxed) && lock(&self.at).put_off_until.is_some()
    }

    /// Its socket is read again after a while in which so many bytes came.
    pub(in crate::http) fn reads_again(&self, waiting: u64) {
        self.reads_again_at(self.shed.origin.elapsed(), waiting);
    }

    pub(super) fn reads_again_at(&self, now: Duration, waiting: u64) {
        self.woken.at.store(0, Relaxed);
        let mut at = lock(&self.at);
        at.unread = waiting;
        at.behind = waiting > 0;
        at.closing = waiting > BACKLOG_MAX;
        at.watched = waiting == 0;
        if waiting == 0 {
            at.emptied = now;
        }
    }

    /// Whether the connection ends because it is too far behind.
    pub(in crate::http) fn is_closing(&self) -> bool {
        lock(&self.at).closing
    }

    fn poll_put_off(&self, context: &Context<'_>) -> Poll<()> {
        let mut at = lock(&self.at);
        if at.put_off_until.is_none() {
            return Poll::Ready(());
        }
        if !at.wakers.iter().any(|w| w.will_wake(context.waker())) {
            at.wakers.push(context.waker().clone());
        }
        Poll::Pending
    }

    /// Resolves when the connection is not put off.
    pub(in crate::http) async fn turn(&self) {
        std::future::poll_fn(|context| self.poll_put_off(context)).await;
    }

    /// Judges a request that is about to be worked on.
    pub(in crate::http) fn judge(&self) -> Verdict {
        self.judge_at(self.shed.origin.elapsed())
    }

    pub(super) fn judge_at(&self, now: Duration) -> Verdict {
        let shed = &self.shed;
        let mut state = lock(&shed.state);
        shed.tick(&mut state, now);
        let mut at = lock(&self.at);
        let age = now.saturating_sub(at.came);
        at.asked = now;
        state.tick.begun += 1;
        state.tick.late += u64::from(age > LATE);
        if !state.strained || state.ends {
            state.holders += usize::from(at.holder_since.replace(now).is_none());
            state.tick.served += 1;
            return Verdict::Serve;
        }
        let stale = age > STALE_MIN.max(ANSWERED_WITHIN.saturating_sub(state.expected_work()));
        let overfull = state.is_overfull();
        let over = match at.holder_since {
            None => !state.has_seat(at.behind),
            Some(since) => {
                let term = SEAT_TERM + SEAT_TERM * u32::try_from(self.number % 64).unwrap_or(0) / 64;
                stale && overfull || state.put_off > 0 && now.saturating_sub(since) > term
            }
        };
        if over {
            state.holders -= usize::from(at.holder_since.take().is_some());
            state.tick.refused += 1;
            state.put_off += 1;
            let more = PUT_OFF_MORE * u32::try_from(self.number % 16).unwrap_or(0) / 16;
            at.put_off_until = Some(now + PUT_OFF + more);
            shed.metrics.shed("put_off");
            return Verdict::Refuse { retry_after_s: (PUT_OFF + more).as_secs() + 1, close: false };
        }
        state.holders += usize::from(at.holder_since.is_none());
        at.holder_since.get_or_insert(now);
        if stale || at.closing {
            state.tick.refused += 1;
            shed.metrics.shed("too_old");
            return Verdict::Refuse { retry_after_s: 1, close: at.closing };
        }
        state.tick.served += 1;
        Verdict::Serve
    }

    /// The work on a request begins; it ends when what is returned is dropped.
    pub(in crate::http) fn works(&self) -> Working<'_> {
        lock(&self.shed.state).in_flight += 1;
        Working { shed: &self.shed, begun: Instant::now() }
    }

    /// The connection is gone.
    pub(in crate::http) fn leave(&self) {
        self.leave_at(self.shed.origin.elapsed());
    }

    pub(super) fn leave_at(&self, now: Duration) {
        let mut state = lock(&self.shed.state);
        state.seated.remove(&self.number);
        let mut at = lock(&self.at);
        let held = at.holder_since.take().is_some();
        state.holders -= usize::from(held);
        if held && at.closing {
            state.reserved.push_back(now + RESERVED);
        }
        state.put_off -= usize::from(at.put_off_until.take().is_some());
    }
}
