//! A **load balancer**: listeners, routes and the backends that requests go to, served by proxies in VMs of their own.

mod choice;
mod compose;
mod read;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, json};

pub use self::choice::{
    Choice, Configuration, HeldAddress, Leaving, Member, Proxy, Rejected, ShownCertificate, Trial,
};
use super::{Field, SpecRules, vm};
use crate::address::Cidr;
use crate::kinds::Kind;
use crate::name::Name;
use crate::object::ObjectRef;
use crate::reader::Reader;
use crate::topology::{BackendProtocol, Balance, HeaderEdits, PathMatch, Protocol, RateLimit, Redirect, Target};
use crate::units::{ByteSize, Span};

/// How many proxies there are when nothing is said: one may go.
const PROXIES_DEFAULT: u64 = 2;
/// The most proxies: each is told of every backend that comes or goes.
pub const PROXIES_MAX: u64 = 32;
/// The image of proxies.
pub const PROXY_IMAGE: &str = "proxy";
/// What a proxy group is called after its load balancer.
pub const PROXY_SUFFIX: &str = "proxy";
/// The most listeners.
pub const LISTENERS_MAX: usize = 16;
/// The most routes: what is asked, what proxies have and what one of them tries lie in the store beside each other.
pub const ROUTES_MAX: usize = 200;
/// The most certificates: those of each load balancer are read whenever what its proxies are told is composed.
pub const CERTIFICATES_MAX: usize = 16;
/// The most pools.
pub const POOLS_MAX: usize = 64;
/// The most VMs that a pool names one by one.
pub const VMS_MAX: usize = 256;
/// The most bytes of all that proxies are told but for backends.
pub const SERVING_BYTES_MAX: usize = 128 << 10;
/// The longest time that requests to a backend that goes are waited for.
pub const DRAIN_MAX: Span = Span::from_secs(3_600);

/// What is asked of a load balancer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// The VMs that carry the requests.
    #[serde(default)]
    pub proxies: Proxies,
    /// What they do.
    #[serde(flatten)]
    pub serving: Serving,
    /// How long a backend that goes may take to finish its requests.
    #[serde(default = "drain_default")]
    pub drain: Span,
    /// An address that always leads to one of the proxies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_address: Option<WishedAddress>,
}

/// Which virtual address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WishedAddress {
    /// Any that is free.
    Auto,
    /// This one.
    Only(Ipv4Addr),
}

/// The word for any that is free.
const AUTO: &str = "auto";

impl Serialize for WishedAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            WishedAddress::Auto => serializer.serialize_str(AUTO),
            WishedAddress::Only(address) => address.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for WishedAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<WishedAddress, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == AUTO {
            return Ok(WishedAddress::Auto);
        }
        let wrong = |_| D::Error::custom(format!("`{text}` is neither `{AUTO}` nor an IPv4 address such as 10.77.0.40"));
        text.parse().map(WishedAddress::Only).map_err(wrong)
    }
}

/// The VMs that carry the requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Proxies {
    /// How many.
    pub replicas: u64,
    /// Virtual CPUs of each.
    pub cpus: u64,
    /// Memory of each.
    pub memory: ByteSize,
    /// Their image.
    pub image: Name,
    /// The network on which they listen and reach backends.
    pub network: Name,
}

/// What proxies do: all of a specification that they are told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Serving {
    /// Where connections are taken.
    pub listeners: Vec<Listener>,
    /// The secrets whose certificates listeners with `https` show: the first that has the name that a client asks for, or the first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub certificates: Vec<Name>,
    /// Which request goes where; everything to the first pool when left out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// Backends.
    pub pools: Vec<Pool>,
    /// Peers whose word about the client is believed, and who alone may connect to listeners with a PROXY header.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub trusted_peers: Vec<Cidr>,
}

/// A port of every proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// Its number.
    pub port: u16,
    /// What is spoken.
    #[serde(default = "http", skip_serializing_if = "is_http")]
    pub protocol: Protocol,
    /// Whether connections begin with a PROXY header.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub proxy_protocol: bool,
    /// Answer each request with a redirect to `https` at this port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redirect_to_https: Option<u16>,
}

/// Which requests, and what becomes of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Names it in metrics and logs.
    pub name: String,
    /// Exact names or `*.domain`; every host when left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// Which paths.
    #[serde(default)]
    pub path: PathMatch,
    /// Which methods; all when left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// What stands in the place of the matched prefix when the request goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewrite_prefix: Option<String>,
    /// Done to requests before they go on.
    #[serde(default, skip_serializing_if = "is_default")]
    pub request_headers: HeaderEdits,
    /// Done to answers before they go back.
    #[serde(default, skip_serializing_if = "is_default")]
    pub response_headers: HeaderEdits,
    /// Where requests go, by weight.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<Target>,
    /// How long things may take.
    #[serde(default, skip_serializing_if = "is_default")]
    pub timeouts: Timeouts,
    /// Tries of one request, the first included.
    #[serde(default = "tries_default")]
    pub tries: u32,
    /// Larger bodies are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_max: Option<ByteSize>,
    /// Keep a client with its backend by a cookie.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sticky: Option<Sticky>,
    /// More requests than this are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,
    /// Answer with a redirect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redirect: Option<Redirect>,
}

