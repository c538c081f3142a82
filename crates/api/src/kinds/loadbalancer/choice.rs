//! What the controller of load balancers chose.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Serving;
use crate::assigned::{HostObject, VirtualAddress};
use crate::kinds::Kind;
use crate::name::Name;
use crate::topology::Challenge;
use crate::uid::{Uid, WorkerId};
use crate::units::Span;

/// All that proxies are told, and what is known of whom they may still send to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Choice {
    /// Raised whenever what any proxy is told changes.
    pub revision: u64,
    /// What proxies do: what all of them have, and what one of them tries. At most two, the older first.
    pub configurations: Vec<Configuration>,
    /// The number of the configuration that all proxies have, or are to have; none before the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accepted: Option<u64>,
    /// A newer one that one proxy tries before the others get it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trial: Option<Trial>,
    /// The last one that was tried and refused; what is asked now, unless it has changed since.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rejected: Option<Rejected>,
    /// What is answered to certification authorities, for the secrets that are named.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub challenges: Vec<Challenge>,
    /// Everybody that a configuration has in a pool.
    pub members: Vec<Member>,
    /// Everybody that was a member, and that a proxy may still send to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub leaving: Vec<Leaving>,
    /// Every proxy that may have been told something, until its VM is gone.
    pub proxies: Vec<Proxy>,
    /// Its virtual address, and who has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub virtual_address: Option<HeldAddress>,
}

/// A virtual address, and who has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldAddress {
    /// The address, which the load balancer has claimed on the network of its proxies.
    pub address: Ipv4Addr,
    /// The proxy that is to have it; nobody while it moves, and while no proxy can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<Uid>,
    /// See [`VirtualAddress::turn`](crate::assigned::VirtualAddress::turn).
    #[serde(default)]
    pub turn: u64,
    /// Since when the holder is to leave it, on the leader's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaving_since: Option<Timestamp>,
    /// The proxies that had it and may have it still: their workers have not said otherwise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub former: Vec<Uid>,
}

/// What proxies do, with those who are in each pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configuration {
    /// Its number, from 1.
    pub number: u64,
    /// What was asked.
    pub serving: Serving,
    /// The certificates that were asked for, as they were then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub certificates: Vec<ShownCertificate>,
    /// The members of each pool.
    pub pools: BTreeMap<String, Vec<Uid>>,
}

/// A version of the certificate of a secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownCertificate {
    /// The secret.
    pub secret: Name,
    /// Which of that name.
    pub uid: Uid,
    /// See [`Version::number`](crate::kinds::secret::Version::number).
    pub version: u64,
}

/// A configuration that one proxy tries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// Its number.
    pub number: u64,
    /// The VM of the proxy.
    pub proxy: Uid,
    /// How often the proxy's process had begun anew before; see `ObservedProxy::restarts`.
    pub restarts: u64,
    /// The first revision that tells the proxy so.
    pub revision: u64,
    /// When it began, on the leader's clock.
    pub since: Timestamp,
    /// When the proxy was first seen to do so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acknowledged_at: Option<Timestamp>,
}

/// A configuration that was tried and refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    /// What was asked.
    pub serving: Serving,
    /// With these certificates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub certificates: Vec<ShownCertificate>,
    /// Why, in words for people.
    pub because: String,
    /// When it is tried again, on the leader's clock; never while the same is asked where the proxy has judged it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub again_at: Option<Timestamp>,
}

/// A VM that requests go to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Which.
    pub uid: Uid,
    /// Where.
    pub address: Ipv4Addr,
    /// The network that it has the address of.
    pub network: Name,
}

/// A VM that requests went to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaving {
    /// Who, and where it was.
    #[serde(flatten)]
    pub member: Member,
    /// The first revision without it.
    pub revision: u64,
    /// When that was decided, on the leader's clock.
    pub since: Timestamp,
    /// The time for its requests is over: it may be stopped, whoever still sends to it. Its address stays its own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub overdue: bool,
}

/// A proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proxy {
    /// Its VM.
    pub uid: Uid,
    /// Where that is.
    pub worker: WorkerId,
    /// The first revision that it was told: it knows nothing of what was before.
    pub from: u64,
}

impl Proxy {
    /// It on its worker.
    #[must_use]
    pub const fn host_object(&self) -> HostObject {
        HostObject { kind: Kind::Vm, uid: self.uid }
    }
}

impl Choice {
    /// The configuration with this number.
    #[must_use]
    pub fn configuration(&self, number: u64) -> Option<&Configuration> {
        self.configurations.iter().find(|configuration| configuration.number == number)
    }

    /// The configuration that a proxy is to have; none before there is one.
    #[must_use]
    pub fn configuration_of(&self, proxy: Uid) -> Option<&Configuration> {
        let tried = self.trial.as_ref().filter(|trial| trial.proxy == proxy).map(|trial| trial.number);
        self.configuration(tried.or(self.accepted)?)
    }

    /// The virtual address as the card of this proxy is to have it, which may take so long to leave it.
    #[must_use]
    pub fn virtual_address_of(&self, proxy: Uid, drain: Span) -> Option<VirtualAddress> {
        let held = self.virtual_address.as_ref().filter(|held| held.holder == Some(proxy))?;
        let leaves_within = held.leaving_since.map(|_| drain);
        Some(VirtualAddress { address: held.address, turn: held.turn, leaves_within })
    }

    /// Every certificate that a proxy may be told of.
    pub fn shown(&self) -> impl Iterator<Item = &ShownCertificate> {
        self.configurations.iter().flat_map(|configuration| &configuration.certificates)
    }

    /// The proxy whose VM this is.
    #[must_use]
    pub fn proxy(&self, vm: Uid) -> Option<&Proxy> {
        self.proxies.iter().find(|proxy| proxy.uid == vm)
    }

    /// Everybody that a proxy may send to, by this choice or an earlier one.
    pub fn known(&self) -> impl Iterator<Item = Uid> {
        let members = self.members.iter().map(|member| member.uid);
        members.chain(self.leaving.iter().map(|leaving| leaving.member.uid))
    }

    /// Whether a proxy may send to this address for the VM, by this choice or an earlier one.
    #[must_use]
    pub fn knows(&self, vm: Uid, address: Ipv4Addr) -> bool {
        let members = self.members.iter().chain(self.leaving.iter().map(|leaving| &leaving.member));
        members.into_iter().any(|member| member.uid == vm && member.address == address)
    }
}
