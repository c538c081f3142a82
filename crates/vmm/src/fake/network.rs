//! Taps of a host in memory, who else is on its networks, and a DHCP server on each.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use lightbyte_api::assigned::{AssignedNic, VirtualAddress};
use lightbyte_api::observed::{Lease, Squatter};
use lightbyte_api::{MacAddress, VmId};

use super::{FakeHost, refuse};
use crate::driver::{DriverError, Network, TapState};

/// Taps of one VM.
pub(super) struct FakeTaps {
    pub(super) nics: Vec<AssignedNic>,
    probed: bool,
    /// What the DHCP server of every network has given.
    leases: Vec<Lease>,
    /// How often it has.
    leased: u8,
}

impl FakeHost {
    /// The taps of `vm`, as they were made last.
    #[must_use]
    pub fn taps(&self, vm: VmId) -> Vec<AssignedNic> {
        self.lock().taps.get(&vm).map(|taps| taps.nics.clone()).unwrap_or_default()
    }

    /// A DHCP server gives each card of `vm` that has no address another one than before; whether it has any such.
    pub fn lease(&self, vm: VmId) -> bool {
        let mut state = self.lock();
        let Some(taps) = state.taps.get_mut(&vm) else { return false };
        taps.leased = taps.leased.wrapping_add(1);
        let by_dhcp = (0..).zip(&taps.nics).filter(|(_, nic)| nic.address.is_none());
        let lease = |(nic, card): (u32, &AssignedNic)| {
            let [.., last] = card.mac.bytes();
            Lease { nic, address: Ipv4Addr::new(192, 168, taps.leased, last) }
        };
        taps.leases = by_dhcp.map(lease).collect();
        !taps.leases.is_empty()
    }

    /// What DHCP servers have given to `vm`.
    #[must_use]
    pub fn leases(&self, vm: VmId) -> Vec<Lease> {
        self.lock().taps.get(&vm).map(|taps| taps.leases.clone()).unwrap_or_default()
    }

    /// Machines that are none of ours, by the address that each answers for.
    pub fn set_squatters(&self, squatters: BTreeMap<Ipv4Addr, MacAddress>) {
        self.lock().squatters = squatters;
    }
}

/// What taps know of cards: of a virtual address nothing but the address.
fn as_taps(nics: &[AssignedNic]) -> Vec<AssignedNic> {
    let as_tap = |nic: &AssignedNic| {
        let address = nic.virtual_address.map(|has| VirtualAddress { turn: 0, leaves_within: None, ..has });
        AssignedNic { virtual_address: address, ..nic.clone() }
    };
    nics.iter().map(as_tap).collect()
}

impl Network for FakeHost {
    fn ensure(&self, vm: VmId, nics: &[AssignedNic]) -> Result<(), DriverError> {
        let mut state = self.change()?;
        if let Some(nic) = nics.iter().find(|nic| !state.bridges.contains(&nic.bridge)) {
            return refuse(format!("this host has no bridge `{}`", nic.bridge));
        }
        let before = state.taps.remove(&vm);
        let nics = as_taps(nics);
        let probed = before.as_ref().is_some_and(|taps| taps.probed && taps.nics == nics);
        let (leases, leased) = before.map(|taps| (taps.leases, taps.leased)).unwrap_or_default();
        state.taps.insert(vm, FakeTaps { nics, probed, leases, leased });
        Ok(())
    }

    fn remove(&self, vm: VmId) -> Result<(), DriverError> {
        let mut state = self.change()?;
        if state.vms.get(&vm).is_some_and(|found| found.running) {
            return refuse("the taps are in use");
        }
        state.taps.remove(&vm);
        Ok(())
    }

    fn probe(&self, vm: VmId, nics: &[AssignedNic]) -> Result<Vec<Squatter>, DriverError> {
        let mut state = self.change()?;
        let nics = &as_taps(nics);
        let squatters: Vec<Squatter> = (0..)
            .zip(nics)
            .filter_map(|(nic, card)| {
                let address = card.address?;
                Some(Squatter { nic, address, mac: *state.squatters.get(&address)? })
            })
            .collect();
        match state.taps.get_mut(&vm).filter(|taps| taps.nics == *nics) {
            Some(taps) => taps.probed = squatters.is_empty(),
            None => return refuse("the taps are not as they are assigned"),
        }
        Ok(squatters)
    }

    fn state(&self, vm: VmId, nics: &[AssignedNic]) -> Result<TapState, DriverError> {
        let state = self.lock();
        let Some(taps) = state.taps.get(&vm) else {
            let none = nics.is_empty();
            return Ok(TapState { as_assigned: none, probed: none, ..TapState::default() });
        };
        let as_assigned = taps.nics.starts_with(&as_taps(nics));
        let (probed, leases) = (as_assigned && taps.probed, taps.leases.clone());
        let virtual_address = taps.nics.first().and_then(|nic| nic.virtual_address);
        let virtual_address = virtual_address.map(|has| has.address);
        Ok(TapState { count: taps.nics.len(), as_assigned, probed, leases, virtual_address })
    }

    fn is_taken(&self, nics: &[AssignedNic]) -> Result<bool, DriverError> {
        let state = self.lock();
        let mut addresses = nics.iter().filter_map(|nic| nic.virtual_address);
        Ok(addresses.any(|has| state.squatters.contains_key(&has.address)))
    }

    fn announce(&self, nics: &[AssignedNic]) -> Result<(), DriverError> {
        let state = self.change()?;
        match nics.iter().find(|nic| !state.bridges.contains(&nic.bridge)) {
            Some(nic) => refuse(format!("this host has no bridge `{}`", nic.bridge)),
            None => Ok(()),
        }
    }

    fn list(&self) -> Result<Vec<VmId>, DriverError> {
        Ok(self.lock().taps.keys().copied().collect())
    }
}
