//! A simulated network: delays, drops, repeats and reorders messages as a seed says, and is cut where a test cuts it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{Either, select};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::oneshot;

use super::{Call, Lost, Peer, Transport};
use crate::node::Node;
use crate::rt::sim::{Machine, sleep_true, spawn_outside};

/// Where a message says of what kind it is, and the kind that has a snapshot installed.
const KIND_AT: usize = 17;
const SNAPSHOT_INSTALL: u8 = 5;

/// How the network treats a message.
#[derive(Debug, Clone)]
pub struct Weather {
    /// Bounds of the delay of one way, in microseconds; drawn for each message, so that messages overtake each other.
    pub delay_us: Range<u64>,
    /// Share of ways that take up to 100 ms longer.
    pub slow: f64,
    /// Share of messages, and of answers, that are lost.
    pub drop: f64,
    /// Share of messages that arrive twice, but none after the answer that it was refused.
    pub repeat: f64,
}

impl Weather {
    /// Nothing is lost.
    #[must_use]
    pub fn fair() -> Self {
        Self { delay_us: 200..2000, slow: 0.0, drop: 0.0, repeat: 0.0 }
    }
}

/// What became of messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Arrived, repetitions not counted.
    pub delivered: u64,
    /// Messages or answers lost, by chance or at a cut.
    pub lost: u64,
    /// Arrived a second time.
    pub repeated: u64,
    /// Sent to a machine that was down.
    pub refused: u64,
    /// Arrived and had a snapshot installed, repetitions not counted.
    pub snapshots: u64,
}

/// The network. Clones name the same one.
#[derive(Clone)]
pub struct SimNetwork(Arc<Mutex<State>>);

struct State {
    rng: StdRng,
    weather: Weather,
    hosts: BTreeMap<u64, (Machine, Node)>,
    cuts: BTreeSet<(u64, u64)>,
    counts: Counts,
    trace: Vec<String>,
    tracing: bool,
}

