//! Objects as people see them: one pure function of the parts that the view holds. Nothing of this is stored.

mod balancer;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use lightbyte_api::Timestamp;
use lightbyte_api::assigned::{Assigned, AssignedVm, HostObject, WantedVm};
use lightbyte_api::health::HealthState;
use lightbyte_api::kinds::vm::Placement;
use lightbyte_api::kinds::{network, scalegroup, secret as secret_kind, worker};
use lightbyte_api::object::{Asked, Meta, Object, ObjectRef, Status};
use lightbyte_api::observed::{Observed, ObservedVm, VmPhase, VolumePhase};
use lightbyte_api::records::Squatted;
use lightbyte_api::waiting::Waiting;
use lightbyte_api::{Key, Kind, Name, Spec, WaitingOn, WorkerId};
use serde_json::{Map, Value, json};

use crate::planner::moves::is_leaving;
use crate::planner::scalegroup::Counts;
use crate::planner::{self, elsewhere_of, secret, vm, volume, worker_of};
use crate::view::View;

/// How many squatted addresses a network's status lists.
pub const SQUATTED_SHOWN_MAX: usize = 100;

/// How many members a group's status lists.
pub const MEMBERS_SHOWN_MAX: usize = 100;

/// The object as people see it; `None` when there is none.
#[must_use]
pub fn object(view: &View, object: &ObjectRef) -> Option<Object> {
    let Some(asked) = view.asked(object) else { return unreadable(view, object) };
    Some(Object {
        kind: object.kind,
        name: object.name.clone(),
        uid: asked.meta.uid,
        generation: asked.meta.generation,
        labels: asked.meta.labels.clone(),
        owner: asked.meta.owner.as_ref().map(|owner| owner.object.clone()),
        spec: asked.spec.to_json().unwrap_or(Value::Null),
        status: status(view, object, asked),
    })
}

/// What stands in lists for an object that this version cannot read, so that nobody thinks it gone.
fn unreadable(view: &View, object: &ObjectRef) -> Option<Object> {
    let reason = view.unreadable(&Key::Asked(object.clone()))?;
    let more = [("problem".to_owned(), json!(reason))].into_iter().collect();
    let status = Status {
        state: "unreadable".to_owned(),
        ready: false,
        since: None,
        waiting_on: Vec::new(),
        deadline: None,
        more,
    };
    Some(Object {
        kind: object.kind,
        name: object.name.clone(),
        uid: lightbyte_api::Uid::from_bits(0),
        generation: 0,
        labels: std::collections::BTreeMap::new(),
        owner: None,
        spec: Value::Null,
        status,
    })
}

/// The revision of what is asked of the object: what `If-Match` compares.
#[must_use]
pub fn revision(view: &View, object: &ObjectRef) -> u64 {
    view.mod_revision(&Key::Asked(object.clone()))
}

/// The state of one kind's object, before what all kinds share is added.
struct Found<'a> {
    state: &'static str,
    ready: bool,
    since: Option<Timestamp>,
    /// Its other fields: made for who looks at them, which is most of the work.
    more: More<'a>,
}

type More<'a> = Box<dyn FnOnce() -> Map<String, Value> + 'a>;

/// The state of an object in one word, and whether it is as asked; nothing for one that is not there, or cannot be read.
#[must_use]
pub fn state(view: &View, object: &ObjectRef) -> Option<(&'static str, bool)> {
    let asked = view.asked(object)?;
    let found = found(view, object, asked);
    let deleting = asked.meta.deleting_since.is_some();
    Some((if deleting { "deleting" } else { found.state }, found.ready && !deleting))
}

fn found<'a>(view: &'a View, object: &'a ObjectRef, asked: &'a Asked) -> Found<'a> {
    match &asked.spec {
        Spec::Vm(_) => of_vm(view, object, asked),
        Spec::Volume(_) | Spec::Snapshot(_) => of_disk(view, object, asked),
        Spec::Worker(spec) => of_worker(view, object, asked, spec),
        Spec::ScaleGroup(spec) => of_group(view, object, asked, spec),
        Spec::LoadBalancer(spec) => balancer::of(view, object, asked, spec),
        Spec::Secret(spec) => of_secret(view, object, asked, spec),
        Spec::Network(spec) => of_network(view, &object.name, spec),
        // A kind that nothing on any host belongs to is what it was asked to be.
        _ => at_rest(asked),
    }
}

