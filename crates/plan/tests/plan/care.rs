//! What is done for a store, and what is told of it.

use lightbyte_api::Timestamp;
use lightbyte_plan::care::{Care, Leads, Member, Standing, Step};

use crate::world::at;

const MIB: u64 = 1 << 20;

/// A member whose file has so many MiB, of which so many are in use, with a quota of 1,000.
fn member(id: u64, file: u64, used: u64) -> Member {
    Member {
        id,
        file_bytes: file * MIB,
        used_bytes: used * MIB,
        quota_bytes: Some(1_000 * MIB),
        ..Member::default()
    }
}

fn full(id: u64, file: u64, used: u64) -> Member {
    Member { is_full: true, ..member(id, file, used) }
}

fn leads(mut member: Member) -> Member {
    member.leads = true;
    member
}

/// Members `a`, `b` and so on.
fn of(members: impl IntoIterator<Item = Option<Member>>) -> Standing {
    let named = ('a'..).zip(members).map(|(name, member)| (name.to_string(), member));
    Standing { members: named.collect(), ..Standing::default() }
}

fn defragment(endpoint: &str) -> Option<Step> {
    Some(Step::Defragment { endpoint: endpoint.to_owned() })
}

/// What is done from `seconds` on, each step at once, until nothing is left to do.
fn steps(care: &mut Care, standing: &Standing, seconds: i64) -> Vec<Step> {
    let now: Timestamp = at(seconds);
    let next = std::iter::from_fn(|| {
        let step = care.next_step(standing, now)?;
        care.begun(&step, now);
        Some(step)
    });
    next.take(20).collect()
}

#[test]
fn history_of_more_than_an_hour_is_forgotten_when_it_is_worth_it() {
    let mut care = Care::default();
    let mut look = |minutes: i64, revision: u64| {
        let standing = of([Some(Member { revision, ..member(1, 10, 10) }), None]);
        care.saw(&standing, at(minutes * 60));
        steps(&mut care, &standing, minutes * 60)
    };
    // What was there when somebody began to look is as old as that.
    let compact = |revision| vec![Step::Compact { revision }];
    for (minutes, newest, expected) in [
        (0, 5_000, vec![]),
        (10, 5_500, vec![]),
        (59, 9_000, vec![]),
        (60, 9_000, compact(5_000)),
        (70, 9_000, vec![]),
        (119, 9_000, compact(9_000)),
        (300, 9_999, vec![]),
        (360, 9_999, vec![]),
        // It was restored.
        (361, 2_000, vec![]),
        (420, 4_000, vec![]),
        (421, 4_000, compact(2_000)),
    ] {
        assert_eq!(look(minutes, newest), expected, "after {minutes} minutes");
    }
}

#[test]
fn who_leads_acts_and_all_do_where_nobody_can_be_elected() {
    let check = |leads: Leads, member: Member, expected: Option<Step>| {
        let standing = Standing { leads, ..of([Some(member)]) };
        assert_eq!(Care::default().next_step(&standing, at(0)), expected, "{standing:?}");
    };
    let (wasteful, full) = (member(1, 300, 100), full(1, 1_000, 800));
    check(Leads::This, wasteful.clone(), defragment("a"));
    check(Leads::Nobody, wasteful.clone(), None);
    check(Leads::Another, wasteful, None);
    check(Leads::Nobody, full.clone(), defragment("a"));
    check(Leads::Another, full, None);
}

#[test]
fn a_file_that_is_mostly_free_is_written_anew_and_the_leaders_last() {
    let wasteful = |id| Some(member(id, 300, 100));
    let mut standing =
        of([wasteful(1).map(leads), wasteful(2), Some(member(3, 300, 200)), Some(member(4, 80, 20))]);
    let mut care = Care::default();
    let done = steps(&mut care, &standing, 0);
    assert_eq!(
        done,
        [defragment("b"), defragment("a")].map(Option::unwrap),
        "half of a file, and not of a small one"
    );
    assert_eq!(steps(&mut care, &standing, 599), [], "what has not helped is not tried again at once");
    standing.members.insert("c".to_owned(), None);
    assert_eq!(standing.away(), Some("c"));
    assert_eq!(steps(&mut care, &standing, 600), [], "with one away another must answer");
    standing.members.insert("c".to_owned(), wasteful(3));
    assert_eq!(care.next_step(&standing, at(600)), defragment("b"));
}

