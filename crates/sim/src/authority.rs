//! A certification authority: the leader orders certificates of it, and it looks whether a proxy answers.

use lightbyte_api::kinds::loadbalancer::{Choice as BalancerChoice, Proxy};
use lightbyte_api::kinds::secret::{Account, Acme, CHALLENGE_LABEL, Order, Pair, PrivateKey, Proof, Text};
use lightbyte_api::topology::Challenge;
use lightbyte_api::{Kind, ObjectRef, Spec, Timestamp, Uid, VmId};
use lightbyte_plan::fronts::choice;
use lightbyte_plan::planner::secret::acme::{
    ANSWERED_WITHIN, News, ORDER_LASTS, RENEWED_AFTER_MIN, Step, again_at, is_of, next_step,
};
use lightbyte_plan::planner::{later, secret};
use lightbyte_plan::{View, zone};

use crate::cluster::{Checked, Cluster, LEASE_MILLIS, Violation};
use crate::oracle::{told, violated};
use crate::secrets::{CHAINS, some_key};

/// The authorities. The last one gives nobody anything while there are faults.
const DIRECTORIES: [&str; 3] =
    ["https://one.example/directory", "https://two.example/directory", "https://none.example/directory"];
/// How often what has failed is waited for.
const TRIES_MAX: usize = 10;
/// The zone that the names are in.
const ZONE: &str = "example";
/// What certificates are ordered for.
const NAMES: [&str; 3] = ["a.example", "b.example", "c.example"];

impl Cluster {
    /// What somebody wants to be ordered.
    pub(crate) fn some_acme(&mut self) -> Acme {
        let names = NAMES[..=self.rng.below(NAMES.len())].iter().map(|name| (*name).to_owned()).collect();
        let directory = DIRECTORIES[self.rng.below(DIRECTORIES.len())].to_owned();
        let challenge = if self.rng.once_in(4) { Proof::Dns } else { Proof::Http };
        Acme { names, challenge, directory, contact: Vec::new() }
    }

    /// A leader does what it believes is to be done next for some secret.
    pub(crate) fn issue(&mut self, index: usize) -> Checked {
        let now = self.now();
        let Some(term) = self.servers[index].term.as_ref() else { return Ok(()) };
        let view = term.reconciler.view();
        if !term.reconciler.may_act() {
            return Ok(());
        }
        let step = |object: &ObjectRef| {
            let uid = view.asked(object)?.meta.uid;
            let step = next_step(view, object, term.reconciler.news_of(uid), now);
            (step != Step::Rest).then(|| (object.clone(), uid, step))
        };
        let steps: Vec<(ObjectRef, Uid, Step)> = view.objects_of(Kind::Secret).filter_map(step).collect();
        for (object, uid, step) in steps {
            // The way to an authority is long.
            if self.rng.once_in(3) {
                continue;
            }
            let news = self.perform(&object, step)?;
            self.tell(|| format!("the authority, for {object}: {news:?}"));
            if let Some(term) = &mut self.servers[index].term {
                term.reconciler.learned(uid, news.into());
            }
        }
        Ok(())
    }

    fn perform(&mut self, object: &ObjectRef, step: Step) -> Result<News, Violation> {
        match step {
            Step::Rest => unreachable!("nobody asks for it"),
            Step::Order { acme, account } => self.take_order(object, acme, account),
            Step::Answer { order, .. } => self.look_whether(object, order),
        }
    }

    fn take_order(
        &mut self,
        object: &ObjectRef,
        acme: Acme,
        account: Option<Account>,
    ) -> Result<News, Violation> {
        self.check_pause(object, &acme)?;
        let at = self.now();
        if self.faults && (acme.directory == DIRECTORIES[2] || self.rng.once_in(3)) {
            self.counts.add("authority: order refused");
            let account = account.or_else(|| self.rng.once_in(2).then(|| account_of(&acme)));
            return Ok(News::Failed { acme, url: None, because: "refused".to_owned(), at, account });
        }
        self.counts.add("authority: ordered");
        let number = self.rng.bits() as u64;
        let (mut challenges, mut texts) = (Vec::new(), Vec::new());
        for (index, name) in acme.names.iter().enumerate() {
            let (token, answer) = (format!("t-{number}-{index}"), format!("a-{number}"));
            match acme.challenge {
                Proof::Http => challenges.push(Challenge { token, answer }),
                Proof::Dns => texts.push(Text { name: format!("{CHALLENGE_LABEL}.{name}"), value: answer }),
            }
        }
        let account = account.unwrap_or_else(|| account_of(&acme));
        let url = format!("{}/{number}", acme.directory);
        let key = some_key(&mut self.rng).to_owned();
        Ok(News::Ordered { account, order: Order { acme, url, key, challenges, texts, since: at } })
    }

