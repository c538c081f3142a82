//! What an administrator asks of the members themselves: their health, and compaction.

use std::time::Duration;

use etcd_client::{Channel as EtcdChannel, Client};

use super::call::{About, Failure};
use super::keys::{revision, to_etcd};
use super::{EtcdStore, incomplete};
use crate::error::StoreError;
use crate::store::Revision;

/// How long a member may take to tell of itself.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);

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
    /// The newest revision that it has applied.
    pub revision: Revision,
}

impl EtcdStore {
    /// Asks each endpoint for its state, all at once, in the order of the endpoints given at the start.
    ///
    /// # Errors
    /// Per member: [`StoreError::Unavailable`] when it does not answer within 2 s.
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

async fn status(channel: tonic::transport::Channel) -> Result<MemberStatus, StoreError> {
    let ask = async {
        let client = Client::from_channel(EtcdChannel::Tonic(channel), None).await?;
        Ok(client.maintenance_client().status().await?.0)
    };
    let answer: Result<etcd_client::proto::PbStatusResponse, etcd_client::Error> =
        match tokio::time::timeout(STATUS_TIMEOUT, ask).await {
            Ok(answer) => answer,
            Err(_) => return Err(StoreError::unavailable("no answer to a question for the state")),
        };
    let answer = answer.map_err(|error| StoreError::Unavailable(std::sync::Arc::new(error)))?;
    let header = answer.header.ok_or_else(|| incomplete("header"))?;
    Ok(MemberStatus {
        id: header.member_id,
        is_leader: answer.leader == header.member_id,
        version: answer.version,
        database_bytes: u64::try_from(answer.db_size).unwrap_or_default(),
        revision: revision(header.revision),
    })
}
