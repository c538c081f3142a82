//! Load balancers: proxies that hold a topology on their disk and send requests by it, and what must hold of whom they send to.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr};

use lightbyte_api::assigned::{HostObject, WantedVm};
use lightbyte_api::kinds::loadbalancer::{
    Check, Choice as BalancerChoice, Configuration, Ejection, Listener, Members, Pool, Proxies, Proxy, Route,
    Serving, Spec as BalancerSpec, WishedAddress,
};
use lightbyte_api::observed::Observed;
use lightbyte_api::records::Record;
use lightbyte_api::topology::{BackendProtocol, Balance, Challenge, Protocol, Target, Topology};
use lightbyte_api::{ByteSize, Choice, Key, Kind, Manifest, ObjectRef, Span, Spec, Uid, VmId};
use lightbyte_plan::agent::address;
use lightbyte_plan::agent::proxy::Answer;
use lightbyte_plan::agent::{Step, Told};
use lightbyte_plan::fronts::UNDECIDED_MAX;
use lightbyte_plan::planner::secret;
use lightbyte_plan::request::{self, Context, Outcome, Refusal};
use lightbyte_plan::view::View;
use lightbyte_plan::{Transaction, Write};

use crate::cluster::{Checked, Cluster};
use crate::oracle::{placement, told, violated};
use crate::user::name;
use crate::worker::Worker;
use crate::{addresses, groups, secrets};

/// A proxy refuses whatever has a route of this name.
const POISON: &str = "poison";
/// How many requests a proxy has in flight at most.
const IN_FLIGHT_MAX: usize = 3;

/// The proxies of a host, and what is under way to them.
#[derive(Default)]
pub(crate) struct Front {
    proxies: BTreeMap<VmId, Sim>,
    errands: VecDeque<(HostObject, Errand)>,
}

/// Something that a guest is told.
pub(crate) enum Errand {
    Proxy(Option<Told>),
    Address(address::Errand),
}

/// A proxy: what is on its disk outlives its machine, requests do not.
#[derive(Default)]
struct Sim {
    revision: u64,
    backends: BTreeMap<Uid, Ipv4Addr>,
    challenges: Vec<Challenge>,
    in_flight: Vec<(Uid, Ipv4Addr)>,
    begun_millis: u64,
}

impl Front {
    pub(crate) fn push(&mut self, object: HostObject, errand: Errand) {
        self.errands.push_back((object, errand));
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.errands.is_empty()
    }

    /// The agent begins anew: nobody waits for what is under way.
    pub(crate) fn forget_errands(&mut self) {
        self.errands.clear();
    }

    /// Nothing of a VM is left.
    pub(crate) fn remove(&mut self, vm: VmId) {
        self.proxies.remove(&vm);
    }

    /// The proxies that run, each with those whom it may send to.
    pub(crate) fn senders(&self, running: &[VmId]) -> BTreeMap<Uid, Vec<Uid>> {
        let running = self.proxies.iter().filter(|(vm, _)| running.contains(vm));
        running.map(|(vm, proxy)| (vm.uid(), proxy.backends.keys().copied().collect())).collect()
    }

    /// What a proxy answers to certification authorities, if it was told anything.
    pub(crate) fn challenges(&self, vm: VmId) -> Option<&[Challenge]> {
        self.proxies.get(&vm).filter(|proxy| proxy.revision > 0).map(|proxy| proxy.challenges.as_slice())
    }

    /// The revision that a proxy has taken.
    pub(crate) fn revision(&self, vm: VmId) -> u64 {
        self.proxies.get(&vm).map_or(0, |proxy| proxy.revision)
    }

    /// A machine is not there any more.
    pub(crate) fn break_off(&mut self, running: &[VmId]) {
        for (vm, proxy) in &mut self.proxies {
            if !running.contains(vm) {
                proxy.in_flight.clear();
            }
        }
    }
}

impl Cluster {
    /// Somebody asks something of a load balancer.
    pub(crate) fn balancer_user(
        &mut self,
        view: &View,
        context: &Context,
    ) -> (&'static str, ObjectRef, Result<Outcome, Refusal>) {
        if self.rng.once_in(4) {
            return self.secret_user(view, context);
        }
        let balancer = ObjectRef::new(Kind::LoadBalancer, name("lb"));
        if self.rng.once_in(8) {
            return ("delete", balancer.clone(), request::delete(view, &balancer, context));
        }
        let spec = Spec::LoadBalancer(self.some_balancer());
        let manifest = Manifest { name: balancer.name.clone(), labels: BTreeMap::new(), spec };
        ("change", balancer, request::apply(view, &manifest, context))
    }

