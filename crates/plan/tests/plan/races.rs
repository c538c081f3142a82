//! Races between claims, reports and what they are about, which the simulator met seldom or a reader found.

use lightbyte_api::assigned::{Assigned, AssignedVolume, HostObject, Source, WantedVolume};
use lightbyte_api::kinds::image::Part;
use lightbyte_api::observed::{Observed, ObservedVolume, VolumePhase};
use lightbyte_api::records::Epoch;
use lightbyte_api::{ByteSize, Kind, Name, Timestamp, Uid};
use lightbyte_plan::agent::{Action, Agent, Delivery, Facts, Item, News, Reply, Stamped, Step};

const OBJECT: HostObject = HostObject { kind: Kind::Volume, uid: Uid::from_bits(7) };

fn assigned(sequence: u64, wanted: WantedVolume) -> Stamped<Assigned> {
    let part = Part { sha256: "0".repeat(64), size: ByteSize::from_mib(1) };
    let value = AssignedVolume {
        sequence,
        generation: 1,
        name: Name::new("a-root").expect("a name"),
        wanted,
        size: part.size,
        source: Source::Image(part),
        arriving: None,
    };
    Stamped { mod_revision: 10 * sequence, value: Assigned::Volume(value) }
}

fn delivery(revision: u64, news: News) -> Delivery {
    Delivery { epoch: Epoch { cluster: Uid::from_bits(1), epoch: 1 }, revision, news }
}

fn now() -> Timestamp {
    Timestamp::from_millisecond(1_000).expect("a time")
}

/// An agent that has just sent its claim.
fn claiming() -> Agent {
    let mut agent = Agent::begin([]);
    let item = Item {
        object: OBJECT,
        assigned: Some(assigned(1, WantedVolume::Present)),
        observed: None,
        told: None,
    };
    agent.deliver(delivery(10, News::Inventory(vec![item])), now()).expect("fresh news");
    let actions = agent.actions(now());
    assert!(
        matches!(actions.as_slice(), [(_, Action::Report(report))] if report.own_revision == 0),
        "{actions:?}"
    );
    agent
}

fn removal() -> Delivery {
    let news = News::Change { object: OBJECT, assigned: Some(assigned(2, WantedVolume::Removed)) };
    delivery(20, news)
}

/// A withdrawal that is on its way may be stored at any time. What was claimed before it is then claimed by nobody, so an
/// assignment that came meanwhile is claimed anew before anything of it is on the host.
#[test]
fn what_is_being_withdrawn_claims_nothing_that_comes_after_it() {
    let mut agent = claiming();
    agent.reply(OBJECT, Reply::Accepted { revision: 11 });
    agent.deliver(removal(), now()).expect("fresh news");
    let actions = agent.actions(now());
    let withdraws = |action: &Action| matches!(action, Action::Report(report) if report.observed.is_none());
    assert!(matches!(actions.as_slice(), [(_, action)] if withdraws(action)), "{actions:?}");
    let again = News::Change { object: OBJECT, assigned: Some(assigned(3, WantedVolume::Present)) };
    agent.deliver(delivery(30, again), now()).expect("fresh news");
    assert_eq!(agent.actions(now()), [], "it begins on a claim that is being withdrawn");
    agent.reply(OBJECT, Reply::Lost);
    let actions = agent.actions(now());
    assert!(
        matches!(actions.as_slice(), [(_, Action::Report(report))] if report.observed.is_some()),
        "it begins on a claim that is being withdrawn: {actions:?}"
    );
    agent.reply(OBJECT, Reply::Accepted { revision: 31 });
    let actions = agent.actions(now());
    assert!(matches!(actions.as_slice(), [(_, Action::Step(Step::Save(_)))]), "{actions:?}");
}

/// An inventory that is older than the withdrawal comes while that is on its way, and is thought of when it is accepted.
#[test]
fn what_was_heard_before_a_withdrawal_claims_nothing_after_it() {
    let mut agent = claiming();
    agent.reply(OBJECT, Reply::Accepted { revision: 11 });
    agent.deliver(removal(), now()).expect("fresh news");
    assert_eq!(agent.actions(now()).len(), 1, "it withdraws");
    let old = News::Reported { object: OBJECT, mod_revision: 11 };
    agent.deliver(delivery(25, old), now()).expect("fresh news");
    let again = News::Change { object: OBJECT, assigned: Some(assigned(3, WantedVolume::Present)) };
    agent.deliver(delivery(30, again), now()).expect("fresh news");
    agent.reply(OBJECT, Reply::Accepted { revision: 31 });
    let actions = agent.actions(now());
    assert!(
        matches!(actions.as_slice(), [(_, Action::Report(report))] if report.own_revision == 0),
        "it begins on what it has heard of: {actions:?}"
    );
}

/// The claim stands until no step can bring anything to the host any more. If it is withdrawn while the first save is
/// in flight, the controller ends the object; the save then lands; and an agent that dies right after it finds a saved
/// assignment that nobody will ever take back.
#[test]
fn a_claim_is_not_withdrawn_while_the_save_is_in_flight() {
    let mut agent = claiming();
    agent.reply(OBJECT, Reply::Accepted { revision: 11 });
    let actions = agent.actions(now());
    assert!(matches!(actions.as_slice(), [(_, Action::Step(Step::Save(_)))]), "{actions:?}");
    agent.deliver(removal(), now()).expect("fresh news");
    let actions = agent.actions(now());
    assert!(actions.is_empty(), "the save is still in flight: {actions:?}");
}

