//! Where the time and the memory of the running process go: pprof profiles of CPU and heap, and a timeline. One at a time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use jemalloc_pprof::{PROF_CTL, StackProfile, WeightedStack};
use pprof::{ProfilerGuard, ProfilerGuardBuilder, UnresolvedReport};
use samovar_node::trace::Recording;

mod timeline;

/// Samples of the CPU per second of CPU time; a prime, so that it keeps no step with what happens every so often.
const SAMPLES_PER_SECOND: i32 = 97;
/// pprof's function that takes a sample. It stands on every stack, with the return from the signal above it.
const SAMPLER: &str = "perf_signal_handler";

static TAKEN: AtomicBool = AtomicBool::new(false);

/// The right to take a profile, of which there is one; given back when dropped.
pub(crate) struct Turn(());

impl Turn {
    /// `None` while a profile is being taken.
    pub(crate) fn take() -> Option<Self> {
        (!TAKEN.swap(true, Ordering::Acquire)).then_some(Self(()))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        TAKEN.store(false, Ordering::Release);
    }
}

/// What used the CPU in the time from now: gzipped `profile.proto`, in nanoseconds of CPU by stack and thread.
///
/// # Errors
/// When the profiler cannot be started.
pub(crate) async fn cpu(turn: Turn, time: Duration) -> Result<Vec<u8>> {
    let sampling = ProfilerGuardBuilder::default().frequency(SAMPLES_PER_SECOND).build();
    let sampling = sampling.context("starting the CPU profiler")?;
    tokio::time::sleep(time).await;
    off_thread(turn, move || cpu_profile(sampling)).await
}

fn cpu_profile(sampling: ProfilerGuard<'_>) -> Result<Vec<u8>> {
    let report = sampling.report().build_unresolved().context("reading the samples")?;
    drop(sampling);
    Ok(stacks(&report).to_pprof(("cpu", "nanoseconds"), ("cpu", "nanoseconds"), Some("thread".into())))
}

fn stacks(report: &UnresolvedReport) -> StackProfile {
    let mut profile = StackProfile::default();
    let mut sampler = None;
    for (stack, count) in &report.data {
        let mut addresses: Vec<usize> = stack.frames.iter().map(|frame| frame.ip().addr()).collect();
        sampler = sampler.or_else(|| addresses.iter().copied().find(|address| is_sampler(*address)));
        if let Some(at) = addresses.iter().position(|address| Some(*address) == sampler) {
            // Sampler and trampoline of the signal go. What was interrupted stands at the instruction itself and is no
            // return address, one before which is looked up.
            addresses.drain(..(at + 2).min(addresses.len()));
            if let Some(interrupted) = addresses.first_mut() {
                *interrupted += 1;
            }
        }
        // Beyond the first function of a thread there is nothing, which is no address.
        addresses.retain(|address| *address != 0);
        addresses.reverse();
        #[allow(clippy::cast_precision_loss, reason = "the library counts so; exact for 100 days of CPU")]
        let weight = (*count as f64) * 1e9 / f64::from(SAMPLES_PER_SECOND);
        let name = stack.thread_name.get(..stack.thread_name_length).unwrap_or_default();
        profile.push_stack(WeightedStack { addrs: addresses, weight }, Some(&String::from_utf8_lossy(name)));
    }
    profile
}

fn is_sampler(address: usize) -> bool {
    let mut found = false;
    backtrace::resolve(std::ptr::without_provenance_mut(address), |symbol| {
        found |= symbol.name().is_some_and(|name| name.to_string().contains(SAMPLER));
    });
    found
}

/// What holds memory now: gzipped `profile.proto`, in bytes by the stack that asked for them, extrapolated from samples.
///
/// # Errors
/// When the allocator was told at start not to sample.
pub(crate) async fn heap(turn: Turn) -> Result<Vec<u8>> {
    off_thread(turn, || {
        let control =
            PROF_CTL.as_ref().ok_or_else(|| anyhow!("the allocator takes no samples (MALLOC_CONF, prof:false)"))?;
        control.blocking_lock().dump_pprof().context("reading the allocator's samples")
    })
    .await
}

/// What is done when, on which thread, in the time from now: Chrome's trace format.
///
/// # Errors
/// When there is a recording already, which there cannot be for the holder of the turn.
pub(crate) async fn timeline(turn: Turn, time: Duration) -> Result<Vec<u8>> {
    let recording = Recording::begin().ok_or_else(|| anyhow!("a recording runs already"))?;
    tokio::time::sleep(time).await;
    let recorded = recording.finish().ok_or_else(|| anyhow!("the recording is gone"))?;
    off_thread(turn, move || timeline::render(&recorded)).await
}

/// Names of functions are looked up, and much text is made: not on the thread of the listener. The turn lasts until that is
/// done, also when nobody waits for it any more.
async fn off_thread(turn: Turn, work: impl FnOnce() -> Result<Vec<u8>> + Send + 'static) -> Result<Vec<u8>> {
    let done = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        let profile = work();
        // What was read of the binary to name functions would stay for good, some megabytes.
        backtrace::clear_symbol_cache();
        profile
    });
    done.await.context("the profile's thread ended")?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_turn() {
        let turn = Turn::take().expect("nobody else takes profiles here");
        assert!(Turn::take().is_none(), "one at a time");
        drop(turn);
        assert!(Turn::take().is_some(), "given back");
    }
}
