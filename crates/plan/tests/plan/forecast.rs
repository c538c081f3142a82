//! What a forecast tells: the steps, how many members stay available, what waits in the end.

use insta::assert_snapshot;
use lightbyte_api::{Manifest, ObjectRef, Span};
use lightbyte_plan::forecast::{self, BootEstimate, Change, Context, Forecast, What};
use lightbyte_plan::{View, room};
use serde_json::{Value, json};

use crate::world::{at, object, world};

/// Reads changes, one in a line: `apply KIND/NAME SPEC`, `delete KIND/NAME`, `lose worker/NAME`.
fn changes(text: &str) -> Vec<Change> {
    let read = |line: &str| {
        let (verb, rest) = line.split_once(' ').expect("a verb");
        let (named, spec) = rest.split_once(' ').unwrap_or((rest, "{}"));
        let named: ObjectRef = object(named);
        match verb {
            "apply" => {
                let spec: Value = serde_json::from_str(spec).expect("a specification in JSON");
                let document =
                    json!({"kind": named.kind.to_string(), "name": named.name.to_string(), "spec": spec});
                Change::Apply(Manifest::read(&document).expect("a manifest"))
            }
            "delete" => Change::Delete(named),
            "lose" => Change::Lose(named),
            other => panic!("no verb: {other}"),
        }
    };
    text.lines().map(str::trim).filter(|line| !line.is_empty()).map(read).collect()
}

fn context(stage: u32) -> Context {
    let boot = BootEstimate { lasts: Span::from_secs(10), measured: 0 };
    Context { now: at(i64::from(stage) * 36_000), fresh: u128::from(stage + 1) << 80, boot }
}

/// The view after `stages`, each foreseen to its end.
fn after(given: &str, stages: &[&str]) -> View {
    let begin = world(given).view();
    (1..).zip(stages).fold(begin, |view, (stage, text)| {
        let end = forecast::end_of(&view, &changes(text), &context(stage)).expect("changes that may be made");
        end.check().expect("indexes that say what the entries say");
        end
    })
}

fn words(what: &What) -> String {
    match what {
        What::Created => "is made".to_owned(),
        What::Placed { worker } => format!("is placed on {worker}"),
        What::Moved { worker } => format!("moves to {worker}"),
        What::Becomes { state } => format!("is {state}"),
        What::LetGo { because: Some(because) } => format!("is let go: {because:?}"),
        What::LetGo { because: None } => "is let go".to_owned(),
        What::Gone => "is gone".to_owned(),
        What::Lost => "is lost".to_owned(),
        What::Rejected { version } => format!("rejects version {version}"),
    }
}

fn told(forecast: &Forecast) -> String {
    let steps = forecast.steps.iter().map(|step| {
        let available = step.available.map(|available| format!(" ({available})")).unwrap_or_default();
        format!("{} {} {}{available}", step.at, step.object, words(&step.what))
    });
    let groups = forecast.groups.iter().map(|group| {
        let forecast::GroupForecast { group, before, lowest, after } = group;
        format!("{group}: {before} available, {lowest} at the least, {after} in the end")
    });
    let unmet = forecast.unmet.iter().map(|unmet| {
        let anyway = if unmet.anyway { " anyway" } else { "" };
        format!("{}{anyway} waits: {}", unmet.object, unmet.because.join(" | "))
    });
    let anyway = (forecast.steps_anyway > 0).then(|| format!("{} steps anyway", forecast.steps_anyway));
    assert!(forecast.comes_to_rest, "a forecast that never rests");
    steps.chain(groups).chain(unmet).chain(anyway).collect::<Vec<_>>().join("\n")
}

/// What is told of the last of `stages`, when those before have come to their end.
fn check(given: &str, stages: &[&str]) -> String {
    let (last, before) = stages.split_last().expect("a stage");
    let view = after(given, before);
    let context = context(u32::try_from(stages.len()).expect("a few"));
    let forecast =
        forecast::forecast(&view, &changes(last), &context, &|| true).expect("changes that may be made");
    told(&forecast)
}

const WEB: &str =
    r#"apply scalegroup/web {"replicas": 3, "template": {"image": "demo", "memory": "256MiB"}}"#;

