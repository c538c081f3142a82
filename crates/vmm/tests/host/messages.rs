//! Deliveries that are late, replies that are lost or refusals, and reports that must be told again.

use insta::assert_snapshot;
use lightbyte_api::Uid;
use lightbyte_api::assigned::{Assigned, WantedVm, WantedVolume};
use lightbyte_api::observed::{Observed, VmPhase};
use lightbyte_api::records::Epoch;
use lightbyte_plan::agent::{Action, Agent, Delivery, News, Reply, Report, Stamped};

use crate::bench::{Bench, VM, VOLUME, assigned_vm, assigned_volume, claim, epoch};

/// What the agent that is at revision 20 of epoch 2 says to a delivery.
fn check(cluster: u128, of_epoch: u64, revision: u64, news: News) -> String {
    let mut agent = Agent::default();
    let begin = Delivery { epoch: epoch(2), revision: 20, news: News::Inventory(Vec::new()) };
    agent.deliver(begin, crate::bench::at(0)).expect("the first inventory");
    let epoch = Epoch { cluster: Uid::from_bits(cluster), epoch: of_epoch };
    let outcome = agent.deliver(Delivery { epoch, revision, news }, crate::bench::at(0));
    match outcome {
        Ok(()) => format!("taken, at {:?}", agent.cursor()),
        Err(stale) => {
            assert_eq!(agent.cursor(), Some(20), "a refused delivery changes nothing");
            assert_eq!(agent.desks().count(), 0, "a refused delivery changes nothing");
            stale.to_string()
        }
    }
}

#[test]
fn stale_deliveries_are_refused() {
    let assigned = Stamped { mod_revision: 9, value: Assigned::Vm(assigned_vm(1, WantedVm::Running, 0)) };
    let change = News::Change { object: VM, assigned: Some(assigned) };
    let inventory = News::Inventory(Vec::new());
    assert_snapshot!(check(1, 2, 20, change.clone()), @"taken, at Some(20)");
    assert_snapshot!(check(1, 2, 21, News::Progress), @"taken, at Some(21)");
    assert_snapshot!(check(1, 2, 19, News::Progress), @"the server is at revision 19, this worker has seen 20");
    assert_snapshot!(check(1, 2, 19, change.clone()), @"the server is at revision 19, this worker has seen 20");
    assert_snapshot!(check(1, 2, 19, inventory.clone()), @"the server is at revision 19, this worker has seen 20");
    assert_snapshot!(check(1, 1, 30, inventory.clone()), @"the server speaks for epoch 1 of cluster 00000000-0000-0000-0000-000000000001, which this worker has left or never was in");
    assert_snapshot!(check(7, 2, 30, inventory.clone()), @"the server speaks for epoch 2 of cluster 00000000-0000-0000-0000-000000000007, which this worker has left or never was in");
    assert_snapshot!(check(7, 3, 30, inventory.clone()), @"the server speaks for epoch 3 of cluster 00000000-0000-0000-0000-000000000007, which this worker has left or never was in");
    // A restore may take revisions back, and must begin with an inventory.
    assert_snapshot!(check(1, 3, 5, inventory), @"taken, at Some(5)");
    assert_snapshot!(check(1, 3, 30, change.clone()), @"a new epoch must begin with an inventory");
    let first = Delivery { epoch: epoch(1), revision: 1, news: change };
    let refused = Agent::default().deliver(first, crate::bench::at(0)).expect_err("no inventory yet");
    assert_snapshot!(refused, @"a new epoch must begin with an inventory");
}

#[test]
fn an_agent_remembers_what_it_wrote_itself() {
    let bench = Bench::running();
    assert_eq!(bench.agent.cursor(), Some(bench.revision), "the last report was stored at this revision");
    assert_eq!(Agent::default().cursor(), None);
}

#[test]
fn an_older_assignment_does_not_count() {
    let mut bench = Bench::running();
    bench.tell_vm(5, WantedVm::Stopped, 0);
    bench.rest();
    let steps = bench.steps();
    bench.tell_vm(4, WantedVm::Running, 0);
    bench.rest();
    assert_eq!(bench.steps(), steps);
    assert_eq!(bench.phase(), Some(VmPhase::Stopped));
    // Nor before anything is saved.
    let mut bench = Bench::new();
    bench.assign(VM, Some(Assigned::Vm(assigned_vm(5, WantedVm::Stopped, 0))));
    bench.begin();
    let older = Stamped { mod_revision: 2, value: Assigned::Vm(assigned_vm(4, WantedVm::Running, 0)) };
    bench.deliver(News::Change { object: VM, assigned: Some(older) });
    bench.rest();
    assert_eq!(bench.phase(), Some(VmPhase::Stopped), "{}", bench.trace.join("\n"));
}

