//! Asks workers what their guests use.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::{StreamExt as _, stream};
use lightbyte_api::wire::{Measure, Measured};
use lightbyte_api::{ObjectRef, Uid, VmId};
use lightbyte_link::{Client, Endpoint};
use lightbyte_plan::View;
use lightbyte_plan::guest;
use lightbyte_plan::load::CpuTime;

use crate::chain;

/// How many workers are asked at once.
const WORKERS_AT_ONCE_MAX: usize = 32;
/// How long a worker may take to answer: it waits a second for each sixteen guests that are silent.
const WORKER_WITHIN: Duration = Duration::from_secs(5);

/// What the guests of `members` have counted by now. Those that cannot be asked, or do not answer, are not in it.
pub(crate) async fn cpu_times(view: &View, members: Vec<ObjectRef>) -> BTreeMap<Uid, CpuTime> {
    let mut by_address: BTreeMap<String, Vec<VmId>> = BTreeMap::new();
    for way in members.iter().filter_map(|member| guest::way_to(view, member).ok()) {
        by_address.entry(way.address).or_default().push(way.vm);
    }
    let answers = stream::iter(by_address).map(|(address, vms)| of_worker(address, Measure { vms }));
    let answers: Vec<Option<Measured>> = answers.buffer_unordered(WORKERS_AT_ONCE_MAX).collect().await;
    let vms = answers.into_iter().flatten().flat_map(|answer| answer.vms);
    vms.map(|found| {
        let time =
            CpuTime { busy_millis: found.usage.cpu_busy_millis, idle_millis: found.usage.cpu_idle_millis };
        (found.vm.uid(), time)
    })
    .collect()
}

/// What one worker says; nothing when it does not answer.
pub(crate) async fn of_worker(address: String, wanted: Measure) -> Option<Measured> {
    let client = Client::new(vec![Endpoint::of_address(&address)?]).within(WORKER_WITHIN);
    match client.post::<_, Measured>("/v1/usage", &wanted).await {
        Ok(answer) => Some(answer.value),
        Err(error) => {
            tracing::debug!(address, error = chain(&error), "a worker does not say what its guests use");
            None
        }
    }
}
