//! A **scale group**: keeps a number of VMs of one template alive and healthy, and rolls them forward when the template changes.

pub mod autoscale;

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use self::autoscale::{Autoscale, Percent, Rate, Scaling, Schedule};
use super::{Field, SpecRules, vm};
use crate::manifest::read_labels;
use crate::name::Name;
use crate::object::ObjectRef;
use crate::reader::Reader;
use crate::uid::{Uid, WorkerId};
use crate::units::Span;

/// How many members a group has when nothing is said.
const REPLICAS_DEFAULT: u64 = 1;
/// The most members of a group.
pub const REPLICAS_MAX: u64 = 1_000;
/// How many versions a group remembers besides those that are in use.
pub const VERSIONS_KEPT: usize = 10;
/// The longest name of a disk that a member has of its own: with the longest name of a group and eight digits its volume's
/// name is a DNS label.
pub const DISK_NAME_LENGTH_MAX: usize = 12;
/// The shortest time that a member is given to become available.
pub const WITHIN_MIN: Span = Span::from_secs(10);
/// The longest time of a policy.
pub const SPAN_MAX: Span = Span::from_secs(24 * 60 * 60);

/// What is asked of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// How many members it has; see [`Spec::fixed`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<u64>,
    /// The policy that says how many members it has, in place of `replicas`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscale: Option<Autoscale>,
    /// What its members are made of.
    pub template: Template,
    /// How members are replaced when the template changes, or their worker is drained.
    #[serde(default)]
    pub update: Update,
    /// When a member that does not work is replaced.
    #[serde(default)]
    pub healing: Healing,
}

/// What the members of a group are made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Template {
    /// The labels of each member.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// What is asked of each member.
    #[serde(flatten)]
    pub vm: vm::Spec,
}

impl Template {
    /// The disks that outlive members, if it has any: then each member has a slot, a number from 1, and the volumes of it.
    pub fn kept_disks(&self) -> impl Iterator<Item = &vm::Disk> {
        self.vm.disks.iter().filter(|disk| disk.keep)
    }

    /// Whether members have volumes that outlive them. One can then take the place of another, and not stand beside it.
    #[must_use]
    pub fn keeps_volumes(&self) -> bool {
        self.kept_disks().next().is_some()
    }
}

/// How members are replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Update {
    /// How many more than `replicas` may live meanwhile.
    pub max_surge: u64,
    /// How many of `replicas` may be missing meanwhile.
    pub max_unavailable: u64,
    /// How long a member must have been ready until it counts as available.
    pub ready_for: Span,
    /// How long a member of a new version may take to become available, before the update has failed.
    pub within: Span,
    /// How many members of a new version there are until somebody promotes it; all of them without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canary: Option<Share>,
    /// Whether a new current version of the image updates the group.
    pub follow_image: bool,
    /// Whether a failed update goes back to the last version that worked.
    pub roll_back: bool,
}

/// A part of a group: a number of members, or so many of a hundred.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "ShareText", into = "ShareText")]
pub enum Share {
    /// So many members.
    Count(u64),
    /// So many of a hundred, at least one.
    Percent(u64),
}

/// A [`Share`] as people write it: `2`, or `10%`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum ShareText {
    Count(u64),
    Percent(String),
}

impl TryFrom<ShareText> for Share {
    type Error = String;
    fn try_from(text: ShareText) -> Result<Share, String> {
        match text {
            ShareText::Count(count) => Ok(Share::Count(count)),
            ShareText::Percent(text) => match Percent::try_from(text.clone()) {
                Ok(Percent(percent)) => Ok(Share::Percent(percent)),
                Err(_) => Err(format!("`{text}` is not a number such as 2, or 1% to 100%")),
            },
        }
    }
}

impl From<Share> for ShareText {
    fn from(share: Share) -> ShareText {
        match share {
            Share::Count(count) => ShareText::Count(count),
            Share::Percent(percent) => ShareText::Percent(Percent(percent).into()),
        }
    }
}

impl Share {
    /// How many of `whole` that are, rounded up.
    #[must_use]
    pub fn of(self, whole: u64) -> u64 {
        match self {
            Share::Count(count) => count.min(whole),
            Share::Percent(percent) => whole.saturating_mul(percent).div_ceil(100),
        }
    }
}