#[test]
fn nothing_happens_before_an_inventory() {
    let bench = Bench::running();
    bench.host.exit(crate::bench::vm_id());
    let facts = [VM, VOLUME].map(|object| (object, bench.facts(object)));
    let mut agent = Agent::begin(facts);
    let reports =
        agent.actions(bench.now).into_iter().filter(|(_, action)| matches!(action, Action::Report(_)));
    assert_eq!(reports.count(), 0, "what is stored is not known, and so nothing can be compared with it");
}

#[test]
fn a_claim_is_refused_when_the_assignment_has_changed() {
    let mut bench = Bench::new();
    bench.assign(VM, Some(Assigned::Vm(assigned_vm(1, WantedVm::Running, 0))));
    bench.begin();
    // The assignment changes in the store, and the news is late.
    bench.assign(VM, Some(Assigned::Vm(assigned_vm(2, WantedVm::Removed, 0))));
    bench.rest();
    assert_snapshot!(bench.trace.join("\n"), @"vm: report refused");
    bench.news(VM);
    bench.rest();
    assert_eq!(bench.steps(), 0, "what was never claimed leaves nothing to remove");
    assert_eq!(bench.store[&VM].observed, None);
    // The assignment is gone when the news comes: nothing is left to remember.
    bench.assign(VM, None);
    bench.news(VM);
    assert_eq!(bench.agent.desks().count(), 0);
}

