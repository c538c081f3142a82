//! Certificates that are ordered of a certification authority (ACME, RFC 8555).
//!
//! ```text
//!   none, or two thirds of its life are over ──order──▶ challenges ──▶ every proxy that shows the secret answers them
//!        ▲                                                                            │ answer
//!        └──────────────── a pause that doubles ◀── failed ──┬── the certificate ◀────┘
//! ```
//!
//! What is to be done next is decided here, from the view alone. Who leads does it, and tells the planner of secrets what came of it
//! ([`News`]); all that the next leader must know to go on is in the choice.

use lightbyte_api::kinds::loadbalancer::Choice as BalancerChoice;
use lightbyte_api::kinds::secret::{
    Account, Acme, Choice as SecretChoice, Failure, Order, Pair, Proof, Version,
};
use lightbyte_api::{Kind, ObjectRef, Span, Spec, Timestamp};

use crate::fronts;
use crate::planner::{later, loadbalancer, since};
use crate::view::View;

/// After a failure, the first pause before the next order. Authorities allow few that fail: some five an hour for a name.
pub const FAILURE_PAUSE_MIN: Span = Span::from_secs(60);
/// The longest such pause.
pub const FAILURE_PAUSE_MAX: Span = Span::from_secs(6 * 60 * 60);
/// An order that has brought nothing after so long is given up.
pub const ORDER_LASTS: Span = Span::from_secs(60 * 60);
/// How long resolvers may take to know a new text, and those who ask them to forget that there was none.
pub const NAMED_WITHIN: Span = Span::from_secs(10);
/// A certificate that has come is not ordered anew before so long.
pub const RENEWED_AFTER_MIN: Span = Span::from_secs(60 * 60);
/// The authority is told to look although some proxy has not said that it answers, if another has.
pub const ANSWERED_WITHIN: Span = Span::from_secs(120);

/// What is to be done for a secret next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing, for now.
    Rest,
    /// Order a certificate.
    Order {
        /// What for.
        acme: Acme,
        /// With which account; with a new one if there is none yet.
        account: Option<Account>,
    },
    /// Have the authority look, and take the certificate.
    Answer {
        /// Of this order.
        order: Order,
        /// Whose it is.
        account: Account,
    },
}

/// What came of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// A certificate is ordered.
    Ordered {
        /// By whom.
        account: Account,
        /// The order.
        order: Order,
    },
    /// A certificate has come.
    Issued {
        /// Of the order with this address.
        url: String,
        /// The certificate, with its sealed key.
        pair: Pair,
    },
    /// It went wrong.
    Failed {
        /// What was asked for.
        acme: Acme,
        /// The address of the order, if there was one already.
        url: Option<String>,
        /// Why.
        because: String,
        /// When, on the leader's clock.
        at: Timestamp,
        /// The account that was made before it did: authorities do not make many.
        account: Option<Account>,
    },
}

impl News {
    /// Whether the choice for what is asked does not know it yet.
    #[must_use]
    pub fn is_news(&self, acme: &Acme, choice: &SecretChoice) -> bool {
        let ordered = choice.order.as_ref().map(|order| order.url.as_str());
        match self {
            News::Ordered { order, .. } => {
                let is_over = choice.failure.as_ref().is_some_and(|failure| failure.at >= order.since);
                ordered.is_none() && order.acme == *acme && !is_over
            }
            News::Issued { url, .. } => ordered == Some(url),
            News::Failed { acme: of, url, at, .. } => {
                let is_known = choice.failure.as_ref().is_some_and(|failure| failure.at == *at);
                of == acme && url.as_deref() == ordered && !is_known
            }
        }
    }
}

