//! The scheduler: verdicts in words, and that what it chooses always fits.

use insta::assert_snapshot;
use lightbyte_api::decided::Verdict;
use lightbyte_api::{ByteSize, WorkerId};
use lightbyte_plan::View;
use lightbyte_plan::scheduler::{self, Missing, Need, Scheduled, Wishes};

use crate::world::{Random, uid, worker_id, world};

fn need(cpus: u64, mebibytes: u64) -> Need {
    Need::of(cpus, ByteSize::from_mib(mebibytes), "x86_64")
}

fn verdict(verdict: &Verdict) -> String {
    let score = verdict.score.map_or_else(|| "refused".to_owned(), |score| score.to_string());
    format!("{} {score}: {}", verdict.worker, verdict.reasons.join("; "))
}

/// The choice among the workers of `given`, its reasons, and what is thought of every worker.
fn check(given: &str, need: &Need) -> String {
    let view = world(given).view();
    let Scheduled { worker, decision, missing } = scheduler::schedule(&view, need);
    let chosen = match worker {
        Some((id, name)) => {
            assert_eq!(id, worker_id(name.as_str()), "the chosen uid and name are of one worker");
            format!("{name} of {}", decision.workers)
        }
        None if missing == Missing::Room => format!("none of {} for want of room", decision.workers),
        None if missing == Missing::Places => format!("none of {} for want of a place", decision.workers),
        None => format!("none of {}", decision.workers),
    };
    let refused = decision.refused.iter().map(|(reason, count)| format!("{count} {reason}"));
    let kept = decision.best.iter().map(|kept| format!("kept {}", verdict(kept)));
    let all = scheduler::verdicts(&view, need);
    let all = all.iter().map(verdict);
    [chosen].into_iter().chain(refused).chain(kept).chain(all).collect::<Vec<String>>().join("\n")
}