/// The status of an object without the fields of its kind; `None` when there is none.
#[must_use]
pub fn brief(view: &View, object: &ObjectRef) -> Option<Status> {
    let Some(asked) = view.asked(object) else { return Some(unreadable(view, object)?.status) };
    Some(status_of(view, object, asked, found(view, object, asked)).0)
}

fn status(view: &View, object: &ObjectRef, asked: &Asked) -> Status {
    let (status, more) = status_of(view, object, asked, found(view, object, asked));
    Status { more: more(), ..status }
}

fn status_of<'a>(view: &View, object: &ObjectRef, asked: &Asked, found: Found<'a>) -> (Status, More<'a>) {
    let deleting = asked.meta.deleting_since;
    let ready = found.ready && deleting.is_none();
    // Between a report and the leader's next turn the stored condition is that of a moment ago.
    let waiting_on = match view.decided(object) {
        Some(decided) if !ready => decided.waiting_on.clone(),
        _ => Vec::new(),
    };
    let status = Status {
        state: if deleting.is_some() { "deleting" } else { found.state }.to_owned(),
        ready,
        since: deleting.or(found.since),
        deadline: waiting_on.iter().filter_map(deadline).min(),
        waiting_on,
        more: Map::new(),
    };
    (status, found.more)
}

fn at_rest<'a>(asked: &Asked) -> Found<'a> {
    Found { state: "ready", ready: true, since: Some(asked.meta.changed_at), more: Box::new(Map::new) }
}

/// When a wait becomes `stuck`.
#[must_use]
pub fn deadline(waiting: &Waiting) -> Option<Timestamp> {
    waiting.since.checked_add(waiting.on.patience()?.duration()).ok()
}