/// What is to be done for a secret next. `news` is what came of the last step, which the choice may not know yet.
#[must_use]
pub fn next_step(view: &View, object: &ObjectRef, news: Option<&News>, now: Timestamp) -> Step {
    let Some(asked) = view.living(object) else { return Step::Rest };
    let Spec::Secret(spec) = &asked.spec else { return Step::Rest };
    let Some(acme) = spec.ordered() else { return Step::Rest };
    // The planner of secrets would take no news.
    if view.unreadable_decided(Kind::LoadBalancer).is_some() {
        return Step::Rest;
    }
    // Before the planner has seen it there is nothing to go on from, and another's choice may still lie there.
    let is_own = view.decided(object).is_some_and(|decided| decided.uid == asked.meta.uid);
    let Some(choice) = super::choice(view, object).filter(|_| is_own) else { return Step::Rest };
    if news.is_some_and(|news| news.is_news(acme, choice)) {
        return Step::Rest;
    }
    let account = choice.account.as_ref().filter(|account| account.directory == acme.directory).cloned();
    match (&choice.order, account) {
        (Some(order), Some(account)) if order.acme == *acme && is_answered(view, object, order, now) => {
            Step::Answer { order: order.clone(), account }
        }
        (Some(_), _) => Step::Rest,
        (None, account) if is_due(acme, choice, now) && can_be_answered(view, object, acme) => {
            Step::Order { acme: acme.clone(), account }
        }
        (None, _) => Step::Rest,
    }
}

/// Whether another certificate is to be ordered.
fn is_due(acme: &Acme, choice: &SecretChoice, now: Timestamp) -> bool {
    let failure = choice.failure.as_ref().filter(|failure| failure.acme == *acme);
    if failure.is_some_and(|failure| now < again_at(failure)) {
        return false;
    }
    choice.newest().filter(|newest| is_of(newest, acme)).is_none_or(|newest| renewed_at(newest) <= now)
}

/// Whether a certificate is what is asked for: of the same authority, for the same names.
#[must_use]
pub fn is_of(version: &Version, acme: &Acme) -> bool {
    let of = version.issued.as_ref().map(|issued| &issued.acme);
    of.is_some_and(|of| of.directory == acme.directory && of.names == acme.names)
}

/// When the next order may be made after a failure.
#[must_use]
pub fn again_at(failure: &Failure) -> Timestamp {
    let doubled = 1_u64.checked_shl(failure.times.saturating_sub(1)).unwrap_or(u64::MAX);
    let pause = Span::from_millis(FAILURE_PAUSE_MIN.millis().saturating_mul(doubled));
    later(failure.at, pause.min(FAILURE_PAUSE_MAX))
}

/// When the next certificate is ordered: a third of its life is left to try again. But never soon after it came, so that no authority
/// is asked again and again where its clock and ours differ.
#[must_use]
pub fn renewed_at(version: &Version) -> Timestamp {
    let life = since(version.begins_at, version.expires_at);
    let at = later(version.begins_at, Span::from_millis(life.millis() / 3 * 2));
    version.issued.as_ref().map_or(at, |issued| at.max(later(issued.at, RENEWED_AFTER_MIN)))
}

/// Load balancers that are to show a secret: these answer the authority.
fn balancers<'a>(view: &'a View, object: &'a ObjectRef) -> impl Iterator<Item = &'a ObjectRef> {
    view.objects_of(Kind::LoadBalancer).filter(move |balancer| {
        let spec = view.living(balancer).map(|asked| &asked.spec);
        matches!(spec, Some(Spec::LoadBalancer(spec)) if spec.serving.certificates.contains(&object.name))
    })
}

/// Whether there is anybody who could answer the authority.
fn can_be_answered(view: &View, object: &ObjectRef, acme: &Acme) -> bool {
    acme.challenge == Proof::Dns || balancers(view, object).next().is_some()
}

/// Whether the authority may look: every proxy answers its challenges that can be told so, and at least one.
fn is_answered(view: &View, object: &ObjectRef, order: &Order, now: Timestamp) -> bool {
    if order.acme.challenge == Proof::Dns {
        // Resolvers say nothing of what they have.
        return since(order.since, now) >= NAMED_WITHIN;
    }
    let choices: Vec<&BalancerChoice> =
        balancers(view, object).filter_map(|balancer| fronts::choice(view, balancer)).collect();
    let knows = |choice: &&&BalancerChoice| order.challenges.iter().all(|one| choice.challenges.contains(one));
    let (mut answering, mut silent) = (0, choices.iter().filter(|choice| !knows(choice)).count());
    for choice in choices.iter().filter(knows) {
        for proxy in choice.proxies.iter().filter(|proxy| view.alive(proxy.worker).is_some()) {
            let report = loadbalancer::report(view, proxy);
            let has_taken = report.is_some_and(|report| report.revision >= choice.revision);
            *(if has_taken { &mut answering } else { &mut silent }) += 1;
        }
    }
    answering > 0 && (silent == 0 || since(order.since, now) >= ANSWERED_WITHIN)
}
