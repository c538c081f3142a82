//! Scale groups: what is made and let go, as a function of counted members; and the plans that come of it.

use insta::assert_snapshot;
use lightbyte_api::kinds::scalegroup::RetiredFor;
use lightbyte_plan::planner::scalegroup::steps::{Count, Counted, Seat, Service, next};

use crate::world::{guarded, plans};

/// The steps of a group that is written as `n=3 s=1 u=0 t=2 : 1+ 1+ 2-`: each member is its version and `+` (available),
/// `~` (young), `-` (does not serve), `!` (has failed) or `?` (unknown); then `d` on a worker that is drained, `q`
/// where another is asked for in its place, `k` kept where there are too many, and `@` with three digits: its zone, its
/// rack and its worker; without, a worker of its own.
fn steps(text: &str) -> String {
    let (given, members) = text.split_once(':').expect("a colon");
    let number = |field: &str, default: usize| {
        let found = given.split_whitespace().find_map(|word| word.strip_prefix(field)?.strip_prefix('='));
        found.map_or(default, |number| number.parse().expect("a number"))
    };
    let target = number("t", 1) as u64;
    let member = |(index, word): (usize, &str)| {
        let version = word.chars().take_while(char::is_ascii_digit).collect::<String>();
        let version: u64 = version.parse().expect("a version");
        let service = match word.chars().find(|character| "+~-!?".contains(*character)) {
            Some('+') => Service::Available,
            Some('~') => Service::Young,
            Some('-' | '!') => Service::None,
            Some('?') => Service::Unknown,
            _ => panic!("`{word}` is no member"),
        };
        let seat = match word.split_once('@') {
            Some((_, digits)) => {
                let digits: Vec<usize> = digits.bytes().map(|digit| usize::from(digit - b'0')).collect();
                Seat { zone: digits[0], rack: digits[1], worker: digits[2] }
            }
            None => Seat { zone: 0, rack: 0, worker: 100 + index },
        };
        let outdated = (version != target).then_some(RetiredFor::Update);
        let leaves = [('d', RetiredFor::Drain), ('q', RetiredFor::Request)];
        let leaves =
            leaves.into_iter().find(|(letter, _)| word.contains(*letter)).map(|(_, because)| because);
        Counted {
            version,
            outdated: leaves.or(outdated),
            service,
            has_failed: word.contains('!'),
            may_recover: word.contains('r'),
            preempted: word.contains('p'),
            protected: word.contains('k'),
            seat,
            number: index as u64 + 1,
        }
    };
    let count = Count {
        replicas: number("n", 3),
        surge_max: number("s", 1),
        unavailable_max: number("u", 0),
        heals_left: number("h", 2),
        members: members.split_whitespace().enumerate().map(member).collect(),
    };
    let found = next(&count);
    let mut told = Vec::new();
    if found.make > 0 {
        told.push(format!("make {}", found.make));
    }
    for (index, because) in &found.retire {
        told.push(format!("retire {} for {}", index + 1, format!("{because:?}").to_lowercase()));
    }
    if found.healing_pauses {
        told.push("pause".to_owned());
    }
    if found.protected > 0 {
        told.push(format!("{} protected", found.protected));
    }
    if told.is_empty() { "nothing".to_owned() } else { told.join(", ") }
}