#[test]
fn a_vm_is_placed_and_boots() {
    assert_snapshot!(check("rack", &[r#"apply vm/a {"image": "demo"}"#]), @"
    0s vm/a is made
    0s vm/a is placed on n1
    10s vm/a is running
    ");
    assert_snapshot!(check("rack", &[r#"apply vm/a {"image": "demo", "cpus": 9}"#]), @"
    0s vm/a is made
    vm/a waits: no worker has 9 CPU and 128MiB free
    ");
    assert_snapshot!(check("rack\nvm a on=n1 observed=running", &["delete vm/a"]), @"
    0s vm/a is let go
    0s vm/a is gone
    ");
}

#[test]
fn a_proxy_that_is_given_the_virtual_address_of_another_runs_all_the_while() {
    let balancer = r#"apply loadbalancer/lb {"pools": [{"name": "web", "group": "web", "port": 80}], "listeners": [{"port": 80}], "virtual_address": "auto"}"#;
    assert_snapshot!(check("rack\nimage proxy v1 root=64MiB", &[balancer, "delete vm/lb-proxy-2"]), @"
    0s vm/lb-proxy-3 is made (2)
    0s vm/lb-proxy-3 is placed on n1 (2)
    10s vm/lb-proxy-3 is running (3)
    10s vm/lb-proxy-2 is let go: Request (2)
    18s vm/lb-proxy-2 is gone (2)
    18s scalegroup/lb-proxy is ready
    scalegroup/lb-proxy: 2 available, 1 at the least, 2 in the end
    loadbalancer/lb anyway waits: scalegroup/web does not exist, or is being deleted | somebody in pool `web` to serve
    ");
}

#[test]
fn a_group_is_made_scaled_rolled_and_drained() {
    assert_snapshot!(check("rack", &[WEB]), @"
    0s scalegroup/web is made
    0s vm/web-1 is made (0)
    0s vm/web-1 is placed on n1 (0)
    0s vm/web-2 is made (0)
    0s vm/web-2 is placed on n2 (0)
    0s vm/web-3 is made (0)
    0s vm/web-3 is placed on n1 (0)
    10s vm/web-1 is running (3)
    10s vm/web-2 is running (3)
    10s vm/web-3 is running (3)
    10s scalegroup/web is ready
    ");
    let update = r#"apply scalegroup/web {"replicas": 3, "template": {"image": "demo", "memory": "128MiB"}}"#;
    assert_snapshot!(check("rack", &[WEB, update]), @"
    0s vm/web-4 is made (3)
    0s vm/web-4 is placed on n2 (3)
    10s vm/web-4 is running (4)
    10s vm/web-1 is let go: Update (3)
    10s vm/web-5 is made (3)
    10s vm/web-5 is placed on n1 (3)
    10s vm/web-1 is gone (3)
    20s vm/web-5 is running (4)
    20s vm/web-2 is let go: Update (3)
    20s vm/web-6 is made (3)
    20s vm/web-6 is placed on n1 (3)
    20s vm/web-2 is gone (3)
    30s vm/web-6 is running (4)
    30s vm/web-3 is let go: Update (3)
    30s vm/web-3 is gone (3)
    30s scalegroup/web is ready
    scalegroup/web: 3 available, 3 at the least, 3 in the end
    ");
    assert_snapshot!(check("rack", &[WEB, r#"apply worker/n1 {"draining": true}"#]), @"
    0s vm/web-4 is made (3)
    0s vm/web-4 is placed on n2 (3)
    10s vm/web-4 is running (4)
    10s vm/web-1 is let go: Drain (3)
    10s vm/web-5 is made (3)
    10s vm/web-5 is placed on n2 (3)
    10s vm/web-1 is gone (3)
    20s vm/web-5 is running (4)
    20s vm/web-3 is let go: Drain (3)
    20s vm/web-3 is gone (3)
    20s worker/n1 is drained
    20s scalegroup/web is ready
    scalegroup/web: 3 available, 3 at the least, 3 in the end
    ");
    assert_snapshot!(check("rack", &[WEB, "lose worker/n1"]), @"
    30s worker/n1 is lost
    30s vm/web-4 is made (1)
    30s vm/web-4 is placed on n2 (1)
    30s vm/web-5 is made (1)
    30s vm/web-5 is placed on n2 (1)
    40s vm/web-4 is running (3)
    40s vm/web-5 is running (3)
    40s scalegroup/web is ready
    scalegroup/web: 3 available, 1 at the least, 3 in the end
    ");
    assert_snapshot!(check("rack", &[WEB, "delete scalegroup/web"]), @"
    0s scalegroup/web is let go
    0s vm/web-1 is let go (0)
    0s vm/web-2 is let go (0)
    0s vm/web-3 is let go (0)
    0s vm/web-1 is gone (0)
    0s vm/web-2 is gone (0)
    0s vm/web-3 is gone (0)
    0s scalegroup/web is gone
    scalegroup/web: 3 available, 0 at the least, 0 in the end
    ");
}

#[test]
fn what_is_in_trouble_stays_so() {
    assert_snapshot!(check("rack\nvm a on=n1 observed=crashed\nvm b", &["delete vm/b"]), @"
    0s vm/b is let go
    0s vm/b is gone
    vm/a anyway waits: it ended by itself on worker `n1`
    2 steps anyway
    ");
}

#[test]
fn what_is_under_way_comes_to_its_end_and_what_hangs_does_not() {
    let check =
        |vm: &str| check(&format!("rack\nvm a on=n1 {vm}\nvm b on=n2 observed=running"), &["delete vm/b"]);
    assert_snapshot!(check("observed=claimed"), @"
    0s vm/b is let go
    0s vm/b is gone
    10s vm/a is running
    1 steps anyway
    ");
    assert_snapshot!(check("checked observed=running health=starting"), @"
    0s vm/b is let go
    0s vm/a is running
    0s vm/b is gone
    1 steps anyway
    ");
    assert_snapshot!(check("checked observed=running health=unhealthy"), @"
    0s vm/b is let go
    0s vm/b is gone
    vm/a anyway waits: a check of its health to pass: status 503
    ");
    // A context is ten hours after the world was made: that long nobody boots.
    assert_snapshot!(check("observed=starting"), @"
    0s vm/b is let go
    0s vm/b is gone
    vm/a anyway waits: worker `n1` to start it
    ");
}

#[test]
fn copies_that_are_made_for_ever_are_no_part_of_a_plan() {
    let copied = r#"rack
        vm v on=n1 observed=running"#;
    let copies = r#"apply volume/data {"size": "1GiB", "worker": "n1", "copies": {"to": "n2", "every": "1h", "keep": 3}}"#;
    assert_snapshot!(check(copied, &[copies, "delete vm/v"]), @"
    0s vm/v is let go
    0s snapshot/data-copy-2 is made
    0s snapshot/data-copy-2 is placed on n1
    0s vm/v is gone
    8589ms snapshot/data-copy-2 moves to n2
    8589ms snapshot/data-copy-2 is ready
    4 steps anyway
    ");
}

#[test]
fn who_asks_for_a_forecast_may_go_away() {
    let view = after("rack", &[WEB]);
    let asked = std::cell::Cell::new(0);
    let is_wanted = || {
        asked.set(asked.get() + 1);
        asked.get() < 3
    };
    let told =
        forecast::forecast(&view, &changes("lose worker/n1"), &context(2), &is_wanted).expect("a worker");
    assert!(!told.comes_to_rest && asked.get() < 6, "it goes on for nobody");
}

#[test]
fn the_loss_of_each_worker_is_tried_out() {
    let check = |given: &str, replicas: u64| {
        let web =
            format!(r#"apply scalegroup/web {{"replicas": {replicas}, "template": {{"image": "demo"}}}}"#);
        let told = room::losses(&after(given, &[&web])).tried.into_iter().map(|loss| {
            let because = loss.because.map(|because| format!(": {because}")).unwrap_or_default();
            format!(
                "{}: {} of {} homeless, {} alone{because}",
                loss.worker, loss.homeless, loss.members, loss.alone
            )
        });
        told.collect::<Vec<_>>().join("\n")
    };
    assert_snapshot!(check("rack", 4), @"
    n1: 0 of 2 homeless, 0 alone
    n2: 0 of 2 homeless, 0 alone
    ");
    assert_snapshot!(check("rack\nvm a on=n1 cpus=2 observed=running", 4), @"
    n1: 0 of 2 homeless, 1 alone
    n2: 2 of 2 homeless, 0 alone: no worker has 1 CPU and 128MiB free
    ");
    assert_snapshot!(check("rack\nnetwork default 10.77.0.0/24 pool=2-5", 3), @"
    n1: 1 of 2 homeless, 0 alone: network `default` has no free address for it
    n2: 0 of 1 homeless, 0 alone
    ");
    assert_snapshot!(check("rack", 0), @"");
}
