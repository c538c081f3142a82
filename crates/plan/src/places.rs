//! Where the workers stand that may be given VMs: by room, and by place, which is zone and rack.

use std::collections::BTreeMap;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use lightbyte_api::placing::{RACK_LABEL, ZONE_LABEL};
use lightbyte_api::{Name, WorkerId};

/// A zone, and a rack of it. Workers without the labels share the place without a name.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The zone.
    pub zone: Option<Arc<str>>,
    /// The rack.
    pub rack: Option<Arc<str>>,
}

impl Place {
    /// Where a worker with `labels` is.
    #[must_use]
    pub fn of(labels: &BTreeMap<String, String>) -> Place {
        let label = |key: &str| labels.get(key).map(|value| value.as_str().into());
        Place { zone: label(ZONE_LABEL), rack: label(RACK_LABEL) }
    }
}

/// Where a worker stands: how full it is, in thousandths, and its name.
type Stand = (u64, Name);

/// Workers that may be given VMs.
#[derive(Clone, Default, PartialEq)]
pub(crate) struct Places {
    /// The one with the most room first.
    by_room: OrdSet<Stand>,
    by_place: OrdSet<(Place, Stand)>,
    of_worker: OrdMap<WorkerId, (Place, Stand)>,
}

impl Places {
    /// A worker stands there now; nowhere, if it may not be given VMs.
    pub(crate) fn set(&mut self, worker: WorkerId, stands: Option<(Place, Stand)>) {
        if let Some(stood) = self.of_worker.remove(&worker) {
            self.by_room.remove(&stood.1);
            self.by_place.remove(&stood);
        }
        if let Some(stands) = stands {
            self.by_room.insert(stands.1.clone());
            self.by_place.insert(stands.clone());
            self.of_worker.insert(worker, stands);
        }
    }

    /// All of them, the one with the most room first; equal ones in order of name.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Stand> {
        self.by_room.iter()
    }

    /// The places in which any of them is, in order.
    pub(crate) fn places(&self) -> impl Iterator<Item = &Place> {
        let mut next = self.by_place.iter().next();
        std::iter::from_fn(move || {
            let (place, _) = next?;
            let last = (place.clone(), (u64::MAX, crate::view::first_name()));
            // One without any room may come after that.
            next = self.by_place.range(last..).find(|(found, _)| found != place);
            Some(place)
        })
    }

    /// Those in one place, the one with the most room first.
    pub(crate) fn in_place<'a>(&'a self, place: &'a Place) -> impl Iterator<Item = &'a Stand> {
        let first = (place.clone(), (0, crate::view::first_name()));
        self.by_place.range(first..).take_while(move |(found, _)| found == place).map(|(_, stand)| stand)
    }
}
