//! A change of what proxies do goes to one of them first. Only when that one has it, and goes on for a while, do the others get
//! it: what would bring all proxies down at once brings down one, and is taken back.

use lightbyte_api::kinds::loadbalancer::{
    Choice as BalancerChoice, Configuration, Proxy, Rejected, ShownCertificate, Trial,
};
use lightbyte_api::topology::{Challenge, maximum};
use lightbyte_api::{Key, Kind, Name, ObjectRef, Span, Spec, Timestamp, WaitingOn};

use super::{Balancer, look_again, observed};
use crate::planner::{Plan, later, secret, since};

/// How long the first proxy must have gone on with it.
pub(super) const TRIED_FOR: Span = Span::from_secs(2);
/// How long it may take to have it at all.
pub(super) const TAKEN_WITHIN: Span = Span::from_secs(30);

/// When what no proxy has judged is tried again.
const TRIED_AGAIN_AFTER: Span = Span::from_secs(30);

/// What became of a trial.
enum Outcome {
    Goes(Span),
    Passed,
    /// By what is tried.
    Failed(String),
    /// By what, nobody can say.
    Broken(String),
}

impl Balancer<'_> {
    /// Brings what is asked to the proxies: to one, then to all.
    pub(super) fn configure(&self, choice: &mut BalancerChoice, plan: &mut Plan) {
        let Some(certificates) = self.certificates(plan) else {
            // What is asked cannot be told to anybody, so nobody goes on trying what was asked before.
            drop_trial(choice);
            return;
        };
        if let Some(trial) = choice.trial.clone() {
            self.judge(&trial, &certificates, choice, plan);
        }
        let is_asked =
            |number: u64| choice.configuration(number).is_some_and(|one| self.is_asked(one, &certificates));
        if choice.accepted.is_some_and(is_asked) {
            choice.rejected = None;
        } else if let Some(rejected) =
            choice.rejected.as_ref().filter(|rejected| self.is_shut_out(rejected, &certificates))
        {
            plan.waiting_on.push(WaitingOn::TrialFailed { because: rejected.because.clone() });
            let left = rejected.again_at.map(|at| since(self.inputs.now, at));
            left.into_iter().for_each(|left| look_again(plan, left));
        } else if choice.trial.is_none() {
            self.begin(certificates, choice, plan);
        }
        let tester = choice.trial.as_ref().and_then(|trial| self.view.object_of(trial.proxy));
        plan.waiting_on.extend(tester.map(|proxy| WaitingOn::Trial { proxy: proxy.clone() }));
    }

    /// The newest of each certificate that is asked for; nothing while one is not there. One that is ordered keeps nobody waiting: it
    /// is these proxies that the authority comes to.
    fn certificates(&self, plan: &mut Plan) -> Option<Vec<ShownCertificate>> {
        let shown = |name: &Name| {
            let object = ObjectRef::new(Kind::Secret, name.clone());
            plan.rests_on.push(Key::Decided(object.clone()));
            // One that is missing is told with all that is.
            let asked = self.view.living(&object)?;
            let is_ordered = matches!(&asked.spec, Spec::Secret(spec) if spec.ordered().is_some());
            let uid = asked.meta.uid;
            let Some(newest) = secret::choice(self.view, &object).and_then(|choice| choice.newest()) else {
                plan.waiting_on.push(WaitingOn::Source { object });
                return is_ordered.then_some(None);
            };
            Some(Some(ShownCertificate { secret: name.clone(), uid, version: newest.number }))
        };
        let shown: Option<Vec<Option<ShownCertificate>>> =
            self.spec.serving.certificates.iter().map(shown).collect();
        Some(shown?.into_iter().flatten().collect())
    }

    /// What the authorities are answered that certificates are ordered of. A token that comes twice would have proxies refuse all of it.
    pub(super) fn challenges(&self) -> Vec<Challenge> {
        let objects =
            self.spec.serving.certificates.iter().map(|name| ObjectRef::new(Kind::Secret, name.clone()));
        let orders = objects.filter_map(|object| secret::choice(self.view, &object)?.order.as_ref());
        let mut challenges: Vec<Challenge> = Vec::new();
        for challenge in orders.flat_map(|order| &order.challenges) {
            let is_known = challenges.iter().any(|known| known.token == challenge.token);
            if !is_known && challenges.len() < maximum::CHALLENGES {
                challenges.push(challenge.clone());
            }
        }
        challenges
    }

    /// Whether this is what is asked.
    fn is_asked(&self, configuration: &Configuration, certificates: &[ShownCertificate]) -> bool {
        configuration.serving == self.spec.serving && configuration.certificates == certificates
    }

    /// Whether what is asked was refused, and is not tried again yet.
    fn is_shut_out(&self, rejected: &Rejected, certificates: &[ShownCertificate]) -> bool {
        rejected.serving == self.spec.serving
            && rejected.certificates == certificates
            && rejected.again_at.is_none_or(|at| self.inputs.now < at)
    }

    /// Begins with what is asked: by a trial, unless there is no proxy yet that could break.
    fn begin(&self, certificates: Vec<ShownCertificate>, choice: &mut BalancerChoice, plan: &mut Plan) {
        let tester = choice.accepted.and_then(|_| self.tester(choice));
        if let Some(away) = tester.filter(|proxy| self.is_away(proxy)) {
            let worker = self.view.object_of(away.worker.uid()).map(|object| object.name.clone());
            plan.waiting_on.extend(worker.map(|worker| WaitingOn::WorkerAway { worker }));
            return;
        }
        if tester.is_none() && choice.accepted.is_some() && !choice.proxies.is_empty() {
            // One may have been told something, and has not said so yet.
            plan.waiting_on.push(WaitingOn::Proxies { group: self.group.clone() });
            return;
        }
        let number = 1 + choice.configurations.iter().map(|one| one.number).max().unwrap_or(0);
        let serving = self.spec.serving.clone();
        choice.rejected = None;
        choice.configurations.push(Configuration { number, serving, certificates, pools: Default::default() });
        let Some(proxy) = tester else {
            self.accept(number, choice);
            return;
        };
        choice.trial = Some(Trial {
            number,
            proxy: proxy.uid,
            restarts: self.report(&proxy).map_or(0, |report| report.restarts),
            // Known when it is raised.
            revision: 0,
            since: self.inputs.now,
            acknowledged_at: None,
        });
        look_again(plan, TAKEN_WITHIN);
    }

    /// The proxy that tries: one that stays and has done what it was told; better one that can be reached.
    fn tester(&self, choice: &BalancerChoice) -> Option<Proxy> {
        let candidates = choice.proxies.iter().filter(|proxy| self.stays(proxy) && self.report(proxy).is_some());
        candidates.min_by_key(|proxy| (self.is_away(proxy), proxy.uid)).copied()
    }

    /// Whether the end of the proxy's VM is not asked for.
    fn stays(&self, proxy: &Proxy) -> bool {
        self.view.object_of(proxy.uid).is_some_and(|object| self.view.living(object).is_some())
    }

    pub(super) fn is_away(&self, proxy: &Proxy) -> bool {
        self.view.alive(proxy.worker).is_none()
    }

    fn accept(&self, number: u64, choice: &mut BalancerChoice) {
        choice.configurations.retain(|one| one.number == number);
        choice.accepted = Some(number);
        choice.trial = None;
    }

    /// Ends the trial if there is something to say of it.
    fn judge(
        &self,
        trial: &Trial,
        certificates: &[ShownCertificate],
        choice: &mut BalancerChoice,
        plan: &mut Plan,
    ) {
        let is_asked = choice.configuration(trial.number).is_some_and(|one| self.is_asked(one, certificates));
        if !is_asked {
            drop_trial(choice);
            return;
        }
        let proxy = choice.proxies.iter().find(|proxy| proxy.uid == trial.proxy).copied();
        if let Some(proxy) = &proxy {
            plan.rests_on.push(Key::Observed(proxy.worker, proxy.host_object()));
        }
        let acknowledged = proxy.as_ref().and_then(|proxy| self.report(proxy));
        if acknowledged.is_some_and(|report| report.revision >= trial.revision)
            && let Some(trial) = &mut choice.trial
        {
            trial.acknowledged_at.get_or_insert(self.inputs.now);
        }
        match self.outcome(choice.trial.as_ref().unwrap_or(trial), proxy.as_ref()) {
            Outcome::Goes(left) => look_again(plan, left),
            Outcome::Passed => self.accept(trial.number, choice),
            Outcome::Failed(because) => {
                choice.rejected = drop_trial(choice).map(|tried| rejected(tried, because, None));
            }
            Outcome::Broken(because) => {
                let again_at = Some(later(self.inputs.now, TRIED_AGAIN_AFTER));
                choice.rejected = drop_trial(choice).map(|tried| rejected(tried, because, again_at));
            }
        }
    }

    /// Why a proxy did not take what it was to try, as far as its worker knows.
    fn not_taken(&self, proxy: &Proxy) -> String {
        let what = "the proxy that was to try it did not take it in time";
        let problem = observed(self.view, proxy).and_then(|observed| observed.problem.as_ref());
        problem.map_or_else(|| what.to_owned(), |problem| format!("{what}: {problem}"))
    }

    fn outcome(&self, trial: &Trial, proxy: Option<&Proxy>) -> Outcome {
        let Some(proxy) = proxy.filter(|proxy| self.stays(proxy) && !self.is_away(proxy)) else { return Outcome::Broken("the proxy that tried it is gone".to_owned()) };
        let report = self.report(proxy);
        let refused = report.and_then(|report| report.refused.as_ref());
        if let Some(refused) = refused.filter(|refused| refused.revision >= trial.revision) {
            return Outcome::Failed(refused.because.clone());
        }
        if report.is_some_and(|report| report.restarts > trial.restarts) {
            return Outcome::Failed("the proxy ended while it tried it".to_owned());
        }
        let left = |limit: Span, passed: Span| limit.millis().saturating_sub(passed.millis());
        match trial.acknowledged_at.map(|at| left(TRIED_FOR, since(at, self.inputs.now))) {
            Some(0) => Outcome::Passed,
            Some(left) => Outcome::Goes(Span::from_millis(left)),
            None => match left(TAKEN_WITHIN, since(trial.since, self.inputs.now)) {
                0 => Outcome::Broken(self.not_taken(proxy)),
                left => Outcome::Goes(Span::from_millis(left)),
            },
        }
    }
}

/// Ends a trial, and says what was tried.
fn drop_trial(choice: &mut BalancerChoice) -> Option<Configuration> {
    let number = choice.trial.take()?.number;
    let tried = choice.configurations.iter().position(|one| one.number == number)?;
    Some(choice.configurations.remove(tried))
}

fn rejected(tried: Configuration, because: String, again_at: Option<Timestamp>) -> Rejected {
    Rejected { serving: tried.serving, certificates: tried.certificates, because, again_at }
}