#[test]
fn a_worker_takes_no_more_vms_than_it_says() {
    assert_snapshot!(check("worker n1 vms_max=2 vms=2
        worker n2 vms_max=2 vms=1 used_memory=512MiB", &need(1, 256)), @"
    n2 of 2
    1 as many VMs as it takes
    kept n2 249999: spread: 25.0 % free after it; few: VMs there: 1
    n1 refused: as many VMs as it takes
    n2 249999: spread: 25.0 % free after it; few: VMs there: 1
    ");
    assert_snapshot!(check("worker n1 vms_max=2 vms=2", &need(1, 256)), @"
    none of 1 for want of a place
    1 as many VMs as it takes
    n1 refused: as many VMs as it takes
    ");
}

#[test]
fn every_refusal_has_its_words() {
    assert_snapshot!(check("worker n1 cordoned
        worker n2 away
        worker n3 silent
        worker n4 deleting
        worker n5 architecture=aarch64
        worker n6 cpus=2 used_cpus=1
        worker n7 memory=1GiB used_memory=900MiB
        worker n8
        drop ledger/worker/{worker/n8}
        worker n9
        opaque ledger/worker/{worker/n9}
        worker n10 cpus=1 used_cpus=3", &need(2, 256)), @"
    none of 10 for want of room
    2 away
    1 being deleted
    1 cordoned
    2 no readable ledger
    1 other architecture
    3 too little room
    n1 refused: cordoned
    n10 refused: too little room: 0 of 1 CPUs and 1GiB of 1GiB free, needs 2 and 256MiB
    n2 refused: away
    n3 refused: away
    n4 refused: being deleted
    n5 refused: other architecture
    n6 refused: too little room: 1 of 2 CPUs and 1GiB of 1GiB free, needs 2 and 256MiB
    n7 refused: too little room: 4 of 4 CPUs and 124MiB of 1GiB free, needs 2 and 256MiB
    n8 refused: no readable ledger
    n9 refused: no readable ledger
    ");
}

#[test]
fn the_worker_with_the_most_left_is_chosen() {
    // What is scarcer on a worker counts: n1 has CPUs to spare and no memory, n2 the reverse.
    assert_snapshot!(check("worker n1 cpus=16 memory=1GiB used_memory=512MiB
        worker n2 cpus=4 used_cpus=2 memory=64GiB
        worker n3 cpus=4 memory=1GiB used_cpus=1 used_memory=256MiB", &need(1, 128)), @"
    n3 of 3
    kept n3 500000: spread: 50.0 % free after it; few: VMs there: 0
    kept n1 375000: spread: 37.5 % free after it; few: VMs there: 0
    kept n2 250000: spread: 25.0 % free after it; few: VMs there: 0
    n1 375000: spread: 37.5 % free after it; few: VMs there: 0
    n2 250000: spread: 25.0 % free after it; few: VMs there: 0
    n3 500000: spread: 50.0 % free after it; few: VMs there: 0
    ");
    // Among equals the one with fewer VMs, then the first name.
    assert_snapshot!(check("worker n3 vms=1
        worker n2 vms=1
        worker n1 vms=2", &need(1, 128)), @"
    n2 of 3
    kept n2 749999: spread: 75.0 % free after it; few: VMs there: 1
    kept n3 749999: spread: 75.0 % free after it; few: VMs there: 1
    kept n1 749998: spread: 75.0 % free after it; few: VMs there: 2
    n1 749998: spread: 75.0 % free after it; few: VMs there: 2
    n2 749999: spread: 75.0 % free after it; few: VMs there: 1
    n3 749999: spread: 75.0 % free after it; few: VMs there: 1
    ");
    // A VM of no size on a worker of no size.
    assert_snapshot!(check("worker n1 cpus=0 memory=0", &need(0, 0)), @"
    n1 of 1
    kept n1 0: spread: 0.0 % free after it; few: VMs there: 0
    n1 0: spread: 0.0 % free after it; few: VMs there: 0
    ");
    assert_snapshot!(check("", &need(1, 1)), @"none of 0");
}

#[test]
fn a_decision_keeps_five_verdicts_and_does_not_look_at_closed_workers() {
    let workers: Vec<String> = (0..9).map(|index| format!("worker n{index} vms={}", 9 - index)).collect();
    let found = check(&format!("{}\nworker x away\nworker y away", workers.join("\n")), &need(1, 128));
    let kept: Vec<&str> = found.lines().filter(|line| !line.starts_with("n")).collect();
    assert_snapshot!(kept.join("\n"), @"
    kept n8 749999: spread: 75.0 % free after it; few: VMs there: 1
    kept n7 749998: spread: 75.0 % free after it; few: VMs there: 2
    kept n6 749997: spread: 75.0 % free after it; few: VMs there: 3
    kept n5 749996: spread: 75.0 % free after it; few: VMs there: 4
    kept n4 749995: spread: 75.0 % free after it; few: VMs there: 5
    x refused: away
    y refused: away
    ");
}

/// What is free on `worker`, if anything may go there: computed from the records and not by the scheduler.
fn free(view: &View, worker: WorkerId) -> (u64, u64) {
    let observed = view.observed_worker(worker).expect("a worker that said what it has");
    let ledger = view.worker_ledger(worker).expect("a worker with a ledger");
    let memory = observed.memory.bytes().saturating_sub(ledger.memory.bytes());
    (observed.cpus.saturating_sub(ledger.cpus), memory)
}

#[test]
fn what_is_chosen_fits_and_nothing_is_refused_that_would_fit() {
    for seed in 0..500 {
        let mut random = Random::new(seed);
        let mut fitting = Vec::new();
        let need = need(random.below(6), 64 * random.below(10));
        let lines: Vec<String> = (0..random.below(6))
            .map(|index| {
                let (cpus, used_cpus) = (random.below(8), random.below(8));
                let (memory, used_memory) = (64 * random.below(16), 64 * random.below(16));
                let odd = ["cordoned", "away", "deleting", "silent", "architecture=aarch64", "", "", "", "", ""];
                let flag = odd[random.below(odd.len() as u64) as usize];
                let has_room = |used: u64, needed: u64, all: u64| needed == 0 || used + needed <= all;
                let has_cpus = has_room(used_cpus, need.cpus, cpus);
                if flag.is_empty() && has_cpus && has_room(used_memory, need.memory.mib(), memory) {
                    fitting.push(format!("n{index}"));
                }
                format!(
                    "worker n{index} cpus={cpus} used_cpus={used_cpus} memory={memory}MiB used_memory={used_memory}MiB {flag}"
                )
            })
            .collect();
        let view = world(&lines.join("\n")).view();
        let scheduled = scheduler::schedule(&view, &need);
        match scheduled.worker {
            Some((worker, name)) => {
                assert!(fitting.contains(&name.to_string()), "seed {seed}: {name} does not fit {need:?}");
                let (cpus, memory) = free(&view, worker);
                assert!(
                    cpus >= need.cpus && memory >= need.memory.bytes(),
                    "seed {seed}: {name} has no room"
                );
                let best = scheduled.decision.best.first().expect("the chosen one's verdict");
                assert_eq!(best.worker, name, "seed {seed}: the first verdict is of the chosen one");
                // Whatever order the workers are visited in, none of them is better than the chosen one.
                let all = scheduler::verdicts(&view, &need);
                let top = all.iter().filter_map(|verdict| verdict.score).max();
                assert_eq!(best.score, top, "seed {seed}: {all:?}");
                let scores: Vec<Option<i64>> =
                    scheduled.decision.best.iter().map(|kept| kept.score).collect();
                assert!(scores.is_sorted_by(|one, two| one >= two), "seed {seed}: {scores:?}");
            }
            None => assert!(fitting.is_empty(), "seed {seed}: {fitting:?} would fit {need:?}"),
        }
        let refused: u64 = scheduled.decision.refused.iter().map(|(_, count)| count).sum();
        assert_eq!(
            refused + fitting.len() as u64,
            scheduled.decision.workers,
            "seed {seed}: each is counted once"
        );
    }
}

/// A need of a member of `scalegroup/web`.
fn member(cpus: u64) -> Need {
    let group = uid(&"scalegroup/web".parse().expect("an object"));
    Need { group: Some(group), ..need(cpus, 128) }
}

#[test]
fn members_are_spread_over_zones_then_racks_then_workers() {
    let zones = "worker n1 label=zone:a label=rack:1
        worker n2 label=zone:a label=rack:2
        worker n3 label=zone:b label=rack:1 used_cpus=3
        worker n4 label=zone:b label=rack:1 used_cpus=2";
    let members = |workers: &[&str]| {
        let lines = workers.iter().zip(1..).map(|(worker, number)| {
            format!("vm web-{number} on={worker} owner=scalegroup/web observed=running")
        });
        [zones.to_owned(), "rack".to_owned()].into_iter().chain(lines).collect::<Vec<String>>().join("\n")
    };
    let first = |workers: &[&str]| {
        let found = check(&members(workers), &member(1));
        found.lines().filter(|line| line.starts_with("kept")).take(2).collect::<Vec<&str>>().join("\n")
    };
    assert_snapshot!(first(&[]), @"
    kept n1 750000: zone: members of its group in it: 0; rack: members of its group in it: 0; apart: members of its group there: 0; spread: 75.0 % free after it; few: VMs there: 0
    kept n2 750000: zone: members of its group in it: 0; rack: members of its group in it: 0; apart: members of its group there: 0; spread: 75.0 % free after it; few: VMs there: 0
    ");
    assert_snapshot!(first(&["n1"]), @"
    kept n4 250000: zone: members of its group in it: 0; rack: members of its group in it: 0; apart: members of its group there: 0; spread: 25.0 % free after it; few: VMs there: 0
    kept n3 0: zone: members of its group in it: 0; rack: members of its group in it: 0; apart: members of its group there: 0; spread: 0.0 % free after it; few: VMs there: 0
    ");
    assert_snapshot!(first(&["n1", "n4"]), @"
    kept n2 -2001999250000: zone: members of its group in it: 1; rack: members of its group in it: 1; apart: members of its group there: 0; spread: 75.0 % free after it; few: VMs there: 0
    kept n3 -2002000000000: zone: members of its group in it: 1; rack: members of its group in it: 1; apart: members of its group there: 0; spread: 0.0 % free after it; few: VMs there: 0
    ");
    assert_snapshot!(first(&["n1", "n4", "n2"]), @"
    kept n3 -2002000000000: zone: members of its group in it: 1; rack: members of its group in it: 1; apart: members of its group there: 0; spread: 0.0 % free after it; few: VMs there: 0
    kept n4 -2002002000001: zone: members of its group in it: 1; rack: members of its group in it: 1; apart: members of its group there: 1; spread: 0.0 % free after it; few: VMs there: 1
    ");
}

#[test]
fn no_member_has_a_better_place_than_the_chosen_one() {
    for seed in 0..500 {
        let mut random = Random::new(seed);
        let mut lines = vec!["rack".to_owned()];
        for index in 0..1 + random.below(30) {
            let label = |key: &str, value: u64| {
                if value == 0 { String::new() } else { format!("label={key}:{value}") }
            };
            let (zone, rack) = (label("zone", random.below(3)), label("rack", random.below(4)));
            let (used, cordoned) = (random.below(6), if random.below(5) == 0 { "cordoned" } else { "" });
            lines.push(format!(
                "worker w{index} {zone} {rack} used_cpus={used} cpus=6 has={} {cordoned}",
                ["a", "b", "c"][random.below(3) as usize]
            ));
            for vm in 0..random.below(3) {
                lines.push(format!("vm m{index}x{vm} on=w{index} owner=scalegroup/web observed=running"));
            }
        }
        let view = world(&lines.join("\n")).view();
        let mut need = member(1 + random.below(4));
        need.wishes.parts = vec!["b".repeat(16)];
        if random.below(3) == 0 {
            need.wishes.failed_on =
                (0..random.below(20)).map(|index| worker_id(&format!("w{index}"))).collect();
        }
        let scheduled = scheduler::schedule(&view, &need);
        let all = scheduler::verdicts(&view, &need);
        let top = all.iter().filter_map(|verdict| verdict.score).max();
        // Of more workers than are looked at, another may have a little more room, or the image.
        let weight = |score: i64| score.div_euclid(2_000_000);
        let chosen = scheduled.decision.best.first().and_then(|best| best.score);
        assert_eq!(chosen.map(weight), top.map(weight), "seed {seed}: {all:?}");
    }
}

#[test]
fn what_is_preferred_counts_where_there_is_a_choice() {
    let named = |name: &str| [worker_id(name)].into();
    let workers = "worker n1\nworker n2 used_cpus=1 has=b\nworker n3 used_cpus=1";
    let first = |need: &Need| {
        let found = check(workers, need);
        found.lines().find(|line| line.starts_with("kept")).unwrap_or_default().to_owned()
    };
    let with = |wishes: Wishes| Need { wishes, ..need(1, 128) };
    assert_snapshot!(first(&with(Wishes { near_to: Some(named("n3")), ..Wishes::default() })), @"kept n3 1100000: preferred: 1 of 1; spread: 50.0 % free after it; few: VMs there: 0");
    assert_snapshot!(first(&with(Wishes { apart_from: [worker_id("n1"), worker_id("n2")].into(), ..Wishes::default() })), @"kept n3 1100000: preferred: 1 of 1; spread: 50.0 % free after it; few: VMs there: 0");
    assert_snapshot!(first(&with(Wishes { failed_on: named("n1"), ..Wishes::default() })), @"kept n2 500000: spread: 50.0 % free after it; few: VMs there: 0");
    // An image that is there weighs less than much room, and more than a little.
    let image = Wishes { parts: vec!["b".repeat(16)], ..Wishes::default() };
    assert_snapshot!(first(&with(image.clone())), @"kept n1 750000: spread: 75.0 % free after it; few: VMs there: 0");
    let full = "worker n1 cpus=100 memory=100GiB\nworker n2 cpus=100 memory=100GiB used_cpus=5 has=b";
    assert_snapshot!(check(full, &with(image)), @"
    n2 of 2
    kept n2 1040000: spread: 94.0 % free after it; image: it is there already; few: VMs there: 0
    kept n1 990000: spread: 99.0 % free after it; few: VMs there: 0
    n1 990000: spread: 99.0 % free after it; few: VMs there: 0
    n2 1040000: spread: 94.0 % free after it; image: it is there already; few: VMs there: 0
    ");
}

#[test]
fn a_worker_may_be_kept_for_some() {
    let mut need = need(1, 128);
    assert_snapshot!(check("worker n1 only=team:db only=gpu:yes", &need), @"
    none of 1
    1 only for VMs with other labels
    n1 refused: only for VMs with other labels
    ");
    need.labels = [("team", "db"), ("gpu", "yes"), ("app", "x")]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
    assert_snapshot!(check("worker n1 only=team:db only=gpu:yes", &need), @"
    n1 of 1
    kept n1 750000: spread: 75.0 % free after it; few: VMs there: 0
    n1 750000: spread: 75.0 % free after it; few: VMs there: 0
    ");
}
