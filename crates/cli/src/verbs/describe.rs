//! `lightbyte describe`: everything about one object on one page.

use anyhow::{Context as _, Result};
use lightbyte_api::object::Object;
use lightbyte_api::parts::Fetch;
use lightbyte_api::{ByteSize, Timestamp};
use serde_json::{Map, Value};

use crate::arguments::Describe;
use crate::cluster::Cluster;
use crate::failure::Code;
use crate::table;
use crate::target;
use crate::terminal::print;
use crate::verbs::{events, why};
use crate::yaml;

pub(crate) async fn run(cluster: &Cluster, words: &Describe) -> Result<Code> {
    let target = cluster.resolve(target::read_single(&words.target)?).await?;
    let object = cluster.object(&target).await.with_context(|| format!("describe `{target}`"))?;
    let explanation = cluster.why(&target, None).await.with_context(|| format!("explain `{target}`"))?;
    let mut page = format!("{}\n{}", render(&object, Timestamp::now())?, why::render(&explanation));
    // What happened and what is under way is told of now alone.
    if cluster.is_past() {
        print(&page)?;
        return Ok(Code::Done);
    }
    let events =
        cluster.events(Some(&target)).await.with_context(|| format!("list the events of `{target}`"))?;
    if !events.is_empty() {
        page.push_str(&format!("\n{}", events::render(&events)));
    }
    // Nothing of it is stored, so an agent that does not say it now hides nothing else.
    let fetches = cluster.fetches(&target).await.unwrap_or_default();
    if !fetches.is_empty() {
        page.push_str(&format!("\nfetching:\n{}", fetches.iter().map(fetch).collect::<String>()));
    }
    print(&page)?;
    Ok(Code::Done)
}

/// A line on a part of an image that is on its way.
fn fetch(fetch: &Fetch) -> String {
    let name = fetch.sha256.get(..12).unwrap_or(&fetch.sha256);
    let percent = fetch.done.saturating_mul(100).checked_div(fetch.size).unwrap_or(100);
    let from = fetch.from.as_ref().map(|from| format!(" from {from}")).unwrap_or_default();
    let left = fetch.seconds_left.map(|left| format!(", about {left} s left")).unwrap_or_default();
    let problem = fetch.problem.as_ref().map(|problem| format!(": {problem}")).unwrap_or_default();
    let size = ByteSize::from_bytes(fetch.size);
    format!("  image part {name}: {percent} % of {size}{from}{left}{problem}\n")
}

fn render(object: &Object, now: Timestamp) -> Result<String> {
    let labels: Vec<String> = object.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let mut rows = vec![
        ("name", format!("{}/{}", object.kind, object.name)),
        ("uid", object.uid.to_string()),
        ("generation", object.generation.to_string()),
        ("labels", if labels.is_empty() { table::NOTHING.to_owned() } else { labels.join(", ") }),
    ];
    rows.extend(object.owner.as_ref().map(|owner| ("owner", owner.to_string())));
    let status = &object.status;
    let since = status.since.map(|since| format!(", for {}", table::age(since, now))).unwrap_or_default();
    rows.push(("state", format!("{}{since}", status.state)));
    let rows: Vec<Vec<String>> =
        rows.into_iter().map(|(label, text)| vec![format!("{label}:"), text]).collect();
    let known: Map<String, Value> = status
        .more
        .iter()
        .filter(|(_, value)| !value.is_null())
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let mut page = table::lay_out(&rows);
    page.push_str(&section("asked", &object.spec)?);
    page.push_str(&section("true", &Value::Object(known))?);
    Ok(page)
}

fn section(head: &str, value: &Value) -> Result<String> {
    if value.as_object().is_none_or(Map::is_empty) {
        return Ok(String::new());
    }
    let text = yaml::write(value)?;
    let indented: String = text.lines().map(|line| format!("  {line}\n")).collect();
    Ok(format!("{head}:\n{indented}"))
}