    /// The authority looks, and gives a certificate or none.
    fn look_whether(&mut self, object: &ObjectRef, order: Order) -> Result<News, Violation> {
        let at = self.now();
        let (is_answered, by) = match order.acme.challenge {
            Proof::Http => {
                let meets = self.meets(object);
                let met = (!meets.is_empty()).then(|| self.rng.below(meets.len())).map(|index| &meets[index]);
                let answers = |known: &[Challenge]| order.challenges.iter().all(|one| known.contains(one));
                (
                    met.is_some_and(|(_, known)| answers(known)),
                    format!("{:?} of {meets:?}", met.map(|(vm, _)| *vm)),
                )
            }
            Proof::Dns => {
                let zone = zone::compose(self.oracle.truth(), ZONE).zone;
                let has = |text: &Text| {
                    let owner = text.name.strip_suffix(ZONE).unwrap_or_default().trim_end_matches('.');
                    zone.names.get(owner).is_some_and(|records| records.txt.values.contains(&text.value))
                };
                (order.texts.iter().all(has), "the zone".to_owned())
            }
        };
        let Order { acme, url, key, since, .. } = order;
        if !is_answered || (self.faults && self.rng.once_in(3)) {
            if !self.faults && at < later(since, ANSWERED_WITHIN) {
                return violated("authority", format!("{object}: it looks at {by}, which does not answer"));
            }
            self.counts.add("authority: not answered");
            return Ok(News::Failed {
                acme,
                url: Some(url),
                because: "not answered".to_owned(),
                at,
                account: None,
            });
        }
        self.counts.add("authority: issued");
        let chain = CHAINS[self.rng.below(CHAINS.len())].0.to_owned();
        Ok(News::Issued { url, pair: Pair { chain, key: PrivateKey::Sealed(key) } })
    }

    /// What has failed is tried again, though that may be in hours.
    pub(crate) fn rest_orders(&mut self) -> Checked {
        for _ in 0..TRIES_MAX {
            let Some(at) = self.next_try() else { return Ok(()) };
            while self.now() < at {
                self.now_millis += LEASE_MILLIS / 2;
                self.renew_all();
            }
            self.rest()?;
        }
        Ok(())
    }

    /// When the next order is made after one that failed, or one is given up.
    fn next_try(&self) -> Option<Timestamp> {
        let view = self.oracle.truth();
        let at = |object: &ObjectRef| {
            view.living(object)?;
            let choice = secret::choice(view, object)?;
            let given_up = choice.order.as_ref().map(|order| later(order.since, ORDER_LASTS));
            choice
                .failure
                .as_ref()
                .map(again_at)
                .into_iter()
                .chain(given_up)
                .filter(|at| *at > self.now())
                .min()
        };
        view.objects_of(Kind::Secret).filter_map(at).min()
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
            let is_answered = acme.challenge == Proof::Dns || self.is_answered(object);
            if !has_come && choice.failure.is_none() && is_answered {
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

fn account_of(acme: &Acme) -> Account {
    Account { directory: acme.directory.clone(), sealed: "sealed:account".to_owned() }
}

/// What the load balancers have that are to show a secret.
fn naming<'a>(view: &'a View, object: &'a ObjectRef) -> impl Iterator<Item = &'a BalancerChoice> {
    let names = |balancer: &&ObjectRef| {
        matches!(view.living(balancer).map(|asked| &asked.spec),
            Some(Spec::LoadBalancer(spec)) if spec.serving.certificates.contains(&object.name))
    };
    view.objects_of(Kind::LoadBalancer).filter(names).filter_map(|balancer| choice(view, balancer))
}