impl SimNetwork {
    /// A network without hosts.
    #[must_use]
    pub fn new(seed: u64, weather: Weather) -> Self {
        Self(Arc::new(Mutex::new(State {
            rng: StdRng::seed_from_u64(seed),
            weather,
            hosts: BTreeMap::new(),
            cuts: BTreeSet::new(),
            counts: Counts::default(),
            trace: Vec::new(),
            tracing: false,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The transport of one node.
    #[must_use]
    pub fn transport(&self, from: u64) -> Arc<dyn Transport> {
        Arc::new(SimTransport { from, network: self.clone() })
    }

    /// From now on messages for `id` reach this node, on this machine.
    pub fn attach(&self, id: u64, machine: Machine, node: Node) {
        self.state().hosts.insert(id, (machine, node));
    }

    /// Nobody listens there any more; returns the node that did.
    pub fn detach(&self, id: u64) -> Option<(Machine, Node)> {
        self.state().hosts.remove(&id)
    }

    /// Who listens there.
    #[must_use]
    pub fn peek(&self, id: u64) -> Option<(Machine, Node)> {
        self.state().hosts.get(&id).cloned()
    }

    /// Changes how messages are treated.
    pub fn set_weather(&self, weather: Weather) {
        self.state().weather = weather;
    }

    /// Loses every message from one node to another.
    pub fn cut(&self, from: u64, to: u64) {
        self.state().cuts.insert((from, to));
    }

    /// Ends all cuts.
    pub fn heal(&self) {
        self.state().cuts.clear();
    }

    /// What became of messages so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.state().counts
    }

    /// Notes an event of the simulation, with its time.
    pub fn note(&self, event: impl FnOnce() -> String) {
        let mut state = self.state();
        if state.tracing {
            let line = format!("{} {}", crate::rt::now_ms(), event());
            state.trace.push(line);
        }
    }

    /// Begins to keep a trace of all that happens.
    pub fn trace(&self) {
        self.state().tracing = true;
    }

    /// The trace so far.
    #[must_use]
    pub fn take_trace(&self) -> Vec<String> {
        std::mem::take(&mut self.state().trace)
    }

    fn way(&self) -> Way {
        let mut state = self.state();
        let weather = state.weather.clone();
        let mut delay_us = state.rng.gen_range(weather.delay_us);
        if state.rng.gen_bool(weather.slow) {
            delay_us += state.rng.gen_range(5_000..100_000);
        }
        let lost = state.rng.gen_bool(weather.drop);
        let repeated = state.rng.gen_bool(weather.repeat);
        Way { delay: Duration::from_micros(delay_us), lost, repeated }
    }

    /// Whether a message makes its way from one node to another; counts it when it does not.
    fn passes(&self, from: u64, to: u64, way: &Way) -> bool {
        let mut state = self.state();
        let passes = !way.lost && !state.cuts.contains(&(from, to));
        state.counts.lost += u64::from(!passes);
        passes
    }

    fn host(&self, id: u64) -> Option<(Machine, Node)> {
        let mut state = self.state();
        let host = state.hosts.get(&id).cloned();
        match host {
            Some(_) => state.counts.delivered += 1,
            None => state.counts.refused += 1,
        }
        host
    }

    /// Carries a message there and its answer back; `None`: one of the two was lost.
    async fn carry(self, from: u64, to: u64, message: Bytes, ways: [Way; 3]) -> Option<Result<Bytes, Lost>> {
        let [there, back, again] = ways;
        sleep_true(there.delay).await;
        if !self.passes(from, to, &there) {
            self.note(|| format!("{from}>{to} lost: {} bytes, kind {:?}", message.len(), message.get(KIND_AT)));
            return None;
        }
        let Some((machine, node)) = self.host(to) else {
            sleep_true(back.delay).await;
            return Some(Err(Lost::NotSent("nobody listens there".into())));
        };
        self.note(|| format!("{from}>{to}: {} bytes, kind {:?}", message.len(), message.get(KIND_AT)));
        self.state().counts.snapshots += u64::from(message.get(KIND_AT) == Some(&SNAPSHOT_INSTALL));
        let answering = machine.spawn({
            let message = message.clone();
            async move { node.answer(from, message).await }
        });
        let answered = if there.repeated {
            match select(Box::pin(sleep_true(again.delay * 3)), answering).await {
                Either::Left(((), answering)) => {
                    self.deliver_again(from, to, message);
                    // The second one may be done meanwhile.
                    Some(answering.await).filter(|answered| !answered.as_ref().is_ok_and(Node::refuses_writes))
                }
                Either::Right((answered, wait)) => {
                    if !answered.as_ref().is_ok_and(Node::refuses_writes) {
                        let network = self.clone();
                        spawn_outside(async move {
                            wait.await;
                            network.deliver_again(from, to, message);
                        });
                    }
                    Some(answered)
                }
            }
        } else {
            Some(answering.await)
        };
        sleep_true(back.delay).await;
        if !self.passes(to, from, &back) {
            return None;
        }
        answered.map(|answered| answered.map_err(|_| Lost::NoAnswer("the machine went down".into())))
    }

    fn deliver_again(&self, from: u64, to: u64, message: Bytes) {
        let Some((machine, node)) = self.host(to) else { return };
        self.state().counts.repeated += 1;
        machine.spawn(async move { node.answer(from, message).await });
    }
}

/// One message's way in one direction.
struct Way {
    delay: Duration,
    lost: bool,
    repeated: bool,
}

struct SimTransport {
    from: u64,
    network: SimNetwork,
}

impl Transport for SimTransport {
    fn call(&self, to: &Peer, message: Bytes) -> Call {
        let (from, to) = (self.from, to.node);
        let ways = [self.network.way(), self.network.way(), self.network.way()];
        let (sender, receiver) = oneshot::channel();
        let network = self.network.clone();
        spawn_outside(async move {
            if let Some(answer) = network.carry(from, to, message, ways).await {
                // Who asked may have given up.
                let _ = sender.send(answer);
            }
        });
        Box::pin(async move {
            match receiver.await {
                Ok(answer) => answer,
                // Lost: nothing ever comes.
                Err(_) => std::future::pending().await,
            }
        })
    }
}
