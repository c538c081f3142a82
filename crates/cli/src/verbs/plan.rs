//! `lightbyte plan` and `lightbyte apply --plan`: what changes would do, and making them if they still would.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use lightbyte_api::kinds::scalegroup::RetiredFor;
use lightbyte_api::kinds::secret::PrivateKey;
use lightbyte_api::wire::{Apply, Foresee, RolloutStep, Supposed};
use lightbyte_api::{Manifest, ObjectRef, Span, Spec, Uid};
use lightbyte_plan::forecast::{BootEstimate, Forecast, GroupForecast, Step, Unmet, What};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::arguments::{Plan, PlanForm, PlanStep, Supposition};
use crate::change::manifest_with;
use crate::cluster::Cluster;
use crate::failure::{Code, Failure};
use crate::table;
use crate::target;
use crate::terminal::{print, say};
use crate::verbs::{apply, delete, disks, maintenance, scale};

/// The largest file of a plan that is read.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// How many objects are named that wait for the same.
const NAMED_MAX: usize = 4;

/// A plan as it is kept in a file.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    /// The cluster that was asked.
    cluster: Option<Uid>,
    changes: Vec<Supposed>,
    /// Of what version each object was that is changed, as `If-Match` takes it; those that were not there are not in it.
    versions: BTreeMap<String, String>,
    forecast: Forecast,
}

pub(crate) async fn run(cluster: &Cluster, words: &Plan) -> Result<Code> {
    let changes = changes(cluster, words).await?;
    if matches!(words.output, PlanForm::Json) {
        refuse_keys(&changes)?;
    }
    // Read before the plan is made: what somebody changes meanwhile makes it void.
    let versions = match words.output {
        PlanForm::Json => versions(cluster, &changes).await?,
        PlanForm::Table => BTreeMap::new(),
    };
    let foresee = Foresee { changes };
    let forecast = cluster.foresee(&foresee).await.context("plan the change")?;
    let code = if has_a_place(&forecast) { Code::Done } else { Code::Differs };
    match words.output {
        PlanForm::Table => print(&render(&forecast))?,
        PlanForm::Json => {
            let kept = Kept {
                cluster: Cluster::status(cluster.client()).await.context("ask which cluster it is")?.cluster,
                changes: foresee.changes,
                versions,
                forecast,
            };
            print(&serde_json::to_string_pretty(&kept).context("write the plan as JSON")?)?;
        }
    }
    Ok(code)
}

/// A plan that is kept has its manifests in it, and no private key is to be kept.
fn refuse_keys(changes: &[Supposed]) -> Result<(), Failure> {
    let has_key = |manifest: &Manifest| match &manifest.spec {
        Spec::Secret(secret) => secret.given().is_some_and(|pair| matches!(pair.key, PrivateKey::Plain(_))),
        _ => false,
    };
    let with_key = |change: &Supposed| match change {
        Supposed::Apply(document) => Manifest::read(document).ok().filter(has_key),
        _ => None,
    };
    let Some(manifest) = changes.iter().find_map(with_key) else { return Ok(()) };
    let object = manifest.object();
    let message = format!("a plan that is kept would have the private key of {object} in it");
    let hint = format!("`lightbyte import certificate {} --chain FILE --key FILE` first", object.name);
    Err(Failure::usage(message).hint(hint))
}

/// The object that a change is about.
fn object_of(change: &Supposed) -> Option<ObjectRef> {
    match change {
        Supposed::Apply(document) => Manifest::read(document).ok().map(|manifest| manifest.object()),
        Supposed::Delete(object) | Supposed::Lose(object) | Supposed::Rollout { group: object, .. } => {
            Some(object.clone())
        }
    }
}

async fn versions(cluster: &Cluster, changes: &[Supposed]) -> Result<BTreeMap<String, String>> {
    let mut versions = BTreeMap::new();
    for object in changes.iter().filter_map(object_of) {
        match cluster.object_with_version(&object).await {
            Ok((_, version)) => drop(versions.insert(object.to_string(), version)),
            Err(error) if error.status() == Some(404) => {}
            Err(error) => return Err(error).with_context(|| format!("read `{object}`")),
        }
    }
    Ok(versions)
}