#[test]
fn a_group_scales() {
    assert_snapshot!(steps("n=3 :"), @"make 3");
    assert_snapshot!(steps("n=3 : 1+ 1-"), @"make 1");
    assert_snapshot!(steps("n=3 : 1+ 1+ 1+"), @"nothing");
    assert_snapshot!(steps("n=0 : 1+ 1?"), @"retire 1 for scale");
    // Those that do not serve first, then those on the fullest worker, then the youngest.
    assert_snapshot!(steps("n=1 : 1+ 1- 1~"), @"retire 2 for scale, retire 3 for scale");
    assert_snapshot!(steps("n=2 : 1+@001 1+@001 1+"), @"retire 2 for scale");
    // One by one: of two full workers each loses one. Zones count for more than workers, and racks in between.
    assert_snapshot!(steps("n=2 : 1+@001 1+@002 1+@001 1+@002"), @"retire 4 for scale, retire 3 for scale");
    assert_snapshot!(steps("n=2 : 1+@001 1+@002 1+@113 1+@113"), @"retire 4 for scale, retire 2 for scale");
    assert_snapshot!(steps("n=3 : 1+@001 1+@002 1+@003 1+@114 1+@114"), @"retire 3 for scale, retire 5 for scale");
    assert_snapshot!(steps("n=3 : 1+@001 1+@002 1+@013 1+@013"), @"retire 4 for scale");
    assert_snapshot!(steps("n=2 : 1+ 1+ 1+"), @"retire 3 for scale");
    // Only as many as are known to serve besides.
    assert_snapshot!(steps("n=2 : 1? 1+ 1+ 1?"), @"nothing");
    assert_snapshot!(steps("n=2 u=1 : 1? 1+ 1+ 1?"), @"retire 3 for scale");
    assert_snapshot!(steps("n=2 : 1+ 1~ 1~ 1+"), @"retire 3 for scale, retire 2 for scale");
    assert_snapshot!(steps("n=2 : 1+ 1~ 1~"), @"nothing");
}

#[test]
fn a_protected_member_stays_where_others_may_go() {
    assert_snapshot!(steps("n=2 : 1+ 1+ 1+k"), @"retire 2 for scale");
    assert_snapshot!(steps("n=1 : 1+k 1+ 1+k"), @"retire 2 for scale, 1 protected");
    assert_snapshot!(steps("n=0 : 1-k"), @"1 protected");
    // It is nothing to an update, to healing and to a drain.
    assert_snapshot!(steps("n=2 : 1!k 1+k"), @"make 1, retire 1 for health");
    assert_snapshot!(steps("n=2 t=2 : 1+k 2+ 2+"), @"retire 1 for update");
}

#[test]
fn another_is_made_before_the_one_goes_that_somebody_wants_replaced() {
    assert_snapshot!(steps("n=2 : 1+q 1+"), @"make 1");
    assert_snapshot!(steps("n=2 : 1+q 1+ 1-"), @"nothing");
    assert_snapshot!(steps("n=2 : 1+q 1+ 1+"), @"retire 1 for request");
    assert_snapshot!(steps("n=2 s=0 u=1 : 1+q 1+"), @"retire 1 for request");
    // One that does not serve goes at once, though it may come back.
    assert_snapshot!(steps("n=2 : 1-rq 1-r"), @"make 1, retire 1 for request");
    assert_snapshot!(steps("n=2 : 1-rq 1-rd"), @"make 1, retire 1 for request");
}

#[test]
fn failed_members_are_replaced_while_there_are_turns() {
    assert_snapshot!(steps("n=3 : 1! 1+ 1+"), @"make 1, retire 1 for health");
    assert_snapshot!(steps("n=3 h=1 : 1! 1! 1+"), @"make 1, retire 1 for health, pause");
    assert_snapshot!(steps("n=3 h=0 : 1! 1! 1+"), @"pause");
    // Those that go anyway need no turn.
    assert_snapshot!(steps("n=3 h=0 t=2 : 1! 1+ 1+"), @"make 2, retire 1 for update");
    assert_snapshot!(steps("n=1 h=0 : 1! 1! 1+"), @"retire 2 for scale, retire 1 for scale");
}