    fn some_balancer(&mut self) -> BalancerSpec {
        let members = match self.rng.below(4) {
            0 | 1 if self.has_groups => Members::Group(name(["web", "api"][self.rng.below(2)])),
            0 => Members::Vms((0..6).map(|number| name(&format!("vm-{number}"))).collect()),
            _ => Members::Labels([("app".to_owned(), ["a", "b"][self.rng.below(2)].to_owned())].into()),
        };
        let pool = Pool {
            name: "main".to_owned(),
            members,
            port: 80,
            balance: Balance::default(),
            protocol: BackendProtocol::default(),
            check: Check::default(),
            ejection: Ejection::default(),
        };
        let routes = match self.rng.below(5) {
            0 => vec![self.some_route(POISON)],
            1 => vec![self.some_route("all")],
            _ => Vec::new(),
        };
        let certificates = self.some_certificates();
        let protocol = if certificates.is_empty() { Protocol::Http } else { Protocol::Https };
        let listener = Listener { port: 80, protocol, proxy_protocol: false, redirect_to_https: None };
        BalancerSpec {
            proxies: Proxies {
                replicas: 1 + self.rng.below(2) as u64,
                memory: ByteSize::from_mib(64),
                image: name(["demo", "base"][self.rng.below(2)]),
                ..Proxies::default()
            },
            serving: Serving {
                listeners: vec![listener],
                certificates,
                routes,
                pools: vec![pool],
                trusted_peers: Vec::new(),
            },
            drain: Span::from_secs(self.rng.below(3) as u64 * 5),
            virtual_address: match self.rng.below(4) {
                0 => None,
                1 => Some(WishedAddress::Only(Ipv4Addr::new(10, 77, 0, 3 + self.rng.below(3) as u8))),
                _ => Some(WishedAddress::Auto),
            },
        }
    }

    fn some_route(&self, name: &str) -> Route {
        let text =
            serde_json::json!({ "name": name, "targets": [Target { pool: "main".to_owned(), weight: 1 }] });
        serde_json::from_value(text).unwrap_or_else(|error| unreachable!("a route: {error}"))
    }

    /// A proxy is told something, or asked.
    pub(crate) fn take_errand(&mut self, index: usize) {
        match self.workers[index].front.errands.pop_front() {
            Some((object, Errand::Proxy(wanted))) => self.tell_proxy(index, object, wanted.as_ref()),
            Some((object, Errand::Address(errand))) => self.tell_address(index, object, errand),
            None => {}
        }
    }

    fn tell_proxy(&mut self, index: usize, object: HostObject, wanted: Option<&Told>) {
        let (now, now_millis, has_faults) = (self.now(), self.now_millis, self.faults);
        let running = self.workers[index].host.running();
        let front = &mut self.workers[index].front;
        let (vm, is_told) = (VmId::new(object.uid), wanted.is_some());
        let answer = if !running.contains(&vm) || (has_faults && self.rng.once_in(6)) {
            self.counts.add("fault: proxy silent");
            Answer::Silent("it does not answer".to_owned())
        } else {
            let proxy =
                front.proxies.entry(vm).or_insert_with(|| Sim { begun_millis: now_millis, ..Sim::default() });
            if has_faults && self.rng.once_in(20) {
                self.counts.add("fault: proxy begun anew");
                (proxy.begun_millis, proxy.in_flight) = (now_millis, Vec::new());
            }
            let refused = wanted.and_then(|told| proxy.take(told).err());
            if refused.is_some() {
                self.counts.add("topology refused");
            } else if wanted.is_some() {
                self.counts.add("topology taken");
            }
            refused.map_or_else(|| proxy.does(now_millis), Answer::Refused)
        };
        if is_told {
            self.tell(|| format!("the proxy {vm} on n{}: {answer:?}", index + 1));
        }
        if let Some(agent) = self.workers[index].agent_mut() {
            agent.answered(object, answer, now);
        }
    }

