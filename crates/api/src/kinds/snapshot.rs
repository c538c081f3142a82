//! A **snapshot**: a volume as it was at one moment, beside it on the same worker or, as a copy, on another. It outlives
//! the volume, unless the volume took it by itself.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Field, Kind, SpecRules};
use crate::name::Name;
use crate::object::ObjectRef;
use crate::reader::Reader;
use crate::uid::WorkerId;
use crate::units::ByteSize;

/// What is asked of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// The volume that it is taken of.
    pub volume: Name,
    /// The worker that it is kept on; the volume's when left out. Elsewhere it is a copy that outlives the volume's worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<Name>,
    /// Whether it cannot be deleted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub protected: bool,
}

/// Where the snapshot lives.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Choice {
    /// The worker that holds it: first the volume's.
    pub worker: Option<WorkerId>,
    /// The one other worker that has something of it: where it is going, or where it came from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub elsewhere: Option<WorkerId>,
    /// Its size: the volume's then.
    pub size: ByteSize,
}

impl SpecRules for Spec {
    const ABOUT: &'static str = "a volume as it was at one moment, on the same worker or on another";

    const FIELDS: &'static [Field] = &[
        ("volume", "the volume that it is taken of; fixed for life"),
        ("worker", "the worker that it is kept on; the volume's when left out; it moves when this changes"),
        ("protected", "whether it cannot be deleted"),
    ];

    fn shortest() -> Option<Value> {
        Some(json!({ "volume": "data" }))
    }

    fn read(fields: &mut Reader<'_>) -> Option<Spec> {
        let volume = fields.required("volume");
        let worker = fields.optional("worker");
        let protected = fields.or("protected", false);
        Some(Spec { volume: volume?, worker, protected })
    }

    fn references(&self) -> Vec<ObjectRef> {
        let worker = self.worker.iter().map(|worker| ObjectRef::new(Kind::Worker, worker.clone()));
        std::iter::once(ObjectRef::new(Kind::Volume, self.volume.clone())).chain(worker).collect()
    }

    fn frozen_field(&self, next: &Spec) -> Option<(&'static str, &'static str)> {
        (self.volume != next.volume).then_some(("volume", "a snapshot is of one moment; take another one"))
    }
}