#[test]
fn an_update_surges_first() {
    assert_snapshot!(steps("n=3 t=2 : 1+ 1+ 1+"), @"make 1");
    assert_snapshot!(steps("n=3 t=2 : 1+ 1+ 1+ 2-"), @"nothing");
    assert_snapshot!(steps("n=3 t=2 : 1+ 1+ 1+ 2~"), @"nothing");
    assert_snapshot!(steps("n=3 t=2 : 1+ 1+ 1+ 2+"), @"retire 1 for update");
    assert_snapshot!(steps("n=3 t=2 : 1+ 1+ 2+"), @"make 1");
    assert_snapshot!(steps("n=3 t=2 : 1+ 2+ 2+ 2+"), @"retire 1 for update");
    assert_snapshot!(steps("n=3 t=2 : 2+ 2+ 2+"), @"nothing");
    // What serves nobody makes room at once; what nobody can say of is left.
    assert_snapshot!(steps("n=3 t=2 : 1- 1- 1+"), @"make 1, retire 1 for update, retire 2 for update");
    assert_snapshot!(steps("n=3 t=2 : 1? 1? 1? 2+"), @"nothing");
    // All fail at once, and may be back in a moment.
    assert_snapshot!(steps("n=3 t=2 : 1-r 1-r 1-r 2-"), @"nothing");
    assert_snapshot!(steps("n=3 t=2 : 1-r 2+ 2+ 2+"), @"retire 1 for update");
    assert_snapshot!(steps("n=3 t=2 : 1!r 1-r 1-r 2-"), @"make 1, retire 1 for update");
    // Who has just begun to serve stands for nobody.
    assert_snapshot!(steps("n=3 t=2 : 1~ 1~ 1~ 2~"), @"nothing");
    assert_snapshot!(steps("n=5 s=2 u=1 t=2 : 1+ 1+ 1+ 1+ 1+"), @"make 2, retire 1 for update");
    assert_snapshot!(steps("n=3 s=0 u=1 t=2 : 1+ 1+ 1+"), @"retire 1 for update");
    assert_snapshot!(steps("n=3 s=0 u=1 t=2 : 1+ 1+"), @"make 1");
    assert_snapshot!(steps("n=1 t=2 : 1+"), @"make 1");
    // Oldest first, and a smaller number at the same time.
    assert_snapshot!(steps("n=1 t=3 : 2+ 1+ 3+"), @"retire 2 for update, retire 1 for update");
    // Back again.
    assert_snapshot!(steps("n=3 t=1 : 1+ 1+ 2- 2-"), @"retire 3 for update, retire 4 for update");
}

#[test]
fn a_drain_is_an_update_of_those_on_one_worker() {
    assert_snapshot!(steps("n=3 : 1+d 1+ 1+"), @"make 1");
    assert_snapshot!(steps("n=3 : 1+d 1+ 1+ 1+"), @"retire 1 for drain");
    assert_snapshot!(steps("n=3 : 1-d 1+ 1+"), @"make 1, retire 1 for drain");
    assert_snapshot!(steps("n=3 : 1+ 1+ 1+ 1-"), @"retire 4 for scale");
}

/// Rules 9 and 10 for every group of up to four members, whatever they are.
#[test]
fn no_small_group_breaks_its_budgets() {
    let kinds = ["1+", "1~", "1-r", "1!", "1?", "2+", "2~", "2-", "2?", "2+d", "2-d"];
    let mut groups: Vec<String> = vec![String::new()];
    let mut all = groups.clone();
    for _ in 0..4 {
        groups = groups.iter().flat_map(|group| kinds.map(|kind| format!("{group} {kind}"))).collect();
        all.extend(groups.iter().cloned());
    }
    let mut checked = 0;
    for members in &all {
        for (replicas, surge, unavailable) in
            [(0, 1, 0), (1, 1, 0), (2, 0, 1), (2, 1, 0), (3, 2, 1), (1, 0, 2)]
        {
            let text = format!("n={replicas} s={surge} u={unavailable} t=2 :{members}");
            let found = steps(&text);
            let words: Vec<&str> = members.split_whitespace().collect();
            let gone: Vec<usize> = found
                .split("retire ")
                .skip(1)
                .map(|part| part.split(' ').next().expect("a number").parse::<usize>().expect("a number") - 1)
                .collect();
            let serving = |index: &usize| words[*index].contains('+') || words[*index].contains('~');
            let left = (0..words.len()).filter(|index| !gone.contains(index)).filter(serving).count();
            let floor = (replicas as usize).saturating_sub(unavailable);
            assert!(!gone.iter().any(serving) || left >= floor, "{text}: {found}");
            let made = found.strip_prefix("make ").map_or(0, |rest| {
                rest.split(',').next().expect("a number").trim().parse::<usize>().expect("a number")
            });
            assert!(
                made == 0 || words.len() - gone.len() + made <= replicas as usize + surge,
                "{text}: {found}"
            );
            assert!(gone.iter().all(|index| !words[*index].contains('?')), "{text}: {found}");
            checked += 1;
        }
    }
    assert!(checked > 90_000, "{checked}");
}

