//! Where the members of a group are: they are spread over zones first, then over the racks of a zone, then over workers.

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::sync::Arc;

use lightbyte_api::{Name, Uid, WorkerId};

use crate::places::Place;
use crate::view::View;

/// How many members of a group are in a zone, in a rack of it, and on a worker there. The order is that of its importance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Crowd {
    /// In the zone.
    pub zone: u64,
    /// In the rack.
    pub rack: u64,
    /// On the worker.
    pub worker: u64,
}

/// Where the members of a group are.
pub struct Crowds<'a> {
    view: &'a View,
    group: Option<Uid>,
    /// The places in which there are workers that may be given VMs.
    places: Vec<&'a Place>,
    /// Whether there is a choice of zones.
    pub(super) has_zones: bool,
    /// Whether there is a choice of racks.
    pub(super) has_racks: bool,
    in_zone: BTreeMap<Option<Arc<str>>, u64>,
    in_rack: BTreeMap<Place, u64>,
}

impl<'a> Crowds<'a> {
    /// Those of `group`, or of nobody.
    #[must_use]
    pub fn of(view: &'a View, group: Option<Uid>) -> Crowds<'a> {
        let places: Vec<&Place> = group.iter().flat_map(|_| view.places()).collect();
        let differ = |is: fn(&Place, &Place) -> bool| places.windows(2).any(|pair| is(pair[0], pair[1]));
        let has_zones = differ(|one, next| one.zone != next.zone);
        let has_racks = differ(|one, next| one.rack != next.rack);
        let (in_zone, in_rack) = (BTreeMap::new(), BTreeMap::new());
        let mut crowds = Crowds { view, group, places, has_zones, has_racks, in_zone, in_rack };
        // Where all workers are in one place, nothing has to be counted.
        if crowds.places.len() > 1 {
            for worker in group.iter().flat_map(|group| view.workers_of(*group)) {
                let place = view.place_of(worker);
                *crowds.in_zone.entry(place.zone.clone()).or_default() += 1;
                *crowds.in_rack.entry(place).or_default() += 1;
            }
        }
        crowds
    }

    /// Who is around a worker with `labels`.
    pub(super) fn around(&self, worker: WorkerId, labels: &BTreeMap<String, String>) -> Crowd {
        let on_worker = self.group.map_or(0, |group| self.view.placed_of(group, worker));
        let Crowd { zone, rack, .. } = match self.places.len() {
            0 | 1 => Crowd::default(),
            _ => self.in_place(&Place::of(labels)),
        };
        Crowd { zone, rack, worker: on_worker as u64 }
    }

    fn in_place(&self, place: &Place) -> Crowd {
        let count = |found: Option<&u64>| found.copied().unwrap_or(0);
        Crowd { zone: count(self.in_zone.get(&place.zone)), rack: count(self.in_rack.get(place)), worker: 0 }
    }

    /// The workers that may be given VMs: those in the emptiest zone first, there those in the emptiest rack; of equal places the
    /// worker with the most room.
    pub(super) fn emptiest_first(&self) -> impl Iterator<Item = &'a Name> {
        let mut classes: BTreeMap<Crowd, Vec<&'a Place>> = BTreeMap::new();
        if self.places.len() > 1 {
            for place in &self.places {
                classes.entry(self.in_place(place)).or_default().push(place);
            }
        }
        let by_room = classes.is_empty().then(|| self.view.workers_by_room());
        let view = self.view;
        let by_class = classes
            .into_values()
            .flat_map(move |places| merged(places.into_iter().map(|place| view.workers_in(place)).collect()));
        by_room.into_iter().flatten().chain(by_class)
    }
}

/// The workers of several places, each in its own order, the one with the most room of all first.
fn merged<'a>(places: Vec<impl Iterator<Item = &'a (u64, Name)>>) -> impl Iterator<Item = &'a Name> {
    let mut places: Vec<Peekable<_>> = places.into_iter().map(Iterator::peekable).collect();
    std::iter::from_fn(move || {
        let heads = places.iter_mut().enumerate().filter_map(|(index, place)| Some((*place.peek()?, index)));
        let (_, index) = heads.min()?;
        places[index].next().map(|(_, name)| name)
    })
}
