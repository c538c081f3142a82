//! `lightbyte plan` and `lightbyte apply --plan`: what changes would do, and making them if they still would.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use lightbyte_api::ObjectRef;
use lightbyte_api::Span;
use lightbyte_api::kinds::scalegroup::RetiredFor;
use lightbyte_api::wire::{Apply, Foresee, Supposed};
use lightbyte_plan::forecast::{BootEstimate, Forecast, GroupForecast, Step, Unmet, What};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::arguments::{Plan, PlanForm, Supposition};
use crate::change::manifest_with;
use crate::cluster::Cluster;
use crate::failure::{Code, Failure};
use crate::table;
use crate::target;
use crate::terminal::{print, say};
use crate::verbs::{apply, maintenance, scale};

/// The largest file of a plan that is read.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// How many objects are named that wait for the same.
const NAMED_MAX: usize = 4;

/// A plan as it is kept in a file.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    changes: Vec<Supposed>,
    forecast: Forecast,
}

pub(crate) async fn run(cluster: &Cluster, words: &Plan) -> Result<Code> {
    let changes = changes(cluster, words).await?;
    let foresee = Foresee { changes };
    let forecast = cluster.foresee(&foresee).await.context("plan the change")?;
    let code = if has_a_place(&forecast) { Code::Done } else { Code::Differs };
    match words.output {
        PlanForm::Table => print(&render(&forecast))?,
        PlanForm::Json => {
            let kept = Kept { changes: foresee.changes, forecast };
            print(&serde_json::to_string_pretty(&kept).context("write the plan as JSON")?)?;
        }
    }
    Ok(code)
}

async fn changes(cluster: &Cluster, words: &Plan) -> Result<Vec<Supposed>> {
    let with = async |object: &ObjectRef, field: &str, value: &dyn Fn(&Value) -> Value| {
        let change = |spec: &mut Value| {
            spec[field] = value(&spec[field]);
            Ok(())
        };
        manifest_with(cluster, object, change).await.map(|(document, _)| vec![Supposed::Apply(document)])
    };
    match &words.supposition {
        None if words.files.is_empty() => {
            let failure = Failure::usage("nothing is said of what is to be planned");
            Err(failure.hint("`lightbyte plan -f FILE`, or see `lightbyte plan --help`").into())
        }
        None => Ok(apply::read(&words.files)?.into_iter().map(Supposed::Apply).collect()),
        Some(Supposition::Scale { group, replicas }) => {
            let group = scale::read_group(cluster, group).await?;
            with(&group, "replicas", &|before| json!(replicas.from(before.as_u64().unwrap_or(0)))).await
        }
        Some(Supposition::Drain { target }) => {
            let worker = maintenance::read_worker(cluster, target).await?;
            with(&worker, "draining", &|_| json!(true)).await
        }
        Some(Supposition::Delete { targets }) => {
            let mut changes = Vec::new();
            for target in target::read(targets)? {
                changes.push(Supposed::Delete(cluster.resolve(target).await?));
            }
            Ok(changes)
        }
        Some(Supposition::Lose { target }) => {
            Ok(vec![Supposed::Lose(maintenance::read_worker(cluster, target).await?)])
        }
    }
}

/// Makes the changes of a plan in a file, unless they would do something else by now.
pub(crate) async fn carry_out(cluster: &Cluster, file: &Path) -> Result<Code> {
    let what = || format!("read the plan `{}`", file.display());
    let mut text = String::new();
    File::open(file).with_context(what)?.take(FILE_BYTES_MAX).read_to_string(&mut text).with_context(what)?;
    let kept: Kept = serde_json::from_str(&text).with_context(what)?;
    let foresee = Foresee { changes: kept.changes };
    let now = cluster.foresee(&foresee).await.context("plan the change again")?;
    if let Some(difference) = first_difference(&kept.forecast, &now) {
        let failure = Failure::new(Code::Conflict, "the plan does not hold any more: nothing was changed");
        return Err(failure.details(difference).hint("plan again, and look at what it says now").into());
    }
    let mut documents = Vec::new();
    let mut ends = Vec::new();
    for change in foresee.changes {
        match change {
            Supposed::Apply(document) => documents.push(document),
            Supposed::Delete(object) => ends.push(object),
            Supposed::Lose(worker) => {
                let failure = Failure::usage(format!("the loss of {worker} is nothing that can be made"));
                return Err(failure.hint("`lightbyte plan lose` only tells what it would do").into());
            }
        }
    }
    if !documents.is_empty() {
        let request = Apply { documents, create_only: false, dry_run: false };
        let applied = cluster.apply(&request, None).await.context("make the changes of the plan")?;
        print(&applied.changes.iter().map(|changed| apply::summary(changed) + "\n").collect::<String>())?;
    }
    for object in ends {
        cluster.delete(&object).await.with_context(|| format!("delete `{object}`"))?;
        print(&format!("{object} deleting"))?;
    }
    say("`lightbyte wait KIND/NAME` waits until it is done");
    Ok(Code::Done)
}

/// Where two plans differ first; when does not count.
fn first_difference(kept: &Forecast, now: &Forecast) -> Option<Vec<String>> {
    let longest = kept.steps.len().max(now.steps.len());
    let (index, before, after) = (0..longest)
        .map(|index| (index, kept.steps.get(index), now.steps.get(index)))
        .find(|(_, before, after)| before.map(deed) != after.map(deed))?;
    let told = |step: Option<&Step>| step.map_or_else(|| "nothing".to_owned(), sentence);
    Some(vec![format!("step {} was: {}", index + 1, told(before)), format!("and now is: {}", told(after))])
}

const fn deed(step: &Step) -> (&ObjectRef, &What) {
    (&step.object, &step.what)
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
        let steps = forecast.steps_anyway;
        more.push_str(&format!(
            "the cluster is not at rest: {steps} steps would be taken without this too\n"
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
        let step = |at: &str, worker: &str| json!([{"at": at, "object": "vm/a", "what": "placed", "worker": worker}]);
        let check = |kept: Value, now: Value, expect: Option<&str>| {
            let found = first_difference(&forecast(&kept, &json!([])), &forecast(&now, &json!([])));
            assert_eq!(found.map(|lines| lines.join("; ")).as_deref(), expect);
        };
        check(step("0s", "n1"), step("5s", "n1"), None);
        let moved = "step 1 was: vm/a is given worker n1; and now is: vm/a is given worker n2";
        check(step("0s", "n1"), step("0s", "n2"), Some(moved));
        check(json!([]), step("0s", "n2"), Some("step 1 was: nothing; and now is: vm/a is given worker n2"));
    }
}
