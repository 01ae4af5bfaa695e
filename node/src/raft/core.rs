//! The running instance of openraft. Its core can end by itself where nothing is lost and nothing is wrong with the disk (a
//! higher vote that meets a snapshot in flight, for one); it is then started again over the same raft log and ledger.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use openraft::Raft;

use super::log::RaftLog;
use super::peers::Link;
use super::state::{Durable, StateMachine};
use super::{TypeConfig, config};
use crate::error::Error;
use crate::ledger::Ledger;
use crate::planted::{Bug, planted};
use crate::rt;

/// How long the state machine of an ended core may take to come to its end.
const END_WAIT: Duration = Duration::from_secs(60);
/// How long the core may take to stop.
const STOP_WAIT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(2);
/// More starts than these within [`RESTART_WINDOW`], and it is no accident any more.
const RESTARTS_MAX: u32 = 5;
const RESTART_WINDOW: Duration = Duration::from_secs(60);
/// Why a node ends that could not put a snapshot in place.
pub(crate) const SNAPSHOT_GONE: &str = "a snapshot from a peer was not put in place, most likely since something in it was erased meanwhile: this node is to be \
     started again, and gets another one";

/// Held by the one state machine that may apply; says whether it failed.
#[derive(Default)]
pub(super) struct Applying {
    failed: AtomicBool,
}

impl Applying {
    /// What is applied is not known to equal the peers' any more: no core may be started on it again.
    pub(super) fn fail(&self) {
        self.failed.store(true, Relaxed);
    }
}

/// The instance in use. Clones name the same one.
#[derive(Clone)]
pub(crate) struct Core(Arc<Parts>);

struct Parts {
    node: u64,
    link: Link,
    log: RaftLog,
    durable: Durable,
    applying: Arc<Applying>,
    /// `None` before the first start only.
    raft: RwLock<Option<Raft<TypeConfig>>>,
    restarts: AtomicU64,
}

impl Core {
    pub(super) async fn start(node: u64, link: Link, log: RaftLog, durable: Durable) -> Result<Self, Error> {
        let (applying, raft) = (Arc::default(), RwLock::new(None));
        let core = Self(Arc::new(Parts { node, link, log, durable, applying, raft, restarts: AtomicU64::new(0) }));
        core.begin().await?;
        Ok(core)
    }

    /// Boxed here, since the future of an async function is compiled by whichever crate polls it: the start and the
    /// supervisor would each bring all of openraft into the binary.
    fn begin(&self) -> Pin<Box<dyn Future<Output = Result<(), Error>> + Send + '_>> {
        Box::pin(async move {
            let Parts { node, link, log, durable, applying, raft, .. } = &*self.0;
            let ledger = Arc::clone(durable.ledger());
            let machine = StateMachine::new(ledger, durable.clone(), log.clone(), Arc::clone(applying))?;
            let begun = Raft::new(*node, Arc::new(config()?), link.clone(), log.clone(), machine).await;
            let begun = begun.map_err(|e| Error::Corrupt(format!("the raft log cannot be used: {e}")))?;
            // Before it has read its vote it says that it is in term 0. One that ends here is noticed as any other that does.
            let _ = begun.is_initialized().await;
            *raft.write().unwrap_or_else(PoisonError::into_inner) = Some(begun);
            Ok(())
        })
    }

    /// The instance in use.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while it is being started again.
    pub(super) fn raft(&self) -> Result<Raft<TypeConfig>, Error> {
        let raft = self.0.raft.read().unwrap_or_else(PoisonError::into_inner).clone();
        raft.ok_or_else(|| Error::Unavailable("the Raft core is being started again".into()))
    }

    pub(super) fn ledger(&self) -> &Arc<Ledger> {
        self.0.durable.ledger()
    }

    pub(super) fn log(&self) -> &RaftLog {
        &self.0.log
    }

    pub(super) fn link(&self) -> &Link {
        &self.0.link
    }

    pub(super) fn node(&self) -> u64 {
        self.0.node
    }

    /// How often an ended core was started again.
    pub(crate) fn restarts(&self) -> u64 {
        self.0.restarts.load(Relaxed)
    }

    /// Starts the core again whenever it ends by itself; resolves when that would not help, with the reason.
    pub(crate) async fn supervise(&self) -> Error {
        let (mut window, mut restarts) = (rt::instant(), 0);
        loop {
            let ended = self.ended().await;
            if let Some(what) = self.ledger().suspicion.noted() {
                return Error::DamagedStore(what);
            }
            if planted(Bug::CoreStaysEnded) || self.has_failed() || self.0.log.ping().await.is_err() {
                return ended;
            }
            if window.elapsed() > RESTART_WINDOW {
                (window, restarts) = (rt::instant(), 0);
            }
            restarts += 1;
            if restarts > RESTARTS_MAX {
                return ended;
            }
            tracing::error!(error = %ended, "the Raft core is started again");
            if let Err(error) = self.restart().await {
                return error;
            }
            self.0.restarts.fetch_add(1, Relaxed);
        }
    }

    /// Resolves when the core has ended by itself, with the reason.
    async fn ended(&self) -> Error {
        let mut metrics = match self.raft() {
            Ok(raft) => raft.metrics(),
            Err(error) => return error,
        };
        loop {
            let running = metrics.borrow_and_update().running_state.clone();
            if let Err(fatal) = running {
                return Error::Unavailable(format!("the Raft core has stopped: {fatal}"));
            }
            if metrics.changed().await.is_err() {
                return Error::Unavailable("the Raft core has stopped".into());
            }
        }
    }

    async fn restart(&self) -> Result<(), Error> {
        self.stop().await;
        // Two state machines on one ledger would apply an entry twice.
        let deadline = rt::instant() + END_WAIT;
        while Arc::strong_count(&self.0.applying) > 1 {
            if rt::instant() > deadline {
                return Err(Error::Unavailable("apply did not end with the Raft core that it belonged to".into()));
            }
            rt::sleep(POLL).await;
        }
        // openraft purges its log before a snapshot is in place. What it hid comes back when the log is opened again.
        if self.0.log.purged() > self.0.durable.applied() {
            return Err(Error::Unavailable(SNAPSHOT_GONE.into()));
        }
        self.begin().await
    }

    /// Stops the core. Writes in flight are answered before. What it has not let go of in time ends with the process: what
    /// is acknowledged is durable already.
    pub(super) async fn stop(&self) {
        let raft = self.0.raft.write().unwrap_or_else(PoisonError::into_inner).take();
        let Some(raft) = raft else { return };
        match rt::timeout(STOP_WAIT, raft.shutdown()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the Raft core did not stop cleanly"),
            Err(_) => tracing::error!("the Raft core did not stop within {} s", STOP_WAIT.as_secs()),
        }
    }

    /// Ends the core of a leader that commits nothing although its peers hear it: they would for ever. It is started again as
    /// after any end, and what the leader knew of its peers is made anew by whoever leads then.
    pub(super) fn give_up_lead(&self) {
        tracing::error!("this leader commits nothing, though a majority of the voters answers: it gives up the lead");
        if let Ok(raft) = self.raft() {
            rt::spawn(async move { raft.shutdown().await.ok() });
        }
    }

    /// Whether apply has failed: this node takes part in nothing any more, and is about to end.
    pub(super) fn has_failed(&self) -> bool {
        self.0.applying.failed.load(Relaxed)
    }
}
