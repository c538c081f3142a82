//! The virtual address: claimed once, and at one proxy at a time.
//!
//! ```text
//!   claimed ──> given to a proxy that serves ──> its worker lets it through, its guest has it, the network is told
//!                  │ its end is asked for: it leaves first, so that nothing that is open breaks
//!                  │ it does not serve: at once;  its worker is away: after `TAKEN_OVER_AFTER`
//!                  v
//!               taken from it ──> its worker says that nothing of it gets through ──> given to the next
//! ```
//!
//! Nobody is given it while somebody may have it, but for whom a worker that is away cannot be asked: it keeps the
//! address for as long as nobody on its network says otherwise (`agent/address.rs`).

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use lightbyte_api::assigned::Assigned;
use lightbyte_api::kinds::loadbalancer::{Choice as BalancerChoice, HeldAddress, Proxy, WishedAddress};
use lightbyte_api::observed::VmPhase;
use lightbyte_api::records::AddressClaim;
use lightbyte_api::{Key, Kind, ObjectRef, Span, Spec, Uid, WaitingOn};

use super::{Balancer, look_again, observed};
use crate::planner::network::{free_address, unavailable};
use crate::planner::{Plan, STALE_PAUSE, since, worker};
use crate::transaction::Write;
use crate::view::View;

/// How long a worker must have been away until what it holds is given to another.
pub const TAKEN_OVER_AFTER: Span = Span::from_secs(10);

