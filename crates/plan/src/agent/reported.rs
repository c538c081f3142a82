//! What the store holds of a worker's reports on one object, as far as the worker knows: one report at a time is on its way,
//! each guarded by the revision of the one before.
//!
//! ```text
//!   send ──> in flight ── accepted ──> stored
//!              │  │ refused: what is stored is taken, and told anew
//!              │  └ lost: sent again; its guard tells
//!              └ heard meanwhile that something else is stored: looked at after the answer
//! ```

use lightbyte_api::assigned::HostObject;
use lightbyte_api::observed::Observed;

use super::Stamped;
use super::step::{Reply, Report};

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Reported {
    /// Revision of the stored report; 0 when there is none.
    revision: u64,
    stored: Option<Observed>,
    /// Whether this is what is stored is not known: an earlier run has sent something else, or it was withdrawn. What is true
    /// must be told again, and until that is stored nothing is claimed.
    is_unsure: bool,
    /// What was heard of the stored report while another was in flight: its revision, and that of the view that had it.
    heard: Option<(u64, u64)>,
    in_flight: Option<Sent>,
    /// A claim on this revision of the assignment was refused: it has changed, and the news is under way.
    refused_assignment: Option<u64>,
    /// A claim was sent and its answer was lost: it may be stored, and must be sent again before it can be given up.
    claim_unsure: bool,
    /// Whether an inventory has said what is stored. Before that nothing can be guarded, and so nothing is sent.
    known: bool,
    /// Whether what is stored has been what was to be said, at any time since this agent began.
    told: bool,
}

/// A report on its way.
#[derive(Clone, Debug)]
struct Sent {
    observed: Option<Observed>,
    /// The revision of the assignment that it claims. Another may have come since.
    claims: Option<u64>,
}

impl Reported {
    /// What was stored last, as far as is known.
    pub(super) const fn stored(&self) -> Option<&Observed> {
        self.stored.as_ref()
    }

    /// Whether a report is stored, and stays so: the object is claimed.
    pub(super) const fn is_claim(&self) -> bool {
        self.revision != 0 && !self.is_unsure
    }

    /// Whether none is stored, and none is on its way.
    pub(super) const fn is_nothing(&self) -> bool {
        self.revision == 0 && self.in_flight.is_none()
    }

    pub(super) const fn is_claim_unsure(&self) -> bool {
        self.claim_unsure
    }

    pub(super) const fn is_told(&self) -> bool {
        self.told
    }

    /// A stream has begun: where it named no report, none is stored.
    pub(super) const fn make_known(&mut self) {
        self.known = true;
    }

    /// Takes what an inventory of a view of `seen` says.
    pub(super) fn adopt(&mut self, observed: Option<Stamped<Observed>>, seen: u64) {
        self.known = true;
        self.refused_assignment = None;
        // A report in flight may be newer than the inventory.
        if self.in_flight.is_none() {
            self.set_stored(observed);
        } else {
            self.heard = Some((observed.map_or(0, |observed| observed.mod_revision), seen));
        }
    }

    /// Takes the revision at which a view of `seen` has the report; nought if it has none.
    pub(super) fn note(&mut self, mod_revision: u64, seen: u64) {
        if self.in_flight.is_some() {
            // It was either stored, or is refused for what was; or it is lost, and then nothing else tells.
            self.heard = Some((mod_revision, seen));
            return;
        }
        let is_news = mod_revision != self.revision && seen > self.revision;
        if self.known && is_news {
            self.revision = mod_revision;
            // What was heard may be older than what is known, as when nothing is stored since.
            self.is_unsure = mod_revision != 0;
            if mod_revision == 0 {
                self.stored = None;
            }
        }
    }

    fn set_stored(&mut self, observed: Option<Stamped<Observed>>) {
        self.claim_unsure = false;
        self.is_unsure = false;
        self.revision = observed.as_ref().map_or(0, |observed| observed.mod_revision);
        self.stored = observed.map(|observed| observed.value);
    }

    /// Takes the answer to what is in flight.
    pub(super) fn reply(&mut self, reply: Reply) {
        let Some(sent) = self.in_flight.take() else { return };
        match reply {
            Reply::Accepted { revision } => {
                self.heard = self.heard.filter(|(_, seen)| *seen >= revision);
                self.claim_unsure = false;
                self.is_unsure = false;
                self.revision = if sent.observed.is_some() { revision } else { 0 };
                self.stored = sent.observed;
                self.told = true;
            }
            Reply::Refused { observed, assigned_revision } => {
                if observed.is_none() && sent.claims.is_some_and(|claimed| claimed != assigned_revision) {
                    self.refused_assignment = sent.claims;
                }
                self.set_stored(observed);
            }
            // Sent again as it was: the guard tells whether the first one was stored.
            Reply::Lost => self.claim_unsure |= self.revision == 0,
        }
        if let Some((mod_revision, seen)) = self.heard.take() {
            self.note(mod_revision, seen);
        }
    }

    /// The report to send so that `observed` becomes what is stored; nothing if it is, or if none may be sent now.
    pub(super) fn send(
        &mut self,
        object: HostObject,
        observed: Option<Observed>,
        wish_revision: Option<u64>,
    ) -> Option<Report> {
        if self.in_flight.is_some() || !self.known {
            return None;
        }
        if same_report(self.stored.as_ref(), observed.as_ref()) && !self.is_unsure {
            self.told = true;
            return None;
        }
        let is_claim = self.revision == 0;
        if is_claim && (wish_revision.is_none() || wish_revision == self.refused_assignment) {
            return None;
        }
        let claims = wish_revision.filter(|_| is_claim);
        self.is_unsure |= observed.is_none();
        self.in_flight = Some(Sent { observed: observed.clone(), claims });
        Some(Report { object, observed, own_revision: self.revision, assigned_revision: claims })
    }
}

/// Whether two reports say the same; when it began to be true does not count.
fn same_report(stored: Option<&Observed>, wanted: Option<&Observed>) -> bool {
    match (stored, wanted) {
        (Some(Observed::Vm(stored)), Some(Observed::Vm(wanted))) => {
            *stored == lightbyte_api::ObservedVm { since: stored.since, ..wanted.clone() }
        }
        (Some(Observed::Volume(stored)), Some(Observed::Volume(wanted))) => {
            *stored == lightbyte_api::ObservedVolume { since: stored.since, ..wanted.clone() }
        }
        (None, None) => true,
        _ => false,
    }
}
