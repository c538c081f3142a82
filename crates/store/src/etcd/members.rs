//! What an administrator asks of the members themselves: their health, compaction, and room.

use std::time::Duration;

use etcd_client::{AlarmAction, AlarmOptions, AlarmType, Channel as EtcdChannel, Client};
use tonic::transport::Channel;

use super::call::{About, Failure};
use super::keys::{revision, to_etcd};
use super::{EtcdStore, incomplete};
use crate::error::{StoreError, cause};
use crate::store::Revision;

/// How long a member may take to tell of itself. People wait for it, and for a server that asks it no longer than two seconds.
const STATUS_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a member may take to write its file anew: some seconds for each hundred MiB that it keeps.
const DEFRAGMENT_TIMEOUT: Duration = Duration::from_secs(300);

/// A member, as it sees itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its id in the cluster.
    pub id: u64,
    /// Whether it believes that it leads. A stopped former leader believes so too.
    pub is_leader: bool,
    /// Its version, such as `3.5.16`.
    pub version: String,
    /// The size of its database file in bytes, free pages included.
    pub database_bytes: u64,
    /// How many of them are in use.
    pub used_bytes: u64,
    /// How large the file may be; members before 3.6 do not say.
    pub quota_bytes: Option<u64>,
    /// The newest revision that it has applied.
    pub revision: Revision,
}

/// What a member has raised, and every member acts by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Alarm {
    /// Its file has reached its quota: nobody takes a write but deletions.
    Space,
    /// What it has differs from what the others have.
    Corrupt,
}

impl EtcdStore {
    /// Asks each endpoint for its state, all at once, in the order of the endpoints given at the start.
    ///
    /// # Errors
    /// Per member: [`StoreError::Unavailable`] when it does not answer within a second.
    pub async fn members(&self) -> Vec<(String, Result<MemberStatus, StoreError>)> {
        let mut asked = tokio::task::JoinSet::new();
        let endpoints = self.0.members.endpoints();
        for (index, (_, channel)) in endpoints.iter().enumerate() {
            let channel = channel.clone();
            asked.spawn(async move { (index, status(channel).await) });
        }
        let mut told: Vec<_> = endpoints
            .iter()
            .map(|(url, _)| (url.clone(), Err(StoreError::unavailable("the question was not finished"))))
            .collect();
        while let Some(answer) = asked.join_next().await {
            if let Ok((index, status)) = answer {
                told[index].1 = status;
            }
        }
        told
    }

    /// The alarms that are raised, each with the id of the member that did. It takes most of the members to say so.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when they do not within a second.
    pub async fn alarms(&self) -> Result<Vec<(u64, Alarm)>, StoreError> {
        let mut maintenance = self.0.client.maintenance_client();
        let answer = ask(STATUS_TIMEOUT, maintenance.alarm(AlarmAction::Get, AlarmType::None, None)).await?;
        let known = |raised: &etcd_client::AlarmMember| match raised.alarm() {
            AlarmType::None => None,
            AlarmType::Nospace => Some((raised.member_id(), Alarm::Space)),
            AlarmType::Corrupt => Some((raised.member_id(), Alarm::Corrupt)),
        };
        Ok(answer.alarms().iter().filter_map(known).collect())
    }

    /// Takes back the alarm for space that a member has raised. If its file still is as large as its quota, the next write raises it again.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn let_write(&self, member: u64) -> Result<(), StoreError> {
        let done = self.0.repeat(self.0.request_timeout, About::default(), || {
            let mut maintenance = self.0.client.maintenance_client();
            let mut options = AlarmOptions::new();
            options.with_member(member);
            async move { maintenance.alarm(AlarmAction::Deactivate, AlarmType::Nospace, Some(options)).await }
        });
        Ok(done.await.map(|_| ())?)
    }

    /// Has the member at one of the endpoints write its file anew, without the pages that are free. It answers nobody meanwhile.
    ///
    /// # Errors
    /// [`StoreError::Misconfigured`] if it is none of the endpoints, [`StoreError::Unavailable`].
    pub async fn defragment(&self, endpoint: &str) -> Result<(), StoreError> {
        let endpoints = self.0.members.endpoints();
        let Some((_, channel)) = endpoints.iter().find(|(url, _)| url == endpoint) else {
            return Err(StoreError::Misconfigured(cause(format!("no member of etcd is at {endpoint}"))));
        };
        let channel = channel.clone();
        ask(DEFRAGMENT_TIMEOUT, async {
            let client = Client::from_channel(EtcdChannel::Tonic(channel), None).await?;
            client.maintenance_client().defragment().await.map(|_| ())
        })
        .await
    }

    /// Forgets the history up to and including `revision`: older lists and watches get [`StoreError::Compacted`].
    /// Having been done already is no error.
    ///
    /// # Errors
    /// [`StoreError::FutureRevision`], [`StoreError::Unavailable`].
    pub async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        let about = About { revision: Some(revision), ..About::default() };
        let done = self.0.repeat(self.0.request_timeout, about, || {
            let mut kv = self.0.kv();
            async move { kv.compact(to_etcd(revision), None).await }
        });
        match done.await {
            Ok(_) | Err(Failure::Known(StoreError::Compacted { .. })) => Ok(()),
            Err(failure) => Err(failure.into()),
        }
    }
}

async fn status(channel: Channel) -> Result<MemberStatus, StoreError> {
    let answer = ask(STATUS_TIMEOUT, async {
        let client = Client::from_channel(EtcdChannel::Tonic(channel), None).await?;
        Ok(client.maintenance_client().status().await?.0)
    })
    .await?;
    let header = answer.header.ok_or_else(|| incomplete("header"))?;
    let bytes = |bytes: i64| u64::try_from(bytes).unwrap_or_default();
    Ok(MemberStatus {
        id: header.member_id,
        is_leader: answer.leader == header.member_id,
        version: answer.version,
        database_bytes: bytes(answer.db_size),
        used_bytes: bytes(answer.db_size_in_use),
        quota_bytes: Some(bytes(answer.db_size_quota)).filter(|quota| *quota > 0),
        revision: revision(header.revision),
    })
}

/// One question to one member.
async fn ask<T>(
    within: Duration,
    question: impl Future<Output = Result<T, etcd_client::Error>>,
) -> Result<T, StoreError> {
    match tokio::time::timeout(within, question).await {
        Ok(answer) => answer.map_err(|error| StoreError::Unavailable(std::sync::Arc::new(error))),
        Err(_) => Err(StoreError::unavailable("it does not answer in time")),
    }
}