/// What people ask of a group's updates while they are on their way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rollout {
    /// No more members of the new version are made, and none of the old is let go for it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    /// The version whose canaries were found good.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub promoted: Option<u64>,
    /// The version that is not wanted though its template is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub undone: Option<Undone>,
}

/// A version that somebody has undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Undone {
    /// Which.
    pub version: u64,
    /// The version that is wanted in its place, until another template or image is asked for.
    pub to: u64,
}

impl Rollout {
    /// Whether nothing is asked.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Rollout::default()
    }
}

/// When a member that does not work is replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Healing {
    /// How long a member may be unready.
    pub after: Span,
}

impl Default for Update {
    fn default() -> Update {
        Update::default_for(false)
    }
}

impl Default for Healing {
    fn default() -> Healing {
        Healing { after: Span::from_secs(180) }
    }
}

impl Update {
    /// What holds when nothing is said. Who has the volumes of another has to wait until that one is gone.
    const fn default_for(keeps_volumes: bool) -> Update {
        Update {
            max_surge: if keeps_volumes { 0 } else { 1 },
            max_unavailable: if keeps_volumes { 1 } else { 0 },
            ready_for: Span::from_secs(0),
            within: Span::from_secs(300),
            canary: None,
            follow_image: false,
            roll_back: true,
        }
    }
}

impl Spec {
    /// How many members are asked for; `None` when a policy says how many.
    #[must_use]
    pub fn fixed(&self) -> Option<u64> {
        self.autoscale.is_none().then(|| self.replicas.unwrap_or(REPLICAS_DEFAULT))
    }
}

/// What the group's planner chose. Its members are the VMs that it owns.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Choice {
    /// How many members were ever made: where the names of the next ones begin.
    pub members_made: u64,
    /// The versions of the template, oldest first: those that members are made of, and some before them.
    pub versions: Vec<Version>,
    /// The version that members are to be of; none before the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<u64>,
    /// The last version that the whole group was available with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stable: Option<u64>,
    /// The version that failed and is not tried again until something else is asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rejected: Option<Rejected>,
    /// Members that are being let go.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub retiring: Vec<Retiring>,
    /// Workers on which a member failed lately: others are better for the next one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub failed_on: Vec<FailedOn>,
    /// How many failed members may still be replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healing: Option<HealingBucket>,
    /// How many members there are to be, where a policy says so. Nobody asks for it: `apply` leaves it alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scaling: Option<Scaling>,
}

/// A version: what members are made of, fixed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// Its number, from 1.
    pub number: u64,
    /// The template.
    pub template: Template,
    /// The version of the image.
    pub image_version: String,
    /// When it was first asked for, on the leader's clock.
    pub made_at: Timestamp,
    /// When the whole group was last found available with it for the first time in a row: what comes back to it needs no
    /// canaries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proven_at: Option<Timestamp>,
}

/// A version that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    /// Its number.
    pub version: u64,
    /// The member that failed.
    pub member: Name,
    /// In words.
    pub because: String,
}

/// A member that is being let go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retiring {
    /// The member.
    pub uid: Uid,
    /// Why.
    pub because: RetiredFor,
}

/// Why a member is let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RetiredFor {
    /// There are more than were asked for.
    Scale,
    /// It is of another version.
    Update,
    /// Its worker is being drained.
    Drain,
    /// It was unready for too long.
    Health,
    /// Its worker is lost.
    WorkerLoss,
    /// A VM with a higher priority needs its room.
    Preemption,
    /// Somebody asked for another in its place.
    Request,
    /// A volume that it has is to move to another worker, and waits for nothing else.
    Move,
}

/// A worker on which a member failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedOn {
    /// Which.
    pub worker: WorkerId,
    /// When the last one was let go, on the leader's clock.
    pub at: Timestamp,
    /// How many did, each not long after the one before.
    pub times: u64,
}

impl FailedOn {
    /// Whether that is too often for chance: one may end on any worker.
    #[must_use]
    pub const fn is_often(&self) -> bool {
        self.times > 1
    }
}

/// A token bucket: how many failed members may be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealingBucket {
    /// How many may be, at `at`.
    pub left: u64,
    /// When that was counted, on the leader's clock.
    pub at: Timestamp,
    /// How many were replaced since all members were last available.
    pub streak: u64,
}

