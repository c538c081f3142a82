//! Orders certificates (ACME, RFC 8555) while this server leads. What is to be done is decided in `lightbyte_plan`; here it is done,
//! and what came of it goes to the planner of secrets.
//!
//! ```text
//!   next_step ──Order──▶ account, order, challenges ──┐
//!        ▲    ──Answer─▶ ready, key, certificate ─────┼──▶ news ──▶ planner ──▶ choice ──▶ next_step
//!        └──────────────────── failed ────────────────┘
//! ```
//!
//! A key is made here, and sealed before it leaves this file. The account's key is sealed as well.

mod http;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use instant_acme::{
    Account, AccountBuilder, AccountCredentials, AuthorizationStatus, ChallengeType, Identifier, NewAccount,
    NewOrder, OrderStatus, RetryPolicy,
};
use lightbyte_api::kinds::secret::{Account as SealedAccount, Acme, Order, Pair, PrivateKey};
use lightbyte_api::topology::{Challenge, SecretText};
use lightbyte_api::{Kind, Name, ObjectRef};
use lightbyte_certificate::only_certificates;
use lightbyte_plan::Reconciler;
use lightbyte_plan::planner::secret::acme::{News, Step, next_step};
use tokio::task::{Id, JoinSet};
use tokio::time::{Instant, timeout};

use crate::sealing::SealingKeys;
use crate::{Server, clock};

/// How often it is looked whether something is to be done.
const LOOK_PERIOD: Duration = Duration::from_secs(1);
/// Steps of different secrets at once.
const STEPS_MAX: usize = 4;
/// How long a step may take: an authority looks more than once, and from several places.
const STEP_WITHIN: Duration = Duration::from_secs(120);
/// How the state of an order is asked for.
const RETRIES: RetryPolicy = RetryPolicy::new().timeout(Duration::from_secs(60));
/// How much is kept of what an authority says, in characters.
const BECAUSE_CHARS_MAX: usize = 500;

/// The steps that are under way.
#[derive(Default)]
pub(crate) struct Issuer {
    steps: JoinSet<Result<News>>,
    objects: BTreeMap<Id, Doing>,
    looked_at: Option<Instant>,
}

/// Whose step it is, and what is told if it fails.
struct Doing {
    object: ObjectRef,
    acme: Acme,
    url: Option<String>,
}

impl Issuer {
    /// Begins what is to be done, if it is time to look.
    pub(crate) fn look(&mut self, server: &Arc<Server>, reconciler: &Reconciler) {
        if self.looked_at.is_some_and(|at| at.elapsed() < LOOK_PERIOD) {
            return;
        }
        self.looked_at = Some(Instant::now());
        let (view, now) = (reconciler.view(), clock::now());
        for object in view.objects_of(Kind::Secret) {
            if self.steps.len() >= STEPS_MAX {
                return;
            }
            if self.objects.values().any(|doing| doing.object == *object) {
                continue;
            }
            let step = next_step(view, object, reconciler.news_of(object), now);
            let (acme, url) = match &step {
                Step::Rest => continue,
                Step::Order { acme, .. } => (acme.clone(), None),
                Step::Answer { order, .. } => (order.acme.clone(), Some(order.url.clone())),
            };
            tracing::info!(secret = %object.name, directory = acme.directory, ordered = url.is_some(), "asks for a certificate");
            let keys = server.sealing_keys.clone();
            let name = object.name.clone();
            let task = self.steps.spawn(async move {
                let keys =
                    keys.context("this server has no sealing key; start it with --sealing-key FILE")?;
                let done = timeout(STEP_WITHIN, perform(&keys, &name, step)).await;
                done.context("it took too long")?
            });
            self.objects.insert(task.id(), Doing { object: object.clone(), acme, url });
        }
    }

    /// What came of a step; never, while none is under way.
    pub(crate) async fn done(&mut self) -> (ObjectRef, News) {
        loop {
            let (id, news) = match self.steps.join_next_with_id().await {
                None => std::future::pending().await,
                Some(Ok((id, news))) => (id, news),
                Some(Err(error)) => (error.id(), Err(anyhow!("the step broke off"))),
            };
            let Some(Doing { object, acme, url }) = self.objects.remove(&id) else { continue };
            let news = news.unwrap_or_else(|error| {
                let because = harmless(&format!("{error:#}"));
                tracing::warn!(secret = %object.name, because, "no certificate came");
                News::Failed { acme, url, because, at: clock::now() }
            });
            return (object, news);
        }
    }
}