fn fields(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

fn of_vm<'a>(view: &'a View, object: &ObjectRef, asked: &'a Asked) -> Found<'a> {
    let Some(placement) = vm::placement(view, object) else {
        let since = Some(asked.meta.changed_at);
        let more = Box::new(|| with_wishes(&asked.meta, vm_fields(view, None, None, None)));
        return Found { state: "pending", ready: false, since, more };
    };
    let host_object = HostObject { kind: Kind::Vm, uid: asked.meta.uid };
    let observed = vm::observed_vm(view, placement.worker, host_object);
    let assigned =
        view.assigned(placement.worker, host_object).and_then(|assigned| match assigned.as_ref() {
            Assigned::Vm(assigned) => Some(assigned),
            Assigned::Volume(_) => None,
        });
    let alive = view.alive(placement.worker).is_some();
    let reached = assigned.zip(observed).is_some_and(|(assigned, observed)| {
        assigned.generation == asked.meta.generation && observed.sequence >= assigned.sequence
    });
    let wanted = assigned.map(|assigned| assigned.wanted);
    let phase = observed.map(|observed| observed.phase);
    let is_healthy =
        assigned.zip(observed).is_some_and(|(assigned, observed)| vm::is_healthy(assigned, observed));
    let health = observed.and_then(|observed| observed.health.as_ref()).map(|health| health.state);
    let is_sick = !is_healthy && health == Some(HealthState::Unhealthy);
    let (state, at_goal) = match (alive, phase, wanted) {
        (false, ..) => ("unknown", false),
        (true, Some(VmPhase::Running), Some(WantedVm::Running)) if is_sick => ("unhealthy", false),
        (true, Some(VmPhase::Running), Some(WantedVm::Running)) => ("running", is_healthy),
        (true, Some(VmPhase::Running), _) => ("stopping", false),
        (true, Some(VmPhase::Stopped), Some(WantedVm::Stopped)) => ("stopped", true),
        (true, Some(VmPhase::Stopping), _) => ("stopping", false),
        (true, Some(VmPhase::Crashed), _) => ("crashed", false),
        (true, Some(VmPhase::Off), Some(WantedVm::Running)) => ("off", false),
        (true, _, Some(WantedVm::Stopped)) => ("stopping", false),
        (true, ..) => ("starting", false),
    };
    let ready = at_goal && reached && observed.is_some_and(|observed| observed.problem.is_none());
    let health = observed.and_then(|observed| observed.health.as_ref()).filter(|_| is_sick);
    let since = health.map(|health| health.since).or(observed.map(|observed| observed.since));
    let since = since.or(Some(asked.meta.changed_at));
    let more =
        Box::new(move || with_wishes(&asked.meta, vm_fields(view, Some(placement), assigned, observed)));
    Found { state, ready, since, more }
}

/// What is asked of a member of a group and is no field of its manifest, where it is.
fn with_wishes(meta: &Meta, mut more: Map<String, Value>) -> Map<String, Value> {
    for (wish, is_asked) in [("protected", meta.protected), ("replace", meta.replace)] {
        if is_asked {
            more.insert(wish.to_owned(), json!(true));
        }
    }
    more
}

fn vm_fields(
    view: &View,
    placement: Option<&Placement>,
    assigned: Option<&AssignedVm>,
    observed: Option<&ObservedVm>,
) -> Map<String, Value> {
    let addresses = addresses_of(view, placement, assigned, observed);
    // What was changed and takes effect when it starts next.
    let restart_to_apply =
        assigned.zip(observed).is_some_and(|(assigned, observed)| observed.shape < assigned.shape);
    fields(json!({
        "restart_to_apply": restart_to_apply,
        "worker": placement.map(|placement| &placement.worker_name),
        "addresses": addresses,
        "image_version": placement.map(|placement| &placement.image_version),
        "restarts": observed.map_or(0, |observed| observed.restarts),
        "boot": observed.and_then(|observed| observed.boot),
        "health": observed.and_then(|observed| observed.health.as_ref()),
        "problem": observed.and_then(|observed| observed.problem.as_ref()),
    }))
}

/// A VM's addresses, as its status has them.
#[must_use]
pub fn addresses(view: &View, object: &ObjectRef) -> Vec<String> {
    let found = vm::placement(view, object).zip(view.asked(object));
    let Some((placement, asked)) = found else { return Vec::new() };
    let host_object = HostObject { kind: Kind::Vm, uid: asked.meta.uid };
    let assigned = match view.assigned(placement.worker, host_object).map(AsRef::as_ref) {
        Some(Assigned::Vm(assigned)) => Some(assigned),
        Some(Assigned::Volume(_)) | None => None,
    };
    addresses_of(view, Some(placement), assigned, vm::observed_vm(view, placement.worker, host_object))
}

fn addresses_of(
    view: &View,
    placement: Option<&Placement>,
    assigned: Option<&AssignedVm>,
    observed: Option<&ObservedVm>,
) -> Vec<String> {
    // The first is the one that people are told first: of the first card, and IPv4.
    let addresses = (0..).zip(placement.iter().flat_map(|placement| &placement.nics));
    let addresses = addresses.filter_map(|(index, nic)| match nic.address {
        Some(address) => Some(format!("{address}/{}", prefix_length(view, &nic.network))),
        None => lease(observed?, index).map(|address| address.to_string()),
    });
    let addresses6 = assigned.iter().flat_map(|assigned| &assigned.nics).filter_map(|nic| {
        let ipv6 = nic.ipv6.as_ref()?;
        Some(format!("{}/{}", ipv6.address?, ipv6.prefix_length))
    });
    addresses.chain(addresses6).collect()
}

/// The address that a card has by DHCP, as its worker saw it.
fn lease(observed: &ObservedVm, nic: u32) -> Option<Ipv4Addr> {
    observed.leases.iter().find(|lease| lease.nic == nic).map(|lease| lease.address)
}

fn prefix_length(view: &View, network: &Name) -> u8 {
    match view.asked(&ObjectRef::new(Kind::Network, network.clone())).map(|asked| &asked.spec) {
        Some(Spec::Network(spec)) => spec.pool().map_or(32, |pool| pool.subnet.prefix_length()),
        _ => 32,
    }
}

/// A volume or a snapshot.
fn of_disk<'a>(view: &'a View, object: &'a ObjectRef, asked: &'a Asked) -> Found<'a> {
    let worker = worker_of(view, object);
    let host_object = HostObject::of(object.kind, asked.meta.uid);
    let observed = worker.and_then(|worker| view.observed(worker, host_object)).map(AsRef::as_ref);
    let observed = match observed {
        Some(Observed::Volume(observed)) => Some(observed),
        _ => None,
    };
    let assigned = worker.and_then(|worker| view.assigned(worker, host_object)).map(AsRef::as_ref);
    let is_small = match (assigned, observed) {
        (Some(Assigned::Volume(assigned)), Some(observed)) => observed.size < assigned.size,
        _ => false,
    };
    let is_away = worker.is_some_and(|worker| view.alive(worker).is_none());
    let goes_to = elsewhere_of(view, object).filter(|_| is_leaving(view, object));
    let asked_worker = match &asked.spec {
        Spec::Volume(spec) => spec.worker.as_ref(),
        Spec::Snapshot(spec) => spec.worker.as_ref(),
        _ => None,
    };
    let is_at = worker.and_then(|worker| worker_name(view, worker));
    let is_astray = asked_worker.is_some_and(|asked| is_at.is_some_and(|is_at| is_at != asked));
    let (state, ready) = match observed.map(|observed| observed.phase) {
        Some(_) if is_away => ("unknown", false),
        Some(VolumePhase::Lost) => ("lost", false),
        Some(_) if goes_to.is_some() || is_astray => ("moving", false),
        Some(VolumePhase::Present) if is_small => ("growing", false),
        Some(VolumePhase::Present) => ("ready", true),
        Some(VolumePhase::Copied | VolumePhase::Complete | VolumePhase::Held | VolumePhase::Released) => {
            ("moving", false)
        }
        Some(VolumePhase::Claimed) => ("creating", false),
        None if worker.is_some() => ("creating", false),
        // Made beside the first VM that it is attached to: until then it is as asked.
        None if waits_for_use(asked) => ("unused", true),
        None => ("pending", false),
    };
    let more = move || {
        let holders =
            volume::choice(view, object).map(|choice| choice.holders.as_slice()).unwrap_or_default();
        let owner = asked.meta.owner.iter().map(|owner| &owner.object);
        let attached_to: Vec<&ObjectRef> = owner.chain(holders.iter().map(|holder| &holder.vm)).collect();
        let asked_size = match &asked.spec {
            Spec::Volume(spec) => spec.size,
            _ => None,
        };
        let mut more = json!({
            "worker": is_at,
            "moving_to": goes_to.and_then(|worker| worker_name(view, worker)),
            "size": observed.map(|observed| observed.size).or(asked_size),
            "problem": observed.and_then(|observed| observed.problem.as_ref()),
        });
        if let (Kind::Volume, Value::Object(more)) = (object.kind, &mut more) {
            more.insert("attached_to".to_owned(), json!(attached_to));
        }
        fields(more)
    };
    let since = observed.map_or(asked.meta.changed_at, |observed| observed.since);
    Found { state, ready, since: Some(since), more: Box::new(more) }
}