async fn changes(cluster: &Cluster, words: &Plan) -> Result<Vec<Supposed>> {
    let with = async |object: &ObjectRef, change: &dyn Fn(&mut Value) -> Result<(), Failure>| {
        manifest_with(cluster, object, change).await.map(|(document, _)| vec![Supposed::Apply(document)])
    };
    if words.supposition.is_some() && !words.files.is_empty() {
        return Err(Failure::usage("either files are planned or one verb, not both").into());
    }
    match &words.supposition {
        None if words.files.is_empty() => {
            let failure = Failure::usage("nothing is said of what is to be planned");
            Err(failure.hint("`lightbyte plan -f FILE`, or see `lightbyte plan --help`").into())
        }
        None => Ok(apply::read(&words.files)?.into_iter().map(Supposed::Apply).collect()),
        Some(Supposition::Scale { group, replicas }) => {
            let group = scale::read_group(cluster, group).await?;
            with(&group, &|spec| scale::resize(&group, spec, *replicas)).await
        }
        Some(Supposition::Drain { target }) => {
            let worker = maintenance::read_worker(cluster, target).await?;
            let drain = |spec: &mut Value| {
                spec["draining"] = json!(true);
                Ok(())
            };
            with(&worker, &drain).await
        }
        Some(Supposition::Delete { targets }) => {
            let mut changes = Vec::new();
            for target in target::read(targets)? {
                changes.push(Supposed::Delete(cluster.resolve(target).await?));
            }
            Ok(changes)
        }
        Some(Supposition::Move { target, worker }) => {
            let object = disks::read_movable(cluster, target).await?;
            let moved = |spec: &mut Value| {
                spec["worker"] = json!(worker);
                Ok(())
            };
            with(&object, &moved).await
        }
        Some(Supposition::Rollout { step, group, to }) => {
            let group = scale::read_group(cluster, group).await?;
            let step = match step {
                PlanStep::Pause => RolloutStep::Pause,
                PlanStep::Resume => RolloutStep::Resume,
                PlanStep::Promote => RolloutStep::Promote,
                PlanStep::Undo => RolloutStep::Undo { to: *to },
            };
            if to.is_some() && !matches!(step, RolloutStep::Undo { .. }) {
                return Err(Failure::usage("`--to` goes with `undo`").into());
            }
            Ok(vec![Supposed::Rollout { group, step }])
        }
        Some(Supposition::Lose { target }) => {
            Ok(vec![Supposed::Lose(maintenance::read_worker(cluster, target).await?)])
        }
    }
}

/// Makes the changes of a plan in a file, unless something has changed since or they would do something else by now.
pub(crate) async fn carry_out(cluster: &Cluster, file: &Path, yes: bool) -> Result<Code> {
    let Kept { cluster: planned_for, changes, versions: versions_then, forecast } = read_kept(file)?;
    if let Some(worker) = changes.iter().find_map(|change| match change {
        Supposed::Lose(worker) => Some(worker),
        Supposed::Apply(_) | Supposed::Delete(_) | Supposed::Rollout { .. } => None,
    }) {
        let failure = Failure::usage(format!("the loss of {worker} is nothing that can be made"));
        return Err(failure.hint("`lightbyte plan lose` only tells what it would do").into());
    }
    let is_void = |details: Vec<String>| {
        let failure = Failure::new(Code::Conflict, "the plan does not hold any more: nothing was changed");
        Err(failure.details(details).hint("plan again, and look at what it says now").into())
    };
    let asked = Cluster::status(cluster.client()).await.context("ask which cluster it is")?.cluster;
    if asked != planned_for {
        return is_void(vec!["it was made for another cluster".to_owned()]);
    }
    let versions_now = versions(cluster, &changes).await?;
    let objects = changes.iter().filter_map(object_of).map(|object| object.to_string());
    let changed = objects.filter(|object| versions_then.get(object) != versions_now.get(object));
    let changed: Vec<String> = changed.map(|object| format!("{object} was changed since")).collect();
    if !changed.is_empty() {
        return is_void(changed);
    }
    let foresee = Foresee { changes };
    let now = cluster.foresee(&foresee).await.context("plan the change again")?;
    if let Some(difference) = first_difference(&forecast, &now) {
        return is_void(difference);
    }
    let ends: Vec<ObjectRef> = foresee
        .changes
        .iter()
        .filter_map(|change| match change {
            Supposed::Delete(object) => Some(object.clone()),
            Supposed::Apply(_) | Supposed::Lose(_) | Supposed::Rollout { .. } => None,
        })
        .collect();
    if !ends.is_empty() && !yes && !delete::confirm(&ends)? {
        say("nothing was changed");
        return Ok(Code::Error);
    }
    for change in foresee.changes {
        let Some(object) = object_of(&change) else { continue };
        let version = versions_then.get(&object.to_string()).map(String::as_str);
        match change {
            Supposed::Apply(document) => {
                let request =
                    Apply { documents: vec![document], create_only: version.is_none(), dry_run: false };
                let applied =
                    cluster.apply(&request, version).await.context("make the changes of the plan")?;
                print(
                    &applied.changes.iter().map(|changed| apply::summary(changed) + "\n").collect::<String>(),
                )?;
            }
            Supposed::Delete(object) => {
                let deleted = cluster.delete_as_read(&object, version.unwrap_or_default()).await;
                deleted.with_context(|| format!("delete `{object}`"))?;
                print(&format!("{object} deleting"))?;
            }
            Supposed::Rollout { group, step } => {
                let steered = cluster.rollout(&group, step, version).await;
                steered.with_context(|| format!("{} the update of `{group}`", step.word()))?;
                print(&format!("{group}: {} asked", step.word()))?;
            }
            Supposed::Lose(_) => {}
        }
    }
    say("`lightbyte wait KIND/NAME` waits until it is done");
    Ok(Code::Done)
}

