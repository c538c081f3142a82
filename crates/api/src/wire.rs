//! What goes over the HTTP API besides objects themselves: requests and answers that servers, workers and the CLI share.
//!
//! ```text
//! GET    /v1/objects/KIND?label=k=v        -> List                GET    /v1/objects/KIND/NAME      -> Object
//! POST   /v1/apply          Apply          -> Applied             DELETE /v1/objects/KIND/NAME      -> Changed
//! POST   /v1/objects/KIND/NAME/{start,stop,restart} -> Changed    GET    /v1/objects/KIND/NAME/why  -> Explanation
//! POST   /v1/plan           Foresee        -> Forecast             GET    /v1/changes?from=&to=      -> PastChanges
//! GET    /v1/stuck          -> List of Stuck                      GET    /v1/status                 -> ClusterStatus
//! GET    /v1/usage          -> ClusterUsage
//! GET    /v1/watch?kind=&from=  -> lines of WatchLine             GET    /v1/openapi.json
//! GET    /v1/zone?after=    -> lines of ZoneLine
//! POST   /v1/workers/UID/register   ObservedWorker -> ()          POST   /v1/workers/UID/heartbeat  Heartbeat -> HeartbeatAnswer
//! POST   /v1/workers/UID/report     Report  -> Reply              GET    /v1/workers/UID/stream?cursor= -> lines of Delivery
//! ```

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::name::Name;
use crate::object::{Object, ObjectRef};
use crate::uid::{Uid, VmId};
use crate::zone::Zone;

/// A list of things.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct List<T> {
    /// They.
    pub items: Vec<T>,
}

/// Asks for manifests to be made true.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Apply {
    /// The manifests, as parsed from YAML or JSON and not checked yet.
    pub documents: Vec<Value>,
    /// Objects that exist already are an error.
    #[serde(default)]
    pub create_only: bool,
    /// Only tell what would change.
    #[serde(default)]
    pub dry_run: bool,
}

/// What an apply did, document by document. All documents are checked before the first is written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Applied {
    /// One for each document, in their order.
    pub changes: Vec<Changed>,
}

/// What became of one object.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Changed {
    /// The object.
    pub object: ObjectRef,
    /// What was done.
    pub action: ChangeAction,
    /// The generation to wait for.
    pub generation: u64,
    /// The object's uid.
    pub uid: Uid,
    /// The fields that differ, with their values before and after: filled for a dry run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<Difference>,
}

/// What was done to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangeAction {
    /// It is new.
    Created,
    /// It was changed.
    Changed,
    /// It was so already.
    Unchanged,
    /// Its end was asked for.
    Deleting,
}

/// A field that differs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// Where, such as `spec.memory`.
    pub path: String,
    /// What is there; null when it is not.
    pub before: Value,
    /// What would be there; null when it would not.
    pub after: Value,
}

/// What differs in what people ask between two points of the history.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PastChanges {
    /// The revision of the first.
    pub from: u64,
    /// The revision of the second.
    pub to: u64,
    /// The objects of which something else is asked.
    pub changes: Vec<PastChange>,
    /// How many more there are, which are not in it.
    #[serde(default)]
    pub untold: u64,
}

/// What became of what is asked of one object.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PastChange {
    /// The object.
    pub object: ObjectRef,
    /// What.
    pub action: PastAction,
    /// The fields that differ; none of an object that is gone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<Difference>,
}

/// What became of an object between two points of the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PastAction {
    /// It was made.
    Made,
    /// What is asked of it was changed.
    Changed,
    /// It ended, and another was made under its name.
    MadeAnew,
    /// Its end was asked for.
    Deleting,
    /// It is gone.
    Gone,
}

/// What differs between two versions of a group's template.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VersionChanges {
    /// The number of the first.
    pub from: u64,
    /// The number of the second.
    pub to: u64,
    /// The fields that differ, with the version of the image.
    pub differences: Vec<Difference>,
}

/// Asks what changes would do. Nothing is written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Foresee {
    /// The changes, in their order.
    pub changes: Vec<Supposed>,
}

/// A change that is supposed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Supposed {
    /// A manifest is made true.
    Apply(Value),
    /// The end of an object is asked for.
    Delete(ObjectRef),
    /// A worker goes away and does not come back.
    Lose(ObjectRef),
    /// The update of a group is steered.
    Rollout {
        /// The group.
        group: ObjectRef,
        /// How.
        step: RolloutStep,
    },
}

/// What people ask of a group's update while it is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RolloutStep {
    /// It stops where it is.
    Pause,
    /// It goes on.
    Resume,
    /// Its canaries are good: all members follow.
    Promote,
    /// It goes back to this version, or to the last one that worked.
    Undo {
        /// Its number.
        to: Option<u64>,
    },
}

impl RolloutStep {
    /// The word that people use.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            RolloutStep::Pause => "pause",
            RolloutStep::Resume => "resume",
            RolloutStep::Promote => "promote",
            RolloutStep::Undo { .. } => "undo",
        }
    }
}

/// What the loss of one worker would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// The worker.
    pub worker: Name,
    /// How many members of groups are on it, which their groups would make again elsewhere.
    pub members: u64,
    /// How many of those would have no place.
    pub homeless: u64,
    /// Why the first of these would have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub because: Option<String>,
    /// How many other VMs are on it, which would wait for its return.
    pub alone: u64,
}

/// One line of a watch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WatchLine {
    /// The object is so now.
    Object {
        /// The revision of the view that shows it.
        revision: u64,
        /// The object.
        object: Box<Object>,
    },
    /// The object is gone.
    Gone {
        /// The revision of the view that does not show it.
        revision: u64,
        /// Which.
        object: ObjectRef,
    },
    /// Everything up to this revision was told.
    Progress {
        /// The revision.
        revision: u64,
    },
}