fn waits_for_use(asked: &Asked) -> bool {
    let Spec::Volume(spec) = &asked.spec else { return false };
    asked.meta.owner.is_none() && spec.worker.is_none() && spec.snapshot.is_none()
}

fn worker_name(view: &View, worker: WorkerId) -> Option<&Name> {
    view.object_of(worker.uid()).map(|object| &object.name)
}

fn of_worker<'a>(view: &'a View, object: &ObjectRef, asked: &Asked, spec: &worker::Spec) -> Found<'a> {
    let worker = WorkerId::new(asked.meta.uid);
    let alive = view.alive(worker);
    let observed = view.observed_worker(worker);
    let ledger = view.worker_ledger(worker);
    let decided = planner::worker::choice(view, object);
    // From what is there, not from what the leader has said of it: it may not have looked since.
    let is_empty = planner::worker::what_stays(view, spec, worker).is_empty();
    let state = match alive {
        None if decided.lost => "lost",
        None => "away",
        Some(_) if spec.draining && !is_empty => "draining",
        Some(_) if spec.draining => "drained",
        Some(_) if spec.cordoned => "cordoned",
        Some(_) => "ready",
    };
    let more = move || {
        fields(json!({
            "cpus": observed.map(|observed| observed.cpus),
            "host_cpus": observed.map(|observed| observed.host_cpus).filter(|cpus| *cpus > 0),
            "vms_max": observed.and_then(|observed| observed.vms_max),
            "memory": observed.map(|observed| observed.memory),
            "cpus_used": ledger.map(|ledger| ledger.cpus),
            "memory_used": ledger.map(|ledger| ledger.memory),
            "vms": ledger.map(|ledger| ledger.vms),
            "architecture": observed.map(|observed| &observed.architecture),
            "vmm": observed.map(|observed| &observed.vmm),
            "version": observed.map(|observed| &observed.version),
            "address": observed.map(|observed| &observed.address),
            "orphans": observed.map(|observed| &observed.orphans).filter(|orphans| !orphans.is_empty()),
            "parts": observed.map(|observed| observed.parts.len()).filter(|parts| *parts > 0),
        }))
    };
    let ready = alive.is_some() && observed.is_some() && state != "draining";
    let since = alive.map(|alive| alive.since).or(decided.away_since);
    Found { state, ready, since, more: Box::new(more) }
}

