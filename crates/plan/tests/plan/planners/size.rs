//! How many members a group with a policy has, by recorded load curves. A number of a curve is how much of a CPU was busy in
//! one second.

use std::sync::Arc;

use lightbyte_api::kinds::scalegroup::{Autoscale, Percent, Rate, Scaling, Share};
use lightbyte_api::{Span, Timestamp};
use lightbyte_plan::load::{CpuTime, GAP_MAX, LOOK_PERIOD, Load, Reading, Sent, WHOLE};
use lightbyte_plan::planner::scalegroup::size::{self, Known};

use crate::world::at;

/// A process that answers requests which come at random, 14 a second.
const STEADY: &str = include_str!("../curves/steady.txt");
/// The same: 5 a second for four minutes, 30 for five, 8 for six.
const STEPS: &str = include_str!("../curves/steps.txt");
/// A machine on which programs are built: all of it or nothing.
const BUILDS: &str = include_str!("../curves/builds.txt");

/// How long a new member takes to serve.
const BOOT_SECONDS: u64 = 20;

fn policy(cpu: u64) -> Autoscale {
    Autoscale {
        min: 1,
        max: 50,
        cpu: Some(Percent(cpu)),
        requests_per_second: None,
        concurrency: None,
        scale_out: Rate::out(),
        scale_in: Rate::inwards(),
        schedules: Vec::new(),
    }
}

fn time(second: u64) -> Timestamp {
    at(i64::try_from(second).expect("a time"))
}

/// A load that lasts, in members that are busy all the time.
fn constant(members: f64, seconds: usize) -> Vec<f64> {
    vec![members; seconds]
}

/// A recorded curve, so many times as large.
fn recorded(text: &str, times: f64) -> Vec<f64> {
    text.lines().map(|line| line.parse::<f64>().expect("a number") * times).collect()
}

/// A group under a load.
struct Group {
    policy: Autoscale,
    scaling: Option<Scaling>,
    load: Load,
    /// When each member serves.
    serve_at: Vec<u64>,
    /// Each size that it had, with the second in which it began.
    sizes: Vec<(u64, u64)>,
}

impl Group {
    fn new(policy: Autoscale) -> Group {
        Group { policy, scaling: None, load: Load::default(), serve_at: vec![0], sizes: Vec::new() }
    }

    /// Goes through a curve; each look finds what members used since the one before.
    fn under(mut self, curve: &[f64]) -> Group {
        let period = usize::try_from(LOOK_PERIOD.millis() / 1_000).expect("a period");
        for (look, seconds) in curve.chunks_exact(period).enumerate() {
            let now = ((look + 1) * period) as u64;
            let serving = self.serve_at.iter().filter(|at| **at <= now - period as u64).count();
            let used = seconds.iter().map(|load| load.min(serving as f64)).sum::<f64>() / period as f64;
            let all =
                self.serve_at.len().max(self.scaling.as_ref().map_or(0, |scaling| scaling.desired as usize));
            self.load.push(Reading {
                at: time(now),
                cpu: (used * WHOLE as f64) as u64,
                measured: serving as u64,
                silent: (all - serving) as u64,
                sent: Sent::default(),
            });
            self.decide(now);
        }
        self
    }

    fn decide(&mut self, now: u64) {
        let known = Known {
            now: time(now),
            time_of_day: time(now),
            members: self.serve_at.len() as u64,
            before: self.scaling.as_ref(),
            load: Some(&self.load),
        };
        let scaling = size::next(&self.policy, &known).scaling;
        if self.sizes.last().is_none_or(|(_, size)| *size != scaling.desired) {
            self.sizes.push((now, scaling.desired));
        }
        self.serve_at.resize(usize::try_from(scaling.desired).expect("a size"), now + BOOT_SECONDS);
        self.scaling = Some(scaling);
    }

    /// `size@second` for each size.
    fn told(&self) -> String {
        let sizes = self.sizes.iter().map(|(second, size)| format!("{size}@{second}"));
        sizes.collect::<Vec<_>>().join(" ")
    }

    /// How often it turned from growing to shrinking, or back.
    fn turns(&self) -> usize {
        let grows: Vec<bool> = self.sizes.windows(2).map(|pair| pair[1].1 > pair[0].1).collect();
        grows.windows(2).filter(|pair| pair[0] != pair[1]).count()
    }
}

