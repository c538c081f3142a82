//! `lightbyte status`: servers, etcd and workers in one table, and whether anybody must look.

use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::future::join_all;
use lightbyte_api::Timestamp;
use lightbyte_api::object::Object;
use lightbyte_api::wire::{ClusterStatus, EtcdMember, Loss};
use lightbyte_link::{Client, Endpoint};
use serde_json::Value;
use tokio::time::timeout;

use crate::arguments::{Status, StatusForm};
use crate::cluster::Cluster;
use crate::failure::Code;
use crate::table;
use crate::terminal::print;

/// How long one server may take: all are asked at once, and a dead one must not hold up the answer of the others.
const SERVER_ANSWERS_WITHIN: Duration = Duration::from_secs(2);

/// What one server said.
type Answer = (Endpoint, Result<ClusterStatus, String>);

pub(crate) async fn run(cluster: &Cluster, words: &Status) -> Result<Code> {
    let answers = join_all(cluster.client().endpoints().iter().map(ask)).await;
    let best =
        answers.iter().filter_map(|(_, answer)| answer.as_ref().ok()).max_by_key(|status| status.revision);
    let Some(best) = best else {
        // The ordinary way tries for longer, and its error tells what each server said.
        let status = Cluster::status(cluster.client()).await.context("ask for the status")?;
        let endpoint = cluster.client().endpoints().first().cloned();
        let answers: Vec<Answer> =
            endpoint.map(|endpoint| (endpoint, Ok(status.clone()))).into_iter().collect();
        return show(words, &status, &answers);
    };
    show(words, best, &answers)
}

fn show(words: &Status, best: &ClusterStatus, answers: &[Answer]) -> Result<Code> {
    match words.output {
        StatusForm::Json => print(&serde_json::to_string_pretty(best)?)?,
        StatusForm::Table => print(&render(best, answers, Timestamp::now()))?,
    }
    Ok(Code::Done)
}

async fn ask(endpoint: &Endpoint) -> Answer {
    // The client would try a dead server again and again; here that it is dead is the answer.
    match timeout(SERVER_ANSWERS_WITHIN, endpoint.connect()).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => return (endpoint.clone(), Err(error.to_string())),
        Err(_) => return (endpoint.clone(), Err("no answer".to_owned())),
    }
    let client = Client::new([endpoint.clone()]);
    let answer = match timeout(SERVER_ANSWERS_WITHIN, Cluster::status(&client)).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err("no answer".to_owned()),
    };
    (endpoint.clone(), answer)
}

fn render(best: &ClusterStatus, answers: &[Answer], now: Timestamp) -> String {
    let head = ["PART", "NAME", "STATE", "VERSION", "DETAILS"].map(str::to_owned).to_vec();
    let servers = answers.iter().map(|answer| server(answer, best));
    let etcd = best.etcd.iter().map(member);
    let workers = best.workers.iter().map(|object| worker(object, now));
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(servers).chain(etcd).chain(workers).collect();
    let mut text = table::lay_out(&rows);
    text.push('\n');
    text.push_str(&last_words(best));
    text
}

fn row(part: &str, name: &str, state: &str, version: &str, details: &str) -> Vec<String> {
    [part, name, state, version, details].map(str::to_owned).to_vec()
}

fn server((endpoint, answer): &Answer, best: &ClusterStatus) -> Vec<String> {
    let endpoint = endpoint.to_string();
    match answer {
        Err(reason) => row("server", &endpoint, "away", table::NOTHING, reason),
        Ok(status) => {
            let leads = best.leader.as_ref() == Some(&status.server);
            let details = format!("{}{endpoint}", if leads { "leads, " } else { "" });
            row("server", status.server.as_str(), "ready", &status.version, &details)
        }
    }
}

pub(super) fn member(member: &EtcdMember) -> Vec<String> {
    let state = if member.healthy { "ready" } else { "away" };
    let leads = if member.leader { "leads, " } else { "" };
    let details = match member.healthy {
        true => format!("{leads}{}", sizes(member)),
        false => table::NOTHING.to_owned(),
    };
    let version = if member.version.is_empty() { table::NOTHING } else { &member.version };
    row("etcd", &member.endpoint, state, version, &details)
}

/// `20MiB of 2GiB, 12MiB used`.
fn sizes(member: &EtcdMember) -> String {
    let quota = member.quota_bytes.map_or_else(String::new, |quota| format!(" of {}", table::size(quota)));
    format!("{}{quota} stored, {} used", table::size(member.size_bytes), table::size(member.used_bytes))
}

