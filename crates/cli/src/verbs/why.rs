//! `lightbyte why`: what was decided, why, and what can be done.

use anyhow::{Context as _, Result};
use lightbyte_api::decided::Verdict;
use lightbyte_plan::why::Explanation;

use crate::arguments::Why;
use crate::cluster::Cluster;
use crate::failure::Code;
use crate::table;
use crate::target;
use crate::terminal::print;
use crate::verbs::maintenance::read_worker;

pub(crate) async fn run(cluster: &Cluster, words: &Why) -> Result<Code> {
    let object = cluster.resolve(target::read_single(&words.target)?).await?;
    let on = match &words.on {
        Some(worker) => Some(read_worker(cluster, std::slice::from_ref(worker)).await?.name),
        None => None,
    };
    let explanation =
        cluster.why(&object, on.as_ref()).await.with_context(|| format!("explain `{object}`"))?;
    print(&render(&explanation))?;
    Ok(Code::Done)
}

/// The explanation as people read it.
pub(crate) fn render(explanation: &Explanation) -> String {
    let Explanation { object, state, ready, because, hints, verdicts, remedies } = explanation;
    let ready = if *ready { "as asked" } else { "not yet as asked" };
    let mut text = format!("{object} is {state}, {ready}\n");
    text.extend(because.iter().map(|sentence| format!("  - {sentence}\n")));
    let mut told: Vec<&String> = Vec::new();
    for hint in hints {
        if !told.contains(&hint) {
            told.push(hint);
            text.push_str(&format!("hint: {hint}\n"));
        }
    }
    if !remedies.is_empty() {
        text.push_str("it would have a place with any of these:\n");
        text.extend(remedies.iter().map(|remedy| format!("  - {remedy}\n")));
    }
    if !verdicts.is_empty() {
        let head = ["WORKER", "RANK", "REASONS"].map(str::to_owned).to_vec();
        let rows = verdicts.iter().map(|verdict| row(verdict, verdicts));
        let rows: Vec<Vec<String>> = std::iter::once(head).chain(rows).collect();
        text.push('\n');
        text.push_str(&table::lay_out(&rows));
    }
    text
}

/// Scores are for comparing alone: which of them it is says more than how much.
fn row(verdict: &Verdict, all: &[Verdict]) -> Vec<String> {
    let rank =
        |score: i64| 1 + all.iter().filter(|other| other.score.is_some_and(|other| other > score)).count();
    let rank = verdict.score.map_or_else(|| "refused".to_owned(), |score| rank(score).to_string());
    vec![verdict.worker.to_string(), rank, verdict.reasons.join("; ")]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_explanation_reads_from_the_state_to_the_workers() {
        let explanation: Explanation = serde_json::from_value(json!({
            "object": "vm/hello", "state": "pending", "ready": false,
            "because": ["it waits: no worker has 1 CPU and 128MiB free"],
            "hints": ["add a worker", "add a worker"],
            "verdicts": [
                {"worker": "n1", "score": 3, "reasons": ["2 CPU free", "1 VM here"]},
                {"worker": "node-2", "score": null, "reasons": ["cordoned"]},
            ],
            "remedies": ["`lightbyte uncordon worker/node-2`"],
        }))
        .unwrap();
        let expect = "\
vm/hello is pending, not yet as asked
  - it waits: no worker has 1 CPU and 128MiB free
hint: add a worker
it would have a place with any of these:
  - `lightbyte uncordon worker/node-2`

WORKER  RANK     REASONS
n1      1        2 CPU free; 1 VM here
node-2  refused  cordoned
";
        assert_eq!(render(&explanation), expect);
    }
}
