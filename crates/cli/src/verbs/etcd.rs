//! `lightbyte etcd`: how the store's members are, and more room in their files.

use std::time::Duration;

use anyhow::{Context as _, Result};
use lightbyte_api::wire::{ClusterStatus, Defragment, Defragmented, EtcdMember};

use super::status;
use crate::arguments::{Etcd, Status, StatusForm};
use crate::cluster::Cluster;
use crate::failure::Code;
use crate::table;
use crate::terminal::print;

/// How long a member may take to write its file anew; servers give it five minutes.
const DEFRAGMENTED_WITHIN: Duration = Duration::from_secs(310);

pub(crate) async fn run(cluster: &Cluster, words: &Etcd) -> Result<Code> {
    match words {
        Etcd::Status(Status { output }) => show(&ask(cluster).await?, *output),
        Etcd::Defrag { endpoint } => defragment(cluster, endpoint.as_deref()).await,
    }
}

async fn ask(cluster: &Cluster) -> Result<ClusterStatus> {
    Cluster::status(cluster.client()).await.context("ask for the status")
}

fn show(status: &ClusterStatus, form: StatusForm) -> Result<Code> {
    match form {
        StatusForm::Json => print(&serde_json::to_string_pretty(&status.etcd)?)?,
        StatusForm::Table => print(&render(status))?,
    }
    Ok(if status.etcd_worries.is_empty() { Code::Done } else { Code::Differs })
}

fn render(status: &ClusterStatus) -> String {
    if status.etcd.is_empty() {
        return format!(
            "server `{}` has no members of etcd: what it stores is in its memory\n",
            status.server
        );
    }
    let head = ["MEMBER", "STATE", "VERSION", "DETAILS"].map(str::to_owned).to_vec();
    let rows = status.etcd.iter().map(|member| status::member(member).split_off(1));
    let mut text = table::lay_out(&std::iter::once(head).chain(rows).collect::<Vec<_>>());
    text.push('\n');
    match status.etcd_worries.as_slice() {
        [] => text.push_str("all is well\n"),
        worries => worries.iter().for_each(|worry| text.push_str(&format!("{worry}\n"))),
    }
    text
}

/// One after the other. Servers let none begin while another does not answer.
async fn defragment(cluster: &Cluster, endpoint: Option<&str>) -> Result<Code> {
    let endpoints = match endpoint {
        Some(endpoint) => vec![endpoint.to_owned()],
        None => order(&ask(cluster).await?.etcd),
    };
    for endpoint in endpoints {
        let client = cluster.client().within(DEFRAGMENTED_WITHIN);
        let asked = Defragment { endpoint: endpoint.clone() };
        let answer = client.post::<_, Defragmented>("/v1/etcd/defragment", &asked).await;
        let Defragmented { before_bytes, after_bytes } =
            answer.with_context(|| format!("defragment etcd {endpoint}"))?.value;
        print(&format!(
            "{endpoint}: {} before, {} now\n",
            table::size(before_bytes),
            table::size(after_bytes)
        ))?;
    }
    Ok(Code::Done)
}

/// Those that answer first, and of them the one that leads last.
fn order(members: &[EtcdMember]) -> Vec<String> {
    let mut members: Vec<&EtcdMember> = members.iter().collect();
    members.sort_by_key(|member| (!member.healthy, member.leader));
    members.into_iter().map(|member| member.endpoint.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(endpoint: &str, healthy: bool, leader: bool) -> EtcdMember {
        EtcdMember {
            endpoint: endpoint.to_owned(),
            healthy,
            leader,
            version: "3.6.1".to_owned(),
            size_bytes: 20 << 20,
            used_bytes: 5 << 20,
            quota_bytes: Some(2 << 30),
        }
    }

    #[test]
    fn the_leader_is_the_last_of_those_that_answer() {
        let members = [
            member("a", false, false),
            member("b", true, true),
            member("c", true, false),
            member("d", true, false),
        ];
        assert_eq!(order(&members), ["c", "d", "b", "a"]);
    }
}
