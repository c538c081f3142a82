//! The cluster at a glance.

use std::sync::{Arc, PoisonError};

use axum::extract::State;
use axum::http::StatusCode;
use lightbyte_api::Key;
use lightbyte_api::Kind;
use lightbyte_api::records::Record;
use lightbyte_api::wire::{ClusterStatus, Defragment, Defragmented};
use lightbyte_plan::care::Standing;
use lightbyte_plan::{View, room, status, why};

use crate::api::answer::{Answer, Answered};
use crate::api::input::{Input, Parameters};
use crate::problem::Failure;
use crate::{Server, care, clock};

/// How many unreadable keys are named; a newer version may have written thousands.
const UNREADABLE_NAMED_MAX: usize = 100;

/// `GET /v1/status`
pub(crate) async fn cluster(
    State(server): State<Arc<Server>>,
    parameters: Parameters,
) -> Answered<ClusterStatus> {
    parameters.only(&["min_revision"])?;
    let view = server.view_for(&parameters).await?;
    let standing = match &server.etcd {
        Some(etcd) => care::look(&server, etcd).await,
        None => Standing::default(),
    };
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
        etcd: standing.members.iter().map(care::told).collect(),
        etcd_worries: standing.worries(),
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

/// `POST /v1/etcd/defragment`
pub(crate) async fn defragment(
    State(server): State<Arc<Server>>,
    parameters: Parameters,
    Input(Defragment { endpoint }): Input<Defragment>,
) -> Answered<Defragmented> {
    parameters.only(&[])?;
    let Some(etcd) = &server.etcd else { return Err(no_member(&endpoint)) };
    let standing = care::look(&server, etcd).await;
    let Some(member) = standing.members.get(&endpoint) else { return Err(no_member(&endpoint)) };
    let before = member.as_ref().ok_or_else(|| away(&endpoint))?;
    if let Some(other) = standing.away() {
        let title = format!("etcd {other} does not answer: with another busy nothing might be written");
        return Err(
            Failure::new(StatusCode::CONFLICT, title).hint("`lightbyte etcd status` shows the members")
        );
    }
    etcd.defragment(&endpoint).await?;
    let after = care::look(&server, etcd).await.members.remove(&endpoint).flatten();
    let after = after.ok_or_else(|| away(&endpoint))?;
    let revision = server.follower.view().map_or(0, |view| view.revision());
    Ok(Answer::at(revision, Defragmented { before_bytes: before.file_bytes, after_bytes: after.file_bytes }))
}

fn no_member(endpoint: &str) -> Failure {
    let title = format!("no member of etcd is at `{endpoint}`, as far as this server was told");
    Failure::new(StatusCode::NOT_FOUND, title).hint("`lightbyte etcd status` lists them")
}

fn away(endpoint: &str) -> Failure {
    Failure::unavailable(
        format!("etcd {endpoint} does not answer"),
        "`lightbyte etcd status` shows the members",
    )
}