impl SpecRules for Spec {
    const ABOUT: &'static str = "a number of VMs of one template, kept alive and rolled forward";

    const FIELDS: &'static [Field] = &[
        ("replicas", "how many members it has, at most 1000; 1 when left out, unless there is `autoscale`"),
        ("autoscale", "lets the group say itself how many members it has, in place of `replicas`"),
        ("autoscale.min", "the fewest members, 1 to 1000; 1 when left out"),
        ("autoscale.max", "the most members, at least `min`"),
        ("autoscale.cpu", "how busy the members' CPUs are to be on average, 10% to 90%, as their agents measure"),
        (
            "autoscale.requests_per_second",
            "how many requests of load balancers each member is to answer in a second on average, 1 to 1000000",
        ),
        (
            "autoscale.concurrency",
            "how many requests of load balancers each member is to have in flight on average, 1 to 1000000",
        ),
        ("autoscale.scale_out", "how members are added when the load grows"),
        (
            "autoscale.scale_out.window",
            "for how long the load must have asked for it, up to 1h; 30s when left out",
        ),
        (
            "autoscale.scale_out.at_most",
            "the largest step, such as 4, or 50% of the members; 100% when left out",
        ),
        ("autoscale.scale_out.every", "how long after a step the next one may come, 15s to 24h; 30s when left out"),
        ("autoscale.scale_in", "how members are let go when the load falls"),
        (
            "autoscale.scale_in.window",
            "for how long the load must have allowed it, up to 1h; 5m when left out",
        ),
        ("autoscale.scale_in.at_most", "the largest step; 50% when left out"),
        ("autoscale.scale_in.every", "how long after a step the next one may come, 15s to 24h; 1m when left out"),
        ("autoscale.schedules", "times when there are more members at least"),
        (
            "autoscale.schedules[].cron",
            "when it begins: minute, hour, day of month, month, day of week, such as 0 8 * * mon-fri",
        ),
        ("autoscale.schedules[].lasts", "how long it lasts, 1m to 31 days, such as 10h"),
        ("autoscale.schedules[].time_zone", "the time zone, such as Europe/Amsterdam; UTC when left out"),
        ("autoscale.schedules[].min", "the fewest members meanwhile, at most `autoscale.max`"),
        ("template", "what its members are made of: `labels`, and the fields of a VM, see `lightbyte explain vm`"),
        ("update", "how members are replaced when the template changes, or their worker is drained"),
        (
            "update.max_surge",
            "how many more than `replicas` may live meanwhile; 1 when left out, 0 where a disk is kept",
        ),
        (
            "update.max_unavailable",
            "how many of `replicas` may be missing meanwhile; 0 when left out, 1 where a disk is kept",
        ),
        (
            "update.ready_for",
            "how long a member must have been ready until it counts as available; 0s when left out",
        ),
        (
            "update.within",
            "how long a member of a new version may take to become available, 10s to 24h; 5m when left out",
        ),
        (
            "update.canary",
            "how many members of a new version there are, such as 1 or 10%, until it is promoted; all when left out",
        ),
        (
            "update.follow_image",
            "whether a new current version of the image updates the group; not when left out",
        ),
        (
            "update.roll_back",
            "whether an update that failed goes back to the last version that worked, as when left out; else it stands still",
        ),
        ("healing", "when a member that does not work is replaced"),
        (
            "healing.after",
            "how long a member may be unready before it is replaced, 10s to 24h; 3m when left out",
        ),
    ];

    fn shortest() -> Option<Value> {
        Some(json!({ "template": { "image": "demo" } }))
    }

    fn read(fields: &mut Reader<'_>) -> Option<Spec> {
        let replicas = fields.number("replicas", 0..=REPLICAS_MAX, REPLICAS_DEFAULT);
        let is_auto = fields.has("autoscale");
        if is_auto && fields.has("replicas") {
            let hint = "leave it out: `autoscale` says how many members there are".to_owned();
            fields.problem("replicas", "cannot be given beside `autoscale`", Some(hint));
        }
        let autoscale = fields.object("autoscale", autoscale::read);
        if !fields.has("template") {
            let hint = "such as template: {image: demo}".to_owned();
            fields.problem("template", "is missing", Some(hint));
        }
        let template = fields.object("template", read_template);
        let keeps_volumes = template.as_ref().is_some_and(Template::keeps_volumes);
        let update = fields.object("update", |fields| read_update(fields, keeps_volumes));
        let update = update.unwrap_or_else(|| Update::default_for(keeps_volumes));
        let healing = fields.object("healing", read_healing).unwrap_or_default();
        let replicas = (!is_auto).then_some(replicas);
        if is_auto && autoscale.is_none() {
            return None;
        }
        Some(Spec { replicas, autoscale, template: template?, update, healing })
    }

    fn references(&self) -> Vec<ObjectRef> {
        self.template.vm.references()
    }

    fn frozen_field(&self, next: &Spec) -> Option<(&'static str, &'static str)> {
        let kept = |spec: &Spec| spec.template.kept_disks().map(|disk| disk.name.clone()).collect::<BTreeSet<_>>();
        let reason = "which disks are kept is fixed when a group is made, since its members would share no slots; make another group";
        (kept(self) != kept(next)).then_some(("template.disks", reason))
    }
}

