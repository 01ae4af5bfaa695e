//! The one place where this crate spawns, sleeps, tells time and draws random bytes.
//!
//! In production these are tokio, the system clock and the system's random source. A simulation installs a [`World`] on
//! its thread: the same code then runs in virtual time from one seed.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use openraft::AsyncRuntime;
use rand::RngCore;
use rand::SeedableRng;
use rand::rngs::StdRng;

pub mod sim;

/// What a call of the node does. Boxed by the node, because the code of an async function is compiled by whichever crate polls
/// it: another crate would bring all of Raft into the binary once more.
pub type Doing<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a simulation replaces.
pub struct World {
    rng: StdRng,
    origin: tokio::time::Instant,
    origin_ms: u64,
    synchronised: bool,
}

thread_local! {
    static WORLD: RefCell<Option<Rc<RefCell<World>>>> = const { RefCell::new(None) };
}

/// Installs a simulated world on this thread: time is tokio's (paused) clock from `origin_ms`, randomness comes from
/// `seed`. Returns nothing to undo: a simulation owns its thread.
pub fn simulate(seed: u64, origin_ms: u64) {
    let origin = tokio::time::Instant::now();
    let world = World { rng: StdRng::seed_from_u64(seed), origin, origin_ms, synchronised: true };
    WORLD.with(|w| *w.borrow_mut() = Some(Rc::new(RefCell::new(world))));
}

/// Sets the wall clock of this thread's simulated world, and whether the world says that it is synchronised.
pub fn set_simulated_clock(now_ms: u64, synchronised: bool) {
    if let Some(w) = world() {
        let mut w = w.borrow_mut();
        (w.origin, w.origin_ms, w.synchronised) = (tokio::time::Instant::now(), now_ms, synchronised);
    }
}

fn world() -> Option<Rc<RefCell<World>>> {
    WORLD.with(|w| w.borrow().clone())
}

/// Whether this thread runs a simulation.
#[must_use]
pub fn is_simulated() -> bool {
    world().is_some()
}

/// Wall clock, milliseconds since 1970.
#[must_use]
pub fn now_ms() -> u64 {
    if let Some(w) = world() {
        let w = w.borrow();
        let elapsed = tokio::time::Instant::now().duration_since(w.origin);
        let now_ms = w.origin_ms + u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        return now_ms.saturating_add_signed(sim::wall_offset_ms());
    }
    #[allow(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// Whether the machine says that its clock is synchronised; one clock, so one answer per process.
static SYNCHRONISED: AtomicBool = AtomicBool::new(false);

/// Takes note of whether the machine says that its clock is synchronised with a time source. Who runs a node asks the
/// machine, now and then; before the first report the answer is no.
pub fn report_synchronised(yes: bool) {
    SYNCHRONISED.store(yes, Relaxed);
}

/// Whether the wall clock is synchronised, as reported last.
#[must_use]
pub fn is_synchronised() -> bool {
    world().map_or_else(|| SYNCHRONISED.load(Relaxed), |w| w.borrow().synchronised)
}

/// A monotonic instant.
#[must_use]
pub fn instant() -> tokio::time::Instant {
    tokio::time::Instant::now()
}

/// Fills a buffer with random bytes fit for keys and salts.
pub fn fill_random(buffer: &mut [u8]) {
    if let Some(w) = world() {
        w.borrow_mut().rng.fill_bytes(buffer);
        return;
    }
    // ChaCha, seeded and reseeded by the system: as good for keys, without a system call for each salt.
    rand::thread_rng().fill_bytes(buffer);
}

/// Spawns a task on the runtime of the caller.
pub fn spawn<F>(future: F) -> tokio::task::JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    // Only tests have machines: else every task would be in the binary twice.
    #[cfg(test)]
    if let Some(machine) = sim::current() {
        return machine.spawn(future);
    }
    tokio::spawn(boxed(future))
}

