//! Tidies up the parts of this host: asks what is registered, lets it be decided, and does it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use lightbyte_api::parts::RegisteredParts;
use lightbyte_api::records::Epoch;
use lightbyte_plan::agent::parts::{self as plan, Deed, Found, State};
use lightbyte_vmm::parts::{Fault, Kept};
use lightbyte_vmm::{DriverError, Parts};

use super::Store;
use crate::clock::now;
use crate::life::describe;

/// How often: graces are hours, and a list of all images is not asked for every minute.
pub(crate) const PERIOD: Duration = Duration::from_secs(600);

/// Tidies up once. `needed` is what something on this host is made from; `epoch` and `cursor` are what this worker has seen:
/// a server that has seen less, or speaks for another cluster, is not believed.
pub(crate) async fn tidy(store: Arc<Store>, needed: BTreeSet<String>, epoch: Epoch, cursor: u64) {
    let path = format!("/v1/parts?min_revision={cursor}");
    let registered = match store.client.get::<RegisteredParts>(&path).await {
        Ok(answer) if answer.value.epoch == epoch && answer.value.revision >= cursor => answer.value.parts,
        Ok(_) => return tracing::warn!("a server speaks for another epoch; no part is put away"),
        Err(error) => return tracing::debug!("nobody says which parts are registered: {}", describe(&error)),
    };
    let needed = needed.into_iter().chain(registered).collect();
    let done = store.ask(move |parts| carry_out(parts, &needed)).await;
    match done {
        Ok(deeds) if deeds.is_empty() => {}
        Ok(deeds) => {
            deeds.iter().for_each(|deed| tracing::info!("parts of images: {deed:?}"));
            store.changed.notify_one();
        }
        Err(error) => tracing::warn!("cannot tidy up parts of images: {}", error.chain()),
    }
}

fn carry_out(parts: &Parts, needed: &BTreeSet<String>) -> Result<Vec<Deed>, DriverError> {
    let found: Vec<Found> = parts.kept()?.into_iter().map(found).collect();
    let deeds = plan::tidy(&found, needed, now());
    for deed in &deeds {
        match deed {
            Deed::NoteUnneeded(sha256) => parts.note_unneeded(sha256, true)?,
            Deed::NoteNeeded(sha256) => parts.note_unneeded(sha256, false)?,
            Deed::PutAway(sha256) => parts.put_away(sha256, Fault::Unneeded)?,
            Deed::TakeBack(sha256) => drop(parts.take_back(sha256)?),
            Deed::Remove(sha256) => parts.remove_quarantined(sha256)?,
            Deed::RemoveIncoming(sha256) => parts.remove_incoming(sha256)?,
        }
    }
    Ok(deeds)
}

fn found(kept: Kept) -> Found {
    match kept {
        Kept::Whole { sha256, unneeded_since } => Found { sha256, state: State::Whole { unneeded_since } },
        Kept::Incoming { sha256, since } => Found { sha256, state: State::Incoming { since } },
        Kept::Quarantined { sha256, note } => {
            let damaged = note.fault != Fault::Unneeded;
            Found { sha256, state: State::Quarantined { since: note.since, damaged } }
        }
    }
}
