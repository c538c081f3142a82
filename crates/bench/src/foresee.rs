//! `foresee`: what questions cost that decide on forks of the view: plans, what a lost worker would do, and `why`.
//!
//! 1,000 VMs in groups of fifty run on 100 workers, all in memory. The baseline is what a forecast cannot do without: the
//! shipped loop looks at everything once. What counts is the processor time of the question alone.

use anyhow::{Context as _, Result, ensure};
use lightbyte_api::kinds::scalegroup::{Spec as GroupSpec, Template};
use lightbyte_api::kinds::{SpecRules as _, vm, worker};
use lightbyte_api::{ByteSize, Kind, Manifest, Name, ObjectRef, Span, Spec};
use lightbyte_plan::forecast::{self, BootEstimate, Change, Context};
use lightbyte_plan::planner::vm::placement;
use lightbyte_plan::{View, room, why};
use std::collections::BTreeMap;

use crate::Outcome;
use crate::figures::{Row, Samples};
use crate::placement::{NOW, World, name, timed};

/// How often each question is asked.
pub(crate) const RUNS: usize = 9;

const WORKERS: usize = 100;
const GROUPS: u64 = 20;
const MEMBERS: u64 = 50;

const CONTEXT: Context =
    Context { now: NOW, fresh: 1 << 110, boot: BootEstimate { lasts: Span::from_secs(5), measured: 0 } };

/// Asks every question, in turns.
///
/// # Errors
/// When an answer is not what it must be.
pub(crate) async fn measure(runs: usize) -> Result<Outcome> {
    let view = settled()?;
    let worker = ObjectRef::new(Kind::Worker, name("n-7")?);
    let drained = worker::Spec { draining: true, ..worker::Spec::default() };
    let large = vm::Spec { memory: ByteSize::from_mib(1 << 20), ..vm::Spec::of_image(name("demo")?) };
    let waiting = Change::Apply(manifest(name("large")?, Spec::Vm(large)));
    let full = forecast::end_of(&view, &[waiting], &CONTEXT).context("ask for a VM that is too large")?;
    let placed = ObjectRef::new(Kind::Vm, name("g-0-1")?);
    let homeless = ObjectRef::new(Kind::Vm, name("large")?);
    let mut spent = vec![Samples::default(); 6];
    for _ in 0..runs {
        let plan = |change: Change| forecast::forecast(&view, &[change], &CONTEXT, &|| true);
        let once = timed(|| World::of(view.clone()).settle());
        once.0?;
        let scaled =
            timed(|| plan(Change::Apply(group(0, MEMBERS + 3).unwrap_or_else(|_| unreachable!("a name")))));
        ensure!(scaled.0.is_ok_and(|told| told.unmet.is_empty()), "the group has room");
        let moved =
            timed(|| plan(Change::Apply(manifest(worker.name.clone(), Spec::Worker(drained.clone())))));
        ensure!(moved.0.is_ok_and(|told| told.unmet.is_empty()), "the worker is emptied");
        let losses = timed(|| room::losses(&view));
        ensure!(losses.0.tried.len() == WORKERS, "every worker has VMs");
        let explained = timed(|| why::why(&view, &placed, None));
        ensure!(explained.0.is_some_and(|told| told.ready), "the VM runs");
        let refused = timed(|| why::why(&full, &homeless, None));
        ensure!(refused.0.is_some_and(|told| !told.remedies.is_empty()), "something would help");
        let all = [once.1, scaled.1, moved.1, losses.1, explained.1, refused.1];
        all.iter().zip(&mut spent).for_each(|(one, samples)| samples.push(one.as_secs_f64() * 1e3));
        // Ctrl-C is seen here.
        tokio::task::yield_now().await;
    }
    let whats = [
        "the loop looks at 1,000 VMs once",
        "plan: a group of 50 scaled by three",
        "plan: a worker with ten members drained",
        "what the loss of each of 100 workers would do",
        "why a VM is where it is",
        "why a VM has no place, and what would help",
    ];
    let rows = whats.iter().zip(&spent).enumerate().map(|(index, (what, samples))| {
        let row = Row::new("foresee", (*what).to_owned(), "ms", samples.clone());
        let row = if index == 0 { row } else { row.against(&spent[0]) };
        Row { cpu_ms: Some(samples.median()), ..row }
    });
    Ok(Outcome::Measured(rows.collect()))
}

/// A cluster at rest whose groups all run.
fn settled() -> Result<View> {
    let mut view = World::new(WORKERS)?.into_view();
    for number in 0..GROUPS {
        let change = Change::Apply(group(number, MEMBERS)?);
        view = forecast::end_of(&view, &[change], &CONTEXT_OF[number as usize]).context("make a group")?;
    }
    let vms = view.objects_of(Kind::Vm).filter(|vm| placement(&view, vm).is_some()).count();
    ensure!(vms as u64 == GROUPS * MEMBERS, "{vms} VMs run");
    Ok(view)
}

/// Fresh numbers for each group.
static CONTEXT_OF: [Context; GROUPS as usize] = {
    let mut contexts = [CONTEXT; GROUPS as usize];
    let mut index = 0;
    while index < contexts.len() {
        contexts[index].fresh = (index as u128 + 2) << 104;
        index += 1;
    }
    contexts
};

fn group(number: u64, replicas: u64) -> Result<Manifest> {
    let template = Template { labels: BTreeMap::new(), vm: vm::Spec::of_image(name("demo")?) };
    let shortest = GroupSpec::shortest().context("a group has a shortest form")?;
    let document = serde_json::json!({"kind": "scalegroup", "name": format!("g-{number}"), "spec": shortest});
    let read = Manifest::read(&document);
    let Ok(Manifest { name, labels, spec: Spec::ScaleGroup(spec) }) = read else {
        anyhow::bail!("the shortest group is one");
    };
    Ok(Manifest {
        name,
        labels,
        spec: Spec::ScaleGroup(GroupSpec { replicas: Some(replicas), template, ..spec }),
    })
}

const fn manifest(name: Name, spec: Spec) -> Manifest {
    Manifest { name, labels: BTreeMap::new(), spec }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_question_has_an_answer() {
        let Ok(Outcome::Measured(rows)) = measure(1).await else { panic!("it is measured") };
        assert_eq!(rows.len(), 6);
    }
}
