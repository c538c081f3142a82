//! `lightbyte stuck`: everything that waits longer than is normal.

use anyhow::{Context as _, Result};
use lightbyte_api::Timestamp;
use lightbyte_plan::why::Stuck;

use crate::cluster::Cluster;
use crate::failure::Code;
use crate::table;
use crate::terminal::print;

pub(crate) async fn run(cluster: &Cluster) -> Result<Code> {
    let stuck = cluster.stuck().await.context("list what is stuck")?;
    print(&render(&stuck, Timestamp::now()))?;
    Ok(Code::Done)
}

fn render(stuck: &[Stuck], now: Timestamp) -> String {
    if stuck.is_empty() {
        return "nothing is stuck\n".to_owned();
    }
    let head = ["OBJECT", "FOR", "WAITING", "HINT"].map(str::to_owned).to_vec();
    let row = |stuck: &Stuck| {
        vec![
            stuck.object.to_string(),
            table::age(stuck.since, now),
            stuck.because.clone(),
            stuck.hint.clone(),
        ]
    };
    table::lay_out(&std::iter::once(head).chain(stuck.iter().map(row)).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_has_its_reason_and_its_hint() {
        let stuck: Vec<Stuck> = serde_json::from_value(json!([{
            "object": "vm/a", "because": "image/x does not exist", "hint": "import it", "since": "2026-11-22T10:00:00Z",
            "waiting_on": {"reason": "missing", "object": "image/x"},
        }]))
        .unwrap();
        let now = "2026-11-22T10:05:00Z".parse().unwrap();
        let expect =
            "OBJECT  FOR  WAITING                 HINT\nvm/a    5m   image/x does not exist  import it\n";
        assert_eq!(render(&stuck, now), expect);
        assert_eq!(render(&[], now), "nothing is stuck\n");
    }
}
