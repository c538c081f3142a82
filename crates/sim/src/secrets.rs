//! Secrets: certificates that load balancers show, and what must hold of the versions that are kept of them.

use std::collections::{BTreeMap, BTreeSet};

use lightbyte_api::kinds::loadbalancer::{Choice, Configuration};
use lightbyte_api::kinds::secret::{Pair, PrivateKey, Spec as SecretSpec};
use lightbyte_api::{Key, Kind, Manifest, Name, ObjectRef, Spec};
use lightbyte_plan::View;
use lightbyte_plan::fronts::choice;
use lightbyte_plan::planner::secret;
use lightbyte_plan::request::{self, Context, Outcome, Refusal};
use lightbyte_plan::status;

use crate::cluster::{Checked, Cluster};
use crate::oracle::{told, violated};
use crate::rng::Rng;
use crate::user::name;

/// A proxy refuses whatever has a certificate with this key.
const POISON: &str = "sealed:poison";
/// The secrets that load balancers name.
const SECRETS: [&str; 2] = ["shop", "wiki"];

/// A certificate, and the state that it is in for as long as a simulation lasts.
pub(crate) const CHAINS: [(&str, &str); 4] = [
    (include_str!("../certificates/lasting.pem"), "ready"),
    (include_str!("../certificates/other.pem"), "ready"),
    (include_str!("../certificates/expiring.pem"), "expiring"),
    (include_str!("../certificates/expired.pem"), "expired"),
];

impl Cluster {
    /// Somebody asks something of a secret.
    pub(crate) fn secret_user(
        &mut self,
        view: &View,
        context: &Context,
    ) -> (&'static str, ObjectRef, Result<Outcome, Refusal>) {
        let object = ObjectRef::new(Kind::Secret, name(SECRETS[self.rng.below(SECRETS.len())]));
        if self.rng.once_in(6) {
            return ("delete", object.clone(), request::delete(view, &object, context));
        }
        let spec = if self.rng.once_in(3) {
            SecretSpec::Ordered { acme: self.some_acme() }
        } else {
            let key = PrivateKey::Sealed(some_key(&mut self.rng).to_owned());
            SecretSpec::Given(Pair { chain: CHAINS[self.rng.below(CHAINS.len())].0.to_owned(), key })
        };
        let manifest =
            Manifest { name: object.name.clone(), labels: BTreeMap::new(), spec: Spec::Secret(spec) };
        ("change", object, request::apply(view, &manifest, context))
    }

    /// Which certificates a load balancer is to show.
    pub(crate) fn some_certificates(&mut self) -> Vec<Name> {
        match self.rng.below(3) {
            0 => vec![name(SECRETS[0])],
            1 if self.rng.once_in(2) => SECRETS.map(name).into(),
            _ => Vec::new(),
        }
    }
}

/// A key that proxies take, or sometimes one that they do not.
pub(crate) fn some_key(rng: &mut Rng) -> &'static str {
    if rng.once_in(5) { POISON } else { "sealed:good" }
}

/// Whether a proxy refuses a certificate with this key.
pub(crate) fn is_poison(key: &str) -> bool {
    key == POISON
}

/// Whether proxies refuse a configuration for one of its certificates.
pub(crate) fn has_poison(view: &View, configuration: &Configuration) -> bool {
    configuration.certificates.iter().any(|shown| {
        let object = ObjectRef::new(Kind::Secret, shown.secret.clone());
        let version = secret::version(view, &object, shown.uid, shown.version);
        version.is_some_and(|version| version.pair.key == PrivateKey::Sealed(POISON.to_owned()))
    })
}

/// Whether the newest certificates of these secrets can be shown to somebody; nothing while one of them is not there.
pub(crate) fn can_be_shown(view: &View, secrets: &[Name]) -> Option<bool> {
    let good = |name: &Name| {
        let object = ObjectRef::new(Kind::Secret, name.clone());
        let asked = view.living(&object)?;
        let newest = secret::choice(view, &object).and_then(|choice| choice.newest());
        // What is yet to come is left out.
        let is_left_out =
            newest.is_none() && matches!(&asked.spec, Spec::Secret(spec) if spec.ordered().is_some());
        if is_left_out {
            return Some(true);
        }
        let newest = newest?;
        Some(newest.pair.key != PrivateKey::Sealed(POISON.to_owned()))
    };
    let good: Vec<bool> = secrets.iter().map(good).collect::<Option<_>>()?;
    Some(good.into_iter().all(|good| good))
}

/// At every moment: what a load balancer shows is there, so that its proxies can be told of everything else.
pub(crate) fn check(view: &View) -> Checked {
    for balancer in view.objects_of(Kind::LoadBalancer) {
        for shown in choice(view, balancer).into_iter().flat_map(Choice::shown) {
            let object = ObjectRef::new(Kind::Secret, shown.secret.clone());
            let is_readable = view.unreadable(&Key::Decided(object.clone())).is_none();
            if is_readable && secret::version(view, &object, shown.uid, shown.version).is_none() {
                let what = format!("{balancer} shows {shown:?}, which is not kept: {}", told(view, &object));
                return violated("secret", what);
            }
        }
    }
    Ok(())
}

/// When all is at rest the newest version is what is asked, and besides it only those are kept that somebody shows.
pub(crate) fn check_goal(view: &View, object: &ObjectRef) -> Checked {
    let Some(Spec::Secret(spec)) = view.living(object).map(|asked| &asked.spec) else { return Ok(()) };
    let choice_of = secret::choice(view, object).cloned().unwrap_or_default();
    let wrong = |what: &str| violated("secret", format!("{object} {what}: {}", told(view, object)));
    if spec.given().is_some_and(|pair| choice_of.newest().is_none_or(|newest| newest.pair != *pair)) {
        return wrong("has not as its newest what is asked");
    }
    let balancers = view.objects_of(Kind::LoadBalancer).filter_map(|balancer| choice(view, balancer));
    let shown = balancers.flat_map(Choice::shown).filter(|shown| shown.secret == object.name);
    let shown: BTreeSet<u64> = shown.map(|shown| shown.version).collect();
    let newest = choice_of.newest().map(|newest| newest.number);
    if choice_of.versions.iter().any(|one| Some(one.number) != newest && !shown.contains(&one.number)) {
        return wrong("keeps what nobody shows");
    }
    let chain = spec.given().map(|pair| pair.chain.as_str());
    let expected = CHAINS.iter().find(|(text, _)| Some(*text) == chain).map(|(_, state)| *state);
    let state = status::state(view, object).map(|(state, _)| state);
    if expected.is_some() && state != expected {
        return wrong(&format!("is {state:?}, not {expected:?}"));
    }
    Ok(())
}

/// Whether a load balancer shows some version of it.
pub(crate) fn is_shown(view: &View, object: &ObjectRef) -> bool {
    let mut balancers = view.objects_of(Kind::LoadBalancer).filter_map(|balancer| choice(view, balancer));
    balancers.any(|choice| choice.shown().any(|shown| shown.secret == object.name))
}
