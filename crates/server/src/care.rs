//! Cares for the store: looks at etcd's members from time to time, and does what [`lightbyte_plan::care`] says.

use std::sync::Arc;
use std::time::Duration;

use lightbyte_api::Key;
use lightbyte_api::records::Record;
use lightbyte_api::wire::EtcdMember;
use lightbyte_plan::care::{Care, Leads, Member, Standing, Step};
use lightbyte_store::StoreError;
use lightbyte_store::etcd::{Alarm, EtcdStore};
use tokio::time::{Instant, sleep};

use crate::{Server, chain, clock};

/// From one look at the members to the next.
const LOOK_PERIOD: Duration = Duration::from_secs(30);

/// Asks the members for their state.
pub(crate) async fn look(server: &Server, etcd: &EtcdStore) -> Standing {
    let (members, alarms) = tokio::join!(etcd.members(), etcd.alarms());
    // Without most members nobody tells of alarms, and nothing could be done about them.
    let alarms = alarms.unwrap_or_default();
    let known = members.into_iter().map(|(endpoint, status)| {
        let member = status.ok().map(|status| {
            let has = |alarm: Alarm| alarms.contains(&(status.id, alarm));
            Member {
                id: status.id,
                leads: status.is_leader,
                file_bytes: status.database_bytes,
                used_bytes: status.used_bytes,
                quota_bytes: status.quota_bytes,
                revision: status.revision,
                is_full: has(Alarm::Space),
                is_corrupt: has(Alarm::Corrupt),
                version: status.version,
            }
        });
        (endpoint, member)
    });
    let leads = match server.follower.view().as_ref().and_then(|view| view.record(&Key::Leader)) {
        Some(Record::Leader(leader)) if leader.server == server.name => Leads::This,
        Some(_) => Leads::Another,
        None => Leads::Nobody,
    };
    Standing { members: known.collect(), leads }
}

/// A member as people are told of it.
pub(crate) fn told((endpoint, member): (&String, &Option<Member>)) -> EtcdMember {
    let healthy = member.is_some();
    let Member { version, leads, file_bytes, used_bytes, quota_bytes, .. } =
        member.clone().unwrap_or_default();
    let endpoint = endpoint.clone();
    EtcdMember { endpoint, healthy, leader: leads, version, size_bytes: file_bytes, used_bytes, quota_bytes }
}

/// Cares until it is dropped.
pub(crate) async fn keep(server: Arc<Server>, etcd: Arc<EtcdStore>) {
    let mut care = Care::default();
    loop {
        let standing = look(&server, &etcd).await;
        let now = clock::now();
        care.saw(&standing, now);
        let Some(step) = care.next_step(&standing, now) else {
            sleep(LOOK_PERIOD).await;
            continue;
        };
        care.begun(&step, now);
        let began = Instant::now();
        match act(&etcd, &step).await {
            Ok(()) => tracing::info!(?step, millis = began.elapsed().as_millis(), "cared for the store"),
            Err(error) => tracing::warn!(?step, error = chain(&error), "could not care for the store"),
        }
    }
}

async fn act(etcd: &EtcdStore, step: &Step) -> Result<(), StoreError> {
    match step {
        Step::Compact { revision } => etcd.compact(*revision).await,
        Step::Defragment { endpoint } => etcd.defragment(endpoint).await,
        Step::LetWrite { member } => etcd.let_write(*member).await,
    }
}