impl Balancer<'_> {
    /// Keeps the virtual address where it serves.
    pub(super) fn keep_address(&self, choice: &mut BalancerChoice, plan: &mut Plan) {
        let Some(mut held) = choice.virtual_address.take().or_else(|| self.claim_address(plan)) else { return };
        self.forget_former(&mut held, choice, plan);
        let is_wished = self.spec.virtual_address.is_some_and(|wished| match wished {
            WishedAddress::Auto => true,
            WishedAddress::Only(address) => address == held.address,
        });
        if is_wished {
            self.judge_holder(&mut held, choice, plan);
            self.give(&mut held, choice, plan);
        } else {
            give_up(&mut held);
            self.forget_former(&mut held, choice, plan);
            let key = self.claim_key(&held);
            if self.view.unreadable(&key).is_some() {
                // It may be its own.
                plan.waiting_on.push(WaitingOn::Unreadable { key: key.to_string() });
            } else if held.former.is_empty() {
                plan.writes.extend(self.free_claim(&held));
                return;
            }
        }
        let former = held.former.first().filter(|_| held.holder.is_none()).and_then(|uid| self.view.object_of(*uid));
        plan.waiting_on.extend(former.map(|proxy| WaitingOn::AddressLeft { proxy: proxy.clone() }));
        choice.virtual_address = Some(held);
    }

    /// Takes back the claim, if it is this load balancer's.
    pub(super) fn free_claim(&self, held: &HeldAddress) -> Option<Write> {
        let claim = self.view.address_claim(&self.spec.proxies.network, held.address)?;
        (claim.owner == self.asked.meta.uid).then(|| Write::Delete(self.claim_key(held)))
    }

    /// Where its claim is.
    pub(super) fn claim_key(&self, held: &HeldAddress) -> Key {
        Key::Address(self.spec.proxies.network.clone(), held.address)
    }

    fn claim_address(&self, plan: &mut Plan) -> Option<HeldAddress> {
        let wished = self.spec.virtual_address.filter(|_| self.asked.meta.deleting_since.is_none())?;
        let name = &self.spec.proxies.network;
        let network = ObjectRef::new(Kind::Network, name.clone());
        // That it is missing is told with all else that is.
        let Some(Spec::Network(spec)) = self.view.living(&network).map(|asked| &asked.spec) else { return None };
        if spec.pool().is_none() {
            let field = "virtual_address".to_owned();
            plan.waiting_on.push(WaitingOn::NeedsPool { network: name.clone(), field });
            return None;
        }
        let only = match wished {
            WishedAddress::Auto => None,
            WishedAddress::Only(address) => Some(address),
        };
        let Some(address) = free_address(self.view, name, spec, only, &BTreeSet::new()) else {
            plan.waiting_on.push(unavailable(self.view, name, only));
            return None;
        };
        let owner = self.asked.meta.uid;
        let claim = AddressClaim { owner, object: self.object.clone(), squatted: None };
        plan.writes.push(Write::put(Key::Address(name.clone(), address), claim));
        plan.rests_on.push(Key::Asked(network));
        Some(HeldAddress { address, holder: None, turn: 0, leaving_since: None, former: Vec::new() })
    }

    /// Forgets those that have given it up.
    fn forget_former(&self, held: &mut HeldAddress, choice: &BalancerChoice, plan: &mut Plan) {
        let (kept, gone) = std::mem::take(&mut held.former).into_iter().partition::<Vec<Uid>, _>(|uid| {
            choice.proxy(*uid).is_some_and(|proxy| may_have(self.view, proxy, held.address))
        });
        held.former = kept;
        if held.holder.is_some() && !gone.is_empty() {
            // Some may have heard of it last.
            held.turn += 1;
        }
        let gone = gone.iter().filter_map(|uid| choice.proxy(*uid));
        plan.rests_on.extend(gone.flat_map(|proxy| keys_of(self.view, proxy)));
    }

    /// Takes the address from a proxy that cannot have it any more, if another can.
    fn judge_holder(&self, held: &mut HeldAddress, choice: &BalancerChoice, plan: &mut Plan) {
        let Some(holder) = held.holder else { return };
        let Some(proxy) = choice.proxy(holder) else {
            // It is no more.
            (held.holder, held.leaving_since) = (None, None);
            return;
        };
        let observed = observed(self.view, proxy);
        if observed.is_some_and(|observed| observed.address_yielded >= held.turn) {
            // It found somebody else with it while it was cut off, and has it again in a later turn only.
            give_up(held);
            return;
        }
        if self.serves(proxy) && self.stays_up(proxy) {
            held.leaving_since = None;
            return;
        }
        if self.successor(held, choice).is_none() {
            if !self.stays_up(proxy) {
                give_up(held);
            }
            return;
        }
        plan.rests_on.extend(keys_of(self.view, proxy));
        if self.is_away(proxy) {
            if self.is_given_up(proxy, plan) {
                give_up(held);
            }
        } else if self.serves(proxy) {
            let leaving_since = *held.leaving_since.get_or_insert(self.inputs.now);
            let has_left = observed.and_then(|observed| observed.virtual_address);
            let left = self.spec.drain.millis().saturating_sub(since(leaving_since, self.inputs.now).millis());
            if left == 0 || has_left.is_some_and(|has| has.address == held.address && has.left) {
                give_up(held);
            } else {
                look_again(plan, Span::from_millis(left));
            }
        } else {
            give_up(held);
        }
    }

    /// Gives it to a proxy, once nobody else may have it.
    fn give(&self, held: &mut HeldAddress, choice: &BalancerChoice, plan: &mut Plan) {
        if held.holder.is_some() {
            return;
        }
        let waits = held.former.iter().any(|former| {
            choice.proxy(*former).is_none_or(|proxy| !self.is_away(proxy) || !self.is_given_up(proxy, plan))
        });
        let Some(successor) = self.successor(held, choice).filter(|_| !waits) else { return };
        held.holder = Some(successor.uid);
        held.turn += 1;
        plan.rests_on.extend(keys_of(self.view, &successor));
    }

    /// The proxy that is to have it next: the newest, which an update of them goes last.
    fn successor(&self, held: &HeldAddress, choice: &BalancerChoice) -> Option<Proxy> {
        let is_other = |proxy: &&Proxy| held.holder != Some(proxy.uid) && !held.former.contains(&proxy.uid);
        let is_good = |proxy: &&Proxy| self.is_well(proxy) && self.stays_up(proxy);
        choice.proxies.iter().rev().filter(is_other).find(is_good).copied()
    }

    /// Whether it does as some topology says, as far as its worker says, which is there; and answers, if it has the address.
    /// Whatever else hinders it breaks nothing that is open to it.
    fn serves(&self, proxy: &Proxy) -> bool {
        !self.is_away(proxy)
            && observed(self.view, proxy).is_some_and(|observed| {
                let is_told = observed.proxy.as_ref().is_some_and(|proxy| proxy.revision > 0);
                let is_silent = observed.virtual_address.is_some_and(|has| has.silent);
                observed.phase == VmPhase::Running && is_told && !is_silent
            })
    }

    /// Whether nothing at all is known against it.
    fn is_well(&self, proxy: &Proxy) -> bool {
        self.serves(proxy) && observed(self.view, proxy).is_some_and(|observed| observed.problem.is_none())
    }

    /// Whether neither its end nor a restart is asked for.
    fn stays_up(&self, proxy: &Proxy) -> bool {
        let asked = self.view.object_of(proxy.uid).and_then(|object| self.view.living(object));
        let restarts_done = observed(self.view, proxy).map_or(0, |observed| observed.restarts_done);
        asked.is_some_and(|asked| match &asked.spec {
            Spec::Vm(spec) => spec.running && asked.meta.restarts_asked <= restarts_done,
            _ => false,
        })
    }

    /// Whether the worker of a proxy, which is away, has been so for so long that nobody waits for it.
    fn is_given_up(&self, proxy: &Proxy, plan: &mut Plan) -> bool {
        let Some(object) = self.view.object_of(proxy.worker.uid()) else { return false };
        let Some(away_since) = worker::choice(self.view, object).away_since else { return false };
        plan.rests_on.extend([Key::Alive(proxy.worker), Key::Decided(object.clone())]);
        let left = TAKEN_OVER_AFTER.millis().saturating_sub(since(away_since, self.inputs.now).millis());
        let is_over = left == 0 && self.inputs.view_is_fresh();
        if !is_over {
            look_again(plan, Span::from_millis(left).max(STALE_PAUSE));
        }
        is_over
    }
}

