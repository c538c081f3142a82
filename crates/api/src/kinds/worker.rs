//! A **worker**: a machine that runs VMs. It registers itself; people cordon and drain it.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Field, SpecRules};
use crate::reader::Reader;

/// What people ask of a worker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Spec {
    /// No new VM is placed on it while this is true; those that run go on.
    pub cordoned: bool,
}

/// Nothing is chosen for a worker yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Choice {}

impl SpecRules for Spec {
    const ABOUT: &'static str = "a machine that runs VMs; it registers itself when its agent starts";

    const FIELDS: &'static [Field] = &[("cordoned", "no new VM is placed on it while this is true; those that run go on")];

    fn shortest() -> Option<Value> {
        Some(json!({}))
    }

    fn read(fields: &mut Reader<'_>) -> Option<Spec> {
        Some(Spec { cordoned: fields.or("cordoned", false) })
    }
}
