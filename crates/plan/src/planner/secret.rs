//! Secrets: the newest certificate, and those before it that a load balancer still shows.
//!
//! A load balancer tries a new certificate with one proxy before the others get it, and goes back to the one before if that does
//! not go well. So a version stays for as long as a load balancer names it, and no longer: a key that nobody needs is not kept.

use std::collections::BTreeSet;

use lightbyte_api::kinds::loadbalancer::{Choice as BalancerChoice, ShownCertificate};
use lightbyte_api::kinds::secret::{Choice as SecretChoice, Spec as SecretSpec, Version};
use lightbyte_api::object::Meta;
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
    match newest(spec, &asked.meta, &choice) {
        Ok(version) => choice.versions.extend(version),
        Err(because) => plan.waiting_on.push(WaitingOn::CertificateUnusable { because }),
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

/// What is asked, as a version, unless that is the newest already.
fn newest(spec: &SecretSpec, meta: &Meta, choice: &SecretChoice) -> Result<Option<Version>, String> {
    if choice.newest().is_some_and(|newest| newest.spec == *spec) {
        return Ok(None);
    }
    let read = Certificate::read(&spec.chain).map_err(|error| error.to_string())?;
    let Certificate { server_names, begins_at, expires_at, fingerprint } = read;
    let number = meta.generation;
    Ok(Some(Version { number, spec: spec.clone(), server_names, begins_at, expires_at, fingerprint }))
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
    plan.again = Some(left);
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
