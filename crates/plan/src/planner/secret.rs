//! Secrets: the newest certificate, and those before it that a load balancer still shows. One that nobody has is ordered (`acme`).
//!
//! A load balancer tries a new certificate with one proxy before the others get it, and goes back to the one before if that does
//! not go well. So a version stays for as long as a load balancer names it, and no longer: a key that nobody needs is not kept.

pub mod acme;

use std::collections::BTreeSet;

use lightbyte_api::kinds::loadbalancer::{Choice as BalancerChoice, ShownCertificate};
use lightbyte_api::kinds::secret::{Acme, Choice as SecretChoice, Failure, Issued, Pair, Spec as SecretSpec, Version};
use lightbyte_api::{Choice, Kind, ObjectRef, Span, Spec, Timestamp, Uid, WaitingOn};
use lightbyte_certificate::Certificate;

use super::{Inputs, Plan, end_when_unused, later, since};
use crate::fronts;
use crate::view::View;

/// How long before its end a certificate is told to be near it, unless a third of its life is less.
pub const WARNED_WITHIN: Span = Span::from_secs(21 * 86_400);

/// Plans a secret.
#[must_use]
pub fn plan(view: &View, object: &ObjectRef, inputs: &Inputs) -> Plan {
    let Some(asked) = view.asked(object) else { return Plan::rest() };
    let Spec::Secret(spec) = &asked.spec else { return Plan::rest() };
    // One that cannot be read may show it.
    if let Some(key) = view.unreadable_decided(Kind::LoadBalancer) {
        return Plan::wait(WaitingOn::Unreadable { key: key.to_string() });
    }
    let of_this = showings(view, object).filter(|(_, shown)| shown.uid == asked.meta.uid);
    let shown: Vec<(&ObjectRef, u64)> = of_this.map(|(by, shown)| (by, shown.version)).collect();
    let mut plan = match end_when_unused(view, object, &asked.meta) {
        // Those that do not name it any more may not have put another in its place yet.
        Plan { ends: true, .. } => match shown.first() {
            Some((by, _)) => Plan::wait(WaitingOn::InUse { by: (*by).clone() }),
            None => Plan::end(),
        },
        plan => plan,
    };
    if plan.ends {
        return plan;
    }
    let mut choice = choice(view, object).cloned().unwrap_or_default();
    match spec {
        SecretSpec::Given(pair) => {
            choice = SecretChoice { versions: choice.versions, ..SecretChoice::default() };
            if let Err(because) = take(pair, None, asked.meta.generation, &mut choice) {
                plan.waiting_on.push(WaitingOn::CertificateUnusable { because });
            }
        }
        // Whoever deletes it wants no certificate, though a load balancer may show the one that is there for a while.
        SecretSpec::Ordered { .. } if asked.meta.deleting_since.is_some() => {
            (choice.order, choice.failure) = (None, None);
        }
        SecretSpec::Ordered { acme } => take_news(acme, asked.meta.generation, inputs, &mut choice, &mut plan),
    }
    let newest = choice.newest().map(|version| version.number);
    choice.versions.retain(|version| {
        Some(version.number) == newest || shown.iter().any(|(_, number)| *number == version.number)
    });
    if let Some(newest) = choice.newest().filter(|_| asked.meta.deleting_since.is_none()) {
        warn(newest, inputs.now, &mut plan);
    }
    // Whoever begins to show one rests on this choice, so none is taken away under it; and who ends it wakes this.
    plan.choice = Some(Choice::Secret(choice));
    plan
}

/// Makes a certificate the newest version, unless it is that already; or says why it is none.
fn take(
    pair: &Pair,
    issued: Option<Issued>,
    generation: u64,
    choice: &mut SecretChoice,
) -> Result<(), String> {
    if choice.newest().is_some_and(|newest| newest.pair == *pair) {
        return Ok(());
    }
    let read = Certificate::read(&pair.chain).map_err(|error| error.to_string())?;
    let Certificate { server_names, begins_at, expires_at, fingerprint } = read;
    // No number comes twice while somebody may show what had it.
    let number = choice.newest().map_or(generation, |newest| generation.max(newest.number + 1));
    let pair = pair.clone();
    choice.versions.push(Version { number, pair, issued, server_names, begins_at, expires_at, fingerprint });
    Ok(())
}

