//! The names of the cluster: the whole zone as a view shows it.
//!
//! ```text
//!   VM.vm           its addresses, while it is to run and its worker says that it does
//!   GROUP.group     those of its members that serve
//!   LB.lb           its virtual addresses, or those of its proxies that know what to do;  _http._tcp.LB.lb  and at which port
//!   _acme-challenge.NAME   what a certification authority looks for, while a certificate is ordered
//!   …               what people write (`dnsrecord`), beside these and never in their place
//!   reverse         VM.vm for every address of a network with a pool
//! ```
//!
//! A name goes when the end of what it names is asked for, not when that has ended: who looks it up then has a moment to go
//! elsewhere. Absence takes no name away: the report of a worker that is gone still holds.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lightbyte_api::address::Cidr;
use lightbyte_api::assigned::{Assigned, HostObject};
use lightbyte_api::kinds::dnsrecord::{DOMAIN_NAME_LENGTH_MAX, RecordType, Spec as RecordSpec};
use lightbyte_api::kinds::loadbalancer::PROXY_SUFFIX;
use lightbyte_api::kinds::network::Prefix6;
use lightbyte_api::kinds::vm::Placement;
use lightbyte_api::observed::{ObservedVm, VmPhase};
use lightbyte_api::zone::{APEX, Records, Service, Set, Zone, canonical, maximum};
use lightbyte_api::{Key, Kind, Name, ObjectRef, Spec, Uid};

use crate::fronts;
use crate::planner::{scalegroup, secret, vm};
use crate::view::View;

/// How many addresses of one family one name has at most. So many fit into one answer, and nobody who looks a name up
/// chooses among more.
pub const ADDRESSES_MAX: usize = 2_000;
/// How many texts one name has at most, for the same reason.
pub const TEXTS_MAX: usize = 200;

/// How long others may keep what a certification authority looks for.
const CHALLENGE_TTL_S: u32 = 1;

/// The zone of a view, and whether all that is named is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Composed {
    /// It keeps the rules of [`Zone::check`].
    pub zone: Zone,
    /// How many records there was no room for ([`maximum::RECORDS`]). While there are any, no name may be denied.
    pub left_out: usize,
    /// Records of people that stand in the way of another, or of a name of the cluster's own.
    pub clashes: Vec<ObjectRef>,
}

/// Whether a change of this key may change the zone.
#[must_use]
pub const fn concerns(key: &Key) -> bool {
    match key {
        Key::Asked(object) => matches!(
            object.kind,
            Kind::Vm | Kind::ScaleGroup | Kind::LoadBalancer | Kind::Network | Kind::DnsRecord
        ),
        Key::Decided(object) => {
            matches!(object.kind, Kind::Vm | Kind::ScaleGroup | Kind::LoadBalancer | Kind::Secret)
        }
        Key::Assigned(_, object) | Key::Observed(_, object) => matches!(object.kind, Kind::Vm),
        Key::Alive(_) => true,
        _ => false,
    }
}

/// Composes the zone `name` of a view.
#[must_use]
pub fn compose(view: &View, name: &str) -> Composed {
    let mut composer = Composer::new(view, name);
    // In the order in which they go without when there are too many: names that applications are told come first.
    view.objects_of(Kind::LoadBalancer).for_each(|balancer| composer.balancer(balancer));
    view.objects_of(Kind::ScaleGroup).for_each(|group| composer.group(group));
    view.objects_of(Kind::Vm).for_each(|vm| composer.vm(vm));
    view.objects_of(Kind::Secret).for_each(|secret| composer.texts(secret));
    // The alias last: whether it stands alone is known then.
    for aliases in [false, true] {
        view.objects_of(Kind::DnsRecord).for_each(|record| composer.record(record, aliases));
    }
    composer.composed
}

/// The addresses of a VM, each once, in order of its cards.
#[derive(Clone, Debug, Default)]
struct Addresses {
    v4: Vec<Ipv4Addr>,
    v6: Vec<Ipv6Addr>,
}

