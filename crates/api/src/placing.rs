//! Which workers a VM may be placed on, by labels.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::manifest::read_labels;
use crate::reader::Reader;

/// The label that every worker has without being given it: its own name.
pub const WORKER_LABEL: &str = "worker";

/// Which workers a VM may be placed on. It is looked at when the VM is placed, and never again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Placing {
    /// What its worker must have: labels, [`WORKER_LABEL`] among them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub on: BTreeMap<String, String>,
    /// What its worker should have, where there is a choice; more of them is better.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub prefer: BTreeMap<String, String>,
    /// Its worker has no VM that has all of these labels when it is placed, and none is placed there later. Nobody, when there are
    /// none.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub apart: BTreeMap<String, String>,
}

impl Placing {
    /// Whether every worker may take it, as far as this goes.
    #[must_use]
    pub fn is_any(&self) -> bool {
        *self == Placing::default()
    }

    /// Whether a VM with `labels` is one that it keeps apart from.
    #[must_use]
    pub fn is_apart_from(&self, labels: &BTreeMap<String, String>) -> bool {
        let has = |(key, value): (&String, &String)| labels.get(key) == Some(value);
        !self.apart.is_empty() && self.apart.iter().all(has)
    }

    /// Reads the block.
    pub(crate) fn read(fields: &mut Reader<'_>) -> Option<Placing> {
        let on = read_labels(fields, "on");
        let prefer = read_labels(fields, "prefer");
        let apart = read_labels(fields, "apart");
        Some(Placing { on, prefer, apart })
    }
}
