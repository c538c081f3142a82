//! Asks workers what their guests use.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use futures::{StreamExt as _, stream};
use lightbyte_api::wire::{ClusterUsage, Measure, Measured, VmUsage, WorkerUsage};
use lightbyte_api::{Kind, ObjectRef, Uid, VmId};
use lightbyte_link::{Client, Endpoint};
use lightbyte_plan::View;
use lightbyte_plan::guest;
use lightbyte_plan::load::CpuTime;

use crate::api::answer::{Answer, Answered};
use crate::api::input::Parameters;
use crate::{Server, chain};

/// How many workers are asked at once.
const WORKERS_AT_ONCE_MAX: usize = 32;
/// How long a worker may take to answer: it waits a second for each sixteen guests that are silent.
const WORKER_WITHIN: Duration = Duration::from_secs(5);

/// The same for people, who wait for it; and how long all of them may take: a client waits five seconds for a read.
const FOR_PEOPLE_WITHIN: Duration = Duration::from_secs(2);
const ALL_WITHIN: Duration = Duration::from_secs(4);

/// What the guests of `members` have counted by now. Those that cannot be asked, or do not answer, are not in it.
pub(crate) async fn cpu_times(view: &View, members: Vec<ObjectRef>) -> BTreeMap<Uid, CpuTime> {
    let mut by_address: BTreeMap<String, Vec<VmId>> = BTreeMap::new();
    for way in members.iter().filter_map(|member| guest::way_to(view, member).ok()) {
        by_address.entry(way.address).or_default().push(way.vm);
    }
    let answers =
        stream::iter(by_address).map(|(address, vms)| of_worker(address, Measure { vms }, WORKER_WITHIN));
    let answers: Vec<Option<Measured>> = answers.buffer_unordered(WORKERS_AT_ONCE_MAX).collect().await;
    let vms = answers.into_iter().flatten().flat_map(|answer| answer.vms);
    vms.map(|found| {
        let time =
            CpuTime { busy_millis: found.usage.cpu_busy_millis, idle_millis: found.usage.cpu_idle_millis };
        (found.vm.uid(), time)
    })
    .collect()
}

/// `GET /v1/usage`: what workers and VMs use, measured now.
pub(crate) async fn usage(
    State(server): State<Arc<Server>>,
    parameters: Parameters,
) -> Answered<ClusterUsage> {
    parameters.only(&["min_revision"])?;
    let view = server.view_for(&parameters).await?;
    let asked = stream::iter(guest::all_ways(&view)).map(|(name, address)| async move {
        (name, of_worker(address, Measure::default(), FOR_PEOPLE_WITHIN).await)
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
            // What is not ours by name is nobody's.
            let Some(vm) = view.object_of(found.vm.uid()).filter(|object| object.kind == Kind::Vm) else {
                continue;
            };
            let group = view.group_of(vm).map(|group| group.name.clone());
            let (vm, worker) = (vm.name.clone(), name.clone());
            usage.vms.push(VmUsage { name: vm, worker, group, usage: found.usage });
        }
    }
    Ok(Answer::at(view.revision(), usage))
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
