//! What a server delivers to one worker: an inventory first, then one delivery for each change that concerns it.
//!
//! Everything comes from the server's own view, so that workers need no watches on the store: a thousand of them on
//! one prefix would cost the store a thousand comparisons for every event.

use std::collections::BTreeSet;

use lightbyte_api::assigned::HostObject;
use lightbyte_api::kinds::loadbalancer::ShownCertificate;
use lightbyte_api::kinds::secret::PrivateKey;
use lightbyte_api::records::{Epoch, Record};
use lightbyte_api::topology::{Certificate, SecretText};
use lightbyte_api::{Key, Kind, Name, ObjectRef, Uid, WorkerId};

use crate::agent::{Delivery, Item, News, Stamped, Told};
use crate::fronts;
use crate::planner::{loadbalancer, secret};
use crate::view::View;

/// Whether a stream may begin from `view`. A worker with a `cursor` must not be led back behind it. One without has
/// forgotten what it reported: from an older view it could learn that it reported nothing, and leave its report
/// behind for ever. So for it the view must have reached `confirmed`, the revision of a linearizable read made for
/// this request.
#[must_use]
pub fn may_begin(view: &View, cursor: Option<u64>, confirmed: Option<u64>) -> bool {
    cursor.or(confirmed).is_some_and(|needed| needed <= view.revision())
}

/// Opens the sealed key of a secret of that name; nothing where that cannot be done here. Whoever is told nothing of a load balancer
/// for it goes on with what it has.
pub type Open<'a> = &'a dyn Fn(&Name, &str) -> Option<SecretText>;

/// The sealed text itself, for proxies that show nothing to anybody.
#[must_use]
pub fn unopened(_: &Name, sealed: &str) -> Option<SecretText> {
    Some(SecretText::new(sealed.to_owned()))
}

/// The first delivery of a stream: everything of `worker`. `None` when the view has no readable epoch, or a value of
/// this worker that cannot be read: a partial list must not be taken for a whole one.
#[must_use]
pub fn inventory(view: &View, worker: WorkerId, open: Open<'_>) -> Option<Delivery> {
    let mut objects: Vec<HostObject> = view.assigned_to(worker).chain(view.observed_by(worker)).collect();
    objects.sort_unstable();
    objects.dedup();
    // The worker's report of itself is no object on its host.
    let items = objects
        .into_iter()
        .filter(|object| object.kind != Kind::Worker)
        .map(|object| item(view, worker, object, open));
    let items = items.collect::<Option<Vec<Item>>>()?;
    Some(Delivery { epoch: epoch(view)?, revision: view.revision(), news: News::Inventory(items) })
}

fn item(view: &View, worker: WorkerId, object: HostObject, open: Open<'_>) -> Option<Item> {
    let assigned_key = Key::Assigned(worker, object);
    let observed_key = Key::Observed(worker, object);
    if view.unreadable(&assigned_key).is_some() || view.unreadable(&observed_key).is_some() {
        return None;
    }
    let assigned = view.assigned(worker, object);
    let observed = view.observed(worker, object);
    Some(Item {
        object,
        assigned: assigned.map(|value| stamped(view, &assigned_key, value.as_ref().clone())),
        observed: observed.map(|value| stamped(view, &observed_key, value.as_ref().clone())),
        told: told(view, object, open),
    })
}

/// What the proxy in a VM is to be told, if it has one.
fn told(view: &View, object: HostObject, open: Open<'_>) -> Option<Told> {
    let vm = view.object_of(object.uid).filter(|vm| vm.kind == Kind::Vm)?;
    let balancer = loadbalancer::balancer_of(view, vm)?;
    let choice = fronts::choice(view, &balancer)?;
    // One that is not noted there would not be waited for.
    choice.proxies.iter().find(|proxy| proxy.uid == object.uid)?;
    let topology = choice.topology_of(object.uid, |shown| certificate(view, shown, open))?;
    let backends = topology.pools.iter().flat_map(|pool| &pool.backends);
    let mut members: Vec<Uid> = backends.filter_map(|backend| backend.uid.parse().ok()).collect();
    members.sort_unstable();
    members.dedup();
    // A topology is made of plain data.
    let document = SecretText::new(serde_json::to_string(&topology).ok()?);
    Some(Told { revision: topology.revision, members, document })
}

