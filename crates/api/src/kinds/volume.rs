//! A **volume**: a disk that lives on one worker, is attached to one VM that writes or to many that only read, and is
//! there until it is deleted itself. A VM's own disks are volumes too, owned by it and deleted with it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Field, Kind, SpecRules};
use crate::name::Name;
use crate::object::ObjectRef;
use crate::reader::Reader;
use crate::uid::{Uid, WorkerId};
use crate::units::{ByteSize, Span};

/// The largest volume.
pub const SIZE_MAX: ByteSize = ByteSize::from_bytes(64 << 40);
/// The least size of a volume that begins blank: less does not hold a file system.
pub const BLANK_SIZE_MIN: ByteSize = ByteSize::from_mib(1);

/// How many copies of a volume are kept when nobody says.
pub const COPIES_KEEP: u64 = 7;
/// The most copies of a volume that are kept.
pub const COPIES_KEEP_MAX: u64 = 64;
/// The shortest time between two copies of a volume.
pub const COPIES_EVERY_MIN: Span = Span::from_secs(60);
/// The longest time between two copies of a volume.
pub const COPIES_EVERY_MAX: Span = Span::from_secs(366 * 24 * 60 * 60);

/// What is asked of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Spec {
    /// Its size, which may grow; that of its source when left out. A blank one needs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<ByteSize>,
    /// The image that it is cloned from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<Name>,
    /// The version of the image; the current one when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_version: Option<String>,
    /// The snapshot that it is cloned from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Name>,
    /// What is on a blank one at first.
    pub filesystem: Filesystem,
    /// The worker that it lives on; that of the first VM that it is attached to when left out. Changed, it moves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker: Option<Name>,
    /// The copies of it that are kept on another worker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copies: Option<Copies>,
    /// Whether it cannot be deleted.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub protected: bool,
}

/// Copies of a volume: snapshots that it takes and owns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copies {
    /// The worker that they are kept on.
    pub to: Name,
    /// How often one is taken.
    pub every: Span,
    /// How many are kept.
    pub keep: u64,
}

/// What is on a blank volume at first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Filesystem {
    /// An empty ext4.
    #[default]
    Ext4,
    /// Nothing but zeros.
    None,
}

/// Where the volume lives, and who has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Choice {
    /// The worker that holds it, once one was chosen.
    pub worker: Option<WorkerId>,
    /// The one other worker that has something of it: where it is going, or where it came from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub elsewhere: Option<WorkerId>,
    /// The VMs that it is given to: one that writes, or any number that only read. A VM may name a volume, but starts
    /// with it only when it stands here. An owned volume is its owner's and has none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub holders: Vec<Holder>,
    /// The newest copy that was begun.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copied: Option<Copied>,
}

/// A copy that was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copied {
    /// Its number: it is called `<volume>-copy-<number>`.
    pub number: u64,
    /// When that was.
    pub at: Timestamp,
}

/// A VM that a volume is given to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The VM.
    pub vm: ObjectRef,
    /// Its uid: a new VM of the same name is another one.
    pub uid: Uid,
    /// Whether it only reads.
    pub read_only: bool,
}

impl SpecRules for Spec {
    const ABOUT: &'static str = "a disk on one worker that outlives the VMs it is attached to";