fn read_kept(file: &Path) -> Result<Kept> {
    let what = || format!("read the plan `{}`", file.display());
    let mut text = String::new();
    File::open(file).with_context(what)?.take(FILE_BYTES_MAX).read_to_string(&mut text).with_context(what)?;
    let kept: Result<Kept, serde_json::Error> = serde_json::from_str(&text);
    kept.map_err(|error| {
        let message = format!("`{}` is no plan: {error}", file.display());
        Failure::usage(message).hint("`lightbyte plan … -o json` writes one").into()
    })
}

/// Where two plans differ first: in what happens to an object, or in what waits in the end. When it happens does not count,
/// nor what comes first of two objects that have nothing to do with each other.
fn first_difference(kept: &Forecast, now: &Forecast) -> Option<Vec<String>> {
    let of = |forecast: &Forecast| {
        let mut objects: BTreeMap<ObjectRef, Vec<String>> = BTreeMap::new();
        for step in &forecast.steps {
            objects.entry(step.object.clone()).or_default().push(sentence(step));
        }
        for unmet in forecast.unmet.iter().filter(|unmet| !unmet.anyway) {
            let waits = unmet.because.iter().map(|because| format!("{} would wait: {because}", unmet.object));
            objects.entry(unmet.object.clone()).or_default().extend(waits);
        }
        objects
    };
    let (before, after) = (of(kept), of(now));
    let object = before.keys().chain(after.keys()).find(|object| before.get(*object) != after.get(*object));
    let told = |found: &BTreeMap<ObjectRef, Vec<String>>, object: &ObjectRef| {
        found.get(object).map_or_else(|| format!("nothing of {object}"), |deeds| deeds.join(", then "))
    };
    if let Some(object) = object {
        return Some(vec![
            format!("it was: {}", told(&before, object)),
            format!("and now is: {}", told(&after, object)),
        ]);
    }
    let is_whole = |forecast: &Forecast| forecast.comes_to_rest && forecast.steps_untold == 0;
    (!is_whole(kept) || !is_whole(now)).then(|| vec!["its end is not known".to_owned()])
}

/// Whether everything that the change asks for would come about, but for what a person is asked.
fn has_a_place(forecast: &Forecast) -> bool {
    forecast.comes_to_rest && forecast.unmet.iter().all(|unmet| unmet.anyway || unmet.is_a_question())
}