fn of_group<'a>(
    view: &'a View,
    object: &'a ObjectRef,
    asked: &'a Asked,
    spec: &'a scalegroup::Spec,
) -> Found<'a> {
    let counts = planner::scalegroup::counts(view, object);
    let decided = view.decided(object);
    let choice = planner::scalegroup::choice(view, object).cloned().unwrap_or_default();
    let wanted_count = planner::scalegroup::replicas(view, object, spec);
    let replicas = usize::try_from(wanted_count).unwrap_or(usize::MAX);
    let is_whole = counts.members == replicas && counts.ready >= replicas;
    let wanted = planner::scalegroup::wanted_version(view, &asked.meta, spec, &choice);
    let is_degraded = || {
        let mut states = counts.list.iter().filter_map(|(member, _)| state(view, member));
        states.any(|(state, _)| !matches!(state, "pending" | "starting" | "running"))
    };
    let waiting_on = decided.map(|decided| decided.waiting_on.as_slice());
    let state = match state_of_update(
        (spec, &asked.meta.rollout, replicas),
        &choice,
        &counts,
        (wanted, waiting_on, is_whole),
    ) {
        None if is_whole && waiting_on.is_some_and(<[Waiting]>::is_empty) => "ready",
        None if counts.updated < counts.members => "moving",
        None if !is_whole && is_degraded() => "degraded",
        None if counts.members != replicas || !choice.retiring.is_empty() => "scaling",
        None => "starting",
        Some(updating) => updating,
    };
    let more = move || {
        let members = counts.list.iter().take(MEMBERS_SHOWN_MAX).filter_map(|(member, version)| {
            let found = of_vm(view, member, view.asked(member)?);
            let worker = vm::placement(view, member).map(|placement| &placement.worker_name);
            Some(json!({ "name": member.name, "version": version, "state": found.state, "worker": worker }))
        });
        let versions = choice.versions.iter().map(|version| {
            json!({ "number": version.number, "image_version": version.image_version, "made_at": version.made_at })
        });
        let retiring = choice.retiring.iter().filter_map(|retiring| {
            let member = view.object_of(retiring.uid)?;
            Some(json!({ "member": member.name, "because": retiring.because }))
        });
        fields(json!({
            "replicas": wanted_count,
            "scaling": choice.scaling.as_ref().filter(|_| spec.autoscale.is_some()),
            "members": members.collect::<Vec<_>>(),
            "available": counts.ready,
            "updated": counts.updated,
            "version": choice.target,
            "stable": choice.stable,
            "rejected": choice.rejected.as_ref().map(|rejected| rejected.version),
            "failed_member": choice.rejected.as_ref().map(|rejected| &rejected.member),
            "undone": asked.meta.rollout.undone.map(|undone| undone.version),
            "versions": versions.collect::<Vec<_>>(),
            "retiring": retiring.collect::<Vec<_>>(),
        }))
    };
    let since = decided.and_then(|decided| decided.at_rest_since).unwrap_or(asked.meta.changed_at);
    Found { state, ready: state == "ready", since: Some(since), more: Box::new(more) }
}

/// How far the update of a group is, in a word; none when none is on its way.
fn state_of_update(
    (spec, rollout, replicas): (&scalegroup::Spec, &scalegroup::Rollout, usize),
    choice: &scalegroup::Choice,
    counts: &Counts<'_>,
    (wanted, waiting_on, is_whole): (Option<u64>, Option<&[Waiting]>, bool),
) -> Option<&'static str> {
    let is_settled = is_whole && choice.retiring.is_empty();
    // A version that was rejected and is not asked for any more is about to be forgotten.
    let is_rejected = choice.rejected.as_ref().is_some_and(|rejected| Some(rejected.version) == wanted);
    let waits_for = |is: fn(&WaitingOn) -> bool| {
        is_settled && waiting_on.is_some_and(|waiting_on| waiting_on.iter().any(|waiting| is(&waiting.on)))
    };
    if is_rejected {
        let is_back = is_settled && counts.updated == counts.members;
        return Some(match spec.update.roll_back {
            false => "failed",
            true if is_back => "rolled-back",
            true => "rolling-back",
        });
    }
    // What was asked since the leader last looked is not as it says.
    let may_go_on = rollout.promoted == choice.target;
    if choice.target != wanted {
        Some("updating")
    } else if !may_go_on && waits_for(|on| matches!(on, WaitingOn::Promotion { .. })) {
        Some("canary")
    } else if rollout.paused && waits_for(|on| matches!(on, WaitingOn::Paused { .. })) {
        Some("paused")
    } else if is_whole && (choice.stable.is_none() || replicas == 0) {
        // No version has worked for the whole of it, since there is no member, or a moment ago there was none.
        None
    } else if choice.stable.is_none() {
        Some("starting")
    } else if choice.target != choice.stable {
        Some("updating")
    } else {
        None
    }
}

