//! Orders certificates (ACME, RFC 8555) while this server leads. What is to be done is decided in `lightbyte_plan`; here it is done,
//! and what came of it goes to the planner of secrets.
//!
//! ```text
//!   next_step ──Order──▶ account, order, challenges ──┐
//!        ▲    ──Answer─▶ ready, key, certificate ─────┼──▶ news ──▶ planner ──▶ choice ──▶ next_step
//!        └──────────────────── failed ────────────────┘
//! ```
//!
//! A key is made here with the order, and sealed before it leaves this file: whoever leads may go on. The account's key is sealed as well.

mod http;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use instant_acme::{
    Account, AccountBuilder, AccountCredentials, AuthorizationHandle, AuthorizationStatus, ChallengeHandle,
    ChallengeType, Identifier, NewAccount, NewOrder, OrderStatus, RetryPolicy,
};
use lightbyte_api::kinds::secret::{
    Account as SealedAccount, Acme, CHAIN_BYTES_MAX, CHALLENGE_LABEL, Order, Pair, PrivateKey, Proof, Text,
};
use lightbyte_api::topology::{Challenge, SecretText};
use lightbyte_api::{Kind, Name, Uid};
use lightbyte_certificate::only_certificates;
use lightbyte_plan::Reconciler;
use lightbyte_plan::planner::secret::acme::{News, Step, next_step};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use tokio::task::{Id, JoinSet};
use tokio::time::{Instant, timeout};

use crate::sealing::SealingKeys;
use crate::{Server, clock, sealing};

/// How often it is looked whether something is to be done.
const LOOK_PERIOD: Duration = Duration::from_secs(1);
/// Steps of different secrets at once.
const STEPS_MAX: usize = 4;
/// How long a step may take: an authority looks more than once, and from several places.
const STEP_WITHIN: Duration = Duration::from_secs(120);
/// How the state of an order is asked for.
const RETRIES: RetryPolicy = RetryPolicy::new()
    .initial_delay(Duration::from_millis(500))
    .backoff(1.2)
    .timeout(Duration::from_secs(50));
/// How much is kept of what an authority says, in characters.
const BECAUSE_CHARS_MAX: usize = 500;

/// The steps that are under way.
#[derive(Default)]
pub(crate) struct Issuer {
    steps: JoinSet<Result<Option<News>>>,
    objects: BTreeMap<Id, Doing>,
    looked_at: Option<Instant>,
}

/// Whose step it is, and what is told if it fails.
struct Doing {
    uid: Uid,
    acme: Acme,
    url: Option<String>,
}

impl Issuer {
    /// Begins what is to be done, if it is time to look and the view may be acted upon.
    pub(crate) fn look(&mut self, server: &Arc<Server>, reconciler: &Reconciler) {
        if !reconciler.may_act() || self.looked_at.is_some_and(|at| at.elapsed() < LOOK_PERIOD) {
            return;
        }
        self.looked_at = Some(Instant::now());
        let (view, now) = (reconciler.view(), clock::now());
        for object in view.objects_of(Kind::Secret) {
            if self.steps.len() >= STEPS_MAX {
                return;
            }
            let Some(uid) = view.asked(object).map(|asked| asked.meta.uid) else { continue };
            if self.objects.values().any(|doing| doing.uid == uid) {
                continue;
            }
            let step = next_step(view, object, reconciler.news_of(uid), now);
            let (acme, url) = match &step {
                Step::Rest => continue,
                Step::Order { acme, .. } => (acme.clone(), None),
                Step::Answer { order, .. } => (order.acme.clone(), Some(order.url.clone())),
            };
            tracing::info!(secret = %object.name, directory = acme.directory, ordered = url.is_some(), "asks for a certificate");
            let (keys, name) = (server.sealing_keys.clone(), object.name.clone());
            let zone = server.names.zone().to_owned();
            let task = self.steps.spawn(async move {
                let keys =
                    keys.context("this server has no sealing key; start it with --sealing-key FILE")?;
                let customer = Customer { keys, name, zone };
                timeout(STEP_WITHIN, customer.perform(step)).await.context("it took too long")?
            });
            self.objects.insert(task.id(), Doing { uid, acme, url });
        }
    }

    /// What came of a step, if anything; never, while none is under way.
    pub(crate) async fn done(&mut self) -> (Uid, Option<News>) {
        loop {
            let (id, news) = match self.steps.join_next_with_id().await {
                None => std::future::pending().await,
                Some(Ok((id, news))) => (id, news),
                Some(Err(error)) => (error.id(), Err(anyhow!("the step broke off"))),
            };
            let Some(Doing { uid, acme, url }) = self.objects.remove(&id) else { continue };
            let news = news.unwrap_or_else(|error| Some(failed(acme, url, &error, None)));
            if let Some(News::Failed { because, .. }) = &news {
                tracing::warn!(secret = %uid, because, "no certificate came");
            }
            return (uid, news);
        }
    }
}

