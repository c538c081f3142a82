//! A certification authority: the leader orders certificates of it, and it looks whether a proxy answers.

use lightbyte_api::kinds::loadbalancer::{Choice as BalancerChoice, Proxy};
use lightbyte_api::kinds::secret::{Account, Acme, Order, Pair, PrivateKey};
use lightbyte_api::topology::Challenge;
use lightbyte_api::{Kind, ObjectRef, Spec, VmId};
use lightbyte_plan::View;
use lightbyte_plan::fronts::choice;
use lightbyte_plan::planner::secret::acme::{
    ANSWERED_WITHIN, News, RENEWED_AFTER_MIN, Step, is_of, next_step,
};
use lightbyte_plan::planner::{later, secret};

use crate::cluster::{Checked, Cluster, Violation};
use crate::oracle::{told, violated};
use crate::secrets::{CHAINS, some_key};

/// The authorities. The last one gives nobody anything while there are faults.
const DIRECTORIES: [&str; 3] =
    ["https://one.example/directory", "https://two.example/directory", "https://none.example/directory"];
/// What certificates are ordered for.
const NAMES: [&str; 3] = ["a.example", "b.example", "c.example"];

impl Cluster {
    /// What somebody wants to be ordered.
    pub(crate) fn some_acme(&mut self) -> Acme {
        let names = NAMES[..=self.rng.below(NAMES.len())].iter().map(|name| (*name).to_owned()).collect();
        let directory = DIRECTORIES[self.rng.below(DIRECTORIES.len())].to_owned();
        Acme { names, directory, contact: Vec::new() }
    }

    /// A leader does what it believes is to be done next for some secret.
    pub(crate) fn issue(&mut self, index: usize) -> Checked {
        let now = self.now();
        let Some(term) = self.servers[index].term.as_ref() else { return Ok(()) };
        let view = term.reconciler.view();
        let step = |object: &ObjectRef| {
            let step = next_step(view, object, term.reconciler.news_of(object), now);
            (step != Step::Rest).then(|| (object.clone(), step))
        };
        let steps: Vec<(ObjectRef, Step)> = view.objects_of(Kind::Secret).filter_map(step).collect();
        for (object, step) in steps {
            // The way to an authority is long.
            if self.rng.once_in(3) {
                continue;
            }
            let news = self.perform(&object, step)?;
            self.tell(|| format!("the authority, for {object}: {news:?}"));
            if let Some(term) = &mut self.servers[index].term {
                term.reconciler.learned(object, news.into());
            }
        }
        Ok(())
    }

    fn perform(&mut self, object: &ObjectRef, step: Step) -> Result<News, Violation> {
        let at = self.now();
        match step {
            Step::Rest => unreachable!("nobody asks for it"),
            Step::Order { acme, account } => {
                self.check_pause(object, &acme)?;
                if self.faults && (acme.directory == DIRECTORIES[2] || self.rng.once_in(3)) {
                    self.counts.add("authority: order refused");
                    return Ok(News::Failed { acme, url: None, because: "refused".to_owned(), at });
                }
                self.counts.add("authority: ordered");
                let number = self.rng.bits() as u64;
                let challenge = |index: usize| Challenge {
                    token: format!("t-{number}-{index}"),
                    answer: format!("a-{number}"),
                };
                let challenges = (0..acme.names.len()).map(challenge).collect();
                let new =
                    || Account { directory: acme.directory.clone(), sealed: "sealed:account".to_owned() };
                let account = account.unwrap_or_else(new);
                let url = format!("{}/{number}", acme.directory);
                Ok(News::Ordered { account, order: Order { acme, url, challenges, since: at } })
            }
            Step::Answer { order, .. } => {
                let Order { acme, url, .. } = order.clone();
                let meets = self.meets(object);
                let met = (!meets.is_empty()).then(|| self.rng.below(meets.len())).map(|index| &meets[index]);
                let is_answered =
                    met.is_some_and(|(_, known)| order.challenges.iter().all(|one| known.contains(one)));
                if !is_answered || (self.faults && self.rng.once_in(3)) {
                    if !self.faults && at < later(order.since, ANSWERED_WITHIN) {
                        let who = met.map(|(vm, _)| *vm);
                        return violated(
                            "authority",
                            format!("{object}: it looks at {who:?}, which does not answer: {meets:?}"),
                        );
                    }
                    self.counts.add("authority: not answered");
                    return Ok(News::Failed { acme, url: Some(url), because: "not answered".to_owned(), at });
                }
                self.counts.add("authority: issued");
                let chain = CHAINS[self.rng.below(CHAINS.len())].0.to_owned();
                let key = PrivateKey::Sealed(some_key(&mut self.rng).to_owned());
                Ok(News::Issued { url, pair: Pair { chain, key } })
            }
        }
    }