/// A certificate as proxies are told of it.
fn certificate(view: &View, shown: &ShownCertificate, open: Open<'_>) -> Option<Certificate> {
    let object = ObjectRef::new(Kind::Secret, shown.secret.clone());
    let version = secret::version(view, &object, shown.uid, shown.version)?;
    let PrivateKey::Sealed(sealed) = &version.pair.key else { return None };
    Some(Certificate {
        server_names: version.server_names.clone(),
        chain_pem: version.pair.chain.clone(),
        key_pem: open(&shown.secret, sealed)?,
    })
}

/// The worker, or the workers, that a change of `key` may concern.
#[must_use]
pub fn concerned(view: &View, key: &Key) -> Vec<WorkerId> {
    match key {
        Key::Assigned(worker, _) | Key::Observed(worker, _) => vec![*worker],
        key => balancers_told_by(view, key)
            .iter()
            .flat_map(|balancer| loadbalancer::workers_of(view, balancer))
            .collect(),
    }
}

/// The load balancers whose topologies are made of what this key holds: what could not be read, and so was told to nobody, is told
/// when it can.
fn balancers_told_by(view: &View, key: &Key) -> BTreeSet<ObjectRef> {
    match key {
        Key::Decided(object) if object.kind == Kind::LoadBalancer => [object.clone()].into(),
        Key::Decided(object) if object.kind == Kind::Secret => secret::shown_by(view, object),
        _ => BTreeSet::new(),
    }
}

/// What a change of these keys means for `worker`. What proxies are told comes last: their own assignment may be as new.
pub fn changes<'a>(
    view: &'a View,
    worker: WorkerId,
    keys: impl IntoIterator<Item = &'a Key> + Clone,
    open: Open<'a>,
) -> impl Iterator<Item = Delivery> {
    let balancers: BTreeSet<ObjectRef> =
        keys.clone().into_iter().flat_map(|key| balancers_told_by(view, key)).collect();
    let topologies =
        balancers.into_iter().flat_map(move |balancer| topologies_of(view, worker, &balancer, open));
    keys.into_iter().filter_map(move |key| change(view, worker, key)).chain(topologies)
}

/// What a change of what is decided for a load balancer, or of a certificate that it shows, means for the proxies of `worker`.
#[must_use]
pub fn topologies(view: &View, worker: WorkerId, key: &Key, open: Open<'_>) -> Vec<Delivery> {
    let balancers = balancers_told_by(view, key);
    balancers.iter().flat_map(|balancer| topologies_of(view, worker, balancer, open)).collect()
}

/// What the proxies of a load balancer on `worker` are told.
fn topologies_of(view: &View, worker: WorkerId, balancer: &ObjectRef, open: Open<'_>) -> Vec<Delivery> {
    let choice = fronts::choice(view, balancer);
    let proxies =
        choice.into_iter().flat_map(|choice| &choice.proxies).filter(|proxy| proxy.worker == worker);
    let delivery = |uid: Uid| {
        let object = HostObject { kind: Kind::Vm, uid };
        let news = News::Topology { object, told: told(view, object, open)? };
        Some(Delivery { epoch: epoch(view)?, revision: view.revision(), news })
    };
    proxies.filter_map(|proxy| delivery(proxy.uid)).collect()
}

/// What a change of `key` means for `worker`; `None` when it does not concern it, or cannot be read.
#[must_use]
pub fn change(view: &View, worker: WorkerId, key: &Key) -> Option<Delivery> {
    let (Key::Assigned(concerned, object) | Key::Observed(concerned, object)) = key else { return None };
    if *concerned != worker || object.kind == Kind::Worker || view.unreadable(key).is_some() {
        return None;
    }
    let object = *object;
    let news = match key {
        Key::Observed(..) => News::Reported { object, mod_revision: view.mod_revision(key) },
        _ => {
            let assigned = view.assigned(worker, object);
            let assigned = assigned.map(|value| stamped(view, key, value.as_ref().clone()));
            News::Change { object, assigned }
        }
    };
    Some(Delivery { epoch: epoch(view)?, revision: view.revision(), news })
}

/// Tells a worker how far the view has come, so that its cursor moves on although nothing concerned it.
#[must_use]
pub fn progress(view: &View) -> Option<Delivery> {
    Some(Delivery { epoch: epoch(view)?, revision: view.revision(), news: News::Progress })
}

fn stamped<T>(view: &View, key: &Key, value: T) -> Stamped<T> {
    Stamped { mod_revision: view.mod_revision(key), value }
}

/// The epoch that the view is of, if it can be read.
#[must_use]
pub fn epoch(view: &View) -> Option<Epoch> {
    match view.record(&Key::Epoch)? {
        Record::Epoch(epoch) => Some(epoch.clone()),
        _ => None,
    }
}