impl Addresses {
    /// What a VM has by its placement and by its worker's report.
    fn of(placement: &Placement, observed: &ObservedVm) -> Addresses {
        let mut addresses = Addresses::default();
        for (index, nic) in placement.nics.iter().enumerate() {
            let leases = observed.leases.iter().filter(|lease| usize::try_from(lease.nic) == Ok(index));
            let leased = leases.map(|lease| lease.address).filter(|_| nic.address.is_none());
            addresses.v4.extend(nic.address.into_iter().chain(leased));
            addresses.v6.extend(nic.address6);
        }
        addresses
    }

    fn extend(&mut self, other: &Addresses) {
        self.v4.extend(&other.v4);
        self.v6.extend(&other.v6);
    }

    /// In order, so that the same addresses are the same records whoever has them.
    fn records(mut self) -> Records {
        self.v4.sort_unstable();
        self.v4.dedup();
        self.v6.sort_unstable();
        self.v6.dedup();
        self.v4.truncate(ADDRESSES_MAX);
        self.v6.truncate(ADDRESSES_MAX);
        Records { a: self.v4.into(), aaaa: self.v6.into(), ..Records::default() }
    }
}

/// A VM that has a name.
struct Named<'a> {
    uid: Uid,
    placement: &'a Placement,
    observed: &'a ObservedVm,
    /// Whether nothing is known against it.
    is_well: bool,
}

/// The VM, if it is to run and does so as far as its worker has ever said.
fn named<'a>(view: &'a View, object: &ObjectRef) -> Option<Named<'a>> {
    let asked = view.living(object)?;
    let Spec::Vm(spec) = &asked.spec else { return None };
    let placement = vm::placement(view, object).filter(|_| spec.running)?;
    let host_object = HostObject { kind: Kind::Vm, uid: asked.meta.uid };
    let observed = vm::observed_vm(view, placement.worker, host_object)?;
    let is_healthy = match view.assigned(placement.worker, host_object).map(AsRef::as_ref) {
        Some(Assigned::Vm(assigned)) => vm::is_healthy(assigned, observed),
        // What cannot be read is not held against it.
        _ => true,
    };
    // Who asks next is sent to others long before it is decided that the worker is lost: nothing is taken away by that.
    let is_there = view.alive(placement.worker).is_some();
    let runs = observed.phase == VmPhase::Running;
    runs.then(|| Named { uid: asked.meta.uid, placement, observed, is_well: is_healthy && is_there })
}