    /// Nobody orders again what has just come. A leader that knows little may.
    fn check_pause(&self, object: &ObjectRef, acme: &Acme) -> Checked {
        let newest = secret::choice(self.oracle.truth(), object).and_then(|choice| choice.newest());
        let came_at =
            newest.filter(|newest| is_of(newest, acme)).and_then(|newest| Some(newest.issued.as_ref()?.at));
        if !self.faults && came_at.is_some_and(|at| self.now() < later(at, RENEWED_AFTER_MIN)) {
            return violated(
                "authority",
                format!("{object} is ordered again: {}", told(self.oracle.truth(), object)),
            );
        }
        Ok(())
    }

    /// Proxies that the authority may meet under the names of a secret, and what they answer: those that run, and were told of.
    fn meets(&self, object: &ObjectRef) -> Vec<(VmId, Vec<Challenge>)> {
        let view = self.oracle.truth();
        let mut meets = Vec::new();
        for choice in naming(view, object) {
            for proxy in &choice.proxies {
                let worker = self.workers.iter().find(|worker| worker.id == proxy.worker);
                let Some(worker) = worker.filter(|worker| view.alive(worker.id).is_some()) else { continue };
                let vm = VmId::new(proxy.uid);
                let known = worker.front.challenges(vm).filter(|_| worker.ready().contains(&vm));
                meets.extend(known.map(|known| (vm, known.to_vec())));
            }
        }
        meets
    }

    /// When all is at rest nothing is left to be done, and who can answer the authority has a certificate or was refused one.
    pub(crate) fn check_orders(&self) -> Checked {
        let view = self.oracle.truth();
        for object in view.objects_of(Kind::Secret) {
            let Some(Spec::Secret(spec)) = view.living(object).map(|asked| &asked.spec) else { continue };
            let Some(acme) = spec.ordered() else { continue };
            let wrong =
                |what: String| violated("authority", format!("{object} {what}: {}", told(view, object)));
            let step = next_step(view, object, None, self.now());
            if step != Step::Rest {
                return wrong(format!("rests before {step:?}"));
            }
            let choice = secret::choice(view, object).cloned().unwrap_or_default();
            let has_come = choice.newest().is_some_and(|newest| is_of(newest, acme));
            if !has_come && choice.failure.is_none() && self.is_answered(object) {
                return wrong("has no certificate".to_owned());
            }
        }
        Ok(())
    }

    /// Whether there are proxies that can be met under the names of a secret, and each has taken all that it was told.
    fn is_answered(&self, object: &ObjectRef) -> bool {
        let choices = naming(self.oracle.truth(), object);
        let mut proxies =
            choices.flat_map(|choice| choice.proxies.iter().map(|proxy| (choice.revision, proxy)));
        let has_taken = |(revision, proxy): (u64, &Proxy)| {
            let vm = VmId::new(proxy.uid);
            let worker = self.workers.iter().find(|worker| worker.id == proxy.worker);
            worker.is_some_and(|worker| worker.ready().contains(&vm) && worker.front.revision(vm) >= revision)
        };
        let first = proxies.next();
        first.is_some_and(has_taken) && proxies.all(has_taken)
    }
}

/// What the load balancers have that are to show a secret.
fn naming<'a>(view: &'a View, object: &'a ObjectRef) -> impl Iterator<Item = &'a BalancerChoice> {
    let names = |balancer: &&ObjectRef| {
        matches!(view.living(balancer).map(|asked| &asked.spec),
            Some(Spec::LoadBalancer(spec)) if spec.serving.certificates.contains(&object.name))
    };
    view.objects_of(Kind::LoadBalancer).filter(names).filter_map(|balancer| choice(view, balancer))
}