#[test]
fn a_group_makes_its_members() {
    let group = r#"rack
        asked scalegroup/web {"replicas": 2, "template": {"image": "demo", "labels": {"app": "web"}}}"#;
    assert_snapshot!(plans(group, "scalegroup/web"), @"
    put asked vm/web-1 generation 1 running app:web of scalegroup/web version 1
    put asked vm/web-2 generation 1 running app:web of scalegroup/web version 1
    put decided scalegroup/web made 2, versions 1:v1, target 1, stable none, since 60 waits: its member vm/web-1 to be available
    ");
    assert_snapshot!(guarded(group, "scalegroup/web"), @"
    put asked vm/web-1 generation 1 running app:web of scalegroup/web version 1
    put asked vm/web-2 generation 1 running app:web of scalegroup/web version 1
    put decided scalegroup/web made 2, versions 1:v1, target 1, stable none, since 60 waits: its member vm/web-1 to be available
    rests on asked image/demo
    rests on asked scalegroup/web
    ");
    // Somebody else has a name, or one that a disk of its own needs.
    assert_snapshot!(plans(&format!("{group}\nvm web-1\nvolume web-2-root size=1GiB"), "scalegroup/web"), @"
    put asked vm/web-3 generation 1 running app:web of scalegroup/web version 1
    put asked vm/web-4 generation 1 running app:web of scalegroup/web version 1
    put decided scalegroup/web made 4, versions 1:v1, target 1, stable none, since 60 waits: its member vm/web-3 to be available
    ");
    assert_snapshot!(plans(
        r#"network default 10.77.0.0/24 pool=2-9
        asked scalegroup/web {"template": {"image": "demo"}}"#, "scalegroup/web"), @"put decided scalegroup/web made 0, versions , target none, stable none, since 60 waits: image/demo does not exist, or is being deleted");
    // A member that cannot be read is there.
    assert_snapshot!(plans(&format!("{group}\nopaque asked/vm/web-7\nopaque asked/vm/webs-7"), "scalegroup/web"), @"put decided scalegroup/web made 0, versions , target none, stable none, since 60 waits: stored value `asked/vm/web-7` cannot be read by this version");
    assert_snapshot!(plans(&format!("{group}\nopaque asked/vm/webs-7"), "scalegroup/web"), @"
    put asked vm/web-1 generation 1 running app:web of scalegroup/web version 1
    put asked vm/web-2 generation 1 running app:web of scalegroup/web version 1
    put decided scalegroup/web made 2, versions 1:v1, target 1, stable none, since 60 waits: its member vm/web-1 to be available
    ");
}

#[test]
fn a_group_goes_after_its_members() {
    let group = r#"rack
        asked scalegroup/web {"replicas": 2, "template": {"image": "demo"}} deleting"#;
    assert_snapshot!(plans(group, "scalegroup/web"), @"delete asked scalegroup/web");
    assert_snapshot!(plans(
        &format!("{group}\nvm web-1 owner=scalegroup/web version=1 on=n1 observed=running"),
        "scalegroup/web"), @"
    put asked vm/web-1 generation 1 running of scalegroup/web version 1 deleting
    put decided scalegroup/web made 0, versions , target none, stable none, since 60 waits: its child vm/web-1 to go
    ");
    assert_snapshot!(plans(&format!("{group}\nopaque asked/vm/web-7"), "scalegroup/web"), @"put decided scalegroup/web made 0, versions , target none, stable none, since 60 waits: stored value `asked/vm/web-7` cannot be read by this version");
}

/// What says that a member does not serve must be so still when it is let go.
#[test]
fn a_member_that_does_not_serve_goes_only_while_that_is_so() {
    let group = r#"rack
        asked scalegroup/web {"replicas": 0, "template": {"image": "demo"}}"#;
    assert_snapshot!(guarded(
        &format!("{group}\nvm web-1 owner=scalegroup/web version=1 on=n1 observed=starting"),
        "scalegroup/web"), @"
    put decided scalegroup/web made 0, versions 1:v1, target 1, stable none, retiring vm/web-1 for scale, since 60 waits: its child vm/web-1 to go
    rests on alive n1
    rests on asked image/demo
    rests on asked scalegroup/web
    rests on asked vm/web-1
    rests on assigned n1 vm/web-1
    rests on decided vm/web-1
    rests on observed n1 vm/web-1
    ");
    assert_snapshot!(guarded(&format!("{group}\nvm web-1 owner=scalegroup/web version=1"), "scalegroup/web"), @"
    put decided scalegroup/web made 0, versions 1:v1, target 1, stable none, retiring vm/web-1 for scale, since 60 waits: its child vm/web-1 to go
    rests on asked image/demo
    rests on asked scalegroup/web
    rests on asked vm/web-1
    rests on no decided vm/web-1
    ");
}

/// A group whose members have a volume each that outlives them.
const KEEPS: &str = concat!(
    "rack\n",
    r#"asked scalegroup/db {"replicas": 2, "template": {"image": "demo", "labels": {"app": "db"}, "#,
    r#""disks": [{"name": "root"}, {"name": "data", "size": "1GiB", "mount": "/data", "keep": true}]}}"#,
);

#[test]
fn a_slot_keeps_its_volumes() {
    // With the members their volumes are made; those that are there are taken as they are.
    assert_snapshot!(plans(KEEPS, "scalegroup/db"), @"
    put asked vm/db-1 generation 1 running with db-data-1 app:db of scalegroup/db version 1 slot 1
    put asked vm/db-2 generation 1 running with db-data-2 app:db of scalegroup/db version 1 slot 2
    put asked volume/db-data-1 generation 1 1GiB app:db
    put asked volume/db-data-2 generation 1 1GiB app:db
    put decided scalegroup/db made 2, versions 1:v1, target 1, stable none, since 60 waits: its member vm/db-1 to be available
    ");
    assert_snapshot!(plans(&format!("{KEEPS}\nvolume db-data-2 size=5GiB"), "scalegroup/db"), @"
    put asked vm/db-1 generation 1 running with db-data-1 app:db of scalegroup/db version 1 slot 1
    put asked vm/db-2 generation 1 running with db-data-2 app:db of scalegroup/db version 1 slot 2
    put asked volume/db-data-1 generation 1 1GiB app:db
    put decided scalegroup/db made 2, versions 1:v1, target 1, stable none, since 60 waits: its member vm/db-1 to be available
    ");
    let two = "vm db-1 owner=scalegroup/db version=1 slot=1 attach=db-data-1 on=n1 observed=running
        vm db-2 owner=scalegroup/db version=1 slot=2 attach=db-data-2 on=n2 observed=running
        volume db-data-1 size=1GiB on=n1 held=db-1
        volume db-data-2 size=1GiB on=n2 held=db-2";
    assert_snapshot!(plans(&format!("{KEEPS}\n{two}"), "scalegroup/db"), @"put decided scalegroup/db made 0, versions 1:v1, target 1, stable 1");
    // Who takes the place of one that is let go has its slot.
    assert_snapshot!(plans(&format!("{KEEPS}\n{}", two.replace("slot=1", "slot=1 replace")), "scalegroup/db"), @"
    put decided scalegroup/db made 0, versions 1:v1, target 1, stable none, retiring vm/db-1 for request, since 60 waits: its child vm/db-1 to go
    then
    put asked vm/db-1 generation 1 running with db-data-1 of scalegroup/db version 1 slot 1 replace deleting
    put asked vm/db-3 generation 1 running with db-data-1 app:db of scalegroup/db version 1 slot 1
    put decided scalegroup/db made 3, versions 1:v1, target 1, stable none, retiring vm/db-1 for request, since 60 waits: its member vm/db-3 to be available, since 60 waits: its child vm/db-1 to go
    ");
    // The slots are those from 1 on, whatever else would be better.
    let three = format!(
        "{two}\nvm db-3 owner=scalegroup/db version=1 slot=3 attach=db-data-3 on=n2 observed=running\nvolume db-data-3 size=1GiB"
    );
    assert_snapshot!(plans(&format!("{KEEPS}\n{three}"), "scalegroup/db"), @"
    put decided scalegroup/db made 0, versions 1:v1, target 1, stable none, retiring vm/db-3 for scale, since 60 waits: its child vm/db-3 to go
    then
    put asked vm/db-3 generation 1 running with db-data-3 of scalegroup/db version 1 slot 3 deleting
    put decided scalegroup/db made 0, versions 1:v1, target 1, stable 1, retiring vm/db-3 for scale, since 60 waits: its child vm/db-3 to go
    ");
    // A volume that was deleted is made again for who waits for it, and for nobody else.
    let waiting = "vm db-1 owner=scalegroup/db version=1 slot=1 attach=db-data-1
        vm db-2 owner=scalegroup/db version=1 slot=2 attach=db-data-2 on=n2 observed=running";
    assert_snapshot!(plans(&format!("{KEEPS}\n{waiting}"), "scalegroup/db"), @"
    put asked volume/db-data-1 generation 1 1GiB app:db
    put decided scalegroup/db made 0, versions 1:v1, target 1, stable none, since 60 waits: its member vm/db-1 to be available
    ");
    assert_snapshot!(plans(&format!("{KEEPS}\n{waiting}\nopaque asked/volume/db-data-1"), "scalegroup/db"), @"put decided scalegroup/db made 0, versions 1:v1, target 1, stable none, since 60 waits: its member vm/db-1 to be available");
}

/// A volume that is to move, and waits for its holder alone, has its member let go; who only waits for it stays.
#[test]
fn a_member_goes_when_its_volume_waits_for_nothing_else() {
    let moving = |fetched: &str, member: &str| {
        let group = KEEPS.replace(r#""replicas": 2"#, r#""replicas": 1"#);
        let volume = "volume db-data-1 size=1GiB worker=n2 on=n1 elsewhere=n2 arriving=used observed=present held=db-1";
        let world = format!("{group}\n{volume} fetched={fetched}\nvm {member}");
        plans(&world, "scalegroup/db")
    };
    let placed = "db-1 owner=scalegroup/db version=1 slot=1 attach=db-data-1 on=n1 observed=running";
    assert_snapshot!(moving("claimed", placed), @"put decided scalegroup/db made 0, versions 1:v1, target 1, stable 1");
    assert_snapshot!(moving("copied", placed), @"
    put decided scalegroup/db made 0, versions 1:v1, target 1, stable none, retiring vm/db-1 for move, since 60 waits: its child vm/db-1 to go
    then
    put asked vm/db-1 generation 1 running with db-data-1 of scalegroup/db version 1 slot 1 deleting
    put asked vm/db-2 generation 1 running with db-data-1 app:db of scalegroup/db version 1 slot 1
    put decided scalegroup/db made 2, versions 1:v1, target 1, stable none, retiring vm/db-1 for move, since 60 waits: its member vm/db-2 to be available, since 60 waits: its child vm/db-1 to go
    ");
    let waiting = "db-2 owner=scalegroup/db version=1 slot=1 attach=db-data-1";
    assert_snapshot!(moving("copied", waiting), @"put decided scalegroup/db made 0, versions 1:v1, target 1, stable none, since 60 waits: its member vm/db-2 to be available");
}