#[test]
fn a_claim_that_was_refused_is_made_anew_for_the_new_assignment() {
    let mut bench = Bench::new();
    bench.assign(VOLUME, Some(Assigned::Volume(assigned_volume(1, WantedVolume::Present))));
    bench.begin();
    bench.assign(VOLUME, Some(Assigned::Volume(assigned_volume(2, WantedVolume::Present))));
    bench.rest();
    bench.news(VOLUME);
    bench.rest();
    assert_snapshot!(bench.trace.join("\n"), @"
    volume: report refused
    volume: report Claimed 2
    volume: save Present 2
    volume: CreateDisk { written_by: [] }
    volume: report Claimed 2
    volume: save Present 2 created
    volume: report Present 2
    ");
}

/// The one report that the agent sends now.
fn one_report(bench: &mut Bench) -> Report {
    let actions = bench.agent.actions(bench.now);
    let mut reports = actions.into_iter().filter_map(|(_, action)| match action {
        Action::Report(report) => Some(report),
        Action::Step(_) | Action::Check(_) | Action::Proxy(_) | Action::Address(_) => None,
    });
    let report = reports.next().expect("a report");
    assert_eq!(reports.next(), None, "one report at a time");
    report
}

#[test]
fn a_lost_reply_is_asked_for_again() {
    for stored in [true, false] {
        let mut bench = Bench::new();
        bench.assign(VOLUME, Some(Assigned::Volume(assigned_volume(1, WantedVolume::Present))));
        bench.begin();
        let first = one_report(&mut bench);
        if stored {
            bench.store_report(&first);
        }
        assert!(
            bench.agent.actions(bench.now).is_empty(),
            "one in flight, and no effect before it is claimed"
        );
        bench.agent.reply(VOLUME, Reply::Lost);
        bench.rest();
        let expected: &[&str] = if stored {
            &["volume: report Claimed 1", "volume: report refused", "volume: save Present 1"]
        } else {
            &["volume: report Claimed 1", "volume: save Present 1", "volume: CreateDisk { written_by: [] }"]
        };
        assert_eq!(bench.trace[..3], *expected);
        assert!(bench.facts(VOLUME).disk.is_some());
    }
}

#[test]
fn a_withdrawal_whose_reply_is_lost_is_made_again() {
    for stored in [true, false] {
        let mut bench = Bench::running();
        bench.tell_volume(2, WantedVolume::Removed);
        bench.tell_vm(2, WantedVm::Removed, 0);
        // Until the report of the volume is to be withdrawn.
        let withdrawal = loop {
            bench.life = 2;
            let reports: Vec<Report> = bench
                .agent
                .actions(bench.now)
                .into_iter()
                .filter_map(|(object, action)| match action {
                    Action::Report(report) if report.object == VOLUME && report.observed.is_none() => {
                        Some(report)
                    }
                    action => {
                        bench.life = usize::MAX;
                        bench.do_one(object, action);
                        None
                    }
                })
                .collect();
            if let Some(report) = reports.into_iter().next() {
                break report;
            }
        };
        if stored {
            assert!(matches!(bench.store_report(&withdrawal), Reply::Accepted { .. }));
        }
        bench.agent.reply(VOLUME, Reply::Lost);
        bench.rest();
        assert_eq!(bench.store[&VOLUME].observed, None);
        bench.assign(VOLUME, None);
        bench.news(VOLUME);
        assert!(bench.agent.desk(&VOLUME).is_none(), "nothing is left to remember");
    }
}

#[test]
fn a_report_that_somebody_else_changed_is_told_anew() {
    let mut bench = Bench::running();
    // Another run of this agent reported in between.
    bench.slot(VM).observed = Some(Stamped { mod_revision: 99, ..claim(VM, 1) });
    bench.revision = 99;
    bench.tell_vm(2, WantedVm::Stopped, 0);
    bench.rest();
    assert!(bench.trace.contains(&"vm: report refused".to_owned()));
    assert_eq!(bench.phase(), Some(VmPhase::Stopped));
}

#[test]
fn a_report_says_the_same_only_once() {
    let mut bench = Bench::running();
    let since = bench.observed_vm().map(|observed| observed.since);
    let reports = bench.trace.len();
    for milliseconds in [1_000, 3_600_000] {
        bench.now = crate::bench::at(milliseconds);
        bench.agent.observed(VM, bench.facts(VM), None, bench.now);
        bench.inventory();
        bench.rest();
    }
    assert_eq!(bench.trace.len(), reports);
    assert_eq!(bench.observed_vm().map(|observed| observed.since), since);
}

#[test]
fn an_inventory_without_a_report_brings_it_back() {
    // A person removed the report, or the store was restored from before it.
    let mut bench = Bench::running();
    bench.slot(VM).observed = None;
    bench.inventory();
    bench.rest();
    assert_eq!(bench.phase(), Some(VmPhase::Running));
    // Without an assignment there is nothing to claim: it is found by its absence.
    bench.slot(VM).observed = None;
    bench.assign(VM, None);
    bench.inventory();
    bench.rest();
    assert_eq!(bench.phase(), None);
    assert_eq!(bench.facts(VM).vmm, lightbyte_plan::agent::VmmState::Running);
}

#[test]
fn a_report_in_flight_outlives_an_inventory() {
    let mut bench = Bench::new();
    bench.assign(VOLUME, Some(Assigned::Volume(assigned_volume(1, WantedVolume::Present))));
    bench.begin();
    let report = one_report(&mut bench);
    let reply = bench.store_report(&report);
    // An inventory of before the report.
    let item = lightbyte_plan::agent::Item {
        object: VOLUME,
        assigned: bench.slot(VOLUME).assigned.clone(),
        observed: None,
        told: None,
    };
    let revision = bench.revision - 1;
    let delivery = Delivery { epoch: epoch(1), revision, news: News::Inventory(vec![item]) };
    bench.agent.deliver(delivery, bench.now).expect("not older than what was delivered");
    bench.agent.reply(VOLUME, reply);
    bench.rest();
    assert!(!bench.trace.contains(&"volume: report refused".to_owned()), "{}", bench.trace.join("\n"));
    assert!(matches!(bench.store[&VOLUME].observed, Some(Stamped { value: Observed::Volume(_), .. })));
}

#[test]
fn an_agent_has_caught_up_when_the_store_says_what_its_host_shows() {
    let mut bench = Bench::new();
    assert!(!bench.agent.is_caught_up(), "nobody has told it what is stored");
    bench.begin();
    assert!(bench.agent.is_caught_up(), "nothing is stored and nothing is there");

    // The host lost its power: what an earlier run has said of the VM is not true any more.
    let mut bench = Bench::running();
    bench.host.reboot();
    bench.begin();
    assert_eq!(bench.phase(), Some(VmPhase::Running));
    assert!(!bench.agent.is_caught_up(), "the store says that it runs");
    let mut rounds = 0;
    while !bench.agent.is_caught_up() {
        rounds += 1;
        assert!(rounds < 10, "it never catches up: {}", bench.trace.join("\n"));
        for (object, action) in bench.agent.actions(bench.now) {
            bench.do_one(object, action);
        }
    }
    assert_ne!(bench.phase(), Some(VmPhase::Running), "it has caught up with a lie");
    bench.rest();
    assert!(bench.agent.is_caught_up(), "once is for good");
}
