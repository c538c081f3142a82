//! Which VMs have which labels, and whose firewall or placement names them: whom a VM that comes or goes concerns, and who a rule is
//! about, without a look at all VMs.

use std::collections::BTreeMap;

use imbl::OrdSet;
use lightbyte_api::object::{Asked, ObjectRef};
use lightbyte_api::{Kind, Name, Spec};

/// A key and its value.
type Label = (String, String);

/// Both ways. A selector is filed under its first label: a VM that has all of them has that one.
#[derive(Clone, Default, PartialEq)]
pub(crate) struct Labels {
    having: OrdSet<(Label, Name)>,
    naming: OrdSet<(Label, Name)>,
}

impl Labels {
    /// The object is asked so.
    pub(crate) fn add(&mut self, object: &ObjectRef, asked: &Asked) {
        for label in having(object, asked) {
            self.having.insert((label, object.name.clone()));
        }
        for label in naming(asked) {
            self.naming.insert((label, object.name.clone()));
        }
    }

    /// The object is asked so no more.
    pub(crate) fn remove(&mut self, object: &ObjectRef, asked: &Asked) {
        for label in having(object, asked) {
            self.having.remove(&(label, object.name.clone()));
        }
        for label in naming(asked) {
            self.naming.remove(&(label, object.name.clone()));
        }
    }

    /// The VMs that have the first of `labels`, in order of name.
    pub(crate) fn candidates(&self, labels: &BTreeMap<String, String>) -> impl Iterator<Item = ObjectRef> {
        let first = labels.iter().next().map(|(key, value)| (key.clone(), value.clone()));
        first.into_iter().flat_map(|label| named(&self.having, &label)).map(vm)
    }

    /// The VMs whose firewall or placement may name a VM with `labels`.
    pub(crate) fn watchers(&self, labels: &BTreeMap<String, String>) -> impl Iterator<Item = ObjectRef> {
        let labels = labels.iter().map(|(key, value)| (key.clone(), value.clone()));
        labels.flat_map(|label| named(&self.naming, &label)).map(vm)
    }
}

fn having(object: &ObjectRef, asked: &Asked) -> Vec<Label> {
    let labels = asked.meta.labels.iter().map(|(key, value)| (key.clone(), value.clone()));
    if object.kind == Kind::Vm { labels.collect() } else { Vec::new() }
}

fn naming(asked: &Asked) -> Vec<Label> {
    let Spec::Vm(spec) = &asked.spec else { return Vec::new() };
    let selectors = spec.firewall.iter().flat_map(lightbyte_api::firewall::Firewall::selectors);
    let first = selectors.chain(spec.placement.others()).filter_map(|labels| labels.iter().next());
    first.map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn named(index: &OrdSet<(Label, Name)>, label: &Label) -> Vec<Name> {
    let from = (label.clone(), crate::view::first_name());
    index.range(from..).take_while(|(found, _)| found == label).map(|(_, name)| name.clone()).collect()
}

fn vm(name: Name) -> ObjectRef {
    ObjectRef::new(Kind::Vm, name)
}