/// Those members of a group that run and are not let go; those that are well, unless that is nobody.
fn serving<'a>(view: &'a View, group: &ObjectRef, is_wanted: impl Fn(&Named<'_>) -> bool) -> Vec<Named<'a>> {
    let Some(asked) = view.living(group) else { return Vec::new() };
    let choice = scalegroup::choice(view, group);
    let stays = |member: &Named<'_>| choice.is_none_or(|choice| !choice.lets_go(member.uid));
    let members = view.children(asked.meta.uid).filter_map(|child| named(view, child));
    let mut members: Vec<Named<'a>> = members.filter(|member| stays(member) && is_wanted(member)).collect();
    // What everybody has most likely lies with who asks, and a name without an address helps nobody.
    if members.iter().any(|member| member.is_well) {
        members.retain(|member| member.is_well);
    }
    members
}

/// The virtual addresses of a load balancer, once some proxy has had them.
fn virtual_addresses(view: &View, balancer: &ObjectRef) -> Option<Addresses> {
    let held = fronts::choice(view, balancer)?.virtual_address.as_ref().filter(|held| held.turn > 0)?;
    let address6 = fronts::address6(view, balancer, held.address);
    Some(Addresses { v4: vec![held.address], v6: address6.into_iter().collect() })
}

fn addresses_of(members: &[Named<'_>]) -> Addresses {
    let mut addresses = Addresses::default();
    members.iter().for_each(|member| addresses.extend(&Addresses::of(member.placement, member.observed)));
    addresses
}

/// A zone in the making.
struct Composer<'a> {
    view: &'a View,
    composed: Composed,
    records: usize,
    /// Networks with a pool, with their subnets of which reverse names are kept.
    networks: BTreeMap<&'a Name, Vec<Cidr>>,
    /// Owners of names that the cluster makes by itself, running or not: what people write never stands in for them.
    own: BTreeSet<String>,
}

impl<'a> Composer<'a> {
    fn new(view: &'a View, name: &str) -> Composer<'a> {
        let mut zone = Zone::new(name, view.revision());
        let mut networks = BTreeMap::new();
        for object in view.objects_of(Kind::Network) {
            let Some(Spec::Network(spec)) = view.asked(object).map(|asked| &asked.spec) else { continue };
            let Some(pool) = spec.pool() else { continue };
            let subnet6 = match spec.subnet6 {
                Some(Prefix6::Subnet(subnet)) => Some(Cidr::V6(subnet)),
                _ => None,
            };
            let subnets: Vec<Cidr> = std::iter::once(Cidr::V4(pool.subnet)).chain(subnet6).collect();
            for subnet in &subnets {
                if zone.reverse.len() < maximum::REVERSE && !zone.reverse.contains(subnet) {
                    zone.reverse.push(*subnet);
                }
            }
            networks.insert(&object.name, subnets);
        }
        let composed = Composed { zone, left_out: 0, clashes: Vec::new() };
        Composer { view, composed, records: 0, networks, own: BTreeSet::new() }
    }

    /// Whether there is room for so many records more; if so, they count as there.
    fn has_room(&mut self, records: usize) -> bool {
        let fits = self.records + records <= maximum::RECORDS;
        if fits {
            self.records += records;
        } else {
            self.composed.left_out += records;
        }
        fits
    }

    /// Gives an owner what nobody has given it yet.
    fn add(&mut self, owner: String, records: Records) {
        let count = records.count();
        if count > 0 && self.has_room(count) {
            self.composed.zone.names.insert(owner, records);
        }
    }

    /// Adds to what an owner has by now.
    fn add_to(&mut self, owner: String, change: impl FnOnce(&mut Records)) {
        let mut records = self.composed.zone.names.get(&owner).cloned().unwrap_or_default();
        let before = records.count();
        change(&mut records);
        if self.has_room(records.count() - before) {
            self.composed.zone.names.insert(owner, records);
        }
    }

    fn is_too_long(&self, owner: &str) -> bool {
        owner != APEX && owner.len() + 1 + self.composed.zone.name.len() > DOMAIN_NAME_LENGTH_MAX
    }

    fn vm(&mut self, object: &ObjectRef) {
        let owner = format!("{}.vm", object.name);
        self.own.insert(owner.clone());
        let Some(named) = named(self.view, object) else { return };
        let target = format!("{owner}.{}", self.composed.zone.name);
        self.add(owner, Addresses::of(named.placement, named.observed).records());
        for nic in &named.placement.nics {
            let addresses = nic.address.map(IpAddr::V4).into_iter().chain(nic.address6.map(IpAddr::V6));
            for address in addresses {
                self.pointer(&nic.network, address, &target);
            }
        }
    }

    fn pointer(&mut self, network: &Name, address: IpAddr, target: &str) {
        let Some(subnets) = self.networks.get(network) else { return };
        let zone = &self.composed.zone;
        let is_kept = |subnet: &&Cidr| contains(**subnet, address) && zone.reverse.contains(subnet);
        // Two networks may have one subnet: the first VM by name has the address's name then.
        if subnets.iter().any(|subnet| is_kept(&subnet))
            && !zone.pointers.contains_key(&address)
            && self.has_room(1)
        {
            self.composed.zone.pointers.insert(address, target.to_owned());
        }
    }

    fn group(&mut self, object: &ObjectRef) {
        let owner = format!("{}.group", object.name);
        self.own.insert(owner.clone());
        self.add(owner, addresses_of(&serving(self.view, object, |_| true)).records());
    }

    fn balancer(&mut self, object: &ObjectRef) {
        let owner = format!("{}.lb", object.name);
        let service = format!("_http._tcp.{owner}");
        self.own.extend([owner.clone(), service.clone()]);
        let Some(asked) = self.view.living(object) else { return };
        let (Spec::LoadBalancer(spec), Ok(group)) = (&asked.spec, object.name.child(PROXY_SUFFIX)) else {
            return;
        };
        let group = ObjectRef::new(Kind::ScaleGroup, group);
        let group_owner = self.view.asked(&group).and_then(|group| group.meta.owner.as_ref());
        if group_owner.is_none_or(|owner| owner.uid != asked.meta.uid) {
            return;
        }
        let is_told =
            |proxy: &Named<'_>| proxy.observed.proxy.as_ref().is_some_and(|proxy| proxy.revision > 0);
        let records = match virtual_addresses(self.view, object) {
            Some(addresses) => {
                let target = format!("{owner}.{}", self.composed.zone.name);
                let v4 = addresses.v4.iter().copied().map(IpAddr::V4);
                for address in v4.chain(addresses.v6.iter().copied().map(IpAddr::V6)) {
                    self.pointer(&spec.proxies.network, address, &target);
                }
                addresses.records()
            }
            None => addresses_of(&serving(self.view, &group, is_told)).records(),
        };
        if let Some(listener) = spec.serving.listeners.first().filter(|_| records.count() > 0) {
            let target = format!("{owner}.{}", self.composed.zone.name);
            let service_is = Service { priority: 0, weight: 0, port: listener.port, target };
            self.add(service, Records { srv: vec![service_is].into(), ..Records::default() });
        }
        self.add(owner, records);
    }

    /// What a certification authority looks for. Names that are not in this zone are not ours to answer for.
    fn texts(&mut self, object: &ObjectRef) {
        let order = secret::choice(self.view, object).and_then(|choice| choice.order.as_ref());
        for text in order.into_iter().flat_map(|order| &order.texts) {
            let owner = text.name.strip_suffix(&self.composed.zone.name);
            let owner =
                owner.and_then(|name| name.strip_suffix('.')).filter(|owner| !self.is_too_long(owner));
            let Some(owner) = owner.map(str::to_owned) else { continue };
            self.add_to(owner, |records| {
                merge(&mut records.txt, std::iter::once(text.value.clone()), CHALLENGE_TTL_S, TEXTS_MAX);
            });
        }
    }

    /// A record that somebody wrote: first all but aliases, then aliases, which need a name for themselves.
    fn record(&mut self, object: &ObjectRef, aliases: bool) {
        let Some(asked) = self.view.living(object) else { return };
        let Spec::DnsRecord(spec) = &asked.spec else { return };
        if (spec.record_type == RecordType::Cname) != aliases {
            return;
        }
        let owner = spec.host.as_deref().map_or_else(|| object.name.to_string(), canonical);
        // A text beside a name of the cluster's own says more about it; an address would be somebody else's.
        let stands_in = self.own.contains(&owner) && spec.record_type != RecordType::Txt;
        let is_taken = aliases && (owner == APEX || self.composed.zone.names.contains_key(&owner));
        if self.is_too_long(&owner) || stands_in || is_taken {
            self.composed.clashes.push(object.clone());
            return;
        }
        self.add_to(owner, |records| write(records, spec));
    }
}

/// Adds what a record says to those of the same name.
fn write(records: &mut Records, spec: &RecordSpec) {
    let ttl_s = u32::try_from(spec.ttl.millis() / 1_000).unwrap_or(maximum::TTL_S).clamp(1, maximum::TTL_S);
    let values = &spec.values;
    match spec.record_type {
        RecordType::A => {
            merge(&mut records.a, values.iter().filter_map(|value| value.parse().ok()), ttl_s, ADDRESSES_MAX);
        }
        RecordType::Aaaa => {
            merge(
                &mut records.aaaa,
                values.iter().filter_map(|value| value.parse().ok()),
                ttl_s,
                ADDRESSES_MAX,
            );
        }
        RecordType::Txt => merge(&mut records.txt, values.iter().cloned(), ttl_s, TEXTS_MAX),
        RecordType::Cname => merge(&mut records.cname, values.iter().map(|value| canonical(value)), ttl_s, 1),
    }
}

/// Adds values to a set, each once. What is kept of a set is kept as a whole (RFC 2181, 5.2), so the shortest time holds.
fn merge<T: PartialEq>(set: &mut Set<T>, values: impl Iterator<Item = T>, ttl_s: u32, count_max: usize) {
    set.ttl_s = if set.is_empty() { ttl_s } else { set.ttl_s.min(ttl_s) };
    for value in values {
        if set.values.len() < count_max && !set.values.contains(&value) {
            set.values.push(value);
        }
    }
}

fn contains(subnet: Cidr, address: IpAddr) -> bool {
    match (subnet, address) {
        (Cidr::V4(subnet), IpAddr::V4(address)) => subnet.contains(address),
        (Cidr::V6(subnet), IpAddr::V6(address)) => subnet.contains(address),
        _ => false,
    }
}
