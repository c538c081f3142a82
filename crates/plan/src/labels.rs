//! Which VMs have which labels, and whose firewall, placement or pool names them: whom a VM that comes or goes concerns, and who a rule
//! is about, without a look at all VMs.

use std::collections::BTreeMap;

use imbl::OrdSet;
use lightbyte_api::kinds::loadbalancer::Members;
use lightbyte_api::object::{Asked, ObjectRef};
use lightbyte_api::{Kind, Name, Spec};

use crate::view::first_name;

/// A key and its value.
type Label = (String, String);

/// Both ways. A selector is filed under its first label: a VM that has all of them has that one.
#[derive(Clone, Default, PartialEq)]
pub(crate) struct Labels {
    having: OrdSet<(Label, Name)>,
    naming: OrdSet<(Label, ObjectRef)>,
}

impl Labels {
    /// The object is asked so.
    pub(crate) fn add(&mut self, object: &ObjectRef, asked: &Asked) {
        for label in having(object, asked) {
            self.having.insert((label, object.name.clone()));
        }
        for label in naming(asked) {
            self.naming.insert((label, object.clone()));
        }
    }

    /// The object is asked so no more.
    pub(crate) fn remove(&mut self, object: &ObjectRef, asked: &Asked) {
        for label in having(object, asked) {
            self.having.remove(&(label, object.name.clone()));
        }
        for label in naming(asked) {
            self.naming.remove(&(label, object.clone()));
        }
    }

    /// The VMs that have the first of `labels`, in order of name.
    pub(crate) fn candidates(&self, labels: &BTreeMap<String, String>) -> impl Iterator<Item = ObjectRef> {
        let first = labels.iter().next().map(|(key, value)| (key.clone(), value.clone()));
        first.into_iter().flat_map(|label| named(&self.having, &label, &first_name())).map(vm)
    }

    /// The VMs whose firewall or placement, and the load balancers whose pools, may name a VM with `labels`.
    pub(crate) fn watchers(&self, labels: &BTreeMap<String, String>) -> impl Iterator<Item = ObjectRef> {
        let labels = labels.iter().map(|(key, value)| (key.clone(), value.clone()));
        let first = ObjectRef::new(Kind::ALL[0], first_name());
        labels.flat_map(move |label| named(&self.naming, &label, &first))
    }
}

fn having(object: &ObjectRef, asked: &Asked) -> Vec<Label> {
    let labels = asked.meta.labels.iter().map(|(key, value)| (key.clone(), value.clone()));
    if object.kind == Kind::Vm { labels.collect() } else { Vec::new() }
}

fn naming(asked: &Asked) -> Vec<Label> {
    let selectors: Vec<&BTreeMap<String, String>> = match &asked.spec {
        Spec::Vm(spec) => {
            let sources = spec.firewall.iter().flat_map(lightbyte_api::firewall::Firewall::selectors);
            sources.chain(spec.placement.others()).collect()
        }
        Spec::LoadBalancer(spec) => {
            let members = spec.serving.pools.iter().map(|pool| &pool.members);
            members
                .filter_map(|members| if let Members::Labels(labels) = members { Some(labels) } else { None })
                .collect()
        }
        _ => Vec::new(),
    };
    let first = selectors.into_iter().filter_map(|labels| labels.iter().next());
    first.map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn named<T: Ord + Clone>(index: &OrdSet<(Label, T)>, label: &Label, first: &T) -> Vec<T> {
    let from = (label.clone(), first.clone());
    index.range(from..).take_while(|(found, _)| found == label).map(|(_, who)| who.clone()).collect()
}

fn vm(name: Name) -> ObjectRef {
    ObjectRef::new(Kind::Vm, name)
}