fn failed(acme: Acme, url: Option<String>, error: &anyhow::Error, account: Option<SealedAccount>) -> News {
    News::Failed { acme, url, because: harmless(&format!("{error:#}")), at: clock::now(), account }
}

/// What somebody far away says, for people to read.
fn harmless(text: &str) -> String {
    text.chars().take(BECAUSE_CHARS_MAX).map(|one| if one.is_control() { ' ' } else { one }).collect()
}

/// Who wants a certificate.
struct Customer {
    keys: Arc<SealingKeys>,
    /// The secret's.
    name: Name,
    /// The cluster's zone.
    zone: String,
}

impl Customer {
    /// What came of a step; nothing, where the authority needs more time.
    async fn perform(&self, step: Step) -> Result<Option<News>> {
        let builder = || Ok::<_, anyhow::Error>(Account::builder_with_http(Box::new(http::Https::new()?)));
        match step {
            Step::Rest => bail!("there is nothing to do"),
            Step::Order { acme, account } => self.order(builder, acme, account).await.map(Some),
            Step::Answer { order, account } => {
                let account = builder()?.from_credentials(self.opened(&account)?).await?;
                self.answer(&account, order).await
            }
        }
    }

    fn sealed(&self, text: &SecretText) -> Result<String> {
        self.keys.seal(&self.name, text).context("the system gives no random bytes to seal with")
    }

    fn unsealed(&self, sealed: &str) -> Result<SecretText> {
        self.keys
            .open(&self.name, sealed)
            .context("no sealing key of this server opens what it keeps of the order")
    }

    /// The account that was sealed.
    fn opened(&self, account: &SealedAccount) -> Result<AccountCredentials> {
        // Its error would show what it could not read.
        serde_json::from_str(self.unsealed(&account.sealed)?.reveal())
            .map_err(|_| anyhow!("the account cannot be read"))
    }

    /// Orders with the account that there is, or with a new one where there is none that is of use.
    async fn order(
        &self,
        builder: impl Fn() -> Result<AccountBuilder>,
        acme: Acme,
        account: Option<SealedAccount>,
    ) -> Result<News> {
        if let Some(account) = account
            && let Ok(credentials) = self.opened(&account)
        {
            let opened = builder()?.from_credentials(credentials).await?;
            match self.order_with(&opened, &acme).await {
                Ok(order) => return Ok(News::Ordered { account, order }),
                Err(error) if is_forgotten(&error) => {}
                Err(error) => return Err(error),
            }
        }
        let (opened, account) = self.make_account(builder()?, &acme).await?;
        Ok(match self.order_with(&opened, &acme).await {
            Ok(order) => News::Ordered { account, order },
            Err(error) => failed(acme, None, &error, Some(account)),
        })
    }