    /// Requests begin and end.
    pub(crate) fn requests(&mut self, index: usize) -> Checked {
        let running = self.workers[index].host.running();
        self.workers[index].front.break_off(&running);
        let proxies: Vec<VmId> =
            self.workers[index].front.proxies.keys().copied().filter(|vm| running.contains(vm)).collect();
        let Some(vm) = self.rng.pick(&proxies).copied() else { return Ok(()) };
        let is_begun = self.rng.once_in(2);
        let Some(proxy) = self.workers[index].front.proxies.get_mut(&vm) else { return Ok(()) };
        if !is_begun || proxy.in_flight.len() == IN_FLIGHT_MAX {
            let ended = self.rng.below(proxy.in_flight.len().max(1));
            if ended < proxy.in_flight.len() {
                proxy.in_flight.remove(ended);
            }
            return Ok(());
        }
        let backends: Vec<(Uid, Ipv4Addr)> =
            proxy.backends.iter().map(|(uid, address)| (*uid, *address)).collect();
        let Some((uid, address)) = self.rng.pick(&backends).copied() else { return Ok(()) };
        proxy.in_flight.push((uid, address));
        self.counts.add("request");
        self.check_reached(uid, address)
    }

    /// All requests end that are in flight from a host.
    pub(crate) fn requests_end(&mut self, index: usize) {
        self.workers[index].front.proxies.values_mut().for_each(|proxy| proxy.in_flight.clear());
    }

    /// Nobody else has the address that a request for `uid` goes to.
    fn check_reached(&self, uid: Uid, address: Ipv4Addr) -> Checked {
        let mut stranger = None;
        for worker in &self.workers {
            worker.host.each_running(|vm, assigned| {
                let has_it = assigned.nics.iter().any(|nic| nic.address == Some(address));
                if has_it && vm.uid() != uid {
                    stranger = Some(vm);
                }
            });
        }
        match stranger {
            Some(stranger) => {
                violated("balancer", format!("a request for VM {uid} at {address} reached VM {stranger}"))
            }
            None => Ok(()),
        }
    }

    /// A machine is ended because that is asked for, only when no proxy may send to it: or the time for that is over.
    pub(crate) fn check_stop(&mut self, index: usize, object: HostObject, step: &Step) -> Checked {
        let vm = VmId::new(object.uid);
        if !matches!(step, Step::Shutdown | Step::Kill) || !is_stopped_by_us(&self.workers[index], object) {
            return Ok(());
        }
        if !self.is_time_over(object.uid) {
            self.check_address_left(index, object, step)?;
        }
        let sends = self.workers.iter().find_map(|worker| {
            let running = worker.host.running();
            let mut proxies = worker.front.proxies.iter().filter(|(proxy, _)| running.contains(proxy));
            proxies.find(|(_, proxy)| proxy.may_reach(object.uid)).map(|(proxy, _)| *proxy)
        });
        let Some(proxy) = sends else { return Ok(()) };
        if self.is_time_over(object.uid) {
            self.counts.add("balancer: time was over");
            return Ok(());
        }
        let truth = self.oracle.truth();
        let vm_told = truth.object_of(object.uid).map(|object| told(truth, object));
        violated("balancer", format!("{step:?} of VM {vm}, which proxy {proxy} may send to: {vm_told:?}"))
    }

    /// Whether the time for requests to a VM that is to stop is over, by its load balancer or by the limit.
    fn is_time_over(&self, vm: Uid) -> bool {
        let truth = self.oracle.truth();
        let meta = truth.object_of(vm).and_then(|object| truth.asked(object)).map(|asked| &asked.meta);
        let Some(meta) = meta else { return true };
        let asked_at = meta.deleting_since.unwrap_or(meta.changed_at);
        let waited = self.now().duration_since(asked_at).as_millis();
        truth.objects_of(Kind::LoadBalancer).any(|balancer| {
            let overdue = choice(truth, balancer)
                .leaving
                .iter()
                .any(|leaving| leaving.member.uid == vm && leaving.overdue);
            let drain = match truth.asked(balancer).map(|asked| &asked.spec) {
                Some(Spec::LoadBalancer(spec)) => spec.drain.millis(),
                _ => 0,
            };
            overdue || waited >= i128::from(drain + UNDECIDED_MAX.millis())
        })
    }
}