fn of_secret<'a>(
    view: &'a View,
    object: &ObjectRef,
    asked: &Asked,
    spec: &'a secret_kind::Spec,
) -> Found<'a> {
    let choice = secret::choice(view, object);
    let newest = choice.and_then(|choice| choice.newest());
    let newest = newest.filter(|newest| match spec {
        secret_kind::Spec::Given(pair) => newest.pair == *pair,
        secret_kind::Spec::Ordered { acme } => secret::acme::is_of(newest, acme),
    });
    let state = |waiting: &Waiting| match waiting.on {
        WaitingOn::CertificateExpires { .. } => Some("expiring"),
        WaitingOn::CertificateExpired { .. } => Some("expired"),
        WaitingOn::CertificateUnusable { .. } => Some("unusable"),
        WaitingOn::OrderFailed { .. } if newest.is_none() => Some("refused"),
        _ => None,
    };
    let waiting_on = view.decided(object).map(|decided| decided.waiting_on.as_slice()).unwrap_or_default();
    let trouble = waiting_on.iter().find_map(state);
    let state = trouble.unwrap_or(if newest.is_some() { "ready" } else { "pending" });
    let versions = choice.map(|choice| choice.versions.as_slice()).unwrap_or_default();
    let more = move || {
        // Which sealing keys are needed for as long as some load balancer shows what they sealed.
        let sealed_with = versions.iter().filter_map(|version| version.pair.key.sealed_with());
        let account = choice.and_then(|choice| choice.account.as_ref());
        let account = account.and_then(|account| secret_kind::sealed_with(&account.sealed));
        let given = spec.given().and_then(|pair| pair.key.sealed_with());
        let sealed_with: BTreeSet<&str> = sealed_with.chain(given).chain(account).collect();
        let of = |version: &secret_kind::Version| {
            fields(json!({
                "server_names": version.server_names,
                "begins_at": version.begins_at,
                "expires_at": version.expires_at,
                "fingerprint": version.fingerprint,
                "sealed_with": sealed_with,
            }))
        };
        let mut more = newest.map(of).unwrap_or_default();
        if let Some(acme) = spec.ordered() {
            more.extend(order_of(choice, newest));
            // Those that it is to have.
            more.entry("server_names").or_insert_with(|| json!(acme.names));
        }
        more
    };
    Found { state, ready: state == "ready", since: Some(asked.meta.changed_at), more: Box::new(more) }
}

/// How an order stands.
fn order_of(
    choice: Option<&secret_kind::Choice>,
    newest: Option<&secret_kind::Version>,
) -> Map<String, Value> {
    let failure = choice.and_then(|choice| choice.failure.as_ref());
    fields(json!({
        "order": choice.and_then(|choice| Some(&choice.order.as_ref()?.url)),
        "failed": failure.map(|failure| &failure.because),
        "ordered_again_at": failure.map(secret::acme::again_at).or(newest.map(secret::acme::renewed_at)),
    }))
}

fn of_network<'a>(view: &'a View, name: &'a Name, spec: &'a network::Spec) -> Found<'a> {
    let more = move || {
        let used = view.claimed_addresses(name).count() as u64;
        let squatted = view.claimed_addresses(name).filter_map(|address| {
            let Squatted { mac, worker, since } = view.address_claim(name, address)?.squatted.clone()?;
            Some(json!({ "address": address, "mac": mac, "worker": worker, "since": since }))
        });
        let squatted: Vec<Value> = squatted.take(SQUATTED_SHOWN_MAX).collect();
        match spec.pool() {
            Some(pool) => {
                fields(json!({ "addresses_used": used, "addresses": pool.size(), "squatted": squatted }))
            }
            None => Map::new(),
        }
    };
    Found { state: "ready", ready: true, since: None, more: Box::new(more) }
}