/// Takes it from its holder, who may have it until its worker says otherwise.
fn give_up(held: &mut HeldAddress) {
    held.leaving_since = None;
    held.former.extend(held.holder.take());
}

/// Whether a proxy may send from the address: it is assigned to it, was and its worker does not know better yet, or its worker
/// says that it does.
fn may_have(view: &View, proxy: &Proxy, address: Ipv4Addr) -> bool {
    let host_object = proxy.host_object();
    let keys = [Key::Assigned(proxy.worker, host_object), Key::Observed(proxy.worker, host_object)];
    if keys.iter().any(|key| view.unreadable(key).is_some()) {
        return true;
    }
    let observed = observed(view, proxy);
    let is_let = observed.and_then(|observed| observed.virtual_address).is_some_and(|has| has.address == address);
    let Some(Assigned::Vm(assigned)) = view.assigned(proxy.worker, host_object).map(AsRef::as_ref) else {
        return is_let;
    };
    let mut cards = assigned.nics.iter().filter_map(|nic| nic.virtual_address);
    let is_behind = observed.is_some_and(|observed| observed.sequence < assigned.sequence);
    is_let || is_behind || cards.any(|has| has.address == address)
}

/// What is known of a proxy and of what it does.
fn keys_of(view: &View, proxy: &Proxy) -> impl Iterator<Item = Key> + use<> {
    let (worker, host_object) = (proxy.worker, proxy.host_object());
    let of_object = view.object_of(proxy.uid).cloned();
    let of_object = of_object.into_iter().flat_map(|object| [Key::Asked(object.clone()), Key::Decided(object)]);
    of_object.chain([Key::Assigned(worker, host_object), Key::Observed(worker, host_object)])
}