#[test]
fn a_full_store_is_given_room_and_let_write_again() {
    let mut care = Care::default();
    let mut standing = of([Some(leads(full(1, 1_000, 1_000))), Some(member(2, 1_000, 1_000))]);
    for member in standing.members.values_mut().flatten() {
        member.revision = 900;
    }
    care.saw(&standing, at(-61));
    assert_eq!(steps(&mut care, &standing, 0), [Step::Compact { revision: 900 }], "a minute is kept");
    // What was forgotten is free now, in the file.
    for member in standing.members.values_mut().flatten() {
        member.used_bytes = 800 * MIB;
    }
    assert_eq!(steps(&mut care, &standing, 30), [defragment("b"), defragment("a")].map(Option::unwrap));
    for member in standing.members.values_mut().flatten() {
        member.file_bytes = 800 * MIB;
    }
    assert_eq!(steps(&mut care, &standing, 60), [Step::LetWrite { member: 1 }]);
    assert_eq!(steps(&mut care, &standing, 119), [], "once a minute");
    assert_eq!(steps(&mut care, &standing, 120), [Step::LetWrite { member: 1 }]);
    // Where all of it is in use nothing helps.
    let hopeless = of([Some(full(1, 950, 940))]);
    assert_eq!(steps(&mut Care::default(), &hopeless, 0), []);
    // Members before 3.6 do not say their quota: it is found out.
    let unsaid = of([Some(Member { quota_bytes: None, ..full(1, 950, 940) })]);
    assert_eq!(steps(&mut Care::default(), &unsaid, 0), [Step::LetWrite { member: 1 }]);
}

#[test]
fn people_are_told_before_it_hurts() {
    let told = |members: Vec<Option<Member>>| of(members).worries().join("\n");
    let small = || Some(member(1, 599, 100));
    assert_eq!(told(vec![small(), small(), small()]), "");
    assert_eq!(
        told(vec![Some(member(1, 600, 100))]),
        "etcd a has 600MiB of 1000MiB: at that it takes no more writes"
    );
    let unsaid = Member { quota_bytes: None, ..member(1, 1_300, 100) };
    assert_eq!(
        told(vec![Some(unsaid)]),
        "etcd a has 1300MiB of 2GiB, its quota unless another was set: at that it takes no more writes"
    );
    assert_eq!(
        told(vec![Some(full(1, 1_000, 1_000))]),
        "etcd a is full (1000MiB of 1000MiB): nothing is written until the server that leads has made room; \
         if that lasts, give etcd a larger --quota-backend-bytes"
    );
    let away = |answer: usize, away: usize| {
        let members = (0..answer).map(|_| small()).chain((0..away).map(|_| None));
        told(members.collect())
    };
    assert_eq!(away(2, 1), "1 member of etcd does not answer: with 1 more nothing can be written");
    assert_eq!(away(4, 1), "1 member of etcd does not answer: with 2 more nothing can be written");
    assert_eq!(away(3, 2), "2 members of etcd do not answer: with 1 more nothing can be written");
    assert_eq!(away(4, 2), "2 members of etcd do not answer: with 1 more nothing can be written");
    assert_eq!(away(0, 0), "", "a store in memory has none");
    for (answer, gone) in [(1, 2), (0, 3)] {
        let most = "nothing is written until 2 of them do; what runs goes on";
        assert_eq!(away(answer, gone), format!("{gone} of 3 members of etcd do not answer: {most}"));
    }
    let corrupt = Member { is_corrupt: true, ..member(1, 10, 10) };
    assert!(told(vec![Some(corrupt)]).starts_with("etcd a has other data than its neighbours"));
}