/// One line of what resolvers follow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ZoneLine {
    /// Every name, as of the revision in it. It holds until the next such line.
    Zone(Box<Zone>),
    /// The last zone was everything that there was to know.
    Confirmed {
        /// Its revision.
        revision: u64,
        /// When that was so, in milliseconds since the server took up this request. No clock is shared, but the request was
        /// sent before: whoever adds this to the moment of sending has a moment that is not too late.
        at_ms: u64,
    },
    /// The server can confirm nothing at the moment, and lives.
    Unconfirmed,
}

/// A VM of which a worker has nothing but what it said on its console.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndedVm {
    /// Which.
    pub vm: VmId,
    /// When nothing else was left of it.
    pub at: Timestamp,
}

/// Asks a worker what runs there uses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measure {
    /// Of which VMs; of all that it has when there are none.
    #[serde(default)]
    pub vms: Vec<VmId>,
    /// Of which proxies of load balancers also what they carry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub proxies: Vec<VmId>,
}

/// What a worker and its guests have used by now. Counters begin with the kernel that counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    /// The host itself.
    pub host: Usage,
    /// Those guests whose agent answered in time.
    pub vms: Vec<MeasuredVm>,
}

/// What a guest has used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeasuredVm {
    /// Which.
    pub vm: VmId,
    /// What; its own word.
    #[serde(flatten)]
    pub usage: Usage,
    /// What its proxy has carried, by backend, if that was asked and it answered; its own word too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carried: Option<BTreeMap<Uid, Carried>>,
}

/// Requests that a proxy has given to a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carried {
    /// That have ended, since the proxy knows the backend.
    pub requests: u64,
    /// That are under way.
    pub in_flight: u64,
}

/// What the cluster has used by now, measured when it was asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterUsage {
    /// The workers that are alive, and whose agents listen.
    pub workers: Vec<WorkerUsage>,
    /// The VMs whose agents answered in time.
    pub vms: Vec<VmUsage>,
}

/// What a host has used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerUsage {
    /// The worker.
    pub name: Name,
    /// Nothing when its agent did not answer in time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// What a VM has used; its guest's own word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmUsage {
    /// The VM.
    pub name: Name,
    /// Its worker.
    pub worker: Name,
    /// Its group, if it is of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<Name>,
    /// What.
    #[serde(flatten)]
    pub usage: Usage,
    /// Whose proxy it is, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balancer: Option<Name>,
    /// What it has carried as a proxy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub carried: Vec<CarriedTo>,
}

/// Requests that a proxy has given to a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarriedTo {
    /// The VM.
    pub vm: Name,
    /// Its group, if it is of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<Name>,
    /// How many.
    #[serde(flatten)]
    pub carried: Carried,
}

/// What a machine has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// Milliseconds in which something ran, over all CPUs together.
    pub cpu_busy_millis: u64,
    /// The same in which nothing did.
    pub cpu_idle_millis: u64,
    /// Bytes of memory that its kernel manages.
    pub memory_total_bytes: u64,
    /// Bytes that could be given to programs without swapping.
    pub memory_available_bytes: u64,
}

/// Keeps a worker alive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// The boot of the worker's kernel.
    pub boot_id: String,
}

/// Acknowledges a heartbeat: sent only after the lease was renewed, and a later linearizable read showed the same life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatAnswer {
    /// How long the lease lives without another heartbeat, in milliseconds.
    pub ttl_millis: u64,
}

/// The cluster at a glance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// The cluster's identity.
    pub cluster: Option<Uid>,
    /// The server that answers.
    pub server: Name,
    /// Its version.
    pub version: String,
    /// The revision of its view.
    pub revision: u64,
    /// How old its view may be, in milliseconds: since it last knew that nothing newer was there.
    pub view_age_millis: u64,
    /// The leader, if there is one.
    pub leader: Option<Name>,
    /// The members of etcd, as far as they are known.
    pub etcd: Vec<EtcdMember>,
    /// What people are to know of them: that one is away, or full, or soon will be.
    #[serde(default)]
    pub etcd_worries: Vec<String>,
    /// The workers.
    pub workers: Vec<Object>,
    /// What the loss of each worker that has VMs would do; see [`Loss`].
    #[serde(default)]
    pub losses: Vec<Loss>,
    /// How many workers were not looked at for that, because there are too many members of groups.
    #[serde(default)]
    pub losses_untried: u64,
    /// How many things wait longer than is normal.
    pub stuck: u64,
    /// Stored values that this version cannot read.
    pub unreadable: Vec<String>,
}

/// A member of etcd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EtcdMember {
    /// Where its clients connect.
    pub endpoint: String,
    /// Whether it answers.
    pub healthy: bool,
    /// Whether it leads.
    pub leader: bool,
    /// Its version.
    pub version: String,
    /// The size of its database's file in bytes.
    pub size_bytes: u64,
    /// How many of them are in use; the rest is free pages.
    #[serde(default)]
    pub used_bytes: u64,
    /// How large the file may be; members of etcd before 3.6 do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota_bytes: Option<u64>,
}

/// Body of `POST /v1/etcd/defragment`: a member of etcd is to write its file anew, without the pages that are free.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Defragment {
    /// Where its clients connect, as in [`EtcdMember::endpoint`].
    pub endpoint: String,
}

/// Answer to that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Defragmented {
    /// The size of its file before, in bytes.
    pub before_bytes: u64,
    /// And now.
    pub after_bytes: u64,
}