fn read_template(fields: &mut Reader<'_>) -> Option<Template> {
    let labels = read_labels(fields, "labels");
    let vm = vm::Spec::read_template(fields)?;
    if !vm.running {
        fields.problem("running", "must be true: a group keeps its members running", None);
    }
    for (index, disk) in vm.disks.iter().enumerate() {
        if disk.volume.is_none() && disk.name.as_str().len() > DISK_NAME_LENGTH_MAX {
            let rule = format!("has more than {DISK_NAME_LENGTH_MAX} characters");
            let hint = "the volumes of members are called <group>-<number>-<name>".to_owned();
            fields.problem(&format!("disks[{index}].name"), rule, Some(hint));
        }
        if disk.volume.is_some() && !disk.read_only {
            let path = format!("disks[{index}].volume");
            let hint = "give each member a disk of its own: {name, size}; or attach it read-only".to_owned();
            fields.problem(&path, "cannot be attached to all members, since they write to it", Some(hint));
        }
    }
    if let Some(index) = vm.nics.iter().position(|nic| nic.address.is_some()) {
        let path = format!("nics[{index}].address");
        fields.problem(&path, "cannot be that of all members", Some("leave it out".to_owned()));
    }
    Some(Template { labels, vm })
}

fn read_update(fields: &mut Reader<'_>, keeps_volumes: bool) -> Option<Update> {
    let default = Update::default_for(keeps_volumes);
    let update = Update {
        max_surge: fields.number("max_surge", 0..=REPLICAS_MAX, default.max_surge),
        max_unavailable: fields.number("max_unavailable", 0..=REPLICAS_MAX, default.max_unavailable),
        ready_for: fields.span("ready_for", Span::from_secs(0)..=SPAN_MAX, default.ready_for),
        within: fields.span("within", WITHIN_MIN..=SPAN_MAX, default.within),
        canary: fields.optional("canary"),
        follow_image: fields.or("follow_image", default.follow_image),
        roll_back: fields.or("roll_back", default.roll_back),
    };
    if update.max_surge > 0 && keeps_volumes {
        let hint = "leave it out; members with `disks[].keep` are replaced one after the other".to_owned();
        fields.problem("max_surge", "must be 0: no two members can have the same volumes", Some(hint));
    }
    if update.max_surge == 0 && update.max_unavailable == 0 {
        let hint = "allow one more or one less: max_surge: 1, or max_unavailable: 1".to_owned();
        fields.problem("max_surge", "and `max_unavailable` cannot both be 0: nothing could be replaced", Some(hint));
    }
    if update.canary == Some(Share::Count(0)) {
        fields.problem("canary", "must be at least 1", Some("leave it out to have none".to_owned()));
    }
    if update.within <= update.ready_for {
        fields.problem("within", "must be longer than `ready_for`", None);
    }
    Some(update)
}

fn read_healing(fields: &mut Reader<'_>) -> Option<Healing> {
    Some(Healing { after: fields.span("after", WITHIN_MIN..=SPAN_MAX, Healing::default().after) })
}

impl Choice {
    /// The version with this number.
    #[must_use]
    pub fn version(&self, number: u64) -> Option<&Version> {
        self.versions.iter().find(|version| version.number == number)
    }

    /// Whether the member is being let go.
    #[must_use]
    pub fn lets_go(&self, member: Uid) -> bool {
        self.retiring.iter().any(|retiring| retiring.uid == member)
    }
}
