//! What people see of a load balancer.

use lightbyte_api::kinds::loadbalancer::{Choice, Configuration, HeldAddress, Leaving, Proxy, Spec};
use lightbyte_api::object::Asked;
use lightbyte_api::{Kind, ObjectRef, Uid, WaitingOn};
use serde_json::{Map, Value, json};

use super::{Found, fields};
use crate::fronts;
use crate::planner::loadbalancer::{may_send, observed, report};
use crate::planner::secret;
use crate::planner::vm::placement;
use crate::view::View;

/// How many backends are named; the others are counted.
const BACKENDS_SHOWN_MAX: usize = 100;

pub(super) fn of<'a>(view: &'a View, object: &'a ObjectRef, asked: &'a Asked, spec: &'a Spec) -> Found<'a> {
    let decided = view.decided(object);
    let choice = fronts::choice(view, object);
    let waiting_on = decided.map(|decided| decided.waiting_on.as_slice()).unwrap_or_default();
    let waits = |is: fn(&WaitingOn) -> bool| waiting_on.iter().any(|waiting| is(&waiting.on));
    let state = match choice {
        None => "pending",
        Some(_) if waits(|on| matches!(on, WaitingOn::TrialFailed { .. })) => "refused",
        Some(choice) if choice.trial.is_some() => "trying",
        Some(choice) if told_of(view, choice).count() == 0 => "starting",
        Some(_) if waiting_on.is_empty() => "ready",
        Some(_) if !waits(|on| !matches!(on, WaitingOn::Acknowledgement { .. })) => "updating",
        Some(_) => "degraded",
    };
    let since = decided.and_then(|decided| decided.at_rest_since).unwrap_or(asked.meta.changed_at);
    let more = move || choice.map(|choice| shown(view, object, choice, spec)).unwrap_or_default();
    Found { state, ready: state == "ready", since: Some(since), more: Box::new(more) }
}

/// The proxies that do what some topology says.
fn told_of<'a>(view: &'a View, choice: &'a Choice) -> impl Iterator<Item = &'a Proxy> {
    choice.proxies.iter().filter(move |proxy| report(view, proxy).is_some_and(|report| report.revision > 0))
}

fn shown(view: &View, object: &ObjectRef, choice: &Choice, spec: &Spec) -> Map<String, Value> {
    let proxies = choice.proxies.iter().map(|proxy| shown_proxy(view, choice, proxy));
    let accepted = choice.accepted.and_then(|number| choice.configuration(number));
    let pools = accepted.into_iter().flat_map(|accepted| &accepted.pools);
    let address =
        |uid: &Uid| choice.members.iter().find(|member| member.uid == *uid).map(|member| member.address);
    let backends = pools.flat_map(|(pool, uids)| uids.iter().map(move |uid| (pool, uid)));
    let backends: Vec<Value> = backends
        .map(|(pool, uid)| json!({ "pool": pool, "vm": name(view, *uid), "address": address(uid) }))
        .collect();
    let leaving = choice.leaving.iter().map(|leaving| shown_leaving(view, choice, leaving));
    fields(json!({
        "revision": choice.revision,
        "proxies": proxies.collect::<Vec<_>>(),
        "proxies_told": told_of(view, choice).filter(|proxy| report(view, proxy).is_some_and(|report| report.revision >= choice.revision)).count(),
        "proxies_wanted": spec.proxies.replicas,
        "backends": backends.len(),
        "members": backends.into_iter().take(BACKENDS_SHOWN_MAX).collect::<Vec<_>>(),
        "leaving": leaving.collect::<Vec<_>>(),
        "virtual_address": choice.virtual_address.as_ref().map(|held| shown_address(view, object, choice, held)),
        "certificates": accepted.map(|accepted| shown_certificates(view, accepted)).filter(|shown| !shown.is_empty()),
        "refused": choice.rejected.as_ref().map(|rejected| &rejected.because),
    }))
}

fn shown_certificates(view: &View, accepted: &Configuration) -> Vec<Value> {
    let shown = accepted.certificates.iter().map(|shown| {
        let object = ObjectRef::new(Kind::Secret, shown.secret.clone());
        let version = secret::version(view, &object, shown.uid, shown.version);
        json!({
            "secret": shown.secret,
            "server_names": version.map(|version| &version.server_names),
            "expires_at": version.map(|version| version.expires_at),
            "fingerprint": version.map(|version| &version.fingerprint),
        })
    });
    shown.collect()
}

fn shown_proxy(view: &View, choice: &Choice, proxy: &Proxy) -> Value {
    let object = view.object_of(proxy.uid);
    let nic = object.and_then(|object| placement(view, object)).and_then(|placement| placement.nics.first());
    let said = report(view, proxy);
    json!({
        "vm": name(view, proxy.uid),
        "worker": view.object_of(proxy.worker.uid()).map(|worker| &worker.name),
        "address": nic.and_then(|nic| nic.address),
        "acknowledged": said.map(|said| said.revision),
        "tries": choice.trial.as_ref().is_some_and(|trial| trial.proxy == proxy.uid),
        "refused": said.and_then(|said| said.refused.as_ref()).map(|refused| &refused.because),
        "busy_with": said.map(|said| said.busy.iter().map(|uid| name(view, *uid)).collect::<Vec<_>>()),
    })
}

fn shown_address(view: &View, balancer: &ObjectRef, choice: &Choice, held: &HeldAddress) -> Value {
    let holder = held.holder.and_then(|holder| choice.proxy(holder));
    let has = holder.and_then(|holder| observed(view, holder)?.virtual_address);
    let told = has.is_some_and(|has| has.address == held.address && has.turn == held.turn);
    let mut shown = json!({
        "address": held.address,
        "held_by": held.holder.map(|holder| name(view, holder)),
        "announced": told,
        "leaving": held.leaving_since.is_some(),
        "may_still_have_it": held.former.iter().map(|uid| name(view, *uid)).collect::<Vec<_>>(),
    });
    if let Some(address6) = fronts::address6(view, balancer, held.address) {
        shown["address6"] = json!(address6);
    }
    shown
}

fn shown_leaving(view: &View, choice: &Choice, leaving: &Leaving) -> Value {
    let sends = choice.proxies.iter().find(|proxy| may_send(view, proxy, leaving));
    let waits_for = sends.map(|proxy| name(view, proxy.uid));
    json!({ "vm": name(view, leaving.member.uid), "since": leaving.since, "overdue": leaving.overdue, "waits_for": waits_for })
}

/// The name of a VM; its uid if it is no more.
fn name(view: &View, uid: Uid) -> String {
    view.object_of(uid).map_or_else(|| uid.to_string(), |object| object.name.to_string())
}
