//! The certificates of a running daemon: served, tended, rotated. Connections that are open keep what they have; each new
//! one gets what there is now.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use ring::digest::{SHA256, digest};
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use samovar_node::{Node, rt};

use super::authority::{Fresh, Subject, Times};
use super::clients::ClientKeys;
use super::files::{Files, NextAuthority};
use super::site::{Site, SiteSource};
use super::{Own, validity};
use crate::live::Live;
use crate::metrics::Metrics;
use crate::peers::Peers;
use crate::secrets::Secrets;

/// How often the certificates are looked at. A clock that was wrong at the start and is set right shows within it.
const TEND_INTERVAL: Duration = Duration::from_secs(60);

/// What the daemon proves itself with, and how it changes.
pub(crate) struct Certificates {
    files: Files,
    subject: Subject,
    node: Node,
    peers: Peers,
    metrics: Arc<Metrics>,
    live: Live<ServerConfig>,
    /// The certificate for the site's own names.
    pub(crate) site: Arc<Site>,
    /// What TLS and the API share about client certificates; the same one under every certificate.
    pub(crate) clients: Arc<ClientKeys>,
    /// Of what is served. Locked for a look.
    standing: Mutex<Standing>,
    /// Held while files are replaced and while they are read to be served.
    changing: Mutex<Watch>,
}

/// What was said last, so that the journal is not told each minute.
#[derive(Default)]
struct Watch {
    trouble: Option<String>,
}

/// How the certificates are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    /// End of the node's certificate, seconds since 1970; `None` when it does not say.
    pub(crate) node_not_after_s: Option<u64>,
    /// End of the CA's.
    pub(crate) ca_not_after_s: Option<u64>,
    /// Whether two CAs count.
    pub(crate) rolling_over: bool,
}