impl Sim {
    fn take(&mut self, told: &Told) -> Result<(), String> {
        let topology: Topology =
            serde_json::from_str(told.document.reveal()).map_err(|error| error.to_string())?;
        topology.check().map_err(|problem| problem.to_string())?;
        if topology.routes.iter().any(|route| route.name == POISON) {
            return Err("poison".to_owned());
        }
        if topology.certificates.iter().any(|certificate| secrets::is_poison(certificate.key_pem.reveal())) {
            return Err("certificates[0]: poison".to_owned());
        }
        if topology.revision < self.revision {
            return Err(format!("revision {} is older than {}", topology.revision, self.revision));
        }
        self.revision = topology.revision;
        self.challenges.clone_from(&topology.challenges);
        let backends = topology.pools.iter().flat_map(|pool| &pool.backends);
        let v4 = |address| if let IpAddr::V4(address) = address { Some(address) } else { None };
        self.backends =
            backends.filter_map(|backend| Some((backend.uid.parse().ok()?, v4(backend.address)?))).collect();
        Ok(())
    }

    fn does(&self, now_millis: u64) -> Answer {
        let in_flight: BTreeSet<Uid> = self.in_flight.iter().map(|(uid, _)| *uid).collect();
        let uptime_ms = now_millis.saturating_sub(self.begun_millis);
        Answer::Does { revision: self.revision, in_flight: in_flight.into_iter().collect(), uptime_ms }
    }

    fn may_reach(&self, uid: Uid) -> bool {
        self.backends.contains_key(&uid) || self.in_flight.iter().any(|(found, _)| *found == uid)
    }
}

/// Whether the machine runs, and its end is what is asked of it.
fn is_stopped_by_us(worker: &Worker, object: HostObject) -> bool {
    let desk = worker.agent().and_then(|agent| agent.desk(&object));
    let Some((desk, saved)) = desk.and_then(|desk| Some((desk, desk.facts().saved.as_ref()?))) else {
        return false;
    };
    let Some(assigned) = desk.saved_vm() else { return false };
    let is_restart = saved.restarts_done < assigned.restarts_asked;
    let runs = worker.host.running().contains(&VmId::new(object.uid));
    runs && !desk.volatile().crash_counted && (assigned.wanted != WantedVm::Running || is_restart)
}

pub(crate) fn choice(view: &View, balancer: &ObjectRef) -> BalancerChoice {
    match view.decided(balancer).map(|decided| &decided.choice) {
        Some(Choice::LoadBalancer(choice)) => choice.clone(),
        _ => BalancerChoice::default(),
    }
}

/// Who is asked to be in a pool, whether it serves or not.
fn asked_for(view: &View, members: &Members) -> BTreeSet<Uid> {
    let vms: Vec<ObjectRef> = view.objects_of(Kind::Vm).cloned().collect();
    let is_meant = |vm: &ObjectRef| match members {
        Members::Group(group) => view.group_of(vm).is_some_and(|owner| owner.name == *group),
        Members::Labels(labels) => {
            let asked = view.asked(vm);
            asked.is_some_and(|asked| {
                labels.iter().all(|(key, value)| asked.meta.labels.get(key) == Some(value))
            })
        }
        Members::Vms(names) => names.contains(&vm.name),
    };
    let runs = |vm: &ObjectRef| {
        let asked = view.living(vm)?;
        let Spec::Vm(spec) = &asked.spec else { return None };
        let (uid, placement) = (asked.meta.uid, placement(view, vm)?);
        let observed = view.observed(placement.worker, HostObject { kind: Kind::Vm, uid });
        let Some(Observed::Vm(observed)) = observed.map(AsRef::as_ref) else { return None };
        let has_address =
            !observed.leases.is_empty() || placement.nics.iter().any(|nic| nic.address.is_some());
        let is_to_run = spec.running && asked.meta.restarts_asked <= observed.restarts_done;
        (is_to_run && has_address).then_some(uid)
    };
    vms.iter().filter(|vm| is_meant(vm)).filter_map(runs).collect()
}

/// No pool is emptied by health alone: judged by the store as it was before.
pub(crate) fn check_choice(key: &Key, write: &Write, before: &View, decision: &Transaction) -> Checked {
    let (Key::Decided(object), Write::Put(_, Record::Decided(decided))) = (key, write) else { return Ok(()) };
    let Choice::LoadBalancer(after) = &decided.choice else { return Ok(()) };
    let was = choice(before, object);
    // The end of a member may be asked for in the same batch.
    let before = &before.fork(decision.writes.values().cloned());
    for configuration in &after.configurations {
        let Some(old) = was.configuration(configuration.number) else { continue };
        for pool in &configuration.serving.pools {
            let had = old.pools.get(&pool.name).filter(|_| old.serving == configuration.serving);
            let is_empty = configuration.pools.get(&pool.name).is_none_or(Vec::is_empty);
            let stays = asked_for(before, &pool.members);
            let emptied = had.into_iter().flatten().find(|uid| is_empty && stays.contains(uid));
            if let Some(uid) = emptied {
                let who = before.object_of(*uid).map(|vm| told(before, vm));
                let what =
                    format!("{object} has emptied pool {} though VM {uid} is asked for: {who:?}", pool.name);
                return violated("balancer", what);
            }
        }
    }
    Ok(())
}

