//! The certificate for the site's own names: from files that the site keeps, or from an ACME authority. It stands beside the
//! one of the ledger's CA and is chosen by the name that a client asks for; while there is none, or it has ended, that client
//! too is shown the CA's, so that the node stays within reach.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use samovar_node::{Node, rt};
use tokio::sync::Notify;

use super::acme::{self, AcmeSettings, Pending, Store};
use super::authority::Times;
use super::clients::ClientKeys;
use super::files;
use crate::auth::{TLS, TlsCertificate, commit, hex};
use crate::live::Live;
use crate::metrics::Metrics;
use crate::output;
use crate::secrets::Secrets;

mod schedule;
mod served;

pub(super) use served::{Presented, Served};

use schedule::Schedule;

/// Author of the entries about certificates that the node got by itself.
const AUTHOR: &str = "tls";
/// How often it is looked after at least: clocks jump, and files change.
const TEND_INTERVAL: Duration = Duration::from_secs(60);
/// Least pause, so that no accident turns in circles.
const PAUSE_MIN: Duration = Duration::from_secs(1);

/// Where the certificate comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SiteSource {
    /// There is none.
    Local,
    /// From two files in PEM.
    Files {
        /// The certificate and what links it to its root.
        certificate: PathBuf,
        /// Its key.
        key: PathBuf,
    },
    /// From an ACME authority.
    Acme(AcmeSettings),
}

impl SiteSource {
    /// As the configuration has it.
    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Files { .. } => "files",
            Self::Acme(_) => "acme",
        }
    }

    /// Reads the certificate that is there.
    fn read(&self, store: &Store) -> Result<Option<Served>> {
        match self {
            Self::Local => Ok(None),
            Self::Files { certificate, key } => Served::read(certificate, key).map(Some),
            Self::Acme(_) => Ok(store.certificate()?.map(|(served, _)| served)),
        }
    }
}

/// Names and end of the certificate that files hold, for who has no daemon to ask.
pub(super) fn inspect(secrets: &Secrets, source: &SiteSource) -> Result<Option<(Vec<String>, u64)>> {
    let found = source.read(&Store::of(secrets))?;
    Ok(found.map(|found| (found.names, found.life.not_after_s)))
}

/// How the site's certificate is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SiteStanding {
    /// `local`, `files` or `acme`.
    pub(crate) source: &'static str,
    /// The names that it holds for.
    pub(crate) names: Vec<String>,
    /// Its end, seconds since 1970.
    pub(crate) not_after_s: Option<u64>,
    /// Whether clients are shown it.
    pub(crate) served: bool,
    /// What went wrong last, until it went well.
    pub(crate) trouble: Option<String>,
    /// When it is tried again, milliseconds since 1970.
    pub(crate) next_try_ms: Option<u64>,
}

/// The site's certificate in a running daemon.
pub(crate) struct Site {
    source: Live<SiteSource>,
    store: Store,
    node: Node,
    metrics: Arc<Metrics>,
    clients: Arc<ClientKeys>,
    /// What the resolver looks at.
    served: Live<Option<Served>>,
    /// What authorities are answered with.
    pub(super) pending: Arc<Pending>,
    standing: Mutex<SiteStanding>,
    /// Something has changed: look now.
    wake: Notify,
    /// Order whether it is due or not.
    wanted: AtomicBool,
}

impl Site {
    /// Loads what is there. What is wrong with it is told, and no reason not to start.
    pub(super) fn open(
        secrets: &Secrets,
        source: SiteSource,
        node: Node,
        metrics: Arc<Metrics>,
        clients: Arc<ClientKeys>,
    ) -> Arc<Self> {
        let site = Self {
            store: Store::of(secrets),
            node,
            metrics,
            clients,
            served: Live::new(None),
            pending: Arc::default(),
            standing: Mutex::new(SiteStanding { source: source.as_str(), ..SiteStanding::default() }),
            wake: Notify::new(),
            wanted: AtomicBool::new(false),
            source: Live::new(source),
        };
        let found = site.source.get().read(&site.store);
        site.tell(&found.map(|found| site.show(found)), None);
        Arc::new(site)
    }