#[test]
fn a_load_that_trembles_moves_nobody() {
    // The load of one second differs from that of the next by a half and more.
    let noise = recorded(STEADY, 1.0);
    let mean = noise.iter().sum::<f64>() / noise.len() as f64;
    assert!(noise.iter().filter(|load| (**load - mean).abs() > mean / 3.0).count() > noise.len() / 4);
    for times in [2.0, 5.0, 20.0, 60.0] {
        for cpu in [30, 50, 60, 80, 90] {
            let group = Group::new(policy(cpu)).under(&recorded(STEADY, times));
            assert_eq!(group.turns(), 0, "{times} times at {cpu}%: {}", group.told());
            // The least of a window is a little below the mean. Sixty times one process trembles more than any sixty.
            let enough = 0.85 * times * mean * 100.0 / (1.1 * cpu as f64);
            let size = group.serve_at.len() as f64;
            assert!(times > 20.0 || size >= enough, "{times} times at {cpu}%: {}", group.told());
        }
    }
}

#[test]
fn a_load_that_grows_is_followed_within_a_window_and_one_that_falls_too() {
    let group = Group::new(policy(60)).under(&recorded(STEPS, 10.0));
    insta::assert_snapshot!(group.told(), @"1@15 2@45 3@270 4@300 5@345 7@375 8@420 9@495 5@840");
    let curve = [constant(1.0, 600), constant(3.0, 600), constant(0.5, 900)].concat();
    let group = Group::new(policy(50)).under(&curve);
    insta::assert_snapshot!(group.told(), @"1@15 2@45 4@645 6@720 3@1515 2@1575");
    // The first look that shows nothing but the new load, and the two after it that make a window.
    let first =
        |after: u64| group.sizes.iter().find(|(second, _)| *second > after).map(|(second, _)| second - after);
    let window = |rate: &Rate| (rate.window.millis() + LOOK_PERIOD.millis()) / 1_000;
    assert_eq!(first(600), Some(window(&Rate::out())));
    assert_eq!(first(1_200), Some(window(&Rate::inwards())));
}

#[test]
fn a_load_of_all_or_nothing_is_followed_without_turning_with_each_gap() {
    let group = Group::new(policy(60)).under(&recorded(BUILDS, 4.0));
    insta::assert_snapshot!(group.told(), @"1@15 2@45 4@120 7@195");
}

#[test]
fn a_step_is_as_large_as_its_rate_allows_and_no_more_than_is_needed() {
    let steps = |window: u64, at_most: Share| {
        let (window, every) = (Span::from_secs(window), Span::from_secs(30));
        let policy = Autoscale { scale_out: Rate { window, at_most, every }, ..policy(50) };
        Group::new(policy).under(&constant(5.0, 420)).told()
    };
    // What is measured of members that are all busy is never more than they are: so it takes some steps.
    insta::assert_snapshot!(steps(0, Share::Percent(100)), @"1@15 2@45 4@90 8@135 10@180");
    insta::assert_snapshot!(steps(0, Share::Count(1)), @"1@15 2@45 3@90 4@120 5@150 6@180 7@210 8@240 9@270 10@300");
    insta::assert_snapshot!(steps(60, Share::Count(50)), @"1@15 2@75 4@180 8@285 10@390");
}

#[test]
fn without_a_whole_window_of_load_a_group_stays_as_it_is() {
    let policy = policy(50);
    let before = Scaling { desired: 4, changed_at: at(0), because: String::new() };
    let size = |load: Option<&Load>, now: Timestamp| {
        let known = Known { now, time_of_day: now, members: 4, before: Some(&before), load };
        size::next(&policy, &known).scaling.desired
    };
    let idle =
        |second: i64| Reading { at: at(second), cpu: 0, measured: 4, silent: 0, sent: Sent::default() };
    let mut load = Load::default();
    assert_eq!(size(None, at(1_000)), 4, "nothing is measured");
    (0..20).for_each(|look| load.push(idle(1_000 + look * 15)));
    assert_eq!(size(Some(&load), at(1_285)), 4, "not for long enough");
    load.push(idle(1_300));
    assert_eq!(size(Some(&load), at(1_300)), 2, "for a whole window");
    assert_eq!(size(Some(&load), at(1_346)), 4, "nobody has looked since");
    load.push(idle(1_346));
    assert_eq!(size(Some(&load), at(1_346)), 4, "there was a gap");
    let mut silent = Load::default();
    (0..30).for_each(|look| silent.push(Reading { measured: 1, silent: 3, ..idle(1_000 + look * 15) }));
    assert_eq!(size(Some(&silent), at(1_435)), 3, "those who are silent may be busy");
    assert!(GAP_MAX > LOOK_PERIOD);
}

