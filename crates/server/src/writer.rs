//! Carries out what `lightbyte_plan::request` decided: commit, and on a conflict decide again on a newer view.
//!
//! A refusal is only told from a view that has reached a linearizable read: an old view must not say that an object
//! does not exist, or that nothing was to be changed.

use std::time::Duration;

use axum::http::StatusCode;
use lightbyte_api::envelope::Envelope;
use lightbyte_api::object::Meta;
use lightbyte_api::records::Record;
use lightbyte_api::{Key, ObjectRef};
use lightbyte_plan::request::{Outcome as Decided, Refusal};
use lightbyte_plan::{Transaction as Decision, View, Write};
use lightbyte_store::feed::encode;
use lightbyte_store::{LeaseId, Outcome, StoreError};
use tokio::time::timeout;

use crate::Server;
use crate::api::caller::Caller;
use crate::clock;
use crate::problem::Failure;

/// How often a request is decided again because somebody else was quicker. More means that many change one object.
pub(crate) const CONFLICTS_MAX: usize = 8;
/// How long a write may take in all. Settling a lost answer takes up to 15 s; clients wait for 20 s.
pub(crate) const WRITE_WITHIN: Duration = Duration::from_secs(18);
/// How long the view may take to reach a revision that somebody has named. Less than a client waits for a read
/// (`lightbyte_link::client::READ_WITHIN`), so that it is told why.
pub(crate) const REACH_WITHIN: Duration = Duration::from_secs(2);
/// How long an answer to a write waits for this server's own view, so that its writer's next read shows the write.
/// Past it the answer goes out all the same: its revision says how new the next read must be.
const OWN_READ_WITHIN: Duration = Duration::from_millis(500);

/// What became of a request.
pub(crate) struct Written {
    /// The revision at which it is so.
    pub(crate) revision: u64,
    /// What was done.
    pub(crate) done: Done,
    /// The view that it was decided on.
    pub(crate) view: View,
}

/// What was done.
pub(crate) enum Done {
    /// An object was made.
    Created(Decision),
    /// An object was changed.
    Changed(Decision),
    /// It was so already.
    Nothing,
}

impl Written {
    /// The common parts of `object` as they are now.
    pub(crate) fn meta(&self, object: &ObjectRef) -> Option<Meta> {
        let key = Key::Asked(object.clone());
        match &self.done {
            Done::Created(decision) | Done::Changed(decision) => match decision.writes.get(&key) {
                Some(Write::Put(_, Record::Asked(asked))) => Some(asked.meta.clone()),
                _ => None,
            },
            Done::Nothing => self.view.asked(object).map(|asked| asked.meta.clone()),
        }
    }
}

impl Server {
    /// Writes a decision that was made on `view`.
    pub(crate) async fn commit(
        &self,
        decision: &Decision,
        view: &View,
        caller: &Caller,
        lease: Option<(&Key, LeaseId)>,
    ) -> Result<Outcome, StoreError> {
        let writer = caller.writer(&self.name).to_string();
        let envelope = Envelope { written_at: clock::precise(), writer: &writer };
        let lease_of = |key: &Key| lease.filter(|(leased, _)| *leased == key).map(|(_, lease)| lease);
        self.store.commit(encode(decision, view, &envelope, lease_of)).await
    }

    /// Decides and writes until it is done or refused.
    ///
    /// # Errors
    /// The refusal; or that the store does not answer, or that others change the same all the time.
    pub(crate) async fn write(
        &self,
        caller: &Caller,
        decide: impl Fn(&View) -> Result<Decided, Refusal>,
    ) -> Result<Written, Failure> {
        match timeout(WRITE_WITHIN, self.write_unbounded(caller, decide)).await {
            Ok(written) => {
                if let Ok(Written { revision, .. }) = &written {
                    // Only a convenience: what a server says of its view's revision is true either way.
                    let _ = self.follower.reach(*revision, OWN_READ_WITHIN).await;
                }
                written
            }
            Err(_) => Err(Failure::outcome_unknown()),
        }
    }

    async fn write_unbounded(
        &self,
        caller: &Caller,
        decide: impl Fn(&View) -> Result<Decided, Refusal>,
    ) -> Result<Written, Failure> {
        let mut view = self.initialised_view()?;
        let mut confirmed = false;
        let mut conflicts = 0;
        while conflicts < CONFLICTS_MAX {
            let decided = decide(&view);
            if !confirmed && !matches!(decided, Ok(Decided::Create(_) | Decided::Change(_))) {
                view = self.confirmed_view().await?;
                confirmed = true;
                continue;
            }
            let (decision, created) = match decided? {
                Decided::Nothing => {
                    return Ok(Written { revision: view.revision(), done: Done::Nothing, view });
                }
                Decided::Create(decision) => (decision, true),
                Decided::Change(decision) => (decision, false),
            };
            match self.commit(&decision, &view, caller, None).await? {
                Outcome::Committed { revision } => {
                    let done = if created { Done::Created(decision) } else { Done::Changed(decision) };
                    return Ok(Written { revision, done, view });
                }
                Outcome::Conflict { revision, .. } => {
                    conflicts += 1;
                    confirmed = false;
                    view = self.follower.reach(revision, REACH_WITHIN).await?;
                }
            }
        }
        let title = format!("others changed it {CONFLICTS_MAX} times meanwhile; nothing was written");
        Err(Failure::new(StatusCode::CONFLICT, title).hint("ask again"))
    }

    /// The newest view of a cluster that was set up.
    pub(crate) fn initialised_view(&self) -> Result<View, Failure> {
        let view = self.follower.view().ok_or_else(Failure::no_view)?;
        match view.contains(&Key::Epoch) {
            true => Ok(view),
            false => {
                let hint = "the first server of a cluster sets it up when it starts";
                Err(Failure::unavailable("the cluster has not been set up", hint))
            }
        }
    }

    /// A view that has seen everything that was acknowledged before this was called.
    pub(crate) async fn confirmed_view(&self) -> Result<View, Failure> {
        let read = self.store.get(&Key::Epoch.to_string()).await?;
        Ok(self.follower.reach(read.revision, REACH_WITHIN).await?)
    }
}