/// What somebody far away says, for people to read.
fn harmless(text: &str) -> String {
    text.chars().take(BECAUSE_CHARS_MAX).map(|one| if one.is_control() { ' ' } else { one }).collect()
}

async fn perform(keys: &SealingKeys, name: &Name, step: Step) -> Result<News> {
    let builder = Account::builder_with_http(Box::new(http::Https::new()?));
    match step {
        Step::Rest => bail!("there is nothing to do"),
        Step::Order { acme, account } => order(builder, keys, name, acme, account).await,
        Step::Answer { order, account } => {
            let account = builder.from_credentials(opened(keys, name, &account)?).await?;
            answer(&account, keys, name, order).await
        }
    }
}

/// The account that was sealed.
fn opened(keys: &SealingKeys, name: &Name, account: &SealedAccount) -> Result<AccountCredentials> {
    let text = keys.open(name, &account.sealed).context("no sealing key of this server opens the account")?;
    // Its error would show what it could not read.
    serde_json::from_str(text.reveal()).map_err(|_| anyhow!("the account cannot be read"))
}

async fn order(
    builder: AccountBuilder,
    keys: &SealingKeys,
    name: &Name,
    acme: Acme,
    account: Option<SealedAccount>,
) -> Result<News> {
    let (opened, account) = match account {
        Some(account) => (builder.from_credentials(opened(keys, name, &account)?).await?, account),
        None => make_account(builder, keys, name, &acme).await?,
    };
    let identifiers: Vec<Identifier> = acme.names.iter().cloned().map(Identifier::Dns).collect();
    let mut order = opened.new_order(&NewOrder::new(&identifiers)).await?;
    let mut challenges = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        // One that is shown already need not be shown again.
        if authorization.status != AuthorizationStatus::Pending {
            continue;
        }
        let challenge = authorization.challenge(ChallengeType::Http01).context("it does not ask by HTTP")?;
        let (token, answer) = (challenge.token.clone(), challenge.key_authorization().as_str().to_owned());
        let challenge = Challenge { token, answer };
        challenge.check("challenge")?;
        challenges.push(challenge);
    }
    let url = order.url().to_owned();
    let order = Order { acme, url, challenges, since: clock::now() };
    Ok(News::Ordered { account, order })
}

async fn make_account(
    builder: AccountBuilder,
    keys: &SealingKeys,
    name: &Name,
    acme: &Acme,
) -> Result<(Account, SealedAccount)> {
    let contact: Vec<String> = acme.contact.iter().map(|address| format!("mailto:{address}")).collect();
    let contact: Vec<&str> = contact.iter().map(String::as_str).collect();
    let wanted = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
    let (account, credentials) = builder.create(&wanted, acme.directory.clone(), None).await?;
    let text = SecretText::new(serde_json::to_string(&credentials).context("write the account")?);
    let sealed = keys.seal(name, &text).context("the system gives no random bytes to seal with")?;
    Ok((account, SealedAccount { directory: acme.directory.clone(), sealed }))
}

async fn answer(account: &Account, keys: &SealingKeys, name: &Name, order: Order) -> Result<News> {
    let url = order.url;
    let mut order = account.order(url.clone()).await?;
    if order.state().status == OrderStatus::Pending {
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            if authorization.status == AuthorizationStatus::Pending {
                let challenge = authorization.challenge(ChallengeType::Http01);
                challenge.context("it does not ask by HTTP")?.set_ready().await?;
            }
        }
        order.poll_ready(&RETRIES).await?;
    }
    if order.state().status != OrderStatus::Ready {
        // Of one that is ready no more somebody made the key who has not told it.
        bail!(
            refusal(&mut order).await?.unwrap_or_else(|| format!("its order is {:?}", order.state().status))
        );
    }
    let key = SecretText::new(order.finalize().await?);
    let chain = order.poll_certificate(&RETRIES).await?;
    let chain = only_certificates(&chain)?;
    let key = keys.seal(name, &key).context("the system gives no random bytes to seal with")?;
    Ok(News::Issued { url, pair: Pair { chain, key: PrivateKey::Sealed(key) } })
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
