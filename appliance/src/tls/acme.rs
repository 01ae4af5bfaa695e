//! A certificate from an authority that speaks ACME (RFC 8555): account, order, challenge, certificate. When one is ordered,
//! and what is done with it, is [`super::site`]'s business.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Error, Result, anyhow, bail};
use instant_acme::{
    Account, AuthorizationStatus, ChallengeType, Identifier, NewAccount, NewOrder, Order, OrderStatus, RetryPolicy,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use samovar_node::rt;

use super::site::Served;
use crate::config::ChallengeKind;

mod challenge;
mod https;
mod responder;
mod store;

pub(crate) use challenge::Pending;
pub(crate) use responder::Responder;
pub(super) use store::Store;

use challenge::Held;
use https::Https;
use store::SavedAccount;

/// Time for one order, with all the authority's checks.
const ORDER_TIMEOUT: Duration = Duration::from_secs(300);
/// How the authority is asked whether it is done.
const POLLING: RetryPolicy =
    RetryPolicy::new().initial_delay(Duration::from_millis(500)).backoff(1.5).timeout(Duration::from_secs(120));
/// The authority does not know the account (RFC 8555, 6.7).
const NO_ACCOUNT: &str = "urn:ietf:params:acme:error:accountDoesNotExist";

/// What is ordered, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AcmeSettings {
    /// URL of the directory.
    pub(crate) directory: String,
    /// DNS names, in order and each once.
    pub(crate) names: Vec<String>,
    /// Mail addresses.
    pub(crate) contacts: Vec<String>,
    /// How names are proved, the first one first.
    pub(crate) challenges: Vec<ChallengeKind>,
    /// Roots that the directory's own certificate must lead to; the system's if none are named.
    pub(crate) roots: Option<PathBuf>,
    /// File with the external account binding.
    pub(crate) account_binding: Option<PathBuf>,
}

/// Why no certificate was got, and when the authority wants to be asked again.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) error: Error,
    pub(super) retry_after: Option<Duration>,
}

/// Gets a certificate and leaves it with the store as issued. `latest_s`: the time that the directory's certificate must hold
/// at, seconds since 1970.
pub(super) async fn order(
    settings: &AcmeSettings,
    kind: ChallengeKind,
    store: &Store,
    pending: &Arc<Pending>,
    latest_s: u64,
) -> Result<(), Failed> {
    let https = match Https::new(settings.roots.as_deref(), latest_s) {
        Ok(https) => https,
        Err(error) => return Err(Failed { error, retry_after: None }),
    };
    let ordering = Ordering { settings, kind, store, pending, https: &https };
    let done = match rt::timeout(ORDER_TIMEOUT, ordering.run()).await {
        Ok(done) => done,
        Err(_) => Err(anyhow!("the authority was not done within {} s", ORDER_TIMEOUT.as_secs())),
    };
    done.map_err(|error| Failed { error, retry_after: https.retry_after() })
}

/// One order on its way.
struct Ordering<'a> {
    settings: &'a AcmeSettings,
    kind: ChallengeKind,
    store: &'a Store,
    pending: &'a Arc<Pending>,
    https: &'a Https,
}