/// A claim whose answer was lost may be stored. A removal that comes meanwhile must not make the agent forget it, or
/// the object's end waits for ever.
#[test]
fn a_claim_whose_answer_was_lost_is_withdrawn_too() {
    let mut agent = claiming();
    agent.deliver(removal(), now()).expect("fresh news");
    agent.reply(OBJECT, Reply::Lost);
    let actions = agent.actions(now());
    assert!(!actions.is_empty(), "nobody will withdraw the claim that may be stored");
}

/// A report of an earlier run may be stored after this one has read what is: its guard still holds. The server tells of it,
/// and what is true is told again.
#[test]
fn a_report_of_an_earlier_run_that_comes_late_does_not_stand() {
    let mut agent = claiming();
    agent.reply(OBJECT, Reply::Accepted { revision: 11 });
    let quiet = agent.actions(now());
    assert!(matches!(quiet.as_slice(), [(_, Action::Step(Step::Save(_)))]), "{quiet:?}");
    let reported = |seen, mod_revision| delivery(seen, News::Reported { object: OBJECT, mod_revision });
    // Its own report, told again, is no news; nor is what an older view has.
    for (seen, mod_revision) in [(11, 11), (11, 0)] {
        agent.deliver(reported(seen, mod_revision), now()).expect("no older than before");
        assert_eq!(agent.actions(now()), [], "{mod_revision}");
    }
    agent.deliver(reported(12, 12), now()).expect("fresh news");
    let actions = agent.actions(now());
    assert!(
        matches!(actions.as_slice(), [(_, Action::Report(report))] if report.own_revision == 12),
        "what is stored is not true: {actions:?}"
    );
}

/// The same, while a report of this run is on its way that gets lost: nothing is left to be told, and what is stored is not
/// what was read.
#[test]
fn a_late_report_that_comes_while_another_gets_lost_does_not_stand() {
    let mut agent = claiming();
    agent.reply(OBJECT, Reply::Accepted { revision: 11 });
    drop(agent.actions(now()));
    let problem = |agent: &mut Agent| agent.failed(OBJECT, Facts::default(), "no storage space", now());
    problem(&mut agent);
    let sent = agent.actions(now());
    assert!(
        sent.iter().all(|(_, action)| !matches!(action, Action::Report(_))),
        "nothing is saved yet: {sent:?}"
    );
    agent
        .deliver(delivery(12, News::Reported { object: OBJECT, mod_revision: 12 }), now())
        .expect("fresh news");
    let sent = agent.actions(now());
    assert!(
        matches!(sent.as_slice(), [(_, Action::Report(report))] if report.own_revision == 12),
        "{sent:?}"
    );
    // While that is on its way, and before it is lost, another one is stored.
    agent
        .deliver(delivery(13, News::Reported { object: OBJECT, mod_revision: 13 }), now())
        .expect("fresh news");
    assert_eq!(agent.actions(now()), []);
    agent.reply(OBJECT, Reply::Lost);
    let sent = agent.actions(now());
    assert!(
        matches!(sent.as_slice(), [(_, Action::Report(report))] if report.own_revision == 13),
        "{sent:?}"
    );
}

/// A refusal says what is stored: that is what the next report is guarded by.
#[test]
fn a_refused_report_is_not_sent_again_as_it_was() {
    let mut agent = claiming();
    agent.reply(OBJECT, Reply::Accepted { revision: 11 });
    drop(agent.actions(now()));
    agent
        .deliver(delivery(12, News::Reported { object: OBJECT, mod_revision: 12 }), now())
        .expect("fresh news");
    let sent = agent.actions(now());
    let [(_, Action::Report(report))] = sent.as_slice() else { panic!("a report: {sent:?}") };
    let Some(Observed::Volume(claim)) = report.observed.clone() else { panic!("a claim: {report:?}") };
    let stored = Observed::Volume(ObservedVolume { phase: VolumePhase::Present, ..claim });
    let observed = Some(Stamped { mod_revision: 13, value: stored });
    agent.reply(OBJECT, Reply::Refused { observed, assigned_revision: 10 });
    let sent = agent.actions(now());
    assert!(
        matches!(sent.as_slice(), [(_, Action::Report(report))] if report.own_revision == 13),
        "sent again as it was: {sent:?}"
    );
}

/// A claim on an older assignment is refused when the newer one is known already: the refusal is about the older.
#[test]
fn a_refusal_of_a_claim_says_nothing_of_an_assignment_that_came_since() {
    let mut agent = claiming();
    let next = News::Change { object: OBJECT, assigned: Some(assigned(2, WantedVolume::Present)) };
    agent.deliver(delivery(20, next), now()).expect("fresh news");
    // What the answer names may be something in between.
    for named in [15, 20] {
        let mut agent = agent.clone();
        agent.reply(OBJECT, Reply::Refused { observed: None, assigned_revision: named });
        let actions = agent.actions(now());
        assert!(
            matches!(actions.as_slice(), [(_, Action::Report(report))] if report.assigned_revision == Some(20)),
            "the newer assignment is never claimed: {actions:?}"
        );
    }
}