fn worker(object: &Object, now: Timestamp) -> Vec<String> {
    let more = |name: &str| table::plain(object.status.more.get(name).unwrap_or(&Value::Null));
    let since = object.status.since.map(|since| format!(", since {}", table::age(since, now)));
    let vms = more("vms");
    let details = format!(
        "{vms} {}, {}/{} CPUs, {}/{} memory{}",
        if vms == "1" { "VM" } else { "VMs" },
        more("cpus_used"),
        more("cpus"),
        more("memory_used"),
        more("memory"),
        since.unwrap_or_default()
    );
    row("worker", object.name.as_str(), &object.status.state, &more("version"), &details)
}

fn last_words(best: &ClusterStatus) -> String {
    let mut text = match &best.leader {
        Some(_) => String::new(),
        None => "no server leads: nothing new is decided until one does\n".to_owned(),
    };
    best.etcd_worries.iter().for_each(|worry| text.push_str(&format!("{worry}\n")));
    for key in &best.unreadable {
        text.push_str(&format!("stored value `{key}` cannot be read by this version\n"));
    }
    text.push_str(&losses(&best.losses, best.losses_untried));
    text.push_str(&match best.stuck {
        0 => "nothing is stuck".to_owned(),
        1 => "1 thing is stuck: `lightbyte stuck` tells which".to_owned(),
        stuck => format!("{stuck} things are stuck: `lightbyte stuck` tells which"),
    });
    text.push_str(&format!(
        "; this answer of server `{}` is at revision {}, at most {} old\n",
        best.server,
        best.revision,
        millis(best.view_age_millis)
    ));
    text
}

/// Whether any one worker may be lost, and which is the worst to lose.
fn losses(losses: &[Loss], untried: u64) -> String {
    let worst = losses.iter().max_by_key(|loss| (loss.homeless, loss.members));
    let Some(Loss { worker, members, homeless, because, .. }) = worst.filter(|worst| worst.members > 0)
    else {
        return String::new();
    };
    match homeless {
        0 if untried > 0 => format!(
            "{} workers may be lost, one at a time; {untried} more were not looked at\n",
            losses.len()
        ),
        0 => format!(
            "any one worker may be lost: members of groups have room elsewhere (most are on `{worker}`: {members})\n"
        ),
        homeless => {
            let because = because.as_deref().unwrap_or("there is no room");
            format!(
                "worker `{worker}` may not be lost: of {members} members of groups on it {homeless} would have no place: {because}; \
                 `lightbyte plan lose worker/{worker}` tells more\n"
            )
        }
    }
}

fn millis(millis: u64) -> String {
    match millis {
        // Never confirmed.
        u64::MAX => "an unknown time".to_owned(),
        0..1_000 => format!("{millis}ms"),
        _ => format!("{}.{}s", millis / 1_000, millis % 1_000 / 100),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn one_table_shows_every_part() {
        let status: ClusterStatus = serde_json::from_value(json!({
            "cluster": null, "server": "n1", "version": "0.1.0", "revision": 42, "view_age_millis": 1250, "leader": "n1",
            "etcd": [
                {"endpoint": "http://10.0.0.1:2379", "healthy": true, "leader": true, "version": "3.4.23", "size_bytes": 20480, "used_bytes": 8192},
                {"endpoint": "http://10.0.0.2:2379", "healthy": false, "leader": false, "version": "", "size_bytes": 0},
            ],
            "workers": [{
                "kind": "worker", "name": "n1", "uid": "0193a5c0-7d3e-7c4a-9b1e-2f6d8a4b0c1d", "generation": 1,
                "labels": {}, "owner": null, "spec": {"cordoned": false},
                "status": {"state": "ready", "ready": true, "since": "2026-11-22T10:00:00Z", "waiting_on": [], "deadline": null,
                    "vms": 2, "cpus_used": 2, "cpus": 4, "memory_used": "256MiB", "memory": "2GiB", "version": "0.1.0"},
            }],
            "etcd_worries": ["1 member of etcd does not answer"], "stuck": 1, "unreadable": [],
        }))
        .unwrap();
        let answers = [
            ("http://10.0.0.1:7700".parse().unwrap(), Ok(status.clone())),
            ("http://10.0.0.2:7700".parse().unwrap(), Err("no answer".to_owned())),
        ];
        let expect = "\
PART    NAME                  STATE  VERSION  DETAILS
server  n1                    ready  0.1.0    leads, http://10.0.0.1:7700
server  http://10.0.0.2:7700  away   -        no answer
etcd    http://10.0.0.1:2379  ready  3.4.23   leads, 20KiB stored, 8KiB used
etcd    http://10.0.0.2:2379  away   -        -
worker  n1                    ready  0.1.0    2 VMs, 2/4 CPUs, 256MiB/2GiB memory, since 60s

1 member of etcd does not answer
1 thing is stuck: `lightbyte stuck` tells which; this answer of server `n1` is at revision 42, at most 1.2s old
";
        assert_eq!(render(&status, &answers, "2026-11-22T10:01:00Z".parse().unwrap()), expect);
    }
}