/// Notes what came of the last step of an order, and says how it stands.
fn take_news(acme: &Acme, generation: u64, inputs: &Inputs, choice: &mut SecretChoice, plan: &mut Plan) {
    // What is asked has changed, and with it what the authority is to be asked.
    choice.order = choice.order.take().filter(|order| order.acme == *acme);
    choice.failure = choice.failure.take().filter(|failure| failure.acme == *acme);
    match inputs.news.as_deref().filter(|news| news.is_news(acme, choice)) {
        None => {}
        Some(acme::News::Ordered { account, order }) => {
            (choice.account, choice.order) = (Some(account.clone()), Some(order.clone()));
        }
        Some(acme::News::Issued { pair, .. }) => {
            choice.order = None;
            let issued = Issued { acme: acme.clone(), at: inputs.now };
            match take(pair, Some(issued), generation, choice) {
                Ok(()) => choice.failure = None,
                Err(because) => fail(acme, because, inputs.now, choice),
            }
        }
        Some(acme::News::Failed { because, at, account, .. }) => {
            choice.account = account.clone().or(choice.account.take());
            fail(acme, because.clone(), *at, choice);
        }
    }
    let left = choice.order.as_ref().map(|order| {
        acme::ORDER_LASTS.millis().saturating_sub(since(order.since, inputs.now).millis())
    });
    match left {
        Some(0) => fail(acme, "nobody has answered the authority in time".to_owned(), inputs.now, choice),
        Some(left) => plan.again = Some(Span::from_millis(left)),
        None => {}
    }
    if let Some(failure) = &choice.failure {
        let (because, again_at) = (failure.because.clone(), acme::again_at(failure));
        plan.waiting_on.push(WaitingOn::OrderFailed { because, again_at });
    } else if choice.order.is_some() || choice.newest().is_none_or(|newest| !acme::is_of(newest, acme)) {
        plan.waiting_on.push(WaitingOn::Ordered { directory: acme.directory.clone() });
    }
}

/// Ends an order without a certificate.
fn fail(acme: &Acme, because: String, at: Timestamp, choice: &mut SecretChoice) {
    let times = choice.failure.as_ref().map_or(0, |failure| failure.times).saturating_add(1);
    choice.order = None;
    choice.failure = Some(Failure { acme: acme.clone(), because, at, times });
}

/// Says that a certificate is near its end, or looks again when it is.
fn warn(version: &Version, now: Timestamp, plan: &mut Plan) {
    let at = version.expires_at;
    let third = Span::from_millis(since(version.begins_at, at).millis() / 3);
    let warned_within = WARNED_WITHIN.min(third);
    let (is_over, is_near) = (at <= now, at <= later(now, warned_within));
    let left = match (is_over, is_near) {
        (true, _) => {
            plan.waiting_on.push(WaitingOn::CertificateExpired { at });
            return;
        }
        (false, true) => {
            plan.waiting_on.push(WaitingOn::CertificateExpires { at });
            since(now, at)
        }
        (false, false) => Span::from_millis(since(now, at).millis().saturating_sub(warned_within.millis())),
    };
    plan.again = Some(plan.again.map_or(left, |again| again.min(left)));
}

/// Whatever load balancers show of secrets of this name.
fn showings<'a>(
    view: &'a View,
    object: &'a ObjectRef,
) -> impl Iterator<Item = (&'a ObjectRef, &'a ShownCertificate)> {
    view.objects_of(Kind::LoadBalancer).flat_map(move |balancer| {
        let shown = fronts::choice(view, balancer).into_iter().flat_map(BalancerChoice::shown);
        shown.filter(|shown| shown.secret == object.name).map(move |shown| (balancer, shown))
    })
}

/// The load balancers that show some version of a secret of this name.
#[must_use]
pub fn shown_by(view: &View, object: &ObjectRef) -> BTreeSet<ObjectRef> {
    showings(view, object).map(|(balancer, _)| balancer.clone()).collect()
}

/// What was chosen for a secret.
#[must_use]
pub fn choice<'a>(view: &'a View, object: &ObjectRef) -> Option<&'a SecretChoice> {
    match &view.decided(object)?.choice {
        Choice::Secret(choice) => Some(choice),
        _ => None,
    }
}

/// The version of that number of a secret, if that is still the one with this uid.
#[must_use]
pub fn version<'a>(view: &'a View, object: &ObjectRef, uid: Uid, number: u64) -> Option<&'a Version> {
    view.decided(object).filter(|decided| decided.uid == uid)?;
    choice(view, object)?.versions.iter().find(|version| version.number == number)
}