    const FIELDS: &'static [Field] = &[
        (
            "size",
            "its size, at most 64TiB, which may grow; that of its source when left out, a blank one needs it",
        ),
        ("image", "the image that it is cloned from; blank without image and snapshot; fixed for life"),
        ("image_version", "the version of the image; the current one when left out; fixed for life"),
        ("snapshot", "the snapshot that it is cloned from; fixed for life"),
        ("filesystem", "what is on a blank one at first: ext4 or none; fixed for life"),
        (
            "worker",
            "the worker that it lives on; that of its first VM when left out; it moves when this changes",
        ),
        ("copies", "the copies that are kept on another worker, each a snapshot"),
        ("copies.to", "the worker that they are kept on"),
        ("copies.every", "how often one is taken, such as 1h; at least 1m, at most 366d"),
        ("copies.keep", "how many are kept, at most 64; 0 lets all go; 7 when left out"),
        ("protected", "whether it cannot be deleted"),
    ];

    fn shortest() -> Option<Value> {
        Some(json!({ "size": "10GiB" }))
    }

    fn read(fields: &mut Reader<'_>) -> Option<Spec> {
        let spec = Spec {
            size: fields.optional("size"),
            image: fields.optional("image"),
            image_version: fields.optional("image_version"),
            snapshot: fields.optional("snapshot"),
            filesystem: fields.or("filesystem", Filesystem::default()),
            worker: fields.optional("worker"),
            copies: fields.object("copies", read_copies),
            protected: fields.or("protected", false),
        };
        spec.check(fields);
        Some(spec)
    }

    fn references(&self) -> Vec<ObjectRef> {
        let image = self.image.iter().map(|image| ObjectRef::new(Kind::Image, image.clone()));
        let snapshot = self.snapshot.iter().map(|snapshot| ObjectRef::new(Kind::Snapshot, snapshot.clone()));
        let worker = self.worker.iter().map(|worker| ObjectRef::new(Kind::Worker, worker.clone()));
        let copies = self.copies.iter().map(|copies| ObjectRef::new(Kind::Worker, copies.to.clone()));
        image.chain(snapshot).chain(worker).chain(copies).collect()
    }

    fn frozen_field(&self, next: &Spec) -> Option<(&'static str, &'static str)> {
        let made = "it is fixed when a volume is made; make another one";
        let frozen = [
            ("image", self.image != next.image, made),
            ("image_version", self.image_version != next.image_version, made),
            ("snapshot", self.snapshot != next.snapshot, made),
            ("filesystem", self.filesystem != next.filesystem, made),
            (
                "size",
                self.size.is_some_and(|size| next.size.is_none_or(|next| next < size)),
                "a volume cannot shrink",
            ),
        ];
        frozen.into_iter().find(|(_, changed, _)| *changed).map(|(field, _, reason)| (field, reason))
    }
}

fn read_copies(fields: &mut Reader<'_>) -> Option<Copies> {
    let to = fields.required("to");
    let every: Option<Span> = fields.required("every");
    let keep = fields.number("keep", 0..=COPIES_KEEP_MAX, COPIES_KEEP);
    if every.is_some_and(|every| every < COPIES_EVERY_MIN || every > COPIES_EVERY_MAX) {
        fields.problem(
            "every",
            format!("must be at least {COPIES_EVERY_MIN} and at most {COPIES_EVERY_MAX}"),
            None,
        );
    }
    Some(Copies { to: to?, every: every?, keep })
}

impl Spec {
    /// Whether it begins with nothing that is there already.
    #[must_use]
    pub const fn is_blank(&self) -> bool {
        self.image.is_none() && self.snapshot.is_none()
    }

    fn check(&self, fields: &mut Reader<'_>) {
        let size_min = if self.is_blank() { BLANK_SIZE_MIN } else { ByteSize::from_bytes(1) };
        if self.size.is_some_and(|size| size < size_min || size > SIZE_MAX) {
            fields.problem("size", format!("must be at least {size_min} and at most {SIZE_MAX}"), None);
        }
        if self.is_blank() && self.size.is_none() {
            fields.problem(
                "size",
                "is missing",
                Some("such as 10GiB; or name an image or a snapshot".to_owned()),
            );
        }
        if self.image.is_some() && self.snapshot.is_some() {
            fields.problem("snapshot", "a volume is cloned from an image or a snapshot, not from both", None);
        }
        if self.image_version.is_some() && self.image.is_none() {
            fields.problem("image_version", "names the version of no image", None);
        }
        if self.filesystem == Filesystem::None && !self.is_blank() {
            fields.problem("filesystem", "is that of the source", None);
        }
    }
}
