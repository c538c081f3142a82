//! Asks workers what their guests use.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use futures::{StreamExt as _, stream};
use lightbyte_api::wire::{CarriedTo, ClusterUsage, Measure, Measured, MeasuredVm, VmUsage, WorkerUsage};
use lightbyte_api::{Kind, Name, ObjectRef, Uid, VmId};
use lightbyte_link::{Client, Endpoint};
use lightbyte_plan::View;
use lightbyte_plan::fronts::choice;
use lightbyte_plan::guest;
use lightbyte_plan::load::{self, Counted};
use lightbyte_plan::planner::vm::placement;

use crate::api::answer::{Answer, Answered};
use crate::api::input::Parameters;
use crate::problem::Failure;
use crate::{Server, chain};

/// How many workers are asked at once.
const WORKERS_AT_ONCE_MAX: usize = 32;
/// How long a worker may take to answer: it waits a second and a half for its guests.
const WORKER_WITHIN: Duration = Duration::from_secs(5);

/// The same for people, who wait for it; and how long all of them may take: a client waits five seconds for a read.
const FOR_PEOPLE_WITHIN: Duration = Duration::from_secs(2);
const ALL_WITHIN: Duration = Duration::from_millis(2_500);
/// How long one of the people waits for his turn.
const TURN_WITHIN: Duration = Duration::from_secs(2);

/// What groups scale by, as the guests that it concerns have counted by now. Those that cannot be asked, or do not answer, are not
/// in it.
pub(crate) async fn counted(view: &View) -> Counted {
    let mut by_address: BTreeMap<String, Measure> = BTreeMap::new();
    let proxies = load::wanted_proxies(view);
    let proxy_vms = proxies.iter().filter_map(|proxy| view.object_of(*proxy));
    // Of those on each worker it alone is asked, and heard.
    for way in load::wanted(view).chain(proxy_vms).filter_map(|vm| guest::way_to(view, vm).ok()) {
        let measure = by_address.entry(way.address).or_default();
        measure.vms.push(way.vm);
        if proxies.contains(&way.vm.uid()) {
            measure.proxies.push(way.vm);
        }
    }
    let answers = stream::iter(by_address).map(|(address, wanted)| async move {
        let said = of_worker(address, wanted.clone(), WORKER_WITHIN).await?.vms;
        Some(said.into_iter().filter(|found| wanted.vms.contains(&found.vm)).collect::<Vec<MeasuredVm>>())
    });
    let answers: Vec<Option<Vec<MeasuredVm>>> = answers.buffer_unordered(WORKERS_AT_ONCE_MAX).collect().await;
    let mut counted = Counted::default();
    for found in answers.into_iter().flatten().flatten() {
        counted.cpu.insert(found.vm.uid(), found.usage.into());
        counted.carried.extend(found.carried.map(|carried| (found.vm.uid(), carried)));
    }
    counted
}

/// `GET /v1/usage`: what workers and VMs use, measured now.
pub(crate) async fn usage(
    State(server): State<Arc<Server>>,
    parameters: Parameters,
) -> Answered<ClusterUsage> {
    parameters.only(&["min_revision"])?;
    let view = server.view_for(&parameters).await?;
    // Workers measure for a few at a time: one server asks for one of its people after the other.
    let turn = tokio::time::timeout(TURN_WITHIN, server.measuring.acquire()).await;
    let Ok(Ok(_turn)) = turn else {
        let title = "this server measures for others already";
        return Err(Failure::unavailable(title, "ask again in a moment"));
    };
    let balancers = balancers(&view);
    let proxies: Vec<VmId> = balancers.keys().map(|proxy| VmId::new(*proxy)).collect();
    let asked = stream::iter(guest::all_ways(&view)).map(|(name, address)| {
        // A worker knows which of them it has.
        let wanted = Measure { proxies: proxies.clone(), ..Measure::default() };
        async move { (name, of_worker(address, wanted, FOR_PEOPLE_WITHIN).await) }
    });
    let mut usage = ClusterUsage::default();
    let mut answers = asked.buffer_unordered(WORKERS_AT_ONCE_MAX);
    // Whoever has not answered by then is as silent as those that fail.
    let until = tokio::time::Instant::now() + ALL_WITHIN;
    let mut said = BTreeMap::new();
    while let Ok(Some((name, answer))) = tokio::time::timeout_at(until, answers.next()).await {
        said.extend(answer.map(|answer| (name, answer)));
    }
    for (name, _) in guest::all_ways(&view) {
        let measured = said.remove(&name);
        usage.workers.push(WorkerUsage { name: name.clone(), usage: measured.as_ref().map(|all| all.host) });
        for found in measured.into_iter().flat_map(|measured| measured.vms) {
            // Each worker is heard of what is placed there.
            let Some(vm) = view.object_of(found.vm.uid()).filter(|object| object.kind == Kind::Vm) else {
                continue;
            };
            if placement(&view, vm).is_none_or(|placement| placement.worker_name != name) {
                continue;
            }
            usage.vms.push(VmUsage {
                name: vm.name.clone(),
                worker: name.clone(),
                group: group_of(&view, vm),
                usage: found.usage,
                balancer: balancers.get(&found.vm.uid()).cloned(),
                carried: carried_to(&view, &found),
            });
        }
    }
    Ok(Answer::at(view.revision(), usage))
}

/// Load balancers by the VMs of their proxies.
fn balancers(view: &View) -> BTreeMap<Uid, Name> {
    let mut found = BTreeMap::new();
    for balancer in view.objects_of(Kind::LoadBalancer) {
        let proxies = choice(view, balancer).into_iter().flat_map(|choice| &choice.proxies);
        found.extend(proxies.map(|proxy| (proxy.uid, balancer.name.clone())));
    }
    found
}

fn group_of(view: &View, vm: &ObjectRef) -> Option<Name> {
    view.group_of(vm).map(|group| group.name.clone())
}

/// A proxy's word of VMs that there are: of others it is no news, or no truth.
fn carried_to(view: &View, found: &MeasuredVm) -> Vec<CarriedTo> {
    let vm_of = |uid: &Uid| view.object_of(*uid).filter(|object| object.kind == Kind::Vm);
    let known = found.carried.iter().flatten().filter_map(|(uid, carried)| Some((vm_of(uid)?, *carried)));
    known.map(|(vm, carried)| CarriedTo { vm: vm.name.clone(), group: group_of(view, vm), carried }).collect()
}

/// What one worker says; nothing when it does not answer.
async fn of_worker(address: String, wanted: Measure, within: Duration) -> Option<Measured> {
    let client = Client::new(vec![Endpoint::of_address(&address)?]).within(within);
    match client.post::<_, Measured>("/v1/usage", &wanted).await {
        Ok(answer) => Some(answer.value),
        Err(error) => {
            tracing::debug!(address, error = chain(&error), "a worker does not say what its guests use");
            None
        }
    }
}
