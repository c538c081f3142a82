//! A **snapshot**: a volume as it was at one moment, beside it on the same worker. It outlives the volume.

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
    /// Whether it cannot be deleted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub protected: bool,
}

/// Where the snapshot lives.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Choice {
    /// The worker that holds it: the volume's then.
    pub worker: Option<WorkerId>,
    /// Its size: the volume's then.
    pub size: ByteSize,
}

impl SpecRules for Spec {
    const ABOUT: &'static str = "a volume as it was at one moment, on the same worker";

    const FIELDS: &'static [Field] = &[
        ("volume", "the volume that it is taken of; fixed for life"),
        ("protected", "whether it cannot be deleted"),
    ];

    fn shortest() -> Option<Value> {
        Some(json!({ "volume": "data" }))
    }

    fn read(fields: &mut Reader<'_>) -> Option<Spec> {
        let volume = fields.required("volume");
        let protected = fields.or("protected", false);
        Some(Spec { volume: volume?, protected })
    }

    fn references(&self) -> Vec<ObjectRef> {
        vec![ObjectRef::new(Kind::Volume, self.volume.clone())]
    }

    fn frozen_field(&self, next: &Spec) -> Option<(&'static str, &'static str)> {
        (self.volume != next.volume).then_some(("volume", "a snapshot is of one moment; take another one"))
    }
}
