//! The cluster at a glance.

use std::sync::{Arc, PoisonError};

use axum::extract::State;
use lightbyte_api::Key;
use lightbyte_api::Kind;
use lightbyte_api::records::Record;
use lightbyte_api::wire::{ClusterStatus, EtcdMember};
use lightbyte_plan::{View, room, status, why};

use crate::api::answer::{Answer, Answered};
use crate::api::input::Parameters;
use crate::{Server, clock};

/// How many unreadable keys are named; a newer version may have written thousands.
const UNREADABLE_NAMED_MAX: usize = 100;

/// `GET /v1/status`
pub(crate) async fn cluster(
    State(server): State<Arc<Server>>,
    parameters: Parameters,
) -> Answered<ClusterStatus> {
    parameters.only(&["min_revision"])?;
    let view = server.view_for(&parameters).await?;
    let etcd = members(&server).await;
    let cluster = match view.record(&Key::Epoch) {
        Some(Record::Epoch(epoch)) => Some(epoch.cluster),
        _ => None,
    };
    let leader = match view.record(&Key::Leader) {
        Some(Record::Leader(leader)) => Some(leader.server.clone()),
        _ => None,
    };
    let losses = server.losses(&view).await;
    let age = server.follower.confirmed_at().map(|at| at.elapsed().as_millis());
    let status = ClusterStatus {
        cluster,
        server: server.name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        revision: view.revision(),
        // A view that was never confirmed may be of any age.
        view_age_millis: age.and_then(|age| u64::try_from(age).ok()).unwrap_or(u64::MAX),
        leader,
        etcd,
        workers: view.objects_of(Kind::Worker).filter_map(|object| status::object(&view, object)).collect(),
        losses: losses.tried,
        losses_untried: losses.untried,
        stuck: why::stuck(&view, clock::now()).len() as u64,
        unreadable: view.unreadable_keys().take(UNREADABLE_NAMED_MAX).collect(),
    };
    Ok(Answer::at(view.revision(), status))
}

impl Server {
    /// What the loss of workers would do. It is worked out by one request at a time, once for each revision; who would wait
    /// for that is told what was last known.
    pub(crate) async fn losses(&self, view: &View) -> room::Losses {
        let revision = view.revision();
        let known = || self.losses.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (Ok(_permit), (at, last)) = (self.losses_permit.try_acquire(), known()) else { return known().1 };
        if at == revision {
            return last;
        }
        // Thousands of VMs are tried out: not on a thread that serves others.
        let tried = view.clone();
        match tokio::task::spawn_blocking(move || room::losses(&tried)).await {
            Ok(losses) => {
                *self.losses.lock().unwrap_or_else(PoisonError::into_inner) = (revision, losses.clone());
                losses
            }
            Err(error) => {
                tracing::error!(%error, "what the loss of a worker would do could not be told");
                last
            }
        }
    }
}

async fn members(server: &Server) -> Vec<EtcdMember> {
    let Some(etcd) = &server.etcd else { return Vec::new() };
    let member = |(endpoint, told): (String, Result<lightbyte_store::etcd::MemberStatus, _>)| {
        let told = told.ok();
        EtcdMember {
            endpoint,
            healthy: told.is_some(),
            leader: told.as_ref().is_some_and(|told| told.is_leader),
            version: told.as_ref().map(|told| told.version.clone()).unwrap_or_default(),
            size_bytes: told.map_or(0, |told| told.database_bytes),
        }
    };
    etcd.members().await.into_iter().map(member).collect()
}