/// The plan as people read it.
fn render(forecast: &Forecast) -> String {
    let mut text = String::new();
    if forecast.steps.is_empty() {
        text.push_str("nothing would happen\n");
    } else {
        let head = ["AFTER", "STEP", "AVAILABLE"].map(str::to_owned).to_vec();
        let rows = rows(&forecast.steps);
        let is_of_groups = forecast.steps.iter().any(|step| step.available.is_some());
        let width = if is_of_groups { head.len() } else { head.len() - 1 };
        let rows = std::iter::once(head).chain(rows).map(|row| row.into_iter().take(width).collect());
        text.push_str(&table::lay_out(&rows.collect::<Vec<Vec<String>>>()));
    }
    if forecast.steps_untold > 0 {
        text.push_str(&format!("and {} more steps\n", forecast.steps_untold));
    }
    let mut more = String::new();
    more.extend(forecast.groups.iter().map(of_group));
    more.push_str(&of_unmet(&forecast.unmet));
    let anyway = forecast.unmet.iter().filter(|unmet| unmet.anyway).count();
    if anyway > 0 {
        more.push_str(&format!("{anyway} more would wait as they do now: `lightbyte stuck`\n"));
    }
    if forecast.steps_anyway > 0 {
        let steps = match forecast.steps_anyway {
            1 => "one step".to_owned(),
            steps => format!("{steps} steps"),
        };
        more.push_str(&format!("the cluster is not at rest: {steps} would be taken without this too\n"));
    }
    for worker in &forecast.unforeseen {
        more.push_str(&format!(
            "what worker `{worker}` would do is not known: not everything of it can be read\n"
        ));
    }
    for group in &forecast.scale_by_load {
        more.push_str(&format!(
            "{group} scales by its load, which a plan does not know: it is taken to stay as it is\n"
        ));
    }
    if !forecast.comes_to_rest {
        more.push_str("it does not come to rest within what is looked at: the end is not known\n");
    } else if !forecast.steps.is_empty() {
        more.push_str(&format!("about {} in all: {}\n", span(forecast.takes), of_boots(forecast.boot)));
    }
    if !more.is_empty() {
        text.push('\n');
    }
    text + &more
}

/// A row for each step; a member that is made and placed at once has one.
fn rows(steps: &[Step]) -> Vec<Vec<String>> {
    let placed_at_once = |index: usize| {
        let made = &steps[index];
        let later = steps[index + 1..].iter().take_while(|step| step.at == made.at);
        later.filter(|step| step.object == made.object).find_map(|step| match &step.what {
            What::Placed { worker } => Some(worker),
            _ => None,
        })
    };
    let mut told = std::collections::BTreeSet::new();
    let mut rows = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        let available = step.available.map_or_else(|| table::NOTHING.to_owned(), |count| count.to_string());
        let sentence = match &step.what {
            What::Created => match placed_at_once(index) {
                Some(worker) => {
                    told.insert(&step.object);
                    format!("{} is made on {worker}", step.object)
                }
                None => sentence(step),
            },
            What::Placed { .. } if told.remove(&step.object) => continue,
            _ => sentence(step),
        };
        rows.push(vec![span(step.at), sentence, available]);
    }
    rows
}

fn sentence(step: &Step) -> String {
    let object = &step.object;
    match &step.what {
        What::Created => format!("{object} is made"),
        What::Placed { worker } => format!("{object} is given worker {worker}"),
        What::Moved { worker } => format!("{object} has moved to {worker}"),
        What::Becomes { state } => format!("{object} is {state}"),
        What::LetGo { because } => match because {
            None => format!("{object} is deleted"),
            Some(RetiredFor::Scale) => format!("{object} is let go: one too many"),
            Some(RetiredFor::Update) => format!("{object} is let go: of another version"),
            Some(RetiredFor::Drain) => format!("{object} is let go: its worker is drained"),
            Some(RetiredFor::Health) => format!("{object} is let go: it has failed"),
            Some(RetiredFor::WorkerLoss) => format!("{object} is let go: its worker was lost"),
            Some(RetiredFor::Request) => format!("{object} is let go: another was asked for in its place"),
            Some(RetiredFor::Move) => format!("{object} is let go: its volume moves to another worker"),
            Some(RetiredFor::Preemption) => {
                format!("{object} is let go: a VM with a higher priority needs its room")
            }
        },
        What::Gone => format!("{object} is gone"),
        What::Lost => format!("{object} counts as lost"),
        What::Rejected { version } => format!("{object} gives up version {version}"),
    }
}

fn of_group(group: &GroupForecast) -> String {
    let GroupForecast { group, before, lowest, after } = group;
    format!("{group}: {before} available now, never fewer than {lowest}, {after} in the end\n")
}

/// What would wait, those for the same reason together.
fn of_unmet(unmet: &[Unmet]) -> String {
    let mut reasons: Vec<(&str, &str, Vec<&ObjectRef>)> = Vec::new();
    for unmet in unmet.iter().filter(|unmet| !unmet.anyway) {
        for (because, hint) in unmet.because.iter().zip(&unmet.hints) {
            match reasons.iter_mut().find(|(known, _, _)| known == because) {
                Some((_, _, objects)) => objects.push(&unmet.object),
                None => reasons.push((because, hint, vec![&unmet.object])),
            }
        }
    }
    let told = reasons.into_iter().map(|(because, hint, objects)| {
        let named =
            objects.iter().take(NAMED_MAX).map(ToString::to_string).collect::<Vec<String>>().join(", ");
        let more = match objects.len().saturating_sub(NAMED_MAX) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        format!("{named}{more} would wait: {because}\n  hint: {hint}\n")
    });
    told.collect()
}