/// Boxes what is to be spawned: tokio's part of a task is then in the binary once for each output, and not for each task.
pub fn boxed<T>(future: impl Future<Output = T> + Send + 'static) -> Doing<'static, T> {
    Box::pin(future)
}

/// Sleeps.
pub fn sleep(duration: Duration) -> tokio::time::Sleep {
    tokio::time::sleep(sim::scaled(duration))
}

/// Sleeps until an instant.
pub fn sleep_until(deadline: tokio::time::Instant) -> tokio::time::Sleep {
    tokio::time::sleep_until(sim::scaled_until(deadline))
}

/// Ends a future that takes longer than `duration`.
///
/// # Errors
/// `Elapsed` when it does.
pub fn timeout<F: Future>(duration: Duration, future: F) -> tokio::time::Timeout<F> {
    tokio::time::timeout(sim::scaled(duration), future)
}

/// How long a simulated fsync takes.
pub(crate) fn fsync_latency() -> Duration {
    let mut drawn = [0; 8];
    fill_random(&mut drawn);
    let range = sim::fsync_us();
    Duration::from_micros(range.start + u64::from_le_bytes(drawn) % (range.end - range.start))
}

/// Runs blocking work (an fsync, a rebuild) off the runtime's thread; inline in a simulation.
pub async fn blocking<T, F>(work: F) -> Result<T, tokio::task::JoinError>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    // As in [`boxed`].
    let work: Box<dyn FnOnce() -> T + Send> = Box::new(work);
    if is_simulated() { spawn(async move { work() }).await } else { tokio::task::spawn_blocking(work).await }
}

/// Runs blocking work that nobody waits for off the caller's thread; inline in a simulation, and outside of a runtime.
pub(crate) fn aside(work: impl FnOnce() + Send + 'static) {
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) if !is_simulated() => drop(runtime.spawn_blocking(work)),
        _ => work(),
    }
}

/// Random numbers for openraft's election timers.
pub struct RaftRng;

impl RngCore for RaftRng {
    fn next_u32(&mut self) -> u32 {
        let mut bytes = [0; 4];
        self.fill_bytes(&mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn next_u64(&mut self) -> u64 {
        let mut bytes = [0; 8];
        self.fill_bytes(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn fill_bytes(&mut self, buffer: &mut [u8]) {
        if is_simulated() { fill_random(buffer) } else { rand::thread_rng().fill_bytes(buffer) }
    }

    fn try_fill_bytes(&mut self, buffer: &mut [u8]) -> Result<(), rand::Error> {
        self.fill_bytes(buffer);
        Ok(())
    }
}

/// openraft's view of this module.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Runtime;

type Tokio = openraft::TokioRuntime;

impl AsyncRuntime for Runtime {
    type JoinError = tokio::task::JoinError;
    type JoinHandle<T: openraft::OptionalSend + 'static> = tokio::task::JoinHandle<T>;
    type Sleep = tokio::time::Sleep;
    type Instant = openraft::TokioInstant;
    type TimeoutError = tokio::time::error::Elapsed;
    type Timeout<R, T: Future<Output = R> + openraft::OptionalSend> = tokio::time::Timeout<T>;
    type ThreadLocalRng = RaftRng;
    type OneshotSender<T: openraft::OptionalSend> = <Tokio as AsyncRuntime>::OneshotSender<T>;
    type OneshotReceiver<T: openraft::OptionalSend> = <Tokio as AsyncRuntime>::OneshotReceiver<T>;
    type OneshotReceiverError = tokio::sync::oneshot::error::RecvError;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + Send + 'static,
        T::Output: Send + 'static,
    {
        spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + Send>(duration: Duration, future: F) -> Self::Timeout<R, F> {
        timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + Send>(deadline: Self::Instant, future: F) -> Self::Timeout<R, F> {
        tokio::time::timeout_at(sim::scaled_until(deadline), future)
    }

    fn is_panic(error: &Self::JoinError) -> bool {
        error.is_panic()
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        RaftRng
    }

    fn oneshot<T: openraft::OptionalSend>() -> (Self::OneshotSender<T>, Self::OneshotReceiver<T>) {
        Tokio::oneshot()
    }
}

/// CPU time of the calling thread, lap by lap; stands still in a simulation.
pub(crate) struct CpuTimer(u64);

impl CpuTimer {
    pub(crate) fn start() -> Self {
        Self(thread_cpu_ns())
    }

    /// Nanoseconds of CPU since the last lap.
    pub(crate) fn lap_ns(&mut self) -> u64 {
        let now = thread_cpu_ns();
        now - std::mem::replace(&mut self.0, now)
    }
}

fn thread_cpu_ns() -> u64 {
    if is_simulated() {
        return 0;
    }
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    u64::try_from(t.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(t.tv_nsec).unwrap_or(0)
}