/// How long things may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Timeouts {
    /// To connect to a backend.
    pub connect: Span,
    /// Between two reads from a backend.
    pub read: Span,
    /// Between two writes to a backend.
    pub write: Span,
}

/// A cookie that keeps a client with its backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sticky {
    /// Its name.
    pub cookie: String,
    /// How long browsers keep it; till they end without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age: Option<Span>,
}

/// Backends that do the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// Routes name it so.
    pub name: String,
    /// Who they are.
    #[serde(flatten)]
    pub members: Members,
    /// Where each listens.
    pub port: u16,
    /// How one is chosen.
    #[serde(default, skip_serializing_if = "is_default")]
    pub balance: Balance,
    /// What they speak.
    #[serde(default, skip_serializing_if = "is_default")]
    pub protocol: BackendProtocol,
    /// How proxies try their health.
    #[serde(default)]
    pub check: Check,
    /// When one that fails requests gets none for a while.
    #[serde(default)]
    pub ejection: Ejection,
}

/// Who is in a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Members {
    /// The members of this scale group.
    Group(Name),
    /// The VMs that have all of these labels.
    Labels(BTreeMap<String, String>),
    /// These VMs.
    Vms(Vec<Name>),
}

/// How proxies try the health of backends, besides what workers say of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Check {
    /// `GET` of this path is answered with 200 to 399; without, a connection is taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    /// From one try to the next.
    pub every: Span,
    /// A try that takes longer has failed.
    pub timeout: Span,
    /// Good tries in a row until it is healthy again.
    pub healthy_after: u32,
    /// Failed tries in a row until it is not.
    pub unhealthy_after: u32,
}

/// When a backend that fails requests gets none for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ejection {
    /// Requests in a row that failed.
    pub failures: u32,
    /// For how long the first time; it doubles with each further one in a row.
    pub first: Span,
    /// The longest.
    pub longest: Span,
    /// How many of a hundred backends at once.
    pub percent_max: u8,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

const fn http() -> Protocol {
    Protocol::Http
}

fn is_http(protocol: &Protocol) -> bool {
    *protocol == http()
}

const fn tries_default() -> u32 {
    3
}

const fn drain_default() -> Span {
    Span::from_secs(30)
}

impl Default for Proxies {
    fn default() -> Proxies {
        // Both are names.
        let name = |text| Name::new(text).unwrap_or_else(|_| unreachable!("a name"));
        Proxies {
            replicas: PROXIES_DEFAULT,
            cpus: 1,
            memory: ByteSize::from_mib(128),
            image: name(PROXY_IMAGE),
            network: name(vm::DEFAULT_NETWORK),
        }
    }
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts { connect: Span::from_secs(1), read: Span::from_secs(60), write: Span::from_secs(60) }
    }
}

impl Default for Check {
    fn default() -> Check {
        Check {
            http: None,
            every: Span::from_secs(2),
            timeout: Span::from_secs(1),
            healthy_after: 1,
            unhealthy_after: 2,
        }
    }
}

impl Default for Ejection {
    fn default() -> Ejection {
        Ejection { failures: 3, first: Span::from_secs(1), longest: Span::from_secs(30), percent_max: 50 }
    }
}

impl SpecRules for Spec {
    const ABOUT: &'static str = "proxies in VMs that spread requests over backends";

    const FIELDS: &'static [Field] = read::FIELDS;

    fn shortest() -> Option<Value> {
        Some(json!({ "listeners": [{ "port": 80 }], "pools": [{ "name": "web", "group": "web", "port": 80 }] }))
    }

    fn read(fields: &mut Reader<'_>) -> Option<Spec> {
        read::spec(fields)
    }

    fn references(&self) -> Vec<ObjectRef> {
        let groups = self.serving.pools.iter().flat_map(|pool| match &pool.members {
            Members::Group(group) => vec![ObjectRef::new(Kind::ScaleGroup, group.clone())],
            Members::Vms(vms) => vms.iter().map(|vm| ObjectRef::new(Kind::Vm, vm.clone())).collect(),
            Members::Labels(_) => Vec::new(),
        });
        // Others only run there.
        let network = self.virtual_address.map(|_| ObjectRef::new(Kind::Network, self.proxies.network.clone()));
        let certificates = self.serving.certificates.iter().map(|name| ObjectRef::new(Kind::Secret, name.clone()));
        groups.chain(network).chain(certificates).collect()
    }

    fn frozen_field(&self, next: &Spec) -> Option<(&'static str, &'static str)> {
        let reason = "its proxies are members of a group of their own, which is made with it; make another load balancer";
        (self.proxies.network != next.proxies.network).then_some(("proxies.network", reason))
    }
}