    /// What the resolver of handshakes looks at.
    pub(super) fn served(&self) -> Live<Option<Served>> {
        self.served.clone()
    }

    /// Checks a source before it is taken: files must be there and good.
    pub(super) fn check(&self, source: &SiteSource) -> Result<()> {
        match source {
            SiteSource::Files { .. } => source.read(&self.store).map(drop),
            _ => Ok(()),
        }
    }

    /// Goes by this source from now on, and tries at once what had to wait.
    pub(super) fn configure(&self, source: SiteSource) {
        self.source.set(Arc::new(source));
        self.wake.notify_one();
    }

    /// Orders a new certificate, if there is an authority to ask; whether there is.
    pub(crate) fn order(&self) -> bool {
        let asked = matches!(*self.source.get(), SiteSource::Acme(_));
        if asked {
            self.wanted.store(true, Relaxed);
            self.wake.notify_one();
        }
        asked
    }

    /// How it is.
    pub(crate) fn standing(&self) -> SiteStanding {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Looks after it until the task is dropped.
    pub(super) async fn follow(self: Arc<Self>) {
        let mut schedule = Schedule::default();
        loop {
            let done = self.tend(&mut schedule).await;
            self.tell(&done, schedule.wait());
            let pause = schedule.pause(TEND_INTERVAL).max(PAUSE_MIN);
            tokio::select! {
                () = rt::sleep(pause) => {}
                () = self.wake.notified() => schedule.clear(),
            }
        }
    }

    /// One look. An error is what is wrong; what is served stays.
    async fn tend(&self, schedule: &mut Schedule) -> Result<()> {
        let source = self.source.get();
        let found = self.read(&source).await;
        match &*source {
            SiteSource::Local => self.show(None),
            SiteSource::Files { .. } => {
                let found = found?.context("no certificate was read")?;
                self.record(&found).await?;
                self.show(Some(found));
            }
            SiteSource::Acme(settings) => {
                match found {
                    Ok(found) => self.show(found),
                    // Whatever it is, a new one will be better.
                    Err(error) => tracing::warn!("tls: {error:#}; a new certificate is ordered"),
                }
                self.tend_acme(settings, schedule).await?;
            }
        }
        self.in_time()
    }

    async fn read(&self, source: &Arc<SiteSource>) -> Result<Option<Served>> {
        let (source, store) = (source.clone(), self.store.clone());
        rt::blocking(move || source.read(&store)).await.map_err(|e| anyhow!("{e}"))?
    }

    /// Puts what was issued into use, and orders when it is time.
    async fn tend_acme(&self, settings: &AcmeSettings, schedule: &mut Schedule) -> Result<()> {
        self.take_issued().await?;
        let why = self.due(settings, schedule);
        let Some(why) = why.filter(|_| schedule.may_try()) else {
            // Between two tries the reason of the last one stands.
            return schedule.failure().map_or(Ok(()), Err);
        };
        tracing::info!(names = settings.names.join(" "), "tls: a certificate is ordered, because {why}");
        let challenge = schedule.challenge(&settings.challenges);
        let latest_s = Times::of(&self.node).latest_s();
        let ordered = acme::order(settings, challenge, &self.store, &self.pending, latest_s).await;
        self.metrics.acme_order(ordered.is_ok(), rt::now_ms() / 1000);
        match ordered {
            Ok(()) => {
                self.wanted.store(false, Relaxed);
                schedule.succeeded();
                self.take_issued().await
            }
            Err(failed) => {
                let error = failed.error.context(format!("ordering a certificate by {}", challenge.as_str()));
                schedule.failed(failed.retry_after, &error);
                Err(error)
            }
        }
    }

    /// Crash order: the issued certificate beside the one in use, its entry, its name. After a crash behind the entry it is
    /// found here and taken.
    async fn take_issued(&self) -> Result<()> {
        let Some(issued) = self.store.issued()? else { return Ok(()) };
        self.record(&issued).await?;
        self.store.take_issued()?;
        tracing::info!(
            names = issued.names.join(" "),
            until = output::time(issued.life.not_after_s.saturating_mul(1000)),
            "tls: the site has a new certificate"
        );
        self.show(Some(issued));
        Ok(())
    }

    /// Why a certificate is to be ordered, if it is. The node's sure time decides, since an order costs; beside it that the
    /// certificate may have ended.
    fn due(&self, settings: &AcmeSettings, schedule: &mut Schedule) -> Option<String> {
        if self.wanted.load(Relaxed) {
            return Some("it was asked for".to_owned());
        }
        let found = match self.store.certificate() {
            Ok(Some(found)) => found,
            Ok(None) => return Some("there is none".to_owned()),
            Err(error) => return Some(format!("what is there is not good: {error:#}")),
        };
        let (served, directory) = found;
        if directory != settings.directory {
            return Some("the one that is there is from another directory".to_owned());
        }
        if !served.is_for_all(&settings.names) {
            return Some("the one that is there has other names".to_owned());
        }
        let clock = self.node.clock();
        let (sure_s, latest_s) = (clock.sure_ms / 1000, Times::of(&self.node).latest_s());
        let leaf = served.key.cert.first()?;
        let renewal_s = files::renewal_s(leaf, served.life);
        schedule.due_at(renewal_s.saturating_sub(sure_s), served.life);
        if served.life.not_after_s < latest_s {
            return Some("the one that is there has ended".to_owned()).filter(|_| schedule.is_rested());
        }
        (renewal_s <= sure_s).then(|| "two thirds of its life are over".to_owned()).filter(|_| schedule.is_rested())
    }

    /// Shows it to clients, unless it has certainly ended.
    fn show(&self, found: Option<Served>) {
        let times = Times::of(&self.node);
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        standing.source = self.source.get().as_str();
        standing.names = found.as_ref().map(|f| f.names.clone()).unwrap_or_default();
        standing.not_after_s = found.as_ref().map(|f| f.life.not_after_s);
        let good = found.filter(|f| f.may_hold(times.earliest_s(), times.latest_s()));
        standing.served = good.is_some();
        self.clients.set_site(good.as_ref().map(|g| g.key_hash));
        self.metrics.site_certificate(standing.not_after_s);
        drop(standing);
        if self.served.get().as_ref().as_ref().map(|s| s.shown) != good.as_ref().map(|g| g.shown) {
            self.served.set(Arc::new(good));
        }
    }

    /// That what clients are to be shown is within its time.
    fn in_time(&self) -> Result<()> {
        let standing = self.standing();
        match standing.not_after_s {
            Some(end_s) if !standing.served => Err(anyhow!(
                "the certificate for {} does not hold now, its end is {}: clients are shown the one of the ledger's CA",
                standing.names.join(", "),
                output::time(end_s.saturating_mul(1000))
            )),
            _ => Ok(()),
        }
    }

    /// Makes the entry of a certificate, unless the newest one of its kind is this one's.
    async fn record(&self, found: &Served) -> Result<()> {
        const ID: &str = "site";
        let told = |problem| anyhow!("the entry of the site's certificate cannot be made: {problem:?}");
        let before = TLS.find(&self.node, ID).await.map_err(told)?;
        let sha256 = hex(&found.shown.sha256);
        if before.is_some_and(|row| row.row.sha256 == sha256) {
            return Ok(());
        }
        let node = self.node.status().name;
        let row = TlsCertificate { sha256, not_after_s: found.life.not_after_s, node, rolling_over: false };
        let operation = TLS.put(ID, &row).map_err(told)?;
        commit(&self.node, AUTHOR, Vec::new(), vec![operation]).await.map(drop).map_err(told)
    }

    /// Notes what is wrong, and tells the journal when it is something new.
    fn tell(&self, done: &Result<()>, next_try: Option<Duration>) {
        let trouble = done.as_ref().err().map(|error| format!("{error:#}"));
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        match (&trouble, &standing.trouble) {
            (Some(new), old) if old.as_ref() != Some(new) => tracing::warn!("tls: {new}"),
            (None, Some(_)) => tracing::info!("tls: the site's certificate is well again"),
            _ => {}
        }
        standing.trouble = trouble;
        let in_ms = next_try.and_then(|wait| u64::try_from(wait.as_millis()).ok());
        standing.next_try_ms = in_ms.map(|wait| rt::now_ms().saturating_add(wait));
    }
}