/// Whether the group is one of proxies that refuse what they are told, or cannot be told anything: then none of them serves.
pub(crate) fn are_refusing(view: &View, group: &ObjectRef) -> bool {
    let owner = view.asked(group).and_then(|asked| asked.meta.owner.as_ref());
    let Some(owner) = owner.filter(|owner| owner.object.kind == Kind::LoadBalancer) else { return false };
    let choice = choice(view, &owner.object);
    let accepted = choice.accepted.and_then(|number| choice.configuration(number));
    accepted.is_none_or(|accepted| is_poison(view, accepted))
}

fn is_poison(view: &View, configuration: &Configuration) -> bool {
    has_poison(&configuration.serving) || secrets::has_poison(view, configuration)
}

fn has_poison(serving: &Serving) -> bool {
    serving.routes.iter().any(|route| route.name == POISON)
}

/// When all is at rest each proxy has what is asked, with everybody who serves, and nobody is on the way out.
pub(crate) fn check_goal(view: &View, object: &ObjectRef, workers: &[Worker]) -> Checked {
    let Some(Spec::LoadBalancer(spec)) = view.living(object).map(|asked| &asked.spec) else { return Ok(()) };
    addresses::check_goal(view, object, spec, workers)?;
    let choice = choice(view, object);
    let accepted = choice.accepted.and_then(|number| choice.configuration(number));
    // What nobody has made cannot be shown.
    let can_be_shown = secrets::can_be_shown(view, &spec.serving.certificates);
    let Some(accepted) = accepted else {
        return if can_be_shown.is_none() {
            Ok(())
        } else {
            violated("balancer", format!("{object}: {}", told(view, object)))
        };
    };
    let is_poison = has_poison(&spec.serving) || can_be_shown != Some(true);
    let wrong =
        |what: &str| violated("balancer", format!("{object} {what}: {choice:?}, {}", told(view, object)));
    // A proxy that began anew meanwhile speaks against what it tries, for good.
    let is_judged = choice.rejected.as_ref().is_some_and(|rejected| rejected.again_at.is_none());
    // A proxy that does not run may begin with what is on its disk: until it says more, it is waited for.
    let runs = |proxy: &Proxy| workers.iter().any(|worker| worker.ready().contains(&VmId::new(proxy.uid)));
    let can_be_tried = choice.proxies.is_empty() || choice.proxies.iter().any(runs);
    let is_newest = accepted.certificates.iter().all(|shown| {
        let object = ObjectRef::new(Kind::Secret, shown.secret.clone());
        let newest = secret::choice(view, &object).and_then(|choice| choice.newest());
        newest.is_some_and(|newest| newest.number == shown.version)
    });
    if (accepted.serving != spec.serving || !is_newest) && !is_poison && !is_judged && can_be_tried {
        return wrong("does not do what is asked");
    }
    let all_run = choice.proxies.iter().all(runs);
    let refuses = self::is_poison(view, accepted);
    if choice.trial.is_some() || (all_run && !refuses && !choice.leaving.is_empty()) {
        return wrong("has something on its way");
    }
    for pool in &accepted.serving.pools {
        let asked = asked_for(view, &pool.members);
        let serving: BTreeSet<Uid> =
            asked.into_iter().filter(|uid| groups::is_up(view, *uid, |_| true)).collect();
        let found: BTreeSet<Uid> = accepted.pools.get(&pool.name).into_iter().flatten().copied().collect();
        if found != serving && !serving.is_empty() {
            return wrong(&format!("has not in its pool who serves, {serving:?}"));
        }
    }
    for proxy in choice.proxies.iter().filter(|_| !refuses) {
        let vm = VmId::new(proxy.uid);
        let Some(worker) = workers.iter().find(|worker| worker.id == proxy.worker) else { continue };
        let runs = worker.ready().contains(&vm);
        let holds = worker.front.revision(vm);
        if runs && holds != choice.revision {
            return wrong(&format!("has proxy {vm} at revision {holds}"));
        }
    }
    Ok(())
}