impl Ordering<'_> {
    async fn run(&self) -> Result<()> {
        let account = self.account().await?;
        let names: Vec<Identifier> = self.settings.names.iter().cloned().map(Identifier::Dns).collect();
        let mut order = match account.new_order(&NewOrder::new(&names)).await {
            Ok(order) => order,
            Err(error) => {
                if is_of(&error, NO_ACCOUNT) {
                    self.store.forget_account()?;
                }
                return Err(error).context("the order was not taken");
            }
        };
        // Dropped at the end, with all that it answers.
        let mut held = self.pending.hold();
        self.prove(&mut order, &mut held).await?;
        let key = KeyPair::generate().context("making a TLS key")?;
        order.finalize_csr(&request(&self.settings.names, &key)?).await.context("the request was not taken")?;
        let chain = order.poll_certificate(&POLLING).await.context("no certificate was issued")?;
        drop(held);
        self.keep(&chain, &key)
    }

    /// The account that is there, or a new one.
    async fn account(&self) -> Result<Account> {
        let builder = Account::builder_with_http(Box::new(self.https.clone()));
        let contacts: Vec<String> = self.settings.contacts.iter().map(|mail| format!("mailto:{mail}")).collect();
        let contacts_text: Vec<&str> = contacts.iter().map(String::as_str).collect();
        if let Some(saved) = self.store.account()?.filter(|saved| saved.directory == self.settings.directory) {
            let SavedAccount { directory, contacts: before, credentials } = saved;
            let kept = store::copy(&credentials)?;
            let account = builder.from_credentials(credentials).await.context(UNREACHABLE)?;
            if before != contacts {
                account.update_contacts(&contacts_text).await.context("the contacts were not taken")?;
                self.store.put_account(&SavedAccount { directory, contacts, credentials: kept })?;
            }
            return Ok(account);
        }
        let new = NewAccount { contact: &contacts_text, terms_of_service_agreed: true, only_return_existing: false };
        let binding = self.settings.account_binding.as_deref().map(store::account_binding).transpose()?;
        let directory = self.settings.directory.clone();
        let made = builder.create(&new, directory.clone(), binding.as_ref()).await;
        let (account, credentials) = made.context("no account was made at the authority")?;
        self.store.put_account(&SavedAccount { directory, contacts, credentials })?;
        tracing::info!(account = account.id(), "tls: an account was made at the ACME authority");
        Ok(account)
    }

    /// Answers the authority for each name until it is content.
    async fn prove(&self, order: &mut Order, held: &mut Held) -> Result<()> {
        let kind = match self.kind {
            ChallengeKind::Http01 => ChallengeType::Http01,
            ChallengeKind::TlsAlpn01 => ChallengeType::TlsAlpn01,
        };
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization.context("an authorization cannot be read")?;
            match authorization.status {
                AuthorizationStatus::Valid => continue,
                AuthorizationStatus::Pending => {}
                other => bail!("the authority says {other:?} of {}", authorization.identifier()),
            }
            let name = authorization.identifier().to_string();
            let offered: Vec<_> = authorization.challenges.iter().map(|c| format!("{:?}", c.r#type)).collect();
            let Some(mut challenge) = authorization.challenge(kind.clone()) else {
                let offered = offered.join(", ");
                bail!("the authority offers {offered} for {name}, and not {}: see acme.challenges", self.kind.as_str());
            };
            let proof = challenge.key_authorization();
            match self.kind {
                ChallengeKind::Http01 => held.http(&challenge.token, proof.as_str()),
                ChallengeKind::TlsAlpn01 => held.tls(&name, proof.digest().as_ref())?,
            }
            challenge.set_ready().await.with_context(|| format!("the authority does not check {name}"))?;
        }
        let polled = order.poll_ready(&POLLING).await;
        if matches!(polled, Ok(OrderStatus::Ready)) {
            return Ok(());
        }
        let reasons = refusals(order).await;
        match polled {
            _ if !reasons.is_empty() => bail!("{}", reasons.join("; ")),
            Ok(status) => bail!("the authority says {status:?} of the order and no reason"),
            Err(error) => Err(error).context("the names are not proved"),
        }
    }

    /// Checks what was issued and keeps it.
    fn keep(&self, chain: &str, key: &KeyPair) -> Result<()> {
        let key = key.serialize_pem();
        let issued = Served::of(chain.as_bytes(), key.as_bytes(), "what the authority issued")?;
        if let Some(name) = self.settings.names.iter().find(|name| !issued.is_for(name)) {
            bail!("what the authority issued does not hold for {name}");
        }
        self.store.put_issued(&self.settings.directory, &key, chain)
    }
}

/// What a request that fails at once means.
const UNREACHABLE: &str = "the directory cannot be read";

/// What the authority found wrong with each name.
async fn refusals(order: &mut Order) -> Vec<String> {
    let mut reasons = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        if authorization.refresh().await.is_err() {
            continue;
        }
        let name = authorization.identifier().to_string();
        let errors = authorization.challenges.iter().filter_map(|challenge| challenge.error.as_ref());
        reasons.extend(errors.map(|error| format!("the authority could not prove {name}: {error}")));
    }
    reasons
}

/// A certificate signing request for these names (RFC 2986).
fn request(names: &[String], key: &KeyPair) -> Result<Vec<u8>> {
    let mut params = CertificateParams::new(names.to_vec()).context("a name is no DNS name")?;
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(key).context("making the request")?;
    Ok(request.der().to_vec())
}

fn is_of(error: &instant_acme::Error, kind: &str) -> bool {
    matches!(error, instant_acme::Error::Api(problem) if problem.r#type.as_deref() == Some(kind))
}