fn of_boots(boot: BootEstimate) -> String {
    match boot.measured {
        0 => format!("a boot is taken to last {}, none was measured", span(boot.lasts)),
        1 => format!("a boot lasts {}, as the one that was measured", span(boot.lasts)),
        count => format!("a boot lasts {}, the median of {count} measured", span(boot.lasts)),
    }
}

/// Seconds, with one digit below ten; minutes from two on.
fn span(span: Span) -> String {
    let millis = span.millis();
    match millis {
        0 => "0 s".to_owned(),
        1..1_000 => "<1 s".to_owned(),
        1_000..10_000 => format!("{}.{} s", millis / 1_000, millis % 1_000 / 100),
        10_000..120_000 => format!("{} s", millis / 1_000),
        _ => format!("{} min {} s", millis / 60_000, millis % 60_000 / 1_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forecast(steps: &Value, unmet: &Value) -> Forecast {
        serde_json::from_value(json!({
            "revision": 7, "steps": steps, "steps_untold": 0, "steps_anyway": 0, "unmet": unmet,
            "groups": [{"group": "scalegroup/web", "before": 3, "lowest": 2, "after": 3}],
            "takes": "12500ms", "boot": {"lasts": "2500ms", "measured": 4}, "comes_to_rest": true,
        }))
        .unwrap()
    }

    #[test]
    fn a_plan_reads_from_its_steps_to_its_estimate() {
        let found = forecast(
            &json!([
                {"at": "0s", "object": "vm/web-4", "what": "created", "available": 3},
                {"at": "0s", "object": "vm/web-4", "what": "placed", "worker": "n2", "available": 3},
                {"at": "2500ms", "object": "vm/web-4", "what": "becomes", "state": "running", "available": 4},
                {"at": "2500ms", "object": "vm/web-1", "what": "let_go", "because": "drain", "available": 3},
                {"at": "12500ms", "object": "worker/n1", "what": "becomes", "state": "drained"},
            ]),
            &json!([
                {"object": "vm/db", "waiting_on": [], "because": ["no room"], "hints": ["add a worker"], "anyway": false},
                {"object": "vm/old", "waiting_on": [], "because": ["no room"], "hints": ["add a worker"], "anyway": true},
            ]),
        );
        let expect = "\
AFTER  STEP                                            AVAILABLE
0 s    vm/web-4 is made on n2                          3
2.5 s  vm/web-4 is running                             4
2.5 s  vm/web-1 is let go: its worker is drained       3
12 s   worker/n1 is drained                            -

scalegroup/web: 3 available now, never fewer than 2, 3 in the end
vm/db would wait: no room
  hint: add a worker
1 more would wait as they do now: `lightbyte stuck`
about 12 s in all: a boot lasts 2.5 s, the median of 4 measured
";
        let squeezed = |text: &str| -> String {
            let words = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
            words.collect::<Vec<_>>().join("\n")
        };
        assert_eq!(squeezed(&render(&found)), squeezed(expect));
        assert!(!has_a_place(&found));
    }

    #[test]
    fn a_plan_holds_when_its_deeds_are_the_same() {
        let placed = |at: &str, object: &str, worker: &str| json!({"at": at, "object": object, "what": "placed", "worker": worker});
        let check = |kept: Value, now: Value, expect: Option<&str>| {
            let found = first_difference(&forecast(&kept, &json!([])), &forecast(&now, &json!([])));
            assert_eq!(found.map(|lines| lines.join("; ")).as_deref(), expect);
        };
        let (a, b) = (placed("0s", "vm/a", "n1"), placed("1s", "vm/b", "n1"));
        check(json!([a]), json!([placed("5s", "vm/a", "n1")]), None);
        check(json!([a, b]), json!([b, a]), None);
        let moved = "it was: vm/a is given worker n1; and now is: vm/a is given worker n2";
        check(json!([a]), json!([placed("0s", "vm/a", "n2")]), Some(moved));
        check(json!([]), json!([b]), Some("it was: nothing of vm/b; and now is: vm/b is given worker n1"));
    }
}