/// `size because` after an hour of readings that say the same, for a group of four.
fn settled(policy: &Autoscale, cpu: u64, sent: Sent) -> String {
    let before = Scaling { desired: 4, changed_at: at(0), because: "as before".to_owned() };
    let mut load = Load::default();
    (0..240).for_each(|look| {
        load.push(Reading { at: at(look * 15), cpu, measured: 4, silent: 0, sent });
    });
    let now = at(239 * 15);
    let known = Known { now, time_of_day: now, members: 4, before: Some(&before), load: Some(&load) };
    let scaling = size::next(policy, &known).scaling;
    format!("{} {}", scaling.desired, scaling.because)
}

#[test]
fn the_signal_that_needs_most_members_is_followed_and_all_must_let_them_go() {
    let sent = |per_second: u64, in_flight: u64| Sent {
        requests: per_second * WHOLE,
        in_flight: in_flight * WHOLE,
        is_all: true,
    };
    let by = |cpu: Option<u64>, requests_per_second, concurrency| Autoscale {
        cpu: cpu.map(Percent),
        requests_per_second,
        concurrency,
        max: 7,
        ..policy(50)
    };
    let check = |policy: Autoscale, cpu: u64, sent: Sent, expect: &str| {
        assert_eq!(settled(&policy, cpu, sent), expect, "{policy:?}");
    };
    let requests = by(None, Some(100), None);
    check(
        requests.clone(),
        0,
        sent(600, 0),
        "6 it gets 600 requests a second in all, and 100 for each member are wanted",
    );
    check(requests.clone(), 0, sent(440, 0), "4 as before");
    check(
        requests.clone(),
        0,
        sent(441, 0),
        "5 it gets 441 requests a second in all, and 100 for each member are wanted",
    );
    check(requests.clone(), 0, sent(271, 0), "4 as before");
    check(
        requests.clone(),
        0,
        sent(270, 0),
        "3 it gets 270 requests a second in all, and 100 for each member are wanted",
    );
    check(
        requests.clone(),
        0,
        sent(0, 0),
        "2 it gets 0 requests a second in all, and 100 for each member are wanted",
    );
    // Whatever a proxy says.
    let all = Sent { requests: u64::MAX, in_flight: u64::MAX, is_all: true };
    check(
        requests.clone(),
        0,
        all,
        "7 it gets 18446744073709551 requests a second in all, and 100 for each member are wanted",
    );
    // One that is silent may send any number.
    check(requests.clone(), 0, Sent { is_all: false, ..sent(0, 0) }, "4 as before");
    check(
        requests,
        0,
        Sent { is_all: false, ..sent(600, 0) },
        "6 it gets 600 requests a second in all, and 100 for each member are wanted",
    );
    let concurrency = by(None, None, Some(10));
    check(
        concurrency.clone(),
        0,
        sent(0, 50),
        "5 50 requests to it are in flight, and 10 for each member are wanted",
    );
    check(
        concurrency,
        0,
        sent(900, 4),
        "2 4 requests to it are in flight, and 10 for each member are wanted",
    );
    let all = by(Some(50), Some(100), Some(10));
    check(
        all.clone(),
        2_500,
        sent(600, 70),
        "7 70 requests to it are in flight, and 10 for each member are wanted",
    );
    check(
        all.clone(),
        3_000,
        sent(500, 40),
        "6 its members' CPUs are 300% busy in all, and 50% each is wanted",
    );
    check(all.clone(), 0, sent(350, 0), "4 as before");
    check(all, 1_000, sent(0, 0), "3 its members' CPUs are 100% busy in all, and 50% each is wanted");
}

#[test]
fn what_a_guest_counts_is_a_share() {
    let time = |busy_millis, idle_millis| CpuTime { busy_millis, idle_millis };
    let check =
        |now: CpuTime, before: CpuTime, expect: Option<u64>| assert_eq!(now.share_since(before), expect);
    check(time(300, 700), time(0, 0), Some(300));
    check(time(1_300, 700), time(300, 700), Some(1_000));
    check(time(5, 5), time(5, 5), None);
    // It has started anew, or lies.
    check(time(5, 900), time(300, 700), None);
    check(time(u64::MAX, u64::MAX), time(0, 0), None);
}

#[test]
fn readings_are_bounded() {
    let mut load = Load::default();
    let reading =
        |look: i64| Reading { at: at(look * 15), cpu: 0, measured: 1, silent: 0, sent: Sent::default() };
    (0..10_000).for_each(|look| load.push(reading(look)));
    let hour = Span::from_secs(3_600);
    let readings = Arc::new(load).of(hour, at(9_999 * 15)).map(Iterator::count);
    assert_eq!(readings, Some(241));
}