impl Certificates {
    /// Loads what is there; what is wrong with it is put right before anybody is served, if the CA's key is there.
    pub(crate) fn open(
        secrets: &Secrets,
        (subject, source): (Subject, SiteSource),
        (node, peers): (Node, Peers),
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>> {
        let files = Files::of(secrets);
        let mut watch = Watch::default();
        let tended = watch.tend(&files, &subject, Times::of(&node));
        let own = Own::read(&files).and_then(|own| own.check().map(|()| own));
        let own = own.map_err(|why| match tended {
            Err(error) => why.context(format!(
                "the node's TLS key and certificate cannot be made again ({error:#}): restore tls/ from a backup"
            )),
            Ok(_) => why,
        })?;
        let clients = Arc::new(ClientKeys::new(own.hash));
        peers.introduce(clients.clone());
        peers.renew();
        let site = Site::open(secrets, source, node.clone(), metrics.clone(), clients.clone());
        let live = Live::shared(own.config(&clients, site.served())?);
        let all = Self {
            files,
            subject,
            node,
            peers,
            metrics,
            live,
            site,
            clients,
            standing: Mutex::default(),
            changing: Mutex::new(watch),
        };
        all.note();
        Ok(Arc::new(all))
    }

    /// TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1, session tickets, client certificates when they are asked for.
    pub(crate) fn server(&self) -> Live<ServerConfig> {
        self.live.clone()
    }

    /// Reads the files again, which somebody may have replaced, and goes by this source for the site's names. On an error what
    /// is served stays.
    pub(crate) fn reload(&self, source: &SiteSource) -> Result<()> {
        self.site.check(source)?;
        let _changing = self.lock();
        self.serve()?;
        self.site.configure(source.clone());
        Ok(())
    }

    /// Tends them until the task is dropped.
    pub(crate) async fn follow(self: Arc<Self>) {
        tokio::join!(self.site.clone().follow(), self.follow_own());
    }

    async fn follow_own(self: &Arc<Self>) {
        loop {
            rt::sleep(TEND_INTERVAL).await;
            let all = self.clone();
            // A panic in it has been told of; the next minute is another try.
            let _ = rt::blocking(move || all.tend()).await;
        }
    }

    fn tend(&self) {
        let mut watch = self.lock();
        let done = watch.tend(&self.files, &self.subject, Times::of(&self.node));
        if done.is_ok_and(|changed| changed)
            && let Err(error) = self.serve()
        {
            tracing::error!("tls: what was made again cannot be served: {error:#}");
        }
    }

    /// A new key and certificate for the node, not in use yet.
    pub(crate) fn make_node(&self) -> Result<NewNode> {
        let _changing = self.lock();
        self.files.fresh_node(&self.subject, Times::of(&self.node)).map(NewNode)
    }

    /// Serves it from now on.
    pub(crate) fn take_node(&self, made: &NewNode) -> Result<()> {
        let _changing = self.lock();
        self.files.replace_node(&made.0)?;
        self.serve()
    }

    /// A CA that may take the place of the one in use.
    pub(crate) fn make_authority(&self) -> Result<NewAuthority> {
        let _changing = self.lock();
        self.files.next_authority(&self.subject, Times::of(&self.node)).map(NewAuthority)
    }

    /// Begins the roll-over to it.
    pub(crate) fn take_authority(&self, made: &NewAuthority) -> Result<()> {
        let _changing = self.lock();
        self.files.roll_over(&made.0)?;
        self.serve()
    }

    /// Ends the roll-over.
    pub(crate) fn finish(&self) -> Result<()> {
        let _changing = self.lock();
        self.files.finish()?;
        self.serve()
    }

    /// The CAs that clients trust, in PEM; the one in use first.
    pub(crate) fn roots_pem(&self) -> Result<String> {
        self.files.roots_pem()
    }

    /// A certificate for the key of a request, and the CAs, in PEM.
    pub(crate) fn certify_request(&self, request: &str, subject: &Subject) -> Result<(String, String)> {
        let _changing = self.lock();
        self.files.certify_request(request, subject, Times::of(&self.node))
    }

    /// The certificate of the CA in use.
    pub(crate) fn authority(&self) -> Result<Shown> {
        let roots = self.files.roots()?;
        roots.first().map(Shown::of).context("there is no CA")
    }

    /// How those are that are served.
    pub(crate) fn standing(&self) -> Standing {
        *self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves what is in the files. The lock is held.
    fn serve(&self) -> Result<()> {
        let own = Own::read(&self.files)?;
        let hash = own.hash;
        self.live.set(own.config(&self.clients, self.site.served())?);
        self.clients.renew(hash);
        self.peers.renew();
        self.note();
        Ok(())
    }

    /// Notes how they are, and tells the metrics when they end. One that does not say so is left out there.
    fn note(&self) {
        let end = |certificates: Result<Vec<CertificateDer<'static>>>| {
            certificates.ok().and_then(|all| validity::of(all.first()?)).map(|life| life.not_after_s)
        };
        let (node_not_after_s, ca_not_after_s) = (end(self.files.chain()), end(self.files.roots()));
        for (certificate, not_after_s) in [("node", node_not_after_s), ("ca", ca_not_after_s)] {
            match not_after_s {
                Some(not_after_s) => self.metrics.certificate(certificate, not_after_s),
                None => tracing::warn!("tls: the certificate of the {certificate} does not say until when it holds"),
            }
        }
        let rolling_over = self.files.is_rolling_over();
        *self.standing.lock().unwrap_or_else(PoisonError::into_inner) =
            Standing { node_not_after_s, ca_not_after_s, rolling_over };
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Watch> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watch {
    /// Tends the files; whether anything was replaced.
    fn tend(&mut self, files: &Files, subject: &Subject, times: Times) -> Result<bool> {
        let tended = files.tend(subject, times);
        let trouble = tended.as_ref().err().map(|error| format!("{error:#}"));
        if let Some(trouble) = &trouble
            && self.trouble.as_ref() != Some(trouble)
        {
            tracing::warn!("tls: {trouble}; what is there is served");
        }
        self.trouble = trouble;
        let done = tended?;
        done.iter().for_each(|what| tracing::warn!("tls: {what}"));
        Ok(!done.is_empty())
    }
}

/// A key and certificate that the node does not use yet.
pub(crate) struct NewNode(Fresh);

/// A CA that is not in use yet.
pub(crate) struct NewAuthority(NextAuthority);

impl NewNode {
    /// Its certificate.
    pub(crate) fn shown(&self) -> Shown {
        Shown::of(&self.0.certificate)
    }
}

impl NewAuthority {
    /// Its certificate.
    pub(crate) fn shown(&self) -> Shown {
        Shown::of(self.0.certificate())
    }
}

/// What is said of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shown {
    /// SHA-256 of the certificate in DER.
    pub(crate) sha256: [u8; 32],
    /// Its end, seconds since 1970; 0 when it does not say.
    pub(crate) not_after_s: u64,
}

impl Shown {
    pub(super) fn of(certificate: &CertificateDer<'static>) -> Self {
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(digest(&SHA256, certificate).as_ref());
        Self { sha256, not_after_s: validity::of(certificate).map_or(0, |life| life.not_after_s) }
    }
}