    async fn order_with(&self, account: &Account, acme: &Acme) -> Result<Order> {
        let identifiers: Vec<Identifier> = acme.names.iter().cloned().map(Identifier::Dns).collect();
        let mut order = account.new_order(&NewOrder::new(&identifiers)).await?;
        let (mut challenges, mut texts) = (Vec::new(), Vec::new());
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            // One that is shown already need not be shown again.
            if authorization.status != AuthorizationStatus::Pending {
                continue;
            }
            let challenge = challenge_of(&mut authorization, acme.challenge)?;
            let key = challenge.key_authorization();
            match acme.challenge {
                Proof::Http => {
                    let challenge =
                        Challenge { token: challenge.token.clone(), answer: key.as_str().to_owned() };
                    challenge.check("challenge")?;
                    challenges.push(challenge);
                }
                Proof::Dns => {
                    texts.push(self.text(acme, challenge.identifier().identifier, key.dns_value())?);
                }
            }
        }
        let key = KeyPair::generate().context("make a key")?.serialize_pem();
        let key = self.sealed(&SecretText::new(key))?;
        let (acme, url) = (acme.clone(), order.url().to_owned());
        Ok(Order { acme, url, key, challenges, texts, since: clock::now() })
    }

    /// The text that shows that a name leads here.
    fn text(&self, acme: &Acme, identifier: &Identifier, value: String) -> Result<Text> {
        let Identifier::Dns(name) = identifier else { bail!("it asks for something else than a name") };
        // What an authority says does not come to stand in the zone.
        if !acme.names.iter().any(|wanted| wanted.strip_prefix("*.").unwrap_or(wanted) == name) {
            bail!("it asks for {name}, which is not ordered");
        }
        let is_ours =
            name.strip_suffix(&self.zone).is_some_and(|above| above.is_empty() || above.ends_with('.'));
        if !is_ours {
            bail!(
                "{name} is not in the zone {}, so that nobody here can show it by `challenge: dns`",
                self.zone
            );
        }
        Ok(Text { name: format!("{CHALLENGE_LABEL}.{name}"), value })
    }

    async fn make_account(&self, builder: AccountBuilder, acme: &Acme) -> Result<(Account, SealedAccount)> {
        let contact: Vec<String> = acme.contact.iter().map(|address| format!("mailto:{address}")).collect();
        let contact: Vec<&str> = contact.iter().map(String::as_str).collect();
        let wanted =
            NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
        let (account, credentials) = builder.create(&wanted, acme.directory.clone(), None).await?;
        let text = SecretText::new(serde_json::to_string(&credentials).context("write the account")?);
        let sealed = self.sealed(&text)?;
        Ok((account, SealedAccount { directory: acme.directory.clone(), sealed }))
    }

    /// Goes on with an order, wherever it stands.
    async fn answer(&self, account: &Account, order: Order) -> Result<Option<News>> {
        match self.certificate(account, &order).await {
            Ok(pair) => Ok(Some(News::Issued { url: order.url, pair })),
            // The key is kept with the order, and so is what the authority has seen.
            Err(error) if matches!(error.downcast_ref(), Some(instant_acme::Error::Timeout(_))) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn certificate(&self, account: &Account, kept: &Order) -> Result<Pair> {
        let key = self.unsealed(&kept.key)?;
        let mut order = account.order(kept.url.clone()).await?;
        if order.state().status == OrderStatus::Pending {
            let mut authorizations = order.authorizations();
            while let Some(authorization) = authorizations.next().await {
                let mut authorization = authorization?;
                if authorization.status == AuthorizationStatus::Pending {
                    challenge_of(&mut authorization, kept.acme.challenge)?.set_ready().await?;
                }
            }
            match order.poll_ready(&RETRIES).await {
                // It does not say of which name.
                Err(error @ instant_acme::Error::Api(_)) => {
                    bail!(refusal(&mut order).await?.unwrap_or_else(|| error.to_string()))
                }
                state => state?,
            };
        }
        match order.state().status {
            OrderStatus::Ready => {
                let mut wanted = CertificateParams::new(kept.acme.names.clone())?;
                wanted.distinguished_name = DistinguishedName::new();
                let request = wanted.serialize_request(&KeyPair::from_pem(key.reveal())?)?;
                order.finalize_csr(request.der()).await?;
            }
            OrderStatus::Processing | OrderStatus::Valid => {}
            OrderStatus::Pending | OrderStatus::Invalid => {
                let refusal = refusal(&mut order).await?;
                bail!(refusal.unwrap_or_else(|| format!("its order is {:?}", order.state().status)));
            }
        }
        let chain = only_certificates(&order.poll_certificate(&RETRIES).await?)?;
        if chain.len() > CHAIN_BYTES_MAX {
            bail!("its chain has more than {CHAIN_BYTES_MAX} bytes");
        }
        sealing::judge(&chain, &key).map_err(|problem| anyhow!("it cannot be shown: {problem}"))?;
        Ok(Pair { chain, key: PrivateKey::Sealed(kept.key.clone()) })
    }
}

/// Whether the authority does not know the account any more (RFC 8555, 6.7).
fn is_forgotten(error: &anyhow::Error) -> bool {
    let kind = match error.downcast_ref() {
        Some(instant_acme::Error::Api(problem)) => problem.r#type.as_deref(),
        _ => None,
    };
    kind == Some("urn:ietf:params:acme:error:accountDoesNotExist")
}

fn challenge_of<'a>(
    authorization: &'a mut AuthorizationHandle<'a>,
    proof: Proof,
) -> Result<ChallengeHandle<'a>> {
    let (kind, word) = match proof {
        Proof::Http => (ChallengeType::Http01, "HTTP"),
        Proof::Dns => (ChallengeType::Dns01, "DNS"),
    };
    authorization.challenge(kind).with_context(|| format!("it does not ask by {word}"))
}

/// What the authority says of the first challenge that it was not content with.
async fn refusal(order: &mut instant_acme::Order) -> Result<Option<String>> {
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let authorization = authorization?;
        if let Some(error) = authorization.challenges.iter().find_map(|challenge| challenge.error.as_ref()) {
            let detail = error.detail.as_deref().unwrap_or("it does not say why");
            return Ok(Some(format!("{}: {detail}", authorization.identifier())));
        }
    }
    Ok(None)
}
