//! Machines of a simulated world: each runs its own tasks, which stop when it is paused and are gone when it is killed, and
//! has its own wall clock, its own speed of timers and its own latency of fsync. Outside a simulation there is none.

use std::cell::RefCell;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::task::{AbortHandle, JoinHandle};

/// Latency of an fsync unless a machine says otherwise, in microseconds.
const FSYNC_US: Range<u64> = 300..3000;
/// A timer that runs true, in parts per million.
const TRUE_PPM: u64 = 1_000_000;
/// Handles of tasks that have ended are dropped once so many are kept.
const TASKS_KEPT: usize = 256;

thread_local! {
    static CURRENT: RefCell<Option<Machine>> = const { RefCell::new(None) };
}

/// A simulated machine. Clones name the same one.
#[derive(Clone)]
pub struct Machine(Arc<Mutex<State>>);

struct State {
    dead: bool,
    paused: bool,
    wall_offset_ms: i64,
    timer_ppm: u64,
    fsync_us: Range<u64>,
    /// Tasks that wait for the end of a pause.
    waiting: Vec<Waker>,
    tasks: Vec<AbortHandle>,
}

impl Default for Machine {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(State {
            dead: false,
            paused: false,
            wall_offset_ms: 0,
            timer_ppm: TRUE_PPM,
            fsync_us: FSYNC_US,
            waiting: Vec::new(),
            tasks: Vec::new(),
        })))
    }
}

impl Machine {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Spawns a task on the machine; what it spawns in turn runs there too. On a dead machine it is cancelled at once.
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let task = tokio::spawn(Scoped { machine: self.clone(), future: Box::pin(future) });
        let mut state = self.state();
        if state.dead {
            task.abort();
        } else {
            if state.tasks.len() >= TASKS_KEPT && state.tasks.len().is_power_of_two() {
                state.tasks.retain(|task| !task.is_finished());
            }
            state.tasks.push(task.abort_handle());
        }
        task
    }

    /// Ends every task, as a power cut does.
    pub fn kill(&self) {
        let tasks = {
            let mut state = self.state();
            state.dead = true;
            std::mem::take(&mut state.tasks)
        };
        tasks.iter().for_each(AbortHandle::abort);
        self.resume();
    }

    /// Whether [`Machine::kill`] was called.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.state().dead
    }

    /// Lets no task run until [`Machine::resume`].
    pub fn pause(&self) {
        self.state().paused = true;
    }

    /// Ends a pause.
    pub fn resume(&self) {
        let waiting = {
            let mut state = self.state();
            state.paused = false;
            std::mem::take(&mut state.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Moves the wall clock so far from the world's, in milliseconds.
    pub fn set_wall_offset_ms(&self, offset_ms: i64) {
        self.state().wall_offset_ms = offset_ms;
    }

    /// Speed of the machine's timers, in parts per million of true time.
    pub fn set_timer_ppm(&self, ppm: u64) {
        self.state().timer_ppm = ppm.max(1);
    }

    /// Bounds of an fsync's latency from now on, in microseconds.
    pub fn set_fsync_us(&self, us: Range<u64>) {
        self.state().fsync_us = us;
    }
}

/// Spawns a task that belongs to no machine: a client, a message on its way.
pub fn spawn_outside<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(future)
}

/// Sleeps in true time, whoever asks.
pub async fn sleep_true(duration: Duration) {
    tokio::time::sleep(duration).await;
}

/// The machine whose task is being polled; outside this crate's tests there is none.
pub(super) fn current() -> Option<Machine> {
    if cfg!(test) { CURRENT.with_borrow(Clone::clone) } else { None }
}

pub(super) fn wall_offset_ms() -> i64 {
    current().map_or(0, |machine| machine.state().wall_offset_ms)
}

pub(super) fn fsync_us() -> Range<u64> {
    current().map_or(FSYNC_US, |machine| machine.state().fsync_us.clone())
}

/// True time that passes while the current machine's timer counts `duration`.
pub(super) fn scaled(duration: Duration) -> Duration {
    match current().map(|machine| machine.state().timer_ppm) {
        None | Some(TRUE_PPM) => duration,
        Some(ppm) => {
            let ns = duration.as_nanos().saturating_mul(u128::from(TRUE_PPM)) / u128::from(ppm);
            Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
        }
    }
}

pub(super) fn scaled_until(deadline: tokio::time::Instant) -> tokio::time::Instant {
    if current().is_none() {
        return deadline;
    }
    let now = tokio::time::Instant::now();
    now + scaled(deadline.saturating_duration_since(now))
}

/// A task of a machine.
struct Scoped<F> {
    machine: Machine,
    future: Pin<Box<F>>,
}

impl<F: Future> Future for Scoped<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        {
            let mut state = self.machine.state();
            if state.dead {
                return Poll::Pending;
            }
            if state.paused {
                state.waiting.push(context.waker().clone());
                return Poll::Pending;
            }
        }
        let _inside = Inside(CURRENT.replace(Some(self.machine.clone())));
        self.future.as_mut().poll(context)
    }
}

/// Whose tasks were polled before; again when this is dropped, also by a panic.
struct Inside(Option<Machine>);

impl Drop for Inside {
    fn drop(&mut self) {
        CURRENT.set(self.0.take());
    }
}
