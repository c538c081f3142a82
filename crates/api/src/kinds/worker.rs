//! A **worker**: a machine that runs VMs. It registers itself; people cordon and drain it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Field, SpecRules};
use crate::manifest::read_labels;
use crate::placing::has_all;
use crate::reader::Reader;

/// What people ask of a worker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Spec {
    /// No new VM is placed on it while this is true; those that run go on.
    pub cordoned: bool,
    /// It is to be emptied: no new VM is placed on it, and members of groups are made again elsewhere.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub draining: bool,
    /// Only VMs that have all of these labels are placed on it; all, when there are none.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub only_for: BTreeMap<String, String>,
}

impl Spec {
    /// Whether new VMs may be placed on it.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        !self.cordoned && !self.draining
    }

    /// Whether it is for VMs with these labels.
    #[must_use]
    pub fn is_for(&self, labels: &BTreeMap<String, String>) -> bool {
        has_all(labels, &self.only_for)
    }
}

/// What was decided about a worker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Choice {
    /// Since when it has not been seen alive, on the clock of the leader that noticed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub away_since: Option<Timestamp>,
    /// It counts as lost: groups replace their members that are on it. Until it is seen alive again.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub lost: bool,
}

impl SpecRules for Spec {
    const ABOUT: &'static str = "a machine that runs VMs; it registers itself when its agent starts";

    const FIELDS: &'static [Field] = &[
        ("cordoned", "no new VM is placed on it while this is true; those that run go on"),
        ("draining", "it is to be emptied: cordoned, and members of groups are made again elsewhere"),
        ("only_for", "labels: only VMs that have all of them are placed on it; those that run go on"),
    ];

    fn shortest() -> Option<Value> {
        Some(json!({}))
    }

    fn read(fields: &mut Reader<'_>) -> Option<Spec> {
        Some(Spec {
            cordoned: fields.or("cordoned", false),
            draining: fields.or("draining", false),
            only_for: read_labels(fields, "only_for"),
        })
    }
}
