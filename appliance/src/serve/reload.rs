//! A reload: certificates, limits, quotas, level of the journal and who may read metrics, all of them or none.
//! Connections and streams that are open stay; requests that come next go by what is new. A bad file changes nothing.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use samovar_node::Node;
use tokio::sync::mpsc;

use super::{heartbeat, notify};
use crate::api::Openness;
use crate::config::Config;
use crate::http::Limits;
use crate::journal;
use crate::live::Live;
use crate::quota::Quotas;
use crate::tls::Certificates;

/// Where the configuration comes from, each time it is read.
#[derive(Debug, Clone, Default)]
pub(crate) struct Source {
    /// The file that was named.
    pub(crate) file: Option<PathBuf>,
    /// The data directory that was named.
    pub(crate) data: Option<PathBuf>,
}

impl Source {
    /// Reads and checks it.
    pub(crate) fn load(&self) -> Result<Config> {
        Ok(Config::load(self.file.as_deref(), self.data.as_deref())?)
    }
}

/// What a reload replaces.
pub(super) struct Settings {
    source: Source,
    /// The configuration in force.
    config: Config,
    certificates: Arc<Certificates>,
    pub(super) limits: Live<Limits>,
    pub(super) openness: Live<Openness>,
    pub(super) quotas: Live<Quotas>,
}

impl Settings {
    /// As the daemon starts with them.
    pub(super) fn new(source: Source, config: Config, certificates: Arc<Certificates>) -> Self {
        let limits = Live::new(config.limits.clone());
        let openness = Live::new(Openness::of(&config));
        let quotas = Live::new(config.quotas.clone());
        Self { source, config, certificates, limits, openness, quotas }
    }

    /// Reloads whenever it is asked to, until nobody can ask any more.
    pub(super) async fn follow(mut self, mut asked: mpsc::Receiver<()>, node: Node) {
        while asked.recv().await.is_some() {
            notify::reloading();
            let note = match self.reload() {
                Ok(waiting) if waiting.is_empty() => String::new(),
                Ok(waiting) => format!("; a restart is needed for {}", waiting.join(", ")),
                Err(error) => {
                    tracing::error!("the reload failed, what was in force stays: {error:#}");
                    format!("; the last reload failed, what was in force stays: {error:#}")
                }
            };
            notify::ready(&format!("{}{note}", heartbeat::describe(&node.status())));
        }
    }

    /// Reads everything first, then replaces it; the certificates last of what can fail. Returns the keys whose new values wait for a restart.
    fn reload(&mut self) -> Result<Vec<&'static str>> {
        let new = self.source.load()?;
        self.certificates.reload(&new.site).context("reading the certificates again")?;
        let waiting = needs_restart(&self.config, &new);
        self.limits.set(Arc::new(new.limits.clone()));
        self.openness.set(Arc::new(Openness::of(&new)));
        self.quotas.set(Arc::new(new.quotas.clone()));
        journal::configure(new.level);
        // What waits for a restart is still in force as it was.
        self.config = Config {
            limits: new.limits,
            site: new.site,
            quotas: new.quotas,
            public: new.public,
            metrics_allow: new.metrics_allow,
            level: new.level,
            ..self.config.clone()
        };
        tracing::info!(waiting_for_restart = waiting.join(", "), "configuration and certificates were read again");
        Ok(waiting)
    }
}

/// Keys that differ and cannot change while the daemon runs.
fn needs_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    let keys = [
        ("node.data", old.data != new.data),
        ("node.kek", old.kek != new.kek),
        ("listen.api", old.listen != new.listen),
        ("peers.listen", old.peers_listen != new.peers_listen),
        ("peers.address", old.peers_address != new.peers_address),
        ("acme.listen", old.acme_listen != new.acme_listen),
        ("tls.names", old.tls_names != new.tls_names),
        ("store.reserve", old.reserve_bytes != new.reserve_bytes),
        ("store.queue", old.queue_max != new.queue_max),
        ("store.cache", old.cache_bytes != new.cache_bytes),
        ("blobs.size", old.blob_bytes_max != new.blob_bytes_max),
        ("blobs.keep_unnamed", old.unnamed_blob_age != new.unnamed_blob_age),
        ("auth.session_life", old.session_life_ms != new.session_life_ms),
    ];
    keys.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect()
}
